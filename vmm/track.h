/*
 * Dirty pages: which pages of guest memory changed since a commit that is durable.
 *
 * With VMM_FORK_TRACK a fork asks, before fork(2), the kernel which
 * pages were written since it was last asked, and has them watched again. The answer is
 * added to a bitmap; the frozen fork has a copy of it by fork(2) and gives it to pandod
 * with its state (struct vmm_track, common/wire/vmm_wire.h). The bitmap is emptied only
 * when pandod says that the commit of the last such fork is durable (VMM_COMMITTED): a
 * commit that failed loses nothing, its pages are in the next one's bitmap.
 *
 * Means, the first that this kernel has:
 *
 *   userfaultfd  Linux 6.7: UFFD_FEATURE_WP_ASYNC and the PAGEMAP_SCAN ioctl.
 *                Documentation/admin-guide/mm/userfaultfd.rst, pagemap.rst. What the scan
 *                reports is write-protected again; the first write clears the mark in
 *                the fault that copies the page after a fork anyway.
 *                Nobody reads the userfaultfd, and UFFD_USER_MODE_ONLY is enough: an
 *                asynchronous fault never waits for user space, not even KVM's (those
 *                are get_user_pages() in the kernel).
 *   soft-dirty   CONFIG_MEM_SOFT_DIRTY: bit 55 of /proc/self/pagemap, and "4" written to
 *                /proc/self/clear_refs. Documentation/admin-guide/mm/soft-dirty.rst.
 *   none         each commit reads all pages that are mapped.
 *
 * With userfaultfd most of it is asked for just before the pause, while the guest runs
 * (track_scan_ahead()); the scan in the pause finds what was written since. Nothing is missed
 * between the two, since the kernel reports and marks a page in one step (vmm/pagemap.h). A
 * page that was written before that step is in `changed`, and in the frozen fork as it was at the
 * fork; one that was written after it, before the fork, is written for the scan in the pause;
 * one that was written after that scan, thus after the fork, is for the next commit's. Soft-dirty
 * has no such step, so it is read and cleared in the pause alone.
 *
 * The scan asks for PAGE_IS_WRITTEN alone, for which the kernel has a short way: 0.4 to 1.5 ns a
 * page table entry, where any other category costs 40. (CPU time of machines that have touched 430
 * MiB, on a virtual Linux 6.18: after 1 000 written pages the scan in the pause takes 0.18 ms at
 * 512 MiB and 0.29 at 4 GiB, beside fork(2)'s 2.3 and 3.1; after 100 000 0.3 beside 11. With no scan
 * ahead it took 0.6 at 1 000. Registration: 6 us.)
 * The price of the short way: an entry that maps nothing, in a page table that is there,
 * counts as written once, and so does a page of a file that was only read. pandod leaves
 * out what is not mapped, or is a file's, in the frozen fork: nothing ever wrote there,
 * since a page that was written becomes such only if the VMM gives it back, and then it
 * says so (track_given_back()) in a bitmap of its own. Where memory lies on a commit's
 * image (MAP_PRIVATE of a file) the same holds: its first commit is what is private,
 * later ones what changed since. A huge page that a first write maps is written as a whole: the
 * commit reads 2 MiB, of which zeroes cost no more than that.
 *
 * What the VMM itself writes into guest memory (virtio) goes through the same mapping.
 *
 * fork(2) carries none of it over: the child's mappings are not registered, and the
 * descriptors that it has copies of are its parent's memory, not its own. It closes them
 * (track_fork_child()) and is untracked: its first commit reads all, later ones what
 * changed. /proc is out of a sealed process's reach. So a process that was started opens
 * its page map before the seal (track_open()), and one that was forked is handed its own
 * by pandod (VMM_TRACK). Those who own a page map of this process learn which pages are
 * there, not what is in them.
 *
 * Threads: the main thread, or vCPU 0's while all are parked; track_given_back() on any.
 */
#ifndef PANDO_VMM_TRACK_H
#define PANDO_VMM_TRACK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/wire/vmm_wire.h"
#include "vmm/memory.h"
#include "vmm/pagemap.h"

struct track {
	enum vmm_track_means means;
	int pagemap_fd, clear_refs_fd, uffd_fd; /* owned; -1: none */
	bool armed;  /* this process's memory is watched */
	bool failed; /* it cannot be: not tried again in this process */
	/* Whether `changed` is all that changed since the base, up to the last scan. */
	bool is_whole;
	bool has_base;
	uint8_t base[VMM_COMMIT_ID_BYTES]; /* the durable commit */
	uint8_t note[VMM_COMMIT_NOTE_BYTES];
	uint8_t last_fork[16]; /* the parent_generation of the last fork that asked */
	bool has_last_fork;
	bool was_scanned; /* for that fork: what is written since is in the next scan */
	uint64_t pages;
	size_t bitmap_bytes;
	/* Owned, one mapping: three bitmaps, a bit a page in the image's order. */
	uint8_t *changed;      /* since the base, up to the last scan */
	uint8_t *given_back;   /* likewise; whatever is mapped there */
	uint8_t *given_back_now; /* since the last scan */
	atomic_bool gave_back;	 /* there is one */
	/* track_keep.h's, one mapping, owned; NULL: nothing is kept. */
	uint8_t *kept_written, *kept_given, *kept_fetch;
	uint64_t kept_pages;
	pthread_mutex_t lock;	 /* of arming and giving back, which run beside each other */
};

/* The ioctls that the filter must let through (seal.c). */
extern const unsigned long track_ioctl_numbers[];
extern const size_t track_n_ioctl_numbers;
/* The only flags with which the filter lets userfaultfd(2) through. */
#define TRACK_UFFD_FLAGS (02000000 /* O_CLOEXEC */ | 1 /* UFFD_USER_MODE_ONLY */)

/* Nothing is known or owned. */
void track_init(struct track *t);
/* Before the seal: finds the means (PANDO_TRACK=soft-dirty or =none in the environment, for
 * tests, leaves out those before it) and opens what it needs. Nothing is watched yet. */
void track_open(struct track *t);
/* Which means track_open() would find, in words. For pando-vmm --probe. */
const char *track_means_name(enum vmm_track_means means);

/* Whether a commit needs VMM_TRACK first. */
bool track_needs_fds(const struct track *t);
/* The process's own page map and clear_refs (/dev/null where the means needs none),
 * taken over. They are tried: -EBADF with a sentence when the page map is not of this
 * process. */
int track_take_fds(struct track *t, int pagemap_fd, int clear_refs_fd, struct err *e);
/* Begins to watch, ahead of the pause; no-op when it does or cannot. */
void track_arm(struct track *t, const struct guest_mem *m);

/* The guest runs: what was written until now into `changed`, so that the scan in the pause that
 * comes finds little. No-op where that is not one step of the kernel's. */
void track_scan_ahead(struct track *t, const struct guest_mem *m);
/* All vCPUs are parked: what was written since the last scan, into `changed`. */
void track_scan(struct track *t, const struct guest_mem *m, const uint8_t fork_id[static 16]);
/* The commit of the fork fork_id is durable. -ESTALE: a later fork was scanned for, or
 * another process: nothing changes. */
int track_committed(struct track *t, const struct vmm_committed *m, struct err *e);

/* Pages that the VMM gives back to the host (MADV_DONTNEED): they changed without being
 * written. Just before or after it does. */
void track_given_back(
	struct track *t, const struct guest_mem *m, const void *host, size_t len);
/* No longer watched, and the kernel's marks are gone: on a private mapping of a file a mark stands
 * also where nothing is mapped, and reads as a page of its own that was swapped out, which a
 * MADV_DONTNEED leaves (mm/memory.c, zap_nonpresent_ptes()). Ahead of a pause: a look at each page
 * table entry. The guest may run: what is asked for after it are own pages, not written ones. */
void track_unwatch(struct track *t, const struct guest_mem *m);
/* The memory is a commit's again: which pages changed since which other commit counts no more,
 * and no later VMM_COMMITTED of an earlier fork does. was_mapped: by a new mapping, which nobody
 * watches. The next commit reads what is private then. */
void track_reset(struct track *t, bool was_mapped);
/* Ranges of the process's own pages in [*from, to): those of a private mapping that are not the
 * file's any more. How many are in ret (at most TRACK_RANGES, ascending); *from is where the next
 * call begins, `to` at the end. Not while they are watched (track_unwatch()). -ENOSYS: this kernel
 * cannot say. */
#define TRACK_RANGES 170
int track_own_pages(const struct track *t, uint64_t *from, uint64_t to,
	struct pagemap_range ret[static TRACK_RANGES]);
/* Pages that the VMM maps anew: the watch goes on there. The lock is held from before the
 * mapping until then, so that the watch does not begin meanwhile. */
void track_lock(struct track *t);
void track_unlock(struct track *t);
void track_remapped(struct track *t, const struct guest_mem *m, const void *host, size_t len);
/* A frozen fork wrote this page itself, after the scan. */
void track_wrote(struct track *t, const struct guest_mem *m, gpa_t gpa);

/* In a forked child, before anything else uses it. is_frozen: its bitmaps are kept, for its
 * state; else it is as untracked as a VM that was just started. */
void track_fork_child(struct track *t, bool is_frozen);

/* Parts of this for track_keep.c. What is written from now on is marked, whatever it was before;
 * a new page of a page table counts as written. */
int track_watch(struct track *t, const struct guest_mem *m);
void track_watch_end(struct track *t); /* but for commits */
/* The kernel's marks are gone, or nobody goes back: nobody can say what was written since. */
void track_forget_kept(struct track *t);

/* What a frozen fork says of itself; the bitmaps come behind it in the file. */
void track_describe(const struct track *t, struct vmm_track *ret);

#endif
