#include "guest-agent/identity/apply.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "guest-agent/identity/identity.h"
#include "guest-agent/identity/units.h"
#include "guest-agent/supervisor/restart.h"
#include "guest-agent/system/command_env.h"
#include "guest-agent/system/guest_machine.h"
#include "guest-agent/system/helper.h"
#include "guest-agent/system/loop.h"
#include "guest-agent/system/userdb.h"

/* Generations this machine has had and left behind, the last ones. */
#define PAST_MAX 64
#define HOOK_NAME_MAX 64

/* What a step answers besides identity.h's: it goes on, and step_over() ends it. */
#define UNDER_WAY 2

static int run_hooks(struct identity_change *c, struct err *e);
static int run_units(struct identity_change *c, struct err *e);
static int run_agents(struct identity_change *c, struct err *e);

static const struct step {
	const char *name;
	int (*run)(struct identity_change *c, struct err *e);
	bool of_parents; /* done also where the machine stays who it is */
} steps[] = {
	{"random", identity_random, true},
	{"clock", identity_clock, true},
	{"host-name", identity_host_name, false},
	{"machine-id", identity_machine_id, false},
	{"boot-id", identity_boot_id, false},
	{"seeds", identity_seeds, false},
	{"environment", identity_environment, false},
	{"ssh-keys", identity_ssh_keys, false},
	{"identity", identity_note, true},
	{"hooks", run_hooks, false},
	{"units", run_units, false},
	{"agents", run_agents, false},
};

#define STEPS (sizeof(steps) / sizeof(steps[0]))
_Static_assert(STEPS <= AGENT_STEPS_MAX, "the host has no room for more");

static struct {
	bool runs, acknowledged;
	bool announced; /* the step at `at` was named to the host */
	struct identity_change change;
	const struct apply_listener *listener; /* weak; NULL: the host has hung up */
	void *listener_ctx;		       /* weak */
	struct deferred deferred;
	unsigned at;
	uint64_t began_ns, step_began_ns;
	struct {
		bool gone_through, did;
		uint64_t us;
	} results[STEPS];

	struct helper helper;
	char hooks[HOOKS_MAX][HOOK_NAME_MAX];
	char hook_path[PATH_MAX], hook_what[HOOK_NAME_MAX + 32];
	unsigned n_hooks, hook_at;
	uint64_t hook_began_ns, hook_us[HOOKS_MAX];

	char *ack; /* owned: of the last identity handshake that was acknowledged */
	char ack_generation[AGENT_GENERATION_LEN + 1];
} me;

static struct identity now;
static char past[PAST_MAX][AGENT_GENERATION_LEN + 1];
static unsigned n_past;

static void go_on(struct deferred *call);

void
apply_init(void)
{
	identity_load(&now);
	me.deferred.run = go_on;
}

bool
apply_runs(void)
{
	return me.runs;
}

static void
over(void)
{
	me.runs = false;
	helper_stop(&me.helper);
	deferred_drop(&me.deferred);
	handshake_done(&me.change.handshake);
}

static void
fail(const struct err *why)
{
	struct err e = {0};
	const struct apply_listener *l = TAKE_PTR(me.listener);

	err_set(&e, why->code, "%s: %.400s", steps[me.at].name, why->msg);
	log_err("identity handshake as %s: %s", me.change.handshake.id, e.msg);
	over();
	if (l)
		l->failed(me.listener_ctx, &e);
}

static void
acknowledge(void)
{
	struct json_out o = {0};
	const struct handshake *h = &me.change.handshake;
	uint64_t us = (io_now_ns() - me.began_ns) / 1000;
	struct err e = {0};

	json_out_object(&o, NULL);
	json_out_str(&o, "id", h->id);
	json_out_str(&o, "generation", h->generation);
	json_out_str(&o, "kind", h->parent ? "parent" : "new");
	json_out_str(&o, "host_key", me.change.host_key[0] ? me.change.host_key : NULL);
	json_out_u64(&o, "total_us", us);
	json_out_array(&o, "steps");
	for (unsigned i = 0; i < STEPS; i++) {
		if (!me.results[i].gone_through)
			continue;
		json_out_object(&o, NULL);
		json_out_str(&o, "step", steps[i].name);
		json_out_u64(&o, "us", me.results[i].us);
		json_out_bool(&o, "done", me.results[i].did);
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	json_out_array(&o, "hooks");
	for (unsigned i = 0; i < me.n_hooks; i++) {
		json_out_object(&o, NULL);
		json_out_str(&o, "name", me.hooks[i]);
		json_out_u64(&o, "us", me.hook_us[i]);
		json_out_end_object(&o);
	}
	json_out_end_array(&o);
	json_out_array(&o, "held_back");
	for (size_t i = 0; i < h->env.n; i++)
		if (env_held_back(h->env.v[i]))
			json_out_strn(&o, NULL, h->env.v[i], strcspn(h->env.v[i], "="));
	json_out_end_array(&o);
	json_out_end_object(&o);
	if (o.error || o.len > AGENT_FRAME_MAX) {
		err_set(&e, -ENOMEM, "the acknowledgement");
		json_out_done(&o);
		me.at = STEPS - 1;
		fail(&e);
		return;
	}
	log_info("identity applied: %s \"%s\", generation %s, after %llu us", h->id,
		h->name, h->generation, (unsigned long long)us);
	memcpy(me.ack_generation, h->generation, sizeof(me.ack_generation));
	free(me.ack);
	me.ack = o.buf;
	over();
	if (me.listener)
		TAKE_PTR(me.listener)->done(me.listener_ctx, me.ack);
	/* For the next one, while there is room. */
	machine_keep_room();
}

/* r: as a step returns it. */
static void
step_over(int r, const struct err *e)
{
	if (r < 0) {
		fail(e);
		return;
	}
	me.results[me.at].gone_through = true;
	me.results[me.at].did = r;
	me.results[me.at].us = (io_now_ns() - me.step_began_ns) / 1000;
	if (steps[me.at].run == identity_note) {
		/* From here on the machine is another one, even if its hooks fail. */
		if (now.generation[0] &&
			strcmp(now.generation, me.change.handshake.generation) != 0)
			memcpy(past[n_past++ % PAST_MAX], now.generation,
				sizeof(now.generation));
		memcpy(now.id, me.change.handshake.id, sizeof(now.id));
		memcpy(now.name, me.change.handshake.name, sizeof(now.name));
		memcpy(now.generation, me.change.handshake.generation,
			sizeof(now.generation));
	}
	me.at++;
	me.announced = false;
	deferred_queue(&me.deferred);
}

/* Twice for each step: names it, and is queued again behind the sending of that; does it.
 */
static void
go_on(struct deferred *call)
{
	struct err e = {0};
	int r;

	while (me.at < STEPS && me.change.handshake.parent && !steps[me.at].of_parents)
		me.at++;
	if (me.at == STEPS) {
		acknowledge();
		return;
	}
	if (!me.announced) {
		me.announced = true;
		if (me.listener)
			me.listener->step(me.listener_ctx, steps[me.at].name);
		deferred_queue(call);
		return;
	}
	me.step_began_ns = io_now_ns();
	r = steps[me.at].run(&me.change, &e);
	if (r != UNDER_WAY)
		step_over(r, &e);
}

int
apply_begin(struct handshake *h, const struct apply_listener *listener, void *ctx,
	struct err *e)
{
	struct err superseded = {-EBUSY, "another identity handshake has begun"};
	struct identity old;

	if (!me.runs && me.ack && strcmp(me.ack_generation, h->generation) == 0 &&
		strcmp(now.id, h->id) == 0) {
		listener->done(ctx, me.ack);
		handshake_done(h);
		return 0;
	}
	for (unsigned i = 0; i < n_past && i < PAST_MAX; i++)
		if (strcmp(past[i], h->generation) == 0)
			return err_set(e, -ESTALE,
				"generation %s is one this machine has left behind; it is of generation %s",
				h->generation, now.generation);
	if (h->parent && now.id[0] && strcmp(now.id, h->id) != 0)
		return err_set(e, -ESTALE, "this machine is %s, not %s", now.id, h->id);
	if (me.listener && me.listener_ctx != ctx)
		TAKE_PTR(me.listener)->failed(me.listener_ctx, &superseded);
	me.listener = listener;
	me.listener_ctx = ctx;
	if (me.runs && strcmp(me.change.handshake.generation, h->generation) == 0 &&
		strcmp(me.change.handshake.id, h->id) == 0) {
		if (me.at < STEPS)
			listener->step(ctx, steps[me.at].name);
		handshake_done(h);
		return 0;
	}
	over();
	old = now;
	me.change = (struct identity_change){.handshake = *h, .old = old};
	explicit_bzero(h, sizeof(*h));
	me.change.same = strcmp(old.id, me.change.handshake.id) == 0;
	memset(me.results, 0, sizeof(me.results));
	me.runs = true;
	me.announced = false;
	me.at = me.n_hooks = me.hook_at = 0;
	me.began_ns = io_now_ns();
	deferred_queue(&me.deferred);
	return 0;
}

void
apply_leave(const void *ctx)
{
	if (me.listener_ctx == ctx)
		me.listener = NULL;
}

/*
 * Hooks.
 */

static int
by_name(const void *a, const void *b)
{
	return strcmp(a, b);
}

/* The executable files of the folder, as run-parts(8) takes them, by name. */
static int
find_hooks(struct err *e)
{
	char path[PATH_MAX];
	cleanup_closedir DIR *d = opendir(machine_path(path, HOOKS_FOLDER));
	struct dirent *de;
	struct stat st;

	if (!d)
		return errno == ENOENT ? 0 : err_sys(e, -errno, HOOKS_FOLDER);
	while ((de = readdir(d))) {
		size_t len = strlen(de->d_name);

		if (strspn(de->d_name,
			    "abcdefghijklmnopqrstuvwxyz"
			    "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != len ||
			de->d_name[0] == '.' || fstatat(dirfd(d), de->d_name, &st, 0) ||
			!S_ISREG(st.st_mode) || !(st.st_mode & 0111))
			continue;
		if (len >= HOOK_NAME_MAX)
			return err_set(e, -ENAMETOOLONG,
				HOOKS_FOLDER
				"/%.80s: a hook's name has at most %d letters",
				de->d_name, HOOK_NAME_MAX - 1);
		if (me.n_hooks == HOOKS_MAX)
			return err_set(e, -E2BIG, HOOKS_FOLDER ": more than %d hooks",
				HOOKS_MAX);
		memcpy(me.hooks[me.n_hooks++], de->d_name, len + 1);
	}
	qsort(me.hooks, me.n_hooks, sizeof(me.hooks[0]), by_name);
	return 0;
}

static void hook_over(struct helper *h, int r, const struct err *why);

static int
start_hook(struct err *e)
{
	cleanup_env struct env env = {0};
	char *argv[] = {me.hook_path, NULL};
	const struct handshake *h = &me.change.handshake;
	struct user root;
	int r = user_find(NULL, false, &root, e);

	if (!r)
		r = command_env_build(&env, &root, NULL, NULL, e);
	if (r)
		return r;
	env_put_value(&env, "PANDO_ID", h->id);
	env_put_value(&env, "PANDO_OLD_ID", me.change.old.id);
	env_put_value(&env, "PANDO_GENERATION", h->generation);
	env_put_value(&env, "PANDO_OLD_GENERATION", me.change.old.generation);
	env_put_value(&env, "PANDO_NAME", h->name);
	env_put_value(&env, "PANDO_OLD_NAME", me.change.old.name);
	env_put_value(&env, "PANDO_HOST_NAME", h->host_name);
	if (env.failed)
		return err_sys(e, -ENOMEM, "a hook's environment");
	snprintf(me.hook_what, sizeof(me.hook_what), HOOKS_FOLDER "/%s",
		me.hooks[me.hook_at]);
	machine_path(me.hook_path, me.hook_what);
	me.helper.done = hook_over;
	me.hook_began_ns = io_now_ns();
	return helper_start(&me.helper, me.hook_what, argv, env.v, h->hook_ms, e);
}

static void
hook_over(struct helper *h, int r, const struct err *why)
{
	struct err e = {0};

	(void)h;
	me.hook_us[me.hook_at++] = (io_now_ns() - me.hook_began_ns) / 1000;
	if (!r && me.hook_at < me.n_hooks) {
		r = start_hook(&e);
		if (!r)
			return;
		why = &e;
	}
	step_over(r < 0 ? r : 1, why);
}

static int
run_hooks(struct identity_change *c, struct err *e)
{
	int r = find_hooks(e);

	(void)c;
	if (r || !me.n_hooks)
		return r;
	r = start_hook(e);
	return r ? r : UNDER_WAY;
}

/*
 * Units.
 */

static void
units_over(struct helper *h, int r, const struct err *why)
{
	(void)h;
	step_over(r < 0 ? r : 1, why);
}

static int
run_units(struct identity_change *c, struct err *e)
{
	int r;

	(void)c;
	me.helper.done = units_over;
	r = units_restart(&me.helper, e);
	return r == 1 ? UNDER_WAY : r;
}

/*
 * Coding agents. One that does not start is no reason for the machine not to: `rpc
 * status` and `doctor --vm` tell.
 */

static void
agents_over(struct helper *h, int r, const struct err *why)
{
	(void)h;
	if (r < 0)
		log_warn("%s", why->msg);
	step_over(1, NULL);
}

static int
run_agents(struct identity_change *c, struct err *e)
{
	int r;

	(void)c;
	me.helper.done = agents_over;
	r = agents_start(&me.helper, e);
	if (r < 0)
		log_warn("starting coding agents again: %s", e->msg);
	return r == 1 ? UNDER_WAY : 0;
}
