/*
 * SSH into this machine without a network: each connection to port AGENT_SSH_PORT becomes
 * the standard input and output of an `sshd -i` of its own. sshd shows the host key that
 * the identity handshake made (openssh_key.h), and lets in whoever has the key that the identity handshake named, or one
 * of the user's own.
 *
 * Who cannot be served gets one line that is no SSH, which begins with AGENT_SSH_SAYS;
 * SSH's clients pass over such lines (RFC 4253, 4.2), the host's programs show them.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_SSHD_H
#define PANDO_GUEST_AGENT_SERVER_SSHD_H

#include <stdint.h>

#include "common/err.h"

#define SSHD_MAX 128 /* at once */

/* fd, a connected stream socket, is taken over. connection: what the host knows it by.
 * Never waits. */
void sshd_serve(int fd, uint32_t connection);
/* Kills all that was started over that connection. -ESRCH: it is not open. */
int sshd_kill(uint32_t connection, struct err *e);

#endif
