/*
 * Commands over SSH: libssh is called only in ssh.c.
 *
 * A link is one authenticated connection to one machine whose host key is known
 * beforehand; an unknown key is refused, never learnt. Keys are ed25519 in OpenSSH's file
 * format. One link carries one command at a time; nothing here is thread-safe.
 */
#ifndef PANDO_HOST_SSH_SSH_H
#define PANDO_HOST_SSH_SSH_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>

#include "common/err.h"

struct ssh_target {
	const char *address; /* numeric or a name */
	unsigned port;
	const char *user;
	const char *key_path; /* our private key */
	const char
		*host_key; /* the server's public key as base64, without "ssh-ed25519 " */
	const char *what;  /* in sentences; NULL: the test machine */
};

struct ssh_link;

/* timeout_ms bounds connecting and authenticating together. -EKEYREJECTED: the host key
 * is another; -EACCES: our key is not taken; -ECONNREFUSED, -ETIMEDOUT: nobody answers
 * (yet). */
int ssh_link_open(const struct ssh_target *t, unsigned timeout_ms, struct ssh_link **ret,
	struct err *e);
/* The same over a connected stream socket, which is taken over in any case; address and
 * port are not looked at. -EKEYREJECTED names both fingerprints. */
int ssh_link_open_fd(int fd, const struct ssh_target *t, unsigned timeout_ms,
	struct ssh_link **ret, struct err *e);
void ssh_link_close(struct ssh_link *l);
static inline void
ssh_link_close_fn(struct ssh_link **l)
{
	ssh_link_close(*l);
}
#define cleanup_ssh_link __attribute__((cleanup(ssh_link_close_fn)))

struct ssh_command {
	const char *text; /* for the user's login shell: ssh_quote() makes one of words;
			     NULL: that shell itself */
	int in_fd;	  /* borrowed; -1: the command reads an end of file at once */
	int out_fd;	  /* borrowed, as err_fd; -1: thrown away */
	int err_fd;
	/* In the place of in_fd, unless NULL: fills buf; 0 at the end, negative ends the
	 * command with that code. */
	ssize_t (*input)(void *ctx, void *buf, size_t cap, struct err *e);
	/* In the place of out_fd and err_fd, unless NULL; stream is 1 or 2. Negative: as
	 * above. */
	int (*output)(void *ctx, int stream, const void *buf, size_t len, struct err *e);
	bool tty; /* a terminal of in_fd's size; there is no separate stderr then */
	const char *term; /* its kind; NULL: "dumb" */
	/* A signalfd(2) or -1. SIGWINCH sends the new size; any other signal is given to
	 * on_signal, the second one also ends us with -ECANCELED. (An SSH server does not
	 * deliver signals to root's commands, so that the caller has to know another
	 * way.) */
	int signal_fd;
	void (*on_signal)(void *ctx, int number, unsigned nth); /* nth: 1, 2 */
	bool impatient;	 /* the first signal ends us with -ECANCELED already */
	int *ret_signal; /* NULL, or: the signal that ended the command, 0 if none did */
	void *ctx;
	unsigned timeout_ms; /* 0: as long as it takes; else -ETIMEDOUT */
	/* For how long the machine was paused, in all, by a count that begins anywhere;
	 * NULL: never. That time does not count. */
	uint64_t (*paused_ms)(void *ctx);
};
#define SSH_COMMAND_INIT \
	{ \
		.in_fd = -1, .out_fd = -1, .err_fd = -1, .signal_fd = -1 \
	}

/* Runs it to its end. *ret_status: the exit status, or 128 + the signal's number. A
 * connection that ends without either is an error, never success. A closed out_fd
 * (-EPIPE) ends the command. All of its output is written before this returns; a process
 * that it leaves behind and that keeps its output open is not waited for once it is
 * silent. */
int ssh_link_run(
	struct ssh_link *l, const struct ssh_command *c, int *ret_status, struct err *e);

/* One word as the POSIX shell reads back unchanged: '…', each ' as '\''. Appends to *text
 * (malloc'd or NULL), with a pre-warmed between. -ENOMEM, or -E2BIG above SSH_COMMAND_MAX. */
#define SSH_COMMAND_MAX (96u * 1024u)
int ssh_quote(char **text, const char *word);

/* Makes a key pair: the private half in a new file (0600), the public one as base64. */
#define SSH_PUBLIC_MAX 128
int ssh_make_key(const char *path, char ret_public[SSH_PUBLIC_MAX], struct err *e);

#endif
