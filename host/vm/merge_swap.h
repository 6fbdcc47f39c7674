/*
 * A merged segment takes the place of its run in a VM's chain, and in its VMM. In this order:
 * 1. The database notes it beside the chain (db_merge_begin). From then on its files stay.
 * 2. The VMM is told (VMM_MERGED) and answers, when it reads the merged segment.
 * 3. The chain has it in the run's place (db_merge_end).
 * The chain and the VMM say the same disk before, between and after. A pandod that is killed
 * after the first step leaves what merge_finish() does again; a branch made in between has the
 * note copied with the chain, and is told, too. A VM whose VMM is gone needs the database only.
 * Needs the lock, which is given up meanwhile, and the VM neither claimed nor read by a commit:
 * it is waited for.
 */
#ifndef PANDO_HOST_VM_MERGE_SWAP_H
#define PANDO_HOST_VM_MERGE_SWAP_H

#include "host/vm/tree_priv.h"

struct merge_run {
	struct chain_link merged;
	struct chain_link *links; /* owned: those it stands for */
	size_t n;
	bool is_of_one; /* it stands for them in the one chain that has them only */
};
void merge_run_done(struct merge_run *m);

/* Waits until nobody has the VM and no commit reads it, and claims it. */
int merge_claim(struct tree *t, struct vm *vm, uint32_t patience_ms, struct err *e);
void merge_release(struct tree *t, struct vm *vm);

/* What waits: a VM is claimed for milliseconds, a commit reads for seconds. */
#define MERGE_PATIENCE_MS 60000u
#define MERGE_PATIENCE_RELATIVE_MS 5000u

/* 0; -ENOTSUP: its VMM is of an older version; -ENOENT: its chain has no such run (any more); -EBUSY: it is used by others all the time;
 * else why it could not be told. */
int merge_take(struct tree *t, struct vm *vm, const struct merge_run *m,
	uint32_t patience_ms, struct err *e);
/* What an earlier merge_take() of this or another pandod left undone; 0: nothing is left. */
int merge_finish(struct tree *t, struct vm *vm, struct err *e);
/* Where vm's own links begin; n: there is none. */
size_t merge_own_links(const struct vm_row *row, const struct chain_link *links, size_t n);

#endif
