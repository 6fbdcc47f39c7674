/*
 * Copies over SSH: the stream of the agent's own copies, made or unpacked in the guest by
 * the agent's program as a command of the user who came in. So names, modes, times and
 * what may not be written outside are the same both ways; nothing like sftp's one answer
 * a piece is waited for.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "common/wire/agent_wire.h"
#include "common/wire/tar.h"
#include "host/agent/agent_rpc.h"
#include "host/cli/vmssh.h"

#define TELL_NS 100000000ull
#define SAID_MAX 600

struct copying {
	const struct vmssh_copy *c;
	struct tar_pack *pack;	   /* owned; put */
	struct tar_unpack *unpack; /* owned; get */
	char said[SAID_MAX];	   /* the beginning of its stderr */
	size_t said_len;
	uint64_t told_ns;
};

static void
copying_done(struct copying *x)
{
	tar_pack_close(x->pack);
	tar_unpack_close(x->unpack);
}
#define cleanup_copying __attribute__((cleanup(copying_done)))

static struct agent_copy_stats
stats_of(const struct copying *x)
{
	const struct tar_stats *s;

	if (x->unpack)
		return agent_unpack_stats(x->unpack);
	s = tar_pack_stats(x->pack);
	return (struct agent_copy_stats){.files = s->files,
		.folders = s->folders,
		.links = s->links,
		.skipped = s->skipped,
		.bytes = s->bytes};
}

static int
tell_sometimes(struct copying *x, struct err *e)
{
	struct agent_copy_stats s;
	int r = 0;

	if (x->c->progress && io_now_ns() - x->told_ns >= TELL_NS) {
		x->told_ns = io_now_ns();
		s = stats_of(x);
		r = x->c->progress(x->c->ctx, &s);
	}
	return r < 0 ? err_set(e, r, "cancelled") : 0;
}

static ssize_t
on_input(void *ctx, void *buf, size_t cap, struct err *e)
{
	struct copying *x = ctx;
	int r = tell_sometimes(x, e);

	return r < 0 ? r : tar_pack_read(x->pack, buf, cap, e);
}

static int
on_output(void *ctx, int stream, const void *buf, size_t len, struct err *e)
{
	struct copying *x = ctx;
	int r;

	if (stream == 2) {
		if (len > sizeof(x->said) - x->said_len)
			len = sizeof(x->said) - x->said_len;
		memcpy(x->said + x->said_len, buf, len);
		x->said_len += len;
		return 0;
	}
	if (!x->unpack)
		return 0;
	r = tar_unpack_feed(x->unpack, buf, len, e);
	return r < 0 ? r : tell_sometimes(x, e);
}

/* What only the side that packs knows. The guest's word: a count, and nothing else. */
static uint64_t
skipped(const struct copying *x)
{
	cleanup_json struct json *j = NULL;
	uint64_t n = 0;

	if (json_parse(x->said, x->said_len, 16, &j, NULL) == 0)
		(void)json_u64(j, json_get(j, 0, "skipped"), &n);
	return n;
}

static int
run(struct copying *x, const char *op, struct err *e)
{
	cleanup_ssh_link struct ssh_link *link = NULL;
	cleanup_free char *quoted = NULL, *text = NULL;
	struct ssh_command c = SSH_COMMAND_INIT;
	int status, r = ssh_quote(&quoted, x->c->remote);

	if (r == 0 && asprintf(&text, "exec \"$" AGENT_SSH_SELF "\" files %s %s", op,
			      quoted) < 0)
		r = -ENOMEM;
	if (r < 0)
		return err_sys(e, r, "\"%.100s\"", x->c->remote);
	r = vmssh_open(x->c->vm, x->c->home, x->c->user, &link, e);
	if (r < 0)
		return r;
	c.text = text;
	c.input = x->pack ? on_input : NULL;
	c.output = on_output;
	c.signal_fd = x->c->cancel_fd;
	c.impatient = true;
	c.ctx = x;
	r = ssh_link_run(link, &c, &status, e);
	if (r == 0 && status != 0)
		r = agent_command_failed(status, x->said, x->said_len, e);
	return r;
}

int
vmssh_put(const struct vmssh_copy *c, struct agent_copy_stats *ret, struct err *e)
{
	cleanup_copying struct copying x = {.c = c};
	int r = agent_pack_open(c->local, c->progress, c->ctx, &x.pack, e);

	if (r == 0)
		r = run(&x, "put", e);
	if (r == 0)
		*ret = stats_of(&x);
	return r;
}

int
vmssh_get(const struct vmssh_copy *c, struct agent_copy_stats *ret, struct err *e)
{
	cleanup_copying struct copying x = {.c = c};
	int r = agent_unpack_open(c->remote, c->local, &x.unpack, e);

	if (r == 0)
		r = run(&x, "get", e);
	if (r == 0)
		r = tar_unpack_finish(x.unpack, e);
	if (r == 0) {
		*ret = stats_of(&x);
		ret->skipped = skipped(&x);
	}
	return r;
}
