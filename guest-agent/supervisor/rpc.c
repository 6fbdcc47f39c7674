#include "guest-agent/supervisor/rpc.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/wire/json_line.h"
#include "guest-agent/supervisor/rpc_follow.h"
#include "guest-agent/supervisor/rpc_journal.h"
#include "guest-agent/supervisor/rpc_place.h"
#include "guest-agent/supervisor/rpc_spool.h"
#include "guest-agent/supervisor/rpc_watch.h"
#include "guest-agent/supervisor/supervisor.h"

#define START_MS 15000
/* Beyond what a program is given to end. */
#define STOP_MS 15000
/* A sender that says nothing more: its host is gone. */
#define SEND_IDLE_MS 60000

struct words {
	char name[RPC_NAME_MAX + 1]; /* "" not said */
	struct rpc_follow follow;
	bool supervisor;
};

static void
nap_ms(unsigned ms)
{
	struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};

	nanosleep(&t, NULL);
}

static int
complain(const struct err *e)
{
	fprintf(stderr, "pando-agent: %s\n", e->msg);
	return err_exit_code(e->code);
}

static int
print(struct json_out *o)
{
	if (o->error) {
		fprintf(stderr, "pando-agent: no memory for the answer\n");
		return EXIT_FAILED;
	}
	puts(o->buf);
	return fflush(stdout) ? EXIT_FAILED : EXIT_OK;
}

static bool
is_wanted(const struct rpc_place *p)
{
	return !faccessat(p->dir, "wanted", F_OK, 0);
}

/*
 * The supervisor.
 */

/* One that was killed goes on. */
static int
revive(const struct rpc_place *p, struct err *e)
{
	pid_t pid;

	if (!is_wanted(p))
		return err_set(e, -ESRCH,
			"coding agent \"%s\" is stopped: pando rpc start", p->name);
	return rpc_lock_owner(p, RPC_LOCK_SUPERVISOR) ? 0 : supervisor_spawn(p, &pid, e);
}

static int
read_state(const struct rpc_place *p, char *text, size_t cap)
{
	ssize_t n = rpc_read_file(p->dir, "state", text, cap);

	return n < 0 ? (int)n : json_line_check(text, (size_t)n, NULL);
}

static bool
state_is(const char *text, const char *what)
{
	struct rpc_span v;

	return json_line_member(json_line_trim(text, strlen(text)), "state", &v) &&
	       json_line_is(v, what);
}

/*
 * Status.
 */

static void
status_stream(const struct rpc_place *p, const char *name, struct json_out *o)
{
	struct journal_reader r = JOURNAL_READER_INIT;
	struct journal_bounds b = {0};

	if (!journal_reader_open(p->dir, name, &r, NULL))
		(void)journal_bounds(&r, &b, NULL);
	journal_reader_done(&r);
	json_out_object(o, name);
	json_out_u64(o, "start", b.start);
	json_out_u64(o, "end", b.end);
	json_out_u64(o, "lines", b.lines);
	json_out_end_object(o);
}

static void
status_one(const char *name, struct json_out *o)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	cleanup_rpc_conf struct rpc_conf c = {0};
	struct spool_state s;
	struct err e = {0};
	char text[8192];
	pid_t supervisor;

	json_out_object(o, NULL);
	json_out_str(o, "name", name);
	if (rpc_place_open(name, false, &p, &e)) {
		json_out_str(o, "state", "new");
		json_out_end_object(o);
		return;
	}
	supervisor = rpc_lock_owner(&p, RPC_LOCK_SUPERVISOR);
	json_out_bool(o, "wanted", is_wanted(&p));
	json_out_bool(o, "kept", supervisor > 0);
	if (rpc_conf_read(p.conf, &c, &e))
		json_out_str(o, "configuration", e.msg);
	if (!read_state(&p, text, sizeof(text)))
		json_out_raw(o, "keeper", text, strlen(text));
	if (supervisor <= 0 && !read_state(&p, text, sizeof(text)) &&
		!state_is(text, "stopped"))
		json_out_str(o, "state", "killed");
	status_stream(&p, "out", o);
	status_stream(&p, "err", o);
	if (!spool_state_read(p.dir, &s, NULL)) {
		json_out_object(o, "in");
		json_out_u64(o, "lines", s.lines);
		json_out_u64(o, "waiting_bytes",
			s.committed > s.forwarded ? s.committed - s.forwarded : 0);
		json_out_end_object(o);
	}
	json_out_end_object(o);
}

static int
cmd_status(struct words *w)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_closedir DIR *d = NULL;
	char path[PATH_MAX], name[NAME_MAX + 1];
	struct dirent *de;
	struct err e = {0};

	if (rpc_path(path, "/etc/pando/rpc.d", &e))
		return complain(&e);
	json_out_object(&o, NULL);
	json_out_array(&o, "agents");
	if (w->name[0]) {
		status_one(w->name, &o);
	} else {
		d = opendir(path);
		while (d && (de = readdir(d))) {
			size_t len = strlen(de->d_name);

			if (len <= 5 || strcmp(de->d_name + len - 5, ".conf") != 0)
				continue;
			snprintf(name, sizeof(name), "%.*s", (int)(len - 5), de->d_name);
			if (!rpc_name_check(name, NULL))
				status_one(name, &o);
		}
	}
	json_out_end_array(&o);
	json_out_end_object(&o);
	return print(&o);
}

static int
answer_status(const struct rpc_place *p)
{
	cleanup_json_out struct json_out o = {0};

	status_one(p->name, &o);
	return print(&o);
}

/*
 * Start and stop.
 */

static int
start(const struct rpc_place *p, struct err *e)
{
	pid_t supervisor = rpc_lock_owner(p, RPC_LOCK_SUPERVISOR), pid = 0;
	char text[8192];
	struct rpc_span v;
	int r = 0, status;

	if (supervisor > 0 && !read_state(p, text, sizeof(text)) &&
		state_is(text, "running"))
		return 0;
	unlinkat(p->dir, "state", 0);
	unlinkat(p->dir, "was-wanted", 0);
	r = rpc_write_file(p->dir, "wanted", "", 0);
	if (r)
		return err_sys(e, r, "%.200s/wanted", p->path);
	if (supervisor > 0)
		kill(supervisor, SIGHUP);
	else
		r = supervisor_spawn(p, &pid, e);
	for (unsigned ms = 0; !r && ms < START_MS; ms += 10) {
		if (!read_state(p, text, sizeof(text))) {
			if (!state_is(text, "failed"))
				return 0;
			if (!json_line_member(
				    json_line_trim(text, strlen(text)), "reason", &v))
				v = (struct rpc_span){"?", 1};
			return err_set(e, -EIO, "coding agent \"%s\" failed: %.*s",
				p->name, v.len > 300 ? 300 : (int)v.len, v.at);
		}
		if (pid && waitpid(pid, &status, WNOHANG) == pid) {
			if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_CONFLICT)
				pid = 0; /* another one was faster */
			else
				return err_set(e, -EIO,
					"the supervisor of \"%s\" ended at once: see %.200s/keeper.log",
					p->name, p->path);
		}
		nap_ms(10);
	}
	return r ? r
		 : err_set(e, -ETIMEDOUT,
			   "the supervisor of \"%s\" says nothing: see %.200s/keeper.log",
			   p->name, p->path);
}

static int
cmd_start(struct words *w)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	cleanup_rpc_conf struct rpc_conf c = {0};
	struct err e = {0};
	int r = rpc_place_open(w->name, true, &p, &e);

	/* What is wrong with it is better said here than in a log. */
	if (!r)
		r = rpc_conf_read(p.conf, &c, &e);
	if (!r)
		r = start(&p, &e);
	return r ? complain(&e) : answer_status(&p);
}

static int
stop(const struct rpc_place *p, struct err *e)
{
	cleanup_rpc_conf struct rpc_conf c = {0};
	unsigned limit_ms = STOP_MS;
	pid_t supervisor;

	/* One that was killed left a program behind, which only a supervisor can end well. */
	if (is_wanted(p) && !rpc_lock_owner(p, RPC_LOCK_SUPERVISOR) &&
		rpc_lock_owner(p, RPC_LOCK_SHIM) > 0) {
		pid_t pid;
		int r = supervisor_spawn(p, &pid, e);

		if (r)
			return r;
		for (unsigned ms = 0;
			ms < 2000 && !rpc_lock_owner(p, RPC_LOCK_SUPERVISOR); ms += 10)
			nap_ms(10);
	}
	if (!rpc_conf_read(p->conf, &c, NULL))
		limit_ms += c.stop_s * 1000;
	unlinkat(p->dir, "wanted", 0);
	unlinkat(p->dir, "was-wanted", 0);
	supervisor = rpc_lock_owner(p, RPC_LOCK_SUPERVISOR);
	if (supervisor <= 0)
		return 0;
	/* It may be so young that it does not watch signals yet: then it dies of this
	 * one, with nothing started. */
	kill(supervisor, SIGTERM);
	for (unsigned ms = 0; ms < limit_ms; ms += 10) {
		if (rpc_lock_owner(p, RPC_LOCK_SUPERVISOR) != supervisor)
			return 0;
		nap_ms(10);
	}
	return err_set(e, -ETIMEDOUT, "coding agent \"%s\" did not end within %u s",
		p->name, limit_ms / 1000);
}

static int
cmd_stop(struct words *w)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	struct err e = {0};
	int r = rpc_place_open(w->name, false, &p, &e);

	if (!r)
		r = stop(&p, &e);
	return r ? complain(&e) : answer_status(&p);
}

/*
 * Boot.
 */

/* After the machine was started anew: what was to be kept until then is kept again. One
 * whose supervisor or shim lives is none of its business. */
static int
boot_one(const char *name, struct err *e)
{
	static const char left[] =
		"{\"state\":\"stopped\",\"reason\":\"the machine was started anew, and [restart] boot is false\"}";
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	cleanup_rpc_conf struct rpc_conf c = {0};
	int r = rpc_place_open(name, false, &p, e);

	if (r || (!is_wanted(&p) && faccessat(p.dir, "was-wanted", F_OK, 0)) ||
		rpc_lock_owner(&p, RPC_LOCK_SUPERVISOR) ||
		rpc_lock_owner(&p, RPC_LOCK_SHIM))
		return r;
	r = rpc_conf_read(p.conf, &c, e);
	if (r)
		return err_wrap(e, r, "coding agent \"%s\" is not started again", name);
	if (c.boot)
		return start(&p, e);
	unlinkat(p.dir, "wanted", 0);
	unlinkat(p.dir, "was-wanted", 0);
	r = rpc_write_file(p.dir, "state", left, sizeof(left) - 1);
	return r ? err_sys(e, r, "%.200s/state", p.path) : 0;
}

static int
cmd_boot(struct words *w)
{
	cleanup_closedir DIR *d = NULL;
	int status = EXIT_OK;
	char path[PATH_MAX];
	struct dirent *de;
	struct err e = {0};

	(void)w;
	if (rpc_path(path, "/var/lib/pando/rpc", &e))
		return complain(&e);
	d = opendir(path);
	while (d && (de = readdir(d)))
		if (!rpc_name_check(de->d_name, NULL) && boot_one(de->d_name, &e))
			status = complain(&e);
	return status;
}

/*
 * Send.
 */

static int
read_line(char **ret, size_t *ret_len, struct err *e)
{
	size_t cap = 0, len = 0, max = SPOOL_LINE_MAX + 2; /* CR LF may follow it */
	cleanup_free char *buf = NULL;

	for (;;) {
		struct pollfd p = {.fd = 0, .events = POLLIN};
		ssize_t n;

		if (len == cap) {
			char *bigger;

			if (cap > max)
				return err_set(e, -E2BIG,
					"the line has more than %u bytes",
					SPOOL_LINE_MAX);
			cap = cap ? cap * 2 : 65536;
			if (cap > max + 1)
				cap = max + 1;
			if (len == cap)
				return err_set(e, -E2BIG,
					"the line has more than %u bytes",
					SPOOL_LINE_MAX);
			bigger = realloc(buf, cap);
			if (!bigger)
				return err_sys(e, -ENOMEM, "the line");
			buf = bigger;
		}
		if (poll(&p, 1, SEND_IDLE_MS) == 0)
			return err_set(e, -ETIMEDOUT,
				"the line was not ended: nothing came for %d s",
				SEND_IDLE_MS / 1000);
		n = io_read(0, buf + len, cap - len);
		if (n < 0)
			return err_sys(e, (int)n, "reading the line");
		if (!n)
			break;
		len += (size_t)n;
	}
	*ret = TAKE_PTR(buf);
	*ret_len = len;
	return 0;
}

static int
check_line(const char *line, size_t len, struct err *e)
{
	const char *lf;
	int r;

	if (len > SPOOL_LINE_MAX)
		return err_set(
			e, -E2BIG, "the line has more than %u bytes", SPOOL_LINE_MAX);
	if (!len)
		return err_set(e, -EINVAL, "there is no line: give one JSON value");
	r = json_line_check(line, len, e);
	if (r)
		return r;
	lf = memchr(line, '\n', len);
	if (lf)
		return err_set(e, -EINVAL,
			"byte %zu is a line feed: the JSON must be one line",
			(size_t)(lf - line));
	return 0;
}

static int
cmd_send(struct words *w)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	cleanup_json_out struct json_out o = {0};
	cleanup_free char *text = NULL;
	struct journal_reader out = JOURNAL_READER_INIT;
	struct journal_bounds b = {0};
	struct rpc_span line;
	struct err e = {0};
	uint64_t number = 0;
	size_t len = 0;
	int r = rpc_place_open(w->name, false, &p, &e);

	if (!r)
		r = revive(&p, &e);
	if (!r)
		r = read_line(&text, &len, &e);
	if (r)
		return complain(&e);
	line = json_line_trim(text, len);
	r = check_line(line.at, line.len, &e);
	/* Before it is there: whatever answers it comes after this. */
	if (!r && !journal_reader_open(p.dir, "out", &out, NULL))
		(void)journal_bounds(&out, &b, NULL);
	journal_reader_done(&out);
	if (!r)
		r = spool_append(p.dir, line.at, line.len, SPOOL_LOCK_MS, &number, &e);
	if (r)
		return complain(&e);
	json_out_object(&o, NULL);
	json_out_u64(&o, "line", number);
	json_out_u64(&o, "bytes", line.len + 1);
	json_out_u64(&o, "out", b.end);
	json_out_end_object(&o);
	return print(&o);
}

static int
cmd_follow(struct words *w)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	struct err e = {0};
	bool failed = false;
	int r = rpc_place_open(w->name, false, &p, &e);

	/* One that is stopped can be read, too. */
	if (!r && is_wanted(&p))
		r = revive(&p, &e);
	if (!r)
		r = rpc_follow(&p, &w->follow, &failed, &e);
	if (r)
		return complain(&e);
	return failed && !w->follow.framed ? EXIT_FAILED : EXIT_OK;
}

static int
cmd_watch(struct words *w)
{
	return rpc_watch_main(w->name, w->supervisor);
}

static const struct {
	const char *name;
	int (*run)(struct words *w);
	bool nameless; /* may mean all of them */
} commands[] = {
	{"start", cmd_start, false},
	{"stop", cmd_stop, false},
	{"boot", cmd_boot, true},
	{"status", cmd_status, true},
	{"send", cmd_send, false},
	{"follow", cmd_follow, false},
	{"watch", cmd_watch, false},
};

static bool
number(const char *text, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	return *text >= '0' && *text <= '9' && !errno && !*end;
}

static int
usage(void)
{
	fputs("usage: pando-agent rpc start|stop|status|watch [--root FOLDER] [NAME]\n"
	      "       pando-agent rpc send [NAME] <one JSON value\n"
	      "       pando-agent rpc follow [--from OFFSET|end] [--stream out|err] [--for-ms N]\n"
	      "                              [--until-done] [--framed] [NAME]\n",
		stderr);
	return EXIT_USAGE;
}

int
rpc_main(int argc, char **argv)
{
	enum { ROOT = 256, FROM, STREAM, FOR, DONE, FRAMED, BEGUN, SUPERVISOR };
	static const struct option options[] = {
		{"root", required_argument, NULL, ROOT},
		{"from", required_argument, NULL, FROM},
		{"stream", required_argument, NULL, STREAM},
		{"for-ms", required_argument, NULL, FOR},
		{"until-done", no_argument, NULL, DONE},
		{"framed", no_argument, NULL, FRAMED},
		{"begun", no_argument, NULL, BEGUN},
		{"keeper", no_argument, NULL, SUPERVISOR},
		{0},
	};
	struct words w = {.follow = {.stream = "out", .for_ms = UINT64_MAX}};
	struct err e = {0};
	const char *verb = argc > 1 ? argv[1] : "";
	size_t n = sizeof(commands) / sizeof(commands[0]), c;
	int opt;

	for (c = 0; c < n && strcmp(commands[c].name, verb) != 0; c++)
		;
	if (c == n)
		return usage();
	optind = 2;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case ROOT:
			rpc_root_set(optarg);
			break;
		case FROM:
			w.follow.from_end = strcmp(optarg, "end") == 0;
			if (!w.follow.from_end && !number(optarg, &w.follow.from))
				return usage();
			break;
		case STREAM:
			if (strcmp(optarg, "out") != 0 && strcmp(optarg, "err") != 0)
				return usage();
			w.follow.stream = optarg;
			break;
		case FOR:
			if (!number(optarg, &w.follow.for_ms))
				return usage();
			break;
		case DONE:
			w.follow.until_done = true;
			break;
		case FRAMED:
			w.follow.framed = true;
			break;
		case BEGUN:
			w.follow.begun = true;
			break;
		case SUPERVISOR:
			w.supervisor = true;
			break;
		default:
			return usage();
		}
	}
	if (argc - optind > 1)
		return usage();
	if (optind < argc) {
		if (rpc_name_check(argv[optind], &e))
			return complain(&e);
		snprintf(w.name, sizeof(w.name), "%s", argv[optind]);
	} else if (!commands[c].nameless && rpc_place_only(w.name, &e)) {
		return complain(&e);
	}
	return commands[c].run(&w);
}
