#include "vmm/acpi.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "common/wire/vmm_wire.h"
#include "vmm/dsdt.hex"
#include "vmm/ioapic.h"
#include "vmm/layout.h"

#define PACKED __attribute__((packed))

struct acpi_header {
	char signature[4];
	uint32_t length;
	uint8_t revision;
	uint8_t checksum;
	char oem_id[6];
	char oem_table_id[8];
	uint32_t oem_revision;
	char creator_id[4];
	uint32_t creator_revision;
} PACKED;
_Static_assert(sizeof(struct acpi_header) == 36, "ACPI 6.5, 5.2.6");

struct acpi_rsdp {
	char signature[8];
	uint8_t checksum;
	char oem_id[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t length;
	uint64_t xsdt;
	uint8_t extended_checksum;
	uint8_t reserved[3];
} PACKED;
_Static_assert(sizeof(struct acpi_rsdp) == 36, "ACPI 6.5, 5.2.5.3");

struct acpi_address { /* Generic Address Structure */
	uint8_t space;
	uint8_t bit_width;
	uint8_t bit_offset;
	uint8_t access_size;
	uint64_t address;
} PACKED;
_Static_assert(sizeof(struct acpi_address) == 12, "ACPI 6.5, 5.2.3.2");

struct acpi_fadt {
	struct acpi_header header;
	uint8_t zero1[73]; /* FIRMWARE_CTRL to the fixed hardware's lengths: there is none
			    */
	uint16_t boot_arch;
	uint8_t reserved;
	uint32_t flags;
	struct acpi_address reset_register;
	uint8_t reset_value;
	uint16_t arm_boot_arch;
	uint8_t minor_version;
	uint64_t x_firmware_ctrl;
	uint64_t x_dsdt;
	struct acpi_address zero2[8]; /* PM1 events and controls, PM2, timer, GPEs */
	struct acpi_address sleep_control;
	struct acpi_address sleep_status;
	uint64_t hypervisor;
} PACKED;
_Static_assert(offsetof(struct acpi_fadt, boot_arch) == 109 &&
		       offsetof(struct acpi_fadt, flags) == 112 &&
		       offsetof(struct acpi_fadt, x_dsdt) == 140 &&
		       offsetof(struct acpi_fadt, sleep_control) == 244 &&
		       sizeof(struct acpi_fadt) == 276,
	"ACPI 6.5, 5.2.9");

#define FADT_WBINVD (1u << 0)
#define FADT_PWR_BUTTON (1u << 4) /* set: not fixed hardware */
#define FADT_SLP_BUTTON (1u << 5)
#define FADT_RESET_SUPPORTED (1u << 10)
#define FADT_HW_REDUCED (1u << 20)
#define FADT_NO_VGA (1u << 2)
#define FADT_NO_RTC (1u << 5)

struct acpi_madt {
	struct acpi_header header;
	uint32_t lapic;
	uint32_t flags; /* bit 0 clear: no 8259 */
	struct {
		uint8_t type, length, processor, apic_id;
		uint32_t flags;
	} PACKED lapics[VMM_VCPUS_MAX];
} PACKED;

struct acpi_madt_ioapic {
	uint8_t type, length, id, reserved;
	uint32_t address;
	uint32_t gsi_base;
} PACKED;

struct acpi_madt_lapic_nmi {
	uint8_t type, length, processor;
	uint16_t flags;
	uint8_t lint;
} PACKED;

static uint8_t
checksum(const void *p, size_t len)
{
	const uint8_t *bytes = p;
	uint8_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += bytes[i];
	return -sum;
}

static struct acpi_header
header(const char *signature, uint8_t revision, uint32_t length)
{
	struct acpi_header h = {.length = length,
		.revision = revision,
		.oem_revision = 1,
		.creator_revision = 1};

	memcpy(h.signature, signature, 4);
	memcpy(h.oem_id, "PANDO ", 6);
	memcpy(h.oem_table_id, "PANDO   ", 8);
	memcpy(h.creator_id, "PNDO", 4);
	return h;
}

static struct acpi_address
io_byte(uint16_t port)
{
	return (struct acpi_address){
		.space = 1, .bit_width = 8, .access_size = 1, .address = port};
}

/* Where the next table goes. */
struct place {
	const struct guest_mem *mem;
	uint64_t at;
	bool failed;
};

static uint64_t
put(struct place *p, const void *table, size_t len)
{
	uint64_t at = p->at;

	if (at + len > LAYOUT_ACPI + LAYOUT_ACPI_MAX ||
		guest_write(p->mem, (gpa_t){at}, table, len) < 0)
		p->failed = true;
	p->at = (at + len + 63) & ~63ull;
	return at;
}

static uint64_t
put_fadt(struct place *p, uint64_t dsdt)
{
	struct acpi_fadt f = {
		.header = header("FACP", 6, sizeof(f)),
		.boot_arch = FADT_NO_VGA | FADT_NO_RTC,
		.flags = FADT_WBINVD | FADT_PWR_BUTTON | FADT_SLP_BUTTON |
			 FADT_RESET_SUPPORTED | FADT_HW_REDUCED,
		.reset_register = io_byte(LAYOUT_RESET),
		.reset_value = LAYOUT_RESET_VALUE,
		.minor_version = 5,
		.x_dsdt = dsdt,
		.sleep_control = io_byte(LAYOUT_SLEEP_CONTROL),
		.sleep_status = io_byte(LAYOUT_SLEEP_STATUS),
	};

	memcpy(&f.hypervisor, "PANDO", 5);
	f.header.checksum = checksum(&f, sizeof(f));
	return put(p, &f, sizeof(f));
}

static uint64_t
put_madt(struct place *p, unsigned vcpus)
{
	struct {
		struct acpi_madt head;
		struct acpi_madt_ioapic ioapic;
		struct acpi_madt_lapic_nmi nmi;
	} PACKED t = {
		.head.header = header("APIC", 5, 0),
		.head.lapic = LAYOUT_LAPIC,
		.ioapic = {.type = 1, .length = sizeof(t.ioapic), .address = IOAPIC_BASE},
		.nmi = {.type = 4, .length = sizeof(t.nmi), .processor = 0xff, .lint = 1},
	};
	struct acpi_header *h = &t.head.header;

	/* All entries are there; those of absent CPUs are neither enabled nor online
	 * capable. */
	for (unsigned i = 0; i < VMM_VCPUS_MAX; i++) {
		t.head.lapics[i].length = sizeof(t.head.lapics[i]);
		t.head.lapics[i].processor = i;
		t.head.lapics[i].apic_id = i < vcpus ? i : 0xff;
		t.head.lapics[i].flags = i < vcpus;
	}
	h->length = sizeof(t);
	h->checksum = checksum(&t, sizeof(t));
	return put(p, &t, sizeof(t));
}

int
acpi_write_tables(const struct guest_mem *m, unsigned vcpus, struct err *e)
{
	struct acpi_rsdp rsdp = {.revision = 2, .length = sizeof(rsdp)};
	struct place p = {.mem = m, .at = LAYOUT_ACPI + 64};
	struct {
		struct acpi_header header;
		uint64_t tables[2];
	} PACKED xsdt = {.header = header("XSDT", 1, sizeof(xsdt))};
	uint64_t dsdt;

	dsdt = put(&p, dsdt_aml_code, sizeof(dsdt_aml_code));
	xsdt.tables[0] = put_fadt(&p, dsdt);
	xsdt.tables[1] = put_madt(&p, vcpus);
	xsdt.header.checksum = checksum(&xsdt, sizeof(xsdt));

	memcpy(rsdp.signature, "RSD PTR ", 8);
	memcpy(rsdp.oem_id, "PANDO ", 6);
	rsdp.xsdt = put(&p, &xsdt, sizeof(xsdt));
	rsdp.checksum = checksum(&rsdp, 20);
	rsdp.extended_checksum = checksum(&rsdp, sizeof(rsdp));
	if (p.failed || guest_write(m, (gpa_t){LAYOUT_ACPI}, &rsdp, sizeof(rsdp)) < 0)
		return err_set(e, -ENOSPC, "the ACPI tables do not fit at 0x%llx",
			(unsigned long long)LAYOUT_ACPI);
	return 0;
}
