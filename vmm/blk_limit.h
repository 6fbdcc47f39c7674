/*
 * Limits of a disk: bytes and requests in a second, each a token bucket that holds
 * BLK_LIMIT_BURST_MS of its rate. A bucket is kept as the time at which all that was taken from
 * it so far will have been earned (the generic cell rate algorithm, ITU-T I.371): plain numbers,
 * which a branch has a copy of, and so limits of its own.
 *
 * A request may be begun while its bucket is not overdrawn, and is charged in full then: one that
 * is larger than the bucket delays those behind it.
 */
#ifndef PANDO_VMM_BLK_LIMIT_H
#define PANDO_VMM_BLK_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

#define BLK_LIMIT_BURST_MS 100u

struct blk_bucket {
	uint64_t per_s;	    /* 0: no limit */
	uint64_t earned_ns; /* CLOCK_MONOTONIC */
};

struct blk_limit {
	struct blk_bucket bytes, ops;
};

/* Begins anew with full buckets. */
void blk_limit_set(struct blk_limit *l, uint64_t bytes_per_s, uint64_t ops_per_s);
static inline bool
blk_limit_is_set(const struct blk_limit *l)
{
	return l->bytes.per_s || l->ops.per_s;
}
/* When the next request may be begun: 0, now. */
uint64_t blk_limit_due_ns(const struct blk_limit *l, uint64_t now_ns);
/* One request of that many bytes; at most 16 MiB are counted, no request has more. */
void blk_limit_charge(struct blk_limit *l, uint64_t now_ns, uint64_t bytes);

#endif
