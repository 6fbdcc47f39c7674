/*
 * The state of a VM as one blob (common/wire/blob.h): all but its memory and its disk's blocks.
 * No pointers, no descriptors, no host paths; it holds wherever KVM offers the CPU
 * features it names. Sections, in this order:
 *
 *   CONF  shape and what it relies on     IOAP  interrupt controller
 *   CPID  CPUID, one a vCPU               SERI  serial port
 *   CLCK  kvm-clock                       GEDV  event device
 *   VCPU  KVM's state, one a vCPU         DISK  VSCK  RNGD  virtio devices; BALN, where the
 *                                         machine was booted with one (SNAPSHOT_BALLOON)
 *
 * A blob may come from a hostile VMM or file: every count, length, range and reserved bit
 * is checked here and in the devices' own *_load(), queue addresses by the gate of
 * memory.h, and what KVM holds by KVM itself. The worst a blob can make is a VM that its
 * guest could have made.
 *
 * Only KVM's structures of x86 (linux/kvm.h) are copied whole: they are the kernel's ABI.
 * Nothing is allocated.
 */
#ifndef PANDO_VMM_SNAPSHOT_H
#define PANDO_VMM_SNAPSHOT_H

#include "common/wire/blob.h"
#include "common/wire/snapshot_format.h"
#include "vmm/vm.h"

struct snapshot {
	struct snapshot_config config;
	struct blob_in rest; /* what snapshot_load_*() reads next; borrows the blob */
};

/* A stopped VM (vm_save() was called) or a frozen fork, to buf. The blob's bytes;
 * 0 cannot be: VMM_STATE_BLOB_MAX holds the largest. */
size_t snapshot_save(struct vm *vm, void *buf, size_t cap);

/* Header, check sum, configuration. buf is borrowed as long as ret is used. */
int snapshot_open(const void *buf, size_t len, struct snapshot *ret, struct err *e);
/* Then: the CPUID of each vCPU, into vm->vcpus[]; they hold what this host would give a
 * VM of the same shape before, and vm->accepted all that it can give. -ENOTSUP names the
 * features this host lacks.
 * *ret_changed: some table is now another one; one that is the same (cpuid_same()) stays as
 * it was. */
int snapshot_load_cpuid(
	struct snapshot *s, struct vm *vm, bool *ret_changed, struct err *e);
/* Then: the rest, into vm's clock, vCPU states and devices; vm_load() comes after. The
 * devices are as vm_init_devices() left them, memory is mapped, the disk attached. On
 * failure they are good for nothing. */
int snapshot_load(struct snapshot *s, struct vm *vm, struct err *e);

#endif
