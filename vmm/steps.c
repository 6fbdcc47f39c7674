#include "vmm/steps.h"

#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"

void
steps_begin(struct steps *s, uint64_t now_ns)
{
	s->n = 0;
	s->last_ns = now_ns;
}

void
steps_add(struct steps *s, const char *name)
{
	uint64_t now = io_now_ns();

	if (s->n < STEPS_MAX) {
		s->step[s->n].name = name;
		s->step[s->n++].ns = now - s->last_ns;
	}
	s->last_ns = now;
}

void
steps_log(const struct steps *s, const char *what)
{
	char text[STEPS_MAX * 24] = "";
	size_t used = 0;

	if (!log_wants(LOG_LEVEL_DEBUG))
		return;
	for (unsigned i = 0; i < s->n && used < sizeof(text); i++)
		used += (size_t)snprintf(text + used, sizeof(text) - used, " %s %.1f",
			s->step[i].name, (double)s->step[i].ns / 1000);
	log_debug("%s, µs:%s", what, text);
}
