#include <errno.h>
#include <stdio.h>

#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_gc;

enum { OPT_CANCEL = 256 };

static const struct opt options[] = {
	{OPT_CANCEL, "cancel", NULL, "end the gc that runs, whoever began it",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
cancel(struct client *c, const struct opt_scan *s)
{
	cleanup_client_reply struct client_reply reply = {0};
	uint64_t n = 0;
	struct err e = {0};

	if (client_call(c, "DELETE", "/v1/gc", NULL, &reply, &e) < 0)
		return out_fail(&e);
	(void)json_u64(reply.json, json_get(reply.json, 0, "cancelled"), &n);
	if (s->json)
		puts(reply.text);
	else
		out_note(n ? "the gc ends" : "no gc is running");
	return EXIT_OK;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_gc, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	struct out_progress progress;
	uint64_t freed = 0, bytes = 0;
	char text[32], rest[32];
	struct err e = {0};
	bool end = false;
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_CANCEL) {
			end = true;
			continue;
		}
		if (key == OPT_WORD) {
			err_set(&e, -EINVAL, "gc takes no words");
			key = OPT_ERROR;
		}
		return opt_leave(&s, key, &e);
	}
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	if (end)
		return cancel(c, &s);
	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	r = client_call(c, "POST", "/v1/gc", NULL, &reply, &e);
	out_progress_end(&progress);
	if (r < 0)
		return out_fail(&e);
	(void)json_u64(reply.json, json_get(reply.json, 0, "freed_bytes"), &freed);
	(void)json_u64(reply.json, json_get(reply.json, 0, "bytes"), &bytes);
	if (s.json)
		puts(reply.text);
	else if (s.quiet)
		printf("%llu\n", (unsigned long long)freed);
	else
		printf("%s freed, %s kept\n", out_bytes(text, sizeof(text), freed),
			out_bytes(rest, sizeof(rest), bytes));
	return EXIT_OK;
}

const struct verb verb_gc = {
	.name = "gc",
	.summary = "Frees what no commit needs any more",
	.run = run,
	.usage = "[--cancel]",
	.options = options,
	.text = "Waits for commits that are being made, and nothing waits for it; Ctrl-C ends it, and keeps what it\n"
		"has freed. pandod also does this on its own, a minute after commits were deleted or dropped.\n"
		"What was read of disk images that are still there is kept: the next commit need not read them again.",
};
