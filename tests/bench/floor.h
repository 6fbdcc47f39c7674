/* A yardstick: what a spawn cannot do without. */
#ifndef PANDO_TESTS_BENCH_FLOOR_H
#define PANDO_TESTS_BENCH_FLOOR_H

#include <stdbool.h>

#include "common/err.h"
#include "common/wire/vmm_wire.h"

/*
 * Maps the memory, loads the state and runs the guest until its first doorbell, on one
 * thread, in a VM that was made ahead in the same process: no message, no wake-up. The
 * VMM's own code, unsealed, in a process of its own. kvm and fds are borrowed.
 */
int floor_restore(int kvm, const struct vmm_restore *msg,
	const int fds[static VMM_RESTORE_FD_COUNT], uint64_t *ret_ns, struct err *e);

/* What a guest wrote: so many pages of `of` from `gpa` on, every stride-th. */
struct floor_dirty {
	uint64_t gpa, pages, stride, of;
};
/*
 * What a reset cannot do without, in such a VM and on one thread: `rounds` times the pages are
 * written, and then, on the clock, madvise(MADV_DONTNEED), the state's load, and the guest until
 * its doorbell. by_range: a call for each range of pages that were written, which is told and need
 * not be found; else one for all of the memory. ret_ns: rounds of them.
 */
int floor_reset(int kvm, const struct vmm_restore *msg,
	const int fds[static VMM_RESTORE_FD_COUNT], const struct floor_dirty *dirty,
	bool by_range, unsigned rounds, uint64_t *ret_ns, struct err *e);

#endif
