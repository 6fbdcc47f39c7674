/*
 * The identity handshake (common/wire/agent_wire.h): tells a guest who its VM is. After every
 * boot, branch, restore and spawn the guest gets a new identity. A VM that was branched or
 * committed is told to reseed, because the other one knows its random numbers. Until the
 * guest acknowledges, the VM's state is `starting`; if it fails to, pandod ends it. So nobody
 * reaches a VM that takes itself for another one.
 */
#ifndef PANDO_HOST_VM_HANDSHAKE_H
#define PANDO_HOST_VM_HANDSHAKE_H

#include "host/vm/tree_priv.h"

/* Without the lock, unless they say otherwise. */

/* Does the identity handshake as the row has it; notes what was acknowledged, also that it answered.
 * cancel, ctx: as for agent_handshake(). -EBUSY: another one is under way. */
int vm_handshake(struct tree *t, struct vm *vm, int timeout_ms, int (*cancel)(void *ctx),
	void *ctx, struct err *e);
/* Runs and has acknowledged another generation than it has. With the lock. */
bool vm_handshake_due(const struct vm *vm);
/* The health monitor's: one round of it with a VM that nobody waits for. It kills a VM whose guest
 * refuses, or spends more than config.handshake_timeout_ms in one step of the handshake, or
 * AGENT_HANDSHAKE_CEILING times as much in all. With the lock, which is given up meanwhile. */
void vm_handshake_watch(struct tree *t, struct vm *vm);

/* A parent is told while its children are waited for. */
struct handshake_parent {
	struct tree *t;
	struct vm *vm; /* reference; NULL: none is told */
	pthread_t thread;
};
void handshake_parent_begin(struct handshake_parent *p, struct tree *t, struct vm *vm);
/* Waits for it; a parent that does not acknowledge is told again by the health monitor. */
void handshake_parent_end(struct handshake_parent *p, const struct progress *progress);

/* What the i-th VM of a call gets besides the defaults: given with its words replaced,
 * into the database. With the lock, in the transaction that inserts the row. */
int vm_environment_enter(struct tree *t, const struct vm *vm, const struct env *given,
	unsigned index, struct err *e);

#endif
