/*
 * The environment of what the agent starts: commands, hooks, coding agents. It is that of a
 * login: defaults, the machine's locale, /etc/environment as PAM reads it, and what that
 * file cannot hold (common/env.h).
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_COMMAND_ENV_H
#define PANDO_GUEST_AGENT_SYSTEM_COMMAND_ENV_H

#include "common/env.h"
#include "common/err.h"
#include "guest-agent/system/userdb.h"

/* What a golden image has for Node's random numbers in branches, and the option that loads
 * it. */
#define COMMAND_ENV_NODE_FILE "/usr/lib/pando/node-random.cjs"
#define COMMAND_ENV_NODE_OPTION "--require=" COMMAND_ENV_NODE_FILE
/* Puts that option before what NODE_OPTIONS says, where the machine has the file. Out of
 * memory: env->failed. */
void command_env_reach_node(struct env *env);

/* Sets all that over what is there, and given (NULL-terminated, may be NULL) over that.
 * term: with a terminal, else NULL. -ENOMEM. */
int command_env_build(struct env *env, const struct user *u, const char *term,
	char *const *given, struct err *e);

#endif
