/*
 * POST /v1/vms/{vm}/branch: live forks.
 *
 * One child: VMM_FORK. More: one fork that parks, holding the picture of one instant, and
 * all children from it, then it quits. Either way the running parent is stopped once.
 *
 * The disk. Before the fork the parent's chain is [… s], its VMM writing s. The fork
 * gives the parent a new segment p and the child a new one c, and s is read-only to both.
 * The database is written *before* the fork, as [… s p] and [… s c], with s counted
 * whole: that is true whether the fork then happens or not (until it does, p is empty and
 * s still grows; once it has, nobody appends to s any more). So a pandod that is killed
 * in between leaves chains that are right: the files of p are made before the database
 * names it. The number of records at the cut, which the
 * VMM reports, is written afterwards as a check.
 */
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
#include "common/io.h"
#include "common/log.h"
#include "common/segment_wire.h"
#include "host/tree_priv.h"

/* Threads that wait for agents. */
#define WAITERS_MAX 32

/* The process that holds the picture while its children are made. In no table: when
 * pandod is killed the next one finds its folder without a row (adopt.c). */
struct parked {
	char id[VM_ID_LEN + 1];
	struct vmmctl *ctl; /* owned */
	int pidfd;	    /* owned */
	pid_t pid;
};

struct branch {
	struct tree *t;
	const struct branch_request *q;
	const struct progress *p;
	struct vm *parent; /* reference */
	bool claimed;	   /* parent->op is ours */
	char parent_old_segment[DB_SEGMENT_MAX];
	char parent_segment[DB_SEGMENT_MAX];
	int parent_data, parent_index; /* owned */
	int null;		       /* owned */
	uint8_t parent_generation[16];
	struct vm **children;  /* references, claimed; q->count of them */
	unsigned n_children;   /* listed so far */
	bool forked;	       /* the parent's segment was cut, or may have been */
	struct vmm_forked cut; /* what the parent said of it */
};

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

/* One VMM_FORK to ctl (the VMM of process `from`). *ret_ctl, *ret_pidfd: the child's,
 * kept also on failure, for the caller to end it. */
static int
fork_vmm(struct branch *b, struct vmmctl *ctl, pid_t from, struct vmm_fork *msg,
	const struct vm_files *files, int data, int index, int parent_data,
	int parent_index, struct vmmctl **ret_ctl, int *ret_pidfd, struct vmm_forked *ret,
	bool *ret_uncertain, struct err *e)
{
	cleanup_close int ours = -1, theirs = -1;
	int r = launch_control_pair(&ours, &theirs, e);

	if (r == 0)
		r = vmmctl_create(TAKE_FD(ours), ret_ctl, e);
	if (r < 0)
		return r;

	const int fds[VMM_FORK_FD_COUNT] = {
		[VMM_FORK_FD_CONTROL] = theirs,
		[VMM_FORK_FD_LISTEN] = files->listen_fd,
		[VMM_FORK_FD_VSOCK] = files->vsock_fd,
		[VMM_FORK_FD_CONSOLE] = files->console_fd,
		[VMM_FORK_FD_LOG] = files->log_fd,
		[VMM_FORK_FD_SEG_DATA] = data,
		[VMM_FORK_FD_SEG_INDEX] = index,
		[VMM_FORK_FD_PARENT_SEG_DATA] = parent_data,
		[VMM_FORK_FD_PARENT_SEG_INDEX] = parent_index,
	};

	r = vmmctl_fork(
		ctl, msg, fds, b->t->config.start_timeout_ms, ret, ret_uncertain, e);
	if (r < 0)
		return r;
	*ret_pidfd = open_hinted(from, ret->child_pid);
	if (*ret_pidfd >= 0)
		r = vmmctl_set_pidfd(*ret_ctl, *ret_pidfd);
	return r < 0 ? err_sys(e, r, "a descriptor for the fork's process") : 0;
}

/* Waits for VMM_STARTED of a child; *pidfd becomes certain. */
static int
wait_child(struct branch *b, struct vmmctl *ctl, bool parked, int *pidfd, pid_t *ret_pid,
	struct vmm_started *ret, struct err *e)
{
	int sure = -1;
	int r = vmmctl_wait_started(ctl, b->t->config.start_timeout_ms, ret, ret_pid, e);

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
end_parked(struct branch *b, struct parked *k)
{
	char segment[DB_SEGMENT_MAX];
	struct err e;

	if (!k->id[0])
		return;
	if (k->ctl)
		vmmctl_quit(k->ctl, NULL);
	/* It holds nothing worth a flush: the quit is for one that is not alive yet. */
	if (k->pidfd >= 0)
		process_end(k->pidfd);
	vmmctl_free(k->ctl);
	cleanup_close_fn(&k->pidfd);
	if (launch_remove_files(b->t->config.home, k->id, &e) < 0)
		log_warn("parked VMM %s: %s", k->id, e.msg);
	snprintf(segment, sizeof(segment), "%s.0", k->id);
	launch_remove_segment(b->t->config.home, segment);
}

static int
park(struct branch *b, struct parked *k, struct err *e)
{
	cleanup_vm_files struct vm_files files = VM_FILES_INIT;
	cleanup_close int data = -1, index = -1;
	struct vmm_fork msg = {.flags = VMM_FORK_PARK};
	char id[VM_ID_LEN + 1], segment[DB_SEGMENT_MAX];
	struct vmm_started started;
	bool uncertain = false;
	int r = tree_new_id(id, e);

	if (r == 0)
		r = tree_random(msg.child_generation, sizeof(msg.child_generation), e);
	if (r == 0)
		r = launch_files(b->t->config.home, id, &files, e);
	if (r < 0)
		return r;
	memcpy(k->id, id, sizeof(id));
	snprintf(segment, sizeof(segment), "%s.0", id);
	r = launch_segment(b->t->config.home, segment, &data, &index, e);
	if (r < 0)
		return r;
	fault_point("branch.park-files");
	memcpy(msg.parent_generation, b->parent_generation,
		sizeof(msg.parent_generation));
	snprintf(msg.child_name, sizeof(msg.child_name), "%.40s-parked",
		vm_name(b->parent));
	r = fork_vmm(b, b->parent->ctl, (pid_t)b->parent->row.pid, &msg, &files, data,
		index, b->parent_data, b->parent_index, &k->ctl, &k->pidfd, &b->cut,
		&uncertain, e);
	b->forked = r == 0 || uncertain;
	if (r < 0)
		return r;
	return wait_child(b, k->ctl, true, &k->pidfd, &k->pid, &started, e);
}

/* The child's files and its VMM_FORK, to the parent or to the parked one. */
static int
fork_child(struct branch *b, struct vm *child, struct parked *k, struct err *e)
{
	cleanup_vm_files struct vm_files files = VM_FILES_INIT;
	cleanup_close int data = -1, index = -1;
	struct vmm_fork msg = {0};
	char segment[DB_SEGMENT_MAX];
	struct vmm_forked forked;
	bool uncertain = false;
	int r = launch_files(b->t->config.home, child->row.id, &files, e);

	snprintf(segment, sizeof(segment), "%s.0", child->row.id);
	if (r == 0)
		r = launch_segment(b->t->config.home, segment, &data, &index, e);
	if (r < 0)
		return r;
	memcpy(msg.child_generation, child->row.generation, sizeof(msg.child_generation));
	memcpy(msg.parent_generation, b->parent_generation,
		sizeof(msg.parent_generation));
	snprintf(msg.child_name, sizeof(msg.child_name), "%s", vm_name(child));
	if (k)
		return fork_vmm(b, k->ctl, k->pid, &msg, &files, data, index, b->null,
			b->null, &child->ctl, &child->pidfd, &forked, &uncertain, e);
	r = fork_vmm(b, b->parent->ctl, (pid_t)b->parent->row.pid, &msg, &files, data,
		index, b->parent_data, b->parent_index, &child->ctl, &child->pidfd,
		&b->cut, &uncertain, e);
	b->forked = r == 0 || uncertain;
	return r;
}

/* A child's row, in the table. Called with the lock, inside the database's transaction.
 */
static int
enter_child(struct branch *b, unsigned i, struct err *e)
{
	struct tree *t = b->t;
	struct vm *parent = b->parent, *vm = vm_new(t);
	char segment[DB_SEGMENT_MAX];
	int r;

	if (!vm)
		return err_set(e, -ENOMEM, "out of memory");
	vm->op = "being made";
	vm->row = parent->row;
	memcpy(vm->row.alias, b->q->alias, sizeof(vm->row.alias));
	vm->row.state = VM_STARTING;
	vm->row.reason[0] = '\0';
	memcpy(vm->row.parent, parent->row.id, sizeof(vm->row.parent));
	vm->parent_handle = parent->handle;
	vm->row.created_ms = io_wall_ms();
	vm->row.pid = 0;
	vm->row.pid_start = 0;
	vm->row.answered = false;
	vm->row.made = false;
	vm->row.next_segment = 1;
	vm->row.labels = b->q->labels;
	r = tree_new_id(vm->row.id, e);
	if (r == 0 && b->q->alias[0] && b->q->count > 1)
		r = paths_format(
			vm->row.alias, sizeof(vm->row.alias), e, "%s-%u", b->q->alias, i);
	if (r == 0)
		r = tree_random(vm->row.generation, sizeof(vm->row.generation), e);
	if (r == 0)
		r = tree_check_alias_free(t, vm->row.alias, e);
	if (r == 0)
		r = tree_list_vm(t, vm, e);
	if (r < 0) {
		vm_unref(vm);
		return r;
	}
	b->children[b->n_children++] = vm;
	snprintf(segment, sizeof(segment), "%s.0", vm->row.id);
	r = db_insert(t->db, &vm->row, e);
	if (r == 0)
		r = db_chain_copy(t->db, parent->row.id, vm->row.id, e);
	if (r == 0)
		r = db_chain_append(t->db, vm->row.id, segment, e);
	return r;
}

/* All rows and chains in one transaction, or none. Called with the lock. */
static int
enter(struct branch *b, struct err *e)
{
	struct tree *t = b->t;
	struct vm *parent = b->parent;
	cleanup_free struct chain_link *links = NULL;
	size_t n_links = 0;
	int r;

	if (t->stopping)
		return err_set(e, -ECANCELED, "pandod is stopping");
	if (!vm_state_lives(parent->row.state))
		return err_set(e, -EBUSY,
			"vm \"%s\" is %s: only a VM that runs or is paused can be "
			"branched, so `pando start` it first",
			vm_name(parent), vm_state_name(parent->row.state));
	if (!parent->ctl || parent->dead || parent->closed_ns)
		return err_set(e, -EBUSY,
			"vm \"%s\" is ending: `pando status` will say why, and then "
			"`pando start` boots it again",
			vm_name(parent));
	r = host_has_room(t, parent, b->q->count, e);
	if (r < 0)
		return r;
	r = tree_random(b->parent_generation, sizeof(b->parent_generation), e);
	if (r == 0)
		r = db_begin(t->db, e);
	if (r < 0)
		return r;
	r = db_chain(t->db, parent->row.id, &links, &n_links, e);
	if (r == 0 && n_links == 0)
		r = err_set(e, -EINVAL, "state.db: vm \"%s\" has no disk chain",
			vm_name(parent));
	if (r == 0)
		memcpy(b->parent_old_segment, links[n_links - 1].segment, DB_SEGMENT_MAX);
	for (unsigned i = 0; r == 0 && i < b->q->count; i++)
		r = enter_child(b, i, e);
	if (r == 0) {
		snprintf(b->parent_segment, sizeof(b->parent_segment), "%s.%u",
			parent->row.id, parent->row.next_segment);
		/* The files come first: no chain of a VM that stays ever names a segment
		 * that is not there. */
		r = launch_segment(t->config.home, b->parent_segment, &b->parent_data,
			&b->parent_index, e);
	}
	if (r == 0) {
		fault_point("branch.segment");
		r = db_chain_append(t->db, parent->row.id, b->parent_segment, e);
	}
	if (r == 0) {
		parent->row.next_segment++;
		r = db_update(t->db, &parent->row, e);
	}
	if (r == 0)
		r = db_commit(t->db, e);
	if (r == 0)
		return 0;
	db_rollback(t->db);
	if (b->parent_data >= 0)
		launch_remove_segment(t->config.home, b->parent_segment);
	for (unsigned i = 0; i < b->n_children; i++) {
		tree_unlist_vm(t, b->children[i]);
		vm_unref(b->children[i]);
	}
	b->n_children = 0;
	return r;
}

/*
 * Whether the parent's old segment has as many records as the cut says. It has fewer when
 * it is not the one that the VMM wrote: a pandod that was killed between writing a chain
 * and the fork leaves a last segment that nobody ever writes. The one before it, counted
 * whole, is then right, and so is an empty one counted whole.
 */
static bool
cut_fits(struct branch *b)
{
	char path[PATHS_MAX];
	struct stat st;

	return paths_format(path, sizeof(path), NULL, "%s/segments/%s.index",
		       b->t->config.home, b->parent_old_segment) == 0 &&
	       stat(path, &st) == 0 &&
	       (uint64_t)st.st_size / sizeof(struct segment_record) >=
		       b->cut.cut_index_records;
}

/* After the fork, whatever became of the children. */
static void
note_cut(struct branch *b)
{
	struct tree *t = b->t;
	bool fits = b->cut.hdr.type == VMM_FORKED && cut_fits(b);
	struct err e;

	pthread_mutex_lock(&t->lock);
	memcpy(b->parent->row.generation, b->parent_generation, 16);
	if (!b->parent->dead && db_update(t->db, &b->parent->row, &e) < 0)
		log_err("vm %s: %s", b->parent->row.id, e.msg);
	/* 0 with an uncertain fork: then the count stays "all", which is right. */
	if (fits && db_chain_cut(t->db, b->parent_old_segment, b->cut.cut_index_records,
			    &e) < 0)
		log_err("segment %s: %s", b->parent_old_segment, e.msg);
	pthread_mutex_unlock(&t->lock);
}

/* No fork happened: the parent goes on with the segment it has. */
static void
drop_parent_segment(struct branch *b)
{
	struct tree *t = b->t;
	struct err e;

	pthread_mutex_lock(&t->lock);
	if (db_chain_remove(t->db, b->parent->row.id, b->parent_segment, &e) < 0 ||
		tree_sweep(t, &e) < 0)
		log_err("segment %s: %s", b->parent_segment, e.msg);
	pthread_mutex_unlock(&t->lock);
}

/* From entered rows to running, watched, recorded children. On failure the caller undoes
 * them. */
static int
make(struct branch *b, struct err *e)
{
	struct parked k = {.pidfd = -1};
	struct vmm_started started;
	uint64_t slowest_ns = 0;
	pid_t pid;
	int r = 0;

	if ((b->null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
		r = err_sys(e, -errno, "/dev/null");
	if (r == 0 && b->q->count > 1)
		r = park(b, &k, e);
	if (r == 0 && b->q->count > 1)
		fault_point("branch.parked");
	for (unsigned i = 0; r == 0 && i < b->n_children; i++)
		r = fork_child(b, b->children[i], b->q->count > 1 ? &k : NULL, e);
	if (r == 0)
		fault_point("branch.forked");
	for (unsigned i = 0; r == 0 && i < b->n_children; i++) {
		struct vm *child = b->children[i];

		r = wait_child(b, child->ctl, false, &child->pidfd, &pid, &started, e);
		if (r == 0) {
			child->row.pid = pid;
			if (started.setup_ns > slowest_ns)
				slowest_ns = started.setup_ns;
		}
	}
	if (r == 0)
		fault_point("branch.started");
	end_parked(b, &k);
	if (b->forked)
		note_cut(b);
	else
		drop_parent_segment(b);
	if (r == 0)
		fault_point("branch.cut");
	for (unsigned i = 0; r == 0 && i < b->n_children; i++) {
		r = vm_made(b->t, b->children[i], e);
		if (r == 0 && i == 0)
			fault_point("branch.first-made");
	}
	if (r == 0)
		fault_point("branch.made");
	if (r == 0)
		log_info("vm %s (%s): branched into %u, paused for %llu us, of which "
			 "fork %llu us; "
			 "slowest child ran after %llu us",
			b->parent->row.id, vm_name(b->parent), b->n_children,
			(unsigned long long)(b->cut.pause_ns / 1000),
			(unsigned long long)(b->cut.fork_ns / 1000),
			(unsigned long long)(slowest_ns / 1000));
	return r;
}

/*
 * Waiting for all agents, in parallel; the first failure ends the others' wait.
 */
struct waiters {
	struct branch *b;
	unsigned next; /* under the tree's lock, as the rest */
	unsigned answered;
	bool give_up;
	int result;
	struct err why;
};

static void *
waiter_main(void *arg)
{
	struct waiters *w = arg;
	struct tree *t = w->b->t;

	for (;;) {
		struct err e = {0};
		struct vm *child;
		unsigned answered;
		int r;

		pthread_mutex_lock(&t->lock);
		child = w->give_up || w->next == w->b->n_children
				? NULL
				: w->b->children[w->next++];
		pthread_mutex_unlock(&t->lock);
		if (!child)
			return NULL;
		r = vm_wait_agent(t, child, &w->give_up, &e);
		pthread_mutex_lock(&t->lock);
		if (r < 0 && !w->give_up) {
			w->give_up = true;
			w->result = r;
			w->why = e;
		}
		answered = r == 0 ? ++w->answered : 0;
		pthread_mutex_unlock(&t->lock);
		if (answered && w->b->n_children > 1)
			say(w->b->p, "%u of %u branches answer", answered,
				w->b->n_children);
	}
}

static int
wait_agents(struct branch *b, struct err *e)
{
	struct waiters w = {.b = b};
	pthread_t threads[WAITERS_MAX];
	unsigned n = 0, want = b->n_children < WAITERS_MAX ? b->n_children : WAITERS_MAX;

	/* This thread is one of them, so that no failure to make a thread matters. */
	while (n + 1 < want && pthread_create(&threads[n], NULL, waiter_main, &w) == 0)
		n++;
	waiter_main(&w);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	if (w.result < 0)
		return err_set(e, w.result, "%s", w.why.msg);
	return 0;
}

/* Children that are watched go as deleted ones do; the rest were never more than half
 * made. */
static void
undo(struct branch *b)
{
	struct err e;

	for (unsigned i = 0; i < b->n_children; i++) {
		struct vm *child = b->children[i];

		if (!child->row.made)
			vm_undo(b->t, child);
		else if (tree_remove(b->t, &child, 1, &e) < 0)
			log_err("vm %s: %s", child->row.id, e.msg);
	}
}

static int
branch(struct branch *b, const char *name, struct json_out *out, struct err *e)
{
	struct tree *t = b->t;
	char called[VM_CALLED_MAX];
	int r;

	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, "being branched", &b->parent, e);
	b->claimed = r == 0;
	if (r == 0)
		r = enter(b, e);
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		return r;
	fault_point("branch.entered");
	say(b->p, "branching VM %s into %u", vm_called(b->parent, called, sizeof(called)),
		b->q->count);
	r = make(b, e);
	if (r < 0)
		err_wrap(e, r, "branching vm \"%s\"", vm_name(b->parent));
	/* The parent may be branched or paused again while the children's agents are
	 * waited for. */
	pthread_mutex_lock(&t->lock);
	b->parent->op = NULL;
	b->claimed = false;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	if (r == 0 && b->q->wait) {
		say(b->p, "%u branch%s run%s; waiting for %s agent%s", b->n_children,
			b->n_children == 1 ? "" : "es", b->n_children == 1 ? "s" : "",
			b->n_children == 1 ? "its" : "their",
			b->n_children == 1 ? "" : "s");
		r = wait_agents(b, e);
	}
	if (r < 0) {
		if (e)
			log_info("vm %s (%s): not branched: %s", b->parent->row.id,
				vm_name(b->parent), e->msg);
		undo(b);
		return r;
	}
	pthread_mutex_lock(&t->lock);
	json_out_object(out, NULL);
	json_out_array(out, "vms");
	for (unsigned i = 0; i < b->n_children; i++)
		vm_json(t, b->children[i], NULL, out, NULL, NULL);
	json_out_end_array(out);
	json_out_u64(out, "pause_us", b->cut.pause_ns / 1000);
	json_out_end_object(out);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

int
tree_branch(struct tree *t, const char *name, const struct branch_request *q,
	const struct progress *p, struct json_out *out, struct err *e)
{
	struct branch b = {
		.t = t,
		.q = q,
		.p = p,
		.parent_data = -1,
		.parent_index = -1,
		.null = -1,
	};
	int r;

	b.children = calloc(q->count, sizeof(*b.children));
	if (!b.children)
		return err_set(e, -ENOMEM, "out of memory");
	r = branch(&b, name, out, e);
	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i < b.n_children; i++) {
		b.children[i]->op = NULL;
		b.children[i]->probe_at_ns = io_now_ns();
		vm_unref(b.children[i]);
	}
	if (b.parent) {
		if (b.claimed)
			b.parent->op = NULL;
		vm_unref(b.parent);
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	free(b.children);
	cleanup_close_fn(&b.parent_data);
	cleanup_close_fn(&b.parent_index);
	cleanup_close_fn(&b.null);
	return r;
}
