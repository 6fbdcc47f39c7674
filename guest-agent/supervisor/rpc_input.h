/*
 * The supervisor's part of the way in: lines from the FIFO into the spool, the spool's bytes
 * into the program's input.
 *
 * Writes to a FIFO are whole up to PIPE_BUF (4096) bytes; of longer ones by several
 * writers the kernel makes a mixture. Where the protocol is JSON, what is none is refused
 * here and never reaches the program; `rpc send` takes the lock of the spool instead, and
 * has no such limit.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_INPUT_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_INPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "guest-agent/supervisor/rpc_proto.h"
#include "guest-agent/supervisor/rpc_spool.h"
#include "guest-agent/system/loop.h"

struct rpc_input {
	int dir;			   /* borrowed */
	const enum rpc_protocol *protocol; /* borrowed */
	struct source fifo;
	struct source pipe; /* to the program; its fd is the input's while there is one */
	int spool;	    /* borrowed; -1: no program */
	int state_fd;	    /* owned */
	char *buf;	    /* owned: of a line that is not whole */
	size_t len, cap;
	bool discards; /* the rest of a line that is too long */
	struct pending *pending,
		**pending_end; /* owned: lines the spool did not take yet */
	struct timer again;
	struct deferred more;
	uint64_t punched, refused;
	void (*fed)(struct rpc_input *in); /* the program was given something */
};

/* Opens the FIFO (and holds it open), and spool.state. */
int input_init(struct rpc_input *in, int dir, const enum rpc_protocol *protocol,
	void (*fed)(struct rpc_input *in), struct err *e);
/* A program is there: pipe_fd becomes the input's. */
void input_attach(struct rpc_input *in, int pipe_fd, int spool);
/* Gives back pipe_fd; -1 when the program has closed its end. */
int input_detach(struct rpc_input *in);
/* There may be more in the spool. */
void input_forward(struct rpc_input *in);
/* A line of the supervisor's own; copied. */
void input_say(struct rpc_input *in, const char *line, size_t len);

#endif
