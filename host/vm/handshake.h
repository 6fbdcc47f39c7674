/*
 * Who a VM is, said to its guest (common/wire/agent_wire.h, Identity handshake): after every boot, branch,
 * restore and spawn as somebody new, and to whoever was branched or committed as a
 * parent, whose random numbers the other one knows. A VM whose agent has not acknowledged
 * is `starting`, and what fails to is ended: nobody reaches a machine that believes to be
 * another one.
 */
#ifndef PANDO_HOST_VM_HANDSHAKE_H
#define PANDO_HOST_VM_HANDSHAKE_H

#include "host/vm/tree_priv.h"

/* Without the lock, unless they say otherwise. */

/* Says identity handshake as the row has it, and notes what was acknowledged, also that it answered.
 * cancel, ctx: as for agent_handshake(). -EBUSY: somebody says it already. */
int vm_handshake(struct tree *t, struct vm *vm, int timeout_ms, int (*cancel)(void *ctx),
	void *ctx, struct err *e);
/* Runs and has acknowledged another generation than it has. With the lock. */
bool vm_handshake_due(const struct vm *vm);
/* The tender's: one round of it with a VM that nobody waits for. With the lock, which is
 * given up meanwhile. */
void vm_handshake_tend(struct tree *t, struct vm *vm);

/* A parent is told while its children are waited for. */
struct handshake_parent {
	struct tree *t;
	struct vm *vm; /* reference; NULL: none is told */
	pthread_t thread;
};
void handshake_parent_begin(struct handshake_parent *p, struct tree *t, struct vm *vm);
/* Waits for it; a parent that does not acknowledge is told again by the tender. */
void handshake_parent_end(struct handshake_parent *p, const struct progress *progress);

/* What the i-th VM of a call gets besides the defaults: given with its words replaced,
 * into the database. With the lock, in the transaction that inserts the row. */
int vm_environment_enter(struct tree *t, const struct vm *vm, const struct env *given,
	unsigned index, struct err *e);

#endif
