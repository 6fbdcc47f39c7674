#include "common/log.h"
#include "common/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int log_file = -1;

/* What was logged since the last call. */
static const char *
logged(void)
{
	static char buf[8192];
	ssize_t n = pread(log_file, buf, sizeof(buf) - 1, 0);

	assert_true(n >= 0);
	buf[n] = 0;
	assert_int_equal(ftruncate(log_file, 0), 0);
	assert_int_equal(lseek(log_file, 0, SEEK_SET), 0);
	return buf;
}

static int
open_log(void **state)
{
	char path[] = "/tmp/test_log.XXXXXX";

	(void)state;
	log_file = mkstemp(path);
	if (log_file < 0)
		return -1;
	unlink(path);
	log_set_fd(log_file);
	log_init("vm/frontend", LOG_LEVEL_INFO);
	return 0;
}

static int
close_log(void **state)
{
	(void)state;
	log_set_fd(2);
	close(log_file);
	return 0;
}

static void
a_log_that_grows_too_long_keeps_its_newest_lines(void **state)
{
	char path[] = "/tmp/test_log.XXXXXX", text[LOG_KEPT_BYTES + 4096], newest[32];
	int fd = mkstemp(path), plain = log_file;
	unsigned cuts = 0;
	struct stat st;
	off_t before = 0;
	ssize_t n;

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC);
	unlink(path);
	log_set_fd(fd);
	log_set_bound(LOG_KEPT_BYTES * 2);
	for (unsigned i = 0; i < 20000; i++) {
		log_info("line %06u of many", i);
		assert_int_equal(fstat(fd, &st), 0);
		assert_true(st.st_size <= LOG_KEPT_BYTES * 2);
		if (st.st_size < before)
			cuts++;
		before = st.st_size;
		if (i % 1000 != 999)
			continue;
		/* The newest is always there, and it begins with a whole line. */
		n = pread(fd, text, 4, 0);
		assert_true(n == 4 && memcmp(text, "<6>", 3) == 0);
		n = pread(fd, newest, sizeof(newest), st.st_size - (off_t)sizeof(newest));
		assert_true(n > 0 && newest[n - 1] == '\n');
		snprintf(text, sizeof(text), "line %06u", i);
		assert_non_null(memmem(newest, (size_t)n, text, strlen(text)));
	}
	assert_true(cuts > 2);
	/* One that can only be written keeps nothing, and is bounded all the same. */
	snprintf(text, sizeof(text), "/proc/self/fd/%d", fd);
	log_set_fd(open(text, O_WRONLY | O_APPEND | O_CLOEXEC));
	for (unsigned i = 0; i < 20000; i++)
		log_info("line %06u of many", i);
	assert_int_equal(fstat(fd, &st), 0);
	assert_true(st.st_size <= LOG_KEPT_BYTES * 2);
	log_set_bound(0);
	log_set_fd(plain);
	close(fd);
}

/* date(1) reads the stamp back: the same second as the clock, give or take the call. */
static void
a_stamp_is_the_time_in_utc(void **state)
{
	char command[128], answer[64] = "";
	unsigned year, month, day, hour, minute;
	float second;
	time_t before = time(NULL);
	FILE *f;

	(void)state;
	log_set_stamps(1);
	log_info("x");
	log_set_stamps(0);
	assert_int_equal(sscanf(logged(), "<6>%4u-%2u-%2uT%2u:%2u:%6fZ vm/frontend: x",
				 &year, &month, &day, &hour, &minute, &second),
		6);
	snprintf(command, sizeof(command), "date -u -d '%u-%u-%u %u:%u:%u' +%%s", year,
		month, day, hour, minute, (unsigned)second);
	f = popen(command, "r");
	assert_non_null(f);
	assert_non_null(fgets(answer, sizeof(answer), f));
	pclose(f);
	assert_in_range(atoll(answer), before, before + 5);
}

static void
a_line_has_priority_tag_and_text(void **state)
{
	(void)state;
	log_err("disk %d: %s", 0, "gone");
	assert_string_equal(logged(), "<3>vm/frontend: disk 0: gone\n");
	log_warn("w");
	log_info("i");
	assert_string_equal(logged(), "<4>vm/frontend: w\n<6>vm/frontend: i\n");
}

static void
lines_above_the_level_are_dropped(void **state)
{
	(void)state;
	log_debug("quiet");
	assert_string_equal(logged(), "");
	log_init("t", LOG_LEVEL_DEBUG);
	log_debug("loud");
	assert_string_equal(logged(), "<7>t: loud\n");
}

static void
a_message_is_one_line_whatever_is_in_it(void **state)
{
	char longer[5000];
	const char *line;

	(void)state;
	log_info("two\nlines");
	assert_string_equal(logged(), "<6>t: two lines\n");
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = 0;
	log_info("%s", longer);
	line = logged();
	assert_true(strlen(line) <= 1024);
	assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
}

static void
a_flood_is_held_back(void **state)
{
	struct log_limit limit = {.burst = 3};
	int passed = 0;

	(void)state;
	for (int i = 0; i < 100; i++)
		passed += log_allowed(&limit);
	assert_int_equal(passed, 3);
	/* the next window opens: the count of the dropped is said once */
	limit.window_start_ns -= 11ULL * 1000 * 1000 * 1000;
	assert_true(log_allowed(&limit));
	assert_non_null(strstr(logged(), "97"));
	assert_true(log_allowed(&limit));
	assert_string_equal(logged(), "");
}

static void
foreign_text_is_escaped(void **state)
{
	char dst[32];

	(void)state;
	assert_string_equal(log_escape(dst, sizeof(dst), "a\n\x1b[31m\\\0\xff", 10),
		"a\\x0a\\x1b[31m\\x5c\\x00\\xff");
	/* never half an escape, always terminated */
	for (size_t cap = 1; cap < 9; cap++) {
		memset(dst, 'G', sizeof(dst));
		log_escape(dst, cap, "ab\x01", 3);
		assert_true(strlen(dst) < cap);
		assert_int_equal(dst[cap], 'G');
		assert_true(strcmp(dst, "ab\\x01") == 0 || !strchr(dst, '\\'));
	}
	assert_string_equal(log_escape(dst, sizeof(dst), "", 0), "");
}

static void
hex_digits_are_two_a_byte_and_end(void **state)
{
	const uint8_t bytes[] = {0x00, 0x0f, 0xa5, 0xff};
	char text[10] = "xxxxxxxxx";

	(void)state;
	text_hex(text, bytes, sizeof(bytes));
	assert_string_equal(text, "000fa5ff");
	assert_int_equal(text[9], '\0');
	text_hex(text, bytes, 0);
	assert_string_equal(text, "");
	assert_true(text_is_hex("000fa5ff", 8));
	assert_false(text_is_hex("000FA5ff", 8));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_line_has_priority_tag_and_text),
		cmocka_unit_test(a_stamp_is_the_time_in_utc),
		cmocka_unit_test(lines_above_the_level_are_dropped),
		cmocka_unit_test(a_message_is_one_line_whatever_is_in_it),
		cmocka_unit_test(a_flood_is_held_back),
		cmocka_unit_test(a_log_that_grows_too_long_keeps_its_newest_lines),
		cmocka_unit_test(foreign_text_is_escaped),
		cmocka_unit_test(hex_digits_are_two_a_byte_and_end),
	};

	return cmocka_run_group_tests(tests, open_log, close_log);
}
