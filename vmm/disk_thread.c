#include "vmm/disk_thread.h"

#include <pthread.h>

#include "common/log.h"
#include "vmm/blk_flush.h"
#include "vmm/futex.h"
#include "vmm/mappings.h"

static void *
run(void *arg)
{
	struct disk_thread *t = arg;
	unsigned seen;

	for (;;) {
		seen = atomic_load(&t->wakes);
		while (blk_round(t->blk))
			;
		futex_wait(&t->wakes, seen);
	}
	return NULL;
}

/* The device's lock is held: one at a time. */
static bool
wake(void *ctx)
{
	static struct log_limit limit = {.burst = 1};
	struct disk_thread *t = ctx;
	pthread_t thread;
	struct err e;

	if (!t->runs) {
		if (mappings_thread(&thread, run, t, &e) < 0) {
			if (log_allowed(&limit))
				log_warn("disk: a vCPU waits for the guest's flush: %s", e.msg);
			return false;
		}
		t->runs = true;
	}
	atomic_fetch_add(&t->wakes, 1);
	futex_wake(&t->wakes);
	return true;
}

void
disk_thread_init(struct disk_thread *t, struct blk *blk)
{
	t->blk = blk;
	t->runs = false;
	blk->waker = (struct blk_waker){.wake = wake, .ctx = t};
}

void
disk_thread_fork_child(struct disk_thread *t)
{
	t->runs = false;
}
