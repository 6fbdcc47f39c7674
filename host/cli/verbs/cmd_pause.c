/* pause and resume: the same words, two calls. */
#include <stdio.h>

#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

extern const struct verb verb_pause, verb_resume;

static const struct opt options[] = {
	OPT_BUSY,
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

typedef int call(struct client *c, const char *vm, struct client_vm *ret,
	struct client_reply *reply, struct err *e);

static int
run_one(const struct verb *v, call *fn, int argc, char **argv)
{
	struct opt_scan s = opt_scan(v, argc, argv);
	cleanup_client_vm struct client_vm vm = {0}, now = {0};
	cleanup_client_reply struct client_reply reply = {0};
	cleanup_client struct client *c = NULL;
	const char *name = NULL;
	struct err e = {0};
	int key;

	while ((key = opt_next(&s, &e)) != OPT_END)
		if ((key = opt_one_word(&s, key, &name, &e)) != OPT_WORD)
			return opt_leave(&s, key, &e);
	if (pick_open(name, &c, &vm, NULL, &e) < 0)
		return out_fail(&e);
	client_busy_timeout(c, s.has_busy, s.busy_timeout_ms);
	if (fn(c, vm.id, &now, &reply, &e) < 0)
		return out_fail(&e);
	puts(s.json ? reply.text : now.id);
	return EXIT_OK;
}

static int
run_pause(int argc, char **argv)
{
	return run_one(&verb_pause, client_pause, argc, argv);
}

static int
run_resume(int argc, char **argv)
{
	return run_one(&verb_resume, client_resume, argc, argv);
}

const struct verb verb_pause = {
	.name = "pause",
	.summary = "Stops a VM's CPUs; nothing is lost",
	.run = run_pause,
	.usage = "[vm] [options]",
	.options = options,
	.words = COMPLETE_VM,
};

const struct verb verb_resume = {
	.name = "resume",
	.summary = "Lets a paused VM go on",
	.run = run_resume,
	.usage = "[vm] [options]",
	.options = options,
	.words = COMPLETE_VM,
};
