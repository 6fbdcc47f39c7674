/* Trees and commits, written. */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "host/store/store_priv.h"
#include "host/store/store_put.h"

/* A node being filled: the one of its level on the way to the last page put. */
struct open_node {
	uint64_t first_page;
	struct store_hash child[NODE_FANOUT];
	/* What it was in the base, or in what that is a delta of. */
	bool has_reference;
	struct store_hash reference;
	struct store_hash referenced[NODE_FANOUT];
};

struct store_tree_writer {
	struct store_writer *w;		      /* borrowed */
	struct store_tree_writer *next, **at; /* in the writer's list */
	struct store_tree base;
	uint64_t length, pages;
	unsigned levels;
	bool begun;			       /* the nodes below are those of a page */
	uint64_t free;			       /* the lowest page that may be put */
	struct open_node node[LEVELS_MAX + 1]; /* by level; [0] is not used */
	struct store_hash root;
};

struct store_writer {
	struct store *s;	  /* borrowed */
	uint64_t generation;	  /* a hold */
	struct pack_writer *pack; /* owned */
	struct chunk_reader reader;
	struct put_line *pages;		 /* owned; on their way into the pack */
	struct store_tree_writer *trees; /* owned */
	struct store_stats stats;
	int failed; /* the error that stopped it: half a pack is none */
};

static int take_page(
	void *ctx, void *tree, uint64_t page, const struct put_page *p, struct err *e);

int
store_begin(struct store *s, struct store_writer **ret, struct err *e)
{
	struct store_writer *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return err_sys(e, -ENOMEM, "beginning a commit");
	w->s = s;
	w->generation = hold_begin(s);
	r = chunk_reader_init(&w->reader, s, e);
	w->reader.keeps_nodes = true;
	if (r == 0 && (pack_writer_new(s->packs_fd, &w->pack) ||
			      put_line_new(s, w->generation, w->reader.zip, take_page, w,
				      &w->pages)))
		r = err_sys(e, -ENOMEM, "beginning a commit");
	if (r < 0) {
		store_abort(w);
		return r;
	}
	*ret = w;
	return 0;
}

static void
tree_free(struct store_tree_writer *t)
{
	*t->at = t->next;
	if (t->next)
		t->next->at = t->at;
	free(t);
}

void
store_abort(struct store_writer *w)
{
	if (!w)
		return;
	put_line_free(w->pages); /* its pages are of the trees */
	while (w->trees)
		tree_free(w->trees);
	pack_writer_free(w->pack);
	chunk_reader_done(&w->reader);
	hold_end(w->s, w->generation);
	free(w);
}

static void
cleanup_writer_fn(struct store_writer **w)
{
	store_abort(*w);
}
#define cleanup_writer __attribute__((cleanup(cleanup_writer_fn)))

/* What is not coded otherwise may be compressed. */
static int
add_node(struct store_writer *w, enum chunk_coding coding, const struct store_hash *hash,
	const void *data, size_t len, struct err *e)
{
	uint8_t zipped[CHUNK_MAX];
	size_t n = 0;
	int r;

	if (coding == CODING_RAW)
		n = zip_pack(w->reader.zip, zipped, data, len);
	if (n) {
		coding = CODING_ZSTD;
		data = zipped;
		len = n;
	}
	r = pack_writer_add(w->pack, CHUNK_NODE, coding, hash, data, (uint32_t)len, e);
	if (r == 0)
		w->stats.new_nodes++;
	return r;
}

/* Whether the chunk is stored in this form and stays. */
static int
is_stored(struct store_writer *w, enum chunk_kind kind, const struct store_hash *hash,
	bool may_be_delta, bool *ret, struct err *e)
{
	struct pack_set *set;
	struct gc_view v;
	int r;

	gc_view_begin(w->s, w->generation, &v);
	r = packs_get(w->s, &set, e);
	if (r == 0) {
		*ret = gc_find(&v, set, kind, hash, may_be_delta);
		packs_put(set);
	}
	gc_view_end(&v);
	return r;
}

/* Whether the chunk is stored, or will be with this commit. */
static int
has_chunk(struct store_writer *w, enum chunk_kind kind, const struct store_hash *hash,
	bool *ret, struct err *e)
{
	*ret = pack_writer_has(w->pack, kind, hash);
	return *ret ? 0 : is_stored(w, kind, hash, true, ret, e);
}

/* What differs from the reference, where that is much shorter than the node. Returns its
 * length or 0. */
static size_t
make_delta(const struct open_node *n, uint8_t *dst)
{
	struct node_delta d = {.reference = n->reference};
	size_t len = sizeof(d);

	if (!n->has_reference)
		return 0;
	for (unsigned i = 0; i < NODE_FANOUT; i++) {
		if (hash_equal(&n->child[i], &n->referenced[i]))
			continue;
		d.changed |= 1ull << i;
		memcpy(dst + len, &n->child[i], sizeof(n->child[i]));
		len += sizeof(n->child[i]);
	}
	if (len > chunk_len(CHUNK_NODE) / 2)
		return 0;
	d.changed = htole64(d.changed);
	memcpy(dst, &d, sizeof(d));
	return len;
}

static int
put_node(struct store_writer *w, const struct open_node *n, struct store_hash *ret,
	struct err *e)
{
	static const struct store_hash zeroes[NODE_FANOUT];
	uint8_t delta[CHUNK_MAX];
	size_t len;
	bool has;
	int r;

	memset(ret, 0, sizeof(*ret));
	if (memcmp(n->child, zeroes, sizeof(zeroes)) == 0)
		return 0;
	hash_of(HASH_NODE, n->child, sizeof(n->child), ret);
	r = has_chunk(w, CHUNK_NODE, ret, &has, e);
	if (r < 0 || has)
		return r;
	len = make_delta(n, delta);
	has = false;
	if (len)
		r = is_stored(w, CHUNK_NODE, &n->reference, false, &has, e);
	if (r < 0)
		return r;
	nodes_put(w->s, ret, n->child, has ? &n->reference : NULL);
	if (has)
		return add_node(w, CODING_DELTA, ret, delta, len, e);
	return add_node(w, CODING_RAW, ret, n->child, sizeof(n->child), e);
}

int
store_tree_begin(struct store_writer *w, const struct store_tree *base, uint64_t length,
	struct store_tree_writer **ret, struct err *e)
{
	cleanup_free struct store_tree_writer *t = calloc(1, sizeof(*t));
	struct store_hash ignored[NODE_FANOUT];
	int r;

	if (!t)
		return err_sys(e, -ENOMEM, "beginning a content");
	t->w = w;
	t->length = length;
	t->pages = tree_pages(length);
	t->levels = tree_levels(length);
	if (base)
		t->base = *base;
	r = tree_check(&(struct store_tree){.length = length}, e);
	if (r == 0)
		r = tree_check(&t->base, e);
	if (r < 0)
		return r;
	if (t->base.length > length)
		return err_set(e, -EINVAL,
			"a content of %llu bytes cannot begin as one of %llu: contents only grow",
			(unsigned long long)length, (unsigned long long)t->base.length);
	if (!hash_is_zero(&t->base.root)) {
		r = gc_keep_tree(w->s, w->generation, &t->base, e);
		if (r == 0)
			r = tree_node(&w->reader, &t->base, tree_levels(t->base.length),
				0, &t->base.root, ignored, e);
		if (r < 0)
			return err_wrap(e, r, "the content to begin with");
	}
	t->next = w->trees;
	t->at = &w->trees;
	if (t->next)
		t->next->at = &t->next;
	w->trees = t;
	*ret = TAKE_PTR(t);
	return 0;
}

/* Where a delta of the node just read may lead: to it, or to what it is a delta of. */
static void
take_reference(
	struct store_tree_writer *t, struct open_node *n, const struct store_hash *base)
{
	const struct chunk_reader *c = &t->w->reader;

	n->has_reference = true;
	n->reference = c->was_delta ? c->reference : *base;
	memcpy(n->referenced, c->was_delta ? c->referenced : n->child,
		sizeof(n->referenced));
}

/* Begins the node of a level that holds the page; name is its name in the base. */
static int
open_node(struct store_tree_writer *t, unsigned level, uint64_t page,
	const struct store_hash *name, struct err *e)
{
	struct open_node *n = &t->node[level];
	int r;

	n->first_page = page & ~(tree_child_pages(level) * NODE_FANOUT - 1);
	n->has_reference = false;
	if (hash_is_zero(name)) {
		memset(n->child, 0, sizeof(n->child));
		return 0;
	}
	r = tree_node(&t->w->reader, &t->base, level, n->first_page, name, n->child, e);
	if (r == 0 && level <= tree_levels(t->base.length))
		take_reference(t, n, name);
	return r;
}

static unsigned
slot_in(const struct open_node *n, unsigned level, uint64_t page)
{
	return (unsigned)((page - n->first_page) / tree_child_pages(level));
}

/* Ends the nodes of the levels below `level`, whose names go into their parents. */
static int
close_below(struct store_tree_writer *t, unsigned level, struct err *e)
{
	for (unsigned l = 1; l < level; l++) {
		struct open_node *n = &t->node[l];
		struct store_hash *to = &t->root;
		int r;

		if (l < t->levels)
			to = &t->node[l + 1].child[slot_in(
				&t->node[l + 1], l + 1, n->first_page)];
		r = put_node(t->w, n, to, e);
		if (r < 0)
			return r;
	}
	return 0;
}

static bool
holds(const struct open_node *n, unsigned level, uint64_t page)
{
	return page - n->first_page < tree_child_pages(level) * NODE_FANOUT;
}

/* Opens the nodes on the way to the page, and ends those that are left. */
static int
go_to(struct store_tree_writer *t, uint64_t page, struct err *e)
{
	unsigned level = 1; /* the lowest that is kept */
	int r;

	if (t->begun) {
		while (!holds(&t->node[level], level, page))
			level++;
		r = close_below(t, level, e);
	} else {
		level = t->levels;
		r = open_node(t, level, page, &t->base.root, e);
		t->begun = true;
	}
	for (; r == 0 && level > 1; level--) {
		struct open_node *n = &t->node[level];

		r = open_node(t, level - 1, page, &n->child[slot_in(n, level, page)], e);
	}
	return r;
}

/* A page, hashed and looked up, takes its place in its tree and, when it is new, in the
 * pack. */
static int
take_page(void *ctx, void *tree, uint64_t page, const struct put_page *p, struct err *e)
{
	struct store_writer *w = ctx;
	struct store_tree_writer *t = tree;
	struct open_node *leaf = &t->node[1];
	int r;

	if (!t->begun || !holds(leaf, 1, page)) {
		r = go_to(t, page, e);
		if (r < 0)
			return r;
	}
	leaf->child[page - leaf->first_page] = p->hash;
	if (p->stored || !p->bytes || pack_writer_has(w->pack, CHUNK_PAGE, &p->hash))
		return 0;
	r = pack_writer_add(w->pack, CHUNK_PAGE, p->zipped ? CODING_ZSTD : CODING_RAW,
		&p->hash, p->bytes, p->zipped ? p->zipped : STORE_PAGE, e);
	if (r == 0)
		w->stats.new_pages++;
	return r;
}

int
store_tree_put(struct store_tree_writer *t, uint64_t first, const void *data, uint64_t n,
	struct err *e)
{
	struct store_writer *w = t->w;
	const uint8_t *from = data;
	uint8_t last[STORE_PAGE];
	int r = w->failed;

	if (r < 0)
		return err_sys(e, r, "the commit failed before");
	if (first < t->free || first > t->pages || n > t->pages - first)
		return err_set(e, -EINVAL,
			"pages %llu to %llu put to a content of %llu pages that goes on at %llu",
			(unsigned long long)first, (unsigned long long)(first + n),
			(unsigned long long)t->pages, (unsigned long long)t->free);
	for (uint64_t page = first; r == 0 && page < first + n;
		page++, from += STORE_PAGE) {
		const uint8_t *bytes = from;
		bool zero = false;

		if (page == t->pages - 1 && t->length % STORE_PAGE) {
			memset(last, 0, sizeof(last));
			memcpy(last, from, t->length % STORE_PAGE);
			bytes = last;
		}
		r = put_line_page(w->pages, t, page, bytes, &zero, e);
		w->stats.pages_put++;
		w->stats.pages_zero += zero;
	}
	t->free = first + n;
	if (r < 0)
		w->failed = r;
	return r;
}

int
store_tree_finish(struct store_tree_writer *t, struct store_tree *ret, struct err *e)
{
	struct store_writer *w = t->w;
	int r = w->failed;

	if (r < 0)
		err_sys(e, r, "the commit failed before");
	else
		r = put_line_drain(w->pages, e);
	if (r == 0 && t->begun) {
		r = close_below(t, t->levels + 1, e);
	} else if (r == 0) {
		/* Nothing was put; a longer content may need more levels on top. */
		t->root = t->base.root;
		for (unsigned l = tree_levels(t->base.length) + 1;
			r == 0 && l <= t->levels; l++) {
			struct open_node n = {.child = {t->root}};

			r = put_node(w, &n, &t->root, e);
		}
	}
	if (r < 0)
		w->failed = r;
	else
		*ret = (struct store_tree){t->root, t->length};
	tree_free(t);
	return r;
}

int
store_put_blob(struct store_writer *w, const void *data, uint64_t len,
	struct store_tree *ret, struct err *e)
{
	struct store_tree_writer *t;
	int r = store_tree_begin(w, NULL, len, &t, e);

	if (r < 0)
		return r;
	r = store_tree_put(t, 0, data, tree_pages(len), e);
	if (r < 0) {
		tree_free(t);
		return r;
	}
	return store_tree_finish(t, ret, e);
}

static int
check_root(struct store_writer *w, const char *what, const struct store_tree *t,
	struct err *e)
{
	bool has;
	int r = tree_check(t, e);

	if (r < 0 || hash_is_zero(&t->root))
		return r;
	/* It may be another commit's, as a whole. */
	if (!pack_writer_has(w->pack, CHUNK_NODE, &t->root))
		r = gc_keep_tree(w->s, w->generation, t, NULL);
	if (r == -EBADMSG)
		r = 0; /* not walked, but perhaps all put again by this writer */
	if (r == 0)
		r = has_chunk(w, CHUNK_NODE, &t->root, &has, e);
	if (r == 0 && !has)
		r = err_set(e, -EINVAL, "the commit's %s is not in the store", what);
	return r;
}

int
store_commit(struct store_writer *writer, const struct store_fields *fields,
	char ret_id[static STORE_ID_MAX], struct store_stats *stats, struct err *e)
{
	cleanup_writer struct store_writer *w = writer;
	struct store_fields f = *fields;
	struct store_manifest *again;
	cleanup_free char *text = NULL;
	cleanup_store_file struct store_file manifest = {.fd = -1};
	struct pack *pack = NULL;
	char id[STORE_ID_MAX];
	struct store_hash hash;
	uint64_t bytes;
	size_t len;
	int r;

	if (w->failed)
		return err_sys(e, w->failed, "the commit failed before");
	if (w->trees)
		return err_set(
			e, -EINVAL, "a commit with a content that is not finished");
	if (!f.created_ms)
		f.created_ms = io_wall_ms();
	if ((r = check_root(w, "memory", &f.memory, e)) < 0 ||
		(r = check_root(w, "disk", &f.disk, e)) < 0 ||
		(r = check_root(w, "state", &f.state, e)) < 0 ||
		(r = manifest_format(&f, &text, &len, e)) < 0)
		return r;
	/* What cannot be read must not be written: nesting has a limit. */
	r = manifest_parse(text, len, &again, e);
	if (r < 0)
		return err_set(
			e, -EINVAL, "the commit's configuration is nested too deep");
	store_manifest_free(again);
	hash_of(HASH_PLAIN, text, len, &hash);
	hash_to_hex(&hash, id);
	/* Written first, though it gets its name last: the pack's sync takes its blocks along.
	   Among the packs, for whoever comes into the folder of commits changes its time. */
	r = store_file_begin(&manifest, w->s->packs_fd, "store.manifest", text, len);
	if (r < 0)
		err_sys(e, r, "manifest");
	else
		r = pack_writer_seal(w->pack, &pack, &bytes, e);
	if (r == 0 && pack) {
		r = packs_add(w->s, w->pack, pack, false, e);
		pack_unref(pack);
	}
	if (r == 0 && (r = store_file_sync(&manifest)) < 0)
		err_sys(e, r, "manifest");
	if (r < 0)
		return err_wrap(e, r, "writing the commit to %.200s", w->s->path);
	r = store_put_manifest(w->s, &f, id, &manifest, e);
	if (r < 0)
		return r;
	w->stats.bytes_written = bytes + len;
	if (stats)
		*stats = w->stats;
	memcpy(ret_id, id, sizeof(id));
	return 0;
}
