/*
 * The catalogue: <store>/catalog.db, what the folders of commits and tags say, in an order
 * that can be looked up. SQLite is called only in store_catalog*.c.
 *
 * The files are the truth. A row follows its file's rename, and store_open() compares the
 * rows with the folders' names: what a kill left between the two is mended there. A
 * commit's row is a function of its id, so that only a damaged or edited row can be wrong:
 * each has a checksum, which is compared whenever the row is read. A tag's row names the
 * file (inode, ctime) that it was read from.
 *
 * WAL with synchronous=NORMAL: a commit costs no sync here, a kill loses nothing, and a
 * power cut only the newest rows, which the next opening adds again. (OFF would save the
 * checkpoint's sync and could leave a torn file, which nothing need notice at once.)
 *
 * A catalogue that was closed, and that nobody was at since, is believed without being
 * compared (store_catalog_stamp.c).
 *
 * A database that is damaged, of another schema, or not the file that this folder's store
 * made (a copied store is of unknown origin) is put aside as catalog.db.aside and made
 * anew from the files. Where that cannot be written (a full disk), it is made in memory:
 * no call of the store fails for its catalogue's sake. Both are said in the log.
 *
 * Threads: all calls may run at once; each takes the catalogue's own lock, for one page of
 * rows at most. Lock order: the store's names, then this.
 */
#ifndef PANDO_HOST_STORE_STORE_CATALOG_H
#define PANDO_HOST_STORE_STORE_CATALOG_H

#include "host/store/store_priv.h"

enum row_state {
	ROW_HELD,    /* <id>.json */
	ROW_DAMAGED, /* likewise, and it cannot be read */
	ROW_PRUNED,  /* <id>.pruned */
};
#define ROW_STATES 3

/* The file a row was made from. */
struct row_file {
	uint64_t inode, bytes;
	int64_t ctime_ns;
};

/*
 * Files that others put into the folders, or take from them, while the store is open: the
 * folders' mtimes tell. Whoever changes them himself does so between these two, which take
 * and give back the store's names; whoever looks something up calls catalog_look() first.
 * What comes within one tick of the clock of an own change may not be seen before the
 * next opening that compares.
 */
void catalog_names_lock(struct store *s);
void catalog_names_unlock(struct store *s);
void catalog_look(struct store *s);

/* Opens and reconciles. */
int catalog_open(struct store *s, struct err *e);
void catalog_close(struct store *s);

/* Checks all of it, and compares it with the folders. */
int catalog_recheck(struct store *s, struct err *e);

/* The commit's row is made or replaced, from its manifest's file. -ENOENT: there is none,
 * and no row any more. */
int catalog_renew(struct store *s, const char *id, struct err *e);
/* After a manifest could not be read; others know better than the row. */
void catalog_note_damage(struct store *s, const char *id, const char *why);
/* Rows that go. */
int catalog_remove(
	struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e);
/* Rows whose files have become <id>.pruned. */
int catalog_pruned(
	struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e);

/* Up to max ids that begin with the digits (lower case, 64 at most), and how many there
 * are. Damaged ones are among the held. */
int catalog_prefix(struct store *s, const char *digits, bool pruned, size_t max,
	char (*ret)[STORE_ID_MAX], size_t *ret_n, struct err *e);
/* Up to max children of any state; *ret_n: how many were given. */
int catalog_children(struct store *s, const char *id, size_t max,
	char (*ret)[STORE_ID_MAX], size_t *ret_n, struct err *e);
/* *ret_parent "": none. -ENOENT: no such row. */
int catalog_parent(struct store *s, const char *id, char ret_parent[static STORE_ID_MAX],
	enum row_state *ret_state, struct err *e);

enum catalog_order {
	CATALOG_NEWEST,	  /* held ones by (created, id) */
	CATALOG_HISTORY,  /* `of` and its ancestors, pruned ones too */
	CATALOG_ALL,	  /* held and pruned, as they were entered */
};

struct catalog_query {
	enum catalog_order order;
	const char *of;
	int64_t after_newest; /* the last of the page before; with after_id */
	const char *after_id; /* NULL: from the beginning */
	uint64_t after_seq;   /* CATALOG_ALL */
	size_t limit;
};

struct catalog_row {
	struct store_entry entry;
	struct store_hash parent;
	uint64_t parent_seq; /* 0: unknown; once it was there */
	enum row_state state;
	int64_t newest;
	struct row_file file;
	char *damage; /* owned */
};
void catalog_row_done(struct catalog_row *row);
/* Up to limit rows. A history ends where a row is missing or damaged, which is then the
 * last one, or at a first commit. *ret: malloc'd; catalog_row_done() each. */
int catalog_rows(struct store *s, const struct catalog_query *q, struct catalog_row **ret,
	size_t *ret_n, struct err *e);

/* How many are damaged, and of one of them its sentence. */
int catalog_damaged(struct store *s, uint64_t *ret_n, struct err *ret_first, struct err *e);
/* Reads damaged ones again, up to a bound: they may have been mended. */
void catalog_retry_damaged(struct store *s);
/* Held and damaged ones, and what their manifests take. */
void catalog_counts(struct store *s, uint64_t *ret_commits, uint64_t *ret_bytes);
uint64_t catalog_newest_seq(struct store *s);

/* A tag's row is made anew from its file, or goes when there is none. */
int catalog_tag(struct store *s, const char *tag, struct err *e);
/* Tags by name, those after `after`; or those on a commit. *ret: malloc'd. */
int catalog_tags(struct store *s, const char *after, const char *of, size_t limit,
	struct store_tag **ret, size_t *ret_n, struct err *e);

#endif
