/* A set of chunks' names in memory: open addressing; the name of zeroes is a free slot. */
#ifndef PANDO_HOST_STORE_STORE_NAMES_H
#define PANDO_HOST_STORE_STORE_NAMES_H

#include "host/store/store_hash.h"

/* Zeroed is empty. */
struct names {
	struct store_hash *slots; /* owned */
	size_t n, cap;		  /* cap: 0 or a power of two */
};

void names_done(struct names *s);
bool names_have(const struct names *s, const struct store_hash *h);
/* Again is fine; not the name of zeroes. -ENOMEM. */
int names_add(struct names *s, const struct store_hash *h);

#endif
