/*
 * What the folders of commits and tags say, as rows; and the comparing of all rows with
 * the folders' names.
 */
#include "host/store/store_catalog_priv.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"

int
catalog_file_stat(int folder_fd, const char *name, struct row_file *ret)
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

int
catalog_row_of_file(struct store *s, const char *id, struct catalog_row *ret)
{
	cleanup_row struct catalog_row row = {0};
	char held[MANIFEST_NAME_MAX], pruned[PRUNED_NAME_MAX];
	struct err why = {0};
	int r;

	store_manifest_name(id, held);
	store_pruned_name(id, pruned);
	r = catalog_file_stat(s->commits_fd, held, &row.file);
	if (r == -ENOENT) {
		row.state = ROW_PRUNED;
		r = catalog_file_stat(s->commits_fd, pruned, &row.file);
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
		row.entry.m = catalog_empty_manifest(id);
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

int
catalog_tag_of_file(struct store *s, const char *tag, struct row_file *file,
	struct store_hash *ret_id, bool *ret_has)
{
	char id[STORE_ID_MAX];
	int r = catalog_file_stat(s->tags_fd, tag, file);

	if (r == 0)
		r = store_tag_get(s, tag, id, NULL);
	*ret_has = r == 0 && hash_from_hex(id, ret_id);
	return r == -ENOENT || r == -ENOMEM ? r : 0;
}

struct name {
	struct store_hash id;
	int64_t ctime_ns; /* of one that has no row */
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
		cleanup_stmt sqlite3_stmt *s = c->stmt[STMT_SCAN];

		while ((r = catalog_step(c, s)) > 0) {
			cleanup_row struct catalog_row row = {0};
			struct name key = {0}, *at;

			r = catalog_row_read(c, s, &row);
			if (r < 0)
				return r;
			hash_from_hex(row.entry.m->id, &key.id);
			key.pruned = row.state == ROW_PRUNED;
			if (row.entry.seq > c->newest_seq)
				c->newest_seq = row.entry.seq;
			catalog_count_in(c, row.state, row.file.bytes);
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
		r = catalog_row_remove(c, &wrong[i]);
	return r;
}

static int
by_age(const void *a, const void *b)
{
	const struct name *x = a, *y = b;

	return x->ctime_ns != y->ctime_ns ? (x->ctime_ns < y->ctime_ns ? -1 : 1) : by_id(a, b);
}

/* As they were made, mostly: parents first. */
static void
sort_unseen(struct store *s, struct names *l)
{
	size_t n = 0;

	for (size_t i = 0; i < l->n; i++) {
		char id[STORE_ID_MAX], file[PRUNED_NAME_MAX];
		struct name *new = &l->v[n];
		struct row_file is;

		if (l->v[i].seen)
			continue;
		*new = l->v[i];
		n++;
		hash_to_hex(&new->id, id);
		if (new->pruned)
			store_pruned_name(id, file);
		else
			store_manifest_name(id, file);
		if (catalog_file_stat(s->commits_fd, file, &is) == 0)
			new->ctime_ns = is.ctime_ns;
	}
	l->n = n;
	if (n)
		qsort(l->v, n, sizeof(*l->v), by_age);
}

static int
add_unseen(struct store *s, struct catalog *c, struct names *l)
{
	int r = 0;

	sort_unseen(s, l);
	for (size_t i = 0; r == 0 && i < l->n; i++) {
		cleanup_row struct catalog_row row = {0};
		char id[STORE_ID_MAX];

		hash_to_hex(&l->v[i].id, id);
		r = catalog_row_of_file(s, id, &row);
		if (r < 0) {
			r = r == -ENOMEM ? r : 0;
			continue;
		}
		r = row.state == ROW_DAMAGED ? catalog_keep_known(c, &row) : 0;
		if (r == 0)
			r = catalog_row_put(c, &row);
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
		cleanup_stmt sqlite3_stmt *st = c->stmt[STMT_TAG_SCAN];

		while ((r = catalog_step(c, st)) > 0) {
			const char *name = (const char *)sqlite3_column_text(st, 0);
			struct row_file file;
			struct store_tag *bigger;

			if (sqlite3_column_type(st, 0) != SQLITE_TEXT ||
				store_tag_check(name, NULL)) {
				r = catalog_lies(c, "a tag that is none");
				break;
			}
			if (catalog_file_stat(s->tags_fd, name, &file) == 0 &&
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
		r = catalog_tag_remove(c, gone[i].name);
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
		cleanup_stmt sqlite3_stmt *st = a->c->stmt[STMT_TAG_KNOWN];

		catalog_bind_text(st, 1, name);
		r = catalog_step(a->c, st);
	}
	if (r)
		return r < 0 ? r : 0; /* tags_scan() has looked at it */
	r = catalog_tag_of_file(a->s, name, &file, &id, &has);
	if (r == -ENOENT)
		return 0;
	return r < 0 ? r : catalog_tag_put(a->c, name, has ? &id : NULL, &file);
}

void
catalog_mtimes(struct store *s, int64_t ret[static 2])
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
			cleanup_stmt sqlite3_stmt *st = c->stmt[STMT_CHILDLESS];

			while (n < 1024 && (r = catalog_step(c, st)) > 0)
				n += catalog_column_hash(st, 0, &ids[n]);
		}
		if (r < 0 || n == 0) {
			if (r >= 0 && changed)
				catalog_mtimes(s, c->mtime_ns);
			return r < 0 ? r : 0;
		}
		changed = true;
		for (size_t i = 0; i < n; i++) {
			char hex[STORE_ID_MAX], file[PRUNED_NAME_MAX];

			hash_to_hex(&ids[i], hex);
			store_pruned_name(hex, file);
			unlinkat(s->commits_fd, file, 0);
			r = catalog_row_remove(c, &ids[i]);
			if (r < 0)
				return r;
		}
	}
}

static int
compare_tags(struct store *s, struct catalog *c, struct err *e)
{
	struct adding adding = {s, c};
	int r = tags_scan(s, c);

	return r == 0 ? store_each_name(s->tags_fd, "", add_tag_name, &adding, e) : r;
}

int
catalog_compare_tags(struct store *s, struct catalog *c, struct err *e)
{
	int r = catalog_exec(c, "BEGIN IMMEDIATE");

	if (r == 0)
		r = compare_tags(s, c, e);
	if (r == 0)
		r = catalog_exec(c, "COMMIT");
	if (r < 0)
		catalog_rollback(c);
	return r;
}

int
catalog_compare(struct store *s, struct catalog *c, struct err *e)
{
	struct names l = {0};
	int r;

	catalog_mtimes(s, c->mtime_ns);
	r = names_read(s, &l, e);

	memset(c->n, 0, sizeof(c->n));
	c->bytes = 0;
	if (r == 0)
		r = catalog_exec(c, "BEGIN IMMEDIATE");
	if (r == 0)
		r = scan_rows(c, &l);
	if (r == 0)
		r = add_unseen(s, c, &l);
	free(l.v);
	if (r == 0)
		r = remove_childless(s, c);
	if (r == 0)
		r = compare_tags(s, c, e);
	if (r == 0)
		r = catalog_exec(c, "COMMIT");
	if (r < 0)
		catalog_rollback(c);
	c->stale = r < 0;
	return r;
}
