#include "vmm/control.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/fork.h"
#include "vmm/restore.h"

#define EVENTS_MAX 32

/* Bit 63 is vsock's (VSOCK_TOKEN). */
enum token { TOKEN_CONTROL = 1, TOKEN_LISTEN, TOKEN_EVENT, TOKEN_VSOCK_KICK };

/* All that pandod sends to a VM. */
union request {
	struct vmm_hdr hdr;
	struct vmm_fork fork;
	struct vmm_resize resize;
	uint8_t bytes[sizeof(struct vmm_fork) +
		      1]; /* one more: a longer message is seen as such */
};

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
control_vsock_loop(struct vm *vm)
{
	return (struct vsock_loop){
		.add = vsock_add, .mod = vsock_mod, .del = vsock_del, .ctx = vm};
}

int
control_make_loop(struct vm *vm, struct err *e)
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

void
control_use_log(struct vm *vm, int fd)
{
	char tag[VMM_NAME_MAX + 8];

	snprintf(tag, sizeof(tag), "vm/%s", vm->name);
	log_init(tag, vm->log_level);
	/* Whoever started us may wait for the end of its pipes; sanitizers and the C
	 * library write to descriptor 2. */
	for (int i = 0; i <= 2; i++)
		dup3(fd, i, 0);
	close(fd);
}

static void
drop_control(struct vm *vm, const char *why)
{
	if (vm->control_fd < 0)
		return;
	log_info("control connection closed: %s; waiting for the next", why);
	close(TAKE_FD(vm->control_fd)); /* leaves the epoll set by itself */
	loop_ctl(vm, EPOLL_CTL_ADD, vm->listen_fd, EPOLLIN, TOKEN_LISTEN);
}

void
control_send(struct vm *vm, struct vmm_hdr *hdr, enum vmm_msg_type type, size_t len,
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
		drop_control(vm, r == -EAGAIN ? "its peer does not read" : strerror(-r));
}

void
control_send_started(struct vm *vm, int error, const char *why)
{
	struct vmm_started m = {.error = error, .parked = vm->is_parked};
	uint64_t at = vm->is_parked ? io_now_ns() : atomic_load(&vm->first_run_ns);

	if (error < 0)
		snprintf(m.msg, sizeof(m.msg), "%s", why);
	else
		m.setup_ns = at - vm->born_ns;
	vm->started_sent = true;
	control_send(vm, &m.hdr, VMM_STARTED, sizeof(m), 0);
}

static void
send_done(struct vm *vm, uint64_t seq, int error, const char *why)
{
	struct vmm_done m = {.error = error};

	if (error < 0)
		snprintf(m.msg, sizeof(m.msg), "%s", why);
	control_send(vm, &m.hdr, VMM_DONE, sizeof(m), seq);
}

static void
note_first_doorbell(const struct virtio_dev *dev, uint64_t *first_ns)
{
	uint64_t ns = atomic_load(&dev->first_doorbell_ns);

	if (ns && (!*first_ns || ns < *first_ns))
		*first_ns = ns;
}

static void
send_stats(struct vm *vm, uint64_t seq)
{
	struct vmm_stats_answer m = {
		.uptime_ns = io_now_ns() - vm->born_ns,
		.disk_read_bytes = atomic_load(&vm->blk.stats.read_bytes),
		.disk_write_bytes = atomic_load(&vm->blk.stats.write_bytes),
		.disk_segment_bytes = atomic_load(&vm->blk.stats.segment_bytes),
		.vsock_connections = atomic_load(&vm->vsock.connections),
		.doorbells = atomic_load(&vm->blk.dev.doorbells) +
			     atomic_load(&vm->vsock.dev.doorbells) +
			     atomic_load(&vm->rng.dev.doorbells),
		.paused = vm->is_parked ? 2 : vm->is_paused,
	};

	note_first_doorbell(&vm->blk.dev, &m.first_doorbell_ns);
	note_first_doorbell(&vm->vsock.dev, &m.first_doorbell_ns);
	note_first_doorbell(&vm->rng.dev, &m.first_doorbell_ns);
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		m.vcpu_exits += atomic_load(&vm->vcpus[i].exits);
	control_send(vm, &m.hdr, VMM_STATS_ANSWER, sizeof(m), seq);
}

static void
pause_vm(struct vm *vm, uint64_t seq)
{
	if (vm->is_parked) {
		send_done(vm, seq, -EINVAL,
			"a frozen fork runs nothing that could be paused");
		return;
	}
	vm_stop(vm);
	vm->is_paused = true;
	send_done(vm, seq, 0, NULL);
}

static void
resume_vm(struct vm *vm, uint64_t seq)
{
	if (vm->is_parked) {
		send_done(vm, seq, -EINVAL, "a frozen fork cannot run; branch it");
		return;
	}
	if (vm->is_paused) {
		/* A long pause would look like a lock-up to the guest's watchdog. */
		for (unsigned i = 0; i < vm->n_vcpus && vm->caps.kvmclock_ctrl; i++)
			kvm_kvmclock_ctrl(vm->vcpus[i].fd, NULL);
		vm->is_paused = false;
		vm_run(vm);
	}
	send_done(vm, seq, 0, NULL);
}

static void
send_state(struct vm *vm, uint64_t seq, int fd)
{
	struct vmm_state_answer m = {0};
	struct err e = {0};
	int r = restore_answer_state(vm, fd, &m, &e);

	close(fd);
	m.error = r;
	if (r < 0)
		snprintf(m.msg, sizeof(m.msg), "%s", e.msg);
	control_send(vm, &m.hdr, VMM_STATE_ANSWER, sizeof(m), seq);
}

static void
resize_disk(struct vm *vm, const struct vmm_resize *m)
{
	uint64_t before = blk_disk_mib(&vm->blk);
	struct err e = {0};
	int r;

	if (vm->is_parked) {
		send_done(vm, m->hdr.seq, -EINVAL,
			"a frozen fork does not change; resize a branch of it");
		return;
	}
	/* A guest can keep a vCPU in its disk for as long as it likes, until it is asked to
	 * stop. */
	vm_stop(vm);
	r = blk_grow(&vm->blk, m->disk_mib, &e);
	if (!vm->is_paused)
		vm_run(vm);
	if (r == 0 && m->disk_mib != before)
		log_info("the disk grew from %llu to %llu MiB",
			(unsigned long long)before, (unsigned long long)m->disk_mib);
	send_done(vm, m->hdr.seq, r, e.msg);
}

/* Length and number of descriptors of a request, or 0: unknown. */
static size_t
request_len(uint16_t type, size_t *ret_fds)
{
	*ret_fds = 0;
	switch (type) {
	case VMM_FORK:
		*ret_fds = VMM_FORK_FD_COUNT;
		return sizeof(struct vmm_fork);
	case VMM_STATE:
		*ret_fds = VMM_STATE_FD_COUNT;
		return sizeof(struct vmm_hdr);
	case VMM_RESIZE:
		return sizeof(struct vmm_resize);
	case VMM_PAUSE:
	case VMM_RESUME:
	case VMM_POWER_BUTTON:
	case VMM_STATS:
	case VMM_QUIT:
		return sizeof(struct vmm_hdr);
	default:
		return 0;
	}
}

/* One message. Returns true when this process is now another VM. */
static bool
handle_control(struct vm *vm)
{
	int fds[VMM_FORK_FD_COUNT];
	size_t n_fds = VMM_FORK_FD_COUNT, want_fds, want_len;
	union request req;
	ssize_t n;

	n = io_recv_fds(vm->control_fd, &req, sizeof(req), fds, &n_fds, MSG_DONTWAIT);
	if (n == -EAGAIN)
		return false;
	if (n <= 0) {
		drop_control(vm, n == 0 ? "its peer is gone" : strerror((int)-n));
		return false;
	}
	want_len = (size_t)n < sizeof(req.hdr) ? 0 : request_len(req.hdr.type, &want_fds);
	if (want_len == 0 || (size_t)n != want_len || req.hdr.len != want_len ||
		req.hdr.version != VMM_WIRE_VERSION || n_fds != want_fds) {
		for (size_t i = 0; i < n_fds; i++)
			close(fds[i]);
		drop_control(vm, "it sent what is no message");
		return false;
	}
	switch (req.hdr.type) {
	case VMM_FORK:
		return fork_vm(vm, &req.fork, fds) == FORK_CHILD;
	case VMM_PAUSE:
		pause_vm(vm, req.hdr.seq);
		break;
	case VMM_RESUME:
		resume_vm(vm, req.hdr.seq);
		break;
	case VMM_POWER_BUTTON:
		if (vm->is_parked) {
			send_done(vm, req.hdr.seq, -EINVAL,
				"a frozen fork has no power button");
			break;
		}
		ged_notify(&vm->ged, GED_EVENT_POWER_BUTTON);
		send_done(vm, req.hdr.seq, 0, NULL);
		break;
	case VMM_STATS:
		send_stats(vm, req.hdr.seq);
		break;
	case VMM_STATE:
		send_state(vm, req.hdr.seq, fds[VMM_STATE_FD_BLOB]);
		break;
	case VMM_RESIZE:
		resize_disk(vm, &req.resize);
		break;
	case VMM_QUIT:
		vm_end(vm, VMM_EXIT_QUIT, "asked to quit");
		break;
	}
	return false;
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
		return vm->control_fd >= 0 && handle_control(vm);
	case TOKEN_LISTEN:
		if (vm->control_fd < 0)
			adopt(vm);
		return false;
	case TOKEN_EVENT:
		drain(vm->event_fd);
		return false;
	case TOKEN_VSOCK_KICK:
		drain(vm->vsock_kick_fd);
		vsock_kick(&vm->vsock);
		return false;
	default:
		vsock_handle_event(&vm->vsock, ev->data.u64, ev->events);
		return false;
	}
}

/* A kernel that panics resets the machine (panic=-1), as one that reboots does; but it says
 * so first. The vCPUs are parked: nobody writes. */
static void
tell_panic(struct vm *vm)
{
	char line[256];

	if (vm->end_reason != VMM_EXIT_RESET ||
		!console_find(&vm->console, "Kernel panic - not syncing",
			CONSOLE_SEARCH_MAX, line, sizeof(line)))
		return;
	vm->end_reason = VMM_EXIT_PANIC;
	snprintf(vm->end_msg, sizeof(vm->end_msg), "%s", line);
}

/* Last words; the disk is made durable first. */
static _Noreturn void
finish(struct vm *vm)
{
	struct vmm_exiting m = {0};
	bool is_fault;
	struct err e;

	if (!vm->is_parked)
		vm_stop(vm);
	tell_panic(vm);
	m.reason = vm->end_reason;
	is_fault = vm->end_reason == VMM_EXIT_GUEST_FAULT ||
		   vm->end_reason == VMM_EXIT_HOST_FAULT ||
		   vm->end_reason == VMM_EXIT_PANIC;
	if (blk_flush(&vm->blk, &e) < 0)
		log_err("the disk may have lost its last writes: %s", e.msg);
	log_line(is_fault ? LOG_LEVEL_ERR : LOG_LEVEL_INFO, "ends: %s", vm->end_msg);
	memcpy(m.msg, vm->end_msg, sizeof(m.msg));
	control_send(vm, &m.hdr, VMM_EXITING, sizeof(m), 0);
	_exit(is_fault ? 1 : 0);
}

_Noreturn void
control_run(struct vm *vm)
{
	struct epoll_event events[EVENTS_MAX];

	for (;;) {
		/* From here on vCPU 0 announces its first run; it may have run already.
		 */
		if (atomic_exchange(&vm->main_is_awake, false) && !vm->started_sent &&
			atomic_load(&vm->first_run_ns))
			control_send_started(vm, 0, NULL);
		int n, timeout = vm->is_parked ? -1 : vsock_timeout_ms(&vm->vsock);

		if (vm->devices_left && !vm->is_paused)
			timeout = vm->devices_left > 0 ? 0 : 1;
		n = epoll_wait(vm->epoll_fd, events, EVENTS_MAX, timeout);
		if (n < 0 && errno != EINTR)
			vm_end(vm, VMM_EXIT_HOST_FAULT, "epoll_wait: %s",
				strerror(errno));
		/* After a fork the rest of the batch is the parent's. */
		for (int i = 0; i < n; i++)
			if (dispatch(vm, &events[i]))
				break;
		if (!vm->is_parked)
			vsock_tick(&vm->vsock);
		vm_go_on_devices(vm);
		if (!vm->started_sent && atomic_load(&vm->first_run_ns))
			control_send_started(vm, 0, NULL);
		if (atomic_load(&vm->ending) == 2)
			finish(vm);
	}
}
