#include "guest-agent/system/command_env.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "guest-agent/system/guest_machine.h"

#define FILE_MAX (1u << 20)
#define LOCALE_DEFAULT "C.UTF-8"

/* The locale as a login has it, from Debian's file or systemd's. Where neither names one, text
 * is UTF-8 all the same: in the locale "C" tmux shows "_" for every other sign, and Python and
 * Perl read file names as ASCII. */
static void
set_locale(struct env *env)
{
	static const char *const files[] = {"/etc/locale.conf", "/etc/default/locale"};

	env_put_value(env, "LANG", LOCALE_DEFAULT);
	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		cleanup_free char *text = NULL;

		if (!machine_read(files[i], FILE_MAX, &text, NULL))
			env_read_pam(env, text);
	}
}

void
command_env_reach_node(struct env *env)
{
	const char *given = env_get(env, "NODE_OPTIONS");
	cleanup_free char *all = NULL;
	char path[PATH_MAX];

	if (access(machine_path(path, COMMAND_ENV_NODE_FILE), F_OK) ||
		(given && strstr(given, COMMAND_ENV_NODE_OPTION)))
		return;
	if (asprintf(&all, COMMAND_ENV_NODE_OPTION "%s%s", given && *given ? " " : "",
		    given ? given : "") < 0) {
		all = NULL;
		env->failed = true;
		return;
	}
	env_put_value(env, "NODE_OPTIONS", all);
}

int
command_env_build(struct env *env, const struct user *u, const char *term,
	char *const *given, struct err *e)
{
	cleanup_free char *text = NULL, *rest = NULL;
	cleanup_env struct env held_back = {0};

	env_put_value(env, "PATH",
		u->uid ? "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
		       : "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
	env_put_value(env, "HOME", u->home);
	env_put_value(env, "USER", u->name);
	env_put_value(env, "LOGNAME", u->name);
	env_put_value(env, "SHELL", u->shell);
	if (term)
		env_put_value(env, "TERM", term);
	set_locale(env);
	/* None, or one that cannot be read: then without. */
	if (!machine_read("/etc/environment", FILE_MAX, &text, NULL))
		env_read_pam(env, text);
	if (!machine_read("/etc/pando/environment", FILE_MAX, &rest, NULL) &&
		!env_read(&held_back, "", rest, NULL))
		for (size_t i = 0; i < held_back.n; i++)
			env_put(env, held_back.v[i]);
	for (; given && *given; given++)
		env_put(env, *given);
	command_env_reach_node(env);
	return env->failed ? err_sys(e, -ENOMEM, "the command's environment") : 0;
}
