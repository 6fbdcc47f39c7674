/*
 * The shipped `pando connect` against the shipped pando-agent, as a person at a terminal
 * has it: tmux is the terminal, keys are typed into it and its screen is read. See
 * stand_in.h for what is between them.
 */
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "tests/unit/stand_in.h"

/* A terminal ------------------------------------------------------------------------- */

static char screen[65536];
static unsigned server; /* each test has its own: one that ends is not quite gone */

static int
tmux(const char *words)
{
	char command[2048];

	snprintf(command, sizeof(command), "tmux -S '%s/tmux.%u' -f /dev/null %s",
		stand_in_home, server, words);
	return system(command);
}

/* What stands on the screen, with its colours. */
static const char *
look(void)
{
	char command[512];
	FILE *f;
	size_t n;

	snprintf(command, sizeof(command),
		"tmux -S '%s/tmux.%u' -f /dev/null capture-pane -e -p", stand_in_home,
		server);
	f = popen(command, "r");
	assert_non_null(f);
	n = fread(screen, 1, sizeof(screen) - 1, f);
	screen[n] = 0;
	pclose(f);
	return screen;
}

static void
shows(const char *text)
{
	uint64_t until = io_now_ns() + STAND_IN_LIMIT_S * UINT64_C(1000000000);

	while (!strstr(look(), text)) {
		if (io_now_ns() > until)
			fail_msg("\"%s\" is not on the screen:\n%s", text, screen);
		usleep(50000);
	}
}

/* Literally, then Enter. No ' in it. */
static void
type(const char *line)
{
	char words[1024];

	snprintf(words, sizeof(words), "send-keys -l '%s'", line);
	assert_int_equal(tmux(words), 0);
	assert_int_equal(tmux("send-keys Enter"), 0);
}

static void
key(const char *name)
{
	char words[64];

	snprintf(words, sizeof(words), "send-keys '%s'", name);
	assert_int_equal(tmux(words), 0);
}

/* A local shell on the screen, whose prompt is "here>". */
static int
open_screen(void **state)
{
	(void)state;
	server++;
	setenv("ENV", "", 1);
	setenv("COLORTERM", "truecolor", 1);
	setenv("LC_PANDO", "carried", 1);
	setenv("PANDO", stand_in_pando, 1);
	if (stand_in_agent < 0)
		stand_in_start_agent();
	assert_int_equal(tmux("new-session -d -x 80 -y 24 'PS1=here\\> exec sh'"), 0);
	shows("here>");
	type("BEFORE=$(stty -g)");
	return 0;
}

static int
close_screen(void **state)
{
	(void)state;
	return tmux("kill-server");
}

/* And `pando connect` in it, with a prompt that can be told from the other. */
static int
connected(void **state)
{
	open_screen(state);
	type("$PANDO connect -e OUTER=$TERM a");
	/* Not in the line typed, so that only the answer can show it. */
	type("PS1=gue\"\"st\\>; clear");
	shows("guest>");
	return 0;
}

static void
the_shell_is_a_login_shell_and_its_status_ours(void **state)
{
	(void)state;
	type("echo [$0] [$COLORTERM] [$LC_PANDO] | tr - +; [ $TERM = $OUTER ] && echo TE\"\"RM");
	shows("[+");
	shows("] [truecolor] [carried]");
	shows("TERM\n");
	type("exit 41");
	/* What is typed before is still the guest's. */
	shows("here>");
	type("echo status=$?");
	shows("status=41");
}

static void
colours_pass(void **state)
{
	(void)state;
	type("printf \"\\\\033[1;31mr\\\\145d\\\\033[m \\\\033[38;5;42mgr\\\\145en\\\\033[m\\\\n\"");
	shows("red");
	assert_non_null(strstr(look(), "31mred"));
	assert_non_null(strstr(look(), "38;5;42mgreen"));
}

static void
the_size_follows_ours(void **state)
{
	(void)state;
	type("stty size");
	shows("24 80");
	/* A shell without the trap yet would let the signal pass. */
	type("trap \"stty size\" WINCH; echo trap is s\"\"et");
	shows("trap is set");
	assert_int_equal(tmux("resize-window -x 101 -y 31"), 0);
	shows("31 101");
	assert_int_equal(tmux("resize-window -x 64 -y 16"), 0);
	shows("16 64");
}

static void
control_keys_are_the_guests(void **state)
{
	(void)state;
	type("sleep 98761");
	usleep(300000);
	key("C-c");
	type("echo int=$?");
	shows("int=130");
	type("sleep 98762");
	usleep(300000);
	key("C-z");
	type("echo stop=$?; kill %1");
	shows("stop=148");
	type("sleep 98763");
	usleep(300000);
	key("C-\\");
	type("echo quit=$?");
	shows("quit=131");
}

static void
an_interrupt_ends_a_flood(void **state)
{
	uint64_t began;

	(void)state;
	type("clear; yes 7654321");
	shows("7654321");
	usleep(1000000);
	key("C-c");
	began = io_now_ns();
	type("S=$?; clear; echo flood=$S");
	shows("flood=130");
	print_message("answered after %.1f s\n", (double)(io_now_ns() - began) / 1e9);
}

static void
an_editor_has_the_whole_screen(void **state)
{
	char path[128], line[256];
	cleanup_free char *text = NULL;

	(void)state;
	if (system("command -v vi >/dev/null"))
		skip();
	snprintf(path, sizeof(path), "%s/edited", stand_in_home);
	snprintf(line, sizeof(line), "vi %s", path);
	type(line);
	shows("~");
	shows("edited");
	key("i");
	type("first");
	type("second line");
	key("Escape");
	shows("second line");
	type(":wq");
	shows("guest>");
	for (int i = 0; access(path, R_OK) && i < 100; i++)
		usleep(100000);
	assert_int_equal(io_read_file(path, 4096, &text, NULL, NULL), 0);
	assert_string_equal(text, "first\nsecond line\n\n");
	/* The line with the command is back: the alternate screen was left. */
	shows("vi ");
}

/* To the last flag. */
static void
is_restored(void)
{
	type("test \"$BEFORE\" = \"$(stty -g)\" && echo rest\"\"ored");
	shows("restored");
}

static void
the_terminal_is_itself_again_when_the_vm_dies(void **state)
{
	(void)state;
	/* In the middle of a program that has the screen. */
	type("printf \"\\\\033[?1049h\\\\033[?25l\\\\033[?1000h\\\\033[31mIN\\\\055IT\"; cat");
	shows("IN-IT");
	stand_in_says("failed", "killed by signal 9");
	stand_in_kill_agent();
	shows("here>");
	shows("killed by signal 9");
	is_restored();
	type("echo status=$?");
	assert_int_equal(
		tmux("display-message -p 'alt=#{alternate_on} cursor=#{cursor_flag} mouse=#{mouse_any_flag}' | grep -q 'alt=0 cursor=1 mouse=0'"),
		0);
}

static void
the_terminal_is_itself_again_after_a_signal(void **state)
{
	char command[512];

	(void)state;
	/* The one child of the shell on the screen. */
	snprintf(command, sizeof(command),
		"kill -TERM $(pgrep -P $(tmux -S '%s/tmux.%u' -f /dev/null display-message -p '#{pane_pid}'))",
		stand_in_home, server);
	assert_int_equal(system(command), 0);
	shows("here>");
	type("echo status=$?");
	shows("status=7");
	is_restored();
}

static void
our_keys_leave_help_and_stop(void **state)
{
	char command[64];

	(void)state;
	key("~");
	key("?");
	shows("leave;");
	/* Doubled it is one of its own, and in the middle of a line it is nothing. */
	type("~~. () { echo dot; }; :");
	type("echo x ~.");
	shows("x ~.");
	key("Enter");
	key("~");
	key("C-z");
	shows("here>");
	is_restored();
	type("fg");
	key("Enter");
	type("stty size | tr \" \" x");
	shows("24x80");
	snprintf(command, sizeof(command), "exec sleep %s", stand_in_mark);
	type(command);
	usleep(300000);
	key("Enter");
	key("~");
	key(".");
	shows("left \"a\"");
	type("echo status=$?");
	shows("status=7");
	is_restored();
	/* What ran there was hung up. */
	for (int i = 0; stand_in_running("sleep") && i < 300; i++)
		usleep(100000);
	assert_int_equal(stand_in_running("sleep"), 0);
}

/* Without a screen ------------------------------------------------------------------- */

static void
a_script_on_stdin_is_run_without_a_terminal(void **state)
{
	cleanup_ran struct ran got = {0};
	static const char script[] = "tty; echo out; echo err >&2; exit 9\n";
	size_t len = (2u << 20) + 7;
	char *data = malloc(len);

	(void)state;
	RUN_WITH(&got, script, sizeof(script) - 1, "connect", "a");
	assert_int_equal(got.status, 9);
	assert_non_null(strstr(got.out, "not a tty\nout\n"));
	assert_non_null(strstr(got.err, "err\n"));
	/* Bytes are bytes there: no key is ours, nothing is translated. */
	for (size_t i = 0; i < len; i++)
		data[i] = (char)(i % 7 ? i * 2654435761u >> 13 : '~');
	memcpy(data, "~.\n~.", 5);
	RUN_WITH(&got, data, len, "connect", "a", "--", "cat");
	assert_int_equal(got.status, 0);
	assert_int_equal(got.out_len, len);
	assert_memory_equal(got.out, data, len);
	free(data);
}

static void
a_command_has_its_words_user_and_folder(void **state)
{
	cleanup_ran struct ran got = {0};

	(void)state;
	RUN(&got, "connect", "a", "--", "printf", "[%s]", "a b", "$HOME", "");
	assert_string_equal(got.out, "[a b][$HOME][]");
	RUN(&got, "connect", "-w", "/usr", "-e", "A=b c", "a", "--", "sh", "-c",
		"pwd; echo $A; kill -TERM $$");
	assert_string_equal(got.out, "/usr\nb c\n");
	assert_int_equal(got.status, 128 + SIGTERM);
	RUN(&got, "connect", "a", "--", "no-such-program");
	assert_int_equal(got.status, 127);
	RUN(&got, "connect", "-u", "no-such-user", "a");
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "no-such-user"));
	if (geteuid())
		return;
	RUN(&got, "connect", "-u", "nobody", "a", "--", "id", "-un");
	assert_string_equal(got.out, "nobody\n");
}

static void
wrong_words_are_refused(void **state)
{
	cleanup_ran struct ran got = {0};

	(void)state;
	RUN(&got, "connect", "nobody");
	assert_int_equal(got.status, EXIT_NOT_FOUND);
	RUN(&got, "connect", "--format", "json", "a");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN(&got, "connect", "--escape", "ab", "a");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN(&got, "connect", "-e", "1=2", "a");
	assert_int_equal(got.status, EXIT_USAGE);
	RUN(&got, "connect", "a", "");
	assert_int_equal(got.status, EXIT_USAGE);
	stand_in_says("paused", NULL);
	RUN(&got, "connect", "a");
	stand_in_says("running", NULL);
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "pando resume"));
}

static void
a_client_that_is_killed_leaves_no_shell_behind(void **state)
{
	char words[64];
	char *const argv[] = {"pando", "connect", "a", "--", "sh", "-c", words, NULL};
	cleanup_ran struct ran got = {0};
	int master;
	pid_t pid;

	(void)state;
	snprintf(words, sizeof(words), "echo rea\"\"dy; exec sleep %s", stand_in_mark);
	pid = stand_in_start_on_terminal(argv, 24, 80, &master);
	stand_in_await(master, "ready");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(master);
	for (int i = 0; stand_in_running("sleep") && i < 300; i++)
		usleep(100000);
	assert_int_equal(stand_in_running("sleep"), 0);
	for (int i = 0; i < 100; i++) {
		RUN(&got, "execute", "a", "--list");
		if (!strstr(got.out, stand_in_mark))
			return;
		usleep(100000);
	}
	fail_msg("a record was kept: %s", got.out);
}

/* A hostile guest -------------------------------------------------------------------- */

/* Plays the agent for one connection: takes the request, says yes. */
static int
accept_request(int listener)
{
	char line[65536];
	size_t len = 0;
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	static const char ok[] = "OK 1\n", yes[] = "{\"ok\":true,\"id\":\"e1\"}\n";
	int lines = 0;

	assert_true(fd >= 0);
	while (lines < 2) {
		assert_int_equal(read(fd, line + len, 1), 1);
		if (line[len++] != '\n')
			continue;
		if (!lines++)
			assert_int_equal(io_write_full(fd, ok, sizeof(ok) - 1), 0);
	}
	assert_int_equal(io_write_full(fd, yes, sizeof(yes) - 1), 0);
	return fd;
}

static int
frame(int fd, uint8_t type, const void *payload, uint32_t len)
{
	struct agent_frame_hdr h = {.type = type, .len = len};
	int r = io_write_full(fd, &h, sizeof(h));

	return r ? r : io_write_full(fd, payload, len);
}

static void
a_flood_that_nobody_reads_takes_no_memory(void **state)
{
	char *const argv[] = {"pando", "connect", "a", NULL};
	int listener = stand_in_fake_agent(), out, err, fd;
	struct timeval second = {.tv_sec = 1};
	static char payload[8 + 32768];
	cleanup_ran struct ran got = {0};
	uint64_t offset = 0;
	size_t kib;
	pid_t pid;

	(void)state;
	pid = stand_in_start(argv, open("/dev/zero", O_RDONLY | O_CLOEXEC), &out, &err);
	fd = accept_request(listener);
	/* Our reader takes nothing: neither may theirs, for long. */
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof(second));
	for (; offset < 64u << 20; offset += sizeof(payload) - 8) {
		memcpy(payload, &offset, sizeof(offset));
		if (frame(fd, AGENT_STDOUT, payload, sizeof(payload)))
			break;
	}
	assert_true(offset < 8u << 20);
	kib = stand_in_memory(pid, "VmHWM:");
	print_message("%zu KiB of the flood were taken, peak %zu KiB\n",
		(size_t)(offset >> 10), kib);
#ifndef __SANITIZE_ADDRESS__
	assert_true(kib && kib < 40 * 1024);
#endif
	close(fd);
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	close(listener);
}

static void
half_a_connection_is_no_end(void **state)
{
	char *const argv[] = {"pando", "connect", "a", NULL};
	static const struct {
		uint8_t type;
		uint32_t len;
		const char *payload;
	} lies[] = {
		{0},					    /* nothing, and no more */
		{AGENT_STDOUT, 12, "\0\0\0\0\0\0\0\1huh?"}, /* from elsewhere */
		{AGENT_EXIT, 24, "\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"},
		{AGENT_DATA, 1, "x"}, {99, 1, "x"},
		{AGENT_STDIN_CREDIT, 8, "\0\0\0\0\0\0\0\0"}, /* takes nothing back */
	};
	int listener = stand_in_fake_agent();

	(void)state;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		cleanup_ran struct ran got = {0};
		int out, err, fd, in[2];
		pid_t pid;

		assert_int_equal(pipe2(in, O_CLOEXEC), 0);
		pid = stand_in_start(argv, in[0], &out, &err);
		fd = accept_request(listener);
		if (lies[i].type)
			frame(fd, lies[i].type, lies[i].payload, lies[i].len);
		shutdown(fd, SHUT_WR);
		stand_in_finish(pid, out, err, &got);
		assert_int_equal(got.status, EXIT_HOST_SIDE);
		assert_int_not_equal(got.err_len, 0);
		close(fd);
		close(in[1]);
	}
	close(listener);
}

/* An image that was made before this command was. */
static void
an_older_agent_is_said_to_be_one(void **state)
{
	char *const argv[] = {"pando", "connect", "a", NULL};
	static const char no[] =
		"OK 1\n{\"ok\":false,\"error\":\"\\\"exec\\\" has no member \\\"login\\\"\","
		"\"errno\":\"EINVAL\",\"code\":-22}\n";
	int listener = stand_in_fake_agent(), out, err, fd;
	cleanup_ran struct ran got = {0};
	pid_t pid;

	(void)state;
	pid = stand_in_start(argv, -1, &out, &err);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_int_equal(io_write_full(fd, no, sizeof(no) - 1), 0);
	stand_in_finish(pid, out, err, &got);
	assert_int_equal(got.status, EXIT_HOST_SIDE);
	assert_non_null(strstr(got.err, "older than this command"));
	close(fd);
	close(listener);
}

/* Typing into a guest that does not answer, and giving up. */
static void
a_mute_guest_is_left_all_the_same(void **state)
{
	char *const argv[] = {"pando", "connect", "a", NULL};
	int listener = stand_in_fake_agent(), fd, master;
	struct termios before, after;
	pid_t pid = stand_in_start_on_terminal(argv, 24, 80, &master);

	(void)state;
	assert_int_equal(tcgetattr(master, &before), 0);
	fd = accept_request(listener);
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(tcgetattr(master, &after), 0);
		if (!(after.c_lflag & ICANON))
			break;
		usleep(20000);
	}
	assert_false(after.c_lflag & ICANON);
	assert_int_equal(io_write_full(master, "hello\r~.", 8), 0);
	stand_in_await(master, "left");
	assert_int_equal(stand_in_wait(pid), EXIT_CANCELLED);
	assert_int_equal(tcgetattr(master, &after), 0);
	assert_int_equal(before.c_lflag, after.c_lflag);
	close(fd);
	close(master);

	/* Before it has said yes, Ctrl-C is still ours. */
	pid = stand_in_start_on_terminal(argv, 24, 80, &master);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	usleep(200000);
	assert_int_equal(io_write_full(master, "\003", 1), 0);
	stand_in_await(master, "left");
	assert_int_equal(stand_in_wait(pid), EXIT_CANCELLED);
	close(fd);
	close(master);
	close(listener);
}

#define ON_SCREEN(name) cmocka_unit_test_setup_teardown(name, connected, close_screen)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_script_on_stdin_is_run_without_a_terminal),
		cmocka_unit_test(a_command_has_its_words_user_and_folder),
		cmocka_unit_test(wrong_words_are_refused),
		cmocka_unit_test(a_client_that_is_killed_leaves_no_shell_behind),
		cmocka_unit_test(a_flood_that_nobody_reads_takes_no_memory),
		cmocka_unit_test(half_a_connection_is_no_end),
		cmocka_unit_test(an_older_agent_is_said_to_be_one),
		cmocka_unit_test(a_mute_guest_is_left_all_the_same),
		ON_SCREEN(the_shell_is_a_login_shell_and_its_status_ours),
		ON_SCREEN(colours_pass),
		ON_SCREEN(the_size_follows_ours),
		ON_SCREEN(control_keys_are_the_guests),
		ON_SCREEN(an_interrupt_ends_a_flood),
		ON_SCREEN(an_editor_has_the_whole_screen),
		ON_SCREEN(our_keys_leave_help_and_stop),
		ON_SCREEN(the_terminal_is_itself_again_after_a_signal),
		ON_SCREEN(the_terminal_is_itself_again_when_the_vm_dies),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, stand_in_setup, stand_in_teardown);
}
