/* Guest memory that goes back to the host: anonymous, and over a commit's image. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "vmm/giveback.h"

#define MEM_MIB 160u
#define LEN ((size_t)MEM_MIB << 20)
#define PAGE 4096u
#define UNIT ((size_t)GUEST_UNIT)
#define OLD 0x11 /* the image's */
#define NEW 0x22 /* what the guest wrote */
#define PM_PRESENT (1ull << 63)
#define PM_FILE (1ull << 61)

static struct guest_mem mem;
static struct track track;
static int image;

static int
anonymous(void **state)
{
	(void)state;
	track_init(&track);
	assert_int_equal(guest_mem_create(&mem, MEM_MIB, NULL), 0);
	memset(mem.host, NEW, 4 * UNIT);
	return 0;
}

static int
on_image(void **state)
{
	static uint8_t page[1 << 20];

	(void)state;
	track_init(&track);
	image = memfd_create("image", MFD_CLOEXEC);
	memset(page, OLD, sizeof(page));
	for (size_t i = 0; i < LEN; i += sizeof(page))
		assert_int_equal(io_pwrite_full(image, page, sizeof(page), i), 0);
	assert_int_equal(guest_mem_reserve(&mem, MEM_MIB, NULL), 0);
	guest_mem_open_hole(&mem);
	assert_int_equal(guest_mem_map_image(&mem, image, NULL), 0);
	memset(mem.host, NEW, 4 * UNIT);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	guest_mem_destroy(&mem);
	track_fork_child(&track, false);
	if (image)
		close(image);
	image = 0;
	return 0;
}

static uint64_t
give(size_t off, size_t len, enum giveback_rest rest)
{
	uint64_t given = 0;

	assert_int_equal(giveback_range(&mem, &track, mem.host + off, len, rest, &given), 0);
	return given;
}

static void
assert_all(size_t off, size_t len, uint8_t value)
{
	for (size_t i = 0; i < len; i++)
		if (mem.host[off + i] != value)
			fail_msg("byte %zu is %x, not %x", off + i, mem.host[off + i], value);
}

static void
anonymous_memory_reads_as_zero(void **state)
{
	(void)state;
	assert_int_equal(give(PAGE, PAGE, GIVEBACK_REST_KEEPS), PAGE);
	assert_all(0, PAGE, NEW);
	assert_all(PAGE, PAGE, 0);
	assert_all(2 * PAGE, 4 * UNIT - 2 * PAGE, NEW);
	assert_null(mem.anonymous);
}

static void
whole_units_over_an_image_read_as_zero_and_the_rest_stays(void **state)
{
	(void)state;
	assert_int_equal(give(PAGE, 3 * UNIT, GIVEBACK_REST_KEEPS), 2 * UNIT);
	assert_all(0, UNIT, NEW);
	assert_all(UNIT, 2 * UNIT, 0);
	assert_all(3 * UNIT, UNIT, NEW);
	assert_all(4 * UNIT, UNIT, OLD);
	assert_int_equal(mem.anonymous_maps, 1);
}

static void
where_any_bytes_will_do_the_image_s_come_back(void **state)
{
	(void)state;
	assert_int_equal(give(PAGE, 2 * UNIT, GIVEBACK_REST_ANY), 2 * UNIT);
	assert_all(0, PAGE, NEW);
	assert_all(PAGE, UNIT - PAGE, OLD);
	assert_all(UNIT, UNIT, 0);
	assert_all(2 * UNIT, PAGE, OLD);
	assert_all(2 * UNIT + PAGE, UNIT - PAGE, NEW);
}

static void
what_is_anonymous_already_is_dropped_page_by_page(void **state)
{
	(void)state;
	give(UNIT, UNIT, GIVEBACK_REST_KEEPS);
	memset(mem.host + UNIT, NEW, UNIT);
	assert_int_equal(give(UNIT + PAGE, 2 * PAGE, GIVEBACK_REST_KEEPS), 2 * PAGE);
	assert_all(UNIT, PAGE, NEW);
	assert_all(UNIT + PAGE, 2 * PAGE, 0);
	assert_all(UNIT + 3 * PAGE, UNIT - 3 * PAGE, NEW);
	/* Across the edge, too. */
	assert_int_equal(give(0, 3 * UNIT, GIVEBACK_REST_KEEPS), 3 * UNIT);
	assert_all(0, 3 * UNIT, 0);
	assert_int_equal(mem.anonymous_maps, 3);
}

static void
the_number_of_mappings_is_bounded(void **state)
{
	const size_t units = LEN / UNIT;
	uint64_t given = 0;

	(void)state;
	assert_true(units / 2 > GIVEBACK_MAPS_MAX);
	for (size_t i = 0; i < units; i += 2)
		given += give(i * UNIT, UNIT, GIVEBACK_REST_KEEPS);
	assert_int_equal(given, GIVEBACK_MAPS_MAX * UNIT);
	assert_int_equal(mem.anonymous_maps, GIVEBACK_MAPS_MAX);
	assert_all((units - 2) * UNIT, UNIT, OLD);
	/* What was mapped over goes on as before. */
	mem.host[0] = NEW;
	assert_int_equal(give(0, UNIT, GIVEBACK_REST_KEEPS), UNIT);
	assert_all(0, UNIT, 0);
}

static void
neither_the_image_nor_a_branch_loses_anything(void **state)
{
	uint8_t byte = 0;
	int pipe_fd[2], status;
	pid_t pid;

	(void)state;
	assert_int_equal(pipe(pipe_fd), 0);
	pid = fork();
	if (pid == 0) { /* the parent gave its own back by then */
		bool good = read(pipe_fd[0], &byte, 1) == 1;

		for (size_t i = 0; i < 4 * UNIT; i++)
			good = good && mem.host[i] == NEW;
		_exit(good && mem.host[5 * UNIT] == OLD ? 0 : 1);
	}
	give(0, 8 * UNIT, GIVEBACK_REST_KEEPS);
	assert_int_equal(write(pipe_fd[1], &byte, 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_all(0, 8 * UNIT, 0);
	assert_int_equal(io_pread_full(image, &byte, 1, 5 * UNIT), 0);
	assert_int_equal(byte, OLD);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
}

static uint64_t
entry(size_t off)
{
	cleanup_close int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t e = 0;

	assert_int_equal(io_pread_full(fd, &e, 8, (uintptr_t)(mem.host + off) / PAGE * 8), 0);
	return e;
}

static void
zeroes_over_an_image_show_in_the_page_map(void **state)
{
	(void)state;
	give(32 * UNIT, 64 * UNIT, GIVEBACK_REST_KEEPS);
	assert_false(entry(40 * UNIT) & PM_PRESENT);
	giveback_show(&mem);
	for (size_t off = 32 * UNIT; off < 96 * UNIT; off += PAGE)
		assert_int_equal(entry(off) & (PM_PRESENT | PM_FILE), PM_PRESENT);
	assert_false(entry(31 * UNIT) & PM_PRESENT);
	assert_false(entry(96 * UNIT) & PM_PRESENT);
}

static void
scan_since(uint8_t base, struct vmm_track *ret)
{
	const uint8_t id[16] = {base};
	struct vmm_committed m = {.fork = {base}, .commit = {base}};

	track_scan(&track, &mem, id);
	track_describe(&track, ret);
	assert_int_equal(track_committed(&track, &m, NULL), 0);
}

static bool
told(const uint8_t *bitmap, size_t off)
{
	return bitmap[off / PAGE / 8] >> off / PAGE % 8 & 1;
}

static void
the_watch_goes_on_in_memory_that_was_mapped_over(void **state)
{
	struct vmm_track v;

	(void)state;
	track_open(&track);
	if (track.means == VMM_TRACK_NONE)
		skip();
	track_arm(&track, &mem);
	scan_since(1, &v);
	give(UNIT, 4 * UNIT, GIVEBACK_REST_KEEPS);
	track_scan(&track, &mem, (const uint8_t[16]){2});
	assert_true(told(track.given_back, UNIT) && told(track.given_back, 5 * UNIT - PAGE));
	assert_false(told(track.given_back, 0) || told(track.given_back, 5 * UNIT));
	scan_since(3, &v);
	mem.host[2 * UNIT] = NEW;
	track_scan(&track, &mem, (const uint8_t[16]){4});
	track_describe(&track, &v);
	assert_true(v.flags & VMM_TRACK_SINCE);
	assert_true(told(track.changed, 2 * UNIT));
	assert_false(track.failed);
}

int
main(void)
{
#define T(name, setup) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(anonymous_memory_reads_as_zero, anonymous),
		T(whole_units_over_an_image_read_as_zero_and_the_rest_stays, on_image),
		T(where_any_bytes_will_do_the_image_s_come_back, on_image),
		T(what_is_anonymous_already_is_dropped_page_by_page, on_image),
		T(the_number_of_mappings_is_bounded, on_image),
		T(neither_the_image_nor_a_branch_loses_anything, on_image),
		T(zeroes_over_an_image_show_in_the_page_map, on_image),
		T(the_watch_goes_on_in_memory_that_was_mapped_over, anonymous),
		T(the_watch_goes_on_in_memory_that_was_mapped_over, on_image),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
