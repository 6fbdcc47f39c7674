/* virtio-balloon under a fake driver. Hostile ones: also fuzz_balloon, and test_kvm_balloon. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/unit/fake_driver.h"
#include "vmm/balloon.h"

#define ALL UINT64_MAX
#define POISON ((uint64_t)VIRTIO_BALLOON_F_PAGE_POISON)
#define INFLATE 0
#define DEFLATE 1
#define STATISTICS 2
#define REPORTING 3
#define MIB (1u << 20)
#define A (4 * MIB) /* a page that is not zero */
#define PAGE 4096u

static struct fake_driver d;
static struct balloon balloon;
static atomic_int stop;
static struct {
	unsigned calls, stop_after;
	uint64_t bytes;
	bool any;
} given;

static uint64_t
give(void *ctx, void *host, size_t len, bool any)
{
	const uint64_t off = (uint64_t)((uint8_t *)host - d.mem.host);

	assert_ptr_equal(ctx, &given);
	assert_int_equal(off % PAGE, 0);
	assert_int_equal(len % PAGE, 0);
	assert_true(len > 0 && len <= FAKE_MEM_MIB * MIB && off <= FAKE_MEM_MIB * MIB - len);
	assert_int_equal(madvise(host, len, MADV_DONTNEED), 0);
	given.bytes += len;
	given.any = any;
	if (++given.calls == given.stop_after)
		atomic_store(&stop, 1);
	return len;
}

static int
setup(void **state)
{
	const struct balloon_host host = {.give_back = give, .ctx = &given};

	(void)state;
	fake_driver_init(&d);
	balloon_init(&balloon, &d.mem, fake_irq(&d), &host);
	d.dev = &balloon.dev;
	memset(&given, 0, sizeof(given));
	atomic_store(&stop, 0);
	balloon.dev.stop = &stop;
	memset(d.mem.host + A, 0x5a, 2 * MIB);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	fake_driver_done(&d);
	return 0;
}

static uint8_t
at(uint64_t gpa)
{
	uint8_t b;

	fake_peek(&d, gpa, &b, 1);
	return b;
}

static void
report(uint64_t gpa, uint32_t len)
{
	fake_add(&d, REPORTING, &(struct fake_buf){gpa, len, true}, 1);
	fake_kick(&d, REPORTING);
}

static bool
is_broken(void)
{
	return fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET;
}

static void
what_is_reported_goes_back_and_nothing_beside_it(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL & ~POISON));
	report(A + PAGE, 2 * PAGE);
	assert_true(fake_used(&d, REPORTING, NULL, NULL));
	assert_int_equal(given.bytes, 2 * PAGE);
	assert_false(given.any);
	assert_int_equal(at(A + PAGE - 1), 0x5a);
	assert_int_equal(at(A + PAGE), 0);
	assert_int_equal(at(A + 3 * PAGE - 1), 0);
	assert_int_equal(at(A + 3 * PAGE), 0x5a);
	assert_int_equal(atomic_load(&balloon.given_back_bytes), 2 * PAGE);
}

static void
only_whole_pages_of_a_report_go_back(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	report(A + 100, 3 * PAGE);
	assert_int_equal(given.bytes, 2 * PAGE);
	assert_int_equal(at(A + PAGE - 1), 0x5a);
	assert_int_equal(at(A + 3 * PAGE), 0x5a);
	report(A + 4 * PAGE + 1, PAGE);
	assert_int_equal(given.bytes, 2 * PAGE);
}

static void
the_reporting_queue_has_either_number(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	fake_add(&d, 4, &(struct fake_buf){A, PAGE, true}, 1);
	fake_kick(&d, 4);
	assert_int_equal(given.bytes, PAGE);
	/* A driver without statistics counts on. */
	assert_true(fake_start(&d, &balloon.dev, ALL & ~(uint64_t)VIRTIO_BALLOON_F_STATS_VQ));
	fake_add(&d, 2, &(struct fake_buf){A, PAGE, true}, 1);
	fake_kick(&d, 2);
	assert_int_equal(given.bytes, 2 * PAGE);
}

static void
pages_keep_what_they_have_where_zero_is_not_what_the_guest_expects(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	fake_write(&d, VIRTIO_MMIO_CONFIG + 12, 0xaaaaaaaa);
	report(A, PAGE);
	assert_true(fake_used(&d, REPORTING, NULL, NULL));
	assert_int_equal(given.calls, 0);
	fake_write(&d, VIRTIO_MMIO_CONFIG + 12, 0);
	report(A, PAGE);
	assert_int_equal(given.bytes, PAGE);
}

static void
without_the_feature_a_report_does_nothing(void **state)
{
	(void)state;
	assert_true(fake_start(
		&d, &balloon.dev, ALL & ~(uint64_t)VIRTIO_BALLOON_F_REPORTING));
	report(A, PAGE);
	assert_true(fake_used(&d, REPORTING, NULL, NULL));
	assert_int_equal(given.calls, 0);
}

static void
a_report_outside_memory_breaks_the_device_alone(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	report(FAKE_MEM_MIB * MIB - PAGE, 2 * PAGE);
	assert_true(is_broken());
	assert_int_equal(given.calls, 0);
	assert_true(fake_start(&d, &balloon.dev, ALL));
	report(A, PAGE);
	assert_int_equal(given.bytes, PAGE);
}

static void
a_guest_that_reports_its_own_rings_breaks_the_device_alone(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	for (unsigned i = 0; i < 3; i++)
		report(0, FAKE_MEM_MIB * MIB);
	assert_true(given.bytes >= FAKE_MEM_MIB * MIB);
	assert_true(fake_start(&d, &balloon.dev, ALL));
	assert_int_equal(at(A), 0);
}

static void
a_turn_is_bounded_and_the_next_goes_on_there(void **state)
{
	enum { n = 3 * BALLOON_TURN_BYTES / (FAKE_MEM_MIB / 2 * MIB) };
	struct fake_buf all[n];

	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	for (unsigned i = 0; i < n; i++)
		all[i] = (struct fake_buf){FAKE_MEM_MIB / 2 * MIB, FAKE_MEM_MIB / 2 * MIB, true};
	fake_add(&d, REPORTING, all, n);
	assert_int_equal(virtio_dev_go_on(&balloon.dev), 1);
	assert_int_equal(given.bytes, BALLOON_TURN_BYTES);
	assert_false(fake_used(&d, REPORTING, NULL, NULL));
	assert_int_equal(virtio_dev_go_on(&balloon.dev), 1);
	assert_int_equal(virtio_dev_go_on(&balloon.dev), 1);
	assert_int_equal(virtio_dev_go_on(&balloon.dev), 0);
	assert_int_equal(given.bytes, 3 * BALLOON_TURN_BYTES);
	assert_true(fake_used(&d, REPORTING, NULL, NULL));
	assert_false(fake_used(&d, REPORTING, NULL, NULL));
}

static void
a_stop_waits_for_one_piece_and_the_rest_goes_back_afterwards(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	given.stop_after = 1;
	memset(d.mem.host + A, 0x5a, 12 * MIB);
	report(A, 12 * MIB);
	assert_int_equal(given.bytes, BALLOON_PIECE_BYTES);
	assert_false(fake_used(&d, REPORTING, NULL, NULL));
	assert_int_equal(at(A + BALLOON_PIECE_BYTES), 0x5a);
	atomic_store(&stop, 0);
	assert_int_equal(virtio_dev_resume(&balloon.dev), 0);
	assert_int_equal(given.bytes, 12 * MIB);
	assert_true(fake_used(&d, REPORTING, NULL, NULL));
	assert_int_equal(at(A + BALLOON_PIECE_BYTES), 0);
}

static void
put_pfns(unsigned queue, const uint32_t *pfns, uint32_t n)
{
	fake_poke(&d, FAKE_HEAP, pfns, n * sizeof(*pfns));
	fake_add(&d, queue, &(struct fake_buf){FAKE_HEAP, n * (uint32_t)sizeof(*pfns), false}, 1);
	fake_kick(&d, queue);
}

static void
pages_of_the_balloon_go_back_in_runs_whatever_their_order(void **state)
{
	const uint32_t first = A / PAGE;
	const uint32_t pfns[] = {first + 3, first + 1, first + 2, first + 9, first + 2, first + 8};
	const uint32_t twice[] = {first + 20, first + 20, first + 20, first + 23};

	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	put_pfns(INFLATE, pfns, 6);
	assert_true(fake_used(&d, INFLATE, NULL, NULL));
	assert_int_equal(given.calls, 2);
	assert_int_equal(given.bytes, 5 * PAGE);
	assert_true(given.any);
	for (unsigned i = 0; i < 12; i++)
		assert_int_equal(at(A + i * PAGE),
			(i >= 1 && i <= 3) || i == 8 || i == 9 ? 0 : 0x5a);
	put_pfns(INFLATE, twice, 4);
	assert_true(fake_used(&d, INFLATE, NULL, NULL));
	assert_int_equal(given.bytes, 7 * PAGE);
	assert_int_equal(at(A + 21 * PAGE), 0x5a);
	assert_int_equal(at(A + 22 * PAGE), 0x5a);
	put_pfns(DEFLATE, pfns, 6);
	assert_true(fake_used(&d, DEFLATE, NULL, NULL));
	assert_int_equal(given.calls, 4);
}

static void
a_page_of_the_balloon_outside_memory_breaks_the_device(void **state)
{
	const uint32_t last = FAKE_MEM_MIB * MIB / PAGE;
	const uint32_t pfns[] = {last - 1, last, UINT32_MAX};

	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	put_pfns(INFLATE, pfns, 1);
	assert_int_equal(given.bytes, PAGE);
	assert_false(is_broken());
	put_pfns(INFLATE, pfns, 2);
	assert_true(is_broken());
	assert_int_equal(given.bytes, 2 * PAGE);
	assert_true(fake_start(&d, &balloon.dev, ALL));
	put_pfns(INFLATE, pfns + 2, 1);
	assert_true(is_broken());
}

static void
a_target_is_told_and_what_the_driver_says_is_kept_until_it_resets(void **state)
{
	struct balloon_view v;

	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	d.irqs = 0;
	balloon_set_target(&balloon, 6 * MIB);
	assert_int_equal(d.irqs, 1);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INTERRUPT_CONFIG);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_CONFIG), 6 * MIB / PAGE);
	fake_write(&d, VIRTIO_MMIO_CONFIG, 1); /* not the driver's */
	fake_write(&d, VIRTIO_MMIO_CONFIG + 4, 77);
	fake_write(&d, VIRTIO_MMIO_CONFIG + 0xfc, 77);
	balloon_look(&balloon, &v);
	assert_true(v.driver_ok);
	assert_int_equal(v.wanted, 6 * MIB);
	assert_int_equal(v.inflated, 77 * PAGE);
	assert_true(v.free == UINT64_MAX);
	fake_write(&d, VIRTIO_MMIO_STATUS, 0);
	balloon_look(&balloon, &v);
	assert_false(v.driver_ok);
	assert_int_equal(v.wanted, 6 * MIB);
	assert_int_equal(v.inflated, 0);
}

static void
put_statistics(uint64_t free_bytes)
{
	uint8_t raw[30] = {4, 0};

	memcpy(raw + 2, &free_bytes, 8);
	raw[10] = 99; /* a tag of the future */
	raw[20] = 6;
	fake_poke(&d, FAKE_HEAP, raw, sizeof(raw));
	fake_add(&d, STATISTICS, &(struct fake_buf){FAKE_HEAP, sizeof(raw), false}, 1);
	fake_kick(&d, STATISTICS);
}

static void
statistics_are_kept_and_asked_for_when_somebody_looks(void **state)
{
	struct balloon_view v;

	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	put_statistics(123 * MIB);
	assert_false(fake_used(&d, STATISTICS, NULL, NULL));
	balloon_look(&balloon, &v);
	assert_int_equal(v.free, 123 * MIB);
	assert_int_equal(v.available, 0);
	assert_true(fake_used(&d, STATISTICS, NULL, NULL));
	balloon_look(&balloon, &v); /* it has not answered yet */
	assert_false(fake_used(&d, STATISTICS, NULL, NULL));
	put_statistics(7 * MIB);
	put_statistics(8 * MIB); /* one more than it may: the older comes back */
	assert_true(fake_used(&d, STATISTICS, NULL, NULL));
	balloon_look(&balloon, &v);
	assert_int_equal(v.free, 8 * MIB);
}

static void
what_was_saved_is_what_is_loaded(void **state)
{
	static uint8_t blob[4096], other[4096];
	static struct balloon b;
	struct blob_out out;
	struct blob_in in, section;
	struct err e = {0};
	size_t len;

	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	balloon_set_target(&balloon, 6 * MIB);
	fake_write(&d, VIRTIO_MMIO_CONFIG + 4, 77);
	fake_write(&d, VIRTIO_MMIO_CONFIG + 12, 0x55);
	put_statistics(MIB);
	blob_start(&out, blob, sizeof(blob));
	blob_begin(&out, 1);
	balloon_save(&balloon, &out);
	blob_end(&out);
	len = blob_finish(&out);
	balloon_init(&b, &d.mem, fake_irq(&d), &balloon.host);
	assert_int_equal(blob_open(blob, len, &in, &e), 0);
	assert_int_equal(blob_next(&in, 1, "balloon", &section, &e), 0);
	assert_int_equal(balloon_load(&b, &section, &e), 0);
	assert_int_equal(blob_end_in(&section, "balloon", &e), 0);
	assert_memory_equal(&b.config, &balloon.config, sizeof(b.config));
	assert_true(b.has_stats_chain);
	blob_start(&out, other, sizeof(other));
	blob_begin(&out, 1);
	balloon_save(&b, &out);
	blob_end(&out);
	assert_int_equal(blob_finish(&out), len);
	assert_memory_equal(blob, other, len);
}

static void
a_statistics_queue_out_of_use_leaves_no_buffer_behind(void **state)
{
	static uint8_t blob[4096];
	struct balloon_view v;
	struct blob_out out;
	struct blob_in in, section;
	struct err e = {0};

	(void)state;
	assert_true(fake_start(&d, &balloon.dev, ALL));
	put_statistics(MIB);
	put_statistics(2 * MIB); /* a head that is not 0 */
	fake_write(&d, VIRTIO_MMIO_QUEUE_SEL, STATISTICS);
	fake_write(&d, VIRTIO_MMIO_QUEUE_READY, 0);
	fake_write(&d, VIRTIO_MMIO_QUEUE_SIZE, 1);
	fake_write(&d, VIRTIO_MMIO_QUEUE_DEVICE_LOW, 0x3001);
	balloon_look(&balloon, &v);
	assert_int_equal(v.free, 2 * MIB);
	blob_start(&out, blob, sizeof(blob));
	blob_begin(&out, 1);
	balloon_save(&balloon, &out);
	blob_end(&out);
	assert_int_equal(blob_open(blob, blob_finish(&out), &in, &e), 0);
	assert_int_equal(blob_next(&in, 1, "balloon", &section, &e), 0);
	if (balloon_load(&balloon, &section, &e) < 0)
		fail_msg("%s", e.msg);
	/* And what a guest of another life said is not said of this one. */
	balloon_look(&balloon, &v);
	assert_true(v.free == UINT64_MAX);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(what_is_reported_goes_back_and_nothing_beside_it),
		T(only_whole_pages_of_a_report_go_back),
		T(the_reporting_queue_has_either_number),
		T(pages_keep_what_they_have_where_zero_is_not_what_the_guest_expects),
		T(without_the_feature_a_report_does_nothing),
		T(a_report_outside_memory_breaks_the_device_alone),
		T(a_guest_that_reports_its_own_rings_breaks_the_device_alone),
		T(a_turn_is_bounded_and_the_next_goes_on_there),
		T(a_stop_waits_for_one_piece_and_the_rest_goes_back_afterwards),
		T(pages_of_the_balloon_go_back_in_runs_whatever_their_order),
		T(a_page_of_the_balloon_outside_memory_breaks_the_device),
		T(a_target_is_told_and_what_the_driver_says_is_kept_until_it_resets),
		T(statistics_are_kept_and_asked_for_when_somebody_looks),
		T(what_was_saved_is_what_is_loaded),
		T(a_statistics_queue_out_of_use_leaves_no_buffer_behind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
