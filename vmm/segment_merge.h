/*
 * A run of neighbouring segments of a disk's chain, written as one segment with the same
 * meaning (common/wire/segment_wire.h): replayed in the run's place it gives the same disk.
 * A block that the run wrote more than once is there once, as it was last; one whose last
 * record says zeroes has a ZERO record, which hides what lies below. Blocks and records come
 * in the disk's order.
 *
 * The sources must be sealed: written by nobody any more. They are made durable before
 * anything else, and the merged segment at the end, so that either may stand for the other
 * after a power loss. Part of library vmmdisk, as blockmap.h.
 */
#ifndef PANDO_VMM_SEGMENT_MERGE_H
#define PANDO_VMM_SEGMENT_MERGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "vmm/blockmap.h"

/* Segments in one run: each costs a descriptor while it is merged. */
#define SEGMENT_MERGE_MAX 64u

struct segment_merge {
	const struct disk_segment *run; /* oldest first; records >= 0: as many must be there */
	size_t n_run;			/* 1 to SEGMENT_MERGE_MAX */
	/* Segments right behind the run in its array, which come after it in the chain: what
	 * they decide is left out. Such a merged segment is for a chain that has them. */
	size_t n_later;
	uint64_t disk_mib;
	int data_fd, index_fd; /* borrowed: of the merged segment, empty, read-write */
	/* Asked every MiB or so; true ends it with -ECANCELED. NULL: nobody asks. */
	bool (*stop)(void *ctx);
	void *ctx;
};

struct segment_merged {
	uint64_t records, data_bytes;
	uint64_t read_bytes; /* of the sources' data: as many as were copied */
};

/* On failure the files hold something that is to be removed. -ENOENT: a source is gone;
 * -EBADMSG: it is damaged; -ENOSPC and the like as the files' system says. */
int segment_merge(
	const struct segment_merge *m, struct segment_merged *ret, struct err *e);

/* Makes segments that nobody writes durable. */
int segments_sync(const struct disk_segment *segments, size_t n, struct err *e);

#endif
