/*
 * A call, from its route and body to its answer.
 */
#ifndef PANDO_HOST_API_CALL_RUN_H
#define PANDO_HOST_API_CALL_RUN_H

#include <stddef.h>

#include "common/err.h"
#include "common/json.h"
#include "host/api/request.h"
#include "host/commit/commits.h"
#include "host/vm/tree.h"

/* The flags of its row (enum call_flag). */
unsigned call_flags(enum call call);

/* Reads the body and does the call; the answer is one JSON value in *out. progress may be
 * NULL. */
int call_run(struct tree *t, struct commits *commits, const struct route *route,
	const char *body, size_t len, const struct progress *progress,
	struct json_out *out, struct err *e);

#endif
