#include "guest-agent/server/dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/agent_frame.h"
#include "guest-agent/system/loop.h"

/* A listener whose queue is full answers nothing, and the kernel tries again after 1, 3,
 * 7, 15, 31 s. The host waits for a minute. */
#define CONNECT_NS 50000000000ull
/* For the host to close after the terminal record. */
#define CLOSE_NS 10000000000ull
#define PIECE (32u * 1024u)
#define TX_ROOM (sizeof(struct agent_frame_hdr) + PIECE)
/* Rounds of one dial before the others get their turn. */
#define ROUNDS_A_TURN 8

struct dial {
	struct dial *unused; /* first: loop_free() writes here */
	dial_done *done;     /* NULL from dial_run() on */
	void *asker;	     /* weak: for done */
	uint16_t port;
	bool second;	/* ::1 is being tried */
	struct err why; /* for the report; code 0: it went well */
	struct source tcp, host;
	struct deferred report, turn;
	struct timer deadline;

	/* From the host: frames; payload [up_at, up_to) of rx is on its way to the
	 * program. */
	uint8_t *rx; /* owned */
	size_t rx_at, rx_len, up_at, up_to;
	bool up_end;  /* the host has said its AGENT_END */
	bool up_shut; /* and the program knows */
	bool up_dead; /* the program takes no more */

	/* To the host: frames, ready to go. */
	uint8_t *tx; /* owned */
	size_t tx_at, tx_len;
	uint64_t bytes; /* of the program, in frames */
	bool down_end;	/* it has ended its output */
	bool over;	/* the terminal record is in tx, or went */
};

static unsigned n_dials;

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

static void
end(struct dial *d)
{
	/* Cut short: the program must not take it for a proper end. */
	struct linger reset = {.l_onoff = 1};

	if (!d->over && d->tcp.fd >= 0)
		setsockopt(d->tcp.fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	source_close(&d->tcp);
	source_close(&d->host);
	deferred_drop(&d->report);
	deferred_drop(&d->turn);
	timer_stop(&d->deadline);
	free(d->rx);
	free(d->tx);
	n_dials--;
	loop_free(d);
}

/*
 * Connecting.
 */

static void
report(struct deferred *call)
{
	struct dial *d = container_of(call, struct dial, report);

	if (!d->why.code) {
		d->done(d->asker, NULL);
		return;
	}
	d->done(d->asker, &d->why);
	end(d);
}

static void
outcome(struct dial *d)
{
	timer_stop(&d->deadline);
	source_wait(&d->tcp, 0);
	deferred_queue(&d->report);
}

static void attempt(struct dial *d);

/* What one address said: 0, or an errno. */
static void
answered(struct dial *d, int code)
{
	if (code && !d->second && code != ENOMEM && code != EMFILE && code != ENFILE) {
		source_close(&d->tcp);
		d->second = true;
		attempt(d);
		return;
	}
	/* Without IPv6, what 127.0.0.1 said stands. */
	if (code == EAFNOSUPPORT || code == EADDRNOTAVAIL || code == ECONNREFUSED)
		err_set(&d->why, -ECONNREFUSED,
			"nothing listens on port %u (of 127.0.0.1 and ::1)", d->port);
	else if (code)
		err_sys(&d->why, -code, "port %u", d->port);
	outcome(d);
}

/* A port out of the ephemeral range, at which nobody listens, can by chance be connected
 * to itself. */
static bool
is_itself(int fd)
{
	struct sockaddr_storage a = {0}, b = {0};
	socklen_t al = sizeof(a), bl = sizeof(b);

	return !getsockname(fd, (struct sockaddr *)&a, &al) &&
	       !getpeername(fd, (struct sockaddr *)&b, &bl) && al == bl &&
	       memcmp(&a, &b, al) == 0;
}

static void
connected(struct source *s, uint32_t events)
{
	struct dial *d = container_of(s, struct dial, tcp);
	int code = 0;
	socklen_t len = sizeof(code);

	(void)events;
	if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &code, &len))
		code = errno;
	if (!code && is_itself(s->fd))
		code = ECONNREFUSED;
	answered(d, code);
}

static void
attempt(struct dial *d)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET,
		.sin_port = htons(d->port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
		.sin6_port = htons(d->port),
		.sin6_addr = IN6ADDR_LOOPBACK_INIT};
	const struct sockaddr *a =
		d->second ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
	int fd = socket(a->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int r;

	if (fd < 0) {
		answered(d, errno);
		return;
	}
	source_init(&d->tcp, fd, connected);
	r = connect(fd, a, d->second ? sizeof(v6) : sizeof(v4)) ? errno : 0;
	if (r == EINPROGRESS || !r)
		r = source_wait(&d->tcp, EPOLLOUT) ? ENOMEM : 0;
	if (r)
		answered(d, r);
}

static void
too_late(struct timer *t)
{
	struct dial *d = container_of(t, struct dial, deadline);

	if (!d->done) {
		end(d);
		return;
	}
	err_set(&d->why, -ETIMEDOUT,
		"port %u does not answer: its program takes no connections", d->port);
	outcome(d);
}

/*
 * Carrying.
 */

static void
put(struct dial *d, uint8_t type, const void *payload, size_t len)
{
	struct agent_frame_hdr h = agent_frame_hdr(type, 0, (uint32_t)len);

	/* One frame at a time: there is room. */
	memcpy(d->tx + d->tx_len, &h, sizeof(h));
	if (len)
		memcpy(d->tx + d->tx_len + sizeof(h), payload, len);
	d->tx_len += sizeof(h) + len;
}

/* The last word. */
static void
put_error(struct dial *d, int code, const char *sentence)
{
	char payload[sizeof(struct agent_error) + 256];
	struct agent_error h = {.code = code};
	size_t len = strnlen(sentence, 256);

	memcpy(payload, &h, sizeof(h));
	memcpy(payload + sizeof(h), sentence, len);
	put(d, AGENT_ERROR, payload, sizeof(h) + len);
	d->over = true;
}

/* The next frame of the host, once the one before is done with. 1: something was done; 0;
 * negative: the end. */
static int
take_from_host(struct dial *d)
{
	struct agent_frame f;
	struct err e = {0};
	size_t used;
	ssize_t n;
	int r;

	if (d->up_at < d->up_to)
		return 0;
	if (!d->over && !d->up_end) {
		r = agent_frame_next(d->rx + d->rx_at, d->rx_len - d->rx_at,
			AGENT_FROM_HOST, &f, &used, &e);
		if (r < 0 || (r && f.type != AGENT_DATA && f.type != AGENT_END))
			return -EPROTO;
		if (r) {
			d->rx_at += used;
			if (f.type == AGENT_END)
				d->up_end = true;
			else if (!d->up_dead) {
				d->up_at = (size_t)(f.payload - d->rx);
				d->up_to = d->up_at + f.len;
			}
			return 1;
		}
	} else if (d->rx_at < d->rx_len && !d->over) {
		return -EPROTO; /* after its end */
	} else {
		d->rx_at = d->rx_len;
	}
	memmove(d->rx, d->rx + d->rx_at, d->rx_len - d->rx_at);
	d->rx_len -= d->rx_at;
	d->rx_at = d->up_at = d->up_to = 0;
	n = recv(d->host.fd, d->rx + d->rx_len, AGENT_FRAME_WHOLE - d->rx_len,
		MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0)
		return -EPIPE;
	d->rx_len += (size_t)n;
	return 1;
}

static int
give_to_tcp(struct dial *d)
{
	ssize_t n;

	if (d->over || d->up_dead)
		return 0;
	if (d->up_at == d->up_to) {
		if (!d->up_end || d->up_shut)
			return 0;
		d->up_shut = true;
		shutdown(d->tcp.fd, SHUT_WR);
		return 1;
	}
	n = send(d->tcp.fd, d->rx + d->up_at, d->up_to - d->up_at,
		MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0) {
		/* What it wrote before it broke is still to be read. */
		d->up_dead = true;
		d->up_at = d->up_to;
		return 1;
	}
	d->up_at += (size_t)n;
	return 1;
}

static int
take_from_tcp(struct dial *d)
{
	ssize_t n;

	if (d->over || d->tx_at < d->tx_len)
		return 0;
	d->tx_at = d->tx_len = 0;
	if (!d->down_end) {
		struct agent_frame_hdr h;

		n = recv(d->tcp.fd, d->tx + sizeof(h), PIECE, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0 || (!n && d->up_dead)) {
			put_error(d, n < 0 ? -errno : -ECONNRESET,
				"the program behind the port broke the connection");
			return 1;
		}
		if (!n) {
			d->down_end = true;
			put(d, AGENT_DATA_END, NULL, 0);
			return 1;
		}
		h = agent_frame_hdr(AGENT_DATA, 0, (uint32_t)n);
		memcpy(d->tx, &h, sizeof(h));
		d->tx_len = sizeof(h) + (size_t)n;
		d->bytes += (uint64_t)n;
		return 1;
	}
	if (d->up_dead) {
		put_error(d, -ECONNRESET,
			"the program behind the port broke the connection");
		return 1;
	}
	if (d->up_shut) {
		struct agent_end last = {.bytes = d->bytes};

		put(d, AGENT_END, &last, sizeof(last));
		d->over = true;
		return 1;
	}
	return 0;
}

static int
give_to_host(struct dial *d)
{
	ssize_t n;

	if (d->tx_at == d->tx_len)
		return 0;
	n = send(d->host.fd, d->tx + d->tx_at, d->tx_len - d->tx_at,
		MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0)
		return -EPIPE;
	d->tx_at += (size_t)n;
	return 1;
}

static void
turn(struct deferred *call)
{
	struct dial *d = container_of(call, struct dial, turn);
	uint32_t tcp = 0, host = 0;
	int did = 1;

	for (int i = 0; did && i < ROUNDS_A_TURN; i++) {
		int (*const steps[])(struct dial *) = {
			take_from_host, give_to_tcp, take_from_tcp, give_to_host};

		did = 0;
		for (size_t k = 0; k < sizeof(steps) / sizeof(steps[0]); k++) {
			int r = steps[k](d);

			if (r < 0) {
				end(d);
				return;
			}
			did |= r;
		}
	}
	if (d->over && d->tcp.fd >= 0) {
		source_close(&d->tcp);
		timer_set(&d->deadline, loop_now_ns() + CLOSE_NS);
	}
	/* Nobody tells of a frame that is here already: it goes on with the next round of
	 * all, as soon as the program takes it. */
	if (d->up_at < d->up_to || (did && d->rx_at < d->rx_len))
		tcp |= EPOLLOUT;
	if (d->up_at == d->up_to)
		host |= EPOLLIN;
	if (d->tx_at < d->tx_len)
		host |= EPOLLOUT;
	else if (!d->down_end)
		tcp |= EPOLLIN;
	/* Hang-ups are always told. The host's are the end of all, so EPOLLPRI stands for
	 * nothing. Those of a program that waits for us to read on would be told without
	 * end: it is looked at when that is done. But with its output ended, one means
	 * that it takes no more. */
	if (!tcp && d->down_end && !d->up_shut)
		tcp = EPOLLPRI;
	source_wait(&d->tcp, tcp);
	source_wait(&d->host, host ? host : EPOLLPRI);
}

static void
tcp_ready(struct source *s, uint32_t events)
{
	struct dial *d = container_of(s, struct dial, tcp);

	if ((events & (EPOLLHUP | EPOLLERR)) && d->down_end && !d->up_shut) {
		d->up_dead = true;
		d->up_at = d->up_to;
	}
	deferred_queue(&d->turn);
}

static void
host_ready(struct source *s, uint32_t events)
{
	struct dial *d = container_of(s, struct dial, host);

	/* Gone, before all was said: what it says with its last bytes is read, what the
	 * program is too slow for is not waited for. */
	if ((events & (EPOLLHUP | EPOLLERR)) && !(events & EPOLLIN)) {
		end(d);
		return;
	}
	deferred_queue(&d->turn);
}

int
dial_begin(uint16_t port, dial_done *done, void *ctx, struct dial **ret, struct err *e)
{
	struct dial *d;

	if (n_dials >= AGENT_DIALS_MAX)
		return err_set(e, -EAGAIN,
			"%d connections to ports of this guest are open already",
			AGENT_DIALS_MAX);
	d = calloc(1, sizeof(*d));
	if (!d)
		return err_sys(e, -ENOMEM, "a connection");
	n_dials++;
	d->done = done;
	d->asker = ctx;
	d->port = port;
	d->report.run = report;
	d->turn.run = turn;
	d->deadline.fire = too_late;
	source_init(&d->tcp, -1, connected);
	source_init(&d->host, -1, host_ready);
	timer_set(&d->deadline, loop_now_ns() + CONNECT_NS);
	*ret = d;
	attempt(d);
	return 0;
}

void
dial_cancel(struct dial *d)
{
	end(d);
}

void
dial_run(struct dial *d, int fd, const void *said, size_t said_len, const void *heard,
	size_t heard_len)
{
	int tcp = d->tcp.fd, on = 1;

	d->done = NULL;
	d->asker = NULL;
	source_init(&d->tcp, tcp, tcp_ready);
	source_init(&d->host, fd, host_ready);
	setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (said_len > TX_ROOM || heard_len > AGENT_FRAME_WHOLE) {
		end(d);
		return;
	}
	d->rx = malloc(AGENT_FRAME_WHOLE);
	d->tx = malloc(TX_ROOM);
	if (!d->rx || !d->tx) {
		end(d);
		return;
	}
	memcpy(d->tx, said, said_len);
	d->tx_len = said_len;
	memcpy(d->rx, heard, heard_len);
	d->rx_len = heard_len;
	deferred_queue(&d->turn);
}
