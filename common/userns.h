/*
 * A user namespace of one's own, for a process that wants to have less than its user. It
 * knows one user and one group, our own, by the same numbers: peer credentials keep their
 * meaning.
 *
 * Being allowed to make one does not mean that it is of use: AppArmor (Ubuntu since 24.04)
 * lets the kernel make it and refuses the map of user ids, and so does a read-only /proc. A
 * process is then nobody in it and cannot go back. So a child makes the namespace and maps
 * the ids. The child shares the caller's memory and descriptors and has ended on return.
 */
#ifndef PANDO_COMMON_USERNS_H
#define PANDO_COMMON_USERNS_H

#include "common/err.h"

/* Whether a user namespace can be made and used, and with it those of `others` (CLONE_NEW…).
 * On failure the sentence names the step. Callers have one thread. */
int userns_try(int others, struct err *e);

/* Enters a new user namespace. After a failure the caller is where it was, and the sentence
 * names the step. Callers have one thread. */
int userns_enter(struct err *e);

#endif
