/*
 * The host's side of an identity handshake (common/wire/agent_wire.h): tells a guest's agent who its machine
 * is from now on, and waits for the acknowledgement. What the guest says is checked and
 * bounded, as in host/agent/agent_client.h, whose rules for errors hold here, too.
 */
#ifndef PANDO_HOST_AGENT_AGENT_HANDSHAKE_H
#define PANDO_HOST_AGENT_AGENT_HANDSHAKE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/env.h"
#include "common/err.h"
#include "common/wire/agent_wire.h"

/* "ssh-ed25519 " and 68 letters. */
#define AGENT_HOST_KEY_MAX 96

struct agent_handshake {
	const char *id, *name, *host_name;
	const uint8_t *generation; /* 16 bytes */
	const uint8_t *entropy;	   /* AGENT_ENTROPY_MAX bytes */
	bool parent;
	const struct env *env;	   /* NULL: none */
	const char *const *labels; /* key, value, key, value, …, NULL; NULL: none */
	uint32_t hook_ms;	   /* 0: the agent's default */
	const char *ssh_key; /* that may come in (public); NULL: none. An agent that is
				older than SSH is told without. */
	/* Called with each step that the agent names, but not twice for one that it names
	 * again after a broken connection. NULL: nobody listens. */
	void (*on_step)(void *ctx, const char *step);
	void *step_ctx;
};

struct agent_ack {
	char host_key[AGENT_HOST_KEY_MAX]; /* empty: none was said */
	uint64_t total_us;		   /* in the guest */
	unsigned n_steps;
	struct {
		char name[AGENT_STEP_NAME_MAX + 1];
		uint64_t us;
	} steps[AGENT_STEPS_MAX];
};

/* Times timeout_ms: the longest identity handshake, however many steps its agent names. */
#define AGENT_HANDSHAKE_CEILING 5

/* timeout_ms: until the first step, and of each step; AGENT_HANDSHAKE_CEILING times that in all.
 * 0: acknowledged. -ETIMEDOUT names the step the guest is in; the identity handshake goes on
 * there, and may be said again. -EOPNOTSUPP: the agent is older than identity handshakes. What a step of the
 * guest failed with comes with its errno and a sentence that begins with the step. cancel
 * (may be NULL) is asked at least every 100 ms; a negative return ends the wait with that
 * code. */
int agent_handshake(const char *socket_path, const struct agent_handshake *h,
	int timeout_ms, int (*cancel)(void *ctx), void *ctx, struct agent_ack *ret,
	struct err *e);

/* Whether it is what a guest's Ed25519 key must look like. */
bool agent_is_host_key(const char *text);

#endif
