/*
 * POST /v1/vms/{vm}/reset: a VM goes back to a commit, or to the fork point that it came from, in
 * its own process and KVM VM.
 *
 * The commit's materialized image is at hand where the VM came from it; its disk is made one file,
 * once, where it was a base and what differs from it. A fork point is in the frozen fork that the VM's
 * branch call kept, and in the older segments of the VM's disk; the VMM asks for it itself
 * (vmm/keep.h). The VM's row says what it is to
 * be before the VMM is asked (host/vm/reset_row.h), and what it is afterwards. Then its guest takes
 * its identity anew, as a spawn's does: generation, entropy, clock. What it wrote before goes when
 * the database is on the disk.
 *
 * A VMM that dies in between leaves a VM that failed, with the disk of before or of after. One that
 * does not answer is ended.
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
#include "host/commit/commit_track.h"
#include "host/commit/commits_priv.h"
#include "host/vm/reset_row.h"

#define END_MS 20000

struct reset {
	struct commits *commits;
	struct tree *t;
	const struct reset_request *q;
	const struct progress *p;
	struct vm *vm; /* reference, claimed */
	bool to_fork_point;
	char id[STORE_ID_MAX]; /* the commit; to a fork point its commit, empty: it has none */
	struct commit_use use;
	bool used;
	struct vm_row target;
	struct materialized_image image;
	struct vm_segment segment; /* owned */
	struct vmm_reset_answer said;
};

/* With the lock. */
static int
check_vm(const struct vm *vm, struct err *e)
{
	if (!vm_state_lives(vm->row.state))
		return err_set(e, -EBUSY,
			"vm \"%s\" is %s: only a VM that runs or is paused can be reset, so `pando start` it first",
			vm_name(vm), vm_state_name(vm->row.state));
	if (vm_check_met(vm, e) < 0)
		return -EBUSY;
	if (!vm->ctl || vm->dead || vm->closed_ns)
		return err_set(e, -EBUSY,
			"vm \"%s\" is ending: `pando status` will say why, and then `pando start` boots it again",
			vm_name(vm));
	return 0;
}

/* Which commit that is, as a name, or that it is the fork point. With the lock. */
static int
find_target(struct reset *s, char name[static COMMIT_NAME_MAX + 1], struct err *e)
{
	const struct vm_row *row = &s->vm->row;

	name[0] = '\0';
	s->to_fork_point = !s->q->commit[0] && vm_keeps_fork_point(row);
	if (s->to_fork_point) {
		s->target = *row;
		s->target.disk_mib = row->fork_mib;
		memcpy(s->target.commit, row->fork_commit, sizeof(s->target.commit));
		return 0;
	}

	if (s->q->commit[0] || row->origin[0]) {
		snprintf(name, COMMIT_NAME_MAX + 1, "%s",
			s->q->commit[0] ? s->q->commit : row->origin);
		return 0;
	}
	return err_set(e, -EINVAL,
		"vm \"%s\" %s: say which commit it is to go back to; `pando commit %s` makes one",
		vm_name(s->vm),
		row->parent[0] ? "is a branch, and its fork point is not kept (`pando branch --keep-fork-point` keeps one)"
			       : "did not start from a commit",
		vm_name(s->vm));
}

static int
check_shape(const struct reset *s, struct err *e)
{
	const struct vm_row *is = &s->vm->row, *was = &s->target;

	if (is->mem_mib == was->mem_mib && is->vcpus == was->vcpus)
		return 0;
	return err_set(e, -EINVAL,
		"vm \"%s\" has %llu MiB of memory and %u vCPU%s, commit %.12s %llu MiB and %u: a VM can be reset to one of its own shape only; `pando run-commit %.12s` starts another VM",
		vm_name(s->vm), (unsigned long long)is->mem_mib, is->vcpus,
		is->vcpus == 1 ? "" : "s", s->id, (unsigned long long)was->mem_mib, was->vcpus,
		s->id);
}

/* The commit, and its image. */
static int
prepare(struct reset *s, struct store *store, const char *name, struct err *e)
{
	struct store_manifest *m = NULL;
	int r = store_load(store, name, &m, e);

	if (r == 0) {
		memcpy(s->id, m->id, sizeof(s->id));
		r = commit_use_begin(s->commits, &s->use, s->id, e);
		s->used = r == 0;
	}
	if (r == 0)
		r = commit_config_read(m, &s->target, e);
	if (r == 0)
		r = check_shape(s, e);
	if (r == 0)
		r = materialized_get(s->commits, store, m,
			MATERIALIZED_FULL | MATERIALIZED_ONE_DISK, s->p, &s->image, e);
	store_manifest_free(m);
	if (r < 0)
		return r;
	memcpy(s->target.commit, s->id, sizeof(s->target.commit));
	memcpy(s->target.base_path, s->image.disk_path, sizeof(s->target.base_path));
	/* Of another host, or gone: `start` then takes the image of that name. */
	if (s->target.kernel_path[0] && access(s->target.kernel_path, F_OK) < 0)
		s->target.kernel_path[0] = '\0';
	return 0;
}

/* The commit before the fork point may have been deleted since. */
static void
prepare_fork_point(struct reset *s, struct store *store)
{
	if (s->target.commit[0] &&
		store_resolve_any(store, s->target.commit, s->id, NULL) < 0)
		s->target.commit[0] = s->id[0] = '\0';
}

/* What must be known of the VMM, once in its life. */
static int
ask_vmm(struct reset *s, struct err *e)
{
	struct vmm_stats_answer stats;
	struct vm *vm = s->vm;
	int r;

	if (vm->resets_known)
		return 0;
	r = vmmctl_stats(vm->ctl, s->t->config.answer_timeout_ms, false, &stats, NULL, e);
	if (r < 0)
		return r;
	if (!(stats.tracks & VMM_RESETS))
		return err_set(e, -EOPNOTSUPP,
			"vm \"%s\" runs in a VMM that is older than this pandod; `pando stop` and `pando start` give it a new one, or delete it and run its commit",
			vm_name(vm));
	/* A branch's VMM is handed its page map, to find what the guest wrote. Without it all pages
	 * are dropped. */
	if (stats.tracks & VMM_TRACKS_NEEDS_FDS)
		(void)commit_track_prepare(vm);
	pthread_mutex_lock(&s->t->lock);
	vm->vmm_resets = stats.tracks >> VMM_RESETS_SHIFT;
	vm->resets_known = true;
	pthread_mutex_unlock(&s->t->lock);
	return 0;
}

static bool
is_on(const char *path)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	char c = 0;

	return fd >= 0 && read(fd, &c, 1) == 1 && (c == 'Y' || c == '1');
}

/* Whether the CPU walks the guest's page tables itself. A KVM of another kind has shadows of them. */
static bool
kvm_has_no_shadows(void)
{
	return (is_on("/sys/module/kvm_intel/parameters/ept") ||
		       is_on("/sys/module/kvm_amd/parameters/npt")) &&
	       access("/sys/module/kvm_pvm", F_OK) < 0;
}

/* Whatever the VMM did or not, it does no more. Then the row is one or the other. */
static void
end_uncertain(struct reset *s, const struct err *why)
{
	struct tree *t = s->t;
	struct vm *vm = s->vm;
	struct err e;

	pthread_mutex_lock(&t->lock);
	if (!vm->dead && tree_wait_dead(t, vm, 200) < 0) {
		if (!vm->kill_reason[0])
			snprintf(vm->kill_reason, sizeof(vm->kill_reason),
				"ended by pandod in the middle of a reset: %.400s", why->msg);
		if (vm->pidfd >= 0)
			process_kill(vm->pidfd);
		tree_wait_dead(t, vm, END_MS);
	}
	/* One that is neither dead nor answers is the next pandod's. */
	if (vm->dead && reset_row_settle(t, vm, NULL, &e) < 0)
		log_err("vm %s: %s", vm->row.id, e.msg);
	pthread_mutex_unlock(&t->lock);
}

/* VMM_RESET and its answer, between the two that the database hears. */
static int
carry_out(struct reset *s, struct err *e)
{
	struct tree *t = s->t;
	struct vm *vm = s->vm;
	struct vmm_reset msg = {
		.disk_mib = s->target.disk_mib,
		.blob_bytes = s->image.state_bytes,
		.flags = (s->to_fork_point ? VMM_RESET_TO_FORK_POINT : VMM_RESET_HAS_BASE) |
			 (kvm_has_no_shadows() ? VMM_RESET_NO_SHADOWS : 0),
	};
	cleanup_close int null = s->to_fork_point ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
	int fds[VMM_RESET_FD_COUNT] = {
		[VMM_RESET_FD_STATE] = s->to_fork_point ? null : s->image.state_fd,
		[VMM_RESET_FD_MEMORY] = s->to_fork_point ? null : s->image.memory_fd,
		[VMM_RESET_FD_BASE] = s->to_fork_point ? null : s->image.disk_fd,
	};
	bool uncertain = false;
	struct err why = {0};
	int r;

	if (s->to_fork_point && null < 0)
		return err_sys(e, -errno, "/dev/null");
	pthread_mutex_lock(&t->lock);
	r = t->stopping ? err_set(e, -ECANCELED, "pandod is stopping") : check_vm(vm, e);
	if (r == 0)
		r = reset_row_begin(
			t, vm, &s->target, s->to_fork_point, &s->segment, e);
	if (r == 0)
		memcpy(msg.generation, vm->reset->row.generation, sizeof(msg.generation));
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	fault_point("reset.entered");
	vm_segment_put(&s->segment, fds + VMM_RESET_FD_SEG);
	r = vmmctl_reset(
		vm->ctl, &msg, fds, t->config.answer_timeout_ms, &s->said, &uncertain, &why);
	if (r == 0)
		fault_point("reset.done");
	if (r < 0 && (uncertain || r == -ESRCH)) {
		end_uncertain(s, &why);
		return err_set(e, r, "%s", why.msg);
	}
	pthread_mutex_lock(&t->lock);
	if (r == 0) {
		r = reset_row_apply(t, vm, &why);
		vm->vmm_resets = s->said.resets & 0xffff;
	} else {
		struct err also;

		if (s->to_fork_point && r == -ESTALE)
			vm->row.fork_mib = 0;
		if (reset_row_drop(t, vm, &also) < 0 ||
			(r == -ESTALE && db_update(t->db, &vm->row, &also) < 0))
			log_err("vm %s: %s", vm->row.id, also.msg);
		pthread_mutex_unlock(&t->lock);
		return r == -ESTALE
			       ? err_set(e, -EINVAL,
					 "%.300s; name a commit to go back to, or branch again with --keep-fork-point",
					 why.msg)
			       : err_set(e, r, "%s", why.msg);
	}
	pthread_mutex_unlock(&t->lock);
	/* It is reset, and the database does not take it: nobody else may believe the row. */
	if (r < 0) {
		end_uncertain(s, &why);
		return err_set(e, r, "%s", why.msg);
	}
	fault_point("reset.noted");
	return 0;
}

static int
reset(struct reset *s, const char *name, struct json_out *out, struct err *e)
{
	struct tree *t = s->t;
	char target[COMMIT_NAME_MAX + 1], called[VM_CALLED_MAX], where[32];
	uint64_t began_ns = io_now_ns();
	struct store *store;
	int r = commits_store(s->commits, &store, e);

	if (r < 0)
		return r;
	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, "being reset", s->p, &s->vm, e);
	if (r == 0)
		r = check_vm(s->vm, e);
	if (r == 0)
		r = find_target(s, target, e);
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	store_hold(store);
	if (s->to_fork_point)
		prepare_fork_point(s, store);
	else
		r = prepare(s, store, target, e);
	store_release(store);
	if (r == 0)
		r = ask_vmm(s, e);
	if (r == 0) {
		snprintf(where, sizeof(where), s->to_fork_point ? "its fork point" : "commit %.12s",
			s->id);
		say(s->p, "resetting VM %s to %s",
			vm_called(s->vm, called, sizeof(called)), where);
		r = carry_out(s, e);
	}
	if (r < 0) {
		if (e)
			log_info("vm %s (%s): not reset: %s", s->vm->row.id, vm_name(s->vm),
				e->msg);
		return err_wrap(e, r, "resetting vm \"%s\"", vm_name(s->vm));
	}
	tree_sweep_soon(t);
	log_info("vm %s (%s): reset to %s in %llu us, stopped for %llu us",
		s->vm->row.id, vm_name(s->vm), where,
		(unsigned long long)((io_now_ns() - began_ns) / 1000),
		(unsigned long long)(s->said.pause_ns / 1000));
	if (s->q->wait) {
		say(s->p, "VM %s is reset; waiting for its agent",
			vm_called(s->vm, called, sizeof(called)));
		/* It was there before: nobody who goes takes it along. */
		r = vm_wait_booted(t, s->vm, NULL, e);
		if (r < 0)
			return r;
	}
	json_out_object(out, NULL);
	pthread_mutex_lock(&t->lock);
	vm_json(t, s->vm, "vm", out, NULL, NULL);
	pthread_mutex_unlock(&t->lock);
	json_out_str(out, "commit", s->to_fork_point ? NULL : s->id);
	json_out_u64(out, "pause_us", s->said.pause_ns / 1000);
	if (s->said.pages == UINT64_MAX)
		json_out_null(out, "pages");
	else
		json_out_u64(out, "pages", s->said.pages);
	json_out_u64(out, "took_us", (io_now_ns() - began_ns) / 1000);
	json_out_end_object(out);
	return 0;
}

int
commits_reset(struct commits *c, const char *vm, const struct reset_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct reset *s = calloc(1, sizeof(*s));
	struct tree *t = c->tree;
	int r;

	if (!s)
		return err_set(e, -ENOMEM, "out of memory");
	*s = (struct reset){.commits = c,
		.t = t,
		.q = q,
		.p = p,
		.image = MATERIALIZED_IMAGE_INIT,
		.segment = VM_SEGMENT_INIT};
	r = reset(s, vm, out, e);
	if (s->used)
		commit_use_end(c, &s->use);
	pthread_mutex_lock(&t->lock);
	if (s->vm) {
		s->vm->op = NULL;
		s->vm->probe_at_ns = io_now_ns();
		vm_unref(s->vm);
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	materialized_release(c, &s->image);
	/* The one that it lay on may be nobody's now. */
	if (r == 0 && s->said.pages == UINT64_MAX)
		materialized_trim(c);
	vm_segment_done(&s->segment);
	free(s);
	return r;
}
