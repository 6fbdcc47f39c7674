/* Trees, read. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/store/store_priv.h"

unsigned
tree_levels(uint64_t length)
{
	uint64_t pages = tree_pages(length), holds = NODE_FANOUT;
	unsigned levels = 1;

	while (holds < pages) {
		holds *= NODE_FANOUT;
		levels++;
	}
	return levels;
}

int
tree_check(const struct store_tree *t, struct err *e)
{
	if (t->length > STORE_LENGTH_MAX)
		return err_set(e, -EINVAL,
			"a content of %llu bytes: at most %llu are possible",
			(unsigned long long)t->length,
			(unsigned long long)STORE_LENGTH_MAX);
	if (!t->length && !hash_is_zero(&t->root))
		return err_set(e, -EINVAL, "a content of no bytes that has a root");
	return 0;
}

int
tree_node(struct chunk_reader *c, const struct store_tree *t, unsigned level,
	uint64_t first_page, const struct store_hash *name,
	struct store_hash ret[static NODE_FANOUT], struct err *e)
{
	uint64_t pages = tree_pages(t->length), child = tree_child_pages(level);
	int r;

	if (level > tree_levels(t->length)) {
		memset(ret, 0, NODE_FANOUT * sizeof(*ret));
		ret[0] = *name;
		return 0;
	}
	r = chunk_read(c, CHUNK_NODE, name, ret, e);
	if (r < 0)
		return r;
	for (unsigned i = 0; i < NODE_FANOUT; i++)
		if (first_page + i * child >= pages && !hash_is_zero(&ret[i]))
			return err_set(e, -EBADMSG,
				"a tree of %llu pages has some beyond its end",
				(unsigned long long)pages);
	return 0;
}

int
tree_page(struct chunk_reader *c, const struct store_tree *t, uint64_t page,
	const struct store_hash *name, void *ret, struct err *e)
{
	int r = chunk_read(c, CHUNK_PAGE, name, ret, e);
	uint64_t left = t->length - page * STORE_PAGE;

	if (r < 0)
		return r;
	for (size_t i = left < STORE_PAGE ? (size_t)left : STORE_PAGE; i < STORE_PAGE;
		i++)
		if (((const uint8_t *)ret)[i])
			return err_set(e, -EBADMSG,
				"a tree of %llu bytes has some beyond its end",
				(unsigned long long)t->length);
	return 0;
}

/* One walk of one or two trees (a and b) over the pages of [first, end). */
struct walk {
	struct chunk_reader c;
	const struct store_tree *a, *b; /* b NULL: an empty one */
	uint64_t first, end;
	bool data;
	store_page_fn *fn;
	store_name_fn *name_fn; /* not NULL: called in the place of fn */
	void *ctx;
};

static void
cleanup_walk_fn(struct walk *w)
{
	chunk_reader_done(&w->c);
}
#define cleanup_walk __attribute__((cleanup(cleanup_walk_fn)))

static int
visit(struct walk *w, uint64_t page, const struct store_hash *a, struct err *e)
{
	uint8_t data[STORE_PAGE];
	int r;

	if (w->name_fn)
		return w->name_fn(w->ctx, page, a, e);
	if (!w->data)
		return w->fn(w->ctx, page, NULL, e);
	r = tree_page(&w->c, w->a, page, a, data, e);
	return r < 0 ? r : w->fn(w->ctx, page, data, e);
}

static int
walk_node(struct walk *w, unsigned level, uint64_t at, const struct store_hash *a,
	const struct store_hash *b, struct err *e)
{
	struct store_hash ca[NODE_FANOUT], cb[NODE_FANOUT];
	uint64_t child = tree_child_pages(level);
	int r = tree_node(&w->c, w->a, level, at, a, ca, e);

	if (r == 0 && !hash_is_zero(b))
		r = tree_node(&w->c, w->b, level, at, b, cb, e);
	else
		memset(cb, 0, sizeof(cb));
	for (unsigned i = 0; r == 0 && i < NODE_FANOUT; i++, at += child) {
		if (at >= w->end)
			break;
		if (at + child <= w->first || hash_equal(&ca[i], &cb[i]))
			continue;
		r = level == 1 ? visit(w, at, &ca[i], e)
			       : walk_node(w, level - 1, at, &ca[i], &cb[i], e);
	}
	return r;
}

static int
walk(struct walk *w, struct store *s, struct err *e)
{
	static const struct store_tree nothing;
	unsigned levels;
	int r;

	if (!w->b)
		w->b = &nothing;
	if ((r = tree_check(w->a, e)) < 0 || (r = tree_check(w->b, e)) < 0)
		return r;
	if (hash_equal(&w->a->root, &w->b->root) || w->first >= w->end)
		return 0;
	r = chunk_reader_init(&w->c, s, e);
	if (r < 0)
		return r;
	levels = tree_levels(w->a->length > w->b->length ? w->a->length : w->b->length);
	return walk_node(w, levels, 0, &w->a->root, &w->b->root, e);
}

int
store_tree_diff(struct store *s, const struct store_tree *a, const struct store_tree *b,
	store_page_fn *fn, void *ctx, struct err *e)
{
	cleanup_walk struct walk w = {
		.a = a, .b = b, .end = UINT64_MAX, .fn = fn, .ctx = ctx};

	return walk(&w, s, e);
}

int
store_tree_names(struct store *s, const struct store_tree *t, const struct store_tree *was,
	store_name_fn *fn, void *ctx, struct err *e)
{
	cleanup_walk struct walk w = {
		.a = t, .b = was, .end = tree_pages(t->length), .name_fn = fn, .ctx = ctx};

	return walk(&w, s, e);
}

struct into {
	uint8_t *buf;
	uint64_t first;
};

static int
copy_page(void *ctx, uint64_t page, const void *data, struct err *e)
{
	struct into *to = ctx;

	(void)e;
	memcpy(to->buf + (page - to->first) * STORE_PAGE, data, STORE_PAGE);
	return 0;
}

int
store_tree_read(struct store *s, const struct store_tree *t, uint64_t first, uint64_t n,
	void *buf, struct err *e)
{
	struct into to = {buf, first};
	cleanup_walk struct walk w = {.a = t,
		.first = first,
		.end = first + n,
		.data = true,
		.fn = copy_page,
		.ctx = &to};
	uint64_t pages = tree_pages(t->length);

	if (first > pages || n > pages - first)
		return err_set(e, -EINVAL,
			"pages %llu to %llu of a content of %llu pages",
			(unsigned long long)first, (unsigned long long)(first + n),
			(unsigned long long)pages);
	memset(buf, 0, n * STORE_PAGE);
	return walk(&w, s, e);
}
