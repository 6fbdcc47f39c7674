/*
 * A terminal for a command: the pair of descriptors, and what TERM can be in this guest.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_TTY_H
#define PANDO_GUEST_AGENT_SYSTEM_TTY_H

#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

/* *ret_master does not block and is ours, *ret_slave is the command's; both close on
 * exec. owner (uid_t)-1: stays as it is. A size of 0, 0 is not set. */
int tty_open(uint16_t rows, uint16_t cols, uid_t owner, int *ret_master, int *ret_slave,
	struct err *e);

/* The name a program here can look up: that of the person's terminal where this guest
 * knows it, else "xterm-256color", which most terminals are near enough to. NULL is
 * unknown, too. A guest that knows not even that gets the given name. */
const char *tty_term(const char *name);

#endif
