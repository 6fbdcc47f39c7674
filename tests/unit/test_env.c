/*
 * Environment variables: what may be one, and the files they lie in, read back as each of
 * those who read them does.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/env.h"
#include "common/io.h"

/* Values that all readers of /etc/environment take alike, and those that they do not. */
static const char *const carried[] = {"PLAIN=plain", "EMPTY=", "BLANKS= two  blanks ",
	"TAB=a\tb", "DOLLAR=$HOME ${X} $(id)", "BACKTICK=`id`", "DOUBLE=say \"yes\"",
	"DOUBLE_END=\"", "SINGLE=it's", "SINGLE_ENDS='", "SINGLES='a' 'b'",
	"BACKSLASH=a\\b\\\\c\\", "UTF8=Žluťoučký kůň 🐎", "EQUALS=a=b=c", "SEMI=a;b&c|d",
	"TILDE=~/x", "EXCLAIM=!!", "COMMA=a,{b,c}", "PERCENT=%n%%", "SQUARE=[a-z]*?",
	"EXPORT=export X=1"};
static const char *const held_back[] = {"LINES=one\ntwo\n", "HASH=a#b", "HASH_FIRST=#",
	"BOTH=it's \"$x\"", "BOTH2='`\\", "INJECT=x\nPATH=/evil",
	"INJECT2=x'\nPATH='/evil"};

static struct err e;

static void
all(struct env *env)
{
	for (size_t i = 0; i < sizeof(carried) / sizeof(carried[0]); i++) {
		assert_int_equal(env_set(env, carried[i], &e), 0);
		assert_null(env_held_back(carried[i]));
	}
	for (size_t i = 0; i < sizeof(held_back) / sizeof(held_back[0]); i++) {
		assert_int_equal(env_set(env, held_back[i], &e), 0);
		assert_non_null(env_held_back(held_back[i]));
	}
}

static void
names_and_values_that_cannot_be_carried_are_refused_by_name(void **state)
{
	static const struct {
		const char *entry, *says;
	} bad[] = {
		{"1X=1", "\"1X\""},
		{"=1", "\"\""},
		{"NOVALUE", "\"NOVALUE\""},
		{"A-B=1", "\"A-B\""},
		{"A B=1", "\"A B\""},
		{"Ä=1", "\"\\xc3\\x84\""},
		{"A\b=1", "\"A\\x08\""},
		{"BELL=\a", "\"BELL\" has the control character 0x07"},
		{"CR=a\r\n", "\"CR\" has the control character 0x0d"},
		{"DEL=\x7f", "\"DEL\" has the control character 0x7f"},
		{"C1=\xc2\x85", "\"C1\" has the control character 0x85"},
		{"LATIN1=caf\xe9", "\"LATIN1\" is not UTF-8"},
		{"OVERLONG=\xc0\xaf", "\"OVERLONG\" is not UTF-8"},
		{"SURROGATE=\xed\xa0\x80", "\"SURROGATE\" is not UTF-8"},
		{"FAR=\xf4\x90\x80\x80", "\"FAR\" is not UTF-8"},
		{"CUT=\xe2\x82", "\"CUT\" is not UTF-8"},
	};
	cleanup_env struct env env = {0};
	char name[ENV_NAME_MAX + 8];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_int_equal(env_set(&env, bad[i].entry, &e), -EINVAL);
		if (!strstr(e.msg, bad[i].says))
			fail_msg("%s: %s", bad[i].entry, e.msg);
	}
	memset(name, 'N', sizeof(name));
	strcpy(name + ENV_NAME_MAX + 1, "=x");
	assert_int_equal(env_set(&env, name, &e), -EINVAL);
	strcpy(name + ENV_NAME_MAX, "=x");
	assert_int_equal(env_set(&env, name, &e), 0);
	assert_int_equal(env.n, 1);
}

static void
an_environment_has_its_bounds(void **state)
{
	cleanup_env struct env env = {0};
	cleanup_free char *big = malloc(ENV_BYTES_MAX + 1);
	char entry[32];

	(void)state;
	for (int i = 0; i < ENV_VARS_MAX; i++) {
		snprintf(entry, sizeof(entry), "V%d=x", i);
		assert_int_equal(env_set(&env, entry, &e), 0);
	}
	assert_int_equal(env_set(&env, "MORE=x", &e), -E2BIG);
	assert_int_equal(env_set(&env, "V7=again", &e), 0);
	assert_string_equal(env_get(&env, "V7"), "again");
	assert_true(env_unset(&env, "V7"));
	assert_false(env_unset(&env, "V7"));
	assert_null(env_get(&env, "V7"));
	assert_string_equal(env.v[7], "V8=x");
	assert_null(env.v[env.n]);
	memset(big, 'x', ENV_BYTES_MAX);
	memcpy(big, "BIG=", 4);
	big[ENV_BYTES_MAX - 1] = 0;
	assert_int_equal(env_set(&env, big, &e), -E2BIG);
	assert_non_null(strstr(e.msg, "\"BIG\""));
	env_done(&env);
	assert_int_equal(env_set(&env, big, &e), 0);
	/* Replacing counts what goes. */
	assert_int_equal(env_set(&env, big, &e), 0);
	assert_int_equal(env_set(&env, "BIG=", &e), 0);
	assert_int_equal(env.bytes, 5);
}

static void
what_pam_would_not_read_alike_is_not_in_its_file(void **state)
{
	cleanup_env struct env env = {0};
	cleanup_env struct env read = {0};
	cleanup_free char *text = NULL;

	(void)state;
	all(&env);
	assert_int_equal(env_write(&env, false, &text, &e), 0);
	/* The agent's own reader does as pam_env does, its '#' included. */
	env_read_pam(&read, text);
	assert_int_equal(read.n, sizeof(carried) / sizeof(carried[0]));
	for (size_t i = 0; i < read.n; i++)
		assert_string_equal(read.v[i], carried[i]);
	assert_null(env_get(&read, "PATH"));
}

static void
a_line_that_pam_would_cut_is_held_back(void **state)
{
	char entry[1100];

	(void)state;
	memset(entry, 'x', sizeof(entry));
	memcpy(entry, "LONG=", 5);
	entry[1020] = 0;
	assert_null(env_held_back(entry));
	entry[1020] = 'x';
	entry[1021] = 0;
	assert_non_null(env_held_back(entry));
}

/* Both files as a shell reads them, one after the other. */
static void
shells_read_both_files_exactly(void **state)
{
	cleanup_env struct env env = {0};
	cleanup_free char *one = NULL, *two = NULL;
	char path[] = "/tmp/pando-env-XXXXXX", script[400], value[4096];
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	all(&env);
	assert_int_equal(env_write(&env, false, &one, &e), 0);
	assert_int_equal(env_write(&env, true, &two, &e), 0);
	assert_int_equal(io_write_full(fd, one, strlen(one)), 0);
	assert_int_equal(io_write_full(fd, two, strlen(two)), 0);
	close(fd);
	for (size_t i = 0; i < env.n; i++) {
		const char *wanted = strchr(env.v[i], '=') + 1;
		FILE *f;
		size_t n;

		snprintf(script, sizeof(script),
			"env -i sh -c '. %s; printf %%s \"$%.*s\"'", path,
			(int)strcspn(env.v[i], "="), env.v[i]);
		f = popen(script, "r");
		assert_non_null(f);
		n = fread(value, 1, sizeof(value) - 1, f);
		value[n] = 0;
		assert_int_equal(pclose(f), 0);
		assert_string_equal(value, wanted);
	}
	unlink(path);
}

static void
what_was_written_is_read_back(void **state)
{
	cleanup_env struct env env = {0}, back = {0};
	cleanup_free char *one = NULL, *two = NULL;

	(void)state;
	all(&env);
	assert_int_equal(env_write(&env, false, &one, &e), 0);
	assert_int_equal(env_write(&env, true, &two, &e), 0);
	assert_int_equal(env_read(&back, "one", one, &e), 0);
	assert_int_equal(env_read(&back, "two", two, &e), 0);
	assert_int_equal(back.n, env.n);
	for (size_t i = 0; i < env.n; i++)
		assert_string_equal(back.v[i], env.v[i]);
}

static void
files_are_read_as_a_shell_would(void **state)
{
	cleanup_env struct env env = {0};

	(void)state;
	assert_int_equal(env_read(&env, "f",
				 "# comment\n\n  A=plain  \n"
				 "export B=\"two\nlines \\\"q\\\" \\$x \\n\"\n"
				 "C='si\\n$gle'\tD is a comment? no\n"
				 "E=a#b # comment\n"
				 "F=\nG=a\\ b\\'c\n"
				 "H=x'y'\"z\"\r\n"
				 "I=last",
				 &e),
		0);
	assert_string_equal(env_get(&env, "A"), "plain");
	assert_string_equal(env_get(&env, "B"), "two\nlines \"q\" $x \\n");
	assert_string_equal(env_get(&env, "C"), "si\\n$gle\tD is a comment? no");
	assert_string_equal(env_get(&env, "E"), "a#b");
	assert_string_equal(env_get(&env, "F"), "");
	assert_string_equal(env_get(&env, "G"), "a b'c");
	assert_string_equal(env_get(&env, "H"), "xyz");
	assert_string_equal(env_get(&env, "I"), "last");
	assert_int_equal(env_read(&env, "f", "A=1\nB='open\n\n", &e), -EINVAL);
	assert_string_equal(e.msg, "f: line 2: the quote is not closed");
	assert_int_equal(env_read(&env, "f", "A='1\n2'\n\nnonsense\n", &e), -EINVAL);
	assert_string_equal(e.msg, "f: line 4 is not NAME=value");
	assert_int_equal(env_read(&env, "f", "A=\a\n", &e), -EINVAL);
	assert_non_null(strstr(e.msg, "f: line 1"));
}

static void
environment_file_is_read_as_pam_does(void **state)
{
	cleanup_env struct env env = {0};

	(void)state;
	env_put(&env, "GONE=1");
	env_put(&env, "KEPT=1");
	env_read_pam(&env, "# comment\n"
			   "A=plain\n"
			   "  export B=\"two words\"  # and why\n"
			   "C='single'\n"
			   "D=a=b=c\n"
			   "E=\n"
			   "NOT-A-NAME=x\n"
			   "=nothing\n"
			   "GONE\n"
			   "F=one\\\ntwo\n"
			   "A=again\n"
			   "G=\"it's\"\n"
			   "H=no newline at the end");
	assert_string_equal(env_get(&env, "A"), "again");
	assert_string_equal(env_get(&env, "B"), "two words");
	assert_string_equal(env_get(&env, "C"), "single");
	assert_string_equal(env_get(&env, "D"), "a=b=c");
	assert_string_equal(env_get(&env, "E"), "");
	assert_null(env_get(&env, "NOT-A-NAME"));
	assert_null(env_get(&env, "NOT"));
	assert_null(env_get(&env, "GONE"));
	assert_string_equal(env_get(&env, "KEPT"), "1");
	assert_string_equal(env_get(&env, "F"), "onetwo");
	assert_string_equal(env_get(&env, "G"), "it's");
	assert_string_equal(env_get(&env, "H"), "no newline at the end");
	assert_int_equal(env.n, 9);
	assert_null(env.v[env.n]);
}

/* What one reader takes for a line, a quote or a comment the other does not. */
static void
the_two_readers_differ_as_their_table_says(void **state)
{
	static const struct {
		const char *text, *shell, *pam; /* of X; NULL: not set */
	} cases[] = {
		{"X=plain\n", "plain", "plain"},
		{"X=a'b\"c'd\n", "ab\"cd", "a'b\"c'd"},
		{"X='a'b\n", "ab", "a'b"},
		{"X=\"one\ntwo\"\n", "one\ntwo", "one"},
		{"X=\"one\\\ntwo\"\n", "onetwo", "onetwo"},
		{"X='one\\\ntwo'\n", "one\\\ntwo", "onetwo"},
		{"X=\"a\\$b\"\n", "a$b", "a\\$b"},
		{"X=a#b\n", "a#b", "a"},
		{"X='a #b'\n", "a #b", "a"},
		{"X=a #b\n", "a", "a"},
		{"X=1\nX\n", NULL, NULL},
		{"X=1\nno sense\n", NULL, "1"},
		{"  export X=1\n", "1", "1"},
		{"X=\a\n", NULL, "\a"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		cleanup_env struct env shell = {0}, pam = {0};
		const char *got;

		got = env_read(&shell, "f", cases[i].text, &e) ? NULL
							       : env_get(&shell, "X");
		if (!got != !cases[i].shell || (got && strcmp(got, cases[i].shell) != 0))
			fail_msg("case %zu, shell: %s", i, got ? got : "none");
		env_read_pam(&pam, cases[i].text);
		got = env_get(&pam, "X");
		if (!got != !cases[i].pam || (got && strcmp(got, cases[i].pam) != 0))
			fail_msg("case %zu, pam: %s", i, got ? got : "none");
	}
}

/* A program's environment is its caller's business. */
static void
what_a_program_is_given_has_no_bounds(void **state)
{
	cleanup_env struct env env = {0};
	cleanup_free char *big = malloc(ENV_BYTES_MAX + 8);
	char entry[32];

	(void)state;
	for (int i = 0; i < 2 * ENV_VARS_MAX; i++) {
		snprintf(entry, sizeof(entry), "%d.%d=\xff\a", i, i);
		env_put(&env, entry);
	}
	memset(big, 'x', ENV_BYTES_MAX + 7);
	memcpy(big, "BIG=", 4);
	big[ENV_BYTES_MAX + 7] = 0;
	env_put(&env, big);
	env_put_value(&env, "7.7", "again");
	assert_false(env.failed);
	assert_int_equal(env.n, 2 * ENV_VARS_MAX + 1);
	assert_null(env.v[env.n]);
	assert_string_equal(env_get(&env, "7.7"), "again");
	assert_string_equal(env.v[7], "7.7=again");
}

static void
words_become_the_vm_s_own(void **state)
{
	static const struct {
		const char *entry, *is;
	} cases[] = {
		{"A={index}/{id}", "A=7/abc"},
		{"A={{index}} {{id}}", "A={index} {id}"},
		{"A={\"id\":{id}}", "A={\"id\":abc}"},
		{"A={ind", "A={ind"},
		{"A=", "A="},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		cleanup_free char *got = env_expand(cases[i].entry, 7, "abc");

		assert_string_equal(got, cases[i].is);
	}
}

#define T(f) cmocka_unit_test(f)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(names_and_values_that_cannot_be_carried_are_refused_by_name),
		T(an_environment_has_its_bounds),
		T(what_pam_would_not_read_alike_is_not_in_its_file),
		T(a_line_that_pam_would_cut_is_held_back),
		T(shells_read_both_files_exactly),
		T(what_was_written_is_read_back),
		T(files_are_read_as_a_shell_would),
		T(environment_file_is_read_as_pam_does),
		T(the_two_readers_differ_as_their_table_says),
		T(what_a_program_is_given_has_no_bounds),
		T(words_become_the_vm_s_own),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
