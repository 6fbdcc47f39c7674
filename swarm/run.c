#include "swarm/run.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "swarm/record.h"
#include "swarm/view.h"

#define PATH_SIZE \
	5400 /* the output folder, a child's name and the last part of a guest's path */

/* One child's account, from its branch to its end. Written by the worker that has it. */
struct child {
	const struct swarm_child_spec *spec;
	size_t index;
	char vm[SWARM_ID_SIZE]; /* "": none (deleted) */
	unsigned attempts;
	uint64_t put_ms, work_ms, score_ms;
	bool worked, was_scored; /* work, score hold a result */
	struct swarm_result work, score_result;
	bool has_score;
	double score;
	char reason[300]; /* why it has no score */
};

struct run {
	const struct swarm_spec *spec;
	const struct swarm_ops *ops;
	void *ctx;
	const struct swarm_options *options;
	struct swarm_summary *sum;
	char base[SWARM_ID_SIZE];
	bool base_is_ours;

	struct child *children;
	struct swarm_row *rows;
	struct swarm_view view;
	struct swarm_record record;

	atomic_bool cancelled;
	int done_fd; /* eventfd: a worker ended */

	pthread_mutex_t lock; /* the rest */
	size_t next;	      /* child to be taken by a worker */
	struct child *best;
	size_t workers; /* still at it */
};

int
swarm_parse_score(const struct swarm_tail *out, double *ret, struct err *e)
{
	const char *end = out->text + out->len, *start;
	char line[80], shown[200], *rest;
	size_t n;
	double v;

	while (end > out->text && isspace((unsigned char)end[-1]))
		end--;
	if (end == out->text)
		return err_set(e, -EINVAL,
			"the score command printed nothing; the last line of its standard output must be a number");
	for (start = end; start > out->text && start[-1] != '\n'; start--)
		;
	while (isspace((unsigned char)*start))
		start++;
	n = (size_t)(end - start);
	log_escape(shown, sizeof(shown), start, n < 60 ? n : 60);
	/* Decimal digits only: strtod also takes inf, nan and 0x1p3, which scorers print
	 * by mistake. */
	if (n < sizeof(line)) {
		memcpy(line, start, n);
		line[n] = '\0';
		if (line[strspn(line, "0123456789+-.eE")] == '\0') {
			v = strtod(line, &rest);
			if (rest != line && !*rest && isfinite(v)) {
				*ret = v;
				return 0;
			}
		}
	}
	return err_set(e, -EINVAL,
		"the score command's last line must be a number, not \"%s\"", shown);
}

static uint64_t
ms_since(uint64_t start_ns)
{
	return (io_now_ns() - start_ns) / 1000000;
}

static bool
poll_cancel(struct run *r)
{
	struct pollfd p = {.fd = r->options->cancel_fd, .events = POLLIN};

	if (p.fd >= 0 && poll(&p, 1, 0) > 0)
		atomic_store(&r->cancelled, true);
	return atomic_load(&r->cancelled);
}

static int
check_cancelled(struct run *r, struct err *e)
{
	return poll_cancel(r) ? err_set(e, -ECANCELED, "cancelled") : 0;
}

/* Names are known only when the VMs are: a child's command sees which one it is. */
static int
exec_child(struct run *r, struct child *c, const struct swarm_step *step,
	struct swarm_result *ret, uint64_t *ret_ms, struct err *e)
{
	cleanup_free struct swarm_env *env = calloc(step->n_env + 3, sizeof(*env));
	struct swarm_step with = *step;
	char index[24];
	uint64_t start = io_now_ns();
	int rc;

	if (!env)
		return err_set(e, -ENOMEM, "out of memory");
	snprintf(index, sizeof(index), "%zu", c->index);
	env[0] = (struct swarm_env){"PANDO_SWARM", r->sum->run};
	env[1] = (struct swarm_env){"PANDO_CHILD", c->spec->name};
	env[2] = (struct swarm_env){"PANDO_CHILD_INDEX", index};
	if (step->n_env)
		memcpy(env + 3, step->env, step->n_env * sizeof(*env));
	with.env = env;
	with.n_env = step->n_env + 3;
	memset(ret, 0, sizeof(*ret));
	rc = r->ops->exec(r->ctx, c->vm, &with, ret, e);
	*ret_ms = ms_since(start);
	return rc;
}

static void
delete_vm(struct run *r, const char *name, char vm[SWARM_ID_SIZE])
{
	struct json_out o = {0};
	struct err e = {0};
	int rc;

	if (!vm[0])
		return;
	rc = r->ops->delete_vm(r->ctx, vm, &e);
	if (rc < 0 && !atomic_load(&r->cancelled))
		swarm_view_note(
			&r->view, "%s: vm %s was not deleted: %s", name, vm, e.msg);
	swarm_record_begin(&r->record, &o, "deleted");
	json_out_str(&o, "child", name);
	json_out_str(&o, "vm", vm);
	if (rc < 0)
		json_out_str(&o, "error", e.msg);
	swarm_record_end(&r->record, &o);
	vm[0] = '\0'; /* what is left, the sweep at the end takes */
}

/* Where on the host a collected path lies: <output>/<child>/<its last part>. */
static void
collected_path(
	struct run *r, const struct child *c, const char *path, char *dst, size_t cap)
{
	size_t end = strlen(path), start;

	while (end > 1 && path[end - 1] == '/')
		end--;
	for (start = end; start > 0 && path[start - 1] != '/'; start--)
		;
	snprintf(dst, cap, "%s/%s/%.*s", r->sum->output, c->spec->name,
		(int)(end - start), path + start);
}

static int
collect_one(struct run *r, struct child *c, const char *path, struct err *e)
{
	char to[PATH_SIZE], note[200];
	struct err why = {0};
	int rc;

	snprintf(to, sizeof(to), "%s/%s", r->sum->output, c->spec->name);
	rc = io_mkdir_p(to, 0777, e);
	if (rc < 0)
		return rc;
	collected_path(r, c, path, to, sizeof(to));
	for (int attempt = 1; attempt <= 2; attempt++) {
		rc = check_cancelled(r, e);
		if (rc < 0)
			return rc;
		rc = r->ops->get(r->ctx, c->vm, path, to, &why);
		if (rc == 0 || rc == -ENOENT)
			break;
		io_remove_tree(to, NULL);
		log_escape(note, sizeof(note), why.msg, strlen(why.msg));
		if (attempt == 1)
			swarm_view_note(&r->view,
				"%s: collecting %s failed, once more: %s", c->spec->name,
				path, note);
	}
	if (rc < 0)
		return err_set(
			e, rc, "collecting %s from %s: %s", path, c->spec->name, why.msg);
	return 0;
}

/* Every path; the first that fails ends it. */
static int
collect(struct run *r, struct child *c, struct err *e)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < r->spec->n_collect; i++) {
		struct json_out o = {0};
		uint64_t start = io_now_ns();
		struct err why = {0};

		rc = collect_one(r, c, r->spec->collect[i], &why);
		swarm_record_begin(&r->record, &o, "collected");
		json_out_str(&o, "child", c->spec->name);
		json_out_str(&o, "path", r->spec->collect[i]);
		json_out_u64(&o, "ms", ms_since(start));
		if (rc < 0)
			json_out_str(&o, "error", why.msg);
		swarm_record_end(&r->record, &o);
		if (rc < 0)
			err_set(e, rc, "%s", why.msg);
	}
	return rc;
}

static void
fail_child(struct child *c, const char *what, const struct swarm_result *result)
{
	char how[120];

	swarm_result_text(result, how, sizeof(how));
	snprintf(c->reason, sizeof(c->reason), "%s failed: %s", what, how);
}

static bool
succeeded(const struct swarm_result *result)
{
	return result->kind == SWARM_EXITED && result->value == 0;
}

/* Files, work, score. Negative: the infrastructure failed. 0: the child has a score or a
 * reason why not. */
static int
attempt_child(struct run *r, struct child *c, struct err *e)
{
	const struct swarm_step *work = &c->spec->work;
	uint64_t start = io_now_ns();
	struct err why = {0};
	int rc;

	c->worked = c->was_scored = c->has_score = false;
	c->reason[0] = '\0';
	if (work->n_files)
		swarm_view_set(&r->view, c->index, SWARM_PUTTING, 0, NULL);
	for (size_t i = 0; i < work->n_files; i++) {
		rc = check_cancelled(r, e);
		if (rc == 0)
			rc = r->ops->put(
				r->ctx, c->vm, work->files[i].from, work->files[i].to, e);
		if (rc < 0)
			return err_wrap(e, rc, "putting %s", work->files[i].to);
	}
	c->put_ms = ms_since(start);

	swarm_view_set(&r->view, c->index, SWARM_WORKING, 0, NULL);
	rc = check_cancelled(r, e);
	if (rc == 0)
		rc = exec_child(r, c, work, &c->work, &c->work_ms, e);
	if (rc < 0)
		return err_wrap(e, rc, "work");
	c->worked = true;
	if (!succeeded(&c->work)) {
		fail_child(c, "its command", &c->work);
		if (!r->spec->score_failed_work)
			return 0;
	}

	swarm_view_set(&r->view, c->index, SWARM_SCORING, 0, NULL);
	rc = check_cancelled(r, e);
	if (rc == 0)
		rc = exec_child(r, c, &r->spec->score, &c->score_result, &c->score_ms, e);
	if (rc < 0)
		return err_wrap(e, rc, "score");
	c->was_scored = true;
	if (!succeeded(&c->score_result)) {
		fail_child(c, "the score command", &c->score_result);
	} else if (swarm_parse_score(&c->score_result.out, &c->score, &why) < 0) {
		snprintf(c->reason, sizeof(c->reason), "%.299s", why.msg);
	} else {
		c->has_score = true;
		c->reason[0] = '\0';
	}
	return 0;
}

static void
record_retry(struct run *r, struct child *c, const struct err *why)
{
	struct json_out o = {0};
	char text[300];

	log_escape(text, sizeof(text), why->msg, strlen(why->msg));
	swarm_view_note(
		&r->view, "%s: once more, from a new branch: %s", c->spec->name, text);
	swarm_record_begin(&r->record, &o, "retry");
	json_out_str(&o, "child", c->spec->name);
	json_out_str(&o, "vm", c->vm);
	json_out_str(&o, "error", why->msg);
	swarm_record_end(&r->record, &o);
}

static void
record_child(struct run *r, struct child *c, const char *vm)
{
	struct json_out o = {0};

	swarm_record_begin(&r->record, &o, "child");
	json_out_str(&o, "child", c->spec->name);
	json_out_u64(&o, "index", c->index);
	json_out_str(&o, "vm", vm);
	json_out_u64(&o, "attempts", c->attempts);
	json_out_str(&o, "outcome",
		c->has_score		     ? "scored"
		: atomic_load(&r->cancelled) ? "cancelled"
					     : "failed");
	if (c->reason[0])
		json_out_str(&o, "reason", c->reason);
	json_out_array(&o, "argv");
	for (size_t i = 0; c->spec->work.argv[i]; i++)
		json_out_str(&o, NULL, c->spec->work.argv[i]);
	json_out_end_array(&o);
	json_out_array(&o, "env_names");
	for (size_t i = 0; i < c->spec->work.n_env; i++)
		json_out_str(&o, NULL, c->spec->work.env[i].key);
	json_out_end_array(&o);
	json_out_u64(&o, "put_ms", c->put_ms);
	if (c->worked)
		swarm_record_result(&o, "work", &c->work, c->work_ms);
	if (c->was_scored)
		swarm_record_result(&o, "score_run", &c->score_result, c->score_ms);
	if (c->has_score)
		json_out_f64(&o, "score", c->score);
	swarm_record_end(&r->record, &o);
}

/* A total order, so that the choice does not depend on who finished first. */
static bool
better(const struct child *a, const struct child *b)
{
	return a->score > b->score || (a->score == b->score && a->index < b->index);
}

static void
do_child(struct run *r, struct child *c)
{
	struct child *loser = c;
	char vm[SWARM_ID_SIZE];
	struct err e = {0};
	int rc = 0;

	for (c->attempts = 1; c->attempts <= 2; c->attempts++) {
		char id[1][SWARM_ID_SIZE] = {""};
		uint64_t pause_us;

		e = (struct err){0};
		if (c->attempts == 2) {
			rc = r->ops->branch(
				r->ctx, r->base, r->sum->run, 1, id, &pause_us, &e);
			if (rc < 0)
				break;
			memcpy(c->vm, id[0], sizeof(c->vm));
		}
		rc = attempt_child(r, c, &e);
		if (rc == 0 || atomic_load(&r->cancelled))
			break;
		if (c->attempts == 1) {
			record_retry(r, c, &e);
			delete_vm(r, c->spec->name, c->vm);
		}
	}
	if (c->attempts > 2)
		c->attempts = 2;
	if (atomic_load(&r->cancelled)) {
		c->has_score = false;
		snprintf(c->reason, sizeof(c->reason), "cancelled");
	} else if (rc < 0) {
		c->has_score = false;
		snprintf(c->reason, sizeof(c->reason),
			"infrastructure failed twice: %.250s", e.msg);
	}
	memcpy(vm, c->vm, sizeof(vm));

	if (c->has_score && r->spec->collect_from_all && r->spec->n_collect) {
		swarm_view_set(&r->view, c->index, SWARM_COLLECTING, 0, NULL);
		/* The winner's missing file is an error below; another's is a note. */
		if (collect(r, c, &e) < 0)
			swarm_view_note(&r->view, "%s", e.msg);
	}
	record_child(r, c, vm);
	swarm_view_set(&r->view, c->index,
		c->has_score		     ? SWARM_SCORED
		: atomic_load(&r->cancelled) ? SWARM_CANCELLED
					     : SWARM_FAILED,
		c->score, c->has_score ? NULL : c->reason);

	pthread_mutex_lock(&r->lock);
	if (c->has_score && (!r->best || better(c, r->best))) {
		loser = r->best;
		r->best = c;
		swarm_view_lead(&r->view, c->index);
	}
	pthread_mutex_unlock(&r->lock);
	if (loser)
		delete_vm(r, loser->spec->name, loser->vm);
}

static void *
worker_main(void *arg)
{
	struct run *r = arg;
	uint64_t one = 1;

	for (;;) {
		struct child *c = NULL;

		pthread_mutex_lock(&r->lock);
		if (r->next < r->spec->n_children && !atomic_load(&r->cancelled))
			c = &r->children[r->next++];
		else
			r->workers--;
		pthread_mutex_unlock(&r->lock);
		if (!c)
			break;
		do_child(r, c);
	}
	io_write_full(r->done_fd, &one, sizeof(one));
	return NULL;
}

/* Runs until no worker is left; a cancellation pulls the VMs away from under them. */
static void
watch(struct run *r)
{
	bool swept = false;

	for (;;) {
		struct pollfd p[2] = {
			{.fd = r->done_fd, .events = POLLIN},
			{.fd = swept ? -1 : r->options->cancel_fd, .events = POLLIN},
		};
		size_t left;
		uint64_t count;

		if (poll(p, 2, 500) > 0 && (p[0].revents & POLLIN))
			io_read(r->done_fd, &count, sizeof(count));
		pthread_mutex_lock(&r->lock);
		left = r->workers;
		pthread_mutex_unlock(&r->lock);
		if (!left)
			return;
		if (!swept && poll_cancel(r)) {
			struct err e = {0};

			swept = true;
			swarm_view_note(&r->view, "cancelled: deleting the children");
			if (r->ops->sweep(r->ctx, r->sum->run, &e) < 0)
				swarm_view_note(
					&r->view, "deleting the children: %s", e.msg);
		}
		swarm_view_tick(&r->view);
	}
}

static int
run_workers(struct run *r, unsigned parallel, struct err *e)
{
	cleanup_free pthread_t *threads = NULL;
	size_t n = r->spec->n_children < parallel ? r->spec->n_children : parallel,
	       started;
	int rc = 0;

	threads = calloc(n, sizeof(*threads));
	r->done_fd = eventfd(0, EFD_CLOEXEC);
	if (!threads || r->done_fd < 0)
		return err_set(e, -ENOMEM, "out of memory or descriptors");
	swarm_view_start(&r->view, r->rows, r->spec->n_children);
	r->workers = n;
	for (started = 0; started < n; started++) {
		rc = -pthread_create(&threads[started], NULL, worker_main, r);
		if (rc < 0)
			break;
	}
	if (started < n) {
		/* Fewer hands do the same work, unless there are none. */
		pthread_mutex_lock(&r->lock);
		r->workers -= n - started;
		pthread_mutex_unlock(&r->lock);
		if (!started)
			return err_sys(e, rc, "starting a thread");
	}
	watch(r);
	for (size_t i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	swarm_view_stop(&r->view);
	return check_cancelled(r, e);
}

/* Why it won, in one sentence: the receipt. */
static void
explain(struct run *r, const struct child *best)
{
	const struct child *next = NULL;
	char *text = r->sum->reason;
	size_t cap = sizeof(r->sum->reason), ties = 0;

	for (size_t i = 0; i < r->spec->n_children; i++) {
		const struct child *c = &r->children[i];

		if (!c->has_score || c == best)
			continue;
		ties += c->score == best->score;
		if (!next || better(c, next))
			next = c;
	}
	if (!next)
		snprintf(text, cap, "the only child with a score (%.10g)", best->score);
	else if (ties)
		snprintf(text, cap,
			"highest score (%.10g), which %zu children share; of these it stands first in the spec, before %s",
			best->score, ties + 1, next->spec->name);
	else
		snprintf(text, cap, "highest score (%.10g); the next is %s with %.10g",
			best->score, next->spec->name, next->score);
}

static int
compare_children(const void *a, const void *b)
{
	const struct child *x = *(const struct child *const *)a;
	const struct child *y = *(const struct child *const *)b;

	if (x->has_score != y->has_score)
		return x->has_score ? -1 : 1;
	if (x->has_score)
		return better(x, y) ? -1 : 1;
	return x->index < y->index ? -1 : 1;
}

static void
record_choice(struct run *r, const struct child *best)
{
	cleanup_free const struct child **order =
		calloc(r->spec->n_children, sizeof(*order));
	struct json_out o = {0};

	swarm_record_begin(&r->record, &o, "choice");
	json_out_str(&o, "winner", best->spec->name);
	json_out_str(&o, "vm", best->vm);
	json_out_f64(&o, "score", best->score);
	json_out_str(&o, "rule",
		"highest score; of equal scores the child that stands first in the spec");
	json_out_str(&o, "reason", r->sum->reason);
	json_out_array(&o, "ranking");
	for (size_t i = 0; order && i < r->spec->n_children; i++)
		order[i] = &r->children[i];
	if (order)
		qsort(order, r->spec->n_children, sizeof(*order), compare_children);
	for (size_t i = 0; order && i < r->spec->n_children; i++) {
		json_out_object(&o, NULL);
		json_out_str(&o, "child", order[i]->spec->name);
		if (order[i]->has_score)
			json_out_f64(&o, "score", order[i]->score);
		else
			json_out_str(&o, "reason", order[i]->reason);
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	swarm_record_end(&r->record, &o);
}

static void
link_winner(struct run *r, const struct child *best)
{
	char path[1100];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", r->sum->output, best->spec->name);
	if (stat(path, &st) < 0)
		return;
	snprintf(path, sizeof(path), "%s/winner", r->sum->output);
	if (strcmp(best->spec->name, "winner") != 0 &&
		symlink(best->spec->name, path) < 0)
		swarm_view_note(&r->view, "no link %s: %s", path, strerror(errno));
}

static int
finish(struct run *r, struct err *e)
{
	struct child *best = r->best;
	int rc;

	for (size_t i = 0; i < r->spec->n_children; i++) {
		if (r->children[i].has_score)
			r->sum->n_scored++;
		else
			r->sum->n_failed++;
	}
	if (!best)
		return err_set(e, -ENODATA,
			r->spec->n_children == 1
				? "no winner: the child \"%s\" has no score: %s"
				: "no winner: none of the children has a score; the first, \"%s\": %s",
			r->children[0].spec->name, r->children[0].reason);
	r->sum->winner = best->spec->name;
	r->sum->score = best->score;
	explain(r, best);
	record_choice(r, best);
	swarm_view_note(&r->view, "winner: %s: %s", best->spec->name, r->sum->reason);

	if (!r->spec->collect_from_all) {
		rc = collect(r, best, e);
		if (rc == -ECANCELED)
			return rc;
	} else {
		rc = 0;
		for (size_t i = 0; rc == 0 && i < r->spec->n_collect; i++) {
			char path[PATH_SIZE];
			struct stat st;

			collected_path(r, best, r->spec->collect[i], path, sizeof(path));
			if (lstat(path, &st) < 0)
				rc = err_set(e, -ENOENT,
					"%s was not collected from the winner, %s",
					r->spec->collect[i], best->spec->name);
		}
	}
	if (r->spec->n_collect)
		link_winner(r, best);
	if (rc < 0 || r->options->keep_winner || r->spec->keep_winner) {
		char alias[SWARM_NAME_MAX + 1];
		struct err why = {0};

		/* A result that could not be collected is not thrown away. */
		memcpy(r->sum->winner_vm, best->vm, sizeof(r->sum->winner_vm));
		snprintf(alias, sizeof(alias), "%s-%s", r->spec->name, best->spec->name);
		if (r->ops->alias(r->ctx, best->vm, alias, &why) < 0)
			swarm_view_note(&r->view,
				"the winner goes on as %s, without an alias: %s",
				best->vm, why.msg);
		else
			swarm_view_note(&r->view, "the winner goes on as %s (%s)", alias,
				best->vm);
	} else {
		delete_vm(r, best->spec->name, best->vm);
	}
	return rc;
}

static int
prepare_base(struct run *r, struct err *e)
{
	const struct swarm_spec *s = r->spec;
	struct swarm_result *result = NULL;
	struct json_out o = {0};
	uint64_t start = io_now_ns(), boot_ms, setup_ms = 0;
	int rc;

	if (s->from) {
		rc = r->ops->find(r->ctx, s->from, r->base, e);
		if (rc < 0)
			return rc;
	} else {
		swarm_view_note(&r->view, "booting the machine");
		rc = r->ops->boot(r->ctx, &s->machine, r->sum->run, r->base, e);
		if (rc < 0)
			return err_wrap(e, rc, "booting the machine");
		r->base_is_ours = true;
	}
	boot_ms = ms_since(start);
	rc = check_cancelled(r, e);
	if (rc < 0)
		return rc;

	start = io_now_ns();
	if (!s->from)
		swarm_view_note(&r->view, "vm %s is up after %.1f s", r->base,
			(double)boot_ms / 1000);
	for (size_t i = 0; i < s->setup.n_files; i++) {
		swarm_view_note(&r->view, "set-up: putting %s", s->setup.files[i].to);
		rc = r->ops->put(
			r->ctx, r->base, s->setup.files[i].from, s->setup.files[i].to, e);
		if (rc < 0)
			return err_wrap(
				e, rc, "set-up: putting %s", s->setup.files[i].to);
		rc = check_cancelled(r, e);
		if (rc < 0)
			return rc;
	}
	if (s->setup.argv) {
		result = calloc(1, sizeof(*result));
		if (!result)
			return err_set(e, -ENOMEM, "out of memory");
		swarm_view_note(&r->view, "set-up: running its command");
		rc = r->ops->exec(r->ctx, r->base, &s->setup, result, e);
		if (rc < 0)
			err_wrap(e, rc, "set-up");
	}
	setup_ms = ms_since(start);
	swarm_record_begin(&r->record, &o, "base");
	json_out_str(&o, "vm", r->base);
	json_out_str(&o, "from", s->from);
	json_out_u64(&o, "boot_ms", s->from ? 0 : boot_ms);
	json_out_u64(&o, "setup_ms", setup_ms);
	if (result && rc == 0)
		swarm_record_result(&o, "setup", result, setup_ms);
	swarm_record_end(&r->record, &o);
	if (result && rc == 0 && !succeeded(result)) {
		char how[120], tail[300];
		size_t n = result->err.len < 80 ? result->err.len : 80;

		swarm_result_text(result, how, sizeof(how));
		log_escape(tail, sizeof(tail), result->err.text + result->err.len - n, n);
		rc = err_set(e, -EPROTO,
			"the set-up command failed: %s; its errors end with: %s", how,
			tail);
	}
	free(result);
	return rc < 0 ? rc : 0;
}

static bool
worth_retrying(int rc)
{
	return rc != -ENOENT && rc != -EINVAL && rc != -EPERM && rc != -EACCES &&
	       rc != -EEXIST && rc != -ERANGE && rc != -ECANCELED;
}

static int
branch_all(struct run *r, struct err *e)
{
	size_t n = r->spec->n_children;
	cleanup_free char(*ids)[SWARM_ID_SIZE] = calloc(n, sizeof(*ids));
	uint64_t start = io_now_ns(), pause_us = 0;
	struct json_out o = {0};
	int rc;

	if (!ids)
		return err_set(e, -ENOMEM, "out of memory");
	swarm_view_note(&r->view, "branching %s into %zu",
		r->spec->from ? r->spec->from : r->base, n);
	rc = r->ops->branch(r->ctx, r->base, r->sum->run, n, ids, &pause_us, e);
	if (rc < 0 && worth_retrying(rc) && !poll_cancel(r)) {
		swarm_view_note(
			&r->view, "branching failed, once more: %s", e ? e->msg : "");
		rc = r->ops->branch(r->ctx, r->base, r->sum->run, n, ids, &pause_us, e);
	}
	if (rc < 0)
		return err_wrap(
			e, rc, "branching %s", r->spec->from ? r->spec->from : r->base);
	swarm_record_begin(&r->record, &o, "branched");
	json_out_u64(&o, "ms", ms_since(start));
	json_out_u64(&o, "pause_us", pause_us);
	json_out_array(&o, "vms");
	for (size_t i = 0; i < n; i++) {
		memcpy(r->children[i].vm, ids[i], sizeof(ids[i]));
		json_out_str(&o, NULL, ids[i]);
	}
	json_out_end_array(&o);
	swarm_record_end(&r->record, &o);
	swarm_view_note(&r->view,
		"%zu children after %.1f s (the parent stood still for %.1f ms)", n,
		(double)ms_since(start) / 1000, (double)pause_us / 1000);
	return check_cancelled(r, e);
}

/* The output folder must not hold anything: a record of another run is not overwritten.
 */
static int
make_output(struct run *r, int *ret_fd, struct err *e)
{
	const char *name = r->options->output ? r->options->output : r->spec->output;
	cleanup_closedir DIR *dir = NULL;
	struct dirent *entry;
	char path[1100];
	int fd;

	if (!name)
		name = r->sum->run;
	if (strlen(name) >= sizeof(r->sum->output))
		return err_set(e, -ENAMETOOLONG, "the output folder's name is too long");
	strcpy(r->sum->output, name);
	if (io_mkdir_p(name, 0777, e) < 0)
		return e && e->code ? e->code : -EIO;
	dir = opendir(name);
	if (!dir)
		return err_sys(e, -errno, "output folder %s", name);
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			return err_set(e, -EEXIST,
				"output folder %s is not empty; remove it or give another one with --output",
				name);
	snprintf(path, sizeof(path), "%s/record.jsonl", name);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
	if (fd < 0)
		return err_sys(e, -errno, "%s", path);
	*ret_fd = fd;
	return 0;
}

static void
record_start(struct run *r, unsigned parallel)
{
	struct json_out o = {0};

	swarm_record_begin(&r->record, &o, "start");
	json_out_str(&o, "run", r->sum->run);
	json_out_str(&o, "spec", r->options->spec_path);
	json_out_str(&o, "spec_sha256", r->options->spec_sha256);
	json_out_str(&o, "pando", r->options->version);
	json_out_u64(&o, "wall_ms", io_wall_ms());
	json_out_u64(&o, "parallel", parallel);
	json_out_array(&o, "children");
	for (size_t i = 0; i < r->spec->n_children; i++)
		json_out_str(&o, NULL, r->spec->children[i].name);
	json_out_end_array(&o);
	swarm_record_end(&r->record, &o);
}

static void
record_end(struct run *r, int rc, const struct err *why)
{
	struct json_out o = {0};

	swarm_record_begin(&r->record, &o, "end");
	json_out_i64(&o, "exit_status", (int64_t)err_exit_code(rc));
	json_out_str(&o, "winner", r->sum->winner);
	json_out_u64(&o, "scored", r->sum->n_scored);
	json_out_u64(&o, "failed", r->sum->n_failed);
	json_out_str(&o, "kept_vm", r->sum->winner_vm[0] ? r->sum->winner_vm : NULL);
	if (rc < 0)
		json_out_str(&o, "error", why->msg);
	swarm_record_end(&r->record, &o);
}

/* Leaves nothing behind, except what is to be kept. */
static void
tidy(struct run *r)
{
	struct err e = {0};

	if (r->sum->winner_vm[0]) {
		for (size_t i = 0; i < r->spec->n_children; i++)
			if (strcmp(r->children[i].vm, r->sum->winner_vm) != 0)
				delete_vm(
					r, r->children[i].spec->name, r->children[i].vm);
		if (r->base_is_ours)
			swarm_view_note(&r->view,
				"vm %s stays too: it is the winner's parent", r->base);
		return;
	}
	if (r->ops->sweep(r->ctx, r->sum->run, &e) < 0)
		swarm_view_note(&r->view,
			"VMs of this run may be left (`pando swarm clean %s`): %s",
			r->sum->run, e.msg);
}

int
swarm_run(const struct swarm_spec *spec, const struct swarm_ops *ops, void *ctx,
	const struct swarm_options *options, struct swarm_summary *ret, struct err *e)
{
	cleanup_free struct child *children = calloc(spec->n_children, sizeof(*children));
	cleanup_free struct swarm_row *rows = calloc(spec->n_children, sizeof(*rows));
	cleanup_close int record_fd = -1;
	struct err why = {0}, record_why = {0};
	struct run r = {
		.spec = spec,
		.ops = ops,
		.ctx = ctx,
		.options = options,
		.sum = ret,
		.children = children,
		.rows = rows,
		.done_fd = -1,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	unsigned parallel = options->parallel ? options->parallel : spec->parallel;
	uint32_t random;
	int rc;

	*ret = (struct swarm_summary){0};
	if (!children || !rows)
		return err_set(e, -ENOMEM, "out of memory");
	if (!parallel) {
		long cpus = sysconf(_SC_NPROCESSORS_ONLN);

		parallel = cpus > 0 ? (unsigned)cpus : 1;
	}
	for (size_t i = 0; i < spec->n_children; i++) {
		children[i].spec = &spec->children[i];
		children[i].index = i;
		rows[i].name = spec->children[i].name;
	}
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return err_sys(e, -errno, "getrandom");
	snprintf(ret->run, sizeof(ret->run), "%s-%08x", spec->name, random);
	rc = make_output(&r, &record_fd, &why);
	if (rc < 0)
		return err_set(e, rc, "%s", why.msg);
	swarm_record_init(&r.record, record_fd, options->record_copy_fd);
	swarm_view_init(&r.view, options->view_fd, options->live);
	swarm_view_note(&r.view, "swarm %s: %zu children, %u at a time", ret->run,
		spec->n_children, parallel);
	record_start(&r, parallel);

	rc = prepare_base(&r, &why);
	if (rc == 0)
		rc = branch_all(&r, &why);
	if (rc == 0)
		rc = run_workers(&r, parallel, &why);
	if (rc == 0)
		rc = finish(&r, &why);
	tidy(&r);
	if (poll_cancel(&r) && !ret->winner)
		rc = -ECANCELED;
	if (rc == -ECANCELED)
		err_set(&why, rc, "cancelled; the children were deleted");
	record_end(&r, rc, &why);
	if (r.done_fd >= 0)
		close(r.done_fd);
	if (swarm_record_finish(&r.record, &record_why) < 0 && rc == 0) {
		rc = record_why.code;
		err_set(&why, rc, "%s/record.jsonl: %s", ret->output, record_why.msg);
	}
	return rc < 0 ? err_set(e, rc, "%s", why.msg) : 0;
}
