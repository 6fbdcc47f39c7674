#include "guest-agent/system/loop.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/io.h"

#define EVENTS 32
/* How often the clock is looked at while a timer is armed, and how much later than asked
 * for the loop must come round for the rest to be time in which nothing ran here. */
#define LOOK_NS 500000000ull
#define LATE_NS 500000000ull

/* What loop_free() was given. The memory itself carries the chain. */
struct garbage {
	struct garbage *next;
};

static int epoll_fd = -1;
static struct timer *timers;
static struct deferred *deferred_calls, **deferred_calls_end = &deferred_calls;
static struct garbage *garbage;
static uint64_t looked_ns; /* io_now_ns() of the last round; 0: none yet */
static uint64_t lost_ns;   /* what the clock of timers is behind it */

int
loop_init(struct err *e)
{
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return epoll_fd < 0 ? err_sys(e, -errno, "epoll") : 0;
}

void
source_init(struct source *s, int fd, void (*ready)(struct source *, uint32_t))
{
	*s = (struct source){.fd = fd, .ready = ready};
}

int
source_wait(struct source *s, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = s};
	int op = !s->events ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

	if (s->fd < 0 || events == s->events)
		return 0;
	if (epoll_ctl(epoll_fd, op, s->fd, &ev))
		return -errno;
	s->events = events;
	return 0;
}

void
source_close(struct source *s)
{
	if (s->fd < 0)
		return;
	/* Explicitly: a child between clone and exec may hold a copy, which would keep it
	 * in the set. */
	source_wait(s, 0);
	close(s->fd);
	s->fd = -1;
	s->events = 0;
}

void
timer_set(struct timer *t, uint64_t at_ns)
{
	t->at_ns = at_ns;
	if (t->link)
		return;
	t->next = timers;
	if (timers)
		timers->link = &t->next;
	timers = t;
	t->link = &timers;
}

void
timer_stop(struct timer *t)
{
	if (!t->link)
		return;
	*t->link = t->next;
	if (t->next)
		t->next->link = t->link;
	t->link = NULL;
	t->next = NULL;
}

void
deferred_queue(struct deferred *c)
{
	if (c->queued)
		return;
	c->queued = true;
	c->next = NULL;
	*deferred_calls_end = c;
	deferred_calls_end = &c->next;
}

void
deferred_drop(struct deferred *c)
{
	struct deferred **at = &deferred_calls;

	if (!c->queued)
		return;
	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	if (deferred_calls_end == &c->next)
		deferred_calls_end = at;
	c->queued = false;
}

void
loop_free(void *p)
{
	struct garbage *g = p;

	if (!g)
		return;
	/* The first word of every object given here is not looked at again, its sources
	 * are: see loop.h. */
	g->next = garbage;
	garbage = g;
}

static int
wait_ms(void)
{
	uint64_t first = UINT64_MAX, now;

	if (!timers)
		return -1;
	for (struct timer *t = timers; t; t = t->next)
		if (t->at_ns < first)
			first = t->at_ns;
	now = loop_now_ns();
	if (first <= now)
		return 0;
	if (first - now > LOOK_NS)
		first = now + LOOK_NS;
	return (int)((first - now + 999999) / 1000000);
}

void (*loop_lost)(uint64_t ns);

uint64_t
loop_now_ns(void)
{
	return io_now_ns() - lost_ns;
}

/* After a wait of at most ms (negative: no limit), since the last one. */
static void
look_at_clock(int ms)
{
	uint64_t now = io_now_ns(), most;

	most = looked_ns + (ms < 0 ? 0 : (uint64_t)ms * 1000000);
	if (looked_ns && ms >= 0 && now > most + LATE_NS) {
		lost_ns += now - most;
		if (loop_lost)
			loop_lost(now - most);
	}
	looked_ns = now;
}

/* By the clock as this round looked at it: what is over since then may be time in which
 * nothing ran, and only the next look can tell. */
static void
fire_timers(void)
{
	uint64_t now = looked_ns - lost_ns;
	struct timer *t;

again:
	for (t = timers; t; t = t->next) {
		if (t->at_ns > now)
			continue;
		timer_stop(t);
		t->fire(t); /* may change the list */
		goto again;
	}
}

int
loop_round(int max_ms, struct err *e)
{
	struct epoll_event ev[EVENTS];
	int ms = wait_ms(), n;

	if (max_ms >= 0 && (ms < 0 || ms > max_ms))
		ms = max_ms;
	n = epoll_wait(epoll_fd, ev, EVENTS, ms);
	look_at_clock(ms);
	if (n < 0 && errno != EINTR)
		return err_sys(e, -errno, "epoll");
	for (int i = 0; i < n; i++) {
		struct source *s = ev[i].data.ptr;

		/* Waited for no more since it was fetched: another callback of this round
		 * saw to it. */
		if (s->fd >= 0 && s->events)
			s->ready(s, ev[i].events);
	}
	fire_timers();
	while (deferred_calls) {
		struct deferred *c = deferred_calls;

		deferred_calls = c->next;
		if (!deferred_calls)
			deferred_calls_end = &deferred_calls;
		c->queued = false;
		c->run(c);
	}
	while (garbage) {
		struct garbage *g = garbage;

		garbage = g->next;
		free(g);
	}
	return n > 0 ? n : 0;
}

int
loop_run(struct err *e)
{
	int r;

	while ((r = loop_round(-1, e)) >= 0)
		;
	return r;
}
