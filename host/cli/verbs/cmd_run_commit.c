#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "host/cli/fan.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_run_commit;

static const struct opt options[] = {
	{FAN_WAIT_FOR, "wait-for", "full",
		"start when all of memory is there; else the rest comes while they run",
		COMPLETE_NOTHING},
	FAN_OPTIONS("VM", "VMs", "how many; 1 if not said", 'N', "vm-alias", 'n', "alias"),
};

/* A VM's name in the place of a commit's. */
static void
suggest(struct client *c, const char *name, struct err *e)
{
	cleanup_client_vm struct client_vm vm = {0};

	if (client_get(c, name, &vm, NULL, NULL) == 0)
		err_set(e, -ENOENT,
			"no commit has the tag or id \"%.64s\"; a VM has that name: `pando branch %.64s` forks it, and `pando commit %.64s` makes a commit",
			name, name, name);
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_run_commit, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client struct client *c = NULL;
	struct out_progress progress;
	struct err e = {0};
	uint64_t start_ns;
	cleanup_fan struct fan fan = {0};
	int r = fan_read(&s,
		"run-commit takes one commit; a name for the VM goes behind -N", &fan,
		&e);

	if (r != OPT_END)
		return opt_leave(&s, r, &e);
	if (!fan.name) {
		err_set(&e, -EINVAL, "which commit? `pando commit list` lists them");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_pandod(&c, &e) < 0)
		return out_fail(&e);
	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	client_cancel_asking(c, pick_cancel_fd());
	start_ns = io_now_ns();
	r = client_spawn(c, fan.name, &fan.spec, &vms, &reply, &e);
	out_progress_end(&progress);
	/* pandod did not say what became of it. */
	if (r == -ECANCELED && strcmp(e.msg, "cancelled") == 0)
		err_set(&e, r,
			"cancelled; pandod removes what was made when it comes to that, `pando status` shows what is there");
	if (r == -ENOENT)
		suggest(c, fan.name, &e);
	if (r < 0)
		return out_fail(&e);
	if (!s.quiet)
		fprintf(stderr, "pando: %zu VM%s of %s in %.1f ms\n", vms.n,
			vms.n == 1 ? "" : "s", fan.name,
			(double)(io_now_ns() - start_ns) / 1e6);
	fan_print(&fan, &s, &vms, &reply);
	return EXIT_OK;
}

const struct verb verb_run_commit = {
	.name = "run-commit",
	.summary = "Starts VMs from a commit and prints their ids",
	.run = run,
	.usage = "<commit> [options]",
	.options = options,
	.text = "They go on where the committed VM was: memory, processes, disk. All come up or none does.\n"
		"A commit is named by its id, at least 4 leading digits of it, or a tag.",
	.words = COMPLETE_COMMIT,
};
