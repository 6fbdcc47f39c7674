/*
 * virtio-rng (virtio 1.2, 5.4): fills the guest's buffers from getrandom(2), on the
 * thread that rings the doorbell, at most RNG_REQUEST_MAX bytes a request (a shorter
 * answer is allowed; the driver asks again).
 *
 * Fork: virtio_dev_fork_child(&rng->dev, irq) is all there is; state: virtio_dev_save()
 * and virtio_dev_load() likewise.
 * System calls: getrandom.
 */
#ifndef PANDO_VMM_RNG_H
#define PANDO_VMM_RNG_H

#include "vmm/virtio_mmio.h"

#define RNG_REQUEST_MAX 4096u

struct rng {
	struct virtio_dev dev;
	struct virtq_chain chain; /* scratch */
};

void rng_init(struct rng *rng, const struct guest_mem *mem, struct irq_line irq);

#endif
