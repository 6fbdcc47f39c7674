/* Rows of the catalogue: a commit each, with a checksum, and a tag each. */
#include "host/store/store_catalog_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"

void
catalog_row_done(struct catalog_row *row)
{
	store_manifest_free(row->entry.m);
	free(row->entry.tags);
	free(row->damage);
	*row = (struct catalog_row){0};
}

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

struct store_manifest *
catalog_empty_manifest(const char *id)
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

int
catalog_row_read(struct catalog *c, sqlite3_stmt *s, struct catalog_row *ret)
{
	cleanup_row struct catalog_row row = {0};
	struct store_manifest *m = row.entry.m = calloc(1, sizeof(*m));
	struct store_hash id;

	if (!m)
		return -ENOMEM;
	row.entry.seq = (uint64_t)sqlite3_column_int64(s, 0);
	if (!catalog_column_hash(s, 1, &id))
		return catalog_lies(c, "a row without an id");
	hash_to_hex(&id, m->id);
	if (catalog_column_hash(s, 2, &row.parent)) {
		char *parent = malloc(STORE_ID_MAX);

		if (!parent)
			return -ENOMEM;
		hash_to_hex(&row.parent, parent);
		m->f.parent = parent;
	}
	row.parent_seq = (uint64_t)sqlite3_column_int64(s, 3);
	row.state = (enum row_state)sqlite3_column_int(s, 4);
	row.newest = sqlite3_column_int64(s, 5);
	m->f.created_ms = row.newest > 0 ? 0 : 0 - (uint64_t)row.newest;
	row.file.inode = (uint64_t)sqlite3_column_int64(s, 6);
	row.file.bytes = (uint64_t)sqlite3_column_int64(s, 7);
	row.file.ctime_ns = sqlite3_column_int64(s, 8);
	m->f.message = catalog_column_dup(s, 9, "");
	m->f.labels = catalog_column_dup(s, 10, "");
	m->f.config = catalog_column_dup(s, 11, "");
	m->f.cpu = catalog_column_dup(s, 12, "");
	m->f.memory.length = (uint64_t)sqlite3_column_int64(s, 13);
	m->f.disk.length = (uint64_t)sqlite3_column_int64(s, 14);
	m->f.state.length = (uint64_t)sqlite3_column_int64(s, 15);
	row.damage = catalog_column_dup(s, 16, NULL);
	if (!m->f.message || !m->f.labels || !m->f.config || !m->f.cpu)
		return -ENOMEM;
	row.entry.pruned = row.state == ROW_PRUNED;
	if (row_sum(&row) != sqlite3_column_int64(s, 17))
		return catalog_lies(c, "a row is not as it was written");
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

void
catalog_count_in(struct catalog *c, enum row_state state, uint64_t bytes)
{
	c->n[state]++;
	if (state != ROW_PRUNED)
		c->bytes += bytes;
}

/* What the counts know of the row that is there. */
static int
count_old(struct catalog *c, const struct store_hash *id)
{
	cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_STATE];
	int r;

	catalog_bind_hash(s, 1, id);
	r = catalog_step(c, s);
	if (r > 0)
		count_out(c, (enum row_state)sqlite3_column_int(s, 0),
			(uint64_t)sqlite3_column_int64(s, 1));
	return r < 0 ? r : 0;
}

int
catalog_row_put(struct catalog *c, const struct catalog_row *row)
{
	const struct store_manifest *m = row->entry.m;
	struct store_hash id, parent;
	int r;

	if (!hash_from_hex(m->id, &id))
		return catalog_lies(c, "an id that is none");
	r = count_old(c, &id);
	if (r < 0)
		return r;
	{
		cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_TEXT_ADD];

		catalog_bind_text(s, 1, m->f.cpu);
		r = catalog_finish(c, s);
	}
	if (r == 0) {
		cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_PUT];

		catalog_bind_hash(s, 1, &id);
		catalog_bind_hash(s, 2,
			m->f.parent && hash_from_hex(m->f.parent, &parent) ? &parent : NULL);
		sqlite3_bind_int(s, 3, (int)row->state);
		sqlite3_bind_int64(s, 4, row->newest);
		sqlite3_bind_int64(s, 5, (int64_t)row->file.inode);
		sqlite3_bind_int64(s, 6, (int64_t)row->file.bytes);
		sqlite3_bind_int64(s, 7, row->file.ctime_ns);
		catalog_bind_text(s, 8, m->f.message);
		catalog_bind_text(s, 9, m->f.labels);
		catalog_bind_text(s, 10, m->f.config);
		catalog_bind_text(s, 11, m->f.cpu);
		sqlite3_bind_int64(s, 12, (int64_t)m->f.memory.length);
		sqlite3_bind_int64(s, 13, (int64_t)m->f.disk.length);
		sqlite3_bind_int64(s, 14, (int64_t)m->f.state.length);
		catalog_bind_text(s, 15, row->damage);
		sqlite3_bind_int64(s, 16, row_sum(row));
		r = catalog_finish(c, s);
	}
	if (r < 0)
		return r;
	if ((uint64_t)sqlite3_last_insert_rowid(c->h) > c->newest_seq)
		c->newest_seq = (uint64_t)sqlite3_last_insert_rowid(c->h);
	catalog_count_in(c, row->state, row->file.bytes);
	return 0;
}

int
catalog_row_remove(struct catalog *c, const struct store_hash *id)
{
	cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_REMOVE];
	int r = count_old(c, id);

	if (r < 0)
		return r;
	catalog_bind_hash(s, 1, id);
	return catalog_finish(c, s);
}

static int
row_from(struct catalog *c, sqlite3_stmt *s, struct catalog_row *ret)
{
	int r = catalog_step(c, s);

	if (r > 0 && (r = catalog_row_read(c, s, ret)) == 0)
		r = 1;
	return r;
}

int
catalog_row_get(struct catalog *c, const char *id, uint64_t seq, struct catalog_row *ret)
{
	struct store_hash hash;

	if (!hash_from_hex(id, &hash))
		return 0;
	/* Those of a line lie side by side. */
	if (seq) {
		cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_BY_SEQ];
		int r;

		sqlite3_bind_int64(s, 1, (int64_t)seq);
		r = row_from(c, s, ret);
		if (r < 0 || (r > 0 && strcmp(ret->entry.m->id, id) == 0))
			return r;
		if (r > 0)
			catalog_row_done(ret);
	}
	{
		cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_BY_ID];

		catalog_bind_hash(s, 1, &hash);
		return row_from(c, s, ret);
	}
}

int
catalog_keep_known(struct catalog *c, struct catalog_row *row)
{
	cleanup_row struct catalog_row old = {0};
	int r = catalog_row_get(c, row->entry.m->id, 0, &old);

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

int
catalog_tag_put(struct catalog *c, const char *tag, const struct store_hash *id,
	const struct row_file *file)
{
	cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_TAG_PUT];

	catalog_bind_text(s, 1, tag);
	catalog_bind_hash(s, 2, id);
	sqlite3_bind_int64(s, 3, (int64_t)file->inode);
	sqlite3_bind_int64(s, 4, file->ctime_ns);
	return catalog_finish(c, s);
}

int
catalog_tag_remove(struct catalog *c, const char *tag)
{
	cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_TAG_REMOVE];

	catalog_bind_text(s, 1, tag);
	return catalog_finish(c, s);
}
