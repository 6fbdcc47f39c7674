/*
 * What many commits cost who looks for one: the same calls of the API, without HTTP, on a
 * store of 100 commits and on one of N, and their ratio. Nothing is asserted about time.
 * "any of N" takes another commit each time, so that little of it is in the CPU's caches;
 * "100 of N" takes as many as there are in the small store.
 *
 *   bench_catalog [--json] [--commits N] [--shape chain|tree] [--fresh PAGES] [--dir FOLDER]
 *
 * Commits are made as pandod makes them, store_begin() to store_commit(), of a memory of 64
 * pages of which --fresh (2) are new each time. --fresh 0: contents repeat after 1000
 * commits, so that most make no pack. A tree has a hundred children a commit.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common/io.h"
#include "common/json.h"
#include "common/log.h"
#include "host/commit/commits_priv.h"
#include "tests/bench/must.h"
#include "tests/bench/sample.h"

#define SMALL 100u
#define PAGES 64u
#define ROUNDS 400u
#define FAN_OUT 100u
#define DEPTH 1000u

static struct json_out json;
static bool as_json, tree;
static uint64_t n_commits = 20000, fresh = 2;
static const char *dir = "/tmp";
static char folder[256];
static struct store *store;
static struct tree *vms;
static struct commits *commits;
static char (*ids)[STORE_ID_MAX];
static struct store_tree last;
static struct err e;

static void
done(void)
{
	commits_close(commits);
	if (vms)
		tree_close(vms);
	if (folder[0])
		io_remove_tree(folder, NULL);
}

static void
make(uint64_t i)
{
	struct store_fields f = {.created_ms = 1700000000000 + i,
		.message = "a step",
		.labels = "{\"kind\":\"step\"}",
		.config = "{\"alias\":\"agent\",\"disk_mib\":16,\"kernel\":\"default\",\"mem_mib\":32,"
			  "\"rootfs\":\"default\",\"vcpus\":1}",
		.cpu = "{\"features\":[\"aes\",\"avx\",\"avx2\",\"sse4_2\"]}"};
	struct store_tree_writer *t;
	struct store_writer *w;
	uint8_t page[STORE_PAGE];
	uint64_t n = fresh ? fresh : 1;

	if (i)
		f.parent = ids[tree ? (i - 1) / FAN_OUT : i - 1];
	must(store_begin(store, &w, &e), "store_begin", &e);
	must(store_tree_begin(w, i && fresh ? &last : NULL, PAGES * STORE_PAGE, &t, &e),
		"store_tree_begin", &e);
	for (uint64_t p = 0; p < n; p++) {
		uint64_t value = (fresh ? i * n + p : i % 1000) + 1;

		for (size_t at = 0; at < STORE_PAGE; at += sizeof(value)) {
			value = value * 6364136223846793005ull + 1442695040888963407ull;
			memcpy(page + at, &value, sizeof(value));
		}
		must(store_tree_put(t, fresh ? i % (PAGES - n) + p : 0, page, 1, &e), "store_tree_put", &e);
	}
	must(store_tree_finish(t, &f.memory, &e), "store_tree_finish", &e);
	last = f.memory;
	must(store_commit(w, &f, ids[i], NULL, &e), "store_commit", &e);
}

/*
 * What is measured: each does one thing to the store as it is, of n commits.
 */

static bool hot; /* always the same hundred */

static uint64_t
any(uint64_t n)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return hot ? x % SMALL * 48611 % n : x % n;
}

/* The calls read no disk, and others run on the host: CPU time is what they cost. */
static uint64_t
cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct json_out answer;

static void
begin(void)
{
	json_out_done(&answer);
	answer = (struct json_out){0};
}

static void
by_id(uint64_t n)
{
	must(commits_info(commits, ids[any(n)], &answer, &e), "commits_info", &e);
}

static void
by_prefix(uint64_t n)
{
	char prefix[16];

	snprintf(prefix, sizeof(prefix), "%.12s", ids[any(n)]);
	must(commits_info(commits, prefix, &answer, &e), "commits_info", &e);
}

/* A hundred, of a cursor anywhere. */
static void
page(uint64_t n)
{
	uint64_t at = any(n - SMALL + 1) + SMALL - 1;
	char after[STORE_CURSOR_MAX];

	snprintf(after, sizeof(after), "-%llu.%064d", 1700000000000ull + at + 1, 0);
	must(commits_list(commits, after, SMALL, &answer, &e), "commits_list", &e);
}

/* Divided by its depth: on a hundred commits there are no thousand. */
static uint64_t depth;

static void
history(uint64_t n)
{
	uint64_t at = n - 1 - any(n > DEPTH ? n - DEPTH : 1);

	depth = 1;
	for (uint64_t up = at; tree && up; up = (up - 1) / FAN_OUT)
		depth++;
	if (!tree)
		depth = at + 1 < DEPTH ? at + 1 : DEPTH;
	must(commits_history(commits, ids[at], "", DEPTH, &answer, &e), "commits_history",
		&e);
}

static void
refused(uint64_t n)
{
	/* Those at the top of a tree are parents; of a chain, all but the last. */
	uint64_t at = any(tree ? (n - 2) / FAN_OUT + 1 : n - 1);

	if (commits_delete(commits, ids[at], false, false, &answer, &e) != -ENOTEMPTY)
		must_not_go_on("a deletion that is not refused", &e);
}

/* What a spawn needs of the store when its image is not there yet. */
static void
contents(uint64_t n)
{
	static int fd = -1;
	struct store_manifest *m;

	if (fd < 0)
		fd = memfd_create("contents", MFD_CLOEXEC);
	must(store_load(store, ids[any(n)], &m, &e), "store_load", &e);
	must(store_tree_to_file(store, &m->f.memory, NULL, fd, &e), "store_tree_to_file", &e);
	store_manifest_free(m);
	must(ftruncate(fd, 0) < 0 ? err_sys(&e, -errno, "memfd") : 0, "ftruncate", &e);
}

static const struct {
	const char *name;
	void (*run)(uint64_t n);
	bool by_depth;
} calls[] = {
	{"info by id", by_id, false},
	{"info by prefix", by_prefix, false},
	{"list 100", page, false},
	{"history, a commit", history, true},
	{"refuse a deletion", refused, false},
	{"contents of 64 pages", contents, false},
};
#define CALLS (sizeof(calls) / sizeof(calls[0]))

static void
measure(uint64_t n, double ret_us[CALLS])
{
	static struct samples s;

	for (size_t i = 0; i < CALLS; i++) {
		sample_clear(&s, calls[i].name, "");
		for (unsigned round = 0; round < ROUNDS; round++) {
			uint64_t began_ns;

			begin();
			began_ns = cpu_ns();
			calls[i].run(n);
			sample_add(&s, (cpu_ns() - began_ns) /
					       (calls[i].by_depth ? depth : 1));
		}
		ret_us[i] = (double)sample_percentile(&s, 50) / 1e3;
	}
}

/* As pandod does. */
static void
open_home(void)
{
	static struct tree_config config;

	config = (struct tree_config){.kvm_path = "/dev/null"};
	snprintf(config.home, sizeof(config.home), "%s", folder);
	must(tree_open(&config, &vms, &e), "tree_open", &e);
	must(commits_open(vms, &(struct commits_config){0}, &commits, &e), "commits_open", &e);
	must(commits_store(commits, &store, &e), "commits_store", &e);
}

/*
 * What `pando status` waits while all is listed, and while all but the first is deleted.
 */

static struct samples status;
static volatile bool ended;

static void *
ask_status(void *ctx)
{
	static const struct labels none;

	(void)ctx;
	while (!ended && status.n < SAMPLES_MAX) {
		struct json_out o = {0};
		uint64_t began_ns = io_now_ns();

		must(tree_list(vms, &none, false, &o, &e), "tree_list", &e);
		sample_add(&status, io_now_ns() - began_ns);
		json_out_done(&o);
		usleep(1000);
	}
	return NULL;
}

static double
status_while(void (*work)(void), double *ret_s)
{
	uint64_t began_ns = io_now_ns();
	pthread_t thread;

	sample_clear(&status, "status", "");
	ended = false;
	if (pthread_create(&thread, NULL, ask_status, NULL) != 0)
		must_not_go_on("a thread", NULL);
	work();
	ended = true;
	pthread_join(thread, NULL);
	*ret_s = (double)(io_now_ns() - began_ns) / 1e9;
	return (double)sample_percentile(&status, 100) / 1e6;
}

static void
list_all(void)
{
	char after[STORE_CURSOR_MAX] = "";

	do {
		struct json_out o = {0};
		struct json *j;

		must(commits_list(commits, after, STORE_PAGE_MAX, &o, &e), "commits_list", &e);
		must(json_parse(o.buf, o.len, 1u << 20, &j, &e), "json_parse", &e);
		if (json_str(j, json_get(j, 0, "next"), after, sizeof(after)) < 0)
			after[0] = '\0';
		json_free(j);
		json_out_done(&o);
	} while (after[0]);
}

static void
delete_all(void)
{
	begin();
	must(commits_delete(commits, ids[1], true, false, &answer, &e), "commits_delete", &e);
}

static void
arguments(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (strcmp(argv[i], "--json") == 0) {
			as_json = true;
			continue;
		}
		if (!value)
			goto usage;
		if (strcmp(argv[i], "--commits") == 0)
			n_commits = strtoull(value, NULL, 10);
		else if (strcmp(argv[i], "--shape") == 0)
			tree = strcmp(value, "tree") == 0;
		else if (strcmp(argv[i], "--fresh") == 0)
			fresh = strtoull(value, NULL, 10);
		else if (strcmp(argv[i], "--dir") == 0)
			dir = value;
		else
			goto usage;
		i++;
	}
	if (n_commits > SMALL && fresh < PAGES)
		return;
usage:
	fprintf(stderr,
		"usage: bench_catalog [--json] [--commits N] [--shape chain|tree] [--fresh PAGES] [--dir FOLDER]\n");
	exit(2);
}

int
main(int argc, char **argv)
{
	double small_us[CALLS], large_us[CALLS], hot_us[CALLS], made_s, open_ms, list_ms, delete_ms, list_s,
		delete_s;
	uint64_t began_ns;

	arguments(argc, argv);
	log_init("bench", LOG_LEVEL_WARN);
	atexit(done);
	snprintf(folder, sizeof(folder), "%s/bench-catalog.XXXXXX", dir);
	if (!mkdtemp(folder))
		must_not_go_on(folder, NULL);
	ids = calloc(n_commits, sizeof(*ids));
	if (!ids)
		must_not_go_on("memory", NULL);
	open_home();
	for (uint64_t i = 0; i < SMALL; i++)
		make(i);
	measure(SMALL, small_us);
	began_ns = io_now_ns();
	for (uint64_t i = SMALL; i < n_commits; i++)
		make(i);
	made_s = (double)(io_now_ns() - began_ns) / 1e9;
	measure(n_commits, large_us);
	hot = true;
	measure(n_commits, hot_us);
	commits_close(commits);
	tree_close(vms);
	vms = NULL;
	commits = NULL;
	began_ns = io_now_ns();
	open_home();
	open_ms = (double)(io_now_ns() - began_ns) / 1e6;
	list_ms = status_while(list_all, &list_s);
	delete_ms = status_while(delete_all, &delete_s);
	if (as_json) {
		json_out_object(&json, NULL);
		json_out_u64(&json, "commits", n_commits);
		json_out_str(&json, "shape", tree ? "tree" : "chain");
		json_out_f64(&json, "make_s", made_s);
		json_out_f64(&json, "open_ms", open_ms);
		json_out_f64(&json, "list_all_s", list_s);
		json_out_f64(&json, "status_most_ms_while_listing", list_ms);
		json_out_f64(&json, "delete_s", delete_s);
		json_out_f64(&json, "status_most_ms_while_deleting", delete_ms);
		for (size_t i = 0; i < CALLS; i++) {
			json_out_object(&json, calls[i].name);
			json_out_f64(&json, "p50_us_100", small_us[i]);
			json_out_f64(&json, "p50_us", large_us[i]);
			json_out_f64(&json, "p50_us_hot", hot_us[i]);
			json_out_f64(&json, "ratio", large_us[i] / small_us[i]);
			json_out_f64(&json, "ratio_hot", hot_us[i] / small_us[i]);
			json_out_end_object(&json);
		}
		json_out_end_object(&json);
		puts(json.buf);
		json_out_done(&json);
	} else {
		printf("%s of %llu commits, made in %.1f s; opened in %.0f ms\n",
			tree ? "tree" : "chain", (unsigned long long)n_commits, made_s,
			open_ms);
		printf("  %-20s %12s %12s %8s %16s %8s\n", "p50", "of 100, us",
			"any of N, us", "ratio", "100 of N, us", "ratio");
		for (size_t i = 0; i < CALLS; i++)
			printf("  %-20s %12.2f %12.2f %8.2f %16.2f %8.2f\n", calls[i].name,
				small_us[i], large_us[i], large_us[i] / small_us[i],
				hot_us[i], hot_us[i] / small_us[i]);
		printf("  all listed in %.1f s, a status then took %.2f ms at most\n", list_s,
			list_ms);
		printf("  the second and all below it deleted in %.1f s, a status then took %.2f ms at most\n",
			delete_s, delete_ms);
	}
	begin();
	free(ids);
	return 0;
}
