/*
 * POST /v1/commits/{commit}/run: VMs of a commit.
 *
 * The commit's materialized image (materialize.c) is mapped by all of its VMs; each has a
 * segment of its own over the image's disk, or over a base and the changes that the image has
 * of it. What runs it is a pre-warmed VMM of the pool, or a fresh process where there is none.
 * All are told first and waited for then, so that they come up side
 * by side; their rows are in the database before, half-made, and made in one
 * transaction.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"
#include "host/vm/handshake.h"

struct spawn {
	struct commits *commits;
	struct tree *t;
	const struct branch_request *q;
	const struct progress *p;
	char id[STORE_ID_MAX];
	struct commit_use use;
	struct vm_row row; /* what all rows begin as */
	struct materialized_image materialized;
	struct vm **vms;      /* references, claimed; q->count of them */
	pid_t *pids;	      /* owned; beside vms */
	uint64_t *pid_starts; /* owned; likewise */
	unsigned n_vms;	      /* listed so far */
	unsigned n_pooled;
	int kvm; /* owned */
};

/* A VM's row, in the table. Called with the lock, inside the database's transaction. */
static int
enter_one(struct spawn *s, unsigned i, struct err *e)
{
	struct tree *t = s->t;
	struct vm *vm = vm_new(t);
	char segment[DB_SEGMENT_MAX];
	int r;

	if (!vm)
		return err_set(e, -ENOMEM, "out of memory");
	vm->op = "being made";
	vm->row = s->row;
	r = tree_enter_vm(t, vm, s->q->alias, i, s->q->count, e);
	if (r < 0) {
		vm_unref(vm);
		return r;
	}
	s->vms[s->n_vms++] = vm;
	r = db_insert(t->db, &vm->row, e);
	if (r == 0)
		r = vm_environment_enter(t, vm, &s->q->env, i, e);
	for (uint32_t n = 0; n < vm->row.next_segment && r == 0; n++) {
		snprintf(segment, sizeof(segment), "%s.%u", vm->row.id, n);
		r = db_chain_append(t->db, vm->row.id, segment, e);
	}
	return r;
}

/* All rows or none. Called with the lock. */
static int
enter(struct spawn *s, struct store *store, struct err *e)
{
	struct tree *t = s->t;
	char id[STORE_ID_MAX];
	int r;

	if (t->stopping)
		return err_set(e, -ECANCELED, "pandod is stopping");
	/* Once the rows are there it cannot be deleted any more. */
	if (commit_is_going(s->commits, s->id))
		return err_set(e, -ENOENT, "commit %.12s is being deleted", s->id);
	r = store_resolve(store, s->id, id, e);
	if (r == 0)
		r = host_has_room(t, s->id, s->row.mem_mib, 0, s->q->count, e);
	if (r == 0)
		r = db_begin(t->db, e);
	if (r < 0)
		return r;
	for (unsigned i = 0; r == 0 && i < s->q->count; i++)
		r = enter_one(s, i, e);
	if (r == 0)
		r = db_commit(t->db, e);
	if (r == 0)
		return 0;
	db_rollback(t->db);
	for (unsigned i = 0; i < s->n_vms; i++) {
		tree_unlist_vm(t, s->vms[i]);
		vm_unref(s->vms[i]);
	}
	s->n_vms = 0;
	return r;
}

int
vmm_start(const struct tree_config *config, int log_fd, struct vmmctl **ret_ctl,
	int *ret_pidfd, pid_t *ret_pid, struct err *e)
{
	cleanup_close int control = -1;
	int r = launch_spawn(
		config->vmm_path, "pando-vmm", log_fd, &control, ret_pid, ret_pidfd, e);

	if (r == 0)
		r = vmmctl_create(TAKE_FD(control), ret_ctl, e);
	if (r == 0 && (r = vmmctl_set_pidfd(*ret_ctl, *ret_pidfd)) < 0)
		err_sys(e, r, "a descriptor for process %d", (int)*ret_pid);
	return r;
}

static bool
has_changes(const struct spawn *s)
{
	return s->materialized.changes.base_fd >= 0;
}

/* The VM's own segment, and the one below it. */
static int
make_segments(struct spawn *s, const struct vm *vm, struct vm_segment *ret, struct err *e)
{
	char segment[DB_SEGMENT_MAX], path[PATHS_MAX];
	int r = 0;

	if (has_changes(s)) {
		r = paths_format(path, sizeof(path), e, "%s/segments/%s.0",
			s->t->config.home, vm->row.id);
		if (r == 0)
			r = disk_changes_link(s->materialized.folder, path, e);
	}
	snprintf(segment, sizeof(segment), "%s.%u", vm->row.id, has_changes(s) ? 1 : 0);
	/* Names of both are synced. */
	return r < 0 ? r : tree_make_segment(s->t, segment, ret, e);
}

/* Files, process, VMM_RESTORE. What is made is for vm_undo() to remove. */
static int
launch(struct spawn *s, unsigned i, struct err *e)
{
	cleanup_vm_files struct vm_files files = VM_FILES_INIT;
	cleanup_vm_segment struct vm_segment own = VM_SEGMENT_INIT;
	cleanup_close int fill_fd = -1;
	struct tree *t = s->t;
	struct vm *vm = s->vms[i];
	struct vmm_restore msg = {
		.mem_mib = vm->row.mem_mib,
		.disk_mib = vm->row.disk_mib,
		.blob_bytes = s->materialized.state_bytes,
		.vcpus = vm->row.vcpus,
		.flags = VMM_RESTORE_HAS_BASE |
			 (has_changes(s) ? VMM_RESTORE_HAS_CHANGES : 0),
		.changed_blocks = s->materialized.changes.blocks,
	};
	struct vmmctl *ctl = NULL;
	int pidfd = -1;
	int r = launch_files(t->config.home, vm->row.id, &files, e);

	if (r == 0)
		r = make_segments(s, vm, &own, e);
	if (r == 0 && s->materialized.fill) {
		msg.flags |= VMM_RESTORE_IS_FILLED;
		r = fill_add_vm(s->materialized.fill, &fill_fd, e);
	}
	if (r < 0)
		return r;
	if (pool_take(s->commits, vm->row.mem_mib, vm->row.vcpus, &ctl, &pidfd,
		    &s->pids[i]))
		s->n_pooled++;
	else
		r = vmm_start(&t->config, files.log_fd, &ctl, &pidfd, &s->pids[i], e);
	/* It is listed: others look at it. */
	pthread_mutex_lock(&t->lock);
	vm->ctl = ctl;
	vm->pidfd = pidfd;
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	memcpy(msg.generation, vm->row.generation, sizeof(msg.generation));
	snprintf(msg.name, sizeof(msg.name), "%s", vm_name(vm));

	int fds[VMM_RESTORE_FD_MAX] = {
		[VMM_RESTORE_FD_LISTEN] = files.listen_fd,
		[VMM_RESTORE_FD_VSOCK] = files.vsock_fd,
		[VMM_RESTORE_FD_CONSOLE] = files.console_fd,
		[VMM_RESTORE_FD_LOG] = files.log_fd,
		[VMM_RESTORE_FD_STATE] = s->materialized.state_fd,
		[VMM_RESTORE_FD_MEMORY] = s->materialized.memory_fd,
		[VMM_RESTORE_FD_BASE] = has_changes(s) ? s->materialized.changes.base_fd
						       : s->materialized.disk_fd,
		[VMM_RESTORE_FD_KVM] = s->kvm,
		[VMM_RESTORE_FD_CHANGES] =
			has_changes(s) ? s->materialized.changes.data_fd : s->kvm,
		[VMM_RESTORE_FD_MAP] =
			has_changes(s) ? s->materialized.changes.map_fd : s->kvm,
		[VMM_RESTORE_FD_FILL] = fill_fd >= 0 ? fill_fd : s->kvm,
		[VMM_RESTORE_FD_UFFD] =
			fill_fd >= 0 ? fill_device_fd(s->materialized.fill) : s->kvm,
	};

	vm_segment_put(&own, fds + VMM_RESTORE_FD_SEG);
	return vmmctl_restore(vm->ctl, &msg, fds, e);
}

/* Started, watched, and in the database as made: all in one transaction. */
static int
made(struct spawn *s, struct err *e)
{
	struct tree *t = s->t;
	unsigned watched = 0;
	int r = 0;

	for (unsigned i = 0; i < s->n_vms && r == 0; i++) {
		pid_t ppid;

		r = process_look(s->pids[i], &ppid, &s->pid_starts[i]);
		if (r < 0)
			err_sys(e, r, "vm \"%s\": its process %d", vm_name(s->vms[i]),
				(int)s->pids[i]);
	}
	if (r < 0)
		return r;
	pthread_mutex_lock(&t->lock);
	r = db_begin(t->db, e);
	for (unsigned i = 0; i < s->n_vms && r == 0; i++) {
		struct vm_row *row = &s->vms[i]->row;

		row->pid = s->pids[i];
		row->pid_start = s->pid_starts[i];
		row->made = true;
		r = db_update(t->db, row, e);
	}
	if (r == 0)
		r = db_commit(t->db, e);
	else
		db_rollback(t->db);
	while (r == 0 && watched < s->n_vms) {
		r = tree_watch(t, s->vms[watched], e);
		if (r == 0)
			vm_enter_scope(t, s->vms[watched++], false);
	}
	/* Those are vm_undo()'s, not tree_remove()'s. */
	for (unsigned i = watched; i < s->n_vms; i++)
		s->vms[i]->row.made = false;
	pthread_mutex_unlock(&t->lock);
	return r;
}

static int
make(struct spawn *s, struct err *e)
{
	struct vmm_started started;
	uint64_t began_ns = io_now_ns(), slowest_ns = 0;
	int r = 0;

	for (unsigned i = 0; i < s->n_vms && r == 0; i++)
		r = launch(s, i, e);
	if (r == 0)
		fault_point("spawn.sent");
	/* While they start, what nothing waits for but a power cut. */
	if (r == 0)
		r = materialized_sync(s->commits, &s->materialized, e);
	/* When the plan is told no pandod is needed any more; when it cannot be, they may wait for
	 * ever. */
	if (r == 0 && s->materialized.fill)
		r = fill_wait_planned(s->materialized.fill, e);
	for (unsigned i = 0; i < s->n_vms && r == 0; i++) {
		pid_t sender;

		r = vmmctl_wait_started(s->vms[i]->ctl, s->t->config.start_timeout_ms,
			&started, &sender, e);
		if (r == 0 && sender != s->pids[i])
			r = err_set(e, -EPROTO,
				"process %d answered in place of the VMM, %d",
				(int)sender, (int)s->pids[i]);
		if (r == 0 && started.setup_ns > slowest_ns)
			slowest_ns = started.setup_ns;
		if (r == 0)
			r = vm_apply_limits(s->t, s->vms[i], e);
	}
	if (r == 0) {
		fault_point("spawn.started");
		r = made(s, e);
	}
	if (r < 0)
		return r;
	fault_point("spawn.made");
	tree_sync_soon(s->t);
	log_info(
		"commit %.12s: %u VM%s in %llu us, %u from the pool; the slowest ran after %llu us",
		s->id, s->n_vms, s->n_vms == 1 ? "" : "s",
		(unsigned long long)((io_now_ns() - began_ns) / 1000), s->n_pooled,
		(unsigned long long)(slowest_ns / 1000));
	return 0;
}

/* What must be known and there before anything is made. */
static int
prepare(struct spawn *s, struct store *store, const char *name, struct err *e)
{
	struct tree *t = s->t;
	struct store_manifest *m = NULL;
	int r;

	s->kvm = open(t->config.kvm_path, O_RDWR | O_CLOEXEC);
	if (s->kvm < 0)
		return err_sys(e, -errno, "%s (`pando doctor` says what to do)",
			t->config.kvm_path);
	r = store_load(store, name, &m, e);
	if (r == 0) {
		memcpy(s->id, m->id, sizeof(s->id));
		r = commit_use_begin(s->commits, &s->use, s->id, e);
	}
	if (r == 0)
		r = commit_config_read(m, &s->row, e);
	if (r == 0)
		r = host_can_hold(s->row.vcpus, s->row.mem_mib, e);
	if (r == 0)
		r = materialized_get(s->commits, store, m,
			MATERIALIZED_SYNC_LATER | (s->q->full ? MATERIALIZED_FULL : 0), s->p,
			&s->materialized, e);
	store_manifest_free(m);
	if (r < 0)
		return r;
	s->row.state = VM_STARTING;
	s->row.created_ms = io_wall_ms();
	s->row.next_segment = has_changes(s) ? 2 : 1;
	s->row.labels = s->q->labels;
	memcpy(s->row.commit, s->id, sizeof(s->row.commit));
	memcpy(s->row.image, s->id, sizeof(s->row.image));
	memcpy(s->row.origin, s->id, sizeof(s->row.origin));
	memcpy(s->row.base_path, s->materialized.disk_path, sizeof(s->row.base_path));
	/* Of another host, or gone: `start` then takes the image of that name. */
	if (s->row.kernel_path[0] && access(s->row.kernel_path, F_OK) < 0)
		s->row.kernel_path[0] = '\0';
	return 0;
}

static int
spawn(struct spawn *s, const char *name, struct json_out *out, struct err *e)
{
	struct tree *t = s->t;
	uint64_t began_ns = io_now_ns();
	struct store *store;
	int r = commits_store(s->commits, &store, e);

	if (r < 0)
		return r;
	store_hold(store);
	r = prepare(s, store, name, e);
	if (r == 0) {
		pthread_mutex_lock(&t->lock);
		r = enter(s, store, e);
		pthread_mutex_unlock(&t->lock);
	}
	store_release(store);
	commit_use_end(s->commits, &s->use); /* its VMs' rows are there, or none comes */
	if (r < 0)
		return r;
	fault_point("spawn.entered");
	say(s->p, "starting %u VM%s of commit %.12s", s->n_vms, s->n_vms == 1 ? "" : "s",
		s->id);
	r = make(s, e);
	if (r < 0)
		err_wrap(e, r, "running commit %.12s", s->id);
	if (r == 0 && s->q->wait) {
		say(s->p, "%u VM%s run%s; waiting for %s agent%s", s->n_vms,
			s->n_vms == 1 ? "" : "s", s->n_vms == 1 ? "s" : "",
			s->n_vms == 1 ? "its" : "their", s->n_vms == 1 ? "" : "s");
		r = vms_wait_agents(t, s->vms, s->n_vms, "VMs", s->p, e);
	}
	if (r == 0)
		r = check_not_gone(s->p, "VMs of a commit", e);
	if (r < 0) {
		if (e)
			log_info("commit %.12s: not run: %s", s->id, e->msg);
		vms_undo(t, s->vms, s->n_vms);
		return r;
	}
	pthread_mutex_lock(&t->lock);
	json_out_object(out, NULL);
	json_out_str(out, "commit", s->id);
	json_out_array(out, "vms");
	for (unsigned i = 0; i < s->n_vms; i++)
		vm_json(t, s->vms[i], NULL, out, NULL, NULL);
	for (unsigned i = 0; i < s->n_vms; i++)
		tell_made(s->p, s->vms[i]);
	json_out_end_array(out);
	json_out_u64(out, "pooled", s->n_pooled);
	json_out_u64(out, "took_us", (io_now_ns() - began_ns) / 1000);
	json_out_end_object(out);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

int
commits_run(struct commits *c, const char *name, const struct branch_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct spawn *s = calloc(1, sizeof(*s));
	struct tree *t = c->tree;
	int r;

	if (!s)
		return err_set(e, -ENOMEM, "out of memory");
	*s = (struct spawn){.commits = c,
		.t = t,
		.q = q,
		.p = p,
		.materialized = MATERIALIZED_IMAGE_INIT,
		.kvm = -1};
	s->vms = calloc(q->count, sizeof(struct vm *));
	s->pids = calloc(q->count, sizeof(pid_t));
	s->pid_starts = calloc(q->count, sizeof(uint64_t));
	r = s->vms && s->pids && s->pid_starts ? spawn(s, name, out, e)
					       : err_set(e, -ENOMEM, "out of memory");
	pthread_mutex_lock(&t->lock);
	vms_release(s->vms, s->n_vms);
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	materialized_release(c, &s->materialized);
	materialized_trim(c);
	cleanup_close_fn(&s->kvm);
	free(s->vms);
	free(s->pids);
	free(s->pid_starts);
	free(s);
	return r;
}
