/*
 * A program of the machine that the agent runs for its own ends: a hook, systemctl. It
 * has a time limit, at which all that it started is killed, and what it writes is read to
 * the end of it and thrown away but for the last few hundred bytes, which are for the
 * sentence when it fails. What it leaves running must have given up its output.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_HELPER_H
#define PANDO_GUEST_AGENT_SYSTEM_HELPER_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/err.h"
#include "guest-agent/system/loop.h"

#define HELPERS_MAX 8 /* at once */
#define HELPER_SAID_MAX 240

struct helper {
	bool runs;
	/* Called once, from the loop, when it has ended: 0, or -errno and why. It may
	 * start the next one. */
	void (*done)(struct helper *h, int r, const struct err *why);
	const char *what; /* borrowed: for sentences */
	pid_t pid;
	unsigned slot, limit_ms;
	uint64_t group_num;
	int group_fd; /* owned */
	bool timed_out;
	struct source pidfd, out;
	struct timer limit;
	char said[HELPER_SAID_MAX];
	size_t said_len;
};

/* argv[0] with a "/"; env NULL-terminated. h is the caller's, and stays while it runs. */
int helper_start(struct helper *h, const char *what, char *const *argv, char *const *env,
	unsigned limit_ms, struct err *e);
/* Kills it; done is not called. Nothing when it does not run. */
void helper_stop(struct helper *h);

#endif
