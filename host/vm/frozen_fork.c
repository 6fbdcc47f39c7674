#include "host/vm/frozen_fork.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/log.h"
#include "common/wire/segment_wire.h"
#include "host/vm/merge.h"
#include "host/vm/merge_plan.h"

void
fork_point_done(struct fork_point *c)
{
	vm_segment_done(&c->own);
	cleanup_close_fn(&c->null);
	c->null = -1;
}

int
fork_point_check(struct tree *t, struct vm *parent, struct err *e)
{
	if (t->stopping)
		return err_set(e, -ECANCELED, "pandod is stopping");
	if (!vm_state_lives(parent->row.state))
		return err_set(e, -EBUSY,
			"vm \"%s\" is %s: only a VM that runs or is paused can be branched or committed, so `pando start` it first",
			vm_name(parent), vm_state_name(parent->row.state));
	if (vm_check_met(parent, e) < 0)
		return -EBUSY;
	if (!parent->ctl || parent->dead || parent->closed_ns)
		return err_set(e, -EBUSY,
			"vm \"%s\" is ending: `pando status` will say why, and then `pando start` boots it again",
			vm_name(parent));
	return 0;
}

int
fork_point_begin(struct fork_point *c, struct vm *parent, struct err *e)
{
	struct tree *t = c->t;
	cleanup_free struct chain_link *links = NULL;
	size_t n_links = 0;
	int r = tree_random(c->generation, sizeof(c->generation), e);

	if (r == 0)
		r = db_chain(t->db, parent->row.id, &links, &n_links, e);
	if (r < 0)
		return r;
	if (n_links == 0)
		return err_set(e, -EINVAL, "state.db: vm \"%s\" has no disk chain",
			vm_name(parent));
	c->null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (c->null < 0)
		return err_sys(e, -errno, "/dev/null");
	memcpy(c->old_segment, links[n_links - 1].segment, DB_SEGMENT_MAX);
	c->parent = parent;
	parent->n_links = n_links + 1;
	return 0;
}

int
fork_point_enter(struct fork_point *c, struct err *e)
{
	struct tree *t = c->t;
	struct vm *parent = c->parent;
	int r;

	snprintf(c->segment, sizeof(c->segment), "%s.%u", parent->row.id,
		parent->row.next_segment);
	/* The files come first: no chain of a VM that stays ever names a segment
	 * that is not there. */
	r = tree_make_segment(t, c->segment, &c->own, e);
	if (r < 0)
		return r;
	fault_point("branch.segment");
	r = db_chain_append(t->db, parent->row.id, c->segment, e);
	if (r < 0)
		return r;
	parent->row.next_segment++;
	return db_update(t->db, &parent->row, e);
}

void
fork_point_undo(struct fork_point *c)
{
	if (c->own.fd[VMM_SEG_DATA] < 0)
		return;
	launch_remove_segment(c->t->config.home, c->segment);
	fork_point_done(c);
}

/*
 * Whether the parent's old segment has as many records as the cut says. It has fewer when
 * it is not the one that the VMM wrote: a pandod that was killed between writing a chain
 * and the fork leaves a last segment that nobody ever writes. The one before it, counted
 * whole, is then right, and so is an empty one counted whole.
 */
static bool
cut_fits(struct fork_point *c)
{
	char path[PATHS_MAX];
	struct stat st;

	return paths_format(path, sizeof(path), NULL, "%s/segments/%s.index",
		       c->t->config.home, c->old_segment) == 0 &&
	       stat(path, &st) == 0 &&
	       (uint64_t)st.st_size / sizeof(struct segment_record) >=
		       c->said.fork_point_records;
}

/* A link whose count of records is not known, and that nobody writes any more: all that are whole
 * count, as a replay has it. */
static int
count_records(struct fork_point *c, const char *segment, struct err *e)
{
	char path[PATHS_MAX];
	struct stat st;

	if (paths_format(path, sizeof(path), NULL, "%s/segments/%s.index",
		    c->t->config.home, segment) < 0 ||
		stat(path, &st) < 0)
		return 0;
	return db_chain_fork_point(c->t->db, segment,
		(uint64_t)st.st_size / sizeof(struct segment_record), e);
}

/* The parent writes its new segment, so all links before it are sealed, also those that a killed
 * pandod left uncounted. Empty ones are of no use to any chain. With the lock. */
static int
seal_links(struct fork_point *c, bool fits, struct err *e)
{
	struct tree *t = c->t;
	cleanup_free struct chain_link *links = NULL;
	bool dropped = false;
	size_t n = 0;
	int r = 0;

	if (fits)
		r = db_chain_fork_point(t->db, c->old_segment, c->said.fork_point_records, e);
	if (r == 0 && fits && c->said.fork_point_records == 0) {
		r = db_chain_drop_empty(t->db, c->old_segment, e);
		dropped = r > 0;
	}
	if (r >= 0)
		r = db_chain(t->db, c->parent->row.id, &links, &n, e);
	for (size_t i = 0; i + 1 < n && r == 0; i++) {
		if (links[i].records >= 0)
			continue;
		r = count_records(c, links[i].segment, e);
		if (r == 0)
			r = db_chain_drop_empty(t->db, links[i].segment, e);
		dropped = dropped || r > 0;
		r = r < 0 ? r : 0;
	}
	if (dropped)
		merge_sweep_soon(t);
	if (r == 0 && n > MERGE_FAN)
		merge_wanted(t, c->parent);
	return r;
}

/* After the fork, whatever became of the children. */
static void
note_cut(struct fork_point *c)
{
	struct tree *t = c->t;
	bool fits = c->said.hdr.type == VMM_FORKED && cut_fits(c);
	struct err e;

	pthread_mutex_lock(&t->lock);
	memcpy(c->parent->row.generation, c->generation, 16);
	if (!c->parent->dead && db_update(t->db, &c->parent->row, &e) < 0)
		log_err("vm %s: %s", c->parent->row.id, e.msg);
	/* With an uncertain fork the count stays "all", which is right. */
	if (c->said.hdr.type == VMM_FORKED && seal_links(c, fits, &e) < 0)
		log_err("segment %s: %s", c->old_segment, e.msg);
	pthread_mutex_unlock(&t->lock);
}

/* No fork happened: the parent goes on with the segment it has. */
static void
drop_segment(struct fork_point *c)
{
	struct tree *t = c->t;
	struct err e;

	pthread_mutex_lock(&t->lock);
	if (db_chain_remove(t->db, c->parent->row.id, c->segment, &e) < 0 ||
		tree_sweep(t, &e) < 0)
		log_err("segment %s: %s", c->segment, e.msg);
	pthread_mutex_unlock(&t->lock);
}

void
fork_point_end(struct fork_point *c)
{
	if (c->forked)
		note_cut(c);
	else
		drop_segment(c);
}

/* A pidfd of a fork of `parent`, from the number its VMM gave: believed only so far as
 * the kernel says that this process is a child of that VMM. Only for killing it when it
 * does not come to life. */
static int
open_hinted(pid_t parent, uint32_t hint)
{
	cleanup_close int pidfd = -1;
	uint64_t start;
	pid_t ppid;

	if (hint < 2 || hint > INT32_MAX)
		return -1;
	pidfd = (int)syscall(SYS_pidfd_open, (pid_t)hint, 0);
	if (pidfd < 0 || process_look((pid_t)hint, &ppid, &start) < 0 || ppid != parent ||
		!process_lives(pidfd))
		return -1;
	return TAKE_FD(pidfd);
}

/* The pidfd of whoever sent VMM_STARTED. The number may have been reused since; but only
 * the sender holds the other end of this socket, so if that is still open, what we opened
 * is the sender. */
static int
open_sender(struct vmmctl *ctl, pid_t pid, int *ret_pidfd, struct err *e)
{
	cleanup_close int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	int r;

	if (pidfd < 0)
		return err_sys(e, -errno, "the fork's process %d", (int)pid);
	r = vmmctl_drain(ctl, true, e);
	if (r < 0)
		return r;
	if (!process_lives(pidfd))
		return err_set(
			e, -ESRCH, "the fork's process %d ended at once", (int)pid);
	*ret_pidfd = TAKE_FD(pidfd);
	return 0;
}

int
fork_point_fork(struct fork_point *c, struct frozen_fork *k, struct vmm_fork *msg,
	const struct vm_files *files, const struct vm_segment *own,
	struct vmmctl **ret_ctl, int *ret_pidfd, struct err *e)
{
	cleanup_close int ours = -1, theirs = -1;
	struct vmm_forked of_frozen_fork;
	bool uncertain = false;
	int r = launch_control_pair(&ours, &theirs, e);

	if (r == 0)
		r = vmmctl_create(TAKE_FD(ours), ret_ctl, e);
	if (r < 0)
		return r;

	int fds[VMM_FORK_FD_COUNT] = {
		[VMM_FORK_FD_CONTROL] = theirs,
		[VMM_FORK_FD_LISTEN] = files->listen_fd,
		[VMM_FORK_FD_VSOCK] = files->vsock_fd,
		[VMM_FORK_FD_CONSOLE] = files->console_fd,
		[VMM_FORK_FD_LOG] = files->log_fd,
	};
	struct vmm_forked *said = k ? &of_frozen_fork : &c->said;

	vm_segment_put(own, fds + VMM_FORK_FD_SEG);
	vm_segment_put(&c->own, fds + VMM_FORK_FD_PARENT_SEG);
	for (unsigned i = 0; i < VMM_SEG_FDS && k; i++)
		fds[VMM_FORK_FD_PARENT_SEG + i] = c->null;
	memcpy(msg->parent_generation, c->generation, sizeof(msg->parent_generation));
	r = vmmctl_fork(k ? k->ctl : c->parent->ctl, msg, fds,
		c->t->config.start_timeout_ms, said, &uncertain, e);
	if (!k)
		c->forked = r == 0 || uncertain;
	if (r < 0)
		return r;
	*ret_pidfd = open_hinted(k ? k->pid : (pid_t)c->parent->row.pid, said->child_pid);
	if (*ret_pidfd >= 0)
		r = vmmctl_set_pidfd(*ret_ctl, *ret_pidfd);
	return r < 0 ? err_sys(e, r, "a descriptor for the fork's process") : 0;
}

int
fork_point_wait_child(struct fork_point *c, struct vmmctl *ctl, bool parked, int *pidfd,
	pid_t *ret_pid, struct vmm_started *ret, struct err *e)
{
	int sure = -1;
	int r = vmmctl_wait_started(ctl, c->t->config.start_timeout_ms, ret, ret_pid, e);

	if (r < 0)
		return r;
	if ((ret->parked != 0) != parked)
		return err_set(e, -EPROTO,
			parked ? "the fork runs and should be parked"
			       : "the fork is parked and should run");
	r = open_sender(ctl, *ret_pid, &sure, e);
	if (r < 0)
		return r;
	cleanup_close_fn(pidfd);
	*pidfd = sure;
	r = vmmctl_set_pidfd(ctl, sure);
	return r < 0 ? err_sys(e, r, "a descriptor for the fork's process") : 0;
}

static void
forget(struct tree *t, struct frozen_fork *k)
{
	char segment[DB_SEGMENT_MAX];
	struct err e;

	vmmctl_free(k->ctl);
	cleanup_close_fn(&k->pidfd);
	if (launch_remove_files(t->config.home, k->id, &e) < 0)
		log_warn("parked VMM %s: %s", k->id, e.msg);
	snprintf(segment, sizeof(segment), "%s.0", k->id);
	launch_remove_segment(t->config.home, segment);
	*k = (struct frozen_fork)FROZEN_FORK_INIT;
}

void
frozen_fork_end(struct tree *t, struct frozen_fork *k)
{
	if (!k->id[0])
		return;
	if (k->ctl)
		vmmctl_quit(k->ctl, NULL);
	/* It holds nothing worth a flush: the quit is for one that is not alive yet. */
	if (k->pidfd >= 0)
		process_end(k->pidfd);
	forget(t, k);
}

void
frozen_fork_leave(struct tree *t, struct frozen_fork *k)
{
	forget(t, k);
}

int
frozen_fork_park(
	struct fork_point *c, struct frozen_fork *k, uint32_t flags, struct err *e)
{
	cleanup_vm_files struct vm_files files = VM_FILES_INIT;
	cleanup_vm_segment struct vm_segment own = VM_SEGMENT_INIT;
	struct vmm_fork msg = {.flags = VMM_FORK_PARK | flags};
	char id[VM_ID_LEN + 1], segment[DB_SEGMENT_MAX];
	struct vmm_started started;
	int r = 0;

	memcpy(id, k->id, sizeof(id));
	k->id[0] = '\0';
	if (!id[0])
		r = tree_new_id(id, e);
	if (r == 0)
		r = tree_random(msg.child_generation, sizeof(msg.child_generation), e);
	if (r == 0)
		r = launch_files(c->t->config.home, id, &files, e);
	if (r < 0)
		return r;
	memcpy(k->id, id, sizeof(id));
	snprintf(segment, sizeof(segment), "%s.0", id);
	/* No row names it, so nobody needs to sync its name. */
	r = launch_segment(c->t->config.home, segment, &own, e);
	if (r < 0)
		return r;
	fault_point("branch.park-files");
	snprintf(msg.child_name, sizeof(msg.child_name), "%.40s-parked",
		vm_name(c->parent));
	r = fork_point_fork(c, NULL, &msg, &files, &own, &k->ctl, &k->pidfd, e);
	if (r < 0)
		return r;
	return fork_point_wait_child(c, k->ctl, true, &k->pidfd, &k->pid, &started, e);
}
