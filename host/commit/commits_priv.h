/*
 * What the files of this folder share. Nobody else includes this, but benchmarks and tests.
 *
 * Locks, in the order in which they are taken: materialized_lock, then the tree's lock
 * (host/vm/tree_priv.h), then the pool's.
 */
#ifndef PANDO_HOST_COMMIT_COMMITS_PRIV_H
#define PANDO_HOST_COMMIT_COMMITS_PRIV_H

#include <pthread.h>

#include "host/commit/commits.h"
#include "host/store/store.h"
#include "host/vm/tree_priv.h"

struct materialized;
struct pool;

struct commits {
	struct tree *tree; /* borrowed */
	struct commits_config config;
	pthread_mutex_t store_lock; /* the opening of the store, and nothing else */
	struct store *store;	    /* owned; NULL: not opened yet */
	/* Commits hold it for reading, gc for writing: see commits_gc(). */
	pthread_rwlock_t gc_lock;
	pthread_mutex_t materialized_lock; /* materialize.c's */
	pthread_cond_t materialized_changed;
	struct materialized *materialized_images; /* owned */
	struct pool *pool;			  /* owned; NULL: none */
};

/* commits_open.c. The store, opened by the first who asks. */
int commits_store(struct commits *c, struct store **ret, struct err *e);

/*
 * commits.c
 */
/* What a commit is, with the tags on it and the VMs that run on it. With the tree's lock. */
void commit_json(struct commits *c, const struct store_manifest *m, const char *key,
	struct json_out *out);
/* What a commit's configuration says of its VM: all of the row that `start` and the next
 * commit need. -EBADMSG: it says what cannot be. */
int commit_config_read(const struct store_manifest *m, struct vm_row *ret, struct err *e);
/* The other way: JSON, owned by the caller. */
int commit_config_write(const struct vm_row *row, char **ret, struct err *e);

/*
 * materialize.c: <home>/flat/<commit>/{memory,disk,state}, what a commit is as files that can be
 * mapped. Made by the first who needs them; kept as long as a VM lives on them, and then
 * until the room is wanted.
 */
struct materialized_image {
	struct materialized *entry; /* borrowed; NULL: none */
	char disk_path[PATHS_MAX];
	int memory_fd, disk_fd, state_fd; /* owned; read-only */
	uint64_t state_bytes;
};
#define MATERIALIZED_IMAGE_INIT \
	{ \
		.memory_fd = -1, .disk_fd = -1, .state_fd = -1 \
	}
/* Until materialized_release() it is not removed; then VMs' rows say so. The caller holds the
 * store (store_hold()), not the lock. */
int materialized_get(struct commits *c, struct store *s, const struct store_manifest *m,
	const struct progress *p, struct materialized_image *ret, struct err *e);
void materialized_release(struct commits *c, struct materialized_image *f);
/* Removes images beyond config.materialized_mib, the least recently used first; those of commits
 * that are no more, too. */
void materialized_trim(struct commits *c);
/* Of which commit this base is the disk: its id, or false. home: the PANDO_HOME. */
bool materialized_is_disk(
	const char *home, const char *path, char ret_id[static STORE_ID_MAX]);
void materialized_close(struct commits *c);

/*
 * pool.c: pre-warmed VMMs, made ahead of time.
 */
/* Nothing when config.pool_size is 0. */
void pool_open(struct commits *c);
/* One, whoever it is for. log_fd is borrowed. */
int pool_make_prewarmed(const struct tree_config *config, int log_fd, uint64_t mem_mib,
	uint32_t vcpus, struct vmmctl **ret_ctl, int *ret_pidfd, pid_t *ret_pid,
	struct err *e);
/* Ends all that are pre-warmed. */
void pool_close(struct commits *c);
/* A pre-warmed VMM of this shape becomes the caller's: false when there is none. Either way
 * more are made. */
bool pool_take(struct commits *c, uint64_t mem_mib, uint32_t vcpus,
	struct vmmctl **ret_ctl, int *ret_pidfd, pid_t *ret_pid);

/* run_commit.c: a VMM's process that waits for its first message. What was made is the
 * caller's also on failure: *ret_ctl, *ret_pidfd. */
int vmm_start(const struct tree_config *config, int log_fd, struct vmmctl **ret_ctl,
	int *ret_pidfd, pid_t *ret_pid, struct err *e);

#endif
