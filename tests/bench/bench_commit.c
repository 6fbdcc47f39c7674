/*
 * What a commit costs, with small guests of which 128 MiB are written. All of it is
 * commits_make(): one fork that parks, and its reading and writing behind the guest's
 * back.
 *
 *   bench_commit [--json] [--rounds N] [--mem MIB]
 *
 * Of guests of 512 MiB and of 4 GiB, of which 430 MiB are written, after 0, 1 000, 10 000 and
 * 100 000 dirty pages, a third of the rounds each (at least 3), medians:
 *
 * durable_ms  of a commit; bare_ms: of the same number of pages with nothing around it, in
 *             turns: read from the guest's process, hashed, compressed, written, synced, by
 *             one thread
 * pause_us, branch_us  as vmm_pause below, of commits and branches in turns
 * ratio       the first of each pair by the second; pauses also by the least of each, which a
 *             busy host changes least
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

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/store/store_hash.h"
#include "host/store/store_zip.h"
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

/* Its pause, in us. */
static uint64_t
branch(const struct bench_vm *vm)
{
	const struct branch_request q = {.count = 1, .alias = "branch"};
	struct json_out answer = {0};
	uint64_t pause_us;
	struct err e;

	if (tree_branch(bench.tree, vm->id, &q, &(struct progress){0}, &answer, &e) < 0)
		bench_die("branch", &e);
	pause_us = bench_json_number(answer.buf, "pause_us");
	json_out_done(&answer);
	return pause_us;
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

/* Written in each guest, so that 100 000 can be dirty; prime to the stride. */
#define BOOTED_PAGES 110000u
#define STRIDE 97u
#define GUEST_BASE (4u << 20) /* where the small guest's dirty pages begin */
#define BATCH 256u

/* The same pages with nothing around them. */
static double
bare_ms(const struct bench_vm *vm, uint64_t host, unsigned n, const char *path)
{
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	static uint8_t pages[BATCH][PAGE], out[BATCH * PAGE];
	struct iovec from[BATCH];
	uint64_t began_ns;
	struct zip *z;
	struct err e;

	if (fd < 0 || zip_new(&z) < 0)
		bench_die("bare", &(struct err){.msg = "no file, or no memory"});
	began_ns = io_now_ns();
	for (unsigned done = 0; done < n; done += BATCH) {
		unsigned batch = n - done < BATCH ? n - done : BATCH;
		struct iovec to = {pages, (size_t)batch * PAGE};
		size_t used = 0;
		int r;

		for (unsigned i = 0; i < batch; i++) {
			uint64_t page = (uint64_t)(done + i) * STRIDE % BOOTED_PAGES;

			from[i] = (struct iovec){
				(void *)(uintptr_t)(host + GUEST_BASE + page * PAGE), PAGE};
		}
		if (process_vm_readv(vm->pid, &to, 1, from, batch, 0) != (ssize_t)to.iov_len) {
			err_sys(&e, -errno, "reading the guest");
			bench_die("bare", &e);
		}
		for (unsigned i = 0; i < batch; i++) {
			struct store_hash hash;
			size_t len;

			hash_of(HASH_PLAIN, pages[i], PAGE, &hash);
			len = zip_pack(z, out + used, pages[i], PAGE);
			if (!len)
				memcpy(out + used, pages[i], len = PAGE);
			used += len;
		}
		r = io_write_full(fd, out, used);
		if (r < 0) {
			err_sys(&e, r, "%s", path);
			bench_die("bare", &e);
		}
	}
	fsync(fd);
	zip_free(z);
	return (double)(io_now_ns() - began_ns) / 1e6;
}

/* Where the guest's memory lies in its process: the one mapping of that size. */
static uint64_t
find_memory(pid_t pid, uint64_t mem_mib)
{
	char path[40], line[512];
	uint64_t from, to, at = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 && to - from >= mem_mib << 20)
			at = to - (mem_mib << 20);
	if (f)
		fclose(f);
	if (!at)
		bench_die("bare", &(struct err){.msg = "the guest's memory is not found"});
	return at;
}

static double
median_of(struct samples *s)
{
	return (double)sample_percentile(s, 50) / 1e3;
}

/* The guest has noticed its new generation, and written its pages. */
static void
wait_dirty(struct bench_vm *vm)
{
	if (!bench_line(vm, "fork n=", NULL, 0))
		bench_die("commit", &(struct err){.msg = "the guest does not answer"});
}

static void
measure_dirty(uint64_t mem_mib, unsigned dirty)
{
	static struct samples durable, bare, pause, branches;
	struct bench_vm vm = BENCH_VM_INIT;
	unsigned rounds = bench.rounds / 3 < 3 ? 3 : bench.rounds / 3;
	char cmdline[128], key[64], path[PATHS_MAX];
	uint64_t host;

	sample_clear(&durable, "durable", NULL);
	sample_clear(&bare, "bare", NULL);
	sample_clear(&pause, "pause", NULL);
	sample_clear(&branches, "branch", NULL);
	bench.mem_mib = mem_mib;
	snprintf(cmdline, sizeof(cmdline),
		"mode=work noise=1 dirty=%u redirty=1 again=%u stride=%u", BOOTED_PAGES, dirty,
		STRIDE);
	bench_boot(&vm, cmdline);
	snprintf(path, sizeof(path), "%.4000s/bare", bench.tree->config.home);
	host = find_memory(vm.pid, mem_mib);
	commit(&vm);
	wait_dirty(&vm);
	for (unsigned i = 0; i < rounds; i++) {
		struct done d;

		bench_settle();
		d = commit(&vm);
		if (d.read_bytes > (dirty + 2000u) * (uint64_t)PAGE)
			bench_die("commit", &(struct err){.msg = "all of the memory is read"});
		sample_add(&durable, (uint64_t)(d.seconds * 1e9));
		sample_add(&pause, d.pause_us * 1000);
		wait_dirty(&vm);
		sample_add(&bare, (uint64_t)(bare_ms(&vm, host, dirty, path) * 1e6));
		bench_settle();
		sample_add(&branches, branch(&vm) * 1000);
		wait_dirty(&vm);
		delete_branch();
	}
	if (!bench.out)
		printf("%5llu MiB, %6u dirty: pause %7.0f us, branch's %7.0f us (%.2f; least %.2f); durable %9.1f ms, bare %9.1f ms (%.2f)\n",
			(unsigned long long)mem_mib, dirty, median_of(&pause),
			median_of(&branches), median_of(&pause) / median_of(&branches),
			(double)sample_percentile(&pause, 0) /
				(double)sample_percentile(&branches, 0),
			median_of(&durable) / 1e3, median_of(&bare) / 1e3,
			median_of(&durable) / median_of(&bare));
	fflush(stdout);
	for (unsigned i = 0; i < 4 && bench.out; i++) {
		static struct samples *const all[] = {&durable, &bare, &pause, &branches};
		static const char *const names[] = {
			"durable_ms", "bare_ms", "pause_us", "branch_us"};

		snprintf(key, sizeof(key), "mem%llu_dirty%u_%s", (unsigned long long)mem_mib,
			dirty, names[i]);
		bench_number(key, median_of(all[i]) / (i < 2 ? 1e3 : 1), NULL);
	}
	bench_end_vm(&vm);
	unlink(path);
}

static void
measure_booted(void)
{
	static const unsigned dirty[] = {0, 1000, 10000, 100000};
	static const uint64_t mem_mib[] = {512, 4096};
	const uint64_t mem = bench.mem_mib;

	for (unsigned i = 0; i < 2; i++)
		for (unsigned j = 0; j < 4; j++)
			measure_dirty(mem_mib[i], dirty[j]);
	bench.mem_mib = mem;
}

int
main(int argc, char **argv)
{
	bench_begin(argc, argv, "commit", 40, 512);
	measure_pauses();
	measure_writing();
	measure_booted();
	bench_end();
	return 0;
}
