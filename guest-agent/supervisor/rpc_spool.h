/*
 * Lines on their way into a coding agent. Whoever has one appends it under a lock and is
 * done: it is there although the supervisor may be killed the next moment, or is not there
 * at all. The supervisor moves what is there to the program, in order.
 *
 *	spool         the lines, one after the other; the oldest are holes
 *	spool.state   struct spool_state
 *
 * A sender that dies while it appends leaves bytes behind `committed`, which the next one
 * cuts off: a line is in the spool whole or not at all.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_SPOOL_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_SPOOL_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define SPOOL_LINE_MAX (16u * 1024u * 1024u) /* without its LF */
#define SPOOL_WAITING_MAX (64u * 1024u * 1024u)
#define SPOOL_LOCK_MS 10000

struct spool_state {
	uint8_t magic[8];   /* SPOOL_MAGIC */
	uint64_t committed; /* bytes that count */
	uint64_t forwarded; /* bytes that the supervisor has moved to a program, about */
	uint64_t lines;	    /* that were ever appended */
};
_Static_assert(sizeof(struct spool_state) == 32, "disk format");
#define SPOOL_MAGIC "pandosp1"

/* Makes both files when they are missing. The supervisor's business. */
int spool_make(int dir, struct err *e);
int spool_state_read(int dir, struct spool_state *ret, struct err *e);
/* A line, which has no LF in it and gets one. -EAGAIN: the program does not read, and
 * SPOOL_WAITING_MAX bytes wait for it. -EBUSY: the lock was not to be had in
 * lock_ms. ret_line (may be NULL): its number, from 1. */
int spool_append(int dir, const char *line, size_t len, unsigned lock_ms,
	uint64_t *ret_line, struct err *e);
/* For the supervisor. */
int spool_set_forwarded(int dir, uint64_t forwarded);
/* The beginning of the line that byte `at` of an open spool is in (at itself, when one
 * begins there). */
int spool_line_start(int fd, uint64_t at, uint64_t *ret);
/* Gives back the disk of what was forwarded, but for enough to go back to a line's begin.
 */
void spool_punch(int fd, uint64_t *punched, uint64_t forwarded);

#endif
