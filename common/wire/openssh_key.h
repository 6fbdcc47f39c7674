/*
 * SSH keys: Ed25519, made by libsodium and written as OpenSSH writes them (PROTOCOL.key
 * of OpenSSH: "openssh-key-v1", unencrypted; the public half as in RFC 8709). Host keys
 * of the machine; and, for pandod, which links openssh_key.c too, the key that the host comes
 * in with.
 */
#ifndef PANDO_COMMON_WIRE_OPENSSH_KEY_H
#define PANDO_COMMON_WIRE_OPENSSH_KEY_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define OPENSSH_KEY_FILE "/etc/ssh/ssh_host_ed25519_key"
#define OPENSSH_KEY_SEED_LEN 32
/* "ssh-ed25519 " and 68 letters of base64. */
#define OPENSSH_KEY_PUBLIC_MAX 96
#define OPENSSH_KEY_COMMENT_MAX 96
#define OPENSSH_KEY_PRIVATE_MAX 1024

struct openssh_key {
	char public[OPENSSH_KEY_PUBLIC_MAX]; /* "ssh-ed25519 AAAA…", no comment, no LF */
	char private[OPENSSH_KEY_PRIVATE_MAX]; /* the file's text */
};

/* From 32 secret random bytes and 4 more that need not be secret. The caller wipes *ret.
 */
int openssh_key_make(const uint8_t seed[static OPENSSH_KEY_SEED_LEN],
	const uint8_t check[static 4], const char *comment, struct openssh_key *ret,
	struct err *e);

/* The public half of such a file's text. -EINVAL: it is none, or an encrypted one. */
int openssh_key_public(
	const char *text, char ret_public[static OPENSSH_KEY_PUBLIC_MAX], struct err *e);

/* hostkey.c: new host keys for this machine, in the place of all that are there; or, when
 * keep is set and there is an Ed25519 one, that one. ret_public: as in struct sshkey. */
int openssh_key_install(const char *comment, int keep,
	char ret_public[static OPENSSH_KEY_PUBLIC_MAX], struct err *e);

#endif
