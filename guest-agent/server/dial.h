/*
 * Dials: a host's TCP connection to a port of this guest's loopback
 * (common/wire/agent_wire.h).
 *
 * At first a dial belongs to the connection that asked for it and calls that back to say how
 * it went. From dial_run() on it has that connection's socket and lives on its own: two
 * sockets, one bounded buffer each way, and a side that does not read stops the other.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_DIAL_H
#define PANDO_GUEST_AGENT_SERVER_DIAL_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct dial;

/* The port has taken the connection (why is NULL), or has not. */
typedef void dial_done(void *ctx, const struct err *why);
/* Begins to connect; done(ctx) comes later, never from within, and not after dial_cancel().
 * -EAGAIN when there are AGENT_DIALS_MAX. */
int dial_begin(
	uint16_t port, dial_done *done, void *ctx, struct dial **ret, struct err *e);
/* Gives it up before dial_run(). */
void dial_cancel(struct dial *d);
/* fd is taken over. said: what still has to go out on it first; heard: what came in on it
 * already. Both are copied; together with anything else wrong (-ENOMEM) they end it. */
void dial_run(struct dial *d, int fd, const void *said, size_t said_len,
	const void *heard, size_t heard_len);

#endif
