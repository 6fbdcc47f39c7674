/* The store as a whole: open, close, holds, commits by name. */
#include "host/store/store.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/store/store_catalog.h"

#define NAMES_SHOWN 8u	   /* in a sentence */
#define STORES_HELD_MAX 8u /* at once, by a thread */

static int
count_name(void *ctx, const char *name, struct err *e)
{
	(void)name;
	(void)e;
	++*(uint64_t *)ctx;
	return 0;
}

static int
check_format(struct store *s, int root, struct err *e)
{
	cleanup_free char *text = NULL;
	uint64_t n = 0;
	size_t len;
	int r = store_read_at(root, "format", 64, &text, &len);

	if (r == 0 && strcmp(text, STORE_FORMAT) == 0)
		return 0;
	if (r == 0 && strncmp(text, "pando store ", 12) == 0)
		return err_set(e, -EBADMSG,
			"store %.200s is of format version %.*s, and this pando knows version 1: use the pando that made it",
			s->path, (int)strcspn(text + 12, "\n"), text + 12);
	if (r == 0 || r == -EFBIG || r == -EBADMSG)
		return err_set(e, -EBADMSG,
			"%.200s is no store: its file \"format\" is something else",
			s->path);
	if (r != -ENOENT)
		return err_sys(e, r, "store %.200s", s->path);
	r = store_each_name(s->commits_fd, MANIFEST_SUFFIX, count_name, &n, e);
	if (r == 0)
		r = store_each_name(s->packs_fd, PACK_SUFFIX, count_name, &n, e);
	if (r < 0)
		return r;
	if (n)
		return err_set(e, -EBADMSG,
			"store %.200s has lost its file \"format\": if its files are of version 1, write \"pando store 1\" and a newline to it",
			s->path);
	r = store_write_at(
		root, "format", "store.format", STORE_FORMAT, strlen(STORE_FORMAT));
	return r < 0 ? err_sys(e, r, "store %.200s", s->path) : 0;
}

static int
open_folder(int root, const char *name, int *ret, const char *path, struct err *e)
{
	if (mkdirat(root, name, 0700) < 0 && errno != EEXIST)
		return err_sys(e, -errno, "making %.200s/%s", path, name);
	*ret = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *ret < 0 ? err_sys(e, -errno, "%.200s/%s", path, name) : 0;
}

static int
open_all(struct store *s, struct err *e)
{
	int r = io_mkdir_p(s->path, 0700, e), root;

	if (r < 0)
		return r;
	root = s->root_fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return err_sys(e, -errno, "store %.200s", s->path);
	s->lock_fd =
		openat(root, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock_fd < 0)
		return err_sys(e, -errno, "store %.200s: lock", s->path);
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK
			       ? err_set(e, -EBUSY,
					 "store %.200s is in use by another process",
					 s->path)
			       : err_sys(e, -errno, "store %.200s: lock", s->path);
	if ((r = open_folder(root, "packs", &s->packs_fd, s->path, e)) < 0 ||
		(r = open_folder(root, "commits", &s->commits_fd, s->path, e)) < 0 ||
		(r = open_folder(root, "tags", &s->tags_fd, s->path, e)) < 0)
		return r;
	r = check_format(s, root, e);
	if (r < 0)
		return r;
	if ((r = store_remove_temp_files(s->packs_fd)) < 0 ||
		(r = store_remove_temp_files(s->tags_fd)) < 0 ||
		(r = store_remove_temp_files(root)) < 0)
		return err_sys(e, r, "store %.200s", s->path);
	notes_open(s);
	return catalog_open(s, e);
}

int
store_open(const char *path, struct store **ret, struct err *e)
{
	static uint64_t serials;
	struct store *s = calloc(1, sizeof(*s));
	pthread_rwlockattr_t attr;
	int r;

	if (!s)
		return err_sys(e, -ENOMEM, "store %.200s", path);
	s->packs_fd = s->commits_fd = s->tags_fd = s->lock_fd = s->root_fd = -1;
	pthread_mutex_init(&s->names, NULL);
	pthread_mutex_init(&s->pool_lock, NULL);
	pthread_mutex_init(&s->hold_lock, NULL);
	pthread_cond_init(&s->hold_changed, NULL);
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(
		&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->gc_lock, &attr);
	pthread_rwlockattr_destroy(&attr);
	s->serial = __atomic_add_fetch(&serials, 1, __ATOMIC_RELAXED);
	pthread_mutex_init(&s->change_lock, NULL);
	pthread_mutex_init(&s->care_lock, NULL);
	pthread_mutex_init(&s->note_lock, NULL);
	s->packs_changed = tiers_poke;
	pthread_mutex_init(&s->tiers_lock, NULL);
	pthread_cond_init(&s->tiers_changed, NULL);
	s->path = strdup(path);
	r = s->path ? hash_init() : -ENOMEM;
	if (r < 0)
		err_sys(e, r, "store %.200s", path);
	else
		r = open_all(s, e);
	if (r < 0) {
		store_close(s);
		return r;
	}
	*ret = s;
	return 0;
}

void
store_close(struct store *s)
{
	if (!s)
		return;
	tiers_stop(s);
	pool_free(s->pool);
	/* Stored again since, or nobody's any more. */
	if (s->notes & 1u << NOTE_DAMAGED && !store_is_damaged(s))
		note_sound(s, s->damage_seen);
	catalog_close(s);
	packs_done(s);
	cleanup_close_fn(&s->packs_fd);
	cleanup_close_fn(&s->commits_fd);
	cleanup_close_fn(&s->tags_fd);
	cleanup_close_fn(&s->root_fd);
	cleanup_close_fn(&s->lock_fd); /* last: it is the lock */
	pthread_mutex_destroy(&s->names);
	pthread_mutex_destroy(&s->pool_lock);
	pthread_mutex_destroy(&s->hold_lock);
	pthread_cond_destroy(&s->hold_changed);
	pthread_rwlock_destroy(&s->gc_lock);
	pthread_mutex_destroy(&s->change_lock);
	pthread_mutex_destroy(&s->care_lock);
	pthread_mutex_destroy(&s->note_lock);
	pthread_mutex_destroy(&s->tiers_lock);
	pthread_cond_destroy(&s->tiers_changed);
	free(s->path);
	free(s);
}

void
store_set_threads(struct store *s, unsigned threads)
{
	pthread_mutex_lock(&s->pool_lock);
	pool_free(s->pool);
	s->pool = NULL;
	s->threads = threads;
	pthread_mutex_unlock(&s->pool_lock);
}

int
store_pool(struct store *s, struct pool **ret)
{
	int r = 0;

	pthread_mutex_lock(&s->pool_lock);
	if (!s->pool)
		r = pool_new(s->threads, &s->pool);
	*ret = s->pool;
	pthread_mutex_unlock(&s->pool_lock);
	return r;
}

/* A count a generation: gc begins one, and waits for those of the one before. */
uint64_t
hold_begin(struct store *s)
{
	uint64_t generation;

	pthread_mutex_lock(&s->hold_lock);
	s->holds_now++;
	generation = s->generation;
	pthread_mutex_unlock(&s->hold_lock);
	return generation;
}

void
hold_end(struct store *s, uint64_t generation)
{
	pthread_mutex_lock(&s->hold_lock);
	if (generation == s->generation)
		s->holds_now--;
	else if (--s->holds_before == 0)
		pthread_cond_broadcast(&s->hold_changed);
	pthread_mutex_unlock(&s->hold_lock);
}

/* The holds of a thread: the first on a store counts, others within it need not. */
static __thread struct held {
	uint64_t serial; /* of the store; 0: none */
	uint64_t generation;
	unsigned depth;
} held[STORES_HELD_MAX];

static struct held *
held_of(uint64_t serial)
{
	size_t i = 0;

	while (i < STORES_HELD_MAX && held[i].serial != serial)
		i++;
	assert(i < STORES_HELD_MAX);
	return &held[i];
}

static bool
holds(const struct store *s)
{
	for (size_t i = 0; i < STORES_HELD_MAX; i++)
		if (held[i].serial == s->serial)
			return true;
	return false;
}

void
store_hold(struct store *s)
{
	struct held *h = held_of(holds(s) ? s->serial : 0);

	if (h->depth++)
		return;
	h->serial = s->serial;
	h->generation = hold_begin(s);
}

void
store_release(struct store *s)
{
	struct held *h = held_of(s->serial);

	if (--h->depth)
		return;
	h->serial = 0;
	hold_end(s, h->generation);
}

static int
refuse_pruned(const char *id, struct err *e)
{
	return err_set(e, -ENOENT,
		"commit %.12s was pruned: its place in the history is kept, its contents are not",
		id);
}

int
store_load_id(struct store *s, const char *id, struct store_manifest **ret, struct err *e)
{
	struct err why = {0};
	int r = store_read_manifest(s, id, false, ret, &why);

	if (r == -EBADMSG)
		catalog_note_damage(s, id, why.msg);
	if (r == -ENOENT && store_is_pruned(s, id))
		return refuse_pruned(id, e);
	return r < 0 ? err_set(e, r, "%s", why.msg) : 0;
}

/* ---- names ---- */

static int
refuse_ambiguous(const char *name, char (*ids)[STORE_ID_MAX], size_t n, struct err *e)
{
	char shown[NAMES_SHOWN * (STORE_ID_MAX + 1)] = "";
	size_t digits = strlen(name);

	/* As many digits as tell them apart, mostly. */
	for (size_t i = 0; i < n && i < NAMES_SHOWN; i++)
		snprintf(shown + strlen(shown), sizeof(shown) - strlen(shown), "%s%.*s",
			i ? ", " : "", (int)(digits < 12 ? 16 : digits + 4), ids[i]);
	return err_set(e, -EEXIST, "\"%s\" may be any of %zu commits: %.360s%s", name, n,
		shown, n > NAMES_SHOWN ? ", …" : "");
}

static int
resolve_prefix(struct store *s, const char *name, bool any,
	char ret_id[static STORE_ID_MAX], struct err *e)
{
	char ids[NAMES_SHOWN][STORE_ID_MAX], prefix[STORE_ID_MAX];
	size_t digits = strlen(name), n = 0;
	bool pruned = false;
	int r = 0;

	for (size_t i = 0; i < digits; i++)
		prefix[i] = (char)(name[i] | 0x20); /* A-F or not: digits have that bit */
	prefix[digits] = '\0';
	/* A whole id: its file's name says as much. */
	if (digits == STORE_HEX && store_has_commit(s, prefix)) {
		memcpy(ret_id, prefix, STORE_ID_MAX);
		return 0;
	}
	catalog_look(s);
	if (digits < STORE_HEX)
		r = catalog_prefix(s, prefix, false, NAMES_SHOWN, ids, &n, e);
	if (r == 0 && n == 0) {
		pruned = true;
		r = catalog_prefix(s, prefix, true, NAMES_SHOWN, ids, &n, e);
	}
	if (r < 0)
		return r;
	if (n == 0)
		return err_set(e, -ENOENT, "there is no commit or tag \"%s\"", name);
	if (n > 1)
		return refuse_ambiguous(name, ids, n, e);
	if (pruned && !any)
		return refuse_pruned(ids[0], e);
	memcpy(ret_id, ids[0], STORE_ID_MAX);
	return 0;
}

static int
resolve(struct store *s, const char *name, bool any, char ret_id[static STORE_ID_MAX],
	struct err *e)
{
	char id[STORE_ID_MAX];
	size_t len = strlen(name);
	bool hex = len <= STORE_HEX && strspn(name, "0123456789abcdefABCDEF") == len;
	int r;

	if (!hex || len < STORE_HEX) {
		r = store_tag_check(name, hex ? NULL : e);
		if (r == 0)
			r = store_tag_get(s, name, id, hex ? NULL : e);
		if (r == 0 && !store_has_commit(s, id))
			return err_set(e, -ENOENT,
				"tag \"%s\" is of commit %.12s, which is not in the store",
				name, id);
		if (r == 0)
			memcpy(ret_id, id, sizeof(id));
		if (r == 0 || !hex)
			return r;
		if (r != -ENOENT && r != -EINVAL)
			return store_tag_get(s, name, id, e); /* for the sentence */
	}
	if (len < STORE_PREFIX_MIN)
		return err_set(e, len ? -ENOENT : -EINVAL,
			"there is no tag \"%s\" (of a commit's id at least %u digits are needed)",
			name, STORE_PREFIX_MIN);
	return resolve_prefix(s, name, any, ret_id, e);
}

int
store_resolve(struct store *s, const char *name, char ret_id[static STORE_ID_MAX],
	struct err *e)
{
	return resolve(s, name, false, ret_id, e);
}

int
store_resolve_any(struct store *s, const char *name, char ret_id[static STORE_ID_MAX],
	struct err *e)
{
	return resolve(s, name, true, ret_id, e);
}

int
store_load(struct store *s, const char *name, struct store_manifest **ret, struct err *e)
{
	char id[STORE_ID_MAX];
	int r = store_resolve(s, name, id, e);

	return r < 0 ? r : store_load_id(s, id, ret, e);
}

/* ---- manifests that come ---- */

int
store_put_manifest(struct store *s, const struct store_fields *f, const char *id,
	const char *text, size_t len, struct err *e)
{
	char name[MANIFEST_NAME_MAX], pruned[PRUNED_NAME_MAX];
	struct err why = {0};
	int r;

	store_manifest_name(id, name);
	catalog_names_lock(s);
	if (f->parent && !store_has_commit(s, f->parent) && !store_is_pruned(s, f->parent)) {
		r = err_set(e, -ENOENT,
			"the commit's parent %.12s is not in the store (any more)",
			f->parent);
	} else {
		r = store_write_at(s->commits_fd, name, "store.manifest", text, len);
		if (r < 0)
			err_sys(e, r, "writing the commit to %.200s", s->path);
	}
	if (r == 0) {
		/* The same commit, pruned before and made once more. */
		if (store_is_pruned(s, id)) {
			store_pruned_name(id, pruned);
			unlinkat(s->commits_fd, pruned, 0);
		}
		/* It is made, whatever becomes of its row: the next call compares. */
		if (catalog_renew(s, id, &why) < 0)
			log_warn("commit %.12s is not listed yet: %s", id, why.msg);
		fault_point("store.commit-listed");
	}
	catalog_names_unlock(s);
	return r;
}
