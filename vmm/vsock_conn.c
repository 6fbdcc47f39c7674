#include "vmm/vsock_conn.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"

/* A ring that held more is given back when its connection ends. */
#define RING_KEEP (16u << 10)

/*
 * A host port tells its connection: bit 30, 20 bits of the slot's generation, 10 bits of
 * slot. All connections are the host's, so no other lookup is needed, and a packet for
 * one that has ended finds another generation.
 */
#define PORT_BASE 0x40000000u
#define SLOT_BITS 10
#define SLOT_MASK ((1u << SLOT_BITS) - 1)
_Static_assert(VSOCK_CONNS_MAX == 1 << SLOT_BITS, "slots fill their bits");

static unsigned
slot_of(const struct vsock *vs, const struct vsock_conn *c)
{
	return (unsigned)(c - vs->conns);
}

uint8_t *
vsock_conn_ring(const struct vsock *vs, const struct vsock_conn *c)
{
	return vs->rings + (size_t)slot_of(vs, c) * VSOCK_BUF_BYTES;
}

/* The loop. */

uint64_t
vsock_conn_token(const struct vsock *vs, const struct vsock_conn *c)
{
	return VSOCK_TOKEN | (uint64_t)(c->generation & 0x7fffffffu) << 16 |
	       slot_of(vs, c);
}

void
vsock_conn_leave_loop(struct vsock *vs, struct vsock_conn *c)
{
	if (c->events != VSOCK_NO_EVENTS && vs->has_loop)
		vs->loop.del(vs->loop.ctx, c->fd);
	c->events = VSOCK_NO_EVENTS;
}

static uint32_t
wanted_events(const struct vsock_conn *c)
{
	uint32_t events = 0;

	switch (c->state) {
	case CONN_LINE:
		return EPOLLIN;
	case CONN_OPEN:
		if (!c->readable && !(c->told & VSOCK_SHUTDOWN_SEND) &&
			!(c->heard & VSOCK_SHUTDOWN_RCV))
			events |= EPOLLIN;
		__attribute__((fallthrough));
	case CONN_DRAIN:
		if (c->ring_len)
			events |= EPOLLOUT;
	}
	return events;
}

/* A hang-up is reported whatever is asked for, so once seen the descriptor leaves
 * the loop, or the loop would spin. */
void
vsock_conn_update_events(struct vsock *vs, struct vsock_conn *c)
{
	uint32_t events;

	if (c->state == CONN_FREE || c->state == CONN_RST || c->hung_up || !vs->has_loop)
		return;
	events = wanted_events(c);
	if (events == c->events)
		return;
	if (c->events == VSOCK_NO_EVENTS ? vs->loop.add(vs->loop.ctx, c->fd, events,
						   vsock_conn_token(vs, c))
					 : vs->loop.mod(vs->loop.ctx, c->fd, events,
						   vsock_conn_token(vs, c)))
		return;
	c->events = events;
}

/* Lists and slots. */

void
vsock_set_deadline(struct vsock *vs, uint64_t *deadline_ns, unsigned ms)
{
	*deadline_ns = io_now_ns() + ms * VSOCK_NS_PER_MS;
	if (vs->deadline_ns == 0 || *deadline_ns < vs->deadline_ns)
		vs->deadline_ns = *deadline_ns;
}

void
vsock_conn_make_ready(struct vsock *vs, struct vsock_conn *c)
{
	const uint16_t link = (uint16_t)(slot_of(vs, c) + 1);

	if (c->queued)
		return;
	c->queued = true;
	c->next = 0;
	if (vs->ready_tail)
		vs->conns[vs->ready_tail - 1].next = link;
	else
		vs->ready_head = link;
	vs->ready_tail = link;
}

struct vsock_conn *
vsock_conn_take_ready(struct vsock *vs)
{
	struct vsock_conn *c = &vs->conns[vs->ready_head - 1];

	vs->ready_head = c->next;
	if (!vs->ready_head)
		vs->ready_tail = 0;
	c->queued = false;
	return c;
}

void
vsock_conn_not_ready(struct vsock *vs, struct vsock_conn *c)
{
	const uint16_t link = (uint16_t)(slot_of(vs, c) + 1);
	uint16_t i, before = 0;

	if (!c->queued)
		return;
	c->queued = false;
	for (i = vs->ready_head; i != link; i = vs->conns[i - 1].next)
		before = i;
	if (before)
		vs->conns[before - 1].next = c->next;
	else
		vs->ready_head = c->next;
	if (vs->ready_tail == link)
		vs->ready_tail = before;
}

struct vsock_conn *
vsock_conn_new(struct vsock *vs, int fd)
{
	struct vsock_conn *c;
	uint32_t generation;

	if (vs->free_head) {
		c = &vs->conns[vs->free_head - 1];
		vs->free_head = c->next;
	} else if (vs->n_touched < VSOCK_CONNS_MAX) {
		c = &vs->conns[vs->n_touched++];
	} else {
		return NULL;
	}
	generation = c->generation + 1;
	*c = (struct vsock_conn){.state = CONN_LINE,
		.fd = fd,
		.events = VSOCK_NO_EVENTS,
		.generation = generation};
	c->host_port = PORT_BASE | (generation & 0xfffff) << SLOT_BITS | slot_of(vs, c);
	atomic_fetch_add_explicit(&vs->connections, 1, memory_order_relaxed);
	return c;
}

struct vsock_conn *
vsock_conn_find(const struct vsock *vs, uint32_t host_port, uint32_t guest_port)
{
	struct vsock_conn *c = &vs->conns[host_port & SLOT_MASK];

	if ((host_port & SLOT_MASK) >= vs->n_touched || c->host_port != host_port ||
		c->guest_port != guest_port || !c->requested)
		return NULL;
	if (c->state != CONN_CONNECTING && c->state != CONN_OPEN && c->state != CONN_RST)
		return NULL;
	return c;
}

bool
vsock_conn_may_read(const struct vsock_conn *c)
{
	return c->state == CONN_OPEN && c->readable && !(c->told & VSOCK_SHUTDOWN_SEND) &&
	       !(c->heard & VSOCK_SHUTDOWN_RCV);
}

static void
close_host_side(struct vsock *vs, struct vsock_conn *c)
{
	if (c->fd < 0)
		return;
	vsock_conn_leave_loop(vs, c);
	close(c->fd);
	c->fd = -1;
	if (c->ring_most > RING_KEEP)
		(void)madvise(vsock_conn_ring(vs, c), VSOCK_BUF_BYTES, MADV_DONTNEED);
	c->ring_len = c->ring_most = 0;
}

void
vsock_conn_free(struct vsock *vs, struct vsock_conn *c)
{
	close_host_side(vs, c);
	vsock_conn_not_ready(vs, c);
	c->state = CONN_FREE;
	c->deadline_ns = 0;
	c->next = vs->free_head;
	vs->free_head = (uint16_t)(slot_of(vs, c) + 1);
	atomic_fetch_sub_explicit(&vs->connections, 1, memory_order_relaxed);
}

/* Ends it at once for the client, and for the guest as soon as it has a buffer for the
 * RST. */
void
vsock_conn_kill(struct vsock *vs, struct vsock_conn *c)
{
	if (c->state == CONN_LINE || c->state == CONN_DRAIN || !c->requested) {
		vsock_conn_free(vs, c);
		return;
	}
	close_host_side(vs, c);
	c->state = CONN_RST;
	c->deadline_ns = 0;
	vsock_conn_make_ready(vs, c);
}

void
vsock_conn_answer_error(const struct vsock_conn *c, const char *sentence)
{
	char line[128];
	int n = snprintf(line, sizeof(line), "ERR %s\n", sentence);

	/* A fresh socket has room for a line; if not, the close says enough. */
	(void)!send(c->fd, line, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void
vsock_conn_refuse(struct vsock *vs, struct vsock_conn *c, const char *sentence)
{
	vsock_conn_answer_error(c, sentence);
	vsock_conn_kill(vs, c);
}

/* The guest will hear no more than this: flags accumulate, each is told once. */
void
vsock_conn_tell_shutdown(struct vsock *vs, struct vsock_conn *c, uint8_t flags)
{
	if ((c->told | flags) == c->told)
		return;
	c->told |= flags;
	c->due |= DUE_SHUTDOWN;
	if (c->told == (VSOCK_SHUTDOWN_RCV | VSOCK_SHUTDOWN_SEND))
		vsock_set_deadline(vs, &c->deadline_ns, VSOCK_LINGER_MS);
	vsock_conn_make_ready(vs, c);
}

void
vsock_conn_drop_all(struct vsock *vs)
{
	unsigned i;

	for (i = 0; i < vs->n_touched; i++)
		if (vs->conns[i].state != CONN_FREE)
			vsock_conn_free(vs, &vs->conns[i]);
	vs->rst_first = vs->rst_count = 0;
}
