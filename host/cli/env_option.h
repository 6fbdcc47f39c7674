/*
 * --env and --env-file, as the verbs that make VMs take them.
 */
#ifndef PANDO_HOST_CLI_ENV_OPTION_H
#define PANDO_HOST_CLI_ENV_OPTION_H

#include "common/env.h"

/* "NAME=value"; "NAME" alone takes the value it has here. Later ones win. */
int cli_env_add(struct env *env, const char *arg, struct err *e);
/* A file as a shell reads it (common/env.h); "-": standard input. */
int cli_env_file(struct env *env, const char *path, struct err *e);
/* Says on stderr what /etc/environment cannot hold, by name, and where it is instead. */
void cli_env_tell(const struct env *env);

#endif
