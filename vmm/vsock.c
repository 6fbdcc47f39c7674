#include "vmm/vsock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/io.h"

#define QUEUE_SIZE 128
#define IOVS 64
#define PACKET_MAX (64u << 10)
#define RING_KEEP \
	(16u << 10) /* a ring that held more is given back when its connection ends */
#define LISTEN_RETRY_MS 100
#define NO_EVENTS UINT32_MAX /* not in the loop */
#define NS_PER_MS 1000000ull

/*
 * A host port tells its connection: bit 30, 20 bits of the slot's generation, 10 bits of
 * slot. All connections are the host's, so no other lookup is needed, and a packet for
 * one that has ended finds another generation.
 */
#define PORT_BASE 0x40000000u
#define SLOT_BITS 10
#define SLOT_MASK ((1u << SLOT_BITS) - 1)
_Static_assert(VSOCK_CONNS_MAX == 1 << SLOT_BITS, "slots fill their bits");
#define LISTEN_SLOT 0xffffu
#define EVENT_RESET 0u /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */

enum conn_state {
	CONN_FREE,
	CONN_LINE,	 /* the client's CONNECT line is not complete */
	CONN_CONNECTING, /* REQUEST due or sent */
	CONN_OPEN,
	CONN_DRAIN, /* over for the guest; what it sent before goes to a slow client */
	CONN_RST,   /* over for the client; RST is due to the guest */
};

enum { DUE_REQUEST = 1, DUE_CREDIT_UPDATE = 2, DUE_CREDIT_REQUEST = 4, DUE_SHUTDOWN = 8 };

struct vsock_conn {
	uint8_t state;	   /* enum conn_state */
	uint8_t due;	   /* DUE_*: control packets for the guest */
	uint8_t told;	   /* VSOCK_SHUTDOWN_*: what we told the guest, or is due */
	uint8_t heard;	   /* VSOCK_SHUTDOWN_*: what the guest told us */
	bool requested;	   /* REQUEST was sent */
	bool readable;	   /* the socket may hold data: it is not polled for any */
	bool hung_up;	   /* the client closed both ways: out of the loop for good */
	bool asked_credit; /* CREDIT_REQUEST sent, no credit came since */
	bool queued;	   /* on the ready list */
	uint16_t next;	   /* free or ready list */
	int fd;		   /* owned */
	uint32_t events;   /* registered with the loop; NO_EVENTS: not */
	uint32_t generation;
	uint32_t host_port, guest_port;
	uint32_t sent, peer_buf_alloc, peer_fwd_cnt; /* host -> guest, modulo 2^32 */
	uint32_t fwd_cnt,
		fwd_told; /* guest -> host: passed on; what the guest knows of it */
	uint32_t ring_first, ring_len, ring_most;
	uint8_t line_len;
	char line[VSOCK_LINE_MAX];
	uint64_t deadline_ns; /* 0: none */
};

static unsigned
slot_of(const struct vsock *vs, const struct vsock_conn *c)
{
	return (unsigned)(c - vs->conns);
}

static uint8_t *
ring_of(const struct vsock *vs, const struct vsock_conn *c)
{
	return vs->rings + (size_t)slot_of(vs, c) * VSOCK_BUF_BYTES;
}

/* The loop. */

static uint64_t
token_of(const struct vsock *vs, const struct vsock_conn *c)
{
	return VSOCK_TOKEN | (uint64_t)(c->generation & 0x7fffffffu) << 16 |
	       slot_of(vs, c);
}

static void
leave_loop(struct vsock *vs, struct vsock_conn *c)
{
	if (c->events != NO_EVENTS && vs->has_loop)
		vs->loop.del(vs->loop.ctx, c->fd);
	c->events = NO_EVENTS;
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
static void
update_events(struct vsock *vs, struct vsock_conn *c)
{
	uint32_t events;

	if (c->state == CONN_FREE || c->state == CONN_RST || c->hung_up || !vs->has_loop)
		return;
	events = wanted_events(c);
	if (events == c->events)
		return;
	if (c->events == NO_EVENTS
			? vs->loop.add(vs->loop.ctx, c->fd, events, token_of(vs, c))
			: vs->loop.mod(vs->loop.ctx, c->fd, events, token_of(vs, c)))
		return;
	c->events = events;
}

static void
listen_again(struct vsock *vs)
{
	if (vs->listen_fd >= 0 && vs->has_loop && !vs->listening)
		vs->listening = !vs->loop.add(
			vs->loop.ctx, vs->listen_fd, EPOLLIN, VSOCK_TOKEN | LISTEN_SLOT);
}

/* Lists and slots. */

static void
set_deadline(struct vsock *vs, uint64_t *deadline_ns, unsigned ms)
{
	*deadline_ns = io_now_ns() + ms * NS_PER_MS;
	if (vs->deadline_ns == 0 || *deadline_ns < vs->deadline_ns)
		vs->deadline_ns = *deadline_ns;
}

static void
make_ready(struct vsock *vs, struct vsock_conn *c)
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

static struct vsock_conn *
take_ready(struct vsock *vs)
{
	struct vsock_conn *c = &vs->conns[vs->ready_head - 1];

	vs->ready_head = c->next;
	if (!vs->ready_head)
		vs->ready_tail = 0;
	c->queued = false;
	return c;
}

static void
remove_ready(struct vsock *vs, const struct vsock_conn *c)
{
	const uint16_t link = (uint16_t)(slot_of(vs, c) + 1);
	uint16_t i, before = 0;

	for (i = vs->ready_head; i != link; i = vs->conns[i - 1].next)
		before = i;
	if (before)
		vs->conns[before - 1].next = c->next;
	else
		vs->ready_head = c->next;
	if (vs->ready_tail == link)
		vs->ready_tail = before;
}

static struct vsock_conn *
new_conn(struct vsock *vs, int fd)
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
		.events = NO_EVENTS,
		.generation = generation};
	c->host_port = PORT_BASE | (generation & 0xfffff) << SLOT_BITS | slot_of(vs, c);
	atomic_fetch_add_explicit(&vs->connections, 1, memory_order_relaxed);
	return c;
}

static void
close_host_side(struct vsock *vs, struct vsock_conn *c)
{
	if (c->fd < 0)
		return;
	leave_loop(vs, c);
	close(c->fd);
	c->fd = -1;
	if (c->ring_most > RING_KEEP)
		(void)madvise(ring_of(vs, c), VSOCK_BUF_BYTES, MADV_DONTNEED);
	c->ring_len = c->ring_most = 0;
}

static void
free_conn(struct vsock *vs, struct vsock_conn *c)
{
	close_host_side(vs, c);
	if (c->queued)
		remove_ready(vs, c);
	c->queued = false;
	c->state = CONN_FREE;
	c->deadline_ns = 0;
	c->next = vs->free_head;
	vs->free_head = (uint16_t)(slot_of(vs, c) + 1);
	atomic_fetch_sub_explicit(&vs->connections, 1, memory_order_relaxed);
}

/* Ends it at once for the client, and for the guest as soon as it has a buffer for the
 * RST. */
static void
kill_conn(struct vsock *vs, struct vsock_conn *c)
{
	if (c->state == CONN_LINE || c->state == CONN_DRAIN || !c->requested) {
		free_conn(vs, c);
		return;
	}
	close_host_side(vs, c);
	c->state = CONN_RST;
	c->deadline_ns = 0;
	make_ready(vs, c);
}

static void
answer_error(const struct vsock_conn *c, const char *sentence)
{
	char line[128];
	int n = snprintf(line, sizeof(line), "ERR %s\n", sentence);

	/* A fresh socket has room for a line; if not, the close says enough. */
	(void)!send(c->fd, line, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void
refuse(struct vsock *vs, struct vsock_conn *c, const char *sentence)
{
	answer_error(c, sentence);
	kill_conn(vs, c);
}

/* The guest will hear no more than this: flags accumulate, each is told once. */
static void
tell_shutdown(struct vsock *vs, struct vsock_conn *c, uint8_t flags)
{
	if ((c->told | flags) == c->told)
		return;
	c->told |= flags;
	c->due |= DUE_SHUTDOWN;
	if (c->told == (VSOCK_SHUTDOWN_RCV | VSOCK_SHUTDOWN_SEND))
		set_deadline(vs, &c->deadline_ns, VSOCK_LINGER_MS);
	make_ready(vs, c);
}

/* Guest to client. */

static void
credit_changed(struct vsock *vs, struct vsock_conn *c)
{
	const uint32_t news = c->fwd_cnt - c->fwd_told;

	/* The guest counts all it sent since fwd_told as unread. It is told when it
	 * believes that half of its credit is used up, in steps worth a packet. */
	if (c->state == CONN_OPEN && news && news + c->ring_len >= VSOCK_BUF_BYTES / 2 &&
		(news >= VSOCK_BUF_BYTES / 4 || c->ring_len == 0)) {
		c->due |= DUE_CREDIT_UPDATE;
		make_ready(vs, c);
	}
}

/* The client reads no more: what the guest sends is counted and dropped. */
static void
client_stopped_reading(struct vsock *vs, struct vsock_conn *c)
{
	c->fwd_cnt += c->ring_len;
	c->ring_len = c->ring_first = 0;
	if (c->state == CONN_DRAIN)
		free_conn(vs, c);
	else
		tell_shutdown(vs, c, VSOCK_SHUTDOWN_RCV);
}

/* Bytes taken, 0 when the socket is full, -1 when nobody reads. */
static ssize_t
send_client(const struct vsock_conn *c, struct iovec *iov, unsigned n)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t r;

	do
		r = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? 0 : -1;
	return r;
}

static void
flush_ring(struct vsock *vs, struct vsock_conn *c)
{
	uint8_t *ring = ring_of(vs, c);
	struct iovec iov[2];
	uint32_t to_end;
	ssize_t n;

	while (c->ring_len) {
		to_end = VSOCK_BUF_BYTES - c->ring_first;
		iov[0] = (struct iovec){ring + c->ring_first,
			c->ring_len < to_end ? c->ring_len : to_end};
		iov[1] = (struct iovec){ring, c->ring_len - iov[0].iov_len};
		n = send_client(c, iov, iov[1].iov_len ? 2 : 1);
		if (n < 0) {
			client_stopped_reading(vs, c);
			update_events(vs, c);
			return;
		}
		if (n == 0)
			break;
		c->ring_len -= (uint32_t)n;
		c->ring_first =
			c->ring_len ? (c->ring_first + (uint32_t)n) % VSOCK_BUF_BYTES : 0;
		c->fwd_cnt += (uint32_t)n;
	}
	if (c->ring_len == 0 && c->state == CONN_DRAIN) {
		free_conn(vs, c);
		return;
	}
	if (c->ring_len == 0 && (c->heard & VSOCK_SHUTDOWN_SEND))
		(void)shutdown(c->fd, SHUT_WR);
	credit_changed(vs, c);
	update_events(vs, c);
}

static void
keep_in_ring(
	struct vsock *vs, struct vsock_conn *c, struct virtq_cursor *data, uint32_t len)
{
	uint8_t *ring = ring_of(vs, c);
	uint32_t at = (c->ring_first + c->ring_len) % VSOCK_BUF_BYTES;
	uint32_t to_end = VSOCK_BUF_BYTES - at;

	virtq_copy_from(data, ring + at, len < to_end ? len : to_end);
	if (len > to_end)
		virtq_copy_from(data, ring, len - to_end);
	c->ring_len += len;
	if (at + len > c->ring_most)
		c->ring_most = at + len;
}

static void
data_from_guest(
	struct vsock *vs, struct vsock_conn *c, struct virtq_cursor *data, uint32_t len)
{
	struct iovec iov[IOVS];
	struct virtq_cursor start;
	unsigned n_iov;
	uint32_t asked;
	ssize_t n;

	if (len > VSOCK_BUF_BYTES - c->ring_len || (c->heard & VSOCK_SHUTDOWN_SEND)) {
		kill_conn(vs, c); /* more than its credit, or after its end */
		return;
	}
	while (len && c->ring_len == 0 && !(c->told & VSOCK_SHUTDOWN_RCV)) {
		start = *data;
		asked = (uint32_t)virtq_slice(data, len, iov, IOVS, &n_iov);
		n = send_client(c, iov, n_iov);
		if (n < 0) {
			client_stopped_reading(vs, c);
			break;
		}
		if ((uint32_t)n < asked) {
			*data = start;
			virtq_skip(data, (size_t)n);
		}
		len -= (uint32_t)n;
		c->fwd_cnt += (uint32_t)n;
		if ((uint32_t)n < asked)
			break;
	}
	if (c->told & VSOCK_SHUTDOWN_RCV)
		c->fwd_cnt += len;
	else if (len)
		keep_in_ring(vs, c, data, len);
	credit_changed(vs, c);
	update_events(vs, c);
}

/* The guest has ended it both ways, or reset it. */
static void
guest_is_gone(struct vsock *vs, struct vsock_conn *c)
{
	if (c->state == CONN_OPEN && c->ring_len) {
		if (c->queued)
			remove_ready(vs, c);
		c->queued = false;
		c->due = 0;
		c->deadline_ns = 0;
		c->state = CONN_DRAIN;
		flush_ring(vs, c);
		return;
	}
	free_conn(vs, c);
}

/* A refusal of what is no connection of ours. The pump made sure that there is room. */
static void
queue_rst(struct vsock *vs, const struct vsock_hdr *to)
{
	unsigned i = (vs->rst_first + vs->rst_count) % VSOCK_RSTS_MAX;

	vs->rsts[i] = (struct vsock_hdr){
		.src_cid = to->dst_cid,
		.dst_cid = to->src_cid,
		.src_port = to->dst_port,
		.dst_port = to->src_port,
		.type = to->type,
		.op = VSOCK_OP_RST,
	};
	vs->rst_count++;
}

static void
open_conn(struct vsock *vs, struct vsock_conn *c)
{
	char line[32];
	int n = snprintf(line, sizeof(line), "OK %" PRIu32 "\n", c->host_port);

	if (send(c->fd, line, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) != n) {
		kill_conn(vs, c);
		return;
	}
	c->state = CONN_OPEN;
	c->deadline_ns = 0;
	c->readable = true; /* perhaps the client did not wait for the answer */
	make_ready(vs, c);
}

static void
shutdown_from_guest(struct vsock *vs, struct vsock_conn *c, const struct vsock_hdr *hdr)
{
	c->heard |= hdr->flags & (VSOCK_SHUTDOWN_RCV | VSOCK_SHUTDOWN_SEND);
	if (c->heard == (VSOCK_SHUTDOWN_RCV | VSOCK_SHUTDOWN_SEND)) {
		queue_rst(vs, hdr); /* the clean end (5.10.6.5) */
		guest_is_gone(vs, c);
		return;
	}
	if ((c->heard & VSOCK_SHUTDOWN_SEND) && c->ring_len == 0)
		(void)shutdown(c->fd, SHUT_WR);
	if (c->heard & VSOCK_SHUTDOWN_RCV) {
		(void)shutdown(c->fd, SHUT_RD);
		c->readable = false;
	}
	update_events(vs, c);
}

static void
credit_from_guest(struct vsock *vs, struct vsock_conn *c, const struct vsock_hdr *hdr)
{
	if (c->peer_buf_alloc != hdr->buf_alloc || c->peer_fwd_cnt != hdr->fwd_cnt)
		c->asked_credit = false;
	c->peer_buf_alloc = hdr->buf_alloc;
	c->peer_fwd_cnt = hdr->fwd_cnt;
	if (c->readable)
		make_ready(vs, c);
}

static struct vsock_conn *
find_conn(const struct vsock *vs, const struct vsock_hdr *hdr)
{
	struct vsock_conn *c = &vs->conns[hdr->dst_port & SLOT_MASK];

	if ((hdr->dst_port & SLOT_MASK) >= vs->n_touched ||
		c->host_port != hdr->dst_port || c->guest_port != hdr->src_port ||
		!c->requested)
		return NULL;
	if (c->state != CONN_CONNECTING && c->state != CONN_OPEN && c->state != CONN_RST)
		return NULL;
	return c;
}

static void
packet_from_guest(
	struct vsock *vs, const struct vsock_hdr *hdr, struct virtq_cursor *data)
{
	struct vsock_conn *c = NULL;

	if (hdr->src_cid != vs->config.guest_cid)
		return;
	if (hdr->dst_cid == VSOCK_HOST_CID && hdr->type == VSOCK_TYPE_STREAM)
		c = find_conn(vs, hdr);
	if (!c) {
		if (hdr->op != VSOCK_OP_RST)
			queue_rst(vs, hdr);
		return;
	}
	if (hdr->op == VSOCK_OP_RST) {
		if (c->state == CONN_CONNECTING)
			answer_error(
				c, "the guest refused: nothing listens on that port");
		guest_is_gone(vs, c);
		return;
	}
	if (c->state == CONN_RST)
		return; /* it hears the RST soon */
	if ((hdr->op == VSOCK_OP_RESPONSE) != (c->state == CONN_CONNECTING)) {
		kill_conn(vs, c);
		return;
	}
	credit_from_guest(vs, c, hdr);
	switch (hdr->op) {
	case VSOCK_OP_RESPONSE:
		open_conn(vs, c);
		return;
	case VSOCK_OP_RW:
		if (hdr->len > data->left)
			kill_conn(vs, c);
		else
			data_from_guest(vs, c, data, hdr->len);
		return;
	case VSOCK_OP_SHUTDOWN:
		shutdown_from_guest(vs, c, hdr);
		return;
	case VSOCK_OP_CREDIT_UPDATE:
		return;
	case VSOCK_OP_CREDIT_REQUEST:
		c->due |= DUE_CREDIT_UPDATE;
		make_ready(vs, c);
		return;
	default:
		kill_conn(vs, c);
	}
}

/* Everything the guest has to send, at most *budget packets. 1 progress, 0 none,
 * -EBADMSG. */
static int
drain_tx(struct vsock *vs, unsigned *budget)
{
	struct virtio_dev *dev = &vs->dev;
	struct virtq *q = &dev->queues[VSOCK_TX];
	struct virtq_cursor data;
	struct vsock_hdr hdr;
	int progress = 0, r;

	/* A refusal per packet must find room; the guest makes some by giving buffers. */
	while (vs->rst_count < VSOCK_RSTS_MAX && *budget && !virtio_dev_stopping(dev)) {
		r = virtq_pop(q, dev->mem, &vs->chain);
		if (r == 0) {
			r = virtq_arm_notify(q, dev->mem);
			if (r > 0)
				continue;
		}
		if (r < 0)
			return r;
		if (r == 0)
			break;
		data = virtq_readable(&vs->chain);
		if (virtq_copy_from(&data, &hdr, sizeof(hdr)) != sizeof(hdr)) {
			q->why = "a packet is shorter than its header";
			return -EBADMSG;
		}
		packet_from_guest(vs, &hdr, &data);
		if (virtq_push(q, dev->mem, vs->chain.head, 0))
			return -EBADMSG;
		--*budget;
		progress = 1;
	}
	return progress;
}

/* Client to guest. */

static uint32_t
credit_left(const struct vsock_conn *c)
{
	uint32_t in_flight = c->sent - c->peer_fwd_cnt;

	return in_flight < c->peer_buf_alloc ? c->peer_buf_alloc - in_flight : 0;
}

static int
push_packet(
	struct vsock *vs, struct vsock_conn *c, uint16_t op, uint32_t len, uint32_t flags)
{
	struct vsock_hdr hdr = {
		.src_cid = VSOCK_HOST_CID,
		.dst_cid = vs->config.guest_cid,
		.src_port = c->host_port,
		.dst_port = c->guest_port,
		.len = len,
		.type = VSOCK_TYPE_STREAM,
		.op = op,
		.flags = flags,
		.buf_alloc = VSOCK_BUF_BYTES,
		.fwd_cnt = c->fwd_cnt,
	};
	struct virtq_cursor in = virtq_writable(&vs->chain);

	c->fwd_told = c->fwd_cnt;
	c->due &= (uint8_t)~DUE_CREDIT_UPDATE; /* every header carries it */
	virtq_copy_to(&in, &hdr, sizeof(hdr));
	return virtq_push(&vs->dev.queues[VSOCK_RX], vs->dev.mem, vs->chain.head,
		(uint32_t)sizeof(hdr) + len);
}

static bool
may_read(const struct vsock_conn *c)
{
	return c->state == CONN_OPEN && c->readable && !(c->told & VSOCK_SHUTDOWN_SEND) &&
	       !(c->heard & VSOCK_SHUTDOWN_RCV);
}

static void
client_is_done(struct vsock *vs, struct vsock_conn *c, bool both_ways)
{
	c->readable = false;
	tell_shutdown(vs, c, VSOCK_SHUTDOWN_SEND);
	if (both_ways)
		client_stopped_reading(vs, c);
}

/* From the socket into the guest's buffer. 1 pushed, 0 nothing there, -EBADMSG. */
static int
push_data(struct vsock *vs, struct vsock_conn *c)
{
	struct virtq_cursor in = virtq_writable(&vs->chain);
	struct iovec iov[IOVS];
	uint32_t room = credit_left(c);
	unsigned n_iov;
	size_t asked;
	ssize_t n;

	virtq_skip(&in, sizeof(struct vsock_hdr));
	asked = virtq_slice(
		&in, room < PACKET_MAX ? room : PACKET_MAX, iov, IOVS, &n_iov);
	do
		n = readv(c->fd, iov, (int)n_iov);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN) {
		c->readable = false;
		return 0;
	}
	if (n <= 0) {
		client_is_done(vs, c, n < 0 || c->hung_up);
		return 0;
	}
	/* A short read has emptied the socket; the loop says when there is more. After a
	 * hang-up it says nothing: read on to the end. */
	if ((size_t)n < asked && !c->hung_up)
		c->readable = false;
	c->sent += (uint32_t)n;
	return push_packet(vs, c, VSOCK_OP_RW, (uint32_t)n, 0) ? -EBADMSG : 1;
}

/* Whether a connection has something for a receive buffer now. */
static bool
has_packet(struct vsock_conn *c)
{
	if (c->state == CONN_RST || c->due)
		return true;
	if (!may_read(c))
		return false;
	if (credit_left(c))
		return true;
	if (c->asked_credit)
		return false;
	c->asked_credit = true;
	c->due |= DUE_CREDIT_REQUEST;
	return true;
}

/* One packet of a connection that has one, into vs->chain. 1 pushed, 0 none after all,
 * -EBADMSG. */
static int
push_next(struct vsock *vs, struct vsock_conn *c)
{
	int r;

	if (c->state == CONN_RST) {
		r = push_packet(vs, c, VSOCK_OP_RST, 0, 0);
		free_conn(vs, c);
		return r ? r : 1;
	}
	if (c->due & DUE_REQUEST) {
		c->due &= (uint8_t)~DUE_REQUEST;
		c->requested = true;
		return push_packet(vs, c, VSOCK_OP_REQUEST, 0, 0) ? -EBADMSG : 1;
	}
	if (may_read(c) && credit_left(c)) {
		r = push_data(vs, c);
		if (r)
			return r;
	}
	if (c->due & DUE_SHUTDOWN) {
		c->due &= (uint8_t)~DUE_SHUTDOWN;
		return push_packet(vs, c, VSOCK_OP_SHUTDOWN, 0, c->told) ? -EBADMSG : 1;
	}
	if (c->due & DUE_CREDIT_REQUEST) {
		c->due &= (uint8_t)~DUE_CREDIT_REQUEST;
		return push_packet(vs, c, VSOCK_OP_CREDIT_REQUEST, 0, 0) ? -EBADMSG : 1;
	}
	if (c->due & DUE_CREDIT_UPDATE)
		return push_packet(vs, c, VSOCK_OP_CREDIT_UPDATE, 0, 0) ? -EBADMSG : 1;
	return 0;
}

/* The next receive buffer into vs->chain: 1, 0 (the driver will say when there is one),
 * -EBADMSG. */
static int
take_rx_buffer(struct vsock *vs)
{
	struct virtio_dev *dev = &vs->dev;
	struct virtq *q = &dev->queues[VSOCK_RX];
	int r;

	r = virtq_pop(q, dev->mem, &vs->chain);
	if (r == 0) {
		r = virtq_arm_notify(q, dev->mem);
		if (r > 0)
			r = virtq_pop(q, dev->mem, &vs->chain);
	}
	if (r > 0 && vs->chain.in_bytes <= sizeof(struct vsock_hdr)) {
		q->why = "a receive buffer has no room for a packet";
		return -EBADMSG;
	}
	return r;
}

static int
push_rst(struct vsock *vs)
{
	struct virtq_cursor in;
	int r = take_rx_buffer(vs);

	if (r <= 0)
		return r;
	in = virtq_writable(&vs->chain);
	virtq_copy_to(&in, &vs->rsts[vs->rst_first], sizeof(struct vsock_hdr));
	vs->rst_first = (uint16_t)((vs->rst_first + 1) % VSOCK_RSTS_MAX);
	vs->rst_count--;
	if (virtq_push(&vs->dev.queues[VSOCK_RX], vs->dev.mem, vs->chain.head,
		    sizeof(struct vsock_hdr)))
		return -EBADMSG;
	return 1;
}

/* Everything there is for the guest, a packet a connection in turn. 1 progress, 0 none,
 * -EBADMSG. */
static int
fill_rx(struct vsock *vs, unsigned *budget)
{
	struct vsock_conn *c;
	int progress = 0, r;

	while (*budget && (vs->rst_count || vs->ready_head)) {
		if (vs->rst_count) {
			r = push_rst(vs);
			if (r < 0)
				return r;
			if (r == 0)
				break;
			--*budget;
			progress = 1;
			continue;
		}
		c = &vs->conns[vs->ready_head - 1];
		if (!has_packet(c)) {
			take_ready(vs);
			update_events(vs, c);
			continue;
		}
		r = take_rx_buffer(vs);
		if (r < 0)
			return r;
		if (r == 0)
			break;
		take_ready(vs);
		r = push_next(vs, c);
		if (r < 0)
			return r;
		if (r == 0) {
			virtq_unpop(&vs->dev.queues[VSOCK_RX], 1);
		} else {
			--*budget;
			progress = 1;
		}
		if (c->state == CONN_FREE)
			continue;
		/* To the end of the line; if it has no more it leaves from there. */
		make_ready(vs, c);
	}
	return progress;
}

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
		set_deadline(vs, &vs->reset_deadline_ns, VSOCK_RESET_MS);
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

static void
drop_all(struct vsock *vs)
{
	unsigned i;

	for (i = 0; i < vs->n_touched; i++)
		if (vs->conns[i].state != CONN_FREE)
			free_conn(vs, &vs->conns[i]);
	vs->rst_first = vs->rst_count = 0;
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
		tx = drain_tx(vs, &tx_budget);
		if (tx < 0)
			return tx;
		rx = vs->reset_state == VSOCK_RUNNING ? fill_rx(vs, &rx_budget) : 0;
		if (rx < 0)
			return rx;
	} while ((tx || rx) && tx_budget && rx_budget && !virtio_dev_stopping(&vs->dev));
	return !tx_budget || !rx_budget;
}

static void
kick_main_thread(struct vsock *vs)
{
	const uint64_t one = 1;

	if (vs->kicked)
		return;
	vs->kicked = true;
	(void)!write(vs->kick_fd, &one, sizeof(one));
}

/* Both directions until nothing moves, then one interrupt. Lock held. */
static void
pump(struct vsock *vs)
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
			drop_all(vs);
			return;
		}
		/* A guest that never stops sending must not keep the main thread from its
		 * other work. */
		if (r > 0 && vs->kick_fd >= 0) {
			kick_main_thread(vs);
			r = 0;
		}
	} while (r > 0 && !virtio_dev_stopping(&vs->dev));
	virtio_dev_interrupt(&vs->dev);
}

/* Clients. */

/* The port of a complete line, or 0 (which is no port one can listen on). */
static uint32_t
parse_line(const char *line, size_t len)
{
	static const char word[] = "CONNECT ";
	uint64_t port = 0;
	size_t i;

	if (len < sizeof(word) || memcmp(line, word, sizeof(word) - 1))
		return 0;
	for (i = sizeof(word) - 1; i < len - 1; i++) {
		if (line[i] < '0' || line[i] > '9')
			return 0;
		port = port * 10 + (uint64_t)(line[i] - '0');
		if (port >= UINT32_MAX)
			return 0;
	}
	return (uint32_t)port;
}

/* Reads up to and including the line feed, not a byte further: what follows is the
 * guest's. */
static void
read_line(struct vsock *vs, struct vsock_conn *c)
{
	char *at = c->line + c->line_len;
	size_t room = sizeof(c->line) - c->line_len;
	ssize_t n = recv(c->fd, at, room, MSG_PEEK | MSG_DONTWAIT);
	const char *lf;

	if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
		update_events(vs, c);
		return;
	}
	if (n <= 0) {
		free_conn(vs, c);
		return;
	}
	lf = memchr(at, '\n', (size_t)n);
	n = recv(c->fd, at, lf ? (size_t)(lf - at) + 1 : (size_t)n, MSG_DONTWAIT);
	if (n <= 0) {
		free_conn(vs, c);
		return;
	}
	c->line_len = (uint8_t)(c->line_len + n);
	if (!lf && c->line_len < sizeof(c->line)) {
		update_events(vs, c);
		return;
	}
	c->guest_port = lf ? parse_line(c->line, c->line_len) : 0;
	if (c->guest_port == 0) {
		refuse(vs, c,
			"the first line must be CONNECT and a port, 1 to 4294967294");
		return;
	}
	if (!virtio_dev_running(&vs->dev)) {
		refuse(vs, c, "the guest's vsock driver is not ready");
		return;
	}
	c->state = CONN_CONNECTING;
	c->due = DUE_REQUEST;
	set_deadline(vs, &c->deadline_ns, VSOCK_CONNECT_MS);
	make_ready(vs, c);
	update_events(vs, c);
}

static void
accept_client(struct vsock *vs)
{
	static const char full[] =
		"ERR the VM has 1024 connections, as many as it can hold\n";
	_Static_assert(VSOCK_CONNS_MAX == 1024, "as the sentence says");
	struct vsock_conn *c;
	int fd;

	fd = accept4(vs->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0) {
		/* Out of descriptors: the listener stays readable, so look away for a
		 * while. */
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
			errno == ENOBUFS) {
			vs->loop.del(vs->loop.ctx, vs->listen_fd);
			vs->listening = false;
			set_deadline(vs, &vs->listen_deadline_ns, LISTEN_RETRY_MS);
		}
		return;
	}
	c = new_conn(vs, fd);
	if (!c) {
		(void)!send(fd, full, sizeof(full) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		close(fd);
		return;
	}
	set_deadline(vs, &c->deadline_ns, VSOCK_CONNECT_MS);
	read_line(vs, c); /* usually it is there already */
}

static void
client_event(struct vsock *vs, struct vsock_conn *c, uint32_t events)
{
	if (events & (EPOLLHUP | EPOLLERR)) {
		leave_loop(vs, c);
		c->hung_up = true;
	}
	switch (c->state) {
	case CONN_LINE:
		read_line(vs, c);
		/* A client that left after its line wants nothing any more. */
		if (c->hung_up && (c->state == CONN_LINE || c->state == CONN_CONNECTING))
			kill_conn(vs, c);
		return;
	case CONN_CONNECTING:
		if (c->hung_up)
			kill_conn(vs, c);
		return;
	case CONN_OPEN:
		if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
			c->readable = true;
			if (may_read(c))
				make_ready(vs, c);
			else if (c->hung_up)
				client_is_done(vs, c, true);
		}
		__attribute__((fallthrough));
	case CONN_DRAIN:
		if (c->ring_len && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)))
			flush_ring(vs, c);
		else
			update_events(vs, c);
	}
}

void
vsock_handle_event(struct vsock *vs, uint64_t token, uint32_t events)
{
	const unsigned slot = token & 0xffff;
	struct vsock_conn *c;

	virtio_dev_lock(&vs->dev);
	if (slot == LISTEN_SLOT) {
		if (vs->listening)
			accept_client(vs);
	} else if (slot < vs->n_touched) {
		/* A token of a connection that ended within this very batch of events. */
		c = &vs->conns[slot];
		if (c->state != CONN_FREE && c->events != NO_EVENTS &&
			token == token_of(vs, c))
			client_event(vs, c, events);
	}
	pump(vs);
	virtio_dev_unlock(&vs->dev);
}

void
vsock_kick(struct vsock *vs)
{
	virtio_dev_lock(&vs->dev);
	vs->kicked = false;
	pump(vs);
	virtio_dev_unlock(&vs->dev);
}

/* Time. */

int
vsock_timeout_ms(struct vsock *vs)
{
	uint64_t now, deadline;

	virtio_dev_lock(&vs->dev);
	deadline = vs->deadline_ns;
	virtio_dev_unlock(&vs->dev);
	if (!deadline)
		return -1;
	now = io_now_ns();
	return deadline <= now ? 0 : (int)((deadline - now) / NS_PER_MS) + 1;
}

static void
conn_timed_out(struct vsock *vs, struct vsock_conn *c)
{
	if (c->state == CONN_LINE) {
		refuse(vs, c, "no CONNECT line came in time");
	} else if (c->state == CONN_CONNECTING) {
		refuse(vs, c, "the guest did not answer in time");
	} else if (c->readable || (c->due & DUE_SHUTDOWN)) {
		/* It has not been told yet: it takes no packets. Its time begins when it
		 * does. */
		set_deadline(vs, &c->deadline_ns, VSOCK_LINGER_MS);
	} else {
		kill_conn(vs, c);
	}
}

/* Whether a deadline is over; if not, the next look is not later than it. */
static bool
is_over(struct vsock *vs, uint64_t *deadline_ns, uint64_t now)
{
	if (!*deadline_ns)
		return false;
	if (*deadline_ns <= now) {
		*deadline_ns = 0;
		return true;
	}
	if (vs->deadline_ns == 0 || *deadline_ns < vs->deadline_ns)
		vs->deadline_ns = *deadline_ns;
	return false;
}

void
vsock_tick(struct vsock *vs)
{
	uint64_t now;
	unsigned i;

	virtio_dev_lock(&vs->dev);
	if (!vs->deadline_ns || vs->deadline_ns > (now = io_now_ns()))
		goto out;
	vs->deadline_ns = 0;
	for (i = 0; i < vs->n_touched; i++)
		if (vs->conns[i].state != CONN_FREE &&
			is_over(vs, &vs->conns[i].deadline_ns, now))
			conn_timed_out(vs, &vs->conns[i]);
	if (is_over(vs, &vs->listen_deadline_ns, now))
		listen_again(vs);
	/* A driver that never gives the event's buffer back has had its time to read it.
	 */
	if (is_over(vs, &vs->reset_deadline_ns, now) &&
		vs->reset_state == VSOCK_RESET_SENT)
		vs->reset_state = VSOCK_RUNNING;
	pump(vs);
out:
	virtio_dev_unlock(&vs->dev);
}

/* The device. */

static void
vsock_notify(struct virtio_dev *dev, unsigned queue)
{
	struct vsock *vs = (struct vsock *)dev;

	(void)queue;
	if (vs->kick_fd >= 0)
		kick_main_thread(vs);
	else
		pump(vs);
}

static void
vsock_reset(struct virtio_dev *dev)
{
	struct vsock *vs = (struct vsock *)dev;

	drop_all(vs);
	vs->reset_state = VSOCK_RUNNING;
}

static const void *
vsock_config(struct virtio_dev *dev, uint32_t *ret_len)
{
	struct vsock *vs = (struct vsock *)dev;

	*ret_len = sizeof(vs->config);
	return &vs->config;
}

static const struct virtio_ops vsock_ops = {
	.name = "vsock",
	.device_id = VIRTIO_ID_VSOCK,
	.features = 1, /* VIRTIO_VSOCK_F_STREAM */
	.n_queues = 3,
	.queue_size = {QUEUE_SIZE, QUEUE_SIZE, 16},
	.config = vsock_config,
	.notify = vsock_notify,
	.reset = vsock_reset,
};

static void *
map_bytes(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int
take_listener(struct vsock *vs, int listen_fd, int kick_fd, const struct vsock_loop *loop,
	struct err *e)
{
	int r = listen_fd >= 0 ? io_set_nonblock(listen_fd, 1) : 0;

	if (r < 0)
		return err_sys(e, r, "vsock: the listening socket");
	vs->has_loop = loop;
	if (loop)
		vs->loop = *loop;
	vs->kick_fd = kick_fd;
	vs->listen_fd = listen_fd;
	listen_again(vs);
	if (listen_fd >= 0 && loop && !vs->listening) {
		vs->listen_fd = -1;
		return err_set(e, -EIO, "vsock: the listening socket cannot be watched");
	}
	return 0;
}

int
vsock_init(struct vsock *vs, const struct guest_mem *mem, struct irq_line irq,
	uint32_t guest_cid, int listen_fd, int kick_fd, const struct vsock_loop *loop,
	struct err *e)
{
	int r;

	if (guest_cid < 3 || guest_cid == UINT32_MAX)
		return err_set(e, -EINVAL,
			"vsock: context id %" PRIu32 " is reserved; use 3 or more",
			guest_cid);
	memset(vs, 0, sizeof(*vs));
	virtio_dev_init(&vs->dev, &vsock_ops, mem, irq);
	vs->config.guest_cid = guest_cid;
	vs->listen_fd = -1;
	vs->conns = map_bytes(VSOCK_CONNS_MAX * sizeof(struct vsock_conn));
	vs->rings = map_bytes((size_t)VSOCK_CONNS_MAX * VSOCK_BUF_BYTES);
	if (!vs->conns || !vs->rings)
		r = err_set(e, -ENOMEM, "vsock: no address space for its buffers");
	else
		r = take_listener(vs, listen_fd, kick_fd, loop, e);
	if (r)
		vsock_destroy(vs);
	return r;
}

void
vsock_destroy(struct vsock *vs)
{
	if (vs->conns)
		drop_all(vs);
	if (vs->listening)
		vs->loop.del(vs->loop.ctx, vs->listen_fd);
	vs->listening = false;
	if (vs->listen_fd >= 0)
		close(vs->listen_fd);
	vs->listen_fd = -1;
	if (vs->conns)
		munmap(vs->conns, VSOCK_CONNS_MAX * sizeof(struct vsock_conn));
	if (vs->rings)
		munmap(vs->rings, (size_t)VSOCK_CONNS_MAX * VSOCK_BUF_BYTES);
	vs->conns = NULL;
	vs->rings = NULL;
}

int
vsock_reset_child(struct vsock *vs, struct irq_line irq, int listen_fd, int kick_fd,
	const struct vsock_loop *loop, struct err *e)
{
	virtio_dev_fork_child(&vs->dev, irq);
	/* The loop so far is the parent's, one epoll set with two owners: leave it alone.
	 * Closing our copies does not touch it, since the parent's keep the sockets open.
	 */
	vs->has_loop = false;
	drop_all(vs);
	if (vs->listen_fd >= 0)
		close(vs->listen_fd);
	vs->listen_fd = -1;
	vs->listening = false;
	vs->kicked = false;
	vs->deadline_ns = vs->reset_deadline_ns = vs->listen_deadline_ns = 0;
	vs->reset_state = virtio_dev_running(&vs->dev) ? VSOCK_RESET_DUE : VSOCK_RUNNING;
	return take_listener(vs, listen_fd, kick_fd, loop, e);
}
