#include "guest-agent/system/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* Four descriptors a command, with connections and copies beside them. */
#define FILES_WANTED 4096
/* For what a child does before execve: a path, and what libc needs. */
#define STACK_BYTES (32u * 1024u)

/* One word a slot: step << 16 | errno. Shared with the children. */
static _Atomic uint32_t *slots;
static bool reset_oom;
static struct rlimit files_before; /* what commands get */
static sigset_t changed; /* signals that are ignored, or handled by a sanitizer */

int
spawn_init(struct err *e)
{
	cleanup_free char *adj = NULL;
	void *p = mmap(NULL, SPAWN_SLOTS * sizeof(uint32_t), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return err_sys(e, -errno, "memory shared with children");
	slots = p;
	sigemptyset(&changed);
	for (int i = 1; i < NSIG; i++) {
		struct sigaction sa;

		if (!sigaction(i, NULL, &sa) && sa.sa_handler != SIG_DFL)
			sigaddset(&changed, i);
	}
	if (!getrlimit(RLIMIT_NOFILE, &files_before) &&
		files_before.rlim_cur < FILES_WANTED) {
		struct rlimit more = files_before;

		more.rlim_cur =
			more.rlim_max < FILES_WANTED ? more.rlim_max : FILES_WANTED;
		/* Refused: then fewer commands at once, each refusal with its sentence.
		 */
		setrlimit(RLIMIT_NOFILE, &more);
	}
	/* The agent's unit guards it from the OOM killer; what it runs must not inherit
	 * that. */
	if (!io_read_file("/proc/self/oom_score_adj", 64, &adj, NULL, NULL))
		reset_oom = atoi(adj) != 0;
	return 0;
}

static void
fail(unsigned slot, enum spawn_step step, int code)
{
	atomic_store(&slots[slot], (uint32_t)step << 16 | (uint32_t)code);
	_exit(127);
}

/* As execvpe(3), but with the new environment's PATH: the caller's is none of the
 * command's business. */
static int
exec_path(const struct spawn *s)
{
	const char *name = s->file ? s->file : s->argv[0],
		   *path = s->path ? s->path : "/usr/bin:/bin";
	size_t name_len = strlen(name);
	char file[PATH_MAX];
	int seen = ENOENT;

	if (strchr(name, '/')) {
		execve(name, s->argv, s->envp);
		return errno;
	}
	if (name_len > NAME_MAX)
		return ENAMETOOLONG;
	while (1) {
		size_t len = strcspn(path, ":");

		if (len + name_len + 2 <= sizeof(file)) {
			memcpy(file, path, len);
			if (len)
				file[len++] = '/';
			memcpy(file + len, name, name_len + 1);
			execve(file, s->argv, s->envp);
			if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
				return errno;
			if (errno == EACCES)
				seen = EACCES;
		}
		path += strcspn(path, ":");
		if (!*path)
			return seen;
		path++;
	}
}

static void
child(const struct spawn *s, unsigned slot)
{
	sigset_t none;
	int fd[3], r;

	/* What whoever started the agent ignores (SIGINT in the background of a shell)
	 * the clone still does; and no handler is to run in borrowed memory. */
	for (int i = 1; i < NSIG; i++)
		if (sigismember(&changed, i))
			signal(i, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (files_before.rlim_max)
		setrlimit(RLIMIT_NOFILE, &files_before);
	/* First out of the way of 0, 1 and 2 (dup2 onto itself would keep close-on-exec,
	 * too). */
	for (int i = 0; i < 3; i++) {
		fd[i] = s->fd[i] > 2 ? s->fd[i] : fcntl(s->fd[i], F_DUPFD, 3);
		if (fd[i] < 0)
			fail(slot, SPAWN_SETUP, errno);
	}
	for (int i = 0; i < 3; i++)
		if (dup2(fd[i], i) < 0)
			fail(slot, SPAWN_SETUP, errno);
	if (s->subreaper)
		prctl(PR_SET_CHILD_SUBREAPER, 1); /* stays over execve */
	if (s->tty && ioctl(0, TIOCSCTTY, 0))
		fail(slot, SPAWN_SETUP, errno);
	if (reset_oom) {
		int adj = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

		if (adj >= 0) {
			r = (int)write(adj, "0", 1);
			close(adj);
		}
	}
	if (s->switch_user) {
		if (setgroups(s->user->n_groups, s->user->groups) ||
			setgid(s->user->gid) || setuid(s->user->uid))
			fail(slot, SPAWN_USER, errno);
	}
	if (s->cwd) {
		if (chdir(s->cwd))
			fail(slot, SPAWN_CWD, errno);
	} else {
		r = chdir(s->user->home);
		if (r)
			r = chdir("/");
	}
	r = exec_path(s);
	fail(slot, SPAWN_EXEC, r);
}

int
spawn_start(const struct spawn *s, unsigned slot, pid_t *ret_pid, int *ret_pidfd,
	struct err *e)
{
	int pidfd = -1;
	struct clone_args args = {
		/* Dispositions the agent changed go back to their defaults; it ignores
		   none. */
		.flags = CLONE_PIDFD | CLONE_CLEAR_SIGHAND |
			 (s->cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0),
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = s->cgroup_fd >= 0 ? (uint64_t)s->cgroup_fd : 0,
	};
	long pid;

	atomic_store(&slots[slot], 0);
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return err_sys(e, -errno, "starting a process");
	if (pid == 0)
		child(s, slot);
	*ret_pid = (pid_t)pid;
	*ret_pidfd = pidfd;
	return 0;
}

struct borrower {
	const struct spawn *s;
	unsigned slot;
};

static int
borrowing_child(void *arg)
{
	const struct borrower *b = arg;

	child(b->s, b->slot);
	return 127;
}

int
spawn_and_stand_still(
	const struct spawn *s, unsigned slot, _Atomic int32_t *ret_pid, struct err *e)
{
	/* Of this stack, so that whoever checks the bounds of stacks finds the child within. */
	_Alignas(16) char stack[STACK_BYTES];
	struct borrower b = {s, slot};
	sigset_t all, before;
	pid_t pid;
	int r, pidfd;

	if (s->cgroup_fd >= 0) {
		/* clone(2) cannot put it there. */
		r = spawn_start(s, slot, &pid, &pidfd, e);
		if (r)
			return r;
		close(pidfd);
		atomic_store(ret_pid, pid);
		return 0;
	}
	atomic_store(&slots[slot], 0);
	/* Until the child has no handlers any more. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = clone(borrowing_child, stack + sizeof(stack),
		CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID | SIGCHLD, &b,
		(pid_t *)(uintptr_t)ret_pid);
	r = pid < 0 ? -errno : 0;
	sigprocmask(SIG_SETMASK, &before, NULL);
	return r ? err_sys(e, r, "starting a process") : 0;
}

enum spawn_step
spawn_failure(unsigned slot, int *ret_errno)
{
	uint32_t v = atomic_load(&slots[slot]);

	*ret_errno = (int)(v & 0xffff);
	return (enum spawn_step)(v >> 16);
}
