/*
 * Frames of the agent protocol (common/wire/agent_wire.h), taken from and put into plain
 * memory. Both sides use this one reader, so that one fuzzer each covers it.
 */
#ifndef PANDO_COMMON_WIRE_AGENT_FRAME_H
#define PANDO_COMMON_WIRE_AGENT_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "common/wire/agent_wire.h"

enum agent_side { AGENT_FROM_HOST, AGENT_FROM_GUEST };

struct agent_frame {
	uint8_t type;
	uint8_t stream;
	uint32_t len;
	const uint8_t *payload; /* borrowed from the buffer */
};

/* The largest whole frame. */
#define AGENT_FRAME_WHOLE (sizeof(struct agent_frame_hdr) + AGENT_FRAME_MAX)

/* The frame at buf: 1 and *ret, *ret_used; 0 when it is not all there yet; -EPROTO with a
 * sentence when it can never be one: an unknown type for that direction, a length that
 * the type does not have, padding that is not zero. A frame is refused by its first 8
 * bytes, before any of its payload is waited for. */
int agent_frame_next(const void *buf, size_t len, enum agent_side from,
	struct agent_frame *ret, size_t *ret_used, struct err *e);

static inline struct agent_frame_hdr
agent_frame_hdr(uint8_t type, uint8_t stream, uint32_t len)
{
	return (struct agent_frame_hdr){.type = type, .stream = stream, .len = len};
}

#endif
