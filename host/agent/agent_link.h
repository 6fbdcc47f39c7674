/*
 * One connection to a guest's agent: dialled, its request answered, then frames. For
 * agent_client.c, agent_exec.c and agent_copy.c only; callers use host/agent/agent_client.h.
 */
#ifndef PANDO_HOST_AGENT_AGENT_LINK_H
#define PANDO_HOST_AGENT_AGENT_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/json.h"
#include "common/wire/agent_frame.h"

/* How long a guest may take to accept a connection and to answer a request: it may be
 * slow (emulated, swapping), it is not asked for more than a start. */
#define AGENT_ANSWER_MS 60000

struct agent_link {
	int fd;	   /* owned, non-blocking after link_open */
	char *buf; /* owned: received, not yet taken */
	size_t at, len, cap;
	bool eof;
	bool late; /* has been ready once after the deadline of a wait */
	/* Asked while it waits; a negative return ends the wait. fd -1: every tick. */
	int wake_fd;
	int (*wake)(void *ctx);
	void *ctx;
};
#define AGENT_LINK_INIT \
	{ \
		.fd = -1, .wake_fd = -1 \
	}

void agent_link_done(struct agent_link *l);
#define cleanup_agent_link __attribute__((cleanup(agent_link_done)))

/* Waits for events on the link until deadline_ns (0: none): 0, -ETIMEDOUT, or what wake
 * said. What is there after the deadline is taken once, as when this process stood still; a
 * guest that always has one more byte is out of time. */
int agent_link_wait(
	struct agent_link *l, short events, uint64_t deadline_ns, struct err *e);
/* Dials, sends the request line, reads the answer: 0 when it is ok, with *ret_json (free
 * it; borrows from *ret_text, free that too). Both may be NULL. A refusal of the agent
 * comes as its errno and sentence. */
int agent_link_open(struct agent_link *l, const char *socket_path,
	struct json_out *request, uint64_t deadline_ns, struct json **ret_json,
	char **ret_text, struct err *e);
/* The same within AGENT_ANSWER_MS, for what a machine that is becoming another one
 * refuses (-EINPROGRESS): asks again for patience_ms. A parent, too, is told of each of
 * its branches, and goes on a moment later. */
int agent_link_open_patiently(struct agent_link *l, const char *socket_path,
	struct json_out *request, uint64_t patience_ms, struct json **ret_json,
	char **ret_text, struct err *e);
/* Reads once what is there; sets eof. -errno. */
int agent_link_fill(struct agent_link *l, struct err *e);
/* The next whole frame: 1; 0 when there is none yet; -EPROTO. Good until the next fill.
 */
int agent_link_frame(struct agent_link *l, struct agent_frame *ret, struct err *e);
/* The agent's AGENT_ERROR as an error. */
int agent_link_error(const struct agent_frame *f, struct err *e);

/* Guest text for a person: control bytes become '?'. */
void agent_text(char *dst, size_t cap, const void *src, size_t len);

#endif
