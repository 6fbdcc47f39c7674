/* The gate from a guest address to bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm/memory.h"

#define GIB (1ull << 30)

static void
what_is_written_is_read(void **state)
{
	struct guest_mem m = {0};
	char buf[6] = {0};

	(void)state;
	assert_int_equal(guest_mem_create(&m, 16, NULL), 0);
	assert_int_equal((uintptr_t)m.host % (2u << 20), 0);
	assert_int_equal(guest_write(&m, (gpa_t){0x1000}, "pando", 6), 0);
	assert_int_equal(guest_read(&m, (gpa_t){0x1000}, buf, 6), 0);
	assert_string_equal(buf, "pando");
	guest_mem_destroy(&m);
	assert_null(m.host);
}

static void
read_past_the_end_is_efault_and_copies_nothing(void **state)
{
	struct guest_mem m = {0};
	const uint64_t end = 16ull << 20;
	char buf[4] = "abc";

	(void)state;
	assert_int_equal(guest_mem_create(&m, 16, NULL), 0);
	assert_int_equal(guest_read(&m, (gpa_t){end - 4}, buf, 4), 0);
	memcpy(buf, "abc", 4);
	assert_int_equal(guest_read(&m, (gpa_t){end - 3}, buf, 4), -EFAULT);
	assert_string_equal(buf, "abc");
	assert_int_equal(guest_read(&m, (gpa_t){end}, buf, 1), -EFAULT);
	assert_int_equal(guest_write(&m, (gpa_t){end - 1}, buf, 2), -EFAULT);
	assert_int_equal(guest_read(&m, (gpa_t){end}, buf, 0), 0);
	guest_mem_destroy(&m);
}

static void
addresses_that_wrap_are_efault(void **state)
{
	struct guest_mem m = {0};
	char buf[16];

	(void)state;
	assert_int_equal(guest_mem_create(&m, 16, NULL), 0);
	assert_int_equal(guest_read(&m, (gpa_t){UINT64_MAX}, buf, 1), -EFAULT);
	assert_int_equal(guest_read(&m, (gpa_t){UINT64_MAX - 7}, buf, 16), -EFAULT);
	assert_null(guest_range(&m, (gpa_t){0x1000}, SIZE_MAX));
	assert_null(guest_range(&m, (gpa_t){0x1000}, SIZE_MAX - 0xfff));
	guest_mem_destroy(&m);
}

static void
the_device_hole_is_no_memory(void **state)
{
	struct guest_mem m = {0};
	uint32_t v = 7;

	(void)state;
	assert_int_equal(
		guest_mem_create(&m, 5 * 1024, NULL), 0); /* only reserved, not touched */
	assert_int_equal(m.low_len, 3 * GIB);
	assert_int_equal(m.high_len, 2 * GIB);
	assert_int_equal(guest_write(&m, (gpa_t){3 * GIB - 2}, &v, 4), -EFAULT);
	assert_int_equal(guest_write(&m, (gpa_t){3 * GIB}, &v, 4), -EFAULT);
	assert_int_equal(guest_write(&m, (gpa_t){4 * GIB - 4}, &v, 4), -EFAULT);
	assert_int_equal(guest_write(&m, (gpa_t){4 * GIB}, &v, 4), 0);
	assert_int_equal(guest_write(&m, (gpa_t){6 * GIB - 4}, &v, 4), 0);
	assert_int_equal(guest_write(&m, (gpa_t){6 * GIB - 3}, &v, 4), -EFAULT);
	assert_int_equal(guest_write(&m, (gpa_t){6 * GIB}, &v, 4), -EFAULT);
	assert_ptr_equal(guest_range(&m, (gpa_t){4 * GIB}, 1), m.host + 3 * GIB);
	guest_mem_destroy(&m);
}

static void
no_memory_and_absurd_memory_are_refused(void **state)
{
	struct guest_mem m = {0};
	struct err e = {0};

	(void)state;
	assert_int_equal(guest_mem_create(&m, 0, &e), -EINVAL);
	assert_int_equal(guest_mem_create(&m, UINT64_MAX, &e), -EINVAL);
	assert_int_equal(guest_mem_create(&m, 1ull << 30, &e), -ENOMEM);
	assert_non_null(strstr(e.msg, "MiB of guest memory"));
}

static int
image_of(uint64_t mib, char fill)
{
	char name[] = "/tmp/test_memory.XXXXXX", block[4096];
	int fd = mkstemp(name);

	assert_true(fd >= 0);
	unlink(name);
	memset(block, fill, sizeof(block));
	assert_int_equal(ftruncate(fd, (off_t)(mib << 20)), 0);
	assert_int_equal(pwrite(fd, block, sizeof(block), 0x3000), sizeof(block));
	return fd;
}

/* As of a VM that is reset: to its own image, to another one, from memory without one. */
static void
an_image_takes_the_place_of_memory_at_the_same_addresses(void **state)
{
	const int one = image_of(16, 'a'), two = image_of(16, 'b'), small = image_of(15, 'c');
	struct guest_mem m = {0};
	struct err e = {0};
	uint8_t *at;
	char c = 0;
	bool same = true;

	(void)state;
	assert_int_equal(guest_mem_create(&m, 16, NULL), 0);
	at = m.host;
	assert_int_equal(guest_write(&m, (gpa_t){0x3000}, "z", 1), 0);
	assert_int_equal(guest_mem_check_image(&m, one, &same, &e), 0);
	assert_false(same);
	assert_int_equal(guest_mem_replace(&m, one, &e), 0);
	assert_int_equal(guest_mem_check_image(&m, one, &same, &e), 0);
	assert_true(same && m.on_image && m.host == at);
	assert_int_equal(guest_read(&m, (gpa_t){0x3000}, &c, 1), 0);
	assert_int_equal(c, 'a');
	assert_int_equal(guest_write(&m, (gpa_t){0x3000}, "z", 1), 0);
	assert_int_equal(guest_mem_check_image(&m, two, &same, &e), 0);
	assert_false(same);
	assert_int_equal(guest_mem_replace(&m, two, &e), 0);
	assert_int_equal(guest_read(&m, (gpa_t){0x3000}, &c, 1), 0);
	assert_int_equal(c, 'b');
	assert_int_equal(guest_mem_replace(&m, small, &e), -EINVAL);
	assert_int_equal(guest_mem_check_image(&m, small, &same, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "16 MiB"));
	guest_mem_destroy(&m);
	close(one);
	close(two);
	close(small);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_read),
		cmocka_unit_test(read_past_the_end_is_efault_and_copies_nothing),
		cmocka_unit_test(addresses_that_wrap_are_efault),
		cmocka_unit_test(the_device_hole_is_no_memory),
		cmocka_unit_test(no_memory_and_absurd_memory_are_refused),
		cmocka_unit_test(an_image_takes_the_place_of_memory_at_the_same_addresses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
