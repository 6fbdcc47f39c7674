/*
 * PUT /v1/vms/{vm}/limits: how many bytes and requests of its disk a VM may have in a second.
 *
 * The row has them; a VMM is told when its VM starts, and when they change. A branch has its
 * parent's, in its row and from its VMM; a VM from a commit has those that the VM had when it was
 * committed. Each has them for itself.
 */
#include "host/vm/tree_priv.h"

#include <errno.h>

int
vm_apply_limits(struct tree *t, struct vm *vm, struct err *e)
{
	const struct disk_limits *l = &vm->row.limits;
	int r;

	if (!l->bps && !l->iops)
		return 0;
	r = vmmctl_limit_disk(vm->ctl, l->bps, l->iops, t->config.answer_timeout_ms, e);
	return r < 0 ? err_wrap(e, r, "vm \"%s\": the limits of its disk", vm_name(vm)) : 0;
}

/* To the VMM. Called without the lock. */
static int
tell(struct tree *t, struct vmmctl *ctl, const struct disk_limits *l, struct err *e)
{
	struct vmm_stats_answer s;
	int r = vmmctl_stats(ctl, t->config.answer_timeout_ms, false, &s, NULL, e);

	if (r < 0)
		return r;
	if (!(s.tracks & VMM_LIMITS_DISK))
		return err_set(e, -ENOTSUP,
			"its VMM is older than this pandod and knows no limits; they hold when it is started again");
	return vmmctl_limit_disk(ctl, l->bps, l->iops, t->config.answer_timeout_ms, e);
}

/* Called with the lock, which is given up meanwhile. */
static int
limit(struct tree *t, struct vm *vm, const struct limit_request *q, struct err *e)
{
	const struct disk_limits before = vm->row.limits;
	struct disk_limits l = before;
	int r = vm_check_met(vm, e);

	if (r < 0)
		return r;
	if (q->limits.bps != LIMIT_AS_IT_IS)
		l.bps = q->limits.bps;
	if (q->limits.iops != LIMIT_AS_IT_IS)
		l.iops = q->limits.iops;
	vm->row.limits = l;
	r = db_limits(t->db, &vm->row, e);
	if (r == 0 && vm_state_lives(vm->row.state) && vm->ctl && !vm->dead) {
		pthread_mutex_unlock(&t->lock);
		r = tell(t, vm->ctl, &l, e);
		pthread_mutex_lock(&t->lock);
		if (r < 0)
			err_wrap(e, r, "vm \"%s\"", vm_name(vm));
	}
	if (r < 0 && r != -ENOTSUP) {
		vm->row.limits = before;
		db_limits(t->db, &vm->row, NULL);
	}
	return r;
}

int
tree_limit(struct tree *t, const char *name, const struct limit_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, "being limited", p, &vm, e);
	if (r == 0) {
		r = limit(t, vm, q, e);
		if (r == 0) {
			vm_json(t, vm, NULL, out, NULL, NULL);
			log_info("vm %s (%s): its disk is limited to %llu bytes and %llu requests a second (0: not)",
				vm->row.id, vm_name(vm),
				(unsigned long long)vm->row.limits.bps,
				(unsigned long long)vm->row.limits.iops);
		}
		vm->op = NULL;
		pthread_cond_broadcast(&t->changed);
		vm_unref(vm);
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}
