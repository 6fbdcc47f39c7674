#include "host/vm/merge.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "common/log.h"
#include "common/text.h"
#include "host/vm/chain_files.h"
#include "host/vm/merge_dead.h"
#include "host/vm/merge_plan.h"
#include "host/vm/merge_swap.h"
#include "vmm/segment_merge.h"

#define NICE 10
#define NS_PER_MS UINT64_C(1000000)
/* After a failure: doubled with each, from the first to the second. */
#define AGAIN_MS 2000u
#define AGAIN_MAX_MS 600000u
#define WAIT_LOOK_MS 100u

_Static_assert(SEGMENT_MERGE_MAX <= VMM_MERGED_MAX, "a VMM is told of all at once");

void
merge_wanted(struct tree *t, struct vm *vm)
{
	vm->merge_due = true;
	pthread_cond_signal(&t->merge_asked);
}

static int
segment_path(const struct tree *t, const char *segment, const char *suffix,
	char dst[static PATHS_MAX], struct err *e)
{
	return paths_format(
		dst, PATHS_MAX, e, "%s/segments/%s.%s", t->config.home, segment, suffix);
}

/* Without the lock: links[0..n) are sealed. False: there is nothing to be merged. */
static bool
plan(const struct tree *t, const struct vm_row *row, const struct chain_link *links,
	size_t n, struct merge_plan *ret)
{
	cleanup_free struct merge_link *all = calloc(n + 1, sizeof(*all));
	const size_t own = merge_own_links(row, links, n);

	for (size_t i = 0; all && i < n; i++) {
		char path[PATHS_MAX];
		struct stat st;

		all[i] = (struct merge_link){.weight = links[i].weight,
			.fixed = links[i].records < 0,
			.begins_zone = i == own ||
				       (i && strcmp(links[i - 1].segment,
						     row->commit_segment) == 0)};
		if (segment_path(t, links[i].segment, "data", path, NULL) < 0 ||
			stat(path, &st) < 0)
			all[i].fixed = true;
		else if (!all[i].weight)
			all[i].weight = (uint64_t)st.st_size / SEGMENT_BLOCK + 1;
	}
	return all && merge_plan(all, n, ret);
}

static bool
is_stopping(void *tree)
{
	struct tree *t = tree;
	bool stopping;

	pthread_mutex_lock(&t->lock);
	stopping = t->stopping;
	pthread_mutex_unlock(&t->lock);
	return stopping;
}

static int
write_into(struct tree *t, const struct chain_link *run, const struct merge_run *m,
	size_t n_later, uint64_t disk_mib, const struct vm_segment *own,
	struct segment_merged *ret, struct err *e)
{
	cleanup_chain_files struct chain_files f = {0};
	struct segment_merge how = {.n_run = m->n,
		.n_later = n_later,
		.disk_mib = disk_mib,
		.data_fd = own->fd[VMM_SEG_DATA],
		.index_fd = own->fd[VMM_SEG_INDEX],
		.stop = is_stopping,
		.ctx = t};
	int r = chain_files_make(t->config.home, run, m->n + n_later, &f, e);

	how.run = f.segments;
	return r < 0 ? r : segment_merge(&how, ret, e);
}

/* Without the lock. run: the links, and n_later behind them (segment_merge.h). On failure no file
 * is left. */
static int
write_merged(struct tree *t, struct merge_run *m, const struct chain_link *run,
	size_t n_later, uint64_t disk_mib, struct segment_merged *ret, struct err *e)
{
	cleanup_vm_segment struct vm_segment own = VM_SEGMENT_INIT;
	uint8_t random[8];
	char hex[17];
	int r = tree_random(random, sizeof(random), e);

	if (r < 0)
		return r;
	text_hex(hex, random, sizeof(random));
	snprintf(m->merged.segment, sizeof(m->merged.segment), "%.12s.m%s",
		m->links[m->n - 1].segment, hex);
	r = tree_make_segment(t, m->merged.segment, &own, e);
	if (r == 0) {
		fault_point("merge.made");
		r = write_into(t, run, m, n_later, disk_mib, &own, ret, e);
	}
	/* A name in the folder that is not on the disk must be in no row. */
	if (r == 0)
		r = tree_sync_segments(t, e);
	if (r < 0) {
		launch_remove_segment(t->config.home, m->merged.segment);
		return r;
	}
	m->merged.records = (int64_t)ret->records;
	fault_point("merge.synced");
	return 0;
}

/* Who else has the run. With the lock, which is given up meanwhile. */
static unsigned
let_relatives_take(struct tree *t, const struct vm *but, const struct merge_run *m)
{
	char(*ids)[DB_SEGMENT_MAX] = NULL;
	unsigned taken = 0;
	struct err e;
	size_t n = 0;

	if (db_chain_sharers(t->db, m->links[m->n - 1].segment, &ids, &n, &e) < 0)
		log_warn("%s", e.msg);
	for (size_t i = 0; i < n && !t->stopping; i++) {
		struct vm *vm = NULL;
		int r;

		/* Frozen forks have rows, and are in no table. */
		if (strcmp(ids[i], but->row.id) == 0 || tree_find(t, ids[i], &vm, NULL) < 0)
			continue;
		r = merge_finish(t, vm, &e);
		if (r == 0)
			r = merge_take(t, vm, m, MERGE_PATIENCE_RELATIVE_MS, &e);
		taken += r == 0;
		if (r < 0 && r != -ENOENT)
			log_info("vm %s (%s): its disk keeps its old segments for now: %s",
				vm->row.id, vm_name(vm), e.msg);
		vm_unref(vm);
	}
	free(ids);
	return taken;
}

/* What nobody names goes. With the lock, which is given up meanwhile. */
static void
sweep(struct tree *t, const char *merged)
{
	struct err e;

	/* The next sync, with the lock, has little to do then. */
	pthread_mutex_unlock(&t->lock);
	(void)tree_sync(t, &e);
	pthread_mutex_lock(&t->lock);
	if (tree_sweep(t, &e) < 0)
		log_err("merged segments: %s", e.msg);
	if (db_segment_known(t->db, merged, NULL) == 0)
		launch_remove_segment(t->config.home, merged);
	fault_point("merge.swept");
}

/* A planned merge of links, with n_later behind it (merge_dead.h). With the lock, which is given
 * up meanwhile. */
static int
carry_out(struct tree *t, struct vm *vm, const struct chain_link *links,
	const struct merge_plan *p, size_t n_later, struct err *e)
{
	const uint64_t disk_mib = vm_disk_mib(&vm->row), began_ns = io_now_ns();
	struct merge_run m = {.n = p->n, .merged.weight = p->weight, .is_of_one = n_later};
	struct segment_merged merged = {0};
	unsigned taken = 0;
	int r = 0;

	m.links = calloc(p->n, sizeof(*m.links));
	if (!m.links)
		return err_set(e, -ENOMEM, "out of memory");
	memcpy(m.links, links + p->from, p->n * sizeof(*m.links));
	pthread_mutex_unlock(&t->lock);
	r = write_merged(t, &m, links + p->from, n_later, disk_mib, &merged, e);
	pthread_mutex_lock(&t->lock);
	if (r == 0) {
		r = merge_take(t, vm, &m, MERGE_PATIENCE_MS, e);
		if ((r == 0 || r == -ENOENT) && !m.is_of_one)
			taken = let_relatives_take(t, vm, &m);
		log_debug(
			"vm %s: %zu segments became one of %" PRIu64 " KiB and weight %" PRIu64
			" in %" PRIu64 " ms; %u relatives",
			vm->row.id, m.n, merged.data_bytes >> 10, m.merged.weight,
			(io_now_ns() - began_ns) / NS_PER_MS, taken);
		fault_point("merge.noted");
		sweep(t, m.merged.segment);
	}
	merge_run_done(&m);
	return r;
}

/* One merge. 1: done, there may be more; 0: nothing to do. With the lock, which is given up
 * meanwhile. */
static int
merge_once(struct tree *t, struct vm *vm, struct err *e)
{
	cleanup_free struct chain_link *links = NULL;
	cleanup_free struct vm_row *row = malloc(sizeof(*row));
	struct merge_plan p;
	size_t n = 0;
	bool is_due;
	int r = row ? merge_finish(t, vm, e) : err_set(e, -ENOMEM, "out of memory");

	if (r == 0 && vm->merge_unable)
		r = err_set(e, -ENOTSUP, "%s", vm->merge_failed);
	if (r == 0)
		r = db_chain(t->db, vm->row.id, &links, &n, e);
	if (r < 0 || n < 2 || !vm->listed)
		return r;
	*row = vm->row;
	pthread_mutex_unlock(&t->lock);
	is_due = plan(t, row, links, n - 1, &p);
	pthread_mutex_lock(&t->lock);
	if (!is_due)
		return 0;
	r = carry_out(t, vm, links, &p, 0, e);
	return r < 0 ? r : 1;
}

/* What the merges left that nobody reads. Likewise. */
static int
give_back_once(struct tree *t, struct vm *vm, struct err *e)
{
	cleanup_free struct chain_link *links = NULL;
	struct merge_plan p;
	size_t n = 0, later = 0;
	int r = merge_dead(t, vm, &links, &n, &p, &later, e);

	if (r <= 0)
		return r;
	r = carry_out(t, vm, links, &p, later, e);
	return r < 0 ? r : 1;
}

/* Whose turn it is; else when to look again. With the lock. */
static struct vm *
next_due(struct tree *t, uint64_t *ret_at_ns)
{
	const uint64_t now = io_now_ns();

	*ret_at_ns = UINT64_MAX;
	for (unsigned i = 0; i < t->n_vms; i++) {
		struct vm *vm = t->vms[i];

		if (!vm->merge_due || vm->unmet)
			continue;
		if (vm->merge_at_ns <= now)
			return vm;
		if (vm->merge_at_ns < *ret_at_ns)
			*ret_at_ns = vm->merge_at_ns;
	}
	return NULL;
}

static void
merge_vm(struct tree *t, struct vm *vm)
{
	static struct log_limit limit = {.burst = 10};
	bool merged = false;
	struct err e;
	int r;

	vm->merge_due = false;
	while ((r = merge_once(t, vm, &e)) > 0 && !t->stopping) {
		merged = true;
		vm->merge_fails = 0;
		pthread_cond_broadcast(&t->changed);
	}
	if (r == 0 && merged) {
		while (!t->stopping && (r = give_back_once(t, vm, &e)) > 0)
			;
		if (r == 0)
			r = tree_sweep(t, &e);
	}
	if (r < 0 && r != -ENOENT && !t->stopping) {
		uint64_t pause_ms = AGAIN_MS;

		for (unsigned i = 0; i < vm->merge_fails && pause_ms < AGAIN_MAX_MS; i++)
			pause_ms *= 2;
		vm->merge_fails++;
		vm->merge_at_ns = io_now_ns() + pause_ms * NS_PER_MS;
		vm->merge_due = true;
		vm->merge_unable = r == -ENOTSUP;
		snprintf(vm->merge_failed, sizeof(vm->merge_failed), "%.250s", e.msg);
		if (r != -EBUSY && log_allowed(&limit))
			log_warn("vm %s (%s): its disk's old segments are not merged: %s; trying again in %" PRIu64
				 " s",
				vm->row.id, vm_name(vm), e.msg, pause_ms / 1000);
	} else {
		vm->merge_fails = 0;
		vm->merge_at_ns = 0;
	}
	vm->merges_tried++;
	pthread_cond_broadcast(&t->changed);
}

static void *
merger_main(void *tree)
{
	struct sched_param none = {0};
	struct tree *t = tree;

	(void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE);
	(void)sched_setscheduler(0, SCHED_BATCH, &none);
	pthread_mutex_lock(&t->lock);
	/* What an earlier pandod left. */
	for (unsigned i = 0; i < t->n_vms; i++)
		t->vms[i]->merge_due = true;
	while (!t->stopping) {
		uint64_t at_ns;
		struct vm *vm = next_due(t, &at_ns);

		if (vm) {
			vm->refs++;
			merge_vm(t, vm);
			vm_unref(vm);
			continue;
		}
		if (at_ns == UINT64_MAX) {
			pthread_cond_wait(&t->merge_asked, &t->lock);
		} else {
			struct timespec at = {.tv_sec = (time_t)(at_ns / 1000000000u),
				.tv_nsec = (long)(at_ns % 1000000000u)};

			pthread_cond_timedwait(&t->merge_asked, &t->lock, &at);
		}
	}
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

int
merge_start(struct tree *t, struct err *e)
{
	int r = -pthread_create(&t->merger, NULL, merger_main, t);

	if (r < 0)
		return err_sys(e, r, "making a thread");
	t->has_merger = true;
	return 0;
}

/* With the lock, which is given up meanwhile. */
static int
wait_room(struct tree *t, struct vm *vm, const struct progress *p, struct err *e)
{
	const unsigned tried = vm->merges_tried;
	bool said = false;
	int r;

	/* What its last fork point found; a merge has made it shorter since, if anything. */
	while (vm->n_links >= MERGE_LINKS_MAX) {
		uint64_t end = io_now_ns() + WAIT_LOOK_MS * NS_PER_MS;
		struct timespec at = {.tv_sec = (time_t)(end / 1000000000u),
			.tv_nsec = (long)(end % 1000000000u)};
		cleanup_free struct chain_link *links = NULL;

		r = db_chain(t->db, vm->row.id, &links, &vm->n_links, e);
		if (r < 0 || vm->n_links < MERGE_LINKS_MAX || !vm->listed || vm->dead)
			return r;
		if (t->stopping)
			return err_set(e, -ECANCELED, "pandod is stopping");
		if (has_gone(p))
			return err_set(e, -ECANCELED, "cancelled: its caller has gone");
		if (vm->merges_tried != tried)
			return err_set(e, -EMFILE,
				"vm \"%s\": its disk is made of %zu segments, and they could not be merged: %s",
				vm_name(vm), vm->n_links,
				vm->merge_fails ? vm->merge_failed
						: "none of them can be");
		if (!said)
			say(p, "vm \"%s\": its disk is made of %zu segments: waiting until old ones are merged",
				vm_name(vm), vm->n_links);
		said = true;
		vm->merge_at_ns = 0;
		merge_wanted(t, vm);
		pthread_cond_timedwait(&t->changed, &t->lock, &at);
	}
	return 0;
}

int
merge_wait_room(struct tree *t, const char *name, const struct progress *p, struct err *e)
{
	struct vm *vm;
	int r;

	pthread_mutex_lock(&t->lock);
	/* Who asks for a VM that is not there is told so by the claim. */
	r = tree_find(t, name, &vm, NULL);
	if (r == 0) {
		r = wait_room(t, vm, p, e);
		vm_unref(vm);
	} else {
		r = 0;
	}
	pthread_mutex_unlock(&t->lock);
	return r;
}
