/* The serial port and what it writes to, and the event device. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/ged.h"
#include "vmm/layout.h"
#include "vmm/serial.h"

static int fd = -1;
static struct console console;
static struct serial serial;
static unsigned irqs;

static void
count_irq(void *ctx, unsigned gsi)
{
	(void)ctx;
	(void)gsi;
	irqs++;
}

static int
setup(void **state)
{
	struct irq_line irq = {.raise = count_irq, .gsi = SERIAL_GSI};

	(void)state;
	irqs = 0;
	fd = memfd_create("console", MFD_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(console_open(&console, fd, NULL), 0);
	serial_init(&serial, &console, irq);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	munmap(console.hdr, CONSOLE_FILE_BYTES);
	close(fd);
	return 0;
}

static void
what_is_sent_is_in_the_file(void **state)
{
	struct console_hdr hdr;
	char text[8] = {0};

	(void)state;
	serial_write(&serial, 0, 'h');
	serial_write_many(&serial, 0, (const uint8_t *)"ello", 4);
	assert_int_equal(io_pread_full(fd, &hdr, sizeof(hdr), 0), 0);
	assert_memory_equal(hdr.magic, CONSOLE_MAGIC, 8);
	assert_int_equal(hdr.written, 5);
	assert_int_equal(io_pread_full(fd, text, 5, CONSOLE_HDR_BYTES), 0);
	assert_string_equal(text, "hello");
}

static void
offsets_stay_true_when_the_ring_wraps(void **state)
{
	static uint8_t block[100000];
	struct console_hdr hdr;
	uint64_t last;
	uint8_t byte;

	(void)state;
	for (unsigned i = 0; i < 25; i++) {
		memset(block, (int)i, sizeof(block));
		console_write(&console, block, sizeof(block));
	}
	console_write(&console, "z", 1);
	assert_int_equal(io_pread_full(fd, &hdr, sizeof(hdr), 0), 0);
	assert_int_equal(hdr.written, 2500001);
	assert_int_equal(lseek(fd, 0, SEEK_END), CONSOLE_FILE_BYTES);
	last = hdr.written - 1;
	assert_int_equal(io_pread_full(fd, &byte, 1,
				 CONSOLE_HDR_BYTES + last % CONSOLE_RING_BYTES),
		0);
	assert_int_equal(byte, 'z');
	for (uint64_t at = last - CONSOLE_RING_BYTES + 1; at < last; at += 4099) {
		assert_int_equal(io_pread_full(fd, &byte, 1,
					 CONSOLE_HDR_BYTES + at % CONSOLE_RING_BYTES),
			0);
		assert_int_equal(byte, at / sizeof(block));
	}
}

static void
the_transmitter_interrupts_when_asked(void **state)
{
	(void)state;
	serial_write(&serial, 0, 'x');
	assert_int_equal(irqs, 0);
	serial_write(&serial, 1, 0x02);
	assert_int_equal(irqs, 1);
	assert_int_equal(serial_read(&serial, 2), 0x02);
	assert_int_equal(serial_read(&serial, 2), 0x01); /* taken */
	serial_write(&serial, 0, 'x');
	assert_int_equal(irqs, 2);
	serial_resume(&serial); /* not taken yet: once more */
	assert_int_equal(irqs, 3);
	assert_int_equal(serial_read(&serial, 2), 0x02);
	serial_resume(&serial);
	assert_int_equal(irqs, 3);
}

static void
the_divisor_is_not_sent(void **state)
{
	(void)state;
	serial_write(&serial, 3, 0x80);
	serial_write(&serial, 0, 0x0c);
	serial_write(&serial, 1, 0x00);
	assert_int_equal(serial_read(&serial, 0), 0x0c);
	serial_write(&serial, 3, 0x03);
	assert_int_equal(console.hdr->written, 0);
	assert_int_equal(serial_read(&serial, 5), 0x60);
}

static void
loop_back_stays_inside(void **state)
{
	(void)state;
	serial_write(&serial, 4, 0x10 | 0x0a); /* what Linux's 8250 driver probes with */
	assert_int_equal(serial_read(&serial, 6) & 0xf0, 0x90);
	serial_write(&serial, 0, 'q');
	assert_int_equal(serial_read(&serial, 5) & 1, 1);
	assert_int_equal(serial_read(&serial, 0), 'q');
	assert_int_equal(serial_read(&serial, 5) & 1, 0);
	assert_int_equal(console.hdr->written, 0);
}

static unsigned offs, resets;

static void
count_off(void *ctx)
{
	(void)ctx;
	offs++;
}

static void
count_reset(void *ctx)
{
	(void)ctx;
	resets++;
}

static void
events_are_taken_by_reading(void **state)
{
	struct ged g;
	uint32_t v;

	(void)state;
	ged_init(&g, (struct irq_line){.raise = count_irq}, count_off, count_reset, NULL);
	ged_resume(&g);
	assert_int_equal(irqs, 0);
	ged_notify(&g, GED_EVENT_GENERATION);
	ged_notify(&g, GED_EVENT_POWER_BUTTON);
	assert_int_equal(irqs, 2);
	ged_read(&g, 0, &v, 4);
	assert_int_equal(v, GED_EVENT_GENERATION | GED_EVENT_POWER_BUTTON);
	ged_read(&g, 0, &v, 4);
	assert_int_equal(v, 0);
	ged_read(&g, 1, &v, 2);
	assert_int_equal(v & 0xffff, 0xffff);
}

static void
only_the_right_values_end_the_vm(void **state)
{
	struct ged g;
	uint8_t v;

	(void)state;
	offs = resets = 0;
	ged_init(&g, (struct irq_line){.raise = count_irq}, count_off, count_reset, NULL);
	for (unsigned i = 0; i < 256; i++) {
		v = (uint8_t)i;
		ged_write(&g, LAYOUT_SLEEP_CONTROL - LAYOUT_GED_EVENTS, &v, 1);
		ged_write(&g, LAYOUT_RESET - LAYOUT_GED_EVENTS, &v, 1);
	}
	assert_int_equal(offs, 16); /* four bits of the register mean nothing */
	assert_int_equal(resets, 1);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			what_is_sent_is_in_the_file, setup, teardown),
		cmocka_unit_test_setup_teardown(
			offsets_stay_true_when_the_ring_wraps, setup, teardown),
		cmocka_unit_test_setup_teardown(
			the_transmitter_interrupts_when_asked, setup, teardown),
		cmocka_unit_test_setup_teardown(the_divisor_is_not_sent, setup, teardown),
		cmocka_unit_test_setup_teardown(loop_back_stays_inside, setup, teardown),
		cmocka_unit_test_setup_teardown(
			events_are_taken_by_reading, setup, teardown),
		cmocka_unit_test_setup_teardown(
			only_the_right_values_end_the_vm, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
