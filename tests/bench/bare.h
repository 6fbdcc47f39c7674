/* Yardsticks: the two kernel calls that a branch cannot do without, with nothing around
 * them. */
#ifndef PANDO_TESTS_BENCH_BARE_H
#define PANDO_TESTS_BENCH_BARE_H

#include <stdint.h>

#include "common/err.h"

/*
 * fork() of a process that has a guest's memory as a VMM has it, and nothing else: mapped
 * the same way, written where the small guest writes, and between forks written again
 * while the last child lives, as a live guest does. rounds results each: how long the
 * parent is inside fork(), and from before it until the child runs.
 */
int bare_fork(uint64_t mem_mib, uint64_t pages, unsigned rounds, uint64_t *ret_fork_ns,
	uint64_t *ret_child_ns, struct err *e);

/* A KVM VM with memory of that size and one vCPU: made, its slot set, the vCPU given its
 * CPUID and a whole state, run until its first exit. The VMM's own calls (vmm/kvm.h). */
int bare_kvm(uint64_t mem_mib, uint64_t *ret_ns, struct err *e);

#endif
