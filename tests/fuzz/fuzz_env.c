/*
 * Environment files, in both readings. Whatever is read as a shell does can be written, into
 * two files; read back those give the same; and the reading of pam_env makes the same of the
 * first, with nothing beside it. That reading takes anything, and what it sets has a name,
 * once.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/env.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
read_as_pam(const char *text)
{
	struct env env = {0};
	size_t bytes = 0;

	env_put(&env, "PATH=/bin");
	env_read_pam(&env, text);
	if (env.failed || (env.v && env.v[env.n]))
		abort();
	for (size_t i = 0; i < env.n; i++) {
		size_t len = strspn(env.v[i],
			"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
		char *name = strndup(env.v[i], len);

		if (!name || !len || env.v[i][len] != '=' || strchr(env.v[i], '\n') ||
			strchr(env.v[i], '#') ||
			env_get(&env, name) != env.v[i] + len + 1)
			abort();
		bytes += strlen(env.v[i]) + 1;
		free(name);
	}
	if (bytes != env.bytes)
		abort();
	env_done(&env);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct env env = {0}, back = {0}, pam = {0};
	char *text = malloc(size + 1), *one = NULL, *two = NULL;
	struct err e = {0};
	size_t n = 0;
	int r;

	memcpy(text, data, size);
	text[size] = 0;
	read_as_pam(text);
	r = env_read(&env, "input", text, &e);
	if (r > 0 || (r < 0 && (e.code != r || !*e.msg)))
		abort();
	if (env_write(&env, false, &one, &e) || env_write(&env, true, &two, &e) ||
		env_read(&back, "one", one, &e) || env_read(&back, "two", two, &e) ||
		back.n != env.n || back.bytes != env.bytes)
		abort();
	env_read_pam(&pam, one);
	for (size_t i = 0; i < env.n; i++) {
		char name[ENV_NAME_MAX + 1];
		size_t len = strcspn(env.v[i], "=");
		const char *got;

		memcpy(name, env.v[i], len);
		name[len] = 0;
		got = env_get(&back, name);
		if (!got || strcmp(got, env.v[i] + len + 1) != 0)
			abort();
		got = env_get(&pam, name);
		if (!got != (env_held_back(env.v[i]) != NULL))
			abort();
		if (got && strcmp(got, env.v[i] + len + 1) != 0)
			abort();
		n += got != NULL;
		free(env_expand(env.v[i], 3, "0a1b2c3d4e5f"));
	}
	if (pam.n != n)
		abort();
	env_done(&pam);
	env_done(&env);
	env_done(&back);
	free(text);
	free(one);
	free(two);
	return 0;
}
