/*
 * Which segments of a chain are merged next: as in a log-structured merge tree, so that chains
 * stay short and no block is copied often.
 *
 * A segment weighs as many blocks as were written into it, a merged one as much as its run
 * together, whatever is left of it. A run is due when it has MERGE_FAN segments and those after
 * its oldest weigh (MERGE_FAN - 1) times as much as that one. So segments of one size are
 * merged by sixteens, like digits that carry, and few new blocks do not drag an old disk along.
 * In a chain that nothing of is due, each segment but the newest MERGE_FAN weighs more than a
 * fifteenth of all that came after it: with n fork points there are O(log n) of them. A
 * segment that is copied grows by the same factor or more, but for its first copy: a block is
 * copied O(log n) times.
 *
 * No run leaves its zone (merge.h says what zones are).
 */
#ifndef PANDO_HOST_VM_MERGE_PLAN_H
#define PANDO_HOST_VM_MERGE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MERGE_FAN 16u

struct merge_link {
	uint64_t weight; /* 1 or more */
	bool begins_zone;
	bool fixed; /* cannot be merged, and is a zone by itself */
};

struct merge_plan {
	size_t from, n;
	uint64_t weight; /* of what it becomes */
};

/* links: the sealed ones, oldest first. False: nothing is due. */
bool merge_plan(const struct merge_link *links, size_t n, struct merge_plan *ret);

#endif
