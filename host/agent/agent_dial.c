/*
 * Connections to ports of a guest. What the guest sends is bounded by the link's buffer:
 * it is read only when what came before has gone to the client. What the client sends is
 * bounded by one frame.
 */
#include "host/agent/agent_client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_link.h"

#define PIECE (32u * 1024u)

struct carry {
	struct agent_link link;
	int fd; /* borrowed: the client's */
	/* To the guest. */
	char *tx; /* owned: a frame */
	size_t tx_at, tx_len;
	bool up_end; /* the client has ended its direction, and AGENT_END is on its way */
	/* From the guest: what is still to go to the client. */
	const uint8_t *out;
	size_t out_len;
	uint64_t bytes;
	bool down_end;
};

static int
stopped(void *ctx)
{
	(void)ctx;
	return -ECANCELED;
}

static int
client_broke(struct err *e)
{
	return err_set(e, -ECONNRESET, "the client broke the connection");
}

static int
guest_went(struct err *e)
{
	return err_set(e, -EPIPE, "the guest went in the middle of a connection");
}

/* The last word: 1. */
static int
take_end(const struct carry *c, const struct agent_frame *f, struct err *e)
{
	struct agent_end end;

	memcpy(&end, f->payload, sizeof(end));
	if (!c->down_end || !c->up_end || end.bytes != c->bytes)
		return err_set(e, -EPROTO,
			"the guest's agent ended a connection of %llu bytes that was not over (%llu)",
			(unsigned long long)end.bytes, (unsigned long long)c->bytes);
	return 1;
}

/* Frames that are there, until one must wait for the client. 1: the end. */
static int
dial_frames(struct carry *c, struct err *e)
{
	struct agent_frame f;

	while (!c->out_len) {
		int r = agent_link_frame(&c->link, &f, e);

		if (r != 1)
			return r;
		switch (f.type) {
		case AGENT_DATA:
			if (c->down_end)
				return err_set(e, -EPROTO,
					"the guest's agent sent data after its end");
			c->out = f.payload;
			c->out_len = f.len;
			c->bytes += f.len;
			break;
		case AGENT_DATA_END:
			c->down_end = true;
			shutdown(c->fd, SHUT_WR);
			break;
		case AGENT_END:
			return take_end(c, &f, e);
		case AGENT_ERROR:
			return agent_link_error(&f, e);
		default:
			return err_set(e, -EPROTO,
				"the guest's agent sent frame type %u in a connection",
				f.type);
		}
	}
	return 0;
}

static int
give_to_client(struct carry *c, struct err *e)
{
	while (c->out_len) {
		ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0)
			return client_broke(e);
		c->out += n;
		c->out_len -= (size_t)n;
	}
	return 0;
}

static int
take_from_client(struct carry *c, struct err *e)
{
	struct agent_frame_hdr h;
	ssize_t n = recv(c->fd, c->tx + sizeof(h), PIECE, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0)
		return client_broke(e);
	h = agent_frame_hdr(n ? AGENT_DATA : AGENT_END, 0, (uint32_t)n);
	c->up_end = !n;
	memcpy(c->tx, &h, sizeof(h));
	c->tx_at = 0;
	c->tx_len = sizeof(h) + (size_t)n;
	return 0;
}

static int
give_to_guest(struct carry *c, struct err *e)
{
	while (c->tx_at < c->tx_len) {
		ssize_t n = send(c->link.fd, c->tx + c->tx_at, c->tx_len - c->tx_at,
			MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0 && errno != EPIPE && errno != ECONNRESET)
			return err_sys(e, -errno, "sending to the guest");
		/* Gone: what it said before is still read, its end is found there. */
		c->tx_at = n < 0 ? c->tx_len : c->tx_at + (size_t)n;
	}
	return 0;
}

static int
carry(struct carry *c, int stop_fd, struct err *e)
{
	int r;

	while ((r = dial_frames(c, e)) == 0) {
		struct pollfd p[3] = {{.fd = c->link.fd}, {.fd = c->fd},
			{.fd = stop_fd, .events = POLLIN}};
		bool up = c->tx_at < c->tx_len;

		if (c->out_len)
			p[1].events |= POLLOUT;
		else if (!c->link.eof)
			p[0].events |= POLLIN;
		else
			return guest_went(e);
		if (up)
			p[0].events |= POLLOUT;
		else if (!c->up_end)
			p[1].events |= POLLIN;
		/* Hang-ups are told unasked. The client's is looked at when there is room
		 * for what it said before; but one that has said all and goes is gone. */
		if (!p[0].events)
			p[0].fd = -1;
		if (!p[1].events && (!c->up_end || c->down_end))
			p[1].fd = -1;
		if (poll(p, 3, -1) < 0 && errno != EINTR)
			return err_sys(e, -errno, "poll");
		if (p[2].revents)
			return err_set(e, -ECANCELED, "cancelled");
		if (p[1].revents && !p[1].events)
			return client_broke(e);
		if (p[1].revents && c->out_len)
			r = give_to_client(c, e);
		if (r == 0 && p[1].revents && (p[1].events & POLLIN))
			r = take_from_client(c, e);
		if (r == 0 && c->tx_at < c->tx_len)
			r = give_to_guest(c, e);
		if (r == 0 && p[0].revents && (p[0].events & POLLIN))
			r = agent_link_fill(&c->link, e);
		if (r == 0)
			r = dial_frames(c, e);
		if (r == 0)
			r = give_to_client(c, e);
		if (r != 0)
			break;
	}
	return r;
}

static int
open_link(struct agent_link *l, const char *socket_path, const char *op, uint16_t port,
	int stop_fd, struct err *e)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_str(&o, "op", op);
	if (port)
		json_out_u64(&o, "port", port);
	json_out_end_object(&o);
	if (stop_fd >= 0) {
		l->wake = stopped;
		l->wake_fd = stop_fd;
	}
	return agent_link_open_patiently(
		l, socket_path, &o, AGENT_BECOMING_MS, NULL, NULL, e);
}

int
agent_dial(const char *socket_path, uint16_t port, int fd, int stop_fd, struct err *e)
{
	struct carry c = {.link = AGENT_LINK_INIT, .fd = fd};
	struct linger reset = {.l_onoff = 1};
	int r = open_link(&c.link, socket_path, "dial", port, stop_fd, e);

	if (r == 0) {
		c.tx = malloc(sizeof(struct agent_frame_hdr) + PIECE);
		r = c.tx ? carry(&c, stop_fd, e)
			 : err_sys(e, -ENOMEM, "a connection to the guest");
	}
	agent_link_done(&c.link);
	free(c.tx);
	/* Cut short must not look like the end. */
	if (r < 0)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	return r < 0 ? r : 0;
}

int
agent_stay(const char *socket_path, int stop_fd, struct err *e)
{
	cleanup_agent_link struct agent_link l = AGENT_LINK_INIT;
	int r = open_link(&l, socket_path, "stay", 0, stop_fd, e);

	while (r == 0 && !l.eof) {
		l.at = l.len; /* nothing it could say matters */
		r = agent_link_wait(&l, POLLIN, 0, e);
		if (r == 0)
			r = agent_link_fill(&l, e);
	}
	return r < 0 ? r : err_set(e, -EPIPE, "the guest's agent went");
}
