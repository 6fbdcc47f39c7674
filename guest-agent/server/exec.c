#include "guest-agent/server/exec.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/wire/json_bytes.h"
#include "guest-agent/server/exec_shim.h"
#include "guest-agent/server/finish.h"
#include "guest-agent/system/command_env.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/spawn.h"
#include "guest-agent/system/tty.h"
#include "guest-agent/system/userdb.h"

#define READ_MAX (64u * 1024u)
/* A background child may hold the pipes for ever: after the command has ended and what it
 * wrote is read, this long without a byte, or that long in all, is the end of its output.
 * Longer while what the command left behind is about to finish, because nobody can write to
 * its standard input any more (`exec > >(cat)`, `cmd | tee`).
 */
#define QUIET_NS 100000000ull
#define QUIET_MAX_NS 1000000000ull
#define FINISH_MAX_NS 10000000000ull
/* Commands that ended and whose end was taken, while somebody still holds their pipes: read
 * and thrown away, so that nobody gets a SIGPIPE. */
#define LINGERING_MAX 64

struct out_stream {
	struct source src;
	struct exec *x;
	struct ring *ring; /* in the record */
	uint64_t keep; /* what the reader has yet to get starts here; only while attached
			*/
	uint64_t unread; /* bytes that were in the pipe when the command ended, still
			    there */
};

struct exec {
	struct exec *next; /* first: loop_free() writes here */
	struct exec_shim shim;
	struct exec_shim_record
		*r;	/* the shim's; what must outlive this process is in there */
	int slot;	/* of spawn.h; -1: none */
	int group_fd;	/* owned; -1 */
	unsigned looks; /* in a row at which nothing was about to finish */

	struct source note;
	struct out_stream out[2];
	struct source in;

	struct timer timeout, quiet, grave;
	uint64_t quiet_until_ns;	/* at the latest */
	uint64_t finish_until_ns;	/* the same while somebody is about to finish */
	const struct exec_listener *on; /* borrowed */
	void *reader;			/* weak; NULL when nobody is attached */
};

static struct exec *table, **table_end = &table;
static unsigned n_running, n_finished, n_lingering;
static uint64_t last_id, orders;
static uint64_t slots_used[SPAWN_SLOTS / 64];

#define container_of(p, type, member) \
	((type *)(void *)((char *)(p)-offsetof(type, member)))

static void check_end(struct exec *x);

static void
notice(struct exec *x)
{
	if (x->reader)
		x->on->news(x->reader);
}

/*
 * Output.
 */

static size_t
room(const struct out_stream *o)
{
	return o->x->reader ? ring_room(o->ring, o->keep) : o->ring->cap;
}

static void
at_end(struct out_stream *o)
{
	struct exec *x = o->x;

	source_close(&o->src);
	o->unread = 0;
	if (x->r->taken && x->out[0].src.fd < 0 && x->out[1].src.fd < 0)
		exec_taken(x);
}

static void
count_output(struct exec *x)
{
	x->r->exit.stdout_bytes = x->r->out[0].end;
	x->r->exit.stderr_bytes = x->r->out[1].end;
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
	if (x->r->taken) {
		n = read(o->src.fd, waste, sizeof(waste));
	} else {
		if (!max) {
			/* The reader is slow: so is the command, as on any pipe. */
			source_wait(&o->src, 0);
			return false;
		}
		pieces = ring_space(o->ring, max < READ_MAX ? max : READ_MAX, iov);
		if (pieces < 0)
			return false; /* level-triggered: memory may be there next time */
		x->r->reading = true;
		n = readv(o->src.fd, iov, pieces);
		if (n <= 0)
			x->r->reading = false;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) { /* EIO: nobody has the terminal open any more */
		at_end(o);
		return false;
	}
	if (x->r->taken)
		return true;
	ring_added(o->ring, (size_t)n);
	x->r->reading = false;
	o->unread -= (uint64_t)n < o->unread ? (uint64_t)n : o->unread;
	if (x->r->state == DRAINING) {
		uint64_t at = loop_now_ns() + QUIET_NS;

		timer_set(&x->quiet, at < x->quiet_until_ns ? at : x->quiet_until_ns);
	} else if (x->r->state == ENDED) {
		/* Of what it left behind: whoever takes its end gets this, too. */
		count_output(x);
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
	return x->out[stream].ring;
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
bury(struct timer *t)
{
	struct exec *x = container_of(t, struct exec, grave);

	exec_shim_done(&x->shim);
	loop_free(x);
}

/* Its memory is there until callers are done with it: a timer fires with nothing below. */
static void
forget(struct exec *x)
{
	unlink_exec(x);
	for (int i = 0; i < 2; i++)
		source_close(&x->out[i].src);
	source_close(&x->in);
	source_close(&x->note);
	timer_stop(&x->timeout);
	timer_stop(&x->quiet);
	x->grave.fire = bury;
	timer_set(&x->grave, loop_now_ns());
}

/* The oldest that fits; NULL when there is none. */
static struct exec *
oldest(bool lingering)
{
	for (struct exec *x = table; x; x = x->next)
		if (x->r->state == ENDED && x->r->taken == lingering && !x->reader)
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

/* Nothing came for a while, and somebody has its output open. */
static bool
is_finishing(struct exec *x)
{
	uint64_t now = loop_now_ns();

	if (x->r->tty || now >= x->finish_until_ns)
		return false;
	switch (finish_look(atomic_load(&x->r->shim), x->r->stdin_ino)) {
	case FINISH_SOON:
		x->looks = 0;
		return true;
	case FINISH_BUSY:
		x->looks = 0;
		return now < x->quiet_until_ns;
	default:
		/* One that was just forked is looked at once more. */
		return x->looks++ == 0;
	}
}

static void
check_end(struct exec *x)
{
	uint64_t now = 0;
	bool open = false;

	if (x->r->state != DRAINING)
		return;
	for (int i = 0; i < 2; i++) {
		struct out_stream *o = &x->out[i];

		if (o->src.fd < 0)
			continue;
		if (!now)
			now = loop_now_ns();
		if (o->unread || now < x->quiet.at_ns)
			return;
		open = true;
	}
	if (open && is_finishing(x)) {
		timer_set(&x->quiet, now + QUIET_NS);
		return;
	}
	timer_stop(&x->quiet);
	if (open && !x->r->tty && !*x->r->message)
		finish_say_who(atomic_load(&x->r->shim), x->out[0].src.fd,
			x->out[1].src.fd, x->r->message, sizeof(x->r->message));
	x->r->state = ENDED;
	unlink_exec(x); /* from here on its age is that of its end */
	append_exec(x);
	n_running--;
	n_finished++;
	x->r->order = ++orders;
	count_output(x);
	reap_group_drop(x->r->id, x->group_fd);
	x->group_fd = -1;
	if (x->slot >= 0)
		slots_used[x->slot / 64] &= ~(1ull << x->slot % 64);
	/* Read on: a background child must not be hurt by the end of its parent's call. */
	for (int i = 0; i < 2; i++)
		source_wait(&x->out[i].src, EPOLLIN);
	notice(x);
	if (x->r->hangup && !x->reader)
		exec_taken(x);
	trim();
}

static void
quiet_over(struct timer *t)
{
	struct exec *x = container_of(t, struct exec, quiet);

	check_end(x);
	/* Waiting for a slow reader: look again. */
	if (x->r->state == DRAINING)
		timer_set(&x->quiet, loop_now_ns() + QUIET_NS);
}

/* Ours, and that of the shim, or the command would never see the end. */
static void
close_input(struct exec *x)
{
	source_close(&x->in);
	exec_shim_close(&x->shim, false);
}

static void
close_stdin(struct exec *x)
{
	close_input(x);
	ring_consume(&x->r->in, x->r->in.end);
	x->r->in_closed = true;
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
kill_all(struct exec *x)
{
	pid_t pid = exec_shim_pid(&x->shim);

	if (pid)
		reap_kill(pid, x->group_fd);
}

/* How it ended, as the shim has noted it. */
static void
take_end(struct exec *x)
{
	const struct exec_shim_record *r = x->r;

	if (r->timed_out) {
		x->r->exit.kind = AGENT_TIMED_OUT;
	} else if (!atomic_load(&r->ended)) {
		/* Somebody has killed the shim. */
		kill_all(x);
		x->r->exit.kind = AGENT_SIGNALLED;
		x->r->exit.value = SIGKILL;
	} else if (r->end_code != CLD_EXITED) {
		x->r->exit.kind = AGENT_SIGNALLED;
		x->r->exit.value = (uint32_t)r->end_status;
	} else if (r->failed_step != SPAWN_OK) {
		x->r->exit.kind = AGENT_SPAWN_FAILED;
		x->r->exit.value = (uint32_t)r->failure;
		snprintf(x->r->message, sizeof(x->r->message), "%s: %s",
			step_sentence((enum spawn_step)r->failed_step),
			strerror(r->failure));
	} else {
		x->r->exit.kind = AGENT_EXITED;
		x->r->exit.value = (uint32_t)r->end_status;
	}
}

/* Its output is read until nobody has it open, or it is quiet. */
static void
start_drain(struct exec *x)
{
	uint64_t now = loop_now_ns();

	x->r->state = DRAINING;
	x->quiet_until_ns = now + QUIET_MAX_NS;
	x->finish_until_ns = now + FINISH_MAX_NS;
	timer_set(&x->quiet, now + QUIET_NS);
}

static void
ended(struct source *s, uint32_t events)
{
	struct exec *x = container_of(s, struct exec, note);
	char c;

	(void)events;
	if (read(s->fd, &c, 1) < 0 && !atomic_load(&x->r->ended))
		return;
	source_close(&x->note);
	timer_stop(&x->timeout);
	take_end(x);
	if (!x->r->in_closed)
		close_stdin(x);

	start_drain(x);
	for (int i = 0; i < 2; i++) {
		struct out_stream *o = &x->out[i];
		int unread = 0;

		if (o->src.fd >= 0 && !ioctl(o->src.fd, FIONREAD, &unread) && unread > 0)
			o->unread = (uint64_t)unread;
		/* Mostly the end of file is there already: no need of another round. */
		while (read_some(o) && x->r->state == DRAINING)
			;
	}
	check_end(x);
}

static void
time_is_up(struct timer *t)
{
	struct exec *x = container_of(t, struct exec, timeout);

	x->r->timed_out = true;
	kill_all(x);
	/* Without a group: what has left its session, and whose parent is gone. */
	if (x->group_fd < 0)
		reap_kill_below(atomic_load(&x->r->shim));
}

bool
exec_ended(const struct exec *x, struct agent_exit *ret, const char **ret_message)
{
	if (x->r->state != ENDED)
		return false;
	*ret = x->r->exit;
	*ret_message = x->r->message;
	return true;
}

void
exec_taken(struct exec *x)
{
	if (x->r->state != ENDED)
		return;
	x->reader = NULL;
	if (!x->r->taken) {
		x->r->taken = true;
		n_finished--;
		n_lingering++;
		for (int i = 0; i < 2; i++) {
			ring_done(x->out[i].ring);
			source_wait(&x->out[i].src, EPOLLIN);
		}
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

/* Whether the character ended a line of the terminal's input, so that nothing is before
 * the next one. */
static bool
ends_line(const struct termios *t, char c)
{
	return c == '\n' || (c == '\r' && (t->c_iflag & ICRNL)) ||
	       (unsigned char)c == t->c_cc[VEOF] ||
	       ((unsigned char)c == t->c_cc[VEOL] && t->c_cc[VEOL]) ||
	       ((unsigned char)c == t->c_cc[VEOL2] && t->c_cc[VEOL2]);
}

/* A terminal has no end of file, only the character that makes one; and that ends a line
 * that was begun, so that it takes a second one then, as it does for a person. Where input
 * is not read by lines it is a character like any other. */
static void
in_flush_eofs(struct exec *x)
{
	struct termios t;
	char c = 4;

	if (!tcgetattr(x->in.fd, &t)) {
		c = (char)t.c_cc[VEOF];
		if (!x->r->eofs_left)
			x->r->eofs_left =
				(t.c_lflag & ICANON) && !ends_line(&t, x->r->last_in) ? 2
										      : 1;
	} else if (!x->r->eofs_left) {
		x->r->eofs_left = 1;
	}
	while (x->r->eofs_left) {
		if (write(x->in.fd, &c, 1) < 0 && errno == EAGAIN) {
			source_wait(&x->in, EPOLLOUT);
			return;
		}
		x->r->eofs_left--;
	}
	x->r->in_eof = false;
}

/* Writes what it can. */
static void
in_flush(struct exec *x)
{
	while (x->in.fd >= 0 && x->r->in.end > x->r->in.start) {
		struct iovec iov[2];
		int pieces = ring_at(&x->r->in, x->r->in.start,
			(size_t)(x->r->in.end - x->r->in.start), iov);
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
		x->r->last_in = (size_t)n <= iov[0].iov_len
					? ((char *)iov[0].iov_base)[n - 1]
					: ((char *)iov[1].iov_base)[(size_t)n -
								    iov[0].iov_len - 1];
		ring_consume(&x->r->in, x->r->in.start + (uint64_t)n);
		notice(x); /* credit */
	}
	source_wait(&x->in, 0);
	if (!x->r->in_eof || x->in.fd < 0)
		return;
	if (x->r->tty) {
		in_flush_eofs(x);
		return;
	}
	close_input(x);
	x->r->in_closed = true;
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

	if (x->r->in_eof && !x->r->in_closed)
		return err_set(e, -EPROTO, "input after its end");
	if (!x->r->in_closed && x->r->in.end - x->r->in.start + len > AGENT_STDIN_WINDOW)
		return err_set(e, -EPROTO, "more input than the window allows");
	if (x->r->in_closed) {
		ring_consume(&x->r->in, x->r->in.end + len);
		return 0;
	}
	while (len && x->r->in.start == x->r->in.end) {
		ssize_t n = write(x->in.fd, in, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			close_stdin(x);
			return 0;
		}
		x->r->last_in = in[n - 1];
		in += n;
		len -= (size_t)n;
		ring_consume(&x->r->in, x->r->in.end + (uint64_t)n);
		notice(x);
	}
	if (!len)
		return 0;
	if (ring_space(&x->r->in, len, iov) < 0)
		return err_sys(e, -ENOMEM, "keeping input");
	memcpy(iov[0].iov_base, in, iov[0].iov_len);
	memcpy(iov[1].iov_base, in + iov[0].iov_len, len - iov[0].iov_len);
	ring_added(&x->r->in, len);
	source_wait(&x->in, EPOLLOUT);
	return 0;
}

void
exec_stdin_eof(struct exec *x)
{
	if (x->r->in_closed)
		return;
	x->r->in_eof = true;
	in_flush(x);
}

struct exec_stdin_state
exec_stdin_state(const struct exec *x)
{
	return (struct exec_stdin_state){
		.accepted = x->r->in.end,
		.limit = x->r->in.start + AGENT_STDIN_WINDOW,
		.closed = x->r->in_closed,
	};
}

/*
 * Readers.
 */

void
exec_attach(
	struct exec *x, const struct exec_listener *l, void *ctx, const uint64_t from[2])
{
	if (x->reader)
		x->on->superseded(x->reader);
	x->on = l;
	x->reader = ctx;
	for (int i = 0; i < 2; i++)
		x->out[i].keep = from[i];
}

/* A terminal whose other end is closed sends what runs on it a SIGHUP by itself. */
static void
hang_up(struct exec *x)
{
	if (!x->r->tty) {
		exec_signal(x, SIGHUP, NULL);
		return;
	}
	close_stdin(x);
	at_end(&x->out[0]);
	exec_shim_close(&x->shim, true);
}

void
exec_detach(struct exec *x, const void *ctx)
{
	if (x->reader != ctx)
		return;
	x->reader = NULL;
	if (x->r->state == ENDED && x->r->hangup) {
		exec_taken(x);
		return;
	}
	if (x->r->state == ENDED)
		trim();
	else if (x->r->hangup)
		hang_up(x);
	for (int i = 0; i < 2; i++)
		source_wait(&x->out[i].src, EPOLLIN);
}

int
exec_signal(struct exec *x, int signo, struct err *e)
{
	pid_t pid = x->r->state == RUNNING ? exec_shim_pid(&x->shim) : 0;

	/* Once it is reaped its number may be another's. */
	if (!pid)
		return err_set(e, -ESRCH, "command e%llu has ended",
			(unsigned long long)x->r->id);
	if (kill(-pid, signo) && kill(pid, signo))
		return err_sys(e, -errno, "signal %d to command e%llu", signo,
			(unsigned long long)x->r->id);
	return 0;
}

int
exec_winsize(struct exec *x, uint16_t rows, uint16_t cols)
{
	struct winsize ws = {.ws_row = rows, .ws_col = cols};

	if (!x->r->tty || x->out[0].src.fd < 0)
		return 0;
	return ioctl(x->out[0].src.fd, TIOCSWINSZ, &ws) ? -errno : 0;
}

struct exec *
exec_find(uint64_t id)
{
	for (struct exec *x = table; x; x = x->next)
		if (x->r->id == id && !x->r->taken)
			return x;
	return NULL;
}

uint64_t
exec_id(const struct exec *x)
{
	return x->r->id;
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
	unsigned n = n_running + n_finished;

	/* What is under way to a person is what a Ctrl-C during a flood has to wait for.
	 */
	return n < 16 && !tty ? 256 * 1024 : n < 64 ? 64 * 1024 : 16 * 1024;
}

/* "-bash" for /bin/bash: how a shell is told that somebody logs in. */
static char *
login_name(const char *shell)
{
	const char *slash = strrchr(shell, '/');
	char *name = NULL;

	return asprintf(&name, "-%s", slash ? slash + 1 : shell) < 0 ? NULL : name;
}

static int
argv_json(char *const *argv, char dst[static EXEC_SHIM_ARGV_MAX])
{
	cleanup_json_out struct json_out o = {0};
	size_t left = 2048;

	json_out_array(&o, NULL);
	for (; *argv; argv++) {
		size_t len = strlen(*argv) + 4;

		if (len > left) {
			json_out_str(&o, NULL, "…");
			break;
		}
		left -= len;
		json_out_bytes(&o, NULL, *argv);
	}
	json_out_end_array(&o);
	if (o.error || o.len >= EXEC_SHIM_ARGV_MAX)
		return -ENOMEM;
	memcpy(dst, o.buf, o.len + 1);
	return 0;
}

/* Numbers are never given again, not by the next agent and not after the next boot: the
 * second and five random digits, and a number of four. */
static uint64_t
next_id(void)
{
	uint32_t number = (uint32_t)io_now_ns();

	if (last_id && last_id % 10000 != 9999)
		return last_id + 1;
	(void)!getrandom(&number, sizeof(number), GRND_NONBLOCK);
	return (io_wall_ms() / 1000 * 100000 + number % 100000) * 10000 + 1;
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

/* Takes over what the shim holds. */
static int
watch(struct exec *x, struct exec_shim *shim)
{
	int r = 0;

	x->shim = *shim;
	*shim = (struct exec_shim)EXEC_SHIM_INIT;
	x->r = x->shim.r;
	source_init(&x->note, TAKE_FD(x->shim.note), ended);
	source_init(&x->in, TAKE_FD(x->shim.in), in_ready);
	for (int i = 0; i < 2; i++) {
		source_init(&x->out[i].src, TAKE_FD(x->shim.out[i]), out_ready);
		x->out[i].x = x;
		x->out[i].ring = &x->r->out[i];
		x->out[i].keep = x->r->out[i].start;
	}
	x->timeout.fire = time_is_up;
	x->quiet.fire = quiet_over;
	r = source_wait(&x->note, EPOLLIN);
	for (int i = 0; i < 2 && !r; i++)
		r = source_wait(&x->out[i].src, EPOLLIN);
	return r;
}

int
exec_start(const struct request *q, struct exec **ret, struct err *e)
{
	cleanup_env struct env env = {0};
	cleanup_close int ours0 = -1, ours1 = -1, ours2 = -1, group = -1;
	cleanup_close int theirs0 = -1, theirs1 = -1, theirs2 = -1;
	cleanup_free struct exec *x = NULL;
	cleanup_free char *login = NULL;
	__attribute__((cleanup(exec_shim_done))) struct exec_shim shim = EXEC_SHIM_INIT;
	char *login_argv[2] = {NULL, NULL};
	char *const *argv = q->argv;
	struct user user;
	struct spawn s;
	struct stat st;
	unsigned slot;
	int r;
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
			"the agent does not run as root and cannot start a command as \"%s\"",
			user.name);
	r = command_env_build(&env, &user, q->tty ? tty_term(q->term) : NULL, q->env, e);
	if (r)
		return r;
	if (q->login) {
		login_argv[0] = login = login_name(user.shell);
		argv = login_argv;
	}
	x = calloc(1, sizeof(*x));
	if (!x)
		return err_sys(e, -ENOMEM, "a command");
	r = exec_shim_make(&shim, AGENT_STDIN_WINDOW, journal_size(q->tty), e);
	if (!r && argv_json(argv, shim.r->argv))
		r = err_sys(e, -ENOMEM, "a command");
	if (r)
		return r;

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
		/* Opened by name (/dev/stdout), a pipe is its owner's. */
		if (!r && switch_user &&
			((q->want_stdin && fchown(theirs0, user.uid, user.gid)) ||
				fchown(theirs1, user.uid, user.gid) ||
				fchown(theirs2, user.uid, user.gid)))
			r = err_sys(e, -errno, "giving pipes to \"%s\"", user.name);
	}
	if (r)
		return r;

	shim.in = TAKE_FD(ours0);
	shim.out[0] = TAKE_FD(ours1);
	shim.out[1] = TAKE_FD(ours2);
	shim.r->id = next_id();
	slot = free_slot();
	if (q->timeout_ms)
		group = reap_group_make(shim.r->id);
	s = (struct spawn){
		.argv = argv,
		.file = q->login ? user.shell : NULL,
		.envp = env.v,
		.path = env_get(&env, "PATH"),
		.cwd = q->cwd,
		.user = &user,
		.switch_user = switch_user,
		.fd = {theirs0, theirs1, theirs2},
		.tty = q->tty,
		.cgroup_fd = group,
	};
	shim.r->started_ms = io_wall_ms();
	shim.r->order = ++orders;
	shim.r->deadline_ns = q->timeout_ms ? io_now_ns() + q->timeout_ms * 1000000 : 0;
	shim.r->stdin_ino =
		!q->tty && shim.in >= 0 && !fstat(shim.in, &st) ? st.st_ino : 0;
	shim.r->grouped = group >= 0;
	shim.r->tty = q->tty;
	shim.r->last_in = '\n';
	shim.r->hangup = q->hangup;
	shim.r->in_closed = shim.in < 0;
	r = exec_shim_start(&shim, &s, slot, e);
	if (r) {
		reap_group_drop(shim.r->id, TAKE_FD(group));
		return r;
	}

	last_id = shim.r->id;
	slots_used[slot / 64] |= 1ull << slot % 64;
	x->slot = (int)slot;
	x->group_fd = TAKE_FD(group);
	/* epoll_ctl fails for want of memory only; the command runs, and must then not be
	 * left alone. */
	if (watch(x, &shim)) {
		kill_all(x);
		for (int i = 0; i < 2; i++)
			source_close(&x->out[i].src);
		source_close(&x->in);
		source_close(&x->note);
		reap_group_drop(x->r->id, x->group_fd);
		slots_used[slot / 64] &= ~(1ull << slot % 64);
		exec_shim_done(&x->shim);
		return err_sys(e, -ENOMEM, "watching the command");
	}
	n_running++;
	if (q->timeout_ms)
		timer_set(&x->timeout, loop_now_ns() + q->timeout_ms * 1000000);
	append_exec(x);
	*ret = TAKE_PTR(x);
	return 0;
}

/*
 * After a restart.
 */

/* Of what the agent was held for nothing counts against limits. */
static void
put_off(uint64_t ns)
{
	for (struct exec *x = table; x; x = x->next)
		if (x->r->deadline_ns)
			x->r->deadline_ns += ns;
}

static void
insert_by_order(struct exec *x)
{
	struct exec **at = &table;

	while (*at && (*at)->r->order < x->r->order)
		at = &(*at)->next;
	x->next = *at;
	*at = x;
	if (!x->next)
		table_end = &x->next;
}

static void
adopt(struct exec_shim *shim)
{
	struct exec *x = calloc(1, sizeof(*x));
	uint64_t now = io_now_ns();

	if (!x || watch(x, shim)) {
		log_err("a command of before cannot be taken up: no memory");
		return; /* the shim keeps it for the next agent */
	}
	x->slot = -1;
	x->group_fd =
		x->r->grouped && x->r->state != ENDED ? reap_group_open(x->r->id) : -1;
	if (x->r->order > orders)
		orders = x->r->order;
	insert_by_order(x);
	if (x->r->reading)
		log_warn(
			"command e%llu: output that was just read when the agent was killed may be lost",
			(unsigned long long)x->r->id);
	x->r->reading = false;
	if (x->r->in_closed && x->in.fd >= 0)
		close_input(x);
	else if (x->in.fd >= 0)
		in_flush(x);
	if (x->r->state == ENDED) {
		source_close(&x->note);
		if (!x->r->taken)
			n_finished++;
		else if (x->out[0].src.fd >= 0 || x->out[1].src.fd >= 0)
			n_lingering++;
		else
			forget(x);
		return;
	}
	n_running++;
	if (x->r->state == DRAINING) {
		source_close(&x->note);
		start_drain(x);
		return;
	}
	if (x->r->deadline_ns)
		timer_set(&x->timeout,
			loop_now_ns() +
				(x->r->deadline_ns > now ? x->r->deadline_ns - now : 0));
	if (atomic_load(&x->r->ended))
		ended(&x->note, 0);
}

void
exec_init(void)
{
	loop_lost = put_off;
	exec_shim_adopt(adopt);
	if (n_running || n_finished)
		log_info(
			"taken up from the agent of before: %u commands that run, %u that have ended",
			n_running, n_finished);
	trim();
}

void
exec_list(struct json_out *o)
{
	static const char *const kinds[] = {
		"", "exited", "signalled", "timed_out", "spawn_failed"};

	for (struct exec *x = table; x; x = x->next) {
		char id[24];

		if (x->r->taken)
			continue;
		snprintf(id, sizeof(id), "e%llu", (unsigned long long)x->r->id);
		json_out_object(o, NULL);
		json_out_str(o, "id", id);
		json_out_raw(o, "argv", x->r->argv, strlen(x->r->argv));
		json_out_str(o, "state",
			x->r->state == ENDED ? kinds[x->r->exit.kind] : "running");
		json_out_u64(o, "pid", (uint64_t)atomic_load(&x->r->pid));
		json_out_u64(o, "started_ms", x->r->started_ms);
		if (x->r->state == ENDED)
			json_out_u64(o, "value", x->r->exit.value);
		json_out_u64(o, "stdout", x->r->out[0].end);
		json_out_u64(o, "stderr", x->r->out[1].end);
		json_out_bool(o, "tty", x->r->tty);
		json_out_bool(o, "attached", x->reader != NULL);
		json_out_bool(o, "stdin_open", !x->r->in_closed);
		json_out_end_object(o);
	}
}
