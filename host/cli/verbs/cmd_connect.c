#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/agent/agent_client.h"
#include "host/cli/gone.h"
#include "host/cli/opt.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"
#include "host/cli/vmssh.h"

#define ENV_MAX 128
#define ESCAPE '~'

extern const struct verb verb_connect;
extern char **environ;

struct words {
	const char *vm;		      /* NULL: not named */
	const char *const *argv;      /* NULL: a login shell */
	const char *env[ENV_MAX + 1]; /* NULL-terminated, borrowed */
	size_t n_env;
	const char *user, *cwd;
	char escape;
	bool no_tty, ssh;
};

enum { NO_TTY = 256, ESCAPE_KEY, SSH };

static const struct opt options[] = {
	{'u', "user", "NAME", "who to be; root if not said", COMPLETE_NOTHING},
	{'w', "cwd", "FOLDER", "where to begin; the user's home if not said",
		COMPLETE_NOTHING},
	{'e', "env", "NAME=VALUE", "in its environment; may be given several times",
		COMPLETE_NOTHING},
	{NO_TTY, "no-tty", NULL, "no terminal in the guest, even from one",
		COMPLETE_NOTHING},
	{ESCAPE_KEY, "escape", "CHAR|none", "in place of ~ (see below)",
		COMPLETE_NOTHING},
	{SSH, "ssh", NULL, "through its SSH server: needs openssh-server in it",
		COMPLETE_NOTHING},
	{0, NULL, NULL, NULL, COMPLETE_NOTHING},
};

static int
add_env(struct words *w, const char *text, struct err *e)
{
	if (w->n_env == ENV_MAX)
		return err_set(e, -E2BIG, "at most %d variables", ENV_MAX);
	w->env[w->n_env++] = text;
	return 0;
}

/* What a person's terminal is and which language they read: as ssh carries it. Before
 * what --env says, which wins. */
static void
carry_environment(struct words *w)
{
	for (char **v = environ; *v && w->n_env < ENV_MAX / 2; v++)
		if (strncmp(*v, "LANG=", 5) == 0 || strncmp(*v, "LC_", 3) == 0 ||
			strncmp(*v, "COLORTERM=", 10) == 0 ||
			strncmp(*v, "NO_COLOR=", 9) == 0)
			w->env[w->n_env++] = *v;
}

static int
read_escape(const char *text, char *ret, struct err *e)
{
	if (strcmp(text, "none") == 0)
		*ret = 0;
	else if (strlen(text) == 1 && text[0] > ' ' && text[0] < 0x7f)
		*ret = text[0];
	else
		return err_set(e, -EINVAL,
			"--escape \"%s\": one printable character, or none", text);
	return 0;
}

/* OPT_END, or what opt_leave() takes. */
static int
read_words(struct opt_scan *s, struct words *w, struct err *e)
{
	int key;

	while ((key = opt_next(s, e)) != OPT_END) {
		int r = 0;

		switch (key) {
		case 'u':
			w->user = s->arg;
			break;
		case 'w':
			w->cwd = s->arg;
			break;
		case 'e':
			r = opt_env(s->arg, "--env", e);
			if (r >= 0)
				r = add_env(w, s->arg, e);
			break;
		case NO_TTY:
			w->no_tty = true;
			break;
		case SSH:
			w->ssh = true;
			break;
		case ESCAPE_KEY:
			r = read_escape(s->arg, &w->escape, e);
			break;
		case OPT_WORD:
			if (!s->ended && !w->vm) {
				w->vm = s->arg;
				break;
			}
			w->argv = (const char *const *)s->argv + s->at - 1;
			return w->argv[0][0] ? OPT_END
					     : (err_set(e, -EINVAL,
							"the command is an empty word"),
						       OPT_ERROR);
		default:
			return key;
		}
		if (r < 0)
			return OPT_ERROR;
	}
	return OPT_END;
}

/* Without a terminal: the first interrupt is the command's, the second ends us; who ends
 * us otherwise ends it, too. */
struct plain {
	int signal_fd; /* borrowed */
	unsigned interrupts;
	uint64_t interrupted_ns; /* by the first */
};

static int
on_wake(void *ctx, struct agent_session *session)
{
	struct plain *p = ctx;
	struct signalfd_siginfo info;

	if (read(p->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return 0;
	if (info.ssi_signo == SIGINT && io_signal_echoes(&p->interrupted_ns))
		return 0;
	if (info.ssi_signo == SIGINT && p->interrupts++ == 0)
		return agent_session_signal(session, SIGINT);
	(void)agent_session_signal(session, SIGHUP);
	return -ECANCELED;
}

static int
run_plain(const char *socket, const struct agent_exec_req *req,
	struct agent_exec_result *result, struct err *e)
{
	struct agent_exec_io io = AGENT_EXEC_IO_INIT;
	struct plain p = {.signal_fd = pick_cancel_fd()};

	io.stdin_fd = STDIN_FILENO;
	io.stdout_fd = STDOUT_FILENO;
	io.stderr_fd = STDERR_FILENO;
	io.wake_fd = p.signal_fd;
	io.wake = on_wake;
	io.ctx = &p;
	return agent_exec(socket, req, &io, result, e);
}

static int
failed(struct client *c, const struct client_vm *vm, struct err *e)
{
	struct pollfd p = {.fd = STDOUT_FILENO};
	struct err why = {0};

	/* The reader of our output left: as a command on a pipe of its own would end. */
	if (e->code == -EPIPE && poll(&p, 1, 0) > 0 && (p.revents & POLLERR))
		return 128 + SIGPIPE;
	if (e->code == -ECANCELED) {
		out_complain("left \"%s\"", client_vm_name(vm));
		return EXIT_CANCELLED;
	}
	if (e->code == -EPIPE && gone_why(c, vm, &why) < 0)
		err_set(e, -EPIPE, "the connection broke: %s", why.msg);
	else if (e->code == -EPIPE)
		err_set(e, -EPIPE,
			"the connection to \"%s\" broke; what ran there was hung up",
			client_vm_name(vm));
	gone_if_old(e);
	out_fail(e);
	return EXIT_HOST_SIDE;
}

static int
host_side(const struct err *e)
{
	int status = out_fail(e);

	return status == EXIT_NOT_FOUND || status == EXIT_USAGE ? status : EXIT_HOST_SIDE;
}

static int
run_ssh(const struct client_vm *vm, const char *home, const struct words *w, bool tty)
{
	const struct vmssh_shell s = {
		.user = w->user,
		.argv = w->argv,
		.env = w->env,
		.cwd = w->cwd,
		.tty = tty,
	};
	struct err e = {0};
	int status, r = vmssh_shell(vm, home, &s, &status, &e);

	if (r == 0)
		return status;
	if (r == -EPIPE)
		return 128 + SIGPIPE;
	status = out_fail(&e);
	return status == EXIT_CANCELLED ? status : EXIT_HOST_SIDE;
}

static int
run(int argc, char **argv)
{
	struct words w = {.escape = ESCAPE};
	struct opt_scan s = opt_scan(&verb_connect, argc, argv);
	cleanup_client_vm struct client_vm vm = {0};
	cleanup_client struct client *c = NULL;
	struct agent_exec_result result = {0};
	struct agent_exec_req req = {0};
	struct err e = {0};
	bool tty;
	int r;

	carry_environment(&w);
	r = read_words(&s, &w, &e);
	if (r != OPT_END)
		return opt_leave(&s, r, &e);
	if (s.json) {
		out_complain(
			"connect has no JSON: its answer is a session; `pando execute --format json` has one");
		return EXIT_USAGE;
	}
	if (pick_pandod(&c, &e) < 0)
		return host_side(&e);
	if (pick_vm(c, w.vm, &vm, NULL, &e) < 0)
		return host_side(&e);
	if (pick_reachable(&vm, &e) < 0) {
		out_fail(&e);
		return EXIT_HOST_SIDE;
	}
	tty = !w.no_tty && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
	if (w.ssh)
		return run_ssh(&vm, client_home(c), &w, tty);
	req.argv = w.argv;
	req.login = !w.argv;
	req.env = w.env;
	req.user = w.user;
	req.cwd = w.cwd;
	req.hangup = true;
	req.escape = w.escape;
	req.term = getenv("TERM");
	r = tty ? agent_exec_terminal(vm.agent_socket, &req, &result, &e)
		: run_plain(vm.agent_socket, &req, &result, &e);
	if (r < 0)
		return failed(c, &vm, &e);
	if (result.kind == AGENT_SPAWN_FAILED)
		out_complain("%s", result.message);
	return agent_exit_status(&result);
}

const struct verb verb_connect = {
	.name = "connect",
	.summary = "Opens a shell in a VM",
	.run = run,
	.usage = "[options] [vm]\n"
		 "[options] [vm] -- <command> [arguments…]",
	.options = options,
	.text = "A login shell, or a command, on a terminal in the guest; it needs no network there. Keys go to the guest,\n"
		"Ctrl-C, Ctrl-Z and Ctrl-\\ too. At the start of a line ~. leaves (what runs is hung up), ~^Z stops this\n"
		"command, ~~ is one ~, and ~? says so. TERM, COLORTERM, NO_COLOR, LANG and LC_* go along.\n"
		"\n"
		"Where standard input or output is no terminal the guest has none either: a script on standard input is run.\n"
		"\n"
		"Exit status: the shell's or command's own; 128 + n when signal n ended it; 126 or 127 when it could not be\n"
		"started; 7 after ~.; 3 no such VM; 2 wrong usage; 125 our side failed, or the VM went.",
	.words = COMPLETE_VM,
};
