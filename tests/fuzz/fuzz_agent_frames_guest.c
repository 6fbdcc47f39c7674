/*
 * Frames as the agent takes them from the host: into a command (one that lives across
 * inputs, taken up by attach), into a put and into a dial, whose program reads now and
 * then. The first byte chooses, the second how the bytes are cut. The agent's own loop,
 * connections and table are what runs. Nothing may be written beside the put's folder,
 * and the agent must answer a ping after each input.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <signal.h>
#include <unistd.h>

#include "common/io.h"
#include "guest-agent/server/conn.h"
#include "guest-agent/server/exec.h"
#include "guest-agent/server/exec_shim.h"
#include "guest-agent/server/put.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/spawn.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char folder[64], put_folder[96];
static uint64_t id;

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct err e = {0};
	sigset_t set;

	(void)argc;
	(void)argv;
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	sigprocmask(SIG_BLOCK, &set, NULL);
	/* Made and removed for each input: libFuzzer ends without a chance to clean up.
	 */
	snprintf(folder, sizeof(folder), "/tmp/pando-fuzz-agent-%d", (int)getpid());
	/* Nobody comes after it. */
	if (exec_shim_init(folder, 1, &e) || loop_init(&e))
		abort();
	snprintf(put_folder, sizeof(put_folder), "%s/put", folder);
	return 0;
}

static void
rounds(int n)
{
	while (n--)
		if (loop_round(0, NULL) < 0)
			abort();
}

/* Takes what the agent says; `heard` counts it. */
static size_t heard;
static char answer[256]; /* the beginning of what came last */

static void
drain(int fd)
{
	char buf[65536];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0) {
		if (!heard)
			snprintf(answer, sizeof(answer), "%.*s", (int)n, buf);
		heard += (size_t)n;
	}
}

static int
dial(void)
{
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) ||
		io_set_nonblock(fd[1], 1))
		abort();
	conn_accept(fd[1], 1, false, false);
	return fd[0];
}

static void
say(int fd, const void *buf, size_t len)
{
	const char *at = buf;

	while (len) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno != EAGAIN)
			return; /* it hung up, as it may */
		if (n > 0) {
			at += n;
			len -= (size_t)n;
		}
		rounds(1);
		drain(fd);
	}
}

static void
ask(int fd, const char *line)
{
	heard = 0;
	say(fd, line, strlen(line));
	for (int i = 0; i < 1000 && !heard; i++) {
		rounds(1);
		drain(fd);
	}
	if (heard)
		return;
	abort(); /* no answer */
}

static void
command(void)
{
	static const char start[] =
		"{\"op\":\"exec\",\"argv\":[\"cat\"],\"stdin\":true,\"detach\":true}\n";
	struct agent_exit end;
	const char *message;
	unsigned long long number;
	struct exec *x = id ? exec_find(id) : NULL;

	/* A signal among the input may have ended it. */
	if (x && exec_ended(x, &end, &message)) {
		exec_taken(x);
		x = NULL;
	}
	if (x && exec_stdin_state(x).closed) {
		exec_signal(x, SIGKILL, NULL);
		x = NULL;
	}
	if (!x) {
		int fd = dial();

		ask(fd, start);
		close(fd);
		/* None where there are too many: those before are still ending. */
		if (sscanf(answer, "{\"ok\":true,\"id\":\"e%llu\"", &number) == 1)
			id = number;
		rounds(2);
	}
}

/* A program that listens; the port is found once. */
static int listener = -1;
static uint16_t port;

static void
listens(void)
{
	struct sockaddr_in a = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);

	if (listener >= 0)
		return;
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (bind(listener, (struct sockaddr *)&a, len) || listen(listener, 16) ||
		getsockname(listener, (struct sockaddr *)&a, &len))
		abort();
	port = ntohs(a.sin_port);
}

/* A put is a process of its own: what that does, here. The first piece came together with
 * the request, and the host is gone after the last. */
static void
put(const uint8_t *data, size_t size, size_t cut)
{
	struct tar_unpack_opts opts = {
		.dest = put_folder, .keep_setid = true, .sync = true};
	int fd[2], big = 1 << 20;
	struct tar_unpack *u;
	struct err e = {0};

	if (cut > size)
		cut = size;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) ||
		tar_unpack_open(&opts, &u, &e))
		abort();
	setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	if (send(fd[0], data + cut, size - cut, MSG_NOSIGNAL | MSG_DONTWAIT) ==
		(ssize_t)(size - cut)) {
		shutdown(fd[0], SHUT_WR);
		put_serve(fd[1], u, data, cut);
	}
	tar_unpack_close(u);
	close(fd[0]);
	close(fd[1]);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool has_spawn;
	int fd, n = 0, program = -1;
	struct err e;
	char line[200];
	size_t cut;
	struct dirent *de;
	DIR *d;

	if (size < 2)
		return 0;
	/* libFuzzer has its handlers by now, which no command's child must run. */
	if (!has_spawn && spawn_init(&e))
		abort();
	has_spawn = true;
	cut = data[1] ? data[1] : 65536;
	mkdir(folder, 0700);
	mkdir(put_folder, 0700);
	if (data[0] & 2) {
		listens();
		snprintf(line, sizeof(line), "{\"op\":\"dial\",\"port\":%u}\n", port);
	} else if (data[0] & 1) {
		command();
		snprintf(line, sizeof(line),
			"{\"op\":\"attach\",\"id\":\"e%llu\",\"stdin\":true}\n",
			(unsigned long long)id);
	} else {
		put(data + 2, size - 2, cut);
		size = 2;
		snprintf(line, sizeof(line), "{\"op\":\"ping\"}\n");
	}
	fd = dial();
	ask(fd, line);
	if (data[0] & 2) {
		program = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (program < 0 || write(program, "hello", 5) != 5)
			abort();
		if (data[0] & 4)
			shutdown(program, SHUT_WR);
	}
	for (size_t at = 2; at < size; at += cut) {
		say(fd, data + at, size - at < cut ? size - at : cut);
		rounds(1);
		drain(fd);
		if (program >= 0)
			drain(program);
	}
	close(fd);
	rounds(3);
	if (program >= 0)
		close(program);
	rounds(2);

	d = opendir(folder);
	while (d && (de = readdir(d)))
		n += de->d_name[0] != '.' && strcmp(de->d_name, "put") != 0;
	if (d)
		closedir(d);
	if (n)
		abort(); /* written outside */
	io_remove_tree(folder, NULL);
	fd = dial();
	ask(fd, "{\"op\":\"ping\"}\n");
	close(fd);
	rounds(2);
	return 0;
}
