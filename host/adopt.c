/*
 * What the next pandod does with what the last one left. VMs that run are adopted through their
 * control sockets; VMs that ended meanwhile become failed; what was half-made is removed.
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
#include "host/tree_priv.h"

#define ADOPT_TIMEOUT_MS 5000

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
 * Connects to <home>/vms/<id>/control.sock and asks who is there. The process is the one that sent the
 * answer, by the kernel's word; the socket's other end stays open, so it lives and its number
 * is its own.
 */
static int
meet(struct tree *t, const char *id, struct vmmctl **ret_ctl, int *ret_pidfd, pid_t *ret_pid,
	struct vmm_stats_answer *ret_stats, struct err *e)
{
	cleanup_vmmctl struct vmmctl *ctl = NULL;
	cleanup_close int pidfd = -1;
	char path[PATHS_MAX];
	int fd, r;

	r = paths_format(path, sizeof(path), e, "%s/vms/%s/control.sock", t->config.home, id);
	if (r == 0)
		r = io_unix_connect(path, SOCK_SEQPACKET, &fd, e);
	if (r == 0)
		r = vmmctl_create(fd, &ctl, e);
	if (r == 0)
		r = vmmctl_stats(ctl, ADOPT_TIMEOUT_MS, false, ret_stats, ret_pid, e);
	if (r < 0) {
		/* Nobody's VM, and about to be removed: one that is not alive yet will find this. */
		if (ctl)
			vmmctl_quit(ctl, NULL);
		return r;
	}
	pidfd = (int)syscall(SYS_pidfd_open, *ret_pid, 0);
	if (pidfd < 0)
		return err_sys(e, -errno, "pidfd_open %d", (int)*ret_pid);
	r = vmmctl_drain(ctl, true, e);
	if (r == 0)
		r = vmmctl_set_pidfd(ctl, pidfd);
	if (r < 0)
		return r;
	*ret_ctl = TAKE_PTR(ctl);
	*ret_pidfd = TAKE_FD(pidfd);
	return 0;
}

static int
adopt(struct tree *t, struct vm *vm, struct err *e)
{
	struct vmm_stats_answer stats;
	struct err why = {0};
	uint64_t start;
	pid_t pid, ppid;
	int r;

	r = meet(t, vm->row.id, &vm->ctl, &vm->pidfd, &pid, &stats, &why);
	if (r == 0) {
		r = process_look(pid, &ppid, &start);
		if (r == 0 && (pid != vm->row.pid || start != vm->row.pid_start)) {
			r = err_set(&why, -EPROTO,
				"process %d answers on its control socket, and it was process %lld",
				(int)pid, (long long)vm->row.pid);
			process_end(vm->pidfd);
		}
	} else if (vm->row.pid > 0 &&
		process_open((pid_t)vm->row.pid, vm->row.pid_start, &vm->pidfd) == 0) {
		/* It lives and cannot be spoken to: without pandod it can do nothing useful. */
		process_end(vm->pidfd);
	}
	if (r < 0) {
		vmmctl_free(vm->ctl);
		vm->ctl = NULL;
		cleanup_close_fn(&vm->pidfd);
		vm->pidfd = -1;
		vm->dead = true;
		vm->row.state = VM_FAILED;
		vm->row.pid = 0;
		vm->row.pid_start = 0;
		if (r == -ECONNREFUSED || r == -ENOENT)
			snprintf(vm->row.reason, sizeof(vm->row.reason),
				"its VMM ended while no pandod was running");
		else
			snprintf(vm->row.reason, sizeof(vm->row.reason),
				"its VMM could not be taken over by a new pandod: %.300s", why.msg);
		log_info("vm %s (%s): failed: %s", vm->row.id, vm_name(vm), vm->row.reason);
		return db_update(t->db, &vm->row, e);
	}
	if (stats.paused == 1)
		vm->row.state = VM_PAUSED;
	else if (vm->row.state == VM_PAUSED)
		vm->row.state = vm->row.answered ? VM_RUNNING : VM_STARTING;
	r = tree_watch(t, vm, e);
	if (r == 0)
		r = db_update(t->db, &vm->row, e);
	log_info("vm %s (%s): adopted, pid %d, %s", vm->row.id, vm_name(vm), (int)pid,
		vm_state_name(vm->row.state));
	return r;
}

/* Ends whoever listens in a folder that belongs to no VM. */
static void
end_stray(struct tree *t, const char *id)
{
	struct vmmctl *ctl = NULL;
	struct vmm_stats_answer stats;
	int pidfd = -1;
	pid_t pid;
	struct err e;

	if (meet(t, id, &ctl, &pidfd, &pid, &stats, NULL) == 0) {
		log_info("vm %s: half-made, its process %d is ended", id, (int)pid);
		process_end(pidfd);
		vmmctl_free(ctl);
		close(pidfd);
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
		log_info("vm %s (%s): half-made when pandod ended; removed", vm->row.id, vm_name(vm));
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

		if (len <= VM_ID_LEN + 1 || len >= sizeof(name) || d->d_name[VM_ID_LEN] != '.' ||
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
	for (unsigned i = 0; r == 0 && i < t->n_vms; i++) {
		if (vm_state_lives(t->vms[i]->row.state))
			r = adopt(t, t->vms[i], e);
		else
			t->vms[i]->dead = true;
	}
	return r;
}
