/*
 * JSON in lines of up to 16 MiB, checked and looked into in place: no table of tokens
 * (common/json.h), which would be larger than the line. Nothing here allocates.
 */
#ifndef PANDO_COMMON_WIRE_JSON_LINE_H
#define PANDO_COMMON_WIRE_JSON_LINE_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

#define JSON_LINE_DEPTH 512

/* Exactly one value, all of RFC 8259: numbers, escapes, literals, UTF-8. -EINVAL with a
 * sentence that names the byte. */
int json_line_check(const char *text, size_t len, struct err *e);

struct rpc_span {
	const char *at; /* borrowed; without blanks around it */
	size_t len;
};

/* These take any bytes; where they are no JSON the answer is false, or a span inside. */
struct rpc_span json_line_trim(const char *text, size_t len);
bool json_line_member(struct rpc_span object, const char *key, struct rpc_span *ret);
/* Elements in order; *at begins as 0. */
bool json_line_element(struct rpc_span array, size_t *at, struct rpc_span *ret);
/* A string that is exactly this, written without escapes. */
bool json_line_is(struct rpc_span value, const char *text);
/* A literal: true, false, null. */
bool json_line_literal(struct rpc_span value, const char *literal);

#endif
