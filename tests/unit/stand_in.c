#include "tests/unit/stand_in.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "common/paths.h"
#include "tests/unit/agent_help.h"

char stand_in_home[] = "/tmp/pando-standin.XXXXXX";
char stand_in_agent_socket[128], stand_in_pando[PATHS_MAX], stand_in_mark[16];
pid_t stand_in_agent = -1;
static int api_fd = -1;
static pthread_t api_thread;

/*
 * pandod's part.
 */

#define VMS_MAX 8
#define VM_ID "0a1b2c3d4e5f"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the two below */
static struct stand_in_vm vms[VMS_MAX] = {{.name = "a"}};
static const char *(*others)(const char *request);

void
stand_in_knows(const struct stand_in_vm *vm)
{
	size_t i = 0;

	pthread_mutex_lock(&lock);
	while (i < VMS_MAX && vms[i].name && strcmp(vms[i].name, vm->name) != 0)
		i++;
	if (i < VMS_MAX)
		vms[i] = *vm;
	pthread_mutex_unlock(&lock);
	assert_true(i < VMS_MAX);
}

void
stand_in_says(const char *state, const char *reason)
{
	stand_in_knows(
		&(struct stand_in_vm){.name = "a", .state = state, .reason = reason});
}

void
stand_in_answers(const char *(*answer)(const char *request))
{
	pthread_mutex_lock(&lock);
	others = answer;
	pthread_mutex_unlock(&lock);
}

/* The VM that is asked for, by its name; "a" by its ID, too. */
static bool
find(const char *request, struct stand_in_vm *ret)
{
	static const char get[] = "GET /v1/vms/";
	const char *name = request + sizeof(get) - 1;
	size_t len;

	if (strncmp(request, get, sizeof(get) - 1) != 0)
		return false;
	len = strcspn(name, " ");
	if (len == strlen(VM_ID) && memcmp(name, VM_ID, len) == 0) {
		*ret = vms[0];
		return true;
	}
	for (size_t i = 0; i < VMS_MAX && vms[i].name; i++) {
		if (strlen(vms[i].name) == len && memcmp(name, vms[i].name, len) == 0) {
			*ret = vms[i];
			return true;
		}
	}
	return false;
}

static void
reply(int fd, const char *status, const char *body)
{
	char head[256];

	snprintf(head, sizeof(head),
		"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
		"Connection: close\r\n\r\n",
		status, strlen(body));
	if (io_write_full(fd, head, strlen(head)) == 0)
		(void)io_write_full(fd, body, strlen(body));
}

#define QUOTED(s) (s) ? "\"" : "", (s) ? (s) : "null", (s) ? "\"" : ""

static void
answer(int fd, const char *request)
{
	const char *(*first)(const char *), *body = NULL;
	struct stand_in_vm vm = {0};
	char text[1024];
	bool known;

	pthread_mutex_lock(&lock);
	first = others;
	known = find(request, &vm);
	pthread_mutex_unlock(&lock);
	if (first)
		body = first(request);
	if (body) {
		reply(fd, "200 OK", body);
	} else if (known) {
		snprintf(text, sizeof(text),
			"{\"id\":\"" VM_ID "\",\"alias\":\"a\",\"state\":\"%s\","
			"\"reason\":%s%s%s,\"host_key\":%s%s%s,"
			"\"agent_socket\":\"%s\"}",
			vm.state ? vm.state : "running", QUOTED(vm.reason),
			QUOTED(vm.host_key),
			vm.agent_socket ? vm.agent_socket : stand_in_agent_socket);
		reply(fd, "200 OK", text);
	} else {
		reply(fd, "404 Not Found",
			"{\"error\":{\"errno\":\"ENOENT\",\"code\":-2,"
			"\"message\":\"no VM named so\"}}");
	}
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

/*
 * The agent.
 */

void
stand_in_kill_agent(void)
{
	agent_help_end(&stand_in_agent, SIGKILL);
	stand_in_agent = -1;
}

bool
stand_in_start_agent_in(const char *root, bool (*enter)(void))
{
	stand_in_agent = agent_help_start(stand_in_agent_socket, root, enter);
	if (!stand_in_agent) {
		stand_in_agent = -1;
		return false;
	}
	stand_in_says("running", NULL);
	return true;
}

void
stand_in_start_agent(void)
{
	stand_in_start_agent_in(NULL, NULL);
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
stand_in_open(void)
{
	char path[128];

	/* A pando that was told to stop does not wait for its answer. */
	signal(SIGPIPE, SIG_IGN);
	if (!mkdtemp(stand_in_home) || setenv("PANDO_HOME", stand_in_home, 1) ||
		paths_program("bin/pando", stand_in_pando, PATHS_MAX, NULL) < 0)
		return -1;
	/* Others run these tests on this host, too, and may have left something. */
	snprintf(stand_in_mark, sizeof(stand_in_mark), "9%07d%04u", (int)getpid(),
		(unsigned)(io_now_ns() / 1000 % 10000));
	snprintf(path, sizeof(path), "%s/pandod.sock", stand_in_home);
	snprintf(stand_in_agent_socket, sizeof(stand_in_agent_socket), "%s/agent.sock",
		stand_in_home);
	if (io_unix_listen(path, SOCK_STREAM, 16, &api_fd, NULL) < 0 ||
		pthread_create(&api_thread, NULL, api_main, NULL))
		return -1;
	return 0;
}

int
stand_in_setup(void **state)
{
	(void)state;
	if (stand_in_open())
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

static void
execute(char *const argv[])
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGINT, SIG_DFL); /* as at a prompt, also for tests in a background */
	signal(SIGHUP, SIG_DFL);
	execvp(strcmp(argv[0], "pando") != 0 ? argv[0] : stand_in_pando, argv);
	_exit(127);
}

pid_t
stand_in_start(char *const argv[], int stdin_fd, int *ret_out, int *ret_err)
{
	int out[2], err[2];
	pid_t pid;

	if (stdin_fd < 0)
		stdin_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(err, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(stdin_fd, 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		execute(argv);
	}
	close(stdin_fd);
	close(out[1]);
	close(err[1]);
	*ret_out = out[0];
	*ret_err = err[0];
	return pid;
}

pid_t
stand_in_start_on_terminal(
	char *const argv[], uint16_t rows, uint16_t cols, int *ret_master)
{
	struct winsize size = {.ws_row = rows, .ws_col = cols};
	pid_t pid = forkpty(ret_master, NULL, NULL, &size);

	assert_true(pid >= 0);
	if (pid == 0)
		execute(argv);
	return pid;
}

/* poll() until then; false when the time is over. */
static bool
poll_until(struct pollfd *p, nfds_t n, uint64_t end_ns)
{
	uint64_t now_ns = io_now_ns();

	return now_ns < end_ns && poll(p, n, (int)((end_ns - now_ns) / 1000000) + 1) > 0;
}

static uint64_t
limit_ns(void)
{
	return io_now_ns() + STAND_IN_LIMIT_S * UINT64_C(1000000000);
}

int
stand_in_wait(pid_t pid)
{
	struct pollfd p = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
	bool ended;
	int status;

	assert_true(p.fd >= 0);
	ended = poll_until(&p, 1, limit_ns());
	close(p.fd);
	if (!ended)
		kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!ended)
		fail_msg("process %d did not end", (int)pid);
	return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

void
stand_in_finish(pid_t pid, int out, int err, struct ran *ret)
{
	struct pollfd p[2] = {
		{.fd = out, .events = POLLIN}, {.fd = err, .events = POLLIN}};
	uint64_t end_ns = limit_ns();

	ran_done(ret);
	ret->out = calloc(1, 1);
	ret->err = calloc(1, 1);
	while (p[0].fd >= 0 || p[1].fd >= 0) {
		if (!poll_until(p, 2, end_ns)) {
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
	ret->status = stand_in_wait(pid);
}

void
stand_in_run(const char *input, size_t len, char *const argv[], struct ran *ret)
{
	uint64_t start_ns = io_now_ns();
	struct input in = {.data = input, .len = len};
	int fds[2] = {-1, -1}, out, err;
	pthread_t thread;
	pid_t pid;

	if (input) {
		assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
		in.fd = fds[1];
	}
	pid = stand_in_start(argv, fds[0], &out, &err);
	if (input)
		assert_int_equal(pthread_create(&thread, NULL, feed, &in), 0);
	stand_in_finish(pid, out, err, ret);
	if (input)
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

char *
stand_in_read_all(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint64_t end_ns = limit_ns();
	char *text = NULL;
	size_t len = 0;

	do {
		if (!poll_until(&p, 1, end_ns))
			fail_msg("no end; what came: %s", text ? text : "");
	} while (collect(fd, &text, &len));
	return text;
}

unsigned
stand_in_running(const char *program)
{
	char command[64];
	unsigned n = 0;
	FILE *f;

	/* In brackets, so that the shell's own words are not found. */
	snprintf(command, sizeof(command), "pgrep -fc '%s [9]%s'", program,
		stand_in_mark + 1);
	f = popen(command, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%u", &n), 1);
	pclose(f);
	return n;
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
