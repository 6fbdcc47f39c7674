/* Many VMs that come to be at once: waiting for their agents, and undoing them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "common/log.h"
#include "host/vm/tree_priv.h"

/* Threads that wait for agents. */
#define WAITERS_MAX 32

/* Waiting in parallel; the first failure ends the others' wait. */
struct waiters {
	struct tree *t;
	struct vm **vms;
	unsigned n;
	const char *what;
	const struct progress *p;
	unsigned next; /* under the tree's lock, as the rest */
	unsigned answered;
	bool give_up;
	int result;
	struct err why;
};

static void *
waiter_main(void *arg)
{
	struct waiters *w = arg;
	struct tree *t = w->t;

	for (;;) {
		struct err e = {0};
		struct vm *vm;
		unsigned answered;
		int r;

		pthread_mutex_lock(&t->lock);
		vm = w->give_up || w->next == w->n ? NULL : w->vms[w->next++];
		pthread_mutex_unlock(&t->lock);
		if (!vm)
			return NULL;
		r = vm_wait_agent(t, vm, &w->give_up, w->p, &e);
		pthread_mutex_lock(&t->lock);
		if (r < 0 && !w->give_up) {
			w->give_up = true;
			w->result = r;
			w->why = e;
		}
		answered = r == 0 ? ++w->answered : 0;
		pthread_mutex_unlock(&t->lock);
		if (answered && w->n > 1)
			say(w->p, "%u of %u %s answer", answered, w->n, w->what);
	}
}

int
vms_wait_agents(struct tree *t, struct vm **vms, unsigned n, const char *what,
	const struct progress *p, struct err *e)
{
	struct waiters w = {.t = t, .vms = vms, .n = n, .what = what, .p = p};
	pthread_t threads[WAITERS_MAX];
	unsigned made = 0, want = n < WAITERS_MAX ? n : WAITERS_MAX;

	/* This thread is one of them, so that no failure to make a thread matters. */
	while (made + 1 < want &&
		pthread_create(&threads[made], NULL, waiter_main, &w) == 0)
		made++;
	waiter_main(&w);
	for (unsigned i = 0; i < made; i++)
		pthread_join(threads[i], NULL);
	if (w.result < 0)
		return err_set(e, w.result, "%s", w.why.msg);
	return 0;
}

void
vms_undo(struct tree *t, struct vm **vms, unsigned n)
{
	struct vm **made = calloc(n + 1, sizeof(*made)),
		  **half = calloc(n + 1, sizeof(*half));
	unsigned n_made = 0, n_half = 0;

	/* All at once: each sweep waits for the disk with the tree's lock held. */
	for (unsigned i = 0; i < n && made && half; i++)
		if (vms[i]->row.made)
			made[n_made++] = vms[i];
		else
			half[n_half++] = vms[i];
	vm_undo(t, half, n_half);
	tree_remove_each(t, made, n_made);
	if (n && !(made && half))
		log_err("out of memory: VMs that nobody waits for stay");
	free(made);
	free(half);
}

void
vms_release(struct vm **vms, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		vms[i]->op = NULL;
		vms[i]->probe_at_ns = io_now_ns();
		vm_unref(vms[i]);
	}
}
