#include <errno.h>
#include <stdio.h>

#include "common/io.h"
#include "host/cli/env.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_branch;

#define LABELS_MAX 64
#define COUNT_MAX 1024

enum { OPT_NO_WAIT = 256, OPT_COUNT, OPT_ENV, OPT_ENV_FILE };

static const struct opt options[] = {
	{OPT_COUNT, "count", "N", "how many, all of one instant; 1 if not said",
		COMPLETE_NOTHING},
	{'c', "checkout", NULL, "check the branch out in this folder", COMPLETE_NOTHING},
	{'n', "alias", "NAME", "name the branch; with --count: NAME-0, NAME-1, …",
		COMPLETE_NOTHING},
	{'N', "vm-alias", "NAME", NULL, COMPLETE_NOTHING},
	{'l', "label", "key=value", "label the branches; may be given several times",
		COMPLETE_NOTHING},
	{OPT_ENV, "env", "NAME=value",
		"environment variable; {index} and {id} in it are replaced; may be given "
		"several times",
		COMPLETE_NOTHING},
	{OPT_ENV_FILE, "env-file", "FILE", "environment variables, as a shell reads them",
		COMPLETE_FILE},
	{OPT_NO_WAIT, "no-wait", NULL,
		"return when their CPUs run, not when they have become themselves",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

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
	cleanup_env struct env env = {0};
	cleanup_client_vms struct client_vms vms = {0};
	cleanup_client_vm struct client_vm parent = {0};
	cleanup_client_point struct client_point commit = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL, *labels[LABELS_MAX];
	struct client_branch spec = {.labels = labels, .env = &env};
	struct out_progress progress;
	struct err e = {0};
	bool checkout = false;
	uint64_t start_ns;
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		r = 0;
		switch (key) {
		case 'c':
			checkout = true;
			break;
		case OPT_COUNT:
			r = opt_u64(s.arg, "--count", 1, COUNT_MAX, &spec.count, &e);
			break;
		case 'n':
		case 'N':
			spec.alias = s.arg;
			break;
		case 'l':
			r = opt_label(s.arg, "--label", &e);
			if (r >= 0 && spec.n_labels == LABELS_MAX)
				r = err_set(&e, -E2BIG, "at most %d labels", LABELS_MAX);
			if (r >= 0)
				labels[spec.n_labels++] = s.arg;
			break;
		case OPT_ENV:
			r = cli_env_add(&env, s.arg, &e);
			break;
		case OPT_ENV_FILE:
			r = cli_env_file(&env, s.arg, &e);
			break;
		case OPT_NO_WAIT:
			spec.no_wait = true;
			break;
		case OPT_WORD:
			if (name)
				r = err_set(&e, -EINVAL,
					"branch takes one VM; a name for the branch goes "
					"behind -n");
			name = s.arg;
			break;
		default:
			return opt_leave(&s, key, &e);
		}
		if (r >= 0 && checkout && spec.count > 1)
			r = err_set(&e, -EINVAL,
				"--checkout takes one branch, not %llu: check one of "
				"them "
				"out afterwards",
				(unsigned long long)spec.count);
		if (r < 0)
			return opt_leave(&s, OPT_ERROR, &e);
	}
	r = pick_open(name, &c, &parent, NULL, &e);
	if (r == -ENOENT && c && name)
		r = pick_commit(c, name, &commit, &e);
	if (r < 0)
		return out_fail(&e);
	out_progress_start(&progress, s.quiet);
	client_on_progress(c, out_progress_say, &progress);
	client_cancel_fd(c, pick_cancel_fd());
	start_ns = io_now_ns();
	r = commit.id[0] ? client_spawn(c, commit.id, &spec, &vms, &reply, &e)
			 : client_branch(c, parent.id, &spec, &vms, &reply, &e);
	out_progress_end(&progress);
	if (r == -ECANCELED)
		err_set(&e, r,
			"cancelled; branches may come up yet: `pando tree` shows them");
	if (r < 0)
		return out_fail(&e);
	if (s.json)
		puts(reply.text);
	else
		for (size_t i = 0; i < vms.n; i++)
			puts(vms.v[i].id);
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
	if (!s.quiet)
		cli_env_tell(&env);
	if (checkout && vms.n == 1)
		pick_checkout(&vms.v[0], s.quiet);
	return EXIT_OK;
}

const struct verb verb_branch = {
	.name = "branch",
	.aliases = "fork",
	.summary = "Forks a live VM and prints the ids of the branches",
	.run = run,
	.usage = "[vm | commit] [options]",
	.options = options,
	.text = "The branches are what the VM was at one instant: memory, processes, "
		"disk. It goes on meanwhile;\n"
		"one that is paused stays so, and its branches run. "
		"All come up or none does.\n"
		"A name that is no VM's may be a commit's or a tag: then it is `pando "
		"run-commit`.",
	.words = COMPLETE_VM,
};
