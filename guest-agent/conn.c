#include "guest-agent/conn.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/agent_frame.h"
#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "common/tar.h"
#include "guest-agent/become.h"
#include "guest-agent/dial.h"
#include "guest-agent/exec.h"
#include "guest-agent/files.h"
#include "guest-agent/loop.h"
#include "guest-agent/request.h"
#include "guest-agent/sshd.h"

#define FIRST_RX 2048
#define STREAM_RX (2 * AGENT_FRAME_WHOLE)
#define CONNECT_LINE_MAX 32
#define OK_LINE "OK 1073741824\n"
/* To say what is wanted; to close after the terminal record. */
#define REQUEST_NS 10000000000ull
#define CLOSE_NS 10000000000ull
/* Sends of one connection before the others get their turn. */
#define SENDS_A_TURN 8

enum role {
	AT_CONNECT, /* waits for "CONNECT <port>\n" */
	AT_REQUEST,
	IN_EXEC,
	IN_PUT,
	IN_GET,
	IN_HELLO,
	DIALLING, /* the answer comes when the port has said yes or no */
	STAYING,
	DONE, /* the last word is said or queued; waits for the peer to close */
};

/* A frame on its way out: its head, and for output a piece of the command's journal. */
struct out_frame {
	uint8_t head[sizeof(struct agent_frame_hdr) + sizeof(struct agent_exit) + 256];
	size_t head_len, head_at;
	int stream;
	uint64_t from, to;
};

struct conn {
	struct conn *next; /* first: loop_free() writes here */
	struct source src;
	struct chore flush;
	struct timer deadline;
	enum role role;
	bool read_eof, superseded, dead, is_host;

	char *rx; /* owned */
	size_t rx_len, rx_cap;
	char *tx; /* owned: answers, control frames, file data */
	size_t tx_at, tx_len, tx_cap;
	struct out_frame frame[3];
	unsigned n_frames, frame_at;

	struct exec *exec;   /* weak: the table's, told by detach and taken */
	uint64_t claimed[2]; /* of each stream, what frames were made of */
	bool with_stdin, closed_told, exit_told;
	uint64_t credit_told;

	struct dial *dial;	   /* owned, while DIALLING */
	struct tar_unpack *unpack; /* owned */
	struct tar_pack *pack;	   /* owned */
};

static struct conn *conns;
static unsigned n_conns;

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

/* Descriptors of a copy that is over are not held until the peer closes. */
static void
close_files(struct conn *c)
{
	tar_unpack_close(c->unpack);
	tar_pack_close(c->pack);
	c->unpack = NULL;
	c->pack = NULL;
}

static void
drop(struct conn *c)
{
	struct conn **at = &conns;

	if (c->dead)
		return;
	c->dead = true;
	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	n_conns--;
	if (c->exec)
		exec_detach(c->exec, c);
	if (c->role == IN_HELLO)
		become_leave(c);
	if (c->dial)
		dial_cancel(c->dial);
	source_close(&c->src);
	timer_stop(&c->deadline);
	chore_drop(&c->flush);
	close_files(c);
	free(c->rx);
	free(c->tx);
	loop_free(c);
}

/*
 * Out.
 */

static char *
tx_room(struct conn *c, size_t n)
{
	if (c->tx_at == c->tx_len)
		c->tx_at = c->tx_len = 0;
	if (c->tx_len + n > c->tx_cap) {
		char *bigger = realloc(c->tx, c->tx_len + n);

		if (!bigger)
			return NULL;
		c->tx = bigger;
		c->tx_cap = c->tx_len + n;
	}
	return c->tx + c->tx_len;
}

static void
put_frame(struct conn *c, uint8_t type, uint8_t stream, const void *payload, size_t len)
{
	struct agent_frame_hdr h = agent_frame_hdr(type, stream, (uint32_t)len);
	char *at = tx_room(c, sizeof(h) + len);

	if (!at) {
		drop(c);
		return;
	}
	memcpy(at, &h, sizeof(h));
	if (len)
		memcpy(at + sizeof(h), payload, len);
	c->tx_len += sizeof(h) + len;
}

static void
put_error(struct conn *c, int code, const char *sentence)
{
	char payload[sizeof(struct agent_error) + 512];
	struct agent_error h = {.code = code};
	size_t len = strnlen(sentence, 512);

	memcpy(payload, &h, sizeof(h));
	memcpy(payload + sizeof(h), sentence, len);
	put_frame(c, AGENT_ERROR, 0, payload, sizeof(h) + len);
}

/* The answer line. Takes o's buffer. */
static void
answer(struct conn *c, struct json_out *o)
{
	char *at;

	if (o->error || !(at = tx_room(c, o->len + 1))) {
		drop(c);
		return;
	}
	memcpy(at, o->buf, o->len);
	at[o->len] = '\n';
	c->tx_len += o->len + 1;
	chore_queue(&c->flush);
}

static void
answer_ok(struct conn *c)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_bool(&o, "ok", true);
	json_out_end_object(&o);
	answer(c, &o);
}

/* The last word: an error line before the ok, an error frame after it. */
static void
fail(struct conn *c, const struct err *e)
{
	if (c->role == AT_CONNECT || c->role == AT_REQUEST || c->role == DIALLING) {
		cleanup_json_out struct json_out o = {0};
		const char *name = strerrorname_np(-e->code);

		json_out_object(&o, NULL);
		json_out_bool(&o, "ok", false);
		json_out_str(&o, "error", e->msg);
		json_out_str(&o, "errno", name ? name : "EIO");
		json_out_i64(&o, "code", e->code);
		json_out_end_object(&o);
		c->role = DONE;
		answer(c, &o);
		return;
	}
	/* A frame half sent is finished first: refill() turns this into the error frame.
	 */
	if (c->exec) {
		exec_detach(c->exec, c);
		c->exec = NULL;
	}
	for (unsigned i = c->frame_at; i < c->n_frames; i++)
		if (i > c->frame_at || !c->frame[i].head_at)
			c->n_frames = i;
	if (c->frame_at < c->n_frames) {
		/* Its payload is in a journal that is no longer held for us. */
		drop(c);
		return;
	}
	close_files(c);
	put_error(c, e->code, e->msg);
	if (c->dead)
		return;
	c->role = DONE;
	chore_queue(&c->flush);
}

static void
claim(struct conn *c, int i, const struct ring *r)
{
	struct out_frame *f = &c->frame[c->n_frames];
	uint64_t len = r->end - c->claimed[i];
	struct agent_frame_hdr h;
	struct agent_output o = {.offset = c->claimed[i]};

	if (!len)
		return;
	if (len > AGENT_FRAME_MAX - sizeof(o))
		len = AGENT_FRAME_MAX - sizeof(o);
	h = agent_frame_hdr(
		i ? AGENT_STDERR : AGENT_STDOUT, 0, (uint32_t)(sizeof(o) + len));
	memcpy(f->head, &h, sizeof(h));
	memcpy(f->head + sizeof(h), &o, sizeof(o));
	f->head_len = sizeof(h) + sizeof(o);
	f->head_at = 0;
	f->stream = i;
	f->from = c->claimed[i];
	f->to = f->from + len;
	c->claimed[i] = f->to;
	c->n_frames++;
}

static void
claim_exit(struct conn *c, const struct agent_exit *x, const char *message)
{
	struct out_frame *f = &c->frame[c->n_frames++];
	size_t len = strnlen(message, 255);
	struct agent_frame_hdr h =
		agent_frame_hdr(AGENT_EXIT, 0, (uint32_t)(sizeof(*x) + len));

	memcpy(f->head, &h, sizeof(h));
	memcpy(f->head + sizeof(h), x, sizeof(*x));
	memcpy(f->head + sizeof(h) + sizeof(*x), message, len);
	f->head_len = sizeof(h) + sizeof(*x) + len;
	f->head_at = 0;
	f->from = f->to = 0;
	c->exit_told = true;
}

static void
refill_exec(struct conn *c)
{
	struct exec_stdin_state in = exec_stdin_state(c->exec);
	struct agent_exit exit;
	const char *message;
	bool all = true;

	if (c->with_stdin && in.closed && !c->closed_told) {
		c->closed_told = true;
		put_frame(c, AGENT_STDIN_CLOSED, 0, NULL, 0);
	} else if (c->with_stdin && !in.closed &&
		   in.limit - c->credit_told >= AGENT_STDIN_WINDOW / 4) {
		struct agent_stdin_credit credit = {.limit = in.limit};

		c->credit_told = in.limit;
		put_frame(c, AGENT_STDIN_CREDIT, 0, &credit, sizeof(credit));
	}
	for (int i = 0; i < 2 && !c->dead; i++) {
		const struct ring *r = exec_output(c->exec, i);

		if (r->start > c->claimed[i]) {
			struct agent_gap gap = {c->claimed[i], r->start - c->claimed[i]};

			c->claimed[i] = r->start;
			put_frame(c, AGENT_GAP, (uint8_t)(i + 1), &gap, sizeof(gap));
			if (c->dead)
				return;
			exec_sent(c->exec, i, r->start);
		}
		claim(c, i, r);
		all = all && c->claimed[i] == r->end;
	}
	if (!c->dead && all && !c->exit_told && exec_ended(c->exec, &exit, &message))
		claim_exit(c, &exit, message);
}

static void
refill_get(struct conn *c)
{
	struct err e = {0};
	char *at = tx_room(c, AGENT_FRAME_WHOLE);
	struct agent_frame_hdr h;
	ssize_t n;

	if (!at) {
		drop(c);
		return;
	}
	n = tar_pack_read(c->pack, at + sizeof(h), AGENT_FRAME_MAX, &e);
	if (n < 0) {
		fail(c, &e);
		return;
	}
	if (!n) {
		const struct tar_stats *s = tar_pack_stats(c->pack);
		struct agent_end end = {
			s->files, s->folders, s->links, s->skipped, s->bytes};

		close_files(c);
		put_frame(c, AGENT_END, 0, &end, sizeof(end));
		c->role = DONE;
		return;
	}
	h = agent_frame_hdr(AGENT_DATA, 0, (uint32_t)n);
	memcpy(at, &h, sizeof(h));
	c->tx_len += sizeof(h) + (size_t)n;
}

/* Makes something to send, if there is anything. Only between frames. */
static void
refill(struct conn *c)
{
	if (c->frame_at < c->n_frames)
		return;
	c->frame_at = c->n_frames = 0;
	if (c->superseded && c->role == IN_EXEC) {
		struct err e = {-EBUSY, "somebody else has attached to this command"};

		c->exec = NULL;
		fail(c, &e);
	} else if (c->role == IN_EXEC && !c->exit_told) {
		refill_exec(c);
	} else if (c->role == IN_GET && c->tx_at == c->tx_len) {
		refill_get(c);
	}
}

/* n bytes went out. */
static void
went(struct conn *c, size_t n)
{
	size_t part = c->tx_len - c->tx_at < n ? c->tx_len - c->tx_at : n;

	c->tx_at += part;
	n -= part;
	while (n) {
		struct out_frame *f = &c->frame[c->frame_at];

		part = f->head_len - f->head_at < n ? f->head_len - f->head_at : n;
		f->head_at += part;
		n -= part;
		part = f->to - f->from < n ? (size_t)(f->to - f->from) : n;
		if (part) {
			f->from += part;
			n -= part;
			exec_sent(c->exec, f->stream, f->from);
		}
		if (f->head_at == f->head_len && f->from == f->to)
			c->frame_at++;
	}
}

static void
wait_for(struct conn *c, bool out)
{
	/* EPOLLPRI stands for nothing: hang-ups are still reported. */
	source_wait(&c->src, (c->read_eof ? EPOLLPRI : EPOLLIN) | (out ? EPOLLOUT : 0u));
}

/* The peer does not read any more. What it said before counts: a signal, its taking of
 * the end. */
static bool receive(struct conn *c);
static void
gone(struct conn *c)
{
	while (!c->dead && !c->read_eof && receive(c))
		;
	drop(c);
}

static void
flush(struct chore *ch)
{
	struct conn *c = container_of(ch, struct conn, flush);

	for (int turn = 0; turn < SENDS_A_TURN; turn++) {
		struct iovec iov[10];
		struct msghdr msg = {.msg_iov = iov};
		ssize_t n;

		refill(c);
		if (c->dead)
			return;
		if (c->tx_at < c->tx_len)
			iov[msg.msg_iovlen++] =
				(struct iovec){c->tx + c->tx_at, c->tx_len - c->tx_at};
		for (unsigned i = c->frame_at; i < c->n_frames; i++) {
			struct out_frame *f = &c->frame[i];

			if (f->head_at < f->head_len)
				iov[msg.msg_iovlen++] = (struct iovec){
					f->head + f->head_at, f->head_len - f->head_at};
			if (f->from < f->to)
				msg.msg_iovlen += (size_t)ring_at(
					exec_output(c->exec, f->stream), f->from,
					(size_t)(f->to - f->from), iov + msg.msg_iovlen);
		}
		if (!msg.msg_iovlen) {
			bool last = c->role == DONE || c->exit_told;

			if (last && c->read_eof) {
				drop(c);
				return;
			}
			if (last && !c->deadline.link)
				timer_set(&c->deadline, io_now_ns() + CLOSE_NS);
			wait_for(c, false);
			return;
		}
		n = sendmsg(c->src.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n < 0) {
			gone(c);
			return;
		}
		went(c, (size_t)n);
	}
	wait_for(c, true);
}

void
conn_notice(struct conn *c)
{
	chore_queue(&c->flush);
}

void
conn_superseded(struct conn *c)
{
	c->superseded = true;
	/* Half a frame cannot be finished: the journal is not held for us any more. */
	if (c->frame_at < c->n_frames)
		drop(c);
	else
		chore_queue(&c->flush);
}

/* The answer to a hello comes first, also where the end is known at once. */
static void
hello_begins(struct conn *c)
{
	if (c->role == IN_HELLO)
		return;
	c->role = IN_HELLO;
	answer_ok(c);
}

void
conn_hello_step(struct conn *c, const char *name)
{
	hello_begins(c);
	if (!c->dead)
		put_frame(c, AGENT_STEP, 0, name, strlen(name));
	if (!c->dead)
		chore_queue(&c->flush);
}

void
conn_hello_done(struct conn *c, const char *json)
{
	hello_begins(c);
	if (!c->dead)
		put_frame(c, AGENT_ACK, 0, json, strlen(json));
	if (c->dead)
		return;
	c->role = DONE;
	chore_queue(&c->flush);
}

void
conn_hello_failed(struct conn *c, const struct err *why)
{
	hello_begins(c);
	if (!c->dead)
		fail(c, why);
}

/* On success the dial takes over: our socket, what is still to be sent and what has come.
 */
void
conn_dialled(struct conn *c, const struct err *why)
{
	struct dial *d = TAKE_PTR(c->dial);
	int fd = c->src.fd;

	if (why) {
		fail(c, why);
		return;
	}
	answer_ok(c);
	if (c->dead) {
		dial_cancel(d);
		return;
	}
	source_wait(&c->src, 0);
	c->src.fd = -1;
	dial_run(d, fd, c->tx + c->tx_at, c->tx_len - c->tx_at, c->rx, c->rx_len);
	drop(c);
}

/*
 * In.
 */

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
		exec_attach(x, c, q->offset);
	}
	answer(c, &o);
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
	answer(c, &o);
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
	answer(c, &o);
	return 0;
}

static int
begin(struct conn *c, struct request *q, struct err *e)
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
		if (become_runs())
			return err_set(e, -EAGAIN,
				"this machine is becoming another one; it takes commands "
				"when that is done");
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
			answer_ok(c);
		}
		return r;
	case REQUEST_PUT:
		r = files_put(q->path, q->user, &c->unpack, e);
		if (!r) {
			c->role = IN_PUT;
			answer_ok(c);
		}
		return r;
	case REQUEST_GET:
		r = files_path(q->path, NULL, &path, e);
		if (!r && lstat(path, &st))
			r = err_sys(e, -errno, "\"%s\"", q->path);
		if (!r)
			r = tar_pack_open(path, &c->pack, e);
		if (!r) {
			c->role = IN_GET;
			answer_ok(c);
		}
		return r;
	case REQUEST_HELLO:
		if (!c->is_host)
			return err_set(e, -EPERM,
				"only the host says who this machine is, and only over "
				"vsock");
		r = become_begin(q->hello, c, e);
		if (!r && c->role == AT_REQUEST)
			hello_begins(c);
		return r;
	case REQUEST_DIAL:
		if (become_runs())
			return err_set(e, -EAGAIN,
				"this machine is becoming another one; it takes "
				"connections when that is done");
		r = dial_begin(q->port, c, &c->dial, e);
		if (!r)
			c->role = DIALLING;
		return r;
	case REQUEST_STAY:
		c->role = STAYING;
		answer_ok(c);
		return 0;
	case REQUEST_LIST:
	case REQUEST_LIST_EXECS:
		return answer_list(c, q, e);
	}
	return err_set(e, -ENOSYS, "no such operation");
}

static int
take_frame(struct conn *c, const struct agent_frame *f, struct err *e)
{
	struct agent_winsize ws;
	uint32_t signo;

	if (c->role == IN_PUT) {
		if (f->type == AGENT_DATA)
			return tar_unpack_feed(c->unpack, f->payload, f->len, e);
		if (f->type == AGENT_END) {
			const struct tar_stats *s = tar_unpack_stats(c->unpack);
			struct agent_end end;
			int r = tar_unpack_finish(c->unpack, e);

			if (r)
				return r;
			end = (struct agent_end){
				s->files, s->folders, s->links, s->skipped, s->bytes};
			close_files(c);
			put_frame(c, AGENT_END, 0, &end, sizeof(end));
			if (!c->dead) {
				c->role = DONE;
				chore_queue(&c->flush);
			}
			return 0;
		}
		return err_set(e, -EPROTO, "frame type %u in a put", f->type);
	}
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
		drop(c);
		return 0;
	default:
		return err_set(e, -EPROTO, "frame type %u in a command", f->type);
	}
}

/* All there was of it is its first line: the peer waits for the answer to that. */
static void
give_to_sshd(struct conn *c)
{
	int fd = c->src.fd;

	source_wait(&c->src, 0);
	c->src.fd = -1;
	drop(c);
	if (send(fd, OK_LINE, strlen(OK_LINE), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		close(fd);
	else
		sshd_serve(fd);
}

static int
take_line(struct conn *c, const char *line, size_t len, struct err *e)
{
	cleanup_request struct request q = {0};
	unsigned port;
	char end;
	int r;

	if (c->role == AT_CONNECT) {
		char text[CONNECT_LINE_MAX + 1];
		static const char ok[] = OK_LINE;

		memcpy(text, line, len);
		text[len] = 0;
		if (sscanf(text, "CONNECT %u%c", &port, &end) != 1)
			return err_set(e, -EPROTO, "expected \"CONNECT <port>\"");
		if (port == AGENT_SSH_PORT) {
			give_to_sshd(c);
			return 0;
		}
		if (port != AGENT_PORT) {
			/* What a VMM does when nobody listens there. */
			drop(c);
			return 0;
		}
		memcpy(tx_room(c, sizeof(ok)), ok, sizeof(ok) - 1);
		c->tx_len += sizeof(ok) - 1;
		c->role = AT_REQUEST;
		chore_queue(&c->flush);
		return 0;
	}
	r = request_read(line, len, &q, e);
	return r ? r : begin(c, &q, e);
}

/* What the received bytes hold. */
static int
process(struct conn *c, struct err *e)
{
	size_t at = 0;
	int r = 0;

	while (!c->dead && at < c->rx_len) {
		struct agent_frame f;
		size_t used;

		if (c->role == AT_CONNECT || c->role == AT_REQUEST) {
			size_t max = c->role == AT_CONNECT ? CONNECT_LINE_MAX
							   : AGENT_REQUEST_MAX;
			size_t have = c->rx_len - at;
			char *lf = memchr(c->rx + at, '\n', have < max ? have : max);

			if (!lf && have >= max)
				return err_set(e, -E2BIG,
					"the request is longer than %zu bytes", max);
			if (!lf)
				break;
			r = take_line(c, c->rx + at, (size_t)(lf - c->rx) - at, e);
			if (c->dead)
				return 0;
			if (r)
				return r;
			if (c->role != AT_REQUEST)
				timer_stop(&c->deadline);
			at = (size_t)(lf - c->rx) + 1;
			continue;
		}
		if (c->role == DIALLING)
			break; /* it is the dial's */
		if (c->role == DONE || c->role == IN_GET || c->role == IN_HELLO ||
			c->role == STAYING) {
			at = c->rx_len; /* nothing it could say matters */
			break;
		}
		r = agent_frame_next(
			c->rx + at, c->rx_len - at, AGENT_FROM_HOST, &f, &used, e);
		if (r < 0)
			return r;
		if (!r)
			break;
		at += used;
		r = take_frame(c, &f, e);
		if (c->dead)
			return 0;
		if (r)
			return r;
	}
	if (c->dead)
		return 0;
	memmove(c->rx, c->rx + at, c->rx_len - at);
	c->rx_len -= at;
	return 0;
}

static int
rx_room(struct conn *c, struct err *e)
{
	size_t cap = c->rx_cap;
	char *bigger;

	if (c->role == IN_EXEC || c->role == IN_PUT) {
		/* Big buffers only for those that send much. */
		if (c->rx_len == cap || c->role == IN_PUT)
			cap = STREAM_RX;
	} else if (c->rx_len == cap) {
		cap = 2 * cap < AGENT_REQUEST_MAX ? 2 * cap : AGENT_REQUEST_MAX;
	}
	if (cap <= c->rx_cap)
		return 0;
	bigger = realloc(c->rx, cap);
	if (!bigger)
		return err_sys(e, -ENOMEM, "receiving");
	c->rx = bigger;
	c->rx_cap = cap;
	return 0;
}

/* One read and what it brings. False when there is no more now. */
static bool
receive(struct conn *c)
{
	struct err e = {0};
	ssize_t n;
	bool full;
	int r = rx_room(c, &e);

	if (!r) {
		n = recv(c->src.fd, c->rx + c->rx_len, c->rx_cap - c->rx_len,
			MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return false;
		if (n < 0) {
			drop(c);
			return false;
		}
		if (!n) {
			/* Half closed: it may still read. A command or an answer goes on;
			 * a request or put cut short does not. */
			c->read_eof = true;
			if (c->role != IN_EXEC && c->role != IN_GET &&
				c->role != IN_HELLO && c->tx_at == c->tx_len)
				drop(c);
			else if (c->role == IN_PUT || c->role == AT_REQUEST ||
				 c->role == AT_CONNECT || c->role == DIALLING ||
				 c->role == STAYING)
				drop(c);
			else
				chore_queue(&c->flush);
			return false;
		}
		c->rx_len += (size_t)n;
		full = c->rx_len == c->rx_cap;
		r = process(c, &e);
		if (!r)
			return !c->dead && full;
	}
	if (!c->dead) {
		c->rx_len = 0;
		fail(c, &e);
	}
	return false;
}

static void
ready(struct source *s, uint32_t events)
{
	struct conn *c = container_of(s, struct conn, src);

	if (events & EPOLLIN)
		receive(c);
	if (c->dead)
		return;
	if (events & (EPOLLHUP | EPOLLERR)) {
		gone(c);
		return;
	}
	if (events & EPOLLOUT)
		chore_queue(&c->flush);
}

static void
too_late(struct timer *t)
{
	struct conn *c = container_of(t, struct conn, deadline);

	if (c->role == AT_CONNECT || c->role == AT_REQUEST) {
		struct err e = {-ETIMEDOUT, "no request came"};

		fail(c, &e);
		return;
	}
	drop(c);
}

void
conn_accept(int fd, bool connect_line, bool is_host)
{
	static struct log_limit limit = {.burst = 5};
	struct conn *c = NULL;

	if (n_conns < CONN_MAX)
		c = calloc(1, sizeof(*c));
	if (c)
		c->rx = malloc(FIRST_RX);
	if (!c || !c->rx) {
		static const char ok[] = OK_LINE;
		static const char busy[] = OK_LINE
			"{\"ok\":false,\"error\":\"the agent has too many connections\","
			"\"errno\":\"EAGAIN\",\"code\":-11}\n";
		size_t skip = connect_line ? 0 : sizeof(ok) - 1;

		/* Told as far as its socket takes it. */
		(void)!send(fd, busy + skip, sizeof(busy) - 1 - skip,
			MSG_NOSIGNAL | MSG_DONTWAIT);
		if (log_allowed(&limit))
			log_warn("a connection refused: %u are open", n_conns);
		free(c);
		close(fd);
		return;
	}
	c->rx_cap = FIRST_RX;
	c->is_host = is_host;
	c->role = connect_line ? AT_CONNECT : AT_REQUEST;
	source_init(&c->src, fd, ready);
	c->flush.run = flush;
	c->deadline.fire = too_late;
	c->next = conns;
	conns = c;
	n_conns++;
	if (source_wait(&c->src, EPOLLIN)) {
		drop(c);
		return;
	}
	timer_set(&c->deadline, io_now_ns() + REQUEST_NS);
	/* Mostly the request is there already. */
	receive(c);
}
