/* The IOAPIC, with a list in KVM's place. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "vmm/ioapic.h"

#define MASKED (1u << 16)
#define LEVEL (1u << 15)
#define REMOTE_IRR (1u << 14)

struct bus {
	uint64_t address[16];
	uint32_t data[16];
	unsigned n;
	int result;
	unsigned n_levels, level_pin;
};

static struct bus bus;
static struct ioapic io;

static int
message(void *ctx, uint64_t address, uint32_t data)
{
	struct bus *b = ctx;

	if (b->result < 0)
		return b->result;
	assert_true(b->n < 16);
	b->address[b->n] = address;
	b->data[b->n++] = data;
	return 0;
}

static void
levels(void *ctx, unsigned n, const unsigned *pins, const uint64_t *addresses,
	const uint32_t *data)
{
	struct bus *b = ctx;

	(void)addresses;
	(void)data;
	b->n_levels = n;
	b->level_pin = n ? pins[0] : 0;
}

static int
setup(void **state)
{
	(void)state;
	bus = (struct bus){0};
	ioapic_init(&io,
		(struct ioapic_sink){.message = message, .levels = levels, .ctx = &bus});
	return 0;
}

static void
put(uint32_t index, uint32_t value)
{
	ioapic_write(&io, 0x00, &index, 4);
	ioapic_write(&io, 0x10, &value, 4);
}

static uint32_t
get(uint32_t index)
{
	uint32_t value;

	ioapic_write(&io, 0x00, &index, 4);
	ioapic_read(&io, 0x10, &value, 4);
	return value;
}

/* Redirection entry of a pin. */
static void
route(unsigned pin, uint32_t low, uint32_t destination)
{
	put(0x10 + 2 * pin + 1, destination << 24);
	put(0x10 + 2 * pin, low);
}

static void
it_has_24_pins_all_masked(void **state)
{
	(void)state;
	assert_int_equal(get(0x01), 0x11 | 23 << 16);
	for (unsigned pin = 0; pin < 24; pin++)
		assert_int_equal(get(0x10 + 2 * pin), MASKED);
}

static void
an_edge_becomes_a_message(void **state)
{
	(void)state;
	route(5, 0x41 | 1 << 11, 3); /* logical destination */
	ioapic_raise(&io, 5);
	assert_int_equal(bus.n, 1);
	assert_int_equal(bus.address[0], 0xfee00000 | 3 << 12 | 1 << 2);
	assert_int_equal(bus.data[0], 0x41 | 1 << 14);
	ioapic_raise(&io, 5);
	assert_int_equal(bus.n, 2);
}

static void
an_edge_while_masked_comes_at_unmask_once(void **state)
{
	(void)state;
	route(7, 0x51 | MASKED, 0);
	ioapic_raise(&io, 7);
	ioapic_raise(&io, 7);
	assert_int_equal(bus.n, 0);
	route(7, 0x52, 0);
	assert_int_equal(bus.n, 1);
	assert_int_equal(bus.data[0] & 0xff, 0x52);
	route(7, 0x52, 0);
	assert_int_equal(bus.n, 1);
}

static void
an_edge_that_could_not_be_sent_is_kept(void **state)
{
	(void)state;
	route(5, 0x41, 0);
	bus.result = -ENODEV; /* between a fork and the child's own KVM VM */
	ioapic_raise(&io, 5);
	bus.result = 0;
	assert_int_equal(bus.n, 0);
	ioapic_resume(&io);
	assert_int_equal(bus.n, 1);
	ioapic_resume(&io);
	assert_int_equal(bus.n, 1);
}

static void
a_level_pin_waits_for_its_eoi(void **state)
{
	(void)state;
	route(9, 0x61 | LEVEL, 0);
	assert_int_equal(bus.n_levels, 1);
	assert_int_equal(bus.level_pin, 9);
	ioapic_raise(&io, 9);
	assert_int_equal(bus.n, 1);
	assert_int_equal(bus.data[0], 0x61 | 1 << 14 | LEVEL);
	assert_true(get(0x10 + 18) & REMOTE_IRR);
	ioapic_raise(&io, 9);
	assert_int_equal(bus.n, 1);
	ioapic_eoi(&io, 0x62); /* another vector */
	assert_int_equal(bus.n, 1);
	ioapic_eoi(&io, 0x61);
	assert_int_equal(bus.n, 2);
	ioapic_eoi(&io, 0x61);
	assert_int_equal(bus.n, 2);
	assert_false(get(0x10 + 18) & REMOTE_IRR);
	route(9, 0x61 | LEVEL | MASKED, 0);
	assert_int_equal(bus.n_levels, 0);
}

static void
read_only_bits_and_reserved_registers_stay(void **state)
{
	(void)state;
	route(3, 0xffffffff, 0xff);
	assert_int_equal(get(0x10 + 6), 0x1afff & ~(1u << 12 | REMOTE_IRR));
	put(0x01, 0xffffffff);
	assert_int_equal(get(0x01), 0x11 | 23 << 16);
	put(0x40, 1); /* one past the last pin */
	put(0xff, 1);
	assert_int_equal(get(0x40), 0);
}

static void
odd_sizes_and_pins_do_nothing(void **state)
{
	uint64_t v = UINT64_MAX;

	(void)state;
	ioapic_raise(&io, 24);
	ioapic_raise(&io, ~0u);
	ioapic_write(&io, 0x10, &v, 8);
	ioapic_write(&io, 0x11, &v, 1);
	ioapic_read(&io, 0x10, &v, 8);
	assert_int_equal(v, 0);
	assert_int_equal(bus.n, 0);
	assert_int_equal(io.pending, 0);
}

/* Of a VM that is reset. */
static void
what_is_forgotten_is_as_it_began(void **state)
{
	(void)state;
	route(9, 0x61 | LEVEL, 0);
	route(4, 0x33 | MASKED, 0);
	ioapic_raise(&io, 4);
	assert_int_equal(bus.n_levels, 1);
	ioapic_forget(&io);
	assert_int_equal(bus.n_levels, 0);
	it_has_24_pins_all_masked(state);
	assert_int_equal(io.pending, 0);
	ioapic_raise(&io, 9);
	assert_int_equal(bus.n, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(it_has_24_pins_all_masked, setup),
		cmocka_unit_test_setup(an_edge_becomes_a_message, setup),
		cmocka_unit_test_setup(an_edge_while_masked_comes_at_unmask_once, setup),
		cmocka_unit_test_setup(an_edge_that_could_not_be_sent_is_kept, setup),
		cmocka_unit_test_setup(a_level_pin_waits_for_its_eoi, setup),
		cmocka_unit_test_setup(read_only_bits_and_reserved_registers_stay, setup),
		cmocka_unit_test_setup(odd_sizes_and_pins_do_nothing, setup),
		cmocka_unit_test_setup(what_is_forgotten_is_as_it_began, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
