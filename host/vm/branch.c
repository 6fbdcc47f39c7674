/*
 * POST /v1/vms/{vm}/branch: live forks.
 *
 * One child: VMM_FORK. More: one fork that parks, holding the frozen fork of one instant, and
 * all children from it, then it quits. Either way the running parent is stopped once.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "host/vm/frozen_fork.h"
#include "host/vm/handshake.h"
#include "host/vm/merge.h"

struct branch {
	struct tree *t;
	const struct branch_request *q;
	const struct progress *p;
	struct vm *parent; /* reference */
	bool claimed;	   /* parent->op is ours */
	struct fork_point cut;
	struct vm **children; /* references, claimed; q->count of them */
	unsigned n_children;  /* listed so far */
};

/* The child's files and its VMM_FORK, to the parent or to the parked one. */
static int
fork_child(struct branch *b, struct vm *child, struct frozen_fork *k, struct err *e)
{
	cleanup_vm_files struct vm_files files = VM_FILES_INIT;
	cleanup_vm_segment struct vm_segment own = VM_SEGMENT_INIT;
	struct vmm_fork msg = {0};
	struct vmmctl *ctl = NULL;
	char segment[DB_SEGMENT_MAX];
	int pidfd = -1;
	int r = launch_files(b->t->config.home, child->row.id, &files, e);

	snprintf(segment, sizeof(segment), "%s.0", child->row.id);
	if (r == 0)
		r = tree_make_segment(b->t, segment, &own, e);
	if (r < 0)
		return r;
	memcpy(msg.child_generation, child->row.generation, sizeof(msg.child_generation));
	snprintf(msg.child_name, sizeof(msg.child_name), "%s", vm_name(child));
	r = fork_point_fork(&b->cut, k, &msg, &files, &own, &ctl, &pidfd, e);
	/* It is listed: others look at it. */
	pthread_mutex_lock(&b->t->lock);
	child->ctl = ctl;
	child->pidfd = pidfd;
	pthread_mutex_unlock(&b->t->lock);
	return r;
}

/* Until it runs; its process is certain then. */
static int
wait_child(struct branch *b, struct vm *child, uint64_t *slowest_ns, struct err *e)
{
	cleanup_close int hinted = -1;
	struct vmm_started started;
	int pidfd = -1;
	pid_t pid;
	int r = fork_point_wait_child(
		&b->cut, child->ctl, false, &pidfd, &pid, &started, e);

	pthread_mutex_lock(&b->t->lock);
	if (pidfd >= 0) {
		hinted = child->pidfd;
		child->pidfd = pidfd;
	}
	if (r == 0)
		child->row.pid = pid;
	pthread_mutex_unlock(&b->t->lock);
	if (r == 0 && started.setup_ns > *slowest_ns)
		*slowest_ns = started.setup_ns;
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
	vm->row.state = VM_STARTING;
	vm->row.reason[0] = '\0';
	memcpy(vm->row.parent, parent->row.id, sizeof(vm->row.parent));
	vm->parent_handle = parent->handle;
	vm->row.created_ms = io_wall_ms();
	vm->row.pid = 0;
	vm->row.pid_start = 0;
	vm->row.answered = false;
	vm->row.host_key[0] = vm->row.origin[0] = '\0';
	vm->row.made = false;
	vm->row.next_segment = 1;
	vm->row.labels = b->q->labels;
	r = tree_enter_vm(t, vm, b->q->alias, i, b->q->count, e);
	if (r < 0) {
		vm_unref(vm);
		return r;
	}
	b->children[b->n_children++] = vm;
	snprintf(segment, sizeof(segment), "%s.0", vm->row.id);
	r = db_insert(t->db, &vm->row, e);
	if (r == 0)
		r = vm_environment_enter(t, vm, &b->q->env, i, e);
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
	int r = fork_point_check(t, parent, e);

	if (r == 0)
		r = host_has_room(
			t, vm_name(parent), parent->row.mem_mib, 0, b->q->count, e);
	if (r == 0)
		r = fork_point_begin(&b->cut, parent, e);
	if (r == 0)
		r = db_begin(t->db, e);
	if (r < 0)
		return r;
	for (unsigned i = 0; r == 0 && i < b->q->count; i++)
		r = enter_child(b, i, e);
	if (r == 0)
		r = fork_point_enter(&b->cut, e);
	if (r == 0)
		r = db_commit(t->db, e);
	if (r == 0) {
		scopes_expect(t->config.scopes, parent->row.id, b->q->count);
		return 0;
	}
	db_rollback(t->db);
	fork_point_undo(&b->cut);
	for (unsigned i = 0; i < b->n_children; i++) {
		tree_unlist_vm(t, b->children[i]);
		vm_unref(b->children[i]);
	}
	b->n_children = 0;
	return r;
}

/* From entered rows to running, watched, recorded children. On failure the caller undoes
 * them. */
static int
make(struct branch *b, struct err *e)
{
	struct frozen_fork k = FROZEN_FORK_INIT;
	uint64_t slowest_ns = 0;
	int r = 0;

	if (b->q->count > 1)
		r = frozen_fork_park(&b->cut, &k, 0, e);
	if (r == 0 && b->q->count > 1)
		fault_point("branch.parked");
	for (unsigned i = 0; r == 0 && i < b->n_children; i++)
		r = fork_child(b, b->children[i], b->q->count > 1 ? &k : NULL, e);
	if (r == 0)
		fault_point("branch.forked");
	for (unsigned i = 0; r == 0 && i < b->n_children; i++)
		r = wait_child(b, b->children[i], &slowest_ns, e);
	if (r == 0)
		fault_point("branch.started");
	frozen_fork_end(b->t, &k);
	fork_point_end(&b->cut);
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
		log_info(
			"vm %s (%s): branched into %u, paused for %llu us, of which fork %llu us; slowest child ran after %llu us",
			b->parent->row.id, vm_name(b->parent), b->n_children,
			(unsigned long long)(b->cut.said.pause_ns / 1000),
			(unsigned long long)(b->cut.said.fork_ns / 1000),
			(unsigned long long)(slowest_ns / 1000));
	return r;
}

static int
branch(struct branch *b, const char *name, struct json_out *out, struct err *e)
{
	struct tree *t = b->t;
	char called[VM_CALLED_MAX];
	int r = merge_wait_room(t, name, b->p, e);

	if (r < 0)
		return r;
	pthread_mutex_lock(&t->lock);
	r = tree_claim(t, name, "being branched", b->p, &b->parent, e);
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
	if (r == 0)
		tree_sync_soon(t);
	if (r == 0 && b->q->wait) {
		struct handshake_parent parent;

		handshake_parent_begin(&parent, t, b->parent);
		say(b->p, "%u branch%s run%s; waiting for %s agent%s", b->n_children,
			b->n_children == 1 ? "" : "es", b->n_children == 1 ? "s" : "",
			b->n_children == 1 ? "its" : "their",
			b->n_children == 1 ? "" : "s");
		r = vms_wait_agents(t, b->children, b->n_children, "branches", b->p, e);
		handshake_parent_end(&parent, b->p);
	}
	if (r == 0)
		r = check_not_gone(b->p, "branches", e);
	if (r < 0) {
		if (e)
			log_info("vm %s (%s): not branched: %s", b->parent->row.id,
				vm_name(b->parent), e->msg);
		vms_undo(t, b->children, b->n_children);
		return r;
	}
	pthread_mutex_lock(&t->lock);
	json_out_object(out, NULL);
	json_out_array(out, "vms");
	for (unsigned i = 0; i < b->n_children; i++)
		vm_json(t, b->children[i], NULL, out, NULL, NULL);
	for (unsigned i = 0; i < b->n_children; i++)
		tell_made(b->p, b->children[i]);
	json_out_end_array(out);
	json_out_u64(out, "pause_us", b->cut.said.pause_ns / 1000);
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
		.cut = FORK_POINT_INIT(t),
	};
	int r;

	b.children = calloc(q->count, sizeof(*b.children));
	if (!b.children)
		return err_set(e, -ENOMEM, "out of memory");
	r = branch(&b, name, out, e);
	pthread_mutex_lock(&t->lock);
	vms_release(b.children, b.n_children);
	if (b.parent) {
		if (b.claimed)
			b.parent->op = NULL;
		vm_unref(b.parent);
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	free(b.children);
	fork_point_done(&b.cut);
	return r;
}
