/* Times of the steps of a fork or a restore, for the log at debug level. */
#ifndef PANDO_VMM_STEPS_H
#define PANDO_VMM_STEPS_H

#include <stdint.h>

#define STEPS_MAX 16

struct steps {
	uint64_t last_ns;
	unsigned n;
	struct {
		const char *name; /* a literal */
		uint64_t ns;
	} step[STEPS_MAX];
};

void steps_begin(struct steps *s, uint64_t now_ns);
/* What was done since the last one. */
void steps_add(struct steps *s, const char *name);
/* " name µs name µs …" to the log. */
void steps_log(const struct steps *s, const char *what);

#endif
