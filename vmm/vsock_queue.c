#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vmm/vsock_conn.h"

#define IOVS 64
#define PACKET_MAX (64u << 10)
#define EVENT_RESET 0u /* VIRTIO_VSOCK_EVENT_TRANSPORT_RESET */

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

void
vsock_client_is_done(struct vsock *vs, struct vsock_conn *c, bool both_ways)
{
	c->readable = false;
	vsock_conn_tell_shutdown(vs, c, VSOCK_SHUTDOWN_SEND);
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
		vsock_client_is_done(vs, c, n < 0 || c->hung_up);
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

/* One packet of a connection that has one, into vs->chain. 1 pushed, 0 none after all,
 * -EBADMSG. */
static int
push_next(struct vsock *vs, struct vsock_conn *c)
{
	int r;

	if (c->state == CONN_RST) {
		r = push_packet(vs, c, VSOCK_OP_RST, 0, 0);
		vsock_conn_free(vs, c);
		return r ? r : 1;
	}
	if (c->due & DUE_REQUEST) {
		c->due &= (uint8_t)~DUE_REQUEST;
		c->requested = true;
		return push_packet(vs, c, VSOCK_OP_REQUEST, 0, 0) ? -EBADMSG : 1;
	}
	if (vsock_conn_may_read(c) && credit_left(c)) {
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
		if (r == 0) {
			virtq_unpop(&vs->dev.queues[VSOCK_RX], 1);
		} else {
			--*budget;
			progress = 1;
		}
		if (c->state == CONN_FREE)
			continue;
		/* To the end of the line; if it has no more it leaves from there. */
		vsock_conn_make_ready(vs, c);
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
		tx = drain_tx(vs, &tx_budget);
		if (tx < 0)
			return tx;
		rx = vs->reset_state == VSOCK_RUNNING ? fill_rx(vs, &rx_budget) : 0;
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
