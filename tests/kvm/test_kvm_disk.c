/*
 * The disk of a VM while its host's disk is slow or full (tests/kvm/slow_disk.h).
 *
 * The small guest writes and flushes for ever, and does not wait for a flush but counts
 * (mode=flush). Segments whose flush is to wait lie on the slow disk; those that a fork makes
 * do not, so that making them does not wait.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "tests/kvm/kvm_test.h"
#include "tests/kvm/slow_disk.h"

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

/* ---- a full disk ---- */

static char small[160], ballast[200];

static int
small_setup(void **state)
{
	int r = kvm_setup(state);

	if (r < 0 || !*state)
		return r;
	snprintf(small, sizeof(small), "%s/small", driver.folder);
	snprintf(ballast, sizeof(ballast), "%s/ballast", small);
	if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || mkdir(small, 0700) < 0 ||
		mount("none", small, "tmpfs", 0, "size=8m,mode=0700") < 0) {
		print_message("# only root may mount a file system\n");
		driver_done(&driver);
		*state = NULL;
	}
	return 0;
}

static int
small_teardown(void **state)
{
	if (*state)
		umount2(small, MNT_DETACH);
	return kvm_teardown(state);
}

#define SMALL_TEST(f) cmocka_unit_test_setup_teardown(f, small_setup, small_teardown)

static void
fill_small(void)
{
	static const char zeroes[4096];
	int fd = open(ballast, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	while (write(fd, zeroes, sizeof(zeroes)) > 0)
		;
	close(fd);
}

/* A guest that writes more than there is room for, and stands still. */
static struct vm *
full(void)
{
	struct vmm_stats_answer s;
	struct vm *vm;

	fill_small();
	assert_int_equal(truncate(ballast, 7 << 20), 0);
	snprintf(driver.segment_folder, sizeof(driver.segment_folder), "%s", small);
	vm = boot("full", "mode=flush pages=40", 1);
	driver.segment_folder[0] = 0;
	MUST(driver_wait_disk_full(vm, true, LINE_MS, e));
	assert_int_equal(vm->disk_full.error, -ENOSPC);
	assert_non_null(strstr(vm->disk_full.msg, "make room"));
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.paused, VMM_PAUSED_DISK_FULL);
	return vm;
}

static void
assert_no_write_failed(struct vm *vm)
{
	static char all[1 << 16];

	driver_console(vm, all, sizeof(all));
	assert_null(strstr(all, "failed"));
}

static void
make_room(void)
{
	assert_int_equal(truncate(ballast, 0), 0);
}

static void
a_full_disk_pauses_the_vm_and_with_room_it_goes_on_by_itself(void **state)
{
	struct vmm_stats_answer s;
	char log[16384];
	uint64_t said;
	struct vm *vm;

	NEEDS_KVM(state);
	vm = full();
	said = driver_console_written(vm);
	usleep(300000);
	assert_true(driver_console_written(vm) == said);
	assert_non_null(strstr(driver_log(vm, log, sizeof(log)), "no room"));
	make_room();
	MUST(driver_wait_disk_full(vm, false, LINE_MS, e));
	for (unsigned i = 0; i < 20; i++)
		expect(vm, "status=0", NULL, 0);
	assert_no_write_failed(vm);
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.paused, 0);
}

static void
resuming_a_vm_with_a_full_disk_tries_at_once(void **state)
{
	struct vm *vm;

	NEEDS_KVM(state);
	vm = full();
	for (unsigned i = 0; i < 3; i++) {
		MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
		MUST(driver_wait_disk_full(vm, true, LINE_MS, e));
	}
	make_room();
	MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect(vm, "status=0", NULL, 0);
	assert_no_write_failed(vm);
}

static void
a_vm_with_a_full_disk_that_is_paused_waits_for_its_resume(void **state)
{
	struct vmm_stats_answer s;
	uint64_t said;
	struct vm *vm;

	NEEDS_KVM(state);
	vm = full();
	MUST(driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	said = driver_console_written(vm);
	make_room();
	usleep(1500000);
	assert_true(driver_console_written(vm) == said);
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.paused, 1);
	MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect(vm, "status=0", NULL, 0);
	assert_no_write_failed(vm);
}

static void
branches_of_a_vm_with_a_full_disk_run_where_there_is_room(void **state)
{
	struct vm *vm, *roomy, *full_too, *frozen, *of_frozen;
	uint64_t said;

	NEEDS_KVM(state);
	vm = full();
	said = driver_console_written(vm);
	roomy = fork_vm(vm, "roomy", 0);
	expect(roomy, "status=0", NULL, 0);
	snprintf(driver.segment_folder, sizeof(driver.segment_folder), "%s", small);
	full_too = fork_vm(vm, "full too", 0);
	MUST(driver_wait_disk_full(full_too, true, LINE_MS, e));
	frozen = fork_vm(vm, "frozen", DRIVER_PARK);
	driver.segment_folder[0] = 0;
	of_frozen = fork_vm(frozen, "of frozen", 0);
	expect(of_frozen, "status=0", NULL, 0);
	assert_true(driver_console_written(vm) == said);
	make_room();
	expect(vm, "status=0", NULL, 0);
	expect(full_too, "status=0", NULL, 0);
	assert_no_write_failed(vm);
	assert_no_write_failed(roomy);
	assert_no_write_failed(full_too);
	assert_no_write_failed(of_frozen);
}

static void
a_vm_with_a_full_disk_says_so_again_to_who_adopts_it(void **state)
{
	struct vm *vm;

	NEEDS_KVM(state);
	vm = full();
	driver_drop_control(vm);
	MUST(driver_adopt(vm, 10000, e));
	MUST(driver_wait_disk_full(vm, true, LINE_MS, e));
	make_room();
	MUST(driver_wait_disk_full(vm, false, LINE_MS, e));
	expect(vm, "status=0", NULL, 0);
}

/* ---- limits ---- */

/* Never more than what was earned since; how much less a busy host makes of it is its own
 * affair. */
static void
assert_within_limit(struct vm *vm, uint64_t per_s, unsigned flushes)
{
	const uint64_t burst = per_s / 5, began_ns = io_now_ns();
	struct vmm_stats_answer before, after;

	MUST(driver_stats(vm, &before, e));
	vm->console_read = driver_console_written(vm);
	for (unsigned i = 0; i < flushes; i++)
		expect(vm, "status=0", NULL, 0);
	MUST(driver_stats(vm, &after, e));
	assert_true(after.disk_write_bytes > before.disk_write_bytes);
	assert_true(after.disk_write_bytes - before.disk_write_bytes <=
		    burst + (io_now_ns() - began_ns) / 1000 * per_s / 1000000 + 65536);
}

static void
a_limit_holds_in_the_vm_and_in_its_branches_and_changes_live(void **state)
{
	struct vm *vm, *child, *frozen;

	NEEDS_KVM(state);
	vm = boot("limited", "mode=flush pages=16 pause=0", 1);
	expect(vm, "status=0", NULL, 0);
	MUST(driver_limit_disk(vm, 256 << 10, 0, e));
	assert_within_limit(vm, 256 << 10, 4);
	child = fork_vm(vm, "child", 0);
	assert_within_limit(child, 256 << 10, 4);
	frozen = fork_vm(child, "frozen", DRIVER_PARK);
	driver_kill(child);
	child = fork_vm(frozen, "of frozen", 0);
	assert_within_limit(child, 256 << 10, 3);
	/* 16 blocks and a flush each time. */
	MUST(driver_limit_disk(vm, 0, 40, e));
	assert_within_limit(vm, 40 * 4096, 3);
	MUST(driver_limit_disk(vm, 0, 0, e));
	for (unsigned i = 0; i < 20; i++)
		expect(vm, "status=0", NULL, 0);
	assert_int_equal(driver_limit_disk(vm, 1000, 0, &(struct err){0}), -EINVAL);
	/* Paused in the middle of a wait, and gone on. */
	MUST(driver_limit_disk(vm, 0, 10, e));
	expect(vm, " begins", NULL, 0);
	MUST(driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect(vm, "status=0", NULL, 0);
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
		SMALL_TEST(a_full_disk_pauses_the_vm_and_with_room_it_goes_on_by_itself),
		SMALL_TEST(resuming_a_vm_with_a_full_disk_tries_at_once),
		SMALL_TEST(a_vm_with_a_full_disk_that_is_paused_waits_for_its_resume),
		SMALL_TEST(branches_of_a_vm_with_a_full_disk_run_where_there_is_room),
		SMALL_TEST(a_vm_with_a_full_disk_says_so_again_to_who_adopts_it),
		KVM_TEST(a_limit_holds_in_the_vm_and_in_its_branches_and_changes_live),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
