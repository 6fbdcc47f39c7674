#include <string.h>
#include <unistd.h>

#include "host/testvm/machine_copy.h"

static bool
has(const char *folder, const char *name)
{
	char path[PATHS_MAX];

	return paths_format(path, sizeof(path), NULL, "%s/%s", folder, name) == 0 &&
	       access(path, F_OK) == 0;
}

/* a is b, or above it. */
static bool
holds(const char *a, const char *b)
{
	size_t n = strlen(a);

	return strcmp(a, "/") == 0 ||
	       (strncmp(a, b, n) == 0 && (b[n] == '\0' || b[n] == '/'));
}

/* Whether a folder of that name in the machine is the machine's own. */
static bool
is_the_systems(const char *folder)
{
	/* With everything below, and only themselves. */
	static const char *const trees[] = {"/bin", "/boot", "/dev", "/etc", "/lib",
		"/lib32", "/lib64", "/libx32", "/lost+found", "/proc", "/run", "/sbin",
		"/sys", "/usr", "/var/lib/dpkg", "/var/lib/pando", NULL};
	static const char *const alone[] = {"/home", "/media", "/mnt", "/opt", "/root",
		"/srv", "/tmp", "/usr", "/var", "/var/cache", "/var/lib", "/var/log",
		"/var/tmp", NULL};

	for (const char *const *t = trees; *t; t++)
		if (holds(*t, folder) && !holds("/usr/src", folder) &&
			!holds("/usr/local", folder))
			return true;
	for (const char *const *a = alone; *a; a++)
		if (strcmp(*a, folder) == 0)
			return true;
	return strcmp(folder, "/") == 0 || strcmp(folder, "/usr/local") == 0;
}

int
machine_project(const char *folder, const char *home, char dst[PATHS_MAX], struct err *e)
{
	char at[PATHS_MAX];
	int r = paths_format(at, sizeof(at), e, "%s", folder);

	if (r < 0)
		return r;
	for (;;) {
		char *slash;

		if (is_the_systems(at) || (home && *home && holds(at, home)))
			break;
		if (has(at, ".git") || has(at, "pando.toml") || has(at, "vers.toml")) {
			r = paths_format(dst, PATHS_MAX, e, "%s", at);
			return r < 0 ? r : 1;
		}
		slash = strrchr(at, '/');
		if (!slash || slash == at)
			break;
		*slash = '\0';
	}
	if (is_the_systems(folder) || (home && *home && holds(folder, home)))
		return 0;
	r = paths_format(dst, PATHS_MAX, e, "%s", folder);
	return r < 0 ? r : 1;
}
