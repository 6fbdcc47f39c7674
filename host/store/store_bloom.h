/*
 * A set of hashes that may say yes where it should say no (one in some 300), never the
 * other way round. Each key's bits lie in one cache line: asking costs one miss.
 */
#ifndef PANDO_HOST_STORE_STORE_BLOOM_H
#define PANDO_HOST_STORE_STORE_BLOOM_H

#include "host/store/store_hash.h"

struct bloom {
	uint64_t *lines; /* owned; 64 bytes each */
	uint64_t n_lines;
	uint64_t room; /* keys it is made for; more only make it say yes more often */
};

/* -ENOMEM. */
int bloom_init(struct bloom *b, uint64_t room);
void bloom_done(struct bloom *b);
/* By one thread at a time; others may ask meanwhile. */
void bloom_add(struct bloom *b, const struct store_hash *h);
/* One that was never initialised has nothing. */
bool bloom_has(const struct bloom *b, const struct store_hash *h);

#endif
