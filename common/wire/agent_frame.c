#include "common/wire/agent_frame.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

/* A sentence after the fixed part of AGENT_EXIT and AGENT_ERROR. */
#define SENTENCE_MAX 1024u

static bool
length_range(uint8_t type, enum agent_side from, uint32_t *min, uint32_t *max)
{
	*min = 0;
	*max = 0;
	if (from == AGENT_FROM_HOST) {
		switch (type) {
		case AGENT_STDIN:
		case AGENT_DATA:
			*min = 1;
			*max = AGENT_FRAME_MAX;
			return true;
		case AGENT_WINSIZE:
			*min = *max = sizeof(struct agent_winsize);
			return true;
		case AGENT_SIGNAL:
			*min = *max = sizeof(uint32_t);
			return true;
		case AGENT_STDIN_EOF:
		case AGENT_DETACH:
		case AGENT_TAKEN:
		case AGENT_END:
			return true;
		default:
			return false;
		}
	}
	switch (type) {
	case AGENT_STDOUT:
	case AGENT_STDERR:
		*min = sizeof(struct agent_output) + 1;
		*max = AGENT_FRAME_MAX;
		return true;
	case AGENT_GAP:
		*min = *max = sizeof(struct agent_gap);
		return true;
	case AGENT_EXIT:
		*min = sizeof(struct agent_exit);
		*max = *min + SENTENCE_MAX;
		return true;
	case AGENT_STDIN_CREDIT:
		*min = *max = sizeof(struct agent_stdin_credit);
		return true;
	case AGENT_STDIN_CLOSED:
	case AGENT_DATA_END:
		return true;
	case AGENT_STEP:
		*min = 1;
		*max = AGENT_STEP_NAME_MAX;
		return true;
	case AGENT_ACK:
	case AGENT_DATA:
		*min = 1;
		*max = AGENT_FRAME_MAX;
		return true;
	case AGENT_END:
		*min = *max = sizeof(struct agent_end);
		return true;
	case AGENT_ERROR:
		*min = sizeof(struct agent_error);
		*max = *min + SENTENCE_MAX;
		return true;
	default:
		return false;
	}
}

int
agent_frame_next(const void *buf, size_t len, enum agent_side from,
	struct agent_frame *ret, size_t *ret_used, struct err *e)
{
	struct agent_frame_hdr h;
	uint32_t min, max;

	if (len < sizeof(h))
		return 0;
	memcpy(&h, buf, sizeof(h));
	if (!length_range(h.type, from, &min, &max))
		return err_set(e, -EPROTO, "unknown frame type %u", h.type);
	if (h.len < min || h.len > max)
		return err_set(e, -EPROTO,
			"frame type %u with a length of %u; it has %u to %u", h.type,
			h.len, min, max);
	if (h.pad)
		return err_set(e, -EPROTO, "frame type %u with padding that is not zero",
			h.type);
	if (h.type == AGENT_GAP ? (h.stream != 1 && h.stream != 2) : h.stream != 0)
		return err_set(
			e, -EPROTO, "frame type %u for stream %u", h.type, h.stream);
	if (len - sizeof(h) < h.len)
		return 0;
	*ret = (struct agent_frame){
		.type = h.type,
		.stream = h.stream,
		.len = h.len,
		.payload = (const uint8_t *)buf + sizeof(h),
	};
	*ret_used = sizeof(h) + h.len;
	return 1;
}
