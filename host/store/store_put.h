/*
 * Pages on their way into a pack. They are copied into batches, which the threads of the
 * store hash, look up and compress, several at once; the writer takes the batches back in
 * the order in which the pages were put. So what a writer makes of them does not depend on
 * the number of threads. Zeroes are recognised when they are put, and go no further.
 *
 * A line belongs to one writer, and to one thread at a time.
 */
#ifndef PANDO_HOST_STORE_STORE_PUT_H
#define PANDO_HOST_STORE_STORE_PUT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "host/store/store_hash.h"
#include "host/store/store_zip.h"

struct store;
struct put_line;

/* A page, as its writer takes it back. */
struct put_page {
	struct store_hash hash; /* of zeroes: the name of zeroes, and nothing below */
	bool stored;		/* in a pack already */
	uint16_t zipped;	/* bytes at `bytes`; 0: the page itself, not compressed */
	const uint8_t *bytes;
};

/* What a line gives its pages to; tree as it was put. A negative value ends it all. */
typedef int put_take_fn(
	void *ctx, void *tree, uint64_t page, const struct put_page *p, struct err *e);

/* generation: the writer's (hold_begin()). zip: borrowed, the calling thread's. */
int put_line_new(struct store *s, uint64_t generation, struct zip *zip, put_take_fn *take,
	void *ctx, struct put_line **ret);
/* What was put and not taken is forgotten. NULL is fine. */
void put_line_free(struct put_line *l);

/* The page's STORE_PAGE bytes are copied. Earlier pages may be taken meanwhile; their
 * errors are returned here. After an error the line takes nothing any more. */
int put_line_page(struct put_line *l, void *tree, uint64_t page, const uint8_t *bytes,
	bool *ret_zero, struct err *e);
/* Until all that was put is taken. */
int put_line_drain(struct put_line *l, struct err *e);

#endif
