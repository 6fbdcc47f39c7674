/*
 * Bitmaps of pages: a bit each, the first one the lowest of the first byte.
 */
#ifndef PANDO_VMM_BITMAP_H
#define PANDO_VMM_BITMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline bool
bitmap_has(const uint8_t *bitmap, uint64_t i)
{
	return bitmap[i / 8] >> i % 8 & 1;
}

/* Bits [first, first + n). */
static inline void
bitmap_set(uint8_t *bitmap, uint64_t first, uint64_t n)
{
	while (n && first % 8) {
		bitmap[first / 8] |= (uint8_t)(1u << first % 8);
		first++;
		n--;
	}
	memset(bitmap + first / 8, 0xff, n / 8);
	first += n / 8 * 8;
	for (n %= 8; n; n--, first++)
		bitmap[first / 8] |= (uint8_t)(1u << first % 8);
}

/* The first one from `from` on, below `end`, that is as `set` says; end: there is none. */
static inline uint64_t
bitmap_next(const uint8_t *bitmap, uint64_t from, uint64_t end, bool set)
{
	while (from < end && bitmap_has(bitmap, from) != set) {
		uint64_t word = 0;

		if (from % 64 || end - from < 64) {
			from++;
			continue;
		}
		memcpy(&word, bitmap + from / 8, sizeof(word));
		from += word == (set ? 0 : UINT64_MAX) ? 64 : 1;
	}
	return from < end ? from : end;
}

#endif
