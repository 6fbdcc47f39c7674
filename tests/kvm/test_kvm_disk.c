/*
 * The disk of a VM while its host's disk is slow or full (tests/kvm/slow_disk.h).
 *
 * The small guest writes and flushes for ever, and does not wait for a flush but counts
 * (mode=flush). Segments whose flush is to wait lie on the slow disk; those that a fork makes
 * do not, so that making them does not wait.
 */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "tests/kvm/kvm_test.h"
#include "tests/kvm/slow_disk.h"

#define LINE 2048
#define START_MS 30000

static struct slow_disk slow;

static int
slow_setup(void **state)
{
	struct err e;
	int r = kvm_setup(state);

	if (r < 0 || !*state)
		return r;
	r = slow_disk_make(&slow, driver.folder, &e);
	if (r < 0) {
		print_message("# %s\n", e.msg);
		driver_done(&driver);
		*state = NULL;
		return r == -ENOTSUP ? 0 : r;
	}
	return 0;
}

static int
slow_teardown(void **state)
{
	if (*state) {
		slow_disk_release(&slow);
		for (int i = 0; i < DRIVER_VMS_MAX; i++)
			if (driver.vms[i].used && getenv("KVM_TEST_LOGS")) {
				char log[16384];

				print_message("# log of %s: %s\n", driver.vms[i].name,
					driver_log(&driver.vms[i], log, sizeof(log)));
			}
		slow_disk_done(&slow);
		driver_done(&driver);
	}
	return 0;
}

#define SLOW_TEST(f) cmocka_unit_test_setup_teardown(f, slow_setup, slow_teardown)

/* Whether the guest has said that flush n was answered. */
static bool
is_answered(struct vm *vm, uint64_t n)
{
	static char all[1 << 16];
	char text[64];

	snprintf(text, sizeof(text), "flush %llu status=", (unsigned long long)n);
	driver_console(vm, all, sizeof(all));
	return strstr(all, text) != NULL;
}

/* A guest in the middle of a flush that does not end until the disk is released. Returns the
 * flush's number. */
static uint64_t
flushing(struct vm **ret)
{
	char line[LINE];
	struct vm *vm;
	uint64_t n;

	snprintf(driver.segment_folder, sizeof(driver.segment_folder), "%s", slow.folder);
	vm = boot("flushing", "mode=flush", 1);
	driver.segment_folder[0] = 0;
	expect(vm, "status=0", line, sizeof(line));
	MUST(slow_disk_hold(&slow, e));
	/* One or two may have been on their way. */
	do {
		expect(vm, " begins", line, sizeof(line));
		n = strtoull(strstr(line, "flush ") + 6, NULL, 10);
		usleep(200000);
	} while (is_answered(vm, n));
	*ret = vm;
	return n;
}

static void
expect_flushed(struct vm *vm, uint64_t n)
{
	char want[64];

	snprintf(want, sizeof(want), "flush %llu status=0 ", (unsigned long long)n);
	expect(vm, want, NULL, 0);
}

static void
expect_forked(struct vm *vm, uint64_t n)
{
	char want[64];

	snprintf(want, sizeof(want), "flush %llu forked", (unsigned long long)n);
	expect(vm, want, NULL, 0);
}

static void
assert_still_flushing(struct vm *vm, uint64_t n)
{
	usleep(200000);
	if (is_answered(vm, n))
		fail_msg("%s: flush %llu was answered while the disk waits", vm->name,
			(unsigned long long)n);
}

static void
a_fork_does_not_wait_for_a_flush_and_each_side_answers_its_own(void **state)
{
	struct vm *parent, *child, *grandchild;
	uint64_t n;

	NEEDS_KVM(state);
	n = flushing(&parent);
	child = fork_vm(parent, "child", 0);
	/* Both run while the flush does not end: one vCPU each, which says so. */
	expect_forked(parent, n);
	expect_forked(child, n);
	grandchild = fork_vm(child, "grandchild", 0);
	expect_forked(grandchild, n);
	assert_still_flushing(parent, n);
	assert_still_flushing(child, n);
	assert_still_flushing(grandchild, n);
	slow_disk_release(&slow);
	expect_flushed(parent, n);
	expect_flushed(child, n);
	expect_flushed(grandchild, n);
	/* And the next ones. */
	expect_flushed(parent, n + 1);
	expect_flushed(child, n + 1);
	expect_flushed(grandchild, n + 1);
}

static void
children_of_a_frozen_fork_answer_a_flush_that_was_under_way(void **state)
{
	struct vm *parent, *frozen, *children[3];
	char name[16];
	uint64_t n;

	NEEDS_KVM(state);
	n = flushing(&parent);
	frozen = fork_vm(parent, "frozen", DRIVER_PARK);
	for (unsigned i = 0; i < 3; i++) {
		snprintf(name, sizeof(name), "child-%u", i);
		children[i] = fork_vm(frozen, name, 0);
		expect_forked(children[i], n);
	}
	driver_kill(parent);
	assert_still_flushing(children[0], n);
	slow_disk_release(&slow);
	for (unsigned i = 0; i < 3; i++) {
		expect_flushed(children[i], n);
		expect_flushed(children[i], n + 1);
	}
}

static void
a_vm_from_a_commit_answers_a_flush_that_was_under_way(void **state)
{
	struct vm *parent, *frozen, *again = NULL;
	struct restore r = {0};
	struct commit c;
	uint64_t n;

	NEEDS_KVM(state);
	n = flushing(&parent);
	frozen = fork_vm(parent, "frozen", DRIVER_PARK);
	MUST(driver_take_state(frozen, "commit", &c, e));
	expect_forked(parent, n);
	assert_still_flushing(parent, n);
	slow_disk_release(&slow);
	driver_kill(parent);
	r.commit = &c;
	MUST(driver_start(&driver, "again", &again, e));
	MUST(driver_send_restore(again, &r, e));
	MUST(driver_wait_started(again, START_MS, e));
	expect_flushed(again, n);
	expect_flushed(again, n + 1);
}

static void
a_flush_that_ends_while_the_vm_is_paused_is_answered_when_it_goes_on(void **state)
{
	struct vm *vm;
	uint64_t n;

	NEEDS_KVM(state);
	n = flushing(&vm);
	MUST(driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	slow_disk_release(&slow);
	assert_still_flushing(vm, n);
	MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect_flushed(vm, n);
	expect_flushed(vm, n + 1);
}

/* The thread is in the kernel, and the process cannot be gone before that is over. */
static void
kill_nine_in_the_middle_of_a_flush_leaves_what_was_flushed(void **state)
{
	struct vm *vm, *child;
	uint64_t n;

	NEEDS_KVM(state);
	n = flushing(&vm);
	child = fork_vm(vm, "child", 0);
	expect_forked(child, n);
	kill(vm->pid, SIGKILL);
	kill(child->pid, SIGKILL);
	slow_disk_release(&slow);
	MUST(driver_wait_gone(vm, 20000, e));
	MUST(driver_wait_gone(child, 20000, e));
}

/* Twenty branches of a guest that flushes all the time: each finds the flushes in another
 * state. */
static void
branches_under_a_load_of_flushes_go_on(void **state)
{
	struct vm *parent, *child;
	char line[LINE], name[16];

	NEEDS_KVM(state);
	parent = boot("parent", "mode=flush pages=8 pause=1", 1);
	expect(parent, "status=0", line, sizeof(line));
	for (unsigned i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "child-%u", i);
		child = fork_vm(parent, name, i % 4 == 3 ? DRIVER_PARK : 0);
		if (i % 4 == 3)
			child = fork_vm(child, "of frozen", 0);
		for (unsigned k = 0; k < 3; k++) {
			expect(child, "status=", line, sizeof(line));
			assert_non_null(strstr(line, "status=0 "));
			expect(parent, "status=", line, sizeof(line));
			assert_non_null(strstr(line, "status=0 "));
		}
		driver_kill(child);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		SLOW_TEST(a_fork_does_not_wait_for_a_flush_and_each_side_answers_its_own),
		SLOW_TEST(children_of_a_frozen_fork_answer_a_flush_that_was_under_way),
		SLOW_TEST(a_vm_from_a_commit_answers_a_flush_that_was_under_way),
		SLOW_TEST(a_flush_that_ends_while_the_vm_is_paused_is_answered_when_it_goes_on),
		SLOW_TEST(kill_nine_in_the_middle_of_a_flush_leaves_what_was_flushed),
		KVM_TEST(branches_under_a_load_of_flushes_go_on),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
