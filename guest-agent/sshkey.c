/* The only caller of libsodium in the guest. */
#include "guest-agent/sshkey.h"

#include <dirent.h>
#include <errno.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "common/cleanup.h"
#include "guest-agent/machine.h"

#define FOLDER "/etc/ssh"
#define KEY_FILE FOLDER "/ssh_host_ed25519_key"
#define TYPE "ssh-ed25519"
#define BLOB_MAX 512
#define LINE 70

/* SSH's wire format (RFC 4251 §5), into a buffer that is large enough. */
struct blob {
	uint8_t b[BLOB_MAX];
	size_t n;
};

static void
put(struct blob *o, const void *p, size_t len)
{
	memcpy(o->b + o->n, p, len);
	o->n += len;
}

static void
put_u32(struct blob *o, uint32_t v)
{
	uint8_t be[4] = {
		(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};

	put(o, be, sizeof(be));
}

static void
put_string(struct blob *o, const void *p, size_t len)
{
	put_u32(o, (uint32_t)len);
	put(o, p, len);
}

static void
put_text(struct blob *o, const char *s)
{
	put_string(o, s, strlen(s));
}

static void
base64(char *dst, size_t cap, const struct blob *o)
{
	sodium_bin2base64(dst, cap, o->b, o->n, sodium_base64_VARIANT_ORIGINAL);
}

int
sshkey_make(const uint8_t seed[static SSHKEY_SEED_LEN], const uint8_t check[static 4],
	const char *comment, struct sshkey *ret, struct err *e)
{
	static const char head[] = "openssh-key-v1"; /* with its NUL */
	uint8_t pk[crypto_sign_PUBLICKEYBYTES], sk[crypto_sign_SECRETKEYBYTES];
	struct blob pub = {.n = 0}, priv = {.n = 0}, all = {.n = 0};
	char text[SSHKEY_PRIVATE_MAX], *at = ret->private;

	_Static_assert(crypto_sign_SEEDBYTES == SSHKEY_SEED_LEN, "Ed25519");
	if (strlen(comment) > SSHKEY_COMMENT_MAX)
		return err_sys(e, -ENAMETOOLONG, "the key's comment");
	if (sodium_init() < 0 || crypto_sign_seed_keypair(pk, sk, seed))
		return err_sys(e, -EIO, "making an Ed25519 key");
	put_text(&pub, TYPE);
	put_string(&pub, pk, sizeof(pk));

	put(&priv, check, 4);
	put(&priv, check, 4);
	put(&priv, pub.b, pub.n);
	put_string(&priv, sk, sizeof(sk));
	put_text(&priv, comment);
	for (uint8_t pad = 1; priv.n % 8; pad++)
		put(&priv, &pad, 1);

	put(&all, head, sizeof(head));
	put_text(&all, "none"); /* cipher */
	put_text(&all, "none"); /* key derivation, and its options */
	put_text(&all, "");
	put_u32(&all, 1);
	put_string(&all, pub.b, pub.n);
	put_string(&all, priv.b, priv.n);

	strcpy(ret->public, TYPE " ");
	base64(ret->public + strlen(ret->public), sizeof(ret->public) - strlen(TYPE) - 1,
		&pub);
	base64(text, sizeof(text), &all);
	at = stpcpy(at, "-----BEGIN OPENSSH PRIVATE KEY-----\n");
	for (size_t i = 0, n = strlen(text); i < n; i += LINE)
		at += sprintf(at, "%.*s\n", LINE, text + i);
	strcpy(at, "-----END OPENSSH PRIVATE KEY-----\n");
	sodium_memzero(sk, sizeof(sk));
	sodium_memzero(&priv, sizeof(priv));
	sodium_memzero(&all, sizeof(all));
	sodium_memzero(text, sizeof(text));
	return 0;
}

/* The public key that is there, and looks like one. */
static bool
present(char ret_public[static SSHKEY_PUBLIC_MAX])
{
	cleanup_free char *text = NULL, *secret = NULL;
	size_t len;

	if (machine_read(KEY_FILE ".pub", 4096, &text, NULL) ||
		machine_read(KEY_FILE, 16384, &secret, NULL))
		return false;
	sodium_memzero(secret, strlen(secret));
	text[strcspn(text, "\n")] = 0;
	len = strlen(TYPE " ");
	if (strncmp(text, TYPE " ", len))
		return false;
	len += strcspn(text + len, " ");
	if (len >= SSHKEY_PUBLIC_MAX)
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
		bool key = len > 4 && !strcmp(de->d_name + len - 4, "_key");
		bool pub = len > 8 && !strcmp(de->d_name + len - 8, "_key.pub");
		int r;

		if (strncmp(de->d_name, "ssh_host_", 9) || !(key || pub) ||
			!strncmp(de->d_name, "ssh_host_ed25519_key", 20) || len > 200)
			continue;
		snprintf(path, sizeof(path), FOLDER "/%s", de->d_name);
		r = machine_remove(path, e);
		if (r < 0)
			return r;
	}
	return 0;
}

int
sshkey_install(const char *comment, int keep, char ret_public[static SSHKEY_PUBLIC_MAX],
	struct err *e)
{
	uint8_t random[SSHKEY_SEED_LEN + 4];
	char line[SSHKEY_PUBLIC_MAX + SSHKEY_COMMENT_MAX + 4];
	struct sshkey key;
	int r;

	if (keep && present(ret_public))
		return 0;
	r = machine_random(random, sizeof(random), e);
	if (!r)
		r = sshkey_make(random, random + SSHKEY_SEED_LEN, comment, &key, e);
	sodium_memzero(random, sizeof(random));
	if (r)
		return r;
	snprintf(line, sizeof(line), "%s %s\n", key.public, comment);
	r = remove_others(e);
	if (!r)
		r = machine_write(KEY_FILE, key.private, strlen(key.private), 0600, e);
	if (!r)
		r = machine_write(KEY_FILE ".pub", line, strlen(line), 0644, e);
	memcpy(ret_public, key.public, sizeof(key.public));
	sodium_memzero(&key, sizeof(key));
	return r;
}
