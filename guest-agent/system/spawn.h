/*
 * Starts a process. What failed in the child is read from shared memory after it has ended.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_SPAWN_H
#define PANDO_GUEST_AGENT_SYSTEM_SPAWN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "guest-agent/system/userdb.h"

enum spawn_step { SPAWN_OK, SPAWN_USER, SPAWN_CWD, SPAWN_EXEC, SPAWN_SETUP };

struct spawn {
	char *const *argv;
	const char *file; /* what is started; NULL: argv[0] */
	char *const *envp;
	const char *path;	 /* PATH of that environment; NULL: the default */
	const char *cwd;	 /* must work, when given */
	const struct user *user; /* home is where it starts without cwd */
	bool switch_user;
	int fd[3];	/* the child's 0, 1, 2 */
	bool tty;	/* fd[0] becomes the controlling terminal */
	int cgroup_fd;	/* -1: the agent's */
	bool subreaper; /* what it starts descends from it as long as it lives */
};

/* Once, before the first. */
int spawn_init(struct err *e);
/* fork-like (its own memory at once): a child that hangs in chdir or execve, on a file system
 * that does not answer or stopped by its new user, must not hold the agent, so the agent does
 * not wait for it. slot (0..SPAWN_SLOTS-1) is the caller's until it has called
 * spawn_failure(). The child leads a session of its own. */
#define SPAWN_SLOTS 512
int spawn_start(const struct spawn *s, unsigned slot, pid_t *ret_pid, int *ret_pidfd,
	struct err *e);
/* vfork-like, for a caller that has nothing else to do and has set no handlers for signals since
 * spawn_init(): it stands still until the program runs, or has not started, and copies no page
 * tables; only SIGKILL ends that. *ret_pid is set before the child runs. With a control group
 * as spawn_start(). */
int spawn_and_stand_still(
	const struct spawn *s, unsigned slot, _Atomic int32_t *ret_pid, struct err *e);
/* After it has exited with 127: which step failed, and *ret_errno; SPAWN_OK when it was
 * the program's own 127. */
enum spawn_step spawn_failure(unsigned slot, int *ret_errno);

#endif
