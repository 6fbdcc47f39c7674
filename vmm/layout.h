/*
 * Where things lie in the guest's physical address space and on its I/O ports. vmm/dsdt.asl repeats
 * the numbers that the guest's drivers need.
 *
 *   0x00000500  GDT                        0x00020000  command line
 *   0x00007000  zero page                  0x000e0000  RSDP and ACPI tables (e820: reserved)
 *   0x00009000  page tables (6 pages)      0x000ff000  VM generation id (reserved)
 *                                          0x000ffff0  reset vector (reserved)
 *   0x00100000  kernel; the initrd as high as it may be
 *   RAM up to 3 GiB | 0xd0000000 virtio-mmio | 0xfec00000 IOAPIC | 0xfee00000 LAPIC | RAM from 4 GiB
 */
#ifndef PANDO_VMM_LAYOUT_H
#define PANDO_VMM_LAYOUT_H

#define LAYOUT_GDT 0x500ull
#define LAYOUT_ZERO_PAGE 0x7000ull
#define LAYOUT_STACK_TOP 0x8ff0ull
#define LAYOUT_PAGE_TABLES 0x9000ull
#define LAYOUT_CMDLINE 0x20000ull
#define LAYOUT_LOW_END 0x9fc00ull /* RAM that e820 gives to the kernel below 1 MiB */
#define LAYOUT_ACPI 0xe0000ull
#define LAYOUT_ACPI_MAX 0x10000ull
#define LAYOUT_GENERATION 0xff000ull
#define LAYOUT_RESET_VECTOR 0xffff0ull /* f000:fff0 in real mode */
#define LAYOUT_KERNEL 0x100000ull

#define LAYOUT_VIRTIO 0xd0000000ull
#define LAYOUT_VIRTIO_STRIDE 0x1000ull
#define LAYOUT_VIRTIO_GSI 5u
enum layout_virtio_slot {
	LAYOUT_BLK,
	LAYOUT_VSOCK,
	LAYOUT_RNG,
	LAYOUT_BALLOON,
	LAYOUT_VIRTIO_COUNT
};

#define LAYOUT_LAPIC 0xfee00000ull
/* Three pages and one that old Intel CPUs want for real mode. */
#define LAYOUT_IDENTITY_MAP 0xfffbc000ull
#define LAYOUT_TSS 0xfffbd000ull

#define LAYOUT_GED_EVENTS 0x600u    /* 32 bits: reading takes the pending events */
#define LAYOUT_SLEEP_CONTROL 0x604u /* 8 bits (ACPI 6.5, 4.8.3.7) */
#define LAYOUT_SLEEP_STATUS 0x605u
#define LAYOUT_RESET 0x606u
#define LAYOUT_RESET_VALUE 0x42u
#define LAYOUT_SLEEP_TYPE_OFF 5u
#define LAYOUT_GED_GSI 9u
/* Nobody is there. Not port 0x80, the usual one for this: KVM before Linux 4.15 let guests on
 * Intel reach the host's own (CVE-2017-1000407), and so they did not leave at it. */
#define LAYOUT_PORT_OF_NOBODY 0xf4u

#endif
