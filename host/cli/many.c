#include "host/cli/many.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/cli/out.h"
#include "host/cli/pick.h"

#define AT_ONCE 16

struct one {
	struct client_vm vm, now;
	struct client_reply reply;
	struct err e;
	int r;
};

struct work {
	struct one *v; /* owned */
	size_t n;
	atomic_size_t next;
	many_call *call;
	void *ctx;
	const struct opt_scan *options; /* borrowed */
};

int
many_word(struct opt_scan *s, int key, struct many *m, struct err *e)
{
	if (key != OPT_WORD)
		return key;
	if (m->n == MANY_VMS_MAX) {
		err_set(e, -E2BIG, "%s: at most %d VMs", s->verb->name, MANY_VMS_MAX);
		return OPT_ERROR;
	}
	m->names[m->n++] = s->arg;
	return OPT_WORD;
}

static void
work_done(struct work *w)
{
	for (size_t i = 0; w->v && i < w->n; i++) {
		client_vm_done(&w->v[i].vm);
		client_vm_done(&w->v[i].now);
		client_reply_done(&w->v[i].reply);
	}
	free(w->v);
}

/* A script's `pando stop $(pando ps -q …)` may come to name no VM at all: then none is
 * stopped, whichever is checked out. */
static int
pick_agreed(const struct many *m, const char *verb, struct client *c,
	struct client_vm *ret, struct err *e)
{
	cleanup_client_vm struct client_vm vm = {0};
	const char *why, *name;
	int r = pick_unnamed(c, &vm, NULL, &why, e);

	if (r < 0)
		return r;
	name = client_vm_name(&vm);
	if (!out_can_ask())
		return err_set(e, -EINVAL,
			"which VM? the command names none, and nothing was %s; \"%s\" is %s: `pando %s %s`",
			m->past, name, why, verb, name);
	if (!out_confirm("%c%s \"%s\" (%s)?", toupper((unsigned char)verb[0]), verb + 1,
		    name, why))
		return err_set(e, -ECANCELED, "nothing was %s", m->past);
	*ret = vm;
	vm = (struct client_vm){0};
	return 0;
}

/* The VMs that are meant, each once: a typing error in the third must not cost the first
 * two. */
static int
find(struct work *w, const struct many *m, const char *verb, struct client *c,
	struct err *e)
{
	size_t n = m->n ? m->n : 1;

	w->v = calloc(n, sizeof(*w->v));
	if (!w->v)
		return err_sys(e, -ENOMEM, "list of VMs");
	for (size_t i = 0; i < n; i++) {
		struct client_vm *vm = &w->v[w->n].vm;
		int r = !m->n && m->past
				? pick_agreed(m, verb, c, vm, e)
				: pick_vm(c, m->n ? m->names[i] : NULL, vm, NULL, e);
		bool again = false;

		if (r < 0)
			return r;
		for (size_t k = 0; k < w->n; k++)
			again |= strcmp(w->v[k].vm.id, vm->id) == 0;
		if (again)
			client_vm_done(vm);
		else
			w->n++;
	}
	return 0;
}

static void
ask(struct work *w, struct client *c)
{
	for (;;) {
		size_t i = atomic_fetch_add(&w->next, 1);
		struct one *o = &w->v[i];

		if (i >= w->n)
			return;
		o->r = w->call(c, &o->vm, w->ctx, &o->now, &o->reply, &o->e);
	}
}

static void *
ask_main(void *arg)
{
	cleanup_client struct client *c = NULL;
	struct work *w = arg;

	/* Without a connection of its own it leaves the work to the others. */
	if (client_open(NULL, 0, &c, NULL) == 0) {
		client_cancel_fd(c, pick_cancel_fd());
		client_busy_timeout(c, w->options->has_busy, w->options->busy_timeout_ms);
		ask(w, c);
	}
	return NULL;
}

static void
ask_all(struct work *w, struct client *c)
{
	pthread_t threads[AT_ONCE];
	size_t n = 0;

	while (n + 1 < AT_ONCE && n + 1 < w->n &&
		!pthread_create(&threads[n], NULL, ask_main, w))
		n++;
	ask(w, c);
	while (n)
		pthread_join(threads[--n], NULL);
}

static int
print(const struct work *w, bool json)
{
	cleanup_json_out struct json_out o = {0};

	if (!json || w->n == 1) {
		for (size_t i = 0; i < w->n; i++)
			if (w->v[i].r >= 0)
				puts(json ? w->v[i].reply.text : w->v[i].now.id);
		return EXIT_OK;
	}
	json_out_object(&o, NULL);
	json_out_array(&o, "vms");
	for (size_t i = 0; i < w->n; i++)
		if (w->v[i].r >= 0)
			json_out_raw(&o, NULL, w->v[i].reply.text, w->v[i].reply.len);
	json_out_end_array(&o);
	json_out_end_object(&o);
	return out_json(&o);
}

int
many_run(const struct many *m, const struct opt_scan *s, bool progress, many_call *call,
	void *ctx)
{
	__attribute__((cleanup(work_done))) struct work w = {
		.call = call, .ctx = ctx, .options = s};
	cleanup_client struct client *c = NULL;
	struct out_progress shown;
	struct err e = {0};
	int status = EXIT_OK;

	if (pick_pandod(&c, &e) < 0 || find(&w, m, s->verb->name, c, &e) < 0)
		return out_fail(&e);
	client_cancel_fd(c, pick_cancel_fd());
	client_busy_timeout(c, s->has_busy, s->busy_timeout_ms);
	progress = progress && w.n == 1;
	if (progress) {
		out_progress_start(&shown, s->quiet);
		client_on_progress(c, out_progress_say, &shown);
	}
	ask_all(&w, c);
	if (progress)
		out_progress_end(&shown);
	for (size_t i = 0; i < w.n; i++) {
		if (w.v[i].r < 0) {
			int failed = out_fail(&w.v[i].e);

			status = status == EXIT_OK ? failed : status;
		}
	}
	return print(&w, s->json) == EXIT_OK || status != EXIT_OK ? status : EXIT_FAILED;
}
