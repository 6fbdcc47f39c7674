/*
 * Guest memory that goes back to the host, and reads as zero afterwards.
 *
 * Anonymous memory (of a machine that was booted, and of its branches) is dropped:
 * MADV_DONTNEED. That takes it from this process alone; what a parent or a branch shares of it
 * stays theirs.
 *
 * Over a commit's image (guest_mem.on_image) that call would bring the image's old bytes back.
 * There whole units of GUEST_UNIT are mapped over by anonymous memory, once each; KVM's slots
 * speak of addresses and do not notice. Each such mapping costs a fork and a new KVM VM some
 * 0.5 us, and a process may have 65 530: GIVEBACK_MAPS_MAX are made, then (and for what is less
 * than a unit) pages stay as they are, or get the image's bytes, as the caller allows. They take
 * no huge pages: pagemap does not tell a huge page of zeroes from a file's.
 *
 * The kernel replaces a mapping under its lock: whoever reads or writes there meanwhile (a vCPU,
 * another device's I/O) finds the old memory or the new, never none.
 *
 * Threads: one at a time for a guest_mem (the balloon's lock, or all vCPUs parked). The tracker
 * is told (vmm/track.h). System calls: madvise, mmap, mprotect, the userfaultfd's ioctl.
 */
#ifndef PANDO_VMM_GIVEBACK_H
#define PANDO_VMM_GIVEBACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/memory.h"
#include "vmm/track.h"

#define GIVEBACK_MAPS_MAX 1024u

enum giveback_rest {
	GIVEBACK_REST_KEEPS, /* what cannot become zero stays as it is */
	GIVEBACK_REST_ANY,   /* it may get the image's bytes */
};

/* [host, host + len), whole pages in m. *ret: bytes that went back. -ENOMEM: the host could
 * neither keep nor make a mapping: memory is missing there, and the VM must end. */
int giveback_range(struct guest_mem *m, struct track *t, void *host, size_t len,
	enum giveback_rest rest, uint64_t *ret);

/* In a frozen fork over an image, before pandod looks at its page map: what is anonymous and
 * was not written since shows as present there (the kernel's page of zeroes; no memory), since
 * what is absent counts as the image's. */
void giveback_show(const struct guest_mem *m);

#endif
