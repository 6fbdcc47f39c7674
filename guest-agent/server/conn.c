#include "guest-agent/server/conn_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "guest-agent/server/put.h"
#include "guest-agent/server/sshd.h"

#define STREAM_RX (2 * AGENT_FRAME_WHOLE)
#define CONNECT_LINE_MAX 32
#define OK_LINE "OK %u\n"
#define OK_LINE_MAX 16
/* To say what is wanted. */
#define REQUEST_NS 10000000000ull

/* All there was of it is its first line: the peer waits for the answer to that. */
static void
give_to_sshd(struct conn *c)
{
	int fd = c->src.fd, len;
	uint32_t number = c->number;
	char ok[OK_LINE_MAX];

	source_wait(&c->src, 0);
	c->src.fd = -1;
	conn_drop(c);
	len = snprintf(ok, sizeof(ok), OK_LINE, number);
	if (send(fd, ok, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		close(fd);
	else
		sshd_serve(fd, number);
}

/* What came after the request is its beginning. */
static int
give_to_put(struct conn *c, char *rx, size_t len, struct err *e)
{
	struct iovec came = {rx, len}, unsaid = {c->tx + c->tx_at, c->tx_len - c->tx_at};
	int r = put_start(c->src.fd, c->unpack, came, unsaid, e);

	c->role = AT_REQUEST; /* an error is its answer */
	if (r)
		return r;
	/* The process has it open: closed here, it would still be in the epoll set. */
	source_wait(&c->src, 0);
	conn_drop(c);
	return 0;
}

static int
take_line(struct conn *c, const char *line, size_t len, struct err *e)
{
	cleanup_request struct request q = {0};
	unsigned port;
	char end;
	int r;

	if (c->role == AT_CONNECT) {
		char text[CONNECT_LINE_MAX + 1], *at;
		char ok[OK_LINE_MAX];
		size_t ok_len;

		memcpy(text, line, len);
		text[len] = 0;
		if (sscanf(text, "CONNECT %u%c", &port, &end) != 1)
			return err_set(e, -EPROTO, "expected \"CONNECT <port>\"");
		if (port == AGENT_SSH_PORT) {
			give_to_sshd(c);
			return 0;
		}
		if (port != AGENT_PORT) {
			/* What a VMM does when nobody listens there. */
			conn_drop(c);
			return 0;
		}
		ok_len = (size_t)snprintf(ok, sizeof(ok), OK_LINE, c->number);
		at = conn_tx_room(c, ok_len);
		if (!at) {
			conn_drop(c);
			return 0;
		}
		memcpy(at, ok, ok_len);
		c->tx_len += ok_len;
		c->role = AT_REQUEST;
		deferred_queue(&c->flush);
		return 0;
	}
	r = request_read(line, len, &q, e);
	return r ? r : conn_begin(c, &q, e);
}

/* What the received bytes hold. */
static int
process(struct conn *c, struct err *e)
{
	size_t at = 0;
	int r = 0;

	while (!c->dead && at < c->rx_len) {
		struct agent_frame f;
		size_t used;

		if (c->role == AT_CONNECT || c->role == AT_REQUEST) {
			size_t max = c->role == AT_CONNECT ? CONNECT_LINE_MAX
							   : AGENT_REQUEST_MAX;
			size_t have = c->rx_len - at;
			char *lf = memchr(c->rx + at, '\n', have < max ? have : max);

			if (!lf && have >= max)
				return err_set(e, -E2BIG,
					"the request is longer than %zu bytes", max);
			if (!lf)
				break;
			r = take_line(c, c->rx + at, (size_t)(lf - c->rx) - at, e);
			if (c->dead)
				return 0;
			if (r)
				return r;
			if (c->role != AT_REQUEST)
				timer_stop(&c->deadline);
			at = (size_t)(lf - c->rx) + 1;
			if (c->role == IN_PUT)
				return give_to_put(c, c->rx + at, c->rx_len - at, e);
			continue;
		}
		if (c->role == DIALLING)
			break; /* it is the dial's */
		if (c->role == DONE || c->role == IN_GET || c->role == IN_HANDSHAKE ||
			c->role == STAYING) {
			at = c->rx_len; /* nothing it could say matters */
			break;
		}
		r = agent_frame_next(
			c->rx + at, c->rx_len - at, AGENT_FROM_HOST, &f, &used, e);
		if (r < 0)
			return r;
		if (!r)
			break;
		at += used;
		r = conn_take_frame(c, &f, e);
		if (c->dead)
			return 0;
		if (r)
			return r;
	}
	if (c->dead)
		return 0;
	memmove(c->rx, c->rx + at, c->rx_len - at);
	c->rx_len -= at;
	if (c->role != AT_REQUEST && c->rx_cap > STREAM_RX && c->rx_len <= STREAM_RX) {
		/* A long request needs its room no more. */
		char *smaller = realloc(c->rx, STREAM_RX);

		if (smaller) {
			c->rx = smaller;
			c->rx_cap = STREAM_RX;
		}
	}
	return 0;
}

static int
rx_room(struct conn *c, struct err *e)
{
	size_t cap = c->rx_cap;
	char *bigger;

	if (c->role == IN_EXEC) {
		/* Big buffers only for those that send much. */
		if (c->rx_len == cap)
			cap = STREAM_RX;
	} else if (c->rx_len == cap) {
		cap = 2 * cap < AGENT_REQUEST_MAX ? 2 * cap : AGENT_REQUEST_MAX;
	}
	if (cap <= c->rx_cap)
		return 0;
	bigger = realloc(c->rx, cap);
	if (!bigger)
		return err_sys(e, -ENOMEM, "receiving");
	c->rx = bigger;
	c->rx_cap = cap;
	return 0;
}

/* One read and what it brings. False when there is no more now. */
static bool
receive(struct conn *c)
{
	struct err e = {0};
	ssize_t n;
	bool full;
	int r = rx_room(c, &e);

	if (!r) {
		n = recv(c->src.fd, c->rx + c->rx_len, c->rx_cap - c->rx_len,
			MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return false;
		if (n < 0) {
			conn_drop(c);
			return false;
		}
		if (!n) {
			/* Half closed: it may still read. A command or an answer goes on;
			 * a request cut short does not. */
			c->read_eof = true;
			if (c->role != IN_EXEC && c->role != IN_GET &&
				c->role != IN_HANDSHAKE && c->tx_at == c->tx_len)
				conn_drop(c);
			else if (c->role == AT_REQUEST || c->role == AT_CONNECT ||
				 c->role == DIALLING || c->role == STAYING)
				conn_drop(c);
			else
				deferred_queue(&c->flush);
			return false;
		}
		c->rx_len += (size_t)n;
		full = c->rx_len == c->rx_cap;
		r = process(c, &e);
		if (!r)
			return !c->dead && full;
	}
	if (!c->dead) {
		c->rx_len = 0;
		conn_fail(c, &e);
	}
	return false;
}

/* The peer does not read any more. What it said before counts: a signal, its taking of
 * the end. */
static void
gone(struct conn *c)
{
	while (!c->dead && !c->read_eof && receive(c))
		;
	conn_drop(c);
}

static void
flush(struct deferred *call)
{
	struct conn *c = container_of(call, struct conn, flush);

	if (!conn_send(c))
		gone(c);
}

static void
ready(struct source *s, uint32_t events)
{
	struct conn *c = container_of(s, struct conn, src);

	if (events & EPOLLIN)
		receive(c);
	if (c->dead)
		return;
	if (events & (EPOLLHUP | EPOLLERR)) {
		gone(c);
		return;
	}
	if (events & EPOLLOUT)
		deferred_queue(&c->flush);
}

static void
too_late(struct timer *t)
{
	struct conn *c = container_of(t, struct conn, deadline);

	if (c->role == AT_CONNECT || c->role == AT_REQUEST) {
		struct err e = {-ETIMEDOUT, "no request came"};

		conn_fail(c, &e);
		return;
	}
	conn_drop(c);
}

void
conn_accept(int fd, uint32_t number, bool connect_line, bool is_host)
{
	static struct log_limit limit = {.burst = 5};
	struct conn *c = conn_new(fd);

	if (!c) {
		static const char busy[] =
			"{\"ok\":false,\"error\":\"the agent has too many connections\","
			"\"errno\":\"EAGAIN\",\"code\":-11}\n";
		char text[sizeof(busy) + OK_LINE_MAX] = "";

		if (connect_line)
			snprintf(text, sizeof(text), OK_LINE, number);
		strcat(text, busy);
		/* Told as far as its socket takes it. */
		(void)!send(fd, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
		if (log_allowed(&limit))
			log_warn("a connection refused: %u are open", conn_count());
		close(fd);
		return;
	}
	c->is_host = is_host;
	c->number = number;
	c->role = connect_line ? AT_CONNECT : AT_REQUEST;
	c->src.ready = ready;
	c->flush.run = flush;
	c->deadline.fire = too_late;
	if (source_wait(&c->src, EPOLLIN)) {
		conn_drop(c);
		return;
	}
	timer_set(&c->deadline, loop_now_ns() + REQUEST_NS);
	/* Mostly the request is there already. */
	receive(c);
}
