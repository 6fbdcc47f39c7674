/*
 * SSH into a VM, for real: the shipped `pando`, stock OpenSSH's clients through `pando
 * ssh-config`, the shipped pando-agent with a folder in the place of "/", and this host's
 * own sshd behind it. No VM is between them; pandod's stand-in (stand_in.h) says which
 * host key was acknowledged.
 */
#include <errno.h>
#include <pthread.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/openssh_key.h"
#include "host/agent/agent_handshake.h"
#include "host/cli/vmssh.h"
#include "host/ssh/ssh_key.h"
#include "tests/unit/stand_in.h"

#define SSHD "/usr/sbin/sshd"
/* An Ed25519 key that nobody has. */
#define NOBODYS \
	"ssh-ed25519 " \
	"AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

static char root[64], client_key[AGENT_SSH_KEY_LEN + 1];
static char host_key[AGENT_HOST_KEY_MAX]; /* as VM "a" acknowledged it */
static struct ran got;

/* Which key pandod says that "a" acknowledged. */
static void
shows(const char *key)
{
	stand_in_knows(&(struct stand_in_vm){.name = "a", .host_key = key});
}

/* n: the generation. */
static int
handshake_at(const char *agent_socket, const char *id, uint8_t n, const char *key,
	struct err *e)
{
	uint8_t generation[16], entropy[AGENT_ENTROPY_MAX];
	struct agent_ack ack = {0};
	struct agent_handshake h = {
		.id = id,
		.name = "a",
		.host_name = "a",
		.generation = generation,
		.entropy = entropy,
		.ssh_key = key,
	};
	int r;

	memset(generation, n, sizeof(generation));
	memset(entropy, 0xa5, sizeof(entropy));
	r = agent_handshake(agent_socket, &h, 20000, NULL, NULL, &ack, e);
	if (r == 0)
		strcpy(host_key, ack.host_key);
	return r;
}

static int
handshake(const char *id, uint8_t n, const char *key, struct err *e)
{
	return handshake_at(stand_in_agent_socket, id, n, key, e);
}

#define A "aaaaaaaaaaaa"
#define B "bbbbbbbbbbbb"
static uint8_t generation;

/* Who the machine is from now on. */
static void
become(const char *id)
{
	struct err e = {0};

	if (handshake(id, ++generation, client_key, &e))
		fail_msg("%s", e.msg);
}

static bool
can_run(void)
{
	/* sshd lets others than itself in as root only. */
	return geteuid() == 0 && access(SSHD, X_OK) == 0;
}

static int
start_all(void **state)
{
	char path[160];

	(void)state;
	if (stand_in_open() || chmod(stand_in_home, 0755) ||
		ssh_key_of_home(stand_in_home, client_key, NULL) < 0)
		return -1;
	stand_in_knows(&(struct stand_in_vm){.name = "paused",
		.state = "paused",
		.reason = "why",
		.host_key = host_key});
	stand_in_knows(&(struct stand_in_vm){.name = "new"});
	stand_in_knows(&(struct stand_in_vm){.name = "other", .host_key = NOBODYS});
	snprintf(root, sizeof(root), "%s/root", stand_in_home);
	snprintf(path, sizeof(path), "%s/usr/sbin", root);
	if (io_mkdir_p(path, 0755, NULL) < 0)
		return -1;
	snprintf(path, sizeof(path), "%s" SSHD, root);
	if (symlink(SSHD, path))
		return -1;
	if (can_run())
		mkdir("/run/sshd", 0755);
	stand_in_start_agent_in(root, NULL);
	return 0;
}

static int
begin(void **state)
{
	(void)state;
	shows(host_key);
	become(A);
	return 0;
}

#define NEEDS_SSHD \
	do { \
		if (!can_run()) { \
			print_message("needs root and openssh-server\n"); \
			skip(); \
		} \
	} while (0)

/* Running things -----------------------------------------------------------------------
 */

/* With nothing to read. */
#define PANDO(...) RUN_WITH(&got, NULL, 0, __VA_ARGS__)

/* A shell's text, in which $PANDO is the program and $T a folder of ours. */
static void
sh(const char *text)
{
	char all[4096];

	setenv("PANDO", stand_in_pando, 1);
	setenv("T", stand_in_home, 1);
	snprintf(all, sizeof(all), "cd \"$T\" && { %s\n}", text);
	stand_in_run(NULL, 0, (char *[]){"sh", "-c", all, NULL}, &got);
}

static void
good(const char *text)
{
	sh(text);
	if (got.status || got.err_len)
		fail_msg("%s: status %d: %s", text, got.status, got.err);
}

/* Tests --------------------------------------------------------------------------------
 */

static void
out_and_err_and_the_status_are_the_commands_own(void **state)
{
	(void)state;
	NEEDS_SSHD;
	PANDO("execute", "--ssh", "a", "--", "sh", "-c",
		"echo out; echo err >&2; exit 7");
	assert_string_equal(got.err, "err\n");
	assert_string_equal(got.out, "out\n");
	assert_int_equal(got.status, 7);
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, 0);
	assert_int_equal(got.out_len + got.err_len, 0);
	PANDO("execute", "--ssh", "a", "--", "sh", "-c", "kill -TERM $$");
	assert_int_equal(got.status, 128 + SIGTERM);
	PANDO("execute", "--ssh", "a", "--", "no-such-program");
	assert_int_equal(got.status, 127);
	PANDO("execute", "--ssh", "-w", "/no/such", "a", "--", "true");
	assert_int_equal(got.status, 126);
	PANDO("execute", "--ssh", "-u", "no-such-user", "a", "--", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "no-such-user"));
}

static void
words_arrive_as_they_are(void **state)
{
	(void)state;
	NEEDS_SSHD;
	PANDO("execute", "--ssh", "a", "--", "printf", "%s|", "", "a b", "$HOME", "*",
		"'\"\\", "-t", "a\nb", "\xff");
	assert_string_equal(got.out, "|a b|$HOME|*|'\"\\|-t|a\nb|\xff|");
	PANDO("execute", "--ssh", "a", "--shell", "echo one | tr a-z A-Z; echo \"$1\"",
		"--", "x  y");
	assert_string_equal(got.out, "ONE\nx  y\n");
	PANDO("execute", "--ssh", "-e", "G=it's $HOME", "-w", "/usr", "a", "--", "sh",
		"-c", "echo \"$G\"; pwd; whoami");
	assert_string_equal(got.out, "it's $HOME\n/usr\nroot\n");
	PANDO("execute", "--ssh", "--detach", "a", "--", "true");
	assert_int_equal(got.status, EXIT_USAGE);
}

static void
json_tells_the_same_as_without_ssh(void **state)
{
	(void)state;
	NEEDS_SSHD;
	PANDO("execute", "--ssh", "--format", "json", "a", "--", "sh", "-c",
		"echo o; echo e >&2; exit 3");
	assert_int_equal(got.status, 3);
	assert_non_null(strstr(got.out, "\"end\":\"exited\",\"status\":3"));
	assert_non_null(
		strstr(got.out, "\"stdout\":\"o\\u000a\",\"stderr\":\"e\\u000a\""));
	PANDO("execute", "--ssh", "--format", "json", "a", "--", "sh", "-c",
		"kill -9 $$");
	assert_non_null(strstr(got.out, "\"end\":\"signalled\""));
	assert_non_null(strstr(got.out, "\"signal\":9"));
}

static void
a_hundred_megabytes_come_and_go_whole(void **state)
{
	(void)state;
	NEEDS_SSHD;
	good("head -c 100000000 /dev/urandom >big");
	good("a=$(\"$PANDO\" execute --ssh a -- cat \"$T/big\" | b2sum); b=$(b2sum <big); [ \"$a\" = \"$b\" ]");
	good("a=$(\"$PANDO\" execute -i --ssh a -- b2sum <big); b=$(b2sum <big); [ \"$a\" = \"$b\" ]");
	good("cat big 2>/dev/null | \"$PANDO\" execute -i --ssh a -- true; rm big");
}

static void
a_timeout_is_status_6_and_leaves_nothing_behind(void **state)
{
	char words[64];

	(void)state;
	NEEDS_SSHD;
	snprintf(words, sizeof(words), "sleep %s & sleep %s", stand_in_mark,
		stand_in_mark);
	PANDO("execute", "--ssh", "--timeout", "1", "a", "--", "sh", "-c", words);
	assert_int_equal(got.status, EXIT_TIMED_OUT);
	assert_non_null(strstr(got.err, "longer than 1 s"));
	usleep(200000);
	assert_int_equal(stand_in_running("sleep"), 0);
}

static void
a_timeout_ends_also_what_detached_itself(void **state)
{
	char words[128];

	(void)state;
	NEEDS_SSHD;
	/* In a session of its own, without our environment, its parent gone or not. */
	snprintf(words, sizeof(words),
		"env -i setsid sleep %s & (env -i setsid sleep %s &); sleep %s",
		stand_in_mark, stand_in_mark, stand_in_mark);
	PANDO("execute", "--ssh", "-t", "1", "a", "--", "sh", "-c", words);
	assert_int_equal(got.status, EXIT_TIMED_OUT);
	for (int i = 0; i < 500 && stand_in_running("sleep"); i++)
		usleep(10000);
	assert_int_equal(stand_in_running("sleep"), 0);
}

static void
signals_are_the_commands_and_the_second_one_kills(void **state)
{
	char *argv[] = {"pando", "execute", "--ssh", "a", "--", "sh", "-c",
		"trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done",
		NULL};
	char words[96], first[6];
	char *deaf[] = {"pando", "execute", "--ssh", "a", "--", "sh", "-c", words, NULL};
	int out, err;
	pid_t pid;

	(void)state;
	NEEDS_SSHD;
	pid = stand_in_start(argv, -1, &out, &err);
	assert_int_equal(io_read_full(out, first, 6), 0);
	kill(pid, SIGINT);
	stand_in_finish(pid, out, err, &got);
	assert_string_equal(got.out, "caught\n");
	assert_int_equal(got.status, 9);

	snprintf(words, sizeof(words), "trap '' INT; echo ready; exec sleep %s",
		stand_in_mark);
	pid = stand_in_start(deaf, -1, &out, &err);
	assert_int_equal(io_read_full(out, first, 6), 0);
	kill(pid, SIGINT);
	usleep(1500000);
	kill(pid, SIGINT);
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, EXIT_CANCELLED);
	usleep(200000);
	assert_int_equal(stand_in_running("sleep"), 0);
}

static void
a_reader_that_leaves_ends_the_command(void **state)
{
	(void)state;
	NEEDS_SSHD;
	setenv("MARK", stand_in_mark, 1);
	sh("{ \"$PANDO\" execute --ssh a -- sh -c \"echo one; exec yes $MARK\"; echo $? >st; } | head -1; cat st");
	assert_string_equal(got.out, "one\n141\n");
	usleep(200000);
	assert_int_equal(stand_in_running("yes"), 0);
}

static void
a_terminal_has_our_size_and_one_stream(void **state)
{
	char *argv[] = {"env", "TERM=vt220", stand_in_pando, "execute", "--ssh", "-it",
		"a", "--", "sh", "-c", "stty size; tty | cut -c1-8; echo $TERM; exit 5",
		NULL};
	cleanup_free char *out = NULL;
	int fd, status;
	pid_t pid;

	(void)state;
	NEEDS_SSHD;
	pid = stand_in_start_on_terminal(argv, 33, 77, &fd);
	out = stand_in_read_all(fd);
	status = stand_in_wait(pid);
	assert_string_equal(out, "33 77\r\n/dev/pts\r\nvt220\r\n");
	assert_int_equal(status, 5);
	close(fd);
}

/* In a process of its own, on a terminal of its own. */
static void
shell_in(const struct vmssh_shell *sh, const char *typed, char **ret_out, int *ret_status)
{
	struct client_vm vm = {.id = "0a1b2c3d4e5f", .alias = "a", .state = "running"};
	int fd, status;
	pid_t pid;

	strcpy(vm.host_key, host_key);
	strcpy(vm.agent_socket, stand_in_agent_socket);
	pid = forkpty(&fd, NULL, NULL, NULL);
	if (pid == 0) {
		struct err e = {0};
		int r;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		r = vmssh_shell(&vm, stand_in_home, sh, &status, &e);
		if (r < 0)
			fprintf(stderr, "%s\n", e.msg);
		_exit(r < 0 ? 125 : status);
	}
	(void)io_write_full(fd, typed, strlen(typed));
	*ret_out = stand_in_read_all(fd);
	*ret_status = stand_in_wait(pid);
	close(fd);
}

static void
a_shell_is_a_login_in_that_folder(void **state)
{
	const char *env[] = {"GREETING=it's me", NULL};
	struct vmssh_shell sh = {.env = env, .cwd = "/usr", .tty = true};
	char *out;
	int status;

	(void)state;
	NEEDS_SSHD;
	shell_in(&sh, "printf '%s:%s\\n' \"$GREETING\" \"$PWD\"; exit 11\r", &out,
		&status);
	assert_non_null(strstr(out, "it's me:/usr"));
	assert_int_equal(status, 11);
	free(out);
	/* Nothing but the words. */
	sh = (struct vmssh_shell){.tty = true};
	shell_in(&sh, "tty; shopt -q login_shell && echo lo''gin; exit\r", &out, &status);
	assert_non_null(strstr(out, "/dev/pts/"));
	assert_int_equal(status, 0);
	free(out);
	const char *argv[] = {"sh", "-c", "exit $1", "sh", "13", NULL};
	sh = (struct vmssh_shell){.argv = argv};
	shell_in(&sh, "", &out, &status);
	assert_int_equal(status, 13);
	free(out);
}

static void
another_host_key_is_refused_and_both_are_named(void **state)
{
	char *is, *should;

	(void)state;
	NEEDS_SSHD;
	/* The one of a branch that somebody else was, say. */
	shows(NOBODYS);
	PANDO("execute", "--ssh", "a", "--", "touch", "/tmp/pando-ssh-was-here");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	is = strstr(got.err, "SHA256:");
	assert_non_null(is);
	should = strstr(is + 1, "SHA256:");
	assert_non_null(should);
	assert_true(strncmp(is, should, 50) != 0);
	assert_int_equal(access("/tmp/pando-ssh-was-here", F_OK), -1);
	shows(host_key);
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, 0);
	/* It became another, and we still go by what was before. */
	char before[AGENT_HOST_KEY_MAX];
	strcpy(before, host_key);
	become(B);
	assert_string_not_equal(before, host_key);
	shows(before);
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "SHA256:"));
}

static void
without_an_acknowledged_key_nobody_goes_in(void **state)
{
	(void)state;
	PANDO("execute", "--ssh", "new", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "has not acknowledged"));
	PANDO("ssh-proxy", "new.pando");
	assert_int_not_equal(got.status, 0);
	assert_string_equal(got.out, "");
	assert_non_null(strstr(got.err, "agent is not ready"));
	PANDO("ssh-proxy", "--known-host", "new.pando", "new.pando");
	assert_int_not_equal(got.status, 0);
	assert_string_equal(got.out, "");
}

static void
a_machine_without_sshd_says_so(void **state)
{
	char path[128];

	(void)state;
	snprintf(path, sizeof(path), "%s" SSHD, root);
	assert_int_equal(unlink(path), 0);
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "install openssh-server"));
	PANDO("ssh-proxy", "a");
	assert_int_not_equal(got.status, 0);
	assert_string_equal(got.out, "");
	assert_non_null(strstr(got.err, "install openssh-server"));
	assert_int_equal(symlink(SSHD, path), 0);
}

static void
an_sshd_that_ends_at_once_is_said(void **state)
{
	char path[128];

	(void)state;
	snprintf(path, sizeof(path), "%s" SSHD, root);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("/bin/false", path), 0);
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "ended at once"));
	/* What answers there and is no SSH server is no sentence of the agent. */
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("/bin/echo", path), 0);
	PANDO("ssh-proxy", "a");
	assert_int_not_equal(got.status, 0);
	assert_string_equal(got.out, "");
	assert_non_null(strstr(got.err, "is no SSH server"));
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink(SSHD, path), 0);
}

/* An agent of the time before SSH, for as long as its socket is open. */
static void *
old_agent(void *arg)
{
	static const char no[] =
		"{\"ok\":false,\"error\":\"\\\"hello\\\" has no member \\\"ssh_key\\\"\",\"errno\":\"EINVAL\",\"code\":-22}\n";
	static const char pong[] = "{\"ok\":true,\"version\":\"0\",\"uptime_ms\":1,"
				   "\"boot_id\":\"x\"}\n";
	static const char ok[] = "{\"ok\":true}\n";
	static const char ack[] =
		"{\"id\":\"" A "\",\"generation\":\"77777777777777777777777777777777\","
		"\"host_key\":\"" NOBODYS "\",\"total_us\":1,\"steps\":[]}";
	struct agent_frame_hdr h = {.type = AGENT_ACK, .len = sizeof(ack) - 1};
	int fd, listener = *(const int *)arg;
	char line[8192];
	ssize_t n;

	while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		/* The line alone: the request may be behind it already. */
		for (n = 0; n < 32 && io_read(fd, line + n, 1) == 1 && line[n] != '\n'; n++)
			;
		if (n == 12 && memcmp(line, "CONNECT 1024", 12) == 0) {
			(void)io_write_full(fd, "OK 1\n", 5);
			n = io_read(fd, line, sizeof(line) - 1);
			line[n > 0 ? n : 0] = '\0';
			if (strstr(line, "ping")) {
				(void)io_write_full(fd, pong, strlen(pong));
			} else if (strstr(line, "ssh_key")) {
				(void)io_write_full(fd, no, strlen(no));
			} else {
				(void)io_write_full(fd, ok, strlen(ok));
				(void)io_write_full(fd, &h, sizeof(h));
				(void)io_write_full(fd, ack, sizeof(ack) - 1);
			}
		}
		close(fd);
	}
	return NULL;
}

static void
agents_that_are_older_than_ssh_are_known_as_such(void **state)
{
	struct client_vm vm = {.id = "0a1b2c3d4e5f", .alias = "old", .state = "running"};
	struct err e = {0};
	pthread_t thread;
	int listener, fd;

	(void)state;
	snprintf(vm.agent_socket, sizeof(vm.agent_socket), "%s/old.sock", stand_in_home);
	assert_int_equal(
		io_unix_listen(vm.agent_socket, SOCK_STREAM, 8, &listener, &e), 0);
	assert_int_equal(pthread_create(&thread, NULL, old_agent, &listener), 0);
	/* Told without the key, and acknowledged. */
	assert_int_equal(handshake_at(vm.agent_socket, A, 0x77, client_key, &e), 0);
	assert_string_equal(host_key, NOBODYS);
	assert_int_equal(vmssh_dial(&vm, &fd, &e), -ECONNREFUSED);
	assert_non_null(strstr(e.msg, "older than SSH"));
	shutdown(listener, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(listener);
}

static void *
become_slowly(void *arg)
{
	(void)arg;
	become(A);
	return NULL;
}

static void
a_machine_that_is_being_told_who_it_is_is_waited_for(void **state)
{
	pthread_t thread;

	(void)state;
	NEEDS_SSHD;
	good("mkdir -p root/etc/pando/fork.d && cd root/etc/pando/fork.d && printf '#!/bin/sh\\nsleep 1.5\\n' >slow && chmod 755 slow");
	assert_int_equal(pthread_create(&thread, NULL, become_slowly, NULL), 0);
	usleep(300000);
	PANDO("execute", "--ssh", "a", "true");
	pthread_join(thread, NULL);
	assert_string_equal(got.err, "");
	assert_int_equal(got.status, 0);
	assert_true(got.took_ns > UINT64_C(700000000));
	good("rm root/etc/pando/fork.d/slow");
}

static void
only_the_key_of_the_last_handshake_comes_in(void **state)
{
	struct err e = {0};

	(void)state;
	NEEDS_SSHD;
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, 0);
	assert_int_equal(handshake(B, ++generation, NOBODYS, &e), 0);
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "does not let user \"root\" in"));
	assert_int_equal(handshake(B, ++generation, NULL, &e), 0);
	PANDO("execute", "--ssh", "a", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
}

static void
a_key_that_is_none_is_refused_by_the_agent(void **state)
{
	static const char *const bad[] = {"", "ssh-rsa AAAA", NOBODYS "x",
		"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\nssh"
		"-rs",
		"command=\"x\" 5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
		"AAAAA"};
	struct err e;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		e = (struct err){0};
		assert_int_equal(handshake(B, ++generation, bad[i], &e), -EINVAL);
		assert_non_null(strstr(e.msg, "ssh_key"));
	}
}

static void
trees_are_copied_as_without_ssh(void **state)
{
	(void)state;
	NEEDS_SSHD;
	good("mkdir -p from/sub to && head -c 3000000 /dev/urandom >from/big && ln -s big from/link && printf x >\"from/sub/a b'\" && chmod 751 from/sub && touch -d "
	     "2001-02-03 from/big");
	good("\"$PANDO\" copy -q --ssh from \"a:$T/to\" && diff -r from to/from && [ $(readlink to/from/link) = big ] && [ $(stat -c %a to/from/sub) = 751 ] && "
	     "[ from/big -ot to/from ] && [ ! from/big -nt to/from/big ] && [ ! from/big -ot to/from/big ]");
	good("\"$PANDO\" cp -q --ssh \"a:$T/from/.\" back && diff -r from back");
	good("\"$PANDO\" copy --ssh --format json \"a:$T/from/big\" one | grep -q '\"files\":1,.*\"bytes\":3000000' && cmp one from/big");
	sh("\"$PANDO\" copy --ssh from \"a:$T/no/such/place\"");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	assert_non_null(strstr(got.err, "no/such"));
	sh("\"$PANDO\" copy --ssh \"a:$T/nothing\" here");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	sh("[ ! -e here ]");
	assert_int_equal(got.status, 0);
	sh("\"$PANDO\" copy -u nobody from \"a:$T/to\"");
	assert_int_equal(got.status, EXIT_USAGE);
	good("rm -rf from to back one");
}

/* stderr stays empty in all of it: no warning. */
static void
stock_openssh_goes_in_without_a_warning(void **state)
{
	(void)state;
	NEEDS_SSHD;
	good("\"$PANDO\" ssh-config >c && ssh -F c a.pando 'echo $((6 * 7))'");
	assert_string_equal(got.out, "42\n");
	good("printf data >f && scp -qF c f a.pando:\"$T\"/g && scp -qF c a.pando:\"$T\"/g h && cmp f h");
	good("scp -qOF c f a.pando:\"$T\"/g2 && cmp f g2");
	good("echo \"get $T/g i\" | sftp -qb - -F c a.pando >/dev/null && cmp f i");
	good("head -c 20000000 /dev/zero | ssh -F c a.pando 'cat | wc -c'");
	assert_string_equal(got.out, "20000000\n");
	/* Clients that want no descriptor have the bytes spliced. */
	good("ssh -F c -o ProxyUseFdpass=no a.pando 'head -c 20000000 /dev/zero' | wc -c");
	assert_string_equal(got.out, "20000000\n");
	sh("ssh -F c a.pando 'exit 9'");
	assert_int_equal(got.status, 9);
	sh("ssh -F c no-such.pando true");
	assert_int_equal(got.status, 255);
	assert_non_null(strstr(got.err, "no VM named"));
}

static void
rsync_and_git_go_in(void **state)
{
	(void)state;
	NEEDS_SSHD;
	good("\"$PANDO\" ssh-config >c");
	if (access("/usr/bin/rsync", X_OK) == 0) {
		good("mkdir -p tree/x && echo 1 >tree/x/y && rsync -a -e 'ssh -F c' tree/ a.pando:\"$T\"/copy/ && diff -r tree copy");
		good("rsync -a -e 'ssh -F c' a.pando:\"$T\"/copy/ again/ && diff -r tree again");
	} else {
		print_message("no rsync here: left out\n");
	}
	good("git init -q repo && cd repo && echo hi >file && git add file && git -c user.name=n -c user.email=e@x commit -qm one && cd .. && GIT_SSH_COMMAND="
	     "'ssh -F c' git clone -q ssh://a.pando\"$T\"/repo cloned && cmp repo/file cloned/file");
}

static void
stock_openssh_refuses_the_key_of_before(void **state)
{
	(void)state;
	NEEDS_SSHD;
	good("\"$PANDO\" ssh-config >c && \"$PANDO\" ssh-proxy --known-host a.pando a.pando >old && ssh -F c a.pando true");
	/* A branch: pandod has heard its key, and that one goes in. */
	become(B);
	good("ssh -F c a.pando true");
	sh("ssh -F c -o KnownHostsCommand=none -o UserKnownHostsFile=$T/old a.pando true");
	assert_int_equal(got.status, 255);
	assert_non_null(strstr(got.err, "Host key verification failed"));
	/* And a name whose VM has another key than pandod knows. */
	sh("ssh -F c other.pando true");
	assert_int_equal(got.status, 255);
	assert_non_null(strstr(got.err, "Host key verification failed"));
}

static void
the_proxy_starts_nothing_and_names_what_is_wrong(void **state)
{
	(void)state;
	sh("mkdir -p empty; \"$PANDO\" ssh-proxy --home \"$T/empty\" a; r=$?; ls empty; exit $r");
	assert_int_not_equal(got.status, 0);
	assert_string_equal(got.out, "");
	assert_non_null(strstr(got.err, "pandod"));
	PANDO("ssh-proxy", "paused.pando");
	assert_int_equal(got.status, EXIT_CONFLICT);
	assert_non_null(strstr(got.err, "paused"));
	PANDO("ssh-proxy");
	assert_int_equal(got.status, EXIT_USAGE);
	PANDO("ssh-proxy", ".pando");
	assert_int_not_equal(got.status, 0);
	PANDO("ssh-proxy", "--known-host", "a b", "a");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_string_equal(got.out, "");
	PANDO("ssh-proxy", "--known-host", "[a.pando]:23", "a.pando");
	assert_int_equal(got.status, 0);
	assert_memory_equal(got.out, "[a.pando]:23 ssh-ed25519 AAAA", 29);
}

static void
the_proxy_ends_when_its_input_does(void **state)
{
	(void)state;
	NEEDS_SSHD;
	PANDO("ssh-proxy", "a");
	assert_int_equal(got.status, 0);
	assert_memory_equal(got.out, "SSH-2.0-", 8);
	/* And when the server does: no client says this. */
	sh("mkfifo in && exec 3<>in && echo nonsense >&3 && timeout 20 \"$PANDO\" ssh-proxy a <in >/dev/null");
	assert_int_equal(got.status, 0);
}

static void
installing_is_one_line_above_all_and_only_once(void **state)
{
	char want[128];

	(void)state;
	sh("printf 'Host x\\n\\tUser me\\n' >real && chmod 640 real && ln -s real cfg && \"$PANDO\" ssh-config --install --file \"$T/cfg\" && \"$PANDO\" ssh-config "
	   "--install --file \"$T/cfg\" && head -1 cfg && wc -l <cfg && stat -c %a real && readlink cfg && cmp ssh/config - <<E\n$(\"$PANDO\" ssh-config)\nE");
	assert_int_equal(got.status, 0);
	snprintf(want, sizeof(want), "Include \"%s/ssh/config\"\n4\n640\nreal\n",
		stand_in_home);
	assert_non_null(strstr(got.out, want));
	assert_non_null(strstr(got.err, "now"));
	assert_non_null(strstr(got.err, "already"));
	sh("\"$PANDO\" ssh-config --install --file \"$T/new/cfg\" && stat -c %a new new/cfg");
	assert_string_equal(got.out, "700\n600\n");
	sh("mkdir \"q'x\"; PANDO_HOME=\"$T/q'x\" \"$PANDO\" ssh-config");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_string_equal(got.out, "");
	PANDO("ssh-config", "--file", "x");
	assert_int_equal(got.status, EXIT_USAGE);
	/* Spaces and % in a path. */
	sh("mkdir 'a %h b' && PANDO_HOME=\"$T/a %h b\" \"$PANDO\" ssh-config >d && ssh -F d -G x.pando | grep -i '^identityfile'");
	assert_non_null(strstr(got.out, "/a %%h b/ssh/id_ed25519"));
}

static void
the_key_of_a_home_is_made_once_and_only_its_owners(void **state)
{
	char path[128], one[AGENT_SSH_KEY_LEN + 1], two[AGENT_SSH_KEY_LEN + 1];
	struct err e = {0};
	struct stat st;
	FILE *f;

	(void)state;
	snprintf(path, sizeof(path), "%s/k", stand_in_home);
	assert_int_equal(ssh_key_of_home(path, one, &e), 0);
	assert_true(agent_is_host_key(one));
	assert_int_equal(ssh_key_of_home(path, two, &e), 0);
	assert_string_equal(one, two);
	snprintf(path, sizeof(path), "%s/k/ssh", stand_in_home);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	snprintf(path, sizeof(path), "%s/k/ssh/id_ed25519", stand_in_home);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	if (access("/usr/bin/ssh-keygen", X_OK) == 0) {
		sh("ssh-keygen -yf k/ssh/id_ed25519 | cut -d' ' -f1,2");
		assert_memory_equal(got.out, one, AGENT_SSH_KEY_LEN);
	}
	/* The public half is made anew; a file that is no key is not overwritten. */
	sh("rm k/ssh/id_ed25519.pub");
	assert_int_equal(
		ssh_key_of_home(strcat(strcpy(path, stand_in_home), "/k"), two, &e), 0);
	sh("cut -d' ' -f1,2 k/ssh/id_ed25519.pub");
	assert_memory_equal(got.out, one, AGENT_SSH_KEY_LEN);
	sh("echo mine >k/ssh/id_ed25519");
	assert_int_equal(ssh_key_of_home(path, two, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "remove it"));
	snprintf(path, sizeof(path), "%s/k/ssh/id_ed25519", stand_in_home);
	f = fopen(path, "r");
	assert_int_equal(fgetc(f), 'm');
	fclose(f);
}

static void
private_keys_are_read_or_refused(void **state)
{
	static const uint8_t seed[OPENSSH_KEY_SEED_LEN] = {7}, check[4] = {1, 2, 3, 4};
	char public[OPENSSH_KEY_PUBLIC_MAX], cut[OPENSSH_KEY_PRIVATE_MAX];
	struct openssh_key key;
	struct err e = {0};

	(void)state;
	assert_int_equal(openssh_key_make(seed, check, "c", &key, &e), 0);
	assert_int_equal(openssh_key_public(key.private, public, &e), 0);
	assert_string_equal(public, key.public);
	/* Cut anywhere it is none, and nothing behind the end is looked at. */
	for (size_t n = 0; n < strlen(key.private); n++) {
		strcpy(cut, key.private);
		cut[n] = '\0';
		(void)openssh_key_public(cut, public, NULL);
		if (n < 200)
			assert_int_equal(openssh_key_public(cut, public, NULL), -EINVAL);
	}
	assert_int_equal(openssh_key_public("", public, &e), -EINVAL);
	if (access("/usr/bin/ssh-keygen", X_OK) == 0) {
		cleanup_free char *text = NULL;
		char path[128];

		good("rm -f enc rsa; ssh-keygen -qt ed25519 -N secret -f enc; ssh-keygen -qt ecdsa -N '' -f rsa");
		snprintf(path, sizeof(path), "%s/enc", stand_in_home);
		assert_int_equal(io_read_file(path, 8192, &text, NULL, NULL), 0);
		assert_int_equal(openssh_key_public(text, public, &e), -EINVAL);
		free(text);
		text = NULL;
		snprintf(path, sizeof(path), "%s/rsa", stand_in_home);
		assert_int_equal(io_read_file(path, 8192, &text, NULL, NULL), 0);
		assert_int_equal(openssh_key_public(text, public, &e), -EINVAL);
	}
}

#define T(f) cmocka_unit_test_setup(f, begin)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(out_and_err_and_the_status_are_the_commands_own),
		T(words_arrive_as_they_are),
		T(json_tells_the_same_as_without_ssh),
		T(a_hundred_megabytes_come_and_go_whole),
		T(a_timeout_is_status_6_and_leaves_nothing_behind),
		T(a_timeout_ends_also_what_detached_itself),
		T(signals_are_the_commands_and_the_second_one_kills),
		T(a_reader_that_leaves_ends_the_command),
		T(a_terminal_has_our_size_and_one_stream),
		T(a_shell_is_a_login_in_that_folder),
		T(another_host_key_is_refused_and_both_are_named),
		T(without_an_acknowledged_key_nobody_goes_in),
		T(a_machine_without_sshd_says_so),
		T(an_sshd_that_ends_at_once_is_said),
		T(agents_that_are_older_than_ssh_are_known_as_such),
		T(a_machine_that_is_being_told_who_it_is_is_waited_for),
		T(only_the_key_of_the_last_handshake_comes_in),
		T(a_key_that_is_none_is_refused_by_the_agent),
		T(trees_are_copied_as_without_ssh),
		T(stock_openssh_goes_in_without_a_warning),
		T(rsync_and_git_go_in),
		T(stock_openssh_refuses_the_key_of_before),
		T(the_proxy_starts_nothing_and_names_what_is_wrong),
		T(the_proxy_ends_when_its_input_does),
		T(installing_is_one_line_above_all_and_only_once),
		T(the_key_of_a_home_is_made_once_and_only_its_owners),
		T(private_keys_are_read_or_refused),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, start_all, stand_in_teardown);
}
