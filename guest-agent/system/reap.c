#include "guest-agent/system/reap.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define PREFIX "pando-exec-"
#define RPC_PREFIX "pando-rpc-"
#define PIDS_MAX 4096
#define ROUNDS_MAX 64
/* Killed processes need a moment to be gone, and are not waited for longer than this. */
#define GONE_MS 1000
/* Groups in groups, as containers in a program make them. */
#define DEPTH_MAX 16

static int own_group = -1;
static char own_path[1024], mount_path[256];
static bool leftovers;

/* Where the v2 hierarchy is mounted: field 5 of the mountinfo line whose type is cgroup2
 * (proc_pid_mountinfo(5)). */
static bool
find_mount(char *dst, size_t cap)
{
	cleanup_fclose FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[1024];

	while (f && fgets(line, sizeof(line), f)) {
		char *type = strstr(line, " - cgroup2 ");
		char root[256], mount[256];

		if (type && sscanf(line, "%*d %*d %*s %255s %255s", root, mount) == 2 &&
			strcmp(root, "/") == 0) {
			snprintf(dst, cap, "%s", mount);
			return true;
		}
	}
	return false;
}

/* The path in the v2 hierarchy, of what /proc/<pid>/cgroup says, which it cuts off. */
static char *
v2_path(char *groups)
{
	char *at = strncmp(groups, "0::", 3) == 0 ? groups : strstr(groups, "\n0::");

	if (!at)
		return NULL;
	at = strchr(at, ':') + 2;
	at[strcspn(at, "\n")] = 0;
	return at;
}

void
reap_init(void)
{
	cleanup_free char *groups = NULL;
	char *own, *at;

	if (!find_mount(mount_path, sizeof(mount_path)) ||
		io_read_file("/proc/self/cgroup", 65536, &groups, NULL, NULL))
		return;
	own = v2_path(groups);
	if (!own)
		return;
	/* Started by a command that has a group of its own: the groups of others are beside
	 * that, not in it, for it may be killed as a whole. */
	if ((at = strstr(own, "/" PREFIX)) || (at = strstr(own, "/" RPC_PREFIX)))
		*at = 0;
	if (snprintf(own_path, sizeof(own_path), "%s%s", mount_path,
		    strcmp(own, "/") != 0 ? own : "") >= (int)sizeof(own_path))
		return;
	own_group = open(own_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	leftovers = own_group >= 0; /* of an agent before this one */
}

static void
group_name(char *dst, size_t cap, uint64_t num)
{
	snprintf(dst, cap, PREFIX "%016" PRIx64, num);
}

/* Empty groups whose last process ended after its command did. */
static void
sweep(void)
{
	cleanup_closedir DIR *d = NULL;
	struct dirent *de;
	int fd;

	if (!leftovers)
		return;
	leftovers = false;
	fd = openat(own_group, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	d = fdopendir(fd);
	if (!d) {
		close(fd);
		return;
	}
	while ((de = readdir(d)))
		if (strncmp(de->d_name, PREFIX, strlen(PREFIX)) == 0 &&
			unlinkat(own_group, de->d_name, AT_REMOVEDIR))
			leftovers = true;
}

uint64_t
reap_group_number(void)
{
	static uint64_t last;
	uint64_t number = 0;

	/* Early in a boot there may be no random numbers yet, and no group of before. */
	if (getrandom(&number, sizeof(number), GRND_NONBLOCK) != (ssize_t)sizeof(number))
		number = io_now_ns() << 8 | (++last & 0xff);
	return number | 1ull << 63;
}

int
reap_group_open(uint64_t num)
{
	char name[64];

	if (own_group < 0)
		return -1;
	group_name(name, sizeof(name), num);
	return openat(own_group, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

int
reap_group_make(uint64_t num)
{
	char name[64];

	if (own_group < 0)
		return -1;
	sweep();
	group_name(name, sizeof(name), num);
	if (mkdirat(own_group, name, 0755))
		return -1;
	return openat(own_group, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static bool
group_kill(int group_fd)
{
	cleanup_close int fd = openat(group_fd, "cgroup.kill", O_WRONLY | O_CLOEXEC);

	return fd >= 0 && write(fd, "1", 1) == 1; /* Linux 5.14 */
}

/* pid, parent, session from /proc/<pid>/stat; the name in it may hold anything, so from
 * its last ")" on. */
static bool
read_stat(int proc, const char *name, pid_t *parent, pid_t *session)
{
	char path[64], text[512], *at, state;
	int pgrp;
	ssize_t n;

	snprintf(path, sizeof(path), "%.20s/stat", name);
	cleanup_close int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : io_read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = 0;
	at = strrchr(text, ')');
	return at &&
	       sscanf(at + 1, " %c %d %d %d", &state, parent, &pgrp, session) == 4 &&
	       state != 'Z' && state != 'X';
}

/* Kills the group of a process, if that holds nothing but what one login or one command
 * started: systemd's groups of logins, and ours. */
static bool
kill_group_of(pid_t pid)
{
	cleanup_free char *groups = NULL;
	cleanup_close int fd = -1;
	const char *own, *last;
	char path[REAP_PATH_MAX];

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)pid);
	if (!mount_path[0] || io_read_file(path, 65536, &groups, NULL, NULL) ||
		!(own = v2_path(groups)) || !(last = strrchr(own, '/')) ||
		(strncmp(last, "/" PREFIX, strlen("/" PREFIX)) != 0 &&
			(strncmp(last, "/session-", 9) != 0 || !strstr(last, ".scope"))))
		return false;
	if (snprintf(path, sizeof(path), "%s%s", mount_path, own) >= (int)sizeof(path))
		return false;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd >= 0 && group_kill(fd);
}

enum whom {
	WITH_SESSION, /* pid too, and what is in its session */
	BELOW,
	BELOW_WITH_GROUPS, /* and what shares a group of its own with one of these */
};

/* Kills what descends from pid, and whom it says besides; the count. */
static unsigned
kill_descendants(pid_t pid, enum whom whom)
{
	struct entry {
		pid_t pid, parent;
		bool ours;
	};
	cleanup_free struct entry *all = malloc(PIDS_MAX * sizeof(*all));
	cleanup_closedir DIR *d = opendir("/proc");
	struct dirent *de;
	unsigned n = 0, killed = 0;
	bool more = true;

	if (!all || !d)
		return 0;
	while ((de = readdir(d)) && n < PIDS_MAX) {
		pid_t parent, session;

		if (de->d_name[0] < '1' || de->d_name[0] > '9' ||
			!read_stat(dirfd(d), de->d_name, &parent, &session))
			continue;
		all[n].pid = atoi(de->d_name);
		all[n].parent = parent;
		all[n].ours = whom == WITH_SESSION
				      ? all[n].pid == pid || session == pid
				      : parent == pid && all[n].pid != getpid();
		n++;
	}
	while (more) {
		more = false;
		for (unsigned i = 0; i < n; i++)
			for (unsigned k = 0; k < n && !all[i].ours; k++)
				if (all[k].ours && all[i].parent == all[k].pid)
					all[i].ours = more = true;
	}
	for (unsigned i = 0; i < n; i++)
		if (all[i].ours &&
			((whom == BELOW_WITH_GROUPS && kill_group_of(all[i].pid)) ||
				!kill(all[i].pid, SIGKILL)))
			killed++;
	return killed;
}

void
reap_kill(pid_t pid, int group_fd)
{
	if (group_fd >= 0 && group_kill(group_fd))
		return;
	/* Stopped first, so that nobody forks or is re-parented between the look and the
	 * kill. */
	kill(-pid, SIGSTOP);
	for (int round = 0; round < ROUNDS_MAX && kill_descendants(pid, WITH_SESSION);
		round++)
		;
	kill(-pid, SIGKILL);
}

void
reap_kill_below(pid_t pid)
{
	for (int round = 0; round < ROUNDS_MAX && kill_descendants(pid, BELOW); round++)
		;
}

void
reap_group_drop(uint64_t num, int group_fd)
{
	char name[64];

	if (group_fd < 0)
		return;
	close(group_fd);
	group_name(name, sizeof(name), num);
	if (unlinkat(own_group, name, AT_REMOVEDIR))
		leftovers = true;
}

void
reap_kill_login(pid_t pid, int group_fd)
{
	for (int round = 0;
		round < ROUNDS_MAX && kill_descendants(pid, BELOW_WITH_GROUPS); round++)
		;
	reap_kill(pid, group_fd);
}

/*
 * The group of a coding agent's program, known by its path.
 */

int
reap_named_make(const char *name, char path[static REAP_PATH_MAX])
{
	uint64_t number;
	int n;

	if (own_group < 0 || getrandom(&number, sizeof(number), GRND_NONBLOCK) !=
				     (ssize_t)sizeof(number))
		return -1;
	/* A number, so that a path that is left over never names the group of another. */
	n = snprintf(path, REAP_PATH_MAX, "%s/" RPC_PREFIX "%.40s-%016" PRIx64, own_path,
		name, number);
	if (n >= REAP_PATH_MAX || mkdir(path, 0755))
		return -1;
	n = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (n < 0)
		rmdir(path);
	return n;
}

/* "populated 0" in cgroup.events: no live process in it or below. */
static bool
is_empty(int group_fd)
{
	cleanup_close int fd = openat(group_fd, "cgroup.events", O_RDONLY | O_CLOEXEC);
	char text[256];
	ssize_t n = fd < 0 ? -1 : io_read(fd, text, sizeof(text) - 1);

	if (n < 0)
		return true;
	text[n] = 0;
	return strstr(text, "populated 0") != NULL;
}

/* What is below the group, deepest first. */
static void
remove_below(int group_fd, unsigned depth)
{
	int fd = openat(group_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_closedir DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *de;

	if (!d && fd >= 0)
		close(fd);
	while (d && depth && (de = readdir(d))) {
		cleanup_close int below = -1;

		if (de->d_type != DT_DIR || de->d_name[0] == '.')
			continue;
		below = openat(fd, de->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (below < 0)
			continue;
		remove_below(below, depth - 1);
		(void)unlinkat(fd, de->d_name, AT_REMOVEDIR);
	}
}

bool
reap_named_end(const char *path)
{
	const char *last = strrchr(path, '/');
	struct timespec nap = {.tv_nsec = 1000000};
	cleanup_close int fd = -1;

	if (!last || strncmp(last + 1, RPC_PREFIX, strlen(RPC_PREFIX)) != 0)
		return false;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT;
	if (!group_kill(fd))
		return false;
	for (int ms = 0; ms < GONE_MS && !is_empty(fd); ms++)
		nanosleep(&nap, NULL);
	remove_below(fd, DEPTH_MAX);
	(void)rmdir(path);
	return true;
}
