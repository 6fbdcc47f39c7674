/*
 * Reset (VMM_RESET): a VM goes back to a commit, in the same process and KVM VM. See reset.c.
 * Main thread only.
 */
#ifndef PANDO_VMM_RESET_H
#define PANDO_VMM_RESET_H

#include "common/wire/vmm_wire.h"
#include "vmm/vm.h"

/* fds: VMM_RESET_FD_COUNT of them, taken over. Answers. A VM that cannot go on ends (ending.h). */
void reset_vm(struct vm *vm, const struct vmm_reset *m, int fds[]);

/* Its parts, for a benchmark that runs them in one thread. What the VM wrote is dropped; image_fd
 * is borrowed, *ret_pages as in struct vmm_reset_answer. vCPUs that do not run are then given the
 * state that vm has: after it they hold nothing of what they were. */
int reset_memory(struct vm *vm, int image_fd, uint64_t *ret_pages, struct err *e);
int reset_vcpus(struct vm *vm, bool no_shadows, struct err *e);

#endif
