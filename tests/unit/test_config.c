/* host/config: pando.toml and vers.toml, and every kind of mistake in them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/io.h"
#include "host/client/project_config.h"

static char folder[64];

static int
make_folder(void **state)
{
	(void)state;
	snprintf(folder, sizeof(folder), "/tmp/pando-config.XXXXXX");
	return mkdtemp(folder) ? 0 : -1;
}

static int
remove_folder(void **state)
{
	(void)state;
	return io_remove_tree(folder, NULL);
}

static void
put(const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	assert_int_equal(io_write_file_atomic(path, text, strlen(text), 0644, NULL), 0);
}

/* Loads text as pando.toml; the sentence must have both parts. */
static void
refused(const char *text, const char *where, const char *what)
{
	struct config c = {.mem_mib = 77};
	struct err e = {0};

	put("pando.toml", text);
	assert_int_equal(config_load(NULL, folder, &c, &e), -EINVAL);
	assert_int_equal(c.mem_mib, 77); /* untouched */
	if (!strstr(e.msg, where) || !strstr(e.msg, what))
		fail_msg("\"%s\" lacks \"%s\" or \"%s\"", e.msg, where, what);
}

static void
no_file_says_nothing(void **state)
{
	struct config c = {.mem_mib = 77};

	(void)state;
	assert_int_equal(config_load(NULL, folder, &c, NULL), 0);
	assert_null(c.path);
	assert_int_equal(c.mem_mib, 0);
	assert_null(c.kernel);
}

static void
all_keys_are_read(void **state)
{
	struct config c = {0};

	(void)state;
	put("pando.toml",
		"[machine]\nmem_size_mib = 1024\nvcpu_count = 2\nfs_size_vm_mib = 4096\n"
		"[rootfs]\nname = \"base\"\n[kernel]\nname = '/boot/vmlinuz'\n");
	assert_int_equal(config_load(NULL, folder, &c, NULL), 0);
	assert_int_equal(c.mem_mib, 1024);
	assert_int_equal(c.vcpus, 2);
	assert_int_equal(c.disk_mib, 4096);
	assert_string_equal(c.rootfs, "base");
	assert_string_equal(c.kernel, "/boot/vmlinuz");
	assert_non_null(strstr(c.path, "/pando.toml"));
	config_done(&c);
}

static void
vers_toml_is_read_when_there_is_no_pando_toml(void **state)
{
	struct config c = {0};

	(void)state;
	put("vers.toml", "machine.mem_size_mib = 256\nkernel.name = \"default.bin\"\n");
	assert_int_equal(config_load(NULL, folder, &c, NULL), 0);
	assert_int_equal(c.mem_mib, 256);
	assert_string_equal(c.kernel, "default");
	config_done(&c);
	put("pando.toml", "machine.mem_size_mib = 300\n");
	assert_int_equal(config_load(NULL, folder, &c, NULL), 0);
	assert_int_equal(c.mem_mib, 300);
	assert_null(c.kernel);
	config_done(&c);
}

static void
a_named_file_must_exist(void **state)
{
	struct config c = {0};
	struct err e = {0};

	(void)state;
	assert_int_equal(config_load("/nonexistent/x.toml", folder, &c, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "/nonexistent/x.toml"));
}

static void
mistakes_name_file_line_column_and_key(void **state)
{
	(void)state;
	refused("[machine]\nmem_size = 512\n", "pando.toml:2:", "\"mem_size\"");
	refused("[machine]\nmem_size = 512\n", "pando.toml:2:", "mem_size_mib");
	refused("[builder]\nname = \"x\"\n", "pando.toml:1:", "\"builder\"");
	refused("colour = 1\n", "pando.toml:1:", "\"colour\"");
	refused("[machine]\n\nvcpu_count = \"two\"\n", "pando.toml:3:14",
		"machine.vcpu_count");
	refused("[machine]\nvcpu_count = 1.5\n", "pando.toml:2:", "integer");
	refused("[rootfs]\nname = 3\n", "pando.toml:2:8", "rootfs.name must be a string");
	refused("[kernel]\nname = \"\"\n", "pando.toml:2:", "kernel.name");
	refused("machine = 5\n", "pando.toml:1:", "machine must be a table");
	refused("[[machine]]\nvcpu_count = 1\n",
		"pando.toml:1:", "machine must be a table");
}

static void
values_out_of_range_say_what_is_allowed(void **state)
{
	(void)state;
	refused("[machine]\nmem_size_mib = 0\n",
		"pando.toml:2:", "16 to 1048576 MiB, not 0");
	refused("[machine]\nmem_size_mib = -512\n", "pando.toml:2:", "not -512");
	refused("[machine]\nmem_size_mib = 9223372036854775807\n",
		"pando.toml:2:", "mem_size_mib");
	refused("[machine]\nvcpu_count = 9\n", "pando.toml:2:", "1 to 8, not 9");
	refused("[machine]\nfs_size_vm_mib = 0\n", "pando.toml:2:", "fs_size_vm_mib");
}

static void
broken_toml_is_a_sentence_with_its_place(void **state)
{
	(void)state;
	refused("[machine\nvcpu_count = 1\n", "pando.toml:1:", "");
	refused("[machine]\nvcpu_count = \n", "pando.toml:2:", "");
}

static void
a_table_keeps_what_it_does_not_name(void **state)
{
	struct config c = {.vcpus = 3};
	struct toml *root = NULL;
	static const char text[] = "[machine]\nmem_size_mib = 64\n[child]\nx = 1\n";

	(void)state;
	assert_int_equal(toml_parse(text, strlen(text), &root, NULL), 0);
	assert_int_equal(
		config_read_table("f", "machine", toml_get(root, "machine"), &c, NULL),
		0);
	assert_int_equal(c.mem_mib, 64);
	assert_int_equal(c.vcpus, 3);
	assert_int_equal(
		config_read_table("f", "child", toml_get(root, "child"), &c, NULL),
		-ENOENT);
	toml_free(root);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			no_file_says_nothing, make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(
			all_keys_are_read, make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(
			vers_toml_is_read_when_there_is_no_pando_toml, make_folder,
			remove_folder),
		cmocka_unit_test_setup_teardown(
			a_named_file_must_exist, make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(mistakes_name_file_line_column_and_key,
			make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(values_out_of_range_say_what_is_allowed,
			make_folder, remove_folder),
		cmocka_unit_test_setup_teardown(broken_toml_is_a_sentence_with_its_place,
			make_folder, remove_folder),
		cmocka_unit_test(a_table_keeps_what_it_does_not_name),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
