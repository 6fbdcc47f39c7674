#include "host/vmmproc/process_progress.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* A file of /proc, as a string; it is never longer than dst in what is looked for. */
static bool
read_proc(const char *path, char *dst, size_t cap)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : io_read(fd, dst, cap - 1);

	if (n <= 0)
		return false;
	dst[n] = '\0';
	return true;
}

bool
process_progress_look(int pidfd, struct process_progress *p)
{
	struct process_progress now = {.known = true}, last = *p;
	unsigned long long minor, major, user, kernel;
	long per_second = sysconf(_SC_CLK_TCK);
	char path[48], text[1024], *at;
	int pid;

	if (pidfd < 0 || per_second <= 0)
		return false;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	if (!read_proc(path, text, sizeof(text)) || !(at = strstr(text, "\nPid:")) ||
		sscanf(at, " Pid: %d", &pid) != 1 || pid <= 0)
		return false;
	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (!read_proc(path, text, sizeof(text)))
		return false;
	/* Behind the program's name, which may hold any byte: fields 3 state, 4 to 9, 10 minflt,
	 * 11, 12 majflt, 13, 14 utime, 15 stime. */
	at = strrchr(text, ')');
	if (!at ||
		sscanf(at + 1, " %*c %*s %*s %*s %*s %*s %*s %llu %*s %llu %*s %llu %llu",
			&minor, &major, &user, &kernel) != 4)
		return false;
	now.cpu_ms = (user + kernel) * 1000 / (unsigned long long)per_second;
	now.faults = minor + major;
	*p = now;
	return last.known && (now.cpu_ms != last.cpu_ms || now.faults != last.faults);
}
