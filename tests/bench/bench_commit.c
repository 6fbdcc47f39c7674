/*
 * What a commit costs, with small guests of which 128 MiB are written. All of it is
 * commits_make(): one fork that parks, and its reading and writing behind the guest's
 * back.
 *
 *   bench_commit [--json] [--rounds N] [--mem MIB]
 *
 * pause       the longest gap that the guest itself sees around the commit; vmm_pause: as
 *             the VMM counts it; branch_pause: of a branch of the same guest, in turns
 * seconds, mb_s, written_bytes  of the first commit of a guest whose every page differs
 * again_written_bytes, again_seconds  of one after 1000 more dirty pages; again_ratio:
 *             of what those pages hold
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "tests/bench/bench.h"
#include "tests/bench/sample.h"

#define TOUCHED_MIB 128
#define AGAIN_PAGES 1000
#define PAGE 4096

struct done {
	double seconds;
	uint64_t written_bytes, read_bytes, pause_us;
};

static struct done
commit(const struct bench_vm *vm)
{
	struct commit_request q = {0};
	struct json_out answer = {0};
	struct done d;
	uint64_t began_ns;
	struct err e;

	began_ns = io_now_ns();
	if (commits_make(bench.commits, vm->id, &q, &(struct progress){0}, &answer, &e) <
		0)
		bench_die("commit", &e);
	d.seconds = (double)(io_now_ns() - began_ns) / 1e9;
	d.written_bytes = bench_json_number(answer.buf, "written_bytes");
	d.read_bytes = bench_json_number(answer.buf, "memory_read_bytes");
	d.pause_us = bench_json_number(answer.buf, "pause_us");
	json_out_done(&answer);
	return d;
}

static void
branch(const struct bench_vm *vm)
{
	const struct branch_request q = {.count = 1, .alias = "branch"};
	struct json_out answer = {0};
	struct err e;

	if (tree_branch(bench.tree, vm->id, &q, &(struct progress){0}, &answer, &e) < 0)
		bench_die("branch", &e);
	json_out_done(&answer);
}

static void
delete_branch(void)
{
	struct json_out answer = {0};
	struct err e;

	if (tree_delete(bench.tree, "branch", false, false, NULL, &answer, &e) < 0)
		bench_die("delete", &e);
	json_out_done(&answer);
}

static void
add_gap(struct samples *s, struct bench_vm *vm)
{
	char line[4096];

	s->tried++;
	if (bench_line(vm, "fork n=", line, sizeof(line)))
		sample_add(s, (uint64_t)((double)console_line_number(line, "gap") /
					 bench.ticks_per_ns));
}

/* Commits and branches in turns, of a guest that dirties 1000 pages after each. */
static void
measure_pauses(void)
{
	static struct samples pause, vmm, branches;
	struct bench_vm vm = BENCH_VM_INIT;

	sample_clear(&pause, "pause", "two rounds of the guest's own loop, by its TSC");
	sample_clear(&vmm, "vmm_pause", "vCPUs asked to stop … running again");
	sample_clear(&branches, "branch_pause", "as pause, of a branch");
	bench_boot(&vm, "mode=work dirty=1000 redirty=1");
	for (unsigned i = 0; i < bench.rounds; i++) {
		struct done d;

		bench_settle();
		d = commit(&vm);
		vmm.tried++;
		sample_add(&vmm, d.pause_us * 1000);
		add_gap(&pause, &vm);
		bench_settle();
		branch(&vm);
		add_gap(&branches, &vm);
		delete_branch();
	}
	if (!bench.out)
		sample_row_begin(NULL, "%u dirty pages", AGAIN_PAGES);
	sample_report(&pause, bench.out);
	sample_report(&vmm, bench.out);
	sample_report(&branches, bench.out);
	bench_end_vm(&vm);
}

/* noise=1: pages that no compression makes smaller and no two of which are alike. */
static void
measure_writing(void)
{
	struct bench_vm vm = BENCH_VM_INIT;
	struct done first, again;
	char cmdline[128];

	snprintf(cmdline, sizeof(cmdline),
		"mode=work noise=1 dirty=%u redirty=1 again=%u", TOUCHED_MIB * 256,
		AGAIN_PAGES);
	bench_boot(&vm, cmdline);
	first = commit(&vm);
	if (!bench_line(&vm, "fork n=", NULL, 0))
		bench_die("commit", &(struct err){.msg = "the guest does not answer"});
	again = commit(&vm);
	bench_number(
		"seconds", first.seconds, "of the first commit, 128 MiB that differ");
	bench_number("read_bytes", (double)first.read_bytes, NULL);
	bench_number("written_bytes", (double)first.written_bytes, NULL);
	bench_number("mb_s", (double)first.read_bytes / first.seconds / 1e6,
		"of memory read, hashed, written");
	bench_number("again_seconds", again.seconds, "after 1000 dirty pages");
	bench_number("again_written_bytes", (double)again.written_bytes, NULL);
	bench_number("again_ratio",
		(double)again.written_bytes / ((double)AGAIN_PAGES * PAGE),
		"of what 1000 pages hold");
	bench_end_vm(&vm);
}

int
main(int argc, char **argv)
{
	bench_begin(argc, argv, "commit", 40, 512);
	measure_pauses();
	measure_writing();
	bench_end();
	return 0;
}
