/*
 * What the lines of a coding agent mean: the little of each protocol that a supervisor and a
 * follower must know. Lines are the agent's own and may be anything.
 *
 * pi: `pi --mode rpc` (its docs/rpc.md). agent_end is the end of a prompt; the response
 * to it only says that it was taken. One that was an error may be followed by another try:
 * auto_retry_start says so, and compaction_start (auto_compaction_start in older ones) with
 * compaction_end, whose willRetry tells whether the prompt goes on in a context that has
 * room again. agent_settled (newer ones) says that nothing of this will come. claude: Claude Code's --input-format and
 * --output-format stream-json: a result is the end. raw: lines, and nothing known of
 * them.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_PROTO_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_PROTO_H

#include <stdbool.h>
#include <stddef.h>

#include "common/json.h"

enum rpc_protocol { RPC_RAW, RPC_PI, RPC_CLAUDE };
/* What is said to a question that waits for a person. */
enum rpc_dialogs { RPC_DIALOGS_DENY, RPC_DIALOGS_ALLOW, RPC_DIALOGS_ASK };

enum rpc_event {
	RPC_NOTHING,
	RPC_BEGINS,   /* work on a prompt */
	RPC_DONE,     /* with it, and well */
	RPC_FAILED,   /* with it, and not well */
	RPC_RETRIES,  /* what has failed is tried again: it was not the end */
	RPC_COMPACTS, /* makes room in its context: a failure before may not be the end */
	RPC_COMPACTED, /* has, or could not, and tries nothing again for it */
	RPC_SETTLED,   /* nothing of all that will follow: the end before is one */
	RPC_REFUSED,   /* a prompt was not taken */
	RPC_ANSWERED,  /* a command that is no prompt */
	RPC_DIALOG,    /* waits for an answer */
};

#define RPC_REASON_MAX 64

/* reason (may be NULL): the agent's word for an end, "" when it has none. */
enum rpc_event rpc_proto_event(
	enum rpc_protocol p, const char *line, size_t len, char reason[RPC_REASON_MAX]);
/* The answer to an RPC_DIALOG, a JSON line without LF; false when it is left to whoever
 * follows. */
bool rpc_proto_answer(enum rpc_protocol p, enum rpc_dialogs policy, const char *line,
	size_t len, struct json_out *o);

#endif
