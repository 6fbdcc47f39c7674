/* What is removed, and what is not, while others work: host/store/store_gc.c. ask_roots is
 * where the tests do things in the midst of a gc. */
#include "tests/unit/store_help.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include "host/store/store_priv.h"

#define PAGES 500u

static uint32_t values[PAGES], other[PAGES];

static void
some_values(uint32_t seed)
{
	for (uint32_t i = 0; i < PAGES; i++)
		values[i] = other[i] = seed + i;
}

static struct store_tree
memory_of(const char *id)
{
	struct store_manifest *m;
	struct store_tree t;

	ok(store_load(store, id, &m, &e));
	t = m->f.memory;
	store_manifest_free(m);
	return t;
}

static int
gc_with(int (*meanwhile)(void *, struct store_tree **, size_t *, struct err *), void *ctx,
	struct store_freed *freed)
{
	const struct store_gc_how how = {.ask_roots = meanwhile, .ctx = ctx};

	return store_gc_run(store, &how, freed, &e);
}

static int
commit_meanwhile(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	(void)ret;
	(void)ret_n;
	(void)err;
	commit_values(NULL, NULL, NULL, values, PAGES, ctx, NULL);
	return 0;
}

static void
a_commit_that_begins_during_gc_is_made_at_once_and_stays(void **state)
{
	char first[STORE_ID_MAX], second[STORE_ID_MAX];
	struct store_freed freed;
	struct store_stats stats;
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, first, NULL);
	ok(store_delete(store, first, 0, NULL, &e));
	/* It finds all its pages stored, and nobody's. */
	ok(gc_with(commit_meanwhile, second, &freed));
	assert_int_equal(freed.bytes, 0);
	t = memory_of(second);
	has_values(&t, values, PAGES);
	is_sound();
	reopen();
	has_values(&t, values, PAGES);
	/* Nothing was stored a second time. */
	assert_int_equal(count_files("packs"), 1);
	commit_values(NULL, &t, values, values, PAGES, first, &stats);
	assert_int_equal(stats.new_pages, 0);
}

struct deleted {
	char id[STORE_ID_MAX];
	struct store_tree tree;
};

static int
hold_and_delete(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	struct deleted *d = ctx;

	(void)ret;
	(void)ret_n;
	(void)err;
	store_hold(store);
	d->tree = memory_of(d->id);
	ok(store_delete(store, d->id, 0, NULL, &e));
	return 0;
}

static void
a_reader_that_began_during_gc_goes_on_when_the_commit_is_deleted(void **state)
{
	struct store_freed freed;
	struct deleted d;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, d.id, NULL);
	ok(gc_with(hold_and_delete, &d, &freed));
	assert_int_equal(freed.packs_removed, 0);
	has_values(&d.tree, values, PAGES);
	store_release(store);
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(freed.packs_removed, 1);
}

static int
hold_and_prune(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	struct deleted *d = ctx;

	(void)ret;
	(void)ret_n;
	(void)err;
	store_hold(store);
	d->tree = memory_of(d->id);
	ok(store_prune(store, (const char (*)[STORE_ID_MAX]) & d->id, 1, NULL, &e));
	return 0;
}

/* Some of its nodes stay anyway, those that nodes of its child are deltas of: what a commit
 * begins with must be there below them, too. */
static void
what_a_commit_begins_with_stays_when_it_is_pruned_during_gc(void **state)
{
	char child[STORE_ID_MAX], id[STORE_ID_MAX];
	struct store_freed freed;
	struct store_tree t;
	struct deleted d;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, d.id, NULL);
	t = memory_of(d.id);
	for (unsigned i = 0; i < PAGES; i++)
		other[i] += 700000;
	commit_values(d.id, &t, values, other, PAGES, child, NULL);
	ok(gc_with(hold_and_prune, &d, &freed));
	commit_values(d.id, &d.tree, values, values, PAGES, id, NULL);
	store_release(store);
	is_sound();
	ok(store_gc(store, NULL, 0, &freed, &e));
	is_sound();
	t = memory_of(id);
	has_values(&t, values, PAGES);
}

static int
commit_on_base(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	struct deleted *d = ctx;

	(void)ret;
	(void)ret_n;
	(void)err;
	other[3] = 777777;
	commit_values(NULL, &d->tree, values, other, PAGES, d->id, NULL);
	return 0;
}

static void
what_a_commit_during_gc_begins_with_stays(void **state)
{
	char id[STORE_ID_MAX];
	struct store_freed freed;
	struct deleted d;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	d.tree = memory_of(id);
	ok(store_delete(store, id, 0, NULL, &e));
	ok(gc_with(commit_on_base, &d, &freed));
	d.tree = memory_of(d.id);
	has_values(&d.tree, other, PAGES);
	is_sound();
}

static int
take_whole(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	struct store_fields f = {.created_ms = 9};
	struct deleted *d = ctx;
	struct store_writer *w;

	(void)ret;
	(void)ret_n;
	(void)err;
	ok(store_begin(store, &w, &e));
	f.memory = d->tree;
	ok(store_commit(w, &f, d->id, NULL, &e));
	return 0;
}

static void
what_a_commit_during_gc_takes_as_a_whole_stays(void **state)
{
	char id[STORE_ID_MAX];
	struct store_freed freed;
	struct deleted d;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	d.tree = memory_of(id);
	ok(store_delete(store, id, 0, NULL, &e));
	ok(gc_with(take_whole, &d, &freed));
	has_values(&d.tree, values, PAGES);
	is_sound();
}

static int
commit_what_repeats(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	struct store_fields f = {.created_ms = 9};
	struct store_hash node[NODE_FANOUT];
	uint8_t page[STORE_PAGE];
	struct pack *p = NULL;
	struct pack_writer *w;
	struct store_hash h;
	uint64_t bytes;

	(void)ret;
	(void)ret_n;
	(void)err;
	fill(page, 7);
	hash_of(HASH_PLAIN, page, STORE_PAGE, &h);
	ok(pack_writer_new(store->packs_fd, &w));
	ok(pack_writer_add(w, CHUNK_PAGE, CODING_RAW, &h, page, STORE_PAGE, &e));
	for (unsigned level = 0; level < 5; level++) {
		for (unsigned i = 0; i < NODE_FANOUT; i++)
			node[i] = h;
		hash_of(HASH_NODE, node, sizeof(node), &h);
		ok(pack_writer_add(
			w, CHUNK_NODE, CODING_RAW, &h, node, sizeof(node), &e));
	}
	ok(pack_writer_seal(w, &p, &bytes, &e));
	ok(packs_add(store, w, p, false, &e));
	pack_unref(p);
	pack_writer_free(w);
	f.memory = (struct store_tree){h, (1ull << 30) * STORE_PAGE};
	{
		struct store_writer *writer;

		ok(store_begin(store, &writer, &e));
		ok(store_commit(writer, &f, ctx, NULL, &e));
	}
	return 0;
}

static void
a_content_that_repeats_is_walked_once(void **state)
{
	char id[STORE_ID_MAX];
	struct store_freed freed;

	(void)state;
	/* 4 TiB, of 6 chunks. */
	ok(gc_with(commit_what_repeats, id, &freed));
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(count_files("packs"), 1);
}

static int
give_roots(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	(void)err;
	*ret = malloc(sizeof(**ret));
	**ret = *(struct store_tree *)ctx;
	*ret_n = 1;
	return 0;
}

static int
fail_to_give_roots(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	(void)ctx;
	(void)ret;
	(void)ret_n;
	return err_set(err, -EIO, "no roots");
}

static void
roots_are_asked_for_and_stay(void **state)
{
	char id[STORE_ID_MAX];
	struct store_freed freed;
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	t = memory_of(id);
	ok(store_delete(store, id, 0, NULL, &e));
	refused(gc_with(fail_to_give_roots, NULL, &freed), -EIO, "no roots");
	ok(gc_with(give_roots, &t, &freed));
	assert_int_equal(freed.packs_removed, 0);
	has_values(&t, values, PAGES);
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(count_files("packs"), 0);
}

struct running {
	pthread_t thread;
	bool done; /* atomic */
	int r;
	const bool *cancel;
};

static void *
gc_main(void *arg)
{
	struct running *g = arg;
	const struct store_gc_how how = {.cancel = g->cancel};

	g->r = store_gc_run(store, &how, NULL, NULL);
	__atomic_store_n(&g->done, true, __ATOMIC_RELEASE);
	return NULL;
}

static bool
is_done(struct running *g)
{
	return __atomic_load_n(&g->done, __ATOMIC_ACQUIRE);
}

static void
gc_waits_for_what_began_before_and_nobody_for_it(void **state)
{
	struct running gc = {0};
	struct store_writer *w;
	char id[STORE_ID_MAX];
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	store_hold(store);
	t = memory_of(id);
	ok(store_delete(store, id, 0, NULL, &e));
	pthread_create(&gc.thread, NULL, gc_main, &gc);
	usleep(100000);
	assert_false(is_done(&gc));
	/* All of this goes on. */
	has_values(&t, values, PAGES);
	other[1] = 5;
	commit_values(NULL, NULL, NULL, other, PAGES, id, NULL);
	store_hold(store); /* within the first */
	store_release(store);
	ok(store_begin(store, &w, &e));
	is_sound();
	assert_false(is_done(&gc));
	store_release(store);
	/* Not for the writer that began later. */
	pthread_join(gc.thread, NULL);
	assert_int_equal(gc.r, 0);
	store_abort(w);
	t = memory_of(id);
	has_values(&t, other, PAGES);
	is_sound();
}

static void
a_gc_that_waits_can_be_cancelled_and_the_next_waits_on(void **state)
{
	bool cancel = false;
	struct running gc = {.cancel = &cancel}, next = {0};
	char id[STORE_ID_MAX];
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	store_hold(store);
	t = memory_of(id);
	ok(store_delete(store, id, 0, NULL, &e));
	pthread_create(&gc.thread, NULL, gc_main, &gc);
	usleep(50000);
	assert_false(is_done(&gc));
	__atomic_store_n(&cancel, true, __ATOMIC_RELAXED);
	pthread_join(gc.thread, NULL);
	assert_int_equal(gc.r, -ECANCELED);
	pthread_create(&next.thread, NULL, gc_main, &next);
	usleep(50000);
	assert_false(is_done(&next));
	has_values(&t, values, PAGES);
	store_release(store);
	pthread_join(next.thread, NULL);
	assert_int_equal(next.r, 0);
	assert_int_equal(count_files("packs"), 0);
}

static int
cancel_now(void *ctx, struct store_tree **ret, size_t *ret_n, struct err *err)
{
	(void)ret;
	(void)ret_n;
	(void)err;
	__atomic_store_n((bool *)ctx, true, __ATOMIC_RELAXED);
	return 0;
}

static void
a_cancelled_gc_loses_nothing(void **state)
{
	char a[STORE_ID_MAX], b[STORE_ID_MAX];
	bool cancel = false;
	const struct store_gc_how how = {
		.ask_roots = cancel_now, .ctx = &cancel, .cancel = &cancel};
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, a, NULL);
	some_values(9000);
	commit_values(NULL, NULL, NULL, values, PAGES, b, NULL);
	ok(store_delete(store, a, 0, NULL, &e));
	refused(store_gc_run(store, &how, NULL, &e), -ECANCELED, "cancelled");
	assert_int_equal(count_files("packs"), 2);
	t = memory_of(b);
	has_values(&t, values, PAGES);
	ok(store_gc(store, NULL, 0, NULL, &e));
	assert_int_equal(count_files("packs"), 1);
	is_sound();
}

static void
gc_where_nothing_can_be_written_removes_what_is_dead(void **state)
{
	char dead[STORE_ID_MAX], part[STORE_ID_MAX], few[STORE_ID_MAX];
	struct rlimit old, small;
	struct store_freed freed;
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, dead, NULL);
	some_values(9000);
	commit_values(NULL, NULL, NULL, values, PAGES, part, NULL);
	commit_values(NULL, NULL, NULL, values, 40, few, NULL);
	ok(store_delete(store, dead, 0, NULL, &e));
	ok(store_delete(store, part, 0, NULL, &e));
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	small = old;
	small.rlim_cur = 0;
	setrlimit(RLIMIT_FSIZE, &small);
	ok(store_gc(store, NULL, 0, &freed, &e));
	setrlimit(RLIMIT_FSIZE, &old);
	assert_int_equal(freed.packs_removed, 1);
	assert_int_equal(freed.packs_rewritten, 0);
	t = memory_of(few);
	has_values(&t, values, 40);
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(freed.packs_rewritten, 1);
	has_values(&t, values, 40);
	is_sound();
}

/* Stored again by a commit that began when it was not marked any more; the same pack, by
 * its name, as the one that goes. */
static void
what_is_stored_again_while_it_is_swept_stays(void **state)
{
	struct store_tree t;
	char id[STORE_ID_MAX];
	struct pack_set *set;
	uint64_t removed = 0, bytes = 0;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	t = memory_of(id);
	ok(packs_get(store, &set, &e));
	assert_int_equal(set->n, 1);
	/* As a sweep and a writer do it, which does not take it for stored. */
	for (unsigned i = 0; i < 2; i++) {
		struct pack_writer *w;
		struct pack *again;
		uint64_t len;
		uint8_t stored[CHUNK_MAX];

		ok(pack_writer_new(store->packs_fd, &w));
		for (size_t k = 0; k < set->packs[0]->count; k++) {
			const struct pack_entry *en = &set->packs[0]->index[k];

			ok(pack_read(set->packs[0], store->packs_fd, k, stored));
			ok(pack_writer_add(w, en->kind, en->coding, &en->hash, stored,
				en->stored, &e));
		}
		ok(pack_writer_seal(w, &again, &len, &e));
		ok(packs_add(store, w, again, false, &e));
		/* The second time it is of the first's name and content. */
		if (i == 1) {
			ok(packs_retire(store, set->packs, 1, &removed, &bytes, &e));
			assert_int_equal(removed, 0);
		} else {
			ok(packs_retire(store, set->packs, 1, &removed, &bytes, &e));
			assert_int_equal(removed, 1);
			removed = 0;
			packs_put(set);
			ok(packs_get(store, &set, &e));
			assert_int_equal(set->n, 1);
		}
		pack_unref(again);
		pack_writer_free(w);
	}
	packs_put(set);
	assert_int_equal(count_files("packs"), 1);
	has_values(&t, values, PAGES);
	reopen();
	has_values(&t, values, PAGES);
	is_sound();
}

static void
gc_is_due_when_commits_were_deleted_and_some_time_went_by(void **state)
{
	char id[STORE_ID_MAX];

	(void)state;
	assert_false(store_gc_is_due(store));
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	ok(store_delete(store, id, 0, NULL, &e));
	assert_false(store_gc_is_due(store));
	store->deleted_ms -= STORE_GC_QUIET_MS;
	assert_true(store_gc_is_due(store));
	ok(store_gc(store, NULL, 0, NULL, &e));
	assert_false(store_gc_is_due(store));
	store->deleted = STORE_GC_MANY;
	store->deleted_ms += 2 * STORE_GC_QUIET_MS;
	assert_false(store_gc_is_due(store));
	store->gc_ms -= STORE_GC_PAUSE_MS;
	assert_true(store_gc_is_due(store));
}

/* Lost chunks are known until they are stored again, or nobody needs them. */
static void
a_store_that_lost_chunks_knows_it(void **state)
{
	char id[STORE_ID_MAX], again[STORE_ID_MAX], path[256];
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	assert_false(store_is_damaged(store));
	/* The bytes of a chunk: as soon as somebody reads them, until they are put again. */
	pack_path(0, path, sizeof(path));
	flip(path, 100);
	assert_false(store_is_damaged(store));
	assert_true(verify(NULL) > 0);
	assert_true(store_is_damaged(store));
	commit_values(NULL, NULL, NULL, values, PAGES, again, NULL);
	assert_false(store_is_damaged(store));
	t = memory_of(again);
	has_values(&t, values, PAGES);
	/* A pack: once the store is opened, or its commits verified. */
	for (unsigned n = count_files("packs"); n-- > 0;) {
		pack_path(n, path, sizeof(path));
		flip(path, file_size(path) - 40);
	}
	reopen();
	assert_true(store_is_damaged(store));
	for (unsigned n = count_files("packs"); n-- > 0;) {
		pack_path(n, path, sizeof(path));
		assert_int_equal(unlink(path), 0);
	}
	reopen();
	assert_true(verify(NULL) > 0);
	assert_true(store_is_damaged(store));
	commit_values(NULL, NULL, NULL, values, PAGES, again, NULL);
	is_sound();
	assert_false(store_is_damaged(store));
}

/* Deleted, damaged: it is known to the next process that has the store open. */
static void
a_store_that_lost_chunks_knows_it_after_a_restart(void **state)
{
	uint8_t page[STORE_PAGE];
	char id[STORE_ID_MAX], path[256];
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	t = memory_of(id);
	pack_path(0, path, sizeof(path));
	flip(path, 100);
	/* A reader meets with it. */
	for (uint64_t i = 0; i < PAGES; i++)
		store_tree_read(store, &t, i, 1, page, &e);
	assert_true(store_is_damaged(store));
	for (unsigned i = 0; i < 2; i++) {
		reopen();
		assert_true(store_is_damaged(store));
	}
	assert_true(verify(NULL) > 0);
	reopen();
	assert_true(store_is_damaged(store));
	flip(path, 100);
	assert_true(store_is_damaged(store)); /* until all was read */
	is_sound();
	assert_false(store_is_damaged(store));
	reopen();
	assert_false(store_is_damaged(store));
	/* Stored again before the store is closed: there is nothing to remember. */
	flip(path, 100);
	assert_true(verify(NULL) > 0);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	reopen();
	assert_false(store_is_damaged(store));
}

static void
gc_is_due_after_a_restart_too(void **state)
{
	char id[STORE_ID_MAX];

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	ok(store_delete(store, id, 0, NULL, &e));
	reopen();
	assert_false(store_gc_is_due(store));
	store->deleted_ms -= STORE_GC_QUIET_MS;
	assert_true(store_gc_is_due(store));
	ok(store_gc(store, NULL, 0, NULL, &e));
	reopen();
	store->deleted_ms -= STORE_GC_QUIET_MS;
	assert_false(store_gc_is_due(store));
}

/* Two packs have the same chunks, and in the newer one some have rotted: gc reads what is
 * there twice, and keeps what is sound. */
static void
gc_keeps_the_sound_one_of_two_copies(void **state)
{
	char a[STORE_ID_MAX], b[STORE_ID_MAX], first[256], aside[300], second[256];
	struct store_freed freed;
	struct store_tree t;

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, a, NULL);
	pack_path(0, first, sizeof(first));
	store_close(store);
	store = NULL;
	snprintf(aside, sizeof(aside), "%s/aside", folder);
	assert_int_equal(rename(first, aside), 0);
	ok(store_open(store_path, &store, &e));
	memcpy(other, values, sizeof(other));
	other[PAGES - 1] = 77777;
	commit_values(NULL, NULL, NULL, other, PAGES, b, NULL);
	pack_path(0, second, sizeof(second));
	store_close(store);
	store = NULL;
	/* In some pages, and in the middle, where nodes are. */
	for (unsigned i = 1; i < 8; i++)
		flip(second, file_size(second) * i / 8);
	assert_int_equal(rename(aside, first), 0);
	ok(store_open(store_path, &store, &e));
	ok(store_delete(store, a, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, &freed, &e));
	assert_int_equal(count_files("packs"), 2);
	t = memory_of(b);
	has_values(&t, other, PAGES);
	is_sound();
	/* Where all are sound one of them is enough. */
	commit_values(NULL, NULL, NULL, values, PAGES, a, NULL);
	ok(store_delete(store, b, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, &freed, &e));
	is_sound();
}

static bool
has_gone(void *ctx)
{
	return __atomic_load_n((bool *)ctx, __ATOMIC_RELAXED);
}

static void
a_gc_whose_caller_has_gone_ends(void **state)
{
	bool gone = true;
	const struct store_gc_how how = {.gone = has_gone, .ctx = &gone};
	char id[STORE_ID_MAX];

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id, NULL);
	store_hold(store);
	ok(store_delete(store, id, 0, NULL, &e));
	/* It would wait for ever: this thread has the hold that it waits for. */
	refused(store_gc_run(store, &how, NULL, &e), -ECANCELED, "cancelled");
	store_release(store);
	gone = false;
	ok(store_gc_run(store, &how, NULL, &e));
	assert_int_equal(count_files("packs"), 0);
}

static void
gc_is_due_when_commits_were_pruned(void **state)
{
	char id[1][STORE_ID_MAX];

	(void)state;
	some_values(100);
	commit_values(NULL, NULL, NULL, values, PAGES, id[0], NULL);
	ok(store_prune(store, (const char (*)[STORE_ID_MAX])id, 1, NULL, &e));
	store->deleted_ms -= STORE_GC_QUIET_MS;
	assert_true(store_gc_is_due(store));
	ok(store_gc(store, NULL, 0, NULL, &e));
	assert_false(store_gc_is_due(store));
}

#define STORE_TEST(name) \
	cmocka_unit_test_setup_teardown(name, setup_store, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		STORE_TEST(a_commit_that_begins_during_gc_is_made_at_once_and_stays),
		STORE_TEST(
			a_reader_that_began_during_gc_goes_on_when_the_commit_is_deleted),
		STORE_TEST(what_a_commit_during_gc_begins_with_stays),
		STORE_TEST(what_a_commit_begins_with_stays_when_it_is_pruned_during_gc),
		STORE_TEST(what_a_commit_during_gc_takes_as_a_whole_stays),
		STORE_TEST(a_content_that_repeats_is_walked_once),
		STORE_TEST(roots_are_asked_for_and_stay),
		STORE_TEST(gc_waits_for_what_began_before_and_nobody_for_it),
		STORE_TEST(a_store_that_lost_chunks_knows_it_after_a_restart),
		STORE_TEST(gc_is_due_after_a_restart_too),
		STORE_TEST(gc_keeps_the_sound_one_of_two_copies),
		STORE_TEST(a_gc_whose_caller_has_gone_ends),
		STORE_TEST(a_gc_that_waits_can_be_cancelled_and_the_next_waits_on),
		STORE_TEST(a_cancelled_gc_loses_nothing),
		STORE_TEST(gc_where_nothing_can_be_written_removes_what_is_dead),
		STORE_TEST(what_is_stored_again_while_it_is_swept_stays),
		STORE_TEST(gc_is_due_when_commits_were_deleted_and_some_time_went_by),
		STORE_TEST(gc_is_due_when_commits_were_pruned),
		STORE_TEST(a_store_that_lost_chunks_knows_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
