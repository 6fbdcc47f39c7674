/*
 * The key with which this PANDO_HOME comes into its guests over SSH: Ed25519, made when
 * it is not there, never changed. pandod makes it and tells guests the public half
 * (host/agent/agent_handshake.h); `pando` and OpenSSH read the private one.
 */
#ifndef PANDO_HOST_SSH_SSH_KEY_H
#define PANDO_HOST_SSH_SSH_KEY_H

#include "common/err.h"
#include "common/wire/agent_wire.h"

/* Below PANDO_HOME: the folder (0700), and in it the key (0600) and, for people, its
 * public half with the end ".pub". */
#define SSH_KEY_FOLDER "ssh"
#define SSH_KEY_FILE SSH_KEY_FOLDER "/id_ed25519"

/* For one process at a time. ret_public: "ssh-ed25519 AAAA…". A file that is there and is
 * no such key is -EINVAL with the mend. */
int ssh_key_of_home(
	const char *home, char ret_public[static AGENT_SSH_KEY_LEN + 1], struct err *e);

#endif
