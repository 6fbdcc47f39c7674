#include "host/client/project_config.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/paths.h"

void
config_done(struct config *c)
{
	free(c->path);
	free(c->rootfs);
	free(c->kernel);
	*c = (struct config){0};
}

/* One key of the file. */
struct key {
	const char *table, *name;
	size_t number; /* offset of a uint64_t in struct config, or … */
	size_t text;   /* … of a char *, whichever is not 0 */
	uint64_t min, max;
	const char *unit;
};

static const struct key keys[] = {
	{"machine", "mem_size_mib", offsetof(struct config, mem_mib), 0,
		CONFIG_MEM_MIN_MIB, CONFIG_MEM_MAX_MIB, " MiB"},
	{"machine", "vcpu_count", offsetof(struct config, vcpus), 0, 1, CONFIG_VCPUS_MAX,
		""},
	{"machine", "fs_size_vm_mib", offsetof(struct config, disk_mib), 0,
		CONFIG_DISK_MIN_MIB, CONFIG_DISK_MAX_MIB, " MiB"},
	{"machine", "disk_bps", offsetof(struct config, disk_bps), 0, CONFIG_DISK_BPS_MIN,
		CONFIG_DISK_BPS_MAX, " bytes in a second"},
	{"machine", "disk_iops", offsetof(struct config, disk_iops), 0, 1,
		CONFIG_DISK_IOPS_MAX, " requests in a second"},
	{"rootfs", "name", 0, offsetof(struct config, rootfs), 0, 0, ""},
	{"kernel", "name", 0, offsetof(struct config, kernel), 0, 0, ""},
};
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

static int
bad(const char *file, const struct toml *at, struct err *e, const char *sentence)
{
	return err_set(e, -EINVAL, "%s:%u:%u: %s", file, toml_line(at), toml_column(at),
		sentence);
}

/* "mem_size_mib, vcpu_count and fs_size_vm_mib" */
static void
known_keys(const char *table, char *dst, size_t cap)
{
	size_t n = 0;

	dst[0] = '\0';
	for (size_t i = 0; i < N_KEYS; i++)
		if (strcmp(keys[i].table, table) == 0)
			n += (size_t)snprintf(dst + n, n < cap ? cap - n : 0, "%s%s",
				n ? ", " : "", keys[i].name);
}

static int
read_number(const char *file, const struct key *k, const struct toml *value,
	struct config *c, struct err *e)
{
	char sentence[300];
	int64_t v;

	if (toml_i64(value, &v) < 0) {
		snprintf(sentence, sizeof(sentence), "%s.%s must be an integer, not %s",
			k->table, k->name, toml_type_name(toml_type(value)));
		return bad(file, value, e, sentence);
	}
	if (v < (int64_t)k->min || v > (int64_t)k->max) {
		snprintf(sentence, sizeof(sentence),
			"%s.%s must be %llu to %llu%s, not %lld", k->table, k->name,
			(unsigned long long)k->min, (unsigned long long)k->max, k->unit,
			(long long)v);
		return bad(file, value, e, sentence);
	}
	*(uint64_t *)(void *)((char *)c + k->number) = (uint64_t)v;
	return 0;
}

static int
read_text(const char *file, const struct key *k, const struct toml *value,
	struct config *c, struct err *e)
{
	char **field = (char **)(void *)((char *)c + k->text);
	char sentence[300], *copy;
	const char *text;

	if (toml_type(value) != TOML_STRING) {
		snprintf(sentence, sizeof(sentence), "%s.%s must be a string, not %s",
			k->table, k->name, toml_type_name(toml_type(value)));
		return bad(file, value, e, sentence);
	}
	if (toml_str(value, &text, NULL) < 0 || !text[0]) {
		snprintf(sentence, sizeof(sentence),
			"%s.%s must be the name of an image or a path", k->table,
			k->name);
		return bad(file, value, e, sentence);
	}
	copy = strdup(text);
	if (!copy)
		return err_sys(e, -ENOMEM, "%s", file);
	free(*field);
	*field = copy;
	return 0;
}

int
config_read_table(const char *file, const char *key, const struct toml *table,
	struct config *ret, struct err *e)
{
	const struct toml *value;
	const char *name;
	char sentence[400], known[200];

	known_keys(key, known, sizeof(known));
	if (!known[0])
		return -ENOENT;
	if (toml_type(table) != TOML_TABLE) {
		snprintf(sentence, sizeof(sentence), "%s must be a table, [%s], not %s",
			key, key, toml_type_name(toml_type(table)));
		return bad(file, table, e, sentence);
	}
	for (size_t i = 0; (value = toml_member(table, i, &name)); i++) {
		const struct key *k = keys;
		int r;

		while (k < keys + N_KEYS &&
			(strcmp(k->table, key) != 0 || strcmp(k->name, name) != 0))
			k++;
		if (k == keys + N_KEYS) {
			snprintf(sentence, sizeof(sentence),
				"[%s] has no key \"%.64s\"; it has %s", key, name, known);
			return bad(file, value, e, sentence);
		}
		r = k->number ? read_number(file, k, value, ret, e)
			      : read_text(file, k, value, ret, e);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
load(const char *path, struct config *ret, struct err *e)
{
	cleanup_toml struct toml *root = NULL;
	cleanup_config struct config c = {0};
	const char *base = strrchr(path, '/'), *key;
	const struct toml *value;
	int r;

	r = toml_parse_file(path, &root, e);
	if (r < 0)
		return r;
	for (size_t i = 0; (value = toml_member(root, i, &key)); i++) {
		char sentence[300];

		r = config_read_table(path, key, value, &c, e);
		if (r == -ENOENT) {
			snprintf(sentence, sizeof(sentence),
				"unknown key \"%.64s\"; there are [machine], [rootfs] and [kernel]",
				key);
			return bad(path, value, e, sentence);
		}
		if (r < 0)
			return r;
	}
	if (strcmp(base ? base + 1 : path, "vers.toml") == 0 && c.kernel &&
		strcmp(c.kernel, "default.bin") == 0)
		c.kernel[strlen("default")] = '\0';
	c.path = strdup(path);
	if (!c.path)
		return err_sys(e, -ENOMEM, "%s", path);
	*ret = c;
	c = (struct config){0};
	return 0;
}

int
config_load(const char *path, const char *folder, struct config *ret, struct err *e)
{
	static const char *const names[] = {"pando.toml", "vers.toml"};
	char file[PATHS_MAX];
	int r;

	if (path)
		return load(path, ret, e);
	for (size_t i = 0; i < 2; i++) {
		if (strcmp(folder, ".") == 0)
			r = paths_format(file, sizeof(file), e, "%s", names[i]);
		else
			r = paths_format(
				file, sizeof(file), e, "%s/%s", folder, names[i]);
		if (r < 0)
			return r;
		/* A broken link or a file that may not be read is worth a sentence; none
		 * is not. */
		if (faccessat(AT_FDCWD, file, F_OK, AT_SYMLINK_NOFOLLOW) == 0)
			return load(file, ret, e);
	}
	*ret = (struct config){0};
	return 0;
}
