#include "guest-agent/server/exec_shim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "guest-agent/system/loop.h"

#define NAME "pando-shim" /* as ps(1) shows it */
#define MEMORY_NAME "pando-command"
#define PAGE 4096u
#define RECORD_BYTES ((sizeof(struct exec_shim_record) + PAGE - 1) / PAGE * PAGE)
#define REAP_NS 20000000ull
#define START_MS 1000

/* Where the shim has them: the next agent finds them by these numbers. */
enum held_fd {
	HELD_MEMORY = 10,
	HELD_IN,
	HELD_OUT,
	HELD_ERR,
	HELD_NOTE,
	HELD_TELL,
	HELD_END
};

static uint64_t own_key = 1;
static unsigned own_keep_s = 600;

void
exec_shim_set_agent(const char *where, unsigned keep_s)
{
	uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */

	for (; *where; where++)
		h = (h ^ (uint8_t)*where) * 0x100000001b3u;
	own_key = h;
	own_keep_s = keep_s;
}

/*
 * The record.
 */

static void
place_rings(struct exec_shim *s)
{
	uint8_t *at = (uint8_t *)s->r + RECORD_BYTES;

	s->r->in.buf = at;
	at += s->r->in.cap;
	for (int i = 0; i < 2; i++) {
		s->r->out[i].buf = at;
		at += s->r->out[i].cap;
	}
}

int
exec_shim_make(struct exec_shim *s, size_t in_cap, size_t out_cap, struct err *e)
{
	*s = (struct exec_shim)EXEC_SHIM_INIT;
	s->bytes = RECORD_BYTES + in_cap + 2 * out_cap;
	s->memory = memfd_create(MEMORY_NAME, MFD_CLOEXEC);
	if (s->memory < 0 || ftruncate(s->memory, (off_t)s->bytes))
		return err_sys(e, -errno, "memory of a command");
	s->r = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->memory, 0);
	if (s->r == MAP_FAILED) {
		s->r = NULL;
		return err_sys(e, -errno, "memory of a command");
	}
	memcpy(s->r->magic, EXEC_SHIM_MAGIC, sizeof(s->r->magic));
	s->r->size = sizeof(*s->r);
	s->r->key = own_key;
	ring_init_shared(&s->r->in, in_cap);
	for (int i = 0; i < 2; i++)
		ring_init_shared(&s->r->out[i], out_cap);
	place_rings(s);
	return 0;
}

/*
 * The process.
 */

static void
note_end(struct exec_shim_record *r, const siginfo_t *info, unsigned slot, int tell)
{
	int code = 0;

	r->end_code = info->si_code;
	r->end_status = info->si_status;
	if (info->si_code == CLD_EXITED && info->si_status == 127) {
		r->failed_step = spawn_failure(slot, &code);
		r->failure = code;
	}
	atomic_store(&r->ended, 1);
	(void)!write(tell, "e", 1);
}

/* Children that have ended. The command stays a zombie, so that its number remains its
 * own; behind it, others cannot be seen any more, and go when the shim does. */
static void
take_ends(struct exec_shim_record *r, unsigned slot)
{
	siginfo_t info = {0};

	while (!atomic_load(&r->ended) &&
		!waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid) {
		if (info.si_pid == atomic_load(&r->pid))
			note_end(r, &info, slot, HELD_TELL);
		else
			waitpid(info.si_pid, NULL, WNOHANG);
		info.si_pid = 0;
	}
}

pid_t
exec_shim_pid(const struct exec_shim *s)
{
	struct timespec nap = {.tv_nsec = 1000000};

	/* It is forked at once; only a request that is faster than that waits here. */
	for (int ms = 0; ms < START_MS && !atomic_load(&s->r->pid); ms++)
		nanosleep(&nap, NULL);
	return atomic_load(&s->r->pid);
}

/* Until the agent kills it, or there is none for too long. */
static void
hold(struct exec_shim_record *r, int signals, unsigned slot)
{
	int agent = (int)syscall(SYS_pidfd_open, atomic_load(&r->agent), 0u);
	uint64_t until = 0;

	for (;;) {
		struct pollfd p[2] = {{.fd = signals, .events = POLLIN},
			{.fd = agent, .events = POLLIN}};
		struct signalfd_siginfo info;
		int ms = agent >= 0 ? -1 : 1000;

		take_ends(r, slot);
		if (agent < 0 && !until)
			until = io_now_ns() + own_keep_s * 1000000000ull;
		if (until && io_now_ns() >= until)
			return;
		if (poll(p, 2, ms) <= 0)
			continue;
		if (agent >= 0 && p[1].revents) {
			close(agent);
			agent = -1;
		}
		if (!p[0].revents || read(signals, &info, sizeof(info)) <= 0)
			continue;
		if (info.ssi_signo == SIGUSR2) {
			close(HELD_IN);
			if (atomic_load(&r->close_all)) {
				close(HELD_OUT);
				close(HELD_ERR);
			}
		}
		if (info.ssi_signo != SIGUSR1)
			continue;
		/* Another agent has taken it up. */
		if (agent >= 0)
			close(agent);
		agent = (int)syscall(SYS_pidfd_open, atomic_load(&r->agent), 0u);
		until = 0;
	}
}

static _Noreturn void
exec_shim_main(
	struct exec_shim *s, const struct spawn *what, unsigned slot, int note, int tell)
{
	int from[HELD_END - HELD_MEMORY] = {
		s->memory, s->in, s->out[0], s->out[1], note, tell};
	struct spawn own = *what;
	struct err e = {0};
	sigset_t set;
	int signals, null, r = 0;

	setsid();
	prctl(PR_SET_NAME, NAME);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	/* So that the next agent may take the files, where only root could else. */
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGPIPE);
	sigprocmask(SIG_SETMASK, &set, NULL);
	atomic_store(&s->r->shim, getpid());
	/* The next agent finds them where they are to be, even while the command hangs below.
	 * First all of them out of the way of the numbers. */
	for (int i = 0; i < HELD_END - HELD_MEMORY; i++)
		if (from[i] >= 0)
			from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 64);
	for (int i = 0; i < 3; i++)
		own.fd[i] = fcntl(own.fd[i], F_DUPFD_CLOEXEC, 64);
	if (own.cgroup_fd >= 0) {
		own.cgroup_fd = fcntl(own.cgroup_fd, F_DUPFD_CLOEXEC, 64);
		r = own.cgroup_fd < 0 ? -errno : 0;
	}
	for (int i = 0; i < HELD_END - HELD_MEMORY; i++) {
		if (from[i] >= 0)
			dup3(from[i], HELD_MEMORY + i, O_CLOEXEC);
		else
			close(HELD_MEMORY + i);
	}
	/* It may hang in there, on a file system that does not answer: the agent does not. */
	if (!r)
		r = spawn_and_stand_still(&own, slot, &s->r->pid, &e);
	if (r) {
		siginfo_t none = {.si_code = CLD_EXITED};

		s->r->failed_step = SPAWN_SETUP;
		s->r->failure = -r;
		note_end(s->r, &none, slot, HELD_TELL);
		_exit(1);
	}
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < 3 && null >= 0; i++)
		dup2(null, i);
	/* Of the agent's own nothing stays: not its sockets, not others' pipes. */
	for (int fd = 3; fd < HELD_MEMORY; fd++)
		close(fd);
	if (syscall(SYS_close_range, HELD_END, ~0u, 0u))
		for (int fd = HELD_END; fd < 8192; fd++)
			close(fd);
	sigdelset(&set, SIGPIPE);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signals < 0)
		_exit(1);
	hold(s->r, signals, slot);
	_exit(0);
}

int
exec_shim_start(
	struct exec_shim *s, const struct spawn *what, unsigned slot, struct err *e)
{
	cleanup_close int note = -1, tell = -1;
	struct exec_shim_record *r = s->r;
	int fd[2], pidfd = -1, code;
	sigset_t all, before;
	pid_t pid;

	if (pipe2(fd, O_CLOEXEC))
		return err_sys(e, -errno, "a pipe of a command's shim");
	note = fd[0];
	tell = fd[1];
	atomic_store(&r->agent, getpid());
	/* What it is told before it listens waits, and does not kill it. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = fork();
	if (pid == 0)
		exec_shim_main(s, what, slot, note, tell);
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		return err_sys(e, -errno, "starting a process");
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
	code = pidfd < 0 ? -errno : 0;
	close(TAKE_FD(tell));
	atomic_store(&r->shim, pid);
	if (!code)
		code = io_set_nonblock(note, 1);
	if (code) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		if (pidfd >= 0)
			close(pidfd);
		return err_sys(e, code, "starting a process");
	}
	s->pidfd = pidfd;
	s->is_child = true;
	s->note = TAKE_FD(note);
	close(s->memory);
	s->memory = -1;
	return 0;
}

void
exec_shim_close(struct exec_shim *s, bool all)
{
	if (all)
		atomic_store(&s->r->close_all, 1);
	if (s->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, s->pidfd, SIGUSR2, NULL, 0u);
}

/*
 * The end of shims.
 */

/* Killed, and not yet taken from the table of processes. */
static pid_t killed[AGENT_EXECS_MAX];
static unsigned n_killed;

static void
reap_killed(struct timer *t)
{
	unsigned left = 0;

	for (unsigned i = 0; i < n_killed; i++)
		if (waitpid(killed[i], NULL, WNOHANG) == 0)
			killed[left++] = killed[i];
	n_killed = left;
	if (left)
		timer_set(t, loop_now_ns() + REAP_NS);
}

static struct timer reaper = {.fire = reap_killed};

static void
close_one(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void
exec_shim_done(struct exec_shim *s)
{
	if (s->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0u);
	if (s->is_child && n_killed == AGENT_EXECS_MAX) {
		waitpid(atomic_load(&s->r->shim), NULL, 0);
	} else if (s->is_child) {
		killed[n_killed++] = atomic_load(&s->r->shim);
		timer_set(&reaper, loop_now_ns() + REAP_NS);
	}
	close_one(&s->memory);
	close_one(&s->in);
	close_one(&s->out[0]);
	close_one(&s->out[1]);
	close_one(&s->note);
	close_one(&s->pidfd);
	if (s->r)
		munmap(s->r, s->bytes);
	s->r = NULL;
	s->is_child = false;
}

/*
 * Taking up.
 */

static int
take_fd(int pidfd, int number)
{
	return (int)syscall(SYS_pidfd_getfd, pidfd, number, 0u);
}

static bool
same_pid_namespace(pid_t pid)
{
	struct stat own, its;
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)pid);
	return !stat("/proc/self/ns/pid", &own) && !stat(path, &its) &&
	       own.st_dev == its.st_dev && own.st_ino == its.st_ino;
}

/*
 * Whether a process of our user made this memory, as a record is made. What is in it is
 * believed (it holds even addresses), and the process that has it proves nothing: its name
 * anybody may choose, by a link to a set-user-id program also for a process of root's, and
 * descriptors are inherited. Who made a memfd, and by what name, the kernel keeps.
 */
static bool
is_our_memory(int fd, struct stat *ret_st)
{
	static const char want[] = "/memfd:" MEMORY_NAME " (deleted)";
	cleanup_close int other = memfd_create(MEMORY_NAME, MFD_CLOEXEC);
	char link[40], name[sizeof(want) + 1];
	struct stat st;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, name, sizeof(name));
	/* All memfds are on one device, and nothing with a name is. */
	return n == (ssize_t)sizeof(want) - 1 && memcmp(name, want, (size_t)n) == 0 &&
	       other >= 0 && !fstat(other, &st) && !fstat(fd, ret_st) &&
	       S_ISREG(ret_st->st_mode) && ret_st->st_dev == st.st_dev &&
	       ret_st->st_uid == geteuid() && ret_st->st_size >= (off_t)RECORD_BYTES;
}

static bool
ring_is_sane(const struct ring *r)
{
	return r->cap && !(r->cap & (r->cap - 1)) && r->cap <= AGENT_STDIN_WINDOW &&
	       r->start <= r->end && r->end - r->start <= r->cap;
}

static bool
adopt(pid_t pid, struct exec_shim *s)
{
	struct stat st;

	*s = (struct exec_shim)EXEC_SHIM_INIT;
	s->pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
	/* Root of a container is no root here. */
	s->memory = s->pidfd < 0 || !same_pid_namespace(pid)
			    ? -1
			    : take_fd(s->pidfd, HELD_MEMORY);
	if (s->memory < 0 || !is_our_memory(s->memory, &st))
		return false;
	s->bytes = (size_t)st.st_size;
	s->r = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->memory, 0);
	if (s->r == MAP_FAILED) {
		s->r = NULL;
		return false;
	}
	if (memcmp(s->r->magic, EXEC_SHIM_MAGIC, sizeof(s->r->magic)) != 0 ||
		s->r->size != sizeof(*s->r) || s->r->key != own_key ||
		atomic_load(&s->r->shim) != pid || !ring_is_sane(&s->r->in) ||
		!ring_is_sane(&s->r->out[0]) || !ring_is_sane(&s->r->out[1]) ||
		s->bytes !=
			RECORD_BYTES + s->r->in.cap + s->r->out[0].cap + s->r->out[1].cap)
		return false;
	s->note = take_fd(s->pidfd, HELD_NOTE);
	if (s->note < 0)
		return false;
	s->in = take_fd(s->pidfd, HELD_IN);
	s->out[0] = take_fd(s->pidfd, HELD_OUT);
	s->out[1] = take_fd(s->pidfd, HELD_ERR);
	place_rings(s);
	atomic_store(&s->r->agent, getpid());
	syscall(SYS_pidfd_send_signal, s->pidfd, SIGUSR1, NULL, 0u);
	close_one(&s->memory);
	return true;
}

void
exec_shim_adopt(void (*take)(struct exec_shim *s))
{
	cleanup_closedir DIR *d = opendir("/proc");
	struct dirent *de;

	while (d && (de = readdir(d))) {
		cleanup_free char *name = NULL;
		char path[64];
		struct stat st;
		struct exec_shim s;

		snprintf(path, sizeof(path), "/proc/%.20s/comm", de->d_name);
		if (de->d_name[0] < '1' || de->d_name[0] > '9' ||
			io_read_file(path, 64, &name, NULL, NULL) ||
			strcmp(name, NAME "\n") != 0)
			continue;
		/* Anybody may call himself so. The folder is the user's; what is in it is
		 * root's, too, when the process made itself undumpable. */
		snprintf(path, sizeof(path), "/proc/%.20s", de->d_name);
		if (stat(path, &st) || st.st_uid != geteuid())
			continue;
		if (adopt(atoi(de->d_name), &s)) {
			take(&s);
			continue;
		}
		/* Not ours: let alone. */
		close_one(&s.pidfd);
		exec_shim_done(&s);
	}
}
