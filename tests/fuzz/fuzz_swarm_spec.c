/* A swarm's spec, as text of whatever kind. What is accepted must keep the promises of
 * swarm/spec.h. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "swarm/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct swarm_spec *s = NULL;
	struct err e = {0};

	if (swarm_spec_parse("dir/x.toml", (const char *)data, size, &s, &e) < 0) {
		if (s || !e.msg[0] || e.code >= 0 ||
			strncmp(e.msg, "dir/x.toml", 10) != 0)
			abort();
		return 0;
	}
	if (!s->n_children || s->n_children > SWARM_CHILDREN_MAX || !s->score.argv)
		abort();
	for (size_t i = 0; i < s->n_children; i++) {
		const struct swarm_child_spec *c = &s->children[i];

		if (!c->work.argv || !c->work.argv[0] || !c->name[0] ||
			strlen(c->name) > SWARM_NAME_MAX || strchr(c->name, '/') ||
			c->name[0] == '.' || !c->work.time_limit_ms)
			abort();
	}
	swarm_spec_free(s);
	return 0;
}
