#include "guest-agent/server/peer.h"

bool
peer_is_host(const struct sockaddr_vm *peer)
{
	return peer->svm_family == AF_VSOCK && peer->svm_cid == VMADDR_CID_HOST;
}
