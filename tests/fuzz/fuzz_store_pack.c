/*
 * A pack of unknown origin (host/store/store_pack.c), and chunks and trees in it
 * (host/store/store_chunks.c, host/store/store_tree.c). The input is the file; the hash of its index
 * is put right first, as a hostile one's would be. Oracle: no crash, no sanitizer
 * finding; entries are within the file and found again; what is given has the hash that
 * was asked for.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/io.h"
#include "host/store/store_priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Plain abort: an assert may be compiled out. */
static void
must(int condition)
{
	if (!condition)
		abort();
}

static void
put_right(uint8_t *file, size_t size)
{
	struct pack_footer f;

	if (size < sizeof(f))
		return;
	memcpy(&f, file + size - sizeof(f), sizeof(f));
	if (f.index_offset > size - sizeof(f))
		return;
	hash_of(HASH_PACK, file + f.index_offset, size - sizeof(f) - f.index_offset,
		&f.index_hash);
	memcpy(file + size - sizeof(f), &f, sizeof(f));
}

struct seeing {
	struct store *s;
	const struct store_tree *t;
	unsigned left;
};

static int
see(void *ctx, uint64_t page, const void *data, struct err *e)
{
	struct seeing *seeing = ctx;
	uint8_t bytes[STORE_PAGE];

	(void)data;
	(void)e;
	store_tree_read(seeing->s, seeing->t, page, 1, bytes, NULL);
	return --seeing->left == 0;
}

static void
read_all(struct store *s, struct pack *p)
{
	static const struct store_tree none;
	struct chunk_reader c;
	uint8_t bytes[CHUNK_MAX];

	must(chunk_reader_init(&c, s, NULL) == 0);
	for (size_t i = 0; i < p->count && i < 256; i++) {
		struct pack_entry en = p->index[i];
		struct store_tree t = {en.hash, (i % 5 + 1) * 63 * STORE_PAGE + i};
		struct store_hash is;
		struct seeing seeing = {s, &t, 200};

		must(en.offset + en.stored <= p->bytes);
		must(pack_find(p, en.kind, &en.hash, true) == (int64_t)i);
		if (chunk_read(&c, en.kind, &en.hash, bytes, NULL) == 0) {
			hash_of(en.kind == CHUNK_NODE ? HASH_NODE : HASH_PLAIN, bytes,
				chunk_len(en.kind), &is);
			must(hash_equal(&is, &en.hash));
		}
		store_tree_diff(s, &none, &t, see, &seeing, NULL);
	}
	chunk_reader_done(&c);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct store s = {.packs_fd = -1, .root_fd = -1};
	struct err e = {0};
	struct pack *p;
	uint8_t *file;
	int fd;

	must(hash_init() == 0);
	file = malloc(size + 1);
	fd = memfd_create("pack", MFD_CLOEXEC);
	if (!file || fd < 0)
		abort();
	memcpy(file, data, size);
	put_right(file, size);
	must(io_write_full(fd, file, size) == 0);
	free(file);
	if (pack_open_fd(fd, NULL, &p, &e)) {
		must(e.code < 0 && e.msg[0]);
		close(fd);
		return 0;
	}
	must(packs_set_all(&s, &p, 1) == 0);
	read_all(&s, p);
	packs_done(&s);
	pack_unref(p);
	return 0;
}
