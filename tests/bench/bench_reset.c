/*
 * What a reset costs after a guest wrote so many pages and came to rest, beside a spawn from
 * the same commit, and beside the kernel's part of it. Small guests of which 128 MiB are touched in the commit.
 *
 *   bench_reset [--json] [--rounds N] [--mem MIB]
 *
 * A row each: pages that the guest wrote since it began (beside some twenty of its own), one after
 * the other, or every spread-th of 32 768. Keys, in µs:
 *
 * reset   the request (VMM_RESET) leaves until the guest's first doorbell in its new life
 * spawn   likewise of VMM_RESTORE, in a pre-warmed VMM; it is not made on the clock
 * reset_paged  likewise, as on a host whose CPU walks the guest's page tables (VMM_RESET_NO_SHADOWS),
 *         whatever this one is: the small guest never changes its own
 * stopped of the reset, as the VMM says it: vCPUs asked to stop ... running again
 * call_reset, call_spawn  the whole of `pando reset` and `pando run-commit` inside pandod, with
 *         files, database and a pool of pre-warmed VMMs, until the same doorbell
 * bare    madvise, the state's load, run until the doorbell: one thread, no message, told which
 *         pages (floor.h); bare_all: one madvise of all memory instead. The lesser counts.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "tests/bench/bench.h"
#include "tests/bench/floor.h"
#include "tests/bench/sample.h"

#define TOUCHED_PAGES 32768u
#define DIRTY_GPA 0x400000ull /* the small guest's */

struct row {
	uint64_t pages, spread;
};

static void
make_commit(const struct row *row, bool rests, char tag[static 64],
	struct materialized_image *ret)
{
	cleanup_json_out struct json_out answer = {0};
	struct bench_vm vm = BENCH_VM_INIT;
	struct commit_request q = {.n_tags = 1};
	const struct progress quiet = {0};
	struct store_manifest *m = NULL;
	struct store *store;
	char cmdline[128];
	struct err e;
	int r;

	snprintf(tag, 64, "bench-%llu-%llu-%d", (unsigned long long)row->pages,
		(unsigned long long)row->spread, rests);
	snprintf(q.tags[0], sizeof(q.tags[0]), "%s", tag);
	snprintf(cmdline, sizeof(cmdline),
		"mode=work rest=%d stand=1 redirty=1 dirty=%u again=%llu stride=%llu", rests,
		TOUCHED_PAGES, (unsigned long long)row->pages,
		(unsigned long long)row->spread);
	bench_boot(&vm, cmdline);
	r = commits_make(bench.commits, vm.id, &q, &quiet, &answer, &e);
	if (r == 0)
		r = commits_store(bench.commits, &store, &e);
	if (r == 0)
		r = store_load(store, q.tags[0], &m, &e);
	if (r == 0)
		r = materialized_get(bench.commits, store, m,
			MATERIALIZED_FULL | MATERIALIZED_ONE_DISK, &quiet, ret, &e);
	if (r < 0)
		bench_die("commit", &e);
	store_manifest_free(m);
	bench_end_vm(&vm);
}

static void
restore_message(const struct materialized_image *image, const struct bench_vm *vm,
	struct vmm_restore *ret, int fds[VMM_RESTORE_FD_COUNT])
{
	*ret = (struct vmm_restore){
		.mem_mib = bench.mem_mib,
		.disk_mib = 16,
		.blob_bytes = image->state_bytes,
		.vcpus = 1,
		.flags = VMM_RESTORE_HAS_BASE,
	};
	memcpy(ret->generation, vm->generation, 16);
	snprintf(ret->name, sizeof(ret->name), "%s", vm->id);
	fds[VMM_RESTORE_FD_LISTEN] = vm->files.listen_fd;
	fds[VMM_RESTORE_FD_VSOCK] = vm->files.vsock_fd;
	fds[VMM_RESTORE_FD_CONSOLE] = vm->files.console_fd;
	fds[VMM_RESTORE_FD_LOG] = vm->files.log_fd;
	fds[VMM_RESTORE_FD_STATE] = image->state_fd;
	fds[VMM_RESTORE_FD_MEMORY] = image->memory_fd;
	fds[VMM_RESTORE_FD_BASE] = image->disk_fd;
	vm_segment_put(&vm->segment, fds + VMM_RESTORE_FD_SEG);
	fds[VMM_RESTORE_FD_KVM] = bench.kvm;
}

static void
spawn(const struct materialized_image *image, struct bench_vm *vm, bool rests,
	struct samples *s)
{
	int fds[VMM_RESTORE_FD_COUNT];
	struct vmm_restore msg;
	uint64_t began_ns, rang_ns;
	struct err e;

	bench_files(vm, rests);
	bench_prewarmed(vm);
	restore_message(image, vm, &msg, fds);
	bench_settle();
	began_ns = io_now_ns();
	if (vmmctl_restore(vm->ctl, &msg, fds, &e) < 0)
		bench_die("restore", &e);
	bench_wait_started(vm, NULL);
	rang_ns = bench_first_doorbell(vm);
	if (!s)
		return;
	s->tried++;
	if (rang_ns)
		sample_add(s, rang_ns - began_ns);
}

static void
measure_spawn(const struct materialized_image *image, struct samples *s)
{
	struct bench_vm vm;

	spawn(image, &vm, true, s);
	bench_end_vm(&vm);
}

/* Until the guest has written what it writes in each life. */
static void
wait_dirty(struct bench_vm *vm)
{
	if (!bench_line(vm, "fork n=2 ", NULL, 0))
		bench_die("reset", &(struct err){.msg = "the guest says nothing"});
	bench_settle();
}

static void
measure_reset(const struct materialized_image *image, struct bench_vm *vm, bool paged,
	struct samples *s, struct samples *stopped)
{
	struct vmm_reset msg = {.disk_mib = 16,
		.blob_bytes = image->state_bytes,
		.flags = VMM_RESET_HAS_BASE | (paged ? VMM_RESET_NO_SHADOWS : 0)};
	struct vmm_reset_answer answer;
	uint64_t began_ns, rang_ns;
	bool uncertain;
	struct err e;

	bench_next_segment(vm);

	int fds[VMM_RESET_FD_COUNT] = {
		[VMM_RESET_FD_STATE] = image->state_fd,
		[VMM_RESET_FD_MEMORY] = image->memory_fd,
		[VMM_RESET_FD_BASE] = image->disk_fd,
	};

	vm_segment_put(&vm->segment, fds + VMM_RESET_FD_SEG);
	if (tree_random(msg.generation, sizeof(msg.generation), &e) < 0)
		bench_die("generation", &e);
	msg.generation[15] = 0;
	s->tried++;
	if (stopped)
		stopped->tried++;
	began_ns = io_now_ns();
	if (vmmctl_reset(vm->ctl, &msg, fds, BENCH_WAIT_MS, &answer, &uncertain, &e) < 0)
		bench_die("reset", &e);
	rang_ns = bench_first_doorbell(vm);
	if (rang_ns)
		sample_add(s, rang_ns - began_ns);
	if (stopped)
		sample_add(stopped, answer.pause_ns);
	vm_segment_done(&vm->segment);
	wait_dirty(vm);
}

static void
measure_bare(const struct materialized_image *image, const struct row *row, bool by_range,
	struct samples *s)
{
	const struct floor_dirty d = {DIRTY_GPA, row->pages, row->spread, TOUCHED_PAGES};
	const unsigned rounds = bench.rounds;
	uint64_t *ns = calloc(rounds, sizeof(*ns));
	int fds[VMM_RESTORE_FD_COUNT];
	struct vmm_restore msg;
	struct bench_vm vm;
	struct err e;

	if (!ns)
		exit(1);
	bench_files(&vm, true);
	restore_message(image, &vm, &msg, fds);
	if (floor_reset(bench.kvm, &msg, fds, &d, by_range, rounds, ns, &e) < 0)
		bench_die("bare", &e);
	s->tried += rounds;
	for (unsigned i = 0; i < rounds; i++)
		sample_add(s, ns[i]);
	bench_end_vm(&vm);
	free(ns);
}

/* Calls, as api/ makes them. */

static struct vm *
vm_called_by(const char *alias)
{
	struct vm *vm = NULL;
	struct err e;

	pthread_mutex_lock(&bench.tree->lock);
	if (tree_find(bench.tree, alias, &vm, &e) < 0)
		bench_die("call", &e);
	vm_unref(vm); /* the table has one */
	pthread_mutex_unlock(&bench.tree->lock);
	return vm;
}

/* When its guest rang, of a VM of the tree. */
static uint64_t
rang_of(struct vm *vm)
{
	const struct bench_vm b = {.ctl = vm->ctl};

	return bench_first_doorbell(&b);
}

static void
call_spawn(const char *tag, const char *alias, struct samples *s)
{
	cleanup_json_out struct json_out answer = {0};
	struct branch_request q = {.count = 1};
	const struct progress quiet = {0};
	uint64_t began_ns, rang_ns;
	struct err e;

	snprintf(q.alias, sizeof(q.alias), "%s", alias);
	began_ns = io_now_ns();
	if (commits_run(bench.commits, tag, &q, &quiet, &answer, &e) < 0)
		bench_die("run-commit", &e);
	rang_ns = rang_of(vm_called_by(alias));
	if (!s)
		return;
	s->tried++;
	if (rang_ns)
		sample_add(s, rang_ns - began_ns);
}

static void
call_delete(const char *alias)
{
	cleanup_json_out struct json_out answer = {0};
	struct err e;

	if (tree_delete(bench.tree, alias, false, false, &(struct progress){0}, &answer, &e) < 0)
		bench_die("delete", &e);
}

static void
call_reset(const char *alias, struct samples *s)
{
	cleanup_json_out struct json_out answer = {0};
	const struct reset_request q = {.wait = false};
	const struct progress quiet = {0};
	uint64_t began_ns, rang_ns;
	struct err e;

	s->tried++;
	began_ns = io_now_ns();
	if (commits_reset(bench.commits, alias, &q, &quiet, &answer, &e) < 0)
		bench_die("reset", &e);
	rang_ns = rang_of(vm_called_by(alias));
	if (rang_ns)
		sample_add(s, rang_ns - began_ns);
}

static void
measure_calls(const struct row *row, struct samples *reset, struct samples *spawned)
{
	struct materialized_image image = MATERIALIZED_IMAGE_INIT;
	const struct timespec dirties = {.tv_nsec = 20000000};
	char tag[64];

	make_commit(row, false, tag, &image);
	call_spawn(tag, "stays", NULL);
	for (unsigned i = 0; i < bench.rounds; i++) {
		nanosleep(&dirties, NULL); /* the guest writes, and the pool is filled again */
		call_reset("stays", reset);
		nanosleep(&dirties, NULL);
		call_spawn(tag, "goes", spawned);
		call_delete("goes");
	}
	call_delete("stays");
	materialized_release(bench.commits, &image);
}

static void
measure(const struct row *row)
{
	static struct samples reset, paged, stopped, spawned, bare, bare_all, calls, call_spawns;
	struct materialized_image image = MATERIALIZED_IMAGE_INIT;
	struct samples *floors = &bare;
	struct bench_vm vm;
	char tag[64];

	sample_clear(&reset, "reset", "request leaves ... the guest's first doorbell");
	sample_clear(&paged, "reset_paged", "likewise, no shadows of page tables");
	sample_clear(&stopped, "stopped", "of that, its vCPU stands");
	sample_clear(&spawned, "spawn", "likewise, of a pre-warmed VMM");
	sample_clear(&bare, "bare", "madvise by ranges, state, run");
	sample_clear(&bare_all, "bare_all", "madvise of all, state, run");
	sample_clear(&calls, "call_reset", "the whole call, until the same");
	sample_clear(&call_spawns, "call_spawn", "likewise");
	make_commit(row, true, tag, &image);
	spawn(&image, &vm, false, NULL);
	wait_dirty(&vm);
	measure_bare(&image, row, true, &bare);
	/* In turns, so that both see the same host. */
	for (unsigned i = 0; i < bench.rounds; i++) {
		measure_reset(&image, &vm, false, &reset, &stopped);
		measure_reset(&image, &vm, true, &paged, NULL);
		measure_spawn(&image, &spawned);
	}
	measure_bare(&image, row, false, &bare_all);
	bench_end_vm(&vm);
	measure_calls(row, &calls, &call_spawns);
	if (sample_percentile(&bare_all, 50) < sample_percentile(&bare, 50))
		floors = &bare_all;
	sample_row_begin(bench.out, "%llu pages, spread %llu", (unsigned long long)row->pages,
		(unsigned long long)row->spread);
	if (bench.out) {
		json_out_u64(bench.out, "pages", row->pages);
		json_out_u64(bench.out, "spread", row->spread);
	}
	sample_report(&reset, bench.out);
	sample_report(&paged, bench.out);
	sample_report(&stopped, bench.out);
	sample_report(&spawned, bench.out);
	sample_report(&bare, bench.out);
	sample_report(&bare_all, bench.out);
	sample_report(&calls, bench.out);
	sample_report(&call_spawns, bench.out);
	bench_number("to_bare",
		(double)sample_percentile(&reset, 50) /
			(double)sample_percentile(floors, 50),
		"reset / the lesser bare");
	bench_number("to_spawn",
		(double)sample_percentile(&reset, 50) /
			(double)sample_percentile(&spawned, 50),
		"reset / spawn");
	bench_number("call_to_spawn",
		(double)sample_percentile(&calls, 50) /
			(double)sample_percentile(&call_spawns, 50),
		"call_reset / call_spawn");
	sample_row_end(bench.out);
	materialized_release(bench.commits, &image);
}

int
main(int argc, char **argv)
{
	static const struct row rows[] = {
		{0, 1}, {100, 1}, {1000, 1}, {10000, 1}, {100, 301}, {1000, 31}};

	const struct commits_config pool = {
		.pool_size = COMMITS_POOL_SIZE, .materialized_mib = COMMITS_MATERIALIZED_MIB};
	struct err e;

	bench_begin(argc, argv, "reset", 100, 512);
	commits_close(bench.commits);
	bench.commits = NULL;
	if (commits_open(bench.tree, &pool, &bench.commits, &e) < 0)
		bench_die("a pool", &e);
	if (bench.out)
		json_out_array(bench.out, "rows");
	for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		measure(&rows[i]);
	if (bench.out)
		json_out_end_array(bench.out);
	bench_end();
	return 0;
}
