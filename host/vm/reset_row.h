/*
 * A reset of a VM (common/wire/vmm_wire.h, VMM_RESET) in the table and the database. host/commit
 * carries it out.
 *
 * No disk chain is right both before and after a reset. So what the VM is to become, its new
 * segment's name among it, is noted in the database first; when the VMM has said that it is done,
 * the row and the chain become that, and the note goes, in one transaction. Whoever finds a note (the
 * next pandod, or one whose VMM died) finds out whether the reset has happened: by the count that a
 * living VMM tells, else by the segment, which nobody but a VM that was reset writes. If it is empty,
 * the VM is what it was before.
 *
 * To a commit, that segment and the commit's disk are all of the disk. To the fork point that a branch came
 * from (to_fork_point), it takes the place of the segments that the VM has had for itself: those
 * before are the fork point's, whatever was merged since: no merge crosses it (merge.h).
 *
 * The segment is <id>.r<n>, and its number is used up. Names tell what the database may have lost in a
 * power cut (adopt.c): segments of a VM that follow an unknown reset are not of the disk it knows.
 *
 * All with the tree's lock.
 */
#ifndef PANDO_HOST_VM_RESET_ROW_H
#define PANDO_HOST_VM_RESET_ROW_H

#include "host/vm/tree_priv.h"

/* The note, vm->reset, and the segment's files. target: the members of struct db_reset, and no id;
 * its generation is made here. vm->vmm_resets is known. */
int reset_row_begin(struct tree *t, struct vm *vm, const struct vm_row *target,
	bool to_fork_point, struct vm_segment *ret_segment, struct err *e);
/* Its process can be reset to the fork point that it came from, as far as is known. */
static inline bool
vm_keeps_fork_point(const struct vm_row *row)
{
	return row->fork_mib && vm_state_lives(row->state);
}
/* It has not happened: note and segment go. */
int reset_row_drop(struct tree *t, struct vm *vm, struct err *e);
/* It has: the row is that of a VM whose guest has not answered yet. What it wrote before is swept
 * by the caller (tree_sweep_soon()). On failure the note stays, and the row is as it was. */
int reset_row_apply(struct tree *t, struct vm *vm, struct err *e);

/* One or the other, of a VM whose VMM has said how often it was reset (resets), or is no more
 * (NULL). No note: does nothing. */
int reset_row_settle(struct tree *t, struct vm *vm, const uint32_t *resets, struct err *e);
/* At pandod's start, before segments are looked at: reads the notes; what is certain is settled. */
int reset_row_load(struct tree *t, struct err *e);
/* Whether the files of the n-th segment of a VM would be those of a reset. Without the lock. */
bool reset_row_is_at(const struct tree *t, const char *id, unsigned n);

#endif
