/* DELETE /v1/vms/{vm}: the end of VMs. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/log.h"
#include "host/vm/tree_priv.h"

#define KILL_TIMEOUT_MS 20000
#define TAKE_BACK_TIMEOUT_MS 60000

static const char op_deleting[] = "being deleted";

int
tree_sweep(struct tree *t, struct err *e)
{
	char(*names)[DB_SEGMENT_MAX] = NULL;
	size_t n = 0;
	int r = db_sweep_segments(t->db, &names, &n, e);

	if (r == 0 && n)
		r = tree_sync_locked(t, e);
	for (size_t i = 0; r == 0 && i < n; i++)
		launch_remove_segment(t->config.home, names[i]);
	free(names);
	return r < 0 ? r : tree_sweep_bases(t, false, e);
}

/* Whether this name below bases/ is one of ours that no VM needs. */
static bool
is_stale_base(struct tree *t, const char *name, const char *path, bool unfinished)
{
	if (strspn(name, "0123456789abcdef") != VM_ID_LEN || name[VM_ID_LEN] != '.' ||
		(!unfinished && strstr(name, ".part")))
		return false;
	for (unsigned i = 0; i < t->n_vms; i++)
		if (strcmp(t->vms[i]->row.base_path, path) == 0)
			return false;
	return true;
}

int
tree_sweep_bases(struct tree *t, bool unfinished, struct err *e)
{
	char folder[PATHS_MAX], path[PATHS_MAX];
	cleanup_closedir DIR *dir = NULL;
	bool synced = false;
	struct dirent *d;
	int r = paths_format(folder, sizeof(folder), e, "%s/bases", t->config.home);

	if (r < 0)
		return r;
	dir = opendir(folder);
	while (dir && (d = readdir(dir))) {
		if (paths_format(path, sizeof(path), NULL, "%s/%s", folder, d->d_name) <
				0 ||
			!is_stale_base(t, d->d_name, path, unfinished))
			continue;
		if (!synced)
			r = tree_sync_locked(t, e);
		if (r < 0)
			return r;
		synced = true;
		unlink(path);
	}
	return 0;
}

/* From now on the next pandod would finish the removal, should this one be killed. Called
 * with the lock. */
static int
mark_going(struct tree *t, struct vm **vms, unsigned n, bool going, struct err *e)
{
	int r = db_begin(t->db, e);

	for (unsigned i = 0; r == 0 && i < n; i++) {
		vms[i]->row.made = !going;
		r = db_update(t->db, &vms[i]->row, e);
	}
	if (r == 0)
		r = db_commit(t->db, e);
	for (unsigned i = 0; r < 0 && i < n; i++)
		vms[i]->row.made = going;
	db_rollback(t->db);
	return r;
}

static int
kill_all(struct tree *t, struct vm **vms, unsigned n, struct err *e)
{
	/* SIGKILL, not VMM_QUIT: nothing of these VMs is to remain, and what they shared
	 * with others was cut, and not written since, long ago. */
	for (unsigned i = 0; i < n; i++) {
		vms[i]->removing = true;
		if (vms[i]->pidfd >= 0)
			process_kill(vms[i]->pidfd);
		else
			vms[i]->dead = true;
	}
	for (unsigned i = 0; i < n; i++)
		if (tree_wait_dead(t, vms[i], KILL_TIMEOUT_MS) < 0)
			return err_set(e, -ETIMEDOUT,
				"vm \"%s\": its process %lld was killed and does not end; nothing was removed",
				vm_name(vms[i]), (long long)vms[i]->row.pid);
	return 0;
}

static int
delete_rows(struct tree *t, struct vm **vms, unsigned n, struct err *e)
{
	int r = db_begin(t->db, e);

	for (unsigned i = 0; r == 0 && i < n; i++)
		r = db_delete(t->db, vms[i]->row.id, e);
	if (r == 0)
		r = db_commit(t->db, e);
	db_rollback(t->db);
	return r;
}

int
tree_remove(struct tree *t, struct vm **vms, unsigned n, struct err *e)
{
	int r;

	pthread_mutex_lock(&t->lock);
	r = mark_going(t, vms, n, true, e);
	if (r == 0) {
		r = kill_all(t, vms, n, e);
		if (r == 0)
			r = delete_rows(t, vms, n, e);
		if (r < 0)
			mark_going(t, vms, n, false, NULL);
	}
	if (r < 0) {
		for (unsigned i = 0; i < n; i++)
			vms[i]->removing = false;
		pthread_mutex_unlock(&t->lock);
		return r;
	}
	for (unsigned i = 0; i < n; i++) {
		struct err why;

		if (launch_remove_files(t->config.home, vms[i]->row.id, &why) < 0)
			log_warn("vm %s: %s", vms[i]->row.id, why.msg);
		log_info("vm %s (%s): deleted", vms[i]->row.id, vm_name(vms[i]));
		tree_unlist_vm(t, vms[i]); /* the caller's reference keeps it */
	}
	r = tree_sweep(t, e);
	pthread_mutex_unlock(&t->lock);
	return r;
}

void
tree_remove_each(struct tree *t, struct vm **vms, unsigned n)
{
	struct err e;

	if (!n || tree_remove(t, vms, n, &e) == 0)
		return;
	log_err("removing vm %s%s: %s", vms[0]->row.id, n > 1 ? " and others" : "",
		e.msg);
	/* Where only the sweep failed, none is listed any more. */
	for (unsigned i = 0; n > 1 && i < n; i++)
		if (vms[i]->listed && tree_remove(t, &vms[i], 1, &e) < 0)
			log_err("vm %s: %s", vms[i]->row.id, e.msg);
}

static bool
is_among(struct vm *const *vms, unsigned n, const struct vm *vm)
{
	for (unsigned i = 0; i < n; i++)
		if (vms[i] == vm)
			return true;
	return false;
}

/* All that descends from vms[0], claimed, parents first: a VM that is claimed gets no more
 * branches, and everybody claims from above, so that no two wait for each other. Called
 * with the lock, which is given up where somebody is at a branch. */
static int
claim_descendants(struct tree *t, struct vm **vms, unsigned *n, const struct progress *p,
	uint64_t until_ns, struct err *e)
{
	for (unsigned done = 0; done < *n; done++)
		for (unsigned i = 0; i < t->n_vms; i++) {
			struct vm *vm = t->vms[i];
			bool waits = vm->op;
			int r;

			if (vm->parent_handle != vms[done]->handle ||
				(vm->op == op_deleting && is_among(vms, *n, vm)))
				continue;
			r = tree_claim_until(
				t, vm->row.id, op_deleting, p, until_ns, &vms[*n], e);
			if (r < 0 && r != -ENOENT)
				return err_wrap(e, r, "a branch of it");
			*n += r == 0;
			if (waits)
				i = UINT_MAX; /* from the first: the table may be another */
		}
	return 0;
}

/* Whether vm, which is not `of`, descends from it. Called with the lock. */
static bool
descends(struct tree *t, const struct vm *vm, const struct vm *of)
{
	for (unsigned steps = 0; vm && vm->parent_handle && steps < TREE_VMS_MAX;
		steps++) {
		if (vm->parent_handle == of->handle)
			return true;
		vm = tree_by_handle(t, vm->parent_handle);
	}
	return false;
}

static int
refuse_descendants(struct tree *t, struct vm *vm, struct err *e)
{
	char names[300] = "";
	unsigned living = 0;
	bool cut = false;

	for (unsigned i = 0; i < t->n_vms; i++) {
		struct vm *other = t->vms[i];
		size_t len = strlen(names);

		if (!vm_state_lives(other->row.state) || !descends(t, other, vm))
			continue;
		living++;
		if (len < 200)
			snprintf(names + len, sizeof(names) - len, "%s%s",
				len ? ", " : "", vm_name(other));
		else
			cut = true;
	}
	if (!living)
		return 0;
	return err_set(e, -ENOTEMPTY,
		"vm \"%s\" has %u living branch%s (%s%s): delete %s first, or all with `pando delete -r`",
		vm_name(vm), living, living == 1 ? "" : "es", names, cut ? ", …" : "",
		living == 1 ? "it" : "them");
}

int
tree_delete(struct tree *t, const char *name, bool recursive, bool dry_run,
	const struct progress *p, struct json_out *out, struct err *e)
{
	uint64_t until_ns = busy_until(p);
	cleanup_free struct vm **vms = calloc(TREE_VMS_MAX, sizeof(*vms));
	unsigned n = 0;
	int r;

	if (!vms)
		return err_set(e, -ENOMEM, "out of memory");
	pthread_mutex_lock(&t->lock);
	r = tree_claim_until(t, name, op_deleting, p, until_ns, &vms[0], e);
	if (r == 0) {
		n = 1;
		r = recursive ? claim_descendants(t, vms, &n, p, until_ns, e)
			      : refuse_descendants(t, vms[0], e);
	}
	if (r == 0 && !dry_run)
		tree_take_last_reports(t, vms, n);
	pthread_mutex_unlock(&t->lock);
	if (r == 0 && !dry_run)
		r = tree_remove(t, vms, n, e);
	pthread_mutex_lock(&t->lock);
	if (r == 0) {
		json_out_object(out, NULL);
		json_out_array(out, dry_run ? "would_delete" : "deleted");
		for (unsigned i = 0; i < n; i++)
			json_out_str(out, NULL, vms[i]->row.id);
		json_out_end_array(out);
		json_out_end_object(out);
	}
	for (unsigned i = 0; i < n; i++) {
		vms[i]->op = NULL;
		vm_unref(vms[i]);
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return r;
}

/* Called with the lock. */
static bool
has_branches(struct tree *t, const struct vm *vm)
{
	for (unsigned i = 0; i < t->n_vms; i++)
		if (t->vms[i]->parent_handle == vm->handle)
			return true;
	return false;
}

/* Claims ids[0..n), as *p queues, and removes what it got and nobody uses. p NULL: those that
 * somebody is at are left, and come first in ids then; returns how many. */
static size_t
take_back(struct tree *t, char (*ids)[VM_ID_LEN + 1], size_t n, const struct progress *p)
{
	cleanup_free struct vm **vms = calloc(n, sizeof(*vms));
	unsigned n_vms = 0;
	size_t left = 0;

	if (!vms)
		return 0;
	pthread_mutex_lock(&t->lock);
	for (size_t i = 0; i < n; i++) {
		struct err e = {0};
		struct vm *vm;
		int r = tree_claim(t, ids[i], op_deleting, p, &vm, &e);

		if (r == -EBUSY && !p) {
			memmove(ids[left++], ids[i], sizeof(ids[0]));
		} else if (r < 0 && r != -ENOENT) {
			log_warn("vm %s: nobody was told of it, and it stays: %s", ids[i],
				e.msg);
		} else if (r == 0) {
			bool used = has_branches(t, vm);

			log_info("vm %s (%s): its id did not reach who asked for it; %s",
				ids[i], vm_name(vm),
				used ? "it has branches, and stays" : "removed");
			if (used) {
				vm->op = NULL;
				vm_unref(vm);
			} else {
				vms[n_vms++] = vm;
			}
		}
	}
	pthread_mutex_unlock(&t->lock);
	tree_remove_each(t, vms, n_vms);
	pthread_mutex_lock(&t->lock);
	vms_release(vms, n_vms);
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return left;
}

void
tree_take_back(struct tree *t, char (*ids)[VM_ID_LEN + 1], size_t n)
{
	const struct progress p = {.busy_timeout_ms = TAKE_BACK_TIMEOUT_MS};
	size_t left = n ? take_back(t, ids, n, NULL) : 0;

	/* One after the other: nobody keeps some while he waits for another. */
	for (size_t i = 0; i < left; i++)
		take_back(t, &ids[i], 1, &p);
}
