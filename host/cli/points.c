#include "host/cli/points.h"

#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "host/cli/out.h"

/* The first line of a message. */
static void
first_line(char *dst, size_t cap, const char *message)
{
	char line[512];

	snprintf(line, sizeof(line), "%.*s", (int)strcspn(message, "\n"), message);
	out_plain(dst, cap, line);
}

static void
join_tags(char *dst, size_t cap, char **tags)
{
	size_t n = 0;

	snprintf(dst, cap, "-");
	for (; *tags && n < cap; tags++)
		n += (size_t)snprintf(dst + n, cap - n, "%s%s", n ? " " : "", *tags);
}

int
points_print(const struct client_points *points, bool quiet)
{
	static const char *const heads[] = {
		"COMMIT", "PARENT", "TAGS", "AGE", "VMS", "MESSAGE"};
	cleanup_out_table struct out_table *t = NULL;
	uint64_t now = io_wall_ms();
	char text[600];

	for (size_t i = 0; quiet && i < points->n; i++)
		puts(points->v[i].id);
	if (quiet)
		return EXIT_OK;
	t = out_table_new(heads, 6);
	if (!t) {
		out_complain("no memory");
		return EXIT_FAILED;
	}
	for (size_t i = 0; i < points->n; i++) {
		const struct client_point *p = &points->v[i];
		size_t vms = 0;

		snprintf(text, sizeof(text), "%.12s", p->id);
		out_table_cell(t, text);
		snprintf(text, sizeof(text), "%.12s", p->parent[0] ? p->parent : "-");
		out_table_cell(t, text);
		join_tags(text, sizeof(text), p->tags);
		out_table_cell(t, text);
		out_table_cell(t, out_age(text, sizeof(text),
					  now > p->created_ms ? now - p->created_ms : 0));
		while (p->vms[vms])
			vms++;
		snprintf(text, sizeof(text), "%zu", vms);
		out_table_cell(t, text);
		first_line(text, sizeof(text), p->message ? p->message : "");
		out_table_cell(t, text);
	}
	out_table_print(t, stdout);
	return EXIT_OK;
}
