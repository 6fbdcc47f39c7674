/*
 * The shipped `pando rpc` and `pando reports` against the shipped pando-agent, which runs
 * with an /etc and /var/lib of its own (a mount namespace: needs root). pandod's stand-in
 * (stand_in.h) has a report, too.
 */
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
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

static int waits, refusals;

static const char *
answer_reports(const char *request)
{
	static char body[2048];

	if (strstr(request, "/reports?after=0 ")) {
		snprintf(body, sizeof(body), reports_json, stand_in_home, stand_in_home,
			stand_in_home);
		return body;
	}
	/* There is no place for a follower at first, and then no connection. */
	if (strstr(request, "/v1/reports?after=7&wait=1 ") && refusals < 2)
		return refusals++ ? "{\"error\":{\"errno\":\"EBUSY\",\"code\":-16,"
				    "\"message\":\"too many connections\"}}"
				  : "{\"error\":{\"errno\":\"EAGAIN\",\"code\":-11,"
				    "\"message\":\"64 calls wait\"}}";
	/* A follower waits; the second report comes, and another VM has said too much. */
	if (strstr(request, "/v1/reports?after=7&wait=1 "))
		return "{\"reports\":[{\"seq\":9,\"id\":\"11112233445566778899aabbccddeeff\","
		       "\"vm\":\"0a1b2c3d4e5f\",\"alias\":\"a\",\"generation\":\"x\","
		       "\"time_ms\":1,\"report\":{\"status\":\"failed\",\"message\":\"second\","
		       "\"files\":[]}}],\"next\":9,\"more\":false,\"dropped\":[{\"vm\":"
		       "\"ffffffffffff\",\"alias\":\"loud\",\"reports\":12,"
		       "\"limit_bytes\":16777216}]}";
	if (strstr(request, "/v1/reports?after=9&wait=1 ")) {
		__atomic_add_fetch(&waits, 1, __ATOMIC_SEQ_CST);
		usleep(20000);
		return "{\"reports\":[],\"next\":9,\"more\":false}";
	}
	if (strstr(request, "/reports?after="))
		return "{\"reports\":[],\"next\":7,\"more\":false}";
	return NULL;
}

static bool
enter_folders_of_its_own(void)
{
	static const char conf[] =
		"command = \"while read -r l; do echo '{\\\"type\\\":\\\"agent_start\\\"}'; case $l in *bad*) r=error;; *) r=stop;; esac; echo "
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

/* texts ends with NULL: all that must be in what it says. */
static void
run_to(int status, const char *command, const char *const *texts)
{
	run(command);
	if (got.status != status)
		fail_msg("%s: %d: %s", command, got.status, got.out);
	for (; *texts; texts++)
		if (!strstr(got.out, *texts))
			fail_msg("%s: no \"%s\" in: %s", command, *texts, got.out);
}

#define RUN_TO(status, command, ...) \
	run_to(status, command, (const char *const[]){__VA_ARGS__ __VA_OPT__(, ) NULL})

static void
words_that_make_no_sense_are_usage(void **state)
{
	(void)state;
	RUN_TO(2, "pando rpc");
	RUN_TO(2, "pando rpc dance a",
		"there is start, stop, status, send, follow and attach");
	RUN_TO(2, "pando rpc start a b", "one word too many");
	RUN_TO(2, "pando rpc status a --until-done");
	RUN_TO(2, "pando rpc follow a --from -3");
	RUN_TO(2, "pando rpc attach a </dev/null", "needs a terminal");
}

static void
a_conversation(void **state)
{
	(void)state;
	RUN_TO(3, "pando rpc send a '{}'", "pando rpc start");
	RUN_TO(0, "pando rpc start a", "cli-test", "running");
	RUN_TO(0,
		"pando rpc send --until-done a '{\"type\":\"prompt\",\"message\":\"good\"}'",
		"\"stopReason\":\"stop\"");
	RUN_TO(1,
		"echo '{\"type\":\"prompt\",\"message\":\"bad\"}' | pando rpc send -u a",
		"not done well: error");
	RUN_TO(2, "pando rpc send a '{\"type\":'", "no JSON");
	RUN_TO(0, "pando rpc follow --once --format json a", "\"number\":3,",
		"next: --from ");
	RUN_TO(2, "pando rpc follow --once --from 9999 a");
	RUN_TO(3, "pando rpc follow --name nosuch --once a",
		"\"nosuch\" was never started here");
	RUN_TO(0, "pando rpc status --format json a", "\"lines\":4");
	RUN_TO(0, "pando rpc stop a", "stopped");
}

static void
reports_and_their_files(void **state)
{
	(void)state;
	RUN_TO(0, "pando reports", "0.5", "it\\x1b is");
	RUN_TO(0, "pando reports --format json a", "\"seq\":7");
	/* One is there, one is gone, and one has become a folder. */
	RUN_TO(0,
		"printf 'result\\n' >one; mkdir folder; pando reports --fetch got a; ls -R got",
		"0-one", "No such file", "no regular file");
	RUN_TO(1, "pando reports -q --fetch got a >/dev/null");
	run("test \"$(pando reports --fetch got a 2>/dev/null | grep 0-one | cut -d ' ' -f 1)\" = \"$(b2sum -l 256 one | cut -d ' ' -f 1)\" && cmp one "
	    "got/0a1b2c3d4e5f/00112233/0-one && ls got/0a1b2c3d4e5f/00112233");
	assert_string_equal(got.out, "0-one\n");
	RUN_TO(1, "pando reports --fetch got --format json a", "\"blake2b\":\"");
	RUN_TO(2, "pando reports --after x");
}

static void
a_follower_asks_again_and_waits_at_pandod_for_what_comes(void **state)
{
	char *const argv[] = {"pando", "reports", "-f", "--format", "json", NULL};
	int out, err;
	pid_t pid = stand_in_start(argv, -1, &out, &err);

	(void)state;
	stand_in_await(out, "second");
	stand_in_await(err,
		"vm \"loud\": its reports take more than 16 MiB; its 12 oldest were dropped");
	for (int i = 0; i < 3000 && !__atomic_load_n(&waits, __ATOMIC_SEQ_CST); i++)
		usleep(10000);
	kill(pid, SIGINT);
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, 0);
	assert_int_equal(refusals, 2);
	assert_true(waits > 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(words_that_make_no_sense_are_usage),
		cmocka_unit_test(a_conversation),
		cmocka_unit_test(reports_and_their_files),
		cmocka_unit_test(
			a_follower_asks_again_and_waits_at_pandod_for_what_comes),
	};

	return cmocka_run_group_tests(tests, start_all, stop_all);
}
