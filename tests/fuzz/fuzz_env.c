/*
 * Environment files. Whatever is read from one can be written, into two files; read back
 * those give the same; and what pam_env makes of the first (as the agent's own reader of
 * it does) is the same, too, with nothing beside it.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/env.h"
#include "guest-agent/system/userdb.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct env env = {0}, back = {0};
	struct environment pam = {0};
	char *text = malloc(size + 1), *one = NULL, *two = NULL;
	struct err e = {0};
	size_t n = 0;
	int r;

	memcpy(text, data, size);
	text[size] = 0;
	r = env_read(&env, "input", text, &e);
	if (r > 0 || (r < 0 && (e.code != r || !*e.msg)))
		abort();
	if (env_write(&env, false, &one, &e) || env_write(&env, true, &two, &e) ||
		env_read(&back, "one", one, &e) || env_read(&back, "two", two, &e) ||
		back.n != env.n || back.bytes != env.bytes)
		abort();
	environment_parse(&pam, one);
	for (size_t i = 0; i < env.n; i++) {
		char name[ENV_NAME_MAX + 1];
		size_t len = strcspn(env.v[i], "=");
		const char *got;

		memcpy(name, env.v[i], len);
		name[len] = 0;
		got = env_get(&back, name);
		if (!got || strcmp(got, env.v[i] + len + 1) != 0)
			abort();
		got = environment_get(&pam, name);
		if (!got != (env_held_back(env.v[i]) != NULL))
			abort();
		if (got && strcmp(got, env.v[i] + len + 1) != 0)
			abort();
		n += got != NULL;
		free(env_expand(env.v[i], 3, "0a1b2c3d4e5f"));
	}
	if (pam.n != n)
		abort();
	environment_done(&pam);
	env_done(&env);
	env_done(&back);
	free(text);
	free(one);
	free(two);
	return 0;
}
