#include "guest-agent/supervisor/rpc_follow.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "guest-agent/supervisor/rpc_journal.h"
#include "guest-agent/supervisor/rpc_scan.h"

/* An end that was an error may be followed by another try (pi's auto_retry_start). */
#define RETRY_NS 3000000000ull
#define POLL_MS 1000
#define CHUNK (64u * 1024u)

struct following {
	const struct rpc_place *p;
	const struct rpc_follow *f;
	struct journal_reader r;
	enum rpc_protocol protocol;
	uint64_t number, next; /* the line to come, and where it begins */
	struct journal_epoch epoch;
	uint32_t epoch_number;
	bool epoch_known, begun, ended, failed;
	bool compacts; /* after a failure, which may be tried again then */
	struct rpc_scan scan;
	uint64_t failed_ns; /* a failure that may be tried again */
	/* begun: behind that line; and what the supervisor says of the last program's end,
	 * which is before the line if that was of another one. */
	uint64_t begun_at, program_end;
	char reason[RPC_REASON_MAX];
	char *line; /* owned */
	size_t cap;
};

static void
say_line(struct following *w, const struct journal_record *rec)
{
	if (!w->epoch_known || w->epoch_number != rec->epoch) {
		memset(&w->epoch, 0, sizeof(w->epoch));
		(void)epoch_read(w->p->dir, rec->epoch, &w->epoch);
		w->epoch_number = rec->epoch;
		w->epoch_known = true;
	}
	printf("L %" PRIu64 " %" PRIu64 " %u %u %" PRIu64 " %s %s\n", w->number,
		rec->offset, rec->len, rec->flags, rec->time_ms,
		w->epoch.vm[0] ? w->epoch.vm : "-",
		w->epoch.generation[0] ? w->epoch.generation : "-");
}

static int
grow(struct following *w, size_t len, struct err *e)
{
	if (len > w->cap) {
		char *bigger = realloc(w->line, len);

		if (!bigger)
			return err_sys(e, -ENOMEM, "a line of %zu bytes", len);
		w->line = bigger;
		w->cap = len;
	}
	return 0;
}

static void
look(struct following *w, const struct journal_record *rec)
{
	char reason[RPC_REASON_MAX];
	size_t len = rec->len;
	enum rpc_event event;

	if (rec->flags & JOURNAL_TORN) {
		w->scan.under_way = false;
		return;
	}
	/* A line of more than 16 MiB comes in pieces. */
	if (rec->flags & JOURNAL_PIECE || w->scan.under_way)
		rpc_scan_feed(&w->scan, w->line, len);
	if (rec->flags & JOURNAL_PIECE)
		return;
	event = w->scan.under_way ? rpc_scan_end(&w->scan, w->protocol, reason)
				  : rpc_proto_event(w->protocol, w->line, len, reason);
	switch (event) {
	case RPC_BEGINS:
	case RPC_RETRIES:
		w->begun = true;
		w->begun_at = w->next + len;
		w->failed_ns = 0;
		w->compacts = false;
		break;
	case RPC_COMPACTS:
		/* However long it takes: its end says whether the prompt goes on. */
		w->compacts = w->failed_ns != 0;
		w->failed_ns = 0;
		return;
	case RPC_COMPACTED:
	case RPC_SETTLED:
		if (w->failed_ns || w->compacts)
			w->ended = w->failed = true;
		return;
	case RPC_DONE:
		w->ended = true;
		break;
	case RPC_FAILED:
		w->failed_ns = io_now_ns();
		memcpy(w->reason, reason, sizeof(reason));
		return;
	case RPC_REFUSED:
		/* While it works on one prompt the refusal of another one is not its end.
		 */
		if (!w->begun) {
			w->failed_ns = io_now_ns();
			memcpy(w->reason, reason, sizeof(reason));
		}
		return;
	default:
		return;
	}
	memcpy(w->reason, reason, sizeof(reason));
}

static int
gap(struct following *w, struct err *e)
{
	struct journal_bounds b;
	int r = journal_bounds(&w->r, &b, e);

	if (r)
		return r;
	if (w->f->framed)
		printf("G %" PRIu64 " %" PRIu64 "\n", w->next, b.start);
	else
		fprintf(stderr,
			"pando-agent: bytes %" PRIu64 " to %" PRIu64
			" are not kept any more\n",
			w->next, b.start);
	w->number = b.first;
	w->next = b.start;
	return 0;
}

/* Its program ended before the prompt did, and no other will go on with it. */
static bool
was_cut_off(struct following *w)
{
	if (!w->f->until_done || !w->begun || w->program_end < w->begun_at ||
		w->next < w->program_end)
		return false;
	if (!w->failed_ns)
		snprintf(w->reason, sizeof(w->reason), "ended");
	return true;
}

static void
look_for_end(struct following *w)
{
	char text[32];

	if (rpc_read_file(w->p->dir, "ended", text, sizeof(text)) > 0)
		w->program_end = strtoull(text, NULL, 10);
}

/* The next line: 1; 0 there is none yet. */
static int
one(struct following *w, struct err *e)
{
	struct journal_record rec;
	int n = journal_record(&w->r, w->number, &rec, e);

	if (n == -ESTALE) {
		n = gap(w, e);
		return n ? n : 1;
	}
	if (n <= 0)
		return n;
	n = grow(w, rec.len, e);
	if (!n)
		n = journal_read(&w->r, w->number, &rec, 0, w->line, rec.len, e);
	if (n == -ESTALE) {
		n = gap(w, e);
		return n ? n : 1;
	}
	if (n)
		return n;
	/* A line that was cut off is none: its place is passed over. */
	if (w->f->framed)
		say_line(w, &rec);
	if (w->f->framed || !(rec.flags & JOURNAL_TORN))
		fwrite(w->line, 1, rec.len, stdout);
	if (w->f->until_done)
		look(w, &rec);
	w->number++;
	w->next = rec.offset + rec.len;
	if (w->cap > 16 * CHUNK) {
		free(w->line);
		w->line = NULL;
		w->cap = 0;
	}
	return 1;
}

static int
begin(struct following *w, struct err *e)
{
	struct journal_bounds b;
	struct journal_record rec;
	int r = journal_bounds(&w->r, &b, e);

	if (r)
		return r;
	w->number = b.lines;
	w->next = b.end;
	if (w->f->from_end)
		return 0;
	if (w->f->from < b.start) {
		w->next = w->f->from;
		w->number = b.first;
		return gap(w, e);
	}
	r = journal_seek(&w->r, w->f->from, &w->number, e);
	if (r)
		return r;
	r = journal_record(&w->r, w->number, &rec, e);
	if (r < 0)
		return r;
	w->next = r ? rec.offset : b.end;
	return 0;
}

static int
go_on(struct following *w, uint64_t until_ns, int notes, struct err *e)
{
	for (;;) {
		uint64_t now;
		char waste[4096];
		struct pollfd p = {.fd = notes, .events = POLLIN};
		int r, ms = POLL_MS;

		if (was_cut_off(w)) {
			w->ended = w->failed = true;
			return 0;
		}
		r = one(w, e);
		if (r < 0)
			return r;
		if (w->ended)
			return 0;
		if (r)
			continue;
		if (w->f->until_done) {
			look_for_end(w);
			if (was_cut_off(w))
				continue;
		}
		if (ferror(stdout) || fflush(stdout))
			return err_set(e, -EPIPE, "nobody reads any more");
		now = io_now_ns();
		if (w->failed_ns && now >= w->failed_ns + RETRY_NS) {
			w->ended = w->failed = true;
			return 0;
		}
		if (now >= until_ns && !w->failed_ns)
			return 0;
		if (now < until_ns && until_ns - now < POLL_MS * UINT64_C(1000000))
			ms = (int)((until_ns - now + 999999) / 1000000);
		if (w->failed_ns && ms > 100)
			ms = 100;
		/* A note that was missed costs no more than a moment. */
		if (poll(&p, 1, ms) > 0)
			(void)!read(notes, waste, sizeof(waste));
	}
}

int
rpc_follow(const struct rpc_place *p, const struct rpc_follow *f, bool *ret_failed,
	struct err *e)
{
	struct following w = {
		.p = p, .f = f, .r = JOURNAL_READER_INIT, .begun = f->begun};
	cleanup_close int notes = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	char path[PATH_MAX + 32];
	uint64_t until_ns =
		f->for_ms == UINT64_MAX ? UINT64_MAX : io_now_ns() + f->for_ms * 1000000;
	int r = journal_reader_open(p->dir, f->stream, &w.r, e);

	if (!r && f->until_done) {
		cleanup_rpc_conf struct rpc_conf c = {0};

		r = rpc_conf_read(p->conf, &c, e);
		w.protocol = c.protocol;
		if (!r && c.protocol == RPC_RAW)
			r = err_set(e, -EINVAL,
				"protocol \"raw\" does not say when a prompt is done: protocol = \"pi\" or \"claude\" in %.200s does",
				p->conf);
	}
	snprintf(path, sizeof(path), "%s/%s.index", p->path, f->stream);
	if (!r && notes >= 0)
		(void)inotify_add_watch(notes, path, IN_MODIFY);
	if (!r)
		r = begin(&w, e);
	w.begun_at = w.next;
	look_for_end(&w);
	if (!r)
		r = go_on(&w, until_ns, notes, e);
	if (!r && f->framed) {
		if (w.ended)
			printf("D %" PRIu64 " %d %s\n", w.next, w.failed,
				w.reason[0] ? w.reason : "-");
		else
			printf("E %" PRIu64 " %d\n", w.next, w.begun);
	}
	if (!r && fflush(stdout))
		r = err_set(e, -EPIPE, "nobody reads any more");
	if (!r) {
		*ret_failed = w.failed;
		if (f->until_done && !w.ended && !f->framed)
			r = err_set(e, -ETIMEDOUT, "no prompt was done in that time");
	}
	journal_reader_done(&w.r);
	free(w.line);
	return r;
}
