#include "host/store/store_names.h"

#include <errno.h>
#include <stdlib.h>

void
names_done(struct names *s)
{
	free(s->slots);
	*s = (struct names){0};
}

static struct store_hash *
slot_of(const struct names *s, const struct store_hash *h)
{
	uint64_t word;

	memcpy(&word, h->b, sizeof(word));
	for (size_t i = (size_t)word & (s->cap - 1);; i = (i + 1) & (s->cap - 1))
		if (hash_is_zero(&s->slots[i]) || hash_equal(&s->slots[i], h))
			return &s->slots[i];
}

bool
names_have(const struct names *s, const struct store_hash *h)
{
	return s->n && hash_equal(slot_of(s, h), h);
}

int
names_add(struct names *s, const struct store_hash *h)
{
	if (2 * (s->n + 1) > s->cap) {
		struct names bigger = {.n = s->n, .cap = s->cap ? 2 * s->cap : 256};

		bigger.slots = calloc(bigger.cap, sizeof(*bigger.slots));
		if (!bigger.slots)
			return -ENOMEM;
		for (size_t i = 0; i < s->cap; i++)
			if (!hash_is_zero(&s->slots[i]))
				*slot_of(&bigger, &s->slots[i]) = s->slots[i];
		free(s->slots);
		*s = bigger;
	}
	if (names_have(s, h))
		return 0;
	*slot_of(s, h) = *h;
	s->n++;
	return 0;
}
