#include "guest-agent/supervisor/rpc_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/text.h"

#define CHUNK (64u * 1024u)
#define PAGE 4096u
/* Trimming goes in steps of this part of what is kept. */
#define TRIM_PART 8u
#define RECORD sizeof(struct journal_record)

static uint64_t
record_at(uint64_t number)
{
	return (number + 1) * RECORD;
}

/*
 * Epochs.
 */

uint32_t
epoch_count(int dir)
{
	struct stat st;

	if (fstatat(dir, "epochs", &st, 0))
		return 0;
	return (uint32_t)(st.st_size / EPOCH_BYTES);
}

int
epoch_read(int dir, uint32_t number, struct journal_epoch *ret)
{
	char text[EPOCH_BYTES + 1] = "", vm[16], generation[40];
	unsigned n;
	int fd = openat(dir, "epochs", O_RDONLY | O_CLOEXEC), r;

	if (fd < 0)
		return -errno;
	r = io_pread_full(fd, text, EPOCH_BYTES, (uint64_t)number * EPOCH_BYTES);
	close(fd);
	if (r)
		return r;
	memset(ret, 0, sizeof(*ret));
	if (sscanf(text, "%u %12s %32s", &n, vm, generation) != 3 || n != number)
		return -EBADMSG;
	if (strlen(vm) == 12 && text_is_hex(vm, 12))
		memcpy(ret->vm, vm, 13);
	if (strlen(generation) == 32 && text_is_hex(generation, 32))
		memcpy(ret->generation, generation, 33);
	return 0;
}

int
epoch_add(int dir, const struct journal_epoch *now, uint32_t *ret, struct err *e)
{
	uint32_t number = epoch_count(dir);
	char text[EPOCH_BYTES + 1];
	int fd = openat(dir, "epochs", O_WRONLY | O_CREAT | O_CLOEXEC, 0600), r, n;

	if (fd < 0)
		return err_sys(e, -errno, "epochs");
	n = snprintf(text, sizeof(text), "%010u %-12s %-32s %014" PRIu64, number,
		now->vm[0] ? now->vm : "-", now->generation[0] ? now->generation : "-",
		io_wall_ms());
	memset(text + n, ' ', (size_t)(EPOCH_BYTES - n));
	text[EPOCH_BYTES - 1] = '\n';
	r = io_pwrite_full(fd, text, EPOCH_BYTES, (uint64_t)number * EPOCH_BYTES);
	close(fd);
	if (r)
		return err_sys(e, r, "epochs");
	*ret = number;
	return 0;
}

/*
 * The writer.
 */

static int
write_header(struct journal *j)
{
	struct journal_header h = {.first = j->first, .start = j->start};

	memcpy(h.magic, JOURNAL_MAGIC, sizeof(h.magic));
	return io_pwrite_full(j->index_fd, &h, sizeof(h), 0);
}

static bool
record_is_sane(const struct journal_record *r)
{
	return r->len && r->len <= JOURNAL_LINE_MAX && !r->pad &&
	       !(r->flags & ~(uint32_t)(JOURNAL_PIECE | JOURNAL_TORN)) &&
	       r->offset <= UINT64_MAX - r->len;
}

/* How many records hold: the last one must lie in the file, and the one before it end
 * where it begins. A power cut may have left zeroes, or an index that knows more than the
 * data. */
static int
mend(struct journal *j, uint64_t records)
{
	struct journal_record r, before;

	while (records > j->first) {
		if (io_pread_full(j->index_fd, &r, RECORD, record_at(records - 1)))
			return -EIO;
		if (record_is_sane(&r) && r.offset + r.len <= j->end &&
			r.offset >= j->start) {
			if (records - 1 == j->first)
				break;
			if (io_pread_full(
				    j->index_fd, &before, RECORD, record_at(records - 2)))
				return -EIO;
			if (before.offset + before.len == r.offset)
				break;
		}
		records--;
	}
	j->lines = records;
	j->indexed = records > j->first ? r.offset + r.len : j->start;
	return ftruncate(j->index_fd, (off_t)record_at(records)) ? -errno : 0;
}

int
journal_open(int dir, const char *name, struct journal *ret, struct err *e)
{
	cleanup_journal struct journal j = JOURNAL_INIT;
	struct journal_header h;
	struct stat st;
	char index[32];
	int r;

	snprintf(index, sizeof(index), "%.20s.index", name);
	j.name = name;
	j.data_fd = openat(dir, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j.data_fd < 0)
		return err_sys(e, -errno, "%s", name);
	j.index_fd = openat(dir, index, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j.index_fd < 0)
		return err_sys(e, -errno, "%s", index);
	if (fstat(j.data_fd, &st))
		return err_sys(e, -errno, "%s", name);
	j.end = (uint64_t)st.st_size;
	if (fstat(j.index_fd, &st))
		return err_sys(e, -errno, "%s", index);
	if ((uint64_t)st.st_size < sizeof(h)) {
		/* New; or the index was lost: what is there is indexed anew. */
		r = write_header(&j);
		if (!r && ftruncate(j.index_fd, sizeof(h)))
			r = -errno;
	} else {
		r = io_pread_full(j.index_fd, &h, sizeof(h), 0);
		if (!r && (memcmp(h.magic, JOURNAL_MAGIC, sizeof(h.magic)) != 0 ||
				  h.first > ((uint64_t)st.st_size - sizeof(h)) / RECORD ||
				  h.start > j.end))
			return err_set(e, -EBADMSG,
				"%s is damaged: move it and %s away, new ones are made",
				index, name);
		if (!r) {
			j.first = h.first;
			j.start = j.indexed = h.start;
			r = mend(&j, ((uint64_t)st.st_size - sizeof(h)) / RECORD);
		}
	}
	if (r)
		return err_sys(e, r, "%s", index);
	j.seen = j.indexed;
	*ret = j;
	j.data_fd = j.index_fd = -1;
	return 0;
}

void
journal_done(struct journal *j)
{
	if (j->data_fd >= 0)
		close(j->data_fd);
	if (j->index_fd >= 0)
		close(j->index_fd);
	j->data_fd = j->index_fd = -1;
}

ssize_t
journal_take(struct journal *j, int pipe_fd, size_t max)
{
	off_t at = (off_t)j->end;
	char buf[CHUNK];
	ssize_t n;

	if (!j->no_splice) {
		do
			n = splice(pipe_fd, NULL, j->data_fd, &at, max,
				SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
		while (n < 0 && errno == EINTR);
		if (n >= 0) {
			j->end += (uint64_t)n;
			return n;
		}
		if (errno != EINVAL)
			return -errno;
		j->no_splice = true; /* a file system that cannot */
	}
	n = io_read(pipe_fd, buf, max < sizeof(buf) ? max : sizeof(buf));
	if (n > 0) {
		int r = journal_put(j, buf, (size_t)n);

		if (r)
			return r;
	}
	return n;
}

int
journal_put(struct journal *j, const void *buf, size_t len)
{
	int r = io_pwrite_full(j->data_fd, buf, len, j->end);

	if (!r)
		j->end += len;
	return r;
}

#define BATCH 256

struct batch {
	struct journal *j;
	struct journal_record r[BATCH];
	unsigned n;
	void (*line)(void *ctx, const struct journal_record *r);
	void *ctx;
};

static int
batch_write(struct batch *b)
{
	int r = 0;

	if (b->n)
		r = io_pwrite_full(
			b->j->index_fd, b->r, b->n * RECORD, record_at(b->j->lines));
	if (r)
		return r;
	b->j->lines += b->n;
	if (b->n)
		b->j->indexed = b->r[b->n - 1].offset + b->r[b->n - 1].len;
	for (unsigned i = 0; b->line && i < b->n; i++)
		b->line(b->ctx, &b->r[i]);
	b->n = 0;
	return 0;
}

static int
batch_add(struct batch *b, uint64_t *from, uint64_t to, uint32_t flags, uint64_t now_ms)
{
	b->r[b->n++] = (struct journal_record){.offset = *from,
		.len = (uint32_t)(to - *from),
		.flags = flags,
		.epoch = b->j->epoch,
		.time_ms = now_ms};
	*from = to;
	return b->n == BATCH ? batch_write(b) : 0;
}

int
journal_index(struct journal *j, void (*line)(void *ctx, const struct journal_record *r),
	void *ctx)
{
	static char chunk[CHUNK];
	struct batch b = {.j = j, .line = line, .ctx = ctx};
	uint64_t now_ms = io_wall_ms(), from = j->indexed;
	int r = 0;

	while (!r && j->seen < j->end) {
		size_t n = j->end - j->seen < CHUNK ? (size_t)(j->end - j->seen) : CHUNK;
		const char *at = chunk, *lf;

		r = io_pread_full(j->data_fd, chunk, n, j->seen);
		while (!r && (lf = memchr(at, '\n', (size_t)(chunk + n - at)))) {
			uint64_t end = j->seen + (uint64_t)(lf - chunk) + 1;

			while (!r && end - from > JOURNAL_LINE_MAX)
				r = batch_add(&b, &from, from + JOURNAL_LINE_MAX - 1,
					JOURNAL_PIECE, now_ms);
			if (!r)
				r = batch_add(&b, &from, end, 0, now_ms);
			at = lf + 1;
		}
		while (!r && j->seen + n - from >= JOURNAL_LINE_MAX)
			r = batch_add(&b, &from, from + JOURNAL_LINE_MAX - 1,
				JOURNAL_PIECE, now_ms);
		if (!r)
			j->seen += n;
	}
	if (!r)
		r = batch_write(&b);
	if (r)
		j->seen = j->indexed; /* is looked at again */
	return r;
}

int
journal_tear(struct journal *j)
{
	struct batch b = {.j = j};
	uint64_t from = j->indexed;
	int r;

	if (j->end == j->indexed)
		return 0;
	r = journal_put(j, "\n", 1);
	if (!r)
		batch_add(&b, &from, j->end, JOURNAL_TORN, io_wall_ms());
	if (!r)
		r = batch_write(&b);
	if (!r)
		j->seen = j->end;
	return r;
}

int
journal_trim(struct journal *j, uint64_t keep)
{
	uint64_t low = j->first, high = j->lines, want, was_start = j->start;
	uint64_t was_first = j->first;
	struct journal_record rec;
	int r;

	if (j->no_holes || j->end - j->start <= keep + keep / TRIM_PART)
		return 0;
	want = j->end - keep;
	while (low < high) {
		uint64_t mid = low + (high - low) / 2;

		r = io_pread_full(j->index_fd, &rec, RECORD, record_at(mid));
		if (r)
			return r;
		if (rec.offset < want)
			low = mid + 1;
		else
			high = mid;
	}
	if (low == j->first || low == j->lines)
		return 0;
	r = io_pread_full(j->index_fd, &rec, RECORD, record_at(low));
	if (r)
		return r;
	/* First known to be gone, then gone. */
	j->first = low;
	j->start = rec.offset;
	r = write_header(j);
	if (r)
		return r;
	was_start = was_start / PAGE * PAGE;
	was_first = record_at(was_first) / PAGE * PAGE;
	if (!was_first)
		was_first = PAGE; /* the header's */
	if (fallocate(j->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		    (off_t)was_start, (off_t)(j->start / PAGE * PAGE - was_start))) {
		if (errno == EOPNOTSUPP)
			j->no_holes = true;
		else if (errno != EINVAL) /* less than a page */
			return -errno;
	}
	low = record_at(low) / PAGE * PAGE;
	if (low > was_first)
		(void)!fallocate(j->index_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)was_first, (off_t)(low - was_first));
	return 0;
}

/*
 * A reader.
 */

int
journal_reader_open(int dir, const char *name, struct journal_reader *ret, struct err *e)
{
	struct journal_reader r = JOURNAL_READER_INIT;
	char index[32];

	snprintf(index, sizeof(index), "%.20s.index", name);
	r.index_fd = openat(dir, index, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (r.index_fd >= 0)
		r.data_fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (r.data_fd < 0) {
		int code = -errno;

		journal_reader_done(&r);
		return err_sys(e, code, "%s", name);
	}
	*ret = r;
	return 0;
}

void
journal_reader_done(struct journal_reader *r)
{
	if (r->data_fd >= 0)
		close(r->data_fd);
	if (r->index_fd >= 0)
		close(r->index_fd);
	r->data_fd = r->index_fd = -1;
}

static int
damaged(uint64_t number, struct err *e)
{
	return err_set(e, -EBADMSG, "the journal is damaged at line %" PRIu64, number);
}

static int
read_header(const struct journal_reader *r, struct journal_header *ret, struct err *e)
{
	if (io_pread_full(r->index_fd, ret, sizeof(*ret), 0) ||
		memcmp(ret->magic, JOURNAL_MAGIC, sizeof(ret->magic)) != 0)
		return err_set(e, -EBADMSG, "this is no journal");
	return 0;
}

/* Of the index, as it is now. */
static int
count(const struct journal_reader *r, uint64_t *ret, struct err *e)
{
	struct stat st;

	if (fstat(r->index_fd, &st))
		return err_sys(e, -errno, "the journal");
	*ret = st.st_size < (off_t)RECORD ? 0 : (uint64_t)st.st_size / RECORD - 1;
	return 0;
}

int
journal_bounds(const struct journal_reader *r, struct journal_bounds *ret, struct err *e)
{
	struct journal_header h;
	struct journal_record last;
	struct journal_bounds b;
	int n = read_header(r, &h, e);

	if (!n)
		n = count(r, &b.lines, e);
	if (n)
		return n;
	if (h.first > b.lines)
		return damaged(h.first, e);
	b.first = h.first;
	b.start = b.end = h.start;
	if (b.lines > b.first) {
		n = journal_record(r, b.lines - 1, &last, e);
		if (n < 0 && n != -ESTALE)
			return n;
		if (n == 1)
			b.end = last.offset + last.len;
	}
	*ret = b;
	return 0;
}

int
journal_record(const struct journal_reader *r, uint64_t number,
	struct journal_record *ret, struct err *e)
{
	struct journal_header h;
	struct journal_record rec;
	uint64_t n;
	struct stat st;
	int code = count(r, &n, e);

	if (code)
		return code;
	if (number >= n)
		return 0;
	code = io_pread_full(r->index_fd, &rec, RECORD, record_at(number));
	if (code)
		return damaged(number, e);
	/* After the read: what it read may have been a hole. */
	code = read_header(r, &h, e);
	if (code)
		return code;
	if (number < h.first)
		return err_set(
			e, -ESTALE, "line %" PRIu64 " is not kept any more", number);
	if (fstat(r->data_fd, &st))
		return err_sys(e, -errno, "the journal");
	if (!record_is_sane(&rec) || rec.offset < h.start ||
		rec.offset + rec.len > (uint64_t)st.st_size)
		return damaged(number, e);
	*ret = rec;
	return 1;
}

int
journal_seek(const struct journal_reader *r, uint64_t offset, uint64_t *ret_number,
	struct err *e)
{
	struct journal_bounds b;
	int n = journal_bounds(r, &b, e);
	uint64_t low, high;

	if (n)
		return n;
	if (offset > b.end)
		return err_set(e, -ERANGE, "there are %" PRIu64 " bytes, not %" PRIu64,
			b.end, offset);
	low = b.first;
	high = b.lines;
	while (low < high) {
		uint64_t mid = low + (high - low) / 2;
		struct journal_record rec;

		n = journal_record(r, mid, &rec, e);
		if (n < 0 && n != -ESTALE)
			return n;
		if (n == -ESTALE || (n && rec.offset < offset))
			low = mid + 1;
		else
			high = mid;
	}
	*ret_number = low;
	return 0;
}

int
journal_read(const struct journal_reader *r, uint64_t number,
	const struct journal_record *rec, uint32_t at, void *buf, size_t len,
	struct err *e)
{
	struct journal_header h;
	int n;

	if (at > rec->len || len > rec->len - at)
		return err_set(e, -EINVAL, "beyond the line's end");
	if (io_pread_full(r->data_fd, buf, len, rec->offset + at))
		return damaged(number, e);
	n = read_header(r, &h, e);
	if (n)
		return n;
	return number < h.first ? err_set(e, -ESTALE,
					  "line %" PRIu64 " is not kept any more", number)
				: 0;
}
