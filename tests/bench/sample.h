/* Samples of a measurement, and one line (or JSON object) about them: percentiles, never
 * averages. */
#ifndef PANDO_BENCH_SAMPLE_H
#define PANDO_BENCH_SAMPLE_H

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

void sample_add(struct samples *s, uint64_t ns);
/* p in 0..100, of what was added so far; 0 when there is nothing. */
uint64_t sample_percentile(struct samples *s, double p);
/* yardstick (may be NULL) gives a ratio of medians of the same run. out NULL: a line on
 * stdout. */
void sample_report(struct samples *s, struct samples *yardstick, struct json_out *out);
void sample_header(void);

#endif
