/*
 * What the next pandod does with what the last one left. VMs that run are adopted through
 * their control sockets; VMs that ended meanwhile become failed; what was half-made is
 * removed.
 *
 * The start waits for nobody. The health monitor's helpers (tree_watch.c) ask each VMM who it is;
 * one that does not say, because it is stopped, say, or because this pandod has no
 * descriptor left, is asked again, for as long as it takes. Only a process that is proven
 * to be gone makes a VM `failed`. Until its process is held by a pidfd, a VM is claimed,
 * so that nobody deletes a row whose process lives on; from then on it can be ended, and
 * whatever needs its VMM is refused.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/merge.h"
#include "host/vm/reset_row.h"
#include "host/vm/tree_priv.h"

#define NS_PER_MS UINT64_C(1000000)

/* One try. The next one's answer comes after this one's, so that a slow VMM is not made
 * slower by trying again. */
#define ADOPT_ANSWER_MS 5000
/* Between two tries: doubled with each, from the first to the second. */
#define ADOPT_PAUSE_MS 50
#define ADOPT_PAUSE_MAX_MS 5000
/* How long the start waits for the first tries, so that what sounds is adopted when the
 * first call comes. */
#define ADOPT_START_MS 2000
/* A process that no longer listens and is still there is ending, or closed its socket. */
#define ENDING_MS 2000
#define STRAY_TRIES 5

static const char op_adopting[] = "being taken over by this pandod";

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

/* A connection on which an answer is waited for. */
struct meeting {
	struct vmmctl *ctl; /* borrowed */
	struct meeting *next;
};

static int
meeting_begin(struct tree *t, struct meeting *m, struct err *e)
{
	int r = 0;

	pthread_mutex_lock(&t->lock);
	if (t->stopping) {
		r = err_set(e, -ECANCELED, "pandod is stopping");
	} else {
		m->next = t->meetings;
		t->meetings = m;
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}

/* True: the wait was cut. */
static bool
meeting_end(struct tree *t, struct meeting *m)
{
	struct meeting **at = &t->meetings;
	bool stopping;

	pthread_mutex_lock(&t->lock);
	while (*at != m)
		at = &(*at)->next;
	*at = m->next;
	stopping = t->stopping;
	pthread_mutex_unlock(&t->lock);
	return stopping;
}

void
adopt_cancel(struct tree *t)
{
	for (struct meeting *m = t->meetings; m; m = m->next)
		shutdown(vmmctl_fd(m->ctl), SHUT_RDWR);
}

/*
 * Connects to <home>/vms/<id>/control.sock and asks who is there. The process is the one
 * that sent the answer, by the kernel's word; the socket's other end stays open, so it
 * lives and its number is its own. *ret_ctl is the caller's once there is a connection,
 * also on failure.
 */
static int
meet(struct tree *t, const char *id, struct vmmctl **ret_ctl, int *ret_pidfd,
	pid_t *ret_pid, struct vmm_stats_answer *ret_stats, struct err *e)
{
	cleanup_close int pidfd = -1;
	struct meeting m = {0};
	char path[PATHS_MAX];
	int fd, r;

	r = paths_format(
		path, sizeof(path), e, "%s/vms/%s/control.sock", t->config.home, id);
	/* A VMM that takes no connections lets their queue fill. */
	if (r == 0)
		r = io_unix_connect_now(path, SOCK_SEQPACKET, &fd, e);
	if (r == 0 && !descriptors_left(fd, 2)) {
		close(fd);
		return err_sys(e, -EMFILE, "a connection to its VMM");
	}
	if (r == 0)
		r = vmmctl_create(fd, ret_ctl, e);
	m.ctl = *ret_ctl;
	if (r == 0)
		r = meeting_begin(t, &m, e);
	if (r < 0)
		return r;
	r = vmmctl_stats(m.ctl, ADOPT_ANSWER_MS, false, ret_stats, ret_pid, e);
	if (meeting_end(t, &m) && r < 0)
		r = err_set(e, -ECANCELED, "pandod is stopping");
	if (r < 0)
		return r;
	pidfd = (int)syscall(SYS_pidfd_open, *ret_pid, 0);
	if (pidfd < 0)
		return err_sys(e, -errno, "pidfd_open %d", (int)*ret_pid);
	r = vmmctl_drain(m.ctl, true, e);
	if (r == 0 && (r = vmmctl_set_pidfd(m.ctl, pidfd)) < 0)
		err_sys(e, r, "a descriptor for process %d", (int)*ret_pid);
	if (r == 0)
		*ret_pidfd = TAKE_FD(pidfd);
	return r;
}

/* What is known of a VM's process after a try. */
struct found {
	struct vmmctl *ctl; /* owned; NULL: it did not say who it is */
	int pidfd;	    /* owned; -1: none, or it is held already */
	bool gone;	    /* there is no process any more, for certain */
	struct vmm_stats_answer stats;
};

static void
found_drop(struct found *f)
{
	vmmctl_free(f->ctl);
	cleanup_close_fn(&f->pidfd);
	f->ctl = NULL;
	f->pidfd = -1;
}

/* Meets who listens; 0: it is the process that the row names. */
static int
meet_expected(struct tree *t, const struct vm_row *row, struct found *f, struct err *e)
{
	uint64_t start;
	pid_t pid, ppid;
	int r = meet(t, row->id, &f->ctl, &f->pidfd, &pid, &f->stats, e);

	/* Started, and the pandod that did it was killed before it noted the process. */
	if (r < 0 && row->pid <= 0 && f->ctl)
		vmmctl_quit(f->ctl, NULL);
	if (r < 0)
		return r;
	r = process_look(pid, &ppid, &start);
	if (r < 0)
		return err_sys(e, r, "process %d", (int)pid);
	if (pid == row->pid && start == row->pid_start)
		return 0;
	process_end(f->pidfd);
	return err_set(e, -EPROTO,
		"process %d answers on its control socket, and it was process %lld",
		(int)pid, (long long)row->pid);
}

/* row: a copy. held: its process is held by a pidfd already. 0, or why it is not met. */
static int
find_process(struct tree *t, const struct vm_row *row, bool held, struct found *f,
	struct err *e)
{
	struct pollfd p;
	int r = meet_expected(t, row, f, e), known;

	if (r == 0)
		return 0;
	found_drop(f);
	if (held || r == -ECANCELED)
		return r;
	if (row->pid <= 0) {
		/* It was never noted. Nobody listens, or who does was told to quit. */
		f->gone = r == -ECONNREFUSED || r == -ENOENT || r == -ESRCH ||
			  r == -EPROTO || r == -ETIMEDOUT;
		return r;
	}
	known = process_open((pid_t)row->pid, row->pid_start, &f->pidfd);
	f->gone = known == -ESRCH;
	if (known == 0 && !descriptors_left(f->pidfd, 0)) {
		found_drop(f);
		return r;
	}
	if (known < 0)
		return r;
	/* One that was killed takes connections until its last thread is gone. */
	p = (struct pollfd){.fd = f->pidfd, .events = POLLIN};
	if ((r == -ECONNREFUSED || r == -ESRCH) && poll(&p, 1, ENDING_MS) > 0) {
		f->gone = true;
	} else if (r == -ECONNREFUSED || r == -EPROTO) {
		/* It lives and cannot be spoken to, and never will be again. */
		process_end(f->pidfd);
		f->gone = true;
		if (r == -ECONNREFUSED)
			r = err_set(e, -EPROTO, "it has closed its control socket");
	}
	if (f->gone)
		found_drop(f);
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

/* There is no process any more. Called with the lock. */
static void
bury(struct tree *t, struct vm *vm, int r, const struct err *why)
{
	bool rebooting = vm_was_rebooting(vm);
	struct err e;

	if (reset_row_settle(t, vm, NULL, &e) < 0)
		log_err("vm %s: %s", vm->row.id, e.msg);
	vm->unmet = false;
	vm->dead = true;
	vm->row.state = VM_FAILED;
	vm->row.pid = 0;
	vm->row.pid_start = 0;
	if (rebooting)
		; /* the reason says so, and it is booted */
	else if (r == -EPROTO)
		snprintf(vm->row.reason, sizeof(vm->row.reason),
			"its VMM could not be taken over by a new pandod: %.300s",
			why->msg);
	else
		snprintf(vm->row.reason, sizeof(vm->row.reason),
			"its VMM ended while no pandod was running");
	log_info("vm %s (%s): failed: %s", vm->row.id, vm_name(vm), vm->row.reason);
	if (db_update(t->db, &vm->row, &e) < 0)
		log_err("vm %s: %s", vm->row.id, e.msg);
	if (t->finishes_reboots)
		vm_finish_reboot(t, vm);
}

/* It said who it is. Called with the lock, which is given up meanwhile. */
static int
take_over(struct tree *t, struct vm *vm, struct found *f, struct err *e)
{
	const uint32_t resets = f->stats.tracks >> VMM_RESETS_SHIFT;
	bool held = vm->pidfd >= 0;
	int r;

	vm->ctl = TAKE_PTR(f->ctl);
	if (held) {
		r = tree_watch_control(t, vm, e);
	} else {
		vm->pidfd = TAKE_FD(f->pidfd);
		r = tree_watch(t, vm, e);
	}
	if (r < 0) {
		f->ctl = TAKE_PTR(vm->ctl);
		if (!held)
			f->pidfd = TAKE_FD(vm->pidfd);
		return r;
	}
	vm->unmet = false;
	if (reset_row_settle(t, vm, &resets, e) < 0)
		log_err("vm %s: %s", vm->row.id, e->msg);
	if (vm->row.fork_mib && !(f->stats.tracks & VMM_HAS_FORK_POINT))
		vm->row.fork_mib = 0;
	merge_wanted(t, vm); /* the last pandod may have been at it */
	finish_resize(t, vm);
	if (vm->dead) /* meanwhile; its state says why */
		return 0;
	vm->row.reason[0] = '\0';
	if (f->stats.paused == 1)
		vm->row.state = VM_PAUSED;
	else if (vm->row.state == VM_PAUSED)
		vm->row.state = vm->row.answered ? VM_RUNNING : VM_STARTING;
	vm_note_disk(t, vm); /* said before its statistics */
	vm_count_pause(vm);
	if (!held)
		vm_enter_scope(t, vm, true);
	if (db_update(t->db, &vm->row, e) < 0)
		log_err("vm %s: %s", vm->row.id, e->msg);
	log_info("vm %s (%s): adopted, pid %lld, %s", vm->row.id, vm_name(vm),
		(long long)vm->row.pid, vm_state_name(vm->row.state));
	return 0;
}

/* Its process is there and does not say who it is. Called with the lock. */
static void
hold(struct tree *t, struct vm *vm, struct found *f, const struct err *why)
{
	struct err e;

	if (f->pidfd < 0)
		return;
	vm->pidfd = TAKE_FD(f->pidfd);
	if (tree_watch(t, vm, &e) < 0) {
		f->pidfd = TAKE_FD(vm->pidfd);
		log_warn("vm %s (%s): %s", vm->row.id, vm_name(vm), e.msg);
		return;
	}
	vm_enter_scope(t, vm, true);
	log_warn("vm %s (%s): its process %lld does not answer yet (%s)", vm->row.id,
		vm_name(vm), (long long)vm->row.pid, why->msg);
}

bool
adopt_due(const struct vm *vm)
{
	return vm->unmet && !vm->dead && !vm->tended && !vm->kill_reason[0] &&
	       !vm->closed_ns && (!vm->op || vm->op == op_adopting);
}

void
adopt_try(struct tree *t, struct vm *vm)
{
	struct found f = {.pidfd = -1, .stats.paused = vm->row.state == VM_PAUSED};
	bool held = vm->pidfd >= 0;
	struct vm_row row = vm->row;
	struct err why = {0};
	uint64_t pause_ms;
	int r;

	vm->op = op_adopting;
	vm->meets++;
	pthread_mutex_unlock(&t->lock);
	r = find_process(t, &row, held, &f, &why);
	pthread_mutex_lock(&t->lock);
	if (vm->dead || r == -ECANCELED) {
		; /* its end came meanwhile, or pandod's */
	} else if (r == 0) {
		r = take_over(t, vm, &f, &why);
		if (r < 0)
			log_warn("vm %s (%s): %s", vm->row.id, vm_name(vm), why.msg);
	} else if (f.gone) {
		bury(t, vm, r, &why);
	} else if (!held) {
		hold(t, vm, &f, &why);
		if (vm->pidfd < 0 && vm->meets == 1)
			log_warn(
				"vm %s (%s): it cannot be told whether its process %lld lives; trying again: %s",
				vm->row.id, vm_name(vm), (long long)vm->row.pid, why.msg);
	} else if (r == -ECONNREFUSED || r == -EPROTO) {
		/* The health monitor ends it, if it does not end by itself. */
		vm->closed_ns = io_now_ns();
	}
	pause_ms = ADOPT_PAUSE_MS << (vm->meets > 7 ? 7 : vm->meets);
	if (pause_ms > ADOPT_PAUSE_MAX_MS)
		pause_ms = ADOPT_PAUSE_MAX_MS;
	vm->meet_at_ns = io_now_ns() + pause_ms * NS_PER_MS;
	/* Nobody may take a VM for dead whose process nobody holds. */
	vm->op = vm->unmet && vm->pidfd < 0 && !vm->dead ? op_adopting : NULL;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	found_drop(&f);
	pthread_mutex_lock(&t->lock);
}

/* Ends whoever listens in a folder that belongs to no VM, and removes it. One that is
 * just coming to life may let the first connection go. */
void
stray_try(struct tree *t, struct stray *s)
{
	struct vmm_stats_answer stats;
	bool told = false, again = true;
	struct err e;
	int r = 0;

	pthread_mutex_unlock(&t->lock);
	for (int i = 0; i < STRAY_TRIES && again; i++) {
		struct vmmctl *ctl = NULL;
		int pidfd = -1;
		pid_t pid;

		r = meet(t, s->id, &ctl, &pidfd, &pid, &stats, &e);
		if (r == 0) {
			log_info("vm %s: in no table, its process %d is ended", s->id,
				(int)pid);
			process_end(pidfd);
			close(pidfd);
		} else if (ctl && r != -ECANCELED) {
			/* One that is not alive yet will find this. */
			told = vmmctl_quit(ctl, NULL) == 0 || told;
			log_info(
				"vm %s: in no table, and told to quit: %s", s->id, e.msg);
		}
		again = ctl && r != 0 && r != -ETIMEDOUT && r != -ECANCELED;
		vmmctl_free(ctl);
	}
	/* The folder is the only way to it: kept, until nobody can be there. */
	again = r != 0 && r != -ECONNREFUSED && r != -ENOENT && !told;
	if (!again && launch_remove_files(t->config.home, s->id, &e) < 0)
		log_warn("vm %s: %s", s->id, e.msg);
	pthread_mutex_lock(&t->lock);
	if (again && ++s->tries == 1 && r != -ECANCELED)
		log_warn("vm %s: in no table, and not ended yet: %s", s->id, e.msg);
	s->at_ns = again ? io_now_ns() + ADOPT_PAUSE_MAX_MS * NS_PER_MS : UINT64_MAX;
}

/* Whether anything was not asked once yet. With the lock. */
static bool
is_first_round(const struct tree *t)
{
	for (unsigned i = 0; i < t->n_vms; i++) {
		const struct vm *vm = t->vms[i];

		if (vm->unmet && vm->meets <= 1 && (vm->tended || !vm->meets))
			return true;
	}
	for (size_t i = 0; i < t->n_strays; i++)
		if (!t->strays[i].tries && t->strays[i].at_ns != UINT64_MAX)
			return true;
	return false;
}

void
adopt_wait(struct tree *t)
{
	uint64_t end_ns = io_now_ns() + ADOPT_START_MS * NS_PER_MS;
	struct timespec until = {.tv_sec = (time_t)(end_ns / 1000000000u),
		.tv_nsec = (long)(end_ns % 1000000000u)};

	pthread_mutex_lock(&t->lock);
	while (is_first_round(t))
		if (pthread_cond_timedwait(&t->changed, &t->lock, &until) == ETIMEDOUT)
			break;
	pthread_mutex_unlock(&t->lock);
}

static int
add_stray(struct tree *t, const char *id, struct err *e)
{
	struct stray *more = reallocarray(t->strays, t->n_strays + 1, sizeof(*more));

	if (!more)
		return err_set(e, -ENOMEM, "out of memory");
	t->strays = more;
	more[t->n_strays] = (struct stray){0};
	memcpy(more[t->n_strays++].id, id, VM_ID_LEN + 1);
	return 0;
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
		if (!known && vm_spec_is_id(d->d_name))
			r = add_stray(t, d->d_name, e);
		if (r < 0)
			return r;
	}
	return 0;
}

/* <12 digits>.<n>.data or .index below segments/: its name without that; false: none. */
static bool
segment_of(const char *file, char dst[static DB_SEGMENT_MAX])
{
	const char *end = strrchr(file, '.');
	size_t len = end ? (size_t)(end - file) : 0;

	if (len <= VM_ID_LEN + 1 || len >= DB_SEGMENT_MAX || file[VM_ID_LEN] != '.' ||
		strspn(file, "0123456789abcdef") != VM_ID_LEN ||
		(strcmp(end, ".data") != 0 && strcmp(end, ".index") != 0))
		return false;
	memcpy(dst, file, len);
	dst[len] = '\0';
	return true;
}

static bool
segment_file(const struct tree *t, const char *id, unsigned n, struct stat *ret)
{
	char path[PATHS_MAX];

	return paths_format(path, sizeof(path), NULL, "%s/segments/%s.%u.index",
		       t->config.home, id, n) == 0 &&
	       stat(path, ret) == 0;
}

/*
 * A power cut can take the database back to before a VM was branched or committed, and
 * leave the segment that it went on in: what its guest has flushed since lies there, and
 * only there. Segments of a VM have ascending numbers, and each follows the one before. So
 * those above all that the database knows, up to the last that was written, are the end of
 * its chain. (One that was made for a fork that never came is empty, and changes nothing.) But what
 * follows a reset that the database does not know any more is of another disk: the VM is what it was
 * before.
 */
static int
find_lost_segments(struct tree *t, struct vm *vm, unsigned last, struct err *e)
{
	char name[DB_SEGMENT_MAX];
	struct stat st;
	int r = 0;

	for (; vm->row.next_segment <= last && r == 0; vm->row.next_segment++) {
		if (reset_row_is_at(t, vm->row.id, vm->row.next_segment))
			break;
		if (!segment_file(t, vm->row.id, vm->row.next_segment, &st))
			continue;
		snprintf(name, sizeof(name), "%s.%u", vm->row.id, vm->row.next_segment);
		log_warn(
			"segment %s: vm \"%s\" wrote it, and the database did not know that; it is the end of its disk again",
			name, vm_name(vm));
		r = db_chain_append(t->db, vm->row.id, name, e);
	}
	return r < 0 ? r : db_update(t->db, &vm->row, e);
}

static struct vm *
by_id(struct tree *t, const char *id)
{
	for (unsigned i = 0; i < t->n_vms; i++)
		if (memcmp(t->vms[i]->row.id, id, VM_ID_LEN) == 0)
			return t->vms[i];
	return NULL;
}

static int
find_all_lost(struct tree *t, DIR *dir, struct err *e)
{
	char name[DB_SEGMENT_MAX];
	struct dirent *d;
	int r = 0;

	while (r == 0 && (d = readdir(dir))) {
		unsigned long n;
		struct stat st;
		struct vm *vm;

		if (!segment_of(d->d_name, name))
			continue;
		vm = by_id(t, name);
		n = strtoul(name + VM_ID_LEN + 1, NULL, 10);
		if (vm && n >= vm->row.next_segment && n < UINT32_MAX &&
			segment_file(t, vm->row.id, (unsigned)n, &st) && st.st_size)
			r = find_lost_segments(t, vm, (unsigned)n, e);
	}
	rewinddir(dir);
	return r;
}

static int
clean_segments(struct tree *t, struct err *e)
{
	char path[PATHS_MAX], name[DB_SEGMENT_MAX];
	cleanup_closedir DIR *dir = NULL;
	bool synced = false;
	struct dirent *d;
	int r = paths_format(path, sizeof(path), e, "%s/segments", t->config.home);

	if (r < 0)
		return r;
	dir = opendir(path);
	if (!dir)
		return err_sys(e, -errno, "%.300s", path);
	r = find_all_lost(t, dir, e);
	if (r == 0)
		r = tree_sweep(t, e);
	if (r == 0)
		r = tree_sweep_bases(t, true, e);
	while (r == 0 && (d = readdir(dir))) {
		if (!segment_of(d->d_name, name))
			continue;
		r = db_segment_known(t->db, name, e);
		if (r != 0) {
			r = r < 0 ? r : 0;
			continue;
		}
		if (!synced)
			r = tree_sync_locked(t, e);
		if (r < 0)
			break;
		synced = true;
		log_info("segment %s: belongs to no VM; removed", name);
		launch_remove_segment(t->config.home, name);
	}
	return r;
}

int
tree_adopt(struct tree *t, struct err *e)
{
	int r = db_load(t->db, load_row, t, e);
	struct rlimit l;

	if (r < 0)
		return r;
	/* Each has some descriptors for a moment; of few, most are not theirs. */
	t->may_help = HELPERS_MAX;
	if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur / 16 < HELPERS_MAX)
		t->may_help = l.rlim_cur < 32 ? 2 : (unsigned)(l.rlim_cur / 16);
	link_parents(t);
	r = clean_vms(t, e);
	if (r == 0)
		r = reset_row_load(t, e);
	if (r == 0)
		r = clean_segments(t, e);
	for (unsigned i = 0; r == 0 && i < t->n_vms; i++) {
		struct vm *vm = t->vms[i];

		vm->unmet = vm_state_lives(vm->row.state);
		vm->dead = !vm->unmet;
		vm->op = vm->unmet ? op_adopting : NULL;
	}
	return r;
}
