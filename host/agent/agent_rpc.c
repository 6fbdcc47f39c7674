#include "host/agent/agent_rpc.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_link.h"

/* One command follows that long; a follower whose host is gone is gone with it. */
#define PART_MS "25000"
/* A part that says nothing for longer than that hangs. */
#define PART_TIMEOUT_MS 60000
#define SAID_MAX 400
#define HEAD_MAX 256
/* How long a guest that was there may be away. */
#define AWAY_NS 120000000000ull
#define AGAIN_MS 200

struct call {
	char *out; /* owned */
	size_t len, cap, max;
	struct rpc_frames *frames;
	char said[SAID_MAX + 1]; /* the beginning of stderr */
	size_t said_len;
	int wake_fd;
	struct err *e;
};

static int
on_output(void *ctx, int stream, const void *buf, size_t len)
{
	struct call *c = ctx;

	if (stream == 2) {
		if (len > SAID_MAX - c->said_len)
			len = SAID_MAX - c->said_len;
		memcpy(c->said + c->said_len, buf, len);
		c->said_len += len;
		return 0;
	}
	if (c->frames)
		return rpc_frames_feed(c->frames, buf, len, c->e);
	if (len > c->max - c->len)
		return err_set(
			c->e, -EFBIG, "the guest answers more than %zu bytes", c->max);
	if (c->len + len + 1 > c->cap) {
		size_t cap =
			2 * c->cap > c->len + len + 1 ? 2 * c->cap : c->len + len + 4096;
		char *bigger = realloc(c->out, cap);

		if (!bigger)
			return err_sys(c->e, -ENOMEM, "the guest's answer");
		c->out = bigger;
		c->cap = cap;
	}
	memcpy(c->out + c->len, buf, len);
	c->len += len;
	return 0;
}

static int
on_wake(void *ctx, struct agent_session *session)
{
	struct call *c = ctx;
	struct pollfd p = {.fd = c->wake_fd, .events = POLLIN};

	(void)session;
	if (c->wake_fd >= 0 && poll(&p, 1, 0) > 0)
		return err_set(c->e, -ECANCELED, "interrupted");
	return err_set(c->e, -ETIMEDOUT, "the guest did not answer in time");
}

int
agent_command_failed(int status, const char *said, size_t len, struct err *e)
{
	static const int codes[] = {[EXIT_USAGE] = -EINVAL,
		[EXIT_NOT_FOUND] = -ENOENT,
		[EXIT_CONFLICT] = -EBUSY,
		[EXIT_REFUSED] = -EPERM,
		[EXIT_TIMED_OUT] = -ETIMEDOUT,
		[EXIT_CANCELLED] = -ECANCELED};
	static const char self[] = "pando-agent: ";
	char plain[SAID_MAX + 1];
	int code = -EIO;

	if (status >= 0 && (size_t)status < sizeof(codes) / sizeof(codes[0]) &&
		codes[status])
		code = codes[status];
	if (len >= sizeof(self) - 1 && memcmp(said, self, sizeof(self) - 1) == 0) {
		said += sizeof(self) - 1;
		len -= sizeof(self) - 1;
	}
	while (len && (said[len - 1] == '\n' || said[len - 1] == ' '))
		len--;
	agent_text(plain, sizeof(plain), said, len);
	if (len)
		return err_set(e, code, "%s", plain);
	return err_set(e, code, "the guest's command ended with status %d", status);
}

static int
run(const char *socket_path, const char *const *words, int stdin_fd, int timeout_ms,
	struct call *c, struct err *e)
{
	const char *argv[24] = {AGENT_ITSELF};
	struct agent_exec_req req = {.argv = argv};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result result = {0};
	cleanup_close int timer =
		timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	cleanup_close int both = -1;
	struct err why = {0};
	size_t n = 1;
	int r;

	while (*words && n + 1 < sizeof(argv) / sizeof(argv[0]))
		argv[n++] = *words++;
	if (timer < 0)
		return err_sys(e, -errno, "a timer");
	if (timeout_ms) {
		struct itimerspec at = {.it_value = {timeout_ms / 1000,
						(long)(timeout_ms % 1000) * 1000000}};

		timerfd_settime(timer, 0, &at, NULL);
	}
	c->e = &why;
	io.wake_fd = timer;
	if (c->wake_fd >= 0) {
		struct epoll_event ev = {.events = EPOLLIN};

		/* Readable when either is. */
		both = epoll_create1(EPOLL_CLOEXEC);
		if (both < 0 || epoll_ctl(both, EPOLL_CTL_ADD, timer, &ev) ||
			epoll_ctl(both, EPOLL_CTL_ADD, c->wake_fd, &ev))
			return err_sys(e, -errno, "waiting for two at once");
		io.wake_fd = both;
	}
	io.wake = on_wake;
	io.output = on_output;
	io.ctx = c;
	io.stdin_fd = stdin_fd;
	r = agent_exec(socket_path, &req, &io, &result, e);
	if (r < 0)
		return why.code == r ? err_set(e, r, "%s", why.msg) : r;
	if (result.kind == AGENT_EXITED && result.value == 0)
		return 0;
	return agent_command_failed(agent_exit_status(&result), c->said, c->said_len, e);
}

/* Input as a file: the guest's command takes it in its own time. */
static int
input_file(const void *input, size_t len, struct err *e)
{
	int fd = memfd_create("input", MFD_CLOEXEC), r;

	if (fd < 0)
		return err_sys(e, -errno, "a file in memory");
	r = io_pwrite_full(fd, input, len, 0);
	if (r < 0) {
		close(fd);
		return err_sys(e, r, "a file in memory");
	}
	return fd;
}

int
agent_rpc_call(const char *socket_path, const char *const *words, const void *input,
	size_t input_len, size_t max, int timeout_ms, int wake_fd, char **ret,
	struct err *e)
{
	struct call c = {.max = max, .wake_fd = wake_fd};
	cleanup_close int in = -1;
	int r = 0;

	if (input)
		r = in = input_file(input, input_len, e);
	if (r >= 0)
		r = run(socket_path, words, in, timeout_ms, &c, e);
	if (r == 0 && !c.out && !(c.out = malloc(1)))
		r = err_sys(e, -ENOMEM, "the guest's answer");
	if (r < 0) {
		free(c.out);
		return r;
	}
	c.out[c.len] = 0;
	*ret = c.out;
	return 0;
}

/*
 * Frames.
 */

static int
nonsense(struct err *e)
{
	return err_set(e, -EPROTO, "the guest says what no follower says");
}

static bool
name_or_dash(const char *word, char *dst, size_t len)
{
	if (strcmp(word, "-") == 0) {
		dst[0] = 0;
		return true;
	}
	if (strlen(word) != len || strspn(word, "0123456789abcdef") != len)
		return false;
	memcpy(dst, word, len + 1);
	return true;
}

static int
take_head(struct rpc_frames *f, const char *head, struct err *e)
{
	char vm[16], generation[40], end;
	uint64_t a, b;
	unsigned flags, flag;
	int at = 0;

	if (f->over)
		return nonsense(e);
	switch (head[0]) {
	case 'L': {
		struct rpc_line l = {0};

		if (sscanf(head,
			    "L %" SCNu64 " %" SCNu64 " %u %u %" SCNu64 " %13s %33s%c",
			    &l.number, &l.offset, &l.len, &flags, &l.time_ms, vm,
			    generation, &end) != 7 ||
			!l.len || l.len > RPC_LINE_MAX || flags > 3 ||
			l.offset < f->next || l.offset > UINT64_MAX - l.len ||
			!name_or_dash(vm, l.vm, 12) ||
			!name_or_dash(generation, l.generation, 32))
			return nonsense(e);
		l.piece = flags & 1;
		l.torn = flags & 2;
		f->line = l;
		f->in_line = true;
		return 0;
	}
	case 'G':
		if (sscanf(head, "G %" SCNu64 " %" SCNu64 "%c", &a, &b, &end) != 2 ||
			b < a || b < f->next)
			return nonsense(e);
		if (f->on_gap)
			f->on_gap(f->ctx, a, b);
		f->next = b;
		return 0;
	case 'D':
		if (sscanf(head, "D %" SCNu64 " %u %n", &a, &flag, &at) != 2 ||
			flag > 1 || !at || a < f->next ||
			strlen(head + at) >= sizeof(f->reason))
			return nonsense(e);
		f->done = f->over = true;
		f->failed = flag;
		f->next = a;
		agent_text(f->reason, sizeof(f->reason), head + at, strlen(head + at));
		return 0;
	case 'E':
		if (sscanf(head, "E %" SCNu64 " %u%c", &a, &flag, &end) != 2 ||
			flag > 1 || a < f->next)
			return nonsense(e);
		f->over = true;
		f->begun = flag;
		f->next = a;
		return 0;
	default:
		return nonsense(e);
	}
}

static int
take_line(struct rpc_frames *f, const char *text, struct err *e)
{
	int r;

	/* What it says of itself: one LF, at its end, where it is a whole line. */
	if (!f->line.piece && text[f->line.len - 1] != '\n')
		return nonsense(e);
	if (memchr(text, '\n', f->line.len - 1))
		return nonsense(e);
	f->line.text = text;
	r = f->on_line ? f->on_line(f->ctx, &f->line) : 0;
	f->line.text = NULL;
	if (r < 0)
		return err_set(e, r, "ended by its reader");
	f->next = f->line.offset + f->line.len;
	f->in_line = false;
	return 0;
}

static int
keep(struct rpc_frames *f, const char *at, size_t len, struct err *e)
{
	if (!len)
		return 0;
	if (f->len + len > f->cap) {
		size_t cap = f->in_line ? f->line.len : 4096;
		char *bigger;

		if (cap < f->len + len)
			cap = f->len + len;
		bigger = realloc(f->buf, cap);
		if (!bigger)
			return err_sys(e, -ENOMEM, "a line of %u bytes", f->line.len);
		f->buf = bigger;
		f->cap = cap;
	}
	memcpy(f->buf + f->len, at, len);
	f->len += len;
	return 0;
}

int
rpc_frames_feed(struct rpc_frames *f, const void *buf, size_t len, struct err *e)
{
	const char *at = buf, *end = at + len;
	int r = 0;

	while (r == 0 && at < end) {
		if (f->in_line) {
			size_t want = f->line.len - f->len;
			size_t have =
				(size_t)(end - at) < want ? (size_t)(end - at) : want;

			if (!f->len && have == want) {
				r = take_line(f, at, e);
			} else {
				r = keep(f, at, have, e);
				if (r == 0 && f->len == f->line.len) {
					r = take_line(f, f->buf, e);
					f->len = 0;
				}
			}
			at += have;
		} else {
			const char *lf = memchr(at, '\n', (size_t)(end - at));
			size_t have = (size_t)((lf ? lf : end) - at);
			char head[HEAD_MAX];

			if (f->len + have >= HEAD_MAX)
				return nonsense(e);
			r = keep(f, at, have, e);
			at += have + (lf ? 1 : 0);
			if (r < 0 || !lf)
				continue;
			if (f->len)
				memcpy(head, f->buf, f->len);
			head[f->len] = 0;
			r = strlen(head) == f->len ? take_head(f, head, e) : nonsense(e);
			f->len = 0;
		}
	}
	return r;
}

void
rpc_frames_done(struct rpc_frames *f)
{
	free(f->buf);
	f->buf = NULL;
}

/*
 * Following.
 */

static bool
comes_back(int r)
{
	return r == -EPIPE || r == -ECONNREFUSED || r == -ECONNRESET || r == -ETIMEDOUT ||
	       r == -EAGAIN;
}

static int
part(const char *socket_path, const struct agent_rpc_follow *spec, bool find_end,
	struct rpc_frames *f, struct err *e)
{
	struct call c = {.wake_fd = spec->wake_fd, .frames = f};
	const char *words[16] = {"rpc", "follow", "--framed", "--for-ms",
		spec->once || find_end ? "0" : PART_MS, "--stream",
		spec->stream ? spec->stream : "out", "--from"};
	char from[24], root[300];
	size_t n = 8;
	int r;

	snprintf(from, sizeof(from), "%" PRIu64, f->next);
	words[n++] = find_end ? "end" : from;
	if (spec->until_done && !find_end)
		words[n++] = "--until-done";
	if (f->begun)
		words[n++] = "--begun";
	if (spec->root) {
		snprintf(root, sizeof(root), "--root=%s", spec->root);
		words[n++] = root;
	}
	if (spec->name)
		words[n++] = spec->name;
	f->over = f->in_line = false;
	f->len = 0;
	r = run(socket_path, words, -1, PART_TIMEOUT_MS, &c, e);
	/* Its end is an E or a D: without, it was cut off. */
	if (r == 0 && !f->over)
		return err_set(e, -EPIPE, "the follower in the guest was cut off");
	return r;
}

int
agent_rpc_follow(const char *socket_path, const struct agent_rpc_follow *spec,
	struct agent_rpc_followed *ret, struct err *e)
{
	cleanup_rpc_frames struct rpc_frames f = {.next = spec->from,
		.on_line = spec->on_line,
		.on_gap = spec->on_gap,
		.ctx = spec->ctx};
	uint64_t away_since = 0, was;
	/* Where the end is is asked first, so that nothing is passed over when the
	 * connection breaks. */
	bool find_end = spec->from_end;
	int r;

	if (find_end)
		f.next = 0;
	for (;;) {
		struct err why = {0};
		struct pollfd p = {.fd = spec->wake_fd, .events = POLLIN};

		was = f.next;
		r = part(socket_path, spec, find_end, &f, &why);
		if (f.next != was || r == 0)
			away_since = 0;
		if (r == 0)
			find_end = false;
		if (r == 0 && (f.done || spec->once))
			break;
		if (r == 0)
			continue;
		if (!comes_back(r) || spec->once) {
			r = err_set(e, r, "%s", why.msg);
			break;
		}
		if (!away_since)
			away_since = io_now_ns();
		else if (io_now_ns() - away_since > AWAY_NS) {
			r = err_set(e, r, "%s", why.msg);
			break;
		}
		if (spec->on_break)
			spec->on_break(spec->ctx, &why);
		if (poll(&p, 1, AGAIN_MS) > 0) {
			r = err_set(e, -ECANCELED, "interrupted");
			break;
		}
	}
	ret->next = f.next;
	ret->failed = f.failed;
	snprintf(ret->reason, sizeof(ret->reason), "%s",
		f.done && strcmp(f.reason, "-") != 0 ? f.reason : "");
	return r;
}
