#include "host/cli/help.h"

#include <string.h>

#include "host/cli/opt.h"
#include "host/cli/out.h"

/* One more word of a text that is filled into lines of `room`; all but the first are indented. */
static void
put_word(FILE *f, const char *word, size_t n, size_t room, unsigned indent, size_t *used)
{
	char copy[128];
	size_t width;

	snprintf(copy, sizeof(copy), "%.*s", (int)n, word);
	width = out_width(copy);
	if (*used && *used + 1 + width > room) {
		fprintf(f, "\n%*s", (int)indent, "");
		*used = 0;
	}
	fprintf(f, "%s%.*s", *used ? " " : "", (int)n, word);
	*used += width + (*used > 0);
}

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

		put_word(f, right, n, room, 2 + width + 2, &used);
		right += n + strspn(right + n, " ");
	}
	fputc('\n', f);
}

/* A verb's text: its words, filled into lines of 90. An empty line and one that begins with a blank
 * stay as they are, and end what is filled. */
static void
filled(FILE *f, const char *text)
{
	bool begins = true; /* a line of the text */
	size_t used = 0;

	while (*text) {
		size_t n = strcspn(text, " \n");

		if (begins && (*text == ' ' || *text == '\n')) {
			n = strcspn(text, "\n");
			fprintf(f, "%s%.*s\n", used ? "\n" : "", (int)n, text);
			used = 0;
		} else {
			put_word(f, text, n, 90, 0, &used);
		}
		text += n;
		begins = *text == '\n';
		text += *text != '\0';
	}
	if (used)
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
	if (v->text) {
		fputc('\n', f);
		filled(f, v->text);
	}
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
