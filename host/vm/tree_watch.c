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
	scopes_leave(t->scopes, vm->row.id);
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

void *
tree_health_monitor(void *tree)
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
						"ended by pandod: its VMM closed the control socket");
					process_kill(vm->pidfd);
				} else if (vm->closed_ns + CLOSED_GRACE_NS < next) {
					next = vm->closed_ns + CLOSED_GRACE_NS;
				}
			}
			if (!vm_handshake_due(vm))
				continue;
			if (vm->probe_at_ns < next) {
				next = vm->probe_at_ns;
				due = vm;
			}
		}
		if (due && next <= now) {
			vm_handshake_tend(t, due);
			continue;
		}
		until = deadline_in(next > now ? (next - now) / NS_PER_MS + 1 : 1);
		pthread_cond_timedwait(&t->changed, &t->lock, &until);
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}
