/* stop and start: a VM's memory ends, its disk stays. */
#include <errno.h>
#include <stdio.h>

#include "common/cleanup.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_stop, verb_start;

#define TIMEOUT_MAX_MS 3600000u

enum { OPT_NO_WAIT = 256 };

static const struct opt stop_options[] = {
	{'f', "force", NULL, "end it at once, as a power cut would; its disk is flushed",
		COMPLETE_NOTHING},
	{'t', "timeout", "TIME", "how long it may take to power off; 60 s if not said",
		COMPLETE_NOTHING},
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static const struct opt start_options[] = {
	{OPT_NO_WAIT, "no-wait", NULL,
		"return when its CPUs run, not when its agent answers", COMPLETE_NOTHING},
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static void
listen_to(struct client *c, struct out_progress *progress, const struct opt_scan *s)
{
	out_progress_start(progress, s->quiet);
	client_busy_timeout(c, s->has_busy, s->busy_timeout_ms);
	client_on_progress(c, out_progress_say, progress);
	client_cancel_fd(c, pick_cancel_fd());
}

static int
run_stop(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_stop, argc, argv);
	cleanup_client_vm struct client_vm vm = {0}, now = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	struct out_progress progress;
	const char *name = NULL;
	uint64_t timeout_ms = 0;
	bool force = false;
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		switch (key) {
		case 'f':
			force = true;
			break;
		case 't':
			if (opt_ms(s.arg, "--timeout", &timeout_ms, &e) < 0)
				return opt_leave(&s, OPT_ERROR, &e);
			if (timeout_ms > TIMEOUT_MAX_MS) {
				err_set(&e, -ERANGE, "--timeout is at most one hour");
				return opt_leave(&s, OPT_ERROR, &e);
			}
			break;
		default:
			if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
				return opt_leave(&s, key, &e);
		}
	}
	if (force && timeout_ms) {
		err_set(&e, -EINVAL, "--force waits for nothing: no --timeout with it");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	if (pick_open(name, &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	listen_to(c, &progress, &s);
	r = client_stop(c, vm.id, force, timeout_ms, &now, &reply, &e);
	out_progress_end(&progress);
	if (r == -ECANCELED)
		err_set(&e, r, "cancelled; \"%s\" was asked to power off and may yet",
			client_vm_name(&vm));
	if (r < 0)
		return out_fail(&e);
	puts(s.json ? reply.text : now.id);
	return EXIT_OK;
}

static int
run_start(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_start, argc, argv);
	cleanup_client_vm struct client_vm vm = {0}, now = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	struct out_progress progress;
	const char *name = NULL;
	bool no_wait = false;
	struct err e = {0};
	int key, r;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_NO_WAIT)
			no_wait = true;
		else if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	if (pick_open(name, &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	listen_to(c, &progress, &s);
	r = client_start(c, vm.id, no_wait, &now, &reply, &e);
	out_progress_end(&progress);
	if (r == -ECANCELED)
		err_set(&e, r,
			"cancelled; \"%s\" may come up yet: `pando status` shows it",
			client_vm_name(&vm));
	if (r < 0)
		return out_fail(&e);
	puts(s.json ? reply.text : now.id);
	return EXIT_OK;
}

const struct verb verb_stop = {
	.name = "stop",
	.summary = "Powers a VM off; its disk stays, for `pando start`",
	.run = run_stop,
	.usage = "[vm] [options]",
	.options = stop_options,
	.text = "The guest is asked by its power button, then by its agent. Memory is lost. Branches are VMs of their own and\n"
		"go on.",
	.words = COMPLETE_VM,
};

const struct verb verb_start = {
	.name = "start",
	.summary = "Boots a VM that was stopped, or has failed, from its own disk",
	.run = run_start,
	.usage = "[vm] [options]",
	.options = start_options,
	.text = "Its id, name and labels stay; what it said before is in console.old of its folder.",
	.words = COMPLETE_VM,
};
