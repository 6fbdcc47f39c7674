#include "vmm/virtio_mmio.h"

#include <errno.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"

#define MAGIC 0x74726976u  /* "virt" */
#define VENDOR 0x444e4150u /* "PAND" */
#define TRANSPORT_FEATURES \
	(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

/* What a driver may set; NEEDS_RESET is ours. */
#define DRIVER_STATUS \
	(VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_DRIVER_OK | \
		VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_FAILED)

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	"guest and host are little-endian: values are used as they lie");

static uint64_t
offered(const struct virtio_dev *dev)
{
	return dev->ops->features | TRANSPORT_FEATURES;
}

void
virtio_dev_init(struct virtio_dev *dev, const struct virtio_ops *ops,
	const struct guest_mem *mem, struct irq_line irq)
{
	unsigned i;

	memset(dev, 0, sizeof(*dev));
	dev->ops = ops;
	dev->mem = mem;
	dev->irq = irq;
	dev->log.burst = 3;
	pthread_mutex_init(&dev->lock, NULL);
	for (i = 0; i < ops->n_queues; i++) {
		dev->queues[i].size_max = ops->queue_size[i];
		virtq_reset(&dev->queues[i]);
	}
}

void
virtio_dev_fork_child(struct virtio_dev *dev, struct irq_line irq)
{
	pthread_mutex_init(&dev->lock, NULL);
	dev->irq = irq;
	atomic_store(&dev->first_doorbell_ns, 0);
}

void
virtio_dev_lock(struct virtio_dev *dev)
{
	pthread_mutex_lock(&dev->lock);
}

void
virtio_dev_unlock(struct virtio_dev *dev)
{
	pthread_mutex_unlock(&dev->lock);
}

bool
virtio_dev_running(const struct virtio_dev *dev)
{
	return (dev->status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
	       VIRTIO_STATUS_DRIVER_OK;
}

bool
virtio_dev_stopping(const struct virtio_dev *dev)
{
	return dev->stop && atomic_load_explicit(dev->stop, memory_order_relaxed);
}

static void
raise_interrupt(struct virtio_dev *dev, uint32_t bit)
{
	dev->interrupt_status |= bit;
	irq_raise(&dev->irq);
}

void
virtio_dev_interrupt(struct virtio_dev *dev)
{
	bool wanted = false;
	unsigned i;

	for (i = 0; i < dev->ops->n_queues; i++)
		wanted |= virtq_should_interrupt(&dev->queues[i], dev->mem);
	if (wanted)
		raise_interrupt(dev, VIRTIO_INTERRUPT_USED);
}

void
virtio_dev_config_changed(struct virtio_dev *dev)
{
	dev->config_generation++;
	if (dev->status & VIRTIO_STATUS_DRIVER_OK)
		raise_interrupt(dev, VIRTIO_INTERRUPT_CONFIG);
}

void
virtio_dev_break(struct virtio_dev *dev, const char *why)
{
	if (dev->status & VIRTIO_STATUS_NEEDS_RESET)
		return;
	dev->status |= VIRTIO_STATUS_NEEDS_RESET;
	if (log_allowed(&dev->log))
		log_warn(
			"%s: the guest's driver broke its device: %s; it works again after the driver resets it",
			dev->ops->name, why ? why : "no reason");
	if (dev->status & VIRTIO_STATUS_DRIVER_OK)
		raise_interrupt(dev, VIRTIO_INTERRUPT_CONFIG);
}

static bool
notify(struct virtio_dev *dev, unsigned i)
{
	return virtio_dev_running(dev) && i < dev->ops->n_queues &&
	       dev->queues[i].ready && dev->ops->notify && dev->ops->notify(dev, i);
}

int
virtio_dev_go_on(struct virtio_dev *dev)
{
	bool more = false;
	unsigned i;

	/* A guest can keep one vCPU in here for as long as it likes. */
	if (pthread_mutex_trylock(&dev->lock))
		return -EBUSY;
	if (dev->resuming && dev->interrupt_status)
		irq_raise(&dev->irq);
	dev->resuming = false;
	for (i = 0; i < dev->ops->n_queues; i++)
		more |= notify(dev, i);
	virtio_dev_unlock(dev);
	return more;
}

int
virtio_dev_resume(struct virtio_dev *dev)
{
	dev->resuming = true;
	return virtio_dev_go_on(dev);
}

/* A vCPU's doorbell: that vCPU serves the queue until it is empty. The lock is free
 * between two turns. */
static void
ring_doorbell(struct virtio_dev *dev, uint32_t queue)
{
	bool more;

	if (!atomic_load_explicit(&dev->first_doorbell_ns, memory_order_relaxed))
		atomic_store(&dev->first_doorbell_ns, io_now_ns());
	atomic_fetch_add_explicit(&dev->doorbells, 1, memory_order_relaxed);
	do {
		virtio_dev_lock(dev);
		more = notify(dev, queue);
		virtio_dev_unlock(dev);
	} while (more && !virtio_dev_stopping(dev));
}

static void
reset(struct virtio_dev *dev)
{
	unsigned i;

	dev->status = 0;
	dev->interrupt_status = 0;
	dev->driver_features = 0;
	dev->device_features_sel = dev->driver_features_sel = dev->queue_sel = 0;
	for (i = 0; i < dev->ops->n_queues; i++)
		virtq_reset(&dev->queues[i]);
	if (dev->ops->reset)
		dev->ops->reset(dev);
}

void
virtio_dev_forget(struct virtio_dev *dev)
{
	virtio_dev_lock(dev);
	dev->status = dev->interrupt_status = dev->config_generation = 0;
	dev->driver_features = 0;
	dev->device_features_sel = dev->driver_features_sel = dev->queue_sel = 0;
	for (unsigned i = 0; i < dev->ops->n_queues; i++)
		virtq_reset(&dev->queues[i]);
	dev->resuming = false;
	atomic_store(&dev->first_doorbell_ns, 0);
	virtio_dev_unlock(dev);
}

/* The rings' form follows from the features. */
static void
apply_features(struct virtio_dev *dev)
{
	for (unsigned i = 0; i < dev->ops->n_queues; i++) {
		dev->queues[i].event_idx = dev->driver_features & VIRTIO_F_EVENT_IDX;
		dev->queues[i].indirect = dev->driver_features & VIRTIO_F_INDIRECT_DESC;
	}
}

static bool
acceptable_features(const struct virtio_dev *dev)
{
	return (dev->driver_features & VIRTIO_F_VERSION_1) &&
	       !(dev->driver_features & ~offered(dev));
}

static void
write_status(struct virtio_dev *dev, uint32_t value)
{
	uint32_t added;

	if (value == 0) {
		reset(dev);
		return;
	}
	/* Bits are only ever added (2.1.1); NEEDS_RESET is ours. */
	added = value & DRIVER_STATUS & ~dev->status;
	if (added & VIRTIO_STATUS_FEATURES_OK) {
		/* Not accepted: the bit stays clear, and the driver sees so (3.1.1, step
		 * 6). */
		if (!acceptable_features(dev))
			added &= ~(uint32_t)VIRTIO_STATUS_FEATURES_OK;
	}
	/* No driver without agreed features. */
	if (!((dev->status | added) & VIRTIO_STATUS_FEATURES_OK))
		added &= ~(uint32_t)VIRTIO_STATUS_DRIVER_OK;
	dev->status |= added;
	if (added & VIRTIO_STATUS_FEATURES_OK)
		apply_features(dev);
	if (added & VIRTIO_STATUS_DRIVER_OK) {
		if (dev->status & VIRTIO_STATUS_NEEDS_RESET)
			raise_interrupt(dev, VIRTIO_INTERRUPT_CONFIG);
		else if (dev->ops->start)
			dev->ops->start(dev);
	}
}

static struct virtq *
selected(struct virtio_dev *dev)
{
	return dev->queue_sel < dev->ops->n_queues ? &dev->queues[dev->queue_sel] : NULL;
}

static void
set_half(uint64_t *value, unsigned half, uint32_t v)
{
	*value = half ? (*value & 0xffffffffu) | (uint64_t)v << 32
		      : (*value & ~0xffffffffull) | v;
}

static void
write_queue(struct virtio_dev *dev, uint64_t offset, uint32_t value)
{
	struct virtq *q = selected(dev);

	/* Features come before queues (3.1.1): the ring's form depends on them. */
	if (!q || !(dev->status & VIRTIO_STATUS_FEATURES_OK))
		return;
	if (offset == VIRTIO_MMIO_QUEUE_READY) {
		/* 0 takes it out of use, read back as such (4.2.2.2). */
		if (value == 0) {
			if (q->ready && dev->ops->queue_off)
				dev->ops->queue_off(dev, dev->queue_sel);
			q->ready = false;
		} else if (value == 1 && !q->ready && virtq_enable(q, dev->mem)) {
			virtio_dev_break(dev, q->why);
		}
		return;
	}
	if (q->ready)
		return;
	switch (offset) {
	case VIRTIO_MMIO_QUEUE_SIZE:
		q->size = value <= VIRTQ_SIZE_MAX ? (uint16_t)value : 0;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_half(&q->desc, offset == VIRTIO_MMIO_QUEUE_DESC_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_DRIVER_LOW:
	case VIRTIO_MMIO_QUEUE_DRIVER_HIGH:
		set_half(&q->avail, offset == VIRTIO_MMIO_QUEUE_DRIVER_HIGH, value);
		break;
	case VIRTIO_MMIO_QUEUE_DEVICE_LOW:
	case VIRTIO_MMIO_QUEUE_DEVICE_HIGH:
		set_half(&q->used, offset == VIRTIO_MMIO_QUEUE_DEVICE_HIGH, value);
		break;
	}
}

static void
write_register(struct virtio_dev *dev, uint64_t offset, uint32_t value)
{
	switch (offset) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		dev->device_features_sel = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		dev->driver_features_sel = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		if (!(dev->status & VIRTIO_STATUS_FEATURES_OK) &&
			dev->driver_features_sel < 2)
			set_half(&dev->driver_features, dev->driver_features_sel, value);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		dev->queue_sel = value;
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		dev->interrupt_status &= ~value;
		break;
	case VIRTIO_MMIO_STATUS:
		write_status(dev, value);
		break;
	default:
		write_queue(dev, offset, value);
	}
}

static uint32_t
read_register(struct virtio_dev *dev, uint64_t offset)
{
	struct virtq *q = selected(dev);

	switch (offset) {
	case VIRTIO_MMIO_MAGIC:
		return MAGIC;
	case VIRTIO_MMIO_VERSION:
		return 2;
	case VIRTIO_MMIO_DEVICE_ID:
		return dev->ops->device_id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		if (dev->device_features_sel > 1)
			return 0;
		return (uint32_t)(offered(dev) >> (32 * dev->device_features_sel));
	case VIRTIO_MMIO_QUEUE_SIZE_MAX:
		return q ? q->size_max : 0;
	case VIRTIO_MMIO_QUEUE_READY:
		return q ? q->ready : 0;
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return dev->interrupt_status;
	case VIRTIO_MMIO_STATUS:
		return dev->status;
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return dev->config_generation;
	default:
		/* No shared memory regions: length and base read as all ones (4.2.2). */
		if (offset >= VIRTIO_MMIO_SHM_LEN_LOW &&
			offset <= VIRTIO_MMIO_SHM_BASE_HIGH)
			return 0xffffffffu;
		return 0;
	}
}

static void
read_config(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len)
{
	uint32_t size = 0, n;
	const uint8_t *config =
		dev->ops->config ? (const uint8_t *)dev->ops->config(dev, &size) : NULL;

	if (!config || offset >= size)
		return;
	n = size - (uint32_t)offset;
	memcpy(data, config + offset, len < n ? len : n);
}

void
virtio_mmio_read(struct virtio_dev *dev, uint64_t offset, void *data, unsigned len)
{
	uint32_t value;

	memset(data, 0, len);
	virtio_dev_lock(dev);
	if (offset >= VIRTIO_MMIO_CONFIG) {
		read_config(dev, offset - VIRTIO_MMIO_CONFIG, data, len);
	} else if (len == 4 && offset % 4 == 0) {
		value = read_register(dev, offset);
		memcpy(data, &value, sizeof(value));
	}
	virtio_dev_unlock(dev);
}

void
virtio_mmio_write(struct virtio_dev *dev, uint64_t offset, const void *data, unsigned len)
{
	uint32_t value;

	/* No device of ours has a writable field of another size. */
	if (len != 4 || offset % 4 || offset >= VIRTIO_MMIO_SIZE)
		return;
	memcpy(&value, data, sizeof(value));
	if (offset == VIRTIO_MMIO_QUEUE_NOTIFY) {
		ring_doorbell(dev, value);
		return;
	}
	virtio_dev_lock(dev);
	if (offset < VIRTIO_MMIO_CONFIG)
		write_register(dev, offset, value);
	else if (dev->ops->config_write)
		dev->ops->config_write(dev, (uint32_t)(offset - VIRTIO_MMIO_CONFIG), value);
	virtio_dev_unlock(dev);
}

void
virtio_dev_save(const struct virtio_dev *dev, struct blob_out *out)
{
	blob_put_u32(out, dev->ops->device_id);
	blob_put_u32(out, dev->ops->n_queues);
	blob_put_u64(out, dev->driver_features);
	blob_put_u32(out, dev->device_features_sel);
	blob_put_u32(out, dev->driver_features_sel);
	blob_put_u32(out, dev->queue_sel);
	blob_put_u32(out, dev->status);
	blob_put_u32(out, dev->interrupt_status);
	blob_put_u32(out, dev->config_generation);
	for (unsigned i = 0; i < dev->ops->n_queues; i++)
		virtq_save(&dev->queues[i], out);
}

int
virtio_dev_load(struct virtio_dev *dev, struct blob_in *in, struct err *e)
{
	uint32_t device_id = blob_get_u32(in), n_queues = blob_get_u32(in);

	if (device_id != dev->ops->device_id || n_queues != dev->ops->n_queues)
		return err_set(e, -EBADMSG,
			"the state of the %s is of another kind of device",
			dev->ops->name);
	dev->driver_features = blob_get_u64(in);
	dev->device_features_sel = blob_get_u32(in);
	dev->driver_features_sel = blob_get_u32(in);
	dev->queue_sel = blob_get_u32(in);
	dev->status = blob_get_u32(in);
	dev->interrupt_status = blob_get_u32(in);
	dev->config_generation = blob_get_u32(in);
	if ((dev->status & ~(DRIVER_STATUS | VIRTIO_STATUS_NEEDS_RESET)) ||
		(dev->interrupt_status &
			~(VIRTIO_INTERRUPT_USED | VIRTIO_INTERRUPT_CONFIG)))
		return err_set(e, -EBADMSG,
			"the state of the %s has a status that cannot be",
			dev->ops->name);
	if (dev->status & VIRTIO_STATUS_FEATURES_OK) {
		if (!acceptable_features(dev))
			return err_set(e, -EBADMSG,
				"the state of the %s uses features 0x%llx, of which this pando-vmm offers 0x%llx",
				dev->ops->name, (unsigned long long)dev->driver_features,
				(unsigned long long)offered(dev));
		apply_features(dev);
	} else if (dev->status & VIRTIO_STATUS_DRIVER_OK) {
		return err_set(e, -EBADMSG,
			"the state of the %s runs without agreed features",
			dev->ops->name);
	}
	for (unsigned i = 0; i < n_queues; i++) {
		struct virtq *q = &dev->queues[i];

		if (virtq_load(q, dev->mem, in))
			return err_set(e, -EBADMSG, "the state of the %s, queue %u: %s",
				dev->ops->name, i, q->why);
		if (q->ready && !(dev->status & VIRTIO_STATUS_FEATURES_OK))
			return err_set(e, -EBADMSG,
				"the state of the %s, queue %u: ready without agreed features",
				dev->ops->name, i);
	}
	return 0;
}
