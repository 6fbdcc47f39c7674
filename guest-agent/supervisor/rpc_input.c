#include "guest-agent/supervisor/rpc_input.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "common/wire/json_line.h"

#define CHUNK (64u * 1024u)
#define AGAIN_NS 100000000ull
/* The supervisor waits for nobody: the lock is tried, and tried again later. */
#define LOCK_MS 5
#define MOVES_A_TURN 16

struct pending {
	struct pending *next;
	size_t len;
	char line[];
};

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

static void
refuse(struct rpc_input *in, const char *why)
{
	static struct log_limit limit = {.burst = 5};

	in->refused++;
	if (log_allowed(&limit))
		log_warn("a line from the FIFO was thrown away: %s", why);
}

/* What waits for the spool; true when nothing does any more. */
static bool
put_pending(struct rpc_input *in)
{
	struct err e = {0};

	while (in->pending) {
		struct pending *p = in->pending;
		int r = spool_append(in->dir, p->line, p->len, LOCK_MS, NULL, &e);

		if (r == -E2BIG) {
			refuse(in, e.msg);
		} else if (r) {
			timer_set(&in->again, loop_now_ns() + AGAIN_NS);
			return false;
		}
		in->pending = p->next;
		if (!in->pending)
			in->pending_end = &in->pending;
		free(p);
	}
	return true;
}

void
input_say(struct rpc_input *in, const char *line, size_t len)
{
	struct pending *p = malloc(sizeof(*p) + len);

	if (!p) {
		log_err("no memory for a line of %zu bytes", len);
		return;
	}
	p->next = NULL;
	p->len = len;
	memcpy(p->line, line, len);
	*in->pending_end = p;
	in->pending_end = &p->next;
	put_pending(in);
}

static void
fifo_line(struct rpc_input *in, const char *line, size_t len)
{
	struct err e = {0};

	if (!len)
		return;
	if (*in->protocol != RPC_RAW && json_line_check(line, len, &e)) {
		refuse(in, e.msg);
		return;
	}
	input_say(in, line, len);
}

static bool
buffer(struct rpc_input *in, const char *at, size_t len)
{
	if (in->discards)
		return true;
	if (in->len + len > SPOOL_LINE_MAX) {
		refuse(in, "it has more than 16 MiB");
		in->discards = true;
		in->len = 0;
		return true;
	}
	if (in->len + len > in->cap) {
		size_t cap = in->cap ? in->cap : CHUNK;
		char *bigger;

		while (cap < in->len + len)
			cap *= 2;
		bigger = realloc(in->buf, cap);
		if (!bigger)
			return false;
		in->buf = bigger;
		in->cap = cap;
	}
	memcpy(in->buf + in->len, at, len);
	in->len += len;
	return true;
}

static void
fifo_bytes(struct rpc_input *in, const char *at, size_t len)
{
	const char *end = at + len, *lf;

	while ((lf = memchr(at, '\n', (size_t)(end - at)))) {
		if (in->discards) {
			in->discards = false;
		} else if (!in->len) {
			fifo_line(in, at, (size_t)(lf - at));
		} else if (buffer(in, at, (size_t)(lf - at))) {
			if (!in->discards)
				fifo_line(in, in->buf, in->len);
			in->discards = false;
		}
		in->len = 0;
		at = lf + 1;
	}
	if (at < end && !buffer(in, at, (size_t)(end - at))) {
		refuse(in, "no memory");
		in->discards = true;
		in->len = 0;
	}
	if (!in->len && in->cap > CHUNK) {
		free(in->buf);
		in->buf = NULL;
		in->cap = 0;
	}
}

static void
fifo_ready(struct source *s, uint32_t events)
{
	struct rpc_input *in = container_of(s, struct rpc_input, fifo);
	static char chunk[CHUNK];
	ssize_t n;

	(void)events;
	if (in->pending) {
		/* Its writers wait, too. */
		source_wait(&in->fifo, 0);
		return;
	}
	n = read(s->fd, chunk, sizeof(chunk));
	if (n > 0)
		fifo_bytes(in, chunk, (size_t)n);
}

static void
try_again(struct timer *t)
{
	struct rpc_input *in = container_of(t, struct rpc_input, again);

	if (put_pending(in))
		source_wait(&in->fifo, EPOLLIN);
	input_forward(in);
}

/* One move; the count, 0: nothing there, -errno. */
static ssize_t
move(struct rpc_input *in, uint64_t at, uint64_t to)
{
	static bool no_splice;
	size_t max = to - at < CHUNK ? (size_t)(to - at) : CHUNK;
	char buf[4096];
	ssize_t n;

	if (!no_splice) {
		/* The file's own position goes on with it, in one step with the move. */
		n = splice(in->spool, NULL, in->pipe.fd, NULL, max, SPLICE_F_NONBLOCK);
		if (n >= 0)
			return n;
		if (errno != EINVAL)
			return -errno;
		no_splice = true;
	}
	if (max > sizeof(buf))
		max = sizeof(buf);
	if (io_pread_full(in->spool, buf, max, at))
		return -EIO;
	n = write(in->pipe.fd, buf, max);
	if (n < 0)
		return -errno;
	return lseek(in->spool, (off_t)(at + (uint64_t)n), SEEK_SET) < 0 ? -errno : n;
}

void
input_forward(struct rpc_input *in)
{
	struct spool_state s;
	off_t at;
	bool moved = false;

	if (in->spool < 0 || in->pipe.fd < 0)
		return;
	at = lseek(in->spool, 0, SEEK_CUR);
	if (at < 0 || io_pread_full(in->state_fd, &s, sizeof(s), 0))
		return;
	for (int turn = 0; (uint64_t)at < s.committed; turn++) {
		ssize_t n;

		if (turn == MOVES_A_TURN) {
			deferred_queue(&in->more);
			break;
		}
		n = move(in, (uint64_t)at, s.committed);
		if (n == -EINTR)
			continue;
		if (n == -EAGAIN) {
			source_wait(&in->pipe, EPOLLOUT);
			break;
		}
		if (n <= 0) {
			/* EPIPE: the program reads no more. What waits is for the next
			 * one. */
			source_close(&in->pipe);
			break;
		}
		at += n;
		moved = true;
	}
	if ((uint64_t)at >= s.committed && in->pipe.fd >= 0)
		source_wait(&in->pipe, 0);
	if (!moved)
		return;
	spool_set_forwarded(in->dir, (uint64_t)at);
	/* Through a descriptor of our own: the held one is for reading. */
	{
		int fd = openat(in->dir, "spool", O_RDWR | O_CLOEXEC);

		if (fd >= 0) {
			spool_punch(fd, &in->punched, (uint64_t)at);
			close(fd);
		}
	}
	in->fed(in);
}

static void
forward_more(struct deferred *c)
{
	input_forward(container_of(c, struct rpc_input, more));
}

static void
pipe_ready(struct source *s, uint32_t events)
{
	struct rpc_input *in = container_of(s, struct rpc_input, pipe);

	if (events & EPOLLERR)
		source_close(s);
	else
		input_forward(in);
}

int
input_init(struct rpc_input *in, int dir, const enum rpc_protocol *protocol,
	void (*fed)(struct rpc_input *in), struct err *e)
{
	int fifo, r;

	memset(in, 0, sizeof(*in));
	in->dir = dir;
	in->protocol = protocol;
	in->fed = fed;
	in->spool = -1;
	in->pending_end = &in->pending;
	in->again.fire = try_again;
	in->more.run = forward_more;
	source_init(&in->pipe, -1, pipe_ready);
	in->state_fd = openat(dir, "spool.state", O_RDONLY | O_CLOEXEC);
	if (in->state_fd < 0)
		return err_sys(e, -errno, "spool.state");
	/* Both ways: a FIFO has an end only when its last writer goes. */
	fifo = openat(dir, "in", O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
	if (fifo < 0)
		return err_sys(e, -errno, "the FIFO");
	source_init(&in->fifo, fifo, fifo_ready);
	r = source_wait(&in->fifo, EPOLLIN);
	return r ? err_sys(e, r, "the FIFO") : 0;
}

void
input_attach(struct rpc_input *in, int pipe_fd, int spool)
{
	source_init(&in->pipe, pipe_fd, pipe_ready);
	in->spool = spool;
	input_forward(in);
}

int
input_detach(struct rpc_input *in)
{
	int fd = in->pipe.fd;

	source_wait(&in->pipe, 0);
	in->pipe.fd = -1;
	in->spool = -1;
	deferred_drop(&in->more);
	return fd;
}
