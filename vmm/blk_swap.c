#include "vmm/blk_swap.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* In one step: some hundred microseconds. */
#define STEP_BLOCKS (1u << 16)
#define STEP_RECORDS 4096u
#define BATCH_RECORDS 64u

static bool
is_old(const struct blk_swap *s, int segment)
{
	return segment >= 0 && s->old[segment / 64] >> segment % 64 & 1;
}

/* A whole file of pandod's; its size. */
static int
check_file(int fd, const char *what, struct stat *ret, struct err *e)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fstat(fd, ret) < 0)
		return err_sys(e, -errno, "merged segment's %s file", what);
	if (!S_ISREG(ret->st_mode) || (flags & O_ACCMODE) != O_RDONLY)
		return err_set(e, -EINVAL,
			"merged segment's %s file must be a regular file, open for reading only",
			what);
	return 0;
}

/* Which of the disk's segments go, and where the merged one is already (BLK_SEGMENTS_MAX:
 * nowhere). False: none goes. */
static bool
find_old(const struct blk *blk, const struct vmm_merged *m, const struct stat *merged,
	struct blk_swap *s)
{
	bool any = false;
	struct stat st;

	s->slot = BLK_SEGMENTS_MAX;
	for (unsigned i = 0; i < blk->n_segments; i++) {
		if (i == blk->own || blk->segments[i].data_fd < 0 ||
			fstat(blk->segments[i].data_fd, &st) < 0)
			continue;
		if (st.st_dev == merged->st_dev && st.st_ino == merged->st_ino) {
			s->slot = i;
			continue;
		}
		if (blk_keeps(blk, i)) /* the VM may go back to it (blk_keep.h) */
			continue;
		for (uint32_t k = 0; k < m->n; k++)
			if (m->files[k].dev == st.st_dev && m->files[k].ino == st.st_ino) {
				s->old[i / 64] |= 1ull << i % 64;
				any = true;
			}
	}
	return any;
}

int
blk_swap_begin(struct blk *blk, const struct vmm_merged *m,
	const int fds[static VMM_MERGED_FD_COUNT], struct blk_swap *ret, struct err *e)
{
	cleanup_close int data_fd = fds[VMM_MERGED_FD_DATA];
	cleanup_close int index_fd = fds[VMM_MERGED_FD_INDEX];
	struct blk_swap s = {.records = m->records, .index_fd = -1};
	struct stat data, index;
	int r;

	if (m->n < 1 || m->n > VMM_MERGED_MAX)
		return err_set(e, -EINVAL, "%u segments cannot be swapped at once", m->n);
	if ((r = check_file(data_fd, "data", &data, e)) < 0 ||
		(r = check_file(index_fd, "index", &index, e)) < 0)
		return r;
	if (m->records > (uint64_t)index.st_size / sizeof(struct segment_record))
		return err_set(e, -EINVAL,
			"merged segment's index has fewer than %" PRIu64 " records", m->records);
	if (!find_old(blk, m, &data, &s))
		return 0;
	if (s.slot == BLK_SEGMENTS_MAX) {
		s.slot = blk_free_slot(blk);
		if (s.slot == BLK_SEGMENTS_MAX)
			return err_set(e, -EMFILE, "disk: no place for a merged segment");
		virtio_dev_lock(&blk->dev);
		blk->segments[s.slot] = (struct blk_segment){
			.data_fd = TAKE_FD(data_fd), .index_fd = -1};
		if (s.slot == blk->n_segments)
			blk->n_segments++;
		virtio_dev_unlock(&blk->dev);
	}
	s.data_blocks = (uint64_t)data.st_size / SEGMENT_BLOCK;
	s.index_fd = TAKE_FD(index_fd);
	*ret = s;
	return 1;
}

/* Lock held. -EBADMSG: the record is none of this disk. */
static int
swap_record(struct blk *blk, const struct blk_swap *s, const struct segment_record *r)
{
	const bool zero = r->op == SEGMENT_ZERO;

	if (!segment_record_ok(r) || r->count == 0 || r->block >= blk->map.n_blocks ||
		r->count > blk->map.n_blocks - r->block)
		return -EBADMSG;
	if (!zero && (r->op != SEGMENT_DATA || r->at >= s->data_blocks ||
			     r->count > s->data_blocks - r->at))
		return -EBADMSG;
	for (uint64_t i = 0; i < r->count; i++) {
		const uint64_t entry = blk->map.entries[r->block + i];

		if (!is_old(s, blockmap_segment(entry)))
			continue;
		/* A block of zeroes that has a place keeps none in what nobody writes. */
		if (entry & BLOCKMAP_ZERO)
			blk_set_entry(blk, r->block + i, BLOCKMAP_ZERO);
		else if (!zero)
			blk_set_entry(
				blk, r->block + i, blockmap_entry(s->slot, r->at + i));
	}
	return 0;
}

/* Lock held. What no entry names is closed, but what a FLUSH has yet to reach. False: some
 * old one is still named. */
static bool
close_dead(struct blk *blk, const struct blk_swap *s)
{
	bool all = true;

	for (unsigned i = 0; i < blk->n_segments; i++) {
		struct blk_segment *seg = &blk->segments[i];

		if (i == blk->own || seg->data_fd < 0 || blk_keeps(blk, i))
			continue;
		if (blk->live[i])
			all = all && !is_old(s, (int)i);
		else if (seg->written == seg->synced || is_old(s, (int)i))
			blk_close_segment(blk, seg);
	}
	return all;
}

int
blk_swap_step(struct blk *blk, struct blk_swap *s, struct err *e)
{
	struct segment_record batch[BATCH_RECORDS];
	uint64_t blocks = 0, records = 0;
	int r = 0;

	virtio_dev_lock(&blk->dev);
	while (r == 0 && s->next < s->records && blocks < STEP_BLOCKS &&
		records < STEP_RECORDS) {
		uint64_t n = s->records - s->next, i;

		n = n < BATCH_RECORDS ? n : BATCH_RECORDS;
		r = io_pread_full(s->index_fd, batch, n * sizeof(batch[0]),
			s->next * sizeof(batch[0]));
		if (r < 0)
			err_sys(e, r, "reading a merged segment's index");
		/* The blocks of one record may be many: then it is a step by itself. */
		for (i = 0; r == 0 && i < n && blocks < STEP_BLOCKS; i++) {
			r = swap_record(blk, s, &batch[i]);
			if (r < 0)
				err_set(e, r,
					"merged segment: record %" PRIu64 " is damaged",
					s->next + i);
			blocks += batch[i].count;
		}
		s->next += i;
		records += i;
	}
	if (r == 0 && s->next < s->records) {
		virtio_dev_unlock(&blk->dev);
		return 1;
	}
	if (!close_dead(blk, s) && r == 0)
		r = err_set(e, -ESTALE,
			"merged segment: it lacks blocks of the segments that it was made of");
	virtio_dev_unlock(&blk->dev);
	cleanup_close_fn(&s->index_fd);
	s->index_fd = -1;
	return r;
}
