#include "host/store/store_catalog.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/log.h"

#define FILE_NAME "catalog.db"
#define APPLICATION_ID 0x50434154 /* "PCAT" */
#define RETRY_MAX 1000u		  /* damaged manifests read again at once */
#define REBUILDS_MAX 3u		  /* of one opening, before it is kept in memory */

/* What a statement's failure is called in here: the caller makes the database anew, and
 * asks once more. */
#define BROKEN (-EUCLEAN)

/* Compared, to the letter, with what a file has: triggers and views of somebody else are
 * another schema. */
static const char *const schema[] = {
	"CREATE TABLE origin (inode INTEGER, born_s INTEGER, born_ns INTEGER)",
	"CREATE TABLE texts (n INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",
	"CREATE TABLE commits ("
	" seq INTEGER PRIMARY KEY AUTOINCREMENT,"
	" id BLOB NOT NULL UNIQUE,"
	" parent BLOB,"
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

#define COLUMNS \
	"seq, id, parent, state, newest, inode, bytes, ctime_ns, message, labels, config," \
	" texts.text, memory, disk, device, damage, sum" \
	" FROM commits LEFT JOIN texts ON texts.n = commits.cpu "

enum stmt {
	STMT_TEXT_ADD,
	STMT_PUT,
	STMT_REMOVE,
	STMT_STATE,
	STMT_BY_ID,
	STMT_SCAN,
	STMT_NEWEST,
	STMT_CHILDREN,
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

static const char *const sql[STMT_COUNT] = {
	[STMT_TEXT_ADD] = "INSERT OR IGNORE INTO texts (text) VALUES (?1)",
	[STMT_PUT] =
		"INSERT INTO commits (id, parent, state, newest, inode, bytes, ctime_ns, message,"
		" labels, config, cpu, memory, disk, device, damage, sum) VALUES (?1, ?2, ?3, ?4,"
		" ?5, ?6, ?7, ?8, ?9, ?10, (SELECT n FROM texts WHERE text = ?11), ?12, ?13, ?14,"
		" ?15, ?16) ON CONFLICT (id) DO UPDATE SET parent = excluded.parent,"
		" state = excluded.state, newest = excluded.newest, inode = excluded.inode,"
		" bytes = excluded.bytes, ctime_ns = excluded.ctime_ns, message = excluded.message,"
		" labels = excluded.labels, config = excluded.config, cpu = excluded.cpu,"
		" memory = excluded.memory, disk = excluded.disk, device = excluded.device,"
		" damage = excluded.damage, sum = excluded.sum",
	[STMT_REMOVE] = "DELETE FROM commits WHERE id = ?1",
	[STMT_STATE] = "SELECT state, bytes, parent FROM commits WHERE id = ?1",
	[STMT_BY_ID] = "SELECT " COLUMNS "WHERE id = ?1",
	[STMT_SCAN] = "SELECT " COLUMNS "ORDER BY seq",
	[STMT_NEWEST] = "SELECT " COLUMNS
			"WHERE state = 0 AND (newest, id) > (?1, ?2) ORDER BY newest, id LIMIT ?3",
	[STMT_CHILDREN] =
		"SELECT " COLUMNS
		"WHERE parent = ?4 AND (newest, id) > (?1, ?2) AND state = 0 ORDER BY newest, id LIMIT ?3",
	[STMT_ALL] = "SELECT " COLUMNS "WHERE seq > ?1 AND state <> 1 ORDER BY seq LIMIT ?2",
	[STMT_PREFIX] = "SELECT id FROM commits WHERE id BETWEEN ?1 AND ?2 AND (state = 2) = ?3",
	[STMT_CHILD_IDS] = "SELECT id FROM commits WHERE parent = ?1 ORDER BY newest, id LIMIT ?2",
	[STMT_CHILDLESS] =
		("SELECT id FROM commits c WHERE state = 2 AND NOT EXISTS"
		 " (SELECT 1 FROM commits k WHERE k.parent = c.id)"),
	[STMT_DAMAGED] = "SELECT id, damage FROM commits WHERE state = 1 LIMIT ?1",
	[STMT_TAG_PUT] =
		"INSERT OR REPLACE INTO tags (name, id, inode, ctime_ns) VALUES (?1, ?2, ?3, ?4)",
	[STMT_TAG_REMOVE] = "DELETE FROM tags WHERE name = ?1",
	[STMT_TAG_SCAN] = "SELECT name, inode, ctime_ns FROM tags ORDER BY name",
	[STMT_TAG_KNOWN] = "SELECT 1 FROM tags WHERE name = ?1",
	[STMT_TAGS] = "SELECT name, id FROM tags WHERE name > ?1 ORDER BY name LIMIT ?2",
	[STMT_TAGS_OF] = "SELECT name, id FROM tags WHERE id = ?1 ORDER BY name LIMIT ?2",
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
 * Statements.
 */

static int
broke(struct catalog *c)
{
	int code = c->h ? sqlite3_errcode(c->h) & 0xff : SQLITE_NOMEM;

	snprintf(c->why, sizeof(c->why), "%s", c->h ? sqlite3_errmsg(c->h) : "no memory");
	c->wrong = code != SQLITE_FULL && code != SQLITE_IOERR && code != SQLITE_NOMEM &&
		   code != SQLITE_READONLY && code != SQLITE_CANTOPEN &&
		   code != SQLITE_PERM && code != SQLITE_AUTH;
	return BROKEN;
}

static int
lies(struct catalog *c, const char *why)
{
	snprintf(c->why, sizeof(c->why), "%s", why);
	c->wrong = true;
	return BROKEN;
}

static int
exec(struct catalog *c, const char *text)
{
	return c->h && sqlite3_exec(c->h, text, NULL, NULL, NULL) == SQLITE_OK ? 0
									       : broke(c);
}

/* SQLITE_ROW as 1, SQLITE_DONE as 0. */
static int
step(struct catalog *c, sqlite3_stmt *s)
{
	int code = sqlite3_step(s);

	return code == SQLITE_ROW ? 1 : code == SQLITE_DONE ? 0 : broke(c);
}

static void
reset(sqlite3_stmt **s)
{
	sqlite3_reset(*s);
	sqlite3_clear_bindings(*s);
}
#define cleanup_reset __attribute__((cleanup(reset)))

/* To its end. */
static int
finish(struct catalog *c, sqlite3_stmt *s)
{
	int r;

	while ((r = step(c, s)) > 0)
		;
	return r;
}

static void
bind_hash(sqlite3_stmt *s, int at, const struct store_hash *h)
{
	if (h)
		sqlite3_bind_blob(s, at, h->b, sizeof(h->b), SQLITE_STATIC);
	else
		sqlite3_bind_null(s, at);
}

static void
bind_text(sqlite3_stmt *s, int at, const char *text)
{
	if (text)
		sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC);
	else
		sqlite3_bind_null(s, at);
}

static bool
column_hash(sqlite3_stmt *s, int at, struct store_hash *ret)
{
	const void *b = sqlite3_column_blob(s, at);

	if (!b || sqlite3_column_bytes(s, at) != (int)sizeof(ret->b))
		return false;
	memcpy(ret->b, b, sizeof(ret->b));
	return true;
}

/* NULL without memory; `none` (may be NULL) where the column has no text. */
static char *
column_dup(sqlite3_stmt *s, int at, const char *none)
{
	const char *text = (const char *)sqlite3_column_text(s, at);

	if (!text)
		text = none;
	return text ? strdup(text) : NULL;
}

/*
 * Rows.
 */

void
catalog_row_done(struct catalog_row *row)
{
	store_manifest_free(row->entry.m);
	free(row->entry.tags);
	free(row->damage);
	*row = (struct catalog_row){0};
}

static void
cleanup_row_fn(struct catalog_row *row)
{
	catalog_row_done(row);
}
#define cleanup_row __attribute__((cleanup(cleanup_row_fn)))

static void
mix(char **at, const void *data, size_t len)
{
	memcpy(*at, data, len);
	*at += len;
}

/* 0 without memory, which no other row has: it is read again, then. */
static int64_t
row_sum(const struct catalog_row *row)
{
	const struct store_manifest *m = row->entry.m;
	const char *const texts[] = {m->id, m->f.parent ? m->f.parent : "", m->f.message,
		m->f.labels, m->f.config, m->f.cpu, row->damage ? row->damage : ""};
	const uint64_t numbers[] = {(uint64_t)row->state, (uint64_t)row->newest,
		row->file.inode, row->file.bytes, (uint64_t)row->file.ctime_ns,
		m->f.memory.length, m->f.disk.length, m->f.state.length};
	cleanup_free char *buf = NULL;
	struct store_hash hash;
	size_t len = sizeof(numbers);
	int64_t sum;
	char *at;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		len += strlen(texts[i]) + 1;
	at = buf = malloc(len);
	if (!buf)
		return 0;
	mix(&at, numbers, sizeof(numbers));
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		mix(&at, texts[i], strlen(texts[i]) + 1);
	hash_of(HASH_PLAIN, buf, len, &hash);
	memcpy(&sum, hash.b, sizeof(sum));
	return sum ? sum : 1;
}

/* A manifest with nothing in it but the id. */
static struct store_manifest *
empty_manifest(const char *id)
{
	struct store_manifest *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	snprintf(m->id, sizeof(m->id), "%s", id);
	m->f.message = strdup("");
	m->f.labels = strdup("{}");
	m->f.config = strdup("{}");
	m->f.cpu = strdup("{}");
	if (m->f.message && m->f.labels && m->f.config && m->f.cpu)
		return m;
	store_manifest_free(m);
	return NULL;
}

/* 0, BROKEN when the row is not what it was when it was written, or -ENOMEM. */
static int
row_read(struct catalog *c, sqlite3_stmt *s, struct catalog_row *ret)
{
	cleanup_row struct catalog_row row = {0};
	struct store_manifest *m = row.entry.m = calloc(1, sizeof(*m));
	struct store_hash id;

	if (!m)
		return -ENOMEM;
	row.entry.seq = (uint64_t)sqlite3_column_int64(s, 0);
	if (!column_hash(s, 1, &id))
		return lies(c, "a row without an id");
	hash_to_hex(&id, m->id);
	if (column_hash(s, 2, &row.parent)) {
		char *parent = malloc(STORE_ID_MAX);

		if (!parent)
			return -ENOMEM;
		hash_to_hex(&row.parent, parent);
		m->f.parent = parent;
	}
	row.state = (enum row_state)sqlite3_column_int(s, 3);
	row.newest = sqlite3_column_int64(s, 4);
	m->f.created_ms = row.newest > 0 ? 0 : 0 - (uint64_t)row.newest;
	row.file.inode = (uint64_t)sqlite3_column_int64(s, 5);
	row.file.bytes = (uint64_t)sqlite3_column_int64(s, 6);
	row.file.ctime_ns = sqlite3_column_int64(s, 7);
	m->f.message = column_dup(s, 8, "");
	m->f.labels = column_dup(s, 9, "");
	m->f.config = column_dup(s, 10, "");
	m->f.cpu = column_dup(s, 11, "");
	m->f.memory.length = (uint64_t)sqlite3_column_int64(s, 12);
	m->f.disk.length = (uint64_t)sqlite3_column_int64(s, 13);
	m->f.state.length = (uint64_t)sqlite3_column_int64(s, 14);
	row.damage = column_dup(s, 15, NULL);
	if (!m->f.message || !m->f.labels || !m->f.config || !m->f.cpu)
		return -ENOMEM;
	row.entry.pruned = row.state == ROW_PRUNED;
	if (row_sum(&row) != sqlite3_column_int64(s, 16))
		return lies(c, "a row is not as it was written");
	*ret = row;
	row = (struct catalog_row){0};
	return 0;
}

static void
count_out(struct catalog *c, enum row_state state, uint64_t bytes)
{
	if ((unsigned)state < ROW_STATES)
		c->n[state]--;
	if (state != ROW_PRUNED)
		c->bytes -= bytes;
}

static void
count_in(struct catalog *c, enum row_state state, uint64_t bytes)
{
	c->n[state]++;
	if (state != ROW_PRUNED)
		c->bytes += bytes;
}

/* What the counts know of the row that is there. */
static int
count_old(struct catalog *c, const struct store_hash *id)
{
	cleanup_reset sqlite3_stmt *s = c->stmt[STMT_STATE];
	int r;

	bind_hash(s, 1, id);
	r = step(c, s);
	if (r > 0)
		count_out(c, (enum row_state)sqlite3_column_int(s, 0),
			(uint64_t)sqlite3_column_int64(s, 1));
	return r < 0 ? r : 0;
}

static int
row_put(struct catalog *c, const struct catalog_row *row)
{
	const struct store_manifest *m = row->entry.m;
	struct store_hash id, parent;
	int r;

	if (!hash_from_hex(m->id, &id))
		return lies(c, "an id that is none");
	r = count_old(c, &id);
	if (r < 0)
		return r;
	{
		cleanup_reset sqlite3_stmt *s = c->stmt[STMT_TEXT_ADD];

		bind_text(s, 1, m->f.cpu);
		r = finish(c, s);
	}
	if (r == 0) {
		cleanup_reset sqlite3_stmt *s = c->stmt[STMT_PUT];

		bind_hash(s, 1, &id);
		bind_hash(s, 2,
			m->f.parent && hash_from_hex(m->f.parent, &parent) ? &parent : NULL);
		sqlite3_bind_int(s, 3, (int)row->state);
		sqlite3_bind_int64(s, 4, row->newest);
		sqlite3_bind_int64(s, 5, (int64_t)row->file.inode);
		sqlite3_bind_int64(s, 6, (int64_t)row->file.bytes);
		sqlite3_bind_int64(s, 7, row->file.ctime_ns);
		bind_text(s, 8, m->f.message);
		bind_text(s, 9, m->f.labels);
		bind_text(s, 10, m->f.config);
		bind_text(s, 11, m->f.cpu);
		sqlite3_bind_int64(s, 12, (int64_t)m->f.memory.length);
		sqlite3_bind_int64(s, 13, (int64_t)m->f.disk.length);
		sqlite3_bind_int64(s, 14, (int64_t)m->f.state.length);
		bind_text(s, 15, row->damage);
		sqlite3_bind_int64(s, 16, row_sum(row));
		r = finish(c, s);
	}
	if (r < 0)
		return r;
	if ((uint64_t)sqlite3_last_insert_rowid(c->h) > c->newest_seq)
		c->newest_seq = (uint64_t)sqlite3_last_insert_rowid(c->h);
	count_in(c, row->state, row->file.bytes);
	return 0;
}

static int
row_remove(struct catalog *c, const struct store_hash *id)
{
	cleanup_reset sqlite3_stmt *s = c->stmt[STMT_REMOVE];
	int r = count_old(c, id);

	if (r < 0)
		return r;
	bind_hash(s, 1, id);
	return finish(c, s);
}

/* 1, or 0 when there is none. */
static int
row_get(struct catalog *c, const char *id, struct catalog_row *ret)
{
	cleanup_reset sqlite3_stmt *s = c->stmt[STMT_BY_ID];
	struct store_hash hash;
	int r;

	if (!hash_from_hex(id, &hash))
		return 0;
	bind_hash(s, 1, &hash);
	r = step(c, s);
	if (r <= 0)
		return r;
	r = row_read(c, s, ret);
	return r < 0 ? r : 1;
}

/*
 * From files to rows.
 */

static int
file_stat(int folder_fd, const char *name, struct row_file *ret)
{
	struct stat st;

	if (fstatat(folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	ret->inode = (uint64_t)st.st_ino;
	ret->bytes = (uint64_t)st.st_size;
	ret->ctime_ns = (int64_t)st.st_ctim.tv_sec * 1000000000 + st.st_ctim.tv_nsec;
	return 0;
}

/* What a list says of a message: cut between characters. */
static int
cut_message(struct store_manifest *m)
{
	size_t len = strlen(m->f.message), cut = STORE_MESSAGE_MAX;
	char *text;

	if (len <= cut)
		return 0;
	while (cut && ((unsigned char)m->f.message[cut] & 0xc0) == 0x80)
		cut--;
	text = strndup(m->f.message, cut);
	if (!text)
		return -ENOMEM;
	free((void *)(uintptr_t)m->f.message);
	m->f.message = text;
	return 0;
}

/* The file first, then what it says: one that is replaced in between is seen to be. */
static int
row_of_file(struct store *s, const char *id, struct catalog_row *ret)
{
	cleanup_row struct catalog_row row = {0};
	char held[MANIFEST_NAME_MAX], pruned[PRUNED_NAME_MAX];
	struct err why = {0};
	int r;

	store_manifest_name(id, held);
	store_pruned_name(id, pruned);
	r = file_stat(s->commits_fd, held, &row.file);
	if (r == -ENOENT) {
		row.state = ROW_PRUNED;
		r = file_stat(s->commits_fd, pruned, &row.file);
	}
	if (r < 0)
		return r;
	r = store_read_manifest(s, id, row.state == ROW_PRUNED, &row.entry.m, &why);
	if (r == -ENOENT || r == -ENOMEM)
		return r;
	if (r < 0) {
		/* A tombstone that cannot be read says nothing any more. */
		row.state = ROW_DAMAGED;
		row.damage = strdup(why.msg);
		row.entry.m = empty_manifest(id);
		if (!row.damage || !row.entry.m)
			return -ENOMEM;
	}
	if (cut_message(row.entry.m) < 0)
		return -ENOMEM;
	row.newest = row.entry.m->f.created_ms > INT64_MAX
			     ? -INT64_MAX
			     : -(int64_t)row.entry.m->f.created_ms;
	*ret = row;
	row = (struct catalog_row){0};
	return 0;
}

/* What was known of a commit before it was damaged is true still: its id says so. */
static int
keep_known(struct catalog *c, struct catalog_row *row)
{
	cleanup_row struct catalog_row old = {0};
	int r = row_get(c, row->entry.m->id, &old);

	if (r <= 0)
		return r;
	if (row->state == ROW_DAMAGED) {
		struct store_manifest *m = row->entry.m;

		row->entry.m = old.entry.m;
		old.entry.m = m;
		row->newest = old.newest;
	}
	return 0;
}

static int
tag_of_file(struct store *s, const char *tag, struct row_file *file,
	struct store_hash *ret_id, bool *ret_has)
{
	char id[STORE_ID_MAX];
	int r = file_stat(s->tags_fd, tag, file);

	if (r == 0)
		r = store_tag_get(s, tag, id, NULL);
	*ret_has = r == 0 && hash_from_hex(id, ret_id);
	return r == -ENOENT || r == -ENOMEM ? r : 0;
}

static int
tag_put(struct catalog *c, const char *tag, const struct store_hash *id,
	const struct row_file *file)
{
	cleanup_reset sqlite3_stmt *s = c->stmt[STMT_TAG_PUT];

	bind_text(s, 1, tag);
	bind_hash(s, 2, id);
	sqlite3_bind_int64(s, 3, (int64_t)file->inode);
	sqlite3_bind_int64(s, 4, file->ctime_ns);
	return finish(c, s);
}

static int
tag_remove(struct catalog *c, const char *tag)
{
	cleanup_reset sqlite3_stmt *s = c->stmt[STMT_TAG_REMOVE];

	bind_text(s, 1, tag);
	return finish(c, s);
}

/*
 * Comparing the rows with the folders' names.
 */

struct name {
	struct store_hash id;
	bool pruned, seen;
};

struct names {
	struct name *v; /* owned; sorted by id */
	size_t n, room;
	bool pruned;
};

static int
add_name(void *ctx, const char *name, struct err *e)
{
	struct names *l = ctx;
	struct name new = {.pruned = l->pruned};

	if (!hash_from_hex(name, &new.id))
		return 0;
	if (l->n == l->room) {
		size_t room = l->room ? 2 * l->room : 1024;
		struct name *bigger = reallocarray(l->v, room, sizeof(*bigger));

		if (!bigger)
			return err_sys(e, -ENOMEM, "the store's commits");
		l->v = bigger;
		l->room = room;
	}
	l->v[l->n++] = new;
	return 0;
}

static int
by_id(const void *a, const void *b)
{
	const struct name *x = a, *y = b;
	int order = memcmp(&x->id, &y->id, sizeof(x->id));

	return order ? order : (int)x->pruned - (int)y->pruned;
}

static int
names_read(struct store *s, struct names *l, struct err *e)
{
	char hex[STORE_ID_MAX], file[PRUNED_NAME_MAX];
	size_t kept = 0;
	int r = store_each_name(s->commits_fd, MANIFEST_SUFFIX, add_name, l, e);

	l->pruned = true;
	if (r == 0)
		r = store_each_name(s->commits_fd, PRUNED_SUFFIX, add_name, l, e);
	if (r < 0)
		return r;
	if (l->n)
		qsort(l->v, l->n, sizeof(*l->v), by_id);
	for (size_t i = 0; i < l->n; i++) {
		/* Pruned, and then made once more: it is held. */
		if (kept && hash_equal(&l->v[kept - 1].id, &l->v[i].id)) {
			hash_to_hex(&l->v[i].id, hex);
			store_pruned_name(hex, file);
			unlinkat(s->commits_fd, file, 0);
			continue;
		}
		l->v[kept++] = l->v[i];
	}
	l->n = kept;
	return 0;
}

/* Rows that say what their files' names say stay; others go. */
static int
scan_rows(struct catalog *c, struct names *l)
{
	cleanup_free struct store_hash *wrong = NULL;
	size_t n_wrong = 0, room = 0;
	int r;

	{
		cleanup_reset sqlite3_stmt *s = c->stmt[STMT_SCAN];

		while ((r = step(c, s)) > 0) {
			cleanup_row struct catalog_row row = {0};
			struct name key = {0}, *at;

			r = row_read(c, s, &row);
			if (r < 0)
				return r;
			hash_from_hex(row.entry.m->id, &key.id);
			key.pruned = row.state == ROW_PRUNED;
			if (row.entry.seq > c->newest_seq)
				c->newest_seq = row.entry.seq;
			count_in(c, row.state, row.file.bytes);
			at = l->n ? bsearch(&key, l->v, l->n, sizeof(*l->v), by_id)
				  : NULL;
			/* A damaged one is read again, and what is known of it kept. */
			if (at) {
				at->seen = row.state != ROW_DAMAGED;
				continue;
			}
			if (n_wrong == room) {
				size_t bigger = room ? 2 * room : 64;
				void *v = reallocarray(wrong, bigger, sizeof(*wrong));

				if (!v)
					return -ENOMEM;
				wrong = v;
				room = bigger;
			}
			wrong[n_wrong++] = key.id;
		}
	}
	for (size_t i = 0; r == 0 && i < n_wrong; i++)
		r = row_remove(c, &wrong[i]);
	return r;
}

static int
add_unseen(struct store *s, struct catalog *c, const struct names *l)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		cleanup_row struct catalog_row row = {0};
		char id[STORE_ID_MAX];

		if (l->v[i].seen)
			continue;
		hash_to_hex(&l->v[i].id, id);
		r = row_of_file(s, id, &row);
		if (r < 0) {
			r = r == -ENOMEM ? r : 0;
			continue;
		}
		r = row.state == ROW_DAMAGED ? keep_known(c, &row) : 0;
		if (r == 0)
			r = row_put(c, &row);
	}
	return r;
}

/* Rows of tags that were moved or are gone. */
static int
tags_scan(struct store *s, struct catalog *c)
{
	struct store_tag *gone = NULL;
	size_t n = 0;
	int r;

	{
		cleanup_reset sqlite3_stmt *st = c->stmt[STMT_TAG_SCAN];

		while ((r = step(c, st)) > 0) {
			const char *name = (const char *)sqlite3_column_text(st, 0);
			struct row_file file;
			struct store_tag *bigger;

			if (sqlite3_column_type(st, 0) != SQLITE_TEXT ||
				store_tag_check(name, NULL)) {
				r = lies(c, "a tag that is none");
				break;
			}
			if (file_stat(s->tags_fd, name, &file) == 0 &&
				(int64_t)file.inode == sqlite3_column_int64(st, 1) &&
				file.ctime_ns == sqlite3_column_int64(st, 2))
				continue;
			bigger = reallocarray(gone, n + 1, sizeof(*gone));
			if (!bigger) {
				r = -ENOMEM;
				break;
			}
			gone = bigger;
			snprintf(gone[n++].name, STORE_TAG_MAX, "%s", name);
		}
	}
	for (size_t i = 0; r == 0 && i < n; i++)
		r = tag_remove(c, gone[i].name);
	free(gone);
	return r;
}

struct adding {
	struct store *s;
	struct catalog *c;
};

static int
add_tag_name(void *ctx, const char *name, struct err *e)
{
	struct adding *a = ctx;
	struct row_file file;
	struct store_hash id;
	bool has;
	int r;

	(void)e;
	if (store_tag_check(name, NULL))
		return 0;
	{
		cleanup_reset sqlite3_stmt *st = a->c->stmt[STMT_TAG_KNOWN];

		bind_text(st, 1, name);
		r = step(a->c, st);
	}
	if (r)
		return r < 0 ? r : 0; /* tags_scan() has looked at it */
	r = tag_of_file(a->s, name, &file, &id, &has);
	if (r == -ENOENT)
		return 0;
	return r < 0 ? r : tag_put(a->c, name, has ? &id : NULL, &file);
}

static void
folder_mtimes(struct store *s, int64_t ret[static 2])
{
	const int fds[2] = {s->commits_fd, s->tags_fd};

	for (unsigned i = 0; i < 2; i++) {
		struct stat st;

		ret[i] = fstat(fds[i], &st) < 0
				 ? 0
				 : (int64_t)st.st_mtim.tv_sec * 1000000000 +
					   st.st_mtim.tv_nsec;
	}
}

/* Tombstones that nothing descends from, and those above them that are so then. */
static int
remove_childless(struct store *s, struct catalog *c)
{
	bool changed = false;
	int r = 0;

	for (;;) {
		cleanup_free struct store_hash *ids = calloc(1024, sizeof(*ids));
		size_t n = 0;

		if (!ids)
			return -ENOMEM;
		{
			cleanup_reset sqlite3_stmt *st = c->stmt[STMT_CHILDLESS];

			while (n < 1024 && (r = step(c, st)) > 0)
				n += column_hash(st, 0, &ids[n]);
		}
		if (r < 0 || n == 0) {
			if (r >= 0 && changed)
				folder_mtimes(s, c->mtime_ns);
			return r < 0 ? r : 0;
		}
		changed = true;
		for (size_t i = 0; i < n; i++) {
			char hex[STORE_ID_MAX], file[PRUNED_NAME_MAX];

			hash_to_hex(&ids[i], hex);
			store_pruned_name(hex, file);
			unlinkat(s->commits_fd, file, 0);
			r = row_remove(c, &ids[i]);
			if (r < 0)
				return r;
		}
	}
}

static int
compare_all(struct store *s, struct catalog *c, struct err *e)
{
	struct adding adding = {s, c};
	struct names l = {0};
	int r;

	folder_mtimes(s, c->mtime_ns);
	r = names_read(s, &l, e);

	memset(c->n, 0, sizeof(c->n));
	c->bytes = 0;
	if (r == 0)
		r = exec(c, "BEGIN IMMEDIATE");
	if (r == 0)
		r = scan_rows(c, &l);
	if (r == 0)
		r = add_unseen(s, c, &l);
	free(l.v);
	if (r == 0)
		r = remove_childless(s, c);
	if (r == 0)
		r = tags_scan(s, c);
	if (r == 0)
		r = store_each_name(s->tags_fd, "", add_tag_name, &adding, e);
	if (r == 0)
		r = exec(c, "COMMIT");
	if (r < 0 && c->h)
		sqlite3_exec(c->h, "ROLLBACK", NULL, NULL, NULL);
	c->stale = r < 0;
	return r;
}

/*
 * The database.
 */

static void
close_file(struct catalog *c)
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
	if (statx(s->root_fd, FILE_NAME, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &st) < 0)
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
	int r = exec(c, "BEGIN IMMEDIATE");

	for (size_t i = 0; r == 0 && i < SCHEMA_N; i++)
		r = exec(c, schema[i]);
	origin_of(s, origin);
	snprintf(text, sizeof(text),
		"INSERT INTO origin VALUES (%lld, %lld, %lld); PRAGMA application_id = %d",
		(long long)origin[0], (long long)origin[1], (long long)origin[2],
		APPLICATION_ID);
	if (r == 0)
		r = exec(c, text);
	return r == 0 ? exec(c, "COMMIT") : r;
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
		return broke(c);
	while ((r = step(c, s)) > 0) {
		const char *text = (const char *)sqlite3_column_text(s, 0);
		size_t i = 0;

		while (i < SCHEMA_N && text && strcmp(text, schema[i]) != 0)
			i++;
		if (!text || i == SCHEMA_N)
			r = lies(c, "its tables are not those of this pando");
		if (r < 0)
			break;
		found++;
	}
	sqlite3_finalize(s);
	if (r == 0 && found != SCHEMA_N)
		r = lies(c, "its tables are not those of this pando");
	return r;
}

/* Pages, and that the indexes say what the tables do. */
static int
check_pages(struct catalog *c)
{
	const char *said;
	sqlite3_stmt *s;
	int r;

	if (sqlite3_prepare_v2(c->h, "PRAGMA integrity_check(1)", -1, &s, NULL) != SQLITE_OK)
		return broke(c);
	r = step(c, s);
	said = r > 0 ? (const char *)sqlite3_column_text(s, 0) : NULL;
	if (r >= 0 && (!said || strcmp(said, "ok") != 0))
		r = lies(c, said ? said : "its pages cannot be checked");
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
		return broke(c);
	r = step(c, st);
	if (r >= 0 && (r == 0 || sqlite3_column_int64(st, 0) != origin[0] ||
			      sqlite3_column_int64(st, 1) != origin[1] ||
			      sqlite3_column_int64(st, 2) != origin[2]))
		r = lies(c, "it is a copy, or was made elsewhere");
	sqlite3_finalize(st);
	return r < 0 ? r : 0;
}

static int
prepare_all(struct catalog *c)
{
	for (unsigned i = 0; i < STMT_COUNT; i++)
		if (sqlite3_prepare_v3(c->h, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
			    &c->stmt[i], NULL) != SQLITE_OK)
			return broke(c);
	return 0;
}

static void
put_aside(struct store *s)
{
	renameat(s->root_fd, FILE_NAME, s->root_fd, FILE_NAME ".aside");
	unlinkat(s->root_fd, FILE_NAME "-wal", 0);
	unlinkat(s->root_fd, FILE_NAME "-shm", 0);
	unlinkat(s->root_fd, FILE_NAME "-journal", 0);
	/* A folder of that name, which cannot take the place of a file. */
	if (faccessat(s->root_fd, FILE_NAME, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
		unlinkat(s->root_fd, FILE_NAME ".aside", 0);
		renameat(s->root_fd, FILE_NAME, s->root_fd, FILE_NAME ".aside");
	}
}

/* New when there is no file. */
static int
open_file(struct store *s, struct catalog *c, const char *path)
{
	bool memory = strcmp(path, ":memory:") == 0, new = memory;
	struct stat st;
	int r;

	c->in_memory = memory;
	if (!memory && fstatat(s->root_fd, FILE_NAME, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		int fd = openat(s->root_fd, FILE_NAME,
			O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

		if (fd < 0) {
			snprintf(c->why, sizeof(c->why), "%s", strerror(errno));
			c->wrong = false;
			return BROKEN;
		}
		close(fd);
		unlinkat(s->root_fd, FILE_NAME "-wal", 0);
		unlinkat(s->root_fd, FILE_NAME "-journal", 0);
		new = true;
	} else if (!memory && !S_ISREG(st.st_mode)) {
		return lies(c, "it is no file");
	} else if (!memory && st.st_size == 0) {
		/* A kill came between its name and its tables. */
		unlinkat(s->root_fd, FILE_NAME "-wal", 0);
		new = true;
	}
	fault_point("store.catalog-opening");
	if (sqlite3_open_v2(path, &c->h,
		    SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
		    NULL) != SQLITE_OK)
		return broke(c);
	sqlite3_extended_result_codes(c->h, 1);
	sqlite3_db_config(c->h, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
	sqlite3_db_config(c->h, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
	r = exec(c, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA cell_size_check = ON;"
		    "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
		    "PRAGMA cache_size = -65536; PRAGMA temp_store = MEMORY");
	if (r == 0 && !new)
		r = check_schema(c);
	if (r == 0 && !new)
		r = check_origin(s, c);
	if (r == 0 && !new)
		r = check_pages(c);
	if (r == 0 && new)
		r = make_tables(s, c);
	if (r == 0)
		r = prepare_all(c);
	if (r == 0 && new)
		fault_point("store.catalog-made");
	return r;
}

static int
open_and_compare(struct store *s, struct catalog *c, const char *path, struct err *e)
{
	int r;

	close_file(c);
	c->newest_seq = 0;
	r = open_file(s, c, path);
	if (r == 0)
		r = compare_all(s, c, e);
	if (r < 0)
		close_file(c);
	return r;
}

/* Until there is one that works: anew on disk, or in memory. */
static int
recover(struct store *s, struct catalog *c, struct err *e)
{
	char path[4096];
	int r = BROKEN;

	if ((size_t)snprintf(path, sizeof(path), "%s/" FILE_NAME, s->path) >= sizeof(path))
		c->wrong = false;
	while (!c->in_memory && c->wrong && r == BROKEN && c->rebuilds < REBUILDS_MAX) {
		log_warn(
			"store %.200s: its catalogue cannot be used (%s): it is put aside as " FILE_NAME
			".aside, and made anew from the commits",
			s->path, c->why);
		c->rebuilds++;
		close_file(c);
		put_aside(s);
		r = open_and_compare(s, c, path, e);
	}
	if (r == BROKEN) {
		log_warn(
			"store %.200s: its catalogue cannot be kept (%s): it is in memory until the store is opened again",
			s->path, c->why);
		r = open_and_compare(s, c, ":memory:", e);
	}
	return r == BROKEN ? err_set(e, -EIO, "store %.200s: its catalogue: %s", s->path,
				     c->why)
	       : r == -ENOMEM ? err_sys(e, r, "store %.200s: its catalogue", s->path)
			      : r;
}

int
catalog_open(struct store *s, struct err *e)
{
	struct catalog *c = calloc(1, sizeof(*c));
	char path[4096];
	int r;

	if (!c)
		return err_sys(e, -ENOMEM, "store %.200s", s->path);
	pthread_mutex_init(&c->lock, NULL);
	s->catalog = c;
	if ((size_t)snprintf(path, sizeof(path), "%s/" FILE_NAME, s->path) >= sizeof(path))
		return err_sys(e, -ENAMETOOLONG, "store %.200s", s->path);
	r = open_and_compare(s, c, path, e);
	if (r == BROKEN)
		r = recover(s, c, e);
	return r == -ENOMEM ? err_sys(e, r, "store %.200s: its catalogue", s->path) : r;
}

void
catalog_close(struct store *s)
{
	struct catalog *c = s->catalog;

	if (!c)
		return;
	close_file(c);
	pthread_mutex_destroy(&c->lock);
	free(c);
	s->catalog = NULL;
}

/*
 * Calls. Each is done once more with a new database when that which is there is broken,
 * and so begins from nothing.
 */

typedef int op_fn(struct store *s, struct catalog *c, void *ctx);

static int
call(struct store *s, op_fn *op, void *ctx, struct err *e)
{
	struct catalog *c = s->catalog;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	if (!c->h)
		r = recover(s, c, e);
	else if (c->stale)
		r = compare_all(s, c, e);
	for (unsigned tries = 0; tries < 3; tries++) {
		if (r == 0)
			r = op(s, c, ctx);
		if (r != BROKEN)
			break;
		if (c->h && !sqlite3_get_autocommit(c->h))
			sqlite3_exec(c->h, "ROLLBACK", NULL, NULL, NULL);
		r = recover(s, c, e);
	}
	if (r < 0 && c->h && !sqlite3_get_autocommit(c->h)) {
		sqlite3_exec(c->h, "ROLLBACK", NULL, NULL, NULL);
		c->stale = true;
	}
	pthread_mutex_unlock(&c->lock);
	if (r == BROKEN)
		return err_set(e, -EIO, "store %.200s: its catalogue: %s", s->path, c->why);
	return r == -ENOMEM ? err_sys(e, r, "store %.200s: its catalogue", s->path) : r;
}

/* names is held, so that nobody of us is at it. */
static void
look(struct store *s)
{
	struct catalog *c = s->catalog;
	int64_t now[2];

	folder_mtimes(s, now);
	pthread_mutex_lock(&c->lock);
	if (memcmp(now, c->mtime_ns, sizeof(now)) != 0)
		c->stale = true;
	pthread_mutex_unlock(&c->lock);
}

void
catalog_names_lock(struct store *s)
{
	pthread_mutex_lock(&s->names);
	look(s);
}

void
catalog_names_unlock(struct store *s)
{
	int64_t now[2];

	folder_mtimes(s, now);
	pthread_mutex_lock(&s->catalog->lock);
	memcpy(s->catalog->mtime_ns, now, sizeof(now));
	pthread_mutex_unlock(&s->catalog->lock);
	pthread_mutex_unlock(&s->names);
}

void
catalog_look(struct store *s)
{
	if (pthread_mutex_trylock(&s->names) != 0)
		return; /* it is being changed */
	look(s);
	pthread_mutex_unlock(&s->names);
}

static void
must_compare(struct store *s)
{
	pthread_mutex_lock(&s->catalog->lock);
	s->catalog->stale = true;
	pthread_mutex_unlock(&s->catalog->lock);
}

static int
put_op(struct store *s, struct catalog *c, void *ctx)
{
	struct catalog_row *row = ctx;
	int r = row->state == ROW_DAMAGED ? keep_known(c, row) : 0;

	(void)s;
	return r < 0 ? r : row_put(c, row);
}

struct ids {
	const char (*ids)[STORE_ID_MAX];
	size_t n;
};

static int
remove_op(struct store *s, struct catalog *c, void *ctx)
{
	const struct ids *l = ctx;
	struct store_hash id;
	int r = exec(c, "BEGIN IMMEDIATE");

	(void)s;
	for (size_t i = 0; r == 0 && i < l->n; i++)
		if (hash_from_hex(l->ids[i], &id))
			r = row_remove(c, &id);
	return r == 0 ? exec(c, "COMMIT") : r;
}

int
catalog_remove(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	struct ids l = {ids, n};
	int r = call(s, remove_op, &l, e);

	if (r < 0)
		must_compare(s);
	return r;
}

int
catalog_renew(struct store *s, const char *id, struct err *e)
{
	cleanup_row struct catalog_row row = {0};
	int r = row_of_file(s, id, &row);

	if (r == -ENOENT) {
		char one[1][STORE_ID_MAX];

		snprintf(one[0], sizeof(one[0]), "%s", id);
		r = catalog_remove(s, (const char (*)[STORE_ID_MAX])one, 1, e);
		return r < 0 ? r : err_set(e, -ENOENT, "there is no commit %.64s", id);
	}
	if (r < 0)
		err_sys(e, r, "commit %.12s", id);
	else
		r = call(s, put_op, &row, e);
	if (r < 0)
		must_compare(s);
	return r;
}

void
catalog_note_damage(struct store *s, const char *id, const char *why)
{
	cleanup_row struct catalog_row row = {.state = ROW_DAMAGED};
	char file[MANIFEST_NAME_MAX];

	store_manifest_name(id, file);
	row.entry.m = empty_manifest(id);
	row.damage = strdup(why);
	if (row.entry.m && row.damage && file_stat(s->commits_fd, file, &row.file) == 0)
		call(s, put_op, &row, NULL);
}

static int
pruned_op(struct store *s, struct catalog *c, void *ctx)
{
	const struct ids *l = ctx;
	int r = exec(c, "BEGIN IMMEDIATE");

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		cleanup_row struct catalog_row row = {0};
		char file[PRUNED_NAME_MAX];

		r = row_get(c, l->ids[i], &row);
		if (r <= 0)
			continue;
		store_pruned_name(l->ids[i], file);
		r = file_stat(s->commits_fd, file, &row.file);
		if (r < 0) {
			r = 0;
			continue;
		}
		row.state = ROW_PRUNED;
		free(row.damage);
		row.damage = NULL;
		r = row_put(c, &row);
	}
	return r == 0 ? exec(c, "COMMIT") : r;
}

int
catalog_pruned(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	struct ids l = {ids, n};
	int r = call(s, pruned_op, &l, e);

	if (r < 0)
		must_compare(s);
	return r;
}

struct id_query {
	struct store_hash low, high;
	bool pruned;
	size_t max;
	char (*ret)[STORE_ID_MAX];
	size_t n;
};

/* The ids that a statement gives: all are counted, the first q->max are given. */
static int
take_ids(struct catalog *c, sqlite3_stmt *st, struct id_query *q)
{
	struct store_hash id;
	int r;

	q->n = 0;
	while ((r = step(c, st)) > 0) {
		if (!column_hash(st, 0, &id))
			return lies(c, "a row without an id");
		if (q->n < q->max)
			hash_to_hex(&id, q->ret[q->n]);
		q->n++;
	}
	return r;
}

static int
prefix_op(struct store *s, struct catalog *c, void *ctx)
{
	struct id_query *q = ctx;
	cleanup_reset sqlite3_stmt *st = c->stmt[STMT_PREFIX];

	(void)s;
	bind_hash(st, 1, &q->low);
	bind_hash(st, 2, &q->high);
	sqlite3_bind_int(st, 3, q->pruned);
	return take_ids(c, st, q);
}

int
catalog_prefix(struct store *s, const char *digits, bool pruned, size_t max,
	char (*ret)[STORE_ID_MAX], size_t *ret_n, struct err *e)
{
	struct id_query q = {.pruned = pruned, .max = max, .ret = ret};
	size_t len = strlen(digits);
	char low[STORE_ID_MAX], high[STORE_ID_MAX];
	int r;

	if (len > STORE_HEX)
		return err_set(e, -EINVAL, "\"%.80s\" is no beginning of an id", digits);
	memset(low, '0', STORE_HEX);
	memset(high, 'f', STORE_HEX);
	memcpy(low, digits, len);
	memcpy(high, digits, len);
	low[STORE_HEX] = high[STORE_HEX] = '\0';
	if (!hash_from_hex(low, &q.low) || !hash_from_hex(high, &q.high))
		return err_set(e, -EINVAL, "\"%.80s\" is no beginning of an id", digits);
	r = call(s, prefix_op, &q, e);
	*ret_n = q.n;
	return r;
}

static int
children_op(struct store *s, struct catalog *c, void *ctx)
{
	struct id_query *q = ctx;
	cleanup_reset sqlite3_stmt *st = c->stmt[STMT_CHILD_IDS];

	(void)s;
	bind_hash(st, 1, &q->low);
	sqlite3_bind_int64(st, 2, (int64_t)q->max);
	return take_ids(c, st, q);
}

int
catalog_children(struct store *s, const char *id, size_t max, char (*ret)[STORE_ID_MAX],
	size_t *ret_n, struct err *e)
{
	struct id_query q = {.max = max, .ret = ret};
	int r;

	if (!hash_from_hex(id, &q.low))
		return err_set(e, -ENOENT, "there is no commit %.64s", id);
	r = call(s, children_op, &q, e);
	*ret_n = q.n;
	return r;
}

struct parent_query {
	struct store_hash id;
	char parent[STORE_ID_MAX];
	enum row_state state;
	bool there;
};

static int
parent_op(struct store *s, struct catalog *c, void *ctx)
{
	struct parent_query *q = ctx;
	cleanup_reset sqlite3_stmt *st = c->stmt[STMT_STATE];
	struct store_hash parent;
	int r;

	(void)s;
	q->parent[0] = '\0';
	bind_hash(st, 1, &q->id);
	r = step(c, st);
	q->there = r > 0;
	if (r <= 0)
		return r;
	q->state = (enum row_state)sqlite3_column_int(st, 0);
	if (column_hash(st, 2, &parent))
		hash_to_hex(&parent, q->parent);
	return 0;
}

int
catalog_parent(struct store *s, const char *id, char ret_parent[static STORE_ID_MAX],
	enum row_state *ret_state, struct err *e)
{
	struct parent_query q = {0};
	int r = hash_from_hex(id, &q.id) ? call(s, parent_op, &q, e) : 0;

	if (r == 0 && !q.there)
		r = err_set(e, -ENOENT, "there is no commit %.64s", id);
	if (r < 0)
		return r;
	memcpy(ret_parent, q.parent, sizeof(q.parent));
	*ret_state = q.state;
	return 0;
}

struct rows {
	const struct catalog_query *q;
	struct catalog_row *v; /* owned; q->limit of them */
	size_t n;
};

static int
entry_tags(struct catalog *c, struct store_entry *entry)
{
	cleanup_reset sqlite3_stmt *s = c->stmt[STMT_TAGS_OF];
	struct store_hash id;
	int r;

	hash_from_hex(entry->m->id, &id);
	bind_hash(s, 1, &id);
	sqlite3_bind_int(s, 2, -1);
	while ((r = step(c, s)) > 0) {
		const char *name = (const char *)sqlite3_column_text(s, 0);
		void *bigger = reallocarray(
			entry->tags, entry->n_tags + 1, sizeof(*entry->tags));

		if (!bigger)
			return -ENOMEM;
		entry->tags = bigger;
		snprintf(entry->tags[entry->n_tags++], STORE_TAG_MAX, "%s",
			name ? name : "");
	}
	return r;
}

static int
rows_history(struct catalog *c, struct rows *l)
{
	char id[STORE_ID_MAX];
	int r = 1;

	snprintf(id, sizeof(id), "%s", l->q->of);
	while (id[0] && l->n < l->q->limit) {
		struct catalog_row *row = &l->v[l->n];

		r = row_get(c, id, row);
		if (r <= 0)
			break;
		l->n++;
		snprintf(id, sizeof(id), "%s",
			row->entry.m->f.parent ? row->entry.m->f.parent : "");
		if (row->state == ROW_DAMAGED)
			break;
	}
	return r < 0 ? r : 0;
}

static int
rows_op(struct store *s, struct catalog *c, void *ctx)
{
	static const enum stmt by_order[] = {
		[CATALOG_NEWEST] = STMT_NEWEST,
		[CATALOG_CHILDREN] = STMT_CHILDREN,
		[CATALOG_ALL] = STMT_ALL,
	};
	static const struct store_hash none;
	struct rows *l = ctx;
	const struct catalog_query *q = l->q;
	struct store_hash after = none, of = none;
	int r;

	(void)s;
	while (l->n)
		catalog_row_done(&l->v[--l->n]);
	if (q->order == CATALOG_HISTORY) {
		r = rows_history(c, l);
	} else {
		cleanup_reset sqlite3_stmt *st = c->stmt[by_order[q->order]];

		if (q->order == CATALOG_ALL) {
			sqlite3_bind_int64(st, 1, (int64_t)q->after_seq);
			sqlite3_bind_int64(st, 2, (int64_t)q->limit);
		} else {
			if (q->after_id)
				hash_from_hex(q->after_id, &after);
			sqlite3_bind_int64(st, 1, q->after_id ? q->after_newest : INT64_MIN);
			bind_hash(st, 2, &after);
			sqlite3_bind_int64(st, 3, (int64_t)q->limit);
			if (q->order == CATALOG_CHILDREN) {
				hash_from_hex(q->of, &of);
				bind_hash(st, 4, &of);
			}
		}
		while ((r = step(c, st)) > 0) {
			r = row_read(c, st, &l->v[l->n]);
			if (r < 0)
				return r;
			l->n++;
		}
	}
	for (size_t i = 0; r == 0 && i < l->n; i++)
		r = entry_tags(c, &l->v[i].entry);
	return r;
}

int
catalog_rows(struct store *s, const struct catalog_query *q, struct catalog_row **ret,
	size_t *ret_n, struct err *e)
{
	struct rows l = {.q = q};
	int r;

	l.v = calloc(q->limit + 1, sizeof(*l.v));
	if (!l.v)
		return err_sys(e, -ENOMEM, "a list of commits");
	r = call(s, rows_op, &l, e);
	if (r < 0) {
		while (l.n)
			catalog_row_done(&l.v[--l.n]);
		free(l.v);
		return r;
	}
	*ret = l.v;
	*ret_n = l.n;
	return 0;
}

struct damaged {
	uint64_t n;
	size_t max;
	char (*ids)[STORE_ID_MAX]; /* owned */
	size_t n_ids;
	char first[256];
};

static int
damaged_op(struct store *s, struct catalog *c, void *ctx)
{
	struct damaged *d = ctx;
	cleanup_reset sqlite3_stmt *st = c->stmt[STMT_DAMAGED];
	struct store_hash id;
	int r = 0;

	(void)s;
	d->n = c->n[ROW_DAMAGED];
	d->n_ids = 0;
	sqlite3_bind_int64(st, 1, (int64_t)d->max);
	while (d->n && (r = step(c, st)) > 0) {
		const char *why = (const char *)sqlite3_column_text(st, 1);

		if (!d->n_ids)
			snprintf(d->first, sizeof(d->first), "%s", why ? why : "");
		if (d->n_ids < d->max && column_hash(st, 0, &id))
			hash_to_hex(&id, d->ids[d->n_ids++]);
	}
	return r;
}

int
catalog_damaged(struct store *s, uint64_t *ret_n, struct err *ret_first, struct err *e)
{
	char id[1][STORE_ID_MAX];
	struct damaged d = {.max = 1, .ids = id};
	int r = call(s, damaged_op, &d, e);

	if (r < 0)
		return r;
	*ret_n = d.n;
	if (d.n)
		err_set(ret_first, -EBADMSG, "%s", d.first);
	return 0;
}

void
catalog_retry_damaged(struct store *s)
{
	struct damaged d = {.max = RETRY_MAX};

	pthread_mutex_lock(&s->catalog->lock);
	d.n = s->catalog->n[ROW_DAMAGED];
	pthread_mutex_unlock(&s->catalog->lock);
	if (!d.n)
		return;
	d.ids = calloc(RETRY_MAX, sizeof(*d.ids));
	if (d.ids && call(s, damaged_op, &d, NULL) == 0)
		for (size_t i = 0; i < d.n_ids; i++)
			catalog_renew(s, d.ids[i], NULL);
	free(d.ids);
}

void
catalog_counts(struct store *s, uint64_t *ret_commits, uint64_t *ret_bytes)
{
	struct catalog *c = s->catalog;

	pthread_mutex_lock(&c->lock);
	*ret_commits = c->n[ROW_HELD] + c->n[ROW_DAMAGED];
	*ret_bytes = c->bytes;
	pthread_mutex_unlock(&c->lock);
}

uint64_t
catalog_newest_seq(struct store *s)
{
	uint64_t seq;

	pthread_mutex_lock(&s->catalog->lock);
	seq = s->catalog->newest_seq;
	pthread_mutex_unlock(&s->catalog->lock);
	return seq;
}

struct tag_change {
	const char *tag;
	struct row_file file;
	struct store_hash id;
	bool there, has;
};

static int
tag_op(struct store *s, struct catalog *c, void *ctx)
{
	const struct tag_change *t = ctx;

	(void)s;
	return t->there ? tag_put(c, t->tag, t->has ? &t->id : NULL, &t->file)
			: tag_remove(c, t->tag);
}

int
catalog_tag(struct store *s, const char *tag, struct err *e)
{
	struct tag_change t = {.tag = tag};
	int r = tag_of_file(s, tag, &t.file, &t.id, &t.has);

	t.there = r != -ENOENT;
	r = r == -ENOMEM ? err_sys(e, r, "tag \"%s\"", tag) : call(s, tag_op, &t, e);
	if (r < 0)
		must_compare(s);
	return r;
}

struct tag_query {
	const char *after;
	const struct store_hash *of;
	size_t limit;
	struct store_tag *v; /* owned */
	size_t n;
};

static int
tags_op(struct store *s, struct catalog *c, void *ctx)
{
	struct tag_query *q = ctx;
	cleanup_reset sqlite3_stmt *st = c->stmt[q->of ? STMT_TAGS_OF : STMT_TAGS];
	struct store_hash id;
	int r;

	(void)s;
	q->n = 0;
	if (q->of)
		bind_hash(st, 1, q->of);
	else
		bind_text(st, 1, q->after ? q->after : "");
	sqlite3_bind_int64(st, 2, (int64_t)q->limit);
	while ((r = step(c, st)) > 0) {
		const char *name = (const char *)sqlite3_column_text(st, 0);
		struct store_tag *bigger = reallocarray(q->v, q->n + 1, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		q->v = bigger;
		bigger += q->n++;
		memset(bigger, 0, sizeof(*bigger));
		snprintf(bigger->name, sizeof(bigger->name), "%s", name ? name : "");
		if (column_hash(st, 1, &id))
			hash_to_hex(&id, bigger->id);
	}
	return r;
}

int
catalog_tags(struct store *s, const char *after, const char *of, size_t limit,
	struct store_tag **ret, size_t *ret_n, struct err *e)
{
	struct tag_query q = {.after = after, .limit = limit};
	struct store_hash id;
	int r;

	if (of && !hash_from_hex(of, &id))
		return err_set(e, -ENOENT, "there is no commit %.64s", of);
	q.of = of ? &id : NULL;
	r = call(s, tags_op, &q, e);
	if (r < 0) {
		free(q.v);
		return r;
	}
	*ret = q.v;
	*ret_n = q.n;
	return 0;
}
