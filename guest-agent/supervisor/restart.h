/*
 * Coding agents that were to be kept when the machine ended are started again with it
 * (`pando-agent rpc boot`, rpc.c), once in each boot: after the first identity handshake, when the
 * machine is who it is and its environment is there. A branch or a restored machine has
 * them running already.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RESTART_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RESTART_H

#include "guest-agent/system/helper.h"

#define AGENTS_LIMIT_MS 30000

/* 1: h runs, and will say when it is done; 0: there is nothing to start. */
int agents_start(struct helper *h, struct err *e);

#endif
