/*
 * Which pages a branch changed since a fork point that it can go back to (vmm/keep.h).
 *
 * The means is that of track.h, userfaultfd alone, in the same watch: a branch is watched from before it makes
 * its KVM VM. The marks are set by UFFDIO_WRITEPROTECT, which needs no page map; to read them
 * pandod hands one over (VMM_TRACK) before the first reset. Both commits and resets take the
 * marks away, so a commit's scan adds what it found to this bitmap, too.
 *
 * What counts as written but is a file's page, or nothing, was only read (track.h says why), and is
 * not fetched, unless the VMM gave it back.
 *
 * Without the means (an older kernel), or when it fails, or when the marks were taken away
 * (track_forget_kept()), nobody can say: the caller compares all.
 *
 * Price: UFFDIO_WRITEPROTECT marks also what is not there, a page table of 4 KiB for each 2 MiB of
 * it. Where 430 MiB of 4 GiB were touched these are 7.3 MiB and 15 ms in the child's set-up,
 * on a busy host.
 */
#ifndef PANDO_VMM_TRACK_KEEP_H
#define PANDO_VMM_TRACK_KEEP_H

#include "vmm/keep.h"
#include "vmm/track.h"

/* In a forked child that runs, after track_fork_child() and before anything of its own
 * is written. Without the means: does nothing. */
void track_keep_begin(struct track *t, const struct guest_mem *m);
/* It does not go back; also where it never could. */
void track_keep_end(struct track *t);

/* All vCPUs are parked, for these three. -ENOSYS: nobody can say. */
int track_keep_collect(struct track *t, const struct guest_mem *m);
/* What was collected, in bytes of the memory; *at is a page: 0 first. 0 ranges: no more. */
unsigned track_keep_changed(
	const struct track *t, uint64_t *at, struct keep_range ret[static KEEP_RANGES]);
/* It is as it was again: nothing is changed. */
int track_keep_restart(struct track *t, const struct guest_mem *m);

#endif
