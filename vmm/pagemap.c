#include "vmm/pagemap.h"

#include <errno.h>
#include <sys/ioctl.h>

#include "vmm/bitmap.h"

#define PAGE ((uintptr_t)4096)
/* What a page table, or a huge page, maps. */
#define TABLE ((uint64_t)2 << 20)

#define IS_WRITTEN (1u << 1)
#define IS_FILE (1u << 2)
#define IS_PRESENT (1u << 3)
#define IS_SWAPPED (1u << 4)
#define IS_PFNZERO (1u << 5)
#define WP_MATCHING (1u << 0)
#define CHECK_WPASYNC (1u << 1)

/* What one call reports: a page's worth, since each fork has the next scan copy it. */
#define RANGES 170u
static struct pagemap_range found[RANGES], marked[RANGES];
_Static_assert(sizeof(found) <= PAGE, "one page");

/* How many ranges there are, or -errno; a->walk_end is where the next call begins. */
static int
scan(int fd, struct pagemap_scan *a)
{
	int n;

	a->size = sizeof(*a);
	do
		n = ioctl(fd, PAGEMAP_SCAN_IOCTL, a);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return a->start < a->end && a->walk_end <= a->start ? -EIO : n;
}

bool
pagemap_can_scan(int fd)
{
	/* Of no addresses at all. */
	struct pagemap_scan a = {.category_mask = IS_WRITTEN, .return_mask = IS_WRITTEN};

	return scan(fd, &a) >= 0;
}

void
pagemap_set_range(uint8_t *bitmap, uint64_t base, const struct pagemap_range *g)
{
	bitmap_set(bitmap, (g->start - base) / PAGE, (g->end - g->start) / PAGE);
}

/* What was written in [from, to). */
static struct pagemap_scan
scan_of_written(uint64_t from, uint64_t to)
{
	return (struct pagemap_scan){
		.flags = CHECK_WPASYNC,
		.start = from,
		.end = to,
		.vec = (uintptr_t)found,
		.vec_len = RANGES,
		.category_mask = IS_WRITTEN,
		.return_mask = IS_WRITTEN,
	};
}

/* A walk over what was written. What is near each other is marked by one call: [from, to). */
struct walk {
	int fd;
	const struct pagemap_memory *m;
	uint64_t base, end; /* of the memory */
	uint64_t from, to;  /* from == to: nothing yet */
};

/* All that is written in [from, to) is reported, and marked as not. */
static int
mark_now(struct walk *w)
{
	const bool matters = w->m->written || w->m->kept;
	struct pagemap_scan a = scan_of_written(w->from, w->to);

	a.flags |= WP_MATCHING;
	/* Without a place for a report the kernel has a shorter way. */
	a.vec = matters ? (uintptr_t)marked : 0;
	a.vec_len = matters ? RANGES : 0;
	while (a.start < a.end) {
		int n = scan(w->fd, &a);

		if (n < 0)
			return n;
		for (int i = 0; i < n && matters; i++) {
			if (w->m->written)
				pagemap_set_range(w->m->written, w->base, &marked[i]);
			if (w->m->kept)
				pagemap_set_range(w->m->kept, w->base, &marked[i]);
		}
		a.start = a.walk_end;
	}
	w->from = w->to;
	return 0;
}

/* Pieces that are less than a table apart have no whole one between them. */
static int
mark(struct walk *w, uint64_t from, uint64_t to)
{
	int r = 0;

	if (w->from == w->to || from - w->to >= TABLE) {
		r = mark_now(w);
		w->from = from;
	}
	w->to = to;
	return r;
}

/* Where in [from, to) the first page is that is there, or to. */
static int
first_there(const struct walk *w, uint64_t from, uint64_t to, uint64_t *ret)
{
	struct pagemap_range one;
	struct pagemap_scan a = {
		.start = from,
		.end = to,
		.vec = (uintptr_t)&one,
		.vec_len = 1,
		.max_pages = 1,
		.category_anyof_mask = IS_PRESENT | IS_SWAPPED,
		.return_mask = IS_PRESENT | IS_SWAPPED,
	};
	int n = scan(w->fd, &a);

	if (n < 0)
		return n;
	*ret = n ? one.start : to;
	return 0;
}

/* A table's worth, or what there is of it at the end. */
static bool
was_given_back(const struct walk *w, uint64_t from, uint64_t to)
{
	const uint64_t first = (from - w->base) / PAGE, end = (to - w->base) / PAGE;

	for (uint64_t i = first / 8; i < (end + 7) / 8 && w->m->given_back; i++)
		if (w->m->given_back[i])
			return true;
	return false;
}

/* What the kernel calls written, less what never was there. */
static int
mark_written(struct walk *w, const struct pagemap_range *g)
{
	uint64_t there = 0;
	int r = 0;

	for (uint64_t at = g->start, to; at < g->end && r == 0; at = to) {
		bool is_sure;

		to = (at / TABLE + 1) * TABLE;
		to = to < g->end ? to : g->end;
		/* Of a part of a table's worth the rest is there, or has a mark. */
		is_sure = at % TABLE != 0 || (to % TABLE != 0 && to != w->end) ||
			  was_given_back(w, at, to);
		if (!is_sure && there <= at)
			r = first_there(w, at, g->end, &there);
		if (r == 0 && (is_sure || there < to))
			r = mark(w, at, to);
	}
	return r;
}

/*
 * First where anything was written, then to report and mark it there: a call that marks has KVM let
 * go of the whole range that it is given, written or not, which for a KVM with shadow page tables
 * is a look at every page of it. So a VM that wrote nothing pays for nothing.
 */
int
pagemap_take_written(int fd, const struct pagemap_memory *m)
{
	struct walk w = {
		.fd = fd,
		.m = m,
		.base = (uintptr_t)m->host,
		.end = (uintptr_t)m->host + m->len,
	};
	struct pagemap_scan a = scan_of_written(w.base, w.end);

	while (a.start < a.end) {
		int n = scan(fd, &a), r = n < 0 ? n : 0;

		for (int i = 0; i < n && r == 0; i++)
			r = mark_written(&w, &found[i]);
		if (r < 0)
			return r;
		a.start = a.walk_end;
	}
	return mark_now(&w);
}

int
pagemap_find_written(int fd, const uint8_t *host, size_t len, uint8_t *bitmap)
{
	struct pagemap_scan a = scan_of_written((uintptr_t)host, (uintptr_t)host + len);

	while (a.start < a.end) {
		int n = scan(fd, &a);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			pagemap_set_range(bitmap, (uintptr_t)host, &found[i]);
		a.start = a.walk_end;
	}
	return 0;
}

int
pagemap_mark(int fd, uint64_t from, uint64_t to)
{
	const struct pagemap_memory nobody_asks = {.written = NULL};
	struct walk w = {.fd = fd, .m = &nobody_asks, .from = from, .to = to};

	return mark_now(&w);
}

int
pagemap_own_pages(int fd, uint64_t *from, uint64_t to, struct pagemap_range *ret, size_t n_max)
{
	struct pagemap_scan a = {
		.start = *from,
		.end = to,
		.vec = (uintptr_t)ret,
		.vec_len = n_max,
		.category_inverted = IS_FILE | IS_PFNZERO,
		.category_mask = IS_FILE | IS_PFNZERO,
		.category_anyof_mask = IS_PRESENT | IS_SWAPPED,
		.return_mask = IS_PRESENT | IS_SWAPPED,
	};
	int n = scan(fd, &a);

	if (n < 0)
		return n == -ENOTTY ? -ENOSYS : n;
	*from = a.walk_end;
	return n;
}
