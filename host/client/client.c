#include "host/client/client.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"
#include "host/client/client_priv.h"

#define ANSWER_MAX (16u << 20)
#define VALUES_MAX (1u << 20)
#define START_TIMEOUT_MS 20000
#define TICK_MS 250
#define CANCEL_POLL_MS 1000
/* How long a pandod that was killed may take to let go of its socket. */
#define GONE_POLLS 50
#define GONE_POLL_MS 20

struct client {
	char home[PATHS_MAX];
	char socket[PATHS_MAX];
	CURL *easy;	  /* owned */
	CURLM *multi;	  /* owned */
	int cancel_fd;	  /* borrowed, -1: none */
	bool cancel_asks; /* client_cancel_asking() */
	int socket_fd;	  /* weak: libcurl's connection */
	unsigned flags;	  /* client_open()'s */
	bool has_busy;	  /* busy_timeout_ms was said */
	uint64_t busy_timeout_ms;
	client_progress *progress; /* with its context: borrowed */
	void *progress_ctx;
};

/* One answer while it comes in. */
struct incoming {
	struct client *client;
	char *buf; /* owned: what is not yet consumed */
	size_t len, cap;
	char *result; /* owned: the last "result" of a stream */
	size_t result_len;
	bool stream; /* lines of JSON instead of one text */
	bool typed;  /* `stream` is known */
	bool failed; /* e holds why */
	struct err e;
};

static void
incoming_done(struct incoming *in)
{
	free(in->buf);
	free(in->result);
}
#define cleanup_incoming __attribute__((cleanup(incoming_done)))

void
client_reply_done(struct client_reply *r)
{
	json_free(r->json);
	free(r->text);
	*r = (struct client_reply){0};
}

/* Starting pandod ----------------------------------------------------------------- */

static bool
somebody_answers(const char *socket_path)
{
	cleanup_close int fd = -1;

	return io_unix_connect(socket_path, SOCK_STREAM, &fd, NULL) == 0;
}

/* Child side: becomes pandod, or ends with a status. Only async-signal-safe calls. */
static void __attribute__((noreturn)) become_pandod(
	const char *program, char *const argv[], int ready_fd, int null_fd, int log_fd)
{
	sigset_t none;

	sigemptyset(&none);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* Its own session from birth: a Ctrl-C meant for us must not end it half-started.
	 */
	setsid();
	if (dup2(null_fd, 0) < 0 || dup2(log_fd, 1) < 0 || dup2(log_fd, 2) < 0)
		_exit(126);
	/* What our caller left open (a shell's pipes) must not stay open as long as the
	 * daemon lives. */
	if (ready_fd > 3)
		close_range(3, (unsigned)ready_fd - 1, 0);
	close_range((unsigned)ready_fd + 1, ~0u, 0);
	if (fcntl(ready_fd, F_SETFD, 0) < 0)
		_exit(126);
	execv(program, argv);
	_exit(127);
}

/* The last line pandod logged since `from`, without its "<N>" priority; "" if none. */
static void
last_log_line(int log_fd, off_t from, char *dst, size_t cap)
{
	char buf[4096], *line, *end;
	struct stat st;
	off_t at;
	ssize_t n;

	dst[0] = '\0';
	if (fstat(log_fd, &st) < 0 || st.st_size <= from)
		return;
	at = st.st_size - (off_t)(sizeof(buf) - 1);
	n = pread(log_fd, buf, sizeof(buf) - 1, at > from ? at : from);
	if (n <= 0)
		return;
	end = buf + n;
	while (end > buf && (end[-1] == '\n' || end[-1] == '\r'))
		end--;
	*end = '\0';
	line = strrchr(buf, '\n');
	line = line ? line + 1 : buf;
	if (line[0] == '<' && line[1] && line[2] == '>')
		line += 3;
	snprintf(dst, cap, "%.300s", line);
}

/* Waits until the ready pipe is written or closed, or the time is over. */
static void
wait_ready(int fd)
{
	uint64_t end_ns = io_now_ns() + START_TIMEOUT_MS * UINT64_C(1000000);
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char byte;

	for (;;) {
		uint64_t now_ns = io_now_ns();
		int r;

		if (now_ns >= end_ns)
			return;
		r = poll(&p, 1, (int)((end_ns - now_ns) / 1000000) + 1);
		if (r < 0 && errno == EINTR)
			continue;
		if (r > 0)
			(void)io_read(fd, &byte, 1);
		return;
	}
}

static int
spawn_pandod(struct client *c, struct err *e)
{
	char program[PATHS_MAX], log_path[PATHS_MAX], ready[16], said[512];
	char arg0[] = "pandod", arg1[] = "--ready-fd";
	char *argv[] = {arg0, arg1, ready, NULL};
	cleanup_close int log_fd = -1, null_fd = -1, ready_read = -1, ready_write = -1;
	int pipe_fds[2], status = 0, r;
	struct stat st;
	pid_t pid;

	r = paths_program("bin/pandod", program, sizeof(program), e);
	if (r == 0)
		r = paths_format(log_path, sizeof(log_path), e, "%s/pandod.log", c->home);
	if (r < 0)
		return r;
	/* Not -errno: "no such file" would read as "no such VM" to a script. */
	if (access(program, X_OK) < 0)
		return err_set(e, -EIO,
			"pandod cannot be started: %s: %s; install pando again", program,
			strerror(errno));
	log_fd = open(log_path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (log_fd < 0)
		return err_sys(e, -errno, "%s", log_path);
	if (fstat(log_fd, &st) < 0)
		return err_sys(e, -errno, "%s", log_path);
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null_fd < 0)
		return err_sys(e, -errno, "/dev/null");
	if (pipe2(pipe_fds, O_CLOEXEC) < 0)
		return err_sys(e, -errno, "pipe");
	ready_read = pipe_fds[0];
	ready_write = pipe_fds[1];
	if (ready_write < 3) /* the child puts other things at 0 to 2 */
		return err_set(
			e, -EBADF, "standard input, output and error must be open");
	snprintf(ready, sizeof(ready), "%d", ready_write);
	setenv("PANDO_HOME", c->home, 1); /* ours may have come as a parameter */

	pid = fork();
	if (pid < 0)
		return err_sys(e, -errno, "fork");
	if (pid == 0)
		become_pandod(program, argv, ready_write, null_fd, log_fd);
	close(TAKE_FD(ready_write));
	wait_ready(ready_read);
	if (somebody_answers(c->socket)) {
		(void)waitpid(pid, &status,
			WNOHANG); /* a daemon's first process ends at once */
		return 0;
	}
	last_log_line(log_fd, st.st_size, said, sizeof(said));
	(void)waitpid(pid, &status, WNOHANG);
	if (said[0])
		return err_set(e, -ECONNREFUSED, "pandod did not start: %s (log: %s)",
			said, log_path);
	return err_set(e, -ECONNREFUSED,
		"pandod did not start within %d s and said nothing (log: %s)",
		START_TIMEOUT_MS / 1000, log_path);
}

static int
start_pandod(struct client *c, struct err *e)
{
	cleanup_close int lock = -1;
	char path[PATHS_MAX];
	int r;

	r = io_mkdir_p(c->home, 0700, e);
	if (r == 0)
		r = paths_format(path, sizeof(path), e, "%s/start.lock", c->home);
	if (r < 0)
		return r;
	lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (lock < 0)
		return err_set(e, -errno,
			"%.300s: %s; PANDO_HOME can name a folder that you may write", path,
			strerror(errno));
	while (flock(lock, LOCK_EX) < 0)
		if (errno != EINTR)
			return err_sys(e, -errno, "%s: lock", path);
	/* Whoever held the lock before us may have started it. */
	if (somebody_answers(c->socket))
		return 0;
	return spawn_pandod(c, e);
}

/* Opening --------------------------------------------------------------------------- */

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_ready;

static void
curl_start(void)
{
	curl_ready = curl_global_init(CURL_GLOBAL_NOTHING);
}

int
client_open(const char *home, unsigned flags, struct client **ret, struct err *e)
{
	cleanup_client struct client *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return err_sys(e, -ENOMEM, "client");
	c->cancel_fd = c->socket_fd = -1;
	c->flags = flags;
	if (home)
		r = paths_format(c->home, sizeof(c->home), e, "%s", home);
	else
		r = paths_home(c->home, sizeof(c->home), e);
	if (r == 0)
		r = paths_format(
			c->socket, sizeof(c->socket), e, "%s/pandod.sock", c->home);
	if (r < 0)
		return r;
	if (!somebody_answers(c->socket)) {
		if (!(flags & CLIENT_START))
			return err_set(
				e, -ECONNREFUSED, "no pandod answers at %s", c->socket);
		r = start_pandod(c, e);
		if (r < 0)
			return r;
	}
	pthread_once(&curl_once, curl_start);
	if (curl_ready != CURLE_OK)
		return err_set(e, -EIO, "libcurl: %s", curl_easy_strerror(curl_ready));
	c->easy = curl_easy_init();
	c->multi = curl_multi_init();
	if (!c->easy || !c->multi)
		return err_sys(e, -ENOMEM, "libcurl");
	*ret = TAKE_PTR(c);
	return 0;
}

void
client_close(struct client *c)
{
	if (!c)
		return;
	if (c->easy)
		curl_easy_cleanup(c->easy);
	if (c->multi)
		curl_multi_cleanup(c->multi);
	free(c);
}

const char *
client_home(const struct client *c)
{
	return c->home;
}

void
client_cancel_fd(struct client *c, int fd)
{
	c->cancel_fd = fd;
	c->cancel_asks = false;
}

void
client_cancel_asking(struct client *c, int fd)
{
	c->cancel_fd = fd;
	c->cancel_asks = true;
}

void
client_busy_timeout(struct client *c, bool said, uint64_t ms)
{
	c->has_busy = said;
	c->busy_timeout_ms = ms;
}

int
client_turn_path(const struct client *c, char *dst, size_t cap, const char *vm,
	const char *suffix, struct err *e)
{
	int r = client_vm_path(dst, cap, vm, suffix, e);
	size_t len;
	int n;

	if (r < 0 || !c->has_busy)
		return r;
	len = strlen(dst);
	n = snprintf(dst + len, cap - len, "%cbusy_timeout_ms=%llu",
		strchr(suffix, '?') ? '&' : '?', (unsigned long long)c->busy_timeout_ms);
	return n < 0 || (size_t)n >= cap - len
		       ? err_set(e, -ENAMETOOLONG, "path too long")
		       : 0;
}

void
client_on_progress(struct client *c, client_progress *fn, void *ctx)
{
	c->progress = fn;
	c->progress_ctx = ctx;
}

/* Calls -------------------------------------------------------------------------------
 */

/* {"error":{"code":-2,"message":"…"}}: returns the code with the sentence in e, or 0 if
 * obj holds none. */
static int
error_of(const struct json *j, int obj, struct err *e)
{
	cleanup_free char *message = NULL;
	int error = json_get(j, obj, "error");
	int64_t code;

	if (error < 0)
		return 0;
	if (json_str_dup(j, json_get(j, error, "message"), &message) < 0)
		return err_set(
			e, -EPROTO, "pandod answered with an error that has no sentence");
	if (json_i64(j, json_get(j, error, "code"), &code) < 0 || code >= 0 ||
		code < -4095)
		code = -EPROTO;
	return err_set(e, (int)code, "%s", message);
}

/* One line of a stream. */
static int
take_line(struct incoming *in, const char *line, size_t len)
{
	cleanup_json struct json *j = NULL;
	cleanup_free char *sentence = NULL;
	const char *raw;
	size_t raw_len;
	int tok, r;

	if (len == 0 || (len == 1 && line[0] == '\r'))
		return 0;
	r = json_parse(line, len, VALUES_MAX, &j, &in->e);
	if (r < 0)
		return err_wrap(&in->e, r, "pandod's answer");
	tok = json_get(j, 0, "progress");
	if (tok >= 0) {
		if (json_str_dup(j, tok, &sentence) == 0 && in->client->progress)
			in->client->progress(in->client->progress_ctx, sentence);
		return 0;
	}
	r = error_of(j, 0, &in->e);
	if (r < 0)
		return r;
	tok = json_get(j, 0, "result");
	if (tok < 0)
		return 0; /* a kind of line that a newer pandod knows */
	raw = json_raw(j, tok, &raw_len);
	free(in->result);
	in->result = strndup(raw, raw_len);
	in->result_len = raw_len;
	return in->result ? 0 : err_sys(&in->e, -ENOMEM, "pandod's answer");
}

/* Takes the whole lines off the buffer. */
static int
take_lines(struct incoming *in)
{
	size_t done = 0;
	char *nl;
	int r;

	while ((nl = memchr(in->buf + done, '\n', in->len - done))) {
		r = take_line(in, in->buf + done, (size_t)(nl - in->buf) - done);
		if (r < 0)
			return r;
		done = (size_t)(nl - in->buf) + 1;
	}
	memmove(in->buf, in->buf + done, in->len - done);
	in->len -= done;
	return 0;
}

static size_t
on_body(char *data, size_t size, size_t n, void *ctx)
{
	struct incoming *in = ctx;
	const char *type = NULL;
	size_t len = size * n;

	if (!in->typed) {
		curl_easy_getinfo(in->client->easy, CURLINFO_CONTENT_TYPE, &type);
		in->stream = type && strncmp(type, "application/x-ndjson", 20) == 0;
		in->typed = true;
	}
	if (in->len + len > ANSWER_MAX) {
		err_set(&in->e, -EFBIG, "pandod's answer is longer than %u MiB",
			ANSWER_MAX >> 20);
		goto fail;
	}
	if (in->len + len + 1 > in->cap) {
		size_t cap = 2 * in->cap > in->len + len + 1 ? 2 * in->cap
							     : in->len + len + 4096;
		char *buf = realloc(in->buf, cap);

		if (!buf) {
			err_sys(&in->e, -ENOMEM, "pandod's answer");
			goto fail;
		}
		in->buf = buf;
		in->cap = cap;
	}
	memcpy(in->buf + in->len, data, len);
	in->len += len;
	in->buf[in->len] = '\0';
	if (in->stream && take_lines(in) < 0)
		goto fail;
	return len;
fail:
	in->failed = true;
	return 0; /* libcurl ends the transfer */
}

/* Takes what cancels off its descriptor, and tells pandod by ending our side of the
 * connection. False: that is not what is to be done, or was done before. */
static bool
ask_to_give_up(struct client *c, bool *asked)
{
	struct signalfd_siginfo si;

	if (!c->cancel_asks || *asked || c->socket_fd < 0 ||
		read(c->cancel_fd, &si, sizeof(si)) != (ssize_t)sizeof(si))
		return false;
	*asked = true;
	return shutdown(c->socket_fd, SHUT_WR) == 0;
}

/* Runs the prepared transfer; *ret_result is libcurl's verdict. */
static int
perform(struct client *c, CURLcode *ret_result, struct err *e)
{
	uint64_t last_tick_ns = io_now_ns();
	CURLMcode m;
	int running = 1, left, r = 0;
	bool asked = false;
	CURLMsg *msg;

	m = curl_multi_add_handle(c->multi, c->easy);
	if (m != CURLM_OK)
		return err_set(e, -EIO, "libcurl: %s", curl_multi_strerror(m));
	for (;;) {
		struct curl_waitfd cancel = {
			.fd = c->cancel_fd, .events = CURL_WAIT_POLLIN};

		m = curl_multi_perform(c->multi, &running);
		if (m != CURLM_OK) {
			r = err_set(e, -EIO, "libcurl: %s", curl_multi_strerror(m));
			break;
		}
		if (!running)
			break;
		m = curl_multi_poll(c->multi, &cancel, c->cancel_fd >= 0,
			c->progress ? TICK_MS : CANCEL_POLL_MS, NULL);
		if (m != CURLM_OK) {
			r = err_set(e, -EIO, "libcurl: %s", curl_multi_strerror(m));
			break;
		}
		if (c->cancel_fd >= 0) {
			struct pollfd p = {.fd = c->cancel_fd, .events = POLLIN};

			if (poll(&p, 1, 0) > 0 && !ask_to_give_up(c, &asked)) {
				r = err_set(e, -ECANCELED, "cancelled");
				break;
			}
		}
		if (c->progress &&
			io_now_ns() - last_tick_ns >= TICK_MS * UINT64_C(1000000)) {
			last_tick_ns = io_now_ns();
			c->progress(c->progress_ctx, NULL);
		}
	}
	*ret_result = CURLE_OK;
	while ((msg = curl_multi_info_read(c->multi, &left)))
		if (msg->msg == CURLMSG_DONE)
			*ret_result = msg->data.result;
	curl_multi_remove_handle(c->multi, c->easy);
	return r;
}

/* libcurl's own would be inherited by whatever we start. */
static curl_socket_t
open_socket(void *ctx, curlsocktype purpose, struct curl_sockaddr *a)
{
	struct client *c = ctx;

	(void)purpose;
	c->socket_fd = socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
	return c->socket_fd;
}

static int
prepare(struct client *c, const char *method, const char *url, const char *body,
	struct curl_slist *headers, struct incoming *in, char *why)
{
	CURL *h = c->easy;
	CURLcode r = CURLE_OK;

	curl_easy_reset(h); /* keeps the connection */
	r |= curl_easy_setopt(h, CURLOPT_UNIX_SOCKET_PATH, c->socket);
	r |= curl_easy_setopt(h, CURLOPT_OPENSOCKETFUNCTION, open_socket);
	r |= curl_easy_setopt(h, CURLOPT_OPENSOCKETDATA, c);
	r |= curl_easy_setopt(h, CURLOPT_PROXY, ""); /* whatever http_proxy says */
	r |= curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
	r |= curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT, 10L);
	r |= curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http");
	r |= curl_easy_setopt(h, CURLOPT_URL, url);
	r |= curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, method);
	r |= curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers);
	r |= curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
	r |= curl_easy_setopt(h, CURLOPT_WRITEDATA, in);
	r |= curl_easy_setopt(h, CURLOPT_ERRORBUFFER, why);
	if (body)
		r |= curl_easy_setopt(h, CURLOPT_POSTFIELDS, body);
	return r == CURLE_OK ? 0 : -EIO;
}

/* What a transfer that failed means to a person. */
static int
transfer_error(struct client *c, CURLcode result, const char *why, const char *method,
	const char *path, struct err *e)
{
	switch (result) {
	case CURLE_COULDNT_CONNECT:
		return err_set(e, -ECONNREFUSED, "no pandod answers at %s", c->socket);
	case CURLE_GOT_NOTHING:
	case CURLE_RECV_ERROR:
	case CURLE_SEND_ERROR:
	case CURLE_PARTIAL_FILE:
		return err_set(e, -EPIPE,
			"pandod went away during %s %s; `pando status` says what became of it, %s/pandod.log why",
			method, path, c->home);
	case CURLE_OUT_OF_MEMORY:
		return err_sys(e, -ENOMEM, "%s %s", method, path);
	default:
		return err_set(e, -EPROTO, "what answers at %s is no pandod: %s",
			c->socket, why[0] ? why : curl_easy_strerror(result));
	}
}

/* The end of an answer that came whole. */
static int
conclude(struct incoming *in, long status, struct client_reply *ret, struct err *e)
{
	struct client_reply reply = {0};
	int r;

	if (in->stream && in->len) {
		r = take_line(in, in->buf, in->len);
		if (r < 0)
			return err_set(e, r, "%s", in->e.msg);
	}
	if (in->stream && !in->result)
		return err_set(e, -EPROTO, "pandod's answer ended without a result");
	if (in->stream) {
		reply.text = TAKE_PTR(in->result);
		reply.len = in->result_len;
	} else {
		if (!in->buf)
			return err_set(
				e, -EPROTO, "pandod answered nothing (HTTP %ld)", status);
		reply.text = TAKE_PTR(in->buf);
		reply.len = in->len;
	}
	r = json_parse(reply.text, reply.len, VALUES_MAX, &reply.json, e);
	if (r < 0) {
		client_reply_done(&reply);
		return err_set(
			e, -EPROTO, "pandod's answer (HTTP %ld) is no JSON", status);
	}
	r = error_of(reply.json, 0, e);
	if (r == 0 && status >= 400)
		r = err_set(e, -EPROTO, "pandod answered HTTP %ld without a sentence",
			status);
	if (r < 0) {
		client_reply_done(&reply);
		return r;
	}
	*ret = reply;
	return 0;
}

/* One try. *ret_unheard: the connection ended before there was any answer. */
static int
call_once(struct client *c, const char *method, const char *path, const char *body,
	struct client_reply *ret, bool *ret_unheard, struct err *e)
{
	cleanup_incoming struct incoming in = {.client = c};
	struct curl_slist *headers = NULL, *more;
	char url[1024], why[CURL_ERROR_SIZE] = "";
	static const char *const lines[] = {
		"Content-Type: application/json",
		"Expect:",
		"Accept: application/x-ndjson, application/json",
	};
	CURLcode result = CURLE_OK;
	long status = 0;
	int r;

	r = paths_format(url, sizeof(url), e, "http://pandod%s", path);
	if (r < 0)
		return r;
	/* Without somebody to tell, no stream of sentences. */
	for (size_t i = body ? 0 : 1; i < (c->progress ? 3 : 2); i++) {
		more = curl_slist_append(headers, lines[i]);
		if (!more) {
			curl_slist_free_all(headers);
			return err_sys(e, -ENOMEM, "libcurl");
		}
		headers = more;
	}
	if (prepare(c, method, url, body, headers, &in, why) < 0) {
		r = err_set(e, -EIO, "this libcurl (%s) lacks what pando needs",
			curl_version());
		goto out;
	}
	r = perform(c, &result, e);
	if (r < 0)
		goto out;
	if (in.failed)
		r = err_set(e, in.e.code, "%s", in.e.msg);
	else if (result != CURLE_OK)
		r = transfer_error(c, result, why, method, path, e);
	*ret_unheard = (r == -EPIPE || r == -ECONNREFUSED) && !in.typed;
	if (r < 0)
		goto out;
	curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
	r = conclude(&in, status, ret, e);
out:
	curl_slist_free_all(headers);
	return r;
}

/* A pandod that was killed takes connections until its last thread is gone: waits for
 * that. False: nobody answers any more, and nobody is to be started. */
static bool
next_pandod(struct client *c)
{
	for (int i = 0; i < GONE_POLLS && somebody_answers(c->socket); i++) {
		struct pollfd p = {.fd = c->cancel_fd, .events = POLLIN};

		if (poll(&p, 1, GONE_POLL_MS) > 0)
			return false;
	}
	return somebody_answers(c->socket) ||
	       ((c->flags & CLIENT_START) && start_pandod(c, NULL) == 0);
}

int
client_call(struct client *c, const char *method, const char *path, const char *body,
	struct client_reply *ret, struct err *e)
{
	bool unheard = false;
	struct err why = {0};
	int r = call_once(c, method, path, body, ret, &unheard, &why);

	/* Asking again changes nothing. What was to be done may be done already. */
	if (r < 0 && unheard && strcmp(method, "GET") == 0 && next_pandod(c))
		r = call_once(c, method, path, body, ret, &unheard, &why);
	return r < 0 ? err_set(e, r, "%s", why.msg) : r;
}
