#include "vmm/control.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "vmm/answer.h"
#include "vmm/blk_swap.h"
#include "vmm/ending.h"
#include "vmm/fork.h"
#include "vmm/mainloop.h"
#include "vmm/restore.h"
#include "vmm/seal.h"

/* All that pandod sends to a VM. */
union request {
	struct vmm_hdr hdr;
	struct vmm_fork fork;
	struct vmm_resize resize;
	struct vmm_committed committed;
	struct vmm_merged merged;
	uint8_t bytes[sizeof(struct vmm_merged) +
		      1]; /* one more: a longer message is seen as such */
};

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
		.tracks = VMM_TRACKS | VMM_TAKES_MERGED |
			  (track_needs_fds(&vm->track) ? VMM_TRACKS_NEEDS_FDS : 0) |
			  (uint32_t)vm->track.means << VMM_TRACKS_MEANS_SHIFT,
	};

	note_first_doorbell(&vm->blk.dev, &m.first_doorbell_ns);
	note_first_doorbell(&vm->vsock.dev, &m.first_doorbell_ns);
	note_first_doorbell(&vm->rng.dev, &m.first_doorbell_ns);
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		m.vcpu_exits += atomic_load(&vm->vcpus[i].exits);
	answer_send(vm, &m.hdr, VMM_STATS_ANSWER, sizeof(m), seq);
}

static void
pause_vm(struct vm *vm, uint64_t seq)
{
	if (vm->is_parked) {
		answer_done(vm, seq, -EINVAL,
			"a frozen fork runs nothing that could be paused");
		return;
	}
	vm_stop(vm);
	vm->is_paused = true;
	answer_done(vm, seq, 0, NULL);
}

static void
resume_vm(struct vm *vm, uint64_t seq)
{
	if (vm->is_parked) {
		answer_done(vm, seq, -EINVAL, "a frozen fork cannot run; branch it");
		return;
	}
	if (vm->is_paused) {
		/* A long pause would look like a lock-up to the guest's watchdog. */
		for (unsigned i = 0; i < vm->n_vcpus && vm->caps.kvmclock_ctrl; i++)
			kvm_kvmclock_ctrl(vm->vcpus[i].fd, NULL);
		vm->is_paused = false;
		vm_run(vm);
	}
	answer_done(vm, seq, 0, NULL);
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
	answer_send(vm, &m.hdr, VMM_STATE_ANSWER, sizeof(m), seq);
}

static void
resize_disk(struct vm *vm, const struct vmm_resize *m)
{
	uint64_t before = blk_disk_mib(&vm->blk);
	struct err e = {0};
	int r;

	if (vm->is_parked) {
		answer_done(vm, m->hdr.seq, -EINVAL,
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
	answer_done(vm, m->hdr.seq, r, e.msg);
}

/* The guest waits for a part of it at a time. */
static void
take_merged(struct vm *vm, const struct vmm_merged *m, const int fds[])
{
	struct blk_swap swap;
	struct err e = {0};
	int r = vm->is_parked
			? err_set(&e, -EINVAL,
				  "a frozen fork does not change; its disk stays as it is")
			: 0;

	if (r < 0) {
		close(fds[VMM_MERGED_FD_DATA]);
		close(fds[VMM_MERGED_FD_INDEX]);
	} else {
		r = blk_swap_begin(&vm->blk, m, fds, &swap, &e);
		while (r > 0) {
			vm_stop(vm);
			r = blk_swap_step(&vm->blk, &swap, &e);
			if (!vm->is_paused)
				vm_run(vm);
		}
	}
	answer_done(vm, m->hdr.seq, r, e.msg);
}

/* A window in which pandod opens the page map of this process. */
static void
open_window(struct vm *vm, uint64_t seq)
{
	struct err e = {0};
	int r = 0;

	if (vm->is_parked || !track_needs_fds(&vm->track))
		r = err_set(&e, -EINVAL, "this VM needs no page map");
	if (r == 0)
		r = seal_let_user_read(&e);
	vm->is_open = r == 0;
	answer_done(vm, seq, r, e.msg);
}

static void
close_window(struct vm *vm)
{
	if (vm->is_open)
		seal_let_nobody_read();
	vm->is_open = false;
}

static void
take_track_fds(struct vm *vm, uint64_t seq, const int fds[])
{
	struct err e = {0};
	int r = track_take_fds(&vm->track, fds[VMM_TRACK_FD_PAGEMAP],
		fds[VMM_TRACK_FD_CLEAR_REFS], &e);

	answer_done(vm, seq, r, e.msg);
}

static void
note_committed(struct vm *vm, const struct vmm_committed *m)
{
	struct err e = {0};
	int r = track_committed(&vm->track, m, &e);

	answer_done(vm, m->hdr.seq, r, e.msg);
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
	case VMM_TRACK:
		*ret_fds = VMM_TRACK_FD_COUNT;
		return sizeof(struct vmm_hdr);
	case VMM_COMMITTED:
		return sizeof(struct vmm_committed);
	case VMM_MERGED:
		*ret_fds = VMM_MERGED_FD_COUNT;
		return sizeof(struct vmm_merged);
	case VMM_TRACK_OPEN:
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
		close_window(vm);
		mainloop_drop_peer(vm, n == 0 ? "its peer is gone" : strerror((int)-n));
		return false;
	}
	want_len = (size_t)n < sizeof(req.hdr) ? 0 : request_len(req.hdr.type, &want_fds);
	if (want_len == 0 || (size_t)n != want_len || req.hdr.len != want_len ||
		req.hdr.version != VMM_WIRE_VERSION || n_fds != want_fds) {
		for (size_t i = 0; i < n_fds; i++)
			close(fds[i]);
		close_window(vm);
		mainloop_drop_peer(vm, "it sent what is no message");
		return false;
	}
	close_window(vm);
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
			answer_done(vm, req.hdr.seq, -EINVAL,
				"a frozen fork has no power button");
			break;
		}
		ged_notify(&vm->ged, GED_EVENT_POWER_BUTTON);
		answer_done(vm, req.hdr.seq, 0, NULL);
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
	case VMM_TRACK_OPEN:
		open_window(vm, req.hdr.seq);
		break;
	case VMM_TRACK:
		take_track_fds(vm, req.hdr.seq, fds);
		break;
	case VMM_COMMITTED:
		note_committed(vm, &req.committed);
		break;
	case VMM_MERGED:
		take_merged(vm, &req.merged, fds);
		break;
	case VMM_QUIT:
		ending_tell(vm, VMM_EXIT_QUIT, "asked to quit");
		break;
	}
	return false;
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
	answer_send(vm, &m.hdr, VMM_EXITING, sizeof(m), 0);
	_exit(is_fault ? 1 : 0);
}

/* What vCPU threads have told. */
static void
look(struct vm *vm)
{
	if (!vm->started_sent && atomic_load(&vm->first_run_ns))
		answer_started(vm, 0, NULL);
	if (atomic_load(&vm->ending) == 2)
		finish(vm);
}

void
control_init(struct vm *vm)
{
	static const struct mainloop_above above = {
		.request = handle_control, .look = look};

	vm->above = &above;
}
