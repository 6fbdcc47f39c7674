/* Steps that end with a killed pandod, and steps at once. */
#include "tests/system/model/model.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIVING_MAX 5u

/*
 * pandod is killed: at a fault point, after a while, or when the answer is there. Each
 * step ends with a new pandod.
 */

struct crash {
	const char *fault; /* NULL: after a while */
	bool killer;
};

static void
crash_begin(struct crash *c, const char *fault)
{
	c->fault = fault;
	if (fault) {
		pandod_kill();
		pandod_open(fault);
		return;
	}
	c->killer = true;
	killer_start(m.pandod, pick(4) ? pick(8000) : pick(60000));
}

/* r: of the call. Other errors than that pandod is gone are differences. */
static void
crash_end(struct crash *c, int r, const struct err *e)
{
	if (c->killer)
		killer_join();
	if (r < 0 && r != -EPIPE && r != -ECONNREFUSED)
		differ("%s", e->msg);
	pandod_kill();
	pandod_open(NULL);
}

/* What may have been made by a call that was cut short. */
struct bounds {
	const char *fault;
	int of_all; /* -1: anything; 0: nothing; 1: one; 2: all */
};

static bool
out_of_bounds(const struct bounds *b, size_t made, size_t all)
{
	return (b->of_all == 0 && made != 0) || (b->of_all == 1 && made != 1) ||
	       (b->of_all == 2 && made != all);
}

static void
list_new(struct client_vms *ret)
{
	struct client_vms vms = {0};
	struct err e;

	if (client_list(m.client, NULL, &vms, NULL, &e) < 0)
		differ("%s", e.msg);
	*ret = (struct client_vms){.v = calloc(vms.n + 1, sizeof(*vms.v))};
	for (size_t i = 0; i < vms.n; i++)
		if (vm_by_id(vms.v[i].id))
			client_vm_done(&vms.v[i]);
		else
			ret->v[ret->n++] = vms.v[i];
	free(vms.v);
}

static void
crash_branch(void)
{
	static const struct bounds points[] = {{NULL, -1}, {NULL, -1},
		{"branch.entered", 0}, {"branch.segment", 0}, {"branch.forked", 0},
		{"branch.started", 0}, {"branch.cut", 0}, {"branch.made", 2},
		{"branch.park-files", 0}, {"branch.parked", 0}, {"branch.first-made", 1}};
	const struct bounds *b = &points[pick(11)];
	unsigned count = b - points >= 8 ? 2 : 1 + pick(2);
	struct client_vms told = {0}, made = {0};
	struct crash crash = {0};
	int at = vm_any(vm_lives), r;
	char alias[64];
	struct vm *v;
	struct err e;

	if (at < 0 || vm_count(vm_lives) + count > LIVING_MAX ||
		m.vms[at].past.n + 8 > PAST_MAX)
		return;
	v = &m.vms[at];
	guest_sync(v);
	new_name(alias, "c");
	step("branch %s --count %u -n %s, pandod dies at %s", v->alias, count, alias,
		b->fault ? b->fault : "some time");
	crash_begin(&crash, b->fault);
	r = call_branch(v, count, alias, &told, &e);
	client_vms_done(&told);
	crash_end(&crash, r, &e);
	list_new(&made);
	if (made.n > count || (r == 0 && made.n != count) ||
		(r < 0 && out_of_bounds(b, made.n, count)))
		differ("of %u branches %zu were made", count, made.n);
	model_branched(v, &made);
	vm_regenerated(v, true);
	client_vms_done(&made);
}

static void
crash_commit(void)
{
	static const struct bounds points[] = {{NULL, -1}, {NULL, -1},
		{"commit.entered", 0}, {"branch.park-files", 0}, {"commit.parked", 0},
		{"commit.state", 0}, {"commit.memory", 0}, {"commit.disk", 0},
		{"commit.written", 1}, {"commit.noted", 1}, {"store.pack-part", 0}, {"store.pack-synced", 0},
		{"store.pack-renamed", 0}, {"store.pack-written", 0},
		{"store.manifest-temp", 0}, {"store.manifest-renamed", 1},
		{"store.manifest-written", 1}, {"store.tag-temp", 1},
		{"store.tag-renamed", 1}, {"store.tag-written", 1}};
	const struct bounds *b = &points[pick(sizeof(points) / sizeof(points[0]))];
	struct client_committed committed = {0};
	struct client_points list = {0};
	struct client_vm now = {0};
	struct crash crash = {0};
	unsigned kept = 0, made = 0;
	int at = vm_any(vm_lives), r;
	char tag[64], old[ID_MAX];
	struct vm *v;
	struct err e;

	for (unsigned i = 0; i < COMMITS_MAX; i++)
		kept += m.commits[i].there;
	if (at < 0 || kept > 12 || m.vms[at].past.n + 8 > PAST_MAX)
		return;
	v = &m.vms[at];
	guest_sync(v);
	new_name(tag, "t");
	step("commit %s --tag %s, pandod dies at %s", v->alias, tag,
		b->fault ? b->fault : "some time");
	crash_begin(&crash, b->fault);
	r = call_commit(m.client, v, tag, &committed, &e);
	if (r == 0)
		client_point_done(&committed.commit);
	crash_end(&crash, r, &e);
	if (client_points(m.client, &list, NULL, &e) < 0 ||
		client_get(m.client, v->id, &now, NULL, &e) < 0)
		differ("%s", e.msg);
	memcpy(old, v->commit, sizeof(old));
	for (size_t i = 0; i < list.n; i++) {
		const struct client_point *p = &list.v[i];

		if (commit_by_id(p->id))
			continue;
		if (made++)
			differ("two commits were made");
		model_committed(v, p->id, p->tags[0] ? tag : NULL);
		/* It is there, and the VM may not know it. */
		if (strcmp(now.commit, old) == 0 && r < 0)
			memcpy(v->commit, old, sizeof(v->commit));
	}
	if ((r == 0 && made != 1) || (r < 0 && out_of_bounds(b, made, 1)))
		differ("%u commits were made", made);
	vm_regenerated(v, true);
	client_vm_done(&now);
	client_points_done(&list);
}

static void
crash_spawn(void)
{
	static const struct bounds points[] = {{NULL, -1}, {"spawn.entered", 0},
		{"spawn.sent", 0}, {"spawn.started", 0}, {"spawn.made", 2},
		{"flat.disk", 0}, {"flat.memory", 0}};
	const struct bounds *b = &points[pick(sizeof(points) / sizeof(points[0]))];
	struct client_vms told = {0}, made = {0};
	struct crash crash = {0};
	unsigned count = 1 + pick(2);
	int at = commit_any(), r;
	struct commit *c;
	char alias[64];
	struct err e;

	if (at < 0 || vm_count(vm_lives) + count > LIVING_MAX)
		return;
	c = &m.commits[at];
	if (c->past.n + 8 > PAST_MAX)
		return;
	new_name(alias, "c");
	step("run-commit %.12s --count %u -N %s, pandod dies at %s", c->id, count, alias,
		b->fault ? b->fault : "some time");
	crash_begin(&crash, b->fault);
	r = call_spawn(c->id, count, alias, &told, &e);
	client_vms_done(&told);
	crash_end(&crash, r, &e);
	list_new(&made);
	if ((made.n != 0 && made.n != count) || (r == 0 && made.n != count) ||
		(r < 0 && out_of_bounds(b, made.n, count)))
		differ("of %u VMs %zu were made", count, made.n);
	model_spawned(c, &made);
	client_vms_done(&made);
}

static void
crash_reset(void)
{
	static const struct bounds points[] = {{NULL, -1}, {NULL, -1}, {"reset.segment", 0},
		{"reset.entered", 0}, {"reset.done", 1}, {"reset.noted", 1}};
	const struct bounds *b = &points[pick(sizeof(points) / sizeof(points[0]))];
	int at = vm_any(vm_lives), to = commit_any(), r;
	struct client_vm now = {0};
	struct crash crash = {0};
	struct commit *c;
	bool happened;
	struct vm *v;
	struct err e;

	if (at < 0 || to < 0 || m.commits[to].past.n + 8 > PAST_MAX)
		return;
	v = &m.vms[at];
	c = &m.commits[to];
	guest_sync(v);
	step("reset %s %.12s, pandod dies at %s", v->alias, c->id,
		b->fault ? b->fault : "some time");
	crash_begin(&crash, b->fault);
	r = call_reset(v, c->id, &e);
	crash_end(&crash, r, &e);
	if (client_get(m.client, v->id, &now, NULL, &e) < 0)
		differ("%s", e.msg);
	happened = generation_of(&now) != v->generation;
	client_vm_done(&now);
	if ((r == 0 && !happened) || (r < 0 && out_of_bounds(b, happened, 1)))
		differ("%s was %sreset", v->alias, happened ? "" : "not ");
	if (happened)
		model_reset(v, c);
}

static void
crash_run(void)
{
	static const struct bounds points[] = {{NULL, -1}, {"create.entered", 0},
		{"create.spawned", 0}, {"create.booted", 0}, {"create.started", 0},
		{"create.made", 1}};
	const struct bounds *b = &points[pick(sizeof(points) / sizeof(points[0]))];
	struct client_vm told = {0};
	struct client_vms made = {0};
	struct crash crash = {0};
	char alias[64];
	struct err e;
	int r;

	if (vm_count(vm_lives) >= LIVING_MAX)
		return;
	new_name(alias, "c");
	step("run %s, pandod dies at %s", alias, b->fault ? b->fault : "some time");
	crash_begin(&crash, b->fault);
	r = call_run(alias, &told, &e);
	client_vm_done(&told);
	crash_end(&crash, r, &e);
	list_new(&made);
	if (made.n > 1 || (r == 0 && made.n != 1) ||
		(r < 0 && out_of_bounds(b, made.n, 1)))
		differ("%zu VMs were made", made.n);
	if (made.n)
		model_ran(&made.v[0]);
	client_vms_done(&made);
}

/* All of them, or none. */
static void
crash_delete(void)
{
	struct crash crash = {0};
	struct client_vm told = {0};
	int at = vm_any(vm_is), r;
	struct vm *v;
	struct err e;

	if (at < 0)
		return;
	v = &m.vms[at];
	step("delete -r %s, pandod dies", v->alias);
	crash_begin(&crash, NULL);
	r = client_delete(m.client, v->id, true, NULL, &e);
	crash_end(&crash, r, &e);
	if (client_get(m.client, v->id, &told, NULL, &e) == -ENOENT)
		model_deleted(v, true);
	else if (r == 0)
		differ("%s was deleted and is there", v->alias);
	client_vm_done(&told);
}

/* Descendants first: whatever is left is whole. */
static void
crash_commit_delete(void)
{
	static const char *const points[] = {
		NULL, "store.delete-tags", "store.delete-commit"};
	const char *fault = points[pick(3)];
	struct client_points list = {0};
	struct crash crash = {0};
	int at = commit_any(), r;
	struct commit *c;
	struct err e;

	if (at < 0 || commit_in_use(&m.commits[at], true))
		return;
	c = &m.commits[at];
	step("commit delete -r %.12s, pandod dies at %s", c->id,
		fault ? fault : "some time");
	crash_begin(&crash, fault);
	r = client_commit_delete(m.client, c->id, true, false, NULL, &e);
	crash_end(&crash, r, &e);
	if (client_points(m.client, &list, NULL, &e) < 0)
		differ("%s", e.msg);
	if (r == 0)
		model_commit_deleted(c, true);
	for (unsigned i = 0; i < COMMITS_MAX; i++) {
		bool there = false;

		for (size_t j = 0; j < list.n && !there; j++)
			there = strcmp(list.v[j].id, m.commits[i].id) == 0;
		if (m.commits[i].there && !there)
			commit_forget(&m.commits[i]);
	}
	/* Its tags go before it. */
	for (unsigned i = 0; i < TAGS_MAX; i++) {
		bool there = false;

		for (size_t j = 0; j < list.n; j++)
			for (char **t = list.v[j].tags; *t; t++)
				there |= strcmp(*t, m.tags[i].name) == 0;
		if (m.tags[i].there && !there)
			m.tags[i].there = false;
	}
	client_points_done(&list);
}

static void
crash_gc(void)
{
	static const char *const points[] = {
		NULL, "store.merge-added", "store.pack-removed"};
	const char *fault = points[pick(3)];
	struct crash crash = {0};
	struct err e;
	int r;

	step("gc, pandod dies at %s", fault ? fault : "some time");
	crash_begin(&crash, fault);
	r = call_gc(m.client, &e);
	crash_end(&crash, r, &e);
}

/* VMMs may end while nobody looks. */
static void
crash_alone(void)
{
	int at = pick(2) ? vm_any(vm_lives) : -1;

	if (at >= 0 && vm_count(vm_is_dead) >= 8)
		at = -1;
	step("kill -9 of pandod%s%s", at >= 0 ? " and of the VMM of " : "",
		at >= 0 ? m.vms[at].alias : "");
	pandod_kill();
	if (at >= 0)
		vmm_kill(&m.vms[at]);
	pandod_open(NULL);
	if (at >= 0)
		wait_state(&m.vms[at], "failed");
}

void
step_crash(void)
{
	static void (*const all[])(void) = {crash_branch, crash_branch, crash_branch,
		crash_commit, crash_commit, crash_commit, crash_spawn, crash_spawn,
		crash_reset, crash_reset,
		crash_run, crash_delete, crash_delete, crash_commit_delete, crash_gc,
		crash_alone, crash_alone};

	all[pick(sizeof(all) / sizeof(all[0]))]();
}

/*
 * Two at once.
 */

struct other {
	pthread_t thread;
	struct client *client; /* owned */
	struct vm *vm;
	int (*call)(struct other *o);
	struct client_committed made;
	int r;
	struct err e;
};

static void *
other_main(void *arg)
{
	struct other *o = arg;

	o->r = o->call(o);
	return NULL;
}

static void
other_start(struct other *o, struct vm *v, int (*call)(struct other *))
{
	*o = (struct other){.vm = v, .call = call};
	if (client_open(m.home, 0, &o->client, &o->e) < 0)
		differ("%s", o->e.msg);
	if (pthread_create(&o->thread, NULL, other_main, o) != 0)
		differ("no thread");
}

static void
other_join(struct other *o)
{
	pthread_join(o->thread, NULL);
	client_close(o->client);
}

static int
other_delete(struct other *o)
{
	return client_delete(o->client, o->vm->id, true, NULL, &o->e);
}

static int
other_commit(struct other *o)
{
	return call_commit(o->client, o->vm, NULL, &o->made, &o->e);
}

static int
other_gc(struct other *o)
{
	return call_gc(o->client, &o->e);
}

/* The VMM is killed somewhere in it. */
static void
race_branch_kill(struct vm *v)
{
	struct client_vms told = {0};
	unsigned count = 1 + pick(2);
	char alias[64];
	struct err e;
	int r;

	if (vm_count(vm_lives) + count > LIVING_MAX || vm_count(vm_is_dead) >= 8)
		return;
	new_name(alias, "k");
	step("branch %s --count %u -n %s, and its VMM is killed", v->alias, count, alias);
	killer_start(v->pid, pick(4000));
	r = call_branch(v, count, alias, &told, &e);
	killer_join();
	v->life = LIFE_FAILED;
	v->pid = 0;
	wait_state(v, "failed");
	if (r == 0)
		model_branched(v, &told);
	client_vms_done(&told);
}

static void
race_commit_kill(struct vm *v)
{
	struct client_committed made = {0};
	struct err e;
	int r;

	if (vm_count(vm_is_dead) >= 8)
		return;
	step("commit %s, and its VMM is killed", v->alias);
	killer_start(v->pid, pick(8000));
	r = call_commit(m.client, v, NULL, &made, &e);
	killer_join();
	v->life = LIFE_FAILED;
	v->pid = 0;
	wait_state(v, "failed");
	if (r == 0) {
		model_committed(v, made.commit.id, NULL);
		client_point_done(&made.commit);
	}
}

static void
race_branch_delete(struct vm *v)
{
	struct client_vms told = {0};
	struct other o;
	char alias[64];
	struct err e;
	int r;

	if (vm_count(vm_lives) + 1 > LIVING_MAX)
		return;
	new_name(alias, "d");
	step("branch %s -n %s, and delete -r of it", v->alias, alias);
	other_start(&o, v, other_delete);
	r = call_branch(v, 1, alias, &told, &e);
	other_join(&o);
	if ((r < 0 && r != -EBUSY && r != -ENOENT) || (o.r < 0 && o.r != -EBUSY) ||
		(r < 0 && o.r < 0))
		differ("branch: %d (%s), delete: %d (%s)", r, r < 0 ? e.msg : "", o.r,
			o.r < 0 ? o.e.msg : "");
	if (r == 0) {
		model_branched(v, &told);
		if (o.r < 0)
			vm_regenerated(v, false);
	}
	if (o.r == 0)
		model_deleted(v, true);
	client_vms_done(&told);
}

/* They may come one after the other in either order, or one is refused. */
static void
race_commits(struct vm *v)
{
	struct client_committed made = {0};
	struct client_vm now = {0};
	char old[ID_MAX];
	struct other o;
	struct err e;
	int r;

	step("two commits of %s at once", v->alias);
	memcpy(old, v->commit, sizeof(old));
	other_start(&o, v, other_commit);
	r = call_commit(m.client, v, NULL, &made, &e);
	other_join(&o);
	if ((r < 0 && r != -EBUSY) || (o.r < 0 && o.r != -EBUSY) || (r < 0 && o.r < 0))
		differ("one: %d (%s), the other: %d (%s)", r, r < 0 ? e.msg : "", o.r,
			o.r < 0 ? o.e.msg : "");
	for (unsigned i = 0; i < 2; i++) {
		const struct client_point *p = i ? &o.made.commit : &made.commit;
		const char *other = i ? made.commit.id : o.made.commit.id;

		if ((i ? o.r : r) < 0)
			continue;
		model_committed(v, p->id, NULL);
		memcpy(commit_by_id(p->id)->parent, old, sizeof(old));
		if (strcmp(p->parent, old) != 0 &&
			(!other[0] || strcmp(p->parent, other) != 0))
			differ("%.12s has the parent \"%.12s\"", p->id, p->parent);
		memcpy(commit_by_id(p->id)->parent, p->parent, sizeof(old));
		/* The second frozen fork may be of the one or the other generation. */
		commit_by_id(p->id)->past.unknown++;
	}
	if (client_get(m.client, v->id, &now, NULL, &e) < 0)
		differ("%s", e.msg);
	if (strcmp(now.commit, made.commit.id) != 0 &&
		strcmp(now.commit, o.made.commit.id) != 0)
		differ("%s is of commit \"%.12s\"", v->alias, now.commit);
	memcpy(v->commit, now.commit, sizeof(v->commit));
	vm_regenerated(v, true);
	v->past.unknown++; /* it has lived through two */
	client_vm_done(&now);
	client_point_done(&made.commit);
	client_point_done(&o.made.commit);
}

static void
race_commit_gc(struct vm *v)
{
	struct client_committed made = {0};
	struct other o;
	struct err e;
	int r;

	step("commit %s and gc at once", v->alias);
	other_start(&o, v, other_gc);
	r = call_commit(m.client, v, NULL, &made, &e);
	other_join(&o);
	if (r < 0 || o.r < 0)
		differ("commit: %s, gc: %s", r < 0 ? e.msg : "done",
			o.r < 0 ? o.e.msg : "done");
	model_committed(v, made.commit.id, NULL);
	vm_regenerated(v, false);
	client_point_done(&made.commit);
}

void
step_race(void)
{
	static void (*const all[])(struct vm *) = {race_branch_kill, race_commit_kill,
		race_branch_delete, race_commits, race_commit_gc};
	int at = vm_any(vm_lives);
	unsigned kept = 0;

	for (unsigned i = 0; i < COMMITS_MAX; i++)
		kept += m.commits[i].there;
	if (at < 0 || kept > 12 || m.vms[at].past.n + 8 > PAST_MAX)
		return;
	guest_sync(&m.vms[at]);
	all[pick(sizeof(all) / sizeof(all[0]))](&m.vms[at]);
}
