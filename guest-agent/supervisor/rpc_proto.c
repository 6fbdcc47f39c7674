#include "guest-agent/supervisor/rpc_proto.h"

#include <string.h>

#include "common/wire/json_line.h"

static void
take_reason(char *reason, struct rpc_span word)
{
	size_t n = 0;

	if (!reason)
		return;
	for (size_t i = 0; i < word.len && n + 1 < RPC_REASON_MAX; i++)
		if (word.at[i] > ' ' && word.at[i] < 0x7f && word.at[i] != '"')
			reason[n++] = word.at[i];
	reason[n] = 0;
}

/* The stop reason of the last message that has one. */
static enum rpc_event
pi_end(struct rpc_span line, char *reason)
{
	struct rpc_span messages, m, word, stop = {0};
	size_t at = 0;

	if (json_line_member(line, "willRetry", &word) && json_line_literal(word, "true"))
		return RPC_RETRIES;
	if (json_line_member(line, "messages", &messages))
		while (json_line_element(messages, &at, &m))
			if (json_line_member(m, "stopReason", &word))
				stop = word;
	take_reason(reason, stop);
	return json_line_is(stop, "error") || json_line_is(stop, "aborted") ||
			       json_line_is(stop, "length")
		       ? RPC_FAILED
		       : RPC_DONE;
}

static bool
pi_waits(struct rpc_span method)
{
	return json_line_is(method, "select") || json_line_is(method, "confirm") ||
	       json_line_is(method, "input") || json_line_is(method, "editor");
}

static enum rpc_event
pi_event(struct rpc_span line, struct rpc_span type, char *reason)
{
	struct rpc_span word;

	if (json_line_is(type, "agent_start"))
		return RPC_BEGINS;
	if (json_line_is(type, "agent_end"))
		return pi_end(line, reason);
	if (json_line_is(type, "auto_retry_start"))
		return RPC_RETRIES;
	if (json_line_is(type, "compaction_start") ||
		json_line_is(type, "auto_compaction_start"))
		return RPC_COMPACTS;
	if (json_line_is(type, "compaction_end") ||
		json_line_is(type, "auto_compaction_end"))
		return json_line_member(line, "willRetry", &word) &&
				       json_line_literal(word, "true")
			       ? RPC_RETRIES
			       : RPC_COMPACTED;
	if (json_line_is(type, "agent_settled"))
		return RPC_SETTLED;
	if (json_line_is(type, "auto_retry_end")) {
		if (!json_line_member(line, "success", &word) ||
			!json_line_literal(word, "false"))
			return RPC_NOTHING;
		take_reason(reason, (struct rpc_span){"error", 5});
		return RPC_FAILED;
	}
	if (json_line_is(type, "response")) {
		struct rpc_span command = {"", 0};
		bool prompt;

		(void)json_line_member(line, "command", &command);
		prompt =
			json_line_is(command, "prompt") || json_line_is(command, "parse");
		if (!prompt)
			return json_line_is(command, "steer") ||
					       json_line_is(command, "follow_up")
				       ? RPC_NOTHING
				       : RPC_ANSWERED;
		if (!json_line_member(line, "success", &word) ||
			!json_line_literal(word, "false"))
			return RPC_NOTHING;
		take_reason(reason, (struct rpc_span){"refused", 7});
		return RPC_REFUSED;
	}
	if (json_line_is(type, "extension_ui_request") &&
		json_line_member(line, "method", &word) && pi_waits(word))
		return RPC_DIALOG;
	return RPC_NOTHING;
}

static enum rpc_event
claude_event(struct rpc_span line, struct rpc_span type, char *reason)
{
	struct rpc_span word, request;
	bool failed = false;

	if (json_line_is(type, "system") && json_line_member(line, "subtype", &word) &&
		json_line_is(word, "init"))
		return RPC_BEGINS;
	if (json_line_is(type, "result")) {
		if (json_line_member(line, "is_error", &word))
			failed = json_line_literal(word, "true");
		if (json_line_member(line, "subtype", &word)) {
			take_reason(reason, word);
			failed = failed || !json_line_is(word, "success");
		}
		return failed ? RPC_FAILED : RPC_DONE;
	}
	if (json_line_is(type, "control_request") &&
		json_line_member(line, "request", &request) &&
		json_line_member(request, "subtype", &word) &&
		json_line_is(word, "can_use_tool"))
		return RPC_DIALOG;
	return RPC_NOTHING;
}

enum rpc_event
rpc_proto_event(
	enum rpc_protocol p, const char *line, size_t len, char reason[RPC_REASON_MAX])
{
	struct rpc_span object = json_line_trim(line, len), type;

	if (reason)
		reason[0] = 0;
	if (p == RPC_RAW || !json_line_member(object, "type", &type))
		return RPC_NOTHING;
	return p == RPC_PI ? pi_event(object, type, reason)
			   : claude_event(object, type, reason);
}

static bool
pi_answer(enum rpc_dialogs policy, struct rpc_span line, struct json_out *o)
{
	struct rpc_span id, method, options, first;
	bool allow = policy == RPC_DIALOGS_ALLOW;
	size_t at = 0;

	if (!json_line_member(line, "id", &id) || json_line_check(id.at, id.len, NULL) ||
		!json_line_member(line, "method", &method))
		return false;
	json_out_object(o, NULL);
	json_out_str(o, "type", "extension_ui_response");
	json_out_raw(o, "id", id.at, id.len);
	if (json_line_is(method, "confirm"))
		json_out_bool(o, "confirmed", allow);
	else if (allow && json_line_is(method, "select") &&
		 json_line_member(line, "options", &options) &&
		 json_line_element(options, &at, &first) &&
		 !json_line_check(first.at, first.len, NULL))
		json_out_raw(o, "value", first.at, first.len);
	else /* nobody is there to type */
		json_out_bool(o, "cancelled", true);
	json_out_end_object(o);
	return true;
}

static bool
claude_answer(enum rpc_dialogs policy, struct rpc_span line, struct json_out *o)
{
	struct rpc_span id, request, input;

	if (!json_line_member(line, "request_id", &id) ||
		json_line_check(id.at, id.len, NULL) ||
		!json_line_member(line, "request", &request))
		return false;
	json_out_object(o, NULL);
	json_out_str(o, "type", "control_response");
	json_out_object(o, "response");
	json_out_str(o, "subtype", "success");
	json_out_raw(o, "request_id", id.at, id.len);
	json_out_object(o, "response");
	if (policy == RPC_DIALOGS_ALLOW) {
		json_out_str(o, "behavior", "allow");
		if (json_line_member(request, "input", &input) &&
			!json_line_check(input.at, input.len, NULL))
			json_out_raw(o, "updatedInput", input.at, input.len);
	} else {
		json_out_str(o, "behavior", "deny");
		json_out_str(o, "message", "nobody is there to allow this");
	}
	json_out_end_object(o);
	json_out_end_object(o);
	json_out_end_object(o);
	return true;
}

bool
rpc_proto_answer(enum rpc_protocol p, enum rpc_dialogs policy, const char *line,
	size_t len, struct json_out *o)
{
	struct rpc_span object = json_line_trim(line, len);

	if (policy == RPC_DIALOGS_ASK || p == RPC_RAW)
		return false;
	return p == RPC_PI ? pi_answer(policy, object, o)
			   : claude_answer(policy, object, o);
}
