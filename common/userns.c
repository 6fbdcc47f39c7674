#include "common/userns.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* What the child of userns_try() says: a step, and the errno it failed with. */
enum step { STEP_UNSHARE, STEP_UID_MAP, STEP_SETGROUPS, STEP_GID_MAP };
static const char *const step_names[] = {
	[STEP_UNSHARE] = "making a user namespace",
	[STEP_UID_MAP] = "writing the user namespace's uid_map",
	[STEP_SETGROUPS] = "denying setgroups in the user namespace",
	[STEP_GID_MAP] = "writing the user namespace's gid_map",
};

static int
write_proc(const char *path, const char *text)
{
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return io_write_full(fd, text, strlen(text));
}

/* 0, or -errno with the step it is of. */
static int
enter(int others, enum step *ret_step)
{
	const uid_t uid = geteuid();
	const gid_t gid = getegid();
	char map[64];
	int r;

	*ret_step = STEP_UNSHARE;
	if (unshare(CLONE_NEWUSER | others) < 0)
		return -errno;
	*ret_step = STEP_UID_MAP;
	snprintf(map, sizeof(map), "%u %u 1\n", uid, uid);
	if ((r = write_proc("/proc/self/uid_map", map)) < 0)
		return r;
	*ret_step = STEP_SETGROUPS;
	r = write_proc("/proc/self/setgroups", "deny\n");
	if (r < 0 && r != -ENOENT)
		return r;
	*ret_step = STEP_GID_MAP;
	snprintf(map, sizeof(map), "%u %u 1\n", gid, gid);
	return write_proc("/proc/self/gid_map", map);
}

int
userns_enter(int others, struct err *e)
{
	enum step step;
	int r = enter(others, &step);

	return r < 0 ? err_sys(e, r, "%s", step_names[step]) : 0;
}

int
userns_try(int others, struct err *e)
{
	cleanup_close int read_fd = -1, write_fd = -1;
	struct {
		int r;
		enum step step;
	} answer = {-EIO, STEP_UNSHARE};
	int fds[2], r;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return err_sys(e, -errno, "pipe");
	read_fd = fds[0];
	write_fd = fds[1];
	pid = fork();
	if (pid < 0)
		return err_sys(e, -errno, "fork");
	if (pid == 0) {
		answer.r = enter(others, &answer.step);
		_exit(io_write_full(write_fd, &answer, sizeof(answer)) < 0);
	}
	close(TAKE_FD(write_fd));
	r = io_read_full(read_fd, &answer, sizeof(answer));
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (r < 0) /* whatever ended it */
		return err_set(e, -EPERM, "a process that made a user namespace ended");
	return answer.r < 0 ? err_sys(e, answer.r, "%s", step_names[answer.step]) : 0;
}
