/* What the files of the store share. */
#ifndef PANDO_HOST_STORE_STORE_PRIV_H
#define PANDO_HOST_STORE_STORE_PRIV_H

#include <pthread.h>

#include "host/store/store.h"
#include "host/store/store_pack.h"
#include "host/store/store_zip.h"

#define LEVELS_MAX 6u /* 64^6 pages are more than STORE_LENGTH_MAX */
#define MANIFEST_SUFFIX ".json"
#define PRUNED_SUFFIX ".pruned"
#define STORE_FORMAT "pando store 1\n"

struct bad_pack {
	char name[STORE_ID_MAX];
	struct err why;
};

struct store {
	char *path;				    /* owned; for sentences */
	int packs_fd, commits_fd, tags_fd, lock_fd; /* owned */

	/* Manifests and tags: whoever adds or removes one. Readers need no lock: files
	   come and go whole. */
	pthread_mutex_t names;

	struct catalog *catalog; /* owned; store_catalog.c's */
	int root_fd;		 /* owned: the folder that has it */

	/* Holds (writers are some) against gc. */
	pthread_mutex_t hold_lock;
	pthread_cond_t hold_changed;
	unsigned holds;
	bool gc_wants;

	/* The packs, newest first. Held for reading by whoever uses one; gc and finished
	   commits change the list. Taken with packs_lock_read(). */
	pthread_rwlock_t packs_lock;
	bool packs_loaded;
	struct pack **packs; /* owned */
	size_t n_packs;
	struct bloom bloom; /* of all of them: what is new is seen to be at once */
	uint64_t n_chunks;  /* in it */
	struct bad_pack *bad_packs; /* owned */
	size_t n_bad_packs;
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
/* As hold, but alone: waits until nobody holds, and nobody can until it is ended. */
void store_alone_begin(struct store *s);
void store_alone_end(struct store *s);

/* ---- store_chunks.c: the set of packs ---- */

/* Takes packs_lock for reading or writing; packs are loaded by the first who does. */
int packs_lock_read(struct store *s, struct err *e);
int packs_lock_write(struct store *s, struct err *e);
void packs_unlock(struct store *s);
void packs_drop_all(struct store *s);
/* Opens a pack just written and puts it first. */
int packs_add(struct store *s, const char *name, struct err *e);

struct chunk_at {
	struct pack *pack;
	size_t entry;
};

/* In the newest pack that has it and is not known to be damaged there. packs_lock held.
 */
bool chunk_find(struct store *s, enum chunk_kind kind, const struct store_hash *hash,
	bool may_be_delta, struct chunk_at *ret);
/* Takes the lock itself. */
int chunk_is_stored(struct store *s, enum chunk_kind kind, const struct store_hash *hash,
	bool *ret, struct err *e);

/* Working memory of a reader; one thread at a time. */
struct chunk_reader {
	struct store *s;
	struct zip *zip;
	char pack[STORE_ID_MAX]; /* where the last chunk read was; "" nowhere */
	uint8_t stored[CHUNK_MAX];
};

int chunk_reader_init(struct chunk_reader *c, struct store *s, struct err *e);
void chunk_reader_done(struct chunk_reader *c);
#define cleanup_reader __attribute__((cleanup(chunk_reader_done)))

/* A chunk's bytes, hashed. -EBADMSG: it is nowhere (c->pack "") or damaged. The name of
 * zeroes gives zeroes. */
int chunk_read(struct chunk_reader *c, enum chunk_kind kind,
	const struct store_hash *hash, void *ret, struct err *e);
/* For a node stored as a delta: the other node's name. packs_lock held. */
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
