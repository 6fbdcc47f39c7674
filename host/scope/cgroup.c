#include "host/scope/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define FILE_MAX (CGROUP_PATH_MAX + 256 + 64)

/* Field 5 of the mountinfo line whose type is cgroup2 (proc_pid_mountinfo(5)). */
static bool
find_mount(char *dst, size_t cap)
{
	cleanup_fclose FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[4096];

	while (f && fgets(line, sizeof(line), f)) {
		char root[256], mount[256];

		if (strstr(line, " - cgroup2 ") &&
			sscanf(line, "%*d %*d %*s %255s %255s", root, mount) == 2 &&
			strcmp(root, "/") == 0) {
			snprintf(dst, cap, "%s", mount);
			return true;
		}
	}
	return false;
}

/* The groups of a process: "0::/path" and, of v1, "4:memory:/path" lines. */
static char *
groups_of(pid_t pid)
{
	char path[48], *text = NULL;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	else
		snprintf(path, sizeof(path), "/proc/self/cgroup");
	return io_read_file(path, 1 << 16, &text, NULL, NULL) < 0 ? NULL : text;
}

bool
cgroup_find(pid_t pid, const char *name, char ret_path[static CGROUP_PATH_MAX])
{
	cleanup_free char *text = groups_of(pid);
	char *line, *rest;

	for (line = text ? strtok_r(text, "\n", &rest) : NULL; line;
		line = strtok_r(NULL, "\n", &rest)) {
		char *path = strchr(line, '/'), *last = strrchr(line, '/');
		bool ours =
			strncmp(line, "0::", 3) == 0 || strstr(line, ":name=systemd:");

		if (ours && path && strcmp(last + 1, name) == 0 &&
			strlen(path) < CGROUP_PATH_MAX) {
			strcpy(ret_path, path);
			return true;
		}
	}
	return false;
}

static int
path_of(char dst[static FILE_MAX], const struct cgroup *g, const char *path,
	const char *file, struct err *e)
{
	if (snprintf(dst, FILE_MAX, "%s%s%s%s", g->mount,
		    strcmp(path, "/") != 0 ? path : "", *file ? "/" : "",
		    file) >= FILE_MAX)
		return err_set(e, -ENAMETOOLONG, "%.200s: too long", path);
	return 0;
}

static int
write_file(const struct cgroup *g, const char *path, const char *file, const char *text,
	struct err *e)
{
	char name[FILE_MAX];
	cleanup_close int fd = -1;
	int r = path_of(name, g, path, file, e);

	if (r < 0)
		return r;
	fd = open(name, O_WRONLY | O_CLOEXEC);
	/* One write: the kernel takes each for itself. */
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		return err_sys(e, -errno, "%.300s", name);
	return 0;
}

static bool
has_word(const char *text, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = text; (at = strstr(at, word)); at += n)
		if ((at == text || at[-1] == ' ') &&
			(at[n] == ' ' || at[n] == '\n' || !at[n]))
			return true;
	return false;
}

/* Hands a controller down to the groups below; false: the kernel does not give it. It
 * cannot be handed down from a group that has processes of its own (but the root). */
static bool
hand_down(const struct cgroup *g, const char *path, const char *controller)
{
	cleanup_free char *text = NULL;
	char file[FILE_MAX], words[32];

	if (path_of(file, g, path, "cgroup.controllers", NULL) < 0 ||
		io_read_file(file, 4096, &text, NULL, NULL) < 0 ||
		!has_word(text, controller))
		return false;
	snprintf(words, sizeof(words), "+%s", controller);
	return write_file(g, path, "cgroup.subtree_control", words, NULL) == 0;
}

static int
make_slice(struct cgroup *g, struct err *e)
{
	char name[FILE_MAX];
	int r = path_of(name, g, g->slice, "", e);

	if (r < 0)
		return r;
	if (mkdir(name, 0755) < 0 && errno != EEXIST)
		return err_sys(e, -errno, "%.300s", name);
	return 0;
}

int
cgroup_open(const char *below, struct cgroup *ret, struct err *e)
{
	struct cgroup g = {.memory = false};
	cleanup_free char *text = NULL;
	char own[CGROUP_PATH_MAX], name[FILE_MAX], procs[FILE_MAX];
	int r;

	if (!find_mount(g.mount, sizeof(g.mount)))
		return err_set(e, -ENOENT, "no cgroup v2 is mounted");
	if (!below) {
		char *line;

		text = groups_of(0);
		line = !text			      ? NULL
		       : strncmp(text, "0::", 3) == 0 ? text
						      : strstr(text, "\n0::");
		if (!line)
			return err_set(e, -ENOENT, "pandod is in no cgroup of v2");
		line = strchr(line, '/');
		line[strcspn(line, "\n")] = '\0';
		below = line;
	}
	if (snprintf(own, sizeof(own), "%s", below) >= (int)sizeof(own) ||
		snprintf(g.slice, sizeof(g.slice), "%s/" CGROUP_SLICE,
			strcmp(own, "/") != 0 ? own : "") >= (int)sizeof(g.slice))
		return err_set(e, -ENAMETOOLONG, "%.200s: too long", below);
	/* Who moves a process needs this file of the group above both. */
	r = path_of(procs, &g, own, "cgroup.procs", e);
	if (r == 0)
		r = path_of(name, &g, own, "", e);
	if (r < 0)
		return r;
	if (access(name, W_OK) < 0 || access(procs, W_OK) < 0)
		return err_sys(e, -errno, "%.300s", name);
	r = make_slice(&g, e);
	if (r < 0)
		return r;
	g.memory = hand_down(&g, own, "memory") && hand_down(&g, g.slice, "memory");
	g.cpu = hand_down(&g, own, "cpu") && hand_down(&g, g.slice, "cpu");
	*ret = g;
	return 0;
}

void
cgroup_close(const struct cgroup *g)
{
	char name[FILE_MAX];

	if (path_of(name, g, g->slice, "", NULL) == 0)
		rmdir(name);
}

int
cgroup_limit(const struct cgroup *g, const char *path, uint64_t memory_max, struct err *e)
{
	char text[32];

	if (!g->memory)
		return 0;
	if (memory_max == UINT64_MAX)
		snprintf(text, sizeof(text), "max");
	else
		snprintf(text, sizeof(text), "%" PRIu64, memory_max);
	return write_file(g, path, "memory.max", text, e);
}

bool
cgroup_memory_max(const char *path, uint64_t *ret)
{
	struct cgroup g = {.memory = true};
	cleanup_free char *text = NULL;
	char file[FILE_MAX];

	return find_mount(g.mount, sizeof(g.mount)) &&
	       path_of(file, &g, path, "memory.max", NULL) == 0 &&
	       io_read_file(file, 64, &text, NULL, NULL) == 0 &&
	       sscanf(text, "%" SCNu64, ret) == 1;
}

static int
make_group(const struct cgroup *g, const char *path, struct err *e)
{
	struct cgroup again = *g;
	char name[FILE_MAX];
	int r = path_of(name, g, path, "", e);

	if (r < 0)
		return r;
	/* The slice may have been removed by the last one of another pandod. */
	for (int i = 0; mkdir(name, 0755) < 0 && errno != EEXIST; i++) {
		r = -errno;
		if (r != -ENOENT || i == 3 || make_slice(&again, NULL) < 0)
			return err_sys(e, r, "%.300s", name);
		if (g->memory)
			hand_down(g, g->slice, "memory");
		if (g->cpu)
			hand_down(g, g->slice, "cpu");
	}
	return 0;
}

int
cgroup_enter(const struct cgroup *g, const char *name, pid_t pid, uint64_t memory_max,
	uint64_t cpu_weight, char ret_path[static CGROUP_PATH_MAX], struct err *e)
{
	char text[32];
	int r;

	if (snprintf(ret_path, CGROUP_PATH_MAX, "%s/%s", g->slice, name) >=
		CGROUP_PATH_MAX)
		return err_set(e, -ENAMETOOLONG, "%.200s: too long", name);
	/* Twice: somebody who sweeps may have taken the new one for an empty one. */
	for (int i = 0;; i++) {
		r = make_group(g, ret_path, e);
		if (r == 0)
			r = cgroup_limit(g, ret_path, memory_max, e);
		snprintf(text, sizeof(text), "%" PRIu64, cpu_weight);
		if (r == 0 && g->cpu)
			r = write_file(g, ret_path, "cpu.weight", text, e);
		snprintf(text, sizeof(text), "%d", (int)pid);
		if (r == 0)
			r = write_file(g, ret_path, "cgroup.procs", text, e);
		if (r != -ENOENT || i == 1)
			break;
	}
	if (r < 0)
		cgroup_remove(g, ret_path, NULL);
	return r;
}

int
cgroup_remove(const struct cgroup *g, const char *path, struct err *e)
{
	char name[FILE_MAX];
	int r = path_of(name, g, path, "", e);

	if (r < 0)
		return r;
	if (rmdir(name) == 0 || errno == ENOENT)
		return 0;
	return err_sys(e, -errno, "%.300s", name);
}

void
cgroup_sweep(const struct cgroup *g)
{
	char name[FILE_MAX];
	cleanup_closedir DIR *d = NULL;
	struct dirent *de;

	if (path_of(name, g, g->slice, "", NULL) < 0)
		return;
	d = opendir(name);
	while (d && (de = readdir(d))) {
		size_t n = strlen(de->d_name);

		if (n > 12 && strncmp(de->d_name, "pando-", 6) == 0 &&
			strcmp(de->d_name + n - 6, ".scope") == 0)
			unlinkat(dirfd(d), de->d_name, AT_REMOVEDIR);
	}
}
