/* The gate: what a driver may put into rings and registers, and what it may not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "tests/unit/fake_driver.h"
#include "vmm/rng.h"

#define ALL (VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC)

static struct fake_driver d;
static struct rng rng;

static int
setup(void **state)
{
	(void)state;
	fake_driver_init(&d);
	rng_init(&rng, &d.mem, fake_irq(&d));
	d.dev = &rng.dev;
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	fake_driver_done(&d);
	return 0;
}

static void
assert_works(void)
{
	struct fake_buf buf = {FAKE_HEAP, 64, true};
	uint8_t zero[64] = {0}, got[64];
	uint32_t head, len;
	uint16_t sent;

	assert_true(fake_start(&d, &rng.dev, ALL));
	fake_poke(&d, FAKE_HEAP, zero, sizeof(zero));
	sent = fake_add(&d, 0, &buf, 1);
	fake_kick(&d, 0);
	assert_true(fake_used(&d, 0, &head, &len));
	assert_int_equal(head, sent);
	assert_int_equal(len, 64);
	fake_peek(&d, FAKE_HEAP, got, sizeof(got));
	assert_memory_not_equal(got, zero, sizeof(got));
}

/* The device refuses what was offered, says so, and works again after a reset. */
static void
assert_breaks(void)
{
	unsigned irqs = d.irqs;

	fake_kick(&d, 0);
	assert_false(fake_used(&d, 0, NULL, NULL));
	assert_true(fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_true(
		fake_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_INTERRUPT_CONFIG);
	assert_true(d.irqs > irqs);
	irqs = d.irqs;
	fake_kick(&d, 0);
	assert_int_equal(d.irqs, irqs);
	assert_works();
}

static void
a_request_is_served(void **state)
{
	(void)state;
	assert_works();
	assert_int_equal(d.irqs, 1);
	assert_int_equal(
		fake_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INTERRUPT_USED);
	fake_write(&d, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_INTERRUPT_USED);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
	assert_int_equal(atomic_load(&rng.dev.doorbells), 1);
}

static void
registers_say_what_it_is(void **state)
{
	uint16_t half;

	(void)state;
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_MAGIC), 0x74726976);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_VERSION), 2);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_DEVICE_ID), VIRTIO_ID_RNG);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_SHM_LEN_LOW), 0xffffffff);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_CONFIG), 0);
	fake_write(&d, VIRTIO_MMIO_QUEUE_SEL, 77);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_QUEUE_SIZE_MAX), 0);
	virtio_mmio_read(&rng.dev, VIRTIO_MMIO_MAGIC, &half, sizeof(half));
	assert_int_equal(half, 0);
	virtio_mmio_read(&rng.dev, VIRTIO_MMIO_MAGIC + 2, &half, sizeof(half));
	assert_int_equal(half, 0);
}

static void
features_without_version_1_are_refused(void **state)
{
	(void)state;
	assert_false(fake_start(&d, &rng.dev, VIRTIO_F_EVENT_IDX));
	/* And without them there is no driver. */
	fake_write(&d, VIRTIO_MMIO_STATUS, 15);
	assert_false(fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_DRIVER_OK);
}

static void
features_not_offered_are_refused(void **state)
{
	(void)state;
	fake_write(&d, VIRTIO_MMIO_STATUS, 3);
	fake_write(&d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	fake_write(&d, VIRTIO_MMIO_DRIVER_FEATURES, 0xffffffff);
	fake_write(&d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	fake_write(&d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	fake_write(&d, VIRTIO_MMIO_STATUS, 11);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_STATUS), 3);
}

static void
a_loop_ends(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	fake_set_desc(&d, 0, 0, (struct virtq_desc){FAKE_HEAP, 8, 3, 1});
	fake_set_desc(&d, 0, 1, (struct virtq_desc){FAKE_HEAP, 8, 3, 0});
	fake_offer(&d, 0, 0);
	assert_breaks();
}

static void
one_bad_descriptor(struct virtq_desc desc)
{
	assert_true(fake_start(&d, &rng.dev, ALL));
	fake_set_desc(&d, 0, 3, desc);
	fake_offer(&d, 0, 3);
	assert_breaks();
}

static void
a_buffer_outside_memory_breaks_the_device(void **state)
{
	(void)state;
	one_bad_descriptor((struct virtq_desc){FAKE_MEM_MIB << 20, 8, 2, 0});
	one_bad_descriptor((struct virtq_desc){(FAKE_MEM_MIB << 20) - 4, 8, 2, 0});
	one_bad_descriptor((struct virtq_desc){UINT64_MAX - 3, 8, 2, 0});
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, UINT32_MAX, 2, 0});
}

static void
an_empty_buffer_breaks_the_device(void **state)
{
	(void)state;
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 0, 2, 0});
}

static void
a_next_outside_the_table_breaks_the_device(void **state)
{
	(void)state;
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 8, 3, 64});
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 8, 3, 65535});
}

static void
readable_after_writable_breaks_the_device(void **state)
{
	struct fake_buf bufs[] = {{FAKE_HEAP, 8, true}, {FAKE_HEAP, 8, false}};

	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	fake_add(&d, 0, bufs, 2);
	assert_breaks();
}

static void
a_head_outside_the_table_breaks_the_device(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	fake_offer(&d, 0, d.q[0].size);
	assert_breaks();
}

static void
an_index_that_jumps_breaks_the_device(void **state)
{
	uint16_t idx;

	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	/* Every entry of the ring is good: only the index is not. */
	fake_set_desc(&d, 0, 0, (struct virtq_desc){FAKE_HEAP, 8, 2, 0});
	idx = d.q[0].size + 1;
	fake_poke(&d, d.q[0].avail + 2, &idx, sizeof(idx));
	assert_breaks();
	idx = 65535; /* backwards */
	fake_poke(&d, d.q[0].avail + 2, &idx, sizeof(idx));
	assert_true(fake_start(&d, &rng.dev, ALL));
	fake_poke(&d, d.q[0].avail + 2, &idx, sizeof(idx));
	assert_breaks();
}

/* An indirect table of n descriptors at FAKE_HEAP, all of 16 writable bytes. */
static void
write_table(unsigned n)
{
	struct virtq_desc t;
	unsigned i;

	for (i = 0; i < n; i++) {
		t = (struct virtq_desc){FAKE_HEAP + 0x10000 + 16 * i, 16, 2, 0};
		if (i + 1 < n) {
			t.flags |= VIRTQ_DESC_F_NEXT;
			t.next = (uint16_t)(i + 1);
		}
		fake_poke(&d, FAKE_HEAP + 16 * i, &t, sizeof(t));
	}
}

static void
an_indirect_table_is_served(void **state)
{
	uint32_t len;

	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	write_table(8);
	fake_set_desc(&d, 0, 3, (struct virtq_desc){FAKE_HEAP, 8 * 16, 4, 0});
	fake_offer(&d, 0, 3);
	fake_kick(&d, 0);
	assert_true(fake_used(&d, 0, NULL, &len));
	assert_int_equal(len, 128);
}

static void
an_indirect_table_not_negotiated_breaks_the_device(void **state)
{
	(void)state;
	assert_true(fake_start(&d, &rng.dev, VIRTIO_F_VERSION_1));
	write_table(2);
	fake_set_desc(&d, 0, 3, (struct virtq_desc){FAKE_HEAP, 32, 4, 0});
	fake_offer(&d, 0, 3);
	assert_breaks();
}

static void
a_bad_indirect_table_breaks_the_device(void **state)
{
	struct virtq_desc inner = {FAKE_HEAP + 0x100, 16, 4, 0};

	(void)state;
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 0, 4, 0});
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 17, 4, 0});
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 16 * 65, 4, 0});
	one_bad_descriptor((struct virtq_desc){FAKE_MEM_MIB << 20, 16, 4, 0});
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 16, 5, 0});
	fake_poke(&d, FAKE_HEAP, &inner, sizeof(inner)); /* indirect in indirect */
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 16, 4, 0});
	write_table(4);
	inner = (struct virtq_desc){FAKE_HEAP, 16, 3, 0}; /* a loop in the table */
	fake_poke(&d, FAKE_HEAP + 16, &inner, sizeof(inner));
	one_bad_descriptor((struct virtq_desc){FAKE_HEAP, 64, 4, 0});
}

static void
set_queue(uint32_t size, uint64_t desc, uint64_t avail, uint64_t used)
{
	fake_write(&d, VIRTIO_MMIO_STATUS, 0);
	fake_write(&d, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	fake_write(&d, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	fake_write(&d, VIRTIO_MMIO_STATUS, 11);
	fake_write(&d, VIRTIO_MMIO_QUEUE_SEL, 0);
	fake_write(&d, VIRTIO_MMIO_QUEUE_SIZE, size);
	fake_write(&d, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)desc);
	fake_write(&d, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(desc >> 32));
	fake_write(&d, VIRTIO_MMIO_QUEUE_DRIVER_LOW, (uint32_t)avail);
	fake_write(&d, VIRTIO_MMIO_QUEUE_DRIVER_HIGH, (uint32_t)(avail >> 32));
	fake_write(&d, VIRTIO_MMIO_QUEUE_DEVICE_LOW, (uint32_t)used);
	fake_write(&d, VIRTIO_MMIO_QUEUE_DEVICE_HIGH, (uint32_t)(used >> 32));
	fake_write(&d, VIRTIO_MMIO_QUEUE_READY, 1);
}

static void
a_bad_ring_is_not_made_ready(void **state)
{
	const uint64_t end = FAKE_MEM_MIB << 20;
	const struct {
		uint32_t size;
		uint64_t desc, avail, used;
	} bad[] = {
		{0, 0x1000, 0x2000, 0x3000},
		{3, 0x1000, 0x2000, 0x3000},
		{128, 0x1000, 0x2000, 0x3000}, /* the maximum is 64 */
		{65536 + 16, 0x1000, 0x2000, 0x3000},
		{16, 0x1008, 0x2000, 0x3000},
		{16, 0x1000, 0x2001, 0x3000},
		{16, 0x1000, 0x2000, 0x3002},
		{16, end - 128, 0x2000, 0x3000},
		{16, 0x1000, end - 32, 0x3000},
		{16, 0x1000, 0x2000, end - 128},
		{16, UINT64_MAX & ~15ull, 0x2000, 0x3000},
		{16, 0x1000, 0x2000, UINT64_MAX & ~3ull},
	};
	size_t i;

	(void)state;
	set_queue(16, 0x1000, 0x2000, 0x3000);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_QUEUE_READY), 1);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		set_queue(bad[i].size, bad[i].desc, bad[i].avail, bad[i].used);
		assert_int_equal(fake_read(&d, VIRTIO_MMIO_QUEUE_READY), 0);
		assert_true(
			fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	}
	assert_works();
}

static void
a_ready_queue_does_not_move(void **state)
{
	(void)state;
	set_queue(16, 0x1000, 0x2000, 0x3000);
	fake_write(&d, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x5000);
	fake_write(&d, VIRTIO_MMIO_QUEUE_SIZE, 0);
	assert_int_equal(rng.dev.queues[0].desc, 0x1000);
	assert_int_equal(rng.dev.queues[0].size, 16);
	/* Taken out of use, it serves nothing, and may be set up anew. */
	fake_write(&d, VIRTIO_MMIO_STATUS, 15);
	fake_write(&d, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_QUEUE_READY), 0);
	fake_kick(&d, 0);
	fake_write(&d, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x5000);
	fake_write(&d, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_QUEUE_READY), 1);
	assert_int_equal(rng.dev.queues[0].desc, 0x5000);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_STATUS), 15);
}

static void
the_driver_gets_the_interrupts_it_asks_for(void **state)
{
	struct fake_buf buf = {FAKE_HEAP, 8, true};
	uint16_t used_event;
	unsigned i;

	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	d.irqs = 0;
	fake_add(&d, 0, &buf, 1);
	fake_kick(&d, 0);
	assert_int_equal(d.irqs, 1); /* used_event 0 */
	used_event = 4;
	fake_poke(&d, d.q[0].avail + 4 + 2 * d.q[0].size, &used_event, 2);
	for (i = 1; i < 5; i++) {
		assert_int_equal(d.irqs, 1);
		fake_add(&d, 0, &buf, 1);
		fake_kick(&d, 0);
	}
	assert_int_equal(d.irqs, 2);
	fake_kick(&d, 0); /* nothing new */
	assert_int_equal(d.irqs, 2);
}

static void
without_event_index_the_flag_counts(void **state)
{
	struct fake_buf buf = {FAKE_HEAP, 8, true};
	uint16_t flags = VIRTQ_AVAIL_F_NO_INTERRUPT;

	(void)state;
	assert_true(fake_start(&d, &rng.dev, VIRTIO_F_VERSION_1));
	d.irqs = 0;
	fake_poke(&d, d.q[0].avail, &flags, 2);
	fake_add(&d, 0, &buf, 1);
	fake_kick(&d, 0);
	assert_int_equal(d.irqs, 0);
	flags = 0;
	fake_poke(&d, d.q[0].avail, &flags, 2);
	fake_add(&d, 0, &buf, 1);
	fake_kick(&d, 0);
	assert_int_equal(d.irqs, 1);
}

static void
the_device_asks_to_hear_of_the_next_chain(void **state)
{
	struct fake_buf buf = {FAKE_HEAP, 8, true};
	uint16_t avail_event;
	unsigned i;

	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	for (i = 0; i < 70000; i++) { /* more than the indices count */
		fake_add(&d, 0, &buf, 1);
		fake_kick(&d, 0);
		assert_true(fake_used(&d, 0, NULL, NULL));
		fake_peek(&d, d.q[0].used + 4 + 8 * d.q[0].size, &avail_event, 2);
		assert_int_equal(avail_event, d.q[0].avail_idx);
	}
}

static void
a_device_that_is_to_stop_stops_and_resumes(void **state)
{
	struct fake_buf buf = {FAKE_HEAP, 8, true};
	atomic_int stop = 1;

	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	rng.dev.stop = &stop;
	fake_add(&d, 0, &buf, 1);
	fake_kick(&d, 0);
	assert_false(fake_used(&d, 0, NULL, NULL));
	stop = 0;
	virtio_dev_resume(&rng.dev);
	assert_true(fake_used(&d, 0, NULL, NULL));
	d.irqs = 0;
	virtio_dev_resume(&rng.dev); /* not acknowledged: said once more */
	assert_int_equal(d.irqs, 1);
	rng.dev.stop = NULL;
}

static void
a_request_for_much_entropy_is_cut_short(void **state)
{
	struct fake_buf bufs[] = {
		{FAKE_HEAP, 3000, true}, {FAKE_HEAP + 3000, 60000, true}};
	uint32_t len;

	(void)state;
	assert_true(fake_start(&d, &rng.dev, ALL));
	fake_add(&d, 0, bufs, 2);
	fake_kick(&d, 0);
	assert_true(fake_used(&d, 0, NULL, &len));
	assert_int_equal(len, RNG_REQUEST_MAX);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_request_is_served),
		cmocka_unit_test(registers_say_what_it_is),
		cmocka_unit_test(features_without_version_1_are_refused),
		cmocka_unit_test(features_not_offered_are_refused),
		cmocka_unit_test(a_loop_ends),
		cmocka_unit_test(a_buffer_outside_memory_breaks_the_device),
		cmocka_unit_test(an_empty_buffer_breaks_the_device),
		cmocka_unit_test(a_next_outside_the_table_breaks_the_device),
		cmocka_unit_test(readable_after_writable_breaks_the_device),
		cmocka_unit_test(a_head_outside_the_table_breaks_the_device),
		cmocka_unit_test(an_index_that_jumps_breaks_the_device),
		cmocka_unit_test(an_indirect_table_is_served),
		cmocka_unit_test(an_indirect_table_not_negotiated_breaks_the_device),
		cmocka_unit_test(a_bad_indirect_table_breaks_the_device),
		cmocka_unit_test(a_bad_ring_is_not_made_ready),
		cmocka_unit_test(a_ready_queue_does_not_move),
		cmocka_unit_test(the_driver_gets_the_interrupts_it_asks_for),
		cmocka_unit_test(without_event_index_the_flag_counts),
		cmocka_unit_test(the_device_asks_to_hear_of_the_next_chain),
		cmocka_unit_test(a_device_that_is_to_stop_stops_and_resumes),
		cmocka_unit_test(a_request_for_much_entropy_is_cut_short),
	};

	log_init("test", LOG_LEVEL_ERR); /* what the guest broke is expected */
	return cmocka_run_group_tests(tests, setup, teardown);
}
