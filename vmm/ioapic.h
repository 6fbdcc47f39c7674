/*
 * The IOAPIC (Intel 82093AA), ours because KVM's own would cost every fork a grace period
 * (vmm/kvm.h). 24 pins at IOAPIC_BASE; an interrupt that it delivers becomes a message to
 * the in-kernel LAPICs.
 *
 * All our lines are edges. An edge that comes while its pin is masked is remembered and
 * delivered when the guest unmasks it: the real chip loses it, but a fork may fall
 * between the two. A pin that the guest programs as level-triggered works too: it is
 * delivered once, and once more at the guest's EOI if another edge came meanwhile.
 *
 * Any thread may call; there is a lock inside, held during the delivery.
 */
#ifndef PANDO_VMM_IOAPIC_H
#define PANDO_VMM_IOAPIC_H

#include <pthread.h>
#include <stdint.h>

#include "common/wire/blob.h"

#define IOAPIC_BASE 0xfec00000ull
#define IOAPIC_SIZE 0x1000u
#define IOAPIC_PINS 24u

/* Where messages go; vm.c gives it KVM, a test gives it a list. */
struct ioapic_sink {
	/* 0, or negative: not delivered, ask again with ioapic_resume(). */
	int (*message)(void *ctx, uint64_t address, uint32_t data);
	/* The set of level-triggered, unmasked pins or their messages changed: KVM must
	 * know them to report their EOIs. n entries; may be NULL. */
	void (*levels)(void *ctx, unsigned n, const unsigned *pins,
		const uint64_t *addresses, const uint32_t *data);
	void *ctx; /* borrowed */
};

struct ioapic {
	pthread_mutex_t lock;
	struct ioapic_sink sink;
	uint32_t select; /* IOREGSEL */
	uint32_t id;
	uint64_t entry[IOAPIC_PINS];
	uint32_t pending; /* a bit a pin: an edge not delivered yet */
};

void ioapic_init(struct ioapic *io, struct ioapic_sink sink);
/* After fork(), in the child: a fresh lock and the child's sink. */
void ioapic_fork_child(struct ioapic *io, struct ioapic_sink sink);
/* Into and out of an open section of a state blob; after ioapic_init(). */
void ioapic_save(const struct ioapic *io, struct blob_out *out);
int ioapic_load(struct ioapic *io, struct blob_in *in, struct err *e);
/* As ioapic_init() left it; ioapic_load() comes next, in a VM that is reset. */
void ioapic_forget(struct ioapic *io);
/* The sink works (again): tells it the level pins and delivers what is pending. */
void ioapic_resume(struct ioapic *io);

/* An edge on pin gsi; irq_line.raise with ctx = the ioapic. */
void ioapic_raise(void *ioapic, unsigned gsi);
/* KVM_EXIT_IOAPIC_EOI. */
void ioapic_eoi(struct ioapic *io, uint8_t vector);

/* Guest accesses: offset below IOAPIC_SIZE, any len (other than 4 reads zero, writes
 * nothing). */
void ioapic_read(struct ioapic *io, uint64_t offset, void *data, unsigned len);
void ioapic_write(struct ioapic *io, uint64_t offset, const void *data, unsigned len);

#endif
