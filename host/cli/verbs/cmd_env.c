#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/env_option.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_env;

enum { OPT_FILE = 256 };

static const struct opt options[] = {
	{OPT_FILE, "env-file", "FILE", "set: what this file has; \"-\" is standard input",
		COMPLETE_FILE},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

/* The answer of either call, as people want it. */
static int
show(const struct client_reply *reply, const struct opt_scan *s, struct err *e)
{
	static const char *const heads[] = {"NAME", "VALUE"};
	cleanup_out_table struct out_table *t = out_table_new(heads, 2);
	int vars = json_get(reply->json, 0, "environment"), it = 0, key, value;

	if (vars < 0 || json_type(reply->json, vars) != JSON_OBJECT)
		return err_set(e, -EPROTO, "pandod's answer has no environment");
	if (!t)
		return err_sys(e, -ENOMEM, "table");
	if (s->json) {
		puts(reply->text);
		return 0;
	}
	while (json_next(reply->json, vars, &it, &key, &value)) {
		cleanup_free char *name = NULL, *text = NULL, *plain = NULL;

		if (json_str_dup(reply->json, key, &name) < 0 ||
			json_str_dup(reply->json, value, &text) < 0)
			return err_set(e, -EPROTO, "pandod's answer has a broken name");
		if (s->quiet) {
			puts(name);
			continue;
		}
		plain = malloc(4 * strlen(text) + 1);
		if (!plain)
			return err_sys(e, -ENOMEM, "table");
		out_table_cell(t, name);
		out_table_cell(t, out_plain(plain, 4 * strlen(text) + 1, text));
	}
	if (!s->quiet)
		out_table_print(t, stdout);
	return 0;
}

/* "set" and "delete" as pandod takes them. */
static int
body(const struct env *set, const char *const *names, size_t n, struct json_out *o,
	struct err *e)
{
	char name[ENV_NAME_MAX + 1];

	json_out_object(o, NULL);
	json_out_object(o, "set");
	for (size_t i = 0; i < set->n; i++) {
		size_t len = strcspn(set->v[i], "=");

		snprintf(name, sizeof(name), "%.*s", (int)len, set->v[i]);
		json_out_str(o, name, set->v[i] + len + 1);
	}
	json_out_end_object(o);
	json_out_array(o, "delete");
	for (size_t i = 0; i < n; i++)
		json_out_str(o, NULL, names[i]);
	json_out_end_array(o);
	json_out_end_object(o);
	return o->error ? err_sys(e, o->error, "request") : 0;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_env, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	cleanup_json_out struct json_out o = {0};
	cleanup_env struct env set = {0};
	const char *what = NULL, *names[ENV_VARS_MAX];
	size_t n = 0;
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		r = 0;
		switch (key) {
		case OPT_FILE:
			r = what && strcmp(what, "set") != 0
				    ? err_set(&e, -EINVAL, "--env-file goes with set")
				    : cli_env_file(&set, s.arg, &e);
			break;
		case OPT_WORD:
			if (!what)
				what = opt_subverb(s.arg);
			else if (strcmp(what, "set") == 0)
				r = cli_env_add(&set, s.arg, &e);
			else if (n < ENV_VARS_MAX)
				names[n++] = s.arg;
			else
				r = err_set(&e, -E2BIG, "at most %d names", ENV_VARS_MAX);
			break;
		default:
			return opt_leave(&s, key, &e);
		}
		if (r < 0)
			return opt_leave(&s, OPT_ERROR, &e);
	}
	if (!what)
		what = "list";
	if (strcmp(what, "set") != 0 && strcmp(what, "list") != 0 &&
		strcmp(what, "delete") != 0)
		r = err_set(&e, -EINVAL, "env set, env list or env delete, not \"%.32s\"",
			what);
	else if (strcmp(what, "set") == 0 && !set.n)
		r = err_set(&e, -EINVAL, "env set NAME=value: what is to be set?");
	else if (strcmp(what, "delete") == 0 && !n)
		r = err_set(&e, -EINVAL, "env delete NAME: what is to be deleted?");
	else if (strcmp(what, "set") != 0 && set.n)
		r = err_set(&e, -EINVAL, "--env-file goes with set");
	else if (strcmp(what, "list") == 0 && n)
		r = err_set(&e, -EINVAL, "env list takes no names");
	else
		r = 0;
	if (r < 0)
		return opt_leave(&s, OPT_ERROR, &e);
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	if (strcmp(what, "list") == 0) {
		r = client_call(c, "GET", "/v1/environment", NULL, &reply, &e);
		if (r == 0)
			r = show(&reply, &s, &e);
		return r < 0 ? out_fail(&e) : EXIT_OK;
	}
	r = body(&set, names, n, &o, &e);
	if (r == 0)
		r = client_call(c, "PUT", "/v1/environment", o.buf, &reply, &e);
	if (r < 0)
		return out_fail(&e);
	if (s.json)
		puts(reply.text);
	if (!s.quiet)
		cli_env_tell(&set);
	return EXIT_OK;
}

const struct verb verb_env = {
	.name = "env",
	.summary = "Environment variables that every new VM gets",
	.run = run,
	.usage = "[list]\nset <NAME=value>... [--env-file FILE]\ndelete <NAME>...",
	.options = options,
	.text = "New VMs, branches and VMs of commits have these in /etc/environment, and what --env gave them over them;\n"
		"nothing of their parent's. Those that are there keep what they have until they are started again.\n"
		"NAME alone is set to what it is here.",
	.subverbs = "list set delete",
};
