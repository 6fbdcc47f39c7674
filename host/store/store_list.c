/* Commits, many at once: lists, children, deletion, usage. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "host/store/store_priv.h"

#define NAMES_SHOWN 8u /* in a sentence */

static void
cleanup_list_fn(struct store_list *l)
{
	store_list_done(l);
}
#define cleanup_list __attribute__((cleanup(cleanup_list_fn)))

static void
cleanup_ids_fn(struct store_ids *l)
{
	store_ids_done(l);
}
#define cleanup_ids __attribute__((cleanup(cleanup_ids_fn)))

struct listing {
	struct store *s;
	struct store_list *list;
	const char *parent; /* NULL: any */
};

static int
list_one(void *ctx, const char *name, struct err *e)
{
	struct listing *l = ctx;
	struct store_manifest **bigger, *m;
	struct store_hash ignored;
	struct err why = {0};
	int r;

	if (!hash_from_hex(name, &ignored))
		return 0;
	r = store_load_id(l->s, name, &m, &why);
	if (r == -ENOENT)
		return 0; /* deleted meanwhile */
	if (r == -EBADMSG) {
		if (!l->list->damaged++)
			l->list->first_damage = why;
		return 0;
	}
	if (r < 0)
		return err_set(e, r, "%s", why.msg);
	if (l->parent && (!m->f.parent || strcmp(m->f.parent, l->parent) != 0)) {
		store_manifest_free(m);
		return 0;
	}
	bigger = reallocarray(l->list->items, l->list->n + 1, sizeof(*bigger));
	if (!bigger) {
		store_manifest_free(m);
		return err_sys(e, -ENOMEM, "commits");
	}
	l->list->items = bigger;
	bigger[l->list->n++] = m;
	return 0;
}

static int
newest_first(const void *pa, const void *pb)
{
	const struct store_manifest *a = *(struct store_manifest *const *)pa;
	const struct store_manifest *b = *(struct store_manifest *const *)pb;

	if (a->f.created_ms != b->f.created_ms)
		return a->f.created_ms < b->f.created_ms ? 1 : -1;
	return strcmp(a->id, b->id);
}

static int
list(struct store *s, const char *parent, struct store_list *ret, struct err *e)
{
	cleanup_list struct store_list l = {0};
	struct listing ctx = {s, &l, parent};
	int r = store_each_name(s->commits_fd, MANIFEST_SUFFIX, list_one, &ctx, e);

	if (r < 0)
		return r;
	if (l.n)
		qsort(l.items, l.n, sizeof(*l.items), newest_first);
	*ret = l;
	l = (struct store_list){0};
	return 0;
}

int
store_list(struct store *s, struct store_list *ret, struct err *e)
{
	return list(s, NULL, ret, e);
}

int
store_children(struct store *s, const char *id, struct store_list *ret, struct err *e)
{
	return list(s, id, ret, e);
}

void
store_list_done(struct store_list *l)
{
	for (size_t i = 0; i < l->n; i++)
		store_manifest_free(l->items[i]);
	free(l->items);
	*l = (struct store_list){0};
}

void
store_ids_done(struct store_ids *l)
{
	free(l->ids);
	*l = (struct store_ids){0};
}

static int
add_id(struct store_ids *l, const char *id, struct err *e)
{
	void *bigger = reallocarray(l->ids, l->n + 1, sizeof(*l->ids));

	if (!bigger)
		return err_sys(e, -ENOMEM, "commits");
	l->ids = bigger;
	snprintf(l->ids[l->n++], STORE_ID_MAX, "%s", id);
	return 0;
}

/* The commit and all below it: each before its children. */
static int
descendants(const struct store_list *all, const char *id, struct store_ids *ret,
	struct err *e)
{
	int r = add_id(ret, id, e);

	/* Ids are hashes of what has the parent's in it, so there are no rings. */
	for (size_t next = 0; r == 0 && next < ret->n; next++)
		for (size_t i = 0; r == 0 && i < all->n; i++)
			if (all->items[i]->f.parent &&
				strcmp(all->items[i]->f.parent, ret->ids[next]) == 0)
				r = add_id(ret, all->items[i]->id, e);
	return r;
}

static int
refuse(const struct store_list *all, const char *id, struct err *e)
{
	char shown[NAMES_SHOWN * 16] = "";
	size_t n = 0;

	for (size_t i = 0; i < all->n; i++) {
		if (!all->items[i]->f.parent || strcmp(all->items[i]->f.parent, id) != 0)
			continue;
		if (n++ < NAMES_SHOWN)
			snprintf(shown + strlen(shown), sizeof(shown) - strlen(shown),
				"%s%.12s", n > 1 ? ", " : "", all->items[i]->id);
	}
	return err_set(e, -ENOTEMPTY,
		"commit %.12s is the parent of %s%s: delete those first, or all of them at once",
		id, shown, n > NAMES_SHOWN ? ", …" : "");
}

static int
remove_commit(struct store *s, const char *id, const struct store_tag *tags,
	size_t n_tags, struct err *e)
{
	char file[MANIFEST_NAME_MAX];
	bool had_tags = false;

	for (size_t i = 0; i < n_tags; i++) {
		if (strcmp(tags[i].id, id) != 0)
			continue;
		if (unlinkat(s->tags_fd, tags[i].name, 0) < 0 && errno != ENOENT)
			return err_sys(e, -errno, "deleting tag %s", tags[i].name);
		had_tags = true;
	}
	if (had_tags && fsync(s->tags_fd) < 0)
		return err_sys(e, -errno, "deleting the tags of commit %.12s", id);
	fault_point("store.delete-tags");
	store_manifest_name(id, file);
	if (unlinkat(s->commits_fd, file, 0) < 0)
		return err_sys(e, -errno, "deleting commit %.12s", id);
	fault_point("store.delete-commit");
	return 0;
}

static int
delete_all(struct store *s, const struct store_ids *ids, struct err *e)
{
	cleanup_free struct store_tag *tags = NULL;
	size_t n_tags;
	int r = store_tags(s, &tags, &n_tags, e);

	for (size_t i = ids->n; r == 0 && i > 0; i--) {
		r = remove_commit(s, ids->ids[i - 1], tags, n_tags, e);
		/* A child must not be there again after its parent has gone. */
		if (r == 0 && fsync(s->commits_fd) < 0)
			r = err_sys(e, -errno, "deleting commits");
	}
	return r;
}

/* A gc that runs must not take from readers what they have begun to read. */
static int
keep_for_gc(struct store *s, const struct store_ids *ids)
{
	int r = 0;

	for (size_t i = 0; r == 0 && gc_is_running(s) && i < ids->n; i++) {
		struct store_manifest *m;

		if (store_load_id(s, ids->ids[i], &m, NULL))
			continue; /* nor can anybody else read it */
		r = gc_keep_deleted(s, &m->f);
		store_manifest_free(m);
	}
	return r;
}

static int
delete_locked(struct store *s, const char *id, unsigned flags, struct store_ids *ret,
	struct err *e)
{
	cleanup_list struct store_list all = {0};
	cleanup_ids struct store_ids ids = {0};
	int r;

	if (!store_has_commit(s, id))
		return err_set(e, -ENOENT, "there is no commit %.64s", id);
	r = store_list(s, &all, e);
	if (r == 0)
		r = descendants(&all, id, &ids, e);
	if (r < 0)
		return r;
	if (ids.n > 1 && !(flags & STORE_DELETE_RECURSIVE))
		return refuse(&all, id, e);
	if (!(flags & STORE_DELETE_DRY_RUN)) {
		r = keep_for_gc(s, &ids);
		if (r < 0)
			return err_sys(e, r, "deleting commits");
		r = delete_all(s, &ids, e);
		if (r < 0)
			return r;
		gc_note_deleted(s, ids.n);
	}
	if (!ret)
		return 0;
	for (size_t i = 0; i < ids.n / 2; i++) {
		char swap[STORE_ID_MAX];

		memcpy(swap, ids.ids[i], sizeof(swap));
		memcpy(ids.ids[i], ids.ids[ids.n - 1 - i], sizeof(swap));
		memcpy(ids.ids[ids.n - 1 - i], swap, sizeof(swap));
	}
	*ret = ids;
	ids = (struct store_ids){0};
	return 0;
}

int
store_delete(struct store *s, const char *id, unsigned flags, struct store_ids *ret,
	struct err *e)
{
	int r;

	pthread_mutex_lock(&s->names);
	r = delete_locked(s, id, flags, ret, e);
	pthread_mutex_unlock(&s->names);
	return r;
}

struct counting {
	int folder_fd;
	const char *suffix;
	uint64_t n, bytes;
};

static int
count_one(void *ctx, const char *name, struct err *e)
{
	struct counting *c = ctx;
	char file[STORE_HEX + 8];
	struct stat st;

	(void)e;
	snprintf(file, sizeof(file), "%s%s", name, c->suffix);
	if (fstatat(c->folder_fd, file, &st, AT_SYMLINK_NOFOLLOW) == 0) {
		c->n++;
		c->bytes += (uint64_t)st.st_size;
	}
	return 0;
}

static int
count(int folder_fd, const char *suffix, uint64_t *ret_n, uint64_t *bytes, struct err *e)
{
	struct counting c = {folder_fd, suffix, 0, 0};
	int r = store_each_name(folder_fd, suffix, count_one, &c, e);

	*ret_n = c.n;
	*bytes += c.bytes;
	return r;
}

int
store_usage(struct store *s, struct store_used *ret, struct err *e)
{
	struct store_used u = {0};
	int r;

	if ((r = count(s->packs_fd, PACK_SUFFIX, &u.packs, &u.bytes, e)) < 0 ||
		(r = count(s->commits_fd, MANIFEST_SUFFIX, &u.commits, &u.bytes, e)) <
			0 ||
		(r = count(s->tags_fd, "", &u.tags, &u.bytes, e)) < 0)
		return r;
	*ret = u;
	return 0;
}
