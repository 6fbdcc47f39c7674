#include "vmm/boot.h"

#include <asm/bootparam.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include "common/io.h"
#include "vmm/layout.h"

#define SETUP_HEADER_OFFSET 0x1f1u
#define BOOT_FLAG 0xaa55u
#define HEADER_MAGIC 0x53726448u /* "HdrS" */
#define PROTOCOL_MIN 0x020cu
#define SECTOR 512u
#define PAGE 4096ull
#define E820_RAM 1
#define E820_RESERVED 2

_Static_assert(sizeof(struct boot_params) == 4096, "the zero page is a page");
_Static_assert(offsetof(struct boot_params, hdr) == SETUP_HEADER_OFFSET, "boot.rst");

static int
file_size(int fd, const char *what, uint64_t *ret, struct err *e)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return err_sys(e, -errno, "%s", what);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "%s is not a regular file", what);
	*ret = st.st_size;
	return 0;
}

/* Reads len bytes of the file at offset to guest memory. */
static int
load(const struct guest_mem *m, int fd, uint64_t offset, uint64_t len, uint64_t gpa,
	const char *what, struct err *e)
{
	void *p = guest_range(m, (gpa_t){gpa}, len);
	int r;

	if (!p)
		return err_set(e, -ENOMEM,
			"%s of %llu KiB does not fit into the guest's memory; give it more",
			what, (unsigned long long)(len >> 10));
	r = io_pread_full(fd, p, len, offset);
	if (r < 0)
		return err_sys(e, r, "%s: reading %llu bytes at %llu", what,
			(unsigned long long)len, (unsigned long long)offset);
	return 0;
}

/* Checks the setup header and copies what the zero page wants of it. */
static int
read_header(int fd, struct setup_header *ret, uint64_t *ret_payload, uint64_t *ret_size,
	struct err *e)
{
	/* Up to the end of the longest header that struct boot_params has room for. */
	uint8_t raw[SETUP_HEADER_OFFSET + sizeof(struct setup_header)] = {0};
	struct setup_header h;
	uint64_t size = 0, payload, header_len;
	int r = file_size(fd, "kernel", &size, e);

	if (r < 0)
		return r;
	if (size < sizeof(raw))
		return err_set(e, -EINVAL,
			"kernel is not a bzImage: it has only %llu bytes",
			(unsigned long long)size);
	r = io_pread_full(fd, raw, sizeof(raw), 0);
	if (r < 0)
		return err_sys(e, r, "kernel: reading its header");
	memcpy(&h, raw + SETUP_HEADER_OFFSET, sizeof(h));
	if (h.boot_flag != BOOT_FLAG)
		return err_set(e, -EINVAL,
			"kernel is not a bzImage: no boot signature (0x%04x at 0x1fe, not 0xaa55)",
			h.boot_flag);
	if (h.header != HEADER_MAGIC)
		return err_set(
			e, -EINVAL, "kernel is not a bzImage: no \"HdrS\" at 0x202");
	if (h.version < PROTOCOL_MIN)
		return err_set(e, -EINVAL,
			"kernel speaks boot protocol %u.%02u; 2.12 (Linux 3.8) or newer is needed",
			h.version >> 8, h.version & 0xff);
	if (!(h.loadflags & LOADED_HIGH))
		return err_set(e, -EINVAL, "kernel is a zImage; a bzImage is needed");
	if (!(h.xloadflags & XLF_KERNEL_64))
		return err_set(e, -EINVAL,
			"kernel has no 64-bit entry point; it must be an x86-64 kernel");
	payload = ((h.setup_sects ? h.setup_sects : 4u) + 1) * SECTOR;
	if (size < payload + 2 * SECTOR)
		return err_set(e, -EINVAL,
			"kernel is cut short: %llu bytes, but its setup part alone has %llu",
			(unsigned long long)size, (unsigned long long)payload);
	/* syssize counts 16-byte paragraphs of what follows the setup part. */
	if (size - payload < (uint64_t)h.syssize * 16)
		return err_set(e, -EINVAL,
			"kernel is cut short: %llu bytes follow its setup part, not %llu",
			(unsigned long long)(size - payload),
			(unsigned long long)h.syssize * 16);

	/* The header ends where its jump instruction's offset says (boot.rst, "jump"). */
	header_len = 0x202 + raw[0x201] - SETUP_HEADER_OFFSET;
	memset(ret, 0, sizeof(*ret));
	memcpy(ret, &h, header_len < sizeof(h) ? header_len : sizeof(h));
	*ret_payload = payload;
	*ret_size = size;
	return 0;
}

static void
add_e820(struct boot_params *bp, uint64_t from, uint64_t to, uint32_t type)
{
	if (to <= from)
		return;
	bp->e820_table[bp->e820_entries++] =
		(struct boot_e820_entry){.addr = from, .size = to - from, .type = type};
}

/* One identity map of the first 4 GiB in 2 MiB pages: PML4, PDPT, four page directories.
 */
static int
write_page_tables(const struct guest_mem *m)
{
	uint64_t table[512] = {0};
	uint64_t base = LAYOUT_PAGE_TABLES;

	table[0] = (base + PAGE) | 3;
	if (guest_write(m, (gpa_t){base}, table, PAGE) < 0)
		return -EFAULT;
	for (unsigned i = 0; i < 4; i++)
		table[i] = (base + (2 + i) * PAGE) | 3;
	if (guest_write(m, (gpa_t){base + PAGE}, table, PAGE) < 0)
		return -EFAULT;
	for (unsigned dir = 0; dir < 4; dir++) {
		for (uint64_t i = 0; i < 512; i++)
			table[i] =
				(dir * 512 + i) << 21 | 0x83; /* present, write, 2 MiB */
		if (guest_write(m, (gpa_t){base + (2 + dir) * PAGE}, table, PAGE) < 0)
			return -EFAULT;
	}
	return 0;
}

static int
write_gdt(const struct guest_mem *m, struct boot_entry *entry)
{
	/* __BOOT_CS 0x10 and __BOOT_DS 0x18: flat, 64-bit code, data. */
	const uint64_t gdt[4] = {0, 0, 0x00af9b000000ffffull, 0x00cf93000000ffffull};

	entry->gdt_base = LAYOUT_GDT;
	entry->gdt_limit = sizeof(gdt) - 1;
	return guest_write(m, (gpa_t){LAYOUT_GDT}, gdt, sizeof(gdt));
}

/*
 * Linux takes a hardware-reduced machine for one with EFI, does not try ACPI's reset
 * register, finds no EFI, and at last jumps to the BIOS's reset vector in real mode.
 * There it finds this: mov $LAYOUT_RESET, %dx; mov $LAYOUT_RESET_VALUE, %al; out %al,
 * %dx; cli; hlt; and again.
 */
static int
write_reset_vector(const struct guest_mem *m)
{
	const uint8_t code[] = {0xba, LAYOUT_RESET & 0xff, LAYOUT_RESET >> 8, 0xb0,
		LAYOUT_RESET_VALUE, 0xee, 0xfa, 0xf4, 0xeb, 0xfc};

	return guest_write(m, (gpa_t){LAYOUT_RESET_VECTOR}, code, sizeof(code));
}

int
boot_load(const struct guest_mem *m, int kernel_fd, int initrd_fd, const char *cmdline,
	struct boot_entry *ret, struct err *e)
{
	struct boot_params bp = {0};
	struct boot_entry entry = {0};
	uint64_t payload = 0, size = 0, end, initrd_size = 0, initrd_at = 0, top;
	size_t cmdline_len = strlen(cmdline);
	int r;

	r = read_header(kernel_fd, &bp.hdr, &payload, &size, e);
	if (r < 0)
		return r;
	if (cmdline_len > bp.hdr.cmdline_size)
		return err_set(e, -E2BIG,
			"kernel takes a command line of at most %u bytes; this one has %zu",
			bp.hdr.cmdline_size, cmdline_len);

	r = load(m, kernel_fd, payload, size - payload, LAYOUT_KERNEL, "kernel", e);
	if (r < 0)
		return r;
	/* Where the kernel unpacks itself: nothing else may be there. */
	end = LAYOUT_KERNEL > bp.hdr.pref_address ? LAYOUT_KERNEL : bp.hdr.pref_address;
	if (end > m->low_len || bp.hdr.init_size > m->low_len - end)
		return err_set(e, -ENOMEM,
			"kernel needs %llu MiB to unpack itself; the guest has %llu MiB",
			(unsigned long long)((end + bp.hdr.init_size) >> 20) + 1,
			(unsigned long long)(m->low_len >> 20));
	end += bp.hdr.init_size;
	if (end < LAYOUT_KERNEL + size - payload)
		end = LAYOUT_KERNEL + size - payload;

	if (initrd_fd >= 0) {
		r = file_size(initrd_fd, "initrd", &initrd_size, e);
		if (r < 0)
			return r;
		top = (uint64_t)bp.hdr.initrd_addr_max + 1;
		if (top > m->low_len)
			top = m->low_len;
		if (initrd_size > UINT32_MAX || initrd_size > top ||
			((top - initrd_size) & ~(PAGE - 1)) < end)
			return err_set(e, -ENOMEM,
				"initrd of %llu MiB does not fit beside the kernel in %llu MiB of guest memory; give it more",
				(unsigned long long)(initrd_size >> 20),
				(unsigned long long)((m->low_len + m->high_len) >> 20));
		initrd_at = (top - initrd_size) & ~(PAGE - 1);
		r = load(m, initrd_fd, 0, initrd_size, initrd_at, "initrd", e);
		if (r < 0)
			return r;
	}

	bp.hdr.type_of_loader = 0xff; /* none that is registered */
	bp.hdr.vid_mode = 0xffff;     /* normal */
	bp.hdr.cmd_line_ptr = LAYOUT_CMDLINE;
	bp.hdr.ramdisk_image = (uint32_t)initrd_at;
	bp.hdr.ramdisk_size = (uint32_t)initrd_size;
	bp.acpi_rsdp_addr = LAYOUT_ACPI;
	add_e820(&bp, 0, LAYOUT_LOW_END, E820_RAM);
	add_e820(&bp, LAYOUT_LOW_END, LAYOUT_KERNEL, E820_RESERVED);
	add_e820(&bp, LAYOUT_KERNEL, m->low_len, E820_RAM);
	add_e820(&bp, GUEST_HIGH_BASE, GUEST_HIGH_BASE + m->high_len, E820_RAM);

	if (guest_write(m, (gpa_t){LAYOUT_ZERO_PAGE}, &bp, sizeof(bp)) < 0 ||
		guest_write(m, (gpa_t){LAYOUT_CMDLINE}, cmdline, cmdline_len + 1) < 0 ||
		write_page_tables(m) < 0 || write_gdt(m, &entry) < 0 ||
		write_reset_vector(m) < 0)
		return err_set(e, -EFAULT, "the guest's memory is too small to boot in");

	entry.rip = LAYOUT_KERNEL + 0x200;
	entry.rsi = LAYOUT_ZERO_PAGE;
	entry.rsp = LAYOUT_STACK_TOP;
	entry.cr3 = LAYOUT_PAGE_TABLES;
	*ret = entry;
	return 0;
}

void
boot_registers(
	const struct boot_entry *entry, struct kvm_regs *regs, struct kvm_sregs *sregs)
{
	struct kvm_segment code = {.limit = 0xffffffff,
		.selector = 0x10,
		.type = 11,
		.present = 1,
		.s = 1,
		.l = 1,
		.g = 1};
	struct kvm_segment data = {.limit = 0xffffffff,
		.selector = 0x18,
		.type = 3,
		.present = 1,
		.s = 1,
		.db = 1,
		.g = 1};
	struct kvm_segment tss = {.limit = 0x67, .type = 11, .present = 1};

	*regs = (struct kvm_regs){
		.rip = entry->rip,
		.rsi = entry->rsi,
		.rsp = entry->rsp,
		.rflags = 2,
	};
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->ss = sregs->fs = sregs->gs = data;
	sregs->tr = tss;
	sregs->gdt.base = entry->gdt_base;
	sregs->gdt.limit = entry->gdt_limit;
	sregs->idt.base = 0;
	sregs->idt.limit = 0;
	sregs->cr3 = entry->cr3;
	sregs->cr4 = 0x20;		/* PAE */
	sregs->cr0 = 0x80000000 | 0x31; /* PG, NE, ET, PE */
	sregs->efer = 0x500;		/* LMA, LME */
}
