#include <stdio.h>

#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/points.h"

extern const struct verb verb_history;

enum { OPT_LIMIT = 256 };

static const struct opt options[] = {
	{OPT_LIMIT, "limit", "N", "at most N commits", COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_history, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL;
	uint64_t limit = 0;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_LIMIT) {
			if (opt_u64(s.arg, "--limit", 1, POINTS_LIMIT_MAX, &limit, &e) < 0)
				return opt_leave(&s, OPT_ERROR, &e);
			continue;
		}
		if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	if ((name ? pick_pandod(&c, &e) : pick_open(NULL, &c, &vm, NULL, &e)) < 0)
		return out_fail(&e);
	return points_walk(c, name ? name : vm.id, limit, &s, &e);
}

const struct verb verb_history = {
	.name = "history",
	.summary = "The commits a VM or a commit comes from, newest first",
	.run = run,
	.usage = "[--limit N] [vm | commit]",
	.options = options,
	.text = "A VM's history begins with the commit it was last committed as or comes from. VMs' names go before tags.\n"
		"Of a pruned commit only its place in the history is kept.",
	.words = COMPLETE_VM_OR_COMMIT,
};
