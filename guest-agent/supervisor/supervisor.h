/*
 * The supervisor of one coding agent: starts its program (through a shim, shim.h),
 * keeps what it writes (rpc_journal.h), gives it what was sent (rpc_spool.h, and the FIFO
 * `in`), starts it again by policy, and ends it.
 *
 * A process of its own, one a coding agent, as root or whoever started it. Peers: the
 * program, which may write anything and do so for ever; writers of the FIFO, likewise;
 * senders, by way of the spool. It may be killed at any time and started again: nothing
 * is lost but the part of a line that it had read from the FIFO.
 *
 * Signals: TERM and INT stop the program, and with it the supervisor (only `rpc stop` makes
 * the next boot forget it); HUP reads the
 * configuration again, and starts what does not run.
 */
#ifndef PANDO_GUEST_AGENT_SUPERVISOR_SUPERVISOR_H
#define PANDO_GUEST_AGENT_SUPERVISOR_SUPERVISOR_H

#include <stdbool.h>
#include <sys/types.h>

#include "guest-agent/supervisor/rpc_place.h"

/* A supervisor (if_wanted) as a process of its own, with its log for stderr. *ret_pid: our
 * child. */
int supervisor_spawn(const struct rpc_place *p, pid_t *ret_pid, struct err *e);

/* Exit status: EXIT_OK stopped; EXIT_CONFLICT another supervisor is there; others as errors.
 * if_wanted: only while it is to be kept; one that was stopped meanwhile is left so. */
int supervisor_main(const char *name, bool if_wanted);

#endif
