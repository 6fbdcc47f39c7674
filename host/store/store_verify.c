/* Every hash again. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/store/store_priv.h"

struct checked {
	/* Owned; an entry's level + 1 when it and all below it were sound, else 0. The
	   level, for a hostile tree may have one node at two of them. */
	uint8_t *sound;
};

struct verify {
	struct store *s;
	struct chunk_reader reader;
	store_damage_fn *fn;
	void *ctx;
	struct store_verified sum;
	struct pack_set *set;  /* owned: the packs at the beginning, */
	struct checked *packs; /* owned; and what was seen of them */
	const char *commit;
	const char *tree_name;
	const struct store_tree *tree;
	struct store_damage pending; /* pages that may go on; pages 0: none */
	bool has_missed;	     /* chunks that are in no pack */
};

static void
report_pending(struct verify *v)
{
	if (!v->pending.pages)
		return;
	v->sum.damages++;
	v->fn(v->ctx, &v->pending);
	v->pending.pages = 0;
}

__attribute__((format(printf, 6, 7))) static void
report(struct verify *v, enum store_damage_kind kind, const char *commit,
	const char *tree, const char *pack, const char *fmt, ...)
{
	struct store_damage d = {.kind = kind, .tree = tree};
	va_list ap;

	report_pending(v);
	snprintf(d.commit, sizeof(d.commit), "%s", commit);
	snprintf(d.pack, sizeof(d.pack), "%s", pack);
	va_start(ap, fmt);
	if (vsnprintf(d.text, sizeof(d.text), fmt, ap) < 0)
		d.text[0] = '\0';
	va_end(ap);
	v->sum.damages++;
	v->fn(v->ctx, &d);
}

/* Neighbours with the same damage become one report. */
static void
report_pages(struct verify *v, uint64_t first, uint64_t n, const char *what)
{
	struct store_damage *d = &v->pending;
	enum store_damage_kind kind =
		v->reader.pack[0] ? STORE_DAMAGE_CHUNK : STORE_DAMAGE_MISSING;
	uint64_t pages = tree_pages(v->tree->length);

	v->has_missed |= kind == STORE_DAMAGE_MISSING;
	if (n > pages - first)
		n = pages - first;
	if (!d->pages || d->kind != kind || d->first_page + d->pages != first ||
		strcmp(d->pack, v->reader.pack) != 0) {
		report_pending(v);
		*d = (struct store_damage){
			.kind = kind, .tree = v->tree_name, .first_page = first};
		snprintf(d->commit, sizeof(d->commit), "%s", v->commit);
		snprintf(d->pack, sizeof(d->pack), "%s", v->reader.pack);
	}
	d->pages += n;
	snprintf(d->text, sizeof(d->text), "commit %.12s: %s, pages %llu to %llu: %.120s",
		v->commit, v->tree_name, (unsigned long long)d->first_page,
		(unsigned long long)(d->first_page + d->pages - 1), what);
}

/* Where to note that the chunk is sound; NULL: nowhere, it is stored in no pack that
 * was there at the beginning. */
static uint8_t *
note_of(struct verify *v, enum chunk_kind kind, const struct store_hash *hash)
{
	struct chunk_at at;

	return chunk_find(v->set, kind, hash, true, &at)
		       ? &v->packs[at.number].sound[at.entry]
		       : NULL;
}

static int
verify_page(struct verify *v, uint64_t page, const struct store_hash *name,
	bool *ret_sound, struct err *e)
{
	uint8_t data[STORE_PAGE], *note = note_of(v, CHUNK_PAGE, name);
	struct err why = {0};
	int r;

	*ret_sound = true;
	if (note && *note && page != tree_pages(v->tree->length) - 1)
		return 0;
	v->sum.pages++;
	r = tree_page(&v->reader, v->tree, page, name, data, &why);
	if (r < 0 && r != -EBADMSG)
		return err_set(e, r, "%s", why.msg);
	if (r < 0) {
		report_pages(v, page, 1, why.msg);
		*ret_sound = false;
	} else if (note) {
		*note = 1;
	}
	return 0;
}

static int
verify_node(struct verify *v, unsigned level, uint64_t at, const struct store_hash *name,
	bool *ret_sound, struct err *e)
{
	uint64_t child_pages = tree_child_pages(level), all = child_pages * NODE_FANOUT;
	struct store_hash child[NODE_FANOUT];
	uint8_t *note = note_of(v, CHUNK_NODE, name);
	struct err why = {0};
	int r;

	*ret_sound = true;
	/* Not where the tree ends in it: there the place counts. */
	if (note && *note == level + 1 && at + all < tree_pages(v->tree->length))
		return 0;
	v->sum.nodes++;
	r = tree_node(&v->reader, v->tree, level, at, name, child, &why);
	if (r < 0 && r != -EBADMSG)
		return err_set(e, r, "%s", why.msg);
	if (r < 0) {
		report_pages(v, at, all, why.msg);
		*ret_sound = false;
		return 0;
	}
	for (unsigned i = 0; r == 0 && i < NODE_FANOUT; i++) {
		bool sound = true;

		if (hash_is_zero(&child[i]))
			continue;
		r = level == 1 ? verify_page(v, at + i, &child[i], &sound, e)
			       : verify_node(v, level - 1, at + i * child_pages,
					 &child[i], &sound, e);
		*ret_sound &= sound;
	}
	if (r == 0 && *ret_sound && note)
		*note = (uint8_t)(level + 1);
	return r;
}

static int
verify_tree(struct verify *v, const char *name, const struct store_tree *t, struct err *e)
{
	bool sound;
	int r;

	if (hash_is_zero(&t->root))
		return 0;
	v->tree = t;
	v->tree_name = name;
	r = verify_node(v, tree_levels(t->length), 0, &t->root, &sound, e);
	report_pending(v);
	return r;
}

static int
verify_held(struct verify *v, const char *id, struct err *e)
{
	struct store_manifest *m;
	struct err why = {0};
	int r = store_load_id(v->s, id, &m, &why);

	if (r == -ENOENT && v->commit == NULL)
		return 0; /* deleted meanwhile */
	v->sum.commits++;
	if (r == -EBADMSG) {
		report(v, STORE_DAMAGE_MANIFEST, id, "", "", "%.300s", why.msg);
		return 0;
	}
	if (r < 0)
		return err_set(e, r, "%s", why.msg);
	v->commit = id;
	if (m->f.parent && !store_has_commit(v->s, m->f.parent) &&
		!store_is_pruned(v->s, m->f.parent))
		report(v, STORE_DAMAGE_PARENT, id, "", "",
			"commit %.12s: its parent %.12s is not in the store", id,
			m->f.parent);
	if ((r = verify_tree(v, "memory", &m->f.memory, e)) == 0 &&
		(r = verify_tree(v, "disk", &m->f.disk, e)) == 0)
		r = verify_tree(v, "state", &m->f.state, e);
	v->commit = NULL;
	store_manifest_free(m);
	return r;
}

/* One hold a commit, so that gc need not wait for all of them. */
static int
verify_commit(void *ctx, const char *id, struct err *e)
{
	struct verify *v = ctx;
	struct store_hash ignored;
	uint64_t hold;
	int r;

	if (!hash_from_hex(id, &ignored))
		return 0;
	hold = hold_begin(v->s);
	r = verify_held(v, id, e);
	hold_end(v->s, hold);
	return r;
}

/* Of a pruned one only the manifest is held. */
static int
verify_pruned(void *ctx, const char *id, struct err *e)
{
	struct verify *v = ctx;
	struct store_manifest *m = NULL;
	struct store_hash ignored;
	struct err why = {0};
	int r;

	if (!hash_from_hex(id, &ignored))
		return 0;
	r = store_read_manifest(v->s, id, true, &m, &why);
	store_manifest_free(m);
	if (r == -EBADMSG)
		report(v, STORE_DAMAGE_MANIFEST, id, "", "", "%.300s", why.msg);
	return r == 0 || r == -EBADMSG || r == -ENOENT ? 0 : err_set(e, r, "%s", why.msg);
}

static int
verify_tags(struct verify *v, struct err *e)
{
	cleanup_free struct store_tag *tags = NULL;
	size_t n;
	int r = store_tags(v->s, &tags, &n, e);

	for (size_t i = 0; r == 0 && i < n; i++) {
		if (!tags[i].id[0])
			report(v, STORE_DAMAGE_TAG, "", "", "", "tag \"%s\" is damaged",
				tags[i].name);
		else if (!store_has_commit(v->s, tags[i].id))
			report(v, STORE_DAMAGE_TAG, tags[i].id, "", "",
				"tag \"%s\" is of commit %.12s, which is not in the store",
				tags[i].name, tags[i].id);
	}
	return r;
}

/* The packs of commits that are finished meanwhile are not among those of the beginning,
 * and need not be. */
static int
begin(struct verify *v, bool all, struct err *e)
{
	cleanup_free struct bad_pack *bad = NULL;
	size_t n;
	int r = packs_get(v->s, &v->set, e);

	if (r == 0)
		r = packs_bad(v->s, &bad, &n, e);
	if (r < 0)
		return r;
	for (size_t i = 0; all && i < n; i++)
		report(v, STORE_DAMAGE_PACK, "", "", bad[i].name, "%.300s",
			bad[i].why.msg);
	v->packs = calloc(v->set->n + 1, sizeof(*v->packs));
	if (!v->packs)
		return err_sys(e, -ENOMEM, "verify");
	for (size_t i = 0; i < v->set->n; i++) {
		v->packs[i].sound = calloc(1, v->set->packs[i]->count);
		if (!v->packs[i].sound)
			return err_sys(e, -ENOMEM, "verify");
	}
	return 0;
}

int
store_verify(struct store *s, const char *id, store_damage_fn *fn, void *ctx,
	struct store_verified *ret, struct err *e)
{
	struct verify v = {.s = s, .fn = fn, .ctx = ctx};
	uint64_t seen = note_damage_seen(s);
	int r;

	if (id && !store_has_commit(s, id))
		return err_set(e, -ENOENT, "there is no commit %.64s", id);
	r = chunk_reader_init(&v.reader, s, e);
	if (r == 0)
		r = begin(&v, !id, e);
	if (r == 0 && id)
		r = verify_commit(&v, id, e);
	else if (r == 0) {
		r = store_each_name(s->commits_fd, MANIFEST_SUFFIX, verify_commit, &v, e);
		if (r == 0)
			r = store_each_name(
				s->commits_fd, PRUNED_SUFFIX, verify_pruned, &v, e);
		if (r == 0)
			r = verify_tags(&v, e);
	}
	for (size_t i = 0; v.packs && i < v.set->n; i++)
		free(v.packs[i].sound);
	free(v.packs);
	packs_put(v.set);
	chunk_reader_done(&v.reader);
	if (v.has_missed || (r == 0 && !id))
		__atomic_store_n(&s->has_missed, v.has_missed, __ATOMIC_RELAXED);
	if (r == 0 && !id && !v.sum.damages)
		note_sound(s, seen);
	if (r == 0 && ret)
		*ret = v.sum;
	return r;
}
