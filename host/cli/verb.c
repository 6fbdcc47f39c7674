/* Looking verbs up in the table that main() handed down (verb.h). */
#include "host/cli/verb.h"

#include <stddef.h>
#include <string.h>

#include "host/cli/near.h"

static const struct verb *const none[] = {NULL};
static const struct verb *const *all = none;

void
verb_use(const struct verb *const *table)
{
	all = table;
}

const struct verb *const *
verb_all(void)
{
	return all;
}

static bool
is_one_of(const char *words, const char *name)
{
	size_t len = strlen(name);

	while (words && *words) {
		size_t n = strcspn(words, " ");

		if (n == len && strncmp(words, name, n) == 0)
			return true;
		words += n + strspn(words + n, " ");
	}
	return false;
}

const struct verb *
verb_find(const char *name)
{
	for (const struct verb *const *v = all; *v; v++)
		if (strcmp((*v)->name, name) == 0 || is_one_of((*v)->aliases, name))
			return *v;
	return NULL;
}

bool
verb_has_sub(const struct verb *v, const char *word)
{
	return is_one_of(v->subverbs, word);
}

const char *
verb_nearest(const char *name)
{
	const char *best = NULL;
	unsigned best_distance = NEAR_MAX;

	for (const struct verb *const *v = all; *v; v++) {
		unsigned d = near_distance(name, (*v)->name);

		if (near_enough(name, (*v)->name) && d < best_distance) {
			best = (*v)->name;
			best_distance = d;
		}
	}
	return best;
}
