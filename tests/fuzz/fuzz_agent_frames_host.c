/*
 * Frames as the host takes them from a guest, which may be hostile: during a command, a
 * get, an identity handshake and a dial. The first byte chooses (the second is kept for the guest's
 * side, so that both corpora are alike). Success needs an exit record; nothing may be
 * written beside the get's folder; output may not exceed what came.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* The loops are static there; the dialling before them is none of a guest's frames. */
#include "common/wire/tar.h"
#include "host/agent/agent_dial.c"
#include "host/agent/agent_exec.c"
#include "host/agent/agent_handshake.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static char folder[64], get_folder[96];

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	/* Made and removed for each input: libFuzzer ends without a chance to clean up.
	 */
	snprintf(folder, sizeof(folder), "/tmp/pando-fuzz-client-%d", (int)getpid());
	snprintf(get_folder, sizeof(get_folder), "%s/get", folder);
	return 0;
}

static int
count(void *ctx, int stream, const void *buf, size_t len)
{
	size_t *total = ctx;
	volatile uint8_t sum = 0;

	if (stream != 1 && stream != 2)
		abort();
	for (size_t i = 0; i < len; i++)
		sum = (uint8_t)(sum + ((const uint8_t *)buf)[i]);
	*total += len;
	return 0;
}

static void
in_command(int fd, size_t size)
{
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result result = {0};
	struct agent_session *s = calloc(1, sizeof(*s));
	struct err e = {0};
	size_t total = 0;
	int r;

	io.output = count;
	io.ctx = &total;
	s->io = &io;
	s->result = &result;
	s->link = (struct agent_link)AGENT_LINK_INIT;
	s->link.fd = fd;
	s->out_stream = -1;
	r = pump(s, &e);
	if (r == 0 ||
		(r == 1 && (result.kind < AGENT_EXITED ||
				   result.kind > AGENT_SPAWN_FAILED)) ||
		(r < 0 && (e.code != r || !*e.msg)) || total > size)
		abort();
	agent_link_done(&s->link);
	free(s);
}

/* of_folder: what was asked for is a folder's contents, whose names are the guest's to
 * choose. */
static void
in_get(int fd, bool of_folder)
{
	struct agent_link l = AGENT_LINK_INIT;
	struct tar_unpack_opts opts = {
		.dest = get_folder, .name = of_folder ? "." : "t", .untrusted = true};
	struct tar_unpack *u;
	struct err e = {0};
	struct dirent *de;
	DIR *d;
	int r = 0, n = 0;

	l.fd = fd;
	mkdir(folder, 0700);
	mkdir(get_folder, 0700);
	if (tar_unpack_open(&opts, &u, &e))
		abort();
	while (r >= 0 && !l.eof) {
		struct agent_frame f;

		if (agent_link_fill(&l, &e))
			break;
		while ((r = agent_link_frame(&l, &f, &e)) == 1) {
			if (f.type == AGENT_DATA &&
				(r = tar_unpack_feed(u, f.payload, f.len, &e)) < 0)
				break;
			if (f.type == AGENT_ERROR && agent_link_error(&f, &e) >= 0)
				abort();
			if (f.type == AGENT_END) {
				r = tar_unpack_finish(u, &e);
				if (r <= 0) {
					r = -1;
					break;
				}
			}
		}
	}
	tar_unpack_close(u);
	agent_link_done(&l);
	d = opendir(folder);
	while (d && (de = readdir(d)))
		n += de->d_name[0] != '.' && strcmp(de->d_name, "get") != 0;
	if (d)
		closedir(d);
	if (n)
		abort(); /* written outside */
	d = opendir(get_folder);
	while (d && (de = readdir(d)))
		n += strcmp(de->d_name, ".") != 0 && strcmp(de->d_name, "..") != 0 &&
		     strcmp(de->d_name, "t") != 0 && !of_folder;
	if (d)
		closedir(d);
	if (n)
		abort(); /* another name than the one that was asked for */
	io_remove_tree(folder, NULL);
}

static void
in_handshake(int fd)
{
	static const uint8_t generation[16] = {0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11,
		0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11};
	struct agent_handshake h = {.id = "0a1b2c3d4e5f", .generation = generation};
	struct agent_link l = AGENT_LINK_INIT;
	struct pace pace = {.began_ns = io_now_ns(), .limit_ns = 1000000000u};
	struct agent_ack ack = {0};
	struct err e = {0};
	bool failed = false;
	int r;

	l.fd = fd;
	pace.step_ns = pace.began_ns;
	r = handshake_frames(&l, &h, &pace, &failed, &ack, &e);
	if (r > 0 || (r < 0 && (e.code != r || !*e.msg)) ||
		strlen(pace.step) > AGENT_STEP_NAME_MAX ||
		(r == 0 && ack.host_key[0] && !agent_is_host_key(ack.host_key)) ||
		ack.n_steps > AGENT_STEPS_MAX)
		abort();
	agent_link_done(&l);
}

/* The client is a socket pair whose other end has said its end already, and reads all.
 * What it gets may not exceed what came, nor success come without the agent's end. */
static void
in_dial(int fd, size_t size)
{
	struct carry c = {.link = AGENT_LINK_INIT};
	char buf[4096], tx[sizeof(struct agent_frame_hdr) + PIECE];
	int client[2], big = 1 << 20, r;
	struct err e = {0};
	size_t got = 0;
	ssize_t n;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, client))
		abort();
	setsockopt(client[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	shutdown(client[1], SHUT_WR);
	c.link.fd = fd;
	c.fd = client[0];
	c.tx = tx;
	r = carry(&c, -1, &e);
	if (r == 0 || r > 1 || (r < 0 && (e.code != r || !*e.msg)) ||
		(r == 1 && (!c.down_end || !c.up_end)))
		abort();
	while ((n = recv(client[1], buf, sizeof(buf), MSG_DONTWAIT)) > 0)
		got += (size_t)n;
	if (got > size || (r == 1 && got != c.bytes))
		abort();
	agent_link_done(&c.link);
	close(client[0]);
	close(client[1]);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd[2], big = 1 << 20;

	if (size < 2 || size > 200000)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
		abort();
	setsockopt(fd[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	if (send(fd[0], data + 2, size - 2, MSG_NOSIGNAL | MSG_DONTWAIT) !=
		(ssize_t)size - 2) {
		close(fd[0]);
		close(fd[1]);
		return 0;
	}
	shutdown(fd[0], SHUT_WR);
	if (data[0] & 4)
		in_dial(fd[1], size);
	else if (data[0] & 2)
		in_handshake(fd[1]);
	else if (data[0] & 1)
		in_command(fd[1], size);
	else
		in_get(fd[1], data[0] & 8);
	close(fd[0]);
	return 0;
}
