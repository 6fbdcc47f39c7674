/*
 * The commit store: what machines were, kept by content.
 *
 * A commit is three trees of 4 KiB pages (memory, disk, device state), a configuration, a
 * parent and a message. A page is named by BLAKE2b-256 of its bytes and stored once; a
 * page of zeroes has the all-zero name and is stored nowhere. Nodes of 64 names make a
 * tree of as many levels as its length needs (one at least), so two contents that differ
 * in N pages share all else. A commit's manifest is canonical JSON (keys sorted, no
 * spaces, integers only); BLAKE2b-256 of it is the commit's id.
 *
 * A folder holds it all, and may be copied anywhere:
 *
 *   format                 "pando store 1\n"
 *   lock                   flock'd by the process that has the store open
 *   packs/<hash>.pack      chunks (host/store/store_pack.h): what one commit added is one
 *                          pack, and small ones are merged in the background
 *   commits/<id>.json      manifests
 *   commits/<id>.pruned    manifests of commits whose contents are no longer held
 *   tags/<name>            "<id>\n"
 *   catalog.db             derived from commits/ and tags/ (host/store/store_catalog.h)
 *   note.damaged, note.garbage  (store_note.c)
 *   catalog.stamp          while nobody has it open: that the catalogue says what they say
 *
 * Crashes and full disks: a commit is there with its manifest's rename, after everything
 * it needs was synced; whatever was unfinished is removed by the next store_open(). Files of unknown origin: nothing read is believed before it was checked;
 * what is damaged is -EBADMSG with a sentence that names it. A few chunks can make a
 * content of STORE_LENGTH_MAX bytes, though: whoever copies one somewhere looks at its
 * length first.
 *
 * Threads: all calls may run at once on one store, but a writer (with its trees) belongs
 * to one thread at a time. store_gc(), store_settle() and store_repair() run one after the
 * other, and beside all else. The store has threads of its own, of low priority: those
 * that help writers, made by the first that has more than a few pages, and one that merges
 * packs, made when there are enough. Errors: -ENOENT no such commit or tag, -EEXIST
 * ambiguous, -ENOTEMPTY has children, -EBADMSG damaged, -EINVAL a caller's mistake or a
 * name that cannot be, -EBUSY in use by another process, else what the system said.
 */
#ifndef PANDO_HOST_STORE_STORE_H
#define PANDO_HOST_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "host/store/store_hash.h"

#define STORE_PAGE 4096u
#define STORE_ID_MAX (STORE_HEX + 1) /* with the NUL */
#define STORE_TAG_MAX 65	     /* likewise */
#define STORE_PREFIX_MIN 4u	     /* digits of an id that may stand for it */
#define STORE_LENGTH_MAX (1ull << 46)
#define STORE_MANIFEST_MAX (1u << 20) /* bytes */

struct store;

/* A content. Plain value; a length of 0 has the root of zeroes. */
struct store_tree {
	struct store_hash root;
	uint64_t length; /* bytes */
};

/* Opens the store in a folder, which is made when it is not there. */
int store_open(const char *path, struct store **ret, struct err *e);
/* No writer may be open. NULL is fine. */
void store_close(struct store *s);

/* How many threads hash and compress what writers put, theirs included: 0 (as it is at
 * first) is as many as there are online CPUs, 8 at most. What is written does not depend
 * on it. No writer may be open. */
void store_set_threads(struct store *s, unsigned threads);

/*
 * For a reader of a commit that somebody may delete: until store_release(), by the same
 * thread, store_gc() leaves what was there when the hold began, or since. Waits for
 * nobody; a gc that begins later waits for it. A writer is a hold of its own. A thread
 * that has either must not call store_gc(), store_settle() or store_repair().
 */
void store_hold(struct store *s);
void store_release(struct store *s);

/* ---- writing ---- */

struct store_writer;
struct store_tree_writer;

struct store_stats {
	uint64_t pages_put;  /* by the caller */
	uint64_t pages_zero; /* of these */
	uint64_t new_pages, new_nodes;
	uint64_t bytes_written; /* pack and manifest */
};

/* What a commit says besides its trees. Strings are borrowed; NULL is empty (parent:
 * none). */
struct store_fields {
	const char *parent;  /* 64 digits; must be in the store */
	uint64_t created_ms; /* since the epoch; 0: now */
	const char *message; /* UTF-8 */
	/* JSON objects, made canonical here; numbers must be integers. The values of
	   labels are strings. */
	const char *labels, *config, *cpu;
	struct store_tree memory, disk, state;
};

int store_begin(struct store *s, struct store_writer **ret, struct err *e);
void store_abort(struct store_writer *w); /* NULL is fine */

/*
 * A new content of length bytes. Pages that are not put are those of base (of a commit in
 * the store, not of this writer; may be shorter, not longer) or zero (base NULL). A
 * writer may have several trees, one after the other or at once.
 */
int store_tree_begin(struct store_writer *w, const struct store_tree *base,
	uint64_t length, struct store_tree_writer **ret, struct err *e);
/* n pages from page `first` on; ascending over all calls, else -EINVAL. In the last page
 * only what is within length is read; the rest is zero. The pages are copied, and may be
 * written later: so an error may be that of an earlier call. */
int store_tree_put(struct store_tree_writer *t, uint64_t first, const void *data,
	uint64_t n, struct err *e);
/* The tree is freed, whatever happens; so is one that was not finished when its writer
 * ends. */
int store_tree_finish(struct store_tree_writer *t, struct store_tree *ret, struct err *e);
/* All of it in one call. */
int store_put_blob(struct store_writer *w, const void *data, uint64_t len,
	struct store_tree *ret, struct err *e);

/* Makes the commit. The writer is freed, whatever happens. stats may be NULL. A commit
 * whose manifest is there already is the same commit: no error. */
int store_commit(struct store_writer *w, const struct store_fields *f,
	char ret_id[static STORE_ID_MAX], struct store_stats *stats, struct err *e);

/* ---- commits and tags ---- */

struct store_manifest {
	char id[STORE_ID_MAX];
	/* Strings are never NULL but parent, which is NULL for a first commit; labels,
	   config and cpu are canonical JSON objects. All owned by the manifest. */
	struct store_fields f;
};

void store_manifest_free(struct store_manifest *m); /* NULL is fine */

/* Which commit is meant: an id, a tag, or a prefix of an id (STORE_PREFIX_MIN digits or
 * more; a tag of that name goes first). -EEXIST: several, the sentence has the
 * candidates. A pruned commit is -ENOENT with a sentence that says so. */
int store_resolve(struct store *s, const char *name, char ret_id[static STORE_ID_MAX],
	struct err *e);
/* Likewise, and a pruned one is found where no other is meant. */
int store_resolve_any(struct store *s, const char *name,
	char ret_id[static STORE_ID_MAX], struct err *e);
/* name as in store_resolve(). The manifest's hash is checked. */
int store_load(
	struct store *s, const char *name, struct store_manifest **ret, struct err *e);

/*
 * Lists by page. What the catalogue says of a commit is compared with its manifest's file
 * (by one stat) before it is given.
 */
#define STORE_PAGE_MAX 1000u   /* entries of a page */
#define STORE_CURSOR_MAX 128
#define STORE_MESSAGE_MAX 4095u /* bytes of a message in a list */

struct store_entry {
	/* Owned. Of its trees the lengths only; a message that is longer than
	   STORE_MESSAGE_MAX is cut. NULL in no entry that is given. */
	struct store_manifest *m;
	bool pruned;
	uint64_t seq; /* rises with each commit that comes to be in this store */
	char (*tags)[STORE_TAG_MAX]; /* owned */
	size_t n_tags;
};

struct store_page {
	struct store_entry *v; /* owned */
	size_t n;
	char next[STORE_CURSOR_MAX]; /* what the next page comes after; "" no more */
	uint64_t damaged; /* manifests of the store that are known to be damaged, and one: */
	struct err first_damage;
};

/* after: "" or NULL for the first page, else the `next` of the one before. limit: 1 to
 * STORE_PAGE_MAX. -EINVAL: a cursor that is none. */
int store_page_newest(struct store *s, const char *after, size_t limit,
	struct store_page *ret, struct err *e);
/* The commit (a full id) and its ancestors; pruned ones are among them. -ENOENT: one is
 * not there, -EBADMSG: one is damaged. */
int store_page_history(struct store *s, const char *id, const char *after, size_t limit,
	struct store_page *ret, struct err *e);
/* All, pruned ones too, in the order of seq. */
int store_page_all(struct store *s, const char *after, size_t limit,
	struct store_page *ret, struct err *e);
void store_page_done(struct store_page *p);
/* The greatest seq until now. */
uint64_t store_seq(struct store *s);

struct store_ids {
	char (*ids)[STORE_ID_MAX]; /* owned */
	size_t n;
};

void store_ids_done(struct store_ids *l);

enum store_delete_flags {
	STORE_DELETE_RECURSIVE = 1, /* its descendants too */
	STORE_DELETE_DRY_RUN = 2,   /* only says which */
};

/* Deletes a commit (a full id) and the tags on it; descendants first, so that a crash
 * leaves a smaller tree. ret (may be NULL): which, in that order, also when dry. Chunks
 * stay until store_gc(). A commit that is made meanwhile below one of them stays, and
 * what is above it remains as pruned. */
int store_delete(struct store *s, const char *id, unsigned flags, struct store_ids *ret,
	struct err *e);

/* Those that a dry run told of, and no others: children before their parents. */
int store_delete_these(
	struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e);

/*
 * Commits (full ids) whose contents are no longer wanted: STORE_PRUNE_MAX at most. One
 * that others descend from becomes <id>.pruned, a manifest whose contents are not held; one
 * that nothing descends from goes, and with it those above it that were pruned for the
 * sake of nothing else. Those that are tagged, pruned already or not there are left out.
 * On disk when it returns. ret (may be NULL): which were pruned.
 */
#define STORE_PRUNE_MAX 256u
int store_prune(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n,
	struct store_ids *ret, struct err *e);

/* 1 to 64 characters of A-Z a-z 0-9 . _ - that do not begin with a dot and are not an id.
 */
int store_tag_check(const char *tag, struct err *e);

struct store_tag {
	char name[STORE_TAG_MAX];
	char id[STORE_ID_MAX];
};

/* id: a full one, in the store. -EEXIST when the tag is there and may not be moved. */
int store_tag_set(
	struct store *s, const char *tag, const char *id, bool move, struct err *e);
int store_tag_get(struct store *s, const char *tag, char ret_id[static STORE_ID_MAX],
	struct err *e);
int store_tag_delete(struct store *s, const char *tag, struct err *e); /* -ENOENT */
/* All tags by name; *ret is malloc'd and the caller's. Damaged ones have an empty id. */
int store_tags(struct store *s, struct store_tag **ret, size_t *ret_n, struct err *e);
/* Those whose name comes after `after` (NULL or "": from the first), limit at most. */
int store_tags_page(struct store *s, const char *after, size_t limit,
	struct store_tag **ret, size_t *ret_n, struct err *e);
/* Those on a commit. */
int store_tags_of(struct store *s, const char *id, struct store_tag **ret, size_t *ret_n,
	struct err *e);

/* ---- contents ---- */

/* n pages from page `first` on to buf. Each is hashed before it is given. */
int store_tree_read(struct store *s, const struct store_tree *t, uint64_t first,
	uint64_t n, void *buf, struct err *e);
/* What a diff calls; anything but 0 ends it, and is returned. data: NULL. */
typedef int store_page_fn(void *ctx, uint64_t page, const void *data, struct err *e);

/* All pages that differ, ascending; beyond the end of the shorter one its pages are
 * zero. Reads only what differs. */
int store_tree_diff(struct store *s, const struct store_tree *a,
	const struct store_tree *b, store_page_fn *fn, void *ctx, struct err *e);
/* Likewise; was NULL: those that are not zero. The name of zeroes is all zero. */
typedef int store_name_fn(
	void *ctx, uint64_t page, const struct store_hash *name, struct err *e);
int store_tree_names(struct store *s, const struct store_tree *t, const struct store_tree *was,
	store_name_fn *fn, void *ctx, struct err *e);
/*
 * Writes the content to a file, whose length it sets; zeroes become holes. was (may be
 * NULL: the file is empty) is the content the file has: only what differs is written.
 * Not synced.
 */
int store_tree_to_file(struct store *s, const struct store_tree *t,
	const struct store_tree *was, int fd, struct err *e);

/*
 * Where the pages of a content lie, for a process that reads and checks them by itself, 64 at
 * a time. The files of packs do not change, and stay readable by those who have them open.
 * One thread at a time; within a store_hold().
 */
struct store_places;
#define STORE_LEAF_PAGES 64u
struct store_place {
	uint64_t page, offset;
	uint32_t stored; /* bytes in the file */
	unsigned pack;	 /* its number */
	bool is_zipped;	 /* with zstd; else as it is */
	struct store_hash hash;
};
/* A pack that no place was in until now: the next number, from 0. fd: borrowed. */
typedef int store_pack_fn(void *ctx, int fd, struct err *e);

int store_places_open(struct store *s, const struct store_tree *t, struct store_places **ret,
	struct err *e);
void store_places_close(struct store_places *p); /* NULL is fine */
/* Pages [64 × leaf, 64 × leaf + 64), those that are not zero, ascending. */
int store_places_leaf(struct store_places *p, uint64_t leaf, store_pack_fn *new_pack,
	void *ctx, struct store_place ret[static STORE_LEAF_PAGES], size_t *ret_n,
	struct err *e);

/* ---- care ---- */

enum store_damage_kind {
	STORE_DAMAGE_PACK,     /* a pack that cannot be read */
	STORE_DAMAGE_MANIFEST, /* edited, cut, or of another format version */
	STORE_DAMAGE_PARENT,   /* a commit whose parent is not there */
	STORE_DAMAGE_TAG,      /* a tag that leads to no commit */
	STORE_DAMAGE_MISSING,  /* chunks that are in no pack */
	STORE_DAMAGE_CHUNK,    /* chunks whose bytes are not what their name says */
};

struct store_damage {
	enum store_damage_kind kind;
	char commit[STORE_ID_MAX];  /* "" where it is none's */
	const char *tree;	    /* "memory", "disk", "state", or "" */
	uint64_t first_page, pages; /* of the tree */
	char pack[STORE_ID_MAX];    /* "" unknown */
	char text[320];		    /* the sentence */
};

typedef void store_damage_fn(void *ctx, const struct store_damage *d);

struct store_verified {
	uint64_t commits, pages, nodes; /* that were sound or not; chunks once each */
	uint64_t damages;		/* reported */
};

/* Recomputes every hash of a commit (a full id), or of all commits, tags and packs (id
 * NULL). Damage is reported, not returned: 0 means that it came to its end. */
int store_verify(struct store *s, const char *id, store_damage_fn *fn, void *ctx,
	struct store_verified *ret, struct err *e);

/* Whether chunks that commits may have are known to be missing or damaged, and are nowhere
 * else: packs that cannot be read, what readers met with, and what store_verify() found;
 * of an earlier process, until a store_verify() of all finds nothing. */
bool store_is_damaged(struct store *s);

struct store_repaired {
	uint64_t chunks_saved;	/* that were in packs that cannot be read, and nowhere else */
	uint64_t packs_removed; /* such packs, when no commit needs them */
	struct store_verified left;
};

/* Saves what is sound of packs that cannot be read into new ones, then verifies all: what
 * is reported stays damaged or missing, and can only be committed again or deleted. The
 * catalogue is checked, and compared with the folders. */
int store_repair(struct store *s, store_damage_fn *fn, void *ctx,
	struct store_repaired *ret, struct err *e);

struct store_freed {
	uint64_t bytes;		  /* less on disk than before */
	uint64_t packs_removed;	  /* with nothing live in them */
	uint64_t packs_rewritten; /* mostly dead: made one */
};

/*
 * Removes what no commit reaches. Commits, readers, checks and deletions run on; only
 * writers and holds that began before it are waited for. Another gc, or the merging of
 * packs, ends first. Refused (-EBADMSG) when a commit is damaged: what it needs cannot be
 * known; ret may be NULL.
 */
struct store_gc_how {
	/* Contents that are in use though no commit has them. */
	const struct store_tree *roots;
	size_t n_roots;
	/* More of them (may be NULL), asked for when no earlier writer or hold is left; *ret
	   is malloc'd. What later writers begin with is kept anyway. */
	int (*ask_roots)(
		void *ctx, struct store_tree **ret, size_t *ret_n, struct err *e);
	void *ctx;
	/* Becomes true (atomically) when it is to end: -ECANCELED, some is removed and
	   nothing is lost. NULL: never. */
	const bool *cancel;
	/* Likewise, asked now and then (with ctx). */
	bool (*gone)(void *ctx);
};

int store_gc_run(struct store *s, const struct store_gc_how *how, struct store_freed *ret,
	struct err *e);
int store_gc(struct store *s, const struct store_tree *roots, size_t n_roots,
	struct store_freed *ret, struct err *e);

/* Whether it is time for a gc that nobody asked for: commits were deleted since the last,
 * many, or some and none for a while. */
bool store_gc_is_due(struct store *s);
#define STORE_GC_MANY 1000u	  /* commits */
#define STORE_GC_QUIET_MS 60000u  /* since the last deletion */
#define STORE_GC_PAUSE_MS 300000u /* since the last gc */

/* Merges small packs until there are few of each size, as a thread of the store does in
 * the background anyway. cancel (may be NULL) is looked at now and then: -ECANCELED. */
int store_settle(struct store *s, const bool *cancel, struct err *e);

struct store_used {
	uint64_t bytes; /* of packs, manifests and tags */
	uint64_t commits, packs, tags;
};

int store_usage(struct store *s, struct store_used *ret, struct err *e);

#endif
