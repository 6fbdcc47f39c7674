/* Random operations on the commit store, against a model in plain memory: a thousand one
 * after the other, then all kinds at once from several threads. PANDO_TEST_SEED gives
 * another sequence; the seed is printed. PANDO_TEST_STEPS and PANDO_TEST_ROUNDS: of the first and of the second part. */
#include "tests/unit/store_help.h"

#include <pthread.h>
#include <time.h>

#define COMMITS_MAX 24u
#define PAGES_MAX 9000u /* three levels */

struct model_commit {
	bool there;
	char id[STORE_ID_MAX];
	int parent; /* number, or -1 */
	uint64_t n;
	uint32_t *values; /* owned */
	bool tagged;	  /* by its number */
};

static struct model_commit model[COMMITS_MAX];
static uint64_t random_state;

static uint32_t
pick(uint32_t below)
{
	random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(random_state >> 33) % below;
}

static int
any_commit(void)
{
	for (unsigned tries = 0; tries < 100; tries++) {
		uint32_t i = pick(COMMITS_MAX);

		if (model[i].there)
			return (int)i;
	}
	return -1;
}

static void
tag_name(int i, char ret[16])
{
	snprintf(ret, 16, "tag-%d", i);
}

static void
model_drop(int i)
{
	free(model[i].values);
	model[i] = (struct model_commit){0};
}

static struct store_tree
tree_of(int i)
{
	struct store_manifest *m;
	struct store_tree t;

	ok(store_load(store, model[i].id, &m, &e));
	t = m->f.memory;
	store_manifest_free(m);
	return t;
}

static void
do_commit(bool abort_it)
{
	static uint64_t clock = 1;
	struct store_fields f = {.created_ms = clock++};
	int parent = any_commit(), slot = 0;
	struct model_commit *m;
	struct store_tree base, *on = NULL;
	uint32_t *was = NULL;
	struct store_writer *w;

	while (slot < (int)COMMITS_MAX && model[slot].there)
		slot++;
	if (slot == (int)COMMITS_MAX)
		return;
	m = &model[slot];
	m->n = parent >= 0 && pick(10) ? model[parent].n : pick(PAGES_MAX);
	if (parent >= 0 && m->n < model[parent].n)
		m->n = model[parent].n;
	if (!pick(8))
		m->n += pick(100);
	m->values = calloc(m->n + 1, sizeof(uint32_t));
	was = calloc(m->n + 1, sizeof(uint32_t));
	if (parent >= 0) {
		memcpy(m->values, model[parent].values,
			model[parent].n * sizeof(uint32_t));
		memcpy(was, m->values, m->n * sizeof(uint32_t));
		if (pick(4)) {
			base = tree_of(parent);
			on = &base;
		}
	}
	for (uint32_t i = m->n ? pick(5) : 0; i > 0; i--) {
		uint64_t at = pick((uint32_t)m->n), len = 1 + pick(pick(2) ? 3 : 300);

		for (uint64_t p = at; p < at + len && p < m->n; p++)
			m->values[p] = pick(4) ? pick(2000) : 0;
	}
	ok(store_begin(store, &w, &e));
	f.parent = parent >= 0 ? model[parent].id : NULL;
	f.memory = put_values(w, on, on ? was : NULL, m->values, m->n);
	free(was);
	if (abort_it) {
		store_abort(w);
		model_drop(slot);
		return;
	}
	ok(store_commit(w, &f, m->id, NULL, &e));
	m->parent = parent;
	m->there = true;
}

static bool
has_children(int i)
{
	for (unsigned k = 0; k < COMMITS_MAX; k++)
		if (model[k].there && model[k].parent == i)
			return true;
	return false;
}

static size_t
model_delete(int i)
{
	size_t n = 1;

	for (unsigned k = 0; k < COMMITS_MAX; k++)
		if (model[k].there && model[k].parent == i)
			n += model_delete((int)k);
	model_drop(i);
	return n;
}

static void
do_delete(void)
{
	int i = any_commit();
	bool recursive = !pick(3);
	struct store_ids gone;

	if (i < 0)
		return;
	if (has_children(i) && !recursive) {
		refused(store_delete(store, model[i].id, 0, NULL, &e), -ENOTEMPTY,
			"parent");
		return;
	}
	ok(store_delete(
		store, model[i].id, recursive ? STORE_DELETE_RECURSIVE : 0, &gone, &e));
	assert_int_equal(gone.n, model_delete(i));
	store_ids_done(&gone);
}

static void
do_tag(void)
{
	char name[16];
	int i = any_commit();

	if (i < 0)
		return;
	tag_name(i, name);
	if (model[i].tagged)
		ok(store_tag_delete(store, name, &e));
	else
		ok(store_tag_set(store, name, model[i].id, false, &e));
	model[i].tagged = !model[i].tagged;
}

static uint64_t differing;

static int
count(void *ctx, uint64_t page, const void *data, struct err *err)
{
	const int *pair = ctx;
	const struct model_commit *a = &model[pair[0]], *b = &model[pair[1]];

	(void)data;
	(void)err;
	assert_true((page < a->n ? a->values[page] : 0) !=
		    (page < b->n ? b->values[page] : 0));
	differing++;
	return 0;
}

static void
do_diff(void)
{
	int pair[2] = {any_commit(), any_commit()};
	struct store_tree a, b;
	uint64_t expected = 0;

	if (pair[0] < 0)
		return;
	a = tree_of(pair[0]);
	b = tree_of(pair[1]);
	for (uint64_t p = 0; p < model[pair[0]].n || p < model[pair[1]].n; p++)
		expected += (p < model[pair[0]].n ? model[pair[0]].values[p] : 0) !=
			    (p < model[pair[1]].n ? model[pair[1]].values[p] : 0);
	differing = 0;
	ok(store_tree_diff(store, &a, &b, count, pair, &e));
	assert_int_equal(differing, expected);
}

static void
check_all(void)
{
	struct store_page l;
	struct store_tag *tags;
	size_t n = 0, tagged = 0, n_tags;

	for (unsigned i = 0; i < COMMITS_MAX; i++) {
		struct store_tree t;
		char name[16], got[STORE_ID_MAX];

		if (!model[i].there)
			continue;
		n++;
		t = tree_of((int)i);
		has_values(&t, model[i].values, model[i].n);
		tag_name((int)i, name);
		if (model[i].tagged) {
			tagged++;
			ok(store_tag_get(store, name, got, &e));
			assert_string_equal(got, model[i].id);
		}
	}
	ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
	assert_int_equal(l.n, n);
	store_page_done(&l);
	ok(store_tags(store, &tags, &n_tags, &e));
	assert_int_equal(n_tags, tagged);
	free(tags);
	is_sound();
}

static void
a_thousand_random_operations_do_what_the_model_does(void **state)
{
	const char *steps_text = getenv("PANDO_TEST_STEPS");
	int steps = steps_text ? atoi(steps_text) : 1000;

	(void)state;
	for (int step = 0; step < steps; step++) {
		uint32_t what = pick(100);

		if (what < 35)
			do_commit(false);
		else if (what < 38)
			do_commit(true);
		else if (what < 55)
			do_delete();
		else if (what < 65)
			do_tag();
		else if (what < 75)
			do_diff();
		else if (what < 85)
			ok(store_gc(store, NULL, 0, NULL, &e));
		else if (what < 90)
			reopen();
		else {
			int i = any_commit();

			if (i >= 0) {
				struct store_tree t = tree_of(i);

				has_values(&t, model[i].values, model[i].n);
			}
		}
		if (step % 100 == 99)
			check_all();
	}
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		if (model[i].there && model[i].parent < 0)
			ok(store_delete(
				store, model[i].id, STORE_DELETE_RECURSIVE, NULL, &e));
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		model_drop((int)i);
	ok(store_gc(store, NULL, 0, NULL, &e));
	assert_int_equal(count_files("packs"), 0);
	assert_int_equal(count_files("tags"), 0);
}

/*
 * All at once.
 */

#define WORKERS 4u
#define SHARED_MAX 12u
#define SHARED_PAGES 300u
#define WORK_STEPS 60u

struct shared_commit {
	bool there;
	char id[STORE_ID_MAX];
	uint32_t values[SHARED_PAGES];
};

static struct shared_commit shared[SHARED_MAX];
static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t shared_clock;

struct worker {
	pthread_t thread;
	uint64_t random_state;
	bool stop; /* atomic */
	unsigned did;
	int r;
	struct err why;
};

static uint32_t
pick_of(struct worker *w, uint32_t below)
{
	w->random_state =
		w->random_state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(w->random_state >> 33) % below;
}

/* A copy of one that was there a moment ago. */
static bool
any_shared(struct worker *w, struct shared_commit *ret)
{
	pthread_mutex_lock(&shared_lock);
	*ret = shared[pick_of(w, SHARED_MAX)];
	pthread_mutex_unlock(&shared_lock);
	return ret->there;
}

/* -ENOENT: it was deleted meanwhile, which is no error. */
static int
load_shared(struct worker *w, const struct shared_commit *c, struct store_tree *ret)
{
	struct store_manifest *m;
	int r = store_load(store, c->id, &m, &w->why);

	if (r == 0) {
		*ret = m->f.memory;
		store_manifest_free(m);
	}
	return r;
}

static int
put_shared(struct worker *w, struct store_writer *writer, const struct store_tree *base,
	const uint32_t *was, const uint32_t *values, struct store_tree *ret)
{
	struct store_tree_writer *t;
	uint8_t page[STORE_PAGE];
	int r = store_tree_begin(writer, base, SHARED_PAGES * STORE_PAGE, &t, &w->why);

	for (uint32_t i = 0; r == 0 && i < SHARED_PAGES; i++) {
		if (values[i] == (base ? was[i] : 0))
			continue;
		fill(page, values[i]);
		r = store_tree_put(t, i, page, 1, &w->why);
	}
	return r ? r : store_tree_finish(t, ret, &w->why);
}

static int
commit_shared(struct worker *w)
{
	struct store_fields f = {0};
	struct shared_commit from, made = {.there = true};
	struct store_tree base, *on = NULL;
	struct store_writer *writer;
	int r = store_begin(store, &writer, &w->why);

	if (r < 0)
		return r;
	if (any_shared(w, &from)) {
		r = load_shared(w, &from, &base);
		if (r == 0) {
			memcpy(made.values, from.values, sizeof(made.values));
			/* Sometimes all of it is put again, or it is taken as it is. */
			if (pick_of(w, 3))
				on = &base;
			if (!pick_of(w, 4))
				f.disk = base;
		} else if (r != -ENOENT) {
			store_abort(writer);
			return r;
		}
	}
	for (uint32_t n = 1 + pick_of(w, 20); n > 0; n--) {
		uint32_t at = pick_of(w, SHARED_PAGES), len = 1 + pick_of(w, 10);

		for (uint32_t i = at; i < at + len && i < SHARED_PAGES; i++)
			made.values[i] = pick_of(w, 5) ? pick_of(w, 400) : 0;
	}
	r = put_shared(w, writer, on, from.values, made.values, &f.memory);
	if (r < 0 || !pick_of(w, 8)) {
		store_abort(writer);
		return r;
	}
	f.created_ms = __atomic_add_fetch(&shared_clock, 1, __ATOMIC_RELAXED);
	r = store_commit(writer, &f, made.id, NULL, &w->why);
	if (r < 0)
		return r;
	pthread_mutex_lock(&shared_lock);
	for (unsigned i = 0; made.there && i < SHARED_MAX; i++)
		if (!shared[i].there) {
			shared[i] = made;
			made.there = false;
		}
	pthread_mutex_unlock(&shared_lock);
	return made.there ? store_delete(store, made.id, 0, NULL, &w->why) : 0;
}

static int
delete_shared(struct worker *w)
{
	struct shared_commit gone;
	uint32_t i = pick_of(w, SHARED_MAX);

	pthread_mutex_lock(&shared_lock);
	gone = shared[i];
	shared[i].there = false;
	pthread_mutex_unlock(&shared_lock);
	return gone.there ? store_delete(store, gone.id, 0, NULL, &w->why) : 0;
}

static int
read_shared(struct worker *w)
{
	uint8_t *buf = malloc(SHARED_PAGES * STORE_PAGE), page[STORE_PAGE];
	struct shared_commit c;
	struct store_tree t;
	int r = -ENOENT;

	store_hold(store);
	if (any_shared(w, &c))
		r = load_shared(w, &c, &t);
	if (r == 0) {
		/* It may be deleted, and gc may come by, now and while it is read. */
		usleep(pick_of(w, 3000));
		r = store_tree_read(store, &t, 0, SHARED_PAGES, buf, &w->why);
		for (uint32_t i = 0; r == 0 && i < SHARED_PAGES; i++) {
			fill(page, c.values[i]);
			if (memcmp(page, buf + i * STORE_PAGE, STORE_PAGE) != 0)
				r = err_set(&w->why, -EPROTO, "page %u is another", i);
		}
	}
	store_release(store);
	free(buf);
	return r == -ENOENT ? 0 : r;
}

static void *
work_main(void *arg)
{
	struct worker *w = arg;

	for (unsigned i = 0; i < WORK_STEPS && w->r == 0; i++) {
		uint32_t what = pick_of(w, 100);

		w->r = what < 45   ? commit_shared(w)
		       : what < 70 ? delete_shared(w)
				   : read_shared(w);
		w->did++;
	}
	return NULL;
}

static bool
stops(struct worker *w)
{
	return __atomic_load_n(&w->stop, __ATOMIC_RELAXED) || w->r;
}

static void *
gc_main(void *arg)
{
	struct worker *w = arg;

	while (!stops(w)) {
		bool cancel = !pick_of(w, 6);
		const struct store_gc_how how = {.cancel = &cancel};

		w->r = store_gc_run(store, &how, NULL, &w->why);
		if (cancel && w->r == -ECANCELED)
			w->r = 0;
		w->did++;
	}
	return NULL;
}

static void *
settle_main(void *arg)
{
	struct worker *w = arg;

	while (!stops(w)) {
		w->r = store_settle(store, NULL, &w->why);
		w->did++;
		usleep(2000);
	}
	return NULL;
}

static void
on_damage(void *ctx, const struct store_damage *d)
{
	struct worker *w = ctx;

	err_set(&w->why, -EBADMSG, "%s", d->text);
	w->r = -EBADMSG;
}

static void *
verify_main(void *arg)
{
	struct worker *w = arg;

	while (!stops(w)) {
		struct store_verified sum;
		int r = store_verify(store, NULL, on_damage, w, &sum, &w->why);

		w->r = w->r ? w->r : r;
		w->did++;
	}
	return NULL;
}

static void
check_shared(void)
{
	struct store_page l;
	size_t n = 0;

	for (unsigned i = 0; i < SHARED_MAX; i++) {
		struct store_manifest *m;

		if (!shared[i].there)
			continue;
		n++;
		ok(store_load(store, shared[i].id, &m, &e));
		has_values(&m->f.memory, shared[i].values, SHARED_PAGES);
		store_manifest_free(m);
	}
	ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
	assert_int_equal(l.n, n);
	store_page_done(&l);
	is_sound();
}

static void
commits_deletions_readers_gc_merges_and_checks_at_once(void **state)
{
	static void *(*const others[])(void *) = {gc_main, settle_main, verify_main};
	const char *rounds_text = getenv("PANDO_TEST_ROUNDS");
	unsigned rounds = rounds_text ? (unsigned)atoi(rounds_text) : 8;
	char shm[64] = "/dev/shm/pando-test-XXXXXX";

	(void)state;
	/* Many more things happen at once where nobody waits for the disk. */
	if (access("/dev/shm", W_OK) == 0 && mkdtemp(shm)) {
		snprintf(store_path, sizeof(store_path), "%s", shm);
		reopen();
	}
	for (unsigned round = 0; round < rounds; round++) {
		struct worker w[WORKERS + 3] = {0};

		for (unsigned i = 0; i < WORKERS + 3; i++) {
			w[i].random_state = random_state + 1000 * round + i;
			pthread_create(&w[i].thread, NULL,
				i < WORKERS ? work_main : others[i - WORKERS], &w[i]);
		}
		for (unsigned i = 0; i < WORKERS; i++)
			pthread_join(w[i].thread, NULL);
		for (unsigned i = WORKERS; i < WORKERS + 3; i++) {
			__atomic_store_n(&w[i].stop, true, __ATOMIC_RELAXED);
			pthread_join(w[i].thread, NULL);
		}
		for (unsigned i = 0; i < WORKERS + 3; i++)
			if (w[i].r)
				fail_msg("round %u, thread %u: %d: %s", round, i, w[i].r,
					w[i].why.msg);
		print_message("round %u: %u gcs, %u merges, %u checks\n", round,
			w[WORKERS].did, w[WORKERS + 1].did, w[WORKERS + 2].did);
		check_shared();
		if (round % 3 == 2) {
			reopen();
			check_shared();
		}
	}
	for (unsigned i = 0; i < SHARED_MAX; i++)
		if (shared[i].there)
			ok(store_delete(store, shared[i].id, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, NULL, &e));
	assert_int_equal(count_files("packs"), 0);
	if (strcmp(store_path, shm) == 0) {
		store_close(store);
		store = NULL;
		io_remove_tree(shm, NULL);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			a_thousand_random_operations_do_what_the_model_does, setup_store,
			teardown_store),
		cmocka_unit_test_setup_teardown(
			commits_deletions_readers_gc_merges_and_checks_at_once,
			setup_store, teardown_store),
	};
	const char *seed = getenv("PANDO_TEST_SEED");

	random_state = seed ? strtoull(seed, NULL, 0) : 1;
	print_message("seed %llu\n", (unsigned long long)random_state);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
