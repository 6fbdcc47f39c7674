#include "guest-agent/server/exec.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/json_bytes.h"
#include "guest-agent/server/conn.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/spawn.h"
#include "guest-agent/system/tty.h"
#include "guest-agent/system/userdb.h"

#define READ_MAX (64u * 1024u)
/* A background child may hold the pipes for ever: after the command has ended and what it
 * wrote is read, this long without a byte, or that long in all, is the end of its output.
 */
#define QUIET_NS 100000000ull
#define QUIET_MAX_NS 1000000000ull
/* Commands that ended, whose pipes somebody still holds: read and thrown away, so that
 * nobody gets a SIGPIPE. */
#define LINGERING_MAX 64

enum exec_state { RUNNING, DRAINING, ENDED };

struct out_stream {
	struct source src;
	struct exec *x;
	struct ring ring;
	uint64_t keep; /* what the reader has yet to get starts here; only while attached
			*/
	uint64_t unread; /* bytes that were in the pipe when the command ended, still
			    there */
};

struct exec {
	struct exec *next; /* first: loop_free() writes here */
	uint64_t id;
	enum exec_state state;
	char *argv_json; /* owned; for the list */
	uint64_t started_ms;
	pid_t pid;
	unsigned slot; /* of spawn.h */
	int group_fd;  /* owned; -1 */
	bool tty, timed_out, taken;
	bool hangup; /* nobody will take it up again */

	struct source pidfd;
	struct out_stream out[2];
	struct source in;
	struct ring in_ring; /* start: bytes the command has taken; end: bytes accepted */
	bool in_eof, in_closed;

	struct timer timeout, quiet;
	uint64_t quiet_until_ns; /* at the latest */

	struct agent_exit exit;
	char message[256];
	struct conn *reader; /* weak; NULL when nobody is attached */
};

static struct exec *table, **table_end = &table;
static unsigned n_running, n_finished, n_lingering;
static uint64_t last_id;
static uint64_t slots_used[SPAWN_SLOTS / 64];

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

static void check_end(struct exec *x);

static void
notice(struct exec *x)
{
	if (x->reader)
		conn_notice(x->reader);
}

/*
 * Output.
 */

static size_t
room(const struct out_stream *o)
{
	return o->x->reader ? ring_room(&o->ring, o->keep) : o->ring.cap;
}

static void
at_end(struct out_stream *o)
{
	struct exec *x = o->x;

	source_close(&o->src);
	o->unread = 0;
	if (x->taken && x->out[0].src.fd < 0 && x->out[1].src.fd < 0)
		exec_taken(x);
}

/* One read. False when there is no more to be had now. */
static bool
read_some(struct out_stream *o)
{
	static char waste[4096];
	struct exec *x = o->x;
	struct iovec iov[2];
	size_t max = room(o);
	ssize_t n;
	int pieces;

	if (o->src.fd < 0)
		return false;
	if (x->state == ENDED) {
		n = read(o->src.fd, waste, sizeof(waste));
	} else {
		if (!max) {
			/* The reader is slow: so is the command, as on any pipe. */
			source_wait(&o->src, 0);
			return false;
		}
		pieces = ring_space(&o->ring, max < READ_MAX ? max : READ_MAX, iov);
		if (pieces < 0)
			return false; /* level-triggered: memory may be there next time */
		n = readv(o->src.fd, iov, pieces);
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) { /* EIO: the terminal's last shim is gone */
		at_end(o);
		return false;
	}
	if (x->state == ENDED)
		return true;
	ring_added(&o->ring, (size_t)n);
	o->unread -= (uint64_t)n < o->unread ? (uint64_t)n : o->unread;
	if (x->state == DRAINING) {
		uint64_t at = loop_now_ns() + QUIET_NS;

		timer_set(&x->quiet, at < x->quiet_until_ns ? at : x->quiet_until_ns);
	}
	notice(x);
	return true;
}

static void
out_ready(struct source *s, uint32_t events)
{
	struct out_stream *o = container_of(s, struct out_stream, src);

	/* Only a hang-up: empty and closed, as most streams end. */
	if (events & EPOLLIN)
		read_some(o);
	else
		at_end(o);
	check_end(o->x);
}

const struct ring *
exec_output(const struct exec *x, int stream)
{
	return &x->out[stream].ring;
}

void
exec_sent(struct exec *x, int stream, uint64_t offset)
{
	struct out_stream *o = &x->out[stream];

	o->keep = offset;
	if (room(o))
		source_wait(&o->src, EPOLLIN);
}

/*
 * The end.
 */

static void
unlink_exec(struct exec *x)
{
	struct exec **at = &table;

	while (*at != x)
		at = &(*at)->next;
	*at = x->next;
	if (table_end == &x->next)
		table_end = at;
}

static void
append_exec(struct exec *x)
{
	x->next = NULL;
	*table_end = x;
	table_end = &x->next;
}

static void
forget(struct exec *x)
{
	unlink_exec(x);
	for (int i = 0; i < 2; i++) {
		source_close(&x->out[i].src);
		ring_done(&x->out[i].ring);
	}
	source_close(&x->in);
	ring_done(&x->in_ring);
	free(x->argv_json);
	loop_free(x);
}

/* The oldest that fits; NULL when there is none. */
static struct exec *
oldest(bool lingering)
{
	for (struct exec *x = table; x; x = x->next)
		if (x->state == ENDED && x->taken == lingering && !x->reader)
			return x;
	return NULL;
}

static void
trim(void)
{
	struct exec *x;

	while (n_finished > AGENT_FINISHED_MAX && (x = oldest(false))) {
		n_finished--;
		forget(x);
	}
	while (n_lingering > LINGERING_MAX && (x = oldest(true))) {
		n_lingering--;
		forget(x);
	}
}

static void
check_end(struct exec *x)
{
	uint64_t now = 0;

	if (x->state != DRAINING)
		return;
	for (int i = 0; i < 2; i++) {
		struct out_stream *o = &x->out[i];

		if (o->src.fd < 0)
			continue;
		if (!now)
			now = loop_now_ns();
		if (o->unread || now < x->quiet.at_ns)
			return;
	}
	timer_stop(&x->quiet);
	x->state = ENDED;
	unlink_exec(x); /* from here on its age is that of its end */
	append_exec(x);
	n_running--;
	n_finished++;
	x->exit.stdout_bytes = x->out[0].ring.end;
	x->exit.stderr_bytes = x->out[1].ring.end;
	reap_group_drop(x->id, x->group_fd);
	x->group_fd = -1;
	slots_used[x->slot / 64] &= ~(1ull << x->slot % 64);
	/* Read on and throw away: a background child must not be hurt by the end of its
	 * parent's call. */
	for (int i = 0; i < 2; i++)
		source_wait(&x->out[i].src, EPOLLIN);
	notice(x);
	if (x->hangup && !x->reader)
		exec_taken(x);
	trim();
}

static void
quiet_over(struct timer *t)
{
	struct exec *x = container_of(t, struct exec, quiet);

	check_end(x);
	/* Waiting for a slow reader: look again. */
	if (x->state == DRAINING)
		timer_set(&x->quiet, loop_now_ns() + QUIET_NS);
}

static void
close_stdin(struct exec *x)
{
	source_close(&x->in);
	ring_consume(&x->in_ring, x->in_ring.end);
	x->in_closed = true;
	notice(x);
}

static const char *
step_sentence(enum spawn_step step)
{
	switch (step) {
	case SPAWN_USER:
		return "switching to the user";
	case SPAWN_CWD:
		return "going to the working folder";
	case SPAWN_EXEC:
		return "starting the program";
	default:
		return "setting up the process";
	}
}

static void
ended(struct source *s, uint32_t events)
{
	struct exec *x = container_of(s, struct exec, pidfd);
	siginfo_t info = {0};
	enum spawn_step step;
	int code;

	(void)events;
	if (waitid(P_PIDFD, (id_t)x->pidfd.fd, &info, WEXITED | WNOHANG) || !info.si_pid)
		return;
	source_close(&x->pidfd);
	timer_stop(&x->timeout);
	if (x->timed_out) {
		x->exit.kind = AGENT_TIMED_OUT;
	} else if (info.si_code != CLD_EXITED) {
		x->exit.kind = AGENT_SIGNALLED;
		x->exit.value = (uint32_t)info.si_status;
	} else if (info.si_status == 127 &&
		   (step = spawn_failure(x->slot, &code)) != SPAWN_OK) {
		x->exit.kind = AGENT_SPAWN_FAILED;
		x->exit.value = (uint32_t)code;
		snprintf(x->message, sizeof(x->message), "%s: %s", step_sentence(step),
			strerror(code));
	} else {
		x->exit.kind = AGENT_EXITED;
		x->exit.value = (uint32_t)info.si_status;
	}
	if (!x->in_closed)
		close_stdin(x);

	x->state = DRAINING;
	x->quiet_until_ns = loop_now_ns() + QUIET_MAX_NS;
	timer_set(&x->quiet, loop_now_ns() + QUIET_NS);
	for (int i = 0; i < 2; i++) {
		struct out_stream *o = &x->out[i];
		int unread = 0;

		if (o->src.fd >= 0 && !ioctl(o->src.fd, FIONREAD, &unread) && unread > 0)
			o->unread = (uint64_t)unread;
		/* Mostly the end of file is there already: no need of another round. */
		while (read_some(o) && x->state == DRAINING)
			;
	}
	check_end(x);
}

static void
time_is_up(struct timer *t)
{
	struct exec *x = container_of(t, struct exec, timeout);

	x->timed_out = true;
	reap_kill(x->pid, x->group_fd);
}

bool
exec_ended(const struct exec *x, struct agent_exit *ret, const char **ret_message)
{
	if (x->state != ENDED)
		return false;
	*ret = x->exit;
	*ret_message = x->message;
	return true;
}

void
exec_taken(struct exec *x)
{
	if (x->state != ENDED)
		return;
	x->reader = NULL;
	if (!x->taken) {
		x->taken = true;
		n_finished--;
		n_lingering++;
		for (int i = 0; i < 2; i++)
			ring_done(&x->out[i].ring);
	}
	if (x->out[0].src.fd < 0 && x->out[1].src.fd < 0) {
		n_lingering--;
		forget(x);
	}
	trim();
}

/*
 * Input.
 */

/* Writes what it can. */
static void
in_flush(struct exec *x)
{
	while (x->in.fd >= 0 && x->in_ring.end > x->in_ring.start) {
		struct iovec iov[2];
		int pieces = ring_at(&x->in_ring, x->in_ring.start,
			(size_t)(x->in_ring.end - x->in_ring.start), iov);
		ssize_t n = writev(x->in.fd, iov, pieces);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			source_wait(&x->in, EPOLLOUT);
			return;
		}
		if (n < 0) {
			close_stdin(x);
			return;
		}
		ring_consume(&x->in_ring, x->in_ring.start + (uint64_t)n);
		notice(x); /* credit */
	}
	source_wait(&x->in, 0);
	if (!x->in_eof || x->in.fd < 0)
		return;
	if (x->tty) {
		/* A terminal has no end of file, only the character that makes one. */
		struct termios t;
		char c = 4;

		if (!tcgetattr(x->in.fd, &t))
			c = (char)t.c_cc[VEOF];
		if (write(x->in.fd, &c, 1) < 0 && errno == EAGAIN) {
			source_wait(&x->in, EPOLLOUT);
			return;
		}
		x->in_eof = false;
		return;
	}
	source_close(&x->in);
	x->in_closed = true;
}

static void
in_ready(struct source *s, uint32_t events)
{
	struct exec *x = container_of(s, struct exec, in);

	(void)events;
	in_flush(x);
}

int
exec_stdin(struct exec *x, const void *buf, size_t len, struct err *e)
{
	const char *in = buf;
	struct iovec iov[2];

	if (x->in_eof && !x->in_closed)
		return err_set(e, -EPROTO, "input after its end");
	if (!x->in_closed && x->in_ring.end - x->in_ring.start + len > AGENT_STDIN_WINDOW)
		return err_set(e, -EPROTO, "more input than the window allows");
	if (x->in_closed) {
		ring_consume(&x->in_ring, x->in_ring.end + len);
		return 0;
	}
	while (len && x->in_ring.start == x->in_ring.end) {
		ssize_t n = write(x->in.fd, in, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			close_stdin(x);
			return 0;
		}
		in += n;
		len -= (size_t)n;
		ring_consume(&x->in_ring, x->in_ring.end + (uint64_t)n);
		notice(x);
	}
	if (!len)
		return 0;
	if (ring_space(&x->in_ring, len, iov) < 0)
		return err_sys(e, -ENOMEM, "keeping input");
	memcpy(iov[0].iov_base, in, iov[0].iov_len);
	memcpy(iov[1].iov_base, in + iov[0].iov_len, len - iov[0].iov_len);
	ring_added(&x->in_ring, len);
	source_wait(&x->in, EPOLLOUT);
	return 0;
}

void
exec_stdin_eof(struct exec *x)
{
	if (x->in_closed)
		return;
	x->in_eof = true;
	in_flush(x);
}

struct exec_stdin_state
exec_stdin_state(const struct exec *x)
{
	return (struct exec_stdin_state){
		.accepted = x->in_ring.end,
		.limit = x->in_ring.start + AGENT_STDIN_WINDOW,
		.closed = x->in_closed,
	};
}

/*
 * Readers.
 */

void
exec_attach(struct exec *x, struct conn *c, const uint64_t from[2])
{
	if (x->reader)
		conn_superseded(x->reader);
	x->reader = c;
	for (int i = 0; i < 2; i++)
		x->out[i].keep = from[i];
}

/* A terminal whose other end is closed sends what runs on it a SIGHUP by itself. */
static void
hang_up(struct exec *x)
{
	if (!x->tty) {
		exec_signal(x, SIGHUP, NULL);
		return;
	}
	close_stdin(x);
	at_end(&x->out[0]);
}

void
exec_detach(struct exec *x, struct conn *c)
{
	if (x->reader != c)
		return;
	x->reader = NULL;
	if (x->state == ENDED) {
		if (x->hangup)
			exec_taken(x);
		trim();
		return;
	}
	if (x->hangup)
		hang_up(x);
	for (int i = 0; i < 2; i++)
		source_wait(&x->out[i].src, EPOLLIN);
}

int
exec_signal(struct exec *x, int signo, struct err *e)
{
	/* Once it is reaped its number may be another's. */
	if (x->state != RUNNING)
		return err_set(
			e, -ESRCH, "command e%llu has ended", (unsigned long long)x->id);
	if (kill(-x->pid, signo) && kill(x->pid, signo))
		return err_sys(e, -errno, "signal %d to command e%llu", signo,
			(unsigned long long)x->id);
	return 0;
}

int
exec_winsize(struct exec *x, uint16_t rows, uint16_t cols)
{
	struct winsize ws = {.ws_row = rows, .ws_col = cols};

	if (!x->tty || x->out[0].src.fd < 0)
		return 0;
	return ioctl(x->out[0].src.fd, TIOCSWINSZ, &ws) ? -errno : 0;
}

struct exec *
exec_find(uint64_t id)
{
	for (struct exec *x = table; x; x = x->next)
		if (x->id == id && !x->taken)
			return x;
	return NULL;
}

uint64_t
exec_id(const struct exec *x)
{
	return x->id;
}

/*
 * The start.
 */

static int
pipe_for(int *ours, int *theirs, bool we_write, struct err *e)
{
	int fd[2];

	if (pipe2(fd, O_CLOEXEC))
		return err_sys(e, -errno, "a pipe for the command");
	*ours = fd[we_write];
	*theirs = fd[!we_write];
	/* Ours only: the command's own end is its business. */
	if (fcntl(*ours, F_SETFL, O_NONBLOCK))
		return err_sys(e, -errno, "a pipe for the command");
	return 0;
}

/* Many commands at once share the memory of a few. */
static size_t
journal_size(bool tty)
{
	/* What is under way to a person is what a Ctrl-C during a flood has to wait for.
	 */
	return n_running < 16 && !tty ? 256 * 1024
	       : n_running < 64	      ? 64 * 1024
				      : 16 * 1024;
}

/* "-bash" for /bin/bash: how a shell is told that somebody logs in. */
static char *
login_name(const char *shell)
{
	const char *slash = strrchr(shell, '/');
	char *name = NULL;

	return asprintf(&name, "-%s", slash ? slash + 1 : shell) < 0 ? NULL : name;
}

static char *
argv_json(char *const *argv)
{
	cleanup_json_out struct json_out o = {0};
	size_t left = 2048;

	json_out_array(&o, NULL);
	for (; *argv; argv++) {
		size_t len = strlen(*argv);

		if (len > left) {
			json_out_str(&o, NULL, "…");
			break;
		}
		left -= len;
		json_out_bytes(&o, NULL, *argv);
	}
	json_out_end_array(&o);
	return o.error ? NULL : TAKE_PTR(o.buf);
}

static unsigned
free_slot(void)
{
	unsigned i = 0;

	/* There are more slots than commands running at once. */
	while (slots_used[i / 64] & 1ull << i % 64)
		i++;
	return i;
}

int
exec_start(const struct request *q, struct exec **ret, struct err *e)
{
	cleanup_environment struct environment env = {0};
	cleanup_close int ours0 = -1, ours1 = -1, ours2 = -1, group = -1;
	cleanup_close int theirs0 = -1, theirs1 = -1, theirs2 = -1;
	cleanup_free struct exec *x = NULL;
	cleanup_free char *json = NULL, *login = NULL;
	char *login_argv[2] = {NULL, NULL};
	char *const *argv = q->argv;
	struct user user;
	struct spawn s;
	int pidfd, r;
	bool switch_user;

	if (n_running >= AGENT_EXECS_MAX)
		return err_set(e, -EAGAIN,
			"%d commands run in this guest already; wait for one to end",
			AGENT_EXECS_MAX);
	r = user_find(q->user, q->user != NULL, &user, e);
	if (r)
		return r;
	switch_user = q->user && (user.uid != geteuid() || user.gid != getegid());
	if (switch_user && geteuid())
		return err_set(e, -EPERM,
			"the agent does not run as root and cannot become \"%s\"",
			user.name);
	r = environment_build(&env, &user, q->tty ? tty_term(q->term) : NULL, q->env, e);
	if (r)
		return r;
	if (q->login) {
		login_argv[0] = login = login_name(user.shell);
		argv = login_argv;
	}
	json = argv[0] ? argv_json(argv) : NULL;
	x = calloc(1, sizeof(*x));
	if (!x || !json)
		return err_sys(e, -ENOMEM, "a command");

	if (q->tty) {
		r = tty_open(q->rows, q->cols, switch_user ? user.uid : (uid_t)-1, &ours1,
			&theirs0, e);
		if (!r) {
			ours0 = fcntl(ours1, F_DUPFD_CLOEXEC, 3);
			theirs1 = fcntl(theirs0, F_DUPFD_CLOEXEC, 3);
			theirs2 = fcntl(theirs0, F_DUPFD_CLOEXEC, 3);
			if (ours0 < 0 || theirs1 < 0 || theirs2 < 0)
				r = err_sys(e, -errno, "a terminal");
		}
	} else {
		if (q->want_stdin)
			r = pipe_for(&ours0, &theirs0, true, e);
		else if ((theirs0 = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
			r = err_sys(e, -errno, "/dev/null");
		if (!r)
			r = pipe_for(&ours1, &theirs1, false, e);
		if (!r)
			r = pipe_for(&ours2, &theirs2, false, e);
	}
	if (r)
		return r;

	x->id = last_id + 1;
	x->slot = free_slot();
	if (q->timeout_ms)
		group = reap_group_make(x->id);
	s = (struct spawn){
		.argv = argv,
		.file = q->login ? user.shell : NULL,
		.envp = env.v,
		.path = environment_get(&env, "PATH"),
		.cwd = q->cwd,
		.user = &user,
		.switch_user = switch_user,
		.fd = {theirs0, theirs1, theirs2},
		.tty = q->tty,
		.cgroup_fd = group,
	};
	r = spawn_start(&s, x->slot, &x->pid, &pidfd, e);
	if (r) {
		reap_group_drop(x->id, TAKE_FD(group));
		return r;
	}

	last_id = x->id;
	slots_used[x->slot / 64] |= 1ull << x->slot % 64;
	n_running++;
	x->argv_json = TAKE_PTR(json);
	x->started_ms = io_wall_ms();
	x->group_fd = TAKE_FD(group);
	x->tty = q->tty;
	x->hangup = q->hangup;
	x->in_closed = ours0 < 0;
	source_init(&x->pidfd, pidfd, ended);
	source_init(&x->in, TAKE_FD(ours0), in_ready);
	ring_init(&x->in_ring, AGENT_STDIN_WINDOW);
	source_init(&x->out[0].src, TAKE_FD(ours1), out_ready);
	source_init(&x->out[1].src, TAKE_FD(ours2), out_ready);
	for (int i = 0; i < 2; i++) {
		x->out[i].x = x;
		ring_init(&x->out[i].ring, journal_size(q->tty));
	}
	x->timeout.fire = time_is_up;
	x->quiet.fire = quiet_over;
	if (q->timeout_ms)
		timer_set(&x->timeout, loop_now_ns() + q->timeout_ms * 1000000);
	/* epoll_ctl fails for want of memory only; the command runs, and must then not be
	 * left alone. */
	if (source_wait(&x->pidfd, EPOLLIN) || source_wait(&x->out[0].src, EPOLLIN) ||
		source_wait(&x->out[1].src, EPOLLIN)) {
		reap_kill(x->pid, x->group_fd);
		waitid(P_PIDFD, (id_t)x->pidfd.fd, NULL, WEXITED);
		timer_stop(&x->timeout);
		source_close(&x->pidfd);
		source_close(&x->in);
		for (int i = 0; i < 2; i++)
			source_close(&x->out[i].src);
		reap_group_drop(x->id, x->group_fd);
		slots_used[x->slot / 64] &= ~(1ull << x->slot % 64);
		n_running--;
		free(x->argv_json);
		loop_free(TAKE_PTR(x));
		return err_sys(e, -ENOMEM, "watching the command");
	}
	append_exec(x);
	*ret = TAKE_PTR(x);
	return 0;
}

void
exec_list(struct json_out *o)
{
	static const char *const kinds[] = {
		"", "exited", "signalled", "timed_out", "spawn_failed"};

	for (struct exec *x = table; x; x = x->next) {
		char id[24];

		if (x->taken)
			continue;
		snprintf(id, sizeof(id), "e%llu", (unsigned long long)x->id);
		json_out_object(o, NULL);
		json_out_str(o, "id", id);
		json_out_raw(o, "argv", x->argv_json, strlen(x->argv_json));
		json_out_str(
			o, "state", x->state == ENDED ? kinds[x->exit.kind] : "running");
		json_out_u64(o, "pid", (uint64_t)x->pid);
		json_out_u64(o, "started_ms", x->started_ms);
		if (x->state == ENDED)
			json_out_u64(o, "value", x->exit.value);
		json_out_u64(o, "stdout", x->out[0].ring.end);
		json_out_u64(o, "stderr", x->out[1].ring.end);
		json_out_bool(o, "tty", x->tty);
		json_out_bool(o, "attached", x->reader != NULL);
		json_out_bool(o, "stdin_open", !x->in_closed);
		json_out_end_object(o);
	}
}
