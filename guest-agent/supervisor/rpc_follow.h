/*
 * Following what a coding agent writes, from a byte offset on.
 *
 * Framed, for the host: each piece is a line of text, and for L that many bytes behind
 *it. L <number> <offset> <len> <flags> <time_ms> <vm|-> <generation|->   then len bytes
 *	G <offset> <next>       bytes that are not kept any more
 *	D <next> <0|1> <word|-> the end of a prompt, and whether it went well
 *	E <next> <0|1>          nothing more came in the time given; whether a prompt is
 *worked on <next> is where to go on. Plain: the lines themselves.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_FOLLOW_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_FOLLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "guest-agent/supervisor/rpc_place.h"

struct rpc_follow {
	const char *stream; /* "out" or "err" */
	uint64_t from;
	bool from_end; /* instead */
	bool framed, until_done;
	bool begun;	 /* as the E of the part before said */
	uint64_t for_ms; /* 0: only what is there now; UINT64_MAX: for ever */
};

/* To stdout. *ret_failed: a prompt ended, and not well. -ERANGE: from beyond the end. */
int rpc_follow(const struct rpc_place *p, const struct rpc_follow *f, bool *ret_failed,
	struct err *e);

#endif
