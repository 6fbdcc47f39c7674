/*
 * Private keys in OpenSSH's format: the input is what stands between the lines that begin
 * and end such a file. What is read as one has a public half of the one form there is.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/wire/agent_wire.h"
#include "common/wire/openssh_key.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char head[] = "-----BEGIN OPENSSH PRIVATE KEY-----\n";
	static const char tail[] = "-----END OPENSSH PRIVATE KEY-----\n";
	char *text = malloc(size + sizeof(head) + sizeof(tail));
	char public[OPENSSH_KEY_PUBLIC_MAX];
	struct err e = {0};
	int r;

	memcpy(text, head, sizeof(head) - 1);
	memcpy(text + sizeof(head) - 1, data, size);
	memcpy(text + sizeof(head) - 1 + size, tail, sizeof(tail));
	r = openssh_key_public(text, public, &e);
	if (r > 0 || (r < 0 && (e.code != r || !*e.msg)))
		abort();
	if (!r && (strlen(public) != AGENT_SSH_KEY_LEN ||
			  strncmp(public, "ssh-ed25519 AAAA", 16) != 0))
		abort();
	free(text);
	return 0;
}
