#include "vmm/track.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/bitmap.h"

#define PAGE ((uintptr_t)4096)

/* include/uapi/linux/userfaultfd.h and fs.h of Linux 6.7; these headers may be older. */
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFDIO_WRITEPROTECT
#define UFFDIO_WRITEPROTECT _IOWR(0xaa, 0x06, struct uffdio_writeprotect)
#define UFFDIO_WRITEPROTECT_MODE_WP ((uint64_t)1 << 0)
struct uffdio_writeprotect {
	struct uffdio_range range;
	uint64_t mode;
};
#endif
#ifndef UFFDIO_REGISTER_MODE_WP
#define UFFDIO_REGISTER_MODE_WP ((uint64_t)1 << 1)
#endif
_Static_assert(TRACK_UFFD_FLAGS == (O_CLOEXEC | UFFD_USER_MODE_ONLY), "as in the header");


const unsigned long track_ioctl_numbers[] = {
	UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WRITEPROTECT, PAGEMAP_SCAN_IOCTL};
const size_t track_n_ioctl_numbers =
	sizeof(track_ioctl_numbers) / sizeof(*track_ioctl_numbers);

/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_SOFT_DIRTY (1ull << 55)

#define MAP_ENTRIES 512u /* read at once: a page, as each fork has the next scan copy it */

void
track_init(struct track *t)
{
	*t = (struct track){.pagemap_fd = -1,
		.clear_refs_fd = -1,
		.uffd_fd = -1,
		.lock = PTHREAD_MUTEX_INITIALIZER};
}

const char *
track_means_name(enum vmm_track_means means)
{
	switch (means) {
	case VMM_TRACK_USERFAULTFD:
		return "userfaultfd";
	case VMM_TRACK_SOFT_DIRTY:
		return "soft-dirty";
	case VMM_TRACK_NONE:
		break;
	}
	return "none";
}

static void
close_one(int *fd)
{
	if (*fd >= 0)
		close(TAKE_FD(*fd));
}

/* A userfaultfd that marks writes by itself, or -errno. */
static int
open_uffd(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC};
	cleanup_close int fd = (int)syscall(SYS_userfaultfd, TRACK_UFFD_FLAGS);

	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	return TAKE_FD(fd);
}

static int
read_entry(int pagemap_fd, const volatile void *page, uint64_t *ret)
{
	return io_pread_full(
		pagemap_fd, ret, sizeof(*ret), (uintptr_t)page / PAGE * sizeof(*ret));
}

/* A new mapping's page is soft-dirty where the kernel has that. */
static bool
has_soft_dirty(int pagemap_fd)
{
	uint8_t *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		-1, 0);
	uint64_t entry = 0;

	if (p == MAP_FAILED)
		return false;
	*(volatile uint8_t *)p = 1;
	if (read_entry(pagemap_fd, p, &entry) < 0)
		entry = 0;
	munmap(p, PAGE);
	return entry & PM_SOFT_DIRTY;
}

void
track_open(struct track *t)
{
	const char *hook = getenv("PANDO_TRACK");
	cleanup_close int pagemap = -1, uffd = -1, clear = -1;

	if (hook && strcmp(hook, "none") == 0)
		return;
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		return;
	if (!hook && pagemap_can_scan(pagemap) && (uffd = open_uffd()) >= 0) {
		/* Opened again when it is needed: a fork need not copy it until then. */
		t->means = VMM_TRACK_USERFAULTFD;
		t->pagemap_fd = TAKE_FD(pagemap);
		return;
	}
	clear = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	if (clear >= 0 && has_soft_dirty(pagemap)) {
		t->means = VMM_TRACK_SOFT_DIRTY;
		t->pagemap_fd = TAKE_FD(pagemap);
		t->clear_refs_fd = TAKE_FD(clear);
	}
}

bool
track_needs_fds(const struct track *t)
{
	return t->means != VMM_TRACK_NONE && t->pagemap_fd < 0 && !t->failed;
}

/* Whether the page map is this process's: it shows a page that comes into being. Its
 * parent's, above all, would show memory that looks the same. */
static bool
is_our_pagemap(int fd)
{
	uint8_t *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		-1, 0);
	uint64_t before, after;
	bool ours;

	if (p == MAP_FAILED)
		return false;
	ours = read_entry(fd, p, &before) == 0 && !(before & (PM_PRESENT | PM_SWAPPED));
	*(volatile uint8_t *)p = 1;
	ours = ours && read_entry(fd, p, &after) == 0 && (after & (PM_PRESENT | PM_SWAPPED));
	munmap(p, PAGE);
	return ours;
}

int
track_take_fds(struct track *t, int pagemap_fd, int clear_refs_fd, struct err *e)
{
	cleanup_close int pagemap = pagemap_fd, clear = clear_refs_fd;

	if (!track_needs_fds(t))
		return err_set(e, -EINVAL, "this VM needs no page map");
	if (!is_our_pagemap(pagemap)) {
		t->failed = true;
		return err_set(e, -EBADF, "the page map is not this process's");
	}
	t->pagemap_fd = TAKE_FD(pagemap);
	if (t->means == VMM_TRACK_SOFT_DIRTY)
		t->clear_refs_fd = TAKE_FD(clear);
	return 0;
}

static size_t
mem_len(const struct guest_mem *m)
{
	return m->low_len + m->high_len;
}

/* From now on each commit reads all. */
static void
give_up(struct track *t, const char *what, int r)
{
	log_warn("changed pages of memory are not known (%s: %s): commits read all of it",
		what, strerror(-r));
	t->failed = true;
	t->armed = t->is_whole = false;
	close_one(&t->uffd_fd);
}

static int
map_bitmaps(struct track *t, const struct guest_mem *m)
{
	uint8_t *p;

	if (t->changed)
		return 0;
	t->pages = mem_len(m) / PAGE;
	t->bitmap_bytes = VMM_TRACK_BITMAP_BYTES(t->pages);
	p = mmap(NULL, 3 * t->bitmap_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	t->changed = p;
	t->given_back = p + t->bitmap_bytes;
	t->given_back_now = p + 2 * t->bitmap_bytes;
	return 0;
}

static int
clear_soft_dirty(const struct track *t)
{
	ssize_t n = write(t->clear_refs_fd, "4", 1);

	return n == 1 ? 0 : n < 0 ? -errno : -EIO;
}

static int
scan_soft_dirty(const struct track *t, const struct guest_mem *m, uint8_t *bitmap)
{
	static uint64_t map[MAP_ENTRIES];
	const uint64_t first = (uintptr_t)m->host / PAGE;

	for (uint64_t page = 0; page < t->pages && bitmap; page += MAP_ENTRIES) {
		uint64_t n = t->pages - page < MAP_ENTRIES ? t->pages - page : MAP_ENTRIES;
		int r = io_pread_full(t->pagemap_fd, map, n * sizeof(*map),
			(first + page) * sizeof(*map));

		if (r < 0)
			return r;
		for (uint64_t i = 0; i < n; i++)
			if (map[i] & PM_SOFT_DIRTY)
				bitmap_set(bitmap, page + i, 1);
	}
	return clear_soft_dirty(t);
}

/* bitmap NULL: whatever was written before does not count, but for a fork point that is kept. */
static int
scan(const struct track *t, const struct guest_mem *m, uint8_t *bitmap)
{
	const struct pagemap_memory memory = {
		.host = m->host,
		.len = mem_len(m),
		.given_back = t->given_back,
		.written = bitmap,
		.kept = t->kept_written,
	};

	return t->means == VMM_TRACK_USERFAULTFD
		       ? pagemap_take_written(t->pagemap_fd, &memory)
		       : scan_soft_dirty(t, m, bitmap);
}

static int
register_range(const struct track *t, const void *host, size_t len)
{
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)host, .len = len},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	return ioctl(t->uffd_fd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

static int
register_memory(struct track *t, const struct guest_mem *m)
{
	t->uffd_fd = open_uffd();
	if (t->uffd_fd < 0)
		return t->uffd_fd;
	return register_range(t, m->host, mem_len(m));
}

int
track_watch(struct track *t, const struct guest_mem *m)
{
	struct uffdio_writeprotect wp = {
		.range = {.start = (uintptr_t)m->host, .len = mem_len(m)},
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int r = register_memory(t, m);

	if (r == 0 && ioctl(t->uffd_fd, UFFDIO_WRITEPROTECT, &wp) < 0)
		r = -errno;
	return r;
}

void
track_watch_end(struct track *t)
{
	if (!t->armed)
		close_one(&t->uffd_fd);
}

void
track_forget_kept(struct track *t)
{
	if (t->kept_written)
		munmap(t->kept_written, 3 * VMM_TRACK_BITMAP_BYTES(t->kept_pages));
	t->kept_written = t->kept_given = t->kept_fetch = NULL;
}

static void
take_given_back(struct track *t)
{
	for (size_t i = 0; i < t->bitmap_bytes && atomic_load(&t->gave_back); i++) {
		if (!t->given_back_now[i])
			continue;
		t->given_back[i] |= t->given_back_now[i];
		t->given_back_now[i] = 0;
	}
	atomic_store(&t->gave_back, false);
}

void
track_arm(struct track *t, const struct guest_mem *m)
{
	int r;

	if (t->armed || t->failed || t->pagemap_fd < 0)
		return;
	track_lock(t);
	r = map_bitmaps(t, m);
	if (r == 0 && t->means == VMM_TRACK_USERFAULTFD && t->uffd_fd < 0)
		r = register_memory(t, m);
	/* All that is there counts as written: marking that takes its time, and the first scan
	 * in a pause need not do it. */
	if (r == 0) {
		take_given_back(t);
		r = scan(t, m, NULL);
	}
	if (r < 0)
		give_up(t, track_means_name(t->means), r);
	t->armed = r == 0;
	track_unlock(t);
}

void
track_scan_ahead(struct track *t, const struct guest_mem *m)
{
	int r;

	if (!t->armed || t->means != VMM_TRACK_USERFAULTFD)
		return;
	track_lock(t);
	r = scan(t, m, t->changed);
	if (r < 0)
		give_up(t, "the scan ahead", r);
	track_unlock(t);
}

void
track_scan(struct track *t, const struct guest_mem *m, const uint8_t fork_id[static 16])
{
	int r;

	memcpy(t->last_fork, fork_id, sizeof(t->last_fork));
	t->has_last_fork = true;
	t->was_scanned = false;
	if (!t->armed)
		return;
	take_given_back(t);
	r = scan(t, m, t->changed);
	if (r < 0)
		give_up(t, "the scan", r);
	t->was_scanned = r == 0;
}

int
track_committed(struct track *t, const struct vmm_committed *m, struct err *e)
{
	if (!t->has_last_fork || memcmp(t->last_fork, m->fork, sizeof(t->last_fork)) != 0)
		return err_set(e, -ESTALE,
			"the commit is of another fork than the last that was tracked");
	memcpy(t->base, m->commit, sizeof(t->base));
	memcpy(t->note, m->note, sizeof(t->note));
	t->has_base = true;
	/* Of a fork before the watch nobody knows what was written until it began. */
	t->is_whole = t->armed && t->was_scanned;
	/* Zeroes again; what was given back since the scan stays. */
	if (t->changed && madvise(t->changed, 2 * t->bitmap_bytes / PAGE * PAGE,
				  MADV_DONTNEED) == 0)
		memset(t->changed + 2 * t->bitmap_bytes / PAGE * PAGE, 0,
			2 * t->bitmap_bytes % PAGE);
	else if (t->changed)
		memset(t->changed, 0, 2 * t->bitmap_bytes);
	return 0;
}

static void
note(uint8_t *bitmap, uint64_t page)
{
	__atomic_fetch_or(bitmap + page / 8, (uint8_t)(1u << page % 8), __ATOMIC_RELAXED);
}

void
track_lock(struct track *t)
{
	pthread_mutex_lock(&t->lock);
}

void
track_unlock(struct track *t)
{
	pthread_mutex_unlock(&t->lock);
}

static void
note_given_back(struct track *t, const struct guest_mem *m, const void *host, size_t len)
{
	const uint64_t off = (uint64_t)((const uint8_t *)host - m->host);
	bool for_commits;

	if (!len || off >= mem_len(m) || len > mem_len(m) - off)
		return;
	for_commits = t->means != VMM_TRACK_NONE && map_bitmaps(t, m) == 0;
	for (uint64_t page = off / PAGE; page <= (off + len - 1) / PAGE; page++) {
		if (for_commits)
			note(t->given_back_now, page);
		if (t->kept_given)
			note(t->kept_given, page);
	}
	if (for_commits)
		atomic_store(&t->gave_back, true);
}

void
track_given_back(
	struct track *t, const struct guest_mem *m, const void *host, size_t len)
{
	track_lock(t);
	note_given_back(t, m, host, len);
	track_unlock(t);
}

/* The kernel forgets its marks with a mapping: what is not there counts as written. */
void
track_remapped(struct track *t, const struct guest_mem *m, const void *host, size_t len)
{
	int r;

	note_given_back(t, m, host, len);
	if (t->uffd_fd < 0)
		return;
	r = register_range(t, host, len);
	if (r < 0)
		give_up(t, "a mapping of its own", r);
}

void
track_wrote(struct track *t, const struct guest_mem *m, gpa_t gpa)
{
	const uint8_t *host = guest_range(m, gpa, 1);

	if (t->changed && host)
		note(t->changed, (uint64_t)(host - m->host) / PAGE);
}

void
track_unwatch(struct track *t, const struct guest_mem *m)
{
	struct uffdio_range range = {.start = (uintptr_t)m->host, .len = mem_len(m)};

	if (t->uffd_fd < 0)
		return;
	track_lock(t);
	/* Before Linux 6.9 the end of the descriptor alone leaves the marks. */
	(void)ioctl(t->uffd_fd, UFFDIO_UNREGISTER, &range);
	close_one(&t->uffd_fd);
	track_forget_kept(t);
	t->armed = t->is_whole = false;
	track_unlock(t);
}

void
track_reset(struct track *t, bool was_mapped)
{
	t->is_whole = t->has_base = t->has_last_fork = t->was_scanned = false;
	if (!was_mapped)
		return;
	track_forget_kept(t);
	close_one(&t->uffd_fd);
	t->armed = false;
}

int
track_own_pages(const struct track *t, uint64_t *from, uint64_t to,
	struct pagemap_range ret[static TRACK_RANGES])
{
	return t->pagemap_fd < 0 ? -ENOSYS
				 : pagemap_own_pages(
					   t->pagemap_fd, from, to, ret, TRACK_RANGES);
}

void
track_fork_child(struct track *t, bool is_frozen)
{
	const enum vmm_track_means means = t->means;

	close_one(&t->uffd_fd);
	close_one(&t->pagemap_fd);
	close_one(&t->clear_refs_fd);
	t->armed = false;
	track_forget_kept(t);
	if (is_frozen)
		return;
	if (t->changed)
		munmap(t->changed, 3 * t->bitmap_bytes);
	track_init(t);
	t->means = means;
}

void
track_describe(const struct track *t, struct vmm_track *ret)
{
	*ret = (struct vmm_track){
		.version = VMM_TRACK_VERSION,
		.means = t->failed ? VMM_TRACK_NONE : t->means,
		.flags = (t->has_base ? VMM_TRACK_BASE : 0) |
			 (t->has_base && t->is_whole && t->changed ? VMM_TRACK_SINCE : 0),
		.pages = t->pages,
	};
	memcpy(ret->base, t->base, sizeof(ret->base));
	memcpy(ret->note, t->note, sizeof(ret->note));
}
