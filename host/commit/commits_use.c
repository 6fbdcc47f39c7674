/*
 * Which commits VMs and calls need, and which are going. What takes long (a list, a
 * deletion of thousands) works without the tree's lock: under it stands only what says
 * who needs what.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "host/commit/commits_priv.h"

void
vm_uses_done(struct vm_uses *u)
{
	free(u->v);
	*u = (struct vm_uses){0};
}

static int
by_commit(const void *a, const void *b)
{
	const struct vm_use *x = a, *y = b;
	int order = strcmp(x->commit, y->commit);

	return order ? order : x->order < y->order ? -1 : x->order > y->order;
}

static void
add(struct vm_uses *u, size_t from, const struct vm_row *row, unsigned order,
	const char *commit)
{
	struct vm_use *use = &u->v[u->n];

	for (size_t i = from; i < u->n; i++)
		if (strcmp(u->v[i].commit, commit) == 0)
			return;
	if (!commit[0])
		return;
	snprintf(use->commit, sizeof(use->commit), "%s", commit);
	memcpy(use->vm, row->id, sizeof(use->vm));
	use->order = order;
	u->n++;
}

int
vm_uses_read_locked(struct tree *t, bool all, struct vm_uses *ret, struct err *e)
{
	struct vm_uses u = {.v = calloc(4 * (size_t)t->n_vms + 1, sizeof(*u.v))};

	if (!u.v)
		return err_set(e, -ENOMEM, "out of memory");
	for (unsigned i = 0; i < t->n_vms; i++) {
		const struct vm_row *row = &t->vms[i]->row;
		char base[STORE_ID_MAX];
		size_t from = u.n;

		if (!all && !vm_state_lives(row->state))
			continue;
		add(&u, from, row, i, row->commit);
		add(&u, from, row, i, row->image);
		if (materialized_is_disk(t->config.home, row->base_path, base))
			add(&u, from, row, i, base);
		if (t->vms[i]->reset)
			add(&u, from, row, i, t->vms[i]->reset->row.commit);
	}
	*ret = u;
	return 0;
}

int
vm_uses_read(struct tree *t, bool all, struct vm_uses *ret, struct err *e)
{
	int r;

	pthread_mutex_lock(&t->lock);
	r = vm_uses_read_locked(t, all, ret, e);
	pthread_mutex_unlock(&t->lock);
	if (r == 0 && ret->n)
		qsort(ret->v, ret->n, sizeof(*ret->v), by_commit);
	return r;
}

const struct vm_use *
vm_uses_find(const struct vm_uses *u, const char *commit, size_t *ret_n)
{
	size_t low = 0, high = u->n, n = 0;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (strcmp(u->v[middle].commit, commit) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	while (low + n < u->n && strcmp(u->v[low + n].commit, commit) == 0)
		n++;
	*ret_n = n;
	return n ? &u->v[low] : NULL;
}

static int
by_hash(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct store_hash));
}

const char *
commit_parent_of(struct store *s, const struct vm_row *row)
{
	char id[STORE_ID_MAX];

	if (!row->commit[0])
		return NULL;
	if (store_resolve_any(s, row->commit, id, NULL) != -ENOENT)
		return row->commit;
	log_info("vm %s: its commit %.12s is no more: its next one has no parent", row->id,
		row->commit);
	return NULL;
}

bool
commit_is_going(const struct commits *c, const char *id)
{
	struct store_hash hash;

	if (!hash_from_hex(id, &hash))
		return false;
	for (const struct commits_going *g = c->going; g; g = g->next)
		if (g->n && bsearch(&hash, g->ids, g->n, sizeof(*g->ids), by_hash))
			return true;
	return false;
}

bool
commit_is_used(const struct commits *c, const char *id)
{
	for (const struct commit_use *u = c->uses; u; u = u->next)
		if (strcmp(u->id, id) == 0)
			return true;
	return false;
}

int
commit_use_begin(struct commits *c, struct commit_use *u, const char *id, struct err *e)
{
	int r = 0;

	pthread_mutex_lock(&c->tree->lock);
	if (commit_is_going(c, id)) {
		r = err_set(e, -ENOENT, "commit %.12s is being deleted", id);
	} else {
		snprintf(u->id, sizeof(u->id), "%s", id);
		u->next = c->uses;
		c->uses = u;
	}
	pthread_mutex_unlock(&c->tree->lock);
	return r;
}

void
commit_use_end(struct commits *c, struct commit_use *u)
{
	if (!u->id[0])
		return; /* not begun */
	pthread_mutex_lock(&c->tree->lock);
	for (struct commit_use **at = &c->uses; *at; at = &(*at)->next)
		if (*at == u) {
			*at = u->next;
			break;
		}
	pthread_mutex_unlock(&c->tree->lock);
	u->id[0] = '\0';
}
