/*
 * vsock, from the guest to clients: the driver's transmit queue, and what waits for clients.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "vmm/vsock_conn.h"

#define IOVS 64

static void
credit_changed(struct vsock *vs, struct vsock_conn *c)
{
	const uint32_t news = c->fwd_cnt - c->fwd_told;

	/* The guest counts all it sent since fwd_told as unread. It is told when it
	 * believes that half of its credit is used up, in steps worth a packet. */
	if (c->state == CONN_OPEN && news && news + c->ring_len >= VSOCK_BUF_BYTES / 2 &&
		(news >= VSOCK_BUF_BYTES / 4 || c->ring_len == 0)) {
		c->due |= DUE_CREDIT_UPDATE;
		vsock_conn_make_ready(vs, c);
	}
}

/* The client reads no more: what the guest sends is counted and dropped. */
static void
client_stopped_reading(struct vsock *vs, struct vsock_conn *c)
{
	c->fwd_cnt += c->ring_len;
	c->ring_len = c->ring_first = 0;
	if (c->state == CONN_DRAIN)
		vsock_conn_free(vs, c);
	else
		vsock_conn_tell_shutdown(vs, c, VSOCK_SHUTDOWN_RCV);
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

void
vsock_flush_ring(struct vsock *vs, struct vsock_conn *c)
{
	uint8_t *ring = vsock_conn_ring(vs, c);
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
			vsock_conn_update_events(vs, c);
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
		vsock_conn_free(vs, c);
		return;
	}
	if (c->ring_len == 0 && (c->heard & VSOCK_SHUTDOWN_SEND))
		(void)shutdown(c->fd, SHUT_WR);
	credit_changed(vs, c);
	vsock_conn_update_events(vs, c);
}

static void
keep_in_ring(
	struct vsock *vs, struct vsock_conn *c, struct virtq_cursor *data, uint32_t len)
{
	uint8_t *ring = vsock_conn_ring(vs, c);
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
		vsock_conn_kill(vs, c); /* more than its credit, or after its end */
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
	vsock_conn_update_events(vs, c);
}

/* The guest has ended it both ways, or reset it. */
static void
guest_is_gone(struct vsock *vs, struct vsock_conn *c)
{
	if (c->state == CONN_OPEN && c->ring_len) {
		vsock_conn_not_ready(vs, c);
		c->due = 0;
		c->deadline_ns = 0;
		c->state = CONN_DRAIN;
		vsock_flush_ring(vs, c);
		return;
	}
	vsock_conn_free(vs, c);
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
		vsock_conn_kill(vs, c);
		return;
	}
	c->state = CONN_OPEN;
	c->deadline_ns = 0;
	c->readable = true; /* perhaps the client did not wait for the answer */
	vsock_conn_make_ready(vs, c);
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
	vsock_conn_update_events(vs, c);
}

static void
credit_from_guest(struct vsock *vs, struct vsock_conn *c, const struct vsock_hdr *hdr)
{
	if (c->peer_buf_alloc != hdr->buf_alloc || c->peer_fwd_cnt != hdr->fwd_cnt)
		c->asked_credit = false;
	c->peer_buf_alloc = hdr->buf_alloc;
	c->peer_fwd_cnt = hdr->fwd_cnt;
	if (c->readable)
		vsock_conn_make_ready(vs, c);
}

static void
packet_from_guest(
	struct vsock *vs, const struct vsock_hdr *hdr, struct virtq_cursor *data)
{
	struct vsock_conn *c = NULL;

	if (hdr->src_cid != vs->config.guest_cid)
		return;
	if (hdr->dst_cid == VSOCK_HOST_CID && hdr->type == VSOCK_TYPE_STREAM)
		c = vsock_conn_find(vs, hdr->dst_port, hdr->src_port);
	if (!c) {
		if (hdr->op != VSOCK_OP_RST)
			queue_rst(vs, hdr);
		return;
	}
	if (hdr->op == VSOCK_OP_RST) {
		if (c->state == CONN_CONNECTING)
			vsock_conn_answer_error(
				c, "the guest refused: nothing listens on that port");
		guest_is_gone(vs, c);
		return;
	}
	if (c->state == CONN_RST)
		return; /* it hears the RST soon */
	if ((hdr->op == VSOCK_OP_RESPONSE) != (c->state == CONN_CONNECTING)) {
		vsock_conn_kill(vs, c);
		return;
	}
	credit_from_guest(vs, c, hdr);
	switch (hdr->op) {
	case VSOCK_OP_RESPONSE:
		open_conn(vs, c);
		return;
	case VSOCK_OP_RW:
		if (hdr->len > data->left)
			vsock_conn_kill(vs, c);
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
		vsock_conn_make_ready(vs, c);
		return;
	default:
		vsock_conn_kill(vs, c);
	}
}

int
vsock_drain_tx(struct vsock *vs, unsigned *budget)
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

void
vsock_client_is_done(struct vsock *vs, struct vsock_conn *c, bool both_ways)
{
	c->readable = false;
	vsock_conn_tell_shutdown(vs, c, VSOCK_SHUTDOWN_SEND);
	if (both_ways)
		client_stopped_reading(vs, c);
}
