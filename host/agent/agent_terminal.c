/* Execute in this process's own terminal. */
#include "host/agent/agent_client.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "common/cleanup.h"
#include "host/agent/terminal.h"

struct session {
	struct terminal *terminal;
	struct terminal_keys keys;
};

static int
on_wake(void *ctx, struct agent_session *s)
{
	struct session *x = ctx;
	uint16_t rows, cols;

	switch (terminal_wake(x->terminal)) {
	case TERMINAL_RESIZED:
		terminal_size(x->terminal, &rows, &cols);
		agent_session_winsize(s, rows, cols);
		return 0;
	case TERMINAL_ENDED:
		agent_session_signal(s, SIGHUP);
		return -ECANCELED;
	default:
		return 0;
	}
}

static ssize_t
on_input(void *ctx, struct agent_session *s, const char *in, size_t len, char *out)
{
	struct session *x = ctx;
	enum terminal_key key = TERMINAL_NO_KEY;
	size_t at = 0, n = 0, more;
	uint16_t rows, cols;

	if (!len) {
		/* A terminal has no end of input but its own. */
		agent_session_signal(s, SIGHUP);
		return -ECANCELED;
	}
	while (at < len) {
		at += terminal_keys_take(
			&x->keys, in + at, len - at, out + n, &more, &key);
		n += more;
		switch (key) {
		case TERMINAL_LEAVE:
			agent_session_signal(s, SIGHUP);
			return -ECANCELED;
		case TERMINAL_HELP:
			terminal_help(x->terminal, x->keys.escape);
			break;
		case TERMINAL_SUSPEND:
			terminal_suspend(x->terminal);
			terminal_size(x->terminal, &rows, &cols);
			agent_session_winsize(s, rows, cols);
			break;
		case TERMINAL_NO_KEY:
			break;
		}
	}
	return (ssize_t)n;
}

static void
on_started(void *ctx, const char *id)
{
	struct session *x = ctx;

	(void)id;
	terminal_raw(x->terminal);
}

static void
on_seen(void *ctx, const void *buf, size_t len)
{
	struct session *x = ctx;

	terminal_saw(x->terminal, buf, len);
}

int
agent_exec_terminal(const char *socket_path, const struct agent_exec_req *req,
	struct agent_exec_result *ret, struct err *e)
{
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct session x = {.keys.escape = req->escape};
	struct agent_exec_req q = *req;
	int r = terminal_open(&x.terminal, e);

	if (r < 0)
		return r;
	terminal_size(x.terminal, &q.rows, &q.cols);
	q.tty = true;
	if (!q.term)
		q.term = getenv("TERM");
	io.stdin_fd = STDIN_FILENO;
	io.stdout_fd = terminal_out_fd(x.terminal);
	io.wake_fd = terminal_wake_fd(x.terminal);
	io.wake = on_wake;
	io.started = on_started;
	io.input = on_input;
	io.seen = on_seen;
	io.ctx = &x;
	r = agent_exec(socket_path, &q, &io, ret, e);
	terminal_close(x.terminal, r < 0);
	return r;
}
