/* One call for each of several VMs, as in `pando stop a b c`. */
#ifndef PANDO_HOST_CLI_MANY_H
#define PANDO_HOST_CLI_MANY_H

#include "host/cli/opt.h"
#include "host/client/client.h"

#define MANY_VMS_MAX 1024

/* Asks for one VM. c is the calling thread's own; several are asked for at once. */
typedef int many_call(struct client *c, const struct client_vm *vm, void *ctx,
	struct client_vm *ret, struct client_reply *reply, struct err *e);

struct many {
	const char *names[MANY_VMS_MAX]; /* borrowed */
	size_t n;			 /* 0: the one that pick_vm() picks */
	/* "stopped": what the verb ends is not done to a VM that nobody named, unless a person
	   at a terminal says yes. NULL: the verb takes nothing away. */
	const char *past;
};

/* opt_one_word() for these verbs: keeps a word in m and returns OPT_WORD; any other key,
 * and a word too many, is what opt_leave() is called with. */
int many_word(struct opt_scan *s, int key, struct many *m, struct err *e);

/* Every name is looked up before anything is asked for, then all are asked for, a few at a
 * time. Prints the ids of those that did it, in the order of their names, or what pandod
 * answered (of several: {"vms":[…]}), and a sentence for each failure. progress: what pandod
 * says meanwhile is shown, where it is one VM. Returns the exit status, of the first failure. */
int many_run(const struct many *m, const struct opt_scan *s, bool progress,
	many_call *call, void *ctx);

#endif
