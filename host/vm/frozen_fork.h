/*
 * Forks of a running VM (common/wire/vmm_wire.h, VMM_FORK): the cut of its disk, the child's
 * process, and frozen forks, which are forks that park. branch.c and commit.c use it.
 *
 * The disk. Before the fork the parent's chain is [… s], its VMM writing s. The fork
 * gives the parent a new segment p and a child a new one c, and s is read-only to both.
 * The database is written *before* the fork, as [… s p] and [… s c], with s counted
 * whole: that is true whether the fork then happens or not (until it does, p is empty and
 * s still grows; once it has, nobody appends to s any more). So a pandod that is killed
 * in between leaves chains that are right: the files of p are made before the database
 * names it. The number of records at the cut, which the VMM reports, is written
 * afterwards as a check.
 */
#ifndef PANDO_HOST_VM_FROZEN_FORK_H
#define PANDO_HOST_VM_FROZEN_FORK_H

#include "host/vm/tree_priv.h"

/* One fork of a running VM, seen from the VM: its next segment, its next generation. */
struct fork_point {
	struct tree *t;	   /* borrowed */
	struct vm *parent; /* borrowed, claimed */
	char old_segment[DB_SEGMENT_MAX];
	char segment[DB_SEGMENT_MAX];
	struct vm_segment own; /* owned: the new segment */
	int null;	       /* owned; in the place of what a parked VMM does not use */
	uint8_t generation[16];
	bool forked;		/* the old segment was cut, or may have been */
	struct vmm_forked said; /* what the parent said of it */
};
#define FORK_POINT_INIT(tree) \
	{ \
		.t = (tree), .own = VM_SEGMENT_INIT, .null = -1 \
	}
void fork_point_done(struct fork_point *c);
#define cleanup_fork_point __attribute__((cleanup(fork_point_done)))

/* Whether parent can be forked now. With the lock. */
int fork_point_check(struct tree *t, struct vm *parent, struct err *e);
/* Before the database's transaction: what the fork needs. With the lock. */
int fork_point_begin(struct fork_point *c, struct vm *parent, struct err *e);
/* In the transaction, after whoever shares the past has copied the chain: the parent's
 * new segment. What it made is undone by fork_point_undo(), after the rollback. With the lock.
 */
int fork_point_enter(struct fork_point *c, struct err *e);
void fork_point_undo(struct fork_point *c);
/* After the fork or its failure: the parent's row and chain become what it was told, or
 * again what they were. Without the lock. */
void fork_point_end(struct fork_point *c);

/* VMM_FORK to the parent, or to the frozen fork k of it: *ret_ctl, *ret_pidfd (the child's)
 * are kept also on failure, for the caller to end it. */
struct frozen_fork;
int fork_point_fork(struct fork_point *c, struct frozen_fork *k, struct vmm_fork *msg,
	const struct vm_files *files, const struct vm_segment *own,
	struct vmmctl **ret_ctl, int *ret_pidfd, struct err *e);
/* Waits for VMM_STARTED of a child; *pidfd becomes certain. */
int fork_point_wait_child(struct fork_point *c, struct vmmctl *ctl, bool parked,
	int *pidfd, pid_t *ret_pid, struct vmm_started *ret, struct err *e);

/* A process that holds the frozen fork of one instant. In no table: when pandod is killed the
 * next one finds its folder without a VM, and ends it (adopt.c). */
struct frozen_fork {
	char id[VM_ID_LEN + 1]; /* empty: none */
	struct vmmctl *ctl;	/* owned */
	int pidfd;		/* owned */
	pid_t pid;
};
#define FROZEN_FORK_INIT \
	{ \
		.pidfd = -1 \
	}
/* k->id, when it is there already, is the one used. flags: VMM_FORK_TRACK or VMM_FORK_KEEP, or 0. What was made is
 * for frozen_fork_end(). */
int frozen_fork_park(
	struct fork_point *c, struct frozen_fork *k, uint32_t flags, struct err *e);
/* Ends the process, removes its files; more than once is fine. */
void frozen_fork_end(struct tree *t, struct frozen_fork *k);
/* Of VMM_FORK_KEEP, once its children run: the files go, and the process with the last child that can come
 * back to it. */
void frozen_fork_leave(struct tree *t, struct frozen_fork *k);

#endif
