/*
 * What changed in a VM since its last commit (common/wire/vmm_wire.h, "Dirty pages"), so that
 * the next one reads only that: pages of memory, and segments of the disk.
 *
 * The VMM keeps the id of the commit that its bitmap is relative to, which comes back with the
 * next frozen fork's state, to whichever pandod asks. The VM's row names the last segment that
 * this commit's disk has in it (commit_segment), and merges of segments keep that right. Both are
 * used only when the VM's row says that its last commit is that one, and the store has it and
 * knows of no damage: so a pandod that died between a commit and the word of it to the VMM, a commit that
 * was deleted, lost chunks, and a VMM that lies lead to a commit that reads all, or, with a VMM
 * that lies about its own pages, to a wrong commit of that VM and of no other.
 */
#ifndef PANDO_HOST_COMMIT_COMMIT_TRACK_H
#define PANDO_HOST_COMMIT_COMMIT_TRACK_H

#include "host/commit/commit_read.h"
#include "host/vm/tree_priv.h"

struct commit_track {
	struct store_manifest *base; /* owned; NULL: the commit reads all */
	bool has_memory;	     /* base and bitmaps say what the memory is */
	struct commit_since since;   /* with has_memory; borrows bitmaps */
	uint8_t *bitmaps;	     /* owned */
};
void commit_track_done(struct commit_track *t);

/* Before the fork, with the claim: hands the VMM what it needs. Flags for the VMM_FORK; 0 where
 * the VMM is one that cannot tell. Failures are logged: the commit reads all, then. */
uint32_t commit_track_prepare(struct vm *vm);

/* What the frozen fork wrote behind its state. row: the VM's, at the fork. The store must not be
 * collected meanwhile. A VMM that contradicts itself is -EPROTO. */
int commit_track_read(int fd, const struct vmm_state_answer *a, const struct vm_row *row,
	struct store *s, struct commit_track *ret, struct err *e);

/* How many of the row's links base has: those need not be read. 0: all must. */
size_t commit_track_links(const struct commit_track *t, const struct vm_row *row,
	const struct chain_link *links, size_t n_links);

/* To the VMM: the commit of this fork is durable. Failures are logged. */
void commit_track_durable(struct vm *vm, const uint8_t fork[static 16], const char *id);

#endif
