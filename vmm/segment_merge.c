#include "vmm/segment_merge.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"

#define BUFFER_BLOCKS 256u /* 1 MiB of data */
#define BATCH_RECORDS 128u
/* Blocks in one record: who reads the index does a bounded piece of work at a time. */
#define RECORD_BLOCKS_MAX (1u << 16)

struct merger {
	const struct segment_merge *m;	    /* borrowed */
	int sources[SEGMENT_MERGE_MAX];	    /* owned: data; -1: not open */
	uint8_t *buf;			    /* owned: what comes at data block `written` */
	unsigned n_buf;			    /* blocks in it */
	uint64_t written;		    /* blocks of the data file */
	struct segment_record batch[BATCH_RECORDS];
	unsigned n_batch;
	uint64_t records; /* in the index file */
	struct segment_record last; /* not in the batch yet, still growing; count 0: none */
	uint64_t read_blocks;
};

static int
open_and_sync(const struct disk_segment *s, int *ret_data, struct err *e)
{
	cleanup_close int index = open(s->index_path, O_RDONLY | O_CLOEXEC);

	if (index < 0)
		return err_sys(e, -errno, "%.300s", s->index_path);
	*ret_data = open(s->data_path, O_RDONLY | O_CLOEXEC);
	if (*ret_data < 0)
		return err_sys(e, -errno, "%.300s", s->data_path);
	if (fdatasync(*ret_data) < 0 || fdatasync(index) < 0)
		return err_sys(e, -errno, "%.300s: making it durable", s->data_path);
	return 0;
}

int
segments_sync(const struct disk_segment *segments, size_t n, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++) {
		cleanup_close int data = -1;

		r = open_and_sync(&segments[i], &data, e);
	}
	return r;
}

/* All open, so that a source that is removed meanwhile stays readable; and durable. */
static int
open_sources(struct merger *g, struct err *e)
{
	int r = segments_sync(g->m->run + g->m->n_run, g->m->n_later, e);

	for (size_t i = 0; i < g->m->n_run && r == 0; i++)
		r = open_and_sync(&g->m->run[i], &g->sources[i], e);
	return r;
}

static int
flush_data(struct merger *g, struct err *e)
{
	int r = io_pwrite_full(g->m->data_fd, g->buf, (size_t)g->n_buf * SEGMENT_BLOCK,
		g->written * SEGMENT_BLOCK);

	if (r < 0)
		return err_sys(e, r, "writing the merged segment");
	g->written += g->n_buf;
	g->n_buf = 0;
	if (g->m->stop && g->m->stop(g->m->ctx))
		return err_set(e, -ECANCELED, "the merge was given up");
	return 0;
}

static int
flush_batch(struct merger *g, struct err *e)
{
	int r = io_pwrite_full(g->m->index_fd, g->batch, g->n_batch * sizeof(g->batch[0]),
		g->records * sizeof(g->batch[0]));

	if (r < 0)
		return err_sys(e, r, "writing the merged segment's index");
	g->records += g->n_batch;
	g->n_batch = 0;
	return 0;
}

/* The record that grew is whole. */
static int
end_record(struct merger *g, struct err *e)
{
	const struct segment_record *l = &g->last;
	int r = 0;

	if (l->count == 0)
		return 0;
	g->batch[g->n_batch++] = segment_record_make(
		(enum segment_op)l->op, l->block, l->at, l->count);
	if (g->n_batch == BATCH_RECORDS)
		r = flush_batch(g, e);
	g->last.count = 0;
	return r;
}

/* n blocks of that kind; data ones lie at `at`. Neighbours become one record. */
static int
add_record(struct merger *g, enum segment_op op, uint64_t block, uint64_t at, uint64_t n,
	struct err *e)
{
	struct segment_record *l = &g->last;
	int r;

	if (l->count && l->op == op && l->block + l->count == block &&
		n <= RECORD_BLOCKS_MAX - l->count) {
		l->count += (uint32_t)n;
		return 0;
	}
	r = end_record(g, e);
	*l = (struct segment_record){
		.block = block, .at = at, .count = (uint32_t)n, .op = op};
	return r;
}

/* n blocks that lie one after another in a source. */
static int
copy_blocks(struct merger *g, uint64_t block, uint64_t n, uint64_t entry, struct err *e)
{
	const int segment = blockmap_segment(entry);
	uint64_t at = entry & BLOCKMAP_AT_MASK, part;
	int r = add_record(g, SEGMENT_DATA, block, g->written + g->n_buf, n, e);

	for (; r == 0 && n > 0; n -= part, at += part) {
		part = BUFFER_BLOCKS - g->n_buf;
		part = part < n ? part : n;
		r = io_pread_full(g->sources[segment],
			g->buf + (size_t)g->n_buf * SEGMENT_BLOCK, part * SEGMENT_BLOCK,
			at * SEGMENT_BLOCK);
		if (r < 0)
			return err_sys(
				e, r, "reading %.300s", g->m->run[segment].data_path);
		g->n_buf += (unsigned)part;
		g->read_blocks += part;
		if (g->n_buf == BUFFER_BLOCKS)
			r = flush_data(g, e);
	}
	return r;
}

/* blockmap_run(), but zeroes are of one segment, too. */
static uint64_t
decided_run(const struct blockmap *map, uint64_t block, uint64_t max, uint64_t *ret_entry)
{
	uint64_t n = blockmap_run(map, block, max, ret_entry), i;

	for (i = 1; i < n && (*ret_entry & BLOCKMAP_ZERO); i++)
		if (map->entries[block + i] != *ret_entry)
			return i;
	return n;
}

static int
merge_blocks(struct merger *g, const struct blockmap *map, struct err *e)
{
	uint64_t block = 0, n, entry;
	int r = 0;

	for (; r == 0 && (block = blockmap_next(map, block)) < map->n_blocks; block += n) {
		/* No run leaves its group: the next one may be untouched. */
		n = decided_run(
			map, block, BLOCKMAP_GROUP - block % BLOCKMAP_GROUP, &entry);
		if (blockmap_segment(entry) >= (int)g->m->n_run)
			continue; /* later segments decide it */
		if (entry & BLOCKMAP_ZERO)
			r = add_record(g, SEGMENT_ZERO, block, 0, n, e);
		else if (entry)
			r = copy_blocks(g, block, n, entry, e);
	}
	if (r == 0 && g->n_buf)
		r = flush_data(g, e);
	if (r == 0)
		r = end_record(g, e);
	if (r == 0 && g->n_batch)
		r = flush_batch(g, e);
	return r;
}

/* g->sources: all -1. */
static int
merge(struct merger *g, struct segment_merged *ret, struct err *e)
{
	const struct segment_merge *m = g->m;
	const struct disk_chain chain = {
		.segments = m->run, .n_segments = m->n_run + m->n_later};
	struct blockmap map = {0};
	int r = open_sources(g, e);

	if (r == 0)
		r = blockmap_init(&map, m->disk_mib, e);
	if (r == 0)
		r = blockmap_note_touched(&map, e);
	if (r == 0)
		r = blockmap_replay(&map, &chain, NULL, e);
	if (r == 0)
		r = merge_blocks(g, &map, e);
	blockmap_done(&map);
	if (r < 0)
		return r;
	fault_point("merge.written");
	if (fdatasync(m->data_fd) < 0 || fdatasync(m->index_fd) < 0)
		return err_sys(e, -errno, "making the merged segment durable");
	*ret = (struct segment_merged){.records = g->records,
		.data_bytes = g->written * SEGMENT_BLOCK,
		.read_bytes = g->read_blocks * SEGMENT_BLOCK};
	return 0;
}

int
segment_merge(const struct segment_merge *m, struct segment_merged *ret, struct err *e)
{
	struct merger g = {.m = m};
	int r;

	if (m->n_run < 1 || m->n_run > SEGMENT_MERGE_MAX)
		return err_set(e, -EINVAL, "%zu segments cannot be merged at once", m->n_run);
	for (size_t i = 0; i < m->n_run; i++)
		g.sources[i] = -1;
	g.buf = malloc(BUFFER_BLOCKS * SEGMENT_BLOCK);
	r = g.buf ? merge(&g, ret, e) : err_set(e, -ENOMEM, "out of memory");
	for (size_t i = 0; i < m->n_run; i++)
		cleanup_close_fn(&g.sources[i]);
	free(g.buf);
	return r;
}
