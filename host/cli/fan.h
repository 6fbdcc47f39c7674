/*
 * What branch and run-commit share: one or many VMs made of one thing. Their options, and
 * what they say when the VMs are there.
 */
#ifndef PANDO_HOST_CLI_FAN_H
#define PANDO_HOST_CLI_FAN_H

#include "common/env.h"
#include "host/cli/opt.h"
#include "host/client/client.h"

#define FAN_LABELS_MAX 64
#define FAN_COUNT_MAX 1024

enum { FAN_NO_WAIT = 256, FAN_COUNT, FAN_ENV, FAN_ENV_FILE, FAN_NAME, FAN_WAIT_FOR, FAN_KEEP };

/* shown, shown_name: the spelling of the alias's option that help tells; the other is
 * accepted, too, and --name. */
#define FAN_OPTIONS(thing, things, count_help, shown, shown_name, other, other_name) \
	{FAN_COUNT, "count", "N", count_help, COMPLETE_NOTHING}, \
		{'c', "checkout", NULL, "check the " thing " out in this folder", \
			COMPLETE_NOTHING}, \
		{shown, shown_name, "NAME", \
			"name the " thing "; with --count: NAME-0, NAME-1, …", \
			COMPLETE_NOTHING}, \
		{other, other_name, "NAME", NULL, COMPLETE_NOTHING}, \
		{FAN_NAME, "name", "NAME", NULL, COMPLETE_NOTHING}, \
		{'l', "label", "key=value", \
			"label the " things "; may be given several times", \
			COMPLETE_NOTHING}, \
		{FAN_ENV, "env", "NAME=value", \
			"environment variable; {index} and {id} in it are replaced; " \
			"may be given several times", \
			COMPLETE_NOTHING}, \
		{FAN_ENV_FILE, "env-file", "FILE", \
			"environment variables, as a shell reads them", COMPLETE_FILE}, \
		{FAN_NO_WAIT, "no-wait", NULL, \
			"return when their CPUs run, not when their agents are " \
			"ready", \
			COMPLETE_NOTHING}, \
	{ \
		0, NULL, NULL, NULL, COMPLETE_NOTHING \
	}

struct fan {
	struct client_branch spec; /* its labels and environment are those below */
	struct env env;
	const char *labels[FAN_LABELS_MAX];
	const char *name; /* of what they are made of; NULL: not said */
	bool checkout;
};

/* Reads all options and at most one word; another is an error with that sentence.
 * OPT_END, or what opt_leave() takes. fan_done() frees it, in each case. */
int fan_read(struct opt_scan *s, const char *one_word, struct fan *ret, struct err *e);
void fan_done(struct fan *f);
#define cleanup_fan __attribute__((cleanup(fan_done)))
/* The ids, or pandod's answer, what cannot be where environments are, and the checkout.
 */
void fan_print(const struct fan *f, const struct opt_scan *s,
	const struct client_vms *vms, const struct client_reply *reply);

#endif
