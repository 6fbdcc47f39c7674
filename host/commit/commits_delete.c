/*
 * Deletion. Which commits go is found, and they are removed, without the tree's lock; with
 * it is only looked whether a VM needs one, and noted that they are going, so that no VM
 * comes to be on one in between.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"

#define SAID_MAX 100u /* of the commits that went, in the log */

static int
by_hash(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct store_hash));
}

static int
sorted(const struct store_ids *ids, struct store_hash **ret, struct err *e)
{
	struct store_hash *v = calloc(ids->n + 1, sizeof(*v));

	if (!v)
		return err_set(e, -ENOMEM, "out of memory");
	for (size_t i = 0; i < ids->n; i++)
		hash_from_hex(ids->ids[i], &v[i]);
	if (ids->n)
		qsort(v, ids->n, sizeof(*v), by_hash);
	*ret = v;
	return 0;
}

static bool
is_among(const struct store_hash *v, size_t n, const char *id)
{
	struct store_hash hash;

	return n && hash_from_hex(id, &hash) && bsearch(&hash, v, n, sizeof(*v), by_hash);
}

/* Refuses when a living VM needs one of the commits. Called with the lock. */
static int
refuse_used(struct tree *t, const struct store_hash *v, size_t n, struct err *e)
{
	cleanup_vm_uses struct vm_uses uses = {0};
	int r = vm_uses_read_locked(t, false, &uses, e);

	for (size_t i = 0; r == 0 && i < uses.n; i++)
		if (is_among(v, n, uses.v[i].commit))
			return err_set(e, -ENOTEMPTY,
				"commit %.12s is in use: vm \"%s\" runs on it or was last committed as it; stop or delete that VM first",
				uses.v[i].commit, vm_name(t->vms[uses.v[i].order]));
	return r;
}

/* VMs forget the commits: their next one has no parent. */
static void
forget(struct tree *t, const struct store_hash *v, size_t n)
{
	struct err e;

	for (unsigned j = 0; j < t->n_vms; j++) {
		struct vm *vm = t->vms[j];

		if (!is_among(v, n, vm->row.commit))
			continue;
		vm->row.commit[0] = vm->row.commit_segment[0] = '\0';
		if (db_update(t->db, &vm->row, &e) < 0)
			log_err("vm %s: %s", vm->row.id, e.msg);
	}
}

static void
going_end(struct commits *c, struct commits_going *g)
{
	for (struct commits_going **at = &c->going; *at; at = &(*at)->next)
		if (*at == g) {
			*at = g->next;
			return;
		}
}

int
commits_delete(struct commits *c, const char *name, bool recursive, bool dry_run,
	struct json_out *out, struct err *e)
{
	struct tree *t = c->tree;
	unsigned flags = recursive ? STORE_DELETE_RECURSIVE : 0;
	cleanup_free struct store_hash *v = NULL;
	struct store_ids ids = {0};
	struct commits_going going = {0};
	char id[STORE_ID_MAX];
	struct store *s;
	int r = commits_store(c, &s, e);

	if (r == 0)
		r = store_resolve(s, name, id, e);
	if (r == 0)
		r = store_delete(s, id, flags | STORE_DELETE_DRY_RUN, &ids, e);
	if (r == 0)
		r = sorted(&ids, &v, e);
	if (r == 0) {
		pthread_mutex_lock(&t->lock);
		r = refuse_used(t, v, ids.n, e);
		going = (struct commits_going){c->going, v, ids.n};
		if (r == 0)
			c->going = &going;
		pthread_mutex_unlock(&t->lock);
		if (r < 0)
			going.n = 0;
	}
	if (r == 0 && !dry_run)
		r = store_delete_these(
			s, (const char (*)[STORE_ID_MAX])ids.ids, ids.n, e);
	if (going.n) {
		pthread_mutex_lock(&t->lock);
		going_end(c, &going);
		if (r == 0 && !dry_run)
			forget(t, v, ids.n);
		pthread_mutex_unlock(&t->lock);
	}
	for (size_t i = 0; r == 0 && !dry_run && i < ids.n && i < SAID_MAX; i++)
		log_info("commit %.12s: deleted", ids.ids[i]);
	if (r == 0 && !dry_run && ids.n > SAID_MAX)
		log_info("and %zu commits more: deleted", ids.n - SAID_MAX);
	if (r == 0) {
		json_out_object(out, NULL);
		json_out_array(out, dry_run ? "would_delete" : "deleted");
		for (size_t i = 0; i < ids.n; i++)
			json_out_str(out, NULL, ids.ids[i]);
		json_out_end_array(out);
		json_out_end_object(out);
		if (!dry_run)
			materialized_trim(c);
	}
	store_ids_done(&ids);
	return r;
}
