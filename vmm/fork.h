/*
 * Forking a live VM (VMM_FORK): the process forks itself, both go on. See fork.c.
 */
#ifndef PANDO_VMM_FORK_H
#define PANDO_VMM_FORK_H

#include "common/wire/vmm_wire.h"
#include "vmm/vm.h"

enum fork_side {
	FORK_PARENT, /* the answer was sent (also where there is no child: then it says
			why) */
	FORK_CHILD,  /* this is the new VM: whatever the caller knew of descriptors is
			history */
};

/* fds: VMM_FORK_FD_COUNT of them, taken over. Main thread only. */
enum fork_side fork_vm(struct vm *vm, const struct vmm_fork *msg, int fds[]);

#endif
