/*
 * Execute and attach: one loop that moves stdin in, output out, and obeys the caller's
 * wake. Output that cannot be written now stops the reading of the link, and with it, in
 * the guest, the command.
 */
#include "host/agent/agent_client.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/json_bytes.h"
#include "host/agent/agent_link.h"

/* A command with a time limit must be reported this long after it, else the guest is
 * stuck. */
#define GRACE_MS 15000
/* A VM that is paused is looked at this often. */
#define TICK_MS 200
#define TICK_NS (TICK_MS * UINT64_C(1000000))
/* Words to the guest when the call is given up. */
#define LAST_WORDS_NS 1000000000ull
/* What poll(2) promises of a pipe that is writable. */
#define PIPE_PIECE 4096u

/* How output is written without being held up by it. Its file is shared with others, so
 * O_NONBLOCK is not ours to set. */
enum out_way {
	OUT_WHOLE,  /* never blocks, as a regular file */
	OUT_NOWAIT, /* RWF_NOWAIT, as much as goes: pipes since Linux 6.5, sockets */
	OUT_PIECES, /* what else there is: pieces that poll(2) says there is room for */
};

struct agent_session {
	struct agent_link link;
	const struct agent_exec_io *io;
	struct agent_exec_result *result;
	uint64_t deadline_ns; /* by a clock that stands while the VM is paused; 0: none */
	uint64_t paused_ms;   /* io->paused_ms() when the call began */
	uint64_t held_ns;     /* what that has become more since */
	bool detach;	      /* wanted */

	/* Input. */
	char *tx; /* owned: a frame of input on its way */
	size_t tx_at, tx_len;
	bool stdin_open, eof_to_send;
	uint64_t stdin_sent, stdin_limit;

	/* Control frames, sent between frames of input. */
	char ctl[512];
	size_t ctl_at, ctl_len;

	/* Output. */
	uint64_t expected[2];
	enum out_way way[2];
	int out_stream;	 /* of what is still to be written; -1 */
	const uint8_t *out;
	size_t out_len;
};

static int
out_fd(const struct agent_session *s, int i)
{
	return i ? s->io->stderr_fd : s->io->stdout_fd;
}

static int
queue(struct agent_session *s, uint8_t type, const void *payload, size_t len)
{
	struct agent_frame_hdr h = agent_frame_hdr(type, 0, (uint32_t)len);

	if (s->ctl_at == s->ctl_len)
		s->ctl_at = s->ctl_len = 0;
	if (s->ctl_len + sizeof(h) + len > sizeof(s->ctl))
		return -EAGAIN;
	memcpy(s->ctl + s->ctl_len, &h, sizeof(h));
	if (len)
		memcpy(s->ctl + s->ctl_len + sizeof(h), payload, len);
	s->ctl_len += sizeof(h) + len;
	return 0;
}

int
agent_session_signal(struct agent_session *s, int signo)
{
	uint32_t v = (uint32_t)signo;

	return signo < 1 || signo > 64 ? -EINVAL : queue(s, AGENT_SIGNAL, &v, sizeof(v));
}

int
agent_session_winsize(struct agent_session *s, uint16_t rows, uint16_t cols)
{
	struct agent_winsize ws = {rows, cols};
	const struct agent_frame_hdr h = agent_frame_hdr(AGENT_WINSIZE, 0, sizeof(ws));
	size_t whole = sizeof(h) + sizeof(ws);

	/* In the place of one that still waits: the last size is the one that counts, and
	 * the queue is short. */
	if (s->ctl_len - s->ctl_at >= whole &&
		memcmp(s->ctl + s->ctl_len - whole, &h, sizeof(h)) == 0) {
		memcpy(s->ctl + s->ctl_len - sizeof(ws), &ws, sizeof(ws));
		return 0;
	}
	return queue(s, AGENT_WINSIZE, &ws, sizeof(ws));
}

int
agent_session_detach(struct agent_session *s)
{
	s->detach = true;
	return queue(s, AGENT_DETACH, NULL, 0);
}

static int
call_wake(void *ctx)
{
	struct agent_session *s = ctx;

	return s->io->wake(s->io->ctx, s);
}

/*
 * In.
 */

/* Sends what is pending. 0 also when it must wait. */
static int
push(struct agent_session *s, struct err *e)
{
	while (1) {
		const char *at;
		size_t len;
		ssize_t n;
		bool input = s->tx_at && s->tx_at < s->tx_len; /* a frame is never torn */

		if (!input && s->ctl_at < s->ctl_len) {
			at = s->ctl + s->ctl_at;
			len = s->ctl_len - s->ctl_at;
		} else if (s->tx_at < s->tx_len) {
			input = true;
			at = s->tx + s->tx_at;
			len = s->tx_len - s->tx_at;
		} else {
			return 0;
		}
		n = send(s->link.fd, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0) {
			/* The agent may have said why: read on until its end. */
			if (errno != EPIPE && errno != ECONNRESET)
				return err_sys(e, -errno, "sending to the guest");
			s->tx_at = s->tx_len = s->ctl_at = s->ctl_len = 0;
			s->stdin_open = s->eof_to_send = false;
			return 0;
		}
		if (input)
			s->tx_at += (size_t)n;
		else
			s->ctl_at += (size_t)n;
	}
}

static bool
pending(const struct agent_session *s)
{
	return s->tx_at < s->tx_len || s->ctl_at < s->ctl_len;
}

/* Reads stdin into a frame. */
static int
pull(struct agent_session *s, struct err *e)
{
	struct agent_frame_hdr h;
	uint64_t max = s->stdin_limit - s->stdin_sent;
	bool hooked = s->io->input != NULL;
	char *at = s->tx + sizeof(h);
	ssize_t n;

	if (max > AGENT_FRAME_MAX)
		max = AGENT_FRAME_MAX;
	/* A hook may make one byte more of it. */
	n = read(s->io->stdin_fd, at + hooked, max - hooked);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0)
		return err_sys(e, -errno, "reading stdin");
	s->tx_at = 0;
	if (hooked) {
		bool end = !n;

		n = s->io->input(s->io->ctx, s, at + 1, (size_t)n, at);
		if (n < 0)
			return err_set(e, (int)n, "cancelled");
		if (!n && !end) {
			s->tx_len = 0;
			return push(s, e);
		}
	}
	if (n) {
		h = agent_frame_hdr(AGENT_STDIN, 0, (uint32_t)n);
		s->stdin_sent += (uint64_t)n;
	} else {
		h = agent_frame_hdr(AGENT_STDIN_EOF, 0, 0);
		s->stdin_open = false;
	}
	memcpy(s->tx, &h, sizeof(h));
	s->tx_len = sizeof(h) + (size_t)n;
	return push(s, e);
}

/*
 * Out.
 */

/* The reader of our output is gone: the command hears of it as it would on a pipe of its
 * own. */
static int
write_failed(struct agent_session *s, int stream, int code, struct err *e)
{
	if (code == -EPIPE)
		agent_session_signal(s, SIGPIPE);
	return err_sys(e, code, "writing %s", stream ? "stderr" : "stdout");
}

/* As write(2); EAGAIN also where it would wait. */
static ssize_t
write_some(enum out_way *way, int fd, const void *buf, size_t len)
{
	const struct iovec iov = {(void *)(uintptr_t)buf, len};
	struct pollfd p = {.fd = fd, .events = POLLOUT};
	ssize_t n;

	if (*way == OUT_NOWAIT) {
		n = pwritev2(fd, &iov, 1, -1, RWF_NOWAIT);
		if (n >= 0 || (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS))
			return n;
		*way = OUT_PIECES;
	}
	if (*way == OUT_PIECES) {
		if (poll(&p, 1, 0) == 0) {
			errno = EAGAIN;
			return -1;
		}
		if (len > PIPE_PIECE)
			len = PIPE_PIECE;
	}
	return write(fd, buf, len);
}

/* Writes what it may; s->out_len is what is left. */
static int
drain(struct agent_session *s, struct err *e)
{
	int fd = out_fd(s, s->out_stream);

	while (s->out_len) {
		ssize_t n = write_some(&s->way[s->out_stream], fd, s->out, s->out_len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			return write_failed(s, s->out_stream, -errno, e);
		s->out += n;
		s->out_len -= (size_t)n;
	}
	s->out_stream = -1;
	return 0;
}

static int
take_output(struct agent_session *s, const struct agent_frame *f, struct err *e)
{
	int i = f->type == AGENT_STDERR, r;
	struct agent_output o;
	const uint8_t *data = f->payload + sizeof(o);
	size_t len = f->len - sizeof(o);

	memcpy(&o, f->payload, sizeof(o));
	if (o.offset != s->expected[i])
		return err_set(e, -EPROTO,
			"the guest's agent sent output from %llu on, not %llu",
			(unsigned long long)o.offset, (unsigned long long)s->expected[i]);
	s->expected[i] += len;
	if (out_fd(s, i) >= 0) {
		if (s->io->seen && !i)
			s->io->seen(s->io->ctx, data, len);
		s->out_stream = i;
		s->out = data;
		s->out_len = len;
		return drain(s, e);
	}
	if (!s->io->output)
		return 0;
	r = s->io->output(s->io->ctx, i + 1, data, len);
	return r < 0 ? err_set(e, r, "cancelled") : 0;
}

static int
take_gap(struct agent_session *s, const struct agent_frame *f, struct err *e)
{
	int i = f->stream == 2;
	struct agent_gap g;

	memcpy(&g, f->payload, sizeof(g));
	if (g.offset != s->expected[i] || !g.len || g.offset + g.len < g.offset)
		return err_set(
			e, -EPROTO, "the guest's agent sent a gap that does not fit");
	s->expected[i] += g.len;
	*(i ? &s->result->stderr_lost : &s->result->stdout_lost) += g.len;
	if (s->io->gap)
		s->io->gap(s->io->ctx, i + 1, g.offset, g.len);
	return 0;
}

/* 1: the end. */
static int
take_exit(struct agent_session *s, const struct agent_frame *f, struct err *e)
{
	struct agent_exit x;

	memcpy(&x, f->payload, sizeof(x));
	if (x.kind < AGENT_EXITED || x.kind > AGENT_SPAWN_FAILED)
		return err_set(e, -EPROTO, "the guest's agent reported an end of kind %u",
			x.kind);
	if (x.stdout_bytes != s->expected[0] || x.stderr_bytes != s->expected[1])
		return err_set(e, -EPIPE,
			"output is missing: the command wrote %llu and %llu bytes, %llu and %llu came",
			(unsigned long long)x.stdout_bytes,
			(unsigned long long)x.stderr_bytes,
			(unsigned long long)s->expected[0],
			(unsigned long long)s->expected[1]);
	s->result->kind = (enum agent_exit_kind)x.kind;
	s->result->value = x.value;
	s->result->stdout_bytes = x.stdout_bytes;
	s->result->stderr_bytes = x.stderr_bytes;
	agent_text(s->result->message, sizeof(s->result->message), f->payload + sizeof(x),
		f->len - sizeof(x));
	return 1;
}

static int
take_frame(struct agent_session *s, const struct agent_frame *f, struct err *e)
{
	struct agent_stdin_credit credit;

	switch (f->type) {
	case AGENT_STDOUT:
	case AGENT_STDERR:
		return take_output(s, f, e);
	case AGENT_GAP:
		return take_gap(s, f, e);
	case AGENT_EXIT:
		return take_exit(s, f, e);
	case AGENT_STDIN_CREDIT:
		memcpy(&credit, f->payload, sizeof(credit));
		if (credit.limit > s->stdin_limit)
			s->stdin_limit = credit.limit;
		return 0;
	case AGENT_STDIN_CLOSED:
		s->stdin_open = false;
		return 0;
	case AGENT_ERROR:
		return agent_link_error(f, e);
	default:
		return err_set(e, -EPROTO,
			"the guest's agent sent frame type %u during a command", f->type);
	}
}

/* Frames that are there, until output must wait. 1: the end. */
static int
take_frames(struct agent_session *s, struct err *e)
{
	struct agent_frame f;
	int r;

	while (s->out_stream < 0) {
		r = agent_link_frame(&s->link, &f, e);
		if (r <= 0)
			return r;
		r = take_frame(s, &f, e);
		if (r != 0)
			return r;
	}
	return 0;
}

/* Control frames still queued go out, within a second. heard: and the agent is known to
 * have read them; to close a socket with unread output in it would reset the connection,
 * and what the agent has not read by then is lost. */
static void
last_words(struct agent_session *s, bool heard)
{
	uint64_t deadline = io_now_ns() + LAST_WORDS_NS;
	struct agent_link *l = &s->link;

	l->wake = NULL;
	/* Input not yet sent at all is dropped; a frame under way is finished. */
	if (!s->tx_at)
		s->tx_len = 0;
	while (pending(s) && !push(s, NULL) && pending(s)) {
		/* The agent may be waiting for us to read before it reads. */
		l->at = l->len;
		if (agent_link_wait(l, POLLOUT | POLLIN, deadline, NULL) ||
			agent_link_fill(l, NULL))
			return;
	}
	while (heard && !l->eof) {
		l->at = l->len;
		if (agent_link_wait(l, POLLIN, deadline, NULL) ||
			agent_link_fill(l, NULL))
			return;
	}
}

/* Whether the guest is to be given up: it has had its time, also without what it was
 * paused for. */
static bool
is_too_late(struct agent_session *s)
{
	uint64_t paused_ms;

	if (io_now_ns() < s->deadline_ns + s->held_ns)
		return false;
	if (!s->io->paused_ms)
		return true;
	paused_ms = s->io->paused_ms(s->io->ctx);
	if (paused_ms > s->paused_ms)
		s->held_ns = (paused_ms - s->paused_ms) * 1000000;
	return io_now_ns() >= s->deadline_ns + s->held_ns;
}

static int
pump(struct agent_session *s, struct err *e)
{
	int r = take_frames(s, e);

	while (r == 0 && !(s->detach && !pending(s))) {
		struct pollfd p[4] = {
			{.fd = s->link.fd, .events = 0},
			{.fd = -1, .events = POLLIN},
			{.fd = -1, .events = POLLOUT},
			{.fd = s->io->wake ? s->io->wake_fd : -1, .events = POLLIN},
		};
		int ms = -1, n;

		if (s->out_stream < 0)
			p[0].events |= POLLIN;
		else
			p[2].fd = out_fd(s, s->out_stream);
		if (pending(s))
			p[0].events |= POLLOUT;
		else if (s->stdin_open &&
			 s->stdin_sent + (s->io->input != NULL) < s->stdin_limit)
			p[1].fd = s->io->stdin_fd;
		/* Hang-ups are reported unasked: while output waits, they would be all
		 * poll says. */
		if (!p[0].events)
			p[0].fd = -1;
		if (s->deadline_ns) {
			uint64_t now, until;

			if (is_too_late(s))
				return err_set(e, -ETIMEDOUT,
					"the guest has not reported the command's end in time; it is stuck or paused");
			now = io_now_ns();
			until = s->deadline_ns + s->held_ns;
			/* Not more often: somebody else is asked each time. */
			ms = until < now + TICK_NS
				     ? TICK_MS
				     : (int)((until - now + 999999) / 1000000);
		}
		n = poll(p, 4, ms);
		if (n < 0 && errno != EINTR)
			return err_sys(e, -errno, "poll");
		if (n <= 0)
			continue;
		if (p[3].revents) {
			r = call_wake(s);
			if (r < 0)
				return err_set(e, r, "cancelled");
			r = push(s, e);
		}
		if (r == 0 && p[2].revents)
			r = drain(s, e);
		if (r == 0 && p[2].revents)
			r = take_frames(s, e);
		if (r == 0 && (p[0].revents & POLLOUT))
			r = push(s, e);
		if (r == 0 && p[1].revents && !pending(s))
			r = pull(s, e);
		if (r == 0 && s->out_stream < 0 &&
			(p[0].revents & (POLLIN | POLLHUP | POLLERR))) {
			r = agent_link_fill(&s->link, e);
			if (r == 0)
				r = take_frames(s, e);
			if (r == 0 && s->link.eof && s->out_stream < 0 && !s->detach)
				return err_set(e, -EPIPE,
					"the connection to the guest ended before the command's exit record");
		}
	}
	return r;
}

/*
 * Calls.
 */

static void
out_strings(struct json_out *o, const char *key, const char *const *v)
{
	json_out_array(o, key);
	for (; *v; v++)
		json_out_bytes(o, NULL, *v);
	json_out_end_array(o);
}

static bool
is_regular(int fd)
{
	struct stat st;

	return fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode);
}

static int
run(struct agent_session *s, const char *socket_path, struct json_out *request,
	bool detached, uint64_t patience_ms, struct err *e)
{
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	uint64_t in = 0;
	int r;

	s->link = (struct agent_link)AGENT_LINK_INIT;
	s->out_stream = -1;
	for (int i = 0; i < 2; i++)
		s->way[i] = is_regular(out_fd(s, i)) ? OUT_WHOLE : OUT_NOWAIT;
	if (s->io->wake && s->io->wake_fd >= 0) {
		s->link.wake = call_wake;
		s->link.wake_fd = s->io->wake_fd;
		s->link.ctx = s;
	}
	r = agent_link_open_patiently(
		&s->link, socket_path, request, patience_ms, &j, &text, e);
	if (r < 0)
		return r;
	if (json_str(j, json_get(j, 0, "id"), s->result->id, sizeof(s->result->id)) ||
		s->result->id[0] != 'e' ||
		strspn(s->result->id + 1, "0123456789") + 1 != strlen(s->result->id))
		return err_set(e, -EPROTO, "the guest's agent answered without an id");
	if (json_get(j, 0, "stdin_bytes") >= 0 &&
		json_u64(j, json_get(j, 0, "stdin_bytes"), &in))
		return err_set(e, -EPROTO,
			"the guest's agent answered with a broken \"stdin_bytes\"");
	s->stdin_sent = in;
	s->stdin_limit =
		in + (json_get(j, 0, "stdin_bytes") >= 0 ? 0 : AGENT_STDIN_WINDOW);
	if (s->io->started)
		s->io->started(s->io->ctx, s->result->id);
	if (detached)
		return 0;
	if (s->io->stdin_fd >= 0) {
		s->stdin_open = true;
		s->tx = malloc(AGENT_FRAME_WHOLE);
		if (!s->tx)
			return err_sys(e, -ENOMEM, "a command");
	}
	r = push(s, e); /* what wake() queued while we waited */
	if (r < 0)
		return r;
	return pump(s, e);
}

static int
call(const char *socket_path, struct json_out *request, const struct agent_exec_io *io,
	bool detached, const uint64_t from[2], uint64_t timeout_ms, uint32_t grace_ms,
	struct agent_exec_result *ret, struct err *e)
{
	static const struct agent_exec_io no_io = AGENT_EXEC_IO_INIT;
	struct agent_session *s = calloc(1, sizeof(*s));
	struct agent_exec_result result = {0};
	struct timespec none = {0};
	uint64_t patience_ms = AGENT_BECOMING_MS;
	sigset_t pipe, before, waiting;
	bool was_pending;
	int r;

	if (!s)
		return err_sys(e, -ENOMEM, "a command");
	s->io = io ? io : &no_io;
	s->result = &result;
	if (from)
		memcpy(s->expected, from, sizeof(s->expected));
	if (timeout_ms) {
		s->deadline_ns =
			io_now_ns() +
			(timeout_ms + (grace_ms ? grace_ms : GRACE_MS)) * 1000000;
		s->paused_ms = s->io->paused_ms ? s->io->paused_ms(s->io->ctx) : 0;
	}

	/* A SIGPIPE of our own making is kept from the process: the error says it, and
	 * the guest must hear of it first. */
	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	sigpending(&waiting);
	was_pending = sigismember(&waiting, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe, &before);

	if (timeout_ms && timeout_ms < patience_ms)
		patience_ms = timeout_ms;
	r = run(s, socket_path, request, detached, patience_ms, e);
	if (r == 1 && result.kind)
		queue(s, AGENT_TAKEN, NULL, 0);
	if (s->link.fd >= 0 && result.id[0]) {
		bool heard = r < 0 && s->ctl_at < s->ctl_len;

		if (heard)
			queue(s, AGENT_DETACH, NULL,
				0); /* its answer is the end of the connection */
		last_words(s, heard);
	}

	if (!was_pending)
		while (sigtimedwait(&pipe, NULL, &none) < 0 && errno == EINTR)
			;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	agent_link_done(&s->link);
	free(s->tx);
	free(s);
	if (r < 0)
		return r;
	*ret = result;
	return 0;
}

int
agent_exec(const char *socket_path, const struct agent_exec_req *req,
	const struct agent_exec_io *io, struct agent_exec_result *ret, struct err *e)
{
	cleanup_json_out struct json_out o = {0};

	if (!req->login && (!req->argv || !req->argv[0]))
		return err_set(e, -EINVAL, "no command to execute");
	json_out_object(&o, NULL);
	json_out_str(&o, "op", "exec");
	if (req->login)
		json_out_bool(&o, "login", true);
	else
		out_strings(&o, "argv", req->argv);
	if (req->hangup)
		json_out_bool(&o, "hangup", true);
	if (req->env && req->env[0])
		out_strings(&o, "env", req->env);
	if (req->cwd)
		json_out_bytes(&o, "cwd", req->cwd);
	if (req->user)
		json_out_bytes(&o, "user", req->user);
	if (req->timeout_ms)
		json_out_u64(&o, "timeout_ms", req->timeout_ms);
	if (req->tty) {
		json_out_object(&o, "tty");
		json_out_u64(&o, "rows", req->rows);
		json_out_u64(&o, "cols", req->cols);
		if (req->term)
			json_out_bytes(&o, "term", req->term);
		json_out_end_object(&o);
	}
	if (io && io->stdin_fd >= 0)
		json_out_bool(&o, "stdin", true);
	if (req->detach)
		json_out_bool(&o, "detach", true);
	json_out_end_object(&o);
	return call(socket_path, &o, io, req->detach, NULL, req->timeout_ms,
		req->grace_ms, ret, e);
}

int
agent_attach(const char *socket_path, const char *id, uint64_t stdout_offset,
	uint64_t stderr_offset, const struct agent_exec_io *io,
	struct agent_exec_result *ret, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	uint64_t from[2] = {stdout_offset, stderr_offset};

	json_out_object(&o, NULL);
	json_out_str(&o, "op", "attach");
	json_out_str(&o, "id", id);
	json_out_u64(&o, "stdout", stdout_offset);
	json_out_u64(&o, "stderr", stderr_offset);
	if (io && io->stdin_fd >= 0)
		json_out_bool(&o, "stdin", true);
	json_out_end_object(&o);
	return call(socket_path, &o, io, false, from, 0, 0, ret, e);
}

/*
 * In memory.
 */

struct capture {
	struct agent_captured *to;
	size_t max;
	size_t cap[2];
};

static int
capture_output(void *ctx, int stream, const void *buf, size_t len)
{
	struct capture *c = ctx;
	char **at = stream == 2 ? &c->to->err : &c->to->out;
	size_t *have = stream == 2 ? &c->to->err_len : &c->to->out_len;
	size_t *cap = &c->cap[stream == 2];

	if (len > c->max - *have)
		len = c->max - *have;
	if (*have + len + 1 > *cap) {
		size_t want = 2 * (*have + len) + 256;
		char *bigger = realloc(*at, want);

		if (!bigger)
			return -ENOMEM;
		*at = bigger;
		*cap = want;
	}
	memcpy(*at + *have, buf, len);
	*have += len;
	(*at)[*have] = 0;
	return 0;
}

void
agent_captured_done(struct agent_captured *c)
{
	free(c->out);
	free(c->err);
	memset(c, 0, sizeof(*c));
}

int
agent_exec_capture(const char *socket_path, const struct agent_exec_req *req,
	const void *input, size_t input_len, size_t max, struct agent_captured *ret,
	struct err *e)
{
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	cleanup_agent_captured struct agent_captured got = {0};
	struct capture c = {.to = &got, .max = max};
	cleanup_close int in = -1;
	int r;

	/* So that there is always a string. */
	if (capture_output(&c, 1, "", 0) || capture_output(&c, 2, "", 0))
		return err_sys(e, -ENOMEM, "a command's output");
	if (input) {
		in = memfd_create("pando-stdin", MFD_CLOEXEC);
		if (in < 0)
			return err_sys(e, -errno, "a command's input");
		r = io_pwrite_full(in, input, input_len, 0);
		if (r < 0)
			return err_sys(e, r, "a command's input");
	}
	io.stdin_fd = in;
	io.output = capture_output;
	io.ctx = &c;
	r = agent_exec(socket_path, req, &io, &got.result, e);
	if (r < 0)
		return r;
	*ret = got;
	memset(&got, 0, sizeof(got));
	return 0;
}
