#include "vmm/kvm.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

const unsigned long kvm_ioctl_numbers[] = {
	KVM_GET_API_VERSION,
	KVM_CHECK_EXTENSION,
	KVM_GET_VCPU_MMAP_SIZE,
	KVM_GET_SUPPORTED_CPUID,
	KVM_GET_MSR_INDEX_LIST,
	KVM_GET_MSR_FEATURE_INDEX_LIST,
	KVM_CREATE_VM,
	KVM_SET_TSS_ADDR,
	KVM_SET_IDENTITY_MAP_ADDR,
	KVM_ENABLE_CAP,
	KVM_SET_USER_MEMORY_REGION,
	KVM_CREATE_VCPU,
	KVM_SIGNAL_MSI,
	KVM_SET_GSI_ROUTING,
	KVM_GET_CLOCK,
	KVM_SET_CLOCK,
	KVM_RUN,
	KVM_SET_CPUID2,
	KVM_GET_MP_STATE,
	KVM_SET_MP_STATE,
	KVM_GET_REGS,
	KVM_SET_REGS,
	KVM_GET_SREGS,
	KVM_SET_SREGS,
	KVM_GET_XSAVE,
	KVM_GET_XSAVE2,
	KVM_SET_XSAVE,
	KVM_GET_XCRS,
	KVM_SET_XCRS,
	KVM_GET_DEBUGREGS,
	KVM_SET_DEBUGREGS,
	KVM_GET_LAPIC,
	KVM_SET_LAPIC,
	KVM_GET_MSRS,
	KVM_SET_MSRS,
	KVM_GET_VCPU_EVENTS,
	KVM_SET_VCPU_EVENTS,
	KVM_GET_TSC_KHZ,
	KVM_SET_TSC_KHZ,
	KVM_GET_DEVICE_ATTR,
	KVM_SET_DEVICE_ATTR,
	KVM_KVMCLOCK_CTRL,
};
const size_t kvm_n_ioctl_numbers = sizeof(kvm_ioctl_numbers) / sizeof(*kvm_ioctl_numbers);

/* The one place where an ioctl is made; EINTR is the caller's business (only KVM_RUN sees
 * it). */
static int
call(int fd, unsigned long request, const void *arg)
{
	int r = ioctl(fd, request, arg);

	return r < 0 ? -errno : r;
}

static int
call_value(int fd, unsigned long request, unsigned long value)
{
	int r = ioctl(fd, request, value);

	return r < 0 ? -errno : r;
}

/* A call whose only argument is a pointer and whose error needs no more than its name. */
static int
plain(int fd, unsigned long request, const void *arg, const char *name, struct err *e)
{
	int r = call(fd, request, arg);

	return r < 0 ? err_sys(e, r, "%s", name) : 0;
}

static int
extension(int kvm_fd, unsigned cap)
{
	int r = call_value(kvm_fd, KVM_CHECK_EXTENSION, cap);

	return r < 0 ? 0 : r;
}

int
kvm_read_caps(int kvm_fd, struct kvm_caps *ret, struct err *e)
{
	struct kvm_caps c = {0};
	int r;

	c.api_version = call_value(kvm_fd, KVM_GET_API_VERSION, 0);
	if (c.api_version < 0)
		return err_sys(e, c.api_version, "KVM_GET_API_VERSION");
	r = call_value(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (r < 0)
		return err_sys(e, r, "KVM_GET_VCPU_MMAP_SIZE");
	c.run_size = r;
	c.max_vcpus = extension(kvm_fd, KVM_CAP_MAX_VCPUS);
	c.split_irqchip = extension(kvm_fd, KVM_CAP_SPLIT_IRQCHIP);
	c.signal_msi = extension(kvm_fd, KVM_CAP_SIGNAL_MSI);
	c.immediate_exit = extension(kvm_fd, KVM_CAP_IMMEDIATE_EXIT);
	c.user_memory = extension(kvm_fd, KVM_CAP_USER_MEMORY);
	c.vcpu_attributes = extension(kvm_fd, KVM_CAP_VCPU_ATTRIBUTES);
	c.tsc_deadline_timer = extension(kvm_fd, KVM_CAP_TSC_DEADLINE_TIMER);
	c.adjust_clock = extension(kvm_fd, KVM_CAP_ADJUST_CLOCK);
	c.kvmclock_ctrl = extension(kvm_fd, KVM_CAP_KVMCLOCK_CTRL);
	c.msr_features = extension(kvm_fd, KVM_CAP_GET_MSR_FEATURES);
	c.pmu_capability =
		extension(kvm_fd, KVM_CAP_PMU_CAPABILITY) & KVM_PMU_CAP_DISABLE;
	c.exception_payload = extension(kvm_fd, KVM_CAP_EXCEPTION_PAYLOAD);
	c.mce_banks = (unsigned)extension(kvm_fd, KVM_CAP_MCE);
	r = extension(kvm_fd, KVM_CAP_SYNC_REGS);
	c.sync_regs = (r & KVM_SYNC_X86_VALID_FIELDS) == KVM_SYNC_X86_VALID_FIELDS
			      ? KVM_SYNC_X86_VALID_FIELDS
			      : 0;
	r = extension(kvm_fd, KVM_CAP_XSAVE2);
	c.xsave2 = r > 0;
	c.xsave_size = r > 0 ? (size_t)r : sizeof(struct kvm_xsave);
	*ret = c;
	return 0;
}

int
kvm_check_caps(const struct kvm_caps *caps, struct err *e)
{
	if (caps->api_version != KVM_API_VERSION)
		return err_set(e, -ENOTSUP,
			"KVM speaks API version %d, not %d: it needs a newer kernel",
			caps->api_version, KVM_API_VERSION);
	if (!caps->split_irqchip || !caps->signal_msi || !caps->immediate_exit ||
		!caps->user_memory)
		return err_set(e, -ENOTSUP,
			"this kernel's KVM lacks %s: Linux 4.12 or newer on x86-64 has it",
			!caps->split_irqchip	? "the split interrupt controller"
			: !caps->signal_msi	? "KVM_SIGNAL_MSI"
			: !caps->immediate_exit ? "immediate_exit"
						: "KVM_CAP_USER_MEMORY");
	if (caps->xsave_size > KVM_XSAVE_MAX)
		return err_set(e, -ENOTSUP,
			"this CPU's XSAVE area is %zu bytes; %d are supported",
			caps->xsave_size, KVM_XSAVE_MAX);
	if (caps->run_size < sizeof(struct kvm_run))
		return err_set(e, -ENOTSUP, "KVM's run area is %zu bytes, too small",
			caps->run_size);
	return 0;
}

int
kvm_get_supported_cpuid(int kvm_fd, struct kvm_cpuid_table *ret, struct err *e)
{
	ret->n = KVM_CPUID_MAX;
	return plain(kvm_fd, KVM_GET_SUPPORTED_CPUID, ret, "KVM_GET_SUPPORTED_CPUID", e);
}

int
kvm_get_msr_index_list(int kvm_fd, struct kvm_msr_index_table *ret, struct err *e)
{
	ret->n = KVM_MSRS_MAX;
	return plain(kvm_fd, KVM_GET_MSR_INDEX_LIST, ret, "KVM_GET_MSR_INDEX_LIST", e);
}

int
kvm_get_msr_feature_index_list(int kvm_fd, struct kvm_msr_index_table *ret, struct err *e)
{
	ret->n = KVM_MSRS_MAX;
	return plain(kvm_fd, KVM_GET_MSR_FEATURE_INDEX_LIST, ret,
		"KVM_GET_MSR_FEATURE_INDEX_LIST", e);
}

int
kvm_create_vm(int kvm_fd, int *ret_vm_fd, struct err *e)
{
	int r;

	/* A signal that is pending makes the kernel give up with EINTR. */
	do
		r = call_value(kvm_fd, KVM_CREATE_VM, 0);
	while (r == -EINTR);
	if (r < 0)
		return err_sys(e, r, "KVM_CREATE_VM");
	*ret_vm_fd = r; /* close-on-exec from birth */
	return 0;
}

/*
 * KVM does not say where it maps pages of its own, but it asks for room as mmap() does:
 * where one mapping of that size would come to lie now, the next will. So the places are
 * looked up, given up, and after the call what lies there is marked. Otherwise each
 * generation of branches would have a mapping more, and each fork would copy all.
 */
struct places {
	void *at[2];
	size_t n, len;
};

static struct places
next_places(size_t n, size_t len)
{
	struct places p = {.n = n, .len = len};

	for (size_t i = 0; i < n; i++)
		p.at[i] = mmap(NULL, len, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (size_t i = 0; i < n; i++)
		if (p.at[i] != MAP_FAILED)
			munmap(p.at[i], len);
	return p;
}

static void
keep_from_children(const struct places *p)
{
	/* ENOMEM: nothing is there, KVM needed no page. */
	for (size_t i = 0; i < p->n; i++)
		if (p->at[i] != MAP_FAILED)
			madvise(p->at[i], p->len, MADV_DONTFORK);
}

int
kvm_set_tss_addr(int vm_fd, uint64_t gpa, struct err *e)
{
	const struct places places = next_places(1, 3 * 4096);
	int r = call_value(vm_fd, KVM_SET_TSS_ADDR, gpa);

	keep_from_children(&places);
	return r < 0 ? err_sys(e, r, "KVM_SET_TSS_ADDR 0x%llx", (unsigned long long)gpa)
		     : 0;
}

int
kvm_set_identity_map_addr(int vm_fd, uint64_t gpa, struct err *e)
{
	int r = call(vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &gpa);

	return r < 0 ? err_sys(e, r, "KVM_SET_IDENTITY_MAP_ADDR 0x%llx",
			       (unsigned long long)gpa)
		     : 0;
}

int
kvm_create_split_irqchip(int vm_fd, unsigned pins, struct err *e)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {pins}};
	int r = call(vm_fd, KVM_ENABLE_CAP, &cap);

	return r < 0 ? err_sys(e, r, "KVM_ENABLE_CAP KVM_CAP_SPLIT_IRQCHIP %u pins", pins)
		     : 0;
}

int
kvm_set_memory(
	int vm_fd, unsigned slot, uint64_t gpa, void *host, uint64_t len, struct err *e)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = len,
		.userspace_addr = (uintptr_t)host,
	};
	int r = call(vm_fd, KVM_SET_USER_MEMORY_REGION, &region);

	return r < 0 ? err_sys(e, r,
			       "KVM_SET_USER_MEMORY_REGION slot %u gpa 0x%llx size 0x%llx",
			       slot, (unsigned long long)gpa, (unsigned long long)len)
		     : 0;
}

int
kvm_disable_pmu(int vm_fd, struct err *e)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_PMU_CAPABILITY, .args = {KVM_PMU_CAP_DISABLE}};

	return plain(
		vm_fd, KVM_ENABLE_CAP, &cap, "KVM_ENABLE_CAP KVM_CAP_PMU_CAPABILITY", e);
}

int
kvm_enable_exception_payload(int vm_fd, struct err *e)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = {1}};

	return plain(vm_fd, KVM_ENABLE_CAP, &cap,
		"KVM_ENABLE_CAP KVM_CAP_EXCEPTION_PAYLOAD", e);
}

int
kvm_create_vcpu(int vm_fd, unsigned id, int *ret_vcpu_fd, struct err *e)
{
	/* With a VM's first: the APIC's page, and a page table for real mode. */
	const struct places places = next_places(id == 0 ? 2 : 0, 4096);
	int r = call_value(vm_fd, KVM_CREATE_VCPU, id);

	keep_from_children(&places);
	if (r < 0)
		return err_sys(e, r, "KVM_CREATE_VCPU %u", id);
	*ret_vcpu_fd = r;
	return 0;
}

int
kvm_signal_msi(int vm_fd, uint64_t address, uint32_t data, struct err *e)
{
	struct kvm_msi msi = {
		.address_lo = (uint32_t)address,
		.address_hi = (uint32_t)(address >> 32),
		.data = data,
	};
	int r = call(vm_fd, KVM_SIGNAL_MSI, &msi);

	/* 0: the guest has that interrupt blocked. That is its own affair. */
	return r < 0 ? err_sys(e, r, "KVM_SIGNAL_MSI address 0x%llx data 0x%x",
			       (unsigned long long)address, data)
		     : 0;
}

int
kvm_set_gsi_routing(int vm_fd, const struct kvm_irq_routing *routes, struct err *e)
{
	int r = call(vm_fd, KVM_SET_GSI_ROUTING, routes);

	return r < 0 ? err_sys(e, r, "KVM_SET_GSI_ROUTING %u routes", routes->nr) : 0;
}

int
kvm_get_clock(int vm_fd, struct kvm_clock_data *ret, struct err *e)
{
	return plain(vm_fd, KVM_GET_CLOCK, ret, "KVM_GET_CLOCK", e);
}

int
kvm_set_clock(int vm_fd, const struct kvm_clock_data *clock, struct err *e)
{
	int r = call(vm_fd, KVM_SET_CLOCK, clock);

	return r < 0 ? err_sys(e, r, "KVM_SET_CLOCK %llu flags 0x%x",
			       (unsigned long long)clock->clock, clock->flags)
		     : 0;
}

int
kvm_map_run(int vcpu_fd, size_t run_size, struct kvm_run **ret, struct err *e)
{
	void *p = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);

	if (p == MAP_FAILED)
		return err_sys(
			e, -errno, "mapping a vCPU's run area of %zu bytes", run_size);
	/* A child has vCPUs of its own and no use for this one's pages. */
	madvise(p, run_size, MADV_DONTFORK);
	*ret = p;
	return 0;
}

int
kvm_run(int vcpu_fd)
{
	return call_value(vcpu_fd, KVM_RUN, 0);
}

int
kvm_set_cpuid(int vcpu_fd, const struct kvm_cpuid_table *cpuid, struct err *e)
{
	int r = call(vcpu_fd, KVM_SET_CPUID2, cpuid);

	return r < 0 ? err_sys(e, r, "KVM_SET_CPUID2 %u entries", cpuid->n) : 0;
}

int
kvm_get_mp_state(int vcpu_fd, struct kvm_mp_state *ret, struct err *e)
{
	return plain(vcpu_fd, KVM_GET_MP_STATE, ret, "KVM_GET_MP_STATE", e);
}

int
kvm_set_mp_state(int vcpu_fd, const struct kvm_mp_state *s, struct err *e)
{
	int r = call(vcpu_fd, KVM_SET_MP_STATE, s);

	return r < 0 ? err_sys(e, r, "KVM_SET_MP_STATE %u", s->mp_state) : 0;
}

int
kvm_get_regs(int vcpu_fd, struct kvm_regs *ret, struct err *e)
{
	return plain(vcpu_fd, KVM_GET_REGS, ret, "KVM_GET_REGS", e);
}

int
kvm_set_regs(int vcpu_fd, const struct kvm_regs *s, struct err *e)
{
	return plain(vcpu_fd, KVM_SET_REGS, s, "KVM_SET_REGS", e);
}

int
kvm_get_sregs(int vcpu_fd, struct kvm_sregs *ret, struct err *e)
{
	return plain(vcpu_fd, KVM_GET_SREGS, ret, "KVM_GET_SREGS", e);
}

int
kvm_set_sregs(int vcpu_fd, const struct kvm_sregs *s, struct err *e)
{
	int r = call(vcpu_fd, KVM_SET_SREGS, s);

	return r < 0 ? err_sys(e, r,
			       "KVM_SET_SREGS cr0 0x%llx cr3 0x%llx cr4 0x%llx efer 0x%llx",
			       s->cr0, s->cr3, s->cr4, s->efer)
		     : 0;
}

int
kvm_get_xsave(int vcpu_fd, const struct kvm_caps *caps, union kvm_xsave_area *ret,
	struct err *e)
{
	if (caps->xsave2)
		return plain(vcpu_fd, KVM_GET_XSAVE2, ret, "KVM_GET_XSAVE2", e);
	return plain(vcpu_fd, KVM_GET_XSAVE, ret, "KVM_GET_XSAVE", e);
}

int
kvm_set_xsave(int vcpu_fd, const union kvm_xsave_area *s, struct err *e)
{
	return plain(vcpu_fd, KVM_SET_XSAVE, s, "KVM_SET_XSAVE", e);
}

int
kvm_get_xcrs(int vcpu_fd, struct kvm_xcrs *ret, struct err *e)
{
	return plain(vcpu_fd, KVM_GET_XCRS, ret, "KVM_GET_XCRS", e);
}

int
kvm_set_xcrs(int vcpu_fd, const struct kvm_xcrs *s, struct err *e)
{
	int r = call(vcpu_fd, KVM_SET_XCRS, s);

	return r < 0 ? err_sys(e, r, "KVM_SET_XCRS xcr0 0x%llx", s->xcrs[0].value) : 0;
}

int
kvm_get_debugregs(int vcpu_fd, struct kvm_debugregs *ret, struct err *e)
{
	return plain(vcpu_fd, KVM_GET_DEBUGREGS, ret, "KVM_GET_DEBUGREGS", e);
}

int
kvm_set_debugregs(int vcpu_fd, const struct kvm_debugregs *s, struct err *e)
{
	return plain(vcpu_fd, KVM_SET_DEBUGREGS, s, "KVM_SET_DEBUGREGS", e);
}

int
kvm_get_lapic(int vcpu_fd, struct kvm_lapic_state *ret, struct err *e)
{
	return plain(vcpu_fd, KVM_GET_LAPIC, ret, "KVM_GET_LAPIC", e);
}

int
kvm_set_lapic(int vcpu_fd, const struct kvm_lapic_state *s, struct err *e)
{
	return plain(vcpu_fd, KVM_SET_LAPIC, s, "KVM_SET_LAPIC", e);
}

int
kvm_get_msrs(int vcpu_fd, struct kvm_msr_table *msrs, unsigned *ret_done, struct err *e)
{
	int r = call(vcpu_fd, KVM_GET_MSRS, msrs);

	if (r < 0)
		return err_sys(e, r, "KVM_GET_MSRS %u entries", msrs->n);
	*ret_done = r;
	return 0;
}

int
kvm_set_msrs(
	int vcpu_fd, const struct kvm_msr_table *msrs, unsigned *ret_done, struct err *e)
{
	int r = call(vcpu_fd, KVM_SET_MSRS, msrs);

	if (r < 0)
		return err_sys(e, r, "KVM_SET_MSRS %u entries", msrs->n);
	*ret_done = r;
	return 0;
}

int
kvm_get_vcpu_events(int vcpu_fd, struct kvm_vcpu_events *ret, struct err *e)
{
	return plain(vcpu_fd, KVM_GET_VCPU_EVENTS, ret, "KVM_GET_VCPU_EVENTS", e);
}

int
kvm_set_vcpu_events(int vcpu_fd, const struct kvm_vcpu_events *s, struct err *e)
{
	int r = call(vcpu_fd, KVM_SET_VCPU_EVENTS, s);

	return r < 0 ? err_sys(e, r, "KVM_SET_VCPU_EVENTS flags 0x%x", s->flags) : 0;
}

int
kvm_get_tsc_khz(int vcpu_fd, struct err *e)
{
	int r = call_value(vcpu_fd, KVM_GET_TSC_KHZ, 0);

	return r < 0 ? err_sys(e, r, "KVM_GET_TSC_KHZ") : r;
}

int
kvm_set_tsc_khz(int vcpu_fd, unsigned khz, struct err *e)
{
	int r = call_value(vcpu_fd, KVM_SET_TSC_KHZ, khz);

	return r < 0 ? err_sys(e, r, "KVM_SET_TSC_KHZ %u", khz) : 0;
}

int
kvm_get_tsc_offset(int vcpu_fd, uint64_t *ret, struct err *e)
{
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)ret,
	};

	return plain(
		vcpu_fd, KVM_GET_DEVICE_ATTR, &attr, "KVM_GET_DEVICE_ATTR tsc offset", e);
}

int
kvm_set_tsc_offset(int vcpu_fd, uint64_t offset, struct err *e)
{
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)&offset,
	};
	int r = call(vcpu_fd, KVM_SET_DEVICE_ATTR, &attr);

	return r < 0 ? err_sys(e, r, "KVM_SET_DEVICE_ATTR tsc offset 0x%llx",
			       (unsigned long long)offset)
		     : 0;
}

int
kvm_kvmclock_ctrl(int vcpu_fd, struct err *e)
{
	int r = call_value(vcpu_fd, KVM_KVMCLOCK_CTRL, 0);

	if (r == -EINVAL) /* the guest has not turned kvm-clock on */
		return 0;
	return r < 0 ? err_sys(e, r, "KVM_KVMCLOCK_CTRL") : 0;
}
