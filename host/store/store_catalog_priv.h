/*
 * What the files of the catalogue share. Below them is store_catalog_sql.c, the statements;
 * then rows (_row.c), the file (_file.c) and its comparison with the folders (_compare.c);
 * then the calls (store_catalog.c and, those that change nothing, _query.c).
 *
 * All but those of the last two have the catalogue's lock, and return 0, CATALOG_BROKEN or
 * -ENOMEM where nothing else is said. CATALOG_BROKEN is a database that cannot be used:
 * catalog_call() makes it anew, and asks once more.
 */
#ifndef PANDO_HOST_STORE_STORE_CATALOG_PRIV_H
#define PANDO_HOST_STORE_STORE_CATALOG_PRIV_H

#include <errno.h>
#include <sqlite3.h>

#include "host/store/store_catalog.h"

#define CATALOG_FILE "catalog.db"
#define CATALOG_BROKEN (-EUCLEAN)

enum stmt {
	STMT_TEXT_ADD,
	STMT_PUT,
	STMT_REMOVE,
	STMT_STATE,
	STMT_BY_ID,
	STMT_BY_SEQ,
	STMT_SCAN,
	STMT_NEWEST,
	STMT_ALL,
	STMT_PREFIX,
	STMT_CHILD_IDS,
	STMT_CHILDLESS,
	STMT_DAMAGED,
	STMT_TAG_PUT,
	STMT_TAG_REMOVE,
	STMT_TAG_SCAN,
	STMT_TAG_KNOWN,
	STMT_TAGS,
	STMT_TAGS_OF,
	STMT_COUNT,
};

struct catalog {
	pthread_mutex_t lock;
	sqlite3 *h;			/* owned; NULL: none */
	sqlite3_stmt *stmt[STMT_COUNT]; /* owned */
	bool in_memory;
	bool stale; /* a row is missing or wrong: compare with the folders first */
	unsigned rebuilds;
	char why[200];		/* it broke */
	bool wrong;		/* and it is its contents that did, not the disk */
	uint64_t n[ROW_STATES]; /* rows */
	uint64_t bytes;		/* of held and damaged manifests */
	uint64_t newest_seq;
	int64_t mtime_ns[2]; /* of commits/ and tags/, after what we did ourselves */
};

/*
 * store_catalog_sql.c
 */

/* Why SQLite refused: CATALOG_BROKEN, and the reason in c->why. */
int catalog_broke(struct catalog *c);
/* Likewise, of contents that cannot be. */
int catalog_lies(struct catalog *c, const char *why);
int catalog_exec(struct catalog *c, const char *text);
/* Undoes what was begun; false: nothing was. */
bool catalog_rollback(struct catalog *c);
/* All of c->stmt. */
int catalog_prepare(struct catalog *c);
/* 1: a row; 0: its end. */
int catalog_step(struct catalog *c, sqlite3_stmt *s);
/* To its end. */
int catalog_finish(struct catalog *c, sqlite3_stmt *s);
void catalog_reset(sqlite3_stmt **s);
#define cleanup_stmt __attribute__((cleanup(catalog_reset)))
/* NULL is no value. What is bound is borrowed. */
void catalog_bind_hash(sqlite3_stmt *s, int at, const struct store_hash *h);
void catalog_bind_text(sqlite3_stmt *s, int at, const char *text);
bool catalog_column_hash(sqlite3_stmt *s, int at, struct store_hash *ret);
/* malloc'd, NULL without memory; `none` (may be NULL) where the column has no text. */
char *catalog_column_dup(sqlite3_stmt *s, int at, const char *none);

/*
 * store_catalog_row.c: rows of commits and tags; the counts in struct catalog follow.
 */

static inline void
cleanup_row_fn(struct catalog_row *row)
{
	catalog_row_done(row);
}
#define cleanup_row __attribute__((cleanup(cleanup_row_fn)))

/* A manifest with nothing in it but the id; NULL without memory. */
struct store_manifest *catalog_empty_manifest(const char *id);
/* What a statement stands at. CATALOG_BROKEN also when the row is not what it was when it
 * was written. */
int catalog_row_read(struct catalog *c, sqlite3_stmt *s, struct catalog_row *ret);
/* 1, or 0 when there is none. seq: where it may be, 0 unknown. */
int catalog_row_get(struct catalog *c, const char *id, uint64_t seq,
	struct catalog_row *ret);
int catalog_row_put(struct catalog *c, const struct catalog_row *row);
int catalog_row_remove(struct catalog *c, const struct store_hash *id);
void catalog_count_in(struct catalog *c, enum row_state state, uint64_t bytes);
/* What was known of a commit before it was damaged is true still: its id says so. */
int catalog_keep_known(struct catalog *c, struct catalog_row *row);
/* id NULL: the tag's file is damaged. */
int catalog_tag_put(struct catalog *c, const char *tag, const struct store_hash *id,
	const struct row_file *file);
int catalog_tag_remove(struct catalog *c, const char *tag);

/*
 * store_catalog_compare.c: from the folders to rows.
 */

/* -errno. */
int catalog_file_stat(int folder_fd, const char *name, struct row_file *ret);
/* A row as the commit's file says; one that is damaged is such a row. -ENOENT: no file. */
int catalog_row_of_file(struct store *s, const char *id, struct catalog_row *ret);
/* *ret_has false: damaged. -ENOENT: no file. */
int catalog_tag_of_file(struct store *s, const char *tag, struct row_file *file,
	struct store_hash *ret_id, bool *ret_has);
/* When something was last added to, or taken from, commits/ and tags/. */
void catalog_mtimes(struct store *s, int64_t ret[static 2]);
/* Rows become what the folders say. Also other errors, with a sentence. */
int catalog_compare(struct store *s, struct catalog *c, struct err *e);
/* Those of tags only, which somebody may have written to in their place. */
int catalog_compare_tags(struct store *s, struct catalog *c, struct err *e);

/*
 * store_catalog_stamp.c
 */

/* Whether the catalogue is as it was closed, and the folders too; if so the counts are
 * what they were. Once: the stamp goes. */
bool catalog_stamp_take(struct store *s, struct catalog *c);
/* The file is closed, and says what the folders say. */
void catalog_stamp_leave(struct store *s, const struct catalog *c);

/*
 * store_catalog_file.c
 */

/* A file's path, or ":memory:". New when there is no file. trusted: its pages are not
 * checked. */
int catalog_file_open(struct store *s, struct catalog *c, const char *path, bool trusted);
/* Pages, and that the indexes say what the tables do. */
int catalog_file_check(struct catalog *c);
void catalog_file_close(struct catalog *c);
void catalog_file_put_aside(struct store *s);

/*
 * store_catalog.c
 */

typedef int catalog_op_fn(struct store *s, struct catalog *c, void *ctx);
/* Runs op with the lock, up to three times: so op begins from nothing each time. */
int catalog_call(struct store *s, catalog_op_fn *op, void *ctx, struct err *e);

#endif
