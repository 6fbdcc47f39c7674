/*
 * Copies: a tar stream in AGENT_DATA frames, made or unpacked on the way.
 */
#include "host/agent/agent_client.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/json_bytes.h"
#include "common/wire/tar.h"
#include "host/agent/agent_link.h"

struct copy {
	struct agent_link link;
	struct tar_pack *pack;	   /* owned; put */
	struct tar_unpack *unpack; /* owned; get */
	char *tx;		   /* owned; put */
	int (*progress)(void *ctx, const struct agent_copy_stats *s);
	void *ctx;
	uint64_t told_ns;
};
#define TELL_NS 100000000ull

static void
copy_done(struct copy *c)
{
	agent_link_done(&c->link);
	tar_pack_close(c->pack);
	tar_unpack_close(c->unpack);
	free(c->tx);
}
#define cleanup_copy __attribute__((cleanup(copy_done)))

/* A file without a name. */
static int
open_spool(int *ret_fd, struct err *e)
{
	const char *folder = getenv("TMPDIR");
	char path[4096];

	if (!folder || !*folder)
		folder = "/var/tmp";
	*ret_fd = open(folder, O_RDWR | O_TMPFILE | O_EXCL | O_CLOEXEC, 0600);
	if (*ret_fd >= 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != EISDIR)
		return err_sys(e, -errno, "\"%s\"", folder);
	if (snprintf(path, sizeof(path), "%s/pando-XXXXXX", folder) >= (int)sizeof(path))
		return err_sys(e, -ENAMETOOLONG, "\"%.200s…\"", folder);
	*ret_fd = mkostemp(path, O_CLOEXEC);
	if (*ret_fd < 0)
		return err_sys(e, -errno, "\"%s\"", path);
	unlink(path);
	return 0;
}

/* Reads a FIFO to its end. A tar stream says the size before the contents. */
static int
read_fifo(const char *local, int (*progress)(void *ctx, const struct agent_copy_stats *s),
	void *ctx, int *ret_fd, struct err *e)
{
	cleanup_close int in = open(local, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	cleanup_free char *buf = malloc(AGENT_FRAME_MAX);
	struct agent_copy_stats so_far = {.files = 1};
	struct pollfd p = {.fd = in, .events = POLLIN};
	cleanup_close int spool = -1;
	int r;

	if (in < 0)
		return err_sys(e, -errno, "\"%s\"", local);
	if (!buf)
		return err_sys(e, -ENOMEM, "\"%s\"", local);
	r = open_spool(&spool, e);
	if (r < 0)
		return r;
	while (1) {
		ssize_t n;

		/* Without a writer a read would be at the end at once; poll() waits for
		 * the first one. */
		r = poll(&p, 1, (int)(TELL_NS / 1000000));
		if (r < 0 && errno != EINTR)
			return err_sys(e, -errno, "\"%s\"", local);
		r = progress ? progress(ctx, &so_far) : 0;
		if (r < 0)
			return err_set(e, r, "cancelled");
		if (!(p.revents & (POLLIN | POLLHUP | POLLERR)))
			continue;
		n = read(in, buf, AGENT_FRAME_MAX);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n < 0)
			return err_sys(e, -errno, "\"%s\"", local);
		if (!n)
			break;
		r = io_write_full(spool, buf, (size_t)n);
		if (r < 0)
			return err_sys(
				e, r, "keeping what \"%s\" says; set TMPDIR", local);
		so_far.bytes += (uint64_t)n;
	}
	*ret_fd = TAKE_FD(spool);
	return 0;
}

int
agent_pack_open(const char *local,
	int (*progress)(void *ctx, const struct agent_copy_stats *s), void *ctx,
	struct tar_pack **ret, struct err *e)
{
	struct tar_pack_opts opts = {.path = local};
	struct stat st;
	int r;

	if (lstat(local, &st) < 0)
		return err_sys(e, -errno, "\"%s\"", local);
	/* /dev/fd/63: a link whose target means something to this process alone. */
	opts.follow = S_ISLNK(st.st_mode) && tar_is_open_elsewhere(local);
	if (S_ISFIFO(st.st_mode) ||
		(opts.follow && stat(local, &st) == 0 && S_ISFIFO(st.st_mode))) {
		r = read_fifo(local, progress, ctx, &opts.fd, e);
		if (r < 0)
			return r;
		opts.has_fd = true;
	}
	return tar_pack_open(&opts, ret, e);
}

int
agent_unpack_open(
	const char *remote, const char *local, struct tar_unpack **ret, struct err *e)
{
	char name[NAME_MAX + 1];
	struct tar_unpack_opts opts = {.dest = local, .name = name, .untrusted = true};
	int r = tar_top_name(remote, name, e);

	return r < 0 ? r : tar_unpack_open(&opts, ret, e);
}

static struct agent_copy_stats
from_tar(const struct tar_stats *s)
{
	return (struct agent_copy_stats){.files = s->files,
		.folders = s->folders,
		.links = s->links,
		.skipped = s->skipped,
		.outside = s->outside,
		.bytes = s->bytes};
}

struct agent_copy_stats
agent_unpack_stats(const struct tar_unpack *u)
{
	struct agent_copy_stats s = from_tar(tar_unpack_stats(u));

	snprintf(s.first_outside, sizeof(s.first_outside), "%s", tar_unpack_outside(u));
	return s;
}

static struct agent_copy_stats
stats_of(const struct copy *c)
{
	return c->pack ? from_tar(tar_pack_stats(c->pack))
		       : agent_unpack_stats(c->unpack);
}

static int
tell(struct copy *c)
{
	struct agent_copy_stats s = stats_of(c);

	c->told_ns = io_now_ns();
	return c->progress ? c->progress(c->ctx, &s) : 0;
}

static int
tick(void *ctx)
{
	return tell(ctx);
}

/* Now and then, also while data flows. */
static int
tell_sometimes(struct copy *c, struct err *e)
{
	int r = c->progress && io_now_ns() - c->told_ns >= TELL_NS ? tell(c) : 0;

	return r < 0 ? err_set(e, r, "cancelled") : 0;
}

static int
start(struct copy *c, const char *socket_path, const char *op, const char *remote,
	struct err *e)
{
	cleanup_json_out struct json_out o = {0};

	if (c->progress) {
		c->link.wake = tick;
		c->link.ctx = c;
	}
	json_out_object(&o, NULL);
	json_out_str(&o, "op", op);
	json_out_bytes(&o, "path", remote);
	json_out_end_object(&o);
	return agent_link_open(&c->link, socket_path, &o,
		io_now_ns() + AGENT_ANSWER_MS * 1000000ull, NULL, NULL, e);
}

/* The agent speaks during a put only to end it. 1: it has, well. */
static int
take_word(struct copy *c, bool may_end, struct err *e)
{
	struct agent_frame f;
	int r = agent_link_fill(&c->link, e);

	if (r == 0)
		r = agent_link_frame(&c->link, &f, e);
	if (r < 0)
		return r;
	if (r == 0)
		return c->link.eof
			       ? err_set(e, -EPIPE,
					 "the connection to the guest ended before the copy did")
			       : 0;
	if (f.type == AGENT_ERROR)
		return agent_link_error(&f, e);
	if (f.type == AGENT_END && may_end)
		return 1;
	return err_set(
		e, -EPROTO, "the guest's agent sent frame type %u during a copy", f.type);
}

static int
send_frame(struct copy *c, const char *at, size_t len, struct err *e)
{
	while (len) {
		ssize_t n = send(c->link.fd, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);
		struct pollfd p = {.fd = c->link.fd, .events = POLLIN};
		int r;

		if (n >= 0) {
			at += n;
			len -= (size_t)n;
			continue;
		}
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN && errno != EPIPE && errno != ECONNRESET)
			return err_sys(e, -errno, "sending to the guest");
		if (errno == EAGAIN) {
			r = agent_link_wait(&c->link, POLLIN | POLLOUT, 0, e);
			if (r < 0)
				return r;
		}
		/* An error of the agent ends the copy at once, and says more than a
		 * broken pipe does. */
		if (poll(&p, 1, 0) > 0) {
			r = take_word(c, false, e);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

int
agent_put(const char *socket_path, const char *local, const char *remote,
	int (*progress)(void *ctx, const struct agent_copy_stats *s), void *ctx,
	struct agent_copy_stats *ret, struct err *e)
{
	cleanup_copy struct copy c = {
		.link = AGENT_LINK_INIT, .progress = progress, .ctx = ctx};
	struct agent_frame_hdr h;
	ssize_t n = 1;
	int r;

	/* Before the guest is asked for anything. */
	r = agent_pack_open(local, progress, ctx, &c.pack, e);
	if (r < 0)
		return r;
	c.tx = malloc(AGENT_FRAME_WHOLE);
	if (!c.tx)
		return err_sys(e, -ENOMEM, "a copy");
	r = start(&c, socket_path, "put", remote, e);
	while (r == 0 && n) {
		n = tar_pack_read(c.pack, c.tx + sizeof(h), AGENT_FRAME_MAX, e);
		if (n < 0)
			return (int)n;
		h = agent_frame_hdr(n ? AGENT_DATA : AGENT_END, 0, (uint32_t)n);
		memcpy(c.tx, &h, sizeof(h));
		r = send_frame(&c, c.tx, sizeof(h) + (size_t)n, e);
		if (r == 0)
			r = tell_sometimes(&c, e);
	}
	while (r == 0) {
		r = take_word(&c, true, e);
		if (r == 0)
			r = agent_link_wait(&c.link, POLLIN, 0, e);
	}
	if (r < 0)
		return r;
	r = tell(&c);
	if (r < 0)
		return err_set(e, r, "cancelled");
	if (ret)
		*ret = stats_of(&c);
	return 0;
}

int
agent_get(const char *socket_path, const char *remote, const char *local,
	int (*progress)(void *ctx, const struct agent_copy_stats *s), void *ctx,
	struct agent_copy_stats *ret, struct err *e)
{
	cleanup_copy struct copy c = {
		.link = AGENT_LINK_INIT, .progress = progress, .ctx = ctx};
	struct agent_copy_stats done;
	struct agent_end end = {0};
	bool ended = false;
	int r = agent_unpack_open(remote, local, &c.unpack, e);

	if (r == 0)
		r = start(&c, socket_path, "get", remote, e);
	while (r == 0 && !ended) {
		struct agent_frame f;

		while (!ended && (r = agent_link_frame(&c.link, &f, e)) == 1) {
			switch (f.type) {
			case AGENT_DATA:
				r = tar_unpack_feed(c.unpack, f.payload, f.len, e);
				break;
			case AGENT_END:
				memcpy(&end, f.payload, sizeof(end));
				ended = true;
				r = 0;
				break;
			case AGENT_ERROR:
				r = agent_link_error(&f, e);
				break;
			default:
				r = err_set(e, -EPROTO,
					"the guest's agent sent frame type %u during a copy",
					f.type);
			}
			if (r < 0)
				return r;
		}
		if (r < 0 || ended)
			break;
		if (c.link.eof)
			return err_set(e, -EPIPE,
				"the connection to the guest ended before the copy did");
		r = tell_sometimes(&c, e);
		if (r == 0)
			r = agent_link_wait(&c.link, POLLIN, 0, e);
		if (r == 0)
			r = agent_link_fill(&c.link, e);
	}
	if (r < 0)
		return r;
	r = tar_unpack_finish(c.unpack, e);
	if (r < 0)
		return r;
	done = stats_of(&c);
	done.skipped = end.skipped; /* only the side that packs knows */
	c.told_ns = 0;
	r = progress ? progress(ctx, &done) : 0;
	if (r < 0)
		return err_set(e, r, "cancelled");
	if (ret)
		*ret = done;
	return 0;
}
