/*
 * The form of a state blob (vmm/snapshot.h): a header, then sections of a tag and a
 * length, each written and read by the module whose state it is. Little-endian, nothing
 * aligned but the sections (8 bytes).
 *
 * A blob may come from a hostile VMM or from a damaged file. Reading past the end of a
 * section gives zeroes and makes it bad for good; whoever composes asks blob_end_in()
 * once a section. The check sum finds damage, not malice: every value is checked by the
 * module that takes it.
 */
#ifndef PANDO_COMMON_WIRE_BLOB_H
#define PANDO_COMMON_WIRE_BLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define BLOB_MAGIC "PANDOVM\n"
#define BLOB_VERSION 1u
#define BLOB_TAG(a, b, c, d) \
	((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)

struct blob_header {
	char magic[8]; /* BLOB_MAGIC */
	uint32_t version;
	uint32_t pad;
	uint64_t bytes; /* of the whole, this header included */
	uint64_t check; /* blob_check() of all that follows the header */
};
_Static_assert(sizeof(struct blob_header) == 32, "disk format");

struct blob_section {
	uint32_t tag;
	uint32_t bytes; /* of what follows; then zeroes up to a multiple of 8 */
};
_Static_assert(sizeof(struct blob_section) == 8, "disk format");

/* Writing: into memory of the caller's. Too little of it shows at blob_finish(). */
struct blob_out {
	uint8_t *buf; /* borrowed */
	size_t cap, len;
	size_t section; /* where the open section's header lies */
	bool full;
};

void blob_start(struct blob_out *out, void *buf, size_t cap);
void blob_begin(struct blob_out *out, uint32_t tag);
void blob_end(struct blob_out *out);
void blob_put(struct blob_out *out, const void *src, size_t len);
/* Bytes of the whole blob, or 0: it did not fit. */
size_t blob_finish(struct blob_out *out);

/* Reading. */
struct blob_in {
	const uint8_t *p; /* borrowed */
	size_t left;
	bool bad;
};

/* Header and check sum; *ret then stands before the first section. */
int blob_open(const void *buf, size_t len, struct blob_in *ret, struct err *e);
/* The next section, which must be the one of that tag; what names it in an error. */
int blob_next(struct blob_in *in, uint32_t tag, const char *what, struct blob_in *ret,
	struct err *e);
/* All of a section was read, and no more. */
int blob_end_in(const struct blob_in *in, const char *what, struct err *e);
/* Copies, and skips; where too little is left: zeroes, and in->bad. */
void blob_get(struct blob_in *in, void *dst, size_t len);
/* The same without a copy; NULL where too little is left. */
const void *blob_take(struct blob_in *in, size_t len);

uint64_t blob_check(const void *buf, size_t len);

#define BLOB_SCALAR(bits) \
	static inline void blob_put_u##bits(struct blob_out *out, uint##bits##_t v) \
	{ \
		blob_put(out, &v, sizeof(v)); \
	} \
	static inline uint##bits##_t blob_get_u##bits(struct blob_in *in) \
	{ \
		uint##bits##_t v; \
\
		blob_get(in, &v, sizeof(v)); \
		return v; \
	}
BLOB_SCALAR(8)
BLOB_SCALAR(16)
BLOB_SCALAR(32)
BLOB_SCALAR(64)
#undef BLOB_SCALAR

#endif
