#include "vmm/blockmap.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/io.h"

#define EXPORT_BLOCKS 256 /* 1 MiB at a time */

#define BLOCKS_PER_MIB ((1u << 20) / SEGMENT_BLOCK)

int
blockmap_reserve(struct blockmap *map, struct err *e)
{
	uint64_t blocks = BLOCKMAP_DISK_MIB_MAX * BLOCKS_PER_MIB;
	void *p;

	/* Not writable, so that not even strict overcommit counts it. Where the address
	 * space is limited, less must do. */
	for (;; blocks /= 4) {
		p = mmap(NULL, blocks * sizeof(uint64_t), PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p != MAP_FAILED)
			break;
		if (blocks < BLOCKMAP_DISK_MIB_MAX / 256 * BLOCKS_PER_MIB)
			return err_sys(e, -errno, "address space for a block map");
	}
	/* A few entries are touched, here and there. */
	madvise(p, blocks * sizeof(uint64_t), MADV_NOHUGEPAGE);
	*map = (struct blockmap){.entries = p, .reserved_blocks = blocks};
	return 0;
}

int
blockmap_grow(struct blockmap *map, uint64_t disk_mib, struct err *e)
{
	uint64_t blocks = disk_mib * BLOCKS_PER_MIB;

	if (disk_mib == 0 || disk_mib > BLOCKMAP_DISK_MIB_MAX)
		return err_set(e, -EINVAL,
			"disk of %" PRIu64 " MiB: must be 1 to %llu MiB", disk_mib,
			BLOCKMAP_DISK_MIB_MAX);
	if (blocks < map->n_blocks)
		return err_set(e, -EINVAL,
			"disk of %" PRIu64 " MiB: disks only grow, and it is %" PRIu64
			" MiB now",
			disk_mib, map->n_blocks / BLOCKS_PER_MIB);
	if (blocks > map->reserved_blocks)
		return err_set(e, -ENOMEM,
			"disk of %" PRIu64
			" MiB: this process's address space is limited to %" PRIu64
			" MiB of disk",
			disk_mib, map->reserved_blocks / BLOCKS_PER_MIB);
	if (blocks == map->n_blocks)
		return 0;
	if (mprotect(map->entries, blocks * sizeof(uint64_t), PROT_READ | PROT_WRITE))
		return err_sys(
			e, -errno, "block map for a disk of %" PRIu64 " MiB", disk_mib);
	map->n_blocks = blocks;
	return 0;
}

int
blockmap_init(struct blockmap *map, uint64_t disk_mib, struct err *e)
{
	int r = blockmap_reserve(map, e);

	if (r)
		return r;
	r = blockmap_grow(map, disk_mib, e);
	if (r)
		blockmap_done(map);
	return r;
}

void
blockmap_done(struct blockmap *map)
{
	if (map->entries)
		munmap(map->entries, map->reserved_blocks * sizeof(uint64_t));
	free(map->touched);
	*map = (struct blockmap){0};
}

int
blockmap_note_touched(struct blockmap *map, struct err *e)
{
	map->touched = calloc(map->n_blocks / BLOCKMAP_GROUP / 8 + 1, 1);
	return map->touched ? 0 : err_set(e, -ENOMEM, "out of memory");
}

static void
touch(struct blockmap *map, uint64_t block, uint64_t count)
{
	const uint64_t last = (block + count - 1) / BLOCKMAP_GROUP;

	for (uint64_t i = block / BLOCKMAP_GROUP; map->touched && i <= last; i++)
		map->touched[i / 8] |= (uint8_t)(1u << i % 8);
}

uint64_t
blockmap_next(const struct blockmap *map, uint64_t block)
{
	while (block < map->n_blocks) {
		const uint64_t group = block / BLOCKMAP_GROUP;

		if (map->touched[group / 8] >> group % 8 & 1)
			return block;
		/* Eight of them, where none was. */
		block = group % 8 == 0 && !map->touched[group / 8]
				? (group + 8) * BLOCKMAP_GROUP
				: (group + 1) * BLOCKMAP_GROUP;
	}
	return map->n_blocks;
}

uint64_t
blockmap_run(
	const struct blockmap *map, uint64_t block, uint64_t max, uint64_t *ret_entry)
{
	const uint64_t first = map->entries[block];
	/* Zeroes and the base go on while the entry is of that kind; data goes on while
	 * places follow each other. */
	const bool zero = first & BLOCKMAP_ZERO;
	uint64_t n;

	if (max > map->n_blocks - block)
		max = map->n_blocks - block;
	for (n = 1; n < max; n++) {
		uint64_t next = map->entries[block + n];

		if (zero ? !(next & BLOCKMAP_ZERO) : next != (first ? first + n : 0))
			break;
	}
	*ret_entry = first;
	return n;
}

static uint64_t
record_check(const struct segment_record *r)
{
	uint8_t bytes[offsetof(struct segment_record, check)];
	uint64_t h = 0xcbf29ce484222325ull;
	size_t i;

	memcpy(bytes, r, sizeof(bytes));
	for (i = 0; i < sizeof(bytes); i++)
		h = (h ^ bytes[i]) * 0x100000001b3ull;
	return h;
}

struct segment_record
segment_record_make(enum segment_op op, uint64_t block, uint64_t at, uint32_t count)
{
	struct segment_record r = {.block = block, .at = at, .count = count, .op = op};

	r.check = record_check(&r);
	return r;
}

bool
segment_record_ok(const struct segment_record *r)
{
	return r->check == record_check(r);
}

/* NULL, or what is wrong with a record. */
static const char *
apply_record(struct blockmap *map, unsigned segment, uint64_t data_blocks,
	const struct segment_record *r)
{
	uint64_t i;

	if (!segment_record_ok(r))
		return "its check does not match";
	if (r->count == 0 || r->block >= map->n_blocks ||
		r->count > map->n_blocks - r->block)
		return "its blocks lie beyond the end of the disk";
	touch(map, r->block, r->count);
	switch (r->op) {
	case SEGMENT_DATA:
		if (r->at >= data_blocks || r->count > data_blocks - r->at)
			return "it points beyond the end of the segment's data";
		for (i = 0; i < r->count; i++)
			map->entries[r->block + i] = blockmap_entry(segment, r->at + i);
		return NULL;
	case SEGMENT_ZERO:
		for (i = 0; i < r->count; i++)
			map->entries[r->block + i] =
				BLOCKMAP_ZERO | blockmap_entry(segment, 0);
		return NULL;
	default:
		return "its operation is unknown";
	}
}

/* Where a replay ended: `why` is a sentence's end, or NULL while all is well. */
struct replay_end {
	const char *why;
	uint64_t record; /* the first that does not count */
};

static int
replay_index(struct blockmap *map, unsigned segment, const struct disk_segment *s,
	int index_fd, uint64_t data_blocks, uint64_t records, struct replay_end *ret,
	struct err *e)
{
	struct segment_record batch[64];
	uint64_t done = 0;
	size_t i, n;
	int r;

	for (; done < records; done += n) {
		n = sizeof(batch) / sizeof(batch[0]);
		if (n > records - done)
			n = (size_t)(records - done);
		r = io_pread_full(
			index_fd, batch, n * sizeof(batch[0]), done * sizeof(batch[0]));
		if (r < 0)
			return err_sys(
				e, r, "%s: reading record %" PRIu64, s->index_path, done);
		for (i = 0; i < n; i++) {
			ret->why = apply_record(map, segment, data_blocks, &batch[i]);
			ret->record = done + i;
			if (ret->why)
				return 0;
		}
	}
	return 0;
}

static int
replay_segment(struct blockmap *map, unsigned segment, const struct disk_segment *s,
	struct replay_end *ret, struct err *e)
{
	cleanup_close int index_fd = -1;
	struct stat data, index;
	uint64_t there, records;
	int r;

	index_fd = open(s->index_path, O_RDONLY | O_CLOEXEC);
	if (index_fd < 0)
		return err_sys(e, -errno, "%s", s->index_path);
	if (fstat(index_fd, &index))
		return err_sys(e, -errno, "%s", s->index_path);
	if (stat(s->data_path, &data))
		return err_sys(e, -errno, "%s", s->data_path);
	there = (uint64_t)index.st_size / sizeof(struct segment_record);
	records = s->records >= 0 && (uint64_t)s->records < there ? (uint64_t)s->records
								  : there;
	r = replay_index(map, segment, s, index_fd,
		(uint64_t)data.st_size / SEGMENT_BLOCK, records, ret, e);
	if (r == 0 && !ret->why && s->records >= 0 && (uint64_t)s->records > there)
		*ret = (struct replay_end){
			"it is missing: the file was truncated", there};
	return r;
}

int
blockmap_replay(struct blockmap *map, const struct disk_chain *chain, struct err *lost,
	struct err *e)
{
	struct replay_end end = {0};
	size_t i;
	int r;

	if (chain->n_segments > BLOCKMAP_SEGMENTS_MAX)
		return err_set(e, -EINVAL,
			"a chain of %zu segments is too long (at most %u)",
			chain->n_segments, BLOCKMAP_SEGMENTS_MAX);
	for (i = 0; i < chain->n_segments && !end.why; i++) {
		r = replay_segment(map, (unsigned)i, &chain->segments[i], &end, e);
		if (r)
			return r;
	}
	if (!end.why)
		return 0;
	if (!lost)
		return err_set(e, -EBADMSG,
			"%s: record %" PRIu64
			" is damaged: %s; the disk cannot be read past it",
			chain->segments[i - 1].index_path, end.record, end.why);
	err_set(lost, -EBADMSG,
		"%s ends at record %" PRIu64
		": %s; what the guest wrote after its last flush is lost, what it flushed is there",
		chain->segments[i - 1].index_path, end.record, end.why);
	return 0;
}

int
disk_count_live(const struct disk_chain *chain, uint64_t disk_mib, uint64_t *ret_live,
	struct err *e)
{
	struct blockmap map = {0};
	uint64_t block = 0;
	int r = blockmap_init(&map, disk_mib, e);

	if (r == 0)
		r = blockmap_note_touched(&map, e);
	if (r == 0)
		r = blockmap_replay(&map, chain, NULL, e);
	for (size_t i = 0; i < chain->n_segments; i++)
		ret_live[i] = 0;
	for (; r == 0 && (block = blockmap_next(&map, block)) < map.n_blocks; block++)
		if (map.entries[block])
			ret_live[blockmap_segment(map.entries[block])]++;
	blockmap_done(&map);
	return r;
}

/* Where the blocks of an export come from: the file last used stays open, since runs
 * cluster. */
struct export_source {
	const struct disk_chain *chain;
	int base_fd, segment_fd; /* owned */
	uint64_t base_bytes;
	int segment; /* that segment_fd is, or -1 */
};

static int
open_segment(struct export_source *src, int segment, struct err *e)
{
	const char *path = src->chain->segments[segment].data_path;
	int fd;

	if (src->segment == segment)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return err_sys(e, -errno, "%s", path);
	if (src->segment_fd >= 0)
		close(src->segment_fd);
	src->segment_fd = fd;
	src->segment = segment;
	return 0;
}

/* n blocks of one run into buf; *ret_hole says that they are zeroes and buf is untouched.
 */
static int
read_run(struct export_source *src, uint64_t block, uint64_t n, uint64_t entry, void *buf,
	bool *ret_hole, struct err *e)
{
	uint64_t from = block * SEGMENT_BLOCK, len = n * SEGMENT_BLOCK;
	int segment, r;

	*ret_hole = false;
	segment = blockmap_segment(entry);
	if ((entry & BLOCKMAP_ZERO) ||
		(segment < 0 && (src->base_fd < 0 || from >= src->base_bytes))) {
		*ret_hole = true;
		return 0;
	}
	if (segment < 0) {
		if (len > src->base_bytes - from) {
			memset((uint8_t *)buf + (src->base_bytes - from), 0,
				len - (src->base_bytes - from));
			len = src->base_bytes - from;
		}
		r = io_pread_full(src->base_fd, buf, len, from);
		return r < 0 ? err_sys(e, r, "%s: reading", src->chain->base_path) : 0;
	}
	r = open_segment(src, segment, e);
	if (r)
		return r;
	r = io_pread_full(
		src->segment_fd, buf, len, (entry & BLOCKMAP_AT_MASK) * SEGMENT_BLOCK);
	if (r < 0)
		return err_sys(
			e, r, "%s: reading", src->chain->segments[segment].data_path);
	return 0;
}

static bool
all_zero(const uint8_t *p, size_t len)
{
	return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

/* Blocks of zeroes are left out: the file was truncated to nothing before. */
static int
write_sparse(int fd, const uint8_t *buf, uint64_t block, uint64_t n)
{
	uint64_t i = 0, start;
	int r;

	while (i < n) {
		if (all_zero(buf + i * SEGMENT_BLOCK, SEGMENT_BLOCK)) {
			i++;
			continue;
		}
		for (start = i++; i < n; i++)
			if (all_zero(buf + i * SEGMENT_BLOCK, SEGMENT_BLOCK))
				break;
		r = io_pwrite_full(fd, buf + start * SEGMENT_BLOCK,
			(i - start) * SEGMENT_BLOCK, (block + start) * SEGMENT_BLOCK);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
export_blocks(
	const struct blockmap *map, struct export_source *src, int out_fd, struct err *e)
{
	cleanup_free uint8_t *buf = malloc(EXPORT_BLOCKS * SEGMENT_BLOCK);
	uint64_t block, n, entry;
	bool hole;
	int r;

	if (!buf)
		return err_set(e, -ENOMEM, "out of memory exporting a disk");
	for (block = 0; block < map->n_blocks; block += n) {
		n = blockmap_run(map, block, EXPORT_BLOCKS, &entry);
		r = read_run(src, block, n, entry, buf, &hole, e);
		if (r)
			return r;
		r = hole ? 0 : write_sparse(out_fd, buf, block, n);
		if (r < 0)
			return err_sys(e, r, "writing the exported disk");
	}
	return 0;
}

int
disk_export(const struct disk_chain *chain, uint64_t disk_mib, int out_fd,
	struct err *lost, struct err *e)
{
	struct export_source src = {
		.chain = chain, .base_fd = -1, .segment_fd = -1, .segment = -1};
	struct blockmap map = {0};
	struct stat st;
	int r;

	r = blockmap_init(&map, disk_mib, e);
	if (r)
		return r;
	r = blockmap_replay(&map, chain, lost, e);
	if (r)
		goto out;
	if (chain->base_path) {
		src.base_fd = open(chain->base_path, O_RDONLY | O_CLOEXEC);
		if (src.base_fd < 0 || fstat(src.base_fd, &st)) {
			r = err_sys(e, -errno, "%s", chain->base_path);
			goto out;
		}
		src.base_bytes = (uint64_t)st.st_size;
	}
	if (ftruncate(out_fd, 0) || ftruncate(out_fd, (off_t)(disk_mib << 20))) {
		r = err_sys(e, -errno, "sizing the exported disk to %" PRIu64 " MiB",
			disk_mib);
		goto out;
	}
	r = export_blocks(&map, &src, out_fd, e);
out:
	if (src.base_fd >= 0)
		close(src.base_fd);
	if (src.segment_fd >= 0)
		close(src.segment_fd);
	blockmap_done(&map);
	return r;
}
