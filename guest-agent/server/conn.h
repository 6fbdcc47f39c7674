/*
 * A connection: one request and what follows it (common/wire/agent_wire.h). Nothing here
 * waits: what cannot be sent now waits in the command's journal or in the file system,
 * never in a growing buffer. A peer that breaks the protocol gets a sentence and is
 * closed; a peer that vanishes leaves its command running.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_CONN_H
#define PANDO_GUEST_AGENT_SERVER_CONN_H

#include <stdbool.h>
#include <stdint.h>

#define CONN_MAX 384

/* fd is taken over and must be non-blocking. number: what the host knows it by. connect_line: the peer says "CONNECT
 * <port>\n" first, as to a VMM's socket. is_host: it may say who this machine is. */
void conn_accept(int fd, uint32_t number, bool connect_line, bool is_host);

#endif
