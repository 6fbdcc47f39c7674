#include "host/store/store_bloom.h"

#include <errno.h>
#include <stdlib.h>

#define LINE_WORDS 8u
#define KEYS_PER_LINE 40u /* 12.8 bits each */
#define BITS_PER_KEY 6u

static uint64_t
word_of(const struct store_hash *h, unsigned i)
{
	uint64_t v;

	memcpy(&v, h->b + 8 * i, sizeof(v));
	return v;
}

int
bloom_init(struct bloom *b, uint64_t room)
{
	uint64_t n = room / KEYS_PER_LINE + 1;
	uint64_t *lines = aligned_alloc(64, n * LINE_WORDS * sizeof(*lines));

	if (!lines)
		return -ENOMEM;
	memset(lines, 0, n * LINE_WORDS * sizeof(*lines));
	*b = (struct bloom){lines, n, room};
	return 0;
}

void
bloom_done(struct bloom *b)
{
	free(b->lines);
	*b = (struct bloom){0};
}

/* A hash is random already: one of its words is scaled to the number of lines, another
 * one gives the bits. */
static uint64_t *
line_of(const struct bloom *b, const struct store_hash *h)
{
	uint64_t n = (uint64_t)((unsigned __int128)word_of(h, 1) * b->n_lines >> 64);

	return b->lines + n * LINE_WORDS;
}

bool
bloom_has(const struct bloom *b, const struct store_hash *h)
{
	uint64_t bits = word_of(h, 2);
	const uint64_t *line;

	if (!b->lines)
		return false;
	line = line_of(b, h);
	for (unsigned i = 0; i < BITS_PER_KEY; i++, bits >>= 9)
		if (!(__atomic_load_n(&line[bits >> 6 & 7], __ATOMIC_RELAXED) >>
				    (bits & 63) &
			    1))
			return false;
	return true;
}

void
bloom_add(struct bloom *b, const struct store_hash *h)
{
	uint64_t *line = line_of(b, h), bits = word_of(h, 2);

	for (unsigned i = 0; i < BITS_PER_KEY; i++, bits >>= 9)
		__atomic_store_n(&line[bits >> 6 & 7],
			__atomic_load_n(&line[bits >> 6 & 7], __ATOMIC_RELAXED) |
				1ull << (bits & 63),
			__ATOMIC_RELAXED);
}
