/* pause and resume: the same words, two calls. */
#include "host/cli/many.h"
#include "host/cli/opt.h"

extern const struct verb verb_pause, verb_resume;

static const struct opt options[] = {
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
pause_one(struct client *c, const struct client_vm *vm, void *ctx, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	(void)ctx;
	return client_pause(c, vm->id, ret, reply, e);
}

static int
resume_one(struct client *c, const struct client_vm *vm, void *ctx, struct client_vm *ret,
	struct client_reply *reply, struct err *e)
{
	(void)ctx;
	return client_resume(c, vm->id, ret, reply, e);
}

static int
run(const struct verb *v, const char *past, many_call *call, int argc, char **argv)
{
	struct opt_scan s = opt_scan(v, argc, argv);
	struct many vms = {.past = past};
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END)
		if ((key = many_word(&s, key, &vms, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	return many_run(&vms, &s, false, call, NULL);
}

static int
run_pause(int argc, char **argv)
{
	return run(&verb_pause, "paused", pause_one, argc, argv);
}

static int
run_resume(int argc, char **argv)
{
	return run(&verb_resume, NULL, resume_one, argc, argv);
}

const struct verb verb_pause = {
	.name = "pause",
	.summary = "Stops the CPUs of VMs; nothing is lost",
	.run = run_pause,
	.usage = "[vm…] [options]",
	.options = options,
	.text = "Without a name it asks on a terminal, and elsewhere pauses nothing.",
	.words = COMPLETE_VM,
};

const struct verb verb_resume = {
	.name = "resume",
	.aliases = "unpause",
	.summary = "Lets paused VMs go on",
	.run = run_resume,
	.usage = "[vm…] [options]",
	.options = options,
	.words = COMPLETE_VM,
};
