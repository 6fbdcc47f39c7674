/*
 * `pando-vmm --probe`: what this host's KVM can do, found by trying. A guest of a few
 * instructions, in long mode, does what every Linux does and what a KVM without hardware
 * virtualization cannot emulate: cmpxchg16b, xsave and xrstor (where its CPU has them), int3
 * through an IDT.
 */
#ifndef PANDO_VMM_PROBE_H
#define PANDO_VMM_PROBE_H

#include <stdint.h>

/* Of CPUID.1:ECX. */
#define PROBE_CMPXCHG16B (1u << 13)
#define PROBE_XSAVE (1u << 26)

/* kvm_fd: /dev/kvm, or negative errno of the attempt to open it. without: of the two, what
 * the guest's CPU shall not have, as a host that lacks it would have it (0). Prints one line
 * of JSON; returns the process's exit status (0 also where there is no KVM: that is the
 * answer). Once in a process. */
int probe_main(int kvm_fd, uint32_t without);

#endif
