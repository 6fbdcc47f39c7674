/*
 * jsmn finds the tokens; it accepts much that is no JSON, so check_value() walks them
 * with a strict eye before anybody sees a token: what lies between tokens, literals,
 * numbers, escapes, UTF-8, duplicate keys, depth.
 */
#include "common/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSMN_STATIC
#define JSMN_STRICT
#define JSMN_PARENT_LINKS
#include <jsmn.h>

#include "common/cleanup.h"
#include "common/utf8.h"

#define DEPTH_MAX 64
#define FIRST_TOKENS 64

struct json {
	const char *text; /* borrowed */
	size_t len;
	int count;
	jsmntok_t *tok; /* owned */
	int *skip;	/* owned: index of the token after tok i and all below it */
};

static int
hex4(const char *s, size_t left, unsigned *ret)
{
	unsigned v = 0;

	if (left < 4)
		return -EINVAL;
	for (int i = 0; i < 4; i++) {
		unsigned char c = (unsigned char)s[i];

		v <<= 4;
		if (c >= '0' && c <= '9')
			v |= c - '0';
		else if (c >= 'a' && c <= 'f')
			v |= c - 'a' + 10u;
		else if (c >= 'A' && c <= 'F')
			v |= c - 'A' + 10u;
		else
			return -EINVAL;
	}
	*ret = v;
	return 0;
}

static size_t
utf8_put(char *dst, unsigned cp)
{
	if (cp < 0x80) {
		dst[0] = (char)cp;
		return 1;
	}
	if (cp < 0x800) {
		dst[0] = (char)(0xc0 | cp >> 6);
		dst[1] = (char)(0x80 | (cp & 0x3f));
		return 2;
	}
	if (cp < 0x10000) {
		dst[0] = (char)(0xe0 | cp >> 12);
		dst[1] = (char)(0x80 | (cp >> 6 & 0x3f));
		dst[2] = (char)(0x80 | (cp & 0x3f));
		return 3;
	}
	dst[0] = (char)(0xf0 | cp >> 18);
	dst[1] = (char)(0x80 | (cp >> 12 & 0x3f));
	dst[2] = (char)(0x80 | (cp >> 6 & 0x3f));
	dst[3] = (char)(0x80 | (cp & 0x3f));
	return 4;
}

/*
 * The next unescaped piece of a string body: 1 to 4 bytes into piece, *pos moved past
 * its source. Returns their number, 0 at the end, -EINVAL for what is no JSON.
 */
static int
string_piece(const char *s, size_t len, size_t *pos, char piece[4])
{
	static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
	unsigned cp, low;
	const char *found;
	size_t n;

	if (*pos >= len)
		return 0;
	if (s[*pos] != '\\') {
		if ((unsigned char)s[*pos] < 0x20)
			return -EINVAL;
		n = utf8_len(s + *pos, len - *pos);
		if (!n)
			return -EINVAL;
		memcpy(piece, s + *pos, n);
		*pos += n;
		return (int)n;
	}
	if (*pos + 1 >= len)
		return -EINVAL;
	if (s[*pos + 1] != 'u') {
		found = s[*pos + 1] ? strchr(from, s[*pos + 1]) : NULL;
		if (!found)
			return -EINVAL;
		piece[0] = to[found - from];
		*pos += 2;
		return 1;
	}
	if (hex4(s + *pos + 2, len - *pos - 2, &cp))
		return -EINVAL;
	*pos += 6;
	if (cp >= 0xdc00 && cp <= 0xdfff)
		return -EINVAL;
	if (cp >= 0xd800 && cp <= 0xdbff) {
		if (len - *pos < 6 || s[*pos] != '\\' || s[*pos + 1] != 'u' ||
			hex4(s + *pos + 2, len - *pos - 2, &low) || low < 0xdc00 ||
			low > 0xdfff)
			return -EINVAL;
		*pos += 6;
		cp = 0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00);
	}
	return (int)utf8_put(piece, cp);
}

static bool
number_is_valid(const char *s, size_t len)
{
	size_t i = 0;

	if (i < len && s[i] == '-')
		i++;
	if (i >= len || s[i] < '0' || s[i] > '9')
		return false;
	if (s[i] == '0')
		i++;
	else
		while (i < len && s[i] >= '0' && s[i] <= '9')
			i++;
	if (i < len && s[i] == '.') {
		i++;
		if (i >= len || s[i] < '0' || s[i] > '9')
			return false;
		while (i < len && s[i] >= '0' && s[i] <= '9')
			i++;
	}
	if (i < len && (s[i] == 'e' || s[i] == 'E')) {
		i++;
		if (i < len && (s[i] == '+' || s[i] == '-'))
			i++;
		if (i >= len || s[i] < '0' || s[i] > '9')
			return false;
		while (i < len && s[i] >= '0' && s[i] <= '9')
			i++;
	}
	return i == len;
}

static size_t
tok_len(const struct json *j, int tok)
{
	return (size_t)(j->tok[tok].end - j->tok[tok].start);
}

static const char *
tok_text(const struct json *j, int tok)
{
	return j->text + j->tok[tok].start;
}

static int
bad_at(const struct json *j, size_t at, struct err *e, const char *what)
{
	(void)j;
	return err_set(e, -EINVAL, "JSON, byte %zu: %s", at, what);
}

static bool
is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static size_t
skip_space(const struct json *j, size_t pos)
{
	while (pos < j->len && is_space(j->text[pos]))
		pos++;
	return pos;
}

/* Where the token starts and ends in the text, a string's quotes included. */
static size_t
outer_start(const struct json *j, int tok)
{
	return (size_t)j->tok[tok].start - (j->tok[tok].type == JSMN_STRING);
}

static size_t
outer_end(const struct json *j, int tok)
{
	return (size_t)j->tok[tok].end + (j->tok[tok].type == JSMN_STRING);
}

static int
check_string(const struct json *j, int tok, struct err *e)
{
	char piece[4];
	size_t pos = 0;
	int n;

	while ((n = string_piece(tok_text(j, tok), tok_len(j, tok), &pos, piece)) > 0)
		;
	return n < 0 ? bad_at(j, (size_t)j->tok[tok].start + pos, e,
			       "a string with a bad escape, control character or UTF-8")
		     : 0;
}

static bool
same_key(const struct json *j, int a, const char *key, size_t key_len)
{
	const char *s = tok_text(j, a);
	size_t len = tok_len(j, a), pos = 0, done = 0;
	char piece[4];
	int n;

	while ((n = string_piece(s, len, &pos, piece)) > 0) {
		if (key_len - done < (size_t)n ||
			memcmp(key + done, piece, (size_t)n) != 0)
			return false;
		done += (size_t)n;
	}
	return done == key_len;
}

struct key_ref {
	const struct json *j;
	int tok;
};

/* Compares two keys as unescaped bytes. */
static int
compare_keys(const void *pa, const void *pb)
{
	const struct key_ref *a = pa, *b = pb;
	size_t pos_a = 0, pos_b = 0;
	unsigned char ca[4], cb[4];
	int na, nb;

	for (;;) {
		na = string_piece(tok_text(a->j, a->tok), tok_len(a->j, a->tok), &pos_a,
			(char *)ca);
		nb = string_piece(tok_text(b->j, b->tok), tok_len(b->j, b->tok), &pos_b,
			(char *)cb);
		if (na <= 0 || nb <= 0)
			return (na > 0) - (nb > 0);
		/* A piece is one code point: its length follows from its first byte. */
		int r = memcmp(ca, cb, (size_t)(na < nb ? na : nb));

		if (r != 0)
			return r;
	}
}

static int
check_unique_keys(const struct json *j, int obj, struct err *e)
{
	int n = j->tok[obj].size, key, value, it = 0;
	cleanup_free struct key_ref *keys = NULL;

	if (n < 2)
		return 0;
	keys = calloc((size_t)n, sizeof(*keys));
	if (!keys)
		return err_sys(e, -ENOMEM, "JSON");
	for (int i = 0; json_next(j, obj, &it, &key, &value) && i < n; i++)
		keys[i] = (struct key_ref){j, key};
	qsort(keys, (size_t)n, sizeof(*keys), compare_keys);
	for (int i = 1; i < n; i++)
		if (!compare_keys(&keys[i - 1], &keys[i]))
			return bad_at(j, (size_t)j->tok[keys[i].tok].start, e,
				"the same key twice in one object");
	return 0;
}

/*
 * Checks token *next and all below it against the text; pos is where its text must begin
 * (after white space). Moves *next past it and fills skip[].
 */
static int
check_value(struct json *j, int *next, size_t pos, unsigned depth, struct err *e)
{
	int tok = *next, r;

	if (depth > DEPTH_MAX)
		return bad_at(j, pos, e, "nested too deep");
	if (tok >= j->count)
		return bad_at(j, pos, e, "a value is missing");
	pos = skip_space(j, pos);
	if (outer_start(j, tok) != pos)
		return bad_at(j, pos, e, "unexpected character");
	(*next)++;
	switch (j->tok[tok].type) {
	case JSMN_STRING:
		r = check_string(j, tok, e);
		if (r < 0)
			return r;
		break;
	case JSMN_PRIMITIVE: {
		const char *s = tok_text(j, tok);
		size_t len = tok_len(j, tok);

		if (!(len == 4 && memcmp(s, "true", 4) == 0) &&
			!(len == 5 && memcmp(s, "false", 5) == 0) &&
			!(len == 4 && memcmp(s, "null", 4) == 0) &&
			!number_is_valid(s, len))
			return bad_at(
				j, pos, e, "neither a number nor true, false or null");
		break;
	}
	case JSMN_OBJECT:
	case JSMN_ARRAY: {
		bool object = j->tok[tok].type == JSMN_OBJECT;
		size_t at = pos + 1, close = (size_t)j->tok[tok].end - 1;

		for (int i = 0; i < j->tok[tok].size; i++) {
			int item = *next;

			if (i) {
				at = skip_space(j, at);
				if (at >= close || j->text[at] != ',')
					return bad_at(j, at, e, "expected a comma");
				at++;
			}
			if (item >= j->count)
				return bad_at(j, at, e, "a value is missing");
			if (object) {
				if (j->tok[item].type != JSMN_STRING ||
					j->tok[item].size != 1)
					return bad_at(
						j, at, e, "expected \"key\": value");
				at = skip_space(j, at);
				if (outer_start(j, item) != at)
					return bad_at(j, at, e, "unexpected character");
				r = check_string(j, item, e);
				if (r < 0)
					return r;
				at = skip_space(j, outer_end(j, item));
				if (at >= close || j->text[at] != ':')
					return bad_at(j, at, e, "expected a colon");
				at++;
				j->skip[item] = ++(*next);
				item = *next;
			} else if (j->tok[item].type == JSMN_STRING &&
				   j->tok[item].size) {
				return bad_at(j, at, e, "a key inside an array");
			}
			r = check_value(j, next, at, depth + 1, e);
			if (r < 0)
				return r;
			at = outer_end(j, item);
		}
		at = skip_space(j, at);
		if (at != close)
			return bad_at(j, at, e, "unexpected character");
		j->skip[tok] = *next;
		if (object) {
			r = check_unique_keys(j, tok, e);
			if (r < 0)
				return r;
		}
		break;
	}
	default:
		return bad_at(j, pos, e, "not JSON");
	}
	j->skip[tok] = *next;
	return 0;
}

static int
tokenize(struct json *j, size_t max_tokens, struct err *e)
{
	size_t cap = max_tokens < FIRST_TOKENS ? max_tokens : FIRST_TOKENS;

	for (;;) {
		jsmntok_t *bigger = reallocarray(j->tok, cap, sizeof(*j->tok));
		jsmn_parser parser;
		int n;

		if (!bigger)
			return err_sys(e, -ENOMEM, "JSON");
		j->tok = bigger;
		jsmn_init(&parser);
		n = jsmn_parse(&parser, j->text, j->len, j->tok, (unsigned)cap);
		if (n == JSMN_ERROR_NOMEM) {
			if (cap >= max_tokens)
				return err_set(e, -E2BIG, "JSON: more than %zu values",
					max_tokens);
			cap = cap * 4 < max_tokens ? cap * 4 : max_tokens;
			continue;
		}
		if (n == JSMN_ERROR_PART)
			return err_set(e, -EINVAL, "JSON: the text ends too early");
		if (n <= 0)
			return err_set(e, -EINVAL,
				n ? "JSON, byte %u: unexpected character"
				  : "JSON: the text is empty",
				parser.pos);
		j->count = n;
		return 0;
	}
}

int
json_parse(
	const char *text, size_t len, size_t max_tokens, struct json **ret, struct err *e)
{
	cleanup_json struct json *j = NULL;
	int next = 0, r;
	size_t start, end;

	if (len > 1u << 30)
		return err_set(e, -E2BIG, "JSON: more than 1 GiB");
	/* jsmn stops at a NUL and calls what it has the whole. */
	if (memchr(text, '\0', len))
		return err_set(e, -EINVAL, "JSON: a NUL byte");
	j = calloc(1, sizeof(*j));
	if (!j)
		return err_sys(e, -ENOMEM, "JSON");
	j->text = text;
	j->len = len;
	start = skip_space(j, 0);
	if (start < len && !strchr("{[\"", text[start]))
		return bad_at(j, start, e, "expected an object, an array or a string");
	r = tokenize(j, max_tokens ? max_tokens : 1, e);
	if (r < 0)
		return r;
	j->skip = calloc((size_t)j->count, sizeof(*j->skip));
	if (!j->skip)
		return err_sys(e, -ENOMEM, "JSON");
	r = check_value(j, &next, 0, 1, e);
	if (r < 0)
		return r;
	end = skip_space(j, outer_end(j, 0));
	if (next != j->count || end != len)
		return bad_at(j, end, e, "something after the value");
	*ret = TAKE_PTR(j);
	return 0;
}

void
json_free(struct json *j)
{
	if (!j)
		return;
	free(j->tok);
	free(j->skip);
	free(j);
}

enum json_type
json_type(const struct json *j, int tok)
{
	if (tok < 0 || tok >= j->count)
		return JSON_NULL;
	switch (j->tok[tok].type) {
	case JSMN_OBJECT:
		return JSON_OBJECT;
	case JSMN_ARRAY:
		return JSON_ARRAY;
	case JSMN_STRING:
		return JSON_STRING;
	default:
		switch (*tok_text(j, tok)) {
		case 't':
		case 'f':
			return JSON_BOOL;
		case 'n':
			return JSON_NULL;
		default:
			return JSON_NUMBER;
		}
	}
}

int
json_size(const struct json *j, int tok)
{
	enum json_type t = json_type(j, tok);

	return t == JSON_OBJECT || t == JSON_ARRAY ? j->tok[tok].size : 0;
}

bool
json_next(const struct json *j, int container, int *it, int *ret_key, int *ret_value)
{
	int at;

	if (container < 0 || container >= j->count ||
		(j->tok[container].type != JSMN_OBJECT &&
			j->tok[container].type != JSMN_ARRAY))
		return false;
	at = *it ? *it : container + 1;
	if (at >= j->skip[container])
		return false;
	if (j->tok[container].type == JSMN_OBJECT) {
		if (ret_key)
			*ret_key = at;
		at++;
	} else if (ret_key) {
		*ret_key = -1;
	}
	*ret_value = at;
	*it = j->skip[at];
	return true;
}

int
json_get(const struct json *j, int obj, const char *key)
{
	int it = 0, k, v;

	if (json_type(j, obj) != JSON_OBJECT || obj < 0)
		return -ENOENT;
	while (json_next(j, obj, &it, &k, &v))
		if (same_key(j, k, key, strlen(key)))
			return v;
	return -ENOENT;
}

int
json_at(const struct json *j, int arr, int i)
{
	int it = 0, v;

	if (arr < 0 || json_type(j, arr) != JSON_ARRAY)
		return -ENOENT;
	while (json_next(j, arr, &it, NULL, &v))
		if (i-- == 0)
			return v;
	return -ENOENT;
}

int
json_str(const struct json *j, int tok, char *dst, size_t cap)
{
	size_t pos = 0, done = 0;
	char piece[4];
	int n;

	if (tok < 0)
		return -ENOENT;
	if (json_type(j, tok) != JSON_STRING)
		return -EINVAL;
	while ((n = string_piece(tok_text(j, tok), tok_len(j, tok), &pos, piece)) > 0) {
		if (n == 1 && !piece[0])
			return -EINVAL;
		if (done + (size_t)n >= cap)
			return -ENAMETOOLONG;
		memcpy(dst + done, piece, (size_t)n);
		done += (size_t)n;
	}
	if (done >= cap)
		return -ENAMETOOLONG;
	dst[done] = '\0';
	return 0;
}

int
json_str_dup(const struct json *j, int tok, char **ret)
{
	cleanup_free char *s = NULL;
	int r;

	if (tok < 0)
		return -ENOENT;
	if (json_type(j, tok) != JSON_STRING)
		return -EINVAL;
	s = malloc(tok_len(j, tok) + 1); /* unescaping never lengthens */
	if (!s)
		return -ENOMEM;
	r = json_str(j, tok, s, tok_len(j, tok) + 1);
	if (r < 0)
		return r;
	*ret = TAKE_PTR(s);
	return 0;
}

/* A number's text as a C string; integers only when integer is set. */
static int
number_text(const struct json *j, int tok, bool integer, char buf[64])
{
	size_t len;

	if (tok < 0)
		return -ENOENT;
	if (json_type(j, tok) != JSON_NUMBER)
		return -EINVAL;
	len = tok_len(j, tok);
	if (len >= 64)
		return -ERANGE;
	memcpy(buf, tok_text(j, tok), len);
	buf[len] = '\0';
	return integer && strpbrk(buf, ".eE") ? -EINVAL : 0;
}

int
json_u64(const struct json *j, int tok, uint64_t *ret)
{
	char buf[64];
	unsigned long long v;
	int r = number_text(j, tok, true, buf);

	if (r < 0)
		return r;
	if (buf[0] == '-')
		return -ERANGE;
	errno = 0;
	v = strtoull(buf, NULL, 10);
	if (errno)
		return -errno;
	*ret = v;
	return 0;
}

int
json_i64(const struct json *j, int tok, int64_t *ret)
{
	char buf[64];
	long long v;
	int r = number_text(j, tok, true, buf);

	if (r < 0)
		return r;
	errno = 0;
	v = strtoll(buf, NULL, 10);
	if (errno)
		return -errno;
	*ret = v;
	return 0;
}

int
json_f64(const struct json *j, int tok, double *ret)
{
	char buf[64];
	double v;
	int r = number_text(j, tok, false, buf);

	if (r < 0)
		return r;
	v = strtod(buf, NULL);
	if (!isfinite(v))
		return -ERANGE;
	*ret = v;
	return 0;
}

int
json_bool(const struct json *j, int tok, bool *ret)
{
	if (tok < 0)
		return -ENOENT;
	if (json_type(j, tok) != JSON_BOOL)
		return -EINVAL;
	*ret = *tok_text(j, tok) == 't';
	return 0;
}

const char *
json_raw(const struct json *j, int tok, size_t *ret_len)
{
	if (tok < 0 || tok >= j->count)
		return NULL;
	*ret_len = outer_end(j, tok) - outer_start(j, tok);
	return j->text + outer_start(j, tok);
}

/* ---- writer ---- */

static void
put(struct json_out *o, const char *s, size_t len)
{
	if (o->error)
		return;
	if (o->len + len + 1 > o->cap) {
		size_t cap = o->cap ? o->cap : 256;
		char *bigger;

		while (cap < o->len + len + 1)
			cap *= 2;
		bigger = realloc(o->buf, cap);
		if (!bigger) {
			o->error = -ENOMEM;
			return;
		}
		o->buf = bigger;
		o->cap = cap;
	}
	memcpy(o->buf + o->len, s, len);
	o->len += len;
	o->buf[o->len] = '\0';
}

static void
put_string(struct json_out *o, const char *s, size_t len)
{
	char esc[8];

	put(o, "\"", 1);
	for (size_t i = 0; i < len;) {
		unsigned char c = (unsigned char)s[i];
		size_t n = utf8_len(s + i, len - i);

		if (!n) {
			put(o, "\xef\xbf\xbd", 3);
			i++;
		} else if (c == '"' || c == '\\') {
			esc[0] = '\\';
			esc[1] = (char)c;
			put(o, esc, 2);
			i++;
		} else if (c < 0x20 || c == 0x7f) {
			snprintf(esc, sizeof(esc), "\\u%04x", c);
			put(o, esc, 6);
			i++;
		} else {
			put(o, s + i, n);
			i += n;
		}
	}
	put(o, "\"", 1);
}

/* What comes before every value: a comma where one is due, and the key. */
static void
before(struct json_out *o, const char *key)
{
	if (o->depth) {
		uint64_t bit = 1ULL << (o->depth - 1);

		if (o->has_items & bit)
			put(o, ",", 1);
		o->has_items |= bit;
	}
	if (key) {
		put_string(o, key, strlen(key));
		put(o, ":", 1);
	}
}

static void
open_container(struct json_out *o, const char *key, const char *bracket)
{
	before(o, key);
	put(o, bracket, 1);
	if (o->depth == DEPTH_MAX) {
		o->error = -E2BIG;
		return;
	}
	o->depth++;
	o->has_items &= ~(1ULL << (o->depth - 1));
}

static void
close_container(struct json_out *o, const char *bracket)
{
	put(o, bracket, 1);
	if (o->depth)
		o->depth--;
}

void
json_out_done(struct json_out *o)
{
	free(o->buf);
	memset(o, 0, sizeof(*o));
}

void
json_out_object(struct json_out *o, const char *key)
{
	open_container(o, key, "{");
}

void
json_out_array(struct json_out *o, const char *key)
{
	open_container(o, key, "[");
}

void
json_out_end_object(struct json_out *o)
{
	close_container(o, "}");
}

void
json_out_end_array(struct json_out *o)
{
	close_container(o, "]");
}

void
json_out_strn(struct json_out *o, const char *key, const char *value, size_t len)
{
	before(o, key);
	put_string(o, value, len);
}

void
json_out_str(struct json_out *o, const char *key, const char *value)
{
	if (value)
		json_out_strn(o, key, value, strlen(value));
	else
		json_out_null(o, key);
}

void
json_out_u64(struct json_out *o, const char *key, uint64_t value)
{
	char buf[24];

	before(o, key);
	put(o, buf,
		(size_t)snprintf(buf, sizeof(buf), "%llu", (unsigned long long)value));
}

void
json_out_i64(struct json_out *o, const char *key, int64_t value)
{
	char buf[24];

	before(o, key);
	put(o, buf, (size_t)snprintf(buf, sizeof(buf), "%lld", (long long)value));
}

void
json_out_f64(struct json_out *o, const char *key, double value)
{
	char buf[40];

	if (!isfinite(value)) {
		json_out_null(o, key); /* JSON has no NaN and no infinity */
		return;
	}
	before(o, key);
	/* 15 digits where they read back as the same number (0.1), else all 17. */
	snprintf(buf, sizeof(buf), "%.15g", value);
	if (strtod(buf, NULL) != value)
		snprintf(buf, sizeof(buf), "%.17g", value);
	put(o, buf, strlen(buf));
}

void
json_out_bool(struct json_out *o, const char *key, bool value)
{
	before(o, key);
	put(o, value ? "true" : "false", value ? 4 : 5);
}

void
json_out_null(struct json_out *o, const char *key)
{
	before(o, key);
	put(o, "null", 4);
}

void
json_out_raw(struct json_out *o, const char *key, const char *text, size_t len)
{
	before(o, key);
	put(o, text, len);
}
