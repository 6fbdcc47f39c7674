/*
 * What the commit store costs: contents of --mem MIB, committed, committed again, changed
 * a little, read back, checked. Nothing is asserted about time.
 *
 *   bench_store [--json] [--mem MIB] [--dir FOLDER]
 *
 * Three contents: pages that do not compress; pages as of programs (this one's own file,
 * each page with a mark, so that no two are alike); a third of those among zeroes.
 * write   store_begin until the last tree is finished: hash, look up, compress, write(2)
 * sync    store_commit: index, fsync and rename of pack and manifest
 * to_file: all of it as a file, zeroes as holes
 * The yardsticks, in the same run: hashing the same pages and nothing else; hashing,
 * compressing and writing them to a file without a store, in one thread (bare); and
 * decompressing them from memory to memory on all CPUs, for to_file.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/json.h"
#include "host/store/store.h"
#include "host/store/store_zip.h"
#include "tests/bench/must.h"

static struct json_out json;
static struct json_out *out; /* NULL: lines */
static uint64_t mem_mib = 512;
static const char *dir = "/tmp";
static char folder[256];
static struct store *store;
static struct err e;

static void
done(void)
{
	store_close(store);
	if (folder[0])
		io_remove_tree(folder, NULL);
}

static void
figure(const char *name, double value, const char *unit)
{
	if (out)
		json_out_f64(out, name, value);
	else
		printf("  %-28s %10.2f %s\n", name, value, unit);
}

static double
mb_per_s(uint64_t pages, uint64_t ns)
{
	return (double)pages * STORE_PAGE * 1000 / (double)(ns ? ns : 1);
}

enum content { RANDOM, PROGRAM, GUEST };
static const char *const content_names[] = {"incompressible", "program", "guest"};

static void
make_content(uint8_t *mem, uint64_t pages, enum content c, const uint8_t *program,
	size_t program_pages)
{
	uint64_t x = 88172645463325252ull;

	for (uint64_t p = 0; p < pages; p++) {
		uint8_t *page = mem + p * STORE_PAGE;

		if (c == GUEST && p % 96 >= 32) {
			memset(page, 0, STORE_PAGE);
			continue;
		}
		if (c != RANDOM) {
			memcpy(page, program + p % program_pages * STORE_PAGE,
				STORE_PAGE);
			uint64_t mark = p << 2 | c;

			memcpy(page + 64, &mark, sizeof(mark));
			continue;
		}
		for (size_t i = 0; i < STORE_PAGE; i += 8) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			memcpy(page + i, &x, 8);
		}
	}
}

/* Decompressing pages that are not zero, from memory to memory, on one thread of many. */
#define UNPACKERS_MAX 8u
struct unpacker {
	pthread_t thread;
	uint64_t first, end;
};
static const uint8_t *unpack_mem;
static uint16_t *unpack_len; /* 0: a page of zeroes; STORE_PAGE: not compressed */
static uint8_t (*unpack_from)[STORE_PAGE];

static void *
unpack(void *arg)
{
	const struct unpacker *u = arg;
	uint8_t page[STORE_PAGE];
	struct zip *zip;

	must(zip_new(&zip), "zip", NULL);
	for (uint64_t p = u->first; p < u->end; p++)
		if (unpack_len[p] == STORE_PAGE)
			memcpy(page, unpack_mem + p * STORE_PAGE, STORE_PAGE);
		else if (unpack_len[p])
			must(zip_unpack(zip, page, STORE_PAGE, unpack_from[p], unpack_len[p]),
				"unpack", NULL);
	zip_free(zip);
	return NULL;
}

/* Nanoseconds. */
static uint64_t
measure_unpack(const uint8_t *mem, uint64_t pages)
{
	static const uint8_t zeroes[STORE_PAGE];
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	uint64_t n = online < 1 ? 1 : online > (long)UNPACKERS_MAX ? UNPACKERS_MAX : (uint64_t)online;
	struct unpacker all[UNPACKERS_MAX];
	struct zip *zip;
	uint64_t from;

	unpack_mem = mem;
	unpack_len = calloc(pages, sizeof(*unpack_len));
	unpack_from = malloc(pages * STORE_PAGE);
	must(unpack_len && unpack_from ? zip_new(&zip) : -ENOMEM, "memory", NULL);
	for (uint64_t p = 0; p < pages; p++) {
		const uint8_t *page = mem + p * STORE_PAGE;

		if (memcmp(page, zeroes, STORE_PAGE) == 0)
			continue;
		unpack_len[p] = (uint16_t)zip_pack(zip, unpack_from[p], page, STORE_PAGE);
		if (!unpack_len[p])
			unpack_len[p] = STORE_PAGE;
	}
	zip_free(zip);
	from = io_now_ns();
	for (uint64_t i = 0; i < n; i++) {
		all[i].first = pages * i / n;
		all[i].end = pages * (i + 1) / n;
		must(-pthread_create(&all[i].thread, NULL, unpack, &all[i]), "thread", NULL);
	}
	for (uint64_t i = 0; i < n; i++)
		pthread_join(all[i].thread, NULL);
	from = io_now_ns() - from;
	free(unpack_len);
	free(unpack_from);
	return from;
}

static uint64_t
cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct timing {
	uint64_t write_ns, write_cpu_ns, sync_ns;
	struct store_stats stats;
	char id[STORE_ID_MAX];
	struct store_tree tree;
};

/* step 0: all pages; else `count` pages, `step` apart, over base. */
static void
commit(struct timing *t, const struct timing *base, const uint8_t *mem, uint64_t pages,
	uint64_t count, uint64_t step)
{
	struct store_fields f = {.parent = base ? base->id : NULL};
	struct store_tree_writer *tree;
	struct store_writer *w;
	uint64_t from = io_now_ns(), cpu = cpu_ns();

	must(store_begin(store, &w, &e), "begin", &e);
	must(store_tree_begin(
		     w, step ? &base->tree : NULL, pages * STORE_PAGE, &tree, &e),
		"begin", &e);
	if (!step)
		must(store_tree_put(tree, 0, mem, pages, &e), "put", &e);
	for (uint64_t i = 0; step && i < count; i++)
		must(store_tree_put(tree, i * step, mem + i * step * STORE_PAGE, 1, &e),
			"put", &e);
	must(store_tree_finish(tree, &f.memory, &e), "finish", &e);
	t->write_ns = io_now_ns() - from;
	t->write_cpu_ns = cpu_ns() - cpu;
	t->tree = f.memory;
	from = io_now_ns();
	must(store_commit(w, &f, t->id, &t->stats, &e), "commit", &e);
	t->sync_ns = io_now_ns() - from;
}

static void
change(uint8_t *mem, uint64_t count, uint64_t step, uint64_t salt)
{
	uint64_t x = salt * 0x9e3779b97f4a7c15ull;

	for (uint64_t i = 0; i < count; i++)
		for (size_t at = 0; at < STORE_PAGE; at += 8) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			memcpy(mem + i * step * STORE_PAGE + at, &x, 8);
		}
}

/* Hash, compress, write and sync, and no store: what one thread can do at best. */
static uint64_t
bare(const uint8_t *mem, uint64_t pages)
{
	uint8_t *buf = malloc(1u << 20), zipped[STORE_PAGE];
	struct store_hash ignored;
	struct zip *zip = NULL;
	size_t have = 0;
	char path[300];
	uint64_t from;
	int fd, r = 0;

	snprintf(path, sizeof(path), "%s/bare", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd < 0 || !buf || zip_new(&zip) ? err_sys(&e, -errno, "%s", path) : 0,
		"bare file", &e);
	from = io_now_ns();
	for (uint64_t p = 0; p < pages && r == 0; p++) {
		const uint8_t *page = mem + p * STORE_PAGE;
		size_t n;

		if (!page[0] && memcmp(page, page + 1, STORE_PAGE - 1) == 0)
			continue;
		hash_of(HASH_PLAIN, page, STORE_PAGE, &ignored);
		n = zip_pack(zip, zipped, page, STORE_PAGE);
		memcpy(buf + have, n ? zipped : page, n ? n : STORE_PAGE);
		have += n ? n : STORE_PAGE;
		if (have > (1u << 20) - STORE_PAGE) {
			r = io_write_full(fd, buf, have);
			have = 0;
		}
	}
	if (r == 0)
		r = io_write_full(fd, buf, have);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	must(r < 0 ? err_sys(&e, r, "%s", path) : 0, "bare file", &e);
	from = io_now_ns() - from;
	close(fd);
	unlink(path);
	zip_free(zip);
	free(buf);
	return from;
}

/* A first commit of the pages, durable, with 1, 2 and 8 threads, beside the bare figure:
 * each in a store of its own. */
static void
measure_threads(const uint8_t *mem, uint64_t pages)
{
	static const unsigned threads[] = {1, 2, 8};
	struct store *all = store;
	double alone, mb_s;
	struct timing t;
	char path[300], name[64];

	alone = mb_per_s(pages, bare(mem, pages));
	figure("bare_mb_s", alone, "MB/s, durable: hash, compress, write, sync");
	for (size_t i = 0; i < sizeof(threads) / sizeof(*threads); i++) {
		snprintf(path, sizeof(path), "%s/threads", folder);
		must(store_open(path, &store, &e), "open", &e);
		store_set_threads(store, threads[i]);
		commit(&t, NULL, mem, pages, 0, 0);
		mb_s = mb_per_s(pages, t.write_ns + t.sync_ns);
		snprintf(name, sizeof(name), "threads_%u_mb_s", threads[i]);
		figure(name, mb_s, "MB/s, durable");
		snprintf(name, sizeof(name), "threads_%u_to_bare", threads[i]);
		figure(name, mb_s / alone, "× bare");
		store_close(store);
		store = NULL;
		must(io_remove_tree(path, &e), "remove", &e);
	}
	store = all;
}

static void
on_damage(void *ctx, const struct store_damage *d)
{
	(void)ctx;
	fprintf(stderr, "bench_store: %s\n", d->text);
}

static void
measure(enum content c, uint8_t *mem, uint64_t pages)
{
	struct timing first, again, near, far;
	struct store_verified verified;
	uint64_t dirty = pages < 2000 ? pages / 2 : 1000, step = pages / dirty;
	struct store_hash ignored;
	uint64_t from, ns;
	char path[300];
	int fd;

	if (out) {
		json_out_object(out, NULL);
		json_out_str(out, "content", content_names[c]);
	} else {
		printf("%s:\n", content_names[c]);
	}
	from = cpu_ns();
	for (uint64_t p = 0; p < pages; p++)
		hash_of(HASH_PLAIN, mem + p * STORE_PAGE, STORE_PAGE, &ignored);
	figure("hash_only_cpu_mb_s", mb_per_s(pages, cpu_ns() - from),
		"MB/s of CPU time");
	measure_threads(mem, pages);
	commit(&first, NULL, mem, pages, 0, 0);
	figure("write_mb_s", mb_per_s(pages, first.write_ns), "MB/s");
	figure("write_cpu_mb_s", mb_per_s(pages, first.write_cpu_ns),
		"MB/s of CPU time of the writer's own thread");
	figure("sync_ms", (double)first.sync_ns / 1e6, "ms");
	figure("bytes_written_mib", (double)first.stats.bytes_written / 1048576, "MiB");
	commit(&again, &first, mem, pages, 0, 0);
	figure("again_mb_s", mb_per_s(pages, again.write_ns), "MB/s");
	figure("again_bytes_written", (double)again.stats.bytes_written, "bytes");
	change(mem, dirty, 1, c * 10u + 1);
	commit(&near, &first, mem, pages, dirty, 1);
	figure("dirty_pages", (double)dirty, "pages, one after the other");
	figure("dirty_write_ms", (double)near.write_ns / 1e6, "ms");
	figure("dirty_bytes_ratio",
		(double)near.stats.bytes_written / (double)(dirty * STORE_PAGE),
		"× their bytes");
	change(mem, dirty, step, c * 10u + 2);
	commit(&far, &near, mem, pages, dirty, step);
	figure("scattered_write_ms", (double)far.write_ns / 1e6, "ms");
	figure("scattered_bytes_ratio",
		(double)far.stats.bytes_written / (double)(dirty * STORE_PAGE),
		"× their bytes");
	snprintf(path, sizeof(path), "%s/flat", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd < 0 ? err_sys(&e, -errno, "%s", path) : 0, "flat file", &e);
	from = io_now_ns();
	must(store_tree_to_file(store, &far.tree, NULL, fd, &e), "to file", &e);
	ns = io_now_ns() - from;
	figure("to_file_mb_s", mb_per_s(pages, ns), "MB/s");
	from = measure_unpack(mem, pages);
	figure("unpack_only_mb_s", mb_per_s(pages, from), "MB/s, on all CPUs");
	figure("to_file_ratio", (double)ns / (double)from, "× the time of unpacking alone");
	close(fd);
	unlink(path);
	from = io_now_ns();
	must(store_verify(store, far.id, on_damage, NULL, &verified, &e), "verify", &e);
	ns = io_now_ns() - from;
	figure("verify_mb_s", mb_per_s(pages, ns), "MB/s");
	figure("verify_damages", (double)verified.damages, "");
	if (out)
		json_out_end_object(out);
	fflush(stdout);
}

/* How long a page takes, hash included, after many commits of few pages each, while their
 * packs are merged in the background. */
static void
measure_packs(uint8_t *mem, uint64_t pages)
{
	static const unsigned counts[] = {1, 100, 2000};
	struct store_used used;
	struct timing t;
	unsigned have = 0;
	char name[64], path[300];

	if (pages > 16384)
		pages = 16384;
	store_close(store);
	store = NULL;
	snprintf(path, sizeof(path), "%s/packs", folder);
	must(store_open(path, &store, &e), "open", &e);
	store_set_threads(store, 1); /* so that its CPU time is all there is */
	if (out)
		json_out_object(out, NULL);
	else
		printf("many commits (of 16 new pages each):\n");
	for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++) {
		uint64_t from = io_now_ns();
		unsigned n = counts[i] - have;

		for (; have < counts[i]; have++) {
			change(mem, 16, 1, 1000 + have);
			commit(&t, NULL, mem, 16, 0, 0);
		}
		snprintf(name, sizeof(name), "commits_%u_ms_each", counts[i]);
		figure(name, (double)(io_now_ns() - from) / 1e6 / n, "ms");
		must(store_usage(store, &used, &e), "usage", &e);
		snprintf(name, sizeof(name), "commits_%u_packs", counts[i]);
		figure(name, (double)used.packs, "packs");
		change(mem, pages, 1, 500000 + i);
		commit(&t, NULL, mem, pages, 0, 0);
		snprintf(name, sizeof(name), "commits_%u_us_per_new_page", counts[i]);
		figure(name, (double)t.write_cpu_ns / 1000 / (double)pages,
			"µs of CPU time");
		commit(&t, NULL, mem, pages, 0, 0);
		snprintf(name, sizeof(name), "commits_%u_us_per_known_page", counts[i]);
		figure(name, (double)t.write_cpu_ns / 1000 / (double)pages,
			"µs of CPU time");
	}
	if (out)
		json_out_end_object(out);
}

static int
by_value(const void *pa, const void *pb)
{
	uint64_t a = *(const uint64_t *)pa, b = *(const uint64_t *)pb;

	return a < b ? -1 : a > b;
}

static bool stop; /* atomic */
static uint64_t n_gcs;

static void *
gc_all_the_time(void *arg)
{
	struct store_freed freed;
	struct err why;

	(void)arg;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		must(store_gc(store, NULL, 0, &freed, &why), "gc", &why);
		must(store_settle(store, NULL, &why), "settle", &why);
		n_gcs++;
	}
	return NULL;
}

#define SAMPLES 4000u

/* A page read while others work on the packs or do not. */
static void
sample_reads(const char *when, const struct store_tree *t, uint64_t pages)
{
	static uint64_t ns[SAMPLES];
	uint8_t page[STORE_PAGE];
	char name[64];

	for (unsigned i = 0; i < SAMPLES; i++) {
		uint64_t from = io_now_ns();

		must(store_tree_read(store, t, i * 7919ull % pages, 1, page, &e), "read",
			&e);
		ns[i] = io_now_ns() - from;
		usleep(200);
	}
	qsort(ns, SAMPLES, sizeof(*ns), by_value);
	snprintf(name, sizeof(name), "read_%s_p50_us", when);
	figure(name, (double)ns[SAMPLES / 2] / 1000, "µs");
	snprintf(name, sizeof(name), "read_%s_p99_us", when);
	figure(name, (double)ns[SAMPLES * 99 / 100] / 1000, "µs");
	snprintf(name, sizeof(name), "read_%s_max_us", when);
	figure(name, (double)ns[SAMPLES - 1] / 1000, "µs");
}

static void
sample_commits(const char *when, const struct timing *base, uint8_t *mem, uint64_t pages)
{
	static uint64_t ns[200];
	char name[64];
	struct timing t;

	for (unsigned i = 0; i < 200; i++) {
		uint64_t from;

		change(mem, 4, 1, 900000 + i + (uint64_t)when[0] * 1000);
		from = io_now_ns();
		commit(&t, base, mem, pages, 4, 1);
		ns[i] = io_now_ns() - from;
		must(store_delete(store, t.id, 0, NULL, &e), "delete", &e);
	}
	qsort(ns, 200, sizeof(*ns), by_value);
	snprintf(name, sizeof(name), "commit_%s_p50_ms", when);
	figure(name, (double)ns[100] / 1e6, "ms");
	snprintf(name, sizeof(name), "commit_%s_max_ms", when);
	figure(name, (double)ns[199] / 1e6, "ms");
}

/* What gc and merges, one after the other without end, make others wait. */
static void
measure_beside_gc(uint8_t *mem, uint64_t pages)
{
	struct timing base;
	pthread_t thread;

	if (out)
		json_out_object(out, NULL);
	else
		printf("beside gc and merges without end:\n");
	commit(&base, NULL, mem, pages, 0, 0);
	sample_reads("alone", &base.tree, pages);
	sample_commits("alone", &base, mem, pages);
	pthread_create(&thread, NULL, gc_all_the_time, NULL);
	sample_reads("beside_gc", &base.tree, pages);
	sample_commits("beside_gc", &base, mem, pages);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	figure("gcs", (double)n_gcs, "");
	if (out)
		json_out_end_object(out);
}

int
main(int argc, char **argv)
{
	cleanup_free char *program = NULL;
	size_t program_len;
	char path[300];
	uint64_t pages;
	uint8_t *mem;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--json") == 0) {
			out = &json;
		} else if (strcmp(argv[i], "--mem") == 0 && i + 1 < argc) {
			mem_mib = strtoull(argv[++i], NULL, 10);
		} else if (strcmp(argv[i], "--dir") == 0 && i + 1 < argc) {
			dir = argv[++i];
		} else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
			i++; /* the other benchmarks' */
		} else {
			fprintf(stderr,
				"usage: bench_store [--json] [--mem MIB] [--dir FOLDER]\n");
			return 2;
		}
	}
	if (mem_mib < 8 || mem_mib > 65536) {
		fprintf(stderr, "bench_store: --mem takes 8 to 65536\n");
		return 2;
	}
	pages = mem_mib * 256;
	mem = mmap(NULL, pages * STORE_PAGE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	atexit(done);
	must(mem == MAP_FAILED ? err_sys(&e, -errno, "memory") : 0, "start", &e);
	must(io_read_file("/proc/self/exe", 64u << 20, &program, &program_len, &e),
		"start", &e);
	snprintf(path, sizeof(path), "%.200s/pando-bench-XXXXXX", dir);
	must(mkdtemp(path) ? 0 : err_sys(&e, -errno, "%s", path), "start", &e);
	snprintf(folder, sizeof(folder), "%.255s", path);
	snprintf(path, sizeof(path), "%s/store", folder);
	must(store_open(path, &store, &e), "open", &e);
	if (out) {
		json_out_object(out, NULL);
		json_out_str(out, "bench", "store");
		json_out_u64(out, "mem_mib", mem_mib);
		json_out_array(out, "rows");
	} else {
		printf("store: contents of %llu MiB, in %s\n",
			(unsigned long long)mem_mib, dir);
	}
	for (enum content c = RANDOM; c <= GUEST; c++) {
		make_content(mem, pages, c, (const uint8_t *)program,
			program_len / STORE_PAGE);
		measure(c, mem, pages);
	}
	measure_packs(mem, pages);
	measure_beside_gc(mem, pages);
	if (out) {
		json_out_end_array(out);
		json_out_end_object(out);
		puts(json.buf);
		json_out_done(&json);
	}
	return 0;
}
