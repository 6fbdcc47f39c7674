/*
 * A journal: a stream of lines in one file, each at the byte offset that it will always
 * have, with an index beside it.
 *
 *	<name>         the bytes as they were written. What is too old is no longer there:
 *its place is a hole, which takes no disk, and offsets stay true. <name>.index   a header
 *of 32 bytes, then 32 bytes a line (struct journal_record); line n (from 0, for ever) is
 *at 32 * (n + 1). epochs         lines of EPOCH_BYTES: which VM and generation the
 *machine was. Shared by the journals of a folder.
 *
 * One writer, any number of readers, in any processes; nobody waits for anybody. The
 *writer takes bytes from a pipe by splice(2): the kernel moves them, so that a writer
 *that is killed loses none. A line is in the index when all of it is in the file. The
 *next writer finds what the last one had not indexed.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_JOURNAL_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

/* With its LF. A longer line is kept in pieces, all but the last flagged. */
#define JOURNAL_LINE_MAX (16u * 1024u * 1024u + 1)

enum journal_flag {
	JOURNAL_PIECE = 1, /* the line goes on in the next record */
	/* Its writer was ended in the middle of it: an LF was put there. No line. */
	JOURNAL_TORN = 2,
};

struct journal_header {
	uint8_t magic[8]; /* JOURNAL_MAGIC */
	uint64_t first;	  /* the oldest line whose bytes are there */
	uint64_t start;	  /* its offset */
	uint64_t pad;
};
_Static_assert(sizeof(struct journal_header) == 32, "disk format");
#define JOURNAL_MAGIC "pandojl1"

struct journal_record {
	uint64_t offset;
	uint32_t len; /* with LF */
	uint32_t flags;
	uint32_t epoch;
	uint32_t pad;
	uint64_t time_ms; /* of the day */
};
_Static_assert(sizeof(struct journal_record) == 32, "disk format");

/*
 * Epochs.
 */
#define EPOCH_BYTES 80
struct journal_epoch {
	char vm[13];	     /* "" not known */
	char generation[33]; /* "" not known */
};
/* The count of epochs that are there; 0: none yet. */
uint32_t epoch_count(int dir);
int epoch_read(int dir, uint32_t number, struct journal_epoch *ret);
/* Adds one: its number. */
int epoch_add(int dir, const struct journal_epoch *now, uint32_t *ret, struct err *e);

/*
 * The writer.
 */
struct journal {
	int data_fd, index_fd; /* owned; -1 */
	const char *name;      /* borrowed */
	uint64_t first, start; /* as in the header */
	uint64_t lines;	       /* in the index */
	uint64_t indexed;      /* bytes that the index covers */
	uint64_t end;	       /* bytes that are there */
	uint64_t seen;	       /* bytes in which LFs were looked for */
	uint32_t epoch;	       /* of lines from now on */
	bool no_splice, no_holes;
};
#define JOURNAL_INIT \
	{ \
		.data_fd = -1, .index_fd = -1 \
	}

/* Makes it or takes what is there, mending what a killed writer or a power cut left. The
 * caller sees to it that it is the only writer. */
int journal_open(int dir, const char *name, struct journal *ret, struct err *e);
void journal_done(struct journal *j);
#define cleanup_journal __attribute__((cleanup(journal_done)))
/* From a pipe, at most max bytes: the count, 0 at its end, -EAGAIN, -ENOSPC, … */
ssize_t journal_take(struct journal *j, int pipe_fd, size_t max);
/* The same from memory. */
int journal_put(struct journal *j, const void *buf, size_t len);
/* Indexes the lines that are whole. line (may be NULL) is told of each, in order; it
 * may not call the journal. */
int journal_index(struct journal *j,
	void (*line)(void *ctx, const struct journal_record *r), void *ctx);
/* The line that has begun will not go on: it is ended and flagged. */
int journal_tear(struct journal *j);
/* Forgets old lines so that about `keep` bytes stay. */
int journal_trim(struct journal *j, uint64_t keep);

/*
 * A reader.
 */
struct journal_reader {
	int data_fd, index_fd; /* owned; -1 */
};
#define JOURNAL_READER_INIT JOURNAL_INIT

struct journal_bounds {
	uint64_t first,
		lines; /* numbers: of the oldest line, and how many there ever were */
	uint64_t start, end; /* offsets: of the oldest line, and behind the last */
};
/* -ENOENT: nothing was ever written. */
int journal_reader_open(
	int dir, const char *name, struct journal_reader *ret, struct err *e);
void journal_reader_done(struct journal_reader *r);
#define cleanup_journal_reader __attribute__((cleanup(journal_reader_done)))
/* -EBADMSG: this is no journal, or a damaged one. */
int journal_bounds(
	const struct journal_reader *r, struct journal_bounds *ret, struct err *e);
/* Line `number`: 1; 0 it is not there yet; -ESTALE it is not there any more; -EBADMSG. */
int journal_record(const struct journal_reader *r, uint64_t number,
	struct journal_record *ret, struct err *e);
/* The first line that begins at or after the offset. -ERANGE: beyond the end. */
int journal_seek(const struct journal_reader *r, uint64_t offset, uint64_t *ret_number,
	struct err *e);
/* len bytes of a line from `at` in it on. -ESTALE: they went while they were read. */
int journal_read(const struct journal_reader *r, uint64_t number,
	const struct journal_record *rec, uint32_t at, void *buf, size_t len,
	struct err *e);

#endif
