#include "host/cli/points.h"

#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
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

static void
put_row(struct out_table *t, const struct client_point *p, uint64_t now)
{
	char text[600];
	size_t vms = 0;

	snprintf(text, sizeof(text), "%.12s", p->id);
	out_table_cell(t, text);
	snprintf(text, sizeof(text), "%.12s", p->parent[0] ? p->parent : "-");
	out_table_cell(t, text);
	if (p->pruned)
		snprintf(text, sizeof(text), "(pruned)");
	else
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

/* The page's commits as they stand in the answer. */
static void
put_json(const struct client_reply *reply, bool first)
{
	size_t len = 0;
	const char *raw = json_raw(reply->json, json_get(reply->json, 0, "commits"), &len);

	if (first)
		fputs("{\"commits\":[", stdout);
	if (!raw || len <= 2)
		return;
	if (!first)
		putchar(',');
	fwrite(raw + 1, 1, len - 2, stdout);
}

static void
end_json(const struct client_points *last, bool history)
{
	cleanup_json_out struct json_out o = {0};

	printf("],\"next\":");
	json_out_object(&o, NULL);
	json_out_str(&o, "next", last->next[0] ? last->next : NULL);
	if (!history) {
		json_out_u64(&o, "damaged", last->damaged);
		json_out_str(&o, "damage", last->damage);
	}
	json_out_end_object(&o);
	/* Without "{\"next\":", which is there. */
	puts(o.error ? "null}" : o.buf + strlen("{\"next\":"));
}

int
points_walk(struct client *c, const char *of, uint64_t limit, const struct opt_scan *s,
	struct err *e)
{
	static const char *const heads[] = {
		"COMMIT", "PARENT", "TAGS", "AGE", "VMS", "MESSAGE"};
	cleanup_out_table struct out_table *t = out_table_new(heads, 6);
	char after[sizeof(((struct client_points *)NULL)->next)] = "";
	uint64_t now = io_wall_ms(), left = limit;
	bool first = true, more;

	if (!t) {
		out_complain("no memory");
		return EXIT_FAILED;
	}
	do {
		cleanup_client_points struct client_points page = {0};
		cleanup_client_reply struct client_reply reply = {0};

		if (client_points_page(c, of, after, limit && left < 1000 ? left : 0, &page,
			    &reply, e) < 0) {
			fflush(stdout);
			return out_fail(e);
		}
		for (size_t i = 0; !s->json && i < page.n; i++) {
			if (s->quiet)
				puts(page.v[i].id);
			else
				put_row(t, &page.v[i], now);
		}
		if (s->json)
			put_json(&reply, first);
		else if (!s->quiet)
			out_table_flush(t, stdout);
		memcpy(after, page.next, sizeof(after));
		left -= page.n < left ? page.n : left;
		more = after[0] && (!limit || left);
		if (!more && s->json)
			end_json(&page, of != NULL);
		if (!more && page.damaged)
			out_complain(
				"%llu commit%s cannot be read (`pando verify` names all): %s",
				(unsigned long long)page.damaged,
				page.damaged == 1 ? "" : "s",
				page.damage ? page.damage : "");
		first = false;
		/* The pipe's other end may have gone. */
		if (fflush(stdout) != 0)
			more = false;
	} while (more);
	return EXIT_OK;
}
