#include "host/vm/tree.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"
#include "host/ssh/ssh_key.h"
#include "host/vm/merge.h"
#include "host/vm/tree_priv.h"

#define NS_PER_MS UINT64_C(1000000)

#define DESCRIPTORS_TO_MAKE_ONE 16u

int
tree_random(void *dst, size_t len, struct err *e)
{
	if (getrandom(dst, len, 0) != (ssize_t)len)
		return err_sys(e, -errno, "getrandom");
	return 0;
}

int
tree_new_id(char id[static VM_ID_LEN + 1], struct err *e)
{
	uint8_t bytes[VM_ID_LEN / 2];
	int r = tree_random(bytes, sizeof(bytes), e);

	if (r == 0)
		text_hex(id, bytes, sizeof(bytes));
	return r;
}

struct vm *
vm_new(struct tree *t)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	vm->handle = ++t->next_handle;
	vm->pidfd = -1;
	vm->refs = 1;
	return vm;
}

void
vm_unref(struct vm *vm)
{
	if (--vm->refs)
		return;
	vmmctl_free(vm->ctl);
	cleanup_close_fn(&vm->pidfd);
	free(vm->reset);
	free(vm);
}

const char *
vm_name(const struct vm *vm)
{
	return vm->row.alias[0] ? vm->row.alias : vm->row.id;
}

int
tree_list_vm(struct tree *t, struct vm *vm, struct err *e)
{
	if (t->n_vms == TREE_VMS_MAX)
		return err_set(e, -EBUSY,
			"there are %d VMs already, which is the most there can be: delete some",
			TREE_VMS_MAX);
	t->vms[t->n_vms++] = vm;
	vm->listed = true;
	vm->refs++;
	return 0;
}

/* Those of the VMs stay open, those of what makes one are closed again. VMs that could not be adopted yet
 * are to have theirs, too. */
static int
check_descriptors(struct tree *t, unsigned count, struct err *e)
{
	cleanup_close int next = fcntl(t->epoll_fd, F_DUPFD_CLOEXEC, 0);
	unsigned stay = count;

	for (unsigned i = 0; i < t->n_vms; i++)
		stay += t->vms[i]->unmet && !t->vms[i]->dead;
	if (next >= 0 && descriptors_left(next,
				 DESCRIPTORS_A_VM * stay + DESCRIPTORS_TO_MAKE_ONE))
		return 0;
	return err_set(e, -EMFILE,
		"pandod may not open enough files for %u more VM%s: delete some, or start pandod with a higher limit (ulimit -n, or LimitNOFILE= of a unit)",
		count, count == 1 ? "" : "s");
}

int
tree_enter_vm(struct tree *t, struct vm *vm, const char *alias, unsigned i,
	unsigned count, struct err *e)
{
	int r = i ? 0 : check_descriptors(t, count, e);

	if (r == 0)
		r = tree_new_id(vm->row.id, e);
	if (r == 0)
		r = alias[0] && count > 1
			    ? paths_format(vm->row.alias, sizeof(vm->row.alias), e,
				      "%s-%u", alias, i)
			    : paths_format(vm->row.alias, sizeof(vm->row.alias), e, "%s",
				      alias);
	if (r == 0)
		r = tree_random(vm->row.generation, sizeof(vm->row.generation), e);
	if (r == 0)
		r = tree_check_alias_free(t, vm->row.alias, e);
	return r < 0 ? r : tree_list_vm(t, vm, e);
}

void
tree_unlist_vm(struct tree *t, struct vm *vm)
{
	if (!vm->listed)
		return;
	for (unsigned i = 0; i < t->n_vms; i++)
		if (t->vms[i] == vm) {
			memmove(&t->vms[i], &t->vms[i + 1],
				(t->n_vms - i - 1) * sizeof(t->vms[0]));
			t->n_vms--;
			break;
		}
	for (unsigned i = 0; i < t->n_vms; i++)
		if (t->vms[i]->parent_handle == vm->handle) {
			t->vms[i]->parent_handle = 0;
			t->vms[i]->row.parent[0] =
				'\0'; /* the database does so by itself */
		}
	vm->listed = false;
	vm_unref(vm);
}

struct vm *
tree_by_handle(struct tree *t, uint64_t handle)
{
	for (unsigned i = 0; i < t->n_vms; i++)
		if (t->vms[i]->handle == handle)
			return t->vms[i];
	return NULL;
}

int
tree_find(struct tree *t, const char *name, struct vm **ret, struct err *e)
{
	struct vm *found = NULL;
	size_t len = strlen(name);
	char shown[VM_ALIAS_MAX * 4 + 1];

	for (unsigned i = 0; i < t->n_vms && !found; i++)
		if (strcmp(t->vms[i]->row.id, name) == 0)
			found = t->vms[i];
	for (unsigned i = 0; i < t->n_vms && !found; i++)
		if (len && strcmp(t->vms[i]->row.alias, name) == 0)
			found = t->vms[i];
	if (!found && len >= VM_ID_PREFIX_MIN)
		for (unsigned i = 0; i < t->n_vms; i++) {
			if (strncmp(t->vms[i]->row.id, name, len) != 0)
				continue;
			if (found)
				return err_set(e, -EINVAL,
					"\"%s\" is the beginning of several VMs' ids, among them %s and %s: give more digits",
					name, found->row.id, t->vms[i]->row.id);
			found = t->vms[i];
		}
	if (!found)
		return err_set(e, -ENOENT,
			"no VM named \"%s\"; `pando status` lists them",
			log_escape(shown, sizeof(shown), name, len));
	found->refs++;
	*ret = found;
	return 0;
}

/*
 * The queues. A VM's is those waiters that name it. They name it by its id, for a struct
 * vm is one life of a VM only.
 */

struct waiter {
	struct waiter *next;
	char id[VM_ID_LEN + 1];
};

/* Nobody has it, and nobody came before w (NULL: before who is not in the queue). */
static bool
is_free(struct tree *t, const struct vm *vm, const struct waiter *w)
{
	if (vm->op)
		return false;
	for (const struct waiter *o = t->waiters; o && o != w; o = o->next)
		if (strcmp(o->id, vm->row.id) == 0)
			return false;
	return true;
}

static int
is_busy(const struct vm *vm, const char *what, struct err *e)
{
	return err_set(e, -EBUSY, "vm \"%s\" is %s%s: try again when that is done",
		vm_name(vm), vm->op ? vm->op : "waited for by others", what);
}

/* Until it is w's turn, or w need not wait any more. *ret as of tree_find(). */
static int
wait_turn(struct tree *t, struct waiter *w, const struct progress *p, uint64_t until_ns,
	struct vm **ret, struct err *e)
{
	for (;;) {
		uint64_t now = io_now_ns(), end = until_ns;
		struct timespec until;
		struct vm *vm;
		int r = t->stopping ? err_set(e, -ECANCELED, "pandod is stopping") : 0;

		if (r == 0 && has_gone(p))
			r = err_set(e, -ECANCELED,
				"cancelled: who queued for vm \"%s\" has gone", w->id);
		if (r == 0 && tree_find(t, w->id, &vm, NULL) < 0)
			r = err_set(e, -ENOENT,
				"vm \"%s\" was deleted while this call waited for it",
				w->id);
		if (r < 0)
			return r;
		if (is_free(t, vm, w)) {
			*ret = vm;
			return 0;
		}
		if (now >= until_ns) {
			r = is_busy(
				vm, ", and was for all the time this call may wait", e);
			vm_unref(vm);
			return r;
		}
		vm_unref(vm);
		if (p->gone && now + GONE_LOOK_MS * NS_PER_MS < end)
			end = now + GONE_LOOK_MS * NS_PER_MS;
		until = (struct timespec){.tv_sec = (time_t)(end / 1000000000u),
			.tv_nsec = (long)(end % 1000000000u)};
		pthread_cond_timedwait(&t->changed, &t->lock, &until);
	}
}

uint64_t
busy_until(const struct progress *p)
{
	return io_now_ns() + (p ? p->busy_timeout_ms * NS_PER_MS : 0);
}

/* A VMM that swaps its disk's segments answers in time, or is given up. */
#define MERGE_WAIT_MS 60000u

static uint64_t
merge_until(void)
{
	return io_now_ns() + MERGE_WAIT_MS * NS_PER_MS;
}

bool
tree_try_claim(struct tree *t, struct vm *vm, const char *op)
{
	if (!is_free(t, vm, NULL))
		return false;
	vm->op = op;
	return true;
}

int
tree_claim_until(struct tree *t, const char *name, const char *op,
	const struct progress *p, uint64_t until_ns, struct vm **ret, struct err *e)
{
	struct waiter w = {0}, **at = &t->waiters;
	struct progress patient = {0};
	struct vm *vm;
	int r = tree_find(t, name, &vm, e);

	if (r < 0)
		return r;
	if (vm->op && strcmp(vm->op, TREE_OP_MERGING) == 0 && until_ns < merge_until()) {
		if (p)
			patient = *p;
		patient.busy_timeout_ms = MERGE_WAIT_MS;
		patient.say = NULL;
		until_ns = merge_until();
		p = &patient;
	}
	if (!is_free(t, vm, NULL)) {
		if (!p || !p->busy_timeout_ms)
			r = is_busy(vm, "", e);
		else if (!may_wait(t))
			r = is_busy(vm, ", and too many calls wait already", e);
		else
			say(p, "vm \"%s\" is %s: waiting for that", vm_name(vm),
				vm->op ? vm->op : "waited for by others");
		memcpy(w.id, vm->row.id, sizeof(w.id));
		vm_unref(vm);
		if (r < 0)
			return r;
		while (*at)
			at = &(*at)->next;
		*at = &w;
		t->n_waiters++;
		r = wait_turn(t, &w, p, until_ns, &vm, e);
		for (at = &t->waiters; *at != &w;)
			at = &(*at)->next;
		*at = w.next;
		t->n_waiters--;
		/* Who comes after one that gives up may have its turn now. */
		pthread_cond_broadcast(&t->changed);
		if (r < 0)
			return r;
	}
	vm->op = op;
	*ret = vm;
	return 0;
}

int
tree_claim(struct tree *t, const char *name, const char *op, const struct progress *p,
	struct vm **ret, struct err *e)
{
	return tree_claim_until(t, name, op, p, busy_until(p), ret, e);
}

int
tree_check_alias_free(struct tree *t, const char *alias, struct err *e)
{
	for (unsigned i = 0; alias[0] && i < t->n_vms; i++)
		if (strcmp(t->vms[i]->row.alias, alias) == 0)
			return err_set(e, -EEXIST,
				"alias \"%s\" is taken by VM %s (%s): choose another, or delete that VM",
				alias, t->vms[i]->row.id,
				vm_state_name(t->vms[i]->row.state));
	return 0;
}

int
vm_socket_path(const struct tree *t, const struct vm *vm, char dst[static PATHS_MAX])
{
	return paths_format(
		dst, PATHS_MAX, NULL, "%s/vms/%s/agent.sock", t->config.home, vm->row.id);
}

const char *
vm_called(const struct vm *vm, char *dst, size_t cap)
{
	if (vm->row.alias[0])
		snprintf(dst, cap, "%s (%s)", vm->row.alias, vm->row.id);
	else
		snprintf(dst, cap, "%s", vm->row.id);
	return dst;
}

void
say(const struct progress *p, const char *fmt, ...)
{
	char sentence[512];
	va_list ap;

	if (!p || !p->say)
		return;
	va_start(ap, fmt);
	vsnprintf(sentence, sizeof(sentence), fmt, ap);
	va_end(ap);
	p->say(p->ctx, sentence);
}

void
vm_enter_scope(struct tree *t, const struct vm *vm, bool found)
{
	char folder[PATHS_MAX];
	struct scope_vm v = {
		.id = vm->row.id,
		.alias = vm->row.alias,
		.parent = vm->row.parent,
		.folder = folder,
		.machine_id = vm->row.generation,
		.pid = (pid_t)vm->row.pid,
		.pidfd = vm->pidfd,
		.mem_mib = vm->row.mem_mib,
		.vcpus = vm->row.vcpus,
		.found = found,
	};

	if (t->config.scopes && paths_format(folder, sizeof(folder), NULL, "%s/vms/%s",
					t->config.home, vm->row.id) == 0)
		scopes_enter(t->config.scopes, &v);
}

const char *
tree_home(const struct tree *t)
{
	return t->config.home;
}

void
tree_scopes(struct tree *t, const char *key, struct json_out *out)
{
	scopes_json(t->config.scopes, key, out);
}

void
tree_replace_vm(struct tree *t, struct vm *old, struct vm *vm)
{
	for (unsigned i = 0; i < t->n_vms; i++) {
		if (t->vms[i] == old) {
			t->vms[i] = vm;
			vm->listed = true;
			vm->refs++;
		}
		if (t->vms[i]->parent_handle == old->handle)
			t->vms[i]->parent_handle = vm->handle;
	}
	old->listed = false;
	vm_unref(old);
}

int
check_not_gone(const struct progress *p, const char *what, struct err *e)
{
	return has_gone(p)
		       ? err_set(e, -ECANCELED,
				 "cancelled: who asked for %s has gone, and what was made of it is removed",
				 what)
		       : 0;
}

void
tell_made(const struct progress *p, const struct vm *vm)
{
	if (p && p->made)
		p->made(p->ctx, vm->row.id);
}

/*
 * Start and end of the tree itself.
 */

int
tree_open(const struct tree_config *config, struct tree **ret, struct err *e)
{
	struct tree *t = calloc(1, sizeof(*t));
	pthread_condattr_t attr;
	struct err why = {0};
	char path[PATHS_MAX];
	int r;

	if (!t)
		return err_set(e, -ENOMEM, "out of memory");
	t->config = *config;
	if (!t->config.handshake_timeout_ms)
		t->config.handshake_timeout_ms = TREE_HANDSHAKE_TIMEOUT_MS;
	pthread_mutex_init(&t->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&t->changed, &attr);
	pthread_cond_init(&t->sync_asked, NULL);
	pthread_cond_init(&t->merge_asked, &attr);
	t->segments_made = 1; /* those that the last pandod left */
	pthread_condattr_destroy(&attr);
	t->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	r = t->epoll_fd < 0 ? err_sys(e, -errno, "epoll_create1") : 0;
	if (r == 0)
		r = paths_format(path, sizeof(path), e, "%s/vms", config->home);
	if (r == 0)
		r = io_mkdir_p(path, 0700, e);
	if (r == 0)
		r = paths_format(path, sizeof(path), e, "%s/segments", config->home);
	if (r == 0)
		r = io_mkdir_p(path, 0700, e);
	/* Who would use it is told so then; everybody else needs none. */
	if (r == 0 && ssh_key_of_home(config->home, t->ssh_key, &why) < 0)
		log_warn("no SSH into VMs: %s", why.msg);
	if (r == 0)
		r = paths_format(path, sizeof(path), e, "%s/state.db", config->home);
	if (r == 0)
		r = db_open(path, &t->db, e);
	if (r == 0)
		r = tree_adopt(t, e);
	if (r == 0) {
		r = -pthread_create(&t->health_monitor, NULL, tree_health_monitor, t);
		if (r < 0)
			err_sys(e, r, "making a thread");
		else
			t->has_health_monitor = true;
	}
	if (r == 0)
		r = tree_sync_start(t, e);
	if (r == 0)
		r = merge_start(t, e);
	if (r < 0) {
		tree_close(t);
		return r;
	}
	adopt_wait(t);
	*ret = t;
	return 0;
}

void
tree_stop(struct tree *t)
{
	pthread_mutex_lock(&t->lock);
	t->stopping = true;
	adopt_cancel(t);
	pthread_cond_broadcast(&t->changed);
	pthread_cond_signal(&t->sync_asked);
	pthread_cond_signal(&t->merge_asked);
	pthread_mutex_unlock(&t->lock);
}

void
tree_wait_stopped(struct tree *t)
{
	if (t->has_health_monitor)
		pthread_join(t->health_monitor, NULL);
	t->has_health_monitor = false;
	reports_watch_close(t);
	tree_wait_reboots(t);
	if (t->has_merger)
		pthread_join(t->merger, NULL);
	t->has_merger = false;
	if (t->has_syncer)
		pthread_join(t->syncer, NULL);
	t->has_syncer = false;
}

void
tree_close(struct tree *t)
{
	if (!t)
		return;
	tree_stop(t);
	tree_wait_stopped(t);
	while (t->n_vms)
		tree_unlist_vm(t, t->vms[t->n_vms - 1]);
	free(t->strays);
	db_close(t->db);
	cleanup_close_fn(&t->epoll_fd);
	pthread_cond_destroy(&t->merge_asked);
	pthread_cond_destroy(&t->sync_asked);
	pthread_cond_destroy(&t->changed);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

/*
 * What is done to one VM at once.
 */

int
tree_alias(struct tree *t, const char *name, const struct alias_request *q,
	struct json_out *out, struct err *e)
{
	struct vm *vm;
	char old[VM_ALIAS_MAX + 1];
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r < 0)
		goto unlock;
	if (strcmp(vm->row.alias, q->alias) != 0) {
		r = tree_check_alias_free(t, q->alias, e);
		if (r == 0) {
			memcpy(old, vm->row.alias, sizeof(old));
			memcpy(vm->row.alias, q->alias, sizeof(old));
			r = db_update(t->db, &vm->row, e);
			if (r < 0)
				memcpy(vm->row.alias, old, sizeof(old));
		}
		if (r == 0)
			log_info("vm %s: alias \"%s\", before \"%s\"", vm->row.id,
				vm->row.alias, old);
	}
	if (r == 0)
		vm_json(t, vm, NULL, out, NULL, NULL);
	vm_unref(vm);
unlock:
	pthread_mutex_unlock(&t->lock);
	return r;
}

int
vm_check_met(const struct vm *vm, struct err *e)
{
	if (!vm->unmet)
		return 0;
	return err_set(e, -EBUSY,
		"vm \"%s\": its VMM, process %lld, does not answer this pandod yet: try again, or end it with `pando stop --force`",
		vm_name(vm), (long long)vm->row.pid);
}

void
vm_count_pause(struct vm *vm)
{
	uint64_t now = io_now_ns();

	if (vm->row.state == VM_PAUSED) {
		if (!vm->paused_at_ns)
			vm->paused_at_ns = now;
	} else if (vm->paused_at_ns) {
		vm->paused_ns += now - vm->paused_at_ns;
		vm->paused_at_ns = 0;
	}
}

void
vm_note_disk(struct tree *t, struct vm *vm)
{
	char msg[VMMCTL_TEXT_MAX];
	struct err e;
	const bool full = vm->ctl && vmmctl_disk_full(vm->ctl, msg, sizeof(msg));
	bool logs;

	if (vm->dead || full == vm->disk_full || !vm_state_lives(vm->row.state))
		return;
	/* Paused by a person: it stays so. */
	if (full && vm->row.state == VM_PAUSED)
		return;
	vm->disk_full = full;
	vm->disk_log.burst = 4;
	logs = log_allowed(&vm->disk_log);
	if (full) {
		vm->row.state = VM_PAUSED;
		snprintf(vm->row.reason, sizeof(vm->row.reason), "%s", msg);
		if (logs)
			log_warn("vm %s (%s): paused: %s", vm->row.id, vm_name(vm),
				vm->row.reason);
	} else {
		vm->row.state = vm->row.answered ? VM_RUNNING : VM_STARTING;
		vm->row.reason[0] = '\0';
		if (logs)
			log_info("vm %s (%s): its disk has room again; it goes on",
				vm->row.id, vm_name(vm));
	}
	vm_count_pause(vm);
	/* Where state.db has no room either, it is what a restart finds out anew. */
	if (db_update(t->db, &vm->row, &e) < 0)
		log_warn("vm %s: %s", vm->row.id, e.msg);
	pthread_cond_broadcast(&t->changed);
}

static int
pause_or_resume(struct tree *t, const char *name, bool pause, const struct progress *p,
	struct json_out *out, struct err *e)
{
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, pause ? "being paused" : "being resumed", p, &vm, e);
	if (r < 0) {
		pthread_mutex_unlock(&t->lock);
		return r;
	}
	r = vm_check_met(vm, e);
	if (r < 0) {
		;
	} else if (!vm_state_lives(vm->row.state) || !vm->ctl) {
		r = err_set(e, -EBUSY, "vm \"%s\" is %s: there is nothing to %s",
			vm_name(vm), vm_state_name(vm->row.state),
			pause ? "pause" : "resume");
	} else if ((vm->row.state == VM_PAUSED) != pause || vm->disk_full) {
		pthread_mutex_unlock(&t->lock);
		r = vmmctl_command(vm->ctl, pause ? VMM_PAUSE : VMM_RESUME,
			t->config.answer_timeout_ms, e);
		pthread_mutex_lock(&t->lock);
		if (r < 0) {
			err_wrap(e, r, "vm \"%s\"", vm_name(vm));
		} else if (!vm->dead) {
			vm->row.state = pause		   ? VM_PAUSED
					: vm->row.answered ? VM_RUNNING
							   : VM_STARTING;
			vm->disk_full = false;
			vm->row.reason[0] = '\0';
			vm_count_pause(vm);
			r = db_update(t->db, &vm->row, e);
			log_info("vm %s (%s): %s", vm->row.id, vm_name(vm),
				pause ? "paused" : "resumed");
			vm_note_disk(t, vm); /* it may be full still */
		}
	}
	vm->op = NULL;
	if (r == 0)
		vm_json(t, vm, NULL, out, NULL, NULL);
	pthread_cond_broadcast(&t->changed);
	vm_unref(vm);
	pthread_mutex_unlock(&t->lock);
	return r;
}

int
tree_pause(struct tree *t, const char *name, const struct progress *p,
	struct json_out *out, struct err *e)
{
	return pause_or_resume(t, name, true, p, out, e);
}

int
tree_resume(struct tree *t, const char *name, const struct progress *p,
	struct json_out *out, struct err *e)
{
	return pause_or_resume(t, name, false, p, out, e);
}
