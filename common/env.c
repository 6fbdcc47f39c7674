#include "common/env.h"

#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "common/utf8.h"

/* pam_env's buffer has 1024 bytes for a line, its LF and the end; newer ones have more.
 */
#define PAM_LINE_MAX 1022

void
env_done(struct env *env)
{
	for (size_t i = 0; i < env->n; i++)
		free(env->v[i]);
	free(env->v);
	*env = (struct env){0};
}

/* Letters, digits and _, and whatever is the first. */
static size_t
word_len(const char *s)
{
	size_t n = 0;

	while ((s[n] >= 'a' && s[n] <= 'z') || (s[n] >= 'A' && s[n] <= 'Z') ||
		(s[n] >= '0' && s[n] <= '9') || s[n] == '_')
		n++;
	return n;
}

/* Of a name for a shell. */
static size_t
name_len(const char *entry)
{
	return isdigit((unsigned char)entry[0]) ? 0 : word_len(entry);
}

static int
check(const char *entry, struct err *e)
{
	size_t len = name_len(entry), until = strcspn(entry, "=");
	const unsigned char *s, *end;
	char shown[200];

	if (!len || entry[len] != '=')
		return err_set(e, -EINVAL,
			"\"%s\" is no name for an environment variable: letters, digits and _, no digit first",
			log_escape(shown, sizeof(shown), entry, until < 48 ? until : 48));
	if (len > ENV_NAME_MAX)
		return err_set(e, -EINVAL,
			"the environment variable \"%.32s…\" has a name of %zu letters; at most %d are taken",
			entry, len, ENV_NAME_MAX);
	s = (const unsigned char *)entry + len + 1;
	for (end = s + strlen((const char *)s); s < end;) {
		size_t n = utf8_len(s, (size_t)(end - s));

		if (!n)
			return err_set(e, -EINVAL,
				"the value of the environment variable \"%.*s\" is not UTF-8",
				(int)len, entry);
		if ((*s < 0x20 && *s != '\t' && *s != '\n') || *s == 0x7f ||
			(n == 2 && s[0] == 0xc2 && s[1] < 0xa0))
			return err_set(e, -EINVAL,
				"the value of the environment variable \"%.*s\" has the control character 0x%02x; only tabs and line feeds can be carried",
				(int)len, entry, n == 2 ? s[1] : s[0]);
		s += n;
	}
	return 0;
}

static char **
find(const struct env *env, const char *name, size_t len)
{
	for (size_t i = 0; i < env->n; i++)
		if (strncmp(env->v[i], name, len) == 0 && env->v[i][len] == '=')
			return &env->v[i];
	return NULL;
}

/* A copy of entry, into the slot of its name, or a new one (NULL). */
static int
store(struct env *env, char **slot, const char *entry)
{
	char *copy;

	if (!slot && env->n + 2 > env->cap) {
		size_t cap = env->cap ? 2 * env->cap : 16;
		char **bigger = reallocarray(env->v, cap, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		env->v = bigger;
		env->cap = cap;
	}
	copy = strdup(entry);
	if (!copy)
		return -ENOMEM;
	env->bytes += strlen(copy) + 1;
	if (slot) {
		env->bytes -= strlen(*slot) + 1;
		free(*slot);
		*slot = copy;
	} else {
		env->v[env->n++] = copy;
		env->v[env->n] = NULL;
	}
	return 0;
}

int
env_set(struct env *env, const char *entry, struct err *e)
{
	size_t bytes = strlen(entry) + 1, old;
	char **slot;
	int r = check(entry, e);

	if (r)
		return r;
	slot = find(env, entry, strcspn(entry, "="));
	old = slot ? strlen(*slot) + 1 : 0;
	if (!slot && env->n >= ENV_VARS_MAX)
		return err_set(
			e, -E2BIG, "more than %d environment variables", ENV_VARS_MAX);
	if (env->bytes - old + bytes > ENV_BYTES_MAX)
		return err_set(e, -E2BIG,
			"with \"%.*s\" the environment has more than %u bytes; put it into a file",
			(int)name_len(entry) < 64 ? (int)name_len(entry) : 64, entry,
			ENV_BYTES_MAX);
	r = store(env, slot, entry);
	return r ? err_sys(e, r, "the environment") : 0;
}

void
env_put(struct env *env, const char *entry)
{
	if (!env->failed && store(env, find(env, entry, strcspn(entry, "=")), entry))
		env->failed = true;
}

void
env_put_value(struct env *env, const char *name, const char *value)
{
	cleanup_free char *entry = NULL;

	if (asprintf(&entry, "%s=%s", name, value) < 0) {
		entry = NULL;
		env->failed = true;
		return;
	}
	env_put(env, entry);
}

bool
env_unset(struct env *env, const char *name)
{
	char **slot = find(env, name, strlen(name));

	if (!slot)
		return false;
	env->bytes -= strlen(*slot) + 1;
	free(*slot);
	/* In order: what people see does not jump about. */
	memmove(slot, slot + 1, (size_t)(env->v + env->n - slot) * sizeof(*slot));
	env->n--;
	return true;
}

const char *
env_get(const struct env *env, const char *name)
{
	char **slot = find(env, name, strlen(name));

	return slot ? *slot + strlen(name) + 1 : NULL;
}

int
env_merge(struct env *env, const struct env *more, struct err *e)
{
	int r = 0;

	for (size_t i = 0; i < more->n && !r; i++)
		r = env_set(env, more->v[i], e);
	return r;
}

const char *
env_held_back(const char *entry)
{
	const char *value = strchr(entry, '=') + 1;

	if (strchr(value, '\n'))
		return "a line break";
	if (strchr(value, '#'))
		return "a #";
	if (strchr(value, '\'') && strpbrk(value, "\"$`\\"))
		return "a ' and one of \" $ ` \\";
	if (strlen(entry) + 2 > PAM_LINE_MAX)
		return "more than 1020 bytes";
	return NULL;
}

int
env_write(const struct env *env, bool held_back, char **ret, struct err *e)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return err_sys(e, -ENOMEM, "the environment");
	for (size_t i = 0; i < env->n; i++) {
		const char *entry = env->v[i], *value = strchr(entry, '=') + 1;

		if ((env_held_back(entry) != NULL) != held_back)
			continue;
		fprintf(f, "%.*s", (int)(value - entry), entry);
		if (held_back) {
			putc('"', f);
			for (; *value; value++) {
				if (strchr("\"\\$`", *value))
					putc('\\', f);
				putc(*value, f);
			}
			fputs("\"\n", f);
		} else {
			char q = strchr(value, '\'') ? '"' : '\'';

			fprintf(f, "%c%s%c\n", q, value, q);
		}
	}
	if (fclose(f)) {
		free(text);
		return err_sys(e, -ENOMEM, "the environment");
	}
	*ret = text;
	return 0;
}

/*
 * Reading.
 */

/* Of what may stand before a name. */
static size_t
export_len(const char *s)
{
	return strncmp(s, "export ", 7) == 0 ? 7 + strspn(s + 7, " \t") : 0;
}

/* A value from *at on, to the end of its line; *at and *line behind it. */
static int
read_value(const char **at, unsigned *line, const char *what, FILE *out, struct err *e)
{
	const char *s = *at;
	unsigned began = *line;
	const char *spaces = NULL;

	while (*s && *s != '\n') {
		if (spaces && *s != ' ' && *s != '\t' && *s != '\r') {
			fwrite(spaces, 1, (size_t)(s - spaces), out);
			spaces = NULL;
		}
		if (*s == '\'' || *s == '"') {
			char q = *s++;

			for (; *s && *s != q; s++) {
				if (q == '"' && *s == '\\' && s[1] &&
					strchr("\"\\$`\n", s[1])) {
					s++;
					if (*s == '\n') {
						(*line)++;
						continue;
					}
				}
				*line += *s == '\n';
				putc(*s, out);
			}
			if (!*s)
				return err_set(e, -EINVAL,
					"%s: line %u: the quote is not closed", what,
					began);
			s++;
		} else if (*s == ' ' || *s == '\t' || *s == '\r') {
			/* Spaces at the end of a line are no part of the value, and what
			 * follows on a '#' after one is a comment. */
			if (!spaces)
				spaces = s;
			s++;
			if (*s == '#') {
				s += strcspn(s, "\n");
				break;
			}
		} else {
			if (*s == '\\' && s[1] && s[1] != '\n')
				s++;
			putc(*s++, out);
		}
	}
	if (*s == '\n') {
		s++;
		(*line)++;
	}
	*at = s;
	return 0;
}

int
env_read(struct env *env, const char *what, const char *text, struct err *e)
{
	unsigned line = 1;
	int r;

	while (*text) {
		cleanup_free char *entry = NULL;
		unsigned began = line;
		size_t len = 0, n;
		FILE *f;

		text += strspn(text, " \t\r");
		if (*text == '#')
			text += strcspn(text, "\n");
		if (*text == '\n') {
			text++;
			line++;
			continue;
		}
		if (!*text)
			break;
		text += export_len(text);
		n = name_len(text);
		if (!n || text[n] != '=')
			return err_set(
				e, -EINVAL, "%s: line %u is not NAME=value", what, began);
		f = open_memstream(&entry, &len);
		if (!f)
			return err_sys(e, -ENOMEM, "%s", what);
		fprintf(f, "%.*s", (int)n + 1, text);
		text += n + 1;
		r = read_value(&text, &line, what, f, e);
		if (fclose(f) && !r)
			r = err_sys(e, -ENOMEM, "%s", what);
		if (!r && (r = env_set(env, entry, e)))
			err_wrap(e, r, "%s: line %u", what, began);
		if (r)
			return r;
	}
	return 0;
}

/* One line, which is changed. */
static void
read_pam_line(struct env *env, char *s)
{
	size_t i, t;

	s += strspn(s, " \t");
	s += export_len(s);
	s[strcspn(s, "#")] = 0;
	for (t = strlen(s); t && isspace((unsigned char)s[t - 1]); t--)
		s[t - 1] = 0;
	i = word_len(s);
	if (!i || (s[i] && s[i] != '='))
		return;
	if (!s[i]) {
		env_unset(env, s);
		return;
	}
	i++;
	if (s[i] == '"' || s[i] == '\'') {
		/* Only the last character may be a closing quote; others stay. */
		for (t = i + 1; s[t]; t++)
			if ((s[t] != '"' && s[t] != '\'') || s[t + 1])
				s[i++] = s[t];
		s[i] = 0;
	}
	env_put(env, s);
}

void
env_read_pam(struct env *env, const char *text)
{
	cleanup_free char *copy = strdup(text);
	char *from = copy;

	if (!copy) {
		env->failed = true;
		return;
	}
	while (*from) {
		char *line = from, *end = from;

		while (1) {
			size_t len = strcspn(from, "\n");

			memmove(end, from, len);
			end += len;
			from += len + (from[len] == '\n');
			/* A backslash at the end of a line: it goes on on the next. */
			if (!*from || end == line || end[-1] != '\\')
				break;
			end--;
		}
		*end = 0;
		read_pam_line(env, line);
	}
}

char *
env_expand(const char *entry, unsigned index, const char *id)
{
	static const char *const words[] = {"{{index}}", "{{id}}", "{index}", "{id}"};
	const char *value = strchr(entry, '=') + 1;
	char *text = NULL, number[16];
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	snprintf(number, sizeof(number), "%u", index);

	const char *const stand[] = {"{index}", "{id}", number, id};

	fprintf(f, "%.*s", (int)(value - entry), entry);
	while (*value) {
		size_t w;

		for (w = 0; w < 4 && strncmp(value, words[w], strlen(words[w])) != 0; w++)
			;
		if (w < 4) {
			fputs(stand[w], f);
			value += strlen(words[w]);
		} else {
			putc(*value++, f);
		}
	}
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}
