/* What describes a coding agent, what its lines mean, and journals that were cut off. */
#include <errno.h>
#include <fcntl.h>
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

#include "common/io.h"
#include "common/wire/json_line.h"
#include "guest-agent/supervisor/rpc_conf.h"
#include "guest-agent/supervisor/rpc_journal.h"
#include "guest-agent/supervisor/rpc_scan.h"
#include "guest-agent/supervisor/rpc_spool.h"

static char folder[64];
static int dir = -1;

static int
setup(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/pando-rpc-parts-XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir < 0;
}

static int
teardown(void **state)
{
	(void)state;
	close(dir);
	return io_remove_tree(folder, NULL);
}

static int
parse(const char *text, struct rpc_conf *c, struct err *e)
{
	return rpc_conf_parse("x.conf", text, strlen(text), c, e);
}

static void
a_configuration_is_read(void **state)
{
	struct rpc_conf c = {0};
	struct err e = {0};

	(void)state;
	assert_int_equal(
		parse("command = [\"pi\", \"--mode\", \"rpc\"]\nprotocol = \"pi\"\n"
		      "folder = \"/root\"\non_fork = \"signal:USR1\"\n"
		      "dialogs = \"ask\"\nenv = [\"A=b\"]\ntmux = false\n"
		      "[restart]\npolicy = \"always\"\ndelay_ms = 7\n"
		      "delay_max_ms = 3\n[watchdog]\nquiet_s = 4\n"
		      "action = \"stop\"\n[journal]\nkeep_mib = 2\n",
			&c, &e),
		0);
	assert_string_equal(c.argv[2], "rpc");
	assert_null(c.argv[3]);
	assert_int_equal(c.protocol, RPC_PI);
	assert_int_equal(c.on_fork, RPC_FORK_SIGNAL);
	assert_int_equal(c.fork_signal, SIGUSR1);
	assert_int_equal(c.dialogs, RPC_DIALOGS_ASK);
	assert_int_equal(c.restart, RPC_RESTART_ALWAYS);
	assert_int_equal(c.delay_max_ms, 7);
	assert_true(c.quiet_stops);
	assert_false(c.tmux);
	rpc_conf_done(&c);
	assert_int_equal(parse("command = \"exec x | y\"\n", &c, &e), 0);
	assert_string_equal(c.argv[0], "/bin/sh");
	assert_string_equal(c.argv[2], "exec x | y");
	assert_true(c.boot);
	assert_int_equal(c.on_fork, RPC_FORK_KEEP);
	assert_int_equal(c.dialogs, RPC_DIALOGS_DENY);
	rpc_conf_done(&c);
}

static void
what_is_wrong_with_a_configuration_is_named(void **state)
{
	static const struct {
		const char *text, *say;
	} cases[] = {
		{"", "has no command"},
		{"command = 3\n", "x.conf:1:11: command must be"},
		{"command = []\n", "command must be"},
		{"command = [\"\"]\n", "command must be"},
		{"command = [1]\n", "command must be"},
		{"command = \"x\"\ncomand = \"x\"\n", "unknown key \"comand\""},
		{"command = \"x\"\nprotocol = \"pie\"\n", "one of raw|pi|claude"},
		{"command = \"x\"\nfolder = \"home\"\n", "an absolute path"},
		{"command = \"x\"\non_fork = \"signal:KILL\"\n", "on_fork must be"},
		{"command = \"x\"\nenv = [\"=x\"]\n", "NAME=value"},
		{"command = \"x\"\n[restart]\nlimit = 0\n",
			"limit must be a number from 1"},
		{"command = \"x\"\n[restart]\nboot = 1\n", "boot must be true or false"},
		{"command = \"x\"\n[restart]\nlimt = 1\n",
			"unknown key \"restart.limt\""},
		{"command = \"x\"\nrestart = 1\n", "restart must be a table"},
		{"command = \"x\"\n[watchdog]\nquiet_s = -1\n", "quiet_s must be"},
		{"command = \"x\"\n[journal]\nkeep_mib = 1.5\n", "keep_mib must be"},
		{"command = \"x\ny\"\n", "x.conf"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct rpc_conf c = {0};
		struct err e = {0};

		if (parse(cases[i].text, &c, &e) != -EINVAL ||
			!strstr(e.msg, cases[i].say))
			fail_msg("%s: %s", cases[i].text, e.msg);
		assert_null(c.argv);
	}
	assert_int_equal(rpc_name_check("../x", NULL), -EINVAL);
	assert_int_equal(rpc_name_check("", NULL), -EINVAL);
	assert_int_equal(rpc_name_check("-x", NULL), -EINVAL);
	assert_int_equal(
		rpc_name_check("a23456789012345678901234567890123", NULL), -EINVAL);
	assert_int_equal(rpc_name_check("pi-2", NULL), 0);
}

static void
json_is_told_from_what_is_none(void **state)
{
	static const char *const good[] = {"{}", " [1,-0.5e+3,true,null] ",
		"\"\\u00e9\\n\"", "{\"a\":{\"b\":[{}]},\"c\":\"\xe2\x80\xa8\"}", "0",
		"{\"a\":1,\"a\":2}"};
	static const char *const bad[] = {"", "{", "[1,]", "{\"a\"}", "{a:1}", "01", "1.",
		"\"\\x\"", "\"\\u12g4\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "tru",
		"{} {}", "[1}", "\"\t\"", "nullx", "-", "\""};
	char deep[2 * JSON_LINE_DEPTH + 3];

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		if (json_line_check(good[i], strlen(good[i]), NULL))
			fail_msg("refused: %s", good[i]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (json_line_check(bad[i], strlen(bad[i]), NULL) != -EINVAL)
			fail_msg("taken: %s", bad[i]);
	memset(deep, '[', JSON_LINE_DEPTH + 1);
	memset(deep + JSON_LINE_DEPTH + 1, ']', JSON_LINE_DEPTH + 1);
	assert_int_equal(json_line_check(deep, 2 * JSON_LINE_DEPTH + 2, NULL), -EINVAL);
	assert_int_equal(json_line_check(deep + 1, 2 * JSON_LINE_DEPTH, NULL), 0);
}

static void
the_end_of_a_prompt_is_its_protocols_own(void **state)
{
	static const struct {
		enum rpc_protocol p;
		const char *line;
		enum rpc_event event;
		const char *reason;
	} cases[] = {
		{RPC_PI,
			"{\"type\":\"response\",\"command\":\"prompt\",\"success\":true}",
			RPC_NOTHING, ""},
		{RPC_PI,
			"{\"type\":\"response\",\"command\":\"prompt\",\"success\":"
			"false}",
			RPC_REFUSED, "refused"},
		{RPC_PI,
			"{\"type\":\"response\",\"command\":\"get_state\",\"success\":"
			"true}",
			RPC_ANSWERED, ""},
		{RPC_PI, "{\"messages\":[],\"type\":\"agent_end\"}", RPC_DONE, ""},
		{RPC_PI,
			"{\"type\":\"agent_end\",\"messages\":[{\"stopReason\":\"error\"}"
			","
			"{\"role\":\"assistant\",\"stopReason\":\"stop\"},{\"role\":"
			"\"x\"}]}",
			RPC_DONE, "stop"},
		{RPC_PI,
			"{\"type\":\"agent_end\",\"messages\":[{\"stopReason\":"
			"\"aborted\"}]}",
			RPC_FAILED, "aborted"},
		{RPC_PI,
			"{\"type\":\"agent_end\",\"willRetry\":true,\"messages\":[{"
			"\"stopReason\":"
			"\"error\"}]}",
			RPC_RETRIES, ""},
		{RPC_PI, "{\"type\":\"compaction_start\",\"reason\":\"overflow\"}",
			RPC_COMPACTS, ""},
		{RPC_PI, "{\"type\":\"auto_compaction_start\"}", RPC_COMPACTS, ""},
		{RPC_PI, "{\"type\":\"compaction_end\",\"willRetry\":true}", RPC_RETRIES,
			""},
		{RPC_PI,
			"{\"type\":\"auto_compaction_end\",\"result\":null,\"willRetry\":"
			"false}",
			RPC_COMPACTED, ""},
		{RPC_PI, "{\"type\":\"agent_settled\"}", RPC_SETTLED, ""},
		/* What a message quotes is not the line's own. */
		{RPC_PI, "{\"type\":\"x\",\"m\":{\"type\":\"agent_end\"}}", RPC_NOTHING,
			""},
		{RPC_PI, "{\"type\":\"x\",\"m\":\"\\\"type\\\":\\\"agent_end\\\"\"}",
			RPC_NOTHING, ""},
		{RPC_PI,
			"{\"type\":\"extension_ui_request\",\"id\":\"1\",\"method\":"
			"\"notify\"}",
			RPC_NOTHING, ""},
		{RPC_PI,
			"{\"type\":\"extension_ui_request\",\"id\":\"1\",\"method\":"
			"\"input\"}",
			RPC_DIALOG, ""},
		{RPC_CLAUDE,
			"{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":"
			"false}",
			RPC_DONE, "success"},
		{RPC_CLAUDE, "{\"type\":\"result\",\"subtype\":\"error_max_turns\"}",
			RPC_FAILED, "error_max_turns"},
		{RPC_CLAUDE,
			"{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":true}",
			RPC_FAILED, "success"},
		{RPC_RAW, "{\"type\":\"agent_end\",\"messages\":[]}", RPC_NOTHING, ""},
		{RPC_PI, "agent_end", RPC_NOTHING, ""},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		static struct rpc_scan scan;
		char reason[RPC_REASON_MAX];
		enum rpc_event e = rpc_proto_event(
			cases[i].p, cases[i].line, strlen(cases[i].line), reason);

		if (e != cases[i].event || strcmp(reason, cases[i].reason) != 0)
			fail_msg("%s: %d %s", cases[i].line, (int)e, reason);
		/* The same of a line that comes byte by byte. */
		if (e == RPC_DIALOG)
			continue;
		for (size_t k = 0; cases[i].line[k]; k++)
			rpc_scan_feed(&scan, cases[i].line + k, 1);
		e = rpc_scan_end(&scan, cases[i].p, reason);
		if (e != cases[i].event || strcmp(reason, cases[i].reason) != 0)
			fail_msg("in pieces: %s: %d %s", cases[i].line, (int)e, reason);
	}
}

static void
dialogs_are_answered_as_the_policy_says(void **state)
{
	static const struct {
		enum rpc_protocol p;
		enum rpc_dialogs d;
		const char *line, *answer; /* NULL: none */
	} cases[] = {
		{RPC_PI, RPC_DIALOGS_ALLOW,
			"{\"type\":\"extension_ui_request\",\"id\":\"u\",\"method\":"
			"\"select\","
			"\"options\":[\"A \\\"b\\\"\",\"c\"]}",
			"{\"type\":\"extension_ui_response\",\"id\":\"u\",\"value\":\"A \\\"b\\\"\"}"},
		{RPC_PI, RPC_DIALOGS_DENY,
			"{\"type\":\"extension_ui_request\",\"id\":\"u\",\"method\":"
			"\"select\","
			"\"options\":[\"a\"]}",
			"{\"type\":\"extension_ui_response\",\"id\":\"u\",\"cancelled\":"
			"true}"},
		{RPC_PI, RPC_DIALOGS_ASK,
			"{\"type\":\"extension_ui_request\",\"id\":\"u\",\"method\":"
			"\"confirm\"}",
			NULL},
		{RPC_PI, RPC_DIALOGS_DENY,
			"{\"type\":\"extension_ui_request\",\"method\":\"confirm\"}",
			NULL},
		{RPC_CLAUDE, RPC_DIALOGS_ALLOW,
			"{\"type\":\"control_request\",\"request_id\":\"r\",\"request\":{"
			"\"subtype\":\"can_use_tool\",\"input\":{\"a\":1}}}",
			"{\"type\":\"control_response\",\"response\":{\"subtype\":"
			"\"success\","
			"\"request_id\":\"r\",\"response\":{\"behavior\":\"allow\","
			"\"updatedInput\":{\"a\":1}}}}"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		cleanup_json_out struct json_out o = {0};
		bool any = rpc_proto_answer(
			cases[i].p, cases[i].d, cases[i].line, strlen(cases[i].line), &o);

		assert_int_equal(any, cases[i].answer != NULL);
		if (any)
			assert_string_equal(o.buf, cases[i].answer);
	}
}

static void
put_lines(struct journal *j, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(journal_put(j, "0123456\n", 8), 0);
	assert_int_equal(journal_index(j, NULL, NULL), 0);
}

/* A writer that was killed between the bytes and their index, and a power cut. */
static void
a_cut_journal_is_mended(void **state)
{
	struct journal j = JOURNAL_INIT;
	struct err e = {0};

	(void)state;
	assert_int_equal(journal_open(dir, "out", &j, &e), 0);
	put_lines(&j, 10);
	assert_int_equal(journal_put(&j, "abc\nhalf", 8), 0);
	journal_done(&j);
	assert_int_equal(journal_open(dir, "out", &j, &e), 0);
	assert_int_equal(j.lines, 10);
	assert_int_equal(journal_index(&j, NULL, NULL), 0);
	assert_int_equal(j.lines, 11);
	assert_int_equal(j.end - j.indexed, 4);
	assert_int_equal(journal_put(&j, "\n", 1), 0);
	assert_int_equal(journal_index(&j, NULL, NULL), 0);
	assert_int_equal(j.lines, 12);
	/* The index knows more than the data, and ends in the middle of a record. */
	assert_int_equal(ftruncate(j.data_fd, 20), 0);
	assert_int_equal(ftruncate(j.index_fd, 32 * 12 + 7), 0);
	journal_done(&j);
	assert_int_equal(journal_open(dir, "out", &j, &e), 0);
	assert_int_equal(j.lines, 2);
	assert_int_equal(j.end - j.indexed, 4);
	assert_int_equal(journal_tear(&j), 0);
	assert_int_equal(j.lines, 3);
	/* Zeroes where records were. */
	assert_int_equal(ftruncate(j.index_fd, 32 * 2), 0);
	assert_int_equal(ftruncate(j.index_fd, 32 * 9), 0);
	journal_done(&j);
	assert_int_equal(journal_open(dir, "out", &j, &e), 0);
	assert_int_equal(j.lines, 1);
	assert_int_equal(journal_index(&j, NULL, NULL), 0);
	assert_int_equal(j.lines, 3);
	assert_int_equal(io_pwrite_full(j.index_fd, "x", 1, 0), 0);
	journal_done(&j);
	assert_int_equal(journal_open(dir, "out", &j, &e), -EBADMSG);
	assert_non_null(strstr(e.msg, "move it"));
}

static void
a_line_that_is_too_long_is_kept_in_pieces(void **state)
{
	struct journal j = JOURNAL_INIT;
	struct journal_reader r = JOURNAL_READER_INIT;
	struct journal_record rec;
	char *big = malloc(1 << 20);
	uint64_t sum = 0;

	(void)state;
	memset(big, 'x', 1 << 20);
	assert_int_equal(journal_open(dir, "out", &j, NULL), 0);
	for (int i = 0; i < 40; i++) {
		assert_int_equal(journal_put(&j, big, 1 << 20), 0);
		assert_int_equal(journal_index(&j, NULL, NULL), 0);
	}
	assert_int_equal(journal_put(&j, "\nnext\n", 6), 0);
	assert_int_equal(journal_index(&j, NULL, NULL), 0);
	assert_int_equal(j.lines, 4);
	assert_int_equal(journal_reader_open(dir, "out", &r, NULL), 0);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(journal_record(&r, i, &rec, NULL), 1);
		assert_int_equal(rec.offset, sum);
		assert_int_equal(rec.flags, i < 2 ? JOURNAL_PIECE : 0);
		sum += rec.len;
	}
	assert_int_equal(sum, (40u << 20) + 6);
	journal_reader_done(&r);
	journal_done(&j);
	free(big);
}

static void
a_sender_that_died_leaves_no_part_of_a_line(void **state)
{
	struct spool_state s;
	struct err e = {0};
	uint64_t number;
	int fd;

	(void)state;
	assert_int_equal(spool_make(dir, &e), 0);
	assert_int_equal(spool_append(dir, "{}", 2, 100, &number, &e), 0);
	/* As one that was killed in the middle leaves it. */
	fd = openat(dir, "spool", O_WRONLY | O_APPEND | O_CLOEXEC);
	assert_int_equal(write(fd, "{\"half\":", 8), 8);
	close(fd);
	assert_int_equal(spool_append(dir, "[]", 2, 100, &number, &e), 0);
	assert_int_equal(number, 2);
	assert_int_equal(spool_state_read(dir, &s, &e), 0);
	assert_int_equal(s.committed, 6);
	fd = openat(dir, "spool", O_RDONLY | O_CLOEXEC);
	{
		char text[16] = "";
		uint64_t start;

		assert_int_equal(read(fd, text, 15), 6);
		assert_string_equal(text, "{}\n[]\n");
		assert_int_equal(spool_line_start(fd, 5, &start), 0);
		assert_int_equal(start, 3);
		assert_int_equal(spool_line_start(fd, 3, &start), 0);
		assert_int_equal(start, 3);
	}
	close(fd);
}

static void
what_nobody_reads_is_refused_in_the_end(void **state)
{
	size_t len = SPOOL_LINE_MAX;
	char *line = malloc(len + 1);
	struct err e = {0};
	int r = 0, n = 0;

	(void)state;
	memset(line, '1', len + 1);
	assert_int_equal(spool_make(dir, &e), 0);
	assert_int_equal(spool_append(dir, line, len + 1, 100, NULL, &e), -E2BIG);
	while (n < 10 && !(r = spool_append(dir, line, len, 100, NULL, &e)))
		n++;
	assert_int_equal(r, -EAGAIN);
	assert_int_equal(n, 4);
	assert_non_null(strstr(e.msg, "wait already"));
	/* Read, it goes on. */
	assert_int_equal(spool_set_forwarded(dir, 3u << 24), 0);
	assert_int_equal(spool_append(dir, line, len, 100, NULL, &e), 0);
	free(line);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_configuration_is_read),
		T(what_is_wrong_with_a_configuration_is_named),
		T(json_is_told_from_what_is_none),
		T(the_end_of_a_prompt_is_its_protocols_own),
		T(dialogs_are_answered_as_the_policy_says),
		T(a_cut_journal_is_mended),
		T(a_line_that_is_too_long_is_kept_in_pieces),
		T(a_sender_that_died_leaves_no_part_of_a_line),
		T(what_nobody_reads_is_refused_in_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
