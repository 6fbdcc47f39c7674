/* Steps without a crash: what is asked, what must be answered, what the model becomes. */
#include "tests/system/model/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/json.h"

#define LIVING_MAX 5u /* each keeps a CPU busy */
#define DEAD_MAX 8u
#define COMMITS_KEPT 12u

void
new_name(char dst[static 64], const char *stem)
{
	snprintf(dst, 64, "%s%u", stem, ++m.names);
}

/* An answer that is not the one that must be. */
static void
must(int r, int should, const struct err *e)
{
	if (r != should)
		differ("the answer is %d (%s), not %d", r, r < 0 ? e->msg : "done",
			should);
	if (r < 0)
		m.refusals++;
}

/*
 * Calls.
 */

int
call_branch(struct vm *v, unsigned count, const char *alias, struct client_vms *ret,
	struct err *e)
{
	struct client_branch spec = {.count = count, .alias = alias, .no_wait = true};

	return client_branch(m.client, v->id, &spec, ret, NULL, e);
}

int
call_spawn(const char *commit, unsigned count, const char *alias, struct client_vms *ret,
	struct err *e)
{
	struct client_branch spec = {.count = count, .alias = alias, .no_wait = true};

	return client_spawn(m.client, commit, &spec, ret, NULL, e);
}

int
call_reset(struct vm *v, const char *commit, struct err *e)
{
	struct client_reset reset = {0};
	struct client_vm told = {0};
	int r = client_reset(m.client, v->id, commit, true, &told, &reset, NULL, e);

	if (r == 0)
		client_vm_done(&told);
	return r;
}

int
call_commit(struct client *c, struct vm *v, const char *tag, struct client_committed *ret,
	struct err *e)
{
	struct client_commit spec = {.message = "of the model",
		.tags = tag ? &tag : NULL,
		.n_tags = tag ? 1 : 0};

	return client_commit(c, v->id, &spec, ret, NULL, e);
}

int
call_run(const char *alias, struct client_vm *ret, struct err *e)
{
	struct client_run spec = {
		.alias = alias,
		.mem_mib = 16,
		.disk_mib = 8,
		.kernel = m.kernel,
		.rootfs = m.rootfs,
		.cmdline = "mode=work disk=1 dirty=20",
		.no_wait = true,
	};

	return client_run(m.client, &spec, ret, NULL, e);
}

int
call_gc(struct client *c, struct err *e)
{
	struct client_reply reply = {0};
	int r = client_call(c, "POST", "/v1/gc", NULL, &reply, e);

	client_reply_done(&reply);
	return r;
}

static int
call_tag(const char *name, const char *commit, bool move, struct err *e)
{
	struct client_reply reply = {0};
	char path[200], body[200];
	int r = client_path(path, sizeof(path), "tags", name, "", e);

	snprintf(body, sizeof(body), "{\"commit\":\"%s\",\"move\":%s}", commit,
		move ? "true" : "false");
	if (r == 0)
		r = client_call(m.client, "PUT", path, body, &reply, e);
	client_reply_done(&reply);
	return r;
}

/*
 * What they make of the model.
 */

void
model_branched(struct vm *v, const struct client_vms *told)
{
	int parent = (int)(v - m.vms);

	for (size_t i = 0; i < told->n; i++)
		vm_adopt(&told->v[i], parent, v->commit, v->image, v->base, &v->past);
	m.forks++;
}

void
model_spawned(const struct commit *c, const struct client_vms *told)
{
	for (size_t i = 0; i < told->n; i++)
		vm_adopt(&told->v[i], -1, c->id, c->id, c->id, &c->past);
}

/* pandod is asked for its new generation. */
void
model_reset(struct vm *v, const struct commit *c)
{
	memcpy(v->commit, c->id, sizeof(v->commit));
	memcpy(v->image, c->id, sizeof(v->image));
	memcpy(v->base, c->id, sizeof(v->base));
	v->past = c->past;
	v->life = LIFE_RUNS;
	v->pending = v->booted = false;
	vm_regenerated(v, false);
	if (!v->pending)
		differ("%s has the generation that it had", v->alias);
}

void
model_ran(const struct client_vm *told)
{
	vm_adopt(told, -1, "", "", "", NULL);
}

static void
model_tagged(const char *name, const char *commit)
{
	unsigned i = 0;

	while (i < TAGS_MAX && m.tags[i].there && strcmp(m.tags[i].name, name) != 0)
		i++;
	for (unsigned j = 0; i == TAGS_MAX && j < TAGS_MAX; j++)
		differ("the model has no room for another tag");
	m.tags[i].there = true;
	snprintf(m.tags[i].name, sizeof(m.tags[i].name), "%s", name);
	snprintf(m.tags[i].commit, sizeof(m.tags[i].commit), "%s", commit);
}

void
model_committed(struct vm *v, const char *id, const char *tag)
{
	struct commit *c = commit_new();

	snprintf(c->id, sizeof(c->id), "%s", id);
	memcpy(c->parent, v->commit, sizeof(c->parent));
	c->past = v->past;
	memcpy(v->commit, c->id, sizeof(v->commit));
	if (tag)
		model_tagged(tag, id);
	m.commits_made++;
	m.forks++;
}

static bool
descends(const struct vm *v, int of)
{
	for (int at = v->parent; at >= 0; at = m.vms[at].parent)
		if (at == of)
			return true;
	return false;
}

bool
has_living_branches(const struct vm *v)
{
	for (unsigned i = 0; i < VMS_MAX; i++)
		if (vm_lives(&m.vms[i]) && descends(&m.vms[i], (int)(v - m.vms)))
			return true;
	return false;
}

void
model_deleted(struct vm *v, bool recursive)
{
	bool goes[VMS_MAX] = {false};

	goes[v - m.vms] = true;
	for (unsigned i = 0; recursive && i < VMS_MAX; i++)
		goes[i] |= m.vms[i].there && descends(&m.vms[i], (int)(v - m.vms));
	for (unsigned i = 0; i < VMS_MAX; i++)
		if (goes[i])
			vm_forget(&m.vms[i]);
}

static bool
commit_descends(const struct commit *c, const char *of)
{
	for (; c && c->parent[0]; c = commit_by_id(c->parent))
		if (strcmp(c->parent, of) == 0)
			return true;
	return false;
}

bool
commit_has_children(const struct commit *c)
{
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		if (m.commits[i].there && strcmp(m.commits[i].parent, c->id) == 0)
			return true;
	return false;
}

bool
commit_in_use(const struct commit *c, bool recursive)
{
	for (unsigned i = 0; i < COMMITS_MAX; i++) {
		const struct commit *other = &m.commits[i];

		if (!other->there ||
			(other != c && !(recursive && commit_descends(other, c->id))))
			continue;
		for (unsigned j = 0; j < VMS_MAX; j++)
			if (vm_uses(&m.vms[j], other->id))
				return true;
	}
	return false;
}

void
model_commit_deleted(struct commit *c, bool recursive)
{
	bool goes[COMMITS_MAX] = {false};

	goes[c - m.commits] = true;
	for (unsigned i = 0; recursive && i < COMMITS_MAX; i++)
		goes[i] |= m.commits[i].there && commit_descends(&m.commits[i], c->id);
	for (unsigned i = 0; i < COMMITS_MAX; i++)
		if (goes[i])
			commit_forget(&m.commits[i]);
}

/*
 * Steps.
 */

void
step_run(void)
{
	struct client_vm told = {0};
	char alias[64];
	struct err e;

	new_name(alias, "r");
	step("run %s", alias);
	must(call_run(alias, &told, &e), 0, &e);
	model_ran(&told);
	client_vm_done(&told);
}

static void
step_branch(void)
{
	int at = vm_any(pick(8) ? vm_lives : vm_is);
	struct client_vms told = {0};
	unsigned count = pick(3) ? 1 : 2 + pick(2);
	char alias[64];
	struct vm *v;
	struct err e;
	bool lives;

	if (at < 0)
		return;
	v = &m.vms[at];
	lives = vm_lives(v);
	if (lives &&
		(v->past.n + 8 > PAST_MAX || vm_count(vm_lives) + count > LIVING_MAX + 1))
		return;
	guest_sync(v);
	new_name(alias, "b");
	step("branch %s --count %u -n %s", v->alias, count, alias);
	must(call_branch(v, count, alias, &told, &e), lives ? 0 : -EBUSY, &e);
	if (lives) {
		model_branched(v, &told);
		vm_regenerated(v, false);
		if (!v->pending)
			differ("%s has the generation that it had", v->alias);
	}
	client_vms_done(&told);
}

static void
step_commit(void)
{
	int at = vm_any(pick(8) ? vm_lives : vm_is);
	struct client_committed made = {0};
	char tag[64];
	bool tagged = pick(2), taken = false, lives;
	struct vm *v;
	struct err e;
	unsigned kept = 0, tags = 0;

	for (unsigned i = 0; i < COMMITS_MAX; i++)
		kept += m.commits[i].there;
	for (unsigned i = 0; i < TAGS_MAX; i++)
		tags += m.tags[i].there;
	if (at < 0 || kept >= COMMITS_KEPT || m.vms[at].past.n + 8 > PAST_MAX)
		return;
	if (tags > TAGS_MAX / 2)
		tagged = false;
	v = &m.vms[at];
	lives = vm_lives(v);
	guest_sync(v);
	new_name(tag, "t");
	for (unsigned i = 0; tagged && i < TAGS_MAX && !taken; i++)
		if (m.tags[i].there && !pick(6)) {
			snprintf(tag, sizeof(tag), "%s", m.tags[i].name);
			taken = true;
		}
	step("commit %s%s%s", v->alias, tagged ? " --tag " : "", tagged ? tag : "");
	must(call_commit(m.client, v, tagged ? tag : NULL, &made, &e),
		taken	? -EEXIST
		: lives ? 0
			: -EBUSY,
		&e);
	if (lives && !taken) {
		model_committed(v, made.commit.id, tagged ? tag : NULL);
		vm_regenerated(v, false);
		if (!v->pending)
			differ("%s has the generation that it had", v->alias);
	}
	client_point_done(&made.commit);
}

static void
step_spawn(void)
{
	int at = commit_any();
	struct client_vms told = {0};
	unsigned count = pick(3) ? 1 : 2;
	char name[ID_MAX], alias[64];
	struct commit *c;
	struct err e;

	if (at < 0 || vm_count(vm_lives) + count > LIVING_MAX)
		return;
	c = &m.commits[at];
	if (c->past.n + 8 > PAST_MAX)
		return;
	snprintf(name, sizeof(name), "%.*s", pick(2) ? 64 : 20, c->id);
	for (unsigned i = 0; i < TAGS_MAX; i++)
		if (m.tags[i].there && strcmp(m.tags[i].commit, c->id) == 0 && pick(2))
			snprintf(name, sizeof(name), "%s", m.tags[i].name);
	new_name(alias, "s");
	step("run-commit %s --count %u -N %s", name, count, alias);
	must(call_spawn(name, count, alias, &told, &e), 0, &e);
	model_spawned(c, &told);
	client_vms_done(&told);
}

static void
step_reset(void)
{
	int at = vm_any(vm_lives), to = commit_any();
	struct commit *c;
	struct vm *v;
	struct err e;

	if (at < 0 || to < 0 || m.commits[to].past.n + 8 > PAST_MAX)
		return;
	v = &m.vms[at];
	c = &m.commits[to];
	step("reset %s %.12s", v->alias, c->id);
	must(call_reset(v, c->id, &e), 0, &e);
	model_reset(v, c);
}

static void
step_kill(void)
{
	int at = vm_any(vm_lives);

	if (at < 0 || vm_count(vm_is_dead) >= DEAD_MAX)
		return;
	step("kill -9 of %s's VMM", m.vms[at].alias);
	vmm_kill(&m.vms[at]);
	wait_state(&m.vms[at], "failed");
}

static void
step_delete(void)
{
	int at = vm_any(vm_is);
	bool recursive = !pick(3), dry = !pick(4), refused;
	char **ids = NULL;
	struct vm *v;
	struct err e;

	if (at < 0)
		return;
	v = &m.vms[at];
	refused = !recursive && has_living_branches(v);
	step("delete %s%s%s", recursive ? "-r " : "", dry ? "--dry-run " : "", v->alias);
	must((dry ? client_delete_dry : client_delete)(
		     m.client, v->id, recursive, &ids, &e),
		refused ? -ENOTEMPTY : 0, &e);
	if (!refused && !dry) {
		model_deleted(v, recursive);
		for (char **id = ids; *id; id++)
			if (vm_by_id(*id))
				differ("%s was deleted", *id);
	}
	if (!refused)
		client_ids_free(ids);
}

static void
step_commit_delete(void)
{
	int at = commit_any();
	bool recursive = pick(2), refused;
	char **ids = NULL;
	struct commit *c;
	struct err e;

	if (at < 0)
		return;
	c = &m.commits[at];
	refused = commit_in_use(c, recursive) || (!recursive && commit_has_children(c));
	step("commit delete %s%.12s", recursive ? "-r " : "", c->id);
	must(client_commit_delete(m.client, c->id, recursive, false, &ids, &e),
		refused ? -ENOTEMPTY : 0, &e);
	if (refused)
		return;
	model_commit_deleted(c, recursive);
	for (char **id = ids; *id; id++)
		if (commit_by_id(*id))
			differ("commit %s was deleted", *id);
	client_ids_free(ids);
}

static void
step_gc(void)
{
	struct err e;

	step("gc");
	must(call_gc(m.client, &e), 0, &e);
}

static void
step_pause(void)
{
	int at = vm_any(vm_is);
	struct client_vm told = {0};
	struct vm *v;
	struct err e;
	bool pause;

	if (at < 0)
		return;
	v = &m.vms[at];
	guest_sync(v);
	pause = v->life == LIFE_PAUSED ? !pick(4) : pick(4) != 0;
	step("%s %s", pause ? "pause" : "resume", v->alias);
	must((pause ? client_pause : client_resume)(m.client, v->id, &told, NULL, &e),
		vm_lives(v) ? 0 : -EBUSY, &e);
	if (vm_lives(v))
		v->life = pause ? LIFE_PAUSED : LIFE_RUNS;
	client_vm_done(&told);
}

static void
step_stop(void)
{
	int at = vm_any(vm_is);
	struct client_vm told = {0};
	struct vm *v;
	struct err e;

	if (at < 0 || vm_count(vm_is_dead) >= DEAD_MAX)
		return;
	v = &m.vms[at];
	step("stop --force %s", v->alias);
	must(client_stop(m.client, v->id, true, 0, &told, NULL, &e),
		v->life == LIFE_FAILED ? -EBUSY : 0, &e);
	if (vm_lives(v)) {
		v->life = LIFE_STOPPED;
		v->pid = 0;
	}
	client_vm_done(&told);
}

static void
step_start(void)
{
	int at = vm_any(vm_is_dead);
	struct client_vm told = {0};
	struct vm *v;
	struct err e;

	if (at < 0 || vm_count(vm_lives) >= LIVING_MAX)
		return;
	v = &m.vms[at];
	step("start %s", v->alias);
	must(client_start(m.client, v->id, true, &told, NULL, &e), 0, &e);
	v->life = LIFE_RUNS;
	v->image[0] = v->base[0] = '\0';
	v->past = (struct past){.n = 0};
	v->booted = v->pending = true;
	v->generation = generation_of(&told);
	v->pid = (pid_t)told.pid;
	client_vm_done(&told);
}

static void
step_alias(void)
{
	int at = vm_any(vm_is), other = vm_any(vm_is);
	bool taken = !pick(3) && at != other;
	struct client_vm told = {0};
	char alias[64];
	struct err e;

	if (at < 0)
		return;
	new_name(alias, "a");
	if (taken)
		snprintf(alias, sizeof(alias), "%s", m.vms[other].alias);
	step("alias %s %s", m.vms[at].alias, alias);
	must(client_alias(m.client, m.vms[at].id, alias, &told, NULL, &e),
		taken ? -EEXIST : 0, &e);
	if (!taken)
		snprintf(m.vms[at].alias, sizeof(m.vms[at].alias), "%s", alias);
	client_vm_done(&told);
}

static void
step_tag(void)
{
	int at = commit_any();
	unsigned i = pick(TAGS_MAX);
	struct client_reply reply = {0};
	char name[64], path[200];
	struct err e;

	if (at < 0)
		return;
	if (!m.tags[i].there) {
		if (i >= TAGS_MAX / 2)
			return;
		new_name(name, "t");
		step("tag update %s", name);
		must(call_tag(name, m.commits[at].id, true, &e), -ENOENT, &e);
		step("tag create %s", name);
		must(call_tag(name, m.commits[at].id, false, &e), 0, &e);
		model_tagged(name, m.commits[at].id);
		return;
	}
	snprintf(name, sizeof(name), "%s", m.tags[i].name);
	if (pick(2)) {
		step("tag create, then update %s", name);
		must(call_tag(name, m.commits[at].id, false, &e), -EEXIST, &e);
		must(call_tag(name, m.commits[at].id, true, &e), 0, &e);
		model_tagged(name, m.commits[at].id);
		return;
	}
	step("tag delete %s", name);
	must(client_path(path, sizeof(path), "tags", name, "", &e), 0, &e);
	must(client_call(m.client, "DELETE", path, NULL, &reply, &e), 0, &e);
	client_reply_done(&reply);
	m.tags[i].there = false;
}

void
step_once(void)
{
	static const struct {
		void (*run)(void);
		unsigned weight;
	} steps[] = {
		{step_run, 2},
		{step_branch, 20},
		{step_commit, 12},
		{step_spawn, 9},
		{step_reset, 10},
		{step_kill, 8},
		{step_delete, 12},
		{step_commit_delete, 6},
		{step_gc, 4},
		{step_pause, 5},
		{step_stop, 3},
		{step_start, 3},
		{step_alias, 2},
		{step_tag, 4},
		{step_crash, 14},
		{step_race, 6},
	};
	unsigned all = 0, at;

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		all += steps[i].weight;
	at = pick(all);
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		if (at < steps[i].weight) {
			if (steps[i].run == step_run && vm_count(vm_lives) >= LIVING_MAX)
				return;
			steps[i].run();
			return;
		}
		at -= steps[i].weight;
	}
}
