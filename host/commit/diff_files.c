#include "host/commit/diff_files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/fsdiff/wire.h"
#include "host/vmmproc/launch.h"

#define TIME_MS 180000u
#define LISTED_MAX 20000u
#define LISTED_BYTES_MAX (8u << 20)

union message {
	uint32_t type;
	struct fsdiff_read read;
	struct fsdiff_change change;
	struct fsdiff_end end;
};

struct files {
	struct store *store;
	const struct store_tree *trees[2];
	int socket;		      /* owned */
	struct fsdiff_ranges *ranges; /* owned: those not sent yet */
	struct fsdiff_data *data;     /* owned */
	union message *m;	      /* owned */
	struct json_out list;	      /* the changes */
	size_t before;		      /* its length, empty */
	uint64_t counts[FSDIFF_WHATS];
	uint64_t listed;
	char note[FSDIFF_TEXT_MAX * 4]; /* why they cannot be read; "": they can */
	struct err store_error;
};

static int
send_ranges(struct files *f)
{
	size_t len = offsetof(struct fsdiff_ranges, ranges) +
		     f->ranges->n * sizeof(f->ranges->ranges[0]);

	f->ranges->type = FSDIFF_RANGES;
	if (send(f->socket, f->ranges, len, MSG_NOSIGNAL) != (ssize_t)len)
		return -EPIPE;
	f->ranges->n = 0;
	return 0;
}

static int
add_page(void *ctx, uint64_t page, const void *data, struct err *e)
{
	struct files *f = ctx;
	struct fsdiff_ranges *l = f->ranges;

	(void)data;
	(void)e;
	if (l->n && l->ranges[l->n - 1].first + l->ranges[l->n - 1].n == page) {
		l->ranges[l->n - 1].n++;
		return 0;
	}
	if (l->n == FSDIFF_RANGES_MAX && send_ranges(f) < 0)
		return -EPIPE;
	l->ranges[l->n].first = page;
	l->ranges[l->n++].n = 1;
	return 0;
}

/* The question. -EPIPE: the process is gone; else of the store. */
static int
ask(struct files *f, struct err *e)
{
	struct fsdiff_hello m = {.type = FSDIFF_HELLO, .version = FSDIFF_VERSION};
	int r;

	for (unsigned i = 0; i < 2; i++)
		m.pages[i] = f->trees[i]->length / FSDIFF_PAGE;
	if (send(f->socket, &m, sizeof(m), MSG_NOSIGNAL) != (ssize_t)sizeof(m))
		return -EPIPE;
	r = store_tree_diff(f->store, f->trees[0], f->trees[1], add_page, f, e);
	if (r == 0 && f->ranges->n)
		r = send_ranges(f);
	return r < 0 ? r : send_ranges(f); /* an empty one is the last */
}

static int
give(struct files *f, const struct fsdiff_read *q)
{
	const struct store_tree *tree;
	uint64_t pages, n;
	int r = 0;

	if (q->disk > 1 || q->n != FSDIFF_READ_PAGES || q->page > UINT64_MAX - q->n)
		return -EPROTO;
	tree = f->trees[q->disk];
	pages = tree->length / FSDIFF_PAGE;
	n = q->page >= pages ? 0 : pages - q->page < q->n ? pages - q->page : q->n;
	memset(f->data, 0, sizeof(*f->data));
	f->data->type = FSDIFF_DATA;
	if (n)
		r = store_tree_read(
			f->store, tree, q->page, n, f->data->data, &f->store_error);
	f->data->error = r;
	return send(f->socket, f->data, sizeof(*f->data), MSG_NOSIGNAL) ==
			       (ssize_t)sizeof(*f->data)
		       ? 0
		       : -EPIPE;
}

static int
take_change(struct files *f, const struct fsdiff_change *c, size_t len)
{
	static const char *const whats[] = {"added", "removed", "changed"};
	static const char *const kinds[] = {"file", "folder", "symlink", "other"};
	static const char *const fields[] = {
		"content", "size", "mtime", "mode", "owner", "kind"};
	struct json_out *o = &f->list;

	if (c->what >= FSDIFF_WHATS || c->kind >= FSDIFF_KINDS || c->fields > 63 ||
		c->path_len < 1 || c->path_len > FSDIFF_PATH_MAX ||
		len != offsetof(struct fsdiff_change, path) + c->path_len ||
		c->path[0] != '/' || memchr(c->path, 0, c->path_len))
		return -EPROTO;
	f->counts[c->what]++;
	if (f->listed >= LISTED_MAX || o->len > LISTED_BYTES_MAX)
		return 0;
	f->listed++;
	json_out_object(o, NULL);
	json_out_strn(o, "path", c->path, c->path_len);
	json_out_str(o, "what", whats[c->what]);
	json_out_str(o, "kind", kinds[c->kind]);
	if (c->what != FSDIFF_ADDED)
		json_out_u64(o, "size_a", c->size[0]);
	if (c->what != FSDIFF_REMOVED)
		json_out_u64(o, "size_b", c->size[1]);
	json_out_array(o, "fields");
	for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (c->fields >> i & 1)
			json_out_str(o, NULL, fields[i]);
	json_out_end_array(o);
	json_out_end_object(o);
	return 0;
}

/* Until the end. -EPROTO, -EPIPE, -ETIMEDOUT. */
static int
serve(struct files *f)
{
	uint64_t deadline = io_now_ns() + TIME_MS * UINT64_C(1000000);

	for (;;) {
		struct pollfd p = {.fd = f->socket, .events = POLLIN};
		uint64_t now = io_now_ns();
		ssize_t len;
		int r = 0;

		if (now >= deadline)
			return -ETIMEDOUT;
		if (poll(&p, 1, (int)((deadline - now) / 1000000u) + 1) <= 0)
			continue;
		len = recv(f->socket, f->m, sizeof(*f->m), MSG_TRUNC);
		if (len <= 0)
			return -EPIPE;
		if (len < (ssize_t)sizeof(f->m->type) || len > (ssize_t)sizeof(*f->m))
			return -EPROTO;
		if (f->m->type == FSDIFF_READ && len == sizeof(f->m->read))
			r = give(f, &f->m->read);
		else if (f->m->type == FSDIFF_CHANGE &&
			 len > (ssize_t)offsetof(struct fsdiff_change, path))
			r = take_change(f, &f->m->change, (size_t)len);
		else if (f->m->type == FSDIFF_END && len == sizeof(f->m->end)) {
			if (f->m->end.error == 0)
				return 0;
			f->m->end.text[sizeof(f->m->end.text) - 1] = '\0';
			log_escape(f->note, sizeof(f->note), f->m->end.text,
				strlen(f->m->end.text));
			return 0;
		} else
			r = -EPROTO;
		if (r < 0)
			return r;
	}
}

static int
run(struct files *f, const char *program, struct err *e)
{
	cleanup_close int null = open("/dev/null", O_RDWR | O_CLOEXEC), pidfd = -1;
	struct timeval limit = {.tv_sec = 10};
	struct err why = {0};
	siginfo_t si;
	pid_t pid;
	int r;

	if (null < 0)
		return err_sys(e, -errno, "/dev/null");
	r = launch_spawn(program, "pando-fsdiff", null, &f->socket, &pid, &pidfd, &why);
	if (r < 0) {
		snprintf(f->note, sizeof(f->note), "%s", why.msg);
		return 0;
	}
	setsockopt(f->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	r = ask(f, e);
	if (r == 0 || r == -EPIPE) {
		r = r < 0 ? r : serve(f);
		if (f->store_error.code < 0)
			snprintf(f->note, sizeof(f->note), "%s", f->store_error.msg);
		else if (r < 0)
			snprintf(f->note, sizeof(f->note),
				r == -ETIMEDOUT
					? "its file system was not read within %u s"
				: r == -EPROTO
					? "what reads file systems said what nobody can mean"
					: "what reads file systems ended; a file system may be damaged",
				TIME_MS / 1000u);
		r = 0;
	}
	process_kill(pidfd);
	while (waitid(P_PIDFD, (id_t)pidfd, &si, WEXITED) < 0 && errno == EINTR)
		;
	return r;
}

static void
put(struct files *f, struct json_out *out)
{
	static const char *const names[] = {"added", "removed", "changed"};

	json_out_object(out, "files");
	json_out_bool(out, "readable", !f->note[0]);
	json_out_str(out, "note", f->note[0] ? f->note : NULL);
	for (unsigned i = 0; i < FSDIFF_WHATS; i++)
		json_out_u64(out, names[i], f->note[0] ? 0 : f->counts[i]);
	if (f->note[0]) { /* half a list would be taken for a whole one */
		json_out_array(out, "changes");
		json_out_end_array(out);
	} else {
		json_out_raw(out, "changes", f->list.buf, f->list.len);
	}
	json_out_bool(out, "complete",
		!f->note[0] && f->listed == f->counts[0] + f->counts[1] + f->counts[2]);
	json_out_end_object(out);
}

int
diff_files(struct store *s, const char *program, const struct store_tree *a,
	const struct store_tree *b, struct json_out *out, struct err *e)
{
	struct files f = {.store = s, .trees = {a, b}, .socket = -1};
	int r = 0;

	f.ranges = calloc(1, sizeof(*f.ranges));
	f.data = calloc(1, sizeof(*f.data));
	f.m = calloc(1, sizeof(*f.m));
	json_out_array(&f.list, NULL);
	if (!f.ranges || !f.data || !f.m)
		r = err_set(e, -ENOMEM, "out of memory");
	else if (memcmp(&a->root, &b->root, sizeof(a->root)) != 0 ||
		 a->length != b->length) /* one disk has one set of files */
		r = run(&f, program, e);
	json_out_end_array(&f.list);
	if (r == 0 && f.list.error)
		r = err_set(e, f.list.error, "out of memory");
	if (r == 0)
		put(&f, out);
	json_out_done(&f.list);
	cleanup_close_fn(&f.socket);
	free(f.ranges);
	free(f.data);
	free(f.m);
	return r;
}
