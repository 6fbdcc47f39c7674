/*
 * How long pandod waits for a VMM: a process that makes progress is waited for beyond its limit,
 * one that stands still is not. The VMM is a process of this test that answers what it is asked,
 * after a time in which it works or sleeps.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "host/vmmproc/process_progress.h"
#include "host/vmmproc/vmmctl.h"

#define LIMIT_MS 700 /* so long may a busy host let nobody run */

static struct vmmctl *ctl;
static pid_t pid;
static struct err e;

/* The VMM: works (or sleeps) for so long after each message, then answers it. */
static void
vmm(int fd, bool works, uint64_t answer_ms)
{
	union {
		struct vmm_hdr hdr;
		char bytes[4096];
	} m;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (recv(fd, &m, sizeof(m), 0) > 0) {
		uint64_t until = io_now_ns() + answer_ms * 1000000u;
		struct vmm_done done = {
			.hdr = {VMM_WIRE_VERSION, VMM_DONE, sizeof(done), m.hdr.seq}};

		while (io_now_ns() < until)
			if (!works)
				usleep(1000000);
		send(fd, &done, sizeof(done), MSG_NOSIGNAL);
	}
}

static void
begin(bool works, uint64_t answer_ms)
{
	int pair[2], pidfd;

	e = (struct err){0};
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	pid = fork();
	if (pid == 0) {
		close(pair[0]);
		vmm(pair[1], works, answer_ms);
		_exit(0);
	}
	close(pair[1]);
	assert_true(pid > 0);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	assert_true(pidfd >= 0);
	assert_int_equal(vmmctl_create(pair[0], &ctl, &e), 0);
	assert_int_equal(vmmctl_set_pidfd(ctl, pidfd), 0);
	close(pidfd);
}

static int
teardown(void **state)
{
	(void)state;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	vmmctl_free(ctl);
	ctl = NULL;
	return 0;
}

static uint64_t
ms_since(uint64_t ns)
{
	return (io_now_ns() - ns) / 1000000u;
}

static void
a_vmm_that_works_longer_than_its_limit_is_waited_for(void **state)
{
	(void)state;
	begin(true, 3 * LIMIT_MS);
	if (vmmctl_command(ctl, VMM_PAUSE, LIMIT_MS, &e) < 0)
		fail_msg("%s", e.msg);
}

static void
a_vmm_that_sleeps_is_given_its_limit_and_no_more(void **state)
{
	uint64_t began;

	(void)state;
	begin(false, 60000);
	began = io_now_ns();
	assert_int_equal(vmmctl_command(ctl, VMM_PAUSE, LIMIT_MS, &e), -ETIMEDOUT);
	assert_true(ms_since(began) >= LIMIT_MS);
	/* Its progress may be that it falls asleep; the ceiling would be ten times its limit. */
	assert_true(ms_since(began) < 6 * LIMIT_MS);
	assert_non_null(strstr(e.msg, "the VMM did not answer within "));
}

static void
a_stopped_vmm_is_given_its_limit_though_it_worked_before(void **state)
{
	uint64_t began;

	(void)state;
	begin(true, 60000);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(waitpid(pid, NULL, WUNTRACED), pid);
	began = io_now_ns();
	assert_int_equal(vmmctl_command(ctl, VMM_PAUSE, LIMIT_MS, &e), -ETIMEDOUT);
	assert_true(ms_since(began) >= LIMIT_MS);
	assert_true(ms_since(began) < 6 * LIMIT_MS);
	assert_non_null(strstr(e.msg, "in which its process stood still"));
}

static void
a_vmm_that_works_for_ever_is_given_up_at_the_ceiling(void **state)
{
	uint64_t began;

	(void)state;
	begin(true, 600000);
	began = io_now_ns();
	assert_int_equal(vmmctl_command(ctl, VMM_PAUSE, LIMIT_MS / 2, &e), -ETIMEDOUT);
	assert_true(ms_since(began) >= LIMIT_MS);
	assert_true(ms_since(began) < 2 * LIMIT_MS * VMMCTL_CEILING);
	assert_non_null(strstr(e.msg, " ms of CPU, the last "));
}

static void
a_look_at_a_vmm_that_works_has_its_limit_only(void **state)
{
	struct vmm_stats_answer a;

	(void)state;
	begin(true, 600000);
	assert_int_equal(vmmctl_stats(ctl, LIMIT_MS, false, &a, NULL, &e), -ETIMEDOUT);
	assert_string_equal(e.msg, "the VMM did not answer within 1 s");
}

static void
a_process_makes_progress_while_it_runs_and_none_while_it_is_stopped(void **state)
{
	struct process_progress p = {0};
	struct vmm_hdr h = {VMM_WIRE_VERSION, VMM_PAUSE, sizeof(h), 1};
	int pidfd;
	bool moved = false;

	(void)state;
	begin(true, 600000);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	assert_true(send(vmmctl_fd(ctl), &h, sizeof(h), 0) > 0);
	assert_false(process_progress_look(pidfd, &p)); /* the first */
	assert_true(p.known);
	for (int i = 0; i < 2000 && !moved; i++) {
		usleep(5000);
		moved = process_progress_look(pidfd, &p);
	}
	assert_true(moved);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(waitpid(pid, NULL, WUNTRACED), pid);
	process_progress_look(pidfd, &p);
	usleep(100000);
	assert_false(process_progress_look(pidfd, &p));
	close(pidfd);
	assert_false(process_progress_look(-1, &p));
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, NULL, teardown)
	const struct CMUnitTest tests[] = {
		TEST(a_vmm_that_works_longer_than_its_limit_is_waited_for),
		TEST(a_vmm_that_sleeps_is_given_its_limit_and_no_more),
		TEST(a_stopped_vmm_is_given_its_limit_though_it_worked_before),
		TEST(a_vmm_that_works_for_ever_is_given_up_at_the_ceiling),
		TEST(a_look_at_a_vmm_that_works_has_its_limit_only),
		TEST(a_process_makes_progress_while_it_runs_and_none_while_it_is_stopped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
