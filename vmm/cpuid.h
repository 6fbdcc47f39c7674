/*
 * What the guest's CPUs say they are: the host's, as KVM can virtualize them, less what a
 * branch could not carry over.
 */
#ifndef PANDO_VMM_CPUID_H
#define PANDO_VMM_CPUID_H

#include "vmm/kvm.h"

/* supported, from kvm_get_supported_cpuid, becomes the table of vCPU id of n_vcpus. */
void cpuid_adjust(struct kvm_cpuid_table *t, unsigned id, unsigned n_vcpus,
	const struct kvm_caps *caps);

#endif
