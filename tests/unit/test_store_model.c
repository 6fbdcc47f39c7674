/* A thousand random operations on the commit store, against a model in plain memory.
 * PANDO_TEST_SEED gives another sequence; the seed is printed. */
#include "tests/unit/store_help.h"

#include <time.h>

#define STEPS 1000
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
	struct store_list l;
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
	ok(store_list(store, &l, &e));
	assert_int_equal(l.n, n);
	store_list_done(&l);
	ok(store_tags(store, &tags, &n_tags, &e));
	assert_int_equal(n_tags, tagged);
	free(tags);
	is_sound();
}

static void
a_thousand_random_operations_do_what_the_model_does(void **state)
{
	(void)state;
	for (int step = 0; step < STEPS; step++) {
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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			a_thousand_random_operations_do_what_the_model_does, setup_store,
			teardown_store),
	};
	const char *seed = getenv("PANDO_TEST_SEED");

	random_state = seed ? strtoull(seed, NULL, 0) : 1;
	print_message("seed %llu\n", (unsigned long long)random_state);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
