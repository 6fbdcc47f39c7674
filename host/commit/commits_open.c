/* What commits have, opened when pandod starts and closed when it ends. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "host/commit/commits_priv.h"

int
commits_store(struct commits *c, struct store **ret, struct err *e)
{
	char path[PATHS_MAX];
	int r = 0;

	pthread_mutex_lock(&c->store_lock);
	if (!c->store) {
		r = paths_format(path, sizeof(path), e, "%s/store", tree_home(c->tree));
		if (r == 0)
			r = store_open(path, &c->store, e);
	}
	if (r == 0)
		*ret = c->store;
	pthread_mutex_unlock(&c->store_lock);
	return r;
}

/* VMs of commits that were deleted by a pandod that was killed before it noted that are of
 * none. A pruned commit has its place in the history yet: after a power cut a row may name
 * one, and the VM's next commit comes after it. */
static void
forget_gone(struct tree *t, struct store *s)
{
	char id[STORE_ID_MAX];
	struct err e;

	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < t->n_vms; i++) {
		struct vm *vm = t->vms[i];

		if (!vm->row.commit[0] ||
			store_resolve_any(s, vm->row.commit, id, NULL) != -ENOENT)
			continue;
		log_info("vm %s (%s): its commit %.12s is no more", vm->row.id,
			vm_name(vm), vm->row.commit);
		vm->row.commit[0] = '\0';
		if (db_update(t->db, &vm->row, &e) < 0)
			log_err("vm %s: %s", vm->row.id, e.msg);
	}
	pthread_mutex_unlock(&t->lock);
}

/* What an earlier pandod left unfinished in the store goes when it is opened. One that
 * cannot be opened stands in nobody's way but in that of commits. */
static void
open_store(struct commits *c)
{
	char path[PATHS_MAX];
	struct store *s;
	struct err e;

	if (paths_format(path, sizeof(path), NULL, "%s/store", tree_home(c->tree)) < 0 ||
		access(path, F_OK) < 0)
		return;
	if (commits_store(c, &s, &e) < 0)
		log_warn("the store of commits: %s", e.msg);
	else
		forget_gone(c->tree, s);
}

int
commits_open(struct tree *t, const struct commits_config *config, struct commits **ret,
	struct err *e)
{
	struct commits *c = calloc(1, sizeof(*c));

	if (!c)
		return err_set(e, -ENOMEM, "out of memory");
	c->tree = t;
	c->config = *config;
	pthread_mutex_init(&c->store_lock, NULL);
	pthread_rwlock_init(&c->noted_lock, NULL);
	pthread_mutex_init(&c->materialized_lock, NULL);
	pthread_cond_init(&c->materialized_changed, NULL);
	t->memory_to_come = fill_memory_to_come;
	open_store(c);
	materialized_trim(c);
	pool_open(c);
	care_open(c);
	*ret = c;
	return 0;
}

void
commits_close(struct commits *c)
{
	if (!c)
		return;
	care_close(c);
	pool_close(c);
	materialized_close(c);
	store_close(c->store);
	pthread_cond_destroy(&c->materialized_changed);
	pthread_mutex_destroy(&c->materialized_lock);
	pthread_rwlock_destroy(&c->noted_lock);
	pthread_mutex_destroy(&c->store_lock);
	free(c);
}
