/*
 * What a commit is read from (host/commit/commit_read.c), what a VMM may say of itself
 * (vmmctl_state), what a commit's configuration may be, and what commits find when they are
 * opened over a tree.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/snapshot_format.h"
#include "host/commit/commit_cpu.h"
#include "host/commit/commit_read.h"
#include "host/commit/commit_track.h"
#include "host/commit/commits_priv.h"
#include "host/vmmproc/vmmctl.h"
#include "vmm/kvm.h"

#define MIB (1u << 20)

static char folder[64];
static struct store *store;
static struct err e;

static int
open_store(void **state)
{
	char path[PATHS_MAX];

	(void)state;
	snprintf(folder, sizeof(folder), "/tmp/pando-test-commit.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/store", folder);
	return store_open(path, &store, &e);
}

static int
close_store(void **state)
{
	(void)state;
	store_close(store);
	return io_remove_tree(folder, NULL);
}

/* Makes the trees of a writer stay, so that they can be read. */
static void
keep(struct store_writer *w, const struct store_tree *tree)
{
	struct store_fields f = {
		.labels = "{}", .config = "{}", .cpu = "{}", .disk = *tree};
	char id[STORE_ID_MAX];

	assert_int_equal(store_commit(w, &f, id, NULL, &e), 0);
}

static struct store_writer *
begin(void)
{
	struct store_writer *w;

	assert_int_equal(store_begin(store, &w, &e), 0);
	return w;
}

/*
 * Memory, of this very process.
 */

static void
assert_is_memory(const struct store_tree *tree, const uint8_t *memory, size_t len)
{
	uint8_t *got = malloc(len);

	assert_non_null(got);
	assert_int_equal(tree->length, len);
	assert_int_equal(store_tree_read(store, tree, 0, len / STORE_PAGE, got, &e), 0);
	assert_memory_equal(got, memory, len);
	free(got);
}

static struct vmm_state_answer
answer_of(const uint8_t *memory, size_t len, uint32_t flags)
{
	struct vmm_state_answer a = {.flags = flags,
		.mem_mib = len / MIB,
		.vcpus = 1,
		.disk_mib = 1,
		.blob_bytes = 100,
		.n_ranges = 2};

	a.ranges[0] = (struct vmm_mem_range){0, (uintptr_t)memory, 5 * MIB};
	a.ranges[1] = (struct vmm_mem_range){
		1ull << 32, (uintptr_t)memory + 5 * MIB, len - 5 * MIB};
	return a;
}

static void
only_pages_that_are_there_are_read(void **state)
{
	const size_t len = 48 * MIB;
	uint8_t *memory = mmap(
		NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vmm_state_answer a;
	struct store_writer *w = begin();
	struct store_tree tree;
	uint64_t read;

	(void)state;
	assert_true(memory != MAP_FAILED);
	madvise(memory, len, MADV_NOHUGEPAGE);
	/* The first, the last, both sides of the ranges' border, scattered ones and a
	 * run longer than a batch. */
	memory[0] = 1;
	memory[len - 1] = 2;
	memset(memory + 5 * MIB - 10, 3, 20);
	for (size_t at = 6 * MIB; at < 12 * MIB; at += 3 * STORE_PAGE)
		memory[at] = (uint8_t)(at / STORE_PAGE);
	memset(memory + 20 * MIB, 7, 5 * MIB);
	a = answer_of(memory, len, 0);
	assert_int_equal(commit_read_memory(w, getpid(), &a, NULL, &tree, &read, &e), 0);
	keep(w, &tree);
	assert_in_range(read, 5 * MIB, 9 * MIB);
	assert_is_memory(&tree, memory, len);
	munmap(memory, len);
}

static void
on_an_image_only_what_was_written_is_read(void **state)
{
	const size_t len = 16 * MIB;
	struct vmm_state_answer a;
	struct store_tree image, tree;
	struct store_writer *w;
	uint8_t *memory;
	uint64_t read;
	char path[128];
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/image", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	for (uint64_t at = 0; at < len; at += 5 * STORE_PAGE)
		assert_int_equal(io_pwrite_full(fd, &at, sizeof(at), at), 0);
	w = begin();
	assert_int_equal(commit_read_base(w, fd, path, len, &image, &e), 0);
	keep(w, &image);
	memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_true(memory != MAP_FAILED);
	/* Read: still the file's. Written: ours, zeroes too. */
	for (size_t at = 0; at < 4 * MIB; at += STORE_PAGE)
		assert_true(memory[at] == 0 || at);
	memory[STORE_PAGE] = 9;
	memset(memory + 5 * STORE_PAGE, 0, STORE_PAGE);
	memory[len - 1] = 4;
	a = answer_of(memory, len, VMM_STATE_ON_IMAGE);
	w = begin();
	assert_int_equal(
		commit_read_memory(w, getpid(), &a, &image, &tree, &read, &e), 0);
	keep(w, &tree);
	assert_int_equal(read, 3 * STORE_PAGE);
	assert_is_memory(&tree, memory, len);
	/* An image that is none, or another one. */
	w = begin();
	assert_int_equal(
		commit_read_memory(w, getpid(), &a, NULL, &tree, &read, &e), -EPROTO);
	image.length -= STORE_PAGE;
	assert_int_equal(
		commit_read_memory(w, getpid(), &a, &image, &tree, &read, &e), -EPROTO);
	store_abort(w);
	munmap(memory, len);
	close(fd);
}

static void
memory_that_is_not_there_is_an_error(void **state)
{
	uint8_t *memory = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct vmm_state_answer a = answer_of(memory, 16 * MIB, 0);
	struct store_writer *w = begin();
	struct store_tree tree;
	uint64_t read;

	(void)state;
	/* Beyond what a process can have: no entry of the page map. */
	a.ranges[1].host = 1ull << 62;
	assert_true(commit_read_memory(w, getpid(), &a, NULL, &tree, &read, &e) < 0);
	assert_true(commit_read_memory(w, 0x3ffffff, &a, NULL, &tree, &read, &e) < 0);
	store_abort(w);
	munmap(memory, 16 * MIB);
}

static void
set_bit(uint8_t *bitmap, uint64_t page)
{
	bitmap[page / 8] |= (uint8_t)(1u << page % 8);
}

/* Memory of 16 MiB in two ranges whose border is in the middle of a bitmap's word. */
static void
only_pages_that_changed_are_read(void **state)
{
	const size_t len = 16 * MIB, pages = len / STORE_PAGE;
	uint8_t *memory = mmap(
		NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *changed = calloc(pages / 8, 1), *given_back = calloc(pages / 8, 1);
	struct commit_since since = {.changed = changed, .given_back = given_back};
	struct vmm_state_answer a;
	struct store_writer *w = begin();
	struct store_tree tree;
	uint64_t read;

	(void)state;
	assert_true(memory != MAP_FAILED && changed && given_back);
	madvise(memory, len, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < len; at += STORE_PAGE)
		if (at < 8 * MIB || at >= 12 * MIB)
			memset(memory + at, (int)(at / STORE_PAGE % 255 + 1), STORE_PAGE);
	a = answer_of(memory, len, 0);
	a.ranges[0].len = 5 * MIB + 3 * STORE_PAGE;
	a.ranges[1].host = a.ranges[0].host + a.ranges[0].len;
	a.ranges[1].len = len - a.ranges[0].len;
	assert_int_equal(
		commit_read_memory(w, getpid(), &a, NULL, &since.memory, &read, &e), 0);
	keep(w, &since.memory);

	/* Nothing. */
	w = begin();
	assert_int_equal(commit_read_changed(w, getpid(), &a, &since, &tree, &read, &e), 0);
	assert_int_equal(read, 0);
	assert_true(hash_equal(&tree.root, &since.memory.root));
	keep(w, &tree);

	/* Few and many in a page table, at both ends, on both sides of the border, and some that
	 * are told of but were never there: of many those are not read. */
	memory[0] = memory[len - 1] = 99;
	set_bit(changed, 0);
	set_bit(changed, pages - 1);
	for (size_t page = 5 * 256 - 2; page < 5 * 256 + 8; page++) {
		memory[page * STORE_PAGE + 7] = 98;
		set_bit(changed, page);
	}
	for (size_t page = 512; page < 1000; page += 2) {
		memory[page * STORE_PAGE + 7] = 97;
		set_bit(changed, page);
	}
	for (size_t page = 9 * 256; page < 10 * 256; page++)
		set_bit(changed, page);
	/* Given back: zeroes now, and one that was written anew. */
	assert_int_equal(madvise(memory + 2 * MIB, 3 * STORE_PAGE, MADV_DONTNEED), 0);
	memory[2 * MIB + STORE_PAGE] = 96;
	for (size_t page = 512; page < 515; page++)
		set_bit(given_back, page);
	w = begin();
	assert_int_equal(commit_read_changed(w, getpid(), &a, &since, &tree, &read, &e), 0);
	keep(w, &tree);
	assert_is_memory(&tree, memory, len);
	assert_int_equal(read, (2 + 10 + 244 + 1) * STORE_PAGE);
	free(changed);
	free(given_back);
	munmap(memory, len);
}

static void
of_changes_on_an_image_the_files_pages_are_not_read(void **state)
{
	const size_t len = 16 * MIB, pages = len / STORE_PAGE;
	uint8_t *changed = calloc(pages / 8, 1), *given_back = calloc(pages / 8, 1);
	struct commit_since since = {.changed = changed, .given_back = given_back};
	struct vmm_state_answer a;
	struct store_tree tree;
	struct store_writer *w;
	uint8_t *memory;
	uint64_t read;
	char path[128];
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/image2", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0 && changed && given_back);
	assert_int_equal(ftruncate(fd, (off_t)len), 0);
	for (uint64_t at = 0; at < len; at += STORE_PAGE)
		assert_int_equal(io_pwrite_full(fd, &at, sizeof(at), at), 0);
	memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	assert_true(memory != MAP_FAILED);
	memory[3 * STORE_PAGE] = memory[4 * STORE_PAGE] = 50;
	w = begin();
	assert_int_equal(commit_read_base(w, fd, path, len, &since.memory, &e), 0);
	keep(w, &since.memory);
	a = answer_of(memory, len, VMM_STATE_ON_IMAGE);
	w = begin();
	assert_int_equal(commit_read_memory(
				 w, getpid(), &a, &since.memory, &tree, &read, &e),
		0);
	keep(w, &tree);
	assert_int_equal(read, 2 * STORE_PAGE);
	since.memory = tree;
	/* All that is looked at is told, and one was written; one of the earlier is the file's
	 * again. */
	for (size_t page = 8; page < 200; page++) {
		set_bit(changed, page);
		assert_true(memory[page * STORE_PAGE + 100] == 0);
	}
	memory[9 * STORE_PAGE] = 51;
	assert_int_equal(madvise(memory + 3 * STORE_PAGE, STORE_PAGE, MADV_DONTNEED), 0);
	set_bit(given_back, 3);
	w = begin();
	assert_int_equal(commit_read_changed(w, getpid(), &a, &since, &tree, &read, &e), 0);
	keep(w, &tree);
	assert_int_equal(read, 2 * STORE_PAGE);
	assert_is_memory(&tree, memory, len);
	munmap(memory, len);
	close(fd);
	free(changed);
	free(given_back);
}

/*
 * Disks.
 */

#define DISK_MIB 8u

static int
make_file(const char *name, char *path, size_t cap)
{
	int fd;

	snprintf(path, cap, "%s/%s", folder, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	return fd;
}

static void
put_records(int index, int data, unsigned seed)
{
	const struct segment_record records[] = {
		segment_record_make(SEGMENT_DATA, 10 + seed, 0, 3),
		segment_record_make(SEGMENT_ZERO, 12 + seed, 0, 4),
		segment_record_make(SEGMENT_DATA, 700 + seed, 3, 600),
		segment_record_make(SEGMENT_ZERO, 900, 0, 2),
		segment_record_make(SEGMENT_DATA, DISK_MIB * 256 - 1, 603, 1),
	};
	uint8_t block[SEGMENT_BLOCK];

	for (unsigned i = 0; i < 604; i++) {
		memset(block, (int)(i * 7 + seed), sizeof(block));
		assert_int_equal(io_write_full(data, block, sizeof(block)), 0);
	}
	assert_int_equal(io_write_full(index, records, sizeof(records)), 0);
}

static void
a_disk_is_what_an_export_of_it_is(void **state)
{
	char base_path[128], paths[2][2][128], out_path[128];
	struct disk_segment segments[2];
	struct disk_chain chain = {base_path, segments, 2};
	struct store_tree base, with, without;
	uint8_t *exported = malloc(DISK_MIB * MIB), block[SEGMENT_BLOCK];
	struct store_writer *w;
	int fd = make_file("base", base_path, sizeof(base_path)), out;

	(void)state;
	assert_non_null(exported);
	/* A base with a hole, shorter than the disk. */
	for (unsigned i = 0; i < 4 * 256; i++) {
		memset(block, (int)i, sizeof(block));
		if (i < 100 || i > 600)
			assert_int_equal(io_pwrite_full(fd, block, sizeof(block),
						 i * SEGMENT_BLOCK),
				0);
	}
	for (unsigned i = 0; i < 2; i++) {
		char name[16];
		int data, index;

		snprintf(name, sizeof(name), "%u.data", i);
		data = make_file(name, paths[i][0], sizeof(paths[i][0]));
		snprintf(name, sizeof(name), "%u.index", i);
		index = make_file(name, paths[i][1], sizeof(paths[i][1]));
		put_records(index, data, i * 3);
		close(data);
		close(index);
		segments[i] = (struct disk_segment){paths[i][0], paths[i][1], -1};
	}
	segments[1].records = 3;
	out = make_file("out", out_path, sizeof(out_path));
	assert_int_equal(disk_export(&chain, DISK_MIB, out, NULL, &e), 0);
	assert_int_equal(io_pread_full(out, exported, DISK_MIB * MIB, 0), 0);

	w = begin();
	assert_int_equal(commit_read_base(w, fd, base_path, 4 * MIB, &base, &e), 0);
	assert_int_equal(
		commit_read_disk(w, &chain, DISK_MIB, fd, base_path, NULL, &without, &e),
		0);
	keep(w, &without);
	assert_is_memory(&without, exported, DISK_MIB * MIB);
	/* The base's content in the store: the file is not needed. */
	w = begin();
	assert_int_equal(
		commit_read_disk(w, &chain, DISK_MIB, -1, base_path, &base, &with, &e),
		0);
	keep(w, &with);
	assert_true(hash_equal(&with.root, &without.root));
	/* From the commit of the first segment on, the second alone. */
	chain.n_segments = 1;
	w = begin();
	assert_int_equal(
		commit_read_disk(w, &chain, DISK_MIB, -1, base_path, &base, &with, &e),
		0);
	keep(w, &with);
	assert_false(hash_equal(&with.root, &without.root));
	base = with;
	chain.segments = segments + 1;
	w = begin();
	assert_int_equal(
		commit_read_disk(w, &chain, DISK_MIB, -1, NULL, &base, &with, &e), 0);
	keep(w, &with);
	assert_true(hash_equal(&with.root, &without.root));
	/* Nothing came after it, but that the disk grew. */
	chain.n_segments = 0;
	w = begin();
	assert_int_equal(commit_read_disk(w, &chain, DISK_MIB, -1, NULL, &base, &with, &e), 0);
	assert_true(hash_equal(&with.root, &base.root));
	assert_int_equal(
		commit_read_disk(w, &chain, 2 * DISK_MIB, -1, NULL, &base, &with, &e), 0);
	assert_int_equal(with.length, 2 * DISK_MIB * MIB);
	store_abort(w);
	chain = (struct disk_chain){base_path, segments, 2};
	/* A cut that is longer than the index. */
	segments[0].records = 99;
	w = begin();
	assert_int_equal(
		commit_read_disk(w, &chain, DISK_MIB, -1, base_path, &base, &with, &e),
		-EBADMSG);
	store_abort(w);
	close(fd);
	close(out);
	free(exported);
}

/*
 * A VMM's word.
 */

static int
ask(struct vmm_state_answer a, struct vmm_state_answer *ret)
{
	struct vmmctl *c;
	int pair[2], blob, r;

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(vmmctl_create(pair[0], &c, &e), 0);
	a.hdr = (struct vmm_hdr){VMM_WIRE_VERSION, VMM_STATE_ANSWER, sizeof(a), 1};
	assert_int_equal(io_send_fds(pair[1], &a, sizeof(a), NULL, 0), 0);
	blob = memfd_create("state", MFD_CLOEXEC);
	r = vmmctl_state(c, blob, 2000, ret, &e);
	vmmctl_free(c);
	close(pair[1]);
	close(blob);
	return r;
}

static void
a_vmm_that_lies_about_its_memory_is_not_believed(void **state)
{
	struct vmm_state_answer good = answer_of((uint8_t *)4096, 16 * MIB, 0), a, ret;

	(void)state;
	assert_int_equal(ask(good, &ret), 0);
	assert_int_equal(ret.mem_mib, 16);
#define LIE(what) \
	do { \
		a = good; \
		what; \
		assert_int_equal(ask(a, &ret), -EPROTO); \
	} while (0)
	LIE(a.mem_mib = 17);
	LIE(a.mem_mib = 0);
	LIE(a.mem_mib = 1ull << 60);
	LIE(a.n_ranges = 0);
	LIE(a.n_ranges = 3);
	LIE(a.n_ranges = UINT32_MAX);
	LIE(a.ranges[0].len -= 1);
	LIE(a.ranges[0].host += 1);
	LIE(a.ranges[1].gpa = 0);
	LIE(a.ranges[1].host = UINT64_MAX - 4095);
	LIE(a.ranges[1].len = UINT64_MAX - 4095);
	LIE(a.blob_bytes = 0);
	LIE(a.blob_bytes = VMM_STATE_BLOB_MAX + 1ull);
	LIE(a.vcpus = 0);
	LIE(a.vcpus = 99);
	LIE(a.flags = 4);
#undef LIE
	a = good;
	a.error = -ENOSPC;
	memset(a.msg, 'x', sizeof(a.msg));
	assert_int_equal(ask(a, &ret), -ENOSPC);
	a.error = INT32_MIN;
	a.msg[0] = '\0';
	assert_int_equal(ask(a, &ret), -EIO);
}

/* What a frozen fork wrote behind its state, 16 MiB of memory. */
struct told {
	struct vmm_track track;
	uint64_t bitmap_bytes; /* that are in the file */
	struct commit_track got;
};

static int
tell(struct told *t, const struct vm_row *row)
{
	struct vmm_state_answer a = answer_of((uint8_t *)4096, 16 * MIB, VMM_STATE_TRACKED);
	cleanup_close int fd = memfd_create("state", MFD_CLOEXEC);
	uint8_t bits[2 * 512];

	assert_true(fd >= 0);
	memset(bits, 1, sizeof(bits));
	memset(bits + 512, 2, 512);
	commit_track_done(&t->got);
	assert_int_equal(io_pwrite_full(fd, &t->track, sizeof(t->track), 4096), 0);
	assert_int_equal(io_pwrite_full(fd, bits, t->bitmap_bytes, 8192), 0);
	return commit_track_read(fd, &a, row, store, &t->got, &e);
}

/* The VMM tells what changed since this commit. */
static void
tells_since(struct told *t, const char *commit)
{
	for (size_t i = 0; i < sizeof(t->track.base); i++) {
		unsigned byte;

		assert_int_equal(sscanf(commit + 2 * i, "%2x", &byte), 1);
		t->track.base[i] = (uint8_t)byte;
	}
	t->track.version = VMM_TRACK_VERSION;
	t->track.flags = VMM_TRACK_BASE | VMM_TRACK_SINCE;
	t->track.pages = 16 * 256;
}

static void
changes_are_believed_only_since_the_vms_own_last_commit(void **state)
{
	const struct chain_link links[] = {{.segment = "0123456789ab.3"},
		{.segment = "0123456789ab.4"}, {.segment = "0123456789ab.5"}};
	struct store_writer *w = begin();
	struct store_fields f = {.labels = "{}", .config = "{}", .cpu = "{}"};
	struct vm_row row = {.id = "0123456789ab", .commit_segment = "0123456789ab.4"};
	struct told t = {.bitmap_bytes = 1024};
	struct store_tree_writer *tree;

	(void)state;
	assert_int_equal(store_tree_begin(w, NULL, 16 * MIB, &tree, &e), 0);
	assert_int_equal(store_tree_finish(tree, &f.memory, &e), 0);
	assert_int_equal(store_commit(w, &f, row.commit, NULL, &e), 0);
	tells_since(&t, row.commit);

	assert_int_equal(tell(&t, &row), 0);
	assert_true(t.got.base && t.got.has_memory);
	assert_int_equal(t.got.since.memory.length, 16 * MIB);
	assert_int_equal(t.got.since.changed[511], 1);
	assert_int_equal(t.got.since.given_back[0], 2);
	assert_int_equal(commit_track_links(&t.got, &row, links, 3), 2);
	assert_int_equal(commit_track_links(&t.got, &row, links, 1), 0);

	/* A later version, no base, no bitmaps (the disk's place is known all the same). */
	t.track.version++;
	assert_int_equal(tell(&t, &row), 0);
	assert_null(t.got.base);
	t.track.version--;
	t.track.flags = VMM_TRACK_SINCE;
	assert_int_equal(tell(&t, &row), 0);
	assert_null(t.got.base);
	t.track.flags = VMM_TRACK_BASE;
	assert_int_equal(tell(&t, &row), 0);
	assert_true(t.got.base && !t.got.has_memory);
	assert_int_equal(commit_track_links(&t.got, &row, links, 3), 2);
	row.commit_segment[0] = '\0';
	assert_int_equal(commit_track_links(&t.got, &row, links, 3), 0);
	t.track.flags |= VMM_TRACK_SINCE;

	/* Somebody else's commit, one that the store has not, and none. */
	row.commit[0] = row.commit[0] == '0' ? '1' : '0';
	assert_int_equal(tell(&t, &row), 0);
	assert_true(!t.got.base && !t.got.has_memory);
	t.track.base[0] = (uint8_t)(t.track.base[0] & 15) | (row.commit[0] == '1') << 4;
	assert_int_equal(tell(&t, &row), 0);
	assert_true(!t.got.base && !t.got.has_memory);
	row.commit[0] = '\0';
	assert_int_equal(tell(&t, &row), 0);
	assert_true(!t.got.base && !t.got.has_memory);

	commit_track_done(&t.got);
}

/* The first chunk of each pack. */
static void
spoil_packs(void)
{
	char path[PATHS_MAX], file[PATHS_MAX + 300];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof(path), "%s/store/packs", folder);
	dir = opendir(path);
	assert_non_null(dir);
	while ((d = readdir(dir))) {
		int fd;

		if (!strstr(d->d_name, ".pack"))
			continue;
		snprintf(file, sizeof(file), "%s/%s", path, d->d_name);
		fd = open(file, O_WRONLY);
		assert_true(fd >= 0);
		assert_int_equal(io_pwrite_full(fd, "spoiled", 7, 16), 0);
		close(fd);
	}
	closedir(dir);
}

/* What the store lost the VM may have: its next commit reads all of it. */
static void
a_commit_in_a_damaged_store_begins_from_none(void **state)
{
	struct store_writer *w = begin();
	struct store_fields f = {.labels = "{}", .config = "{}", .cpu = "{}"};
	struct vm_row row = {.id = "0123456789ab"};
	struct told t = {.bitmap_bytes = 1024};
	struct store_tree_writer *tree;
	struct store_tree lost;
	uint8_t page[STORE_PAGE];

	(void)state;
	for (size_t i = 0; i < sizeof(page); i++)
		page[i] = (uint8_t)(i * i >> 3 ^ i * 57);
	assert_int_equal(store_tree_begin(w, NULL, 16 * MIB, &tree, &e), 0);
	assert_int_equal(store_tree_put(tree, 0, page, 1, &e), 0);
	assert_int_equal(store_tree_finish(tree, &f.memory, &e), 0);
	lost = f.memory;
	f.message = "with a page";
	assert_int_equal(store_commit(w, &f, row.commit, NULL, &e), 0);
	tells_since(&t, row.commit);
	assert_int_equal(tell(&t, &row), 0);
	assert_true(t.got.base && t.got.has_memory);
	spoil_packs();
	assert_int_equal(store_tree_read(store, &lost, 0, 1, page, NULL), -EBADMSG);
	assert_int_equal(tell(&t, &row), 0);
	assert_true(!t.got.base && !t.got.has_memory);
	commit_track_done(&t.got);
}

static void
a_vmm_that_lies_about_its_changes_is_not_believed(void **state)
{
	struct store_writer *w = begin();
	struct store_fields f = {.labels = "{}", .config = "{}", .cpu = "{}"};
	struct vm_row row = {.id = "0123456789ab"};
	struct told t = {.bitmap_bytes = 1024};
	struct store_tree_writer *tree;

	(void)state;
	assert_int_equal(store_tree_begin(w, NULL, 16 * MIB, &tree, &e), 0);
	assert_int_equal(store_tree_finish(tree, &f.memory, &e), 0);
	f.message = "another";
	assert_int_equal(store_commit(w, &f, row.commit, NULL, &e), 0);
	for (size_t i = 0; i < sizeof(t.track.base); i++) {
		unsigned byte;

		assert_int_equal(sscanf(row.commit + 2 * i, "%2x", &byte), 1);
		t.track.base[i] = (uint8_t)byte;
	}
	t.track.version = VMM_TRACK_VERSION;
	t.track.flags = VMM_TRACK_BASE | VMM_TRACK_SINCE;
	t.track.pages = 16 * 256 + 1;
	assert_int_equal(tell(&t, &row), -EPROTO);
	t.track.pages = UINT64_MAX;
	assert_int_equal(tell(&t, &row), -EPROTO);
	t.track.pages = 16 * 256;
	t.bitmap_bytes = 1023;
	assert_int_equal(tell(&t, &row), -EPROTO);
	t.bitmap_bytes = 1024;
	commit_track_done(&t.got);
}

/*
 * Configurations.
 */

static int
read_config(const char *config, uint64_t memory, uint64_t disk)
{
	static struct vm_row row;
	union {
		const char *text;
		char *owned;
	} u = {config};
	struct store_manifest m = {.id = "0123456789abcdef"};

	m.f.config = u.owned;
	m.f.memory.length = memory;
	m.f.disk.length = disk;
	m.f.state.length = 100;
	return commit_config_read(&m, &row, &e);
}

static void
a_configuration_that_is_no_vms_is_refused(void **state)
{
	static const char *const wrong[] = {
		"{}",
		"[]",
		"",
		"{\"mem_mib\":32,\"vcpus\":1}",
		"{\"mem_mib\":32,\"disk_mib\":16,\"vcpus\":0}",
		"{\"mem_mib\":32,\"disk_mib\":16,\"vcpus\":9}",
		"{\"mem_mib\":33,\"disk_mib\":16,\"vcpus\":1}",
		"{\"mem_mib\":32,\"disk_mib\":17,\"vcpus\":1}",
		"{\"mem_mib\":-32,\"disk_mib\":16,\"vcpus\":1}",
		"{\"mem_mib\":32,\"disk_mib\":16,\"vcpus\":1,\"kernel\":7}",
		"{\"mem_mib\":18446744073709551615,\"disk_mib\":16,\"vcpus\":1}",
	};
	struct vm_row row = {.mem_mib = 32, .disk_mib = 16, .vcpus = 2};
	char *text;

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(read_config(wrong[i], 32 * MIB, 16 * MIB), -EBADMSG);
	snprintf(row.kernel, sizeof(row.kernel), "default");
	assert_int_equal(commit_config_write(&row, &text, &e), 0);
	assert_int_equal(read_config(text, 32 * MIB, 16 * MIB), 0);
	assert_int_equal(read_config(text, 0, 16 * MIB), -EBADMSG);
	free(text);
}

/* A stopped VM of a commit, as the database of a home has it. */
static void
enter_row_of(const char *home, const char *commit)
{
	struct vm_row row = {
		.id = "0123456789ab",
		.alias = "a",
		.state = VM_STOPPED,
		.mem_mib = 32,
		.disk_mib = 16,
		.vcpus = 1,
		.made = true,
		.next_segment = 1,
	};
	char path[PATHS_MAX];
	struct db *db;

	snprintf(row.commit, sizeof(row.commit), "%s", commit);
	snprintf(path, sizeof(path), "%s/state.db", home);
	assert_int_equal(db_open(path, &db, &e), 0);
	assert_int_equal(db_insert(db, &row, &e), 0);
	db_close(db);
}

/* What tree_info() says of it. */
static void
info_says(struct tree *t, const char *text)
{
	struct json_out out = {0};

	assert_int_equal(tree_info(t, "a", &out, &e), 0);
	if (!memmem(out.buf, out.len, text, strlen(text)))
		fail_msg("no %s in %.*s", text, (int)out.len, out.buf);
	json_out_done(&out);
}

/* As pandod opens and closes them; with: what is said of the VM in between. */
static void
open_both(const char *home, const char *with)
{
	static struct tree_config config;
	struct commits *commits;
	struct tree *t;

	config = (struct tree_config){.kvm_path = "/dev/null"};
	snprintf(config.home, sizeof(config.home), "%s", home);
	assert_int_equal(tree_open(&config, &t, &e), 0);
	assert_int_equal(commits_open(t, &(struct commits_config){0}, &commits, &e), 0);
	info_says(t, with);
	commits_close(commits);
	tree_close(t);
}

/* A pandod that was killed between deleting a commit and noting it. */
static void
a_commit_that_is_no_more_is_forgotten(void **state)
{
	static const char id[] =
		"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
	char home[] = "/tmp/pando-test-commit.XXXXXX", path[PATHS_MAX];
	struct store *s;
	struct tree *t;
	static struct tree_config config;

	(void)state;
	assert_non_null(mkdtemp(home));
	enter_row_of(home, id);
	/* Without a store nobody knows, and none is made. */
	open_both(home, id);
	snprintf(path, sizeof(path), "%s/store", home);
	assert_int_equal(access(path, F_OK), -1);
	assert_int_equal(store_open(path, &s, &e), 0);
	store_close(s);
	open_both(home, "\"commit\":null");
	/* Not only in memory. */
	snprintf(config.home, sizeof(config.home), "%s", home);
	assert_int_equal(tree_open(&config, &t, &e), 0);
	info_says(t, "\"commit\":null");
	tree_close(t);
	assert_int_equal(io_remove_tree(home, &e), 0);
}

static void
only_an_images_disk_is_one(void **state)
{
	char path[PATHS_MAX], id[STORE_ID_MAX], got[STORE_ID_MAX];

	(void)state;
	memset(id, 'a', STORE_HEX);
	id[STORE_HEX] = '\0';
	snprintf(path, sizeof(path), "/home/x/flat/%s/disk", id);
	assert_true(materialized_is_disk("/home/x", path, got));
	assert_string_equal(got, id);
	snprintf(path, sizeof(path), "/home/x/flat/%s/memory", id);
	assert_false(materialized_is_disk("/home/x", path, got));
	snprintf(path, sizeof(path), "/home/x/flat/%.63s/disk", id);
	assert_false(materialized_is_disk("/home/x", path, got));
	snprintf(path, sizeof(path), "/home/x/flat/%sb/disk", id);
	assert_false(materialized_is_disk("/home/x", path, got));
	assert_false(materialized_is_disk("/home/x", "", got));
	assert_false(materialized_is_disk("/home/x", "/home/x/flat/", got));
}

/*
 * CPU features.
 */

/* A state as far as pandod reads it: n entries are said to be there, `there` are. */
static size_t
state_with(uint8_t *buf, size_t cap, uint32_t tag, uint32_t n, uint32_t there)
{
	struct kvm_cpuid_entry2 entries[2] = {
		{.function = 1, .ecx = 1u << 16 | 1u << 25 | 1u << 28, .edx = 1u << 26},
		{.function = 0x80000001, .edx = 1u << 31},
	};
	const struct snapshot_config config = {.mem_mib = 16, .disk_mib = 1, .vcpus = 1};
	struct blob_out out;

	blob_start(&out, buf, cap);
	blob_begin(&out, SNAPSHOT_TAG_CONFIG);
	blob_put(&out, &config, sizeof(config));
	blob_end(&out);
	blob_begin(&out, tag);
	blob_put_u32(&out, n);
	blob_put_u32(&out, 0);
	blob_put(&out, entries, there * sizeof(entries[0]));
	blob_end(&out);
	return blob_finish(&out);
}

static void
a_state_says_which_cpu_features_it_needs(void **state)
{
	uint8_t buf[1024];
	size_t len = state_with(buf, sizeof(buf), SNAPSHOT_TAG_CPUID, 2, 2);
	char *text = NULL;

	(void)state;
	assert_int_equal(commit_cpu(buf, len, &text, &e), 0);
	assert_string_equal(text,
		"{\"features\":[\"CPUID 0x1.0 ECX bit 16\",\"aes\",\"avx\",\"sse2\",\"3dnow\"]}");
	free(text);
	len = state_with(buf, sizeof(buf), SNAPSHOT_TAG_CPUID, 0, 0);
	assert_int_equal(commit_cpu(buf, len, &text, &e), 0);
	assert_string_equal(text, "{\"features\":[]}");
	free(text);
}

static void
a_state_that_lies_about_its_cpu_is_refused(void **state)
{
	uint8_t buf[1024];
	char *text = NULL;
	size_t len;

	(void)state;
	len = state_with(buf, sizeof(buf), SNAPSHOT_TAG_CPUID, 2, 1);
	assert_int_equal(commit_cpu(buf, len, &text, &e), -EBADMSG);
	assert_non_null(strstr(e.msg, "cut short"));
	len = state_with(buf, sizeof(buf), SNAPSHOT_TAG_CPUID, 0xffffffff, 2);
	assert_int_equal(commit_cpu(buf, len, &text, &e), -EBADMSG);
	assert_non_null(strstr(e.msg, "4294967295 entries"));
	len = state_with(buf, sizeof(buf), BLOB_TAG('N', 'O', 'N', 'E'), 2, 2);
	assert_int_equal(commit_cpu(buf, len, &text, &e), -EBADMSG);
	len = state_with(buf, sizeof(buf), SNAPSHOT_TAG_CPUID, 2, 2);
	for (size_t cut = 0; cut < len; cut++)
		assert_int_equal(commit_cpu(buf, cut, &text, &e), -EBADMSG);
	buf[len - 1] ^= 1;
	assert_int_equal(commit_cpu(buf, len, &text, &e), -EBADMSG);
	assert_null(text);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_pages_that_are_there_are_read),
		cmocka_unit_test(on_an_image_only_what_was_written_is_read),
		cmocka_unit_test(memory_that_is_not_there_is_an_error),
		cmocka_unit_test(only_pages_that_changed_are_read),
		cmocka_unit_test(of_changes_on_an_image_the_files_pages_are_not_read),
		cmocka_unit_test(a_disk_is_what_an_export_of_it_is),
		cmocka_unit_test(a_vmm_that_lies_about_its_memory_is_not_believed),
		cmocka_unit_test(changes_are_believed_only_since_the_vms_own_last_commit),
		cmocka_unit_test(a_vmm_that_lies_about_its_changes_is_not_believed),
		cmocka_unit_test(a_configuration_that_is_no_vms_is_refused),
		cmocka_unit_test(a_commit_that_is_no_more_is_forgotten),
		cmocka_unit_test(only_an_images_disk_is_one),
		cmocka_unit_test(a_state_says_which_cpu_features_it_needs),
		cmocka_unit_test(a_state_that_lies_about_its_cpu_is_refused),
		cmocka_unit_test(a_commit_in_a_damaged_store_begins_from_none), /* last */
	};

	return cmocka_run_group_tests(tests, open_store, close_store);
}
