/*
 * The last bytes of a stream, by offset since its start. Memory is mapped on the first
 * byte and touched only as far as the stream goes, so a command with little output costs
 * a page. Old bytes give way to new ones; ring_room() lets a caller that must lose
 * nothing ask first.
 */
#ifndef PANDO_GUEST_AGENT_SYSTEM_RING_H
#define PANDO_GUEST_AGENT_SYSTEM_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ring {
	uint8_t *buf; /* owned; NULL until there is something; shared: borrowed */
	size_t cap;
	bool shared, touched; /* in memory that is shared; it has been written to */
	uint64_t start, end;  /* offsets of what is kept */
};

void ring_init(struct ring *r, size_t cap); /* a power of two, at least a page */
/* The same in memory of the caller's, who sets buf: a mapping of a memfd, whose pages are
 * given back in place of being unmapped. */
void ring_init_shared(struct ring *r, size_t cap);
void ring_done(struct ring *r);

/* How much fits without dropping a byte at or after `keep` (start <= keep <= end). */
size_t ring_room(const struct ring *r, uint64_t keep);
/* Where the next bytes go: one or two pieces, at most max bytes (and cap). -ENOMEM. The
 * count of pieces. */
int ring_space(struct ring *r, size_t max, struct iovec iov[2]);
/* n bytes are there now; what they overwrote is gone. */
void ring_added(struct ring *r, size_t n);
/* Bytes [from, from + len), which must be kept: the count of pieces. */
int ring_at(const struct ring *r, uint64_t from, size_t len, struct iovec iov[2]);
/* Forgets what is before `offset`; gives the memory back when nothing is left. */
void ring_consume(struct ring *r, uint64_t offset);

#endif
