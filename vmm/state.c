#include "vmm/state.h"

#include <errno.h>
#include <string.h>
#include <x86intrin.h>

#include "common/io.h"
#include "common/log.h"

/* Control, status, address, what else: Intel's manual, volume 3, 17.3.2. */
#define MSR_MC0_CTL 0x400u
#define MSRS_OF_BANK 4u

/* Registers with state that older kernels support but leave out of their list: the MTRRs.
 */
static const uint32_t unlisted_msrs[] = {
	0x2ff,
	0x250,
	0x258,
	0x259,
	0x268,
	0x269,
	0x26a,
	0x26b,
	0x26c,
	0x26d,
	0x26e,
	0x26f,
	0x200,
	0x201,
	0x202,
	0x203,
	0x204,
	0x205,
	0x206,
	0x207,
	0x208,
	0x209,
	0x20a,
	0x20b,
	0x20c,
	0x20d,
	0x20e,
	0x20f,
};

bool
state_is_of_counters(uint32_t index)
{
	return index == 0x345 || /* PERF_CAPABILITIES */
	       (index >= 0xc1 && index <= 0xc8) || (index >= 0x186 && index <= 0x18d) ||
	       (index >= 0x309 && index <= 0x30c) || index == 0x329 ||
	       (index >= 0x38d && index <= 0x390) || index == 0x3f1 || index == 0x3f2 ||
	       (index >= 0x4c1 && index <= 0x4c8) || index == 0x600 || /* DS_AREA */
	       (index >= 0xc0010000 && index <= 0xc0010007) || /* AMD's since the K7 */
	       (index >= 0xc0010200 && index <= 0xc001020b) ||
	       (index >= 0xc0000300 && index <= 0xc0000303);
}

/*
 * Hyper-V's, a third of what KVM lists: the guest is told of KVM alone, and to one that is
 * not told of Hyper-V they are not there. Yet some read as other than zero (clocks, the
 * vCPU's number), so a commit would ask for a KVM that was built with them
 * (CONFIG_KVM_HYPERV); and the first access of all makes KVM allocate what serves them.
 */
static bool
is_of_hyperv(uint32_t index)
{
	return index >= 0x40000000 && index <= 0x400001ff;
}

bool
state_is_left_out(uint32_t index)
{
	return state_is_of_counters(index) || is_of_hyperv(index);
}

static bool
is_listed(const struct kvm_msr_index_table *t, uint32_t index)
{
	for (unsigned i = 0; i < t->n; i++)
		if (t->indices[i] == index)
			return true;
	return false;
}

/*
 * Some KVMs without hardware virtualization take an offset and forget it. One whose
 * host's TSC is unstable (emulated, above all) keeps it, but computes it anew whenever
 * the vCPU is loaded, and so returns it some 10 µs off.
 */
static bool
keeps_tsc_offset(int vcpu_fd, uint64_t offset)
{
	const uint64_t step = 1ull << 40, other = offset - step;
	uint64_t got = offset;

	if (kvm_set_tsc_offset(vcpu_fd, other, NULL) < 0 ||
		kvm_get_tsc_offset(vcpu_fd, &got, NULL) < 0)
		return false;
	return kvm_set_tsc_offset(vcpu_fd, offset, NULL) == 0 &&
	       got - (other - step / 2) < step;
}

/*
 * KVM counts the vCPUs that were given the offset which the last other one was not (the
 * kernel's kvm_track_tsc_matching), and without all of them there is no master clock:
 * kvm-clock is then read from the host by system calls. The probe above moved one, so
 * every one is told again.
 */
static void
put_in_step(const int fds[], unsigned n, uint64_t offset)
{
	for (unsigned i = 0; i < n; i++)
		if (kvm_set_tsc_offset(fds[i], offset, NULL) < 0)
			log_debug("vCPU %u keeps a TSC offset of its own", i);
}

/* Reads one MSR and writes the value back. */
static bool
takes_back(int vcpu_fd, uint32_t index, uint64_t *ret)
{
	struct kvm_msr_table one = {.n = 1, .entries[0].index = index};
	unsigned done = 0;

	if (kvm_get_msrs(vcpu_fd, &one, &done, NULL) < 0 || done != 1)
		return false;
	*ret = one.entries[0].data;
	return kvm_set_msrs(vcpu_fd, &one, &done, NULL) == 0 && done == 1;
}

/* One that is to be saved. */
static int
plan_msr(struct state_plan *plan, const struct kvm_msr_index_table *features,
	uint32_t index, uint64_t fresh, struct err *e)
{
	plan->msrs.indices[plan->msrs.n++] = index;
	if (!is_listed(features, index))
		return 0;
	if (plan->n_features == STATE_FEATURE_MSRS_MAX)
		return err_set(e, -ENOTSUP,
			"this host's KVM has more than %d feature MSRs",
			STATE_FEATURE_MSRS_MAX);
	plan->features[plan->n_features++] =
		(struct kvm_msr_entry){.index = index, .data = fresh};
	return 0;
}

bool
state_has_other_features(const struct vcpu_state *s, const struct state_plan *plan)
{
	for (unsigned i = 0; i < s->msrs.n; i++)
		for (unsigned k = 0; k < plan->n_features; k++)
			if (s->msrs.entries[i].index == plan->features[k].index &&
				s->msrs.entries[i].data != plan->features[k].data)
				return true;
	return false;
}

bool
state_has_all_msrs(const struct vcpu_state *s, const struct state_plan *plan)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->msrs.n; i++)
		n += s->msrs.entries[i].index != STATE_MSR_TSC;
	/* A loaded state has none twice, and only planned ones. */
	for (uint32_t i = 0; i < plan->msrs.n; i++)
		n -= plan->msrs.indices[i] != STATE_MSR_TSC;
	return n == 0;
}

int
state_plan_make(int kvm_fd, const int fds[], unsigned n, const struct kvm_caps *caps,
	struct state_plan *ret, struct err *e)
{
	struct kvm_msr_index_table all, features = {0};
	struct state_plan plan = {0};
	const int vcpu_fd = fds[0];
	uint64_t offset = 0, value;
	bool deadline = false;
	int r;

	if ((r = kvm_get_msr_index_list(kvm_fd, &all, e)) < 0 ||
		(caps->msr_features &&
			(r = kvm_get_msr_feature_index_list(kvm_fd, &features, e)) < 0))
		return r;
	for (size_t i = 0; i < sizeof(unlisted_msrs) / sizeof(*unlisted_msrs); i++)
		if (!is_listed(&all, unlisted_msrs[i]) && all.n < KVM_MSRS_MAX)
			all.indices[all.n++] = unlisted_msrs[i];

	if ((r = kvm_get_xcrs(vcpu_fd, &plan.fresh_xcrs, e)) < 0 ||
		(r = kvm_get_debugregs(vcpu_fd, &plan.fresh_debugregs, e)) < 0)
		return r;
	plan.tsc_offset = caps->vcpu_attributes &&
			  kvm_get_tsc_offset(vcpu_fd, &offset, NULL) == 0 &&
			  kvm_set_tsc_offset(vcpu_fd, offset, NULL) == 0;
	plan.tsc_fixed = plan.tsc_offset && !keeps_tsc_offset(vcpu_fd, offset);
	if (plan.tsc_fixed)
		log_debug("this host's KVM cannot offset a guest's TSC");
	plan.tsc_khz = kvm_get_tsc_khz(vcpu_fd, NULL);
	if (plan.tsc_khz < 0)
		plan.tsc_khz = 0;
	for (unsigned i = 0; i < all.n; i++) {
		uint32_t index = all.indices[i];

		if (state_is_left_out(index))
			continue;
		if (index == STATE_MSR_TSC && plan.tsc_offset)
			continue; /* the offset says it exactly; writing the TSC makes KVM
				     guess */
		if (!takes_back(vcpu_fd, index, &value)) {
			log_debug(
				"MSR 0x%x is not saved: it does not take back what it reads as",
				index);
			continue;
		}
		if (index == STATE_MSR_TSC_DEADLINE) {
			deadline = true;
			continue;
		}
		if ((r = plan_msr(&plan, &features, index, value, e)) < 0)
			return r;
	}
	/* The deadline last: the timer mode (LAPIC) and the TSC must be there before it
	 * is armed. */
	if (deadline)
		plan.msrs.indices[plan.msrs.n++] = STATE_MSR_TSC_DEADLINE;
	if (plan.tsc_offset)
		put_in_step(fds, n, offset);
	*ret = plan;
	return 0;
}

int
state_save_clock(
	int vm_fd, const struct kvm_caps *caps, struct state_clock *ret, struct err *e)
{
	int r;

	ret->valid = false;
	ret->taken_ns = io_now_ns();
	ret->taken_tsc = __rdtsc();
	if (!caps->adjust_clock)
		return 0;
	r = kvm_get_clock(vm_fd, &ret->clock, e);
	ret->valid = r == 0;
	return r;
}

int
state_load_clock(int vm_fd, const struct kvm_caps *caps, const struct state_clock *c,
	struct err *e)
{
	struct kvm_clock_data now = {.clock = c->clock.clock};

	if (!c->valid || !caps->adjust_clock)
		return 0;
	if (c->clock.flags & KVM_CLOCK_REALTIME) {
		/* The kernel adds what has passed since, at the instant it sets the
		 * clock. */
		now.flags = KVM_CLOCK_REALTIME;
		now.realtime = c->clock.realtime;
	} else {
		now.clock += io_now_ns() - c->taken_ns;
	}
	return kvm_set_clock(vm_fd, &now, e);
}

uint64_t
state_tsc_lost(const struct state_clock *c, const struct state_plan *plan, uint64_t now_ns,
	uint64_t now_tsc)
{
	const unsigned __int128 passed =
		(unsigned __int128)(now_ns - c->taken_ns) * (unsigned)plan->tsc_khz / 1000000;
	/* A second, and what two clocks may differ by. */
	const uint64_t slack = (uint64_t)plan->tsc_khz * 1000 + (uint64_t)(passed / 256);
	const uint64_t lost = c->taken_tsc + (uint64_t)passed - now_tsc;

	if (!plan->tsc_khz || (int64_t)lost < 0 || lost <= slack)
		return 0;
	return lost;
}

void
state_follow_host(struct vcpu_state *s, const struct state_plan *plan, uint64_t lost)
{
	if (s->tsc_khz && plan->tsc_khz && s->tsc_khz != plan->tsc_khz)
		lost = (uint64_t)((unsigned __int128)lost * (unsigned)s->tsc_khz /
				  (unsigned)plan->tsc_khz);
	s->tsc_offset += lost;
}

/* What the guest's TSC was when the clock was taken. */
static int
save_guest_tsc(int vcpu_fd, const struct state_plan *plan,
	const struct state_clock *clock, struct vcpu_state *s, struct err *e)
{
	struct kvm_msr_table one = {.n = 1, .entries[0].index = STATE_MSR_TSC};
	unsigned done = 0;
	int r;

	if (plan->tsc_offset && s->tsc_khz == plan->tsc_khz) {
		s->guest_tsc = clock->taken_tsc + s->tsc_offset;
		return 0;
	}
	/* A scaled one, or a kernel that does not tell: some µs late. */
	r = kvm_get_msrs(vcpu_fd, &one, &done, e);
	if (r == 0 && done != 1)
		r = err_set(e, -EIO, "KVM_GET_MSRS: the TSC cannot be read");
	s->guest_tsc = one.entries[0].data;
	return r;
}

int
state_save_vcpu(int vcpu_fd, const struct kvm_caps *caps, const struct state_plan *plan,
	const struct state_clock *clock, const struct kvm_sync_regs *synced,
	struct vcpu_state *ret, struct err *e)
{
	unsigned done = 0;
	int r;

	/* The run state first: reading it makes KVM take pending INIT and SIPI, which
	 * changes the rest. */
	if ((r = kvm_get_mp_state(vcpu_fd, &ret->mp, e)) < 0)
		return r;
	if (synced) {
		ret->regs = synced->regs;
		ret->sregs = synced->sregs;
		ret->events = synced->events;
	} else if ((r = kvm_get_regs(vcpu_fd, &ret->regs, e)) < 0 ||
		   (r = kvm_get_sregs(vcpu_fd, &ret->sregs, e)) < 0) {
		return r;
	}
	if ((r = kvm_get_xsave(vcpu_fd, caps, &ret->xsave, e)) < 0 ||
		(r = kvm_get_xcrs(vcpu_fd, &ret->xcrs, e)) < 0 ||
		(r = kvm_get_debugregs(vcpu_fd, &ret->debugregs, e)) < 0 ||
		(r = kvm_get_lapic(vcpu_fd, &ret->lapic, e)) < 0)
		return r;

	/* Nobody but a restore changes it, and that leaves it here. */
	if (!ret->tsc_khz)
		ret->tsc_khz = kvm_get_tsc_khz(vcpu_fd, NULL);
	if (ret->tsc_khz < 0)
		ret->tsc_khz = 0;
	ret->tsc_offset = 0; /* what a fixed one is */
	if (plan->tsc_offset && !plan->tsc_fixed &&
		(r = kvm_get_tsc_offset(vcpu_fd, &ret->tsc_offset, e)) < 0)
		return r;
	if ((r = save_guest_tsc(vcpu_fd, plan, clock, ret, e)) < 0)
		return r;
	ret->msrs.n = plan->msrs.n;
	for (unsigned i = 0; i < plan->msrs.n; i++)
		ret->msrs.entries[i].index = plan->msrs.indices[i];
	if ((r = kvm_get_msrs(vcpu_fd, &ret->msrs, &done, e)) < 0)
		return r;
	if (done != plan->msrs.n)
		return err_set(e, -EIO, "KVM_GET_MSRS: MSR 0x%x cannot be read any more",
			plan->msrs.indices[done]);
	/* Events last: the calls above may have moved some. */
	return synced ? 0 : kvm_get_vcpu_events(vcpu_fd, &ret->events, e);
}

void
state_take_up_clock(struct state_clock *c)
{
	c->clock = (struct kvm_clock_data){.clock = c->clock.clock};
	c->taken_ns = io_now_ns();
	c->taken_tsc = __rdtsc();
}

int
state_take_up(struct vcpu_state *s, const struct state_plan *plan,
	const struct state_clock *c, struct err *e)
{
	if (plan->tsc_fixed && s->guest_tsc > c->taken_tsc)
		log_warn(
			"this host's KVM cannot offset a guest's TSC, and the host's stands behind the VM's: its clocks jump back");
	if (plan->tsc_offset && s->tsc_khz == plan->tsc_khz) {
		s->tsc_offset = s->guest_tsc - c->taken_tsc;
		return 0;
	}
	/* By its value: KVM finds the offset, and the same for all vCPUs that are given
	 * the same value within a second. It stands first; the deadline is last. */
	if (s->msrs.n >= KVM_MSRS_MAX)
		return err_set(e, -EBADMSG, "the state of a vCPU has too many MSRs");
	memmove(&s->msrs.entries[1], &s->msrs.entries[0],
		s->msrs.n * sizeof(s->msrs.entries[0]));
	s->msrs.entries[0] =
		(struct kvm_msr_entry){.index = STATE_MSR_TSC, .data = s->guest_tsc};
	s->msrs.n++;
	return 0;
}

int
state_forget_banks(struct vcpu_state *s, const struct kvm_caps *caps, struct err *e)
{
	const uint32_t n = caps->mce_banks * MSRS_OF_BANK;
	/* A TSC stands first; see state_take_up(). */
	const uint32_t at = s->msrs.n && s->msrs.entries[0].index == STATE_MSR_TSC;

	if (n > KVM_MSRS_MAX - s->msrs.n)
		return err_set(e, -ENOTSUP,
			"this host's KVM has %u banks of machine checks: too many to be cleared",
			caps->mce_banks);
	memmove(&s->msrs.entries[at + n], &s->msrs.entries[at],
		(s->msrs.n - at) * sizeof(s->msrs.entries[0]));
	for (uint32_t i = 0; i < n; i++)
		s->msrs.entries[at + i] = (struct kvm_msr_entry){.index = MSR_MC0_CTL + i};
	s->msrs.n += n;
	return 0;
}

/* What an MSR must be now, so that it goes on from what it was then. */
static void
bring_up_to_date(struct vcpu_state *s, const struct state_clock *clock)
{
	uint64_t tsc_then = 0, passed = __rdtsc() - clock->taken_tsc;

	for (unsigned i = 0; i < s->msrs.n; i++) {
		struct kvm_msr_entry *m = &s->msrs.entries[i];

		if (m->index == STATE_MSR_TSC) {
			m->data += passed;
			tsc_then = m->data;
		} else if (m->index == STATE_MSR_TSC_DEADLINE && m->data == 0) {
			/* Zero may mean that the timer fired and its interrupt is not yet
			 * in the LAPIC: a deadline in the past fires at once; the guest
			 * takes one tick too many for none too few. */
			m->data = tsc_then ? tsc_then : s->guest_tsc;
		}
	}
}

static bool
has_kvmclock(const struct vcpu_state *s)
{
	for (unsigned i = 0; i < s->msrs.n; i++)
		if ((s->msrs.entries[i].index == STATE_MSR_KVMCLOCK ||
			    s->msrs.entries[i].index == STATE_MSR_KVMCLOCK_NEW) &&
			(s->msrs.entries[i].data & 1))
			return true;
	return false;
}

static int
load_tsc(int vcpu_fd, const struct state_plan *plan, const struct vcpu_state *s,
	struct err *e)
{
	int r;

	if (s->tsc_khz && plan->tsc_khz && s->tsc_khz != plan->tsc_khz &&
		(r = kvm_set_tsc_khz(vcpu_fd, s->tsc_khz, e)) < 0)
		return r;
	/* A value among the MSRs says it otherwise. */
	if (!plan->tsc_offset || plan->tsc_fixed ||
		(s->msrs.n && s->msrs.entries[0].index == STATE_MSR_TSC))
		return 0;
	return kvm_set_tsc_offset(vcpu_fd, s->tsc_offset, e);
}

/* For a KVM that does not know it (before Linux 4.20): an exception that was pending is
 * delivered as if it had been injected, without what it brings along in CR2 or DR6. */
static void
drop_payload(struct kvm_vcpu_events *events)
{
	events->flags &= ~(uint32_t)KVM_VCPUEVENT_VALID_PAYLOAD;
	events->exception.injected |= events->exception.pending;
	events->exception.pending = 0;
}

#define LAPIC_LVTT 0x320u /* the timer's entry: its mode */
#define LAPIC_TMICT 0x380u /* its initial count */
#define LVTT_MODE (3u << 17)
#define LVTT_DEADLINE (2u << 17)

static uint32_t
lapic_register(const struct kvm_lapic_state *s, unsigned at)
{
	uint32_t value;

	memcpy(&value, s->regs + at, sizeof(value));
	return value;
}

/*
 * Where the timer's mode changes between TSC deadline and another one, KVM takes the load of the
 * LAPIC for a guest's write of the mode, and forgets the initial count that it was just given
 * (the kernel's apic_update_lvtt()): the timer would stand. The second load changes no mode. A
 * vCPU that never ran counts as one-shot.
 */
static int
load_lapic(int vcpu_fd, const struct kvm_lapic_state *s, struct err *e)
{
	int r = kvm_set_lapic(vcpu_fd, s, e);

	if (r == 0 && (lapic_register(s, LAPIC_LVTT) & LVTT_MODE) != LVTT_DEADLINE &&
		lapic_register(s, LAPIC_TMICT))
		r = kvm_set_lapic(vcpu_fd, s, e);
	return r;
}

int
state_load_vcpu(int vcpu_fd, const struct kvm_caps *caps, const struct state_plan *plan,
	const struct state_clock *clock, struct vcpu_state *s, struct err *e)
{
	unsigned done = 0;
	int r;

	if ((r = load_tsc(vcpu_fd, plan, s, e)) < 0)
		return r;
	/* LAPIC after SREGS (the APIC base is there), before the MSRs (the deadline needs
	 * its mode). Events last: REGS clears pending exceptions. */
	if ((r = kvm_set_mp_state(vcpu_fd, &s->mp, e)) < 0 ||
		(r = kvm_set_regs(vcpu_fd, &s->regs, e)) < 0 ||
		(r = kvm_set_sregs(vcpu_fd, &s->sregs, e)) < 0 ||
		(r = kvm_set_xsave(vcpu_fd, &s->xsave, e)) < 0 ||
		(memcmp(&s->xcrs, &plan->fresh_xcrs, sizeof(s->xcrs)) != 0 &&
			(r = kvm_set_xcrs(vcpu_fd, &s->xcrs, e)) < 0) ||
		(memcmp(&s->debugregs, &plan->fresh_debugregs, sizeof(s->debugregs)) !=
				0 &&
			(r = kvm_set_debugregs(vcpu_fd, &s->debugregs, e)) < 0) ||
		(r = load_lapic(vcpu_fd, &s->lapic, e)) < 0)
		return r;

	bring_up_to_date(s, clock);
	if (s->msrs.n && (r = kvm_set_msrs(vcpu_fd, &s->msrs, &done, e)) < 0)
		return r;
	if (done != s->msrs.n)
		return err_set(e, -EIO, "KVM_SET_MSRS: MSR 0x%x does not take 0x%llx",
			s->msrs.entries[done].index,
			(unsigned long long)s->msrs.entries[done].data);
	if (!caps->exception_payload)
		drop_payload(&s->events);
	if ((r = kvm_set_vcpu_events(vcpu_fd, &s->events, e)) < 0)
		return r;
	if (caps->kvmclock_ctrl && has_kvmclock(s))
		return kvm_kvmclock_ctrl(vcpu_fd, e);
	return 0;
}
