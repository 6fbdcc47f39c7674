#include "guest-agent/system/ring.h"

#include <assert.h>
#include <errno.h>
#include <sys/mman.h>

void
ring_init(struct ring *r, size_t cap)
{
	*r = (struct ring){.cap = cap};
}

void
ring_init_shared(struct ring *r, size_t cap)
{
	*r = (struct ring){.cap = cap, .shared = true};
}

void
ring_done(struct ring *r)
{
	if (r->shared) {
		if (r->touched)
			madvise(r->buf, r->cap, MADV_REMOVE);
		r->touched = false;
		return;
	}
	if (r->buf)
		munmap(r->buf, r->cap);
	r->buf = NULL;
}

size_t
ring_room(const struct ring *r, uint64_t keep)
{
	return r->cap - (size_t)(r->end - keep);
}

static int
pieces(const struct ring *r, uint64_t from, size_t len, struct iovec iov[2])
{
	size_t at = (size_t)(from & (r->cap - 1));
	size_t first = len < r->cap - at ? len : r->cap - at;

	iov[0] = (struct iovec){r->buf + at, first};
	iov[1] = (struct iovec){r->buf, len - first};
	return len > first ? 2 : 1;
}

int
ring_space(struct ring *r, size_t max, struct iovec iov[2])
{
	if (!r->buf) {
		void *p = mmap(NULL, r->cap, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			return -ENOMEM;
		r->buf = p;
	}
	r->touched = true;
	return pieces(r, r->end, max < r->cap ? max : r->cap, iov);
}

void
ring_added(struct ring *r, size_t n)
{
	r->end += n;
	if (r->end - r->start > r->cap)
		r->start = r->end - r->cap;
}

int
ring_at(const struct ring *r, uint64_t from, size_t len, struct iovec iov[2])
{
	assert(from >= r->start && from + len <= r->end);
	return pieces(r, from, len, iov);
}

void
ring_consume(struct ring *r, uint64_t offset)
{
	r->start = offset;
	if (r->end < offset)
		r->end = offset;
	if (r->start == r->end)
		ring_done(r);
}
