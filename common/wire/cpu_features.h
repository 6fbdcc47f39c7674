/*
 * CPU features by name: what one CPUID table has and another lacks. Names as Linux shows
 * them in /proc/cpuinfo; bits without one are named by their place.
 */
#ifndef PANDO_COMMON_WIRE_CPU_FEATURES_H
#define PANDO_COMMON_WIRE_CPU_FEATURES_H

#include "vmm/kvm.h"

/* How many features `wanted` has that `there` lacks; dst becomes their names, separated
 * by ", ", with "…" at the end where not all fit in cap bytes. Both tables are of vCPUs
 * of the same number in VMs of the same shape (cpuid.h). */
unsigned cpu_features_missing(const struct kvm_cpuid_table *wanted,
	const struct kvm_cpuid_table *there, char *dst, size_t cap);

#endif
