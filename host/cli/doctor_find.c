#include <stdarg.h>
#include <stdio.h>

#include "host/cli/doctor.h"

struct doctor_finding *
doctor_find(struct doctor *d, const char *id, enum doctor_verdict verdict,
	const char *fmt, ...)
{
	struct doctor_finding *f =
		&d->findings[d->n < DOCTOR_MAX ? d->n++ : DOCTOR_MAX - 1];
	va_list ap;

	*f = (struct doctor_finding){.id = id, .verdict = verdict};
	va_start(ap, fmt);
	vsnprintf(f->detail, sizeof(f->detail), fmt, ap);
	va_end(ap);
	return f;
}

void
doctor_mend(struct doctor_finding *f, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(f->mend, sizeof(f->mend), fmt, ap);
	va_end(ap);
}
