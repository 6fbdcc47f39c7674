#include "vmm/blk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/blk_flush.h"

#define QUEUE_SIZE 128
#define SIZE_MAX_BYTES \
	(128u << 10) /* of one buffer: all of a chain fit BLK_REQUEST_MAX */
#define RANGE_SECTORS_MAX (1u << 22) /* 2 GiB in one discard range */
#define RANGES_MAX 32
#define SECTORS_PER_BLOCK (SEGMENT_BLOCK / BLK_SECTOR)
_Static_assert(SIZE_MAX_BYTES *(QUEUE_SIZE - 2) <= BLK_REQUEST_MAX,
	"no request of a driver that keeps to the limits is too large");
#define IOVS 64		      /* in one system call */
#define TURN_BYTES (4u << 20) /* after which a turn ends; one request may exceed it */
/* Of discard and write-zeroes: one piece, between two looks at `stop`, and a turn. */
#define PIECE_BLOCKS (1u << 16)
#define PIECE_PLACES 256u /* of the own segment that are emptied, or blocks written out */
#define TURN_PLACES 1024u
#define ROOM_BYTES (1u << 20) /* that a full disk must have before the guest goes on */

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
		} else if (segment >= (int)blk->n_segments) {
			r = -EIO; /* of a map that was handed in */
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

	blk_wrote(&blk->segments[own(blk)]);
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
		blk_wrote(&blk->segments[own(blk)]);
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
		blk_wrote(&blk->segments[own(blk)]);
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
		blk->zeroed_bytes += run * SEGMENT_BLOCK;
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
	blk->zeroed_bytes += SEGMENT_BLOCK;
	return write_part(blk, offset, n, &c);
}

/* How many blocks from `block` on, of n, are one piece. *places counts what it costs. */
static uint64_t
zero_piece(const struct blk *blk, uint64_t block, uint64_t n, bool hint, unsigned *places)
{
	const uint64_t *entries = blk->map.entries;
	const bool written_out = !hint && blk->index_records >= blk->index_limit;
	uint64_t i;
	unsigned k = 1;

	n = n < PIECE_BLOCKS ? n : PIECE_BLOCKS;
	for (i = 1; i < n && k < PIECE_PLACES; i++)
		k += written_out || (blockmap_segment(entries[block + i]) == (int)own(blk) &&
					    entries[block + i] != entries[block + i - 1] + 1);
	*places += k;
	return i;
}

/* Bytes at offset become zeroes, of len one piece. Returns its bytes; hint: a discard, which may
 * leave ragged ends. */
static int
zero_some(struct blk *blk, uint64_t offset, uint64_t len, bool hint, unsigned *places)
{
	const uint64_t in = offset % SEGMENT_BLOCK, block = offset / SEGMENT_BLOCK;
	uint64_t n;
	int r;

	if (in || len < SEGMENT_BLOCK) {
		n = SEGMENT_BLOCK - in < len ? SEGMENT_BLOCK - in : len;
		++*places;
		r = hint ? 0 : zero_part(blk, offset, n);
	} else {
		n = zero_piece(blk, block, len / SEGMENT_BLOCK, hint, places);
		r = zero_blocks(blk, block, n, hint);
		n *= SEGMENT_BLOCK;
	}
	return r < 0 ? r : (int)n;
}
_Static_assert(PIECE_BLOCKS *(uint64_t)SEGMENT_BLOCK <= INT32_MAX, "a piece's bytes are an int");

static bool
within_disk(const struct blk *blk, uint64_t sector, uint64_t sectors)
{
	return sector <= blk->config.capacity && sectors <= blk->config.capacity - sector;
}

#define LATE 1 /* answered when all that was written is durable */
#define LEFT 2 /* gone on with in the next turn */

/* One turn of it: LEFT, or as handle_request(). */
static int
handle_ranges(struct blk *blk, struct virtq_cursor *out, bool discard)
{
	const uint32_t flags = discard ? 0 : VIRTIO_BLK_RANGE_UNMAP;
	struct virtio_blk_range range;
	uint64_t at = 0; /* in all ranges */
	unsigned places = 0;
	int r;

	if (out->left == 0 || out->left % sizeof(range) ||
		out->left / sizeof(range) > RANGES_MAX)
		return -EINVAL;
	while (virtq_copy_from(out, &range, sizeof(range)) == sizeof(range)) {
		const uint64_t offset = range.sector * BLK_SECTOR,
			       len = (uint64_t)range.sectors * BLK_SECTOR;
		uint64_t off = 0;

		if (range.flags & ~flags)
			return -EOPNOTSUPP;
		if (range.sectors > RANGE_SECTORS_MAX ||
			!within_disk(blk, range.sector, range.sectors))
			return -EINVAL;
		if (blk->skip > at)
			off = blk->skip - at < len ? blk->skip - at : len;
		for (; off < len; off += (uint64_t)r) {
			if (places >= TURN_PLACES || virtio_dev_stopping(&blk->dev)) {
				blk->skip = at + off;
				return LEFT;
			}
			r = zero_some(blk, offset + off, len - off, discard, &places);
			if (r < 0)
				return r;
		}
		at += len;
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

/* The host has no room, and somebody is there to wait for it. */
static bool
waits_for_room(const struct blk *blk, int r)
{
	return (r == -ENOSPC || r == -EDQUOT) && blk->teller.tell;
}

/* 0, LATE, LEFT, or a negative errno: -EOPNOTSUPP is the guest's S_UNSUPP, any other S_IOERR. */
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
		return blk_is_unsynced(blk) ? LATE : 0;
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
	if (r == 0 && !(blk->dev.driver_features & VIRTIO_BLK_F_FLUSH) &&
		blk_is_unsynced(blk))
		r = LATE;
	return r;
}

/* One chain, to its status byte, and back to the driver, unless it is late. NULL, or why it
 * cannot even be answered. */
static const char *
handle_chain(struct blk *blk, struct virtq *q, const struct virtq_chain *c)
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
	if (r == LEFT) {
		virtq_unpop(q, 1);
		blk->is_left = true;
		return NULL;
	}
	blk->skip = 0;
	if (r == LATE) {
		blk_late_add(blk, c);
		return NULL;
	}
	if (waits_for_room(blk, r)) {
		virtq_unpop(q, 1);
		atomic_store(&blk->full, r);
		blk->teller.tell(blk->teller.ctx);
		return NULL;
	}
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
	if (virtq_push(q, blk->dev.mem, c->head,
		    c->in_bytes < UINT32_MAX ? (uint32_t)c->in_bytes : UINT32_MAX))
		return q->why;
	return NULL;
}

/* Whether there is a request and it is too early; the main thread then gives the next turn. */
static bool
is_early(struct blk *blk, struct virtq *q)
{
	uint64_t due_ns;

	if (!blk_limit_is_set(&blk->limit) || !blk->teller.tell ||
		virtq_avail_index(q, blk->dev.mem) == q->next_avail)
		return false;
	due_ns = blk_limit_due_ns(&blk->limit, io_now_ns());
	if (!due_ns)
		return false;
	atomic_store(&blk->due_ns, due_ns);
	blk->teller.tell(blk->teller.ctx);
	return true;
}

/* Takes chains until there is none or the turn ends (true). -EBADMSG with q->why. */
static int
take_chains(struct blk *blk, struct virtq *q, bool *ret_more)
{
	const struct virtq_chain *c = &blk->chain;
	uint64_t bytes = 0;
	unsigned taken = 0;
	const char *why;
	int r;

	*ret_more = false;
	atomic_store(&blk->due_ns, 0);
	do {
		while (!virtio_dev_stopping(&blk->dev)) {
			if (blk_is_full(blk) || is_early(blk, q))
				return 0;
			if (taken == q->size || bytes >= TURN_BYTES) {
				*ret_more = true;
				return 0;
			}
			/* The round that makes room goes on with the queue. */
			if (blk_late_is_full(blk)) {
				blk->flush.is_held_up = true;
				return 0;
			}
			r = virtq_pop(q, blk->dev.mem, &blk->chain);
			if (r < 0)
				return r;
			if (r == 0)
				break;
			taken++;
			bytes += c->in_bytes + c->out_bytes;
			blk->zeroed_bytes = 0;
			why = handle_chain(blk, q, c);
			if (blk_limit_is_set(&blk->limit))
				blk_limit_charge(&blk->limit, io_now_ns(),
					c->in_bytes + c->out_bytes + blk->zeroed_bytes);
			if (why) {
				q->why = why;
				return -EBADMSG;
			}
			if (blk->is_left) {
				blk->is_left = false;
				*ret_more = true;
				return 0;
			}
		}
		r = virtq_arm_notify(q, blk->dev.mem);
		if (r < 0)
			return r;
	} while (r && !virtio_dev_stopping(&blk->dev));
	return 0;
}

static bool
blk_notify(struct virtio_dev *dev, unsigned queue)
{
	struct blk *blk = (struct blk *)dev;
	struct virtq *q = &dev->queues[queue];
	bool more = false;

	blk_late_answer(blk);
	if (!virtio_dev_running(dev))
		return false;
	if (take_chains(blk, q, &more) < 0) {
		virtio_dev_break(dev, q->why);
		return false;
	}
	blk_late_begin(blk);
	virtio_dev_interrupt(dev);
	return more;
}

void
blk_forget_waiting(struct blk *blk)
{
	blk_late_forget(blk);
	blk->skip = 0;
	blk_try_again(blk);
	atomic_store(&blk->due_ns, 0);
}

static void
blk_reset(struct virtio_dev *dev)
{
	blk_forget_waiting((struct blk *)dev);
}

static void
blk_queue_off(struct virtio_dev *dev, unsigned queue)
{
	(void)queue; /* there is one */
	blk_reset(dev);
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
	.queue_off = blk_queue_off,
	.reset = blk_reset,
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
	blk->flush.in_use[0] = blk->flush.in_use[1] = -1;
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

void
blk_begin_segment(struct blk *blk, const int seg[static VMM_SEG_FDS])
{
	blk->data_blocks = blk->index_records = 0;
	atomic_store_explicit(&blk->stats.segment_bytes, 0, memory_order_relaxed);
	blk->segments[own(blk)] = (struct blk_segment){
		.data_fd = seg[VMM_SEG_DATA_RO], .index_fd = seg[VMM_SEG_INDEX_RO]};
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
	/* In a VM that is reset a flush may be under way, of the disk that was. */
	virtio_dev_lock(&blk->dev);
	blk->base_fd = base_fd;
	blk->base_bytes = base_bytes;
	blk->n_segments = 1;
	blk->own = 0;
	memset(blk->live, 0, sizeof(blk->live));
	blk_begin_segment(blk, seg);
	apply_size(blk, disk_mib);
	virtio_dev_unlock(&blk->dev);
	return 0;
}

int
blk_check_attach(uint64_t disk_mib, int base_fd, const int seg[static VMM_SEG_FDS],
	struct err *e)
{
	uint64_t base_bytes;
	int r;

	if (disk_mib == 0 || disk_mib > BLOCKMAP_DISK_MIB_MAX)
		return err_set(e, -EINVAL, "disk of %" PRIu64 " MiB: must be 1 to %llu MiB",
			disk_mib, BLOCKMAP_DISK_MIB_MAX);
	r = check_base(base_fd, disk_mib, &base_bytes, e);
	return r ? r : blk_check_segment(seg, e);
}

int
blk_attach_below(
	struct blk *blk, int data_fd, int map_fd, uint64_t blocks, struct err *e)
{
	int r = blockmap_map(&blk->map, map_fd, e);

	if (r)
		return r;
	blk->segments[1] = blk->segments[0];
	blk->segments[0] = (struct blk_segment){.data_fd = data_fd, .index_fd = -1};
	blk->n_segments = 2;
	blk->own = 1;
	blk->live[0] = blocks;
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
	blk_late_save(blk, out);
}

int
blk_load(struct blk *blk, uint64_t saved_mib, struct blob_in *in, struct err *e)
{
	int r;

	virtio_dev_lock(&blk->dev); /* as in blk_attach() */
	r = virtio_dev_load(&blk->dev, in, e);
	if (r == 0 && saved_mib > blk_disk_mib(blk))
		r = err_set(e, -EINVAL,
			"disk of %" PRIu64 " MiB: it was %" PRIu64
			" MiB when the state was taken, and disks only grow",
			blk_disk_mib(blk), saved_mib);
	if (r == 0 && saved_mib < blk_disk_mib(blk))
		virtio_dev_config_changed(&blk->dev);
	if (r == 0)
		r = blk_late_load(blk, in, e);
	virtio_dev_unlock(&blk->dev);
	return r;
}

void
blk_close_segment(struct blk *blk, struct blk_segment *seg)
{
	blk_retire(blk, &seg->data_fd);
	blk_retire(blk, &seg->index_fd);
	*seg = (struct blk_segment){.data_fd = -1, .index_fd = -1};
}

static void
give(struct blk *blk, int ret_fds[], unsigned *n, int *fd)
{
	if (*fd >= 0 && !blk_leave_to_round(blk, fd))
		ret_fds[(*n)++] = *fd;
	*fd = -1;
}

unsigned
blk_give_segment(struct blk *blk, struct blk_segment *seg, int *ret_fds)
{
	unsigned n = 0;

	give(blk, ret_fds, &n, &seg->data_fd);
	give(blk, ret_fds, &n, &seg->index_fd);
	seg->written = seg->synced = 0;
	return n;
}

unsigned
blk_give_own(struct blk *blk, int *ret_fds)
{
	unsigned n = 0;

	give(blk, ret_fds, &n, &blk->write_data_fd);
	give(blk, ret_fds, &n, &blk->write_index_fd);
	return n;
}

unsigned
blk_detach(struct blk *blk, int ret_fds[static BLK_FDS_MAX])
{
	unsigned i, n = 0;

	virtio_dev_lock(&blk->dev);
	for (i = 0; i < blk->n_segments; i++)
		n += blk_give_segment(blk, &blk->segments[i], ret_fds + n);
	n += blk_give_own(blk, ret_fds + n);
	give(blk, ret_fds, &n, &blk->base_fd);
	blk_forget_waiting(blk);
	blk->n_segments = 0;
	blockmap_clear(&blk->map);
	blk->base_bytes = blk->data_blocks = blk->index_records = 0;
	blk->config.capacity = 0;
	atomic_store_explicit(&blk->stats.segment_bytes, 0, memory_order_relaxed);
	virtio_dev_unlock(&blk->dev);
	return n;
}

void
blk_destroy(struct blk *blk)
{
	unsigned i;

	for (i = 0; i < blk->n_segments; i++)
		blk_close_segment(blk, &blk->segments[i]);
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
	blk_late_fork_child(blk);
	atomic_store(&blk->full, 0);
	atomic_store(&blk->due_ns, 0);
}

void
blk_set_limit(struct blk *blk, uint64_t bytes_per_s, uint64_t ops_per_s)
{
	virtio_dev_lock(&blk->dev);
	blk_limit_set(&blk->limit, bytes_per_s, ops_per_s);
	virtio_dev_unlock(&blk->dev);
}

/* What is tried on is given back: a segment is as long as what was written. */
bool
blk_has_room(struct blk *blk)
{
	bool has = true;

	virtio_dev_lock(&blk->dev);
	if (blk->write_data_fd >= 0) {
		const off_t at = (off_t)(blk->data_blocks * SEGMENT_BLOCK);

		has = fallocate(blk->write_data_fd, FALLOC_FL_KEEP_SIZE, at, ROOM_BYTES) == 0 ||
		      (errno != ENOSPC && errno != EDQUOT);
		(void)fallocate(blk->write_data_fd,
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, ROOM_BYTES);
	}
	virtio_dev_unlock(&blk->dev);
	return has;
}

void
blk_try_again(struct blk *blk)
{
	atomic_store(&blk->full, 0);
}

void
blk_hold(struct blk *blk)
{
	virtio_dev_lock(&blk->dev);
}

void
blk_release(struct blk *blk)
{
	virtio_dev_unlock(&blk->dev);
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
	unsigned cut;
	int r;

	virtio_dev_lock(&blk->dev);
	cut = own(blk);
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
		blk_close_segment(blk, &blk->segments[own(blk)]);
	else
		blk->own = blk_free_slot(blk);
	if (blk->own == blk->n_segments)
		blk->n_segments++;
	blk_begin_segment(blk, seg);
	if (cut != own(blk)) /* it may be durable already */
		blk_synced(blk, cut, 0);
out:
	virtio_dev_unlock(&blk->dev);
	return r;
}

int
blk_flush(struct blk *blk, struct err *e)
{
	int r;

	virtio_dev_lock(&blk->dev);
	r = blk_sync(blk);
	virtio_dev_unlock(&blk->dev);
	return r ? err_sys(e, r, "disk: making the segments durable") : 0;
}
