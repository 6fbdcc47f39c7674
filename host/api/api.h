/*
 * pandod's API (host/api/API.md) over HTTP on a listening Unix socket. The only file that
 * calls libmicrohttpd.
 *
 * Each connection has a thread of its own. API_CONNECTIONS_MAX are served at once; the
 * next API_SURPLUS_MAX are told so (503), and what comes beyond these is closed. A
 * request that is slow to come is dropped after API_IDLE_S; one that is being worked on
 * may take as long as it takes. The peer's uid must be ours.
 */
#ifndef PANDO_HOST_API_API_H
#define PANDO_HOST_API_API_H

#include "common/err.h"
#include "host/commit/commits.h"
#include "host/vm/tree.h"

#define API_CONNECTIONS_MAX 128
#define API_SURPLUS_MAX 64
#define API_IDLE_S 30

struct api;

/* t, c: borrowed. listen_fd: taken over, also on failure. shutdown: called, from any thread,
 * for POST /v1/shutdown. */
int api_start(struct tree *t, struct commits *c, int listen_fd,
	void (*shutdown)(void *ctx), void *ctx, struct api **ret, struct err *e);
/* Waits for the calls that are under way; tree_stop() first shortens them. */
void api_stop(struct api *a);

/* The HTTP status for an error. */
unsigned api_status(int code);
/* {"error":{…}} */
void api_error_json(const struct err *e, struct json_out *out);

#endif
