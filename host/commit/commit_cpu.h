/*
 * What a commit needs of the CPU, from the state that its VMM gave (vmm/snapshot.h).
 */
#ifndef PANDO_HOST_COMMIT_COMMIT_CPU_H
#define PANDO_HOST_COMMIT_COMMIT_CPU_H

#include <stddef.h>

#include "common/err.h"

/*
 * {"features":["aes","avx",…]} by the names of Linux, as vCPU 0 was told that it has
 * them: malloc'd, the caller's. A host whose KVM lacks one refuses the commit by that
 * name (vmm/snapshot.c), which looks at the state itself; this is for people. The state
 * may come from a hostile VMM: -EBADMSG.
 */
int commit_cpu(const void *state, size_t len, char **ret, struct err *e);

#endif
