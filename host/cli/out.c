#include "host/cli/out.h"

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"

void
out_complain(const char *fmt, ...)
{
	char raw[1024], plain[2048];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(raw, sizeof(raw), fmt, ap);
	va_end(ap);
	fflush(stdout); /* so that both streams on one terminal stay in order */
	fprintf(stderr, "pando: %s\n", out_plain(plain, sizeof(plain), raw));
}

static bool hushed;

void
out_hush(void)
{
	hushed = true;
}

void
out_note(const char *fmt, ...)
{
	char raw[1024];
	va_list ap;

	if (hushed)
		return;
	va_start(ap, fmt);
	vsnprintf(raw, sizeof(raw), fmt, ap);
	va_end(ap);
	out_complain("%s", raw);
}

int
out_fail(const struct err *e)
{
	out_complain("%s", e->msg);
	return (int)err_exit_code(e->code);
}

int
out_json(const struct json_out *o)
{
	if (o->error) {
		out_complain("no memory for the answer");
		return EXIT_FAILED;
	}
	puts(o->buf);
	return EXIT_OK;
}

bool
out_reader_left(void)
{
	struct pollfd p = {.fd = STDOUT_FILENO};

	return poll(&p, 1, 0) > 0 && (p.revents & POLLERR);
}

int
out_end(int status)
{
	static bool said;

	if (!fflush(stdout) && !ferror(stdout))
		return status;
	/* `pando tree | head -1`: nobody minds, and nobody wants to hear of it. */
	if (out_reader_left())
		return status == EXIT_OK ? 128 + SIGPIPE : status;
	if (!said)
		out_complain(
			"the answer could not be written: standard output is closed or full");
	said = true;
	return status == EXIT_OK ? EXIT_FAILED : status;
}

const char *
out_plain(char *dst, size_t cap, const char *text)
{
	size_t n = 0;

	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		bool c1 = *p == 0xc2 && p[1] >= 0x80 &&
			  p[1] <= 0x9f; /* U+0080–9F are controls */

		if ((*p < 0x20 && *p != '\t') || *p == 0x7f || c1) {
			if (n + 5 > cap)
				break;
			n += (size_t)snprintf(
				dst + n, cap - n, "\\x%02x", c1 ? *++p : *p);
		} else {
			if (n + 2 > cap)
				break;
			dst[n++] = (char)*p;
		}
	}
	if (cap)
		dst[n] = '\0';
	return dst;
}

const char *
out_age(char *dst, size_t cap, uint64_t ms)
{
	uint64_t s = ms / 1000;

	/* To the nearest: a second after `--expire 7d`, that is still 7 d. */
	if (s < 120)
		snprintf(dst, cap, "%llu s", (unsigned long long)s);
	else if (s < 120 * 60)
		snprintf(dst, cap, "%llu min", (unsigned long long)((s + 30) / 60));
	else if (s < 48 * 3600)
		snprintf(dst, cap, "%llu h", (unsigned long long)((s + 1800) / 3600));
	else
		snprintf(dst, cap, "%llu d", (unsigned long long)((s + 43200) / 86400));
	return dst;
}

const char *
out_mib(char *dst, size_t cap, uint64_t mib)
{
	if (mib < 1024)
		snprintf(dst, cap, "%llu MiB", (unsigned long long)mib);
	else if (mib % 1024 == 0)
		snprintf(dst, cap, "%llu GiB", (unsigned long long)(mib / 1024));
	else
		snprintf(dst, cap, "%.1f GiB", (double)mib / 1024);
	return dst;
}

const char *
out_bytes(char *dst, size_t cap, uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	double v = (double)bytes;
	size_t u = 0;

	while (v >= 1024 && u + 1 < sizeof(units) / sizeof(units[0])) {
		v /= 1024;
		u++;
	}
	snprintf(dst, cap, v < 10 && u ? "%.1f %s" : "%.0f %s", v, units[u]);
	return dst;
}

size_t
out_width(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

struct out_table {
	size_t n_columns;
	size_t *widths; /* owned */
	char **cells;	/* owned, row by row */
	size_t n_cells, cap;
	bool failed;
};

void
out_table_free(struct out_table *t)
{
	if (!t)
		return;
	for (size_t i = 0; i < t->n_cells; i++)
		free(t->cells[i]);
	free(t->cells);
	free(t->widths);
	free(t);
}

struct out_table *
out_table_new(const char *const *heads, size_t n_columns)
{
	struct out_table *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->n_columns = n_columns;
	t->widths = calloc(n_columns, sizeof(*t->widths));
	if (!t->widths) {
		free(t);
		return NULL;
	}
	for (size_t i = 0; i < n_columns; i++)
		out_table_cell(t, heads[i]);
	return t;
}

void
out_table_cell(struct out_table *t, const char *text)
{
	char plain[1024];
	size_t width, column = t->n_cells % t->n_columns;

	if (t->n_cells == t->cap) {
		size_t cap = t->cap ? t->cap * 2 : 64;
		char **cells = realloc(t->cells, cap * sizeof(*cells));

		if (!cells) {
			t->failed = true;
			return;
		}
		t->cells = cells;
		t->cap = cap;
	}
	out_plain(plain, sizeof(plain), text);
	t->cells[t->n_cells] = strdup(plain);
	if (!t->cells[t->n_cells]) {
		t->failed = true;
		return;
	}
	t->n_cells++;
	width = out_width(plain);
	if (width > t->widths[column])
		t->widths[column] = width;
}

void
out_table_print(struct out_table *t, FILE *f)
{
	if (t->failed)
		out_complain("no memory for the whole table; it ends early");
	for (size_t i = 0; i < t->n_cells; i++) {
		size_t column = i % t->n_columns;

		fputs(t->cells[i], f);
		if (column + 1 == t->n_columns || i + 1 == t->n_cells)
			fputc('\n', f);
		else
			fprintf(f, "%*s",
				(int)(t->widths[column] - out_width(t->cells[i]) + 2),
				"");
	}
}

void
out_table_flush(struct out_table *t, FILE *f)
{
	out_table_print(t, f);
	for (size_t i = 0; i < t->n_cells; i++)
		free(t->cells[i]);
	t->n_cells = 0;
}

void
out_progress_start(struct out_progress *p, bool quiet)
{
	const char *term = getenv("TERM");

	*p = (struct out_progress){.on = !quiet, .start_ns = io_now_ns()};
	p->tty = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
}

void
out_progress_say(void *progress, const char *sentence)
{
	struct out_progress *p = progress;
	double seconds = (double)(io_now_ns() - p->start_ns) / 1e9;

	if (!p->on)
		return;
	if (sentence) {
		out_plain(p->say, sizeof(p->say), sentence);
		if (!p->tty)
			fprintf(stderr, "pando: %s\n", p->say);
	}
	if (p->tty && p->say[0]) {
		/* Not wider than 80 columns by much: a wrapped line could not be
		 * rewritten. */
		fprintf(stderr, "\r\033[K%.68s (%.1f s)", p->say, seconds);
		fflush(stderr);
		p->shown = true;
	}
}

void
out_progress_end(struct out_progress *p)
{
	if (p->shown) {
		fputs("\r\033[K", stderr);
		fflush(stderr);
	}
	p->shown = false;
	p->say[0] = '\0';
}

bool
out_can_ask(void)
{
	return isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
}

bool
out_confirm(const char *fmt, ...)
{
	char raw[1024], plain[2048], answer[16];
	va_list ap;

	if (!out_can_ask())
		return false;
	va_start(ap, fmt);
	vsnprintf(raw, sizeof(raw), fmt, ap);
	va_end(ap);
	fflush(stdout);
	fprintf(stderr, "%s [y/N] ", out_plain(plain, sizeof(plain), raw));
	fflush(stderr);
	if (!fgets(answer, sizeof(answer), stdin)) {
		fputc('\n', stderr);
		return false;
	}
	answer[strcspn(answer, "\n")] = '\0';
	return strcasecmp(answer, "y") == 0 || strcasecmp(answer, "yes") == 0;
}
