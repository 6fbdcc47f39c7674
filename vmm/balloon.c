#include "vmm/balloon.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

enum queue { INFLATE, DEFLATE, STATISTICS, REPORTING, REPORTING_TOO, QUEUES };

/* One entry of the driver's buffer (5.5.6.3). */
struct stat_entry {
	uint16_t tag;
	uint64_t value;
} __attribute__((packed));
_Static_assert(sizeof(struct stat_entry) == 10, "virtio 1.2, 5.5.6.3");
#define STAT_ENTRIES_MAX 32u

static struct balloon *
of(struct virtio_dev *dev)
{
	return (struct balloon *)dev;
}

static bool
has(const struct balloon *b, uint32_t feature)
{
	return b->dev.driver_features & feature;
}

static enum queue
kind_of(const struct balloon *b, unsigned queue)
{
	if (queue < STATISTICS)
		return queue;
	return queue == STATISTICS && has(b, VIRTIO_BALLOON_F_STATS_VQ) ? STATISTICS : REPORTING;
}

static bool
wants_reports(const struct balloon *b)
{
	if (!has(b, VIRTIO_BALLOON_F_REPORTING))
		return false;
	return !has(b, VIRTIO_BALLOON_F_PAGE_POISON) || b->config.poison_val == 0;
}

/* Whole pages of [at, at + len). */
static uint64_t
give_back(struct balloon *b, void *at, size_t len, bool any)
{
	const size_t head = -(uintptr_t)at % BALLOON_PAGE;
	uint64_t given;

	if (len < head + BALLOON_PAGE)
		return 0;
	given = b->host.give_back(b->host.ctx, (uint8_t *)at + head,
		(len - head) / BALLOON_PAGE * BALLOON_PAGE, any);
	atomic_fetch_add_explicit(&b->given_back_bytes, given, memory_order_relaxed);
	return given;
}

/* 1: the chain is done, 0: it is to be gone on with. *turn: bytes of this turn so far. */
static int
report(struct balloon *b, uint64_t *turn)
{
	const struct virtq_chain *c = &b->chain;
	uint64_t at = 0;

	for (unsigned i = c->n_out; i < c->n_out + c->n_in && wants_reports(b); i++) {
		const struct iovec *v = &c->iov[i];

		for (size_t off = 0; off < v->iov_len;) {
			size_t n = v->iov_len - off;

			n = n < BALLOON_PIECE_BYTES ? n : BALLOON_PIECE_BYTES;
			if (at >= b->skip) {
				if (*turn >= BALLOON_TURN_BYTES ||
					virtio_dev_stopping(&b->dev)) {
					b->skip = at;
					return 0;
				}
				give_back(b, (uint8_t *)v->iov_base + off, n, false);
				*turn += n;
			}
			off += n;
			at += n;
		}
	}
	b->skip = 0;
	return 1;
}

/* Shell's sort: the C library's may allocate. */
static void
sort(uint32_t *v, unsigned n)
{
	for (unsigned gap = 121; gap > 0; gap /= 3)
		for (unsigned i = gap; i < n; i++) {
			uint32_t x = v[i];
			unsigned k = i;

			for (; k >= gap && v[k - gap] > x; k -= gap)
				v[k] = v[k - gap];
			v[k] = x;
		}
}

/* Page numbers, little-endian; ascending ones are given back together. */
static int
inflate(struct balloon *b, uint64_t *turn)
{
	struct virtq_cursor in = virtq_readable(&b->chain);
	const unsigned n =
		(unsigned)(virtq_copy_from(&in, b->pfns, sizeof(b->pfns)) / sizeof(*b->pfns));

	sort(b->pfns, n);
	for (unsigned i = 0, run; i < n; i += run) {
		const gpa_t gpa = {(uint64_t)b->pfns[i] * BALLOON_PAGE};
		size_t len = BALLOON_PAGE;
		uint8_t *at = guest_range(b->dev.mem, gpa, len);

		if (!at) {
			b->dev.queues[INFLATE].why =
				"a page of the balloon lies outside the guest's memory";
			return -EBADMSG;
		}
		/* One that is named twice adds nothing. What does not lie in this piece of RAM
		 * begins a run of its own. */
		for (run = 1; i + run < n; run++) {
			const uint32_t step = b->pfns[i + run] - b->pfns[i + run - 1];

			if (step > 1 ||
				!guest_range(b->dev.mem, gpa, len + step * BALLOON_PAGE))
				break;
			len += step * BALLOON_PAGE;
		}
		give_back(b, at, len, true);
		*turn += len;
	}
	return 1;
}

static void
keep_statistics(struct balloon *b)
{
	struct virtq_cursor in = virtq_readable(&b->chain);
	struct stat_entry s;

	for (unsigned i = 0; i < STAT_ENTRIES_MAX; i++) {
		if (virtq_copy_from(&in, &s, sizeof(s)) < sizeof(s))
			break;
		if (s.tag < BALLOON_STATS)
			atomic_store(&b->stats[s.tag], s.value);
	}
}

/* The buffer stays here until newer ones are wanted; there is one, a second takes its place. */
static int
take_statistics(struct balloon *b, struct virtq *q)
{
	const uint16_t old = b->stats_head;
	const bool had = b->has_stats_chain;

	keep_statistics(b);
	b->stats_head = b->chain.head;
	b->has_stats_chain = true;
	return had ? virtq_push(q, b->dev.mem, old, 0) : 0;
}

/* A chain that was taken: 1 done, 0 to be gone on with, -EBADMSG. */
static int
serve(struct balloon *b, enum queue kind, struct virtq *q, uint64_t *turn)
{
	int r = 1;

	switch (kind) {
	case STATISTICS:
		r = take_statistics(b, q);
		return r < 0 ? r : 1;
	case INFLATE:
		r = inflate(b, turn);
		break;
	case DEFLATE:
		break;
	default:
		r = report(b, turn);
		if (r == 0)
			virtq_unpop(q, 1);
	}
	if (r == 1 && virtq_push(q, b->dev.mem, b->chain.head, 0))
		r = -EBADMSG;
	return r;
}

static bool
balloon_notify(struct virtio_dev *dev, unsigned queue)
{
	struct balloon *b = of(dev);
	struct virtq *q = &dev->queues[queue];
	const enum queue kind = kind_of(b, queue);
	unsigned taken = 0;
	uint64_t turn = 0;
	int r;

	do {
		while (!virtio_dev_stopping(dev)) {
			if (taken++ == q->size || turn >= BALLOON_TURN_BYTES) {
				virtio_dev_interrupt(dev);
				return true;
			}
			r = virtq_pop(q, dev->mem, &b->chain);
			if (r == 0)
				break;
			if (r < 0 || serve(b, kind, q, &turn) < 0)
				goto broken;
		}
		r = virtq_arm_notify(q, dev->mem);
		if (r < 0)
			goto broken;
	} while (r && !virtio_dev_stopping(dev));
	virtio_dev_interrupt(dev);
	return false;
broken:
	virtio_dev_break(dev, q->why);
	return false;
}

static const void *
balloon_config(struct virtio_dev *dev, uint32_t *ret_len)
{
	*ret_len = sizeof(struct balloon_config);
	return &of(dev)->config;
}

static void
balloon_config_write(struct virtio_dev *dev, uint32_t offset, uint32_t value)
{
	struct balloon *b = of(dev);

	if (offset == offsetof(struct balloon_config, actual))
		__atomic_store_n(&b->config.actual, value, __ATOMIC_RELAXED);
	else if (offset == offsetof(struct balloon_config, poison_val))
		b->config.poison_val = value;
}

static void
forget_statistics(struct balloon *b)
{
	for (unsigned i = 0; i < BALLOON_STATS; i++)
		atomic_store(&b->stats[i], UINT64_MAX);
}

static void
balloon_queue_off(struct virtio_dev *dev, unsigned queue)
{
	struct balloon *b = of(dev);

	b->skip = 0;
	if (kind_of(b, queue) == STATISTICS)
		b->has_stats_chain = false;
}

/* What is in it is the driver's again: it comes back by being touched. */
static void
balloon_reset(struct virtio_dev *dev)
{
	struct balloon *b = of(dev);

	__atomic_store_n(&b->config.actual, 0, __ATOMIC_RELAXED);
	b->config.poison_val = 0;
	b->skip = 0;
	b->has_stats_chain = false;
	forget_statistics(b);
}

static const struct virtio_ops balloon_ops = {
	.name = "balloon",
	.device_id = VIRTIO_ID_BALLOON,
	.features = VIRTIO_BALLOON_F_STATS_VQ | VIRTIO_BALLOON_F_DEFLATE_ON_OOM |
		    VIRTIO_BALLOON_F_PAGE_POISON | VIRTIO_BALLOON_F_REPORTING,
	.n_queues = QUEUES,
	/* Linux reports 32 ranges at a time, and no less. */
	.queue_size = {64, 64, 8, 64, 64},
	.config = balloon_config,
	.config_write = balloon_config_write,
	.notify = balloon_notify,
	.queue_off = balloon_queue_off,
	.reset = balloon_reset,
};

void
balloon_init(struct balloon *b, const struct guest_mem *mem, struct irq_line irq,
	const struct balloon_host *host)
{
	virtio_dev_init(&b->dev, &balloon_ops, mem, irq);
	b->host = *host;
	b->present = true;
	b->config = (struct balloon_config){0};
	b->skip = 0;
	b->has_stats_chain = false;
	forget_statistics(b);
	atomic_store(&b->given_back_bytes, 0);
}

void
balloon_fork_child(struct balloon *b, struct irq_line irq)
{
	virtio_dev_fork_child(&b->dev, irq);
	atomic_store(&b->given_back_bytes, 0);
}

void
balloon_set_target(struct balloon *b, uint64_t bytes)
{
	b->config.num_pages = (uint32_t)(bytes / BALLOON_PAGE);
	virtio_dev_config_changed(&b->dev);
}

void
balloon_look(struct balloon *b, struct balloon_view *ret)
{
	struct virtq *q = &b->dev.queues[STATISTICS];

	*ret = (struct balloon_view){
		.driver_ok = b->present && virtio_dev_running(&b->dev),
		.wanted = (uint64_t)__atomic_load_n(&b->config.num_pages, __ATOMIC_RELAXED) *
			  BALLOON_PAGE,
		.inflated = (uint64_t)__atomic_load_n(&b->config.actual, __ATOMIC_RELAXED) *
			    BALLOON_PAGE,
		.given_back = atomic_load(&b->given_back_bytes),
		.free = atomic_load(&b->stats[BALLOON_STAT_FREE]),
		.available = atomic_load(&b->stats[BALLOON_STAT_AVAILABLE]),
	};
	/* A guest can keep a vCPU in here for as long as it likes. */
	if (pthread_mutex_trylock(&b->dev.lock))
		return;
	if (virtio_dev_running(&b->dev) && b->has_stats_chain) {
		b->has_stats_chain = false;
		if (virtq_push(q, b->dev.mem, b->stats_head, 0))
			virtio_dev_break(&b->dev, q->why);
		else
			virtio_dev_interrupt(&b->dev);
	}
	virtio_dev_unlock(&b->dev);
}

void
balloon_save(const struct balloon *b, struct blob_out *out)
{
	virtio_dev_save(&b->dev, out);
	blob_put_u32(out, b->config.num_pages);
	blob_put_u32(out, b->config.actual);
	blob_put_u32(out, b->config.poison_val);
	blob_put_u16(out, b->stats_head);
	blob_put_u8(out, b->has_stats_chain);
	blob_put_u8(out, 0);
}

int
balloon_load(struct balloon *b, struct blob_in *in, struct err *e)
{
	const struct virtq *q = &b->dev.queues[STATISTICS];
	uint8_t has_chain;
	int r = virtio_dev_load(&b->dev, in, e);

	if (r < 0)
		return r;
	b->config.num_pages = blob_get_u32(in);
	b->config.actual = blob_get_u32(in);
	b->config.poison_val = blob_get_u32(in);
	b->stats_head = blob_get_u16(in);
	has_chain = blob_get_u8(in);
	if (has_chain > 1 || blob_get_u8(in) || (has_chain && b->stats_head >= q->size))
		return err_set(e, -EBADMSG, "the state of the balloon has a flag that cannot be");
	b->has_stats_chain = has_chain;
	b->skip = 0;
	/* In a VM that is reset they are of another life. */
	forget_statistics(b);
	return 0;
}
