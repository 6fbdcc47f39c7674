/*
 * TOML 1.0.0's bare scalars: booleans, integers, floats and the four kinds of date and
 * time (https://toml.io/en/v1.0.0#integer and on). A token goes in, a value or a reason
 * comes out; where it stands in a file is toml.c's business.
 */
#ifndef PANDO_COMMON_TOML_SCALAR_H
#define PANDO_COMMON_TOML_SCALAR_H

#include <stddef.h>

#include "common/toml.h"

struct toml_scalar {
	enum toml_type type;
	union {
		bool b;
		int64_t i;
		double f;
		struct toml_datetime dt;
	};
};

/* The token that starts at s and ends before end: all that could belong to a bare scalar,
 * the one space between a date and a time included. 0: no scalar starts here. */
size_t toml_scalar_span(const char *s, const char *end);

/*
 * Reads all of s[0..len). NULL on success; else why not, a clause that fits after the
 * token
 * ("is too large for 64 bits"), and *ret_at is the byte of s it speaks of.
 */
const char *toml_scalar_read(
	const char *s, size_t len, struct toml_scalar *ret, size_t *ret_at);

#endif
