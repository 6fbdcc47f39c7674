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
 * REBOOTS_AT_ONCE threads at most, as long as there is something to do: all guests may
 * reboot at once. One that somebody is at just then holds up no other.
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
	struct reboot *next;
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

/* The first in the queue that nobody is at, or that is nobody's business any more. Called
 * with the lock. */
static struct reboot *
take_next(struct tree *t)
{
	for (struct reboot **at = &t->reboots; *at; at = &(*at)->next) {
		struct reboot *b = *at;

		if (b->vm->op && b->vm->listed && vm_is_rebooting(b->vm))
			continue;
		*at = b->next;
		return b;
	}
	return NULL;
}

static void
append(struct tree *t, struct reboot *b)
{
	struct reboot **at = &t->reboots;

	while (*at)
		at = &(*at)->next;
	b->next = NULL;
	*at = b;
}

/* -EBUSY: somebody was at it first. Called with the lock, which is given up meanwhile. */
static int
boot_again(struct tree *t, struct vm *vm)
{
	const struct start_request request = {.wait = false};
	cleanup_json_out struct json_out out = {0};
	struct vm *now = NULL;
	struct err e = {0};
	int r;

	/* It may have been deleted, or started by somebody, before it was its turn. */
	if (!vm->listed || !vm_is_rebooting(vm))
		return 0;
	pthread_mutex_unlock(&t->lock);
	r = tree_start_vm(t, vm->row.id, &request, NULL, &out, &e);
	pthread_mutex_lock(&t->lock);
	if (r == -EBUSY && vm->listed && vm_is_rebooting(vm))
		return r;
	/* Its next life, if it came so far, was given its last one's state. */
	if (r < 0 && r != -ECANCELED && tree_find(t, vm->row.id, &now, NULL) == 0) {
		if (vm_is_rebooting(now))
			could_not(t, now, &e);
		vm_unref(now);
	}
	return 0;
}

static void *
reboot_main(void *tree)
{
	struct tree *t = tree;

	pthread_setname_np(pthread_self(), "reboot"); /* for top -H, and the test */
	pthread_mutex_lock(&t->lock);
	while (t->reboots) {
		struct reboot *b = t->stopping ? t->reboots : take_next(t);

		if (t->stopping) /* the next pandod boots it */
			t->reboots = b->next;
		else if (b && boot_again(t, b->vm) < 0) {
			append(t, b);
			b = NULL;
		}
		if (!b) {
			wait_a_little(t);
			continue;
		}
		vm_unref(b->vm);
		free(b);
	}
	t->n_rebooting--;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* Called with the lock. */
static int
begin(struct tree *t, struct vm *vm)
{
	struct reboot *b = malloc(sizeof(*b));
	pthread_attr_t attr;
	pthread_t thread;
	int r = 0;

	if (!b)
		return -ENOMEM;
	*b = (struct reboot){.vm = vm};
	if (t->n_rebooting < REBOOTS_AT_ONCE) {
		pthread_attr_init(&attr);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		r = -pthread_create(&thread, &attr, reboot_main, t);
		pthread_attr_destroy(&attr);
		t->n_rebooting += r == 0;
	}
	if (!t->n_rebooting) {
		free(b);
		return r;
	}
	vm->refs++;
	append(t, b);
	vm->rebooting = true;
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
