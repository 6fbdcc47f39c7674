#include "host/tree.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/agent_client.h"
#include "host/hello.h"
#include "host/ssh_key.h"

#define NS_PER_MS 1000000ull

/* Between the end of a control socket and that of its process, when the process is
 * ending. */
#define CLOSED_GRACE_NS (2000 * NS_PER_MS)
#define STATS_TIMEOUT_MS 1000

/* The event loop's name for one of a VM's two descriptors. */
#define EVENT_CONTROL 1u
#define EVENT_OF(handle, what) ((handle) << 1 | (what))

static void *tender_main(void *tree);

int
tree_random(void *dst, size_t len, struct err *e)
{
	if (getrandom(dst, len, 0) != (ssize_t)len)
		return err_sys(e, -errno, "getrandom");
	return 0;
}

static void
hex(char *dst, const uint8_t *src, size_t len)
{
	for (size_t i = 0; i < len; i++)
		snprintf(dst + 2 * i, 3, "%02x", src[i]);
}

int
tree_new_id(char id[static VM_ID_LEN + 1], struct err *e)
{
	uint8_t bytes[VM_ID_LEN / 2];
	int r = tree_random(bytes, sizeof(bytes), e);

	if (r == 0)
		hex(id, bytes, sizeof(bytes));
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
			"there are %d VMs already, which is the most there can be: "
			"delete some",
			TREE_VMS_MAX);
	t->vms[t->n_vms++] = vm;
	vm->listed = true;
	vm->refs++;
	return 0;
}

int
tree_enter_vm(struct tree *t, struct vm *vm, const char *alias, unsigned i,
	unsigned count, struct err *e)
{
	int r = tree_new_id(vm->row.id, e);

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
					"\"%s\" is the beginning of several VMs' ids, "
					"among them %s and %s: "
					"give more digits",
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

int
tree_claim(
	struct tree *t, const char *name, const char *op, struct vm **ret, struct err *e)
{
	struct vm *vm;
	int r = tree_find(t, name, &vm, e);

	if (r < 0)
		return r;
	if (vm->op) {
		r = err_set(e, -EBUSY, "vm \"%s\" is %s: try again when that is done",
			vm_name(vm), vm->op);
		vm_unref(vm);
		return r;
	}
	vm->op = op;
	*ret = vm;
	return 0;
}

int
tree_check_alias_free(struct tree *t, const char *alias, struct err *e)
{
	for (unsigned i = 0; alias[0] && i < t->n_vms; i++)
		if (strcmp(t->vms[i]->row.alias, alias) == 0)
			return err_set(e, -EEXIST,
				"alias \"%s\" is taken by VM %s (%s): choose another, or "
				"delete that VM",
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

/*
 * Events.
 */

/* Ends a VM whose VMM has lied. Called with the lock. */
static void
end_liar(struct vm *vm, const char *why)
{
	vm->closed_ns = io_now_ns();
	if (vm->dead || vm->pidfd < 0 || vm->kill_reason[0])
		return;
	snprintf(vm->kill_reason, sizeof(vm->kill_reason),
		"ended by pandod: its VMM broke the control protocol: %.300s", why);
	log_warn("vm %s: %s", vm->row.id, vm->kill_reason);
	process_kill(vm->pidfd);
}

/* vmmctl's callback: an exchange is over, the one-shot watch of the socket is armed
 * again. */
static void
arm_control(void *ctx, uint64_t handle)
{
	struct tree *t = ctx;
	struct epoll_event ev = {.events = EPOLLIN | EPOLLONESHOT};
	char why[VMMCTL_TEXT_MAX];
	struct vm *vm;

	pthread_mutex_lock(&t->lock);
	vm = tree_by_handle(t, handle);
	if (vm && !vm->dead && vm->ctl && !vm->closed_ns) {
		ev.data.u64 = EVENT_OF(handle, EVENT_CONTROL);
		if (vmmctl_broken(vm->ctl, why, sizeof(why)))
			end_liar(vm, why);
		else
			epoll_ctl(t->epoll_fd, EPOLL_CTL_MOD, vmmctl_fd(vm->ctl), &ev);
	}
	pthread_mutex_unlock(&t->lock);
}

int
tree_watch(struct tree *t, struct vm *vm, struct err *e)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = EVENT_OF(vm->handle, 0)};

	if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, vm->pidfd, &ev) < 0)
		return err_sys(e, -errno, "watching the process of VM %s", vm->row.id);
	if (!vm->ctl)
		return 0;
	vmmctl_on_idle(vm->ctl, arm_control, t, vm->handle);
	ev.events = EPOLLIN | EPOLLONESHOT;
	ev.data.u64 = EVENT_OF(vm->handle, EVENT_CONTROL);
	if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, vmmctl_fd(vm->ctl), &ev) < 0) {
		int r = -errno;

		epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, vm->pidfd, NULL);
		return err_sys(e, r, "watching the control socket of VM %s", vm->row.id);
	}
	return 0;
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

	if (t->scopes && paths_format(folder, sizeof(folder), NULL, "%s/vms/%s",
				 t->config.home, vm->row.id) == 0)
		scopes_enter(t->scopes, &v);
}

/* Why it ended, in a sentence, from its last words, what pandod did, and what the kernel
 * says. */
static enum vm_state
explain_end(struct vm *vm, const siginfo_t *si, char *dst, size_t cap)
{
	char msg[VMMCTL_TEXT_MAX];
	uint32_t reason;

	if (vm->kill_reason[0]) {
		snprintf(dst, cap, "%s", vm->kill_reason);
		return vm->stopped_by_force ? VM_STOPPED : VM_FAILED;
	}
	if (vm->ctl && vmmctl_exiting(vm->ctl, &reason, msg, sizeof(msg))) {
		const char *what = "the VMM ended";

		switch (reason) {
		case VMM_EXIT_POWER_OFF:
			snprintf(dst, cap, "the guest powered off");
			return VM_STOPPED;
		case VMM_EXIT_RESET:
			what = "the guest reset itself (a reboot, or a panic)";
			break;
		case VMM_EXIT_QUIT:
			what = "the VMM was told to quit";
			break;
		case VMM_EXIT_GUEST_FAULT:
			what = "the guest did what no machine can do";
			break;
		case VMM_EXIT_HOST_FAULT:
			what = "a call of the host failed";
			break;
		}
		snprintf(dst, cap, "%s%s%.400s", what, msg[0] ? ": " : "", msg);
		return VM_FAILED;
	}
	if (si->si_pid && (si->si_code == CLD_KILLED || si->si_code == CLD_DUMPED))
		snprintf(dst, cap, "the VMM was killed by signal %d (%s)", si->si_status,
			sigabbrev_np(si->si_status) ? sigabbrev_np(si->si_status) : "?");
	else if (si->si_pid)
		snprintf(dst, cap,
			"the VMM exited with status %d; its vmm.log may say why",
			si->si_status);
	else
		snprintf(dst, cap,
			"the VMM was killed, or ended without a word; its vmm.log may "
			"say why");
	return VM_FAILED;
}

static void
process_ended(struct tree *t, struct vm *vm)
{
	siginfo_t si = {0};
	struct err e;

	/* A child of ours (started by us, or fallen to us as the subreaper); else its
	 * parent VMM or init has waited for it: ECHILD, and nobody can tell its status.
	 */
	while (waitid(P_PIDFD, (id_t)vm->pidfd, &si, WEXITED | WNOHANG) < 0 &&
		errno == EINTR)
		;
	/* The process is gone, so whoever holds the connection is about to let go. */
	if (vm->ctl)
		vmmctl_drain(vm->ctl, true, NULL);

	pthread_mutex_lock(&t->lock);
	epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, vm->pidfd, NULL);
	if (vm->ctl)
		epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, vmmctl_fd(vm->ctl), NULL);
	cleanup_close_fn(&vm->pidfd);
	vm->pidfd = -1;
	vm->dead = true;
	scopes_leave(t->scopes, vm->row.id);
	if (vm_state_lives(vm->row.state) && !vm->removing) {
		vm->row.state =
			explain_end(vm, &si, vm->row.reason, sizeof(vm->row.reason));
		vm->row.pid = 0;
		vm->row.pid_start = 0;
		if (db_update(t->db, &vm->row, &e) < 0)
			log_err("vm %s: %s", vm->row.id, e.msg);
		log_info("vm %s (%s): %s: %s", vm->row.id, vm_name(vm),
			vm_state_name(vm->row.state), vm->row.reason);
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

static void
control_readable(struct tree *t, struct vm *vm)
{
	struct err e;
	int r = vmmctl_drain(vm->ctl, false, &e);

	if (r == -EAGAIN)
		return; /* a call is under way; it takes the message and arms the watch
			   again */
	if (r == 0) {
		arm_control(t, vm->handle);
		return;
	}
	pthread_mutex_lock(&t->lock);
	vm->closed_ns = io_now_ns();
	if (r != -EPIPE)
		end_liar(vm, e.msg);
	pthread_cond_broadcast(&t->changed); /* the tender looks at closed_ns */
	pthread_mutex_unlock(&t->lock);
}

const char *
tree_home(const struct tree *t)
{
	return t->config.home;
}

void
tree_scopes(struct tree *t, const char *key, struct json_out *out)
{
	scopes_json(t->scopes, key, out);
}

int
tree_fd(const struct tree *t)
{
	return t->epoll_fd;
}

void
tree_dispatch(struct tree *t)
{
	struct epoll_event events[64];
	int n = epoll_wait(t->epoll_fd, events, 64, 0);

	for (int i = 0; i < n; i++) {
		struct vm *vm;

		pthread_mutex_lock(&t->lock);
		vm = tree_by_handle(t, events[i].data.u64 >> 1);
		if (vm && vm->dead)
			vm = NULL;
		if (vm)
			vm->refs++;
		pthread_mutex_unlock(&t->lock);
		if (!vm)
			continue; /* it went with an earlier event of this batch */
		if (events[i].data.u64 & EVENT_CONTROL)
			control_readable(t, vm);
		else
			process_ended(t, vm);
		pthread_mutex_lock(&t->lock);
		vm_unref(vm);
		pthread_mutex_unlock(&t->lock);
	}
}

static struct timespec
deadline_in(uint64_t ms)
{
	uint64_t ns = io_now_ns() + ms * NS_PER_MS;

	return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u),
		.tv_nsec = (long)(ns % 1000000000u)};
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
tree_wait_dead(struct tree *t, struct vm *vm, int timeout_ms)
{
	struct timespec until = deadline_in((uint64_t)timeout_ms);

	while (!vm->dead)
		if (pthread_cond_timedwait(&t->changed, &t->lock, &until) == ETIMEDOUT)
			return vm->dead ? 0 : -ETIMEDOUT;
	return 0;
}

/*
 * The tender: asks the agents of VMs that nobody waits for, and ends a VMM that has
 * closed its control socket and lives on, which no sound one does.
 */

static void *
tender_main(void *tree)
{
	struct tree *t = tree;

	pthread_mutex_lock(&t->lock);
	while (!t->stopping) {
		uint64_t now = io_now_ns(), next = now + 60000 * NS_PER_MS;
		struct timespec until;
		struct vm *due = NULL;

		for (unsigned i = 0; i < t->n_vms; i++) {
			struct vm *vm = t->vms[i];

			if (vm->closed_ns && !vm->dead && vm->pidfd >= 0 &&
				!vm->kill_reason[0]) {
				if (now >= vm->closed_ns + CLOSED_GRACE_NS) {
					snprintf(vm->kill_reason, sizeof(vm->kill_reason),
						"ended by pandod: its VMM closed the "
						"control socket");
					process_kill(vm->pidfd);
				} else if (vm->closed_ns + CLOSED_GRACE_NS < next) {
					next = vm->closed_ns + CLOSED_GRACE_NS;
				}
			}
			if (!vm_hello_due(vm))
				continue;
			if (vm->probe_at_ns < next) {
				next = vm->probe_at_ns;
				due = vm;
			}
		}
		if (due && next <= now) {
			vm_hello_tend(t, due);
			continue;
		}
		until = deadline_in(next > now ? (next - now) / NS_PER_MS + 1 : 1);
		pthread_cond_timedwait(&t->changed, &t->lock, &until);
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/*
 * Waiting for an agent.
 */

int
agent_wait_cancel(void *agent_wait)
{
	struct agent_wait *w = agent_wait;
	int r = 0;

	pthread_mutex_lock(&w->t->lock);
	if (w->vm->dead)
		r = -ESRCH;
	else if (w->t->stopping || (w->give_up && *w->give_up))
		r = -ECANCELED;
	pthread_mutex_unlock(&w->t->lock);
	return r;
}

int
vm_wait_agent(struct tree *t, struct vm *vm, const bool *give_up, struct err *e)
{
	struct agent_wait w = {.t = t, .vm = vm, .give_up = give_up};
	char path[PATHS_MAX];
	struct err why = {0};
	bool answers = false;
	int r = vm_socket_path(t, vm, path);

	if (r == 0)
		r = agent_wait_ready(
			path, t->config.agent_timeout_ms, agent_wait_cancel, &w, &why);
	answers = r == 0;
	/* The tender may be telling it: then it is waited for. */
	while (answers &&
		(r = vm_hello(t, vm, t->config.hello_timeout_ms, agent_wait_cancel, &w,
			 &why)) == -EBUSY &&
		(r = agent_wait_cancel(&w)) == 0) {
		struct timespec pause = {.tv_nsec = 5000000};

		nanosleep(&pause, NULL);
	}
	/* A VMM that dies takes its socket along; the pidfd says so a moment later. */
	pthread_mutex_lock(&t->lock);
	if (r == -ENOTCONN || r == -ENOENT)
		tree_wait_dead(t, vm, 2000);
	if (vm->dead) {
		r = err_set(e, -ESRCH,
			"vm \"%s\" ended before its agent answered: %.350s", vm_name(vm),
			vm->row.reason);
	} else if (r < 0 && answers && r != -ECANCELED) {
		r = err_set(e, r, "vm \"%s\" did not become who it is: %.400s",
			vm_name(vm), why.msg);
	} else if (r == -ETIMEDOUT) {
		r = err_set(e, r, "vm \"%s\": its agent did not answer within %d s",
			vm_name(vm), t->config.agent_timeout_ms / 1000);
	} else if (r == -ECANCELED) {
		r = err_set(e, r,
			"pandod stops; vm \"%s\" goes on, its agent has not answered yet",
			vm_name(vm));
	} else if (r < 0) {
		r = err_set(e, r, "vm \"%s\": its agent does not answer: %.350s",
			vm_name(vm), why.msg);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

/*
 * Start and end of the tree itself.
 */

/* What an earlier pandod left unfinished in the store goes when it is opened. One that
 * cannot be opened stands in nobody's way but in that of commits. */
static void
open_store(struct tree *t)
{
	char path[PATHS_MAX];
	struct store *s;
	struct err e;

	if (paths_format(path, sizeof(path), NULL, "%s/store", t->config.home) == 0 &&
		access(path, F_OK) == 0) {
		if (tree_store(t, &s, &e) < 0)
			log_warn("the store of commits: %s", e.msg);
		else
			commits_forget_gone(t, s);
	}
	flat_trim(t);
}

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
	if (!t->config.hello_timeout_ms)
		t->config.hello_timeout_ms = TREE_HELLO_TIMEOUT_MS;
	pthread_mutex_init(&t->lock, NULL);
	pthread_mutex_init(&t->store_lock, NULL);
	pthread_rwlock_init(&t->gc_lock, NULL);
	pthread_mutex_init(&t->flat_lock, NULL);
	pthread_cond_init(&t->flat_changed, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&t->changed, &attr);
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
	if (r == 0) {
		t->scopes = scopes_open(
			t->config.scopes, t->config.home, t->config.scopes_group);
		r = tree_adopt(t, e);
	}
	if (r == 0) {
		r = -pthread_create(&t->tender, NULL, tender_main, t);
		if (r < 0)
			err_sys(e, r, "making a thread");
		else
			t->has_tender = true;
	}
	if (r < 0) {
		tree_close(t);
		return r;
	}
	open_store(t);
	pool_open(t);
	*ret = t;
	return 0;
}

void
tree_stop(struct tree *t)
{
	pthread_mutex_lock(&t->lock);
	t->stopping = true;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

void
tree_close(struct tree *t)
{
	if (!t)
		return;
	tree_stop(t);
	if (t->has_tender)
		pthread_join(t->tender, NULL);
	pool_close(t);
	scopes_close(t->scopes);
	t->scopes = NULL;
	while (t->n_vms)
		tree_unlist_vm(t, t->vms[t->n_vms - 1]);
	flat_close(t);
	store_close(t->store);
	db_close(t->db);
	cleanup_close_fn(&t->epoll_fd);
	pthread_cond_destroy(&t->changed);
	pthread_cond_destroy(&t->flat_changed);
	pthread_mutex_destroy(&t->flat_lock);
	pthread_rwlock_destroy(&t->gc_lock);
	pthread_mutex_destroy(&t->store_lock);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

/*
 * Answers.
 */

static void
stats_json(const struct vmm_stats_answer *s, struct json_out *out)
{
	json_out_object(out, "stats");
	json_out_u64(out, "uptime_ms", s->uptime_ns / NS_PER_MS);
	json_out_u64(out, "vcpu_exits", s->vcpu_exits);
	json_out_u64(out, "disk_read_bytes", s->disk_read_bytes);
	json_out_u64(out, "disk_write_bytes", s->disk_write_bytes);
	json_out_u64(out, "disk_segment_bytes", s->disk_segment_bytes);
	json_out_u64(out, "vsock_connections", s->vsock_connections);
	json_out_u64(out, "doorbells", s->doorbells);
	json_out_end_object(out);
}

static void
hello_json(const struct agent_ack *ack, struct json_out *out)
{
	json_out_object(out, "hello");
	json_out_u64(out, "total_us", ack->total_us);
	json_out_array(out, "steps");
	for (unsigned i = 0; i < ack->n_steps; i++) {
		json_out_object(out, NULL);
		json_out_str(out, "step", ack->steps[i].name);
		json_out_u64(out, "us", ack->steps[i].us);
		json_out_end_object(out);
	}
	json_out_end_array(out);
	json_out_end_object(out);
}

void
vm_json(struct tree *t, const struct vm *vm, const char *key, struct json_out *out,
	const struct vmm_stats_answer *stats, const struct vm_costs *costs)
{
	const struct vm_row *row = &vm->row;
	char text[PATHS_MAX];

	json_out_object(out, key);
	json_out_str(out, "id", row->id);
	json_out_str(out, "alias", row->alias[0] ? row->alias : NULL);
	json_out_str(out, "state", vm_state_name(row->state));
	json_out_str(out, "reason", row->reason[0] ? row->reason : NULL);
	json_out_str(out, "parent", row->parent[0] ? row->parent : NULL);
	json_out_str(out, "commit", row->commit[0] ? row->commit : NULL);
	json_out_array(out, "children");
	for (unsigned i = 0; i < t->n_vms; i++)
		if (t->vms[i]->parent_handle == vm->handle)
			json_out_str(out, NULL, t->vms[i]->row.id);
	json_out_end_array(out);
	json_out_u64(out, "created_ms", row->created_ms);
	json_out_u64(out, "mem_mib", row->mem_mib);
	json_out_u64(out, "vcpus", row->vcpus);
	json_out_u64(out, "disk_mib", row->disk_mib);
	if (row->resize_mib)
		json_out_u64(out, "resize_mib", row->resize_mib);
	else
		json_out_null(out, "resize_mib");
	json_out_str(out, "kernel", row->kernel);
	json_out_str(out, "rootfs", row->rootfs);
	json_out_object(out, "labels");
	for (unsigned i = 0; i < row->labels.n; i++)
		json_out_str(out, row->labels.items[i].key, row->labels.items[i].value);
	json_out_end_object(out);
	if (vm_state_lives(row->state) && row->pid)
		json_out_i64(out, "pid", row->pid);
	else
		json_out_null(out, "pid");
	hex(text, row->generation, sizeof(row->generation));
	json_out_str(out, "generation", text);
	json_out_str(out, "host_key", row->host_key[0] ? row->host_key : NULL);
	snprintf(
		text, sizeof(text), "%.4000s/vms/%s/agent.sock", t->config.home, row->id);
	json_out_str(out, "agent_socket", text);
	snprintf(text, sizeof(text), "%.4000s/vms/%s/console", t->config.home, row->id);
	json_out_str(out, "console", text);
	if (stats)
		stats_json(stats, out);
	if ((stats || costs) && vm->ack.n_steps)
		hello_json(&vm->ack, out);
	if (costs)
		vm_costs_json(costs, out);
	json_out_end_object(out);
}

static bool
has_labels(const struct vm_row *row, const struct labels *wanted)
{
	for (unsigned i = 0; i < wanted->n; i++) {
		const struct label *w = &wanted->items[i];
		bool found = false;

		for (unsigned j = 0; j < row->labels.n && !found; j++)
			found = strcmp(row->labels.items[j].key, w->key) == 0 &&
				strcmp(row->labels.items[j].value, w->value) == 0;
		if (!found)
			return false;
	}
	return true;
}

/* A VM's answer with what it takes of the host; the counting is done without the lock. */
static void
costly_json(struct tree *t, struct vm *vm, struct json_out *out,
	const struct vmm_stats_answer *stats)
{
	struct vm_costs costs;
	bool locked = vm_costs_begin(t, vm, &costs);

	pthread_mutex_unlock(&t->lock);
	if (locked)
		vm_costs_count(t, &costs);
	pthread_mutex_lock(&t->lock);
	vm_json(t, vm, NULL, out, stats, locked ? &costs : NULL);
	vm_costs_done(&costs);
}

int
tree_list(struct tree *t, const struct labels *filter, bool memory, struct json_out *out,
	struct err *e)
{
	cleanup_free struct vm **vms = NULL;
	unsigned n = 0;

	pthread_mutex_lock(&t->lock);
	vms = calloc(t->n_vms + 1, sizeof(struct vm *));
	if (!vms) {
		pthread_mutex_unlock(&t->lock);
		return err_set(e, -ENOMEM, "out of memory");
	}
	for (unsigned i = 0; i < t->n_vms; i++)
		if (!filter || has_labels(&t->vms[i]->row, filter)) {
			vms[n] = t->vms[i];
			vms[n++]->refs++;
		}
	json_out_object(out, NULL);
	json_out_array(out, "vms");
	for (unsigned i = 0; i < n; i++) {
		if (!memory)
			vm_json(t, vms[i], NULL, out, NULL, NULL);
		else if (vms[i]->listed) /* the lock is given up between two */
			costly_json(t, vms[i], out, NULL);
		vm_unref(vms[i]);
	}
	pthread_mutex_unlock(&t->lock);
	json_out_end_array(out);
	json_out_end_object(out);
	return 0;
}

int
tree_info(struct tree *t, const char *name, struct json_out *out, struct err *e)
{
	struct vmm_stats_answer stats;
	bool has_stats = false;
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r == 0) {
		if (vm->ctl && !vm->dead && vm_state_lives(vm->row.state) && !vm->op) {
			pthread_mutex_unlock(&t->lock);
			has_stats = vmmctl_stats(vm->ctl, STATS_TIMEOUT_MS, true, &stats,
					    NULL, NULL) == 0;
			pthread_mutex_lock(&t->lock);
		}
		costly_json(t, vm, out, has_stats ? &stats : NULL);
		vm_unref(vm);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

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

static int
pause_or_resume(
	struct tree *t, const char *name, bool pause, struct json_out *out, struct err *e)
{
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, pause ? "being paused" : "being resumed", &vm, e);
	if (r < 0) {
		pthread_mutex_unlock(&t->lock);
		return r;
	}
	if (!vm_state_lives(vm->row.state) || !vm->ctl) {
		r = err_set(e, -EBUSY, "vm \"%s\" is %s: there is nothing to %s",
			vm_name(vm), vm_state_name(vm->row.state),
			pause ? "pause" : "resume");
	} else if ((vm->row.state == VM_PAUSED) != pause) {
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
			r = db_update(t->db, &vm->row, e);
			log_info("vm %s (%s): %s", vm->row.id, vm_name(vm),
				pause ? "paused" : "resumed");
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
tree_pause(struct tree *t, const char *name, struct json_out *out, struct err *e)
{
	return pause_or_resume(t, name, true, out, e);
}

int
tree_resume(struct tree *t, const char *name, struct json_out *out, struct err *e)
{
	return pause_or_resume(t, name, false, out, e);
}

int
tree_disk(struct tree *t, const char *name, struct json_out *out, struct err *e)
{
	cleanup_free struct chain_link *links = NULL;
	char path[PATHS_MAX];
	struct vm *vm;
	size_t n = 0;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r == 0) {
		r = db_chain(t->db, vm->row.id, &links, &n, e);
		if (r == 0) {
			json_out_object(out, NULL);
			json_out_u64(out, "disk_mib", vm_disk_mib(&vm->row));
			json_out_str(out, "base",
				vm->row.base_path[0] ? vm->row.base_path : NULL);
			json_out_array(out, "chain");
		}
		vm_unref(vm);
	}
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		json_out_object(out, NULL);
		snprintf(path, sizeof(path), "%.4000s/segments/%s.data", t->config.home,
			links[i].segment);
		json_out_str(out, "data", path);
		snprintf(path, sizeof(path), "%.4000s/segments/%s.index", t->config.home,
			links[i].segment);
		json_out_str(out, "index", path);
		if (links[i].records < 0)
			json_out_null(out, "records");
		else
			json_out_i64(out, "records", links[i].records);
		json_out_end_object(out);
	}
	json_out_end_array(out);
	json_out_end_object(out);
	return 0;
}
