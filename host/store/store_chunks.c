/* The way from a chunk's name to its bytes. */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/store/store_priv.h"

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

static int read_from(struct chunk_reader *c, const struct pack_set *set,
	enum chunk_kind kind, const struct store_hash *hash, bool may_be_delta, void *ret,
	struct err *e);

/* c->stored holds a delta of len bytes. */
static int
apply_delta(struct chunk_reader *c, const struct pack_set *set, size_t len, void *ret)
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
	if (read_from(c, set, CHUNK_NODE, &d.reference, false, ret, NULL))
		return -EBADMSG;
	c->was_delta = true;
	c->reference = d.reference;
	memcpy(c->referenced, ret, sizeof(c->referenced));
	for (unsigned i = 0, k = 0; i < NODE_FANOUT; i++)
		if (d.changed >> i & 1)
			node[i] = changed[k++];
	return 0;
}

static int
decode(struct chunk_reader *c, const struct pack_set *set, const struct pack_entry *en,
	void *ret)
{
	uint32_t stored = le32toh(en->stored);

	c->was_delta = false;
	switch (en->coding) {
	case CODING_RAW:
		memcpy(ret, c->stored, stored);
		return 0;
	case CODING_ZSTD:
		return zip_unpack(c->zip, ret, chunk_len(en->kind), c->stored, stored);
	default:
		return apply_delta(c, set, stored, ret);
	}
}

int
chunk_read_at(struct chunk_reader *c, const struct pack_set *set,
	const struct chunk_at *at, void *ret)
{
	const struct pack_entry *en = &at->pack->index[at->entry];
	struct store_hash is;
	int r;

	r = pack_read(at->pack, c->s->packs_fd, at->entry, c->stored);
	if (r < 0)
		return r == -ENODATA || r == -EIO || r == -ENOENT ? -EBADMSG : r;
	r = decode(c, set, en, ret);
	if (r < 0)
		return r;
	hash_of(en->kind == CHUNK_NODE ? HASH_NODE : HASH_PLAIN, ret, chunk_len(en->kind),
		&is);
	return hash_equal(&is, &en->hash) ? 0 : -EBADMSG;
}

static int
read_from(struct chunk_reader *c, const struct pack_set *set, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta, void *ret, struct err *e)
{
	const char *what = kind == CHUNK_NODE ? "node" : "page";
	char hex[STORE_ID_MAX], where[STORE_ID_MAX] = "";
	struct chunk_at at;
	int r;

	/* What is damaged in one pack may be sound in another. */
	while (chunk_find(set, kind, hash, may_be_delta, &at)) {
		memcpy(where, at.pack->name, sizeof(where));
		r = chunk_read_at(c, set, &at, ret);
		if (r != -EBADMSG) {
			memcpy(c->pack, where, sizeof(where));
			return r < 0 ? err_sys(e, r, "pack %s", where) : 0;
		}
		pack_mark_bad(at.pack, at.entry);
	}
	/* Seen to be damaged by an earlier reader. */
	for (size_t i = 0; !where[0] && i < set->n; i++)
		if (pack_find(set->packs[i], kind, hash, true) >= 0)
			memcpy(where, set->packs[i]->name, sizeof(where));
	memcpy(c->pack, where, sizeof(where));
	note_damage(c->s);
	hash_to_hex(hash, hex);
	if (!where[0])
		return err_set(e, -EBADMSG, "%s %.12s is in no pack", what, hex);
	return err_set(e, -EBADMSG, "%s %.12s is damaged in pack %s", what, hex, where);
}

int
chunk_read(struct chunk_reader *c, enum chunk_kind kind, const struct store_hash *hash,
	void *ret, struct err *e)
{
	cleanup_packs struct pack_set *set = NULL;
	int r;

	if (hash_is_zero(hash)) {
		memset(ret, 0, chunk_len(kind));
		return 0;
	}
	r = packs_get(c->s, &set, e);
	return r < 0 ? r : read_from(c, set, kind, hash, true, ret, e);
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
