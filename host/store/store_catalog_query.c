/* What is asked of the catalogue. */
#include "host/store/store_catalog_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_MAX 1000u /* damaged manifests read again at once */

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
	while ((r = catalog_step(c, st)) > 0) {
		if (!catalog_column_hash(st, 0, &id))
			return catalog_lies(c, "a row without an id");
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
	cleanup_stmt sqlite3_stmt *st = c->stmt[STMT_PREFIX];

	(void)s;
	catalog_bind_hash(st, 1, &q->low);
	catalog_bind_hash(st, 2, &q->high);
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
	r = catalog_call(s, prefix_op, &q, e);
	*ret_n = q.n;
	return r;
}

static int
children_op(struct store *s, struct catalog *c, void *ctx)
{
	struct id_query *q = ctx;
	cleanup_stmt sqlite3_stmt *st = c->stmt[STMT_CHILD_IDS];

	(void)s;
	catalog_bind_hash(st, 1, &q->low);
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
	r = catalog_call(s, children_op, &q, e);
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
	cleanup_stmt sqlite3_stmt *st = c->stmt[STMT_STATE];
	struct store_hash parent;
	int r;

	(void)s;
	q->parent[0] = '\0';
	catalog_bind_hash(st, 1, &q->id);
	r = catalog_step(c, st);
	q->there = r > 0;
	if (r <= 0)
		return r;
	q->state = (enum row_state)sqlite3_column_int(st, 0);
	if (catalog_column_hash(st, 2, &parent))
		hash_to_hex(&parent, q->parent);
	return 0;
}

int
catalog_parent(struct store *s, const char *id, char ret_parent[static STORE_ID_MAX],
	enum row_state *ret_state, struct err *e)
{
	struct parent_query q = {0};
	int r = hash_from_hex(id, &q.id) ? catalog_call(s, parent_op, &q, e) : 0;

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
	cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_TAGS_OF];
	struct store_hash id;
	int r;

	hash_from_hex(entry->m->id, &id);
	catalog_bind_hash(s, 1, &id);
	sqlite3_bind_int(s, 2, -1);
	while ((r = catalog_step(c, s)) > 0) {
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
	uint64_t seq = 0;
	int r = 1;

	snprintf(id, sizeof(id), "%s", l->q->of);
	while (id[0] && l->n < l->q->limit) {
		struct catalog_row *row = &l->v[l->n];

		r = catalog_row_get(c, id, seq, row);
		if (r <= 0)
			break;
		l->n++;
		seq = row->parent_seq;
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
	struct rows *l = ctx;
	const struct catalog_query *q = l->q;
	struct store_hash after = {{0}};
	int r;

	(void)s;
	while (l->n)
		catalog_row_done(&l->v[--l->n]);
	if (q->order == CATALOG_HISTORY) {
		r = rows_history(c, l);
	} else {
		cleanup_stmt sqlite3_stmt *st = c->stmt[q->order == CATALOG_ALL ? STMT_ALL : STMT_NEWEST];

		if (q->order == CATALOG_ALL) {
			sqlite3_bind_int64(st, 1, (int64_t)q->after_seq);
			sqlite3_bind_int64(st, 2, (int64_t)q->limit);
		} else {
			if (q->after_id)
				hash_from_hex(q->after_id, &after);
			sqlite3_bind_int64(st, 1, q->after_id ? q->after_newest : INT64_MIN);
			catalog_bind_hash(st, 2, &after);
			sqlite3_bind_int64(st, 3, (int64_t)q->limit);
		}
		while ((r = catalog_step(c, st)) > 0) {
			r = catalog_row_read(c, st, &l->v[l->n]);
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
	r = catalog_call(s, rows_op, &l, e);
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
	cleanup_stmt sqlite3_stmt *st = c->stmt[STMT_DAMAGED];
	struct store_hash id;
	int r = 0;

	(void)s;
	d->n = c->n[ROW_DAMAGED];
	d->n_ids = 0;
	sqlite3_bind_int64(st, 1, (int64_t)d->max);
	while (d->n && (r = catalog_step(c, st)) > 0) {
		const char *why = (const char *)sqlite3_column_text(st, 1);

		if (!d->n_ids)
			snprintf(d->first, sizeof(d->first), "%s", why ? why : "");
		if (d->n_ids < d->max && catalog_column_hash(st, 0, &id))
			hash_to_hex(&id, d->ids[d->n_ids++]);
	}
	return r;
}

int
catalog_damaged(struct store *s, uint64_t *ret_n, struct err *ret_first, struct err *e)
{
	char id[1][STORE_ID_MAX];
	struct damaged d = {.max = 1, .ids = id};
	int r = catalog_call(s, damaged_op, &d, e);

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
	if (d.ids && catalog_call(s, damaged_op, &d, NULL) == 0)
		for (size_t i = 0; i < d.n_ids; i++)
			catalog_renew(s, d.ids[i], NULL);
	free(d.ids);
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
	cleanup_stmt sqlite3_stmt *st = c->stmt[q->of ? STMT_TAGS_OF : STMT_TAGS];
	struct store_hash id;
	int r;

	(void)s;
	q->n = 0;
	if (q->of)
		catalog_bind_hash(st, 1, q->of);
	else
		catalog_bind_text(st, 1, q->after ? q->after : "");
	sqlite3_bind_int64(st, 2, (int64_t)q->limit);
	while ((r = catalog_step(c, st)) > 0) {
		const char *name = (const char *)sqlite3_column_text(st, 0);
		struct store_tag *bigger = reallocarray(q->v, q->n + 1, sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		q->v = bigger;
		bigger += q->n++;
		memset(bigger, 0, sizeof(*bigger));
		snprintf(bigger->name, sizeof(bigger->name), "%s", name ? name : "");
		if (catalog_column_hash(st, 1, &id))
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
	r = catalog_call(s, tags_op, &q, e);
	if (r < 0) {
		free(q.v);
		return r;
	}
	*ret = q.v;
	*ret_n = q.n;
	return 0;
}
