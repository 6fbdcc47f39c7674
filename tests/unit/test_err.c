#include "common/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

static void
set_gives_the_code_back_and_keeps_the_sentence(void **state)
{
	struct err e;

	(void)state;
	assert_int_equal(err_set(&e, -ENOENT, "no VM named \"%s\"", "x"), -ENOENT);
	assert_int_equal(e.code, -ENOENT);
	assert_string_equal(e.msg, "no VM named \"x\"");
}

static void
sys_ends_with_what_the_system_says(void **state)
{
	struct err e;

	(void)state;
	assert_int_equal(err_sys(&e, -EACCES, "open %s", "/dev/kvm"), -EACCES);
	assert_string_equal(e.msg, "open /dev/kvm: Permission denied");
}

static void
wrap_puts_the_context_in_front(void **state)
{
	struct err e;

	(void)state;
	err_set(&e, -EBUSY, "alias \"a\" is taken");
	assert_int_equal(err_wrap(&e, -EIO, "branch %d of %d", 3, 8), -EBUSY);
	assert_int_equal(e.code, -EBUSY);
	assert_string_equal(e.msg, "branch 3 of 8: alias \"a\" is taken");
	e.code = 0;
	assert_int_equal(err_wrap(&e, -EIO, "x"), -EIO);
}

static void
nobody_has_to_listen(void **state)
{
	(void)state;
	assert_int_equal(err_set(NULL, -EINVAL, "x"), -EINVAL);
	assert_int_equal(err_sys(NULL, -EINVAL, "x"), -EINVAL);
	assert_int_equal(err_wrap(NULL, -EIO, "x"), -EIO);
}

static void
a_long_sentence_is_cut_not_overrun(void **state)
{
	char longer[2000];
	struct {
		struct err e;
		char guard[16];
	} s;

	(void)state;
	memset(longer, 'a', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = 0;
	memset(s.guard, 'G', sizeof(s.guard));
	err_set(&s.e, -EIO, "%s", longer);
	assert_int_equal(strlen(s.e.msg), sizeof(s.e.msg) - 1);
	err_sys(&s.e, -EIO, "%s", longer);
	assert_int_equal(strlen(s.e.msg), sizeof(s.e.msg) - 1);
	err_wrap(&s.e, -EIO, "%s", longer);
	err_wrap(&s.e, -EIO, "short");
	assert_int_equal(strlen(s.e.msg), sizeof(s.e.msg) - 1);
	assert_memory_equal(s.e.msg, "short: aaa", 10);
	for (size_t i = 0; i < sizeof(s.guard); i++)
		assert_int_equal(s.guard[i], 'G');
}

static void
exit_codes_are_the_contract_with_scripts(void **state)
{
	static const struct {
		int code, exit;
	} table[] = {
		{0, 0},
		{-EIO, 1},
		{-ENOMEM, 1},
		{-EINVAL, 2},
		{-E2BIG, 2},
		{-ERANGE, 2},
		{-ENAMETOOLONG, 2},
		{-ENOENT, 3},
		{-ESRCH, 3},
		{-EEXIST, 4},
		{-EBUSY, 4},
		{-ENOTEMPTY, 4},
		{-EPERM, 5},
		{-EACCES, 5},
		{-ETIMEDOUT, 6},
		{-ECANCELED, 7},
		{-EINTR, 7},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
		assert_int_equal(err_exit_code(table[i].code), table[i].exit);
	assert_int_equal(EXIT_HOST_SIDE, 125);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(set_gives_the_code_back_and_keeps_the_sentence),
		cmocka_unit_test(sys_ends_with_what_the_system_says),
		cmocka_unit_test(wrap_puts_the_context_in_front),
		cmocka_unit_test(nobody_has_to_listen),
		cmocka_unit_test(a_long_sentence_is_cut_not_overrun),
		cmocka_unit_test(exit_codes_are_the_contract_with_scripts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
