/*
 * The care of the store: verifying, repairing, and gc, which pandod also begins on its own
 * (store_gc_is_due()). A gc ends when its caller has gone, when somebody cancels it, and
 * when pandod stops; what it has removed by then stays removed, and nothing is lost.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"
#include "host/store/store_pool.h"

#define DAMAGES_MAX 1000u /* what is listed at most; all is counted */
#define CARE_EVERY_S 10	  /* how often is looked whether a gc is due */

struct damages {
	struct json_out *out;
	uint64_t listed;
};

static void
put_damage(void *ctx, const struct store_damage *d)
{
	static const char *const kinds[] = {
		[STORE_DAMAGE_PACK] = "pack",
		[STORE_DAMAGE_MANIFEST] = "manifest",
		[STORE_DAMAGE_PARENT] = "parent",
		[STORE_DAMAGE_TAG] = "tag",
		[STORE_DAMAGE_MISSING] = "missing",
		[STORE_DAMAGE_CHUNK] = "chunk",
	};
	struct damages *l = ctx;

	if (l->listed++ >= DAMAGES_MAX)
		return;
	json_out_object(l->out, NULL);
	json_out_str(l->out, "kind", kinds[d->kind]);
	json_out_str(l->out, "commit", d->commit[0] ? d->commit : NULL);
	json_out_str(l->out, "tree", d->tree && d->tree[0] ? d->tree : NULL);
	json_out_u64(l->out, "first_page", d->first_page);
	json_out_u64(l->out, "pages", d->pages);
	json_out_str(l->out, "pack", d->pack[0] ? d->pack : NULL);
	json_out_str(l->out, "text", d->text);
	json_out_end_object(l->out);
}

/* Ends the array of damages. */
static void
put_verified(const struct store_verified *v, struct json_out *out)
{
	json_out_end_array(out);
	json_out_bool(out, "sound", v->damages == 0);
	json_out_u64(out, "damaged", v->damages);
	json_out_u64(out, "commits", v->commits);
	json_out_u64(out, "pages", v->pages);
	json_out_u64(out, "nodes", v->nodes);
}

int
commits_verify(struct commits *c, const char *name, struct json_out *out, struct err *e)
{
	struct damages l = {.out = out};
	struct store_verified v = {0};
	char id[STORE_ID_MAX];
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0 && name)
		r = store_resolve(s, name, id, e);
	if (r < 0)
		return r;
	json_out_object(out, NULL);
	json_out_array(out, "damages");
	r = store_verify(s, name ? id : NULL, put_damage, &l, &v, e);
	put_verified(&v, out);
	json_out_end_object(out);
	return r;
}

/* On disk before packs go: what a base is said to have may be in them. */
static int
forget_bases(struct tree *t, struct err *e)
{
	cleanup_free struct db_base *bases = NULL;
	size_t n = 0;
	int r;

	pthread_mutex_lock(&t->lock);
	r = db_bases(t->db, &bases, &n, e);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = db_base_drop(t->db, bases[i].path, e);
	if (r == 0)
		r = tree_sync_locked(t, e);
	pthread_mutex_unlock(&t->lock);
	return r;
}

int
commits_repair(
	struct commits *c, const struct progress *p, struct json_out *out, struct err *e)
{
	struct damages l = {.out = out};
	struct store_repaired done = {0};
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0 && store_is_damaged(s))
		r = forget_bases(c->tree, e);
	if (r < 0)
		return r;
	say(p, "saving what is sound of packs that cannot be read; then every hash is recomputed");
	json_out_object(out, NULL);
	json_out_array(out, "damages");
	r = store_repair(s, put_damage, &l, &done, e);
	put_verified(&done.left, out);
	json_out_u64(out, "chunks_saved", done.chunks_saved);
	json_out_u64(out, "packs_removed", done.packs_removed);
	json_out_end_object(out);
	if (r == 0)
		log_info("repair: %llu chunks saved, %llu packs removed, %llu damages left",
			(unsigned long long)done.chunks_saved,
			(unsigned long long)done.packs_removed,
			(unsigned long long)done.left.damages);
	return r;
}

/* The bases that are as they were read, and in this store: their content stays. */
static int
base_roots(struct tree *t, struct store *s, struct store_tree **ret, size_t *ret_n,
	struct err *e)
{
	cleanup_free struct db_base *bases = NULL;
	struct store_tree *roots;
	size_t n = 0, kept = 0;
	char page[STORE_PAGE];
	int r;

	pthread_mutex_lock(&t->lock);
	r = db_bases(t->db, &bases, &n, e);
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	roots = calloc(n + 1, sizeof(*roots));
	if (!roots)
		return err_set(e, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++) {
		const struct db_base *b = &bases[i];
		struct stat st;

		if (stat(b->path, &st) == 0 && st.st_dev == b->dev &&
			st.st_ino == b->inode && (uint64_t)st.st_size == b->size &&
			(int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec ==
				b->mtime_ns &&
			store_tree_read(s, &b->tree, 0, 1, page, NULL) == 0) {
			roots[kept++] = b->tree;
			continue;
		}
		pthread_mutex_lock(&t->lock);
		db_base_drop(t->db, b->path, NULL);
		pthread_mutex_unlock(&t->lock);
	}
	*ret = roots;
	*ret_n = kept;
	return 0;
}

/* For store_gc_run(): when no commit is under way that began before it. */
static int
ask_base_roots(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *e)
{
	struct commits *c = ctx;
	struct tree *t = c->tree;
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = base_roots(t, s, ret, ret_n, e);
	if (r < 0)
		return r;
	/* What it no longer keeps for a base must not be believed to be there, either. */
	pthread_mutex_lock(&t->lock);
	r = tree_sync_locked(t, e);
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		free(*ret);
	return r;
}

/* Who waits for a gc, and what ends it. */
struct gc_caller {
	struct commits *c;
	const struct progress *p; /* NULL: nobody waits */
	unsigned cancels;	  /* as there were when it began */
};

static bool
is_over(void *ctx)
{
	const struct gc_caller *caller = ctx;
	struct commits *c = caller->c;

	return __atomic_load_n(&c->gc_cancels, __ATOMIC_RELAXED) != caller->cancels ||
	       __atomic_load_n(&c->closing, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&c->tree->stopping, __ATOMIC_RELAXED) ||
	       (caller->p && caller->p->gone && caller->p->gone(caller->p->ctx));
}

static int
ask_roots(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *e)
{
	return ask_base_roots(((struct gc_caller *)ctx)->c, ret, ret_n, e);
}

static int
gc(struct commits *c, struct store *s, const struct progress *p, struct store_freed *freed,
	struct err *e)
{
	struct gc_caller caller = {
		c, p, __atomic_load_n(&c->gc_cancels, __ATOMIC_RELAXED)};
	const struct store_gc_how how = {.ask_roots = ask_roots, .gone = is_over, .ctx = &caller};
	int r;

	__atomic_add_fetch(&c->gcs, 1, __ATOMIC_RELAXED);
	r = store_gc_run(s, &how, freed, e);
	__atomic_sub_fetch(&c->gcs, 1, __ATOMIC_RELAXED);
	if (r == 0 || r == -ECANCELED)
		log_info("gc%s: %llu KiB freed%s", p ? "" : " of its own",
			(unsigned long long)(freed->bytes >> 10),
			r < 0 ? ", and cancelled" : "");
	return r;
}

int
commits_gc(
	struct commits *c, const struct progress *p, struct json_out *out, struct err *e)
{
	static const struct progress nobody;
	struct store_freed freed = {0};
	struct store_used used = {0};
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r < 0)
		return r;
	say(p, "waiting for the commits that are being made; then looking for what none reaches");
	r = gc(c, s, p ? p : &nobody, &freed, e);
	materialized_trim(c);
	if (r == 0)
		r = store_usage(s, &used, e);
	if (r < 0)
		return r;
	json_out_object(out, NULL);
	json_out_u64(out, "freed_bytes", freed.bytes);
	json_out_u64(out, "packs_removed", freed.packs_removed);
	json_out_u64(out, "packs_rewritten", freed.packs_rewritten);
	json_out_u64(out, "bytes", used.bytes);
	json_out_u64(out, "commits", used.commits);
	json_out_u64(out, "packs", used.packs);
	json_out_u64(out, "tags", used.tags);
	json_out_end_object(out);
	return 0;
}

void
commits_gc_cancel(struct commits *c, struct json_out *out)
{
	__atomic_add_fetch(&c->gc_cancels, 1, __ATOMIC_RELAXED);
	json_out_object(out, NULL);
	json_out_u64(out, "cancelled", __atomic_load_n(&c->gcs, __ATOMIC_RELAXED));
	json_out_end_object(out);
}

/*
 * The gc that nobody asks for, in a thread of low priority.
 */

static void
gc_if_due(struct commits *c)
{
	struct store_freed freed = {0};
	struct store *s;
	struct err e;

	pthread_mutex_lock(&c->store_lock);
	s = c->store; /* not opened for this */
	pthread_mutex_unlock(&c->store_lock);
	if (!s || __atomic_load_n(&c->closing, __ATOMIC_RELAXED) || !store_gc_is_due(s))
		return;
	if (gc(c, s, NULL, &freed, &e) < 0 && e.code != -ECANCELED)
		log_warn("gc of its own: %s", e.msg);
}

static void *
care_main(void *arg)
{
	struct commits *c = arg;

	pool_lower_priority();
	pthread_mutex_lock(&c->care_lock);
	while (!c->closing) {
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += CARE_EVERY_S;
		pthread_cond_timedwait(&c->care_changed, &c->care_lock, &until);
		pthread_mutex_unlock(&c->care_lock);
		gc_if_due(c);
		pthread_mutex_lock(&c->care_lock);
	}
	pthread_mutex_unlock(&c->care_lock);
	return NULL;
}

void
care_open(struct commits *c)
{
	pthread_mutex_init(&c->care_lock, NULL);
	pthread_cond_init(&c->care_changed, NULL);
	c->care_made = pthread_create(&c->care_thread, NULL, care_main, c) == 0;
	if (!c->care_made)
		log_warn("gc of its own: no thread; `pando gc` frees what is deleted");
}

void
care_close(struct commits *c)
{
	pthread_mutex_lock(&c->care_lock);
	__atomic_store_n(&c->closing, true, __ATOMIC_RELAXED);
	pthread_cond_signal(&c->care_changed);
	pthread_mutex_unlock(&c->care_lock);
	if (c->care_made)
		pthread_join(c->care_thread, NULL);
	pthread_cond_destroy(&c->care_changed);
	pthread_mutex_destroy(&c->care_lock);
}
