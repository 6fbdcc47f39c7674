/*
 * The set of packs. A set never changes: whoever adds or removes packs makes another one
 * and puts it in its place. So look-ups wait for nobody, and a reader that has a set may
 * go on with its packs when they have been merged or removed: their files stay open.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "host/store/store_priv.h"

#define FILTER_ROOM_MIN (64u << 10) /* keys */
#define LAST_READERS_MS 20u
#define RETIRED_AT_ONCE 8u /* packs, while change_lock is held */

/* ---- filters: which chunks there may be, over all packs ---- */

static struct filter *
filter_new(uint64_t room)
{
	struct filter *f = calloc(1, sizeof(*f));

	if (!f ||
		bloom_init(&f->bloom, room < FILTER_ROOM_MIN ? FILTER_ROOM_MIN : room)) {
		free(f);
		return NULL;
	}
	f->refs = 1;
	return f;
}

static void
filter_unref(struct filter *f)
{
	if (__atomic_sub_fetch(&f->refs, 1, __ATOMIC_ACQ_REL))
		return;
	bloom_done(&f->bloom);
	free(f);
}

static void
filter_add(struct filter *f, const struct pack *p)
{
	for (size_t i = 0; i < p->count; i++)
		bloom_add(&f->bloom, &p->index[i].hash);
	__atomic_add_fetch(&f->keys, p->count, __ATOMIC_RELAXED);
}

static bool
may_have(const struct pack_set *set, const struct store_hash *hash)
{
	for (unsigned i = set->n_filters; i-- > 0;)
		if (bloom_has(&set->filters[i]->bloom, hash))
			return true;
	return false;
}

/* ---- sets ---- */

static struct pack_set *
set_new(size_t room)
{
	struct pack_set *set =
		calloc(1, sizeof(*set) + (room ? room : 1) * sizeof(set->packs[0]));

	if (set)
		set->refs = 1;
	return set;
}

static void
set_add(struct pack_set *set, struct pack *p)
{
	__atomic_add_fetch(&p->refs, 1, __ATOMIC_RELAXED);
	set->packs[set->n++] = p;
}

static void
set_add_filter(struct pack_set *set, struct filter *f)
{
	__atomic_add_fetch(&f->refs, 1, __ATOMIC_RELAXED);
	set->filters[set->n_filters++] = f;
}

void
packs_put(struct pack_set *set)
{
	if (!set || __atomic_sub_fetch(&set->refs, 1, __ATOMIC_ACQ_REL))
		return;
	for (size_t i = 0; i < set->n; i++)
		pack_unref(set->packs[i]);
	for (unsigned i = 0; i < set->n_filters; i++)
		filter_unref(set->filters[i]);
	free(set);
}

/*
 * Where the set is, a reader comes by it with one atomic addition, so that nobody who has
 * lost his CPU holds others up: the word is the pointer and, below it, how many have taken
 * it from here. Who puts another set there adds that number to the old one's references,
 * which SET_INSTALLED kept from reaching 0.
 */
#define SET_TAKEN_BITS 16u
#define SET_TAKEN_MAX (1u << SET_TAKEN_BITS)
#define SET_INSTALLED (1ll << 40)
_Static_assert(sizeof(void *) == 8, "addresses of processes have 47 bits");

static struct pack_set *
set_of_word(uint64_t word)
{
	return (struct pack_set *)(uintptr_t)(word >> SET_TAKEN_BITS);
}

/* In time before there is no room to count. */
static void
move_taken(struct store *s, struct pack_set *set, uint64_t word)
{
	const uint64_t some = SET_TAKEN_MAX / 2;

	while (set_of_word(word) == set && word % SET_TAKEN_MAX >= some) {
		__atomic_add_fetch(&set->refs, (int64_t)some, __ATOMIC_RELAXED);
		if (__atomic_compare_exchange_n(&s->set_word, &word, word - some, false,
			    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
			return;
		__atomic_sub_fetch(&set->refs, (int64_t)some, __ATOMIC_RELAXED);
	}
}

static struct pack_set *
get_loaded(struct store *s)
{
	struct pack_set *set;
	uint64_t word;

	/* Once there is one, there is always one. */
	if (!__atomic_load_n(&s->set_word, __ATOMIC_RELAXED))
		return NULL;
	word = __atomic_add_fetch(&s->set_word, 1, __ATOMIC_ACQUIRE);
	set = set_of_word(word);
	if (word % SET_TAKEN_MAX >= SET_TAKEN_MAX / 2)
		move_taken(s, set, word);
	return set;
}

/* Of whoever changes it. change_lock held, or nobody else is there. */
static struct pack_set *
current(struct store *s)
{
	return set_of_word(__atomic_load_n(&s->set_word, __ATOMIC_ACQUIRE));
}

static void
install(struct store *s, struct pack_set *set)
{
	struct pack_set *old;
	uint64_t word;

	if (set)
		__atomic_add_fetch(&set->refs, SET_INSTALLED, __ATOMIC_RELAXED);
	word = __atomic_exchange_n(&s->set_word,
		(uint64_t)(uintptr_t)set << SET_TAKEN_BITS, __ATOMIC_ACQ_REL);
	old = set_of_word(word);
	if (!old)
		return;
	__atomic_add_fetch(&old->refs, (int64_t)(word % SET_TAKEN_MAX) - SET_INSTALLED,
		__ATOMIC_ACQ_REL);
	packs_put(old);
}

/* The packs with one filter over them, which has room for as many again. */
static struct pack_set *
set_of(struct pack *const *packs, size_t n)
{
	struct pack_set *set = set_new(n);
	struct filter *f;
	uint64_t keys = 0;

	for (size_t i = 0; i < n; i++)
		keys += packs[i]->count;
	f = set ? filter_new(2 * keys) : NULL;
	if (!f) {
		packs_put(set);
		return NULL;
	}
	for (size_t i = 0; i < n; i++) {
		filter_add(f, packs[i]);
		set_add(set, packs[i]);
	}
	set->filters[set->n_filters++] = f;
	return set;
}

int
packs_set_all(struct store *s, struct pack *const *packs, size_t n)
{
	struct pack_set *set = set_of(packs, n);

	if (!set)
		return -ENOMEM;
	install(s, set);
	return 0;
}

/* ---- loading ---- */

struct loading {
	struct store *s;
	struct pack **packs; /* owned, each with a reference */
	size_t n;
};

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

/* change_lock held. */
static void
forget_bad(struct store *s, const char *name)
{
	for (size_t i = 0; i < s->n_bad_packs; i++)
		if (strcmp(s->bad_packs[i].name, name) == 0)
			s->bad_packs[i--] = s->bad_packs[--s->n_bad_packs];
}

static int
load_one(void *ctx, const char *name, struct err *e)
{
	struct loading *l = ctx;
	struct store_hash ignored;
	struct pack **bigger, *p;
	struct err why = {0};
	int r;

	if (!hash_from_hex(name, &ignored))
		return 0;
	bigger = reallocarray(l->packs, l->n + 1, sizeof(*bigger));
	if (!bigger)
		return err_sys(e, -ENOMEM, "packs");
	l->packs = bigger;
	r = pack_open(l->s->packs_fd, name, &p, &why);
	if (r == -EBADMSG || r == -EIO) {
		/* The rest of the store may do without it; whoever needs it will say. */
		r = add_bad(l->s, name, &why);
		return r < 0 ? err_sys(e, r, "packs") : 0;
	}
	if (r < 0)
		return err_set(e, r, "%s", why.msg);
	l->packs[l->n++] = p;
	return 0;
}

/* change_lock held. */
static int
load(struct store *s, struct err *e)
{
	struct loading l = {.s = s};
	int r = store_each_name(s->packs_fd, PACK_SUFFIX, load_one, &l, e);

	if (r == 0) {
		if (l.n)
			qsort(l.packs, l.n, sizeof(*l.packs), newest_first);
		r = packs_set_all(s, l.packs, l.n);
		if (r < 0)
			err_sys(e, r, "packs");
	}
	if (r < 0)
		s->n_bad_packs = 0; /* they will be found again */
	for (size_t i = 0; i < l.n; i++)
		pack_unref(l.packs[i]);
	free(l.packs);
	return r;
}

int
packs_get(struct store *s, struct pack_set **ret, struct err *e)
{
	struct pack_set *set = get_loaded(s);
	int r = 0;

	if (!set) {
		pthread_mutex_lock(&s->change_lock);
		if (!current(s))
			r = load(s, e);
		pthread_mutex_unlock(&s->change_lock);
		if (r < 0)
			return r;
		set = get_loaded(s);
		s->packs_changed(s, set);
	}
	*ret = set;
	return 0;
}

void
packs_done(struct store *s)
{
	install(s, NULL);
	free(s->bad_packs);
	free(s->publishing);
	s->bad_packs = NULL;
	s->n_bad_packs = 0;
}

/* ---- changes ---- */

/* Makes sure that a filter of the set has the pack's chunks. change_lock held. */
static int
filter_in(struct pack_set *set, const struct pack *p)
{
	struct filter *f = set->n_filters ? set->filters[set->n_filters - 1] : NULL;
	uint64_t keys = 0;

	for (unsigned i = 0; i < set->n_filters; i++)
		keys += __atomic_load_n(&set->filters[i]->keys, __ATOMIC_RELAXED);
	/* A full one is joined by another, as large as all before; they are made one in
	   the background (packs_renew_filter()). */
	if (!f || (f->keys + p->count > f->bloom.room && set->n_filters < FILTERS_MAX)) {
		f = filter_new(keys > p->count ? keys : p->count);
		if (!f)
			return -ENOMEM;
		set->filters[set->n_filters++] = f;
	}
	filter_add(f, p);
	return 0;
}

/* The set that is there, with another pack at its place by age; one of the same name goes.
 * change_lock held. */
static int
add_locked(struct store *s, struct pack *p, bool known)
{
	const struct pack_set *old = current(s);
	struct pack_set *set = set_new(old->n + 1);
	bool placed = false;

	if (!set)
		return -ENOMEM;
	for (size_t i = 0; i < old->n; i++) {
		if (!placed && old->packs[i]->mtime_ns <= p->mtime_ns) {
			set_add(set, p);
			placed = true;
		}
		if (strcmp(old->packs[i]->name, p->name) != 0)
			set_add(set, old->packs[i]);
	}
	if (!placed)
		set_add(set, p);
	for (unsigned i = 0; i < old->n_filters; i++)
		set_add_filter(set, old->filters[i]);
	if (!known && filter_in(set, p)) {
		packs_put(set);
		return -ENOMEM;
	}
	install(s, set);
	return 0;
}

/* Names that are on their way into the set: nobody removes their files. change_lock held.
 */
static int
publishing_add(struct store *s, const char *name)
{
	void *bigger =
		reallocarray(s->publishing, s->n_publishing + 1, sizeof(*s->publishing));

	if (!bigger)
		return -ENOMEM;
	s->publishing = bigger;
	snprintf(s->publishing[s->n_publishing++], STORE_ID_MAX, "%s", name);
	return 0;
}

static bool
publishing_has(const struct store *s, const char *name)
{
	for (size_t i = 0; i < s->n_publishing; i++)
		if (strcmp(s->publishing[i], name) == 0)
			return true;
	return false;
}

static void
publishing_drop(struct store *s, const char *name)
{
	for (size_t i = 0; i < s->n_publishing; i++)
		if (strcmp(s->publishing[i], name) == 0) {
			memmove(s->publishing[i], s->publishing[--s->n_publishing],
				STORE_ID_MAX);
			return; /* two may publish the same */
		}
}

int
packs_add(
	struct store *s, struct pack_writer *w, struct pack *p, bool known, struct err *e)
{
	struct pack_set *set;
	int r = packs_get(s, &set, e);

	if (r < 0)
		return r;
	packs_put(set);
	pthread_mutex_lock(&s->change_lock);
	r = publishing_add(s, p->name);
	if (r == 0) {
		r = pack_writer_rename(w, p->name);
		if (r < 0)
			publishing_drop(s, p->name);
	}
	pthread_mutex_unlock(&s->change_lock);
	if (r < 0)
		return err_sys(e, r, "naming a pack");
	fault_point("store.pack-renamed");
	if (fsync(s->packs_fd) < 0)
		r = err_sys(e, -errno, "syncing the folder of packs");
	else
		fault_point("store.pack-written");
	pthread_mutex_lock(&s->change_lock);
	publishing_drop(s, p->name);
	if (r == 0 && (r = add_locked(s, p, known)) < 0)
		err_sys(e, r, "packs");
	if (r == 0)
		forget_bad(s, p->name);
	pthread_mutex_unlock(&s->change_lock);
	if (r < 0)
		return r;
	pack_fd_put(p); /* now its file can be opened by its name */
	if ((r = packs_get(s, &set, e)) == 0) {
		s->packs_changed(s, set);
		packs_put(set);
	}
	return r;
}

static bool
is_in(const struct pack_set *set, const struct pack *p)
{
	for (size_t i = 0; i < set->n; i++)
		if (set->packs[i] == p)
			return true;
	return false;
}

/* Some packs out of the set, and their files to names of unfinished ones, which needs no
 * more than a moment; those that are not in it (any more) stay as they are. */
static int
retire_some(struct store *s, struct pack *const *packs, size_t n,
	char temps[][PACK_TEMP_MAX], struct err *e)
{
	const struct pack_set *old;
	struct pack_set *set;
	int r = 0;

	pthread_mutex_lock(&s->change_lock);
	old = current(s);
	set = set_new(old->n);
	if (!set)
		r = err_sys(e, -ENOMEM, "packs");
	for (size_t i = 0; r == 0 && i < n; i++)
		if (is_in(old, packs[i]) && !publishing_has(s, packs[i]->name)) {
			r = pack_retire(s->packs_fd, packs[i]->name, temps[i]);
			if (r < 0)
				err_sys(e, r, "removing pack %s", packs[i]->name);
		}
	for (size_t i = 0; set && i < old->n; i++) {
		size_t k = 0;

		while (k < n && packs[k] != old->packs[i])
			k++;
		if (k == n || !temps[k][0])
			set_add(set, old->packs[i]);
	}
	if (set) {
		for (unsigned i = 0; i < old->n_filters; i++)
			set_add_filter(set, old->filters[i]);
		install(s, set);
	}
	pthread_mutex_unlock(&s->change_lock);
	return r;
}

/* The last one who lets go of a removed file frees its blocks, which may take long: not a
 * reader, if he is through soon. Sets hold packs for moments. */
static void
wait_for_readers(const struct pack *p)
{
	const struct timespec pause = {0, 1000000};

	/* The caller has it once or twice. */
	for (unsigned i = 0; i < LAST_READERS_MS; i++) {
		if (__atomic_load_n(&p->refs, __ATOMIC_RELAXED) <= 2)
			break;
		nanosleep(&pause, NULL);
	}
}

int
packs_retire(struct store *s, struct pack *const *packs, size_t n, uint64_t *ret_removed,
	uint64_t *ret_bytes, struct err *e)
{
	int r = 0;

	for (size_t at = 0; r == 0 && at < n; at += RETIRED_AT_ONCE) {
		size_t some = n - at < RETIRED_AT_ONCE ? n - at : RETIRED_AT_ONCE;
		char temps[RETIRED_AT_ONCE][PACK_TEMP_MAX] = {{0}};

		/* A reader that has found a chunk there has no other way to it. */
		for (size_t i = 0; r == 0 && i < some; i++) {
			r = pack_pin(packs[at + i], s->packs_fd);
			if (r == -ENOENT)
				r = 0; /* somebody removed it: nothing to lose */
			if (r < 0)
				err_sys(e, r, "pack %s", packs[at + i]->name);
		}
		if (r == 0)
			r = retire_some(s, packs + at, some, temps, e);
		if (r == 0)
			fault_point("store.pack-retired");
		for (size_t i = 0; i < some; i++) {
			if (!temps[i][0])
				continue;
			if (unlinkat(s->packs_fd, temps[i], 0) < 0 && errno != ENOENT &&
				r == 0)
				r = err_sys(e, -errno, "removing pack %s",
					packs[at + i]->name);
			++*ret_removed;
			*ret_bytes += packs[at + i]->bytes;
			fault_point("store.pack-removed");
			wait_for_readers(packs[at + i]);
		}
	}
	return r;
}

int
packs_forget_bad(struct store *s, const char *name, struct err *e)
{
	char temp[PACK_TEMP_MAX] = "";
	bool there = false;
	int r = 0;

	pthread_mutex_lock(&s->change_lock);
	for (size_t i = 0; i < s->n_bad_packs; i++)
		there |= strcmp(s->bad_packs[i].name, name) == 0;
	if (there && !publishing_has(s, name)) {
		r = pack_retire(s->packs_fd, name, temp);
		if (r == 0)
			forget_bad(s, name);
	}
	pthread_mutex_unlock(&s->change_lock);
	if (r == 0 && temp[0] && unlinkat(s->packs_fd, temp, 0) < 0 && errno != ENOENT)
		r = -errno;
	return r < 0 ? err_sys(e, r, "removing pack %s", name) : 0;
}

int
packs_bad(struct store *s, struct bad_pack **ret, size_t *ret_n, struct err *e)
{
	struct pack_set *set;
	struct bad_pack *copy;
	size_t n;
	int r = packs_get(s, &set, e); /* which finds them */

	if (r < 0)
		return r;
	packs_put(set);
	pthread_mutex_lock(&s->change_lock);
	n = s->n_bad_packs;
	copy = calloc(n + 1, sizeof(*copy));
	if (copy && n)
		memcpy(copy, s->bad_packs, n * sizeof(*copy));
	pthread_mutex_unlock(&s->change_lock);
	if (!copy)
		return err_sys(e, -ENOMEM, "packs");
	*ret = copy;
	*ret_n = n;
	return 0;
}

static bool
filters_are_worn(const struct pack_set *set)
{
	uint64_t keys = 0, chunks = 0;

	for (unsigned i = 0; i < set->n_filters; i++)
		keys += __atomic_load_n(&set->filters[i]->keys, __ATOMIC_RELAXED);
	for (size_t i = 0; i < set->n; i++)
		chunks += set->packs[i]->count;
	return set->n_filters > 4 || keys > 2 * chunks + FILTER_ROOM_MIN;
}

int
packs_renew_filter(struct store *s, struct err *e)
{
	struct pack_set *was, *set;
	struct filter *f = NULL;
	int r = packs_get(s, &was, e);
	uint64_t chunks = 0;

	if (r < 0)
		return r;
	if (filters_are_worn(was)) {
		for (size_t i = 0; i < was->n; i++)
			chunks += was->packs[i]->count;
		f = filter_new(2 * chunks);
	}
	for (size_t i = 0; f && i < was->n; i++)
		filter_add(f, was->packs[i]);
	if (f) {
		pthread_mutex_lock(&s->change_lock);
		const struct pack_set *now = current(s);

		set = set_new(now->n);
		for (size_t i = 0, k = 0; set && i < now->n; i++) {
			struct pack *p = now->packs[i];

			/* The others stand as they stood; this one is of a commit made
			   meanwhile. */
			if (k < was->n && was->packs[k] == p)
				k++;
			else
				filter_add(f, p);
			set_add(set, p);
		}
		if (set) {
			set_add_filter(set, f);
			install(s, set);
		}
		pthread_mutex_unlock(&s->change_lock);
		filter_unref(f);
	}
	packs_put(was);
	return 0;
}

static bool
find_from(const struct pack_set *set, size_t first, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta, struct chunk_at *ret)
{
	for (size_t i = first; i < set->n; i++) {
		struct pack *p = set->packs[i];
		int64_t entry = pack_find(p, kind, hash, false);

		if (entry >= 0 &&
			(may_be_delta || p->index[entry].coding != CODING_DELTA)) {
			*ret = (struct chunk_at){p, (size_t)entry, i};
			return true;
		}
	}
	return false;
}

bool
chunk_find(const struct pack_set *set, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta, struct chunk_at *ret)
{
	return may_have(set, hash) && find_from(set, 0, kind, hash, may_be_delta, ret);
}

bool
chunk_find_next(const struct pack_set *set, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta, struct chunk_at *at)
{
	return find_from(set, at->number + 1, kind, hash, may_be_delta, at);
}

/* Whether a reader met with a damaged chunk of the pack that is nowhere else. */
static bool
has_lost(const struct pack_set *set, const struct pack *p)
{
	struct chunk_at ignored;

	for (size_t i = pack_next_bad(p, 0); i < p->count; i = pack_next_bad(p, i + 1))
		if (!chunk_find(set, p->index[i].kind, &p->index[i].hash, true, &ignored))
			return true;
	return false;
}

bool
store_is_damaged(struct store *s)
{
	cleanup_packs struct pack_set *set = NULL;
	bool is;

	if (packs_get(s, &set, NULL) < 0)
		return true;
	pthread_mutex_lock(&s->change_lock);
	is = s->n_bad_packs != 0;
	pthread_mutex_unlock(&s->change_lock);
	is = is || __atomic_load_n(&s->has_missed, __ATOMIC_RELAXED) ||
	     __atomic_load_n(&s->was_damaged, __ATOMIC_RELAXED);
	for (size_t i = 0; !is && i < set->n; i++)
		is = has_lost(set, set->packs[i]);
	return is;
}
