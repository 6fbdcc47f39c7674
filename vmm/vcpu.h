/*
 * A vCPU's thread: runs the guest, and hands what KVM cannot do itself (MMIO, port I/O,
 * level-triggered EOIs) to the devices. See vm.h for how it stops.
 */
#ifndef PANDO_VMM_VCPU_H
#define PANDO_VMM_VCPU_H

#include "vmm/vm.h"

/* The signal that takes a vCPU thread out of KVM_RUN; its handler does nothing. */
#define VCPU_SIGNAL SIGUSR1

/* Once in a process. */
int vcpu_install_signal(struct err *e);
/* The thread's function; arg is the struct vcpu. */
void *vcpu_thread(void *arg);

#endif
