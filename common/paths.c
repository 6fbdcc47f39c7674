#include "common/paths.h"

#include <errno.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int
paths_format(char *dst, size_t cap, struct err *e, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(dst, cap, fmt, ap);
	va_end(ap);
	if (n < 0 || (size_t)n >= cap)
		return err_set(e, -ENAMETOOLONG,
			"path \"%.60s…\" is too long (at most %zu bytes)", dst, cap - 1);
	return 0;
}

static void
trim_slashes(char *path)
{
	size_t len = strlen(path);
	while (len > 1 && path[len - 1] == '/')
		path[--len] = '\0';
}

static int
home_folder(char *dst, size_t cap, struct err *e)
{
	const char *home = getenv("HOME");
	if (home && home[0] == '/')
		return paths_format(dst, cap, e, "%s", home);
	char buf[4096];
	struct passwd pw, *found = NULL;
	if (getpwuid_r(getuid(), &pw, buf, sizeof(buf), &found) == 0 && found &&
		found->pw_dir && found->pw_dir[0] == '/')
		return paths_format(dst, cap, e, "%s", found->pw_dir);
	return err_set(e, -EINVAL,
		"HOME is not set: set it, or PANDO_HOME, to an absolute path");
}

/* The variable itself, else an XDG base (or its place below the home folder) with a
 * suffix. */
static int
find_folder(const char *own, const char *xdg, const char *below_home, const char *suffix,
	char *dst, size_t cap, struct err *e)
{
	char base[PATHS_MAX];
	int r;
	const char *v = getenv(own);
	if (v && *v) {
		if (v[0] != '/')
			return err_set(e, -EINVAL, "%s=\"%.80s\" is not an absolute path",
				own, v);
		r = paths_format(dst, cap, e, "%s", v);
		if (r == 0)
			trim_slashes(dst);
		return r;
	}
	v = getenv(xdg);
	if (v && v[0] == '/') /* the XDG specification: a relative one is to be ignored */
		return paths_format(dst, cap, e, "%s/%s", v, suffix);
	r = home_folder(base, sizeof(base), e);
	if (r < 0)
		return r;
	return paths_format(dst, cap, e, "%s/%s/%s", base, below_home, suffix);
}

int
paths_home(char *dst, size_t cap, struct err *e)
{
	char path[PATHS_MAX];
	int r = find_folder("PANDO_HOME", "XDG_DATA_HOME", ".local/share", "pando", path,
		sizeof(path), e);
	if (r < 0)
		return r;
	if (strlen(path) > PATHS_HOME_MAX)
		return err_set(e, -ENAMETOOLONG,
			"PANDO_HOME \"%.100s\" has %zu bytes; sockets below it allow at most %d: set PANDO_HOME to a shorter path",
			path, strlen(path), PATHS_HOME_MAX);
	return paths_format(dst, cap, e, "%s", path);
}

int
paths_images(char *dst, size_t cap, struct err *e)
{
	return find_folder(
		"PANDO_IMAGES", "XDG_CACHE_HOME", ".cache", "pando/images", dst, cap, e);
}

int
paths_socket(char *dst, size_t cap, struct err *e)
{
	char home[PATHS_MAX];
	int r = paths_home(home, sizeof(home), e);
	if (r < 0)
		return r;
	return paths_format(dst, cap, e, "%s/pandod.sock", home);
}

int
paths_program(const char *relative, char *dst, size_t cap, struct err *e)
{
	char exe[PATHS_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	if (n < 0)
		return err_sys(e, -errno, "/proc/self/exe");
	exe[n] = '\0';
	for (int i = 0; i < 2; i++) {
		char *slash = strrchr(exe, '/');
		if (!slash)
			return err_set(e, -ENOENT,
				"cannot tell where this program is installed");
		*slash = '\0';
	}
	return paths_format(dst, cap, e, "%s/%s", exe, relative);
}
