/*
 * ACPI tables (ACPI 6.5, chapter 5), hardware-reduced: RSDP, XSDT, FADT, MADT, and the
 * DSDT that iasl compiled from vmm/dsdt.asl. Written to LAYOUT_ACPI before the first
 * instruction of a boot; a branch has them in its memory.
 */
#ifndef PANDO_VMM_ACPI_H
#define PANDO_VMM_ACPI_H

#include "common/err.h"
#include "vmm/memory.h"

/* The RSDP is at LAYOUT_ACPI. */
int acpi_write_tables(const struct guest_mem *m, unsigned vcpus, struct err *e);

#endif
