#include <errno.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_prune;

#define LABELS_MAX 32

enum { OPT_DRY = 256, OPT_OLDER, OPT_KEEP };

static const struct opt options[] = {
	{OPT_DRY, "dry-run", NULL, "say what would go, and drop nothing", COMPLETE_NOTHING},
	{OPT_OLDER, "older-than", "TIME", "those made longer ago than this: 36h, 7d",
		COMPLETE_NOTHING},
	{OPT_KEEP, "keep-last", "N", "but the N newest of each line stay",
		COMPLETE_NOTHING},
	{'l', "label", "key=value",
		"only those with this label; may be given several times", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

struct asked {
	bool dry;
	uint64_t older_ms, keep;
	const char *labels[LABELS_MAX];
	size_t n_labels;
};

static int
write_body(const struct asked *a, struct json_out *o, struct err *e)
{
	json_out_object(o, NULL);
	json_out_bool(o, "dry_run", a->dry);
	if (a->older_ms)
		json_out_u64(o, "older_than_ms", a->older_ms);
	if (a->keep)
		json_out_u64(o, "keep_last", a->keep);
	json_out_object(o, "labels");
	for (size_t i = 0; i < a->n_labels; i++) {
		int eq = opt_label(a->labels[i], "--label", NULL);
		char key[64];

		snprintf(key, sizeof(key), "%.*s", eq, a->labels[i]);
		json_out_str(o, key, a->labels[i] + eq + 1);
	}
	json_out_end_object(o);
	json_out_end_object(o);
	return o->error ? err_sys(e, o->error, "the request") : 0;
}

static void
print(const struct client_reply *reply, const struct asked *a, const struct opt_scan *s)
{
	int ids = json_get(reply->json, 0, a->dry ? "would_prune" : "pruned");
	int n = ids < 0 ? 0 : json_size(reply->json, ids);
	uint64_t tagged = 0, in_use = 0;
	char id[80];

	for (int i = 0; i < n; i++)
		if (json_str(reply->json, json_at(reply->json, ids, i), id, sizeof(id)) == 0)
			puts(id);
	(void)json_u64(reply->json, json_get(reply->json, 0, "kept_tagged"), &tagged);
	(void)json_u64(reply->json, json_get(reply->json, 0, "kept_in_use"), &in_use);
	if (!n && !tagged && !in_use && !a->older_ms && !a->keep)
		out_note("nothing has expired; --older-than and --keep-last select what has not");
	else if (!s->quiet)
		fprintf(stderr,
			"pando: %d commit%s %s; %llu more are tagged and %llu in use%s\n", n,
			n == 1 ? "" : "s", a->dry ? "would go" : "dropped",
			(unsigned long long)tagged, (unsigned long long)in_use,
			n && !a->dry ? "; `pando gc` frees the room" : "");
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_prune, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_json_out struct json_out o = {0};
	cleanup_client struct client *c = NULL;
	struct out_progress progress;
	struct asked a = {0};
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		r = 0;
		switch (key) {
		case OPT_DRY:
			a.dry = true;
			break;
		case OPT_OLDER:
			r = opt_ms(s.arg, "--older-than", &a.older_ms, &e);
			break;
		case OPT_KEEP:
			r = opt_u64(s.arg, "--keep-last", 1, 1000000, &a.keep, &e);
			break;
		case 'l':
			r = opt_label(s.arg, "--label", &e);
			if (r >= 0 && a.n_labels == LABELS_MAX)
				r = err_set(&e, -E2BIG, "at most %d labels", LABELS_MAX);
			if (r >= 0)
				a.labels[a.n_labels++] = s.arg;
			break;
		case OPT_WORD:
			r = err_set(&e, -EINVAL,
				"prune takes no words; `pando commit delete` deletes by name");
			break;
		default:
			return opt_leave(&s, key, &e);
		}
		if (r < 0)
			return opt_leave(&s, OPT_ERROR, &e);
	}
	if (write_body(&a, &o, &e) < 0 || pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	r = client_call(c, "POST", "/v1/prune", o.buf, &reply, &e);
	out_progress_end(&progress);
	if (r < 0)
		return out_fail(&e);
	if (s.json)
		puts(reply.text);
	else
		print(&reply, &a, &s);
	return EXIT_OK;
}

const struct verb verb_prune = {
	.name = "prune",
	.summary = "Drops commits by rule, and prints their ids",
	.run = run,
	.usage = "[--dry-run] [--older-than TIME] [--keep-last N] [-l key=value]…",
	.options = options,
	.text = "Expired commits go (`pando commit --expire`). With --older-than or --keep-last, so do those that\n"
		"all rules select. Tagged commits, those that a VM needs and those that are being run stay. A\n"
		"dropped commit that others descend from keeps its place in the history; its contents are not held.",
};
