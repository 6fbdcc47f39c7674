#include "host/scope/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/scope/bus.h"
#include "host/scope/cgroup.h"
#include "host/vmmproc/launch.h"

#define NS_PER_MS UINT64_C(1000000)
#define SETTLE_MS 50
/* A scope of the same name that is about to go, a group that is about to be empty. */
#define AGAIN_MS 200
#define AGAIN_MAX_MS 10000
#define TRIES_MAX 8
/* After a bus that broke. */
#define BUS_AGAIN_MS 2000
#define ALLOWANCE_MIB 64
#define ID_MAX 16

enum state { NEW, IN, LOST, LEAVING };

struct entry {
	struct entry *next;
	struct entry *parent; /* weak; NULL: none that is known */
	char id[ID_MAX], parent_id[ID_MAX];
	char description[128];
	char folder[CGROUP_PATH_MAX];
	uint8_t machine_id[16];
	pid_t pid;
	int pidfd; /* owned while NEW; -1 */
	uint64_t mem_mib;
	uint32_t vcpus;
	unsigned forks;	  /* of it and of its forks, ever */
	unsigned allowed; /* forks that its limit has room for */
	enum state state;
	unsigned tries;
	uint64_t due_ns;
	bool registered;	     /* with machined */
	char group[CGROUP_PATH_MAX]; /* made by hand; empty: none */
};

struct scopes {
	enum scopes_use use;
	char *below; /* owned; NULL */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	pthread_t thread;
	bool stopping;
	bool in_memory;	       /* what VMs write to disks is memory, too */
	struct entry *entries; /* owned */
	unsigned n_in;
	/* What was found out; how is written by the thread under the lock. */
	enum scopes_use how;
	bool known, limits, lingers, machined, complained;
	char detail[320];
	/* The thread's own. */
	struct bus *bus; /* owned */
	uint64_t bus_again_ns;
	struct cgroup cgroup;
};

uint64_t
scope_memory_max(uint64_t mem_mib, unsigned forks)
{
	return (mem_mib * (2 + (uint64_t)forks) + ALLOWANCE_MIB) << 20;
}

uint64_t
scope_cpu_weight(uint32_t vcpus)
{
	return vcpus >= 100 ? 10000 : 100 * (uint64_t)vcpus;
}

/* Room is made by doubling: most branches then ask for nothing. */
static unsigned
room_for(unsigned forks)
{
	unsigned n = forks ? 1 : 0;

	while (n < forks)
		n *= 2;
	return n;
}

static void
unit_of(const struct entry *v, char unit[static 32])
{
	snprintf(unit, 32, "pando-%.12s.scope", v->id);
}

static void
machine_of(const struct entry *v, char name[static 32])
{
	snprintf(name, 32, "pando-%.12s", v->id);
}

/* Of those that have not ended. */
static struct entry *
find(struct scopes *s, const char *id)
{
	for (struct entry *v = s->entries; v; v = v->next)
		if (v->state != LEAVING && strcmp(v->id, id) == 0)
			return v;
	return NULL;
}

/*
 * What there is.
 */

/* Whether the user's systemd outlives their last session. */
static bool
user_lingers(void)
{
	char path[512], buf[4096];
	struct passwd pw, *found = NULL;

	if (geteuid() == 0)
		return true;
	if (getpwuid_r(geteuid(), &pw, buf, sizeof(buf), &found) || !found)
		return true;
	snprintf(path, sizeof(path), "/var/lib/systemd/linger/%.400s", pw.pw_name);
	return access(path, F_OK) == 0;
}

static void
conclude(struct scopes *s, enum scopes_use how, bool limits, const char *detail)
{
	pthread_mutex_lock(&s->lock);
	s->how = how;
	s->limits = limits;
	s->lingers = how != SCOPES_SYSTEMD || user_lingers();
	snprintf(s->detail, sizeof(s->detail), "%s%s", detail,
		s->in_memory && limits
			? "; memory has no limit, for PANDO_HOME is in memory itself"
			: "");
	s->known = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	log_info("scopes: %s", s->detail);
}

static void
find_out(struct scopes *s)
{
	struct err no_bus = {0}, no_group = {0};
	char text[320];

	if (s->use != SCOPES_CGROUP && bus_open(&s->bus, &no_bus) == 0) {
		conclude(s, SCOPES_SYSTEMD, true,
			geteuid() == 0 ? "each VM is a scope of the host's systemd"
				       : "each VM is a scope of the user's systemd");
		return;
	}
	if (s->use == SCOPES_CGROUP)
		snprintf(no_bus.msg, sizeof(no_bus.msg), "systemd is not asked");
	if (s->use == SCOPES_SYSTEMD) {
		snprintf(no_group.msg, sizeof(no_group.msg),
			"control groups are not made by hand, for pandod.toml says so");
	} else if (cgroup_open(s->below, &s->cgroup, &no_group) == 0) {
		const struct cgroup *g = &s->cgroup;

		snprintf(text, sizeof(text),
			"each VM is a control group of its own (%.100s)%s", no_bus.msg,
			g->memory && g->cpu ? ""
			: g->memory || g->cpu
				? "; only one of the memory and cpu controllers is to be had there, so not all limits are kept"
				: "; the memory and cpu controllers are not to be had there, so no limits are kept");
		cgroup_sweep(g);
		conclude(s, SCOPES_CGROUP, g->memory && g->cpu, text);
		return;
	}
	snprintf(text, sizeof(text),
		"VMs have no scopes and no limits of their own (%.120s; %.120s)",
		no_bus.msg, no_group.msg);
	conclude(s, SCOPES_NONE, false, text);
}

/*
 * One VM. Without the lock; the entry is the thread's, and of what others write only
 * `state` and `forks` matter, which are taken before.
 */

/* A connection that broke is made again, not too often. */
static int
need_bus(struct scopes *s, struct err *e)
{
	uint64_t now = io_now_ns();
	int r;

	if (s->bus)
		return 0;
	if (now < s->bus_again_ns)
		return err_set(e, -ENOTCONN, "the connection to systemd broke");
	r = bus_open(&s->bus, e);
	s->bus_again_ns = r < 0 ? now + BUS_AGAIN_MS * NS_PER_MS : 0;
	return r;
}

static int
after_call(struct scopes *s, int r)
{
	if (bus_broke(r) && s->bus) {
		bus_close(s->bus);
		s->bus = NULL;
	}
	return r;
}

static void
register_machine(struct scopes *s, struct entry *v)
{
	char name[32];
	struct err e;
	int r;

	if (!s->bus || !bus_is_system(s->bus))
		return;
	machine_of(v, name);
	r = after_call(s,
		bus_machine_register(s->bus, name, v->machine_id, v->pid, v->folder, &e));
	v->registered = r == 0;
	pthread_mutex_lock(&s->lock);
	s->machined = r == 0 || (s->machined && r != -ESRCH);
	pthread_mutex_unlock(&s->lock);
	if (r < 0 && r != -ESRCH)
		log_warn("vm %s: not registered: %s", v->id, e.msg);
}

static uint64_t
memory_max(const struct scopes *s, const struct entry *v)
{
	return s->in_memory ? UINT64_MAX : scope_memory_max(v->mem_mib, v->allowed);
}

/* Its limit may be higher than what is known now calls for: forks that have ended. */
static void
found_there(struct scopes *s, struct entry *v)
{
	size_t n = strlen(s->cgroup.slice);
	uint64_t bytes, forks;

	if (cgroup_memory_max(v->group, &bytes)) {
		forks = (bytes >> 20) / (v->mem_mib ? v->mem_mib : 1);
		v->allowed = forks > 100000 ? 100000
			     : forks > 3    ? (unsigned)forks - 3
					    : 0;
	}
	/* Only what was made by hand is removed by hand. */
	if (s->how != SCOPES_CGROUP || strncmp(v->group, s->cgroup.slice, n) != 0 ||
		v->group[n] != '/')
		v->group[0] = '\0';
}

static int
enter(struct scopes *s, struct entry *v, unsigned forks, struct err *e)
{
	struct bus_scope scope = {
		.description = v->description,
		.slice = CGROUP_SLICE,
		.pid = v->pid,
		.cpu_weight = scope_cpu_weight(v->vcpus),
	};
	char unit[32];
	int r;

	unit_of(v, unit);
	/* An earlier pandod's work. */
	if (cgroup_find(v->pid, unit, v->group)) {
		found_there(s, v);
		return 0;
	}
	if (!process_lives(v->pidfd))
		return 0;
	v->allowed = room_for(forks);
	scope.unit = unit;
	scope.memory_max = memory_max(s, v);
	if (s->how == SCOPES_CGROUP) {
		r = cgroup_enter(&s->cgroup, unit, v->pid, scope.memory_max,
			scope.cpu_weight, v->group, e);
		if (r < 0)
			v->group[0] = '\0';
		return r == -ESRCH ? 0 : r;
	}
	r = need_bus(s, e);
	if (r == 0)
		r = after_call(s, bus_scope_start(s->bus, &scope, e));
	if (r == 0)
		register_machine(s, v);
	return r;
}

static void
raise_limit(struct scopes *s, struct entry *v, unsigned forks)
{
	uint64_t bytes;
	char unit[32];
	struct err e;
	int r;

	unit_of(v, unit);
	v->allowed = room_for(forks);
	bytes = memory_max(s, v);
	if (bytes == UINT64_MAX)
		return;
	if (s->how == SCOPES_CGROUP) {
		r = v->group[0] ? cgroup_limit(&s->cgroup, v->group, bytes, &e) : 0;
	} else {
		r = need_bus(s, &e);
		if (r == 0)
			r = after_call(s, bus_scope_limit(s->bus, unit, bytes, &e));
	}
	/* Not again and again: what is short of memory then is told by the kernel. */
	if (r < 0)
		log_warn("vm %s: its limit is not raised: %s", v->id, e.msg);
}

/* Whether it is done with. */
static bool
leave(struct scopes *s, struct entry *v)
{
	char name[32];
	int r = 0;

	if (v->registered && s->bus) {
		machine_of(v, name);
		after_call(s, bus_machine_unregister(s->bus, name, NULL));
		v->registered = false;
	}
	/* Not empty as long as a fork is in there that was not moved yet. */
	if (v->group[0])
		r = cgroup_remove(&s->cgroup, v->group, NULL);
	return r != -EBUSY;
}

/*
 * The thread.
 */

static void
drop(struct scopes *s, struct entry *v)
{
	struct entry **at = &s->entries;

	while (*at != v)
		at = &(*at)->next;
	*at = v->next;
	for (struct entry *o = s->entries; o; o = o->next)
		if (o->parent == v)
			o->parent = v->parent;
	cleanup_close_fn(&v->pidfd);
	free(v);
}

static uint64_t
again_at(unsigned *tries)
{
	uint64_t ms = (uint64_t)AGAIN_MS << (*tries < 6 ? *tries : 6);

	++*tries;
	return io_now_ns() + (ms > AGAIN_MAX_MS ? AGAIN_MAX_MS : ms) * NS_PER_MS;
}

/* With the lock, given up meanwhile; nobody else drops an entry. */
static void
do_enter(struct scopes *s, struct entry *v)
{
	unsigned forks = v->forks;
	struct err e = {0};
	bool dead;
	int r;

	pthread_mutex_unlock(&s->lock);
	r = enter(s, v, forks, &e);
	dead = r < 0 && !process_lives(v->pidfd);
	pthread_mutex_lock(&s->lock);
	if (r < 0 && !dead && v->state == NEW && v->tries < TRIES_MAX && r != -EACCES &&
		r != -EPERM) {
		v->due_ns = again_at(&v->tries);
		return;
	}
	if (r < 0 && !dead && !s->complained) {
		s->complained = true;
		s->limits = false;
		snprintf(s->detail, sizeof(s->detail),
			"some VMs have no scope of their own: %.250s", e.msg);
		log_warn("vm %s: it has no scope: %s; this is said once", v->id, e.msg);
	}
	cleanup_close_fn(&v->pidfd);
	v->pidfd = -1;
	if (v->state == NEW) {
		v->state = r < 0 ? LOST : IN;
		v->tries = 0;
		s->n_in += r == 0;
	}
}

static void
do_leave(struct scopes *s, struct entry *v)
{
	bool over;

	/* Started again, it is in a scope of the same name. */
	if (find(s, v->id))
		v->group[0] = '\0';
	pthread_mutex_unlock(&s->lock);
	over = leave(s, v);
	pthread_mutex_lock(&s->lock);
	if (over)
		drop(s, v);
	else
		v->due_ns = again_at(&v->tries);
}

/* What is next: a limit before anything else. *ret_ns: when, if nothing is due. */
static struct entry *
next_due(struct scopes *s, uint64_t *ret_ns)
{
	uint64_t now = io_now_ns(), next = UINT64_MAX;
	struct entry *due = NULL;

	for (struct entry *v = s->entries; v; v = v->next) {
		if (v->state == IN && v->forks > v->allowed)
			return v;
		if ((v->state == NEW || v->state == LEAVING) && v->due_ns < next) {
			next = v->due_ns;
			due = v;
		}
	}
	*ret_ns = next;
	return next <= now ? due : NULL;
}

static void *
scopes_main(void *arg)
{
	struct scopes *s = arg;

	find_out(s);
	pthread_mutex_lock(&s->lock);
	while (s->how == SCOPES_NONE && s->entries)
		drop(s, s->entries);
	while (!s->stopping && s->how != SCOPES_NONE) {
		uint64_t next = 0;
		struct entry *v = next_due(s, &next);

		if (!v) {
			struct timespec until = {
				.tv_sec = (time_t)(next / (1000 * NS_PER_MS)),
				.tv_nsec = (long)(next % (1000 * NS_PER_MS))};

			if (next == UINT64_MAX)
				pthread_cond_wait(&s->changed, &s->lock);
			else
				pthread_cond_timedwait(&s->changed, &s->lock, &until);
			continue;
		}
		if (v->state == IN) {
			unsigned forks = v->forks;

			pthread_mutex_unlock(&s->lock);
			raise_limit(s, v, forks);
			pthread_mutex_lock(&s->lock);
		} else if (v->state == NEW) {
			do_enter(s, v);
		} else {
			do_leave(s, v);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/*
 * From outside.
 */

static bool
is_in_memory(const char *path)
{
	struct statfs fs;

	return statfs(path, &fs) == 0 &&
	       (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC);
}

struct scopes *
scopes_open(enum scopes_use use, const char *home, const char *group)
{
	struct scopes *s;
	pthread_condattr_t attr;

	if (use == SCOPES_NONE)
		return NULL;
	s = calloc(1, sizeof(*s));
	if (!s || (group && !(s->below = strdup(group)))) {
		free(s);
		return NULL;
	}
	s->use = use;
	s->in_memory = home && is_in_memory(home);
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->changed, &attr);
	pthread_condattr_destroy(&attr);
	if (pthread_create(&s->thread, NULL, scopes_main, s) != 0) {
		log_warn("scopes: no thread can be made, so VMs have none");
		free(s->below);
		free(s);
		return NULL;
	}
	return s;
}

void
scopes_close(struct scopes *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stopping = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	/* What could not be removed yet: the next one's sweep. */
	while (s->entries)
		drop(s, s->entries);
	if (s->how == SCOPES_CGROUP)
		cgroup_close(&s->cgroup);
	bus_close(s->bus);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	free(s->below);
	free(s);
}

/* A fork is on the account of all that it came from. */
static void
count_forks(struct entry *v, unsigned n)
{
	for (; v; v = v->parent)
		v->forks = v->forks > 100000 ? v->forks : v->forks + n;
}

void
scopes_enter(struct scopes *s, const struct scope_vm *vm)
{
	struct entry *v;

	if (!s)
		return;
	v = calloc(1, sizeof(*v));
	if (!v)
		return;
	snprintf(v->id, sizeof(v->id), "%s", vm->id);
	snprintf(v->parent_id, sizeof(v->parent_id), "%s", vm->parent);
	snprintf(v->folder, sizeof(v->folder), "%s", vm->folder);
	snprintf(v->description, sizeof(v->description), "Pando VM %s%s%.80s%s", vm->id,
		vm->alias[0] ? " (" : "", vm->alias, vm->alias[0] ? ")" : "");
	memcpy(v->machine_id, vm->machine_id, sizeof(v->machine_id));
	v->pid = vm->pid;
	v->mem_mib = vm->mem_mib;
	v->vcpus = vm->vcpus;
	v->pidfd = fcntl(vm->pidfd, F_DUPFD_CLOEXEC, 3);
	v->due_ns = io_now_ns() + SETTLE_MS * NS_PER_MS;
	if (v->pidfd < 0) {
		free(v);
		return;
	}
	pthread_mutex_lock(&s->lock);
	if (s->known && s->how == SCOPES_NONE) {
		pthread_mutex_unlock(&s->lock);
		close(v->pidfd);
		free(v);
		return;
	}
	if (v->parent_id[0])
		v->parent = find(s, v->parent_id);
	/* A branch was expected (scopes_expect()). */
	if (vm->found)
		count_forks(v->parent, 1);
	/* A new pandod hears of VMs in any order. */
	for (struct entry *o = s->entries; o; o = o->next)
		if (vm->found && !o->parent && o->state != LEAVING &&
			strcmp(o->parent_id, v->id) == 0) {
			o->parent = v;
			count_forks(v, 1 + o->forks);
		}
	v->next = s->entries;
	s->entries = v;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void
scopes_expect(struct scopes *s, const char *id, unsigned forks)
{
	struct entry *v;

	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	v = find(s, id);
	count_forks(v, forks);
	for (; v; v = v->parent)
		if (v->state == IN && v->forks > v->allowed)
			pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

void
scopes_leave(struct scopes *s, const char *id)
{
	struct entry *v;

	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	v = find(s, id);
	if (v) {
		s->n_in -= v->state == IN;
		v->state = LEAVING;
		v->tries = 0;
		v->due_ns = io_now_ns();
		pthread_cond_broadcast(&s->changed);
	}
	pthread_mutex_unlock(&s->lock);
}

void
scopes_json(struct scopes *s, const char *key, struct json_out *out)
{
	static const char *const names[] = {[SCOPES_NONE] = "none",
		[SCOPES_AUTO] = "unknown",
		[SCOPES_SYSTEMD] = "systemd",
		[SCOPES_CGROUP] = "cgroup"};

	json_out_object(out, key);
	if (!s) {
		json_out_str(out, "how", "none");
		json_out_str(
			out, "detail", "VMs have no scopes, for pandod.toml says so");
		json_out_bool(out, "limits", false);
		json_out_bool(out, "lingers", true);
		json_out_bool(out, "machined", false);
		json_out_u64(out, "vms", 0);
	} else {
		pthread_mutex_lock(&s->lock);
		json_out_str(out, "how", names[s->known ? s->how : SCOPES_AUTO]);
		json_out_str(out, "detail",
			s->known ? s->detail : "it is still being found out");
		json_out_bool(out, "limits", s->limits);
		json_out_bool(out, "lingers", s->lingers);
		json_out_bool(out, "machined", s->machined);
		json_out_u64(out, "vms", s->n_in);
		pthread_mutex_unlock(&s->lock);
	}
	json_out_end_object(out);
}
