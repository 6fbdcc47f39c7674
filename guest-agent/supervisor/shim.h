/*
 * The shim of a coding agent's program: a process between the supervisor and the program
 * that does nothing but hold. It has our ends of the program's pipes, the spool at the
 * position up to which it was forwarded, and the FIFO; it is the program's parent and
 * keeps its end. So the supervisor may be killed at any time: the program sees nothing of it,
 * and the next supervisor takes the same open files from the shim (pidfd_getfd(2)) and goes
 * on at the very byte.
 *
 * It runs as the supervisor does, holds lock.holder, speaks to nobody, and never ends by
 * itself. Every few seconds it looks whether there is a supervisor, and makes one when there
 * is none. In run/: `program` (its pid), `exit` (how it ended).
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_SHIM_H
#define PANDO_GUEST_AGENT_SUPERVISOR_SHIM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "guest-agent/supervisor/rpc_conf.h"
#include "guest-agent/supervisor/rpc_place.h"

struct rpc_held {
	pid_t shim, program; /* 0: none */
	int in, out, err;    /* owned; our ends of its pipes, non-blocking */
	int spool;	     /* owned; the file's position is what was forwarded */
};
#define RPC_HELD_INIT \
	{ \
		.in = -1, .out = -1, .err = -1, .spool = -1 \
	}

enum rpc_exit_kind { RPC_EXITED, RPC_SIGNALLED, RPC_NOT_STARTED, RPC_LOST };
struct rpc_exit {
	enum rpc_exit_kind kind;
	int value;	   /* status, signal, errno */
	char message[200]; /* RPC_NOT_STARTED: why */
};

/* Starts shim and program; input from byte spool_at on. fifo is borrowed. spawn_init()
 * was called. */
int shim_start(const struct rpc_place *p, const struct rpc_conf *c, uint64_t spool_at,
	int fifo, struct rpc_held *ret, struct err *e);
/* Takes over one that is there: 1; 0: there is none. */
int shim_adopt(const struct rpc_place *p, struct rpc_held *ret, struct err *e);
/* The program's end: 1 known, 0 it runs. A shim that is gone: RPC_LOST. */
int shim_exit(const struct rpc_place *p, const struct rpc_held *h, struct rpc_exit *ret);
/* Kills the program and all that it started, but not the shim. What it started is found
 * also when the program, and (with control groups) the shim, are gone. */
void shim_kill(const struct rpc_place *p, const struct rpc_held *h);
/* Input ends, for the program too. */
void shim_close_in(const struct rpc_place *p, struct rpc_held *h);
/* Ends the shim; what is still in the pipes is gone. */
void shim_release(const struct rpc_place *p, struct rpc_held *h);

#endif
