#include "host/vmmproc/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"
#include "common/wire/console_ring.h"
#include "common/wire/vmm_wire.h"

/* A quarter, for connections and the files of calls; but that many of few, or many. */
#define DESCRIPTORS_KEPT_MIN 16u
#define DESCRIPTORS_KEPT_MAX 192u

void
vm_files_done(struct vm_files *f)
{
	cleanup_close_fn(&f->listen_fd);
	cleanup_close_fn(&f->vsock_fd);
	cleanup_close_fn(&f->console_fd);
	cleanup_close_fn(&f->log_fd);
	f->listen_fd = f->vsock_fd = f->console_fd = f->log_fd = -1;
}

static int
open_new(const char *path, int flags, int *ret_fd, struct err *e)
{
	int fd = open(
		path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW | flags, 0600);

	if (fd < 0)
		return err_sys(e, -errno, "making %.300s", path);
	*ret_fd = fd;
	return 0;
}

/* All that is in a VM's folder. */
static int
fill_folder(const char *folder, struct vm_files *ret, struct err *e)
{
	char path[PATHS_MAX + 32];
	int r;

	snprintf(path, sizeof(path), "%s/control.sock", folder);
	r = io_unix_listen(path, SOCK_SEQPACKET, 4, &ret->listen_fd, e);
	if (r == 0) {
		snprintf(path, sizeof(path), "%s/agent.sock", folder);
		r = io_unix_listen(path, SOCK_STREAM, 128, &ret->vsock_fd, e);
	}
	if (r == 0) {
		snprintf(path, sizeof(path), "%s/console", folder);
		r = open_new(path, 0, &ret->console_fd, e);
	}
	if (r == 0) {
		/* The VMM maps it, and a page that the disk has no room for would kill
		 * the VMM when the guest prints: room for all of it is taken now, where
		 * its lack can be said. */
		io_write_in_place(ret->console_fd);
		r = -posix_fallocate(ret->console_fd, 0, CONSOLE_FILE_BYTES);
		if (r < 0)
			r = err_sys(e, r, "making room for %s", path);
	}
	if (r == 0) {
		snprintf(path, sizeof(path), "%s/vmm.log", folder);
		r = open_new(path, O_APPEND, &ret->log_fd, e);
	}
	if (r < 0)
		vm_files_done(ret);
	return r;
}

int
launch_files(const char *home, const char *id, struct vm_files *ret, struct err *e)
{
	char folder[PATHS_MAX];
	int r = paths_format(folder, sizeof(folder), e, "%s/vms/%s", home, id);

	if (r < 0)
		return r;
	if (mkdir(folder, 0700) < 0)
		return err_sys(e, -errno, "making %.300s", folder);
	r = fill_folder(folder, ret, e);
	if (r < 0)
		io_remove_tree(folder, NULL);
	return r;
}

int
launch_files_again(const char *home, const char *id, struct vm_files *ret, struct err *e)
{
	static const char *const kept[] = {"console", "vmm.log"};
	static const char *const remade[] = {"control.sock", "agent.sock"};
	char folder[PATHS_MAX], path[PATHS_MAX + 32], old[PATHS_MAX + 40];
	int r = paths_format(folder, sizeof(folder), e, "%s/vms/%s", home, id);

	if (r < 0)
		return r;
	if (mkdir(folder, 0700) < 0 && errno != EEXIST)
		return err_sys(e, -errno, "making %.300s", folder);
	for (size_t i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, kept[i]);
		snprintf(old, sizeof(old), "%s.old", path);
		if (rename(path, old) < 0 && errno != ENOENT)
			return err_sys(e, -errno, "%.300s", path);
		snprintf(path, sizeof(path), "%s/%s", folder, remade[i]);
		if (unlink(path) < 0 && errno != ENOENT)
			return err_sys(e, -errno, "%.300s", path);
	}
	return fill_folder(folder, ret, e);
}

int
launch_remove_files(const char *home, const char *id, struct err *e)
{
	char folder[PATHS_MAX];
	int r = paths_format(folder, sizeof(folder), e, "%s/vms/%s", home, id);

	return r < 0 ? r : io_remove_tree(folder, e);
}

static int
segment_path(
	const char *home, const char *name, const char *suffix, char *dst, struct err *e)
{
	return paths_format(dst, PATHS_MAX, e, "%s/segments/%s.%s", home, name, suffix);
}

void
vm_segment_done(struct vm_segment *s)
{
	for (unsigned i = 0; i < VMM_SEG_FDS; i++) {
		cleanup_close_fn(&s->fd[i]);
		s->fd[i] = -1;
	}
}

void
vm_segment_put(const struct vm_segment *s, int *fds)
{
	memcpy(fds, s->fd, sizeof(s->fd));
}

int
launch_segment(const char *home, const char *name, struct vm_segment *ret, struct err *e)
{
	static const char *const suffix[] = {"data", "index"};
	char path[PATHS_MAX];
	int r = 0;

	_Static_assert(VMM_SEG_DATA_RO == VMM_SEG_DATA + 2 &&
			       VMM_SEG_INDEX_RO == VMM_SEG_INDEX + 2,
		"the same two files, twice");
	for (unsigned i = 0; i < 2 && r == 0; i++) {
		r = segment_path(home, name, suffix[i], path, e);
		if (r == 0)
			r = open_new(path, 0, &ret->fd[i], e);
		if (r < 0)
			break;
		ret->fd[i + 2] = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
		if (ret->fd[i + 2] < 0)
			r = err_sys(e, -errno, "%.300s", path);
	}
	if (r < 0) {
		if (ret->fd[VMM_SEG_DATA] >= 0)
			launch_remove_segment(home, name);
		vm_segment_done(ret);
	}
	return r;
}

void
launch_remove_segment(const char *home, const char *name)
{
	char path[PATHS_MAX];

	if (segment_path(home, name, "data", path, NULL) == 0)
		unlink(path);
	if (segment_path(home, name, "index", path, NULL) == 0)
		unlink(path);
}

int
launch_control_pair(int *ret_ours, int *ret_theirs, struct err *e)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return err_sys(e, -errno, "making a control socket");
	*ret_ours = pair[0];
	*ret_theirs = pair[1];
	return 0;
}

/*
 * The user's environment holds keys and tokens; a VMM that a guest has taken over must
 * not find them. Only a test's choices (vmm/track.h, common/fault.h) go along, and what a
 * sanitizer's runtime reads, in a build that has one.
 */
#define ENVIRONMENT_MAX 5

static char **
vmm_environment(char *env[ENVIRONMENT_MAX + 1])
{
	extern char **environ;
	static const char *const names[] = {
		"PANDO_TRACK=", "PANDO_FAULT=",
#ifdef PANDO_SAN
		"ASAN_OPTIONS=", "UBSAN_OPTIONS=", "LSAN_OPTIONS=",
#endif
	};
	size_t n = 0;

	for (char **v = environ; *v && n < ENVIRONMENT_MAX; v++)
		for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
			if (n < ENVIRONMENT_MAX && strncmp(*v, names[i], strlen(names[i])) == 0)
				env[n++] = *v;
	env[n] = NULL;
	return env;
}

int
launch_spawn(const char *program, const char *name, int log_fd, int *ret_control,
	pid_t *ret_pid, int *ret_pidfd, struct err *e)
{
	cleanup_close int ours = -1, theirs = -1;
	char *argv[] = {(char *)(uintptr_t)name, NULL}; /* which posix_spawn() does not change */
	char *env[ENVIRONMENT_MAX + 1];
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	sigset_t none, all;
	pid_t pid;
	int pidfd, r;

	r = launch_control_pair(&ours, &theirs, e);
	if (r < 0)
		return r;
	sigemptyset(&none);
	sigfillset(&all);
	if (posix_spawn_file_actions_init(&actions) != 0)
		return err_set(e, -ENOMEM, "out of memory");
	if (posix_spawnattr_init(&attr) != 0) {
		posix_spawn_file_actions_destroy(&actions);
		return err_set(e, -ENOMEM, "out of memory");
	}
	/* log_fd and theirs are above 3: pandod keeps 0 to 3 occupied (pandod.c), so that
	 * none of these steps overwrites what a later one copies. */
	r = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	if (r == 0)
		r = posix_spawn_file_actions_addopen(
			&actions, 1, "/dev/null", O_WRONLY, 0);
	if (r == 0)
		r = posix_spawn_file_actions_adddup2(&actions, log_fd, 2);
	if (r == 0)
		r = posix_spawn_file_actions_adddup2(&actions, theirs, VMM_CONTROL_FD);
	if (r == 0)
		r = posix_spawn_file_actions_addclosefrom_np(
			&actions, VMM_CONTROL_FD + 1);
	if (r == 0)
		r = posix_spawnattr_setsigmask(&attr, &none);
	if (r == 0)
		r = posix_spawnattr_setsigdefault(&attr, &all);
	if (r == 0)
		r = posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK |
							    POSIX_SPAWN_SETSIGDEF |
							    POSIX_SPAWN_SETSID);
	if (r == 0)
		r = posix_spawn(
			&pid, program, &actions, &attr, argv, vmm_environment(env));
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attr);
	if (r != 0)
		return err_sys(e, -r, "starting %.300s", program);
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0) {
		r = -errno;
		kill(pid, SIGKILL); /* our own child, not yet waited for */
		waitpid(pid, NULL, 0);
		return err_sys(e, r, "pidfd_open %d", (int)pid);
	}
	*ret_control = TAKE_FD(ours);
	*ret_pid = pid;
	*ret_pidfd = pidfd;
	return 0;
}

int
process_look(pid_t pid, pid_t *ret_ppid, uint64_t *ret_start)
{
	char path[40], buf[1024];
	cleanup_close int fd = -1;
	unsigned long long start;
	char state;
	int ppid;
	ssize_t n;
	char *p;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	n = io_read(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return n < 0 ? (int)n : -ESRCH;
	buf[n] = '\0';
	/* The second field is the program's name in parentheses, which may hold any byte.
	 */
	p = strrchr(buf, ')');
	if (!p)
		return -EPROTO;
	/* Fields 3 state, 4 ppid, 5 to 21, 22 starttime. */
	if (sscanf(p + 1,
		    " %c %d %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
		    &state, &ppid, &start) != 3)
		return -EPROTO;
	if (state == 'Z' || state == 'X')
		return -ESRCH;
	*ret_ppid = ppid;
	*ret_start = start;
	return 0;
}

int
process_open(pid_t pid, uint64_t start, int *ret_pidfd)
{
	cleanup_close int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uint64_t now_start;
	pid_t ppid;
	int r;

	if (pidfd < 0)
		return -errno;
	/* Looked at after the opening: a start time that agrees belongs to what was
	 * opened, or to one that took the number within the same clock tick after this
	 * one's death. */
	r = process_look(pid, &ppid, &now_start);
	if (r < 0)
		return r;
	if (now_start != start || !process_lives(pidfd))
		return -ESRCH;
	*ret_pidfd = TAKE_FD(pidfd);
	return 0;
}

bool
descriptors_left(int fd, unsigned more)
{
	struct rlimit l;
	rlim_t kept;

	if (getrlimit(RLIMIT_NOFILE, &l) < 0 || l.rlim_cur == RLIM_INFINITY)
		return true;
	kept = l.rlim_cur / 4;
	if (kept > DESCRIPTORS_KEPT_MAX)
		kept = DESCRIPTORS_KEPT_MAX;
	else if (kept < DESCRIPTORS_KEPT_MIN)
		kept = DESCRIPTORS_KEPT_MIN;
	return (rlim_t)fd + more + kept < l.rlim_cur;
}

bool
process_lives(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	return poll(&p, 1, 0) == 0;
}

void
process_kill(int pidfd)
{
	syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}
