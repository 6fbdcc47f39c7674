/*
 * The agent's event loop: descriptors, timers, and work put off to the end of a round.
 * One thread; callbacks never block.
 *
 * Level-triggered epoll. A callback may close any source and free any object: memory goes
 * through loop_free(), which waits for the end of the round, so that an event already
 * fetched for it finds a closed source and not freed memory.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_LOOP_H
#define PANDO_GUEST_AGENT_SYSTEM_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

struct source {
	int fd;		 /* owned; -1 when closed */
	uint32_t events; /* what is waited for; 0: not in the epoll set */
	void (*ready)(struct source *s, uint32_t events);
};

struct timer {
	struct timer *next, **link; /* link NULL: not armed */
	uint64_t at_ns;		    /* loop_now_ns() */
	void (*fire)(struct timer *t);
};

/* Work for the end of the round; queued once however often it is asked for. */
struct deferred {
	struct deferred *next;
	bool queued;
	void (*run)(struct deferred *c);
};

int loop_init(struct err *e);
/* One round: waits at most max_ms (negative: until something happens). The count of
 * events. */
int loop_round(int max_ms, struct err *e);
/* Never returns but on an error of epoll itself. */
int loop_run(struct err *e);

void source_init(struct source *s, int fd, void (*ready)(struct source *, uint32_t));
/* 0 takes it out of the set: hang-ups are not seen then. */
int source_wait(struct source *s, uint32_t events);
void source_close(struct source *s);

/* The clock of timers: CLOCK_MONOTONIC without the time in which this machine was paused,
 * or this process stopped, while a timer was armed. A guest's clocks go on while its
 * processors are held, and no clock of it tells; but a loop that comes round much later
 * than it has asked for has not run meanwhile. Half a second of each such time counts at
 * most; so does all of what is shorter than that. */
uint64_t loop_now_ns(void);
/* NULL, or told when that clock falls behind CLOCK_MONOTONIC by so much more. */
extern void (*loop_lost)(uint64_t ns);
void timer_set(struct timer *t, uint64_t at_ns);
void timer_stop(struct timer *t);

void deferred_queue(struct deferred *c);
void deferred_drop(struct deferred *c);

void loop_free(void *p);

#endif
