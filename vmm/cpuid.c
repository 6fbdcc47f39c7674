/*
 * Topology: one package, one core a vCPU, no hyper-threads; APIC ids count from 0.
 *
 * What is offered is a list of what may be (offered[] below), not of what may not: a
 * feature that KVM learns tomorrow can have state that this VMM does not save. It is how
 * CET came (the shadow stack's pointer is in none of the lists that state.c reads), and a
 * branch of a guest that used it would have crashed.
 *
 * Not on it, though KVM may have it: nested virtualization (its state is not saved), the
 * performance counters (their registers would be half of all MSRs saved at a fork),
 * machine checks (a VM has none), processor trace, SGX, CET, memory protection by
 * supervisor keys, user interrupts, key locker, FRED, MPX, monitor/mwait, bus lock
 * detection (it is turned on in DEBUGCTL, which KVM lists only lately), and KVM's
 * asynchronous page faults (a fork could come between "page not present" and "page
 * ready").
 *
 * Nor AMX: the kernel grants its tiles only to who asks (ARCH_REQ_XCOMP_GUEST_PERM). To
 * who does not, KVM before Linux 6.4 offers one of AMX's two components of XCR0 (bit 17),
 * and any KVM offers the instructions. A Linux guest sets in XCR0 all that it finds; one
 * of the two alone is a general protection fault, before there is a console.
 */
#include "vmm/cpuid.h"

#include <string.h>

#define LEAF1_ECX_TSC_DEADLINE (1u << 24)
#define LEAF1_ECX_HYPERVISOR (1u << 31)
#define LEAF1_EDX_HTT (1u << 28)
#define EXT1_ECX_CMP_LEGACY (1u << 1)
#define XSAVE_LEGACY_BYTES 576u /* legacy area and header */

#define ALL 0xffffffffu
#define ANY_INDEX 0xffffffffu
#define BIT(n) (1u << (n))
#define BITS(from, to) (ALL >> (31 - ((to) - (from))) << (from))

/* x87, SSE, AVX, the three of AVX-512, PKRU: all in XSAVE's area. */
#define XCR0_OFFERED (BITS(0, 2) | BITS(5, 7) | BIT(9))

/*
 * Leaf and index, and the bits of EAX, EBX, ECX, EDX that a guest may see. Names of the
 * bits: cpu_features.c. Besides features without state there are those whose state is in
 * general registers, CR4, EFER, XSAVE's area for XCR0_OFFERED, or MSRs that KVM lists
 * (TSC_ADJUST, SPEC_CTRL, UMWAIT_CONTROL, TSC_AUX, OSVW, kvm-clock, steal time, PV
 * EOI, poll control and the like).
 */
static const struct offer {
	uint32_t leaf, index, eax, ebx, ecx, edx;
} offered[] = {
	{0x0, 0, ALL, ALL, ALL, ALL},
	{0x1, 0, ALL, ALL, BITS(0, 1) | BIT(9) | BITS(12, 13) | BIT(17) | BITS(19, 31),
		BITS(0, 6) | BITS(8, 9) | BITS(11, 13) | BITS(15, 17) | BIT(19) |
			BITS(23, 27)},
	{0x2, ANY_INDEX, ALL, ALL, ALL, ALL}, /* caches */
	{0x4, ANY_INDEX, ALL, ALL, ALL, ALL},
	{0x6, 0, BIT(2), 0, 0, 0}, /* the APIC's timer never stops */
	{0x7, 0, ALL,
		BIT(0) | BIT(1) | BITS(3, 11) | BIT(13) | BITS(16, 21) | BITS(23, 24) |
			BITS(26, 31),
		BITS(1, 3) | BIT(5) | BIT(6) | BITS(8, 12) | BIT(14) | BIT(16) | BIT(22) |
			BIT(25) | BITS(27, 28),
		BITS(2, 4) | BIT(8) | BIT(10) | BIT(14) | BIT(16) | BIT(23) |
			BITS(26, 29) | BIT(31)},
	{0x7, 1, BITS(0, 2) | BIT(4) | BIT(5) | BIT(7) | BITS(10, 12) | BIT(23) | BIT(26),
		0, 0, BIT(4) | BIT(5) | BIT(10) | BIT(14) | BIT(19)},
	{0x7, 2, 0, 0, 0, BITS(0, 5)},
	{0xb, 0, ALL, ALL, ALL, ALL}, /* topology */
	{0xd, 0, XCR0_OFFERED, ALL, ALL, 0},
	{0xd, 1, BITS(0, 3), ALL, 0, 0}, /* no state of XSS, no XFD */
	{0x15, 0, ALL, ALL, ALL, ALL},	 /* clocks */
	{0x16, 0, ALL, ALL, ALL, ALL},
	{0x1f, 0, ALL, ALL, ALL, ALL},
	{0x24, 0, ALL, ALL, ALL, ALL}, /* version of AVX10 */
	{0x40000000, 0, ALL, ALL, ALL, ALL},
	{0x40000001, 0,
		BITS(0, 1) | BIT(3) | BITS(5, 7) | BIT(9) | BITS(11, 13) | BIT(15) |
			BIT(24),
		0, 0, ALL},
	{0x80000000, 0, ALL, ALL, ALL, ALL},
	{0x80000001, 0, ALL, ALL, BIT(0) | BITS(4, 9) | BIT(11) | BIT(16) | BITS(21, 22),
		BITS(0, 6) | BITS(8, 9) | BITS(11, 13) | BITS(15, 17) | BIT(20) |
			BITS(22, 27) | BITS(29, 31)},
	{0x80000002, 0, ALL, ALL, ALL, ALL}, /* name */
	{0x80000003, 0, ALL, ALL, ALL, ALL},
	{0x80000004, 0, ALL, ALL, ALL, ALL},
	{0x80000005, 0, ALL, ALL, ALL, ALL}, /* caches */
	{0x80000006, 0, ALL, ALL, ALL, ALL},
	{0x80000007, 0, 0, 0, 0, BIT(8)},
	{0x80000008, 0, ALL,
		BIT(0) | BIT(2) | BIT(9) | BIT(12) | BITS(14, 19) | BITS(24, 26) |
			BITS(28, 30),
		ALL, 0},
	{0x80000019, 0, ALL, ALL, ALL, ALL}, /* caches */
	{0x8000001a, 0, BITS(0, 2), 0, 0, 0},
	{0x8000001d, ANY_INDEX, ALL, ALL, ALL, ALL},
	{0x8000001e, 0, ALL, ALL, ALL, ALL},
	{0x80000021, 0,
		BITS(0, 2) | BIT(5) | BIT(6) | BITS(8, 9) | BIT(17) | BIT(20) |
			BITS(27, 31),
		0, BITS(1, 2), 0},
};

/* The last leaves above, by the leaf that tells a guest how far they go. */
static const struct {
	uint32_t leaf, last;
} limits[] = {
	{0x0, 0x24},
	{0x7, 0x2},
	{0x24, 0x0},
	{0x40000000, 0x40000001},
	{0x80000000, 0x80000021},
};

static unsigned
bits_for(unsigned n)
{
	unsigned bits = 0;

	while ((1u << bits) < n)
		bits++;
	return bits;
}

/* Leaves 0xb and 0x1f, of which Linux prefers the second: level 0 threads (one), level 1
 * cores. */
static void
topology(struct kvm_cpuid_entry2 *e, unsigned id, unsigned n_vcpus)
{
	e->eax = e->ebx = 0;
	e->ecx = e->index;
	e->edx = id;
	if (e->index == 0) {
		e->ebx = 1;
		e->ecx |= 1u << 8;
	} else if (e->index == 1) {
		e->eax = bits_for(n_vcpus);
		e->ebx = n_vcpus;
		e->ecx |= 2u << 8;
	}
}

/* Leaf 4 and 0x8000001d: caches up to level 2 are a core's own, the others all share. */
static void
cache(struct kvm_cpuid_entry2 *e, unsigned n_vcpus)
{
	unsigned level = e->eax >> 5 & 7, sharing = level >= 3 ? n_vcpus - 1 : 0;

	if ((e->eax & 0x1f) == 0)
		return;
	e->eax = (e->eax & 0x3fff) | sharing << 14;
	if (e->function == 4)
		e->eax |= ((1u << bits_for(n_vcpus)) - 1) << 26;
}

static void
adjust_entry(struct kvm_cpuid_entry2 *e, unsigned id, unsigned n_vcpus, bool amd,
	const struct kvm_caps *caps)
{
	switch (e->function) {
	case 0x1:
		e->ebx = (e->ebx & 0x0000ffff) | n_vcpus << 16 | id << 24;
		e->ecx |= LEAF1_ECX_HYPERVISOR;
		if (caps->tsc_deadline_timer)
			e->ecx |= LEAF1_ECX_TSC_DEADLINE;
		if (n_vcpus > 1)
			e->edx |= LEAF1_EDX_HTT;
		break;
	case 0x4:
	case 0x8000001d:
		cache(e, n_vcpus);
		break;
	case 0xb:
	case 0x1f:
		topology(e, id, n_vcpus);
		break;
	case 0x80000001:
		if (amd && n_vcpus > 1)
			e->ecx |= EXT1_ECX_CMP_LEGACY;
		break;
	case 0x80000008: /* Intel's is reserved */
		e->ecx = amd ? (e->ecx & ~0xf0ffu) | (n_vcpus - 1) |
					 bits_for(n_vcpus) << 12
			     : 0;
		break;
	case 0x8000001e:
		e->eax = id;
		e->ebx = id; /* core id, one thread a core */
		e->ecx = 0;
		break;
	default:
		break;
	}
}

static bool
is_amd(const struct kvm_cpuid_table *t)
{
	for (unsigned i = 0; i < t->n; i++) {
		const struct kvm_cpuid_entry2 *e = &t->entries[i];
		char vendor[12];

		if (e->function != 0)
			continue;
		memcpy(vendor, &e->ebx, 4);
		memcpy(vendor + 4, &e->edx, 4);
		memcpy(vendor + 8, &e->ecx, 4);
		return memcmp(vendor, "AuthenticAMD", 12) == 0 ||
		       memcmp(vendor, "HygonGenuine", 12) == 0;
	}
	return false;
}

/* Takes away what is not offered; false: all of it. */
static bool
restrict_entry(struct kvm_cpuid_entry2 *e)
{
	/* A component of XSAVE's area has an index of its own. */
	if (e->function == 0xd && e->index >= 2)
		return e->index < 32 && XCR0_OFFERED & BIT(e->index);
	for (size_t i = 0; i < sizeof(offered) / sizeof(*offered); i++) {
		const struct offer *o = &offered[i];

		if (o->leaf != e->function ||
			(o->index != ANY_INDEX && o->index != e->index))
			continue;
		e->eax &= o->eax;
		e->ebx &= o->ebx;
		e->ecx &= o->ecx;
		e->edx &= o->edx;
		for (size_t k = 0; k < sizeof(limits) / sizeof(*limits); k++)
			if (limits[k].leaf == e->function && e->index == 0 &&
				e->eax > limits[k].last)
				e->eax = limits[k].last;
		return true;
	}
	return false;
}

/* The largest area that the components which are left need. (KVM fits EBX to XCR0.) */
static void
fit_xsave_size(struct kvm_cpuid_table *t)
{
	uint32_t bytes = XSAVE_LEGACY_BYTES;
	struct kvm_cpuid_entry2 *first = NULL;

	for (unsigned i = 0; i < t->n; i++) {
		struct kvm_cpuid_entry2 *e = &t->entries[i];

		if (e->function == 0xd && e->index == 0)
			first = e;
		else if (e->function == 0xd && e->index >= 2 && e->ebx + e->eax > bytes)
			bytes = e->ebx + e->eax;
	}
	if (first && first->ecx > bytes)
		first->ecx = bytes;
}

/* KVM leaves levels out where the host's own leaf has none. */
static void
add_level(struct kvm_cpuid_table *t, uint32_t leaf, unsigned id, unsigned n_vcpus)
{
	for (unsigned i = 0; i < t->n && t->n < KVM_CPUID_MAX; i++) {
		if (t->entries[i].function != leaf)
			continue;
		t->entries[i].flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
		t->entries[t->n] = t->entries[i];
		t->entries[t->n].index = 1;
		topology(&t->entries[t->n++], id, n_vcpus);
		return;
	}
}

void
cpuid_adjust(struct kvm_cpuid_table *t, unsigned id, unsigned n_vcpus,
	const struct kvm_caps *caps)
{
	const bool amd = is_amd(t);
	unsigned n = 0;

	for (unsigned i = 0; i < t->n; i++) {
		struct kvm_cpuid_entry2 e = t->entries[i];

		if (!restrict_entry(&e))
			continue;
		adjust_entry(&e, id, n_vcpus, amd, caps);
		t->entries[n++] = e;
	}
	t->n = n;
	fit_xsave_size(t);
	add_level(t, 0xb, id, n_vcpus);
	add_level(t, 0x1f, id, n_vcpus);
}

void
cpuid_accept(struct kvm_cpuid_table *t, unsigned n_vcpus, const struct kvm_caps *caps)
{
	for (unsigned i = 0; i < t->n; i++) {
		struct kvm_cpuid_entry2 *e = &t->entries[i];

		if (e->function == 0x1) {
			e->ecx |= LEAF1_ECX_HYPERVISOR;
			if (caps->tsc_deadline_timer)
				e->ecx |= LEAF1_ECX_TSC_DEADLINE;
			e->edx |= LEAF1_EDX_HTT;
		} else if (e->function == 0x80000001 && n_vcpus > 1) {
			e->ecx |= EXT1_ECX_CMP_LEGACY;
		}
	}
}

/*
 * KVM asks the core that it happens to run on, and a hybrid CPU has cores of two kinds. They
 * have the same features, signature and name, but other caches and another frequency. No
 * guest may rely on either: its vCPUs move between the cores of both kinds. (Leaf 0x1a and the
 * hybrid bit, which name the kind, are not offered.)
 */
static bool
is_of_a_core(uint32_t leaf)
{
	switch (leaf) {
	case 0x2:	 /* caches, as descriptors */
	case 0x4:	 /* caches */
	case 0x16:	 /* frequency */
	case 0x80000005: /* first-level caches */
	case 0x80000006: /* the others */
	case 0x80000019: /* TLBs of large pages */
	case 0x8000001d: /* caches */
		return true;
	default:
		return false;
	}
}

/* The next entry from *at on that is no core's own, or NULL. */
static const struct kvm_cpuid_entry2 *
next_common(const struct kvm_cpuid_table *t, uint32_t *at)
{
	while (*at < t->n && is_of_a_core(t->entries[*at].function))
		(*at)++;
	return *at < t->n ? &t->entries[(*at)++] : NULL;
}

bool
cpuid_same(const struct kvm_cpuid_table *a, const struct kvm_cpuid_table *b)
{
	const struct kvm_cpuid_entry2 *of_a, *of_b;
	uint32_t at_a = 0, at_b = 0;

	do {
		of_a = next_common(a, &at_a);
		of_b = next_common(b, &at_b);
		if (of_a && of_b && memcmp(of_a, of_b, sizeof(*of_a)) != 0)
			return false;
	} while (of_a && of_b);
	return of_a == of_b;
}
