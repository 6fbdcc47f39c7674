/* A commit's disk as a base and what differs (host/commit/disk_changes.h). */
#include <fcntl.h>
#include <sys/stat.h>

#include "host/commit/disk_changes.h"
#include "tests/unit/store_help.h"
#include "vmm/blockmap.h"

#define BLOCKS 1024u /* a disk of 4 MiB */

static char base_path[PATHS_MAX], flat[PATHS_MAX];
static uint32_t base_values[BLOCKS], values[BLOCKS];
static struct store_tree base_tree, disk;
static struct db_base base;

static void
put_tree(const uint32_t *v, uint64_t n, struct store_tree *ret)
{
	struct store_manifest *m;
	char id[STORE_ID_MAX];

	commit_values(NULL, NULL, NULL, v, n, id, NULL);
	ok(store_load(store, id, &m, &e));
	*ret = m->f.memory;
	store_manifest_free(m);
}

static void
describe_base(void)
{
	struct stat st;

	assert_int_equal(stat(base_path, &st), 0);
	memset(&base, 0, sizeof(base));
	memcpy(base.path, base_path, sizeof(base.path));
	base.dev = st.st_dev;
	base.inode = st.st_ino;
	base.size = (uint64_t)st.st_size;
	base.mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
	base.tree = base_tree;
}

/* A base of half the disk's length, and a disk that differs here and there. */
static int
setup(void **state)
{
	uint8_t page[STORE_PAGE];
	int fd;

	assert_int_equal(setup_store(state), 0);
	snprintf(base_path, sizeof(base_path), "%s/base", folder);
	snprintf(flat, sizeof(flat), "%s/image", folder);
	assert_int_equal(mkdir(flat, 0700), 0);
	fd = open(base_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	memset(values, 0, sizeof(values));
	for (uint32_t i = 0; i < BLOCKS / 2; i++) {
		base_values[i] = values[i] = i % 3 ? i + 1 : 0;
		fill(page, base_values[i]);
		assert_int_equal(io_pwrite_full(fd, page, sizeof(page), i * sizeof(page)), 0);
	}
	close(fd);
	for (uint32_t i = 100; i < 130; i++)
		values[i] = 5000 + i;
	for (uint32_t i = 200; i < 210; i++)
		values[i] = 0;
	values[BLOCKS - 1] = 77;
	put_tree(base_values, BLOCKS / 2, &base_tree);
	put_tree(values, BLOCKS, &disk);
	describe_base();
	return 0;
}

static void
block_is(int fd, uint64_t block, uint32_t value)
{
	uint8_t is[STORE_PAGE], must[STORE_PAGE];

	fill(must, value);
	assert_int_equal(io_pread_full(fd, is, sizeof(is), block * sizeof(is)), 0);
	assert_memory_equal(is, must, sizeof(is));
}

/* Written and synced. */
static int
make(const struct store_tree *of, const struct db_base *bases, size_t n)
{
	int made = disk_changes_write(store, of, bases, n, flat, &e);

	if (made == 1)
		assert_int_equal(disk_changes_sync(flat, &e), 0);
	return made;
}

static void
a_replay_of_the_segment_over_the_base_is_the_disk(void **state)
{
	char data[PATHS_MAX + 16], index[PATHS_MAX + 16], out[PATHS_MAX];
	const struct disk_segment segment = {data, index, -1};
	const struct disk_chain chain = {base_path, &segment, 1};
	struct stat st;
	int fd;

	(void)state;
	assert_int_equal(make(&disk, &base, 1), 1);
	snprintf(data, sizeof(data), "%s/vm.0", folder);
	ok(disk_changes_link(flat, data, &e));
	snprintf(data, sizeof(data), "%s/vm.0.data", folder);
	snprintf(index, sizeof(index), "%s/vm.0.index", folder);
	assert_int_equal(stat(data, &st), 0);
	assert_true(st.st_blocks * 512 <= 64 * (long)STORE_PAGE);
	snprintf(out, sizeof(out), "%s/out", folder);
	fd = open(out, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ok(disk_export(&chain, BLOCKS / 256, fd, NULL, &e));
	for (uint32_t i = 0; i < BLOCKS; i++)
		block_is(fd, i, values[i]);
	close(fd);
}

static void
the_map_says_what_the_replay_says(void **state)
{
	char data[PATHS_MAX + 16], index[PATHS_MAX + 16];
	const struct disk_segment segment = {data, index, -1};
	const struct disk_chain chain = {NULL, &segment, 1};
	struct disk_changes d = DISK_CHANGES_INIT;
	struct blockmap replayed, mapped;

	(void)state;
	assert_int_equal(make(&disk, &base, 1), 1);
	assert_int_equal(disk_changes_open(flat, disk.length, true, &d, &e), 1);
	assert_string_equal(d.base_path, base_path);
	assert_int_equal(d.blocks, 31);
	snprintf(data, sizeof(data), "%s/disk.data", flat);
	snprintf(index, sizeof(index), "%s/disk.index", flat);
	ok(blockmap_init(&replayed, BLOCKS / 256, &e));
	ok(blockmap_init(&mapped, BLOCKS / 256, &e));
	ok(blockmap_replay(&replayed, &chain, NULL, &e));
	ok(blockmap_map(&mapped, d.map_fd, &e));
	/* In a VMM zeroes keep no place in a segment of somebody else's. */
	for (uint32_t i = 0; i < BLOCKS; i++)
		assert_int_equal(mapped.entries[i], replayed.entries[i] & BLOCKMAP_ZERO
							    ? BLOCKMAP_ZERO
							    : replayed.entries[i]);
	blockmap_done(&replayed);
	blockmap_done(&mapped);
	/* Longer than the disk, and none at all. */
	ok(blockmap_init(&mapped, BLOCKS / 512, &e));
	refused(blockmap_map(&mapped, d.map_fd, &e), -EINVAL, "block map");
	refused(blockmap_map(&mapped, STDIN_FILENO, &e), -EINVAL, "block map");
	blockmap_done(&mapped);
	disk_changes_done(&d);
}

static void
a_base_that_changed_is_none(void **state)
{
	struct disk_changes d = DISK_CHANGES_INIT;
	int fd;

	(void)state;
	assert_int_equal(make(&disk, &base, 1), 1);
	fd = open(base_path, O_RDWR | O_CLOEXEC);
	assert_int_equal(futimens(fd, (const struct timespec[]){{1, 0}, {1, 0}}), 0);
	close(fd);
	assert_int_equal(disk_changes_open(flat, disk.length, true, &d, &e), 0);
	assert_int_equal(d.data_fd, -1);
	assert_int_equal(make(&disk, &base, 1), 0);
	assert_int_equal(unlink(base_path), 0);
	assert_int_equal(make(&disk, &base, 1), 0);
	assert_int_equal(disk_changes_open(flat, disk.length, true, &d, &e), 0);
}

static void
the_nearest_base_is_taken_and_one_that_is_far_is_not(void **state)
{
	static uint32_t other[BLOCKS];
	struct disk_changes d = DISK_CHANGES_INIT;
	struct db_base bases[2] = {base, base};
	struct store_tree same;

	(void)state;
	/* Its file says it has the disk's very content. */
	put_tree(values, BLOCKS, &same);
	bases[1].tree = same;
	assert_int_equal(make(&disk, bases, 2), 1);
	assert_int_equal(disk_changes_open(flat, disk.length, true, &d, &e), 1);
	assert_int_equal(lseek(d.data_fd, 0, SEEK_DATA), -1);
	disk_changes_done(&d);
	for (uint32_t i = 0; i < BLOCKS; i++)
		other[i] = 100000 + i;
	put_tree(other, BLOCKS, &disk);
	assert_int_equal(make(&disk, &base, 1), 0);
	assert_int_equal(make(&disk, NULL, 0), 0);
}

static void
files_of_garbage_are_not_there(void **state)
{
	static const char *const texts[] = {"", "\n", "1 2 3\n", "1 2 3 4 /x", "a b c d e\n"};
	struct disk_changes d = DISK_CHANGES_INIT;
	char path[PATHS_MAX + 16];

	(void)state;
	assert_int_equal(make(&disk, &base, 1), 1);
	assert_int_equal(disk_changes_open(
				 flat, disk.length + STORE_PAGE, true, &d, &e), 0);
	snprintf(path, sizeof(path), "%s/disk.base", flat);
	for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
		ok(io_write_file_atomic(path, texts[i], strlen(texts[i]), 0600, &e));
		assert_int_equal(disk_changes_open(flat, disk.length, true, &d, &e), 0);
	}
	assert_int_equal(make(&disk, &base, 1), 1);
	snprintf(path, sizeof(path), "%s/disk.map", flat);
	assert_int_equal(truncate(path, 4096), 0);
	assert_int_equal(disk_changes_open(flat, disk.length, true, &d, &e), 0);
}

#define CHANGES_TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		CHANGES_TEST(a_replay_of_the_segment_over_the_base_is_the_disk),
		CHANGES_TEST(the_map_says_what_the_replay_says),
		CHANGES_TEST(a_base_that_changed_is_none),
		CHANGES_TEST(the_nearest_base_is_taken_and_one_that_is_far_is_not),
		CHANGES_TEST(files_of_garbage_are_not_there),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
