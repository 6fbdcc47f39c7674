#include "guest-agent/supervisor/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "guest-agent/supervisor/rpc_input.h"
#include "guest-agent/supervisor/rpc_journal.h"
#include "guest-agent/supervisor/rpc_scan.h"
#include "guest-agent/supervisor/rpc_watch.h"
#include "guest-agent/supervisor/shim.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/reap.h"
#include "guest-agent/system/spawn.h"

#define SECOND_NS 1000000000ull
#define TAKE_MAX (256u * 1024u)
#define TAKES_A_TURN 8
/* After the end of a program: more than its pipes can hold. */
#define DRAIN_TURNS 64

enum supervisor_state {
	ST_RUNNING,
	ST_DRAINING,
	ST_WAITING,
	ST_ENDED,
	ST_FAILED,
	ST_STOPPED
};
static const char *const state_names[] = {
	"running", "running", "waiting", "ended", "failed", "stopped"};

/* Why a program is being ended by us. */
enum ending { END_NOT, END_STOP, END_FORK, END_QUIET, END_DONE, END_LEFT };

struct stream {
	struct source src;
	struct journal journal;
	bool full; /* the disk; tried again */
};

static struct supervisor {
	struct rpc_place place;
	struct rpc_conf conf;
	struct rpc_identity who;
	enum supervisor_state state;
	enum ending ending;
	unsigned ending_step;
	char reason[256];
	struct rpc_held held;
	struct stream out[2]; /* out, err */
	struct rpc_input input;
	struct source signals, notes;
	int watch_state, watch_run;
	struct timer restart, stop, watchdog, drain;
	uint64_t failures_ns[1000]; /* of the last conf.limit ones, a ring */
	unsigned n_failures, in_a_row;
	uint64_t started_ns, started_ms, last_out_ns, busy_ns, done_ns;
	uint64_t starts;
	bool done, done_well, begun, compacts;
	struct rpc_scan scan; /* of a line that comes in pieces */
	char *look;	      /* owned */
	size_t look_cap;
} k;

static void begin_end(enum ending why);
static void start_program(void);

/*
 * What it says of itself.
 */

static void
say_state(void)
{
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_str(&o, "state", state_names[k.state]);
	if (k.reason[0])
		json_out_str(&o, "reason", k.reason);
	json_out_i64(&o, "keeper", getpid());
	json_out_i64(&o, "program", k.state == ST_RUNNING ? k.held.program : 0);
	json_out_u64(&o, "starts", k.starts);
	json_out_u64(&o, "failures", k.n_failures);
	if (k.started_ms)
		json_out_u64(&o, "started_ms", k.started_ms);
	json_out_bool(&o, "busy", k.busy_ns != 0);
	json_out_u64(&o, "refused", k.input.refused);
	json_out_str(&o, "vm", k.who.vm[0] ? k.who.vm : NULL);
	json_out_str(&o, "generation", k.who.generation[0] ? k.who.generation : NULL);
	json_out_end_object(&o);
	if (!o.error && rpc_write_file(k.place.dir, "state", o.buf, o.len))
		log_warn("its state could not be written");
}

static void
enter(enum supervisor_state s)
{
	k.state = s;
	say_state();
}

/*
 * Watchdogs.
 */

static void
arm_watchdog(void)
{
	uint64_t at = UINT64_MAX;
	/* Of a raw one nobody knows when it works. */
	bool works = k.busy_ns || k.conf.protocol == RPC_RAW;

	timer_stop(&k.watchdog);
	if (k.state != ST_RUNNING || k.ending)
		return;
	if (k.conf.quiet_s && works) {
		uint64_t since = k.last_out_ns > k.busy_ns ? k.last_out_ns : k.busy_ns;

		at = since + k.conf.quiet_s * SECOND_NS;
	}
	if (k.conf.exit_s && k.done && k.done_ns + k.conf.exit_s * SECOND_NS < at)
		at = k.done_ns + k.conf.exit_s * SECOND_NS;
	if (at != UINT64_MAX)
		timer_set(&k.watchdog, at);
}

static void
bark(struct timer *t)
{
	uint64_t now = loop_now_ns();

	(void)t;
	if (k.state != ST_RUNNING || k.ending)
		return;
	if (k.conf.exit_s && k.done && now >= k.done_ns + k.conf.exit_s * SECOND_NS) {
		log_warn("done, and still there %u s later: it is ended", k.conf.exit_s);
		begin_end(END_DONE);
		return;
	}
	log_warn("no output for %u s: it is ended", k.conf.quiet_s);
	begin_end(END_QUIET);
}

/*
 * Output.
 */

static const char *
look_at(struct journal *j, const struct journal_record *r)
{
	if (r->len > k.look_cap) {
		char *bigger = realloc(k.look, r->len);

		if (!bigger)
			return NULL;
		k.look = bigger;
		k.look_cap = r->len;
	}
	return io_pread_full(j->data_fd, k.look, r->len, r->offset) ? NULL : k.look;
}

static void
saw(enum rpc_event event, const char *line, size_t len)
{
	cleanup_json_out struct json_out o = {0};

	switch (event) {
	case RPC_BEGINS:
	case RPC_RETRIES:
		k.done = false;
		k.begun = true;
		if (!k.busy_ns)
			k.busy_ns = loop_now_ns();
		break;
	case RPC_COMPACTS:
		/* A prompt that failed may go on after it. */
		k.compacts = k.done && !k.done_well;
		if (!k.compacts)
			return;
		k.done = false;
		k.busy_ns = loop_now_ns();
		break;
	case RPC_COMPACTED:
		if (!k.compacts)
			return;
		__attribute__((fallthrough));
	case RPC_DONE:
	case RPC_FAILED:
		k.compacts = false;
		k.done = true;
		k.done_well = event == RPC_DONE;
		k.done_ns = loop_now_ns();
		k.busy_ns = 0;
		k.begun = false;
		break;
	case RPC_REFUSED:
	case RPC_ANSWERED:
		/* What it was given began no work. */
		if (k.begun || !k.busy_ns)
			return;
		k.busy_ns = 0;
		break;
	case RPC_DIALOG:
		if (rpc_proto_answer(k.conf.protocol, k.conf.dialogs, line, len, &o) &&
			!o.error)
			input_say(&k.input, o.buf, o.len);
		return;
	default:
		return;
	}
	say_state();
}

static void
out_line(void *ctx, const struct journal_record *r)
{
	const char *line;

	if (r->flags & JOURNAL_TORN)
		k.scan.under_way = false;
	if (k.conf.protocol == RPC_RAW || r->flags & JOURNAL_TORN)
		return;
	line = look_at(ctx, r);
	/* One that is longer than what is looked at as a whole: pi's agent_end, which holds
	 * all of a conversation. */
	if (line && (r->flags & JOURNAL_PIECE || k.scan.under_way))
		rpc_scan_feed(&k.scan, line, r->len);
	if (!line || r->flags & JOURNAL_PIECE)
		return;
	if (k.scan.under_way)
		saw(rpc_scan_end(&k.scan, k.conf.protocol, NULL), "", 0);
	else
		saw(rpc_proto_event(k.conf.protocol, line, r->len, NULL), line, r->len);
}

/* What is in the pipe now. 1: there is more; 0: not now; -1: never, or the disk is full
 * (full). */
static int
take(struct stream *s)
{
	struct journal *j = &s->journal;
	ssize_t n;
	int r = 0, result = 1;

	s->full = false;
	for (int turn = 0; turn < TAKES_A_TURN && result == 1; turn++) {
		n = journal_take(j, s->src.fd, TAKE_MAX);
		if (n == -EAGAIN)
			result = 0;
		else if (n <= 0)
			result = -1;
		if (n > 0)
			k.last_out_ns = loop_now_ns();
		if (n < 0 && n != -EAGAIN) {
			static struct log_limit limit = {.burst = 1};

			s->full = true;
			if (log_allowed(&limit))
				log_err("keeping %s: %s", j->name, strerror((int)-n));
		}
	}
	r = journal_index(j, s == &k.out[0] ? out_line : NULL, j);
	if (!r)
		r = journal_trim(j, (uint64_t)k.conf.keep_mib << 20);
	if (r) {
		static struct log_limit limit = {.burst = 1};

		if (log_allowed(&limit))
			log_err("the index of %s: %s", j->name, strerror(-r));
		if (result != 1)
			s->full = true;
	}
	if (k.look_cap > 1024u * 1024u) {
		free(k.look);
		k.look = NULL;
		k.look_cap = 0;
	}
	return result;
}

static void
out_ready(struct source *src, uint32_t events)
{
	struct stream *s = src == &k.out[0].src ? &k.out[0] : &k.out[1];

	(void)events;
	if (take(s) < 0) {
		/* Its end is seen by the program's; a full disk is tried again. */
		source_wait(src, 0);
		if (s->full)
			timer_set(&k.drain, loop_now_ns() + SECOND_NS);
	}
	arm_watchdog();
}

/*
 * The program's end.
 */

static void
describe(const struct rpc_exit *x, char *dst, size_t cap)
{
	switch (x->kind) {
	case RPC_EXITED:
		snprintf(dst, cap, "it ended with status %d", x->value);
		break;
	case RPC_SIGNALLED:
		snprintf(dst, cap, "signal %d ended it", x->value);
		break;
	case RPC_NOT_STARTED:
		snprintf(dst, cap, "it could not be started: %.190s", x->message);
		break;
	default:
		snprintf(dst, cap, "its shim is gone, and it with that");
	}
}

/* Counts a failure: true when there were too many. */
static bool
too_many(void)
{
	uint64_t now = loop_now_ns();
	unsigned in_window = 0;

	k.failures_ns[k.n_failures++ % k.conf.limit] = now;
	for (unsigned i = 0; i < k.conf.limit && i < k.n_failures; i++)
		if (now - k.failures_ns[i] <= k.conf.window_s * SECOND_NS)
			in_window++;
	return in_window >= k.conf.limit;
}

static void
start_later(bool failed)
{
	uint64_t ms = k.conf.delay_ms;

	/* It ran for a while: what it was has nothing to do with this failure. */
	if (loop_now_ns() - k.started_ns > k.conf.delay_max_ms * UINT64_C(2000000))
		k.in_a_row = 0;
	for (unsigned i = 0; failed && i < k.in_a_row && ms < k.conf.delay_max_ms; i++)
		ms *= 2;
	if (ms > k.conf.delay_max_ms)
		ms = k.conf.delay_max_ms;
	k.in_a_row = failed ? k.in_a_row + 1 : 0;
	timer_set(&k.restart, loop_now_ns() + ms * 1000000);
	enter(ST_WAITING);
}

static void
by_policy(const struct rpc_exit *x)
{
	bool well = x->kind == RPC_EXITED && !x->value;
	char how[256];

	describe(x, how, sizeof(how));
	log_info("%s", how);
	snprintf(k.reason, sizeof(k.reason), "%s", how);
	if (k.conf.restart == RPC_RESTART_NEVER ||
		(k.conf.restart == RPC_RESTART_ON_FAILURE && well)) {
		enter(well ? ST_ENDED : ST_FAILED);
		return;
	}
	if (!well && too_many()) {
		snprintf(k.reason, sizeof(k.reason),
			"it failed %u times within %u s; the last time %.150s. See err, mend it, and start it again",
			k.conf.limit, k.conf.window_s, how);
		log_err("%s", k.reason);
		enter(ST_FAILED);
		return;
	}
	start_later(!well);
}

static _Noreturn void
leave(void)
{
	k.reason[0] = 0;
	enter(ST_STOPPED);
	log_info("stopped");
	exit(EXIT_OK);
}

static void
after_end(const struct rpc_exit *x)
{
	enum ending why = k.ending;

	k.ending = END_NOT;
	k.busy_ns = 0;
	k.begun = false;
	switch (why) {
	case END_STOP:
		leave();
	case END_FORK:
		k.in_a_row = 0;
		start_program();
		return;
	case END_QUIET:
		snprintf(k.reason, sizeof(k.reason), "it wrote nothing for %u s",
			k.conf.quiet_s);
		if (k.conf.quiet_stops || too_many())
			enter(ST_FAILED);
		else
			start_later(true);
		return;
	case END_DONE:
		snprintf(k.reason, sizeof(k.reason),
			"it was done and did not end for %u s", k.conf.exit_s);
		enter(k.done_well ? ST_ENDED : ST_FAILED);
		return;
	case END_LEFT:
	case END_NOT:
		by_policy(x);
	}
}

/* Input that the program never took is the next one's, from the beginning of its line. */
static void
keep_unread(void)
{
	int unread = 0, in = input_detach(&k.input);
	off_t at = lseek(k.held.spool, 0, SEEK_CUR);
	uint64_t start;

	if (in >= 0)
		ioctl(in, FIONREAD, &unread);
	if (in >= 0)
		close(in);
	if (at < 0)
		return;
	if (unread < 0 || unread > at)
		unread = 0;
	if (!spool_line_start(k.held.spool, (uint64_t)(at - unread), &start))
		spool_set_forwarded(k.place.dir, start);
}

/* For who follows a prompt: whatever had begun before this byte will not go on. */
static void
say_ended(void)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "%" PRIu64 "\n", k.out[0].journal.indexed);

	if (rpc_write_file(k.place.dir, "ended", text, (size_t)n))
		log_warn("where its output ended could not be written");
}

static void
drain(void)
{
	struct rpc_exit x;
	bool full = false;

	for (int i = 0; i < 2; i++) {
		struct stream *s = &k.out[i];
		int r = s->src.fd < 0 ? -1 : 1;

		for (unsigned turn = 0; r == 1 && turn < DRAIN_TURNS; turn++)
			r = take(s);
		full = full || s->full;
	}
	if (full) {
		timer_set(&k.drain, loop_now_ns() + SECOND_NS);
		return;
	}
	timer_stop(&k.drain);
	timer_stop(&k.stop);
	shim_exit(&k.place, &k.held, &x);
	for (int i = 0; i < 2; i++) {
		int r = journal_tear(&k.out[i].journal);

		if (r)
			log_err("%s: %s", k.out[i].journal.name, strerror(-r));
		/* The descriptor is closed as the held one. */
		source_wait(&k.out[i].src, 0);
		k.out[i].src.fd = -1;
	}
	say_ended();
	keep_unread();
	shim_release(&k.place, &k.held);
	unlinkat(k.place.dir, "run/program", 0);
	unlinkat(k.place.dir, "run/exit", 0);
	unlinkat(k.place.dir, "run/group", 0);
	after_end(&x);
}

/* Of a supervisor and shim that were both killed: a program without anybody, if it is
 * that one. */
static void
end_orphan(void)
{
	char text[32], path[64], want[64];
	cleanup_free char *env = NULL;
	size_t len;
	pid_t pid;

	/* With a control group it is known what was its own. */
	shim_kill(&k.place, &(struct rpc_held)RPC_HELD_INIT);
	if (rpc_read_file(k.place.dir, "run/program", text, sizeof(text)) <= 0)
		return;
	pid = atoi(text);
	snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
	if (pid > 1 && !io_read_file(path, 1u << 20, &env, &len, NULL)) {
		size_t n = (size_t)snprintf(
				   want, sizeof(want), "PANDO_RPC=%s", k.place.name) +
			   1;

		if (memmem(env, len, want, n)) {
			log_warn("process %d was left without a shim: it is ended",
				(int)pid);
			reap_kill(pid, -1);
		}
	}
	unlinkat(k.place.dir, "run/program", 0);
}

static void
check_end(void)
{
	struct rpc_exit x;

	if (k.state != ST_RUNNING || !shim_exit(&k.place, &k.held, &x))
		return;
	k.state = ST_DRAINING;
	timer_stop(&k.watchdog);
	timer_stop(&k.stop);
	/* What it left running was its own. A shim that was killed let the pipes go:
	 * the program is of no use without, and its number may be another's by now. */
	if (k.held.program && x.kind != RPC_LOST)
		shim_kill(&k.place, &k.held);
	else
		end_orphan();
	drain();
}

static void
drain_again(struct timer *t)
{
	(void)t;
	if (k.state == ST_DRAINING) {
		drain();
		return;
	}
	for (int i = 0; i < 2; i++)
		source_wait(&k.out[i].src, EPOLLIN);
}

/*
 * Ending it: its input ends; half the time later it is asked; then all of it is killed.
 */

static void
end_step(struct timer *t)
{
	uint64_t half_ns = k.conf.stop_s * SECOND_NS / 2;
	pid_t program = k.held.program;

	(void)t;
	if (k.state != ST_RUNNING)
		return;
	switch (k.ending_step++) {
	case 0:
		/* One that is to begin anew keeps its input, so that what it has not read
		 * can be counted. */
		if (k.ending == END_STOP || k.ending == END_DONE) {
			int in = input_detach(&k.input);

			if (in >= 0)
				close(in);
			shim_close_in(&k.place, &k.held);
			break;
		}
		k.ending_step++;
		__attribute__((fallthrough));
	case 1:
		if (program)
			kill(-program, SIGTERM);
		break;
	default:
		if (program)
			shim_kill(&k.place, &k.held);
		half_ns = SECOND_NS;
	}
	timer_set(&k.stop, loop_now_ns() + half_ns);
}

static void
begin_end(enum ending why)
{
	/* A stop is not put off by whatever else was going on. */
	if (k.ending) {
		if (why == END_STOP)
			k.ending = why;
		return;
	}
	k.ending = why;
	k.ending_step = k.conf.stop_s ? 0 : 2;
	timer_stop(&k.watchdog);
	end_step(NULL);
}

/*
 * Its begin.
 */

static void
fed(struct rpc_input *in)
{
	(void)in;
	if (!k.busy_ns) {
		k.busy_ns = loop_now_ns();
		k.done = false;
		say_state();
	} else {
		k.busy_ns = loop_now_ns();
	}
	arm_watchdog();
}

static void
attach(void)
{
	uint64_t now = loop_now_ns();

	k.busy_ns = k.done_ns = 0;
	k.done = k.begun = k.compacts = false;
	k.last_out_ns = now;
	k.ending = END_NOT;
	source_init(&k.out[0].src, k.held.out, out_ready);
	source_init(&k.out[1].src, k.held.err, out_ready);
	for (int i = 0; i < 2; i++)
		if (source_wait(&k.out[i].src, EPOLLIN))
			log_err("watching its output: %s", strerror(errno));
	enter(ST_RUNNING);
	if (k.held.in >= 0)
		input_attach(&k.input, TAKE_FD(k.held.in), k.held.spool);
	arm_watchdog();
	check_end();
}

static void
start_program(void)
{
	struct rpc_conf conf;
	struct spool_state s;
	struct err e = {0};
	uint64_t at = 0;
	int r;

	timer_stop(&k.restart);
	/* Read again each time: it may have been mended. */
	r = rpc_conf_read(k.place.conf, &conf, &e);
	if (!r) {
		rpc_conf_done(&k.conf);
		k.conf = conf;
		r = spool_state_read(k.place.dir, &s, &e);
	}
	if (!r) {
		cleanup_close int fd = openat(k.place.dir, "spool", O_RDONLY | O_CLOEXEC);

		r = fd < 0 ? -errno : spool_line_start(fd, s.forwarded, &at);
		if (r)
			err_sys(&e, r, "spool");
	}
	if (!r)
		r = shim_start(&k.place, &k.conf, at, k.input.fifo.fd, &k.held, &e);
	if (r) {
		log_err("%s", e.msg);
		snprintf(k.reason, sizeof(k.reason), "%.250s", e.msg);
		enter(ST_FAILED);
		return;
	}
	k.starts++;
	k.started_ns = loop_now_ns();
	k.started_ms = io_wall_ms();
	k.reason[0] = 0;
	log_info("started");
	attach();
}

static void
restart_now(struct timer *t)
{
	(void)t;
	start_program();
}

/*
 * Who the machine is.
 */

static int
new_epoch(struct err *e)
{
	struct journal_epoch now = {0};
	uint32_t number;
	int r;

	memcpy(now.vm, k.who.vm, sizeof(now.vm));
	memcpy(now.generation, k.who.generation, sizeof(now.generation));
	r = epoch_add(k.place.dir, &now, &number, e);
	if (!r)
		k.out[0].journal.epoch = k.out[1].journal.epoch = number;
	return r;
}

static void
forked(void)
{
	if (k.state != ST_RUNNING || k.ending)
		return;
	log_info("this machine is another one now (%s)", k.who.vm);
	switch (k.conf.on_fork) {
	case RPC_FORK_KEEP:
		break;
	case RPC_FORK_RESTART:
		begin_end(END_FORK);
		break;
	case RPC_FORK_SIGNAL:
		if (k.held.program)
			kill(k.held.program, k.conf.fork_signal);
	}
}

/* The generation is written last, when all else that is new is there. It changes for the
 * parent of a branch, too, who stays who it is. */
static void
check_identity(void)
{
	struct rpc_identity now;
	struct err e = {0};
	bool other;

	rpc_identity_read(&now);
	if (!now.generation[0] || strcmp(now.generation, k.who.generation) == 0)
		return;
	other = k.who.vm[0] && now.vm[0] && strcmp(now.vm, k.who.vm) != 0;
	k.who = now;
	if (new_epoch(&e))
		log_err("%s", e.msg);
	say_state();
	if (other)
		forked();
}

/* As check_identity(), where an earlier supervisor has noted who it was. */
static int
first_identity(bool *ret_other, struct err *e)
{
	uint32_t n = epoch_count(k.place.dir);
	struct journal_epoch was = {0};

	*ret_other = false;
	rpc_identity_read(&k.who);
	if (n && !epoch_read(k.place.dir, n - 1, &was) &&
		strcmp(was.generation, k.who.generation) == 0) {
		k.out[0].journal.epoch = k.out[1].journal.epoch = n - 1;
		return 0;
	}
	*ret_other = was.vm[0] && k.who.vm[0] && strcmp(was.vm, k.who.vm) != 0;
	return new_epoch(e);
}

/*
 * The process.
 */

static void
notes_ready(struct source *s, uint32_t events)
{
	_Alignas(struct inotify_event) char buf[4096];
	bool state = false, run = false, other = false;
	ssize_t n;

	(void)events;
	while ((n = read(s->fd, buf, sizeof(buf))) > 0)
		for (char *at = buf; at < buf + n;) {
			const struct inotify_event *ev = (const void *)at;

			state = state || ev->wd == k.watch_state ||
				ev->mask & IN_Q_OVERFLOW;
			run = run || ev->wd == k.watch_run || ev->mask & IN_Q_OVERFLOW;
			other = other ||
				(ev->wd != k.watch_state && ev->wd != k.watch_run);
			at += sizeof(*ev) + ev->len;
		}
	if (run && k.state == ST_RUNNING) {
		char text[32];

		if (!k.held.program && rpc_read_file(k.place.dir, "run/program", text,
					       sizeof(text)) > 0) {
			k.held.program = atoi(text);
			say_state();
		}
		check_end();
	}
	if (other)
		check_identity();
	if (state && !k.ending)
		input_forward(&k.input);
}

static void
signals_ready(struct source *s, uint32_t events)
{
	struct signalfd_siginfo info;

	(void)events;
	if (read(s->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	switch (info.ssi_signo) {
	case SIGCHLD:
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		check_end(); /* a shim that was killed */
		break;
	case SIGHUP:
		if (k.state == ST_RUNNING || k.state == ST_DRAINING)
			break;
		k.n_failures = k.in_a_row = 0;
		start_program();
		break;
	default:
		/* `rpc stop` has removed it by now. This is somebody else, as when the
		 * machine ends: the next boot knows (`rpc boot`). */
		(void)renameat(k.place.dir, "wanted", k.place.dir, "was-wanted");
		if (k.state == ST_RUNNING)
			begin_end(END_STOP);
		else if (k.state == ST_DRAINING)
			k.ending = END_STOP;
		else
			leave();
	}
}

static int
watch(struct err *e)
{
	char path[PATH_MAX + 32];
	sigset_t set;
	int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), r;

	if (fd < 0)
		return err_sys(e, -errno, "inotify");
	source_init(&k.notes, fd, notes_ready);
	snprintf(path, sizeof(path), "%s/spool.state", k.place.path);
	k.watch_state = inotify_add_watch(fd, path, IN_MODIFY);
	snprintf(path, sizeof(path), "%s/run", k.place.path);
	k.watch_run = inotify_add_watch(fd, path, IN_MOVED_TO);
	if (k.watch_state < 0 || k.watch_run < 0)
		return err_sys(e, -errno, "watching %.300s", path);
	r = rpc_path(path, "/run/pando", e);
	if (!r)
		r = io_mkdir_p(path, 0755, e);
	if (r)
		return r;
	if (inotify_add_watch(fd, path, IN_MODIFY | IN_MOVED_TO) < 0)
		return err_sys(e, -errno, "watching %.300s", path);
	r = source_wait(&k.notes, EPOLLIN);
	if (r)
		return err_sys(e, r, "inotify");
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGPIPE); /* as EPIPE */
	sigprocmask(SIG_SETMASK, &set, NULL);
	sigdelset(&set, SIGPIPE);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return err_sys(e, -errno, "signals");
	source_init(&k.signals, fd, signals_ready);
	r = source_wait(&k.signals, EPOLLIN);
	return r ? err_sys(e, r, "signals") : 0;
}

/* Whether an earlier supervisor, which was killed, had come to an end with it: `rpc start`
 * removes what that said. */
static bool
was_over(void)
{
	char text[8192], state[16] = "";
	cleanup_json struct json *j = NULL;
	ssize_t n = rpc_read_file(k.place.dir, "state", text, sizeof(text));

	if (n <= 0 || json_parse(text, (size_t)n, 64, &j, NULL) ||
		json_str(j, json_get(j, 0, "state"), state, sizeof(state)) ||
		(strcmp(state, "ended") != 0 && strcmp(state, "failed") != 0))
		return false;
	if (json_str(j, json_get(j, 0, "reason"), k.reason, sizeof(k.reason)))
		k.reason[0] = 0;
	enter(state[0] == 'e' ? ST_ENDED : ST_FAILED);
	return true;
}

static int
set_up(const char *name, bool if_wanted, struct err *e)
{
	struct err why = {0};
	bool other;
	int r = rpc_place_open(name, true, &k.place, e);

	if (!r)
		r = rpc_lock_take(&k.place, RPC_LOCK_SUPERVISOR, e);
	if (!r && if_wanted && faccessat(k.place.dir, "wanted", F_OK, 0))
		exit(EXIT_OK);
	if (!r)
		r = rpc_conf_read(k.place.conf, &k.conf, e);
	if (!r)
		r = loop_init(e);
	if (!r)
		r = spawn_init(e);
	if (!r)
		r = spool_make(k.place.dir, e);
	if (!r)
		r = journal_open(k.place.dir, "out", &k.out[0].journal, e);
	if (!r)
		r = journal_open(k.place.dir, "err", &k.out[1].journal, e);
	if (!r)
		r = first_identity(&other, e);
	if (!r)
		r = watch(e);
	if (!r)
		r = input_init(&k.input, k.place.dir, &k.conf.protocol, fed, e);
	if (r)
		return r;
	k.restart.fire = restart_now;
	k.stop.fire = end_step;
	k.watchdog.fire = bark;
	k.drain.fire = drain_again;
	if (rpc_place_link(&k.place, &why))
		log_warn("%s", why.msg);
	(void)rpc_write_file(k.place.dir, "wanted", "", 0);
	if (k.conf.tmux)
		rpc_watch_sessions(&k.place);
	r = shim_adopt(&k.place, &k.held, &why);
	if (r > 0) {
		log_info("goes on with process %d", (int)k.held.program);
		k.started_ms = io_wall_ms();
		/* What the last supervisor had moved, but not indexed. */
		for (int i = 0; i < 2; i++)
			journal_index(&k.out[i].journal, i ? NULL : out_line,
				&k.out[i].journal);
		attach();
		if (other)
			forked();
		return 0;
	}
	if (r < 0)
		log_warn("%s", why.msg);
	end_orphan();
	for (int i = 0; i < 2; i++) {
		journal_index(&k.out[i].journal, NULL, NULL);
		journal_tear(&k.out[i].journal);
	}
	say_ended();
	if (!was_over())
		start_program();
	return 0;
}

int
supervisor_main(const char *name, bool if_wanted)
{
	struct err e = {0};
	char tag[RPC_NAME_MAX + 8], process[16];
	int r;

	snprintf(tag, sizeof(tag), "rpc/%.32s", name);
	log_init(tag, LOG_LEVEL_INFO);
	snprintf(process, sizeof(process), "%.*s-keeper", 8, name);
	prctl(PR_SET_NAME, process); /* it was started as /proc/self/exe */
	k.held = (struct rpc_held)RPC_HELD_INIT;
	k.out[0].src.fd = k.out[1].src.fd = -1;
	k.place.dir = -1;
	umask(077);
	r = set_up(name, if_wanted, &e);
	if (!r)
		r = loop_run(&e);
	log_err("%s", e.msg);
	return err_exit_code(r);
}
