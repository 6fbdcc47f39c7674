/*
 * Branches and commits a VM again and again, and says how long that took:
 *
 *   endless HOME VM ROUNDS branch|commit|both
 *
 * Each round branches VM, deletes the branch, and commits VM, or one of these. Prints one line:
 * percentiles in milliseconds, and how many segment files there are. The last commit's id is the
 * second line. Fails with pandod's sentence.
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/io.h"
#include "host/client/client.h"

static int
compare(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void
say_times(const char *what, uint64_t *ns, size_t n)
{
	if (!n)
		return;
	qsort(ns, n, sizeof(*ns), compare);
	printf("%s p10 %.2f p50 %.2f p90 %.2f ms; ", what, (double)ns[n / 10] / 1e6,
		(double)ns[n / 2] / 1e6, (double)ns[n * 9 / 10] / 1e6);
}

static unsigned
count_segments(const char *home)
{
	char path[512];
	struct dirent *d;
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/segments", home);
	dir = opendir(path);
	while (dir && (d = readdir(dir)))
		n += strstr(d->d_name, ".data") != NULL;
	if (dir)
		closedir(dir);
	return n;
}

static int
branch_once(struct client *c, const char *vm, uint64_t *ret_ns, struct err *e)
{
	const struct client_branch spec = {.no_wait = true};
	cleanup_client_vms struct client_vms made = {0};
	const uint64_t began = io_now_ns();
	int r = client_branch(c, vm, &spec, &made, NULL, e);

	*ret_ns = io_now_ns() - began;
	return r < 0 ? r : client_delete(c, made.v[0].id, false, NULL, e);
}

static int
commit_once(struct client *c, const char *vm, char id[static 65], uint64_t *ret_ns,
	struct err *e)
{
	const struct client_commit spec = {0};
	struct client_committed made = {0};
	const uint64_t began = io_now_ns();
	int r = client_commit(c, vm, &spec, &made, NULL, e);

	*ret_ns = io_now_ns() - began;
	if (r == 0)
		memcpy(id, made.commit.id, 65);
	client_point_done(&made.commit);
	return r;
}

int
main(int argc, char **argv)
{
	cleanup_client struct client *c = NULL;
	uint64_t *branches, *commits;
	char id[65] = "";
	struct err e = {0};
	size_t rounds;
	bool branch, commit;
	int r;

	if (argc != 5) {
		fprintf(stderr, "usage: endless HOME VM ROUNDS branch|commit|both\n");
		return 2;
	}
	rounds = strtoul(argv[3], NULL, 10);
	branch = strcmp(argv[4], "commit") != 0;
	commit = strcmp(argv[4], "branch") != 0;
	branches = calloc(rounds + 1, sizeof(*branches));
	commits = calloc(rounds + 1, sizeof(*commits));
	if (!branches || !commits)
		return 1;
	r = client_open(argv[1], CLIENT_START, &c, &e);
	if (r == 0)
		client_busy_timeout(c, true, 120000);
	for (size_t i = 0; r == 0 && i < rounds; i++) {
		if (branch)
			r = branch_once(c, argv[2], &branches[i], &e);
		if (r == 0 && commit)
			r = commit_once(c, argv[2], id, &commits[i], &e);
		if (r < 0)
			fprintf(stderr, "round %zu: %s\n", i, e.msg);
	}
	if (r == 0) {
		say_times("branch", branches, branch ? rounds : 0);
		say_times("commit", commits, commit ? rounds : 0);
		printf("%u segments\n%s\n", count_segments(argv[1]), id);
	}
	free(branches);
	free(commits);
	return r < 0;
}
