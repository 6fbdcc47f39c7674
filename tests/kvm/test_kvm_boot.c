/* One VM: boots, prints, its devices work, it ends the way it says. */
#include "tests/kvm/kvm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"

static void
a_small_kernel_boots_and_prints(void **state)
{
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot("hello", "mode=hello", 1);
	expect(vm, "hello from the small guest: mode=hello", NULL, 0);
	assert_false(vm->started.parked);
	assert_true(vm->started.setup_ns > 0);
}

static void
a_long_command_line_arrives_whole(void **state)
{
	char cmdline[2000], line[2200];
	struct vm *vm;

	NEEDS_KVM(state);
	memset(cmdline, 'x', sizeof(cmdline));
	memcpy(cmdline, "mode=hello ", 11);
	memcpy(cmdline + sizeof(cmdline) - 5, " end", 5);
	vm = boot("long", cmdline, 1);
	expect(vm, " end", line, sizeof(line));
	assert_non_null(strstr(line, cmdline));
}

static void
write_file(const char *path, const void *bytes, size_t len)
{
	MUST(io_write_file_atomic(path, bytes, len, 0600, e));
}

static void
assert_kernel_is_refused(const char *path)
{
	struct boot b = {.cmdline = "mode=hello", .kernel = path};
	struct err e = {0, ""};
	struct vm *vm = NULL;

	assert_int_equal(driver_start(&driver, "bad", &vm, &e), 0);
	assert_int_equal(driver_send_boot(vm, &b, &e), 0);
	if (driver_wait_started(vm, BOOT_MS, &e) == 0)
		fail_msg("%s was booted", path);
	if (!vm->got_started || strncmp(e.msg, "kernel ", 7) != 0)
		fail_msg("no sentence about the kernel: %s", e.msg);
	assert_ended_well(vm);
	driver_kill(vm);
}

static void
a_kernel_that_is_no_kernel_is_refused_with_a_sentence(void **state)
{
	cleanup_free char *good = NULL, *bad = NULL;
	char path[256];
	size_t len;

	NEEDS_KVM(state);
	snprintf(path, sizeof(path), "%s/kernel", driver.folder);
	MUST(io_read_file(driver.guest_path, 1 << 20, &good, &len, e));
	bad = malloc(len);
	assert_non_null(bad);

	write_file(path, "", 0);
	assert_kernel_is_refused(path);
	write_file(path, "#!/bin/sh\necho I am no kernel\n", 30);
	assert_kernel_is_refused(path);
	memset(bad, 0, len);
	write_file(path, bad, len);
	assert_kernel_is_refused(path);
	assert_kernel_is_refused(
		"/proc/self/exe"); /* no regular bzImage: an ELF program */

	memcpy(bad, good, len);
	memcpy(bad + 0x202, "HdrX", 4);
	write_file(path, bad, len);
	assert_kernel_is_refused(path);

	memcpy(bad, good, len);
	bad[0x206] = 0x01; /* protocol 2.01 */
	write_file(path, bad, len);
	assert_kernel_is_refused(path);

	memcpy(bad, good, len);
	bad[0x236] = 0; /* no 64-bit entry */
	write_file(path, bad, len);
	assert_kernel_is_refused(path);

	memcpy(bad, good, len);
	bad[0x1f1] = (char)255; /* its setup part alone is longer than the file */
	write_file(path, bad, len);
	assert_kernel_is_refused(path);

	memcpy(bad, good, len);
	memset(bad + 0x260, 0xff, 4); /* wants 4 GiB to unpack itself */
	write_file(path, bad, len);
	assert_kernel_is_refused(path);

	/* cut short, at several places */
	for (size_t cut = 1; cut < 4; cut++) {
		write_file(path, good, len / 4 * cut);
		assert_kernel_is_refused(path);
	}
}

static void
absurd_sizes_in_the_boot_message_are_refused(void **state)
{
	static const struct boot wrong[] = {
		{.cmdline = "", .mem_mib = 1},
		{.cmdline = "", .mem_mib = 1ull << 40},
		{.cmdline = "", .mem_mib = UINT64_MAX},
		{.cmdline = "", .vcpus = 9},
		{.cmdline = "", .vcpus = 0xffffffff},
		{.cmdline = "", .disk_mib = UINT64_MAX},
	};

	NEEDS_KVM(state);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		struct err e = {0, ""};
		struct vm *vm = NULL;
		int r;

		assert_int_equal(driver_start(&driver, "absurd", &vm, &e), 0);
		assert_int_equal(driver_send_boot(vm, &wrong[i], &e), 0);
		r = driver_wait_started(vm, BOOT_MS, &e);
		if (r == 0)
			fail_msg("case %zu was booted", i);
		if (r == -ETIMEDOUT)
			fail_msg("case %zu: no answer", i);
		assert_true(e.msg[0]);
		assert_ended_well(vm);
		driver_kill(vm);
	}
}

static void
a_second_cpu_starts(void **state)
{
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot("two", "mode=work cpus=2", 2);
	expect(vm, "cpu1 up", NULL, 0);
	expect(vm, "ready", NULL, 0);
}

static void
the_disk_reads_writes_zeroes_and_refuses(void **state)
{
	char line[256];
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot("disk", "mode=disk", 1);
	expect(vm, "disk ", line, sizeof(line));
	assert_string_equal(line, "disk ok");
}

static void
a_base_image_shows_through_and_is_never_written(void **state)
{
	struct boot b = {.cmdline = "mode=work disk=1"};
	cleanup_free char *before = NULL, *after = NULL;
	char path[256], line[512];
	struct vm *vm = NULL;
	size_t len;

	NEEDS_KVM(state);
	snprintf(path, sizeof(path), "%s/base", driver.folder);
	before = malloc(1 << 20);
	assert_non_null(before);
	memset(before, 0x77, 1 << 20);
	write_file(path, before, 1 << 20);
	assert_int_equal(chmod(path, 0400), 0);
	b.base = path;
	MUST(driver_boot(&driver, "base", &b, &vm, e));
	expect(vm, "ready", line, sizeof(line));
	fork_vm(vm, "branch", 0);
	expect(vm, "fork n=2", line, sizeof(line));
	assert_non_null(strstr(line, " disk=ok "));
	MUST(io_read_file(path, 2 << 20, &after, &len, e));
	assert_int_equal(len, 1 << 20);
	assert_memory_equal(before, after, 1 << 20);
}

static void
power_off_reboot_and_panic_are_told_apart(void **state)
{
	struct vm *off, *again, *panics;

	NEEDS_KVM(state);
	off = boot("off", "mode=off", 1);
	assert_ended_well(off);
	assert_true(off->got_exiting);
	assert_int_equal(off->exiting.reason, VMM_EXIT_POWER_OFF);
	assert_int_equal(WEXITSTATUS(off->status), 0);
	again = boot("again", "mode=reset", 1);
	assert_ended_well(again);
	assert_true(again->got_exiting);
	assert_int_equal(again->exiting.reason, VMM_EXIT_RESET);
	panics = boot("panics", "mode=panic", 1);
	assert_ended_well(panics);
	assert_true(panics->got_exiting);
	assert_int_equal(panics->exiting.reason, VMM_EXIT_PANIC);
	assert_string_equal(panics->exiting.msg,
		"Kernel panic - not syncing: Attempted to kill init!");
}

static void
a_triple_fault_ends_with_a_sentence(void **state)
{
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot("triple", "mode=triple", 1);
	expect(vm, "falling", NULL, 0);
	assert_ended_well(vm);
	assert_true(vm->got_exiting);
	assert_true(vm->exiting.reason == VMM_EXIT_GUEST_FAULT ||
		    vm->exiting.reason == VMM_EXIT_RESET);
	assert_true(vm->exiting.msg[0]);
}

static void
quit_ends_it_at_once(void **state)
{
	struct vmm_hdr quit = {.version = VMM_WIRE_VERSION,
		.type = VMM_QUIT,
		.len = sizeof(quit),
		.seq = 99};
	struct vm *vm;

	NEEDS_KVM(state);
	vm = boot("quit", "mode=work", 1);
	expect(vm, "ready", NULL, 0);
	assert_int_equal(driver_send_raw(vm, &quit, sizeof(quit), NULL, 0), 0);
	assert_ended_well(vm);
	assert_int_equal(WEXITSTATUS(vm->status), 0);
}

static void
pause_stops_the_guest_and_resume_goes_on(void **state)
{
	struct vmm_stats_answer s;
	struct vm *vm;
	uint64_t then;

	NEEDS_KVM(state);
	vm = boot("pause", "mode=work tick=1000", 1);
	expect(vm, "tick 2000", NULL, 0);
	MUST(driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
	then = driver_console_written(vm);
	usleep(300000);
	assert_true(driver_console_written(vm) == then);
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.paused, 1);
	MUST(driver_request(vm, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
	expect(vm, "tick", NULL, 0);
	MUST(driver_stats(vm, &s, e));
	assert_int_equal(s.paused, 0);
}

static void
stats_tell_what_the_guest_did(void **state)
{
	struct boot b = {.cmdline = "mode=work disk=1 tick=1000"};
	struct vm *vm = NULL;
	struct vmm_stats_answer s;

	NEEDS_KVM(state);
	MUST(driver_boot(&driver, "stats", &b, &vm, e));
	expect(vm, "tick", NULL, 0);
	MUST(driver_stats(vm, &s, e));
	assert_true(s.uptime_ns > 0 && s.vcpu_exits > 10);
	assert_true(s.disk_write_bytes >= 4096 && s.disk_read_bytes >= 4096 &&
		    s.disk_segment_bytes >= 4096);
	assert_true(s.doorbells >= 3);
	MUST(driver_request(vm, VMM_POWER_BUTTON, NULL, 0, VMM_DONE, 10000, e));
}

static void
a_status_line_is(pid_t pid, const char *line)
{
	cleanup_free char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	MUST(io_read_file(path, 65536, &text, NULL, e));
	if (!strstr(text, line))
		fail_msg("%s has no \"%s\"", path, line);
}

static void
the_guest_runs_behind_a_seal(void **state)
{
	struct vm *vm, *child;

	NEEDS_KVM(state);
	vm = boot("sealed", "mode=work", 1);
	expect(vm, "ready", NULL, 0);
	a_status_line_is(vm->pid, "\nNoNewPrivs:\t1\n");
	a_status_line_is(vm->pid, "\nSeccomp:\t2\n");
	child = fork_vm(vm, "sealed-child", 0);
	a_status_line_is(child->pid, "\nNoNewPrivs:\t1\n");
	a_status_line_is(child->pid, "\nSeccomp:\t2\n");
}

/* In a process of its own, where unshare() succeeds and the map of user ids is refused: as
 * root or as nobody; 0, or the step that failed. */
static int
boot_without_a_map(bool as_nobody)
{
	struct boot b = {.cmdline = "mode=work"};
	struct vm *vm = NULL, *child = NULL;
	char log[4096];
	struct err e;

	if (unshare(CLONE_NEWNS) < 0 ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
		return 1;
	if (as_nobody && (chown(driver.folder, 65534, 65534) < 0 ||
				 setresgid(65534, 65534, 65534) < 0 ||
				 setresuid(65534, 65534, 65534) < 0))
		return 2;
	if (driver_boot(&driver, "first", &b, &vm, &e) < 0 ||
		driver_expect(vm, "ready", LINE_MS, NULL, 0, &e) < 0 ||
		driver_fork(vm, "child", 0, &child, NULL, &e) < 0 ||
		driver_expect(child, "memory=ok", LINE_MS, NULL, 0, &e) < 0) {
		fprintf(stderr, "# %s\n", e.msg);
		return 3;
	}
	driver_log(vm, log, sizeof(log));
	return strstr(log, as_nobody ? "no namespaces" : "no user namespace") &&
			       strstr(log, "uid_map")
		       ? 0
		       : 4;
}

static void
a_host_that_refuses_the_map_of_a_user_namespace_runs_vms(void **state)
{
	NEEDS_KVM(state);
	if (getuid() != 0)
		skip(); /* /proc is not ours to change */
	for (int as_nobody = 0; as_nobody < 2; as_nobody++) {
		int status = -1;
		pid_t pid = fork();

		if (pid == 0) {
			int r = boot_without_a_map(as_nobody);

			for (int i = 0; i < DRIVER_VMS_MAX; i++)
				if (driver.vms[i].used)
					driver_kill(&driver.vms[i]);
			_exit(r);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

static void
the_probe_says_what_this_kvm_can_run(void **state)
{
	cleanup_json struct json *j = NULL;
	char text[4096], kvm[16], detail[512], command[4200];
	size_t n;
	FILE *f;

	NEEDS_KVM(state);
	snprintf(command, sizeof(command), "'%s' --probe", driver.vmm_path);
	f = popen(command, "r");
	assert_non_null(f);
	n = fread(text, 1, sizeof(text), f);
	assert_int_equal(pclose(f), 0);
	MUST(json_parse(text, n, 256, &j, e));
	assert_int_equal(json_str(j, json_get(j, 0, "kvm"), kvm, sizeof(kvm)), 0);
	assert_true(strcmp(kvm, "linux") == 0 || strcmp(kvm, "small") == 0);
	assert_int_equal(
		json_str(j, json_get(j, 0, "detail"), detail, sizeof(detail)), 0);
	assert_true(strlen(detail) > 10);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(a_small_kernel_boots_and_prints),
		KVM_TEST(a_long_command_line_arrives_whole),
		KVM_TEST(a_kernel_that_is_no_kernel_is_refused_with_a_sentence),
		KVM_TEST(absurd_sizes_in_the_boot_message_are_refused),
		KVM_TEST(a_second_cpu_starts),
		KVM_TEST(the_disk_reads_writes_zeroes_and_refuses),
		KVM_TEST(a_base_image_shows_through_and_is_never_written),
		KVM_TEST(power_off_reboot_and_panic_are_told_apart),
		KVM_TEST(a_triple_fault_ends_with_a_sentence),
		KVM_TEST(quit_ends_it_at_once),
		KVM_TEST(pause_stops_the_guest_and_resume_goes_on),
		KVM_TEST(stats_tell_what_the_guest_did),
		KVM_TEST(the_guest_runs_behind_a_seal),
		KVM_TEST(a_host_that_refuses_the_map_of_a_user_namespace_runs_vms),
		KVM_TEST(the_probe_says_what_this_kvm_can_run),
	};

	cmocka_set_test_filter(getenv("KVM_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
