/* The set of packs, and the way from a chunk's name to its bytes. */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/store/store_priv.h"

static int
newest_first(const void *pa, const void *pb)
{
	const struct pack *a = *(struct pack *const *)pa, *b = *(struct pack *const *)pb;

	if (a->mtime_ns != b->mtime_ns)
		return a->mtime_ns < b->mtime_ns ? 1 : -1;
	return strcmp(a->name, b->name);
}

static int
add_bad(struct store *s, const char *name, const struct err *why)
{
	struct bad_pack *bigger =
		reallocarray(s->bad_packs, s->n_bad_packs + 1, sizeof(*bigger));

	if (!bigger)
		return -ENOMEM;
	s->bad_packs = bigger;
	snprintf(bigger[s->n_bad_packs].name, sizeof(bigger->name), "%s", name);
	bigger[s->n_bad_packs++].why = *why;
	return 0;
}

static int
load_one(void *ctx, const char *name, struct err *e)
{
	struct store *s = ctx;
	struct store_hash ignored;
	struct pack **bigger, *p;
	struct err why = {0};
	int r;

	if (!hash_from_hex(name, &ignored))
		return 0;
	bigger = reallocarray(s->packs, s->n_packs + 1, sizeof(*bigger));
	if (!bigger)
		return err_sys(e, -ENOMEM, "packs");
	s->packs = bigger;
	r = pack_open(s->packs_fd, name, &p, &why);
	if (r == -EBADMSG || r == -EIO) {
		/* The rest of the store may do without it; whoever needs it will say. */
		r = add_bad(s, name, &why);
		return r < 0 ? err_sys(e, r, "packs") : 0;
	}
	if (r < 0)
		return err_set(e, r, "%s", why.msg);
	s->packs[s->n_packs++] = p;
	return 0;
}

void
packs_drop_all(struct store *s)
{
	for (size_t i = 0; i < s->n_packs; i++)
		pack_free(s->packs[i]);
	free(s->packs);
	free(s->bad_packs);
	bloom_done(&s->bloom);
	s->n_chunks = 0;
	s->packs = NULL;
	s->bad_packs = NULL;
	s->n_packs = s->n_bad_packs = 0;
	__atomic_store_n(&s->packs_loaded, false, __ATOMIC_RELEASE);
}

/* Of all packs, with room for as much again. packs_lock held for writing. */
static int
fill_bloom(struct store *s)
{
	uint64_t n = 0;

	for (size_t i = 0; i < s->n_packs; i++)
		n += s->packs[i]->count;
	bloom_done(&s->bloom);
	if (bloom_init(&s->bloom, 2 * n))
		return -ENOMEM;
	for (size_t i = 0; i < s->n_packs; i++)
		for (size_t k = 0; k < s->packs[i]->count; k++)
			bloom_add(&s->bloom, &s->packs[i]->index[k].hash);
	s->n_chunks = n;
	return 0;
}

/* With the newest pack's. */
static int
extend_bloom(struct store *s)
{
	const struct pack *p = s->packs[0];

	if (s->n_chunks + p->count > s->bloom.room)
		return fill_bloom(s);
	for (size_t k = 0; k < p->count; k++)
		bloom_add(&s->bloom, &p->index[k].hash);
	s->n_chunks += p->count;
	return 0;
}

int
packs_lock_write(struct store *s, struct err *e)
{
	int r = 0;

	pthread_rwlock_wrlock(&s->packs_lock);
	if (!s->packs_loaded) {
		r = store_each_name(s->packs_fd, PACK_SUFFIX, load_one, s, e);
		if (r == 0 && fill_bloom(s))
			r = err_sys(e, -ENOMEM, "packs");
		if (r < 0) {
			packs_drop_all(s);
			pthread_rwlock_unlock(&s->packs_lock);
			return r;
		}
		if (s->n_packs)
			qsort(s->packs, s->n_packs, sizeof(*s->packs), newest_first);
		__atomic_store_n(&s->packs_loaded, true, __ATOMIC_RELEASE);
	}
	return 0;
}

int
packs_lock_read(struct store *s, struct err *e)
{
	int r;

	for (;;) {
		if (!__atomic_load_n(&s->packs_loaded, __ATOMIC_ACQUIRE)) {
			r = packs_lock_write(s, e);
			if (r < 0)
				return r;
			packs_unlock(s);
		}
		pthread_rwlock_rdlock(&s->packs_lock);
		if (s->packs_loaded)
			return 0;
		packs_unlock(s);
	}
}

void
packs_unlock(struct store *s)
{
	pthread_rwlock_unlock(&s->packs_lock);
}

/* A pack whose file was replaced by a new one of the same name, hence of the same index.
 * packs_lock held for writing. */
static void
renew(struct pack *p)
{
	pack_close_file(p);
	memset(p->bad, 0, (p->count + 63) / 64 * sizeof(*p->bad));
}

int
packs_add(struct store *s, const char *name, struct err *e)
{
	struct pack **bigger, *p;
	int r = packs_lock_write(s, e);

	if (r < 0)
		return r;
	/* Loaded just now, or written by another commit of the same chunks. */
	for (size_t i = 0; i < s->n_packs; i++)
		if (strcmp(s->packs[i]->name, name) == 0) {
			renew(s->packs[i]);
			packs_unlock(s);
			return 0;
		}
	for (size_t i = 0; i < s->n_bad_packs; i++)
		if (strcmp(s->bad_packs[i].name, name) == 0)
			s->bad_packs[i--] = s->bad_packs[--s->n_bad_packs];
	bigger = reallocarray(s->packs, s->n_packs + 1, sizeof(*bigger));
	if (bigger) {
		s->packs = bigger;
		r = pack_open(s->packs_fd, name, &p, e);
	} else {
		r = err_sys(e, -ENOMEM, "packs");
	}
	if (r == 0) {
		memmove(s->packs + 1, s->packs, s->n_packs * sizeof(*s->packs));
		s->packs[0] = p;
		s->n_packs++;
		if (extend_bloom(s)) {
			/* A bloom without it would hide it: all anew, when there is room.
			 */
			packs_drop_all(s);
			r = err_sys(e, -ENOMEM, "packs");
		}
	}
	packs_unlock(s);
	return r;
}

bool
chunk_find(struct store *s, enum chunk_kind kind, const struct store_hash *hash,
	bool may_be_delta, struct chunk_at *ret)
{
	if (!bloom_has(&s->bloom, hash))
		return false;
	for (size_t i = 0; i < s->n_packs; i++) {
		int64_t entry = pack_find(s->packs[i], kind, hash, false);

		if (entry >= 0 && (may_be_delta || s->packs[i]->index[entry].coding !=
							   CODING_DELTA)) {
			*ret = (struct chunk_at){s->packs[i], (size_t)entry};
			return true;
		}
	}
	return false;
}

int
chunk_is_stored(struct store *s, enum chunk_kind kind, const struct store_hash *hash,
	bool *ret, struct err *e)
{
	struct chunk_at at;
	int r = packs_lock_read(s, e);

	if (r < 0)
		return r;
	*ret = chunk_find(s, kind, hash, true, &at);
	packs_unlock(s);
	return 0;
}

int
chunk_reader_init(struct chunk_reader *c, struct store *s, struct err *e)
{
	c->s = s;
	c->pack[0] = '\0';
	c->zip = NULL;
	return zip_new(&c->zip) ? err_sys(e, -ENOMEM, "reading the store") : 0;
}

void
chunk_reader_done(struct chunk_reader *c)
{
	zip_free(c->zip);
	c->zip = NULL;
}

static int read_locked(struct chunk_reader *c, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta, void *ret, struct err *e);

/* c->stored holds a delta of len bytes. */
static int
apply_delta(struct chunk_reader *c, size_t len, void *ret, struct err *e)
{
	struct store_hash changed[NODE_FANOUT], *node = ret;
	struct node_delta d;
	size_t n;

	memcpy(&d, c->stored, sizeof(d));
	d.changed = le64toh(d.changed);
	n = (size_t)__builtin_popcountll(d.changed);
	if (len != sizeof(d) + n * sizeof(*changed))
		return -EBADMSG;
	memcpy(changed, c->stored + sizeof(d), n * sizeof(*changed));
	/* Not a delta too, so this ends. */
	if (read_locked(c, CHUNK_NODE, &d.reference, false, ret, e))
		return -EBADMSG;
	for (unsigned i = 0, k = 0; i < NODE_FANOUT; i++)
		if (d.changed >> i & 1)
			node[i] = changed[k++];
	return 0;
}

static int
decode(struct chunk_reader *c, const struct pack_entry *en, void *ret)
{
	uint32_t stored = le32toh(en->stored);

	switch (en->coding) {
	case CODING_RAW:
		memcpy(ret, c->stored, stored);
		return 0;
	case CODING_ZSTD:
		return zip_unpack(c->zip, ret, chunk_len(en->kind), c->stored, stored);
	default:
		return apply_delta(c, stored, ret, NULL);
	}
}

static int
read_at(struct chunk_reader *c, const struct chunk_at *at, void *ret)
{
	const struct pack_entry *en = &at->pack->index[at->entry];
	struct store_hash is;
	int r;

	r = pack_read(at->pack, c->s->packs_fd, at->entry, c->stored);
	if (r < 0)
		return r == -ENODATA || r == -EIO || r == -ENOENT ? -EBADMSG : r;
	r = decode(c, en, ret);
	if (r < 0)
		return r;
	hash_of(en->kind == CHUNK_NODE ? HASH_NODE : HASH_PLAIN, ret, chunk_len(en->kind),
		&is);
	return hash_equal(&is, &en->hash) ? 0 : -EBADMSG;
}

static int
read_locked(struct chunk_reader *c, enum chunk_kind kind, const struct store_hash *hash,
	bool may_be_delta, void *ret, struct err *e)
{
	const char *what = kind == CHUNK_NODE ? "node" : "page";
	char hex[STORE_ID_MAX], where[STORE_ID_MAX] = "";
	struct chunk_at at;
	int r;

	/* What is damaged in one pack may be sound in another. */
	while (chunk_find(c->s, kind, hash, may_be_delta, &at)) {
		memcpy(where, at.pack->name, sizeof(where));
		r = read_at(c, &at, ret);
		if (r != -EBADMSG) {
			memcpy(c->pack, where, sizeof(where));
			return r < 0 ? err_sys(e, r, "pack %s", where) : 0;
		}
		pack_mark_bad(at.pack, at.entry);
	}
	/* Seen to be damaged by an earlier reader. */
	for (size_t i = 0; !where[0] && i < c->s->n_packs; i++)
		if (pack_find(c->s->packs[i], kind, hash, true) >= 0)
			memcpy(where, c->s->packs[i]->name, sizeof(where));
	memcpy(c->pack, where, sizeof(where));
	hash_to_hex(hash, hex);
	if (!where[0])
		return err_set(e, -EBADMSG, "%s %.12s is in no pack", what, hex);
	return err_set(e, -EBADMSG, "%s %.12s is damaged in pack %s", what, hex, where);
}

int
chunk_read(struct chunk_reader *c, enum chunk_kind kind, const struct store_hash *hash,
	void *ret, struct err *e)
{
	int r;

	if (hash_is_zero(hash)) {
		memset(ret, 0, chunk_len(kind));
		return 0;
	}
	r = packs_lock_read(c->s, e);
	if (r < 0)
		return r;
	r = read_locked(c, kind, hash, true, ret, e);
	packs_unlock(c->s);
	return r;
}

int
chunk_reference(struct store *s, const struct chunk_at *at, bool *ret_has,
	struct store_hash *ret, struct err *e)
{
	const struct pack_entry *en = &at->pack->index[at->entry];
	uint8_t stored[CHUNK_MAX];
	int r;

	*ret_has = en->coding == CODING_DELTA;
	if (!*ret_has)
		return 0;
	r = pack_read(at->pack, s->packs_fd, at->entry, stored);
	if (r < 0)
		return err_sys(e, r, "pack %s", at->pack->name);
	memcpy(ret, stored, sizeof(*ret));
	return 0;
}
