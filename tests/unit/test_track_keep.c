/*
 * What a reset to a kept fork point fetches (vmm/track_keep.h), of this very process: all that was
 * written, whoever took the kernel's marks away meanwhile.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "vmm/track_keep.h"

#define PAGE 4096u
#define MEM_MIB 16u
#define PAGES (MEM_MIB * 256u)
#define HOLE (PAGES / 2) /* nobody touched it, and what follows, before the fork point */

static struct err e;
static struct track track;
static struct guest_mem mem;

static int
set_up(void **state)
{
	(void)state;
	track_init(&track);
	track_open(&track);
	return 0;
}

static int
tear_down(void **state)
{
	(void)state;
	track_fork_child(&track, false);
	guest_mem_destroy(&mem);
	return 0;
}

static void
begin(void)
{
	if (track.means != VMM_TRACK_USERFAULTFD) {
		print_message("# this kernel's means is %s\n", track_means_name(track.means));
		skip();
	}
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, &e), 0);
	assert_int_equal(madvise(mem.host, PAGES * PAGE, MADV_NOHUGEPAGE), 0);
	memset(mem.host, 3, HOLE * PAGE);
	track_keep_begin(&track, &mem);
	assert_non_null(track.kept_written);
}

static void
write_page(unsigned page)
{
	mem.host[page * PAGE] = 4;
}

/* These pages, ascending, and no others. */
static void
expect_fetched(const unsigned *pages, unsigned n)
{
	struct keep_range r[KEEP_RANGES];
	uint64_t at = 0;
	unsigned n_found = 0;

	assert_int_equal(track_keep_collect(&track, &mem), 0);
	for (unsigned k; (k = track_keep_changed(&track, &at, r));)
		for (unsigned i = 0; i < k; i++)
			for (uint64_t off = 0; off < r[i].len; off += PAGE, n_found++)
				if (n_found >= n || (r[i].off + off) / PAGE != pages[n_found])
					fail_msg("page %llu is fetched",
						(unsigned long long)(r[i].off + off) / PAGE);
	assert_int_equal(n_found, n);
	assert_int_equal(track_keep_restart(&track, &mem), 0);
}

static void
fork_and_scan(uint8_t number)
{
	const uint8_t id[16] = {number};

	track_scan(&track, &mem, id);
}

static void
whatever_a_commits_scans_find_is_fetched(void **state)
{
	(void)state;
	begin();
	for (uint8_t i = 1; i <= 3; i++) {
		const struct vmm_committed m = {.fork = {i}, .commit = {i}};

		write_page(5);
		write_page(HOLE + 700);
		track_arm(&track, &mem);
		write_page(6);
		write_page(HOLE + 1500);
		track_scan_ahead(&track, &mem);
		write_page(900);
		fork_and_scan(i);
		assert_int_equal(track_committed(&track, &m, &e), 0);
		write_page(1100);
		expect_fetched((const unsigned[]){5, 6, 900, 1100, HOLE + 700, HOLE + 1500}, 6);
		expect_fetched(NULL, 0);
		track_reset(&track, false);
	}
}

static void
what_was_given_back_is_fetched(void **state)
{
	(void)state;
	begin();
	for (int i = 0; i < 2; i++) {
		track_given_back(&track, &mem, mem.host + 8 * PAGE, 2 * PAGE);
		assert_int_equal(madvise(mem.host + 8 * PAGE, 2 * PAGE, MADV_DONTNEED), 0);
		track_arm(&track, &mem);
		track_scan_ahead(&track, &mem);
		fork_and_scan(1);
		expect_fetched((const unsigned[]){8, 9}, 2);
		/* As if fetched: there again, and written. */
		write_page(8);
		write_page(9);
		expect_fetched((const unsigned[]){8, 9}, 2);
	}
}

static void
without_the_marks_nobody_can_say(void **state)
{
	(void)state;
	begin();
	write_page(5);
	track_unwatch(&track, &mem);
	track_arm(&track, &mem);
	assert_true(track.armed);
	assert_int_equal(track_keep_collect(&track, &mem), -ENOSYS);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(whatever_a_commits_scans_find_is_fetched),
		TEST(what_was_given_back_is_fetched),
		TEST(without_the_marks_nobody_can_say),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
