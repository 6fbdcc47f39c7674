#include "vmm/mainloop.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/ending.h"

#define EVENTS_MAX 32

/* Bit 63 is vsock's (VSOCK_TOKEN). */
#define KEEP_TOKEN (1ull << 62) /* and the descriptor */
enum token { TOKEN_CONTROL = 1, TOKEN_LISTEN, TOKEN_EVENT, TOKEN_VSOCK_KICK, TOKEN_FILL };

static int
loop_ctl(struct vm *vm, int op, int fd, uint32_t events, uint64_t token)
{
	struct epoll_event ev = {.events = events, .data.u64 = token};

	return epoll_ctl(vm->epoll_fd, op, fd, &ev) < 0 ? -errno : 0;
}

static int
vsock_add(void *ctx, int fd, uint32_t events, uint64_t token)
{
	return loop_ctl(ctx, EPOLL_CTL_ADD, fd, events, token);
}

static int
vsock_mod(void *ctx, int fd, uint32_t events, uint64_t token)
{
	return loop_ctl(ctx, EPOLL_CTL_MOD, fd, events, token);
}

static void
vsock_del(void *ctx, int fd)
{
	loop_ctl(ctx, EPOLL_CTL_DEL, fd, 0, 0);
}

struct vsock_loop
mainloop_vsock(struct vm *vm)
{
	return (struct vsock_loop){
		.add = vsock_add, .mod = vsock_mod, .del = vsock_del, .ctx = vm};
}

int
mainloop_make(struct vm *vm, struct err *e)
{
	int r;

	vm->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (vm->epoll_fd < 0)
		return err_sys(e, -errno, "epoll_create1");
	vm->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vm->event_fd < 0)
		return err_sys(e, -errno, "eventfd");
	vm->vsock_kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vm->vsock_kick_fd < 0)
		return err_sys(e, -errno, "eventfd");
	/* A peer that does not read must not stop the VM. */
	io_set_nonblock(vm->control_fd, 1);
	io_set_nonblock(vm->listen_fd, 1);
	if ((r = loop_ctl(vm, EPOLL_CTL_ADD, vm->event_fd, EPOLLIN, TOKEN_EVENT)) < 0 ||
		(r = loop_ctl(vm, EPOLL_CTL_ADD, vm->vsock_kick_fd, EPOLLIN,
			 TOKEN_VSOCK_KICK)) < 0 ||
		(r = loop_ctl(
			 vm, EPOLL_CTL_ADD, vm->control_fd, EPOLLIN, TOKEN_CONTROL)) < 0)
		return err_sys(e, r, "epoll_ctl");
	return 0;
}

int
mainloop_watch_fill(struct vm *vm, struct err *e)
{
	int r = !vm->fill.is_on ? 0
				: loop_ctl(vm, EPOLL_CTL_ADD, vm->fill.sock_fd, EPOLLIN,
					  TOKEN_FILL);

	return r < 0 ? err_sys(e, r, "epoll_ctl") : 0;
}

void
mainloop_watch_child(struct vm *vm, int fd)
{
	/* One that is not heard finds its connection closed. */
	if (loop_ctl(vm, EPOLL_CTL_ADD, fd, EPOLLIN, KEEP_TOKEN | (unsigned)fd) < 0)
		keep_close(&vm->keep, fd);
}

static void
hear_child(struct vm *vm, int fd)
{
	if (keep_serve(vm, fd))
		return;
	loop_ctl(vm, EPOLL_CTL_DEL, fd, 0, 0);
	keep_close(&vm->keep, fd);
}

static void
hear_fill(struct vm *vm)
{
	struct err e;

	if (fill_event(&vm->fill, &vm->mem, &e) < 0)
		ending_tell(vm, VMM_EXIT_HOST_FAULT, "%s", e.msg);
}

void
mainloop_drop_peer(struct vm *vm, const char *why)
{
	if (vm->control_fd < 0)
		return;
	log_info("control connection closed: %s; waiting for the next", why);
	close(TAKE_FD(vm->control_fd)); /* leaves the epoll set by itself */
	loop_ctl(vm, EPOLL_CTL_ADD, vm->listen_fd, EPOLLIN, TOKEN_LISTEN);
}

static void
adopt(struct vm *vm)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	cleanup_close int fd =
		accept4(vm->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 ||
		peer.uid != getuid()) {
		log_warn("a control connection of another user was refused");
		return;
	}
	if (loop_ctl(vm, EPOLL_CTL_ADD, fd, EPOLLIN, TOKEN_CONTROL) < 0)
		return;
	loop_ctl(vm, EPOLL_CTL_DEL, vm->listen_fd, 0, 0);
	vm->control_fd = TAKE_FD(fd);
	log_info("adopted by process %d", (int)peer.pid);
	if (vm->above->adopted)
		vm->above->adopted(vm);
}

static void
drain(int event_fd)
{
	uint64_t count;

	(void)!read(event_fd, &count, sizeof(count));
}

/* Returns true when this process is now another VM. */
static bool
dispatch(struct vm *vm, const struct epoll_event *ev)
{
	switch (ev->data.u64) {
	case TOKEN_CONTROL:
		return vm->control_fd >= 0 && vm->above->request(vm);
	case TOKEN_LISTEN:
		if (vm->control_fd < 0)
			adopt(vm);
		return false;
	case TOKEN_EVENT:
		drain(vm->event_fd);
		return false;
	case TOKEN_FILL:
		hear_fill(vm);
		return false;
	case TOKEN_VSOCK_KICK:
		drain(vm->vsock_kick_fd);
		vsock_kick(&vm->vsock);
		return false;
	default:
		if (ev->data.u64 >> 62 == KEEP_TOKEN >> 62) {
			hear_child(vm, (int)(uint32_t)ev->data.u64);
			return false;
		}
		vsock_handle_event(&vm->vsock, ev->data.u64, ev->events);
		return false;
	}
}

_Noreturn void
mainloop_run(struct vm *vm)
{
	struct epoll_event events[EVENTS_MAX];

	for (;;) {
		int n, timeout;

		/* From here on vCPU 0 announces its first run; it may have run already. */
		if (atomic_exchange(&vm->main_is_awake, false))
			vm->above->look(vm);
		timeout = vm->is_parked ? -1 : vsock_timeout_ms(&vm->vsock);
		if (vm->devices_left && !vm_stands(vm))
			timeout = vm->devices_left > 0 ? 0 : 1;
		if (!vm->is_parked)
			timeout = vm_wait_ms(vm, timeout);
		n = epoll_wait(vm->epoll_fd, events, EVENTS_MAX, timeout);
		if (n < 0 && errno != EINTR)
			ending_tell(vm, VMM_EXIT_HOST_FAULT, "epoll_wait: %s",
				strerror(errno));
		/* After a fork the rest of the batch is the parent's. */
		for (int i = 0; i < n; i++)
			if (dispatch(vm, &events[i]))
				break;
		if (!vm->is_parked)
			vsock_tick(&vm->vsock);
		vm_go_on_devices(vm);
		vm->above->look(vm);
		/* It has nothing to be made durable: its children have what was to be. */
		if (keep_is_over(&vm->keep, vm->control_fd)) {
			log_info("ends: no branch is left that could go back to this fork point");
			_exit(0);
		}
	}
}
