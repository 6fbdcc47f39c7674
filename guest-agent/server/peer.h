/*
 * Who may speak to the agent: the host, which owns this machine's memory and disk anyway.
 * A process of this machine that dials the agent's port comes from the machine's own
 * context id or from VMADDR_CID_LOCAL; a sister machine's is never routed, and would have
 * another one.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_PEER_H
#define PANDO_GUEST_AGENT_SERVER_PEER_H

#include <stdbool.h>
#include <sys/socket.h>

#include <linux/vm_sockets.h>

/* peer as accept4(2) gave it: the kernel's word, not the peer's. */
bool peer_is_host(const struct sockaddr_vm *peer);

#endif
