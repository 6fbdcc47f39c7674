/*
 * A driver for our virtio devices, in the test's process over real guest memory: it does
 * what Linux's does with the registers and rings, and lets a test write into the rings
 * what no Linux would. Not thread safe.
 */
#ifndef PANDO_TESTS_UNIT_FAKE_DRIVER_H
#define PANDO_TESTS_UNIT_FAKE_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "vmm/virtio_mmio.h"

#define FAKE_MEM_MIB 16u
#define FAKE_RINGS \
	0x10000u	    /* queue i: descriptors here + i * 64 KiB, available, used \
			     */
#define FAKE_HEAP 0x100000u /* for the test's buffers */

struct fake_queue {
	uint64_t desc, avail, used;
	uint16_t size, next_desc;
	uint16_t avail_idx, used_seen;
};

struct fake_driver {
	struct guest_mem mem;	/* owned */
	struct virtio_dev *dev; /* borrowed */
	struct fake_queue q[VIRTIO_QUEUES_MAX];
	unsigned irqs;
};

struct fake_buf {
	uint64_t gpa;
	uint32_t len;
	bool write;
};

void fake_driver_init(struct fake_driver *d);
void fake_driver_done(struct fake_driver *d);
/* An interrupt line that counts into d->irqs. */
struct irq_line fake_irq(struct fake_driver *d);

uint32_t fake_read(struct fake_driver *d, uint64_t reg);
void fake_write(struct fake_driver *d, uint64_t reg, uint32_t value);

/* Reset to DRIVER_OK with these features of those offered; all queues at their full size.
 * False when the device did not accept. */
bool fake_start(struct fake_driver *d, struct virtio_dev *dev, uint64_t features);

/* Descriptor i of queue qi, raw. */
void fake_set_desc(
	struct fake_driver *d, unsigned qi, uint16_t i, struct virtq_desc desc);
/* Makes a head available without a notification. */
void fake_offer(struct fake_driver *d, unsigned qi, uint16_t head);
/* A chain of n buffers: descriptors, offer. Returns its head. */
uint16_t fake_add(
	struct fake_driver *d, unsigned qi, const struct fake_buf *bufs, unsigned n);
void fake_kick(struct fake_driver *d, unsigned qi);
/* The next chain that the device gave back. */
bool fake_used(struct fake_driver *d, unsigned qi, uint32_t *ret_head, uint32_t *ret_len);

void fake_poke(struct fake_driver *d, uint64_t gpa, const void *src, size_t len);
void fake_peek(struct fake_driver *d, uint64_t gpa, void *dst, size_t len);

#endif
