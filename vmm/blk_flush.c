#include "vmm/blk_flush.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

bool
blk_is_unsynced(const struct blk *blk)
{
	for (unsigned i = 0; i < blk->n_segments; i++)
		if (blk->segments[i].written != blk->segments[i].synced)
			return true;
	return false;
}

void
blk_wrote(struct blk_segment *seg)
{
	seg->written++;
}

bool
blk_leave_to_round(struct blk *blk, int *fd)
{
	struct blk_flush *f = &blk->flush;

	for (unsigned i = 0; i < 2 && *fd >= 0; i++) {
		if (f->in_use[i] == *fd) {
			f->close_later[i] = true;
			*fd = -1;
			return true;
		}
	}
	return false;
}

void
blk_retire(struct blk *blk, int *fd)
{
	if (*fd < 0 || blk_leave_to_round(blk, fd))
		return;
	close(*fd);
	*fd = -1;
}

/* The round does not use its two descriptors any more. */
static void
give_back(struct blk_flush *f)
{
	for (unsigned i = 0; i < 2; i++) {
		if (f->close_later[i])
			close(f->in_use[i]);
		f->in_use[i] = -1;
		f->close_later[i] = false;
	}
}

/* Data before index: a durable record never points at data that is not, but for what is
 * written between the two (blk.h). */
static int
sync_files(int data_fd, int index_fd)
{
	return fdatasync(data_fd) || fdatasync(index_fd) ? -errno : 0;
}

void
blk_synced(struct blk *blk, unsigned i, uint64_t written)
{
	struct blk_segment *seg = &blk->segments[i];

	if (seg->synced < written)
		seg->synced = written;
	if (i != blk->own && seg->synced == seg->written)
		blk_retire(blk, &seg->index_fd);
}

/* One segment, without the lock meanwhile. What is segment i now may be another one
 * afterwards; a descriptor in use is no other file's. */
static int
sync_unlocked(struct blk *blk, unsigned i)
{
	struct blk_segment *seg = &blk->segments[i];
	const int data_fd = seg->data_fd, index_fd = seg->index_fd;
	const uint64_t written = seg->written;
	int r;

	blk->flush.in_use[0] = data_fd;
	blk->flush.in_use[1] = index_fd;
	virtio_dev_unlock(&blk->dev);
	r = sync_files(data_fd, index_fd);
	virtio_dev_lock(&blk->dev);
	if (r == 0 && i < blk->n_segments && blk->segments[i].data_fd == data_fd)
		blk_synced(blk, i, written);
	give_back(&blk->flush);
	return r;
}

int
blk_sync(struct blk *blk)
{
	int r;

	for (unsigned i = 0; i < blk->n_segments; i++) {
		struct blk_segment *seg = &blk->segments[i];

		if (seg->written != seg->synced) {
			r = sync_files(seg->data_fd, seg->index_fd);
			if (r)
				return r;
		}
		blk_synced(blk, i, seg->written);
	}
	return 0;
}

bool
blk_late_is_full(const struct blk *blk)
{
	return blk->flush.n == BLK_LATE_MAX;
}

static void
note_late(struct blk *blk, const struct virtq_chain *c)
{
	const struct iovec *last = &c->iov[c->n_out + c->n_in - 1];

	blk->flush.late[blk->flush.n++] = (struct blk_late){
		.status = (uint8_t *)last->iov_base + last->iov_len - 1,
		.written = c->in_bytes < UINT32_MAX ? (uint32_t)c->in_bytes : UINT32_MAX,
		.head = c->head,
	};
}

void
blk_late_add(struct blk *blk, const struct virtq_chain *c)
{
	note_late(blk, c);
}

/* The first n. */
static void
drop_late(struct blk_flush *f, unsigned n)
{
	f->n -= n;
	memmove(f->late, f->late + n, f->n * sizeof(f->late[0]));
}

void
blk_late_answer(struct blk *blk)
{
	struct blk_flush *f = &blk->flush;
	struct virtq *q = &blk->dev.queues[0];
	const unsigned n = f->n_done;

	for (unsigned i = 0; i < n && q->ready; i++) {
		*f->late[i].status = f->late[i].answer;
		if (virtq_push(q, blk->dev.mem, f->late[i].head, f->late[i].written)) {
			virtio_dev_break(&blk->dev, q->why);
			break;
		}
	}
	f->n_done = 0;
	drop_late(f, n);
}

/* The first n wait no more. */
static void
note_result(struct blk *blk, unsigned n, int r)
{
	struct blk_flush *f = &blk->flush;

	if (r < 0 && n > 0) {
		atomic_fetch_add_explicit(&blk->stats.io_errors, n, memory_order_relaxed);
		if (log_allowed(&blk->dev.log))
			log_warn("disk: a flush failed: %s; the guest sees an I/O error",
				strerror(-r));
	}
	for (unsigned i = f->n_done; i < n; i++)
		f->late[i].answer = r < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
	f->n_done = n;
}

void
blk_late_begin(struct blk *blk)
{
	struct blk_flush *f = &blk->flush;

	if (f->n == f->n_done || f->running)
		return;
	if (blk->waker.wake && blk->waker.wake(blk->waker.ctx))
		return;
	note_result(blk, f->n, blk_sync(blk));
	blk_late_answer(blk);
}

void
blk_late_forget(struct blk *blk)
{
	blk->flush.n = blk->flush.n_round = blk->flush.n_done = 0;
	blk->flush.is_held_up = false;
}

void
blk_late_fork_child(struct blk *blk)
{
	give_back(&blk->flush);
	blk->flush.n_round = 0;
	blk->flush.running = false;
}

/* The queue waits for a place among the late ones. */
static bool
go_on(struct blk *blk)
{
	if (!blk->flush.is_held_up || virtio_dev_stopping(&blk->dev))
		return false;
	blk->flush.is_held_up = false;
	if (!virtio_dev_running(&blk->dev) || !blk->dev.queues[0].ready)
		return false;
	/* A turn that ends before the queue does. */
	if (blk->dev.ops->notify(&blk->dev, 0))
		blk->flush.is_held_up = true;
	return true;
}

bool
blk_round(struct blk *blk)
{
	struct blk_flush *f = &blk->flush;
	bool more;
	int r = 0;

	virtio_dev_lock(&blk->dev);
	/* Those that are done are answered first, by who resumes the device. */
	if (f->running || f->n_done || f->n == 0) {
		more = go_on(blk);
		goto out;
	}
	f->running = true;
	f->n_round = f->n;
	for (unsigned i = 0; i < blk->n_segments && r == 0; i++)
		if (blk->segments[i].written != blk->segments[i].synced)
			r = sync_unlocked(blk, i);
	f->running = false;
	/* None, when the device was reset meanwhile. What it has now may be of another state, with
	 * answers of its own. */
	if (f->n_round)
		note_result(blk, f->n_round, r);
	f->n_round = 0;
	more = !virtio_dev_stopping(&blk->dev);
	if (more) {
		if (virtio_dev_running(&blk->dev)) {
			blk_late_answer(blk);
			virtio_dev_interrupt(&blk->dev);
		} else {
			blk_late_forget(blk);
		}
	}
out:
	virtio_dev_unlock(&blk->dev);
	return more;
}

#define NOT_YET 0xff

void
blk_late_save(const struct blk *blk, struct blob_out *out)
{
	const struct blk_flush *f = &blk->flush;

	if (f->n == 0)
		return;
	blob_put_u32(out, f->n);
	for (unsigned i = 0; i < f->n; i++) {
		blob_put_u16(out, f->late[i].head);
		blob_put_u8(out, i < f->n_done ? f->late[i].answer : NOT_YET);
		blob_put_u8(out, 0);
	}
}

/* The chains are read anew, from the memory that came with the state. Where one is none any more,
 * its driver broke the device, which serves nothing until it is reset. */
int
blk_late_load(struct blk *blk, struct blob_in *in, struct err *e)
{
	struct blk_flush *f = &blk->flush;
	struct virtq *q = &blk->dev.queues[0];
	const char *why = NULL;
	uint32_t n;

	blk_late_forget(blk);
	if (in->left == 0)
		return 0;
	n = blob_get_u32(in);
	if (n == 0 || n > BLK_LATE_MAX || !q->ready)
		return err_set(e, -EBADMSG,
			"the state of the disk has %u flushes under way; %s", n,
			q->ready ? "a queue does not hold as many" : "its queue is not in use");
	for (unsigned i = 0; i < n; i++) {
		const uint16_t head = blob_get_u16(in);
		const uint8_t answer = blob_get_u8(in), pad = blob_get_u8(in);

		if (in->bad || pad || (answer != NOT_YET && answer > VIRTIO_BLK_S_IOERR) ||
			(answer != NOT_YET && f->n_done < i) || head >= q->size)
			return err_set(e, -EBADMSG,
				"the state of the disk has a flush under way that cannot be");
		if (virtq_chain_at(q, blk->dev.mem, head, &blk->chain))
			why = q->why;
		else if (blk->chain.in_bytes == 0)
			why = "a flush lost the place of its status";
		else
			note_late(blk, &blk->chain);
		f->late[i].answer = answer;
		if (answer != NOT_YET)
			f->n_done++;
	}
	if (why) {
		blk_late_forget(blk);
		virtio_dev_break(&blk->dev, why);
	}
	return 0;
}
