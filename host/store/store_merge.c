/*
 * Packs, merged. Each commit adds a pack; so that a look-up has few to ask and a process
 * few to map, eight of about the same size become one, as in a log-structured merge tree:
 * there are no more than seven of each class of sizes for long, and a chunk is copied once
 * a class. A thread of low priority does it, in slices with pauses.
 *
 * Crashes: the new pack is durable before the old ones go, so chunks are there twice or
 * once, never not at all. Readers and commits wait for none of it (store_packs.c).
 */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "host/store/store_priv.h"

#define SLICE_BYTES (1u << 20)
#define PAUSE_NS 1000000
#define CLASS_FACTOR 8u
#define CLASS_PACKS 8u		/* so many of a class become one */
#define CLASS_FIRST (64u << 10) /* bytes; the first class is below */
#define CLASS_LAST (256u << 20) /* those that have so many are not merged by size */
#define MERGE_PACKS_MAX 64u	/* at once */
#define MERGE_BYTES_MAX (512u << 20)
#define MERGE_CHUNKS_MAX (2u << 20) /* their index is in memory */

void
care_begin(struct store *s)
{
	__atomic_add_fetch(&s->care_wanted, 1, __ATOMIC_RELAXED);
	pthread_mutex_lock(&s->care_lock);
	__atomic_sub_fetch(&s->care_wanted, 1, __ATOMIC_RELAXED);
}

void
care_end(struct store *s)
{
	pthread_mutex_unlock(&s->care_lock);
}

static bool
is_set(const bool *flag)
{
	return flag && __atomic_load_n(flag, __ATOMIC_RELAXED);
}

static bool
is_wanted(const struct store *s)
{
	return __atomic_load_n(&s->care_wanted, __ATOMIC_RELAXED) != 0;
}

bool
slices_cancelled(const struct slices *sl)
{
	return is_set(sl->cancel) || (sl->gone && sl->gone(sl->ctx));
}

int
slices_pass(struct slices *sl, uint64_t bytes, struct err *e)
{
	const struct timespec pause = {0, PAUSE_NS};

	if (is_set(sl->cancel) || (sl->yields && is_wanted(sl->s)))
		return err_set(e, -ECANCELED, "cancelled");
	sl->done += bytes;
	if (sl->done < SLICE_BYTES)
		return 0;
	sl->done = 0;
	if (slices_cancelled(sl))
		return err_set(e, -ECANCELED, "cancelled");
	nanosleep(&pause, NULL);
	return 0;
}

struct merging {
	struct slices *sl; /* borrowed, as all below */
	struct pack_set *set;
	struct pack *const *packs;
	const uint64_t *const *live;
	size_t n;
	struct chunk_reader reader;
	struct pack_writer *to; /* owned */
};

static bool
is_live(const struct merging *m, size_t pack, size_t entry)
{
	return !m->live || m->live[pack][entry / 64] >> (entry % 64) & 1;
}

/* How much a copy is worth: whole nodes may be what others are deltas of. */
static int
worth(struct merging *m, const struct chunk_at *at)
{
	uint8_t ignored[CHUNK_MAX];

	if (chunk_read_at(&m->reader, m->set, at, ignored))
		return 0;
	return at->pack->index[at->entry].coding == CODING_DELTA ? 1 : 2;
}

/* The copy to keep of a chunk that the pack of that number has: only where several have it
 * are they looked at. */
static struct chunk_at
best_copy(struct merging *m, size_t pack, size_t entry)
{
	const struct pack_entry *en = &m->packs[pack]->index[entry];
	struct chunk_at best = {m->packs[pack], entry, pack};
	int best_worth = -1;

	for (size_t i = 0; i < m->n; i++) {
		struct chunk_at at = {m->packs[i], 0, i};
		int64_t found =
			i == pack ? -1 : pack_find(at.pack, en->kind, &en->hash, true);
		int is;

		if (found < 0 || !is_live(m, i, (size_t)found))
			continue;
		at.entry = (size_t)found;
		if (best_worth < 0)
			best_worth = worth(m, &best);
		is = best_worth < 2 ? worth(m, &at) : 0;
		if (is > best_worth) {
			best = at;
			best_worth = is;
		}
	}
	return best;
}

static int
copy_entry(struct merging *m, size_t pack, size_t entry, struct err *e)
{
	const struct pack_entry *en = &m->packs[pack]->index[entry];
	uint8_t stored[CHUNK_MAX];
	struct chunk_at at;
	uint32_t len;
	int r;

	if (!is_live(m, pack, entry) || pack_writer_has(m->to, en->kind, &en->hash))
		return 0;
	at = best_copy(m, pack, entry);
	en = &at.pack->index[at.entry];
	len = le32toh(en->stored);
	r = pack_read(at.pack, m->sl->s->packs_fd, at.entry, stored);
	if (r < 0) {
		__atomic_store_n(&at.pack->unmergeable, true, __ATOMIC_RELAXED);
		return err_sys(e, r == -ENODATA || r == -EIO ? -EBADMSG : r, "pack %s",
			at.pack->name);
	}
	r = pack_writer_add(m->to, en->kind, en->coding, &en->hash, stored, len, e);
	return r < 0 ? r : slices_pass(m->sl, len + sizeof(*en), e);
}

struct place {
	uint64_t offset;
	uint32_t entry;
};

static int
by_offset(const void *pa, const void *pb)
{
	const struct place *a = pa, *b = pb;

	return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* In the order of the file: what was written together stays together. */
static int
copy_pack(struct merging *m, size_t pack, struct err *e)
{
	const struct pack *p = m->packs[pack];
	cleanup_free struct place *places = calloc(p->count, sizeof(*places));
	int r = 0;

	if (!places)
		return err_sys(e, -ENOMEM, "merging packs");
	for (size_t i = 0; i < p->count; i++)
		places[i] = (struct place){le64toh(p->index[i].offset), (uint32_t)i};
	qsort(places, p->count, sizeof(*places), by_offset);
	for (size_t i = 0; r == 0 && i < p->count; i++)
		r = copy_entry(m, pack, places[i].entry, e);
	return r;
}

/* What readers met with in the old packs is copied as it is, by its name, and nothing of the new one
 * would say that it is damaged. Copies that are sound are not marked. */
static void
mark_copies_of_bad(struct merging *m, struct pack *to)
{
	uint8_t ignored[CHUNK_MAX];

	for (size_t i = 0; i < m->n; i++) {
		const struct pack *from = m->packs[i];

		for (size_t bad = pack_next_bad(from, 0); bad < from->count;
			bad = pack_next_bad(from, bad + 1)) {
			const struct pack_entry *en = &from->index[bad];
			struct chunk_at at = {.pack = to};
			int64_t found = pack_find(to, en->kind, &en->hash, true);

			if (found < 0)
				continue;
			at.entry = (size_t)found;
			if (chunk_read_at(&m->reader, m->set, &at, ignored) == -EBADMSG)
				pack_mark_bad(to, at.entry);
		}
	}
}

static int
write_merged(struct merging *m, uint64_t *ret_bytes, struct err *e)
{
	struct pack *p = NULL;
	int64_t newest = 0;
	int r = 0;

	for (size_t i = 0; i < m->n; i++)
		if (m->packs[i]->mtime_ns > newest)
			newest = m->packs[i]->mtime_ns;
	pack_writer_set_time(m->to, newest);
	for (size_t i = 0; r == 0 && i < m->n; i++)
		r = copy_pack(m, i, e);
	if (r == 0)
		r = pack_writer_seal(m->to, &p, ret_bytes, e);
	if (r < 0 || !p)
		return r;
	mark_copies_of_bad(m, p);
	r = packs_add(m->sl->s, m->to, p, true, e);
	if (r == 0)
		mark_copies_of_bad(m, p); /* met with meanwhile */
	/* One had it all: the new one took its place, and nothing was added. */
	for (size_t i = 0; i < m->n; i++)
		if (strcmp(m->packs[i]->name, p->name) == 0)
			*ret_bytes = 0;
	pack_unref(p);
	return r;
}

int
packs_merge(struct slices *sl, struct pack *const *packs, const uint64_t *const *live,
	size_t n, struct store_freed *freed, struct err *e)
{
	struct merging m = {.sl = sl, .packs = packs, .live = live, .n = n};
	uint64_t bytes = 0, old_bytes = 0;
	int r = chunk_reader_init(&m.reader, sl->s, e);

	if (r == 0)
		r = packs_get(sl->s, &m.set, e);
	if (r == 0 && pack_writer_new(sl->s->packs_fd, &m.to))
		r = err_sys(e, -ENOMEM, "merging packs");
	if (r == 0)
		r = write_merged(&m, &bytes, e);
	pack_writer_free(m.to);
	packs_put(m.set);
	chunk_reader_done(&m.reader);
	if (r < 0)
		return r;
	fault_point("store.merge-added");
	r = packs_retire(sl->s, packs, n, &freed->packs_rewritten, &old_bytes, e);
	if (old_bytes > bytes)
		freed->bytes += old_bytes - bytes;
	return r;
}

/* ---- tiers ---- */

/* Smaller ones first; CLASSES: not merged by size. */
#define CLASSES 5u

static unsigned
class_of(const struct pack *p)
{
	uint64_t end = CLASS_FIRST;
	unsigned class = 0;

	/* What is damaged stays where it is, to be named. */
	if (__atomic_load_n(&p->unmergeable, __ATOMIC_RELAXED) || pack_next_bad(p, 0) < p->count)
		return CLASSES;
	for (; p->bytes >= end && end < CLASS_LAST; end *= CLASS_FACTOR)
		class ++;
	return p->bytes < end ? class : CLASSES;
}

/* The lowest class that has enough, or CLASSES. */
static unsigned
full_class(const struct pack_set *set)
{
	unsigned n[CLASSES + 1] = {0}, class = 0;

	for (size_t i = 0; i < set->n; i++)
		n[class_of(set->packs[i])]++;
	while (class < CLASSES && n[class] < CLASS_PACKS)
		class ++;
	return class;
}

/* Merges once. 1: there was something to merge. */
static int
step(struct slices *sl, struct err *e)
{
	cleanup_packs struct pack_set *set = NULL;
	struct pack *chosen[MERGE_PACKS_MAX];
	size_t first = MERGE_PACKS_MAX;
	struct store_freed ignored = {0};
	uint64_t bytes = 0, chunks = 0;
	unsigned class;
	int r;

	if ((r = packs_renew_filter(sl->s, e)) < 0 || (r = packs_get(sl->s, &set, e)) < 0)
		return r;
	class = full_class(set);
	if (class == CLASSES)
		return 0;
	/* Oldest first, kept in the order of the set. */
	for (size_t i = set->n; i-- > 0 && first > 0;) {
		struct pack *p = set->packs[i];

		if (class_of(p) != class)
			continue;
		bytes += p->bytes;
		chunks += p->count;
		if (first + 2 <= MERGE_PACKS_MAX &&
			(bytes > MERGE_BYTES_MAX || chunks > MERGE_CHUNKS_MAX))
			break;
		chosen[--first] = p;
	}
	r = packs_merge(sl, chosen + first, NULL, MERGE_PACKS_MAX - first, &ignored, e);
	return r < 0 ? r : 1;
}

int
store_settle(struct store *s, const bool *cancel, struct err *e)
{
	struct slices sl = {.s = s, .cancel = cancel};
	int r;

	care_begin(s);
	do
		r = step(&sl, e);
	while (r > 0);
	care_end(s);
	return r;
}

static void
merge_all(struct store *s)
{
	const struct timespec pause = {0, PAUSE_NS};
	struct slices sl = {.s = s, .cancel = &s->closing, .yields = true};
	int r;

	do {
		while (is_wanted(s) && !is_set(&s->closing))
			nanosleep(&pause, NULL);
		pthread_mutex_lock(&s->care_lock);
		/* What fails, a full disk say, is tried again after the next commit. */
		r = is_set(&s->closing) ? 0 : step(&sl, NULL);
		pthread_mutex_unlock(&s->care_lock);
	} while (r > 0 || (r == -ECANCELED && !is_set(&s->closing)));
}

static void *
tiers_main(void *arg)
{
	struct store *s = arg;

	pool_lower_priority();
	pthread_mutex_lock(&s->tiers_lock);
	for (;;) {
		while (!s->tiers_poked && !s->closing)
			pthread_cond_wait(&s->tiers_changed, &s->tiers_lock);
		if (s->closing)
			break;
		s->tiers_poked = false;
		pthread_mutex_unlock(&s->tiers_lock);
		merge_all(s);
		pthread_mutex_lock(&s->tiers_lock);
	}
	pthread_mutex_unlock(&s->tiers_lock);
	return NULL;
}

void
tiers_poke(struct store *s, const struct pack_set *set)
{
	if (full_class(set) == CLASSES)
		return;
	pthread_mutex_lock(&s->tiers_lock);
	s->tiers_poked = true;
	if (!s->tiers_made && !s->closing)
		s->tiers_made =
			pthread_create(&s->tiers_thread, NULL, tiers_main, s) == 0;
	pthread_cond_signal(&s->tiers_changed);
	pthread_mutex_unlock(&s->tiers_lock);
}

void
tiers_stop(struct store *s)
{
	pthread_mutex_lock(&s->tiers_lock);
	__atomic_store_n(&s->closing, true, __ATOMIC_RELAXED);
	pthread_cond_signal(&s->tiers_changed);
	pthread_mutex_unlock(&s->tiers_lock);
	if (s->tiers_made)
		pthread_join(s->tiers_thread, NULL);
}
