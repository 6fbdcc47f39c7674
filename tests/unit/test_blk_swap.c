/* A running disk whose old segments are swapped for merged ones: no block changes. */
#include "vmm/blk_swap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/fake_driver.h"
#include "vmm/segment_merge.h"

#define DISK_MIB 4u
#define DISK_BYTES (DISK_MIB << 20)
#define BLOCKS (DISK_MIB * 256u)
#define FEATURES \
	(VIRTIO_F_VERSION_1 | VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_WRITE_ZEROES)
#define HDR FAKE_HEAP
#define STATUS (FAKE_HEAP + 0x100)
#define DATA (FAKE_HEAP + 0x10000)
#define LINKS_MAX 200u

static struct fake_driver d;
static struct blk blk;
static char folder[64];
static uint8_t model[DISK_BYTES];
static uint32_t seed;
/* The chain as pandod would have it, oldest first; the last one is the own segment. */
static struct link {
	char path[2][80];
	int64_t records;
} chain[LINKS_MAX];
static unsigned n_chain, n_made;

static uint32_t
draw(uint32_t below)
{
	seed = seed * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)seed * below >> 32);
}

static void
new_link(struct link *l, int fds[VMM_SEG_FDS])
{
	for (unsigned i = 0; i < 2; i++) {
		snprintf(l->path[i], sizeof(l->path[0]), "%s/%u.%s", folder, n_made,
			i ? "index" : "data");
		fds[i] = open(l->path[i], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		fds[2 + i] = open(l->path[i], O_RDONLY | O_CLOEXEC);
		assert_true(fds[i] >= 0 && fds[2 + i] >= 0);
	}
	l->records = -1;
	n_made++;
}

static int
setup(void **state)
{
	int fds[VMM_SEG_FDS];
	struct err e;

	(void)state;
	strcpy(folder, "/tmp/test_blk_swap.XXXXXX");
	assert_non_null(mkdtemp(folder));
	n_chain = n_made = 0;
	seed = 7;
	memset(model, 0, sizeof(model));
	new_link(&chain[n_chain++], fds);
	fake_driver_init(&d);
	if (blk_init(&blk, &d.mem, fake_irq(&d), DISK_MIB, -1, fds, &e))
		fail_msg("%s", e.msg);
	assert_true(fake_start(&d, &blk.dev, FEATURES));
	return 0;
}

static int
teardown(void **state)
{
	char command[128];

	(void)state;
	blk_destroy(&blk);
	fake_driver_done(&d);
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command);
}

static int
request(uint32_t type, uint64_t sector, void *data, uint32_t len)
{
	struct virtio_blk_req req = {.type = type, .sector = sector};
	bool in = type == VIRTIO_BLK_T_IN;
	struct fake_buf bufs[] = {
		{HDR, sizeof(req), false}, {DATA, len, in}, {STATUS, 1, true}};
	uint8_t status = 0xee;

	fake_poke(&d, HDR, &req, sizeof(req));
	fake_poke(&d, STATUS, &status, 1);
	if (len && !in)
		fake_poke(&d, DATA, data, len);
	if (len == 0)
		bufs[1] = bufs[2];
	fake_add(&d, 0, bufs, len ? 3 : 2);
	fake_kick(&d, 0);
	while (!fake_used(&d, 0, NULL, NULL))
		poll(NULL, 0, 1);
	if (len && in)
		fake_peek(&d, DATA, data, len);
	fake_peek(&d, STATUS, &status, 1);
	return status;
}

/* What a guest does between two fork points. */
static void
write_some(unsigned n)
{
	static uint8_t buf[32 * SEGMENT_BLOCK];

	for (unsigned i = 0; i < n; i++) {
		uint32_t len = 512 * (1 + draw(8 * 24)), at = 512 * draw(DISK_BYTES / 512);

		if (len > DISK_BYTES - at)
			len = DISK_BYTES - at;
		if (draw(4) == 0) {
			struct virtio_blk_range range = {at / 512, len / 512, 1};

			assert_int_equal(
				request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range, sizeof(range)), 0);
			memset(model + at, 0, len);
		} else {
			memset(buf, (int)draw(256), len);
			memcpy(buf, &seed, sizeof(seed));
			assert_int_equal(request(VIRTIO_BLK_T_OUT, at / 512, buf, len), 0);
			memcpy(model + at, buf, len);
		}
	}
}

static void
cut(void)
{
	int fds[VMM_SEG_FDS];
	uint64_t records;
	struct err e;

	assert_true(n_chain < LINKS_MAX);
	new_link(&chain[n_chain], fds);
	if (blk_cut(&blk, fds, &records, NULL, &e))
		fail_msg("%s", e.msg);
	chain[n_chain - 1].records = (int64_t)records;
	n_chain++;
}

static void
assert_disk(void)
{
	static uint8_t got[65536];

	for (uint32_t at = 0; at < DISK_BYTES; at += sizeof(got)) {
		assert_int_equal(request(VIRTIO_BLK_T_IN, at / 512, got, sizeof(got)), 0);
		if (memcmp(got, model + at, sizeof(got)) != 0)
			fail_msg("the disk differs in the 64 KiB at %u", at);
	}
}

/* The counts are what the map says. */
static void
assert_counts(void)
{
	uint64_t live[BLK_SEGMENTS_MAX] = {0};

	for (uint64_t b = 0; b < BLOCKS; b++) {
		int segment = blockmap_segment(blk.map.entries[b]);

		if (segment < 0)
			continue;
		assert_true(blk.segments[segment].data_fd >= 0);
		live[segment]++;
	}
	assert_memory_equal(live, blk.live, sizeof(live));
}

static unsigned
places_taken(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < blk.n_segments; i++)
		n += blk.segments[i].data_fd >= 0;
	return n;
}

static void
merge_run(unsigned from, unsigned n, struct link *ret)
{
	struct disk_segment run[SEGMENT_MERGE_MAX];
	struct segment_merge m = {.run = run, .n_run = n, .disk_mib = DISK_MIB};
	struct segment_merged merged;
	int fds[VMM_SEG_FDS];
	struct err e;

	for (unsigned i = 0; i < n; i++)
		run[i] = (struct disk_segment){chain[from + i].path[0],
			chain[from + i].path[1], chain[from + i].records};
	new_link(ret, fds);
	m.data_fd = fds[VMM_SEG_DATA];
	m.index_fd = fds[VMM_SEG_INDEX];
	if (segment_merge(&m, &merged, &e) < 0)
		fail_msg("%s", e.msg);
	ret->records = (int64_t)merged.records;
	for (unsigned i = 0; i < VMM_SEG_FDS; i++)
		close(fds[i]);
}

static void
describe(unsigned from, unsigned n, const struct link *merged, struct vmm_merged *ret,
	int fds[VMM_MERGED_FD_COUNT])
{
	struct stat st;

	*ret = (struct vmm_merged){.n = n, .records = (uint64_t)merged->records};
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(stat(chain[from + i].path[0], &st), 0);
		ret->files[i] = (struct vmm_merged_file){st.st_dev, st.st_ino};
	}
	for (unsigned i = 0; i < 2; i++) {
		fds[i] = open(merged->path[i], O_RDONLY | O_CLOEXEC);
		assert_true(fds[i] >= 0);
	}
}

/* between: writes between two steps. */
static int
swap(unsigned from, unsigned n, const struct link *merged, bool between, struct err *e)
{
	int fds[VMM_MERGED_FD_COUNT], r;
	struct vmm_merged m;
	struct blk_swap s;

	describe(from, n, merged, &m, fds);
	r = blk_swap_begin(&blk, &m, fds, &s, e);
	while (r > 0) {
		if (between)
			write_some(2);
		r = blk_swap_step(&blk, &s, e);
	}
	return r;
}

/* pandod's side, after the swap. */
static void
replace(unsigned from, unsigned n, const struct link *merged)
{
	for (unsigned i = 0; i < n; i++) {
		unlink(chain[from + i].path[0]);
		unlink(chain[from + i].path[1]);
	}
	chain[from] = *merged;
	memmove(&chain[from + 1], &chain[from + n], (n_chain - from - n) * sizeof(chain[0]));
	n_chain -= n - 1;
}

static void
assert_files(void)
{
	struct disk_segment segments[LINKS_MAX];
	struct disk_chain c = {.segments = segments, .n_segments = n_chain};
	uint8_t *got = malloc(DISK_BYTES);
	char path[80];
	struct err e;
	int fd;

	for (unsigned i = 0; i < n_chain; i++)
		segments[i] = (struct disk_segment){
			chain[i].path[0], chain[i].path[1], chain[i].records};
	snprintf(path, sizeof(path), "%s/whole", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	if (disk_export(&c, DISK_MIB, fd, NULL, &e) < 0)
		fail_msg("%s", e.msg);
	assert_int_equal(pread(fd, got, DISK_BYTES, 0), DISK_BYTES);
	assert_memory_equal(got, model, DISK_BYTES);
	close(fd);
	free(got);
}

static void
a_swap_of_any_run_changes_no_block(void **state)
{
	struct err e;

	(void)state;
	for (unsigned round = 0; round < 60; round++) {
		struct link merged;
		unsigned from, n;

		for (unsigned i = 0; i < 6; i++) {
			write_some(draw(8));
			if (draw(8) == 0)
				assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0), 0);
			cut();
		}
		write_some(4);
		from = draw(n_chain - 2);
		n = 1 + draw(n_chain - 1 - from);
		merge_run(from, n, &merged);
		if (swap(from, n, &merged, draw(2), &e) < 0)
			fail_msg("%s", e.msg);
		replace(from, n, &merged);
		assert_counts();
		assert_true(places_taken() <= n_chain);
		assert_disk();
		if (round % 8 == 7)
			assert_files();
	}
	assert_true(places_taken() < 60);
}

static void
a_child_takes_the_swap_of_what_it_shares(void **state)
{
	struct link merged;
	struct err e;
	int status;
	pid_t pid;

	(void)state;
	for (unsigned i = 0; i < 5; i++) {
		write_some(5);
		cut();
	}
	write_some(5);
	merge_run(0, 5, &merged);
	pid = fork();
	if (pid == 0) {
		int fds[VMM_SEG_FDS];

		blk_fork_child(&blk, fake_irq(&d));
		n_made += 100;
		new_link(&chain[n_chain], fds);
		if (blk_cut(&blk, fds, NULL, NULL, &e))
			_exit(1);
		write_some(5);
		if (swap(0, 5, &merged, true, &e) < 0 || places_taken() > 3)
			_exit(2);
		assert_disk();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_disk();
	assert_int_equal(swap(0, 5, &merged, false, &e), 0);
	assert_int_equal(places_taken(), 2);
	assert_disk();
}

static void
told_twice_or_half_way_it_does_what_is_left(void **state)
{
	int fds[VMM_MERGED_FD_COUNT];
	struct vmm_merged m;
	struct link merged;
	struct blk_swap s;
	struct err e;

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		write_some(5);
		cut();
	}
	merge_run(0, 4, &merged);
	/* Whoever told it was killed before the first step. */
	describe(0, 4, &merged, &m, fds);
	assert_int_equal(blk_swap_begin(&blk, &m, fds, &s, &e), 1);
	close(s.index_fd);
	assert_disk();
	assert_int_equal(swap(0, 4, &merged, false, &e), 0);
	assert_int_equal(places_taken(), 2);
	assert_int_equal(swap(0, 4, &merged, false, &e), 0);
	assert_int_equal(places_taken(), 2);
	assert_counts();
	assert_disk();
	/* A later merge that names what it does not have any more, beside what it has. */
	write_some(5);
	cut();
	merge_run(0, 5, &merged);
	assert_int_equal(swap(0, 5, &merged, false, &e), 0);
	assert_disk();
}

static void
what_is_no_merged_segment_of_this_disk_is_refused(void **state)
{
	int fds[VMM_MERGED_FD_COUNT], fd;
	struct segment_record r;
	struct vmm_merged m;
	struct link merged;
	struct blk_swap s;
	struct err e;

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		write_some(9);
		cut();
	}
	/* It lacks the blocks that only the first has: that one stays. */
	merge_run(1, 2, &merged);
	assert_int_equal(swap(0, 3, &merged, false, &e), -ESTALE);
	assert_disk();
	assert_counts();
	/* Damaged in its first record; longer than it is; too many; not read-only. */
	merge_run(0, 4, &merged);
	fd = open(merged.path[1], O_RDWR | O_CLOEXEC);
	assert_int_equal(pread(fd, &r, sizeof(r), 0), sizeof(r));
	r.block ^= 1;
	assert_int_equal(pwrite(fd, &r, sizeof(r), 0), sizeof(r));
	assert_int_equal(swap(0, 4, &merged, false, &e), -EBADMSG);
	r = segment_record_make(SEGMENT_DATA, 0, 1u << 20, 1);
	assert_int_equal(pwrite(fd, &r, sizeof(r), 0), sizeof(r));
	assert_int_equal(swap(0, 4, &merged, false, &e), -EBADMSG);
	r = segment_record_make(SEGMENT_ZERO, BLOCKS - 1, 0, 2);
	assert_int_equal(pwrite(fd, &r, sizeof(r), 0), sizeof(r));
	assert_int_equal(swap(0, 4, &merged, false, &e), -EBADMSG);
	merged.records += 1000000;
	assert_int_equal(swap(0, 4, &merged, false, &e), -EINVAL);
	merged.records -= 1000000;
	describe(0, 4, &merged, &m, fds);
	m.n = VMM_MERGED_MAX + 1;
	assert_int_equal(blk_swap_begin(&blk, &m, fds, &s, &e), -EINVAL);
	describe(0, 4, &merged, &m, fds);
	close(fds[VMM_MERGED_FD_INDEX]);
	fds[VMM_MERGED_FD_INDEX] = fd;
	assert_int_equal(blk_swap_begin(&blk, &m, fds, &s, &e), -EINVAL);
	assert_disk();
	assert_counts();
}

static void
with_no_place_left_the_next_cut_waits_for_a_merge(void **state)
{
	const struct rlimit many = {.rlim_cur = 4096, .rlim_max = 4096};
	struct link merged;
	uint8_t block[SEGMENT_BLOCK];
	int fds[VMM_SEG_FDS];
	struct err e;
	unsigned n = 0;

	(void)state;
	if (setrlimit(RLIMIT_NOFILE, &many))
		skip();
	for (; blk_can_cut(&blk, &e) == 0; n++) {
		memset(block, (int)n, sizeof(block));
		assert_int_equal(
			request(VIRTIO_BLK_T_OUT, n % BLOCKS * 8, block, sizeof(block)), 0);
		memcpy(model + n % BLOCKS * SEGMENT_BLOCK, block, sizeof(block));
		if (n < 20) {
			cut();
			continue;
		}
		new_link(&chain[LINKS_MAX - 1], fds);
		if (blk_cut(&blk, fds, NULL, NULL, &e))
			break;
		unlink(chain[LINKS_MAX - 1].path[0]);
		unlink(chain[LINKS_MAX - 1].path[1]);
	}
	assert_int_equal(n, BLK_SEGMENTS_MAX - 2);
	assert_non_null(strstr(e.msg, "merged"));
	for (unsigned i = 0; i < VMM_SEG_FDS; i++)
		close(fds[i]);
	merge_run(0, 20, &merged);
	assert_int_equal(swap(0, 20, &merged, false, &e), 0);
	assert_int_equal(blk_can_cut(&blk, &e), 0);
	assert_disk();
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_swap_of_any_run_changes_no_block),
		T(a_child_takes_the_swap_of_what_it_shares),
		T(told_twice_or_half_way_it_does_what_is_left),
		T(what_is_no_merged_segment_of_this_disk_is_refused),
		T(with_no_place_left_the_next_cut_waits_for_a_merge),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
