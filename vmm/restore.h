/*
 * Starting a VM from a commit: VMM_PREPARE makes a pre-warmed VMM, VMM_RESTORE makes it a VM.
 * See restore.c. Main thread only.
 */
#ifndef PANDO_VMM_RESTORE_H
#define PANDO_VMM_RESTORE_H

#include "common/wire/vmm_wire.h"
#include "vmm/vm.h"

/* Everything that does not depend on which VM it will be: namespaces, devices, KVM VM,
 * vCPU threads (parked), the system call filter. kvm_fd and control_fd are there. After
 * it only a restore may map memory. pre-warmed: restore_wait() comes next, else
 * restore_run(). */
int restore_prepare(
	struct vm *vm, uint64_t mem_mib, uint32_t vcpus, bool prewarmed, struct err *e);

/* Two parts of it, for a benchmark that runs them in one thread. The VM with its devices
 * and its KVM VM over reserved memory; and, once guest_mem_open_hole() was called, from
 * there up to the first instruction. fds that are taken over are set to -1. */
int restore_make(struct vm *vm, uint64_t mem_mib, uint32_t vcpus, struct err *e);
struct steps;
int restore_load(struct vm *vm, const struct vmm_restore *m, int fds[],
	struct steps *steps, struct err *e);

/* 0, or why a message is no VMM_PREPARE or VMM_RESTORE that can be served. */
int restore_check_prepare(
	const struct vmm_prepare *m, size_t len, size_t n_fds, struct err *e);
int restore_check(const struct vmm_restore *m, size_t len, size_t n_fds, struct err *e);

/* Answers VMM_PREPARE, waits for VMM_RESTORE and becomes that VM; mainloop_run() comes
 * next. Exits when it is not needed after all. */
int restore_wait(struct vm *vm, uint64_t seq, struct err *e);

/* Becomes the VM and runs it; mainloop_run() comes next. fds are taken over. began_ns:
 * when the message was received. On failure the process is good for nothing more. */
int restore_run(struct vm *vm, const struct vmm_restore *m, int fds[], uint64_t began_ns,
	struct err *e);

/* VMM_STATE: the state of a frozen fork into fd (borrowed), and where its memory lies. */
int restore_answer_state(
	struct vm *vm, int fd, struct vmm_state_answer *ret, struct err *e);

#endif
