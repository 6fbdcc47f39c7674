#include "vmm/full_disk.h"

#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "vmm/answer.h"

#define LOOK_NS 1000000000ull

static void
tell(struct vm *vm, int error, const char *msg)
{
	struct vmm_disk_full m = {.error = error};

	snprintf(m.msg, sizeof(m.msg), "%s", msg);
	answer_send(vm, &m.hdr, VMM_DISK_FULL, sizeof(m), 0);
}

void
full_disk_tell(struct vm *vm)
{
	char msg[256];

	if (!vm->is_full)
		return;
	snprintf(msg, sizeof(msg),
		"the host has no room for what the guest writes on its disk (%s): make room, and it goes on",
		strerror(-blk_is_full(&vm->blk)));
	tell(vm, blk_is_full(&vm->blk), msg);
}

static void
stand_still(struct vm *vm)
{
	static struct log_limit limit = {.burst = 4};

	vm_stop(vm);
	/* A guest may reset its disk until its vCPUs stand: then nothing waits for room. */
	if (!blk_is_full(&vm->blk)) {
		if (!vm_stands(vm))
			vm_run(vm);
		return;
	}
	vm->is_full = true;
	vm->look_ns = io_now_ns() + LOOK_NS;
	if (log_allowed(&limit))
		log_warn(
			"disk: the host has no room for what the guest writes: %s; the VM is paused until there is",
			strerror(-blk_is_full(&vm->blk)));
	full_disk_tell(vm);
}

void
full_disk_forget(struct vm *vm)
{
	blk_try_again(&vm->blk);
	if (!vm->is_full)
		return;
	vm->is_full = false;
	vm->look_ns = 0;
	tell(vm, 0, "");
}

void
full_disk_look(struct vm *vm)
{
	if (!vm->is_full) {
		/* A frozen fork runs nothing, and who starts a VM waits until it ran. */
		if (blk_is_full(&vm->blk) && !vm->is_parked && vm->started_sent)
			stand_still(vm);
		return;
	}
	if (vm->is_paused)
		vm->look_ns = 0; /* VMM_RESUME ends that, too */
	if (!vm->look_ns || io_now_ns() < vm->look_ns)
		return;
	vm->look_ns = io_now_ns() + LOOK_NS;
	if (!blk_has_room(&vm->blk))
		return;
	log_info("disk: the host has room again; the VM goes on");
	full_disk_forget(vm);
	vm_ease_watchdog(vm);
	vm_run(vm);
}
