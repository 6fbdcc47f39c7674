/* What a VM boots from, and the sentences for what it cannot boot from: host/vm/image.c. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "host/vm/image.h"

static char folder[64];
static uint8_t kernel[0x400];
static uint8_t disk[64 * 1024];
static struct err e;

static const char *
put(const char *name, const void *bytes, size_t len)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	assert_int_equal(io_write_file_atomic(path, bytes, len, 0600, &e), 0);
	return path;
}

static int
setup(void **state)
{
	char path[128];

	(void)state;
	snprintf(folder, sizeof(folder), "/tmp/pando-test-XXXXXX");
	assert_non_null(mkdtemp(folder));
	memset(kernel, 0, sizeof(kernel));
	kernel[0x1fe] = 0x55;
	kernel[0x1ff] = 0xaa;
	memcpy(kernel + 0x202, "HdrS", 4);
	/* An ext4 superblock for as many 4 KiB blocks as the file has. */
	memset(disk, 0, sizeof(disk));
	disk[1024 + 0x04] = sizeof(disk) / 4096;
	disk[1024 + 0x18] = 2;
	disk[1024 + 0x38] = 0x53;
	disk[1024 + 0x39] = 0xef;
	snprintf(path, sizeof(path), "%s/good", folder);
	assert_int_equal(mkdir(path, 0700), 0);
	put("good/kernel", kernel, sizeof(kernel));
	put("good/rootfs.ext4", disk, sizeof(disk));
	put("good/image.json", "{\"cmdline\":\"init_on_free=1\"}", 28);
	snprintf(path, sizeof(path), "%s/default", folder);
	assert_int_equal(symlink("good", path), 0);
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	return io_remove_tree(folder, NULL);
}

static int
open_image(const char *k, const char *rootfs, struct image *ret)
{
	e.msg[0] = '\0';
	return image_open(folder, k, rootfs, ret, &e);
}

static void
refused(const char *k, const char *rootfs, int code, const char *sentence)
{
	struct image image = IMAGE_INIT;
	int r = open_image(k, rootfs, &image);

	if (r != code || !strstr(e.msg, sentence))
		fail_msg("%s, %s: %d %s", k, rootfs, r, e.msg);
	assert_int_equal(image.kernel_fd, -1);
	assert_int_equal(image.base_fd, -1);
}

static void
a_name_is_a_folder_of_images_and_links_are_followed(void **state)
{
	cleanup_image struct image image = IMAGE_INIT;
	char real[PATHS_MAX];

	(void)state;
	assert_int_equal(open_image("default", "default", &image), 0);
	assert_true(image.kernel_fd >= 0 && image.base_fd >= 0);
	assert_int_equal(image.initrd_fd, -1);
	assert_string_equal(image.cmdline, "init_on_free=1");
	snprintf(real, sizeof(real), "%s/good/rootfs.ext4", folder);
	assert_string_equal(image.base_path, real);
	assert_int_equal(image.base_mib, 1);
}

static void
files_and_folders_may_be_named_by_their_paths(void **state)
{
	struct image image = IMAGE_INIT;
	char k[128], root[128];

	(void)state;
	snprintf(k, sizeof(k), "%s/good/kernel", folder);
	snprintf(root, sizeof(root), "%s/good", folder);
	put("good/initrd", "cpio", 4);
	assert_int_equal(open_image(k, root, &image), 0);
	assert_int_equal(image.initrd_fd, -1);
	assert_string_equal(image.cmdline, "");
	image_done(&image);
	assert_int_equal(open_image(root, "none", &image), 0);
	assert_true(image.initrd_fd >= 0);
	assert_int_equal(image.base_fd, -1);
	assert_int_equal(image.base_mib, 0);
	image_done(&image);
}

static void
an_image_that_is_not_there_is_named(void **state)
{
	(void)state;
	refused("nothing", "default", -ENOENT, "no image named \"nothing\"");
	refused("default", "nothing", -ENOENT, "`make images`");
	refused("../x", "default", -EINVAL,
		"neither an image's name nor an absolute path");
	refused(".", "default", -EINVAL, "neither an image's name nor an absolute path");
	refused("/nonexistent/kernel", "default", -ENOENT, "kernel /nonexistent/kernel");
}

static void
a_kernel_that_is_none_is_refused(void **state)
{
	(void)state;
	refused(put("k", "", 0), "none", -EINVAL, "is empty");
	refused(put("k", "hello", 5), "none", -EINVAL, "it has only 5 bytes");
	kernel[0x202] = 'X';
	refused(put("k", kernel, sizeof(kernel)), "none", -EINVAL, "no bzImage header");
	memcpy(kernel, "\177ELF", 4);
	refused(put("k", kernel, sizeof(kernel)), "none", -EINVAL, "is an ELF file");
	refused("/dev/zero", "none", -EINVAL, "not a regular file");
}

static void
a_truncated_disk_image_is_refused(void **state)
{
	(void)state;
	refused("good", put("d", "", 0), -EINVAL, "is empty");
	refused("good", put("d", disk, 5000), -EINVAL, "no multiple of 4096");
	refused("good", put("d", disk, sizeof(disk) / 2), -EINVAL,
		"has 16 blocks of 4096 bytes, the file only 32768 bytes");
	disk[1024 + 0x60] = 0x80;
	disk[1024 + 0x150] = 1;
	refused("good", put("d", disk, sizeof(disk)), -EINVAL, "is truncated");
	disk[1024 + 0x18] = 200;
	refused("good", put("d", disk, sizeof(disk)), -EINVAL, "damaged ext4 superblock");
}

static void
a_disk_without_ext4_is_the_guests_business(void **state)
{
	cleanup_image struct image image = IMAGE_INIT;

	(void)state;
	disk[1024 + 0x38] = 0;
	assert_int_equal(open_image("good", put("d", disk, sizeof(disk)), &image), 0);
}

static void
a_bad_image_json_is_named(void **state)
{
	(void)state;
	put("good/image.json", "{", 1);
	refused("good", "none", -EINVAL, "image.json");
	put("good/image.json", "{\"cmdline\":3}", 13);
	refused("good", "none", -EINVAL, "\"cmdline\" is not a string");
}

/* The tests' small guest is a bzImage, too, and names no version. */
static void
a_kernel_that_names_its_version_is_linux(void **state)
{
	struct image image = IMAGE_INIT;
	uint8_t named[sizeof(kernel)];

	(void)state;
	assert_int_equal(open_image("good", "none", &image), 0);
	assert_false(image.is_linux);
	image_done(&image);
	memcpy(named, kernel, sizeof(named));
	named[0x20e] = 0x80;
	named[0x20f] = 0x34;
	assert_int_equal(
		open_image(put("linux", named, sizeof(named)), "none", &image), 0);
	assert_true(image.is_linux);
	image_done(&image);
	named[0x20e] = 0; /* a multiple of 256 is a place, too */
	assert_int_equal(
		open_image(put("linux", named, sizeof(named)), "none", &image), 0);
	assert_true(image.is_linux);
	image_done(&image);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
		T(a_name_is_a_folder_of_images_and_links_are_followed),
		T(files_and_folders_may_be_named_by_their_paths),
		T(an_image_that_is_not_there_is_named),
		T(a_kernel_that_is_none_is_refused),
		T(a_truncated_disk_image_is_refused),
		T(a_disk_without_ext4_is_the_guests_business),
		T(a_bad_image_json_is_named),
		T(a_kernel_that_names_its_version_is_linux),
#undef T
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
