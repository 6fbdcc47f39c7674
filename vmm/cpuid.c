/*
 * Topology: one package, one core a vCPU, no hyper-threads; APIC ids count from 0.
 *
 * Taken away: nested virtualization (its state is not saved), the performance counters
 * (their registers would be half of all MSRs saved at a fork), machine checks (a VM has
 * none), and KVM's asynchronous page faults (a fork could come between "page not present"
 * and "page ready").
 */
#include "vmm/cpuid.h"

#define LEAF1_ECX_VMX (1u << 5)
#define LEAF1_ECX_PDCM (1u << 15)
#define LEAF1_ECX_TSC_DEADLINE (1u << 24)
#define LEAF1_ECX_HYPERVISOR (1u << 31)
#define LEAF1_EDX_MCE (1u << 7)
#define LEAF1_EDX_MCA (1u << 14)
#define LEAF1_EDX_HTT (1u << 28)
#define EXT1_ECX_CMP_LEGACY (1u << 1)
#define EXT1_ECX_SVM (1u << 2)
#define EXT1_ECX_PERFCTR_CORE (1u << 23)
#define EXT1_ECX_PERFCTR_NB (1u << 24)
#define KVM_SIGNATURE_LEAF 0x40000000u
#define KVM_FEATURES_LEAF 0x40000001u
#define KVM_ASYNC_PF ((1u << 4) | (1u << 10) | (1u << 14))

static unsigned
bits_for(unsigned n)
{
	unsigned bits = 0;

	while ((1u << bits) < n)
		bits++;
	return bits;
}

/* Leaves 0xb and 0x1f: level 0 threads (one), level 1 cores. */
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
adjust_entry(struct kvm_cpuid_entry2 *e, unsigned id, unsigned n_vcpus,
	const struct kvm_caps *caps)
{
	switch (e->function) {
	case 0x1:
		e->ebx = (e->ebx & 0x0000ffff) | n_vcpus << 16 | id << 24;
		e->ecx &= ~(LEAF1_ECX_VMX | LEAF1_ECX_PDCM);
		e->ecx |= LEAF1_ECX_HYPERVISOR;
		if (caps->tsc_deadline_timer)
			e->ecx |= LEAF1_ECX_TSC_DEADLINE;
		e->edx &= ~(LEAF1_EDX_HTT | LEAF1_EDX_MCE | LEAF1_EDX_MCA);
		if (n_vcpus > 1)
			e->edx |= LEAF1_EDX_HTT;
		break;
	case 0x4:
	case 0x8000001d:
		cache(e, n_vcpus);
		break;
	case 0xa: /* performance monitoring, and AMD's */
	case 0x80000022:
	case 0x8000000a: /* nested SVM */
		e->eax = e->ebx = e->ecx = e->edx = 0;
		break;
	case 0xb:
	case 0x1f:
		topology(e, id, n_vcpus);
		break;
	case 0x80000001:
		e->ecx &= ~(EXT1_ECX_CMP_LEGACY | EXT1_ECX_SVM | EXT1_ECX_PERFCTR_CORE |
			    EXT1_ECX_PERFCTR_NB);
		if (n_vcpus > 1)
			e->ecx |= EXT1_ECX_CMP_LEGACY;
		break;
	case 0x80000008:
		e->ecx = (e->ecx & ~0xf0ffu) | (n_vcpus - 1) | bits_for(n_vcpus) << 12;
		break;
	case 0x8000001e:
		e->eax = id;
		e->ebx = id; /* core id, one thread a core */
		e->ecx = 0;
		break;
	case KVM_FEATURES_LEAF:
		e->eax &= ~KVM_ASYNC_PF;
		break;
	default:
		break;
	}
}

void
cpuid_adjust(struct kvm_cpuid_table *t, unsigned id, unsigned n_vcpus,
	const struct kvm_caps *caps)
{
	bool leaf_b_level1 = false;

	for (unsigned i = 0; i < t->n; i++) {
		adjust_entry(&t->entries[i], id, n_vcpus, caps);
		if (t->entries[i].function == 0xb && t->entries[i].index == 1)
			leaf_b_level1 = true;
	}
	/* KVM leaves leaf 0xb's levels out where the host's own has none. */
	for (unsigned i = 0; i < t->n && !leaf_b_level1; i++) {
		if (t->entries[i].function != 0xb || t->n >= KVM_CPUID_MAX)
			continue;
		t->entries[i].flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
		t->entries[t->n] = t->entries[i];
		t->entries[t->n].index = 1;
		topology(&t->entries[t->n++], id, n_vcpus);
		leaf_b_level1 = true;
	}
}
