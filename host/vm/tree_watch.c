#include "host/vm/tree_priv.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/handshake.h"

#define NS_PER_MS 1000000ull

/* Between the end of a control socket and that of its process, when the process is
 * ending. */
#define CLOSED_GRACE_NS (2000 * NS_PER_MS)

/* The event loop's name for one of a VM's two descriptors. */
#define EVENT_CONTROL 1u
#define EVENT_OF(handle, what) ((handle) << 1 | (what))

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
			vm_note_disk(t, vm);
		if (!vm->kill_reason[0])
			epoll_ctl(t->epoll_fd, EPOLL_CTL_MOD, vmmctl_fd(vm->ctl), &ev);
	}
	pthread_mutex_unlock(&t->lock);
}

int
tree_watch_control(struct tree *t, struct vm *vm, struct err *e)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLONESHOT,
		.data.u64 = EVENT_OF(vm->handle, EVENT_CONTROL)};

	vmmctl_on_idle(vm->ctl, arm_control, t, vm->handle);
	if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, vmmctl_fd(vm->ctl), &ev) < 0)
		return err_sys(
			e, -errno, "watching the control socket of VM %s", vm->row.id);
	return 0;
}

int
tree_watch(struct tree *t, struct vm *vm, struct err *e)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = EVENT_OF(vm->handle, 0)};
	int r;

	if (epoll_ctl(t->epoll_fd, EPOLL_CTL_ADD, vm->pidfd, &ev) < 0)
		return err_sys(e, -errno, "watching the process of VM %s", vm->row.id);
	r = vm->ctl ? tree_watch_control(t, vm, e) : 0;
	if (r < 0)
		epoll_ctl(t->epoll_fd, EPOLL_CTL_DEL, vm->pidfd, NULL);
	return r;
}

/* Why it ended, in a sentence, from its last words, what pandod did, and what the kernel
 * says. */
static enum vm_state
explain_end(struct tree *t, struct vm *vm, const siginfo_t *si, char *dst, size_t cap)
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
			return vm_rebooted(t, vm, dst, cap);
		case VMM_EXIT_PANIC:
			what = "the guest's kernel panicked";
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
			"the VMM was killed, or ended without a word; its vmm.log may say why");
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
	vm->disk_full = false;
	scopes_leave(t->config.scopes, vm->row.id);
	if (vm_state_lives(vm->row.state) && !vm->removing) {
		vm->row.state =
			explain_end(t, vm, &si, vm->row.reason, sizeof(vm->row.reason));
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
	pthread_cond_broadcast(&t->changed); /* the health monitor looks at closed_ns */
	pthread_mutex_unlock(&t->lock);
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
 * The health monitor and its helpers. What is due is found by whoever has nothing to do; a VM that
 * somebody is at is `tended`, and no other's business.
 */

/* Ends those that closed their control sockets and live on. */
static void
end_closed(struct tree *t, uint64_t now, uint64_t *next)
{
	for (unsigned i = 0; i < t->n_vms; i++) {
		struct vm *vm = t->vms[i];

		if (!vm->closed_ns || vm->dead || vm->pidfd < 0 || vm->kill_reason[0])
			continue;
		if (now >= vm->closed_ns + CLOSED_GRACE_NS) {
			snprintf(vm->kill_reason, sizeof(vm->kill_reason),
				"ended by pandod: its VMM closed the control socket");
			process_kill(vm->pidfd);
		} else if (vm->closed_ns + CLOSED_GRACE_NS < *next) {
			*next = vm->closed_ns + CLOSED_GRACE_NS;
		}
	}
}

/* What is due first, by `now`, to h->vm or h->stray, marked and, a VM, referenced. False:
 * nothing is; *next is not later than when something will be. */
static bool
pick(struct tree *t, uint64_t now, uint64_t *next, struct helper *h)
{
	/* Those may take seconds to be told nothing: they leave some to the others. */
	bool may_meet = t->n_meeting < t->may_help * 3 / 4;
	struct stray *stray = NULL;
	struct vm *due = NULL;
	uint64_t first = *next;

	for (unsigned i = 0; i < t->n_vms; i++) {
		struct vm *vm = t->vms[i];
		uint64_t at;

		if (may_meet && adopt_due(vm))
			at = vm->meet_at_ns;
		else if (!vm->tended && vm_handshake_due(vm))
			at = vm->probe_at_ns;
		else
			continue;
		if (at < first) {
			first = at;
			due = vm;
		}
	}
	for (size_t i = 0; may_meet && i < t->n_strays; i++)
		if (!t->strays[i].tended && t->strays[i].at_ns < first) {
			first = t->strays[i].at_ns;
			stray = &t->strays[i];
		}
	*next = first;
	if (first > now || (!due && !stray))
		return false;
	h->stray = stray;
	h->vm = stray ? NULL : due;
	if (stray) {
		stray->tended = true;
	} else {
		due->tended = true;
		due->refs++;
	}
	return true;
}

/* Does what was picked. Called with the lock, which is given up meanwhile. */
static void
help(struct tree *t, struct helper *h)
{
	struct stray *stray = h->stray;
	struct vm *vm = h->vm;

	h->vm = NULL;
	h->stray = NULL;
	if (stray) {
		t->n_meeting++;
		stray_try(t, stray);
		t->n_meeting--;
		stray->tended = false;
	} else if (vm->unmet && (!vm->op || vm->pidfd < 0)) {
		/* Nobody took it between the picking and now. */
		t->n_meeting++;
		adopt_try(t, vm);
		t->n_meeting--;
	} else if (vm_handshake_due(vm)) {
		vm_handshake_watch(t, vm);
	}
	if (vm) {
		vm->tended = false;
		vm_unref(vm);
	}
	pthread_cond_broadcast(&t->changed);
}

static void *
helper_main(void *arg)
{
	struct helper *h = arg;
	struct tree *t = h->t;
	uint64_t next;

	pthread_mutex_lock(&t->lock);
	do {
		help(t, h);
		next = UINT64_MAX;
	} while (!t->stopping && pick(t, io_now_ns(), &next, h));
	h->state = HELPER_ENDED;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* A place for one more, or NULL. Called with the lock. */
static struct helper *
free_helper(struct tree *t)
{
	for (unsigned i = 0; i < t->may_help; i++) {
		struct helper *h = &t->helpers[i];

		if (h->state == HELPER_RUNS)
			continue;
		if (h->state ==
			HELPER_ENDED) /* it has given up the lock, or is about to */
			pthread_join(h->thread, NULL);
		*h = (struct helper){.t = t};
		return h;
	}
	return NULL;
}

void *
tree_health_monitor(void *tree)
{
	struct tree *t = tree;

	pthread_mutex_lock(&t->lock);
	while (!t->stopping) {
		uint64_t now = io_now_ns(), next = now + 60000 * NS_PER_MS;
		struct helper *h = free_helper(t);
		struct timespec until;

		end_closed(t, now, &next);
		if (h && pick(t, now, &next, h)) {
			h->state = HELPER_RUNS;
			if (pthread_create(&h->thread, NULL, helper_main, h) != 0) {
				h->state = HELPER_NONE;
				help(t, h); /* then by itself */
			}
			continue;
		}
		until = deadline_in(next > now ? (next - now) / NS_PER_MS + 1 : 1);
		pthread_cond_timedwait(&t->changed, &t->lock, &until);
	}
	pthread_mutex_unlock(&t->lock);
	for (unsigned i = 0; i < HELPERS_MAX; i++)
		if (t->helpers[i].state != HELPER_NONE)
			pthread_join(t->helpers[i].thread, NULL);
	return NULL;
}
