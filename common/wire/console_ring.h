/*
 * The console ring: what the guest wrote to its serial port, in a file of fixed size. The
 * header counts every byte ever written, so an offset stays true after the ring has
 * wrapped.
 *
 * The VMM makes the file's content: it is handed an empty file and sizes it; the header
 * is zeroes until the guest says its first word. Readers (pandod, `pando logs`) open it
 * read-only and read `written`, then the bytes, then `written` again: bytes below written
 * - CONSOLE_RING_BYTES of the second reading were overwritten meanwhile and are dropped.
 * Byte n of the stream lies at file offset CONSOLE_HDR_BYTES + n % CONSOLE_RING_BYTES.
 * The guest chooses the bytes: a reader escapes them where they meet a terminal.
 *
 * A branch starts with an empty ring of its own.
 */
#ifndef PANDO_COMMON_WIRE_CONSOLE_RING_H
#define PANDO_COMMON_WIRE_CONSOLE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define CONSOLE_MAGIC "PANDOCON"
#define CONSOLE_VERSION 1u
#define CONSOLE_HDR_BYTES 4096u
#define CONSOLE_RING_BYTES (1u << 20)
#define CONSOLE_FILE_BYTES (CONSOLE_HDR_BYTES + CONSOLE_RING_BYTES)

struct console_hdr {
	char magic[8]; /* CONSOLE_MAGIC, not terminated */
	uint32_t version;
	uint32_t ring_bytes;
	_Atomic uint64_t written; /* bytes since the VM began */
};
_Static_assert(sizeof(struct console_hdr) == 24, "disk format");

struct console {
	struct console_hdr *hdr; /* owned mapping of the file; NULL: output is dropped */
	uint8_t *ring;		 /* behind the header, same mapping */
	bool begun;		 /* the header is written */
};

/* Sizes the file and maps it (kept out of forked children). fd stays the caller's and may
 * be closed afterwards. */
int console_open(struct console *c, int fd, struct err *e);
/* One writer at a time; vmm/serial.c holds its lock. */
void console_write(struct console *c, const void *buf, size_t len);
/* Whether text stands at the beginning of a line, or behind the kernel's time stamp, among
 * the newest `within` bytes (at most CONSOLE_SEARCH_MAX). The line, from text on and
 * escaped, goes to dst. Nobody writes meanwhile. */
#define CONSOLE_SEARCH_MAX 16384u
bool console_find(
	const struct console *c, const char *text, size_t within, char *dst, size_t cap);
/* In a forked child: the parent's ring is not mapped here. */
void console_forget(struct console *c);

#endif
