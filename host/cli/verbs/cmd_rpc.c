#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_rpc.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_rpc;

#define LINE_MAX_BYTES (16u * 1024u * 1024u)
#define ANSWER_MAX (1u << 20)
#define ANSWER_TOKENS 4096
/* A stop may take as long as its configuration says (an hour at most). */
#define START_TIMEOUT_MS 60000
#define STATUS_TIMEOUT_MS 30000

struct asked {
	const char *verb, *vm, *line;
	const char *name, *stream; /* NULL: not said */
	uint64_t from;
	bool has_from, from_end, until_done, once, json, quiet;
	const char *socket; /* borrowed */
};

static int
call(const struct asked *q, const char *verb, const void *input, size_t len,
	int timeout_ms, char **ret, struct err *e)
{
	const char *words[] = {"rpc", verb, q->name, NULL};

	return agent_rpc_call(q->socket, words, input, len, ANSWER_MAX, timeout_ms,
		pick_cancel_fd(), ret, e);
}

/*
 * Status.
 */

static const char *
text_member(const struct json *j, int obj, const char *key, char *dst, size_t cap)
{
	char raw[512];

	if (json_str(j, json_get(j, obj, key), raw, sizeof(raw)) < 0)
		return strcpy(dst, "-");
	return out_plain(dst, cap, raw);
}

static const char *
number_member(const struct json *j, int obj, const char *key, char *dst, size_t cap)
{
	uint64_t v;

	if (json_u64(j, json_get(j, obj, key), &v) < 0)
		snprintf(dst, cap, "-");
	else
		snprintf(dst, cap, "%llu", (unsigned long long)v);
	return dst;
}

static void
status_row(struct out_table *t, const struct json *j, int agent)
{
	int supervisor = json_get(j, agent, "keeper"), out = json_get(j, agent, "out");
	int in = json_get(j, agent, "in");
	char text[1024];

	out_table_cell(t, text_member(j, agent, "name", text, sizeof(text)));
	if (json_get(j, agent, "state") >= 0)
		out_table_cell(t, text_member(j, agent, "state", text, sizeof(text)));
	else
		out_table_cell(
			t, text_member(j, supervisor, "state", text, sizeof(text)));
	out_table_cell(t, number_member(j, supervisor, "program", text, sizeof(text)));
	out_table_cell(t, number_member(j, supervisor, "starts", text, sizeof(text)));
	out_table_cell(t, number_member(j, in, "lines", text, sizeof(text)));
	out_table_cell(t, number_member(j, out, "lines", text, sizeof(text)));
	out_table_cell(t, number_member(j, out, "end", text, sizeof(text)));
	if (json_get(j, agent, "configuration") >= 0)
		out_table_cell(
			t, text_member(j, agent, "configuration", text, sizeof(text)));
	else
		out_table_cell(
			t, text_member(j, supervisor, "reason", text, sizeof(text)));
}

static int
print_status(const struct asked *q, const char *text, struct err *e)
{
	static const char *const heads[] = {
		"NAME", "STATE", "PROGRAM", "STARTS", "SENT", "LINES", "BYTES", "NOTE"};
	cleanup_json struct json *j = NULL;
	cleanup_out_table struct out_table *t = NULL;
	int agents, r = json_parse(text, strlen(text), ANSWER_TOKENS, &j, e);

	if (r < 0) {
		err_wrap(e, r, "the guest's answer");
		return out_fail(e);
	}
	if (q->json) {
		fputs(text, stdout);
		return EXIT_OK;
	}
	agents = json_get(j, 0, "agents");
	if (q->quiet) {
		char name[128];
		int it = 0, key, agent;

		while (agents >= 0 && json_next(j, agents, &it, &key, &agent))
			puts(text_member(j, agent, "name", name, sizeof(name)));
		if (agents < 0)
			puts(text_member(j, 0, "name", name, sizeof(name)));
		return EXIT_OK;
	}
	t = out_table_new(heads, sizeof(heads) / sizeof(heads[0]));
	if (!t) {
		err_set(e, -ENOMEM, "out of memory");
		return out_fail(e);
	}
	if (agents < 0) {
		status_row(t, j, 0);
	} else {
		int it = 0, key, agent;

		while (json_next(j, agents, &it, &key, &agent))
			status_row(t, j, agent);
	}
	out_table_print(t, stdout);
	return EXIT_OK;
}

static int
plain(const struct asked *q, struct err *e)
{
	cleanup_free char *text = NULL;
	int ms = strcmp(q->verb, "stop") == 0	 ? 0
		 : strcmp(q->verb, "start") == 0 ? START_TIMEOUT_MS
						 : STATUS_TIMEOUT_MS;

	if (call(q, q->verb, NULL, 0, ms, &text, e) < 0)
		return out_fail(e);
	return print_status(q, text, e);
}

/*
 * Follow.
 */

static int
on_line(void *ctx, const struct rpc_line *l)
{
	const struct asked *q = ctx;

	if (l->torn) {
		if (!q->quiet)
			out_complain(
				"a line at %llu was cut off when its writer was ended",
				(unsigned long long)l->offset);
		return 0;
	}
	if (q->json) {
		cleanup_json_out struct json_out o = {0};

		json_out_object(&o, NULL);
		json_out_u64(&o, "number", l->number);
		json_out_u64(&o, "offset", l->offset);
		json_out_u64(&o, "next", l->offset + l->len);
		json_out_u64(&o, "time_ms", l->time_ms);
		json_out_str(&o, "vm", l->vm[0] ? l->vm : NULL);
		json_out_str(&o, "generation", l->generation[0] ? l->generation : NULL);
		if (l->piece)
			json_out_bool(&o, "goes_on", true);
		json_out_strn(&o, "text", l->text, l->piece ? l->len : l->len - 1);
		json_out_end_object(&o);
		if (o.error)
			return o.error;
		puts(o.buf);
	} else {
		fwrite(l->text, 1, l->len, stdout);
	}
	return fflush(stdout) ? -EPIPE : 0;
}

static void
on_gap(void *ctx, uint64_t offset, uint64_t next)
{
	(void)ctx;
	out_complain("bytes %llu to %llu are not kept any more",
		(unsigned long long)offset, (unsigned long long)next);
}

static void
on_break(void *ctx, const struct err *why)
{
	(void)ctx;
	out_note("%s; trying again", why->msg);
}

static int
follow(const struct asked *q, struct err *e)
{
	struct agent_rpc_follow spec = {
		.name = q->name,
		.stream = q->stream,
		.from = q->from,
		.from_end = q->from_end,
		.until_done = q->until_done,
		.once = q->once,
		.wake_fd = pick_cancel_fd(),
		.on_line = on_line,
		.on_gap = on_gap,
		.on_break = on_break,
		.ctx = (void *)(uintptr_t)q,
	};
	struct agent_rpc_followed end = {0};
	int r = agent_rpc_follow(q->socket, &spec, &end, e);

	out_note("next: --from %llu", (unsigned long long)end.next);
	if (r < 0)
		return out_fail(e);
	if (end.failed)
		out_complain("the prompt was not done well%s%s",
			end.reason[0] ? ": " : "", end.reason);
	return end.failed ? EXIT_FAILED : EXIT_OK;
}

/*
 * Send.
 */

static int
read_line(char **ret, size_t *ret_len, struct err *e)
{
	cleanup_free char *buf = malloc(LINE_MAX_BYTES + 4);
	size_t len = 0;

	if (!buf)
		return err_set(e, -ENOMEM, "out of memory");
	for (;;) {
		ssize_t n = io_read(STDIN_FILENO, buf + len, LINE_MAX_BYTES + 3 - len);

		if (n < 0)
			return err_sys(e, (int)n, "reading the line");
		if (!n)
			break;
		len += (size_t)n;
		if (len > LINE_MAX_BYTES + 2)
			return err_set(e, -E2BIG, "the line has more than %u bytes",
				LINE_MAX_BYTES);
	}
	*ret = TAKE_PTR(buf);
	*ret_len = len;
	return 0;
}

static int
send_line(struct asked *q, struct err *e)
{
	cleanup_free char *input = NULL, *text = NULL;
	cleanup_json struct json *j = NULL;
	const char *line = q->line;
	size_t len = line ? strlen(line) : 0;
	int r = 0;

	if (!line) {
		if (isatty(STDIN_FILENO) && !q->quiet)
			out_note("the line is read from here; end it with Ctrl-D");
		r = read_line(&input, &len, e);
		line = input;
	} else if (len > LINE_MAX_BYTES) {
		r = err_set(e, -E2BIG, "the line has more than %u bytes", LINE_MAX_BYTES);
	}
	if (r == 0)
		r = call(q, "send", line, len, 0, &text, e);
	if (r == 0)
		r = json_parse(text, strlen(text), 64, &j, e);
	if (r == 0 && json_u64(j, json_get(j, 0, "out"), &q->from) < 0)
		r = err_set(e, -EPROTO, "the guest does not say where its answer begins");
	if (r < 0)
		return out_fail(e);
	if (q->until_done)
		return follow(q, e);
	if (q->json)
		fputs(text, stdout);
	else if (q->quiet)
		printf("%llu\n", (unsigned long long)q->from);
	else
		out_note("taken; what it answers: pando rpc follow --from %llu",
			(unsigned long long)q->from);
	return EXIT_OK;
}

/*
 * Attach.
 */

static int
only_name(const struct asked *q, char *dst, size_t cap, struct err *e)
{
	cleanup_free char *text = NULL;
	cleanup_json struct json *j = NULL;
	int agents, r;

	if (q->name) {
		snprintf(dst, cap, "%s", q->name);
		return 0;
	}
	r = call(q, "status", NULL, 0, STATUS_TIMEOUT_MS, &text, e);
	if (r == 0)
		r = json_parse(text, strlen(text), ANSWER_TOKENS, &j, e);
	if (r < 0)
		return r;
	agents = json_get(j, 0, "agents");
	if (agents < 0 || json_size(j, agents) != 1 ||
		json_str(j, json_get(j, json_at(j, agents, 0), "name"), dst, cap) < 0)
		return err_set(e, -EINVAL,
			"which coding agent? --name says so; pando rpc status lists them");
	return 0;
}

static int
attach(const struct asked *q, struct err *e)
{
	char name[64], target[80];
	const char *argv[] = {"tmux", "-u", "attach-session", "-t", target, NULL};
	struct agent_exec_req req = {.argv = argv, .term = getenv("TERM")};
	struct agent_exec_result result = {0};

	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
		out_complain(
			"attach needs a terminal on standard input and output; pando rpc follow does not");
		return EXIT_USAGE;
	}
	if (only_name(q, name, sizeof(name), e) < 0)
		return out_fail(e);
	snprintf(target, sizeof(target), "=%s-rpc", name);
	out_note("Ctrl-B D leaves");
	if (agent_exec_terminal(q->socket, &req, &result, e) < 0)
		return out_fail(e);
	if (result.kind == AGENT_SPAWN_FAILED)
		out_complain("no tmux in the guest: pando rpc follow needs none");
	return agent_exit_status(&result);
}

/*
 * Words.
 */

static const struct opt options[] = {
	{'n', "name", "NAME", "which coding agent; the only one if not said",
		COMPLETE_NOTHING},
	{'f', "from", "OFFSET", "follow: from that byte on; start (the default) or end",
		COMPLETE_NOTHING},
	{'s', "stream", "out|err", "follow: what it writes, or its errors",
		COMPLETE_WORDS},
	{'u', "until-done", NULL,
		"follow, send: until the prompt is done; status 0, or 1 when it is not done well",
		COMPLETE_NOTHING},
	{'1', "once", NULL, "follow: only what is there now", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
take_option(struct asked *q, int key, const char *arg, struct err *e)
{
	switch (key) {
	case 'n':
		q->name = arg;
		return arg[0] && arg[0] != '-'
			       ? 0
			       : err_set(e, -EINVAL, "--name: \"%.60s\" is no name", arg);
	case 'f':
		q->has_from = true;
		q->from_end = strcmp(arg, "end") == 0;
		return q->from_end || strcmp(arg, "start") == 0
			       ? 0
			       : opt_u64(arg, "--from", 0, UINT64_MAX, &q->from, e);
	case 's':
		q->stream = arg;
		return strcmp(arg, "out") != 0 && strcmp(arg, "err") != 0
			       ? err_set(e, -EINVAL, "--stream is out or err")
			       : 0;
	case 'u':
		q->until_done = true;
		return 0;
	default:
		q->once = true;
		return 0;
	}
}

static int
take_word(struct asked *q, const char *word, struct err *e)
{
	bool sends = q->verb && strcmp(q->verb, "send") == 0;

	if (!q->verb) {
		q->verb = word;
		return 0;
	}
	/* A line of JSON is no VM's name. */
	if (sends && !q->line && (q->vm || strchr("{[\"", word[0]))) {
		q->line = word;
		return 0;
	}
	if (q->vm || q->line)
		return err_set(e, -EINVAL, "one word too many: \"%.60s\"", word);
	q->vm = word;
	return 0;
}

static int
check(const struct asked *q, struct err *e)
{
	static const char *const known[] = {
		"start", "stop", "status", "send", "follow", "attach"};
	bool follows = q->verb && strcmp(q->verb, "follow") == 0;

	for (size_t i = 0; q->verb && i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i], q->verb) == 0) {
			if (!follows && (q->has_from || q->stream || q->once))
				return err_set(e, -EINVAL,
					"--from, --stream and --once are for follow");
			if (!follows && strcmp(q->verb, "send") != 0 && q->until_done)
				return err_set(e, -EINVAL,
					"--until-done is for follow and send");
			return 0;
		}
	return err_set(e, -EINVAL,
		"rpc %.60s: there is start, stop, status, send, follow and attach",
		q->verb ? q->verb : "needs a word");
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_rpc, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	struct asked q = {0};
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_HELP || key == OPT_ERROR)
			return opt_leave(&s, key, &e);
		r = key == OPT_WORD ? take_word(&q, s.arg, &e)
				    : take_option(&q, key, s.arg, &e);
		if (r < 0)
			return opt_leave(&s, OPT_ERROR, &e);
	}
	if (check(&q, &e) < 0)
		return opt_leave(&s, OPT_ERROR, &e);
	q.json = s.json;
	q.quiet = s.quiet;
	if (s.quiet)
		out_hush();
	if (pick_open(q.vm, &c, &vm, NULL, &e) < 0 || pick_reachable(&vm, &e) < 0)
		return out_fail(&e);
	q.socket = vm.agent_socket;
	if (strcmp(q.verb, "send") == 0)
		return send_line(&q, &e);
	if (strcmp(q.verb, "follow") == 0)
		return follow(&q, &e);
	if (strcmp(q.verb, "attach") == 0)
		return attach(&q, &e);
	return plain(&q, &e);
}

const struct verb verb_rpc = {
	.name = "rpc",
	.summary = "Speaks with a coding agent that a VM keeps",
	.run = run,
	.usage = "start|stop|status [--name NAME] [vm]\n"
		 "send [--until-done] [vm] ['{\"type\":…}']\n"
		 "follow [--from OFFSET] [--until-done] [vm]\n"
		 "attach [vm]",
	.options = options,
	.text = "In the guest, /etc/pando/rpc.d/<name>.conf says what it is:\n"
		"\n"
		"    command = [\"pi\", \"--mode\", \"rpc\"]\n"
		"    protocol = \"pi\"          # or claude, or raw\n"
		"\n"
		"start keeps it running, whatever happens to it, until stop. send takes one line of JSON, as a word or from\n"
		"standard input, of at most 16 MiB, and says at which byte of its output the answer begins. follow prints its\n"
		"lines from a byte offset on, none twice and none left out, over broken connections and restarts, and says in\n"
		"the end where to go on. attach shows it in a terminal (tmux).",
	.subverbs = "start stop status send follow attach",
	.words = COMPLETE_VM,
};
