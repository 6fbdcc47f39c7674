/* Kernel images, good and bad, and what the kernel is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <asm/bootparam.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/acpi.h"
#include "vmm/boot.h"
#include "vmm/layout.h"

#define PAYLOAD 8192u

static struct guest_mem mem;
static uint8_t image[1024 + PAYLOAD];
static struct setup_header *hdr;

/* A bzImage of one setup sector and a payload that counts. */
static int
setup(void **state)
{
	(void)state;
	assert_int_equal(guest_mem_create(&mem, 32, NULL), 0);
	memset(image, 0, sizeof(image));
	hdr = (struct setup_header *)(void *)(image + 0x1f1);
	hdr->setup_sects = 1;
	hdr->syssize = PAYLOAD / 16;
	hdr->boot_flag = 0xaa55;
	hdr->jump = 0x6aeb;
	hdr->header = 0x53726448;
	hdr->version = 0x20f;
	hdr->loadflags = LOADED_HIGH;
	hdr->xloadflags = XLF_KERNEL_64;
	hdr->cmdline_size = 100;
	hdr->initrd_addr_max = 0x7fffffff;
	hdr->pref_address = 0x1000000;
	hdr->init_size = 0x100000;
	for (unsigned i = 0; i < PAYLOAD; i++)
		image[1024 + i] = (uint8_t)(i * 7);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	guest_mem_destroy(&mem);
	return 0;
}

static int
file_of(const void *bytes, size_t len)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, bytes, len), 0);
	return fd;
}

static int
load(size_t len, int initrd_fd, const char *cmdline, struct boot_entry *entry,
	struct err *e)
{
	int fd = file_of(image, len);
	int r = boot_load(&mem, fd, initrd_fd, cmdline, entry, e);

	close(fd);
	return r;
}

static void
assert_refused(size_t len, int code, const char *why)
{
	struct boot_entry entry;
	struct err e = {0};

	assert_int_equal(load(len, -1, "", &entry, &e), code);
	if (!strstr(e.msg, why))
		fail_msg("\"%s\" does not say \"%s\"", e.msg, why);
}

static void
a_good_kernel_is_told_all(void **state)
{
	struct boot_params bp;
	struct boot_entry entry;
	struct err e = {0};
	char text[32];
	uint8_t byte;
	int initrd = file_of("initrd bytes", 12);

	(void)state;
	assert_int_equal(load(sizeof(image), initrd, "console=ttyS0", &entry, &e), 0);
	close(initrd);
	assert_int_equal(entry.rip, LAYOUT_KERNEL + 0x200);
	assert_int_equal(guest_read(&mem, (gpa_t){LAYOUT_KERNEL + 100}, &byte, 1), 0);
	assert_int_equal(byte, (uint8_t)700);
	assert_int_equal(guest_read(&mem, (gpa_t){entry.rsi}, &bp, sizeof(bp)), 0);
	assert_int_equal(bp.hdr.header, 0x53726448);
	assert_int_equal(bp.hdr.type_of_loader, 0xff);
	assert_int_equal(bp.acpi_rsdp_addr, LAYOUT_ACPI);
	assert_int_equal(guest_read(&mem, (gpa_t){bp.hdr.cmd_line_ptr}, text, 14), 0);
	assert_string_equal(text, "console=ttyS0");
	assert_int_equal(bp.hdr.ramdisk_size, 12);
	assert_int_equal(bp.hdr.ramdisk_image % 4096, 0);
	assert_int_equal(guest_read(&mem, (gpa_t){bp.hdr.ramdisk_image}, text, 12), 0);
	assert_memory_equal(text, "initrd bytes", 12);
	assert_int_equal(bp.e820_entries, 3);
	assert_int_equal(bp.e820_table[2].addr + bp.e820_table[2].size, 32u << 20);
	/* The tables of ACPI and the generation id are not given away as memory. */
	assert_true(bp.e820_table[0].addr + bp.e820_table[0].size <= LAYOUT_ACPI);
	assert_int_equal(bp.e820_table[1].type, 2);
}

static void
the_first_4_gib_are_mapped_to_themselves(void **state)
{
	struct boot_entry entry;
	uint64_t pml4, pdpt, pd;

	(void)state;
	assert_int_equal(load(sizeof(image), -1, "", &entry, NULL), 0);
	for (uint64_t at = 0; at < 4ull << 30; at += 0x0fe00000) {
		uint64_t table = entry.cr3;

		assert_int_equal(guest_read(&mem, (gpa_t){table}, &pml4, 8), 0);
		assert_int_equal(
			guest_read(&mem, (gpa_t){(pml4 & ~0xfffull) + (at >> 30) * 8},
				&pdpt, 8),
			0);
		assert_int_equal(
			guest_read(&mem,
				(gpa_t){(pdpt & ~0xfffull) + (at >> 21 & 511) * 8}, &pd,
				8),
			0);
		assert_int_equal(pd & ~0x1fffffull, at & ~0x1fffffull);
		assert_int_equal(pd & 0x83, 0x83);
	}
}

static void
what_is_no_kernel_is_refused_with_its_reason(void **state)
{
	(void)state;
	assert_refused(100, -EINVAL, "only 100 bytes");
	hdr->boot_flag = 0;
	assert_refused(sizeof(image), -EINVAL, "not a bzImage: no boot signature");
	hdr->boot_flag = 0xaa55;
	hdr->header = 0;
	assert_refused(sizeof(image), -EINVAL, "HdrS");
	hdr->header = 0x53726448;
	hdr->version = 0x20b;
	assert_refused(sizeof(image), -EINVAL, "boot protocol 2.11");
	hdr->version = 0x20f;
	hdr->loadflags = 0;
	assert_refused(sizeof(image), -EINVAL, "zImage");
	hdr->loadflags = LOADED_HIGH;
	hdr->xloadflags = 0;
	assert_refused(sizeof(image), -EINVAL, "64-bit entry");
}

static void
a_kernel_cut_short_is_refused(void **state)
{
	(void)state;
	assert_refused(1024 + 4000, -EINVAL, "cut short");
	assert_refused(sizeof(image) - 1, -EINVAL, "cut short");
	hdr->setup_sects = 64;
	assert_refused(sizeof(image), -EINVAL, "cut short");
}

static void
a_kernel_too_big_for_the_memory_is_refused(void **state)
{
	(void)state;
	hdr->init_size = 0x7fffffff;
	assert_refused(sizeof(image), -ENOMEM, "to unpack itself");
	hdr->init_size = 0x100000;
	hdr->pref_address = UINT64_MAX;
	assert_refused(sizeof(image), -ENOMEM, "to unpack itself");
}

static void
an_initrd_that_does_not_fit_is_refused(void **state)
{
	struct boot_entry entry;
	struct err e = {0};
	int fd = memfd_create("initrd", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(ftruncate(fd, 15 << 20), 0); /* 32 MiB less 17 for the kernel */
	assert_int_equal(load(sizeof(image), fd, "", &entry, &e), 0);
	assert_int_equal(ftruncate(fd, (15 << 20) + 1), 0);
	assert_int_equal(load(sizeof(image), fd, "", &entry, &e), -ENOMEM);
	assert_non_null(strstr(e.msg, "initrd of 15 MiB does not fit"));
	assert_int_equal(ftruncate(fd, 1ll << 40), 0);
	assert_int_equal(load(sizeof(image), fd, "", &entry, &e), -ENOMEM);
	close(fd);
}

static void
a_command_line_too_long_is_refused(void **state)
{
	struct boot_entry entry;
	struct err e = {0};
	char cmdline[102];

	(void)state;
	memset(cmdline, 'a', sizeof(cmdline));
	cmdline[100] = '\0';
	assert_int_equal(load(sizeof(image), -1, cmdline, &entry, &e), 0);
	cmdline[100] = 'a';
	cmdline[101] = '\0';
	assert_int_equal(load(sizeof(image), -1, cmdline, &entry, &e), -E2BIG);
	assert_non_null(strstr(e.msg, "at most 100 bytes; this one has 101"));
}

static uint8_t
sum(uint64_t gpa, size_t len)
{
	uint8_t byte, total = 0;

	for (size_t i = 0; i < len; i++) {
		assert_int_equal(guest_read(&mem, (gpa_t){gpa + i}, &byte, 1), 0);
		total += byte;
	}
	return total;
}

static void
acpi_tables_hang_together(void **state)
{
	uint64_t xsdt, table;
	uint32_t len, table_len;
	unsigned seen = 0;
	char signature[4];

	(void)state;
	assert_int_equal(acpi_write_tables(&mem, 2, NULL), 0);
	assert_int_equal(sum(LAYOUT_ACPI, 20), 0);
	assert_int_equal(sum(LAYOUT_ACPI, 36), 0);
	assert_int_equal(guest_read(&mem, (gpa_t){LAYOUT_ACPI + 24}, &xsdt, 8), 0);
	assert_int_equal(guest_read(&mem, (gpa_t){xsdt + 4}, &len, 4), 0);
	assert_int_equal(sum(xsdt, len), 0);
	for (uint64_t at = xsdt + 36; at < xsdt + len; at += 8) {
		assert_int_equal(guest_read(&mem, (gpa_t){at}, &table, 8), 0);
		assert_int_equal(guest_read(&mem, (gpa_t){table}, signature, 4), 0);
		assert_int_equal(guest_read(&mem, (gpa_t){table + 4}, &table_len, 4), 0);
		assert_int_equal(sum(table, table_len), 0);
		if (memcmp(signature, "FACP", 4) == 0) {
			assert_int_equal(
				guest_read(&mem, (gpa_t){table + 140}, &table, 8), 0);
			assert_int_equal(
				guest_read(&mem, (gpa_t){table}, signature, 4), 0);
			assert_memory_equal(signature, "DSDT", 4);
			assert_int_equal(
				guest_read(&mem, (gpa_t){table + 4}, &table_len, 4), 0);
			assert_int_equal(sum(table, table_len), 0);
			seen |= 1;
		} else if (memcmp(signature, "APIC", 4) == 0) {
			seen |= 2;
		}
	}
	assert_int_equal(seen, 3);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			a_good_kernel_is_told_all, setup, teardown),
		cmocka_unit_test_setup_teardown(
			the_first_4_gib_are_mapped_to_themselves, setup, teardown),
		cmocka_unit_test_setup_teardown(
			what_is_no_kernel_is_refused_with_its_reason, setup, teardown),
		cmocka_unit_test_setup_teardown(
			a_kernel_cut_short_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(
			a_kernel_too_big_for_the_memory_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(
			an_initrd_that_does_not_fit_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(
			a_command_line_too_long_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(
			acpi_tables_hang_together, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
