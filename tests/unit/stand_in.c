#include "tests/unit/stand_in.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "host/agent_client.h"
#include "host/paths.h"

char stand_in_home[] = "/tmp/pando-standin.XXXXXX";
char stand_in_agent_socket[128], stand_in_pando[PATHS_MAX];
pid_t stand_in_agent = -1;
static char agent_program[PATHS_MAX];
static int api_fd = -1;
static pthread_t api_thread;
static const char *volatile vm_state = "running";
static const char *volatile vm_reason;

static void
answer(int fd, const char *request)
{
	char body[1024], text[1400];
	const char *status = "200 OK";

	if (strstr(request, "GET /v1/vms/a ") ||
		strstr(request, "GET /v1/vms/0a1b2c3d4e5f "))
		snprintf(body, sizeof(body),
			"{\"id\":\"0a1b2c3d4e5f\",\"alias\":\"a\",\"state\":\"%s\","
			"\"reason\":%s%s%s,\"agent_socket\":\"%s\"}",
			vm_state, vm_reason ? "\"" : "", vm_reason ? vm_reason : "null",
			vm_reason ? "\"" : "", stand_in_agent_socket);
	else {
		status = "404 Not Found";
		snprintf(body, sizeof(body),
			"{\"error\":{\"errno\":\"ENOENT\",\"code\":-2,\"message\":\"no "
			"VM named so\"}}");
	}
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

void
stand_in_says(const char *state, const char *reason)
{
	vm_state = state;
	vm_reason = reason;
}

void
stand_in_kill_agent(void)
{
	if (stand_in_agent <= 0)
		return;
	kill(stand_in_agent, SIGKILL);
	waitpid(stand_in_agent, NULL, 0);
	stand_in_agent = -1;
}

void
stand_in_start_agent(void)
{
	char listen_on[160];

	snprintf(listen_on, sizeof(listen_on), "unix:%s", stand_in_agent_socket);
	unlink(stand_in_agent_socket);
	stand_in_agent = fork();
	if (stand_in_agent == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(agent_program, "pando-agent", "--listen", listen_on,
			"--connect-line", (char *)NULL);
		_exit(127);
	}
	for (int i = 0; access(stand_in_agent_socket, F_OK) && i < 3000; i++)
		usleep(10000);
	assert_int_equal(
		agent_wait_ready(stand_in_agent_socket, 30000, NULL, NULL, NULL), 0);
	stand_in_says("running", NULL);
}

int
stand_in_fake_agent(void)
{
	int fd;

	stand_in_kill_agent();
	unlink(stand_in_agent_socket);
	assert_int_equal(
		io_unix_listen(stand_in_agent_socket, SOCK_STREAM, 16, &fd, NULL), 0);
	return fd;
}

int
stand_in_setup(void **state)
{
	char path[128];

	(void)state;
	if (!mkdtemp(stand_in_home) || setenv("PANDO_HOME", stand_in_home, 1) ||
		paths_program("bin/pando", stand_in_pando, PATHS_MAX, NULL) < 0 ||
		paths_program("libexec/pando/pando-agent", agent_program,
			sizeof(agent_program), NULL) < 0)
		return -1;
	snprintf(path, sizeof(path), "%s/pandod.sock", stand_in_home);
	snprintf(stand_in_agent_socket, sizeof(stand_in_agent_socket), "%s/agent.sock",
		stand_in_home);
	if (io_unix_listen(path, SOCK_STREAM, 16, &api_fd, NULL) < 0 ||
		pthread_create(&api_thread, NULL, api_main, NULL))
		return -1;
	stand_in_start_agent();
	return 0;
}

int
stand_in_teardown(void **state)
{
	(void)state;
	stand_in_kill_agent();
	shutdown(api_fd, SHUT_RDWR);
	pthread_join(api_thread, NULL);
	close(api_fd);
	return io_remove_tree(stand_in_home, NULL);
}

/*
 * Running pando.
 */

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

static bool
collect(int fd, char **buf, size_t *len)
{
	ssize_t n;

	*buf = realloc(*buf, *len + 65537);
	assert_non_null(*buf);
	n = io_read(fd, *buf + *len, 65536);
	*len += n > 0 ? (size_t)n : 0;
	(*buf)[*len] = '\0';
	return n > 0;
}

pid_t
stand_in_start(char *const argv[], int stdin_fd, int *ret_out, int *ret_err)
{
	int out[2], err[2];
	pid_t pid;

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(err, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(stdin_fd, 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		signal(SIGPIPE, SIG_DFL);
		execv(stand_in_pando, argv);
		_exit(127);
	}
	close(stdin_fd);
	close(out[1]);
	close(err[1]);
	*ret_out = out[0];
	*ret_err = err[0];
	return pid;
}

void
stand_in_finish(pid_t pid, int out, int err, struct ran *ret)
{
	struct pollfd p[2] = {
		{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
	int status;

	ran_done(ret);
	ret->out = calloc(1, 1);
	ret->err = calloc(1, 1);
	while (p[0].fd >= 0 || p[1].fd >= 0) {
		if (poll(p, 2, STAND_IN_LIMIT_S * 1000) <= 0) {
			kill(pid, SIGKILL);
			fail_msg("pando did not end; it said: %s %s", ret->out, ret->err);
		}
		for (int i = 0; i < 2; i++) {
			if (!p[i].revents || collect(p[i].fd, i ? &ret->err : &ret->out,
						     i ? &ret->err_len : &ret->out_len))
				continue;
			close(p[i].fd);
			p[i].fd = -1;
		}
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	ret->status = WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

void
stand_in_run(const char *input, size_t len, char *const argv[], struct ran *ret)
{
	uint64_t start_ns = io_now_ns();
	struct input in = {.data = input, .len = len};
	pthread_t thread;
	int fds[2], out, err;
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	in.fd = fds[1];
	pid = stand_in_start(argv, fds[0], &out, &err);
	assert_int_equal(pthread_create(&thread, NULL, feed, &in), 0);
	stand_in_finish(pid, out, err, ret);
	pthread_join(thread, NULL);
	ret->took_ns = io_now_ns() - start_ns;
}

void
ran_done(struct ran *r)
{
	free(r->out);
	free(r->err);
	*r = (struct ran){0};
}

const char *
stand_in_await(int fd, const char *text)
{
	static char buf[65536];
	struct pollfd p = {.fd = fd, .events = POLLIN};
	size_t len = 0;

	buf[0] = 0;
	while (!strstr(buf, text)) {
		ssize_t n = 0;

		if (len == sizeof(buf) - 1 || poll(&p, 1, STAND_IN_LIMIT_S * 1000) <= 0 ||
			(n = io_read(fd, buf + len, sizeof(buf) - 1 - len)) <= 0)
			fail_msg("waiting for \"%s\", got: %s", text, buf);
		len += (size_t)n;
		buf[len] = '\0';
	}
	return buf;
}

size_t
stand_in_memory(pid_t pid, const char *key)
{
	char path[64], *text = NULL, *at;
	size_t kib = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	if (!io_read_file(path, 65536, &text, NULL, NULL) && (at = strstr(text, key)))
		kib = strtoul(at + strlen(key), NULL, 10);
	free(text);
	return kib;
}
