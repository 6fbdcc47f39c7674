#include "guest-agent/identity/units.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "guest-agent/system/command_env.h"
#include "guest-agent/system/guest_machine.h"
#include "guest-agent/system/userdb.h"

#define FILE_MAX 65536
#define UNIT_NAME_MAX 255

int
units_restart(struct helper *h, struct err *e)
{
	static const char *const programs[] = {
		"/usr/libexec/pando/pando-units", "/usr/bin/systemctl", "/bin/systemctl"};
	static char program[PATH_MAX], verb[] = "try-restart";
	cleanup_env struct env env = {0};
	cleanup_free char *text = NULL;
	char *argv[UNITS_MAX + 3] = {program, verb}, *line, *rest;
	struct user root;
	unsigned n = 0;
	int r = machine_read(UNITS_FILE, FILE_MAX, &text, e);

	if (r)
		return r == -ENOENT ? 0 : r;
	for (line = strtok_r(text, "\n", &rest); line;
		line = strtok_r(NULL, "\n", &rest)) {
		line[strcspn(line, "#")] = 0;
		line += strspn(line, " \t\r");
		line[strcspn(line, " \t\r")] = 0;
		if (!*line)
			continue;
		/* systemd.unit(5); also no option. */
		if (strlen(line) > UNIT_NAME_MAX || *line == '-' || !strchr(line, '.') ||
			strspn(line,
				"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				"0123456789:-_.\\@") != strlen(line))
			return err_set(
				e, -EINVAL, UNITS_FILE ": \"%.64s\" is no unit", line);
		if (n == UNITS_MAX)
			return err_set(
				e, -E2BIG, UNITS_FILE ": more than %d units", UNITS_MAX);
		argv[2 + n++] = line;
	}
	if (!n)
		return 0;
	/* A guest that was given only the agent has systemctl, which says less. */
	for (size_t i = 0; i < sizeof(programs) / sizeof(programs[0]); i++)
		if (!access(machine_path(program, programs[i]), X_OK))
			break;
	r = user_find(NULL, false, &root, e);
	if (!r)
		r = command_env_build(&env, &root, NULL, NULL, e);
	if (!r)
		r = helper_start(h, "restarting what " UNITS_FILE " names", argv, env.v,
			UNITS_LIMIT_MS, e);
	return r ? r : 1;
}
