#include "vmm/rng.h"

#include <errno.h>
#include <sys/random.h>

/* Returns how much of len was filled. */
static size_t
fill_random(void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = getrandom((uint8_t *)buf + done, len - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return done;
}

static bool
rng_notify(struct virtio_dev *dev, unsigned queue)
{
	struct rng *rng = (struct rng *)dev;
	struct virtq *q = &dev->queues[queue];
	struct virtq_cursor in;
	struct iovec iov;
	uint32_t written;
	unsigned n;
	unsigned taken = 0;
	size_t len;
	int r;

	do {
		while (!virtio_dev_stopping(dev)) {
			if (taken++ == q->size) {
				virtio_dev_interrupt(dev);
				return true;
			}
			r = virtq_pop(q, dev->mem, &rng->chain);
			if (r == 0)
				break;
			if (r < 0)
				goto broken;
			in = virtq_writable(&rng->chain);
			for (written = 0; written < RNG_REQUEST_MAX;
				written += (uint32_t)len) {
				virtq_slice(&in, RNG_REQUEST_MAX - written, &iov, 1, &n);
				len = n ? fill_random(iov.iov_base, iov.iov_len) : 0;
				if (len == 0)
					break;
			}
			if (virtq_push(q, dev->mem, rng->chain.head, written))
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

static const struct virtio_ops rng_ops = {
	.name = "rng",
	.device_id = VIRTIO_ID_RNG,
	.n_queues = 1,
	.queue_size = {64},
	.notify = rng_notify,
};

void
rng_init(struct rng *rng, const struct guest_mem *mem, struct irq_line irq)
{
	virtio_dev_init(&rng->dev, &rng_ops, mem, irq);
}
