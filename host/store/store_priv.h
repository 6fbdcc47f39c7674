/* What the files of the store share. */
#ifndef PANDO_HOST_STORE_STORE_PRIV_H
#define PANDO_HOST_STORE_STORE_PRIV_H

#include <pthread.h>

#include "host/store/store.h"
#include "host/store/store_pack.h"
#include "host/store/store_pool.h"
#include "host/store/store_zip.h"

#define LEVELS_MAX 6u /* 64^6 pages are more than STORE_LENGTH_MAX */
#define MANIFEST_SUFFIX ".json"
#define PRUNED_SUFFIX ".pruned"
#define STORE_FORMAT "pando store 1\n"

struct bad_pack {
	char name[STORE_ID_MAX];
	struct err why;
};

/* Which chunks there may be, over all packs. */
struct filter {
	unsigned refs; /* atomic */
	struct bloom bloom;
	uint64_t keys; /* in it; atomic */
};

#define FILTERS_MAX 24u

/* The packs there are at one time, newest first. */
struct pack_set {
	int64_t refs; /* atomic */
	unsigned n_filters;
	struct filter *filters[FILTERS_MAX]; /* a chunk is in one of them, or nowhere */
	size_t n;
	struct pack *packs[];
};

struct store {
	char *path;				    /* owned; for sentences */
	int packs_fd, commits_fd, tags_fd, lock_fd; /* owned */

	/* Manifests and tags: whoever adds or removes one. Readers need no lock: files
	   come and go whole. */
	pthread_mutex_t names;

	struct catalog *catalog; /* owned; store_catalog.c's */
	int root_fd;		 /* owned: the folder that has it */

	/* The threads that writers share; made by the first. */
	pthread_mutex_t pool_lock;
	struct pool *pool; /* owned */
	unsigned threads;  /* of the next pool; 0: by the CPUs */

	/* Holds, and writers: those of this generation, and of the one before, which gc
	   waits for. Each gc begins a generation. */
	pthread_mutex_t hold_lock;
	pthread_cond_t hold_changed;
	uint64_t serial; /* of the store, in this process */
	uint64_t generation;
	unsigned holds_now, holds_before;

	/* The gc that runs, or NULL. Writers have the lock for reading while they look
	   chunks up; gc for writing, for moments. */
	pthread_rwlock_t gc_lock;
	struct gc *gc;	  /* weak */
	uint64_t deleted; /* atomic: commits, since the last gc that was finished */
	uint64_t deleted_ms, gc_ms; /* atomic: when the last was deleted; the last end */

	/* The packs (store_packs.c); 0 until somebody needs them. Owned. */
	uint64_t set_word; /* atomic */
	/* Called when there are new packs: tiers_poke(). */
	void (*packs_changed)(struct store *s, const struct pack_set *set);
	/* Whoever changes the set, or the names of packs' files. Held for moments, never
	   while a file is read, written or synced (but when the packs are loaded). */
	pthread_mutex_t change_lock;
	char (*publishing)[STORE_ID_MAX]; /* owned */
	size_t n_publishing;
	bool has_missed;	    /* atomic: the last store_verify() missed chunks */
	bool was_damaged;	    /* atomic: noted by an earlier process */
	struct bad_pack *bad_packs; /* owned */
	size_t n_bad_packs;

	/* store_note.c */
	pthread_mutex_t note_lock;
	unsigned notes; /* bits by enum note */
	uint64_t damage_seen;

	/* Who merges, collects or repairs: one at a time. care_wanted (atomic): somebody
	   waits for the lock, so the merges end. */
	pthread_mutex_t care_lock;
	unsigned care_wanted;

	/* The thread that merges. */
	pthread_mutex_t tiers_lock;
	pthread_cond_t tiers_changed;
	pthread_t tiers_thread;
	bool tiers_made, tiers_poked;
	bool closing; /* atomic too */
};

/* ---- store_base.c: files of the store's folders ---- */

/* A new file for unfinished things: its descriptor, or -errno. Removed by the next
 * store_open() when it is left behind. */
int store_temp_file(int folder_fd, char *ret_name, size_t cap);
/* A whole regular file, malloc'd and terminated; -EBADMSG what is none, -EFBIG above max.
 */
int store_read_at(
	int folder_fd, const char *name, size_t max, char **ret, size_t *ret_len);
/* Temp file, fsync, rename, fsync of the folder; passes fault points <what>-temp,
 * <what>-renamed and <what>-written. */
int store_write_at(
	int folder_fd, const char *name, const char *what, const void *data, size_t len);
/* Calls fn for each name of the folder that ends with suffix ("" for all), unfinished
 * ones left out, with the suffix cut off. Names that are longer than 64 are not ours. */
int store_each_name(int folder_fd, const char *suffix,
	int (*fn)(void *ctx, const char *name, struct err *e), void *ctx, struct err *e);
/* Removes what a crash left unfinished. The store's lock is held, so nobody works on it. */
int store_remove_temp_files(int folder_fd);
#define MANIFEST_NAME_MAX (STORE_HEX + sizeof(MANIFEST_SUFFIX))
void store_manifest_name(const char *id, char ret[static MANIFEST_NAME_MAX]);
bool store_has_commit(struct store *s, const char *id);
#define PRUNED_NAME_MAX (STORE_HEX + sizeof(PRUNED_SUFFIX))
void store_pruned_name(const char *id, char ret[static PRUNED_NAME_MAX]);
bool store_is_pruned(struct store *s, const char *id);

/* ---- store.c ---- */

int store_load_id(
	struct store *s, const char *id, struct store_manifest **ret, struct err *e);
/* Parent there (or pruned), manifest written, in the catalogue: not while somebody
 * deletes. */
int store_put_manifest(struct store *s, const struct store_fields *f, const char *id,
	const char *text, size_t len, struct err *e);
/* A hold that may be ended by any thread: with the generation it returns. */
uint64_t hold_begin(struct store *s);
void hold_end(struct store *s, uint64_t generation);
/* -ENOMEM. */
int store_pool(struct store *s, struct pool **ret);

/* ---- store_packs.c: the set of packs ---- */

/* The packs as they are now, until packs_put(). The first who asks loads them. */
int packs_get(struct store *s, struct pack_set **ret, struct err *e);
void packs_put(struct pack_set *set); /* NULL is fine */
static inline void
cleanup_packs_fn(struct pack_set **set)
{
	packs_put(*set);
}
#define cleanup_packs __attribute__((cleanup(cleanup_packs_fn)))
/* Nobody uses the store any more. */
void packs_done(struct store *s);
/* The set has just these; for tests. -ENOMEM. */
int packs_set_all(struct store *s, struct pack *const *packs, size_t n);
/* Gives a sealed pack its name and puts it into the set, when the name is durable. known:
 * of chunks that were in packs of the set. */
int packs_add(struct store *s, struct pack_writer *w, struct pack *p, bool known,
	struct err *e);
/* Takes packs out of the set and removes their files. Readers that have them go on. Those
 * that are not in the set, or just being written again, stay. Adds to *ret_…. */
int packs_retire(struct store *s, struct pack *const *packs, size_t n,
	uint64_t *ret_removed, uint64_t *ret_bytes, struct err *e);
/* Those that cannot be read, a copy: malloc'd. */
int packs_bad(struct store *s, struct bad_pack **ret, size_t *ret_n, struct err *e);
/* Removes one of them, if it is one still. */
int packs_forget_bad(struct store *s, const char *name, struct err *e);
/* One filter instead of many, or of one that is full of chunks that are gone. With
 * care_lock. */
int packs_renew_filter(struct store *s, struct err *e);

struct chunk_at {
	struct pack *pack;
	size_t entry;
	size_t number; /* of the pack in its set */
};

/* In the newest pack that has it and is not known to be damaged there. */
bool chunk_find(const struct pack_set *set, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta, struct chunk_at *ret);

/* Another copy, in an older pack, of what was found at *at. */
bool chunk_find_next(const struct pack_set *set, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta, struct chunk_at *at);

/* ---- store_gc.c ---- */

/* What a writer of a generation may take for stored. Between begin and end sets of packs
 * are got, and used. */
struct gc_view {
	struct store *s;
	struct gc *gc; /* NULL: whatever there is */
};

void gc_view_begin(struct store *s, uint64_t generation, struct gc_view *ret);
void gc_view_end(struct gc_view *v);
/* Whether it is stored, and stays. */
bool gc_find(struct gc_view *v, const struct pack_set *set, enum chunk_kind kind,
	const struct store_hash *hash, bool may_be_delta);
/* A writer goes on with what is stored of a tree without looking at it. -EBADMSG: that is
 * being removed. */
int gc_keep_tree(
	struct store *s, uint64_t generation, const struct store_tree *t, struct err *e);
/* A commit with these contents is about to be deleted; others may read it yet. names held.
 * -ENOMEM. */
int gc_keep_deleted(struct store *s, const struct store_fields *f);
bool gc_is_running(struct store *s);

/* ---- store_note.c ---- */

enum note { NOTE_DAMAGED, NOTE_GARBAGE };

/* What an earlier process noted. */
void notes_open(struct store *s);
/* A chunk that is nowhere, or nowhere sound. */
void note_damage(struct store *s);
/* How often, so far. */
uint64_t note_damage_seen(struct store *s);
/* All was read and nothing is damaged, unless somebody met with damage since so often. */
void note_sound(struct store *s, uint64_t seen);
/* Commits that were deleted, and those of which a gc has removed what was theirs. */
void gc_note_deleted(struct store *s, uint64_t n);
void gc_note_collected(struct store *s, uint64_t n);

/* ---- store_merge.c ---- */

/* How work that nobody waits for is cut into slices. */
struct slices {
	struct store *s;
	const bool *cancel; /* atomic; NULL: never */
	bool (*gone)(void *ctx); /* likewise, and asked once a slice */
	void *ctx;
	bool yields;	    /* ends also when somebody waits for care_lock */
	uint64_t done;	    /* bytes of work in this slice */
};

/* Whether it is to end, but for those who wait. */
bool slices_cancelled(const struct slices *sl);
/* Some bytes of work were done, or will be: now and then this pauses. -ECANCELED: it is to end. */
int slices_pass(struct slices *sl, uint64_t bytes, struct err *e);

/*
 * Copies the chunks of some packs into one new pack, which is durable and in the set before
 * the old ones are retired. live: per pack the bits of entries that are copied; NULL: all.
 * With care_lock. Where packs have the same chunk, a sound copy is kept; when a pack
 * cannot be read, all stays as it was.
 */
int packs_merge(struct slices *sl, struct pack *const *packs, const uint64_t *const *live,
	size_t n, struct store_freed *freed, struct err *e);
/* Says to the thread that merges that there may be something to do. */
void tiers_poke(struct store *s, const struct pack_set *set);
/* Ends it. */
void tiers_stop(struct store *s);
void care_begin(struct store *s);
void care_end(struct store *s);

/* ---- store_chunks.c ---- */

/* Working memory of a reader; one thread at a time. */
struct chunk_reader {
	struct store *s;
	struct zip *zip;
	char pack[STORE_ID_MAX]; /* where the last chunk read was; "" nowhere */
	/* Of the last node read: whether it is stored as a delta, and of which node. */
	bool was_delta;
	struct store_hash reference;
	struct store_hash referenced[NODE_FANOUT];
	uint8_t stored[CHUNK_MAX];
};

int chunk_reader_init(struct chunk_reader *c, struct store *s, struct err *e);
void chunk_reader_done(struct chunk_reader *c);
#define cleanup_reader __attribute__((cleanup(chunk_reader_done)))

/* A chunk's bytes, hashed. -EBADMSG: it is nowhere (c->pack "") or damaged. The name of
 * zeroes gives zeroes. */
int chunk_read(struct chunk_reader *c, enum chunk_kind kind,
	const struct store_hash *hash, void *ret, struct err *e);
/* The copy of it that is there. -EBADMSG: damaged, or it cannot be read. */
int chunk_read_at(struct chunk_reader *c, const struct pack_set *set,
	const struct chunk_at *at, void *ret);
/* For a node stored as a delta: the other node's name. */
int chunk_reference(struct store *s, const struct chunk_at *at, bool *ret_has,
	struct store_hash *ret, struct err *e);

/* ---- store_tree.c ---- */

static inline uint64_t
tree_pages(uint64_t length)
{
	return length / STORE_PAGE + (length % STORE_PAGE != 0);
}

/* Pages below one child of a node of this level (leaf nodes are level 1). */
static inline uint64_t
tree_child_pages(unsigned level)
{
	return 1ull << (6 * (level - 1));
}

unsigned tree_levels(uint64_t length);
int tree_check(const struct store_tree *t, struct err *e);
/* The children of the node at a place of a tree; -EBADMSG also when it has any beyond the
 * end. Above the tree's own levels it has one child, the root, by whose name it goes. */
int tree_node(struct chunk_reader *c, const struct store_tree *t, unsigned level,
	uint64_t first_page, const struct store_hash *name,
	struct store_hash ret[static NODE_FANOUT], struct err *e);
/* The page at a place; -EBADMSG also when it is not zero beyond the end. */
int tree_page(struct chunk_reader *c, const struct store_tree *t, uint64_t page,
	const struct store_hash *name, void *ret, struct err *e);

/* ---- store_manifest.c ---- */

/* JSON to canonical JSON, malloc'd: keys sorted by their bytes, no spaces, integers only,
 * no NUL. */
int json_canonical(const char *text, size_t len, char **ret, struct err *e);
/* malloc'd text. */
int manifest_format(
	const struct store_fields *f, char **ret, size_t *ret_len, struct err *e);
/* id is left empty. Only what manifest_format() would write is taken. */
int manifest_parse(
	const char *text, size_t len, struct store_manifest **ret, struct err *e);
/* A manifest from its file (<id>.json or <id>.pruned), checked; the catalogue is not told. */
int store_read_manifest(struct store *s, const char *id, bool pruned,
	struct store_manifest **ret, struct err *e);

#endif
