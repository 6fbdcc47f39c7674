#include <stdio.h>

#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/points.h"

extern const struct verb verb_history;

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_history, argc, argv);
	cleanup_client_points struct client_points points = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	if ((name ? pick_pandod(&c, &e) : pick_open(NULL, &c, &vm, NULL, &e)) < 0 ||
		client_history(c, name ? name : vm.id, &points, &reply, &e) < 0)
		return out_fail(&e);
	if (!s.json)
		return points_print(&points, s.quiet);
	puts(reply.text);
	return EXIT_OK;
}

const struct verb verb_history = {
	.name = "history",
	.summary = "The commits a VM or a commit comes from, newest first",
	.run = run,
	.usage = "[vm | commit]",
	.text = "A VM's history begins with the commit it was last committed as or comes from. VMs' names go before tags.",
	.words = COMPLETE_COMMIT,
};
