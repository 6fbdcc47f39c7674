#include "host/vm/merge_plan.h"

#include "vmm/segment_merge.h"

/* Links [from, to) are a zone: a run that ends with its newest link. The longest; of one that is
 * too long the oldest, which are small. */
static bool
plan_end(const struct merge_link *links, size_t from, size_t to, struct merge_plan *ret)
{
	uint64_t after = 0;
	size_t best = to;

	for (size_t i = to; i-- > from;) {
		if (to - i >= MERGE_FAN && links[i].weight <= after / (MERGE_FAN - 1))
			best = i;
		after += links[i].weight;
	}
	if (best == to)
		return false;
	*ret = (struct merge_plan){.from = best, .n = to - best};
	if (ret->n > SEGMENT_MERGE_MAX)
		ret->n = SEGMENT_MERGE_MAX;
	for (size_t i = 0; i < ret->n; i++)
		ret->weight += links[best + i].weight;
	return true;
}

bool
merge_plan(const struct merge_link *links, size_t n, struct merge_plan *ret)
{
	size_t from = 0;

	/* As if the links had come one by one. */
	for (size_t i = 0; i < n; i++) {
		if (links[i].begins_zone || links[i].fixed)
			from = i;
		if (links[i].fixed)
			from = i + 1;
		else if (plan_end(links, from, i + 1, ret))
			return true;
	}
	return false;
}
