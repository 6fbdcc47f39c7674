#include "vmm/blk_keep.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm/bitmap.h"

/* Written pages of the map: a bit each, for the largest disk. */
#define ENTRIES (BLK_KEEP_PAGE / sizeof(uint64_t))
#define TOUCHED_BYTES (BLOCKMAP_DISK_MIB_MAX * (1u << 20) / SEGMENT_BLOCK / ENTRIES / 8)

int
blk_keep_begin(struct blk *blk, struct err *e)
{
	struct blk_keep *k = &blk->keep;
	void *p = mmap(NULL, TOUCHED_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return err_sys(e, -errno, "a map of changes of the disk");
	virtio_dev_lock(&blk->dev);
	*k = (struct blk_keep){.touched = p, .n_blocks = blk->map.n_blocks};
	memcpy(k->live, blk->live, sizeof(k->live));
	for (unsigned i = 0; i < blk->n_segments; i++)
		if (i != blk->own && blk->segments[i].data_fd >= 0)
			k->places[i / 64] |= 1ull << i % 64;
	virtio_dev_unlock(&blk->dev);
	return 0;
}

void
blk_keep_end(struct blk *blk)
{
	uint8_t *touched = blk->keep.touched;

	if (!touched)
		return;
	blk->keep.touched = NULL;
	memset(blk->keep.places, 0, sizeof(blk->keep.places));
	munmap(touched, TOUCHED_BYTES);
}

unsigned
blk_keep_written(
	const struct blk *blk, uint64_t *at, struct keep_range ret[static KEEP_RANGES])
{
	const struct blk_keep *k = &blk->keep;
	const uint64_t bytes = k->n_blocks * sizeof(*blk->map.entries);
	const uint64_t pages = (bytes + BLK_KEEP_PAGE - 1) / BLK_KEEP_PAGE;
	unsigned n = 0;

	while (n < KEEP_RANGES && (*at = bitmap_next(k->touched, *at, pages, true)) < pages) {
		const uint64_t off = (*at)++ * BLK_KEEP_PAGE;

		ret[n++] = (struct keep_range){
			off, bytes - off < BLK_KEEP_PAGE ? bytes - off : BLK_KEEP_PAGE};
	}
	return n;
}

/* Those of a disk that has grown since. */
static void
forget_entries_behind(struct blk *blk)
{
	const struct blk_keep *k = &blk->keep;
	uint64_t *entries = blk->map.entries;

	for (uint64_t i = k->n_blocks; i < blk->map.n_blocks;) {
		const uint64_t page = i / ENTRIES, end = (page + 1) * ENTRIES;

		if (bitmap_has(k->touched, page))
			memset(entries + i, 0,
				((end < blk->map.n_blocks ? end : blk->map.n_blocks) - i) *
					sizeof(*entries));
		i = end;
	}
	blk->map.n_blocks = k->n_blocks;
	blk->index_limit = BLK_INDEX_RECORDS_MAX(k->n_blocks);
	blk->config.capacity = k->n_blocks * (SEGMENT_BLOCK / BLK_SECTOR);
}

unsigned
blk_keep_go_back(
	struct blk *blk, const int seg[static VMM_SEG_FDS], int ret_fds[static BLK_FDS_MAX])
{
	struct blk_keep *k = &blk->keep;
	unsigned n = 0;

	virtio_dev_lock(&blk->dev);
	for (unsigned i = 0; i < blk->n_segments; i++)
		if (!blk_keeps(blk, i))
			n += blk_give_segment(blk, &blk->segments[i], ret_fds + n);
	n += blk_give_own(blk, ret_fds + n);
	blk_forget_waiting(blk);
	forget_entries_behind(blk);
	memcpy(blk->live, k->live, sizeof(blk->live));
	while (blk->n_segments && !blk_keeps(blk, blk->n_segments - 1))
		blk->n_segments--;
	blk->own = blk_free_slot(blk);
	if (blk->own == blk->n_segments)
		blk->n_segments++;
	blk_begin_segment(blk, seg);
	if (madvise(k->touched, TOUCHED_BYTES, MADV_DONTNEED) < 0)
		memset(k->touched, 0, TOUCHED_BYTES);
	virtio_dev_unlock(&blk->dev);
	return n;
}
