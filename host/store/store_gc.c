/*
 * What no commit reaches is removed. Nobody else works on the store meanwhile but readers
 * of what commits reach.
 *
 * A pack with nothing live is unlinked. The live chunks of packs whose live bytes are less
 * than half are merged into a new one (store_merge.c).
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "host/store/store_priv.h"

#define MERGE_BYTES_MAX (256u << 20) /* live, in one new pack */

struct marked {
	uint64_t *live;	  /* owned; a bit an entry */
	uint64_t *walked; /* owned; likewise: nodes whose children were marked */
	uint64_t n, bytes;
};

struct gc {
	struct store *s;
	struct slices slices;
	struct chunk_reader reader;
	struct pack_set *set; /* owned */
	struct marked *packs; /* owned; beside the set's */
};

static void
cleanup_gc_fn(struct gc *g)
{
	for (size_t i = 0; g->packs && i < g->set->n; i++) {
		free(g->packs[i].live);
		free(g->packs[i].walked);
	}
	free(g->packs);
	packs_put(g->set);
	chunk_reader_done(&g->reader);
}
#define cleanup_gc __attribute__((cleanup(cleanup_gc_fn)))

static bool
set_bit(uint64_t *bits, size_t i)
{
	bool was = bits[i / 64] >> (i % 64) & 1;

	bits[i / 64] |= 1ull << (i % 64);
	return was;
}

/* Marks a chunk, and what its stored form needs; not what its contents name. */
static int
mark(struct gc *g, enum chunk_kind kind, const struct store_hash *hash, bool may_be_delta,
	struct chunk_at *ret, struct err *e)
{
	struct store_hash reference;
	struct chunk_at ignored;
	struct marked *m;
	char hex[STORE_ID_MAX];
	bool has;
	int r;

	if (!chunk_find(g->set, kind, hash, may_be_delta, ret)) {
		hash_to_hex(hash, hex);
		return err_set(e, -EBADMSG, "%s %.12s is missing or damaged",
			kind == CHUNK_NODE ? "node" : "page", hex);
	}
	m = &g->packs[ret->number];
	if (set_bit(m->live, ret->entry))
		return 0;
	m->n++;
	m->bytes +=
		le32toh(ret->pack->index[ret->entry].stored) + sizeof(struct pack_entry);
	r = chunk_reference(g->s, ret, &has, &reference, e);
	if (r == 0 && has)
		r = mark(g, CHUNK_NODE, &reference, false, &ignored, e);
	return r;
}

static int
mark_node(struct gc *g, const struct store_tree *t, unsigned level, uint64_t at,
	const struct store_hash *name, struct err *e)
{
	struct store_hash child[NODE_FANOUT];
	struct chunk_at where;
	int r;

	if (level <= tree_levels(t->length)) {
		r = mark(g, CHUNK_NODE, name, true, &where, e);
		if (r < 0)
			return r;
		/* Not the same as live: a node that another is a delta of is live, and
		   what it names need not be. */
		if (set_bit(g->packs[where.number].walked, where.entry))
			return 0;
	}
	r = tree_node(&g->reader, t, level, at, name, child, e);
	for (unsigned i = 0; r == 0 && i < NODE_FANOUT; i++) {
		if (hash_is_zero(&child[i]))
			continue;
		if (level == 1)
			r = mark(g, CHUNK_PAGE, &child[i], true, &where, e);
		else
			r = mark_node(g, t, level - 1, at + i * tree_child_pages(level),
				&child[i], e);
	}
	return r;
}

static int
mark_tree(struct gc *g, const struct store_tree *t, struct err *e)
{
	int r = tree_check(t, e);

	if (r < 0 || hash_is_zero(&t->root))
		return r;
	return mark_node(g, t, tree_levels(t->length), 0, &t->root, e);
}

static int
mark_commits(struct gc *g, struct err *e)
{
	struct store_list list = {0};
	int r = store_list(g->s, &list, e);

	if (r == 0 && list.damaged)
		r = err_set(e, -EBADMSG, "%.300s", list.first_damage.msg);
	for (size_t i = 0; r == 0 && i < list.n; i++) {
		const struct store_fields *f = &list.items[i]->f;

		if ((r = mark_tree(g, &f->memory, e)) < 0 ||
			(r = mark_tree(g, &f->disk, e)) < 0 ||
			(r = mark_tree(g, &f->state, e)) < 0)
			err_wrap(e, r, "commit %.12s", list.items[i]->id);
	}
	store_list_done(&list);
	return r;
}

static bool
is_mostly_dead(const struct gc *g, size_t i)
{
	return g->packs[i].n && g->packs[i].bytes < g->set->packs[i]->bytes / 2;
}

/* What is alive of packs that are mostly dead, to new ones. */
static int
rewrite(struct gc *g, struct store_freed *freed, struct err *e)
{
	cleanup_free struct pack **packs = calloc(g->set->n + 1, sizeof(*packs));
	cleanup_free const uint64_t **live = calloc(g->set->n + 1, sizeof(*live));
	uint64_t bytes = 0;
	size_t n = 0;
	int r = 0;

	if (!packs || !live)
		return err_sys(e, -ENOMEM, "gc");
	for (size_t i = 0; r == 0 && i < g->set->n; i++) {
		if (!is_mostly_dead(g, i))
			continue;
		if (n && bytes + g->packs[i].bytes > MERGE_BYTES_MAX) {
			r = packs_merge(&g->slices, packs, live, n, freed, e);
			bytes = n = 0;
		}
		packs[n] = g->set->packs[i];
		live[n++] = g->packs[i].live;
		bytes += g->packs[i].bytes;
	}
	if (r == 0 && n)
		r = packs_merge(&g->slices, packs, live, n, freed, e);
	return r;
}

static int
sweep(struct gc *g, struct store_freed *freed, struct err *e)
{
	cleanup_free struct pack **dead = calloc(g->set->n + 1, sizeof(*dead));
	cleanup_free struct bad_pack *bad = NULL;
	size_t n = 0, n_bad;
	int r;

	if (!dead)
		return err_sys(e, -ENOMEM, "gc");
	for (size_t i = 0; i < g->set->n; i++)
		if (!g->packs[i].n)
			dead[n++] = g->set->packs[i];
	r = packs_retire(g->s, dead, n, &freed->packs_removed, &freed->bytes, e);
	if (r == 0)
		r = packs_bad(g->s, &bad, &n_bad, e);
	/* Everything live was found without them. */
	for (size_t i = 0; r == 0 && i < n_bad; i++) {
		r = packs_forget_bad(g->s, bad[i].name, e);
		freed->packs_removed++;
	}
	if (r == 0)
		r = rewrite(g, freed, e);
	if (r == 0 && fsync(g->s->packs_fd) < 0)
		r = err_sys(e, -errno, "syncing the folder of packs");
	return r;
}

static int
collect(struct gc *g, const struct store_tree *roots, size_t n_roots,
	struct store_freed *freed, struct err *e)
{
	int r = packs_get(g->s, &g->set, e);

	if (r < 0)
		return r;
	g->packs = calloc(g->set->n + 1, sizeof(*g->packs));
	if (!g->packs)
		return err_sys(e, -ENOMEM, "gc");
	for (size_t i = 0; i < g->set->n; i++) {
		size_t words = (g->set->packs[i]->count + 63) / 64;

		g->packs[i].live = calloc(words, sizeof(uint64_t));
		g->packs[i].walked = calloc(words, sizeof(uint64_t));
		if (!g->packs[i].live || !g->packs[i].walked)
			return err_sys(e, -ENOMEM, "gc");
	}
	for (size_t i = 0; r == 0 && i < n_roots; i++)
		r = mark_tree(g, &roots[i], e);
	if (r == 0)
		r = mark_commits(g, e);
	if (r < 0)
		return r == -EBADMSG
			       ? err_wrap(e, r,
					 "nothing was removed, for what is damaged may need it (delete it first)")
			       : r;
	return sweep(g, freed, e);
}

int
store_gc(struct store *s, const struct store_tree *roots, size_t n_roots,
	struct store_freed *ret, struct err *e)
{
	struct store_freed freed = {0};
	int r;

	store_alone_begin(s);
	care_begin(s);
	{
		cleanup_gc struct gc g = {.s = s, .slices = {.s = s}};

		r = chunk_reader_init(&g.reader, s, e);
		if (r == 0)
			r = collect(&g, roots, n_roots, &freed, e);
	}
	care_end(s);
	store_alone_end(s);
	if (r == 0 && ret)
		*ret = freed;
	return r;
}
