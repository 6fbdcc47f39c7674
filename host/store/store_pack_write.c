#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "host/store/store_pack.h"
#include "host/store/store_priv.h"

#define BUFFER_BYTES (1u << 20)
#define FIRST_ENTRIES 1024u
#define WRITE_BEHIND (8u << 20) /* bytes that wait for the disk before it is told */

struct pack_writer {
	int folder_fd; /* borrowed */
	int fd;	       /* owned; -1 until the first chunk */
	char temp[NAME_MAX + 1];
	uint8_t *buf; /* owned */
	size_t buf_len;
	uint64_t offset;	    /* of what comes next */
	uint64_t told;		    /* what the disk was told to write */
	int64_t mtime_ns;	    /* of the file; 0: now */
	struct pack_entry *entries; /* owned */
	size_t count, cap;
	/* Owned: hash table of entry numbers + 1, open addressing, 2 × cap slots. */
	uint32_t *table;
};

int
pack_writer_new(int folder_fd, struct pack_writer **ret)
{
	struct pack_writer *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->folder_fd = folder_fd;
	w->fd = -1;
	*ret = w;
	return 0;
}

void
pack_writer_free(struct pack_writer *w)
{
	if (!w)
		return;
	if (w->fd >= 0)
		close(w->fd);
	if (w->temp[0])
		unlinkat(w->folder_fd, w->temp, 0);
	free(w->buf);
	free(w->entries);
	free(w->table);
	free(w);
}

/* The slot where the entry is, or the free one where it belongs. */
static size_t
slot_of(const struct pack_writer *w, enum chunk_kind kind, const struct store_hash *hash)
{
	size_t mask = 2 * w->cap - 1;
	uint64_t word;

	memcpy(&word, hash->b, sizeof(word));
	for (size_t i = (size_t)word & mask;; i = (i + 1) & mask) {
		const struct pack_entry *en;

		if (!w->table[i])
			return i;
		en = &w->entries[w->table[i] - 1];
		if (en->kind == kind && hash_equal(&en->hash, hash))
			return i;
	}
}

bool
pack_writer_has(
	const struct pack_writer *w, enum chunk_kind kind, const struct store_hash *hash)
{
	return w->count && w->table[slot_of(w, kind, hash)];
}

static int
grow(struct pack_writer *w)
{
	size_t cap = w->cap ? 2 * w->cap : FIRST_ENTRIES;
	struct pack_entry *entries;
	uint32_t *table;

	if (cap > UINT32_MAX)
		return -EFBIG;
	entries = reallocarray(w->entries, cap, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	w->entries = entries;
	table = calloc(2 * cap, sizeof(*table));
	if (!table)
		return -ENOMEM;
	free(w->table);
	w->table = table;
	w->cap = cap;
	for (size_t i = 0; i < w->count; i++)
		w->table[slot_of(w, entries[i].kind, &entries[i].hash)] = (uint32_t)i + 1;
	return 0;
}

static int
flush(struct pack_writer *w)
{
	int r = io_write_full(w->fd, w->buf, w->buf_len);

	if (r < 0)
		return r;
	w->buf_len = 0;
	fault_point("store.pack-part");
	/* The disk works while the rest is made; fsync() waits for it, and has its errors.
	 */
	if (w->offset - w->told >= WRITE_BEHIND) {
		(void)sync_file_range(w->fd, (off_t)w->told, (off_t)(w->offset - w->told),
			SYNC_FILE_RANGE_WRITE);
		w->told = w->offset;
	}
	return 0;
}

static int
put(struct pack_writer *w, const void *data, size_t len)
{
	int r;

	while (len) {
		size_t n = BUFFER_BYTES - w->buf_len;

		if (n > len)
			n = len;
		memcpy(w->buf + w->buf_len, data, n);
		w->buf_len += n;
		w->offset += n;
		data = (const uint8_t *)data + n;
		len -= n;
		if (w->buf_len == BUFFER_BYTES) {
			r = flush(w);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

static int
start(struct pack_writer *w)
{
	struct pack_header h = {.version = htole32(PACK_VERSION)};
	int fd;

	w->buf = malloc(BUFFER_BYTES);
	if (!w->buf)
		return -ENOMEM;
	fd = store_temp_file(w->folder_fd, w->temp, sizeof(w->temp));
	if (fd < 0)
		return fd;
	w->fd = fd;
	memcpy(h.magic, PACK_MAGIC, sizeof(h.magic));
	return put(w, &h, sizeof(h));
}

int
pack_writer_add(struct pack_writer *w, enum chunk_kind kind, enum chunk_coding coding,
	const struct store_hash *hash, const void *stored, uint32_t len, struct err *e)
{
	struct pack_entry *en;
	int r = 0;

	if (w->fd < 0)
		r = start(w);
	if (r == 0 && w->count == w->cap)
		r = grow(w);
	if (r < 0)
		return err_sys(e, r, "beginning a pack");
	en = &w->entries[w->count];
	*en = (struct pack_entry){.hash = *hash,
		.offset = htole64(w->offset),
		.stored = htole32(len),
		.kind = (uint8_t)kind,
		.coding = (uint8_t)coding};
	r = put(w, stored, len);
	if (r < 0)
		return err_sys(e, r, "writing a pack");
	w->table[slot_of(w, kind, hash)] = (uint32_t)++w->count;
	return 0;
}

static int
by_hash(const void *pa, const void *pb)
{
	const struct pack_entry *a = pa, *b = pb;
	int r = memcmp(&a->hash, &b->hash, sizeof(a->hash));

	return r ? r : (int)a->kind - (int)b->kind;
}

void
pack_writer_set_time(struct pack_writer *w, int64_t mtime_ns)
{
	w->mtime_ns = mtime_ns;
}

int
pack_writer_seal(
	struct pack_writer *w, struct pack **ret, uint64_t *ret_bytes, struct err *e)
{
	static const uint8_t padding[PACK_ALIGN];
	struct pack_footer f;
	int r;

	*ret_bytes = 0;
	if (!w->count) {
		*ret = NULL;
		return 0;
	}
	qsort(w->entries, w->count, sizeof(*w->entries), by_hash);
	r = put(w, padding, -w->offset % PACK_ALIGN);
	f = (struct pack_footer){.index_offset = htole64(w->offset),
		.count = htole64(w->count),
		.version = htole32(PACK_VERSION)};
	memcpy(f.magic, PACK_MAGIC, sizeof(f.magic));
	hash_of(HASH_PACK, w->entries, w->count * sizeof(*w->entries), &f.index_hash);
	if (r == 0)
		r = put(w, w->entries, w->count * sizeof(*w->entries));
	if (r == 0)
		r = put(w, &f, sizeof(f));
	if (r == 0)
		r = flush(w);
	if (r == 0 && w->mtime_ns) {
		struct timespec t = {w->mtime_ns / 1000000000, w->mtime_ns % 1000000000};

		if (futimens(w->fd, (struct timespec[]){t, t}) < 0)
			r = -errno;
	}
	if (r == 0 && fsync(w->fd) < 0)
		r = -errno;
	if (r < 0)
		return err_sys(e, r, "writing a pack");
	fault_point("store.pack-synced");
	r = pack_open_fd(w->fd, NULL, ret, e);
	if (r < 0)
		return r;
	w->fd = -1;
	*ret_bytes = w->offset;
	return 0;
}

int
pack_writer_rename(struct pack_writer *w, const char *name)
{
	char file[STORE_HEX + sizeof(PACK_SUFFIX)];

	snprintf(file, sizeof(file), "%.64s" PACK_SUFFIX, name);
	if (renameat(w->folder_fd, w->temp, w->folder_fd, file) < 0)
		return -errno;
	w->temp[0] = '\0';
	return 0;
}
