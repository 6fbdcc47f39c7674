/* State blobs and CPU features by name, without KVM. Hostile ones: also fuzz_snapshot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/cpu_features.h"
#include "tests/unit/snapshot_vm.h"
#include "vmm/snapshot.h"

static struct vm a, b;
static uint8_t blob[1u << 18], other[1u << 18];

static int
load(struct vm *vm, const uint8_t *p, size_t len, struct err *e)
{
	struct snapshot s;
	bool changed;
	int r = snapshot_open(p, len, &s, e);

	if (r == 0)
		r = snapshot_load_cpuid(&s, vm, &changed, e);
	return r == 0 ? snapshot_load(&s, vm, e) : r;
}

static void
fix(uint8_t *p, size_t len)
{
	struct blob_header h;

	memcpy(&h, p, sizeof(h));
	h.bytes = len;
	h.check = blob_check(p + sizeof(h), len - sizeof(h));
	memcpy(p, &h, sizeof(h));
}

static void
what_was_saved_is_what_is_loaded(void **state)
{
	struct err e = {0, ""};
	size_t len, again;

	(void)state;
	for (unsigned n = 1; n <= VMM_VCPUS_MAX; n++) {
		snapshot_vm_init(&a, n);
		snapshot_vm_fill(&a);
		len = snapshot_save(&a, blob, sizeof(blob));
		assert_true(len > 0 && len < VMM_STATE_BLOB_MAX);
		if (getenv("SNAPSHOT_SEED") && n <= 2) { /* makes the fuzzer's corpus */
			char path[256];

			snprintf(path, sizeof(path), "%s/%u-vcpus",
				getenv("SNAPSHOT_SEED"), n);
			assert_int_equal(
				io_write_file_atomic(path, blob, len, 0644, NULL), 0);
		}
		snapshot_vm_init(&b, n);
		if (load(&b, blob, len, &e) < 0)
			fail_msg("%s", e.msg);
		again = snapshot_save(&b, other, sizeof(other));
		assert_int_equal(again, len);
		assert_memory_equal(blob, other, len);
		for (unsigned i = 0; i < n; i++)
			assert_memory_equal(&a.vcpus[i].state.regs,
				&b.vcpus[i].state.regs, sizeof(struct kvm_regs));
		assert_int_equal(b.vsock.reset_state, VSOCK_RESET_DUE);
		assert_true(b.blk.dev.queues[0].event_idx);
		assert_int_equal(b.vsock.dev.queues[2].next_used, 5);
		snapshot_vm_done(&a);
		snapshot_vm_done(&b);
	}
}

static void
a_blob_that_does_not_fit_is_not_written(void **state)
{
	size_t len;

	(void)state;
	snapshot_vm_init(&a, 1);
	snapshot_vm_fill(&a);
	len = snapshot_save(&a, blob, sizeof(blob));
	assert_int_equal(snapshot_save(&a, other, len - 1), 0);
	assert_int_equal(snapshot_save(&a, other, 0), 0);
	assert_int_equal(snapshot_save(&a, other, len), len);
	snapshot_vm_done(&a);
}

static void
every_cut_is_refused(void **state)
{
	struct err e;
	size_t len;

	(void)state;
	snapshot_vm_init(&a, 1);
	snapshot_vm_fill(&a);
	len = snapshot_save(&a, blob, sizeof(blob));
	snapshot_vm_init(&b, 1);
	for (size_t n = 0; n < len; n++) {
		memcpy(other, blob, n);
		assert_true(load(&b, other, n, &e) < 0);
		if (n >= sizeof(struct blob_header))
			fix(other, n);
		e.msg[0] = 0;
		assert_true(load(&b, other, n, &e) < 0);
		assert_true(e.msg[0]);
	}
	memcpy(other, blob, len);
	memset(other + len, 0, 8);
	fix(other, len + 8);
	assert_true(load(&b, other, len + 8, &e) < 0);
	assert_non_null(strstr(e.msg, "behind its end"));
	snapshot_vm_done(&a);
	snapshot_vm_done(&b);
}

static void
every_flipped_bit_is_seen(void **state)
{
	struct err e;
	size_t len;

	(void)state;
	snapshot_vm_init(&a, 1);
	snapshot_vm_fill(&a);
	len = snapshot_save(&a, blob, sizeof(blob));
	for (size_t i = 0; i < len; i++) {
		struct snapshot s;

		blob[i] ^= (uint8_t)(1u << (i & 7));
		/* the header's padding means nothing */
		if (i < 12 || i >= 16)
			assert_true(snapshot_open(blob, len, &s, &e) < 0);
		blob[i] ^= (uint8_t)(1u << (i & 7));
	}
	snapshot_vm_done(&a);
}

static void
an_msr_this_host_does_not_keep_is_refused_unless_zero(void **state)
{
	static const uint32_t left_out[] = {0xc0010004, 0x40000002, 0x40000020};
	struct err e = {0, ""};
	size_t len;

	(void)state;
	snapshot_vm_init(&a, 1);
	snapshot_vm_fill(&a);
	len = snapshot_save(&a, blob, sizeof(blob));
	snapshot_vm_init(&b, 1);
	b.plan.msrs.indices[2] = 0x9999;
	assert_int_equal(load(&b, blob, len, &e), -ENOTSUP);
	assert_non_null(strstr(e.msg, "MSR 0x176"));
	/* but what guests have no more, whatever it reads as: a performance counter, and
	 * Hyper-V's number of the vCPU and its clock */
	for (size_t i = 0; i < sizeof(left_out) / sizeof(*left_out); i++) {
		a.vcpus[0].state.msrs.entries[2].index = left_out[i];
		len = snapshot_save(&a, blob, sizeof(blob));
		if (load(&b, blob, len, &e) < 0)
			fail_msg("%s", e.msg);
		assert_int_equal(b.vcpus[0].state.msrs.n, a.vcpus[0].state.msrs.n - 1);
	}
	a.vcpus[0].state.msrs.entries[2].index = 0x176;
	a.vcpus[0].state.msrs.entries[2].data = 0;
	len = snapshot_save(&a, blob, sizeof(blob));
	assert_int_equal(load(&b, blob, len, &e), 0);
	assert_int_equal(b.vcpus[0].state.msrs.n, a.vcpus[0].state.msrs.n - 1);
	snapshot_vm_done(&a);
	snapshot_vm_done(&b);
}

static void
features_are_missed_by_name(void **state)
{
	static struct kvm_cpuid_table wanted, there;
	char names[64];

	(void)state;
	wanted.n = there.n = 2;
	wanted.entries[0] =
		(struct kvm_cpuid_entry2){.function = 7, .ebx = 1u << 5 | 1u << 16};
	wanted.entries[1] = (struct kvm_cpuid_entry2){
		.function = 0x80000008, .eax = 0x3030, .ebx = 1u << 5};
	there.entries[0] = (struct kvm_cpuid_entry2){.function = 7, .ebx = 1u << 5};
	there.entries[1] = (struct kvm_cpuid_entry2){.function = 0x80000008};
	/* widths of addresses are no features; bits without a name are named by place */
	assert_int_equal(cpu_features_missing(&wanted, &there, names, sizeof(names)), 2);
	assert_string_equal(names, "avx512f, CPUID 0x80000008.0 EBX bit 5");
	assert_int_equal(cpu_features_missing(&there, &wanted, names, sizeof(names)), 0);
	assert_string_equal(names, "");
	/* a leaf that is not there at all; more than fit */
	there.n = 0;
	wanted.entries[0].ebx = ~0u;
	assert_true(cpu_features_missing(&wanted, &there, names, sizeof(names)) > 30);
	assert_true(strlen(names) < sizeof(names));
	assert_non_null(strstr(names, ", …"));
	assert_true(cpu_features_missing(&wanted, &there, NULL, 0) > 30);
}

/* A commit of an older VMM, which offered what KVM had: KVM still has it. */
static void
features_that_are_no_longer_offered_are_no_reason_to_refuse_a_commit(void **state)
{
	struct err e = {0, ""};
	size_t len;

	(void)state;
	snapshot_vm_init(&a, 1);
	snapshot_vm_fill(&a);
	len = snapshot_save(&a, blob, sizeof(blob));
	snapshot_vm_init(&b, 1);
	b.vcpus[0].cpuid.entries[1].ecx &= ~(1u << 7); /* shstk */
	if (load(&b, blob, len, &e) < 0)
		fail_msg("%s", e.msg);
	assert_memory_equal(
		&b.vcpus[0].cpuid, &a.vcpus[0].cpuid, sizeof(b.vcpus[0].cpuid));
	b.accepted.entries[1].ecx &= ~(1u << 7);
	b.vcpus[0].cpuid.entries[1].ecx &= ~(1u << 7);
	assert_int_equal(load(&b, blob, len, &e), -ENOTSUP);
	assert_non_null(strstr(e.msg, "shstk"));
	snapshot_vm_done(&a);
	snapshot_vm_done(&b);
}

static bool
needs_other_tables(size_t len)
{
	struct err e = {0, ""};
	struct snapshot s;
	bool changed = false;

	if (snapshot_open(blob, len, &s, &e) < 0 ||
		snapshot_load_cpuid(&s, &b, &changed, &e) < 0)
		fail_msg("%s", e.msg);
	return changed;
}

/* Else every second restore on such a host would make its vCPUs twice. */
static void
a_commit_from_the_other_kind_of_a_hybrid_cpus_cores_needs_no_other_vcpus(void **state)
{
	const struct kvm_cpuid_entry2 cache = {.function = 0x80000006, .ecx = 0x08007040};
	struct kvm_cpuid_table *t;
	size_t len;

	(void)state;
	snapshot_vm_init(&a, 2);
	snapshot_vm_fill(&a);
	snapshot_vm_init(&b, 2);
	for (unsigned i = 0; i < 2; i++) {
		t = &a.vcpus[i].cpuid;
		t->entries[t->n++] = cache;
		t = &b.vcpus[i].cpuid;
		t->entries[t->n] = cache;
		t->entries[t->n++].ecx = 0x05007040;
	}
	len = snapshot_save(&a, blob, sizeof(blob));
	assert_false(needs_other_tables(len));
	/* what KVM was given, so that the next commit says what is true */
	t = &b.vcpus[1].cpuid;
	assert_int_equal(t->entries[t->n - 1].ecx, 0x05007040);
	/* another model does */
	b.vcpus[1].cpuid.entries[0].eax = 0x000b0671;
	assert_true(needs_other_tables(len));
	assert_int_equal(t->entries[t->n - 1].ecx, cache.ecx);
	snapshot_vm_done(&a);
	snapshot_vm_done(&b);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_saved_is_what_is_loaded),
		cmocka_unit_test(a_blob_that_does_not_fit_is_not_written),
		cmocka_unit_test(every_cut_is_refused),
		cmocka_unit_test(every_flipped_bit_is_seen),
		cmocka_unit_test(an_msr_this_host_does_not_keep_is_refused_unless_zero),
		cmocka_unit_test(features_are_missed_by_name),
		cmocka_unit_test(
			features_that_are_no_longer_offered_are_no_reason_to_refuse_a_commit),
		cmocka_unit_test(
			a_commit_from_the_other_kind_of_a_hybrid_cpus_cores_needs_no_other_vcpus),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
