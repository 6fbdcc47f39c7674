/* Small packs become few, whatever happens meanwhile: host/store/store_merge.c. */
#include "tests/unit/store_help.h"

#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "common/fault.h"
#include "host/store/store_priv.h"

#define PAGES 200u

static uint32_t values[PAGES];
static char ids[16][STORE_ID_MAX];

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

/* The nth commit has values that n decides, on the one before. */
static void
values_of(uint32_t n)
{
	for (uint32_t i = 0; i < PAGES; i++)
		values[i] = i < 4 * n + 4 ? i + 1 : 0;
	values[PAGES - 1] = 1000 + n;
}

static void
commit(uint32_t n)
{
	uint32_t was[PAGES] = {0};
	struct store_tree base;

	if (n) {
		values_of(n - 1);
		memcpy(was, values, sizeof(was));
		base = memory_of(ids[n - 1]);
	}
	values_of(n);
	commit_values(n ? ids[n - 1] : NULL, n ? &base : NULL, n ? was : NULL, values,
		PAGES, ids[n], NULL);
}

static void
commits_are_whole(uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct store_tree t = memory_of(ids[i]);

		values_of(i);
		has_values(&t, values, PAGES);
	}
	is_sound();
}

static void
merge_work(void)
{
	commit(7);
	store_settle(store, NULL, &e);
}

static void
no_file_is_unfinished(void)
{
	char command[200];

	snprintf(command, sizeof(command), "ls -a %s/packs | grep -q '^tmp'", store_path);
	assert_int_not_equal(system(command), 0);
}

static bool
dies(const char *fault)
{
	int status;
	pid_t pid;

	store_close(store);
	store = NULL;
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (store_open(store_path, &store, &e))
			_exit(10);
		fault_arm(fault);
		merge_work();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	ok(store_open(store_path, &store, &e));
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static void
a_merge_killed_at_any_point_loses_nothing(void **state)
{
	/* Those of the second pack: the first is the eighth commit's. */
	static const char *const points[] = {"store.pack-part:2", "store.pack-synced:2",
		"store.pack-renamed:2", "store.pack-written:2", "store.merge-added",
		"store.pack-retired", "store.pack-removed", "store.pack-removed:2",
		"store.pack-removed:8"};

	(void)state;
	for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		teardown_store(NULL);
		setup_store(NULL);
		for (uint32_t n = 0; n < 7; n++)
			commit(n);
		assert_int_equal(count_files("packs"), 7);
		if (!dies(points[i]))
			fail_msg("%s was not passed", points[i]);
		no_file_is_unfinished();
		/* The commit may have died before its manifest. */
		commits_are_whole(7);
		commit(7);
		commits_are_whole(8);
		ok(store_settle(store, NULL, &e));
		commits_are_whole(8);
		reopen();
		commits_are_whole(8);
		ok(store_gc(store, NULL, 0, NULL, &e));
		assert_true(count_files("packs") <= 8);
		commits_are_whole(8);
	}
}

static void
a_reader_goes_on_with_packs_that_were_merged(void **state)
{
	struct pack_set *before;
	struct chunk_reader c;
	uint8_t bytes[CHUNK_MAX];

	(void)state;
	for (uint32_t n = 0; n < 7; n++)
		commit(n);
	ok(packs_get(store, &before, &e));
	assert_int_equal(before->n, 7);
	commit(7);
	ok(store_settle(store, NULL, &e));
	assert_int_equal(count_files("packs"), 1);
	ok(chunk_reader_init(&c, store, &e));
	for (size_t i = 0; i < before->n; i++)
		for (size_t k = 0; k < before->packs[i]->count; k++)
			ok(chunk_read_at(&c, before,
				&(struct chunk_at){before->packs[i], k, i}, bytes));
	chunk_reader_done(&c);
	packs_put(before);
	commits_are_whole(8);
}

static void
merge_these(struct pack_set *set)
{
	struct slices sl = {.s = store};
	struct store_freed freed = {0};

	care_begin(store);
	ok(packs_merge(&sl, set->packs, NULL, set->n, &freed, &e));
	care_end(store);
	assert_int_equal(count_files("packs"), 1);
}

/* What lies in two packs, damaged in the newer one. */
static void
of_two_copies_a_merge_keeps_the_sound_one(void **state)
{
	struct pack_set *set;
	char path[300];

	(void)state;
	commit(0);
	pack_path(0, path, sizeof(path));
	flip(path, 16); /* the first page */
	reopen();
	assert_int_equal(verify(NULL), 1);
	commit_values(NULL, NULL, NULL, values, PAGES, ids[1], NULL);
	is_sound();
	reopen(); /* nobody remembers which is damaged */
	ok(packs_get(store, &set, &e));
	assert_int_equal(set->n, 2);
	/* Either order. */
	if (strstr(path, set->packs[0]->name) == NULL) {
		struct pack *swap = set->packs[0];

		set->packs[0] = set->packs[1];
		set->packs[1] = swap;
	}
	merge_these(set);
	packs_put(set);
	assert_int_equal(count_files("packs"), 1);
	is_sound();
	reopen();
	is_sound();
}

/* It is copied unread, and is as damaged where it is then. */
static void
what_is_known_to_be_damaged_is_known_after_a_merge(void **state)
{
	uint8_t page[STORE_PAGE];
	struct pack_set *set;
	struct store_tree t;
	char path[300];

	(void)state;
	commit(0);
	pack_path(0, path, sizeof(path));
	t = memory_of(ids[0]);
	flip(path, 16); /* the first page */
	reopen();
	assert_false(store_is_damaged(store));
	assert_int_equal(store_tree_read(store, &t, 0, 1, page, &e), -EBADMSG);
	assert_true(store_is_damaged(store));
	commit(1);
	ok(packs_get(store, &set, &e));
	assert_int_equal(set->n, 2);
	merge_these(set);
	packs_put(set);
	assert_true(store_is_damaged(store));
}

static void
add_node(struct pack_writer *w, const struct store_hash node[NODE_FANOUT],
	const struct store_hash *reference, struct store_hash *ret)
{
	struct node_delta d = {.changed = 0};
	uint8_t bytes[sizeof(d) + sizeof(*node)];

	hash_of(HASH_NODE, node, NODE_FANOUT * sizeof(*node), ret);
	if (!reference) {
		ok(pack_writer_add(w, CHUNK_NODE, CODING_RAW, ret, node,
			NODE_FANOUT * sizeof(*node), &e));
		return;
	}
	/* The first child is all that differs. */
	d.reference = *reference;
	d.changed = 1;
	memcpy(bytes, &d, sizeof(d));
	memcpy(bytes + sizeof(d), node, sizeof(*node));
	ok(pack_writer_add(w, CHUNK_NODE, CODING_DELTA, ret, bytes, sizeof(bytes), &e));
}

static void
add_pack(struct pack_writer *w, int64_t time)
{
	uint64_t bytes;
	struct pack *p;

	pack_writer_set_time(w, time);
	ok(pack_writer_seal(w, &p, &bytes, &e));
	ok(packs_add(store, w, p, false, &e));
	pack_unref(p);
	pack_writer_free(w);
}

/* b is whole in the older pack, where c is a delta of it, and a delta of a in the newer. */
static void
a_node_that_others_are_deltas_of_stays_whole(void **state)
{
	struct store_hash a[NODE_FANOUT] = {0}, b[NODE_FANOUT] = {0},
			  c[NODE_FANOUT] = {0};
	struct store_hash name_a, name_b, name_c, got[NODE_FANOUT];
	struct chunk_reader reader;
	struct pack_writer *w;
	struct pack_set *set;

	(void)state;
	for (unsigned i = 0; i < NODE_FANOUT; i++)
		a[i].b[0] = b[i].b[0] = c[i].b[0] = 7;
	b[0].b[1] = 1;
	c[0].b[1] = 2;
	ok(pack_writer_new(store->packs_fd, &w));
	add_node(w, b, NULL, &name_b);
	add_node(w, c, &name_b, &name_c);
	add_pack(w, 1000);
	ok(pack_writer_new(store->packs_fd, &w));
	add_node(w, a, NULL, &name_a);
	add_node(w, b, &name_a, &name_b);
	add_pack(w, 2000);
	ok(packs_get(store, &set, &e));
	assert_int_equal(set->n, 2);
	assert_int_equal(set->packs[0]->mtime_ns, 2000);
	merge_these(set);
	packs_put(set);
	for (unsigned round = 0; round < 2; round++) {
		ok(packs_get(store, &set, &e));
		assert_int_equal(set->n, 1);
		assert_int_equal(set->packs[0]->count, 3);
		assert_int_equal(set->packs[0]->mtime_ns, 2000);
		packs_put(set);
		ok(chunk_reader_init(&reader, store, &e));
		ok(chunk_read(&reader, CHUNK_NODE, &name_c, got, &e));
		assert_memory_equal(got, c, sizeof(got));
		ok(chunk_read(&reader, CHUNK_NODE, &name_b, got, &e));
		assert_memory_equal(got, b, sizeof(got));
		chunk_reader_done(&reader);
		reopen();
	}
}

static void
a_pack_that_cannot_be_read_is_not_merged(void **state)
{
	char path[300];
	struct pack_set *set;

	(void)state;
	for (uint32_t n = 0; n < 7; n++)
		commit(n);
	ok(packs_get(store, &set, &e));
	snprintf(path, sizeof(path), "%s/packs/%s.pack", store_path, set->packs[3]->name);
	packs_put(set);
	flip(path, 16);
	assert_int_equal(verify(NULL) > 0, 1); /* so it is known */
	commit(7);
	ok(store_settle(store, NULL, &e));
	/* Seven are too few. */
	assert_int_equal(count_files("packs"), 8);
	commit(8);
	ok(store_settle(store, NULL, &e));
	assert_int_equal(count_files("packs"), 2);
	assert_int_equal(file_size(path) > 0, 1);
}

static void
a_merge_can_be_cancelled(void **state)
{
	bool cancel = true;
	struct store_fields f = {.created_ms = 5};
	struct store_tree_writer *t;
	struct store_writer *w;
	uint8_t page[STORE_PAGE];

	(void)state;
	/* More than a slice. */
	care_begin(store);
	for (uint32_t n = 0; n < 8; n++) {
		ok(store_begin(store, &w, &e));
		ok(store_tree_begin(w, NULL, 100 * STORE_PAGE, &t, &e));
		for (uint32_t i = 0; i < 100; i++) {
			fill(page, 2 * (n * 100 + i) + 2);
			ok(store_tree_put(t, i, page, 1, &e));
		}
		ok(store_tree_finish(t, &f.memory, &e));
		ok(store_commit(w, &f, ids[n], NULL, &e));
	}
	assert_int_equal(count_files("packs"), 8);
	{
		struct slices sl = {.s = store, .cancel = &cancel};
		struct store_freed freed = {0};
		struct pack_set *set;

		ok(packs_get(store, &set, &e));
		refused(packs_merge(&sl, set->packs, NULL, set->n, &freed, &e),
			-ECANCELED, "cancelled");
		packs_put(set);
	}
	no_file_is_unfinished();
	assert_int_equal(count_files("packs"), 8);
	care_end(store);
	ok(store_settle(store, NULL, &e));
	assert_int_equal(count_files("packs"), 1);
	is_sound();
}

static uint64_t
cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The least of some rounds: a look-up of every page of the first commit, and of as many
 * that are nowhere. */
static uint64_t
look_up_ns(void)
{
	uint64_t least = UINT64_MAX;
	struct pack_set *set;
	struct chunk_at at;

	ok(packs_get(store, &set, &e));
	for (unsigned round = 0; round < 25; round++) {
		uint64_t from = cpu_ns(), ns;

		for (unsigned k = 0; k < 50; k++)
			for (size_t i = 0; i < set->packs[set->n - 1]->count; i++) {
				struct store_hash h =
					set->packs[set->n - 1]->index[i].hash;

				chunk_find(set, CHUNK_PAGE, &h, true, &at);
				h.b[k % 32] ^= 1;
				chunk_find(set, CHUNK_PAGE, &h, true, &at);
			}
		ns = cpu_ns() - from;
		ns /= 100 * set->packs[set->n - 1]->count;
		if (ns < least)
			least = ns;
	}
	packs_put(set);
	return least;
}

/* The least time for a page's hash. */
static uint64_t
hash_ns(void)
{
	uint64_t least = UINT64_MAX;
	struct store_hash ignored;
	uint8_t page[STORE_PAGE];

	fill(page, 2);
	for (unsigned round = 0; round < 25; round++) {
		uint64_t from = cpu_ns(), ns;

		for (unsigned k = 0; k < 100; k++)
			hash_of(HASH_PLAIN, page, STORE_PAGE, &ignored);
		ns = (cpu_ns() - from) / 100;
		if (ns < least)
			least = ns;
	}
	return least;
}

static unsigned
lines_with(const char *path, const char *text)
{
	char line[512];
	unsigned n = 0;
	FILE *f = fopen(path, "re");

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, text) != NULL;
	fclose(f);
	return n;
}

static void
five_thousand_commits_are_few_packs_and_look_ups_stay_fast(void **state)
{
	uint64_t at_100 = 0, at_5000;
	struct store_fields f = {0};
	char id[STORE_ID_MAX], shm[64] = "/dev/shm/pando-test-XXXXXX";
	uint8_t page[STORE_PAGE];

	(void)state;
	/* Not the disk is looked at, and it would take minutes. */
	if (access("/dev/shm", W_OK) == 0 && mkdtemp(shm)) {
		store_close(store);
		store = NULL;
		snprintf(store_path, sizeof(store_path), "%s", shm);
		ok(store_open(store_path, &store, &e));
	}
	for (uint32_t i = 0; i < 5000; i++) {
		struct store_tree_writer *t;
		struct store_writer *w;

		ok(store_begin(store, &w, &e));
		ok(store_tree_begin(w, i ? &f.memory : NULL, 300 * STORE_PAGE, &t, &e));
		fill(page, 2 * i + 1);
		ok(store_tree_put(t, i % 300, page, 1, &e));
		ok(store_tree_finish(t, &f.memory, &e));
		f.created_ms = i + 1;
		ok(store_commit(w, &f, id, NULL, &e));
		if (i == 99) {
			ok(store_settle(store, NULL, &e));
			at_100 = look_up_ns();
		}
	}
	ok(store_settle(store, NULL, &e));
	at_5000 = look_up_ns();
	print_message(
		"a look-up: %llu ns at 100 commits, %llu at 5000; a hash: %llu ns\n",
		(unsigned long long)at_100, (unsigned long long)at_5000,
		(unsigned long long)hash_ns());
	/* Not more than a little of what hashing the page costs, whatever there is. */
	assert_true(at_5000 < at_100 + hash_ns());
	{
		struct store_used used;
		unsigned n;

		ok(store_usage(store, &used, &e));
		assert_int_equal(used.commits, 5000);
		assert_true(used.packs < 60);
		n = lines_with("/proc/self/maps", ".pack");
		print_message("%u packs, %u mappings\n", (unsigned)used.packs, n);
		assert_true(n < 60);
	}
	reopen();
	f.memory = memory_of(id);
	is_sound();
	store_close(store);
	store = NULL;
	if (strcmp(store_path, shm) == 0)
		io_remove_tree(shm, NULL);
}

struct busy {
	pthread_t thread;
	bool stop; /* atomic */
	unsigned rounds;
	int r;
	struct err why;
};

static void *
read_all_the_time(void *arg)
{
	static uint8_t buf[PAGES * STORE_PAGE];
	struct busy *b = arg;

	while (!__atomic_load_n(&b->stop, __ATOMIC_RELAXED) && !b->r) {
		struct store_manifest *m;

		b->r = store_load(store, ids[3], &m, &b->why);
		if (b->r)
			break;
		b->r = store_tree_read(store, &m->f.memory, 0, PAGES, buf, &b->why);
		store_manifest_free(m);
		b->rounds++;
	}
	return NULL;
}

static void
reading_and_committing_go_on_while_packs_are_merged(void **state)
{
	struct busy reader = {0};
	uint32_t v[PAGES];
	char id[STORE_ID_MAX];

	(void)state;
	for (uint32_t n = 0; n < 8; n++)
		commit(n);
	pthread_create(&reader.thread, NULL, read_all_the_time, &reader);
	for (uint32_t i = 0; i < 200; i++) {
		for (uint32_t k = 0; k < PAGES; k++)
			v[k] = k < 10 ? 1000 * i + k : 0;
		commit_values(NULL, NULL, NULL, v, PAGES, id, NULL);
	}
	__atomic_store_n(&reader.stop, true, __ATOMIC_RELAXED);
	pthread_join(reader.thread, NULL);
	if (reader.r)
		fail_msg("%d: %s", reader.r, reader.why.msg);
	assert_true(reader.rounds > 0);
	commits_are_whole(8);
}

#define STORE_TEST(name) \
	cmocka_unit_test_setup_teardown(name, setup_store, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		STORE_TEST(a_merge_killed_at_any_point_loses_nothing),
		STORE_TEST(a_reader_goes_on_with_packs_that_were_merged),
		STORE_TEST(of_two_copies_a_merge_keeps_the_sound_one),
		STORE_TEST(what_is_known_to_be_damaged_is_known_after_a_merge),
		STORE_TEST(a_node_that_others_are_deltas_of_stays_whole),
		STORE_TEST(a_pack_that_cannot_be_read_is_not_merged),
		STORE_TEST(a_merge_can_be_cancelled),
		STORE_TEST(reading_and_committing_go_on_while_packs_are_merged),
		STORE_TEST(five_thousand_commits_are_few_packs_and_look_ups_stay_fast),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
