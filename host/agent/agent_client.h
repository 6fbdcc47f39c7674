/*
 * The host's side of the agent protocol (common/wire/agent_wire.h): ping, execute, attach,
 * copy.
 *
 * Blocking calls for one thread each; a process may run many at once. socket_path is the
 * VM's agent.sock: every call dials it, says "CONNECT 1024\n", and closes it before it
 * returns. A guest may be hostile: everything that comes back is checked and bounded, and
 * a stream that ends before its terminal record is -EPIPE, never success.
 *
 * Errors that mean something to a caller, in every call:
 *   -ENOENT        no such socket: the VM is gone
 *   -ENOTCONN      the socket is there, no VMM listens on it: the VM does not run
 *   -ECONNREFUSED  the VM runs, nothing in the guest listens yet (booting, or no agent in
 * the image) -ETIMEDOUT     no answer in time -ECANCELED     the caller's own callback
 * said so -EPIPE         the connection ended before the terminal record -EPROTO the
 * guest sent what the protocol does not have What the guest's agent itself refuses comes
 * with the agent's errno and sentence (-ENOENT for a path or user that does not exist,
 * -EAGAIN for too many commands at once, -EINVAL, …).
 *
 * SIGPIPE is not raised by any call here for the socket; output descriptors are the
 * caller's own affair (the CLI ignores SIGPIPE or dies of it, as it likes).
 */
#ifndef PANDO_HOST_AGENT_AGENT_CLIENT_H
#define PANDO_HOST_AGENT_AGENT_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/wire/agent_wire.h"

/* How long a machine may be becoming another one until somebody who wants something of it
 * is told so. */
#define AGENT_BECOMING_MS 20000

/* Dials the guest's port 1024. timeout_ms covers all of it; negative: for ever. The
 * descriptor is the caller's, blocking, O_CLOEXEC. */
int agent_connect(const char *socket_path, int timeout_ms, int *ret_fd, struct err *e);
/* The same for any guest port (22 for sshd -i, …). */
int agent_connect_port(const char *socket_path, uint32_t port, int timeout_ms,
	int *ret_fd, struct err *e);

/* The same; the number by which the guest, too, knows this connection. */
int agent_connect_numbered(const char *socket_path, uint32_t port, int timeout_ms,
	int *ret_fd, uint32_t *ret_number, struct err *e);

struct agent_pong {
	char version[32];
	char boot_id[40];
	uint64_t uptime_ms; /* of the guest */
};
/* ret may be NULL. */
int agent_ping(
	const char *socket_path, int timeout_ms, struct agent_pong *ret, struct err *e);

/* Pings until the agent answers. cancel (may be NULL) is asked at least every 100 ms; a
 * negative return ends the wait with that code. Only -ECONNREFUSED, a busy agent,
 * -ETIMEDOUT of one attempt and a broken connection are tried again; the rest is final.
 */
int agent_wait_ready(const char *socket_path, int timeout_ms, int (*cancel)(void *ctx),
	void *ctx, struct err *e);

/*
 * Execute.
 */
struct agent_exec_req {
	const char *const *argv; /* NULL-terminated; passed as it is, any bytes, never
				    through a shell */
	const char *const *env; /* "NAME=value", NULL-terminated; over the guest's default
				   environment; NULL: none */
	const char *cwd;	/* NULL: the user's home */
	const char *user;	/* name or number; NULL: root (the agent's own) */
	uint64_t timeout_ms;	/* 0: none. At the limit everything the command started is
				   killed */
	uint32_t grace_ms; /* beyond it, until the guest is given up as stuck; 0: 15 s */
	bool detach; /* start it and return; output is kept in a bounded journal, see
			agent_attach */
	bool tty;    /* a terminal: stdout only, rows and cols its first size */
	uint16_t rows, cols;
	const char *term; /* TERM with tty; NULL: "xterm-256color" */
	bool login;	  /* the user's login shell; argv is NULL then */
	bool hangup;	  /* should we go, in whatever way, it is hung up and not kept */
	char escape; /* agent_exec_terminal: keys of our own (host/agent/terminal.h); 0: none */
};

struct agent_session; /* a running call, only inside the wake callback */

struct agent_exec_io {
	/* Where stdin comes from; -1: /dev/null in the guest. Regular files, pipes,
	 * sockets, terminals. */
	int stdin_fd;
	/* Where output goes. -1: to output(), or nowhere when that is NULL. Written in
	 * step with the reader: a slow one slows the command, as on a pipe. A write error
	 * is final (EPIPE: the reader is gone). */
	int stdout_fd, stderr_fd;
	/* stream is 1 or 2. Negative: end the call with that code. */
	int (*output)(void *ctx, int stream, const void *buf, size_t len);
	/* What was read from stdin, before it is sent; NULL: sent as it is. in has len
	 * bytes (0: the end of stdin), what is to be sent goes to out, which begins one
	 * byte before in and has room for len + 1. Returns their count; negative ends the
	 * call with that code. */
	ssize_t (*input)(void *ctx, struct agent_session *s, const char *in, size_t len,
		char *out);
	/* What goes to stdout_fd; may be NULL. */
	void (*seen)(void *ctx, const void *buf, size_t len);
	/* Called when wake_fd (-1: none; a signalfd, pipe, eventfd) is readable. It must
	 * read it, may call agent_session_*, and a negative return ends the call with
	 * that code: the command itself goes on, detached (send it a signal first where
	 * that is not wanted). */
	int wake_fd;
	int (*wake)(void *ctx, struct agent_session *s);
	/* For how many milliseconds in all the VM has been paused, by a count that begins
	 * anywhere; may be NULL. Asked when a command with a time limit begins, and again
	 * when it is late: that time is none of the command's. */
	uint64_t (*paused_ms)(void *ctx);
	/* Told once, when the guest has accepted the command; may be NULL. */
	void (*started)(void *ctx, const char *id);
	/* Output that the guest's journal had to drop; may be NULL. */
	void (*gap)(void *ctx, int stream, uint64_t offset, uint64_t len);
	void *ctx;
};
#define AGENT_EXEC_IO_INIT \
	{ \
		.stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1, .wake_fd = -1 \
	}

struct agent_exec_result {
	char id[24];
	enum agent_exit_kind kind; /* 0 for detach */
	uint32_t value; /* exit status, signal number, or errno: see enum agent_exit_kind
			 */
	uint64_t stdout_bytes, stderr_bytes; /* that the command wrote */
	uint64_t stdout_lost,
		stderr_lost; /* of these, dropped by the journal before they were read */
	char message[256];   /* AGENT_SPAWN_FAILED: why; else "", or what still has its
				output open, so that more may come that is not here */
};

/* Runs it and pumps until the exit record. 0 when there is one, whatever it says. */
int agent_exec(const char *socket_path, const struct agent_exec_req *req,
	const struct agent_exec_io *io, struct agent_exec_result *ret, struct err *e);

/* As agent_exec with this process's own stdin and stdout, which must be terminals: sets
 * raw mode and restores it on every way out, follows SIGWINCH. req->tty, rows and cols
 * are filled in. -ECANCELED: a signal wanted us gone, or req->escape and '.' were typed;
 * the command gets a SIGHUP. */
int agent_exec_terminal(const char *socket_path, const struct agent_exec_req *req,
	struct agent_exec_result *ret, struct err *e);

/* Takes up a command from those byte offsets on (0, 0: all that the journal still has).
 * Whoever was attached before is put off. io as for agent_exec; with stdin_fd >= 0 its
 * stdin goes on. */
int agent_attach(const char *socket_path, const char *id, uint64_t stdout_offset,
	uint64_t stderr_offset, const struct agent_exec_io *io,
	struct agent_exec_result *ret, struct err *e);

/* What the CLI exits with: the status; 128 + signal; EXIT_TIMED_OUT; 127 when the program
 * is not there, 126 when it could not be started for another reason. */
int agent_exit_status(const struct agent_exec_result *r);

/* Inside wake(): queued, sent by the running call. */
int agent_session_signal(struct agent_session *s, int signo);
int agent_session_winsize(struct agent_session *s, uint16_t rows, uint16_t cols);
/* The command goes on without us; the call returns 0 with kind 0. */
int agent_session_detach(struct agent_session *s);

/* A short command whose output is wanted in memory. input may be NULL. Outputs are
 * malloc'd, NUL-terminated, owned by the caller (agent_captured_done); at most max bytes
 * each are kept, the first ones, the rest is counted in result. */
struct agent_captured {
	char *out, *err;
	size_t out_len, err_len;
	struct agent_exec_result result;
};
int agent_exec_capture(const char *socket_path, const struct agent_exec_req *req,
	const void *input, size_t input_len, size_t max, struct agent_captured *ret,
	struct err *e);
void agent_captured_done(struct agent_captured *c);
#define cleanup_agent_captured __attribute__((cleanup(agent_captured_done)))

/* To the process group of a running command. */
int agent_signal(const char *socket_path, const char *id, int signo, struct err *e);

/* Kills all that was started over an SSH connection (agent_connect_numbered()) which is
 * open, also what has left its session and forgotten its environment. -ESRCH: there is no
 * such connection; -EINVAL: the agent is too old to know how. */
int agent_kill_ssh(const char *socket_path, uint32_t connection, struct err *e);

/* The "execs" array of the answer as JSON text (checked), malloc'd. */
int agent_list_execs(const char *socket_path, char **ret_json, struct err *e);

/*
 * Ports.
 */

/* Carries bytes between a connected stream socket and that port of the guest's loopback,
 * until both directions have ended: 0. fd stays the caller's, to be closed; where
 * something was cut short, closing it resets it. stop_fd: readable when it is to be given
 * up (-ECANCELED; -1: never); not read. -ECONNREFUSED with the sentence of the guest:
 * nothing listens there. -ECONNRESET: the guest's program, or our client, broke it.
 * -EPIPE: the guest went. Takes a bounded buffer each way, whatever either side does. */
int agent_dial(
	const char *socket_path, uint16_t port, int fd, int stop_fd, struct err *e);
/* Waits until the guest goes: -EPIPE with a sentence when its agent was there and went,
 * -ECANCELED when stop_fd is readable, else why there was none. Never 0. */
int agent_stay(const char *socket_path, int stop_fd, struct err *e);

/*
 * Files. Semantics of `cp -r`: when the destination is an existing folder, the source
 * goes inside it under its own name; otherwise the destination is the new name, and its
 * parent must exist. A source that ends in "/." means the folder's contents. Regular
 * files with holes and hard links, folders, symbolic links and (put) FIFOs, with modes and
 * times (common/wire/tar.h says what is not kept); sockets and devices are left out and
 * counted. A file or link of the same name is replaced, when the new one is whole and, in
 * a put, on the disk; a folder never is by a file, nor the other way round. Remote
 * relative paths are relative to the home of root. Nothing is ever written outside the
 * destination, whatever the other side sends. A copy that fails or is cancelled half way
 * leaves the files that were whole by then.
 *
 * A guest may be hostile. So what a get writes stands under the name that was asked for
 * and no other, symbolic links that could lead out of it are left out and counted (a
 * source that is a link itself is followed), FIFOs and devices are refused, and
 * set-user-id and set-group-id bits are dropped.
 */
struct agent_copy_stats {
	uint64_t files, folders, links, skipped; /* skipped: sockets and devices, get:
						    and FIFOs */
	uint64_t outside;			 /* get: links that lead out, left out */
	uint64_t bytes;				 /* of file contents */
	char first_outside[128]; /* the name of the first of those, perhaps cut */
};
/* progress: may be NULL; called now and then and at the end; negative cancels with that
 * code. */
int agent_put(const char *socket_path, const char *local, const char *remote,
	int (*progress)(void *ctx, const struct agent_copy_stats *s), void *ctx,
	struct agent_copy_stats *ret, struct err *e);
int agent_get(const char *socket_path, const char *remote, const char *local,
	int (*progress)(void *ctx, const struct agent_copy_stats *s), void *ctx,
	struct agent_copy_stats *ret, struct err *e);

/* For a put over whatever way. A FIFO, and what /dev/stdin or a shell's <(…) names, is
 * read to its end first, into an unlinked file in TMPDIR (/var/tmp), and packed as a file
 * with that contents; progress (as above) is called meanwhile. */
struct tar_pack;
int agent_pack_open(const char *local,
	int (*progress)(void *ctx, const struct agent_copy_stats *s), void *ctx,
	struct tar_pack **ret, struct err *e);
/* What a guest sends of remote, to be placed at local: all that a get, over whatever way,
 * asks of the unpacking side. */
struct tar_unpack;
int agent_unpack_open(
	const char *remote, const char *local, struct tar_unpack **ret, struct err *e);
struct agent_copy_stats agent_unpack_stats(const struct tar_unpack *u);

struct agent_entry {
	char *name;   /* any bytes */
	char *target; /* of a symbolic link, else NULL */
	char type;    /* f d l p s c b, as in find -type */
	uint32_t mode, uid, gid;
	uint64_t size;
	int64_t mtime_ns;
};
/* A folder's entries sorted by name, or the one file itself. At most 16384; a larger
 * folder is -EFBIG. */
int agent_list(const char *socket_path, const char *remote, int timeout_ms,
	struct agent_entry **ret, size_t *ret_n, struct err *e);
void agent_entries_free(struct agent_entry *entries, size_t n);

#endif
