/*
 * JSON (RFC 8259): a reader over jsmn and a writer. jsmn is called only in json.c.
 *
 * Reader: the root is an object, an array or a string (no message of ours is a bare
 * number). json_parse() checks the whole text (jsmn alone accepts too much: we add checks
 * of numbers, literals, escapes, control characters, UTF-8, duplicate keys and depth <=
 * 64) and fills a token array. Values are named by token index ("tok"); 0 is the root; a
 * negative index means absent, and every json_get_* of an absent token gives -ENOENT.
 * Bounded: more tokens than the array holds is -E2BIG.
 */
#ifndef PANDO_COMMON_JSON_H
#define PANDO_COMMON_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct json; /* a parsed text */

enum json_type {
	JSON_OBJECT,
	JSON_ARRAY,
	JSON_STRING,
	JSON_NUMBER,
	JSON_BOOL,
	JSON_NULL
};

/* text is borrowed and must outlive *ret. max_tokens bounds the work (4096 suits most).
 * Free with json_free (NULL is fine). */
int json_parse(const char *text, size_t len, size_t max_tokens, struct json **ret,
	struct err *e);
void json_free(struct json *j);
static inline void
json_free_fn(struct json **j)
{
	json_free(*j);
}
#define cleanup_json __attribute__((cleanup(json_free_fn)))

enum json_type json_type(const struct json *j, int tok);
int json_size(const struct json *j, int tok); /* members or elements */

/* The member's value, or -ENOENT. obj that is no object: -ENOENT. */
int json_get(const struct json *j, int obj, const char *key);
/* Element i of an array, or -ENOENT. */
int json_at(const struct json *j, int arr, int i);
/* Iterates: start with *it = 0; gives the value's token and (for an object) the key's
 * token (else -1); returns false at the end. */
bool json_next(
	const struct json *j, int container, int *it, int *ret_key, int *ret_value);

/* Unescaped UTF-8, terminated. A string with U+0000 is refused (-EINVAL) by the C-string
 * calls. -ENOENT absent, -EINVAL wrong type, -ENAMETOOLONG does not fit. */
int json_str(const struct json *j, int tok, char *dst, size_t cap);
/* malloc'd; owned by the caller. */
int json_str_dup(const struct json *j, int tok, char **ret);
int json_u64(const struct json *j, int tok, uint64_t *ret);
int json_i64(const struct json *j, int tok, int64_t *ret);
int json_f64(const struct json *j, int tok, double *ret);
int json_bool(const struct json *j, int tok, bool *ret);
/* The raw text of a value (not unescaped), borrowed. */
const char *json_raw(const struct json *j, int tok, size_t *ret_len);

/*
 * Writer: grows by malloc; the first failure sticks in .error and later calls do nothing,
 * so that only the end is checked. Commas are automatic. Keys NULL inside arrays and at
 * the root. Strings are checked UTF-8; invalid bytes become U+FFFD.
 */
struct json_out {
	char *buf; /* owned; terminated */
	size_t len, cap;
	int error;
	unsigned depth;
	uint64_t has_items; /* a bit a level */
};

void json_out_done(struct json_out *o); /* frees buf */
#define cleanup_json_out __attribute__((cleanup(json_out_done)))
void json_out_object(struct json_out *o, const char *key);
void json_out_array(struct json_out *o, const char *key);
void json_out_end_object(struct json_out *o);
void json_out_end_array(struct json_out *o);
void json_out_str(
	struct json_out *o, const char *key, const char *value); /* NULL: null */
void json_out_strn(struct json_out *o, const char *key, const char *value, size_t len);
void json_out_u64(struct json_out *o, const char *key, uint64_t value);
void json_out_i64(struct json_out *o, const char *key, int64_t value);
void json_out_f64(struct json_out *o, const char *key, double value);
void json_out_bool(struct json_out *o, const char *key, bool value);
void json_out_null(struct json_out *o, const char *key);
/* Already-valid JSON text, as it is. */
void json_out_raw(struct json_out *o, const char *key, const char *text, size_t len);

#endif
