/*
 * A guest that reboots is booted again: the same VM, its disk as the guest left it.
 *
 * The policy. Power-off stops a VM. A panic, and whatever else ends a VMM, fails it. A
 * reset that is no panic is a reboot: the VM is started, as `pando start` does it, unless
 * it rebooted REBOOTS_MAX times within REBOOT_WINDOW_NS already (then it fails: something
 * makes it reboot for ever), or is being stopped (then it is stopped). What tells a panic
 * from a reboot is the VMM, which sees the console (VMM_EXIT_PANIC).
 *
 * Until the VM is started its row is `failed` with reboot_reason, and clients are shown
 * `starting`; from then until its process is noted (vm_made()) the row is `starting`, and
 * the reason stays. A pandod that is killed meanwhile leaves that row, and the next one
 * boots the VM: adopt.c takes the second kind back to the first. What one that is not there cannot hear is how a VMM ended: a guest that reboots
 * without a pandod fails.
 *
 * A thread a reboot, of which REBOOTS_AT_ONCE work and the others wait.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/tree_priv.h"

#define REBOOTS_MAX 5u
#define REBOOT_WINDOW_NS (600ull * 1000000000)
#define REBOOTS_AT_ONCE 4u

static const char reboot_reason[] = "the guest rebooted; it is being booted again";

struct reboot {
	struct tree *t;
	struct vm *vm; /* a reference */
};

bool
vm_is_rebooting(const struct vm *vm)
{
	return vm->dead && vm->row.state == VM_FAILED &&
	       strcmp(vm->row.reason, reboot_reason) == 0;
}

bool
vm_was_rebooting(const struct vm *vm)
{
	return vm->row.state == VM_STARTING && vm->row.pid <= 0 &&
	       strcmp(vm->row.reason, reboot_reason) == 0;
}

/* Until something changes, or for a while: not everybody says when an operation ends. */
static void
wait_a_little(struct tree *t)
{
	uint64_t ns = io_now_ns() + 100000000;
	struct timespec until = {
		.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};

	pthread_cond_timedwait(&t->changed, &t->lock, &until);
}

/* Called with the lock. */
static void
could_not(struct tree *t, struct vm *vm, const struct err *why)
{
	struct err e;

	snprintf(vm->row.reason, sizeof(vm->row.reason),
		"the guest rebooted and could not be booted again: %.300s", why->msg);
	log_warn("vm %s (%s): %s", vm->row.id, vm_name(vm), vm->row.reason);
	if (db_update(t->db, &vm->row, &e) < 0)
		log_err("vm %s: %s", vm->row.id, e.msg);
}

static void *
reboot_main(void *arg)
{
	const struct start_request request = {.wait = false};
	struct reboot *b = arg;
	struct tree *t = b->t;
	struct vm *vm = b->vm;
	struct err e = {0};
	int r = -EBUSY;

	pthread_mutex_lock(&t->lock);
	while (!t->stopping && t->n_booting >= REBOOTS_AT_ONCE)
		wait_a_little(t);
	t->n_booting++;
	/* It may be deleted, or started by somebody, before it is its turn. */
	while (r == -EBUSY && !t->stopping && vm->listed && vm_is_rebooting(vm)) {
		if (vm->op) {
			wait_a_little(t);
			continue;
		}
		cleanup_json_out struct json_out out = {0};
		pthread_mutex_unlock(&t->lock);
		r = tree_start_vm(t, vm->row.id, &request, NULL, &out, &e);
		pthread_mutex_lock(&t->lock);
	}
	if (r < 0 && r != -EBUSY && r != -ECANCELED) {
		/* Its next life, if it came so far, was given its last one's state. */
		struct vm *now = NULL;

		if (tree_find(t, vm->row.id, &now, NULL) == 0) {
			if (vm_is_rebooting(now))
				could_not(t, now, &e);
			vm_unref(now);
		}
	}
	t->n_booting--;
	t->n_rebooting--;
	vm_unref(vm);
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	free(b);
	return NULL;
}

/* Called with the lock. */
static int
begin(struct tree *t, struct vm *vm)
{
	struct reboot *b = malloc(sizeof(*b));
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	if (!b)
		return -ENOMEM;
	*b = (struct reboot){.t = t, .vm = vm};
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = -pthread_create(&thread, &attr, reboot_main, b);
	pthread_attr_destroy(&attr);
	if (r < 0) {
		free(b);
		return r;
	}
	vm->refs++;
	vm->rebooting = true;
	t->n_rebooting++;
	return 0;
}

enum vm_state
vm_rebooted(struct tree *t, struct vm *vm, char *reason, size_t cap)
{
	uint64_t now = io_now_ns();
	int r;

	if (vm->op && strcmp(vm->op, OP_STOPPING) == 0) {
		snprintf(reason, cap, "the guest rebooted while it was being stopped");
		return VM_STOPPED;
	}
	if (now - vm->reboot_window_ns > REBOOT_WINDOW_NS || !vm->reboot_window_ns) {
		vm->reboot_window_ns = now;
		vm->reboots_in_window = 0;
	}
	if (vm->reboots_in_window >= REBOOTS_MAX) {
		snprintf(reason, cap,
			"the guest rebooted more than %u times within %u minutes; `pando start` boots it once more",
			REBOOTS_MAX, (unsigned)(REBOOT_WINDOW_NS / 60000000000u));
		return VM_FAILED;
	}
	if (t->stopping || !vm->row.made) {
		/* The next pandod boots it; one that is being made is undone. */
		snprintf(reason, cap, "%s",
			vm->row.made ? reboot_reason : "the guest rebooted");
		return VM_FAILED;
	}
	r = begin(t, vm);
	if (r < 0) {
		snprintf(reason, cap, "the guest rebooted and cannot be booted again: %s",
			strerror(-r));
		return VM_FAILED;
	}
	vm->reboots_in_window++;
	vm->reboots++;
	snprintf(reason, cap, "%s", reboot_reason);
	return VM_FAILED;
}

void
vm_finish_reboot(struct tree *t, struct vm *vm)
{
	if (vm_is_rebooting(vm) && !vm->rebooting && !t->stopping && begin(t, vm) < 0)
		log_err("vm %s (%s): it rebooted and is not booted again: out of memory",
			vm->row.id, vm_name(vm));
}

void
tree_finish_reboots(struct tree *t)
{
	pthread_mutex_lock(&t->lock);
	t->finishes_reboots = true;
	for (unsigned i = 0; i < t->n_vms; i++)
		vm_finish_reboot(t, t->vms[i]);
	pthread_mutex_unlock(&t->lock);
}

void
tree_wait_reboots(struct tree *t)
{
	pthread_mutex_lock(&t->lock);
	while (t->n_rebooting)
		wait_a_little(t);
	pthread_mutex_unlock(&t->lock);
}
