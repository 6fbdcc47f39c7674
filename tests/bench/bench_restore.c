/*
 * What the first VM of a commit costs whose image is not materialized: a small guest with --mem
 * MIB of memory (512) of which 200 MiB are not zero and do not compress, on a disk of 1 GiB
 * over an image of which 256 MiB are not zero. pandod's own calls, cold and warm with a pool of
 * pre-warmed VMMs as pandod has it.
 *
 *   bench_restore [--json] [--rounds N] [--mem MIB]
 *
 * cold_rang     commits_run() is called until the guest's first doorbell: some thousand of its
 *               instructions
 * cold_answer   until it has answered: the VM needs no pandod any more
 * cold_whole    until the image is made, for the VMs that come after it
 * full_answer   the same with `full`: memory is made first
 * warm_rang, warm_answer   the next VM of the commit
 * unpack        decompressing what is not zero, from memory to memory, on all CPUs
 * ratio         cold_rang / warm_rang, of medians
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/store/store_zip.h"
#include "tests/bench/bench.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"

#define TOUCHED_PAGES (200u * 256)
#define DISK_MIB 1024u
#define IMAGE_MIB 256u
#define THREADS_MAX 8u

static char image[64] = "/tmp/pando-bench-restore.XXXXXX";
static struct store *store;
static struct store_manifest *commit;
static char folder[PATHS_MAX];

static void
remove_image(void)
{
	unlink(image);
}

static void
noise(uint8_t *buf, size_t len, uint64_t seed)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;

	for (size_t i = 0; i < len; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(buf + i, &x, 8);
	}
}

static void
make_image(void)
{
	static uint8_t buf[1u << 20];
	cleanup_close int fd = mkstemp(image);

	must(fd < 0 ? -errno : 0, image, NULL);
	atexit(remove_image);
	for (unsigned i = 0; i < IMAGE_MIB; i++) {
		noise(buf, sizeof(buf), i + 1);
		must(io_pwrite_full(fd, buf, sizeof(buf), (uint64_t)i * 3 * sizeof(buf)),
			image, NULL);
	}
	must(ftruncate(fd, (off_t)DISK_MIB << 20) < 0 ? -errno : 0, image, NULL);
}

static void
make_commit(void)
{
	cleanup_json_out struct json_out answer = {0};
	struct bench_vm vm = BENCH_VM_INIT;
	struct commit_request q = {.n_tags = 1, .tags = {"bench"}};
	const struct progress quiet = {0};
	char cmdline[96];
	struct err e;
	int r;

	snprintf(cmdline, sizeof(cmdline), "mode=work rest=1 dirty=%u noise=1", TOUCHED_PAGES);
	bench_boot_on(&vm, cmdline, image, DISK_MIB);
	r = commits_make(bench.commits, vm.id, &q, &quiet, &answer, &e);
	if (r == 0)
		r = commits_store(bench.commits, &store, &e);
	if (r == 0)
		r = store_load(store, "bench", &commit, &e);
	if (r == 0)
		r = paths_format(folder, sizeof(folder), &e, "%s/flat/%s",
			tree_home(bench.tree), commit->id);
	if (r < 0)
		bench_die("commit", &e);
	bench_end_vm(&vm);
}

/* Decompressing; see the top. */
struct unpacker {
	pthread_t thread;
	unsigned first, end;
};
static uint8_t (*packed)[STORE_PAGE];
static uint16_t *packed_len; /* 0: as it is */

static void *
unpack(void *arg)
{
	const struct unpacker *u = arg;
	uint8_t page[STORE_PAGE];
	struct zip *zip;

	must(zip_new(&zip), "zip", NULL);
	for (unsigned i = u->first; i < u->end; i++)
		if (packed_len[i])
			must(zip_unpack(zip, page, STORE_PAGE, packed[i], packed_len[i]),
				"unpack", NULL);
		else
			memcpy(page, packed[i], STORE_PAGE);
	zip_free(zip);
	return NULL;
}

static int
take_page(void *ctx, uint64_t page, const struct store_hash *name, struct err *e)
{
	static struct zip *zip;
	uint8_t data[STORE_PAGE];
	unsigned *n = ctx;

	(void)name;
	if (!zip)
		must(zip_new(&zip), "zip", NULL);
	must(store_tree_read(store, &commit->f.memory, page, 1, data, e), "a page", e);
	packed_len[*n] = (uint16_t)zip_pack(zip, packed[*n], data, STORE_PAGE);
	if (!packed_len[*n])
		memcpy(packed[*n], data, STORE_PAGE);
	return ++*n == 2 * TOUCHED_PAGES;
}

static void
measure_unpack(struct samples *s)
{
	static unsigned pages;
	struct unpacker all[THREADS_MAX];
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = online < 1 ? 1 : online > (long)THREADS_MAX ? THREADS_MAX : (unsigned)online;
	uint64_t began_ns;
	struct err e;

	if (!pages) {
		packed = calloc(2 * TOUCHED_PAGES, sizeof(*packed));
		packed_len = calloc(2 * TOUCHED_PAGES, sizeof(*packed_len));
		must(packed && packed_len ? 0 : -ENOMEM, "memory", NULL);
		if (store_tree_names(store, &commit->f.memory, NULL, take_page, &pages, &e) < 0)
			bench_die("reading the commit", &e);
	}
	began_ns = io_now_ns();
	for (unsigned i = 0; i < n; i++) {
		all[i].first = pages * i / n;
		all[i].end = pages * (i + 1) / n;
		must(-pthread_create(&all[i].thread, NULL, unpack, &all[i]), "thread", NULL);
	}
	for (unsigned i = 0; i < n; i++)
		pthread_join(all[i].thread, NULL);
	s->tried++;
	sample_add(s, io_now_ns() - began_ns);
}

static void
wait_whole(void)
{
	char path[PATHS_MAX + 8];

	snprintf(path, sizeof(path), "%s/boot", folder);
	while (access(path, F_OK) < 0)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* rang and whole may be NULL. */
static void
measure(bool full, struct samples *rang, struct samples *answer, struct samples *whole)
{
	struct branch_request q = {.count = 1, .full = full};
	cleanup_json_out struct json_out out = {0};
	struct tree *t = bench.tree;
	struct bench_vm vm = BENCH_VM_INIT;
	struct vm *row = NULL;
	static unsigned count;
	uint64_t began_ns, now_ns;
	struct err e;
	int r;

	snprintf(q.alias, sizeof(q.alias), "restored-%u", count++);
	bench_settle();
	began_ns = io_now_ns();
	r = commits_run(bench.commits, "bench", &q, &(struct progress){0}, &out, &e);
	now_ns = io_now_ns();
	if (r == 0) {
		answer->tried++;
		sample_add(answer, now_ns - began_ns);
		pthread_mutex_lock(&t->lock);
		r = tree_find(t, q.alias, &row, &e);
		if (r == 0) {
			memcpy(vm.id, row->row.id, sizeof(vm.id));
			vm.ctl = row->ctl;
			vm.pidfd = row->pidfd;
			vm.pid = (pid_t)row->row.pid;
			vm.of_tree = true;
			vm_unref(row);
		}
		pthread_mutex_unlock(&t->lock);
	}
	if (r < 0)
		bench_die("run", &e);
	if (rang) {
		rang->tried++;
		now_ns = bench_first_doorbell(&vm);
		if (now_ns)
			sample_add(rang, now_ns - began_ns);
	}
	wait_whole();
	if (whole) {
		whole->tried++;
		sample_add(whole, io_now_ns() - began_ns);
	}
	bench_end_vm(&vm);
}

static void
forget_image(void)
{
	struct err e;

	if (io_remove_tree(folder, &e) < 0)
		bench_die("the image", &e);
}

int
main(int argc, char **argv)
{
	static struct samples cold_rang, cold_answer, cold_whole, full_answer, warm_rang,
		warm_answer, unpacked, ignored;

	bench.pool_size = COMMITS_POOL_SIZE;
	bench_begin(argc, argv, "restore", 5, 512);
	make_image();
	make_commit();
	sample_clear(&cold_rang, "cold_rang", "the call … the guest's first doorbell");
	sample_clear(&cold_answer, "cold_answer", "the call … its answer");
	sample_clear(&cold_whole, "cold_whole", "the call … the image is made");
	sample_clear(&full_answer, "full_answer", "the same, memory made first");
	sample_clear(&warm_rang, "warm_rang", "the next VM: the call … its first doorbell");
	sample_clear(&warm_answer, "warm_answer", "the next VM: the call … its answer");
	sample_clear(&unpacked, "unpack", "decompressing what is not zero, all CPUs");
	measure(false, NULL, &ignored, NULL); /* what was wanted first is known then */
	/* In turns, so that all see the same host. */
	for (unsigned i = 0; i < bench.rounds; i++) {
		forget_image();
		measure(false, &cold_rang, &cold_answer, &cold_whole);
		measure(false, &warm_rang, &warm_answer, NULL);
		forget_image();
		measure(true, NULL, &full_answer, NULL);
		measure_unpack(&unpacked);
	}
	if (!bench.out)
		sample_row_begin(NULL, "%u of %llu MiB of memory, %u MiB of disk",
			TOUCHED_PAGES / 256, (unsigned long long)bench.mem_mib, DISK_MIB);
	sample_report(&cold_rang, bench.out);
	sample_report(&cold_answer, bench.out);
	sample_report(&cold_whole, bench.out);
	sample_report(&full_answer, bench.out);
	sample_report(&warm_rang, bench.out);
	sample_report(&warm_answer, bench.out);
	sample_report(&unpacked, bench.out);
	bench_number("ratio",
		(double)sample_percentile(&cold_rang, 50) /
			(double)sample_percentile(&warm_rang, 50),
		"cold_rang / warm_rang");
	store_manifest_free(commit);
	bench_end();
	return 0;
}
