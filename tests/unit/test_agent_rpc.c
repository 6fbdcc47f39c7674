/*
 * The host's side of kept coding agents and reports, with the real agent on a Unix socket
 * and a supervisor below a folder of the test's own.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/agent_frame.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_handshake.h"
#include "host/agent/agent_link.h"
#include "host/agent/agent_report.h"
#include "host/agent/agent_rpc.h"
#include "tests/unit/agent_help.h"

static char root[64], sock[96], root_option[80];
static pid_t agent_pid;

static void
start_agent(void)
{
	agent_pid = agent_help_start(sock, NULL, NULL);
}

static void
end_agent(void)
{
	agent_help_end(&agent_pid, SIGKILL);
}

static void
write_at(const char *path, const char *text)
{
	agent_help_put(root, path, text, 0644);
}

static int
setup(void **state)
{
	(void)state;
	strcpy(root, "/tmp/pando-agent-rpc-XXXXXX");
	agent_help_make_root(root);
	snprintf(root_option, sizeof(root_option), "--root=%s", root);
	snprintf(sock, sizeof(sock), "%s/agent.sock", root);
	start_agent();
	return 0;
}

static int
try_call(const char *verb, const char *input, char **ret, struct err *e)
{
	const char *words[] = {"rpc", verb, root_option, "a", NULL};

	return agent_rpc_call(sock, words, input, input ? strlen(input) : 0, 1 << 20,
		60000, -1, ret, e);
}

static int
teardown(void **state)
{
	cleanup_free char *text = NULL;

	(void)state;
	(void)try_call("stop", NULL, &text, NULL);
	end_agent();
	return io_remove_tree(root, NULL);
}

static void
call(const char *verb, const char *input)
{
	cleanup_free char *text = NULL;
	struct err e = {0};

	if (try_call(verb, input, &text, &e))
		fail_msg("%s: %s", verb, e.msg);
}

static void
configure(const char *script)
{
	char conf[1024];

	write_at("/agent.sh", script);
	snprintf(conf, sizeof(conf),
		"command = [\"sh\", \"%s/agent.sh\"]\nprotocol = \"pi\"\ntmux = false\n"
		"stop_s = 0\n",
		root);
	write_at("/etc/pando/rpc.d/a.conf", conf);
}

struct seen {
	char *text; /* owned */
	size_t len;
	unsigned lines, gaps, breaks;
	uint64_t next;
	unsigned until; /* lines; 0: no limit */
};

static int
on_line(void *ctx, const struct rpc_line *l)
{
	struct seen *s = ctx;

	assert_int_equal(l->offset, s->next);
	s->next = l->offset + l->len;
	s->text = realloc(s->text, s->len + l->len + 1);
	assert_non_null(s->text);
	memcpy(s->text + s->len, l->text, l->len);
	s->len += l->len;
	s->text[s->len] = 0;
	s->lines++;
	return s->until && s->lines == s->until ? -ECANCELED : 0;
}

static void
on_break(void *ctx, const struct err *why)
{
	struct seen *s = ctx;

	(void)why;
	s->breaks++;
}

static void
refusals_come_with_their_code_and_sentence(void **state)
{
	cleanup_free char *text = NULL;
	struct err e = {0};

	(void)state;
	assert_int_equal(try_call("start", NULL, &text, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "a.conf: write one"));
	configure("cat\n");
	assert_int_equal(try_call("send", "{}", &text, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "pando rpc start"));
	call("start", NULL);
	assert_int_equal(try_call("send", "{\"a\":", &text, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "no JSON"));
}

static void
send_and_follow_until_done(void **state)
{
	struct seen s = {0};
	struct agent_rpc_follow spec = {.name = "a",
		.root = root,
		.until_done = true,
		.wake_fd = -1,
		.on_line = on_line,
		.ctx = &s};
	struct agent_rpc_followed end;
	struct err e = {0};

	(void)state;
	configure(
		"while read -r l; do echo '{\"type\":\"agent_start\"}'\n"
		"case $l in *bad*) r=error ;; *) r=stop ;; esac\n"
		"echo '{\"type\":\"agent_end\",\"messages\":[{\"stopReason\":\"'$r'\"}]}'\n"
		"done\n");
	call("start", NULL);
	call("send", "{\"type\":\"prompt\",\"message\":\"good\"}");
	if (agent_rpc_follow(sock, &spec, &end, &e))
		fail_msg("%s", e.msg);
	assert_false(end.failed);
	assert_string_equal(end.reason, "stop");
	assert_int_equal(s.lines, 2);
	assert_int_equal(end.next, s.len);
	call("send", "{\"type\":\"prompt\",\"message\":\"bad\"}");
	spec.from = end.next;
	assert_int_equal(agent_rpc_follow(sock, &spec, &end, &e), 0);
	assert_true(end.failed);
	assert_string_equal(end.reason, "error");
	assert_int_equal(s.lines, 4);
	free(s.text);
}

static void *
agents_end(void *arg)
{
	char stays[sizeof(sock) + 8];
	int fd;

	(void)arg;
	for (int i = 0; i < 5; i++) {
		usleep(150000);
		/* A VM listens all its life; who comes while it has no agent is let down, and
		 * does not find that there is no VM. */
		snprintf(stays, sizeof(stays), "%s.stays", sock);
		assert_int_equal(io_unix_listen(stays, SOCK_STREAM, 16, &fd, NULL), 0);
		assert_int_equal(rename(stays, sock), 0);
		end_agent();
		usleep(50000);
		start_agent();
		close(fd);
	}
	return NULL;
}

static void
a_follower_goes_on_over_restarts_of_the_guests_agent(void **state)
{
	enum { LINES = 4000 };
	struct seen s = {.until = LINES};
	struct agent_rpc_follow spec = {.name = "a",
		.root = root,
		.wake_fd = -1,
		.on_line = on_line,
		.on_break = on_break,
		.ctx = &s};
	struct agent_rpc_followed end;
	struct err e = {0};
	pthread_t thread;
	char *at;

	(void)state;
	configure(
		"i=0; while [ $i -lt 4000 ]; do printf '{\"line\":'; echo \"$i}\"; i=$((i + 1)); [ $((i % 20)) = 0 ] && sleep 0.005; done; sleep 1000\n");
	call("start", NULL);
	pthread_create(&thread, NULL, agents_end, NULL);
	assert_int_equal(agent_rpc_follow(sock, &spec, &end, &e), -ECANCELED);
	pthread_join(thread, NULL);
	assert_int_equal(s.lines, LINES);
	assert_true(s.breaks > 0);
	at = s.text;
	for (int i = 0; i < LINES; i++) {
		char want[32];

		snprintf(want, sizeof(want), "{\"line\":%d}\n", i);
		assert_memory_equal(at, want, strlen(want));
		at += strlen(want);
	}
	free(s.text);
}

static void *
sends_much(void *arg)
{
	const char *words[] = {"rpc", "send", root_option, "a", NULL};
	size_t len = 2u << 20;
	char *line = malloc(len);

	memset(line, *(char *)arg, len);
	line[0] = line[len - 1] = '"';
	for (int i = 0; i < 2; i++) {
		cleanup_free char *text = NULL;

		if (agent_rpc_call(sock, words, line, len, 4096, 60000, -1, &text, NULL))
			*(char *)arg = 0;
	}
	free(line);
	return NULL;
}

static int
is_of_one_sender(void *ctx, const struct rpc_line *l)
{
	struct seen *s = ctx;

	assert_int_equal(l->len, (2u << 20) + 1);
	for (size_t i = 1; i < l->len - 2; i++)
		if (l->text[i] != l->text[1])
			fail_msg("line %u is torn at %zu", s->lines, i);
	return ++s->lines == s->until ? -ECANCELED : 0;
}

static void
lines_of_many_senders_through_the_agent_are_whole(void **state)
{
	char letters[] = "abcdefgh";
	pthread_t threads[8];
	struct seen s = {.until = 16};
	struct agent_rpc_follow spec = {.name = "a",
		.root = root,
		.wake_fd = -1,
		.on_line = is_of_one_sender,
		.ctx = &s};
	struct agent_rpc_followed end;

	(void)state;
	configure("exec cat\n");
	call("start", NULL);
	for (int i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, sends_much, &letters[i]);
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	assert_string_equal(letters, "abcdefgh");
	assert_int_equal(agent_rpc_follow(sock, &spec, &end, NULL), -ECANCELED);
	assert_int_equal(s.lines, 16);
}

static void
following_can_be_interrupted(void **state)
{
	struct seen s = {0};
	struct agent_rpc_follow spec = {.name = "a",
		.root = root,
		.from_end = true,
		.wake_fd = eventfd(1, EFD_CLOEXEC),
		.on_line = on_line,
		.ctx = &s};
	struct agent_rpc_followed end;
	struct err e = {0};

	(void)state;
	configure("sleep 1000\n");
	call("start", NULL);
	assert_int_equal(agent_rpc_follow(sock, &spec, &end, &e), -ECANCELED);
	close(spec.wake_fd);
	spec.wake_fd = -1;
	spec.once = true;
	assert_int_equal(agent_rpc_follow(sock, &spec, &end, &e), 0);
	assert_int_equal(end.next, 0);
}

static int
feed(const char *text, struct seen *s)
{
	cleanup_rpc_frames struct rpc_frames f = {.on_line = on_line, .ctx = s};
	int r = 0;

	/* Byte by byte, and the same at once. */
	for (const char *at = text; !r && *at; at++)
		r = rpc_frames_feed(&f, at, 1, NULL);
	if (!r) {
		cleanup_rpc_frames struct rpc_frames g = {0};

		assert_int_equal(rpc_frames_feed(&g, text, strlen(text), NULL), 0);
		assert_int_equal(g.next, f.next);
	}
	return r;
}

static void
what_no_follower_says_is_refused(void **state)
{
	static const char *const wrong[] = {
		"X\n",
		"L 0 0 0 0 0 - -\n",
		"L 0 0 99999999 0 0 - -\n",
		"L 0 0 3 9 0 - -\nab\n",
		"L 0 0 3 0 0 zz -\nab\n",
		"L 0 0 3 0 0 - -\nabc",
		"L 0 0 3 0 0 - -\n\nb\n",
		"L 1 5 3 0 0 - -\nab\nL 2 5 3 0 0 - -\nab\n", /* again */
		"E 5 0\nL 1 5 3 0 0 - -\nab\n",
		"G 9 5\n",
		"D 0 2 stop\n",
		"L 0 18446744073709551615 3 0 0 - -\nab\n",
	};
	struct seen s = {0};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct seen t = {.next = strncmp(wrong[i], "L 1 5", 5) != 0 ? 0 : 5};

		if (feed(wrong[i], &t) != -EPROTO)
			fail_msg("taken: %s", wrong[i]);
		free(t.text);
	}
	assert_int_equal(feed("L 0 0 3 0 7 0123456789ab - \n", &s), -EPROTO);
	assert_int_equal(feed("L 0 0 3 0 7 0123456789ab -\nab\nE 3 1\n", &s), 0);
	assert_string_equal(s.text, "ab\n");
	free(s.text);
}

/* Whether the watched guest says something within that time. */
static bool
speaks(const struct agent_report_watch *w, int timeout_ms)
{
	struct pollfd p = {.fd = agent_report_watch_fd(w), .events = POLLIN};

	return poll(&p, 1, timeout_ms) > 0;
}

/* What it says when it is no piece of something else: its answer and its end may come apart. */
static int
said(struct agent_report_watch *w)
{
	int r = 0;

	while (!r && speaks(w, 30000))
		r = agent_report_watch_read(w, NULL);
	agent_report_watch_free(w);
	return r;
}

static void
a_guest_tells_of_a_report_when_it_is_made(void **state)
{
	const char *words[] = {"report", root_option, "--message", "m", NULL};
	struct agent_report_watch *w;
	cleanup_free char *text = NULL;
	struct err e = {0};

	(void)state;
	assert_int_equal(agent_reports_watch(sock, root, 30000, &w, &e), 0);
	assert_false(speaks(w, 300));
	assert_int_equal(
		agent_rpc_call(sock, words, NULL, 0, 4096, 30000, -1, &text, &e), 0);
	assert_int_equal(said(w), 1);
	/* One that waits already is told of at once. */
	assert_int_equal(agent_reports_watch(sock, root, 30000, &w, &e), 0);
	assert_int_equal(said(w), 1);
}

/* One that runs and does not answer: connections wait in its queue. */
static void
a_deaf_guest_costs_no_more_time_than_it_is_given(void **state)
{
	uint64_t begin = io_now_ns();
	struct agent_report one = {0};
	struct agent_report_watch *w;
	struct agent_report *v;
	size_t n, bad;
	char path[128];
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/deaf.sock", root);
	assert_int_equal(io_unix_listen(path, SOCK_STREAM, 16, &fd, NULL), 0);
	assert_int_equal(
		agent_reports_list(path, NULL, 200, &v, &n, &bad, NULL), -ETIMEDOUT);
	assert_int_equal(agent_reports_watch(path, NULL, 200, &w, NULL), -ETIMEDOUT);
	assert_int_equal(agent_reports_ack(path, NULL, 200, &one, 1, NULL), -ETIMEDOUT);
	assert_true(io_now_ns() - begin < UINT64_C(20000000000));
	close(fd);
}

/* An agent that a hostile guest has put in the place of ours, for one connection. */
struct hostile {
	enum { SILENT, STEPS, FLOODS } how;
	int listener;
	pthread_t thread;
};
#define HOSTILE_MS 6000 /* so that a host that waits on is seen, and not waited for */

static void *
hostile_main(void *arg)
{
	static const char ok[] = "OK 1\n", yes[] = "{\"ok\":true,\"id\":\"e1\"}\n";
	static char frames[64 * 1024];
	struct hostile *x = arg;
	size_t len = x->how == STEPS ? 1 : 4096, used = 0;
	struct agent_frame_hdr h = agent_frame_hdr(
		x->how == STEPS ? AGENT_STEP : AGENT_STDOUT, 0, (uint32_t)len);
	uint64_t end_ns = io_now_ns() + HOSTILE_MS * UINT64_C(1000000);
	int fd = accept4(x->listener, NULL, NULL, SOCK_CLOEXEC);
	char c;

	for (int lines = 0; lines < 2; lines += c == '\n') {
		if (io_read(fd, &c, 1) != 1)
			break;
		if (c == '\n' && !lines)
			(void)send(fd, ok, strlen(ok), MSG_NOSIGNAL);
	}
	/* Many at once: there is always one more. */
	memset(frames, 'x', sizeof(frames));
	for (; used + sizeof(h) + len <= sizeof(frames); used += sizeof(h) + len)
		memcpy(frames + used, &h, sizeof(h));
	if (x->how != SILENT)
		(void)send(fd, yes, strlen(yes), MSG_NOSIGNAL);
	while (io_now_ns() < end_ns) {
		if (x->how == SILENT)
			poll(NULL, 0, 10);
		else if (send(fd, frames, used, MSG_NOSIGNAL) < 0)
			break;
	}
	close(fd);
	return NULL;
}

static void
hostile_start(struct hostile *x, int how)
{
	end_agent();
	unlink(sock);
	x->how = how;
	assert_int_equal(io_unix_listen(sock, SOCK_STREAM, 4, &x->listener, NULL), 0);
	assert_int_equal(pthread_create(&x->thread, NULL, hostile_main, x), 0);
}

static void
hostile_end(struct hostile *x)
{
	pthread_join(x->thread, NULL);
	close(x->listener);
	unlink(sock);
	start_agent();
}

/* Whether it was more than half of what the guest would have held us up for. */
static bool
was_held_up(uint64_t since_ns)
{
	return io_now_ns() - since_ns > HOSTILE_MS / 2 * UINT64_C(1000000);
}

static void
a_guest_that_takes_steps_without_end_is_out_of_time(void **state)
{
	static const uint8_t bytes[AGENT_ENTROPY_MAX];
	struct agent_handshake h = {.id = "0123456789ab",
		.name = "a",
		.host_name = "a",
		.generation = bytes,
		.entropy = bytes};
	uint64_t begin_ns = io_now_ns();
	struct agent_ack ack;
	struct err e = {0};
	struct hostile x;

	(void)state;
	hostile_start(&x, STEPS);
	assert_int_equal(
		agent_handshake(sock, &h, 300, NULL, NULL, &ack, &e), -ETIMEDOUT);
	assert_false(was_held_up(begin_ns));
	hostile_end(&x);
}

static void
a_wait_is_over_although_there_is_always_more(void **state)
{
	uint64_t past_ns = io_now_ns() - 1;
	struct agent_link l = AGENT_LINK_INIT;
	int fd[2];

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	l.fd = fd[0];
	assert_int_equal(write(fd[1], "x", 1), 1);
	/* What came while nobody looked is taken. */
	assert_int_equal(agent_link_wait(&l, POLLIN, past_ns, NULL), 0);
	assert_int_equal(agent_link_wait(&l, POLLIN, past_ns, NULL), -ETIMEDOUT);
	/* Another wait has its own time. */
	assert_int_equal(
		agent_link_wait(&l, POLLIN, io_now_ns() + 60000000000ull, NULL), 0);
	assert_int_equal(agent_link_wait(&l, POLLIN, past_ns, NULL), 0);
	close(fd[1]);
	agent_link_done(&l);
}

static void
a_guest_that_lists_no_reports_holds_up_nobody(void **state)
{
	uint64_t begin_ns = io_now_ns();
	struct agent_report *v;
	struct err e = {0};
	struct hostile x;
	size_t n, bad;

	(void)state;
	hostile_start(&x, SILENT);
	assert_int_equal(
		agent_reports_list(sock, NULL, 300, &v, &n, &bad, &e), -ETIMEDOUT);
	assert_false(was_held_up(begin_ns));
	hostile_end(&x);
}

static void
a_watched_guest_that_talks_without_end_is_left(void **state)
{
	uint64_t begin_ns = io_now_ns();
	struct agent_report_watch *w;
	struct err e = {0};
	struct hostile x;

	(void)state;
	hostile_start(&x, FLOODS);
	assert_int_equal(agent_reports_watch(sock, NULL, 5000, &w, &e), 0);
	assert_int_equal(said(w), -EPROTO);
	assert_false(was_held_up(begin_ns));
	hostile_end(&x);
}

static void
reports_are_taken_and_forgotten(void **state)
{
	const char *words[] = {"report", root_option, "--score", "0.5", "--file",
		agent_help_program(), NULL};
	cleanup_free char *text = NULL;
	struct agent_report *v;
	struct err e = {0};
	size_t n, bad;

	(void)state;
	assert_int_equal(agent_reports_list(sock, root, 5000, &v, &n, &bad, &e), 0);
	assert_int_equal(n, 0);
	for (int i = 0; i < 20; i++) {
		free(text);
		text = NULL;
		if (agent_rpc_call(sock, words, NULL, 0, 4096, 5000, -1, &text, &e)) {
			/* The program's own path leads upwards. */
			assert_int_equal(e.code, -EINVAL);
			words[4] = "--message";
			words[5] = "m";
			i--;
		}
	}
	write_at("/var/lib/pando/reports/"
		 "00000000000000-00000000000000000000000000000000.json",
		"{\"id\":\"00000000000000000000000000000000\",\"time_ms\":1,\"status\":"
		"\"done\","
		"\"files\":[{\"name\":\"../x\",\"path\":\"/x\",\"bytes\":1}]}");
	assert_int_equal(agent_reports_list(sock, root, 5000, &v, &n, &bad, &e), 0);
	assert_int_equal(n, 20);
	assert_int_equal(bad, 1);
	assert_string_equal(v[3].json,
		"{\"status\":\"done\",\"score\":0.5,\"message\":\"m\",\"files\":[]}");
	assert_int_equal(agent_reports_ack(sock, root, 5000, v, n, &e), 0);
	agent_reports_free(v, n);
	assert_int_equal(agent_reports_list(sock, root, 5000, &v, &n, &bad, &e), 0);
	assert_int_equal(n, 0);
	agent_reports_free(v, n);
}

static void
a_guests_report_is_checked(void **state)
{
#define ID "\"id\":\"00000000000000000000000000000000\",\"time_ms\":1"
	static const struct {
		const char *line, *say; /* NULL: fine */
	} cases[] = {
		{"{" ID ",\"status\":\"done\",\"files\":[]}", NULL},
		{"{" ID ",\"status\":\"done\",\"files\":[],\"json\":{\"a\":[1,2]}}",
			NULL},
		{"{" ID ",\"status\":\"great\",\"files\":[]}", "status"},
		{"{" ID ",\"status\":\"done\"}", "files"},
		{"{" ID
		 ",\"status\":\"done\",\"files\":[{\"name\":\"x\",\"path\":\"/a/../b\","
		 "\"bytes\":1}]}",
			"upwards"},
		{"{" ID ",\"status\":\"done\",\"files\":[{\"name\":\"x\",\"path\":\"b\","
		 "\"bytes\":1}]}",
			"path"},
		{"{" ID ",\"status\":\"done\",\"files\":[{\"name\":\"x\",\"path\":\"/b\","
		 "\"bytes\":1073741824}]}",
			"512 MiB"},
		{"{\"id\":\"../../etc/passwd/"
		 "0000000000000000\",\"time_ms\":1,\"status\":\"done\","
		 "\"files\":[]}",
			"id"},
		{"{" ID ",\"status\":\"done\",\"files\":[]", "no JSON"},
		{"[]", "no JSON"},
		{"", "no JSON"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct agent_report r = {0};
		struct err e = {0};
		int n = agent_report_read(cases[i].line, strlen(cases[i].line), &r, &e);

		if (cases[i].say ? n != -EPROTO || !strstr(e.msg, cases[i].say) : n != 0)
			fail_msg("%s: %d %s", cases[i].line, n, e.msg);
		agent_report_done(&r);
	}
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(refusals_come_with_their_code_and_sentence),
		T(send_and_follow_until_done),
		T(a_follower_goes_on_over_restarts_of_the_guests_agent),
		T(lines_of_many_senders_through_the_agent_are_whole),
		T(following_can_be_interrupted),
		cmocka_unit_test(what_no_follower_says_is_refused),
		T(a_deaf_guest_costs_no_more_time_than_it_is_given),
		T(reports_are_taken_and_forgotten),
		T(a_guest_tells_of_a_report_when_it_is_made),
		T(a_guest_that_takes_steps_without_end_is_out_of_time),
		cmocka_unit_test(a_wait_is_over_although_there_is_always_more),
		T(a_guest_that_lists_no_reports_holds_up_nobody),
		T(a_watched_guest_that_talks_without_end_is_left),
		cmocka_unit_test(a_guests_report_is_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
