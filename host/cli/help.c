#include "host/cli/help.h"

#include <string.h>

#include "host/cli/opt.h"

/* Two columns; the second one is wrapped at 90 and indented. */
static void
two_columns(FILE *f, const char *left, unsigned width, const char *right)
{
	unsigned room = 90 - 2 - width - 2;
	size_t used = 0;

	fprintf(f, "  %-*s  ", (int)width, left);
	if (strlen(left) > width)
		fprintf(f, "\n  %*s  ", (int)width, "");
	while (*right) {
		size_t n = strcspn(right, " ");

		if (used && used + 1 + n > room) {
			fprintf(f, "\n  %*s  ", (int)width, "");
			used = 0;
		}
		fprintf(f, "%s%.*s", used ? " " : "", (int)n, right);
		used += n + (used > 0);
		right += n + strspn(right + n, " ");
	}
	fputc('\n', f);
}

static void
options(FILE *f, const struct opt *o)
{
	for (; o && o->key; o++) {
		char left[64], letter[8] = "    ";

		if (!o->help)
			continue;
		if (o->key < 128)
			snprintf(letter, sizeof(letter), "-%c%s", o->key,
				o->name ? ", " : "");
		snprintf(left, sizeof(left), "%s%s%s%s%s", letter, o->name ? "--" : "",
			o->name ? o->name : "", o->arg ? " " : "", o->arg ? o->arg : "");
		two_columns(f, left, 26, o->help);
	}
}

void
help_verb(FILE *f, const struct verb *v)
{
	const char *line = v->usage ? v->usage : "…";

	for (const char *head = "Usage:"; *line; head = "      ") {
		size_t n = strcspn(line, "\n");

		fprintf(f, "%s pando %s %.*s\n", head, v->name, (int)n, line);
		line += n + (line[n] == '\n');
	}
	if (v->aliases)
		fprintf(f, "Also: %s\n", v->aliases);
	fprintf(f, "\n%s.\n\n", v->summary);
	options(f, v->options);
	options(f, opt_common);
	if (v->text)
		fprintf(f, "\n%s\n", v->text);
}

void
help_all(FILE *f)
{
	fputs("Usage: pando <verb> [options] …\n\n"
	      "Boots Linux machines, forks them live, runs work in each.\n\n",
		f);
	for (const struct verb *const *v = verb_all(); *v; v++)
		two_columns(f, (*v)->name, 12, (*v)->summary);
	fputs("\n`pando help <verb>` says more about one. On every verb: -q prints ids only, --format json\n"
	      "prints JSON. stdout carries the answer; notes and progress go to stderr.\n\n"
	      "Exit status: 0 ok, 1 failed, 2 usage or bad input, 3 not found, 4 conflict, 5 refused,\n"
	      "6 timed out, 7 cancelled; execute: the command's own, 125 when our side failed.\n",
		f);
}
