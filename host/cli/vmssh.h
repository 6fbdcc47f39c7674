/*
 * SSH into a VM, over the vsock: no network is needed. The VM's host key is the one it
 * acknowledged when it was told who it is (struct client_vm's host_key); another one is
 * refused. The key we come in with is that of PANDO_HOME (host/ssh/ssh_key.h).
 */
#ifndef PANDO_HOST_CLI_VMSSH_H
#define PANDO_HOST_CLI_VMSSH_H

#include "host/agent/agent_client.h"
#include "host/cli/remote.h"
#include "host/client/client.h"
#include "host/ssh/ssh.h"

/* A connection to the guest's SSH server, which has begun to speak: not a byte is read.
 * One that is just being told who it is is waited for. -ECONNREFUSED: nothing serves SSH
 * there, and why if the guest says so. */
int vmssh_dial(const struct client_vm *vm, int *ret_fd, struct err *e);

/* user NULL: root. home: PANDO_HOME. vm must be reachable (pick_reachable()).
 * -EKEYREJECTED another host key, -ENOKEY none was acknowledged yet, else as
 * ssh_link_open() and vmssh_dial(). */
int vmssh_open(const struct client_vm *vm, const char *home, const char *user,
	struct ssh_link **ret, struct err *e);

/* A command as a user's login shell over SSH is to read it. argv, env NULL-terminated;
 * argv NULL: that login shell itself, anew; env, cwd, mark NULL: none. mark: what
 * vmssh_signal() finds it by. malloc'd. -E2BIG above SSH_COMMAND_MAX. */
int vmssh_text(const char *const *argv, const char *const *env, const char *cwd,
	const char *mark, char **ret, struct err *e);

/* With our terminal in raw mode as the command's; text NULL: the user's login shell. Ends
 * when our terminal goes away. *ret_status as ssh_link_run(). Needs a terminal on
 * standard input and output: -EINVAL. */
int vmssh_terminal(const struct client_vm *vm, const char *home, const char *user,
	const char *text, int *ret_status, struct err *e);

/*
 * A session for a person, or a script on standard input: a login shell, or a command.
 * tty: as vmssh_terminal(); else with our streams as they are, and the first signal ends
 * us with -ECANCELED. What runs there is hung up when we go.
 */
struct vmssh_shell {
	const char *user;	 /* NULL: root */
	const char *const *argv; /* NULL: a login shell */
	const char *const *env;	 /* "NAME=value"; NULL: none */
	const char *cwd;	 /* NULL: the user's home */
	bool tty;
};
int vmssh_shell(const struct client_vm *vm, const char *home, const struct vmssh_shell *s,
	int *ret_status, struct err *e);

/*
 * Commands that can be told signals: a server delivers none to root's. The text begins
 * with what marks the command, and a second connection looks for the mark.
 */
struct vmssh_mark {
	const struct client_vm *vm; /* borrowed */
	const char *home, *user;    /* borrowed */
	char token[REMOTE_TOKEN_LEN + 1];
	uint32_t connection; /* that it runs over, as the guest knows it */
};
int vmssh_mark_make(struct vmssh_mark *m, const struct client_vm *vm, const char *home,
	const char *user, struct err *e);
/* As vmssh_open(), for the command of that mark. */
int vmssh_open_marked(struct vmssh_mark *m, struct ssh_link **ret, struct err *e);
/* Words to be prefixed to a POSIX shell's command: "PANDO_SSH_EXEC=…". */
#define VMSSH_MARK "PANDO_SSH_EXEC"
/* To its process group; SIGKILL to all that it started, while its connection is open. What fails is said on stderr. */
void vmssh_signal(const struct vmssh_mark *m, int number);

/* agent_put() and agent_get() with the guest's side as a command of that user, whose home
 * relative paths begin at. cancel_fd: a signalfd or -1; it ends the copy with -ECANCELED.
 */
struct vmssh_copy {
	const struct client_vm *vm;
	const char *home, *user; /* user NULL: root */
	const char *local, *remote;
	int cancel_fd;
	int (*progress)(void *ctx, const struct agent_copy_stats *s); /* may be NULL */
	void *ctx;
};
int vmssh_put(const struct vmssh_copy *c, struct agent_copy_stats *ret, struct err *e);
int vmssh_get(const struct vmssh_copy *c, struct agent_copy_stats *ret, struct err *e);

#endif
