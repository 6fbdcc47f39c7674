/*
 * What the VMM makes of this host's KVM, with the VMM's own code in this process: what
 * vCPUs say they are, what is saved of them, what it does to their clock. Where KVM is a
 * real one these are the rules of that processor.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/kvm/kvm_skip.h"
#include "vmm/probe.h"
#include "vmm/vcpu.h"
#include "vmm/vm.h"

#define PAGE 0x1000ull

static struct vm vm;

static int
setup(void **state)
{
	memset(&vm, 0, sizeof(vm));
	vm_init(&vm);
	vm.kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	*state = vm.kvm_fd < 0 ? NULL : &vm;
	if (!*state)
		print_message("# /dev/kvm: %s\n", strerror(errno));
	return 0;
}

static int
teardown(void **state)
{
	if (!*state)
		return 0;
	vm_drop_kvm(&vm, false);
	guest_mem_destroy(&vm.mem);
	close(vm.kvm_fd);
	return 0;
}

#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

/* A KVM VM of n vCPUs as the VMM makes it; what was there before is gone. */
static void
make(unsigned n)
{
	/* 1: out %al, $port; jmp 1b */
	static const uint8_t leave[] = {0xe6, LAYOUT_PORT_OF_NOBODY, 0xeb, 0xfc};

	vm_drop_kvm(&vm, false);
	guest_mem_destroy(&vm.mem);
	vm.n_vcpus = n;
	MUST(vm_ask_kvm(&vm, e));
	MUST(guest_mem_create(&vm.mem, 2, e));
	assert_int_equal(guest_write(&vm.mem, (gpa_t){PAGE}, leave, sizeof(leave)), 0);
	MUST(vm_make_kvm(&vm, e));
}

/* Each vCPU leaves its guest once. */
static void
enter_all(void)
{
	const struct kvm_mp_state runnable = {KVM_MP_STATE_RUNNABLE};

	for (unsigned i = 0; i < vm.n_vcpus; i++) {
		struct vcpu *v = &vm.vcpus[i];
		const struct kvm_regs regs = {.rip = PAGE, .rflags = 2};
		struct kvm_sregs sregs;
		int r;

		MUST(kvm_get_sregs(v->fd, &sregs, e));
		sregs.cs.base = sregs.cs.selector = 0;
		MUST(kvm_set_mp_state(v->fd, &runnable, e));
		MUST(kvm_set_sregs(v->fd, &sregs, e));
		MUST(kvm_set_regs(v->fd, &regs, e));
		do
			r = kvm_run(v->fd);
		while (r == -EINTR || r == -EAGAIN);
		assert_int_equal(r, 0);
		assert_int_equal(v->run->exit_reason, KVM_EXIT_IO);
	}
}

static bool
has_master_clock(void)
{
	struct kvm_clock_data clock;

	MUST(kvm_get_clock(vm.vm_fd, &clock, e));
	return clock.flags & KVM_CLOCK_TSC_STABLE;
}

static void
vcpus_keep_the_master_clock_when_it_was_found_out_what_to_save(void **state)
{
	NEEDS_KVM(state);
	make(2);
	enter_all();
	if (!has_master_clock()) {
		print_message("# this host's KVM has no master clock\n");
		skip();
	}
	for (unsigned n = 1; n <= 4 && n <= vm.caps.max_vcpus; n++) {
		make(n);
		MUST(vm_make_plan(&vm, e));
		enter_all();
		if (!has_master_clock())
			fail_msg("%u vCPUs have lost it", n);
		/* nor do saving and loading, of which a fork and a restore are made */
		MUST(vm_save(&vm, e));
		make(n);
		MUST(vm_load(&vm, e));
		enter_all();
		if (!has_master_clock())
			fail_msg("%u vCPUs that were loaded have none", n);
	}
}

/* A page fault that is not delivered yet: what its handler will find in CR2 is a part of
 * it, and CR2 is not. */
static void
a_pending_exception_keeps_its_payload(void **state)
{
	const uint64_t fault_address = 0x1234000, old_cr2 = 0x77000;
	struct kvm_vcpu_events events;
	struct kvm_sregs sregs;

	NEEDS_KVM(state);
	make(1);
	if (!vm.caps.exception_payload)
		skip();
	MUST(vm_make_plan(&vm, e));
	MUST(kvm_get_sregs(vm.vcpus[0].fd, &sregs, e));
	sregs.cr2 = old_cr2;
	MUST(kvm_set_sregs(vm.vcpus[0].fd, &sregs, e));
	MUST(kvm_get_vcpu_events(vm.vcpus[0].fd, &events, e));
	events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	events.exception.pending = 1;
	events.exception.injected = 0;
	events.exception.nr = 14;
	events.exception.has_error_code = 1;
	events.exception.error_code = 2;
	events.exception_has_payload = 1;
	events.exception_payload = fault_address;
	MUST(kvm_set_vcpu_events(vm.vcpus[0].fd, &events, e));
	MUST(vm_save(&vm, e));
	make(1);
	MUST(vm_load(&vm, e));
	MUST(kvm_get_vcpu_events(vm.vcpus[0].fd, &events, e));
	assert_int_equal(events.exception.pending, 1);
	assert_int_equal(events.exception.injected, 0);
	assert_int_equal(events.exception.nr, 14);
	assert_int_equal(events.exception.error_code, 2);
	assert_int_equal(events.exception_has_payload, 1);
	assert_true(events.exception_payload == fault_address);
	MUST(kvm_get_sregs(vm.vcpus[0].fd, &sregs, e));
	assert_true(sregs.cr2 == old_cr2);
}

static void
set_timer(struct kvm_lapic_state *s, uint32_t mode, uint32_t count)
{
	const uint32_t on = 0x1ff, entry = mode << 17 | 0xec, by_one = 0xb;

	memcpy(s->regs + 0xf0, &on, sizeof(on));
	memcpy(s->regs + 0x320, &entry, sizeof(entry));
	memcpy(s->regs + 0x380, &count, sizeof(count));
	memcpy(s->regs + 0x390, &count, sizeof(count));
	memcpy(s->regs + 0x3e0, &by_one, sizeof(by_one));
	MUST(kvm_set_lapic(vm.vcpus[0].fd, s, e));
}

/* A commit of a guest that had not turned to the deadline timer yet, and a vCPU that has: the
 * reset's. One-shot, periodic; and a fresh vCPU, as a fork's. */
static void
a_lapic_timer_goes_on_whatever_mode_the_vcpu_was_in(void **state)
{
	const uint32_t count = 2000000000;
	struct kvm_lapic_state s, was;
	uint32_t initial, now;

	NEEDS_KVM(state);
	make(1);
	if (!vm.caps.tsc_deadline_timer)
		skip();
	MUST(vm_make_plan(&vm, e));
	MUST(kvm_get_lapic(vm.vcpus[0].fd, &was, e));
	for (unsigned i = 0; i < 4; i++) {
		s = was;
		set_timer(&s, i % 2, count);
		MUST(vm_save(&vm, e));
		if (i < 2)
			set_timer(&s, 2, 0);
		else
			make(1);
		MUST(vm_load(&vm, e));
		MUST(kvm_get_lapic(vm.vcpus[0].fd, &s, e));
		memcpy(&initial, s.regs + 0x380, sizeof(initial));
		memcpy(&now, s.regs + 0x390, sizeof(now));
		assert_int_equal(initial, count);
		assert_in_range(now, 1, count);
	}
}

/* A frozen fork of before the host was suspended, on a host whose TSC is zero after that: had it
 * been ahead by so much when the state was saved. */
static void
a_guests_tsc_runs_on_when_the_hosts_began_anew(void **state)
{
	const uint64_t ahead = 1ull << 46;
	struct kvm_msr_table one = {.n = 1, .entries[0].index = STATE_MSR_TSC};
	struct vcpu *v = &vm.vcpus[0];
	uint64_t then, offset, second;
	unsigned done = 0;

	NEEDS_KVM(state);
	make(1);
	MUST(vm_make_plan(&vm, e));
	second = (uint64_t)vm.plan.tsc_khz * 1000;
	if (!second)
		skip(); /* KVM does not trust this host's */
	/* As long as it runs on nothing is lost, also of one that counted while its host slept. */
	vm.clock = (struct state_clock){.taken_ns = 5, .taken_tsc = 7};
	assert_true(state_tsc_lost(&vm.clock, &vm.plan, 1000000005, 7 + second) == 0);
	assert_true(state_tsc_lost(&vm.clock, &vm.plan, 1000000005, 7 + 900 * second) == 0);
	assert_true(state_tsc_lost(&vm.clock, &vm.plan, 1000000000005, 7 + 998 * second) == 0);
	assert_true(state_tsc_lost(&vm.clock, &vm.plan, 1000000000005, 7) == 1000 * second);

	MUST(vm_save(&vm, e));
	then = v->state.guest_tsc;
	offset = v->state.tsc_offset;
	vm.clock.taken_tsc += ahead;
	v->state.tsc_offset -= ahead;
	make(1);
	MUST(vm_load(&vm, e));
	/* From a little before. */
	assert_in_range(v->state.tsc_offset - offset + second, 0, 2 * second);
	if (vm.plan.tsc_offset && !vm.plan.tsc_fixed) {
		MUST(kvm_get_msrs(v->fd, &one, &done, e));
		assert_int_equal(done, 1);
		assert_in_range(one.entries[0].data - then + second, 0, 300 * second);
	}
	/* A guest whose TSC runs at half the rate lost half as much. */
	v->state.tsc_khz = vm.plan.tsc_khz / 2;
	v->state.tsc_offset = 0;
	state_follow_host(&v->state, &vm.plan, 100 * second);
	assert_in_range(v->state.tsc_offset, 49 * second, 51 * second);
}

static void
what_no_guest_has_is_not_saved(void **state)
{
	NEEDS_KVM(state);
	make(1);
	MUST(vm_make_plan(&vm, e));
	assert_true(vm.plan.msrs.n > 10);
	for (uint32_t i = 0; i < vm.plan.msrs.n; i++)
		if (state_is_of_counters(vm.plan.msrs.indices[i]) ||
			vm.plan.msrs.indices[i] >> 16 == 0x4000)
			fail_msg("MSR 0x%x is", vm.plan.msrs.indices[i]);
}

/* What the probe says of this host, less `without`. */
static void
probe(uint32_t without, char *dst, size_t cap)
{
	int fds[2], status = -1;
	size_t n = 0;
	ssize_t got;
	pid_t pid;

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		dup2(fds[1], STDOUT_FILENO);
		_exit(probe_main(vm.kvm_fd, without));
	}
	close(fds[1]);
	while (n < cap - 1 && (got = read(fds[0], dst + n, cap - 1 - n)) > 0)
		n += (size_t)got;
	dst[n] = '\0';
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* As an old processor, or a hypervisor that masks it: KVM refuses CR4.OSXSAVE there. */
static void
the_probe_asks_for_no_xsave_of_a_cpu_that_has_none(void **state)
{
	char whole[4096], less[4096];

	NEEDS_KVM(state);
	probe(0, whole, sizeof(whole));
	probe(PROBE_XSAVE | PROBE_CMPXCHG16B, less, sizeof(less));
	print_message("# %s", less);
	if (strstr(whole, "\"kvm\":\"none\""))
		skip();
	assert_null(strstr(less, "\"kvm\":\"none\""));
	assert_null(strstr(less, "KVM_SET_SREGS"));
	assert_null(strstr(less, "fails at xsave"));
	if (strstr(whole, "\"kvm\":\"linux\""))
		assert_non_null(strstr(less, "\"kvm\":\"linux\""));
}

/* As where the limit of tasks (ulimit -u, systemd's TasksMax) is used up just then. */
static void *
vcpu_that_may_make_no_thread(void *arg)
{
	static const struct rlimit none;

	setrlimit(RLIMIT_NPROC, &none);
	return vcpu_thread(arg);
}

enum { CHILD_ENDED = 0, CHILD_RAN = 1, CHILD_SPINS = 2, CHILD_FAILED = 3 };

static int
run_where_no_thread_may_be_made(unsigned stop)
{
	const struct kvm_mp_state runnable = {KVM_MP_STATE_RUNNABLE};
	struct vcpu *v = &vm.vcpus[0];
	struct kvm_regs regs = {.rip = PAGE, .rflags = 2};
	struct kvm_sregs sregs;
	pthread_t thread;
	struct err e;

	make(2);
	vm.event_fd = eventfd(0, EFD_CLOEXEC);
	vm.main_is_awake = true;
	if (vcpu_install_signal(&e) < 0 || kvm_get_sregs(v->fd, &sregs, &e) < 0)
		return CHILD_FAILED;
	sregs.cs.base = sregs.cs.selector = 0;
	/* root may always */
	if (kvm_set_mp_state(v->fd, &runnable, &e) < 0 ||
		kvm_set_sregs(v->fd, &sregs, &e) < 0 ||
		kvm_set_regs(v->fd, &regs, &e) < 0 ||
		(getuid() == 0 && setuid(65534) < 0))
		return CHILD_FAILED;
	if (pthread_create(&vm.vcpus[stop].thread, NULL, vcpu_that_may_make_no_thread,
		    &vm.vcpus[stop]) != 0)
		return CHILD_FAILED;
	thread = vm.vcpus[stop].thread;
	vm.vcpus[stop].has_thread = true;
	for (int i = 0; i < 100 && !stop && !atomic_load(&vm.ending); i++) {
		if (atomic_load(&v->exits) > 0)
			return CHILD_RAN;
		usleep(100000);
	}
	if (!stop)
		return strstr(vm.end_msg, "KVM_RUN") ? CHILD_ENDED : CHILD_SPINS;
	/* The second waits for its start-up message, or would: it can be parked. */
	usleep(50000);
	vm.n_vcpus = 2;
	atomic_store(&vm.stop, 1);
	atomic_fetch_add(&vm.epoch, 1);
	vm.vcpus[stop].run->immediate_exit = 1;
	pthread_kill(thread, VCPU_SIGNAL);
	for (int i = 0; i < 100; i++) {
		if (atomic_load(&vm.parked) == 1)
			return CHILD_ENDED;
		usleep(100000);
	}
	return CHILD_SPINS;
}

/* Since Linux 6.14 KVM makes a VM a thread of its own at the first KVM_RUN, and says
 * EAGAIN when it may not. */
static void
a_vm_that_gets_no_thread_ends_with_a_word(void **state)
{
	NEEDS_KVM(state);
	for (unsigned of = 0; of < 2; of++) {
		int status = -1;
		pid_t pid = fork();

		if (pid == 0)
			_exit(run_where_no_thread_may_be_made(of));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		if (WEXITSTATUS(status) == CHILD_RAN) {
			print_message("# this host's KVM makes no thread\n");
			skip();
		}
		if (WEXITSTATUS(status) != CHILD_ENDED)
			fail_msg("vCPU %u %s", of,
				WEXITSTATUS(status) == CHILD_SPINS ? "spins"
								   : "was not made");
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CPU_TEST(vcpus_keep_the_master_clock_when_it_was_found_out_what_to_save),
		CPU_TEST(a_pending_exception_keeps_its_payload),
		CPU_TEST(a_lapic_timer_goes_on_whatever_mode_the_vcpu_was_in),
		CPU_TEST(a_guests_tsc_runs_on_when_the_hosts_began_anew),
		CPU_TEST(what_no_guest_has_is_not_saved),
		CPU_TEST(the_probe_asks_for_no_xsave_of_a_cpu_that_has_none),
		CPU_TEST(a_vm_that_gets_no_thread_ends_with_a_word),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
