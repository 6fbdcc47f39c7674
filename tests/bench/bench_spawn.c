/*
 * What a VM's start from a commit costs, with small guests of which 128 MiB are touched.
 * The commit is made by commits_make() and its materialized image by materialized_get(), once;
 * pre-warmed VMMs are made as host/commit/pool.c makes them. Files and sockets are there before the clock runs.
 *
 *   bench_spawn [--json] [--rounds N] [--mem MIB]
 *
 * spawn   the request (VMM_RESTORE) leaves until the guest's first doorbell, in a pre-warmed
 *         VMM
 * cold    the same without the pool: the process is started, then told
 * floor   map, load, run until the doorbell, in one thread of one process (floor.h)
 * ratio   spawn / floor, of medians
 * n100_ms, n1000_ms  the first of N requests leaves until the last guest rang
 * answered  of 1000
 * child_pss_kib  of each of the 1000, at rest, everything its process holds
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "tests/bench/bench.h"
#include "tests/bench/floor.h"
#include "tests/bench/sample.h"

#define TOUCHED_MIB 128
#define MANY 1000

static struct materialized_image materialized = MATERIALIZED_IMAGE_INIT;

static void
make_commit(void)
{
	cleanup_json_out struct json_out answer = {0};
	struct bench_vm vm = BENCH_VM_INIT;
	struct commit_request q = {.n_tags = 1, .tags = {"bench"}};
	const struct progress quiet = {0};
	struct store_manifest *m = NULL;
	struct store *store;
	char cmdline[64];
	struct err e;
	int r;

	snprintf(
		cmdline, sizeof(cmdline), "mode=work rest=1 dirty=%u", TOUCHED_MIB * 256);
	bench_boot(&vm, cmdline);
	r = commits_make(bench.commits, vm.id, &q, &quiet, &answer, &e);
	if (r == 0)
		r = commits_store(bench.commits, &store, &e);
	if (r == 0)
		r = store_load(store, "bench", &m, &e);
	if (r == 0)
		r = materialized_get(
			bench.commits, store, m, MATERIALIZED_FULL | MATERIALIZED_ONE_DISK,
			&quiet, &materialized, &e);
	if (r < 0)
		bench_die("commit", &e);
	store_manifest_free(m);
	bench_end_vm(&vm);
}

static void
restore_message(
	const struct bench_vm *vm, struct vmm_restore *ret, int fds[VMM_RESTORE_FD_COUNT])
{
	*ret = (struct vmm_restore){
		.mem_mib = bench.mem_mib,
		.disk_mib = 16,
		.blob_bytes = materialized.state_bytes,
		.vcpus = 1,
		.flags = VMM_RESTORE_HAS_BASE,
	};
	memcpy(ret->generation, vm->generation, 16);
	snprintf(ret->name, sizeof(ret->name), "%s", vm->id);
	fds[VMM_RESTORE_FD_LISTEN] = vm->files.listen_fd;
	fds[VMM_RESTORE_FD_VSOCK] = vm->files.vsock_fd;
	fds[VMM_RESTORE_FD_CONSOLE] = vm->files.console_fd;
	fds[VMM_RESTORE_FD_LOG] = vm->files.log_fd;
	fds[VMM_RESTORE_FD_STATE] = materialized.state_fd;
	fds[VMM_RESTORE_FD_MEMORY] = materialized.memory_fd;
	fds[VMM_RESTORE_FD_BASE] = materialized.disk_fd;
	vm_segment_put(&vm->segment, fds + VMM_RESTORE_FD_SEG);
	fds[VMM_RESTORE_FD_KVM] = bench.kvm;
}

/* Returns when the request left. */
static uint64_t
send_restore(struct bench_vm *vm)
{
	int fds[VMM_RESTORE_FD_COUNT];
	struct vmm_restore msg;
	uint64_t began_ns;
	struct err e;

	restore_message(vm, &msg, fds);
	began_ns = io_now_ns();
	if (vmmctl_restore(vm->ctl, &msg, fds, &e) < 0)
		bench_die("restore", &e);
	return began_ns;
}

static void
measure_one(struct samples *s, bool pooled)
{
	struct bench_vm vm;
	uint64_t began_ns, rang_ns;

	bench_files(&vm, true);
	if (pooled)
		bench_prewarmed(&vm);
	bench_settle();
	s->tried++;
	began_ns = io_now_ns();
	if (!pooled)
		bench_process(&vm);
	send_restore(&vm);
	bench_wait_started(&vm, NULL);
	rang_ns = bench_first_doorbell(&vm);
	if (rang_ns)
		sample_add(s, rang_ns - began_ns);
	bench_end_vm(&vm);
}

static void
measure_floor(struct samples *s)
{
	int fds[VMM_RESTORE_FD_COUNT];
	struct vmm_restore msg;
	struct bench_vm vm;
	struct err e;
	uint64_t ns;

	bench_files(&vm, true);
	restore_message(&vm, &msg, fds);
	s->tried++;
	if (floor_restore(bench.kvm, &msg, fds, &ns, &e) < 0)
		bench_die("floor", &e);
	sample_add(s, ns);
	bench_end_vm(&vm);
}

static double
measure_many(unsigned n, unsigned *ret_answered, double *ret_pss_kib)
{
	struct bench_vm *vms = calloc(n, sizeof(*vms));
	uint64_t began_ns, last_ns = 0;
	long pss = 0;

	if (!vms)
		exit(1);
	for (unsigned i = 0; i < n; i++) {
		bench_files(&vms[i], true);
		bench_prewarmed(&vms[i]);
	}
	bench_settle();
	began_ns = send_restore(&vms[0]);
	for (unsigned i = 1; i < n; i++)
		send_restore(&vms[i]);
	*ret_answered = 0;
	for (unsigned i = 0; i < n; i++) {
		uint64_t rang_ns;

		bench_wait_started(&vms[i], NULL);
		rang_ns = bench_first_doorbell(&vms[i]);
		*ret_answered += rang_ns != 0;
		if (rang_ns > last_ns)
			last_ns = rang_ns;
	}
	for (unsigned i = 0; i < n && pss >= 0; i++) {
		long one = bench_pss_kib(vms[i].pid);

		pss = one < 0 ? -1 : pss + one;
	}
	*ret_pss_kib = pss < 0 ? -1 : (double)pss / n;
	for (unsigned i = 0; i < n; i++)
		bench_end_vm(&vms[i]);
	free(vms);
	return (double)(last_ns - began_ns) / 1e6;
}

int
main(int argc, char **argv)
{
	static struct samples spawn, cold, floors;
	unsigned answered100, answered;
	double n100_ms, n1000_ms, pss;

	bench_begin(argc, argv, "spawn", 200, 512);
	make_commit();
	sample_clear(&spawn, "spawn", "request leaves … the guest's first doorbell");
	sample_clear(&cold, "cold", "the same, the process's start before it");
	sample_clear(&floors, "floor", "map, load, run: one thread, no message");
	/* In turns, so that all three see the same host. */
	for (unsigned i = 0; i < bench.rounds; i++) {
		measure_one(&spawn, true);
		measure_floor(&floors);
		measure_one(&cold, false);
	}
	n100_ms = measure_many(100, &answered100, &pss);
	n1000_ms = measure_many(MANY, &answered, &pss);
	if (!bench.out)
		sample_row_begin(NULL, "%u MiB touched", TOUCHED_MIB);
	sample_report(&spawn, bench.out);
	sample_report(&cold, bench.out);
	sample_report(&floors, bench.out);
	bench_number("ratio",
		(double)sample_percentile(&spawn, 50) /
			(double)sample_percentile(&floors, 50),
		"spawn / floor");
	bench_number("n100_ms", n100_ms, "first request leaves … the last of 100 rang");
	bench_number("n100_answered", answered100, NULL);
	bench_number(
		"n1000_ms", n1000_ms, "first request leaves … the last of 1000 rang");
	bench_number("answered", answered, "of 1000");
	bench_number(
		"child_pss_kib", pss, "each of the 1000, at rest; -1: not to be seen");
	materialized_release(bench.commits, &materialized);
	bench_end();
	return 0;
}
