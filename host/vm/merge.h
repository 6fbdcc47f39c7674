/*
 * Disks without end: pandod merges old segments behind live VMs' backs, so that a VM may have
 * any number of fork points (ARCHITECTURE.md, "Disk").
 *
 * One thread, of low priority, one merge at a time. It is told of a VM that has had a fork point,
 * asks merge_plan.h for a run of its chain, writes the merged segment (vmm/segment_merge.h),
 * and lets the VM take it (merge_swap.h); then each relative that has the same run. Files that
 * no chain names any more are removed.
 *
 * A run never crosses
 * - the last segment that the VM's last commit has: what comes after is what the next commit
 *   reads (host/commit/commit_track.h);
 * - the first segment of the VM's own: what comes before is the disk of the fork point that it
 *   came from. A merged segment is named after the VM that wrote its last source, so that it
 *   is on the same side.
 *
 * A merge that fails (a full disk, say) changes nothing, is logged, and is tried again later, after
 * ever longer pauses. Only a chain of MERGE_LINKS_MAX segments makes a branch or commit wait for it.
 */
#ifndef PANDO_HOST_VM_MERGE_H
#define PANDO_HOST_VM_MERGE_H

#include "host/vm/tree_priv.h"

/* Fewer than a VMM can hold (vmm/blk.h), by what may come while one merge runs. */
#define MERGE_LINKS_MAX 960u

/* The thread. */
int merge_start(struct tree *t, struct err *e);
/* vm's chain has grown, or may have something unfinished. With the lock. */
void merge_wanted(struct tree *t, struct vm *vm);
/* Before a claim for a fork point: waits as long as the chain is too long and merges go on; p's
 * caller is told. -EMFILE with a sentence: a merge failed. Without the lock. */
int merge_wait_room(
	struct tree *t, const char *name, const struct progress *p, struct err *e);

#endif
