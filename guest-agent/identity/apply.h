/*
 * The course of an identity handshake: its steps one after the other, from the loop, each named to the
 * host before it begins (common/wire/agent_wire.h). The first step that fails ends it; said
 * again it is all done anew.
 */
#ifndef PANDO_GUEST_AGENT_IDENTITY_APPLY_H
#define PANDO_GUEST_AGENT_IDENTITY_APPLY_H

#include <stdbool.h>

#include "common/err.h"
#include "guest-agent/identity/identity_request.h"

#define HOOKS_FOLDER "/etc/pando/fork.d"
#define HOOKS_MAX 64

/* Who this machine is, as an agent before this one noted it. Once, at the start. */
void apply_init(void);
/* Hears of a handshake's course: a step begins; the end, with the acknowledgement's JSON, or
 * with the reason why there is none. Nothing is said after the end. */
struct apply_listener {
	void (*step)(void *ctx, const char *name);
	void (*done)(void *ctx, const char *json);
	void (*failed)(void *ctx, const struct err *why);
};
/* Takes *h over on success. The listener (both pointers weak) takes the place of an earlier
 * one, which is told -EBUSY. -ESTALE: the generation is one that this machine has left
 * behind, or the handshake is for another machine. */
int apply_begin(struct handshake *h, const struct apply_listener *listener, void *ctx,
	struct err *e);
/* The listener with that ctx is no more; the handshake goes on. */
void apply_leave(const void *ctx);
/* No command is started now. */
bool apply_runs(void);

#endif
