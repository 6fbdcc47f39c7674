#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "host/cli/execute.h"
#include "host/cli/gone.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/vmssh.h"

/* --format json keeps the output until the end; more than this of a stream is cut off and
 * counted. */
#define CAPTURE_MAX (64u << 20)

struct capture {
	char *buf; /* owned */
	size_t len, cap;
};

struct running {
	const struct execute_words *words;
	const char *socket;	    /* borrowed */
	struct client *client;	    /* borrowed */
	const struct client_vm *vm; /* borrowed; as it was when we began */
	bool paused_asked;
	char id[24];   /* "" until the guest has accepted it */
	int signal_fd; /* borrowed */
	unsigned interrupts;
	uint64_t interrupted_ns; /* by the first */
	bool quiet;
	struct capture out[2];
};

static void
running_done(struct running *r)
{
	free(r->out[0].buf);
	free(r->out[1].buf);
}

static int
on_output(void *ctx, int stream, const void *buf, size_t len)
{
	struct running *run = ctx;
	struct capture *c = &run->out[stream == 2];

	if (len > CAPTURE_MAX - c->len)
		len = CAPTURE_MAX - c->len;
	if (c->len + len > c->cap) {
		size_t cap = c->cap * 2 > c->len + len ? c->cap * 2 : c->len + len + 4096;
		char *bigger = realloc(c->buf, cap);

		if (!bigger)
			return -ENOMEM;
		c->buf = bigger;
		c->cap = cap;
	}
	if (len)
		memcpy(c->buf + c->len, buf, len);
	c->len += len;
	return 0;
}

static void
on_started(void *ctx, const char *id)
{
	struct running *run = ctx;

	snprintf(run->id, sizeof(run->id), "%s", id);
}

static void
on_gap(void *ctx, int stream, uint64_t offset, uint64_t len)
{
	const struct running *run = ctx;

	(void)offset;
	if (!run->quiet)
		out_complain("%llu bytes of %s were dropped before anybody took them",
			(unsigned long long)len, stream == 2 ? "stderr" : "stdout");
}

static uint64_t
paused_ms(void *ctx)
{
	struct running *run = ctx;
	cleanup_client_vm struct client_vm now = {0};

	if (!run->paused_asked) {
		run->paused_asked = true;
		return run->vm->paused_ms;
	}
	/* A pandod that is gone knows of no pause. */
	return client_get(run->client, run->vm->id, &now, NULL, NULL) < 0 ? 0
									  : now.paused_ms;
}

/* The first Ctrl-C is the command's; the second is ours. */
static int
on_wake(void *ctx, struct agent_session *session)
{
	struct running *run = ctx;
	struct signalfd_siginfo info;

	if (read(run->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return 0;
	if (io_signal_echoes(&run->interrupted_ns))
		return 0;
	if (run->interrupts++ == 0)
		return agent_session_signal(session, (int)info.ssi_signo);
	(void)agent_session_signal(session, SIGKILL);
	return -ECANCELED;
}

/* The reader of our output went away (`… | head -1`): the command gets what it would have
 * got on a pipe of its own, and we end as it would have. */
static int
reader_is_gone(const struct running *run)
{
	struct pollfd p[2] = {{.fd = STDOUT_FILENO}, {.fd = STDERR_FILENO}};

	if (poll(p, 2, 0) <= 0 || !((p[0].revents | p[1].revents) & POLLERR))
		return 0;
	if (run->id[0])
		(void)agent_signal(run->socket, run->id, SIGPIPE, NULL);
	return 128 + SIGPIPE;
}

/* What our side's failures end with: only a bad name, bad words and Ctrl-C keep their own
 * number, because all others could be taken for the command's. */
static int
fail(const struct err *e)
{
	int status = out_fail(e);

	if (status == EXIT_USAGE || status == EXIT_NOT_FOUND || status == EXIT_CANCELLED)
		return status;
	return EXIT_HOST_SIDE;
}

static int
host_side(const struct err *e)
{
	int status = out_fail(e);

	return status == EXIT_CANCELLED ? status : EXIT_HOST_SIDE;
}

static int
print_json(const struct running *run, const struct agent_exec_result *result, int status)
{
	static const char *const kinds[] = {
		[0] = "detached",
		[AGENT_EXITED] = "exited",
		[AGENT_SIGNALLED] = "signalled",
		[AGENT_TIMED_OUT] = "timed_out",
		[AGENT_SPAWN_FAILED] = "not_started",
	};
	cleanup_json_out struct json_out o = {0};

	json_out_object(&o, NULL);
	json_out_str(&o, "id", result->id[0] ? result->id : NULL);
	json_out_str(&o, "end", kinds[result->kind]);
	json_out_i64(&o, "status", status);
	if (result->kind == AGENT_SIGNALLED)
		json_out_u64(&o, "signal", result->value);
	if (result->message[0])
		json_out_str(&o, "message", result->message);
	if (result->kind != 0) {
		json_out_strn(&o, "stdout", run->out[0].buf ? run->out[0].buf : "",
			run->out[0].len);
		json_out_strn(&o, "stderr", run->out[1].buf ? run->out[1].buf : "",
			run->out[1].len);
		json_out_u64(&o, "stdout_bytes", result->stdout_bytes);
		json_out_u64(&o, "stderr_bytes", result->stderr_bytes);
	}
	json_out_end_object(&o);
	return out_json(&o) == EXIT_OK ? status : EXIT_HOST_SIDE;
}

/* Notes about an end that is no plain exit, and the status. */
static int
conclude(const struct running *run, const struct agent_exec_result *result, bool json)
{
	const struct execute_words *w = run->words;
	int status = result->kind ? agent_exit_status(result) : EXIT_OK;

	if (result->kind == AGENT_TIMED_OUT)
		out_complain("the command ran longer than %g s and was killed",
			(double)w->timeout_ms / 1e3);
	else if (result->kind == AGENT_SPAWN_FAILED)
		out_complain("%s", result->message);
	if (result->message[0] && result->kind != AGENT_SPAWN_FAILED && !run->quiet)
		out_complain("the command has ended; %s", result->message);
	if (json)
		return print_json(run, result, status);
	if (w->detach)
		puts(result->id);
	return status;
}

static int
list(const char *socket)
{
	cleanup_free char *text = NULL;
	struct err e = {0};

	if (agent_list_execs(socket, &text, &e) < 0)
		return host_side(&e);
	printf("{\"execs\":%s}\n", text);
	return EXIT_OK;
}

static int
run_terminal(const char *socket, const struct agent_exec_req *req, struct running *run)
{
	struct agent_exec_result result = {0};
	struct err e = {0};

	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)) {
		out_complain(
			"-it needs a terminal on standard input and output; without one leave -t out");
		return EXIT_USAGE;
	}
	if (agent_exec_terminal(socket, req, &result, &e) < 0)
		return host_side(&e);
	return conclude(run, &result, false);
}

/* A terminal on which nobody types has the size of what shows it. */
static void
size_of_output(struct agent_exec_req *req)
{
	struct winsize ws;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &ws) &&
		ioctl(STDERR_FILENO, TIOCGWINSZ, &ws))
		return;
	req->rows = ws.ws_row;
	req->cols = ws.ws_col;
}

/*
 * Standard input is the command's with -i only, as with docker and kubectl: a pipe or a file
 * there may as well belong to the loop or the script around us, and nobody can tell. Only a
 * file that nobody has read from yet was surely meant for somebody, and that is said.
 */
static int
input_of(const struct execute_words *w)
{
	struct stat st;

	if (w->stdin_on)
		return STDIN_FILENO;
	if (!w->detach && !w->attach && fstat(STDIN_FILENO, &st) == 0 &&
		S_ISREG(st.st_mode) && st.st_size > 0 &&
		lseek(STDIN_FILENO, 0, SEEK_CUR) == 0)
		out_note("standard input is not passed on to the command; -i does that");
	return -1;
}

/*
 * Over SSH.
 */

struct over_ssh {
	struct running *run;
	struct vmssh_mark mark;
	uint64_t bytes[2]; /* with --format json, also what is not kept */
};

static uint64_t
ssh_paused_ms(void *ctx)
{
	return paused_ms(((struct over_ssh *)ctx)->run);
}

static int
ssh_output(void *ctx, int stream, const void *buf, size_t len, struct err *e)
{
	struct over_ssh *o = ctx;
	int r = on_output(o->run, stream, buf, len);

	o->bytes[stream == 2] += len;
	return r < 0 ? err_sys(e, r, "the command's output") : 0;
}

static void
ssh_signal(void *ctx, int number, unsigned nth)
{
	const struct over_ssh *o = ctx;

	vmssh_signal(&o->mark, nth > 1 ? SIGKILL : number);
}

static int
run_ssh_terminal(const struct client_vm *vm, const char *home,
	const struct execute_words *w, struct running *run)
{
	struct agent_exec_result result = {.kind = AGENT_EXITED};
	cleanup_free char *text = NULL;
	struct err e = {0};
	int status;

	if (vmssh_text(w->argv, w->env, w->cwd, NULL, &text, &e) < 0 ||
		vmssh_terminal(vm, home, w->user, text, &status, &e) < 0)
		return e.code == -EINVAL ? out_fail(&e) : host_side(&e);
	result.value = (uint32_t)status;
	return conclude(run, &result, false);
}

/* How it ended, as an agent tells it. */
static int
ssh_result(struct over_ssh *o, int r, int status, int signal,
	struct agent_exec_result *ret, struct err *e)
{
	if (r == -ETIMEDOUT) {
		vmssh_signal(&o->mark, SIGKILL);
		*e = (struct err){0};
		ret->kind = AGENT_TIMED_OUT;
		r = 0;
	} else if (r == 0) {
		ret->kind = signal ? AGENT_SIGNALLED : AGENT_EXITED;
		ret->value = (uint32_t)(signal ? signal : status);
	}
	ret->stdout_bytes = o->bytes[0];
	ret->stderr_bytes = o->bytes[1];
	return r;
}

static int
run_ssh(const struct client_vm *vm, const char *home, const struct execute_words *w,
	struct running *run, bool json)
{
	cleanup_ssh_link struct ssh_link *link = NULL;
	struct ssh_command c = SSH_COMMAND_INIT;
	struct over_ssh over = {.run = run};
	struct agent_exec_result result = {0};
	cleanup_free char *text = NULL;
	int status = 0, signal = 0, r;
	struct err e = {0};

	r = vmssh_mark_make(&over.mark, vm, home, w->user, &e);
	if (r == 0)
		r = vmssh_text(w->argv, w->env, w->cwd, over.mark.token, &text, &e);
	if (r == 0)
		r = vmssh_open_marked(&over.mark, &link, &e);
	if (r < 0)
		return host_side(&e);
	c.text = text;
	c.in_fd = input_of(w);
	c.out_fd = STDOUT_FILENO;
	c.err_fd = STDERR_FILENO;
	c.output = json ? ssh_output : NULL;
	c.signal_fd = pick_cancel_fd();
	c.on_signal = ssh_signal;
	c.ret_signal = &signal;
	c.paused_ms = ssh_paused_ms;
	c.ctx = &over;
	c.timeout_ms = w->timeout_ms > UINT32_MAX ? 0 : (unsigned)w->timeout_ms;
	r = ssh_link_run(link, &c, &status, &e);
	if (r == -EPIPE) {
		vmssh_signal(&over.mark, SIGPIPE);
		return 128 + SIGPIPE;
	}
	if (r == -ECANCELED)
		err_set(&e, r, "interrupted twice: the command was told to die");
	r = ssh_result(&over, r, status, signal, &result, &e);
	return r < 0 ? host_side(&e) : conclude(run, &result, json);
}

static int
run_in(struct client *client, const struct client_vm *vm, const struct execute_words *w,
	const struct opt_scan *s)
{
	const char *home = client_home(client);
	__attribute__((cleanup(running_done))) struct running run = {.words = w,
		.socket = vm->agent_socket,
		.client = client,
		.vm = vm,
		.quiet = s->quiet,
		.signal_fd = -1};
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct agent_exec_result result = {0};
	struct agent_exec_req req = {
		.argv = w->argv,
		.env = w->env,
		.cwd = w->cwd,
		.user = w->user,
		.timeout_ms = w->timeout_ms,
		.detach = w->detach,
		.term = getenv("TERM"),
	};
	struct err e = {0}, why;
	int r;

	if (w->list)
		return list(vm->agent_socket);
	if (w->ssh)
		return w->tty ? run_ssh_terminal(vm, home, w, &run)
			      : run_ssh(vm, home, w, &run, s->json);
	if (w->tty && w->stdin_on)
		return run_terminal(vm->agent_socket, &req, &run);
	if (w->tty) {
		req.tty = true;
		size_of_output(&req);
	}
	io.stdin_fd = input_of(w);
	if (s->json) {
		io.output = on_output;
	} else {
		io.stdout_fd = STDOUT_FILENO;
		io.stderr_fd = STDERR_FILENO;
	}
	run.signal_fd = io.wake_fd = pick_cancel_fd();
	io.wake = on_wake;
	io.started = on_started;
	io.gap = on_gap;
	io.paused_ms = paused_ms;
	io.ctx = &run;
	if (w->attach)
		r = agent_attach(vm->agent_socket, w->attach, 0, 0, &io, &result, &e);
	else
		r = agent_exec(vm->agent_socket, &req, &io, &result, &e);
	if (r == -ECANCELED)
		err_set(&e, r, "interrupted twice: the command was told to die");
	if (r == -EPIPE && !s->json) {
		int status = reader_is_gone(&run);

		if (status)
			return status;
	}
	if (r == -EPIPE && gone_why(client, vm, &why) < 0)
		err_set(&e, r, "the command's connection ended: %s", why.msg);
	return r < 0 ? host_side(&e) : conclude(&run, &result, s->json);
}

static int
run(int argc, char **argv)
{
	__attribute__((cleanup(execute_words_done))) struct execute_words w = {0};
	struct opt_scan s = opt_scan(&verb_execute, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	struct err e = {0};
	int r;

	r = execute_parse(&s, &w, &e);
	if (r != OPT_END)
		return opt_leave(&s, r, &e);
	if (pick_pandod(&c, &e) < 0)
		return host_side(&e);
	if (pick_vm(c, w.vm, &vm, NULL, &e) < 0)
		return fail(&e);
	if (pick_reachable(&vm, &e) < 0)
		return host_side(&e);
	/* From here on the guest is spoken to directly. */
	r = run_in(c, &vm, &w, &s);
	/* EXIT_FAILED could be the command's. */
	return r == EXIT_OK && out_end(r) == EXIT_FAILED ? EXIT_HOST_SIDE : r;
}

const struct verb verb_execute = {
	.name = "execute",
	.aliases = "exec",
	.summary = "Runs a command in a VM, with its streams and its exit status",
	.run = run,
	.usage = "[options] [vm] -- <command> [arguments…]\n"
		 "[options] <vm> <command> [arguments…]\n"
		 "[options] [vm] --shell 'a | b'",
	.options = execute_options,
	.text = "The command's words reach it as they are; no shell looks at them unless --shell asks for one.\n"
		"Standard input is the command's only with -i, so that a loop around it keeps its own. Ctrl-C goes to the\n"
		"command; a second one kills it.\n"
		"--ssh: over the VM's SSH server, so that the user's login shell and PAM have their say; at --timeout and\n"
		"Ctrl-C its process group is told.\n"
		"\n"
		"Exit status: the command's own; 128 + n when signal n ended it; 6 after --timeout; 126 or 127 when it\n"
		"could not be started; 3 no such VM; 2 wrong usage; 7 interrupted twice; 125 our side failed, or the\n"
		"command's end was never heard of.",
	.words = COMPLETE_VM,
};
