/* What `pando-vmm --probe` says, as doctor and pandod read it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "host/vmmproc/kvm_probe.h"

static int
read_line(const char *line, struct kvm_probe *ret)
{
	struct err e;

	return kvm_probe_read(line, strlen(line), ret, &e);
}

static void
the_probes_line_is_read(void **state)
{
	struct kvm_probe p;

	(void)state;
	assert_int_equal(read_line("{\"kvm\":\"linux\",\"detail\":\"all well\","
				   "\"dirty_pages\":\"soft-dirty\",\"create_vm_us\":12.5}",
				 &p),
		0);
	assert_int_equal(p.kind, KVM_PROBE_LINUX);
	assert_string_equal(p.detail, "all well");
	assert_string_equal(p.dirty_pages, "soft-dirty");
	assert_true(p.create_vm_us > 12 && p.create_vm_us < 13);
}

static void
an_older_probe_does_not_say_how_pages_are_told(void **state)
{
	struct kvm_probe p;

	(void)state;
	assert_int_equal(read_line("{\"kvm\":\"none\",\"detail\":\"no\"}", &p), 0);
	assert_int_equal(p.kind, KVM_PROBE_NONE);
	assert_string_equal(p.dirty_pages, "");
	assert_int_equal(
		read_line("{\"kvm\":\"small\",\"dirty_pages\":\"by magic\"}", &p), 0);
	assert_string_equal(p.dirty_pages, "");
	assert_int_equal(
		read_line("{\"kvm\":\"small\",\"dirty_pages\":\"userfaultfd and more\"}", &p), 0);
	assert_string_equal(p.dirty_pages, "");
}

static void
what_is_no_answer_is_an_error(void **state)
{
	struct kvm_probe p;

	(void)state;
	assert_int_equal(read_line("", &p), -EBADMSG);
	assert_int_equal(read_line("{}", &p), -EBADMSG);
	assert_int_equal(read_line("{\"kvm\":\"large\"}", &p), -EBADMSG);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_probes_line_is_read),
		cmocka_unit_test(an_older_probe_does_not_say_how_pages_are_told),
		cmocka_unit_test(what_is_no_answer_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
