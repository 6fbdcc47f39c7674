/*
 * For a person who wants to see a coding agent at work: tmux sessions <name>-rpc, its
 * lines as they come, and <name>-keeper, the supervisor's log. The program itself has pipes,
 * not a terminal: a pane of its own would show nothing. Sessions come and go without any
 * effect on it.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_RPC_WATCH_H
#define PANDO_GUEST_AGENT_SUPERVISOR_RPC_WATCH_H

#include "guest-agent/supervisor/rpc_place.h"

/* Makes both, where there is a tmux; does not wait for it. */
void rpc_watch_sessions(const struct rpc_place *p);

/* Shows the lines from the last few on, until the supervisor has stopped. supervisor: its log. */
int rpc_watch_main(const char *name, bool supervisor);

#endif
