#include "host/cli/opt.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/cli/help.h"
#include "host/cli/near.h"
#include "host/cli/out.h"

#define BUSY_TIMEOUT_MAX_MS 3600000u /* pandod's (host/api/API.md) */

struct opt_scan
opt_scan(const struct verb *verb, int argc, char **argv)
{
	return (struct opt_scan){.verb = verb, .argc = argc, .argv = argv, .at = 1};
}

/* Verb tables come first, so that a verb may give a common letter another meaning. */
static const struct opt *
find(const struct verb *v, const char *name, size_t len, int letter)
{
	const struct opt *const tables[] = {v->options, opt_common};

	for (size_t t = 0; t < 2; t++)
		for (const struct opt *o = tables[t]; o && o->key; o++)
			if (name ? o->name && strlen(o->name) == len &&
						strncmp(o->name, name, len) == 0
				 : o->key == letter)
				return o;
	return NULL;
}

static int
unknown_long(const struct verb *v, const char *name, size_t len, struct err *e)
{
	const struct opt *const tables[] = {v->options, opt_common};
	char typed[NEAR_MAX];

	snprintf(typed, sizeof(typed), "%.*s", (int)len, name);
	for (size_t t = 0; t < 2; t++)
		for (const struct opt *o = tables[t]; o && o->key; o++)
			if (o->name && near_enough(typed, o->name)) {
				err_set(e, -EINVAL,
					"%s has no option --%s; did you mean --%s?",
					v->name, typed, o->name);
				return OPT_ERROR;
			}
	err_set(e, -EINVAL, "%s has no option --%s", v->name, typed);
	return OPT_ERROR;
}

/* An option was recognised and its argument, if it takes one, is in s->arg. */
static int
found(struct opt_scan *s, const struct opt *o, struct err *e)
{
	bool common = o >= opt_common && o < opt_common + OPT_COMMON_N;

	if (o->key == OPT_BUSY_TIMEOUT) {
		s->has_busy = true;
		s->busy_timeout_ms = 0;
		if (strcmp(s->arg, "0") != 0 &&
			opt_ms(s->arg, "--busy-timeout", &s->busy_timeout_ms, e) < 0)
			return OPT_ERROR;
		if (s->busy_timeout_ms > BUSY_TIMEOUT_MAX_MS) {
			err_set(e, -ERANGE, "--busy-timeout is at most one hour");
			return OPT_ERROR;
		}
		return opt_next(s, e);
	}
	if (!common)
		return o->key;
	switch (o->key) {
	case 'q':
		s->quiet = true;
		out_hush();
		return opt_next(s, e);
	case OPT_FORMAT:
		if (strcmp(s->arg, "json") == 0) {
			s->json = true;
		} else if (strcmp(s->arg, "table") == 0) {
			s->json = false;
		} else {
			err_set(e, -EINVAL, "--format is table or json, not \"%s\"",
				s->arg);
			return OPT_ERROR;
		}
		return opt_next(s, e);
	default:
		return OPT_HELP;
	}
}

static int
next_letter(struct opt_scan *s, struct err *e)
{
	char letter = *s->rest++;
	const struct opt *o = find(s->verb, NULL, 0, (unsigned char)letter);

	s->arg = NULL;
	if (!o) {
		if (isprint((unsigned char)letter))
			err_set(e, -EINVAL, "%s has no option -%c", s->verb->name,
				letter);
		else
			err_set(e, -EINVAL, "%s has no option like \\x%02x",
				s->verb->name, (unsigned char)letter);
		return OPT_ERROR;
	}
	if (o->arg) {
		if (*s->rest) {
			s->arg = s->rest;
		} else if (s->at < s->argc) {
			s->arg = s->argv[s->at++];
		} else {
			err_set(e, -EINVAL, "-%c needs an argument: -%c %s", letter,
				letter, o->arg);
			return OPT_ERROR;
		}
		s->rest = NULL;
	} else if (!*s->rest) {
		s->rest = NULL;
	}
	return found(s, o, e);
}

static int
next_long(struct opt_scan *s, const char *name, struct err *e)
{
	const char *eq = strchr(name, '=');
	size_t len = eq ? (size_t)(eq - name) : strlen(name);
	const struct opt *o = find(s->verb, name, len, 0);

	s->arg = NULL;
	if (!o)
		return unknown_long(s->verb, name, len, e);
	if (!o->arg && eq) {
		err_set(e, -EINVAL, "--%s takes no argument", o->name);
		return OPT_ERROR;
	}
	if (o->arg) {
		if (eq) {
			s->arg = eq + 1;
		} else if (s->at < s->argc) {
			s->arg = s->argv[s->at++];
		} else {
			err_set(e, -EINVAL, "--%s needs an argument: --%s %s", o->name,
				o->name, o->arg);
			return OPT_ERROR;
		}
	}
	return found(s, o, e);
}

int
opt_next(struct opt_scan *s, struct err *e)
{
	const char *word;

	if (s->rest)
		return next_letter(s, e);
	if (s->at >= s->argc)
		return OPT_END;
	word = s->argv[s->at++];
	if (!s->ended && strcmp(word, "--") == 0) {
		s->ended = true;
		if (s->at >= s->argc)
			return OPT_END;
		word = s->argv[s->at++];
	}
	if (!s->ended && word[0] == '-' && word[1] == '-')
		return next_long(s, word + 2, e);
	/* A lone "-" is a word: standard input or output. */
	if (!s->ended && word[0] == '-' && word[1]) {
		s->rest = word + 1;
		return next_letter(s, e);
	}
	s->arg = word;
	return OPT_WORD;
}

int
opt_one_word(struct opt_scan *s, int key, const char **ret, struct err *e)
{
	if (key != OPT_WORD)
		return key;
	if (*ret) {
		err_set(e, -EINVAL, "%s takes one %s", s->verb->name,
			s->verb->words == COMPLETE_COMMIT	  ? "commit"
			: s->verb->words == COMPLETE_VM_OR_COMMIT ? "VM or commit"
								  : "VM");
		return OPT_ERROR;
	}
	*ret = s->arg;
	return OPT_WORD;
}

const char *
opt_subverb(const char *word)
{
	static const char *const habits[][2] = {
		{"ls", "list"}, {"rm", "delete"}, {"inspect", "info"}};

	for (size_t i = 0; i < sizeof(habits) / sizeof(habits[0]); i++)
		if (strcmp(word, habits[i][0]) == 0)
			return habits[i][1];
	return word;
}

int
opt_leave(struct opt_scan *s, int key, const struct err *e)
{
	if (key == OPT_HELP) {
		help_verb(stdout, s->verb);
		return EXIT_OK;
	}
	out_complain("%s", e->msg);
	fprintf(stderr, "Try: pando help %s\n", s->verb->name);
	return EXIT_USAGE;
}

int
opt_u64(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
	struct err *e)
{
	unsigned long long v;
	char *end;

	if (text[0] == '-' && isdigit((unsigned char)text[1]))
		return err_set(e, -ERANGE, "%s must be %llu to %llu, not %s", what,
			(unsigned long long)min, (unsigned long long)max, text);
	if (!isdigit((unsigned char)text[0]))
		return err_set(
			e, -EINVAL, "%s must be a whole number, not \"%s\"", what, text);
	errno = 0;
	v = strtoull(text, &end, 10);
	if (*end)
		return err_set(
			e, -EINVAL, "%s must be a whole number, not \"%s\"", what, text);
	if (errno || v < min || v > max)
		return err_set(e, -ERANGE, "%s must be %llu to %llu, not %s", what,
			(unsigned long long)min, (unsigned long long)max, text);
	*ret = v;
	return 0;
}

int
opt_mib(const char *text, const char *what, uint64_t min, uint64_t max, uint64_t *ret,
	struct err *e)
{
	static const struct {
		const char *unit;
		uint64_t mib;
	} units[] = {
		{"", 1},
		{"m", 1},
		{"mb", 1},
		{"mib", 1},
		{"g", 1024},
		{"gb", 1024},
		{"gib", 1024},
		{"t", 1024 * 1024},
		{"tb", 1024 * 1024},
		{"tib", 1024 * 1024},
	};
	unsigned long long v;
	char *end;

	if (text[0] == '-' && isdigit((unsigned char)text[1]))
		return err_set(e, -ERANGE, "%s must be %llu to %llu MiB, not %s", what,
			(unsigned long long)min, (unsigned long long)max, text);
	if (!isdigit((unsigned char)text[0]))
		goto not_a_size;
	errno = 0;
	v = strtoull(text, &end, 10);
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		if (strcasecmp(end, units[i].unit) != 0)
			continue;
		if (errno || __builtin_mul_overflow(v, units[i].mib, &v) || v < min ||
			v > max)
			return err_set(e, -ERANGE, "%s must be %llu to %llu MiB, not %s",
				what, (unsigned long long)min, (unsigned long long)max,
				text);
		*ret = v;
		return 0;
	}
not_a_size:
	return err_set(e, -EINVAL,
		"%s must be a size such as 512 (MiB), 512M or 2G, not \"%s\"", what,
		text);
}

int
opt_bytes_per_s(const char *text, const char *what, uint64_t min, uint64_t max,
	uint64_t *ret, struct err *e)
{
	static const struct {
		const char *unit;
		uint64_t bytes;
	} units[] = {
		{"", 1},
		{"k", 1ull << 10},
		{"kb", 1ull << 10},
		{"kib", 1ull << 10},
		{"m", 1ull << 20},
		{"mb", 1ull << 20},
		{"mib", 1ull << 20},
		{"g", 1ull << 30},
		{"gb", 1ull << 30},
		{"gib", 1ull << 30},
	};
	unsigned long long v;
	char *end;

	errno = 0;
	v = strtoull(text, &end, 10);
	for (size_t i = 0; isdigit((unsigned char)text[0]) &&
			   i < sizeof(units) / sizeof(units[0]);
		i++) {
		if (strcasecmp(end, units[i].unit) != 0)
			continue;
		if (errno || __builtin_mul_overflow(v, units[i].bytes, &v) || v > max ||
			(v && v < min))
			return err_set(e, -ERANGE,
				"%s must be 0 or %llu to %llu bytes in a second, not %s", what,
				(unsigned long long)min, (unsigned long long)max, text);
		*ret = v;
		return 0;
	}
	return err_set(e, -EINVAL,
		"%s must be a number of bytes in a second such as 10M, not \"%s\"", what,
		text);
}

int
opt_ms(const char *text, const char *what, uint64_t *ret, struct err *e)
{
	static const struct {
		const char *unit;
		double ms;
	} units[] = {{"", 1e3}, {"s", 1e3}, {"ms", 1}, {"m", 60e3}, {"h", 3600e3}, {"d", 86400e3}};
	double v;
	char *end;

	/* strtod alone would take "inf", "nan" and "0x1p3". */
	if (isdigit((unsigned char)text[0]) &&
		!(text[0] == '0' && (text[1] | 0x20) == 'x')) {
		v = strtod(text, &end);
		for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
			if (strcmp(end, units[i].unit) != 0)
				continue;
			v *= units[i].ms;
			if (v < 1 || v > 1e12)
				return err_set(e, -ERANGE,
					"%s must be from 1 ms to 30 years, not %s", what,
					text);
			*ret = (uint64_t)v;
			return 0;
		}
	}
	return err_set(e, -EINVAL,
		"%s must be a time such as 60 (seconds), 1.5, 500ms, 10m, 36h or 7d, not \"%s\"",
		what, text);
}

int
opt_label(const char *text, const char *what, struct err *e)
{
	const char *eq = strchr(text, '=');
	size_t len = eq ? (size_t)(eq - text) : 0;

	if (!eq)
		return err_set(
			e, -EINVAL, "%s must be key=value, not \"%s\"", what, text);
	if (len < 1 || len > 63)
		return err_set(e, -EINVAL, "%s: a key has 1 to 63 characters", what);
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)text[i]) && !strchr("_./-", text[i]))
			return err_set(e, -EINVAL,
				"%s: a key has letters, digits, '.', '_', '/' and '-' only, not \"%.*s\"",
				what, (int)len, text);
	return (int)len;
}

int
opt_env(const char *text, const char *what, struct err *e)
{
	const char *eq = strchr(text, '=');
	size_t len = eq ? (size_t)(eq - text) : 0;

	if (!eq)
		return err_set(
			e, -EINVAL, "%s must be NAME=value, not \"%s\"", what, text);
	for (size_t i = 0; i < len; i++)
		if (!(isalpha((unsigned char)text[i]) || text[i] == '_' ||
			    (i && isdigit((unsigned char)text[i]))))
			len = 0;
	if (!len)
		return err_set(e, -EINVAL, "%s: \"%.*s\" is no name of a variable", what,
			(int)(eq - text), text);
	return (int)len;
}
