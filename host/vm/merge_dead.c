#include "host/vm/merge_dead.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/log.h"
#include "host/vm/chain_files.h"
#include "host/vm/merge_swap.h"
#include "vmm/segment_merge.h"

/* live[i] of links[from, to): what they decide among themselves. */
static int
count_side(const struct chain_files *f, size_t from, size_t to, uint64_t disk_mib,
	uint64_t *live, struct err *e)
{
	const struct disk_chain side = {
		.segments = f->segments + from, .n_segments = to - from};

	return from == to ? 0 : disk_count_live(&side, disk_mib, live + from, e);
}

/* Without the lock; links[0..n) are sealed, those from own on are the VM's. */
static int
count(const struct tree *t, const struct chain_link *links, size_t own, size_t n,
	uint64_t disk_mib, uint64_t *live, bool *half_dead, struct err *e)
{
	cleanup_chain_files struct chain_files f = {0};
	bool any = false;
	int r = chain_files_make(t->config.home, links, n, &f, e);

	if (r == 0)
		r = count_side(&f, 0, own, disk_mib, live, e);
	if (r == 0)
		r = count_side(&f, own, n, disk_mib, live, e);
	for (size_t i = 0; i < n && r == 0; i++) {
		struct stat st;
		uint64_t blocks = stat(f.paths[i][0], &st) < 0
					  ? 0
					  : (uint64_t)st.st_size / SEGMENT_BLOCK;

		half_dead[i] = blocks >= MERGE_DEAD_BLOCKS && live[i] <= blocks / 2;
		any = any || !live[i] || half_dead[i];
	}
	return r == 0 && any ? segments_sync(f.segments, n, e) : r;
}

/* Whether the chain begins with these links still. */
static bool
begins_with(const struct chain_link *chain, size_t n_chain, const struct chain_link *links,
	size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (i + 1 >= n_chain || strcmp(chain[i].segment, links[i].segment) != 0 ||
			chain[i].records != links[i].records)
			return false;
	return true;
}

/* The dead ones leave the chain of a claimed VM. With the lock. */
static int
drop(struct tree *t, struct vm *vm, const struct chain_link *links, size_t n,
	const uint64_t *live, struct err *e)
{
	char at[DB_SEGMENT_MAX], before[DB_SEGMENT_MAX] = "";
	unsigned dropped = 0;
	int r = db_begin(t->db, e);

	if (r < 0)
		return r;
	memcpy(at, vm->row.commit_segment, sizeof(at));
	for (size_t i = 0; i < n && r == 0; i++) {
		if (live[i]) {
			memcpy(before, links[i].segment, sizeof(before));
			continue;
		}
		/* Its last commit's last segment: what comes after it is the same. */
		if (strcmp(vm->row.commit_segment, links[i].segment) == 0)
			memcpy(vm->row.commit_segment, before, sizeof(before));
		r = db_chain_remove(t->db, vm->row.id, links[i].segment, e);
		dropped++;
	}
	if (r == 0)
		r = db_update(t->db, &vm->row, e);
	if (r == 0)
		r = db_commit(t->db, e);
	if (r < 0) {
		db_rollback(t->db);
		memcpy(vm->row.commit_segment, at, sizeof(at));
	} else {
		fault_point("merge.dropped");
		log_debug("vm %s: %u segments of which nothing is read are dropped",
			vm->row.id, dropped);
	}
	return r;
}

static bool
is_own(const char (*names)[DB_SEGMENT_MAX], size_t n, const char *segment)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(names[i], segment) == 0)
			return true;
	return false;
}

/* One that is half dead, and no other VM's. With the lock. */
static int
find_half_dead(struct tree *t, const struct vm *vm, const struct chain_link *links, size_t n,
	const uint64_t *live, const bool *half_dead, size_t *ret, struct err *e)
{
	char(*names)[DB_SEGMENT_MAX] = NULL;
	size_t n_names = 0;
	int r = db_chain_own(t->db, vm->row.id, &names, &n_names, e);

	for (size_t i = 0; i < n && r == 0; i++) {
		if (!live[i] || !half_dead[i] ||
			!is_own((const char(*)[DB_SEGMENT_MAX])names, n_names,
				links[i].segment))
			continue;
		*ret = i;
		r = 1;
	}
	free(names);
	return r;
}

int
merge_dead(struct tree *t, struct vm *vm, struct chain_link **ret_links, size_t *ret_n,
	struct merge_plan *ret, size_t *ret_later, struct err *e)
{
	cleanup_free struct chain_link *links = NULL, *now = NULL;
	cleanup_free uint64_t *live = NULL;
	cleanup_free bool *half_dead = NULL;
	const uint64_t disk_mib = vm_disk_mib(&vm->row);
	size_t n = 0, n_now = 0, own, at = 0;
	bool any_dead = false;
	int r = db_chain(t->db, vm->row.id, &links, &n, e);

	if (r < 0 || n < 2)
		return r;
	n--; /* the one being written */
	for (size_t i = 0; i < n; i++)
		if (links[i].records < 0)
			return 0; /* somebody may be writing it */
	own = merge_own_links(&vm->row, links, n);
	live = calloc(n, sizeof(*live));
	half_dead = calloc(n, sizeof(*half_dead));
	if (!live || !half_dead)
		return err_set(e, -ENOMEM, "out of memory");
	pthread_mutex_unlock(&t->lock);
	r = count(t, links, own, n, disk_mib, live, half_dead, e);
	pthread_mutex_lock(&t->lock);
	for (size_t i = 0; i < n; i++)
		any_dead = any_dead || !live[i];
	if (r == 0 && any_dead) {
		r = merge_claim(t, vm, MERGE_PATIENCE_MS, e);
		if (r < 0)
			return r;
		r = db_chain(t->db, vm->row.id, &now, &n_now, e);
		if (r == 0 && begins_with(now, n_now, links, n))
			r = drop(t, vm, links, n, live, e);
		merge_release(t, vm);
	}
	if (r == 0)
		r = find_half_dead(t, vm, links, n, live, half_dead, &at, e);
	if (r <= 0)
		return r;
	*ret = (struct merge_plan){.from = at, .n = 1, .weight = links[at].weight};
	*ret_later = (at < own ? own : n) - at - 1;
	*ret_links = TAKE_PTR(links);
	*ret_n = n + 1;
	return 1;
}
