/*
 * What Linux finds by ACPI: the serial port, four virtio-mmio devices, the VM generation id and the
 * power button. The numbers are those of vmm/layout.h. Hardware-reduced: events come through the
 * Generic Event Device (ACPI 6.5, 5.6.9), there is no fixed hardware.
 */
DefinitionBlock ("", "DSDT", 2, "PANDO", "PANDO", 1)
{
	/* Sleep type 5: what vmm/ged.c takes for power-off (the sleep control register). */
	Name (_S5, Package () { 5, 5, 0, 0 })

	Scope (\_SB)
	{
		Device (COM1)
		{
			Name (_HID, EisaId ("PNP0501"))
			Name (_UID, 1)
			Name (_CRS, ResourceTemplate () {
				IO (Decode16, 0x3f8, 0x3f8, 1, 8)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 }
			})
		}

		Device (VIO0)
		{
			Name (_HID, "LNRO0005")
			Name (_UID, 0)
			Name (_CCA, 1)
			Name (_CRS, ResourceTemplate () {
				Memory32Fixed (ReadWrite, 0xd0000000, 0x1000)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 5 }
			})
		}

		Device (VIO1)
		{
			Name (_HID, "LNRO0005")
			Name (_UID, 1)
			Name (_CCA, 1)
			Name (_CRS, ResourceTemplate () {
				Memory32Fixed (ReadWrite, 0xd0001000, 0x1000)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 6 }
			})
		}

		Device (VIO2)
		{
			Name (_HID, "LNRO0005")
			Name (_UID, 2)
			Name (_CCA, 1)
			Name (_CRS, ResourceTemplate () {
				Memory32Fixed (ReadWrite, 0xd0002000, 0x1000)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 7 }
			})
		}

		Device (VIO3)
		{
			Name (_HID, "LNRO0005")
			Name (_UID, 3)
			Name (_CCA, 1)
			Name (_CRS, ResourceTemplate () {
				Memory32Fixed (ReadWrite, 0xd0003000, 0x1000)
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 8 }
			})
		}

		/* Linux (drivers/virt/vmgenid.c) matches the upper-case spelling of the specification's
		 * over-long id, and VMGENCTR. */
		Device (VGEN)
		{
			Name (_HID, "PNDO0001")
			Name (_CID, Package () { "VM_GEN_COUNTER", "VMGENCTR" })
			Name (_DDN, "VM_Gen_Counter")
			Name (ADDR, Package () { 0x000ff000, 0 })
		}

		Device (PWRB)
		{
			Name (_HID, EisaId ("PNP0C0C"))
			Name (_UID, 0)
		}

		Device (GED0)
		{
			Name (_HID, "ACPI0013")
			Name (_UID, 0)
			Name (_CRS, ResourceTemplate () {
				Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 9 }
			})
			OperationRegion (EVTS, SystemIO, 0x600, 4)
			Field (EVTS, DWordAcc, NoLock, WriteAsZeros)
			{
				ESEL, 32 /* reading takes all pending events */
			}
			Method (_EVT, 1, Serialized)
			{
				Local0 = ESEL
				If (Local0 & 1)
				{
					Notify (\_SB.VGEN, 0x80)
				}
				If (Local0 & 2)
				{
					Notify (\_SB.PWRB, 0x80)
				}
			}
		}
	}
}
