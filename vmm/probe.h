/*
 * `pando-vmm --probe`: what this host's KVM can do, found by trying. A guest of a few
 * instructions, in long mode, does what every Linux does and what a KVM without hardware
 * virtualization cannot emulate: cmpxchg16b, xsave and xrstor, int3 through an IDT.
 */
#ifndef PANDO_VMM_PROBE_H
#define PANDO_VMM_PROBE_H

/* kvm_fd: /dev/kvm, or negative errno of the attempt to open it. Prints one line of JSON;
 * returns the process's exit status (0 also where there is no KVM: that is the answer).
 */
int probe_main(int kvm_fd);

#endif
