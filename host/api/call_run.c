#include "host/api/call_run.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"

/* What a handler works with. */
struct call_context {
	struct tree *tree;
	struct commits *commits;
	const struct route *route;
	const void *body; /* struct <body>_request, as the row says; NULL for `empty` */
	const struct progress *progress;
	struct json_out *out;
};

/*
 * Bodies: how each is read, and what of it has to be freed.
 */

#define BODY(name, type, free_it) \
	static int read_##name(const char *body, size_t len, void *ret, struct err *e) \
	{ \
		return request_##name(body, len, ret, e); \
	} \
	static void done_##name(void *request) \
	{ \
		struct type *q = request; \
\
		(void)q; \
		free_it; \
	} \
	enum { SIZE_##name = sizeof(struct type) };
BODY(create, create_request, env_done(&q->env))
BODY(branch, branch_request, env_done(&q->env))
BODY(spawn, branch_request, env_done(&q->env))
BODY(alias, alias_request, )
BODY(stop, stop_request, )
BODY(start, start_request, )
BODY(resize, resize_request, )
BODY(commit, commit_request, )
BODY(tag, tag_request, )
BODY(prune, prune_request, )
BODY(environment, environment_request, environment_request_done(q))
#undef BODY

static int
read_empty(const char *body, size_t len, void *ret, struct err *e)
{
	(void)ret;
	return request_empty(body, len, e);
}

static void
done_empty(void *request)
{
	(void)request;
}
enum { SIZE_empty = 1 };

/*
 * Handlers: run_<NAME>, one for each row of API_CALLS.
 */

#define HANDLER(name) static int run_##name(const struct call_context *c, struct err *e)

HANDLER(VERSION)
{
	(void)e;
	json_out_object(c->out, NULL);
	json_out_str(c->out, "version", PANDO_VERSION);
	json_out_i64(c->out, "pid", getpid());
	json_out_str(c->out, "home", tree_home(c->tree));
	tree_scopes(c->tree, "scopes", c->out);
	json_out_end_object(c->out);
	return 0;
}

HANDLER(LIST)
{
	return tree_list(c->tree, &c->route->labels, c->route->memory, c->out, e);
}

HANDLER(CREATE)
{
	return tree_create(c->tree, c->body, c->progress, c->out, e);
}

HANDLER(INFO)
{
	return tree_info(c->tree, c->route->vm, c->out, e);
}

HANDLER(DELETE)
{
	return tree_delete(c->tree, c->route->vm, c->route->recursive, c->route->dry_run,
		c->progress, c->out, e);
}

HANDLER(BRANCH)
{
	return tree_branch(c->tree, c->route->vm, c->body, c->progress, c->out, e);
}

HANDLER(ALIAS)
{
	return tree_alias(c->tree, c->route->vm, c->body, c->out, e);
}

HANDLER(PAUSE)
{
	return tree_pause(c->tree, c->route->vm, c->progress, c->out, e);
}

HANDLER(RESUME)
{
	return tree_resume(c->tree, c->route->vm, c->progress, c->out, e);
}

HANDLER(STOP)
{
	return tree_stop_vm(c->tree, c->route->vm, c->body, c->progress, c->out, e);
}

HANDLER(START)
{
	return tree_start_vm(c->tree, c->route->vm, c->body, c->progress, c->out, e);
}

HANDLER(RESIZE)
{
	return tree_resize(c->tree, c->route->vm, c->body, c->progress, c->out, e);
}

HANDLER(DISK)
{
	return tree_disk(c->tree, c->route->vm, c->out, e);
}

HANDLER(COMMIT)
{
	return commits_make_by_rule(
		c->commits, c->route->vm, c->body, c->progress, c->out, e);
}

HANDLER(COMMITS)
{
	return commits_list(
		c->commits, c->route->cursor, c->route->limit, c->out, e);
}

HANDLER(COMMIT_INFO)
{
	return commits_info(c->commits, c->route->name, c->out, e);
}

HANDLER(COMMIT_DELETE)
{
	return commits_delete(c->commits, c->route->name, c->route->recursive,
		c->route->dry_run, c->out, e);
}

HANDLER(SPAWN)
{
	return commits_run(c->commits, c->route->name, c->body, c->progress, c->out, e);
}

HANDLER(HISTORY)
{
	return commits_history(c->commits, c->route->name, c->route->cursor,
		c->route->limit, c->out, e);
}

HANDLER(DIFF)
{
	return commits_diff(
		c->commits, c->route->name, c->route->other, c->route->files, c->out, e);
}

HANDLER(VERIFY)
{
	return commits_verify(c->commits, c->route->name, c->out, e);
}

HANDLER(VERIFY_ALL)
{
	return c->route->repair ? commits_repair(c->commits, c->progress, c->out, e)
				: commits_verify(c->commits, NULL, c->out, e);
}

HANDLER(GC)
{
	return commits_gc(c->commits, c->progress, c->out, e);
}

HANDLER(GC_CANCEL)
{
	(void)e;
	commits_gc_cancel(c->commits, c->out);
	return 0;
}

HANDLER(PRUNE)
{
	return commits_prune(c->commits, c->body, c->progress, c->out, e);
}

HANDLER(TAGS)
{
	return commits_tags(
		c->commits, c->route->cursor, c->route->limit, c->out, e);
}

HANDLER(TAG_PUT)
{
	return commits_tag_put(c->commits, c->route->name, c->body, c->out, e);
}

HANDLER(TAG_DELETE)
{
	return commits_tag_delete(c->commits, c->route->name, c->out, e);
}

HANDLER(ENV)
{
	return tree_environment(c->tree, c->out, e);
}

HANDLER(ENV_PUT)
{
	return tree_environment_change(c->tree, c->body, c->out, e);
}

HANDLER(REPORTS)
{
	return tree_reports(
		c->tree, NULL, c->route->after, c->route->wait, c->progress, c->out, e);
}

HANDLER(VM_REPORTS)
{
	return tree_reports(c->tree, c->route->vm, c->route->after, c->route->wait,
		c->progress, c->out, e);
}

/* api.c stops pandod once the answer is on its way. */
HANDLER(SHUTDOWN)
{
	(void)e;
	log_info("told to stop");
	json_out_object(c->out, NULL);
	json_out_end_object(c->out);
	return 0;
}

static const struct {
	int (*read)(const char *body, size_t len, void *ret, struct err *e);
	void (*done)(void *request);
	size_t request_bytes;
	int (*run)(const struct call_context *c, struct err *e);
	unsigned flags;
} calls[] = {
#define ROW(name, method, path, body, flags, query) \
	{read_##body, done_##body, SIZE_##body, run_##name, flags},
	API_CALLS(ROW)
#undef ROW
};

unsigned
call_flags(enum call call)
{
	return calls[call].flags;
}

int
call_run(struct tree *t, struct commits *commits, const struct route *route,
	const char *body, size_t len, const struct progress *progress,
	struct json_out *out, struct err *e)
{
	cleanup_free void *request = calloc(1, calls[route->call].request_bytes);
	struct call_context c = {.tree = t,
		.commits = commits,
		.route = route,
		.body = request,
		.progress = progress,
		.out = out};
	int r;

	if (!request)
		return err_set(e, -ENOMEM, "out of memory");
	r = calls[route->call].read(body, len, request, e);
	if (r < 0)
		return r;
	r = calls[route->call].run(&c, e);
	calls[route->call].done(request);
	return r;
}
