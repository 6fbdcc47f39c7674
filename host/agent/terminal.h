/*
 * The person's own terminal while something in a guest has it: raw, and given back as it
 * was on every way out: the end, an error, a signal that can be caught, a crash of ours.
 *
 * One at a time in a process, for the thread that opened it. SIGHUP, SIGINT, SIGQUIT,
 * SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGWINCH and SIGCONT are blocked meanwhile and come
 * through terminal_wake_fd().
 */
#ifndef PANDO_HOST_AGENT_TERMINAL_H
#define PANDO_HOST_AGENT_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

/*
 * What is typed: keys of our own after an escape character at the start of a line, as ssh
 * has them. "~." leave, "~?" help, "~^Z" suspend, "~~" one '~'; any other is passed on.
 */
enum terminal_key { TERMINAL_NO_KEY, TERMINAL_LEAVE, TERMINAL_HELP, TERMINAL_SUSPEND };

struct terminal_keys {
	char escape;  /* 0: none */
	bool in_line; /* something stands in the line already */
	bool held;    /* the escape character was typed, and is kept back */
};

/* Takes what was typed up to the first key of ours (*ret; TERMINAL_NO_KEY: all of it) and
 * puts what is to be passed on into out, which has room for len + 1 and may begin one
 * byte before in. The count of bytes taken; *ret_len those in out. */
size_t terminal_keys_take(struct terminal_keys *k, const char *in, size_t len, char *out,
	size_t *ret_len, enum terminal_key *ret);

/*
 * What programs switched on in the terminal: the alternate screen, the mouse, a hidden
 * cursor, … Where they could not switch it off any more (their machine died), we do.
 */
struct terminal_modes {
	unsigned on; /* a bit for each mode we know */
	/* Of a sequence that has begun. */
	unsigned state, at;
	uint16_t param[16];
	bool coloured, keypad;
};

void terminal_modes_see(struct terminal_modes *m, const void *buf, size_t len);
#define TERMINAL_UNDO_MAX 256
/* The sequences that switch off what is on; "" when nothing is. dst has
 * TERMINAL_UNDO_MAX. Returns dst. */
const char *terminal_modes_undo(const struct terminal_modes *m, char *dst);

struct terminal;

/* stdin and stdout must be terminals (-ENOTTY). Still as it was: while somebody waits for
 * a guest, Ctrl-C is to work. */
int terminal_open(struct terminal **ret, struct err *e);
void terminal_raw(struct terminal *t);
/* Gives it back. lost: the other side went without a word; what it left switched on is
 * switched off, and keys that were meant for it are thrown away. NULL is fine. */
void terminal_close(struct terminal *t, bool lost);

void terminal_size(const struct terminal *t, uint16_t *ret_rows, uint16_t *ret_cols);
/* stdout, but writing to it never blocks, where that can be had. Borrowed. */
int terminal_out_fd(const struct terminal *t);
/* For output as it goes to terminal_out_fd(). */
void terminal_saw(struct terminal *t, const void *buf, size_t len);

int terminal_wake_fd(const struct terminal *t);
/* When that is readable. TERMINAL_RESIZED: ask terminal_size(). TERMINAL_ENDED: a signal
 * wants us gone. */
enum terminal_event { TERMINAL_NOTHING, TERMINAL_RESIZED, TERMINAL_ENDED };
enum terminal_event terminal_wake(struct terminal *t);

/* Stops this process as Ctrl-Z would; returns when it goes on. */
void terminal_suspend(struct terminal *t);
void terminal_help(struct terminal *t, char escape);

#endif
