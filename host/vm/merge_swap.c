#include "host/vm/merge_swap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"

#define LOOK_MS 200u

static const char op_merging[] = TREE_OP_MERGING;

void
merge_run_done(struct merge_run *m)
{
	free(m->links);
	*m = (struct merge_run){0};
}

size_t
merge_own_links(const struct vm_row *row, const struct chain_link *links, size_t n)
{
	size_t i = 0;

	while (i < n && memcmp(links[i].segment, row->id, VM_ID_LEN) != 0)
		i++;
	return i;
}

/* Where the run begins in the chain; n: it is not there as a whole, its last segment is the
 * one being written, or it has links of both sides of the fork point that the VM came from. */
static size_t
find_run(const struct vm_row *row, const struct chain_link *links, size_t n,
	const struct merge_run *m)
{
	const size_t own = merge_own_links(row, links, n);

	for (size_t i = 0; i + m->n < n; i++) {
		size_t k = 0;

		while (k < m->n && strcmp(links[i + k].segment, m->links[k].segment) == 0 &&
			links[i + k].records == m->links[k].records)
			k++;
		if (k == m->n)
			return i < own && own < i + m->n ? n : i;
	}
	return n;
}

int
merge_claim(struct tree *t, struct vm *vm, uint32_t patience_ms, struct err *e)
{
	const uint64_t until_ns = io_now_ns() + (uint64_t)patience_ms * 1000000;

	for (;;) {
		uint64_t now = io_now_ns(), end = now + LOOK_MS * UINT64_C(1000000);
		struct timespec at = {.tv_sec = (time_t)(end / 1000000000u),
			.tv_nsec = (long)(end % 1000000000u)};

		if (t->stopping)
			return err_set(e, -ECANCELED, "pandod is stopping");
		if (!vm->listed)
			return err_set(e, -ENOENT, "vm \"%s\" was deleted", vm_name(vm));
		if (!vm->unmet && !vm->n_commits && tree_try_claim(t, vm, op_merging))
			return 0;
		if (now >= until_ns)
			return err_set(e, -EBUSY, "vm \"%s\" is used all the time",
				vm_name(vm));
		pthread_cond_timedwait(&t->changed, &t->lock, &at);
	}
}

void
merge_release(struct tree *t, struct vm *vm)
{
	vm->op = NULL;
	pthread_cond_broadcast(&t->changed);
}

static int
open_file(const struct tree *t, const char *segment, const char *suffix, struct err *e)
{
	char path[PATHS_MAX];
	int r = paths_format(
		path, sizeof(path), e, "%s/segments/%s.%s", t->config.home, segment, suffix);
	int fd;

	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	return fd < 0 ? err_sys(e, -errno, "%.300s", path) : fd;
}

static int
describe(const struct tree *t, const struct merge_run *m, struct vmm_merged *ret,
	struct err *e)
{
	*ret = (struct vmm_merged){.records = (uint64_t)m->merged.records};
	for (size_t i = 0; i < m->n; i++) {
		cleanup_close int fd = open_file(t, m->links[i].segment, "data", e);
		struct stat st;

		if (fd < 0)
			return fd;
		if (fstat(fd, &st) < 0)
			return err_sys(e, -errno, "segment %s", m->links[i].segment);
		ret->files[ret->n++] = (struct vmm_merged_file){st.st_dev, st.st_ino};
	}
	return 0;
}

static int
check_vmm(struct vm *vm, int timeout_ms, struct err *e)
{
	struct vmm_stats_answer s;
	int r = vmmctl_stats(vm->ctl, timeout_ms, false, &s, NULL, e);

	if (r == 0 && !(s.tracks & VMM_TAKES_MERGED))
		r = err_set(e, -ENOTSUP,
			"vm \"%s\" runs in a VMM of an older version, which knows nothing of merged segments: `pando stop` and `pando start` it",
			vm_name(vm));
	return r;
}

/* Without the lock. *ret_sure: it has not, for certain, taken it all. */
static int
tell(struct tree *t, struct vm *vm, const struct merge_run *m, bool *ret_sure, struct err *e)
{
	cleanup_close int data = -1, index = -1;
	struct vmm_merged msg;
	int r = check_vmm(vm, t->config.answer_timeout_ms, e);

	*ret_sure = r == -ENOTSUP;
	if (r < 0)
		return r;
	r = describe(t, m, &msg, e);
	if (r == 0)
		r = data = open_file(t, m->merged.segment, "data", e);
	if (r >= 0)
		r = index = open_file(t, m->merged.segment, "index", e);
	if (r < 0)
		return r;
	r = vmmctl_merged(vm->ctl, &msg, (int[VMM_MERGED_FD_COUNT]){data, index},
		t->config.answer_timeout_ms, ret_sure, e);
	return r;
}

/* Before the last commit's last segment becomes part of another: which one says the same. A run
 * that begins before it and ends behind it is read again. */
static void
move_commit(struct vm_row *row, const struct chain_link *links, size_t n,
	const struct merge_run *m)
{
	const size_t at = find_run(row, links, n, m);

	for (size_t k = 0; at < n && k < m->n; k++) {
		if (strcmp(row->commit_segment, m->links[k].segment) != 0)
			continue;
		if (k + 1 == m->n)
			memcpy(row->commit_segment, m->merged.segment, DB_SEGMENT_MAX);
		else if (at)
			memcpy(row->commit_segment, links[at - 1].segment, DB_SEGMENT_MAX);
		else
			row->commit_segment[0] = '\0';
		return;
	}
}

/* The last step. */
static int
note(struct tree *t, struct vm *vm, const struct merge_run *m, struct err *e)
{
	cleanup_free struct chain_link *links = NULL;
	char was[DB_SEGMENT_MAX];
	size_t n = 0;
	int r = db_chain(t->db, vm->row.id, &links, &n, e);

	memcpy(was, vm->row.commit_segment, sizeof(was));
	if (r == 0)
		r = db_begin(t->db, e);
	if (r < 0)
		return r;
	move_commit(&vm->row, links, n, m);
	r = db_merge_end(t->db, vm->row.id, e);
	if (r == 0 && strcmp(was, vm->row.commit_segment) != 0)
		r = db_update(t->db, &vm->row, e);
	if (r == 0)
		r = db_commit(t->db, e);
	if (r < 0) {
		db_rollback(t->db);
		memcpy(vm->row.commit_segment, was, sizeof(was));
	}
	return r;
}

/* A claimed VM, of which the database has a note of a merge. */
static int
finish(struct tree *t, struct vm *vm, const struct merge_run *m, struct err *e)
{
	bool sure = false;
	int r = 0;

	if (vm_state_lives(vm->row.state) && !vm->dead) {
		if (!vm->ctl || vm->closed_ns)
			return err_set(e, -EBUSY, "vm \"%s\" is ending", vm_name(vm));
		pthread_mutex_unlock(&t->lock);
		r = tell(t, vm, m, &sure, e);
		if (r == 0)
			fault_point("merge.swapped");
		pthread_mutex_lock(&t->lock);
	}
	if (r == 0)
		r = note(t, vm, m, e);
	else if (sure)
		(void)db_merge_drop(t->db, vm->row.id, NULL);
	return r;
}

/* The merged segment lacks what this VM's later segments decide. */
static int
check_unshared(struct tree *t, const struct vm *vm, const char *segment, struct err *e)
{
	char(*ids)[DB_SEGMENT_MAX] = NULL;
	size_t n = 0;
	int r = db_chain_sharers(t->db, segment, &ids, &n, e);

	free(ids);
	if (r == 0 && n != 1)
		r = err_set(e, -ENOENT, "segment %s is not vm \"%s\"'s alone any more",
			segment, vm_name(vm));
	return r;
}

int
merge_take(struct tree *t, struct vm *vm, const struct merge_run *m, uint32_t patience_ms,
	struct err *e)
{
	cleanup_free struct chain_link *links = NULL;
	size_t n = 0;
	int r = merge_claim(t, vm, patience_ms, e);

	if (r < 0)
		return r;
	r = db_chain(t->db, vm->row.id, &links, &n, e);
	if (r == 0 && find_run(&vm->row, links, n, m) == n)
		r = err_set(e, -ENOENT, "vm \"%s\" has another disk by now", vm_name(vm));
	if (r == 0 && m->is_of_one)
		r = check_unshared(t, vm, m->links[0].segment, e);
	if (r == 0)
		r = db_begin(t->db, e);
	if (r == 0) {
		r = db_merge_begin(t->db, vm->row.id, &m->merged, m->links[0].segment,
			m->links[m->n - 1].segment, e);
		if (r == 0)
			r = db_commit(t->db, e);
		if (r < 0)
			db_rollback(t->db);
	}
	if (r == 0) {
		fault_point("merge.entered");
		r = finish(t, vm, m, e);
	}
	merge_release(t, vm);
	return r;
}

int
merge_finish(struct tree *t, struct vm *vm, struct err *e)
{
	struct merge_run m = {0};
	int r = db_merge_find(t->db, vm->row.id, &m.merged, &m.links, &m.n, e);

	merge_run_done(&m);
	if (r <= 0)
		return r;
	r = merge_claim(t, vm, MERGE_PATIENCE_MS, e);
	if (r < 0)
		return r;
	/* It may be another one, or none, by now. */
	r = db_merge_find(t->db, vm->row.id, &m.merged, &m.links, &m.n, e);
	if (r > 0)
		r = finish(t, vm, &m, e);
	merge_run_done(&m);
	merge_release(t, vm);
	return r;
}
