/*
 * What is saved of a damaged pack (host/store/store_repair.c). The store has two commits,
 * always the same, and the input in place of their pack. Oracle: no crash, no sanitizer
 * finding; the repair ends; what the store gives afterwards is what was committed; a
 * second repair finds nothing more.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/io.h"
#include "host/store/store_priv.h"

#define PAGES 70u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], packs[96];
static char pack_name[STORE_ID_MAX];
static uint8_t contents[2][PAGES * STORE_PAGE];
static struct store_tree trees[2];

/* Plain abort: an assert may be compiled out. */
static void
must(int condition)
{
	if (!condition)
		abort();
}

static void
fill(uint8_t *page, uint64_t x)
{
	for (size_t i = 0; i < STORE_PAGE; i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		memcpy(page + i, &x, x % 3 ? 1 : 8);
	}
}

static void
commit(struct store *s, unsigned n)
{
	struct store_fields f = {.created_ms = n + 1};
	struct store_tree_writer *t;
	struct store_writer *w;
	char id[STORE_ID_MAX];

	must(store_begin(s, &w, NULL) == 0);
	must(store_tree_begin(w, n ? &trees[0] : NULL, sizeof(contents[n]), &t, NULL) ==
		0);
	must(store_tree_put(t, 0, contents[n], PAGES, NULL) == 0);
	must(store_tree_finish(t, &trees[n], NULL) == 0);
	f.memory = trees[n];
	must(store_commit(w, &f, id, NULL, NULL) == 0);
}

/* Two commits, whose packs are made one. */
static void
make_store(void)
{
	struct slices sl = {0};
	struct store_freed freed = {0};
	struct pack_set *set;
	struct store *s;

	snprintf(folder, sizeof(folder), "%s/pando-fuzz-XXXXXX",
		access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	must(mkdtemp(folder) != NULL);
	snprintf(packs, sizeof(packs), "%s/packs", folder);
	must(store_open(folder, &s, NULL) == 0);
	for (uint32_t i = 0; i < PAGES; i++)
		fill(contents[0] + i * STORE_PAGE, i % 5 + 1);
	memcpy(contents[1], contents[0], sizeof(contents[0]));
	fill(contents[1], 99);
	commit(s, 0);
	commit(s, 1);
	must(packs_get(s, &set, NULL) == 0);
	sl.s = s;
	care_begin(s);
	must(packs_merge(&sl, set->packs, NULL, set->n, &freed, NULL) == 0);
	care_end(s);
	packs_put(set);
	must(packs_get(s, &set, NULL) == 0 && set->n == 1);
	snprintf(pack_name, sizeof(pack_name), "%s", set->packs[0]->name);
	packs_put(set);
	store_close(s);
}

static void
remove_store(void)
{
	io_remove_tree(folder, NULL);
}

static int
unlink_one(void *ctx, const char *name, struct err *e)
{
	char file[STORE_HEX + sizeof(PACK_SUFFIX)];

	(void)e;
	snprintf(file, sizeof(file), "%s" PACK_SUFFIX, name);
	unlinkat(*(int *)ctx, file, 0);
	return 0;
}

static void
ignore(void *ctx, const struct store_damage *d)
{
	(void)ctx;
	must(d->text[0] != 0);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t got[STORE_PAGE];
	struct store_repaired first, second;
	struct store *s;
	char path[192];
	int fd;

	must(hash_init() == 0);
	if (!folder[0]) {
		make_store();
		atexit(remove_store);
		snprintf(path, sizeof(path), "%s/%s" PACK_SUFFIX, packs, pack_name);
		if (getenv("PANDO_FUZZ_SEED")) { /* makes the corpus */
			char command[512];

			snprintf(command, sizeof(command), "cp %s %s", path,
				getenv("PANDO_FUZZ_SEED"));
			must(system(command) == 0);
		}
	}
	fd = open(packs, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(fd >= 0);
	must(store_each_name(fd, PACK_SUFFIX, unlink_one, &fd, NULL) == 0);
	close(fd);
	snprintf(path, sizeof(path), "%s/%s" PACK_SUFFIX, packs, pack_name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd >= 0 && io_write_full(fd, data, size) == 0);
	close(fd);
	must(store_open(folder, &s, NULL) == 0);
	must(store_repair(s, ignore, NULL, &first, NULL) == 0);
	must(store_repair(s, ignore, NULL, &second, NULL) == 0);
	must(second.chunks_saved == 0);
	for (unsigned n = 0; n < 2; n++)
		for (uint64_t p = 0; p < PAGES; p++)
			if (store_tree_read(s, &trees[n], p, 1, got, NULL) == 0)
				must(memcmp(got, contents[n] + p * STORE_PAGE,
					     STORE_PAGE) == 0);
	store_close(s);
	return 0;
}
