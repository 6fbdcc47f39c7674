/*
 * The main thread's loop: an epoll set with the control socket, the listener that a new pandod
 * adopts the VM by, the vsock device's sockets, and the vCPU threads' event.
 *
 * When the control socket is closed, or its peer breaks the protocol, or it does not read
 * what it is sent, that connection is dropped and the VM goes on; the listener is served
 * until the next one is there. Its peer's uid, as the kernel says, must be our own.
 *
 * The loop knows no messages: it calls what lies above it through vm->above.
 */
#ifndef PANDO_VMM_MAINLOOP_H
#define PANDO_VMM_MAINLOOP_H

#include "vmm/vm.h"

/* Set once, before mainloop_run(); branches inherit it. */
struct mainloop_above {
	/* The control socket is readable. true: this process is now another VM, which knows
	 * nothing of the other events of this turn. */
	bool (*request)(struct vm *vm);
	/* There is a new control connection; may be NULL. */
	void (*adopted)(struct vm *vm);
	/* Something happened; each turn, more often than needed. What vCPU threads told
	 * (first_run_ns, ending) is looked at here. */
	void (*look)(struct vm *vm);
};

/* Makes epoll_fd, event_fd and vsock_kick_fd, and puts control_fd and listen_fd (already
 * there) into the loop. */
int mainloop_make(struct vm *vm, struct err *e);
/* A restored VM whose memory is still filled ends when it cannot be. No-op for others. */
int mainloop_watch_fill(struct vm *vm, struct err *e);
/* For the vsock device of this VM. */
struct vsock_loop mainloop_vsock(struct vm *vm);

/* Closes the control connection, if there is one, and waits for the next. */
/* A frozen fork that stays: a child's connection (vmm/keep.h). */
void mainloop_watch_child(struct vm *vm, int fd);
void mainloop_drop_peer(struct vm *vm, const char *why);

/* Does not return: vm->above ends the process. */
_Noreturn void mainloop_run(struct vm *vm);

#endif
