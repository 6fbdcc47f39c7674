/*
 * The agent's and the protocol's parts, each by itself: users and environment, journal,
 * requests, frames, byte strings.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/agent_frame.h"
#include "common/wire/json_bytes.h"
#include "guest-agent/server/exec_shim.h"
#include "guest-agent/server/finish.h"
#include "guest-agent/server/peer.h"
#include "guest-agent/server/agent_request.h"
#include "guest-agent/system/guest_machine.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/ring.h"
#include "guest-agent/system/userdb.h"

static const char passwd[] = "root:x:0:0:root:/root:/bin/bash\n"
			     "broken line\n"
			     "half:x:notanumber:1::/:/bin/sh\n"
			     "dev:x:1000:1001:,,,:/home/dev:/bin/zsh\n"
			     "bare:x:1002:1002:::\n"
			     "last:x:1003:1003::/home/last:/bin/sh";
static const char group[] =
	"root:x:0:\naudio:x:29:pulse,dev\ndevs:x:1001:dev\nnodev:x:30:devel,xdev\n"
	"video:x:44:dev,other\nx:y\n";

static void
users_are_found_by_name_and_number(void **state)
{
	struct user u;
	struct err e = {0};

	(void)state;
	assert_int_equal(user_parse(passwd, group, "dev", &u, &e), 0);
	assert_int_equal(u.uid, 1000);
	assert_int_equal(u.gid, 1001);
	assert_string_equal(u.home, "/home/dev");
	assert_string_equal(u.shell, "/bin/zsh");
	/* Its own group once, then those that list it by its whole name. */
	assert_int_equal(u.n_groups, 3);
	assert_int_equal(u.groups[0], 1001);
	assert_int_equal(u.groups[1], 29);
	assert_int_equal(u.groups[2], 44);
	assert_int_equal(user_parse(passwd, NULL, "1000", &u, &e), 0);
	assert_string_equal(u.name, "dev");
	assert_int_equal(user_parse(passwd, NULL, "bare", &u, &e), 0);
	assert_string_equal(u.home, "/");
	assert_string_equal(u.shell, "/bin/sh");
	assert_int_equal(user_parse(passwd, NULL, "last", &u, &e), 0);
	assert_string_equal(u.shell, "/bin/sh");
	assert_int_equal(user_parse(passwd, NULL, "half", &u, &e), -ENOENT);
	assert_int_equal(user_parse(passwd, NULL, "de", &u, &e), -ENOENT);
	assert_int_equal(user_parse("", NULL, "root", &u, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "root"));
}

static void
only_the_host_is_the_host(void **state)
{
	struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST};

	(void)state;
	assert_true(peer_is_host(&a));
	/* A process of this machine, by its own number or as a neighbour, the
	 * hypervisor's old number, nobody. */
	for (unsigned cid = 0; cid < 6; cid++) {
		a.svm_cid = cid;
		assert_int_equal(peer_is_host(&a), cid == 2);
	}
	a.svm_cid = VMADDR_CID_ANY;
	assert_false(peer_is_host(&a));
	a.svm_cid = VMADDR_CID_HOST;
	a.svm_family = AF_UNIX;
	assert_false(peer_is_host(&a));
}

static void
put_bytes(struct ring *r, const char *s, size_t n)
{
	struct iovec iov[2];
	int pieces = ring_space(r, n, iov);

	assert_true(pieces > 0);
	memcpy(iov[0].iov_base, s, iov[0].iov_len);
	memcpy(iov[1].iov_base, s + iov[0].iov_len, n - iov[0].iov_len);
	ring_added(r, n);
}

static void
journal_keeps_the_last_bytes_by_offset(void **state)
{
	struct ring r;
	struct iovec iov[2];
	uint64_t written = 0, x = 1;
	char piece[4096];

	(void)state;
	ring_init(&r, 4096);
	/* A stream in which byte i is a function of i, in pieces of odd sizes. */
	while (written < 100000) {
		size_t n = (size_t)(x = x * 6364136223846793005ull +
					1442695040888963407ull) >>
			   53;

		if (n > 4000)
			n = 4000;
		if (!n)
			continue;
		for (size_t i = 0; i < n; i++)
			piece[i] = (char)((written + i) * 31 >> 3);
		put_bytes(&r, piece, n);
		written += n;
		assert_true(r.end == written);
		assert_true(r.end - r.start == (written < 4096 ? written : 4096));
		int pieces = ring_at(&r, r.start, (size_t)(r.end - r.start), iov);
		uint64_t at = r.start;
		for (int p = 0; p < pieces; p++)
			for (size_t i = 0; i < iov[p].iov_len; i++, at++)
				assert_int_equal(((char *)iov[p].iov_base)[i],
					(char)(at * 31 >> 3));
		assert_true(at == r.end);
	}
	assert_int_equal(ring_room(&r, r.end), 4096);
	assert_int_equal(ring_room(&r, r.end - 96), 4000);
	assert_int_equal(ring_room(&r, r.start), 0);
	ring_consume(&r, r.end);
	assert_null(r.buf);
	put_bytes(&r, "again", 5);
	assert_int_equal(ring_at(&r, written, 5, iov), written % 4096 > 4091 ? 2 : 1);
	ring_done(&r);
}

static void
requests_keep_what_was_given(void **state)
{
	static const char line[] =
		"{\"op\":\"exec\",\"argv\":[\"ls\",\"\",{\"b64\":\"/w==\"},\"\\u00e9\"],"
		"\"env\":[\"A=\",\"B=x=y\"],\"cwd\":\"/tmp\",\"user\":\"dev\","
		"\"timeout_ms\":1500,\"tty\":{\"rows\":24,\"cols\":80,\"term\":\"xterm\"}"
		","
		"\"stdin\":true,\"detach\":false}";
	struct request q;
	struct err e = {0};

	(void)state;
	if (request_read(line, strlen(line), &q, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(q.op, REQUEST_EXEC);
	assert_string_equal(q.argv[0], "ls");
	assert_string_equal(q.argv[1], "");
	assert_string_equal(q.argv[2], "\xff");
	assert_string_equal(q.argv[3], "\xc3\xa9");
	assert_null(q.argv[4]);
	assert_string_equal(q.env[1], "B=x=y");
	assert_int_equal(q.timeout_ms, 1500);
	assert_true(q.tty && q.want_stdin && !q.detach);
	assert_int_equal(q.rows, 24);
	assert_string_equal(q.term, "xterm");
	request_done(&q);
	assert_int_equal(
		request_read("{\"op\":\"attach\",\"id\":\"e18446744073709551616\"}", 44,
			&q, &e),
		-EINVAL);
}

static void
byte_strings_survive_json(void **state)
{
	static const char *const strings[] = {"", "plain", "\xc3\xa9", "\xff", "\xff\xfe",
		"\xff\xfe\xfd", "a\xed\xa0\x80", "\xf4\x90\x80\x80", "\x01\x02\n\"\\",
		"\xc0\x80", "abc\x80"};

	(void)state;
	for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
		cleanup_json_out struct json_out o = {0};
		cleanup_json struct json *j = NULL;
		cleanup_free char *back = NULL;
		struct err e = {0};

		json_out_bytes(&o, NULL, strings[i]);
		assert_int_equal(o.error, 0);
		if (json_parse(o.buf, o.len, 64, &j, &e))
			fail_msg("%s: %s", o.buf, e.msg);
		assert_int_equal(json_bytes_dup(j, 0, &back), 0);
		assert_string_equal(back, strings[i]);
	}
}

static void
broken_base64_is_refused(void **state)
{
	static const char *const bad[] = {"{\"b64\":\"a\"}", "{\"b64\":\"ab=c\"}",
		"{\"b64\":\"====\"}", "{\"b64\":\"=abc\"}", "{\"b64\":\"ab==cdef\"}",
		"{\"b64\":\"a b=\"}", "{\"b64\":\"AAAA\"}", "{\"b64\":1}",
		"{\"b65\":\"YQ==\"}", "{\"b64\":\"YQ==\",\"x\":1}", "[]"};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		cleanup_json struct json *j = NULL;
		char *back = NULL;

		assert_int_equal(json_parse(bad[i], strlen(bad[i]), 64, &j, NULL), 0);
		if (json_bytes_dup(j, 0, &back) != -EINVAL)
			fail_msg("%s was taken", bad[i]);
	}
}

static void
frames_are_taken_whole_or_refused_early(void **state)
{
	struct agent_frame_hdr h = agent_frame_hdr(AGENT_STDIN, 0, 5);
	char buf[32];
	struct agent_frame f;
	size_t used;
	struct err e = {0};

	(void)state;
	memcpy(buf, &h, sizeof(h));
	memcpy(buf + sizeof(h), "hello", 5);
	for (size_t n = 0; n < 13; n++)
		assert_int_equal(
			agent_frame_next(buf, n, AGENT_FROM_HOST, &f, &used, &e), 0);
	assert_int_equal(agent_frame_next(buf, 20, AGENT_FROM_HOST, &f, &used, &e), 1);
	assert_int_equal(used, 13);
	assert_memory_equal(f.payload, "hello", 5);
	/* What the host may say the guest may not. */
	assert_int_equal(
		agent_frame_next(buf, 20, AGENT_FROM_GUEST, &f, &used, &e), -EPROTO);
	h.len = AGENT_FRAME_MAX + 1;
	memcpy(buf, &h, sizeof(h));
	assert_int_equal(
		agent_frame_next(buf, 8, AGENT_FROM_HOST, &f, &used, &e), -EPROTO);
	assert_non_null(strstr(e.msg, "65537"));
}

/* Alive, and not only waiting to be reaped. */
static bool
alive(pid_t pid)
{
	char path[64], text[256] = {0};
	FILE *f;
	char *state;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "r");
	if (!f)
		return false;
	state = fgets(text, sizeof(text), f) ? strrchr(text, ')') : NULL;
	fclose(f);
	return state && state[2] != 'Z' && state[2] != 'X';
}

static void
descendants_are_killed_without_control_groups(void **state)
{
	char line[128];
	int p[2], pids[4];
	pid_t pid;
	ssize_t n;

	(void)state;
	assert_int_equal(pipe(p), 0);
	pid = fork();
	if (!pid) {
		setsid();
		dup2(p[1], 1);
		close(p[0]);
		close(p[1]);
		/* One in the group, one with a session of its own and a child in it. */
		execl("/bin/sh", "sh", "-c",
			"sleep 7340 & a=$!; setsid sh -c 'sleep 7340 & echo $$ $!; wait' & sleep 0.2; echo $$ $a; wait",
			(char *)NULL);
		_exit(1);
	}
	close(p[1]);
	for (size_t at = 0; at < sizeof(line) - 1; at += (size_t)n) {
		n = read(p[0], line + at, sizeof(line) - 1 - at);
		assert_true(n > 0);
		line[at + (size_t)n] = 0;
		if (sscanf(line, "%d %d\n%d %d", &pids[0], &pids[1], &pids[2],
			    &pids[3]) == 4 &&
			strchr(strchr(line, '\n') + 1, '\n'))
			break;
	}
	close(p[0]);
	for (int i = 0; i < 4; i++)
		assert_true(alive(pids[i]));
	/* reap_init() was not called: no control group is known. */
	reap_kill(pid, -1);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	for (int i = 0; i < 4; i++) {
		for (int k = 0; k < 200 && alive(pids[i]); k++)
			usleep(10000);
		assert_false(alive(pids[i]));
	}
}

#define NOBODY 65534

static unsigned n_adopted;

static void
count_adopted(struct exec_shim *s)
{
	n_adopted++;
	exec_shim_done(s); /* kills it */
}

/* A process that looks as a shim does, with a record that `maker` made, and its user. */
static pid_t
make_look_alike(uid_t maker, uid_t user, bool dumpable)
{
	struct exec_shim s = EXEC_SHIM_INIT;
	int ready[2], note[2];
	char c;
	pid_t pid;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (!pid) {
		/* The numbers are those of exec_shim.c. */
		if (seteuid(maker) || exec_shim_make(&s, 4096, 4096, NULL) ||
			seteuid(0) || setuid(user) || pipe(note))
			_exit(1);
		s.r->shim = getpid();
		prctl(PR_SET_DUMPABLE, dumpable);
		prctl(PR_SET_NAME, "pando-shim");
		if (dup2(s.memory, 10) < 0 || dup2(note[0], 14) < 0 ||
			write(ready[1], "1", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	return pid;
}

static unsigned
adopted_of(pid_t pid)
{
	n_adopted = 0;
	exec_shim_adopt(count_adopted);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	return n_adopted;
}

static void
shims_that_another_user_made_are_not_taken_up(void **state)
{
	(void)state;
	if (geteuid())
		skip();
	assert_int_equal(exec_shim_init("/tmp/test_agent_parts", 1, NULL), 0);
	/* As a shim of root's is. */
	assert_int_equal(adopted_of(make_look_alike(0, 0, true)), 1);
	assert_int_equal(adopted_of(make_look_alike(NOBODY, NOBODY, true)), 0);
	/* All of it in /proc but the folder is root's. */
	assert_int_equal(adopted_of(make_look_alike(NOBODY, NOBODY, false)), 0);
	/* A set-user-id program by that name, with what it has inherited. */
	assert_int_equal(adopted_of(make_look_alike(NOBODY, 0, false)), 0);
}

/* A process whose standard input is a pipe, and a file, and a pipe again. */
static pid_t
make_swapper(const char *file)
{
	int p[2], fd = open(file, O_RDONLY | O_CLOEXEC);
	pid_t pid = fork();

	if (pid)
		return pid;
	if (fd < 0 || pipe(p))
		_exit(1);
	for (;;) {
		dup2(p[0], 0);
		dup2(fd, 0);
	}
}

static void
a_file_that_takes_the_place_of_a_pipe_is_not_opened(void **state)
{
	char file[] = "/tmp/pando-finish-XXXXXX", event[4096];
	int fd = mkstemp(file), in = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
	pid_t pid = make_swapper(file);
	unsigned opened = 0;

	(void)state;
	assert_true(fd >= 0 && in >= 0 && pid > 0);
	usleep(50000); /* its own open */
	assert_true(inotify_add_watch(in, file, IN_OPEN) > 0);
	for (int i = 0; i < 300; i++) {
		(void)finish_look(getpid(), 0);
		opened += read(in, event, sizeof(event)) > 0;
	}
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(in);
	close(fd);
	unlink(file);
	assert_int_equal(opened, 0);
}

static void
a_pipe_without_a_writer_is_over_and_others_are_not(void **state)
{
	int p[2], ready[2];
	struct stat st;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe2(p, O_CLOEXEC) | pipe2(ready, O_CLOEXEC), 0);
	assert_int_equal(fstat(p[0], &st), 0);
	pid = fork();
	if (!pid) {
		dup2(p[0], 0);
		close(p[0]);
		close(p[1]);
		(void)!write(ready[1], "1", 1);
		for (;;)
			pause();
	}
	close(p[0]);
	assert_int_equal(read(ready[0], &st.st_size, 1), 1);
	usleep(20000); /* until it sleeps */
	assert_int_equal(finish_look(getpid(), 0), FINISH_NEVER);
	close(p[1]);
	assert_int_equal(finish_look(getpid(), 0), FINISH_SOON);
	assert_int_equal(finish_look(getpid(), st.st_ino), FINISH_NEVER);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	close(ready[0]);
	close(ready[1]);
}

#define NOW_NS 1700000000000000000ull
#define MS_NS 1000000ull

static void
a_clock_that_is_right_is_not_stepped_back_by_a_late_handshake(void **state)
{
	(void)state;
	/* The host's time is as old as the handshake was on its way. */
	assert_false(machine_clock_is_wrong(NOW_NS, NOW_NS));
	assert_false(machine_clock_is_wrong(NOW_NS, NOW_NS - 11 * MS_NS));
	assert_false(machine_clock_is_wrong(NOW_NS, NOW_NS - 1060 * MS_NS));
	assert_false(machine_clock_is_wrong(NOW_NS, NOW_NS - 60000 * MS_NS));
	/* No handshake takes that long to arrive. */
	assert_true(machine_clock_is_wrong(NOW_NS, NOW_NS - 60001 * MS_NS));
	assert_true(machine_clock_is_wrong(NOW_NS, 1));
}

static void
a_clock_that_is_behind_is_stepped_forward(void **state)
{
	(void)state;
	assert_false(machine_clock_is_wrong(NOW_NS, NOW_NS + 10 * MS_NS));
	assert_true(machine_clock_is_wrong(NOW_NS, NOW_NS + 11 * MS_NS));
	assert_true(machine_clock_is_wrong(NOW_NS, NOW_NS + 86400000 * MS_NS));
	assert_true(machine_clock_is_wrong(0, NOW_NS));
	assert_true(machine_clock_is_wrong(0, INT64_MAX));
}

static unsigned fired;

static void
count_fired(struct timer *t)
{
	(void)t;
	fired++;
}

static void
stand_still(struct deferred *c)
{
	(void)c;
	usleep(900000);
}

static void
stand_still_while_ready(struct source *s, uint32_t events)
{
	(void)events;
	source_close(s);
	usleep(900000);
}

static void
time_lost_in_the_middle_of_a_round_fires_no_timer(void **state)
{
	struct timer t = {.fire = count_fired};
	struct deferred c = {.run = stand_still};
	struct source s;
	struct err e = {0};
	int pipes[2];
	uint64_t began;

	(void)state;
	assert_int_equal(loop_init(&e), 0);
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(loop_round(0, &e), 0);
	source_init(&s, pipes[0], stand_still_while_ready);
	assert_int_equal(source_wait(&s, EPOLLHUP), 0);
	close(pipes[1]);
	timer_set(&t, loop_now_ns() + 700 * MS_NS);
	/* Before the timers are looked at, and after that. */
	assert_int_equal(loop_round(-1, &e), 1);
	assert_int_equal(fired, 0);
	deferred_queue(&c);
	assert_int_equal(loop_round(0, &e), 0);
	assert_int_equal(fired, 0);
	began = io_now_ns();
	while (!fired)
		assert_int_equal(loop_round(-1, &e), 0);
	assert_true(io_now_ns() - began > 600 * MS_NS);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(users_are_found_by_name_and_number),
		cmocka_unit_test(only_the_host_is_the_host),
		cmocka_unit_test(journal_keeps_the_last_bytes_by_offset),
		cmocka_unit_test(requests_keep_what_was_given),
		cmocka_unit_test(byte_strings_survive_json),
		cmocka_unit_test(broken_base64_is_refused),
		cmocka_unit_test(frames_are_taken_whole_or_refused_early),
		cmocka_unit_test(descendants_are_killed_without_control_groups),
		cmocka_unit_test(shims_that_another_user_made_are_not_taken_up),
		cmocka_unit_test(a_pipe_without_a_writer_is_over_and_others_are_not),
		cmocka_unit_test(a_file_that_takes_the_place_of_a_pipe_is_not_opened),
		cmocka_unit_test(
			a_clock_that_is_right_is_not_stepped_back_by_a_late_handshake),
		cmocka_unit_test(a_clock_that_is_behind_is_stepped_forward),
		cmocka_unit_test(time_lost_in_the_middle_of_a_round_fires_no_timer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
