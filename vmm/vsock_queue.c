/*
 * vsock: the guest's queues, all three together, and the transport reset in the event queue.
 */
#include <errno.h>
#include <unistd.h>

#include "vmm/vsock_conn.h"

#define EVENT_RESET 0u /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */

/* After a fork: the driver hears of it first, and no packet comes before it has
 * (5.10.6.7: it closes every connection it has when it reads the event, a new one too).
 * It has read the event when it gives the buffer back. 0 or -EBADMSG. */
static int
advance_reset(struct vsock *vs)
{
	struct virtio_dev *dev = &vs->dev;
	struct virtq *q = &dev->queues[VSOCK_EVENT];
	const uint32_t event = EVENT_RESET;
	struct virtq_cursor in;
	int r;

	if (vs->reset_state == VSOCK_RESET_DUE) {
		r = virtq_pop(q, dev->mem, &vs->chain);
		if (r == 0) {
			r = virtq_arm_notify(q, dev->mem);
			if (r > 0)
				r = virtq_pop(q, dev->mem, &vs->chain);
		}
		if (r <= 0)
			return r;
		in = virtq_writable(&vs->chain);
		if (virtq_copy_to(&in, &event, sizeof(event)) != sizeof(event)) {
			q->why = "an event buffer is too small";
			return -EBADMSG;
		}
		r = virtq_avail_index(q, dev->mem);
		if (r < 0)
			return r;
		vs->reset_avail = (uint16_t)r;
		if (virtq_push(q, dev->mem, vs->chain.head, sizeof(event)))
			return -EBADMSG;
		vs->reset_state = VSOCK_RESET_SENT;
		vsock_set_deadline(vs, &vs->reset_deadline_ns, VSOCK_RESET_MS);
	}
	if (vs->reset_state == VSOCK_RESET_SENT) {
		r = virtq_avail_index(q, dev->mem);
		if (r < 0)
			return r;
		if ((uint16_t)r != vs->reset_avail)
			vs->reset_state = VSOCK_RUNNING;
	}
	return 0;
}

/* The wish to be told when the event buffer comes back: at the index after the ones that
 * lie there, which virtq_arm_notify cannot name; so the buffers are taken for a moment.
 */
static int
arm_event_return(struct vsock *vs)
{
	struct virtq *q = &vs->dev.queues[VSOCK_EVENT];
	unsigned lying = (uint16_t)(vs->reset_avail - q->next_avail);
	int r;

	q->next_avail = vs->reset_avail;
	r = virtq_arm_notify(q, vs->dev.mem);
	virtq_unpop(q, lying);
	return r;
}

static int
pump_queues(struct vsock *vs)
{
	unsigned tx_budget = VSOCK_BATCH, rx_budget = VSOCK_BATCH;
	int r, tx, rx;

	do {
		if (vs->reset_state != VSOCK_RUNNING) {
			r = advance_reset(vs);
			if (r == 0 && vs->reset_state == VSOCK_RESET_SENT) {
				r = arm_event_return(vs);
				if (r > 0)
					r = advance_reset(vs);
			}
			if (r < 0)
				return r;
		}
		tx = vsock_drain_tx(vs, &tx_budget);
		if (tx < 0)
			return tx;
		rx = vs->reset_state == VSOCK_RUNNING ? vsock_fill_rx(vs, &rx_budget) : 0;
		if (rx < 0)
			return rx;
	} while ((tx || rx) && tx_budget && rx_budget && !virtio_dev_stopping(&vs->dev));
	return !tx_budget || !rx_budget;
}

void
vsock_kick_main_thread(struct vsock *vs)
{
	const uint64_t one = 1;

	if (vs->kicked)
		return;
	vs->kicked = true;
	(void)!write(vs->kick_fd, &one, sizeof(one));
}

/* Both directions until nothing moves, then one interrupt. Lock held. */
void
vsock_pump(struct vsock *vs)
{
	const char *why = NULL;
	unsigned i;
	int r;

	do {
		if (!virtio_dev_running(&vs->dev))
			return;
		r = pump_queues(vs);
		if (r < 0) {
			for (i = 0; i < VIRTIO_QUEUES_MAX && !why; i++)
				why = vs->dev.queues[i].why;
			virtio_dev_break(&vs->dev, why);
			vsock_conn_drop_all(vs);
			return;
		}
		/* A guest that never stops sending must not keep the main thread from its
		 * other work. */
		if (r > 0 && vs->kick_fd >= 0) {
			vsock_kick_main_thread(vs);
			r = 0;
		}
	} while (r > 0 && !virtio_dev_stopping(&vs->dev));
	virtio_dev_interrupt(&vs->dev);
}
