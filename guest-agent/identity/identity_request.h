/*
 * What an identity handshake says (common/wire/agent_wire.h), read and checked. Every member in range, every
 * string bounded; nothing in it is a path.
 */
#ifndef PANDO_GUEST_AGENT_IDENTITY_IDENTITY_REQUEST_H
#define PANDO_GUEST_AGENT_IDENTITY_IDENTITY_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "common/env.h"
#include "common/json.h"
#include "common/wire/agent_wire.h"

struct handshake {
	char id[AGENT_VM_ID_LEN + 1];
	char name[AGENT_VM_NAME_MAX + 1];
	char host_name[AGENT_HOST_NAME_MAX + 1];
	char generation[AGENT_GENERATION_LEN + 1];
	bool parent;	/* it stays who it is: somebody was forked from it */
	struct env env; /* owned */
	char *labels;	/* owned: a JSON object */
	uint64_t wall_ns;
	uint8_t entropy[AGENT_ENTROPY_MAX];
	size_t entropy_len;
	uint32_t hook_ms;
	char ssh_key[AGENT_SSH_KEY_LEN + 1]; /* of the host; empty: none */
};

/* -EINVAL with a sentence that names the member. */
int handshake_read(const struct json *j, struct handshake *ret, struct err *e);
/* Wipes what is secret. */
void handshake_done(struct handshake *h);

#endif
