/*
 * The state of a VM that KVM holds: read into plain memory at a fork, written into the
 * child's own KVM VM. Memory and devices are plain memory already (the IOAPIC is ours).
 *
 * The order of both is what makes it right (Documentation/virt/kvm/api.rst and the
 * kernel's own side effects); state.c says why at each step. Everything is preallocated.
 *
 * Clocks: a child's TSC has the same offset to the host's as the frozen fork's, and kvm-clock
 * is set forward by the time that passed since the frozen fork was taken. So wall-clock time
 * is right in every branch without anybody's help, and no monotonic clock jumps by more
 * than that branch's own pause. A restored VM's clocks go on from where they stood
 * instead: state_take_up() makes a state that is of now of one that was.
 *
 * Many hosts' TSC begins anew when they were suspended. KVM then moves the offsets of the VMs that
 * there are (the kernel's kvm_arch_enable_virtualization_cpu()), so that guests' TSCs never run
 * back. A frozen fork has no KVM VM: state_tsc_lost() finds it out, and state_follow_host() does
 * the same for its children.
 */
#ifndef PANDO_VMM_STATE_H
#define PANDO_VMM_STATE_H

#include "vmm/kvm.h"

#define STATE_MSR_TSC 0x10u
#define STATE_MSR_TSC_DEADLINE 0x6e0u
#define STATE_MSR_KVMCLOCK 0x12u /* bit 0: the guest reads it */
#define STATE_MSR_KVMCLOCK_NEW 0x4b564d01u

struct vcpu_state {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_msr_table msrs;
	uint64_t tsc_offset;
	uint64_t guest_tsc; /* when the clock was taken */
	int tsc_khz;	    /* 0: KVM does not say */
	union kvm_xsave_area xsave;
};

#define STATE_FEATURE_MSRS_MAX 64

/* What there is to save on this host; found by trying, once, before the first fork. */
struct state_plan {
	struct kvm_msr_index_table
		msrs;	 /* every one reads, and takes back what it gave */
	bool tsc_offset; /* the vCPU attribute works */
	bool tsc_fixed;	 /* setting the offset has no effect: a guest sees the host's TSC
			  */
	int tsc_khz;	 /* of a fresh vCPU: the host's */
	/* A fresh vCPU's, like most guests' own: what needs no loading. */
	struct kvm_xcrs fresh_xcrs;
	struct kvm_debugregs fresh_debugregs;
	/* Of those in msrs: what tells of the host and its microcode. KVM takes another
	 * value only of a vCPU that never ran. */
	uint32_t n_features;
	struct kvm_msr_entry
		features[STATE_FEATURE_MSRS_MAX]; /* as a fresh vCPU has them */
};

struct state_clock {
	struct kvm_clock_data clock;
	uint64_t taken_ns;  /* CLOCK_MONOTONIC of the host */
	uint64_t taken_tsc; /* of the host */
	bool valid;
};

/* A performance counter's MSR, or one that says what they can do. A guest has none (CPUID
 * and kvm_disable_pmu()), so they are not saved; of an older commit they are left out. */
bool state_is_of_counters(uint32_t index);
/* One of those, or of what else no guest has. */
bool state_is_left_out(uint32_t index);

/* fds: all vCPUs of a VM, fresh and with their CPUID set. */
int state_plan_make(int kvm_fd, const int fds[], unsigned n, const struct kvm_caps *caps,
	struct state_plan *ret, struct err *e);
/* Whether s has every MSR that this host saves, so that a vCPU which ran keeps nothing of its
 * own. */
bool state_has_all_msrs(const struct vcpu_state *s, const struct state_plan *plan);
/* Whether s has a feature MSR (see the plan) that a fresh vCPU has not so: then only a
 * vCPU that never ran takes s. */
bool state_has_other_features(const struct vcpu_state *s, const struct state_plan *plan);

/*
 * The banks of machine checks, 4 MSRs each. KVM names them in no list and lets every guest write
 * most of them, also one whose CPUID has no machine checks. A vCPU begins with zeroes there, and
 * no commit has them; after this the next state_load_vcpu() makes them such of one that ran.
 */
int state_forget_banks(struct vcpu_state *s, const struct kvm_caps *caps, struct err *e);

int state_save_clock(
	int vm_fd, const struct kvm_caps *caps, struct state_clock *ret, struct err *e);
/* By how much the host's TSC, now_tsc at now_ns, stands behind where it would be had it run on since
 * c was taken; 0: it did, or ran ahead, as one does that counts while its host is suspended. */
uint64_t state_tsc_lost(const struct state_clock *c, const struct state_plan *plan,
	uint64_t now_ns, uint64_t now_tsc);
/* s: saved when the host's TSC was ahead by so much of what it will be. */
void state_follow_host(struct vcpu_state *s, const struct state_plan *plan, uint64_t lost);
/* After every vCPU was loaded, before the first runs. */
int state_load_clock(int vm_fd, const struct kvm_caps *caps, const struct state_clock *c,
	struct err *e);

/* The vCPU does not run, and no other of its VM does. clock: just taken. synced: what the
 * last KVM_RUN left of its registers, when nothing can have changed them since; else
 * NULL. */
int state_save_vcpu(int vcpu_fd, const struct kvm_caps *caps,
	const struct state_plan *plan, const struct state_clock *clock,
	const struct kvm_sync_regs *synced, struct vcpu_state *ret, struct err *e);
/* A state from a blob (s->guest_tsc, s->tsc_khz and c->clock.clock count, no host's
 * times): from this instant on its clocks run again. For every vCPU; c is the same. */
void state_take_up_clock(struct state_clock *c);
int state_take_up(struct vcpu_state *s, const struct state_plan *plan,
	const struct state_clock *c, struct err *e);
/* fd: a fresh vCPU with its CPUID set. clock: when s was taken. s is used up. */
int state_load_vcpu(int vcpu_fd, const struct kvm_caps *caps,
	const struct state_plan *plan, const struct state_clock *clock,
	struct vcpu_state *s, struct err *e);

#endif
