/* stop and start: a VM's memory ends, its disk stays. */
#include <errno.h>

#include "host/cli/many.h"
#include "host/cli/opt.h"

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

struct stopping {
	bool force;
	uint64_t timeout_ms;
};

static int
stop_one(struct client *c, const struct client_vm *vm, void *ctx, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	const struct stopping *how = ctx;
	int r = client_stop(c, vm->id, how->force, how->timeout_ms, ret, reply, e);

	if (r == -ECANCELED)
		err_set(e, r, "cancelled; \"%s\" was asked to power off and may yet",
			client_vm_name(vm));
	return r;
}

static int
run_stop(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_stop, argc, argv);
	struct stopping how = {0};
	struct many vms = {.past = "stopped"};
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		switch (key) {
		case 'f':
			how.force = true;
			break;
		case 't':
			if (opt_ms(s.arg, "--timeout", &how.timeout_ms, &e) < 0)
				return opt_leave(&s, OPT_ERROR, &e);
			if (how.timeout_ms > TIMEOUT_MAX_MS) {
				err_set(&e, -ERANGE, "--timeout is at most one hour");
				return opt_leave(&s, OPT_ERROR, &e);
			}
			break;
		default:
			if ((key = many_word(&s, key, &vms, &e)) != OPT_WORD)
				return opt_leave(&s, key, &e);
		}
	}
	if (how.force && how.timeout_ms) {
		err_set(&e, -EINVAL, "--force waits for nothing: no --timeout with it");
		return opt_leave(&s, OPT_ERROR, &e);
	}
	return many_run(&vms, &s, true, stop_one, &how);
}

static int
start_one(struct client *c, const struct client_vm *vm, void *ctx, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	const bool *no_wait = ctx;
	int r = client_start(c, vm->id, *no_wait, ret, reply, e);

	if (r == -ECANCELED)
		err_set(e, r,
			"cancelled; \"%s\" may come up yet: `pando status` shows it",
			client_vm_name(vm));
	return r;
}

static int
run_start(int argc, char **argv)
{
	struct opt_scan s = opt_scan(&verb_start, argc, argv);
	struct many vms = {.n = 0};
	bool no_wait = false;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END) {
		if (key == OPT_NO_WAIT)
			no_wait = true;
		else if ((key = many_word(&s, key, &vms, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	}
	return many_run(&vms, &s, true, start_one, &no_wait);
}

const struct verb verb_stop = {
	.name = "stop",
	.summary = "Powers VMs off; their disks stay, for `pando start`",
	.run = run_stop,
	.usage = "[options] [vm…]",
	.options = stop_options,
	.text = "The guest is asked by its power button, then by its agent. Memory is lost. Branches are VMs of their own and\n"
		"go on. With --force the disk stays, too: `pando delete` is what takes it. Without a name it asks on a\n"
		"terminal, and elsewhere stops nothing.",
	.words = COMPLETE_VM,
};

const struct verb verb_start = {
	.name = "start",
	.summary = "Boots VMs that were stopped, or have failed, from their own disks",
	.run = run_start,
	.usage = "[options] [vm…]",
	.options = start_options,
	.text = "Its id, name and labels stay; what it said before is in console.old of its folder.",
	.words = COMPLETE_VM,
};
