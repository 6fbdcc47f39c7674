/*
 * An identity handshake as the agent reads it. What is taken must be whole: an id, a generation that is
 * not zero, a host name that is one, enough entropy, and an environment that its files
 * can hold.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "guest-agent/server/agent_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct request q;
	struct err e = {0};
	int r = request_read((const char *)data, size, &q, &e);
	char *one = NULL, *two = NULL;
	const struct handshake *h;

	if (r) {
		if (r >= 0 || e.code != r || !*e.msg)
			abort();
		return 0;
	}
	h = q.handshake;
	if ((q.op == REQUEST_HANDSHAKE) != (h != NULL))
		abort();
	if (h) {
		if (strlen(h->id) != AGENT_VM_ID_LEN ||
			strlen(h->generation) != AGENT_GENERATION_LEN ||
			strspn(h->generation, "0") == AGENT_GENERATION_LEN ||
			!*h->host_name || strpbrk(h->host_name, "/ \n") ||
			strpbrk(h->name, "/ \n") || h->entropy_len < AGENT_ENTROPY_MIN ||
			h->entropy_len > AGENT_ENTROPY_MAX || !h->hook_ms ||
			(*h->ssh_key && (strlen(h->ssh_key) != AGENT_SSH_KEY_LEN ||
						strpbrk(h->ssh_key, "\n\r\t\""))) ||
			!h->wall_ns || (h->parent && h->env.n) || h->env.n > ENV_VARS_MAX)
			abort();
		if (env_write(&h->env, false, &one, &e) ||
			env_write(&h->env, true, &two, &e))
			abort();
		free(one);
		free(two);
	}
	request_done(&q);
	return 0;
}
