/* Huge pages of memory files (common/memfd.h): the kernel's words, and what they mean. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/memfd.h"

#define PAGE 4096
#define MIB (1 << 20)

static void
the_setting_that_holds_is_the_one_in_brackets(void **state)
{
	(void)state;
	assert_true(memfd_setting_is_huge("[always] within_size advise never deny force\n"));
	assert_true(memfd_setting_is_huge("always [within_size] advise never deny force\n"));
	assert_true(memfd_setting_is_huge("always within_size advise never deny [force]\n"));
	assert_false(memfd_setting_is_huge("always within_size [advise] never deny force\n"));
	assert_false(memfd_setting_is_huge("always within_size advise [never] deny force\n"));
	assert_false(memfd_setting_is_huge("always within_size advise never [deny] force\n"));
	assert_false(memfd_setting_is_huge(""));
}

enum { IS_PAGED, IS_HUGE, IS_REFUSED };

/* Where data ends that is one page in a file of holes, on a tmpfs with a setting as the kernel's
 * own has it for memfds. In a child: the mount is nobody else's. */
static int
what_is_there(const char *option)
{
	char dir[] = "/tmp/test_memfd.XXXXXX", path[64];
	const char page[PAGE] = "x";
	int status;
	pid_t pid;

	assert_non_null(mkdtemp(dir));
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		int fd;

		if (unshare(CLONE_NEWNS) < 0 ||
			mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
			mount("none", dir, "tmpfs", 0, option) < 0)
			_exit(IS_REFUSED);
		snprintf(path, sizeof(path), "%s/memory", dir);
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0 || ftruncate(fd, 8 * MIB) < 0 ||
			pwrite(fd, page, PAGE, 5 * PAGE) != PAGE)
			_exit(IS_REFUSED);
		_exit(lseek(fd, 5 * PAGE, SEEK_HOLE) == 6 * PAGE ? IS_PAGED : IS_HUGE);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	rmdir(dir);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void
one_page_written_is_one_page_there_but_of_a_huge_file(void **state)
{
	int paged = what_is_there("huge=never"), advise, huge;

	(void)state;
	if (paged == IS_REFUSED)
		skip(); /* no right to mount, or no huge pages */
	advise = what_is_there("huge=advise");
	huge = what_is_there("huge=always");
	assert_int_equal(paged, IS_PAGED);
	assert_int_equal(advise, IS_PAGED);
	/* A host whose memory is in pieces has none. */
	if (huge != IS_HUGE)
		print_message("# no huge page was to be had\n");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_setting_that_holds_is_the_one_in_brackets),
		cmocka_unit_test(one_page_written_is_one_page_there_but_of_a_huge_file),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
