#include "common/wire/json_line.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "common/utf8.h"

struct reader {
	const char *start, *at, *end;
	uint64_t is_object[JSON_LINE_DEPTH / 64]; /* a bit a level */
	unsigned depth;
};

static bool
is_prewarmed(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void
skip_blanks(struct reader *r)
{
	while (r->at < r->end && is_prewarmed(*r->at))
		r->at++;
}

static int
wrong(const struct reader *r, const char *what, struct err *e)
{
	if (r->at >= r->end)
		return err_set(e, -EINVAL, "no JSON: it ends in the middle, %s", what);
	return err_set(
		e, -EINVAL, "no JSON: byte %zu: %s", (size_t)(r->at - r->start), what);
}

static bool
is_hex(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static int
string(struct reader *r, struct err *e)
{
	r->at++; /* the quote */
	while (r->at < r->end) {
		unsigned char c = (unsigned char)*r->at;
		size_t n;

		if (c == '"') {
			r->at++;
			return 0;
		}
		if (c == '\\') {
			if (++r->at == r->end)
				break;
			if (*r->at == 'u') {
				for (int i = 0; i < 4; i++)
					if (++r->at == r->end || !is_hex(*r->at))
						return wrong(r, "a \\u escape", e);
			} else if (!strchr("\"\\/bfnrt", *r->at) || !*r->at) {
				return wrong(r, "no such escape", e);
			}
			r->at++;
		} else if (c < 0x20) {
			return wrong(r,
				c == '\n' ? "a line feed inside a string"
					  : "a control character inside a string",
				e);
		} else if (c < 0x80) {
			r->at++;
		} else {
			n = utf8_len(r->at, (size_t)(r->end - r->at));
			if (!n)
				return wrong(r, "no UTF-8", e);
			r->at += n;
		}
	}
	return wrong(r, "inside a string", e);
}

static size_t
digits(struct reader *r)
{
	const char *from = r->at;

	while (r->at < r->end && *r->at >= '0' && *r->at <= '9')
		r->at++;
	return (size_t)(r->at - from);
}

static int
number(struct reader *r, struct err *e)
{
	if (*r->at == '-')
		r->at++;
	if (r->at < r->end && *r->at == '0')
		r->at++;
	else if (!digits(r))
		return wrong(r, "a number", e);
	if (r->at < r->end && *r->at == '.') {
		r->at++;
		if (!digits(r))
			return wrong(r, "a number's fraction", e);
	}
	if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
		r->at++;
		if (r->at < r->end && (*r->at == '+' || *r->at == '-'))
			r->at++;
		if (!digits(r))
			return wrong(r, "a number's exponent", e);
	}
	return 0;
}

static int
scalar(struct reader *r, struct err *e)
{
	static const char *const literals[] = {"true", "false", "null"};

	if (*r->at == '"')
		return string(r, e);
	if (*r->at == '-' || (*r->at >= '0' && *r->at <= '9'))
		return number(r, e);
	for (size_t i = 0; i < 3; i++) {
		size_t n = strlen(literals[i]);

		if ((size_t)(r->end - r->at) >= n && memcmp(r->at, literals[i], n) == 0) {
			r->at += n;
			return 0;
		}
	}
	return wrong(r, "no value begins like this", e);
}

static bool
in_object(const struct reader *r)
{
	return r->is_object[(r->depth - 1) / 64] >> (r->depth - 1) % 64 & 1;
}

static int
key(struct reader *r, struct err *e)
{
	int n;

	skip_blanks(r);
	if (r->at == r->end || *r->at != '"')
		return wrong(r, "a member's name must stand here", e);
	n = string(r, e);
	if (n)
		return n;
	skip_blanks(r);
	if (r->at == r->end || *r->at != ':')
		return wrong(r, "\":\" must stand here", e);
	r->at++;
	return 0;
}

/* Opens an object or array: 1 when a value must follow, 0 when it is closed again. */
static int
opened(struct reader *r, struct err *e)
{
	bool object = *r->at == '{';
	uint64_t bit;
	int n;

	if (r->depth == JSON_LINE_DEPTH)
		return wrong(r, "nested too deeply", e);
	bit = UINT64_C(1) << r->depth % 64;
	if (object)
		r->is_object[r->depth / 64] |= bit;
	else
		r->is_object[r->depth / 64] &= ~bit;
	r->at++;
	skip_blanks(r);
	if (r->at < r->end && *r->at == (object ? '}' : ']')) {
		r->at++;
		return 0;
	}
	r->depth++;
	n = object ? key(r, e) : 0;
	return n ? n : 1;
}

int
json_line_check(const char *text, size_t len, struct err *e)
{
	struct reader r = {.start = text, .at = text, .end = text + len};
	int n;

	for (;;) {
		skip_blanks(&r);
		if (r.at == r.end)
			return wrong(&r, "a value is missing", e);
		if (*r.at == '{' || *r.at == '[') {
			n = opened(&r, e);
			if (n < 0)
				return n;
			if (n)
				continue;
		} else {
			n = scalar(&r, e);
			if (n)
				return n;
		}
		/* A value is over: so may be what it is in. */
		for (;;) {
			skip_blanks(&r);
			if (!r.depth)
				return r.at == r.end
					       ? 0
					       : wrong(&r, "something follows the value",
							 e);
			if (r.at == r.end)
				return wrong(&r, "before what is open is closed", e);
			if (*r.at == ',') {
				r.at++;
				n = in_object(&r) ? key(&r, e) : 0;
				if (n)
					return n;
				break;
			}
			if (*r.at != (in_object(&r) ? '}' : ']'))
				return wrong(&r, "\",\" or the end must stand here", e);
			r.at++;
			r.depth--;
		}
	}
}

/*
 * Looking into it.
 */

struct rpc_span
json_line_trim(const char *text, size_t len)
{
	while (len && is_prewarmed(*text)) {
		text++;
		len--;
	}
	while (len && is_prewarmed(text[len - 1]))
		len--;
	return (struct rpc_span){text, len};
}

/* Where the string that starts at p ends (behind its quote); NULL: it does not. */
static const char *
string_end(const char *p, const char *end)
{
	for (p++; p < end; p++) {
		if (*p == '"')
			return p + 1;
		if (*p == '\\')
			p++;
	}
	return NULL;
}

static const char *
value_end(const char *p, const char *end)
{
	size_t depth = 0;

	while (p < end) {
		if (*p == '"') {
			p = string_end(p, end);
			if (!p)
				return NULL;
			if (!depth)
				return p;
			continue;
		}
		if (*p == '{' || *p == '[') {
			depth++;
		} else if (*p == '}' || *p == ']') {
			if (!depth)
				return p;
			if (!--depth)
				return p + 1;
		} else if (!depth && (*p == ',' || is_prewarmed(*p))) {
			return p;
		}
		p++;
	}
	return depth ? NULL : p;
}

static const char *
past_blanks(const char *p, const char *end)
{
	while (p < end && is_prewarmed(*p))
		p++;
	return p;
}

bool
json_line_member(struct rpc_span object, const char *name, struct rpc_span *ret)
{
	const char *p = object.at, *end = object.at + object.len;
	size_t name_len = strlen(name);

	if (!object.len || *p != '{')
		return false;
	for (p++;; p++) {
		const char *k, *k_end, *v;

		k = past_blanks(p, end);
		if (k == end || *k != '"' || !(k_end = string_end(k, end)))
			return false;
		p = past_blanks(k_end, end);
		if (p == end || *p != ':')
			return false;
		v = past_blanks(p + 1, end);
		p = value_end(v, end);
		if (!p || p == v)
			return false;
		if ((size_t)(k_end - k) == name_len + 2 &&
			memcmp(k + 1, name, name_len) == 0) {
			*ret = (struct rpc_span){v, (size_t)(p - v)};
			return true;
		}
		p = past_blanks(p, end);
		if (p == end || *p != ',')
			return false;
	}
}

bool
json_line_element(struct rpc_span array, size_t *at, struct rpc_span *ret)
{
	const char *p = array.at + *at, *end = array.at + array.len, *v;

	if (!array.len || *array.at != '[')
		return false;
	if (*at) {
		p = past_blanks(p, end);
		if (p == end || *p != ',')
			return false;
	}
	v = past_blanks(p + 1, end);
	p = value_end(v, end);
	if (!p || p == v)
		return false;
	*ret = (struct rpc_span){v, (size_t)(p - v)};
	*at = (size_t)(p - array.at);
	return true;
}

bool
json_line_is(struct rpc_span value, const char *text)
{
	size_t len = strlen(text);

	return value.len == len + 2 && value.at[0] == '"' &&
	       memcmp(value.at + 1, text, len) == 0;
}

bool
json_line_literal(struct rpc_span value, const char *literal)
{
	return value.len == strlen(literal) && memcmp(value.at, literal, value.len) == 0;
}
