/*
 * The page map of this process, asked by PAGEMAP_SCAN (Linux 6.7): which pages of memory that a
 * userfaultfd watches (UFFD_FEATURE_WP_ASYNC) were written since they were last marked, and which
 * are the process's own. Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c.
 *
 * To report and to mark is one step of the kernel's for each page (PM_SCAN_WP_MATCHING, under the
 * page table's lock, KVM's own mappings dropped around it): a page that the guest writes while it
 * runs is reported, or is written for the next call, or both, and never neither.
 *
 * Only what is there is marked. A kernel counts what never was mapped as written (since the fix
 * "PAGEMAP_SCAN written state for PMD holes"; before it a hole is passed by), and a mark on it
 * is a page table full of marks for each 2 MiB, which every later scan walks and every fork
 * copies: of a 4-GiB machine that has touched 430 MiB 7.3 MiB of tables, with which fork(2) took
 * 12 ms where it takes 1.6 without and a scan 2 ms for 0.2. A hole needs no mark: its first write maps a page
 * without one. Until then it is not reported: nobody wrote there. What the VMM gave back is
 * reported by other means (track_given_back()), and a hole there is marked, since a table of it
 * may have stayed, which each scan would go through.
 */
#ifndef PANDO_VMM_PAGEMAP_H
#define PANDO_VMM_PAGEMAP_H

#include <linux/ioctl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The kernel's struct page_region and struct pm_scan_arg (include/uapi/linux/fs.h); these
 * headers may be older. */
struct pagemap_range {
	uint64_t start, end, categories;
};
struct pagemap_scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
		category_mask, category_anyof_mask, return_mask;
};
_Static_assert(sizeof(struct pagemap_scan) == 96, "the kernel's struct pm_scan_arg");
#define PAGEMAP_SCAN_IOCTL _IOWR('f', 16, struct pagemap_scan)

/* Whether this kernel has the ioctl. fd: /proc/self/pagemap, here and below. */
bool pagemap_can_scan(int fd);

struct pagemap_memory {
	const uint8_t *host; /* aligned to 2 MiB; watched from end to end */
	size_t len;
	/* Borrowed; bitmaps of a bit a page, of which the last byte has no bits beyond the end. */
	const uint8_t *given_back; /* NULL: nothing was */
	/* What is found is added to each. NULL: does not matter. */
	uint8_t *written;
	uint8_t *kept; /* vmm/track_keep.h's: another mark would be forgotten with this one */
};
/* Sets the bits of pages that were written since they were last marked, and marks them. The
 * guest may run. -errno; what was marked until then has its bits. One thread at a time. */
int pagemap_take_written(int fd, const struct pagemap_memory *m);
/* Only sets the bits, also of what never was there where the kernel calls that written. host is
 * bit 0's. */
int pagemap_find_written(int fd, const uint8_t *host, size_t len, uint8_t *bitmap);
/* Only marks what was written in [from, to), and what is not there. */
int pagemap_mark(int fd, uint64_t from, uint64_t to);

/* The bits of its pages; base: where the memory begins. */
void pagemap_set_range(uint8_t *bitmap, uint64_t base, const struct pagemap_range *g);

/* Ranges of own pages in [*from, to), as track_own_pages() has it; the kernel's page of zeroes is
 * nobody's own. */
int pagemap_own_pages(
	int fd, uint64_t *from, uint64_t to, struct pagemap_range *ret, size_t n_max);

#endif
