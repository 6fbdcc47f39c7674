/*
 * Old segments of a running disk are swapped for one that pandod merged them into
 * (common/wire/vmm_wire.h, VMM_MERGED): block by block, each entry of the map that names one of
 * them names the merged one's place of that block from then on. Either means the same, so
 * nothing has to happen at once: a step is bounded, and the guest runs between steps. What
 * the guest wrote meanwhile names its own segment, and is left alone. In the end no entry
 * names the old segments, which are closed; where one still does (an index that is not of
 * this disk), that one stays.
 *
 * The merged segment and all that it was made of are on the disk for good before the VMM is
 * told, so an old segment that no FLUSH has reached yet may be closed.
 *
 * System calls: fstat, fcntl, pread64, close; futex (the lock).
 */
#ifndef PANDO_VMM_BLK_SWAP_H
#define PANDO_VMM_BLK_SWAP_H

#include "vmm/blk.h"

struct blk_swap {
	int index_fd;	      /* owned, until the last step */
	uint64_t records;     /* in it */
	uint64_t next;	      /* record of the next step */
	uint64_t data_blocks; /* in the merged data */
	unsigned slot;	      /* the merged one's */
	uint64_t old[BLK_SEGMENTS_MAX / 64]; /* a bit for each segment that goes */
};

/* Takes fds (enum vmm_merged_fd) over, also on failure. 1: steps follow; 0: the disk has none
 * of these segments, or nothing is left to do. On the thread that forks and cuts. */
int blk_swap_begin(struct blk *blk, const struct vmm_merged *m,
	const int fds[static VMM_MERGED_FD_COUNT], struct blk_swap *ret, struct err *e);
/* With no I/O under way. 1: there is more; 0: done. After 0 or a failure the swap is over:
 * what was not swapped is read where it was. */
int blk_swap_step(struct blk *blk, struct blk_swap *s, struct err *e);

#endif
