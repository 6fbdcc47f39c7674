/*
 * The course of an identity handshake: its steps one after the other, from the loop, each named to the
 * host before it begins (common/wire/agent_wire.h). The first step that fails ends it; said
 * again it is all done anew.
 */
#ifndef PANDO_GUEST_AGENT_IDENTITY_APPLY_H
#define PANDO_GUEST_AGENT_IDENTITY_APPLY_H

#include <stdbool.h>

#include "guest-agent/identity/identity_request.h"

#define HOOKS_FOLDER "/etc/pando/fork.d"
#define HOOKS_MAX 64

struct conn;

/* Who this machine is, as an agent before this one noted it. Once, at the start. */
void apply_init(void);
/* Takes *h over on success. c (whoever listened before is told -EBUSY) hears of each step
 * and of the end: conn_handshake_*(). -ESTALE: the generation is one that this machine has
 * left behind, or the identity handshake is for somebody else. */
int apply_begin(struct handshake *h, struct conn *c, struct err *e);
/* c is no more; the identity handshake goes on. */
void apply_leave(struct conn *c);
/* No command is started now. */
bool apply_runs(void);

#endif
