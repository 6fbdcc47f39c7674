#include "tests/bench/sample.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
sample_clear(struct samples *s, const char *name, const char *clock)
{
	memset(s, 0, sizeof(*s));
	s->name = name;
	s->clock = clock;
}

void
sample_add(struct samples *s, uint64_t ns)
{
	if (s->n < SAMPLES_MAX)
		s->v[s->n++] = ns;
}

static int
compare(const void *pa, const void *pb)
{
	uint64_t a = *(const uint64_t *)pa, b = *(const uint64_t *)pb;

	return (a > b) - (a < b);
}

uint64_t
sample_percentile(struct samples *s, double p)
{
	if (!s->n)
		return 0;
	qsort(s->v, s->n, sizeof(s->v[0]), compare);
	return s->v[(size_t)(p / 100 * (double)(s->n - 1) + 0.5)];
}

void
sample_begin(struct json_out *out, const char *bench)
{
	if (!out)
		return;
	json_out_object(out, NULL);
	json_out_str(out, "bench", bench);
	json_out_array(out, "rows");
}

void
sample_end(struct json_out *out)
{
	if (!out)
		return;
	json_out_end_array(out);
	json_out_end_object(out);
	puts(out->buf);
	json_out_done(out);
}

void
sample_row_begin(struct json_out *out, const char *title, ...)
{
	va_list ap;

	if (out) {
		json_out_object(out, NULL);
		return;
	}
	va_start(ap, title);
	vprintf(title, ap);
	va_end(ap);
	printf("\n  %-14s %9s %9s %9s %9s %9s  %9s  %s\n", "µs", "min", "p50", "p90",
		"p99", "max", "answered", "the clock covers");
}

void
sample_row_end(struct json_out *out)
{
	if (out)
		json_out_end_object(out);
}

void
sample_report(struct samples *s, struct json_out *out)
{
	static const struct {
		double p;
		const char *key;
	} columns[] = {{0, "min"}, {50, "p50"}, {90, "p90"}, {99, "p99"}, {100, "max"}};
	char key[64];

	if (!out)
		printf("  %-14s", s->name);
	for (size_t i = 0; i < sizeof(columns) / sizeof(*columns); i++) {
		double us = (double)sample_percentile(s, columns[i].p) / 1000;

		snprintf(key, sizeof(key), "%s_%s_us", s->name, columns[i].key);
		if (out)
			json_out_f64(out, key, us);
		else
			printf(" %9.1f", us);
	}
	if (!out) {
		printf("  %4zu/%-4u  %s\n", s->n, s->tried, s->clock);
		fflush(stdout);
		return;
	}
	snprintf(key, sizeof(key), "%s_tried", s->name);
	json_out_u64(out, key, s->tried);
	snprintf(key, sizeof(key), "%s_answered", s->name);
	json_out_u64(out, key, s->n);
}

void
sample_report_ratio(struct samples *s, struct samples *bare, double amount,
	const char *unit, struct json_out *out)
{
	char key[160];

	for (int p = 10; p <= 50; p += 40) {
		double a = (double)sample_percentile(s, p),
		       b = (double)sample_percentile(bare, p);

		snprintf(key, sizeof(key), "%s_to_bare_p%d", s->name, p);
		if (out)
			json_out_f64(out, key, a / b);
		else if (!unit)
			printf("  %s: %.2f\n", key, a / b);
		else
			printf("  %s: %.2f (%.0f and %.0f %s/s)\n", key, a / b,
				amount * 1e9 / a, amount * 1e9 / b, unit);
	}
}
