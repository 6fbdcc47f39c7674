/*
 * One split virtqueue (virtio 1.2, 2.7), seen from the device: the single gate through
 * which a guest's addresses, lengths, indices and descriptor chains enter this process.
 *
 * A descriptor is copied once, the copy is checked, the copy is used. What the device
 * knows of the rings (how far it has read, how far it has written) it keeps here and
 * never reads back. A chain is at most the queue's size long, so a loop ends; an indirect
 * table is at most that long too and holds no other table; every buffer lies whole in
 * RAM, is not empty, and the writable ones come last. Anything else makes the call return
 * -EBADMSG with q->why saying what was wrong; the caller breaks the device
 * (virtio_dev_break).
 *
 * Not thread safe: the device's lock is held (vmm/virtio_mmio.h). Plain memory without
 * pointers into itself, so fork() copies a queue as it is.
 */
#ifndef PANDO_VMM_VIRTQUEUE_H
#define PANDO_VMM_VIRTQUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/wire/blob.h"
#include "vmm/memory.h"

#define VIRTQ_SIZE_MAX 256u

#define VIRTQ_DESC_F_NEXT 1u
#define VIRTQ_DESC_F_WRITE 2u
#define VIRTQ_DESC_F_INDIRECT 4u
#define VIRTQ_AVAIL_F_NO_INTERRUPT 1u

/* As it lies in guest memory (2.7.5). */
struct virtq_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};
_Static_assert(sizeof(struct virtq_desc) == 16, "virtio 1.2, 2.7.5");

struct virtq {
	/* Set by the driver through the transport. */
	uint16_t size; /* a power of two, 1..size_max, once ready */
	bool ready;
	uint64_t desc, avail, used; /* guest addresses */

	/* Set by the transport. */
	uint16_t size_max;
	bool event_idx, indirect; /* negotiated */

	/* Ours alone. */
	uint16_t next_avail; /* chains taken */
	uint16_t next_used;  /* chains given back */
	uint16_t signalled;  /* next_used when the driver was last interrupted */
	bool was_signalled;
	const char *why; /* weak: what was wrong, after -EBADMSG */
};

/* A reading position in the readable or the writable part of a chain. */
struct virtq_cursor {
	const struct iovec *iov; /* borrowed: the chain's */
	unsigned n;
	size_t skip; /* bytes of iov[0] already used */
	uint64_t left;
};

/* A checked chain. The iovecs point into guest RAM: their bytes change under our
 * hands, so copy out what is decided upon and let only bulk data flow through them. */
struct virtq_chain {
	uint16_t head;
	unsigned n_out, n_in; /* readable, then writable, in iov */
	uint64_t out_bytes,
		in_bytes; /* at most VIRTQ_SIZE_MAX * 4 GiB: cannot overflow */
	struct iovec iov[VIRTQ_SIZE_MAX];
};

/* Checks size, alignment and that all three rings lie in RAM; clears our own indices and
 * makes the queue ready. -EBADMSG with q->why. */
int virtq_enable(struct virtq *q, const struct guest_mem *m);

/* Back to the state after power-on; size_max stays. */
void virtq_reset(struct virtq *q);

/* All of it that a restored VM needs, into and out of an open section. What is loaded is
 * checked as virtq_enable() would; -EBADMSG with q->why. size_max, event_idx and indirect
 * are the caller's. */
void virtq_save(const struct virtq *q, struct blob_out *out);
int virtq_load(struct virtq *q, const struct guest_mem *m, struct blob_in *in);

/* The next chain: 1 taken, 0 none there, -EBADMSG. */
int virtq_pop(struct virtq *q, const struct guest_mem *m, struct virtq_chain *ret);
/* One that was taken before, by its head, as it lies there now: 0, -EBADMSG. */
int virtq_chain_at(struct virtq *q, const struct guest_mem *m, uint16_t head,
	struct virtq_chain *ret);
/* Puts the chains taken last back, n of them (nothing of them was pushed). */
void virtq_unpop(struct virtq *q, unsigned n);
/* Gives a chain back; written: bytes at the start of its writable part that are new. Of a queue
 * that is not ready nothing is touched: its rings are the driver's to move. */
int virtq_push(
	struct virtq *q, const struct guest_mem *m, uint16_t head, uint32_t written);

/* Whether the driver wants an interrupt for what was pushed since it last got one; the
 * answer yes counts as giving it. */
bool virtq_should_interrupt(struct virtq *q, const struct guest_mem *m);

/* Asks the driver to notify about the next chain it adds. 1: chains are there already,
 * which nobody will announce; 0; -EBADMSG. With EVENT_IDX, a driver that was not
 * asked does not notify; without, it always does. */
int virtq_arm_notify(struct virtq *q, const struct guest_mem *m);

/* The driver's index, i.e. chains it has supplied in all, modulo 65536; of a queue that is not
 * ready, those that were taken. -EBADMSG. */
int virtq_avail_index(struct virtq *q, const struct guest_mem *m);

struct virtq_cursor virtq_readable(const struct virtq_chain *c);
struct virtq_cursor virtq_writable(const struct virtq_chain *c);
/* Copies and advances; returns how much was there of len. */
size_t virtq_copy_from(struct virtq_cursor *c, void *dst, size_t len);
size_t virtq_copy_to(struct virtq_cursor *c, const void *src, size_t len);
size_t virtq_zero(struct virtq_cursor *c, size_t len);
size_t virtq_skip(struct virtq_cursor *c, size_t len);
/* Up to len bytes as at most max iovecs, advancing; *n is set; returns the bytes. */
size_t virtq_slice(
	struct virtq_cursor *c, size_t len, struct iovec *iov, unsigned max, unsigned *n);

#endif
