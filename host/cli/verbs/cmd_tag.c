#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_tag;

static void
put_rows(const struct client_reply *reply, struct out_table *t, bool quiet)
{
	int tags = json_get(reply->json, 0, "tags");
	int n = tags < 0 ? 0 : json_size(reply->json, tags);
	char name[80], id[80];

	for (int i = 0; i < n; i++) {
		int tag = json_at(reply->json, tags, i);

		if (json_str(reply->json, json_get(reply->json, tag, "name"), name,
			    sizeof(name)) < 0)
			continue;
		/* One whose file is damaged leads nowhere. */
		if (json_str(reply->json, json_get(reply->json, tag, "commit"), id,
			    sizeof(id)) < 0)
			snprintf(id, sizeof(id), "(damaged)");
		if (quiet) {
			puts(name);
			continue;
		}
		out_table_cell(t, name);
		out_table_cell(t, id);
	}
	if (!quiet)
		out_table_flush(t, stdout);
}

static void
put_json(const struct client_reply *reply, bool first, bool more)
{
	size_t len = 0;
	const char *raw = json_raw(reply->json, json_get(reply->json, 0, "tags"), &len);

	if (first)
		fputs("{\"tags\":[", stdout);
	if (raw && len > 2) {
		if (!first)
			putchar(',');
		fwrite(raw + 1, 1, len - 2, stdout);
	}
	if (!more)
		puts("],\"next\":null}");
}

static int
list(struct client *c, const struct opt_scan *s, struct err *e)
{
	static const char *const heads[] = {"TAG", "COMMIT"};
	cleanup_out_table struct out_table *t = out_table_new(heads, 2);
	char next[80] = "", path[400] = "/v1/tags";
	bool first = true;

	if (!t)
		return EXIT_FAILED;
	do {
		cleanup_client_reply struct client_reply reply = {0};

		if (client_call(c, "GET", path, NULL, &reply, e) < 0)
			return out_fail(e);
		if (json_str(reply.json, json_get(reply.json, 0, "next"), next,
			    sizeof(next)) < 0)
			next[0] = '\0';
		if (s->json)
			put_json(&reply, first, next[0] != '\0');
		else
			put_rows(&reply, t, s->quiet);
		/* A tag's letters need no encoding. */
		snprintf(path, sizeof(path), "/v1/tags?after=%s", next);
		first = false;
	} while (next[0] && fflush(stdout) == 0);
	return EXIT_OK;
}

static int
put(struct client *c, const char *tag, const char *commit, bool move,
	const struct opt_scan *s, struct err *e)
{
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_json_out struct json_out o = {0};
	char path[1024], id[80] = "";

	json_out_object(&o, NULL);
	json_out_str(&o, "commit", commit);
	json_out_bool(&o, "move", move);
	json_out_end_object(&o);
	if (o.error)
		return EXIT_FAILED;
	if (client_path(path, sizeof(path), "tags", tag, "", e) < 0 ||
		client_call(c, "PUT", path, o.buf, &reply, e) < 0)
		return out_fail(e);
	json_str(reply.json, json_get(reply.json, 0, "commit"), id, sizeof(id));
	puts(s->json ? reply.text : id);
	return EXIT_OK;
}

static int
delete_tag(struct client *c, const char *tag, const struct opt_scan *s, struct err *e)
{
	cleanup_client_reply struct client_reply reply = {0};
	char path[1024];

	if (client_path(path, sizeof(path), "tags", tag, "", e) < 0 ||
		client_call(c, "DELETE", path, NULL, &reply, e) < 0)
		return out_fail(e);
	puts(s->json ? reply.text : tag);
	return EXIT_OK;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_tag, argc, argv);
	cleanup_client struct client *c = NULL;
	const char *words[4] = {"", "", "", ""};
	struct err e = {0};
	size_t n = 0, want;
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key != OPT_WORD)
			return opt_leave(&s, key, &e);
		if (n < 4)
			words[n] = n ? s.arg : opt_subverb(s.arg);
		n++;
	}
	want = strcmp(words[0], "create") == 0 || strcmp(words[0], "update") == 0 ? 3
	       : strcmp(words[0], "delete") == 0				  ? 2
	       : strcmp(words[0], "list") == 0					  ? 1
										  : 0;
	if (!want || n != want) {
		err_set(&e, -EINVAL,
			"it is: pando tag create NAME <commit>, list, update NAME <commit>, or delete NAME");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	if (want == 1)
		return list(c, &s, &e);
	if (want == 2)
		return delete_tag(c, words[1], &s, &e);
	return put(c, words[1], words[2], words[0][0] == 'u', &s, &e);
}

const struct verb verb_tag = {
	.name = "tag",
	.summary = "Names commits",
	.run = run,
	.usage = "create NAME <commit>\nlist\nupdate NAME <commit>\ndelete NAME",
	.text = "A tag can be used wherever a commit's id can. It has 1 to 64 letters, digits, '.', '_' and '-'.",
	.subverbs = "create list update delete",
	.words = COMPLETE_COMMIT,
};
