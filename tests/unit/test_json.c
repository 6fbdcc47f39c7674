#include "common/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

static struct json *
good(const char *text)
{
	struct json *j = NULL;
	struct err e;

	if (json_parse(text, strlen(text), 4096, &j, &e))
		fail_msg("%s: %s", text, e.msg);
	return j;
}

static void
bad_n(const char *text, size_t len)
{
	/* An exact copy on the heap, so that a sanitizer sees a read past the end. */
	char *copy = malloc(len ? len : 1);
	struct json *j = NULL;
	struct err e = {0, ""};

	assert_non_null(copy);
	memcpy(copy, text, len);
	if (json_parse(copy, len, 4096, &j, &e) == 0)
		fail_msg("accepted: %.*s", (int)len, text);
	free(copy);
	assert_null(j);
	assert_true(e.code < 0 && e.msg[0]);
}

static void
every_kind_of_value_is_read(void **state)
{
	const char *text = " {\"s\":\"a\\\"\\\\\\/"
			   "\\b\\f\\n\\r\\t\\u00e9\\ud83d\\ude00\",\"i\":-42,\"u\":"
			   "18446744073709551615,"
			   "\"f\":-1.5e2,\"t\":true,\"n\":null,\"a\":[1,[2],{}],\"o\":{"
			   "\"k\":false}}\n";
	cleanup_json struct json *j = good(text);
	char s[64];
	uint64_t u;
	int64_t i;
	double f;
	bool b;

	(void)state;
	assert_int_equal(json_type(j, 0), JSON_OBJECT);
	assert_int_equal(json_size(j, 0), 8);
	assert_int_equal(json_str(j, json_get(j, 0, "s"), s, sizeof(s)), 0);
	assert_string_equal(s, "a\"\\/\b\f\n\r\t\xc3\xa9\xf0\x9f\x98\x80");
	assert_int_equal(json_i64(j, json_get(j, 0, "i"), &i), 0);
	assert_true(i == -42);
	assert_int_equal(json_u64(j, json_get(j, 0, "u"), &u), 0);
	assert_true(u == UINT64_MAX);
	assert_int_equal(json_f64(j, json_get(j, 0, "f"), &f), 0);
	assert_true(f == -150.0);
	assert_int_equal(json_bool(j, json_get(j, 0, "t"), &b), 0);
	assert_true(b);
	assert_int_equal(json_type(j, json_get(j, 0, "n")), JSON_NULL);
	assert_int_equal(json_size(j, json_get(j, 0, "a")), 3);
	assert_int_equal(
		json_i64(j, json_at(j, json_at(j, json_get(j, 0, "a"), 1), 0), &i), 0);
	assert_true(i == 2);
	assert_int_equal(json_bool(j, json_get(j, json_get(j, 0, "o"), "k"), &b), 0);
	assert_false(b);
}

static void
what_is_absent_or_of_another_type_is_told_apart(void **state)
{
	cleanup_json struct json *j = good("{\"s\":\"abc\",\"i\":1,\"f\":1.5,\"z\":"
					   "\"a\\u0000b\",\"m\":-1,\"a\":[]}");
	char s[4] = "old";
	char *dup = s;
	uint64_t u = 7;
	int64_t i = 7;
	double f;
	bool b;

	(void)state;
	assert_int_equal(json_get(j, 0, "absent"), -ENOENT);
	assert_int_equal(json_get(j, json_get(j, 0, "s"), "x"), -ENOENT);
	assert_int_equal(json_at(j, json_get(j, 0, "a"), 0), -ENOENT);
	assert_int_equal(json_at(j, 0, 0), -ENOENT);
	assert_int_equal(json_str(j, -ENOENT, s, sizeof(s)), -ENOENT);
	assert_int_equal(json_u64(j, -ENOENT, &u), -ENOENT);
	assert_int_equal(json_bool(j, -ENOENT, &b), -ENOENT);
	assert_int_equal(json_f64(j, json_get(j, 0, "s"), &f), -EINVAL);
	assert_int_equal(json_str(j, json_get(j, 0, "i"), s, sizeof(s)), -EINVAL);
	assert_int_equal(json_str(j, json_get(j, 0, "s"), s, 3), -ENAMETOOLONG);
	assert_int_equal(json_str(j, json_get(j, 0, "s"), s, 4), 0);
	assert_string_equal(s, "abc");
	assert_int_equal(json_str(j, json_get(j, 0, "z"), s, sizeof(s)), -EINVAL);
	assert_int_equal(json_str_dup(j, json_get(j, 0, "z"), &dup), -EINVAL);
	assert_ptr_equal(dup, s);
	assert_int_equal(json_u64(j, json_get(j, 0, "f"), &u), -EINVAL);
	assert_true(json_u64(j, json_get(j, 0, "m"), &u) < 0);
	assert_true(u == 7 && i == 7);
	assert_int_equal(json_str_dup(j, json_get(j, 0, "s"), &dup), 0);
	assert_string_equal(dup, "abc");
	free(dup);
}

static void
numbers_beyond_the_type_are_refused(void **state)
{
	cleanup_json struct json *j = good(
		"[18446744073709551616,9223372036854775808,-9223372036854775809,1e400,"
		"9223372036854775807,-9223372036854775808]");
	uint64_t u;
	int64_t i;
	double f;

	(void)state;
	assert_int_equal(json_u64(j, json_at(j, 0, 0), &u), -ERANGE);
	assert_int_equal(json_i64(j, json_at(j, 0, 1), &i), -ERANGE);
	assert_int_equal(json_i64(j, json_at(j, 0, 2), &i), -ERANGE);
	assert_int_equal(json_f64(j, json_at(j, 0, 3), &f), -ERANGE);
	assert_int_equal(json_i64(j, json_at(j, 0, 4), &i), 0);
	assert_true(i == INT64_MAX);
	assert_int_equal(json_i64(j, json_at(j, 0, 5), &i), 0);
	assert_true(i == INT64_MIN);
}

static void
what_is_no_json_is_refused(void **state)
{
	static const char *const wrong[] = {"", " ", "{", "[", "[1", "{\"a\"}",
		"{\"a\":}", "{\"a\":1,}", "{,}", "[1,]", "[,1]", "[1 2]", "[1,,2]",
		"{\"a\" 1}", "{\"a\":1 \"b\":2}", "{a:1}", "{'a':1}", "{1:2}", "[01]",
		"[1.]", "[.5]", "[+1]", "[1e]", "[-]", "[0x1]", "[NaN]", "[Infinity]",
		"[truex]", "[tru]", "[nul]", "[\"\\x\"]", "[\"\\u12g4\"]",
		"[\"\\ud800\"]", "[\"\\udc00\"]", "[\"\\ud800\\u0041\"]", "[\"a\nb\"]",
		"[\"\x1f\"]", "[\"\x80\"]", "[\"\xc0\x80\"]", "[\"\xed\xa0\x80\"]",
		"[\"abc]", "{}{}", "{} x", "[1]]", "]", "}", "[}", "{]",
		"{\"a\":1,\"a\":2}", "{\"a\":1,\"\\u0061\":2}", "[\"a\":1]", "[1:2]",
		"[{\"a\":1:2}]", "[\"a\" \"b\"]", "{\"a\":1}//", "\xef\xbb\xbf{}"};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
		bad_n(wrong[i], strlen(wrong[i]));
	bad_n("[1]\0", 4);
	bad_n("[\"a\0b\"]", 7);
}

static void
depth_and_number_of_values_are_bounded(void **state)
{
	struct json *j = NULL;
	char text[400];
	struct err e;

	(void)state;
	memset(text, '[', 64);
	memset(text + 64, ']', 64);
	assert_int_equal(json_parse(text, 128, 4096, &j, &e), 0);
	json_free(j);
	j = NULL;
	memset(text, '[', 65);
	memset(text + 65, ']', 65);
	bad_n(text, 130);
	assert_int_equal(json_parse("[1,2,3]", 7, 3, &j, &e), -E2BIG);
	assert_null(j);
	assert_int_equal(json_parse("[1,2,3]", 7, 4, &j, &e), 0);
	json_free(j);
	json_free(NULL);
}

static void
members_and_elements_are_walked_in_order(void **state)
{
	cleanup_json struct json *j = good("{\"a\":[1,[2,3],4],\"b\":{\"c\":5},\"d\":6}");
	int it = 0, key, value, n = 0;
	size_t len;
	char k[4];

	(void)state;
	while (json_next(j, 0, &it, &key, &value)) {
		assert_int_equal(json_str(j, key, k, sizeof(k)), 0);
		assert_int_equal(k[0], "abd"[n++]);
	}
	assert_int_equal(n, 3);
	it = n = 0;
	while (json_next(j, json_get(j, 0, "a"), &it, &key, &value)) {
		assert_int_equal(key, -1);
		n++;
	}
	assert_int_equal(n, 3);
	it = 0;
	assert_false(json_next(j, json_get(j, 0, "d"), &it, &key, &value));
	assert_memory_equal(json_raw(j, json_get(j, 0, "b"), &len), "{\"c\":5}", 7);
	assert_int_equal(len, 7);
}

static void
the_writer_writes_what_the_reader_reads(void **state)
{
	cleanup_json_out struct json_out o = {0};
	struct json *j;
	double f;
	char s[64];

	(void)state;
	json_out_object(&o, NULL);
	json_out_str(&o, "s", "q\" \\ \n \x01 \xc3\xa9 \xff");
	json_out_strn(&o, "n", "abc", 2);
	json_out_str(&o, "null", NULL);
	json_out_u64(&o, "u", UINT64_MAX);
	json_out_i64(&o, "i", INT64_MIN);
	json_out_f64(&o, "f", 0.1);
	json_out_bool(&o, "b", true);
	json_out_array(&o, "a");
	json_out_u64(&o, NULL, 1);
	json_out_object(&o, NULL);
	json_out_end_object(&o);
	json_out_raw(&o, NULL, "[2]", 3);
	json_out_null(&o, NULL);
	json_out_end_array(&o);
	json_out_end_object(&o);
	assert_int_equal(o.error, 0);
	assert_int_equal(strlen(o.buf), o.len);
	j = good(o.buf);
	assert_int_equal(json_str(j, json_get(j, 0, "s"), s, sizeof(s)), 0);
	assert_string_equal(s, "q\" \\ \n \x01 \xc3\xa9 \xef\xbf\xbd");
	assert_int_equal(json_str(j, json_get(j, 0, "n"), s, sizeof(s)), 0);
	assert_string_equal(s, "ab");
	assert_int_equal(json_type(j, json_get(j, 0, "null")), JSON_NULL);
	assert_int_equal(json_f64(j, json_get(j, 0, "f"), &f), 0);
	assert_true(f == 0.1);
	assert_int_equal(json_size(j, json_get(j, 0, "a")), 4);
	assert_non_null(strstr(o.buf, "18446744073709551615"));
	assert_non_null(strstr(o.buf, "-9223372036854775808"));
	json_free(j);
}

static void
what_json_cannot_say_does_not_become_bad_json(void **state)
{
	cleanup_json_out struct json_out o = {0}, deep = {0};

	(void)state;
	json_out_array(&o, NULL);
	json_out_f64(&o, NULL, (double)NAN);
	json_out_f64(&o, NULL, (double)INFINITY);
	json_out_end_array(&o);
	if (!o.error)
		json_free(good(o.buf));
	for (int i = 0; i < 70; i++)
		json_out_array(&deep, NULL);
	assert_true(deep.error < 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind_of_value_is_read),
		cmocka_unit_test(what_is_absent_or_of_another_type_is_told_apart),
		cmocka_unit_test(numbers_beyond_the_type_are_refused),
		cmocka_unit_test(what_is_no_json_is_refused),
		cmocka_unit_test(depth_and_number_of_values_are_bounded),
		cmocka_unit_test(members_and_elements_are_walked_in_order),
		cmocka_unit_test(the_writer_writes_what_the_reader_reads),
		cmocka_unit_test(what_json_cannot_say_does_not_become_bad_json),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
