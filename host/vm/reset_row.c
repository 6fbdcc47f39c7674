#include "host/vm/reset_row.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/log.h"
#include "host/vm/merge_swap.h"

/* In bytes; -1: there is none. */
static int64_t
index_bytes(const struct tree *t, const char *segment)
{
	char path[PATHS_MAX];
	struct stat st;

	if (paths_format(path, sizeof(path), NULL, "%s/segments/%s.index", t->config.home,
		    segment) < 0 ||
		stat(path, &st) < 0)
		return -1;
	return st.st_size;
}

bool
reset_row_is_at(const struct tree *t, const char *id, unsigned n)
{
	char segment[DB_SEGMENT_MAX];

	snprintf(segment, sizeof(segment), "%s.r%u", id, n);
	return index_bytes(t, segment) >= 0;
}

/* What of a row a reset changes. */
static void
take_target(struct vm_row *row, const struct vm_row *target)
{
	memcpy(row->generation, target->generation, sizeof(row->generation));
	memcpy(row->commit, target->commit, sizeof(row->commit));
	memcpy(row->base_path, target->base_path, sizeof(row->base_path));
	row->disk_mib = target->disk_mib;
	memcpy(row->kernel, target->kernel, sizeof(row->kernel));
	memcpy(row->rootfs, target->rootfs, sizeof(row->rootfs));
	memcpy(row->kernel_path, target->kernel_path, sizeof(row->kernel_path));
	memcpy(row->cmdline, target->cmdline, sizeof(row->cmdline));
}

int
reset_row_begin(struct tree *t, struct vm *vm, const struct vm_row *target,
	bool to_fork_point, struct vm_segment *ret_segment, struct err *e)
{
	struct db_reset *n = calloc(1, sizeof(*n));
	const uint32_t next = vm->row.next_segment;
	int r;

	if (!n)
		return err_set(e, -ENOMEM, "out of memory");
	take_target(&n->row, target);
	n->to_fork_point = to_fork_point;
	memcpy(n->row.id, vm->row.id, sizeof(n->row.id));
	n->before = vm->vmm_resets;
	snprintf(n->segment, sizeof(n->segment), "%s.r%u", vm->row.id, next);
	r = tree_random(n->row.generation, sizeof(n->row.generation), e);
	/* The files come before what names them. */
	if (r == 0)
		r = tree_make_segment(t, n->segment, ret_segment, e);
	if (r == 0)
		fault_point("reset.segment");
	if (r == 0)
		r = db_begin(t->db, e);
	if (r == 0) {
		vm->row.next_segment++;
		r = db_reset_put(t->db, n, e);
		if (r == 0)
			r = db_update(t->db, &vm->row, e);
		if (r == 0)
			r = db_commit(t->db, e);
		if (r < 0)
			db_rollback(t->db);
	}
	if (r < 0) {
		vm->row.next_segment = next;
		launch_remove_segment(t->config.home, n->segment);
		free(n);
		return r;
	}
	free(vm->reset);
	vm->reset = n;
	return 0;
}

int
reset_row_drop(struct tree *t, struct vm *vm, struct err *e)
{
	int r = db_reset_drop(t->db, vm->row.id, e);

	if (r < 0)
		return r;
	launch_remove_segment(t->config.home, vm->reset->segment);
	free(vm->reset);
	vm->reset = NULL;
	return 0;
}

/* The disk is the fork point's. */
static int
drop_own_links(struct tree *t, const struct vm_row *row, struct err *e)
{
	cleanup_free struct chain_link *links = NULL;
	size_t n = 0;
	int r = db_chain(t->db, row->id, &links, &n, e);

	if (r == 0)
		r = db_merge_drop(t->db, row->id, e);
	for (size_t i = r == 0 ? merge_own_links(row, links, n) : n; i < n && r == 0; i++)
		r = db_chain_remove(t->db, row->id, links[i].segment, e);
	return r;
}

int
reset_row_apply(struct tree *t, struct vm *vm, struct err *e)
{
	cleanup_free struct vm_row *was = malloc(sizeof(*was));
	struct vm_row *row = &vm->row;
	int r = was ? db_begin(t->db, e) : err_set(e, -ENOMEM, "out of memory");

	if (r < 0)
		return r;
	*was = *row;
	take_target(row, &vm->reset->row);
	if (!vm->reset->to_fork_point) {
		memcpy(row->image, row->commit, sizeof(row->image));
		memcpy(row->origin, row->commit, sizeof(row->origin));
		row->fork_mib = 0;
	}
	/* The base is all that the commit has; at a fork point it is not known. */
	row->commit_segment[0] = '\0';
	row->resize_mib = 0;
	row->reason[0] = row->host_key[0] = '\0';
	row->answered = false;
	memset(row->acknowledged, 0, sizeof(row->acknowledged));
	if (vm_state_lives(row->state))
		row->state = VM_STARTING;
	r = vm->reset->to_fork_point ? drop_own_links(t, row, e)
				     : db_chain_clear(t->db, row->id, e);
	if (r == 0)
		r = db_chain_append(t->db, row->id, vm->reset->segment, e);
	if (r == 0)
		r = db_update(t->db, row, e);
	if (r == 0)
		r = db_update_kernel(t->db, row, e);
	if (r == 0)
		r = db_reset_drop(t->db, row->id, e);
	if (r == 0)
		r = db_commit(t->db, e);
	if (r < 0) {
		db_rollback(t->db);
		*row = *was;
		return r;
	}
	free(vm->reset);
	vm->reset = NULL;
	/* Whatever was begun with the guest of before ends without effect. */
	vm->resets++;
	vm->vmm_resets = (vm->vmm_resets + 1) & 0xffff;
	vm->probes = vm->handshake_steps = 0;
	vm->handshake_began_ns = vm->handshake_step_ns = 0;
	vm->handshake_step[0] = '\0';
	vm->ack.n_steps = 0;
	vm_count_pause(vm);
	return 0;
}

int
reset_row_settle(struct tree *t, struct vm *vm, const uint32_t *resets, struct err *e)
{
	const struct db_reset *n = vm->reset;
	bool happened;
	int r;

	if (!n)
		return 0;
	happened = resets ? *resets == ((n->before + 1) & 0xffff)
			  : index_bytes(t, n->segment) > 0;
	log_info("vm %s (%s): a reset to %s %.12s was under way, and has %shappened",
		vm->row.id, vm_name(vm), n->to_fork_point ? "its fork point, of commit" : "commit",
		n->row.commit[0] ? n->row.commit : "(none)", happened ? "" : "not ");
	r = happened ? reset_row_apply(t, vm, e) : reset_row_drop(t, vm, e);
	if (r == 0 && happened)
		r = tree_sweep(t, e);
	return r;
}

int
reset_row_load(struct tree *t, struct err *e)
{
	int r = 0;

	for (unsigned i = 0; i < t->n_vms && r >= 0; i++) {
		struct vm *vm = t->vms[i];
		struct db_reset *n = calloc(1, sizeof(*n));

		if (!n)
			return err_set(e, -ENOMEM, "out of memory");
		r = db_reset_get(t->db, vm->row.id, n, e);
		if (r <= 0) {
			free(n);
			continue;
		}
		vm->reset = n;
		/* Of a VMM that lives its word says it, later; of what was written nobody need
		 * say anything. */
		if (index_bytes(t, n->segment) > 0 || !vm_state_lives(vm->row.state))
			r = reset_row_settle(t, vm, NULL, e);
	}
	return r < 0 ? r : 0;
}
