#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/io.h"
#include "host/cli/fan.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_branch;

static const struct opt options[] = {OPT_BUSY,
	{FAN_KEEP, "keep-fork-point", NULL,
		"keep this instant in memory, so that `pando reset` takes the branches back to it",
		COMPLETE_NOTHING},
	FAN_OPTIONS("branch", "branches", "how many, all of one instant; 1 if not said",
		'n', "alias", 'N', "vm-alias")};

/* A name that is no VM may be a commit's. -ENOENT and *e as it was: it is none either. */
static int
pick_commit(struct client *c, const char *name, struct client_point *ret, struct err *e)
{
	struct err why = {0};
	int r = client_point(c, name, ret, NULL, &why);

	if (r == -ENOENT)
		return r;
	return r < 0 ? err_set(e, r, "%s", why.msg) : 0;
}

static int
run(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_branch, argc, argv);
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client_vm struct client_vm parent = {0};
	cleanup_client_point struct client_point commit = {0};
	cleanup_client struct client *c = NULL;
	struct out_progress progress;
	struct err e = {0};
	uint64_t start_ns;
	cleanup_fan struct fan fan = {0};
	int r = fan_read(&s, "branch takes one VM; a name for the branch goes behind -n",
		&fan, &e);

	if (r != OPT_END)
		return opt_leave(&s, r, &e);
	r = pick_open(fan.name, &c, &parent, NULL, &e);
	if (r == -ENOENT && c && fan.name)
		r = pick_commit(c, fan.name, &commit, &e);
	if (r == 0 && commit.id[0] && fan.spec.keep_fork_point)
		r = err_set(&e, -EINVAL,
			"--keep-fork-point is for branches of a VM: `pando reset` takes a VM of a commit back to that anyway");
	if (r < 0)
		return out_fail(&e);
	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	client_cancel_asking(c, pick_cancel_fd());
	client_busy_timeout(c, s.has_busy, s.busy_timeout_ms);
	start_ns = io_now_ns();
	r = commit.id[0] ? client_spawn(c, commit.id, &fan.spec, &vms, &reply, &e)
			 : client_branch(c, parent.id, &fan.spec, &vms, &reply, &e);
	out_progress_end(&progress);
	/* pandod did not say what became of it. */
	if (r == -ECANCELED && strcmp(e.msg, "cancelled") == 0)
		err_set(&e, r,
			"cancelled; pandod removes what was made when it comes to that, `pando status` shows what is there");
	if (r < 0)
		return out_fail(&e);
	if (!s.quiet && commit.id[0])
		fprintf(stderr, "pando: %zu VM%s of commit %.12s in %.1f ms\n", vms.n,
			vms.n == 1 ? "" : "s", commit.id,
			(double)(io_now_ns() - start_ns) / 1e6);
	else if (!s.quiet)
		fprintf(stderr,
			"pando: %zu %s of %s in %.1f ms; %s stood still for %.2f ms\n",
			vms.n, vms.n == 1 ? "branch" : "branches",
			client_vm_name(&parent), (double)(io_now_ns() - start_ns) / 1e6,
			client_vm_name(&parent), (double)vms.pause_us / 1e3);
	fan_print(&fan, &s, &vms, &reply);
	return EXIT_OK;
}

const struct verb verb_branch = {
	.name = "branch",
	.aliases = "fork",
	.summary = "Forks a live VM and prints the ids of the branches",
	.run = run,
	.usage = "[vm | commit] [options]",
	.options = options,
	.text = "The branches are what the VM was at one instant: memory, processes, disk. It goes on meanwhile;\n"
		"one that is paused stays so, and its branches run. All come up or none does.\n"
		"A name that is no VM's may be a commit's or a tag: then it is `pando run-commit`.",
	.words = COMPLETE_VM,
};
