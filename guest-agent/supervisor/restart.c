#include "guest-agent/supervisor/restart.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "guest-agent/system/command_env.h"
#include "guest-agent/system/guest_machine.h"
#include "guest-agent/system/userdb.h"

#define KEPT_FOLDER "/var/lib/pando/rpc"
/* In a file system of the boot's own. */
#define DONE_FILE "/run/pando/agents-started"

int
agents_start(struct helper *h, struct err *e)
{
	static char program[] = "/proc/self/exe", verb[] = "rpc", boot[] = "boot";
	static char option[PATH_MAX + 16];
	char *argv[] = {program, verb, boot, option, NULL};
	cleanup_env struct env env = {0};
	char path[PATH_MAX], root[PATH_MAX];
	struct user user;
	size_t n;
	int r;

	if (!access(machine_path(path, DONE_FILE), F_OK))
		return 0;
	r = machine_write(DONE_FILE, "", 0, 0644, e);
	if (r || access(machine_path(path, KEPT_FOLDER), F_OK))
		return r;
	machine_path(root, "/");
	n = strlen(root);
	if (n > 1)
		root[n - 1] = 0;
	snprintf(option, sizeof(option), "--root=%s", root);
	r = user_find(NULL, false, &user, e);
	if (!r)
		r = command_env_build(&env, &user, NULL, NULL, e);
	if (!r)
		r = helper_start(h, "starting coding agents again", argv, env.v,
			AGENTS_LIMIT_MS, e);
	return r ? r : 1;
}
