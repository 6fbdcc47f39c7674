/* What vCPUs say they are: of tables that no host of ours has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "common/wire/cpu_features.h"
#include "vmm/cpuid.h"

#define ALL 0xffffffffu
#define EVERY_NAME 16384

static const struct kvm_caps caps = {.tsc_deadline_timer = true};

static struct kvm_cpuid_entry2 *
find(struct kvm_cpuid_table *t, uint32_t leaf, uint32_t index)
{
	for (uint32_t i = 0; i < t->n; i++)
		if (t->entries[i].function == leaf && t->entries[i].index == index)
			return &t->entries[i];
	return NULL;
}

static void
add(struct kvm_cpuid_table *t, uint32_t leaf, uint32_t index, uint32_t value)
{
	assert_true(t->n < KVM_CPUID_MAX);
	t->entries[t->n++] = (struct kvm_cpuid_entry2){.function = leaf,
		.index = index,
		.eax = value,
		.ebx = value,
		.ecx = value,
		.edx = value};
}

/* A KVM that can do all there is, and all there may be. */
static void
fill(struct kvm_cpuid_table *t, const char vendor[13])
{
	static const uint32_t several[] = {0x4, 0x7, 0xb, 0x14, 0x1d, 0x1f, 0x24};

	memset(t, 0, sizeof(*t));
	for (uint32_t leaf = 0; leaf <= 0x2c; leaf++)
		if (leaf != 0xd)
			add(t, leaf, 0, ALL);
	for (size_t i = 0; i < sizeof(several) / sizeof(*several); i++)
		for (uint32_t index = 1; index <= 3; index++)
			add(t, several[i], index, ALL);
	/* components of 64 bytes each, one behind the other */
	for (uint32_t index = 0; index < 20; index++) {
		add(t, 0xd, index, ALL);
		if (index >= 2) {
			find(t, 0xd, index)->eax = 64;
			find(t, 0xd, index)->ebx = 576 + 64 * index;
		}
	}
	add(t, 0x40000000, 0, ALL);
	add(t, 0x40000001, 0, ALL);
	add(t, 0x40000010, 0, ALL);
	for (uint32_t leaf = 0x80000000; leaf <= 0x80000026; leaf++)
		add(t, leaf, 0, ALL);
	memcpy(&find(t, 0, 0)->ebx, vendor, 4);
	memcpy(&find(t, 0, 0)->edx, vendor + 4, 4);
	memcpy(&find(t, 0, 0)->ecx, vendor + 8, 4);
}

static void
what_kvm_may_learn_tomorrow_is_not_offered(void **state)
{
	static struct kvm_cpuid_table t;
	static const struct {
		uint32_t leaf, index, eax, ebx, ecx, edx;
	} not_ours[] = {
		{0x1, 0, 0, 0, 1u << 2 | 1u << 3 | 1u << 5 | 1u << 15,
			1u << 7 | 1u << 14},
		/* SGX, MPX, processor trace; CET's shadow stacks, key locker, supervisor
		 * keys, bus lock detection; CET's branch tracking, user interrupts, LBRs */
		{0x7, 0, 0, 1u << 2 | 1u << 14 | 1u << 25,
			1u << 7 | 1u << 23 | 1u << 24 | 1u << 31,
			1u << 20 | 1u << 5 | 1u << 19},
		/* FRED; CET's supervisor shadow stacks, APX */
		{0x7, 1, 1u << 17, ALL, ALL, 1u << 18 | 1u << 21},
		{0xd, 0, 1u << 3 | 1u << 4 | 1u << 8 | 1u << 11 | 1u << 12 | 1u << 19, 0,
			0, ALL},
		{0xd, 1, 1u << 4, 0, ALL, ALL},
		{0x40000001, 0, 1u << 4 | 1u << 10 | 1u << 14, 0, 0, 0},
		{0x80000001, 0, 0, 0, 1u << 2 | 1u << 10 | 1u << 23 | 1u << 24, 0},
	};
	static const uint32_t gone[] = {0x5, 0xa, 0x12, 0x14, 0x19, 0x1a, 0x1b, 0x23,
		0x25, 0x2c, 0x40000010, 0x8000000a, 0x8000001b, 0x8000001f, 0x80000022,
		0x80000026};

	(void)state;
	fill(&t, "GenuineIntel");
	cpuid_adjust(&t, 0, 1, &caps);
	for (size_t i = 0; i < sizeof(not_ours) / sizeof(*not_ours); i++) {
		struct kvm_cpuid_entry2 *e =
			find(&t, not_ours[i].leaf, not_ours[i].index);

		assert_non_null(e);
		if ((e->eax & not_ours[i].eax) || (e->ebx & not_ours[i].ebx) ||
			(e->ecx & not_ours[i].ecx) || (e->edx & not_ours[i].edx))
			fail_msg("leaf 0x%x.%u offers 0x%x 0x%x 0x%x 0x%x", e->function,
				e->index, e->eax & not_ours[i].eax,
				e->ebx & not_ours[i].ebx, e->ecx & not_ours[i].ecx,
				e->edx & not_ours[i].edx);
	}
	for (size_t i = 0; i < sizeof(gone) / sizeof(*gone); i++)
		if (find(&t, gone[i], 0))
			fail_msg("leaf 0x%x is offered", gone[i]);
	/* nor are leaves promised that are not there */
	assert_int_equal(find(&t, 0, 0)->eax, 0x24);
	assert_int_equal(find(&t, 7, 0)->eax, 2);
	assert_null(find(&t, 7, 3));
	assert_int_equal(find(&t, 0x80000000, 0)->eax, 0x80000021);
	/* XSAVE's area ends behind the last component that is left */
	assert_null(find(&t, 0xd, 11));
	assert_non_null(find(&t, 0xd, 9));
	assert_int_equal(find(&t, 0xd, 0)->ecx, 576 + 64 * 9 + 64);
}

/* As KVM of Linux 5.17 to 6.3 offers it to a process that did not ask for tiles. */
static void
half_of_amx_is_not_offered(void **state)
{
	static struct kvm_cpuid_table t;

	(void)state;
	fill(&t, "GenuineIntel");
	find(&t, 0xd, 0)->eax = 0x202e7;
	cpuid_adjust(&t, 0, 1, &caps);
	assert_int_equal(find(&t, 0xd, 0)->eax, 0x2e7);
	assert_null(find(&t, 0xd, 17));
	assert_null(find(&t, 0xd, 18));
	assert_null(find(&t, 0x1d, 0));
	assert_null(find(&t, 0x1e, 0));
	/* bf16, tile, int8; fp16; complex; XFD */
	assert_int_equal(find(&t, 7, 0)->edx & (1u << 22 | 1u << 24 | 1u << 25), 0);
	assert_int_equal(find(&t, 7, 1)->eax & 1u << 21, 0);
	assert_int_equal(find(&t, 7, 1)->edx & 1u << 8, 0);
	assert_int_equal(find(&t, 0xd, 1)->eax & 1u << 4, 0);
	/* AVX-512, its neighbour among the bits, is */
	assert_true(find(&t, 7, 0)->edx & 1u << 23);
	assert_true(find(&t, 7, 0)->ebx & 1u << 16);
}

static void
every_feature_that_is_offered_has_a_name(void **state)
{
	static struct kvm_cpuid_table t, none;
	static char names[EVERY_NAME];
	char *unnamed;

	(void)state;
	for (int amd = 0; amd < 2; amd++) {
		fill(&t, amd ? "AuthenticAMD" : "GenuineIntel");
		cpuid_adjust(&t, 0, 2, &caps);
		assert_true(cpu_features_missing(&t, &none, names, sizeof(names)) > 150);
		unnamed = strstr(names, "CPUID 0x");
		if (unnamed)
			fail_msg("%.40s", unnamed);
	}
}

static void
both_leaves_of_topology_say_the_same(void **state)
{
	static struct kvm_cpuid_table t;

	(void)state;
	/* the host's leaves have all levels, the first only, or are not there */
	for (uint32_t levels = 0; levels <= 4; levels++) {
		memset(&t, 0, sizeof(t));
		add(&t, 0, 0, 0x1f);
		for (uint32_t index = 0; index < levels; index++) {
			add(&t, 0xb, index, index * 7);
			add(&t, 0x1f, index, ALL);
		}
		cpuid_adjust(&t, 2, 4, &caps);
		for (uint32_t index = 0; index < 4; index++) {
			struct kvm_cpuid_entry2 *b = find(&t, 0xb, index),
						*v2 = find(&t, 0x1f, index);

			if (levels == 0 || index > 1) {
				assert_true(!b && !v2);
				continue;
			}
			assert_true(b && v2);
			assert_true(b->eax == v2->eax && b->ebx == v2->ebx &&
				    b->ecx == v2->ecx && b->edx == v2->edx);
			assert_int_equal(b->edx, 2); /* the vCPU's APIC id */
			assert_int_equal(b->ebx, index ? 4 : 1);
			assert_int_equal(b->eax, index ? 2 : 0);
			assert_int_equal(b->ecx >> 8, index + 1);
		}
	}
}

static void
fields_of_amd_are_not_set_on_intel(void **state)
{
	static struct kvm_cpuid_table t;

	(void)state;
	fill(&t, "GenuineIntel");
	cpuid_adjust(&t, 1, 4, &caps);
	assert_false(find(&t, 0x80000001, 0)->ecx & 2);
	assert_int_equal(find(&t, 0x80000008, 0)->ecx, 0);
	assert_true(find(&t, 1, 0)->edx & 1u << 28);
	fill(&t, "AuthenticAMD");
	cpuid_adjust(&t, 1, 4, &caps);
	assert_true(find(&t, 0x80000001, 0)->ecx & 2);
	assert_int_equal(find(&t, 0x80000008, 0)->ecx & 0xf0ff, 2u << 12 | 3);
	fill(&t, "HygonGenuine");
	cpuid_adjust(&t, 1, 1, &caps);
	assert_false(find(&t, 0x80000001, 0)->ecx & 2);
	assert_int_equal(find(&t, 0x80000008, 0)->ecx & 0xf0ff, 0);
}

static void
what_is_offered_and_what_once_was_is_accepted(void **state)
{
	static struct kvm_cpuid_table supported, offered;
	char names[256];

	(void)state;
	for (unsigned n = 1; n <= 4; n++) {
		fill(&supported, "GenuineIntel");
		/* a KVM that says less of what the VMM sets itself */
		find(&supported, 1, 0)->edx &= ~(1u << 28);
		find(&supported, 1, 0)->ecx &= ~(1u << 24 | 1u << 31);
		find(&supported, 0x80000001, 0)->ecx &= ~2u;
		offered = supported;
		cpuid_adjust(&offered, 0, n, &caps);
		cpuid_accept(&supported, n, &caps);
		assert_int_equal(
			cpu_features_missing(&offered, &supported, names, sizeof(names)),
			0);
		/* as older VMMs set and offered them */
		if (n > 1)
			find(&offered, 0x80000001, 0)->ecx |= 2;
		find(&offered, 7, 0)->ecx |= 1u << 7;
		find(&offered, 1, 0)->ecx |= 1u << 2;
		if (cpu_features_missing(&offered, &supported, names, sizeof(names)))
			fail_msg("%s", names);
	}
}

/* KVM tells of the core that it was asked on. */
static void
tables_of_both_kinds_of_a_hybrid_cpus_cores_are_the_same(void **state)
{
	static const uint32_t caches[][2] = {
		{0x2, 0}, {0x4, 0}, {0x4, 2}, {0x80000006, 0}, {0x8000001d, 0}};
	static struct kvm_cpuid_table p, e;

	(void)state;
	fill(&p, "GenuineIntel");
	cpuid_adjust(&p, 1, 4, &caps);
	e = p;
	assert_true(cpuid_same(&p, &e));
	for (size_t i = 0; i < sizeof(caches) / sizeof(*caches); i++)
		find(&e, caches[i][0], caches[i][1])->ecx ^= 0x3ff;
	find(&e, 0x16, 0)->eax ^= 0x700;
	assert_true(cpuid_same(&p, &e));
	/* one level of cache less; it is in the middle of the table */
	for (uint32_t i = 0; i < e.n; i++)
		if (e.entries[i].function == 0x4 && e.entries[i].index == 3) {
			memmove(&e.entries[i], &e.entries[i + 1],
				(--e.n - i) * sizeof(e.entries[0]));
			break;
		}
	assert_int_equal(e.n, p.n - 1);
	assert_true(cpuid_same(&p, &e));
	assert_true(cpuid_same(&e, &p));
}

static void
tables_that_differ_in_what_no_core_has_of_its_own_are_not_the_same(void **state)
{
	static const uint32_t leaves[][2] = {{0x1, 0}, {0x7, 0}, {0xb, 1}, {0xd, 0},
		{0xd, 1}, {0x80000001, 0}, {0x80000004, 0}, {0x80000008, 0}};
	static struct kvm_cpuid_table a, b;

	(void)state;
	fill(&a, "GenuineIntel");
	cpuid_adjust(&a, 0, 2, &caps);
	for (size_t i = 0; i < sizeof(leaves) / sizeof(*leaves); i++) {
		b = a;
		find(&b, leaves[i][0], leaves[i][1])->ebx ^= 1u << 3;
		if (cpuid_same(&a, &b))
			fail_msg("leaf 0x%x.%u", leaves[i][0], leaves[i][1]);
	}
	/* nor where one goes on */
	b = a;
	b.n--;
	assert_false(cpuid_same(&a, &b));
	assert_false(cpuid_same(&b, &a));
	/* nor are two vCPUs of a VM */
	fill(&b, "GenuineIntel");
	cpuid_adjust(&b, 1, 2, &caps);
	assert_false(cpuid_same(&a, &b));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_kvm_may_learn_tomorrow_is_not_offered),
		cmocka_unit_test(half_of_amx_is_not_offered),
		cmocka_unit_test(every_feature_that_is_offered_has_a_name),
		cmocka_unit_test(both_leaves_of_topology_say_the_same),
		cmocka_unit_test(fields_of_amd_are_not_set_on_intel),
		cmocka_unit_test(what_is_offered_and_what_once_was_is_accepted),
		cmocka_unit_test(
			tables_of_both_kinds_of_a_hybrid_cpus_cores_are_the_same),
		cmocka_unit_test(
			tables_that_differ_in_what_no_core_has_of_its_own_are_not_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
