/*
 * How a VM forks.
 *
 * Parent: vCPUs park, so no device lock is held and no I/O is under way but a flush, which
 * nobody waits for: both sides make it durable, and answer it, for themselves
 * (vmm/blk_flush.h); what KVM holds is read into plain memory (vmm/state.c); fork(2). vCPU
 * 0's own thread does all that while the main thread waits: it is on a CPU, its vCPU is at
 * hand there, and nobody has to be woken between the guest's last instruction and its next. In the child it is vCPU
 * 0's thread again, and starts the main thread. (Where vCPUs do not run anyway, in a
 * paused VM and in a frozen fork, it is the main thread, and starts the vCPUs'.) Memory,
 * devices and the disk's block map are plain memory: the kernel copies them lazily. The
 * parent then goes on in a new disk segment and with a new VM generation (the child knows
 * what its random number generator held).
 *
 * Child: KVM's descriptors belong to the mm that made them and are good for nothing here.
 * It closes them, makes a VM of its own around the same mappings, loads the state, takes
 * the descriptors that came with the request, and runs.
 *
 * It is glibc's fork(), not clone(CLONE_PARENT): only then does glibc in the child know
 * that the other threads are gone. So a child's parent is the VMM it came from, not
 * pandod; SIGCHLD is ignored, which makes the kernel reap it, and pandod follows it by a
 * pidfd taken from the peer credentials of its control socket. A child outlives its
 * parent.
 *
 * A parked child (VMM_FORK_PARK) stops after taking its descriptors: it is a frozen fork,
 * holds no KVM VM, and forks children of its own from the state it carries. One that is kept
 * (VMM_FORK_KEEP) stays for these, which may go back to it: vmm/keep.h.
 *
 * Order in the child: what can fail for want of descriptors or memory before what the
 * world can see; KVM's calls in the order that costs least (vm_make_kvm: split interrupt
 * controller, slots, vCPUs).
 */
#include "vmm/fork.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/answer.h"
#include "vmm/blk_keep.h"
#include "vmm/ending.h"
#include "vmm/futex.h"
#include "vmm/mainloop.h"
#include "vmm/mappings.h"
#include "vmm/seal.h"
#include "vmm/steps.h"
#include "vmm/track_keep.h"

/* The disk has them now. */
static void
forget_segment(int *fds)
{
	for (unsigned i = 0; i < VMM_SEG_FDS; i++)
		fds[i] = -1;
}

static void
close_one(int *fd)
{
	if (*fd >= 0)
		close(TAKE_FD(*fd));
}

/* What was the parent's, and what a fork does not carry over. */
static void
forget_parent(struct vm *vm)
{
	vm_drop_kvm(vm, true);
	close_one(&vm->control_fd);
	close_one(&vm->listen_fd);
	close_one(&vm->epoll_fd);
	close_one(&vm->event_fd);
	close_one(&vm->vsock_kick_fd);
	console_forget(&vm->console);
	disk_thread_fork_child(&vm->disk_thread);
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		vm->vcpus[i].has_thread = vm->vcpus[i].synced = false;
		atomic_store(&vm->vcpus[i].exits, 0);
	}
	atomic_store(&vm->stop, 0);
	atomic_store(&vm->parked, 0);
	/* Even, and one that there was not: vCPU 0's thread is still in the parent's, and
	 * would take the child's first stop for that. */
	atomic_store(&vm->epoch, (atomic_load(&vm->epoch) | 1) + 1);
	atomic_store(&vm->first_run_ns, 0);
	atomic_store(&vm->main_is_awake, true);
	atomic_store(&vm->ending, 0);
	vm->is_parked = vm->is_paused = vm->is_full = vm->started_sent = vm->is_open = false;
	vm->look_ns = 0;
	vm->devices_left = 0;
	vm->resets = 0;
}

/* One fork in a process at a time. Nothing of it lies on a stack: the child gives those
 * of threads that it does not have to others. */
static struct job {
	struct vmm_fork msg;
	int fds[VMM_FORK_FD_COUNT]; /* owned; -1 once handed on */
	bool on_vcpu;		    /* vCPU 0's thread makes it */
	uint64_t asked_ns, saved_ns;
	struct vmm_forked answer;
	struct steps steps; /* each side's own */
	int r;
	struct err e;
	atomic_uint done; /* a futex; the main thread sleeps on it */
} the_job;

/* In the child, beside its running vCPUs. Sizing and first touching a file costs a
 * quarter of a millisecond; a vCPU that prints waits for it. */
static int
settle(struct vm *vm, struct job *job, struct err *e)
{
	int r = console_open(&vm->console, job->fds[VMM_FORK_FD_CONSOLE], e);

	serial_release(&vm->serial);
	io_close_all(job->fds, VMM_FORK_FD_COUNT);
	if (r < 0)
		return r;
	steps_add(&job->steps, "console");
	vm_resume_devices(vm);
	steps_add(&job->steps, "resume");
	steps_log(&job->steps, "branch set up");
	return 0;
}

static _Noreturn void
fail_child(struct vm *vm, int r, const struct err *e)
{
	log_err("the branch could not start: %s", e->msg);
	answer_started(vm, r, e->msg);
	_exit(1);
}

/* The main thread of a child whose vCPU 0 made the fork. */
static void *
main_thread(void *arg)
{
	struct vm *vm = arg;
	struct err e = {0};
	int r;

	vm_let_others_first(pthread_self(), false);
	r = settle(vm, &the_job, &e);

	if (r < 0)
		fail_child(vm, r, &e);
	mainloop_run(vm);
}

static int
start_main_thread(struct vm *vm, struct err *e)
{
	pthread_t thread;
	int r = mappings_thread(&thread, main_thread, vm, e);

	return r < 0 ? err_wrap(e, r, "the main thread") : 0;
}

static int
set_up_child(struct vm *vm, struct job *job, struct err *e)
{
	const struct vmm_fork *msg = &job->msg;
	struct steps *steps = &job->steps;
	int *fds = job->fds;
	bool park = msg->flags & VMM_FORK_PARK;
	struct vsock_loop loop;
	int r;

	if ((r = mainloop_make(vm, e)) < 0)
		return r;
	loop = mainloop_vsock(vm);
	steps_add(steps, "loop");

	ioapic_fork_child(&vm->ioapic, vm_ioapic_sink(vm));
	serial_fork_child(&vm->serial, vm_irq(vm, SERIAL_GSI));
	ged_fork_child(&vm->ged, vm_irq(vm, LAYOUT_GED_GSI), vm);
	virtio_dev_fork_child(&vm->rng.dev, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_RNG));
	balloon_fork_child(&vm->balloon, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_BALLOON));
	blk_fork_child(&vm->blk, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_BLK));
	r = blk_cut(&vm->blk, fds + VMM_FORK_FD_SEG, NULL, NULL, e);
	if (r < 0)
		return r;
	forget_segment(fds + VMM_FORK_FD_SEG);
	if (vm->keep.origin_fd >= 0 && (r = blk_keep_begin(&vm->blk, e)) < 0)
		return r;
	/* A frozen fork serves nobody: its Unix socket is closed, so that a client is refused
	 * and not kept waiting. */
	r = vsock_reset_child(&vm->vsock, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_VSOCK),
		park ? -1 : fds[VMM_FORK_FD_VSOCK], vm->vsock_kick_fd,
		park ? NULL : &loop, e);
	if (r < 0)
		return r;
	if (!park)
		fds[VMM_FORK_FD_VSOCK] = -1;
	steps_add(steps, "devices");

	if (park) {
		vm_set_generation(vm, msg->child_generation);
		track_wrote(&vm->track, &vm->mem, (gpa_t){LAYOUT_GENERATION});
		vm->is_parked = true;
		return console_open(&vm->console, fds[VMM_FORK_FD_CONSOLE], e);
	}
	if ((r = vm_make_kvm(vm, e)) < 0)
		return r;
	steps_add(steps, "kvm");
	if ((r = vm_load(vm, e)) < 0)
		return r;
	steps_add(steps, "state");
	/* Interrupts after the LAPICs' state, or loading it would wipe them out. */
	ioapic_resume(&vm->ioapic);
	serial_resume(&vm->serial);
	vm_set_generation(vm, msg->child_generation);
	serial_hold(&vm->serial);
	r = vm_start_vcpus(vm, e);
	steps_add(steps, "start");
	return r;
}

/* Before the fork, in the parent: whether the frozen fork will say what changed. */
static bool
wants_tracking(const struct vm *vm, const struct vmm_fork *msg)
{
	return msg->flags & VMM_FORK_TRACK && msg->flags & VMM_FORK_PARK && !vm->is_parked;
}

/* The child's first faults on the program's text would be some twenty, a call each. */
static void
map_text(void)
{
	extern const char __executable_start[], etext[];
	const uintptr_t page = 4096, from = (uintptr_t)__executable_start & ~(page - 1);

	(void)madvise((void *)from, ((uintptr_t)etext - from + page - 1) & ~(page - 1),
		MADV_POPULATE_READ); /* a wish; Linux before 5.14 has it not */
}

/* Lest the parent's fork() take longer with every generation; see mappings.h. Once in
 * so many, because it takes the child a tenth of a millisecond. */
#define RENEW_EVERY 4
#define SMALL_MAP_BYTES (256u << 10)

static void
renew_memory(const struct vm *vm)
{
	const struct blockmap *map = &vm->blk.map;
	const size_t bytes = map->n_blocks * sizeof(*map->entries);
	struct own_range more[3] = {{0}};

	vsock_own_ranges(&vm->vsock, more);
	if (bytes <= SMALL_MAP_BYTES)
		more[2] = (struct own_range){.at = map->entries, .len = bytes};
	(void)mappings_renew(more, sizeof(more) / sizeof(*more));
}

/* Returns on the thread that forked, as that of the child's vCPU 0 or as its main thread;
 * a frozen fork that vCPU 0's thread made has that as its main thread and does not return. */
static void
become_child(struct vm *vm, struct job *job)
{
	const struct vmm_fork *msg = &job->msg;
	const bool was_tracked = wants_tracking(vm, msg);
	const bool park = msg->flags & VMM_FORK_PARK;
	int *fds = job->fds;
	struct err e = {0};
	int r;

	map_text();
	steps_begin(&job->steps, job->saved_ns);
	steps_add(&job->steps, "fork");
	vm->born_ns = job->saved_ns;
	/* A frozen fork's memory may be read by its user; that of what runs may not. */
	if (vm->is_readable || vm->is_open)
		seal_let_nobody_read();
	vm->is_readable = false;
	forget_parent(vm);
	vm->is_tracked = was_tracked;
	track_fork_child(&vm->track, park);
	blk_keep_end(&vm->blk);
	keep_fork_child(&vm->keep, msg->flags & VMM_FORK_KEEP && park, park);
	if (job->on_vcpu && !park) {
		vm->vcpus[0].thread = pthread_self();
		vm->vcpus[0].has_thread = true;
	}
	memcpy(vm->name, msg->child_name, sizeof(vm->name));
	vm->name[sizeof(vm->name) - 1] = '\0';
	vm_use_log(vm, TAKE_FD(fds[VMM_FORK_FD_LOG]));
	vm->control_fd = TAKE_FD(fds[VMM_FORK_FD_CONTROL]);
	vm->listen_fd = TAKE_FD(fds[VMM_FORK_FD_LISTEN]);
	steps_add(&job->steps, "forget");
	mappings_forked();
	if (++vm->forks % RENEW_EVERY == 0)
		renew_memory(vm);
	steps_add(&job->steps, "renew");

	/* Before anything of the child's own is written. */
	if (vm->keep.origin_fd >= 0)
		track_keep_begin(&vm->track, &vm->mem);
	r = set_up_child(vm, job, &e);
	if (r < 0)
		fail_child(vm, r, &e);
	if (vm->is_parked) {
		io_close_all(fds, VMM_FORK_FD_COUNT);
		answer_started(vm, 0, NULL);
		steps_log(&job->steps, "branch set up");
		if (!job->on_vcpu)
			return;
		vm_let_others_first(pthread_self(), false);
		mainloop_run(vm);
	}
	r = job->on_vcpu ? start_main_thread(vm, &e) : settle(vm, job, &e);
	if (r < 0)
		fail_child(vm, r, &e);
	if (job->on_vcpu)
		vm_let_others_first(pthread_self(), false);
}

/* In the parent, after the fork: what it must change before its vCPUs run. */
static int
part_from_child(struct vm *vm, struct job *job, struct err *e)
{
	int *fds = job->fds;
	int r = blk_cut(&vm->blk, fds + VMM_FORK_FD_PARENT_SEG,
		&job->answer.fork_point_records, &job->answer.fork_point_data_bytes, e);

	if (r < 0)
		return r;
	forget_segment(fds + VMM_FORK_FD_PARENT_SEG);
	vm_set_generation(vm, job->msg.parent_generation);
	return 0;
}

/*
 * All vCPUs are parked: saves, forks, and parts the two. In the parent job->r says how it
 * went; unless the VM now ends, its vCPUs may run.
 */
static enum fork_side
split(struct vm *vm, struct job *job)
{
	struct err e;
	int child_fd;
	pid_t pid;

	steps_add(&job->steps, "park");
	if (atomic_load(&vm->ending))
		job->r = err_set(&job->e, -ESHUTDOWN, "the VM is ending");
	else if (!vm->is_parked)
		/* It takes the disk's lock: from here on the disk's thread has seen `stop`. */
		job->r = blk_can_cut(&vm->blk, &job->e);
	if (job->r == 0 && !vm->is_parked)
		job->r = vm_save(vm, &job->e);
	steps_add(&job->steps, "save");
	if (job->r == 0 && wants_tracking(vm, &job->msg)) {
		track_scan(&vm->track, &vm->mem, job->msg.parent_generation);
		steps_add(&job->steps, "scan");
	}
	if (job->r == 0)
		job->r = keep_make_pair(&vm->keep, &job->e);
	job->saved_ns = io_now_ns();
	if (job->r < 0) {
		keep_forked(&vm->keep, false, &child_fd);
		return FORK_PARENT;
	}
	blk_hold(&vm->blk);
	pid = fork();
	if (pid == 0) {
		become_child(vm, job);
		return FORK_CHILD;
	}
	blk_release(&vm->blk);
	keep_forked(&vm->keep, pid > 0, &child_fd);
	if (child_fd >= 0)
		mainloop_watch_child(vm, child_fd);
	job->answer.fork_ns = io_now_ns() - job->saved_ns;
	steps_add(&job->steps, "fork");
	if (pid < 0) {
		job->r = err_sys(&job->e, -errno, "fork");
		return FORK_PARENT;
	}
	job->answer.child_pid = pid;
	/* The child reads the segment that this VM would go on writing: it must not run
	 * on. */
	if (!vm->is_parked && part_from_child(vm, job, &e) < 0)
		ending_tell(vm, VMM_EXIT_HOST_FAULT, "after a fork: %s", e.msg);
	steps_add(&job->steps, "part");
	return FORK_PARENT;
}

/* On vCPU 0's thread; see struct vm. The main thread waits. */
static void
split_at_park(struct vm *vm)
{
	struct job *job = &the_job;

	if (split(vm, job) == FORK_CHILD)
		return;
	if (!atomic_load(&vm->ending))
		vm_run_vcpus(vm);
	if (job->r == 0)
		job->answer.pause_ns = io_now_ns() - job->asked_ns;
	atomic_store(&job->done, 1);
	futex_wake(&job->done);
}

/* Before anything happens: after the fork it would be the end of one or both. */
static int
check_segments(struct vm *vm, const int fds[], struct err *e)
{
	int r = blk_check_segment(fds + VMM_FORK_FD_SEG, e);

	if (r < 0)
		return err_wrap(e, r, "the child");
	if (vm->is_parked)
		return 0;
	r = blk_check_segment(fds + VMM_FORK_FD_PARENT_SEG, e);
	return r < 0 ? err_wrap(e, r, "the parent") : 0;
}

enum fork_side
fork_vm(struct vm *vm, const struct vmm_fork *msg, int fds[])
{
	struct job *job = &the_job;

	*job = (struct job){.msg = *msg, .asked_ns = io_now_ns()};
	steps_begin(&job->steps, job->asked_ns);
	memcpy(job->fds, fds, sizeof(job->fds));
	job->r = check_segments(vm, job->fds, &job->e);
	if (job->r == 0 && wants_tracking(vm, msg)) { /* the guest runs on */
		track_arm(&vm->track, &vm->mem);
		track_scan_ahead(&vm->track, &vm->mem);
	}
	if (job->r == 0 && (vm->is_parked || vm_stands(vm))) {
		if (split(vm, job) == FORK_CHILD)
			return FORK_CHILD;
	} else if (job->r == 0) {
		job->on_vcpu = true;
		/* The child is born so: it waits for its turn, or takes an idle CPU. */
		vm_let_others_first(vm->vcpus[0].thread, true);
		vm_stop_and(vm, split_at_park);
		while (!atomic_load(&job->done))
			futex_wait(&job->done, 0);
		vm_let_others_first(vm->vcpus[0].thread, false);
		if (!atomic_load(&vm->ending))
			vm_resume_devices(vm);
	}
	steps_add(&job->steps, "run");
	steps_log(&job->steps, "forked");
	io_close_all(job->fds, VMM_FORK_FD_COUNT);
	job->answer.error = job->r;
	if (job->r < 0)
		snprintf(job->answer.msg, sizeof(job->answer.msg), "%.255s", job->e.msg);
	answer_send(vm, &job->answer.hdr, VMM_FORKED, sizeof(job->answer), msg->hdr.seq);
	return FORK_PARENT;
}
