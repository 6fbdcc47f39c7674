#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "swarm/spec.h"

#define SCORE "[score]\ncommand = [\"score\"]\n"
#define CHILD "[[child]]\ncommand = [\"true\"]\n"

static struct swarm_spec *
good(const char *path, const char *text)
{
	struct swarm_spec *s = NULL;
	struct err e = {0};

	if (swarm_spec_parse(path, text, strlen(text), &s, &e) < 0)
		fail_msg("%s", e.msg);
	return s;
}

static void
refused(const char *text, const char *sentence)
{
	struct swarm_spec *s = NULL;
	struct err e = {0};

	assert_true(swarm_spec_parse("dir/s.toml", text, strlen(text), &s, &e) < 0);
	assert_null(s);
	assert_int_equal(err_exit_code(e.code), EXIT_USAGE);
	assert_string_equal(e.msg, sentence);
}

static void
smallest_spec_has_the_documented_defaults(void **state)
{
	struct swarm_spec *s = good("dir/my spec.toml", "from = \"a\"\n" SCORE CHILD);

	(void)state;
	assert_string_equal(s->name, "myspec");
	assert_string_equal(s->from, "a");
	assert_int_equal(s->n_children, 1);
	assert_string_equal(s->children[0].name, "child-0");
	assert_string_equal(s->children[0].work.argv[0], "true");
	assert_null(s->children[0].work.argv[1]);
	assert_int_equal(s->children[0].work.time_limit_ms, 600000);
	assert_int_equal(s->score.time_limit_ms, 600000);
	assert_false(s->keep_winner);
	assert_false(s->collect_from_all);
	assert_null(s->output);
	assert_int_equal(s->parallel, 0);
	swarm_spec_free(s);
}

static void
full_spec_is_read(void **state)
{
	struct swarm_spec *s = good("dir/x.toml",
		"name = \"n\"\nparallel = 3\noutput = \"o\"\nkeep_winner = true\n"
		"collect = [\"/root/a\", \"/root/b/\"]\ncollect_from = \"all\"\n"
		"files = [{ from = \"f\", to = \"/root/f\" }]\n"
		"[machine]\nmem_size_mib = 256\nvcpu_count = 2\nfs_size_vm_mib = 2048\n"
		"[rootfs]\nname = \"r/disk\"\n[kernel]\nname = \"k\"\n"
		"[setup]\ncommand = \"a | b\"\ntime_limit_s = 1.5\n"
		"files = [{ from = \"/abs\", to = \"/root/g\" }]\n"
		"[work]\ncommand = [\"w\", \"{index}\"]\ncwd = \"/root\"\nuser = \"joe\"\n"
		"env = { A = \"1\", B = \"2\" }\n"
		"[score]\ncommand = [\"s\"]\nfailed_work = true\n"
		"[[child]]\nname = \"x\"\nenv = { B = \"3\", C = \"4\" }\n"
		"files = [{ from = \"h\", to = \"/root/h\" }]\n"
		"[[child]]\nname = \"y{index}\"\ncount = 2\nenv = { I = \"{index}\" }\n"
		"[[child]]\nname = \"z\"\ncount = 2\ncommand = \"echo {index} ${index}\"\n");
	const struct swarm_step *w;

	(void)state;
	assert_null(s->from);
	assert_int_equal(s->machine.mem_mib, 256);
	assert_int_equal(s->machine.vcpus, 2);
	assert_int_equal(s->machine.disk_mib, 2048);
	assert_string_equal(s->machine.rootfs, "dir/r/disk");
	assert_string_equal(s->machine.kernel, "k");
	assert_string_equal(s->setup.argv[0], "/bin/sh");
	assert_string_equal(s->setup.argv[2], "a | b");
	assert_int_equal(s->setup.time_limit_ms, 1500);
	assert_string_equal(s->setup.files[0].from, "/abs");
	assert_true(s->score_failed_work && s->keep_winner && s->collect_from_all);
	assert_int_equal(s->n_collect, 2);
	assert_int_equal(s->n_children, 5);
	w = &s->children[0].work;
	assert_int_equal(w->n_env, 3);
	assert_string_equal(w->env[1].key, "B");
	assert_string_equal(w->env[1].value, "3");
	assert_string_equal(w->argv[1], "{index}");
	assert_string_equal(w->user, "joe");
	assert_int_equal(w->n_files, 2);
	assert_string_equal(w->files[0].from, "dir/f");
	assert_string_equal(w->files[1].to, "/root/h");
	assert_string_equal(s->children[2].name, "y1");
	assert_string_equal(s->children[2].work.argv[1], "1");
	assert_string_equal(s->children[2].work.env[2].value, "1");
	assert_string_equal(s->children[4].name, "z-1");
	assert_string_equal(s->children[4].work.argv[2], "echo 1 ${index}");
	swarm_spec_free(s);
}

static void
wrong_specs_are_refused_with_place_and_key(void **state)
{
	(void)state;
	refused("form = \"a\"\n" SCORE CHILD,
		"dir/s.toml:1:8: unknown key \"form\" in the spec; it knows name, from, machine, rootfs, kernel, setup, files, work, score, child, collect, "
		"collect_from, output, keep_winner, parallel");
	refused("from = 3\n" SCORE CHILD,
		"dir/s.toml:1:8: \"from\" must be a string, not an integer");
	refused("from = \"a\"\nparallel = 0\n" SCORE CHILD,
		"dir/s.toml:2:12: \"parallel\" must be 1 to 1024, not 0");
	refused("from = \"a\"\nkeep_winner = 1\n" SCORE CHILD,
		"dir/s.toml:2:15: \"keep_winner\" must be true or false, not an integer");
	refused("from = \"a\"\n[score]\ncommand = [\"s\"]\ntime_limit_s = -1\n" CHILD,
		"dir/s.toml:4:16: \"time_limit_s\" must be above 0 and at most 604800 (a week)");
	refused("from = \"a\"\n[score]\ncommand = [\"s\", 3]\n" CHILD,
		"dir/s.toml:3:17: word 2 of \"command\" must be a string, not an integer");
	refused("from = \"a\"\n" SCORE "[[child]]\ncommand = []\n",
		"dir/s.toml:5:11: \"command\" must have 1 to 256 words");
	refused("from = \"a\"\n" SCORE "[[child]]\ncommand = [\"x\"]\nenv = { A = 1 }\n",
		"dir/s.toml:6:13: variable \"A\" must be a string, not an integer; put it in quotes");
	refused("from = \"a\"\n" SCORE
		"[[child]]\ncommand = [\"x\"]\nenv = { 1A = \"1\" }\n",
		"dir/s.toml:6:14: \"1A\" is no name for a variable (letters, digits and _, no digit first)");
	refused("from = \"a\"\ncollect = [\"a\"]\n" SCORE CHILD,
		"dir/s.toml:2:12: \"collect\" must be an absolute path to something in the guest, not \"a\"");
	refused("from = \"a\"\ncollect = [\"/x/a\", \"/y/a/\"]\n" SCORE CHILD,
		"dir/s.toml:2:20: \"/x/a\" and \"/y/a/\" would be collected under the same name; collect their folders");
	refused("from = \"a\"\ncollect = [\"/x/..\"]\n" SCORE CHILD,
		"dir/s.toml:2:12: \"collect\" must be an absolute path to something in the guest, not \"/x/..\"");
	refused("from = \"a\"\ncollect_from = \"some\"\n" SCORE CHILD,
		"dir/s.toml:2:16: \"collect_from\" must be \"winner\" or \"all\"");
	refused("from = \"a\"\nfiles = [{ from = \"a\" }]\n" SCORE CHILD,
		"dir/s.toml:2:10: an entry of \"files\" needs \"to\"");
	refused("from = \"a\"\n" SCORE "[[child]]\nname = \"a b\"\ncommand = [\"x\"]\n",
		"dir/s.toml:5:8: child name \"a b\": use letters, digits, . _ -, at most 63, a letter or digit first");
	refused("from = \"a\"\n[score\n",
		"dir/s.toml:2:7: expected ']' at the end of a table's header, found the end of the line");
}

/* Sentences about a whole table name it; where it stands is the parser's affair. */
static void
missing(const char *text, const char *part)
{
	struct swarm_spec *s = NULL;
	struct err e = {0};

	assert_int_equal(swarm_spec_parse("s.toml", text, strlen(text), &s, &e), -EINVAL);
	if (!strstr(e.msg, part) || strncmp(e.msg, "s.toml:", 7) != 0)
		fail_msg("\"%s\" does not say \"%s\"", e.msg, part);
}

static void
what_is_missing_is_named(void **state)
{
	(void)state;
	missing(SCORE CHILD, "what is to be branched?");
	missing("from = \"a\"\n[machine]\n" SCORE CHILD, "leave one of them out");
	missing("from = \"a\"\n[setup]\ncommand = \"x\"\n" SCORE CHILD,
		"does not change the VM named by \"from\"");
	missing("from = \"a\"\n[rootfs]\nname = \"x\"\n" SCORE CHILD,
		"give [machine] too");
	missing("from = \"a\"\n" CHILD, "how is the winner found?");
	missing("from = \"a\"\n[score]\n" CHILD, "[score] needs a \"command\"");
	missing("from = \"a\"\n" SCORE, "give at least one [[child]]");
	missing("from = \"a\"\nchild = []\n" SCORE, "give at least one [[child]]");
	missing("from = \"a\"\n" SCORE "[[child]]\nname = \"q\"\n",
		"child \"q\" has no \"command\", and [work] gives none");
	missing("from = \"a\"\n" SCORE "[[child]]\nname = \"q\"\ncommand = [\"x\"]\n"
		"[[child]]\nname = \"q\"\ncommand = [\"x\"]\n",
		"two children are named \"q\"");
	missing("from = \"a\"\n" SCORE "[[child]]\ncount = 1000\ncommand = [\"x\"]\n"
		"[[child]]\ncount = 25\ncommand = [\"x\"]\n",
		"more than 1024 children");
}

static void
file_that_is_not_there_is_named_before_anything_starts(void **state)
{
	struct swarm_spec *s = good("/nonexistent/x.toml",
		"from = \"a\"\nfiles = [{ from = \"f\", to = \"/root/f\" }]\n" SCORE
			CHILD);
	struct err e = {0};

	(void)state;
	assert_int_equal(swarm_spec_check_files(s, &e), -ENOENT);
	assert_string_equal(e.msg,
		"file to put into the guest: /nonexistent/f: No such file or directory");
	swarm_spec_free(s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(smallest_spec_has_the_documented_defaults),
		cmocka_unit_test(full_spec_is_read),
		cmocka_unit_test(wrong_specs_are_refused_with_place_and_key),
		cmocka_unit_test(what_is_missing_is_named),
		cmocka_unit_test(file_that_is_not_there_is_named_before_anything_starts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
