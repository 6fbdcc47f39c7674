/*
 * The shipped `pando execute` and `pando copy` against the shipped pando-agent: no VM
 * between them, the agent listens on a Unix socket. Who stands in for pandod here answers
 * only where that socket is. What is tested is what a user's script sees: streams,
 * statuses, signals.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "host/agent_client.h"
#include "host/paths.h"

#define LIMIT_NS UINT64_C(60000000000) /* for one command */

static char home[] = "/tmp/pando-execute.XXXXXX";
static char agent_socket[128], pando[PATHS_MAX], agent[PATHS_MAX];
static int api_fd = -1;
static pthread_t api_thread;
static pid_t agent_pid = -1;

/* pandod's part ------------------------------------------------------------------------
 */

static void
answer(int fd, const char *request)
{
	char body[1024], text[1400];
	const char *status = "200 OK", *state = "running", *socket_path = agent_socket;
	char elsewhere[160];

	snprintf(elsewhere, sizeof(elsewhere), "%s/nobody.sock", home);
	if (strstr(request, "GET /v1/vms/paused "))
		state = "paused";
	else if (strstr(request, "GET /v1/vms/dead "))
		state = "failed";
	else if (strstr(request, "GET /v1/vms/mute "))
		socket_path = elsewhere;
	else if (!strstr(request, "GET /v1/vms/a "))
		status = "404 Not Found";
	if (status[0] == '4')
		snprintf(body, sizeof(body),
			"{\"error\":{\"errno\":\"ENOENT\",\"code\":-2,\"message\":\"no "
			"VM named so\"}}");
	else
		snprintf(body, sizeof(body),
			"{\"id\":\"0a1b2c3d4e5f\",\"alias\":\"a\",\"state\":\"%s\","
			"\"reason\":\"why\","
			"\"agent_socket\":\"%s\"}",
			state, socket_path);
	snprintf(text, sizeof(text),
		"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
		"Connection: close\r\n\r\n%s",
		status, strlen(body), body);
	(void)io_write_full(fd, text, strlen(text));
}

static void *
api_main(void *arg)
{
	char request[4096];
	size_t len;
	ssize_t n;
	int fd;

	(void)arg;
	while ((fd = accept4(api_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		for (len = 0; len < sizeof(request) - 1;) {
			n = io_read(fd, request + len, sizeof(request) - 1 - len);
			if (n <= 0)
				break;
			len += (size_t)n;
			request[len] = '\0';
			if (strstr(request, "\r\n\r\n")) {
				answer(fd, request);
				break;
			}
		}
		close(fd);
	}
	return NULL;
}

static int
start_all(void **state)
{
	char path[128], listen_on[160];

	(void)state;
	if (!mkdtemp(home) || setenv("PANDO_HOME", home, 1) ||
		paths_program("bin/pando", pando, sizeof(pando), NULL) < 0 ||
		paths_program("libexec/pando/pando-agent", agent, sizeof(agent), NULL) <
			0)
		return -1;
	snprintf(path, sizeof(path), "%s/pandod.sock", home);
	snprintf(agent_socket, sizeof(agent_socket), "%s/agent.sock", home);
	snprintf(listen_on, sizeof(listen_on), "unix:%s", agent_socket);
	if (io_unix_listen(path, SOCK_STREAM, 16, &api_fd, NULL) < 0 ||
		pthread_create(&api_thread, NULL, api_main, NULL))
		return -1;
	agent_pid = fork();
	if (agent_pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(agent, "pando-agent", "--listen", listen_on, "--connect-line",
			(char *)NULL);
		_exit(127);
	}
	for (int i = 0; access(agent_socket, F_OK) && i < 1000; i++)
		usleep(10000);
	return agent_wait_ready(agent_socket, 10000, NULL, NULL, NULL);
}

static int
stop_all(void **state)
{
	(void)state;
	if (agent_pid > 0) {
		kill(agent_pid, SIGKILL);
		waitpid(agent_pid, NULL, 0);
	}
	shutdown(api_fd, SHUT_RDWR);
	pthread_join(api_thread, NULL);
	close(api_fd);
	return io_remove_tree(home, NULL);
}

/* Running pando
 * ---------------------------------------------------------------------------- */

static struct {
	int status; /* exit status; 1000 + n: signal n */
	char *out, *err;
	size_t out_len, err_len;
	uint64_t took_ns;
} got;

struct input {
	int fd; /* owned by the thread */
	const char *data;
	size_t len;
};

static void *
feed(void *arg)
{
	struct input *in = arg;

	(void)io_write_full(in->fd, in->data, in->len);
	close(in->fd);
	return NULL;
}

static void
collect(int fd, char **buf, size_t *len)
{
	*buf = realloc(*buf, *len + 65537);
	ssize_t n = io_read(fd, *buf + *len, 65536);
	*len += n > 0 ? (size_t)n : 0;
	(*buf)[*len] = '\0';
}

/* Starts it; *ret_out and *ret_err are ours to read. stdin_fd is closed here. */
static pid_t
start(char *const argv[], int stdin_fd, int *ret_out, int *ret_err)
{
	int out[2], err[2];
	pid_t pid;

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(err, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(stdin_fd, 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		alarm(LIMIT_NS / 1000000000);
		execv(pando, argv);
		_exit(127);
	}
	close(stdin_fd);
	close(out[1]);
	close(err[1]);
	*ret_out = out[0];
	*ret_err = err[0];
	return pid;
}

static void
finish(pid_t pid, int out, int err)
{
	struct pollfd p[2] = {
		{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
	int status;

	free(got.out);
	free(got.err);
	got.out = calloc(1, 1);
	got.err = calloc(1, 1);
	got.out_len = got.err_len = 0;
	while (p[0].fd >= 0 || p[1].fd >= 0) {
		size_t before;

		assert_true(poll(p, 2, -1) > 0);
		for (int i = 0; i < 2; i++) {
			if (!p[i].revents)
				continue;
			before = i ? got.err_len : got.out_len;
			if (i)
				collect(err, &got.err, &got.err_len);
			else
				collect(out, &got.out, &got.out_len);
			if (before == (i ? got.err_len : got.out_len)) {
				close(p[i].fd);
				p[i].fd = -1;
			}
		}
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	got.status = WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void
run_with(const char *input, size_t len, char *const argv[])
{
	uint64_t start_ns = io_now_ns();
	struct input in = {.data = input, .len = len};
	pthread_t thread;
	int fds[2], out, err;
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	in.fd = fds[1];
	pid = start(argv, fds[0], &out, &err);
	assert_int_equal(pthread_create(&thread, NULL, feed, &in), 0);
	finish(pid, out, err);
	pthread_join(thread, NULL);
	got.took_ns = io_now_ns() - start_ns;
}

#define RUN(...) run_with("", 0, (char *[]){"pando", __VA_ARGS__, NULL})
#define RUN_WITH(input, len, ...) \
	run_with(input, len, (char *[]){"pando", __VA_ARGS__, NULL})

/* Tests
 * --------------------------------------------------------------------------------------
 */

static void
out_and_err_and_the_status_are_the_commands_own(void **state)
{
	(void)state;
	RUN("execute", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7");
	assert_string_equal(got.out, "out\n");
	assert_string_equal(got.err, "err\n");
	assert_int_equal(got.status, 7);
	RUN("exec", "a", "true");
	assert_int_equal(got.status, 0);
	assert_int_equal(got.out_len + got.err_len, 0);
	RUN("execute", "a", "--", "sh", "-c", "kill -TERM $$");
	assert_int_equal(got.status, 128 + SIGTERM);
}

static void
words_arrive_as_they_are(void **state)
{
	(void)state;
	RUN("execute", "a", "--", "printf", "%s|", "", "a b", "$HOME", "*", "'\"\\",
		"-t");
	assert_string_equal(got.out, "|a b|$HOME|*|'\"\\|-t|");
	RUN("execute", "a", "--shell", "echo one | tr a-z A-Z; echo \"$1\"", "--",
		"x  y");
	assert_string_equal(got.out, "ONE\nx  y\n");
	RUN("execute", "-e", "GREETING=hello there", "-w", "/usr", "a", "--", "sh", "-c",
		"echo $GREETING; pwd");
	assert_string_equal(got.out, "hello there\n/usr\n");
}

static void
binary_input_of_any_size_comes_back_whole(void **state)
{
	size_t len = (8u << 20) + 13;
	char *data = malloc(len);

	(void)state;
	for (size_t i = 0; i < len; i++)
		data[i] = (char)(i * 2654435761u >> 13);
	RUN_WITH(data, len, "execute", "a", "--", "cat");
	assert_int_equal(got.status, 0);
	assert_int_equal(got.out_len, len);
	assert_memory_equal(got.out, data, len);
	RUN_WITH(data, len, "execute", "a", "--", "wc", "-c");
	assert_int_equal(strtoul(got.out, NULL, 10), len);
	/* A command that reads nothing ends all the same. */
	RUN_WITH(data, len, "execute", "a", "--", "true");
	assert_int_equal(got.status, 0);
	RUN_WITH(data, len, "execute", "-n", "a", "--", "wc", "-c");
	assert_int_equal(strtoul(got.out, NULL, 10), 0);
	free(data);
}

static void
doctor_looks_into_a_vm(void **state)
{
	cleanup_json struct json *j = NULL;

	(void)state;
	RUN("doctor", "--vm", "a", "--format", "json");
	/* This host is no guest: it was never told who it is. */
	assert_int_equal(got.status, 1);
	assert_int_equal(json_parse(got.out, got.out_len, 4096, &j, NULL), 0);
	assert_non_null(strstr(got.out, "\"its agent is of version " PANDO_VERSION));
	assert_non_null(strstr(got.out, "\"its clock is the host's\""));
	assert_non_null(strstr(got.out, "the guest was never told who it is"));
	RUN("doctor", "--vm", "dead");
	assert_int_equal(got.status, 1);
	assert_non_null(strstr(got.out, "pando start a"));
	RUN("doctor", "--vm", "nobody");
	assert_int_equal(got.status, 3);
	assert_int_equal(got.out_len, 0);
	RUN("doctor", "--vm", "a", "--can-boot-linux");
	assert_int_equal(got.status, 2);
}

static void
a_timeout_is_status_6_and_leaves_nothing_behind(void **state)
{
	(void)state;
	RUN("execute", "a", "-t", "1", "--", "sh", "-c", "sleep 98765 & sleep 98765");
	assert_int_equal(got.status, EXIT_TIMED_OUT);
	assert_true(got.took_ns > 900000000 && got.took_ns < 10000000000);
	assert_non_null(strstr(got.err, "longer than 1 s"));
	RUN("execute", "a", "--shell", "sleep 0.2; pgrep -f 'sleep 9876[5]' | wc -l");
	assert_string_equal(got.out, "0\n");
}

static void
what_cannot_be_started_is_126_or_127(void **state)
{
	(void)state;
	RUN("execute", "a", "--", "no-such-command-anywhere");
	assert_int_equal(got.status, 127);
	assert_int_not_equal(got.err_len, 0);
	RUN("execute", "a", "--", "/");
	assert_int_equal(got.status, 126);
}

static void
our_own_failures_have_their_numbers(void **state)
{
	(void)state;
	RUN("execute", "nobody", "--", "true");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN("execute", "echo", "true"); /* a command is no VM */
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN("execute", "a");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN("execute", "paused", "--", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "pando resume"));
	RUN("execute", "dead", "--", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "why"));
	RUN("execute", "mute", "--", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_int_equal(got.out_len, 0);
}

/* Reads from fd until it has seen the text. */
static void
await(int fd, const char *text)
{
	char buf[256] = "";
	size_t len = 0;

	while (!strstr(buf, text)) {
		ssize_t n = io_read(fd, buf + len, sizeof(buf) - 1 - len);

		assert_true(n > 0);
		len += (size_t)n;
		buf[len] = '\0';
	}
}

static void
an_interrupt_goes_to_the_command_and_a_second_ends_us(void **state)
{
	char *const argv[] = {"pando", "execute", "a", "--", "sh", "-c",
		"trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; "
		"done",
		NULL};
	char *const deaf[] = {"pando", "execute", "a", "--", "sh", "-c",
		"trap 'echo no' INT; echo ready; while :; do sleep 0.05; done", NULL};
	int out, err;
	pid_t pid;

	(void)state;
	pid = start(argv, open("/dev/null", O_RDONLY | O_CLOEXEC), &out, &err);
	await(out, "ready");
	kill(pid, SIGINT);
	finish(pid, out, err);
	assert_string_equal(got.out, "caught\n");
	assert_int_equal(got.status, 9);

	pid = start(deaf, open("/dev/null", O_RDONLY | O_CLOEXEC), &out, &err);
	await(out, "ready");
	kill(pid, SIGINT);
	await(out, "no");
	kill(pid, SIGINT);
	finish(pid, out, err);
	assert_int_equal(got.status, EXIT_CANCELLED);
	assert_non_null(strstr(got.err, "interrupted twice"));
}

static void
a_reader_that_leaves_ends_the_command(void **state)
{
	char *const argv[] = {
		"pando", "execute", "a", "--", "sh", "-c", "exec yes 76543", NULL};
	int out, err, status;
	pid_t pid;

	(void)state;
	pid = start(argv, open("/dev/null", O_RDONLY | O_CLOEXEC), &out, &err);
	await(out, "76543");
	close(out);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(err);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 128 + SIGPIPE);
	RUN("execute", "a", "--shell", "sleep 0.3; pgrep -f 'yes 7654[3]' | wc -l");
	assert_string_equal(got.out, "0\n");
}

static void
json_holds_streams_and_end(void **state)
{
	cleanup_json struct json *j = NULL;
	char text[64];
	uint64_t n;

	(void)state;
	RUN("execute", "--format", "json", "a", "--", "sh", "-c",
		"printf 'a\\n\\377'; echo e >&2; exit 3");
	assert_int_equal(got.status, 3);
	assert_int_equal(got.err_len, 0);
	assert_int_equal(json_parse(got.out, got.out_len, 64, &j, NULL), 0);
	assert_int_equal(json_str(j, json_get(j, 0, "end"), text, sizeof(text)), 0);
	assert_string_equal(text, "exited");
	assert_int_equal(json_u64(j, json_get(j, 0, "status"), &n), 0);
	assert_int_equal(n, 3);
	assert_int_equal(json_str(j, json_get(j, 0, "stdout"), text, sizeof(text)), 0);
	assert_string_equal(text, "a\n\xef\xbf\xbd");
	assert_int_equal(json_u64(j, json_get(j, 0, "stdout_bytes"), &n), 0);
	assert_int_equal(n, 3);
	assert_int_equal(json_str(j, json_get(j, 0, "stderr"), text, sizeof(text)), 0);
	assert_string_equal(text, "e\n");
}

static void
a_detached_command_is_taken_up_again(void **state)
{
	char id[32];

	(void)state;
	RUN("execute", "-d", "a", "--", "sh", "-c",
		"echo early; sleep 0.3; echo late; exit 4");
	assert_int_equal(got.status, 0);
	snprintf(id, sizeof(id), "%.*s", (int)strcspn(got.out, "\n"), got.out);
	RUN("execute", "a", "--list");
	assert_non_null(strstr(got.out, id));
	RUN("execute", "a", "--attach", id);
	assert_string_equal(got.out, "early\nlate\n");
	assert_int_equal(got.status, 4);
	RUN("execute", "a", "--attach", "e999999");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
}

static void
a_tree_is_copied_there_and_back_with_its_modes(void **state)
{
	char made[64], there[64], back[64], command[1200];
	struct stat st;

	(void)state;
	snprintf(made, sizeof(made), "%s/made", home);
	snprintf(there, sizeof(there), "a:%s/there", home);
	snprintf(back, sizeof(back), "%s/back", home);
	snprintf(command, sizeof(command),
		"mkdir -p %s/sub && echo x >%s/sub/f && chmod 640 %s/sub/f && chmod 711 "
		"%s/sub && "
		"ln -s sub/f %s/link && head -c 300000 /dev/urandom >%s/big",
		made, made, made, made, made, made);
	assert_int_equal(system(command), 0);
	RUN("copy", made, there);
	assert_int_equal(got.status, 0);
	assert_string_equal(got.out, "");
	snprintf(there, sizeof(there), "a:%s/there/.", home);
	assert_int_equal(mkdir(back, 0755), 0);
	RUN("copy", "--format", "json", there, back);
	assert_int_equal(got.status, 0);
	assert_non_null(strstr(got.out, "\"files\":2"));
	snprintf(command, sizeof(command), "diff -r --no-dereference %s %s", made, back);
	assert_int_equal(system(command), 0);
	snprintf(command, sizeof(command), "%s/sub/f", back);
	assert_int_equal(stat(command, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	RUN("copy", "a:/no/such/file", back);
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN("copy", "/no/such/file", "a:/tmp");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN("copy", "/tmp/x", "/tmp/y");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN("copy", "a:/tmp/x", "a:/tmp/y");
	assert_int_equal(got.status, EXIT_USAGE);
}

static void
a_terminal_has_the_size_of_ours_and_gets_its_keys(void **state)
{
	char *const argv[] = {"pando", "execute", "-T", "a", "--", "sh", "-c",
		"test -t 0 && stty size && read line && echo \"<$line>\" && sleep 30",
		NULL};
	struct winsize size = {.ws_row = 33, .ws_col = 77};
	struct termios before, after;
	int master, status;
	pid_t pid;

	(void)state;
	pid = forkpty(&master, NULL, NULL, &size);
	if (pid == 0) {
		alarm(LIMIT_NS / 1000000000);
		execv(pando, argv);
		_exit(127);
	}
	assert_int_equal(tcgetattr(master, &before), 0);
	await(master, "33 77");
	assert_int_equal(io_write_full(master, "typed\r", 6), 0);
	await(master, "<typed>");
	/* Ctrl-C is a key of that terminal, not a signal to us. */
	assert_int_equal(io_write_full(master, "\003", 1), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 128 + SIGINT);
	/* And ours is as it was. */
	assert_int_equal(tcgetattr(master, &after), 0);
	assert_int_equal(before.c_lflag, after.c_lflag);
	close(master);
	RUN("execute", "-T", "a", "--", "true");
	assert_int_equal(got.status, EXIT_USAGE);
}

/* Last: it takes the agent with it. */
static void
a_stream_without_an_exit_record_is_125(void **state)
{
	char *const argv[] = {
		"pando", "execute", "a", "--", "sh", "-c", "echo ready; sleep 5", NULL};
	int out, err;
	pid_t pid;

	(void)state;
	pid = start(argv, open("/dev/null", O_RDONLY | O_CLOEXEC), &out, &err);
	await(out, "ready");
	kill(agent_pid, SIGKILL);
	finish(pid, out, err);
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "pando: "));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(out_and_err_and_the_status_are_the_commands_own),
		cmocka_unit_test(words_arrive_as_they_are),
		cmocka_unit_test(binary_input_of_any_size_comes_back_whole),
		cmocka_unit_test(doctor_looks_into_a_vm),
		cmocka_unit_test(a_timeout_is_status_6_and_leaves_nothing_behind),
		cmocka_unit_test(what_cannot_be_started_is_126_or_127),
		cmocka_unit_test(our_own_failures_have_their_numbers),
		cmocka_unit_test(an_interrupt_goes_to_the_command_and_a_second_ends_us),
		cmocka_unit_test(a_reader_that_leaves_ends_the_command),
		cmocka_unit_test(json_holds_streams_and_end),
		cmocka_unit_test(a_detached_command_is_taken_up_again),
		cmocka_unit_test(a_tree_is_copied_there_and_back_with_its_modes),
		cmocka_unit_test(a_terminal_has_the_size_of_ours_and_gets_its_keys),
		cmocka_unit_test(a_stream_without_an_exit_record_is_125),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, start_all, stop_all);
}
