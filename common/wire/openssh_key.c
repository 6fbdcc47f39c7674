/* The only caller of libsodium in the guest, and for keys in pandod. */
#include "common/wire/openssh_key.h"

#include <errno.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define MAGIC "openssh-key-v1" /* and its NUL */
#define BEGIN "-----BEGIN OPENSSH PRIVATE KEY-----\n"
#define END "-----END OPENSSH PRIVATE KEY-----\n"
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
openssh_key_make(const uint8_t seed[static OPENSSH_KEY_SEED_LEN],
	const uint8_t check[static 4], const char *comment, struct openssh_key *ret,
	struct err *e)
{
	uint8_t pk[crypto_sign_PUBLICKEYBYTES], sk[crypto_sign_SECRETKEYBYTES];
	struct blob pub = {.n = 0}, priv = {.n = 0}, all = {.n = 0};
	char text[OPENSSH_KEY_PRIVATE_MAX], *at = ret->private;

	_Static_assert(crypto_sign_SEEDBYTES == OPENSSH_KEY_SEED_LEN, "Ed25519");
	if (strlen(comment) > OPENSSH_KEY_COMMENT_MAX)
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

	put(&all, MAGIC, sizeof(MAGIC));
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
	at = stpcpy(at, BEGIN);
	for (size_t i = 0, n = strlen(text); i < n; i += LINE)
		at += sprintf(at, "%.*s\n", LINE, text + i);
	strcpy(at, END);
	sodium_memzero(sk, sizeof(sk));
	sodium_memzero(&priv, sizeof(priv));
	sodium_memzero(&all, sizeof(all));
	sodium_memzero(text, sizeof(text));
	return 0;
}

/*
 * Reading.
 */

struct reader {
	const uint8_t *b;
	size_t n;
};

static bool
take(struct reader *r, size_t len, const uint8_t **ret)
{
	if (len > r->n)
		return false;
	*ret = r->b;
	r->b += len;
	r->n -= len;
	return true;
}

static bool
take_u32(struct reader *r, uint32_t *ret)
{
	const uint8_t *p;

	if (!take(r, 4, &p))
		return false;
	*ret = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
	return true;
}

static bool
take_string(struct reader *r, struct reader *ret)
{
	uint32_t len;
	const uint8_t *p;

	if (!take_u32(r, &len) || !take(r, len, &p))
		return false;
	*ret = (struct reader){p, len};
	return true;
}

static bool
is_text(const struct reader *r, const char *text)
{
	return r->n == strlen(text) && memcmp(r->b, text, r->n) == 0;
}

/* The blob of the public key in the decoded file. */
static bool
find_public(struct reader all, struct reader *ret)
{
	struct reader cipher, kdf, options, blob, type, pk;
	const uint8_t *magic;
	uint32_t n;

	if (!take(&all, sizeof(MAGIC), &magic) ||
		memcmp(magic, MAGIC, sizeof(MAGIC)) != 0 || !take_string(&all, &cipher) ||
		!is_text(&cipher, "none") || !take_string(&all, &kdf) ||
		!is_text(&kdf, "none") || !take_string(&all, &options) || options.n ||
		!take_u32(&all, &n) || n != 1 || !take_string(&all, &blob))
		return false;
	*ret = blob;
	return take_string(&blob, &type) && is_text(&type, TYPE) &&
	       take_string(&blob, &pk) && pk.n == crypto_sign_PUBLICKEYBYTES && !blob.n;
}

int
openssh_key_public(
	const char *text, char ret_public[static OPENSSH_KEY_PUBLIC_MAX], struct err *e)
{
	uint8_t file[OPENSSH_KEY_PRIVATE_MAX];
	struct blob pub = {.n = 0};
	struct reader blob;
	const char *end;
	size_t len;
	bool good;

	text = strncmp(text, BEGIN, strlen(BEGIN)) != 0 ? "" : text + strlen(BEGIN);
	end = strstr(text, "-----END");
	good = end && sodium_init() >= 0 &&
	       !sodium_base642bin(file, sizeof(file), text, (size_t)(end - text), "\r\n",
		       &len, NULL, sodium_base64_VARIANT_ORIGINAL) &&
	       find_public((struct reader){file, len}, &blob);
	if (good) {
		put(&pub, blob.b, blob.n);
		strcpy(ret_public, TYPE " ");
		base64(ret_public + strlen(ret_public),
			OPENSSH_KEY_PUBLIC_MAX - strlen(TYPE) - 1, &pub);
	}
	sodium_memzero(file, sizeof(file));
	return good ? 0
		    : err_set(e, -EINVAL,
			      "it is no Ed25519 key without a password, in OpenSSH's format");
}
