/*
 * What no commit reaches is removed. Nobody else works on the store meanwhile but readers
 * of what commits reach.
 *
 * A pack with nothing live is unlinked. Packs whose live bytes are less than half, and
 * small ones where there are many packs, are copied into one new pack, which is on disk
 * before they go: a crash leaves chunks twice, never not at all.
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

#define PACKS_MANY 64u
#define PACK_SMALL (16u << 20)

struct marked {
	uint64_t *live;	  /* owned; a bit an entry */
	uint64_t *walked; /* owned; likewise: nodes whose children were marked */
	uint64_t n, bytes;
	bool rewrite;
};

struct gc {
	struct store *s;
	struct chunk_reader reader;
	struct marked *packs; /* owned; beside s->packs */
	size_t n_packs;
};

static void
cleanup_gc_fn(struct gc *g)
{
	for (size_t i = 0; g->packs && i < g->n_packs; i++) {
		free(g->packs[i].live);
		free(g->packs[i].walked);
	}
	free(g->packs);
	chunk_reader_done(&g->reader);
}
#define cleanup_gc __attribute__((cleanup(cleanup_gc_fn)))

static size_t
pack_number(const struct gc *g, const struct pack *p)
{
	size_t i = 0;

	while (g->s->packs[i] != p)
		i++;
	return i;
}

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

	if (!chunk_find(g->s, kind, hash, may_be_delta, ret)) {
		hash_to_hex(hash, hex);
		return err_set(e, -EBADMSG, "%s %.12s is missing or damaged",
			kind == CHUNK_NODE ? "node" : "page", hex);
	}
	m = &g->packs[pack_number(g, ret->pack)];
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
		if (set_bit(g->packs[pack_number(g, where.pack)].walked, where.entry))
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

static void
choose(struct gc *g)
{
	size_t staying = 0, chosen = 0, only = 0;

	for (size_t i = 0; i < g->n_packs; i++)
		staying += g->packs[i].n != 0;
	for (size_t i = 0; i < g->n_packs; i++) {
		const struct pack *p = g->s->packs[i];
		struct marked *m = &g->packs[i];

		m->rewrite =
			m->n && (m->bytes < p->bytes / 2 ||
					(staying > PACKS_MANY && p->bytes < PACK_SMALL));
		if (m->rewrite) {
			chosen++;
			only = i;
		}
	}
	/* One that is small and all alive would be copied for nothing. */
	if (chosen == 1 && g->packs[only].n == g->s->packs[only]->count)
		g->packs[only].rewrite = false;
}

static int
copy_live(struct gc *g, size_t i, struct pack_writer *w, struct err *e)
{
	struct pack *p = g->s->packs[i];
	uint8_t stored[CHUNK_MAX];

	for (size_t n = 0; n < p->count; n++) {
		const struct pack_entry *en = &p->index[n];
		int r;

		if (!(g->packs[i].live[n / 64] >> (n % 64) & 1) ||
			pack_writer_has(w, en->kind, &en->hash))
			continue;
		r = pack_read(p, g->s->packs_fd, n, stored);
		if (r < 0)
			return err_sys(
				e, r == -ENODATA ? -EBADMSG : r, "pack %s", p->name);
		r = pack_writer_add(w, en->kind, en->coding, &en->hash, stored,
			le32toh(en->stored), e);
		if (r < 0)
			return r;
	}
	return 0;
}

/* The new pack's name, or "" when none is needed. */
static int
rewrite(struct gc *g, char ret_name[static STORE_ID_MAX], uint64_t *ret_bytes,
	struct err *e)
{
	struct pack_writer *w;
	int r = 0;

	if (pack_writer_new(g->s->packs_fd, &w))
		return err_sys(e, -ENOMEM, "gc");
	for (size_t i = 0; r == 0 && i < g->n_packs; i++)
		if (g->packs[i].rewrite)
			r = copy_live(g, i, w, e);
	if (r == 0)
		r = pack_writer_finish(w, ret_name, ret_bytes, e);
	pack_writer_free(w);
	return r;
}

static int
unlink_pack(struct store *s, const char *name, struct err *e)
{
	char file[STORE_HEX + sizeof(PACK_SUFFIX)];

	snprintf(file, sizeof(file), "%.64s" PACK_SUFFIX, name);
	if (unlinkat(s->packs_fd, file, 0) < 0 && errno != ENOENT)
		return err_sys(e, -errno, "removing pack %s", name);
	fault_point("store.gc-unlinked");
	return 0;
}

/* packs_lock held for writing; the list is loaded anew afterwards. */
static int
sweep(struct gc *g, const char *keep, struct store_freed *freed, struct err *e)
{
	struct store *s = g->s;
	int r = 0;

	for (size_t i = 0; r == 0 && i < g->n_packs; i++) {
		struct pack *p = s->packs[i];

		if ((g->packs[i].n && !g->packs[i].rewrite) || strcmp(p->name, keep) == 0)
			continue;
		r = unlink_pack(s, p->name, e);
		freed->bytes += p->bytes;
		if (g->packs[i].n)
			freed->packs_rewritten++;
		else
			freed->packs_removed++;
	}
	/* Everything live was found without them. */
	for (size_t i = 0; r == 0 && i < s->n_bad_packs; i++) {
		r = unlink_pack(s, s->bad_packs[i].name, e);
		freed->packs_removed++;
	}
	if (r == 0 && fsync(s->packs_fd) < 0)
		r = err_sys(e, -errno, "syncing the folder of packs");
	packs_drop_all(s);
	return r;
}

static int
collect(struct gc *g, const struct store_tree *roots, size_t n_roots,
	struct store_freed *freed, struct err *e)
{
	char name[STORE_ID_MAX] = "";
	uint64_t bytes = 0;
	int r = packs_lock_read(g->s, e);

	if (r < 0)
		return r;
	g->n_packs = g->s->n_packs;
	g->packs = calloc(g->n_packs + 1, sizeof(*g->packs));
	for (size_t i = 0; g->packs && r == 0 && i < g->n_packs; i++) {
		size_t words = g->s->packs[i]->count / 64 + 1;

		g->packs[i].live = calloc(words, sizeof(uint64_t));
		g->packs[i].walked = calloc(words, sizeof(uint64_t));
		if (!g->packs[i].live || !g->packs[i].walked)
			r = -ENOMEM;
	}
	/* Nobody but gc and finished commits changes the list, and they hold. */
	packs_unlock(g->s);
	if (r < 0 || !g->packs)
		return err_sys(e, -ENOMEM, "gc");
	for (size_t i = 0; r == 0 && i < n_roots; i++)
		r = mark_tree(g, &roots[i], e);
	if (r == 0)
		r = mark_commits(g, e);
	if (r < 0)
		return r == -EBADMSG
			       ? err_wrap(e, r,
					 "nothing was removed, for what is damaged may need it (delete it first)")
			       : r;
	choose(g);
	r = rewrite(g, name, &bytes, e);
	if (r < 0)
		return r;
	fault_point("store.gc-rewritten");
	r = packs_lock_write(g->s, e);
	if (r < 0)
		return r;
	r = sweep(g, name, freed, e);
	packs_unlock(g->s);
	freed->bytes = freed->bytes > bytes ? freed->bytes - bytes : 0;
	return r;
}

int
store_gc(struct store *s, const struct store_tree *roots, size_t n_roots,
	struct store_freed *ret, struct err *e)
{
	struct store_freed freed = {0};
	int r;

	store_alone_begin(s);
	{
		cleanup_gc struct gc g = {.s = s};

		r = chunk_reader_init(&g.reader, s, e);
		if (r == 0)
			r = collect(&g, roots, n_roots, &freed, e);
	}
	store_alone_end(s);
	if (r == 0 && ret)
		*ret = freed;
	return r;
}
