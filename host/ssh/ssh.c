#include "host/ssh/ssh.h"

#include <errno.h>
#include <fcntl.h>
#include <libssh/callbacks.h>
#include <libssh/libssh.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* How long the output may be silent, after the command's end, while somebody else holds
 * it open. */
#define LINGER_MS 2000

struct ssh_link {
	ssh_session session; /* owned */
	int fd; /* owned: of ssh_link_open_fd(), which libssh does not close; -1 */
};

/* libssh's own sentence, copied at once: the next call overwrites it. */
static int
fail(struct err *e, int code, const char *what, void *session)
{
	return err_set(e, code, "%s: %.300s", what, ssh_get_error(session));
}

/* Keys ------------------------------------------------------------------------------ */

int
ssh_make_key(const char *path, char ret_public[SSH_PUBLIC_MAX], struct err *e)
{
	ssh_key key = NULL;
	char *base64 = NULL;
	int r = 0;

	if (ssh_pki_generate(SSH_KEYTYPE_ED25519, 0, &key) != SSH_OK)
		return err_set(e, -EIO, "libssh cannot make an ed25519 key");
	/* Not readable by others for a single moment. */
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0) {
		r = err_sys(e, -errno, "%.300s", path);
		goto out;
	}
	fchmod(fd, 0600);
	close(fd);
	if (ssh_pki_export_privkey_file(key, NULL, NULL, NULL, path) != SSH_OK) {
		r = err_set(e, -EIO, "the key cannot be written to %.300s", path);
		goto out;
	}
	if (chmod(path, 0600) < 0) {
		r = err_sys(e, -errno, "%.300s", path);
		goto out;
	}
	if (ssh_pki_export_pubkey_base64(key, &base64) != SSH_OK ||
		strlen(base64) >= SSH_PUBLIC_MAX) {
		r = err_set(e, -EIO, "libssh cannot give a key's public half");
		goto out;
	}
	memcpy(ret_public, base64, strlen(base64) + 1);
out:
	ssh_string_free_char(base64);
	ssh_key_free(key);
	return r;
}

/* Quoting --------------------------------------------------------------------------- */

int
ssh_quote(char **text, const char *word)
{
	size_t had = *text ? strlen(*text) : 0, need = had + 4;
	char *grown, *at;

	for (const char *p = word; *p; p++)
		need += *p == '\'' ? 4 : 1;
	if (need > SSH_COMMAND_MAX)
		return -E2BIG;
	grown = realloc(*text, need);
	if (!grown)
		return -ENOMEM;
	*text = grown;
	at = grown + had;
	if (had)
		*at++ = ' ';
	*at++ = '\'';
	for (const char *p = word; *p; p++) {
		if (*p == '\'') {
			memcpy(at, "'\\''", 4);
			at += 4;
		} else {
			*at++ = *p;
		}
	}
	*at++ = '\'';
	*at = '\0';
	return 0;
}

/* Connecting ------------------------------------------------------------------------ */

/* "SHA256:…", as ssh-keygen(1) shows it. */
static void
fingerprint(char *dst, size_t cap, const ssh_key key)
{
	unsigned char *hash = NULL;
	char *text = NULL;
	size_t len;

	if (ssh_get_publickey_hash(key, SSH_PUBLICKEY_HASH_SHA256, &hash, &len) == 0)
		text = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, len);
	snprintf(dst, cap, "%s", text ? text : "(unknown)");
	ssh_string_free_char(text);
	ssh_clean_pubkey_hash(&hash);
}

static int
other_host_key(const struct ssh_target *t, const ssh_key theirs, const ssh_key known,
	struct err *e)
{
	char is[80], should[80];

	if (!t->what)
		return err_set(e, -EKEYREJECTED,
			"port %u of %.100s has another host key than the machine we made: something else listens there",
			t->port, t->address);
	fingerprint(is, sizeof(is), theirs);
	fingerprint(should, sizeof(should), known);
	return err_set(e, -EKEYREJECTED,
		"%.100s: its SSH host key is %s and not %s, which it acknowledged; if that was changed on purpose, stop and start it to have the new one acknowledged",
		t->what, is, should);
}

static int
check_host_key(ssh_session session, const struct ssh_target *t, struct err *e)
{
	ssh_key theirs = NULL, known = NULL;
	int r = 0;

	if (ssh_pki_import_pubkey_base64(t->host_key, SSH_KEYTYPE_ED25519, &known) !=
		SSH_OK)
		r = err_set(e, -EINVAL, "the known host key of %.100s is no ed25519 key",
			t->what ? t->what : t->address);
	else if (ssh_get_server_publickey(session, &theirs) != SSH_OK)
		r = fail(e, -EPROTO, "the server's host key", session);
	else if (ssh_key_cmp(theirs, known, SSH_KEY_CMP_PUBLIC) != 0)
		r = other_host_key(t, theirs, known, e);
	ssh_key_free(theirs);
	ssh_key_free(known);
	return r;
}

static int
authenticate(ssh_session session, const struct ssh_target *t, struct err *e)
{
	ssh_key key = NULL;
	int r;

	if (ssh_pki_import_privkey_file(t->key_path, NULL, NULL, NULL, &key) != SSH_OK)
		return err_set(e, -ENOENT, "the key %.300s cannot be read", t->key_path);
	r = ssh_userauth_publickey(session, NULL, key);
	ssh_key_free(key);
	if (r == SSH_AUTH_SUCCESS)
		return 0;
	if (t->what && r == SSH_AUTH_DENIED)
		return err_set(e, -EACCES,
			"%.100s does not let user \"%.60s\" in: there is none of that name with a shell, or the guest was told another key",
			t->what, t->user);
	return fail(e, r == SSH_AUTH_DENIED ? -EACCES : -EPROTO,
		"the machine does not take our key", session);
}

static int
configure(ssh_session session, const struct ssh_target *t, unsigned timeout_ms)
{
	long timeout_s = timeout_ms / 1000, timeout_us = (long)(timeout_ms % 1000) * 1000;
	bool no = false;
	int yes = 1, quiet = SSH_LOG_NOLOG;

	/* A user's ~/.ssh/config is about other machines. */
	return ssh_options_set(session, SSH_OPTIONS_PROCESS_CONFIG, &no) < 0 ||
			       ssh_options_set(
				       session, SSH_OPTIONS_LOG_VERBOSITY, &quiet) < 0 ||
			       ssh_options_set(session, SSH_OPTIONS_HOST, t->address) <
				       0 ||
			       ssh_options_set(session, SSH_OPTIONS_PORT, &t->port) < 0 ||
			       ssh_options_set(session, SSH_OPTIONS_USER, t->user) < 0 ||
			       ssh_options_set(session, SSH_OPTIONS_HOSTKEYS,
				       "ssh-ed25519") < 0 ||
			       ssh_options_set(session, SSH_OPTIONS_NODELAY, &yes) < 0 ||
			       ssh_options_set(session, SSH_OPTIONS_TIMEOUT, &timeout_s) <
				       0 ||
			       ssh_options_set(
				       session, SSH_OPTIONS_TIMEOUT_USEC, &timeout_us) < 0
		       ? -EINVAL
		       : 0;
}

static int
open_link(int fd, const struct ssh_target *t, unsigned timeout_ms, struct ssh_link **ret,
	struct err *e)
{
	cleanup_ssh_link struct ssh_link *l = calloc(1, sizeof(*l));
	int r;

	if (!l) {
		if (fd >= 0)
			close(fd);
		return err_sys(e, -ENOMEM, "SSH");
	}
	l->fd = fd;
	if (!(l->session = ssh_new()))
		return err_sys(e, -ENOMEM, "SSH");
	if (configure(l->session, t, timeout_ms) < 0 ||
		(fd >= 0 && ssh_options_set(l->session, SSH_OPTIONS_FD, &fd) < 0))
		return fail(e, -EINVAL, "SSH options", l->session);
	errno = 0;
	if (ssh_connect(l->session) != SSH_OK) {
		r = errno == ECONNREFUSED ? -ECONNREFUSED : -ETIMEDOUT;
		if (t->what)
			return err_set(e, -EPROTO, "%.100s speaks no SSH with us: %.250s",
				t->what, ssh_get_error(l->session));
		return fail(e, r, "the machine does not answer", l->session);
	}
	r = check_host_key(l->session, t, e);
	if (r == 0)
		r = authenticate(l->session, t, e);
	if (r == 0)
		*ret = TAKE_PTR(l);
	return r;
}

int
ssh_link_open(const struct ssh_target *t, unsigned timeout_ms, struct ssh_link **ret,
	struct err *e)
{
	return open_link(-1, t, timeout_ms, ret, e);
}

int
ssh_link_open_fd(int fd, const struct ssh_target *t, unsigned timeout_ms,
	struct ssh_link **ret, struct err *e)
{
	/* A name that libssh may look at as it likes. */
	struct ssh_target named = *t;

	named.address = "pando-vm";
	named.port = 22;
	return open_link(fd, &named, timeout_ms, ret, e);
}

void
ssh_link_close(struct ssh_link *l)
{
	if (!l)
		return;
	if (l->session) {
		ssh_disconnect(l->session);
		ssh_free(l->session);
	}
	if (l->fd >= 0)
		close(l->fd);
	free(l);
}

/* One command ----------------------------------------------------------------------- */

/* RFC 4254, 6.10: names without "SIG". */
static const struct {
	const char *name;
	int number;
} signals[] = {
	{"ABRT", SIGABRT},
	{"ALRM", SIGALRM},
	{"FPE", SIGFPE},
	{"HUP", SIGHUP},
	{"ILL", SIGILL},
	{"INT", SIGINT},
	{"KILL", SIGKILL},
	{"PIPE", SIGPIPE},
	{"QUIT", SIGQUIT},
	{"SEGV", SIGSEGV},
	{"TERM", SIGTERM},
	{"USR1", SIGUSR1},
	{"USR2", SIGUSR2},
};

/* What waits to be written to one of our descriptors. */
struct outlet {
	int fd; /* borrowed; -1: thrown away */
	size_t at, len;
	char buf[32768];
};

struct run {
	ssh_session session; /* borrowed */
	ssh_channel channel; /* owned */
	ssh_event event; /* owned; takes packets off the socket and sends what waits */
	const struct ssh_command *c;
	bool in_done;
	bool has_status;
	int status, signal;
	unsigned n_signals;
	uint64_t signalled_ns; /* by the first */
	uint64_t heard_ns;     /* when something last came, or the command ended */
	uint64_t deadline_ns; /* by a clock that stands while the machine does; 0: none */
	uint64_t paused_ms;   /* c->paused_ms() at the begin */
	uint64_t held_ns;     /* what that has become more since */
	struct outlet out[2]; /* stdout, stderr */
};

static void
on_exit_status(ssh_session session, ssh_channel channel, int status, void *ctx)
{
	struct run *r = ctx;

	(void)session;
	(void)channel;
	r->has_status = true;
	r->status = status;
	r->heard_ns = io_now_ns();
}

static void
on_exit_signal(ssh_session session, ssh_channel channel, const char *name, int core,
	const char *message, const char *language, void *ctx)
{
	struct run *r = ctx;

	(void)session;
	(void)channel;
	(void)core;
	(void)message;
	(void)language;
	r->has_status = true;
	r->heard_ns = io_now_ns();
	r->status = 128 + SIGKILL; /* a signal that the protocol has no name for */
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		if (name && strcmp(name, signals[i].name) == 0)
			r->status = 128 + signals[i].number;
	r->signal = r->status - 128;
}

static void
send_size(struct run *r)
{
	struct winsize w;

	if (r->c->tty && ioctl(r->c->in_fd, TIOCGWINSZ, &w) == 0 && w.ws_col && w.ws_row)
		ssh_channel_change_pty_size(r->channel, w.ws_col, w.ws_row);
}

static int
start(struct run *r, ssh_channel_callbacks callbacks, struct err *e)
{
	struct winsize w = {.ws_row = 24, .ws_col = 80};

	r->channel = ssh_channel_new(r->session);
	/* Before the command runs: it may end before its start is answered. */
	if (!r->channel || ssh_set_channel_callbacks(r->channel, callbacks) != SSH_OK ||
		ssh_channel_open_session(r->channel) != SSH_OK)
		return fail(e, -EIO, "the machine opens no session", r->session);
	if (r->c->tty) {
		ioctl(r->c->in_fd, TIOCGWINSZ, &w);
		if (ssh_channel_request_pty_size(r->channel,
			    r->c->term ? r->c->term : "dumb", w.ws_col ? w.ws_col : 80,
			    w.ws_row ? w.ws_row : 24) != SSH_OK)
			return fail(e, -EIO, "the machine gives no terminal", r->session);
	}
	if ((r->c->text ? ssh_channel_request_exec(r->channel, r->c->text)
			: ssh_channel_request_shell(r->channel)) != SSH_OK)
		return fail(
			e, -EIO, "the machine does not start the command", r->session);
	return 0;
}

/* Takes a signal of ours. Returns -ECANCELED when it is the second one. */
static int
take_signal(struct run *r, struct err *e)
{
	struct signalfd_siginfo info;

	if (io_read(r->c->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return 0;
	if (info.ssi_signo == SIGWINCH) {
		send_size(r);
		return 0;
	}
	if (io_signal_echoes(&r->signalled_ns))
		return 0;
	r->n_signals++;
	if (r->c->on_signal)
		r->c->on_signal(r->c->ctx, (int)info.ssi_signo, r->n_signals);
	if (r->c->impatient)
		return err_set(e, -ECANCELED, "cancelled");
	return r->n_signals > 1 ? err_set(e, -ECANCELED, "interrupted twice") : 0;
}

/* Our stdin to the channel, as much as its window takes, and only when nothing waits to
 * go out. */
static int
feed(struct run *r, struct err *e)
{
	char buf[32768];
	uint32_t window = ssh_channel_window_size(r->channel);
	size_t want = window < sizeof(buf) ? window : sizeof(buf);
	ssize_t n = r->c->input ? r->c->input(r->c->ctx, buf, want, e)
				: io_read(r->c->in_fd, buf, want);
	int sent;

	if (r->c->input && n < 0)
		return (int)n;
	if (n == -EAGAIN)
		return 0;
	if (n <= 0) {
		/* A terminal that went away (-EIO) is an end of input, too. */
		r->in_done = true;
		ssh_channel_send_eof(r->channel);
		return 0;
	}
	for (ssize_t done = 0; done < n; done += sent) {
		sent = ssh_channel_write(r->channel, buf + done, (uint32_t)(n - done));
		if (sent <= 0) { /* never 0: no more is written than the window takes */
			/* The command closed its stdin; that is its right. */
			if (ssh_is_connected(r->session)) {
				r->in_done = true;
				return 0;
			}
			return fail(e, -ECONNRESET, "the connection to the machine ended",
				r->session);
		}
	}
	return 0;
}

/* Fills an empty outlet from the channel. Returns 1 if there was anything, 0 if not,
 * -errno. */
static int
fetch(struct run *r, int which, struct err *e)
{
	struct outlet *o = &r->out[which];
	int n;

	if (o->len > o->at)
		return 0;
	n = ssh_channel_read_nonblocking(r->channel, o->buf, sizeof(o->buf), which);
	if (n == SSH_ERROR && !ssh_channel_is_closed(r->channel))
		return fail(e, -ECONNRESET, "the connection to the machine ended",
			r->session);
	if (n <= 0)
		return 0;
	r->heard_ns = io_now_ns();
	o->at = 0;
	o->len = o->fd < 0 || r->c->output ? 0 : (size_t)n;
	if (r->c->output) {
		n = r->c->output(r->c->ctx, which + 1, o->buf, (size_t)n, e);
		return n < 0 ? n : 1;
	}
	return 1;
}

/* At most PIPE_BUF bytes: after POLLOUT these do not block, though the descriptor is a
 * blocking one. */
static int
drain(struct outlet *o, struct err *e)
{
	size_t n = o->len - o->at;
	ssize_t done;

	do
		done = write(o->fd, o->buf + o->at, n < 4096 ? n : 4096);
	while (done < 0 && errno == EINTR);
	if (done < 0 && errno == EAGAIN)
		return 0;
	if (done < 0 && errno == EPIPE)
		return err_set(
			e, -EPIPE, "nobody reads what the command prints any more");
	if (done < 0)
		return err_sys(e, -errno, "writing what the command printed");
	o->at += (size_t)done;
	return 0;
}

enum { AT_SESSION, AT_SIGNAL, AT_IN, AT_OUT, AT_ERR, AT_COUNT };

static void
prepare_poll(struct run *r, struct pollfd p[AT_COUNT])
{
	bool writing = (ssh_get_poll_flags(r->session) & SSH_WRITE_PENDING) != 0;

	for (int i = 0; i < AT_COUNT; i++)
		p[i] = (struct pollfd){.fd = -1};
	p[AT_SESSION].fd = ssh_get_fd(r->session);
	p[AT_SESSION].events = (short)(POLLIN | (writing ? POLLOUT : 0));
	p[AT_SIGNAL].fd = r->c->signal_fd;
	p[AT_SIGNAL].events = POLLIN;
	if (!r->in_done && !writing && ssh_channel_window_size(r->channel)) {
		p[AT_IN].fd = r->c->input ? -1 : r->c->in_fd;
		p[AT_IN].events = POLLIN;
		/* Only seen by us: what makes input has always some. */
		p[AT_IN].revents = r->c->input ? POLLIN : 0;
	}
	for (int i = 0; i < 2; i++) {
		if (r->out[i].len > r->out[i].at) {
			p[AT_OUT + i].fd = r->out[i].fd;
			p[AT_OUT + i].events = POLLOUT;
		}
	}
}

/* The command's output is all there is and will be. */
static bool
is_over(const struct run *r)
{
	if (r->out[0].at < r->out[0].len || r->out[1].at < r->out[1].len)
		return false;
	if (ssh_channel_is_closed(r->channel) ||
		(r->has_status && ssh_channel_is_eof(r->channel)))
		return true;
	return r->has_status && io_now_ns() - r->heard_ns > LINGER_MS * UINT64_C(1000000);
}

static bool
is_too_late(struct run *r)
{
	uint64_t paused_ms;

	if (!r->deadline_ns || io_now_ns() <= r->deadline_ns + r->held_ns)
		return false;
	if (!r->c->paused_ms)
		return true;
	paused_ms = r->c->paused_ms(r->c->ctx);
	if (paused_ms > r->paused_ms)
		r->held_ns = (paused_ms - r->paused_ms) * UINT64_C(1000000);
	return io_now_ns() > r->deadline_ns + r->held_ns;
}

/* Returns 1 when all is over, 0 to go on, -errno. */
static int
turn(struct run *r, struct err *e)
{
	struct pollfd p[AT_COUNT];
	int got = 0, n, i, rc;
	bool input;

	/* Reading from the channel alone would not: after its end of file nothing looks
	 * at the socket, and the command's status mostly comes after that. */
	if (ssh_event_dopoll(r->event, 0) == SSH_ERROR && !ssh_is_connected(r->session) &&
		!r->has_status)
		return fail(e, -ECONNRESET, "the connection to the machine ended",
			r->session);
	for (i = 0; i < 2; i++) {
		n = fetch(r, i, e);
		if (n < 0)
			return n;
		got |= n;
	}
	if (!got && is_over(r))
		return 1;
	if (is_too_late(r))
		return err_set(e, -ETIMEDOUT, "the command did not end in %u ms",
			r->c->timeout_ms);
	if (!got && !ssh_is_connected(r->session))
		return err_set(e, -ECONNRESET,
			"the connection to the machine ended before the command did");
	prepare_poll(r, p);
	input = p[AT_IN].revents != 0;
	/* libssh may have taken a packet off the socket that it gives us in the next
	 * round: after something came, only look. */
	if (poll(p, AT_COUNT, got || input ? 0 : r->has_status ? 100 : 1000) < 0)
		return errno == EINTR ? 0 : err_sys(e, -errno, "poll");
	if (p[AT_SIGNAL].revents && (rc = take_signal(r, e)) < 0)
		return rc;
	for (i = 0; i < 2; i++)
		if (p[AT_OUT + i].revents && (rc = drain(&r->out[i], e)) < 0)
			return rc;
	if ((input || p[AT_IN].revents) && (rc = feed(r, e)) < 0)
		return rc;
	return 0;
}

int
ssh_link_run(
	struct ssh_link *l, const struct ssh_command *c, int *ret_status, struct err *e)
{
	cleanup_free struct run *r = calloc(1, sizeof(*r));
	struct ssh_channel_callbacks_struct callbacks = {
		.userdata = r,
		.channel_exit_status_function = on_exit_status,
		.channel_exit_signal_function = on_exit_signal,
	};
	int rc;

	if (!r)
		return err_sys(e, -ENOMEM, "SSH");
	r->session = l->session;
	r->c = c;
	r->out[0].fd = c->out_fd;
	r->out[1].fd = c->err_fd;
	r->deadline_ns =
		c->timeout_ms ? io_now_ns() + c->timeout_ms * UINT64_C(1000000) : 0;
	if (r->deadline_ns && c->paused_ms)
		r->paused_ms = c->paused_ms(c->ctx);
	ssh_callbacks_init(&callbacks);
	ssh_set_blocking(r->session, 1);
	rc = start(r, &callbacks, e);
	if (rc == 0) {
		if (c->in_fd < 0 && !c->input) {
			r->in_done = true;
			ssh_channel_send_eof(r->channel);
		}
		ssh_set_blocking(r->session, 0);
		r->event = ssh_event_new();
		if (!r->event || ssh_event_add_session(r->event, r->session) != SSH_OK)
			rc = err_sys(e, -ENOMEM, "SSH");
		while (rc == 0)
			rc = turn(r, e);
		ssh_set_blocking(r->session, 1);
	}
	if (r->channel) {
		ssh_remove_channel_callbacks(r->channel, &callbacks);
		ssh_channel_close(r->channel);
		ssh_channel_free(r->channel);
	}
	if (r->event) {
		ssh_event_remove_session(r->event, r->session);
		ssh_event_free(r->event);
	}
	if (rc < 0)
		return rc;
	if (!r->has_status)
		return err_set(e, -EPROTO, "the command ended without saying how");
	*ret_status = r->status;
	if (c->ret_signal)
		*c->ret_signal = r->signal;
	return 0;
}
