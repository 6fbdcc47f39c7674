/*
 * The block map of a disk: for every 4 KiB block, the segment and the place in it that
 * hold it, or the base image, or zeroes. 8 bytes a block, in an anonymous mapping that
 * costs nothing where nothing was written, and that fork() copies lazily.
 *
 * Also the reader of a disk at rest: blockmap_replay() builds the map from the indexes of
 * a chain (common/wire/segment_wire.h), disk_export() writes the whole as one flat image.
 * pandod and its tools link this file alone (library vmmdisk). Every record is checked:
 * FNV, operation, blocks within the disk, data within the data file.
 */
#ifndef PANDO_VMM_BLOCKMAP_H
#define PANDO_VMM_BLOCKMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/wire/segment_wire.h"

#define BLOCKMAP_DISK_MIB_MAX (16ull << 20) /* 16 TiB */
#define BLOCKMAP_SEGMENTS_MAX 0x7ffeu

/*
 * An entry: bit 63 says that the block reads as zeroes; bits 62-48 are the segment number
 * + 1, 0 meaning none; bits 47-0 the place in its data file, in blocks. All zero is the
 * base image. Zero bit and segment together: in a VMM zeroes, and that place is kept for the
 * next write; after a replay zeroes by a record of that segment.
 */
#define BLOCKMAP_ZERO (1ull << 63)
#define BLOCKMAP_AT_MASK ((1ull << 48) - 1)

static inline uint64_t
blockmap_entry(unsigned segment, uint64_t at)
{
	return (uint64_t)(segment + 1) << 48 | at;
}

/* The segment of an entry, or -1. */
static inline int
blockmap_segment(uint64_t entry)
{
	return (int)((entry & ~BLOCKMAP_ZERO) >> 48) - 1;
}

struct blockmap {
	uint64_t *entries; /* owned, mapped */
	uint64_t n_blocks;
	uint64_t reserved_blocks; /* the mapping's length: what lies behind n_blocks has
				     an address and nothing else */
	/* Owned: a bit for each BLOCKMAP_GROUP blocks of which a replay wrote one; NULL: nobody
	 * asked. */
	uint8_t *touched;
};
#define BLOCKMAP_GROUP 512u

/* Address space for the largest disk; no blocks yet. */
int blockmap_reserve(struct blockmap *map, struct err *e);
/* To disk_mib, the present size or more: new blocks are the base image's. */
int blockmap_grow(struct blockmap *map, uint64_t disk_mib, struct err *e);
/* Both. */
int blockmap_init(struct blockmap *map, uint64_t disk_mib, struct err *e);
void blockmap_done(struct blockmap *map);
/* After blockmap_init(), before a replay: that blockmap_next() shall know. */
int blockmap_note_touched(struct blockmap *map, struct err *e);
/* The first block from `block` on that may not be the base's; n_blocks: there is none. A large
 * disk's map is mostly pages that nobody touched, and looking at them would make them. */
uint64_t blockmap_next(const struct blockmap *map, uint64_t block);

/* How many blocks from `block` on, at most max, lie one after another in one place;
 * *ret_entry is the first's entry. */
uint64_t blockmap_run(
	const struct blockmap *map, uint64_t block, uint64_t max, uint64_t *ret_entry);

/* A record with its check filled in, and whether a record's check holds. */
struct segment_record segment_record_make(
	enum segment_op op, uint64_t block, uint64_t at, uint32_t count);
bool segment_record_ok(const struct segment_record *r);

/* A disk at rest: segments oldest first. */
struct disk_segment {
	const char *data_path;	/* borrowed */
	const char *index_path; /* borrowed */
	int64_t records;	/* of the index that count; -1: all of it */
};

struct disk_chain {
	const char *base_path; /* borrowed; NULL: none */
	const struct disk_segment *segments;
	size_t n_segments;
};

/*
 * map: from blockmap_init, untouched.
 *
 * When the host loses its power, writes that no guest flushed reach the disk in any order
 * or not at all: an index may end early, hold zeroes, or point at data that is not there.
 * A FLUSH makes all records before it durable, on every segment of the chain, so whatever
 * follows the first bad or missing record was never flushed. With `lost` the replay ends
 * at that record, in that segment and all later ones: the disk is as it was at one moment
 * at or after its last flush. lost->code is then -EBADMSG, and lost->msg names the file
 * and the record; it stays untouched when all is there. Without `lost` (NULL), as for a
 * chain whose VM lives, that is the error: -EBADMSG.
 *
 * A torn last record is ignored where records is -1. A missing file is always an error.
 */
int blockmap_replay(struct blockmap *map, const struct disk_chain *chain,
	struct err *lost, struct err *e);

/* How many blocks of the disk each segment of the chain decides, by data or by zeroes. One that
 * decides none is needed by nobody who has the chain. ret_live: n_segments. */
int disk_count_live(const struct disk_chain *chain, uint64_t disk_mib, uint64_t *ret_live,
	struct err *e);

/* The disk as a flat raw image in out_fd (a regular file; grown to disk_mib, zeroes left
 * as holes). lost: as in blockmap_replay(). */
int disk_export(const struct disk_chain *chain, uint64_t disk_mib, int out_fd,
	struct err *lost, struct err *e);

#endif
