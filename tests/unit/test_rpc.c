/*
 * The supervisor of coding agents for real: pando-agent's rpc commands below a folder of the
 * test's own, with small programs in the place of the coding agent.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "guest-agent/supervisor/rpc_journal.h"
#include "guest-agent/supervisor/rpc_place.h"
#include "guest-agent/supervisor/rpc_spool.h"
#include "tests/unit/agent_help.h"

static char root[64], root_option[80];
/* In the process of the agent's program, before it is that. */
static void (*before_exec)(void);

struct said {
	int status;
	char *out, *err; /* owned */
	size_t out_len, err_len;
};

static void
said_done(struct said *s)
{
	free(s->out);
	free(s->err);
}
#define cleanup_said __attribute__((cleanup(said_done)))

static void
read_more(int *fd, char **buf, size_t *len)
{
	ssize_t n;

	*buf = realloc(*buf, *len + 65537);
	assert_non_null(*buf);
	n = read(*fd, *buf + *len, 65536);
	if (n <= 0) {
		close(*fd);
		*fd = -1;
		n = 0;
	}
	*len += (size_t)n;
	(*buf)[*len] = 0;
}

/* A program of the agent with its input; words end with NULL. */
static struct said
run_words(const char *input, size_t len, const char *const *words)
{
	struct said s = {0};
	const char *argv[24] = {"pando-agent"};
	int in[2], out[2], err[2], status;
	size_t n = 1;
	const char *program = agent_help_program();
	pid_t pid;

	while (*words)
		argv[n++] = *words++;
	assert_int_equal(
		pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
	pid = fork();
	if (!pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		if (before_exec)
			before_exec();
		execv(program, (char *const *)(uintptr_t)argv);
		_exit(99);
	}
	close(in[0]);
	close(out[1]);
	close(err[1]);
	fcntl(in[1], F_SETFL, O_NONBLOCK);
	while (out[0] >= 0 || err[0] >= 0) {
		struct pollfd p[3] = {{.fd = out[0], .events = POLLIN},
			{.fd = err[0], .events = POLLIN},
			{.fd = in[1], .events = POLLOUT}};

		if (in[1] >= 0 && !len) {
			close(in[1]);
			in[1] = p[2].fd = -1;
		}
		assert_true(poll(p, 3, 60000) > 0);
		if (p[0].revents)
			read_more(&out[0], &s.out, &s.out_len);
		if (p[1].revents)
			read_more(&err[0], &s.err, &s.err_len);
		if (p[2].revents) {
			ssize_t w = write(in[1], input, len);

			if (w < 0 && errno == EPIPE)
				len = 0;
			if (w > 0) {
				input += w;
				len -= (size_t)w;
			}
		}
	}
	if (in[1] >= 0)
		close(in[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	s.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	return s;
}

#define RUN_IN(input, len, ...) \
	run_words(input, len, (const char *const[]){__VA_ARGS__, NULL})
#define RPC(...) RUN_IN("", 0, "rpc", __VA_ARGS__, root_option)

/* Where what it says does not matter. */
static void
said_nothing(struct said s)
{
	said_done(&s);
}

static void
write_at(const char *path, const char *text)
{
	agent_help_put(root, path, text, 0644);
}

static char *
text_of(const char *path)
{
	char at[256], *text = NULL;
	struct err e = {0};

	snprintf(at, sizeof(at), "%s%s", root, path);
	if (io_read_file(at, 1u << 28, &text, NULL, &e))
		fail_msg("%s", e.msg);
	return text;
}

/* The configuration of "a": a shell script as the coding agent. */
static void
configure(const char *script, const char *more)
{
	char conf[8192];

	write_at("/agent.sh", script);
	snprintf(conf, sizeof(conf),
		"command = [\"sh\", \"%s/agent.sh\"]\ntmux = false\n%s", root, more);
	write_at("/etc/pando/rpc.d/a.conf", conf);
}

static void
configure_python(const char *script, const char *more)
{
	char conf[8192];

	write_at("/agent.py", script);
	snprintf(conf, sizeof(conf),
		"command = [\"python3\", \"-u\", \"%s/agent.py\"]\ntmux = false\n%s",
		root, more);
	write_at("/etc/pando/rpc.d/a.conf", conf);
}

static void
started(void)
{
	cleanup_said struct said s = RPC("start");

	if (s.status)
		fail_msg("%d: %s", s.status, s.err);
}

static struct said
send_line(const char *line, size_t len)
{
	return RUN_IN(line, len, "rpc", "send", root_option);
}

static void
sent(const char *line)
{
	cleanup_said struct said s = send_line(line, strlen(line));

	if (s.status)
		fail_msg("%d: %s", s.status, s.err);
}

static int64_t
status_number(const char *part, const char *name)
{
	cleanup_said struct said s = RPC("status", "a");
	cleanup_json struct json *j = NULL;
	int agent;
	int64_t v = -1;

	assert_int_equal(s.status, 0);
	assert_int_equal(json_parse(s.out, s.out_len, 512, &j, NULL), 0);
	agent = json_at(j, json_get(j, 0, "agents"), 0);
	(void)json_i64(j, json_get(j, json_get(j, agent, part), name), &v);
	return v;
}

static bool
state_is(const char *what)
{
	cleanup_said struct said s = RPC("status", "a");
	char want[64];

	snprintf(want, sizeof(want), "{\"state\":\"%s\"", what);
	return strstr(s.out, want) != NULL;
}

#define WAIT_FOR(condition, seconds) \
	do { \
		int rounds_ = (seconds)*50; \
		while (!(condition) && rounds_--) \
			usleep(20000); \
		assert_true(condition); \
	} while (0)

static pid_t
supervisor_pid(void)
{
	return (pid_t)status_number("keeper", "keeper");
}

static void
kill_supervisor(void)
{
	struct rpc_place p = RPC_PLACE_INIT;
	pid_t pid;

	rpc_root_set(root);
	assert_int_equal(rpc_place_open("a", false, &p, NULL), 0);
	pid = rpc_lock_owner(&p, RPC_LOCK_SUPERVISOR);
	assert_true(pid > 0);
	kill(pid, SIGKILL);
	while (rpc_lock_owner(&p, RPC_LOCK_SUPERVISOR) == pid)
		usleep(1000);
	rpc_place_done(&p);
}

static void
kill_shim(void)
{
	struct rpc_place p = RPC_PLACE_INIT;

	assert_int_equal(rpc_place_open("a", false, &p, NULL), 0);
	kill(rpc_lock_owner(&p, RPC_LOCK_SHIM), SIGKILL);
	rpc_place_done(&p);
}

static int
setup(void **state)
{
	(void)state;
	strcpy(root, "/tmp/pando-rpc-test-XXXXXX");
	agent_help_make_root(root);
	snprintf(root_option, sizeof(root_option), "--root=%s", root);
	rpc_root_set(root);
	return 0;
}

static int
teardown(void **state)
{
	cleanup_free char *log = NULL;
	char path[160];

	(void)state;
	said_nothing(RPC("stop", "a"));
	snprintf(path, sizeof(path), "%s/var", root);
	umount2(path, MNT_DETACH); /* a_full_disk_… */
	/* The keeper's own sanitizers. */
	snprintf(path, sizeof(path), "%s/var/lib/pando/rpc/a/keeper.log", root);
	if (!io_read_file(path, 1u << 22, &log, NULL, NULL) &&
		(strstr(log, "Sanitizer") || strstr(log, "runtime error"))) {
		fprintf(stderr, "%s\n", log);
		return -1;
	}
	return io_remove_tree(root, NULL);
}

/* The mount point of control groups (v2); "" for none. */
static void
find_groups(char at[static 256])
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[1024];

	at[0] = '\0';
	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, " - cgroup2 "))
			sscanf(line, "%*s %*s %*s %*s %255s", at);
	if (f)
		fclose(f);
}

static bool
groups_can_be_made(void)
{
	char at[256], path[300];

	find_groups(at);
	snprintf(path, sizeof(path), "%s/pando-test-%d", at, (int)getpid());
	return at[0] && !mkdir(path, 0755) && !rmdir(path);
}

/* As where there are no control groups: they are not mounted for what is started here. */
static void
hide_groups(void)
{
	char at[256];

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		_exit(98);
	for (find_groups(at); at[0]; find_groups(at))
		if (umount2(at, MNT_DETACH))
			_exit(98);
}

static const char echo_script[] =
	"while IFS= read -r line; do printf '%s\\n' \"$line\"; done\n";

static void
lines_come_back_and_offsets_are_true(void **state)
{
	cleanup_free char *out = NULL;

	(void)state;
	configure(echo_script, "");
	started();
	sent("{\"n\":1}");
	sent("  {\"n\":2}\r\n");
	sent("[\"\xe2\x80\xa8 is no end of line\"]");
	WAIT_FOR(status_number("out", "lines") == 3, 10);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "8", "--for-ms", "0");

		assert_int_equal(s.status, 0);
		assert_string_equal(
			s.out, "{\"n\":2}\n[\"\xe2\x80\xa8 is no end of line\"]\n");
	}
	out = text_of("/tmp/a-rpc/out");
	assert_string_equal(
		out, "{\"n\":1}\n{\"n\":2}\n[\"\xe2\x80\xa8 is no end of line\"]\n");
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "1000", "--for-ms", "0");

		assert_int_equal(s.status, 2);
		assert_non_null(strstr(s.err, "not 1000"));
	}
}

static void
bad_lines_are_refused_with_a_sentence(void **state)
{
	static const struct {
		const char *line, *say;
		int status;
	} cases[] = {
		{"", "there is no line", 2},
		{"no json", "no JSON", 2},
		{"{\"a\":1", "ends in the middle", 2},
		{"{\"a\":1} {\"b\":2}", "something follows", 2},
		{"{\"a\":\n1}", "line feed", 2},
		{"{\"a\":\"x\ny\"}", "line feed", 2},
		{"{\"a\":\"\xff\"}", "no UTF-8", 2},
		{"{\"a\":01}", "must stand here", 2},
	};

	(void)state;
	configure(echo_script, "protocol = \"pi\"\n");
	started();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		cleanup_said struct said s =
			send_line(cases[i].line, strlen(cases[i].line));

		assert_int_equal(s.status, cases[i].status);
		if (!strstr(s.err, cases[i].say))
			fail_msg("%s: %s", cases[i].line, s.err);
	}
	assert_int_equal(status_number("in", "lines"), 0);
}

static char *
long_line(size_t len)
{
	char *line = malloc(len + 1);

	assert_non_null(line);
	memset(line, 'x', len);
	memcpy(line, "{\"a\":\"", 6);
	memcpy(line + len - 2, "\"}", 2);
	line[len] = 0;
	return line;
}

static void
a_line_of_16_MiB_arrives_and_one_of_17_is_refused(void **state)
{
	cleanup_free char *line = long_line(16u << 20);
	cleanup_free char *more = long_line(17u << 20);

	(void)state;
	configure_python("import sys\n"
			 "for l in sys.stdin.buffer:\n"
			 "  sys.stdout.buffer.write(l); sys.stdout.buffer.flush()\n",
		"");
	started();
	{
		cleanup_said struct said s = send_line(line, 16u << 20);

		if (s.status)
			fail_msg("%s", s.err);
	}
	{
		cleanup_said struct said s = send_line(more, 17u << 20);

		assert_int_equal(s.status, 2);
		assert_non_null(strstr(s.err, "more than 16777216 bytes"));
	}
	WAIT_FOR(status_number("out", "lines") == 1, 30);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_int_equal(s.out_len, (16u << 20) + 1);
		assert_memory_equal(s.out, line, 16u << 20);
	}
}

static void
eight_senders_of_1_MiB_lines_tear_none(void **state)
{
	enum { SENDERS = 8, EACH = 4, LEN = 1 << 20 };
	uint64_t from = 0;
	unsigned seen[SENDERS] = {0};

	(void)state;
	configure_python("import sys\n"
			 "for l in sys.stdin.buffer:\n"
			 "  sys.stdout.buffer.write(l); sys.stdout.buffer.flush()\n",
		"");
	started();
	for (int i = 0; i < SENDERS; i++)
		if (!fork()) {
			char *line = long_line(LEN);

			for (int k = 0; k < EACH; k++) {
				struct said s;

				memset(line + 6, 'a' + i, LEN - 8);
				s = send_line(line, LEN);
				if (s.status)
					_exit(1);
			}
			_exit(0);
		}
	for (int i = 0; i < SENDERS; i++) {
		int status;

		assert_true(wait(&status) > 0);
		assert_int_equal(status, 0);
	}
	WAIT_FOR(status_number("out", "lines") == SENDERS * EACH, 30);
	(void)from;
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");
		const char *at = s.out;

		assert_int_equal(s.out_len, (size_t)SENDERS * EACH * (LEN + 1));
		for (int n = 0; n < SENDERS * EACH; n++, at += LEN + 1) {
			char c = at[6];

			assert_true(c >= 'a' && c < 'a' + SENDERS);
			seen[c - 'a']++;
			for (size_t i = 6; i < LEN - 2; i++)
				if (at[i] != c)
					fail_msg("line %d is torn at %zu", n, i);
			assert_int_equal(at[LEN], '\n');
		}
	}
	for (int i = 0; i < SENDERS; i++)
		assert_int_equal(seen[i], EACH);
}

static void
the_fifo_takes_whole_lines_beside_senders(void **state)
{
	char path[128];
	int fd;

	(void)state;
	configure(echo_script, "protocol = \"pi\"\n");
	started();
	snprintf(path, sizeof(path), "%s/tmp/a-rpc/in", root);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "{\"half\":", 8), 8);
	sent("{\"whole\":1}");
	assert_int_equal(write(fd, "2}\nnot json\n{\"c\":3}\n", 20), 20);
	close(fd); /* its last writer: no end for the program */
	WAIT_FOR(status_number("out", "lines") == 3, 10);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_string_equal(s.out, "{\"whole\":1}\n{\"half\":2}\n{\"c\":3}\n");
	}
	WAIT_FOR(status_number("keeper", "refused") >= 0, 1);
	sent("{\"d\":4}");
	WAIT_FOR(status_number("out", "lines") == 4, 10);
}

static void
one_that_dies_on_start_ten_times_is_given_up(void **state)
{
	cleanup_free char *err = NULL;
	unsigned lines = 0;

	(void)state;
	configure("echo dies >&2; exit 3\n",
		"[restart]\ndelay_ms = 1\ndelay_max_ms = 5\nlimit = 10\n");
	said_nothing(RPC("start"));
	WAIT_FOR(state_is("failed"), 20);
	err = text_of("/tmp/a-rpc/err");
	for (const char *at = err; (at = strstr(at, "dies\n")); at++)
		lines++;
	assert_int_equal(lines, 10);
	{
		cleanup_said struct said s = RPC("status", "a");

		assert_non_null(strstr(s.out, "it failed 10 times within 300 s"));
		assert_non_null(strstr(s.out, "status 3"));
	}
	/* Mended, it starts again. */
	configure(echo_script, "");
	started();
	sent("{}");
	WAIT_FOR(status_number("out", "lines") == 1, 10);
}

static void
a_program_that_is_not_there_is_said(void **state)
{
	(void)state;
	write_at("/etc/pando/rpc.d/a.conf",
		"command = [\"/no/such/program\"]\n"
		"tmux = false\n[restart]\npolicy = \"never\"\n");
	said_nothing(RPC("start"));
	WAIT_FOR(state_is("failed"), 10);
	{
		cleanup_said struct said s = RPC("status", "a");

		assert_non_null(strstr(s.out, "/no/such/program"));
		assert_non_null(strstr(s.out, "No such file"));
	}
}

static void
a_flood_is_kept_to_its_bound_and_offsets_stay_true(void **state)
{
	struct journal_reader r = JOURNAL_READER_INIT;
	struct journal_bounds b;
	struct journal_record rec;
	struct rpc_place p = RPC_PLACE_INIT;
	char line[64], path[128];
	struct stat st;

	(void)state;
	configure_python("import os\n"
			 "n = 0\n"
			 "while n < 6000000:\n"
			 "  b = b''.join(b'%015d\\n' % i for i in range(n, n + 60000))\n"
			 "  while b: b = b[os.write(1, b):]\n"
			 "  n += 60000\n"
			 "import time; time.sleep(1000)\n",
		"stop_s = 0\n[journal]\nkeep_mib = 2\n");
	started();
	WAIT_FOR(status_number("out", "lines") == 6000000, 100);
	assert_int_equal(rpc_place_open("a", false, &p, NULL), 0);
	assert_int_equal(journal_reader_open(p.dir, "out", &r, NULL), 0);
	assert_int_equal(journal_bounds(&r, &b, NULL), 0);
	assert_int_equal(b.end, 96000000);
	assert_true(b.end - b.start <= 3u << 20);
	assert_true(b.end - b.start >= 2u << 20);
	for (uint64_t n = b.first; n < b.lines; n += 997) {
		char want[64];

		assert_int_equal(journal_record(&r, n, &rec, NULL), 1);
		assert_int_equal(rec.offset, n * 16);
		assert_int_equal(journal_read(&r, n, &rec, 0, line, 16, NULL), 0);
		snprintf(want, sizeof(want), "%015llu\n", (unsigned long long)n);
		assert_memory_equal(line, want, 16);
	}
	assert_int_equal(journal_record(&r, 5, &rec, NULL), -ESTALE);
	journal_reader_done(&r);
	rpc_place_done(&p);
	snprintf(path, sizeof(path), "%s/tmp/a-rpc/out", root);
	assert_int_equal(stat(path, &st), 0);
	assert_true(st.st_blocks * 512 < 8 << 20);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "16", "--for-ms", "0", "--framed");

		assert_int_equal(strncmp(s.out, "G 16 ", 5), 0);
	}
}

static void
half_lines_become_whole_ones_or_none(void **state)
{
	(void)state;
	/* It ends in the middle of a line, twice; then it goes on. */
	configure("n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) >count\n"
		  "printf '{\"a\":'; sleep 0.2; printf '%s}\\n{\"cut' $n\n"
		  "[ $n -lt 2 ] && exit 1\n"
		  "echo '\":1}'; sleep 1000\n",
		"");
	{
		char conf[512];

		snprintf(conf, sizeof(conf),
			"command = [\"sh\", \"%s/agent.sh\"]\nfolder = \"%s\"\ntmux = false\n"
			"stop_s = 0\n[restart]\ndelay_ms = 1\n",
			root, root);
		write_at("/etc/pando/rpc.d/a.conf", conf);
	}
	started();
	WAIT_FOR(status_number("out", "lines") == 6, 10);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_string_equal(
			s.out, "{\"a\":0}\n{\"a\":1}\n{\"a\":2}\n{\"cut\":1}\n");
	}
}

/* Numbered lines in, the same lines out: none lost, repeated, or torn. */
static void
a_supervisor_that_is_killed_again_and_again_loses_nothing(void **state)
{
	enum { LINES = 300 };
	pid_t sender;
	int status;

	(void)state;
	configure_python("import sys\n"
			 "for l in sys.stdin.buffer:\n"
			 "  sys.stdout.buffer.write(l[:7]); sys.stdout.buffer.flush()\n"
			 "  sys.stdout.buffer.write(l[7:]); sys.stdout.buffer.flush()\n",
		"");
	started();
	sender = fork();
	if (!sender) {
		char *line = long_line(40000);

		for (int i = 0; i < LINES; i++) {
			char number[16];
			struct said s;

			snprintf(number, sizeof(number), "%06d", i);
			memcpy(line + 8, number, 6);
			s = send_line(line, 40000);
			if (s.status)
				_exit(1);
		}
		_exit(0);
	}
	for (int i = 0; i < 20; i++) {
		usleep(50000 + (useconds_t)(i * 7919) % 40000);
		kill_supervisor();
		said_nothing(RPC("follow", "--from", "0", "--for-ms", "0"));
		WAIT_FOR(supervisor_pid() > 0, 5);
		{
			struct rpc_place p = RPC_PLACE_INIT;

			assert_int_equal(rpc_place_open("a", false, &p, NULL), 0);
			WAIT_FOR(rpc_lock_owner(&p, RPC_LOCK_SUPERVISOR) > 0, 5);
			rpc_place_done(&p);
		}
	}
	assert_int_equal(waitpid(sender, &status, 0), sender);
	assert_int_equal(status, 0);
	WAIT_FOR(status_number("out", "lines") == LINES, 30);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_int_equal(s.out_len, (size_t)LINES * 40001);
		for (int i = 0; i < LINES; i++) {
			char number[16];

			snprintf(number, sizeof(number), "%06d", i);
			assert_memory_equal(s.out + (size_t)i * 40001 + 8, number, 6);
			assert_int_equal(s.out[(size_t)i * 40001 + 40000], '\n');
		}
	}
	/* It is the same program all the time. */
	assert_true(status_number("keeper", "starts") == 0);
}

static void
a_supervisor_that_is_killed_comes_back_by_itself(void **state)
{
	struct rpc_place p = RPC_PLACE_INIT;
	double lines;

	(void)state;
	configure(
		"i=0; while :; do echo \"{\\\"i\\\":$i}\"; i=$((i + 1)); sleep 0.01; done\n",
		"stop_s = 0\n");
	started();
	kill_supervisor();
	assert_int_equal(rpc_place_open("a", false, &p, NULL), 0);
	WAIT_FOR(rpc_lock_owner(&p, RPC_LOCK_SUPERVISOR) > 0, 15);
	rpc_place_done(&p);
	lines = status_number("out", "lines");
	WAIT_FOR(status_number("out", "lines") > lines + 50, 20);
	assert_int_equal(status_number("keeper", "starts"), 0);
}

/* One that had come to an end does not begin again because its supervisor was killed. */
static void
an_end_outlives_its_supervisor(void **state)
{
	(void)state;
	configure("echo '{}'\n", "");
	started();
	WAIT_FOR(state_is("ended"), 10);
	kill_supervisor();
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_string_equal(s.out, "{}\n");
	}
	usleep(500000);
	assert_true(state_is("ended"));
	assert_int_equal(status_number("out", "lines"), 1);
	/* Asked for, it does. */
	started();
	WAIT_FOR(status_number("out", "lines") == 2, 10);
}

/*
 * The machine is started anew.
 */

static pid_t
lock_of(const char *what)
{
	struct rpc_place p = RPC_PLACE_INIT;
	pid_t pid;

	assert_int_equal(rpc_place_open("a", false, &p, NULL), 0);
	pid = rpc_lock_owner(&p, what);
	rpc_place_done(&p);
	return pid;
}

/* As systemd does when it shuts down, and as a power cut. */
static void
end_machine(bool in_order)
{
	pid_t agent = (pid_t)status_number("keeper", "program"), pid;

	if (in_order) {
		kill(lock_of(RPC_LOCK_SUPERVISOR), SIGTERM);
		WAIT_FOR(!lock_of(RPC_LOCK_SUPERVISOR) && !lock_of(RPC_LOCK_SHIM), 20);
		return;
	}
	while ((pid = lock_of(RPC_LOCK_SUPERVISOR)) > 0 ||
		(pid = lock_of(RPC_LOCK_SHIM)) > 0) {
		kill(pid, SIGKILL);
		usleep(1000);
	}
	if (agent > 1)
		kill(agent, SIGKILL);
}

static void
what_was_kept_is_kept_again_after_a_boot(void **state)
{
	pid_t supervisor;

	(void)state;
	configure(echo_script, "stop_s = 1\n");
	for (int in_order = 0; in_order < 2; in_order++) {
		started();
		sent("{\"n\":1}");
		WAIT_FOR(status_number("out", "lines") == 2 * in_order + 1, 10);
		end_machine(in_order);
		assert_false(state_is("running") && lock_of(RPC_LOCK_SUPERVISOR));
		said_nothing(RPC("boot"));
		assert_true(state_is("running"));
		supervisor = supervisor_pid();
		/* Not twice. */
		said_nothing(RPC("boot"));
		assert_int_equal(supervisor_pid(), supervisor);
		assert_int_equal(status_number("keeper", "starts"), 1);
		sent("{\"n\":2}");
		WAIT_FOR(status_number("out", "lines") == 2 * in_order + 2, 10);
		said_nothing(RPC("stop"));
	}
	/* Stopped, it stays so. */
	said_nothing(RPC("boot"));
	assert_true(state_is("stopped"));
	assert_int_equal(lock_of(RPC_LOCK_SUPERVISOR), 0);
}

static void
one_that_had_ended_begins_again_with_the_machine(void **state)
{
	(void)state;
	configure("echo '{}'\n", "");
	started();
	WAIT_FOR(state_is("ended"), 10);
	end_machine(true);
	said_nothing(RPC("boot"));
	WAIT_FOR(status_number("out", "lines") == 2, 10);
}

static void
one_that_is_not_to_boot_stays_stopped(void **state)
{
	static const char *const confs[] = {
		"[restart]\nboot = false\n", "[restart]\npolicy = \"never\"\n"};

	(void)state;
	for (size_t i = 0; i < 2; i++) {
		configure(echo_script, confs[i]);
		started();
		end_machine(i);
		said_nothing(RPC("boot"));
		assert_true(state_is("stopped"));
		{
			cleanup_said struct said s = RPC("status", "a");

			assert_non_null(strstr(s.out, "the machine was started anew"));
		}
		{
			cleanup_said struct said s =
				RUN_IN("{}", 2, "rpc", "send", "a", root_option);

			assert_int_not_equal(s.status, 0);
			assert_non_null(strstr(s.err, "is stopped: pando rpc start"));
		}
		assert_int_equal(lock_of(RPC_LOCK_SUPERVISOR), 0);
	}
	/* Said so, it is, whatever the policy. */
	configure(echo_script, "[restart]\npolicy = \"never\"\nboot = true\n");
	started();
	end_machine(false);
	said_nothing(RPC("boot"));
	assert_true(state_is("running"));
}

static void
a_cut_spool_is_mended(void **state)
{
	char path[160];

	(void)state;
	configure(echo_script, "");
	started();
	sent("{\"n\":1}");
	WAIT_FOR(status_number("out", "lines") == 1, 10);
	said_nothing(RPC("stop"));
	/* Of two lines that were sent one is there, and a half. */
	snprintf(path, sizeof(path), "%s/var/lib/pando/rpc/a/spool", root);
	assert_int_equal(truncate(path, 4), 0);
	started();
	sent("{\"n\":2}");
	WAIT_FOR(status_number("out", "lines") == 2, 10);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "8", "--for-ms", "0");

		assert_string_equal(s.out, "{\"n\":2}\n");
	}
}

static void
a_shim_that_is_killed_is_a_failure_of_its_program(void **state)
{
	(void)state;
	configure(echo_script, "[restart]\ndelay_ms = 1\n");
	started();
	sent("{\"n\":1}");
	WAIT_FOR(status_number("out", "lines") == 1, 10);
	kill_shim();
	WAIT_FOR(status_number("keeper", "starts") == 2, 10);
	sent("{\"n\":2}");
	WAIT_FOR(status_number("out", "lines") == 2, 10);
}

static void
what_was_not_read_is_for_the_next_program(void **state)
{
	(void)state;
	/* The first one reads nothing and ends. */
	configure("[ -e seen ] || { touch seen; sleep 1; exit 1; }\n"
		  "while IFS= read -r line; do printf '%s\\n' \"$line\"; done\n",
		"[restart]\ndelay_ms = 1\n");
	{
		char conf[512];

		snprintf(conf, sizeof(conf),
			"command = [\"sh\", \"%s/agent.sh\"]\nfolder = \"%s\"\ntmux = false\n"
			"[restart]\ndelay_ms = 1\n",
			root, root);
		write_at("/etc/pando/rpc.d/a.conf", conf);
	}
	started();
	sent("{\"n\":1}");
	sent("{\"n\":2}");
	WAIT_FOR(status_number("out", "lines") == 2, 10);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_string_equal(s.out, "{\"n\":1}\n{\"n\":2}\n");
	}
}

static void
one_that_hangs_is_ended_by_its_watchdog(void **state)
{
	(void)state;
	configure(
		"read -r line; echo '{\"type\":\"response\",\"command\":\"get_state\"}'\n"
		"read -r line; echo '{\"type\":\"agent_start\"}'; sleep 1000\n",
		"protocol = \"pi\"\nstop_s = 0\n[watchdog]\nquiet_s = 1\n"
		"action = \"stop\"\n");
	started();
	/* Idle, also after a command that is no prompt: no reason to bark. */
	sent("{\"type\":\"get_state\"}");
	usleep(1700000);
	assert_true(state_is("running"));
	sent("{\"type\":\"prompt\",\"message\":\"x\"}");
	WAIT_FOR(state_is("failed"), 10);
	{
		cleanup_said struct said s = RPC("status", "a");

		assert_non_null(strstr(s.out, "it wrote nothing for 1 s"));
	}
}

static void
one_that_is_done_and_does_not_exit_is_ended(void **state)
{
	(void)state;
	configure(
		"echo '{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false}'\n"
		"trap '' TERM; while :; do sleep 1000; done\n",
		"protocol = \"claude\"\nstop_s = 1\n[watchdog]\nexit_s = 1\n");
	started();
	WAIT_FOR(state_is("ended"), 10);
}

static const char pi_script[] =
	"while IFS= read -r line; do\n"
	"  echo '{\"type\":\"response\",\"command\":\"prompt\",\"success\":true}'\n"
	"  echo '{\"type\":\"agent_start\"}'\n"
	"  case $line in\n"
	"  *dialog*) echo '{\"type\":\"extension_ui_request\",\"id\":\"u1\",\"method\":"
	"\"confirm\"}'\n"
	"    IFS= read -r answer; echo \"{\\\"type\\\":\\\"saw\\\",\\\"it\\\":$answer}\" ;;\n"
	"  esac\n"
	"  case $line in *bad*) r=error ;; *) r=stop ;; esac\n"
	"  echo '{\"type\":\"agent_end\",\"messages\":[{\"role\":\"user\"},"
	"{\"role\":\"assistant\",\"stopReason\":\"'$r'\"}]}'\n"
	"  case $line in *retry*) echo '{\"type\":\"auto_retry_start\"}'; sleep 0.3\n"
	"    echo '{\"type\":\"agent_end\",\"messages\":[{\"stopReason\":\"stop\"}]}' ;;\n"
	"  esac\n"
	"done\n";

static int
until_done(const char *prompt)
{
	char from[32];
	cleanup_said struct said s = send_line(prompt, strlen(prompt));
	cleanup_json struct json *j = NULL;
	uint64_t out;

	assert_int_equal(s.status, 0);
	assert_int_equal(json_parse(s.out, s.out_len, 64, &j, NULL), 0);
	assert_int_equal(json_u64(j, json_get(j, 0, "out"), &out), 0);
	snprintf(from, sizeof(from), "%llu", (unsigned long long)out);
	{
		cleanup_said struct said f = RPC(
			"follow", "--from", from, "--until-done", "--for-ms", "60000");

		return f.status;
	}
}

static void
until_done_ends_as_the_prompt_does(void **state)
{
	(void)state;
	configure(pi_script, "protocol = \"pi\"\n");
	started();
	assert_int_equal(until_done("{\"type\":\"prompt\",\"message\":\"good\"}"), 0);
	assert_int_equal(until_done("{\"type\":\"prompt\",\"message\":\"bad\"}"), 1);
	assert_int_equal(
		until_done("{\"type\":\"prompt\",\"message\":\"bad retry\"}"), 0);
}

/* As pi has it: a context that is too long is an error, is compacted for longer than a
 * failure is waited out, and then the prompt goes on, or does not. */
static const char overflow_script[] =
	"while IFS= read -r line; do\n"
	"  echo '{\"type\":\"agent_start\"}'\n"
	"  echo '{\"type\":\"agent_end\",\"messages\":[{\"stopReason\":\"error\"}]}'\n"
	"  echo '{\"type\":\"compaction_start\",\"reason\":\"overflow\"}'; sleep 4\n"
	"  case $line in *goes*)\n"
	"    echo '{\"type\":\"compaction_end\",\"aborted\":false,\"willRetry\":true}'\n"
	"    sleep 4; echo '{\"type\":\"agent_start\"}'\n"
	"    echo '{\"type\":\"agent_end\",\"messages\":[{\"stopReason\":\"stop\"}]}';;\n"
	"  *) echo '{\"type\":\"compaction_end\",\"errorMessage\":\"x\",\"willRetry\":"
	"false}';;\n"
	"  esac\n"
	"done\n";

static void
until_done_waits_for_compaction_and_what_follows_it(void **state)
{
	(void)state;
	configure(overflow_script, "protocol = \"pi\"\n");
	started();
	assert_int_equal(
		until_done("{\"type\":\"prompt\",\"message\":\"it goes on\"}"), 0);
	assert_int_equal(until_done("{\"type\":\"prompt\",\"message\":\"ends\"}"), 1);
}

static bool
is_idle(void)
{
	cleanup_said struct said s = RPC("status", "a");

	return strstr(s.out, "\"busy\":false") != NULL;
}

static void
an_end_of_more_than_16_MiB_is_seen(void **state)
{
	(void)state;
	configure_python(
		"import sys, json\n"
		"for line in sys.stdin:\n"
		"    print('{\"type\":\"agent_start\"}')\n"
		"    m = [{'role': 'tool', 'content': '\"type\":\"x\",' * 1600000},\n"
		"         {'role': 'assistant', 'stopReason': 'error' if 'bad' in line else 'stop'}]\n"
		"    print(json.dumps({'messages': m, 'type': 'agent_end'}))\n",
		"protocol = \"pi\"\n[journal]\nkeep_mib = 256\n");
	started();
	assert_int_equal(until_done("{\"type\":\"prompt\",\"message\":\"good\"}"), 0);
	assert_int_equal(until_done("{\"type\":\"prompt\",\"message\":\"bad\"}"), 1);
	/* The supervisor saw it, too. */
	WAIT_FOR(is_idle(), 20);
}

/* It is told that its prompt is not done, and not kept waiting for what nobody goes on
 * with; nor does it take the next prompt's end for its own. */
static void
until_done_ends_when_its_program_does(void **state)
{
	static const char *const prompt = "{\"type\":\"prompt\"}";
	static const char *const ask = "{\"type\":\"get_state\"}";

	(void)state;
	configure(
		"while IFS= read -r line; do\n"
		"  case $line in *get_state*)\n"
		"    echo '{\"type\":\"response\",\"command\":\"get_state\"}' ;;\n"
		"  *)\n"
		"    echo '{\"type\":\"agent_start\"}'\n"
		"    [ -e \"$0.again\" ] || { touch \"$0.again\"; printf '{\"half'; exit 1; }\n"
		"    echo '{\"type\":\"agent_end\",\"messages\":[]}' ;;\n"
		"  esac\n"
		"done\n",
		"protocol = \"pi\"\n[restart]\ndelay_ms = 1\n");
	started();
	assert_int_equal(until_done(prompt), 1);
	WAIT_FOR(status_number("keeper", "starts") == 2, 10);
	/* The watchdog, too, knows that nothing is being worked on. */
	{
		cleanup_said struct said s = send_line(ask, strlen(ask));

		assert_int_equal(s.status, 0);
	}
	WAIT_FOR(status_number("out", "lines") == 3, 10);
	{
		cleanup_said struct said s = RPC("status");

		assert_non_null(strstr(s.out, "\"busy\":false"));
	}
	assert_int_equal(until_done(prompt), 0);
	{
		cleanup_said struct said s = RPC("follow", "--from", "0", "--until-done",
			"--framed", "--for-ms", "20000");

		assert_non_null(strstr(s.out, " 1 ended\n"));
		assert_null(strstr(s.out, "agent_end"));
	}
}

static void
until_done_needs_a_protocol(void **state)
{
	(void)state;
	configure(echo_script, "");
	started();
	{
		cleanup_said struct said s = RPC("follow", "--until-done");

		assert_int_equal(s.status, 2);
		assert_non_null(strstr(s.err, "does not say when a prompt is done"));
	}
}

static void
dialogs_are_answered_by_policy(void **state)
{
	(void)state;
	configure(pi_script, "protocol = \"pi\"\n");
	started();
	assert_int_equal(until_done("{\"type\":\"prompt\",\"message\":\"dialog\"}"), 0);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_non_null(strstr(s.out, "{\"type\":\"saw\",\"it\":{\"type\":"
					      "\"extension_ui_response\",\"id\":\"u1\","
					      "\"confirmed\":false}}"));
	}
}

#define GENERATION_1 "11111111111111111111111111111111"
#define GENERATION_2 "22222222222222222222222222222222"
#define GENERATION_3 "33333333333333333333333333333333"

static void
be(const char *vm, const char *generation)
{
	char text[128], path[128];
	int fd;

	snprintf(text, sizeof(text), "{\"id\":\"%s\",\"generation\":\"%s\"}", vm,
		generation);
	write_at("/run/pando/identity", text);
	snprintf(text, sizeof(text), "%s\n", generation);
	snprintf(path, sizeof(path), "%s/run/pando/generation", root);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0 && write(fd, text, 33) == 33);
	close(fd);
}

static void
a_branch_in_the_middle_of_a_line_leaves_whole_lines(void **state)
{
	(void)state;
	be("aaaaaaaaaaaa", GENERATION_1);
	write_at("/etc/environment", "WHO=parent\n");
	configure("echo \"{\\\"who\\\":\\\"$WHO\\\"}\"; printf '{\"half'\n"
		  "while IFS= read -r line; do printf '%s\\n' \"$line\"; done\n",
		"on_fork = \"restart\"\nstop_s = 0\n");
	started();
	WAIT_FOR(status_number("out", "lines") == 1, 10);
	/* Its parent's generation changes, too: nothing happens to it. */
	be("aaaaaaaaaaaa", GENERATION_2);
	usleep(300000);
	assert_int_equal(status_number("keeper", "starts"), 1);
	write_at("/etc/environment", "WHO=child\n");
	be("bbbbbbbbbbbb", GENERATION_3);
	WAIT_FOR(status_number("keeper", "starts") == 2, 10);
	WAIT_FOR(status_number("out", "lines") == 3, 10);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_string_equal(s.out, "{\"who\":\"parent\"}\n{\"who\":\"child\"}\n");
	}
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0", "--framed");

		assert_non_null(strstr(s.out, "aaaaaaaaaaaa " GENERATION_1));
		assert_non_null(strstr(s.out, "bbbbbbbbbbbb " GENERATION_3));
	}
}

static void
a_fork_is_a_signal_where_that_is_asked_for(void **state)
{
	(void)state;
	be("aaaaaaaaaaaa", GENERATION_1);
	configure_python(
		"import signal, time\n"
		"signal.signal(signal.SIGUSR2, lambda *a: print('{\"forked\":1}', flush=True))\n"
		"print('{}', flush=True)\n"
		"while True: time.sleep(100)\n",
		"on_fork = \"signal:USR2\"\nstop_s = 0\n");
	started();
	WAIT_FOR(status_number("out", "lines") == 1, 10);
	be("bbbbbbbbbbbb", GENERATION_2);
	WAIT_FOR(status_number("out", "lines") == 2, 10);
	assert_int_equal(status_number("keeper", "starts"), 1);
}

static void
stop_ends_all_of_it(void **state)
{
	char path[128], link[600];
	cleanup_said struct said s = {0};

	(void)state;
	configure(
		"sleep 1000 & echo $! >\"$PANDO_RPC_DIR/child\"; cat\n", "stop_s = 2\n");
	{
		char conf[512];

		snprintf(conf, sizeof(conf),
			"command = [\"sh\", \"%s/agent.sh\"]\ntmux = false\nstop_s = 2\n"
			"env = [\"PANDO_RPC_DIR=%s\"]\n",
			root, root);
		write_at("/etc/pando/rpc.d/a.conf", conf);
	}
	started();
	snprintf(path, sizeof(path), "%s/child", root);
	WAIT_FOR(!access(path, F_OK), 5);
	s = RPC("stop");
	assert_int_equal(s.status, 0);
	assert_non_null(strstr(s.out, "\"state\":\"stopped\""));
	{
		cleanup_free char *child = text_of("/child");

		snprintf(link, sizeof(link), "/proc/%d/exe", atoi(child));
		WAIT_FOR(readlink(link, path, sizeof(path)) < 0, 5);
	}
	{
		cleanup_said struct said t = send_line("{}", 2);

		assert_int_equal(t.status, 3);
		assert_non_null(strstr(t.err, "pando rpc start"));
	}
}

static char mark[32];

/* Processes that have this word in their arguments. */
static int
processes_with(const char *word)
{
	cleanup_closedir DIR *d = opendir("/proc");
	struct dirent *de;
	char path[64], text[4096];
	int n = 0;

	assert_non_null(d);
	while ((de = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/%.20s/cmdline", de->d_name);
		cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t len = fd < 0 ? -1 : read(fd, text, sizeof(text));

		n += len > 0 && memmem(text, (size_t)len, word, strlen(word) + 1);
	}
	return n;
}

/* Tools in sessions of their own, without our environment, whose parents are gone: one at
 * its start, one for each line. The mark is this test's alone. */
static const char *
detaching_script(void)
{
	static char script[512];

	snprintf(mark, sizeof(mark), "1000.%06d", (int)getpid());
	snprintf(script, sizeof(script),
		"(env -i setsid sleep %s >/dev/null 2>&1 &)\n"
		"while IFS= read -r line; do\n"
		"	case $line in *end*) exit 3;; esac\n"
		"	(env -i setsid setsid sleep %s >/dev/null 2>&1 &)\n"
		"	echo \"$line\"\n"
		"done\n",
		mark, mark);
	return script;
}

static void
detached_tools_end_with_their_program(void)
{
	configure(detaching_script(), "stop_s = 2\n[restart]\npolicy = \"never\"\n");
	started();
	sent("{}");
	WAIT_FOR(processes_with(mark) == 2, 20);
	said_nothing(RPC("stop"));
	assert_int_equal(processes_with(mark), 0);

	/* One that ends by itself takes them along, also after its supervisor was another. */
	started();
	sent("{}");
	WAIT_FOR(processes_with(mark) == 2, 20);
	kill_supervisor();
	sent("\"end\"");
	WAIT_FOR(state_is("failed"), 20);
	assert_int_equal(processes_with(mark), 0);
	said_nothing(RPC("stop"));
}

static void
what_detaches_itself_ends_with_its_program(void **state)
{
	(void)state;
	detached_tools_end_with_their_program();
}

static void
what_detaches_itself_ends_also_without_control_groups(void **state)
{
	(void)state;
	if (geteuid())
		skip();
	before_exec = hide_groups;
	detached_tools_end_with_their_program();
	before_exec = NULL;
}

static void
what_detached_itself_ends_though_its_shim_was_killed(void **state)
{
	(void)state;
	if (!groups_can_be_made())
		skip();
	configure(detaching_script(), "stop_s = 2\n[restart]\npolicy = \"never\"\n");
	started();
	sent("{}");
	WAIT_FOR(processes_with(mark) == 2, 20);
	kill_shim();
	WAIT_FOR(state_is("failed"), 20);
	assert_int_equal(processes_with(mark), 0);
}

static void
a_second_supervisor_is_refused(void **state)
{
	(void)state;
	configure(echo_script, "");
	started();
	{
		cleanup_said struct said s =
			RUN_IN("", 0, "rpc-keeper", root_option, "a");

		assert_int_equal(s.status, 4);
		assert_non_null(strstr(s.err, "has a supervisor already: process"));
	}
}

static void
what_others_left_in_tmp_is_not_touched(void **state)
{
	char path[128];
	cleanup_free char *log = NULL;

	(void)state;
	snprintf(path, sizeof(path), "%s/tmp/a-rpc", root);
	assert_int_equal(symlink("/etc", path), 0);
	configure(echo_script, "");
	started();
	log = text_of("/var/lib/pando/rpc/a/keeper.log");
	assert_non_null(strstr(log, "leads elsewhere"));
	assert_int_equal(access("/etc/in", F_OK), -1);
	/* A folder that an image made ahead is used. */
	said_nothing(RPC("stop"));
	unlink(path);
	assert_int_equal(mkdir(path, 0755), 0);
	started();
	sent("{}");
	WAIT_FOR(status_number("out", "lines") == 1, 10);
	{
		cleanup_free char *out = text_of("/tmp/a-rpc/out");

		assert_string_equal(out, "{}\n");
	}
}

static void
sessions_to_watch_are_there_by_their_names(void **state)
{
	char command[256], conf[512];

	(void)state;
	if (system("command -v tmux >/dev/null"))
		skip();
	setenv("TMUX_TMPDIR", root, 1);
	configure(echo_script, "");
	snprintf(conf, sizeof(conf), "command = [\"sh\", \"%s/agent.sh\"]\n", root);
	write_at("/etc/pando/rpc.d/a.conf", conf);
	started();
	sent("{\"see\":\"me\"}");
	WAIT_FOR(!system("tmux has-session -t =a-keeper 2>/dev/null"), 5);
	snprintf(command, sizeof(command),
		"tmux capture-pane -p -t =a-rpc: 2>/dev/null | grep -q see");
	WAIT_FOR(!system(command), 5);
	said_nothing(RPC("stop"));
	/* They end with it. */
	WAIT_FOR(system("tmux has-session -t =a-rpc 2>/dev/null"), 5);
	WAIT_FOR(system("tmux has-session -t =a-keeper 2>/dev/null"), 5);
	unsetenv("TMUX_TMPDIR");
}

static void
a_full_disk_stops_the_program_and_loses_nothing(void **state)
{
	char path[128], filler[160];
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/var", root);
	if (io_mkdir_p(path, 0755, NULL) || mount("none", path, "tmpfs", 0, "size=2m"))
		skip();
	configure_python("import sys, time\n"
			 "sys.stdin.readline()\n"
			 "for i in range(5000): print('%099d' % i)\n"
			 "time.sleep(1000)\n",
		"stop_s = 0\n[restart]\npolicy = \"never\"\n");
	started();
	snprintf(filler, sizeof(filler), "%s/filler", path);
	fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(fallocate(fd, 0, 0, 1700 * 1024), 0);
	close(fd);
	sent("{}");
	usleep(1500000);
	unlink(filler);
	WAIT_FOR(status_number("out", "lines") == 5000, 20);
	{
		cleanup_said struct said s =
			RPC("follow", "--from", "0", "--for-ms", "0");

		assert_int_equal(s.out_len, 500000);
		for (int i = 0; i < 5000; i++)
			assert_int_equal(atoi(s.out + (size_t)i * 100 + 90), i);
	}
	said_nothing(RPC("stop"));
	umount2(path, MNT_DETACH);
}

/*
 * Reports.
 */

#define REPORT(...) RUN_IN("", 0, "report", root_option, __VA_ARGS__)

static void
reports_wait_until_they_are_taken(void **state)
{
	char file[128], id[64];
	cleanup_json struct json *j = NULL;
	const char *vm = "aaaaaaaaaaaa";
	char text[64];

	(void)state;
	be(vm, GENERATION_1);
	snprintf(file, sizeof(file), "%s/agent.sh", root);
	write_at("/agent.sh", "12345");
	{
		cleanup_said struct said s =
			REPORT("--status", "failed", "--score", "-1.5", "--message",
				"tried", "--file", file, "--json", "{\"a\": [1,\n2]}");

		if (s.status)
			fail_msg("%s", s.err);
		assert_int_equal(s.out_len, 33);
		snprintf(id, sizeof(id), "%.32s", s.out);
	}
	{
		cleanup_said struct said s = REPORT("--list");
		double score;
		uint64_t bytes;
		int f;

		assert_ptr_equal(strchr(s.out, '\n'), s.out + s.out_len - 1);
		assert_int_equal(json_parse(s.out, s.out_len, 128, &j, NULL), 0);
		assert_int_equal(
			json_str(j, json_get(j, 0, "id"), text, sizeof(text)), 0);
		assert_string_equal(text, id);
		assert_int_equal(
			json_str(j, json_get(j, 0, "vm"), text, sizeof(text)), 0);
		assert_string_equal(text, vm);
		assert_int_equal(
			json_str(j, json_get(j, 0, "generation"), text, sizeof(text)), 0);
		assert_string_equal(text, GENERATION_1);
		assert_int_equal(json_f64(j, json_get(j, 0, "score"), &score), 0);
		assert_true(score == -1.5);
		f = json_at(j, json_get(j, 0, "files"), 0);
		assert_int_equal(json_u64(j, json_get(j, f, "bytes"), &bytes), 0);
		assert_int_equal(bytes, 5);
	}
	{
		cleanup_said struct said s = REPORT("--ack", id);

		assert_int_equal(s.status, 0);
	}
	{
		cleanup_said struct said s = REPORT("--list");

		assert_int_equal(s.out_len, 0);
	}
}

static void
bad_reports_are_refused_with_a_sentence(void **state)
{
	char big[128], json[64], at_big[160];

	(void)state;
	snprintf(big, sizeof(big), "%s/big", root);
	write_at("/big", "");
	assert_int_equal(truncate(big, 1 << 30), 0);
	snprintf(at_big, sizeof(at_big), "@%s", big);
	(void)json;
	{
		const struct {
			const char *option, *value, *say;
			int status;
		} cases[] = {
			{"--file", "../etc/passwd", "leads upwards", 2},
			{"--file", "/tmp/../etc/passwd", "leads upwards", 2},
			{"--file", "/tmp/..", "leads upwards", 2},
			{"--file", "/tmp", "no regular file", 2},
			{"--file", "/no/such/file", "No such file", 3},
			{"--file", big, "512 MiB in all", 1},
			{"--json", at_big, "more than 1024 KiB", 2},
			{"--json", "{", "no JSON", 2},
			{"--score", "much", "no number", 2},
			{"--score", "nan", "no number", 2},
			{"--status", "great", "done, failed or blocked", 2},
		};

		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			cleanup_said struct said s =
				REPORT(cases[i].option, cases[i].value);

			if (s.status != cases[i].status || !strstr(s.err, cases[i].say))
				fail_msg("%s %s: %d, %s", cases[i].option, cases[i].value,
					s.status, s.err);
		}
	}
	{
		cleanup_said struct said s = REPORT("--list");

		assert_int_equal(s.out_len, 0);
	}
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(lines_come_back_and_offsets_are_true),
		T(bad_lines_are_refused_with_a_sentence),
		T(a_line_of_16_MiB_arrives_and_one_of_17_is_refused),
		T(eight_senders_of_1_MiB_lines_tear_none),
		T(the_fifo_takes_whole_lines_beside_senders),
		T(one_that_dies_on_start_ten_times_is_given_up),
		T(a_program_that_is_not_there_is_said),
		T(a_flood_is_kept_to_its_bound_and_offsets_stay_true),
		T(half_lines_become_whole_ones_or_none),
		T(a_supervisor_that_is_killed_again_and_again_loses_nothing),
		T(a_supervisor_that_is_killed_comes_back_by_itself),
		T(an_end_outlives_its_supervisor),
		T(what_was_kept_is_kept_again_after_a_boot),
		T(one_that_had_ended_begins_again_with_the_machine),
		T(one_that_is_not_to_boot_stays_stopped),
		T(a_cut_spool_is_mended),
		T(a_shim_that_is_killed_is_a_failure_of_its_program),
		T(what_was_not_read_is_for_the_next_program),
		T(one_that_hangs_is_ended_by_its_watchdog),
		T(one_that_is_done_and_does_not_exit_is_ended),
		T(until_done_ends_as_the_prompt_does),
		T(until_done_ends_when_its_program_does),
		T(until_done_waits_for_compaction_and_what_follows_it),
		T(an_end_of_more_than_16_MiB_is_seen),
		T(until_done_needs_a_protocol),
		T(dialogs_are_answered_by_policy),
		T(a_branch_in_the_middle_of_a_line_leaves_whole_lines),
		T(a_fork_is_a_signal_where_that_is_asked_for),
		T(stop_ends_all_of_it),
		T(what_detaches_itself_ends_with_its_program),
		T(what_detaches_itself_ends_also_without_control_groups),
		T(what_detached_itself_ends_though_its_shim_was_killed),
		T(a_second_supervisor_is_refused),
		T(what_others_left_in_tmp_is_not_touched),
		T(sessions_to_watch_are_there_by_their_names),
		T(a_full_disk_stops_the_program_and_loses_nothing),
		T(reports_wait_until_they_are_taken),
		T(bad_reports_are_refused_with_a_sentence),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
