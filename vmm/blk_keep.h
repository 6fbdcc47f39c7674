/*
 * The disk of a fork point that a branch can go back to (vmm/keep.h).
 *
 * From blk_keep_begin() on the disk knows which places of its segments are the fork point's, and
 * which pages of the block map were written (a bit each: 512 entries, 2 MiB of disk). The
 * segments stay open and in their places: blk_swap.h leaves them alone, also when nothing of
 * them is read any more. (In pandod's chain a merged one may take their place, which means the same: a
 * merge never crosses the fork point, host/vm/merge.h. Their files' room is then free only when the
 * VM ends.) To go back, the written pages of the map are fetched from the frozen fork
 * (the caller does), and all other segments go.
 */
#ifndef PANDO_VMM_BLK_KEEP_H
#define PANDO_VMM_BLK_KEEP_H

#include "vmm/blk.h"
#include "vmm/keep.h"

/* In a child of the frozen fork, after blk_cut(). -ENOMEM: it cannot go back. */
int blk_keep_begin(struct blk *blk, struct err *e);
/* It does not go back; also where it never could. */
void blk_keep_end(struct blk *blk);

/* The vCPUs are parked. Ranges, in bytes of the map, that were written since; how many.
 * *at is 0 first, and where the next call goes on; 0 ranges: there are no more. */
unsigned blk_keep_written(
	const struct blk *blk, uint64_t *at, struct keep_range ret[static KEEP_RANGES]);
/* When these are as they were: seg (taken over) is the own segment. ret_fds and the result as of
 * blk_detach(). */
unsigned blk_keep_go_back(
	struct blk *blk, const int seg[static VMM_SEG_FDS], int ret_fds[static BLK_FDS_MAX]);

#endif
