/*
 * pandod's HTTP side on a real socket (host/api/api.c): statuses, bounds, streams, and what
 * happens to bytes that are no HTTP. No VM runs: the VMM that the tree is told to start
 * does not exist.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/api/api.h"

static char home[64], sock[96];
static struct tree *tree;
static struct commits *commits;
static struct api *api;
static int shutdowns;

static void
on_shutdown(void *ctx)
{
	(*(int *)ctx)++;
}

static int
setup(void **state)
{
	static struct tree_config config;
	uint8_t kernel[0x400] = {0};
	char path[128];
	struct err e;
	int fd;

	(void)state;
	snprintf(home, sizeof(home), "/tmp/pando-test-XXXXXX");
	assert_non_null(mkdtemp(home));
	kernel[0x1fe] = 0x55;
	kernel[0x1ff] = 0xaa;
	memcpy(kernel + 0x202, "HdrS", 4);
	snprintf(path, sizeof(path), "%s/kernel", home);
	assert_int_equal(io_write_file_atomic(path, kernel, sizeof(kernel), 0600, &e), 0);
	snprintf(config.home, sizeof(config.home), "%s", home);
	snprintf(config.images, sizeof(config.images), "%s/images", home);
	snprintf(config.vmm_path, sizeof(config.vmm_path), "/nonexistent/pando-vmm");
	config.kvm_path = "/dev/null";
	config.start_timeout_ms = config.answer_timeout_ms = config.agent_timeout_ms =
		1000;
	if (tree_open(&config, &tree, &e) < 0 ||
		commits_open(tree, &(struct commits_config){0}, &commits, &e) < 0)
		fail_msg("%s", e.msg);
	snprintf(sock, sizeof(sock), "%s/pandod.sock", home);
	assert_int_equal(io_unix_listen(sock, SOCK_STREAM, 128, &fd, &e), 0);
	assert_int_equal(io_set_nonblock(fd, 1), 0);
	shutdowns = 0;
	if (api_start(tree, commits, fd, on_shutdown, &shutdowns, &api, &e) < 0)
		fail_msg("%s", e.msg);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	tree_stop(tree);
	api_stop(api);
	commits_close(commits);
	tree_close(tree);
	return io_remove_tree(home, NULL);
}

static int
dial(void)
{
	int fd = -1;
	struct timeval limit = {.tv_sec = 10};

	assert_int_equal(io_unix_connect(sock, SOCK_STREAM, &fd, NULL), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

static char answer[64 * 1024];

/* Everything until the server closes. */
static void
read_all(int fd)
{
	size_t n = 0;

	while (n < sizeof(answer) - 1) {
		ssize_t got = io_read(fd, answer + n, sizeof(answer) - 1 - n);

		if (got <= 0)
			break;
		n += (size_t)got;
	}
	answer[n] = '\0';
}

/* The status; the whole answer is in `answer`. */
static int
call(const char *method, const char *target, const char *headers, const char *body)
{
	cleanup_close int fd = dial();
	char head[4096];
	int status = 0, r;

	snprintf(head, sizeof(head),
		"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n%s\r\n",
		method, target, strlen(body), headers);
	assert_int_equal(io_write_full(fd, head, strlen(head)), 0);
	/* Who is answered before they have said all is not listened to any more. */
	r = io_write_full(fd, body, strlen(body));
	assert_true(r == 0 || r == -EPIPE);
	read_all(fd);
	sscanf(answer, "HTTP/1.1 %d", &status);
	return status;
}

static void
assert_answer(const char *text)
{
	if (!strstr(answer, text))
		fail_msg("no \"%s\" in: %s", text, answer);
}

static void
calls_have_their_statuses(void **state)
{
	char body[256];

	(void)state;
	assert_int_equal(call("GET", "/v1/version", "", ""), 200);
	assert_answer("\"version\":\"" PANDO_VERSION "\"");
	assert_answer(home);
	assert_int_equal(call("GET", "/v1/vms", "", ""), 200);
	assert_answer("{\"vms\":[]}");
	assert_int_equal(call("GET", "/v1/vms/x", "", ""), 404);
	assert_answer(
		"\"errno\":\"ENOENT\",\"code\":-2,\"message\":\"no VM named \\\"x\\\"");
	assert_int_equal(call("GET", "/v1/nothing", "", ""), 404);
	assert_int_equal(call("PATCH", "/v1/vms", "", ""), 405);
	assert_int_equal(call("POST", "/v1/vms", "", "{\"mem_mib\":0}"), 400);
	assert_answer("EINVAL");
	assert_int_equal(call("POST", "/v1/vms", "", "{\"what\":0}"), 400);
	assert_answer("unknown member \\\"what\\\"");
	assert_int_equal(call("GET", "/v1/vms", "", "{\"what\":0}"), 400);
	assert_int_equal(call("POST", "/v1/vms/x/branch", "", ""), 404);
	assert_int_equal(call("DELETE", "/v1/vms/x?recursive=7", "", ""), 400);
	assert_int_equal(call("GET", "/v1/vms/%00", "", ""), 400);
	snprintf(body, sizeof(body), "{\"kernel\":\"%s/kernel\",\"rootfs\":\"none\"}",
		home);
	assert_int_equal(call("POST", "/v1/vms", "", body), 404);
	assert_answer("starting /nonexistent/pando-vmm: No such file or directory");
	assert_int_equal(call("GET", "/v1/vms", "", ""), 200);
	assert_answer("{\"vms\":[]}");
}

static void
a_stream_ends_with_a_result_or_an_error(void **state)
{
	char body[256];

	(void)state;
	snprintf(body, sizeof(body),
		"{\"kernel\":\"%s/kernel\",\"rootfs\":\"none\",\"alias\":\"a\"}", home);
	assert_int_equal(
		call("POST", "/v1/vms", "Accept: application/x-ndjson\r\n", body), 200);
	assert_answer("application/x-ndjson");
	assert_answer("{\"progress\":\"starting VM ");
	assert_answer("{\"error\":{\"errno\":\"ENOENT\"");
	/* A body that is wrong is told the same way. */
	assert_int_equal(
		call("POST", "/v1/vms", "Accept: application/x-ndjson\r\n", "{"), 200);
	assert_answer("{\"error\":{\"errno\":\"EINVAL\"");
}

static void
a_body_that_is_too_long_is_refused(void **state)
{
	cleanup_close int fd = dial();
	char head[200];
	static char block[65536];
	size_t sent = 0;

	(void)state;
	memset(block, ' ', sizeof(block));
	snprintf(head, sizeof(head),
		"POST /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n",
		64 << 20);
	assert_int_equal(io_write_full(fd, head, strlen(head)), 0);
	while (sent < 64u << 20 && send(fd, block, sizeof(block), MSG_NOSIGNAL) > 0)
		sent += sizeof(block);
	read_all(fd);
	assert_answer("413");
	assert_answer("longer than 1048576 bytes");
}

static void
garbage_hurts_nobody(void **state)
{
	static const char *const texts[] = {
		"",
		"\r\n\r\n\r\n",
		"GET",
		"GET / HTTP/9.9\r\n\r\n",
		"GET /v1/vms HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
		"GET /v1/vms HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
		"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
		"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"GET /v1/vms HTTP/1.1\r\nHost: x\r\n: : :\r\n\r\n",
	};
	static uint8_t noise[100000];

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		cleanup_close int fd = dial();

		send(fd, texts[i], strlen(texts[i]), MSG_NOSIGNAL);
		shutdown(fd, SHUT_WR);
		read_all(fd);
	}
	for (int i = 0; i < 50; i++) {
		cleanup_close int fd = dial();

		assert_int_equal(getrandom(noise, 256, 0), 256);
		for (size_t j = 256; j < sizeof(noise); j++)
			noise[j] = noise[j - 256] + (uint8_t)j;
		send(fd, noise, sizeof(noise), MSG_NOSIGNAL);
	}
	/* A line and a header without end. */
	for (int i = 0; i < 2; i++) {
		cleanup_close int fd = dial();
		const char *start = i ? "GET /v1/vms HTTP/1.1\r\nX: " : "GET /";

		memset(noise, 'a', sizeof(noise));
		send(fd, start, strlen(start), MSG_NOSIGNAL);
		send(fd, noise, sizeof(noise), MSG_NOSIGNAL);
		read_all(fd);
	}
	assert_int_equal(call("GET", "/v1/vms", "", ""), 200);
}

static void
more_connections_than_can_be_served_are_told_so(void **state)
{
	int fds[API_CONNECTIONS_MAX];
	size_t n = sizeof(fds) / sizeof(fds[0]);

	(void)state;
	for (size_t i = 0; i < n - 1; i++)
		fds[i] = dial();
	assert_int_equal(call("GET", "/v1/vms", "", ""), 200);
	/* One more than can be served is told so, whatever it asks. */
	fds[n - 1] = dial();
	for (int i = 0; i < 3; i++) {
		assert_int_equal(
			call("POST", "/v1/vms", "", i ? "{\"alias\":\"x\"}" : ""), 503);
		assert_answer("\"errno\":\"EBUSY\"");
		assert_answer("pandod serves 128 connections at once");
	}
	for (size_t i = 0; i < n; i++)
		close(fds[i]);
	/* The server may still count them, and says that, too: not for long. */
	for (int i = 0; i < 100; i++) {
		int status = call("GET", "/v1/vms", "", "");

		if (status == 200)
			break;
		assert_int_equal(status, 503);
		poll(NULL, 0, 50);
	}
	assert_int_equal(call("GET", "/v1/vms", "", ""), 200);
}

static void
one_connection_takes_many_calls(void **state)
{
	static const char two[] =
		"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n"
		"GET /v1/vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	cleanup_close int fd = dial();

	(void)state;
	assert_int_equal(io_write_full(fd, two, sizeof(two) - 1), 0);
	read_all(fd);
	assert_answer("\"pid\"");
	assert_answer("{\"vms\":[]}");
}

static void
shutdown_is_told_to_the_daemon(void **state)
{
	(void)state;
	assert_int_equal(call("GET", "/v1/shutdown", "", ""), 405);
	assert_int_equal(shutdowns, 0);
	assert_int_equal(call("POST", "/v1/shutdown", "", ""), 200);
	assert_int_equal(shutdowns, 1);
}

static void
errors_have_the_contracts_statuses(void **state)
{
	(void)state;
	assert_int_equal(api_status(-EINVAL), 400);
	assert_int_equal(api_status(-EACCES), 403);
	assert_int_equal(api_status(-ENOENT), 404);
	assert_int_equal(api_status(-EEXIST), 409);
	assert_int_equal(api_status(-EBUSY), 409);
	assert_int_equal(api_status(-EAGAIN), 503);
	assert_int_equal(api_status(-ENOTEMPTY), 409);
	assert_int_equal(api_status(-ETIMEDOUT), 408);
	assert_int_equal(api_status(-ECANCELED), 499);
	assert_int_equal(api_status(-EIO), 500);
}

/* All of them could have taken every connection there is. */
static void
followers_of_reports_leave_connections_for_others(void **state)
{
	static const char ask[] = "GET /v1/reports?wait=1 HTTP/1.1\r\nHost: x\r\n\r\n";
	enum { N = TREE_FOLLOWERS_MAX + 4 };
	struct pollfd p[N];
	int told = 0;

	(void)state;
	for (int i = 0; i < N; i++) {
		p[i] = (struct pollfd){.fd = dial(), .events = POLLIN};
		assert_int_equal(io_write_full(p[i].fd, ask, sizeof(ask) - 1), 0);
	}
	for (int tries = 0; tries < 100 && told < N - TREE_FOLLOWERS_MAX; tries++) {
		assert_true(poll(p, N, 100) >= 0);
		for (int i = 0; i < N; i++) {
			char line[sizeof("HTTP/1.1 503")] = "";

			if (!p[i].revents)
				continue;
			assert_int_equal(
				io_read_full(p[i].fd, line, sizeof(line) - 1), 0);
			assert_string_equal(line, "HTTP/1.1 503");
			close(p[i].fd);
			p[i].fd = -1;
			told++;
		}
	}
	assert_int_equal(told, N - TREE_FOLLOWERS_MAX);
	assert_int_equal(call("GET", "/v1/reports?wait=1", "", ""), 503);
	assert_answer("calls wait for reports");
	assert_answer("EAGAIN");
	assert_answer("Retry-After: 1");
	assert_int_equal(call("GET", "/v1/vms", "", ""), 200);
	tree_stop(tree);
	for (int i = 0; i < N; i++)
		if (p[i].fd >= 0)
			close(p[i].fd);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(calls_have_their_statuses),
		T(a_stream_ends_with_a_result_or_an_error),
		T(a_body_that_is_too_long_is_refused),
		T(garbage_hurts_nobody),
		T(more_connections_than_can_be_served_are_told_so),
		T(followers_of_reports_leave_connections_for_others),
		T(one_connection_takes_many_calls),
		T(shutdown_is_told_to_the_daemon),
		cmocka_unit_test(errors_have_the_contracts_statuses),
#undef T
	};

	while (open("/dev/null", O_RDWR) < 3)
		;
	log_init("test", LOG_LEVEL_ERR);
	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
