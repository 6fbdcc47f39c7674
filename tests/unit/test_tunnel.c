/*
 * The shipped `pando tunnel` against the shipped pando-agent; the "guest's" loopback is
 * ours. See stand_in.h for what is between them.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "host/agent/agent_client.h"
#include "host/cli/tunnel.h"
#include "tests/unit/stand_in.h"

/* Both ends -------------------------------------------------------------------------- */

static int
listen_at(int family, uint16_t *ret_port)
{
	struct sockaddr_in v4 = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 v6 = {
		.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	bool six = family == AF_INET6;
	struct sockaddr *a = six ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
	socklen_t len = six ? sizeof(v6) : sizeof(v4);
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0)
		return -1;
	if (six)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, a, len) || listen(fd, 512) || getsockname(fd, a, &len)) {
		close(fd);
		return -1;
	}
	*ret_port = ntohs(six ? v6.sin6_port : v4.sin_port);
	return fd;
}

static int
dial(uint16_t port)
{
	struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = {.tv_sec = STAND_IN_LIMIT_S};

	assert_true(fd >= 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

/* A connection through the tunnel: this host's end, and the guest's. */
static int
dial_through(uint16_t port, int listener, int *ret_there)
{
	int here = dial(port);

	*ret_there = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(*ret_there >= 0);
	return here;
}

struct tunnel_run {
	pid_t pid;
	int out, err;
	uint16_t port;
};

static struct tunnel_run
open_tunnel(uint16_t guest)
{
	struct tunnel_run t;
	char door[32];
	const char *said, *at;

	snprintf(door, sizeof(door), "0:%u", guest);
	t.pid = stand_in_start(
		(char *[]){"pando", "tunnel", "a", door, NULL}, -1, &t.out, &t.err);
	said = stand_in_await(t.out, "\n");
	at = strstr(said, "127.0.0.1:");
	assert_ptr_equal(at, said);
	t.port = (uint16_t)strtoul(at + 10, NULL, 10);
	snprintf(door, sizeof(door), " -> a:%u\n", guest);
	assert_non_null(strstr(said, door));
	return t;
}

/* To a program that listens, and is this one. */
static struct tunnel_run
open_tunnel_to(int *ret_listener)
{
	uint16_t port;

	*ret_listener = listen_at(AF_INET, &port);
	assert_true(*ret_listener >= 0);
	return open_tunnel(port);
}

/* Ctrl-C. */
static void
close_tunnel(struct tunnel_run *t, struct ran *got)
{
	kill(t->pid, SIGINT);
	stand_in_finish(t->pid, t->out, t->err, got);
	assert_int_equal(got->status, 0);
}

/* A stream of numbers that is like no other. */
struct stream {
	int fd;
	uint64_t seed, bytes;
	bool good;
	pthread_t thread;
};

#define WORDS 4096

static void
fill(uint64_t words[WORDS], uint64_t *state)
{
	for (int i = 0; i < WORDS; i++) {
		*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
		words[i] = *state ^ *state >> 33;
	}
}

static void *
pour(void *arg)
{
	struct stream *s = arg;
	uint64_t words[WORDS], state = s->seed;

	for (uint64_t at = 0; at < s->bytes; at += sizeof(words)) {
		fill(words, &state);
		if (io_write_full(s->fd, words, sizeof(words)))
			return NULL;
	}
	shutdown(s->fd, SHUT_WR);
	s->good = true;
	return NULL;
}

/* Good when exactly that stream came, and its end. */
static void *
sink(void *arg)
{
	struct stream *s = arg;
	uint64_t words[WORDS], want[WORDS], state = s->seed;
	char more;

	for (uint64_t at = 0; at < s->bytes; at += sizeof(words)) {
		fill(want, &state);
		if (io_read_full(s->fd, words, sizeof(words)) ||
			memcmp(words, want, sizeof(want)) != 0)
			return NULL;
	}
	s->good = read(s->fd, &more, 1) == 0;
	return NULL;
}

/* Tests ------------------------------------------------------------------------------ */

static void
a_hundred_megabytes_each_way_at_once(void **state)
{
	cleanup_ran struct ran got = {0};
	uint64_t bytes = (100u << 20) / 32768 * 32768, began = io_now_ns();
	struct tunnel_run t;
	struct stream s[4] = {{.seed = 1, .bytes = bytes}, {.seed = 1, .bytes = bytes},
		{.seed = 2, .bytes = bytes}, {.seed = 2, .bytes = bytes}};
	int listener, there;

	(void)state;
	t = open_tunnel_to(&listener);
	s[0].fd = s[3].fd = dial_through(t.port, listener, &there);
	s[1].fd = s[2].fd = there;
	for (int i = 0; i < 4; i++)
		pthread_create(&s[i].thread, NULL, i % 2 ? sink : pour, &s[i]);
	for (int i = 0; i < 4; i++) {
		pthread_join(s[i].thread, NULL);
		assert_true(s[i].good);
	}
	print_message("%.0f MiB/s each way\n",
		(double)(bytes >> 20) / ((double)(io_now_ns() - began) / 1e9));
	close(s[0].fd);
	close(s[1].fd);
	close(listener);
	close_tunnel(&t, &got);
	assert_string_equal(got.err, "");
}

static void
two_hundred_http_requests_at_once(void **state)
{
	static const char client[] =
		"import sys,urllib.request,concurrent.futures as f\n"
		"want=open(sys.argv[2],'rb').read()\n"
		"def get(i):\n"
		" u='http://127.0.0.1:%s/page?%d'%(sys.argv[1],i)\n"
		" return urllib.request.urlopen(u,timeout=100).read()==want\n"
		"with f.ThreadPoolExecutor(200) as p:\n"
		" print(sum(p.map(get,range(200))))\n";
	/* As `python3 -m http.server`, whose queue has 5 places: the rest would wait for
	 * the kernel's second and third tries. */
	static const char server[] =
		"import http.server as h\n"
		"h.ThreadingHTTPServer.request_queue_size=256\n"
		"s=h.ThreadingHTTPServer(('127.0.0.1',0),h.SimpleHTTPRequestHandler)\n"
		"print('port',s.server_port,'(http)')\n"
		"s.serve_forever()\n";
	cleanup_ran struct ran got = {0};
	char command[256], path[128], words[512];
	struct tunnel_run t;
	int pipe_fd[2];
	uint64_t began;
	uint16_t port;
	FILE *f;
	pid_t pid;

	(void)state;
	if (system("python3 -c 'import http.server'"))
		skip();
	snprintf(path, sizeof(path), "%s/page", stand_in_home);
	snprintf(command, sizeof(command), "head -c 65537 /dev/urandom >'%s'", path);
	assert_int_equal(system(command), 0);
	snprintf(path, sizeof(path), "%s/client.py", stand_in_home);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(client, f);
	fclose(f);

	assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(pipe_fd[1], 1);
		dup2(open("/dev/null", O_WRONLY), 2);
		if (chdir(stand_in_home))
			_exit(127);
		execlp("python3", "python3", "-u", "-c", server, (char *)NULL);
		_exit(127);
	}
	close(pipe_fd[1]);
	port = (uint16_t)strtoul(
		strstr(stand_in_await(pipe_fd[0], "(http"), "port ") + 5, NULL, 10);
	t = open_tunnel(port);
	began = io_now_ns();
	snprintf(words, sizeof(words), "python3 '%s' %u '%s/page'", path, t.port,
		stand_in_home);
	f = popen(words, "r");
	assert_non_null(f);
	assert_non_null(fgets(words, sizeof(words), f));
	pclose(f);
	assert_string_equal(words, "200\n");
	print_message("in %.1f s, peak %zu KiB here and %zu KiB in the guest\n",
		(double)(io_now_ns() - began) / 1e9, stand_in_memory(t.pid, "VmHWM:"),
		stand_in_memory(stand_in_agent, "VmHWM:"));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(pipe_fd[0]);
	close_tunnel(&t, &got);
	assert_string_equal(got.err, "");
}

static void
each_direction_ends_on_its_own(void **state)
{
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	char buf[64];
	int listener, here, there;

	(void)state;
	t = open_tunnel_to(&listener);
	/* The client first. */
	here = dial_through(t.port, listener, &there);
	assert_int_equal(io_write_full(here, "question", 8), 0);
	shutdown(here, SHUT_WR);
	assert_int_equal(io_read_full(there, buf, 8), 0);
	assert_int_equal(read(there, buf, 1), 0);
	usleep(200000);
	assert_int_equal(io_write_full(there, "answer", 6), 0);
	close(there);
	assert_int_equal(io_read_full(here, buf, 6), 0);
	assert_memory_equal(buf, "answer", 6);
	assert_int_equal(read(here, buf, 1), 0);
	close(here);
	/* Then the guest's program. */
	here = dial_through(t.port, listener, &there);
	assert_int_equal(io_write_full(there, "hello", 5), 0);
	shutdown(there, SHUT_WR);
	assert_int_equal(io_read_full(here, buf, 5), 0);
	assert_int_equal(read(here, buf, 1), 0);
	usleep(200000);
	assert_int_equal(io_write_full(here, "still here", 10), 0);
	close(here);
	assert_int_equal(io_read_full(there, buf, 10), 0);
	assert_int_equal(read(there, buf, 1), 0);
	close(there);
	close(listener);
	close_tunnel(&t, &got);
}

static void
reset(int fd)
{
	struct linger l = {.l_onoff = 1};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	close(fd);
}

static void
what_is_broken_on_one_side_is_broken_on_the_other(void **state)
{
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	char buf[64];
	int listener, here, there;

	(void)state;
	t = open_tunnel_to(&listener);
	for (int half = 0; half < 2; half++) {
		here = dial_through(t.port, listener, &there);
		if (half) {
			/* One that only waits for an answer hears of it, too. */
			shutdown(here, SHUT_WR);
			assert_int_equal(read(there, buf, 1), 0);
		}
		assert_int_equal(io_write_full(there, "last", 4), 0);
		usleep(100000);
		reset(there);
		assert_int_equal(io_read_full(here, buf, 4), 0);
		assert_int_equal(read(here, buf, 1), -1);
		assert_int_equal(errno, ECONNRESET);
		close(here);

		here = dial_through(t.port, listener, &there);
		if (half) {
			shutdown(there, SHUT_WR);
			assert_int_equal(read(here, buf, 1), 0);
		} else {
			assert_int_equal(io_write_full(here, "x", 1), 0);
			assert_int_equal(io_read_full(there, buf, 1), 0);
		}
		reset(here);
		assert_int_equal(read(there, buf, 1), -1);
		assert_int_equal(errno, ECONNRESET);
		close(there);
	}
	/* A client that has said all and is gone before the answer. */
	here = dial_through(t.port, listener, &there);
	shutdown(here, SHUT_WR);
	assert_int_equal(read(there, buf, 1), 0);
	reset(here);
	for (int i = 0; i < 1000 && send(there, "?", 1, MSG_NOSIGNAL) == 1; i++)
		usleep(10000);
	assert_int_equal(send(there, "?", 1, MSG_NOSIGNAL), -1);
	close(there);
	close(listener);
	close_tunnel(&t, &got);
	assert_string_equal(got.err, "");
}

static void
a_port_without_a_program_is_said_once(void **state)
{
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	uint16_t port;
	int listener = listen_at(AF_INET, &port), fd, there;
	const char *first;
	char buf[8];

	(void)state;
	close(listener);
	t = open_tunnel(port);
	for (int i = 0; i < 3; i++) {
		fd = dial(t.port);
		assert_true(read(fd, buf, 1) <= 0);
		close(fd);
	}
	/* When something listens there, it works; when it goes, that is told again. */
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	fd = 1;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &fd, sizeof(fd));
	assert_int_equal(
		bind(listener,
			(struct sockaddr *)&(struct sockaddr_in){.sin_family = AF_INET,
				.sin_port = htons(port),
				.sin_addr.s_addr = htonl(INADDR_LOOPBACK)},
			sizeof(struct sockaddr_in)),
		0);
	assert_int_equal(listen(listener, 5), 0);
	fd = dial_through(t.port, listener, &there);
	shutdown(fd, SHUT_WR);
	close(there);
	assert_int_equal(read(fd, buf, 1), 0);
	close(fd);
	close(listener);
	usleep(200000);
	fd = dial(t.port);
	assert_true(read(fd, buf, 1) <= 0);
	close(fd);
	close_tunnel(&t, &got);
	first = strstr(got.err, "nothing listens on port");
	assert_non_null(first);
	first = strstr(first + 1, "nothing listens on port");
	assert_non_null(first);
	assert_null(strstr(first + 1, "nothing listens on port"));
}

static void
a_program_on_ipv6_only_is_found(void **state)
{
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	char buf[8];
	uint16_t port;
	int listener = listen_at(AF_INET6, &port), here, there;

	(void)state;
	if (listener < 0)
		skip();
	t = open_tunnel(port);
	here = dial_through(t.port, listener, &there);
	assert_int_equal(io_write_full(here, "six", 3), 0);
	assert_int_equal(io_read_full(there, buf, 3), 0);
	close(here);
	close(there);
	close(listener);
	close_tunnel(&t, &got);
}

/* How much goes into fd before nothing does for a second. */
static size_t
stuff(int fd, size_t max)
{
	static char zeros[65536];
	struct pollfd p = {.fd = fd, .events = POLLOUT};
	size_t n = 0;

	while (n < max && poll(&p, 1, 1000) > 0) {
		ssize_t r = send(fd, zeros, sizeof(zeros), MSG_DONTWAIT | MSG_NOSIGNAL);

		if (r < 0 && errno != EAGAIN)
			break;
		n += r > 0 ? (size_t)r : 0;
	}
	return n;
}

static void
who_does_not_read_stops_the_other_and_takes_no_memory(void **state)
{
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	uint16_t port;
	int listener = listen_at(AF_INET, &port), here, there, small = 65536;
	size_t up, down, agent_kib, kib;

	(void)state;
	agent_kib = stand_in_memory(stand_in_agent, "VmRSS:");
	setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	t = open_tunnel(port);
	here = dial_through(t.port, listener, &there);
	up = stuff(here, 64u << 20);
	down = stuff(there, 64u << 20);
	kib = stand_in_memory(t.pid, "VmHWM:");
	print_message("up %zu KiB, down %zu KiB; %zu KiB here, %zu KiB more there\n",
		up >> 10, down >> 10, kib,
		stand_in_memory(stand_in_agent, "VmRSS:") - agent_kib);
	assert_true(up < 32u << 20 && down < 32u << 20);
#ifndef __SANITIZE_ADDRESS__
	assert_true(kib < 32 * 1024);
	assert_true(stand_in_memory(stand_in_agent, "VmRSS:") < agent_kib + 1024);
#endif
	/* Others are not held up by it. */
	close(dial(t.port));
	close(here);
	close(there);
	close(listener);
	close_tunnel(&t, &got);
}

static void
many_that_wait_are_served_when_others_end(void **state)
{
	enum { N = TUNNEL_CONNS_MAX + 30 };
	static int here[N];
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	int listener, there, n = 0;
	char c;

	(void)state;
	t = open_tunnel_to(&listener);
	for (int i = 0; i < N; i++)
		here[i] = dial(t.port);
	for (; n < TUNNEL_CONNS_MAX; n++) {
		there = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		assert_true(there >= 0);
		assert_true(there > 2);
		/* Left open: they are closed by their clients, below. */
		assert_int_equal(fcntl(there, F_SETFD, FD_CLOEXEC), 0);
	}
	usleep(300000);
	assert_int_equal(fcntl(listener, F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(accept(listener, NULL, NULL), -1);
	assert_int_equal(fcntl(listener, F_SETFL, 0), 0);
	for (int i = 0; i < N; i++)
		reset(here[i]);
	/* The rest were reset while they waited, or came through; a new one works. */
	here[0] = dial(t.port);
	assert_int_equal(io_write_full(here[0], "x", 1), 0);
	do {
		there = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		assert_true(there >= 0);
	} while (read(there, &c, 1) != 1);
	assert_int_equal(c, 'x');
	for (int fd = 3; fd < N * 3; fd++) {
		struct sockaddr_in a;
		socklen_t len = sizeof(a);

		if (fd != listener && fd != t.out && fd != t.err &&
			!getsockname(fd, (struct sockaddr *)&a, &len) &&
			a.sin_family == AF_INET)
			close(fd);
	}
	close(listener);
	close_tunnel(&t, &got);
}

static void
what_is_listened_on_is_said(void **state)
{
	cleanup_json struct json *j = NULL;
	cleanup_ran struct ran got = {0};
	int out, err, door;
	uint64_t port;
	char text[64];
	const char *said;
	pid_t pid;

	(void)state;
	pid = stand_in_start((char *[]){"pando", "tunnel", "--format", "json", "a",
				     "0:80", "0:443", NULL},
		-1, &out, &err);
	said = stand_in_await(out, "\n");
	assert_int_equal(json_parse(said, strlen(said), 64, &j, NULL), 0);
	door = json_at(j, json_get(j, 0, "listens"), 1);
	assert_int_equal(json_u64(j, json_get(j, door, "guest_port"), &port), 0);
	assert_int_equal(port, 443);
	assert_int_equal(json_u64(j, json_get(j, door, "port"), &port), 0);
	assert_int_equal(
		json_str(j, json_get(j, door, "address"), text, sizeof(text)), 0);
	assert_int_equal(strtoul(strchr(text, ':') + 1, NULL, 10), port);
	kill(pid, SIGTERM);
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, 0);

	/* To all the world only when asked for, and not without a word. */
	pid = stand_in_start(
		(char *[]){"pando", "tunnel", "-b", "0.0.0.0", "a", "0:80", NULL}, -1,
		&out, &err);
	stand_in_await(out, "0.0.0.0:");
	kill(pid, SIGINT);
	stand_in_finish(pid, out, err, &got);
	assert_non_null(strstr(got.err, "whoever reaches this host"));
	pid = stand_in_start(
		(char *[]){"pando", "tunnel", "-q", "a", "0:80", NULL}, -1, &out, &err);
	assert_null(strstr(stand_in_await(out, "\n"), "->"));
	kill(pid, SIGINT);
	stand_in_finish(pid, out, err, &got);
	assert_string_equal(got.err, "");
}

static void
wrong_words_are_refused(void **state)
{
	static const char *const bad[] = {"0", "65536", "80:", "80:0", ":80", "80:80:80",
		"x:80", "70000:80", "-1", "1:123456", ""};
	cleanup_ran struct ran got = {0};
	struct tunnel_door d;
	uint16_t port;
	int listener = listen_at(AF_INET, &port);
	char word[32];

	(void)state;
	RUN(&got, "tunnel", "a");
	assert_int_equal(got.status, EXIT_USAGE);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		RUN(&got, "tunnel", "a", "--", (char *)(uintptr_t)bad[i]);
		assert_int_equal(got.status, EXIT_USAGE);
	}
	RUN(&got, "tunnel", "nobody", "80");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN(&got, "tunnel", "a", "0:80", "--bind", "localhost");
	assert_int_equal(got.status, EXIT_USAGE);
	snprintf(word, sizeof(word), "%u:80", port);
	RUN(&got, "tunnel", "a", word);
	assert_int_equal(got.status, EXIT_FAILED);
	assert_non_null(strstr(got.err, "0:80"));
	close(listener);

	assert_int_equal(tunnel_read_door("8080", &d, NULL), 0);
	assert_true(d.local == 8080 && d.guest == 8080);
	assert_int_equal(tunnel_read_door("0:65535", &d, NULL), 0);
	assert_true(d.local == 0 && d.guest == 65535);
	assert_true(tunnel_is_door("80") && tunnel_is_door("0:80"));
	assert_false(tunnel_is_door("a") || tunnel_is_door("123456789012") ||
		     tunnel_is_door("80:") || tunnel_is_door(""));
}

/* The agent's own answers, without the command. */
static void
the_agent_dials_its_loopback_only(void **state)
{
	static const char *const refused[] = {
		"{\"op\":\"dial\"}\n",
		"{\"op\":\"dial\",\"port\":0}\n",
		"{\"op\":\"dial\",\"port\":65536}\n",
		"{\"op\":\"dial\",\"port\":\"80\"}\n",
		"{\"op\":\"dial\",\"port\":80,\"host\":\"192.0.2.1\"}\n",
		"{\"op\":\"stay\",\"port\":80}\n",
	};
	char line[512];

	(void)state;
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		size_t len = 0;
		int fd;

		assert_int_equal(
			agent_connect(stand_in_agent_socket, 30000, &fd, NULL), 0);
		assert_int_equal(io_write_full(fd, refused[i], strlen(refused[i])), 0);
		while (!len || line[len - 1] != '\n')
			assert_int_equal(read(fd, line + len++, 1), 1);
		line[len] = 0;
		assert_non_null(strstr(line, "\"ok\":false"));
		assert_non_null(strstr(line, "EINVAL"));
		close(fd);
	}
}

/* A hostile guest -------------------------------------------------------------------- */

struct agent {
	int listener;
	bool ends; /* the conversation of each dial is one lie */
	const void *lie;
	size_t lie_len;
	_Atomic uint64_t flood; /* bytes of it that were taken */
};

static void *
play(void *arg)
{
	struct agent *a = arg;
	static char data[8 + 65536] = {AGENT_DATA, 0, 0, 0, 0, 0, 1, 0};
	int fd;

	while ((fd = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		struct timeval second = {.tv_sec = 1};
		char line[1024];
		size_t len = 0;
		int lines = 0;

		while (lines < 2 && len < sizeof(line) - 1 &&
			read(fd, line + len, 1) == 1)
			if (line[len++] == '\n' && !lines++)
				(void)io_write_full(fd, "OK 1\n", 5);
		line[len] = 0;
		if (strstr(line, "ping")) {
			static const char pong[] = "{\"ok\":true,\"version\":\"1\","
						   "\"uptime_ms\":1,\"boot_id\":\"b\"}\n";

			(void)io_write_full(fd, pong, sizeof(pong) - 1);
			close(fd);
			continue;
		}
		(void)io_write_full(fd, "{\"ok\":true}\n", 12);
		if (strstr(line, "stay"))
			continue; /* held */
		if (a->lie) {
			(void)io_write_full(fd, a->lie, a->lie_len);
			shutdown(fd, SHUT_WR);
			(void)!read(fd, line, sizeof(line));
			close(fd);
			continue;
		}
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof(second));
		while (a->flood < 64u << 20 && !io_write_full(fd, data, sizeof(data)))
			a->flood += sizeof(data) - 8;
		a->ends = true;
		close(fd);
	}
	return NULL;
}

static void
a_hostile_guest_floods_only_itself(void **state)
{
	struct agent a = {.listener = stand_in_fake_agent()};
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	pthread_t thread;
	size_t kib;
	int fd;

	(void)state;
	pthread_create(&thread, NULL, play, &a);
	t = open_tunnel(80);
	fd = dial(t.port);
	for (int i = 0; i < 6000 && !a.ends; i++)
		usleep(10000);
	kib = stand_in_memory(t.pid, "VmHWM:");
	print_message(
		"%llu KiB taken, peak %zu KiB\n", (unsigned long long)a.flood >> 10, kib);
	assert_true(a.ends && a.flood < 32u << 20);
#ifndef __SANITIZE_ADDRESS__
	assert_true(kib < 32 * 1024);
#endif
	close(fd);
	close_tunnel(&t, &got);
	shutdown(a.listener, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(a.listener);
}

static void
what_the_protocol_does_not_have_ends_that_connection_only(void **state)
{
#define LIE(text) \
	{ \
		text, sizeof(text) - 1 \
	}
	static const struct {
		const char *text;
		size_t len;
	} lies[] = {
		LIE(""), LIE("\x40\0\0\0\4\0\0\0abc"),	      /* cut */
		LIE("\x40\0\0\0\0\0\0\0"),		      /* no bytes */
		LIE("\x40\0\0\0\xff\xff\xff\xff"),	      /* absurd */
		LIE("\x40\1\0\0\1\0\0\0a"),		      /* of a stream */
		LIE("\x28\0\0\0\0\0\0\0\x40\0\0\0\1\0\0\0a"), /* data after its end */
		LIE("\x28\0\0\0\0\0\0\0\x28\0\0\0\0\0\0\0"),  /* it ends twice, is cut */
		/* over before the client has said all */
		LIE("\x28\0\0\0\0\0\0\0\x41\0\0\0\x28\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
		    "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
		LIE("\x26\0\0\0\1\0\0\0a"), /* a step of an identity handshake */
		LIE("\x42\0\0\0\x0a\0\0\0\0\0\0\0\0\0\0\0no"), /* an error of 0 */
	};
	struct agent a = {.listener = stand_in_fake_agent()};
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	pthread_t thread;
	char buf[64];

	(void)state;
	a.lie = lies[0].text;
	pthread_create(&thread, NULL, play, &a);
	t = open_tunnel(80);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		ssize_t n;
		int fd;

		a.lie = lies[i].text;
		a.lie_len = lies[i].len;
		fd = dial(t.port);
		while ((n = read(fd, buf, sizeof(buf))) > 0)
			;
		/* Reset, unless the guest's end was told first. */
		if (lies[i].len < 8 || lies[i].text[0] != 0x28)
			assert_int_equal(n, -1);
		close(fd);
	}
	close_tunnel(&t, &got);
	shutdown(a.listener, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(a.listener);
}

static void
the_end_of_the_vm_is_the_tunnels(void **state)
{
	cleanup_ran struct ran got = {0};
	struct tunnel_run t;
	int listener, fd, there;
	char c;

	(void)state;
	stand_in_start_agent();
	t = open_tunnel_to(&listener);
	fd = dial_through(t.port, listener, &there);
	stand_in_says("stopped", "powered off");
	stand_in_kill_agent();
	stand_in_finish(t.pid, t.out, t.err, &got);
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	assert_non_null(strstr(got.err, "the tunnel ends"));
	assert_non_null(strstr(got.err, "powered off"));
	/* Cut short, not ended. */
	assert_int_equal(read(fd, &c, 1), -1);
	close(fd);
	close(there);
	close(listener);
	/* One that has ended has none. */
	RUN(&got, "tunnel", "a", "0:80");
	assert_int_not_equal(got.status, 0);
	assert_non_null(strstr(got.err, "powered off"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_direction_ends_on_its_own),
		cmocka_unit_test(what_is_broken_on_one_side_is_broken_on_the_other),
		cmocka_unit_test(a_port_without_a_program_is_said_once),
		cmocka_unit_test(a_program_on_ipv6_only_is_found),
		cmocka_unit_test(what_is_listened_on_is_said),
		cmocka_unit_test(wrong_words_are_refused),
		cmocka_unit_test(the_agent_dials_its_loopback_only),
		cmocka_unit_test(who_does_not_read_stops_the_other_and_takes_no_memory),
		cmocka_unit_test(many_that_wait_are_served_when_others_end),
		cmocka_unit_test(two_hundred_http_requests_at_once),
		cmocka_unit_test(a_hundred_megabytes_each_way_at_once),
		cmocka_unit_test(a_hostile_guest_floods_only_itself),
		cmocka_unit_test(
			what_the_protocol_does_not_have_ends_that_connection_only),
		cmocka_unit_test(the_end_of_the_vm_is_the_tunnels),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, stand_in_setup, stand_in_teardown);
}
