/*
 * What others do to a VMM: guests that write nonsense into every register, ring and
 * descriptor; messages that are none; a control socket that goes away. The worst that may
 * come of it is the orderly end of that one process, with a sentence.
 */
#include "tests/kvm/kvm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* A few clients that dial the guest while it misbehaves. Whatever they get, they must not
 * stay for ever. */
static void
dial(struct vm *vm, int fds[static 4])
{
	char path[256];

	for (int i = 0; i < 4; i++) {
		fds[i] = -1;
		if (io_unix_connect(driver_path(vm, "vsock.sock", path), SOCK_STREAM,
			    &fds[i], NULL) == 0)
			(void)!write(
				fds[i], "CONNECT 1024\nhello, is anybody there?", 37);
	}
}

static void
hang_up(int fds[static 4])
{
	for (int i = 0; i < 4; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* One seed: true when the guest came to its end, false when the VMM ended it in an
 * orderly way. */
static bool
random_guest(uint64_t seed, unsigned rounds)
{
	char cmdline[64], name[32], log[8192];
	struct boot b = {.cmdline = cmdline};
	struct vmm_stats_answer s;
	struct vm *vm = NULL, *child = NULL;
	struct err why = {0, ""};
	int fds[4], r;
	bool done;

	snprintf(cmdline, sizeof(cmdline), "mode=fuzz seed=%llu rounds=%u",
		(unsigned long long)seed, rounds);
	snprintf(name, sizeof(name), "seed-%llu", (unsigned long long)seed);
	MUST(driver_boot(&driver, name, &b, &vm, e));
	dial(vm, fds);
	r = driver_expect(vm, "fuzz done", LINE_MS, NULL, 0, &why);
	done = r == 0;
	if (r == -ETIMEDOUT) {
		/* The guest may have broken itself; the VMM must not have. */
		if (driver_stats(vm, &s, &why) < 0)
			fail_msg("seed %llu: the VMM hangs: %s", (unsigned long long)seed,
				why.msg);
	} else if (r < 0) {
		assert_ended_well(vm); /* not by a signal */
		if (!vm->got_exiting || !vm->exiting.msg[0])
			fail_msg("seed %llu: it ended without a word; log: %s",
				(unsigned long long)seed,
				driver_log(vm, log, sizeof(log)));
	}
	if (r == 0 || r == -ETIMEDOUT) {
		/* It still answers, and can be forked or says why not. */
		MUST(driver_stats(vm, &s, e));
		r = driver_fork(vm, "after", 0, &child, NULL, &why);
		if (r < 0 && !why.msg[0])
			fail_msg("seed %llu: fork failed without a sentence",
				(unsigned long long)seed);
		assert_true(driver_alive(vm));
		if (child)
			driver_kill(child);
	}
	hang_up(fds);
	driver_kill(vm);
	return done;
}

static void
random_bytes_in_every_register_and_descriptor(void **state)
{
	const char *many = getenv("KVM_FUZZ_SEEDS");
	unsigned seeds = many ? (unsigned)atoi(many) : 8, done = 0;

	NEEDS_KVM(state);
	for (unsigned seed = 1; seed <= seeds; seed++)
		done += random_guest(seed, 1500);
	/* Guests that fall over early would test nothing. */
	print_message("# %u of %u guests came to their end\n", done, seeds);
	assert_true(done * 2 >= seeds);
}

static void
assert_goes_on(struct vm *vm)
{
	struct vmm_stats_answer s;

	expect(vm, "tick ", NULL, 0);
	driver_drop_control(vm);
	MUST(driver_adopt(vm, 10000, e));
	MUST(driver_stats(vm, &s, e));
	expect(vm, "tick ", NULL, 0);
}

/* The VMM closes the connection, which we see, and goes on. */
static void
assert_closes(struct vm *vm, const char *what)
{
	uint64_t deadline = io_now_ns() + 10000000000ull;

	while (!vm->closed && io_now_ns() < deadline)
		driver_pump(vm, 100);
	if (!vm->closed)
		fail_msg("%s: the connection is still open", what);
	assert_goes_on(vm);
}

static void
garbage_on_the_control_socket_closes_it_and_no_more(void **state)
{
	struct vmm_hdr h = {.version = VMM_WIRE_VERSION,
		.type = VMM_STATS,
		.len = sizeof(h),
		.seq = 1};
	char garbage[3000];
	struct vm *vm;
	int null;

	NEEDS_KVM(state);
	vm = boot("patient", "mode=work tick=2000", 1);
	expect(vm, "ready", NULL, 0);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);

	assert_int_equal(driver_send_raw(vm, "x", 1, NULL, 0), 0);
	assert_closes(vm, "a message of one byte");

	h.version = 77;
	assert_int_equal(driver_send_raw(vm, &h, sizeof(h), NULL, 0), 0);
	assert_closes(vm, "an unknown version");
	h.version = VMM_WIRE_VERSION;

	h.type = 999;
	assert_int_equal(driver_send_raw(vm, &h, sizeof(h), NULL, 0), 0);
	assert_closes(vm, "an unknown type");

	h.type = VMM_DONE; /* known, but of the other direction */
	assert_int_equal(driver_send_raw(vm, &h, sizeof(h), NULL, 0), 0);
	assert_closes(vm, "a message of the other direction");

	h.type = VMM_STATS;
	h.len = 4000000;
	assert_int_equal(driver_send_raw(vm, &h, sizeof(h), NULL, 0), 0);
	assert_closes(vm, "a length that lies");
	h.len = sizeof(h);

	assert_int_equal(driver_send_raw(vm, &h, sizeof(h), &null, 1), 0);
	assert_closes(vm, "a descriptor that nobody asked for");

	h.type = VMM_FORK;
	assert_int_equal(driver_send_raw(vm, &h, sizeof(h), NULL, 0), 0);
	assert_closes(vm, "half a fork message");

	memset(garbage, 0xa5, sizeof(garbage));
	assert_int_equal(driver_send_raw(vm, garbage, sizeof(garbage), NULL, 0), 0);
	assert_closes(vm, "3000 bytes of garbage");
	close(null);
}

static void
a_second_boot_message_is_refused(void **state)
{
	struct boot b = {.cmdline = "mode=work"};
	struct vm *vm, *second = NULL;
	struct err why = {0, ""};

	NEEDS_KVM(state);
	vm = boot("once", "mode=work tick=2000", 1);
	expect(vm, "ready", NULL, 0);
	/* The message is good, only late; another VM's folder gives its files. */
	assert_int_equal(driver_start(&driver, "files", &second, &why), 0);
	{
		int own = second->control;

		second->control = vm->control;
		assert_int_equal(driver_send_boot(second, &b, &why), 0);
		second->control = own;
	}
	assert_goes_on(vm);
	driver_kill(second);
}

static void
garbage_before_the_boot_ends_it_in_order(void **state)
{
	struct vm *vm = NULL;

	NEEDS_KVM(state);
	MUST(driver_start(&driver, "early", &vm, e));
	assert_int_equal(driver_send_raw(vm, "garbage", 7, NULL, 0), 0);
	assert_ended_well(vm);
	/* and when nobody ever speaks to it */
	MUST(driver_start(&driver, "unborn", &vm, e));
	driver_drop_control(vm);
	assert_ended_well(vm);
}

static void
a_vmm_without_its_daemon_goes_on_and_is_adopted(void **state)
{
	struct vm *vm, *child;
	char line[512];

	NEEDS_KVM(state);
	vm = boot("orphan", "mode=work tick=2000", 1);
	expect(vm, "ready", NULL, 0);
	child = fork_vm(vm, "orphan-child", 0);
	driver_drop_control(vm);
	driver_drop_control(child);
	expect(vm, "tick ", NULL, 0);
	expect(child, "tick ", NULL, 0);
	for (int i = 0; i < 3; i++) {
		struct ucred cred;
		socklen_t len = sizeof(cred);

		MUST(driver_adopt(vm, 10000, e));
		MUST(driver_adopt(child, 10000, e));
		/* The listener was made by us, so the kernel names us; what counts is
		 * that it answers. */
		assert_int_equal(
			getsockopt(child->control, SOL_SOCKET, SO_PEERCRED, &cred, &len),
			0);
		driver_drop_control(vm);
		driver_drop_control(child);
	}
	MUST(driver_adopt(child, 10000, e));
	/* It forks as before. */
	vm = fork_vm(child, "after", 0);
	expect(vm, "memory=ok", line, sizeof(line));
}

static void
another_user_cannot_adopt_it(void **state)
{
	char path[256];
	struct vm *vm;
	int status;
	pid_t pid;

	NEEDS_KVM(state);
	if (geteuid() != 0) {
		print_message("# only root can become another user\n");
		skip();
	}
	vm = boot("mine", "mode=work tick=2000", 1);
	expect(vm, "ready", NULL, 0);
	driver_drop_control(vm);
	assert_int_equal(chmod(driver.folder, 0755), 0);
	assert_int_equal(chmod(vm->folder, 0755), 0);
	assert_int_equal(chmod(driver_path(vm, "control.sock", path), 0777), 0);
	pid = fork();
	if (pid == 0) {
		struct vmm_hdr h = {.version = VMM_WIRE_VERSION,
			.type = VMM_QUIT,
			.len = sizeof(h),
			.seq = 1};
		struct pollfd p = {.events = POLLIN};
		int fd = -1;
		char c;

		if (setgid(65534) < 0 || setuid(65534) < 0)
			_exit(10);
		if (io_unix_connect(path, SOCK_SEQPACKET, &fd, NULL) < 0)
			_exit(0); /* refused at the door: as good */
		io_send_fds(fd, &h, sizeof(h), NULL, 0);
		p.fd = fd;
		if (poll(&p, 1, 10000) != 1)
			_exit(11); /* neither answered nor closed */
		_exit(recv(fd, &c, 1, 0) > 0 ? 12 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_true(driver_alive(vm));
	MUST(driver_adopt(vm, 10000, e));
	expect(vm, "tick ", NULL, 0);
}

/* One vCPU is in the disk for ever, since the other refills its ring; so would the main
 * thread be, that picks up after a fork or a pause what the vCPU left. */
static void
a_guest_that_keeps_its_ring_full_cannot_hold_the_main_thread(void **state)
{
	struct vmm_stats_answer s;
	struct vm *vm, *child, *grandchild;
	uint64_t before;

	NEEDS_KVM(state);
	vm = boot("flood", "mode=flood", 2);
	expect(vm, "flooding", NULL, 0);
	do
		MUST(driver_stats(vm, &s, e));
	while (s.doorbells == 0);
	child = fork_vm(vm, "child", 0);
	grandchild = fork_vm(child, "grandchild", 0);
	for (int i = 0; i < 3; i++) {
		MUST(driver_stats(vm, &s, e));
		MUST(driver_stats(child, &s, e));
		MUST(driver_stats(grandchild, &s, e));
		MUST(driver_request(child, VMM_PAUSE, NULL, 0, VMM_DONE, 10000, e));
		MUST(driver_request(child, VMM_RESUME, NULL, 0, VMM_DONE, 10000, e));
		MUST(driver_resize(child, 17 + (uint64_t)i, e));
		driver_kill(grandchild);
		grandchild = fork_vm(child, "again", 0);
	}
	/* What was left is taken up again, not dropped. */
	before = s.disk_read_bytes;
	do
		MUST(driver_stats(child, &s, e));
	while (s.disk_read_bytes == before);
	driver_drop_control(vm);
	MUST(driver_adopt(vm, 10000, e));
}

static void
a_log_that_grows_too_long_is_cut_behind_the_seal(void **state)
{
	char path[256], filler[4096];
	struct stat st;
	struct vm *vm;
	int fd;

	NEEDS_KVM(state);
	vm = boot("talks", "mode=work tick=3000", 1);
	expect(vm, "tick ", NULL, 0);
	memset(filler, 'x', sizeof(filler));
	filler[sizeof(filler) - 1] = '\n';
	fd = open(driver_path(vm, "vmm.log", path), O_RDWR | O_APPEND | O_CLOEXEC);
	assert_true(fd >= 0);
	for (int i = 0; i < 300; i++)
		assert_int_equal(write(fd, filler, sizeof(filler)), sizeof(filler));
	/* Its next line is about the connection. */
	driver_drop_control(vm);
	MUST(driver_adopt(vm, 10000, e));
	assert_int_equal(fstat(fd, &st), 0);
	assert_in_range(st.st_size, 1, 128 << 10);
	close(fd);
	expect(vm, "tick ", NULL, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		KVM_TEST(random_bytes_in_every_register_and_descriptor),
		KVM_TEST(garbage_on_the_control_socket_closes_it_and_no_more),
		KVM_TEST(a_second_boot_message_is_refused),
		KVM_TEST(garbage_before_the_boot_ends_it_in_order),
		KVM_TEST(a_vmm_without_its_daemon_goes_on_and_is_adopted),
		KVM_TEST(another_user_cannot_adopt_it),
		KVM_TEST(a_guest_that_keeps_its_ring_full_cannot_hold_the_main_thread),
		KVM_TEST(a_log_that_grows_too_long_is_cut_behind_the_seal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
