/*
 * What the process gives up before the first guest instruction, so that a guest that
 * takes it over finds little: namespaces of its own, resource limits, no new privileges,
 * and a list of system calls.
 *
 * Branches are forks of a sealed process and are sealed from birth. There is no pid
 * namespace: a branch must outlive the VM it came from, and would not outlive that one's
 * init.
 */
#ifndef PANDO_VMM_SEAL_H
#define PANDO_VMM_SEAL_H

#include "common/err.h"

/* At the start, one thread: signals, limits, namespaces, an empty root folder. What the
 * host does not allow is said once in the log, and the VM runs without it; limits and
 * capabilities that cannot be dropped are errors. */
int seal_surroundings(struct err *e);

/* Last, before the first vCPU thread: no new privileges, the system call filter. A call
 * that is not in it ends the process (SIGSYS). */
int seal_calls(struct err *e);

/* After the seal: processes of the same user may read this one's memory (a frozen fork's, to
 * be written to a commit), or may not again. */
int seal_let_user_read(struct err *e);
void seal_let_nobody_read(void);

#endif
