#include "guest-agent/server/conn_priv.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "guest-agent/identity/apply.h"
#include "guest-agent/server/dial.h"
#include "guest-agent/server/exec.h"
#include "guest-agent/server/files.h"
#include "guest-agent/server/sshd.h"

/* The answer to an identity handshake comes first, also where the end is known at once. */
static void
handshake_begins(struct conn *c)
{
	if (c->role == IN_HANDSHAKE)
		return;
	c->role = IN_HANDSHAKE;
	conn_answer_ok(c);
}

static void
handshake_step(void *ctx, const char *name)
{
	struct conn *c = ctx;

	handshake_begins(c);
	if (!c->dead)
		conn_put_frame(c, AGENT_STEP, 0, name, strlen(name));
	if (!c->dead)
		deferred_queue(&c->flush);
}

static void
handshake_acknowledged(void *ctx, const char *json)
{
	struct conn *c = ctx;

	handshake_begins(c);
	if (!c->dead)
		conn_put_frame(c, AGENT_ACK, 0, json, strlen(json));
	if (c->dead)
		return;
	c->role = DONE;
	deferred_queue(&c->flush);
}

static void
handshake_failed(void *ctx, const struct err *why)
{
	struct conn *c = ctx;

	handshake_begins(c);
	if (!c->dead)
		conn_fail(c, why);
}

static const struct apply_listener handshake_listener = {
	.step = handshake_step,
	.done = handshake_acknowledged,
	.failed = handshake_failed,
};

static void
command_news(void *ctx)
{
	struct conn *c = ctx;

	deferred_queue(&c->flush);
}

static void
command_superseded(void *ctx)
{
	struct conn *c = ctx;

	c->superseded = true;
	/* Half a frame cannot be finished: the journal is not held for us any more. */
	if (c->frame_at < c->n_frames)
		conn_drop(c);
	else
		deferred_queue(&c->flush);
}

static const struct exec_listener command_listener = {
	.news = command_news,
	.superseded = command_superseded,
};

/* On success the dial takes over: our socket, what is still to be sent and what has come.
 */
static void
dialled(void *ctx, const struct err *why)
{
	struct conn *c = ctx;
	struct dial *d = TAKE_PTR(c->dial);
	int fd = c->src.fd;

	if (why) {
		conn_fail(c, why);
		return;
	}
	conn_answer_ok(c);
	if (c->dead) {
		dial_cancel(d);
		return;
	}
	source_wait(&c->src, 0);
	c->src.fd = -1;
	dial_run(d, fd, c->tx + c->tx_at, c->tx_len - c->tx_at, c->rx, c->rx_len);
	conn_drop(c);
}

static void
answer_exec(struct conn *c, struct exec *x, const struct request *q)
{
	cleanup_json_out struct json_out o = {0};
	struct exec_stdin_state in = exec_stdin_state(x);
	char id[24];

	snprintf(id, sizeof(id), "e%llu", (unsigned long long)exec_id(x));
	json_out_object(&o, NULL);
	json_out_bool(&o, "ok", true);
	json_out_str(&o, "id", id);
	if (q->op == REQUEST_ATTACH)
		json_out_u64(&o, "stdin_bytes", in.accepted);
	json_out_end_object(&o);
	if (q->op == REQUEST_EXEC && q->detach) {
		c->role = DONE;
	} else {
		c->role = IN_EXEC;
		c->exec = x;
		c->with_stdin = q->want_stdin || q->tty;
		/* exec: the host knows the first window; attach: it is told. */
		c->credit_told = q->op == REQUEST_EXEC ? AGENT_STDIN_WINDOW : 0;
		for (int i = 0; i < 2; i++)
			c->claimed[i] = q->offset[i];
		exec_attach(x, &command_listener, c, q->offset);
	}
	conn_answer(c, &o);
}

static int
attach(struct conn *c, const struct request *q, struct err *e)
{
	struct exec *x = exec_find(q->id);

	if (!x)
		return err_set(e, -ESRCH,
			"no command e%llu: it never was, or its end was taken",
			(unsigned long long)q->id);
	for (int i = 0; i < 2; i++)
		if (q->offset[i] > exec_output(x, i)->end)
			return err_set(e, -EINVAL,
				"command e%llu has written %llu bytes to %s, not %llu",
				(unsigned long long)q->id,
				(unsigned long long)exec_output(x, i)->end,
				i ? "stderr" : "stdout",
				(unsigned long long)q->offset[i]);
	answer_exec(c, x, q);
	return 0;
}

static void
answer_ping(struct conn *c)
{
	cleanup_json_out struct json_out o = {0};
	cleanup_free char *boot_id = NULL;
	struct timespec up;

	clock_gettime(CLOCK_BOOTTIME, &up);
	if (!io_read_file("/proc/sys/kernel/random/boot_id", 256, &boot_id, NULL, NULL))
		boot_id[strcspn(boot_id, "\n")] = 0;
	json_out_object(&o, NULL);
	json_out_bool(&o, "ok", true);
	json_out_str(&o, "version", PANDO_VERSION);
	json_out_u64(&o, "uptime_ms",
		(uint64_t)up.tv_sec * 1000 + (uint64_t)up.tv_nsec / 1000000);
	json_out_str(&o, "boot_id", boot_id ? boot_id : "");
	json_out_end_object(&o);
	c->role = DONE;
	conn_answer(c, &o);
}

static int
answer_list(struct conn *c, const struct request *q, struct err *e)
{
	cleanup_json_out struct json_out o = {0};
	int r = 0;

	json_out_object(&o, NULL);
	json_out_bool(&o, "ok", true);
	if (q->op == REQUEST_LIST) {
		r = files_list(q->path, &o, e);
	} else {
		json_out_array(&o, "execs");
		exec_list(&o);
		json_out_end_array(&o);
	}
	if (r)
		return r;
	json_out_end_object(&o);
	c->role = DONE;
	conn_answer(c, &o);
	return 0;
}

int
conn_begin(struct conn *c, struct request *q, struct err *e)
{
	cleanup_free char *path = NULL;
	struct exec *x;
	struct stat st;
	int r = 0;

	switch (q->op) {
	case REQUEST_PING:
		answer_ping(c);
		return 0;
	case REQUEST_EXEC:
		if (apply_runs())
			return err_set(e, -EINPROGRESS,
				"an identity handshake is under way; the machine takes commands when it is done");
		r = exec_start(q, &x, e);
		if (!r)
			answer_exec(c, x, q);
		return r;
	case REQUEST_ATTACH:
		return attach(c, q, e);
	case REQUEST_SIGNAL:
		x = exec_find(q->id);
		if (!x)
			return err_set(
				e, -ESRCH, "no command e%llu", (unsigned long long)q->id);
		r = exec_signal(x, q->signal, e);
		if (!r) {
			c->role = DONE;
			conn_answer_ok(c);
		}
		return r;
	case REQUEST_KILL_SSH:
		r = sshd_kill(q->connection, e);
		if (!r) {
			c->role = DONE;
			conn_answer_ok(c);
		}
		return r;
	case REQUEST_PUT:
		r = files_put(q->path, q->user, &c->unpack, e);
		if (!r)
			c->role =
				IN_PUT; /* conn.c starts it, and gives it what came since */
		return r;
	case REQUEST_GET:
		r = files_path(q->path, NULL, &path, e);
		if (!r && lstat(path, &st))
			r = err_sys(e, -errno, "\"%s\"", q->path);
		if (!r)
			r = files_get(path, &c->pack, e);
		if (!r) {
			c->role = IN_GET;
			conn_answer_ok(c);
		}
		return r;
	case REQUEST_HANDSHAKE:
		if (!c->is_host)
			return err_set(e, -EPERM,
				"only the host says who this machine is, and only over vsock");
		r = apply_begin(q->handshake, &handshake_listener, c, e);
		if (!r && c->role == AT_REQUEST)
			handshake_begins(c);
		return r;
	case REQUEST_DIAL:
		if (apply_runs())
			return err_set(e, -EINPROGRESS,
				"an identity handshake is under way; the machine takes connections when it is done");
		r = dial_begin(q->port, dialled, c, &c->dial, e);
		if (!r)
			c->role = DIALLING;
		return r;
	case REQUEST_STAY:
		c->role = STAYING;
		conn_answer_ok(c);
		return 0;
	case REQUEST_LIST:
	case REQUEST_LIST_EXECS:
		return answer_list(c, q, e);
	}
	return err_set(e, -ENOSYS, "no such operation");
}

int
conn_take_frame(struct conn *c, const struct agent_frame *f, struct err *e)
{
	struct agent_winsize ws;
	uint32_t signo;

	switch (f->type) {
	case AGENT_STDIN:
		if (!c->with_stdin)
			return err_set(e, -EPROTO,
				"input for a command that was started without");
		return exec_stdin(c->exec, f->payload, f->len, e);
	case AGENT_STDIN_EOF:
		if (c->with_stdin)
			exec_stdin_eof(c->exec);
		return 0;
	case AGENT_WINSIZE:
		memcpy(&ws, f->payload, sizeof(ws));
		exec_winsize(c->exec, ws.rows, ws.cols);
		return 0;
	case AGENT_SIGNAL:
		memcpy(&signo, f->payload, sizeof(signo));
		if (!signo || signo > 64)
			return err_set(e, -EPROTO, "signal %u", signo);
		/* One that comes after the end is late, not wrong. */
		exec_signal(c->exec, (int)signo, NULL);
		return 0;
	case AGENT_TAKEN:
		if (!c->exit_told || c->frame_at < c->n_frames)
			return err_set(
				e, -EPROTO, "the end was taken before it was there");
		exec_taken(c->exec);
		c->exec = NULL;
		c->role = DONE;
		return 0;
	case AGENT_DETACH:
		conn_drop(c);
		return 0;
	default:
		return err_set(e, -EPROTO, "frame type %u in a command", f->type);
	}
}
