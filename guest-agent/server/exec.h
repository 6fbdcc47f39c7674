/*
 * Commands: the process, its pipes or terminal, its journal, its end.
 *
 * The process, its pipes and its journal are also held by its shim (exec_shim.h), so that the
 * agent may be started anew: exec_init() goes on with all of it.
 *
 * An exec belongs to the table, not to the connection that asked for it. At most one
 * connection is attached (exec_attach, exec_detach); while one is, output waits for it
 * (nothing is lost, the command blocks as on any pipe); while none is, the journal keeps
 * the last bytes. The reader learns of news through its listener. After the end the
 * record stays until exec_taken(), or until AGENT_FINISHED_MAX younger ones are there.
 *
 * Pointers are good until the end of the loop's round; the table forgets a command only
 * through exec_taken() and exec_start() (which drops the oldest finished one); one that
 * was started with "hangup" is hung up by exec_detach(), and forgotten when it has ended.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_EXEC_H
#define PANDO_GUEST_AGENT_SERVER_EXEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/json.h"
#include "common/wire/agent_wire.h"
#include "guest-agent/server/exec_shim.h"
#include "guest-agent/server/agent_request.h"
#include "guest-agent/system/ring.h"

struct exec;

/* Once: takes up what an agent before this one has left. */
void exec_init(void);
int exec_start(const struct request *q, struct exec **ret, struct err *e);
struct exec *exec_find(uint64_t id);
uint64_t exec_id(const struct exec *x);

/* What a reader is told. ctx is its own. */
struct exec_listener {
	void (*news)(void *ctx);       /* output, credit, or the end */
	void (*superseded)(void *ctx); /* another one reads from now on */
};
/* The reader from now on. l and ctx must last until it detaches or is superseded. */
void exec_attach(
	struct exec *x, const struct exec_listener *l, void *ctx, const uint64_t from[2]);
/* Nothing, when that is not the reader. */
void exec_detach(struct exec *x, const void *ctx);

/* The journals, for sending. exec_sent() says how far a stream has gone out. */
const struct ring *exec_output(const struct exec *x, int stream);
void exec_sent(struct exec *x, int stream, uint64_t offset);
/* True when it has ended: the record, and for AGENT_SPAWN_FAILED a sentence (else ""). */
bool exec_ended(const struct exec *x, struct agent_exit *ret, const char **ret_message);
void exec_taken(struct exec *x);

/* Input. -EPROTO beyond the window. What it cannot take at once is kept; exec_stdin_state
 * says what to tell the host. */
int exec_stdin(struct exec *x, const void *buf, size_t len, struct err *e);
void exec_stdin_eof(struct exec *x);
struct exec_stdin_state {
	uint64_t accepted; /* bytes taken from the host so far */
	uint64_t limit;	   /* bytes it may send in all */
	bool closed;	   /* the command reads no more */
};
struct exec_stdin_state exec_stdin_state(const struct exec *x);

int exec_signal(struct exec *x, int signo, struct err *e);
int exec_winsize(struct exec *x, uint16_t rows, uint16_t cols);

/* An array element for each: those that run by start, then those that ended by end. */
void exec_list(struct json_out *o);

#endif
