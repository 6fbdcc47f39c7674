#include "host/agent/agent_handshake.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/text.h"
#include "host/agent/agent_client.h"
#include "host/agent/agent_link.h"

#define HANDSHAKE_TOKENS_MAX 2048
#define NS_PER_MS 1000000ull
/* Of one connection until the agent has said yes: one that boots may swallow it. */
#define ATTEMPT_NS 2000000000ull

/* What a link asks while it waits, for agent_link's wake. */
struct waiting {
	int (*cancel)(void *ctx);
	void *ctx;
};

bool
agent_is_host_key(const char *text)
{
	/* "ssh-ed25519" with its length, and the length of the 32 bytes: as base64 the
	 * first 25 letters of all Ed25519 keys; 51 bytes in all need no padding. */
	static const char begin[] = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI";

	return strlen(text) == 12 + 68 && strncmp(text, begin, strlen(begin)) == 0 &&
	       strspn(text + 12, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012"
				 "3456789+/") == 68;
}

static void
write_request(struct json_out *o, const struct agent_handshake *h)
{
	char text[2 * AGENT_ENTROPY_MAX + 1];
	struct timespec wall;

	json_out_object(o, NULL);
	json_out_str(o, "op", "hello");
	json_out_str(o, "id", h->id);
	json_out_str(o, "name", h->name);
	json_out_str(o, "host_name", h->host_name);
	text_hex(text, h->generation, AGENT_GENERATION_LEN / 2);
	json_out_str(o, "generation", text);
	json_out_str(o, "kind", h->parent ? "parent" : "new");
	text_hex(text, h->entropy, AGENT_ENTROPY_MAX);
	json_out_str(o, "entropy", text);
	explicit_bzero(text, sizeof(text));
	if (h->env && !h->parent) {
		json_out_array(o, "env");
		for (size_t i = 0; i < h->env->n; i++)
			json_out_str(o, NULL, h->env->v[i]);
		json_out_end_array(o);
	}
	if (h->labels) {
		json_out_object(o, "labels");
		for (const char *const *l = h->labels; *l; l += 2)
			json_out_str(o, l[0], l[1]);
		json_out_end_object(o);
	}
	if (h->ssh_key && !h->parent)
		json_out_str(o, "ssh_key", h->ssh_key);
	if (h->hook_ms)
		json_out_u64(o, "hook_ms", h->hook_ms);
	/* Last: it is old by the time it takes from here to the guest. */
	clock_gettime(CLOCK_REALTIME, &wall);
	json_out_u64(o, "wall_ns",
		(uint64_t)wall.tv_sec * 1000000000u + (uint64_t)wall.tv_nsec);
	json_out_end_object(o);
}

static int
read_ack(const struct agent_frame *f, const struct agent_handshake *h,
	struct agent_ack *ret, struct err *e)
{
	cleanup_json struct json *j = NULL;
	char id[AGENT_VM_ID_LEN + 1], generation[AGENT_GENERATION_LEN + 1];
	char expected[AGENT_GENERATION_LEN + 1];
	struct agent_ack a = {0};
	int it = 0, key, value, key_tok, r;

	r = json_parse((const char *)f->payload, f->len, HANDSHAKE_TOKENS_MAX, &j, e);
	if (r < 0) {
		err_wrap(e, r, "the acknowledgement of the guest's agent is no JSON");
		return e ? (e->code = -EPROTO) : -EPROTO;
	}
	text_hex(expected, h->generation, AGENT_GENERATION_LEN / 2);
	if (json_str(j, json_get(j, 0, "id"), id, sizeof(id)) ||
		json_str(j, json_get(j, 0, "generation"), generation,
			sizeof(generation)) ||
		strcmp(id, h->id) != 0 || strcmp(generation, expected) != 0)
		return err_set(e, -EPROTO,
			"the guest's agent acknowledged another identity handshake than ours");
	key_tok = json_get(j, 0, "host_key");
	if (key_tok >= 0 && json_type(j, key_tok) != JSON_NULL &&
		(json_str(j, key_tok, a.host_key, sizeof(a.host_key)) ||
			!agent_is_host_key(a.host_key)))
		return err_set(e, -EPROTO,
			"the host key of the guest's agent is no Ed25519 key");
	if (json_u64(j, json_get(j, 0, "total_us"), &a.total_us))
		return err_set(e, -EPROTO,
			"the guest's agent acknowledged without \"total_us\"");
	value = json_get(j, 0, "steps");
	if (value < 0 || json_type(j, value) != JSON_ARRAY ||
		json_size(j, value) > AGENT_STEPS_MAX)
		return err_set(
			e, -EPROTO, "the guest's agent acknowledged without its steps");
	for (int steps = value; json_next(j, steps, &it, &key, &value); a.n_steps++) {
		char name[AGENT_STEP_NAME_MAX + 1];

		if (json_str(j, json_get(j, value, "step"), name, sizeof(name)) ||
			json_u64(j, json_get(j, value, "us"), &a.steps[a.n_steps].us))
			return err_set(e, -EPROTO,
				"the guest's agent acknowledged a broken step");
		agent_text(a.steps[a.n_steps].name, sizeof(name), name, strlen(name));
	}
	*ret = a;
	return 0;
}

/* How far the agent is, and how long it may take. */
struct pace {
	uint64_t began_ns, limit_ns;
	uint64_t step_ns; /* since when it is in that step; at first, began_ns */
	unsigned n_steps;
	char step[AGENT_STEP_NAME_MAX + 1]; /* empty: none was named */
};

/* Until when the step may take. */
static uint64_t
pace_deadline(const struct pace *p)
{
	uint64_t step = p->step_ns + p->limit_ns;
	uint64_t all = p->began_ns + AGENT_HANDSHAKE_CEILING * p->limit_ns;

	return step < all ? step : all;
}

static void
pace_step(struct pace *p, const struct agent_handshake *h, const struct agent_frame *f)
{
	char step[sizeof(p->step)];

	agent_text(step, sizeof(step), f->payload, f->len);
	/* To who asks again the agent names the step that it is in. */
	if (strcmp(step, p->step) == 0)
		return;
	memcpy(p->step, step, sizeof(step));
	p->step_ns = io_now_ns();
	p->n_steps++;
	if (h->on_step)
		h->on_step(h->step_ctx, step);
}

/* From the agent's yes to its acknowledgement. *failed: a step did, whatever the error's
 * number says. */
static int
handshake_frames(struct agent_link *l, const struct agent_handshake *h, struct pace *pace,
	bool *failed, struct agent_ack *ret, struct err *e)
{
	while (1) {
		struct agent_frame f;
		int r = agent_link_frame(l, &f, e);

		if (r < 0)
			return r;
		if (r == 1) {
			if (f.type == AGENT_ACK)
				return read_ack(&f, h, ret, e);
			if (f.type == AGENT_ERROR) {
				*failed = true;
				return agent_link_error(&f, e);
			}
			if (f.type != AGENT_STEP)
				return err_set(e, -EPROTO,
					"the guest's agent sent frame type %u in an identity handshake",
					f.type);
			pace_step(pace, h, &f);
			continue;
		}
		if (l->eof)
			return err_set(e, -EPIPE,
				"the guest's agent hung up in the step \"%s\"",
				pace->step);
		r = agent_link_wait(l, POLLIN, pace_deadline(pace), e);
		if (r == 0)
			r = agent_link_fill(l, e);
		if (r < 0)
			return r;
	}
}

static int
ask_cancel(void *waiting)
{
	struct waiting *w = waiting;

	return w->cancel(w->ctx);
}

static int
attempt(const char *socket_path, const struct agent_handshake *h, struct pace *pace,
	struct waiting *w, bool *failed, struct agent_ack *ret, struct err *e)
{
	cleanup_agent_link struct agent_link l = AGENT_LINK_INIT;
	cleanup_json_out struct json_out o = {0};
	uint64_t yes_by = io_now_ns() + ATTEMPT_NS, deadline_ns = pace_deadline(pace);
	struct err why = {0};
	int r;

	if (w->cancel) {
		l.wake = ask_cancel;
		l.ctx = w;
	}
	write_request(&o, h);
	r = agent_link_open(&l, socket_path, &o,
		yes_by < deadline_ns ? yes_by : deadline_ns, NULL, NULL, &why);
	if (o.buf)
		explicit_bzero(o.buf, o.len);
	if (r == -EINVAL && strstr(why.msg, "no operation \"hello\""))
		return err_set(e, -EOPNOTSUPP,
			"the guest's agent is older than this pandod and knows no identity handshake: build its image again (`pando-golden image`), and its commits");
	if (r < 0)
		return err_set(e, r, "%s", why.msg);
	return handshake_frames(&l, h, pace, failed, ret, e);
}

int
agent_handshake(const char *socket_path, const struct agent_handshake *h, int timeout_ms,
	int (*cancel)(void *ctx), void *ctx, struct agent_ack *ret, struct err *e)
{
	struct pace pace = {
		.began_ns = io_now_ns(), .limit_ns = (uint64_t)timeout_ms * NS_PER_MS};
	struct timespec pause = {.tv_nsec = 2000000};
	struct agent_handshake said = *h;
	struct waiting w = {cancel, ctx};

	pace.step_ns = pace.began_ns;
	while (1) {
		bool failed = false;
		struct err why = {0};
		uint64_t now;
		int r = attempt(socket_path, &said, &pace, &w, &failed, ret, &why);

		/* Images and commits keep the agent they were made with. */
		if (r == -EINVAL && said.ssh_key && !failed &&
			strstr(why.msg, "no member \"ssh_key\"")) {
			said.ssh_key = NULL;
			continue;
		}

		if (r == 0)
			return 0;
		/* Said again it is not done again: a connection that breaks costs
		 * nothing. */
		if (failed || (r != -ECONNREFUSED && r != -ETIMEDOUT && r != -EPIPE &&
				      r != -EAGAIN))
			return err_set(e, r, "%s", why.msg);
		if (cancel && (r = cancel(ctx)) < 0)
			return err_set(e, r,
				"cancelled before the guest acknowledged its identity");
		now = io_now_ns();
		if (now >= pace_deadline(&pace)) {
			if (pace.n_steps)
				return err_set(e, -ETIMEDOUT,
					"the guest did not acknowledge its identity within %llu ms: it is in the step \"%s\", number %u, for %llu ms",
					(unsigned long long)((now - pace.began_ns) /
							     NS_PER_MS),
					pace.step, pace.n_steps,
					(unsigned long long)((now - pace.step_ns) /
							     NS_PER_MS));
			return err_set(e, -ETIMEDOUT,
				"the guest did not acknowledge its identity within %d ms (last: %.300s)",
				timeout_ms, why.msg);
		}
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 50000000)
			pause.tv_nsec *= 2;
	}
}
