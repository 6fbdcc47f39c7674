#include "vmm/blk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/io.h"

#define QUEUE_SIZE 128
#define SIZE_MAX_BYTES \
	(128u << 10) /* of one buffer: all of a chain fit BLK_REQUEST_MAX */
#define RANGE_SECTORS_MAX (1u << 22) /* 2 GiB in one discard range: milliseconds */
#define RANGES_MAX 32
#define SECTORS_PER_BLOCK (SEGMENT_BLOCK / BLK_SECTOR)
_Static_assert(SIZE_MAX_BYTES *(QUEUE_SIZE - 2) <= BLK_REQUEST_MAX,
	"no request of a driver that keeps to the limits is too large");
#define IOVS 64		      /* in one system call */
#define TURN_BYTES (4u << 20) /* after which a turn ends; one request may exceed it */

static unsigned
own(const struct blk *blk)
{
	return blk->own;
}

/* len bytes between fd at offset and the cursor. -ENODATA when the file ends first. */
static int
transfer(int fd, uint64_t offset, struct virtq_cursor *c, uint64_t len, bool write)
{
	struct virtq_cursor start;
	struct iovec iov[IOVS];
	size_t asked;
	ssize_t n;
	unsigned cnt;

	while (len > 0) {
		start = *c;
		asked = virtq_slice(c, (size_t)len, iov, IOVS, &cnt);
		if (asked == 0)
			return -EINVAL; /* the caller checked that the buffers suffice */
		n = write ? pwritev(fd, iov, (int)cnt, (off_t)offset)
			  : preadv(fd, iov, (int)cnt, (off_t)offset);
		if (n < 0 && errno == EINTR) {
			*c = start;
			continue;
		}
		if (n < 0)
			return -errno;
		if (n == 0)
			return write ? -EIO : -ENODATA;
		if ((size_t)n < asked) {
			*c = start;
			virtq_skip(c, (size_t)n);
		}
		len -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

static bool
reads_zero(const struct blk *blk, uint64_t block)
{
	uint64_t entry = blk->map.entries[block];

	return (entry & BLOCKMAP_ZERO) ||
	       (entry == 0 && block * SEGMENT_BLOCK >= blk->base_bytes);
}

static int
read_base(struct blk *blk, uint64_t offset, struct virtq_cursor *c, uint64_t len)
{
	uint64_t there = 0;
	int r;

	if (offset < blk->base_bytes)
		there = len < blk->base_bytes - offset ? len : blk->base_bytes - offset;
	if (there) {
		r = transfer(blk->base_fd, offset, c, there, false);
		if (r)
			return r;
	}
	virtq_zero(c, (size_t)(len - there));
	return 0;
}

/* Bytes [offset, offset + len) of the disk, within its capacity. */
static int
read_disk(struct blk *blk, uint64_t offset, struct virtq_cursor *c, uint64_t len)
{
	uint64_t entry, blocks, in, n;
	int segment, r;

	for (; len > 0; len -= n, offset += n) {
		in = offset % SEGMENT_BLOCK;
		blocks = blockmap_run(&blk->map, offset / SEGMENT_BLOCK,
			(in + len + SEGMENT_BLOCK - 1) / SEGMENT_BLOCK, &entry);
		n = blocks * SEGMENT_BLOCK - in;
		if (n > len)
			n = len;
		segment = blockmap_segment(entry);
		if (entry & BLOCKMAP_ZERO) {
			virtq_zero(c, (size_t)n);
			r = 0;
		} else if (segment < 0) {
			r = read_base(blk, offset, c, n);
		} else {
			r = transfer(blk->segments[segment].data_fd,
				(entry & BLOCKMAP_AT_MASK) * SEGMENT_BLOCK + in, c, n,
				false);
		}
		if (r)
			return r;
	}
	return 0;
}

/* On failure nothing counts: the next record is written over whatever part of this one
 * reached the file. */
static int
append_record(
	struct blk *blk, enum segment_op op, uint64_t block, uint64_t at, uint64_t count)
{
	struct segment_record rec = segment_record_make(op, block, at, (uint32_t)count);
	int r;

	blk->segments[own(blk)].dirty = true;
	r = io_pwrite_full(
		blk->write_index_fd, &rec, sizeof(rec), blk->index_records * sizeof(rec));
	if (r < 0)
		return r;
	blk->index_records++;
	return 0;
}

/* How many blocks from `block` on can be written in one piece, and where. *ret_record:
 * the index does not know of them yet. */
static uint64_t
write_run(const struct blk *blk, uint64_t block, uint64_t max, uint64_t *ret_at,
	bool *ret_record)
{
	const uint64_t *entries = blk->map.entries;
	const uint64_t first = entries[block];
	const int mine = (int)own(blk);
	uint64_t n = 1;

	if (blockmap_segment(first) == mine) {
		while (n < max && entries[block + n] == first + n)
			n++;
		*ret_at = first & BLOCKMAP_AT_MASK;
		*ret_record = first & BLOCKMAP_ZERO;
	} else {
		while (n < max && blockmap_segment(entries[block + n]) != mine)
			n++;
		*ret_at = blk->data_blocks;
		*ret_record = true;
	}
	return n;
}

/* n whole blocks. Data, then record, then map: a failure at any step leaves the block as
 * it was or, in place, as a disk without power would. */
static int
write_blocks(struct blk *blk, uint64_t block, uint64_t n, struct virtq_cursor *c)
{
	uint64_t run, at, i;
	bool record;
	int r;

	for (; n > 0; n -= run, block += run) {
		run = write_run(blk, block, n, &at, &record);
		blk->segments[own(blk)].dirty = true;
		r = transfer(blk->write_data_fd, at * SEGMENT_BLOCK, c,
			run * SEGMENT_BLOCK, true);
		if (r)
			return r;
		if (!record)
			continue;
		r = append_record(blk, SEGMENT_DATA, block, at, run);
		if (r)
			return r;
		for (i = 0; i < run; i++)
			blk_set_entry(blk, block + i, blockmap_entry(own(blk), at + i));
		if (at == blk->data_blocks) {
			blk->data_blocks += run;
			atomic_store_explicit(&blk->stats.segment_bytes,
				blk->data_blocks * SEGMENT_BLOCK, memory_order_relaxed);
		}
	}
	return 0;
}

/* n bytes within one block. */
static int
write_part(struct blk *blk, uint64_t offset, uint64_t n, struct virtq_cursor *c)
{
	const uint64_t block = offset / SEGMENT_BLOCK, in = offset % SEGMENT_BLOCK;
	const uint64_t entry = blk->map.entries[block];
	struct iovec iov = {blk->block, SEGMENT_BLOCK};
	struct virtq_cursor whole = {.iov = &iov, .n = 1, .left = SEGMENT_BLOCK};
	int r;

	if (blockmap_segment(entry) == (int)own(blk) && !(entry & BLOCKMAP_ZERO)) {
		blk->segments[own(blk)].dirty = true;
		return transfer(blk->write_data_fd,
			(entry & BLOCKMAP_AT_MASK) * SEGMENT_BLOCK + in, c, n, true);
	}
	r = read_disk(blk, block * SEGMENT_BLOCK, &whole, SEGMENT_BLOCK);
	if (r)
		return r;
	virtq_copy_from(c, blk->block + in, (size_t)n);
	whole = (struct virtq_cursor){.iov = &iov, .n = 1, .left = SEGMENT_BLOCK};
	return write_blocks(blk, block, 1, &whole);
}

static int
write_disk(struct blk *blk, uint64_t offset, struct virtq_cursor *c, uint64_t len)
{
	uint64_t in, n;
	int r;

	for (; len > 0; len -= n, offset += n) {
		in = offset % SEGMENT_BLOCK;
		if (in || len < SEGMENT_BLOCK) {
			n = SEGMENT_BLOCK - in < len ? SEGMENT_BLOCK - in : len;
			r = write_part(blk, offset, n, c);
		} else {
			n = len - len % SEGMENT_BLOCK;
			r = write_blocks(
				blk, offset / SEGMENT_BLOCK, n / SEGMENT_BLOCK, c);
		}
		if (r)
			return r;
	}
	return 0;
}

/* Zeroes written out, where a record is not to be had. */
static int
write_zero_blocks(struct blk *blk, uint64_t block, uint64_t n)
{
	struct iovec iov[IOVS];
	struct virtq_cursor c;
	uint64_t run, i;
	int r;

	memset(blk->block, 0, sizeof(blk->block));
	for (i = 0; i < IOVS; i++)
		iov[i] = (struct iovec){blk->block, SEGMENT_BLOCK};
	for (; n > 0; n -= run, block += run) {
		if (reads_zero(blk, block)) {
			run = 1;
			continue;
		}
		for (run = 1; run < n && run < IOVS && !reads_zero(blk, block + run);)
			run++;
		c = (struct virtq_cursor){
			.iov = iov, .n = IOVS, .left = run * SEGMENT_BLOCK};
		r = write_blocks(blk, block, run, &c);
		if (r)
			return r;
	}
	return 0;
}

/*
 * Empties the own segment's places of blocks that have just become zeroes: for their space,
 * and because the block's next write uses the place again. Should power be lost between that
 * write's record and its data, the block reads as the place does, which must be zeroes and
 * not what the guest had zeroed. A file system that punches no holes keeps that risk.
 */
static void
punch_blocks(struct blk *blk, uint64_t block, uint64_t n)
{
	const uint64_t *entries = blk->map.entries;
	uint64_t run;

	for (; n > 0; n -= run, block += run) {
		run = 1;
		if (blockmap_segment(entries[block]) != (int)own(blk))
			continue;
		while (run < n && entries[block + run] == entries[block] + run)
			run++;
		(void)fallocate(blk->write_data_fd,
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)((entries[block] & BLOCKMAP_AT_MASK) * SEGMENT_BLOCK),
			(off_t)(run * SEGMENT_BLOCK));
	}
}

/* n whole blocks become zeroes. hint: it may as well not happen (discard). */
static int
zero_blocks(struct blk *blk, uint64_t block, uint64_t n, bool hint)
{
	uint64_t i;
	int r;

	for (; n > 0 && reads_zero(blk, block); n--)
		block++;
	for (; n > 0 && reads_zero(blk, block + n - 1);)
		n--;
	if (n == 0)
		return 0;
	if (blk->index_records >= blk->index_limit)
		return hint ? 0 : write_zero_blocks(blk, block, n);
	r = append_record(blk, SEGMENT_ZERO, block, 0, n);
	if (r)
		return r;
	for (i = block; i < block + n; i++) {
		if (reads_zero(blk, i))
			continue;
		if (blockmap_segment(blk->map.entries[i]) == (int)own(blk))
			blk->map.entries[i] |= BLOCKMAP_ZERO;
		else
			blk_set_entry(blk, i, BLOCKMAP_ZERO);
	}
	punch_blocks(blk, block, n);
	return 0;
}

/* Bytes within one block become zeroes. */
static int
zero_part(struct blk *blk, uint64_t offset, uint64_t n)
{
	static const uint8_t zeroes[SEGMENT_BLOCK];
	/* The cursor reads only; iovec has no const. */
	struct iovec iov = {(void *)(uintptr_t)zeroes, n};
	struct virtq_cursor c = {.iov = &iov, .n = 1, .left = n};

	if (n == 0 || reads_zero(blk, offset / SEGMENT_BLOCK))
		return 0;
	return write_part(blk, offset, n, &c);
}

static int
zero_range(struct blk *blk, uint64_t offset, uint64_t len, bool hint)
{
	uint64_t in = offset % SEGMENT_BLOCK;
	uint64_t head = in ? SEGMENT_BLOCK - in : 0, tail;
	int r;

	if (head > len)
		head = len;
	tail = (len - head) % SEGMENT_BLOCK;
	if (!hint) { /* a discard may leave its ragged ends */
		r = zero_part(blk, offset, head);
		if (r == 0)
			r = zero_part(blk, offset + len - tail, tail);
		if (r)
			return r;
	}
	return zero_blocks(blk, (offset + head) / SEGMENT_BLOCK,
		(len - head - tail) / SEGMENT_BLOCK, hint);
}

static bool
within_disk(const struct blk *blk, uint64_t sector, uint64_t sectors)
{
	return sector <= blk->config.capacity && sectors <= blk->config.capacity - sector;
}

/* -EOPNOTSUPP is the guest's S_UNSUPP, any other error S_IOERR. */
static int
handle_ranges(struct blk *blk, struct virtq_cursor *out, bool discard)
{
	const uint32_t flags = discard ? 0 : VIRTIO_BLK_RANGE_UNMAP;
	struct virtio_blk_range range;
	int r;

	if (out->left == 0 || out->left % sizeof(range) ||
		out->left / sizeof(range) > RANGES_MAX)
		return -EINVAL;
	while (virtq_copy_from(out, &range, sizeof(range)) == sizeof(range)) {
		if (range.flags & ~flags)
			return -EOPNOTSUPP;
		if (range.sectors > RANGE_SECTORS_MAX ||
			!within_disk(blk, range.sector, range.sectors))
			return -EINVAL;
		r = zero_range(blk, range.sector * BLK_SECTOR,
			(uint64_t)range.sectors * BLK_SECTOR, discard);
		if (r)
			return r;
	}
	return 0;
}

static int
handle_data(struct blk *blk, uint64_t sector, struct virtq_cursor *c, uint64_t len,
	bool write)
{
	int r;

	if (len % BLK_SECTOR || len > BLK_REQUEST_MAX ||
		!within_disk(blk, sector, len / BLK_SECTOR))
		return -EINVAL;
	r = write ? write_disk(blk, sector * BLK_SECTOR, c, len)
		  : read_disk(blk, sector * BLK_SECTOR, c, len);
	if (r)
		return r;
	atomic_fetch_add_explicit(
		write ? &blk->stats.write_bytes : &blk->stats.read_bytes, len,
		memory_order_relaxed);
	return 0;
}

/* Data before index: a durable record never points at data that is not. */
static int
sync_segments(struct blk *blk)
{
	struct blk_segment *seg;
	unsigned i;

	for (i = 0; i < blk->n_segments; i++) {
		seg = &blk->segments[i];
		if (seg->dirty) {
			if (fdatasync(seg->data_fd) || fdatasync(seg->index_fd))
				return -errno;
			seg->dirty = false;
		}
		if (i != own(blk) && seg->index_fd >= 0) {
			close(seg->index_fd);
			seg->index_fd = -1;
		}
	}
	return 0;
}

static int
handle_request(struct blk *blk, const struct virtio_blk_req *req,
	struct virtq_cursor *out, struct virtq_cursor *in)
{
	static const char id[20] = "pando";
	uint64_t in_len = in->left - 1; /* the last byte is the status */
	int r;

	switch (req->type) {
	case VIRTIO_BLK_T_IN:
		return handle_data(blk, req->sector, in, in_len, false);
	case VIRTIO_BLK_T_OUT:
		r = handle_data(blk, req->sector, out, out->left, true);
		break;
	case VIRTIO_BLK_T_FLUSH:
		return sync_segments(blk);
	case VIRTIO_BLK_T_GET_ID:
		virtq_copy_to(in, id, in_len < sizeof(id) ? (size_t)in_len : sizeof(id));
		return 0;
	case VIRTIO_BLK_T_DISCARD:
		r = handle_ranges(blk, out, true);
		break;
	case VIRTIO_BLK_T_WRITE_ZEROES:
		r = handle_ranges(blk, out, false);
		break;
	default:
		return -EOPNOTSUPP;
	}
	/* A driver that cannot flush takes every finished write for durable (5.2.6.2). */
	if (r == 0 && !(blk->dev.driver_features & VIRTIO_BLK_F_FLUSH))
		r = sync_segments(blk);
	return r;
}

/* One chain, to its status byte. NULL, or why it cannot even be answered. */
static const char *
handle_chain(struct blk *blk, const struct virtq_chain *c)
{
	struct virtq_cursor out = virtq_readable(c), in = virtq_writable(c);
	struct virtio_blk_req req;
	const struct iovec *last;
	uint8_t status;
	int r;

	if (c->in_bytes == 0)
		return "a request has no room for its status";
	if (virtq_copy_from(&out, &req, sizeof(req)) != sizeof(req))
		return "a request is shorter than its header";
	r = handle_request(blk, &req, &out, &in);
	status = r == 0 ? VIRTIO_BLK_S_OK
			: (r == -EOPNOTSUPP ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR);
	if (status == VIRTIO_BLK_S_IOERR) {
		atomic_fetch_add_explicit(&blk->stats.io_errors, 1, memory_order_relaxed);
		if (log_allowed(&blk->dev.log))
			log_warn("disk: request type %u at sector %" PRIu64
				 " failed: %s; the guest sees an I/O error",
				req.type, req.sector, strerror(-r));
	}
	last = &c->iov[c->n_out + c->n_in - 1];
	memcpy((uint8_t *)last->iov_base + last->iov_len - 1, &status, 1);
	return NULL;
}

static bool
blk_notify(struct virtio_dev *dev, unsigned queue)
{
	struct blk *blk = (struct blk *)dev;
	struct virtq *q = &dev->queues[queue];
	const struct virtq_chain *c = &blk->chain;
	uint64_t bytes = 0;
	unsigned taken = 0;
	const char *why;
	int r;

	do {
		while (!virtio_dev_stopping(dev)) {
			if (taken == q->size || bytes >= TURN_BYTES) {
				virtio_dev_interrupt(dev);
				return true;
			}
			r = virtq_pop(q, dev->mem, &blk->chain);
			if (r == 0)
				break;
			taken++;
			bytes += c->in_bytes + c->out_bytes;
			why = r < 0 ? q->why : handle_chain(blk, c);
			if (!why &&
				virtq_push(q, dev->mem, c->head,
					c->in_bytes < UINT32_MAX ? (uint32_t)c->in_bytes
								 : UINT32_MAX))
				why = q->why;
			if (why) {
				virtio_dev_break(dev, why);
				return false;
			}
		}
		r = virtq_arm_notify(q, dev->mem);
		if (r < 0) {
			virtio_dev_break(dev, q->why);
			return false;
		}
	} while (r && !virtio_dev_stopping(dev));
	virtio_dev_interrupt(dev);
	return false;
}

static const void *
blk_config(struct virtio_dev *dev, uint32_t *ret_len)
{
	*ret_len = sizeof(struct virtio_blk_config);
	return &((struct blk *)dev)->config;
}

static const struct virtio_ops blk_ops = {
	.name = "disk",
	.device_id = VIRTIO_ID_BLK,
	.features = VIRTIO_BLK_F_SIZE_MAX | VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE |
		    VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_TOPOLOGY | VIRTIO_BLK_F_DISCARD |
		    VIRTIO_BLK_F_WRITE_ZEROES,
	.n_queues = 1,
	.queue_size = {QUEUE_SIZE},
	.config = blk_config,
	.notify = blk_notify,
};

static int
check_empty(int fd, const char *what, struct err *e)
{
	struct stat st;
	int flags;

	if (fstat(fd, &st))
		return err_sys(e, -errno, "disk segment's %s file", what);
	if (!S_ISREG(st.st_mode) || st.st_size != 0)
		return err_set(e, -EINVAL,
			"disk segment's %s file must be a regular, empty file; a VM never goes on in a segment that exists",
			what);
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || (flags & O_APPEND) || (flags & O_ACCMODE) != O_RDWR)
		return err_set(e, -EINVAL,
			"disk segment's %s file must be open for reading and writing, and not for appending",
			what);
	return 0;
}

/* The other descriptor of the same file, which stays when the segment is cut. */
static int
check_read_only(int fd, int of, const char *what, struct err *e)
{
	struct stat st, st_of;
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fstat(fd, &st) || fstat(of, &st_of))
		return err_sys(e, -errno, "disk segment's %s file, to read it", what);
	if ((flags & O_ACCMODE) != O_RDONLY || st.st_dev != st_of.st_dev ||
		st.st_ino != st_of.st_ino)
		return err_set(e, -EINVAL,
			"disk segment's %s file must come a second time, open for reading only",
			what);
	return 0;
}

int
blk_check_segment(const int seg[static VMM_SEG_FDS], struct err *e)
{
	int r;

	if ((r = check_empty(seg[VMM_SEG_DATA], "data", e)) ||
		(r = check_empty(seg[VMM_SEG_INDEX], "index", e)) ||
		(r = check_read_only(seg[VMM_SEG_DATA_RO], seg[VMM_SEG_DATA], "data", e)))
		return r;
	return check_read_only(seg[VMM_SEG_INDEX_RO], seg[VMM_SEG_INDEX], "index", e);
}

static int
check_base(int base_fd, uint64_t disk_mib, uint64_t *ret_bytes, struct err *e)
{
	struct stat st;

	*ret_bytes = 0;
	if (base_fd < 0)
		return 0;
	if (fstat(base_fd, &st))
		return err_sys(e, -errno, "base disk");
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "base disk is not a regular file");
	if ((uint64_t)st.st_size > disk_mib << 20)
		return err_set(e, -EINVAL,
			"base disk holds %lld bytes, more than the VM's disk of %" PRIu64
			" MiB: give the VM a larger disk",
			(long long)st.st_size, disk_mib);
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

/* What follows from the size. */
static void
apply_size(struct blk *blk, uint64_t disk_mib)
{
	blk->index_limit = BLK_INDEX_RECORDS_MAX(blk->map.n_blocks);
	blk->config.capacity = (disk_mib << 20) / BLK_SECTOR;
}

int
blk_init_empty(
	struct blk *blk, const struct guest_mem *mem, struct irq_line irq, struct err *e)
{
	int r;

	memset(blk, 0, sizeof(*blk));
	blk->base_fd = blk->write_data_fd = blk->write_index_fd = -1;
	r = blockmap_reserve(&blk->map, e);
	if (r)
		return r;
	virtio_dev_init(&blk->dev, &blk_ops, mem, irq);
	blk->config = (struct virtio_blk_config){
		.size_max = SIZE_MAX_BYTES,
		.seg_max = QUEUE_SIZE - 2, /* header and status */
		.blk_size = BLK_SECTOR,
		.physical_block_exp = 3,
		.min_io_size = SECTORS_PER_BLOCK,
		.opt_io_size = SECTORS_PER_BLOCK,
		.num_queues = 1,
		.max_discard_sectors = RANGE_SECTORS_MAX,
		.max_discard_seg = RANGES_MAX,
		.discard_sector_alignment = SECTORS_PER_BLOCK,
		.max_write_zeroes_sectors = RANGE_SECTORS_MAX,
		.max_write_zeroes_seg = RANGES_MAX,
		.write_zeroes_may_unmap = 1,
	};
	return 0;
}

/* The own segment's descriptors. */
static void
begin_segment(struct blk *blk, const int seg[static VMM_SEG_FDS])
{
	blk->segments[own(blk)] =
		(struct blk_segment){seg[VMM_SEG_DATA_RO], seg[VMM_SEG_INDEX_RO], false};
	blk->write_data_fd = seg[VMM_SEG_DATA];
	blk->write_index_fd = seg[VMM_SEG_INDEX];
}

/* From here on nobody writes it. */
static void
end_segment(struct blk *blk)
{
	if (blk->write_data_fd >= 0)
		close(blk->write_data_fd);
	if (blk->write_index_fd >= 0)
		close(blk->write_index_fd);
	blk->write_data_fd = blk->write_index_fd = -1;
}

int
blk_attach(struct blk *blk, uint64_t disk_mib, int base_fd,
	const int seg[static VMM_SEG_FDS], struct err *e)
{
	uint64_t base_bytes;
	int r;

	if ((r = check_base(base_fd, disk_mib, &base_bytes, e)) ||
		(r = blk_check_segment(seg, e)) ||
		(r = blockmap_grow(&blk->map, disk_mib, e)))
		return r;
	blk->base_fd = base_fd;
	blk->base_bytes = base_bytes;
	blk->n_segments = 1;
	blk->own = 0;
	memset(blk->live, 0, sizeof(blk->live));
	begin_segment(blk, seg);
	apply_size(blk, disk_mib);
	return 0;
}

int
blk_init(struct blk *blk, const struct guest_mem *mem, struct irq_line irq,
	uint64_t disk_mib, int base_fd, const int seg[static VMM_SEG_FDS], struct err *e)
{
	int r = blk_init_empty(blk, mem, irq, e);

	if (r)
		return r;
	r = blk_attach(blk, disk_mib, base_fd, seg, e);
	if (r)
		blockmap_done(&blk->map);
	return r;
}

uint64_t
blk_disk_mib(const struct blk *blk)
{
	return blk->config.capacity * BLK_SECTOR >> 20;
}

int
blk_grow(struct blk *blk, uint64_t disk_mib, struct err *e)
{
	int r;

	virtio_dev_lock(&blk->dev);
	r = blockmap_grow(&blk->map, disk_mib, e);
	if (r == 0 && disk_mib != blk_disk_mib(blk)) {
		apply_size(blk, disk_mib);
		virtio_dev_config_changed(&blk->dev);
	}
	virtio_dev_unlock(&blk->dev);
	return r;
}

void
blk_save(struct blk *blk, struct blob_out *out)
{
	virtio_dev_save(&blk->dev, out);
}

int
blk_load(struct blk *blk, uint64_t saved_mib, struct blob_in *in, struct err *e)
{
	int r = virtio_dev_load(&blk->dev, in, e);

	if (r)
		return r;
	if (saved_mib > blk_disk_mib(blk))
		return err_set(e, -EINVAL,
			"disk of %" PRIu64 " MiB: it was %" PRIu64
			" MiB when the state was taken, and disks only grow",
			blk_disk_mib(blk), saved_mib);
	if (saved_mib < blk_disk_mib(blk))
		virtio_dev_config_changed(&blk->dev);
	return 0;
}

void
blk_close_segment(struct blk_segment *seg)
{
	if (seg->data_fd >= 0)
		close(seg->data_fd);
	if (seg->index_fd >= 0)
		close(seg->index_fd);
	*seg = (struct blk_segment){-1, -1, false};
}

void
blk_destroy(struct blk *blk)
{
	unsigned i;

	for (i = 0; i < blk->n_segments; i++)
		blk_close_segment(&blk->segments[i]);
	end_segment(blk);
	blk->n_segments = 0;
	if (blk->base_fd >= 0)
		close(blk->base_fd);
	blk->base_fd = -1;
	blockmap_done(&blk->map);
}

void
blk_fork_child(struct blk *blk, struct irq_line irq)
{
	virtio_dev_fork_child(&blk->dev, irq);
}

/* Lock held. The last place is a merged segment's (blk_swap.h). */
static int
room_for_cut(const struct blk *blk, struct err *e)
{
	if (blk->index_records > 0 && blk_free_slot(blk) >= BLK_SEGMENTS_MAX - 1)
		return err_set(e, -EMFILE,
			"disk: it is made of %u segments, as many as a VM can hold, until older ones are merged: try again",
			BLK_SEGMENTS_MAX);
	return 0;
}

unsigned
blk_free_slot(const struct blk *blk)
{
	unsigned i;

	for (i = 0; i < blk->n_segments; i++)
		if (blk->segments[i].data_fd < 0)
			break;
	return i;
}

int
blk_can_cut(struct blk *blk, struct err *e)
{
	int r;

	virtio_dev_lock(&blk->dev);
	r = room_for_cut(blk, e);
	virtio_dev_unlock(&blk->dev);
	return r;
}

int
blk_cut(struct blk *blk, const int seg[static VMM_SEG_FDS], uint64_t *ret_index_records,
	uint64_t *ret_data_bytes, struct err *e)
{
	int r;

	virtio_dev_lock(&blk->dev);
	r = room_for_cut(blk, e);
	if (r)
		goto out;
	if (ret_index_records)
		*ret_index_records = blk->index_records;
	if (ret_data_bytes)
		*ret_data_bytes =
			blk->index_records ? blk->data_blocks * SEGMENT_BLOCK : 0;
	end_segment(blk);
	/* Without a record no block of the map lies in the segment: nothing to keep. */
	if (blk->index_records == 0)
		blk_close_segment(&blk->segments[own(blk)]);
	else
		blk->own = blk_free_slot(blk);
	if (blk->own == blk->n_segments)
		blk->n_segments++;
	begin_segment(blk, seg);
	blk->data_blocks = 0;
	blk->index_records = 0;
	atomic_store_explicit(&blk->stats.segment_bytes, 0, memory_order_relaxed);
out:
	virtio_dev_unlock(&blk->dev);
	return r;
}

int
blk_flush(struct blk *blk, struct err *e)
{
	int r;

	virtio_dev_lock(&blk->dev);
	r = sync_segments(blk);
	virtio_dev_unlock(&blk->dev);
	return r ? err_sys(e, r, "disk: making the segments durable") : 0;
}
