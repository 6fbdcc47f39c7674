#include "vmm/track_keep.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "common/log.h"
#include "vmm/bitmap.h"
#include "vmm/pagemap.h"

#define PAGE ((uint64_t)4096)
/* Ranges nearer to each other are looked at, or marked, by one call. */
#define NEAR_PAGES 512u

static uint64_t
bitmap_bytes(const struct track *t)
{
	return VMM_TRACK_BITMAP_BYTES(t->kept_pages);
}

void
track_keep_begin(struct track *t, const struct guest_mem *m)
{
	const uint64_t pages = (m->low_len + m->high_len) / PAGE;
	const uint64_t bytes = VMM_TRACK_BITMAP_BYTES(pages);
	uint8_t *p;
	int r;

	if (t->means != VMM_TRACK_USERFAULTFD || t->failed)
		return;
	p = mmap(NULL, 3 * bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return;
	r = track_watch(t, m);
	if (r < 0) {
		log_info("changed pages of memory are not watched (%s): a reset compares all",
			strerror(-r));
		track_watch_end(t);
		munmap(p, 3 * bytes);
		return;
	}
	t->kept_written = p;
	t->kept_given = p + bytes;
	t->kept_fetch = p + 2 * bytes;
	t->kept_pages = pages;
}

void
track_keep_end(struct track *t)
{
	if (!t->kept_written)
		return;
	track_forget_kept(t);
	track_watch_end(t);
}

static uint64_t
next_page(const struct track *t, const uint8_t *bitmap, uint64_t page, bool set)
{
	return bitmap_next(bitmap, page, t->kept_pages, set);
}

/* Calls act for what lies together in the bitmap. */
static int
each_stretch(const struct track *t, const struct guest_mem *m, const uint8_t *bitmap,
	int (*act)(const struct track *t, uint64_t base, uint64_t from, uint64_t to))
{
	const uint64_t base = (uintptr_t)m->host;
	uint64_t from = next_page(t, bitmap, 0, true), next;
	int r = 0;

	for (; from < t->kept_pages && r == 0; from = next) {
		uint64_t to = next_page(t, bitmap, from, false);

		next = next_page(t, bitmap, to, true);
		while (next < t->kept_pages && next - to < NEAR_PAGES) {
			to = next_page(t, bitmap, next, false);
			next = next_page(t, bitmap, to, true);
		}
		r = act(t, base, base + from * PAGE, base + to * PAGE);
	}
	return r;
}

/* Its own pages are to be fetched. */
static int
look(const struct track *t, uint64_t base, uint64_t from, uint64_t to)
{
	static struct pagemap_range own[KEEP_RANGES];

	while (from < to) {
		int n = pagemap_own_pages(t->pagemap_fd, &from, to, own, KEEP_RANGES);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			pagemap_set_range(t->kept_fetch, base, &own[i]);
	}
	return 0;
}

static int
mark(const struct track *t, uint64_t base, uint64_t from, uint64_t to)
{
	(void)base;
	return pagemap_mark(t->pagemap_fd, from, to);
}

int
track_keep_collect(struct track *t, const struct guest_mem *m)
{
	int r;

	if (!t->kept_written || t->failed || t->uffd_fd < 0 || t->pagemap_fd < 0)
		return -ENOSYS;
	/* As for a commit: to mark all would cost a KVM with shadow page tables a look at all. */
	r = pagemap_find_written(t->pagemap_fd, m->host, t->kept_pages * PAGE, t->kept_written);
	if (r == 0)
		r = each_stretch(t, m, t->kept_written, look);
	if (r < 0)
		return -ENOSYS;
	/* Its own and clean lie near each other: only what was written, or given back, is fetched. */
	for (uint64_t i = 0; i < bitmap_bytes(t); i++) {
		if (t->kept_fetch[i])
			t->kept_fetch[i] &= t->kept_written[i];
		if (t->kept_given[i])
			t->kept_fetch[i] |= t->kept_given[i];
	}
	return 0;
}

unsigned
track_keep_changed(
	const struct track *t, uint64_t *at, struct keep_range ret[static KEEP_RANGES])
{
	unsigned n = 0;

	while (n < KEEP_RANGES) {
		const uint64_t from = next_page(t, t->kept_fetch, *at, true);

		*at = next_page(t, t->kept_fetch, from, false);
		if (from >= t->kept_pages)
			break;
		ret[n++] = (struct keep_range){from * PAGE, (*at - from) * PAGE};
	}
	return n;
}

int
track_keep_restart(struct track *t, const struct guest_mem *m)
{
	/* What was fetched is written, by us. */
	int r = each_stretch(t, m, t->kept_fetch, mark);

	if (madvise(t->kept_written, 3 * bitmap_bytes(t) / PAGE * PAGE, MADV_DONTNEED) < 0)
		memset(t->kept_written, 0, 3 * bitmap_bytes(t));
	else
		memset(t->kept_written + 3 * bitmap_bytes(t) / PAGE * PAGE, 0,
			3 * bitmap_bytes(t) % PAGE);
	return r;
}
