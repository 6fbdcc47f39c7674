/*
 * What the verbs say. stdout carries the answer and nothing else; notes, progress and
 * complaints go to stderr. Text that came from a guest or a user is escaped before it
 * reaches a terminal.
 */
#ifndef PANDO_HOST_CLI_OUT_H
#define PANDO_HOST_CLI_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/err.h"
#include "common/json.h"

/* "pando: sentence" on stderr. */
void out_complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for what is no complaint: not said once out_hush() was called (-q). */
void out_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void out_hush(void);
/* Complains and gives the exit status. */
int out_fail(const struct err *e);
/* The answer as a line of JSON on stdout. The exit status; complains when there was no
 * memory for all of it, and says none of it then. */
int out_json(const struct json_out *o);
/* Standard output is a pipe that nobody reads any more: `| grep -m1` has found its line. */
bool out_reader_left(void);
/* Flushes stdout; an answer that was lost (a full disk, a stdout that is closed) is said,
 * once, and turns success into EXIT_FAILED; a reader that left turns it into 128 + SIGPIPE.
 */
int out_end(int status);

/* Fit for a table or terminal: control characters become \xNN, UTF-8 stays. Returns dst.
 */
const char *out_plain(char *dst, size_t cap, const char *text);

/* "3 s", "12 min", "5 h", "9 d"; "512 MiB", "2 GiB", "1.5 GiB"; "0.31 ms". Return dst. */
const char *out_age(char *dst, size_t cap, uint64_t ms);
const char *out_mib(char *dst, size_t cap, uint64_t mib);
const char *out_bytes(char *dst, size_t cap, uint64_t bytes);

/* A table whose columns are as wide as what is in them; the last one is not padded. Cells
 * are copied. All of it is written at the end. */
struct out_table;
struct out_table *out_table_new(
	const char *const *heads, size_t n_columns); /* NULL: no memory */
void out_table_cell(struct out_table *t, const char *text);
void out_table_print(struct out_table *t, FILE *f);
/* Prints what is there, and goes on without it; columns stay as wide as they are. */
void out_table_flush(struct out_table *t, FILE *f);
void out_table_free(struct out_table *t);
static inline void
out_table_free_fn(struct out_table **t)
{
	out_table_free(*t);
}
#define cleanup_out_table __attribute__((cleanup(out_table_free_fn)))

/* Columns a terminal needs for a UTF-8 text (combining marks are not looked up: one
 * each). */
size_t out_width(const char *text);

/*
 * Progress on stderr. On a terminal: one line, rewritten, with the time passed.
 * Elsewhere: one plain line a sentence. Nothing at all when quiet.
 */
struct out_progress {
	bool on;
	bool tty;
	bool shown; /* there is an unfinished line on the terminal */
	uint64_t start_ns;
	char say[256];
};
void out_progress_start(struct out_progress *p, bool quiet);
/* sentence NULL: only the clock moved. Matches client.h's progress callback. */
void out_progress_say(void *progress, const char *sentence);
/* Wipes the terminal's line. Harmless when called twice. */
void out_progress_end(struct out_progress *p);

/* Asks on the terminal; true for y or yes. False when there is no terminal to ask on. */
bool out_confirm(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* stdin and stderr are terminals, so there is a person to ask. */
bool out_can_ask(void);

#endif
