/* What the files of the driver (driver.h) share. */
#ifndef PANDO_TESTS_KVM_DRIVER_PARTS_H
#define PANDO_TESTS_KVM_DRIVER_PARTS_H

#include "tests/kvm/driver.h"

#define DRIVER_ANSWER_MS 30000

union driver_message {
	struct vmm_hdr hdr;
	struct vmm_done done;
	struct vmm_started started;
	struct vmm_forked forked;
	struct vmm_stats_answer stats;
	struct vmm_state_answer state;
	struct vmm_balloon_answer balloon;
	struct vmm_exiting exiting;
	struct vmm_disk_full disk_full;
	struct vmm_reset_answer reset;
	char bytes[4096];
};

int driver_new_vm(struct driver *d, const char *name, struct vm **ret, struct err *e);
/* A new file in the VM's folder; its next segment; its console, mapped. */
int driver_create(
	const struct vm *vm, const char *file, int flags, int *ret, struct err *e);
/* ret: VMM_SEG_FDS of them. */
int driver_new_segment(struct vm *vm, int *ret, struct err *e);
int driver_map_console(struct vm *vm, int fd, struct err *e);
/* Waits for the answer to seq: of the type, or VMM_DONE. */
int driver_answer(struct vm *vm, union driver_message *m, uint64_t seq, uint16_t type,
	int timeout_ms, struct err *e);

#endif
