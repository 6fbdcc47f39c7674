/* The commit store when its process dies at any point, and when the disk is full: the
 * whole commit or none, and nothing else is harmed. */
#include "tests/unit/store_help.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "common/fault.h"

#define N 3000u

static uint32_t first_values[N], second_values[N];
static char first[STORE_ID_MAX];

static void
prepare(void)
{
	for (uint32_t i = 0; i < N; i++) {
		first_values[i] = 2 * i + 2;
		second_values[i] = i % 5 ? 2 * i + 2 : 900000 + 2 * i;
	}
	commit_values(NULL, NULL, NULL, first_values, N, first, NULL);
	ok(store_tag_set(store, "tag", first, false, &e));
}

static int
second_commit(char id[STORE_ID_MAX])
{
	struct store_fields f = {.parent = first, .created_ms = 99};
	struct store_writer *w;
	struct store_manifest *m;

	if (store_load(store, first, &m, &e))
		return -1;
	if (store_begin(store, &w, &e))
		return -1;
	f.memory = put_values(w, &m->f.memory, first_values, second_values, N);
	store_manifest_free(m);
	return store_commit(w, &f, id, NULL, &e);
}

/* Does work in a child with the fault armed (its own opening of the store), and says
 * whether the fault killed it. */
static bool
dies(const char *fault, void (*work)(void))
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
		work();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status))
		assert_int_equal(WTERMSIG(status), SIGKILL);
	else
		assert_int_equal(WEXITSTATUS(status), 0);
	ok(store_open(store_path, &store, &e));
	return WIFSIGNALED(status);
}

static void
no_temp_files(void)
{
	static const char *const subs[] = {"packs", "commits", "tags", "."};
	char path[160];
	struct dirent *entry;

	for (unsigned i = 0; i < 4; i++) {
		DIR *d;

		snprintf(path, sizeof(path), "%s/%s", store_path, subs[i]);
		d = opendir(path);
		while ((entry = readdir(d)))
			assert_int_not_equal(strncmp(entry->d_name, "tmp.", 4), 0);
		closedir(d);
	}
}

static void
first_is_whole(void)
{
	struct store_manifest *m;

	ok(store_load(store, "tag", &m, &e));
	assert_string_equal(m->id, first);
	has_values(&m->f.memory, first_values, N);
	store_manifest_free(m);
}

static void
commit_work(void)
{
	char id[STORE_ID_MAX];

	second_commit(id);
}

static void
a_commit_killed_at_any_point_is_there_wholly_or_not_at_all(void **state)
{
	static const struct {
		const char *fault;
		bool there;
	} points[] = {{"store.pack-part", false}, {"store.pack-part:2", false},
		{"store.pack-synced", false}, {"store.pack-renamed", false},
		{"store.pack-written", false}, {"store.manifest-temp", false},
		{"store.manifest-renamed", true}, {"store.manifest-written", true}};

	(void)state;
	for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		struct store_manifest *m;
		struct store_page l;
		char id[STORE_ID_MAX];

		teardown_store(NULL);
		setup_store(NULL);
		prepare();
		assert_true(dies(points[i].fault, commit_work));
		no_temp_files();
		ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
		assert_int_equal(l.n, points[i].there ? 2 : 1);
		assert_int_equal(l.damaged, 0);
		store_page_done(&l);
		is_sound();
		first_is_whole();
		/* And it can be done again, whatever lies there. */
		assert_int_equal(second_commit(id), 0);
		ok(store_gc(store, NULL, 0, NULL, &e));
		ok(store_load(store, id, &m, &e));
		has_values(&m->f.memory, second_values, N);
		store_manifest_free(m);
		is_sound();
	}
}

static void
gc_work(void)
{
	store_gc(store, NULL, 0, NULL, &e);
}

static void
a_gc_killed_at_any_point_loses_nothing(void **state)
{
	static const char *const points[] = {"store.gc-marked", "store.pack-synced", "store.pack-renamed",
		"store.pack-written", "store.merge-added", "store.pack-retired",
		"store.pack-removed", "store.pack-removed:2"};

	(void)state;
	for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		char id[STORE_ID_MAX], few[STORE_ID_MAX];
		struct store_manifest *m;
		struct store_used used, again;

		teardown_store(NULL);
		setup_store(NULL);
		prepare();
		assert_int_equal(second_commit(id), 0);
		/* A few pages of each pack stay in use. */
		commit_values(NULL, NULL, NULL, second_values, 40, few, NULL);
		ok(store_delete(store, first, STORE_DELETE_RECURSIVE, NULL, &e));
		assert_true(dies(points[i], gc_work));
		no_temp_files();
		ok(store_load(store, few, &m, &e));
		has_values(&m->f.memory, second_values, 40);
		is_sound();
		ok(store_gc(store, NULL, 0, NULL, &e));
		has_values(&m->f.memory, second_values, 40);
		is_sound();
		ok(store_usage(store, &used, &e));
		assert_true(used.bytes < 100 * STORE_PAGE);
		ok(store_gc(store, NULL, 0, NULL, &e));
		ok(store_usage(store, &again, &e));
		assert_int_equal(used.bytes, again.bytes);
		store_manifest_free(m);
	}
}

static void
delete_work(void)
{
	store_delete(store, first, STORE_DELETE_RECURSIVE, NULL, &e);
}

static void
a_delete_killed_at_any_point_leaves_a_smaller_tree(void **state)
{
	static const char *const points[] = {"store.delete-tags", "store.delete-tags:2",
		"store.delete-commit", "store.delete-commit:2"};
	static const unsigned left[] = {2, 1, 1, 0};

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		char id[STORE_ID_MAX];
		struct store_page l;

		teardown_store(NULL);
		setup_store(NULL);
		prepare();
		assert_int_equal(second_commit(id), 0);
		assert_true(dies(points[i], delete_work));
		ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
		assert_int_equal(l.n, left[i]);
		if (l.n == 1)
			assert_string_equal(l.v[0].m->id, first);
		store_page_done(&l);
		is_sound();
	}
}

static void
tag_work(void)
{
	char id[STORE_ID_MAX];

	if (second_commit(id) == 0)
		store_tag_set(store, "tag", id, true, &e);
}

static void
a_tag_being_moved_is_the_old_one_or_the_new_one(void **state)
{
	static const char *const points[] = {
		"store.tag-temp", "store.tag-renamed", "store.tag-written"};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		char got[STORE_ID_MAX];

		teardown_store(NULL);
		setup_store(NULL);
		prepare();
		assert_true(dies(points[i], tag_work));
		ok(store_tag_get(store, "tag", got, &e));
		if (i == 0)
			assert_string_equal(got, first);
		else
			assert_string_not_equal(got, first);
		no_temp_files();
		is_sound();
	}
}

static void
open_work(void)
{
	struct store *s;

	snprintf(store_path, sizeof(store_path), "%s/new", folder);
	store_open(store_path, &s, &e);
}

static void
a_store_being_made_is_made_by_the_next(void **state)
{
	static const char *const points[] = {
		"store.format-temp", "store.format-renamed", "store.format-written"};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		teardown_store(NULL);
		setup_store(NULL);
		prepare();
		assert_true(dies(points[i], open_work));
		snprintf(store_path, sizeof(store_path), "%s/new", folder);
		reopen();
		no_temp_files();
		commit_values(NULL, NULL, NULL, first_values, 3, first, NULL);
		is_sound();
	}
}

static void
a_fault_in_the_environment_counts_and_others_do_not(void **state)
{
	pid_t pid;
	int status;

	(void)state;
	for (int i = 0; i < 3; i++) {
		pid = fork();
		if (pid == 0) {
			fault_state = 0; /* as in a new process */
			if (i < 2)
				setenv("PANDO_FAULT", i ? "here:3" : "elsewhere", 1);
			for (int n = 0; n < 2; n++)
				fault_point("here");
			if (i == 1)
				fault_point("here");
			_exit(0);
		}
		waitpid(pid, &status, 0);
		assert_int_equal(WIFSIGNALED(status), i == 1);
	}
}

/* A commit with no more than so many bytes to a file; then it works as if nothing was. */
static void
a_file_that_cannot_grow_is_an_error_and_leaves_nothing(void **state)
{
	/* In the data, in the index, in the manifest. */
	const rlim_t sizes[] = {0, 4096, 1u << 20, 2400000, 2480000};
	struct rlimit old, small;
	char id[STORE_ID_MAX];
	struct store_manifest *m;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	prepare();
	getrlimit(RLIMIT_FSIZE, &old);
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct store_fields f = {.parent = first, .created_ms = 99};
		struct store_writer *w;
		struct store_tree_writer *t;
		uint8_t page[STORE_PAGE];
		int r = 0;

		small = old;
		small.rlim_cur = sizes[i];
		ok(store_begin(store, &w, &e));
		ok(store_tree_begin(w, NULL, 600 * STORE_PAGE, &t, &e));
		setrlimit(RLIMIT_FSIZE, &small);
		for (uint32_t p = 0; p < 600; p++) {
			fill(page, 700000 + 2 * p);
			r = store_tree_put(t, p, page, 1, &e);
			if (r)
				break;
		}
		r = store_tree_finish(t, &f.memory, &e) ? -1 : r;
		if (r)
			f.memory = (struct store_tree){0};
		r = store_commit(w, &f, id, NULL, &e);
		setrlimit(RLIMIT_FSIZE, &old);
		if (sizes[i] < 2480000 || r)
			assert_int_equal(r, -EFBIG);
		no_temp_files();
		assert_int_equal(count_files("packs"), 1);
		assert_int_equal(count_files("commits"), 1);
	}
	is_sound();
	first_is_whole();
	assert_int_equal(second_commit(id), 0);
	ok(store_load(store, id, &m, &e));
	has_values(&m->f.memory, second_values, N);
	store_manifest_free(m);
	is_sound();
}

static void
a_full_disk_is_an_error_and_leaves_nothing(void **state)
{
	char id[STORE_ID_MAX], mount_at[128];
	struct store_page l;
	unsigned failed = 0;

	(void)state;
	snprintf(mount_at, sizeof(mount_at), "%s/small", folder);
	assert_int_equal(mkdir(mount_at, 0700), 0);
	if (mount("pando-test", mount_at, "tmpfs", 0, "size=16m") < 0) {
		print_message("full disk: no tmpfs can be mounted here\n");
		skip();
	}
	store_close(store);
	store = NULL;
	snprintf(store_path, sizeof(store_path), "%s/small/store", folder);
	ok(store_open(store_path, &store, &e));
	prepare(); /* 12 MiB */
	for (uint32_t round = 0; round < 6; round++) {
		struct store_fields f = {.created_ms = 100 + round};
		struct store_writer *w;
		struct store_tree_writer *t;
		uint8_t page[STORE_PAGE];
		int r = 0;

		ok(store_begin(store, &w, &e));
		ok(store_tree_begin(w, NULL, 400 * STORE_PAGE, &t, &e));
		for (uint32_t p = 0; p < 400 && !r; p++) {
			fill(page, 7000000 * (round + 1) + 2 * p);
			r = store_tree_put(t, p, page, 1, &e);
		}
		r = store_tree_finish(t, &f.memory, &e);
		r = store_commit(w, &f, id, NULL, &e);
		if (r) {
			assert_int_equal(r, -ENOSPC);
			failed++;
		}
		no_temp_files();
		is_sound();
	}
	assert_true(failed > 2);
	ok(store_page_newest(store, NULL, STORE_PAGE_MAX, &l, &e));
	assert_int_equal(l.n, 7 - failed);
	store_page_done(&l);
	first_is_whole();
	/* Deleting and collecting need no room. */
	ok(store_delete(store, first, 0, NULL, &e));
	ok(store_gc(store, NULL, 0, NULL, &e));
	store_close(store);
	store = NULL;
	assert_int_equal(umount(mount_at), 0);
}

#define STORE_TEST(name) \
	cmocka_unit_test_setup_teardown(name, setup_store, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		STORE_TEST(a_commit_killed_at_any_point_is_there_wholly_or_not_at_all),
		STORE_TEST(a_gc_killed_at_any_point_loses_nothing),
		STORE_TEST(a_delete_killed_at_any_point_leaves_a_smaller_tree),
		STORE_TEST(a_tag_being_moved_is_the_old_one_or_the_new_one),
		STORE_TEST(a_store_being_made_is_made_by_the_next),
		STORE_TEST(a_fault_in_the_environment_counts_and_others_do_not),
		STORE_TEST(a_file_that_cannot_grow_is_an_error_and_leaves_nothing),
		STORE_TEST(a_full_disk_is_an_error_and_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
