#include "host/commit/fsdiff/journal.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0xc03b3998u
#define DESCRIPTOR 1u
#define COMMIT 2u
#define SUPER_1 3u
#define SUPER_2 4u
#define REVOKE 5u
#define INCOMPAT_64BIT 2u
#define INCOMPAT_CSUM_2 8u
#define INCOMPAT_CSUM_3 0x10u
#define TAG_ESCAPE 1u
#define TAG_SAME_UUID 2u
#define TAG_LAST 8u
#define HEADER_BYTES 12u
#define REVOKED_MAX (1u << 22)

struct revoked {
	uint64_t block;
	uint32_t sequence;
};

struct replay {
	const struct journal *j;
	uint32_t first, max, incompat;
	struct revoked *revoked; /* owned; sorted before it is asked */
	size_t n_revoked, cap_revoked;
	uint8_t *block; /* owned: the one that is read */
};

static uint32_t
be32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static uint32_t
be16(const uint8_t *p)
{
	return (uint32_t)p[0] << 8 | p[1];
}

/* The journal is a ring. */
static uint32_t
next(const struct replay *r, uint32_t at, uint32_t n)
{
	uint64_t to = (uint64_t)at + n;

	while (to >= r->max)
		to -= r->max - r->first;
	return (uint32_t)to;
}

static size_t
tag_bytes(const struct replay *r)
{
	size_t n = 12;

	if (r->incompat & INCOMPAT_CSUM_3)
		return 16;
	if (r->incompat & INCOMPAT_CSUM_2)
		n += 2;
	return r->incompat & INCOMPAT_64BIT ? n : n - 4;
}

static int
by_block(const void *a, const void *b)
{
	const struct revoked *x = a, *y = b;

	if (x->block != y->block)
		return x->block < y->block ? -1 : 1;
	return (int32_t)(x->sequence - y->sequence) < 0 ? -1 : x->sequence != y->sequence;
}

/* Whether a transaction of that number or a later one says not to. */
static bool
is_revoked(const struct replay *r, uint64_t block, uint32_t sequence)
{
	size_t low = 0, high = r->n_revoked;

	while (low < high) {
		size_t at = (low + high) / 2;

		if (r->revoked[at].block > block)
			high = at;
		else
			low = at + 1;
	}
	/* The last of that block is the newest. */
	return low && r->revoked[low - 1].block == block &&
	       (int32_t)(sequence - r->revoked[low - 1].sequence) <= 0;
}

/* The tags of a descriptor: how many blocks follow it; found: each is told, with those
 * that are at `at` and on. */
static int
read_tags(const struct replay *r, uint32_t at, uint32_t sequence, bool tell,
	uint32_t *ret_n)
{
	bool v3 = r->incompat & INCOMPAT_CSUM_3;
	size_t end = r->j->block_size -
		     (r->incompat & (INCOMPAT_CSUM_2 | INCOMPAT_CSUM_3) ? 4 : 0);
	uint32_t n = 0;

	for (size_t p = HEADER_BYTES; p + tag_bytes(r) <= end;) {
		const uint8_t *tag = r->block + p;
		uint32_t flags = v3 ? be32(tag + 4) : be16(tag + 6);
		uint64_t block = be32(tag);
		int rc;

		if (r->incompat & INCOMPAT_64BIT)
			block |= (uint64_t)be32(tag + 8) << 32;
		n++;
		if (tell && !is_revoked(r, block, sequence)) {
			rc = r->j->found(
				r->j->ctx, block, next(r, at, n), flags & TAG_ESCAPE);
			if (rc < 0)
				return rc;
		}
		p += tag_bytes(r) + (flags & TAG_SAME_UUID ? 0 : 16);
		if (flags & TAG_LAST)
			break;
	}
	*ret_n = n;
	return 0;
}

static int
read_revokes(struct replay *r, uint32_t sequence)
{
	size_t each = r->incompat & INCOMPAT_64BIT ? 8 : 4, used = be32(r->block + 12);

	if (used > r->j->block_size)
		used = r->j->block_size;
	for (size_t p = 16; p + each <= used; p += each) {
		uint64_t block = be32(r->block + p);

		if (each == 8)
			block = block << 32 | be32(r->block + p + 4);
		if (r->n_revoked == r->cap_revoked) {
			size_t cap = r->cap_revoked ? r->cap_revoked * 2 : 1024;
			struct revoked *more;

			if (cap > REVOKED_MAX)
				return -EFBIG;
			more = reallocarray(r->revoked, cap, sizeof(*more));
			if (!more)
				return -ENOMEM;
			r->revoked = more;
			r->cap_revoked = cap;
		}
		r->revoked[r->n_revoked++] = (struct revoked){block, sequence};
	}
	return 0;
}

enum pass { PASS_SCAN, PASS_REVOKE, PASS_REPLAY };

/* All whole transactions from `sequence` on; the scan finds *end, one more than the last.
 */
static int
pass(struct replay *r, enum pass which, uint32_t at, uint32_t sequence, uint32_t *end)
{
	/* A ring is gone round once. */
	for (uint64_t steps = 0; steps < r->max; steps++) {
		uint32_t n = 0, type;
		int rc;

		if (which != PASS_SCAN && sequence == *end)
			break;
		rc = r->j->read(r->j->ctx, at, r->block);
		if (rc < 0)
			return rc;
		if (be32(r->block) != MAGIC || be32(r->block + 8) != sequence)
			break;
		type = be32(r->block + 4);
		if (type == DESCRIPTOR) {
			rc = read_tags(r, at, sequence, which == PASS_REPLAY, &n);
			if (rc < 0)
				return rc;
			steps += n;
		} else if (type == COMMIT) {
			sequence++;
		} else if (type == REVOKE) {
			if (which == PASS_REVOKE && (rc = read_revokes(r, sequence)) < 0)
				return rc;
		} else {
			break;
		}
		at = next(r, at, 1 + n);
	}
	if (which == PASS_SCAN)
		*end = sequence;
	return 0;
}

int
journal_replay(const struct journal *j)
{
	struct replay r = {.j = j};
	uint32_t start, sequence, end = 0, type;
	int rc;

	if (j->block_size < 1024 || j->block_size > 65536 || j->n_blocks < 2)
		return 0;
	r.block = malloc(j->block_size);
	if (!r.block)
		return -ENOMEM;
	rc = j->read(j->ctx, 0, r.block);
	if (rc < 0)
		goto out;
	type = be32(r.block + 4);
	r.max = be32(r.block + 16);
	r.first = be32(r.block + 20);
	sequence = be32(r.block + 24);
	start = be32(r.block + 28);
	r.incompat = type == SUPER_2 ? be32(r.block + 40) : 0;
	if (be32(r.block) != MAGIC || (type != SUPER_1 && type != SUPER_2) ||
		be32(r.block + 12) != j->block_size || r.max > j->n_blocks ||
		r.first < 1 || r.first >= r.max || start >= r.max || start == 0)
		goto out;
	rc = pass(&r, PASS_SCAN, start, sequence, &end);
	if (rc == 0)
		rc = pass(&r, PASS_REVOKE, start, sequence, &end);
	if (rc == 0 && r.n_revoked)
		qsort(r.revoked, r.n_revoked, sizeof(*r.revoked), by_block);
	if (rc == 0)
		rc = pass(&r, PASS_REPLAY, start, sequence, &end);
out:
	free(r.block);
	free(r.revoked);
	return rc;
}
