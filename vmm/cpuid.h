/*
 * What the guest's CPUs say they are: the host's, as KVM can virtualize them, less what a
 * branch could not carry over.
 */
#ifndef PANDO_VMM_CPUID_H
#define PANDO_VMM_CPUID_H

#include "vmm/kvm.h"

/* t, from kvm_get_supported_cpuid, becomes the table of vCPU id of n_vcpus. */
void cpuid_adjust(struct kvm_cpuid_table *t, unsigned id, unsigned n_vcpus,
	const struct kvm_caps *caps);
/* t, from kvm_get_supported_cpuid, becomes all the features that a commit may name and
 * run here with: also those that new VMs are not offered, but an older VMM's were. */
void cpuid_accept(
	struct kvm_cpuid_table *t, unsigned n_vcpus, const struct kvm_caps *caps);

/* Whether a guest that knows one table may go on with the other: they are the same but for
 * what differs between the cores of one host, as of a hybrid CPU. */
bool cpuid_same(const struct kvm_cpuid_table *a, const struct kvm_cpuid_table *b);

#endif
