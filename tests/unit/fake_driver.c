#include "tests/unit/fake_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void
count_irq(void *ctx, unsigned gsi)
{
	(void)gsi;
	((struct fake_driver *)ctx)->irqs++;
}

void
fake_driver_init(struct fake_driver *d)
{
	struct err e = {0};

	memset(d, 0, sizeof(*d));
	if (guest_mem_create(&d->mem, FAKE_MEM_MIB, &e)) {
		fprintf(stderr, "%s\n", e.msg);
		abort();
	}
}

void
fake_driver_done(struct fake_driver *d)
{
	guest_mem_destroy(&d->mem);
}

struct irq_line
fake_irq(struct fake_driver *d)
{
	return (struct irq_line){.raise = count_irq, .ctx = d, .gsi = 5};
}

uint32_t
fake_read(struct fake_driver *d, uint64_t reg)
{
	uint32_t value;

	virtio_mmio_read(d->dev, reg, &value, sizeof(value));
	return value;
}

void
fake_write(struct fake_driver *d, uint64_t reg, uint32_t value)
{
	virtio_mmio_write(d->dev, reg, &value, sizeof(value));
}

void
fake_poke(struct fake_driver *d, uint64_t gpa, const void *src, size_t len)
{
	if (guest_write(&d->mem, (gpa_t){gpa}, src, len))
		abort();
}

void
fake_peek(struct fake_driver *d, uint64_t gpa, void *dst, size_t len)
{
	if (guest_read(&d->mem, (gpa_t){gpa}, dst, len))
		abort();
}

static void
start_queue(struct fake_driver *d, unsigned i)
{
	struct fake_queue *q = &d->q[i];
	static const uint8_t zeroes[0x10000];

	fake_write(d, VIRTIO_MMIO_QUEUE_SEL, i);
	*q = (struct fake_queue){.desc = FAKE_RINGS + i * 0x10000u,
		.size = (uint16_t)fake_read(d, VIRTIO_MMIO_QUEUE_SIZE_MAX)};
	q->avail = q->desc + 0x4000;
	q->used = q->desc + 0x8000;
	fake_poke(d, q->desc, zeroes, sizeof(zeroes));
	fake_write(d, VIRTIO_MMIO_QUEUE_SIZE, q->size);
	fake_write(d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)q->desc);
	fake_write(d, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
	fake_write(d, VIRTIO_MMIO_QUEUE_DRIVER_LOW, (uint32_t)q->avail);
	fake_write(d, VIRTIO_MMIO_QUEUE_DRIVER_HIGH, 0);
	fake_write(d, VIRTIO_MMIO_QUEUE_DEVICE_LOW, (uint32_t)q->used);
	fake_write(d, VIRTIO_MMIO_QUEUE_DEVICE_HIGH, 0);
	fake_write(d, VIRTIO_MMIO_QUEUE_READY, 1);
}

bool
fake_start(struct fake_driver *d, struct virtio_dev *dev, uint64_t features)
{
	uint64_t offered;
	unsigned i;

	d->dev = dev;
	fake_write(d, VIRTIO_MMIO_STATUS, 0);
	fake_write(d, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE);
	fake_write(
		d, VIRTIO_MMIO_STATUS, VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER);
	fake_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	offered = fake_read(d, VIRTIO_MMIO_DEVICE_FEATURES);
	fake_write(d, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	offered |= (uint64_t)fake_read(d, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
	features &= offered;
	fake_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	fake_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)features);
	fake_write(d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	fake_write(d, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(features >> 32));
	fake_write(d, VIRTIO_MMIO_STATUS, 11);
	if (!(fake_read(d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_FEATURES_OK))
		return false;
	for (i = 0; i < dev->ops->n_queues; i++)
		start_queue(d, i);
	fake_write(d, VIRTIO_MMIO_STATUS, 15);
	return fake_read(d, VIRTIO_MMIO_STATUS) == 15;
}

void
fake_set_desc(struct fake_driver *d, unsigned qi, uint16_t i, struct virtq_desc desc)
{
	fake_poke(d, d->q[qi].desc + 16ull * i, &desc, sizeof(desc));
}

void
fake_offer(struct fake_driver *d, unsigned qi, uint16_t head)
{
	struct fake_queue *q = &d->q[qi];

	fake_poke(d, q->avail + 4 + 2ull * (q->avail_idx % q->size), &head, sizeof(head));
	q->avail_idx++;
	fake_poke(d, q->avail + 2, &q->avail_idx, sizeof(q->avail_idx));
}

uint16_t
fake_add(struct fake_driver *d, unsigned qi, const struct fake_buf *bufs, unsigned n)
{
	struct fake_queue *q = &d->q[qi];
	uint16_t head = q->next_desc, at;
	unsigned i;

	for (i = 0; i < n; i++) {
		at = q->next_desc;
		q->next_desc = (uint16_t)((q->next_desc + 1) % q->size);
		fake_set_desc(d, qi, at,
			(struct virtq_desc){.addr = bufs[i].gpa,
				.len = bufs[i].len,
				.flags = (uint16_t)((bufs[i].write ? VIRTQ_DESC_F_WRITE
								   : 0) |
						    (i + 1 < n ? VIRTQ_DESC_F_NEXT : 0)),
				.next = q->next_desc});
	}
	fake_offer(d, qi, head);
	return head;
}

void
fake_kick(struct fake_driver *d, unsigned qi)
{
	fake_write(d, VIRTIO_MMIO_QUEUE_NOTIFY, qi);
}

bool
fake_used(struct fake_driver *d, unsigned qi, uint32_t *ret_head, uint32_t *ret_len)
{
	struct fake_queue *q = &d->q[qi];
	const uint16_t *shared = guest_range(&d->mem, (gpa_t){q->used + 2}, 2);
	uint32_t elem[2];
	uint16_t idx;

	/* A thread of the device may be writing it. */
	idx = __atomic_load_n(shared, __ATOMIC_ACQUIRE);
	if (idx == q->used_seen)
		return false;
	fake_peek(d, q->used + 4 + 8ull * (q->used_seen % q->size), elem, sizeof(elem));
	q->used_seen++;
	if (ret_head)
		*ret_head = elem[0];
	if (ret_len)
		*ret_len = elem[1];
	return true;
}
