#include "vmm/blk_limit.h"

#define NS_PER_S 1000000000ull
#define BURST_NS (BLK_LIMIT_BURST_MS * 1000000ull)
#define BYTES_MAX (16u << 20)

void
blk_limit_set(struct blk_limit *l, uint64_t bytes_per_s, uint64_t ops_per_s)
{
	*l = (struct blk_limit){.bytes.per_s = bytes_per_s, .ops.per_s = ops_per_s};
}

static uint64_t
due_ns(const struct blk_bucket *b, uint64_t now_ns)
{
	return b->per_s && b->earned_ns > now_ns + BURST_NS ? b->earned_ns - BURST_NS : 0;
}

uint64_t
blk_limit_due_ns(const struct blk_limit *l, uint64_t now_ns)
{
	const uint64_t bytes = due_ns(&l->bytes, now_ns), ops = due_ns(&l->ops, now_ns);

	return bytes > ops ? bytes : ops;
}

static void
charge(struct blk_bucket *b, uint64_t now_ns, uint64_t n)
{
	if (!b->per_s)
		return;
	if (b->earned_ns < now_ns)
		b->earned_ns = now_ns;
	b->earned_ns += n * NS_PER_S / b->per_s;
}

void
blk_limit_charge(struct blk_limit *l, uint64_t now_ns, uint64_t bytes)
{
	charge(&l->bytes, now_ns, bytes < BYTES_MAX ? bytes : BYTES_MAX);
	charge(&l->ops, now_ns, 1);
}
