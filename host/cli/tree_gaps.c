#include "host/cli/tree_gaps.h"

#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

/* First pages are small: most gaps are, and a page of 1000 commits is megabytes. */
#define PAGE_FIRST 8
#define PAGE_MOST 1000

/* The ids that are there: a tree of search(3), which owns copies. */
struct ids {
	void *root;
};

static int
compare(const void *a, const void *b)
{
	return strcmp(a, b);
}

static bool
has(const struct ids *ids, const char *id)
{
	return tfind(id, &ids->root, compare) != NULL;
}

static int
note(struct ids *ids, const char *id)
{
	char *copy = strdup(id), **at = copy ? tsearch(copy, &ids->root, compare) : NULL;

	if (!at || *at != copy)
		free(copy);
	return at ? 0 : -ENOMEM;
}

static void
ids_done(struct ids *ids)
{
	tdestroy(ids->root, free);
}

/* Moves a commit to the end of the list. */
static int
take(struct client_points *all, struct ids *ids, struct client_point *p)
{
	struct client_point *bigger = reallocarray(all->v, all->n + 1, sizeof(*all->v));

	if (!bigger)
		return -ENOMEM;
	all->v = bigger;
	if (note(ids, p->id) < 0)
		return -ENOMEM;
	all->v[all->n++] = *p;
	*p = (struct client_point){0};
	return 0;
}

/* From a commit upwards, until one that is there already. */
static int
fill(struct client *c, const char *id, struct client_points *all, struct ids *ids)
{
	char after[sizeof(all->next)] = "";
	uint64_t limit = PAGE_FIRST;

	do {
		cleanup_client_points struct client_points page = {0};

		if (client_points_page(c, id, after, limit, &page, NULL, NULL) < 0)
			return 0;
		for (size_t i = 0; i < page.n; i++) {
			if (strcmp(page.v[i].id, id) == 0)
				continue;
			if (has(ids, page.v[i].id) || !page.v[i].pruned)
				return 0;
			if (take(all, ids, &page.v[i]) < 0)
				return -ENOMEM;
		}
		memcpy(after, page.next, sizeof(after));
		limit = limit * 8 < PAGE_MOST ? limit * 8 : PAGE_MOST;
	} while (after[0]);
	return 0;
}

static int
newest_first(const void *a, const void *b)
{
	const struct client_point *x = a, *y = b;

	if (x->created_ms != y->created_ms)
		return x->created_ms > y->created_ms ? -1 : 1;
	return strcmp(x->id, y->id);
}

int
tree_gaps_fill(struct client *c, struct client_points *points, struct err *e)
{
	__attribute__((cleanup(ids_done))) struct ids ids = {0};
	size_t n = points->n;
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		r = note(&ids, points->v[i].id);
	for (size_t i = 0; r == 0 && i < n; i++) {
		/* A copy: the list moves as it grows. */
		struct client_point at = points->v[i];

		if (at.parent[0] && !has(&ids, at.parent))
			r = fill(c, at.id, points, &ids);
	}
	if (r < 0)
		return err_sys(e, r, "list of commits");
	if (points->n > n)
		qsort(points->v, points->n, sizeof(*points->v), newest_first);
	return 0;
}
