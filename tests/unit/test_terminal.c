/* What host/agent/terminal.h does with bytes: our keys among what is typed, modes in what is
 * shown. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "host/agent/terminal.h"

/* Types it in pieces of that size; what is passed on, with <L>, <?> and <Z> for keys. */
static const char *
typed(const char *text, size_t piece, char escape)
{
	static char all[256];
	struct terminal_keys k = {.escape = escape};
	size_t len = strlen(text), to = 0;

	all[0] = 0;
	for (size_t at = 0; at < len; at += piece) {
		char buf[300], *in = buf + 1;
		size_t n = len - at < piece ? len - at : piece, done = 0, out = 0;

		memcpy(in, text + at, n);
		while (done < n) {
			enum terminal_key key;
			size_t more;

			done += terminal_keys_take(
				&k, in + done, n - done, buf + out, &more, &key);
			memcpy(all + to, buf + out, more);
			to += more;
			out += more;
			assert_true(out <= n + 1);
			all[to] = 0;
			if (key != TERMINAL_NO_KEY) {
				strcpy(all + to, key == TERMINAL_LEAVE	? "<L>"
						 : key == TERMINAL_HELP ? "<?>"
									: "<Z>");
				to += 3;
			}
		}
	}
	return all;
}

static void
keys_of_ours_are_taken_at_the_start_of_a_line(void **state)
{
	static const struct {
		const char *in, *out;
	} cases[] = {
		{"plain", "plain"},
		{"~.", "<L>"},
		{"ls\r~.", "ls\r<L>"},
		{"ls\n~?", "ls\n<?>"},
		{"~?~?~.", "<?><?><L>"},
		{"~\032x", "<Z>x"},
		{"x~.", "x~."},
		{"~~.", "~."},
		{"~~~.", "~~."},
		{"~x~.", "~x~."},
		{"~\r~.", "~\r<L>"},
		{"~", ""},
		{"\r~\r", "\r~\r"},
		{"\003~.", "\003~."},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		for (size_t piece = 1; piece < 8; piece++)
			assert_string_equal(typed(cases[i].in, piece, '~'), cases[i].out);
	assert_string_equal(typed("~.", 1, 0), "~.");
	assert_string_equal(typed("\r%.", 2, '%'), "\r<L>");
	assert_string_equal(typed("~.", 2, '%'), "~.");
}

static const char *
undone(const char *text, size_t len, size_t piece)
{
	static char undo[TERMINAL_UNDO_MAX];
	struct terminal_modes m = {0};

	for (size_t at = 0; at < len; at += piece)
		terminal_modes_see(&m, text + at, len - at < piece ? len - at : piece);
	return terminal_modes_undo(&m, undo);
}

static void
modes_that_are_on_are_undone(void **state)
{
	static const struct {
		const char *in, *out;
	} cases[] = {
		{"text \033[2J\033[1;1H", ""},
		{"\033[?1049h\033[?25l", "\033[?25h\033[?1049l"},
		{"\033[?1049h\033[?25l\033[?25h\033[?1049l", ""},
		{"\033[?1000;1006h", "\033[?1000l\033[?1006l"},
		{"\033[?1000;1006h\033[?1006;1000l", ""},
		{"\033[?2004h$ \033[?7l", "\033[?7h\033[?2004l"},
		{"\033[?7h\033[?25h", ""},
		{"\033[31mred", "\033[m"},
		{"\033[31mred\033[m", ""},
		{"\033[1;38;5;196mred\033[0m", ""},
		{"\033[0;7mx", "\033[m"},
		{"\033=\033[?1h", "\033[?1l\033>"},
		{"\033=\033[?1h\033c", ""},
		{"\033[?31mno\033[>4;1m\033[1049h", ""},
		{"\033[?10\033[?1049h", "\033[?1049l"},
		{"\033[?99999999999999999999h", ""},
		{"\033[?10491049h", ""},
		{"\033]0;a title\007\033(B", ""},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		for (size_t piece = 1; piece < 24; piece += 5)
			assert_string_equal(
				undone(cases[i].in, strlen(cases[i].in), piece),
				cases[i].out);
}

static void
all_modes_at_once_and_noise_fit(void **state)
{
	static char noise[1 << 16];
	unsigned v = 1;

	(void)state;
	memset(noise, ';', sizeof(noise));
	memcpy(noise, "\033[?", 3);
	noise[sizeof(noise) - 1] = 'h';
	assert_string_equal(undone(noise, sizeof(noise), sizeof(noise)), "");
	for (int round = 0; round < 50; round++) {
		for (size_t i = 0; i < sizeof(noise); i++) {
			v = v * 1103515245 + 12345;
			noise[i] = "\033[?0124567;hlm=>c:\n"[(v >> 16) % 20];
		}
		assert_true(strlen(undone(noise, sizeof(noise), 1 + round)) <
			    TERMINAL_UNDO_MAX);
	}
	strcpy(noise, "\033[?1;9;1000;1001;1002;1003;1004;1005;1006;1015;1016;2004;2026;"
		      "47;1047h\033[?1049h\033[?7;25l\033=\033[1m");
	assert_int_equal(strlen(undone(noise, strlen(noise), 3)),
		strlen("\033[?1l\033[?7h\033[?25h"
		       "\033[?9l\033[?1000l\033[?1001l\033[?1002l\033[?1003l\033[?1004l"
		       "\033[?1005l\033[?1006l\033[?1015l\033[?1016l\033[?2004l"
		       "\033[?2026l\033[?47l\033[?1047l\033[?1049l\033>\033[m"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keys_of_ours_are_taken_at_the_start_of_a_line),
		cmocka_unit_test(modes_that_are_on_are_undone),
		cmocka_unit_test(all_modes_at_once_and_noise_fit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
