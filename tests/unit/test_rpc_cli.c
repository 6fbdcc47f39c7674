/*
 * The shipped `pando rpc` and `pando reports` against the shipped pando-agent, which runs
 * with an /etc and /var/lib of its own (a mount namespace: needs root). pandod's stand-in
 * (stand_in.h) has a report, too.
 */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "tests/unit/stand_in.h"

static bool can;
static struct ran got; /* out: stderr, too */

static const char reports_json[] =
	"{\"reports\":[{\"seq\":7,\"id\":\"00112233445566778899aabbccddeeff\","
	"\"vm\":\"0a1b2c3d4e5f\",\"alias\":\"a\",\"generation\":\"x\",\"time_ms\":1,"
	"\"report\":{\"status\":\"done\",\"score\":0.5,\"message\":\"it\\u001b is\","
	"\"files\":[{\"name\":\"sub/one\",\"path\":\"%s/one\",\"bytes\":7},"
	"{\"name\":\"gone\",\"path\":\"%s/gone\",\"bytes\":7},"
	"{\"name\":\"folder\",\"path\":\"%s/folder\",\"bytes\":7}]}}],"
	"\"next\":7,\"more\":false}";

static const char *
answer_reports(const char *request)
{
	static char body[2048];

	if (strstr(request, "/reports?after=0 ")) {
		snprintf(body, sizeof(body), reports_json, stand_in_home, stand_in_home,
			stand_in_home);
		return body;
	}
	if (strstr(request, "/reports?after="))
		return "{\"reports\":[],\"next\":7,\"more\":false}";
	return NULL;
}

static bool
enter_folders_of_its_own(void)
{
	static const char conf[] = "command = \"while read -r l; do echo "
				   "'{\\\"type\\\":\\\"agent_start\\\"}'; case $l in "
				   "*bad*) r=error;; *) r=stop;; esac; echo "
				   "'{\\\"type\\\":\\\"agent_end\\\",\\\"messages\\\":[{"
				   "\\\"stopReason\\\":\\\"'$r'\\\"}]}'; done\"\n"
				   "protocol = \"pi\"\ntmux = false\nstop_s = 1\n";

	return !unshare(CLONE_NEWNS) &&
	       !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	       !mount("none", "/etc", "tmpfs", 0, "size=8m") &&
	       !mount("none", "/var/lib", "tmpfs", 0, "size=64m") &&
	       !io_mkdir_p("/etc/pando/rpc.d", 0755, NULL) &&
	       !io_write_file_atomic(
		       "/etc/pando/rpc.d/cli-test.conf", conf, strlen(conf), 0644, NULL);
}

static int
start_all(void **state)
{
	(void)state;
	if (stand_in_open())
		return -1;
	stand_in_answers(answer_reports);
	/* Without root all are skipped. */
	can = stand_in_start_agent_in(NULL, enter_folders_of_its_own);
	return 0;
}

static void
run(const char *command)
{
	char text[8192];

	if (!can)
		skip();
	snprintf(text, sizeof(text), "exec 2>&1; pando() { '%s' \"$@\"; }; cd '%s'; %s",
		stand_in_pando, stand_in_home, command);
	stand_in_run(NULL, 0, (char *[]){"sh", "-c", text, NULL}, &got);
}

static int
stop_all(void **state)
{
	if (can)
		run("pando rpc stop a");
	unlink("/tmp/cli-test-rpc");
	return stand_in_teardown(state);
}

#define HAS(text) \
	do { \
		if (!strstr(got.out, text)) \
			fail_msg("no \"%s\" in: %s", text, got.out); \
	} while (0)

static void
words_that_make_no_sense_are_usage(void **state)
{
	(void)state;
	run("pando rpc");
	assert_int_equal(got.status, 2);
	run("pando rpc dance a");
	assert_int_equal(got.status, 2);
	HAS("there is start, stop, status, send, follow and attach");
	run("pando rpc start a b");
	assert_int_equal(got.status, 2);
	HAS("one word too many");
	run("pando rpc status a --until-done");
	assert_int_equal(got.status, 2);
	run("pando rpc follow a --from -3");
	assert_int_equal(got.status, 2);
	run("pando rpc attach a </dev/null");
	assert_int_equal(got.status, 2);
	HAS("needs a terminal");
}

static void
a_conversation(void **state)
{
	(void)state;
	run("pando rpc send a '{}'");
	assert_int_equal(got.status, 3);
	HAS("pando rpc start");
	run("pando rpc start a");
	assert_int_equal(got.status, 0);
	HAS("cli-test");
	HAS("running");
	run("pando rpc send --until-done a '{\"type\":\"prompt\",\"message\":\"good\"}'");
	assert_int_equal(got.status, 0);
	HAS("\"stopReason\":\"stop\"");
	run("echo '{\"type\":\"prompt\",\"message\":\"bad\"}' | pando rpc send -u a");
	assert_int_equal(got.status, 1);
	HAS("not done well: error");
	run("pando rpc send a '{\"type\":'");
	assert_int_equal(got.status, 2);
	HAS("no JSON");
	run("pando rpc follow --once --format json a");
	assert_int_equal(got.status, 0);
	HAS("\"number\":3,");
	HAS("next: --from ");
	run("pando rpc follow --once --from 9999 a");
	assert_int_equal(got.status, 2);
	run("pando rpc follow --name nosuch --once a");
	assert_int_equal(got.status, 3);
	HAS("\"nosuch\" was never started here");
	run("pando rpc status --format json a");
	assert_int_equal(got.status, 0);
	HAS("\"lines\":4");
	run("pando rpc stop a");
	assert_int_equal(got.status, 0);
	HAS("stopped");
}

static void
reports_and_their_files(void **state)
{
	(void)state;
	run("pando reports");
	assert_int_equal(got.status, 0);
	HAS("0.5");
	HAS("it\\x1b is");
	run("pando reports --format json a");
	HAS("\"seq\":7");
	/* One is there, one is gone, and one has become a folder. */
	run("printf 'result\\n' >one; mkdir folder; pando reports --fetch got a; ls -R "
	    "got");
	HAS("0-one");
	HAS("No such file");
	HAS("no regular file");
	run("pando reports -q --fetch got a >/dev/null");
	assert_int_equal(got.status, 1);
	run("test \"$(pando reports --fetch got a 2>/dev/null | grep 0-one | cut -d ' ' "
	    "-f 1)\" = "
	    "\"$(b2sum -l 256 one | cut -d ' ' -f 1)\" && cmp one "
	    "got/0a1b2c3d4e5f/00112233/0-one && "
	    "ls got/0a1b2c3d4e5f/00112233");
	assert_string_equal(got.out, "0-one\n");
	run("pando reports --fetch got --format json a");
	HAS("\"blake2b\":\"");
	run("pando reports --after x");
	assert_int_equal(got.status, 2);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(words_that_make_no_sense_are_usage),
		cmocka_unit_test(a_conversation),
		cmocka_unit_test(reports_and_their_files),
	};

	return cmocka_run_group_tests(tests, start_all, stop_all);
}
