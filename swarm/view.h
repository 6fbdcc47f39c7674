/*
 * What a person sees of a run, on stderr: on a terminal that is high enough a live table
 * (child, state, elapsed, score) with notes scrolling above it, elsewhere one plain line
 * for each change and a summary every 30 s. Guest text is escaped.
 */
#ifndef PANDO_SWARM_VIEW_H
#define PANDO_SWARM_VIEW_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum swarm_state {
	SWARM_WAITING,
	SWARM_PUTTING,
	SWARM_WORKING,
	SWARM_SCORING,
	SWARM_COLLECTING,
	SWARM_SCORED, /* the last three are final */
	SWARM_FAILED,
	SWARM_CANCELLED,
};

struct swarm_row {
	const char *name; /* borrowed */
	enum swarm_state state;
	uint64_t start_ns, end_ns; /* 0: not yet */
	double score;
	char note[160]; /* why it failed */
	bool leads;
};

struct swarm_view {
	pthread_mutex_t lock;
	int fd;
	bool live;
	unsigned columns;
	uint64_t start_ns;
	uint64_t next_summary_ns;
	struct swarm_row
		*rows; /* owned by the caller; changed only through this module */
	size_t n_rows;
	size_t drawn; /* lines of the table on the screen */
};

/* fd -1: nothing is shown. live: fd is a terminal; whether the table fits is found out
 * here. */
void swarm_view_init(struct swarm_view *v, int fd, bool live);
void swarm_view_start(struct swarm_view *v, struct swarm_row *rows, size_t n_rows);
/* A line of its own. */
void swarm_view_note(struct swarm_view *v, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* Row i changes; note (may be NULL) is why. score counts for SWARM_SCORED. */
void swarm_view_set(struct swarm_view *v, size_t i, enum swarm_state state, double score,
	const char *note);
void swarm_view_lead(struct swarm_view *v, size_t i);
/* Call about twice a second. */
void swarm_view_tick(struct swarm_view *v);
/* Leaves the table as it is; later notes go below it. */
void swarm_view_stop(struct swarm_view *v);

#endif
