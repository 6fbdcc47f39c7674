#include "guest-agent/system/reap.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define PREFIX "pando-exec-"
#define PIDS_MAX 4096
#define ROUNDS_MAX 64

static int own_group = -1;
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
			!strcmp(root, "/")) {
			snprintf(dst, cap, "%s", mount);
			return true;
		}
	}
	return false;
}

void
reap_init(void)
{
	cleanup_free char *groups = NULL;
	char path[1024], mount[256];
	char *own;

	if (!find_mount(mount, sizeof(mount)) ||
		io_read_file("/proc/self/cgroup", 65536, &groups, NULL, NULL))
		return;
	own = !strncmp(groups, "0::", 3) ? groups : strstr(groups, "\n0::");
	if (!own)
		return;
	own = strchr(own, ':') + 2;
	own[strcspn(own, "\n")] = 0;
	if (snprintf(path, sizeof(path), "%s%s", mount, own) >= (int)sizeof(path))
		return;
	own_group = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	leftovers = own_group >= 0; /* of an agent before this one */
}

static void
group_name(char *dst, size_t cap, uint64_t num)
{
	snprintf(dst, cap, PREFIX "%d-%llu", (int)getpid(), (unsigned long long)num);
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
		if (!strncmp(de->d_name, PREFIX, strlen(PREFIX)) &&
			unlinkat(own_group, de->d_name, AT_REMOVEDIR))
			leftovers = true;
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

/* Kills what descends from pid or is in its session; the count. */
static unsigned
kill_descendants(pid_t pid)
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
		all[n].ours = all[n].pid == pid || session == pid;
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
		if (all[i].ours && !kill(all[i].pid, SIGKILL))
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
	for (int round = 0; round < ROUNDS_MAX && kill_descendants(pid); round++)
		;
	kill(-pid, SIGKILL);
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
