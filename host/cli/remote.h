/*
 * Commands over SSH, in VMs (vmssh.h) and in the test machine (cmd_machine.c) alike: the
 * text that the other side's shell reads, the word they are found by when they are to be
 * told a signal, and our terminal as theirs.
 */
#ifndef PANDO_HOST_CLI_REMOTE_H
#define PANDO_HOST_CLI_REMOTE_H

#include <stdbool.h>

#include "host/ssh/ssh.h"

/* Appends to *text (NULL: nothing yet; malloc'd): before, the word, quoted, and after.
 * -E2BIG above SSH_COMMAND_MAX. */
int remote_append(char **text, const char *before, const char *word, const char *after);

#define REMOTE_TOKEN_LEN 32
/* Random hex digits. */
int remote_token(char token[static REMOTE_TOKEN_LEN + 1], struct err *e);

/* A signalfd of what ends us, and of new sizes of the terminal; these are blocked from
 * now on. -1: there is none. */
int remote_signals(bool and_size);

/* ssh_link_run(), for a command with a terminal (c->tty) with ours in raw mode
 * meanwhile. */
int remote_run(struct ssh_link *link, const struct ssh_command *c, int *ret_status,
	struct err *e);

#endif
