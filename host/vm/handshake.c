#include "host/vm/handshake.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/agent/agent_client.h"

#define NS_PER_MS 1000000ull
/* Labels (each twice as long as JSON, at most), names, numbers. */
#define REST_OF_HANDSHAKE \
	(VM_LABELS_MAX * 2 * (VM_LABEL_KEY_MAX + VM_LABEL_VALUE_MAX + 8) + 1024)
/* A line feed takes six bytes as JSON. */
_Static_assert(6 * ENV_BYTES_MAX + REST_OF_HANDSHAKE <= AGENT_REQUEST_MAX,
	"every environment can be told to a guest");
/* One round of the health monitor, without a new step: the handshake goes on in the guest, and
 * the next round asks again. */
#define ROUND_MS 2000
/* A parent that is told while somebody waits for its children. */
#define PARENT_MS 5000

/* As a host name: what an alias may have beyond that becomes "-". */
static void
host_name_of(const struct vm_row *row, char dst[static AGENT_HOST_NAME_MAX + 1])
{
	size_t n;

	if (!row->alias[0]) {
		snprintf(dst, AGENT_HOST_NAME_MAX + 1, "pando-%s", row->id);
		return;
	}
	snprintf(dst, AGENT_HOST_NAME_MAX + 1, "%s", row->alias);
	for (char *s = dst; *s; s++)
		if (*s == '_' || (*s == '.' && s[1] == '.'))
			*s = '-';
	for (n = strlen(dst); n && strchr(".-", dst[n - 1]); n--)
		dst[n - 1] = '\0';
}

/* What is said; a copy, for the row may change meanwhile. */
struct said {
	struct vm_row row;
	unsigned resets;
	char host_name[AGENT_HOST_NAME_MAX + 1];
	uint8_t entropy[AGENT_ENTROPY_MAX];
	struct env env; /* owned */
	const char *labels[2 * VM_LABELS_MAX + 1];
};

static void
said_done(struct said **s)
{
	if (!*s)
		return;
	explicit_bzero((*s)->entropy, sizeof((*s)->entropy));
	env_done(&(*s)->env);
	free(*s);
}

/* Called with the lock. */
static int
prepare(struct tree *t, const struct vm *vm, struct said *s, struct err *e)
{
	cleanup_env struct env own = {0};
	int r = 0;

	s->row = vm->row;
	s->resets = vm->resets;
	host_name_of(&s->row, s->host_name);
	for (unsigned i = 0; i < s->row.labels.n; i++) {
		s->labels[2 * i] = s->row.labels.items[i].key;
		s->labels[2 * i + 1] = s->row.labels.items[i].value;
	}
	if (!s->row.answered) {
		r = db_env_get(t->db, "", &s->env, e);
		if (r == 0)
			r = db_env_get(t->db, s->row.id, &own, e);
		if (r == 0)
			r = env_merge(&s->env, &own, e);
	}
	return r < 0 ? r : tree_random(s->entropy, sizeof(s->entropy), e);
}

static void
log_ack(const struct said *s, const struct vm *vm, const struct agent_ack *ack)
{
	char text[512];
	size_t n = 0;

	text[0] = '\0';
	for (unsigned i = 0; i < ack->n_steps && n < sizeof(text); i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n, "%s%s %llu",
			i ? ", " : "", ack->steps[i].name,
			(unsigned long long)ack->steps[i].us);
	log_info("vm %s (%s): %s after %llu us in the guest (%s)", vm->row.id,
		vm_name(vm),
		s->row.answered ? "the parent of a branch or commit, it is reseeded"
				: "it has taken its identity",
		(unsigned long long)ack->total_us, text);
}

/* It has acknowledged the generation it has. Locked. */
static bool
is_acknowledged(const struct vm *vm)
{
	return vm->row.answered && memcmp(vm->row.acknowledged, vm->row.generation,
					   sizeof(vm->row.acknowledged)) == 0;
}

struct stepping {
	struct tree *t;
	struct vm *vm;
};

/* The guest has come to that step; it may have been in it when another round asked. */
static void
note_step(void *stepping, const char *step)
{
	const struct stepping *s = stepping;
	struct vm *vm = s->vm;

	pthread_mutex_lock(&s->t->lock);
	if (strcmp(vm->handshake_step, step) != 0) {
		snprintf(vm->handshake_step, sizeof(vm->handshake_step), "%s", step);
		vm->handshake_steps++;
		vm->handshake_step_ns = io_now_ns();
	}
	pthread_mutex_unlock(&s->t->lock);
}

/* None is under way. Locked. */
static void
forget_steps(struct vm *vm)
{
	vm->handshake_began_ns = vm->handshake_step_ns = 0;
	vm->handshake_steps = 0;
	vm->handshake_step[0] = '\0';
}

/* Its guest is in one step for longer than one may take, or in all of them. Locked. */
static bool
is_late(const struct tree *t, const struct vm *vm)
{
	uint64_t limit = (uint64_t)t->config.handshake_timeout_ms * NS_PER_MS;
	uint64_t began = vm->handshake_began_ns, moved = began, now = io_now_ns();

	if (vm->handshake_step_ns > moved)
		moved = vm->handshake_step_ns;
	return now - moved > limit || now - began > AGENT_HANDSHAKE_CEILING * limit;
}

int
vm_handshake(struct tree *t, struct vm *vm, int timeout_ms, int (*cancel)(void *ctx),
	void *ctx, struct err *e)
{
	__attribute__((cleanup(said_done))) struct said *s = calloc(1, sizeof(*s));
	struct stepping stepping = {t, vm};
	struct agent_ack ack = {0};
	char path[PATHS_MAX];
	int r = vm_socket_path(t, vm, path);
	bool done;

	if (!s)
		return err_set(e, -ENOMEM, "out of memory");
	if (r < 0)
		return err_set(e, r, "the path of its socket is too long");
	pthread_mutex_lock(&t->lock);
	/* By another since the caller looked, while the health monitor pinged it, say. */
	done = vm->row.state == VM_RUNNING && is_acknowledged(vm);
	if (done) {
		pthread_mutex_unlock(&t->lock);
		return 0;
	}
	r = vm->in_handshake ? err_set(e, -EBUSY,
				       "another identity handshake with it is under way")
			     : prepare(t, vm, s, e);
	if (r == 0)
		vm->in_handshake = true;
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;

	struct agent_handshake h = {
		.id = s->row.id,
		.name = s->row.alias[0] ? s->row.alias : s->row.id,
		.host_name = s->host_name,
		.generation = s->row.generation,
		.entropy = s->entropy,
		.parent = s->row.answered,
		.env = &s->env,
		.labels = s->labels,
		.ssh_key = t->ssh_key[0] ? t->ssh_key : NULL,
		.on_step = note_step,
		.step_ctx = &stepping,
	};

	r = agent_handshake(path, &h, timeout_ms, cancel, ctx, &ack, e);
	pthread_mutex_lock(&t->lock);
	vm->in_handshake = false;
	/* It went back to a commit meanwhile: who answered is no more. */
	if (vm->resets != s->resets)
		r = err_set(e, -EAGAIN, "the VM was reset meanwhile");
	if (r == 0) {
		log_ack(s, vm, &ack);
		memcpy(vm->row.acknowledged, s->row.generation,
			sizeof(vm->row.acknowledged));
		vm->probes = 0;
		forget_steps(vm);
		if (!s->row.answered) {
			memcpy(vm->row.host_key, ack.host_key, sizeof(ack.host_key));
			vm->ack = ack;
		}
		vm->row.answered = true;
		if (vm->row.state == VM_STARTING)
			vm->row.state = VM_RUNNING;
		/* One that was deleted meanwhile has no row. */
		if (vm->listed)
			r = db_update(t->db, &vm->row, e);
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return r;
}

bool
vm_handshake_due(const struct vm *vm)
{
	if (vm->op || vm->dead || vm->in_handshake || vm->kill_reason[0])
		return false;
	if (vm->row.state == VM_STARTING)
		return true;
	return vm->row.state == VM_RUNNING && vm->row.answered && !is_acknowledged(vm);
}

/* Not one who was told and did not do it, but one who cannot be asked (yet). */
static bool
not_there(int r)
{
	return r == -ECONNREFUSED || r == -ENOTCONN || r == -ENOENT || r == -EPIPE ||
	       r == -ECONNRESET || r == -EAGAIN || r == -EBUSY;
}

void
vm_handshake_watch(struct tree *t, struct vm *vm)
{
	int ping_ms = 200 << (vm->probes > 3 ? 3 : vm->probes);
	uint64_t pause_ms = 500u << (vm->probes > 5 ? 5 : vm->probes);
	char path[PATHS_MAX];
	struct err e = {0};
	bool told = false;
	int r;

	vm->probes++;
	vm->refs++;
	pthread_mutex_unlock(&t->lock);
	r = vm_socket_path(t, vm, path);
	if (r == 0)
		r = agent_ping(path, ping_ms, NULL, &e);
	if (r == 0) {
		told = true;
		pthread_mutex_lock(&t->lock);
		if (!vm->handshake_began_ns)
			vm->handshake_began_ns = io_now_ns();
		pthread_mutex_unlock(&t->lock);
		r = vm_handshake(t, vm, ROUND_MS, NULL, NULL, &e);
	}
	pthread_mutex_lock(&t->lock);
	if (r < 0 && told && !vm->dead && vm->listed) {
		bool late = is_late(t, vm);
		bool refused = r != -ETIMEDOUT && !not_there(r);

		if (!vm->row.answered && !vm->op && !vm->kill_reason[0] &&
			(late || refused)) {
			snprintf(vm->kill_reason, sizeof(vm->kill_reason),
				"ended by pandod: the identity handshake failed: %.400s",
				e.msg);
			log_warn("vm %s (%s): %s", vm->row.id, vm_name(vm),
				vm->kill_reason);
			if (vm->pidfd >= 0)
				process_kill(vm->pidfd);
		} else if (refused && vm->probes == 1) {
			log_warn(
				"vm %s (%s): it was branched or committed, and its random numbers were not changed since: %s",
				vm->row.id, vm_name(vm), e.msg);
		}
	}
	vm->probe_at_ns = io_now_ns() + pause_ms * NS_PER_MS;
	vm_unref(vm);
}

/*
 * Parents.
 */

static int
parent_cancel(void *parent)
{
	struct handshake_parent *p = parent;
	int r;

	pthread_mutex_lock(&p->t->lock);
	r = p->vm->dead ? -ESRCH : p->t->stopping ? -ECANCELED : 0;
	pthread_mutex_unlock(&p->t->lock);
	return r;
}

static void *
parent_main(void *parent)
{
	struct handshake_parent *p = parent;
	struct err e = {0};

	if (vm_handshake(p->t, p->vm, PARENT_MS, parent_cancel, p, &e) < 0)
		log_info("vm %s: branched, and not reseeded yet: %s", p->vm->row.id,
			e.msg);
	return NULL;
}

void
handshake_parent_begin(struct handshake_parent *p, struct tree *t, struct vm *vm)
{
	*p = (struct handshake_parent){.t = t};
	pthread_mutex_lock(&t->lock);
	if (vm_handshake_due(vm) && vm->row.answered) {
		p->vm = vm;
		vm->refs++;
	}
	pthread_mutex_unlock(&t->lock);
	if (p->vm && pthread_create(&p->thread, NULL, parent_main, p) != 0) {
		pthread_mutex_lock(&t->lock);
		vm_unref(p->vm);
		pthread_mutex_unlock(&t->lock);
		p->vm = NULL; /* the health monitor sees to it */
	}
}

void
handshake_parent_end(struct handshake_parent *p, const struct progress *progress)
{
	if (!p->vm)
		return;
	pthread_join(p->thread, NULL);
	pthread_mutex_lock(&p->t->lock);
	if (vm_handshake_due(p->vm))
		say(progress, "VM %s goes on and has not been reseeded yet",
			vm_name(p->vm));
	vm_unref(p->vm);
	p->vm = NULL;
	pthread_mutex_unlock(&p->t->lock);
}

/*
 * Environments.
 */

int
vm_environment_enter(struct tree *t, const struct vm *vm, const struct env *given,
	unsigned index, struct err *e)
{
	cleanup_env struct env own = {0}, all = {0};
	int r = 0;

	for (size_t i = 0; i < given->n && r == 0; i++) {
		cleanup_free char *entry = env_expand(given->v[i], index, vm->row.id);

		r = entry ? env_set(&own, entry, e)
			  : err_set(e, -ENOMEM, "out of memory");
	}
	/* Too much is better known now than when the guest is to be told. */
	if (r == 0)
		r = db_env_get(t->db, "", &all, e);
	if (r == 0)
		r = env_merge(&all, &own, e);
	return r < 0 || !own.n ? r : db_env_put(t->db, vm->row.id, &own, e);
}

static void
env_json(const struct env *env, struct json_out *out)
{
	char name[ENV_NAME_MAX + 1];

	json_out_object(out, NULL);
	json_out_object(out, "environment");
	for (size_t i = 0; i < env->n; i++) {
		size_t len = strcspn(env->v[i], "=");

		snprintf(name, sizeof(name), "%.*s", (int)len, env->v[i]);
		json_out_str(out, name, env->v[i] + len + 1);
	}
	json_out_end_object(out);
	json_out_end_object(out);
}

int
tree_environment(struct tree *t, struct json_out *out, struct err *e)
{
	cleanup_env struct env env = {0};
	int r;

	pthread_mutex_lock(&t->lock);
	r = db_env_get(t->db, "", &env, e);
	pthread_mutex_unlock(&t->lock);
	if (r == 0)
		env_json(&env, out);
	return r;
}

int
tree_environment_change(struct tree *t, const struct environment_request *q,
	struct json_out *out, struct err *e)
{
	cleanup_env struct env env = {0};
	int r;

	pthread_mutex_lock(&t->lock);
	r = db_env_get(t->db, "", &env, e);
	for (size_t i = 0; i < q->n_remove && r == 0; i++)
		if (!env_unset(&env, q->remove[i]))
			r = err_set(e, -ENOENT,
				"no environment variable \"%.64s\" is set; `pando env list` lists them",
				q->remove[i]);
	if (r == 0)
		r = env_merge(&env, &q->set, e);
	if (r == 0)
		r = db_begin(t->db, e);
	if (r == 0) {
		r = db_env_put(t->db, "", &env, e);
		if (r == 0)
			r = db_commit(t->db, e);
		if (r < 0)
			db_rollback(t->db);
	}
	pthread_mutex_unlock(&t->lock);
	if (r == 0)
		env_json(&env, out);
	return r;
}
