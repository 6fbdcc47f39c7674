/* Journals of hostile file systems (host/commit/fsdiff/journal.c): blocks of 1 KiB. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "host/commit/fsdiff/journal.h"

struct input {
	const uint8_t *data;
	size_t n;
	uint64_t found;
};

static int
read_block(void *ctx, uint64_t n, void *buf)
{
	struct input *in = ctx;

	if (n >= in->n)
		return -EBADMSG;
	memcpy(buf, in->data + n * 1024, 1024);
	return 0;
}

static int
found(void *ctx, uint64_t block, uint64_t n, bool escaped)
{
	struct input *in = ctx;

	(void)block;
	(void)escaped;
	if (n == 0 || n >= in->n) /* it says itself how long it is */
		abort();
	return ++in->found > 1000000 ? -EFBIG : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size / 1024, 0};
	const struct journal j = {.block_size = 1024,
		.n_blocks = in.n,
		.read = read_block,
		.found = found,
		.ctx = &in};
	int r = journal_replay(&j);

	if (r > 0)
		abort();
	return 0;
}
