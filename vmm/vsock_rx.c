/*
 * vsock, from clients to the guest: the driver's receive queue.
 */
#include <errno.h>
#include <sys/uio.h>

#include "vmm/vsock_conn.h"

#define IOVS 64
#define PACKET_MAX (64u << 10)

static uint32_t
credit_left(const struct vsock_conn *c)
{
	uint32_t in_flight = c->sent - c->peer_fwd_cnt;

	return in_flight < c->peer_buf_alloc ? c->peer_buf_alloc - in_flight : 0;
}

static int
push_packet(struct vsock *vs, struct vsock_conn *c, const struct virtq_chain *to, uint16_t op,
	uint32_t len, uint32_t flags)
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
	struct virtq_cursor in = virtq_writable(to);

	c->fwd_told = c->fwd_cnt;
	c->due &= (uint8_t)~DUE_CREDIT_UPDATE; /* every header carries it */
	virtq_copy_to(&in, &hdr, sizeof(hdr));
	return virtq_push(&vs->dev.queues[VSOCK_RX], vs->dev.mem, to->head,
		(uint32_t)sizeof(hdr) + len);
}

/* The next receive buffer, if one lies there: 1, 0, -EBADMSG. */
static int
pop_rx_buffer(struct vsock *vs, struct virtq_chain *ret)
{
	struct virtq *q = &vs->dev.queues[VSOCK_RX];
	int r = virtq_pop(q, vs->dev.mem, ret);

	if (r > 0 && ret->in_bytes <= sizeof(struct vsock_hdr)) {
		q->why = "a receive buffer has no room for a packet";
		return -EBADMSG;
	}
	return r;
}

/*
 * From the socket into the guest's buffers, which are small (Linux: 4 KiB): one read fills many,
 * a packet each. vs->rx[0] is taken already; more are once a read has filled what it was given,
 * so that a short message costs no more than its own. Packets pushed, 0 nothing there, -EBADMSG.
 */
static int
push_data(struct vsock *vs, struct vsock_conn *c)
{
	const uint32_t credit = credit_left(c);
	const size_t room = credit < PACKET_MAX ? credit : PACKET_MAX;
	const unsigned most = c->bulk ? VSOCK_RX_BATCH : 1;
	struct virtq *q = &vs->dev.queues[VSOCK_RX];
	struct iovec iov[IOVS];
	size_t place[VSOCK_RX_BATCH], asked = 0, left;
	unsigned n_iov = 0, n_places = 0, used, part;
	ssize_t n;
	int r;

	do {
		struct virtq_cursor in = virtq_writable(&vs->rx[n_places]);

		virtq_skip(&in, sizeof(struct vsock_hdr));
		place[n_places] = virtq_slice(
			&in, room - asked, iov + n_iov, IOVS - n_iov, &part);
		n_iov += part;
		asked += place[n_places++];
		if (n_places == most || asked == room || n_iov == IOVS)
			break;
		r = pop_rx_buffer(vs, &vs->rx[n_places]);
		if (r < 0)
			return r;
	} while (r > 0);
	do
		n = readv(c->fd, iov, (int)n_iov);
	while (n < 0 && errno == EINTR);
	if (n <= 0) {
		virtq_unpop(q, n_places - 1);
		c->bulk = false;
		if (n < 0 && errno == EAGAIN)
			c->readable = false;
		else
			vsock_client_is_done(vs, c, n < 0 || c->hung_up);
		return 0;
	}
	c->bulk = (size_t)n == asked;
	/* A short read has emptied the socket; the loop says when there is more. After a
	 * hang-up it says nothing: read on to the end. */
	if ((size_t)n < asked && !c->hung_up)
		c->readable = false;
	for (used = 0, left = (size_t)n; left; used++) {
		const uint32_t len = (uint32_t)(left < place[used] ? left : place[used]);

		c->sent += len;
		left -= len;
		if (push_packet(vs, c, &vs->rx[used], VSOCK_OP_RW, len, 0))
			return -EBADMSG;
	}
	virtq_unpop(q, n_places - used);
	return (int)used;
}

/* Whether a connection has something for a receive buffer now. */
static bool
has_packet(struct vsock_conn *c)
{
	if (c->state == CONN_RST || c->due)
		return true;
	if (!vsock_conn_may_read(c))
		return false;
	if (credit_left(c))
		return true;
	if (c->asked_credit)
		return false;
	c->asked_credit = true;
	c->due |= DUE_CREDIT_REQUEST;
	return true;
}

static int
push_control(struct vsock *vs, struct vsock_conn *c, uint16_t op, uint32_t flags)
{
	return push_packet(vs, c, &vs->rx[0], op, 0, flags) ? -EBADMSG : 1;
}

/* What a connection has, into vs->rx[0] and, of data, into those behind it: packets pushed, 0
 * none after all, -EBADMSG. */
static int
push_next(struct vsock *vs, struct vsock_conn *c)
{
	int r;

	if (c->state == CONN_RST) {
		r = push_control(vs, c, VSOCK_OP_RST, 0);
		vsock_conn_free(vs, c);
		return r;
	}
	if (c->due & DUE_REQUEST) {
		c->due &= (uint8_t)~DUE_REQUEST;
		c->requested = true;
		return push_control(vs, c, VSOCK_OP_REQUEST, 0);
	}
	if (vsock_conn_may_read(c) && credit_left(c)) {
		r = push_data(vs, c);
		if (r)
			return r;
	}
	if (c->due & DUE_SHUTDOWN) {
		c->due &= (uint8_t)~DUE_SHUTDOWN;
		return push_control(vs, c, VSOCK_OP_SHUTDOWN, c->told);
	}
	if (c->due & DUE_CREDIT_REQUEST) {
		c->due &= (uint8_t)~DUE_CREDIT_REQUEST;
		return push_control(vs, c, VSOCK_OP_CREDIT_REQUEST, 0);
	}
	if (c->due & DUE_CREDIT_UPDATE)
		return push_control(vs, c, VSOCK_OP_CREDIT_UPDATE, 0);
	return 0;
}

/* The next receive buffer into vs->rx[0]: 1, 0 (the driver will say when there is one),
 * -EBADMSG. */
static int
take_rx_buffer(struct vsock *vs)
{
	struct virtio_dev *dev = &vs->dev;
	int r;

	r = pop_rx_buffer(vs, &vs->rx[0]);
	if (r == 0) {
		r = virtq_arm_notify(&dev->queues[VSOCK_RX], dev->mem);
		if (r > 0)
			r = pop_rx_buffer(vs, &vs->rx[0]);
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
	in = virtq_writable(&vs->rx[0]);
	virtq_copy_to(&in, &vs->rsts[vs->rst_first], sizeof(struct vsock_hdr));
	vs->rst_first = (uint16_t)((vs->rst_first + 1) % VSOCK_RSTS_MAX);
	vs->rst_count--;
	if (virtq_push(&vs->dev.queues[VSOCK_RX], vs->dev.mem, vs->rx[0].head,
		    sizeof(struct vsock_hdr)))
		return -EBADMSG;
	return 1;
}

int
vsock_fill_rx(struct vsock *vs, unsigned *budget)
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
			vsock_conn_take_ready(vs);
			vsock_conn_update_events(vs, c);
			continue;
		}
		r = take_rx_buffer(vs);
		if (r < 0)
			return r;
		if (r == 0)
			break;
		vsock_conn_take_ready(vs);
		r = push_next(vs, c);
		if (r < 0)
			return r;
		if (r == 0)
			virtq_unpop(&vs->dev.queues[VSOCK_RX], 1);
		else
			progress = 1;
		*budget -= (unsigned)r < *budget ? (unsigned)r : *budget;
		if (c->state == CONN_FREE)
			continue;
		/* To the end of the line; if it has no more it leaves from there. */
		vsock_conn_make_ready(vs, c);
	}
	return progress;
}
