/* Samples of a measurement, and their percentiles, never averages: a line each, or the
 * keys <name>_p50_us … of a JSON object. The least is what a busy host cannot change. */
#ifndef PANDO_TESTS_BENCH_SAMPLE_H
#define PANDO_TESTS_BENCH_SAMPLE_H

#include <stddef.h>
#include <stdint.h>

#include "common/json.h"

#define SAMPLES_MAX 4096

struct samples {
	const char *name;  /* borrowed */
	const char *clock; /* what the clock covers; borrowed */
	unsigned tried;	   /* how many were begun; only those that answered are in v */
	size_t n;
	uint64_t v[SAMPLES_MAX]; /* ns */
};

void sample_clear(struct samples *s, const char *name, const char *clock);
void sample_add(struct samples *s, uint64_t ns);
/* p in 0..100, of what was added so far; 0 when there is nothing. */
uint64_t sample_percentile(struct samples *s, double p);

/* The answer of a benchmark of that name: an object with an array of groups, printed and freed at
 * the end. Nothing where out is NULL. */
void sample_begin(struct json_out *out, const char *bench);
void sample_end(struct json_out *out);

/* A group of samples: a headed table, or a JSON object. out NULL: lines on stdout. */
void sample_row_begin(struct json_out *out, const char *title, ...)
	__attribute__((format(printf, 2, 3)));
void sample_report(struct samples *s, struct json_out *out);
/* s to its yardstick, as <name>_to_bare_p10 and _p50; in lines also how much of unit each did a
 * second, where one measurement is of `amount`. unit NULL: nothing. */
void sample_report_ratio(struct samples *s, struct samples *bare, double amount,
	const char *unit, struct json_out *out);
void sample_row_end(struct json_out *out);

#endif
