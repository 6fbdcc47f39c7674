#include "common/wire/blob.h"

#include <errno.h>
#include <string.h>

_Static_assert(
	__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values are written as they lie");

/* Four lanes of 8 bytes: memory speed, for it is on the way of every restore. */
uint64_t
blob_check(const void *buf, size_t len)
{
	const uint64_t prime = 0x9e3779b97f4a7c15ull;
	uint64_t lane[4] = {1, 2, 3, 4}, h = len, word;
	const uint8_t *p = buf;

	for (; len >= 32; len -= 32, p += 32)
		for (unsigned i = 0; i < 4; i++) {
			memcpy(&word, p + 8 * i, 8);
			lane[i] = (lane[i] ^ word) * prime;
			lane[i] ^= lane[i] >> 29;
		}
	for (unsigned i = 0; len > 0; i++) {
		size_t n = len < 8 ? len : 8;

		word = 0;
		memcpy(&word, p, n);
		lane[i] = (lane[i] ^ word) * prime;
		p += n;
		len -= n;
	}
	for (unsigned i = 0; i < 4; i++) {
		h = (h ^ lane[i]) * prime;
		h ^= h >> 32;
	}
	return h;
}

void
blob_put(struct blob_out *out, const void *src, size_t len)
{
	if (out->full || len > out->cap - out->len) {
		out->full = true;
		return;
	}
	memcpy(out->buf + out->len, src, len);
	out->len += len;
}

void
blob_start(struct blob_out *out, void *buf, size_t cap)
{
	const struct blob_header empty = {{0}, 0, 0, 0, 0};

	*out = (struct blob_out){.buf = buf, .cap = cap};
	blob_put(out, &empty, sizeof(empty));
}

void
blob_begin(struct blob_out *out, uint32_t tag)
{
	const struct blob_section s = {.tag = tag};

	out->section = out->len;
	blob_put(out, &s, sizeof(s));
}

void
blob_end(struct blob_out *out)
{
	static const uint8_t zeroes[8];
	uint32_t bytes;

	if (out->full)
		return;
	bytes = (uint32_t)(out->len - out->section - sizeof(struct blob_section));
	memcpy(out->buf + out->section + offsetof(struct blob_section, bytes), &bytes,
		sizeof(bytes));
	blob_put(out, zeroes, -out->len % 8);
}

size_t
blob_finish(struct blob_out *out)
{
	struct blob_header h = {.version = BLOB_VERSION, .bytes = out->len};

	if (out->full)
		return 0;
	memcpy(h.magic, BLOB_MAGIC, sizeof(h.magic));
	h.check = blob_check(out->buf + sizeof(h), out->len - sizeof(h));
	memcpy(out->buf, &h, sizeof(h));
	return out->len;
}

int
blob_open(const void *buf, size_t len, struct blob_in *ret, struct err *e)
{
	struct blob_header h;

	if (len < sizeof(h))
		return err_set(e, -EBADMSG,
			"a state of %zu bytes is none: its file was cut short", len);
	memcpy(&h, buf, sizeof(h));
	if (memcmp(h.magic, BLOB_MAGIC, sizeof(h.magic)) != 0)
		return err_set(e, -EBADMSG, "this is no state of a VM");
	if (h.version != BLOB_VERSION)
		return err_set(e, -ENOTSUP,
			"the state is of format version %u, and this pando-vmm reads %u: restore it with the version that wrote it",
			h.version, BLOB_VERSION);
	if (h.bytes != len)
		return err_set(e, -EBADMSG,
			"the state says that it is %llu bytes long, and %zu are there",
			(unsigned long long)h.bytes, len);
	if (h.check != blob_check((const uint8_t *)buf + sizeof(h), len - sizeof(h)))
		return err_set(e, -EBADMSG,
			"the state is damaged: its check sum does not match");
	*ret = (struct blob_in){
		.p = (const uint8_t *)buf + sizeof(h), .left = len - sizeof(h)};
	return 0;
}

const void *
blob_take(struct blob_in *in, size_t len)
{
	const uint8_t *p = in->p;

	if (in->bad || len > in->left) {
		in->bad = true;
		return NULL;
	}
	in->p += len;
	in->left -= len;
	return p;
}

void
blob_get(struct blob_in *in, void *dst, size_t len)
{
	const void *p = blob_take(in, len);

	if (p)
		memcpy(dst, p, len);
	else
		memset(dst, 0, len);
}

int
blob_next(struct blob_in *in, uint32_t tag, const char *what, struct blob_in *ret,
	struct err *e)
{
	struct blob_section s;
	const void *p;

	blob_get(in, &s, sizeof(s));
	p = blob_take(in, s.bytes);
	blob_take(in, -(size_t)s.bytes % 8);
	if (in->bad)
		return err_set(
			e, -EBADMSG, "the state ends before its section \"%s\"", what);
	if (s.tag != tag)
		return err_set(e, -EBADMSG,
			"the state has no section \"%s\" where it must be", what);
	*ret = (struct blob_in){.p = p, .left = s.bytes};
	return 0;
}

int
blob_end_in(const struct blob_in *in, const char *what, struct err *e)
{
	if (in->bad)
		return err_set(
			e, -EBADMSG, "the state's section \"%s\" is too short", what);
	if (in->left)
		return err_set(e, -EBADMSG,
			"the state's section \"%s\" is %zu bytes too long", what,
			in->left);
	return 0;
}
