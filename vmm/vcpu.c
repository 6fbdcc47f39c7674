#include "vmm/vcpu.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "common/log.h"
#include "vmm/ending.h"
#include "vmm/futex.h"

#define RESET_RIP 0xfff0u
#define CR0_PE 1u
#define AGAIN_MAX 1000u

static void
on_signal(int number)
{
	(void)number;
}

int
vcpu_install_signal(struct err *e)
{
	struct sigaction sa = {
		.sa_handler = on_signal}; /* no SA_RESTART: KVM_RUN must return */

	sigemptyset(&sa.sa_mask);
	if (sigaction(VCPU_SIGNAL, &sa, NULL) < 0)
		return err_sys(e, -errno, "sigaction");
	return 0;
}

/* Counts itself in and sleeps until the epoch moves on. */
static void
park(struct vcpu *v, unsigned epoch)
{
	struct vm *vm = v->vm;
	void (*act)(struct vm *) = vm->at_park;
	unsigned n;

	if (atomic_fetch_add(&vm->parked, 1) + 1 == vm->n_vcpus)
		futex_wake(&vm->parked);
	if (v->id == 0 && act) {
		while ((n = atomic_load(&vm->parked)) < vm->n_vcpus)
			futex_wait(&vm->parked, n);
		vm->at_park = NULL;
		act(vm);
	}
	while (atomic_load(&vm->epoch) == epoch)
		futex_wait(&vm->epoch, epoch);
}

/* The VM is ending: this vCPU runs no more, but still answers to vm_stop(). */
static void
park_for_good(struct vcpu *v)
{
	struct vm *vm = v->vm;

	for (;;) {
		unsigned epoch = atomic_load(&vm->epoch);

		if (epoch & 1)
			park(v, epoch);
		else
			futex_wait(&vm->epoch, epoch);
	}
}

static void
port_io(struct vm *vm, struct kvm_run *run)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	unsigned port = run->io.port, size = run->io.size, count = run->io.count;
	bool out = run->io.direction == KVM_EXIT_IO_OUT;

	if (port >= SERIAL_BASE && port < SERIAL_BASE + SERIAL_PORTS && size == 1) {
		if (out)
			serial_write_many(&vm->serial, port - SERIAL_BASE, data, count);
		else
			for (unsigned i = 0; i < count; i++)
				data[i] = serial_read(&vm->serial, port - SERIAL_BASE);
		return;
	}
	if (port >= LAYOUT_GED_EVENTS && port < LAYOUT_GED_EVENTS + GED_PORTS) {
		for (unsigned i = 0; i < count; i++) {
			if (out)
				ged_write(&vm->ged, port - LAYOUT_GED_EVENTS,
					data + i * size, size);
			else
				ged_read(&vm->ged, port - LAYOUT_GED_EVENTS,
					data + i * size, size);
		}
		return;
	}
	/* Nobody is there: what a bus without a device reads as. Linux probes many ports
	 * so. */
	if (!out)
		memset(data, 0xff, (size_t)size * count);
}

static struct virtio_dev *
virtio_at(struct vm *vm, uint64_t gpa, uint64_t *ret_offset)
{
	struct virtio_dev *const devs[LAYOUT_VIRTIO_COUNT] = {
		[LAYOUT_BLK] = &vm->blk.dev,
		[LAYOUT_VSOCK] = &vm->vsock.dev,
		[LAYOUT_RNG] = &vm->rng.dev,
		[LAYOUT_BALLOON] = vm->balloon.present ? &vm->balloon.dev : NULL,
	};
	uint64_t offset = gpa - LAYOUT_VIRTIO;

	if (gpa < LAYOUT_VIRTIO || offset >= LAYOUT_VIRTIO_COUNT * LAYOUT_VIRTIO_STRIDE)
		return NULL;
	*ret_offset = offset % LAYOUT_VIRTIO_STRIDE;
	return *ret_offset < VIRTIO_MMIO_SIZE ? devs[offset / LAYOUT_VIRTIO_STRIDE]
					      : NULL;
}

static void
mmio(struct vm *vm, struct kvm_run *run)
{
	uint64_t gpa = run->mmio.phys_addr, offset = 0;
	unsigned len = run->mmio.len;
	struct virtio_dev *dev = virtio_at(vm, gpa, &offset);

	if (dev) {
		if (run->mmio.is_write)
			virtio_mmio_write(dev, offset, run->mmio.data, len);
		else
			virtio_mmio_read(dev, offset, run->mmio.data, len);
	} else if (gpa >= IOAPIC_BASE && gpa - IOAPIC_BASE < IOAPIC_SIZE) {
		if (run->mmio.is_write)
			ioapic_write(&vm->ioapic, gpa - IOAPIC_BASE, run->mmio.data, len);
		else
			ioapic_read(&vm->ioapic, gpa - IOAPIC_BASE, run->mmio.data, len);
	} else if (!run->mmio.is_write) {
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	}
}

/* Where the guest was: the first thing to know about a fault. */
static void
describe_place(struct vcpu *v, char *dst, size_t cap)
{
	struct kvm_regs regs;
	struct kvm_sregs sregs;

	if (kvm_get_regs(v->fd, &regs, NULL) < 0 ||
		kvm_get_sregs(v->fd, &sregs, NULL) < 0)
		snprintf(dst, cap, "vCPU %u", v->id);
	else if (regs.rip == RESET_RIP && !(sregs.cr0 & CR0_PE))
		/* On AMD, KVM resets the CPU before it tells of a triple fault. */
		snprintf(dst, cap, "vCPU %u, whose registers are lost", v->id);
	else
		snprintf(dst, cap,
			"vCPU %u at rip 0x%llx, cr0 0x%llx, cr2 0x%llx, cr3 0x%llx, efer 0x%llx",
			v->id, regs.rip, sregs.cr0, sregs.cr2, sregs.cr3, sregs.efer);
}

/* KVM could not emulate an instruction; newer kernels say which. */
static void
internal_error(struct vcpu *v, const char *place)
{
	struct kvm_run *run = v->run;
	char bytes[64] = "";
	unsigned n;

	if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
		run->emulation_failure.ndata > 2 &&
		(run->emulation_failure.flags &
			KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
		n = run->emulation_failure.insn_size;
		for (unsigned i = 0;
			i < n && i < sizeof(run->emulation_failure.insn_bytes); i++)
			snprintf(bytes + strlen(bytes), sizeof(bytes) - strlen(bytes),
				" %02x", run->emulation_failure.insn_bytes[i]);
	}
	ending_tell(v->vm, VMM_EXIT_GUEST_FAULT,
		"KVM cannot go on with the guest; `pando doctor` says whether this host's KVM runs Linux (internal error %u%s%s: %s)",
		run->internal.suberror, bytes[0] ? ", instruction" : "", bytes, place);
}

/* What KVM_RUN came back with; false: this vCPU runs no more. */
static bool
handle_exit(struct vcpu *v)
{
	struct vm *vm = v->vm;
	struct kvm_run *run = v->run;
	char place[200];

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		port_io(vm, run);
		return true;
	case KVM_EXIT_MMIO:
		mmio(vm, run);
		return true;
	case KVM_EXIT_IOAPIC_EOI:
		ioapic_eoi(&vm->ioapic, run->eoi.vector);
		return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return true;
	case KVM_EXIT_SHUTDOWN:
		describe_place(v, place, sizeof(place));
		ending_tell(vm, VMM_EXIT_GUEST_FAULT,
			"the guest shut down by a triple fault: %s", place);
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		describe_place(v, place, sizeof(place));
		internal_error(v, place);
		return false;
	case KVM_EXIT_FAIL_ENTRY:
		describe_place(v, place, sizeof(place));
		ending_tell(vm, VMM_EXIT_GUEST_FAULT,
			"the CPU refused to enter the guest (reason 0x%llx): %s",
			run->fail_entry.hardware_entry_failure_reason, place);
		return false;
	case KVM_EXIT_SYSTEM_EVENT:
		if (run->system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN)
			ending_tell(vm, VMM_EXIT_POWER_OFF, "the guest powered off");
		else
			ending_tell(vm, VMM_EXIT_RESET,
				"the guest asked for a reset (system event %u)",
				run->system_event.type);
		return false;
	default:
		describe_place(v, place, sizeof(place));
		ending_tell(vm, VMM_EXIT_GUEST_FAULT,
			"KVM left the guest for a reason (%u) that this VMM does not serve: %s",
			run->exit_reason, place);
		return false;
	}
}

/*
 * KVM_RUN leaves registers in the run page when it is asked to (vm.c, set_immediate_exit),
 * but does not say that it did: the main thread may have asked between its return and ours
 * (a debugger, SIGSTOP or a frozen control group hold the thread just there), and then the
 * page has zeroes, or what an earlier stop left. So each part is marked before KVM_RUN
 * with what no CPU and no KVM makes of it, and believed only where the mark is gone.
 */
#define MARK (~0ull)

static void
mark_synced(struct kvm_run *run)
{
	struct kvm_sync_regs *s = &run->s.regs;

	s->regs.rflags = s->sregs.cr0 = MARK;
	s->events.flags = (uint32_t)MARK;
}

static bool
was_synced(const struct kvm_run *run)
{
	const struct kvm_sync_regs *s = &run->s.regs;

	return s->regs.rflags != MARK && s->sregs.cr0 != MARK &&
	       s->events.flags != (uint32_t)MARK;
}

/*
 * EAGAIN says that an AP was woken by something other than its start-up message. Since
 * Linux 6.14 it also says that KVM could not make the thread that each VM gets at its first
 * KVM_RUN (kvm-nx-lpage-recovery), for a limit of tasks; it is said before KVM looks at
 * signals and at immediate_exit. vCPU 0 never waits for such a message, so it tells: some
 * tries, for a limit that others are just leaving.
 */
static bool
gives_up(const struct vcpu *v, unsigned *tries)
{
	return v->id == 0 && (*tries)++ >= AGAIN_MAX;
}

void *
vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	struct vm *vm = v->vm;
	unsigned enomem = 0, again = 0;
	const uint64_t one = 1;

	for (;;) {
		unsigned epoch;
		int r;

		if (v->id == 0 && !atomic_load(&vm->first_run_ns) &&
			!(atomic_load(&vm->epoch) & 1)) {
			atomic_store(&vm->first_run_ns, io_now_ns());
			if (!atomic_load(&vm->main_is_awake))
				(void)!write(vm->event_fd, &one, sizeof(one));
		}
		mark_synced(v->run);
		r = kvm_run(v->fd);
		v->synced = r == -EINTR && was_synced(v->run);
		if (r == 0) {
			atomic_fetch_add_explicit(&v->exits, 1, memory_order_relaxed);
			if (!handle_exit(v))
				park_for_good(v);
			again = 0;
		} else if (r == -EINTR || (r == -EAGAIN && !gives_up(v, &again))) {
			/* KVM_RUN completes a pending access before it looks at signals
			 * and at immediate_exit: nothing is half done, and the vCPU may
			 * be saved. */
			epoch = atomic_load(&vm->epoch);
			if (epoch & 1)
				park(v, epoch);
		} else if (r == -ENOMEM && enomem++ < 8) {
			continue; /* a signal before a vCPU's very first run can look like
				     this */
		} else {
			char place[200];

			describe_place(v, place, sizeof(place));
			ending_tell(vm, VMM_EXIT_HOST_FAULT, "KVM_RUN: %s: %s",
				r == -EAGAIN
					? "the kernel may make no more threads for this user (ulimit -u, systemd's TasksMax)"
					: strerror(-r),
				place);
			park_for_good(v);
		}
	}
	return NULL;
}
