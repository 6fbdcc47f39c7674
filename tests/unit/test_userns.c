/* User namespaces that are tried before they are entered. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <sched.h>
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

static int
enter(void)
{
	const uid_t uid = geteuid();
	const gid_t gid = getegid();
	struct err e;

	if (userns_enter(OTHERS, &e) < 0) {
		print_message("# %s\n", e.msg);
		return 1;
	}
	return geteuid() == uid && getegid() == gid ? 0 : 2;
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
}

static int
try_where_maps_are_refused(void)
{
	const uint64_t before = own_namespace();
	struct err e = {0, ""};

	if (unshare(CLONE_NEWNS) < 0 ||
		mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		mount(NULL, "/proc", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
		return 77;
	if (userns_try(OTHERS, &e) != -EROFS)
		return 1;
	print_message("# %s\n", e.msg);
	return !strstr(e.msg, "uid_map") ? 2 : own_namespace() != before ? 3 : 0;
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
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(trying_changes_nothing_and_says_whether_entering_works),
		cmocka_unit_test(
			a_namespace_whose_map_is_refused_is_found_out_without_entering_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
