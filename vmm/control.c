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
#include "vmm/full_disk.h"
#include "vmm/giveback.h"
#include "vmm/mainloop.h"
#include "vmm/reset.h"
#include "vmm/restore.h"
#include "vmm/seal.h"

/* All that pandod sends to a VM. */
union request {
	struct vmm_hdr hdr;
	struct vmm_fork fork;
	struct vmm_resize resize;
	struct vmm_balloon balloon;
	struct vmm_committed committed;
	struct vmm_disk_limits disk_limits;
	struct vmm_reset reset;
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
			     atomic_load(&vm->rng.dev.doorbells) +
			     atomic_load(&vm->balloon.dev.doorbells),
		.paused = vm->is_parked	  ? 2
			  : vm->is_paused ? 1
			  : vm->is_full	  ? VMM_PAUSED_DISK_FULL
					  : 0,
		.tracks = VMM_TRACKS | VMM_TAKES_MERGED | VMM_LIMITS_DISK |
			  (vm->balloon.present ? VMM_HAS_BALLOON : 0) |
			  (track_needs_fds(&vm->track) ? VMM_TRACKS_NEEDS_FDS : 0) |
			  VMM_KEEPS_FORK_POINTS |
			  (vm->keep.origin_fd >= 0 ? VMM_HAS_FORK_POINT : 0) |
			  VMM_RESETS | (uint32_t)vm->resets << VMM_RESETS_SHIFT |
			  (uint32_t)vm->track.means << VMM_TRACKS_MEANS_SHIFT,
	};

	note_first_doorbell(&vm->blk.dev, &m.first_doorbell_ns);
	note_first_doorbell(&vm->vsock.dev, &m.first_doorbell_ns);
	note_first_doorbell(&vm->rng.dev, &m.first_doorbell_ns);
	note_first_doorbell(&vm->balloon.dev, &m.first_doorbell_ns);
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
	if (vm_stands(vm)) {
		vm_ease_watchdog(vm);
		vm->is_paused = false;
		full_disk_forget(vm);
		vm_run(vm);
	}
	answer_done(vm, seq, 0, NULL);
}

static void
send_state(struct vm *vm, uint64_t seq, int fd)
{
	struct vmm_state_answer m = {0};
	struct err e = {0};
	int r;

	if (vm->is_parked)
		giveback_show(&vm->mem);
	r = restore_answer_state(vm, fd, &m, &e);
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
	if (!vm_stands(vm))
		vm_run(vm);
	if (r == 0 && m->disk_mib != before)
		log_info("the disk grew from %llu to %llu MiB",
			(unsigned long long)before, (unsigned long long)m->disk_mib);
	answer_done(vm, m->hdr.seq, r, e.msg);
}

/* As any request that changes the disk: the vCPUs leave it first. */
static void
limit_disk(struct vm *vm, const struct vmm_disk_limits *m)
{
	const bool runs = !vm_stands(vm) && !vm->is_parked;

	if (m->bytes_per_s && m->bytes_per_s < VMM_DISK_BYTES_MIN) {
		answer_done(vm, m->hdr.seq, -EINVAL,
			"a disk's limit must be 65536 bytes in a second or more");
		return;
	}
	if (runs)
		vm_stop(vm);
	blk_set_limit(&vm->blk, m->bytes_per_s, m->ops_per_s);
	if (runs)
		vm_run(vm);
	answer_done(vm, m->hdr.seq, 0, NULL);
}

static int
set_balloon(struct vm *vm, uint64_t target_mib, struct err *e)
{
	const uint64_t mem_mib = (vm->mem.low_len + vm->mem.high_len) >> 20;

	if (target_mib < VMM_MEM_MIN_MIB || target_mib > mem_mib)
		return err_set(e, -EINVAL,
			"a memory target of %llu MiB: it must be %d to %llu, the memory that the VM was started with",
			(unsigned long long)target_mib, VMM_MEM_MIN_MIB,
			(unsigned long long)mem_mib);
	/* As for the disk. */
	vm_stop(vm);
	balloon_set_target(&vm->balloon, (mem_mib - target_mib) << 20);
	if (!vm_stands(vm))
		vm_run(vm);
	return 0;
}

static void
answer_balloon(struct vm *vm, const struct vmm_balloon *m)
{
	const uint64_t mem_mib = (vm->mem.low_len + vm->mem.high_len) >> 20;
	struct vmm_balloon_answer a = {0};
	struct balloon_view v;
	struct err e = {0};
	int r = 0;

	if (vm->is_parked)
		r = err_set(&e, -EINVAL, "a frozen fork does not change; resize a branch of it");
	else if (!vm->balloon.present)
		r = err_set(&e, -ENOTSUP,
			"its machine was started without a balloon by an older pando; start it again");
	if (r == 0 && m->mem_target_mib)
		r = set_balloon(vm, m->mem_target_mib, &e);
	if (r == 0) {
		balloon_look(&vm->balloon, &v);
		a.flags = v.driver_ok ? VMM_BALLOON_DRIVER : 0;
		a.mem_target_mib = mem_mib - (v.wanted >> 20);
		a.balloon_bytes = v.inflated;
		a.given_back_bytes = v.given_back;
		a.guest_free_bytes = v.free;
		a.guest_available_bytes = v.available;
	}
	a.error = r;
	snprintf(a.msg, sizeof(a.msg), "%s", r < 0 ? e.msg : "");
	answer_send(vm, &a.hdr, VMM_BALLOON_ANSWER, sizeof(a), m->hdr.seq);
}

/* The guest waits for a part of it at a time. */
static void
take_merged(struct vm *vm, const struct vmm_merged *m, int fds[])
{
	struct blk_swap swap;
	struct err e = {0};
	int r = vm->is_parked
			? err_set(&e, -EINVAL,
				  "a frozen fork does not change; its disk stays as it is")
			: 0;

	if (r < 0) {
		io_close_all(fds, VMM_MERGED_FD_COUNT);
	} else {
		r = blk_swap_begin(&vm->blk, m, fds, &swap, &e);
		while (r > 0) {
			vm_stop(vm);
			r = blk_swap_step(&vm->blk, &swap, &e);
			if (!vm_stands(vm))
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
	case VMM_BALLOON:
		return sizeof(struct vmm_balloon);
	case VMM_TRACK:
		*ret_fds = VMM_TRACK_FD_COUNT;
		return sizeof(struct vmm_hdr);
	case VMM_COMMITTED:
		return sizeof(struct vmm_committed);
	case VMM_DISK_LIMITS:
		return sizeof(struct vmm_disk_limits);
	case VMM_RESET:
		*ret_fds = VMM_RESET_FD_COUNT;
		return sizeof(struct vmm_reset);
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

/* Waits until all of the memory is there. false: it never will be, and the VM ends; fds are closed. */
static bool
is_filled(struct vm *vm, int fds[], size_t n_fds)
{
	struct err e;

	if (!vm->fill.is_on || fill_wait(&vm->fill, &vm->mem, &e) == 0)
		return true;
	io_close_all(fds, n_fds);
	ending_tell(vm, VMM_EXIT_HOST_FAULT, "%s", e.msg);
	return false;
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
		io_close_all(fds, n_fds);
		close_window(vm);
		mainloop_drop_peer(vm, "it sent what is no message");
		return false;
	}
	close_window(vm);
	switch (req.hdr.type) {
	case VMM_FORK:
		/* A fork has no userfaultfd, and so would take what is missing for zeroes. */
		if (!is_filled(vm, fds, n_fds))
			return false;
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
	case VMM_BALLOON:
		answer_balloon(vm, &req.balloon);
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
	case VMM_DISK_LIMITS:
		limit_disk(vm, &req.disk_limits);
		break;
	case VMM_RESET:
		/* What it lies on then is another file's, or all there. */
		if (!is_filled(vm, fds, n_fds))
			return false;
		reset_vm(vm, &req.reset, fds);
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

	/* A vCPU may wait for memory that never comes, in the midst of a disk's request. */
	if (!vm->is_parked && !vm->fill.has_failed)
		vm_stop(vm);
	tell_panic(vm);
	m.reason = vm->end_reason;
	is_fault = vm->end_reason == VMM_EXIT_GUEST_FAULT ||
		   vm->end_reason == VMM_EXIT_HOST_FAULT ||
		   vm->end_reason == VMM_EXIT_PANIC;
	if (!vm->fill.has_failed && blk_flush(&vm->blk, &e) < 0)
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
	full_disk_look(vm);
}

void
control_init(struct vm *vm)
{
	static const struct mainloop_above above = {
		.request = handle_control, .adopted = full_disk_tell, .look = look};

	vm->above = &above;
}
