#include "vmm/giveback.h"

#include <errno.h>
#include <sys/mman.h>

#define PAGE ((size_t)4096)

static bool
is_anonymous(const struct guest_mem *m, size_t unit)
{
	return m->anonymous && m->anonymous[unit / 8] >> unit % 8 & 1;
}

static void
drop(const struct guest_mem *m, struct track *t, void *host, size_t len, uint64_t *bytes)
{
	if (madvise(host, len, MADV_DONTNEED) < 0)
		return; /* as it was */
	track_given_back(t, m, host, len);
	*bytes += len;
}

/* 0, -EAGAIN: nothing changed, -ENOMEM: the memory is gone. */
static int
map_zero(void *host, size_t len)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

	for (int i = 0; i < 2; i++) {
		if (mmap(host, len, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED)
			return 0;
		/* The kernel may have run out of something before or after it took the old
		 * mapping away. Of addresses without one it says so here. */
		if (mprotect(host, len, PROT_READ | PROT_WRITE) == 0)
			return -EAGAIN;
	}
	return -ENOMEM;
}

static bool
has_bitmap(struct guest_mem *m)
{
	void *p;

	if (m->anonymous)
		return true;
	p = mmap(NULL, guest_mem_unit_bytes(m), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return false;
	m->anonymous = p;
	return true;
}

/* Whole units that are the image's still. */
static int
map_over(struct guest_mem *m, struct track *t, uint8_t *host, size_t len, uint64_t *bytes)
{
	const size_t first = (size_t)(host - m->host) / GUEST_UNIT;
	int r;

	if (m->anonymous_maps >= GIVEBACK_MAPS_MAX || !has_bitmap(m))
		return 0;
	track_lock(t);
	r = map_zero(host, len);
	if (r == 0) {
		(void)madvise(host, len, MADV_NOHUGEPAGE); /* a kernel without any refuses */
		track_remapped(t, m, host, len);
	}
	track_unlock(t);
	if (r < 0)
		return r == -EAGAIN ? 0 : r;
	for (size_t i = first; i < first + len / GUEST_UNIT; i++)
		m->anonymous[i / 8] |= (uint8_t)(1u << i % 8);
	m->anonymous_maps++;
	m->image_inode = 0; /* not all of it any more */
	*bytes += len;
	return 0;
}

/* The longest piece from off on that lies in units of one kind, either whole ones or a part of
 * one. */
static size_t
piece(const struct guest_mem *m, size_t off, size_t left, bool *anonymous, bool *whole)
{
	size_t unit = off / GUEST_UNIT, len;

	*anonymous = is_anonymous(m, unit);
	*whole = off % GUEST_UNIT == 0 && left >= GUEST_UNIT;
	if (!*whole) {
		len = GUEST_UNIT - off % GUEST_UNIT;
		return len < left ? len : left;
	}
	for (len = GUEST_UNIT; left - len >= GUEST_UNIT; len += GUEST_UNIT)
		if (is_anonymous(m, ++unit) != *anonymous)
			break;
	return len;
}

int
giveback_range(struct guest_mem *m, struct track *t, void *host, size_t len,
	enum giveback_rest rest, uint64_t *ret)
{
	uint8_t *at = host, *end = at + len;
	int r = 0;

	*ret = 0;
	if (!m->on_image) {
		drop(m, t, host, len, ret);
		return 0;
	}
	while (at < end && r == 0) {
		bool anonymous, whole;
		size_t n = piece(m, (size_t)(at - m->host), (size_t)(end - at), &anonymous,
			&whole);

		if (anonymous || (!whole && rest == GIVEBACK_REST_ANY))
			drop(m, t, at, n, ret);
		else if (whole)
			r = map_over(m, t, at, n, ret);
		at += n;
	}
	return r;
}

void
giveback_show(const struct guest_mem *m)
{
	const size_t units = (m->low_len + m->high_len) / GUEST_UNIT;

	for (size_t i = 0; i < units && m->anonymous; i++) {
		uint8_t *host = m->host + i * GUEST_UNIT;

		if (!m->anonymous[i / 8]) {
			i += 7 - i % 8;
			continue;
		}
		if (!is_anonymous(m, i) || madvise(host, GUEST_UNIT, MADV_POPULATE_READ) == 0)
			continue;
		for (size_t at = 0; at < GUEST_UNIT; at += PAGE) /* before Linux 5.14 */
			(void)*(volatile uint8_t *)(host + at);
	}
}
