#include "host/cli/vmssh.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"
#include "common/wire/agent_wire.h"
#include "host/agent/agent_client.h"
#include "host/cli/out.h"
#include "host/cli/remote.h"
#include "host/ssh/ssh_key.h"

/* Guests may be slow: emulated, or swapping. */
#define DIAL_MS 60000
#define CONNECT_MS 60000
#define SIGNAL_MS 30000
#define LINE_MAX_BYTES 400
#define NS_PER_MS UINT64_C(1000000)

/* What stands where "SSH-2.0-…" should: the agent's sentence, or nothing of ours. */
static int
refused(const char *name, const char *line, size_t len, struct err *e)
{
	static const char says[] = AGENT_SSH_SAYS;
	size_t n = strlen(says);
	char raw[LINE_MAX_BYTES + 1], plain[4 * LINE_MAX_BYTES + 1];
	int r;

	if (len < n || memcmp(line, says, n) != 0)
		return err_set(e, -EPROTO,
			"\"%s\": what answers on its port %u is no SSH server", name,
			AGENT_SSH_PORT);
	snprintf(raw, sizeof(raw), "%.*s", (int)(len - n), line + n);
	raw[strcspn(raw, "\r\n")] = '\0';
	out_plain(plain, sizeof(plain), raw);
	r = strncmp(raw, AGENT_SSH_BECOMING, strlen(AGENT_SSH_BECOMING)) == 0
		    ? -EAGAIN
		    : -ECONNREFUSED;
	return err_set(e, r, "\"%s\": %.380s", name, plain);
}

/* Waits until the server has said who it is, which it does first, and leaves that unread.
 */
static int
await_banner(int fd, const char *name, struct err *e)
{
	uint64_t deadline = io_now_ns() + DIAL_MS * NS_PER_MS;
	struct timespec pause = {.tv_nsec = 1000000};
	struct pollfd p = {.fd = fd, .events = POLLIN};
	char line[LINE_MAX_BYTES];
	ssize_t n;

	while (io_now_ns() < deadline) {
		if (poll(&p, 1, 1000) <= 0)
			continue;
		n = recv(fd, line, sizeof(line), MSG_PEEK | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0)
			return err_set(e, -ECONNREFUSED,
				"\"%s\": its SSH server ended at once; its log says why (`pando execute %s -- journalctl -t sshd`), or `sshd -t` in it",
				name, name);
		if (n >= 4 && memcmp(line, "SSH-", 4) == 0)
			return 0;
		if (memchr(line, '\n', (size_t)n) || n == (ssize_t)sizeof(line))
			return refused(name, line, (size_t)n, e);
		/* A part of a line: poll(2) would not wait for the rest. */
		nanosleep(&pause, NULL);
	}
	return err_set(e, -ETIMEDOUT, "\"%s\": its SSH server says nothing", name);
}

static int
dial_once(const struct client_vm *vm, int *ret_fd, uint32_t *ret_number, struct err *e)
{
	cleanup_close int fd = -1;
	struct err why = {0};
	int r = agent_connect_numbered(
		vm->agent_socket, AGENT_SSH_PORT, DIAL_MS, &fd, ret_number, &why);

	/* Where another port answers, the guest has an agent, and an old one. */
	if (r == -ECONNREFUSED && agent_ping(vm->agent_socket, DIAL_MS, NULL, NULL) == 0)
		return err_set(e, r,
			"\"%s\": its agent is older than SSH: build its image again (`pando-golden image`), and its commits",
			client_vm_name(vm));
	if (r < 0)
		return err_set(e, r, "%s", why.msg);
	r = await_banner(fd, client_vm_name(vm), e);
	if (r == 0)
		*ret_fd = TAKE_FD(fd);
	return r;
}

static int
dial_numbered(
	const struct client_vm *vm, int *ret_fd, uint32_t *ret_number, struct err *e)
{
	uint64_t until = io_now_ns() + AGENT_BECOMING_MS * NS_PER_MS;
	struct timespec pause = {.tv_nsec = 20000000};
	struct err why = {0};
	int r;

	/* A parent, too, is told of each of its branches, and goes on. */
	while ((r = dial_once(vm, ret_fd, ret_number, &why)) == -EAGAIN &&
		io_now_ns() < until)
		nanosleep(&pause, NULL);
	return r < 0 ? err_set(e, r, "%s", why.msg) : 0;
}

int
vmssh_dial(const struct client_vm *vm, int *ret_fd, struct err *e)
{
	return dial_numbered(vm, ret_fd, NULL, e);
}

static int
open_numbered(const struct client_vm *vm, const char *home, const char *user,
	struct ssh_link **ret, uint32_t *ret_number, struct err *e)
{
	static const char type[] = "ssh-ed25519 ";
	char key[PATHS_MAX], what[80];
	struct ssh_target t = {
		.user = user ? user : "root", .key_path = key, .what = what};
	int fd, r;

	snprintf(what, sizeof(what), "\"%s\"", client_vm_name(vm));
	if (strncmp(vm->host_key, type, strlen(type)) != 0)
		return err_set(e, -ENOKEY,
			"%s has not acknowledged an SSH host key yet, so that nobody knows whether it is it; `pando info %s` shows its state",
			what, client_vm_name(vm));
	t.host_key = vm->host_key + strlen(type);
	r = paths_format(key, sizeof(key), e, "%s/" SSH_KEY_FILE, home);
	if (r == 0)
		r = dial_numbered(vm, &fd, ret_number, e);
	return r < 0 ? r : ssh_link_open_fd(fd, &t, CONNECT_MS, ret, e);
}

int
vmssh_open(const struct client_vm *vm, const char *home, const char *user,
	struct ssh_link **ret, struct err *e)
{
	return open_numbered(vm, home, user, ret, NULL, e);
}

int
vmssh_open_marked(struct vmssh_mark *m, struct ssh_link **ret, struct err *e)
{
	return open_numbered(m->vm, m->home, m->user, ret, &m->connection, e);
}

/*
 * What the other side's shell reads.
 */

int
vmssh_text(const char *const *argv, const char *const *env, const char *cwd,
	const char *mark, char **ret, struct err *e)
{
	cleanup_free char *inner = strdup(""), *outer = NULL;
	char marked[64];
	int r = inner ? 0 : -ENOMEM;

	snprintf(marked, sizeof(marked), VMSSH_MARK "=%s", mark ? mark : "");
	if (r == 0 && mark)
		r = remote_append(&inner, "export ", marked, "");
	for (; r == 0 && env && *env; env++)
		r = remote_append(&inner, *inner ? "; export " : "export ", *env, "");
	if (r == 0 && cwd)
		r = remote_append(&inner, *inner ? "; cd -- " : "cd -- ", cwd, "");
	/* No "--" behind exec: not all shells know that. */
	if (r == 0 && asprintf(&outer, "%s%sexec", inner,
			      cwd      ? " || exit 126; "
			      : *inner ? "; "
				       : "") < 0)
		r = -ENOMEM;
	if (r == 0) {
		free(inner);
		inner = TAKE_PTR(outer);
	}
	for (size_t i = 0; r == 0 && argv && argv[i]; i++)
		r = remote_append(&inner, " ", argv[i], "");
	if (r == 0 && !argv && asprintf(&outer, "%s \"$SHELL\" -l", inner) < 0)
		r = -ENOMEM;
	if (r == 0 && !argv) {
		free(inner);
		inner = TAKE_PTR(outer);
	}
	/* Login shells are of many kinds, and all understand this much. */
	if (r == 0)
		r = remote_append(&outer, "exec /bin/sh -c ", inner, "");
	if (r == -E2BIG)
		return err_set(e, r,
			"the command, its folder and environment are longer than %u bytes: put long texts into a file or standard input, or leave out --ssh",
			SSH_COMMAND_MAX);
	if (r < 0)
		return err_sys(e, r, "the command");
	*ret = TAKE_PTR(outer);
	return 0;
}

/*
 * A terminal.
 */

int
vmssh_terminal(const struct client_vm *vm, const char *home, const char *user,
	const char *text, int *ret_status, struct err *e)
{
	cleanup_ssh_link struct ssh_link *link = NULL;
	cleanup_close int signals = -1;
	struct ssh_command c = {
		.text = text,
		.in_fd = STDIN_FILENO,
		.out_fd = STDOUT_FILENO,
		.err_fd = STDERR_FILENO,
		.tty = true,
		.term = getenv("TERM"),
		.impatient = true,
	};
	int r;

	if (!isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO))
		return err_set(e, -EINVAL,
			"standard input and output must be a terminal: `pando execute --ssh` needs none");
	r = vmssh_open(vm, home, user, &link, e);
	if (r < 0)
		return r;
	c.signal_fd = signals = remote_signals(true);
	return remote_run(link, &c, ret_status, e);
}

int
vmssh_shell(const struct client_vm *vm, const char *home, const struct vmssh_shell *s,
	int *ret_status, struct err *e)
{
	cleanup_ssh_link struct ssh_link *link = NULL;
	cleanup_close int signals = -1;
	struct ssh_command c = SSH_COMMAND_INIT;
	cleanup_free char *text = NULL;
	int r = vmssh_text(s->argv, s->env, s->cwd, NULL, &text, e);

	if (r == 0 && s->tty)
		return vmssh_terminal(vm, home, s->user, text, ret_status, e);
	if (r == 0)
		r = vmssh_open(vm, home, s->user, &link, e);
	if (r < 0)
		return r;
	c.text = text;
	c.in_fd = STDIN_FILENO;
	c.out_fd = STDOUT_FILENO;
	c.err_fd = STDERR_FILENO;
	c.signal_fd = signals = remote_signals(false);
	c.impatient = true;
	return ssh_link_run(link, &c, ret_status, e);
}

/*
 * Signals.
 */

int
vmssh_mark_make(struct vmssh_mark *m, const struct client_vm *vm, const char *home,
	const char *user, struct err *e)
{
	*m = (struct vmssh_mark){.vm = vm, .home = home, .user = user};
	return remote_token(m->token, e);
}

void
vmssh_signal(const struct vmssh_mark *m, int number)
{
	/* All that has the mark; to be told anything but to die, only the group of the
	 * one that sshd (or what that calls itself since it is several programs) has
	 * started. No "--" for kill: not all shells know that. */
	static const char all
		[] = "kill -9 $p",
	     group[] =
		     "while read -r k v; do [ \"$k\" = PPid: ] && parent=$v; done </proc/$p/status; read -r name </proc/$parent/comm; case $name in sshd*) kill -%d -$p;; esac";
	static const char script[] =
		"exec /bin/sh -c 'for e in $(grep -lszx " VMSSH_MARK
		"=%s /proc/[0-9]*/environ); do p=${e#/proc/}; p=${p%%/environ}; %s; done 2>/dev/null; exit 0'";
	cleanup_ssh_link struct ssh_link *link = NULL;
	struct ssh_command c = SSH_COMMAND_INIT;
	struct err e = {0};
	char text[1024], what[512];
	int status, r;

	/* A login shell may not have come to the mark yet, and what it started may have put
	 * it away (env -i) and left its session: the agent knows all that came over the
	 * connection. One that is too old to is gone around. */
	if (number == SIGKILL) {
		if (agent_kill_ssh(m->vm->agent_socket, m->connection, &e) == 0)
			return;
		e = (struct err){0};
	}

	snprintf(what, sizeof(what), number == SIGKILL ? all : group, number);
	snprintf(text, sizeof(text), script, m->token, what);
	c.text = text;
	c.timeout_ms = SIGNAL_MS;
	r = vmssh_open(m->vm, m->home, m->user, &link, &e);
	if (r == 0)
		r = ssh_link_run(link, &c, &status, &e);
	if (r < 0)
		out_complain(
			"the command could not be told, and may still run: %s", e.msg);
}
