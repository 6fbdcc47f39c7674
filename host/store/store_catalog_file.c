/* The file of the catalogue: its schema, its checks, and its making. */
#include "host/store/store_catalog_priv.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fault.h"

#define APPLICATION_ID 0x50434154 /* "PCAT" */

/* Compared, to the letter, with what a file has: triggers and views of somebody else are
 * another schema. */
static const char *const schema[] = {
	"CREATE TABLE origin (inode INTEGER, born_s INTEGER, born_ns INTEGER)",
	"CREATE TABLE texts (n INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",
	"CREATE TABLE commits ("
	" seq INTEGER PRIMARY KEY AUTOINCREMENT,"
	" id BLOB NOT NULL UNIQUE,"
	" parent BLOB,"
	" parent_seq INTEGER," /* NULL: unknown; a hint */
	" state INTEGER NOT NULL,"  /* enum row_state */
	" newest INTEGER NOT NULL," /* created_ms, negated: one order for both columns */
	" inode INTEGER NOT NULL, bytes INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,"
	" message TEXT NOT NULL, labels TEXT NOT NULL, config TEXT NOT NULL,"
	" cpu INTEGER NOT NULL REFERENCES texts(n)," /* few are different */
	" memory INTEGER NOT NULL, disk INTEGER NOT NULL, device INTEGER NOT NULL,"
	" damage TEXT,"
	" sum INTEGER NOT NULL)",
	"CREATE INDEX commits_newest ON commits(state, newest, id)",
	"CREATE INDEX commits_parent ON commits(parent, newest, id)",
	("CREATE TABLE tags (name TEXT PRIMARY KEY, id BLOB, inode INTEGER NOT NULL,"
	 " ctime_ns INTEGER NOT NULL) WITHOUT ROWID"),
	"CREATE INDEX tags_id ON tags(id, name)",
};
#define SCHEMA_N (sizeof(schema) / sizeof(schema[0]))

void
catalog_file_close(struct catalog *c)
{
	for (unsigned i = 0; i < STMT_COUNT; i++) {
		sqlite3_finalize(c->stmt[i]);
		c->stmt[i] = NULL;
	}
	sqlite3_close(c->h);
	c->h = NULL;
}

/* What cannot be copied, nor written in a file that is sent here: which file it is, and
 * when it was made (where the file system says). */
static void
origin_of(struct store *s, int64_t ret[static 3])
{
	struct statx st = {0};

	ret[0] = ret[1] = ret[2] = 0;
	if (statx(s->root_fd, CATALOG_FILE, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &st) < 0)
		return;
	ret[0] = (int64_t)st.stx_ino;
	if (st.stx_mask & STATX_BTIME) {
		ret[1] = st.stx_btime.tv_sec;
		ret[2] = st.stx_btime.tv_nsec;
	}
}

static int
make_tables(struct store *s, struct catalog *c)
{
	int64_t origin[3];
	char text[160];
	int r = catalog_exec(c, "BEGIN IMMEDIATE");

	for (size_t i = 0; r == 0 && i < SCHEMA_N; i++)
		r = catalog_exec(c, schema[i]);
	origin_of(s, origin);
	snprintf(text, sizeof(text),
		"INSERT INTO origin VALUES (%lld, %lld, %lld); PRAGMA application_id = %d",
		(long long)origin[0], (long long)origin[1], (long long)origin[2],
		APPLICATION_ID);
	if (r == 0)
		r = catalog_exec(c, text);
	return r == 0 ? catalog_exec(c, "COMMIT") : r;
}

static int
check_schema(struct catalog *c)
{
	sqlite3_stmt *s;
	size_t found = 0;
	int r;

	if (sqlite3_prepare_v2(c->h,
		    "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name <> 'sqlite_sequence'",
		    -1, &s, NULL) != SQLITE_OK)
		return catalog_broke(c);
	while ((r = catalog_step(c, s)) > 0) {
		const char *text = (const char *)sqlite3_column_text(s, 0);
		size_t i = 0;

		while (i < SCHEMA_N && text && strcmp(text, schema[i]) != 0)
			i++;
		if (!text || i == SCHEMA_N)
			r = catalog_lies(c, "its tables are not those of this pando");
		if (r < 0)
			break;
		found++;
	}
	sqlite3_finalize(s);
	if (r == 0 && found != SCHEMA_N)
		r = catalog_lies(c, "its tables are not those of this pando");
	return r;
}

int
catalog_file_check(struct catalog *c)
{
	const char *said;
	sqlite3_stmt *s;
	int r;

	if (sqlite3_prepare_v2(c->h, "PRAGMA integrity_check(1)", -1, &s, NULL) != SQLITE_OK)
		return catalog_broke(c);
	r = catalog_step(c, s);
	said = r > 0 ? (const char *)sqlite3_column_text(s, 0) : NULL;
	if (r >= 0 && (!said || strcmp(said, "ok") != 0))
		r = catalog_lies(c, said ? said : "its pages cannot be checked");
	sqlite3_finalize(s);
	return r < 0 ? r : 0;
}

static int
check_origin(struct store *s, struct catalog *c)
{
	int64_t origin[3];
	sqlite3_stmt *st;
	int r;

	origin_of(s, origin);
	if (sqlite3_prepare_v2(c->h, "SELECT inode, born_s, born_ns FROM origin", -1, &st,
		    NULL) != SQLITE_OK)
		return catalog_broke(c);
	r = catalog_step(c, st);
	if (r >= 0 && (r == 0 || sqlite3_column_int64(st, 0) != origin[0] ||
			      sqlite3_column_int64(st, 1) != origin[1] ||
			      sqlite3_column_int64(st, 2) != origin[2]))
		r = catalog_lies(c, "it is a copy, or was made elsewhere");
	sqlite3_finalize(st);
	return r < 0 ? r : 0;
}

void
catalog_file_put_aside(struct store *s)
{
	renameat(s->root_fd, CATALOG_FILE, s->root_fd, CATALOG_FILE ".aside");
	unlinkat(s->root_fd, CATALOG_FILE "-wal", 0);
	unlinkat(s->root_fd, CATALOG_FILE "-shm", 0);
	unlinkat(s->root_fd, CATALOG_FILE "-journal", 0);
	/* A folder of that name, which cannot take the place of a file. */
	if (faccessat(s->root_fd, CATALOG_FILE, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
		unlinkat(s->root_fd, CATALOG_FILE ".aside", 0);
		renameat(s->root_fd, CATALOG_FILE, s->root_fd, CATALOG_FILE ".aside");
	}
}

/* New when there is no file. */
int
catalog_file_open(struct store *s, struct catalog *c, const char *path, bool trusted)
{
	bool memory = strcmp(path, ":memory:") == 0, new = memory;
	struct stat st;
	int r;

	c->in_memory = memory;
	if (!memory && fstatat(s->root_fd, CATALOG_FILE, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		int fd = openat(s->root_fd, CATALOG_FILE,
			O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0) {
			snprintf(c->why, sizeof(c->why), "%s", strerror(errno));
			c->wrong = false;
			return CATALOG_BROKEN;
		}
		close(fd);
		unlinkat(s->root_fd, CATALOG_FILE "-wal", 0);
		unlinkat(s->root_fd, CATALOG_FILE "-journal", 0);
		new = true;
	} else if (!memory && !S_ISREG(st.st_mode)) {
		return catalog_lies(c, "it is no file");
	} else if (!memory && st.st_size == 0) {
		/* A kill came between its name and its tables. */
		unlinkat(s->root_fd, CATALOG_FILE "-wal", 0);
		new = true;
	}
	fault_point("store.catalog-opening");
	if (sqlite3_open_v2(path, &c->h,
		    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
		    NULL) != SQLITE_OK)
		return catalog_broke(c);
	sqlite3_extended_result_codes(c->h, 1);
	sqlite3_db_config(c->h, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(c->h, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	r = catalog_exec(c, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA cell_size_check = ON;"
		    "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
		    "PRAGMA cache_size = -65536; PRAGMA temp_store = MEMORY");
	if (r == 0 && !new)
		r = check_schema(c);
	if (r == 0 && !new)
		r = check_origin(s, c);
	if (r == 0 && !new && !trusted)
		r = catalog_file_check(c);
	if (r == 0 && new)
		r = make_tables(s, c);
	if (r == 0)
		r = catalog_prepare(c);
	if (r == 0 && new)
		fault_point("store.catalog-made");
	return r;
}
