/*
 * Yardsticks of the same run: what the host's kernel takes for the bare operations that a
 * branch is made of. Only system calls, nothing of Pando.
 */
#ifndef PANDO_BENCH_BARE_H
#define PANDO_BENCH_BARE_H

#include <stdint.h>

#include "common/err.h"

/* A process with mem_mib of private memory, `pages` of them written, that forks and does
 * nothing else: *ret_fork_ns is how long fork() kept it, *ret_child_ns from before the
 * fork until the child runs. */
int bare_fork(uint64_t mem_mib, uint64_t pages, uint64_t *ret_fork_ns,
	uint64_t *ret_child_ns, struct err *e);

/* A KVM VM from nothing: VM, split interrupt controller, memory slot, vCPU, registers,
 * until the first exit of its guest. Memory is mapped before the clock starts. */
int bare_kvm(uint64_t mem_mib, uint64_t *ret_ns, struct err *e);

#endif
