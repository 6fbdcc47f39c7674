/*
 * Followers of reports. While somebody waits for reports, one thread holds a connection to
 * each guest that runs; the guest's agent ends it when a report waits there
 * (agent_reports_watch()). Then the reports are taken, and whoever waits is woken: nobody asks
 * guests again and again. Taking and connecting are done beside it, so that a guest that does
 * not answer holds up no other. A guest that cannot tell, because its agent is older, is
 * asked once a second.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/agent/agent_report.h"
#include "host/vm/tree_priv.h"

#define NS_PER_MS UINT64_C(1000000)
#define AT_ONCE 16
/* Guests that did not answer when they were asked last are asked by fewer, and for longer, so
 * that the others always find somebody; and the more seldom the longer that goes on. */
#define SLOW_AT_ONCE 8
#define ASK_MS 1000
#define ASK_SLOW_MS 15000
#define SLOW_AGAIN_MAX_MS 32000
#define CONNECT_MS 5000
/* A guest that reports without end is looked at that often at most. */
#define GAP_MS 100
#define AGAIN_MS 1000
/* How often new VMs are looked for. */
#define LOOK_MS 500
/* Followers come back: so long connections are kept without any. */
#define LINGER_MS 10000
/* Descriptors that connections to guests leave, beyond what everybody leaves: for VMs that are
 * made while somebody follows. A guest for which there is none is asked once a second. */
#define DESCRIPTORS_LEFT 256

/* A guest. Under the tree's lock, but for watch, which is the thread's while not busy. */
struct watched {
	struct vm *vm;			  /* a reference; its watched_at is here */
	struct agent_report_watch *watch; /* owned; NULL: none */
	uint64_t due_ns;		  /* without a watch: when it is asked */
	bool busy;			  /* it is being asked */
	unsigned failed;		  /* how often in a row it did not answer */
};

struct reports_watch {
	struct tree *t; /* borrowed */
	pthread_t thread;
	int wake_fd; /* owned */
	unsigned busy, slow_busy;
	uint64_t left_ns; /* when the last follower went */
	struct watched v[TREE_VMS_MAX];
	unsigned n;
};

struct asking {
	struct reports_watch *w;
	struct vm *vm; /* its struct watched, which stays while busy, has a reference */
	bool slow;
};

static void
wake(const struct reports_watch *w)
{
	uint64_t one = 1;

	(void)!write(w->wake_fd, &one, sizeof(one));
}

static struct watched *
find(struct reports_watch *w, const struct vm *vm)
{
	return vm->watched_at ? &w->v[vm->watched_at - 1] : NULL;
}

/* Takes what a guest has, and connects to it. */
static void *
ask_main(void *arg)
{
	struct asking *a = arg;
	struct reports_watch *w = a->w;
	struct tree *t = w->t;
	struct agent_report_watch *watch = NULL;
	uint64_t now = io_now_ns(), due_ns = now + GAP_MS * NS_PER_MS;
	uint64_t ask_ms = a->slow ? ASK_SLOW_MS : ASK_MS, again_ms = AGAIN_MS;
	char path[PATHS_MAX];
	struct watched *own;
	struct err e = {0};
	int r = reports_take(t, a->vm, now + ask_ms * NS_PER_MS, &e), told = r;

	if (told != -ETIMEDOUT)
		r = vm_socket_path(t, a->vm, path);
	if (!r)
		r = agent_reports_watch(
			path, NULL, a->slow ? CONNECT_MS : ASK_MS, &watch, &e);
	if (!r && !descriptors_left(agent_report_watch_fd(watch), DESCRIPTORS_LEFT)) {
		agent_report_watch_free(watch);
		watch = NULL;
		r = err_sys(&e, -EMFILE, "a connection that stays");
	}
	if (r < 0)
		log_debug("reports of vm %s: %s", a->vm->row.id, e.msg);
	pthread_mutex_lock(&t->lock);
	own = find(w, a->vm); /* a busy one stays */
	own->failed = r == -ETIMEDOUT ? own->failed + 1 : 0;
	if (own->failed)
		again_ms <<= own->failed < 6 ? own->failed - 1 : 5;
	if (again_ms > SLOW_AGAIN_MAX_MS)
		again_ms = SLOW_AGAIN_MAX_MS;
	own->watch = watch;
	own->due_ns = r < 0 ? io_now_ns() + again_ms * NS_PER_MS : due_ns;
	own->busy = false;
	w->busy--;
	w->slow_busy -= a->slow;
	wake(w);
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	free(a);
	return NULL;
}

/* Called with the lock. */
static void
ask(struct reports_watch *w, struct watched *own)
{
	struct asking *a = malloc(sizeof(*a));
	pthread_attr_t attr;
	pthread_t thread;

	own->due_ns = io_now_ns() + AGAIN_MS * NS_PER_MS;
	if (!a)
		return;
	*a = (struct asking){.w = w, .vm = own->vm, .slow = own->failed};
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attr, ask_main, a) == 0) {
		own->busy = true;
		w->busy++;
		w->slow_busy += a->slow;
	} else {
		free(a);
	}
	pthread_attr_destroy(&attr);
}

static void
drop(struct reports_watch *w, unsigned i)
{
	agent_report_watch_free(w->v[i].watch);
	w->v[i].vm->watched_at = 0;
	vm_unref(w->v[i].vm);
	if (i != --w->n) {
		w->v[i] = w->v[w->n];
		w->v[i].vm->watched_at = i + 1;
	}
}

/* Whoever waits longest to be asked, by now; NULL: nobody, *next is when somebody will.
 * Called with the lock. */
static struct watched *
first_due(struct reports_watch *w, uint64_t now, uint64_t *next)
{
	struct watched *first = NULL;

	for (unsigned i = 0; i < w->n && w->busy < AT_ONCE; i++) {
		struct watched *own = &w->v[i];

		if (own->busy || own->watch || !reports_can_take(own->vm) ||
			(own->failed && w->slow_busy >= SLOW_AT_ONCE))
			continue;
		if (own->due_ns > now && own->due_ns < *next)
			*next = own->due_ns;
		if (own->due_ns <= now && (!first || own->due_ns < first->due_ns))
			first = own;
	}
	return first;
}

/* Guests that came, went or are to be asked; returns when the next one is. Called with the
 * lock. */
static uint64_t
look(struct reports_watch *w)
{
	struct tree *t = w->t;
	uint64_t now = io_now_ns(), next = now + LOOK_MS * NS_PER_MS;
	struct watched *due;

	for (unsigned i = w->n; i-- > 0;)
		if (!w->v[i].busy &&
			(!w->v[i].vm->listed || !reports_can_take(w->v[i].vm)))
			drop(w, i);
	for (unsigned i = 0; i < t->n_vms; i++) {
		struct vm *vm = t->vms[i];

		if (vm->watched_at || !reports_can_take(vm) || w->n == TREE_VMS_MAX)
			continue;
		w->v[w->n++] = (struct watched){.vm = vm};
		vm->watched_at = w->n;
		vm->refs++;
	}
	while ((due = first_due(w, now, &next)))
		ask(w, due);
	return next;
}

/* Waits for guests, new followers and the time. Without the lock. */
static void
listen_to(struct reports_watch *w, uint64_t until_ns)
{
	struct pollfd *p = calloc(w->n + 1, sizeof(*p));
	unsigned *at = calloc(w->n + 1, sizeof(*at)); /* only this thread moves them */
	uint64_t now = io_now_ns(), count;
	nfds_t n = 0;

	if (!p || !at)
		goto out;
	p[n++] = (struct pollfd){.fd = w->wake_fd, .events = POLLIN};
	pthread_mutex_lock(&w->t->lock);
	for (unsigned i = 0; i < w->n; i++) {
		if (w->v[i].busy || !w->v[i].watch)
			continue;
		at[n] = i;
		p[n++] = (struct pollfd){
			.fd = agent_report_watch_fd(w->v[i].watch), .events = POLLIN};
	}
	pthread_mutex_unlock(&w->t->lock);
	if (poll(p, n, until_ns > now ? (int)((until_ns - now) / NS_PER_MS) + 1 : 0) <= 0)
		goto out;
	if (p[0].revents)
		(void)!read(w->wake_fd, &count, sizeof(count));
	pthread_mutex_lock(&w->t->lock);
	for (nfds_t i = 1; i < n; i++) {
		struct watched *own = p[i].revents ? &w->v[at[i]] : NULL;
		int r = own ? agent_report_watch_read(own->watch, NULL) : 0;

		if (!r)
			continue;
		agent_report_watch_free(own->watch);
		own->watch = NULL;
		if (r < 0 && r != -ETIMEDOUT)
			own->due_ns = io_now_ns() + AGAIN_MS * NS_PER_MS;
	}
	pthread_mutex_unlock(&w->t->lock);
out:
	free(p);
	free(at);
}

static void *
watch_main(void *arg)
{
	struct reports_watch *w = arg;
	struct tree *t = w->t;
	uint64_t until_ns;

	pthread_mutex_lock(&t->lock);
	while (!t->stopping) {
		if (!t->n_followers && io_now_ns() > w->left_ns + LINGER_MS * NS_PER_MS) {
			for (unsigned i = w->n; i-- > 0;)
				if (!w->v[i].busy)
					drop(w, i);
			pthread_cond_wait(&t->changed, &t->lock);
			continue;
		}
		until_ns = look(w);
		pthread_mutex_unlock(&t->lock);
		listen_to(w, until_ns);
		pthread_mutex_lock(&t->lock);
	}
	while (w->busy)
		pthread_cond_wait(&t->changed, &t->lock);
	while (w->n)
		drop(w, w->n - 1);
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

int
reports_follow(struct tree *t, struct err *e)
{
	struct reports_watch *w = t->reports_watch;
	int r;

	if (t->n_followers == TREE_FOLLOWERS_MAX || !may_wait(t))
		return err_set(e, -EAGAIN,
			"%u calls wait for reports and %u for VMs, and more may not: try again when some are done, or ask without wait",
			t->n_followers, t->n_waiters);
	if (!w) {
		w = calloc(1, sizeof(*w));
		if (!w)
			return err_sys(e, -ENOMEM, "reports");
		w->t = t;
		w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		r = w->wake_fd < 0 ? -errno
				   : -pthread_create(&w->thread, NULL, watch_main, w);
		if (r < 0) {
			cleanup_close_fn(&w->wake_fd);
			free(w);
			return err_sys(e, r, "following reports");
		}
		t->reports_watch = w;
	}
	t->n_followers++;
	wake(w);
	pthread_cond_broadcast(&t->changed);
	return 0;
}

void
reports_unfollow(struct tree *t)
{
	if (--t->n_followers == 0)
		t->reports_watch->left_ns = io_now_ns();
}

void
reports_watch_close(struct tree *t)
{
	struct reports_watch *w = t->reports_watch;

	if (!w)
		return;
	wake(w);
	pthread_join(w->thread, NULL);
	cleanup_close_fn(&w->wake_fd);
	free(w);
	t->reports_watch = NULL;
}
