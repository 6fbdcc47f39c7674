/*
 * A VM's disk on the host: a read-only base image and a chain of append-only segments,
 * oldest first. A segment is two files: data (blocks of 4 KiB, appended) and index
 * (fixed-size records, appended in the order of the writes). Replaying the indexes in
 * chain order, each up to the length recorded when it was cut, gives the block map; the
 * last record for a block wins. The running VMM keeps that map in memory and never reads
 * an index.
 *
 * pandod merges runs of segments that nobody writes any more into one of the same form
 * (vmm/segment_merge.h).
 *
 * Order on disk: data first, then the record. A guest's FLUSH makes both durable (data,
 * then index). A torn last record (file length not a multiple of the record size) is
 * ignored. What was not flushed when the host lost its power may be missing in any part:
 * a replay then ends, for the whole chain, at the first record that is bad, missing, or
 * points beyond the end of the data. Everything that was flushed lies before it.
 */
#ifndef PANDO_COMMON_WIRE_SEGMENT_WIRE_H
#define PANDO_COMMON_WIRE_SEGMENT_WIRE_H

#include <stdint.h>

#define SEGMENT_BLOCK 4096u

enum segment_op {
	SEGMENT_DATA = 1, /* blocks [block, block+count) are at data block `at`, at+1, …
			     of this segment */
	SEGMENT_ZERO = 2, /* blocks [block, block+count) read as zeroes (discard,
			     write-zeroes); at = 0 */
};

struct segment_record {
	uint64_t block; /* of the disk, in SEGMENT_BLOCK units */
	uint64_t at;	/* of the data file, in SEGMENT_BLOCK units */
	uint32_t count;
	uint32_t op;	/* enum segment_op */
	uint64_t check; /* FNV-1a 64 of the 24 bytes before it: a record of garbage is a
			   damaged index */
};
_Static_assert(sizeof(struct segment_record) == 32, "disk format");

#endif
