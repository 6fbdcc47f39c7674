#include "host/commit/fsdiff/disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "host/commit/fsdiff/wire.h"

#define LINES 512u /* of the cache; one is what is read at once */
#define LINE_BYTES (FSDIFF_READ_PAGES * FSDIFF_PAGE)
#define PAGES_MAX (UINT64_C(1) << 34)
#define OVERLAY_MAX (1u << 22)

struct over {
	uint64_t block, at;
	bool used, escaped;
};

/* What both have in common. */
struct shared {
	int socket;    /* borrowed */
	uint8_t *bits; /* owned: a bit a page, 1: it differs */
	uint64_t pages;
	struct {
		uint64_t tag;  /* line << 1 | disk, and 1; 0: empty */
		uint8_t *data; /* owned */
	} lines[LINES];
};

struct disk {
	struct shared *s;
	unsigned number;
	uint64_t pages;
	uint32_t block_size;
	struct over *over; /* owned: open addressing, a power of two */
	size_t n_over, cap_over;
};

static int
take_ranges(struct shared *s)
{
	static struct fsdiff_ranges m;

	for (;;) {
		ssize_t len = recv(s->socket, &m, sizeof(m), 0);

		if (len < 8 || m.type != FSDIFF_RANGES || m.n > FSDIFF_RANGES_MAX ||
			(size_t)len < 8 + m.n * sizeof(m.ranges[0]))
			return -EPROTO;
		if (m.n == 0)
			return 0;
		for (uint32_t i = 0; i < m.n; i++)
			for (uint64_t p = m.ranges[i].first, n = m.ranges[i].n;
				n > 0 && p < s->pages; p++, n--)
				s->bits[p / 8] |= (uint8_t)(1u << p % 8);
	}
}

int
disk_open_both(int socket, struct disk **ret_a, struct disk **ret_b)
{
	static struct disk disks[2];
	static struct shared s;
	struct fsdiff_hello m;

	if (recv(socket, &m, sizeof(m), 0) != (ssize_t)sizeof(m) ||
		m.type != FSDIFF_HELLO || m.version != FSDIFF_VERSION ||
		m.pages[0] > PAGES_MAX || m.pages[1] > PAGES_MAX)
		return -EPROTO;
	s.socket = socket;
	s.pages = m.pages[0] > m.pages[1] ? m.pages[0] : m.pages[1];
	s.bits = calloc(s.pages / 8 + 1, 1);
	if (!s.bits)
		return -ENOMEM;
	for (unsigned i = 0; i < 2; i++)
		disks[i] = (struct disk){.s = &s, .number = i, .pages = m.pages[i]};
	*ret_a = &disks[0];
	*ret_b = &disks[1];
	return take_ranges(&s);
}

uint64_t
disk_bytes(const struct disk *d)
{
	return d->pages * FSDIFF_PAGE;
}

bool
disk_same(const struct disk *d, uint64_t offset, uint64_t len)
{
	const struct shared *s = d->s;

	if (len == 0)
		return true;
	if (offset > UINT64_MAX - len)
		return false;
	for (uint64_t p = offset / FSDIFF_PAGE; p <= (offset + len - 1) / FSDIFF_PAGE;
		p++)
		if (p >= s->pages || (s->bits[p / 8] >> p % 8 & 1))
			return false;
	return true;
}

/* The line's bytes; a line that both disks have is kept once. */
static int
line_of(struct disk *d, uint64_t line, const uint8_t **ret)
{
	static struct fsdiff_data m;
	struct shared *s = d->s;
	unsigned from = disk_same(d, line * LINE_BYTES, LINE_BYTES) ? 0 : d->number;
	struct fsdiff_read q = {.type = FSDIFF_READ,
		.disk = from,
		.page = line * FSDIFF_READ_PAGES,
		.n = FSDIFF_READ_PAGES};
	uint64_t tag = (line << 2 | from << 1 | 1);
	size_t at = (size_t)((line * 2 + from) % LINES);
	ssize_t len;

	if (s->lines[at].tag == tag) {
		*ret = s->lines[at].data;
		return 0;
	}
	if (!s->lines[at].data && !(s->lines[at].data = malloc(LINE_BYTES)))
		return -ENOMEM;
	s->lines[at].tag = 0;
	if (send(s->socket, &q, sizeof(q), 0) != (ssize_t)sizeof(q))
		return -EPIPE;
	len = recv(s->socket, &m, sizeof(m), 0);
	if (len < 8 || m.type != FSDIFF_DATA)
		return -EPROTO;
	if (m.error < 0)
		return m.error;
	if ((size_t)len != sizeof(m))
		return -EPROTO;
	memcpy(s->lines[at].data, m.data, LINE_BYTES);
	s->lines[at].tag = tag;
	*ret = s->lines[at].data;
	return 0;
}

static int
read_below(struct disk *d, uint64_t offset, uint8_t *buf, size_t len)
{
	while (len) {
		size_t in = (size_t)(offset % LINE_BYTES),
		       n = LINE_BYTES - in < len ? LINE_BYTES - in : len;
		const uint8_t *line = NULL;
		int r;

		if (offset >= disk_bytes(d)) {
			memset(buf, 0, len);
			return 0;
		}
		r = line_of(d, offset / LINE_BYTES, &line);
		if (r < 0)
			return r;
		memcpy(buf, line + in, n);
		buf += n;
		offset += n;
		len -= n;
	}
	return 0;
}

static size_t
slot_of(const struct disk *d, uint64_t block)
{
	size_t at = (size_t)(block * 0x9e3779b97f4a7c15ull >> 20) & (d->cap_over - 1);

	while (d->over[at].used && d->over[at].block != block)
		at = (at + 1) & (d->cap_over - 1);
	return at;
}

static const struct over *
over_of(const struct disk *d, uint64_t block)
{
	size_t at;

	if (!d->n_over)
		return NULL;
	at = slot_of(d, block);
	return d->over[at].used ? &d->over[at] : NULL;
}

bool
disk_has_overlay(const struct disk *d, uint64_t block)
{
	return over_of(d, block) != NULL;
}

static int
grow(struct disk *d)
{
	struct over *old = d->over;
	size_t old_cap = d->cap_over;

	if (d->n_over * 2 < d->cap_over)
		return 0;
	if (d->n_over >= OVERLAY_MAX)
		return -EFBIG;
	d->cap_over = old_cap ? old_cap * 2 : 1024;
	d->over = calloc(d->cap_over, sizeof(*d->over));
	if (!d->over) {
		d->over = old;
		d->cap_over = old_cap;
		return -ENOMEM;
	}
	for (size_t i = 0; i < old_cap; i++)
		if (old[i].used)
			d->over[slot_of(d, old[i].block)] = old[i];
	free(old);
	return 0;
}

int
disk_overlay(
	struct disk *d, uint32_t block_size, uint64_t block, uint64_t at, bool escaped)
{
	size_t slot;
	int r = grow(d);

	if (r < 0)
		return r;
	d->block_size = block_size;
	slot = slot_of(d, block);
	d->n_over += !d->over[slot].used;
	d->over[slot] = (struct over){block, at, true, escaped};
	return 0;
}

int
disk_read(struct disk *d, uint64_t offset, void *buf, size_t len)
{
	static const uint8_t magic[4] = {0xc0, 0x3b, 0x39, 0x98};
	uint8_t *p = buf;

	if (!d->n_over)
		return read_below(d, offset, p, len);
	while (len) {
		uint64_t block = offset / d->block_size;
		size_t in = (size_t)(offset % d->block_size),
		       n = d->block_size - in < len ? d->block_size - in : len;
		const struct over *o = over_of(d, block);
		int r = read_below(d, o ? o->at * d->block_size + in : offset, p, n);

		if (r < 0)
			return r;
		for (size_t i = in; o && o->escaped && i < 4 && i < in + n; i++)
			p[i - in] = magic[i];
		p += n;
		offset += n;
		len -= n;
	}
	return 0;
}
