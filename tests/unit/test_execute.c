/*
 * The shipped `pando execute` and `pando copy` against the shipped pando-agent: what a
 * user's script sees, its streams, statuses and signals. See stand_in.h for what is
 * between them.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "tests/unit/stand_in.h"

static struct ran got;

/* A VM that runs, and three that cannot be spoken with. */
static int
start_all(void **state)
{
	static char nobody[160];

	if (stand_in_setup(state))
		return -1;
	snprintf(nobody, sizeof(nobody), "%s/nobody.sock", stand_in_home);
	stand_in_knows(&(struct stand_in_vm){.name = "paused", .state = "paused"});
	stand_in_knows(&(struct stand_in_vm){
		.name = "dead", .state = "failed", .reason = "why"});
	stand_in_knows(&(struct stand_in_vm){.name = "mute", .agent_socket = nobody});
	return 0;
}

static void
out_and_err_and_the_status_are_the_commands_own(void **state)
{
	(void)state;
	RUN(&got, "execute", "a", "--", "sh", "-c", "echo out; echo err >&2; exit 7");
	assert_string_equal(got.out, "out\n");
	assert_string_equal(got.err, "err\n");
	assert_int_equal(got.status, 7);
	RUN(&got, "exec", "a", "true");
	assert_int_equal(got.status, 0);
	assert_int_equal(got.out_len + got.err_len, 0);
	RUN(&got, "execute", "a", "--", "sh", "-c", "kill -TERM $$");
	assert_int_equal(got.status, 128 + SIGTERM);
}

static void
words_arrive_as_they_are(void **state)
{
	(void)state;
	RUN(&got, "execute", "a", "--", "printf", "%s|", "", "a b", "$HOME", "*", "'\"\\",
		"-t");
	assert_string_equal(got.out, "|a b|$HOME|*|'\"\\|-t|");
	RUN(&got, "execute", "a", "--shell", "echo one | tr a-z A-Z; echo \"$1\"", "--",
		"x  y");
	assert_string_equal(got.out, "ONE\nx  y\n");
	RUN(&got, "execute", "-e", "GREETING=hello there", "-w", "/usr", "a", "--", "sh",
		"-c", "echo $GREETING; pwd");
	assert_string_equal(got.out, "hello there\n/usr\n");
}

static void
binary_input_of_any_size_comes_back_whole(void **state)
{
	size_t len = (8u << 20) + 13;
	char *data = malloc(len);

	(void)state;
	for (size_t i = 0; i < len; i++)
		data[i] = (char)(i * 2654435761u >> 13);
	RUN_WITH(&got, data, len, "execute", "-i", "a", "--", "cat");
	assert_int_equal(got.status, 0);
	assert_int_equal(got.out_len, len);
	assert_memory_equal(got.out, data, len);
	RUN_WITH(&got, data, len, "execute", "a", "--stdin", "--", "wc", "-c");
	assert_int_equal(strtoul(got.out, NULL, 10), len);
	/* A command that reads nothing ends all the same. */
	RUN_WITH(&got, data, len, "execute", "-i", "a", "--", "true");
	assert_int_equal(got.status, 0);
	free(data);
}

static void
input_is_the_commands_with_i_only(void **state)
{
	char words[256];

	(void)state;
	for (int i = 0; i < 3; i++) {
		char *const how[] = {"-q", "-n", "-u0"};

		RUN_WITH(&got, "x\n", 2, "execute", how[i], "a", "--", "wc", "-c");
		assert_int_equal(got.status, 0);
		assert_int_equal(strtoul(got.out, NULL, 10), 0);
		assert_string_equal(got.err, "");
	}
	RUN_WITH(&got, "x\n", 2, "execute", "--interactive", "a", "--", "wc", "-c");
	assert_int_equal(strtoul(got.out, NULL, 10), 2);
	/* A file that nobody has read from was meant for somebody. */
	setenv("PANDO", stand_in_pando, 1);
	snprintf(words, sizeof(words),
		"cd %s && printf xyz >input && exec \"$PANDO\" execute a -- wc -c <input",
		stand_in_home);
	stand_in_run(NULL, 0, (char *[]){"sh", "-c", words, NULL}, &got);
	assert_int_equal(strtoul(got.out, NULL, 10), 0);
	assert_non_null(strstr(got.err, "-i does that"));
}

static void
a_loop_around_it_keeps_its_input(void **state)
{
	char words[256];

	(void)state;
	setenv("PANDO", stand_in_pando, 1);
	snprintf(words, sizeof(words),
		"cd %s && seq 3 >lines && seq 3 |\n"
		"while read x; do \"$PANDO\" exec a -- echo pipe $x; done\n"
		"while read x; do \"$PANDO\" exec a -- echo file $x; done <lines",
		stand_in_home);
	stand_in_run(NULL, 0, (char *[]){"sh", "-c", words, NULL}, &got);
	assert_string_equal(got.err, "");
	assert_string_equal(got.out, "pipe 1\npipe 2\npipe 3\nfile 1\nfile 2\nfile 3\n");
}

static void
doctor_looks_into_a_vm(void **state)
{
	cleanup_json struct json *j = NULL;

	(void)state;
	RUN(&got, "doctor", "--vm", "a", "--format", "json");
	/* This host is no guest: it was never told who it is. */
	assert_int_equal(got.status, 1);
	assert_int_equal(json_parse(got.out, got.out_len, 4096, &j, NULL), 0);
	assert_non_null(strstr(got.out, "\"its agent is of version " PANDO_VERSION));
	assert_non_null(strstr(got.out, "\"its clock is the host's\""));
	assert_non_null(strstr(got.out, "the guest was never told who it is"));
	RUN(&got, "doctor", "--vm", "dead");
	assert_int_equal(got.status, 1);
	assert_non_null(strstr(got.out, "pando start a"));
	RUN(&got, "doctor", "--vm", "nobody");
	assert_int_equal(got.status, 3);
	assert_int_equal(got.out_len, 0);
	RUN(&got, "doctor", "--vm", "a", "--can-boot-linux");
	assert_int_equal(got.status, 2);
}

static void
a_timeout_is_status_6_and_leaves_nothing_behind(void **state)
{
	char words[64];

	(void)state;
	snprintf(words, sizeof(words), "sleep %s & sleep %s", stand_in_mark,
		stand_in_mark);
	RUN(&got, "execute", "a", "--timeout", "1", "--", "sh", "-c", words);
	assert_int_equal(got.status, EXIT_TIMED_OUT);
	assert_true(got.took_ns > 900000000 && got.took_ns < 10000000000);
	assert_non_null(strstr(got.err, "longer than 1 s"));
	usleep(200000);
	assert_int_equal(stand_in_running("sleep"), 0);
}

static void
what_cannot_be_started_is_126_or_127(void **state)
{
	(void)state;
	RUN(&got, "execute", "a", "--", "no-such-command-anywhere");
	assert_int_equal(got.status, 127);
	assert_int_not_equal(got.err_len, 0);
	RUN(&got, "execute", "a", "--", "/");
	assert_int_equal(got.status, 126);
}

static void
our_own_failures_have_their_numbers(void **state)
{
	(void)state;
	RUN(&got, "execute", "nobody", "--", "true");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN(&got, "execute", "echo", "true"); /* a command is no VM */
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN(&got, "execute", "a");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN(&got, "execute", "paused", "--", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "pando resume"));
	RUN(&got, "execute", "dead", "--", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "why"));
	RUN(&got, "execute", "mute", "--", "true");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_int_equal(got.out_len, 0);
}

static void
an_interrupt_goes_to_the_command_and_a_second_ends_us(void **state)
{
	char *const argv[] = {"pando", "execute", "a", "--", "sh", "-c",
		"trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done",
		NULL};
	char *const deaf[] = {"pando", "execute", "a", "--", "sh", "-c",
		"trap 'echo no' INT; echo ready; while :; do sleep 0.05; done", NULL};
	int out, err;
	pid_t pid;

	(void)state;
	pid = stand_in_start(argv, -1, &out, &err);
	stand_in_await(out, "ready");
	kill(pid, SIGINT);
	stand_in_finish(pid, out, err, &got);
	assert_string_equal(got.out, "caught\n");
	assert_int_equal(got.status, 9);

	pid = stand_in_start(deaf, -1, &out, &err);
	stand_in_await(out, "ready");
	kill(pid, SIGINT);
	stand_in_await(out, "no");
	usleep(150000);
	kill(pid, SIGINT);
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, EXIT_CANCELLED);
	assert_non_null(strstr(got.err, "interrupted twice"));
}

/* timeout(1) tells its child and then its group, which the child is in. */
static void
a_signal_that_is_told_twice_at_once_does_not_kill(void **state)
{
	char *const argv[] = {"pando", "execute", "a", "--", "sh", "-c",
		"trap 'sleep 0.3; echo tidied; exit 9' TERM; echo ready;"
		" while :; do sleep 0.05; done",
		NULL};
	int out, err;
	pid_t pid;

	(void)state;
	pid = stand_in_start(argv, -1, &out, &err);
	stand_in_await(out, "ready");
	kill(pid, SIGTERM);
	usleep(20000);
	kill(pid, SIGTERM);
	stand_in_finish(pid, out, err, &got);
	assert_string_equal(got.out, "tidied\n");
	assert_int_equal(got.status, 9);
}

/* As nohup has it, and as a script's "&" has it with Ctrl-C. */
static void
a_signal_that_is_ignored_does_not_reach_the_command(void **state)
{
	static char words[] =
		"trap '' HUP INT; exec \"$PANDO\" execute a -- sh -c"
		" 'trap \"echo caught; exit 9\" HUP INT TERM; echo ready; sleep 1; echo done'";
	const int signals[] = {SIGHUP, SIGINT};
	int out, err;
	pid_t pid;

	(void)state;
	setenv("PANDO", stand_in_pando, 1);
	for (int i = 0; i < 2; i++) {
		pid = stand_in_start((char *[]){"sh", "-c", words, NULL}, -1, &out, &err);
		stand_in_await(out, "ready");
		kill(pid, signals[i]);
		stand_in_finish(pid, out, err, &got);
		assert_string_equal(got.err, "");
		assert_string_equal(got.out, "done\n");
		assert_int_equal(got.status, 0);
	}
	/* SIGTERM still does. */
	pid = stand_in_start((char *[]){"sh", "-c", words, NULL}, -1, &out, &err);
	stand_in_await(out, "ready");
	kill(pid, SIGTERM);
	stand_in_finish(pid, out, err, &got);
	assert_string_equal(got.out, "caught\n");
	assert_int_equal(got.status, 9);
}

static void
a_reader_that_leaves_ends_the_command(void **state)
{
	char words[64];
	char *const argv[] = {"pando", "execute", "a", "--", "sh", "-c", words, NULL};
	int out, err;
	pid_t pid;

	(void)state;
	snprintf(words, sizeof(words), "exec yes %s", stand_in_mark);
	pid = stand_in_start(argv, -1, &out, &err);
	stand_in_await(out, stand_in_mark);
	assert_int_not_equal(stand_in_running("yes"), 0);
	close(out);
	assert_int_equal(stand_in_wait(pid), 128 + SIGPIPE);
	close(err);
	usleep(300000);
	assert_int_equal(stand_in_running("yes"), 0);
}

static void
json_holds_streams_and_end(void **state)
{
	cleanup_json struct json *j = NULL;
	char text[64];
	uint64_t n;

	(void)state;
	RUN(&got, "execute", "--format", "json", "a", "--", "sh", "-c",
		"printf 'a\\n\\377'; echo e >&2; exit 3");
	assert_int_equal(got.status, 3);
	assert_int_equal(got.err_len, 0);
	assert_int_equal(json_parse(got.out, got.out_len, 64, &j, NULL), 0);
	assert_int_equal(json_str(j, json_get(j, 0, "end"), text, sizeof(text)), 0);
	assert_string_equal(text, "exited");
	assert_int_equal(json_u64(j, json_get(j, 0, "status"), &n), 0);
	assert_int_equal(n, 3);
	assert_int_equal(json_str(j, json_get(j, 0, "stdout"), text, sizeof(text)), 0);
	assert_string_equal(text, "a\n\xef\xbf\xbd");
	assert_int_equal(json_u64(j, json_get(j, 0, "stdout_bytes"), &n), 0);
	assert_int_equal(n, 3);
	assert_int_equal(json_str(j, json_get(j, 0, "stderr"), text, sizeof(text)), 0);
	assert_string_equal(text, "e\n");
}

static void
a_detached_command_is_taken_up_again(void **state)
{
	char id[32];

	(void)state;
	RUN(&got, "execute", "-d", "a", "--", "sh", "-c",
		"echo early; sleep 0.3; echo late; exit 4");
	assert_int_equal(got.status, 0);
	snprintf(id, sizeof(id), "%.*s", (int)strcspn(got.out, "\n"), got.out);
	RUN(&got, "execute", "a", "--list");
	assert_non_null(strstr(got.out, id));
	RUN(&got, "execute", "a", "--attach", id);
	assert_string_equal(got.out, "early\nlate\n");
	assert_int_equal(got.status, 4);
	RUN(&got, "execute", "a", "--attach", "e999999");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
}

/* Linux takes 2 MiB of arguments and environment, each up to 128 KiB. */
static void
what_linux_takes_of_arguments_and_environment_goes_through(void **state)
{
	static const char script[] =
		"printf '%s %s ' $# ${#BIG}; printf %s \"$*\" | wc -c";
	enum { WORDS = 16, BYTES = 110000 };
	char *argv[10 + WORDS + 1] = {"pando", "execute", "-e", NULL, "a", "--", "sh",
		"-c", (char *)(uintptr_t)script, "sh"};
	char *env = calloc(1, BYTES + 5);

	(void)state;
	memcpy(env, "BIG=", 4);
	memset(env + 4, 'e', BYTES);
	argv[3] = env;
	for (int i = 0; i < WORDS; i++) {
		argv[10 + i] = calloc(1, BYTES + 1);
		memset(argv[10 + i], 'a' + i, BYTES);
	}
	stand_in_run(NULL, 0, argv, &got);
	if (got.status)
		fail_msg("%s", got.err);
	assert_string_equal(got.out, "16 110000 1760015\n");
	/* Characters that JSON writes as two. */
	for (int i = 0; i < WORDS; i++)
		memset(argv[10 + i], i % 2 ? '"' : '\\', BYTES);
	stand_in_run(NULL, 0, argv, &got);
	assert_string_equal(got.out, "16 110000 1760015\n");
	/* 4000 short ones. */
	RUN(&got, "execute", "a", "--", "sh", "-c",
		"exec sh -c 'echo $#' sh $(seq -f %060g 4000)");
	assert_string_equal(got.out, "4000\n");
	for (int i = 0; i < WORDS; i++)
		free(argv[10 + i]);
	free(env);
}

static void
a_user_may_be_a_number_that_passwd_does_not_have(void **state)
{
	(void)state;
	if (geteuid())
		skip();
	RUN(&got, "execute", "-u", "424242", "a", "--", "sh", "-c",
		"id -u; id -g; id -G; echo $HOME $USER; pwd");
	assert_string_equal(got.out, "424242\n424242\n424242\n/ 424242\n/\n");
	assert_int_equal(got.status, 0);
	RUN(&got, "execute", "-u", "nobody-of-that-name", "a", "--", "true");
	assert_int_not_equal(got.status, 0);
	RUN(&got, "execute", "-u", "4294967295", "a", "--", "true");
	assert_int_not_equal(got.status, 0);
}

static void
a_tree_is_copied_there_and_back_with_its_modes(void **state)
{
	char made[64], there[64], back[64], command[1200];
	struct stat st;

	(void)state;
	snprintf(made, sizeof(made), "%s/made", stand_in_home);
	snprintf(there, sizeof(there), "a:%s/there", stand_in_home);
	snprintf(back, sizeof(back), "%s/back", stand_in_home);
	snprintf(command, sizeof(command),
		"mkdir -p %s/sub && echo x >%s/sub/f && chmod 640 %s/sub/f && chmod 711 %s/sub && ln -s sub/f %s/link && head -c 300000 /dev/urandom >%s/big",
		made, made, made, made, made, made);
	assert_int_equal(system(command), 0);
	RUN(&got, "copy", made, there);
	assert_int_equal(got.status, 0);
	assert_string_equal(got.out, "");
	snprintf(there, sizeof(there), "a:%s/there/.", stand_in_home);
	assert_int_equal(mkdir(back, 0755), 0);
	RUN(&got, "copy", "--format", "json", there, back);
	assert_int_equal(got.status, 0);
	assert_non_null(strstr(got.out, "\"files\":2"));
	snprintf(command, sizeof(command), "diff -r --no-dereference %s %s", made, back);
	assert_int_equal(system(command), 0);
	snprintf(command, sizeof(command), "%s/sub/f", back);
	assert_int_equal(stat(command, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0640);
	RUN(&got, "copy", "a:/no/such/file", back);
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN(&got, "copy", "/no/such/file", "a:/tmp");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN(&got, "copy", "/tmp/x", "/tmp/y");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN(&got, "copy", "a:/tmp/x", "a:/tmp/y");
	assert_int_equal(got.status, EXIT_USAGE);
}

/* As docker and tar have it; a file that is silently named so would be found much later. */
static void
copy_takes_no_standard_streams_and_says_what_does(void **state)
{
	(void)state;
	assert_int_equal(chdir(stand_in_home), 0);
	RUN_WITH(&got, "x", 1, "cp", "-", "a:/tmp/never");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_non_null(strstr(got.err, "pando execute -i a -- "));
	RUN(&got, "cp", "a:/etc/passwd", "-");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_non_null(strstr(got.err, "pando execute a -- cat"));
	assert_int_equal(access("-", F_OK), -1);
	RUN(&got, "cp", "-rp", "a:/etc/passwd", "./-");
	assert_int_equal(got.status, 0);
	assert_int_equal(unlink("-"), 0);
}

static void
a_terminal_has_the_size_of_ours_and_gets_its_keys(void **state)
{
	char *const argv[] = {"pando", "exec", "-it", "a", "--", "sh", "-c",
		"test -t 0 && stty size && read line && echo \"<$line>\" && sleep 30",
		NULL};
	struct termios before, after;
	int master;
	pid_t pid = stand_in_start_on_terminal(argv, 33, 77, &master);

	(void)state;
	assert_int_equal(tcgetattr(master, &before), 0);
	stand_in_await(master, "33 77");
	assert_int_equal(io_write_full(master, "typed\r", 6), 0);
	stand_in_await(master, "<typed>");
	/* Ctrl-C is a key of that terminal, not a signal to us. */
	assert_int_equal(io_write_full(master, "\003", 1), 0);
	assert_int_equal(stand_in_wait(pid), 128 + SIGINT);
	/* And ours is as it was. */
	assert_int_equal(tcgetattr(master, &after), 0);
	assert_int_equal(before.c_lflag, after.c_lflag);
	close(master);
	RUN(&got, "execute", "-it", "a", "--", "true");
	assert_int_equal(got.status, EXIT_USAGE);
}

static void
t_alone_is_a_terminal_on_which_nobody_types(void **state)
{
	char *const argv[] = {"pando", "exec", "-t", "a", "--", "sh", "-c",
		"test -t 0 && test -t 1 && stty size", NULL};
	int master;
	pid_t pid = stand_in_start_on_terminal(argv, 33, 77, &master);
	char *out = stand_in_read_all(master);

	(void)state;
	assert_int_equal(stand_in_wait(pid), 0);
	assert_non_null(strstr(out, "33 77"));
	free(out);
	close(master);
	/* It needs none of ours, and takes nothing of what waits on our input. */
	RUN_WITH(&got, "typed\n", 6, "exec", "-t", "a", "--", "sh", "-c",
		"test -t 0 && test -t 1 && echo yes");
	assert_int_equal(got.status, 0);
	assert_string_equal(got.out, "yes\r\n");
}

/* What scripts say that know -t as the time limit. */
static void
json_is_not_for_what_a_terminal_shows(void **state)
{
	char *const argv[] = {
		"pando", "execute", "-it", "--format", "json", "a", "true", NULL};
	int master, status;
	char *said;
	pid_t pid;

	(void)state;
	pid = stand_in_start_on_terminal(argv, 33, 77, &master);
	said = stand_in_read_all(master);
	status = stand_in_wait(pid);
	close(master);
	assert_non_null(strstr(said, "--format json does not go with -it"));
	free(said);
	assert_int_equal(status, EXIT_USAGE);
	RUN(&got, "execute", "--ssh", "-it", "--format", "json", "a", "true");
	assert_int_equal(got.status, EXIT_USAGE);
	/* Nobody types: the output is kept. */
	RUN(&got, "execute", "-t", "--format", "json", "a", "--", "echo", "kept");
	assert_int_equal(got.status, 0);
	assert_non_null(strstr(got.out, "\"stdout\":\"kept"));
}

static void
output_that_is_lost_is_a_failure_of_our_side(void **state)
{
	char *const words[] = {"execute a -- echo lost",
		"execute --format json a -- true", "execute --format json a -- false",
		"execute -d a -- true", "execute --list a"};
	char *const full[] = {">/dev/full", ">&-"};
	char text[512];

	(void)state;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		for (size_t k = 0; k < 2; k++) {
			snprintf(text, sizeof(text), "exec \"$0\" %s %s", words[i],
				full[k]);
			stand_in_run("", 0,
				(char *[]){"/bin/sh", "-c", text, stand_in_pando, NULL},
				&got);
			assert_int_equal(got.status, i == 2 ? 1 : EXIT_HOST_SIDE);
			assert_string_not_equal(got.err, "");
		}
}

static void
a_time_behind_t_is_still_a_limit(void **state)
{
	(void)state;
	RUN(&got, "execute", "-n", "-t", "0.3", "a", "--", "sleep", "60");
	assert_int_equal(got.status, EXIT_TIMED_OUT);
	assert_non_null(strstr(got.err, "the time limit is --timeout 0.3"));
}

/* Last: it takes the agent with it. */
static void
a_stream_without_an_exit_record_is_125(void **state)
{
	char *const argv[] = {
		"pando", "execute", "a", "--", "sh", "-c", "echo ready; sleep 5", NULL};
	int out, err;
	pid_t pid;

	(void)state;
	pid = stand_in_start(argv, -1, &out, &err);
	stand_in_await(out, "ready");
	stand_in_kill_agent();
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "pando: "));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(out_and_err_and_the_status_are_the_commands_own),
		cmocka_unit_test(words_arrive_as_they_are),
		cmocka_unit_test(binary_input_of_any_size_comes_back_whole),
		cmocka_unit_test(input_is_the_commands_with_i_only),
		cmocka_unit_test(a_loop_around_it_keeps_its_input),
		cmocka_unit_test(doctor_looks_into_a_vm),
		cmocka_unit_test(a_timeout_is_status_6_and_leaves_nothing_behind),
		cmocka_unit_test(what_cannot_be_started_is_126_or_127),
		cmocka_unit_test(our_own_failures_have_their_numbers),
		cmocka_unit_test(an_interrupt_goes_to_the_command_and_a_second_ends_us),
		cmocka_unit_test(a_signal_that_is_told_twice_at_once_does_not_kill),
		cmocka_unit_test(a_signal_that_is_ignored_does_not_reach_the_command),
		cmocka_unit_test(a_reader_that_leaves_ends_the_command),
		cmocka_unit_test(json_holds_streams_and_end),
		cmocka_unit_test(a_detached_command_is_taken_up_again),
		cmocka_unit_test(
			what_linux_takes_of_arguments_and_environment_goes_through),
		cmocka_unit_test(a_user_may_be_a_number_that_passwd_does_not_have),
		cmocka_unit_test(a_tree_is_copied_there_and_back_with_its_modes),
		cmocka_unit_test(copy_takes_no_standard_streams_and_says_what_does),
		cmocka_unit_test(a_terminal_has_the_size_of_ours_and_gets_its_keys),
		cmocka_unit_test(t_alone_is_a_terminal_on_which_nobody_types),
		cmocka_unit_test(a_time_behind_t_is_still_a_limit),
		cmocka_unit_test(json_is_not_for_what_a_terminal_shows),
		cmocka_unit_test(output_that_is_lost_is_a_failure_of_our_side),
		cmocka_unit_test(a_stream_without_an_exit_record_is_125),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, start_all, stand_in_teardown);
}
