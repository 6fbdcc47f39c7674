#include "host/ssh/ssh_key.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/paths.h"
#include "common/wire/openssh_key.h"

#define COMMENT "pando"

static int
make(const char *path, struct openssh_key *key, struct err *e)
{
	uint8_t random[OPENSSH_KEY_SEED_LEN + 4];
	int r = getrandom(random, sizeof(random), 0) == (ssize_t)sizeof(random)
			? 0
			: err_sys(e, -errno, "getrandom");

	if (r == 0)
		r = openssh_key_make(
			random, random + OPENSSH_KEY_SEED_LEN, COMMENT, key, e);
	explicit_bzero(random, sizeof(random));
	return r < 0 ? r
		     : io_write_file_atomic(
			       path, key->private, strlen(key->private), 0600, e);
}

int
ssh_key_of_home(
	const char *home, char ret_public[static AGENT_SSH_KEY_LEN + 1], struct err *e)
{
	char path[PATHS_MAX], folder[PATHS_MAX], public_path[PATHS_MAX];
	char line[OPENSSH_KEY_PUBLIC_MAX + sizeof(COMMENT) + 4];
	cleanup_free char *text = NULL;
	struct openssh_key key = {0};
	int r = paths_format(folder, sizeof(folder), e, "%s/" SSH_KEY_FOLDER, home);

	if (r == 0)
		r = paths_format(path, sizeof(path), e, "%s/" SSH_KEY_FILE, home);
	if (r == 0)
		r = paths_format(public_path, sizeof(public_path), e, "%s.pub", path);
	if (r == 0)
		r = io_mkdir_p(folder, 0700, e);
	if (r < 0)
		return r;
	r = io_read_file(path, OPENSSH_KEY_PRIVATE_MAX, &text, NULL, e);
	if (r == -ENOENT) {
		r = make(path, &key, e);
	} else if (r == 0) {
		struct err why = {0};

		r = openssh_key_public(text, key.public, &why);
		if (r < 0)
			err_set(e, r,
				"%.200s: %s; remove it, and a new one is made when pandod starts",
				path, why.msg);
	}
	if (text)
		explicit_bzero(text, strlen(text));
	explicit_bzero(key.private, sizeof(key.private));
	if (r < 0)
		return r;
	if (strlen(key.public) != AGENT_SSH_KEY_LEN)
		return err_set(e, -EINVAL, "%.200s: a key of another length", path);
	snprintf(line, sizeof(line), "%s " COMMENT "\n", key.public);
	if (!text || access(public_path, F_OK) < 0)
		r = io_write_file_atomic(public_path, line, strlen(line), 0644, e);
	if (r == 0)
		memcpy(ret_public, key.public, AGENT_SSH_KEY_LEN + 1);
	return r;
}
