#include "guest-agent/server/put.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/agent_frame.h"
#include "guest-agent/system/loop.h"

/* For a host that does not take the last word, or does not close after it. */
#define PATIENCE_S 60

static struct running {
	struct source pidfd;
	bool used;
} running[PUTS_MAX];

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

/*
 * The process.
 */

static int
send_all(int fd, const void *buf, size_t len)
{
	const char *at = buf;

	while (len) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

static void
say_end(int fd, const struct tar_stats *s)
{
	struct agent_frame_hdr h =
		agent_frame_hdr(AGENT_END, 0, sizeof(struct agent_end));
	struct agent_end end = {s->files, s->folders, s->links, s->skipped, s->bytes};

	if (send_all(fd, &h, sizeof(h)) == 0)
		send_all(fd, &end, sizeof(end));
}

static void
say_error(int fd, const struct err *e)
{
	struct agent_error head = {.code = e->code};
	size_t len = strlen(e->msg);
	struct agent_frame_hdr h =
		agent_frame_hdr(AGENT_ERROR, 0, (uint32_t)(sizeof(head) + len));

	if (send_all(fd, &h, sizeof(h)) == 0 && send_all(fd, &head, sizeof(head)) == 0)
		send_all(fd, e->msg, len);
}

/* The frames at buf: how far they went, in *ret_used. 1 after the end. */
static int
take_frames(struct tar_unpack *u, const char *buf, size_t len, size_t *ret_used,
	struct err *e)
{
	struct agent_frame f;
	size_t used;
	int r;

	*ret_used = 0;
	while ((r = agent_frame_next(buf + *ret_used, len - *ret_used, AGENT_FROM_HOST,
			&f, &used, e)) == 1) {
		*ret_used += used;
		if (f.type == AGENT_END) {
			r = tar_unpack_finish(u, e);
			return r ? r : 1;
		}
		if (f.type != AGENT_DATA)
			return err_set(e, -EPROTO, "frame type %u in a put", f.type);
		r = tar_unpack_feed(u, f.payload, f.len, e);
		if (r)
			return r;
	}
	return r;
}

/* 1 at the end, 0 when the host has gone. */
static int
take_stream(int fd, struct tar_unpack *u, const void *rx, size_t len, struct err *e)
{
	size_t cap = 2 * AGENT_FRAME_WHOLE > len ? 2 * AGENT_FRAME_WHOLE : len, used;
	cleanup_free char *buf = malloc(cap);
	int r;

	if (!buf)
		return err_sys(e, -ENOMEM, "receiving");
	memcpy(buf, rx, len);
	while (1) {
		ssize_t n;

		r = take_frames(u, buf, len, &used, e);
		if (r)
			return r;
		memmove(buf, buf + used, len - used);
		len -= used;
		n = recv(fd, buf + len, cap - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		len += (size_t)n;
	}
}

void
put_serve(int fd, struct tar_unpack *u, const void *rx, size_t len)
{
	static const char ok[] = "{\"ok\":true}\n";
	struct timeval patience = {.tv_sec = PATIENCE_S};
	struct err e = {0};
	char rest[4096];
	ssize_t n;
	int r;

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	r = send_all(fd, ok, strlen(ok)) ? 0 : take_stream(fd, u, rx, len, &e);
	if (!r)
		return;
	if (r == 1)
		say_end(fd, tar_unpack_stats(u));
	else
		say_error(fd, &e);
	/* The host closes first: what it still sends must not make the connection break
	 * before it has read the last word. */
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	do
		n = recv(fd, rest, sizeof(rest), 0);
	while (n > 0 || (n < 0 && errno == EINTR));
}

/*
 * The agent's side.
 */

static void
ended(struct source *s, uint32_t events)
{
	struct running *x = container_of(s, struct running, pidfd);
	siginfo_t si = {0};

	(void)events;
	if (waitid(P_PIDFD, (id_t)s->fd, &si, WEXITED | WNOHANG) || !si.si_pid)
		return;
	source_close(s);
	x->used = false;
}

static void __attribute__((noreturn))
child(int fd, struct tar_unpack *u, struct iovec rx, struct iovec tx)
{
	sigset_t none;

	/* Nothing of the agent's is held here: neither connections nor commands' pipes. */
	if (dup2(fd, 3) < 0 || syscall(SYS_close_range, 4, ~0u, 0))
		_exit(1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	prctl(PR_SET_NAME, "pando-put");
	if (io_set_nonblock(3, 0) == 0 && send_all(3, tx.iov_base, tx.iov_len) == 0)
		put_serve(3, u, rx.iov_base, rx.iov_len);
	tar_unpack_close(u);
	_exit(0);
}

int
put_start(int fd, struct tar_unpack *u, struct iovec rx, struct iovec tx, struct err *e)
{
	struct running *x = running;
	int pidfd;
	pid_t pid;

	while (x < running + PUTS_MAX && x->used)
		x++;
	if (x == running + PUTS_MAX)
		return err_set(e, -EAGAIN,
			"%d copies into this guest run already; wait for one to end",
			PUTS_MAX);
	pid = fork();
	if (pid < 0)
		return err_sys(e, -errno, "a process for the copy");
	if (!pid)
		child(fd, u, rx, tx);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd >= 0) {
		source_init(&x->pidfd, pidfd, ended);
		if (source_wait(&x->pidfd, EPOLLIN) == 0) {
			x->used = true;
			return 0;
		}
		source_close(&x->pidfd);
	}
	kill(pid, SIGKILL);
	waitid(P_PID, (id_t)pid, NULL, WEXITED);
	return err_sys(e, -ENOMEM, "a process for the copy");
}
