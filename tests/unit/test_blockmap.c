/* The block map and the reader of disks at rest. */
#include "vmm/blockmap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64], data_path[80], index_path[80], out_path[80];
static struct disk_segment segment = {data_path, index_path, -1};
static const struct disk_chain chain = {NULL, &segment, 1};

static void
write_file(const char *path, const void *buf, size_t len)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, buf, len), len);
	close(fd);
}

static int
setup(void **state)
{
	static uint8_t blocks[10 * SEGMENT_BLOCK];
	size_t i;

	(void)state;
	strcpy(folder, "/tmp/test_blockmap.XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(data_path, sizeof(data_path), "%s/data", folder);
	snprintf(index_path, sizeof(index_path), "%s/index", folder);
	snprintf(out_path, sizeof(out_path), "%s/out", folder);
	for (i = 0; i < sizeof(blocks); i++)
		blocks[i] = (uint8_t)(i / SEGMENT_BLOCK + 1);
	write_file(data_path, blocks, sizeof(blocks));
	segment.records = -1;
	return 0;
}

static int
teardown(void **state)
{
	char command[128];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command);
}

/* Replays these records; the code, with the sentence in msg. */
static int
replay(struct blockmap *map, const struct segment_record *records, size_t n,
	char msg[512])
{
	struct err e = {0};
	int r;

	write_file(index_path, records, n * sizeof(*records));
	assert_int_equal(blockmap_init(map, 1, &e), 0);
	r = blockmap_replay(map, &chain, NULL, &e);
	if (msg)
		memcpy(msg, e.msg, sizeof(e.msg));
	return r;
}

static void
the_last_record_for_a_block_wins(void **state)
{
	struct segment_record records[] = {
		segment_record_make(SEGMENT_DATA, 10, 0, 6),
		segment_record_make(SEGMENT_ZERO, 12, 0, 2),
		segment_record_make(SEGMENT_DATA, 13, 6, 1),
	};
	struct blockmap map;
	uint64_t entry;

	(void)state;
	assert_int_equal(replay(&map, records, 3, NULL), 0);
	assert_int_equal(map.entries[9], 0);
	assert_int_equal(map.entries[10], blockmap_entry(0, 0));
	assert_true(map.entries[12] & BLOCKMAP_ZERO);
	assert_int_equal(map.entries[13], blockmap_entry(0, 6));
	assert_int_equal(map.entries[14], blockmap_entry(0, 4));
	assert_int_equal(blockmap_segment(map.entries[14]), 0);
	assert_int_equal(blockmap_run(&map, 0, 256, &entry), 10);
	assert_int_equal(entry, 0);
	assert_int_equal(blockmap_run(&map, 10, 256, &entry), 2);
	assert_int_equal(blockmap_run(&map, 12, 256, &entry), 1);
	assert_int_equal(blockmap_run(&map, 14, 1, &entry), 1);
	assert_int_equal(blockmap_run(&map, 14, 256, &entry), 2);
	assert_int_equal(blockmap_run(&map, 16, 9999, &entry), 240);
	blockmap_done(&map);
}

static void
blocks_that_a_replay_wrote_are_found(void **state)
{
	/* 64 MiB: 32 groups. */
	const uint64_t groups[] = {0, 7, 8, 20, 31};
	struct segment_record records[] = {
		segment_record_make(SEGMENT_DATA, 0, 0, 1),
		segment_record_make(SEGMENT_ZERO, 31 * BLOCKMAP_GROUP + 511, 0, 1),
		segment_record_make(SEGMENT_DATA, 8 * BLOCKMAP_GROUP - 1, 0, 2),
		segment_record_make(SEGMENT_ZERO, 20 * BLOCKMAP_GROUP + 5, 0, 3),
	};
	struct blockmap map;
	struct err e;
	unsigned n = 0;

	(void)state;
	write_file(index_path, records, sizeof(records));
	assert_int_equal(blockmap_init(&map, 64, &e), 0);
	assert_int_equal(blockmap_note_touched(&map, &e), 0);
	assert_int_equal(blockmap_next(&map, 0), map.n_blocks);
	assert_int_equal(blockmap_replay(&map, &chain, NULL, &e), 0);
	for (uint64_t b = 0; (b = blockmap_next(&map, b)) < map.n_blocks;
		b = (b / BLOCKMAP_GROUP + 1) * BLOCKMAP_GROUP) {
		assert_true(n < 5);
		assert_int_equal(b, groups[n++] * BLOCKMAP_GROUP);
	}
	assert_int_equal(n, 5);
	/* Within a group it is the block itself. */
	assert_int_equal(blockmap_next(&map, 20 * BLOCKMAP_GROUP + 7),
		20 * BLOCKMAP_GROUP + 7);
	assert_int_equal(blockmap_next(&map, 9 * BLOCKMAP_GROUP + 7), 20 * BLOCKMAP_GROUP);
	blockmap_done(&map);
}

static void
a_damaged_record_is_named(void **state)
{
	struct segment_record good[100], bad[100];
	const struct {
		struct segment_record r;
		const char *says;
	} cases[] = {
		{segment_record_make(SEGMENT_DATA, 256, 0, 1), "end of the disk"},
		{segment_record_make(SEGMENT_DATA, 255, 0, 2), "end of the disk"},
		{segment_record_make(SEGMENT_DATA, UINT64_MAX, 0, 2), "end of the disk"},
		{segment_record_make(SEGMENT_DATA, 0, 0, 0), "end of the disk"},
		{segment_record_make(SEGMENT_DATA, 0, 10, 1), "end of the segment"},
		{segment_record_make(SEGMENT_DATA, 0, 5, 6), "end of the segment"},
		{segment_record_make(SEGMENT_DATA, 0, UINT64_MAX, 1),
			"end of the segment"},
		{segment_record_make((enum segment_op)3, 0, 0, 1), "operation"},
		{{.block = 1, .at = 1, .count = 1, .op = SEGMENT_DATA}, "check"},
	};
	struct blockmap map;
	char msg[512];
	size_t i;

	(void)state;
	for (i = 0; i < 100; i++)
		good[i] = segment_record_make(SEGMENT_DATA, i, i % 10, 1);
	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		memcpy(bad, good, sizeof(good));
		bad[77] = cases[i].r;
		assert_int_equal(replay(&map, bad, 100, msg), -EBADMSG);
		assert_non_null(strstr(msg, "record 77"));
		assert_non_null(strstr(msg, index_path));
		assert_non_null(strstr(msg, cases[i].says));
		blockmap_done(&map);
	}
	/* Each bit of a record is covered. */
	for (i = 0; i < 256; i++) {
		memcpy(bad, good, sizeof(good));
		((uint8_t *)&bad[99])[i / 8] ^= (uint8_t)(1u << i % 8);
		assert_int_equal(replay(&map, bad, 100, msg), -EBADMSG);
		assert_non_null(strstr(msg, "record 99"));
		blockmap_done(&map);
	}
	/* Beyond the cut, nothing counts. */
	segment.records = 77;
	assert_int_equal(replay(&map, bad, 100, msg), 0);
	assert_int_equal(map.entries[77], 0);
	blockmap_done(&map);
}

static void
a_torn_last_record_is_ignored(void **state)
{
	struct segment_record records[2] = {
		segment_record_make(SEGMENT_DATA, 0, 0, 1),
		segment_record_make(SEGMENT_DATA, 1, 1, 1),
	};
	struct blockmap map;
	struct err e = {0};

	(void)state;
	write_file(index_path, records, 63);
	assert_int_equal(blockmap_init(&map, 1, &e), 0);
	assert_int_equal(blockmap_replay(&map, &chain, NULL, &e), 0);
	assert_int_equal(map.entries[0], blockmap_entry(0, 0));
	assert_int_equal(map.entries[1], 0);
	/* But not where the cut says that it was whole. */
	segment.records = 2;
	assert_int_equal(blockmap_replay(&map, &chain, NULL, &e), -EBADMSG);
	assert_non_null(strstr(e.msg, "truncated"));
	blockmap_done(&map);
}

/* Two segments; the first one's index is `bad`. *ret_map: what a replay after a power loss
 * makes of them. */
static void
replay_after_power_loss(const struct segment_record *bad, size_t n_bad, int64_t cut,
	struct blockmap *ret_map, struct err *lost)
{
	const struct segment_record later = segment_record_make(SEGMENT_DATA, 200, 0, 1);
	char later_index[96];
	struct disk_segment both[2] = {
		{data_path, index_path, cut},
		{data_path, later_index, -1},
	};
	const struct disk_chain two = {NULL, both, 2};
	struct err e = {0};

	snprintf(later_index, sizeof(later_index), "%s/later", folder);
	write_file(index_path, bad, n_bad * sizeof(*bad));
	write_file(later_index, &later, sizeof(later));
	assert_int_equal(blockmap_init(ret_map, 1, &e), 0);
	*lost = (struct err){0};
	if (blockmap_replay(ret_map, &two, lost, &e))
		fail_msg("%s", e.msg);
}

static void
a_replay_after_a_power_loss_ends_at_the_first_record_that_is_bad_or_missing(void **state)
{
	struct segment_record records[100];
	struct blockmap map;
	struct err lost;
	size_t i, at;

	(void)state;
	for (i = 0; i < 100; i++)
		records[i] = segment_record_make(SEGMENT_DATA, i, i % 10, 1);
	/* All there: nothing is lost, and the second segment counts. */
	replay_after_power_loss(records, 100, 100, &map, &lost);
	assert_int_equal(lost.code, 0);
	assert_int_equal(map.entries[200], blockmap_entry(1, 0));
	blockmap_done(&map);
	for (at = 0; at < 100; at += 33) {
		const struct segment_record was = records[at],
					    beyond_the_data = segment_record_make(
						    SEGMENT_DATA, at, 9, 2);

		for (i = 0; i < 3; i++) {
			/* A tail of zeroes; data shorter than its record; an index that
			 * is shorter than it was at the cut. */
			if (i == 0)
				memset(&records[at], 0, sizeof(records[at]));
			else
				records[at] = i == 1 ? beyond_the_data : was;
			replay_after_power_loss(
				records, i == 2 ? at : 100, 100, &map, &lost);
			assert_int_equal(lost.code, -EBADMSG);
			assert_non_null(strstr(lost.msg, index_path));
			if (at)
				assert_int_equal(map.entries[at - 1],
					blockmap_entry(0, (at - 1) % 10));
			assert_int_equal(map.entries[at], 0);
			assert_int_equal(map.entries[99], 0);
			assert_int_equal(map.entries[200], 0);
			blockmap_done(&map);
		}
		records[at] = was;
	}
}

static void
a_missing_file_is_named(void **state)
{
	struct blockmap map;
	struct err e = {0};

	(void)state;
	unlink(data_path);
	write_file(index_path, "", 0);
	assert_int_equal(blockmap_init(&map, 1, &e), 0);
	assert_int_equal(blockmap_replay(&map, &chain, NULL, &e), -ENOENT);
	assert_non_null(strstr(e.msg, data_path));
	blockmap_done(&map);
}

static void
an_export_is_sparse(void **state)
{
	struct segment_record r = segment_record_make(SEGMENT_DATA, 200, 3, 2);
	uint8_t block[SEGMENT_BLOCK];
	struct err e = {0};
	struct stat st;
	int fd;

	(void)state;
	write_file(index_path, &r, sizeof(r));
	write_file(out_path, "old contents", 12);
	fd = open(out_path, O_RDWR | O_CLOEXEC);
	assert_int_equal(disk_export(&chain, 64, fd, NULL, &e), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 64 << 20);
	assert_true(st.st_blocks * 512 <= 65536);
	assert_int_equal(
		pread(fd, block, sizeof(block), 200 * SEGMENT_BLOCK), sizeof(block));
	assert_int_equal(block[0], 4);
	assert_int_equal(block[4095], 4);
	assert_int_equal(pread(fd, block, sizeof(block), 0), sizeof(block));
	assert_int_equal(block[0], 0);
	close(fd);
	assert_int_equal(disk_export(&chain, 0, -1, NULL, &e), -EINVAL);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(the_last_record_for_a_block_wins),
		T(blocks_that_a_replay_wrote_are_found),
		T(a_damaged_record_is_named),
		T(a_torn_last_record_is_ignored),
		T(a_replay_after_a_power_loss_ends_at_the_first_record_that_is_bad_or_missing),
		T(a_missing_file_is_named),
		T(an_export_is_sparse),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
