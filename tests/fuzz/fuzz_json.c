/* The JSON reader on any bytes: no crash; what it accepts is walked, written again by our
 * writer, and the writer's text is read again with the same shape. */
#include "common/json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) \
	do { \
		if (!(x)) \
			abort(); \
	} while (0)

/* Copies the value into o; returns how many values it and its insides are, or -1 when a
 * string held a U+0000 (our C-string calls refuse those, so it cannot be copied). */
static long
copy(const struct json *j, int tok, const char *key, struct json_out *o)
{
	int it = 0, k, v;
	long n = 1, sub;
	size_t raw_len;
	uint64_t u;
	int64_t i;
	double f;
	bool b;

	switch (json_type(j, tok)) {
	case JSON_OBJECT:
	case JSON_ARRAY: {
		bool object = json_type(j, tok) == JSON_OBJECT;
		int members = 0;

		if (object)
			json_out_object(o, key);
		else
			json_out_array(o, key);
		while (json_next(j, tok, &it, &k, &v)) {
			char *name = NULL;

			members++;
			CHECK(object == (k >= 0));
			if (object) {
				if (json_str_dup(j, k, &name))
					return -1;
				CHECK(json_get(j, tok, name) == v);
			} else {
				CHECK(json_at(j, tok, members - 1) == v);
			}
			sub = copy(j, v, name, o);
			free(name);
			if (sub < 0)
				return -1;
			n += sub;
		}
		CHECK(members == json_size(j, tok));
		if (object)
			json_out_end_object(o);
		else
			json_out_end_array(o);
		return n;
	}
	case JSON_STRING: {
		char *s = NULL;

		if (json_str_dup(j, tok, &s))
			return -1;
		json_out_str(o, key, s);
		free(s);
		return 1;
	}
	case JSON_NUMBER:
		json_u64(j, tok, &u);
		json_i64(j, tok, &i);
		json_f64(j, tok, &f);
		json_out_raw(o, key, json_raw(j, tok, &raw_len), raw_len);
		return 1;
	case JSON_BOOL:
		CHECK(json_bool(j, tok, &b) == 0);
		json_out_bool(o, key, b);
		return 1;
	case JSON_NULL:
		json_out_null(o, key);
		return 1;
	}
	abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct json *j = NULL, *again = NULL;
	struct err e = {0, ""};
	int r = json_parse((const char *)data, size, 4096, &j, &e);

	if (r) {
		CHECK(!j && e.code == r && e.msg[0]);
		return 0;
	}
	struct json_out o = {0}, o2 = {0};
	long n = copy(j, 0, NULL, &o);

	if (n >= 0) {
		CHECK(!o.error);
		CHECK(json_parse(o.buf, o.len, 4096, &again, &e) == 0);
		CHECK(copy(again, 0, NULL, &o2) == n);
		CHECK(o.len == o2.len && memcmp(o.buf, o2.buf, o.len) == 0);
	}
	json_free(j);
	json_free(again);
	json_out_done(&o);
	json_out_done(&o2);
	return 0;
}
