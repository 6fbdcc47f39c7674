/* Lists by page, deletion and retention, over a store whose commits are made here and a
 * table with VMs that stand still. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"
#include "host/store/store_priv.h"

#define N 40u
#define DAY_MS (86400ull * 1000)

static char home[64], ids[N][STORE_ID_MAX];
static struct err e;
static struct tree *t;
static struct commits *c;

static void
make_in(struct store *s, unsigned at, const char *parent, uint64_t created_ms,
	const char *labels)
{
	struct store_fields f = {
		.parent = parent, .created_ms = created_ms, .labels = labels, .message = "m"};
	struct store_writer *w;
	uint8_t page[STORE_PAGE] = {0};

	memcpy(page, &at, sizeof(at));
	page[100] = 1;
	assert_int_equal(store_begin(s, &w, &e), 0);
	assert_int_equal(store_put_blob(w, page, sizeof(page), &f.memory, &e), 0);
	assert_int_equal(store_commit(w, &f, ids[at], NULL, &e), 0);
}

static void
open_all(void)
{
	static struct tree_config config;

	config = (struct tree_config){.kvm_path = "/dev/null"};
	snprintf(config.home, sizeof(config.home), "%s", home);
	assert_int_equal(tree_open(&config, &t, &e), 0);
	assert_int_equal(commits_open(t, &(struct commits_config){0}, &c, &e), 0);
}

static void
close_all(void)
{
	commits_close(c);
	tree_close(t);
}

/* A stopped VM that was last committed as it. */
static void
enter_vm(const char *id, const char *commit)
{
	struct vm_row row = {.state = VM_STOPPED,
		.mem_mib = 32,
		.disk_mib = 16,
		.vcpus = 1,
		.made = true,
		.next_segment = 1};
	char path[PATHS_MAX];
	struct db *db;

	snprintf(row.id, sizeof(row.id), "%s", id);
	snprintf(row.alias, sizeof(row.alias), "vm-%s", id);
	snprintf(row.commit, sizeof(row.commit), "%s", commit);
	snprintf(path, sizeof(path), "%s/state.db", home);
	assert_int_equal(db_open(path, &db, &e), 0);
	assert_int_equal(db_insert(db, &row, &e), 0);
	db_close(db);
}

/* A chain 0 <- 1 <- … <- 19, and a branch of ten, 20 to 29, at 9. Days before now: 40 - n.
 * Even ones are labelled kind=step. 5 is tagged, a VM is of 7, 3 has expired. */
static int
setup(void **state)
{
	uint64_t now = io_wall_ms();
	char path[PATHS_MAX], expired[120];
	struct store *s;

	(void)state;
	snprintf(home, sizeof(home), "/tmp/pando-test-commits.XXXXXX");
	assert_non_null(mkdtemp(home));
	snprintf(path, sizeof(path), "%s/store", home);
	snprintf(expired, sizeof(expired), "{\"pando.expires_ms\":\"%llu\"}",
		(unsigned long long)(now - 1000));
	assert_int_equal(store_open(path, &s, &e), 0);
	for (unsigned i = 0; i < 30; i++)
		make_in(s, i, i == 0 ? NULL : i == 20 ? ids[9] : ids[i - 1],
			now - (40 - i) * DAY_MS - 1000,
			i == 3 ? expired : i % 2 ? "{}" : "{\"kind\":\"step\"}");
	assert_int_equal(store_tag_set(s, "five", ids[5], false, &e), 0);
	store_close(s);
	enter_vm("0123456789ab", ids[7]);
	open_all();
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	close_all();
	return io_remove_tree(home, NULL);
}

/* What a call answered, as JSON; the last one is kept. */
static struct json_out out;
static struct json *answer;

static void
begin(void)
{
	json_free(answer);
	answer = NULL;
	json_out_done(&out);
	out = (struct json_out){0};
}

static void
read_answer(int r)
{
	if (r)
		fail_msg("%d: %s", r, e.msg);
	assert_int_equal(out.error, 0);
	assert_int_equal(json_parse(out.buf, out.len, 100000, &answer, &e), 0);
}

static void
text_of(int tok, const char *key, char dst[static STORE_CURSOR_MAX])
{
	if (json_str(answer, json_get(answer, tok, key), dst, STORE_CURSOR_MAX) < 0)
		dst[0] = '\0';
}

static uint64_t
prune(const struct prune_request *q)
{
	int list;

	begin();
	read_answer(commits_prune(c, q, NULL, &out, &e));
	list = json_get(answer, 0, q->dry_run ? "would_prune" : "pruned");
	assert_true(list >= 0);
	return (uint64_t)json_size(answer, list);
}

static bool
held(unsigned at)
{
	struct json_out o = {0};
	int r = commits_info(c, ids[at], &o, &e);

	json_out_done(&o);
	if (r)
		assert_int_equal(r, -ENOENT);
	return r == 0;
}

static void
pages_make_the_whole_list_and_each_history(void **state)
{
	char after[STORE_CURSOR_MAX] = "", id[STORE_CURSOR_MAX];
	unsigned at = 30;

	(void)state;
	do {
		int list;

		begin();
		read_answer(commits_list(c, after, 7, &out, &e));
		list = json_get(answer, 0, "commits");
		for (int i = 0; i < json_size(answer, list); i++) {
			text_of(json_at(answer, list, i), "id", id);
			assert_string_equal(id, ids[--at]);
		}
		text_of(0, "next", after);
	} while (after[0]);
	assert_int_equal(at, 0);
	at = 20;
	do {
		int list;

		begin();
		/* Of a VM's commit, too: 7 is below. */
		read_answer(commits_history(c, ids[19], after, 3, &out, &e));
		list = json_get(answer, 0, "commits");
		for (int i = 0; i < json_size(answer, list); i++) {
			text_of(json_at(answer, list, i), "id", id);
			assert_string_equal(id, ids[--at]);
		}
		text_of(0, "next", after);
	} while (after[0]);
	assert_int_equal(at, 0);
	begin();
	read_answer(commits_history(c, "vm-0123456789ab", "", 100, &out, &e));
	assert_int_equal(json_size(answer, json_get(answer, 0, "commits")), 8);
	begin();
	assert_int_equal(commits_list(c, "nonsense", 7, &out, &e), -EINVAL);
	begin();
	read_answer(commits_tags(c, "", 1, &out, &e));
	text_of(0, "next", after);
	assert_string_equal(after, "five");
	begin();
	read_answer(commits_tags(c, after, 1, &out, &e));
	assert_int_equal(json_size(answer, json_get(answer, 0, "tags")), 0);
}

static void
without_rules_only_what_has_expired_goes(void **state)
{
	(void)state;
	assert_int_equal(prune(&(struct prune_request){.dry_run = true}), 1);
	assert_true(held(3));
	assert_int_equal(prune(&(struct prune_request){0}), 1);
	assert_false(held(3));
	assert_non_null(strstr(e.msg, "was pruned"));
	assert_int_equal(prune(&(struct prune_request){0}), 0);
}

static void
what_is_older_goes_but_not_what_is_tagged_or_a_vms(void **state)
{
	struct prune_request q = {.has_older = true, .older_than_ms = 29 * DAY_MS};
	uint64_t n;

	(void)state;
	/* 0 to 11, without 5 and 7. */
	q.dry_run = true;
	assert_int_equal(prune(&q), 10);
	q.dry_run = false;
	assert_int_equal(prune(&q), 10);
	assert_int_equal(json_u64(answer, json_get(answer, 0, "kept_tagged"), &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(json_u64(answer, json_get(answer, 0, "kept_in_use"), &n), 0);
	assert_int_equal(n, 1);
	for (unsigned i = 0; i < 30; i++)
		assert_int_equal(held(i), i == 5 || i == 7 || i > 11);
	/* The history is whole. */
	begin();
	read_answer(commits_history(c, ids[29], "", 1000, &out, &e));
	assert_int_equal(json_size(answer, json_get(answer, 0, "commits")), 20);
	begin();
	assert_int_equal(commits_diff(c, ids[2], ids[29], false, &out, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "was pruned"));
	begin();
	read_answer(commits_verify(c, NULL, &out, &e));
	assert_non_null(strstr(out.buf, "\"sound\":true"));
	begin();
	read_answer(commits_gc(c, NULL, &out, &e));
	begin();
	read_answer(commits_verify(c, NULL, &out, &e));
	assert_non_null(strstr(out.buf, "\"sound\":true"));
}

static void
the_last_of_each_line_stay(void **state)
{
	(void)state;
	/* Of 19 and of 29, three each; 5 and 7 besides; 3 has expired, and goes by either. */
	assert_int_equal(prune(&(struct prune_request){.keep_last = 3}), 22);
	for (unsigned i = 0; i < 30; i++)
		assert_int_equal(held(i),
			i == 5 || i == 7 || (i >= 17 && i < 20) || i >= 27);
}

static void
both_rules_must_select_it(void **state)
{
	struct prune_request q = {
		.has_older = true, .older_than_ms = 22 * DAY_MS, .keep_last = 3};

	(void)state;
	/* Older: 0 to 18. Beyond the last three of a line: not 17, 18. */
	assert_int_equal(prune(&q), 15);
	for (unsigned i = 0; i < 30; i++)
		assert_int_equal(held(i), i == 5 || i == 7 || i > 16);
}

static void
a_label_is_a_filter_and_only_such_are_counted(void **state)
{
	struct prune_request q = {.keep_last = 2, .labels.n = 1};

	(void)state;
	strcpy(q.labels.items[0].key, "kind");
	strcpy(q.labels.items[0].value, "step");
	/* Even ones; of them 16, 18, 26 and 28 stay. */
	assert_int_equal(prune(&q), 11);
	for (unsigned i = 0; i < 30; i++)
		assert_int_equal(
			held(i), i % 2 || i == 16 || i == 18 || i == 26 || i == 28);
	strcpy(q.labels.items[0].value, "other");
	assert_int_equal(prune(&q), 0);
}

static void
an_expired_one_among_the_last_stays(void **state)
{
	(void)state;
	/* Of twenty, either way. */
	assert_int_equal(prune(&(struct prune_request){.keep_last = 17}), 3);
	assert_true(held(3));
}

static void
what_a_call_works_with_stays(void **state)
{
	struct prune_request q = {.has_older = true, .older_than_ms = 29 * DAY_MS};
	struct commit_use use = {0}, other = {0};

	(void)state;
	assert_int_equal(commit_use_begin(c, &use, ids[4], &e), 0);
	assert_int_equal(commit_use_begin(c, &other, ids[8], &e), 0);
	assert_int_equal(prune(&q), 8);
	assert_true(held(4) && held(8));
	commit_use_end(c, &use);
	assert_int_equal(prune(&q), 1);
	assert_false(held(4));
	commit_use_end(c, &other);
	assert_int_equal(prune(&q), 1);
	assert_null(c->uses);
	assert_null(c->going);
}

static void
what_is_going_is_run_by_nobody(void **state)
{
	struct store_hash hash;
	struct commits_going going = {NULL, &hash, 1};
	struct commit_use use = {0};

	(void)state;
	hash_from_hex(ids[4], &hash);
	pthread_mutex_lock(&t->lock);
	c->going = &going;
	assert_true(commit_is_going(c, ids[4]));
	assert_false(commit_is_going(c, ids[5]));
	pthread_mutex_unlock(&t->lock);
	assert_int_equal(commit_use_begin(c, &use, ids[4], &e), -ENOENT);
	assert_non_null(strstr(e.msg, "being deleted"));
	c->going = NULL;
}

static void
labels_of_pandos_own_are_refused(void **state)
{
	struct commit_request q = {.labels.n = 1};

	(void)state;
	strcpy(q.labels.items[0].key, LABEL_LINE);
	begin();
	assert_int_equal(
		commits_make_by_rule(c, "vm-0123456789ab", &q, NULL, &out, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "pando's own"));
}

/*
 * Care.
 */

static bool
gone(void *ctx)
{
	(void)ctx;
	return true;
}

static void *
gc_in_a_thread(void *ctx)
{
	struct json_out o = {0};
	struct err why;

	*(int *)ctx = commits_gc(c, NULL, &o, &why);
	json_out_done(&o);
	return NULL;
}

/* As many as that run, or wait for what began before them. */
static void
wait_for_gcs(unsigned n)
{
	while (__atomic_load_n(&c->gcs, __ATOMIC_RELAXED) != n)
		usleep(1000);
}

static struct store *
the_store(void)
{
	struct store *s;

	assert_int_equal(commits_store(c, &s, &e), 0);
	return s;
}

static void
gc_ends_when_it_is_cancelled_its_caller_goes_or_pandod_stops(void **state)
{
	struct store *s = the_store();
	struct progress p = {.gone = gone};
	pthread_t thread;
	int r;

	(void)state;
	begin();
	commits_gc_cancel(c, &out);
	assert_string_equal(out.buf, "{\"cancelled\":0}");
	store_hold(s); /* what a gc waits for */
	pthread_create(&thread, NULL, gc_in_a_thread, &r);
	wait_for_gcs(1);
	begin();
	commits_gc_cancel(c, &out);
	assert_string_equal(out.buf, "{\"cancelled\":1}");
	pthread_join(thread, NULL);
	assert_int_equal(r, -ECANCELED);
	begin();
	assert_int_equal(commits_gc(c, &p, &out, &e), -ECANCELED);
	pthread_create(&thread, NULL, gc_in_a_thread, &r);
	wait_for_gcs(1);
	__atomic_store_n(&t->stopping, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	assert_int_equal(r, -ECANCELED);
	__atomic_store_n(&t->stopping, false, __ATOMIC_RELAXED);
	store_release(s);
	begin();
	read_answer(commits_gc(c, NULL, &out, &e));
}

static void
gc_begins_on_its_own_when_it_is_due(void **state)
{
	struct store *s = the_store();

	(void)state;
	begin();
	read_answer(commits_delete(c, ids[20], true, false, &out, &e));
	store_hold(s);
	__atomic_store_n(&s->deleted_ms, 0, __ATOMIC_RELAXED); /* a while ago */
	pthread_cond_signal(&c->care_changed);
	wait_for_gcs(1);
	/* And it can be cancelled; then it is not tried again at once. */
	begin();
	commits_gc_cancel(c, &out);
	wait_for_gcs(0);
	store_release(s);
	__atomic_store_n(&s->gc_ms, 0, __ATOMIC_RELAXED);
	/* One that comes to its end takes what was deleted off this. */
	while (__atomic_load_n(&s->deleted, __ATOMIC_RELAXED)) {
		pthread_cond_signal(&c->care_changed);
		usleep(10000);
	}
	begin();
	read_answer(commits_verify(c, NULL, &out, &e));
	assert_non_null(strstr(out.buf, "\"sound\":true"));
}

/* A byte of the file's end, where a pack says what it is. */
static void
break_pack(void)
{
	char command[300];

	snprintf(command, sizeof(command),
		"f=$(ls %s/store/packs/*.pack | head -1); printf x | dd of=$f bs=1 seek=$(($(stat -c %%s $f) - 5)) conv=notrunc status=none",
		home);
	assert_int_equal(system(command), 0);
}

static void
a_repair_saves_chunks_and_forgets_what_bases_were_read(void **state)
{
	struct db_base base = {.path = "/some/base", .size = STORE_PAGE}, *bases;
	uint64_t saved = 0;
	size_t n;

	(void)state;
	assert_int_equal(db_base_put(t->db, &base, &e), 0);
	begin();
	read_answer(commits_repair(c, NULL, &out, &e));
	assert_non_null(strstr(out.buf, "\"sound\":true"));
	assert_int_equal(db_bases(t->db, &bases, &n, &e), 0);
	assert_int_equal(n, 1);
	free(bases);
	close_all();
	break_pack();
	open_all();
	begin();
	read_answer(commits_verify(c, NULL, &out, &e));
	assert_non_null(strstr(out.buf, "\"sound\":false"));
	begin();
	read_answer(commits_repair(c, NULL, &out, &e));
	assert_non_null(strstr(out.buf, "\"sound\":true,\"damaged\":0"));
	assert_int_equal(json_u64(answer, json_get(answer, 0, "chunks_saved"), &saved), 0);
	assert_true(saved > 0);
	assert_int_equal(db_bases(t->db, &bases, &n, &e), 0);
	assert_int_equal(n, 0);
	free(bases);
	begin();
	read_answer(commits_gc(c, NULL, &out, &e));
	begin();
	read_answer(commits_verify(c, NULL, &out, &e));
	assert_non_null(strstr(out.buf, "\"sound\":true"));
}

static void
deletion_refuses_what_has_children_and_takes_pruned_ones_along(void **state)
{
	(void)state;
	begin();
	assert_int_equal(commits_delete(c, ids[9], false, false, &out, &e), -ENOTEMPTY);
	assert_int_equal(prune(&(struct prune_request){.keep_last = 3}), 22);
	begin();
	read_answer(commits_delete(c, ids[17], true, true, &out, &e));
	assert_int_equal(json_size(answer, json_get(answer, 0, "would_delete")), 3);
	begin();
	read_answer(commits_delete(c, ids[17], true, false, &out, &e));
	assert_int_equal(json_size(answer, json_get(answer, 0, "deleted")), 3);
	begin();
	read_answer(commits_history(c, ids[29], "", 1000, &out, &e));
	assert_int_equal(json_size(answer, json_get(answer, 0, "commits")), 20);
	/* Of the pruned ones on the way to 17 nothing is left. */
	begin();
	assert_int_equal(commits_history(c, ids[16], "", 10, &out, &e), -ENOENT);
	/* A stopped VM forgets what was deleted. */
	begin();
	read_answer(commits_delete(c, ids[7], true, false, &out, &e));
	assert_string_equal(t->vms[0]->row.commit, "");
}

/* A pandod that is killed in the middle of it: the next one finds every commit held or
 * pruned, and ends it. */
static void
a_prune_that_is_killed_is_done_by_the_next(void **state)
{
	static const char *const points[] = {"prune.going", "store.prune-renamed",
		"store.prune-renamed:5", "store.prune-synced", "prune.gone"};

	(void)state;
	for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		struct prune_request q = {.keep_last = 3};
		int status;
		pid_t pid;

		teardown(NULL);
		setup(NULL);
		close_all();
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			struct json_out o = {0};

			open_all();
			fault_arm(points[i]);
			commits_prune(c, &q, NULL, &o, &e);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		open_all();
		begin();
		read_answer(commits_verify(c, NULL, &out, &e));
		assert_non_null(strstr(out.buf, "\"sound\":true"));
		begin();
		read_answer(commits_history(c, ids[29], "", 1000, &out, &e));
		assert_int_equal(json_size(answer, json_get(answer, 0, "commits")), 20);
		prune(&q);
		for (unsigned n = 0; n < 30; n++)
			assert_int_equal(held(n),
				n == 5 || n == 7 || (n >= 17 && n < 20) || n >= 27);
	}
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* The row is older than the store, after a power cut: its commit was the VM's no more when
 * it was pruned. */
static void
a_vm_of_a_pruned_commit_goes_on_from_its_place_in_the_history(void **state)
{
	char path[PATHS_MAX];
	struct store *s;

	(void)state;
	close_all();
	snprintf(path, sizeof(path), "%s/store", home);
	assert_int_equal(store_open(path, &s, &e), 0);
	assert_int_equal(store_prune(s, (const char (*)[STORE_ID_MAX])ids + 7, 1, NULL, &e), 0);
	store_close(s);
	open_all();
	assert_int_equal(t->n_vms, 1);
	assert_string_equal(t->vms[0]->row.commit, ids[7]);
	assert_string_equal(commit_parent_of(c->store, &t->vms[0]->row), ids[7]);
}

/* With the last commit below it a pruned one goes, and no VM's row is asked. */
static void
a_vm_whose_commit_is_gone_is_committed_without_a_parent(void **state)
{
	char path[PATHS_MAX];
	struct store *s;

	(void)state;
	close_all();
	snprintf(path, sizeof(path), "%s/store", home);
	assert_int_equal(store_open(path, &s, &e), 0);
	assert_int_equal(store_prune(s, (const char (*)[STORE_ID_MAX])ids + 7, 1, NULL, &e), 0);
	store_close(s);
	open_all();
	assert_int_equal(store_prune(c->store, (const char (*)[STORE_ID_MAX])ids, 7, NULL, &e), 0);
	assert_int_equal(store_delete(c->store, ids[8], STORE_DELETE_RECURSIVE, NULL, &e), 0);
	assert_string_equal(t->vms[0]->row.commit, ids[7]);
	assert_null(commit_parent_of(c->store, &t->vms[0]->row));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(pages_make_the_whole_list_and_each_history),
		TEST(without_rules_only_what_has_expired_goes),
		TEST(what_is_older_goes_but_not_what_is_tagged_or_a_vms),
		TEST(the_last_of_each_line_stay),
		TEST(both_rules_must_select_it),
		TEST(a_label_is_a_filter_and_only_such_are_counted),
		TEST(an_expired_one_among_the_last_stays),
		TEST(what_a_call_works_with_stays),
		TEST(what_is_going_is_run_by_nobody),
		TEST(labels_of_pandos_own_are_refused),
		TEST(gc_ends_when_it_is_cancelled_its_caller_goes_or_pandod_stops),
		TEST(gc_begins_on_its_own_when_it_is_due),
		TEST(a_repair_saves_chunks_and_forgets_what_bases_were_read),
		TEST(deletion_refuses_what_has_children_and_takes_pruned_ones_along),
		TEST(a_prune_that_is_killed_is_done_by_the_next),
		TEST(a_vm_of_a_pruned_commit_goes_on_from_its_place_in_the_history),
		TEST(a_vm_whose_commit_is_gone_is_committed_without_a_parent),
	};

	log_init("test", LOG_LEVEL_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
