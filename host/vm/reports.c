/*
 * Reports of the VMs: taken from their guests when somebody asks and before a VM is
 * deleted, kept in the database from then on, also when the VM is gone. A guest keeps
 * what was not taken; it is told to forget a report only when that is in the database.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"
#include "host/agent/agent_report.h"
#include "host/vm/tree_priv.h"

#define TAKERS_MAX 16
#define NS_PER_MS UINT64_C(1000000)
/* When somebody asks, for each VM; and for all of those that are about to go, which must
 * not live on for long because one of them does not answer. */
#define TAKE_TIMEOUT_MS 15000
#define LAST_TIMEOUT_MS 5000
/* Each is given so long first. Those that do not answer within it share what time is left when
 * all others have had their turn: a few deaf guests must not cost the others their reports. */
#define FIRST_TIMEOUT_MS 700
/* An answer is at most about that long; the rest is asked for with `after`. */
#define ANSWER_BYTES (4u << 20)
/* What a VM's reports may take in the database, and all of them: the oldest of whoever has too
 * much go, and nobody else's. */
#define VM_BYTES (16u << 20)
#define ALL_BYTES (512u << 20)

struct takers {
	struct tree *t;
	struct vm **vms;
	/* Under the tree's lock. Those before n_slow did not answer the first time. */
	unsigned n, next, n_slow, next_slow;
	uint64_t deadline_ns; /* of all; 0: not known before the slow ones are asked */
	bool last;	      /* what is not taken now is lost */
};

/* With the lock. */
static void
keep(struct tree *t, const struct vm *vm, const struct agent_report *v, size_t n,
	size_t *ret_kept)
{
	static struct log_limit limit = {.burst = 5};
	uint64_t dropped = 0;
	struct err e = {0};
	int r = db_begin(t->db, &e);

	*ret_kept = 0;
	for (size_t i = 0; !r && i < n; i++) {
		struct db_report row = {.time_ms = v[i].time_ms, .json = v[i].json};

		/* Made by the one it was forked from, before that: it is the parent's,
		 * who has it, too. */
		if (v[i].vm[0] && strcmp(v[i].vm, vm->row.id) != 0)
			continue;
		memcpy(row.id, v[i].id, sizeof(row.id));
		memcpy(row.vm, vm->row.id, sizeof(row.vm));
		memcpy(row.alias, vm->row.alias, sizeof(row.alias));
		if (v[i].generation[0])
			memcpy(row.generation, v[i].generation, sizeof(row.generation));
		else
			text_hex(row.generation, vm->row.generation,
				sizeof(vm->row.generation));
		r = db_report_put(t->db, &row, &e);
	}
	if (!r)
		r = db_reports_trim(t->db, vm->row.id, VM_BYTES, ALL_BYTES, &dropped, &e);
	if (!r)
		r = db_commit(t->db, &e);
	if (r) {
		db_rollback(t->db);
		log_err("reports of vm %s: %s", vm->row.id, e.msg);
		return;
	}
	*ret_kept = n;
	if (dropped && log_allowed(&limit))
		log_warn(
			"vm %s (%s): its reports take more than %u MiB; its %llu oldest were dropped",
			vm->row.id, vm_name(vm), VM_BYTES >> 20,
			(unsigned long long)dropped);
	t->reports_kept++;
	pthread_cond_broadcast(&t->changed);
}

static int
ms_until(uint64_t deadline_ns)
{
	uint64_t now = io_now_ns();

	return now < deadline_ns ? (int)((deadline_ns - now) / NS_PER_MS) + 1 : 1;
}

int
reports_take(struct tree *t, struct vm *vm, uint64_t deadline_ns, struct err *e)
{
	static struct log_limit limit = {.burst = 5};
	struct agent_report *v = NULL;
	size_t n = 0, wrong = 0, kept = 0;
	char path[PATHS_MAX];
	struct err why = {0};
	int r = vm_socket_path(t, vm, path);

	if (r)
		return err_set(e, r, "the path of its socket is too long");
	r = agent_reports_list(path, NULL, ms_until(deadline_ns), &v, &n, &wrong, e);
	if (wrong && log_allowed(&limit))
		log_warn("vm %s: %zu reports are none", vm->row.id, wrong);
	if (n) {
		pthread_mutex_lock(&t->lock);
		keep(t, vm, v, n, &kept);
		pthread_mutex_unlock(&t->lock);
		/* Not acknowledged, they come again, and are known then. */
		if (kept && agent_reports_ack(
				    path, NULL, ms_until(deadline_ns), v, kept, &why) < 0)
			log_debug("reports of vm %s: %s", vm->row.id, why.msg);
	}
	agent_reports_free(v, n);
	return r;
}

/* The next to be asked, or NULL; *ret_end_ns: until when. Called with the lock. */
static struct vm *
next_of(struct takers *w, uint64_t *ret_end_ns, bool *ret_again)
{
	uint64_t now = io_now_ns();

	*ret_again = w->next == w->n;
	if (w->t->stopping || (*ret_again && w->next_slow == w->n_slow))
		return NULL;
	if (*ret_again) {
		if (!w->deadline_ns)
			w->deadline_ns = now + TAKE_TIMEOUT_MS * NS_PER_MS;
		*ret_end_ns = w->deadline_ns;
		return w->vms[w->next_slow++];
	}
	*ret_end_ns = now + FIRST_TIMEOUT_MS * NS_PER_MS;
	if (w->deadline_ns && w->deadline_ns < *ret_end_ns)
		*ret_end_ns = w->deadline_ns;
	return w->vms[w->next++];
}

static void *
taker_main(void *arg)
{
	static struct log_limit limit = {.burst = 5};
	struct takers *w = arg;

	for (;;) {
		struct err e = {0};
		uint64_t end_ns;
		struct vm *vm;
		bool again;
		int r;

		pthread_mutex_lock(&w->t->lock);
		vm = next_of(w, &end_ns, &again);
		pthread_mutex_unlock(&w->t->lock);
		if (!vm)
			return NULL;
		r = reports_take(w->t, vm, end_ns, &e);
		if (r == -ETIMEDOUT && !again) {
			/* There is room: it was taken from behind these. */
			pthread_mutex_lock(&w->t->lock);
			w->vms[w->n_slow++] = vm;
			pthread_mutex_unlock(&w->t->lock);
		} else if (r < 0 && w->last && log_allowed(&limit)) {
			log_warn("vm %s: what it reported last is not known: %s",
				vm->row.id, e.msg);
		} else if (r < 0) {
			/* It is just ending, or has an older agent: its reports wait. */
			log_debug("reports of vm %s: %s", vm->row.id, e.msg);
		}
	}
}

bool
reports_can_take(const struct vm *vm)
{
	return vm->row.state == VM_RUNNING && vm->row.answered && vm->ctl && !vm->dead;
}

/* Called with the lock, which is given up meanwhile. */
static void
take_from(struct takers *w)
{
	struct tree *t = w->t;
	pthread_t threads[TAKERS_MAX];
	unsigned made = 0, want = w->n < TAKERS_MAX ? w->n : TAKERS_MAX;

	pthread_mutex_unlock(&t->lock);
	while (made + 1 < want && !pthread_create(&threads[made], NULL, taker_main, w))
		made++;
	if (w->n)
		taker_main(w);
	for (unsigned i = 0; i < made; i++)
		pthread_join(threads[i], NULL);
	pthread_mutex_lock(&t->lock);
}

/* From `one`, or from all that run. Called with the lock, which is given up meanwhile. */
static void
take_all(struct tree *t, struct vm *one)
{
	struct takers w = {.t = t};
	struct vm **vms;

	w.vms = calloc(t->n_vms + 1, sizeof(*w.vms));
	vms = calloc(t->n_vms + 1, sizeof(*vms));
	for (unsigned i = 0; w.vms && vms && i < t->n_vms; i++)
		if (reports_can_take(t->vms[i]) && (!one || t->vms[i] == one)) {
			w.vms[w.n] = vms[w.n] = t->vms[i];
			w.n++;
			t->vms[i]->refs++;
		}
	take_from(&w); /* which orders w.vms anew */
	for (unsigned i = 0; i < w.n; i++)
		vm_unref(vms[i]);
	free(vms);
	free(w.vms);
}

void
tree_take_last_reports(struct tree *t, struct vm *const *vms, unsigned n)
{
	struct takers w = {.t = t,
		.deadline_ns = io_now_ns() + LAST_TIMEOUT_MS * NS_PER_MS,
		.last = true};

	w.vms = calloc(n + 1, sizeof(*w.vms));
	for (unsigned i = 0; w.vms && i < n; i++)
		if (reports_can_take(vms[i]))
			w.vms[w.n++] = vms[i];
	take_from(&w);
	free(w.vms);
}

struct answer {
	struct json_out *out;
	const char *vm; /* NULL: all */
	uint64_t next;
	bool more;
};

static int
add_row(void *ctx, const struct db_report *row, struct err *e)
{
	struct answer *a = ctx;
	struct json_out *o = a->out;

	(void)e;
	if (o->len > ANSWER_BYTES) {
		a->more = true;
		return 1;
	}
	a->next = row->seq;
	json_out_object(o, NULL);
	json_out_u64(o, "seq", row->seq);
	json_out_str(o, "id", row->id);
	json_out_str(o, "vm", row->vm);
	json_out_str(o, "alias", row->alias[0] ? row->alias : NULL);
	json_out_str(o, "generation", row->generation);
	json_out_u64(o, "time_ms", row->time_ms);
	json_out_raw(o, "report", row->json, strlen(row->json));
	json_out_end_object(o);
	return 0;
}

static int
add_dropped(void *ctx, const char *vm, const char *alias, uint64_t n)
{
	struct json_out *o = ctx;

	json_out_object(o, NULL);
	json_out_str(o, "vm", vm);
	json_out_str(o, "alias", alias[0] ? alias : NULL);
	json_out_u64(o, "reports", n);
	json_out_u64(o, "limit_bytes", VM_BYTES);
	json_out_end_object(o);
	return 0;
}

static int
is_one(void *ctx, const struct db_report *row, struct err *e)
{
	(void)row;
	(void)e;
	*(bool *)ctx = true;
	return 1;
}

/* Until there is one. With the lock, which is given up meanwhile. */
static int
wait_for_one(struct tree *t, const char *id, uint64_t after, const struct progress *p,
	struct err *e)
{
	uint64_t end_ns = io_now_ns() + TREE_REPORTS_WAIT_MS * NS_PER_MS, now, seen;
	struct err full = {0};
	bool any = false;
	int r = reports_follow(t, &full);

	/* One that is there needs no wait. */
	if (r == -EAGAIN && db_reports(t->db, id, after, is_one, &any, NULL) == 0 && any)
		return 0;
	if (r < 0)
		return err_set(e, r, "%s", full.msg);
	for (;;) {
		seen = t->reports_kept;
		r = db_reports(t->db, id, after, is_one, &any, e);
		if (r < 0 || any)
			break;
		while (r == 0 && !t->stopping && seen == t->reports_kept &&
			(now = io_now_ns()) < end_ns) {
			uint64_t look_ns = now + GONE_LOOK_MS * NS_PER_MS;
			uint64_t ns = p && look_ns < end_ns ? look_ns : end_ns;
			struct timespec until = {.tv_sec = (time_t)(ns / 1000000000u),
				.tv_nsec = (long)(ns % 1000000000u)};

			/* Its place is wanted by others. */
			if (has_gone(p))
				r = err_set(e, -ECANCELED,
					"cancelled: who waited for reports has gone");
			else
				pthread_cond_timedwait(&t->changed, &t->lock, &until);
		}
		if (r < 0 || seen == t->reports_kept)
			break;
	}
	reports_unfollow(t);
	return r;
}

int
tree_reports(struct tree *t, const char *name, uint64_t after, bool wait,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct answer a = {.out = out, .next = after};
	char id[VM_ID_LEN + 1] = "";
	struct vm *vm = NULL;
	int r = 0;

	pthread_mutex_lock(&t->lock);
	if (name) {
		r = tree_find(t, name, &vm, e);
		/* One that is gone: its reports are there by its id. */
		if (r == -ENOENT && vm_spec_is_id(name)) {
			r = 0;
			memcpy(id, name, sizeof(id));
		} else if (!r) {
			memcpy(id, vm->row.id, sizeof(id));
		}
	}
	if (!r && wait)
		r = wait_for_one(t, name ? id : NULL, after, p, e);
	else if (!r && (!name || vm))
		take_all(t, vm);
	if (!r) {
		json_out_object(out, NULL);
		json_out_array(out, "reports");
		r = db_reports(t->db, name ? id : NULL, after, add_row, &a, e);
		json_out_end_array(out);
		json_out_u64(out, "next", a.next);
		json_out_bool(out, "more", a.more);
		json_out_array(out, "dropped");
		if (!r)
			r = db_reports_dropped(
				t->db, name ? id : NULL, add_dropped, out, e);
		json_out_end_array(out);
		json_out_end_object(out);
	}
	if (vm)
		vm_unref(vm);
	pthread_mutex_unlock(&t->lock);
	return r;
}
