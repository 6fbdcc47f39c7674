/*
 * TOML 1.0.0 (toml.io/en/v1.0.0), complete but for keys with U+0000, which are errors;
 * read-only. Errors name line and column ("line 3, column 7: …"). Bounded: depth <= 64, text <= 16 MiB.
 */
#ifndef PANDO_COMMON_TOML_H
#define PANDO_COMMON_TOML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum toml_type {
	TOML_TABLE,
	TOML_ARRAY, /* arrays of tables too */
	TOML_STRING,
	TOML_INTEGER,
	TOML_FLOAT,
	TOML_BOOL,
	TOML_OFFSET_DATETIME,
	TOML_LOCAL_DATETIME,
	TOML_LOCAL_DATE,
	TOML_LOCAL_TIME,
};

struct toml_datetime {
	int year, month, day, hour, minute, second;
	uint32_t nanosecond;
	int offset_minutes; /* offset date-times only */
};

struct toml; /* one value; the root is a table. All memory belongs to the root. */

int toml_parse(const char *text, size_t len, struct toml **ret_root, struct err *e);
/* Reads and parses a file; the sentence starts with "path:line:column: ". */
int toml_parse_file(const char *path, struct toml **ret_root, struct err *e);
void toml_free(struct toml *root);
static inline void
toml_free_fn(struct toml **t)
{
	toml_free(*t);
}
#define cleanup_toml __attribute__((cleanup(toml_free_fn)))

enum toml_type toml_type(const struct toml *t);
const char *toml_type_name(enum toml_type type); /* "a string", "an integer", … */
unsigned toml_line(
	const struct toml *t); /* where the value (or table header) stands, from 1 */
unsigned toml_column(const struct toml *t);

size_t toml_size(const struct toml *t); /* members of a table, elements of an array */
/* Member by key, NULL if absent. */
const struct toml *toml_get(const struct toml *table, const char *key);
/* Member i of a table in file order, its key (borrowed) in *ret_key; NULL past the end.
 */
const struct toml *toml_member(const struct toml *table, size_t i, const char **ret_key);
const struct toml *toml_element(const struct toml *array, size_t i);

/* -EINVAL when the type is another. Strings are borrowed UTF-8, NUL-terminated; len
 * counts U+0000 that may be inside. ret_len may be NULL (then a string with U+0000 is
 * -EINVAL). */
int toml_str(const struct toml *t, const char **ret, size_t *ret_len);
int toml_i64(const struct toml *t, int64_t *ret);
int toml_f64(const struct toml *t, double *ret); /* integers too */
int toml_bool(const struct toml *t, bool *ret);
int toml_datetime(const struct toml *t, struct toml_datetime *ret);

#endif
