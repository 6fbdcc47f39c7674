#include "guest-agent/server/conn_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "common/io.h"
#include "guest-agent/server/exec.h"

/* To close after the terminal record. */
#define CLOSE_NS 10000000000ull
/* Sends of one connection before the others get their turn. */
#define SENDS_A_TURN 8

char *
conn_tx_room(struct conn *c, size_t n)
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

void
conn_put_frame(
	struct conn *c, uint8_t type, uint8_t stream, const void *payload, size_t len)
{
	struct agent_frame_hdr h = agent_frame_hdr(type, stream, (uint32_t)len);
	char *at = conn_tx_room(c, sizeof(h) + len);

	if (!at) {
		conn_drop(c);
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
	conn_put_frame(c, AGENT_ERROR, 0, payload, sizeof(h) + len);
}

void
conn_answer(struct conn *c, struct json_out *o)
{
	char *at;

	if (o->error || !(at = conn_tx_room(c, o->len + 1))) {
		conn_drop(c);
		return;
	}
	memcpy(at, o->buf, o->len);
	at[o->len] = '\n';
	c->tx_len += o->len + 1;
	deferred_queue(&c->flush);
}

void
conn_answer_ok(struct conn *c)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_bool(&o, "ok", true);
	json_out_end_object(&o);
	conn_answer(c, &o);
}

void
conn_fail(struct conn *c, const struct err *e)
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
		conn_answer(c, &o);
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
		conn_drop(c);
		return;
	}
	conn_close_files(c);
	put_error(c, e->code, e->msg);
	if (c->dead)
		return;
	c->role = DONE;
	deferred_queue(&c->flush);
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
		conn_put_frame(c, AGENT_STDIN_CLOSED, 0, NULL, 0);
	} else if (c->with_stdin && !in.closed &&
		   in.limit - c->credit_told >= AGENT_STDIN_WINDOW / 4) {
		struct agent_stdin_credit credit = {.limit = in.limit};

		c->credit_told = in.limit;
		conn_put_frame(c, AGENT_STDIN_CREDIT, 0, &credit, sizeof(credit));
	}
	for (int i = 0; i < 2 && !c->dead; i++) {
		const struct ring *r = exec_output(c->exec, i);

		if (r->start > c->claimed[i]) {
			struct agent_gap gap = {c->claimed[i], r->start - c->claimed[i]};

			c->claimed[i] = r->start;
			conn_put_frame(c, AGENT_GAP, (uint8_t)(i + 1), &gap, sizeof(gap));
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
	char *at = conn_tx_room(c, AGENT_FRAME_WHOLE);
	struct agent_frame_hdr h;
	ssize_t n;

	if (!at) {
		conn_drop(c);
		return;
	}
	n = tar_pack_read(c->pack, at + sizeof(h), AGENT_FRAME_MAX, &e);
	if (n < 0) {
		conn_fail(c, &e);
		return;
	}
	if (!n) {
		const struct tar_stats *s = tar_pack_stats(c->pack);
		struct agent_end end = {
			s->files, s->folders, s->links, s->skipped, s->bytes};

		conn_close_files(c);
		conn_put_frame(c, AGENT_END, 0, &end, sizeof(end));
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
		conn_fail(c, &e);
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

bool
conn_send(struct conn *c)
{
	for (int turn = 0; turn < SENDS_A_TURN; turn++) {
		struct iovec iov[10];
		struct msghdr msg = {.msg_iov = iov};
		ssize_t n;

		refill(c);
		if (c->dead)
			return true;
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
				conn_drop(c);
				return true;
			}
			if (last && !c->deadline.link)
				timer_set(&c->deadline, loop_now_ns() + CLOSE_NS);
			wait_for(c, false);
			return true;
		}
		n = sendmsg(c->src.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n < 0)
			return false;
		went(c, (size_t)n);
	}
	wait_for(c, true);
	return true;
}
