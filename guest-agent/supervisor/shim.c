#include "guest-agent/supervisor/shim.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "guest-agent/supervisor/supervisor.h"
#include "guest-agent/system/command_env.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/spawn.h"
#include "guest-agent/system/userdb.h"

#define LOOK_MS 3000

/* Where the shim has them: the next supervisor finds them by these numbers. */
enum held_fd {
	HELD_IN = 10,
	HELD_OUT,
	HELD_ERR,
	HELD_SPOOL,
	HELD_FIFO,
	HELD_DIR,
	HELD_END
};

/* What both sides need to start a program. */
struct starting {
	const struct rpc_place *p;
	const struct rpc_conf *c;
	struct user *user;
	struct env *env;
	int ours[HELD_END - HELD_IN];
	int theirs[3];
	bool adopts; /* is a subreaper */
};

static void
on_close_in(int signo)
{
	(void)signo;
	close(HELD_IN);
}

static void
note_exit(const struct rpc_exit *x)
{
	char text[256];
	int n = snprintf(
		text, sizeof(text), "%d %d %s\n", (int)x->kind, x->value, x->message);

	/* A full disk: the supervisor asks again and again for what cannot be written. */
	while (rpc_write_file(HELD_DIR, "run/exit", text, (size_t)n))
		sleep(1);
}

static const char *
step_name(enum spawn_step s)
{
	switch (s) {
	case SPAWN_USER:
		return "switching to its user";
	case SPAWN_CWD:
		return "its folder";
	case SPAWN_EXEC:
		return "its program";
	default:
		return "its set-up";
	}
}

/* A supervisor that was killed: without one the program would stand still as soon as its
 * pipes are full. */
static void
see_to_supervisor(const struct starting *s)
{
	struct rpc_place there = *s->p;
	pid_t pid, supervisor;

	there.dir = HELD_DIR;
	if (rpc_lock_owner(&there, RPC_LOCK_SUPERVISOR) ||
		faccessat(HELD_DIR, "wanted", F_OK, 0))
		return;
	/* Not a child of ours: nobody here would take its end, and what descends from us
	 * is killed with the program. */
	if (s->adopts)
		prctl(PR_SET_CHILD_SUBREAPER, 0);
	pid = fork();
	if (!pid) {
		supervisor_spawn(&there, &supervisor, NULL);
		_exit(0);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
	if (s->adopts)
		prctl(PR_SET_CHILD_SUBREAPER, 1);
}

/* What the program's processes left behind when they ended comes to us. The program
 * itself stays a zombie. */
static void
take_orphans(pid_t program)
{
	siginfo_t info = {0};

	while (!waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid &&
		info.si_pid != program) {
		waitpid(info.si_pid, NULL, WNOHANG);
		info.si_pid = 0;
	}
}

/* All that the program starts, however it detaches itself, can be found again: in a
 * control group of its own, or else below us. */
static int
enclose(struct starting *s)
{
	char path[REAP_PATH_MAX];
	int fd;

	reap_init();
	fd = reap_named_make(s->p->name, path);
	if (fd >= 0 && !rpc_write_file(HELD_DIR, "run/group", path, strlen(path)))
		return fd;
	if (fd >= 0) {
		close(fd);
		reap_named_end(path);
	}
	s->adopts = !prctl(PR_SET_CHILD_SUBREAPER, 1);
	return -1;
}

static void
hold(struct starting *s)
{
	struct spawn spawn = {
		.argv = s->c->argv,
		.envp = s->env->v,
		.path = env_get(s->env, "PATH"),
		.cwd = s->c->folder,
		.user = s->user,
		.switch_user = s->c->user && s->user->uid != geteuid(),
		.cgroup_fd = -1,
	};
	struct rpc_exit x = {.kind = RPC_NOT_STARTED};
	struct err e = {0};
	siginfo_t info = {0};
	char text[32];
	pid_t pid;
	int pidfd, code;

	memcpy(spawn.fd, s->theirs, sizeof(spawn.fd));
	spawn.cgroup_fd = enclose(s);
	if (spawn_start(&spawn, 0, &pid, &pidfd, &e)) {
		x.value = -e.code;
		snprintf(x.message, sizeof(x.message), "%.190s", e.msg);
		note_exit(&x);
		return;
	}
	for (int i = 0; i < 3; i++)
		close(s->theirs[i]);
	if (spawn.cgroup_fd >= 0)
		close(spawn.cgroup_fd);
	snprintf(text, sizeof(text), "%d\n", (int)pid);
	(void)rpc_write_file(HELD_DIR, "run/program", text, strlen(text));
	for (struct pollfd end = {.fd = pidfd, .events = POLLIN};
		!(end.revents & POLLIN);)
		if (poll(&end, 1, LOOK_MS) == 0) {
			take_orphans(pid);
			see_to_supervisor(s);
		}
	/* Left a zombie: its number stays its own as long as the shim is there. */
	while (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) && errno == EINTR)
		;
	x.kind = info.si_code == CLD_EXITED ? RPC_EXITED : RPC_SIGNALLED;
	x.value = info.si_status;
	if (x.kind == RPC_EXITED && x.value == 127) {
		enum spawn_step step = spawn_failure(0, &code);

		if (step != SPAWN_OK) {
			x.kind = RPC_NOT_STARTED;
			x.value = code;
			snprintf(x.message, sizeof(x.message), "%s (%.100s): %s",
				step_name(step),
				step == SPAWN_CWD ? s->c->folder : s->c->argv[0],
				strerror(code));
		}
	}
	note_exit(&x);
}

static _Noreturn void
shim_main(struct starting *s, int ready)
{
	struct sigaction sa = {.sa_handler = on_close_in, .sa_flags = SA_RESTART};
	sigset_t set;
	int high;

	setsid();
	umask(022); /* the program's */
	prctl(PR_SET_NAME, "rpc-shim");
	/* Out of the way of the numbers first. */
	for (int i = 0; i < HELD_END - HELD_IN; i++) {
		high = fcntl(s->ours[i], F_DUPFD_CLOEXEC, 32);
		if (high < 0)
			_exit(1);
		s->ours[i] = high;
	}
	for (int i = 0; i < 3; i++) {
		high = fcntl(s->theirs[i], F_DUPFD_CLOEXEC, 32);
		if (high < 0)
			_exit(1);
		s->theirs[i] = high;
	}
	ready = fcntl(ready, F_DUPFD_CLOEXEC, 32);
	for (int i = 0; i < HELD_END - HELD_IN; i++)
		if (dup3(s->ours[i], HELD_IN + i, O_CLOEXEC) < 0)
			_exit(1);
	/* Of the supervisor's own nothing stays but 2, its log. */
	for (int fd = 0; fd < 1024; fd++) {
		bool keep = fd == 2 || (fd >= HELD_IN && fd < HELD_END) || fd == ready;

		for (int i = 0; i < 3; i++)
			keep = keep || fd == s->theirs[i];
		if (!keep)
			close(fd);
	}
	{
		struct rpc_place there = *s->p;

		there.dir = HELD_DIR;
		if (rpc_lock_take(&there, RPC_LOCK_SHIM, NULL))
			_exit(2);
	}
	sigaction(SIGUSR1, &sa, NULL);
	sigfillset(&set);
	sigdelset(&set, SIGUSR1);
	sigprocmask(SIG_SETMASK, &set, NULL);
	if (write(ready, "1", 1) != 1)
		_exit(1);
	close(ready);
	hold(s);
	for (;;)
		if (poll(NULL, 0, LOOK_MS) == 0)
			see_to_supervisor(s);
}

static int
make_pipes(struct starting *s, struct err *e)
{
	for (int i = 0; i < 3; i++) {
		int fd[2], ours = i ? 0 : 1;

		if (pipe2(fd, O_CLOEXEC))
			return err_sys(e, -errno, "a pipe");
		s->ours[i] = fd[ours];
		s->theirs[i] = fd[!ours];
		io_set_nonblock(fd[ours], 1);
		/* Opened by name (/dev/stdout), a pipe is its owner's. */
		if (s->c->user && s->user->uid != geteuid() &&
			fchown(fd[0], s->user->uid, s->user->gid))
			return err_sys(e, -errno, "giving a pipe to \"%s\"", s->c->user);
	}
	return 0;
}

static int
build_environment(struct starting *s, struct err *e)
{
	cleanup_free char *text = NULL;
	char path[PATH_MAX];
	int r = user_find(s->c->user, s->c->user != NULL, s->user, e);

	if (!r)
		r = command_env_build(s->env, s->user, NULL, NULL, e);
	if (r)
		return r;
	if (*rpc_root() && !rpc_path(path, "/etc/environment", NULL) &&
		!io_read_file(path, 1u << 20, &text, NULL, NULL))
		env_read_pam(s->env, text);
	for (char **v = s->c->env; v && *v; v++)
		env_put(s->env, *v);
	command_env_reach_node(s->env);
	env_put_value(s->env, "PANDO_RPC", s->p->name);
	return s->env->failed ? err_sys(e, -ENOMEM, "its environment") : 0;
}

static int
start(struct starting *s, uint64_t spool_at, int fifo, struct rpc_held *ret,
	struct err *e)
{
	int ready[2], r = make_pipes(s, e);
	pid_t pid;
	char c;

	if (r)
		return r;
	s->ours[HELD_SPOOL - HELD_IN] = openat(s->p->dir, "spool", O_RDONLY | O_CLOEXEC);
	s->ours[HELD_FIFO - HELD_IN] = fcntl(fifo, F_DUPFD_CLOEXEC, 3);
	s->ours[HELD_DIR - HELD_IN] = fcntl(s->p->dir, F_DUPFD_CLOEXEC, 3);
	for (int i = 0; i < HELD_END - HELD_IN; i++)
		if (s->ours[i] < 0)
			return err_sys(e, -errno, "a descriptor of its own");
	if (lseek(s->ours[HELD_SPOOL - HELD_IN], (off_t)spool_at, SEEK_SET) < 0 ||
		pipe2(ready, O_CLOEXEC))
		return err_sys(e, -errno, "starting a shim");
	unlinkat(s->p->dir, "run/exit", 0);
	unlinkat(s->p->dir, "run/program", 0);
	unlinkat(s->p->dir, "run/group", 0);
	pid = fork();
	if (!pid)
		shim_main(s, ready[1]);
	r = pid < 0 ? -errno : 0;
	close(ready[1]);
	/* Until it has the lock: a supervisor that comes after this one must find it. */
	if (!r && io_read(ready[0], &c, 1) != 1) {
		waitpid(pid, NULL, 0);
		r = -EBUSY;
	}
	close(ready[0]);
	if (r)
		return err_sys(e, r, "starting a shim");
	ret->shim = pid;
	ret->program = 0;
	ret->in = TAKE_FD(s->ours[0]);
	ret->out = TAKE_FD(s->ours[1]);
	ret->err = TAKE_FD(s->ours[2]);
	ret->spool = TAKE_FD(s->ours[HELD_SPOOL - HELD_IN]);
	return 0;
}

int
shim_start(const struct rpc_place *p, const struct rpc_conf *c, uint64_t spool_at,
	int fifo, struct rpc_held *ret, struct err *e)
{
	cleanup_env struct env env = {0};
	cleanup_free struct user *user = calloc(1, sizeof(*user));
	struct starting s = {.p = p, .c = c, .user = user, .env = &env};
	int r;

	for (int i = 0; i < HELD_END - HELD_IN; i++)
		s.ours[i] = -1;
	for (int i = 0; i < 3; i++)
		s.theirs[i] = -1;
	r = user ? build_environment(&s, e) : err_sys(e, -ENOMEM, "its user");
	if (!r)
		r = start(&s, spool_at, fifo, ret, e);
	for (int i = 0; i < HELD_END - HELD_IN; i++)
		if (s.ours[i] >= 0)
			close(s.ours[i]);
	for (int i = 0; i < 3; i++)
		if (s.theirs[i] >= 0)
			close(s.theirs[i]);
	return r;
}

static int
take_fd(int pidfd, int number, int *ret)
{
	/* pidfd_getfd(2); what comes is close-on-exec. */
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0u);

	if (fd < 0)
		return -errno;
	*ret = fd;
	return 0;
}

int
shim_adopt(const struct rpc_place *p, struct rpc_held *ret, struct err *e)
{
	struct rpc_held h = RPC_HELD_INIT;
	cleanup_close int pidfd = -1;
	pid_t pid = rpc_lock_owner(p, RPC_LOCK_SHIM);
	char text[32];
	int r;

	if (pid <= 0)
		return pid ? err_sys(e, pid, "looking for a shim") : 0;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
	/* The lock once more: the number is the shim's as long as that has it. */
	if (pidfd < 0 || rpc_lock_owner(p, RPC_LOCK_SHIM) != pid)
		return 0;
	h.shim = pid;
	r = take_fd(pidfd, HELD_OUT, &h.out);
	if (!r)
		r = take_fd(pidfd, HELD_ERR, &h.err);
	if (!r)
		r = take_fd(pidfd, HELD_SPOOL, &h.spool);
	/* It may have been told to close this one. */
	if (!r && take_fd(pidfd, HELD_IN, &h.in) && errno != EBADF)
		r = -errno;
	if (r) {
		shim_release(p, &h);
		return err_sys(e, r, "taking over from shim %d", (int)pid);
	}
	if (rpc_read_file(p->dir, "run/program", text, sizeof(text)) > 0)
		h.program = atoi(text);
	*ret = h;
	return 1;
}

int
shim_exit(const struct rpc_place *p, const struct rpc_held *h, struct rpc_exit *ret)
{
	struct rpc_exit x = {0};
	char text[256];
	int kind, at = 0;
	bool there = rpc_lock_owner(p, RPC_LOCK_SHIM) == h->shim;

	if (rpc_read_file(p->dir, "run/exit", text, sizeof(text)) > 0 &&
		sscanf(text, "%d %d %n", &kind, &x.value, &at) == 2 && kind >= 0 &&
		kind <= RPC_NOT_STARTED) {
		x.kind = (enum rpc_exit_kind)kind;
		text[strcspn(text, "\n")] = 0;
		if (at)
			snprintf(x.message, sizeof(x.message), "%.199s", text + at);
	} else if (!there) {
		x.kind = RPC_LOST;
	} else {
		return 0;
	}
	*ret = x;
	return 1;
}

void
shim_kill(const struct rpc_place *p, const struct rpc_held *h)
{
	char path[REAP_PATH_MAX];

	if (rpc_read_file(p->dir, "run/group", path, sizeof(path)) > 0 &&
		reap_named_end(path))
		return;
	if (h->program)
		reap_kill(h->program, -1);
	if (h->shim && rpc_lock_owner(p, RPC_LOCK_SHIM) == h->shim)
		reap_kill_below(h->shim);
}

void
shim_close_in(const struct rpc_place *p, struct rpc_held *h)
{
	if (h->in >= 0)
		close(h->in);
	h->in = -1;
	if (h->shim && rpc_lock_owner(p, RPC_LOCK_SHIM) == h->shim)
		kill(h->shim, SIGUSR1);
}

static void
close_one(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void
shim_release(const struct rpc_place *p, struct rpc_held *h)
{
	close_one(&h->in);
	close_one(&h->out);
	close_one(&h->err);
	close_one(&h->spool);
	if (h->shim && rpc_lock_owner(p, RPC_LOCK_SHIM) == h->shim) {
		struct timespec nap = {.tv_nsec = 1000000};

		kill(h->shim, SIGKILL);
		for (int i = 0; i < 1000 && rpc_lock_owner(p, RPC_LOCK_SHIM) == h->shim;
			i++)
			nanosleep(&nap, NULL);
	}
	h->shim = h->program = 0;
}
