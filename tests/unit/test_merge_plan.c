/* Which runs of a chain are merged: chains stay short, and no block is copied often. */
#include "host/vm/merge_plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#define LINKS_MAX 4096u

static struct merge_link chain[LINKS_MAX];
static uint64_t left[LINKS_MAX]; /* blocks in it */
static unsigned copies[LINKS_MAX]; /* the most often that a block of it was copied */
static size_t n_chain, longest;
static uint64_t copied, most_copies;
static uint32_t seed;

static uint32_t
draw(uint32_t below)
{
	seed = seed * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)seed * below >> 32);
}

static void
append(uint64_t blocks)
{
	assert_true(n_chain < LINKS_MAX);
	chain[n_chain] = (struct merge_link){.weight = blocks};
	left[n_chain] = blocks;
	copies[n_chain++] = 0;
	longest = n_chain > longest ? n_chain : longest;
}

/* All merges that are due. keep: of a hundred blocks so many are left. */
static void
merge_all(unsigned keep)
{
	struct merge_plan p;

	while (merge_plan(chain, n_chain, &p)) {
		uint64_t blocks = 0;
		unsigned c = 0;

		assert_true(p.n >= 2 && p.from + p.n <= n_chain);
		for (size_t i = p.from; i < p.from + p.n; i++) {
			assert_false(chain[i].fixed);
			assert_false(i > p.from && chain[i].begins_zone);
			blocks += left[i];
			c = copies[i] > c ? copies[i] : c;
		}
		blocks = blocks * keep / 100;
		copied += blocks;
		left[p.from] = blocks;
		chain[p.from].weight = p.weight;
		copies[p.from] = c + 1;
		most_copies = c + 1 > most_copies ? c + 1 : most_copies;
		memmove(&chain[p.from + 1], &chain[p.from + p.n],
			(n_chain - p.from - p.n) * sizeof(chain[0]));
		memmove(&left[p.from + 1], &left[p.from + p.n],
			(n_chain - p.from - p.n) * sizeof(left[0]));
		memmove(&copies[p.from + 1], &copies[p.from + p.n],
			(n_chain - p.from - p.n) * sizeof(copies[0]));
		n_chain -= p.n - 1;
	}
}

static int
setup(void **state)
{
	(void)state;
	n_chain = longest = 0;
	copied = most_copies = 0;
	seed = 3;
	return 0;
}

static void
a_hundred_thousand_fork_points_are_a_short_chain(void **state)
{
	uint64_t written = 0;

	(void)state;
	for (unsigned i = 0; i < 100000; i++) {
		uint64_t blocks = 1 + draw(20);

		written += blocks;
		append(blocks);
		merge_all(100);
	}
	/* 16^4 < 100000 < 16^5; sizes differ. */
	assert_true(longest <= 4 * MERGE_FAN);
	assert_true(most_copies <= 10);
	assert_true(copied <= 5 * written);
}

static void
segments_of_any_size_keep_to_it(void **state)
{
	(void)state;
	for (unsigned keep = 10; keep <= 100; keep += 30) {
		uint64_t written = 0;

		setup(NULL);
		for (unsigned i = 0; i < 20000; i++) {
			uint64_t blocks = 1u << draw(25);

			written += blocks;
			append(blocks);
			if (draw(3) == 0)
				merge_all(keep);
		}
		assert_true(longest <= 4 * MERGE_FAN);
		assert_true(most_copies <= 10);
		assert_true(copied <= 6 * written);
	}
}

static void
a_large_old_disk_is_not_copied_for_small_new_segments(void **state)
{
	(void)state;
	append(5u << 20); /* 20 GiB */
	for (unsigned i = 0; i < 3000; i++) {
		append(10);
		merge_all(100);
	}
	assert_int_equal(chain[0].weight, 5u << 20);
	assert_true(copied <= 3 * 3000 * 10);
}

static void
what_was_written_again_and_again_is_merged_all_the_same(void **state)
{
	(void)state;
	/* Each run of sixteen holds the same blocks. */
	for (unsigned i = 0; i < 65536; i++) {
		append(1000);
		merge_all(6);
	}
	assert_true(longest <= 5 * MERGE_FAN);
	assert_true(most_copies <= 5);
}

static void
no_run_leaves_its_zone(void **state)
{
	struct merge_plan p;

	(void)state;
	for (unsigned i = 0; i < 15; i++)
		append(1);
	for (unsigned i = 0; i < 15; i++) {
		append(1);
		chain[n_chain - 1].begins_zone = i == 0;
	}
	assert_false(merge_plan(chain, n_chain, &p));
	append(1);
	assert_true(merge_plan(chain, n_chain, &p));
	assert_int_equal(p.from, 15);
	assert_int_equal(p.n, 16);
	/* What cannot be merged parts two zones. */
	chain[20].fixed = true;
	assert_false(merge_plan(chain, n_chain, &p));
	for (unsigned i = 0; i < 6; i++)
		append(1);
	assert_true(merge_plan(chain, n_chain, &p));
	assert_int_equal(p.from, 21);
	assert_int_equal(p.n, 16);
	chain[15].begins_zone = false;
	assert_true(merge_plan(chain, n_chain, &p));
	assert_int_equal(p.from, 0);
	assert_int_equal(p.n, 16);
}

static void
a_backlog_is_merged_in_pieces(void **state)
{
	struct merge_plan p;

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		append(3);
	assert_true(merge_plan(chain, n_chain, &p));
	assert_int_equal(p.from, 0);
	assert_int_equal(p.n, 16);
	merge_all(100);
	assert_true(n_chain <= 48);
	/* Many small ones before a large one: not all at once. */
	n_chain = 0;
	for (unsigned i = 0; i < 200; i++)
		append(1ull << (200 - i) / 8);
	append(1ull << 40);
	assert_true(merge_plan(chain, n_chain, &p));
	assert_true(p.n <= 64);
	assert_false(merge_plan(chain, 0, &p));
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup(name, setup)
	const struct CMUnitTest tests[] = {
		T(a_hundred_thousand_fork_points_are_a_short_chain),
		T(segments_of_any_size_keep_to_it),
		T(a_large_old_disk_is_not_copied_for_small_new_segments),
		T(what_was_written_again_and_again_is_merged_all_the_same),
		T(no_run_leaves_its_zone),
		T(a_backlog_is_merged_in_pieces),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
