/*
 * The Linux x86-64 boot protocol (Documentation/arch/x86/boot.rst), 64-bit entry: reads a
 * bzImage and an initrd into guest memory and writes what the kernel is told: zero page,
 * e820, command line, page tables, GDT. The tables of ACPI are vmm/acpi.c's.
 *
 * Any bzImage of protocol 2.12 or newer with a 64-bit entry point will do, Linux or not.
 * It is entered at LAYOUT_KERNEL + 0x200 with paging on (the first 4 GiB mapped to
 * themselves), the flat segments the protocol asks for, interrupts off, and the zero
 * page's address in RSI.
 */
#ifndef PANDO_VMM_BOOT_H
#define PANDO_VMM_BOOT_H

#include <linux/kvm.h>

#include "common/err.h"
#include "vmm/memory.h"

struct boot_entry {
	uint64_t rip, rsi, rsp;
	uint64_t cr3;
	uint64_t gdt_base;
	uint16_t gdt_limit;
};

/* initrd_fd -1: none. The kernel and initrd files are hostile input: every size and
 * offset in them is checked, and each failure is a sentence that starts with "kernel " or
 * "initrd ". */
int boot_load(const struct guest_mem *m, int kernel_fd, int initrd_fd,
	const char *cmdline, struct boot_entry *ret, struct err *e);

/* Changes a fresh vCPU's registers to what the kernel expects at its entry. */
void boot_registers(
	const struct boot_entry *entry, struct kvm_regs *regs, struct kvm_sregs *sregs);

#endif
