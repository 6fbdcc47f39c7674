#include "guest-agent/supervisor/rpc_spool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* The longest line, and what a pipe may hold of pages that are the spool's own. */
#define KEEP (SPOOL_LINE_MAX + 4u * 1024u * 1024u)
#define PUNCH_STEP (1024u * 1024u)

static int
read_state(int fd, struct spool_state *ret, struct err *e)
{
	int r = io_pread_full(fd, ret, sizeof(*ret), 0);

	if (r || memcmp(ret->magic, SPOOL_MAGIC, sizeof(ret->magic)) != 0)
		return err_set(e, -EBADMSG,
			"spool.state is damaged: stop the coding agent, and remove it and spool");
	return 0;
}

/* flock, so that two descriptors of one process exclude each other, too. */
static int
lock(int fd, unsigned lock_ms, struct err *e)
{
	uint64_t until = io_now_ns() + lock_ms * UINT64_C(1000000);
	struct timespec nap = {.tv_nsec = 500000};

	while (flock(fd, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return err_sys(e, -errno, "locking the spool");
		if (io_now_ns() > until)
			return err_set(e, -EBUSY,
				"another sender has held the way in for %u ms", lock_ms);
		nanosleep(&nap, NULL);
		if (nap.tv_nsec < 20000000)
			nap.tv_nsec *= 2;
	}
	return 0;
}

/* A power cut may have left a spool that is shorter than what it was said to hold. */
static int
mend(int fd, int state, struct err *e)
{
	struct spool_state s;
	struct stat st;
	int r = lock(fd, SPOOL_LOCK_MS, e);

	if (!r)
		r = read_state(state, &s, e);
	if (!r && fstat(fd, &st))
		r = err_sys(e, -errno, "spool");
	if (!r && (uint64_t)st.st_size < s.committed) {
		r = spool_line_start(fd, (uint64_t)st.st_size, &s.committed);
		if (s.forwarded > s.committed)
			s.forwarded = s.committed;
		if (!r)
			r = io_pwrite_full(state, &s, sizeof(s), 0);
		if (r)
			err_sys(e, r, "mending the spool");
	}
	flock(fd, LOCK_UN);
	return r;
}

int
spool_make(int dir, struct err *e)
{
	cleanup_close int fd =
		openat(dir, "spool", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	cleanup_close int state = openat(
		dir, "spool.state", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	struct spool_state s = {0};
	struct stat st;
	int r = 0;

	if (fd < 0 || state < 0 || fstat(state, &st))
		return err_sys(e, -errno, "spool");
	memcpy(s.magic, SPOOL_MAGIC, sizeof(s.magic));
	if ((size_t)st.st_size < sizeof(s))
		r = io_pwrite_full(state, &s, sizeof(s), 0);
	return r ? err_sys(e, r, "spool.state") : mend(fd, state, e);
}

int
spool_state_read(int dir, struct spool_state *ret, struct err *e)
{
	cleanup_close int fd = openat(dir, "spool.state", O_RDONLY | O_CLOEXEC);

	return fd < 0 ? err_sys(e, -errno, "spool.state") : read_state(fd, ret, e);
}

static int
append(int fd, struct spool_state *s, const char *line, size_t len)
{
	struct iovec iov[2] = {
		{(void *)(uintptr_t)line, len}, {(void *)(uintptr_t) "\n", 1}};
	uint64_t at = s->committed;
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	if ((uint64_t)st.st_size > at && ftruncate(fd, (off_t)at))
		return -errno;
	for (int i = 0; i < 2; i++) {
		int r = io_pwrite_full(fd, iov[i].iov_base, iov[i].iov_len, at);

		if (r) {
			(void)!ftruncate(fd, (off_t)s->committed);
			return r;
		}
		at += iov[i].iov_len;
	}
	s->committed = at;
	s->lines++;
	return 0;
}

int
spool_append(int dir, const char *line, size_t len, unsigned lock_ms, uint64_t *ret_line,
	struct err *e)
{
	cleanup_close int fd = openat(dir, "spool", O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	cleanup_close int state =
		openat(dir, "spool.state", O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	struct spool_state s;
	int r;

	if (fd < 0 || state < 0)
		return err_sys(e, -errno, "spool");
	if (len > SPOOL_LINE_MAX)
		return err_set(
			e, -E2BIG, "the line has more than %u bytes", SPOOL_LINE_MAX);
	r = lock(fd, lock_ms, e);
	if (!r)
		r = read_state(state, &s, e);
	if (r)
		return r;
	if (s.committed > s.forwarded && s.committed - s.forwarded > SPOOL_WAITING_MAX)
		return err_set(e, -EAGAIN,
			"%" PRIu64
			" MiB wait already for the coding agent, which does not read: see pando rpc status",
			(s.committed - s.forwarded) >> 20);
	r = append(fd, &s, line, len);
	/* One write, of what follows the magic but for what the supervisor writes. */
	if (!r)
		r = io_pwrite_full(state, &s.lines, sizeof(s.lines),
			offsetof(struct spool_state, lines));
	if (!r)
		r = io_pwrite_full(state, &s.committed, sizeof(s.committed),
			offsetof(struct spool_state, committed));
	if (r)
		return err_sys(e, r, "keeping the line");
	if (ret_line)
		*ret_line = s.lines;
	return 0;
}

int
spool_set_forwarded(int dir, uint64_t forwarded)
{
	cleanup_close int fd =
		openat(dir, "spool.state", O_RDWR | O_CLOEXEC | O_NOFOLLOW);

	return fd < 0 ? -errno
		      : io_pwrite_full(fd, &forwarded, sizeof(forwarded),
				offsetof(struct spool_state, forwarded));
}

int
spool_line_start(int fd, uint64_t at, uint64_t *ret)
{
	char chunk[4096];

	while (at) {
		size_t n = at < sizeof(chunk) ? (size_t)at : sizeof(chunk);
		const char *lf;
		int r = io_pread_full(fd, chunk, n, at - n);

		if (r)
			return r;
		lf = memrchr(chunk, '\n', n);
		if (lf) {
			*ret = at - n + (uint64_t)(lf - chunk) + 1;
			return 0;
		}
		at -= n;
	}
	*ret = 0;
	return 0;
}

void
spool_punch(int fd, uint64_t *punched, uint64_t forwarded)
{
	uint64_t to;

	if (forwarded < KEEP + PUNCH_STEP)
		return;
	to = (forwarded - KEEP) / PUNCH_STEP * PUNCH_STEP;
	if (to <= *punched)
		return;
	if (!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)*punched,
		    (off_t)(to - *punched)))
		*punched = to;
}
