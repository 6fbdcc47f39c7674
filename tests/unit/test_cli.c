/* host/cli: words and options, what reaches a terminal, the console ring, the doctor's
 * reading. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "common/wire/console_ring.h"
#include "host/cli/copy.h"
#include "host/cli/doctor.h"
#include "host/cli/execute.h"
#include "host/cli/head.h"
#include "host/cli/logs.h"
#include "host/cli/near.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

/* The head of a folder -------------------------------------------------------------- */

static char project[64];

static int
make_project(void **state)
{
	(void)state;
	snprintf(project, sizeof(project), "/tmp/pando-head.XXXXXX");
	return mkdtemp(project) ? 0 : -1;
}

static int
remove_project(void **state)
{
	(void)state;
	return io_remove_tree(project, NULL);
}

/* A file of the project; text NULL: a folder. */
static const char *
put(const char *name, const char *text)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", project, name);
	if (text)
		assert_int_equal(
			io_write_file_atomic(path, text, strlen(text), 0600, NULL), 0);
	else
		assert_int_equal(io_mkdir_p(path, 0700, NULL), 0);
	return path;
}

static void
a_head_is_that_of_the_nearest_project(void **state)
{
	char below[128], path[128];
	struct err e = {0};
	struct head h;

	(void)state;
	snprintf(below, sizeof(below), "%s", put("a/b", NULL));
	/* No mark anywhere: the folder itself. (Nothing above /tmp has one.) */
	assert_int_equal(head_read(below, &h, &e), 0);
	assert_string_equal(h.folder, below);
	assert_string_equal(h.current, "");
	put("a/vers.toml", "");
	assert_int_equal(head_read(below, &h, &e), 0);
	snprintf(path, sizeof(path), "%s/a/.pando/head", project);
	assert_string_equal(h.path, path);
	assert_int_equal(access(path, F_OK), -1); /* asking makes nothing */
	assert_int_equal(head_write(&h, "0a1b2c3d4e5f", &e), 0);
	assert_int_equal(head_write(&h, "111111111111", &e), 0);
	assert_int_equal(head_write(&h, "111111111111", &e), 0);
	assert_int_equal(head_read(below, &h, &e), 0);
	assert_string_equal(h.current, "111111111111");
	assert_string_equal(h.previous, "0a1b2c3d4e5f");
	assert_int_equal(head_write(&h, NULL, &e), 0);
	assert_int_equal(head_read(below, &h, &e), 0);
	assert_string_equal(h.current, "");
	assert_string_equal(h.previous, "111111111111");
	/* Nothing of it is for version control. */
	snprintf(path, sizeof(path), "%s/a/.pando/.gitignore", project);
	assert_int_equal(access(path, F_OK), 0);
	put("a/b/.pando", NULL);
	assert_int_equal(head_read(below, &h, &e), 0);
	assert_string_equal(h.folder, below);
}

static void
a_damaged_head_is_a_sentence_with_the_mend(void **state)
{
	static const char *const bad[] = {"a b\n", "../x\n", "a\nb\nc\n", "\033[31m\n",
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"};
	static const char *const good[] = {
		"", "\n", "a", "a\n", "a\nb", "a\nb\n", "\nb\n"};
	struct err e = {0};
	struct head h;

	(void)state;
	put(".pando", NULL);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		put(".pando/head", bad[i]);
		memset(&e, 0, sizeof(e));
		if (head_read(project, &h, &e) != -EINVAL)
			fail_msg("\"%s\" was read", bad[i]);
		assert_non_null(strstr(e.msg, "pando checkout"));
	}
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		put(".pando/head", good[i]);
		if (head_read(project, &h, &e) != 0)
			fail_msg("\"%s\": %s", good[i], e.msg);
	}
	assert_int_equal(
		io_write_file_atomic(put(".pando/head", ""), "a\0b", 3, 0600, NULL), 0);
	assert_int_equal(head_read(project, &h, &e), -EINVAL);
}

/* Options ------------------------------------------------------------------------------
 */

static const struct opt some_options[] = {
	{'c', "count", "N", "x", COMPLETE_NOTHING},
	{'v', NULL, NULL, "x", COMPLETE_NOTHING},
	{300, "mem-size", "MIB", "x", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};
static const struct verb some_verb = {.name = "some", .options = some_options};

/* Keys and arguments of all that opt_next() gives, as one text. */
static const char *
scanned(char **argv, struct opt_scan *s, struct err *e)
{
	static char text[512];
	int argc = 0, key;

	while (argv[argc])
		argc++;
	text[0] = '\0';
	*s = opt_scan(&some_verb, argc, argv);
	while ((key = opt_next(s, e)) != OPT_END) {
		size_t n = strlen(text);

		if (key == OPT_ERROR || key == OPT_HELP)
			return key == OPT_ERROR ? "error" : "help";
		snprintf(text + n, sizeof(text) - n, "%d:%s ", key, s->arg ? s->arg : "");
	}
	return text;
}

#define SCAN(...) scanned((char *[]){"some", __VA_ARGS__, NULL}, &s, &e)

static void
options_are_taken_as_getopt_long_takes_them(void **state)
{
	struct opt_scan s;
	struct err e = {0};

	(void)state;
	assert_string_equal(SCAN("-c", "5", "w"), "99:5 -1:w ");
	assert_string_equal(SCAN("-c5", "-v"), "99:5 118: ");
	assert_string_equal(SCAN("-vc5"), "118: 99:5 ");
	assert_string_equal(SCAN("--count=5", "--mem-size", "1G"), "99:5 300:1G ");
	assert_string_equal(SCAN("--count="), "99: ");
	assert_string_equal(SCAN("a", "--", "-c", "--", "b"), "-1:a -1:-c -1:-- -1:b ");
	assert_string_equal(SCAN("-"), "-1:- ");
	assert_string_equal(SCAN("--"), "");
	assert_true(s.ended);
	assert_string_equal(SCAN("-qv", "--format", "json"), "118: ");
	assert_true(s.quiet && s.json);
	assert_string_equal(SCAN("w", "--help"), "help");
}

static void
wrong_options_are_sentences(void **state)
{
	struct opt_scan s;
	struct err e = {0};

	(void)state;
	assert_string_equal(SCAN("--cuont", "5"), "error");
	assert_string_equal(e.msg, "some has no option --cuont; did you mean --count?");
	assert_string_equal(SCAN("--xyzzy"), "error");
	assert_string_equal(e.msg, "some has no option --xyzzy");
	assert_string_equal(SCAN("-z"), "error");
	assert_string_equal(SCAN("-\001"), "error");
	assert_non_null(strstr(e.msg, "\\x01"));
	assert_string_equal(SCAN("--count"), "error");
	assert_non_null(strstr(e.msg, "needs an argument"));
	assert_string_equal(SCAN("-c"), "error");
	assert_string_equal(SCAN("--quiet=yes"), "error");
	assert_string_equal(SCAN("--format", "xml"), "error");
	assert_non_null(strstr(e.msg, "xml"));
}

static void
numbers_and_sizes_are_checked(void **state)
{
	static const char *const bad[] = {"", "x", "1x", "-1", "0", "9", "+3", " 3", "3 ",
		"0x3", "1.5", "99999999999999999999999"};
	uint64_t v = 7;
	struct err e;

	(void)state;
	assert_int_equal(opt_u64("8", "--n", 1, 8, &v, NULL), 0);
	assert_int_equal(v, 8);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		e = (struct err){0};
		assert_true(opt_u64(bad[i], "--n", 1, 8, &v, &e) < 0);
		assert_int_equal(err_exit_code(e.code), EXIT_USAGE);
		assert_non_null(strstr(e.msg, "--n"));
		assert_int_equal(v, 8);
	}
	assert_int_equal(opt_mib("512", "--m", 16, 1 << 20, &v, NULL), 0);
	assert_int_equal(v, 512);
	assert_int_equal(opt_mib("2G", "--m", 16, 1 << 20, &v, NULL), 0);
	assert_int_equal(v, 2048);
	assert_int_equal(opt_mib("1tib", "--m", 16, 1 << 20, &v, NULL), 0);
	assert_int_equal(v, 1 << 20);
	assert_int_equal(opt_mib("15", "--m", 16, 1 << 20, &v, &e), -ERANGE);
	assert_int_equal(opt_mib("-5G", "--m", 16, 1 << 20, &v, &e), -ERANGE);
	assert_int_equal(
		opt_mib("18446744073709551615T", "--m", 16, 1 << 20, &v, &e), -ERANGE);
	assert_int_equal(opt_mib("5K", "--m", 16, 1 << 20, &v, &e), -EINVAL);
	assert_int_equal(opt_mib("", "--m", 16, 1 << 20, &v, &e), -EINVAL);
}

static void
times_have_units(void **state)
{
	static const char *const bad[] = {
		"", "x", "-1", "0", "0.0001", "inf", "nan", "0x10", "1w", "1e300"};
	uint64_t v = 0;
	struct err e;

	(void)state;
	assert_int_equal(opt_ms("1", "-t", &v, NULL), 0);
	assert_int_equal(v, 1000);
	assert_int_equal(opt_ms("1.5s", "-t", &v, NULL), 0);
	assert_int_equal(v, 1500);
	assert_int_equal(opt_ms("20ms", "-t", &v, NULL), 0);
	assert_int_equal(v, 20);
	assert_int_equal(opt_ms("2h", "-t", &v, NULL), 0);
	assert_int_equal(v, 7200000);
	assert_int_equal(opt_ms("7d", "-t", &v, NULL), 0);
	assert_int_equal(v, 604800000);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_true(opt_ms(bad[i], "-t", &v, &e) < 0);
}

static void
labels_and_variables_are_checked(void **state)
{
	struct err e;

	(void)state;
	assert_int_equal(opt_label("a=b=c", "-l", NULL), 1);
	assert_int_equal(opt_label("a.b-c_1=", "-l", NULL), 7);
	assert_true(opt_label("a", "-l", &e) < 0);
	assert_true(opt_label("=a", "-l", &e) < 0);
	assert_true(opt_label("a b=c", "-l", &e) < 0);
	assert_int_equal(opt_env("PATH=/x:/y", "-e", NULL), 4);
	assert_int_equal(opt_env("_a1=", "-e", NULL), 3);
	assert_true(opt_env("1a=x", "-e", &e) < 0);
	assert_true(opt_env("a-b=x", "-e", &e) < 0);
	assert_true(opt_env("=x", "-e", &e) < 0);
	assert_true(opt_env("PATH", "-e", &e) < 0);
}

/* Execute ------------------------------------------------------------------------------
 */

static struct execute_words words;
static struct err why;

static int
execute_words_of(char **argv)
{
	struct opt_scan s;
	int argc = 0;

	while (argv[argc])
		argc++;
	execute_words_done(&words);
	why = (struct err){0};
	s = opt_scan(&verb_execute, argc, argv);
	return execute_parse(&s, &words, &why);
}

#define EXECUTE(...) execute_words_of((char *[]){"execute", __VA_ARGS__, NULL})

static void
command_is(const char *vm, ...)
{
	const char *word;
	va_list ap;
	size_t i = 0;

	if (vm)
		assert_string_equal(words.vm, vm);
	else
		assert_null(words.vm);
	va_start(ap, vm);
	while ((word = va_arg(ap, const char *)))
		assert_string_equal(words.argv[i++], word);
	va_end(ap);
	assert_null(words.argv[i]);
}

static void
a_command_reaches_the_guest_as_it_was_typed(void **state)
{
	(void)state;
	assert_int_equal(EXECUTE("a", "--", "sh", "-c", "echo out; exit 7"), OPT_END);
	command_is("a", "sh", "-c", "echo out; exit 7", NULL);
	assert_int_equal(EXECUTE("a", "sha256sum"), OPT_END);
	command_is("a", "sha256sum", NULL);
	/* Behind the command's first word nothing is ours. */
	assert_int_equal(EXECUTE("a", "ls", "-la", "-t", "--", "--help"), OPT_END);
	command_is("a", "ls", "-la", "-t", "--", "--help", NULL);
	assert_int_equal(EXECUTE("a", "--", "-x", "", "$HOME", "a b"), OPT_END);
	command_is("a", "-x", "", "$HOME", "a b", NULL);
	assert_int_equal(EXECUTE("--", "true"), OPT_END);
	command_is(NULL, "true", NULL);
	assert_int_equal(EXECUTE("a", "--", "--", "b"), OPT_END);
	command_is("a", "--", "b", NULL);
}

static void
options_stand_before_or_behind_the_vm(void **state)
{
	(void)state;
	assert_int_equal(EXECUTE("a", "--timeout", "1", "--", "sleep", "60"), OPT_END);
	assert_int_equal(words.timeout_ms, 1000);
	command_is("a", "sleep", "60", NULL);
	assert_int_equal(EXECUTE("--timeout", "500ms", "-e", "A=1", "--env=B=", "-w/tmp",
				 "--user", "1000", "-n", "a", "env"),
		OPT_END);
	assert_int_equal(words.timeout_ms, 500);
	assert_string_equal(words.env[0], "A=1");
	assert_string_equal(words.env[1], "B=");
	assert_null(words.env[2]);
	assert_string_equal(words.cwd, "/tmp");
	assert_string_equal(words.user, "1000");
	assert_false(words.stdin_on);
	command_is("a", "env", NULL);
}

static void
i_and_t_are_input_and_terminal(void **state)
{
	(void)state;
	assert_int_equal(EXECUTE("-it", "a", "bash"), OPT_END);
	assert_true(words.tty && words.stdin_on);
	command_is("a", "bash", NULL);
	assert_int_equal(EXECUTE("a", "-t", "--", "12"), OPT_END);
	assert_true(words.tty && !words.stdin_on && !words.timeout_ms);
	command_is("a", "12", NULL);
	assert_int_equal(EXECUTE("-i", "a", "cat"), OPT_END);
	assert_true(words.stdin_on && !words.tty);
	assert_int_equal(EXECUTE("-T", "a", "bash"), OPT_END);
	assert_true(words.tty && words.stdin_on);
	/* The time limit of older versions: what can be no VM. 1234 and cafe can. */
	assert_int_equal(EXECUTE("-n", "-t", "12", "a", "--", "x"), OPT_END);
	assert_true(!words.tty && words.timeout_ms == 12000);
	command_is("a", "x", NULL);
	assert_int_equal(EXECUTE("-t", "1234", "--", "x"), OPT_END);
	assert_true(words.tty && !words.timeout_ms);
	command_is("1234", "x", NULL);
	assert_int_equal(EXECUTE("-t", "cafe", "x"), OPT_END);
	assert_true(words.tty);
}

static void
a_shell_is_asked_for_by_name(void **state)
{
	(void)state;
	assert_int_equal(EXECUTE("a", "--shell", "a | b"), OPT_END);
	command_is("a", "/bin/sh", "-c", "a | b", NULL);
	assert_int_equal(EXECUTE("--shell=echo $1", "a", "--", "x y"), OPT_END);
	command_is("a", "/bin/sh", "-c", "echo $1", "sh", "x y", NULL);
	assert_int_equal(EXECUTE("--shell", "x"), OPT_END);
	command_is(NULL, "/bin/sh", "-c", "x", NULL);
	assert_int_equal(EXECUTE("a", "--shell", ""), OPT_ERROR);
}

static void
what_makes_no_sense_is_refused(void **state)
{
	(void)state;
	assert_int_equal(EXECUTE("a"), OPT_ERROR);
	assert_non_null(strstr(why.msg, "pando execute a -- command"));
	assert_int_equal(EXECUTE("a", "--"), OPT_ERROR);
	assert_int_equal(EXECUTE("--"), OPT_ERROR);
	assert_int_equal(EXECUTE("a", "--", ""), OPT_ERROR);
	assert_int_equal(EXECUTE("a", "--timeout", "0", "x"), OPT_ERROR);
	assert_int_equal(EXECUTE("-i", "-d", "a", "x"), OPT_ERROR);
	assert_int_equal(EXECUTE("--ssh", "-t", "a", "x"), OPT_ERROR);
	assert_int_equal(EXECUTE("a", "-e", "x", "y"), OPT_ERROR);
	assert_int_equal(EXECUTE("-T", "-d", "a", "x"), OPT_ERROR);
	assert_int_equal(EXECUTE("a", "--attach", "e1", "x"), OPT_ERROR);
	assert_int_equal(EXECUTE("a", "--attach", "e1"), OPT_END);
	assert_int_equal(EXECUTE("a", "--list"), OPT_END);
	assert_int_equal(EXECUTE("--help"), OPT_HELP);
	execute_words_done(&words);
}

/* Words
 * ---------------------------------------------------------------------------------- */

static void
a_side_in_a_vm_has_a_colon_before_any_slash(void **state)
{
	const char *path;
	char vm[16];

	(void)state;
	assert_true(copy_split("a:/tmp/x", vm, sizeof(vm), &path));
	assert_string_equal(vm, "a");
	assert_string_equal(path, "/tmp/x");
	assert_true(copy_split("a:", vm, sizeof(vm), &path));
	assert_string_equal(path, ".");
	assert_true(copy_split("a:b:c", vm, sizeof(vm), &path));
	assert_string_equal(path, "b:c");
	assert_false(copy_split("/tmp/a:b", vm, sizeof(vm), &path));
	assert_false(copy_split("./a:b", vm, sizeof(vm), &path));
	assert_false(copy_split(":x", vm, sizeof(vm), &path));
	assert_false(copy_split("plain", vm, sizeof(vm), &path));
	assert_false(copy_split("much-too-long-a-name:x", vm, sizeof(vm), &path));
}

static void
near_words_are_found_and_far_ones_not(void **state)
{
	char long_word[200];

	(void)state;
	assert_int_equal(near_distance("", "abc"), 3);
	assert_int_equal(near_distance("status", "status"), 0);
	assert_int_equal(near_distance("stauts", "status"), 1);
	assert_int_equal(near_distance("kitten", "sitting"), 3);
	memset(long_word, 'a', sizeof(long_word) - 1);
	long_word[sizeof(long_word) - 1] = '\0';
	assert_int_equal(near_distance(long_word, "a"), NEAR_MAX);
	assert_string_equal(verb_nearest("stauts"), "status");
	assert_string_equal(verb_nearest("exceute"), "execute");
	assert_string_equal(verb_nearest("brnch"), "branch");
	assert_null(verb_nearest("frobnicate"));
	assert_string_equal(verb_find("ps")->name, "status");
	assert_string_equal(verb_find("kill")->name, "delete");
	assert_null(verb_find(""));
	assert_null(verb_find("kill rm"));
}

static void
every_verb_has_a_table_that_holds_together(void **state)
{
	(void)state;
	for (const struct verb *const *v = verbs; *v; v++) {
		assert_non_null((*v)->run);
		assert_non_null((*v)->usage);
		assert_true(strlen((*v)->summary) > 5);
		assert_ptr_equal(verb_find((*v)->name), *v);
		for (const struct opt *o = (*v)->options; o && o->key; o++) {
			assert_true(o->name || o->key < 128);
			for (const struct opt *p = (*v)->options; p < o; p++) {
				assert_int_not_equal(p->key, o->key);
				if (p->name && o->name)
					assert_string_not_equal(p->name, o->name);
			}
			assert_true(o->key != 'h' && o->key != 'q');
		}
	}
}

/* A word of the page: "-count" must not be found inside "-count-more". */
static bool
page_has(const char *page, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = page; (at = strstr(at, word)); at++)
		if (!strchr("abcdefghijklmnopqrstuvwxyz-", at[n]) && at > page &&
			at[-1] == ' ')
			return true;
	return false;
}

static void
the_manual_page_has_every_verb_and_option(void **state)
{
	char *page = NULL, word[80];
	size_t len;

	(void)state;
	assert_int_equal(
		io_read_file("host/cli/man/pando.1", 1 << 20, &page, &len, NULL), 0);
	for (const struct verb *const *v = verbs; *v; v++) {
		if (!page_has(page, (*v)->name))
			fail_msg("pando.1 lacks the verb %s", (*v)->name);
		/* The large verbs explain their options themselves; the page says where.
		 */
		if ((*v)->subverbs && !page_has(page, (*v)->subverbs))
			continue;
		for (const struct opt *o = (*v)->options; o && o->key; o++) {
			snprintf(word, sizeof(word), "-%s", o->name ? o->name : "");
			if (o->help && o->name && !page_has(page, word))
				fail_msg("pando.1 lacks -%s of %s", word, (*v)->name);
		}
	}
	free(page);
}

static void
nobody_reaches_a_branch_that_is_not_itself_yet(void **state)
{
	struct client_vm vm = {.id = "0a1b2c3d4e5f",
		.state = "starting",
		.agent_socket = "/x",
		.parent = "ffffffffffff"};
	struct err e = {0};

	(void)state;
	assert_int_equal(pick_reachable(&vm, &e), -EAGAIN);
	assert_non_null(strstr(e.msg, "0a1b2c3d4e5f"));
	strcpy(vm.state, "running");
	assert_int_equal(pick_reachable(&vm, &e), 0);
	/* Of a commit; and one that boots, which is nobody else. */
	strcpy(vm.state, "starting");
	vm.parent[0] = '\0';
	strcpy(vm.commit, "abc");
	assert_int_equal(pick_reachable(&vm, &e), -EAGAIN);
	vm.commit[0] = '\0';
	assert_int_equal(pick_reachable(&vm, &e), 0);
}

static void
ids_are_told_from_names(void **state)
{
	struct client_vm vms[] = {
		{.id = "0a1b2c3d4e5f"}, {.id = "0a1b2c3d9999"}, {.id = "ffffffffffff"}};
	struct client_vms all = {.v = vms, .n = 3};
	char id[16];

	(void)state;
	assert_true(pick_looks_like_id("0a1b2c3d4e5f"));
	assert_true(pick_looks_like_id("beef"));
	assert_false(pick_looks_like_id("bee"));
	assert_false(pick_looks_like_id("BEEF"));
	assert_false(pick_looks_like_id("0a1b2c3d4e5f0"));
	assert_string_equal(pick_short_id(id, sizeof(id), vms[0].id, &all), "0a1b2c3d4");
	assert_string_equal(pick_short_id(id, sizeof(id), vms[2].id, &all), "ffffff");
}

/* Output
 * ----------------------------------------------------------------------------------- */

static void
untrusted_text_cannot_command_a_terminal(void **state)
{
	char dst[64];

	(void)state;
	assert_string_equal(
		out_plain(dst, sizeof(dst), "a\033[2Jb\r\n"), "a\\x1b[2Jb\\x0d\\x0a");
	assert_string_equal(out_plain(dst, sizeof(dst), "gr\xc3\xbc\xc3\x9f\x7f"),
		"gr\xc3\xbc\xc3\x9f\\x7f");
	assert_string_equal(out_plain(dst, sizeof(dst), "\xc2\x9b"), "\\x9b");
	assert_string_equal(out_plain(dst, 4, "abcdef"), "abc");
	assert_string_equal(out_plain(dst, 4, "a\033"), "a");
}

static void
an_answer_that_there_was_no_memory_for_is_a_failure(void **state)
{
	const struct json_out cut = {.buf = NULL, .error = -ENOMEM};

	(void)state;
	assert_int_equal(out_json(&cut), EXIT_FAILED);
}

static void
sizes_and_ages_are_short(void **state)
{
	char dst[32];

	(void)state;
	assert_string_equal(out_age(dst, sizeof(dst), 3200), "3 s");
	assert_string_equal(out_age(dst, sizeof(dst), 125000), "2 min");
	assert_string_equal(out_age(dst, sizeof(dst), 3 * 3600000), "3 h");
	/* To the nearest: what is left of 7 days a second later. */
	assert_string_equal(out_age(dst, sizeof(dst), 7 * UINT64_C(86400000) - 1000), "7 d");
	assert_string_equal(out_age(dst, sizeof(dst), 90 * 60000), "90 min");
	assert_string_equal(out_age(dst, sizeof(dst), 119 * 60000 + 59000), "120 min");
	assert_string_equal(out_age(dst, sizeof(dst), UINT64_C(9) * 86400000), "9 d");
	assert_string_equal(out_mib(dst, sizeof(dst), 512), "512 MiB");
	assert_string_equal(out_mib(dst, sizeof(dst), 2048), "2 GiB");
	assert_string_equal(out_mib(dst, sizeof(dst), 1536), "1.5 GiB");
	assert_string_equal(out_bytes(dst, sizeof(dst), 999), "999 B");
	assert_string_equal(out_bytes(dst, sizeof(dst), 1536), "1.5 KiB");
}

static void
a_table_is_aligned_by_what_is_seen(void **state)
{
	static const char *const heads[] = {"A", "LONG", "Z"};
	struct out_table *t = out_table_new(heads, 3);
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	(void)state;
	out_table_cell(t, "\xc3\xbc\xc3\xbc\xc3\xbc");
	out_table_cell(t, "x");
	out_table_cell(t, "1");
	out_table_print(t, f);
	fclose(f);
	assert_string_equal(text, "A    LONG  Z\n\xc3\xbc\xc3\xbc\xc3\xbc  x     1\n");
	free(text);
	out_table_free(t);
}

/* Console
 * ------------------------------------------------------------------------------------ */

static char ring_path[] = "/tmp/pando-ring.XXXXXX";

static void
a_ring_is_read_by_true_offsets_and_says_what_it_lost(void **state)
{
	struct logs_source s = LOGS_SOURCE_INIT;
	char *buf = malloc(LOGS_CHUNK), line[1025];
	uint64_t at = 0, lost, tail, total = 0;
	struct console c = {0};
	int fd = mkstemp(ring_path);
	ssize_t n;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(logs_open(ring_path, true, &s, NULL), 0);
	/* Before a VMM has opened it there is nothing, and no error. */
	assert_int_equal(logs_read(&s, &at, buf, LOGS_CHUNK, &lost, NULL), 0);
	assert_int_equal(console_open(&c, fd, NULL), 0);
	console_write(&c, "one\ntwo\nthree", 13);
	assert_int_equal(logs_read(&s, &at, buf, LOGS_CHUNK, &lost, NULL), 13);
	assert_memory_equal(buf, "one\ntwo\nthree", 13);
	assert_int_equal(logs_read(&s, &at, buf, LOGS_CHUNK, &lost, NULL), 0);
	assert_int_equal(logs_tail(&s, 2, &tail, NULL), 0);
	assert_int_equal(tail, 4);
	assert_int_equal(logs_tail(&s, 0, &tail, NULL), 0);
	assert_int_equal(tail, 13);
	assert_int_equal(logs_tail(&s, 99, &tail, NULL), 0);
	assert_int_equal(tail, 0);
	/* More than the ring holds, while we look away. */
	memset(line, 'x', sizeof(line) - 1);
	line[sizeof(line) - 1] = '\n';
	for (unsigned i = 0; i < 2000; i++)
		console_write(&c, line, sizeof(line));
	n = logs_read(&s, &at, buf, LOGS_CHUNK, &lost, NULL);
	assert_int_equal(n, LOGS_CHUNK);
	assert_int_equal(lost, 2000 * sizeof(line) - CONSOLE_RING_BYTES);
	total = (uint64_t)n;
	while ((n = logs_read(&s, &at, buf, LOGS_CHUNK, &lost, NULL)) > 0)
		total += (uint64_t)n;
	assert_int_equal(total, CONSOLE_RING_BYTES);
	assert_int_equal(at, 13 + 2000 * sizeof(line));
	assert_int_equal(logs_tail(&s, 3, &tail, NULL), 0);
	assert_int_equal(tail, at - 3 * sizeof(line));
	console_forget(&c);
	logs_close(&s);
	close(fd);
	free(buf);
	unlink(ring_path);
}

static void
a_file_that_is_no_ring_is_refused(void **state)
{
	struct logs_source s = LOGS_SOURCE_INIT;
	char path[] = "/tmp/pando-noring.XXXXXX", buf[64];
	uint64_t at = 0, lost;
	struct err e = {0};
	int fd = mkstemp(path);

	(void)state;
	assert_int_equal(write(fd, "this is not a console ring at all", 33), 33);
	assert_int_equal(logs_open(path, true, &s, NULL), 0);
	assert_int_equal(logs_read(&s, &at, buf, sizeof(buf), &lost, &e), -EBADMSG);
	logs_close(&s);
	assert_int_equal(logs_open(path, false, &s, NULL), 0);
	assert_int_equal(logs_read(&s, &at, buf, sizeof(buf), &lost, &e), 33);
	logs_close(&s);
	close(fd);
	unlink(path);
}

static void
console_bytes_are_made_harmless(void **state)
{
	struct logs_plain p = {0};
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	(void)state;
	/* The C1 control is torn between two reads. */
	logs_put_plain(&p, f, "a\r\n\033[1m\t\xc2", 9);
	logs_put_plain(&p, f, "\x9b|\xc2\xa9|\xc3\xbc", 7);
	fclose(f);
	assert_string_equal(text, "a\n\\x1b[1m\t\\x9b|\xc2\xa9|\xc3\xbc");
	free(text);
}

/* Doctor
 * ---------------------------------------------------------------------------------------
 */

static void
the_probes_line_decides(void **state)
{
	struct doctor d = {.n = 0};
	static const char small[] =
		"{\"kvm\":\"small\",\"detail\":\"it died at \\u001bint3\",\"api\":12}",
			  big[] = "{\"kvm\":\"linux\",\"detail\":\"\",\"create_vm_us\":"
				  "150}",
			  slow[] = "{\"kvm\":\"linux\",\"create_vm_us\":40000}",
			  all[] = "{\"kvm\":\"linux\",\"dirty_pages\":\"none\"}",
			  some[] = "{\"kvm\":\"linux\",\"dirty_pages\":\"userfaultfd\"}";

	(void)state;
	assert_true(doctor_read_probe(&d, small, strlen(small)));
	assert_false(d.boots_linux);
	assert_true(d.runs_small);
	assert_int_equal(d.findings[0].verdict, DOCTOR_PROBLEM);
	assert_non_null(strstr(d.findings[0].detail, "\\x1bint3"));
	assert_non_null(strstr(d.findings[0].mend, "pando machine"));
	d = (struct doctor){.n = 0};
	assert_true(doctor_read_probe(&d, big, strlen(big)));
	assert_true(d.boots_linux);
	assert_int_equal(d.n, 1);
	d = (struct doctor){.n = 0};
	assert_true(doctor_read_probe(&d, slow, strlen(slow)));
	assert_int_equal(d.n, 2);
	d = (struct doctor){.n = 0};
	assert_true(doctor_read_probe(&d, all, strlen(all)));
	assert_int_equal(d.findings[1].verdict, DOCTOR_NOTE);
	assert_non_null(strstr(d.findings[1].mend, "6.7"));
	d = (struct doctor){.n = 0};
	assert_true(doctor_read_probe(&d, some, strlen(some)));
	assert_int_equal(d.findings[1].verdict, DOCTOR_OK);
	d = (struct doctor){.n = 0};
	assert_false(doctor_read_probe(&d, "", 0));
	assert_false(doctor_read_probe(&d, "{}", 2));
	assert_false(doctor_read_probe(&d, "{\"kvm\":\"maybe\"}", 15));
	assert_int_equal(d.n, 0);
}

static void
settings_are_read_as_the_kernel_writes_them(void **state)
{
	char word[16];

	(void)state;
	assert_true(doctor_chosen_word("always [madvise] never\n", word, sizeof(word)));
	assert_string_equal(word, "madvise");
	assert_false(doctor_chosen_word("always", word, sizeof(word)));
	assert_false(doctor_chosen_word("]x[", word, sizeof(word)));
	assert_int_equal(doctor_favordynmods("proc /proc proc rw 0 0\n"), -1);
	assert_int_equal(
		doctor_favordynmods(
			"x / ext4 rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"),
		0);
	assert_int_equal(
		doctor_favordynmods("cgroup2 /sys/fs/cgroup cgroup2 rw,favordynmods 0 0"),
		1);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_are_taken_as_getopt_long_takes_them),
		cmocka_unit_test(wrong_options_are_sentences),
		cmocka_unit_test(numbers_and_sizes_are_checked),
		cmocka_unit_test(times_have_units),
		cmocka_unit_test(labels_and_variables_are_checked),
		cmocka_unit_test(a_command_reaches_the_guest_as_it_was_typed),
		cmocka_unit_test(options_stand_before_or_behind_the_vm),
		cmocka_unit_test(i_and_t_are_input_and_terminal),
		cmocka_unit_test(a_shell_is_asked_for_by_name),
		cmocka_unit_test(what_makes_no_sense_is_refused),
		cmocka_unit_test(a_side_in_a_vm_has_a_colon_before_any_slash),
		cmocka_unit_test(near_words_are_found_and_far_ones_not),
		cmocka_unit_test_setup_teardown(a_head_is_that_of_the_nearest_project,
			make_project, remove_project),
		cmocka_unit_test_setup_teardown(
			a_damaged_head_is_a_sentence_with_the_mend, make_project,
			remove_project),
		cmocka_unit_test(every_verb_has_a_table_that_holds_together),
		cmocka_unit_test(the_manual_page_has_every_verb_and_option),
		cmocka_unit_test(nobody_reaches_a_branch_that_is_not_itself_yet),
		cmocka_unit_test(ids_are_told_from_names),
		cmocka_unit_test(untrusted_text_cannot_command_a_terminal),
		cmocka_unit_test(an_answer_that_there_was_no_memory_for_is_a_failure),
		cmocka_unit_test(sizes_and_ages_are_short),
		cmocka_unit_test(a_table_is_aligned_by_what_is_seen),
		cmocka_unit_test(a_ring_is_read_by_true_offsets_and_says_what_it_lost),
		cmocka_unit_test(a_file_that_is_no_ring_is_refused),
		cmocka_unit_test(console_bytes_are_made_harmless),
		cmocka_unit_test(the_probes_line_decides),
		cmocka_unit_test(settings_are_read_as_the_kernel_writes_them),
	};

	verb_use(verbs);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
