/*
 * openssl-random.so: a provider for OpenSSL 3 whose only algorithm is a random generator that
 * has no state: each draw is getrandom(2).
 *
 * Loaded into programs of a guest by openssl.cnf (files/guest/usr/lib/pando/openssl.cnf). OpenSSL's
 * own generators live in the memory of each process and are seeded anew after minutes at the
 * earliest: until then all branches of a machine draw the same from them, keys too. The kernel's is
 * made another one in each branch before anybody can reach it. Its draws need no lock.
 *
 * Needs no symbol of libcrypto, so that it fits any OpenSSL 3, also one that is linked
 * statically. The interface: provider(7), provider-rand(7).
 */
#include <errno.h>
#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <stddef.h>
#include <string.h>
#include <sys/random.h>

#define MAX_REQUEST (1u << 16)
#define STRENGTH 256u

static int
draw(unsigned char *dst, size_t len)
{
	while (len) {
		ssize_t n = getrandom(dst, len, 0);

		if (n < 0 && errno != EINTR)
			return 0;
		if (n > 0) {
			dst += n;
			len -= (size_t)n;
		}
	}
	return 1;
}

static void *
rand_new(void *provider, void *parent, const OSSL_DISPATCH *parent_calls)
{
	static char all; /* OpenSSL makes some for each thread; they differ in nothing */

	(void)provider;
	(void)parent;
	(void)parent_calls;
	return &all;
}

static void
rand_free(void *ctx)
{
	(void)ctx;
}

static int
rand_instantiate(void *ctx, unsigned int strength, int resistance,
	const unsigned char *text, size_t text_len, const OSSL_PARAM params[])
{
	(void)ctx;
	(void)resistance;
	(void)text;
	(void)text_len;
	(void)params;
	return strength <= STRENGTH;
}

static int
rand_uninstantiate(void *ctx)
{
	(void)ctx;
	return 1;
}

static int
rand_generate(void *ctx, unsigned char *out, size_t len, unsigned int strength,
	int resistance, const unsigned char *more, size_t more_len)
{
	(void)ctx;
	(void)resistance;
	(void)more;
	(void)more_len;
	return strength <= STRENGTH && draw(out, len);
}

static int
rand_reseed(void *ctx, int resistance, const unsigned char *entropy, size_t entropy_len,
	const unsigned char *more, size_t more_len)
{
	(void)ctx;
	(void)resistance;
	(void)entropy;
	(void)entropy_len;
	(void)more;
	(void)more_len;
	return 1;
}

static size_t
rand_nonce(void *ctx, unsigned char *out, unsigned int strength, size_t min, size_t max)
{
	(void)ctx;
	(void)strength;
	(void)max;
	return !out || draw(out, min) ? min : 0;
}

static int
rand_lock(void *ctx)
{
	(void)ctx;
	return 1;
}

static void
rand_unlock(void *ctx)
{
	(void)ctx;
}

static const OSSL_PARAM *
rand_gettable(void *ctx, void *provider)
{
	static const OSSL_PARAM known[] = {
		OSSL_PARAM_int(OSSL_RAND_PARAM_STATE, NULL),
		OSSL_PARAM_uint(OSSL_RAND_PARAM_STRENGTH, NULL),
		OSSL_PARAM_size_t(OSSL_RAND_PARAM_MAX_REQUEST, NULL),
		OSSL_PARAM_END,
	};

	(void)ctx;
	(void)provider;
	return known;
}

/* OSSL_PARAM_set_*() is libcrypto's. */
static int
set_number(OSSL_PARAM *p, size_t value)
{
	if (p->data_type != OSSL_PARAM_INTEGER &&
		p->data_type != OSSL_PARAM_UNSIGNED_INTEGER)
		return 0;
	if (p->data_size == sizeof(unsigned int)) {
		unsigned int v = (unsigned int)value;

		memcpy(p->data, &v, sizeof(v));
	} else if (p->data_size == sizeof(value)) {
		memcpy(p->data, &value, sizeof(value));
	} else {
		return 0;
	}
	p->return_size = p->data_size;
	return 1;
}

static int
rand_get(void *ctx, OSSL_PARAM params[])
{
	static const struct {
		const char *name;
		size_t value;
	} known[] = {
		{OSSL_RAND_PARAM_STATE, EVP_RAND_STATE_READY},
		{OSSL_RAND_PARAM_STRENGTH, STRENGTH},
		{OSSL_RAND_PARAM_MAX_REQUEST, MAX_REQUEST},
		/* Nothing is ever reseeded: what has this one as its parent need not look. */
		{OSSL_DRBG_PARAM_RESEED_COUNTER, 1},
	};

	(void)ctx;
	for (OSSL_PARAM *p = params; p && p->key; p++)
		for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
			if (strcmp(p->key, known[i].name) == 0 &&
				!set_number(p, known[i].value))
				return 0;
	return 1;
}

static int
rand_verify_zeroization(void *ctx)
{
	(void)ctx;
	return 1;
}

static const OSSL_PARAM *
gettable(void *provider)
{
	static const OSSL_PARAM known[] = {
		OSSL_PARAM_utf8_ptr(OSSL_PROV_PARAM_NAME, NULL, 0),
		OSSL_PARAM_int(OSSL_PROV_PARAM_STATUS, NULL),
		OSSL_PARAM_END,
	};

	(void)provider;
	return known;
}

/* For `openssl list -providers`. */
static int
get(void *provider, OSSL_PARAM params[])
{
	(void)provider;
	for (OSSL_PARAM *p = params; p && p->key; p++) {
		if (strcmp(p->key, OSSL_PROV_PARAM_STATUS) == 0 && !set_number(p, 1))
			return 0;
		if (strcmp(p->key, OSSL_PROV_PARAM_NAME) == 0 &&
			p->data_type == OSSL_PARAM_UTF8_PTR) {
			*(const char **)p->data = "Pando: random numbers from the kernel";
			p->return_size = strlen(*(const char **)p->data);
		}
	}
	return 1;
}

#define F(id, f) \
	{ \
		id, (void (*)(void))(f) \
	}

static const OSSL_DISPATCH rand_calls[] = {
	F(OSSL_FUNC_RAND_NEWCTX, rand_new),
	F(OSSL_FUNC_RAND_FREECTX, rand_free),
	F(OSSL_FUNC_RAND_INSTANTIATE, rand_instantiate),
	F(OSSL_FUNC_RAND_UNINSTANTIATE, rand_uninstantiate),
	F(OSSL_FUNC_RAND_GENERATE, rand_generate),
	F(OSSL_FUNC_RAND_RESEED, rand_reseed),
	F(OSSL_FUNC_RAND_NONCE, rand_nonce),
	F(OSSL_FUNC_RAND_ENABLE_LOCKING, rand_lock),
	F(OSSL_FUNC_RAND_LOCK, rand_lock),
	F(OSSL_FUNC_RAND_UNLOCK, rand_unlock),
	F(OSSL_FUNC_RAND_GETTABLE_CTX_PARAMS, rand_gettable),
	F(OSSL_FUNC_RAND_GET_CTX_PARAMS, rand_get),
	F(OSSL_FUNC_RAND_VERIFY_ZEROIZATION, rand_verify_zeroization),
	{0, NULL},
};

static const OSSL_ALGORITHM *
query(void *provider, int operation, int *no_cache)
{
	static const OSSL_ALGORITHM algorithms[] = {
		{"PANDO-KERNEL", "provider=pando", rand_calls, "getrandom(2)"},
		{NULL, NULL, NULL, NULL},
	};

	(void)provider;
	*no_cache = 0;
	return operation == OSSL_OP_RAND ? algorithms : NULL;
}

int OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
	const OSSL_DISPATCH **out, void **ret_provider);

__attribute__((visibility("default"))) int
OSSL_provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
	const OSSL_DISPATCH **out, void **ret_provider)
{
	static const OSSL_DISPATCH calls[] = {
		F(OSSL_FUNC_PROVIDER_GETTABLE_PARAMS, gettable),
		F(OSSL_FUNC_PROVIDER_GET_PARAMS, get),
		F(OSSL_FUNC_PROVIDER_QUERY_OPERATION, query),
		{0, NULL},
	};

	(void)in;
	*out = calls;
	/* Any pointer but NULL. */
	*ret_provider = (void *)(size_t)handle;
	return 1;
}
