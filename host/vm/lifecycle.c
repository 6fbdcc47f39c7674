/*
 * POST /v1/vms/{vm}/stop, /start and /resize: a VM's ends and its new beginnings.
 *
 * Stop. The guest is asked to power off: by its power button, then, where its agent has
 * ever answered, by the agent. By force, its VMM flushes the disk and ends at once. What
 * is left is a row, a disk chain and two logs.
 *
 * Start. A VMM boots from a base and one empty segment, so the chain is written out as
 * one flat, sparse image below bases/, which becomes the base; from then on the chain is
 * one segment long. Branches that share the old segments keep them: a segment goes with
 * the last chain that names it, a base with the last row. Base and chain change in one
 * transaction, in which the VM also becomes `starting`: a pandod that is killed before it
 * leaves the VM as it was (and a .part file that the next one removes), one that is
 * killed after it leaves a VM on its new base, which the next one adopts, or finds
 * without a process: failed, to be started again (or, when its guest had rebooted,
 * booted). When the host lost its power, the chain
 * ends at the first record that did not reach its disk; the caller and the log hear so.
 *
 * Resize. `resize_mib` is written before the VMM is asked, `disk_mib` once it has done
 * it, and `resize_mib` goes when the filesystem has grown, too. A pandod that finds one
 * larger than the other asks the VMM again (adopt.c). Reading a chain always goes by the
 * larger.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/chain_files.h"
#include "host/vm/guest.h"
#include "host/vm/image.h"
#include "host/vm/reset_row.h"
#include "host/vm/tree_priv.h"
#include "vmm/blockmap.h"

/* How long a power button is given before the agent is asked, where there is one. A guest
 * without logind never heeds it; one that does takes the second request as the first. */
#define BUTTON_MS 3000
#define AGENT_ASK_MS 15000
/* A VMM that flushes its disk. */
#define QUIT_MS 10000
#define KILL_MS 20000
#define GROW_MS 120000

static const char op_stopping[] = OP_STOPPING;

/* The end of an operation: the claim and the reference go. Called with the lock. */
static void
release(struct tree *t, struct vm *vm)
{
	vm->op = NULL;
	pthread_cond_broadcast(&t->changed);
	vm_unref(vm);
}

/*
 * Stop.
 */

/* Until it is dead, pandod stops, or the time is over. Called with the lock. */
static int
wait_off(struct tree *t, struct vm *vm, uint64_t until_ns)
{
	for (uint64_t now = io_now_ns(); !vm->dead && now < until_ns; now = io_now_ns()) {
		uint64_t left_ms = (until_ns - now) / 1000000 + 1;

		if (t->stopping)
			return -ECANCELED;
		tree_wait_dead(t, vm, left_ms > 200 ? 200 : (int)left_ms);
	}
	return vm->dead ? 0 : -ETIMEDOUT;
}

/* Called with the lock. */
static int
power_off(struct tree *t, struct vm *vm, uint32_t timeout_ms, const struct progress *p,
	struct err *e)
{
	uint64_t now = io_now_ns(), until = now + (uint64_t)timeout_ms * 1000000;
	bool has_agent = vm->row.answered;
	uint64_t button_ms = has_agent ? timeout_ms / 3 : timeout_ms;
	char path[PATHS_MAX], called[VM_CALLED_MAX];
	struct err why = {0};
	int r;

	pthread_mutex_unlock(&t->lock);
	say(p, "pressing the power button of VM %s",
		vm_called(vm, called, sizeof(called)));
	r = vmmctl_command(vm->ctl, VMM_POWER_BUTTON, t->config.answer_timeout_ms, &why);
	pthread_mutex_lock(&t->lock);
	if (r < 0 && !vm->dead && r != -ESRCH)
		return err_set(e, r, "vm \"%s\": its power button: %.400s", vm_name(vm),
			why.msg);
	if (has_agent && button_ms > BUTTON_MS)
		button_ms = BUTTON_MS;
	r = wait_off(t, vm, now + button_ms * 1000000);
	if (r == -ETIMEDOUT && has_agent) {
		bool lives = vm_socket_path(t, vm, path) == 0;
		uint64_t left_ms = timeout_ms - button_ms;

		pthread_mutex_unlock(&t->lock);
		say(p, "VM %s does not answer its power button; asking its agent",
			called);
		if (lives && guest_power_off(path,
				     left_ms < AGENT_ASK_MS ? (int)left_ms : AGENT_ASK_MS,
				     &why) < 0)
			log_info("vm %s (%s): its agent, asked to power off: %s",
				vm->row.id, vm_name(vm), why.msg);
		pthread_mutex_lock(&t->lock);
		r = wait_off(t, vm, until);
	}
	if (r == -ECANCELED)
		return err_set(e, r,
			"pandod stops; vm \"%s\" was asked to power off and has not yet",
			vm_name(vm));
	if (r < 0)
		return err_set(e, r,
			"vm \"%s\" did not power off within %u s: it goes on; `pando stop --force` ends it at once",
			vm_name(vm), (timeout_ms + 999) / 1000);
	if (vm->row.state != VM_STOPPED)
		return err_set(e, -EIO,
			"vm \"%s\" ended, but not by powering off: %.350s", vm_name(vm),
			vm->row.reason);
	return 0;
}

/* Called with the lock; also while somebody waits for the guest to power off. */
static int
end_by_force(struct tree *t, struct vm *vm, struct err *e)
{
	if (!vm->kill_reason[0]) {
		vm->stopped_by_force = true;
		snprintf(vm->kill_reason, sizeof(vm->kill_reason), "stopped by force");
	}
	if (vm->ctl) {
		pthread_mutex_unlock(&t->lock);
		vmmctl_quit(vm->ctl, NULL);
		pthread_mutex_lock(&t->lock);
	}
	if ((!vm->ctl || tree_wait_dead(t, vm, QUIT_MS) < 0) && !vm->dead) {
		snprintf(vm->kill_reason, sizeof(vm->kill_reason),
			"stopped by force; its VMM did not answer, so what it had not yet written is lost");
		if (vm->pidfd >= 0)
			process_kill(vm->pidfd);
	}
	if (tree_wait_dead(t, vm, KILL_MS) < 0)
		return err_set(e, -ETIMEDOUT,
			"vm \"%s\": its process %lld was killed and does not end",
			vm_name(vm), (long long)vm->row.pid);
	return 0;
}

/* Called with the lock and a claim. */
static int
stop_claimed(struct tree *t, struct vm *vm, const struct stop_request *q,
	const struct progress *p, struct err *e)
{
	if (vm->row.state == VM_STOPPED)
		return 0;
	if (!vm_state_lives(vm->row.state))
		return err_set(e, -EBUSY,
			"vm \"%s\" is %s: there is nothing to stop; `pando start` boots it again, `pando delete` removes it",
			vm_name(vm), vm_state_name(vm->row.state));
	if (q->force)
		return end_by_force(t, vm, e);
	if (vm->row.state == VM_PAUSED)
		return err_set(e, -EBUSY,
			"vm \"%s\" is paused and cannot power off: `pando resume` it first, or end it with `pando stop --force`",
			vm_name(vm));
	if (vm_check_met(vm, e) < 0)
		return -EBUSY;
	if (!vm->ctl)
		return err_set(e, -EBUSY,
			"vm \"%s\": its VMM does not listen to pandod; `pando stop --force` ends it",
			vm_name(vm));
	return power_off(t, vm, q->timeout_ms, p, e);
}

int
tree_stop_vm(struct tree *t, const char *name, const struct stop_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_find(t, name, &vm, e);
	if (r == 0 && vm->op == op_stopping && q->force) {
		/* Whoever waits for the guest sees it end. */
		r = end_by_force(t, vm, e);
		if (r == 0)
			vm_json(t, vm, NULL, out, NULL, NULL);
		vm_unref(vm);
		pthread_mutex_unlock(&t->lock);
		return r;
	}
	if (r == 0) {
		vm_unref(vm);
		r = tree_claim(t, name, op_stopping, p, &vm, e);
	}
	if (r == 0) {
		r = stop_claimed(t, vm, q, p, e);
		if (r == 0) {
			vm_json(t, vm, NULL, out, NULL, NULL);
			log_info("vm %s (%s): stopped", vm->row.id, vm_name(vm));
		}
		release(t, vm);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

/*
 * Start.
 */

struct start {
	struct tree *t;
	struct vm *old; /* claimed */
	struct vm *vm;	/* its next life, claimed; NULL: not yet */
	enum vm_state old_state;
	char old_reason[DB_REASON_MAX];
	struct image image;
	char base[PATHS_MAX], part[PATHS_MAX + 8];
	struct vm_segment segment; /* owned: of its new life */
};

static int
materialize(struct start *s, const struct chain_link *links, size_t n, const char *base,
	uint64_t disk_mib, struct err *lost, struct err *e)
{
	cleanup_chain_files struct chain_files files = {0};
	struct disk_chain chain = {base[0] ? base : NULL, NULL, n};
	cleanup_close int fd = -1;
	char folder[PATHS_MAX];
	int r;

	r = chain_files_make(s->t->config.home, links, n, &files, e);
	if (r < 0)
		return r;
	chain.segments = files.segments;
	r = paths_format(folder, sizeof(folder), e, "%s/bases", s->t->config.home);
	if (r == 0)
		r = io_mkdir_p(folder, 0700, e);
	if (r < 0)
		return r;
	fd = open(s->part, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_sys(e, -errno, "making %.300s", s->part);
	r = disk_export(&chain, disk_mib, fd, lost, e);
	/* The segments go once this is the base: it must be there for good before. */
	if (r == 0 && fsync(fd) < 0)
		r = err_sys(e, -errno, "%.300s", s->part);
	if (r == 0) /* the folder may be new */
		r = io_sync_dir(s->t->config.home, e);
	return r;
}

static int
sync_folder(const struct tree *t, const char *name, struct err *e)
{
	char path[PATHS_MAX];
	int r = paths_format(path, sizeof(path), e, "%s/%s", t->config.home, name);

	return r < 0 ? r : io_sync_dir(path, e);
}

/* The row's new life, in the table and the database. What it names is on the disk before
 * it, and it is there (tree_sweep()) before its old segments go. Called with the lock. */
static int
enter(struct start *s, struct err *e)
{
	struct tree *t = s->t;
	struct vm *old = s->old, *vm;
	char segment[DB_SEGMENT_MAX];
	int r;

	if (t->stopping)
		return err_set(e, -ECANCELED, "pandod is stopping");
	vm = vm_new(t);
	if (!vm)
		return err_set(e, -ENOMEM, "out of memory");
	vm->op = old->op;
	vm->row = old->row;
	vm->parent_handle = old->parent_handle;
	vm->row.state = VM_STARTING;
	if (!vm_is_rebooting(old)) /* until vm_made(), for the next pandod */
		vm->row.reason[0] = '\0';
	vm->row.pid = 0;
	vm->row.pid_start = 0;
	vm->row.answered = false;
	memset(vm->row.acknowledged, 0, sizeof(vm->row.acknowledged));
	vm->row.image[0] = '\0'; /* its memory begins anew */
	vm->row.fork_mib = 0;
	vm->reboots = old->reboots;
	vm->reboots_in_window = old->reboots_in_window;
	vm->reboot_window_ns = old->reboot_window_ns;
	vm->row.disk_mib = vm_disk_mib(&old->row);
	memcpy(vm->row.base_path, s->base, sizeof(vm->row.base_path));
	snprintf(segment, sizeof(segment), "%s.%u", vm->row.id, vm->row.next_segment++);
	r = tree_random(vm->row.generation, sizeof(vm->row.generation), e);
	if (r == 0 && rename(s->part, s->base) < 0)
		r = err_sys(e, -errno, "%.300s", s->base);
	if (r == 0)
		r = sync_folder(t, "bases", e);
	/* Before a row names it, so that no chain ever has a segment that is not there.
	 */
	if (r == 0)
		r = tree_make_segment(t, segment, &s->segment, e);
	if (r == 0)
		r = tree_sync_segments(t, e);
	if (r == 0)
		fault_point("start.flattened");
	if (r == 0)
		r = db_begin(t->db, e);
	if (r == 0) {
		r = db_chain_clear(t->db, vm->row.id, e);
		if (r == 0)
			r = db_chain_append(t->db, vm->row.id, segment, e);
		if (r == 0)
			r = db_update(t->db, &vm->row, e);
		if (r == 0)
			r = db_commit(t->db, e);
		if (r < 0)
			db_rollback(t->db);
	}
	if (r < 0) {
		if (s->segment.fd[VMM_SEG_DATA] >= 0)
			launch_remove_segment(t->config.home, segment);
		unlink(s->base);
		vm_unref(vm);
		return r;
	}
	tree_replace_vm(t, old, vm);
	s->vm = vm;
	fault_point("start.entered");
	if (tree_sweep(t, e) < 0)
		log_err("vm %s (%s): its old disk: %s", vm->row.id, vm_name(vm), e->msg);
	return 0;
}

/* It did not come to life: it is what it was, on its new base. */
static void
back(struct start *s)
{
	struct tree *t = s->t;
	struct vm *vm = s->vm;
	struct err e;

	if (vm->ctl)
		vmmctl_quit(vm->ctl, NULL);
	if (vm->pidfd >= 0)
		process_end(vm->pidfd);
	pthread_mutex_lock(&t->lock);
	cleanup_close_fn(&vm->pidfd);
	vm->pidfd = -1;
	vm->dead = true;
	vm->row.made = true;
	vm->row.state = s->old_state;
	memcpy(vm->row.reason, s->old_reason, sizeof(vm->row.reason));
	vm->row.pid = 0;
	vm->row.pid_start = 0;
	if (db_update(t->db, &vm->row, &e) < 0)
		log_err("vm %s: %s", vm->row.id, e.msg);
	pthread_mutex_unlock(&t->lock);
}

static int
boot(struct start *s, const struct progress *p, struct err *e)
{
	cleanup_free struct vmm_boot *msg = calloc(1, sizeof(*msg));
	char called[VM_CALLED_MAX];
	struct vm *vm = s->vm;
	int r;

	if (!msg)
		return err_set(e, -ENOMEM, "out of memory");
	s->image.base_fd = open(s->base, O_RDONLY | O_CLOEXEC);
	if (s->image.base_fd < 0)
		return err_sys(e, -errno, "%.300s", s->base);
	say(p, "starting VM %s", vm_called(vm, called, sizeof(called)));
	r = vm_boot_message(vm, &s->image, msg, e);
	if (r == 0)
		r = vm_launch(s->t, vm, &s->image, msg, &s->segment, e);
	if (r == 0)
		r = vm_made(s->t, vm, e);
	if (r == 0)
		fault_point("start.made");
	return r;
}

/* What a resize of the stopped VM has left to do. */
static void
grow_started(struct tree *t, struct vm *vm, const struct progress *p)
{
	char path[PATHS_MAX];
	uint64_t mib = vm->row.resize_mib;
	struct err e = {0};

	if (!mib || vm_socket_path(t, vm, path) < 0)
		return;
	say(p, "its filesystem takes the %llu MiB of its disk", (unsigned long long)mib);
	if (guest_grow_root(path, mib, GROW_MS, &e) < 0) {
		say(p, "its filesystem did not grow (`pando resize` tries again): %.300s",
			e.msg);
		log_warn("vm %s (%s): its filesystem did not grow: %s", vm->row.id,
			vm_name(vm), e.msg);
		return;
	}
	pthread_mutex_lock(&t->lock);
	vm->row.resize_mib = 0;
	if (db_update(t->db, &vm->row, &e) < 0)
		log_err("vm %s: %s", vm->row.id, e.msg);
	pthread_mutex_unlock(&t->lock);
}

/* The claimed, stopped VM comes to life. */
static int
start(struct start *s, bool wait, const struct progress *p, struct err *e)
{
	struct tree *t = s->t;
	cleanup_free struct chain_link *links = NULL;
	char kernel[PATHS_MAX], base[PATHS_MAX], called[VM_CALLED_MAX];
	struct vm *old = s->old;
	struct err lost = {0};
	uint64_t disk_mib;
	size_t n = 0;
	int r;

	pthread_mutex_lock(&t->lock);
	s->old_state = old->row.state;
	memcpy(s->old_reason, old->row.reason, sizeof(s->old_reason));
	snprintf(kernel, sizeof(kernel), "%s",
		old->row.kernel_path[0] ? old->row.kernel_path : old->row.kernel);
	memcpy(base, old->row.base_path, sizeof(base));
	disk_mib = vm_disk_mib(&old->row);
	/* Only its disk is left to tell whether it was reset at last. */
	r = reset_row_settle(t, old, NULL, e);
	if (r == 0)
		r = paths_format(s->base, sizeof(s->base), e, "%s/bases/%s.%u", t->config.home,
		old->row.id, old->row.next_segment);
	snprintf(s->part, sizeof(s->part), "%s.part", s->base);
	if (r == 0)
		r = db_chain(t->db, old->row.id, &links, &n, e);
	pthread_mutex_unlock(&t->lock);
	if (r == 0)
		r = host_can_hold(old->row.vcpus, old->row.mem_mib, e);
	if (r == 0)
		r = image_open(t->config.images, kernel, "none", &s->image, e);
	if (r == 0)
		r = host_can_boot(t, &s->image, e);
	if (r == 0) {
		say(p, "putting the disk of VM %s together",
			vm_called(old, called, sizeof(called)));
		r = materialize(s, links, n, base, disk_mib, &lost, e);
		if (r == 0 && lost.code) {
			say(p, "disk of VM %s: %s", called, lost.msg);
			log_warn("vm %s (%s): its disk: %s", old->row.id, vm_name(old),
				lost.msg);
		}
		if (r == 0)
			fault_point("start.part");
	}
	if (r == 0) {
		pthread_mutex_lock(&t->lock);
		r = enter(s, e);
		pthread_mutex_unlock(&t->lock);
	}
	if (r < 0) {
		unlink(s->part);
		return err_wrap(e, r, "starting vm \"%s\"", vm_name(old));
	}
	r = boot(s, p, e);
	if (r < 0) {
		back(s);
		return err_wrap(e, r, "starting vm \"%s\"", vm_name(s->vm));
	}
	if (wait) {
		say(p, "VM %s runs; waiting for its agent",
			vm_called(s->vm, called, sizeof(called)));
		/* It was there before: nobody who goes takes it along. */
		r = vm_wait_booted(t, s->vm, NULL, e);
		if (r == 0)
			grow_started(t, s->vm, p);
	}
	return r;
}

int
tree_start_vm(struct tree *t, const char *name, const struct start_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct start s = {.t = t, .image = IMAGE_INIT, .segment = VM_SEGMENT_INIT};
	struct vm *vm;
	bool runs;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, "being started", p, &s.old, e);
	if (r < 0) {
		pthread_mutex_unlock(&t->lock);
		return r;
	}
	runs = vm_state_lives(s.old->row.state);
	if (s.old->row.state == VM_PAUSED)
		r = err_set(e, -EBUSY,
			"vm \"%s\" is paused: `pando resume` lets it go on",
			vm_name(s.old));
	pthread_mutex_unlock(&t->lock);
	if (r == 0 && !runs)
		r = start(&s, q->wait, p, e);
	image_done(&s.image);
	vm_segment_done(&s.segment);

	pthread_mutex_lock(&t->lock);
	vm = s.vm ? s.vm : s.old;
	vm->probe_at_ns = io_now_ns();
	if (r == 0)
		vm_json(t, vm, NULL, out, NULL, NULL);
	else if (e)
		log_info("vm %s (%s): not started: %s", vm->row.id, vm_name(vm), e->msg);
	if (s.vm)
		release(t, s.vm);
	release(t, s.old);
	pthread_mutex_unlock(&t->lock);
	return r;
}

/*
 * Resize.
 */

/* The disk of a VM that lives. Called with the lock. */
static int
grow_disk(struct tree *t, struct vm *vm, uint64_t mib, struct err *e)
{
	uint64_t before = vm->row.resize_mib;
	int r;

	if (vm_check_met(vm, e) < 0)
		return -EBUSY;
	if (!vm->ctl || vm->dead)
		return err_set(e, -EBUSY,
			"vm \"%s\" is ending: resize it when it is stopped", vm_name(vm));
	vm->row.resize_mib = mib;
	/* Read with the old size, a disk that was written beyond it would be cut off there,
	 * also after a power cut. */
	r = db_update(t->db, &vm->row, e);
	if (r == 0)
		r = tree_sync_locked(t, e);
	if (r < 0) {
		vm->row.resize_mib = before;
		return r;
	}
	pthread_mutex_unlock(&t->lock);
	fault_point("resize.noted");
	r = vmmctl_resize(vm->ctl, mib, t->config.answer_timeout_ms, e);
	fault_point("resize.grown");
	pthread_mutex_lock(&t->lock);
	if (r == 0)
		vm->row.disk_mib = mib;
	else if (r != -ETIMEDOUT && !vm->dead)
		vm->row.resize_mib = before; /* refused: the disk is as it was */
	if (r < 0)
		err_wrap(e, r, "vm \"%s\"", vm_name(vm));
	if (db_update(t->db, &vm->row, r < 0 ? NULL : e) < 0 && r == 0)
		r = -EIO;
	return r;
}

/* *ret_note: why the filesystem has not grown, "" if it has. Called with the lock. */
static int
resize(struct tree *t, struct vm *vm, uint64_t mib, const struct progress *p,
	char *ret_note, size_t cap, struct err *e)
{
	char path[PATHS_MAX];
	struct err why = {0};
	int r;

	ret_note[0] = '\0';
	if (mib < vm_disk_mib(&vm->row))
		return err_set(e, -EINVAL, "vm \"%s\": disk can only grow (now %llu MiB)",
			vm_name(vm), (unsigned long long)vm_disk_mib(&vm->row));
	if (!vm_state_lives(vm->row.state)) {
		if (mib == vm->row.disk_mib)
			return 0;
		snprintf(ret_note, cap, "it is %s: its disk grows when it is started",
			vm_state_name(vm->row.state));
		vm->row.resize_mib = mib;
		return db_update(t->db, &vm->row, e);
	}
	if (mib > vm->row.disk_mib) {
		r = grow_disk(t, vm, mib, e);
		if (r < 0)
			return r;
	}
	if (vm->row.state != VM_RUNNING || !vm->row.answered) {
		vm->row.resize_mib = mib;
		snprintf(ret_note, cap,
			"the disk has grown, its filesystem has not: %s; `pando resize` again then",
			vm->row.state == VM_PAUSED ? "the VM is paused"
						   : "no agent has answered yet");
		return db_update(t->db, &vm->row, e);
	}
	r = vm_socket_path(t, vm, path);
	pthread_mutex_unlock(&t->lock);
	say(p, "its disk has grown; its filesystem follows");
	if (r == 0)
		r = guest_grow_root(path, mib, GROW_MS, &why);
	fault_point("resize.filesystem");
	pthread_mutex_lock(&t->lock);
	if (r < 0) {
		vm->row.resize_mib = mib;
		db_update(t->db, &vm->row, NULL);
		return err_set(e, r,
			"vm \"%s\": its disk has %llu MiB now, but its filesystem did not grow: %.300s",
			vm_name(vm), (unsigned long long)mib, why.msg);
	}
	vm->row.resize_mib = 0;
	return db_update(t->db, &vm->row, e);
}

int
tree_resize(struct tree *t, const char *name, const struct resize_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	char note[256];
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, "being resized", p, &vm, e);
	if (r == 0) {
		note[0] = '\0';
		if (q->disk_mib)
			r = resize(t, vm, q->disk_mib, p, note, sizeof(note), e);
		if (r == 0 && q->mem_target_mib)
			r = vm_set_mem_target(t, vm, q->mem_target_mib, note, sizeof(note), e);
		if (r == 0) {
			json_out_object(out, NULL);
			vm_json(t, vm, "vm", out, NULL, NULL);
			json_out_str(out, "note", note[0] ? note : NULL);
			json_out_end_object(out);
		}
		if (r == 0 && q->disk_mib) {
			log_info("vm %s (%s): its disk has %llu MiB%s%s", vm->row.id,
				vm_name(vm), (unsigned long long)vm_disk_mib(&vm->row),
				note[0] ? ": " : "", note);
		}
		release(t, vm);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}
