/*
 * Names of contents: BLAKE2b-256. Pages and manifests are hashed plainly (`b2sum -l 256`
 * gives the same); nodes and pack indexes with a personalisation of their own, so that
 * one can never pose as another. libsodium is called only in store_hash.c.
 */
#ifndef PANDO_HOST_STORE_STORE_HASH_H
#define PANDO_HOST_STORE_STORE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define STORE_HASH_BYTES 32
#define STORE_HEX (2 * STORE_HASH_BYTES)

struct store_hash {
	uint8_t b[STORE_HASH_BYTES];
};

enum hash_domain { HASH_PLAIN, HASH_NODE, HASH_PACK };

/* Once in a process before anything is hashed; again is fine. 0 or -EIO. */
int hash_init(void);

void hash_of(
	enum hash_domain domain, const void *data, size_t len, struct store_hash *ret);

static inline bool
hash_equal(const struct store_hash *a, const struct store_hash *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

/* The name of zeroes, which are stored nowhere. */
static inline bool
hash_is_zero(const struct store_hash *h)
{
	static const struct store_hash zero;

	return hash_equal(h, &zero);
}

/* 64 lower-case digits and a NUL. */
void hash_to_hex(const struct store_hash *h, char ret[static STORE_HEX + 1]);
/* Exactly 64 lower-case digits, or false. */
bool hash_from_hex(const char *hex, struct store_hash *ret);

#endif
