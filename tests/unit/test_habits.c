/*
 * What hands that know docker and kubectl type: the shipped `pando` is asked, with a pandod
 * that knows four VMs, keeps what it was told and says that it did it.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "tests/unit/stand_in.h"

static struct ran got;
static char
	told[4096]; /* requests but GETs, each with a ';'. Read when pando has ended */

static size_t deleted_first = SIZE_MAX; /* is there when asked for, and then no more */

static const struct {
	const char *id, *name;
} vms[] = {{"aaaaaaaaaaa1", "a"}, {"aaaaaaaaaaa2", "b"}, {"aaaaaaaaaaa3", "c"},
	{"aaaaaaaaaaa4", "d"}};
#define N_VMS (sizeof(vms) / sizeof(vms[0]))

/* a has the branch d. */
static const char *
deletes(const char *line, const char *id)
{
	static char body[256];
	bool dry = strstr(line, "dry_run=1"), deep = strstr(line, "recursive=1");

	snprintf(body, sizeof(body), "{\"%s\":[\"%s\"%s]}",
		dry ? "would_delete" : "deleted", id,
		deep && strcmp(id, vms[0].id) == 0 ? ",\"aaaaaaaaaaa4\"" : "");
	return body;
}

static const char *
answer(const char *request)
{
	static char body[2048], line[256];
	char method[8], name[64];
	size_t n = 0;

	snprintf(line, sizeof(line), "%.*s", (int)strcspn(request, "\r"), request);
	if (sscanf(line, "%7s /v1/vms", method) != 1)
		return NULL;
	if (strncmp(line, "GET ", 4) != 0 && !strstr(line, "dry_run"))
		snprintf(told + strlen(told), sizeof(told) - strlen(told), "%.*s;",
			(int)(strcspn(line, " ") + 1 +
				strcspn(strchr(line, ' ') + 1, " ")),
			line);
	if (sscanf(line, "%*s /v1/vms/%63[^/? ]", name) != 1) {
		n = (size_t)snprintf(body, sizeof(body), "{\"vms\":[");
		for (size_t i = 0; i < N_VMS; i++)
			n += (size_t)snprintf(body + n, sizeof(body) - n,
				"%s{\"id\":\"%s\",\"alias\":\"%s\",\"state\":\"%s\"}",
				i ? "," : "", vms[i].id, vms[i].name,
				i == 2 ? "stopped" : "running");
		snprintf(body + n, sizeof(body) - n, "]}");
		return body;
	}
	for (size_t i = 0; i < N_VMS; i++) {
		if (strcmp(name, vms[i].id) != 0 && strcmp(name, vms[i].name) != 0)
			continue;
		if (strcmp(method, "DELETE") == 0 && i == deleted_first)
			return NULL;
		if (strcmp(method, "DELETE") == 0)
			return deletes(line, vms[i].id);
		snprintf(body, sizeof(body),
			"{\"id\":\"%s\",\"alias\":\"%s\",\"state\":\"running\","
			"\"console\":\"%s/console\"}",
			vms[i].id, vms[i].name, stand_in_home);
		return body;
	}
	return NULL;
}

static int
start_all(void **state)
{
	(void)state;
	if (stand_in_open())
		return -1;
	stand_in_answers(answer);
	return 0;
}

static int
forget(void **state)
{
	(void)state;
	told[0] = '\0';
	return 0;
}

/* On a terminal, with that key pressed at the question; all it said. */
static const char *
at_a_terminal(char *const argv[], const char *key, int *ret_status)
{
	static char said[65536];
	char *all;
	int master;
	pid_t pid = stand_in_start_on_terminal(argv, 24, 200, &master);

	snprintf(said, sizeof(said), "%s", key ? stand_in_await(master, "[y/N]") : "");
	if (key)
		assert_int_equal(io_write_full(master, key, strlen(key)), 0);
	all = stand_in_read_all(master);
	strncat(said, all, sizeof(said) - strlen(said) - 1);
	free(all);
	*ret_status = stand_in_wait(pid);
	close(master);
	return said;
}
#define AT_A_TERMINAL(key, status, ...) \
	at_a_terminal((char *[]){"pando", __VA_ARGS__, NULL}, key, status)

static void
kill_asks_as_delete_does_and_names_what_keeps_the_disk(void **state)
{
	char *const words[] = {"kill", "delete", "rm"};
	const char *said;
	int status;

	(void)state;
	for (int i = 0; i < 3; i++) {
		said = AT_A_TERMINAL("n\r", &status, words[i], "a");
		assert_non_null(strstr(said, "Delete \"a\" and its disk?"));
		assert_non_null(strstr(said, "pando stop --force"));
		assert_non_null(strstr(said, "keeps its disk"));
		assert_non_null(strstr(said, "nothing was deleted"));
		assert_int_equal(status, EXIT_CANCELLED);
		assert_string_equal(told, "");
		/* Return alone is no. */
		AT_A_TERMINAL("\r", &status, words[i], "a");
		assert_int_equal(status, EXIT_CANCELLED);
		assert_string_equal(told, "");
	}
	AT_A_TERMINAL("y\r", &status, "kill", "a");
	assert_int_equal(status, 0);
	assert_string_equal(told, "DELETE /v1/vms/aaaaaaaaaaa1;");
}

static void
the_question_names_all_that_would_go(void **state)
{
	const char *said;
	int status;

	(void)state;
	said = AT_A_TERMINAL("n\r", &status, "kill", "-r", "a", "b");
	assert_non_null(
		strstr(said, "Delete 3 VMs and their disks: \"a\", \"d\", \"b\"?"));
	assert_non_null(strstr(said, "pando stop --force"));
	said = AT_A_TERMINAL("n\r", &status, "delete", "--all");
	assert_non_null(strstr(said, "Delete 4 VMs"));
	assert_string_equal(told, "");
	/* Who only looks, or has said yes, is not asked. */
	said = AT_A_TERMINAL(NULL, &status, "kill", "--dry-run", "a");
	assert_null(strstr(said, "[y/N]"));
	assert_string_equal(told, "");
	said = AT_A_TERMINAL(NULL, &status, "kill", "-y", "a");
	assert_null(strstr(said, "[y/N]"));
	assert_string_equal(told, "DELETE /v1/vms/aaaaaaaaaaa1;");
}

static void
rm_f_asks_nothing_and_misses_nothing(void **state)
{
	const char *said;
	int status;

	(void)state;
	said = AT_A_TERMINAL(NULL, &status, "rm", "-f", "nosuch", "b");
	assert_null(strstr(said, "[y/N]"));
	assert_int_equal(status, 0);
	assert_string_equal(told, "DELETE /v1/vms/aaaaaaaaaaa2;");
	told[0] = '\0';
	RUN(&got, "rm", "-rf", "a");
	assert_int_equal(got.status, 0);
	assert_string_equal(got.out, "aaaaaaaaaaa1\naaaaaaaaaaa4\n");
	told[0] = '\0';
	RUN(&got, "rm", "nosuch", "b");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	assert_string_equal(told, "");
}

static void
rm_f_does_not_miss_what_somebody_else_deletes_meanwhile(void **state)
{
	(void)state;
	deleted_first = 2;
	RUN(&got, "rm", "-f", "c", "b");
	assert_int_equal(got.status, 0);
	assert_string_equal(got.out, "aaaaaaaaaaa2\n");
	RUN(&got, "delete", "--all");
	assert_int_equal(got.status, 0);
	RUN(&got, "rm", "c", "b");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	assert_string_equal(got.out, "aaaaaaaaaaa2\n");
	deleted_first = SIZE_MAX;
}

static void
an_option_before_the_verb_is_told_its_place(void **state)
{
	(void)state;
	RUN(&got, "-q", "ps");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_non_null(strstr(got.err, "options stand behind"));
}

static void
stop_takes_several_vms(void **state)
{
	(void)state;
	RUN(&got, "stop", "a", "b", "c", "a");
	assert_int_equal(got.status, 0);
	assert_string_equal(got.out, "aaaaaaaaaaa1\naaaaaaaaaaa2\naaaaaaaaaaa3\n");
	assert_non_null(strstr(told, "POST /v1/vms/aaaaaaaaaaa1/stop;"));
	assert_non_null(strstr(told, "POST /v1/vms/aaaaaaaaaaa2/stop;"));
	assert_non_null(strstr(told, "POST /v1/vms/aaaaaaaaaaa3/stop;"));
	assert_int_equal(strlen(told), 3 * strlen("POST /v1/vms/aaaaaaaaaaa3/stop;"));
}

static void
pause_resume_and_start_do_too(void **state)
{
	char *const words[] = {"pause", "resume", "start"};

	(void)state;
	for (int i = 0; i < 3; i++) {
		char a[64], b[64];

		told[0] = '\0';
		RUN(&got, words[i], "b", "a");
		assert_int_equal(got.status, 0);
		assert_string_equal(got.out, "aaaaaaaaaaa2\naaaaaaaaaaa1\n");
		snprintf(a, sizeof(a), "POST /v1/vms/aaaaaaaaaaa1/%s;", words[i]);
		snprintf(b, sizeof(b), "POST /v1/vms/aaaaaaaaaaa2/%s;", words[i]);
		assert_true(strstr(told, a) && strstr(told, b));
	}
}

/* "did you mean pause?" would be the opposite. */
static void
unpause_resumes(void **state)
{
	(void)state;
	RUN(&got, "unpause", "a");
	assert_int_equal(got.status, 0);
	assert_string_equal(told, "POST /v1/vms/aaaaaaaaaaa1/resume;");
}

static void
a_wrong_name_among_several_costs_none_of_them(void **state)
{
	(void)state;
	RUN(&got, "stop", "a", "b", "nosuch");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	assert_string_equal(got.out, "");
	assert_string_equal(told, "");
}

static void
json_of_several_is_one_object(void **state)
{
	cleanup_json struct json *one = NULL, *j = NULL;

	(void)state;
	RUN(&got, "stop", "--format", "json", "a");
	assert_int_equal(json_parse(got.out, got.out_len, 64, &one, NULL), 0);
	assert_true(json_get(one, 0, "id") >= 0);
	RUN(&got, "stop", "--format", "json", "a", "b");
	assert_int_equal(json_parse(got.out, got.out_len, 64, &j, NULL), 0);
	assert_int_equal(json_size(j, json_get(j, 0, "vms")), 2);
}

static void
ps_a_lists_all_and_ps_aq_their_ids(void **state)
{
	(void)state;
	RUN(&got, "ps", "-a");
	assert_int_equal(got.status, 0);
	assert_non_null(strstr(got.out, "stopped"));
	RUN(&got, "ps", "-aq");
	assert_string_equal(
		got.out, "aaaaaaaaaaa1\naaaaaaaaaaa2\naaaaaaaaaaa3\naaaaaaaaaaa4\n");
}

/* pando with these words and standard output as sh's redirection has it; what it wrote to
 * stderr is in got. */
static int
redirected(const char *words, const char *to)
{
	char text[512];

	snprintf(text, sizeof(text), "exec \"$0\" %s %s", words, to);
	stand_in_run(
		"", 0, (char *[]){"/bin/sh", "-c", text, stand_in_pando, NULL}, &got);
	return got.status;
}

/* `pando logs -f a | grep -m1 ready`, and a guest that says nothing more. */
static void
logs_f_ends_when_its_reader_has_left(void **state)
{
	char *const argv[] = {"pando", "logs", "-f", "--vmm", "a", NULL};
	char path[4096];
	int out, err;
	char *said;
	pid_t pid;

	(void)state;
	snprintf(path, sizeof(path), "%s/vmm.log", stand_in_home);
	assert_int_equal(io_write_file_atomic(path, "ready\n", 6, 0600, NULL), 0);
	pid = stand_in_start(argv, -1, &out, &err);
	stand_in_await(out, "ready");
	close(out);
	assert_int_equal(stand_in_wait(pid), 128 + SIGPIPE);
	said = stand_in_read_all(err);
	assert_string_equal(said, "");
	free(said);
	close(err);
	unlink(path);
}

static void
an_answer_that_cannot_be_written_is_a_failure_of_every_verb(void **state)
{
	char *const words[] = {"ps", "ps -q", "ps --format json", "info a", "tree",
		"stop a", "stop --format json a", "delete -y b", "help", "help stop",
		"stop --help", "version", "completion bash"};
	char *const full[] = {">/dev/full", ">&-"};

	(void)state;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		for (size_t k = 0; k < 2; k++) {
			const char *said;

			assert_int_equal(redirected(words[i], full[k]), EXIT_FAILED);
			said = strstr(got.err, "the answer could not be written");
			assert_non_null(said);
			assert_null(strstr(said + 1, "the answer could not"));
		}
	/* Where there was nothing to say nothing is lost. */
	assert_int_equal(redirected("rm -f nosuch", ">&-"), 0);
	/* What failed before keeps its status. */
	assert_int_equal(redirected("stop nosuch", ">&-"), EXIT_NOT_FOUND);
	/* No file that pando opens takes the place of what was closed. */
	assert_int_equal(redirected("ps", "<&- 2>&-"), 0);
}

static void
a_list_of_names_that_came_out_empty_stops_and_pauses_nothing(void **state)
{
	char *const words[] = {"stop", "pause"};

	(void)state;
	for (int i = 0; i < 2; i++) {
		/* Named by the environment, which a script may have from anywhere. */
		setenv("PANDO_VM", "b", 1);
		RUN(&got, words[i]);
		unsetenv("PANDO_VM");
		assert_int_equal(got.status, EXIT_USAGE);
		assert_string_equal(got.out, "");
		assert_non_null(strstr(got.err, "\"b\" is named by PANDO_VM"));
		assert_non_null(
			strstr(got.err, i ? "`pando pause b`" : "`pando stop b`"));
		assert_non_null(strstr(
			got.err, i ? "nothing was paused" : "nothing was stopped"));
		assert_string_equal(told, "");
	}
	/* That one of several is not stopped if PANDO_VM names it, either. */
	RUN(&got, "stop");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_non_null(strstr(got.err, "which VM? there are "));
	assert_null(strstr(got.err, "PANDO_VM"));
	RUN(&got, "start");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_non_null(strstr(got.err, "which VM? there are "));
	assert_non_null(strstr(got.err, "(or set PANDO_VM)"));
	assert_string_equal(told, "");
	RUN(&got, "delete");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN(&got, "delete", "-f");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_string_equal(told, "");
}

static void
the_vm_that_is_checked_out_is_stopped_unnamed_when_a_person_agrees(void **state)
{
	char folder[] = "/tmp/pando-habits-XXXXXX", here[4096];
	const char *said;
	int status;

	(void)state;
	assert_non_null(getcwd(here, sizeof(here)));
	assert_non_null(mkdtemp(folder));
	assert_int_equal(chdir(folder), 0);
	RUN(&got, "checkout", "c");
	assert_int_equal(got.status, 0);
	RUN(&got, "stop");
	assert_int_equal(got.status, EXIT_USAGE);
	assert_non_null(strstr(got.err, "\"c\" is checked out here: `pando stop c`"));
	assert_null(strstr(got.err, "using vm"));
	assert_string_equal(told, "");
	said = AT_A_TERMINAL("\r", &status, "stop", "--force");
	assert_non_null(strstr(said, "Stop \"c\" (checked out here)?"));
	assert_non_null(strstr(said, "nothing was stopped"));
	assert_int_equal(status, EXIT_CANCELLED);
	AT_A_TERMINAL("n\r", &status, "pause");
	assert_int_equal(status, EXIT_CANCELLED);
	assert_string_equal(told, "");
	AT_A_TERMINAL("y\r", &status, "stop");
	assert_int_equal(status, 0);
	assert_string_equal(told, "POST /v1/vms/aaaaaaaaaaa3/stop;");
	/* What takes nothing away needs no name. */
	told[0] = '\0';
	RUN(&got, "start");
	assert_int_equal(got.status, 0);
	assert_string_equal(told, "POST /v1/vms/aaaaaaaaaaa3/start;");
	assert_int_equal(chdir(here), 0);
	assert_int_equal(io_remove_tree(folder, NULL), 0);
}

#define FRESH(t) cmocka_unit_test_setup(t, forget)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		FRESH(kill_asks_as_delete_does_and_names_what_keeps_the_disk),
		FRESH(the_question_names_all_that_would_go),
		FRESH(rm_f_asks_nothing_and_misses_nothing),
		FRESH(rm_f_does_not_miss_what_somebody_else_deletes_meanwhile),
		FRESH(an_option_before_the_verb_is_told_its_place),
		FRESH(stop_takes_several_vms),
		FRESH(pause_resume_and_start_do_too),
		FRESH(unpause_resumes),
		FRESH(a_wrong_name_among_several_costs_none_of_them),
		FRESH(json_of_several_is_one_object),
		FRESH(ps_a_lists_all_and_ps_aq_their_ids),
		FRESH(logs_f_ends_when_its_reader_has_left),
		FRESH(an_answer_that_cannot_be_written_is_a_failure_of_every_verb),
		FRESH(a_list_of_names_that_came_out_empty_stops_and_pauses_nothing),
		FRESH(the_vm_that_is_checked_out_is_stopped_unnamed_when_a_person_agrees),
	};

	return cmocka_run_group_tests(tests, start_all, stand_in_teardown);
}
