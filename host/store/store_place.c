/*
 * Where a content's pages lie in the files of packs, for a process that reads them without
 * the store.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/store/store_priv.h"

_Static_assert(STORE_LEAF_PAGES == NODE_FANOUT, "a leaf is a node of the lowest level");

struct store_places {
	struct chunk_reader c;
	struct store_tree tree;
	struct pack_set *set; /* reference: its files stay, whoever merges them */
	/* The nodes on the way to the last leaf, from the root down, and which they are. */
	struct store_hash names[LEVELS_MAX + 1];
	struct store_hash nodes[LEVELS_MAX + 1][NODE_FANOUT];
	int *numbers; /* owned; beside set->packs; -1: not told to the caller yet */
	int n_numbers;
};

void
store_places_close(struct store_places *p)
{
	if (!p)
		return;
	chunk_reader_done(&p->c);
	for (size_t i = 0; p->set && p->numbers && i < p->set->n; i++)
		if (p->numbers[i] >= 0)
			pack_fd_put(p->set->packs[i]);
	packs_put(p->set);
	free(p->numbers);
	free(p);
}

int
store_places_open(struct store *s, const struct store_tree *t, struct store_places **ret,
	struct err *e)
{
	struct store_places *p = calloc(1, sizeof(*p));
	int r = p ? tree_check(t, e) : err_sys(e, -ENOMEM, "reading the store");

	if (r == 0)
		r = chunk_reader_init(&p->c, s, e);
	if (r == 0)
		r = packs_get(s, &p->set, e);
	if (r == 0) {
		p->tree = *t;
		p->numbers = malloc((p->set->n + 1) * sizeof(*p->numbers));
		if (!p->numbers)
			r = err_sys(e, -ENOMEM, "reading the store");
	}
	for (size_t i = 0; r == 0 && i < p->set->n; i++)
		p->numbers[i] = -1;
	if (r < 0) {
		store_places_close(p);
		return r;
	}
	*ret = p;
	return 0;
}

/* The leaf's node; the nodes above it are kept for its neighbours. */
static int
find_leaf(struct store_places *p, uint64_t leaf, const struct store_hash **ret, struct err *e)
{
	const struct store_hash *name = &p->tree.root;

	for (unsigned level = tree_levels(p->tree.length);; level--) {
		const uint64_t below = tree_child_pages(level);
		const uint64_t first = leaf * NODE_FANOUT / (below * NODE_FANOUT) *
				       (below * NODE_FANOUT);
		int r;

		if (hash_is_zero(name)) {
			*ret = NULL;
			return 0;
		}
		/* Below one name lies one content, wherever it is in the tree, but for its
		 * end, which tree_node() looks at. */
		if (!hash_equal(name, &p->names[level]) ||
			first + below * NODE_FANOUT > tree_pages(p->tree.length)) {
			r = tree_node(&p->c, &p->tree, level, first, name, p->nodes[level], e);
			p->names[level] = r < 0 ? (struct store_hash){{0}} : *name;
			if (r < 0)
				return r;
		}
		if (level == 1) {
			*ret = p->nodes[1];
			return 0;
		}
		name = &p->nodes[level][(leaf * NODE_FANOUT - first) / below];
	}
}

static int
take_number(struct store_places *p, size_t pack, store_pack_fn *new_pack, void *ctx,
	struct err *e)
{
	struct pack *of = p->set->packs[pack];
	int r;

	if (p->numbers[pack] >= 0)
		return 0;
	r = pack_pin(of, p->c.s->packs_fd);
	if (r < 0)
		return err_sys(e, r, "pack %s", of->name);
	r = new_pack(ctx, of->fd, e);
	if (r < 0) {
		pack_fd_put(of);
		return r;
	}
	p->numbers[pack] = p->n_numbers++;
	return 0;
}

int
store_places_leaf(struct store_places *p, uint64_t leaf, store_pack_fn *new_pack, void *ctx,
	struct store_place ret[static STORE_LEAF_PAGES], size_t *ret_n, struct err *e)
{
	const struct store_hash *names;
	int r = find_leaf(p, leaf, &names, e);

	*ret_n = 0;
	for (unsigned i = 0; r == 0 && names && i < NODE_FANOUT; i++) {
		struct store_place *place = &ret[*ret_n];
		char hex[STORE_ID_MAX];
		struct chunk_at at;
		const struct pack_entry *en;

		if (hash_is_zero(&names[i]))
			continue;
		if (!chunk_find(p->set, CHUNK_PAGE, &names[i], true, &at)) {
			hash_to_hex(&names[i], hex);
			return err_set(e, -EBADMSG, "page %.12s is in no pack, or damaged", hex);
		}
		r = take_number(p, at.number, new_pack, ctx, e);
		if (r < 0)
			return r;
		en = &at.pack->index[at.entry];
		*place = (struct store_place){
			.page = leaf * NODE_FANOUT + i,
			.offset = le64toh(en->offset),
			.stored = le32toh(en->stored),
			.pack = (unsigned)p->numbers[at.number],
			.is_zipped = en->coding == CODING_ZSTD,
			.hash = names[i],
		};
		(*ret_n)++;
	}
	return r;
}
