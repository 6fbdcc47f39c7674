#include "vmm/answer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "vmm/mainloop.h"

void
answer_send(struct vm *vm, struct vmm_hdr *hdr, enum vmm_msg_type type, size_t len,
	uint64_t seq)
{
	int r;

	if (vm->control_fd < 0)
		return;
	*hdr = (struct vmm_hdr){.version = VMM_WIRE_VERSION,
		.type = type,
		.len = (uint32_t)len,
		.seq = seq};
	r = io_send_fds(vm->control_fd, hdr, len, NULL, 0);
	/* A peer that is gone may have sent something before, a quit above all: the
	 * connection ends when that was read. */
	if (r == -EPIPE || r == -ECONNRESET)
		return;
	if (r < 0)
		mainloop_drop_peer(
			vm, r == -EAGAIN ? "its peer does not read" : strerror(-r));
}

void
answer_started(struct vm *vm, int error, const char *why)
{
	struct vmm_started m = {.error = error, .parked = vm->is_parked};
	uint64_t at = vm->is_parked ? io_now_ns() : atomic_load(&vm->first_run_ns);

	if (error < 0)
		snprintf(m.msg, sizeof(m.msg), "%s", why);
	else
		m.setup_ns = at - vm->born_ns;
	vm->started_sent = true;
	answer_send(vm, &m.hdr, VMM_STARTED, sizeof(m), 0);
}

void
answer_done(struct vm *vm, uint64_t seq, int error, const char *why)
{
	struct vmm_done m = {.error = error};

	if (error < 0)
		snprintf(m.msg, sizeof(m.msg), "%s", why);
	answer_send(vm, &m.hdr, VMM_DONE, sizeof(m), seq);
}
