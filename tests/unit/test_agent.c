/*
 * The agent and its client, for real: pando-agent runs on a Unix socket with the CONNECT
 * line of a VM's agent.sock, and every call goes through host/agent/agent_client.h.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <utmp.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/wire/agent_frame.h"
#include "host/agent/agent_client.h"
#include "tests/unit/agent_help.h"

static char folder[64], sock[96];
static pid_t agent_pid;

static bool
enter(void)
{
	return !setenv("PANDO_TEST_OF_AGENT", "must not reach commands", 1);
}

static int
setup(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/pando-agent-test-XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(sock, sizeof(sock), "%s/agent.sock", folder);
	agent_pid = agent_help_start(sock, NULL, enter);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	agent_help_end(&agent_pid, SIGTERM);
	return io_remove_tree(folder, NULL);
}

#define ARGV(...) ((const char *const[]){__VA_ARGS__, NULL})
#define SH(script) ARGV("sh", "-c", script)

static struct agent_captured
run_req(const struct agent_exec_req *q, const void *input, size_t len)
{
	struct agent_captured c = {0};
	struct err e = {0};

	if (agent_exec_capture(sock, q, input, len, 1 << 20, &c, &e))
		fail_msg("%s", e.msg);
	return c;
}

static struct agent_captured
run(const char *const *argv)
{
	struct agent_exec_req q = {.argv = argv};

	return run_req(&q, NULL, 0);
}

static struct agent_exec_result
call(const struct agent_exec_req *q, const struct agent_exec_io *io)
{
	struct agent_exec_result res;
	struct err e = {0};

	if (agent_exec(sock, q, io, &res, &e))
		fail_msg("%s", e.msg);
	return res;
}

static struct agent_exec_result
take_up(const char *id, uint64_t out_from, uint64_t err_from,
	const struct agent_exec_io *io)
{
	struct agent_exec_result end;
	struct err e = {0};

	if (agent_attach(sock, id, out_from, err_from, io, &end, &e))
		fail_msg("%s", e.msg);
	return end;
}

static bool list_has(const char *id, char *state, size_t cap);
static void restart_agent(int signo);
static void end_commands(void);
static void wait_state(const char *id, const char *want);
static int dial(const char *request);
static void read_line(int fd, char *line, size_t cap);

static void
ping_tells_who_answers(void **state)
{
	struct agent_pong p;
	struct err e = {0};

	(void)state;
	assert_int_equal(agent_ping(sock, 1000, &p, &e), 0);
	assert_int_equal(strlen(p.boot_id), 36);
	assert_true(p.uptime_ms > 0);
	assert_string_equal(p.version, PANDO_VERSION);
}

static void
streams_and_status_are_kept_apart(void **state)
{
	cleanup_agent_captured struct agent_captured c =
		run(SH("echo out; echo err >&2; exit 7"));

	(void)state;
	assert_string_equal(c.out, "out\n");
	assert_string_equal(c.err, "err\n");
	assert_int_equal(c.result.kind, AGENT_EXITED);
	assert_int_equal(c.result.value, 7);
	assert_int_equal(agent_exit_status(&c.result), 7);
}

static void
status_zero_is_reported_too(void **state)
{
	cleanup_agent_captured struct agent_captured c = run(ARGV("true"));

	(void)state;
	assert_int_equal(c.result.kind, AGENT_EXITED);
	assert_int_equal(c.result.value, 0);
}

static void
death_by_signal_is_its_number(void **state)
{
	cleanup_agent_captured struct agent_captured c = run(SH("kill -SEGV $$"));

	(void)state;
	assert_int_equal(c.result.kind, AGENT_SIGNALLED);
	assert_int_equal(c.result.value, SIGSEGV);
	assert_int_equal(agent_exit_status(&c.result), 128 + SIGSEGV);
}

static void
arguments_arrive_as_they_are(void **state)
{
	const char *odd = "a b'c\"d$e\\f\n*";
	cleanup_agent_captured struct agent_captured c =
		run(ARGV("printf", "%s|%s|%s", odd, "", "\xff\xfe not utf-8 \x80"));
	char want[128];

	(void)state;
	snprintf(want, sizeof(want), "%s||\xff\xfe not utf-8 \x80", odd);
	assert_string_equal(c.out, want);
}

static void
environment_is_a_sane_default_with_ours_over_it(void **state)
{
	struct agent_exec_req q = {
		.argv = SH(
			"echo $A; echo $HOME; echo $USER; echo $PATH; echo [$PANDO_TEST_OF_AGENT]"),
		.env = ARGV("A=1=2", "HOME=/elsewhere"),
	};
	cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);

	(void)state;
	assert_int_equal(strncmp(c.out, "1=2\n/elsewhere\n", 15), 0);
	assert_non_null(strstr(c.out, "/bin"));
	assert_non_null(strstr(c.out, "\n[]\n"));
}

static void
path_of_the_given_environment_finds_the_program(void **state)
{
	struct agent_exec_req q = {
		.argv = ARGV("hello"), .env = (const char *[]){NULL, NULL}};
	char path[128], file[128];
	const char *env[] = {path, NULL};

	(void)state;
	snprintf(path, sizeof(path), "PATH=/nonexistent:%s/bin", folder);
	snprintf(file, sizeof(file), "%s/bin", folder);
	mkdir(file, 0755);
	snprintf(file, sizeof(file), "%s/bin/hello", folder);
	assert_int_equal(
		io_write_file_atomic(file, "#!/bin/sh\necho hello\n", 21, 0755, NULL), 0);
	q.env = env;
	cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);
	assert_string_equal(c.out, "hello\n");
}

static void
working_folder_is_taken(void **state)
{
	struct agent_exec_req q = {.argv = ARGV("/bin/pwd"), .cwd = "/usr/lib"};
	cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);

	(void)state;
	assert_string_equal(c.out, "/usr/lib\n");
	q.cwd = "/nonexistent";
	cleanup_agent_captured struct agent_captured d = run_req(&q, NULL, 0);
	assert_int_equal(d.result.kind, AGENT_SPAWN_FAILED);
	assert_int_equal(d.result.value, ENOENT);
	assert_non_null(strstr(d.result.message, "working folder"));
}

/* A FUSE file system whose server never answers. */
static int
mount_silence(const char *where)
{
	int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	char options[80];

	if (fd < 0)
		return -1;
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0",
		fd);
	if (mkdir(where, 0755) || mount("silence", where, "fuse", 0, options)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void
command_that_hangs_before_it_runs_holds_nobody(void **state)
{
	char where[128], cwd[140];
	struct agent_exec_req q = {.argv = SH("true"), .cwd = cwd, .detach = true};
	struct agent_exec_result res, end;
	struct agent_pong pong;
	struct err e = {0};
	int fuse;

	(void)state;
	snprintf(where, sizeof(where), "%s/silence", folder);
	snprintf(cwd, sizeof(cwd), "%s/x", where);
	fuse = mount_silence(where);
	if (fuse < 0)
		skip();
	res = call(&q, NULL);
	usleep(100000);
	assert_int_equal(agent_ping(sock, 500, &pong, &e), 0);
	wait_state(res.id, "running");
	/* Its number is known, though its shim stands still, also to the next agent. */
	restart_agent(SIGKILL);
	wait_state(res.id, "running");
	assert_int_equal(agent_signal(sock, res.id, SIGKILL, &e), 0);
	end = take_up(res.id, 0, 0, NULL);
	assert_int_equal(end.kind, AGENT_SIGNALLED);
	assert_int_equal(end.value, SIGKILL);
	assert_int_equal(umount2(where, MNT_DETACH), 0);
	close(fuse);
	rmdir(where);
}

static void
command_that_hangs_before_it_runs_keeps_no_pipe_of_others(void **state)
{
	const struct agent_frame_hdr end_of_input = agent_frame_hdr(AGENT_STDIN_EOF, 0, 0);
	char where[128], cwd[140], line[256], id[8][24];
	struct agent_exec_req q = {.argv = SH("true"), .cwd = cwd, .detach = true};
	struct agent_exec_result res;
	struct err e = {0};
	int fuse, fd[8];

	(void)state;
	snprintf(where, sizeof(where), "%s/silence", folder);
	snprintf(cwd, sizeof(cwd), "%s/x", where);
	fuse = mount_silence(where);
	if (fuse < 0)
		skip();
	for (int i = 0; i < 8; i++) {
		fd[i] = dial("{\"op\":\"exec\",\"argv\":[\"cat\"],\"stdin\":true}\n");
		read_line(fd[i], line, sizeof(line));
		assert_int_equal(
			sscanf(line, "{\"ok\":true,\"id\":\"%20[e0-9]\"", id[i]), 1);
	}
	res = call(&q, NULL);
	usleep(100000);
	for (int i = 0; i < 8; i++) {
		assert_int_equal(
			io_write_full(fd[i], &end_of_input, sizeof(end_of_input)), 0);
		wait_state(id[i], "exited");
		close(fd[i]);
		take_up(id[i], 0, 0, NULL);
	}
	assert_int_equal(agent_signal(sock, res.id, SIGKILL, &e), 0);
	take_up(res.id, 0, 0, NULL);
	assert_int_equal(umount2(where, MNT_DETACH), 0);
	close(fuse);
	rmdir(where);
}

static void
program_that_is_not_there_is_127(void **state)
{
	cleanup_agent_captured struct agent_captured c = run(ARGV("no-such-program"));

	(void)state;
	assert_int_equal(c.result.kind, AGENT_SPAWN_FAILED);
	assert_int_equal(agent_exit_status(&c.result), 127);
	cleanup_agent_captured struct agent_captured d = run(ARGV("/etc/passwd"));
	assert_int_equal(agent_exit_status(&d.result), 126);
	/* And 127 of the command's own is no failure to start. */
	cleanup_agent_captured struct agent_captured f = run(SH("exit 127"));
	assert_int_equal(f.result.kind, AGENT_EXITED);
	assert_int_equal(f.result.value, 127);
}

static void
limits_of_the_agent_are_not_the_commands(void **state)
{
	struct rlimit here;
	long soft, hard;
	cleanup_agent_captured struct agent_captured c =
		run(SH("echo $(ulimit -Sn) $(ulimit -Hn)"));

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &here), 0);
	assert_int_equal(sscanf(c.out, "%ld %ld", &soft, &hard), 2);
	assert_int_equal(soft, here.rlim_cur);
	assert_int_equal(hard, here.rlim_max);
}

static void
user_is_switched_to(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("id -un; id -gn; echo $HOME $USER"), .user = "daemon"};
	struct agent_captured none;
	struct err e = {0};

	(void)state;
	if (geteuid())
		skip();
	cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);
	assert_string_equal(c.out, "daemon\ndaemon\n/usr/sbin daemon\n");
	q.user = "nobody-of-that-name";
	assert_int_equal(agent_exec_capture(sock, &q, NULL, 0, 100, &none, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "nobody-of-that-name"));
}

/* FNV-1a, to compare what went in with what came out. */
static uint64_t
hash(uint64_t h, const void *buf, size_t len)
{
	const uint8_t *s = buf;

	for (size_t i = 0; i < len; i++)
		h = (h ^ s[i]) * 1099511628211ull;
	return h;
}

static void
standard_streams_can_be_opened_by_name(void **state)
{
	static const char *const users[] = {NULL, "nobody"};
	struct agent_exec_req q = {
		.argv = SH(
			"cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr")};

	(void)state;
	for (size_t i = 0; i < (geteuid() ? 1 : 2); i++) {
		q.user = users[i];
		cleanup_agent_captured struct agent_captured c = run_req(&q, "in ", 3);

		assert_string_equal(c.out, "in out\n");
		assert_string_equal(c.err, "err\n");
		assert_int_equal(c.result.value, 0);
	}
}

static void
hundred_megabytes_through_stdin(void **state)
{
	struct agent_exec_req q = {.argv = ARGV("sha256sum")};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	char file[128], out[128], cmd[300], local[80] = {0};
	FILE *f;

	(void)state;
	snprintf(file, sizeof(file), "%s/big", folder);
	snprintf(out, sizeof(out), "%s/sum", folder);
	snprintf(cmd, sizeof(cmd), "head -c 100000000 /dev/urandom > %s", file);
	assert_int_equal(system(cmd), 0);
	io.stdin_fd = open(file, O_RDONLY);
	io.stdout_fd = open(out, O_RDWR | O_CREAT | O_TRUNC, 0600);
	res = call(&q, &io);
	assert_int_equal(res.kind, AGENT_EXITED);
	assert_int_equal(res.value, 0);
	snprintf(cmd, sizeof(cmd), "sha256sum < %s", file);
	f = popen(cmd, "r");
	assert_non_null(fgets(local, sizeof(local), f));
	pclose(f);
	char remote[80] = {0};
	assert_true(pread(io.stdout_fd, remote, sizeof(remote) - 1, 0) > 64);
	assert_string_equal(remote, local);
	close(io.stdin_fd);
	close(io.stdout_fd);
	unlink(file);
}

struct sums {
	uint64_t hash[2], bytes[2];
};

static int
sum_output(void *ctx, int stream, const void *buf, size_t len)
{
	struct sums *s = ctx;

	s->hash[stream - 1] = hash(s->hash[stream - 1], buf, len);
	s->bytes[stream - 1] += len;
	return 0;
}

static void
binary_output_of_any_size_on_both_streams(void **state)
{
	/* Every byte value, many times, on both streams at once; stderr twice as much. */
	struct agent_exec_req q = {
		.argv = SH(
			"b=$(printf '\\\\%03o' $(seq 0 255)); printf \"$b\" > f;"
			"i=0; while [ $i -lt 12 ]; do cat f f > g; mv g f; i=$((i+1)); done;"
			"cat f >&2 & cat f; cat f >&2; wait")};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct sums s = {{14695981039346656037ull, 14695981039346656037ull}, {0, 0}};
	uint64_t want = s.hash[0];

	(void)state;
	q.cwd = folder;
	io.output = sum_output;
	io.ctx = &s;
	res = call(&q, &io);
	for (int i = 0; i < 4096; i++)
		for (int b = 0; b < 256; b++)
			want = hash(want, &(uint8_t){(uint8_t)b}, 1);
	assert_int_equal(s.bytes[0], 1 << 20);
	assert_int_equal(s.bytes[1], 2 << 20);
	assert_true(s.hash[0] == want);
	assert_int_equal(res.stdout_bytes, s.bytes[0]);
	assert_int_equal(res.stderr_bytes, s.bytes[1]);
}

static int
processes_of(const char *mark)
{
	char path[64], text[4096];
	DIR *d = opendir("/proc");
	struct dirent *de;
	int n = 0;

	while ((de = readdir(d))) {
		snprintf(path, sizeof(path), "/proc/%.20s/cmdline", de->d_name);
		cleanup_close int fd = open(path, O_RDONLY);
		ssize_t len = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

		if (len <= 0)
			continue;
		for (ssize_t i = 0; i < len; i++)
			if (!text[i])
				text[i] = ' ';
		text[len] = 0;
		if (strstr(text, mark) && atoi(de->d_name) != getpid())
			n++;
	}
	closedir(d);
	return n;
}

static void
time_limit_kills_all_that_was_started(void **state)
{
	/* A plain child, one in the background, one in a session of its own whose parent
	 * is gone. */
	struct agent_exec_req q = {
		.argv = SH(
			"echo started; sleep 7331 & (setsid sh -c 'sleep 7331; sleep 7331' &); sleep 7331"),
		.timeout_ms = 500,
	};
	uint64_t start = io_now_ns(), took;
	cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);

	(void)state;
	took = (io_now_ns() - start) / 1000000;
	assert_string_equal(c.out, "started\n");
	assert_int_equal(c.result.kind, AGENT_TIMED_OUT);
	assert_int_equal(agent_exit_status(&c.result), EXIT_TIMED_OUT);
	assert_true(took >= 500);
	assert_true(took < 5000);
	for (int i = 0; i < 100 && processes_of("sleep 7331"); i++)
		usleep(10000);
	assert_int_equal(processes_of("sleep 7331"), 0);
}

/* The mount points of control groups (v2) are gone for the agent. */
static bool
hide_groups(void)
{
	for (int i = 0; i < 8; i++) {
		FILE *f = fopen("/proc/self/mountinfo", "re");
		char line[1024], at[256] = "";

		if (!i && (unshare(CLONE_NEWNS) ||
				  mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)))
			return false;
		while (f && fgets(line, sizeof(line), f))
			if (strstr(line, " - cgroup2 "))
				sscanf(line, "%*s %*s %*s %*s %255s", at);
		if (f)
			fclose(f);
		if (!at[0])
			return true;
		if (umount2(at, MNT_DETACH))
			return false;
	}
	return false;
}

static void
time_limit_kills_also_without_control_groups(void **state)
{
	char mark[32], script[256];
	struct agent_exec_req q = {.argv = SH(script), .timeout_ms = 1500};
	struct agent_captured c = {0};
	char other[128];
	struct err e = {0};
	pid_t pid;

	(void)state;
	snprintf(other, sizeof(other), "%s/other.sock", folder);
	snprintf(mark, sizeof(mark), "sleep 7343.%d", (int)getpid());
	snprintf(script, sizeof(script),
		"echo started; (env -i setsid %s &); env -i setsid %s & (setsid setsid %s &); %s",
		mark, mark, mark, mark);
	pid = agent_help_start(other, NULL, hide_groups);
	if (!pid)
		skip();
	if (agent_exec_capture(other, &q, NULL, 0, 1 << 20, &c, &e))
		fail_msg("%s", e.msg);
	assert_string_equal(c.out, "started\n");
	assert_int_equal(c.result.kind, AGENT_TIMED_OUT);
	agent_captured_done(&c);
	for (int i = 0; i < 500 && processes_of(mark); i++)
		usleep(10000);
	assert_int_equal(processes_of(mark), 0);
	agent_help_end(&pid, SIGTERM);
}

static void
command_that_ends_in_time_is_not_touched_by_its_limit(void **state)
{
	struct agent_exec_req q = {.argv = SH("sleep 0.1; exit 3"), .timeout_ms = 5000};
	cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);

	(void)state;
	assert_int_equal(c.result.kind, AGENT_EXITED);
	assert_int_equal(c.result.value, 3);
}

/* As a machine that is paused: nothing of the agent runs, and its clock goes on. */
static void
stop_agent(bool stop)
{
	char path[64], text[256];
	bool stopped = !stop;

	kill(agent_pid, stop ? SIGSTOP : SIGCONT);
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)agent_pid);
	while (stopped != stop) {
		cleanup_close int fd = open(path, O_RDONLY);
		ssize_t n = read(fd, text, sizeof(text) - 1);

		assert_true(n > 0);
		text[n] = 0;
		stopped = strrchr(text, ')')[2] == 'T';
	}
}

static void
time_in_which_the_agent_is_held_does_not_count_against_a_limit(void **state)
{
	char go[128], script[256];
	struct agent_exec_req q = {
		.argv = SH(script), .timeout_ms = 4000, .detach = true};
	struct agent_exec_result res, end;
	struct err e = {0};

	(void)state;
	snprintf(go, sizeof(go), "%s/go", folder);
	snprintf(script, sizeof(script), "until test -e %s; do sleep 0.02; done", go);
	res = call(&q, NULL);
	stop_agent(true);
	usleep(5000000); /* longer than all of its limit */
	stop_agent(false);
	/* The agent has looked at its timers after that. */
	assert_int_equal(agent_ping(sock, 10000, NULL, &e), 0);
	assert_true(list_has(res.id, NULL, 0));
	assert_int_equal(close(open(go, O_WRONLY | O_CREAT, 0600)), 0);
	end = take_up(res.id, 0, 0, NULL);
	assert_int_equal(end.kind, AGENT_EXITED);
	assert_int_equal(end.value, 0);
}

struct pause {
	uint64_t began_ns;
	unsigned asked;
};

static void
pause_when_started(void *ctx, const char *id)
{
	struct pause *p = ctx;

	(void)id;
	p->began_ns = io_now_ns();
	stop_agent(true);
}

/* Pandod's count of it, which goes on until the second time that somebody asks. */
static uint64_t
pause_counted(void *ctx)
{
	struct pause *p = ctx;

	if (!p->began_ns)
		return 1000; /* of a pause before */
	if (++p->asked == 2)
		stop_agent(false);
	return 1000 + (io_now_ns() - p->began_ns) / 1000000;
}

static void
a_pause_does_not_count_against_the_hosts_patience(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("sleep 0.2; exit 4"), .timeout_ms = 2500, .grace_ms = 10};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct pause p = {0};
	struct err e = {0};

	(void)state;
	io.started = pause_when_started;
	io.paused_ms = pause_counted;
	io.ctx = &p;
	if (agent_exec(sock, &q, &io, &res, &e)) {
		stop_agent(false);
		fail_msg("%s", e.msg);
	}
	assert_int_equal(res.kind, AGENT_EXITED);
	assert_int_equal(res.value, 4);
	assert_true(p.asked >= 2);

	/* Nobody counts a pause: the guest is stuck. */
	p = (struct pause){0};
	io.paused_ms = NULL;
	assert_int_equal(agent_exec(sock, &q, &io, &res, &e), -ETIMEDOUT);
	stop_agent(false);
	assert_non_null(strstr(e.msg, "stuck or paused"));
	end_commands();
}

static void
background_child_that_holds_stdout_does_not_hang_the_call(void **state)
{
	uint64_t start = io_now_ns();
	cleanup_agent_captured struct agent_captured c = run(SH(
		"(trap '' PIPE; sleep 1; echo late; echo alive > $0.mark; sleep 20) & echo now; exit 5"));

	(void)state;
	assert_true(io_now_ns() - start < 900000000ull);
	assert_string_equal(c.out, "now\n");
	assert_int_equal(c.result.value, 5);
}

static void
background_child_lives_on_and_may_write(void **state)
{
	char mark[128], script[300];

	(void)state;
	snprintf(mark, sizeof(mark), "%s/mark", folder);
	/* No trap: a SIGPIPE would kill it before the mark is made. */
	snprintf(script, sizeof(script),
		"(sleep 0.5; echo late; echo later; touch %s) & exit 0", mark);
	cleanup_agent_captured struct agent_captured c = run(SH(script));
	assert_int_equal(c.result.value, 0);
	for (int i = 0; i < 300 && access(mark, F_OK); i++)
		usleep(10000);
	assert_int_equal(access(mark, F_OK), 0);
}

static void
output_before_the_end_is_all_there(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("head -c 300000 /dev/zero; head -c 300001 /dev/zero >&2")};

	(void)state;
	for (int i = 0; i < 20; i++) {
		cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);

		assert_int_equal(c.out_len, 300000);
		assert_int_equal(c.err_len, 300001);
	}
}

static void
terminal_has_its_size_and_follows_it(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("stty size; tty; echo $TERM; echo to-stderr >&2"),
		.tty = true,
		.rows = 33,
		.cols = 44,
		.term = "vt100",
	};
	cleanup_agent_captured struct agent_captured c = run_req(&q, NULL, 0);

	(void)state;
	assert_int_equal(strncmp(c.out, "33 44\r\n/dev/pts/", 16), 0);
	assert_non_null(strstr(c.out, "vt100\r\nto-stderr\r\n"));
	assert_int_equal(c.err_len, 0);
}

/* The end of the input of a terminal, which a person says with Ctrl-D: once where a line
 * begins, twice in the midst of one. */
static void
input_of_a_terminal_ends_also_in_the_middle_of_a_line(void **state)
{
	struct agent_exec_req q = {.argv = SH("stty -echo; cat; echo ' ended'"),
		.tty = true,
		.timeout_ms = 20000};
	cleanup_agent_captured struct agent_captured part =
		run_req(&q, "whole\npart", 10);
	cleanup_agent_captured struct agent_captured nothing = run_req(&q, "", 0);

	(void)state;
	assert_int_equal(part.result.kind, AGENT_EXITED);
	assert_non_null(strstr(part.out, "part ended"));
	assert_int_equal(nothing.result.kind, AGENT_EXITED);
	/* Once is enough after a whole line: a second would be the end for whoever reads
	 * next. */
	q.argv = SH("stty -echo; cat; echo ended; timeout 1 cat; echo $?");
	cleanup_agent_captured struct agent_captured whole = run_req(&q, "whole\n", 6);
	assert_non_null(strstr(whole.out, "whole\r\nended\r\n124\r\n"));
	/* More than the terminal takes at once, which waits in the agent. */
	char *lines = calloc(1, 60001);
	for (int i = 0; i < 600; i++)
		snprintf(lines + 100 * i, 101, "%099d\n", i);
	q.argv = SH("stty -echo; sleep 0.3; wc -c");
	cleanup_agent_captured struct agent_captured much = run_req(&q, lines, 59999);
	assert_int_equal(much.result.kind, AGENT_EXITED);
	assert_non_null(strstr(much.out, "59999\r\n"));
	free(lines);
}

struct script {
	int pipe[2];
	char seen[4096];
	size_t len;
	int step;
};

/* Answers what it sees on a terminal. */
static int
tty_output(void *ctx, int stream, const void *buf, size_t len)
{
	struct script *s = ctx;

	assert_int_equal(stream, 1);
	if (len > sizeof(s->seen) - 1 - s->len)
		len = sizeof(s->seen) - 1 - s->len;
	memcpy(s->seen + s->len, buf, len);
	s->len += len;
	s->seen[s->len] = 0;
	if (s->step == 0 && strstr(s->seen, "ready")) {
		s->step = 1;
		assert_int_equal(write(s->pipe[1], "x", 1), 1);
	}
	return 0;
}

static int
tty_wake(void *ctx, struct agent_session *session)
{
	struct script *s = ctx;
	char c;

	assert_int_equal(read(s->pipe[0], &c, 1), 1);
	assert_int_equal(agent_session_winsize(session, 50, 60), 0);
	return 0;
}

static void
terminal_gets_a_new_size_while_it_runs(void **state)
{
	struct agent_exec_req q = {
		.argv = SH(
			"trap 'stty size; exit 9' WINCH; echo ready; while :; do sleep 0.05; done"),
		.tty = true,
		.rows = 1,
		.cols = 1,
		.timeout_ms = 10000,
	};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct script s = {0};

	(void)state;
	assert_int_equal(pipe(s.pipe), 0);
	io.output = tty_output;
	io.wake = tty_wake;
	io.wake_fd = s.pipe[0];
	io.ctx = &s;
	res = call(&q, &io);
	assert_int_equal(res.value, 9);
	assert_non_null(strstr(s.seen, "50 60"));
	close(s.pipe[0]);
	close(s.pipe[1]);
}

static int
signal_wake(void *ctx, struct agent_session *session)
{
	struct script *s = ctx;
	char c;

	assert_int_equal(read(s->pipe[0], &c, 1), 1);
	assert_int_equal(agent_session_signal(session, SIGINT), 0);
	return 0;
}

static void
signals_pass_input_that_nobody_reads(void **state)
{
	struct agent_exec_req q = {
		.argv = SH(
			"trap 'exit 42' INT; echo ready; while :; do sleep 0.05; done"),
		.timeout_ms = 10000,
	};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct script s = {0};

	(void)state;
	assert_int_equal(pipe(s.pipe), 0);
	io.stdin_fd = open("/dev/zero", O_RDONLY); /* without end, and unread */
	io.output = tty_output;
	io.wake = signal_wake;
	io.wake_fd = s.pipe[0];
	io.ctx = &s;
	res = call(&q, &io);
	assert_int_equal(res.kind, AGENT_EXITED);
	assert_int_equal(res.value, 42);
	close(io.stdin_fd);
	close(s.pipe[0]);
	close(s.pipe[1]);
}

/* A reader of a pipe that reads nothing until the signal was sent. */
struct lazy {
	int out[2], wake[2];
	_Atomic bool signalled;
	uint64_t bytes;
};

static void *
lazy_main(void *arg)
{
	struct lazy *l = arg;
	static char buf[65536];
	int full = 0;
	ssize_t n;

	/* To the last page: what came last may have begun a new one. */
	while (full <= 15 * 4096 && !ioctl(l->out[0], FIONREAD, &full))
		usleep(1000);
	(void)!write(l->wake[1], "x", 1);
	while (!l->signalled)
		usleep(1000);
	while ((n = read(l->out[0], buf, sizeof(buf))) > 0)
		l->bytes += (uint64_t)n;
	return NULL;
}

static int
lazy_wake(void *ctx, struct agent_session *session)
{
	struct lazy *l = ctx;
	char c;

	assert_int_equal(read(l->wake[0], &c, 1), 1);
	assert_int_equal(agent_session_signal(session, SIGINT), 0);
	l->signalled = true;
	return 0;
}

static void
output_into_a_full_pipe_holds_no_signal_up_and_is_whole(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("trap 'exit 42' INT; head -c 3000000 /dev/zero; while :; do sleep 0.05; done"),
		.timeout_ms = 60000,
	};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct lazy l = {0};
	pthread_t t;

	(void)state;
	assert_int_equal(pipe(l.out) | pipe(l.wake), 0);
	assert_int_equal(pthread_create(&t, NULL, lazy_main, &l), 0);
	io.stdout_fd = l.out[1];
	io.wake = lazy_wake;
	io.wake_fd = l.wake[0];
	io.ctx = &l;
	res = call(&q, &io);
	close(l.out[1]);
	pthread_join(t, NULL);
	assert_int_equal(res.kind, AGENT_EXITED);
	assert_int_equal(res.value, 42);
	assert_int_equal(l.bytes, res.stdout_bytes);
	close(l.out[0]);
	close(l.wake[0]);
	close(l.wake[1]);
}

static void
input_that_is_closed_early_stops_nothing(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("head -c 5; exec <&-; sleep 0.3; echo; echo end")};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct script s = {.step = 1};

	(void)state;
	io.stdin_fd = open("/dev/zero", O_RDONLY);
	io.output = tty_output;
	io.ctx = &s;
	res = call(&q, &io);
	assert_int_equal(res.value, 0);
	assert_int_equal(s.len, 10);
	assert_memory_equal(s.seen, "\0\0\0\0\0\nend\n", 10);
	close(io.stdin_fd);
}

static bool
list_has(const char *id, char *state, size_t cap)
{
	cleanup_free char *text = NULL;
	cleanup_json struct json *j = NULL;
	struct err e = {0};
	int it = 0, key, tok;

	if (agent_list_execs(sock, &text, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(json_parse(text, strlen(text), 100000, &j, NULL), 0);
	while (json_next(j, 0, &it, &key, &tok)) {
		char have[24];

		assert_int_equal(
			json_str(j, json_get(j, tok, "id"), have, sizeof(have)), 0);
		if (strcmp(have, id) != 0)
			continue;
		if (state)
			assert_int_equal(
				json_str(j, json_get(j, tok, "state"), state, cap), 0);
		return true;
	}
	return false;
}

static void
wait_state(const char *id, const char *want)
{
	char is[32] = "";

	for (int i = 0; i < 500; i++) {
		assert_true(list_has(id, is, sizeof(is)));
		if (strcmp(is, want) == 0)
			return;
		usleep(10000);
	}
	fail_msg("%s is %s, not %s", id, is, want);
}

static void
detached_command_is_taken_up_by_cursor(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("echo one; echo two >&2; sleep 0.3; echo three; exit 4"),
		.detach = true};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res, end;
	struct script s = {.step = 1};
	struct err e = {0};

	(void)state;
	res = call(&q, NULL);
	assert_int_equal(res.kind, 0);
	assert_true(list_has(res.id, NULL, 0));
	wait_state(res.id, "exited");

	/* From byte 2 on, stderr from its end. */
	io.output = tty_output;
	io.ctx = &s;
	end = take_up(res.id, 2, 4, &io);
	assert_string_equal(s.seen, "e\nthree\n");
	assert_int_equal(end.kind, AGENT_EXITED);
	assert_int_equal(end.value, 4);
	assert_int_equal(end.stdout_bytes, 10);
	/* Its end was taken. */
	assert_false(list_has(res.id, NULL, 0));
	assert_int_equal(agent_attach(sock, res.id, 0, 0, &io, &end, &e), -ESRCH);
	assert_non_null(strstr(e.msg, res.id));
}

static void
journal_that_ran_over_reports_the_gap(void **state)
{
	/* 8 bytes a line, 1 MB in all; the journal keeps the last part of it. */
	struct agent_exec_req q = {.argv = SH("seq -f %07.0f 1 125000"), .detach = true};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res, end;
	struct agent_captured got = {0};
	char file[128], *text = NULL;
	size_t len;

	(void)state;
	(void)got;
	res = call(&q, NULL);
	wait_state(res.id, "exited");
	snprintf(file, sizeof(file), "%s/tail", folder);
	io.stdout_fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	end = take_up(res.id, 0, 0, &io);
	close(io.stdout_fd);
	assert_int_equal(end.stdout_bytes, 1000000);
	assert_true(end.stdout_lost > 0);
	assert_int_equal(io_read_file(file, 1 << 20, &text, &len, NULL), 0);
	assert_int_equal(len + end.stdout_lost, 1000000);
	assert_true(len >= 16 * 1024);
	assert_string_equal(text + len - 8, "0125000\n");
	/* What is there is the stream from the end of the gap on. */
	assert_int_equal(atoi(text + (8 - end.stdout_lost % 8) % 8),
		(int)((end.stdout_lost + 7) / 8 + 1));
	free(text);
}

/* Dials by hand. */
static int
dial(const char *request)
{
	struct err e = {0};
	int fd;

	if (agent_connect(sock, 1000, &fd, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(io_write_full(fd, request, strlen(request)), 0);
	return fd;
}

static void
read_line(int fd, char *line, size_t cap)
{
	size_t n = 0;

	while (n + 1 < cap && io_read_full(fd, line + n, 1) == 0 && line[n] != '\n')
		n++;
	line[n] = 0;
}

static void
connection_that_breaks_leaves_the_command_running(void **state)
{
	char line[256], id[24];
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result end;
	struct script s = {.step = 1};
	int fd = dial(
		"{\"op\":\"exec\",\"argv\":[\"sh\",\"-c\",\"sleep 0.4; cat; echo done; exit 6\"],\"stdin\":true}\n");

	(void)state;
	read_line(fd, line, sizeof(line));
	assert_int_equal(sscanf(line, "{\"ok\":true,\"id\":\"%20[e0-9]\"", id), 1);
	close(fd); /* as when the host's program dies */
	usleep(600000);
	/* Its input was cut, not ended: it waits for more. */
	wait_state(id, "running");
	io.output = tty_output;
	io.ctx = &s;
	io.stdin_fd = open("/etc/hostname", O_RDONLY);
	end = take_up(id, 0, 0, &io);
	assert_int_equal(end.value, 6);
	assert_non_null(strstr(s.seen, "done\n"));
	close(io.stdin_fd);
}

static void
slow_reader_slows_the_command_and_nothing_else(void **state)
{
	int fd = dial(
		"{\"op\":\"exec\",\"argv\":[\"sh\",\"-c\",\"head -c 20000000 /dev/zero; echo x >&2\"]}\n");
	uint64_t total = 0;
	char line[256];
	struct agent_frame_hdr h;
	struct agent_exit x = {0};
	static char payload[AGENT_FRAME_MAX];

	(void)state;
	read_line(fd, line, sizeof(line));
	usleep(300000); /* nobody reads: the agent must go on with others */
	for (int i = 0; i < 5; i++) {
		uint64_t start = io_now_ns();
		cleanup_agent_captured struct agent_captured c = run(ARGV("true"));

		assert_int_equal(c.result.value, 0);
		assert_true(io_now_ns() - start < 2000000000ull);
	}
	while (io_read_full(fd, &h, sizeof(h)) == 0) {
		assert_true(h.len <= sizeof(payload));
		assert_int_equal(io_read_full(fd, payload, h.len), 0);
		if (h.type == AGENT_STDOUT)
			total += h.len - sizeof(struct agent_output);
		assert_int_not_equal(h.type, AGENT_GAP);
		if (h.type == AGENT_EXIT) {
			memcpy(&x, payload, sizeof(x));
			break;
		}
	}
	close(fd);
	assert_int_equal(x.kind, AGENT_EXITED);
	assert_int_equal(total, 20000000);
	assert_int_equal(x.stderr_bytes, 2);
}

static void
reader_that_died_in_the_middle_wedges_nothing(void **state)
{
	char line[256], id[24];
	int fd = dial(
		"{\"op\":\"exec\",\"argv\":[\"sh\",\"-c\",\"head -c 5000000 /dev/zero; exit 3\"]}\n");
	struct agent_exec_result end;

	(void)state;
	read_line(fd, line, sizeof(line));
	assert_int_equal(sscanf(line, "{\"ok\":true,\"id\":\"%20[e0-9]\"", id), 1);
	usleep(100000);
	close(fd);
	wait_state(id, "exited");
	end = take_up(id, 0, 0, NULL);
	assert_int_equal(end.value, 3);
	assert_int_equal(end.stdout_bytes, 5000000);
}

static void
second_reader_puts_the_first_off(void **state)
{
	char line[256], id[24];
	int fd = dial(
		"{\"op\":\"exec\",\"argv\":[\"sh\",\"-c\",\"sleep 0.3; echo late\"]}\n");
	struct agent_exec_result end;
	struct agent_frame_hdr h;

	(void)state;
	read_line(fd, line, sizeof(line));
	assert_int_equal(sscanf(line, "{\"ok\":true,\"id\":\"%20[e0-9]\"", id), 1);
	end = take_up(id, 0, 0, NULL);
	assert_int_equal(end.stdout_bytes, 5);
	assert_int_equal(io_read_full(fd, &h, sizeof(h)), 0);
	assert_int_equal(h.type, AGENT_ERROR);
	close(fd);
}

/* Reads no more than the answer. */
static int
dial_and_stall(const char *request, char id[static 24])
{
	char line[256];
	int fd = dial(request);

	read_line(fd, line, sizeof(line));
	assert_int_equal(sscanf(line, "{\"ok\":true,\"id\":\"%20[e0-9]\"", id), 1);
	return fd;
}

static void
reader_that_is_put_off_in_the_middle_of_a_frame_is_no_hang_up(void **state)
{
	/* One that has ended, its output under way; and one that runs on. */
	static const char *const requests[] = {
		"{\"op\":\"exec\",\"argv\":[\"head\",\"-c\",\"400000\",\"/dev/zero\"],\"hangup\":true}\n",
		"{\"op\":\"exec\",\"argv\":[\"head\",\"-c\",\"9000000\",\"/dev/zero\"],\"hangup\":true}\n",
	};
	static const uint64_t bytes[] = {400000, 9000000};

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct agent_exec_result end;
		char id[24];
		int fd = dial_and_stall(requests[i], id);

		if (i == 0)
			wait_state(id, "exited");
		else
			usleep(200000);
		end = take_up(id, 0, 0, NULL);
		close(fd);
		assert_int_equal(end.kind, AGENT_EXITED);
		assert_int_equal(end.stdout_bytes, bytes[i]);
	}
}

/* Frames until that of this type. */
static void
read_until(int fd, uint8_t type)
{
	static char payload[AGENT_FRAME_MAX];
	struct agent_frame_hdr h;

	do {
		assert_int_equal(io_read_full(fd, &h, sizeof(h)), 0);
		assert_true(h.len <= sizeof(payload));
		assert_int_equal(io_read_full(fd, payload, h.len), 0);
	} while (h.type != type);
}

static void
end_that_is_taken_just_after_another_attached_is_still_the_others(void **state)
{
	const struct agent_frame_hdr taken = agent_frame_hdr(AGENT_TAKEN, 0, 0);
	char line[256], request[128], id[24];
	struct agent_pong pong;
	struct err e = {0};
	int first, second;

	(void)state;
	first = dial_and_stall("{\"op\":\"exec\",\"argv\":[\"echo\",\"x\"]}\n", id);
	read_until(first, AGENT_EXIT);
	second = dial("");
	/* Both in one round of its loop, and in this order. */
	assert_int_equal(kill(agent_pid, SIGSTOP), 0);
	snprintf(request, sizeof(request),
		"{\"op\":\"attach\",\"id\":\"%s\",\"stdout\":0,\"stderr\":0}\n", id);
	assert_int_equal(io_write_full(second, request, strlen(request)), 0);
	assert_int_equal(io_write_full(first, &taken, sizeof(taken)), 0);
	assert_int_equal(kill(agent_pid, SIGCONT), 0);
	read_line(second, line, sizeof(line));
	assert_non_null(strstr(line, "\"ok\":true"));
	read_until(second, AGENT_STDOUT);
	read_until(second, AGENT_EXIT);
	assert_int_equal(io_write_full(second, &taken, sizeof(taken)), 0);
	assert_int_equal(agent_ping(sock, 1000, &pong, &e), 0);
	assert_false(list_has(id, line, sizeof(line)));
	close(first);
	close(second);
}

static void
as_many_records_are_kept_as_commands_may_run(void **state)
{
	struct agent_exec_req q = {.argv = SH("exit 5"), .detach = true};
	static struct agent_exec_result res[AGENT_EXECS_MAX];
	struct agent_exec_result end;
	struct err e = {0};

	(void)state;
	end_commands();
	for (int i = 0; i < AGENT_EXECS_MAX; i++)
		if (agent_exec(sock, &q, NULL, &res[i], &e))
			fail_msg("%d: %s", i, e.msg);
	for (int i = 0; i < AGENT_EXECS_MAX; i++)
		wait_state(res[i].id, "exited");
	for (int i = 0; i < AGENT_EXECS_MAX; i++) {
		if (agent_attach(sock, res[i].id, 0, 0, NULL, &end, &e))
			fail_msg("%d: %s", i, e.msg);
		assert_int_equal(end.value, 5);
	}
}

static void
restart_agent(int signo)
{
	kill(agent_pid, signo);
	waitpid(agent_pid, NULL, 0);
	agent_pid = agent_help_start(sock, NULL, enter);
}

static void
commands_go_on_while_the_agent_is_started_anew(void **state)
{
	static const int signals[] = {SIGTERM, SIGKILL};
	char go[128], script[400], id[2][24], want[32];
	struct agent_exec_req q = {.argv = SH(script), .detach = true};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res, end;

	(void)state;
	snprintf(go, sizeof(go), "%s/go-on", folder);
	snprintf(script, sizeof(script),
		"trap '' PIPE; echo before; echo err >&2; until test -e %s; do echo x; sleep 0.01; done; echo after; exit 7",
		go);
	for (int i = 0; i < 2; i++) {
		cleanup_free char *text = NULL;
		size_t len;
		char file[128];

		unlink(go);
		res = call(&q, NULL);
		strcpy(id[i], res.id);
		usleep(100000);
		restart_agent(signals[i]);
		wait_state(id[i], "running");
		usleep(50000);
		restart_agent(signals[i]);
		assert_int_equal(close(open(go, O_WRONLY | O_CREAT, 0600)), 0);
		snprintf(file, sizeof(file), "%s/all", folder);
		io.stdout_fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		end = take_up(id[i], 0, 0, &io);
		close(io.stdout_fd);
		assert_int_equal(end.kind, AGENT_EXITED);
		assert_int_equal(end.value, 7);
		assert_int_equal(end.stdout_lost + end.stderr_lost, 0);
		assert_int_equal(end.stderr_bytes, 4);
		assert_int_equal(io_read_file(file, 1 << 20, &text, &len, NULL), 0);
		assert_int_equal(len, end.stdout_bytes);
		assert_memory_equal(text, "before\nx\n", 9);
		snprintf(want, sizeof(want), "x\nafter\n");
		assert_string_equal(text + len - strlen(want), want);
		/* Every line of it, whole. */
		assert_int_equal(strspn(text + 7, "x\n"), len - 7 - 6);
	}
	assert_string_not_equal(id[0], id[1]);
}

/* As root of a container often is. */
static bool
enter_without_tracing(void)
{
	return !prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0) && enter();
}

static void
commands_of_other_users_are_taken_up_by_an_agent_that_may_not_trace(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("sleep 60"), .user = "nobody", .cwd = "/", .detach = true};
	struct agent_exec_result res;
	struct err e = {0};

	(void)state;
	if (geteuid())
		skip();
	for (int i = 0; i < 2; i++) {
		kill(agent_pid, SIGKILL);
		waitpid(agent_pid, NULL, 0);
		agent_pid = agent_help_start(sock, NULL, enter_without_tracing);
		assert_true(agent_pid > 0);
		if (i == 0)
			res = call(&q, NULL);
	}
	wait_state(res.id, "running");
	assert_int_equal(agent_signal(sock, res.id, SIGKILL, &e), 0);
	take_up(res.id, 0, 0, NULL);
	restart_agent(SIGTERM);
}

static void
command_is_known_to_the_next_agent_from_its_first_instant(void **state)
{
	struct agent_exec_req q = {.argv = SH("sleep 60"), .detach = true};
	struct agent_exec_result res[20];
	char is[32];
	unsigned lost = 0;
	struct err e = {0};

	(void)state;
	for (int i = 0; i < 20; i++) {
		res[i] = call(&q, NULL);
		restart_agent(SIGKILL);
		lost += !list_has(res[i].id, is, sizeof(is));
	}
	assert_int_equal(lost, 0);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(agent_signal(sock, res[i].id, SIGKILL, &e), 0);
		take_up(res[i].id, 0, 0, NULL);
	}
}

static void
input_is_whole_though_the_agent_is_started_anew(void **state)
{
	struct agent_exec_req q = {.argv = ARGV("cat")};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result end;
	struct err e = {0};
	char line[256], id[24], file[128];
	cleanup_free char *text = NULL;
	static char payload[64 * 1024];
	struct agent_frame_hdr h = {.type = AGENT_STDIN, .len = sizeof(payload)};
	size_t len;
	int fd, p[2];

	(void)state;
	(void)q;
	/* It reads nothing before it is told to: input waits in the agent. */
	snprintf(file, sizeof(file), "%s/take", folder);
	snprintf(line, sizeof(line),
		"{\"op\":\"exec\",\"argv\":[\"sh\",\"-c\",\"until test -e %s; do sleep 0.02; done; cat\"],\"stdin\":true}\n",
		file);
	fd = dial(line);
	read_line(fd, line, sizeof(line));
	assert_int_equal(sscanf(line, "{\"ok\":true,\"id\":\"%20[e0-9]\"", id), 1);
	for (int i = 0; i < 3; i++) {
		memset(payload, 'a' + i, sizeof(payload));
		assert_int_equal(io_write_full(fd, &h, sizeof(h)), 0);
		assert_int_equal(io_write_full(fd, payload, sizeof(payload)), 0);
	}
	assert_int_equal(agent_ping(sock, 10000, NULL, &e), 0);
	usleep(100000);
	close(fd);
	restart_agent(SIGKILL);
	assert_int_equal(close(open(file, O_WRONLY | O_CREAT, 0600)), 0);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(write(p[1], "end\n", 4), 4);
	close(p[1]);
	io.stdin_fd = p[0];
	snprintf(file, sizeof(file), "%s/taken", folder);
	io.stdout_fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	end = take_up(id, 0, 0, &io);
	close(io.stdout_fd);
	close(p[0]);
	assert_int_equal(end.value, 0);
	assert_int_equal(io_read_file(file, 1 << 20, &text, &len, NULL), 0);
	assert_int_equal(len, 3 * sizeof(payload) + 4);
	for (size_t i = 0; i < 3 * sizeof(payload); i++)
		assert_int_equal(text[i], 'a' + (int)(i / sizeof(payload)));
	assert_string_equal(text + len - 4, "end\n");
}

static void
records_and_limits_outlive_the_agent(void **state)
{
	struct agent_exec_req done = {.argv = SH("echo kept; exit 9"), .detach = true};
	char mark[32], script[128];
	struct agent_exec_req limited = {
		.argv = SH(script), .timeout_ms = 2000, .detach = true};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result a, b, end;
	struct script s = {.step = 1};
	struct err e = {0};

	(void)state;
	snprintf(mark, sizeof(mark), "sleep 7341.%d", (int)getpid());
	snprintf(script, sizeof(script), "(setsid setsid %s &); %s", mark, mark);
	if (agent_exec(sock, &done, NULL, &a, &e) ||
		agent_exec(sock, &limited, NULL, &b, &e))
		fail_msg("%s", e.msg);
	wait_state(a.id, "exited");
	restart_agent(SIGKILL);
	io.output = tty_output;
	io.ctx = &s;
	end = take_up(a.id, 0, 0, &io);
	assert_string_equal(s.seen, "kept\n");
	assert_int_equal(end.value, 9);
	end = take_up(b.id, 0, 0, NULL);
	assert_int_equal(end.kind, AGENT_TIMED_OUT);
	for (int i = 0; i < 500 && processes_of(mark); i++)
		usleep(10000);
	assert_int_equal(processes_of(mark), 0);
	/* What was taken is not there again. */
	for (int i = 0; i < 500 && (list_has(a.id, NULL, 0) || list_has(b.id, NULL, 0));
		i++)
		usleep(10000);
	restart_agent(SIGTERM);
	assert_false(list_has(a.id, NULL, 0));
	assert_false(list_has(b.id, NULL, 0));
}

static void
ids_are_never_given_again(void **state)
{
	static char ids[12][24];
	struct err e = {0};

	(void)state;
	for (int i = 0; i < 12; i++) {
		cleanup_agent_captured struct agent_captured c = run(ARGV("true"));

		strcpy(ids[i], c.result.id);
		for (int k = 0; k < i; k++)
			assert_string_not_equal(ids[i], ids[k]);
		if (i % 3 == 2)
			restart_agent(i % 2 ? SIGTERM : SIGKILL);
	}
	assert_int_equal(agent_signal(sock, ids[0], SIGTERM, &e), -ESRCH);
}

static void
output_of_what_finishes_after_the_shell_is_there(void **state)
{
	/* The shell's output goes through others, which go on for longer than it does. */
	static const char *const scripts[] = {
		"exec > >(sleep 0.4; cat); echo late",
		"exec > >(while read l; do sleep 0.3; echo $l; done); echo late",
		"exec > >(cat | (sleep 0.5; tr A-Z a-z)); echo LATE",
	};

	(void)state;
	if (access("/bin/bash", X_OK))
		skip();
	for (size_t i = 0; i < sizeof(scripts) / sizeof(scripts[0]); i++) {
		cleanup_agent_captured struct agent_captured c =
			run(ARGV("bash", "-c", scripts[i]));

		assert_int_equal(c.result.value, 0);
		assert_string_equal(c.out, "late\n");
		assert_string_equal(c.result.message, "");
	}
}

static void
output_that_stays_open_is_marked(void **state)
{
	struct agent_exec_req q = {
		.argv = SH("sleep 7342 & (sleep 0.5; echo late) & echo now"),
		.detach = true};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res, end;
	struct script s = {.step = 1};

	(void)state;
	cleanup_agent_captured struct agent_captured c =
		run(SH("sleep 1.7342 & echo now"));
	assert_string_equal(c.out, "now\n");
	assert_int_equal(c.result.value, 0);
	assert_non_null(strstr(c.result.message, "still open by process"));
	assert_non_null(strstr(c.result.message, "(sleep)"));

	/* Until somebody takes its end, what comes later is kept, too. */
	res = call(&q, NULL);
	wait_state(res.id, "exited");
	sleep(1);
	io.output = tty_output;
	io.ctx = &s;
	end = take_up(res.id, 0, 0, &io);
	assert_string_equal(s.seen, "now\nlate\n");
	assert_int_equal(end.stdout_bytes, 9);
}

static void
finished_records_are_bounded(void **state)
{
	struct agent_exec_req q = {.argv = ARGV("true"), .detach = true};
	struct agent_exec_result first, last;
	struct err e = {0};

	(void)state;
	assert_int_equal(agent_exec(sock, &q, NULL, &first, &e), 0);
	wait_state(first.id, "exited");
	for (int i = 0; i < AGENT_FINISHED_MAX + 8; i++)
		assert_int_equal(agent_exec(sock, &q, NULL, &last, &e), 0);
	/* All of them must have ended before the oldest goes. */
	for (int i = 0; i < 500 && list_has(first.id, NULL, 0); i++)
		usleep(10000);
	assert_false(list_has(first.id, NULL, 0));
	wait_state(last.id, "exited");
}

/* Ends, by id, the commands that still run and takes their records. */
static void
end_commands(void)
{
	cleanup_free char *text = NULL;
	cleanup_json struct json *j = NULL;
	struct agent_exec_result end;
	int it = 0, key, tok;

	assert_int_equal(agent_list_execs(sock, &text, NULL), 0);
	assert_int_equal(json_parse(text, strlen(text), 100000, &j, NULL), 0);
	while (json_next(j, 0, &it, &key, &tok)) {
		char id[24];

		assert_int_equal(json_str(j, json_get(j, tok, "id"), id, sizeof(id)), 0);
		agent_signal(sock, id, SIGKILL, NULL);
		agent_attach(sock, id, 0, 0, NULL, &end, NULL);
	}
}

static void
one_command_too_many_is_refused(void **state)
{
	struct agent_exec_req q = {.argv = ARGV("sleep", "7332"), .detach = true};
	struct agent_exec_result res;
	struct err e = {0};
	int n = 0, r;

	(void)state;
	end_commands(); /* one of a test before this may still be on its way out */
	while (!(r = agent_exec(sock, &q, NULL, &res, &e)) && n <= AGENT_EXECS_MAX)
		n++;
	assert_int_equal(r, -EAGAIN);
	assert_int_equal(n, AGENT_EXECS_MAX);
	assert_non_null(strstr(e.msg, "256"));
	end_commands();
	q.argv = ARGV("true");
	assert_int_equal(agent_exec(sock, &q, NULL, &res, &e), 0);
}

static void
signal_reaches_the_group_from_another_connection(void **state)
{
	struct agent_exec_req q = {.argv = SH("sleep 7333; exit 1"), .detach = true};
	struct agent_exec_result res, end;
	struct err e = {0};

	(void)state;
	assert_int_equal(agent_exec(sock, &q, NULL, &res, &e), 0);
	usleep(100000);
	assert_int_equal(agent_signal(sock, res.id, SIGTERM, &e), 0);
	end = take_up(res.id, 0, 0, NULL);
	assert_int_equal(end.kind, AGENT_SIGNALLED);
	assert_int_equal(end.value, SIGTERM);
	assert_int_equal(processes_of("sleep 7333"), 0);
	assert_int_equal(agent_signal(sock, res.id, SIGTERM, &e), -ESRCH);
}

static int
cancel_at_once(void *ctx, struct agent_session *s)
{
	(void)ctx;
	(void)s;
	return -ECANCELED;
}

static void
caller_may_cancel(void **state)
{
	struct agent_exec_req q = {.argv = ARGV("sleep", "7334"), .timeout_ms = 20000};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct err e = {0};
	int p[2];

	(void)state;
	assert_int_equal(pipe(p), 0);
	assert_int_equal(write(p[1], "x", 1), 1);
	io.wake_fd = p[0];
	io.wake = cancel_at_once;
	assert_int_equal(agent_exec(sock, &q, &io, &res, &e), -ECANCELED);
	close(p[0]);
	close(p[1]);
	end_commands();
}

static int
detach_wake(void *ctx, struct agent_session *s)
{
	char c;

	assert_int_equal(read(*(int *)ctx, &c, 1), 1);
	return agent_session_detach(s);
}

static void
caller_may_detach_and_come_back(void **state)
{
	struct agent_exec_req q = {.argv = SH("sleep 0.3; cat; exit 8")};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res, end;
	struct script s = {.step = 1};
	int p[2], in[2];

	(void)state;
	assert_int_equal(pipe(p) | pipe(in), 0);
	assert_int_equal(write(p[1], "x", 1), 1);
	io.stdin_fd = in[0];
	io.wake_fd = p[0];
	io.wake = detach_wake;
	io.ctx = &p[0];
	res = call(&q, &io);
	assert_int_equal(res.kind, 0);
	wait_state(res.id, "running");

	/* Its input goes on where it was left. */
	assert_int_equal(write(in[1], "later", 5), 5);
	close(in[1]);
	io.wake = NULL;
	io.output = tty_output;
	io.ctx = &s;
	end = take_up(res.id, 0, 0, &io);
	assert_string_equal(s.seen, "later");
	assert_int_equal(end.value, 8);
	close(p[0]);
	close(p[1]);
	close(in[0]);
}

static void
terminal_of_our_own_is_raw_meanwhile_and_restored(void **state)
{
	struct winsize ws = {.ws_row = 21, .ws_col = 43};
	struct termios before, after;
	char seen[8192] = "";
	size_t len = 0;
	bool typed = false, interrupted = false;
	int master, slave, status = 0;
	pid_t pid;

	(void)state;
	assert_int_equal(openpty(&master, &slave, NULL, NULL, &ws), 0);
	assert_int_equal(tcgetattr(slave, &before), 0);
	pid = fork();
	if (!pid) {
		struct agent_exec_req q = {
			.argv = ARGV("sh"), .env = ARGV("PS1=prompt> ", "ENV=")};
		struct agent_exec_result r;
		struct err e = {0};

		close(master);
		login_tty(slave);
		if (agent_exec_terminal(sock, &q, &r, &e))
			_exit(99);
		_exit(agent_exit_status(&r));
	}
	for (int i = 0; i < 1000; i++) {
		struct pollfd p = {.fd = master, .events = POLLIN};

		const char *prompt = strstr(seen, "prompt>");

		if (!interrupted && prompt) {
			/* ^C is the guest's terminal's, not ours. */
			assert_int_equal(write(master, "\003", 1), 1);
			interrupted = true;
		}
		if (!typed && interrupted && strstr(prompt + 1, "prompt>")) {
			const char *keys = "stty size; echo $((6*7))\rexit 5\r";

			assert_int_equal(write(master, keys, strlen(keys)), strlen(keys));
			typed = true;
		}
		if (poll(&p, 1, 20) > 0) {
			ssize_t n = read(master, seen + len, sizeof(seen) - 1 - len);

			if (n <= 0)
				break;
			len += (size_t)n;
			seen[len] = 0;
		}
		if (waitpid(pid, &status, WNOHANG) == pid) {
			pid = 0;
			break;
		}
	}
	if (pid)
		waitpid(pid, &status, 0);
	assert_true(typed);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 5);
	assert_non_null(strstr(seen, "21 43"));
	assert_non_null(strstr(seen, "\n42"));
	assert_int_equal(tcgetattr(slave, &after), 0);
	assert_int_equal(after.c_lflag, before.c_lflag);
	assert_int_equal(after.c_iflag, before.c_iflag);
	close(master);
	close(slave);
}

static void
expect_refusal(const char *request, const char *errno_name, const char *words)
{
	char line[1024];
	int fd = dial(request);

	read_line(fd, line, sizeof(line));
	if (strncmp(line, "{\"ok\":false,", 12) != 0 || !strstr(line, errno_name) ||
		!strstr(line, words))
		fail_msg("%s got %s", request, line);
	close(fd);
}

static void
bad_requests_get_a_sentence(void **state)
{
	(void)state;
	expect_refusal("hello\n", "EINVAL", "JSON");
	expect_refusal("[]\n", "EINVAL", "object");
	expect_refusal("{}\n", "EINVAL", "op");
	expect_refusal("{\"op\":\"fly\"}\n", "EINVAL", "fly");
	expect_refusal("{\"op\":\"exec\"}\n", "EINVAL", "argv");
	expect_refusal("{\"op\":\"exec\",\"argv\":[]}\n", "EINVAL", "argv");
	expect_refusal("{\"op\":\"exec\",\"argv\":\"ls -la\"}\n", "EINVAL", "argv");
	expect_refusal("{\"op\":\"exec\",\"argv\":[1]}\n", "EINVAL", "argv");
	expect_refusal("{\"op\":\"exec\",\"argv\":[\"a\\u0000b\"]}\n", "EINVAL", "argv");
	expect_refusal(
		"{\"op\":\"exec\",\"argv\":[\"a\"],\"shell\":true}\n", "EINVAL", "shell");
	expect_refusal("{\"op\":\"exec\",\"argv\":[\"a\"],\"env\":[\"A\"]}\n", "EINVAL",
		"NAME=value");
	expect_refusal("{\"op\":\"exec\",\"argv\":[\"a\"],\"timeout_ms\":-1}\n", "EINVAL",
		"timeout_ms");
	expect_refusal("{\"op\":\"exec\",\"argv\":[\"a\"],\"tty\":{\"rows\":70000}}\n",
		"EINVAL", "rows");
	expect_refusal("{\"op\":\"exec\",\"argv\":[\"a\"],\"tty\":{\"color\":1}}\n",
		"EINVAL", "color");
	expect_refusal("{\"op\":\"attach\",\"id\":\"e999999\"}\n", "ESRCH", "e999999");
	expect_refusal("{\"op\":\"attach\",\"id\":\"7\"}\n", "EINVAL", "id");
	expect_refusal(
		"{\"op\":\"signal\",\"id\":\"e1\",\"signal\":99}\n", "EINVAL", "signal");
	expect_refusal("{\"op\":\"get\",\"path\":\"/no/such\"}\n", "ENOENT", "/no/such");
	expect_refusal("{\"op\":\"list\",\"path\":\"/no/such\"}\n", "ENOENT", "/no/such");
	expect_refusal("{\"op\":\"ping\",\"path\":\"x\"}\n", "EINVAL", "path");
}

static void
request_without_end_is_refused(void **state)
{
	char *line = malloc(AGENT_REQUEST_MAX + 2), answer[512];
	int fd;

	(void)state;
	memset(line, 'a', AGENT_REQUEST_MAX + 1);
	line[AGENT_REQUEST_MAX + 1] = 0;
	fd = dial(line);
	read_line(fd, answer, sizeof(answer));
	assert_non_null(strstr(answer, "E2BIG"));
	close(fd);
	free(line);
}

static void
request_too_long_is_refused_by_the_client_already(void **state)
{
	char *big = calloc(1, AGENT_REQUEST_MAX + 1);
	struct agent_exec_req q = {.argv = ARGV("echo", big)};
	struct agent_captured c;
	struct err e = {0};

	(void)state;
	memset(big, 'a', AGENT_REQUEST_MAX);
	assert_int_equal(agent_exec_capture(sock, &q, NULL, 0, 10, &c, &e), -E2BIG);
	free(big);
}

static void
frame_of_absurd_length_closes_with_a_sentence(void **state)
{
	static const struct agent_frame_hdr bad[] = {
		{.type = AGENT_STDIN, .len = 0xffffffff},
		{.type = AGENT_STDIN, .len = AGENT_FRAME_MAX + 1},
		{.type = AGENT_WINSIZE, .len = 3},
		{.type = 99, .len = 1},
		{.type = AGENT_STDOUT, .len = 9},
		{.type = AGENT_STDIN_EOF, .pad = 1},
		{.type = AGENT_TAKEN},
	};
	char line[256], payload[1100];
	struct agent_frame_hdr h;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd = dial("{\"op\":\"exec\",\"argv\":[\"sleep\",\"7335\"],\"stdin\":"
			      "true}\n");

		read_line(fd, line, sizeof(line));
		assert_int_equal(strncmp(line, "{\"ok\":true", 10), 0);
		assert_int_equal(io_write_full(fd, &bad[i], sizeof(bad[i])), 0);
		assert_int_equal(io_read_full(fd, &h, sizeof(h)), 0);
		assert_int_equal(h.type, AGENT_ERROR);
		assert_true(
			h.len > sizeof(struct agent_error) && h.len < sizeof(payload));
		assert_int_equal(io_read_full(fd, payload, h.len), 0);
		close(fd);
	}
	end_commands();
}

static void
more_input_than_the_window_is_refused(void **state)
{
	char line[256];
	static char frame[sizeof(struct agent_frame_hdr) + AGENT_FRAME_MAX];
	struct agent_frame_hdr h = {.type = AGENT_STDIN, .len = AGENT_FRAME_MAX};
	int fd = dial("{\"op\":\"exec\",\"argv\":[\"sleep\",\"7336\"],\"stdin\":true}\n");

	(void)state;
	read_line(fd, line, sizeof(line));
	memcpy(frame, &h, sizeof(h));
	/* The window and a pipe full of it, and more. */
	for (int i = 0; i < 7; i++)
		if (io_write_full(fd, frame, sizeof(frame)))
			break;
	do {
		assert_int_equal(io_read_full(fd, &h, sizeof(h)), 0);
		assert_true(h.len < sizeof(frame));
		assert_int_equal(io_read_full(fd, frame, h.len), 0);
	} while (h.type == AGENT_STDIN_CREDIT);
	assert_int_equal(h.type, AGENT_ERROR);
	close(fd);
	end_commands();
}

static void
connections_that_say_nothing_are_bounded(void **state)
{
	int fd[500], n;
	struct err e = {0};

	(void)state;
	for (n = 0; n < 500; n++)
		if (agent_connect(sock, 200, &fd[n], NULL))
			break;
	assert_true(n > 100);
	for (int i = 0; i < n; i++)
		close(fd[i]);
	if (agent_wait_ready(sock, 5000, NULL, NULL, &e))
		fail_msg("%s", e.msg);
}

/*
 * Files.
 */

static void __attribute__((format(printf, 1, 2))) sh(const char *fmt, ...)
{
	char cmd[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	if (system(cmd))
		fail_msg("%s", cmd);
}

static void
make_tree(const char *name)
{
	sh("mkdir -p %s/%s/deep/er && cd %s/%s && echo hello > plain && chmod 0640 plain && echo x > run"
	   " && chmod 0755 run && : > empty && ln -s plain link && ln -s /nowhere dangling && mkfifo -m 0600 fifo"
	   " && mkdir -m 0555 readonly && mkdir -m 1777 sticky && echo 1 > \"$(printf 'odd \\n\\t\\\\name\\377')\""
	   " && echo 2 > ./-dash && echo 3 > ' space ' && echo 4 > deep/er/%0120d"
	   " && head -c 3000001 /dev/urandom > big && touch -d '2001-02-03 04:05:06.789' plain"
	   " && touch -h -d '1969-12-31 23:59:58.25 UTC' link && touch -d '1999-01-01' deep",
		folder, name, folder, name, 7);
}

#define DESCRIBE \
	"cd %s/%s && find . -mindepth 1 -printf '%%p %%y %%m %%T@ %%l\\n' | LC_ALL=C " \
	"sort > %s/%s.txt && " \
	"find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum >> %s/%s.txt"

static void
trees_go_there_and_back_identical(void **state)
{
	struct agent_copy_stats there, back;
	char local[128], remote[128], again[128];
	struct err e = {0};

	(void)state;
	make_tree("tree");
	snprintf(local, sizeof(local), "%s/tree", folder);
	snprintf(remote, sizeof(remote), "%s/remote", folder);
	snprintf(again, sizeof(again), "%s/again", folder);
	if (agent_put(sock, local, remote, NULL, NULL, &there, &e))
		fail_msg("%s", e.msg);
	if (agent_get(sock, remote, again, NULL, NULL, &back, &e))
		fail_msg("%s", e.msg);
	sh(DESCRIBE, folder, "tree", folder, "a", folder, "a");
	sh(DESCRIBE, folder, "remote", folder, "b", folder, "b");
	sh(DESCRIBE, folder, "again", folder, "c", folder, "c");
	/* What leads out, and what is no file, does not come out of a guest. */
	sh("LC_ALL=C grep -a -v -e '^./dangling l' -e '^./fifo p' %s/a.txt > %s/d.txt",
		folder, folder);
	sh("cmp %s/a.txt %s/b.txt && cmp %s/d.txt %s/c.txt", folder, folder, folder,
		folder);
	assert_int_equal(there.links, 2);
	assert_int_equal(back.links, 1);
	assert_int_equal(back.outside, 1);
	assert_string_equal(back.first_outside, "again/dangling");
	assert_int_equal(back.skipped, 1);
	assert_int_equal(back.files, there.files - 1);
	assert_int_equal(back.folders, there.folders);
	assert_int_equal(back.bytes, there.bytes);
	assert_int_equal(there.folders, 5);
	assert_true(there.bytes > 3000001);

	/* Again: into it, under its own name; and its contents over what is there. */
	if (agent_put(sock, local, remote, NULL, NULL, NULL, &e))
		fail_msg("%s", e.msg);
	sh("diff -r --no-dereference --exclude=fifo %s/tree %s/remote/tree", folder,
		folder);
	sh("rm -r %s/remote/tree", folder);
	snprintf(local, sizeof(local), "%s/tree/.", folder);
	if (agent_put(sock, local, remote, NULL, NULL, NULL, &e))
		fail_msg("%s", e.msg);
	sh("diff -r --no-dereference --exclude=fifo %s/tree %s/remote && test ! -e %s/remote/tree",
		folder, folder, folder);
}

static void
one_file_goes_into_a_folder_or_to_a_name(void **state)
{
	char remote[160], local[128];
	struct stat st;
	struct err e = {0};

	(void)state;
	snprintf(local, sizeof(local), "%s/one", folder);
	assert_int_equal(io_write_file_atomic(local, "one", 3, 0600, NULL), 0);
	sh("mkdir -p %s/into", folder);
	snprintf(remote, sizeof(remote), "%s/into", folder);
	assert_int_equal(agent_put(sock, local, remote, NULL, NULL, NULL, &e), 0);
	snprintf(remote, sizeof(remote), "%s/into/two", folder);
	assert_int_equal(agent_put(sock, local, remote, NULL, NULL, NULL, &e), 0);
	assert_int_equal(stat(remote, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	snprintf(remote, sizeof(remote), "%s/into/one", folder);
	assert_int_equal(stat(remote, &st), 0);
	snprintf(remote, sizeof(remote), "%s/not-there/", folder);
	assert_int_equal(agent_put(sock, local, remote, NULL, NULL, NULL, &e), -ENOENT);
	snprintf(remote, sizeof(remote), "%s/not/there", folder);
	assert_int_equal(agent_put(sock, local, remote, NULL, NULL, NULL, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "/not"));
	assert_int_equal(
		agent_put(sock, "/no/such/file", remote, NULL, NULL, NULL, &e), -ENOENT);
	assert_int_equal(
		agent_get(sock, "/no/such/file", local, NULL, NULL, NULL, &e), -ENOENT);
	/* A file never replaces a folder, nor the other way round. */
	sh("mkdir -p %s/into/dir/one %s/src", folder, folder);
	snprintf(remote, sizeof(remote), "%s/into/dir", folder);
	assert_int_equal(agent_put(sock, local, remote, NULL, NULL, NULL, &e), -EISDIR);
	snprintf(local, sizeof(local), "%s/src", folder);
	snprintf(remote, sizeof(remote), "%s/one", folder);
	assert_int_equal(agent_put(sock, local, remote, NULL, NULL, NULL, &e), -ENOTDIR);
}

static void
files_of_proc_are_refused_not_copied_empty(void **state)
{
	char local[128];
	struct err e = {0};

	(void)state;
	snprintf(local, sizeof(local), "%s/cpuinfo", folder);
	assert_int_equal(
		agent_get(sock, "/proc/cpuinfo", local, NULL, NULL, NULL, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "cat"));
}

static int
give_up(void *ctx, const struct agent_copy_stats *s)
{
	(void)ctx;
	return s->bytes > 1000000 ? -ECANCELED : 0;
}

static void
copy_can_be_cancelled(void **state)
{
	char local[128];
	struct err e = {0};

	(void)state;
	snprintf(local, sizeof(local), "%s/cancelled", folder);
	sh("head -c 400000000 /dev/zero > %s/long", folder);
	char remote[128];
	snprintf(remote, sizeof(remote), "%s/long", folder);
	assert_int_equal(
		agent_get(sock, remote, local, give_up, NULL, NULL, &e), -ECANCELED);
	/* Half a file has no name. */
	sh("rm %s/long && test ! -e %s/cancelled && test -z \"$(ls -A %s | grep pando-)\"",
		folder, folder, folder);
	assert_int_equal(agent_ping(sock, 1000, NULL, &e), 0);
}

static void
full_disk_is_an_error_with_the_name(void **state)
{
	char local[128], remote[128];
	struct err e = {0};

	(void)state;
	snprintf(local, sizeof(local), "%s/small", folder);
	if (mkdir(local, 0700) || mount("none", local, "tmpfs", 0, "size=1m"))
		skip(); /* needs root */
	sh("head -c 8000000 /dev/zero > %s/toobig", folder);
	snprintf(local, sizeof(local), "%s/toobig", folder);
	snprintf(remote, sizeof(remote), "%s/small", folder);
	int r = agent_put(sock, local, remote, NULL, NULL, NULL, &e);
	sh("umount %s/small || umount -l %s/small", folder, folder);
	assert_int_equal(r, -ENOSPC);
	assert_non_null(strstr(e.msg, "toobig"));
}

static void
folders_are_listed(void **state)
{
	struct agent_entry *x;
	char path[128];
	size_t n;
	struct err e = {0};

	(void)state;
	make_tree("listed");
	snprintf(path, sizeof(path), "%s/listed", folder);
	if (agent_list(sock, path, 60000, &x, &n, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(n, 13);
	for (size_t i = 1; i < n; i++)
		assert_true(strcmp(x[i - 1].name, x[i].name) < 0);
	for (size_t i = 0; i < n; i++) {
		if (strcmp(x[i].name, "big") == 0) {
			assert_int_equal(x[i].size, 3000001);
			assert_int_equal(x[i].type, 'f');
		}
		if (strcmp(x[i].name, "link") == 0) {
			assert_int_equal(x[i].type, 'l');
			assert_string_equal(x[i].target, "plain");
		}
	}
	agent_entries_free(x, n);
}

/*
 * The client against a guest that lies.
 */

struct liar {
	int listener;
	const void *say;
	size_t len;
};

static void *
lie(void *arg)
{
	struct liar *l = arg;
	int fd = accept(l->listener, NULL, NULL);
	char buf[4096];

	if (fd < 0)
		return NULL;
	/* "CONNECT 1024" and its end; the request may be there already. */
	if (io_read_full(fd, buf, 13) == 0 && write(fd, "OK 1\n", 5) == 5 &&
		read(fd, buf, sizeof(buf)) > 0 && write(fd, l->say, l->len) < 0)
		perror("write");
	/* Closed in order, with nothing unread. */
	shutdown(fd, SHUT_WR);
	while (read(fd, buf, sizeof(buf)) > 0)
		;
	close(fd);
	return NULL;
}

static int
lied_to(const void *say, size_t len, struct err *e)
{
	struct agent_exec_req q = {.argv = ARGV("true")};
	struct agent_exec_result res;
	struct liar l = {.say = say, .len = len};
	char path[128];
	pthread_t t;
	int r;

	snprintf(path, sizeof(path), "%s/liar.sock", folder);
	unlink(path);
	assert_int_equal(io_unix_listen(path, SOCK_STREAM, 1, &l.listener, e), 0);
	pthread_create(&t, NULL, lie, &l);
	r = agent_exec(path, &q, NULL, &res, e);
	pthread_join(t, NULL);
	close(l.listener);
	return r;
}

/* A VMM in whose guest nobody listens: it says so, and has read no more than the line. */
static void *
refuse(void *arg)
{
	struct liar *l = arg;
	int fd = accept(l->listener, NULL, NULL);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char line[13];

	assert_int_equal(io_read_full(fd, line, sizeof(line)), 0);
	/* The request did not wait for an answer. */
	assert_int_equal(poll(&p, 1, 60000), 1);
	assert_int_equal(write(fd, l->say, l->len), (ssize_t)l->len);
	close(fd);
	return NULL;
}

static void
request_goes_with_its_line_and_a_refusal_is_still_heard(void **state)
{
	static const char no[] = "ERR the guest refused: nothing listens on that port\n";
	struct agent_exec_req q = {.argv = ARGV("true")};
	struct liar l = {.say = no, .len = strlen(no)};
	struct agent_exec_result res;
	struct err e = {0};
	char path[128];
	pthread_t t;

	(void)state;
	snprintf(path, sizeof(path), "%s/refuses.sock", folder);
	unlink(path);
	assert_int_equal(io_unix_listen(path, SOCK_STREAM, 1, &l.listener, &e), 0);
	pthread_create(&t, NULL, refuse, &l);
	assert_int_equal(agent_exec(path, &q, NULL, &res, &e), -ECONNREFUSED);
	assert_non_null(strstr(e.msg, "the guest refused: nothing listens"));
	pthread_join(t, NULL);
	close(l.listener);
}

static void
stream_without_an_exit_record_is_an_error(void **state)
{
	struct err e = {0};
	char say[64] = "{\"ok\":true,\"id\":\"e1\"}\n";
	size_t n = strlen(say);

	(void)state;
	assert_int_equal(lied_to("", 0, &e), -EPIPE);
	assert_int_equal(lied_to(say, n, &e), -EPIPE);
	assert_int_equal(lied_to("{\"ok\":true,\"id\":\"../../x\"}\n",
				 strlen("{\"ok\":true,\"id\":\"../../x\"}\n"), &e),
		-EPROTO);
	assert_int_equal(
		lied_to("{\"ok\":false}\n", strlen("{\"ok\":false}\n"), &e), -EPROTO);
	assert_int_equal(
		lied_to("{\"ok\":false,\"error\":\"no\\u001b[2J\",\"code\":-13}\n",
			strlen("{\"ok\":false,\"error\":\"no\\u001b[2J\",\"code\":-13}"
			       "\n"),
			&e),
		-EACCES);
	assert_null(strchr(e.msg, 27));
	memcpy(say + n, "\x20\0\0\0\xff\xff\xff\xff", 8);
	assert_int_equal(lied_to(say, n + 8, &e), -EPROTO);
	/* An end that claims output which never came. */
	struct agent_frame_hdr h = {.type = AGENT_EXIT, .len = sizeof(struct agent_exit)};
	struct agent_exit x = {.kind = AGENT_EXITED, .stdout_bytes = 5};
	memcpy(say + n, &h, sizeof(h));
	memcpy(say + n + sizeof(h), &x, sizeof(x));
	assert_int_equal(lied_to(say, n + sizeof(h) + sizeof(x), &e), -EPIPE);
	x.stdout_bytes = 0;
	memcpy(say + n + sizeof(h), &x, sizeof(x));
	assert_int_equal(lied_to(say, n + sizeof(h) + sizeof(x), &e), 0);
}

static void
sockets_without_a_guest_are_told_apart(void **state)
{
	char path[128];
	struct err e = {0};
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/none.sock", folder);
	assert_int_equal(agent_ping(path, 100, NULL, &e), -ENOENT);
	assert_int_equal(io_unix_listen(path, SOCK_STREAM, 1, &fd, &e), 0);
	/* Nobody answers. */
	assert_int_equal(agent_ping(path, 100, NULL, &e), -ETIMEDOUT);
	close(fd);
	assert_int_equal(agent_ping(path, 100, NULL, &e), -ENOTCONN);
	assert_int_equal(agent_wait_ready(path, 100, NULL, NULL, &e), -ENOTCONN);
	/* A port nobody listens on. */
	assert_int_equal(agent_connect_port(sock, 99, 1000, &fd, &e), -ECONNREFUSED);
}

static void
output_reader_that_is_gone_ends_the_call_and_the_command(void **state)
{
	struct agent_exec_req q = {.argv = ARGV("yes", "7337")};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result res;
	struct err e = {0};
	int p[2];

	(void)state;
	assert_int_equal(pipe(p), 0);
	close(p[0]);
	io.stdout_fd = p[1];
	assert_int_equal(agent_exec(sock, &q, &io, &res, &e), -EPIPE);
	close(p[1]);
	for (int i = 0; i < 100 && processes_of("yes 7337"); i++)
		usleep(10000);
	assert_int_equal(processes_of("yes 7337"), 0);
}

static long
status_kib(const char *what)
{
	char path[64], line[256];
	long kib = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)agent_pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, what, strlen(what)) == 0)
			sscanf(line + strlen(what), ": %ld", &kib);
	if (f)
		fclose(f);
	return kib;
}

static void
agent_stays_below_two_mebibytes(void **state)
{
	(void)state;
#ifdef PANDO_SAN
	skip();
#else
	/* After all of the above. The journals of commands nobody took are the guest's
	 * own choice: taken first. */
	end_commands();
	print_message("resident: %ld KiB (anonymous %ld)\n", status_kib("VmRSS"),
		status_kib("RssAnon"));
	assert_true(status_kib("VmRSS") > 0);
	assert_true(status_kib("VmRSS") < 2048);
#endif
}

static unsigned
open_descriptors(void)
{
	char path[64];
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)agent_pid);
	d = opendir(path);
	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

static void
nothing_leaks_over_many_commands(void **state)
{
	unsigned before;
	long kib;

	(void)state;
	for (int i = 0; i < 50; i++) {
		struct agent_captured c = run(ARGV("true"));

		agent_captured_done(&c);
	}
	usleep(50000);
	before = open_descriptors();
	kib = status_kib("RssAnon");
	for (int i = 0; i < 300; i++) {
		struct agent_captured c = run(ARGV("true"));

		agent_captured_done(&c);
	}
	for (int i = 0; i < 100 && open_descriptors() > before; i++)
		usleep(10000);
	assert_true(open_descriptors() <= before);
#ifndef PANDO_SAN
	assert_true(status_kib("RssAnon") <= kib + 64);
#else
	(void)kib;
#endif
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ping_tells_who_answers),
		cmocka_unit_test(streams_and_status_are_kept_apart),
		cmocka_unit_test(status_zero_is_reported_too),
		cmocka_unit_test(death_by_signal_is_its_number),
		cmocka_unit_test(arguments_arrive_as_they_are),
		cmocka_unit_test(environment_is_a_sane_default_with_ours_over_it),
		cmocka_unit_test(path_of_the_given_environment_finds_the_program),
		cmocka_unit_test(working_folder_is_taken),
		cmocka_unit_test(command_that_hangs_before_it_runs_holds_nobody),
		cmocka_unit_test(command_that_hangs_before_it_runs_keeps_no_pipe_of_others),
		cmocka_unit_test(program_that_is_not_there_is_127),
		cmocka_unit_test(limits_of_the_agent_are_not_the_commands),
		cmocka_unit_test(user_is_switched_to),
		cmocka_unit_test(standard_streams_can_be_opened_by_name),
		cmocka_unit_test(hundred_megabytes_through_stdin),
		cmocka_unit_test(binary_output_of_any_size_on_both_streams),
		cmocka_unit_test(time_limit_kills_all_that_was_started),
		cmocka_unit_test(time_limit_kills_also_without_control_groups),
		cmocka_unit_test(command_that_ends_in_time_is_not_touched_by_its_limit),
		cmocka_unit_test(
			time_in_which_the_agent_is_held_does_not_count_against_a_limit),
		cmocka_unit_test(a_pause_does_not_count_against_the_hosts_patience),
		cmocka_unit_test(
			background_child_that_holds_stdout_does_not_hang_the_call),
		cmocka_unit_test(background_child_lives_on_and_may_write),
		cmocka_unit_test(output_before_the_end_is_all_there),
		cmocka_unit_test(terminal_has_its_size_and_follows_it),
		cmocka_unit_test(input_of_a_terminal_ends_also_in_the_middle_of_a_line),
		cmocka_unit_test(terminal_gets_a_new_size_while_it_runs),
		cmocka_unit_test(signals_pass_input_that_nobody_reads),
		cmocka_unit_test(output_into_a_full_pipe_holds_no_signal_up_and_is_whole),
		cmocka_unit_test(input_that_is_closed_early_stops_nothing),
		cmocka_unit_test(detached_command_is_taken_up_by_cursor),
		cmocka_unit_test(journal_that_ran_over_reports_the_gap),
		cmocka_unit_test(connection_that_breaks_leaves_the_command_running),
		cmocka_unit_test(slow_reader_slows_the_command_and_nothing_else),
		cmocka_unit_test(reader_that_died_in_the_middle_wedges_nothing),
		cmocka_unit_test(second_reader_puts_the_first_off),
		cmocka_unit_test(
			reader_that_is_put_off_in_the_middle_of_a_frame_is_no_hang_up),
		cmocka_unit_test(
			end_that_is_taken_just_after_another_attached_is_still_the_others),
		cmocka_unit_test(as_many_records_are_kept_as_commands_may_run),
		cmocka_unit_test(commands_go_on_while_the_agent_is_started_anew),
		cmocka_unit_test(
			commands_of_other_users_are_taken_up_by_an_agent_that_may_not_trace),
		cmocka_unit_test(
			command_is_known_to_the_next_agent_from_its_first_instant),
		cmocka_unit_test(input_is_whole_though_the_agent_is_started_anew),
		cmocka_unit_test(records_and_limits_outlive_the_agent),
		cmocka_unit_test(ids_are_never_given_again),
		cmocka_unit_test(output_of_what_finishes_after_the_shell_is_there),
		cmocka_unit_test(output_that_stays_open_is_marked),
		cmocka_unit_test(finished_records_are_bounded),
		cmocka_unit_test(one_command_too_many_is_refused),
		cmocka_unit_test(signal_reaches_the_group_from_another_connection),
		cmocka_unit_test(caller_may_cancel),
		cmocka_unit_test(caller_may_detach_and_come_back),
		cmocka_unit_test(terminal_of_our_own_is_raw_meanwhile_and_restored),
		cmocka_unit_test(bad_requests_get_a_sentence),
		cmocka_unit_test(request_without_end_is_refused),
		cmocka_unit_test(request_too_long_is_refused_by_the_client_already),
		cmocka_unit_test(frame_of_absurd_length_closes_with_a_sentence),
		cmocka_unit_test(more_input_than_the_window_is_refused),
		cmocka_unit_test(connections_that_say_nothing_are_bounded),
		cmocka_unit_test(trees_go_there_and_back_identical),
		cmocka_unit_test(one_file_goes_into_a_folder_or_to_a_name),
		cmocka_unit_test(files_of_proc_are_refused_not_copied_empty),
		cmocka_unit_test(copy_can_be_cancelled),
		cmocka_unit_test(full_disk_is_an_error_with_the_name),
		cmocka_unit_test(folders_are_listed),
		cmocka_unit_test(request_goes_with_its_line_and_a_refusal_is_still_heard),
		cmocka_unit_test(stream_without_an_exit_record_is_an_error),
		cmocka_unit_test(sockets_without_a_guest_are_told_apart),
		cmocka_unit_test(
			output_reader_that_is_gone_ends_the_call_and_the_command),
		cmocka_unit_test(agent_stays_below_two_mebibytes),
		cmocka_unit_test(nothing_leaks_over_many_commands),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
