/*
 * What a live branch costs, with small guests on this host's /dev/kvm, beside a bare fork
 * and a bare KVM VM of the same run. Nothing is asserted about time; only VMs that
 * answered are counted.
 *
 *   bench_branch [--json] [--rounds N] [--mem MIB]
 *
 * The guest keeps dirtying `dirty_pages` pages; its parent's parent's … first is `depth`
 * branches up. Keys, in µs:
 *
 * pause   the longest gap that the guest itself sees around the branch, by its TSC: its
 *         vCPU is stopped, the fork, its first faults afterwards
 * e2e     the request leaves until the child's first doorbell
 * vmm     the same pause as the VMM counts it, and of it fork(): what lies between is
 * ours bare_fork, bare_kvm  bare.h
 *
 * count100_ms: one request for 100 branches of one instant (a frozen fork, and forks of it)
 * leaves until the last of them rang.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/bare.h"
#include "tests/bench/bench.h"
#include "tests/bench/sample.h"

#define COUNT 100

static struct samples bare_forks, bare_kvms;

static void
take_yardsticks(uint64_t pages)
{
	uint64_t *ns = calloc(2 * bench.rounds, sizeof(*ns)), one;
	struct err e;

	if (!ns)
		exit(1);
	sample_clear(&bare_forks, "bare_fork", "fork() of the same memory, alone");
	sample_clear(&bare_kvms, "bare_kvm", "KVM_CREATE_VM … first exit of its guest");
	if (bare_fork(bench.mem_mib, pages, bench.rounds, ns, ns + bench.rounds, &e) < 0)
		bench_die("bare fork", &e);
	for (unsigned i = 0; i < bench.rounds; i++) {
		bare_forks.tried++;
		sample_add(&bare_forks, ns[i]);
		bare_kvms.tried++;
		if (bare_kvm(bench.mem_mib, &one, &e) < 0)
			bench_die("bare KVM", &e);
		sample_add(&bare_kvms, one);
	}
	free(ns);
}

static void
boot_worker(struct bench_vm *vm, uint64_t pages)
{
	char cmdline[128];

	snprintf(cmdline, sizeof(cmdline), "mode=work rest=1 dirty=%llu redirty=1",
		(unsigned long long)pages);
	bench_boot(vm, cmdline);
}

static void
pause_vm(struct bench_vm *vm)
{
	struct err e;

	if (vmmctl_command(vm->ctl, VMM_PAUSE, BENCH_WAIT_MS, &e) < 0)
		bench_die("pause", &e);
}

static void
measure(uint64_t pages, unsigned depth)
{
	static struct samples gap, e2e, vmm, forks, setup;
	struct bench_vm chain[64], *vm = &chain[0], child;
	struct vmm_started started;
	struct vmm_forked forked;
	char line[4096];

	sample_clear(&gap, "pause", "two rounds of the guest's own loop, by its TSC");
	sample_clear(&e2e, "e2e", "request leaves … the child's first doorbell");
	sample_clear(&vmm, "vmm_pause", "vCPUs asked to stop … running again");
	sample_clear(&forks, "vmm_fork", "of that, fork()");
	sample_clear(&setup, "child_setup", "fork … the child's first KVM_RUN");
	chain[0] = (struct bench_vm)BENCH_VM_INIT;
	boot_worker(vm, pages);
	for (unsigned d = 1; d < depth; d++, vm++) {
		bench_files(&vm[1], false);
		bench_fork(vm, false, &vm[1], 0, &forked);
		bench_wait_started(&vm[1], NULL);
		if (!bench_line(&vm[1], "fork n=", NULL, 0))
			bench_die("chain", &(struct err){.msg = "no answer"});
		pause_vm(vm);
	}
	for (unsigned i = 0; i < bench.rounds; i++) {
		uint64_t began_ns, rang_ns, ticks;

		bench_files(&child, true);
		bench_settle();
		began_ns = bench_fork(vm, false, &child, 0, &forked);
		gap.tried++;
		e2e.tried++;
		vmm.tried++;
		forks.tried++;
		setup.tried++;
		sample_add(&vmm, forked.pause_ns);
		sample_add(&forks, forked.fork_ns);
		bench_wait_started(&child, &started);
		sample_add(&setup, started.setup_ns);
		rang_ns = bench_first_doorbell(&child);
		if (rang_ns)
			sample_add(&e2e, rang_ns - began_ns);
		if (bench_line(vm, "fork n=", line, sizeof(line))) {
			ticks = console_line_number(line, "gap");
			if (ticks != UINT64_MAX)
				sample_add(&gap,
					(uint64_t)((double)ticks / bench.ticks_per_ns));
		}
		bench_end_vm(&child);
	}
	sample_row_begin(bench.out, "%llu dirty pages, depth %u",
		(unsigned long long)pages, depth);
	if (bench.out) {
		json_out_u64(bench.out, "dirty_pages", pages);
		json_out_u64(bench.out, "depth", depth);
	}
	sample_report(&gap, bench.out);
	sample_report(&e2e, bench.out);
	sample_report(&bare_forks, bench.out);
	sample_report(&bare_kvms, bench.out);
	sample_report(&vmm, bench.out);
	sample_report(&forks, bench.out);
	sample_report(&setup, bench.out);
	sample_row_end(bench.out);
	while (vm > chain)
		bench_end_vm(vm--);
	bench_end_vm(vm);
}

/* One request for many, as host/vm/branch.c serves it. */
static double
count_many(unsigned *ret_answered)
{
	struct bench_vm *children = calloc(COUNT, sizeof(*children)), vm = BENCH_VM_INIT,
			frozen_fork;
	uint64_t began_ns, last_ns = 0;
	struct vmm_forked forked;

	if (!children)
		exit(1);
	boot_worker(&vm, 1000);
	bench_files(&frozen_fork, false);
	for (unsigned i = 0; i < COUNT; i++)
		bench_files(&children[i], true);
	bench_settle();
	began_ns = bench_fork(&vm, false, &frozen_fork, VMM_FORK_PARK, &forked);
	bench_wait_started(&frozen_fork, NULL);
	for (unsigned i = 0; i < COUNT; i++)
		bench_fork(&frozen_fork, true, &children[i], 0, &forked);
	*ret_answered = 0;
	for (unsigned i = 0; i < COUNT; i++) {
		uint64_t rang_ns;

		bench_wait_started(&children[i], NULL);
		rang_ns = bench_first_doorbell(&children[i]);
		*ret_answered += rang_ns != 0;
		if (rang_ns > last_ns)
			last_ns = rang_ns;
	}
	for (unsigned i = 0; i < COUNT; i++)
		bench_end_vm(&children[i]);
	bench_end_vm(&frozen_fork);
	bench_end_vm(&vm);
	free(children);
	return (double)(last_ns - began_ns) / 1e6;
}

int
main(int argc, char **argv)
{
	static const uint64_t pages[] = {0, 1000, 10000};
	static const unsigned depths[] = {1, 8, 64};
	unsigned answered;
	double ms;

	bench_begin(argc, argv, "branch", 60, 512);
	if (bench.out)
		json_out_array(bench.out, "rows");
	for (size_t p = 0; p < sizeof(pages) / sizeof(*pages); p++) {
		take_yardsticks(pages[p]);
		for (size_t d = 0; d < sizeof(depths) / sizeof(*depths); d++)
			measure(pages[p], depths[d]);
	}
	if (bench.out)
		json_out_end_array(bench.out);
	ms = count_many(&answered);
	bench_number("count100_ms", ms, "request leaves … the last of 100 rang");
	bench_number("count100_answered", answered, NULL);
	bench_end();
	return 0;
}
