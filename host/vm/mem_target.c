/*
 * The memory that a guest shall keep (POST /v1/vms/{vm}/resize, "mem_target_mib"): its balloon.
 *
 * The target is the VM's, not pandod's: its VMM has it, branches and commits have it with the rest
 * of the VM, and a guest that boots anew begins with all of its memory.
 */
#include <errno.h>
#include <stdio.h>

#include "common/log.h"
#include "host/vm/tree_priv.h"

int
vm_set_mem_target(struct tree *t, struct vm *vm, uint64_t mib, char *ret_note, size_t cap,
	struct err *e)
{
	struct vmm_balloon_answer a;
	struct vmm_stats_answer s;
	int r;

	if (mib > vm->row.mem_mib)
		return err_set(e, -EINVAL,
			"vm \"%s\": a target of %llu MiB is more than the %llu MiB that it was started with",
			vm_name(vm), (unsigned long long)mib,
			(unsigned long long)vm->row.mem_mib);
	if (!vm_state_lives(vm->row.state))
		return err_set(e, -EBUSY,
			"vm \"%s\": it is %s and has no memory; start it first", vm_name(vm),
			vm_state_name(vm->row.state));
	if (vm_check_met(vm, e) < 0)
		return -EBUSY;
	if (!vm->ctl || vm->dead)
		return err_set(e, -EBUSY, "vm \"%s\" is ending", vm_name(vm));
	pthread_mutex_unlock(&t->lock);
	r = vmmctl_stats(vm->ctl, t->config.answer_timeout_ms, false, &s, NULL, e);
	if (r == 0 && !(s.tracks & VMM_HAS_BALLOON))
		r = err_set(e, -EINVAL,
			"its machine has no balloon, since an older pando booted it; stop it and start it again");
	if (r == 0)
		r = vmmctl_balloon(vm->ctl, mib, t->config.answer_timeout_ms, &a, e);
	pthread_mutex_lock(&t->lock);
	if (r < 0)
		return err_wrap(e, r, "vm \"%s\"", vm_name(vm));
	if (!(a.flags & VMM_BALLOON_DRIVER))
		snprintf(ret_note, cap,
			"no driver of its guest works with the balloon; one that starts will find the target");
	log_info("vm %s (%s): shall keep %llu MiB of its memory", vm->row.id, vm_name(vm),
		(unsigned long long)mib);
	return 0;
}

static void
bytes_or_null(struct json_out *out, const char *key, uint64_t bytes)
{
	if (bytes == VMM_BALLOON_UNKNOWN)
		json_out_null(out, key);
	else
		json_out_u64(out, key, bytes);
}

void
vm_balloon_json(const struct vmm_balloon_answer *a, struct json_out *out)
{
	json_out_object(out, "balloon");
	json_out_bool(out, "driver", a->flags & VMM_BALLOON_DRIVER);
	json_out_u64(out, "mem_target_mib", a->mem_target_mib);
	json_out_u64(out, "balloon_bytes", a->balloon_bytes);
	json_out_u64(out, "given_back_bytes", a->given_back_bytes);
	bytes_or_null(out, "guest_free_bytes", a->guest_free_bytes);
	bytes_or_null(out, "guest_available_bytes", a->guest_available_bytes);
	json_out_end_object(out);
}
