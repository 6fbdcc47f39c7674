/* What the KVM test programs share: cmocka, one driver a test, and a skip where there is
 * no /dev/kvm. */
#ifndef PANDO_TESTS_KVM_KVM_TEST_H
#define PANDO_TESTS_KVM_KVM_TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kvm/driver.h"
#include "tests/kvm/kvm_skip.h"

static struct driver driver;

static int
kvm_setup(void **state)
{
	struct err e;
	char why[160];

	*state = NULL;
	if (!driver_has_kvm(why)) {
		print_message("# %s\n", why);
		return 0;
	}
	if (driver_init(&driver, &e) < 0) {
		print_message("# %s\n", e.msg);
		return -1;
	}
	*state = &driver;
	return 0;
}

static int
kvm_teardown(void **state)
{
	char log[16384];

	/* After a failure the logs are what one wants to read. */
	for (int i = 0; *state && i < DRIVER_VMS_MAX && getenv("KVM_TEST_LOGS"); i++)
		if (driver.vms[i].used)
			print_message("# log of %s: %s\n", driver.vms[i].name,
				driver_log(&driver.vms[i], log, sizeof(log)));
	if (*state)
		driver_done(&driver);
	return 0;
}

#define KVM_TEST(f) cmocka_unit_test_setup_teardown(f, kvm_setup, kvm_teardown)

#define BOOT_MS 30000
#define LINE 2048 /* of a console, at most */
#define LINE_MS 60000

static inline struct vm *
boot(const char *name, const char *cmdline, unsigned vcpus)
{
	struct boot b = {.cmdline = cmdline, .vcpus = vcpus};
	struct vm *vm = NULL;

	MUST(driver_boot(&driver, name, &b, &vm, e));
	return vm;
}

static inline struct vm *
fork_vm(struct vm *parent, const char *name, unsigned flags)
{
	struct vm *child = NULL;

	MUST(driver_fork(parent, name, flags, &child, NULL, e));
	return child;
}

static inline void
expect(struct vm *vm, const char *text, char *line, size_t cap)
{
	MUST(driver_expect(vm, text, LINE_MS, line, cap, e));
}

/* What the guest says after its generation changed: it is its commit's or fork point's, and knows of
 * no other life than that and this. n: its n-th generation. line: NULL, or what it said. */
static inline void
expect_life(struct vm *vm, unsigned n, const char *disk, char *line)
{
	char want[96], own[LINE];
	uint64_t g;

	line = line ? line : own;
	memcpy(&g, vm->generation, 8);
	/* The line of another generation may lie in the console, from just before. */
	snprintf(want, sizeof(want), ",%016llx", (unsigned long long)g);
	expect(vm, want, line, LINE);
	snprintf(want, sizeof(want), "fork n=%u ", n);
	if (!strstr(line, want))
		fail_msg("%s: it is not its life number %u: %s", vm->name, n, line);
	if (!strstr(line, " memory=ok "))
		fail_msg("%s: memory is not its own: %s", vm->name, line);
	snprintf(want, sizeof(want), " disk=%s ", disk);
	if (!strstr(line, want))
		fail_msg("%s: disk is not %s: %s", vm->name, disk, line);
}

/* The VMM's process ended by itself, not by a signal. */
static inline void
assert_ended_well(struct vm *vm)
{
	MUST(driver_wait_gone(vm, 20000, e));
	if (vm->own_process && (vm->status & 0x7f))
		fail_msg("%s ended by signal %d", vm->name, vm->status & 0x7f);
}

#endif
