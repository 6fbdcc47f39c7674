/*
 * How a VM forks.
 *
 * Parent: vCPUs park, so no device lock is held and no I/O is under way; what KVM holds
 * is read into plain memory (vmm/state.c); fork(2). Memory, devices and the disk's block
 * map are plain memory: the kernel copies them lazily. The parent then goes on in a new
 * disk segment and with a new VM generation (the child knows what its random number
 * generator held).
 *
 * Child: KVM's descriptors belong to the mm that made them and are good for nothing here.
 * It closes them, makes a VM of its own around the same mappings, loads the state, takes
 * the descriptors that came with the request, and runs.
 *
 * It is glibc's fork(), not clone(CLONE_PARENT): only then does glibc in the child know
 * that the vCPU threads are gone, and takes their stacks back for the child's own.
 * Without it every generation would leave its parent's stacks and thread descriptors
 * behind. So a child's parent is the VMM it came from, not pandod; SIGCHLD is ignored,
 * which makes the kernel reap it, and pandod follows it by a pidfd taken from the peer
 * credentials of its control socket. A child outlives its parent.
 *
 * A parked child (VMM_FORK_PARK) stops after taking its descriptors: it is a picture,
 * holds no KVM VM, and forks children of its own from the state it carries.
 *
 * Order in the child: what can fail for want of descriptors or memory before what the
 * world can see; KVM's calls in the order that costs least (vm_make_kvm: split interrupt
 * controller, slots, vCPUs).
 */
#include "vmm/fork.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "vmm/control.h"
#include "vmm/seal.h"
#include "vmm/steps.h"

static void
close_all(int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(TAKE_FD(fds[i]));
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
	for (unsigned i = 0; i < VMM_VCPUS_MAX; i++) {
		vm->vcpus[i].has_thread = false;
		atomic_store(&vm->vcpus[i].exits, 0);
	}
	atomic_store(&vm->stop, 0);
	atomic_store(&vm->parked, 0);
	atomic_store(&vm->epoch, 0);
	atomic_store(&vm->first_run_ns, 0);
	atomic_store(&vm->main_is_awake, true);
	atomic_store(&vm->ending, 0);
	vm->is_parked = vm->is_paused = vm->started_sent = false;
}

static int
set_up_child(struct vm *vm, const struct vmm_fork *msg, int fds[], struct steps *steps,
	struct err *e)
{
	bool park = msg->flags & VMM_FORK_PARK;
	struct vsock_loop loop;
	int r;

	if ((r = control_make_loop(vm, e)) < 0)
		return r;
	loop = control_vsock_loop(vm);
	steps_add(steps, "loop");

	ioapic_fork_child(&vm->ioapic, vm_ioapic_sink(vm));
	serial_fork_child(&vm->serial, vm_irq(vm, SERIAL_GSI));
	ged_fork_child(&vm->ged, vm_irq(vm, LAYOUT_GED_GSI), vm);
	virtio_dev_fork_child(&vm->rng.dev, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_RNG));
	blk_fork_child(&vm->blk, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_BLK));
	r = blk_cut(&vm->blk, fds[VMM_FORK_FD_SEG_DATA], fds[VMM_FORK_FD_SEG_INDEX], NULL,
		NULL, e);
	if (r < 0)
		return r;
	fds[VMM_FORK_FD_SEG_DATA] = fds[VMM_FORK_FD_SEG_INDEX] = -1;
	/* A picture serves nobody: its Unix socket is closed, so that a client is refused
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
	/* Sizing and first touching a file costs a quarter of a millisecond: the vCPUs
	 * run meanwhile, and one that prints waits for it. */
	serial_hold(&vm->serial);
	r = vm_start_vcpus(vm, e);
	steps_add(steps, "start");
	if (r == 0)
		r = console_open(&vm->console, fds[VMM_FORK_FD_CONSOLE], e);
	serial_release(&vm->serial);
	if (r < 0)
		return r;
	steps_add(steps, "console");
	virtio_dev_resume(&vm->blk.dev);
	virtio_dev_resume(&vm->vsock.dev);
	virtio_dev_resume(&vm->rng.dev);
	steps_add(steps, "resume");
	return 0;
}

static void
become_child(struct vm *vm, const struct vmm_fork *msg, int fds[], uint64_t forked_ns)
{
	struct steps steps;
	struct err e = {0};
	int r;

	steps_begin(&steps, forked_ns);
	steps_add(&steps, "fork");
	vm->born_ns = forked_ns;
	/* A picture's memory may be read by its user; that of what runs may not. */
	if (vm->is_readable)
		seal_let_nobody_read();
	vm->is_readable = false;
	forget_parent(vm);
	memcpy(vm->name, msg->child_name, sizeof(vm->name));
	vm->name[sizeof(vm->name) - 1] = '\0';
	control_use_log(vm, TAKE_FD(fds[VMM_FORK_FD_LOG]));
	vm->control_fd = TAKE_FD(fds[VMM_FORK_FD_CONTROL]);
	vm->listen_fd = TAKE_FD(fds[VMM_FORK_FD_LISTEN]);
	steps_add(&steps, "forget");

	r = set_up_child(vm, msg, fds, &steps, &e);
	close_all(fds, VMM_FORK_FD_COUNT);
	if (r < 0) {
		log_err("the branch could not start: %s", e.msg);
		control_send_started(vm, r, e.msg);
		_exit(1);
	}
	if (vm->is_parked)
		control_send_started(vm, 0, NULL);
	steps_log(&steps, "branch set up");
}

/* In the parent, after the fork: what it must change before its vCPUs run. */
static int
part_from_child(struct vm *vm, const struct vmm_fork *msg, int fds[],
	struct vmm_forked *answer, struct err *e)
{
	int r = blk_cut(&vm->blk, fds[VMM_FORK_FD_PARENT_SEG_DATA],
		fds[VMM_FORK_FD_PARENT_SEG_INDEX], &answer->cut_index_records,
		&answer->cut_data_bytes, e);

	if (r < 0)
		return r;
	fds[VMM_FORK_FD_PARENT_SEG_DATA] = fds[VMM_FORK_FD_PARENT_SEG_INDEX] = -1;
	vm_set_generation(vm, msg->parent_generation);
	return 0;
}

/* The picture: vCPUs parked, state saved. On failure the VM is as it was. */
static int
take_picture(struct vm *vm, struct err *e)
{
	int r;

	if (vm->is_parked)
		return 0; /* it is one */
	if ((r = blk_can_cut(&vm->blk, e)) < 0)
		return r;
	vm_stop(vm);
	if (atomic_load(&vm->ending))
		r = err_set(e, -ESHUTDOWN, "the VM is ending");
	else
		r = vm_save(vm, e);
	if (r < 0 && !vm->is_paused)
		vm_run(vm);
	return r;
}

/* Before anything happens: after the fork it would be the end of one or both. */
static int
check_segments(const struct vm *vm, const int fds[], struct err *e)
{
	int r = blk_check_segment(
		fds[VMM_FORK_FD_SEG_DATA], fds[VMM_FORK_FD_SEG_INDEX], e);

	if (r < 0)
		return err_wrap(e, r, "the child");
	if (vm->is_parked)
		return 0;
	r = blk_check_segment(
		fds[VMM_FORK_FD_PARENT_SEG_DATA], fds[VMM_FORK_FD_PARENT_SEG_INDEX], e);
	return r < 0 ? err_wrap(e, r, "the parent") : 0;
}

enum fork_side
fork_vm(struct vm *vm, const struct vmm_fork *msg, int fds[])
{
	struct vmm_forked answer = {0};
	uint64_t asked_ns, saved_ns, forked_ns;
	struct err e = {0};
	pid_t pid;
	int r;

	r = check_segments(vm, fds, &e);
	if (r < 0)
		goto out;
	asked_ns = io_now_ns();
	r = take_picture(vm, &e);
	if (r < 0)
		goto out;

	saved_ns = io_now_ns();
	pid = fork();
	if (pid == 0) {
		become_child(vm, msg, fds, saved_ns);
		return FORK_CHILD;
	}
	forked_ns = io_now_ns();
	answer.fork_ns = forked_ns - saved_ns;
	if (pid < 0) {
		r = err_sys(&e, -errno, "fork");
		if (!vm->is_parked && !vm->is_paused)
			vm_run(vm);
		goto out;
	}
	answer.child_pid = pid;
	if (!vm->is_parked) {
		struct err cut;

		if (part_from_child(vm, msg, fds, &answer, &cut) < 0) {
			/* The child reads the segment that this VM would go on writing:
			 * it must not run on. */
			vm_end(vm, VMM_EXIT_HOST_FAULT, "after a fork: %s", cut.msg);
		} else if (!vm->is_paused) {
			vm_run(vm);
			answer.pause_ns = io_now_ns() - asked_ns;
		}
	}
	log_debug("forked %d, µs: stop and save %llu, fork %llu, pause %llu", (int)pid,
		(unsigned long long)(saved_ns - asked_ns) / 1000,
		(unsigned long long)answer.fork_ns / 1000,
		(unsigned long long)answer.pause_ns / 1000);
out:
	close_all(fds, VMM_FORK_FD_COUNT);
	answer.error = r;
	if (r < 0)
		snprintf(answer.msg, sizeof(answer.msg), "%s", e.msg);
	control_send(vm, &answer.hdr, VMM_FORKED, sizeof(answer), msg->hdr.seq);
	return FORK_PARENT;
}
