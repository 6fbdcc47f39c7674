#include "host/agent/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#include "common/cleanup.h"

struct terminal {
	int signal_fd, out_fd; /* owned */
	struct termios before;
	sigset_t mask_before;
	struct terminal_modes modes;
	bool raw;
};

static const int watched[] = {
	SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT};
/* Of our own bugs. */
static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGSYS};
#define N(a) (sizeof(a) / sizeof((a)[0]))

/* For a crash: what a handler may use. */
static struct termios crash_termios;
static volatile sig_atomic_t crash_armed;
static struct sigaction crash_before[N(crashes)];

static void
crashed(int signo)
{
	if (crash_armed)
		tcsetattr(STDIN_FILENO, TCSANOW, &crash_termios);
	crash_armed = 0;
	/* SA_RESETHAND: this time it is final. */
	raise(signo);
}

static void
arm(const struct termios *before)
{
	struct sigaction sa = {
		.sa_handler = crashed, .sa_flags = SA_RESETHAND | SA_NODEFER};

	crash_termios = *before;
	crash_armed = 1;
	for (size_t i = 0; i < N(crashes); i++)
		sigaction(crashes[i], &sa, &crash_before[i]);
}

static void
disarm(void)
{
	for (size_t i = 0; i < N(crashes); i++)
		sigaction(crashes[i], &crash_before[i], NULL);
	crash_armed = 0;
}

static bool
is_ours(void)
{
	return tcgetpgrp(STDIN_FILENO) == getpgrp();
}

/* From the background it would stop us: then somebody else has the terminal, and it is
 * theirs to set. */
static void
set(const struct termios *how)
{
	if (!is_ours())
		return;
	/* Not TCSADRAIN: it waits for as long as the terminal does not take our output.
	 */
	while (tcsetattr(STDIN_FILENO, TCSANOW, how) && errno == EINTR)
		;
}

static void
make_raw(const struct terminal *t)
{
	struct termios raw = t->before;

	if (!t->raw)
		return;
	cfmakeraw(&raw);
	set(&raw);
}

void
terminal_raw(struct terminal *t)
{
	t->raw = true;
	make_raw(t);
}

int
terminal_open(struct terminal **ret, struct err *e)
{
	cleanup_free struct terminal *t = calloc(1, sizeof(*t));
	sigset_t set;
	char name[32];

	if (!t)
		return err_sys(e, -ENOMEM, "the terminal");
	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO) ||
		tcgetattr(STDIN_FILENO, &t->before))
		return err_set(e, -ENOTTY,
			"stdin and stdout must be a terminal for an interactive command");
	sigemptyset(&set);
	for (size_t i = 0; i < N(watched); i++)
		sigaddset(&set, watched[i]);
	pthread_sigmask(SIG_BLOCK, &set, &t->mask_before);
	t->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (t->signal_fd < 0) {
		int r = err_sys(e, -errno, "signalfd");

		pthread_sigmask(SIG_SETMASK, &t->mask_before, NULL);
		return r;
	}
	/* A description of its own: O_NONBLOCK on the shared one would reach the shell.
	 */
	snprintf(name, sizeof(name), "/proc/self/fd/%d", STDOUT_FILENO);
	t->out_fd = open(name, O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	arm(&t->before);
	*ret = TAKE_PTR(t);
	return 0;
}

void
terminal_close(struct terminal *t, bool lost)
{
	char undo[TERMINAL_UNDO_MAX];
	struct timespec none = {0};
	sigset_t only;

	if (!t)
		return;
	/* In the background both would stop us: the terminal is somebody else's then. */
	if (lost && is_ours()) {
		terminal_modes_undo(&t->modes, undo);
		if (*undo)
			(void)!write(terminal_out_fd(t), undo, strlen(undo));
		tcflush(STDIN_FILENO, TCIFLUSH);
	}
	set(&t->before);
	disarm();
	close(t->signal_fd);
	if (t->out_fd >= 0)
		close(t->out_fd);
	/* Sizes and continuations are nobody's news any more; all else is for whoever
	 * had it before. */
	sigemptyset(&only);
	sigaddset(&only, SIGWINCH);
	sigaddset(&only, SIGCONT);
	while (sigtimedwait(&only, NULL, &none) > 0)
		;
	pthread_sigmask(SIG_SETMASK, &t->mask_before, NULL);
	free(t);
}

void
terminal_size(const struct terminal *t, uint16_t *ret_rows, uint16_t *ret_cols)
{
	struct winsize ws = {0};

	(void)t;
	if (ioctl(STDIN_FILENO, TIOCGWINSZ, &ws))
		ws = (struct winsize){0};
	*ret_rows = ws.ws_row;
	*ret_cols = ws.ws_col;
}

int
terminal_out_fd(const struct terminal *t)
{
	return t->out_fd >= 0 ? t->out_fd : STDOUT_FILENO;
}

void
terminal_saw(struct terminal *t, const void *buf, size_t len)
{
	terminal_modes_see(&t->modes, buf, len);
}

int
terminal_wake_fd(const struct terminal *t)
{
	return t->signal_fd;
}

enum terminal_event
terminal_wake(struct terminal *t)
{
	struct signalfd_siginfo info;

	if (read(t->signal_fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return TERMINAL_NOTHING;
	if (info.ssi_signo == SIGCONT) {
		/* Stopped, by whomever, the shell has set the terminal as it likes it. */
		make_raw(t);
		return TERMINAL_RESIZED;
	}
	return info.ssi_signo == SIGWINCH ? TERMINAL_RESIZED : TERMINAL_ENDED;
}

void
terminal_suspend(struct terminal *t)
{
	set(&t->before);
	kill(0, SIGTSTP);
	/* Here again when it goes on. The shell gives the terminal back before that. */
	make_raw(t);
}

void
terminal_help(struct terminal *t, char escape)
{
	char text[320];
	int n = snprintf(text, sizeof(text),
		"%c?\r\n"
		"  %c.   leave; what runs there is hung up\r\n"
		"  %c^Z  stop this command\r\n"
		"  %c%c   one %c\r\n"
		"  %c?   this\r\n"
		"(at the start of a line)\r\n",
		escape, escape, escape, escape, escape, escape, escape);

	(void)!write(terminal_out_fd(t), text, (size_t)n);
}
