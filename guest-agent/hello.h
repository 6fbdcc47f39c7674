/*
 * What a hello says (common/agent_wire.h), read and checked. Every member in range, every
 * string bounded; nothing in it is a path.
 */
#ifndef PANDO_AGENT_HELLO_H
#define PANDO_AGENT_HELLO_H

#include <stdbool.h>
#include <stdint.h>

#include "common/agent_wire.h"
#include "common/env.h"
#include "common/json.h"

struct hello {
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
int hello_read(const struct json *j, struct hello *ret, struct err *e);
/* Wipes what is secret. */
void hello_done(struct hello *h);

#endif
