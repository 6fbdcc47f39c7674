/* User namespaces that are tried before they are entered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/userns.h"

#define OTHERS (CLONE_NEWNET | CLONE_NEWNS)

static uint64_t
own_namespace(void)
{
	struct stat st;

	assert_int_equal(stat("/proc/self/ns/user", &st), 0);
	return st.st_ino;
}

/* What f returns in a process of its own. */
static int
apart(int (*f)(void))
{
	int status = -1;
	pid_t pid = fork();

	if (pid == 0)
		_exit(f());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* The descriptor that would be opened next. */
static int
next_descriptor(void)
{
	int fd = dup(0);

	close(fd);
	return fd;
}

static int
enter(void)
{
	const uint64_t before = own_namespace();
	const uid_t uid = geteuid();
	const gid_t gid = getegid();
	const int fd = next_descriptor();
	struct err e;

	if (userns_enter(&e) < 0) {
		print_message("# %s\n", e.msg);
		return own_namespace() == before ? 1 : 2;
	}
	if (own_namespace() == before || geteuid() != uid || getegid() != gid)
		return 3;
	if (waitpid(-1, NULL, WNOHANG | __WALL) != -1 || next_descriptor() != fd)
		return 4; /* something of the child is left */
	return unshare(OTHERS) == 0 ? 0 : 5;
}

/* As a VMM does. */
static int
enter_where_children_are_not_waited_for(void)
{
	signal(SIGCHLD, SIG_IGN);
	return enter();
}

static void
trying_changes_nothing_and_says_whether_entering_works(void **state)
{
	const uint64_t before = own_namespace();
	struct err e;
	int r;

	(void)state;
	r = userns_try(OTHERS, &e);
	assert_true(own_namespace() == before);
	assert_int_equal(apart(enter), r == 0 ? 0 : 1);
	assert_int_equal(apart(enter_where_children_are_not_waited_for), r == 0 ? 0 : 1);
}

/* 0 if f fails with this code, the sentence says why and nothing is changed. */
static int
refused(int (*f)(struct err *), int code)
{
	const uint64_t before = own_namespace();
	const int fd = next_descriptor();
	struct err e = {0, ""};

	if (f(&e) != code)
		return 1;
	print_message("# %s\n", e.msg);
	if (code == -EROFS && !strstr(e.msg, "uid_map"))
		return 2;
	if (own_namespace() != before)
		return 3;
	return waitpid(-1, NULL, WNOHANG | __WALL) == -1 && next_descriptor() == fd ? 0
										    : 4;
}

static int
try_others(struct err *e)
{
	return userns_try(OTHERS, e);
}

static int
refuse_maps(void)
{
	if (unshare(CLONE_NEWNS) < 0 ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
		return 77;
	return 0;
}

static int
try_where_maps_are_refused(void)
{
	int r = refuse_maps();

	return r ? r : refused(try_others, -EROFS);
}

static int
enter_where_maps_are_refused(void)
{
	int r = refuse_maps();

	return r ? r : refused(userns_enter, -EROFS);
}

static void
a_namespace_whose_map_is_refused_is_found_out_without_entering_it(void **state)
{
	int r;

	(void)state;
	r = apart(try_where_maps_are_refused);
	if (r == 77)
		skip(); /* /proc is not ours to change */
	assert_int_equal(r, 0);
	assert_int_equal(apart(enter_where_maps_are_refused), 0);
}

/* In a new user namespace, that may hold no other one. */
static int
enter_where_no_more_are_allowed(void)
{
	FILE *f;

	if (enter() != 0)
		return 77;
	f = fopen("/proc/sys/user/max_user_namespaces", "w");
	if (!f || fputs("0\n", f) < 0 || fclose(f) != 0)
		return 77;
	return refused(userns_enter, -ENOSPC);
}

static void
where_no_namespace_can_be_made_the_caller_stays_where_it_is(void **state)
{
	int r;

	(void)state;
	r = apart(enter_where_no_more_are_allowed);
	if (r == 77)
		skip();
	assert_int_equal(r, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(trying_changes_nothing_and_says_whether_entering_works),
		cmocka_unit_test(
			a_namespace_whose_map_is_refused_is_found_out_without_entering_it),
		cmocka_unit_test(
			where_no_namespace_can_be_made_the_caller_stays_where_it_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
