#include "host/store/store_hash.h"

#include <errno.h>
#include <sodium.h>

static const unsigned char personal[][crypto_generichash_blake2b_PERSONALBYTES] = {
	[HASH_NODE] = "pando tree node",
	[HASH_PACK] = "pando pack index",
};

int
hash_init(void)
{
	return sodium_init() < 0 ? -EIO : 0;
}

void
hash_of(enum hash_domain domain, const void *data, size_t len, struct store_hash *ret)
{
	if (domain == HASH_PLAIN)
		crypto_generichash_blake2b(ret->b, sizeof(ret->b), data, len, NULL, 0);
	else
		crypto_generichash_blake2b_salt_personal(ret->b, sizeof(ret->b), data,
			len, NULL, 0, NULL, personal[domain]);
}

void
hash_to_hex(const struct store_hash *h, char ret[static STORE_HEX + 1])
{
	sodium_bin2hex(ret, STORE_HEX + 1, h->b, sizeof(h->b));
}

bool
hash_from_hex(const char *hex, struct store_hash *ret)
{
	size_t len;

	if (strspn(hex, "0123456789abcdef") != STORE_HEX || hex[STORE_HEX])
		return false;
	return sodium_hex2bin(ret->b, sizeof(ret->b), hex, STORE_HEX, NULL, &len, NULL) ==
		       0 &&
	       len == sizeof(ret->b);
}
