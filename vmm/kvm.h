/*
 * KVM, and nothing else: this is the only file that calls its ioctls, one small function
 * each. A failure comes back as a negative errno and a sentence that names the call and
 * its arguments.
 *
 * Facts the callers rely on (Linux 6.x; Documentation/virt/kvm/api.rst):
 * - VM and vCPU descriptors belong to the mm that made them; after fork() they are good
 * for nothing but close().
 * - Whatever registers on KVM's in-kernel I/O bus (PIC, IOAPIC, PIT, ioeventfd) makes the
 * next memory slot wait for a whole SRCU grace period (milliseconds). Hence the split
 * interrupt controller: LAPICs in the kernel, the IOAPIC in vmm/ioapic.c, doorbells as
 * MMIO exits.
 * - kvm_create_split_irqchip() comes before the first vCPU.
 * - On Intel KVM maps pages of its own into the process (for real mode, and for the page
 * at the local APIC's address), and unmaps them when the VM's last descriptor is closed
 * in that process, but not in a forked one. kvm_set_tss_addr() and kvm_create_vcpu() keep
 * them out of forked children; so they are called by one thread, with no other that maps
 * memory.
 */
#ifndef PANDO_VMM_KVM_H
#define PANDO_VMM_KVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/kvm.h>

#include "common/err.h"
#include "common/wire/cpu_features.h"

#define KVM_MSRS_MAX 320    /* of one vCPU, saved at a fork */
#define KVM_XSAVE_MAX 16384 /* bytes; AVX-512 needs 2.7 KiB, AMX 11 KiB */

/* The kernel's structs end in flexible arrays; these are the same with room in them. */
struct kvm_msr_table { /* struct kvm_msrs */
	uint32_t n;
	uint32_t pad;
	struct kvm_msr_entry entries[KVM_MSRS_MAX];
};

struct kvm_msr_index_table { /* struct kvm_msr_list */
	uint32_t n;
	uint32_t indices[KVM_MSRS_MAX];
};
_Static_assert(
	offsetof(struct kvm_cpuid_table, entries) == sizeof(struct kvm_cpuid2) &&
		offsetof(struct kvm_msr_table, entries) == sizeof(struct kvm_msrs) &&
		offsetof(struct kvm_msr_index_table, indices) ==
			sizeof(struct kvm_msr_list),
	"kernel ABI");

union kvm_xsave_area {
	struct kvm_xsave head; /* 4096 bytes and a flexible rest */
	uint8_t bytes[KVM_XSAVE_MAX];
};

/* What this host's KVM can do; asked once. */
struct kvm_caps {
	int api_version;
	size_t run_size;   /* bytes of a vCPU's shared page(s) */
	size_t xsave_size; /* bytes KVM_GET_XSAVE2 writes; 4096 with the old call */
	unsigned max_vcpus;
	bool split_irqchip;
	bool signal_msi;
	bool xsave2;
	bool immediate_exit;
	bool user_memory;
	bool vcpu_attributes; /* KVM_VCPU_TSC_OFFSET may be there */
	bool tsc_deadline_timer;
	bool adjust_clock;
	bool kvmclock_ctrl;
	bool msr_features; /* KVM_GET_MSR_FEATURE_INDEX_LIST */
	bool pmu_capability;
	bool exception_payload;
	unsigned mce_banks; /* that a vCPU has unless it is told otherwise */
	uint64_t sync_regs; /* KVM_SYNC_X86_*: all of registers, special registers and
			       events, or 0 */
};

/* kvm_fd is /dev/kvm throughout. */
int kvm_read_caps(int kvm_fd, struct kvm_caps *ret, struct err *e);
/* What the VMM cannot do without, each with its sentence. */
int kvm_check_caps(const struct kvm_caps *caps, struct err *e);
int kvm_get_supported_cpuid(int kvm_fd, struct kvm_cpuid_table *ret, struct err *e);
int kvm_get_msr_index_list(int kvm_fd, struct kvm_msr_index_table *ret, struct err *e);
/* Those that tell of the CPU and its microcode; of caps->msr_features. */
int kvm_get_msr_feature_index_list(
	int kvm_fd, struct kvm_msr_index_table *ret, struct err *e);
int kvm_create_vm(int kvm_fd, int *ret_vm_fd, struct err *e);

int kvm_set_tss_addr(int vm_fd, uint64_t gpa, struct err *e);
int kvm_set_identity_map_addr(int vm_fd, uint64_t gpa, struct err *e);
int kvm_create_split_irqchip(int vm_fd, unsigned pins, struct err *e);
/* No performance counters, not even those that AMD's CPUs have without CPUID saying so.
 * Before the first vCPU; of caps->pmu_capability. */
int kvm_disable_pmu(int vm_fd, struct err *e);
/* The events of a vCPU tell a pending exception with its payload (CR2, DR6) from one that
 * was injected; of caps->exception_payload. */
int kvm_enable_exception_payload(int vm_fd, struct err *e);
int kvm_set_memory(
	int vm_fd, unsigned slot, uint64_t gpa, void *host, uint64_t len, struct err *e);
int kvm_create_vcpu(int vm_fd, unsigned id, int *ret_vcpu_fd, struct err *e);
int kvm_signal_msi(int vm_fd, uint64_t address, uint32_t data, struct err *e);
int kvm_set_gsi_routing(int vm_fd, const struct kvm_irq_routing *routes, struct err *e);
int kvm_get_clock(int vm_fd, struct kvm_clock_data *ret, struct err *e);
int kvm_set_clock(int vm_fd, const struct kvm_clock_data *clock, struct err *e);

/* Maps the vCPU's shared pages; they are kept out of forked children. */
int kvm_map_run(int vcpu_fd, size_t run_size, struct kvm_run **ret, struct err *e);
/* Raw: 0 or -errno, -EINTR and -EAGAIN among the usual ones; the sentence is the
 * caller's. */
int kvm_run(int vcpu_fd);
int kvm_set_cpuid(int vcpu_fd, const struct kvm_cpuid_table *cpuid, struct err *e);
int kvm_get_mp_state(int vcpu_fd, struct kvm_mp_state *ret, struct err *e);
int kvm_set_mp_state(int vcpu_fd, const struct kvm_mp_state *s, struct err *e);
int kvm_get_regs(int vcpu_fd, struct kvm_regs *ret, struct err *e);
int kvm_set_regs(int vcpu_fd, const struct kvm_regs *s, struct err *e);
int kvm_get_sregs(int vcpu_fd, struct kvm_sregs *ret, struct err *e);
int kvm_set_sregs(int vcpu_fd, const struct kvm_sregs *s, struct err *e);
int kvm_get_xsave(int vcpu_fd, const struct kvm_caps *caps, union kvm_xsave_area *ret,
	struct err *e);
int kvm_set_xsave(int vcpu_fd, const union kvm_xsave_area *s, struct err *e);
int kvm_get_xcrs(int vcpu_fd, struct kvm_xcrs *ret, struct err *e);
int kvm_set_xcrs(int vcpu_fd, const struct kvm_xcrs *s, struct err *e);
int kvm_get_debugregs(int vcpu_fd, struct kvm_debugregs *ret, struct err *e);
int kvm_set_debugregs(int vcpu_fd, const struct kvm_debugregs *s, struct err *e);
int kvm_get_lapic(int vcpu_fd, struct kvm_lapic_state *ret, struct err *e);
int kvm_set_lapic(int vcpu_fd, const struct kvm_lapic_state *s, struct err *e);
/* n entries from first on. The count done may be short: *ret_done says where it stopped,
 * and then the result is 0 all the same (the caller knows what may be missing). */
int kvm_get_msrs(
	int vcpu_fd, struct kvm_msr_table *msrs, unsigned *ret_done, struct err *e);
int kvm_set_msrs(
	int vcpu_fd, const struct kvm_msr_table *msrs, unsigned *ret_done, struct err *e);
int kvm_get_vcpu_events(int vcpu_fd, struct kvm_vcpu_events *ret, struct err *e);
int kvm_set_vcpu_events(int vcpu_fd, const struct kvm_vcpu_events *s, struct err *e);
int kvm_get_tsc_khz(int vcpu_fd, struct err *e); /* kHz, or negative errno */
int kvm_set_tsc_khz(int vcpu_fd, unsigned khz, struct err *e);
/* -ENXIO where the kernel has no such attribute. */
int kvm_get_tsc_offset(int vcpu_fd, uint64_t *ret, struct err *e);
int kvm_set_tsc_offset(int vcpu_fd, uint64_t offset, struct err *e);
/* Tells the guest that it was paused, so that its watchdogs forgive; a guest without
 * kvm-clock has nothing to be told (0 then too). */
int kvm_kvmclock_ctrl(int vcpu_fd, struct err *e);

/* Every request number above, for the system call filter (vmm/seal.c). */
extern const unsigned long kvm_ioctl_numbers[];
extern const size_t kvm_n_ioctl_numbers;

#endif
