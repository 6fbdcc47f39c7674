/*
 * The request line the agent reads. What is taken must be whole: a program to run or a
 * login shell, an environment of NAME=value, a port.
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

	if (r) {
		/* A refusal has its sentence. */
		if (r >= 0 || e.code != r || !*e.msg)
			abort();
		return 0;
	}
	if (q.op == REQUEST_EXEC) {
		if (q.login ? q.argv != NULL : !q.argv || !q.argv[0] || !*q.argv[0])
			abort();
		if (q.hangup && q.detach)
			abort();
		for (char **v = q.env; v && *v; v++)
			if (!strchr(*v, '='))
				abort();
	}
	if ((q.op == REQUEST_PUT || q.op == REQUEST_GET || q.op == REQUEST_LIST) &&
		!q.path)
		abort();
	if (q.op == REQUEST_DIAL && !q.port)
		abort();
	request_done(&q);
	return 0;
}
