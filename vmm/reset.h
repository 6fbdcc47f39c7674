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

#endif
