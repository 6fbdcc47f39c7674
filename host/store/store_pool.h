/*
 * Threads that do a writer's arithmetic: few, of low priority, made when the first job is
 * there. A job is run once, by one of them or by the thread that waits for it.
 */
#ifndef PANDO_HOST_STORE_STORE_POOL_H
#define PANDO_HOST_STORE_STORE_POOL_H

#include <stdbool.h>

#include "host/store/store_zip.h"

#define POOL_THREADS_MAX 8u

struct pool;

enum pool_state { POOL_IDLE, POOL_QUEUED, POOL_RUNNING, POOL_DONE };

/* Embedded in what the job is about. The first three are the caller's; it sets state to
 * POOL_IDLE. */
struct pool_job {
	void (*run)(struct pool_job *j, struct zip *zip);
	const void *owner; /* weak: whose jobs a waiting thread may run */
	enum pool_state state;
	struct pool_job *next, **at; /* while queued */
};

/* How many threads work at once, the waiting one included: 0 is as many as there are
 * online CPUs, at most POOL_THREADS_MAX. -ENOMEM. */
int pool_new(unsigned threads, struct pool **ret);
/* No job may be left. NULL is fine. */
void pool_free(struct pool *p);
unsigned pool_threads(const struct pool *p);

/* The job is queued. With one thread, or none to be had, pool_wait() runs it. */
void pool_submit(struct pool *p, struct pool_job *j);
/* Until the job is done; meanwhile the caller runs jobs of the same owner, this one
 * first. */
void pool_wait(struct pool *p, struct pool_job *j, struct zip *zip);
bool pool_is_done(struct pool *p, struct pool_job *j);
/* Takes a job back that nobody has begun, or waits for its end. */
void pool_cancel(struct pool *p, struct pool_job *j);

/* For the calling thread: low priority, and no signals of the process. */
void pool_lower_priority(void);

#endif
