/* pando-fill as its peers see it: what it may not do, and what a VMM that lies gets of it. The
 * program itself runs; the test is pandod and the VMMs. */
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/userfaultfd.h>
/* include/uapi/linux/userfaultfd.h of Linux 6.1; these headers may be older. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#include "common/cleanup.h"
#include "common/wire/fill_wire.h"
#include "host/fill/fill_seal.h"
#include "host/store/store_hash.h"
#include "host/vmmproc/launch.h"
#include "tests/unit/store_help.h"

#define PAGES 128u /* the first half is planned, the second half not before plan_rest() */
#define BYTES ((size_t)PAGES * FILL_PAGE)

static char program[512];
static int device = -1, sock, pidfd, log_fd, plan_fd, memory_fd, pack_fd;
static pid_t pid;
static uint64_t n_places;

struct vm {
	uint8_t *mem;
	int sock, uffd;
};

static void
add_place(struct fill_place p)
{
	assert_int_equal(io_pwrite_full(plan_fd, &p, sizeof(p), n_places++ * sizeof(p)), 0);
}

static void
send_to(int fd, const void *m, size_t len, const int *fds, size_t n)
{
	assert_int_equal(io_send_fds(fd, m, len, fds, n), 0);
}

/* Odd pages of a leaf; the others are zero. */
static void
plan_leaf(uint64_t first, bool is_all)
{
	struct fill_plan m = {.hdr = {FILL_VERSION, FILL_PLAN, sizeof(m)}, .is_all = is_all};
	uint8_t page[FILL_PAGE];
	struct store_hash is;

	for (uint64_t i = first + 1; i < first + FILL_LEAF_PAGES; i += 2) {
		struct fill_place p = {.page = i, .offset = i * FILL_PAGE, .stored = FILL_PAGE};

		memset(page, (int)i, sizeof(page));
		hash_of(HASH_PLAIN, page, sizeof(page), &is);
		memcpy(p.hash, is.b, sizeof(p.hash));
		assert_int_equal(io_pwrite_full(pack_fd, page, sizeof(page), p.offset), 0);
		add_place(p);
	}
	add_place((struct fill_place){.page = first, .coding = FILL_LEAF});
	m.places = n_places;
	send_to(sock, &m, sizeof(m), NULL, 0);
}

static void
plan_rest(void)
{
	plan_leaf(FILL_LEAF_PAGES, true);
}

static int
begin(void **state)
{
	const struct fill_begin m = {
		.hdr = {FILL_VERSION, FILL_BEGIN, sizeof(m)}, .pages = PAGES};
	const struct fill_hdr pack = {FILL_VERSION, FILL_PACK, sizeof(pack)};
	int fds[FILL_BEGIN_FD_COUNT];

	(void)state;
	n_places = 0;
	for (unsigned i = 0; i < FILL_BEGIN_FD_COUNT; i++)
		fds[i] = memfd_create("fill", MFD_CLOEXEC);
	log_fd = memfd_create("log", MFD_CLOEXEC);
	pack_fd = memfd_create("pack", MFD_CLOEXEC);
	memory_fd = fds[FILL_BEGIN_FD_MEMORY];
	plan_fd = fds[FILL_BEGIN_FD_PLAN];
	assert_int_equal(ftruncate(memory_fd, BYTES), 0);
	ok(launch_spawn(program, "pando-fill", log_fd, &sock, &pid, &pidfd, &e));
	send_to(sock, &m, sizeof(m), fds, FILL_BEGIN_FD_COUNT);
	send_to(sock, &pack, sizeof(pack), &pack_fd, 1);
	plan_leaf(0, false);
	close(fds[FILL_BEGIN_FD_IMAGE]);
	close(fds[FILL_BEGIN_FD_TOUCHED]);
	return 0;
}

static int
end(void **state)
{
	(void)state;
	kill(pid, SIGKILL); /* our child, not yet waited for */
	waitpid(pid, NULL, 0);
	if (sock >= 0)
		close(sock);
	close(pidfd);
	close(log_fd);
	close(pack_fd);
	close(plan_fd);
	close(memory_fd);
	return 0;
}

/* A VM that pando-fill knows of, with memory of its own that nobody has told it of. */
static struct vm
add_vm(void)
{
	const struct fill_hdr m = {FILL_VERSION, FILL_VM, sizeof(m)};
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
	struct vm vm = {.mem = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE,
				memory_fd, 0)};
	struct uffdio_register reg = {.range = {.start = (uintptr_t)vm.mem, .len = BYTES},
		.mode = UFFDIO_REGISTER_MODE_MISSING};
	int pair[2];

	assert_true(vm.mem != MAP_FAILED);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	send_to(sock, &m, sizeof(m), &pair[1], 1);
	close(pair[1]);
	vm.sock = pair[0];
	vm.uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	assert_true(vm.uffd >= 0);
	assert_int_equal(ioctl(vm.uffd, UFFDIO_API, &api), 0);
	assert_int_equal(ioctl(vm.uffd, UFFDIO_REGISTER, &reg), 0);
	return vm;
}

static void
tell_memory(const struct vm *vm, int fd)
{
	const struct fill_memory m = {.hdr = {FILL_VERSION, FILL_MEMORY, sizeof(m)},
		.host = (uintptr_t)vm->mem,
		.len = BYTES};

	send_to(vm->sock, &m, sizeof(m), &fd, 1);
}

static struct vm
told_vm(void)
{
	struct vm vm = add_vm();

	tell_memory(&vm, vm.uffd);
	return vm;
}

static void
end_vm(struct vm *vm)
{
	close(vm->sock);
	close(vm->uffd);
	munmap(vm->mem, BYTES);
}

/* Waits for it. */
static struct fill_whole
the_end(const struct vm *vm)
{
	struct fill_whole m;

	assert_int_equal(recv(vm->sock, &m, sizeof(m), 0), sizeof(m));
	assert_int_equal(m.hdr.type, FILL_WHOLE);
	return m;
}

static void
is_dropped(const struct vm *vm)
{
	char byte;

	assert_int_equal(recv(vm->sock, &byte, 1, 0), 0);
}

static void
is_whole(const struct vm *vm)
{
	assert_int_equal(the_end(vm).error, 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(vm->mem[(size_t)i * FILL_PAGE + 9], i % 2 ? i : 0);
}

static void
ends(int status)
{
	siginfo_t si;

	assert_int_equal(waitid(P_PID, (id_t)pid, &si, WEXITED | WNOWAIT), 0);
	assert_int_equal(si.si_code, CLD_EXITED);
	assert_int_equal(si.si_status, status);
}

#define NEEDS_DEVICE \
	do { \
		if (device < 0) \
			skip(); \
	} while (0)

/* ---- rights ---- */

static void
a_status_line_is(const char *line)
{
	cleanup_free char *text = NULL;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	ok(io_read_file(path, 65536, &text, NULL, &e));
	if (!strstr(text, line))
		fail_msg("%s has no \"%s\"", path, line);
}

static void
it_fills_sealed_without_rights_and_without_files(void **state)
{
	char path[64];
	struct vm vm;
	struct dirent *d;
	DIR *root;

	(void)state;
	NEEDS_DEVICE;
	vm = told_vm();
	plan_rest();
	is_whole(&vm);
	a_status_line_is("\nNoNewPrivs:\t1\n");
	a_status_line_is("\nSeccomp:\t2\n");
	a_status_line_is("\nCapEff:\t0000000000000000\n");
	a_status_line_is("\nCapPrm:\t0000000000000000\n");
#ifndef PANDO_SAN
	snprintf(path, sizeof(path), "/proc/%d/root", (int)pid);
	root = opendir(path); /* only root may look */
	while (root && (d = readdir(root)))
		if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0)
			fail_msg("it finds /%s", d->d_name);
	if (root)
		closedir(root);
#else
	(void)path, (void)root, (void)d;
#endif
	close(TAKE_FD(sock));
	end_vm(&vm);
	ends(0);
}

static void
call_socket(void)
{
	socket(AF_UNIX, SOCK_STREAM, 0);
}

static void
call_exec(void)
{
	execl("/bin/true", "true", NULL);
}

static void
call_fork(void)
{
	syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static void
call_kill(void)
{
	kill(getppid(), 0);
}

static void
call_ptrace(void)
{
	ptrace(PTRACE_ATTACH, getpid(), NULL, NULL);
}

static void
call_read_other(void)
{
	char byte;
	struct iovec v = {&byte, 1};

	process_vm_readv(1, &v, 1, &v, 1, 0);
}

static void
call_unshare(void)
{
	unshare(CLONE_NEWUSER);
}

static void
call_send_fds(void)
{
	struct msghdr m = {0};

	sendmsg(0, &m, 0);
}

static void
call_uffd(void)
{
	syscall(SYS_userfaultfd, 0);
}

#ifndef PANDO_SAN
static void
call_open(void)
{
	open("/", O_RDONLY);
}

static void
call_uffd_copy(void)
{
	struct uffdio_copy c = {0};

	ioctl(0, UFFDIO_COPY, &c);
}

static void
call_map_code(void)
{
	mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
#endif

static void
call_what_it_needs(void)
{
	struct uffdio_range range = {0};
	char *m = malloc(1 << 20);
	int fd = 0;

	if (m)
		memset(m, 1, 1 << 20);
	free(m);
	(void)ioctl(fd, UFFDIO_WAKE, &range);
	(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL));
}

/* How a child ends that calls it behind the seal. */
static int
status_of(void (*call)(void))
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		close(2);
		if (fill_seal(NULL) < 0)
			_exit(2);
		call();
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

static void
a_call_that_is_not_on_its_list_ends_it(void **state)
{
	static const struct {
		const char *name;
		void (*call)(void);
	} forbidden[] = {
		{"socket", call_socket},
		{"execve", call_exec},
		{"clone of a process", call_fork},
		{"kill", call_kill},
		{"ptrace", call_ptrace},
		{"process_vm_readv", call_read_other},
		{"unshare", call_unshare},
		{"sendmsg", call_send_fds},
		{"userfaultfd", call_uffd},
#ifndef PANDO_SAN /* whose runtime may */
		{"open", call_open},
		{"UFFDIO_COPY", call_uffd_copy},
		{"mmap of code", call_map_code},
#endif
	};
	int status;

	(void)state;
	assert_int_equal(status_of(call_what_it_needs), 0);
	for (size_t i = 0; i < sizeof(forbidden) / sizeof(*forbidden); i++) {
		status = status_of(forbidden[i].call);
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGSYS)
			fail_msg("%s: status 0x%x", forbidden[i].name, (unsigned)status);
	}
}

/* ---- VMMs that lie ---- */

static void
a_vm_that_hands_over_something_else_is_dropped_and_others_are_filled(void **state)
{
	struct vm good, bad[4];
	int other[4], api_less, pipes[2];

	(void)state;
	NEEDS_DEVICE;
	good = told_vm();
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	api_less = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	other[0] = memory_fd; /* always readable */
	other[1] = pipes[0];
	other[2] = api_less;
	other[3] = device;
	for (unsigned i = 0; i < 4; i++) {
		bad[i] = add_vm();
		tell_memory(&bad[i], other[i]);
		is_dropped(&bad[i]);
	}
	plan_rest();
	is_whole(&good);
	for (unsigned i = 0; i < 4; i++)
		end_vm(&bad[i]);
	close(pipes[0]);
	close(pipes[1]);
	close(api_less);
	end_vm(&good);
}

static void
a_vm_that_makes_its_userfaultfd_block_is_dropped_and_others_are_filled(void **state)
{
	struct vm good, bad;
	struct pollfd p;

	(void)state;
	NEEDS_DEVICE;
	good = told_vm();
	bad = told_vm();
	p = (struct pollfd){.fd = bad.sock, .events = POLLIN};
	/* Again and again, as the flag is set when the memory is taken over. Who cannot be
	 * filled is asked of only beside others: one more VM is something to do. */
	do {
		struct vm other = add_vm();

		assert_int_equal(fcntl(bad.uffd, F_SETFL, 0), 0);
		end_vm(&other);
	} while (poll(&p, 1, 1) == 0);
	is_dropped(&bad);
	plan_rest();
	is_whole(&good);
	end_vm(&bad);
	end_vm(&good);
}

struct toucher {
	pthread_t thread;
	volatile uint8_t *at;
	uint8_t value;
};

static void *
touch(void *arg)
{
	struct toucher *t = arg;

	t->value = *t->at;
	return NULL;
}

static void
a_vm_that_waits_without_end_is_dropped_and_others_are_filled(void **state)
{
	struct uffdio_range range, all;
	struct toucher t;
	struct vm good, bad;
	struct pollfd p;

	(void)state;
	NEEDS_DEVICE;
	good = told_vm();
	bad = told_vm();
	t.at = bad.mem + BYTES - 1; /* of which the plan does not say */
	range = (struct uffdio_range){(uintptr_t)bad.mem + BYTES - FILL_PAGE, FILL_PAGE};
	all = (struct uffdio_range){(uintptr_t)bad.mem, BYTES};
	assert_int_equal(pthread_create(&t.thread, NULL, touch, &t), 0);
	p = (struct pollfd){.fd = bad.sock, .events = POLLIN};
	while (poll(&p, 1, 0) == 0) /* woken for nothing, it waits again */
		assert_int_equal(ioctl(bad.uffd, UFFDIO_WAKE, &range) | sched_yield(), 0);
	is_dropped(&bad);
	assert_int_equal(ioctl(bad.uffd, UFFDIO_UNREGISTER, &all), 0);
	pthread_join(t.thread, NULL);
	plan_rest();
	is_whole(&good);
	end_vm(&bad);
	end_vm(&good);
}

/* ---- ends ---- */

static void
a_page_that_the_plan_does_not_know_comes_when_it_does(void **state)
{
	struct fill_want want;
	struct toucher t;
	struct vm vm;

	(void)state;
	NEEDS_DEVICE;
	vm = told_vm();
	t.at = vm.mem + BYTES - 1;
	assert_int_equal(pthread_create(&t.thread, NULL, touch, &t), 0);
	assert_int_equal(recv(sock, &want, sizeof(want), 0), sizeof(want));
	assert_int_equal(want.hdr.type, FILL_WANT);
	assert_int_equal(want.leaf, 1);
	plan_rest();
	pthread_join(t.thread, NULL);
	assert_int_equal(t.value, PAGES - 1);
	is_whole(&vm);
	end_vm(&vm);
}

static void
vms_are_told_when_pandod_ends_before_the_plan_is_whole(void **state)
{
	struct fill_whole m;
	struct vm vm;

	(void)state;
	NEEDS_DEVICE;
	vm = told_vm();
	close(TAKE_FD(sock));
	m = the_end(&vm);
	assert_int_equal(m.error, -EPIPE);
	assert_non_null(strstr(m.msg, "pandod ended before"));
	end_vm(&vm);
	ends(1);
}

static void
damage_is_told_to_all_and_the_process_ends_with_its_vms(void **state)
{
	const uint8_t wrong[FILL_PAGE] = {1};
	struct fill_plan m = {.hdr = {FILL_VERSION, FILL_PLAN, sizeof(m)}, .is_all = 1};
	struct fill_whole whole;
	struct fill_done done;
	struct vm vm;

	(void)state;
	NEEDS_DEVICE;
	vm = told_vm();
	assert_int_equal(io_pwrite_full(pack_fd, wrong, sizeof(wrong), BYTES), 0);
	add_place((struct fill_place){.page = PAGES - 1, .offset = BYTES, .stored = FILL_PAGE});
	m.places = n_places;
	send_to(sock, &m, sizeof(m), NULL, 0);
	whole = the_end(&vm);
	assert_int_equal(whole.error, -EBADMSG);
	assert_non_null(strstr(whole.msg, "damaged in the commit store"));
	assert_int_equal(recv(sock, &done, sizeof(done), 0), sizeof(done));
	assert_int_equal(done.hdr.type, FILL_DONE);
	assert_int_equal(done.error, -EBADMSG);
	close(TAKE_FD(sock));
	end_vm(&vm);
	ends(1);
}

#define T(name) cmocka_unit_test_setup_teardown(name, begin, end)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(it_fills_sealed_without_rights_and_without_files),
		cmocka_unit_test(a_call_that_is_not_on_its_list_ends_it),
		T(a_vm_that_hands_over_something_else_is_dropped_and_others_are_filled),
		T(a_vm_that_makes_its_userfaultfd_block_is_dropped_and_others_are_filled),
		T(a_vm_that_waits_without_end_is_dropped_and_others_are_filled),
		T(a_page_that_the_plan_does_not_know_comes_when_it_does),
		T(vms_are_told_when_pandod_ends_before_the_plan_is_whole),
		T(damage_is_told_to_all_and_the_process_ends_with_its_vms),
	};
	ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 64);

	/* <build>/tests/test_fill_process */
	for (int i = 0; i < 2 && n > 0; i++)
		*strrchr(program, '/') = '\0';
	strcat(program, "/libexec/pando/pando-fill");
	/* As pandod does (host/vmmproc/launch.c). */
	while (open("/dev/null", O_RDWR | O_CLOEXEC) < FILL_CONTROL_FD)
		;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
