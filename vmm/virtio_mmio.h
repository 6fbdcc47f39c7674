/*
 * virtio-mmio, version 2 (virtio 1.2, 4.2): what all our devices share. A device embeds
 * struct virtio_dev as its first member `dev` and supplies a table of verbs.
 *
 * Locking: virtio_mmio_read/write are called by vCPU threads and take dev->lock; verbs
 * run with it held. Work of other threads on a device takes it with virtio_dev_lock().
 *
 * A guest that breaks the rules breaks that device: virtio_dev_break() sets
 * DEVICE_NEEDS_RESET, tells the driver by a configuration interrupt, logs one
 * rate-limited line; the device then does nothing until the driver resets it.
 *
 * Stopping: a device that works through a queue looks at *dev->stop between
 * requests and leaves when it is set, so vCPUs that are asked to stop do so soon even
 * when a guest feeds a queue for ever. virtio_dev_resume() picks up what was left.
 *
 * Turns: notify() takes at most as many chains as its queue is long and says whether it
 * left some. On a vCPU's doorbell, that vCPU goes on with the next turn; the main thread,
 * which has other work (control, vsock), looks at that first (virtio_dev_go_on).
 *
 * Fork: all plain memory. In the child, before anything else touches the device,
 * call virtio_dev_fork_child(dev, &irq) (or the device's own *_fork_child, which does
 * it), then, when vCPUs and irq lines are ready, virtio_dev_resume(); the parent calls
 * virtio_dev_resume() as well. No vCPU thread may be inside a device at the fork.
 *
 * x86 hosts only: guest and host are little-endian.
 */
#ifndef PANDO_VMM_VIRTIO_MMIO_H
#define PANDO_VMM_VIRTIO_MMIO_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/log.h"
#include "common/wire/blob.h"
#include "vmm/irq.h"
#include "vmm/memory.h"
#include "vmm/virtqueue.h"

#define VIRTIO_MMIO_SIZE 0x200u /* registers 0x000-0x0ff, configuration from 0x100 */
#define VIRTIO_QUEUES_MAX 5

/* Registers (4.2.2). */
enum virtio_mmio_reg {
	VIRTIO_MMIO_MAGIC = 0x000,
	VIRTIO_MMIO_VERSION = 0x004,
	VIRTIO_MMIO_DEVICE_ID = 0x008,
	VIRTIO_MMIO_VENDOR_ID = 0x00c,
	VIRTIO_MMIO_DEVICE_FEATURES = 0x010,
	VIRTIO_MMIO_DEVICE_FEATURES_SEL = 0x014,
	VIRTIO_MMIO_DRIVER_FEATURES = 0x020,
	VIRTIO_MMIO_DRIVER_FEATURES_SEL = 0x024,
	VIRTIO_MMIO_QUEUE_SEL = 0x030,
	VIRTIO_MMIO_QUEUE_SIZE_MAX = 0x034,
	VIRTIO_MMIO_QUEUE_SIZE = 0x038,
	VIRTIO_MMIO_QUEUE_READY = 0x044,
	VIRTIO_MMIO_QUEUE_NOTIFY = 0x050,
	VIRTIO_MMIO_INTERRUPT_STATUS = 0x060,
	VIRTIO_MMIO_INTERRUPT_ACK = 0x064,
	VIRTIO_MMIO_STATUS = 0x070,
	VIRTIO_MMIO_QUEUE_DESC_LOW = 0x080,
	VIRTIO_MMIO_QUEUE_DESC_HIGH = 0x084,
	VIRTIO_MMIO_QUEUE_DRIVER_LOW = 0x090,
	VIRTIO_MMIO_QUEUE_DRIVER_HIGH = 0x094,
	VIRTIO_MMIO_QUEUE_DEVICE_LOW = 0x0a0,
	VIRTIO_MMIO_QUEUE_DEVICE_HIGH = 0x0a4,
	VIRTIO_MMIO_SHM_LEN_LOW = 0x0b0,
	VIRTIO_MMIO_SHM_BASE_HIGH = 0x0bc,
	VIRTIO_MMIO_CONFIG_GENERATION = 0x0fc,
	VIRTIO_MMIO_CONFIG = 0x100,
};

enum virtio_status {
	VIRTIO_STATUS_ACKNOWLEDGE = 1,
	VIRTIO_STATUS_DRIVER = 2,
	VIRTIO_STATUS_DRIVER_OK = 4,
	VIRTIO_STATUS_FEATURES_OK = 8,
	VIRTIO_STATUS_NEEDS_RESET = 64,
	VIRTIO_STATUS_FAILED = 128,
};

#define VIRTIO_INTERRUPT_USED 1u
#define VIRTIO_INTERRUPT_CONFIG 2u

#define VIRTIO_F_INDIRECT_DESC (1ull << 28)
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

enum virtio_device_id {
	VIRTIO_ID_BLK = 2,
	VIRTIO_ID_RNG = 4,
	VIRTIO_ID_BALLOON = 5,
	VIRTIO_ID_VSOCK = 19,
};

struct virtio_dev;

/* All run with dev->lock held. Any may be NULL. */
struct virtio_ops {
	const char *name; /* for the log */
	uint32_t device_id;
	uint64_t features; /* beside VERSION_1, EVENT_IDX and INDIRECT_DESC, which all
			      offer */
	unsigned n_queues;
	uint16_t queue_size[VIRTIO_QUEUES_MAX]; /* powers of two, <= VIRTQ_SIZE_MAX */
	const void *(*config)(struct virtio_dev *dev,
		uint32_t *ret_len); /* the device's configuration */
	/* The driver writes a 32-bit field of it. NULL: there is none to write. */
	void (*config_write)(struct virtio_dev *dev, uint32_t offset, uint32_t value);
	/* Chains may be there. One turn; true: it ended before the queue was empty. */
	bool (*notify)(struct virtio_dev *dev, unsigned queue);
	void (*start)(struct virtio_dev *dev); /* DRIVER_OK was set */
	/* The driver takes a queue out of use: what was taken of it is not to be given back. */
	void (*queue_off)(struct virtio_dev *dev, unsigned queue);
	void (*reset)(struct virtio_dev
			*dev); /* the driver resets; queues are already cleared */
};

struct virtio_dev {
	const struct virtio_ops *ops; /* borrowed, static */
	const struct guest_mem *mem;  /* borrowed */
	struct irq_line irq;
	pthread_mutex_t lock;
	const atomic_int *stop; /* borrowed, may be NULL; see the top */

	uint64_t driver_features;
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	uint32_t status;
	uint32_t interrupt_status;
	uint32_t config_generation;
	struct virtq queues[VIRTIO_QUEUES_MAX];
	struct log_limit log;
	_Atomic uint64_t
		doorbells; /* queue notifications so far; read without the lock */
	_Atomic uint64_t first_doorbell_ns; /* of this VM, not of its parent; 0: none yet
					     */
	bool resuming; /* the thread that resumes: an interrupt may have to be repeated */
};

void virtio_dev_init(struct virtio_dev *dev, const struct virtio_ops *ops,
	const struct guest_mem *mem, struct irq_line irq);
/* After fork(), in the child: a fresh mutex and the child's own interrupt line. */
void virtio_dev_fork_child(struct virtio_dev *dev, struct irq_line irq);
/* As virtio_dev_init() left it, but for its lock, its interrupt line and its counters of
 * doorbells; virtio_dev_load() comes next. The vCPUs are parked. */
void virtio_dev_forget(struct virtio_dev *dev);
/* vCPUs run again: raises a pending interrupt once more and gives every queue one turn. 1:
 * there is more to do, 0: there is not, -EBUSY: a vCPU is in the device, nothing was done.
 * Unless 0, virtio_dev_go_on() is due, which gives the next turn and answers likewise. One
 * thread calls the two. */
int virtio_dev_resume(struct virtio_dev *dev);
int virtio_dev_go_on(struct virtio_dev *dev);

/* What a restored VM needs of the device, into and out of an open section; loading comes
 * after virtio_dev_init(), checks everything, and leaves the device useless on failure
 * (-EBADMSG with a sentence). */
void virtio_dev_save(const struct virtio_dev *dev, struct blob_out *out);
int virtio_dev_load(struct virtio_dev *dev, struct blob_in *in, struct err *e);

/* A guest's access at offset (0..VIRTIO_MMIO_SIZE) of len bytes. Registers are 32 bits,
 * aligned; any other access there reads as zeroes and writes nothing. */
void virtio_mmio_read(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len);
void virtio_mmio_write(
	struct virtio_dev *dev, uint64_t offset, const void *data, unsigned len);

/* For devices and their helpers. */
void virtio_dev_lock(struct virtio_dev *dev);
void virtio_dev_unlock(struct virtio_dev *dev);
/* DRIVER_OK and not broken. */
bool virtio_dev_running(const struct virtio_dev *dev);
bool virtio_dev_stopping(const struct virtio_dev *dev);
/* One interrupt if the driver wants to hear about what was pushed on any queue. */
void virtio_dev_interrupt(struct virtio_dev *dev);
/* The configuration space changed: a running driver is told to read it again. Lock held.
 */
void virtio_dev_config_changed(struct virtio_dev *dev);
/* why is logged; a literal or a queue's `why`, never guest text. */
void virtio_dev_break(struct virtio_dev *dev, const char *why);

#endif
