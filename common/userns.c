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

#define STACK_BYTES (16u << 10)

/* One process that makes the namespaces for another, which waits. */
struct child {
	uid_t uid;
	gid_t gid;
	bool keeps; /* opens ns_fd, which keeps the user namespace when the child ends */
	int ns_fd;
	int r; /* 0, or -errno and the step that failed */
	const char *step;
};

static int
write_proc(const char *path, const char *text)
{
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	return io_write_full(fd, text, strlen(text));
}

static int
map_ids(struct child *c)
{
	char map[64];
	int r;

	c->step = "writing the user namespace's uid_map";
	snprintf(map, sizeof(map), "%u %u 1\n", c->uid, c->uid);
	if ((r = write_proc("/proc/self/uid_map", map)) < 0)
		return r;
	c->step = "denying setgroups in the user namespace";
	r = write_proc("/proc/self/setgroups", "deny\n");
	if (r < 0 && r != -ENOENT)
		return r;
	c->step = "writing the user namespace's gid_map";
	snprintf(map, sizeof(map), "%u %u 1\n", c->gid, c->gid);
	return write_proc("/proc/self/gid_map", map);
}

/* The child. Its memory and its descriptors are the parent's. */
static int
child_main(void *arg)
{
	struct child *c = arg;

	c->r = map_ids(c);
	if (c->r < 0 || !c->keeps)
		return 0;
	c->step = "opening the user namespace";
	c->ns_fd = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
	if (c->ns_fd < 0)
		c->r = -errno;
	return 0;
}

/* Makes a user namespace and those of `others` in a child, and maps our user in it. The child
 * has ended on return. */
static int
run_child(int others, struct child *c, struct err *e)
{
	_Alignas(16) char stack[STACK_BYTES];
	pid_t pid;

	c->uid = geteuid();
	c->gid = getegid();
	c->ns_fd = -1;
	c->r = -EPERM; /* if something kills the child */
	c->step = "a process in a new user namespace";
	/* As posix_spawn() does it: nothing is copied, and CLONE_VFORK waits until the child
	 * ends. No signal at its end: it does not matter whether SIGCHLD is ignored. */
	pid = clone(child_main, stack + sizeof(stack),
		CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWUSER | others, c);
	if (pid < 0)
		return err_sys(e, -errno, "making a user namespace");
	while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
		;
	return c->r < 0 ? err_sys(e, c->r, "%s", c->step) : 0;
}

int
userns_try(int others, struct err *e)
{
	struct child c = {.keeps = false};

	return run_child(others, &c, e);
}

int
userns_enter(struct err *e)
{
	struct child c = {.keeps = true};
	int r = run_child(0, &c, e);
	cleanup_close int fd = c.ns_fd;

	if (r < 0)
		return r;
	if (setns(fd, CLONE_NEWUSER) < 0)
		return err_sys(e, -errno, "entering the user namespace");
	return 0;
}
