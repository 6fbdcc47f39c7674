#include <errno.h>
#include <stdio.h>

#include "common/io.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_reset;

enum { OPT_NO_WAIT = 256 };

static const struct opt options[] = {
	{OPT_NO_WAIT, "no-wait", NULL, "do not wait until its agent is ready",
		COMPLETE_NOTHING},
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static void
tell(const struct client_vm *vm, const struct client_reset *reset, uint64_t start_ns)
{
	char pages[64] = "all its memory", where[32] = "its fork point";

	if (reset->pages != UINT64_MAX)
		snprintf(pages, sizeof(pages), "%llu pages that it wrote",
			(unsigned long long)reset->pages);
	if (reset->commit[0])
		snprintf(where, sizeof(where), "commit %.12s", reset->commit);
	fprintf(stderr, "pando: \"%s\" is back at %s after %.1f ms; %s dropped\n",
		client_vm_name(vm), where, (double)(io_now_ns() - start_ns) / 1e6,
		pages);
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_reset, argc, argv);
	cleanup_client_vm struct client_vm vm = {0}, now = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	struct client_reset reset = {0};
	const char *words[2] = {NULL, NULL};
	struct out_progress progress;
	struct err e = {0};
	bool no_wait = false;
	unsigned n = 0;
	uint64_t start_ns;
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_NO_WAIT) {
			no_wait = true;
		} else if (key != OPT_WORD) {
			return opt_leave(&s, key, &e);
		} else if (n == 2) {
			err_set(&e, -EINVAL, "reset takes one VM and one commit");
			return opt_leave(&s, OPT_ERROR, &e);
		} else {
			words[n++] = s.arg;
		}
	}
	/* What it wrote is lost: nobody guesses which VM is meant. */
	if (!n) {
		err_set(&e, -EINVAL, "which VM? `pando status` lists them");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_open(words[0], &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	client_busy_timeout(c, s.has_busy, s.busy_timeout_ms);
	start_ns = io_now_ns();
	r = client_reset(c, vm.id, words[1], no_wait, &now, &reset, &reply, &e);
	out_progress_end(&progress);
	if (r < 0)
		return out_fail(&e);
	if (!s.quiet)
		tell(&vm, &reset, start_ns);
	puts(s.json ? reply.text : now.id);
	return EXIT_OK;
}

const struct verb verb_reset = {
	.name = "reset",
	.summary = "Takes a VM back to its commit or fork point; what it wrote since is dropped",
	.run = run,
	.usage = "<vm> [commit] [options]",
	.options = options,
	.text = "Without a commit it goes back to the one that it was started from, or was last reset to; a branch\n"
		"to the instant of its branching, where that was made with --keep-fork-point, until it stops.\n"
		"Memory, disk and processes are as they were then, and the VM runs, also where it was paused. Id,\n"
		"alias, labels and environment stay, its branches live on, and its open sessions end. A commit that\n"
		"is named must be of a VM of as much memory and as many vCPUs.",
	.words = COMPLETE_VM_OR_COMMIT,
};
