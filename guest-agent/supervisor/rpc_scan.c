#include "guest-agent/supervisor/rpc_scan.h"

#include <stdio.h>
#include <string.h>

static const char *const members[RPC_SCAN_MEMBERS] = {
	"type", "willRetry", "success", "command", "subtype", "is_error"};

static void
add(struct rpc_scan *s, char c)
{
	if (s->token_len < sizeof(s->token) - 1)
		s->token[s->token_len] = c;
	s->token_len++;
}

/* What was too long is none of the words that mean something. */
static bool
take_token(struct rpc_scan *s, char dst[RPC_SCAN_TEXT])
{
	size_t len = s->token_len;

	s->token_len = 0;
	if (!len || len >= sizeof(s->token))
		return false;
	s->token[len] = 0;
	memcpy(dst, s->token, len + 1);
	return true;
}

static bool
key_is(const struct rpc_scan *s, unsigned depth, const char *name)
{
	const char *key = s->key[depth];
	size_t len = strlen(name);

	return key[0] == '"' && strncmp(key + 1, name, len) == 0 &&
	       strcmp(key + 1 + len, "\"") == 0;
}

static void
value_done(struct rpc_scan *s)
{
	char text[RPC_SCAN_TEXT];

	if (!take_token(s, text))
		return;
	for (unsigned i = 0; s->depth == 1 && i < RPC_SCAN_MEMBERS; i++)
		if (key_is(s, 1, members[i]) && !s->member[i][0])
			memcpy(s->member[i], text, sizeof(text));
	if (s->depth == 3 && s->in_messages && s->kind[3] == '{' &&
		key_is(s, 3, "stopReason"))
		memcpy(s->stop, text, sizeof(text));
}

static void
string_done(struct rpc_scan *s)
{
	if (!s->at_key) {
		value_done(s);
		return;
	}
	if (s->depth > 3) {
		s->token_len = 0;
		return;
	}
	s->key[s->depth][0] = 0;
	take_token(s, s->key[s->depth]);
}

static void
open_one(struct rpc_scan *s, char c)
{
	s->token_len = 0;
	s->depth++;
	s->at_key = c == '{';
	if (s->depth <= 3)
		s->kind[s->depth] = c;
	if (s->depth == 2)
		s->in_messages = c == '[' && key_is(s, 1, "messages");
}

static void
byte(struct rpc_scan *s, char c)
{
	if (s->in_string) {
		add(s, c);
		if (s->escaped)
			s->escaped = false;
		else if (c == '\\')
			s->escaped = true;
		else if (c == '"') {
			s->in_string = false;
			string_done(s);
		}
		return;
	}
	switch (c) {
	case '"':
		s->token_len = 0;
		s->in_string = true;
		add(s, c);
		break;
	case '{':
	case '[':
		open_one(s, c);
		break;
	case '}':
	case ']':
		value_done(s);
		if (s->depth)
			s->depth--;
		s->at_key = false;
		break;
	case ',':
		value_done(s);
		s->at_key = s->depth && s->depth <= 3 && s->kind[s->depth] == '{';
		break;
	case ':':
		s->at_key = false;
		break;
	case ' ':
	case '\t':
	case '\r':
	case '\n':
		break;
	default:
		add(s, c);
	}
}

void
rpc_scan_feed(struct rpc_scan *s, const char *piece, size_t len)
{
	if (!s->under_way)
		*s = (struct rpc_scan){.under_way = true};
	for (size_t i = 0; i < len; i++)
		byte(s, piece[i]);
}

enum rpc_event
rpc_scan_end(struct rpc_scan *s, enum rpc_protocol p, char reason[RPC_REASON_MAX])
{
	char line[(RPC_SCAN_MEMBERS + 2) * (RPC_SCAN_TEXT + 16)] = "{";
	size_t at = 1;

	s->under_way = false;
	for (unsigned i = 0; i < RPC_SCAN_MEMBERS; i++)
		if (s->member[i][0])
			at += (size_t)snprintf(line + at, sizeof(line) - at, "\"%s\":%s,",
				members[i], s->member[i]);
	at += (size_t)snprintf(line + at, sizeof(line) - at, "\"messages\":[%s%s%s]}",
		s->stop[0] ? "{\"stopReason\":" : "", s->stop, s->stop[0] ? "}" : "");
	return rpc_proto_event(p, line, at, reason);
}
