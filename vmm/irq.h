/*
 * An interrupt line of a device: edge-triggered, into our IOAPIC (vmm/ioapic.h). A device
 * holds one and calls irq_raise(); it does not know who delivers. May be called from any
 * thread, with the device's lock held; it never calls back into the device.
 */
#ifndef PANDO_VMM_IRQ_H
#define PANDO_VMM_IRQ_H

struct irq_line {
	void (*raise)(void *ctx, unsigned gsi);
	void *ctx; /* borrowed */
	unsigned gsi;
};

static inline void
irq_raise(const struct irq_line *line)
{
	if (line->raise)
		line->raise(line->ctx, line->gsi);
}

#endif
