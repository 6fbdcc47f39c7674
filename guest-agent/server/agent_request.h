/*
 * The request line (common/wire/agent_wire.h), read and checked.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_AGENT_REQUEST_H
#define PANDO_GUEST_AGENT_SERVER_AGENT_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "guest-agent/identity/identity_request.h"

enum request_op {
	REQUEST_PING,
	REQUEST_EXEC,
	REQUEST_ATTACH,
	REQUEST_LIST_EXECS,
	REQUEST_SIGNAL,
	REQUEST_KILL_SSH,
	REQUEST_PUT,
	REQUEST_GET,
	REQUEST_LIST,
	REQUEST_HANDSHAKE,
	REQUEST_DIAL,
	REQUEST_STAY,
};

struct request {
	enum request_op op;
	char **argv, **env; /* owned, NULL-terminated; env may be NULL, argv with login */
	char *cwd, *user, *path, *term; /* owned; NULL when absent */
	uint64_t timeout_ms;
	bool tty, want_stdin, detach, login, hangup;
	uint16_t rows, cols, port;
	uint32_t connection; /* the number behind its "OK" */
	uint64_t id;	     /* of "e<id>" */
	uint64_t offset[2];
	int signal;
	struct handshake *handshake; /* owned; NULL but for REQUEST_HANDSHAKE */
};

/* line is without its LF. -EINVAL with a sentence that names the member. */
int request_read(const char *line, size_t len, struct request *ret, struct err *e);
void request_done(struct request *r);
#define cleanup_request __attribute__((cleanup(request_done)))

#endif
