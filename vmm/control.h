/*
 * The main thread: an epoll loop over the control socket (common/wire/vmm_wire.h), the
 * listener that a new pandod adopts the VM by, the vsock device's sockets, and the vCPU
 * threads' calls.
 *
 * When the control socket is closed, or its peer breaks the protocol, or it does not read
 * what it is sent, that connection is dropped and the VM goes on; the listener is served
 * until the next one is there. Its peer's uid, as the kernel says, must be our own.
 */
#ifndef PANDO_VMM_CONTROL_H
#define PANDO_VMM_CONTROL_H

#include <stddef.h>

#include "vmm/vm.h"

/* Makes epoll_fd, event_fd and vsock_kick_fd, and puts control_fd and listen_fd (already
 * there) into the loop. */
int control_make_loop(struct vm *vm, struct err *e);
struct vsock_loop control_vsock_loop(struct vm *vm);

/* Runs until the VM ends; does not return. */
_Noreturn void control_run(struct vm *vm);

/* Fills in the header and sends; a failure drops the connection. len: of the whole
 * message. */
void control_send(struct vm *vm, struct vmm_hdr *hdr, enum vmm_msg_type type, size_t len,
	uint64_t seq);
void control_send_started(struct vm *vm, int error, const char *why);

/* fd (taken over) becomes standard error, output and input (nothing is ever read), the
 * log tag "vm/<name>". */
void control_use_log(struct vm *vm, int fd);

#endif
