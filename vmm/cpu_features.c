#include "vmm/cpu_features.h"

#include <stdio.h>
#include <string.h>

enum reg { REG_EAX, REG_EBX, REG_ECX, REG_EDX };

/* Registers whose every bit is a feature (Intel SDM volume 2A, CPUID; AMD APM volume 3,
 * appendix E; Linux, arch/x86/include/asm/cpufeatures.h and uapi/asm/kvm_para.h). */
static const struct word {
	uint32_t leaf, index;
	enum reg reg;
	const char *names[32];
} words[] = {
	{0x1u, 0, REG_ECX, {[0] = "pni", [1] = "pclmulqdq", [2] = "dtes64", [3] = "monitor", [4] = "ds_cpl", [5] = "vmx", [6] = "smx", [7] = "est", [8] = "tm2", [9] = "ssse3", [10] = "cid", [11] = "sdbg", [12] = "fma", [13] = "cx16", [14] = "xtpr", [15] = "pdcm", [17] = "pcid", [18] = "dca", [19] = "sse4_1", [20] = "sse4_2", [21] = "x2apic", [22] = "movbe", [23] = "popcnt", [24] = "tsc_deadline_timer", [25] = "aes", [26] = "xsave", [27] = "osxsave", [28] = "avx", [29] = "f16c", [30] = "rdrand", [31] = "hypervisor"}},
	{0x1u, 0, REG_EDX, {[0] = "fpu", [1] = "vme", [2] = "de", [3] = "pse", [4] = "tsc", [5] = "msr", [6] = "pae", [7] = "mce", [8] = "cx8", [9] = "apic", [11] = "sep", [12] = "mtrr", [13] = "pge", [14] = "mca", [15] = "cmov", [16] = "pat", [17] = "pse36", [18] = "pn", [19] = "clflush", [21] = "dts", [22] = "acpi", [23] = "mmx", [24] = "fxsr", [25] = "sse", [26] = "sse2", [27] = "ss", [28] = "ht", [29] = "tm", [30] = "ia64", [31] = "pbe"}},
	{0x7u, 0, REG_EBX, {[0] = "fsgsbase", [1] = "tsc_adjust", [2] = "sgx", [3] = "bmi1", [4] = "hle", [5] = "avx2", [6] = "fdp_excptn_only", [7] = "smep", [8] = "bmi2", [9] = "erms", [10] = "invpcid", [11] = "rtm", [12] = "cqm", [13] = "zero_fcs_fds", [14] = "mpx", [15] = "rdt_a", [16] = "avx512f", [17] = "avx512dq", [18] = "rdseed", [19] = "adx", [20] = "smap", [21] = "avx512ifma", [23] = "clflushopt", [24] = "clwb", [25] = "intel_pt", [26] = "avx512pf", [27] = "avx512er", [28] = "avx512cd", [29] = "sha_ni", [30] = "avx512bw", [31] = "avx512vl"}},
	{0x7u, 0, REG_ECX, {[0] = "prefetchwt1", [1] = "avx512vbmi", [2] = "umip", [3] = "pku", [4] = "ospke", [5] = "waitpkg", [6] = "avx512_vbmi2", [7] = "shstk", [8] = "gfni", [9] = "vaes", [10] = "vpclmulqdq", [11] = "avx512_vnni", [12] = "avx512_bitalg", [13] = "tme", [14] = "avx512_vpopcntdq", [16] = "la57", [22] = "rdpid", [23] = "kl", [24] = "bus_lock_detect", [25] = "cldemote", [27] = "movdiri", [28] = "movdir64b", [29] = "enqcmd", [30] = "sgx_lc", [31] = "pks"}},
	{0x7u, 0, REG_EDX, {[1] = "sgx_keys", [2] = "avx512_4vnniw", [3] = "avx512_4fmaps", [4] = "fsrm", [5] = "uintr", [8] = "avx512_vp2intersect", [9] = "srbds_ctrl", [10] = "md_clear", [11] = "rtm_always_abort", [13] = "rtm_force_abort", [14] = "serialize", [15] = "hybrid_cpu", [16] = "tsxldtrk", [18] = "pconfig", [19] = "arch_lbr", [20] = "ibt", [22] = "amx_bf16", [23] = "avx512_fp16", [24] = "amx_tile", [25] = "amx_int8", [26] = "spec_ctrl", [27] = "stibp", [28] = "flush_l1d", [29] = "arch_capabilities", [30] = "core_capabilities", [31] = "spec_ctrl_ssbd"}},
	{0x7u, 1, REG_EAX, {[0] = "sha512", [1] = "sm3", [2] = "sm4", [3] = "rao_int", [4] = "avx_vnni", [5] = "avx512_bf16", [6] = "lass", [7] = "cmpccxadd", [8] = "arch_perfmon_ext", [10] = "fzrm", [11] = "fsrs", [12] = "fsrc", [17] = "fred", [18] = "lkgs", [19] = "wrmsrns", [21] = "amx_fp16", [22] = "hreset", [23] = "avx_ifma", [26] = "lam", [27] = "msrlist", [31] = "movrs"}},
	{0x7u, 1, REG_EDX, {[4] = "avx_vnni_int8", [5] = "avx_ne_convert", [8] = "amx_complex", [10] = "avx_vnni_int16", [14] = "prefetchi", [17] = "uiret_uif", [18] = "cet_sss", [19] = "avx10", [21] = "apx"}},
	{0x7u, 2, REG_EDX, {[0] = "psfd", [1] = "ipred_ctrl", [2] = "rrsba_ctrl", [3] = "ddpd_u", [4] = "bhi_ctrl", [5] = "mcdt_no"}},
	{0xdu, 0, REG_EAX, {[0] = "x87_state", [1] = "sse_state", [2] = "avx_state", [3] = "bndregs_state", [4] = "bndcsr_state", [5] = "opmask_state", [6] = "zmm_hi256_state", [7] = "hi16_zmm_state", [8] = "pt_state", [9] = "pkru_state", [10] = "pasid_state", [11] = "cet_u_state", [12] = "cet_s_state", [13] = "hdc_state", [14] = "uintr_state", [15] = "lbr_state", [16] = "hwp_state", [17] = "xtilecfg_state", [18] = "xtiledata_state", [19] = "apx_state"}},
	{0xdu, 1, REG_EAX, {[0] = "xsaveopt", [1] = "xsavec", [2] = "xgetbv1", [3] = "xsaves", [4] = "xfd"}},
	{0xdu, 1, REG_ECX, {[8] = "pt_xss", [10] = "pasid_xss", [11] = "cet_u_xss", [12] = "cet_s_xss", [13] = "hdc_xss", [14] = "uintr_xss", [15] = "lbr_xss", [16] = "hwp_xss"}},
	{0x80000001u, 0, REG_ECX, {[0] = "lahf_lm", [1] = "cmp_legacy", [2] = "svm", [3] = "extapic", [4] = "cr8_legacy", [5] = "abm", [6] = "sse4a", [7] = "misalignsse", [8] = "3dnowprefetch", [9] = "osvw", [10] = "ibs", [11] = "xop", [12] = "skinit", [13] = "wdt", [15] = "lwp", [16] = "fma4", [17] = "tce", [19] = "nodeid_msr", [21] = "tbm", [22] = "topoext", [23] = "perfctr_core", [24] = "perfctr_nb", [26] = "bpext", [27] = "ptsc", [28] = "perfctr_llc", [29] = "mwaitx"}},
	{0x80000001u, 0, REG_EDX, {[0] = "amd_fpu", [1] = "amd_vme", [2] = "amd_de", [3] = "amd_pse", [4] = "amd_tsc", [5] = "amd_msr", [6] = "amd_pae", [7] = "amd_mce", [8] = "amd_cx8", [9] = "amd_apic", [11] = "syscall", [12] = "amd_mtrr", [13] = "amd_pge", [14] = "amd_mca", [15] = "amd_cmov", [16] = "amd_pat", [17] = "amd_pse36", [19] = "mp", [20] = "nx", [22] = "mmxext", [23] = "amd_mmx", [24] = "amd_fxsr", [25] = "fxsr_opt", [26] = "pdpe1gb", [27] = "rdtscp", [29] = "lm", [30] = "3dnowext", [31] = "3dnow"}},
	{0x80000007u, 0, REG_EDX, {[8] = "constant_tsc"}},
	{0x80000008u, 0, REG_EBX, {[0] = "clzero", [1] = "irperf", [2] = "xsaveerptr", [3] = "rdpru", [9] = "wbnoinvd", [12] = "amd_ibpb", [14] = "amd_ibrs", [15] = "amd_stibp", [17] = "amd_stibp_always_on", [23] = "amd_ppin", [24] = "amd_ssbd", [25] = "virt_ssbd", [26] = "amd_ssb_no", [27] = "cppc", [28] = "amd_psfd", [29] = "btc_no"}},
	{0x80000021u, 0, REG_EAX, {[0] = "no_nested_data_bp", [1] = "wrmsr_xx_base_ns", [2] = "lfence_rdtsc", [6] = "null_sel_clr_base", [7] = "upper_address_ignore", [8] = "autoibrs", [9] = "no_smm_ctl_msr", [18] = "prefetchi_amd", [27] = "sbpb", [28] = "ibpb_brtype", [29] = "srso_no"}},
	{0x40000001u, 0, REG_EAX, {[0] = "kvm_clocksource", [1] = "kvm_nop_io_delay", [2] = "kvm_mmu_op", [3] = "kvm_clocksource2", [4] = "kvm_async_pf", [5] = "kvm_steal_time", [6] = "kvm_pv_eoi", [7] = "kvm_pv_unhalt", [9] = "kvm_pv_tlb_flush", [10] = "kvm_async_pf_vmexit", [11] = "kvm_pv_send_ipi", [12] = "kvm_poll_control", [13] = "kvm_pv_sched_yield", [14] = "kvm_async_pf_int", [15] = "kvm_msi_ext_dest_id", [16] = "kvm_hc_map_gpa_range", [17] = "kvm_migration_control"}},
};

static uint32_t
value(const struct kvm_cpuid_table *t, const struct word *w)
{
	for (uint32_t i = 0; i < t->n; i++) {
		const struct kvm_cpuid_entry2 *e = &t->entries[i];

		if (e->function != w->leaf || e->index != w->index)
			continue;
		switch (w->reg) {
		case REG_EAX:
			return e->eax;
		case REG_EBX:
			return e->ebx;
		case REG_ECX:
			return e->ecx;
		case REG_EDX:
			return e->edx;
		}
	}
	return 0;
}

static void
append(char *dst, size_t cap, const struct word *w, unsigned bit)
{
	static const char *const regs[] = {"EAX", "EBX", "ECX", "EDX"};
	char name[48];
	size_t used = strlen(dst), n;

	if (w->names[bit])
		snprintf(name, sizeof(name), "%s", w->names[bit]);
	else
		snprintf(name, sizeof(name), "CPUID 0x%x.%u %s bit %u", w->leaf, w->index,
			regs[w->reg], bit);
	n = strlen(name) + (used ? 2 : 0);
	/* Room for ", …" is kept, so that a list that does not fit says so. */
	if (used + n + sizeof(", …") > cap) {
		if (used + sizeof(", …") <= cap && (used < 3 || strcmp(dst + used - 3, "…")))
			strcat(dst, ", …");
		return;
	}
	snprintf(dst + used, cap - used, "%s%s", used ? ", " : "", name);
}

unsigned
cpu_features_missing(const struct kvm_cpuid_table *wanted,
	const struct kvm_cpuid_table *there, char *dst, size_t cap)
{
	unsigned n = 0;

	if (cap)
		dst[0] = 0;
	for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
		uint32_t missing = value(wanted, &words[i]) & ~value(there, &words[i]);

		for (unsigned bit = 0; missing; bit++, missing >>= 1) {
			if (!(missing & 1))
				continue;
			n++;
			if (cap)
				append(dst, cap, &words[i], bit);
		}
	}
	return n;
}
