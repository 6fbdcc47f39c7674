#include "guest-agent/server/finish.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"

#define PIDS_MAX 4096

struct process {
	pid_t pid, parent;
	char state;
	bool below;
	char name[17];
};

static bool
read_process(const char *pid, struct process *ret)
{
	char path[64], text[512], *from, *to;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : io_read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = 0;
	/* The name may hold anything. */
	from = strchr(text, '(');
	to = strrchr(text, ')');
	if (!from || !to || sscanf(to + 1, " %c %d", &ret->state, &ret->parent) != 2)
		return false;
	*to = 0;
	snprintf(ret->name, sizeof(ret->name), "%.16s", from + 1);
	ret->pid = atoi(pid);
	ret->below = false;
	return true;
}

/* All that descends from it, but not what has ended; the count. */
static unsigned
descendants(pid_t ancestor, struct process *all)
{
	cleanup_closedir DIR *d = opendir("/proc");
	unsigned n = 0, kept = 0;
	struct dirent *de;
	bool more = true;

	while (d && (de = readdir(d)) && n < PIDS_MAX)
		if (de->d_name[0] >= '1' && de->d_name[0] <= '9' &&
			read_process(de->d_name, &all[n])) {
			all[n].below = all[n].parent == ancestor;
			n++;
		}
	while (more) {
		more = false;
		for (unsigned i = 0; i < n; i++)
			for (unsigned k = 0; k < n && !all[i].below; k++)
				if (all[k].below && all[i].parent == all[k].pid)
					all[i].below = more = true;
	}
	for (unsigned i = 0; i < n; i++)
		if (all[i].below && all[i].state != 'Z' && all[i].state != 'X')
			all[kept++] = all[i];
	return kept;
}

#define LINK_MAX 64

/* What a descriptor is, as the kernel says it. No file system is asked: that of a guest's user
 * may never answer. */
static bool
is_pipe(const char *path, char link[static LINK_MAX])
{
	ssize_t n = readlink(path, link, LINK_MAX - 1);

	if (n <= 0)
		return false;
	link[n] = 0;
	return strncmp(link, "pipe:[", 6) == 0;
}

/* Its standard input is a pipe without a writer. Its user may put another file there at any
 * time: what is looked at is a descriptor of our own, made without opening the file (O_PATH),
 * and only what that is, is opened. */
static bool
reads_what_is_over(pid_t pid, uint64_t not_ino)
{
	cleanup_close int at = -1, fd = -1;
	struct pollfd p = {.events = POLLIN};
	char path[64], link[LINK_MAX];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/fd/0", (int)pid);
	if (!is_pipe(path, link))
		return false;
	at = open(path, O_PATH | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", at);
	if (at < 0 || !is_pipe(path, link) || fstat(at, &st) || st.st_ino == not_ino)
		return false;
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	p.fd = fd;
	return fd >= 0 && poll(&p, 1, 0) >= 0 && (p.revents & POLLHUP);
}

enum finish
finish_look(pid_t ancestor, uint64_t not_ino)
{
	cleanup_free struct process *all = calloc(PIDS_MAX, sizeof(*all));
	unsigned n = all ? descendants(ancestor, all) : 0;
	enum finish f = FINISH_NEVER;

	for (unsigned i = 0; i < n; i++) {
		if (reads_what_is_over(all[i].pid, not_ino))
			return FINISH_SOON;
		if (all[i].state == 'R' || all[i].state == 'D')
			f = FINISH_BUSY;
	}
	return f;
}

static bool
has_open(pid_t pid, const char *pipe)
{
	char path[64], link[LINK_MAX];

	for (int fd = 1; fd <= 2; fd++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
		if (is_pipe(path, link) && strcmp(link, pipe) == 0)
			return true;
	}
	return false;
}

void
finish_say_who(pid_t ancestor, int out_fd, int err_fd, char *dst, size_t cap)
{
	cleanup_free struct process *all = calloc(PIDS_MAX, sizeof(*all));
	unsigned n = all ? descendants(ancestor, all) : 0;
	int fd = out_fd >= 0 ? out_fd : err_fd;
	char who[160] = "", name[80], path[64], pipe[LINK_MAX];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	for (unsigned i = 0; i < n && is_pipe(path, pipe); i++)
		if (has_open(all[i].pid, pipe)) {
			log_escape(name, sizeof(name), all[i].name, strlen(all[i].name));
			snprintf(who, sizeof(who), " by process %d (%s)", (int)all[i].pid,
				name);
			break;
		}
	snprintf(dst, cap,
		"its %s is still open%s, and what comes later is not passed on",
		out_fd < 0   ? "standard error"
		: err_fd < 0 ? "standard output"
			     : "output",
		who);
}
