/* The statements of the catalogue, and how they are run. */
#include "host/store/store_catalog_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS \
	"seq, id, parent, parent_seq, state, newest, inode, bytes, ctime_ns, message, labels, config," \
	" texts.text, memory, disk, device, damage, sum" \
	" FROM commits LEFT JOIN texts ON texts.n = commits.cpu "

static const char *const sql[STMT_COUNT] = {
	[STMT_TEXT_ADD] = "INSERT OR IGNORE INTO texts (text) VALUES (?1)",
	[STMT_PUT] =
		"INSERT INTO commits (id, parent, state, newest, inode, bytes, ctime_ns, message,"
		" labels, config, cpu, memory, disk, device, damage, sum, parent_seq) VALUES (?1,"
		" ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, (SELECT n FROM texts WHERE text = ?11),"
		" ?12, ?13, ?14, ?15, ?16, (SELECT seq FROM commits WHERE id = ?2))"
		" ON CONFLICT (id) DO UPDATE SET parent = excluded.parent,"
		" parent_seq = excluded.parent_seq,"
		" state = excluded.state, newest = excluded.newest, inode = excluded.inode,"
		" bytes = excluded.bytes, ctime_ns = excluded.ctime_ns, message = excluded.message,"
		" labels = excluded.labels, config = excluded.config, cpu = excluded.cpu,"
		" memory = excluded.memory, disk = excluded.disk, device = excluded.device,"
		" damage = excluded.damage, sum = excluded.sum",
	[STMT_REMOVE] = "DELETE FROM commits WHERE id = ?1",
	[STMT_STATE] = "SELECT state, bytes, parent FROM commits WHERE id = ?1",
	[STMT_BY_ID] = "SELECT " COLUMNS "WHERE id = ?1",
	[STMT_BY_SEQ] = "SELECT " COLUMNS "WHERE seq = ?1",
	[STMT_SCAN] = "SELECT " COLUMNS "ORDER BY seq",
	[STMT_NEWEST] = "SELECT " COLUMNS
			"WHERE state = 0 AND (newest, id) > (?1, ?2) ORDER BY newest, id LIMIT ?3",
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

int
catalog_prepare(struct catalog *c)
{
	for (unsigned i = 0; i < STMT_COUNT; i++)
		if (sqlite3_prepare_v3(c->h, sql[i], -1, SQLITE_PREPARE_PERSISTENT,
			    &c->stmt[i], NULL) != SQLITE_OK)
			return catalog_broke(c);
	return 0;
}

int
catalog_broke(struct catalog *c)
{
	int code = c->h ? sqlite3_errcode(c->h) & 0xff : SQLITE_NOMEM;

	snprintf(c->why, sizeof(c->why), "%s", c->h ? sqlite3_errmsg(c->h) : "no memory");
	c->wrong = code != SQLITE_FULL && code != SQLITE_IOERR && code != SQLITE_NOMEM &&
		   code != SQLITE_READONLY && code != SQLITE_CANTOPEN &&
		   code != SQLITE_PERM && code != SQLITE_AUTH;
	return CATALOG_BROKEN;
}

int
catalog_lies(struct catalog *c, const char *why)
{
	snprintf(c->why, sizeof(c->why), "%s", why);
	c->wrong = true;
	return CATALOG_BROKEN;
}

int
catalog_exec(struct catalog *c, const char *text)
{
	return c->h && sqlite3_exec(c->h, text, NULL, NULL, NULL) == SQLITE_OK ? 0
									       : catalog_broke(c);
}

bool
catalog_rollback(struct catalog *c)
{
	if (!c->h || sqlite3_get_autocommit(c->h))
		return false;
	sqlite3_exec(c->h, "ROLLBACK", NULL, NULL, NULL);
	return true;
}

int
catalog_step(struct catalog *c, sqlite3_stmt *s)
{
	int code = sqlite3_step(s);

	return code == SQLITE_ROW ? 1 : code == SQLITE_DONE ? 0 : catalog_broke(c);
}

void
catalog_reset(sqlite3_stmt **s)
{
	sqlite3_reset(*s);
	sqlite3_clear_bindings(*s);
}

int
catalog_finish(struct catalog *c, sqlite3_stmt *s)
{
	int r;

	while ((r = catalog_step(c, s)) > 0)
		;
	return r;
}

void
catalog_bind_hash(sqlite3_stmt *s, int at, const struct store_hash *h)
{
	if (h)
		sqlite3_bind_blob(s, at, h->b, sizeof(h->b), SQLITE_STATIC);
	else
		sqlite3_bind_null(s, at);
}

void
catalog_bind_text(sqlite3_stmt *s, int at, const char *text)
{
	if (text)
		sqlite3_bind_text(s, at, text, -1, SQLITE_STATIC);
	else
		sqlite3_bind_null(s, at);
}

bool
catalog_column_hash(sqlite3_stmt *s, int at, struct store_hash *ret)
{
	const void *b = sqlite3_column_blob(s, at);

	if (!b || sqlite3_column_bytes(s, at) != (int)sizeof(ret->b))
		return false;
	memcpy(ret->b, b, sizeof(ret->b));
	return true;
}

char *
catalog_column_dup(sqlite3_stmt *s, int at, const char *none)
{
	const char *text = (const char *)sqlite3_column_text(s, at);

	if (!text)
		text = none;
	return text ? strdup(text) : NULL;
}
