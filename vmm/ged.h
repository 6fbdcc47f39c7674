/*
 * The Generic Event Device (ACPI 6.5, 5.6.9) and the few registers that hardware-reduced
 * ACPI has: a 32-bit register of pending events that reading empties, sleep control, and
 * reset. The VM generation id's change and the power button come to the guest through it.
 *
 * Any thread may call; there is a lock inside.
 */
#ifndef PANDO_VMM_GED_H
#define PANDO_VMM_GED_H

#include <pthread.h>
#include <stdint.h>

#include "common/wire/blob.h"
#include "vmm/irq.h"

#define GED_EVENT_GENERATION 1u
#define GED_EVENT_POWER_BUTTON 2u

#define GED_PORTS 8u /* from LAYOUT_GED_EVENTS */

struct ged {
	pthread_mutex_t lock;
	struct irq_line irq;
	uint32_t events;
	/* The guest wrote power-off or reset; called without the lock. */
	void (*power_off)(void *ctx);
	void (*reset)(void *ctx);
	void *ctx; /* borrowed */
};

void ged_init(struct ged *g, struct irq_line irq, void (*power_off)(void *),
	void (*reset)(void *), void *ctx);
/* After fork(), in the child. */
void ged_fork_child(struct ged *g, struct irq_line irq, void *ctx);
/* Into and out of an open section of a state blob; after ged_init(). */
void ged_save(const struct ged *g, struct blob_out *out);
int ged_load(struct ged *g, struct blob_in *in, struct err *e);
/* vCPUs are about to run again: raises the interrupt once more if events are pending. */
void ged_resume(struct ged *g);

void ged_notify(struct ged *g, uint32_t events);

/* A guest's access; offset from LAYOUT_GED_EVENTS. Unknown registers read as ones. */
void ged_read(struct ged *g, unsigned offset, void *data, unsigned len);
void ged_write(struct ged *g, unsigned offset, const void *data, unsigned len);

#endif
