#include "host/cli/env_option.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"

#define FILE_MAX (1u << 20)

int
cli_env_add(struct env *env, const char *arg, struct err *e)
{
	cleanup_free char *entry = NULL;
	const char *value;

	if (strchr(arg, '='))
		return env_set(env, arg, e);
	value = getenv(arg);
	if (!value)
		return err_set(e, -EINVAL,
			"--env %.64s: it is not set here; --env NAME=value gives it a value",
			arg);
	if (asprintf(&entry, "%s=%s", arg, value) < 0) {
		entry = NULL;
		return err_sys(e, -ENOMEM, "--env");
	}
	return env_set(env, entry, e);
}

int
cli_env_file(struct env *env, const char *path, struct err *e)
{
	cleanup_free char *text = NULL;
	bool is_stdin = strcmp(path, "-") == 0;
	size_t len;
	int r = io_read_file(is_stdin ? "/dev/stdin" : path, FILE_MAX, &text, &len, e);

	if (r < 0)
		return r;
	if (strlen(text) != len)
		return err_set(e, -EINVAL, "%.300s: it has a NUL byte in it", path);
	return env_read(env, is_stdin ? "standard input" : path, text, e);
}

void
cli_env_tell(const struct env *env)
{
	for (size_t i = 0; i < env->n; i++) {
		const char *why = env_held_back(env->v[i]);

		if (why)
			fprintf(stderr,
				"pando: %.*s has %s, which not all readers of /etc/environment understand: commands get it, and it is in the guest's /etc/pando/environment\n",
				(int)strcspn(env->v[i], "="), env->v[i], why);
	}
}
