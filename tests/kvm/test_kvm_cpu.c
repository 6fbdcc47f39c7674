/*
 * What the VMM makes of this host's KVM, with the VMM's own code in this process: what
 * vCPUs say they are, what is saved of them, what it does to their clock. Where KVM is a
 * real one these are the rules of that processor.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

#define NEEDS_KVM(state) \
	do { \
		if (!*(state)) \
			skip(); \
	} while (0)

#define MUST(call) \
	do { \
		struct err must_err_ = {0, ""}; \
		struct err *e = &must_err_; \
		if ((call) < 0) \
			fail_msg("%s: %s", #call, must_err_.msg); \
	} while (0)

#define CPU_TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

/* A KVM VM of n vCPUs as the VMM makes it; what was there before is gone. */
static void
make(unsigned n)
{
	static const uint8_t leave[] = {
		0xe6, 0x80, 0xeb, 0xfc}; /* 1: out %al, $0x80; jmp 1b */

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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CPU_TEST(vcpus_keep_the_master_clock_when_it_was_found_out_what_to_save),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
