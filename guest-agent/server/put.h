/*
 * Puts. Writing files, and above all having them on the disk before they get their names,
 * waits for the disk, and the agent waits for nobody: each put is a process of its own,
 * which takes the connection over when the request is read, says ok and all that follows.
 *
 * A connection that ends early ends the put: what has no name by then is removed. So it
 * is in a branch that is made meanwhile, whose connections are gone.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_PUT_H
#define PANDO_GUEST_AGENT_SERVER_PUT_H

#include <stddef.h>
#include <sys/uio.h>

#include "common/err.h"
#include "common/wire/tar.h"

#define PUTS_MAX 64 /* at once; one more is EAGAIN */

/* fd, u, and the bytes that came after the request (rx) or are still to be said before
 * its answer (tx), are borrowed: the process has its own. Never waits. */
int put_start(
	int fd, struct tar_unpack *u, struct iovec rx, struct iovec tx, struct err *e);
/* What the process does; fd is its own and is blocking. Also for a fuzzer, which looks at
 * it from within. */
void put_serve(int fd, struct tar_unpack *u, const void *rx, size_t len);

#endif
