/* The opening of the catalogue, its calls, and those that change it. */
#include "host/store/store_catalog_priv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

#define REBUILDS_MAX 3u /* of one opening, before it is kept in memory */

static int
open_and_compare(struct store *s, struct catalog *c, const char *path, struct err *e)
{
	int r;

	catalog_file_close(c);
	c->newest_seq = 0;
	r = catalog_file_open(s, c, path, false);
	if (r == 0)
		r = catalog_compare(s, c, e);
	if (r < 0)
		catalog_file_close(c);
	return r;
}

/* Until there is one that works: anew on disk, or in memory. */
static int
recover(struct store *s, struct catalog *c, struct err *e)
{
	char path[4096];
	int r = CATALOG_BROKEN;

	if ((size_t)snprintf(path, sizeof(path), "%s/" CATALOG_FILE, s->path) >= sizeof(path))
		c->wrong = false;
	while (!c->in_memory && c->wrong && r == CATALOG_BROKEN && c->rebuilds < REBUILDS_MAX) {
		log_warn(
			"store %.200s: its catalogue cannot be used (%s): it is put aside as " CATALOG_FILE
			".aside, and made anew from the commits",
			s->path, c->why);
		c->rebuilds++;
		catalog_file_close(c);
		catalog_file_put_aside(s);
		r = open_and_compare(s, c, path, e);
	}
	if (r == CATALOG_BROKEN) {
		log_warn(
			"store %.200s: its catalogue cannot be kept (%s): it is in memory until the store is opened again",
			s->path, c->why);
		r = open_and_compare(s, c, ":memory:", e);
	}
	return r == CATALOG_BROKEN ? err_set(e, -EIO, "store %.200s: its catalogue: %s", s->path,
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
	if ((size_t)snprintf(path, sizeof(path), "%s/" CATALOG_FILE, s->path) >= sizeof(path))
		return err_sys(e, -ENAMETOOLONG, "store %.200s", s->path);
	if (catalog_stamp_take(s, c)) {
		r = catalog_file_open(s, c, path, true);
		if (r == 0)
			r = catalog_compare_tags(s, c, e);
	} else {
		r = store_remove_temp_files(s->commits_fd);
		if (r < 0)
			return err_sys(e, r, "store %.200s", s->path);
		r = open_and_compare(s, c, path, e);
	}
	if (r == CATALOG_BROKEN)
		r = recover(s, c, e);
	return r == -ENOMEM ? err_sys(e, r, "store %.200s: its catalogue", s->path) : r;
}

void
catalog_close(struct store *s)
{
	struct catalog *c = s->catalog;
	bool keep;

	if (!c)
		return;
	keep = c->h && !c->in_memory && !c->stale;
	catalog_file_close(c);
	if (keep)
		catalog_stamp_leave(s, c);
	pthread_mutex_destroy(&c->lock);
	free(c);
	s->catalog = NULL;
}

/*
 * Calls. Each is done once more with a new database when that which is there is broken,
 * and so begins from nothing.
 */

int
catalog_call(struct store *s, catalog_op_fn *op, void *ctx, struct err *e)
{
	struct catalog *c = s->catalog;
	int r = 0;

	pthread_mutex_lock(&c->lock);
	if (!c->h)
		r = recover(s, c, e);
	else if (c->stale)
		r = catalog_compare(s, c, e);
	for (unsigned tries = 0; tries < 3; tries++) {
		if (r == 0)
			r = op(s, c, ctx);
		if (r != CATALOG_BROKEN)
			break;
		catalog_rollback(c);
		r = recover(s, c, e);
	}
	if (r < 0 && catalog_rollback(c))
		c->stale = true;
	pthread_mutex_unlock(&c->lock);
	if (r == CATALOG_BROKEN)
		return err_set(e, -EIO, "store %.200s: its catalogue: %s", s->path, c->why);
	return r == -ENOMEM ? err_sys(e, r, "store %.200s: its catalogue", s->path) : r;
}

/* names is held, so that nobody of us is at it. */
static void
look(struct store *s)
{
	struct catalog *c = s->catalog;
	int64_t now[2];

	catalog_mtimes(s, now);
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

	catalog_mtimes(s, now);
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
recheck_op(struct store *s, struct catalog *c, void *ctx)
{
	(void)s;
	(void)ctx;
	return catalog_file_check(c);
}

int
catalog_recheck(struct store *s, struct err *e)
{
	must_compare(s);
	return catalog_call(s, recheck_op, NULL, e);
}

static int
put_op(struct store *s, struct catalog *c, void *ctx)
{
	struct catalog_row *row = ctx;
	int r = row->state == ROW_DAMAGED ? catalog_keep_known(c, row) : 0;

	(void)s;
	return r < 0 ? r : catalog_row_put(c, row);
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
	int r = catalog_exec(c, "BEGIN IMMEDIATE");

	(void)s;
	for (size_t i = 0; r == 0 && i < l->n; i++)
		if (hash_from_hex(l->ids[i], &id))
			r = catalog_row_remove(c, &id);
	return r == 0 ? catalog_exec(c, "COMMIT") : r;
}

int
catalog_remove(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	struct ids l = {ids, n};
	int r = catalog_call(s, remove_op, &l, e);

	if (r < 0)
		must_compare(s);
	return r;
}

int
catalog_renew(struct store *s, const char *id, struct err *e)
{
	cleanup_row struct catalog_row row = {0};
	int r = catalog_row_of_file(s, id, &row);

	if (r == -ENOENT) {
		char one[1][STORE_ID_MAX];

		snprintf(one[0], sizeof(one[0]), "%s", id);
		r = catalog_remove(s, (const char (*)[STORE_ID_MAX])one, 1, e);
		return r < 0 ? r : err_set(e, -ENOENT, "there is no commit %.64s", id);
	}
	if (r < 0)
		err_sys(e, r, "commit %.12s", id);
	else
		r = catalog_call(s, put_op, &row, e);
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
	row.entry.m = catalog_empty_manifest(id);
	row.damage = strdup(why);
	if (row.entry.m && row.damage && catalog_file_stat(s->commits_fd, file, &row.file) == 0)
		catalog_call(s, put_op, &row, NULL);
}

static int
pruned_op(struct store *s, struct catalog *c, void *ctx)
{
	const struct ids *l = ctx;
	int r = catalog_exec(c, "BEGIN IMMEDIATE");

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		cleanup_row struct catalog_row row = {0};
		char file[PRUNED_NAME_MAX];

		r = catalog_row_get(c, l->ids[i], 0, &row);
		if (r <= 0)
			continue;
		store_pruned_name(l->ids[i], file);
		r = catalog_file_stat(s->commits_fd, file, &row.file);
		if (r < 0) {
			r = 0;
			continue;
		}
		row.state = ROW_PRUNED;
		free(row.damage);
		row.damage = NULL;
		r = catalog_row_put(c, &row);
	}
	return r == 0 ? catalog_exec(c, "COMMIT") : r;
}

int
catalog_pruned(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	struct ids l = {ids, n};
	int r = catalog_call(s, pruned_op, &l, e);

	if (r < 0)
		must_compare(s);
	return r;
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
	return t->there ? catalog_tag_put(c, t->tag, t->has ? &t->id : NULL, &t->file)
			: catalog_tag_remove(c, t->tag);
}

int
catalog_tag(struct store *s, const char *tag, struct err *e)
{
	struct tag_change t = {.tag = tag};
	int r = catalog_tag_of_file(s, tag, &t.file, &t.id, &t.has);

	t.there = r != -ENOENT;
	r = r == -ENOMEM ? err_sys(e, r, "tag \"%s\"", tag) : catalog_call(s, tag_op, &t, e);
	if (r < 0)
		must_compare(s);
	return r;
}
