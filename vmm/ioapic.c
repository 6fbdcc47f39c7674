#include "vmm/ioapic.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define REG_SELECT 0x00
#define REG_WINDOW 0x10

#define INDEX_ID 0x00
#define INDEX_VERSION 0x01
#define INDEX_ARBITRATION 0x02
#define INDEX_ENTRIES 0x10

#define VERSION 0x11u /* no EOI register: EOIs come from the LAPIC */

#define ID_WRITABLE 0x0f000000u
#define ENTRY_VECTOR(e) ((uint8_t)(e))
#define ENTRY_REMOTE_IRR (1ull << 14)
#define ENTRY_LEVEL (1ull << 15)
#define ENTRY_MASKED (1ull << 16)
#define ENTRY_READ_ONLY (ENTRY_REMOTE_IRR | 1ull << 12)
/* Vector, modes, polarity, trigger, mask, destination; the rest is reserved. */
#define ENTRY_WRITABLE \
	(0xff000000000000ffull | 0x700ull | 1ull << 11 | 1ull << 13 | ENTRY_LEVEL | \
		ENTRY_MASKED)

static uint64_t
message_address(uint64_t entry)
{
	uint64_t destination = entry >> 56, logical = entry >> 11 & 1;

	return 0xfee00000ull | destination << 12 | logical << 2;
}

static uint32_t
message_data(uint64_t entry)
{
	uint32_t mode = entry >> 8 & 7, level = !!(entry & ENTRY_LEVEL);

	return ENTRY_VECTOR(entry) | mode << 8 | 1u << 14 | level << 15;
}

/* Delivers pin's pending edge if it can be delivered now. */
static void
deliver(struct ioapic *io, unsigned pin)
{
	uint64_t entry = io->entry[pin];

	if (!(io->pending >> pin & 1) || (entry & ENTRY_MASKED))
		return;
	if ((entry & ENTRY_LEVEL) && (entry & ENTRY_REMOTE_IRR))
		return; /* at the EOI */
	if (!io->sink.message || io->sink.message(io->sink.ctx, message_address(entry),
					 message_data(entry)) < 0)
		return;
	io->pending &= ~(1u << pin);
	if (entry & ENTRY_LEVEL)
		io->entry[pin] |= ENTRY_REMOTE_IRR;
}

static bool
is_live_level(uint64_t entry)
{
	return (entry & ENTRY_LEVEL) && !(entry & ENTRY_MASKED);
}

static void
tell_levels(struct ioapic *io)
{
	unsigned pins[IOAPIC_PINS], n = 0;
	uint64_t addresses[IOAPIC_PINS];
	uint32_t data[IOAPIC_PINS];

	if (!io->sink.levels)
		return;
	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		if (!is_live_level(io->entry[i]))
			continue;
		pins[n] = i;
		addresses[n] = message_address(io->entry[i]);
		data[n++] = message_data(io->entry[i]);
	}
	io->sink.levels(io->sink.ctx, n, pins, addresses, data);
}

static void
reset_lock(struct ioapic *io)
{
	pthread_mutex_init(&io->lock, NULL);
}

void
ioapic_init(struct ioapic *io, struct ioapic_sink sink)
{
	*io = (struct ioapic){.sink = sink};
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		io->entry[i] = ENTRY_MASKED;
	reset_lock(io);
}

void
ioapic_fork_child(struct ioapic *io, struct ioapic_sink sink)
{
	io->sink = sink;
	reset_lock(io);
}

void
ioapic_save(const struct ioapic *io, struct blob_out *out)
{
	blob_put_u32(out, io->select);
	blob_put_u32(out, io->id);
	blob_put_u32(out, io->pending);
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		blob_put_u64(out, io->entry[i]);
}

int
ioapic_load(struct ioapic *io, struct blob_in *in, struct err *e)
{
	bool bad;

	io->select = blob_get_u32(in);
	io->id = blob_get_u32(in);
	io->pending = blob_get_u32(in);
	bad = io->select > 0xff || (io->id & ~ID_WRITABLE) || io->pending >> IOAPIC_PINS;
	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		uint64_t entry = io->entry[i] = blob_get_u64(in);

		bad |= entry & ~(ENTRY_WRITABLE | ENTRY_REMOTE_IRR);
		bad |= (entry & ENTRY_REMOTE_IRR) && !(entry & ENTRY_LEVEL);
	}
	if (bad)
		return err_set(e, -EBADMSG,
			"the state of the interrupt controller has bits that cannot be set");
	return 0;
}

void
ioapic_forget(struct ioapic *io)
{
	bool levels = false;

	pthread_mutex_lock(&io->lock);
	io->select = io->id = io->pending = 0;
	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		levels |= is_live_level(io->entry[i]);
		io->entry[i] = ENTRY_MASKED;
	}
	/* Else KVM would go on reporting their EOIs. */
	if (levels)
		tell_levels(io);
	pthread_mutex_unlock(&io->lock);
}

void
ioapic_resume(struct ioapic *io)
{
	bool levels = false;

	pthread_mutex_lock(&io->lock);
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		levels |= is_live_level(io->entry[i]);
	if (levels)
		tell_levels(io);
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		deliver(io, i);
	pthread_mutex_unlock(&io->lock);
}

void
ioapic_raise(void *ioapic, unsigned gsi)
{
	struct ioapic *io = ioapic;

	if (gsi >= IOAPIC_PINS)
		return;
	pthread_mutex_lock(&io->lock);
	io->pending |= 1u << gsi;
	deliver(io, gsi);
	pthread_mutex_unlock(&io->lock);
}

void
ioapic_eoi(struct ioapic *io, uint8_t vector)
{
	pthread_mutex_lock(&io->lock);
	for (unsigned i = 0; i < IOAPIC_PINS; i++) {
		if (ENTRY_VECTOR(io->entry[i]) != vector || !(io->entry[i] & ENTRY_LEVEL))
			continue;
		io->entry[i] &= ~ENTRY_REMOTE_IRR;
		deliver(io, i);
	}
	pthread_mutex_unlock(&io->lock);
}

static uint32_t
read_index(struct ioapic *io, uint32_t index)
{
	if (index == INDEX_ID || index == INDEX_ARBITRATION)
		return io->id;
	if (index == INDEX_VERSION)
		return VERSION | (IOAPIC_PINS - 1) << 16;
	if (index >= INDEX_ENTRIES && index < INDEX_ENTRIES + 2 * IOAPIC_PINS) {
		uint64_t entry = io->entry[(index - INDEX_ENTRIES) / 2];

		return index & 1 ? entry >> 32 : (uint32_t)entry;
	}
	return 0;
}

static void
write_index(struct ioapic *io, uint32_t index, uint32_t value)
{
	unsigned pin;
	uint64_t old, entry;

	if (index == INDEX_ID) {
		io->id = value & ID_WRITABLE;
		return;
	}
	if (index < INDEX_ENTRIES || index >= INDEX_ENTRIES + 2 * IOAPIC_PINS)
		return;
	pin = (index - INDEX_ENTRIES) / 2;
	old = entry = io->entry[pin];
	if (index & 1)
		entry = (entry & 0xffffffffull) | (uint64_t)value << 32;
	else
		entry = (entry & ~0xffffffffull) | value;
	entry = (entry & ENTRY_WRITABLE) | (old & ENTRY_READ_ONLY);
	if (!(entry & ENTRY_LEVEL))
		entry &= ~ENTRY_REMOTE_IRR; /* as the chip does; Linux clears a stuck IRR
					       so */
	io->entry[pin] = entry;
	if (entry != old && (is_live_level(old) || is_live_level(entry)))
		tell_levels(io);
	deliver(io, pin);
}

void
ioapic_read(struct ioapic *io, uint64_t offset, void *data, unsigned len)
{
	uint32_t value = 0;

	memset(data, 0, len);
	if (len != 4)
		return;
	pthread_mutex_lock(&io->lock);
	if (offset == REG_SELECT)
		value = io->select;
	else if (offset == REG_WINDOW)
		value = read_index(io, io->select);
	pthread_mutex_unlock(&io->lock);
	memcpy(data, &value, 4);
}

void
ioapic_write(struct ioapic *io, uint64_t offset, const void *data, unsigned len)
{
	uint32_t value;

	if (len != 4)
		return;
	memcpy(&value, data, 4);
	pthread_mutex_lock(&io->lock);
	if (offset == REG_SELECT)
		io->select = value & 0xff;
	else if (offset == REG_WINDOW)
		write_index(io, io->select, value);
	pthread_mutex_unlock(&io->lock);
}
