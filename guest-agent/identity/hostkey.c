/* The host keys of this machine. */
#include "common/wire/openssh_key.h"

#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "guest-agent/system/guest_machine.h"

#define FOLDER "/etc/ssh"
#define TYPE "ssh-ed25519"

/* The public key that is there, and looks like one. */
static bool
present(char ret_public[static OPENSSH_KEY_PUBLIC_MAX])
{
	cleanup_free char *text = NULL, *secret = NULL;
	size_t len;

	if (machine_read(OPENSSH_KEY_FILE ".pub", 4096, &text, NULL) ||
		machine_read(OPENSSH_KEY_FILE, 16384, &secret, NULL))
		return false;
	explicit_bzero(secret, strlen(secret));
	text[strcspn(text, "\n")] = 0;
	len = strlen(TYPE " ");
	if (strncmp(text, TYPE " ", len) != 0)
		return false;
	len += strcspn(text + len, " ");
	if (len >= OPENSSH_KEY_PUBLIC_MAX)
		return false;
	memcpy(ret_public, text, len);
	ret_public[len] = 0;
	return true;
}

/* Every host key but the one this file writes: they are those of the machine this one was
 * forked from. */
static int
remove_others(struct err *e)
{
	char path[PATH_MAX];
	cleanup_closedir DIR *d = opendir(machine_path(path, FOLDER));
	struct dirent *de;

	while (d && (de = readdir(d))) {
		size_t len = strlen(de->d_name);
		bool key = len > 4 && strcmp(de->d_name + len - 4, "_key") == 0;
		bool pub = len > 8 && strcmp(de->d_name + len - 8, "_key.pub") == 0;
		int r;

		if (strncmp(de->d_name, "ssh_host_", 9) != 0 || !(key || pub) ||
			strncmp(de->d_name, "ssh_host_ed25519_key", 20) == 0 || len > 200)
			continue;
		snprintf(path, sizeof(path), FOLDER "/%s", de->d_name);
		r = machine_remove(path, e);
		if (r < 0)
			return r;
	}
	return 0;
}

int
openssh_key_install(const char *comment, int keep,
	char ret_public[static OPENSSH_KEY_PUBLIC_MAX], struct err *e)
{
	uint8_t random[OPENSSH_KEY_SEED_LEN + 4];
	char line[OPENSSH_KEY_PUBLIC_MAX + OPENSSH_KEY_COMMENT_MAX + 4];
	struct openssh_key key;
	int r;

	if (keep && present(ret_public))
		return 0;
	r = machine_random(random, sizeof(random), e);
	if (!r)
		r = openssh_key_make(
			random, random + OPENSSH_KEY_SEED_LEN, comment, &key, e);
	explicit_bzero(random, sizeof(random));
	if (r)
		return r;
	snprintf(line, sizeof(line), "%s %s\n", key.public, comment);
	r = remove_others(e);
	if (!r)
		r = machine_write(
			OPENSSH_KEY_FILE, key.private, strlen(key.private), 0600, e);
	if (!r)
		r = machine_write(OPENSSH_KEY_FILE ".pub", line, strlen(line), 0644, e);
	memcpy(ret_public, key.public, sizeof(key.public));
	explicit_bzero(&key, sizeof(key));
	return r;
}
