#include "host/store/store_pool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NICE 5

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t queued, ended;
	struct pool_job *head, **tail;
	bool stop;
	bool made; /* the threads, or it was tried */
	unsigned threads;
	unsigned n;
	pthread_t thread[POOL_THREADS_MAX];
};

void
pool_lower_priority(void)
{
	struct sched_param none = {0};
	sigset_t all;

	/* What is refused changes nothing but the speed of others. */
	(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
	(void)sched_setscheduler(0, SCHED_BATCH, &none);
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
}

/* lock held. */
static void
dequeue(struct pool *p, struct pool_job *j)
{
	*j->at = j->next;
	if (j->next)
		j->next->at = j->at;
	else
		p->tail = j->at;
}

/* lock held; let go of meanwhile. */
static void
run(struct pool *p, struct pool_job *j, struct zip *zip)
{
	dequeue(p, j);
	j->state = POOL_RUNNING;
	pthread_mutex_unlock(&p->lock);
	j->run(j, zip);
	pthread_mutex_lock(&p->lock);
	j->state = POOL_DONE;
	pthread_cond_broadcast(&p->ended);
}

static void *
work(void *arg)
{
	struct pool *p = arg;
	struct zip *zip;

	pool_lower_priority();
	if (zip_new(&zip))
		return NULL; /* whoever waits does it all */
	pthread_mutex_lock(&p->lock);
	for (;;) {
		while (!p->head && !p->stop)
			pthread_cond_wait(&p->queued, &p->lock);
		if (p->stop)
			break;
		run(p, p->head, zip);
	}
	pthread_mutex_unlock(&p->lock);
	zip_free(zip);
	return NULL;
}

int
pool_new(unsigned threads, struct pool **ret)
{
	struct pool *p = calloc(1, sizeof(*p));
	long online = sysconf(_SC_NPROCESSORS_ONLN);

	if (!p)
		return -ENOMEM;
	if (!threads)
		threads = online > 0 ? (unsigned)online : 1;
	p->threads = threads < POOL_THREADS_MAX ? threads : POOL_THREADS_MAX;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->queued, NULL);
	pthread_cond_init(&p->ended, NULL);
	p->tail = &p->head;
	*ret = p;
	return 0;
}

void
pool_free(struct pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->queued);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->n; i++)
		pthread_join(p->thread[i], NULL);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->queued);
	pthread_cond_destroy(&p->ended);
	free(p);
}

unsigned
pool_threads(const struct pool *p)
{
	return p->threads;
}

/* lock held. */
static void
make_threads(struct pool *p)
{
	p->made = true;
	while (p->n + 1 < p->threads &&
		pthread_create(&p->thread[p->n], NULL, work, p) == 0)
		p->n++;
}

void
pool_submit(struct pool *p, struct pool_job *j)
{
	pthread_mutex_lock(&p->lock);
	if (!p->made)
		make_threads(p);
	j->state = POOL_QUEUED;
	j->next = NULL;
	j->at = p->tail;
	*p->tail = j;
	p->tail = &j->next;
	pthread_cond_signal(&p->queued);
	pthread_mutex_unlock(&p->lock);
}

static struct pool_job *
first_of(struct pool *p, const void *owner)
{
	struct pool_job *j = p->head;

	while (j && j->owner != owner)
		j = j->next;
	return j;
}

void
pool_wait(struct pool *p, struct pool_job *j, struct zip *zip)
{
	pthread_mutex_lock(&p->lock);
	while (j->state != POOL_DONE) {
		struct pool_job *other =
			j->state == POOL_QUEUED ? j : first_of(p, j->owner);

		if (other)
			run(p, other, zip);
		else
			pthread_cond_wait(&p->ended, &p->lock);
	}
	pthread_mutex_unlock(&p->lock);
}

bool
pool_is_done(struct pool *p, struct pool_job *j)
{
	bool done;

	pthread_mutex_lock(&p->lock);
	done = j->state == POOL_DONE;
	pthread_mutex_unlock(&p->lock);
	return done;
}

void
pool_cancel(struct pool *p, struct pool_job *j)
{
	pthread_mutex_lock(&p->lock);
	if (j->state == POOL_QUEUED) {
		dequeue(p, j);
		j->state = POOL_DONE;
	}
	while (j->state == POOL_RUNNING)
		pthread_cond_wait(&p->ended, &p->lock);
	pthread_mutex_unlock(&p->lock);
}
