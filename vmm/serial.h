/*
 * COM1: a 16550A (National Semiconductor PC16550D) whose transmitter is never busy and
 * whose receiver never gets anything. What the guest sends goes to the console ring. Edge
 * interrupts.
 *
 * Called by vCPU threads; there is a lock inside.
 */
#ifndef PANDO_VMM_SERIAL_H
#define PANDO_VMM_SERIAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/wire/blob.h"
#include "common/wire/console_ring.h"
#include "vmm/irq.h"

#define SERIAL_BASE 0x3f8u
#define SERIAL_PORTS 8u
#define SERIAL_GSI 4u

struct serial {
	pthread_mutex_t lock;
	pthread_cond_t released;
	bool held;
	struct irq_line irq;
	struct console *console; /* borrowed */
	uint8_t ier, lcr, mcr, scr, dll, dlm;
	bool fifo;		/* FCR bit 0 */
	bool thr_empty_pending; /* the transmitter-empty interrupt was not yet seen in IIR
				 */
	/* What a loop-back test (MCR bit 4) sent and has not read yet. */
	uint8_t loop_byte;
	bool loop_full;
};

void serial_init(struct serial *s, struct console *console, struct irq_line irq);
/* After fork(), in the child. */
void serial_fork_child(struct serial *s, struct irq_line irq);
/* Into and out of an open section of a state blob; after serial_init(). */
void serial_save(const struct serial *s, struct blob_out *out);
int serial_load(struct serial *s, struct blob_in *in, struct err *e);
/* vCPUs are about to run again: raises a pending interrupt once more, so that a driver
 * that waits for it in the middle of a transmission does not wait for ever. */
void serial_resume(struct serial *s);
/* Between the two a guest that sends something waits: for whoever changes the console
 * under it. From any threads. */
void serial_hold(struct serial *s);
void serial_release(struct serial *s);

/* reg: port - SERIAL_BASE. */
uint8_t serial_read(struct serial *s, unsigned reg);
void serial_write(struct serial *s, unsigned reg, uint8_t value);
/* Several bytes to one register (rep outsb). */
void serial_write_many(struct serial *s, unsigned reg, const uint8_t *values, size_t n);

#endif
