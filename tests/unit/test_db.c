/* The tree on disk: host/vm/db.c. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "common/io.h"
#include "host/vm/db.h"

static char folder[64], path[96];
static struct db *db;
static struct err e;

static int
setup(void **state)
{
	(void)state;
	snprintf(folder, sizeof(folder), "/tmp/pando-test-XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/state.db", folder);
	assert_int_equal(db_open(path, &db, &e), 0);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	db_close(db);
	db = NULL;
	return io_remove_tree(folder, NULL);
}

static struct vm_row
row(const char *id, const char *alias, const char *parent)
{
	struct vm_row r = {.state = VM_RUNNING,
		.created_ms = 5,
		.mem_mib = 512,
		.vcpus = 2,
		.disk_mib = 1024,
		.kernel = "default",
		.rootfs = "none",
		.generation = {1, 2, 3},
		.pid = 77,
		.pid_start = 1ull << 40,
		.answered = true,
		.made = true,
		.next_segment = 1};

	snprintf(r.id, sizeof(r.id), "%s", id);
	snprintf(r.alias, sizeof(r.alias), "%s", alias);
	snprintf(r.parent, sizeof(r.parent), "%s", parent);
	return r;
}

static struct vm_row loaded[8];
static unsigned n_loaded;

static int
load_one(void *ctx, const struct vm_row *r, struct err *err)
{
	(void)ctx;
	(void)err;
	loaded[n_loaded++] = *r;
	return 0;
}

static void
reload(void)
{
	db_close(db);
	n_loaded = 0;
	assert_int_equal(db_open(path, &db, &e), 0);
	assert_int_equal(db_load(db, load_one, NULL, &e), 0);
}

static void
what_was_written_is_read_back_in_order(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "first", ""),
		      b = row("111111111111", "", a.id);

	(void)state;
	a.labels.n = 2;
	snprintf(a.labels.items[0].key, 64, "k");
	snprintf(a.labels.items[0].value, 64, "it's");
	snprintf(a.labels.items[1].key, 64, "z");
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	b.state = VM_FAILED;
	snprintf(b.reason, sizeof(b.reason), "because");
	assert_int_equal(db_update(db, &b, &e), 0);
	reload();
	assert_int_equal(n_loaded, 2);
	assert_memory_equal(&loaded[0], &a, sizeof(a));
	assert_memory_equal(&loaded[1], &b, sizeof(b));
}

static void
an_alias_is_one_vms_only(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "x", ""), b = row("bbbbbbbbbbbb", "x", "");

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), -EEXIST);
	b.alias[0] = '\0';
	assert_int_equal(db_insert(db, &b, &e), 0);
}

static void
a_transaction_is_all_or_nothing(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "x", "");

	(void)state;
	assert_int_equal(db_begin(db, &e), 0);
	assert_int_equal(db_insert(db, &a, &e), 0);
	db_rollback(db);
	db_rollback(db);
	reload();
	assert_int_equal(n_loaded, 0);
}

static void
children_of_a_deleted_vm_become_roots(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "", ""), b = row("bbbbbbbbbbbb", "", a.id);

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	assert_int_equal(db_delete(db, a.id, &e), 0);
	reload();
	assert_int_equal(n_loaded, 1);
	assert_string_equal(loaded[0].parent, "");
}

static void
segments_live_as_long_as_a_chain_names_them(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "", ""), b = row("bbbbbbbbbbbb", "", "");
	struct chain_link *links;
	char(*gone)[DB_SEGMENT_MAX];
	size_t n;

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	assert_int_equal(db_chain_append(db, a.id, "aaaaaaaaaaaa.0", &e), 0);
	assert_int_equal(db_chain_copy(db, a.id, b.id, &e), 0);
	assert_int_equal(db_chain_append(db, b.id, "bbbbbbbbbbbb.0", &e), 0);
	assert_int_equal(db_chain_append(db, a.id, "aaaaaaaaaaaa.1", &e), 0);
	assert_int_equal(db_chain_append(db, a.id, "aaaaaaaaaaaa.1", &e), -EEXIST);
	assert_int_equal(db_chain_fork_point(db, "aaaaaaaaaaaa.0", 41, &e), 0);
	/* The last link of a chain is being written: no cut. */
	assert_int_equal(db_chain_fork_point(db, "aaaaaaaaaaaa.1", 9, &e), 0);
	assert_int_equal(db_chain(db, a.id, &links, &n, &e), 0);
	assert_int_equal(n, 2);
	assert_string_equal(links[0].segment, "aaaaaaaaaaaa.0");
	assert_int_equal(links[0].records, 41);
	assert_int_equal(links[1].records, -1);
	free(links);
	assert_int_equal(db_sweep_segments(db, &gone, &n, &e), 0);
	assert_int_equal(n, 0);
	free(gone);
	assert_int_equal(db_delete(db, a.id, &e), 0);
	assert_int_equal(db_sweep_segments(db, &gone, &n, &e), 0);
	assert_int_equal(n, 1);
	assert_string_equal(gone[0], "aaaaaaaaaaaa.1");
	free(gone);
	assert_int_equal(db_segment_known(db, "aaaaaaaaaaaa.0", &e), 1);
	assert_int_equal(db_segment_known(db, "aaaaaaaaaaaa.1", &e), 0);
}

/* The chain's names, one after the other. */
static const char *
chain_text(const char *vm)
{
	static char text[512];
	struct chain_link *links;
	size_t n;

	text[0] = '\0';
	assert_int_equal(db_chain(db, vm, &links, &n, &e), 0);
	for (size_t i = 0; i < n; i++)
		snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s%s", i ? " " : "",
			links[i].segment);
	free(links);
	return text;
}

static void
a_merged_segment_is_known_before_it_takes_a_runs_place(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "", ""), b = row("bbbbbbbbbbbb", "", "");
	const struct chain_link merged = {"aaaaaaaaaaaa.m0", 12, 3};
	struct chain_link got, *run;
	char(*gone)[DB_SEGMENT_MAX];
	char name[DB_SEGMENT_MAX];
	size_t n;

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	for (int i = 0; i < 5; i++) {
		snprintf(name, sizeof(name), "aaaaaaaaaaaa.%d", i);
		assert_int_equal(db_chain_append(db, a.id, name, &e), 0);
	}
	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "aaaaaaaaaaaa.%d", i);
		assert_int_equal(db_chain_fork_point(db, name, i == 3 ? 0 : 7, &e), 0);
	}
	/* An empty one goes, but where it is the last. */
	assert_int_equal(db_chain_copy(db, a.id, b.id, &e), 0);
	assert_int_equal(db_chain_remove(db, b.id, "aaaaaaaaaaaa.4", &e), 0);
	assert_int_equal(db_chain_drop_empty(db, "aaaaaaaaaaaa.2", &e), 0);
	assert_int_equal(db_chain_drop_empty(db, "aaaaaaaaaaaa.3", &e), 1);
	assert_string_equal(chain_text(a.id),
		"aaaaaaaaaaaa.0 aaaaaaaaaaaa.1 aaaaaaaaaaaa.2 aaaaaaaaaaaa.4");
	assert_string_equal(chain_text(b.id),
		"aaaaaaaaaaaa.0 aaaaaaaaaaaa.1 aaaaaaaaaaaa.2 aaaaaaaaaaaa.3");
	assert_int_equal(db_delete(db, b.id, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	/* Not of this chain; the wrong way round; then right. */
	assert_int_equal(db_merge_begin(db, a.id, &merged, "aaaaaaaaaaaa.1", "x.1", &e), -ENOENT);
	assert_int_equal(
		db_merge_begin(db, a.id, &merged, "aaaaaaaaaaaa.2", "aaaaaaaaaaaa.1", &e),
		-ENOENT);
	assert_int_equal(db_merge_find(db, a.id, &got, &run, &n, &e), 0);
	assert_int_equal(
		db_merge_begin(db, a.id, &merged, "aaaaaaaaaaaa.1", "aaaaaaaaaaaa.2", &e), 0);
	assert_int_equal(
		db_merge_begin(db, a.id, &merged, "aaaaaaaaaaaa.1", "aaaaaaaaaaaa.2", &e),
		-EEXIST);
	assert_string_equal(chain_text(a.id),
		"aaaaaaaaaaaa.0 aaaaaaaaaaaa.1 aaaaaaaaaaaa.2 aaaaaaaaaaaa.4");
	assert_int_equal(db_sweep_segments(db, &gone, &n, &e), 0);
	assert_int_equal(n, 1); /* the empty one; the merged one is known */
	free(gone);
	/* A branch meanwhile has both, and goes on by itself. */
	assert_int_equal(db_chain_copy(db, a.id, b.id, &e), 0);
	assert_int_equal(db_chain_append(db, b.id, "bbbbbbbbbbbb.0", &e), 0);
	for (unsigned i = 0; i < 2; i++) {
		const char *vm = i ? b.id : a.id;

		assert_int_equal(db_merge_find(db, vm, &got, &run, &n, &e), 1);
		assert_string_equal(got.segment, merged.segment);
		assert_int_equal(got.records, 12);
		assert_int_equal(got.weight, 3);
		assert_int_equal(n, 2);
		assert_string_equal(run[0].segment, "aaaaaaaaaaaa.1");
		assert_string_equal(run[1].segment, "aaaaaaaaaaaa.2");
		assert_int_equal(run[1].records, 7);
		free(run);
	}
	assert_int_equal(db_merge_end(db, a.id, &e), 0);
	assert_string_equal(
		chain_text(a.id), "aaaaaaaaaaaa.0 aaaaaaaaaaaa.m0 aaaaaaaaaaaa.4");
	assert_int_equal(db_merge_drop(db, b.id, &e), 0);
	assert_int_equal(db_merge_drop(db, b.id, &e), 0);
	assert_int_equal(db_merge_find(db, b.id, &got, &run, &n, &e), 0);
	assert_string_equal(chain_text(b.id),
		"aaaaaaaaaaaa.0 aaaaaaaaaaaa.1 aaaaaaaaaaaa.2 aaaaaaaaaaaa.4 bbbbbbbbbbbb.0");
	assert_int_equal(db_delete(db, b.id, &e), 0);
	assert_int_equal(db_sweep_segments(db, &gone, &n, &e), 0);
	assert_int_equal(n, 3);
	free(gone);
	/* What is appended comes last, also after a merge at the end. */
	assert_int_equal(db_chain_append(db, a.id, "aaaaaaaaaaaa.6", &e), 0);
	assert_int_equal(db_merge_begin(db, a.id, &(struct chain_link){"aaaaaaaaaaaa.m1", 1, 0},
				 "aaaaaaaaaaaa.m0", "aaaaaaaaaaaa.6", &e),
		0);
	assert_int_equal(db_merge_end(db, a.id, &e), 0);
	assert_int_equal(db_chain_append(db, a.id, "aaaaaaaaaaaa.7", &e), 0);
	assert_string_equal(
		chain_text(a.id), "aaaaaaaaaaaa.0 aaaaaaaaaaaa.m1 aaaaaaaaaaaa.7");
}

static void
a_long_chain_is_read_whole(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "", "");
	struct chain_link *links;
	char name[DB_SEGMENT_MAX];
	size_t n;

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	for (int i = 0; i < 300; i++) {
		snprintf(name, sizeof(name), "aaaaaaaaaaaa.%d", i);
		assert_int_equal(db_chain_append(db, a.id, name, &e), 0);
	}
	assert_int_equal(db_chain(db, a.id, &links, &n, &e), 0);
	assert_int_equal(n, 300);
	assert_string_equal(links[299].segment, "aaaaaaaaaaaa.299");
	free(links);
}

static void
change(const char *sql)
{
	sqlite3 *h;

	assert_int_equal(sqlite3_open(path, &h), SQLITE_OK);
	assert_int_equal(sqlite3_exec(h, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(h);
}

static int
keep_row(void *ctx, const struct vm_row *row, struct err *e2)
{
	(void)e2;
	*(struct vm_row *)ctx = *row;
	return 0;
}

static void
an_older_schema_becomes_this_one(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", ""), got;

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	db_close(db);
	db = NULL;
	change("ALTER TABLE vms DROP COLUMN kernel_path; ALTER TABLE vms DROP COLUMN cmdline;"
	       "ALTER TABLE vms DROP COLUMN resize_mib; ALTER TABLE vms DROP COLUMN commit_id; ALTER TABLE vms DROP COLUMN image_id; DROP TABLE bases;"
	       "ALTER TABLE vms DROP COLUMN host_key; ALTER TABLE vms DROP COLUMN greeted;"
	       "DROP TRIGGER environment_goes; DROP TABLE environment;"
	       "DROP TABLE reports; DROP TABLE reports_of; DROP TABLE disk_limits;"
	       "ALTER TABLE vms DROP COLUMN origin_id; ALTER TABLE vms DROP COLUMN fork_mib;"
	       " ALTER TABLE vms DROP COLUMN fork_commit; DROP TABLE resets;"
	       "ALTER TABLE vms DROP COLUMN commit_segment; ALTER TABLE chain DROP COLUMN weight;"
	       "ALTER TABLE chain DROP COLUMN first; ALTER TABLE chain DROP COLUMN last;"
	       "PRAGMA user_version = 1");
	assert_int_equal(db_open(path, &db, &e), 0);
	assert_int_equal(db_load(db, keep_row, &got, &e), 0);
	assert_string_equal(got.id, a.id);
	assert_string_equal(got.kernel_path, "");
	/* One that runs is not asked who it is: its agent may not know the question. */
	assert_memory_equal(got.acknowledged, got.generation, sizeof(got.acknowledged));
	assert_string_equal(got.host_key, "");
	assert_int_equal(got.resize_mib, 0);
	/* What a start and a resize change. */
	snprintf(got.base_path, sizeof(got.base_path), "/x/bases/aaaaaaaaaaaa.1");
	got.disk_mib = 2048;
	got.resize_mib = 4096;
	assert_int_equal(db_update(db, &got, &e), 0);
	assert_int_equal(db_load(db, keep_row, &a, &e), 0);
	assert_string_equal(a.base_path, got.base_path);
	assert_int_equal(a.disk_mib, 2048);
	assert_int_equal(a.resize_mib, 4096);
}

struct reports_seen {
	unsigned n, stop_at;
	uint64_t last;
	char text[256];
};

static int
see_report(void *ctx, const struct db_report *r, struct err *e2)
{
	struct reports_seen *s = ctx;

	(void)e2;
	assert_true(r->seq > s->last);
	s->last = r->seq;
	s->n++;
	snprintf(s->text, sizeof(s->text), "%s %s %s %s %llu %s", r->id, r->vm, r->alias,
		r->generation, (unsigned long long)r->time_ms, r->json);
	return s->n == s->stop_at;
}

static void
reports_are_kept_once_and_outlive_their_vm(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", "");
	struct db_report r = {
		.vm = "aaaaaaaaaaaa", .alias = "a", .time_ms = 9, .json = "{}"};
	struct reports_seen s = {0};

	(void)state;
	memset(r.generation, '1', 32);
	assert_int_equal(db_insert(db, &a, &e), 0);
	for (int i = 0; i < 6; i++) {
		memset(r.id, 'a' + i / 2, 32); /* each comes twice */
		assert_int_equal(db_report_put(db, &r, &e), 0);
		r.json = "{\"later\":1}";
	}
	memset(r.id, 'f', 32);
	memset(r.vm, 'b', 12);
	r.alias[0] = 0;
	assert_int_equal(db_report_put(db, &r, &e), 0);
	assert_int_equal(db_delete(db, a.id, &e), 0);
	db_close(db);
	db = NULL;
	assert_int_equal(db_open(path, &db, &e), 0);
	assert_int_equal(db_reports(db, NULL, 0, see_report, &s, &e), 0);
	assert_int_equal(s.n, 4);
	s = (struct reports_seen){.stop_at = 1};
	assert_int_equal(db_reports(db, "aaaaaaaaaaaa", 0, see_report, &s, &e), 0);
	assert_string_equal(s.text,
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaaaaaaaaaaa a 11111111111111111111111111111111 9 {}");
	s.stop_at = 0;
	s.n = 0;
	assert_int_equal(db_reports(db, "aaaaaaaaaaaa", s.last, see_report, &s, &e), 0);
	assert_int_equal(s.n, 2);
	s = (struct reports_seen){0};
	assert_int_equal(db_reports(db, NULL, UINT64_MAX, see_report, &s, &e), 0);
	assert_int_equal(s.n, 0);
}

static int
see_dropped(void *ctx, const char *vm, const char *alias, uint64_t n)
{
	struct reports_seen *s = ctx;

	s->n++;
	snprintf(
		s->text, sizeof(s->text), "%s %s %llu", vm, alias, (unsigned long long)n);
	return 0;
}

/* n more reports of vm, each of that many bytes. */
static void
say_much(const char *vm, unsigned n, size_t len)
{
	static unsigned number;
	char *json = malloc(len + 1);
	struct db_report r = {.alias = "n", .json = json};

	assert_non_null(json);
	memset(json, ' ', len);
	memcpy(json, "{}", 2);
	json[len] = '\0';
	memset(r.generation, '1', 32);
	memcpy(r.vm, vm, VM_ID_LEN);
	while (n--) {
		snprintf(r.id, sizeof(r.id), "%032x", ++number);
		assert_int_equal(db_report_put(db, &r, &e), 0);
	}
	free(json);
}

static unsigned
reports_of_vm(const char *vm)
{
	struct reports_seen s = {0};

	assert_int_equal(db_reports(db, vm, 0, see_report, &s, &e), 0);
	return s.n;
}

static void
a_vm_that_says_much_pushes_out_its_own_reports_only(void **state)
{
	struct reports_seen s = {0};
	uint64_t dropped;

	(void)state;
	say_much("bbbbbbbbbbbb", 5, 100);
	for (int i = 0; i < 40; i++) {
		say_much("aaaaaaaaaaaa", 1, 1 << 20);
		assert_int_equal(db_reports_trim(db, "aaaaaaaaaaaa", 4 << 20, 64 << 20,
					 &dropped, &e),
			0);
		assert_int_equal(dropped, i < 3 ? 0 : 1);
	}
	assert_int_equal(reports_of_vm("bbbbbbbbbbbb"), 5);
	assert_int_equal(reports_of_vm("aaaaaaaaaaaa"), 3);
	/* Many small ones count as well. */
	say_much("cccccccccccc", 1000, 2);
	assert_int_equal(
		db_reports_trim(db, "cccccccccccc", 64 << 10, 64 << 20, &dropped, &e), 0);
	assert_int_equal(
		reports_of_vm("cccccccccccc"), (64 << 10) / (DB_REPORT_BYTES + 2));
	assert_int_equal(reports_of_vm("bbbbbbbbbbbb"), 5);
	/* How many went is known, after a restart too. */
	db_close(db);
	db = NULL;
	assert_int_equal(db_open(path, &db, &e), 0);
	assert_int_equal(db_reports_dropped(db, "aaaaaaaaaaaa", see_dropped, &s, &e), 0);
	assert_string_equal(s.text, "aaaaaaaaaaaa n 37");
	s.n = 0;
	assert_int_equal(db_reports_dropped(db, NULL, see_dropped, &s, &e), 0);
	assert_int_equal(s.n, 2);
	s.n = 0;
	assert_int_equal(db_reports_dropped(db, "bbbbbbbbbbbb", see_dropped, &s, &e), 0);
	assert_int_equal(s.n, 0);
}

/* Also those of VMs that are gone are bounded; who has the most pays. */
static void
all_reports_are_bounded_and_the_largest_pays(void **state)
{
	uint64_t dropped;

	(void)state;
	say_much("aaaaaaaaaaaa", 10, 10000);
	say_much("bbbbbbbbbbbb", 2, 10000);
	say_much("cccccccccccc", 4, 10000);
	assert_int_equal(
		db_reports_trim(db, "cccccccccccc", 1 << 20, 100000, &dropped, &e), 0);
	assert_int_equal(dropped, 0);
	assert_int_equal(reports_of_vm("aaaaaaaaaaaa"), 3);
	assert_int_equal(reports_of_vm("bbbbbbbbbbbb"), 2);
	assert_int_equal(reports_of_vm("cccccccccccc"), 4);
}

static void
reports_of_before_count_as_well(void **state)
{
	uint64_t dropped;

	(void)state;
	say_much("aaaaaaaaaaaa", 10, 10000);
	db_close(db);
	db = NULL;
	change("DROP TRIGGER report_comes; DROP TRIGGER report_goes; DROP TABLE reports_of;"
	       "DROP TABLE disk_limits;"
	       "ALTER TABLE vms DROP COLUMN commit_segment; ALTER TABLE chain DROP COLUMN weight;"
	       "ALTER TABLE chain DROP COLUMN first; ALTER TABLE chain DROP COLUMN last;"
	       "ALTER TABLE reports DROP COLUMN bytes;"
	       "ALTER TABLE vms DROP COLUMN origin_id; ALTER TABLE vms DROP COLUMN fork_mib;"
	       " ALTER TABLE vms DROP COLUMN fork_commit; DROP TABLE resets; PRAGMA user_version = 5");
	assert_int_equal(db_open(path, &db, &e), 0);
	assert_int_equal(
		db_reports_trim(db, "aaaaaaaaaaaa", 50000, 1 << 20, &dropped, &e), 0);
	assert_int_equal(dropped, 6);
	assert_int_equal(reports_of_vm("aaaaaaaaaaaa"), 4);
}

static void
environments_are_kept_apart_and_go_with_their_vms(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", ""), b = row("bbbbbbbbbbbb", "b", "");
	cleanup_env struct env defaults = {0}, own = {0}, other = {0}, got = {0};

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	assert_int_equal(env_set(&defaults, "ALL=1\n2", &e), 0);
	assert_int_equal(env_set(&own, "OWN=a=b", &e), 0);
	assert_int_equal(env_set(&other, "OWN=", &e), 0);
	assert_int_equal(db_env_put(db, "", &defaults, &e), 0);
	assert_int_equal(db_env_put(db, a.id, &own, &e), 0);
	assert_int_equal(db_env_put(db, b.id, &other, &e), 0);
	assert_int_equal(db_env_get(db, a.id, &got, &e), 0);
	assert_int_equal(got.n, 1);
	assert_string_equal(got.v[0], "OWN=a=b");
	env_done(&got);
	/* Replaced, not merged. */
	assert_int_equal(db_env_put(db, a.id, &defaults, &e), 0);
	assert_int_equal(db_env_get(db, a.id, &got, &e), 0);
	assert_int_equal(got.n, 1);
	assert_string_equal(got.v[0], "ALL=1\n2");
	env_done(&got);
	assert_int_equal(db_delete(db, a.id, &e), 0);
	assert_int_equal(db_env_get(db, a.id, &got, &e), 0);
	assert_int_equal(got.n, 0);
	assert_int_equal(db_env_get(db, b.id, &got, &e), 0);
	assert_string_equal(env_get(&got, "OWN"), "");
	env_done(&got);
	assert_int_equal(db_env_get(db, "", &got, &e), 0);
	assert_string_equal(env_get(&got, "ALL"), "1\n2");
}

static void
who_a_guest_said_it_is_is_kept(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", ""), got;

	(void)state;
	snprintf(a.host_key, sizeof(a.host_key), "ssh-ed25519 AAAA");
	memset(a.acknowledged, 7, sizeof(a.acknowledged));
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_load(db, keep_row, &got, &e), 0);
	assert_string_equal(got.host_key, a.host_key);
	assert_memory_equal(got.acknowledged, a.acknowledged, sizeof(a.acknowledged));
	a.host_key[0] = '\0';
	memset(a.acknowledged, 8, sizeof(a.acknowledged));
	assert_int_equal(db_update(db, &a, &e), 0);
	assert_int_equal(db_load(db, keep_row, &got, &e), 0);
	assert_string_equal(got.host_key, "");
	assert_memory_equal(got.acknowledged, a.acknowledged, sizeof(a.acknowledged));
}

static void
where_a_vm_comes_from_is_kept(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", ""), got;

	(void)state;
	memset(a.commit, 'c', STORE_HEX);
	memset(a.image, 'd', STORE_HEX);
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_load(db, keep_row, &got, &e), 0);
	assert_string_equal(got.commit, a.commit);
	assert_string_equal(got.image, a.image);
	got.image[0] = '\0';
	memset(got.commit, 'e', STORE_HEX);
	assert_int_equal(db_update(db, &got, &e), 0);
	assert_int_equal(db_load(db, keep_row, &a, &e), 0);
	assert_string_equal(a.commit, got.commit);
	assert_string_equal(a.image, "");
}

static void
a_base_is_known_as_long_as_it_is_the_same_file(void **state)
{
	struct db_base *all,
		b = {.path = "/x/base",
			.dev = 3,
			.inode = UINT64_MAX - 1,
			.size = 1 << 20,
			.mtime_ns = -5},
		other;
	size_t n;

	(void)state;
	memset(&b.tree.root, 7, sizeof(b.tree.root));
	assert_int_equal(db_base_find(db, &b, &e), 0);
	assert_int_equal(db_base_put(db, &b, &e), 0);
	other = b;
	memset(&other.tree, 0, sizeof(other.tree));
	assert_int_equal(db_base_find(db, &other, &e), 1);
	assert_int_equal(other.tree.root.b[31], 7);
	assert_int_equal(other.tree.length, 1 << 20);
	other.mtime_ns++;
	assert_int_equal(db_base_find(db, &other, &e), 0);
	other = b;
	other.size++;
	assert_int_equal(db_base_find(db, &other, &e), 0);
	other = b;
	other.inode--;
	assert_int_equal(db_base_find(db, &other, &e), 0);
	/* A path is known once. */
	memset(&other.tree.root, 8, sizeof(other.tree.root));
	assert_int_equal(db_base_put(db, &other, &e), 0);
	assert_int_equal(db_base_find(db, &b, &e), 0);
	assert_int_equal(db_bases(db, &all, &n, &e), 0);
	assert_int_equal(n, 1);
	assert_int_equal(all[0].inode, other.inode);
	free(all);
	assert_int_equal(db_base_drop(db, b.path, &e), 0);
	assert_int_equal(db_bases(db, &all, &n, &e), 0);
	assert_int_equal(n, 0);
	free(all);
}

static void
a_chains_own_segments_are_those_of_no_other(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", ""), b = row("bbbbbbbbbbbb", "b", "");
	char(*names)[DB_SEGMENT_MAX];
	size_t n;

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	assert_int_equal(db_chain_append(db, a.id, "aaaaaaaaaaaa.0", &e), 0);
	assert_int_equal(db_chain_copy(db, a.id, b.id, &e), 0);
	assert_int_equal(db_chain_append(db, a.id, "aaaaaaaaaaaa.1", &e), 0);
	assert_int_equal(db_chain_own(db, a.id, &names, &n, &e), 0);
	assert_int_equal(n, 1);
	assert_string_equal(names[0], "aaaaaaaaaaaa.1");
	free(names);
	assert_int_equal(db_chain_own(db, b.id, &names, &n, &e), 0);
	assert_int_equal(n, 0);
	free(names);
	/* Cleared, then the other has it alone. */
	assert_int_equal(db_chain_clear(db, a.id, &e), 0);
	assert_int_equal(db_chain_own(db, b.id, &names, &n, &e), 0);
	assert_int_equal(n, 1);
	free(names);
	assert_int_equal(db_sweep_segments(db, &names, &n, &e), 0);
	assert_int_equal(n, 1);
	assert_string_equal(names[0], "aaaaaaaaaaaa.1");
	free(names);
}

/* What came from a commit before there were resets goes back to it; a branch does not. */
static void
vms_of_before_know_their_origin(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", ""), b = row("bbbbbbbbbbbb", "b", a.id);

	(void)state;
	memset(a.image, 'c', STORE_HEX);
	memset(b.image, 'c', STORE_HEX);
	b.fork_mib = 77;
	memset(b.fork_commit, 'd', STORE_HEX);
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_insert(db, &b, &e), 0);
	reload();
	assert_int_equal(loaded[0].fork_mib, 0);
	assert_int_equal(loaded[1].fork_mib, 77);
	assert_string_equal(loaded[1].fork_commit, b.fork_commit);
	db_close(db);
	change("ALTER TABLE vms DROP COLUMN origin_id; ALTER TABLE vms DROP COLUMN fork_mib;"
	       " ALTER TABLE vms DROP COLUMN fork_commit; DROP TABLE resets; PRAGMA user_version = 8");
	assert_int_equal(db_open(path, &db, &e), 0);
	reload();
	assert_string_equal(loaded[0].origin, a.image);
	assert_string_equal(loaded[1].origin, "");
}

static void
a_reset_under_way_is_kept_until_it_is_over(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "a", "");
	struct db_reset r = {.segment = "aaaaaaaaaaaa.r3", .before = 65535}, got;

	(void)state;
	r.row = row("aaaaaaaaaaaa", "", "");
	memset(r.row.commit, 'd', STORE_HEX);
	snprintf(r.row.base_path, sizeof(r.row.base_path), "/x/flat/d/disk");
	snprintf(r.row.cmdline, sizeof(r.row.cmdline), "mode=work");
	r.row.disk_mib = 77;
	memset(r.row.generation, 9, sizeof(r.row.generation));
	assert_int_equal(db_insert(db, &a, &e), 0);
	assert_int_equal(db_reset_get(db, a.id, &got, &e), 0);
	assert_int_equal(db_reset_put(db, &r, &e), 0);
	/* Nobody takes its segment for one that is no VM's. */
	assert_int_equal(db_segment_known(db, r.segment, &e), 1);
	assert_int_equal(db_reset_get(db, a.id, &got, &e), 1);
	assert_string_equal(got.segment, r.segment);
	assert_int_equal(got.before, 65535);
	assert_string_equal(got.row.commit, r.row.commit);
	assert_string_equal(got.row.base_path, r.row.base_path);
	assert_string_equal(got.row.kernel, r.row.kernel);
	assert_string_equal(got.row.cmdline, "mode=work");
	assert_int_equal(got.row.disk_mib, 77);
	assert_memory_equal(got.row.generation, r.row.generation, sizeof(r.row.generation));
	assert_int_equal(db_reset_drop(db, a.id, &e), 0);
	assert_int_equal(db_reset_get(db, a.id, &got, &e), 0);
	assert_int_equal(db_segment_known(db, r.segment, &e), 0);
	assert_int_equal(db_reset_put(db, &r, &e), 0);
	assert_int_equal(db_delete(db, a.id, &e), 0);
	assert_int_equal(db_reset_get(db, a.id, &got, &e), 0);
}

static void
a_newer_schema_is_refused_with_a_sentence(void **state)
{
	(void)state;
	db_close(db);
	db = NULL;
	change("PRAGMA user_version = 99");
	assert_int_equal(db_open(path, &db, &e), -EINVAL);
	assert_non_null(
		strstr(e.msg, "written by a newer pandod (schema 99, this one knows 10)"));
}

static void
a_file_that_is_no_database_is_refused(void **state)
{
	(void)state;
	db_close(db);
	db = NULL;
	assert_int_equal(io_write_file_atomic(path, "hello, I am a text of some length",
				 33, 0600, NULL),
		0);
	assert_int_equal(db_open(path, &db, &e), -EIO);
	assert_non_null(strstr(e.msg, "not a database"));
}

static void
a_damaged_row_is_named(void **state)
{
	struct vm_row a = row("aaaaaaaaaaaa", "", "");

	(void)state;
	assert_int_equal(db_insert(db, &a, &e), 0);
	change("UPDATE vms SET state = 'dancing'");
	assert_int_equal(db_load(db, load_one, NULL, &e), -EINVAL);
	assert_string_equal(e.msg, "state.db: the row of VM \"aaaaaaaaaaaa\" is damaged");
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(what_was_written_is_read_back_in_order),
		T(an_alias_is_one_vms_only),
		T(a_transaction_is_all_or_nothing),
		T(children_of_a_deleted_vm_become_roots),
		T(segments_live_as_long_as_a_chain_names_them),
		T(a_merged_segment_is_known_before_it_takes_a_runs_place),
		T(a_long_chain_is_read_whole),
		T(an_older_schema_becomes_this_one),
		T(environments_are_kept_apart_and_go_with_their_vms),
		T(who_a_guest_said_it_is_is_kept),
		T(reports_are_kept_once_and_outlive_their_vm),
		T(a_vm_that_says_much_pushes_out_its_own_reports_only),
		T(all_reports_are_bounded_and_the_largest_pays),
		T(reports_of_before_count_as_well),
		T(a_chains_own_segments_are_those_of_no_other),
		T(where_a_vm_comes_from_is_kept),
		T(a_base_is_known_as_long_as_it_is_the_same_file),
		T(vms_of_before_know_their_origin),
		T(a_reset_under_way_is_kept_until_it_is_over),
		T(a_newer_schema_is_refused_with_a_sentence),
		T(a_file_that_is_no_database_is_refused),
		T(a_damaged_row_is_named),
#undef T
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
