#include "host/agent/agent_client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/json_bytes.h"
#include "host/agent/agent_link.h"

#define TICK_MS 100
#define AGAIN_NS 20000000
#define OK_LINE_MAX 160
#define RX (2 * AGENT_FRAME_WHOLE)
/* {"name":…} of each of the agent's longest list. */
#define TOKENS_MAX (1u << 19)
#define LIST_MAX 16384

static uint64_t
deadline_of(int timeout_ms)
{
	return timeout_ms < 0 ? 0 : io_now_ns() + (uint64_t)timeout_ms * 1000000;
}

/* For poll(2): -1 without a deadline, rounded up. */
static int
left_ms(uint64_t deadline_ns)
{
	uint64_t now = io_now_ns();

	if (!deadline_ns)
		return -1;
	if (deadline_ns <= now)
		return 0;
	now = (deadline_ns - now + 999999) / 1000000;
	return now > INT32_MAX ? INT32_MAX : (int)now;
}

void
agent_text(char *dst, size_t cap, const void *src, size_t len)
{
	const unsigned char *s = src;
	size_t n = 0;

	for (size_t i = 0; i < len && n + 1 < cap; i++)
		dst[n++] = (char)(s[i] < 0x20 || s[i] == 0x7f ? '?' : s[i]);
	dst[n] = 0;
}

/*
 * Dialling.
 */

static int
dial(const char *path, uint64_t deadline_ns, int *ret_fd, struct err *e)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	cleanup_close int fd = -1;
	int ms = left_ms(deadline_ns);

	if (strlen(path) >= sizeof(a.sun_path))
		return err_set(e, -ENAMETOOLONG,
			"%s: longer than the %zu bytes a socket's path may have", path,
			sizeof(a.sun_path) - 1);
	strcpy(a.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_sys(e, -errno, "a socket");
	if (ms >= 0) {
		/* connect(2) waits while the listener's queue is full. */
		struct timeval tv = {ms / 1000, ms % 1000 * 1000 + 1};

		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	}
	while (connect(fd, (struct sockaddr *)(void *)&a, sizeof(a))) {
		if (errno == EINTR)
			continue;
		if (errno == ENOENT)
			return err_set(
				e, -ENOENT, "%s: no such socket; the VM is gone", path);
		if (errno == ECONNREFUSED)
			return err_set(e, -ENOTCONN,
				"%s: nobody listens; the VM does not run", path);
		if (errno == EAGAIN)
			return err_set(e, -ETIMEDOUT,
				"%s: the VM does not take connections", path);
		return err_sys(e, -errno, "%s", path);
	}
	if (ms >= 0) {
		struct timeval none = {0};

		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
	}
	*ret_fd = TAKE_FD(fd);
	return 0;
}

int
agent_link_wait(struct agent_link *l, short events, uint64_t deadline_ns, struct err *e)
{
	while (1) {
		struct pollfd p[2] = {{.fd = l->fd, .events = events},
			{.fd = l->wake ? l->wake_fd : -1, .events = POLLIN}};
		int ms = left_ms(deadline_ns), n, r;
		bool tick = l->wake && l->wake_fd < 0, late = ms == 0;

		if (tick && (ms < 0 || ms > TICK_MS))
			ms = TICK_MS;
		n = poll(p, 2, ms);
		if (n < 0 && errno != EINTR)
			return err_sys(e, -errno, "poll");
		if (tick || (n > 0 && p[1].revents)) {
			r = l->wake(l->ctx);
			if (r < 0)
				return err_set(e, r, "cancelled");
		}
		if (n > 0 && p[0].revents && !(late && l->late)) {
			l->late = late;
			return 0;
		}
		if (n >= 0 && deadline_ns && io_now_ns() >= deadline_ns)
			return err_set(e, -ETIMEDOUT,
				"the guest's agent did not answer in time");
	}
}

/* "CONNECT <port>\n" and its answer, of which not a byte more is read than its line: what
 * follows is another's. `first` is what the guest is to be told first: as much of it as goes is
 * sent with the line, so that the guest finds it when it accepts, and is taken off; a connection
 * that does not come about delivers none of it. */
static int
say_connect(struct agent_link *l, const char *path, uint32_t port, struct iovec *first,
	uint64_t deadline_ns, uint32_t *ret_number, struct err *e)
{
	char line[OK_LINE_MAX + 1];
	int len = snprintf(line, sizeof(line), "CONNECT %u\n", port), r;
	struct iovec iov[2] = {{line, (size_t)len}, *first};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
	ssize_t sent = sendmsg(l->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

	/* A socket that is new has room for the line. */
	if (sent < len)
		return err_set(e, -ENOTCONN, "%s: the VM hung up; it does not run", path);
	first->iov_base = (char *)first->iov_base + (sent - len);
	first->iov_len -= (size_t)(sent - len);
	while (1) {
		ssize_t n = recv(l->fd, line, OK_LINE_MAX, MSG_PEEK | MSG_DONTWAIT);
		char *lf;

		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			r = agent_link_wait(l, POLLIN, deadline_ns, e);
			if (r < 0)
				return r;
			continue;
		}
		if (n <= 0)
			return err_set(e, -ECONNREFUSED,
				"nothing in the guest listens on port %u yet; it boots, or has no agent",
				port);
		line[n] = 0;
		lf = memchr(line, '\n', (size_t)n);
		/* vmm/vsock.h: what cannot be is "ERR <sentence>", and a close. */
		if (lf && strncmp(line, "ERR ", 4) == 0)
			return err_set(e, -ECONNREFUSED,
				"nothing in the guest listens on port %u yet: %.*s", port,
				(int)(lf - line) - 4, line + 4);
		if (!lf && n < OK_LINE_MAX) {
			/* Half a line: poll would report it again at once. */
			struct timespec ms = {.tv_nsec = 1000000};

			nanosleep(&ms, NULL);
			if (deadline_ns && io_now_ns() >= deadline_ns)
				return err_set(e, -ETIMEDOUT, "%s: no answer", path);
			continue;
		}
		if (!lf || strncmp(line, "OK ", 3) != 0)
			return err_set(
				e, -EPROTO, "%s: an answer that is not \"OK\"", path);
		if (ret_number)
			*ret_number = (uint32_t)strtoul(line + 3, NULL, 10);
		n = recv(l->fd, line, (size_t)(lf - line) + 1, 0);
		return n < 0 ? err_sys(e, -errno, "%s", path) : 0;
	}
}

int
agent_connect_port(const char *socket_path, uint32_t port, int timeout_ms, int *ret_fd,
	struct err *e)
{
	return agent_connect_numbered(socket_path, port, timeout_ms, ret_fd, NULL, e);
}

int
agent_connect_numbered(const char *socket_path, uint32_t port, int timeout_ms,
	int *ret_fd, uint32_t *ret_number, struct err *e)
{
	cleanup_agent_link struct agent_link l = AGENT_LINK_INIT;
	uint64_t deadline = deadline_of(timeout_ms);
	struct iovec nothing = {(char[]){0}, 0};
	int r = dial(socket_path, deadline, &l.fd, e);

	if (r == 0)
		r = say_connect(&l, socket_path, port, &nothing, deadline, ret_number, e);
	if (r < 0)
		return r;
	*ret_fd = TAKE_FD(l.fd);
	return 0;
}

int
agent_connect(const char *socket_path, int timeout_ms, int *ret_fd, struct err *e)
{
	return agent_connect_port(socket_path, AGENT_PORT, timeout_ms, ret_fd, e);
}

/*
 * The link.
 */

void
agent_link_done(struct agent_link *l)
{
	if (l->fd >= 0)
		close(l->fd);
	free(l->buf);
	l->fd = -1;
	l->buf = NULL;
}

int
agent_link_fill(struct agent_link *l, struct err *e)
{
	ssize_t n;

	if (!l->buf) {
		l->buf = malloc(RX);
		if (!l->buf)
			return err_sys(e, -ENOMEM, "receiving from the guest");
		l->cap = RX;
	}
	if (l->at) {
		memmove(l->buf, l->buf + l->at, l->len - l->at);
		l->len -= l->at;
		l->at = 0;
	}
	if (l->len == l->cap) {
		char *bigger = realloc(l->buf, 2 * l->cap);

		if (!bigger)
			return err_sys(e, -ENOMEM, "receiving from the guest");
		l->buf = bigger;
		l->cap *= 2;
	}
	n = recv(l->fd, l->buf + l->len, l->cap - l->len, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0 && errno != ECONNRESET)
		return err_sys(e, -errno, "receiving from the guest");
	if (n <= 0)
		l->eof = true;
	else
		l->len += (size_t)n;
	return 0;
}

int
agent_link_frame(struct agent_link *l, struct agent_frame *ret, struct err *e)
{
	size_t used;
	int r;

	if (!l->buf)
		return 0;
	r = agent_frame_next(
		l->buf + l->at, l->len - l->at, AGENT_FROM_GUEST, ret, &used, e);

	if (r == 1)
		l->at += used;
	else if (r < 0)
		err_wrap(e, r, "from the guest's agent");
	return r;
}

int
agent_link_error(const struct agent_frame *f, struct err *e)
{
	struct agent_error h;
	char text[480];

	memcpy(&h, f->payload, sizeof(h));
	agent_text(text, sizeof(text), f->payload + sizeof(h), f->len - sizeof(h));
	return err_set(e, h.code < 0 && h.code > -4096 ? h.code : -EPROTO,
		"in the guest: %s", text);
}

static int
refusal(const struct json *j, struct err *e)
{
	char said[512], text[480];
	int64_t code;

	if (json_i64(j, json_get(j, 0, "code"), &code) || code >= 0 || code <= -4096)
		code = -EPROTO;
	if (json_str(j, json_get(j, 0, "error"), said, sizeof(said)))
		strcpy(said, "refused, without saying why");
	agent_text(text, sizeof(text), said, strlen(said));
	return err_set(e, (int)code, "in the guest: %s", text);
}

static int
send_all(struct agent_link *l, const char *buf, size_t len, uint64_t deadline_ns,
	struct err *e)
{
	while (len) {
		ssize_t n = send(l->fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		int r;

		if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
			r = agent_link_wait(l, POLLOUT, deadline_ns, e);
			if (r < 0)
				return r;
			continue;
		}
		/* It may have said why before it hung up: the reader finds out. */
		if (n < 0)
			return errno == EPIPE || errno == ECONNRESET
				       ? 0
				       : err_sys(e, -errno, "sending to the guest");
		buf += n;
		len -= (size_t)n;
	}
	return 0;
}

int
agent_link_open(struct agent_link *l, const char *socket_path, struct json_out *request,
	uint64_t deadline_ns, struct json **ret_json, char **ret_text, struct err *e)
{
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	struct iovec left;
	char *lf = NULL;
	size_t seen = 0;
	bool ok;
	int r;

	if (request->error)
		return err_sys(e, request->error, "the request");
	if (request->len + 1 > AGENT_REQUEST_MAX)
		return err_set(e, -E2BIG,
			"arguments and environment make a request of %zu bytes, more than %u; put them into a file",
			request->len + 1, AGENT_REQUEST_MAX);
	r = dial(socket_path, deadline_ns, &l->fd, e);
	if (r < 0)
		return r;
	request->buf[request->len] =
		'\n'; /* the writer terminates its text: there is room */
	left = (struct iovec){request->buf, request->len + 1};
	r = say_connect(l, socket_path, AGENT_PORT, &left, deadline_ns, NULL, e);
	if (r == 0)
		r = send_all(l, left.iov_base, left.iov_len, deadline_ns, e);
	request->buf[request->len] = 0;
	if (r < 0)
		return r;

	while (!lf) {
		r = agent_link_wait(l, POLLIN, deadline_ns, e);
		if (r == 0)
			r = agent_link_fill(l, e);
		if (r < 0)
			return r;
		lf = memchr(l->buf + seen, '\n', l->len - seen);
		seen = l->len;
		if (!lf && l->eof)
			return err_set(e, -EPIPE,
				"the guest's agent hung up before it answered");
		if (!lf && l->len > AGENT_ANSWER_MAX)
			return err_set(
				e, -EPROTO, "the guest's agent answered without end");
	}
	text = strndup(l->buf, (size_t)(lf - l->buf));
	if (!text)
		return err_sys(e, -ENOMEM, "the agent's answer");
	l->at = (size_t)(lf - l->buf) + 1;
	r = json_parse(text, strlen(text), TOKENS_MAX, &j, e);
	if (r < 0) {
		err_wrap(e, r, "the answer of the guest's agent is no JSON");
		return e ? (e->code = -EPROTO) : -EPROTO;
	}
	if (json_bool(j, json_get(j, 0, "ok"), &ok))
		return err_set(
			e, -EPROTO, "the guest's agent answered neither yes nor no");
	if (!ok)
		return refusal(j, e);
	if (ret_json) {
		*ret_json = TAKE_PTR(j);
		*ret_text = TAKE_PTR(text);
	}
	return 0;
}

int
agent_link_open_patiently(struct agent_link *l, const char *socket_path,
	struct json_out *request, uint64_t patience_ms, struct json **ret_json,
	char **ret_text, struct err *e)
{
	uint64_t now = io_now_ns(), until = now + patience_ms * 1000000;
	struct err why = {0};
	int r, w;

	for (;; now = io_now_ns()) {
		r = agent_link_open(l, socket_path, request,
			now + AGENT_ANSWER_MS * 1000000ull, ret_json, ret_text, &why);
		if (r != -EINPROGRESS || now >= until)
			return r < 0 ? err_set(e, r, "%s", why.msg) : r;
		agent_link_done(l);
		l->at = l->len = l->cap = 0;
		w = agent_link_wait(l, 0, now + AGAIN_NS, &why);
		if (w < 0 && w != -ETIMEDOUT)
			return err_set(e, w, "%s", why.msg);
	}
}

/*
 * Calls without frames.
 */

static int
ask(const char *socket_path, struct json_out *request, int timeout_ms,
	struct json **ret_json, char **ret_text, struct err *e)
{
	cleanup_agent_link struct agent_link l = AGENT_LINK_INIT;

	return agent_link_open(
		&l, socket_path, request, deadline_of(timeout_ms), ret_json, ret_text, e);
}

static void
start_request(struct json_out *o, const char *op)
{
	json_out_object(o, NULL);
	json_out_str(o, "op", op);
}

static int
ping(struct agent_link *l, const char *socket_path, uint64_t deadline_ns,
	struct agent_pong *ret, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	struct agent_pong p = {0};
	int r;

	start_request(&o, "ping");
	json_out_end_object(&o);
	r = agent_link_open(l, socket_path, &o, deadline_ns, &j, &text, e);
	if (r < 0)
		return r;
	if (json_str(j, json_get(j, 0, "version"), p.version, sizeof(p.version)) ||
		json_str(j, json_get(j, 0, "boot_id"), p.boot_id, sizeof(p.boot_id)) ||
		json_u64(j, json_get(j, 0, "uptime_ms"), &p.uptime_ms))
		return err_set(e, -EPROTO,
			"the guest's agent answered a ping with something else");
	if (ret)
		*ret = p;
	return 0;
}

int
agent_ping(const char *socket_path, int timeout_ms, struct agent_pong *ret, struct err *e)
{
	cleanup_agent_link struct agent_link l = AGENT_LINK_INIT;

	return ping(&l, socket_path, deadline_of(timeout_ms), ret, e);
}

int
agent_wait_ready(const char *socket_path, int timeout_ms, int (*cancel)(void *ctx),
	void *ctx, struct err *e)
{
	uint64_t deadline = deadline_of(timeout_ms), pause_ns = 2000000;

	while (1) {
		cleanup_agent_link struct agent_link l = AGENT_LINK_INIT;
		struct err why = {0};
		/* A guest that boots may swallow a connection: none is waited on for
		 * long. */
		uint64_t now = io_now_ns(), attempt = now + 2000000000ull;
		struct timespec ts = {.tv_nsec = (long)pause_ns};
		int r;

		l.wake = cancel;
		l.ctx = ctx;
		if (deadline && attempt > deadline)
			attempt = deadline;
		r = ping(&l, socket_path, attempt, NULL, &why);
		if (r == 0)
			return 0;
		if (r != -ECONNREFUSED && r != -ETIMEDOUT && r != -EPIPE && r != -EAGAIN)
			return err_set(e, r, "%s", why.msg);
		if (cancel && (r = cancel(ctx)) < 0)
			return err_set(
				e, r, "cancelled while waiting for the guest's agent");
		if (deadline && io_now_ns() >= deadline)
			return err_set(e, -ETIMEDOUT,
				"the guest's agent did not answer in %d ms (last: %s)",
				timeout_ms, why.msg);
		nanosleep(&ts, NULL);
		if (pause_ns < 50000000)
			pause_ns *= 2;
	}
}

int
agent_signal(const char *socket_path, const char *id, int signo, struct err *e)
{
	cleanup_json_out struct json_out o = {0};

	start_request(&o, "signal");
	json_out_str(&o, "id", id);
	json_out_i64(&o, "signal", signo);
	json_out_end_object(&o);
	return ask(socket_path, &o, AGENT_ANSWER_MS, NULL, NULL, e);
}

int
agent_kill_ssh(const char *socket_path, uint32_t connection, struct err *e)
{
	cleanup_json_out struct json_out o = {0};

	start_request(&o, "kill_ssh");
	json_out_u64(&o, "connection", connection);
	json_out_end_object(&o);
	return ask(socket_path, &o, AGENT_ANSWER_MS, NULL, NULL, e);
}

int
agent_list_execs(const char *socket_path, char **ret_json, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	const char *raw;
	size_t len;
	int r, execs;

	start_request(&o, "list_execs");
	json_out_end_object(&o);
	r = ask(socket_path, &o, AGENT_ANSWER_MS, &j, &text, e);
	if (r < 0)
		return r;
	execs = json_get(j, 0, "execs");
	if (execs < 0 || json_type(j, execs) != JSON_ARRAY)
		return err_set(e, -EPROTO, "the guest's agent answered without a list");
	raw = json_raw(j, execs, &len);
	*ret_json = strndup(raw, len);
	return *ret_json ? 0 : err_sys(e, -ENOMEM, "a list");
}

void
agent_entries_free(struct agent_entry *entries, size_t n)
{
	for (size_t i = 0; entries && i < n; i++) {
		free(entries[i].name);
		free(entries[i].target);
	}
	free(entries);
}

static int
read_entry(const struct json *j, int tok, struct agent_entry *x)
{
	char type[2];
	uint64_t mode, uid, gid;

	if (json_bytes_dup(j, json_get(j, tok, "name"), &x->name) || !*x->name ||
		strchr(x->name, '/') ||
		json_str(j, json_get(j, tok, "type"), type, sizeof(type)) || !*type ||
		!strchr("fdlpscb", *type) ||
		json_u64(j, json_get(j, tok, "mode"), &mode) ||
		json_u64(j, json_get(j, tok, "uid"), &uid) ||
		json_u64(j, json_get(j, tok, "gid"), &gid) ||
		json_u64(j, json_get(j, tok, "size"), &x->size) ||
		json_i64(j, json_get(j, tok, "mtime_ns"), &x->mtime_ns) || mode > 07777 ||
		uid > UINT32_MAX || gid > UINT32_MAX)
		return -EPROTO;
	x->type = *type;
	x->mode = (uint32_t)mode;
	x->uid = (uint32_t)uid;
	x->gid = (uint32_t)gid;
	if (x->type == 'l' && json_bytes_dup(j, json_get(j, tok, "target"), &x->target))
		return -EPROTO;
	return 0;
}

int
agent_list(const char *socket_path, const char *remote, int timeout_ms,
	struct agent_entry **ret, size_t *ret_n, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_json struct json *j = NULL;
	cleanup_free char *text = NULL;
	struct agent_entry *entries;
	int r, list, it = 0, key, tok;
	size_t n = 0;

	start_request(&o, "list");
	json_out_bytes(&o, "path", remote);
	json_out_end_object(&o);
	r = ask(socket_path, &o, timeout_ms, &j, &text, e);
	if (r < 0)
		return r;
	list = json_get(j, 0, "entries");
	if (list < 0 || json_type(j, list) != JSON_ARRAY || json_size(j, list) > LIST_MAX)
		return err_set(e, -EPROTO, "the guest's agent answered without a list");
	entries = calloc((size_t)json_size(j, list) + 1, sizeof(*entries));
	if (!entries)
		return err_sys(e, -ENOMEM, "a list");
	while (json_next(j, list, &it, &key, &tok)) {
		if (read_entry(j, tok, &entries[n++])) {
			agent_entries_free(entries, n);
			return err_set(e, -EPROTO,
				"the guest's agent listed something that is no file");
		}
	}
	*ret = entries;
	*ret_n = n;
	return 0;
}

int
agent_exit_status(const struct agent_exec_result *r)
{
	switch (r->kind) {
	case AGENT_EXITED:
		return (int)(r->value & 0xff);
	case AGENT_SIGNALLED:
		return 128 + (int)(r->value & 0x7f);
	case AGENT_TIMED_OUT:
		return EXIT_TIMED_OUT;
	case AGENT_SPAWN_FAILED:
		return r->value == ENOENT ? 127 : 126;
	}
	return 0;
}
