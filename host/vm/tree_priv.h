/*
 * What tree*.c, create.c, branch.c, adopt.c and the rest of the tree share. Nobody else
 * includes this, but host/commit, whose VMs are in the same table.
 *
 * Locks: tree.lock covers the table, every struct vm's fields and the database. It is
 * never held while waiting for a VMM, an agent or a process. A control connection has its
 * own lock (vmmctl.c); order: control connection, then tree; nobody waits for a control
 * connection with the tree's lock held.
 */
#ifndef PANDO_HOST_VM_TREE_PRIV_H
#define PANDO_HOST_VM_TREE_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/log.h"
#include "host/agent/agent_handshake.h"
#include "host/vm/db.h"
#include "host/vm/tree.h"
#include "host/vmmproc/launch.h"
#include "host/vmmproc/vmmctl.h"

struct vm {
	struct vm_row row;
	uint64_t handle;	/* names this struct in the event loop; never reused */
	uint64_t parent_handle; /* 0: none */
	struct vmmctl *ctl;	/* owned; NULL: no VMM */
	int pidfd;		/* owned; -1: no process */
	unsigned refs;		/* the table's and each caller's */
	bool listed;		/* in the table */
	bool dead;		/* its process has ended */
	bool removing;		/* it is killed because its row goes, too */
	bool stopped_by_force;	/* kill_reason is no failure */
	const char *op;		/* static text: "being branched"; NULL: idle */
	char kill_reason[DB_REASON_MAX]; /* why pandod ended it, if it did */
	uint64_t closed_ns; /* when its control socket closed; 0: it is open */
	bool disk_full; /* paused by itself: its host's disk is full (vmmctl_disk_full) */
	struct log_limit disk_log;
	uint64_t paused_at_ns,
		paused_ns;    /* since when, 0: it is not; and before, in all */
	uint64_t probe_at_ns; /* when the agent is asked next */
	unsigned probes;
	bool in_handshake; /* an identity handshake is under way (handshake.c) */
	bool tended;	   /* a helper of the health monitor is at it */
	bool unmet; /* lives, as far as is known, and this pandod has not spoken to it */
	unsigned meets;		     /* tries to (adopt.c) */
	uint64_t meet_at_ns;	     /* the next one */
	uint64_t handshake_began_ns; /* by the health monitor; 0: none is under way */
	uint64_t handshake_step_ns; /* when its guest came to that step; 0: to none yet */
	unsigned handshake_steps;   /* how many it has come to */
	char handshake_step[AGENT_STEP_NAME_MAX + 1];
	struct agent_ack
		ack; /* of its first identity handshake in this life; n_steps 0: none */
	unsigned watched_at; /* reports_watch.c: 1 + its place there; 0: it has none */
	unsigned
		reboots; /* its guest's, since this pandod knows it; over all its lives */
	unsigned reboots_in_window; /* reboot.c's */
	uint64_t reboot_window_ns;
	bool tracks;	/* its VMM tells changed pages; with the claim (commit_track.h) */
	unsigned resets; /* in this struct's life: what began before one is of another state */
	struct db_reset *reset; /* owned: under way, or not resolved yet (reset_row.h); or NULL */
	bool resets_known;	/* by its VMM's word, with the claim: */
	uint32_t vmm_resets;
	bool rebooting; /* this life has, or had, a thread of reboot.c */
	unsigned n_commits; /* that read its chain: it is not merged meanwhile */
	/* merge.c's. */
	size_t n_links; /* of its chain, at its last fork point; 0: not known */
	bool merge_due;
	bool merge_unable;     /* its VMM is of an older version */
	uint64_t merge_at_ns;  /* not before */
	unsigned merge_fails;  /* since it last went well */
	unsigned merges_tried; /* turns that it had */
	char merge_failed[256];
};

/* A folder of no VM, whose process is to be ended (adopt.c). */
struct stray {
	char id[VM_ID_LEN + 1];
	bool tended;
	unsigned tries;
	uint64_t at_ns; /* the next one; UINT64_MAX: it is gone */
};

struct meeting;
struct waiter;
struct reboot;

/* Threads that do what the health monitor finds due. */
#define HELPERS_MAX 32
struct helper {
	struct tree *t;
	pthread_t thread;
	enum { HELPER_NONE, HELPER_RUNS, HELPER_ENDED } state;
	struct vm *vm; /* what it begins with: a reference, or the next */
	struct stray *stray;
};

struct tree {
	struct tree_config config;
	struct db *db; /* owned */
	pthread_mutex_t lock;
	pthread_cond_t changed;	      /* some VM died, or stopping */
	struct vm *vms[TREE_VMS_MAX]; /* oldest first */
	unsigned n_vms;
	uint64_t next_handle;
	struct waiter *waiters; /* borrowed: who queues for VMs, in the order of coming */
	unsigned n_waiters;
	unsigned n_followers; /* of reports; they wait, too */
	int epoll_fd;	      /* owned */
	bool stopping;
	atomic_bool boots_linux; /* host_can_boot() found that this host's KVM does */
	struct reboot *reboots;	 /* owned: reboot.c's queue */
	unsigned n_rebooting;	 /* its threads */
	bool finishes_reboots;	 /* those of the last pandod may begin */
	pthread_t
		health_monitor; /* finds agents to ask, and VMMs that closed their socket */
	bool has_health_monitor;
	pthread_t syncer; /* tree_sync.c's */
	bool has_syncer;
	bool sync_wanted;
	bool sweep_wanted;	   /* likewise its: segments that no chain names any more */
	pthread_cond_t sync_asked; /* sync_wanted, or stopping */
	pthread_t merger; /* merge.c's */
	bool has_merger;
	pthread_cond_t merge_asked; /* some VM's merge_due, sweep_due, or stopping */
	bool sweep_due;
	/* Names in segments/: those that were made, and of these those on the disk. */
	_Atomic uint64_t segments_made, segments_synced;
	/* Bytes of memory that was promised to VMs and is not taken yet (commit/fill.h); any
	 * thread's. NULL: none. */
	uint64_t (*memory_to_come)(void);
	struct reports_watch *reports_watch; /* owned; NULL: nobody has followed yet */
	uint64_t reports_kept;		     /* how many were put into the database */
	struct helper helpers[HELPERS_MAX];
	unsigned may_help;	  /* how many of these may run */
	unsigned n_meeting;	  /* helpers that are at unmet VMs or strays */
	struct meeting *meetings; /* their connections, which tree_stop() cuts */
	struct stray *strays;	  /* owned; none is added after the start */
	size_t n_strays;
	char ssh_key[AGENT_SSH_KEY_LEN + 1]; /* that guests let in; empty: none */
};

/* All of these with the lock held, but where they say otherwise. */

/* Tells a VM that has just started its limits, if it has any. Without the lock. */
int vm_apply_limits(struct tree *t, struct vm *vm, struct err *e);
/* Takes over what its VMM says of a full disk: paused by itself with that reason, or not any
 * more. With the lock. */
void vm_note_disk(struct tree *t, struct vm *vm);
/* What a VMM says of itself, for people. */
struct vm_answers {
	struct vmm_stats_answer stats;
	struct vmm_balloon_answer balloon;
	bool has_balloon;
};

/* Its state is VM_PAUSED now, or is not: the time it stands still is counted. */
void vm_count_pause(struct vm *vm);
struct vm *vm_new(struct tree *t); /* one reference; NULL: out of memory */
void vm_unref(struct vm *vm);
static inline void
vm_unref_fn(struct vm **vm)
{
	if (*vm)
		vm_unref(*vm);
}
int tree_list_vm(struct tree *t, struct vm *vm, struct err *e); /* takes a reference */
/* A new VM, the i-th of count: gives it an id, a generation and its name (alias, or
 * alias-i of several), checks that the name is free, and lists it. */
int tree_enter_vm(struct tree *t, struct vm *vm, const char *alias, unsigned i,
	unsigned count, struct err *e);
void tree_unlist_vm(struct tree *t, struct vm *vm);
struct vm *tree_by_handle(struct tree *t, uint64_t handle); /* no reference */
/* id, alias or unique prefix. *ret has a reference. */
int tree_find(struct tree *t, const char *name, struct vm **ret, struct err *e);
/*
 * The same, and claims it: op says what for. vm->op = NULL ends it, and a broadcast of
 * t->changed lets the next one in. Where somebody else has it, the caller queues as *p (may
 * be NULL) says, and the lock is given up meanwhile; who came first has it first. -EBUSY,
 * -ECANCELED (the caller has gone, or pandod stops), -ENOENT (it was deleted meanwhile).
 */
int tree_claim(struct tree *t, const char *name, const char *op, const struct progress *p,
	struct vm **ret, struct err *e);
/* The same with one end for several of these. */
int tree_claim_until(struct tree *t, const char *name, const char *op,
	const struct progress *p, uint64_t until_ns, struct vm **ret, struct err *e);
/* Who finds a VM claimed for this waits for it in any case: it takes milliseconds, and nobody
 * asked for it. */
#define TREE_OP_MERGING "having its disk merged"
/* If nobody has vm, or queues for it: it is claimed. */
bool tree_try_claim(struct tree *t, struct vm *vm, const char *op);
uint64_t busy_until(const struct progress *p);
int tree_check_alias_free(struct tree *t, const char *alias, struct err *e);
/* Puts the VM's process and control connection under the event loop's watch. */
int tree_watch(struct tree *t, struct vm *vm, struct err *e);
/* The connection alone, of one whose process is watched already. */
int tree_watch_control(struct tree *t, struct vm *vm, struct err *e);
/* It is watched: it gets its scope. found: an earlier pandod's. */
void vm_enter_scope(struct tree *t, const struct vm *vm, bool found);
/* The health monitor, a thread until the tree stops: lets at most HELPERS_MAX helpers ask the
 * agents of VMs that nobody waits for, and the VMMs that are not adopted yet; ends a VMM
 * that has closed its control socket and lives on, which no sound one does. Without the
 * lock. */
void *tree_health_monitor(void *tree);
/* Waits, the lock given up meanwhile, until vm->dead. -ETIMEDOUT. */
int tree_wait_dead(struct tree *t, struct vm *vm, int timeout_ms);
/* What vm->op is while a VM is stopped. */
#define OP_STOPPING "being stopped"
/* reboot.c: the VM's process ended with a reset by its guest. Its state, with the reason;
 * where that is a boot of the same VM, a thread begins it. */
enum vm_state vm_rebooted(struct tree *t, struct vm *vm, char *reason, size_t cap);
bool vm_is_rebooting(const struct vm *vm);
/* Its row is that of a reboot whose pandod was killed before it noted the new process. */
bool vm_was_rebooting(const struct vm *vm);
/* With the lock: one that the last pandod did not come to is booted, once. */
void vm_finish_reboot(struct tree *t, struct vm *vm);
/* Without the lock, after tree_stop(): until no thread of them is left. */
void tree_wait_reboots(struct tree *t);
/* reports.c: of claimed VMs that are about to be deleted. Called with the lock, which is
 * given up meanwhile; a guest that does not answer costs seconds, once for all. */
void tree_take_last_reports(struct tree *t, struct vm *const *vms, unsigned n);
/* reports.c: whether the guest can be asked for its reports, and asking it, without the lock.
 * Below 0: it did not tell. */
bool reports_can_take(const struct vm *vm);
int reports_take(struct tree *t, struct vm *vm, uint64_t deadline_ns, struct err *e);
/* Whether one more may wait: TREE_WAITERS_MAX. */
static inline bool
may_wait(const struct tree *t)
{
	return t->n_waiters + t->n_followers < TREE_WAITERS_MAX;
}
/* reports_watch.c: from follow to unfollow what guests report is taken at once, and changed is
 * broadcast. */
int reports_follow(struct tree *t, struct err *e);
void reports_unfollow(struct tree *t);
void reports_watch_close(struct tree *t); /* without the lock, when the tree stops */
/* tree_sync.c. What the database was told so far is on the disk: without its row a VM's disk,
 * with all that its guest flushed, would belong to nobody after a power cut, and be removed.
 * Without the lock, which nobody is to wait for meanwhile. */
int tree_sync(struct tree *t, struct err *e);
/* The same by a thread beside everything else, for calls that are to be fast. */
void tree_sync_soon(struct tree *t);
/* And tree_sweep() after it. */
void tree_sweep_soon(struct tree *t);
int tree_sync_start(struct tree *t, struct err *e);
/* The same with the lock, before what older rows name is removed or changed. Either way the
 * names of all segments are on the disk before rows that name them: a chain with a segment
 * that is not there cannot be read at all. */
int tree_sync_locked(struct tree *t, struct err *e);
/* A segment of a VM; what is synced from then on has its names. With the lock or without, as
 * the next one. */
int tree_make_segment(
	struct tree *t, const char *name, struct vm_segment *ret, struct err *e);
/* The names of all segments that were made are on the disk: where there are new ones, the
 * folder is synced. */
int tree_sync_segments(struct tree *t, struct err *e);
/* The names of segments no chain has any more: removed from the database now, the files
 * too, when the database is on the disk as it is: after a power cut it must not name what
 * is gone. Where it cannot be synced the files stay for the next start. */
int tree_sweep(struct tree *t, struct err *e);
/* Files below bases/ that are no VM's base any more are removed, likewise; unfinished:
 * also those that somebody was writing. */
int tree_sweep_bases(struct tree *t, bool unfinished, struct err *e);
/* vm takes old's place in the table and towards its children; a struct vm is one life of
 * a VM, so a VM that is started again gets a new one. */
void tree_replace_vm(struct tree *t, struct vm *old, struct vm *vm);
/* answers, usage: may be NULL. */
struct vm_usage;
void vm_json(struct tree *t, const struct vm *vm, const char *key, struct json_out *out,
	const struct vm_answers *answers, const struct vm_usage *usage);
/* mem_target.c. With the lock, which is given up meanwhile; the VM is claimed. ret_note is left as it
 * is unless there is something to say. */
int vm_set_mem_target(struct tree *t, struct vm *vm, uint64_t mib, char *ret_note, size_t cap,
	struct err *e);
void vm_balloon_json(const struct vmm_balloon_answer *a, struct json_out *out);
/* -EBUSY with a sentence: it lives, and this pandod has not spoken to its VMM yet. */
int vm_check_met(const struct vm *vm, struct err *e);
/* How people call it: its alias, else its id. */
const char *vm_name(const struct vm *vm);
/* The same with the id behind an alias. Returns dst. */
const char *vm_called(const struct vm *vm, char *dst, size_t cap);
#define VM_CALLED_MAX 96
/* What the disk's chain may reach up to, a resize under way included. */
static inline uint64_t
vm_disk_mib(const struct vm_row *row)
{
	return row->resize_mib > row->disk_mib ? row->resize_mib : row->disk_mib;
}

/*
 * usage.c: what a VM takes of the host. begin with the lock: notes which process and
 * files (false: no memory, nothing to count); count without it; done always.
 */
struct vm_usage {
	int pidfd; /* owned; -1: no process */
	int64_t pid;
	char (*segments)[DB_SEGMENT_MAX]; /* owned: those of no other VM */
	size_t n_segments;
	char base[PATHS_MAX];		     /* a base of this VM alone; empty: none */
	bool has_memory;		     /* the kernel lets us see it */
	uint64_t unique_bytes, shared_bytes; /* resident, its own and with others */
	uint64_t disk_bytes;		     /* allocated, in files of no other VM */
};
bool vm_usage_begin(struct tree *t, struct vm *vm, struct vm_usage *ret);
void vm_usage_count(struct tree *t, struct vm_usage *c);
void vm_usage_json(const struct vm_usage *c, struct json_out *out);
void vm_usage_done(struct vm_usage *c);
/* Whether `count` VMs of mem_mib that share what `name` (for the sentence) is fit, beside what
 * was promised to others; -ENOMEM with the figures. own_bytes: what each takes at once, and
 * cannot give back. */
int host_has_room(const struct tree *t, const char *name, uint64_t mem_mib,
	uint64_t own_bytes, uint32_t count, struct err *e);

/* Without the lock. */

int tree_new_id(char id[static VM_ID_LEN + 1], struct err *e); /* random */
int tree_random(void *dst, size_t len, struct err *e);
int vm_socket_path(const struct tree *t, const struct vm *vm, char dst[static PATHS_MAX]);
/* Kills a process that the loop does not watch (yet), and waits for it. */
void process_end(int pidfd);
/* agent_wait.c: waits for the agent of a watched VM and for its identity handshake, and notes
 * that the agent answered. The limit is config.agent_timeout_ms without progress of the guest:
 * its console grows, its vCPUs exit, its disk is read or written. Every 10 s the caller is told
 * how far the guest is. */
int vm_wait_agent(struct tree *t, struct vm *vm, const bool *give_up,
	const struct progress *p, struct err *e);
/* How often one that waits asks whether its caller is still there. */
#define GONE_LOOK_MS 200
/* Nobody waits for the answer any more. */
static inline bool
has_gone(const struct progress *p)
{
	return p && p->gone && p->gone(p->ctx);
}
/* -ECANCELED with a sentence about what is removed then; 0: somebody waits. */
int check_not_gone(const struct progress *p, const char *what, struct err *e);
/* The answer names this VM. With the lock. */
void tell_made(const struct progress *p, const struct vm *vm);
/* Kills watched VMs, all claimed by the caller, removes their rows, files and segments,
 * and takes them out of the table. */
int tree_remove(struct tree *t, struct vm **vms, unsigned n, struct err *e);
/* The same; where one cannot be removed, the others are, and it is logged. */
void tree_remove_each(struct tree *t, struct vm **vms, unsigned n);
void say(const struct progress *p, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* create.c, for branch.c too: undoes VMs that are listed but not watched: their processes,
 * files, rows. */
void vm_undo(struct tree *t, struct vm **vms, unsigned n);
/* A listed row's VM, its process known: made, watched, in the database. Without the lock.
 */
int vm_made(struct tree *t, struct vm *vm, struct err *e);

struct image;
/* What its kernel boots with: row and image. -EINVAL: the command line is too long. */
int vm_boot_message(const struct vm *vm, const struct image *image, struct vmm_boot *ret,
	struct err *e);
/* Files, segment, process, VMM_BOOT, VMM_STARTED. What is made is for vm_undo() to
 * remove. segment: the row's newest, when the VM has lived
 * before and its folder is there; NULL: its first life, and its first segment is made. */
int vm_launch(struct tree *t, struct vm *vm, const struct image *image,
	struct vmm_boot *boot, const struct vm_segment *segment, struct err *e);
/* vm_wait_agent() of a VM that boots: one whose agent does not answer in time is ended,
 * and stays as failed. */
int vm_wait_booted(
	struct tree *t, struct vm *vm, const struct progress *p, struct err *e);
/*
 * batch.c: many VMs that come to be at once.
 */
/* Waits for all agents, or until the first does not answer. what: "branches". */
int vms_wait_agents(struct tree *t, struct vm **vms, unsigned n, const char *what,
	const struct progress *p, struct err *e);
/* Those that are watched go as deleted ones do; the rest were never more than half made.
 */
void vms_undo(struct tree *t, struct vm **vms, unsigned n);
/* The claims and the references go. With the lock. */
void vms_release(struct vm **vms, unsigned n);

/* What the host can give at all, before anything is made. */
int host_can_hold(uint32_t vcpus, uint64_t mem_mib, struct err *e);
/* Whether this host's KVM boots the image's kernel: one that is no Linux is the caller's
 * affair, for a Linux KVM is tried (kvm_probe.h). That it can is remembered as long as
 * pandod runs; that it cannot is found out anew. Without the lock. */
int host_can_boot(struct tree *t, const struct image *image, struct err *e);

/*
 * adopt.c
 */
/* At the start: what there is, in the table. Those that may live are unmet. */
int tree_adopt(struct tree *t, struct err *e);
/* Waits, but not for long, until each of these was asked once. With the health monitor. */
void adopt_wait(struct tree *t);
/* Nobody does anything to it just now, and it is to be asked (again). With the lock, as
 * the next two, which give it up meanwhile. */
bool adopt_due(const struct vm *vm);
void adopt_try(struct tree *t, struct vm *vm);
void stray_try(struct tree *t, struct stray *s);
/* Ends their waits. With the lock. */
void adopt_cancel(struct tree *t);

#endif
