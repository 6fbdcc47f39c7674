/* The TOML reader on any bytes: no crash, and what it accepts can be walked and found
 * again. */
#include "common/toml.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(x) \
	do { \
		if (!(x)) \
			abort(); \
	} while (0)

static void
walk(const struct toml *t, unsigned depth)
{
	struct toml_datetime dt;
	const char *s, *key;
	int64_t i;
	size_t len;
	double f;
	bool b;

	CHECK(depth <= 64);
	CHECK(toml_line(t) >= 1 && toml_column(t) >= 1);
	switch (toml_type(t)) {
	case TOML_TABLE:
		for (size_t n = 0; n < toml_size(t); n++) {
			const struct toml *m = toml_member(t, n, &key), *found;

			CHECK(m);
			found = toml_get(t, key);
			CHECK(found == m); /* the key leads to this very member */
			walk(m, depth + 1);
		}
		break;
	case TOML_ARRAY:
		for (size_t n = 0; n < toml_size(t); n++) {
			CHECK(toml_element(t, n));
			walk(toml_element(t, n), depth + 1);
		}
		break;
	case TOML_STRING:
		CHECK(toml_str(t, &s, &len) == 0 && s[len] == 0);
		break;
	case TOML_INTEGER:
		CHECK(toml_i64(t, &i) == 0);
		break;
	case TOML_FLOAT:
		CHECK(toml_f64(t, &f) == 0);
		break;
	case TOML_BOOL:
		CHECK(toml_bool(t, &b) == 0);
		break;
	default:
		CHECK(toml_datetime(t, &dt) == 0);
		CHECK(dt.month >= 0 && dt.month <= 12 && dt.day >= 0 && dt.day <= 31 &&
			dt.hour >= 0 && dt.hour <= 23 && dt.minute <= 59 &&
			dt.second <= 60 && dt.nanosecond < 1000000000);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct toml *t = NULL;
	struct err e = {0, ""};
	int r = toml_parse((const char *)data, size, &t, &e);

	if (r == 0) {
		walk(t, 0);
		toml_free(t);
	} else {
		CHECK(!t && e.code == r && e.msg[0] && memchr(e.msg, 0, sizeof(e.msg)));
		CHECK(!strchr(e.msg, '\n'));
	}
	return 0;
}
