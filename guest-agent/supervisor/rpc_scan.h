/*
 * A line of a coding agent that is too long to be kept in memory (the journal has it in
 * pieces), looked into as it comes: of all its bytes only what rpc_proto_event() asks for
 * is kept, the line's own members and the stop reason of the last of its messages.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_SCAN_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest-agent/supervisor/rpc_proto.h"

#define RPC_SCAN_TEXT 48
#define RPC_SCAN_MEMBERS 6

struct rpc_scan {
	bool under_way; /* a line has begun */
	bool in_string, escaped, at_key, in_messages;
	uint64_t depth;
	char kind[4]; /* '{' or '[' of depths 1 to 3 */
	char key[4][RPC_SCAN_TEXT];
	char token[RPC_SCAN_TEXT];
	size_t token_len; /* of all of it; only what fits is kept */
	char member[RPC_SCAN_MEMBERS][RPC_SCAN_TEXT]; /* JSON; "" not seen */
	char stop[RPC_SCAN_TEXT];
};

/* A piece of the line. Any bytes. */
void rpc_scan_feed(struct rpc_scan *s, const char *piece, size_t len);
/* The line is over: what it meant, as rpc_proto_event(). Begins anew. */
enum rpc_event rpc_scan_end(
	struct rpc_scan *s, enum rpc_protocol p, char reason[RPC_REASON_MAX]);

#endif
