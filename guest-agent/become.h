/*
 * The course of a hello: its steps one after the other, from the loop, each named to the
 * host before it begins (common/agent_wire.h). The first step that fails ends it; said
 * again it is all done anew.
 */
#ifndef PANDO_AGENT_BECOME_H
#define PANDO_AGENT_BECOME_H

#include <stdbool.h>

#include "guest-agent/hello.h"

#define HOOKS_FOLDER "/etc/pando/fork.d"
#define HOOKS_MAX 64

struct conn;

/* Who this machine is, as an agent before this one noted it. Once, at the start. */
void become_init(void);
/* Takes *h over on success. c (whoever listened before is told -EBUSY) hears of each step
 * and of the end: conn_hello_*(). -ESTALE: the generation is one that this machine has
 * left behind, or the hello is for somebody else. */
int become_begin(struct hello *h, struct conn *c, struct err *e);
/* c is no more; the hello goes on. */
void become_leave(struct conn *c);
/* No command is started now. */
bool become_runs(void);

#endif
