/*
 * What is old and read by nobody is given back: segments of a VM's chain that decide no block any
 * more leave it, and one of which half is dead, and which no other VM has, is to be written
 * again without that half. So a disk takes no more than twice what is live of it, but for the
 * segments that are too small to matter.
 *
 * A block is dead when later sealed segments on the same side of the fork point that the VM came
 * from decide it (merge.h). All of these are made durable before: after a power loss the chain's
 * replay must come to them.
 */
#ifndef PANDO_HOST_VM_MERGE_DEAD_H
#define PANDO_HOST_VM_MERGE_DEAD_H

#include "host/vm/merge_plan.h"
#include "host/vm/tree_priv.h"

#define MERGE_DEAD_BLOCKS 1024u /* 4 MiB: smaller ones wait for the next merge */

/* 1: ret is a run of one segment that is half dead, of links (the chain as it is then, malloc'd,
 * n with the one being written), and ret_later is how many of those behind it hide its blocks;
 * 0: there is none. With the lock, which is given up meanwhile. */
int merge_dead(struct tree *t, struct vm *vm, struct chain_link **ret_links, size_t *ret_n,
	struct merge_plan *ret, size_t *ret_later, struct err *e);

#endif
