/* A supervisor, made by whoever finds that there is none. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "guest-agent/supervisor/supervisor.h"

#define SUPERVISOR_LOG_MAX (1024 * 1024)

static void
exec_supervisor(const struct rpc_place *p)
{
	char name[RPC_NAME_MAX + 16], root[PATH_MAX + 16] = "--root=/";
	char wanted[] = "--wanted";
	char *argv[] = {name, root, wanted, NULL};
	struct stat st;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int log = openat(p->dir, "keeper.log",
		O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (null < 0 || log < 0)
		_exit(EXIT_FAILED);
	if (!fstat(log, &st) && st.st_size > SUPERVISOR_LOG_MAX)
		(void)!ftruncate(log, 0);
	setsid();
	dup2(null, 0);
	dup2(log, 1);
	dup2(log, 2);
	/* Whoever gave us a descriptor waits perhaps for its end. */
	for (int fd = 3; fd < 1024; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	(void)!chdir("/");
	snprintf(name, sizeof(name), "%s-keeper", p->name);
	if (*rpc_root())
		snprintf(root, sizeof(root), "--root=%s", rpc_root());
	execv("/proc/self/exe", argv);
	_exit(127);
}

int
supervisor_spawn(const struct rpc_place *p, pid_t *ret_pid, struct err *e)
{
	*ret_pid = fork();
	if (!*ret_pid)
		exec_supervisor(p);
	return *ret_pid < 0 ? err_sys(e, -errno, "starting a supervisor") : 0;
}
