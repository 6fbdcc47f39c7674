#include <errno.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_diff;

static void
print(const struct client_reply *reply, const char *what, const char *unit)
{
	uint64_t pages = 0;
	char size[32];

	(void)json_u64(reply->json,
		json_get(reply->json, json_get(reply->json, 0, what), "pages"), &pages);
	printf("%-8s %llu %s%s, %s\n", what, (unsigned long long)pages, unit,
		pages == 1 ? "" : "s", out_bytes(size, sizeof(size), pages * 4096));
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_diff, argc, argv);
	cleanup_client_point struct client_point b = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	const char *words[2];
	char path[1024], query[96];
	struct err e = {0};
	size_t n = 0;
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key != OPT_WORD)
			return opt_leave(&s, key, &e);
		if (n < 2)
			words[n] = s.arg;
		n++;
	}
	if (n != 2) {
		err_set(&e, -EINVAL, "it is: pando diff <commit> <commit>");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_pandod(&c, &e) < 0 || client_point(c, words[1], &b, NULL, &e) < 0)
		return out_fail(&e);
	snprintf(query, sizeof(query), "/diff?with=%s", b.id);
	if (client_path(path, sizeof(path), "commits", words[0], query, &e) < 0 ||
		client_call(c, "GET", path, NULL, &reply, &e) < 0)
		return out_fail(&e);
	if (s.json) {
		puts(reply.text);
		return EXIT_OK;
	}
	print(&reply, "memory", "page");
	print(&reply, "disk", "block");
	return EXIT_OK;
}

const struct verb verb_diff = {
	.name = "diff",
	.summary = "How much memory and disk differ between two commits",
	.run = run,
	.usage = "<commit> <commit>",
	.text = "Pages and blocks have 4 KiB. --format json has which: [first, how "
		"many], "
		"at most 4096 ranges each.",
	.words = COMPLETE_COMMIT,
};
