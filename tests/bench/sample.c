#include "tests/bench/sample.h"

#include <stdio.h>
#include <stdlib.h>

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
sample_header(void)
{
	printf("%-44s %9s %9s %9s %9s  %9s  %s\n", "µs", "p50", "p90", "p99", "max",
		"answered", "the clock covers");
}

void
sample_report(struct samples *s, struct samples *yardstick, struct json_out *out)
{
	double p50 = (double)sample_percentile(s, 50) / 1000,
	       p90 = (double)sample_percentile(s, 90) / 1000;
	double p99 = (double)sample_percentile(s, 99) / 1000,
	       max = (double)sample_percentile(s, 100) / 1000;
	double of = yardstick ? (double)sample_percentile(yardstick, 50) / 1000 : 0;

	if (!out) {
		printf("%-44s %9.1f %9.1f %9.1f %9.1f  %4zu/%-4u  %s", s->name, p50, p90,
			p99, max, s->n, s->tried, s->clock);
		if (of > 0)
			printf("; %.2f × %s", p50 / of, yardstick->name);
		printf("\n");
		fflush(stdout);
		return;
	}
	json_out_object(out, NULL);
	json_out_str(out, "name", s->name);
	json_out_str(out, "clock", s->clock);
	json_out_u64(out, "tried", s->tried);
	json_out_u64(out, "answered", s->n);
	json_out_f64(out, "p50_us", p50);
	json_out_f64(out, "p90_us", p90);
	json_out_f64(out, "p99_us", p99);
	json_out_f64(out, "max_us", max);
	if (of > 0) {
		json_out_str(out, "yardstick", yardstick->name);
		json_out_f64(out, "ratio", p50 / of);
	}
	json_out_end_object(out);
}
