/*
 * TOML 1.0.0: text to tree. Strings, keys, tables and their rules are here, bare scalars
 * in toml_scalar.c.
 *
 * The text is checked to be UTF-8 once, before anything else, so that the rest may go
 * byte by byte. All memory of a tree comes from its root's arena and goes with it. What a
 * hostile text can cost is bounded by its length: a table of many members has a hash
 * index, columns are counted incrementally, and nesting (headers, dotted keys, arrays and
 * inline tables alike) ends at DEPTH_MAX.
 */
#include "common/toml.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/toml_scalar.h"
#include "common/utf8.h"

#define TEXT_MAX (16u << 20)
#define DEPTH_MAX 64
#define KEY_PARTS_MAX DEPTH_MAX
#define INDEX_FROM 16 /* members; below that a table is searched front to back */
#define ARENA_CHUNK (32u << 10)

/* How a table or array came to be: it decides what may still be added to it. */
enum origin {
	BY_PATH,   /* a table in the path of a [header]; may get a header of its own, once
		    */
	BY_HEADER, /* has had its header */
	BY_DOTS,   /* made by a dotted key; closed to headers, open to its own table's
		      dotted keys */
	BY_BRACES, /* { … } or [ … ]: complete as it stands */
	OF_TABLES, /* an array that [[header]] appends to */
};

struct toml {
	enum toml_type type;
	enum origin origin;
	unsigned depth; /* the root's is 0 */
	unsigned line, column;
	const char *key; /* borrowed from the arena; NULL for elements and the root */
	size_t key_len;
	union {
		struct {
			struct toml **items;
			size_t n, cap;
			uint32_t *slots; /* of a table: index + 1 of a member by hash of
					    its key */
			size_t n_slots;	 /* a power of two, or 0: no index yet */
		};
		struct {
			const char *bytes;
			size_t len;
		};
		bool b;
		int64_t i;
		double f;
		struct toml_datetime dt;
	};
};

struct chunk {
	struct chunk *next;
	size_t used, size;
	_Alignas(16) char bytes[];
};

struct root {
	struct toml value;    /* first: a root is freed by the pointer to its value */
	struct chunk *chunks; /* owned */
};

struct mark {
	unsigned line, column;
};

struct key {
	const char *bytes; /* in the arena */
	size_t len;
	struct mark at;
};

struct parser {
	const char *p, *end;
	const char *path; /* for sentences; NULL when there is no file */
	struct root *root;
	struct toml *table; /* where key/value lines go now */
	struct err *e;
	unsigned line;
	const char *column_from; /* columns are counted on from here … */
	unsigned column_there;	 /* … where the column is this */
	char *scratch;		 /* owned: the string being unescaped */
	size_t scratch_len, scratch_cap;
};

/* ---- sentences ---- */

static int fail_at(struct parser *P, struct mark at, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static int
fail_at(struct parser *P, struct mark at, const char *fmt, ...)
{
	char text[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (P->path)
		return err_set(
			P->e, -EINVAL, "%s:%u:%u: %s", P->path, at.line, at.column, text);
	return err_set(P->e, -EINVAL, "line %u, column %u: %s", at.line, at.column, text);
}

static int
fail_memory(struct parser *P)
{
	return err_set(P->e, -ENOMEM, "out of memory while reading %s",
		P->path ? P->path : "TOML");
}

/* Where p stands. Columns count characters, not bytes. p is on the current line. */
static struct mark
mark_of(struct parser *P, const char *p)
{
	const char *c = P->column_from;
	unsigned column = P->column_there;

	if (p >= c) {
		for (; c < p; c++)
			column += ((unsigned char)*c & 0xc0) != 0x80;
		P->column_from = p;
		P->column_there = column;
	} else {
		for (; c > p; c--)
			column -= ((unsigned char)c[-1] & 0xc0) != 0x80;
	}
	return (struct mark){P->line, column};
}

static struct mark
mark_here(struct parser *P)
{
	return mark_of(P, P->p);
}

/* A character of the text, as a person may read it in a sentence. */
static const char *
show_char(const struct parser *P, const char *p, char dst[static 24])
{
	size_t n = 1;

	if (p >= P->end)
		return "the end of the file";
	if (*p == '\n' || *p == '\r')
		return "the end of the line";
	if ((unsigned char)*p < 0x20 || *p == 0x7f) {
		snprintf(dst, 24, "control character 0x%02x", (unsigned char)*p);
		return dst;
	}
	while (p + n < P->end && n < 4 && ((unsigned char)p[n] & 0xc0) == 0x80)
		n++;
	snprintf(dst, 24, "'%.*s'", (int)n, p);
	return dst;
}

/* Bytes of a key or token for a sentence: control characters become '?', a long one is
 * cut. */
static const char *
show_text(const char *bytes, size_t len, char dst[static 64])
{
	size_t n = 0, max = 56;

	for (; n < len && n < max; n++)
		dst[n] = (unsigned char)bytes[n] < 0x20 || bytes[n] == 0x7f ? '?'
									    : bytes[n];
	if (n < len) {
		while (n && ((unsigned char)bytes[n] & 0xc0) == 0x80)
			n--;
		memcpy(dst + n, "…", sizeof("…"));
	} else {
		dst[n] = 0;
	}
	return dst;
}

/* ---- memory ---- */

static void *
arena_alloc(struct root *root, size_t size)
{
	struct chunk *c = root->chunks;
	void *p;

	size = (size + 15) & ~(size_t)15;
	if (!c || c->size - c->used < size) {
		size_t want = size > ARENA_CHUNK ? size : ARENA_CHUNK;

		c = malloc(sizeof(*c) + want);
		if (!c)
			return NULL;
		c->used = 0;
		c->size = want;
		/* A chunk made for one large thing is full at once: keep filling the
		 * other. */
		if (want > ARENA_CHUNK && root->chunks) {
			c->next = root->chunks->next;
			root->chunks->next = c;
		} else {
			c->next = root->chunks;
			root->chunks = c;
		}
	}
	p = c->bytes + c->used;
	c->used += size;
	return p;
}

static char *
arena_copy(struct root *root, const char *bytes, size_t len)
{
	char *p = arena_alloc(root, len + 1);

	if (!p)
		return NULL;
	if (len)
		memcpy(p, bytes, len);
	p[len] = 0;
	return p;
}

static int
scratch_add(struct parser *P, const char *bytes, size_t len)
{
	if (!len)
		return 0;
	if (P->scratch_cap - P->scratch_len < len) {
		size_t cap = P->scratch_cap ? P->scratch_cap * 2 : 256;
		char *bigger;

		while (cap - P->scratch_len < len)
			cap *= 2;
		bigger = realloc(P->scratch, cap);
		if (!bigger)
			return fail_memory(P);
		P->scratch = bigger;
		P->scratch_cap = cap;
	}
	memcpy(P->scratch + P->scratch_len, bytes, len);
	P->scratch_len += len;
	return 0;
}

/* ---- the tree ---- */

static uint64_t
hash_key(const char *key, size_t len)
{
	uint64_t h = 0xcbf29ce484222325u;

	for (size_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)key[i]) * 0x100000001b3u;
	return h ^ h >> 29;
}

static bool
has_key(const struct toml *t, const char *key, size_t len)
{
	return t->key_len == len && (!len || memcmp(t->key, key, len) == 0);
}

static struct toml *
find(const struct toml *table, const char *key, size_t len)
{
	if (!table->n_slots) {
		for (size_t i = 0; i < table->n; i++)
			if (has_key(table->items[i], key, len))
				return table->items[i];
		return NULL;
	}
	for (size_t s = hash_key(key, len);; s++) {
		uint32_t at = table->slots[s & (table->n_slots - 1)];

		if (!at)
			return NULL;
		if (has_key(table->items[at - 1], key, len))
			return table->items[at - 1];
	}
}

static void
index_add(struct toml *table, size_t i)
{
	size_t s = hash_key(table->items[i]->key, table->items[i]->key_len);

	while (table->slots[s & (table->n_slots - 1)])
		s++;
	table->slots[s & (table->n_slots - 1)] = (uint32_t)i + 1;
}

/* Appends a new value to a table (key given) or an array (key NULL). The depth is checked
 * here, so that no way of nesting escapes it. */
static int
add(struct parser *P, struct toml *parent, const struct key *key, enum toml_type type,
	enum origin origin, struct mark at, struct toml **ret)
{
	struct toml *t;

	if (parent->depth >= DEPTH_MAX)
		return fail_at(P, at, "nested more than %d deep", DEPTH_MAX);
	if (parent->n == parent->cap) {
		size_t cap = parent->cap ? parent->cap * 2 : 4;
		struct toml **items = arena_alloc(P->root, cap * sizeof(*items));

		if (!items)
			return fail_memory(P);
		if (parent->n)
			memcpy(items, parent->items, parent->n * sizeof(*items));
		parent->items = items;
		parent->cap = cap;
		if (key && cap >= INDEX_FROM) {
			size_t n_slots = cap * 2;
			uint32_t *slots = arena_alloc(P->root, n_slots * sizeof(*slots));

			if (!slots)
				return fail_memory(P);
			memset(slots, 0, n_slots * sizeof(*slots));
			parent->slots = slots;
			parent->n_slots = n_slots;
			for (size_t i = 0; i < parent->n; i++)
				index_add(parent, i);
		}
	}
	t = arena_alloc(P->root, sizeof(*t));
	if (!t)
		return fail_memory(P);
	memset(t, 0, sizeof(*t));
	t->type = type;
	t->origin = origin;
	t->depth = parent->depth + 1;
	t->line = at.line;
	t->column = at.column;
	if (key) {
		t->key = key->bytes;
		t->key_len = key->len;
	}
	parent->items[parent->n++] = t;
	if (parent->n_slots)
		index_add(parent, parent->n - 1);
	*ret = t;
	return 0;
}

/* ---- white space, comments, lines ---- */

static void
skip_blanks(struct parser *P)
{
	while (P->p < P->end && (*P->p == ' ' || *P->p == '\t'))
		P->p++;
}

static bool
at_newline(const struct parser *P)
{
	return P->p < P->end &&
	       (*P->p == '\n' || (*P->p == '\r' && P->p + 1 < P->end && P->p[1] == '\n'));
}

static void
skip_newline(struct parser *P)
{
	P->p += *P->p == '\r' ? 2 : 1;
	P->line++;
	P->column_from = P->p;
	P->column_there = 1;
}

static bool
is_control(char c)
{
	return ((unsigned char)c < 0x20 && c != '\t') || c == 0x7f;
}

static int
skip_comment(struct parser *P)
{
	if (P->p >= P->end || *P->p != '#')
		return 0;
	for (; P->p < P->end && !at_newline(P); P->p++)
		if (is_control(*P->p))
			return fail_at(P, mark_here(P),
				"control character 0x%02x in a comment; remove it",
				(unsigned char)*P->p);
	return 0;
}

/* Blanks, comments and newlines, as arrays have them between their elements. */
static int
skip_gap(struct parser *P)
{
	int r;

	for (;;) {
		skip_blanks(P);
		r = skip_comment(P);
		if (r < 0)
			return r;
		if (!at_newline(P))
			return 0;
		skip_newline(P);
	}
}

/* The end of a line after what; a comment may stand before it. */
static int
expect_line_end(struct parser *P, const char *what)
{
	char shown[24];
	int r;

	skip_blanks(P);
	r = skip_comment(P);
	if (r < 0)
		return r;
	if (P->p == P->end)
		return 0;
	if (!at_newline(P))
		return fail_at(P, mark_here(P),
			"expected the end of the line after %s, found %s", what,
			*P->p == '\r' ? "a carriage return without a newline"
				      : show_char(P, P->p, shown));
	skip_newline(P);
	return 0;
}

/* ---- strings ---- */

static int
add_scalar(struct parser *P, uint32_t c)
{
	char u[4];
	size_t n;

	if (c < 0x80) {
		u[0] = (char)c;
		n = 1;
	} else if (c < 0x800) {
		u[0] = (char)(0xc0 | c >> 6);
		u[1] = (char)(0x80 | (c & 0x3f));
		n = 2;
	} else if (c < 0x10000) {
		u[0] = (char)(0xe0 | c >> 12);
		u[1] = (char)(0x80 | (c >> 6 & 0x3f));
		u[2] = (char)(0x80 | (c & 0x3f));
		n = 3;
	} else {
		u[0] = (char)(0xf0 | c >> 18);
		u[1] = (char)(0x80 | (c >> 12 & 0x3f));
		u[2] = (char)(0x80 | (c >> 6 & 0x3f));
		u[3] = (char)(0x80 | (c & 0x3f));
		n = 4;
	}
	return scratch_add(P, u, n);
}

/* P->p is on the backslash of a \u or \U with n digits. */
static int
read_unicode_escape(struct parser *P, size_t n)
{
	struct mark at = mark_here(P);
	uint32_t c = 0;

	P->p += 2;
	for (size_t i = 0; i < n; i++, P->p++) {
		char d = P->p < P->end ? *P->p : 0;

		if (d >= '0' && d <= '9')
			c = c << 4 | (uint32_t)(d - '0');
		else if (d >= 'a' && d <= 'f')
			c = c << 4 | (uint32_t)(d - 'a' + 10);
		else if (d >= 'A' && d <= 'F')
			c = c << 4 | (uint32_t)(d - 'A' + 10);
		else
			return fail_at(P, at, "\\%c takes %zu hexadecimal digits",
				n == 4 ? 'u' : 'U', n);
	}
	if (c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
		return fail_at(P, at,
			"U+%04X is no character (surrogates and what is above U+10FFFF are none)",
			(unsigned)c);
	return add_scalar(P, c);
}

/* P->p is on a backslash inside a basic string. */
static int
read_escape(struct parser *P, bool multi)
{
	static const char from[] = "btnfr\"\\", to[] = "\b\t\n\f\r\"\\";
	char c = P->p + 1 < P->end ? P->p[1] : 0, shown[24];
	const char *known = c ? strchr(from, c) : NULL;

	if (known) {
		P->p += 2;
		return scratch_add(P, to + (known - from), 1);
	}
	if (c == 'u')
		return read_unicode_escape(P, 4);
	if (c == 'U')
		return read_unicode_escape(P, 8);
	if (multi) {
		const char *back = P->p;

		/* A backslash at the end of a line swallows all white space after it. */
		P->p++;
		skip_blanks(P);
		if (at_newline(P)) {
			while (at_newline(P)) {
				skip_newline(P);
				skip_blanks(P);
			}
			return 0;
		}
		P->p = back;
	}
	return fail_at(P, mark_here(P),
		"a backslash before %s means nothing; write \\\\ for a backslash, or '…' for text without escapes",
		show_char(P, P->p + 1, shown));
}

/* Reads a string of any of the four kinds into scratch. P->p is on its first quote. */
static int
read_string(struct parser *P, bool may_be_multi)
{
	char quote = *P->p, shown[24];
	bool multi = P->end - P->p >= 3 && P->p[1] == quote && P->p[2] == quote;
	struct mark start = mark_here(P);
	int r = 0;

	if (multi && !may_be_multi)
		return fail_at(P, start, "a key cannot be a multi-line string");
	P->scratch_len = 0;
	P->p += multi ? 3 : 1;
	if (multi && at_newline(P))
		skip_newline(P); /* the first newline is not part of the text */

	while (r == 0) {
		const char *from = P->p;

		/* Plain text in one piece. */
		while (P->p < P->end && *P->p != quote && !is_control(*P->p) &&
			!(quote == '"' && *P->p == '\\'))
			P->p++;
		r = scratch_add(P, from, (size_t)(P->p - from));
		if (r < 0)
			break;
		if (P->p == P->end)
			return fail_at(P, start,
				"this string is never closed; it needs %.*s at its end",
				multi ? 3 : 1, quote == '"' ? "\"\"\"" : "'''");
		if (*P->p == '\\') {
			r = read_escape(P, multi);
		} else if (*P->p == quote) {
			size_t n = 1;

			if (!multi) {
				P->p++;
				return 0;
			}
			/* One or two quotes are text; three close; up to two more before
			 * the closing three are text as well. */
			while (n < 5 && P->p + n < P->end && P->p[n] == quote)
				n++;
			P->p += n;
			if (n >= 3) {
				static const char two[2][3] = {"''", "\"\""};

				return scratch_add(P, two[quote == '"'], n - 3);
			}
			r = scratch_add(P, P->p - n, n);
		} else if (at_newline(P)) {
			if (!multi)
				return fail_at(P, start,
					"this string is not closed on its line; a text of several lines stands in three quotes");
			skip_newline(P);
			r = scratch_add(P, "\n", 1); /* CRLF too: one way of ending lines
							for whoever reads it */
		} else {
			return fail_at(P, mark_here(P),
				"%s in a string; write it as an escape in \"…\"",
				*P->p == '\r' ? "carriage return"
					      : show_char(P, P->p, shown));
		}
	}
	return r;
}

/* ---- keys ---- */

static bool
is_bare(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
	       (c >= '0' && c <= '9') || c == '_' || c == '-';
}

static int
read_simple_key(struct parser *P, struct key *ret)
{
	char shown[24];
	int r;

	ret->at = mark_here(P);
	if (P->p < P->end && (*P->p == '"' || *P->p == '\'')) {
		r = read_string(P, false);
		if (r < 0)
			return r;
		/* Callers have keys as C strings: it would be read as another key. */
		if (P->scratch_len && memchr(P->scratch, 0, P->scratch_len))
			return fail_at(P, ret->at, "U+0000 in a key; remove it");
		ret->len = P->scratch_len;
		ret->bytes = arena_copy(P->root, P->scratch, P->scratch_len);
	} else {
		const char *from = P->p;

		while (P->p < P->end && is_bare(*P->p))
			P->p++;
		if (P->p == from)
			return fail_at(P, ret->at,
				"expected a key, found %s; a key of other characters than A-Z a-z 0-9 _ - stands in quotes",
				show_char(P, P->p, shown));
		ret->len = (size_t)(P->p - from);
		ret->bytes = arena_copy(P->root, from, ret->len);
	}
	return ret->bytes ? 0 : fail_memory(P);
}

/* a.b."c d": all parts, blanks around the dots allowed. Stands after the last part's
 * blanks. */
static int
read_key(struct parser *P, struct key parts[static KEY_PARTS_MAX], size_t *ret_n)
{
	size_t n = 0;
	int r;

	for (;;) {
		if (n == KEY_PARTS_MAX)
			return fail_at(P, mark_here(P), "a key of more than %d parts",
				KEY_PARTS_MAX);
		r = read_simple_key(P, &parts[n]);
		if (r < 0)
			return r;
		n++;
		skip_blanks(P);
		if (P->p >= P->end || *P->p != '.')
			break;
		P->p++;
		skip_blanks(P);
	}
	*ret_n = n;
	return 0;
}

/* ---- values ---- */

static int read_value(struct parser *P, struct toml *parent, const struct key *key);
static int read_pair(struct parser *P, struct toml *table);

static int
read_array(struct parser *P, struct toml *array)
{
	struct mark start = {array->line, array->column};
	char shown[24];
	int r;

	P->p++;
	for (;;) {
		r = skip_gap(P);
		if (r < 0)
			return r;
		if (P->p < P->end && *P->p == ']')
			break;
		if (P->p == P->end)
			return fail_at(P, start,
				"this array is never closed; it needs a ']' at its end");
		r = read_value(P, array, NULL);
		if (r < 0)
			return r;
		r = skip_gap(P);
		if (r < 0)
			return r;
		if (P->p == P->end)
			return fail_at(P, start,
				"this array is never closed; it needs a ']' at its end");
		if (*P->p == ']')
			break;
		if (*P->p != ',')
			return fail_at(P, mark_here(P),
				"expected ',' or ']' in an array, found %s",
				show_char(P, P->p, shown));
		P->p++;
	}
	P->p++;
	return 0;
}

static int
read_inline_table(struct parser *P, struct toml *table)
{
	char shown[24];
	int r;

	P->p++;
	skip_blanks(P);
	if (P->p < P->end && *P->p == '}') {
		P->p++;
		return 0;
	}
	for (;;) {
		r = read_pair(P, table);
		if (r < 0)
			return r;
		skip_blanks(P);
		if (P->p < P->end && *P->p == '}')
			break;
		if (P->p >= P->end || *P->p != ',')
			return fail_at(P, mark_here(P),
				"expected ',' or '}' in an inline table, found %s%s",
				show_char(P, P->p, shown),
				at_newline(P) || (P->p < P->end && *P->p == '#')
					? "; an inline table stands on one line"
					: "");
		P->p++;
		skip_blanks(P);
		if (P->p < P->end && *P->p == '}')
			return fail_at(P, mark_here(P),
				"no comma may stand before the '}' of an inline table");
	}
	P->p++;
	return 0;
}

static int
read_bare_scalar(struct parser *P, struct toml *parent, const struct key *key)
{
	struct mark at = mark_here(P);
	size_t len = toml_scalar_span(P->p, P->end), wrong;
	struct toml_scalar s;
	char shown[64], c[24];
	const char *why;
	struct toml *t;
	int r;

	if (!len)
		return fail_at(
			P, at, "expected a value, found %s", show_char(P, P->p, c));
	why = toml_scalar_read(P->p, len, &s, &wrong);
	if (why)
		return fail_at(P, mark_of(P, P->p + wrong), "%s %s",
			show_text(P->p, len, shown), why);
	P->p += len;
	r = add(P, parent, key, s.type, BY_BRACES, at, &t);
	if (r < 0)
		return r;
	switch (s.type) {
	case TOML_BOOL:
		t->b = s.b;
		break;
	case TOML_INTEGER:
		t->i = s.i;
		break;
	case TOML_FLOAT:
		t->f = s.f;
		break;
	default:
		t->dt = s.dt;
		break;
	}
	return 0;
}

/* One value, into parent under key (a table) or at its end (an array). */
static int
read_value(struct parser *P, struct toml *parent, const struct key *key)
{
	struct mark at = mark_here(P);
	struct toml *t;
	int r;

	switch (P->p < P->end ? *P->p : 0) {
	case '"':
	case '\'':
		r = read_string(P, true);
		if (r < 0)
			return r;
		r = add(P, parent, key, TOML_STRING, BY_BRACES, at, &t);
		if (r < 0)
			return r;
		t->len = P->scratch_len;
		t->bytes = arena_copy(P->root, P->scratch, P->scratch_len);
		return t->bytes ? 0 : fail_memory(P);
	case '[':
		r = add(P, parent, key, TOML_ARRAY, BY_BRACES, at, &t);
		return r < 0 ? r : read_array(P, t);
	case '{':
		r = add(P, parent, key, TOML_TABLE, BY_BRACES, at, &t);
		return r < 0 ? r : read_inline_table(P, t);
	default:
		return read_bare_scalar(P, parent, key);
	}
}

/* "key = value", the key dotted or not, into table. Stands right after the value. */
static int
read_pair(struct parser *P, struct toml *table)
{
	struct key parts[KEY_PARTS_MAX], *last;
	char shown[64], c[24];
	struct toml *t;
	size_t n;
	int r;

	r = read_key(P, parts, &n);
	if (r < 0)
		return r;
	if (P->p >= P->end || *P->p != '=')
		return fail_at(P, mark_here(P), "expected '=' after the key %s, found %s",
			show_text(parts[n - 1].bytes, parts[n - 1].len, shown),
			show_char(P, P->p, c));
	P->p++;
	skip_blanks(P);

	for (size_t i = 0; i + 1 < n; i++) {
		t = find(table, parts[i].bytes, parts[i].len);
		if (!t) {
			r = add(P, table, &parts[i], TOML_TABLE, BY_DOTS, parts[i].at,
				&t);
			if (r < 0)
				return r;
		} else if (t->type != TOML_TABLE) {
			return fail_at(P, parts[i].at,
				"%s is %s since line %u, so it can have no member",
				show_text(t->key, t->key_len, shown),
				toml_type_name(t->type), t->line);
		} else if (t->origin == BY_BRACES || t->origin == BY_HEADER) {
			return fail_at(P, parts[i].at,
				"the table %s is complete since line %u; add the member there",
				show_text(t->key, t->key_len, shown), t->line);
		} else {
			t->origin = BY_DOTS;
		}
		table = t;
	}
	last = &parts[n - 1];
	t = find(table, last->bytes, last->len);
	if (t)
		return fail_at(P, last->at,
			"%s is given twice, the first time on line %u",
			show_text(t->key, t->key_len, shown), t->line);
	return read_value(P, table, last);
}

/* ---- [table] and [[array of tables]] ---- */

/* The table that a header's path (all parts but the last) leads to. */
static int
walk_header_path(struct parser *P, const struct key *parts, size_t n, struct toml **ret)
{
	struct toml *table = &P->root->value, *t;
	char shown[64];
	int r;

	for (size_t i = 0; i < n; i++) {
		t = find(table, parts[i].bytes, parts[i].len);
		if (!t) {
			r = add(P, table, &parts[i], TOML_TABLE, BY_PATH, parts[i].at,
				&t);
			if (r < 0)
				return r;
		} else if (t->type == TOML_ARRAY && t->origin == OF_TABLES) {
			t = t->items[t->n - 1];
		} else if (t->type != TOML_TABLE) {
			return fail_at(P, parts[i].at,
				"%s is %s since line %u, so no table can be in it",
				show_text(t->key, t->key_len, shown),
				toml_type_name(t->type), t->line);
		} else if (t->origin == BY_BRACES) {
			return fail_at(P, parts[i].at,
				"the inline table %s of line %u is complete; no table can be added to it",
				show_text(t->key, t->key_len, shown), t->line);
		}
		table = t;
	}
	*ret = table;
	return 0;
}

static int
open_table(struct parser *P, struct toml *parent, const struct key *key, struct mark at)
{
	struct toml *t = find(parent, key->bytes, key->len);
	char shown[64];

	if (!t)
		return add(P, parent, key, TOML_TABLE, BY_HEADER, at, &P->table);
	if (t->type != TOML_TABLE)
		return fail_at(P, key->at,
			"%s is %s since line %u, so it cannot be a table too%s",
			show_text(t->key, t->key_len, shown), toml_type_name(t->type),
			t->line,
			t->origin == OF_TABLES ? "; [[…]] adds a table to it" : "");
	if (t->origin != BY_PATH)
		return fail_at(P, key->at,
			"the table %s is given twice, the first time on line %u",
			show_text(t->key, t->key_len, shown), t->line);
	t->origin = BY_HEADER;
	t->line = at.line;
	t->column = at.column;
	P->table = t;
	return 0;
}

static int
open_array_element(
	struct parser *P, struct toml *parent, const struct key *key, struct mark at)
{
	struct toml *t = find(parent, key->bytes, key->len);
	char shown[64];
	int r;

	if (!t) {
		r = add(P, parent, key, TOML_ARRAY, OF_TABLES, at, &t);
		if (r < 0)
			return r;
	} else if (t->type != TOML_ARRAY) {
		return fail_at(P, key->at,
			"%s is %s since line %u, so it cannot be an array of tables",
			show_text(t->key, t->key_len, shown), toml_type_name(t->type),
			t->line);
	} else if (t->origin != OF_TABLES) {
		return fail_at(P, key->at,
			"the array %s of line %u is complete; [[…]] cannot add to it",
			show_text(t->key, t->key_len, shown), t->line);
	}
	return add(P, t, NULL, TOML_TABLE, BY_HEADER, at, &P->table);
}

static int
read_header(struct parser *P)
{
	struct key parts[KEY_PARTS_MAX];
	struct mark at = mark_here(P);
	bool array = P->end - P->p >= 2 && P->p[1] == '[';
	struct toml *parent = NULL;
	char c[24];
	size_t n;
	int r;

	P->p += array ? 2 : 1;
	skip_blanks(P);
	r = read_key(P, parts, &n);
	if (r < 0)
		return r;
	if (P->p >= P->end || *P->p != ']' ||
		(array && (P->end - P->p < 2 || P->p[1] != ']')))
		return fail_at(P, mark_here(P),
			"expected '%s' at the end of a table's header, found %s",
			array ? "]]" : "]", show_char(P, P->p, c));
	P->p += array ? 2 : 1;
	r = walk_header_path(P, parts, n - 1, &parent);
	if (r < 0)
		return r;
	r = array ? open_array_element(P, parent, &parts[n - 1], at)
		  : open_table(P, parent, &parts[n - 1], at);
	return r < 0 ? r : expect_line_end(P, "a table's header");
}

/* ---- the whole ---- */

static int
check_utf8(struct parser *P)
{
	struct mark at = {1, 1};

	for (const char *p = P->p; p < P->end;) {
		size_t n = utf8_len(p, (size_t)(P->end - p));

		if (!n)
			return fail_at(P, at,
				"byte 0x%02x is not UTF-8; save the file as UTF-8",
				(unsigned char)*p);
		at.column++;
		if (*p == '\n')
			at = (struct mark){at.line + 1, 1};
		p += n;
	}
	return 0;
}

static int
read_document(struct parser *P)
{
	int r;

	for (;;) {
		r = skip_gap(P);
		if (r < 0 || P->p == P->end)
			return r;
		if (*P->p == '[') {
			r = read_header(P);
		} else {
			r = read_pair(P, P->table);
			if (r == 0)
				r = expect_line_end(P, "a value");
		}
		if (r < 0)
			return r;
	}
}

static int
parse(const char *path, const char *text, size_t len, struct toml **ret_root,
	struct err *e)
{
	struct root *root;
	struct parser P = {.path = path, .e = e, .line = 1};
	int r;

	if (len > TEXT_MAX)
		return err_set(e, -EFBIG,
			"%s%sTOML text of %zu bytes; at most %u MiB are read",
			path ? path : "", path ? ": " : "", len, TEXT_MAX >> 20);
	root = calloc(1, sizeof(*root));
	if (!root)
		return fail_memory(&P);
	root->value.type = TOML_TABLE;
	root->value.origin = BY_HEADER;
	root->value.line = root->value.column = 1;
	P.root = root;
	P.table = &root->value;
	P.p = text;
	P.end = text + len;
	r = check_utf8(&P);
	if (r == 0) {
		/* A byte order mark at the start is not text. */
		if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
			P.p += 3;
		P.column_from = P.p;
		P.column_there = 1;
		r = read_document(&P);
	}
	free(P.scratch);
	if (r < 0) {
		toml_free(&root->value);
		return r;
	}
	*ret_root = &root->value;
	return 0;
}

int
toml_parse(const char *text, size_t len, struct toml **ret_root, struct err *e)
{
	return parse(NULL, text, len, ret_root, e);
}

int
toml_parse_file(const char *path, struct toml **ret_root, struct err *e)
{
	cleanup_free char *text = NULL;
	size_t len;
	int r;

	r = io_read_file(path, TEXT_MAX, &text, &len, e);
	if (r < 0)
		return r;
	return parse(path, text, len, ret_root, e);
}

void
toml_free(struct toml *t)
{
	struct root *root = (struct root *)t;

	if (!root)
		return;
	while (root->chunks) {
		struct chunk *c = root->chunks;

		root->chunks = c->next;
		free(c);
	}
	free(root);
}

/* ---- what callers read ---- */

enum toml_type
toml_type(const struct toml *t)
{
	return t->type;
}

const char *
toml_type_name(enum toml_type type)
{
	switch (type) {
	case TOML_TABLE:
		return "a table";
	case TOML_ARRAY:
		return "an array";
	case TOML_STRING:
		return "a string";
	case TOML_INTEGER:
		return "an integer";
	case TOML_FLOAT:
		return "a float";
	case TOML_BOOL:
		return "a boolean";
	case TOML_OFFSET_DATETIME:
		return "a date-time with an offset";
	case TOML_LOCAL_DATETIME:
		return "a local date-time";
	case TOML_LOCAL_DATE:
		return "a local date";
	case TOML_LOCAL_TIME:
		return "a local time";
	}
	return "a value";
}

unsigned
toml_line(const struct toml *t)
{
	return t->line;
}

unsigned
toml_column(const struct toml *t)
{
	return t->column;
}

size_t
toml_size(const struct toml *t)
{
	return t->type == TOML_TABLE || t->type == TOML_ARRAY ? t->n : 0;
}

const struct toml *
toml_get(const struct toml *table, const char *key)
{
	return table->type == TOML_TABLE ? find(table, key, strlen(key)) : NULL;
}

const struct toml *
toml_member(const struct toml *table, size_t i, const char **ret_key)
{
	if (table->type != TOML_TABLE || i >= table->n)
		return NULL;
	*ret_key = table->items[i]->key;
	return table->items[i];
}

const struct toml *
toml_element(const struct toml *array, size_t i)
{
	return array->type == TOML_ARRAY && i < array->n ? array->items[i] : NULL;
}

int
toml_str(const struct toml *t, const char **ret, size_t *ret_len)
{
	if (t->type != TOML_STRING || (!ret_len && strlen(t->bytes) != t->len))
		return -EINVAL;
	*ret = t->bytes;
	if (ret_len)
		*ret_len = t->len;
	return 0;
}

int
toml_i64(const struct toml *t, int64_t *ret)
{
	if (t->type != TOML_INTEGER)
		return -EINVAL;
	*ret = t->i;
	return 0;
}

int
toml_f64(const struct toml *t, double *ret)
{
	if (t->type == TOML_INTEGER)
		*ret = (double)t->i;
	else if (t->type == TOML_FLOAT)
		*ret = t->f;
	else
		return -EINVAL;
	return 0;
}

int
toml_bool(const struct toml *t, bool *ret)
{
	if (t->type != TOML_BOOL)
		return -EINVAL;
	*ret = t->b;
	return 0;
}

int
toml_datetime(const struct toml *t, struct toml_datetime *ret)
{
	switch (t->type) {
	case TOML_OFFSET_DATETIME:
	case TOML_LOCAL_DATETIME:
	case TOML_LOCAL_DATE:
	case TOML_LOCAL_TIME:
		*ret = t->dt;
		return 0;
	default:
		return -EINVAL;
	}
}
