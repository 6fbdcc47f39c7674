/*
 * What a live branch costs, with small guests on this host's /dev/kvm, beside a bare fork
 * and a bare KVM VM of the same run. Nothing is asserted about time; only VMs that
 * answered are counted.
 *
 *   bench_branch [--json] [--rounds N] [--mem MIB]
 *
 * pause     vCPUs asked to stop until they run again, by the VMM (VMM_FORKED)
 * gap       the longest time between two rounds of the guest's own loop around the fork,
 * by its TSC: what the guest feels, including its first faults and its being scheduled
 * again answer    the fork request is sent until the child has rung a doorbell and said
 * its first byte; it includes making the child's files and sockets here, as pandod would
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "tests/bench/bare.h"
#include "tests/bench/sample.h"
#include "tests/kvm/driver.h"

static struct driver driver;
static struct json_out json;
static struct json_out *out; /* NULL: lines */
static unsigned rounds = 40;
static uint64_t mem_mib = 512;
static double tsc_per_ns;

static struct samples bare_forks, bare_children, bare_kvms;

static void
die(const char *what, const struct err *e)
{
	fprintf(stderr, "bench_branch: %s: %s\n", what, e->msg);
	driver_done(&driver);
	exit(1);
}

static void
clear(struct samples *s, const char *name, const char *clock)
{
	memset(s, 0, sizeof(*s));
	s->name = name;
	s->clock = clock;
}

static void
calibrate_tsc(void)
{
	uint64_t ns = io_now_ns(), tsc = __rdtsc();

	usleep(50000);
	tsc_per_ns = (double)(__rdtsc() - tsc) / (double)(io_now_ns() - ns);
}

static void
yardsticks(uint64_t pages)
{
	static char fork_name[64], child_name[64];
	struct err e;
	uint64_t a, b;

	snprintf(fork_name, sizeof(fork_name), "bare_fork (%llu pages)",
		(unsigned long long)pages);
	snprintf(child_name, sizeof(child_name), "bare_fork child runs (%llu pages)",
		(unsigned long long)pages);
	clear(&bare_forks, fork_name, "fork()");
	clear(&bare_children, child_name, "before fork() until the child runs");
	for (unsigned i = 0; i < rounds; i++) {
		bare_forks.tried++;
		bare_children.tried++;
		if (bare_fork(mem_mib, pages, &a, &b, &e) < 0)
			die("bare fork", &e);
		sample_add(&bare_forks, a);
		sample_add(&bare_children, b);
	}
	sample_report(&bare_forks, NULL, out);
	sample_report(&bare_children, NULL, out);
}

/* Waits for a VM's first byte. In small sleeps (main() asks for timers without slack):
 * spinning would take a CPU from the very VMs that are measured. Adds at most some 20 µs.
 */
static int
first_byte(const struct vm *vm, uint64_t deadline_ns)
{
	const struct timespec nap = {.tv_nsec = 10000};

	while (!driver_console_written(vm)) {
		if (io_now_ns() > deadline_ns)
			return -ETIMEDOUT;
		nanosleep(&nap, NULL);
	}
	return 0;
}

/* Lines of a guest's smaps that are not its RAM: Pss in KiB, or -1. */
static long
own_pss_kib(pid_t pid)
{
	char path[64], line[512];
	long total = 0, pss;
	unsigned long from, to;
	int is_ram = 0;
	cleanup_fclose FILE *f = NULL;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2 &&
			strchr(line, '-') < line + 17)
			is_ram = to - from >= mem_mib << 20;
		else if (!is_ram && sscanf(line, "Pss: %ld kB", &pss) == 1)
			total += pss;
	}
	return total;
}

static void
report_number(const char *name, const char *unit, long v)
{
	if (!out) {
		printf("%-44s %9ld %s\n", name, v, unit);
		return;
	}
	json_out_object(out, NULL);
	json_out_str(out, "name", name);
	json_out_str(out, "unit", unit);
	json_out_i64(out, "value", v);
	json_out_end_object(out);
}

/* Forks `vm` for the row `depth`/`pages`; the generation of the chain goes on through
 * paused ancestors. */
static void
measure(uint64_t pages, unsigned depth)
{
	struct samples *pause = calloc(5, sizeof(*pause)), *gap = pause + 1,
		       *setup = pause + 2, *to_answer = pause + 3, *fork_call = pause + 4;
	char names[5][64], cmdline[128];
	struct boot boot = {.mem_mib = mem_mib, .cmdline = cmdline};
	struct vm *vm = NULL, *child = NULL;
	struct err e;
	long pss = -1;

	if (!pause)
		exit(1);
	snprintf(cmdline, sizeof(cmdline), "mode=work dirty=%llu redirty=1",
		(unsigned long long)pages);
	if (driver_boot(&driver, "bench", &boot, &vm, &e) < 0 ||
		driver_expect(vm, "ready", 120000, NULL, 0, &e) < 0)
		die("boot", &e);
	for (unsigned d = 1; d < depth; d++) {
		if (driver_fork(vm, "chain", 0, &child, NULL, &e) < 0 ||
			driver_expect(child, "fork n=", 120000, NULL, 0, &e) < 0 ||
			driver_request(vm, VMM_PAUSE, NULL, 0, VMM_DONE, 30000, &e) < 0)
			die("chain", &e);
		vm = child;
	}
	snprintf(names[0], 64, "branch pause, %llu pages, depth %u",
		(unsigned long long)pages, depth);
	snprintf(names[1], 64, "branch gap in the guest, %llu pages, depth %u",
		(unsigned long long)pages, depth);
	snprintf(names[2], 64, "branch child set up, %llu pages, depth %u",
		(unsigned long long)pages, depth);
	snprintf(names[3], 64, "branch answer, %llu pages, depth %u",
		(unsigned long long)pages, depth);
	snprintf(names[4], 64, "branch fork(), %llu pages, depth %u",
		(unsigned long long)pages, depth);
	clear(pause, names[0], "vCPUs asked to stop … running again");
	clear(gap, names[1], "two rounds of the guest's loop, by its TSC");
	clear(setup, names[2], "fork … the child's first KVM_RUN");
	clear(to_answer, names[3], "request sent … child's doorbell and first byte");
	clear(fork_call, names[4], "fork() in the VMM");
	for (unsigned i = 0; i < rounds; i++) {
		struct vmm_forked f;
		char line[4096];
		uint64_t began = io_now_ns(), ticks;
		int r;

		pause->tried++;
		gap->tried++;
		setup->tried++;
		to_answer->tried++;
		fork_call->tried++;
		r = driver_fork(vm, "child", DRIVER_NO_WAIT, &child, &f, &e);
		if (r < 0)
			die("fork", &e);
		if (first_byte(child, began + 30000000000ull) == 0)
			sample_add(to_answer, io_now_ns() - began);
		sample_add(pause, f.pause_ns);
		sample_add(fork_call, f.fork_ns);
		if (driver_wait_started(child, 30000, &e) == 0)
			sample_add(setup, child->started.setup_ns);
		if (driver_expect(vm, "fork n=", 60000, line, sizeof(line), &e) == 0) {
			ticks = driver_number(line, "gap");
			if (ticks != UINT64_MAX)
				sample_add(gap, (uint64_t)((double)ticks / tsc_per_ns));
		}
		if (i == 0)
			pss = own_pss_kib(child->pid);
		driver_kill(child);
	}
	sample_report(fork_call, &bare_forks, out);
	sample_report(pause, &bare_forks, out);
	sample_report(gap, &bare_forks, out);
	sample_report(setup, &bare_kvms, out);
	sample_report(to_answer, &bare_kvms, out);
	if (pss >= 0 && depth == 1)
		report_number("VMM's own memory (PSS less guest RAM)", "KiB", pss);
	for (int i = 0; i < DRIVER_VMS_MAX; i++)
		driver_kill(&driver.vms[i]);
	free(pause);
}

int
main(int argc, char **argv)
{
	static const uint64_t pages[] = {0, 1000, 10000};
	static const unsigned depths[] = {8, 64};
	char why[160];
	struct err e;

	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--json")) {
			out = &json;
		} else if (!strcmp(argv[i], "--rounds") && i + 1 < argc) {
			rounds = (unsigned)atoi(argv[++i]);
		} else if (!strcmp(argv[i], "--mem") && i + 1 < argc) {
			mem_mib = strtoull(argv[++i], NULL, 10);
		} else {
			fprintf(stderr, "usage: bench_branch [--json] [--rounds N] "
					"[--mem MIB]\n");
			return 2;
		}
	}
	if (rounds < 1 || rounds > SAMPLES_MAX || mem_mib < 64 || mem_mib > 1 << 20) {
		fprintf(stderr,
			"bench_branch: --rounds takes 1 to %d, --mem 64 or more\n",
			SAMPLES_MAX);
		return 2;
	}
	if (!driver_has_kvm(why)) {
		fprintf(stderr, "bench_branch: skipped: %s\n", why);
		return 0;
	}
	if (driver_init(&driver, &e) < 0) {
		fprintf(stderr, "bench_branch: %s\n", e.msg);
		return 1;
	}
	prctl(PR_SET_TIMERSLACK, 1);
	calibrate_tsc();
	if (out) {
		json_out_object(out, NULL);
		json_out_str(out, "bench", "branch");
		json_out_u64(out, "mem_mib", mem_mib);
		json_out_i64(out, "cpus", sysconf(_SC_NPROCESSORS_ONLN));
		json_out_array(out, "rows");
	} else {
		printf("branch: small guests of %llu MiB, %u rounds, %ld CPUs\n",
			(unsigned long long)mem_mib, rounds,
			sysconf(_SC_NPROCESSORS_ONLN));
		sample_header();
	}
	clear(&bare_kvms, "bare_kvm", "KVM_CREATE_VM … first exit of its guest");
	for (unsigned i = 0; i < rounds; i++) {
		uint64_t ns;

		bare_kvms.tried++;
		if (bare_kvm(mem_mib, &ns, &e) < 0)
			die("bare KVM", &e);
		sample_add(&bare_kvms, ns);
	}
	sample_report(&bare_kvms, NULL, out);
	for (size_t i = 0; i < sizeof(pages) / sizeof(*pages); i++) {
		yardsticks(pages[i]);
		measure(pages[i], 1);
	}
	yardsticks(1000);
	for (size_t i = 0; i < sizeof(depths) / sizeof(*depths); i++)
		measure(1000, depths[i]);
	if (out) {
		json_out_end_array(out);
		json_out_end_object(out);
		puts(json.buf);
		json_out_done(&json);
	}
	driver_done(&driver);
	return 0;
}
