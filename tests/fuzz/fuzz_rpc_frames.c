/* What a guest's follower says, in pieces of any size: lines come in order, none twice.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/agent/agent_rpc.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
	uint64_t next, lines, bytes;
};

static int
on_line(void *ctx, const struct rpc_line *l)
{
	struct seen *s = ctx;

	if (l->offset < s->next || !l->len || l->len > RPC_LINE_MAX ||
		(!l->piece && l->text[l->len - 1] != '\n') ||
		memchr(l->text, '\n', l->len - 1))
		abort();
	s->next = l->offset + l->len;
	s->lines++;
	s->bytes += l->len;
	return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct seen once = {0}, pieces = {0};
	struct rpc_frames a = {.on_line = on_line, .ctx = &once};
	struct rpc_frames b = {.on_line = on_line, .ctx = &pieces};
	size_t step = size ? data[0] % 13 + 1u : 1;
	int ra, rb = 0;

	ra = rpc_frames_feed(&a, data, size, NULL);
	for (size_t at = 0; !rb && at < size; at += step)
		rb = rpc_frames_feed(
			&b, data + at, size - at < step ? size - at : step, NULL);
	if (ra != rb || once.lines != pieces.lines || once.bytes != pieces.bytes ||
		a.next != b.next)
		abort();
	rpc_frames_done(&a);
	rpc_frames_done(&b);
	return 0;
}
