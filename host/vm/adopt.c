/*
 * What the next pandod does with what the last one left. VMs that run are adopted through
 * their control sockets; VMs that ended meanwhile become failed; what was half-made is
 * removed.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/tree_priv.h"

#define ADOPT_TIMEOUT_MS 15000
#define STRAY_TIMEOUT_MS 5000
#define STRAY_TRIES 5
#define ADOPTERS_MAX 32

static int
load_row(void *ctx, const struct vm_row *row, struct err *e)
{
	struct tree *t = ctx;
	struct vm *vm = vm_new(t);
	int r;

	if (!vm)
		return err_set(e, -ENOMEM, "out of memory");
	vm->row = *row;
	r = tree_list_vm(t, vm, e);
	vm_unref(vm);
	return r;
}

static void
link_parents(struct tree *t)
{
	for (unsigned i = 0; i < t->n_vms; i++)
		for (unsigned j = 0; j < i && t->vms[i]->row.parent[0]; j++)
			if (strcmp(t->vms[i]->row.parent, t->vms[j]->row.id) == 0)
				t->vms[i]->parent_handle = t->vms[j]->handle;
}

/*
 * Connects to <home>/vms/<id>/control.sock and asks who is there. The process is the one
 * that sent the answer, by the kernel's word; the socket's other end stays open, so it
 * lives and its number is its own. *ret_ctl is the caller's once there is a connection,
 * also on failure.
 */
static int
meet(struct tree *t, const char *id, int timeout_ms, struct vmmctl **ret_ctl,
	int *ret_pidfd, pid_t *ret_pid, struct vmm_stats_answer *ret_stats, struct err *e)
{
	cleanup_close int pidfd = -1;
	char path[PATHS_MAX];
	int fd, r;

	r = paths_format(
		path, sizeof(path), e, "%s/vms/%s/control.sock", t->config.home, id);
	if (r == 0)
		r = io_unix_connect(path, SOCK_SEQPACKET, &fd, e);
	if (r == 0)
		r = vmmctl_create(fd, ret_ctl, e);
	if (r == 0)
		r = vmmctl_stats(*ret_ctl, timeout_ms, false, ret_stats, ret_pid, e);
	if (r < 0)
		return r;
	pidfd = (int)syscall(SYS_pidfd_open, *ret_pid, 0);
	if (pidfd < 0)
		return err_sys(e, -errno, "pidfd_open %d", (int)*ret_pid);
	r = vmmctl_drain(*ret_ctl, true, e);
	if (r == 0)
		r = vmmctl_set_pidfd(*ret_ctl, pidfd);
	if (r < 0)
		return r;
	*ret_pidfd = TAKE_FD(pidfd);
	return 0;
}

/* Finds the VM's process: vm->ctl and vm->pidfd, or why not. */
static int
find_process(
	struct tree *t, struct vm *vm, struct vmm_stats_answer *ret_stats, struct err *e)
{
	uint64_t start;
	pid_t pid, ppid;
	int r = meet(t, vm->row.id, ADOPT_TIMEOUT_MS, &vm->ctl, &vm->pidfd, &pid,
		ret_stats, e);

	if (r == 0) {
		r = process_look(pid, &ppid, &start);
		if (r == 0 && pid == vm->row.pid && start == vm->row.pid_start)
			return 0;
		r = err_set(e, -EPROTO,
			"process %d answers on its control socket, and it was process %lld",
			(int)pid, (long long)vm->row.pid);
		process_end(vm->pidfd);
		return r;
	}
	/* Started, and the pandod that did it was killed before it noted the process. */
	if (vm->row.pid <= 0 && vm->ctl)
		vmmctl_quit(vm->ctl, NULL);
	if (vm->row.pid <= 0 ||
		process_open((pid_t)vm->row.pid, vm->row.pid_start, &vm->pidfd) < 0)
		return r;
	if (r == -ETIMEDOUT) {
		/* Slow, or stopped by somebody: no reason to end it. */
		log_warn("vm %s (%s): its process %lld does not answer yet", vm->row.id,
			vm_name(vm), (long long)vm->row.pid);
		r = vmmctl_set_pidfd(vm->ctl, vm->pidfd);
		return r < 0 ? err_sys(e, r, "a descriptor for process %lld",
				       (long long)vm->row.pid)
			     : 0;
	}
	/* It lives and cannot be spoken to, and never will be again. */
	process_end(vm->pidfd);
	return r;
}

/* A pandod was killed between asking for a larger disk and noting it. Called with the
 * lock, which is given up meanwhile. */
static void
finish_resize(struct tree *t, struct vm *vm)
{
	uint64_t mib = vm->row.resize_mib;
	struct err e;
	int r;

	if (mib <= vm->row.disk_mib)
		return;
	pthread_mutex_unlock(&t->lock);
	r = vmmctl_resize(vm->ctl, mib, t->config.answer_timeout_ms, &e);
	pthread_mutex_lock(&t->lock);
	/* What remains for the filesystem is told by resize_mib, which stays. */
	if (r == 0)
		vm->row.disk_mib = mib;
	else
		log_warn("vm %s (%s): its disk has %llu or %llu MiB: %s", vm->row.id,
			vm_name(vm), (unsigned long long)vm->row.disk_mib,
			(unsigned long long)mib, e.msg);
}

static int
adopt(struct tree *t, struct vm *vm, struct err *e)
{
	struct vmm_stats_answer stats = {.paused = vm->row.state == VM_PAUSED};
	struct err why = {0};
	int r = find_process(t, vm, &stats, &why);

	pthread_mutex_lock(&t->lock);
	if (r < 0) {
		vmmctl_free(vm->ctl);
		vm->ctl = NULL;
		cleanup_close_fn(&vm->pidfd);
		vm->pidfd = -1;
		vm->dead = true;
		vm->row.state = VM_FAILED;
		vm->row.pid = 0;
		vm->row.pid_start = 0;
		/* One that was killed takes connections until its last thread is gone. */
		if (r == -ECONNREFUSED || r == -ENOENT || r == -ESRCH)
			snprintf(vm->row.reason, sizeof(vm->row.reason),
				"its VMM ended while no pandod was running");
		else
			snprintf(vm->row.reason, sizeof(vm->row.reason),
				"its VMM could not be taken over by a new pandod: %.300s",
				why.msg);
		log_info("vm %s (%s): failed: %s", vm->row.id, vm_name(vm),
			vm->row.reason);
		r = db_update(t->db, &vm->row, e);
		pthread_mutex_unlock(&t->lock);
		return r;
	}
	finish_resize(t, vm);
	if (stats.paused == 1)
		vm->row.state = VM_PAUSED;
	else if (vm->row.state == VM_PAUSED)
		vm->row.state = vm->row.answered ? VM_RUNNING : VM_STARTING;
	vm_count_pause(vm);
	r = tree_watch(t, vm, e);
	if (r == 0) {
		vm_enter_scope(t, vm, true);
		r = db_update(t->db, &vm->row, e);
	}
	log_info("vm %s (%s): adopted, pid %lld, %s", vm->row.id, vm_name(vm),
		(long long)vm->row.pid, vm_state_name(vm->row.state));
	pthread_mutex_unlock(&t->lock);
	return r;
}

/* Guests may keep every CPU busy, and then each answer takes its while: they are asked in
 * parallel. */
struct adopters {
	struct tree *t;
	unsigned next; /* under the tree's lock, as the rest */
	int result;
	struct err why;
};

static void *
adopter_main(void *arg)
{
	struct adopters *a = arg;

	for (;;) {
		struct vm *vm = NULL;
		struct err e;
		int r;

		pthread_mutex_lock(&a->t->lock);
		while (!vm && a->result == 0 && a->next < a->t->n_vms) {
			vm = a->t->vms[a->next++];
			if (!vm_state_lives(vm->row.state)) {
				vm->dead = true;
				vm = NULL;
			}
		}
		pthread_mutex_unlock(&a->t->lock);
		if (!vm)
			return NULL;
		r = adopt(a->t, vm, &e);
		if (r < 0) {
			pthread_mutex_lock(&a->t->lock);
			a->result = r;
			a->why = e;
			pthread_mutex_unlock(&a->t->lock);
		}
	}
}

static int
adopt_all(struct tree *t, struct err *e)
{
	struct adopters a = {.t = t};
	pthread_t threads[ADOPTERS_MAX];
	unsigned n = 0;

	while (n < ADOPTERS_MAX && n + 1 < t->n_vms &&
		pthread_create(&threads[n], NULL, adopter_main, &a) == 0)
		n++;
	adopter_main(&a);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return a.result < 0 ? err_set(e, a.result, "%s", a.why.msg) : 0;
}

/* Ends whoever listens in a folder that belongs to no VM, and removes it. One that is
 * just coming to life may let the first connection go. */
static void
end_stray(struct tree *t, const char *id)
{
	struct vmm_stats_answer stats;
	struct err e;

	for (int i = 0; i < STRAY_TRIES; i++) {
		struct vmmctl *ctl = NULL;
		int pidfd = -1;
		pid_t pid;
		int r = meet(t, id, STRAY_TIMEOUT_MS, &ctl, &pidfd, &pid, &stats, &e);
		bool listens = ctl;

		if (r == 0) {
			log_info("vm %s: in no table, its process %d is ended", id,
				(int)pid);
			process_end(pidfd);
			close(pidfd);
		} else if (ctl) {
			/* One that is not alive yet will find this. */
			vmmctl_quit(ctl, NULL);
			log_info("vm %s: in no table, and told to quit: %s", id, e.msg);
		}
		vmmctl_free(ctl);
		if (r == 0 || r == -ETIMEDOUT || !listens)
			break;
	}
	if (launch_remove_files(t->config.home, id, &e) < 0)
		log_warn("vm %s: %s", id, e.msg);
}

static int
clean_vms(struct tree *t, struct err *e)
{
	char path[PATHS_MAX];
	cleanup_closedir DIR *dir = NULL;
	struct dirent *d;
	int r = paths_format(path, sizeof(path), e, "%s/vms", t->config.home);

	if (r < 0)
		return r;
	/* Half-made rows first; their folders are then strays. */
	for (unsigned i = 0; i < t->n_vms;) {
		struct vm *vm = t->vms[i];

		if (vm->row.made) {
			i++;
			continue;
		}
		log_info(
			"vm %s (%s): half-made or half-deleted when pandod ended; removed",
			vm->row.id, vm_name(vm));
		r = db_delete(t->db, vm->row.id, e);
		if (r < 0)
			return r;
		tree_unlist_vm(t, vm);
	}
	dir = opendir(path);
	if (!dir)
		return err_sys(e, -errno, "%.300s", path);
	while ((d = readdir(dir))) {
		bool known = false;

		for (unsigned i = 0; i < t->n_vms && !known; i++)
			known = strcmp(t->vms[i]->row.id, d->d_name) == 0;
		/* Only what looks like ours is removed. */
		if (!known && request_is_id(d->d_name))
			end_stray(t, d->d_name);
	}
	return 0;
}

static int
clean_segments(struct tree *t, struct err *e)
{
	char path[PATHS_MAX], name[DB_SEGMENT_MAX];
	cleanup_closedir DIR *dir = NULL;
	struct dirent *d;
	int r = tree_sweep(t, e);

	tree_sweep_bases(t, true);
	if (r == 0)
		r = paths_format(path, sizeof(path), e, "%s/segments", t->config.home);
	if (r < 0)
		return r;
	dir = opendir(path);
	if (!dir)
		return err_sys(e, -errno, "%.300s", path);
	while ((d = readdir(dir))) {
		/* <12 digits>.<n>.data or .index */
		const char *end = strrchr(d->d_name, '.');
		size_t len = end ? (size_t)(end - d->d_name) : 0;

		if (len <= VM_ID_LEN + 1 || len >= sizeof(name) ||
			d->d_name[VM_ID_LEN] != '.' ||
			strspn(d->d_name, "0123456789abcdef") != VM_ID_LEN ||
			(strcmp(end, ".data") != 0 && strcmp(end, ".index") != 0))
			continue;
		memcpy(name, d->d_name, len);
		name[len] = '\0';
		r = db_segment_known(t->db, name, e);
		if (r < 0)
			return r;
		if (r == 0) {
			log_info("segment %s: belongs to no VM; removed", name);
			launch_remove_segment(t->config.home, name);
		}
	}
	return 0;
}

int
tree_adopt(struct tree *t, struct err *e)
{
	int r = db_load(t->db, load_row, t, e);

	if (r < 0)
		return r;
	link_parents(t);
	r = clean_vms(t, e);
	if (r == 0)
		r = clean_segments(t, e);
	return r < 0 ? r : adopt_all(t, e);
}
