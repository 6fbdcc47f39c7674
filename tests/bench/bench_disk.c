/*
 * The disk of a small guest beside a plain file of the same file system in the same run, and
 * the guest's clock while it flushes. Nothing is asserted about time.
 *
 *   bench_disk [--json] [--rounds N] [--blocks N] [--dir FOLDER]
 *
 * A row for each kind of request, all on the first N blocks of 4 KiB: read, write (at random
 * places, 4 KiB), sread, swrite (one after the other, 128 KiB), fsync (a flush after a random
 * write), nothing (a flush with nothing to do). guest: from the doorbell until the guest sees
 * the answer, by its TSC; it polls, so no interrupt counts. host: pread(2), pwrite(2),
 * fdatasync(2) alone.
 *
 * Then `flush`: flushes that take some 100 ms each, because the host's disk waits
 * (tests/kvm/slow_disk.h, root only); `gap` is the longest time between two looks at its clock
 * of a guest with one vCPU that does not wait for them, `host_gap` that of a process.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"
#include "tests/kvm/driver.h"
#include "tests/kvm/slow_disk.h"

#define BLOCK 4096u
#define LARGE (128u << 10)
#define DISK_MIB 64
#define WAIT_MS 120000
#define FLUSHES 10
#define SLOW_NS 100000000

static struct json_out json;
static struct json_out *out; /* NULL: lines */
static unsigned rounds = 500, blocks = 4096;
static const char *dir = "/tmp";
static char folder[128];
static double ticks_per_ns;
static struct driver driver;
static struct slow_disk slow;
static struct err e;

static const char *const kinds[] = {"read", "write", "sread", "swrite", "fsync", "nothing"};
#define KINDS (sizeof(kinds) / sizeof(*kinds))

static void
done(void)
{
	slow_disk_release(&slow);
	slow_disk_done(&slow);
	driver_done(&driver);
	if (folder[0])
		io_remove_tree(folder, NULL);
}

static void
nap(long ns)
{
	const struct timespec t = {.tv_nsec = ns};

	nanosleep(&t, NULL);
}

static void
calibrate_tsc(void)
{
	uint64_t ns = io_now_ns(), tsc = __rdtsc();

	nap(50000000);
	ticks_per_ns = (double)(__rdtsc() - tsc) / (double)(io_now_ns() - ns);
}

static void
must_do(bool good, const char *what)
{
	if (good)
		return;
	err_sys(&e, -errno, "%s", what);
	must_not_go_on("the host's file", &e);
}

/* The guest's requests, by the same system calls that its VMM makes, and by nothing else. */
static void
measure_host(int fd, const char *kind, struct samples *s)
{
	static uint8_t data[LARGE];
	const bool in_row = kind[0] == 's', writes = kind[0] == 'w' || kind[1] == 'w';
	const size_t len = in_row ? LARGE : BLOCK;
	uint64_t at = 0, began_ns;

	sample_clear(s, "host", "the system call alone");
	for (unsigned i = 0; i < rounds; i++) {
		at = in_row ? at + LARGE : (uint64_t)rand() % blocks * BLOCK;
		if (at + len > (uint64_t)blocks * BLOCK)
			at = 0;
		memset(data, (int)i, len);
		if (kind[0] == 'f')
			must_do(pwrite(fd, data, len, (off_t)at) == (ssize_t)len, "pwrite");
		s->tried++;
		began_ns = io_now_ns();
		if (kind[0] == 'f' || kind[0] == 'n')
			must_do(fdatasync(fd) == 0, "fdatasync");
		else if (writes)
			must_do(pwrite(fd, data, len, (off_t)at) == (ssize_t)len, "pwrite");
		else
			must_do(pread(fd, data, len, (off_t)at) == (ssize_t)len, "pread");
		sample_add(s, io_now_ns() - began_ns);
	}
}

static int
open_host_file(void)
{
	static const uint8_t zeroes[LARGE];
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/host", folder);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	must_do(fd >= 0, path);
	for (uint64_t at = 0; at < 2ull * blocks * BLOCK; at += LARGE)
		must_do(pwrite(fd, zeroes, LARGE, (off_t)(at % ((uint64_t)blocks * BLOCK))) ==
				LARGE,
			"pwrite");
	return fd;
}

/* The numbers of one of the guest's lines. */
static void
read_ticks(const char *line, struct samples *s)
{
	const char *p = strchr(line, ' '); /* behind "measured" */

	sample_clear(s, "guest", "doorbell … answer seen, by its TSC");
	s->tried = rounds;
	if (strstr(line, "FAILED"))
		must_not_go_on("guest", &(struct err){.msg = "a request failed"});
	p = p ? strchr(p + 1, ' ') : NULL; /* behind the kind */
	for (char *end; p && *p == ' '; p = end) {
		uint64_t ticks = strtoull(p + 1, &end, 10);

		if (end == p + 1)
			break;
		sample_add(s, (uint64_t)((double)ticks / ticks_per_ns));
	}
}

static void
measure_requests(void)
{
	static struct samples guest, host;
	static char line[256 << 10];
	struct boot boot = {.disk_mib = DISK_MIB};
	char cmdline[128];
	cleanup_close int fd = open_host_file();
	struct vm *vm;

	snprintf(cmdline, sizeof(cmdline), "mode=measure rounds=%u blocks=%u", rounds, blocks);
	boot.cmdline = cmdline;
	must(driver_boot(&driver, "measured", &boot, &vm, &e), "boot", &e);
	for (size_t i = 0; i < KINDS; i++) {
		char text[32];
		double ratio;

		/* The next line appears when it is whole. */
		snprintf(text, sizeof(text), "measured %s ", kinds[i]);
		must(driver_expect(vm, text, WAIT_MS, line, sizeof(line), &e), kinds[i], &e);
		read_ticks(strstr(line, "measured"), &guest);
		if (i == KINDS - 1)
			must(driver_expect(vm, "measured all", WAIT_MS, NULL, 0, &e), "end",
				&e);
		/* The guest has gone on to the next kind: what it does disturbs. */
		kill(vm->pid, SIGSTOP);
		measure_host(fd, kinds[i], &host);
		kill(vm->pid, SIGCONT);
		sample_row_begin(out, "%s", kinds[i]);
		if (out)
			json_out_str(out, "kind", kinds[i]);
		sample_report(&guest, out);
		sample_report(&host, out);
		ratio = (double)sample_percentile(&guest, 50) /
			(double)(sample_percentile(&host, 50) + 1);
		if (out)
			json_out_f64(out, "guest_to_host_p50", ratio);
		else
			printf("  guest / host, p50: %.2f\n", ratio);
		sample_row_end(out);
	}
	driver_kill(vm);
}

/* The longest time between two looks at the clock of a process of the host. */
static uint64_t
host_gap_ns(void)
{
	uint64_t began = io_now_ns(), last = began, now, gap = 0;

	while ((now = io_now_ns()) - began < SLOW_NS) {
		if (now - last > gap)
			gap = now - last;
		last = now;
	}
	return now - last > gap ? now - last : gap;
}

static void
measure_clock(void)
{
	static struct samples took, gap, host;
	struct boot boot = {.cmdline = "mode=flush pages=4", .disk_mib = DISK_MIB};
	char line[256];
	struct vm *vm;
	int r;

	sample_clear(&took, "flush", "a flush of 4 blocks, while the disk waits");
	sample_clear(&gap, "gap", "between two looks at the clock meanwhile");
	sample_clear(&host, "host_gap", "the same of a process of the host, as long, alone");
	r = slow_disk_make(&slow, folder, &e);
	if (r == -ENOTSUP) {
		fprintf(stderr, "bench_disk: no slow disk: %s\n", e.msg);
		return;
	}
	must(r, "slow disk", &e);
	snprintf(driver.segment_folder, sizeof(driver.segment_folder), "%s", slow.folder);
	must(driver_boot(&driver, "clock", &boot, &vm, &e), "boot", &e);
	for (unsigned i = 0; i < FLUSHES; i++) {
		took.tried++;
		gap.tried++;
		must(driver_expect(vm, "status=0", WAIT_MS, NULL, 0, &e), "flush", &e);
		must(slow_disk_hold(&slow, &e), "hold", &e);
		must(driver_expect(vm, " begins", WAIT_MS, NULL, 0, &e), "flush", &e);
		nap(SLOW_NS);
		slow_disk_release(&slow);
		must(driver_expect(vm, "status=0", WAIT_MS, line, sizeof(line), &e), "flush",
			&e);
		sample_add(&took, (uint64_t)((double)console_line_number(line, "took") /
					  ticks_per_ns));
		sample_add(&gap, (uint64_t)((double)console_line_number(line, "gap") /
					 ticks_per_ns));
		kill(vm->pid, SIGSTOP);
		host.tried++;
		sample_add(&host, host_gap_ns());
		kill(vm->pid, SIGCONT);
	}
	sample_row_begin(out, "flush, one vCPU");
	if (out)
		json_out_str(out, "kind", "flush");
	sample_report(&took, out);
	sample_report(&gap, out);
	sample_report(&host, out);
	sample_row_end(out);
	driver_kill(vm);
}

static _Noreturn void
usage(void)
{
	fprintf(stderr,
		"usage: bench_disk [--json] [--rounds 1..%d] [--blocks 32..8192] [--dir FOLDER]\n",
		SAMPLES_MAX);
	exit(2);
}

int
main(int argc, char **argv)
{
	char why[160];

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0)
			out = &json;
		else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
			rounds = (unsigned)atoi(argv[++i]);
		else if (strcmp(argv[i], "--blocks") == 0 && i + 1 < argc)
			blocks = (unsigned)atoi(argv[++i]) / 32 * 32;
		else if (strcmp(argv[i], "--mem") == 0 && i + 1 < argc)
			i++; /* of the benchmarks of memory */
		else if (strcmp(argv[i], "--dir") == 0 && i + 1 < argc)
			dir = argv[++i];
		else
			usage();
	}
	if (rounds < 1 || rounds > SAMPLES_MAX || blocks < 32 || blocks > 8192)
		usage();
	if (!driver_has_kvm(why)) {
		fprintf(stderr, "bench_disk: skipped: %s\n", why);
		return 0;
	}
	snprintf(folder, sizeof(folder), "%.100s/pando-disk.XXXXXX", dir);
	if (!mkdtemp(folder))
		must_not_go_on(folder, &(struct err){.msg = "cannot be made"});
	atexit(done);
	must(driver_init(&driver, &e), "driver", &e);
	snprintf(driver.segment_folder, sizeof(driver.segment_folder), "%s", folder);
	calibrate_tsc();
	sample_begin(out, "disk");
	measure_requests();
	measure_clock();
	sample_end(out);
	return 0;
}
