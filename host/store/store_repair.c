/*
 * Packs that cannot be read, and what can be had of them yet.
 *
 * Where an index is left, whole or in part, each of its entries is tried: its chunk is
 * sound when the bytes have the hash. Where there is none, the stored chunks are looked
 * for one after the other: compressed ones say how long they are, nodes name chunks that
 * came before, others are those whose hash a commit misses. What was found, and is nowhere
 * else, becomes a new pack. A node
 * that is found may name more that is missed; so this is done again until nothing is
 * found.
 *
 * Nothing of a damaged file is believed but what has the right hash.
 */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/store/store_catalog.h"
#include "host/store/store_names.h"
#include "host/store/store_priv.h"

#define ROUNDS_MAX 16u
#define WINDOW (1u << 20) /* bytes of a file looked at at once */

struct repair {
	struct store *s;
	struct chunk_reader reader;
	struct names missed; /* chunks that commits name and no pack has */
	struct store_repaired sum;
};

/* A damaged pack, and what is saved of it. */
struct wreck {
	struct repair *rp; /* borrowed */
	struct pack_set *set;
	int fd;
	uint64_t size;
	struct pack_writer *to;
	struct pack_entry *entries; /* owned; of the index, where there is one */
	size_t count;
	struct names seen; /* what was found, or may be a page, where there is none */
};

/* ---- what is missed ---- */

static int
miss(struct repair *rp, const struct store_hash *name, struct err *e)
{
	return names_add(&rp->missed, name) ? err_sys(e, -ENOMEM, "repair") : 0;
}

static int
miss_below(struct repair *rp, struct names *seen, const struct store_tree *t,
	unsigned level, uint64_t at, const struct store_hash *name, struct err *e)
{
	struct store_hash child[NODE_FANOUT];
	struct chunk_at ignored;
	struct pack_set *set;
	int r;

	if (names_have(seen, name))
		return 0;
	r = tree_node(&rp->reader, t, level, at, name, child, NULL);
	if (r == -EBADMSG)
		return miss(rp, name, e);
	if (r < 0)
		return err_sys(e, r, "repair");
	for (unsigned i = 0; r == 0 && i < NODE_FANOUT; i++) {
		if (hash_is_zero(&child[i]))
			continue;
		if (level > 1) {
			r = miss_below(rp, seen, t, level - 1,
				at + i * tree_child_pages(level), &child[i], e);
			continue;
		}
		r = packs_get(rp->s, &set, e);
		if (r < 0)
			break;
		if (!chunk_find(set, CHUNK_PAGE, &child[i], true, &ignored))
			r = miss(rp, &child[i], e);
		packs_put(set);
	}
	if (r == 0 && names_add(seen, name))
		r = err_sys(e, -ENOMEM, "repair");
	return r;
}

struct missing {
	struct repair *rp;
	struct names seen;
};

static int
miss_of_commit(void *ctx, const char *id, struct err *e)
{
	struct missing *m = ctx;
	struct store_manifest *man;
	struct store_hash ignored;
	int r = 0;

	if (!hash_from_hex(id, &ignored) || store_load_id(m->rp->s, id, &man, NULL))
		return 0; /* its contents cannot be known */
	{
		const struct store_tree *trees[] = {
			&man->f.memory, &man->f.disk, &man->f.state};

		for (unsigned i = 0; r == 0 && i < 3; i++)
			if (!hash_is_zero(&trees[i]->root))
				r = miss_below(m->rp, &m->seen, trees[i],
					tree_levels(trees[i]->length), 0, &trees[i]->root,
					e);
	}
	store_manifest_free(man);
	return r;
}

static int
find_missed(struct repair *rp, struct err *e)
{
	struct missing m = {.rp = rp};
	int r;

	names_done(&rp->missed);
	r = store_each_name(rp->s->commits_fd, MANIFEST_SUFFIX, miss_of_commit, &m, e);
	names_done(&m.seen);
	return r;
}

/* ---- what is saved ---- */

static bool
is_elsewhere(struct wreck *w, const struct pack_entry *en)
{
	uint8_t ignored[CHUNK_MAX];
	struct chunk_at at;

	/* A whole node is worth more than a delta, which others cannot be deltas of. */
	if (!chunk_find(w->set, en->kind, &en->hash, en->coding == CODING_DELTA, &at))
		return pack_writer_has(w->to, en->kind, &en->hash);
	do
		if (chunk_read_at(&w->rp->reader, w->set, &at, ignored) == 0)
			return true;
	while (chunk_find_next(
		w->set, en->kind, &en->hash, en->coding == CODING_DELTA, &at));
	return pack_writer_has(w->to, en->kind, &en->hash);
}

static int
save(struct wreck *w, const struct pack_entry *en, const uint8_t *stored, struct err *e)
{
	if (is_elsewhere(w, en))
		return 0;
	w->rp->sum.chunks_saved++;
	return pack_writer_add(
		w->to, en->kind, en->coding, &en->hash, stored, le32toh(en->stored), e);
}

/* The chunk that stored bytes are, where they need no other one. */
static int
decode(struct wreck *w, const struct pack_entry *en, const uint8_t *stored, uint8_t *ret)
{
	uint32_t len = le32toh(en->stored);

	if (en->coding == CODING_RAW && len == chunk_len(en->kind)) {
		memcpy(ret, stored, len);
		return 0;
	}
	if (en->coding != CODING_ZSTD)
		return -EBADMSG;
	return zip_unpack(w->rp->reader.zip, ret, chunk_len(en->kind), stored, len);
}

static bool
is_sound(const struct pack_entry *en, const uint8_t *chunk)
{
	struct store_hash is;

	hash_of(en->kind == CHUNK_NODE ? HASH_NODE : HASH_PLAIN, chunk,
		chunk_len(en->kind), &is);
	return hash_equal(&is, &en->hash);
}

static int
by_hash(const void *pa, const void *pb)
{
	const struct pack_entry *a = pa, *b = pb;
	int r = memcmp(&a->hash, &b->hash, sizeof(a->hash));

	return r ? r : (int)a->kind - (int)b->kind;
}

static bool
is_plausible(const struct wreck *w, const struct pack_entry *en)
{
	uint64_t offset = le64toh(en->offset);
	uint32_t stored = le32toh(en->stored);

	return (en->kind == CHUNK_PAGE || en->kind == CHUNK_NODE) &&
	       en->coding <= CODING_DELTA && !en->zero[0] && !en->zero[1] && stored > 0 &&
	       stored <= CHUNK_MAX && offset >= sizeof(struct pack_header) &&
	       offset < w->size && stored <= w->size - offset && !hash_is_zero(&en->hash);
}

/* The node that a delta leads to: of any other pack, or of this one. */
static int
read_reference(struct wreck *w, const struct store_hash *name, uint8_t *ret)
{
	struct pack_entry key = {.hash = *name, .kind = CHUNK_NODE};
	uint8_t stored[CHUNK_MAX];
	const struct pack_entry *en;
	struct chunk_at at;

	if (chunk_find(w->set, CHUNK_NODE, name, false, &at) &&
		chunk_read_at(&w->rp->reader, w->set, &at, ret) == 0)
		return 0;
	en = w->count ? bsearch(&key, w->entries, w->count, sizeof(*en), by_hash) : NULL;
	if (!en || !is_plausible(w, en) ||
		io_pread_full(w->fd, stored, le32toh(en->stored), le64toh(en->offset)) ||
		decode(w, en, stored, ret) || !is_sound(en, ret))
		return -EBADMSG;
	return 0;
}

static int
decode_delta(struct wreck *w, const uint8_t *stored, size_t len, uint8_t *ret)
{
	struct store_hash *node = (struct store_hash *)(void *)ret;
	struct node_delta d;
	size_t at = sizeof(d);
	int r;

	if (len < sizeof(d))
		return -EBADMSG;
	memcpy(&d, stored, sizeof(d));
	d.changed = le64toh(d.changed);
	if (len != sizeof(d) + (size_t)__builtin_popcountll(d.changed) * sizeof(*node))
		return -EBADMSG;
	r = read_reference(w, &d.reference, ret);
	for (unsigned i = 0; r == 0 && i < NODE_FANOUT; i++)
		if (d.changed >> i & 1) {
			memcpy(&node[i], stored + at, sizeof(*node));
			at += sizeof(*node);
		}
	return r;
}

static int
try_entry(struct wreck *w, const struct pack_entry *en, struct err *e)
{
	uint8_t stored[CHUNK_MAX];
	_Alignas(8) uint8_t chunk[CHUNK_MAX];
	int r;

	if (!is_plausible(w, en) ||
		io_pread_full(w->fd, stored, le32toh(en->stored), le64toh(en->offset)))
		return 0;
	r = en->coding == CODING_DELTA && en->kind == CHUNK_NODE
		    ? decode_delta(w, stored, le32toh(en->stored), chunk)
		    : decode(w, en, stored, chunk);
	return r == 0 && is_sound(en, chunk) ? save(w, en, stored, e) : 0;
}

/* ---- with an index ---- */

static int
by_offset(const void *pa, const void *pb)
{
	const struct pack_entry *a = *(const struct pack_entry *const *)pa;
	const struct pack_entry *b = *(const struct pack_entry *const *)pb;
	uint64_t x = le64toh(a->offset), y = le64toh(b->offset);

	return x < y ? -1 : x > y;
}

/* Where the index begins: as the footer says, or as far back from it as there are entries.
 */
static int
read_index(struct wreck *w, struct err *e)
{
	struct pack_footer f;
	struct pack_entry en;
	uint64_t end, at;

	if (w->size < sizeof(struct pack_header) + sizeof(f))
		return 0;
	end = w->size - sizeof(f);
	if (io_pread_full(w->fd, &f, sizeof(f), end))
		return 0;
	at = le64toh(f.index_offset);
	if (at % PACK_ALIGN || at < sizeof(struct pack_header) || at > end ||
		(end - at) % sizeof(en) || (end - at) / sizeof(en) != le64toh(f.count))
		for (at = end; at >= sizeof(struct pack_header) + sizeof(en);
			at -= sizeof(en))
			if (io_pread_full(w->fd, &en, sizeof(en), at - sizeof(en)) ||
				!is_plausible(w, &en))
				break;
	w->count = (end - at) / sizeof(en);
	if (!w->count)
		return 0;
	w->entries = calloc(w->count, sizeof(en));
	if (!w->entries)
		return err_sys(e, -ENOMEM, "repair");
	if (io_pread_full(w->fd, w->entries, w->count * sizeof(en), at))
		w->count = 0;
	qsort(w->entries, w->count, sizeof(en), by_hash);
	return 0;
}

static int
try_index(struct wreck *w, struct err *e)
{
	cleanup_free const struct pack_entry **order = calloc(w->count, sizeof(*order));
	int r = 0;

	if (!order)
		return err_sys(e, -ENOMEM, "repair");
	for (size_t i = 0; i < w->count; i++)
		order[i] = &w->entries[i];
	/* As they lay: a pack of which only the header is damaged comes out the same. */
	qsort(order, w->count, sizeof(*order), by_offset);
	for (size_t i = 0; r == 0 && i < w->count; i++)
		r = try_entry(w, order[i], e);
	return r;
}

/* ---- without ---- */

/* Whether some bytes have the name of something that came before. */
static bool
names_seen(const struct wreck *w, const uint8_t *bytes, size_t len)
{
	struct store_hash name;

	for (size_t i = 0; i + sizeof(name) <= len; i += sizeof(name)) {
		memcpy(&name, bytes + i, sizeof(name));
		if (!hash_is_zero(&name) && names_have(&w->seen, &name))
			return true;
	}
	return false;
}

/* What is at a place of the file: an entry, or stored 0. */
static struct pack_entry
guess(struct wreck *w, uint64_t at, const uint8_t *bytes, size_t len)
{
	_Alignas(8) uint8_t chunk[CHUNK_MAX];
	struct pack_entry en = {.offset = htole64(at)};
	size_t frame = zip_frame_len(bytes, len);

	if (frame && frame < CHUNK_MAX) {
		en.coding = CODING_ZSTD;
		en.stored = htole32((uint32_t)frame);
		for (en.kind = CHUNK_PAGE; en.kind <= CHUNK_NODE; en.kind++)
			if (decode(w, &en, bytes, chunk) == 0) {
				hash_of(en.kind == CHUNK_NODE ? HASH_NODE : HASH_PLAIN,
					chunk, chunk_len(en.kind), &en.hash);
				return en;
			}
	}
	en.coding = CODING_RAW;
	for (en.kind = CHUNK_PAGE; en.kind <= CHUNK_NODE; en.kind++) {
		en.stored = htole32(chunk_len(en.kind));
		if (len < chunk_len(en.kind))
			continue;
		hash_of(en.kind == CHUNK_NODE ? HASH_NODE : HASH_PLAIN, bytes,
			chunk_len(en.kind), &en.hash);
		if (names_have(&w->rp->missed, &en.hash) ||
			(en.kind == CHUNK_NODE &&
				names_seen(w, bytes, chunk_len(CHUNK_NODE))))
			return en;
	}
	if (len >= sizeof(struct node_delta)) {
		struct node_delta d;
		size_t n;

		memcpy(&d, bytes, sizeof(d));
		n = sizeof(d) + (size_t)__builtin_popcountll(le64toh(d.changed)) *
					sizeof(struct store_hash);
		en.kind = CHUNK_NODE;
		en.coding = CODING_DELTA;
		en.stored = htole32((uint32_t)n);
		if (n <= len && decode_delta(w, bytes, n, chunk) == 0) {
			hash_of(HASH_NODE, chunk, chunk_len(CHUNK_NODE), &en.hash);
			if (names_have(&w->rp->missed, &en.hash) ||
				names_seen(w, bytes + sizeof(d), n - sizeof(d)))
				return en;
		}
	}
	en.stored = 0;
	return en;
}

/* How far to go on behind something unknown: it may be a node or a page, sound or not, or
 * something before the next compressed chunk. *ret_page: it may be a page. */
static size_t
skip(struct wreck *w, uint64_t at, const uint8_t *bytes, size_t len, bool *ret_page)
{
	static const size_t steps[] = {CHUNK_MAX, CHUNK_MAX / 2};

	for (unsigned i = 0; i < 2; i++) {
		*ret_page = steps[i] == CHUNK_MAX;
		if (steps[i] < len &&
			guess(w, at + steps[i], bytes + steps[i], len - steps[i]).stored)
			return steps[i];
	}
	*ret_page = false;
	for (size_t i = 1; i < len && i < CHUNK_MAX; i++)
		if (zip_frame_len(bytes + i, len - i))
			return i;
	*ret_page = len >= CHUNK_MAX;
	return *ret_page ? CHUNK_MAX : len;
}

/* Saves what is there, or passes it by. *ret: its bytes. */
static int
try_place(struct wreck *w, uint64_t at, const uint8_t *bytes, size_t len, size_t *ret,
	struct err *e)
{
	struct pack_entry en = guess(w, at, bytes, len);
	bool page = false;
	int r = 0;

	if (en.stored) {
		*ret = le32toh(en.stored);
		r = save(w, &en, bytes, e);
	} else {
		*ret = skip(w, at, bytes, len, &page);
		if (page)
			hash_of(HASH_PLAIN, bytes, CHUNK_MAX, &en.hash);
	}
	if (r == 0 && (en.stored || page) && !hash_is_zero(&en.hash) &&
		names_add(&w->seen, &en.hash))
		r = err_sys(e, -ENOMEM, "repair");
	return r;
}

static int
try_bytes(struct wreck *w, struct err *e)
{
	cleanup_free uint8_t *window = malloc(WINDOW);
	uint64_t at = sizeof(struct pack_header);
	int r = 0;

	if (!window)
		return err_sys(e, -ENOMEM, "repair");
	while (r == 0 && at < w->size) {
		size_t len = w->size - at < WINDOW ? (size_t)(w->size - at) : WINDOW;
		size_t n = 0;

		if (io_pread_full(w->fd, window, len, at))
			break; /* a disk that does not read on */
		/* To its end, or so far that a chunk may lie across it. */
		while (r == 0 && n < len &&
			(at + len == w->size || n + 3 * CHUNK_MAX < len)) {
			size_t some;

			r = try_place(w, at + n, window + n, len - n, &some, e);
			n += r == 0 ? some : 0;
		}
		at += n;
	}
	return r;
}

/* ---- the whole ---- */

static int
save_wreck(struct wreck *w, struct err *e)
{
	struct pack *p = NULL;
	uint64_t bytes;
	int r = read_index(w, e);

	if (r == 0 && w->count)
		r = try_index(w, e);
	/* Also what a damaged entry led to. */
	if (r == 0 && w->rp->missed.n)
		r = try_bytes(w, e);
	if (r == 0)
		r = pack_writer_seal(w->to, &p, &bytes, e);
	if (r < 0 || !p)
		return r;
	r = packs_add(w->rp->s, w->to, p, false, e);
	pack_unref(p);
	return r;
}

static int
save_pack(struct repair *rp, const char *name, struct err *e)
{
	struct wreck w = {.rp = rp, .fd = -1};
	char file[STORE_HEX + sizeof(PACK_SUFFIX)];
	struct stat st;
	int r = 0;

	snprintf(file, sizeof(file), "%.64s" PACK_SUFFIX, name);
	w.fd = openat(rp->s->packs_fd, file,
		O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (w.fd < 0 || fstat(w.fd, &st) < 0 || !S_ISREG(st.st_mode))
		goto out; /* there is nothing in it */
	w.size = (uint64_t)st.st_size;
	r = packs_get(rp->s, &w.set, e);
	if (r == 0 && pack_writer_new(rp->s->packs_fd, &w.to))
		r = err_sys(e, -ENOMEM, "repair");
	if (r == 0)
		r = save_wreck(&w, e);
out:
	pack_writer_free(w.to);
	packs_put(w.set);
	names_done(&w.seen);
	free(w.entries);
	cleanup_close_fn(&w.fd);
	return r;
}

static int
save_all(struct repair *rp, struct err *e)
{
	uint64_t before;
	unsigned round = 0;
	int r;

	do {
		cleanup_free struct bad_pack *bad = NULL;
		size_t n;

		before = rp->sum.chunks_saved;
		r = packs_bad(rp->s, &bad, &n, e);
		if (r == 0 && n)
			r = find_missed(rp, e);
		for (size_t i = 0; r == 0 && i < n; i++)
			r = save_pack(rp, bad[i].name, e);
	} while (r == 0 && rp->sum.chunks_saved > before && ++round < ROUNDS_MAX);
	return r;
}

static void
count_needs(void *ctx, const struct store_damage *d)
{
	*(size_t *)ctx += d->kind == STORE_DAMAGE_MISSING ||
			  d->kind == STORE_DAMAGE_CHUNK ||
			  d->kind == STORE_DAMAGE_MANIFEST;
}

/* When nothing that commits need is missing, or may be, damaged packs are of no use. */
static int
remove_wrecks(struct repair *rp, struct err *e)
{
	cleanup_free struct bad_pack *bad = NULL;
	size_t n, needs = 0;
	int r = packs_bad(rp->s, &bad, &n, e);

	if (r == 0 && n)
		r = store_verify(rp->s, NULL, count_needs, &needs, NULL, e);
	for (size_t i = 0; r == 0 && !needs && i < n; i++) {
		r = packs_forget_bad(rp->s, bad[i].name, e);
		rp->sum.packs_removed++;
	}
	return r;
}

int
store_repair(struct store *s, store_damage_fn *fn, void *ctx, struct store_repaired *ret,
	struct err *e)
{
	struct repair rp = {.s = s};
	int r;

	r = catalog_recheck(s, e);
	if (r < 0)
		return r;
	/* No gc, so no hold. */
	care_begin(s);
	r = chunk_reader_init(&rp.reader, s, e);
	if (r == 0)
		r = save_all(&rp, e);
	if (r == 0)
		r = remove_wrecks(&rp, e);
	chunk_reader_done(&rp.reader);
	names_done(&rp.missed);
	care_end(s);
	if (r == 0)
		r = store_verify(s, NULL, fn, ctx, &rp.sum.left, e);
	if (r == 0 && ret)
		*ret = rp.sum;
	return r;
}
