#include "vmm/vm.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include "common/io.h"
#include "common/log.h"
#include "vmm/cpuid.h"
#include "vmm/ending.h"
#include "vmm/futex.h"
#include "vmm/giveback.h"
#include "vmm/mappings.h"
#include "vmm/vcpu.h"

void
vm_init(struct vm *vm)
{
	vm->kvm_fd = vm->vm_fd = -1;
	vm->control_fd = vm->listen_fd = vm->epoll_fd = -1;
	vm->event_fd = vm->vsock_kick_fd = -1;
	track_init(&vm->track);
}

void
vm_use_log(struct vm *vm, int fd)
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

int
vm_ask_kvm(struct vm *vm, struct err *e)
{
	struct kvm_cpuid_table *first = &vm->vcpus[0].cpuid;
	int r;

	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		vm->vcpus[i].vm = vm;
		vm->vcpus[i].id = i;
		vm->vcpus[i].fd = -1;
	}

	if ((r = kvm_read_caps(vm->kvm_fd, &vm->caps, e)) < 0 ||
		(r = kvm_check_caps(&vm->caps, e)) < 0 ||
		(r = kvm_get_supported_cpuid(vm->kvm_fd, first, e)) < 0)
		return r;
	if (vm->n_vcpus > vm->caps.max_vcpus)
		return err_set(e, -EINVAL, "%u vCPUs: this host's KVM allows %u",
			vm->n_vcpus, vm->caps.max_vcpus);
	vm->accepted = *first;
	cpuid_accept(&vm->accepted, vm->n_vcpus, &vm->caps);
	for (unsigned i = vm->n_vcpus; i-- > 0;) {
		vm->vcpus[i].cpuid = *first;
		cpuid_adjust(&vm->vcpus[i].cpuid, i, vm->n_vcpus, &vm->caps);
	}
	return 0;
}

static int
make_vcpu(struct vm *vm, struct vcpu *v, struct err *e)
{
	int r;

	if ((r = kvm_create_vcpu(vm->vm_fd, v->id, &v->fd, e)) < 0 ||
		(r = kvm_map_run(v->fd, vm->caps.run_size, &v->run, e)) < 0)
		return r;
	return kvm_set_cpuid(v->fd, &v->cpuid, e);
}

static int
make_kvm(struct vm *vm, struct err *e)
{
	struct guest_mem *m = &vm->mem;
	int r;

	if ((r = kvm_create_vm(vm->kvm_fd, &vm->vm_fd, e)) < 0)
		return r;
	/* Old Intel CPUs run real mode with these; others ignore them. */
	if ((r = kvm_set_identity_map_addr(vm->vm_fd, LAYOUT_IDENTITY_MAP, e)) < 0 ||
		(r = kvm_set_tss_addr(vm->vm_fd, LAYOUT_TSS, e)) < 0)
		return r;
	if ((r = kvm_create_split_irqchip(vm->vm_fd, IOAPIC_PINS, e)) < 0 ||
		(vm->caps.pmu_capability && (r = kvm_disable_pmu(vm->vm_fd, e)) < 0) ||
		(vm->caps.exception_payload &&
			(r = kvm_enable_exception_payload(vm->vm_fd, e)) < 0))
		return r;
	if ((r = kvm_set_memory(vm->vm_fd, 0, 0, m->host, m->low_len, e)) < 0)
		return r;
	if (m->high_len && (r = kvm_set_memory(vm->vm_fd, 1, GUEST_HIGH_BASE,
				    m->host + m->low_len, m->high_len, e)) < 0)
		return r;
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		if ((r = make_vcpu(vm, &vm->vcpus[i], e)) < 0)
			return r;
	return 0;
}

int
vm_make_kvm(struct vm *vm, struct err *e)
{
	int r = make_kvm(vm, e);

	if (r < 0)
		vm_drop_kvm(vm, false);
	return r;
}

int
vm_make_plan(struct vm *vm, struct err *e)
{
	int fds[VMM_VCPUS_MAX];

	for (unsigned i = 0; i < vm->n_vcpus; i++)
		fds[i] = vm->vcpus[i].fd;
	return state_plan_make(vm->kvm_fd, fds, vm->n_vcpus, &vm->caps, &vm->plan, e);
}

void
vm_drop_kvm(struct vm *vm, bool in_forked_child)
{
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		struct vcpu *v = &vm->vcpus[i];

		if (v->run && !in_forked_child)
			munmap(v->run, vm->caps.run_size);
		v->run = NULL;
		if (v->fd >= 0)
			close(v->fd);
		v->fd = -1;
	}
	if (vm->vm_fd >= 0)
		close(vm->vm_fd);
	vm->vm_fd = -1;
}

static int
sink_message(void *ctx, uint64_t address, uint32_t data)
{
	static struct log_limit limit = {.burst = 5};
	struct vm *vm = ctx;
	struct err e;
	int r;

	if (vm->vm_fd < 0)
		return -ENODEV;
	r = kvm_signal_msi(vm->vm_fd, address, data, &e);
	if (r < 0 && log_allowed(&limit))
		log_warn("interrupt not delivered: %s", e.msg);
	/* A message that no LAPIC takes (the guest programmed nonsense) is lost, as on a
	 * real bus. */
	return 0;
}

static void
sink_levels(void *ctx, unsigned n, const unsigned *pins, const uint64_t *addresses,
	const uint32_t *data)
{
	static struct log_limit limit = {.burst = 5};
	struct vm *vm = ctx;
	struct err e;
	union {
		struct kvm_irq_routing head;
		uint8_t room[sizeof(struct kvm_irq_routing) +
			     IOAPIC_PINS * sizeof(struct kvm_irq_routing_entry)];
	} routes = {.head = {.nr = n}};

	if (vm->vm_fd < 0)
		return;
	for (unsigned i = 0; i < n; i++) {
		struct kvm_irq_routing_entry *r = &routes.head.entries[i];

		r->gsi = pins[i];
		r->type = KVM_IRQ_ROUTING_MSI;
		r->u.msi.address_lo = (uint32_t)addresses[i];
		r->u.msi.address_hi = (uint32_t)(addresses[i] >> 32);
		r->u.msi.data = data[i];
	}
	if (kvm_set_gsi_routing(vm->vm_fd, &routes.head, &e) < 0 && log_allowed(&limit))
		log_warn("level-triggered interrupts: %s", e.msg);
}

struct ioapic_sink
vm_ioapic_sink(struct vm *vm)
{
	return (struct ioapic_sink){
		.message = sink_message, .levels = sink_levels, .ctx = vm};
}

struct irq_line
vm_irq(struct vm *vm, unsigned gsi)
{
	return (struct irq_line){.raise = ioapic_raise, .ctx = &vm->ioapic, .gsi = gsi};
}

/* The disk's. */
static void
wake_main(void *ctx)
{
	const uint64_t one = 1;
	struct vm *vm = ctx;

	(void)!write(vm->event_fd, &one, sizeof(one));
}

static void
guest_powers_off(void *ctx)
{
	ending_tell(ctx, VMM_EXIT_POWER_OFF, "the guest powered off");
}

static void
guest_resets(void *ctx)
{
	ending_tell(ctx, VMM_EXIT_RESET, "the guest asked for a reset");
}

static uint64_t
balloon_gives_back(void *ctx, void *host, size_t len, bool any)
{
	struct vm *vm = ctx;
	uint64_t given = 0;
	int r = giveback_range(&vm->mem, &vm->track, host, len,
		any ? GIVEBACK_REST_ANY : GIVEBACK_REST_KEEPS, &given);

	if (r < 0)
		ending_tell(vm, VMM_EXIT_HOST_FAULT,
			"memory that the guest reported could not be mapped again: %s",
			strerror(-r));
	return given;
}

int
vm_init_devices(
	struct vm *vm, uint32_t guest_cid, const struct vsock_loop *loop, struct err *e)
{
	const struct balloon_host host = {.give_back = balloon_gives_back, .ctx = vm};
	int r;

	ioapic_init(&vm->ioapic, vm_ioapic_sink(vm));
	serial_init(&vm->serial, &vm->console, vm_irq(vm, SERIAL_GSI));
	ged_init(
		&vm->ged, vm_irq(vm, LAYOUT_GED_GSI), guest_powers_off, guest_resets, vm);
	rng_init(&vm->rng, &vm->mem, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_RNG));
	r = blk_init_empty(
		&vm->blk, &vm->mem, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_BLK), e);
	if (r < 0)
		return err_wrap(e, r, "disk");
	disk_thread_init(&vm->disk_thread, &vm->blk);
	vm->blk.teller = (struct blk_teller){.tell = wake_main, .ctx = vm};
	r = vsock_init(&vm->vsock, &vm->mem, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_VSOCK),
		guest_cid, -1, vm->vsock_kick_fd, loop, e);
	if (r < 0)
		return err_wrap(e, r, "vsock");
	balloon_init(&vm->balloon, &vm->mem, vm_irq(vm, LAYOUT_VIRTIO_GSI + LAYOUT_BALLOON), &host);
	vm->blk.dev.stop = vm->vsock.dev.stop = vm->rng.dev.stop = vm->balloon.dev.stop =
		&vm->stop;
	return 0;
}

int
vm_start_vcpus(struct vm *vm, struct err *e)
{
	int r = 0;

	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++) {
		struct vcpu *v = &vm->vcpus[i];

		if (v->has_thread)
			continue;
		r = mappings_thread(&v->thread, vcpu_thread, v, e);
		v->has_thread = r == 0;
	}
	return r < 0 ? err_wrap(e, r, "a vCPU") : 0;
}

/* With its last words KVM_RUN leaves registers behind that would cost a call each. Not of
 * several vCPUs: one that runs on may change what another left (INIT, start-up). */
static void
set_immediate_exit(struct vm *vm, uint8_t value)
{
	const uint64_t sync = value && vm->n_vcpus == 1 ? vm->caps.sync_regs : 0;

	if (vm->vcpus[0].run)
		__atomic_store_n(
			&vm->vcpus[0].run->kvm_valid_regs, sync, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		if (vm->vcpus[i].run)
			__atomic_store_n(&vm->vcpus[i].run->immediate_exit, value,
				__ATOMIC_SEQ_CST);
}

int
vm_start_vcpus_parked(struct vm *vm, struct err *e)
{
	unsigned n;
	int r;

	atomic_store(&vm->stop, 1);
	atomic_store(&vm->parked, 0);
	atomic_store(&vm->epoch, 1);
	set_immediate_exit(vm, 1);
	r = vm_start_vcpus(vm, e);
	while (r == 0 && (n = atomic_load(&vm->parked)) < vm->n_vcpus)
		futex_wait(&vm->parked, n);
	return r;
}

static void
ask_to_park(struct vm *vm)
{
	atomic_store(&vm->stop, 1);
	atomic_store(&vm->parked, 0);
	atomic_fetch_add(&vm->epoch, 1);
	set_immediate_exit(vm, 1);
	futex_wake(&vm->epoch); /* those that sleep for good must count themselves in */
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		if (vm->vcpus[i].has_thread)
			pthread_kill(vm->vcpus[i].thread, VCPU_SIGNAL);
}

void
vm_stop_and(struct vm *vm, void (*act)(struct vm *vm))
{
	vm->at_park = act;
	ask_to_park(vm);
}

void
vm_stop(struct vm *vm)
{
	unsigned n;

	if (atomic_load(&vm->epoch) & 1)
		return;
	ask_to_park(vm);
	while ((n = atomic_load(&vm->parked)) < vm->n_vcpus)
		futex_wait(&vm->parked, n);
}

void
vm_let_others_first(pthread_t thread, bool on)
{
	const struct sched_param none = {0};

	(void)pthread_setschedparam(thread, on ? SCHED_BATCH : SCHED_OTHER, &none);
}

void
vm_run(struct vm *vm)
{
	if (!(atomic_load(&vm->epoch) & 1))
		return;
	vm_run_vcpus(vm);
	vm_resume_devices(vm);
}

void
vm_ease_watchdog(struct vm *vm)
{
	for (unsigned i = 0; i < vm->n_vcpus && vm->caps.kvmclock_ctrl; i++)
		kvm_kvmclock_ctrl(vm->vcpus[i].fd, NULL);
}

void
vm_run_vcpus(struct vm *vm)
{
	atomic_store(&vm->stop, 0);
	set_immediate_exit(vm, 0);
	atomic_fetch_add(&vm->epoch, 1);
	futex_wake(&vm->epoch);
}

/* One that can go on at once counts more than one that is busy. */
static void
note_left(struct vm *vm, int r)
{
	if (r && vm->devices_left != 1)
		vm->devices_left = r;
}

void
vm_resume_devices(struct vm *vm)
{
	/* Work that a device left when it saw `stop`, and interrupts that a driver may
	 * wait for. */
	vm->devices_left = 0;
	note_left(vm, virtio_dev_resume(&vm->blk.dev));
	note_left(vm, virtio_dev_resume(&vm->vsock.dev));
	note_left(vm, virtio_dev_resume(&vm->rng.dev));
	note_left(vm, virtio_dev_resume(&vm->balloon.dev));
}

void
vm_go_on_devices(struct vm *vm)
{
	uint64_t due_ns = atomic_load(&vm->blk.due_ns);

	/* Stopped: vm_run() begins anew. */
	if (atomic_load(&vm->epoch) & 1)
		return;
	/* The turn says anew when the next one is due; a device that was reset or is broken has
	 * none. Another value is a vCPU's, of just now. */
	if (due_ns && io_now_ns() >= due_ns &&
		atomic_compare_exchange_strong(&vm->blk.due_ns, &due_ns, 0))
		vm->devices_left = 1;
	if (!vm->devices_left)
		return;
	vm->devices_left = 0;
	note_left(vm, virtio_dev_go_on(&vm->blk.dev));
	note_left(vm, virtio_dev_go_on(&vm->vsock.dev));
	note_left(vm, virtio_dev_go_on(&vm->rng.dev));
	note_left(vm, virtio_dev_go_on(&vm->balloon.dev));
}

int
vm_wait_ms(const struct vm *vm, int timeout_ms)
{
	const uint64_t due_ns = vm_stands(vm) ? 0 : atomic_load(&vm->blk.due_ns);
	uint64_t at_ns = vm->look_ns, now_ns, ms;

	if (due_ns && (!at_ns || due_ns < at_ns))
		at_ns = due_ns;
	if (!at_ns)
		return timeout_ms;
	now_ns = io_now_ns();
	ms = at_ns > now_ns ? (at_ns - now_ns + 999999) / 1000000 : 0;
	return timeout_ms < 0 || ms < (uint64_t)timeout_ms ? (int)ms : timeout_ms;
}

int
vm_save(struct vm *vm, struct err *e)
{
	int r;

	r = state_save_clock(vm->vm_fd, &vm->caps, &vm->clock, e);
	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++) {
		struct vcpu *v = &vm->vcpus[i];

		r = state_save_vcpu(v->fd, &vm->caps, &vm->plan, &vm->clock,
			v->synced ? &v->run->s.regs : NULL, &v->state, e);
	}
	return r;
}

int
vm_take_up(struct vm *vm, struct err *e)
{
	int r = 0;

	state_take_up_clock(&vm->clock);
	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++)
		r = state_take_up(&vm->vcpus[i].state, &vm->plan, &vm->clock, e);
	return r;
}

/* The host may have been suspended since the state was saved. */
static void
follow_host(struct vm *vm)
{
	const uint64_t lost =
		state_tsc_lost(&vm->clock, &vm->plan, io_now_ns(), __rdtsc());

	if (!lost)
		return;
	log_info("the host's TSC has begun anew since the VM's state was saved");
	vm->clock.taken_tsc -= lost;
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		state_follow_host(&vm->vcpus[i].state, &vm->plan, lost);
}

int
vm_load(struct vm *vm, struct err *e)
{
	int r = 0;

	follow_host(vm);
	for (unsigned i = 0; i < vm->n_vcpus && r == 0; i++)
		r = state_load_vcpu(vm->vcpus[i].fd, &vm->caps, &vm->plan, &vm->clock,
			&vm->vcpus[i].state, e);
	if (r < 0)
		return r;
	return state_load_clock(vm->vm_fd, &vm->caps, &vm->clock, e);
}

void
vm_set_generation(struct vm *vm, const uint8_t generation[static 16])
{
	memcpy(vm->generation, generation, sizeof(vm->generation));
	/* In range for every memory size that VMM_BOOT accepts. */
	guest_write(&vm->mem, (gpa_t){LAYOUT_GENERATION}, generation, 16);
	ged_notify(&vm->ged, GED_EVENT_GENERATION);
}
