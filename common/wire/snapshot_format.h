/*
 * The beginning of a state blob (vmm/snapshot.h), which the host reads, too
 * (host/commit/commit_cpu.c).
 */
#ifndef PANDO_COMMON_WIRE_SNAPSHOT_FORMAT_H
#define PANDO_COMMON_WIRE_SNAPSHOT_FORMAT_H

#include "common/wire/blob.h"

#define SNAPSHOT_TAG_CONFIG BLOB_TAG('C', 'O', 'N', 'F')
#define SNAPSHOT_TAG_CPUID BLOB_TAG('C', 'P', 'I', 'D')

struct snapshot_config {
	uint64_t mem_mib;
	uint64_t disk_mib;
	uint32_t vcpus;
	uint32_t flags; /* SNAPSHOT_* */
};
_Static_assert(sizeof(struct snapshot_config) == 24, "disk format");
#define SNAPSHOT_TSC_DEADLINE 1u /* the guest was offered that timer */
#define SNAPSHOT_CLOCK 2u	 /* kvm-clock's value was saved */
#define SNAPSHOT_BALLOON 4u	 /* the machine was booted with a balloon */

#endif
