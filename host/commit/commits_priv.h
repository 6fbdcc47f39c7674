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
#include "host/commit/disk_changes.h"
#include "host/commit/fill.h"
#include "host/store/store.h"
#include "host/vm/tree_priv.h"

struct materialized;
struct pool;

/* A commit that a call works with; on the caller's stack. */
struct commit_use {
	struct commit_use *next;
	char id[STORE_ID_MAX];
};

/* Commits that are being deleted or pruned; on the caller's stack. */
struct commits_going {
	struct commits_going *next;
	const struct store_hash *ids; /* sorted */
	size_t n;
};

struct commits {
	struct tree *tree; /* borrowed */
	struct commits_config config;
	pthread_mutex_t store_lock; /* the opening of the store, and nothing else */
	struct store *store;	    /* owned; NULL: not opened yet */
	/* A commit holds it for reading from its writing on until its VM's row names it; prune
	 * waits for those by holding it for writing, for a moment. */
	pthread_rwlock_t noted_lock;
	struct commit_use *uses;     /* with the tree's lock */
	struct commits_going *going; /* likewise */
	pthread_mutex_t materialized_lock; /* materialize.c's */
	pthread_cond_t materialized_changed;
	struct materialized *materialized_images; /* owned */
	struct pool *pool;			  /* owned; NULL: none */
	/* commits_care.c's. Atomic: cancels so far, gcs that run, closing. */
	unsigned gc_cancels, gcs;
	bool closing, care_made;
	pthread_mutex_t care_lock;
	pthread_cond_t care_changed;
	pthread_t care_thread;
};

/* commits_open.c. The store, opened by the first who asks. */
int commits_store(struct commits *c, struct store **ret, struct err *e);

/*
 * commits.c
 */
/* What a commit is, with the tags on it and the VMs that run on it. With the tree's lock.
 * commits_list.c. */
void commit_json(struct commits *c, const struct store_manifest *m, const char *key,
	struct json_out *out);
/* What a commit's configuration says of its VM: all of the row that `start` and the next
 * commit need. -EBADMSG: it says what cannot be. */
int commit_config_read(const struct store_manifest *m, struct vm_row *ret, struct err *e);
/* The other way: JSON, owned by the caller. */
int commit_config_write(const struct vm_row *row, char **ret, struct err *e);

/*
 * commits_use.c: which commits may not go, and which are going.
 */
/* A VM and a commit that it needs: runs on, was last committed as, or has its disk on. */
struct vm_use {
	char commit[STORE_ID_MAX];
	char vm[VM_ID_LEN + 1];
	unsigned order; /* of the VM in the table */
};
struct vm_uses {
	struct vm_use *v; /* owned; by commit, then by order */
	size_t n;
};
void vm_uses_done(struct vm_uses *u);
#define cleanup_vm_uses __attribute__((cleanup(vm_uses_done)))
/* A copy of what the table says, so that what is asked of it needs no lock. all: also VMs
 * that do not live. The second is with the tree's lock. */
int vm_uses_read(struct tree *t, bool all, struct vm_uses *ret, struct err *e);
int vm_uses_read_locked(struct tree *t, bool all, struct vm_uses *ret, struct err *e);
/* The first VM on the commit, and how many; NULL: none. */
const struct vm_use *vm_uses_find(
	const struct vm_uses *u, const char *commit, size_t *ret_n);

/* The parent of the VM's next commit: its last, held or pruned; NULL when there is none (any
 * more). */
const char *commit_parent_of(struct store *s, const struct vm_row *row);

/* Until commit_use_end() no rule prunes the commit. -ENOENT: it is going already. */
int commit_use_begin(
	struct commits *c, struct commit_use *u, const char *id, struct err *e);
void commit_use_end(struct commits *c, struct commit_use *u);
/* With the tree's lock. */
bool commit_is_going(const struct commits *c, const char *id);
bool commit_is_used(const struct commits *c, const char *id);

/*
 * commits_prune.c
 */
/* Labels of pando's own. */
#define LABEL_OWN "pando."
#define LABEL_EXPIRES LABEL_OWN "expires_ms" /* since the epoch */
#define LABEL_LINE LABEL_OWN "line"	     /* the VM whose --keep-last it is of */
/* Of a commit's labels; false: there is none of that name, or it is longer. */
bool label_get(const char *labels, const char *name, char *dst, size_t cap);

/*
 * materialize.c: <home>/flat/<commit>/, what a commit is as files that can be mapped. Made by
 * the first who needs them; kept as long as a VM lives on them, and then until the room is wanted.
 */
struct materialized_image {
	struct materialized *entry; /* borrowed; NULL: none */
	char folder[PATHS_MAX];
	char disk_path[PATHS_MAX];
	int memory_fd, disk_fd, state_fd; /* owned; read-only; disk_fd -1: see below */
	struct disk_changes changes; /* without a base_fd: the disk is the one file */
	struct fill *fill; /* owned, a reference: memory_fd is not all there; NULL: it is */
	uint64_t state_bytes;
};
#define MATERIALIZED_IMAGE_INIT \
	{ \
		.memory_fd = -1, .disk_fd = -1, .state_fd = -1, \
		.changes = DISK_CHANGES_INIT \
	}
/* Until materialized_release() it is not removed; then VMs' rows say so. The caller holds the
 * store (store_hold()), not the lock. */
#define MATERIALIZED_FULL 1u	  /* memory is all there */
#define MATERIALIZED_ONE_DISK 2u /* disk_fd is there: the disk lies on no base */
#define MATERIALIZED_SYNC_LATER 4u /* the caller calls materialized_sync() */
int materialized_get(struct commits *c, struct store *s, const struct store_manifest *m,
	unsigned how, const struct progress *p, struct materialized_image *ret, struct err *e);
/* Its disk is there after a power cut, too. Before a VM that has it is made. */
int materialized_sync(struct commits *c, struct materialized_image *f, struct err *e);
void materialized_release(struct commits *c, struct materialized_image *f);
/* Removes images beyond config.materialized_mib, the least recently used first; those of commits
 * that are no more, too. */
void materialized_trim(struct commits *c);
/* Of which commit this base is the disk: its id, or false. home: the PANDO_HOME. */
bool materialized_is_disk(
	const char *home, const char *path, char ret_id[static STORE_ID_MAX]);
void materialized_close(struct commits *c);

/* Where pando-fill is: beside the VMM. */
int fill_program(const struct commits *c, char dst[static PATHS_MAX], struct err *e);

/* commits_care.c: the thread that begins a gc when one is due. */
void care_open(struct commits *c);
void care_close(struct commits *c);

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
/* A pando-fill that was started ahead of time, the caller's. false: there is none, and ret is
 * FILL_PROCESS_INIT. */
bool pool_take_fill(struct commits *c, struct fill_process *ret);

#endif
