/* A yardstick: what a spawn cannot do without. */
#ifndef PANDO_TESTS_BENCH_FLOOR_H
#define PANDO_TESTS_BENCH_FLOOR_H

#include "common/err.h"
#include "common/wire/vmm_wire.h"

/*
 * Maps the memory, loads the state and runs the guest until its first doorbell, on one
 * thread, in a VM that was made ahead in the same process: no message, no wake-up. The
 * VMM's own code, unsealed, in a process of its own. kvm and fds are borrowed.
 */
int floor_restore(int kvm, const struct vmm_restore *msg,
	const int fds[static VMM_RESTORE_FD_COUNT], uint64_t *ret_ns, struct err *e);

#endif
