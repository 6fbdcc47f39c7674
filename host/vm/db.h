/*
 * The tree on disk: SQLite in <home>/state.db (WAL, foreign keys). The only file that
 * calls SQLite.
 *
 * pandod reads it once, at its start, and writes through from then on. Not thread-safe:
 * the caller (host/vm/tree.c) holds its lock around every call.
 *
 * A row of `vms` with made = 0 is half-made, or half-deleted: whoever did it was killed
 * in between; the next start removes it. synchronous=NORMAL: a killed pandod loses
 * nothing; a power cut may lose what was committed since the last checkpoint or db_sync().
 * The VMs do not survive that either, but their disks do: before a file goes that an older
 * state of the database names, db_sync() (tree_sweep(), materialized_trim(), gc), and new VMs
 * are synced by tree_sync() or soon after (tree_sync.c).
 */
#ifndef PANDO_HOST_VM_DB_H
#define PANDO_HOST_VM_DB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/env.h"
#include "common/err.h"
#include "common/paths.h"
#include "common/wire/vmm_wire.h"
#include "host/vm/vm_spec.h"
#include "host/store/store.h"

#define DB_SCHEMA_VERSION 10
#define DB_REASON_MAX 512

#define DB_SEGMENT_MAX 32 /* "<id>.<n>", merged ones "<id>.m<16 digits>" */

enum vm_state {
	VM_STARTING, /* the VMM runs, the agent has not answered yet */
	VM_RUNNING,
	VM_PAUSED,
	VM_STOPPED, /* the guest powered itself off */
	VM_FAILED,  /* anything else ended it */
};
const char *vm_state_name(enum vm_state s);
bool vm_state_parse(const char *name, enum vm_state *ret);
static inline bool
vm_state_lives(enum vm_state s)
{
	return s == VM_STARTING || s == VM_RUNNING || s == VM_PAUSED;
}

/* A row of `vms`, with its labels. Texts empty: NULL. */
struct vm_row {
	char id[VM_ID_LEN + 1];
	char alias[VM_ALIAS_MAX + 1];
	enum vm_state state;
	char reason[DB_REASON_MAX];
	char parent[VM_ID_LEN + 1];
	uint64_t created_ms;
	uint64_t mem_mib;
	uint32_t vcpus;
	uint64_t disk_mib;
	struct disk_limits limits;
	char kernel[VM_IMAGE_MAX];
	char rootfs[VM_IMAGE_MAX];
	char kernel_path[PATHS_MAX];  /* what `kernel` was when it first booted */
	char cmdline[VM_CMDLINE_MAX]; /* what its request added to the kernel's */
	char base_path[PATHS_MAX];
	uint64_t
		resize_mib; /* a resize under way; 0: none. The disk may have that size */
	uint8_t generation[16];
	uint8_t acknowledged[16]; /* the generation its guest has acknowledged last */
	int64_t pid;		  /* 0: none */
	uint64_t pid_start;	  /* field 22 of /proc/<pid>/stat: tells a reused pid */
	bool answered;		  /* the agent did, once */
	bool made;
	uint32_t next_segment; /* <id>.<n> of the next one */
	/* The commit it was restored from or last committed as: the next one's parent. */
	char commit[STORE_ID_MAX];
	/* The last segment of its chain that `commit` has in its disk; empty: not known. Set with
	 * `commit`, and a merge keeps it right. */
	char commit_segment[DB_SEGMENT_MAX];
	/* The commit on whose memory image its memory lies. */
	char image[STORE_ID_MAX];
	/* The commit that it was started from or last reset to; empty: it was booted, or is a
	 * branch. */
	char origin[STORE_ID_MAX];
	/* The fork point that its process can be reset to is kept: how large the disk was then (0: none
	 * is), and its commit. */
	uint64_t fork_mib;
	char fork_commit[STORE_ID_MAX];
	char host_key[96]; /* SSH, public: as acknowledged; its guest's word */
	struct labels labels;
};

/* A link of a VM's disk chain. */
struct chain_link {
	char segment[DB_SEGMENT_MAX];
	int64_t records; /* -1: all of the index */
	uint64_t weight; /* 0: a VM wrote it; else it was merged (merge_plan.h) */
};

/* A reset under way (reset_row.h). Of row the members count that a reset changes: generation, commit,
 * base_path, disk_mib, and what it boots with. */
struct db_reset {
	char segment[DB_SEGMENT_MAX]; /* the disk's only own one, once it has happened */
	uint32_t before;	      /* how often its VMM had been reset then */
	bool to_fork_point; /* the segment comes behind those that the VM does not have for itself */
	struct vm_row row;
};

struct db;

/* Makes the file or takes what is there; a newer schema is refused with a sentence. */
int db_open(const char *path, struct db **ret, struct err *e);
void db_close(struct db *db);

int db_begin(struct db *db, struct err *e);
int db_commit(struct db *db, struct err *e);
void db_rollback(struct db *db); /* no transaction: does nothing */
/* What was committed is on the disk. */
int db_sync(struct db *db, struct err *e);

/* Oldest first. */
int db_load(struct db *db, int (*row)(void *ctx, const struct vm_row *row, struct err *e),
	void *ctx, struct err *e);
/* -EEXIST: the alias is taken. */
int db_insert(struct db *db, const struct vm_row *row, struct err *e);
/* All that can change but labels: alias, state, reason, parent, disk_mib, base_path,
 * generation, pid, answered, made, next_segment, resize_mib, commit, commit_segment, image, origin,
 * fork_mib, fork_commit, acknowledged, host_key. */
int db_update(struct db *db, const struct vm_row *row, struct err *e);
/* Its limits. */
int db_limits(struct db *db, const struct vm_row *row, struct err *e);
/* What the VM boots with: kernel, rootfs, kernel_path, cmdline. */
int db_update_kernel(struct db *db, const struct vm_row *row, struct err *e);
/* The row, its labels and its chain; children become roots. */
int db_delete(struct db *db, const char *id, struct err *e);

/* Makes the segment known, and puts it at the end of vm's chain. */
int db_chain_append(struct db *db, const char *vm, const char *segment, struct err *e);
/* to's chain becomes what from's is now. */
int db_chain_copy(struct db *db, const char *from, const char *to, struct err *e);
/* vm has no chain any more; its segments stay known until the next sweep. */
int db_chain_clear(struct db *db, const char *vm, struct err *e);
/* The segments that only vm's chain has; *ret: malloc'd array. */
int db_chain_own(struct db *db, const char *vm, char (**ret)[DB_SEGMENT_MAX],
	size_t *ret_n, struct err *e);
/* The VMs, frozen forks too, that have the segment in their chains, likewise. */
int db_chain_sharers(struct db *db, const char *segment, char (**ret)[DB_SEGMENT_MAX],
	size_t *ret_n, struct err *e);
int db_chain_remove(struct db *db, const char *vm, const char *segment, struct err *e);
/* The segment was cut: wherever it is not the last link it has that many records. */
int db_chain_fork_point(
	struct db *db, const char *segment, uint64_t records, struct err *e);
/* If the segment was cut and is empty: no chain needs it where it is not the last link. 1: it
 * left some; 0: not. */
int db_chain_drop_empty(struct db *db, const char *segment, struct err *e);
/*
 * A merged segment that is to stand in the place of vm's links first to last. It is known from
 * begin on, and beside the chain: db_chain() does not give it, db_chain_copy() copies it. One
 * at a time for each VM. begin: -ENOENT: the chain has no such links.
 */
int db_merge_begin(struct db *db, const char *vm, const struct chain_link *merged,
	const char *first, const char *last, struct err *e);
/* 1: there is one, with the links that it stands for (malloc'd array, oldest first); 0: none. */
int db_merge_find(struct db *db, const char *vm, struct chain_link *ret,
	struct chain_link **ret_run, size_t *ret_n, struct err *e);
/* It takes their place. */
int db_merge_end(struct db *db, const char *vm, struct err *e);
/* It does not; nothing happens where there is none. */
int db_merge_drop(struct db *db, const char *vm, struct err *e);
/* malloc'd array, oldest first. */
int db_chain(struct db *db, const char *vm, struct chain_link **ret, size_t *ret_n,
	struct err *e);
/* Forgets segments that no chain names; *ret: malloc'd array of their names, whose files
 * the caller removes after the commit. */
int db_sweep_segments(
	struct db *db, char (**ret)[DB_SEGMENT_MAX], size_t *ret_n, struct err *e);
/*
 * What a base file's content is in the commit store, for a file that is still the one
 * that was read.
 */
struct db_base {
	char path[PATHS_MAX];
	uint64_t dev, inode, size;
	int64_t mtime_ns;
	struct store_tree tree;
};
/* The tree of the file as *base describes it, to base->tree: 1 found, 0 not. */
int db_base_find(struct db *db, struct db_base *base, struct err *e);
/* In the place of whatever was known of that path. */
int db_base_put(struct db *db, const struct db_base *base, struct err *e);
int db_base_drop(struct db *db, const char *path, struct err *e);
/* malloc'd array. */
int db_bases(struct db *db, struct db_base **ret, size_t *ret_n, struct err *e);

/* What vm ("": every new VM) was given, over what env has. Goes with the VM's row. */
int db_env_get(struct db *db, const char *vm, struct env *env, struct err *e);
/* In the place of what was there. */
int db_env_put(struct db *db, const char *vm, const struct env *env, struct err *e);
/*
 * Reports of VMs, which stay when the VM is gone. Each counts for its bytes and
 * DB_REPORT_BYTES more.
 */
#define DB_REPORT_BYTES 512
struct db_report {
	uint64_t seq; /* in the order of their coming; never used again */
	char id[33];
	char vm[VM_ID_LEN + 1];
	char alias[VM_ALIAS_MAX + 1]; /* that it had then; empty: none */
	char generation[33];
	uint64_t time_ms;
	const char *json; /* borrowed */
};
/* Of a report that is known already nothing changes. */
int db_report_put(struct db *db, const struct db_report *row, struct err *e);
/* Drops the oldest reports of vm until they have at most vm_bytes, then the oldest of
 * whichever VM has the most until all have at most all_bytes: a VM that says much costs
 * itself. *ret_dropped: how many of vm's went. */
int db_reports_trim(struct db *db, const char *vm, uint64_t vm_bytes, uint64_t all_bytes,
	uint64_t *ret_dropped, struct err *e);
/* How many reports of that VM (NULL: of each that lost some and still has others) were
 * dropped; alias: as it was called last, "" if nothing. */
int db_reports_dropped(struct db *db, const char *vm,
	int (*row)(void *ctx, const char *vm, const char *alias, uint64_t n), void *ctx,
	struct err *e);
/* Those with a seq above `after`, of one VM (NULL: of all), in order, until row() returns
 * other than 0; negative is an error. */
int db_reports(struct db *db, const char *vm, uint64_t after,
	int (*row)(void *ctx, const struct db_report *row, struct err *e), void *ctx,
	struct err *e);

int db_reset_put(struct db *db, const struct db_reset *reset, struct err *e);
/* 1 there is one of that VM, 0 not. */
int db_reset_get(struct db *db, const char *vm, struct db_reset *ret, struct err *e);
int db_reset_drop(struct db *db, const char *vm, struct err *e);

/* Also one that a reset under way is to begin. 1 known, 0 not. */
int db_segment_known(struct db *db, const char *segment, struct err *e);

#endif
