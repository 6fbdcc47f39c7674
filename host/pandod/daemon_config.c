#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/toml.h"
#include "host/pandod/daemon.h"

static int
read_pool(const char *path, const char *key, const struct toml *value,
	struct daemon_config *config, struct err *e)
{
	bool size = strcmp(key, "size") == 0;
	int64_t max = size ? COMMITS_POOL_MAX : INT64_C(1) << 30, n;

	if (!size && strcmp(key, "flat_mib") != 0)
		return err_set(e, -EINVAL,
			"%.300s:%u:%u: [pool] has no key \"%.64s\"; it has size, flat_mib",
			path, toml_line(value), toml_column(value), key);
	if (toml_i64(value, &n) < 0 || n < 0 || n > max)
		return err_set(e, -EINVAL, "%.300s:%u:%u: pool.%s must be 0 to %lld",
			path, toml_line(value), toml_column(value), key, (long long)max);
	if (size)
		config->commits.pool_size = (unsigned)n;
	else
		config->commits.materialized_mib = (uint64_t)n;
	return 0;
}

static int
read_scopes(const char *path, const char *key, const struct toml *value,
	struct daemon_config *config, struct err *e)
{
	static const struct {
		const char *word;
		enum scopes_use use;
	} uses[] = {{"auto", SCOPES_AUTO}, {"systemd", SCOPES_SYSTEMD},
		{"cgroup", SCOPES_CGROUP}, {"none", SCOPES_NONE}};
	const char *word;

	if (strcmp(key, "use") != 0)
		return err_set(e, -EINVAL,
			"%.300s:%u:%u: [scopes] has no key \"%.64s\"; it has use", path,
			toml_line(value), toml_column(value), key);
	for (size_t i = 0; i < 4 && toml_str(value, &word, NULL) == 0; i++)
		if (strcmp(word, uses[i].word) == 0) {
			config->scopes = uses[i].use;
			return 0;
		}
	return err_set(e, -EINVAL,
		"%.300s:%u:%u: scopes.use must be \"auto\", \"systemd\", \"cgroup\" or \"none\"",
		path, toml_line(value), toml_column(value));
}

int
daemon_settings(struct daemon_config *config, struct err *e)
{
	cleanup_toml struct toml *root = NULL;
	const struct toml *part, *value;
	const char *key, *table;
	char path[PATHS_MAX];
	int r = paths_format(path, sizeof(path), e, "%s/pandod.toml", config->tree.home);

	if (r < 0 || access(path, F_OK) < 0)
		return r;
	r = toml_parse_file(path, &root, e);
	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && (part = toml_member(root, i, &table)); i++) {
		bool pool = strcmp(table, "pool") == 0;

		if ((!pool && strcmp(table, "scopes") != 0) ||
			toml_type(part) != TOML_TABLE)
			return err_set(e, -EINVAL,
				"%.300s:%u:%u: unknown key \"%.64s\"; there are [pool] and [scopes]",
				path, toml_line(part), toml_column(part), table);
		for (size_t j = 0; r == 0 && (value = toml_member(part, j, &key)); j++)
			r = pool ? read_pool(path, key, value, config, e)
				 : read_scopes(path, key, value, config, e);
	}
	return r;
}
