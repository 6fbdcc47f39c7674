/*
 * The flushes of the disk (vmm/blk.h): requests whose answer waits until what was written is
 * durable. fdatasync(2) takes milliseconds, on a busy host seconds; a guest whose vCPU waited in
 * it would lose its clock for as long, and a fork its pause.
 *
 * A request that has to wait is noted (its head, where its status byte lies) and not answered.
 * A thread (vmm/disk_thread.h) makes one round after the other: it takes all that wait, syncs
 * each segment that has something unsynced, without the device's lock, and answers them with one
 * interrupt. What comes meanwhile waits for the next round, which begins later: it may have
 * written more. Without a thread (blk->wake is NULL or fails) the round is made at the end of
 * the turn, under the lock.
 *
 * A request that comes when nothing is unsynced is answered at once. At most BLK_LATE_MAX wait;
 * then the queue does, too, until a round is over.
 *
 * While the VM is stopped nothing of a round reaches the guest: the result is noted, and the
 * answer given when the device is resumed. So a stopped VM's memory stays as it is.
 *
 * Fork: whoever forks holds the device's lock (blk_hold), so a round is either under way or
 * over, and waits for none. The child has no thread, and makes the round that was under way
 * again: each side's flush is answered when its own fdatasync of all that it wrote and
 * inherited is over. A state blob has the requests that wait; a VM that starts from it syncs
 * what it has written itself. What was written before the commit is the commit's to keep.
 *
 * What a failed fdatasync(2) lost is told once for each open file, to whoever asks first. Parent
 * and child share those of older segments: where one of them was told, the other's flush may
 * succeed. A guest that was told an I/O error of a flush must not believe a later success either.
 *
 * Descriptors that a round uses are not closed under it: blk_retire() leaves them to the round.
 */
#ifndef PANDO_VMM_BLK_FLUSH_H
#define PANDO_VMM_BLK_FLUSH_H

#include "vmm/blk.h"

/* All with the device's lock held, but blk_round(). */

/* Whether something was written that is not known to be durable. */
bool blk_is_unsynced(const struct blk *blk);
/* Data before index, segment by segment, the lock kept. 0 or the first error. */
int blk_sync(struct blk *blk);
/* The segment was written. */
void blk_wrote(struct blk_segment *seg);
/* What was counted of segment i until then is durable. The index of one that was cut is closed
 * once all of it is. */
void blk_synced(struct blk *blk, unsigned i, uint64_t written);
/* Closes a descriptor, at the latest when the round that uses it is over; it is -1 then. */
void blk_retire(struct blk *blk, int *fd);
/* Whether a round uses it: then it is the round's to close, and *fd is -1. */
bool blk_leave_to_round(struct blk *blk, int *fd);

bool blk_late_is_full(const struct blk *blk);
/* Notes a chain that was taken; its status byte is the last of its buffers'. */
void blk_late_add(struct blk *blk, const struct virtq_chain *c);
/* Answers those whose round is over. */
void blk_late_answer(struct blk *blk);
/* The end of a turn: has the rest be served. */
void blk_late_begin(struct blk *blk);
/* The driver reset the device. */
void blk_late_forget(struct blk *blk);
/* In a forked child. */
void blk_late_fork_child(struct blk *blk);

/* Into and out of the disk's section of a state blob, at its end: nothing when none waits. */
void blk_late_save(const struct blk *blk, struct blob_out *out);
int blk_late_load(struct blk *blk, struct blob_in *in, struct err *e);

/* The thread: one round, if one is due. true: the next one may be due. */
bool blk_round(struct blk *blk);

#endif
