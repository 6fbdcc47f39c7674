/* Commits, many at once: deletion, pruning, usage. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "host/store/store_catalog.h"

#define NAMES_SHOWN 8u /* in a sentence */

static void
cleanup_ids_fn(struct store_ids *l)
{
	store_ids_done(l);
}
#define cleanup_ids __attribute__((cleanup(cleanup_ids_fn)))

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

/* Adds the children of a commit, pruned and damaged ones too. */
static int
add_children(struct store *s, const char *id, struct store_ids *ret, struct err *e)
{
	size_t room = 64, n = 0;

	for (;;) {
		char (*ids)[STORE_ID_MAX] = calloc(room, sizeof(*ids));
		int r;

		if (!ids)
			return err_sys(e, -ENOMEM, "commits");
		r = catalog_children(s, id, room, ids, &n, e);
		for (size_t i = 0; r == 0 && n < room && i < n; i++)
			r = add_id(ret, ids[i], e);
		free(ids);
		if (r < 0 || n < room)
			return r;
		room *= 4;
	}
}

/* The commit and all below it: each before its children. */
static int
descendants(struct store *s, const char *id, struct store_ids *ret, struct err *e)
{
	int r = add_id(ret, id, e);

	/* Ids are hashes of what has the parent's in it, so there are no rings. */
	for (size_t next = 0; r == 0 && next < ret->n; next++) {
		char of[STORE_ID_MAX];

		memcpy(of, ret->ids[next], sizeof(of));
		r = add_children(s, of, ret, e);
	}
	return r;
}

static int
refuse(const char *id, char (*children)[STORE_ID_MAX], size_t n, struct err *e)
{
	char shown[NAMES_SHOWN * 16] = "";

	for (size_t i = 0; i < n && i < NAMES_SHOWN; i++)
		snprintf(shown + strlen(shown), sizeof(shown) - strlen(shown), "%s%.12s",
			i ? ", " : "", children[i]);
	return err_set(e, -ENOTEMPTY,
		"commit %.12s is the parent of %s%s: delete all of them at once (`pando commit delete -r`), or those first",
		id, shown, n > NAMES_SHOWN ? ", …" : "");
}

static int
remove_tags(struct store *s, const char *id, struct err *e)
{
	cleanup_free struct store_tag *tags = NULL;
	size_t n = 0;
	int r = store_tags_of(s, id, &tags, &n, e);

	for (size_t i = 0; r == 0 && i < n; i++) {
		if (unlinkat(s->tags_fd, tags[i].name, 0) < 0 && errno != ENOENT)
			r = err_sys(e, -errno, "deleting tag %s", tags[i].name);
		else
			catalog_tag(s, tags[i].name, NULL);
	}
	if (r == 0 && n && fsync(s->tags_fd) < 0)
		r = err_sys(e, -errno, "deleting the tags of commit %.12s", id);
	return r;
}

/* A gc that runs must not take from readers what they have begun to read. */
static int
keep_for_gc(struct store *s, const char *id)
{
	struct store_manifest *m;
	int r;

	if (!gc_is_running(s) || store_load_id(s, id, &m, NULL) < 0)
		return 0; /* nor can anybody else read it */
	r = gc_keep_deleted(s, &m->f);
	store_manifest_free(m);
	return r;
}

static int
rename_pruned(struct store *s, const char *id, struct err *e)
{
	char held[MANIFEST_NAME_MAX], pruned[PRUNED_NAME_MAX];

	store_manifest_name(id, held);
	store_pruned_name(id, pruned);
	return renameat(s->commits_fd, held, s->commits_fd, pruned) < 0
		       ? err_sys(e, -errno, "pruning commit %.12s", id)
		       : 0;
}

/*
 * A pruned commit that nothing descends from goes, and then those above it. Each holds the
 * lock for a while, not for all of a long line; what a kill leaves goes at the next
 * opening, so that their order is nothing that has to be on disk.
 */
static int
sweep_up(struct store *s, const char *id, struct err *e)
{
	char at[1][STORE_ID_MAX], parent[STORE_ID_MAX], child[1][STORE_ID_MAX];
	char file[PRUNED_NAME_MAX];
	enum row_state state;
	bool more = true;
	size_t n;

	snprintf(at[0], sizeof(at[0]), "%s", id);
	while (more) {
		int r = 0;

		catalog_names_lock(s);
		for (unsigned i = 0; more && r == 0 && i < STORE_PRUNE_MAX; i++) {
			r = catalog_parent(s, at[0], parent, &state, NULL);
			if (r == -ENOENT || (r == 0 && state != ROW_PRUNED)) {
				more = false;
				r = 0;
				break;
			}
			if (r == 0)
				r = catalog_children(s, at[0], 1, child, &n, e);
			if (r < 0 || n) {
				more = false;
				break;
			}
			store_pruned_name(at[0], file);
			if (unlinkat(s->commits_fd, file, 0) < 0 && errno != ENOENT)
				r = err_sys(e, -errno, "pruning commit %.12s", at[0]);
			if (r == 0)
				r = catalog_remove(
					s, (const char (*)[STORE_ID_MAX])at, 1, e);
			fault_point("store.pruned-swept");
			memcpy(at[0], parent, sizeof(at[0]));
			more = parent[0] != '\0';
		}
		catalog_names_unlock(s);
		if (r < 0)
			return r;
	}
	return 0;
}

static int
sweep_all(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		r = sweep_up(s, ids[i], e);
	if (r == 0 && fsync(s->commits_fd) < 0)
		r = err_sys(e, -errno, "deleting commits");
	return r;
}

/*
 * Each is pruned first, children before parents, and what nothing descends from goes then.
 * So whatever a kill or a power cut leaves is a tree: no commit is without its parent.
 */
static int
delete_some(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	size_t done = 0;
	int r = 0;

	catalog_names_lock(s);
	for (; r == 0 && done < n; done += r == 0) {
		r = remove_tags(s, ids[done], e);
		fault_point("store.delete-tags");
		if (r == 0 && store_has_commit(s, ids[done])) {
			r = keep_for_gc(s, ids[done]);
			r = r < 0 ? err_sys(e, r, "deleting commits")
				  : rename_pruned(s, ids[done], e);
			fault_point("store.delete-commit");
		}
	}
	if (done && fsync(s->commits_fd) < 0 && r == 0)
		r = err_sys(e, -errno, "deleting commits");
	gc_note_deleted(s, done);
	if (done) {
		int row = catalog_pruned(s, ids, done, r == 0 ? e : NULL);

		r = r < 0 ? r : row;
	}
	catalog_names_unlock(s);
	return r;
}

/* Only what is held is told of; pruned ones between are nobody's business. */
static void
keep_held(struct store *s, struct store_ids *ids)
{
	size_t kept = 0;

	for (size_t i = 0; i < ids->n; i++)
		if (!store_is_pruned(s, ids->ids[i]))
			memmove(ids->ids[kept++], ids->ids[i], STORE_ID_MAX);
	ids->n = kept;
}

static void
turn_round(struct store_ids *ids)
{
	for (size_t i = 0; i < ids->n / 2; i++) {
		char swap[STORE_ID_MAX];

		memcpy(swap, ids->ids[i], sizeof(swap));
		memcpy(ids->ids[i], ids->ids[ids->n - 1 - i], sizeof(swap));
		memcpy(ids->ids[ids->n - 1 - i], swap, sizeof(swap));
	}
}

int
store_delete_these(
	struct store *s, const char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	int r = 0;

	for (size_t at = 0; r == 0 && at < n; at += STORE_PRUNE_MAX)
		r = delete_some(s, ids + at,
			n - at < STORE_PRUNE_MAX ? n - at : STORE_PRUNE_MAX, e);
	return r == 0 ? sweep_all(s, ids, n, e) : r;
}

int
store_delete(struct store *s, const char *id, unsigned flags, struct store_ids *ret,
	struct err *e)
{
	char children[NAMES_SHOWN + 1][STORE_ID_MAX];
	cleanup_ids struct store_ids ids = {0};
	size_t n = 0;
	int r;

	catalog_look(s);
	r = catalog_children(s, id, NAMES_SHOWN + 1, children, &n, e);
	if (r < 0)
		return r;
	if (n && !(flags & STORE_DELETE_RECURSIVE))
		return refuse(id, children, n, e);
	if (!store_has_commit(s, id))
		return err_set(e, -ENOENT, "there is no commit %.64s", id);
	r = descendants(s, id, &ids, e);
	if (r < 0)
		return r;
	turn_round(&ids);
	keep_held(s, &ids);
	if (!(flags & STORE_DELETE_DRY_RUN)) {
		r = store_delete_these(
			s, (const char (*)[STORE_ID_MAX])ids.ids, ids.n, e);
		if (r < 0)
			return r;
	}
	if (!ret)
		return 0;
	*ret = ids;
	ids = (struct store_ids){0};
	return 0;
}

int
store_prune(struct store *s, const char (*ids)[STORE_ID_MAX], size_t n,
	struct store_ids *ret, struct err *e)
{
	cleanup_ids struct store_ids done = {0};
	const char (*all)[STORE_ID_MAX];
	int r = 0;

	if (n > STORE_PRUNE_MAX)
		return err_set(e, -EINVAL, "at most %u commits are pruned at once",
			STORE_PRUNE_MAX);
	/* With the lock no commit gets a tag in between. */
	catalog_names_lock(s);
	for (size_t i = 0; r == 0 && i < n; i++) {
		cleanup_free struct store_tag *tags = NULL;
		size_t n_tags = 0;

		if (!store_has_commit(s, ids[i]))
			continue;
		r = store_tags_of(s, ids[i], &tags, &n_tags, e);
		if (r < 0 || n_tags)
			continue;
		r = add_id(&done, ids[i], e);
		if (r == 0) {
			r = keep_for_gc(s, ids[i]);
			r = r < 0 ? err_sys(e, r, "pruning commits")
				  : rename_pruned(s, ids[i], e);
			done.n -= r < 0;
		}
		fault_point("store.prune-renamed");
	}
	all = (const char (*)[STORE_ID_MAX])done.ids;
	if (done.n && fsync(s->commits_fd) < 0 && r == 0)
		r = err_sys(e, -errno, "pruning commits");
	fault_point("store.prune-synced");
	if (done.n) {
		gc_note_deleted(s, done.n);
		int row = catalog_pruned(s, all, done.n, r == 0 ? e : NULL);

		r = r < 0 ? r : row;
	}
	catalog_names_unlock(s);
	if (r == 0)
		r = sweep_all(s, all, done.n, e);
	if (r < 0 || !ret)
		return r;
	*ret = done;
	done = (struct store_ids){0};
	return 0;
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
	uint64_t manifests = 0;
	int r;

	if ((r = count(s->packs_fd, PACK_SUFFIX, &u.packs, &u.bytes, e)) < 0 ||
		(r = count(s->tags_fd, "", &u.tags, &u.bytes, e)) < 0)
		return r;
	catalog_look(s);
	catalog_counts(s, &u.commits, &manifests);
	u.bytes += manifests;
	*ret = u;
	return 0;
}
