/*
 * A VM without KVM, for the unit test and the fuzzer of state blobs: memory, devices, a
 * disk in memfds, vCPU states of the test's own making. One at a time.
 */
#ifndef PANDO_TESTS_UNIT_SNAPSHOT_VM_H
#define PANDO_TESTS_UNIT_SNAPSHOT_VM_H

#include "vmm/vm.h"

#define SNAPSHOT_VM_MEM_MIB 16u
#define SNAPSHOT_VM_DISK_MIB 8u

/* Fresh devices; the CPUID tables have every feature there is, the plan a few MSRs. */
void snapshot_vm_init(struct vm *vm, unsigned n_vcpus);
void snapshot_vm_done(struct vm *vm);
/* Values everywhere, and drivers that run on all queues. */
void snapshot_vm_fill(struct vm *vm);

#endif
