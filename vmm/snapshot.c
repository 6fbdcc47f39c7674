#include "vmm/snapshot.h"

#include <errno.h>
#include <string.h>

#include "common/wire/cpu_features.h"
#include "vmm/cpuid.h"

#define TAG_CONFIG SNAPSHOT_TAG_CONFIG
#define TAG_CPUID SNAPSHOT_TAG_CPUID
#define TAG_CLOCK BLOB_TAG('C', 'L', 'C', 'K')
#define TAG_VCPU BLOB_TAG('V', 'C', 'P', 'U')
#define TAG_IOAPIC BLOB_TAG('I', 'O', 'A', 'P')
#define TAG_SERIAL BLOB_TAG('S', 'E', 'R', 'I')
#define TAG_GED BLOB_TAG('G', 'E', 'D', 'V')
#define TAG_DISK BLOB_TAG('D', 'I', 'S', 'K')
#define TAG_VSOCK BLOB_TAG('V', 'S', 'C', 'K')
#define TAG_RNG BLOB_TAG('R', 'N', 'G', 'D')
#define TAG_BALLOON BLOB_TAG('B', 'A', 'L', 'N')

#define MIB (1ull << 20)

/* ---- saving ---- */

static void
save_cpuid(const struct kvm_cpuid_table *t, struct blob_out *out)
{
	blob_begin(out, TAG_CPUID);
	blob_put_u32(out, t->n);
	blob_put_u32(out, 0);
	blob_put(out, t->entries, t->n * sizeof(t->entries[0]));
	blob_end(out);
}

static void
save_vcpu(const struct vcpu_state *s, const struct kvm_caps *caps, struct blob_out *out)
{
	size_t xsave =
		caps->xsave_size < KVM_XSAVE_MAX ? caps->xsave_size : KVM_XSAVE_MAX;
	uint32_t n_msrs = 0;

	blob_begin(out, TAG_VCPU);
	blob_put(out, &s->mp, sizeof(s->mp));
	blob_put_u32(out, (uint32_t)s->tsc_khz);
	blob_put_u64(out, s->guest_tsc);
	blob_put(out, &s->regs, sizeof(s->regs));
	blob_put(out, &s->sregs, sizeof(s->sregs));
	blob_put(out, &s->xcrs, sizeof(s->xcrs));
	blob_put(out, &s->debugregs, sizeof(s->debugregs));
	blob_put(out, &s->lapic, sizeof(s->lapic));
	blob_put(out, &s->events, sizeof(s->events));

	/* The TSC is said by guest_tsc. */
	for (uint32_t i = 0; i < s->msrs.n; i++)
		n_msrs += s->msrs.entries[i].index != STATE_MSR_TSC;
	blob_put_u32(out, n_msrs);
	for (uint32_t i = 0; i < s->msrs.n; i++)
		if (s->msrs.entries[i].index != STATE_MSR_TSC)
			blob_put(out, &s->msrs.entries[i], sizeof(s->msrs.entries[i]));

	/* Mostly zeroes at its end: registers that this guest never used. */
	while (xsave > 0 && s->xsave.bytes[xsave - 1] == 0)
		xsave--;
	blob_put_u32(out, (uint32_t)xsave);
	blob_put(out, s->xsave.bytes, xsave);
	blob_end(out);
}

size_t
snapshot_save(struct vm *vm, void *buf, size_t cap)
{
	const struct snapshot_config config = {
		.mem_mib = (vm->mem.low_len + vm->mem.high_len) / MIB,
		.disk_mib = blk_disk_mib(&vm->blk),
		.vcpus = vm->n_vcpus,
		.flags = (vm->caps.tsc_deadline_timer ? SNAPSHOT_TSC_DEADLINE : 0) |
			 (vm->clock.valid ? SNAPSHOT_CLOCK : 0) |
			 (vm->balloon.present ? SNAPSHOT_BALLOON : 0),
	};
	struct blob_out out;

	blob_start(&out, buf, cap);
	blob_begin(&out, TAG_CONFIG);
	blob_put(&out, &config, sizeof(config));
	blob_end(&out);
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		save_cpuid(&vm->vcpus[i].cpuid, &out);
	blob_begin(&out, TAG_CLOCK);
	blob_put_u64(&out, vm->clock.valid ? vm->clock.clock.clock : 0);
	blob_end(&out);
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		save_vcpu(&vm->vcpus[i].state, &vm->caps, &out);
	blob_begin(&out, TAG_IOAPIC);
	ioapic_save(&vm->ioapic, &out);
	blob_end(&out);
	blob_begin(&out, TAG_SERIAL);
	serial_save(&vm->serial, &out);
	blob_end(&out);
	blob_begin(&out, TAG_GED);
	ged_save(&vm->ged, &out);
	blob_end(&out);
	blob_begin(&out, TAG_DISK);
	blk_save(&vm->blk, &out);
	blob_end(&out);
	blob_begin(&out, TAG_VSOCK);
	vsock_save(&vm->vsock, &out);
	blob_end(&out);
	blob_begin(&out, TAG_RNG);
	virtio_dev_save(&vm->rng.dev, &out);
	blob_end(&out);
	if (vm->balloon.present) {
		blob_begin(&out, TAG_BALLOON);
		balloon_save(&vm->balloon, &out);
		blob_end(&out);
	}
	return blob_finish(&out);
}

/* ---- loading ---- */

int
snapshot_open(const void *buf, size_t len, struct snapshot *ret, struct err *e)
{
	struct snapshot s = {0};
	struct blob_in in;
	int r;

	if ((r = blob_open(buf, len, &s.rest, e)) < 0 ||
		(r = blob_next(&s.rest, TAG_CONFIG, "configuration", &in, e)) < 0)
		return r;
	blob_get(&in, &s.config, sizeof(s.config));
	if ((r = blob_end_in(&in, "configuration", e)) < 0)
		return r;
	if (s.config.mem_mib < VMM_MEM_MIN_MIB || s.config.mem_mib > VMM_MEM_MAX_MIB ||
		s.config.vcpus < 1 || s.config.vcpus > VMM_VCPUS_MAX ||
		s.config.disk_mib < 1 || s.config.disk_mib > BLOCKMAP_DISK_MIB_MAX)
		return err_set(e, -EBADMSG,
			"the state is of a VM that cannot be: %llu MiB, %u vCPUs, %llu MiB of disk",
			(unsigned long long)s.config.mem_mib, s.config.vcpus,
			(unsigned long long)s.config.disk_mib);
	if (s.config.flags & ~(SNAPSHOT_TSC_DEADLINE | SNAPSHOT_CLOCK | SNAPSHOT_BALLOON))
		return err_set(
			e, -EBADMSG, "the state has unknown flags 0x%x", s.config.flags);
	*ret = s;
	return 0;
}

static int
load_one_cpuid(struct blob_in *in, const struct kvm_cpuid_table *accepted,
	struct kvm_cpuid_table *t, bool *changed, struct err *e)
{
	static struct kvm_cpuid_table wanted; /* 5 KiB; one thread loads */
	char names[160];
	uint32_t n = blob_get_u32(in), pad = blob_get_u32(in);
	unsigned missing;
	const void *entries;

	if (n > KVM_CPUID_MAX || pad)
		return err_set(e, -EBADMSG,
			"the state has a CPUID table of %u entries; %d are allowed", n,
			KVM_CPUID_MAX);
	entries = blob_take(in, n * sizeof(t->entries[0]));
	if (!entries)
		return err_set(e, -EBADMSG, "the state has a CPUID table cut short");
	wanted.n = n;
	memcpy(wanted.entries, entries, n * sizeof(t->entries[0]));
	if (cpuid_same(&wanted, t))
		return 0;
	missing = cpu_features_missing(&wanted, accepted, names, sizeof(names));
	if (missing)
		return err_set(e, -ENOTSUP,
			"this host lacks %s that the VM uses: %s; restore it on a host that has %s",
			missing == 1 ? "a CPU feature" : "CPU features", names,
			missing == 1 ? "it" : "them");
	*t = wanted;
	*changed = true;
	return 0;
}

int
snapshot_load_cpuid(struct snapshot *s, struct vm *vm, bool *ret_changed, struct err *e)
{
	bool changed = false;
	struct blob_in in;
	int r;

	if (s->config.vcpus != vm->n_vcpus)
		return err_set(e, -EINVAL, "the state is of %u vCPUs, this VM has %u",
			s->config.vcpus, vm->n_vcpus);
	if ((s->config.flags & SNAPSHOT_TSC_DEADLINE) && !vm->caps.tsc_deadline_timer)
		return err_set(e, -ENOTSUP,
			"this host's KVM lacks the TSC deadline timer, which the VM uses");
	if ((s->config.flags & SNAPSHOT_CLOCK) && !vm->caps.adjust_clock)
		return err_set(e, -ENOTSUP,
			"this host's KVM cannot set kvm-clock (KVM_CAP_ADJUST_CLOCK), which the VM uses");
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		if ((r = blob_next(&s->rest, TAG_CPUID, "CPUID", &in, e)) < 0 ||
			(r = load_one_cpuid(&in, &vm->accepted, &vm->vcpus[i].cpuid,
				 &changed, e)) < 0 ||
			(r = blob_end_in(&in, "CPUID", e)) < 0)
			return r;
	*ret_changed = changed;
	return 0;
}

static bool
is_planned(const struct kvm_msr_index_table *plan, uint32_t index)
{
	for (uint32_t i = 0; i < plan->n; i++)
		if (plan->indices[i] == index)
			return true;
	return false;
}

/* Only registers that this host saves itself, so that the VM can be saved again; one that
 * is zero and not known here is what it is anyway. */
static int
load_msrs(struct blob_in *in, const struct state_plan *plan, struct vcpu_state *s,
	struct err *e)
{
	const struct kvm_msr_index_table *known = &plan->msrs;
	uint32_t n = blob_get_u32(in), at = 0;
	const uint8_t *p;

	if (n > KVM_MSRS_MAX)
		return err_set(e, -EBADMSG, "the state of a vCPU has %u MSRs; %d fit", n,
			KVM_MSRS_MAX);
	p = blob_take(in, n * sizeof(struct kvm_msr_entry));
	if (!p)
		return err_set(e, -EBADMSG, "the MSRs of a vCPU's state are cut short");
	s->msrs.n = 0;
	for (uint32_t i = 0; i < n; i++) {
		struct kvm_msr_entry m;

		memcpy(&m, p + i * sizeof(m), sizeof(m));
		m.reserved = 0;
		/* Usually the blob's list is ours, in our order. */
		while (at < known->n && known->indices[at] == STATE_MSR_TSC)
			at++;
		if (at < known->n && known->indices[at] == m.index) {
			at++;
		} else if (m.index == STATE_MSR_TSC) {
			return err_set(e, -EBADMSG,
				"the state of a vCPU has its TSC among the MSRs");
		} else if (!is_planned(known, m.index)) {
			if (m.data == 0 || state_is_left_out(m.index))
				continue;
			return err_set(e, -ENOTSUP,
				"the VM uses MSR 0x%x (0x%llx), which this host's KVM does not keep",
				m.index, (unsigned long long)m.data);
		}
		if (m.index == STATE_MSR_TSC_DEADLINE && i != n - 1)
			return err_set(e, -EBADMSG,
				"the state of a vCPU has its timer's deadline before other MSRs");
		s->msrs.entries[s->msrs.n++] = m;
	}
	return 0;
}

static int
load_vcpu(struct blob_in *in, struct vm *vm, struct vcpu_state *s, struct err *e)
{
	uint32_t khz, xsave;
	int r;

	blob_get(in, &s->mp, sizeof(s->mp));
	khz = blob_get_u32(in);
	s->guest_tsc = blob_get_u64(in);
	blob_get(in, &s->regs, sizeof(s->regs));
	blob_get(in, &s->sregs, sizeof(s->sregs));
	blob_get(in, &s->xcrs, sizeof(s->xcrs));
	blob_get(in, &s->debugregs, sizeof(s->debugregs));
	blob_get(in, &s->lapic, sizeof(s->lapic));
	blob_get(in, &s->events, sizeof(s->events));
	if (khz > INT32_MAX)
		return err_set(
			e, -EBADMSG, "the state of a vCPU has a TSC of %u kHz", khz);
	s->tsc_khz = (int)khz;
	if ((r = load_msrs(in, &vm->plan, s, e)) < 0)
		return r;
	xsave = blob_get_u32(in);
	if (xsave > vm->caps.xsave_size || xsave > sizeof(s->xsave))
		return err_set(e, -ENOTSUP,
			"the VM uses %u bytes of extended CPU state, this host's CPU has %zu",
			xsave, vm->caps.xsave_size);
	blob_get(in, s->xsave.bytes, xsave);
	memset(s->xsave.bytes + xsave, 0, vm->caps.xsave_size - xsave);
	return 0;
}

static int
load_clock(struct blob_in *in, const struct snapshot_config *config,
	struct state_clock *c, struct err *e)
{
	uint64_t clock = blob_get_u64(in);

	/* 146 years: an uptime, not a way to make its sums overflow. */
	if (clock >> 62)
		return err_set(e, -EBADMSG, "the state's clock is beyond all bounds");
	*c = (struct state_clock){
		.clock = {.clock = clock},
		.valid = config->flags & SNAPSHOT_CLOCK,
	};
	return 0;
}

/* A section whose loader has the usual form. */
#define LOAD(tag, what, call) \
	do { \
		if ((r = blob_next(&s->rest, tag, what, &in, e)) < 0 || \
			(r = (call)) < 0 || (r = blob_end_in(&in, what, e)) < 0) \
			return r; \
	} while (0)

int
snapshot_load(struct snapshot *s, struct vm *vm, struct err *e)
{
	struct blob_in in;
	int r;

	LOAD(TAG_CLOCK, "clock", load_clock(&in, &s->config, &vm->clock, e));
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		LOAD(TAG_VCPU, "vCPU", load_vcpu(&in, vm, &vm->vcpus[i].state, e));
	LOAD(TAG_IOAPIC, "interrupt controller", ioapic_load(&vm->ioapic, &in, e));
	LOAD(TAG_SERIAL, "serial port", serial_load(&vm->serial, &in, e));
	LOAD(TAG_GED, "event device", ged_load(&vm->ged, &in, e));
	LOAD(TAG_DISK, "disk", blk_load(&vm->blk, s->config.disk_mib, &in, e));
	LOAD(TAG_VSOCK, "vsock", vsock_load(&vm->vsock, &in, e));
	LOAD(TAG_RNG, "random numbers", virtio_dev_load(&vm->rng.dev, &in, e));
	vm->balloon.present = s->config.flags & SNAPSHOT_BALLOON;
	if (vm->balloon.present)
		LOAD(TAG_BALLOON, "balloon", balloon_load(&vm->balloon, &in, e));
	if (s->rest.left)
		return err_set(e, -EBADMSG, "the state has %zu bytes behind its end",
			s->rest.left);
	return 0;
}
