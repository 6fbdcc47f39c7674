/* A run of a swarm over a host that exists only here: VMs are names in a table, commands
 * are scripted by the child's name. What is tested is the library: order, ties, retries,
 * limits, cancellation, and that nothing is left behind. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/io.h"
#include "common/json.h"
#include "swarm/record.h"
#include "swarm/run.h"

struct script {
	const char *child;
	int work_status;
	const char *score; /* what the scorer prints; NULL: "1\n" */
	int score_status;
	int broken; /* so many infrastructure failures of its work */
	unsigned sleep_ms;
	bool hang; /* until its VM is deleted */
	bool timed_out;
};

#define VMS_MAX 64

struct fake {
	pthread_mutex_t lock;
	pthread_cond_t gone;
	struct script scripts[8];
	char vms[VMS_MAX][SWARM_ID_SIZE]; /* "" once deleted */
	size_t made;
	unsigned branch_calls, works[8], scores, peak, working, sweeps, hanging;
	unsigned boots, setups, aliases;
	int branch_error, setup_status, get_error;
	char seen_env[400];
	char kept_alias[100];
};

static void
make_vm(struct fake *f, char *ret_id)
{
	assert_true(f->made < VMS_MAX);
	snprintf(f->vms[f->made], SWARM_ID_SIZE, "vm%zu", f->made);
	strcpy(ret_id, f->vms[f->made++]);
}

static bool
alive(struct fake *f, const char *vm)
{
	for (size_t i = 0; i < f->made; i++)
		if (strcmp(f->vms[i], vm) == 0)
			return true;
	return false;
}

static size_t
count_alive(struct fake *f)
{
	size_t n = 0;

	for (size_t i = 0; i < f->made; i++)
		n += f->vms[i][0] != '\0';
	return n;
}

static int
fake_find(void *ctx, const char *vm, char ret_id[SWARM_ID_SIZE], struct err *e)
{
	(void)ctx;
	if (strcmp(vm, "warm") != 0)
		return err_set(e, -ENOENT, "no VM named \"%s\"", vm);
	strcpy(ret_id, "base");
	return 0;
}

static int
fake_boot(void *ctx, const struct swarm_machine *machine, const char *run,
	char ret_id[SWARM_ID_SIZE], struct err *e)
{
	struct fake *f = ctx;

	(void)machine;
	(void)run;
	(void)e;
	f->boots++;
	make_vm(f, ret_id);
	return 0;
}

static int
fake_branch(void *ctx, const char *vm, const char *run, size_t count,
	char (*ret_ids)[SWARM_ID_SIZE], uint64_t *ret_pause_us, struct err *e)
{
	struct fake *f = ctx;

	(void)vm;
	(void)run;
	pthread_mutex_lock(&f->lock);
	f->branch_calls++;
	if (f->branch_error) {
		int rc = f->branch_error;

		pthread_mutex_unlock(&f->lock);
		return err_set(e, rc, "no branch today");
	}
	for (size_t i = 0; i < count; i++)
		make_vm(f, ret_ids[i]);
	pthread_mutex_unlock(&f->lock);
	*ret_pause_us = 300;
	return 0;
}

static const char *
env_of(const struct swarm_step *step, const char *key)
{
	for (size_t i = 0; i < step->n_env; i++)
		if (strcmp(step->env[i].key, key) == 0)
			return step->env[i].value;
	return NULL;
}

/* Lock held. */
static int
work(struct fake *f, struct script *s, const char *vm, struct swarm_result *ret,
	struct err *e)
{
	int rc = 0;

	f->works[s - f->scripts]++;
	f->working++;
	if (f->working > f->peak)
		f->peak = f->working;
	if (s->sleep_ms) {
		pthread_mutex_unlock(&f->lock);
		usleep(s->sleep_ms * 1000);
		pthread_mutex_lock(&f->lock);
	}
	f->hanging += s->hang;
	while (s->hang && alive(f, vm))
		pthread_cond_wait(&f->gone, &f->lock);
	f->working--;
	if (!alive(f, vm))
		return err_set(e, -EPIPE, "the connection ended");
	if (s->broken > 0) {
		s->broken--;
		rc = err_set(e, -EPIPE, "the connection ended");
	}
	ret->kind = s->timed_out ? SWARM_TIMED_OUT : SWARM_EXITED;
	ret->value = s->work_status;
	return rc;
}

static int
fake_exec(void *ctx, const char *vm, const struct swarm_step *step,
	struct swarm_result *ret, struct err *e)
{
	struct fake *f = ctx;
	const char *child = env_of(step, "PANDO_CHILD");
	struct script *s = f->scripts;
	const char *text;
	int rc = 0;

	ret->kind = SWARM_EXITED;
	pthread_mutex_lock(&f->lock);
	if (strcmp(step->argv[0], "setup") == 0) {
		f->setups++;
		ret->value = f->setup_status;
		swarm_tail_add(&ret->err, "cc: not found", 13);
		pthread_mutex_unlock(&f->lock);
		return 0;
	}
	while (s->child && strcmp(s->child, child) != 0)
		s++;
	if (strcmp(step->argv[0], "work") == 0) {
		rc = work(f, s, vm, ret, e);
		snprintf(f->seen_env, sizeof(f->seen_env), "%s/%s/%s", child,
			env_of(step, "PANDO_CHILD_INDEX"),
			env_of(step, "KEY") ? env_of(step, "KEY") : "");
	} else {
		f->scores++;
		text = s->score ? s->score : "1\n";
		swarm_tail_add(&ret->out, text, strlen(text));
		ret->value = s->score_status;
	}
	pthread_mutex_unlock(&f->lock);
	return rc;
}

static int
fake_put(void *ctx, const char *vm, const char *from, const char *to, struct err *e)
{
	(void)ctx, (void)vm, (void)from, (void)to, (void)e;
	return 0;
}

static int
fake_get(void *ctx, const char *vm, const char *from, const char *to, struct err *e)
{
	struct fake *f = ctx;

	(void)from;
	if (f->get_error)
		return err_set(e, f->get_error, "no such file in the guest");
	return io_write_file_atomic(to, vm, strlen(vm), 0644, e);
}

static int
fake_alias(void *ctx, const char *vm, const char *alias, struct err *e)
{
	struct fake *f = ctx;

	(void)vm, (void)e;
	f->aliases++;
	snprintf(f->kept_alias, sizeof(f->kept_alias), "%s", alias);
	return 0;
}

static int
fake_delete(void *ctx, const char *vm, struct err *e)
{
	struct fake *f = ctx;

	(void)e;
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->made; i++)
		if (strcmp(f->vms[i], vm) == 0)
			f->vms[i][0] = '\0';
	pthread_cond_broadcast(&f->gone);
	pthread_mutex_unlock(&f->lock);
	return 0;
}

static int
fake_sweep(void *ctx, const char *run, struct err *e)
{
	struct fake *f = ctx;

	(void)run, (void)e;
	pthread_mutex_lock(&f->lock);
	f->sweeps++;
	for (size_t i = 0; i < f->made; i++)
		f->vms[i][0] = '\0';
	pthread_cond_broadcast(&f->gone);
	pthread_mutex_unlock(&f->lock);
	return 0;
}

static const struct swarm_ops ops = {
	.find = fake_find,
	.boot = fake_boot,
	.branch = fake_branch,
	.exec = fake_exec,
	.put = fake_put,
	.get = fake_get,
	.alias = fake_alias,
	.delete_vm = fake_delete,
	.sweep = fake_sweep,
};

/* Everything a test needs, in a folder of its own. */
struct setting {
	struct fake fake;
	struct swarm_spec *spec;
	struct swarm_options options;
	struct swarm_summary sum;
	struct err e;
	char folder[64];
	char output[96];
};

static struct setting *
begin(const char *head, const struct script *scripts)
{
	struct setting *t = calloc(1, sizeof(*t));
	char text[4000];
	size_t n;

	assert_non_null(t);
	pthread_mutex_init(&t->fake.lock, NULL);
	pthread_cond_init(&t->fake.gone, NULL);
	n = (size_t)snprintf(text, sizeof(text),
		"%s\n[work]\ncommand = [\"work\"]\n[score]\n"
		"command = [\"score\"]\n%s",
		head, strstr(head, "score_failed") ? "failed_work = true\n" : "");
	for (size_t i = 0; scripts[i].child; i++) {
		t->fake.scripts[i] = scripts[i];
		n += (size_t)snprintf(text + n, sizeof(text) - n,
			"[[child]]\nname = \"%s\"\n", scripts[i].child);
	}
	if (swarm_spec_parse("t.toml", text, n, &t->spec, &t->e) < 0)
		fail_msg("%s", t->e.msg);
	strcpy(t->folder, "/tmp/test-swarm-XXXXXX");
	assert_non_null(mkdtemp(t->folder));
	snprintf(t->output, sizeof(t->output), "%s/out", t->folder);
	t->options = (struct swarm_options){
		.spec_path = "t.toml",
		.spec_sha256 = "00",
		.version = "test",
		.output = t->output,
		.cancel_fd = -1,
		.view_fd = -1,
		.record_copy_fd = -1,
	};
	return t;
}

static int
go(struct setting *t)
{
	return swarm_run(t->spec, &ops, &t->fake, &t->options, &t->sum, &t->e);
}

static void
end(struct setting *t)
{
	io_remove_tree(t->folder, NULL);
	swarm_spec_free(t->spec);
	pthread_mutex_destroy(&t->fake.lock);
	pthread_cond_destroy(&t->fake.gone);
	free(t);
}

/* Lines of the record whose "event" is `event`; each line of it must be JSON. last gets
 * the last of these. */
static unsigned
record_events(struct setting *t, const char *event, char *last, size_t cap)
{
	char path[128], *text, *line, *next;
	unsigned n = 0;
	size_t len;

	snprintf(path, sizeof(path), "%s/record.jsonl", t->output);
	assert_int_equal(io_read_file(path, 1 << 20, &text, &len, NULL), 0);
	assert_true(len && text[len - 1] == '\n');
	for (line = text; *line; line = next) {
		struct json *j;
		char name[32];

		next = strchr(line, '\n') + 1;
		assert_int_equal(
			json_parse(line, (size_t)(next - 1 - line), 4096, &j, NULL), 0);
		assert_int_equal(
			json_str(j, json_get(j, 0, "event"), name, sizeof(name)), 0);
		if (strcmp(name, event) == 0) {
			n++;
			if (last)
				snprintf(last, cap, "%.*s", (int)(next - 1 - line), line);
		}
		json_free(j);
	}
	free(text);
	return n;
}

#define FROM "from = \"warm\"\n"

static void
highest_score_wins_and_the_rest_is_deleted(void **state)
{
	struct setting *t = begin(FROM "parallel = 2\ncollect = [\"/root/out.patch\"]",
		(struct script[]){{.child = "a", .score = "3\n"},
			{.child = "b", .score = "tests\n12.5\n\n"},
			{.child = "c", .score = "-1"}, {0}});
	char line[2000], path[200], *text;
	size_t len;

	(void)state;
	assert_int_equal(go(t), 0);
	assert_string_equal(t->sum.winner, "b");
	assert_true(t->sum.score > 12.4 && t->sum.score < 12.6);
	assert_string_equal(t->sum.reason, "highest score (12.5); the next is a with 3");
	assert_int_equal(t->sum.n_scored, 3);
	assert_int_equal(count_alive(&t->fake), 0);
	assert_int_equal(t->fake.branch_calls, 1);
	snprintf(path, sizeof(path), "%s/winner/out.patch", t->output);
	assert_int_equal(io_read_file(path, 100, &text, &len, NULL), 0);
	assert_string_equal(text, "vm1");
	free(text);
	snprintf(path, sizeof(path), "%s/a", t->output);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(record_events(t, "child", NULL, 0), 3);
	assert_int_equal(record_events(t, "end", NULL, 0), 1);
	assert_int_equal(record_events(t, "choice", line, sizeof(line)), 1);
	assert_non_null(strstr(line, "\"ranking\":[{\"child\":\"b\",\"score\":12.5},{"
				     "\"child\":\"a\",\"score\":3},"
				     "{\"child\":\"c\",\"score\":-1}]"));
	end(t);
}

static void
equal_scores_go_to_the_first_in_the_spec_whoever_is_faster(void **state)
{
	struct script slow_first[] = {{.child = "slow", .score = "7", .sleep_ms = 60},
		{.child = "quick", .score = "7"}, {.child = "last", .score = "6"}, {0}};

	(void)state;
	for (unsigned parallel = 1; parallel <= 3; parallel++) {
		struct setting *t = begin(FROM, slow_first);

		t->options.parallel = parallel;
		assert_int_equal(go(t), 0);
		assert_string_equal(t->sum.winner, "slow");
		assert_string_equal(t->sum.reason,
			"highest score (7), which 2 children share; of these it stands first in the spec, before quick");
		assert_int_equal(count_alive(&t->fake), 0);
		end(t);
	}
}

static void
broken_infrastructure_is_retried_once_from_a_new_branch(void **state)
{
	struct setting *t =
		begin(FROM, (struct script[]){{.child = "a", .score = "9", .broken = 1},
				    {.child = "b", .score = "1"}, {0}});
	char line[2000];

	(void)state;
	assert_int_equal(go(t), 0);
	assert_string_equal(t->sum.winner, "a");
	assert_int_equal(t->fake.works[0], 2);
	assert_int_equal(t->fake.branch_calls, 2);
	assert_int_equal(count_alive(&t->fake), 0);
	assert_int_equal(record_events(t, "retry", line, sizeof(line)), 1);
	assert_non_null(strstr(line, "the connection ended"));
	end(t);
}

static void
infrastructure_that_fails_twice_fails_the_child(void **state)
{
	struct setting *t =
		begin(FROM, (struct script[]){{.child = "a", .score = "9", .broken = 5},
				    {.child = "b", .score = "1"}, {0}});

	(void)state;
	assert_int_equal(go(t), 0);
	assert_string_equal(t->sum.winner, "b");
	assert_int_equal(t->fake.works[0], 2);
	assert_int_equal(t->sum.n_failed, 1);
	assert_int_equal(count_alive(&t->fake), 0);
	end(t);
}

static void
failing_command_is_never_retried_nor_scored(void **state)
{
	struct setting *t = begin(
		FROM, (struct script[]){{.child = "a", .work_status = 2, .score = "99"},
			      {.child = "b", .score = "99", .timed_out = true},
			      {.child = "c", .score = "1"}, {0}});
	char line[4000];

	(void)state;
	assert_int_equal(go(t), 0);
	assert_string_equal(t->sum.winner, "c");
	assert_int_equal(t->fake.works[0], 1);
	assert_int_equal(t->fake.works[1], 1);
	assert_int_equal(t->fake.scores, 1);
	record_events(t, "choice", line, sizeof(line));
	assert_non_null(strstr(line, "its command failed: exit status 2"));
	assert_non_null(strstr(line, "its command failed: its time limit was over"));
	end(t);
}

static void
failed_work_is_scored_where_the_spec_says_so(void **state)
{
	struct setting *t = begin(FROM "# score_failed\n",
		(struct script[]){{.child = "a", .work_status = 2, .score = "99"},
			{.child = "b", .score = "1"}, {0}});

	(void)state;
	assert_int_equal(go(t), 0);
	assert_string_equal(t->sum.winner, "a");
	end(t);
}

static void
run_whose_scorers_print_no_number_fails(void **state)
{
	struct setting *t =
		begin(FROM, (struct script[]){{.child = "a", .score = "done\n"},
				    {.child = "b", .score = "\n"}, {0}});

	(void)state;
	assert_int_equal(err_exit_code(go(t)), EXIT_FAILED);
	assert_string_equal(t->e.msg,
		"no winner: none of the children has a score; the first, \"a\": the score command's last line must be a number, not \"done\"");
	assert_null(t->sum.winner);
	assert_int_equal(count_alive(&t->fake), 0);
	assert_int_equal(record_events(t, "end", NULL, 0), 1);
	end(t);
}

static void
scorer_that_fails_gives_no_score_whatever_it_prints(void **state)
{
	struct setting *t = begin(
		FROM, (struct script[]){{.child = "a", .score = "100", .score_status = 1},
			      {.child = "b", .score = "1"}, {0}});

	(void)state;
	assert_int_equal(go(t), 0);
	assert_string_equal(t->sum.winner, "b");
	end(t);
}

static void
no_more_children_work_than_the_bound_allows(void **state)
{
	struct script s[] = {{.child = "a", .sleep_ms = 20},
		{.child = "b", .sleep_ms = 20}, {.child = "c", .sleep_ms = 20},
		{.child = "d", .sleep_ms = 20}, {.child = "e", .sleep_ms = 20},
		{.child = "f", .sleep_ms = 20}, {0}};
	struct setting *t = begin(FROM "parallel = 3", s);

	(void)state;
	assert_int_equal(go(t), 0);
	assert_int_equal(t->fake.peak, 3);
	end(t);
	t = begin(FROM "parallel = 3", s);
	t->options.parallel = 1;
	assert_int_equal(go(t), 0);
	assert_int_equal(t->fake.peak, 1);
	assert_string_equal(t->sum.winner, "a");
	end(t);
}

static void *
cancel_when_two_hang(void *arg)
{
	struct setting *t = arg;
	uint64_t one = 1;

	for (unsigned hanging = 0; hanging < 2; usleep(1000)) {
		pthread_mutex_lock(&t->fake.lock);
		hanging = t->fake.hanging;
		pthread_mutex_unlock(&t->fake.lock);
	}
	assert_int_equal(io_write_full(t->options.cancel_fd, &one, sizeof(one)), 0);
	return NULL;
}

static void
cancellation_deletes_all_children_and_says_so(void **state)
{
	struct setting *t = begin(FROM "parallel = 2",
		(struct script[]){{.child = "a", .hang = true},
			{.child = "b", .hang = true}, {.child = "c"}, {0}});
	pthread_t thread;
	char line[2000];

	(void)state;
	t->options.cancel_fd = eventfd(0, EFD_NONBLOCK);
	assert_int_equal(pthread_create(&thread, NULL, cancel_when_two_hang, t), 0);
	assert_int_equal(err_exit_code(go(t)), EXIT_CANCELLED);
	pthread_join(thread, NULL);
	assert_int_equal(count_alive(&t->fake), 0);
	assert_int_equal(t->fake.works[2], 0);
	assert_int_equal(t->fake.branch_calls, 1);
	assert_int_equal(record_events(t, "retry", NULL, 0), 0);
	record_events(t, "end", line, sizeof(line));
	assert_non_null(strstr(line, "\"exit_status\":7"));
	close(t->options.cancel_fd);
	end(t);
}

static void
booted_machine_is_set_up_once_and_deleted(void **state)
{
	struct setting *t =
		begin("[machine]\nmem_size_mib = 256\n[setup]\ncommand = [\"setup\"]",
			(struct script[]){{.child = "a"}, {.child = "b"}, {0}});

	(void)state;
	assert_int_equal(go(t), 0);
	assert_int_equal(t->fake.boots, 1);
	assert_int_equal(t->fake.setups, 1);
	assert_int_equal(count_alive(&t->fake), 0);
	end(t);
}

static void
set_up_that_fails_ends_the_run_before_any_branch(void **state)
{
	struct setting *t = begin("[machine]\n[setup]\ncommand = [\"setup\"]",
		(struct script[]){{.child = "a"}, {0}});

	(void)state;
	t->fake.setup_status = 127;
	assert_int_equal(err_exit_code(go(t)), EXIT_FAILED);
	assert_string_equal(t->e.msg,
		"the set-up command failed: exit status 127; its errors end with: cc: not found");
	assert_int_equal(t->fake.branch_calls, 0);
	assert_int_equal(count_alive(&t->fake), 0);
	end(t);
}

static void
kept_winner_gets_its_name_and_only_its_parent_stays(void **state)
{
	struct setting *t = begin("name = \"w\"\nkeep_winner = true\n[machine]",
		(struct script[]){{.child = "a"}, {.child = "b", .score = "2"}, {0}});

	(void)state;
	assert_int_equal(go(t), 0);
	assert_string_equal(t->sum.winner_vm, "vm2");
	assert_string_equal(t->fake.kept_alias, "w-b");
	assert_true(alive(&t->fake, "vm2"));
	assert_true(alive(&t->fake, "vm0"));
	assert_int_equal(count_alive(&t->fake), 2);
	end(t);
}

static void
winner_whose_files_cannot_be_collected_is_kept(void **state)
{
	struct setting *t = begin(FROM "collect = [\"/root/x\"]",
		(struct script[]){{.child = "a"}, {.child = "b", .score = "2"}, {0}});

	(void)state;
	t->fake.get_error = -ENOENT;
	assert_int_equal(err_exit_code(go(t)), EXIT_NOT_FOUND);
	assert_string_equal(
		t->e.msg, "collecting /root/x from b: no such file in the guest");
	assert_true(alive(&t->fake, "vm1"));
	assert_int_equal(count_alive(&t->fake), 1);
	end(t);
}

static void
files_of_all_scored_children_are_collected_where_asked(void **state)
{
	struct setting *t = begin(FROM "collect = [\"/root/x\"]\ncollect_from = \"all\"",
		(struct script[]){{.child = "a"}, {.child = "b", .score = "2"},
			{.child = "c", .score = "no"}, {0}});
	char path[200];

	(void)state;
	assert_int_equal(go(t), 0);
	snprintf(path, sizeof(path), "%s/a/x", t->output);
	assert_int_equal(access(path, F_OK), 0);
	snprintf(path, sizeof(path), "%s/winner/x", t->output);
	assert_int_equal(access(path, F_OK), 0);
	snprintf(path, sizeof(path), "%s/c/x", t->output);
	assert_int_equal(access(path, F_OK), -1);
	end(t);
}

static void
missing_vm_is_not_found_and_nothing_is_retried(void **state)
{
	struct setting *t =
		begin("from = \"cold\"", (struct script[]){{.child = "a"}, {0}});

	(void)state;
	assert_int_equal(err_exit_code(go(t)), EXIT_NOT_FOUND);
	assert_string_equal(t->e.msg, "no VM named \"cold\"");
	end(t);
}

static void
branch_that_fails_is_tried_twice_unless_the_request_was_wrong(void **state)
{
	struct setting *t = begin(FROM, (struct script[]){{.child = "a"}, {0}});

	(void)state;
	t->fake.branch_error = -EIO;
	assert_int_equal(go(t), -EIO);
	assert_string_equal(t->e.msg, "branching warm: no branch today");
	assert_int_equal(t->fake.branch_calls, 2);
	end(t);
	t = begin(FROM, (struct script[]){{.child = "a"}, {0}});
	t->fake.branch_error = -EINVAL;
	assert_int_equal(go(t), -EINVAL);
	assert_int_equal(t->fake.branch_calls, 1);
	end(t);
}

static void
output_folder_with_something_in_it_is_refused(void **state)
{
	struct setting *t = begin(FROM, (struct script[]){{.child = "a"}, {0}});

	(void)state;
	assert_int_equal(go(t), 0);
	assert_int_equal(err_exit_code(go(t)), EXIT_CONFLICT);
	assert_non_null(strstr(t->e.msg, "is not empty"));
	assert_int_equal(t->fake.works[0], 1);
	end(t);
}

static void
command_knows_which_child_it_is_and_values_are_not_recorded(void **state)
{
	struct setting *t = begin(FROM, (struct script[]){{.child = "a"}, {0}});
	char line[2000];

	(void)state;
	end(t);
	t = begin(FROM "[[child]]\nname = \"z\"\nenv = { KEY = \"hush-hush\" }",
		(struct script[]){{0}});
	t->fake.scripts[0] = (struct script){.child = "z"};
	assert_int_equal(go(t), 0);
	assert_string_equal(t->fake.seen_env, "z/0/hush-hush");
	assert_int_equal(record_events(t, "child", line, sizeof(line)), 1);
	assert_non_null(strstr(line, "\"env_names\":[\"KEY\"]"));
	assert_null(strstr(line, "hush"));
	end(t);
}

static void
score_is_the_number_on_the_last_line(void **state)
{
	static const struct {
		const char *text;
		double score; /* NaN: refused */
	} cases[] = {
		{"1", 1},
		{"1\n", 1},
		{"x\n -2.5e3 \r\n\n", -2500},
		{"0", 0},
		{"+7", 7},
		{"", NAN},
		{"\n \n", NAN},
		{"1 2", NAN},
		{"inf", NAN},
		{"nan", NAN},
		{"0x10", NAN},
		{"1e999", NAN},
		{"5\nok", NAN},
		{"e", NAN},
		{"1e", NAN},
		{"--1", NAN},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct swarm_tail tail = {.len = 0};
		double v = -77;
		int rc;

		swarm_tail_add(&tail, cases[i].text, strlen(cases[i].text));
		rc = swarm_parse_score(&tail, &v, NULL);
		if (isnan(cases[i].score)) {
			assert_int_equal(rc, -EINVAL);
			assert_true(v == -77);
		} else {
			assert_int_equal(rc, 0);
			assert_true(v == cases[i].score);
		}
	}
}

static void
tail_keeps_the_last_bytes_and_counts_all(void **state)
{
	struct swarm_tail *t = calloc(1, sizeof(*t));
	char block[1000];

	(void)state;
	for (int i = 0; i < 26; i++) {
		memset(block, 'a' + i, sizeof(block));
		swarm_tail_add(t, block, sizeof(block));
	}
	assert_int_equal(t->total_bytes, 26000);
	assert_int_equal(t->len, SWARM_TAIL_SIZE);
	assert_int_equal(t->text[0], 'v');
	assert_int_equal(t->text[SWARM_TAIL_SIZE - 1], 'z');
	free(t);
	t = calloc(1, sizeof(*t) + 8192);
	memset(block, 'x', sizeof(block));
	for (int i = 0; i < 3; i++)
		swarm_tail_add(t, block, 7);
	assert_int_equal(t->len, 21);
	free(t);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(highest_score_wins_and_the_rest_is_deleted),
		cmocka_unit_test(
			equal_scores_go_to_the_first_in_the_spec_whoever_is_faster),
		cmocka_unit_test(broken_infrastructure_is_retried_once_from_a_new_branch),
		cmocka_unit_test(infrastructure_that_fails_twice_fails_the_child),
		cmocka_unit_test(failing_command_is_never_retried_nor_scored),
		cmocka_unit_test(failed_work_is_scored_where_the_spec_says_so),
		cmocka_unit_test(run_whose_scorers_print_no_number_fails),
		cmocka_unit_test(scorer_that_fails_gives_no_score_whatever_it_prints),
		cmocka_unit_test(no_more_children_work_than_the_bound_allows),
		cmocka_unit_test(cancellation_deletes_all_children_and_says_so),
		cmocka_unit_test(booted_machine_is_set_up_once_and_deleted),
		cmocka_unit_test(set_up_that_fails_ends_the_run_before_any_branch),
		cmocka_unit_test(kept_winner_gets_its_name_and_only_its_parent_stays),
		cmocka_unit_test(winner_whose_files_cannot_be_collected_is_kept),
		cmocka_unit_test(files_of_all_scored_children_are_collected_where_asked),
		cmocka_unit_test(missing_vm_is_not_found_and_nothing_is_retried),
		cmocka_unit_test(
			branch_that_fails_is_tried_twice_unless_the_request_was_wrong),
		cmocka_unit_test(output_folder_with_something_in_it_is_refused),
		cmocka_unit_test(
			command_knows_which_child_it_is_and_values_are_not_recorded),
		cmocka_unit_test(score_is_the_number_on_the_last_line),
		cmocka_unit_test(tail_keeps_the_last_bytes_and_counts_all),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
