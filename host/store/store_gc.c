/*
 * What no commit reaches is removed, while commits are made, read and deleted.
 *
 * begin   From here on deleted commits are kept in mind. Writers and holds that began
 *         before are waited for; those that begin later never wait.
 * mark    What the commits, the deleted ones and the roots reach. Later writers that find
 *         a chunk stored mark it too.
 * sweep   The marks do not change any more. Later writers take a chunk for stored only
 *         when it is marked, or in a pack that is newer than the beginning; else they
 *         store it again. Packs with nothing marked go; the marked chunks of those that
 *         are mostly dead are merged into new ones (store_merge.c).
 *
 * Why that is enough: whoever began before the beginning is through before anything is
 * marked, so that what it wrote is a commit or nobody's. Whoever began later can have seen
 * only commits that were there at the beginning or since: these are marked, or were made
 * of marked chunks and new packs, which this run leaves alone.
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "host/store/store_names.h"
#include "host/store/store_priv.h"

#define MERGE_BYTES_MAX (256u << 20) /* live, in one new pack */
#define MERGE_PACKS_MAX 256u	     /* into one */
#define NODE_WORK 4096u		     /* bytes that marking a node counts as */
#define WAIT_NS 20000000	     /* between looks at the cancelling */

/* Of a pack that was there at the beginning. Words are atomic. */
struct marks {
	uint64_t *live;	   /* owned; a bit an entry */
	uint64_t *walked;  /* owned; likewise: nodes whose children were marked */
	uint64_t n, bytes; /* live ones; atomic */
};

struct gc {
	struct store *s;
	struct names walked; /* nodes in newer packs, as marks.walked */
	struct slices slices;
	struct chunk_reader reader;
	uint64_t generation;  /* writers of this and later ones mark what they find */
	struct pack_set *set; /* owned: at the beginning; the packs have marks */
	struct marks *marks;  /* owned; beside the set's packs */
	struct pack_set *now; /* owned: where chunks are looked for; not older */
	bool sweeping;	      /* gc_lock */
	/* Contents to be marked yet: of deleted commits and writers. */
	pthread_mutex_t kept_lock;
	struct store_tree *kept; /* owned */
	size_t n_kept;
};

static void
gc_free(struct gc *g)
{
	for (size_t i = 0; g->marks && i < g->set->n; i++) {
		free(g->marks[i].live);
		free(g->marks[i].walked);
	}
	free(g->marks);
	packs_put(g->set);
	packs_put(g->now);
	chunk_reader_done(&g->reader);
	pthread_mutex_destroy(&g->kept_lock);
	free(g->kept);
	names_done(&g->walked);
	free(g);
}

static bool
set_bit(uint64_t *bits, size_t i)
{
	uint64_t bit = 1ull << (i % 64);

	return __atomic_fetch_or(&bits[i / 64], bit, __ATOMIC_RELAXED) & bit;
}

static bool
has_bit(const uint64_t *bits, size_t i)
{
	return __atomic_load_n(&bits[i / 64], __ATOMIC_RELAXED) >> (i % 64) & 1;
}

/* True: it was live before. */
static bool
set_live(struct marks *m, const struct chunk_at *at)
{
	if (set_bit(m->live, at->entry))
		return true;
	__atomic_add_fetch(&m->n, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&m->bytes,
		le32toh(at->pack->index[at->entry].stored) + sizeof(struct pack_entry),
		__ATOMIC_RELAXED);
	return false;
}

/* ---- for writers ---- */

void
gc_view_begin(struct store *s, uint64_t generation, struct gc_view *ret)
{
	pthread_rwlock_rdlock(&s->gc_lock);
	ret->s = s;
	ret->gc = s->gc && generation >= s->gc->generation ? s->gc : NULL;
}

void
gc_view_end(struct gc_view *v)
{
	pthread_rwlock_unlock(&v->s->gc_lock);
}

/* What its stored form needs, first: whoever finds it live looks no further. */
static bool
keeps_reference(struct gc_view *v, const struct pack_set *set, const struct chunk_at *at)
{
	struct store_hash reference;
	bool has;

	return chunk_reference(v->s, at, &has, &reference, NULL) == 0 &&
	       (!has || gc_find(v, set, CHUNK_NODE, &reference, false));
}

static bool
keeps_copy(struct gc_view *v, const struct pack_set *set, const struct chunk_at *at)
{
	const struct pack_entry *en = &at->pack->index[at->entry];
	struct chunk_at other = *at;

	if (!keeps_reference(v, set, at))
		return false;
	if (!at->pack->marks)
		return true;
	if (v->gc->sweeping)
		return has_bit(at->pack->marks->live, at->entry);
	if (set_live(at->pack->marks, at))
		return true;
	/* Nobody looks whether this copy is sound: all stay. */
	while (chunk_find_next(set, en->kind, &en->hash, true, &other))
		if (other.pack->marks && keeps_reference(v, set, &other))
			set_live(other.pack->marks, &other);
	return true;
}

bool
gc_find(struct gc_view *v, const struct pack_set *set, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta)
{
	struct chunk_at at;

	if (!chunk_find(set, kind, hash, may_be_delta, &at))
		return false;
	if (!v->gc)
		return true;
	for (;;) {
		if (keeps_copy(v, set, &at))
			return true;
		if (!chunk_find_next(set, kind, hash, may_be_delta, &at))
			return false;
	}
}

static int
keep(struct gc *g, const struct store_tree *t)
{
	struct store_tree *bigger;

	if (hash_is_zero(&t->root))
		return 0;
	pthread_mutex_lock(&g->kept_lock);
	bigger = reallocarray(g->kept, g->n_kept + 1, sizeof(*bigger));
	if (bigger) {
		g->kept = bigger;
		bigger[g->n_kept++] = *t;
	}
	pthread_mutex_unlock(&g->kept_lock);
	return bigger ? 0 : -ENOMEM;
}

/* Whether all of the tree stays. Of a commit that is there it does: it was marked, or all
 * of it was put by a later writer, which marked what it found. */
static bool
stays(const struct pack_set *set, const struct store_tree *t)
{
	struct chunk_at at;

	if (!chunk_find(set, CHUNK_NODE, &t->root, true, &at))
		return true; /* the reader will say it */
	do
		if (!at.pack->marks || has_bit(at.pack->marks->live, at.entry))
			return true;
	while (chunk_find_next(set, CHUNK_NODE, &t->root, true, &at));
	return false;
}

int
gc_keep_tree(
	struct store *s, uint64_t generation, const struct store_tree *t, struct err *e)
{
	cleanup_packs struct pack_set *set = NULL;
	struct gc_view v;
	int r = 0;

	if (hash_is_zero(&t->root))
		return 0;
	gc_view_begin(s, generation, &v);
	if (v.gc && !v.gc->sweeping) {
		r = keep(v.gc, t);
		if (r < 0)
			err_sys(e, r, "beginning a content");
	} else if (v.gc) {
		r = packs_get(s, &set, e);
		if (r == 0 && !stays(set, t))
			r = err_set(e, -EBADMSG, "it is of no commit, and just removed");
	}
	gc_view_end(&v);
	return r;
}

bool
gc_is_running(struct store *s)
{
	struct gc_view v;
	bool running;

	gc_view_begin(s, UINT64_MAX, &v);
	running = v.gc && !v.gc->sweeping;
	gc_view_end(&v);
	return running;
}

int
gc_keep_deleted(struct store *s, const struct store_fields *f)
{
	struct gc_view v;
	int r = 0;

	gc_view_begin(s, UINT64_MAX, &v);
	if (v.gc && !v.gc->sweeping && (r = keep(v.gc, &f->memory)) == 0 &&
		(r = keep(v.gc, &f->disk)) == 0)
		r = keep(v.gc, &f->state);
	gc_view_end(&v);
	return r;
}

/* ---- marking ---- */

/* Where several packs have a chunk, the copy to keep is one that is sound: only then are
 * its bytes read. */
static int
choose_copy(struct gc *g, enum chunk_kind kind, const struct store_hash *hash,
	bool may_be_delta, struct chunk_at *at, struct err *e)
{
	struct chunk_at next = *at;
	uint8_t ignored[CHUNK_MAX];
	int r = 0;

	while (chunk_find_next(g->now, kind, hash, may_be_delta, &next)) {
		r = slices_pass(&g->slices, NODE_WORK, e);
		if (r < 0)
			return r;
		r = chunk_read_at(&g->reader, g->now, at, ignored);
		if (r != -EBADMSG)
			break;
		pack_mark_bad(at->pack, at->entry);
		*at = next;
	}
	return r < 0 && r != -EBADMSG ? err_sys(e, r, "pack %s", at->pack->name) : 0;
}

/* Marks a chunk, and what its stored form needs; not what its contents name. */
static int
mark(struct gc *g, enum chunk_kind kind, const struct store_hash *hash, bool may_be_delta,
	struct chunk_at *ret, struct err *e)
{
	struct store_hash reference;
	struct chunk_at ignored;
	char hex[STORE_ID_MAX];
	bool has;
	int r;

	if (!chunk_find(g->now, kind, hash, may_be_delta, ret)) {
		/* It may be of a commit that was made since. */
		packs_put(g->now);
		g->now = NULL;
		r = packs_get(g->s, &g->now, e);
		if (r < 0)
			return r;
		if (!chunk_find(g->now, kind, hash, may_be_delta, ret)) {
			hash_to_hex(hash, hex);
			return err_set(e, -EBADMSG, "%s %.12s is missing or damaged",
				kind == CHUNK_NODE ? "node" : "page", hex);
		}
	}
	if (ret->pack->marks && has_bit(ret->pack->marks->live, ret->entry))
		return 0;
	r = choose_copy(g, kind, hash, may_be_delta, ret, e);
	if (r < 0)
		return r;
	r = chunk_reference(g->s, ret, &has, &reference, e);
	if (r == 0 && has)
		r = mark(g, CHUNK_NODE, &reference, false, &ignored, e);
	if (r == 0 && ret->pack->marks)
		set_live(ret->pack->marks, ret);
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
		if (where.pack->marks ? has_bit(where.pack->marks->walked, where.entry)
				      : names_have(&g->walked, name))
			return 0;
	}
	r = slices_pass(&g->slices, NODE_WORK, e);
	if (r == 0)
		r = tree_node(&g->reader, t, level, at, name, child, e);
	for (unsigned i = 0; r == 0 && i < NODE_FANOUT; i++) {
		struct chunk_at ignored;

		if (hash_is_zero(&child[i]))
			continue;
		if (level == 1)
			r = mark(g, CHUNK_PAGE, &child[i], true, &ignored, e);
		else
			r = mark_node(g, t, level - 1, at + i * tree_child_pages(level),
				&child[i], e);
	}
	if (r < 0 || level > tree_levels(t->length))
		return r;
	if (where.pack->marks)
		set_bit(where.pack->marks->walked, where.entry);
	else if (names_add(&g->walked, name))
		return err_sys(e, -ENOMEM, "gc");
	return 0;
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
mark_commit(void *ctx, const char *id, struct err *e)
{
	struct gc *g = ctx;
	struct store_manifest *m;
	struct store_hash ignored;
	int r;

	if (!hash_from_hex(id, &ignored))
		return 0;
	r = slices_pass(&g->slices, NODE_WORK, e);
	if (r < 0)
		return r;
	r = store_load_id(g->s, id, &m, e);
	if (r == -ENOENT)
		return 0; /* deleted meanwhile: its contents are kept */
	if (r < 0)
		return r;
	if ((r = mark_tree(g, &m->f.memory, e)) < 0 ||
		(r = mark_tree(g, &m->f.disk, e)) < 0 ||
		(r = mark_tree(g, &m->f.state, e)) < 0)
		err_wrap(e, r, "commit %.12s", id);
	store_manifest_free(m);
	return r;
}

/* What deletions and writers handed over. */
static int
mark_kept(struct gc *g, struct err *e)
{
	struct store_tree t;
	bool more = true;
	int r = 0;

	while (more && r == 0) {
		pthread_mutex_lock(&g->kept_lock);
		more = g->n_kept > 0;
		if (more)
			t = g->kept[--g->n_kept];
		pthread_mutex_unlock(&g->kept_lock);
		if (more)
			r = mark_tree(g, &t, e);
	}
	return r;
}

/* All is marked, or there is more to mark. */
static bool
begin_sweep(struct gc *g)
{
	pthread_rwlock_wrlock(&g->s->gc_lock);
	g->sweeping = g->n_kept == 0;
	pthread_rwlock_unlock(&g->s->gc_lock);
	return g->sweeping;
}

static int
mark_all(struct gc *g, const struct store_gc_how *how, struct err *e)
{
	struct store_tree *more = NULL;
	size_t n_more = 0;
	int r = how->ask_roots ? how->ask_roots(how->ctx, &more, &n_more, e) : 0;

	for (size_t i = 0; r == 0 && i < how->n_roots; i++)
		r = mark_tree(g, &how->roots[i], e);
	for (size_t i = 0; r == 0 && i < n_more; i++)
		r = mark_tree(g, &more[i], e);
	free(more);
	if (r == 0)
		r = store_each_name(g->s->commits_fd, MANIFEST_SUFFIX, mark_commit, g, e);
	do {
		if (r == 0)
			r = mark_kept(g, e);
	} while (r == 0 && !begin_sweep(g));
	return r;
}

/* ---- sweeping ---- */

static bool
is_mostly_dead(const struct gc *g, size_t i)
{
	return g->marks[i].n && g->marks[i].bytes < g->set->packs[i]->bytes / 2;
}

/* What is alive of packs that are mostly dead, to new ones. */
static int
rewrite(struct gc *g, struct store_freed *freed, struct err *e)
{
	struct pack *packs[MERGE_PACKS_MAX];
	const uint64_t *live[MERGE_PACKS_MAX];
	uint64_t bytes = 0;
	size_t n = 0;
	int r = 0;

	for (size_t i = 0; r == 0 && i < g->set->n; i++) {
		if (!is_mostly_dead(g, i))
			continue;
		if (n == MERGE_PACKS_MAX ||
			(n && bytes + g->marks[i].bytes > MERGE_BYTES_MAX)) {
			r = packs_merge(&g->slices, packs, live, n, freed, e);
			bytes = n = 0;
		}
		packs[n] = g->set->packs[i];
		live[n++] = g->marks[i].live;
		bytes += g->marks[i].bytes;
	}
	if (r == 0 && n)
		r = packs_merge(&g->slices, packs, live, n, freed, e);
	return r;
}

static int
sweep(struct gc *g, struct store_freed *freed, struct err *e)
{
	cleanup_free struct bad_pack *bad = NULL;
	struct err why = {0};
	size_t n_bad;
	int r = 0;

	/* A commit that was pruned must not be one again after a power cut: its chunks go. */
	if (fsync(g->s->commits_fd) < 0)
		return err_sys(e, -errno, "syncing the folder of commits");
	for (size_t i = 0; r == 0 && i < g->set->n; i++) {
		if (g->marks[i].n)
			continue;
		r = packs_retire(g->s, &g->set->packs[i], 1, &freed->packs_removed,
			&freed->bytes, e);
		if (r == 0)
			r = slices_pass(&g->slices, g->set->packs[i]->bytes / 64, e);
	}
	if (r == 0)
		r = packs_bad(g->s, &bad, &n_bad, e);
	/* Everything live was found without them. */
	for (size_t i = 0; r == 0 && i < n_bad; i++) {
		r = packs_forget_bad(g->s, bad[i].name, e);
		freed->packs_removed++;
	}
	if (r == 0) {
		r = rewrite(g, freed, &why);
		/* What went makes room for the next time. */
		if (freed->packs_removed && (r == -ENOSPC || r == -EDQUOT || r == -EFBIG))
			r = 0;
		if (r < 0)
			err_set(e, r, "%s", why.msg);
	}
	if (r == 0 && fsync(g->s->packs_fd) < 0)
		r = err_sys(e, -errno, "syncing the folder of packs");
	return r;
}

/* ---- the whole ---- */

static int
gc_new(struct store *s, const struct store_gc_how *how, struct gc **ret, struct err *e)
{
	struct gc *g = calloc(1, sizeof(*g));
	int r;

	if (!g)
		return err_sys(e, -ENOMEM, "gc");
	g->s = s;
	g->slices = (struct slices){
		.s = s, .cancel = how->cancel, .gone = how->gone, .ctx = how->ctx};
	pthread_mutex_init(&g->kept_lock, NULL);
	r = chunk_reader_init(&g->reader, s, e);
	if (r == 0)
		r = packs_get(s, &g->set, e);
	if (r == 0 && !(g->marks = calloc(g->set->n + 1, sizeof(*g->marks))))
		r = err_sys(e, -ENOMEM, "gc");
	for (size_t i = 0; r == 0 && i < g->set->n; i++) {
		size_t words = (g->set->packs[i]->count + 63) / 64;

		g->marks[i].live = calloc(words, sizeof(uint64_t));
		g->marks[i].walked = calloc(words, sizeof(uint64_t));
		if (!g->marks[i].live || !g->marks[i].walked)
			r = err_sys(e, -ENOMEM, "gc");
	}
	if (r < 0) {
		gc_free(g);
		return r;
	}
	*ret = g;
	return 0;
}

/* Not in the midst of a deletion: what is deleted from here on is kept in mind. */
static void
gc_begin(struct gc *g)
{
	struct store *s = g->s;

	pthread_mutex_lock(&s->names);
	pthread_rwlock_wrlock(&s->gc_lock);
	pthread_mutex_lock(&s->hold_lock);
	g->generation = ++s->generation;
	s->holds_before += s->holds_now; /* a cancelled gc may have left some */
	s->holds_now = 0;
	pthread_mutex_unlock(&s->hold_lock);
	for (size_t i = 0; i < g->set->n; i++)
		g->set->packs[i]->marks = &g->marks[i];
	s->gc = g;
	pthread_rwlock_unlock(&s->gc_lock);
	pthread_mutex_unlock(&s->names);
}

/* Writers and holds that began before. */
static int
wait_for_earlier(struct gc *g, struct err *e)
{
	struct store *s = g->s;
	int r = 0;

	pthread_mutex_lock(&s->hold_lock);
	while (s->holds_before && r == 0) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += WAIT_NS;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
		pthread_cond_timedwait(&s->hold_changed, &s->hold_lock, &until);
		if (slices_cancelled(&g->slices))
			r = err_set(e, -ECANCELED, "cancelled");
	}
	pthread_mutex_unlock(&s->hold_lock);
	return r;
}

static void
gc_end(struct gc *g)
{
	struct store *s = g->s;

	pthread_rwlock_wrlock(&s->gc_lock);
	for (size_t i = 0; i < g->set->n; i++)
		g->set->packs[i]->marks = NULL;
	s->gc = NULL;
	pthread_rwlock_unlock(&s->gc_lock);
}

static int
collect(struct gc *g, const struct store_gc_how *how, struct store_freed *freed,
	struct err *e)
{
	uint64_t deleted = __atomic_load_n(&g->s->deleted, __ATOMIC_RELAXED);
	int r;

	gc_begin(g);
	r = wait_for_earlier(g, e);
	if (r == 0)
		r = packs_get(g->s, &g->now, e);
	if (r == 0) {
		r = mark_all(g, how, e);
		if (r == -EBADMSG)
			err_wrap(e, r,
				"nothing was removed, for what is damaged may need it (delete it first)");
	}
	if (r == 0) {
		fault_point("store.gc-marked");
		r = sweep(g, freed, e);
	}
	gc_end(g);
	if (r == 0)
		gc_note_collected(g->s, deleted);
	return r;
}

int
store_gc_run(struct store *s, const struct store_gc_how *how, struct store_freed *ret,
	struct err *e)
{
	struct store_freed freed = {0};
	struct gc *g = NULL;
	int r;

	care_begin(s);
	r = gc_new(s, how, &g, e);
	if (r == 0) {
		r = collect(g, how, &freed, e);
		gc_free(g);
	}
	if (r == 0)
		r = packs_renew_filter(s, e);
	care_end(s);
	__atomic_store_n(&s->gc_ms, io_now_ns() / 1000000, __ATOMIC_RELAXED);
	if (ret && (r == 0 || r == -ECANCELED))
		*ret = freed;
	return r;
}

int
store_gc(struct store *s, const struct store_tree *roots, size_t n_roots,
	struct store_freed *ret, struct err *e)
{
	const struct store_gc_how how = {.roots = roots, .n_roots = n_roots};

	return store_gc_run(s, &how, ret, e);
}
