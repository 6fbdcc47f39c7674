/*
 * SSH keys: Ed25519, made by libsodium and written as OpenSSH writes them (PROTOCOL.key
 * of OpenSSH: "openssh-key-v1", unencrypted; the public half as in RFC 8709). Host keys
 * of the machine; and, for pandod, which links sshkey.c too, the key that the host comes
 * in with.
 */
#ifndef PANDO_AGENT_SSHKEY_H
#define PANDO_AGENT_SSHKEY_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define SSHKEY_FILE "/etc/ssh/ssh_host_ed25519_key"
#define SSHKEY_SEED_LEN 32
/* "ssh-ed25519 " and 68 letters of base64. */
#define SSHKEY_PUBLIC_MAX 96
#define SSHKEY_COMMENT_MAX 96
#define SSHKEY_PRIVATE_MAX 1024

struct sshkey {
	char public[SSHKEY_PUBLIC_MAX];	  /* "ssh-ed25519 AAAA…", no comment, no LF */
	char private[SSHKEY_PRIVATE_MAX]; /* the file's text */
};

/* From 32 secret random bytes and 4 more that need not be secret. The caller wipes *ret.
 */
int sshkey_make(const uint8_t seed[static SSHKEY_SEED_LEN], const uint8_t check[static 4],
	const char *comment, struct sshkey *ret, struct err *e);

/* The public half of such a file's text. -EINVAL: it is none, or an encrypted one. */
int sshkey_public(
	const char *text, char ret_public[static SSHKEY_PUBLIC_MAX], struct err *e);

/* hostkey.c: new host keys for this machine, in the place of all that are there; or, when
 * keep is set and there is an Ed25519 one, that one. ret_public: as in struct sshkey. */
int sshkey_install(const char *comment, int keep,
	char ret_public[static SSHKEY_PUBLIC_MAX], struct err *e);

#endif
