#include "common/toml.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The tree of a text that must be good. */
static struct toml *
good_n(const char *text, size_t len)
{
	/* An exact copy on the heap, so that a sanitizer sees a read past the end. */
	char *copy = malloc(len ? len : 1);
	struct err e = {0, ""};
	struct toml *t = NULL;

	assert_non_null(copy);
	memcpy(copy, text, len);
	if (toml_parse(copy, len, &t, &e))
		fail_msg("%.*s: %s", (int)len, text, e.msg);
	free(copy); /* the tree borrows nothing from the text */
	assert_int_equal(e.code, 0);
	return t;
}

static struct toml *
good(const char *text)
{
	return good_n(text, strlen(text));
}

/* The sentence about a text that must be bad. */
static const char *
bad_n(const char *text, size_t len)
{
	static struct err e;
	char *copy = malloc(len ? len : 1);
	struct toml *t = (struct toml *)&e;

	assert_non_null(copy);
	memcpy(copy, text, len);
	e.msg[0] = 0;
	if (toml_parse(copy, len, &t, &e) != -EINVAL)
		fail_msg("accepted, or another code than -EINVAL: %.*s", (int)len, text);
	free(copy);
	assert_ptr_equal(t, &e); /* outputs are untouched on failure */
	assert_int_equal(e.code, -EINVAL);
	return e.msg;
}

static const char *
bad(const char *text)
{
	return bad_n(text, strlen(text));
}

static void
assert_str(const struct toml *root, const char *key, const char *expect)
{
	const struct toml *t = toml_get(root, key);
	const char *s;

	if (!t)
		fail_msg("no member %s", key);
	assert_int_equal(toml_type(t), TOML_STRING);
	assert_int_equal(toml_str(t, &s, NULL), 0);
	assert_string_equal(s, expect);
}

static void
assert_i64(const struct toml *root, const char *key, int64_t expect)
{
	const struct toml *t = toml_get(root, key);
	int64_t v;

	if (!t)
		fail_msg("no member %s", key);
	assert_int_equal(toml_i64(t, &v), 0);
	assert_true(v == expect);
}

static double
f64_of(const struct toml *root, const char *key)
{
	const struct toml *t = toml_get(root, key);
	double v;

	assert_non_null(t);
	assert_int_equal(toml_type(t), TOML_FLOAT);
	assert_int_equal(toml_f64(t, &v), 0);
	return v;
}

static void
every_kind_of_string(void **state)
{
	cleanup_toml struct toml *t =
		good("a = \"x\\b\\t\\n\\f\\r\\\"\\\\\\u00e9\\U0001F600y\"\n"
		     "b = 'C:\\no\\escape'\n"
		     "c = \"\"\"\nfirst\n  second \\\n\n   \t third\"\"\"\n"
		     "d = '''\nI [dw]on't \\n '' end'''\n"
		     "e = \"\"\"\"two quotes\"\"\"\"\"\n"
		     "f = ''''x'''''\n"
		     "g = \"\"\nh = ''\ni = \"\"\"\"\"\"\nj = ''''''\n"
		     "k = \"tab\there\"\n"
		     "l = \"\"\"a\r\nb\"\"\"\r\n"
		     "m = \"\"\"\\   \n   x\"\"\"\n");

	(void)state;
	assert_str(t, "a", "x\b\t\n\f\r\"\\\xc3\xa9\xf0\x9f\x98\x80y");
	assert_str(t, "b", "C:\\no\\escape");
	assert_str(t, "c", "first\n  second third");
	assert_str(t, "d", "I [dw]on't \\n '' end");
	assert_str(t, "e", "\"two quotes\"\"");
	assert_str(t, "f", "'x''");
	assert_str(t, "g", "");
	assert_str(t, "h", "");
	assert_str(t, "i", "");
	assert_str(t, "j", "");
	assert_str(t, "k", "tab\there");
	assert_str(t, "l", "a\nb");
	assert_str(t, "m", "x");
}

static void
a_string_with_a_nul_needs_its_length(void **state)
{
	cleanup_toml struct toml *t = good("a = \"x\\u0000y\"");
	const char *s = "untouched";
	size_t len;

	(void)state;
	assert_int_equal(toml_str(toml_get(t, "a"), &s, NULL), -EINVAL);
	assert_string_equal(s, "untouched");
	assert_int_equal(toml_str(toml_get(t, "a"), &s, &len), 0);
	assert_int_equal(len, 3);
	assert_memory_equal(s, "x\0y", 4);
}

static void
integers_of_every_base_up_to_their_limits(void **state)
{
	cleanup_toml struct toml *t =
		good("a = +99\nb = -17\nc = 1_000_000\nd = 0xDEAD_beef\n"
		     "e = 0o755\nf = 0b1101_0110\ng = 9223372036854775807\n"
		     "h = -9223372036854775808\ni = 0\nj = -0\nk = +0\n"
		     "l = 0x7fffffffffffffff\nm = 0x00_01\n");
	double f;

	(void)state;
	assert_i64(t, "a", 99);
	assert_i64(t, "b", -17);
	assert_i64(t, "c", 1000000);
	assert_i64(t, "d", 0xdeadbeef);
	assert_i64(t, "e", 0755);
	assert_i64(t, "f", 0xd6);
	assert_i64(t, "g", INT64_MAX);
	assert_i64(t, "h", INT64_MIN);
	assert_i64(t, "i", 0);
	assert_i64(t, "j", 0);
	assert_i64(t, "k", 0);
	assert_i64(t, "l", INT64_MAX);
	assert_i64(t, "m", 1);
	assert_int_equal(toml_f64(toml_get(t, "b"), &f),
		0); /* an integer where a float is asked for */
	assert_true(f == -17.0);
}

static void
wrong_numbers_are_refused(void **state)
{
	static const char *const wrong[] = {"01", "+01", "1__0", "_1", "1_", "0x", "0xg",
		"0x_1", "-0x1", "+0b1", "0b2", "0o8", "0X1", "9223372036854775808",
		"-9223372036854775809", "0x8000000000000000", "1.", ".1", "1.e1", "1._5",
		"1e", "1e+", "1e1.0", "1_.0", "00.5", "+-1", "--1", "Inf", "NaN", "+",
		"-", "infinity", "1 2", "1,2", "1e_1", "0_0", "e1", "yes", "True",
		"+true"};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		char text[64];

		snprintf(text, sizeof(text), "a = %s\n", wrong[i]);
		assert_non_null(strstr(bad(text), "line 1, column "));
	}
	assert_string_equal(bad("n = 9223372036854775808"),
		"line 1, column 5: 9223372036854775808 does not fit in 64 bits with a sign");
}

static void
floats_in_every_form(void **state)
{
	cleanup_toml struct toml *t =
		good("a = 3.1415\nb = -0.01\nc = 5e+22\nd = 1e06\ne = -2E-2\n"
		     "f = 6.626e-34\ng = 224_617.445_991\nh = inf\ni = -inf\n"
		     "j = nan\nk = -nan\nl = +inf\nm = -0.0\nn = 1e00_1\n");

	(void)state;
	assert_true(f64_of(t, "a") == 3.1415);
	assert_true(f64_of(t, "b") == -0.01);
	assert_true(f64_of(t, "c") == 5e22);
	assert_true(f64_of(t, "d") == 1e6);
	assert_true(f64_of(t, "e") == -2e-2);
	assert_true(f64_of(t, "f") == 6.626e-34);
	assert_true(f64_of(t, "g") == 224617.445991);
	assert_true(isinf(f64_of(t, "h")) && f64_of(t, "h") > 0);
	assert_true(isinf(f64_of(t, "i")) && f64_of(t, "i") < 0);
	assert_true(isnan(f64_of(t, "j")) && isnan(f64_of(t, "k")));
	assert_true(isinf(f64_of(t, "l")));
	assert_true(f64_of(t, "m") == 0 && signbit(f64_of(t, "m")));
	assert_true(f64_of(t, "n") == 10);
}

static void
dates_and_times(void **state)
{
	cleanup_toml struct toml *t = good(
		"a = 1979-05-27T07:32:00Z\nb = 1979-05-27T00:32:00.999999999123-07:30\n"
		"c = 1979-05-27 07:32:00z\nd = 1979-05-27T07:32:00.5\ne = 1979-05-27\n"
		"f = 07:32:00\ng = 00:32:00.25\nh = 2000-02-29 # a leap year\ni = 1990-12-31t23:59:60Z\n"
		"j = 1979-05-27T07:32:00+14:00\n");
	struct toml_datetime d;

	(void)state;
	assert_int_equal(toml_type(toml_get(t, "a")), TOML_OFFSET_DATETIME);
	assert_int_equal(toml_datetime(toml_get(t, "a"), &d), 0);
	assert_true(d.year == 1979 && d.month == 5 && d.day == 27 && d.hour == 7 &&
		    d.minute == 32 && d.second == 0 && d.nanosecond == 0 &&
		    d.offset_minutes == 0);
	assert_int_equal(toml_datetime(toml_get(t, "b"), &d), 0);
	assert_true(d.nanosecond == 999999999 && d.offset_minutes == -450);
	assert_int_equal(toml_type(toml_get(t, "c")), TOML_OFFSET_DATETIME);
	assert_int_equal(toml_type(toml_get(t, "d")), TOML_LOCAL_DATETIME);
	assert_int_equal(toml_datetime(toml_get(t, "d"), &d), 0);
	assert_int_equal(d.nanosecond, 500000000);
	assert_int_equal(toml_type(toml_get(t, "e")), TOML_LOCAL_DATE);
	assert_int_equal(toml_type(toml_get(t, "f")), TOML_LOCAL_TIME);
	assert_int_equal(toml_datetime(toml_get(t, "g"), &d), 0);
	assert_true(d.minute == 32 && d.nanosecond == 250000000 && d.year == 0);
	assert_int_equal(toml_type(toml_get(t, "h")), TOML_LOCAL_DATE);
	assert_int_equal(toml_datetime(toml_get(t, "i"), &d), 0);
	assert_int_equal(d.second, 60);
	assert_int_equal(toml_datetime(toml_get(t, "j"), &d), 0);
	assert_int_equal(d.offset_minutes, 840);
}

static void
wrong_dates_are_refused(void **state)
{
	static const char *const wrong[] = {"1979-13-01", "1979-00-01", "1979-02-29",
		"1900-02-29", "1979-04-31", "1979-05-00", "1979-5-27", "79-05-27",
		"1979-05-27T24:00:00Z", "1979-05-27T23:60:00Z", "1979-05-27T23:00:61Z",
		"1979-05-27T07:32Z", "07:32", "7:32:00", "07:32:00.", "07:32:00Z",
		"1979-05-27T07:32:00+24:00", "1979-05-27T07:32:00+01:60",
		"1979-05-27T07:32:00+0100", "1979-05-27T", "1979-05-27X07:32:00",
		"1979-05-27  07:32:00", "1979-05-27T07:32:00.Z", "11979-05-27",
		"1979-05-27T07:32:00ZZ", "1979-05-27T7:32:00"};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		char text[64];

		snprintf(text, sizeof(text), "a = %s\n", wrong[i]);
		assert_non_null(strstr(bad(text), "line 1, column "));
	}
	assert_string_equal(bad("born = 1979-02-29"),
		"line 1, column 16: 1979-02-29 has a day that this month does not have");
}

static void
keys_bare_quoted_and_dotted(void **state)
{
	cleanup_toml struct toml *t =
		good("bare-key_1 = 1\n1234 = 2\n\"quoted \\u00e9\" = 3\n'lit' = 4\n"
		     "a . \"b.c\" .d = 5\n\"\" = 6\n3.14 = 7\na.e = 8\n");
	const struct toml *a, *m;
	const char *key;

	(void)state;
	assert_i64(t, "bare-key_1", 1);
	assert_i64(t, "1234", 2);
	assert_i64(t, "quoted \xc3\xa9", 3);
	assert_i64(t, "lit", 4);
	assert_i64(t, "", 6);
	a = toml_get(t, "a");
	assert_non_null(a);
	assert_i64(toml_get(a, "b.c"), "d", 5);
	assert_i64(a, "e", 8);
	assert_i64(toml_get(t, "3"), "14", 7);
	/* members come in file order */
	m = toml_member(t, 4, &key);
	assert_ptr_equal(m, a);
	assert_string_equal(key, "a");
	assert_null(toml_member(t, toml_size(t), &key));
	assert_null(toml_get(t, "absent"));
}

/* Callers have keys as C strings, for which it would be "a". */
static void
a_key_that_holds_a_nul_is_refused(void **state)
{
	static const char *const wrong[] = {"\"a\\u0000b\" = 1\na = 2\n",
		"\"\\u0000\" = 1", "[x.\"a\\u0000\"]", "[[\"\\U00000000a\"]]",
		"t = { \"a\\u0000\" = 1 }", "a.\"b\\u0000\".c = 1"};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_non_null(strstr(bad(wrong[i]), "U+0000 in a key"));
}

static void
wrong_keys_and_lines_are_refused(void **state)
{
	static const char *const wrong[] = {"= 1", "a", "a =", "a = \n1", "a b = 1",
		"a. = 1", ".a = 1", "a..b = 1", "\xc3\xa9 = 1", "\"\"\"a\"\"\" = 1",
		"'''a''' = 1", "a = 1 b = 2", "a = 1 'x'", "a.\nb = 1", "[]", "[a",
		"[a]]", "[[a]", "[ [a] ]", "[[a] ]", "[a.]", "[a] b = 1", "[a\n]", "[a]x",
		"[a.b]c", "a = [1", "a = [1 2]", "a = [,]", "a = [1,,2]", "a = {",
		"a = {x = 1", "a = {x = 1,}", "a = {,}", "a = {x = 1\n}",
		"a = {x = 1 y = 2}", "a = {x}", "a = {x = }", "a = \"x", "a = 'x",
		"a = \"x\ny\"", "a = \"\"\"x", "a = '''x", "a = '''x''''''",
		"a = \"\\x\"", "a = \"\\u12\"", "a = \"\\ud800\"", "a = \"\\U00110000\"",
		"a = \"\\", "a = \"\\ \n\"", "a = \"\"\"\\ x\"\"\"", "a = \"\x01\"",
		"a = '\x7f'", "# \x01", "a = 1 # \x7f", "a = 1\rb = 2",
		"a = \"\"\"\r\"\"\"", "# c\r", "\r", "a = @", "a = ]", "a\0 = 1", "*"};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		assert_non_null(strstr(bad(wrong[i]), "line "));
	bad_n("a = 1\0", 6);
	bad_n("a = \"\0\"", 7);
}

static void
tables_and_arrays_of_tables(void **state)
{
	cleanup_toml struct toml *t =
		good("top = 1\n[a.b]\nx = 1\n[a]\ny = 2\n[a.b.c]\n"
		     "[[fruit]]\nname = 'apple'\n[fruit.colour]\nrgb = 1\n"
		     "[[fruit.kinds]]\nn = 1\n[[fruit.kinds]]\nn = 2\n"
		     "[[fruit]]\nname = 'banana'\n[[fruit.kinds]]\nn = 3\n"
		     "[ spaced . \"out\" ] # comment\n");
	const struct toml *a = toml_get(t, "a"), *fruit = toml_get(t, "fruit"), *kinds;

	(void)state;
	assert_i64(a, "y", 2);
	assert_i64(toml_get(a, "b"), "x", 1);
	assert_int_equal(toml_type(toml_get(toml_get(a, "b"), "c")), TOML_TABLE);
	assert_int_equal(toml_type(fruit), TOML_ARRAY);
	assert_int_equal(toml_size(fruit), 2);
	assert_str(toml_element(fruit, 1), "name", "banana");
	kinds = toml_get(toml_element(fruit, 0), "kinds");
	assert_int_equal(toml_size(kinds), 2);
	assert_i64(toml_element(kinds, 1), "n", 2);
	kinds = toml_get(toml_element(fruit, 1), "kinds");
	assert_int_equal(toml_size(kinds), 1);
	assert_null(toml_element(kinds, 1));
	assert_null(toml_get(toml_element(fruit, 1), "colour"));
	assert_non_null(toml_get(toml_get(t, "spaced"), "out"));
}

static void
arrays_and_inline_tables(void **state)
{
	cleanup_toml struct toml *t =
		good("a = [ 1, 'x', [ true ], {k.l = 1, m = {}}, # comment\n\n 1.5,\n]\n"
		     "b = []\nc = {}\nd = { a = [\n1,\n2 ] , 'b' = \"\"\"\nx\"\"\" }\n");
	const struct toml *a = toml_get(t, "a");
	bool b;

	(void)state;
	assert_int_equal(toml_size(a), 5);
	assert_int_equal(toml_bool(toml_element(toml_element(a, 2), 0), &b), 0);
	assert_true(b);
	assert_i64(toml_get(toml_element(a, 3), "k"), "l", 1);
	assert_int_equal(toml_size(toml_get(t, "b")), 0);
	assert_int_equal(toml_size(toml_get(t, "c")), 0);
	assert_int_equal(toml_size(toml_get(toml_get(t, "d"), "a")), 2);
	assert_str(toml_get(t, "d"), "b", "x");
}

static void
what_is_defined_stays_defined(void **state)
{
	static const char *const wrong[] = {
		"a = 1\na = 2",
		"a = 1\n'a' = 2",
		"a = 1\na.b = 2",
		"a.b = 1\na = 2",
		"[a]\n[a]",
		"[a]\nb = 1\n[a.b]",
		"a = 1\n[a]",
		"a.b = 1\n[a]",
		"[fruit]\napple.color = 1\n[fruit.apple]",
		"[fruit]\napple.taste.sweet = true\n[fruit.apple.taste]",
		"[a.b.c]\nz = 9\n[a]\nb.c.t = 1",
		"[a.b.c.d]\nz = 9\n[a]\nb.c.d.k.t = 1",
		"[[a.b]]\n[a]\nb.y = 2",
		"[a]\n[[a]]",
		"[[a]]\n[a]",
		"a = []\n[[a]]",
		"a = [{}]\n[[a]]",
		"a = [{}]\n[a.b]",
		"a = {}\n[a]",
		"a = {}\n[a.b]",
		"a = {b = {}}\na.b.c = 1",
		"a = {b.c = 1}\na.b.d = 1",
		"a = {}\na.b = 1",
		"a = {b = 1, b = 2}",
		"a = {b = {c = 1}, b.d = 2}",
		"a = {b.c = 1, b = 2}",
		"[fruit.physical]\n[[fruit]]",
		"[[fruit]]\n[[fruit.kinds]]\n[fruit.kinds]",
		"[[fruit]]\nkinds = []\n[[fruit.kinds]]",
		"[a.b]\n[a]\n[a]",
		"[a.b]\n[a]\nb = 1",
		"[[a]]\nx = 1\n[a.x]",
		"[x.a.b]\n[x]\na.q = 1\n[x.a]",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		assert_non_null(strstr(bad(wrong[i]), "line "));
	assert_string_equal(bad("[m]\nx = 1\n\n  x = 2"),
		"line 4, column 3: x is given twice, the first time on line 2");
	assert_string_equal(bad("[a]\n[b]\n[ a ]"),
		"line 3, column 3: the table a is given twice, the first time on line 1");
}

static void
what_may_be_added_is_added(void **state)
{
	cleanup_toml struct toml *t =
		good("[fruit]\napple.color = 'red'\napple.taste.sweet = true\n"
		     "[fruit.apple.texture]\nsmooth = true\n"
		     "[x.y.z.w]\n[x]\n[x.a.b]\n[v.a.b]\n[v]\na.q = 1\n");
	const struct toml *apple = toml_get(toml_get(t, "fruit"), "apple");

	(void)state;
	assert_int_equal(toml_size(apple), 3);
	assert_int_equal(toml_size(toml_get(toml_get(t, "v"), "a")), 2);
}

static void
utf8_is_checked_everywhere(void **state)
{
	static const char *const wrong[] = {"a = \"\x80\"", "a = '\xc3'", "# \xff",
		"a = \"\xc0\x80\"", "a = \"\xed\xa0\x80\"", "a = \"\xf4\x90\x80\x80\"",
		"a = \"\xf0\x80\x80\x80\"", "\xe2\x82"};
	cleanup_toml struct toml *t = good("\xef\xbb\xbf"
					   "a = '\xf4\x8f\xbf\xbf'\n");

	(void)state;
	assert_str(t, "a", "\xf4\x8f\xbf\xbf");
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		assert_non_null(strstr(bad(wrong[i]), "is not UTF-8"));
	assert_string_equal(bad("a = 1\n\xc3\xa9\xff"),
		"line 2, column 2: byte 0xff is not UTF-8; save the file as UTF-8");
	bad_n("\xef\xbb\xbf\xef\xbb\xbf", 6);
}

static void
positions_count_characters_not_bytes(void **state)
{
	cleanup_toml struct toml *t =
		good("x = [\n  'a',\n\t7 ]\n[s]\n'\xc3\xa9\xc3\xa9' = 5\n"
		     "z = \"\"\"\n\n\"\"\"\nw = 1\n[[arr]]\n");
	const struct toml *x = toml_get(t, "x"), *s = toml_get(t, "s");

	(void)state;
	assert_int_equal(toml_line(x), 1);
	assert_int_equal(toml_column(x), 5);
	assert_int_equal(toml_line(toml_element(x, 1)), 3);
	assert_int_equal(toml_column(toml_element(x, 1)), 2);
	assert_int_equal(toml_line(s), 4);
	assert_int_equal(toml_column(toml_get(s, "\xc3\xa9\xc3\xa9")), 8);
	assert_int_equal(toml_line(toml_get(s, "w")), 9);
	assert_int_equal(toml_line(toml_element(toml_get(t, "arr"), 0)), 10);
}

static void
nesting_ends_at_a_depth(void **state)
{
	char text[4096];
	size_t n;

	(void)state;
	/* 63 arrays around a value: 64 deep */
	n = (size_t)snprintf(text, sizeof(text), "a = ");
	memset(text + n, '[', 63);
	text[n + 63] = '1';
	memset(text + n + 64, ']', 63);
	toml_free(good_n(text, n + 127));
	memset(text + n, '[', 64);
	text[n + 64] = '1';
	memset(text + n + 65, ']', 64);
	assert_non_null(strstr(bad_n(text, n + 129), "nested more than 64 deep"));
	memset(text + n, '[', 4000);
	assert_non_null(strstr(bad_n(text, n + 4000), "nested more than 64 deep"));

	for (n = 0; n < 3000; n += 2)
		memcpy(text + n, "a.", 2);
	memcpy(text + n, "a=1", 4);
	bad(text);
	text[0] = '[';
	for (n = 1; n < 3000; n += 2)
		memcpy(text + n, "a.", 2);
	memcpy(text + n, "a]", 3);
	bad(text);
	for (n = 4; n < 3000; n += 5)
		memcpy(text + n, "{a = ", 5);
	memcpy(text, "a = ", 4);
	text[n] = 0;
	bad(text);
}

static void
a_table_of_many_members_is_found_by_key(void **state)
{
	enum { N = 20000 };
	cleanup_toml struct toml *t = NULL;
	char *text = malloc(N * 32), *p = text;
	char key[32];

	(void)state;
	assert_non_null(text);
	for (int i = 0; i < N; i++)
		p += sprintf(p, "key%d = %d\n", i, i);
	t = good_n(text, (size_t)(p - text));
	assert_int_equal(toml_size(t), N);
	for (int i = 0; i < N; i += 7) {
		snprintf(key, sizeof(key), "key%d", i);
		assert_i64(t, key, i);
	}
	assert_null(toml_get(t, "key20000"));
	p += sprintf(p, "key777 = 1\n");
	assert_non_null(strstr(bad_n(text, (size_t)(p - text)),
		"line 20001, column 1: key777 is given twice, the first time on line 778"));
	free(text);
}

static void
asking_for_another_type_is_einval(void **state)
{
	cleanup_toml struct toml *t =
		good("s = 'x'\ni = 1\nf = 1.5\nb = true\nd = 1979-05-27\na = []\n");
	struct toml_datetime dt;
	const char *s;
	int64_t i;
	double f;
	bool b;

	(void)state;
	assert_int_equal(toml_str(toml_get(t, "i"), &s, NULL), -EINVAL);
	assert_int_equal(toml_i64(toml_get(t, "f"), &i), -EINVAL);
	assert_int_equal(toml_f64(toml_get(t, "s"), &f), -EINVAL);
	assert_int_equal(toml_bool(toml_get(t, "i"), &b), -EINVAL);
	assert_int_equal(toml_datetime(toml_get(t, "s"), &dt), -EINVAL);
	assert_int_equal(toml_str(toml_get(t, "a"), &s, NULL), -EINVAL);
	assert_null(toml_get(toml_get(t, "s"), "x"));
	assert_null(toml_element(t, 0));
	assert_null(toml_member(toml_get(t, "a"), 0, &s));
	assert_int_equal(toml_size(toml_get(t, "s")), 0);
	assert_string_equal(toml_type_name(toml_type(toml_get(t, "b"))), "a boolean");
}

static void
a_file_is_named_in_its_errors(void **state)
{
	char path[] = "/tmp/test_toml.XXXXXX", expect[128];
	int fd = mkstemp(path);
	struct toml *t = NULL;
	struct err e;

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "a = 1\nb = ?\n", 12), 12);
	assert_int_equal(toml_parse_file(path, &t, &e), -EINVAL);
	snprintf(expect, sizeof(expect), "%s:2:5: expected a value, found '?'", path);
	assert_string_equal(e.msg, expect);
	assert_int_equal(ftruncate(fd, 6), 0);
	assert_int_equal(toml_parse_file(path, &t, &e), 0);
	assert_i64(t, "a", 1);
	toml_free(t);
	close(fd);
	unlink(path);
	assert_int_equal(toml_parse_file(path, &t, &e), -ENOENT);
	assert_non_null(strstr(e.msg, path));
	assert_int_equal(toml_parse_file(path, &t, NULL), -ENOENT); /* e may be NULL */
}

static void
an_empty_text_is_an_empty_table(void **state)
{
	static const char *const empty[] = {"", "\n", "# only this", " \t\r\n#\r\n"};

	(void)state;
	for (size_t i = 0; i < sizeof(empty) / sizeof(*empty); i++) {
		cleanup_toml struct toml *t = good(empty[i]);

		assert_int_equal(toml_type(t), TOML_TABLE);
		assert_int_equal(toml_size(t), 0);
	}
	toml_free(NULL);
}

static void
a_long_key_is_cut_in_the_sentence_not_in_the_tree(void **state)
{
	char text[2048], key[512];
	struct toml *t;

	(void)state;
	memset(key, 'k', sizeof(key) - 1);
	key[sizeof(key) - 1] = 0;
	snprintf(text, sizeof(text), "%s = 1\n", key);
	t = good(text);
	assert_i64(t, key, 1);
	toml_free(t);
	snprintf(text, sizeof(text), "%s = 1\n%s = 2\n", key, key);
	assert_non_null(strstr(bad(text), "… is given twice, the first time on line 1"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_of_string),
		cmocka_unit_test(a_string_with_a_nul_needs_its_length),
		cmocka_unit_test(integers_of_every_base_up_to_their_limits),
		cmocka_unit_test(wrong_numbers_are_refused),
		cmocka_unit_test(floats_in_every_form),
		cmocka_unit_test(dates_and_times),
		cmocka_unit_test(wrong_dates_are_refused),
		cmocka_unit_test(keys_bare_quoted_and_dotted),
		cmocka_unit_test(a_key_that_holds_a_nul_is_refused),
		cmocka_unit_test(wrong_keys_and_lines_are_refused),
		cmocka_unit_test(tables_and_arrays_of_tables),
		cmocka_unit_test(arrays_and_inline_tables),
		cmocka_unit_test(what_is_defined_stays_defined),
		cmocka_unit_test(what_may_be_added_is_added),
		cmocka_unit_test(utf8_is_checked_everywhere),
		cmocka_unit_test(positions_count_characters_not_bytes),
		cmocka_unit_test(nesting_ends_at_a_depth),
		cmocka_unit_test(a_table_of_many_members_is_found_by_key),
		cmocka_unit_test(asking_for_another_type_is_einval),
		cmocka_unit_test(a_file_is_named_in_its_errors),
		cmocka_unit_test(an_empty_text_is_an_empty_table),
		cmocka_unit_test(a_long_key_is_cut_in_the_sentence_not_in_the_tree),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
