/*
 * A user namespace of one's own, for a process that wants to have less than its user.
 *
 * Being allowed to make one does not mean that it is of use: AppArmor (Ubuntu since 24.04)
 * lets unshare() succeed and refuses the map of user ids, and so does a read-only /proc. A
 * process is then nobody in it and cannot go back. So userns_try() finds out in a child.
 */
#ifndef PANDO_COMMON_USERNS_H
#define PANDO_COMMON_USERNS_H

#include "common/err.h"

/* Whether userns_enter() would succeed; forks once. One thread; SIGCHLD is not ignored.
 * On failure the sentence names the step. */
int userns_try(int others, struct err *e);

/* Enters a new user namespace and those of `others` (CLONE_NEW…). It knows one user and one
 * group, our own, by the same numbers: peer credentials keep their meaning. After a
 * failure the process may be in a namespace where it is nobody. */
int userns_enter(int others, struct err *e);

#endif
