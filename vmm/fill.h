/*
 * Guest memory that is filled while the guest runs (common/wire/fill_wire.h): a restored VM
 * whose memory image is not all there yet. Missing pages are faults of a userfaultfd that
 * another process, pando-fill, serves.
 *
 * The faults are KVM's and those of virtio too, in the kernel: so the descriptor comes from
 * /dev/userfaultfd, which pandod opened and hands in; a sealed VMM has no right to one by the
 * system call. The image is a memfd: userfaultfd(2) takes missing pages of anonymous memory
 * and of shmem only. A private mapping of it shows a page as soon as pando-fill wrote it into
 * the memfd, shared with all VMs of the commit.
 *
 * Until the memory is whole this process keeps the userfaultfd: if the other one dies, what
 * is missing stays missing, and is never read as zeroes; then the VM ends with a sentence. A
 * fork carries no userfaultfd over, and a mapping takes only one (vmm/track.h has another):
 * so both wait for the whole (fill_wait()).
 *
 * Threads: the main thread; fill_begin() on vCPU 0's while the main one waits.
 */
#ifndef PANDO_VMM_FILL_H
#define PANDO_VMM_FILL_H

#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"
#include "vmm/memory.h"

struct fill {
	bool is_on; /* some of the memory may be missing */
	bool has_failed;
	int sock_fd, uffd_fd; /* owned while it is on */
};

/* The ioctls that the filter must let through (seal.c), besides those of track.h. */
extern const unsigned long fill_ioctl_numbers[];
extern const size_t fill_n_ioctl_numbers;

/* Right after guest_mem_map_image(), before anything looks at the memory. dev_fd: of
 * /dev/userfaultfd, borrowed; sock_fd: to pando-fill, taken over on success. */
int fill_begin(struct fill *f, const struct guest_mem *m, int dev_fd, int sock_fd,
	struct err *e);

/* The socket is readable: 0, also when nothing has changed; when all is there it is on no
 * more. < 0: what is missing will never be there; has_failed is set, and vCPUs that wait for
 * it wait until the process ends. */
int fill_event(struct fill *f, const struct guest_mem *m, struct err *e);
/* Until it is whole. */
int fill_wait(struct fill *f, const struct guest_mem *m, struct err *e);

#endif
