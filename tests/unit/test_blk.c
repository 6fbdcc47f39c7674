/* The disk, through its queue. */
#include "vmm/blk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/fake_driver.h"
#include "vmm/blk_flush.h"

#define ALL UINT64_MAX
#define DISK_MIB 4u
#define BASE_BYTES (1024u * 1024 + 512) /* ends within a block */
#define HDR (FAKE_HEAP)
#define STATUS (FAKE_HEAP + 0x100)
#define RANGES (FAKE_HEAP + 0x200)
#define DATA (FAKE_HEAP + 0x10000)
#define RANGES_OF_TEST 8u

static struct fake_driver d;
static struct blk blk;
static char folder[64];
static unsigned n_segments;
static char base_path[80], data_path[16][96], index_path[16][96];
static uint8_t base[BASE_BYTES];

static int
new_file(char *path, size_t cap, const char *name, unsigned i)
{
	int fd;

	snprintf(path, cap, "%s/%s%u", folder, name, i);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	return fd;
}

/* The descriptors that read the other two's files. */
static void
again_read_only(const char *data, const char *index, int fds[VMM_SEG_FDS])
{
	fds[VMM_SEG_DATA_RO] = open(data, O_RDONLY | O_CLOEXEC);
	fds[VMM_SEG_INDEX_RO] = open(index, O_RDONLY | O_CLOEXEC);
	assert_true(fds[VMM_SEG_DATA_RO] >= 0 && fds[VMM_SEG_INDEX_RO] >= 0);
}

static void
new_segment(int fds[VMM_SEG_FDS])
{
	fds[0] =
		new_file(data_path[n_segments], sizeof(data_path[0]), "data", n_segments);
	fds[1] = new_file(
		index_path[n_segments], sizeof(index_path[0]), "index", n_segments);
	again_read_only(data_path[n_segments], index_path[n_segments], fds);
	n_segments++;
}

/* One whose files go with it. */
static void
new_unnamed_segment(unsigned i, int fds[VMM_SEG_FDS])
{
	char data[96], index[96];

	fds[0] = new_file(data, sizeof(data), "d", i);
	fds[1] = new_file(index, sizeof(index), "i", i);
	again_read_only(data, index, fds);
	unlink(data);
	unlink(index);
}

static int
setup(void **state)
{
	struct err e = {0};
	int fd, fds[VMM_SEG_FDS];
	size_t i;

	(void)state;
	strcpy(folder, "/tmp/test_blk.XXXXXX");
	assert_non_null(mkdtemp(folder));
	n_segments = 0;
	for (i = 0; i < sizeof(base); i++)
		base[i] = (uint8_t)(i * 7 + i / 4096 + 1);
	fd = new_file(base_path, sizeof(base_path), "base", 0);
	assert_int_equal(write(fd, base, sizeof(base)), sizeof(base));
	new_segment(fds);
	fake_driver_init(&d);
	if (blk_init(&blk, &d.mem, fake_irq(&d), DISK_MIB, fd, fds, &e))
		fail_msg("%s", e.msg);
	assert_true(fake_start(&d, &blk.dev, ALL));
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

/* One request; data (may be NULL) is put before or fetched after. Returns the status. */
static int
request(uint32_t type, uint64_t sector, void *data, uint32_t len)
{
	struct virtio_blk_req req = {.type = type, .sector = sector};
	bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
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
	if (!fake_used(&d, 0, NULL, NULL))
		return -1;
	if (len && in)
		fake_peek(&d, DATA, data, len);
	fake_peek(&d, STATUS, &status, 1);
	return status;
}

static int
range_request(uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	struct virtio_blk_range range = {sector, sectors, flags};

	return request(type, 0, &range, sizeof(range));
}

static void
fill(uint8_t *p, size_t len, unsigned seed)
{
	size_t i;

	for (i = 0; i < len; i++)
		p[i] = (uint8_t)((i + 1) * (seed * 2 + 1) + i / 256);
}

static void
assert_disk(uint64_t sector, const uint8_t *want, uint32_t len)
{
	uint8_t *got = malloc(len);

	assert_int_equal(request(VIRTIO_BLK_T_IN, sector, got, len), VIRTIO_BLK_S_OK);
	assert_memory_equal(got, want, len);
	free(got);
}

static void
configuration_says_size_and_limits(void **state)
{
	struct virtio_blk_config c;
	uint16_t queues;

	(void)state;
	virtio_mmio_read(&blk.dev, VIRTIO_MMIO_CONFIG, &c.capacity, 8);
	assert_int_equal(c.capacity, DISK_MIB * 2048);
	virtio_mmio_read(&blk.dev,
		VIRTIO_MMIO_CONFIG + offsetof(struct virtio_blk_config, num_queues),
		&queues, 2);
	assert_int_equal(queues, 1);
	virtio_mmio_read(&blk.dev, VIRTIO_MMIO_CONFIG + 0xff, &queues, 2);
	assert_int_equal(queues, 0);
}

static void
the_base_is_read_and_what_lies_behind_it_is_zero(void **state)
{
	static uint8_t want[65536];
	const uint64_t from = BASE_BYTES - 4096 - 512;

	(void)state;
	assert_disk(0, base, 65536);
	memcpy(want, base + from, BASE_BYTES - from);
	assert_disk(from / 512, want, sizeof(want));
	memset(want, 0, sizeof(want));
	assert_disk(DISK_MIB * 2048 - 128, want, sizeof(want));
}

static void
what_is_written_is_read(void **state)
{
	static uint8_t want[40960], part[1536];

	(void)state;
	fill(want, sizeof(want), 1);
	assert_int_equal(
		request(VIRTIO_BLK_T_OUT, 80, want, sizeof(want)), VIRTIO_BLK_S_OK);
	assert_disk(80, want, sizeof(want));
	assert_memory_equal(base, base, 1);
	assert_disk(72, base + 72 * 512, 4096);
	assert_disk(80 + sizeof(want) / 512, base + 80 * 512 + sizeof(want), 4096);
	/* Across a block's edge, in parts of blocks, on written ground and on base. */
	fill(part, sizeof(part), 9);
	assert_int_equal(
		request(VIRTIO_BLK_T_OUT, 87, part, sizeof(part)), VIRTIO_BLK_S_OK);
	memcpy(want + 7 * 512, part, sizeof(part));
	assert_disk(80, want, sizeof(want));
	assert_int_equal(
		request(VIRTIO_BLK_T_OUT, 7, part, sizeof(part)), VIRTIO_BLK_S_OK);
	memcpy(want, base, 8192);
	memcpy(want + 7 * 512, part, sizeof(part));
	assert_disk(0, want, 8192);
}

static void
a_write_across_the_end_of_the_base_keeps_both_sides(void **state)
{
	static uint8_t want[8192], part[512];
	const uint64_t sector = BASE_BYTES / 512 - 1;

	(void)state;
	fill(part, sizeof(part), 3);
	assert_int_equal(
		request(VIRTIO_BLK_T_OUT, sector + 2, part, 512), VIRTIO_BLK_S_OK);
	memcpy(want, base + sector * 512, 512);
	memcpy(want + 1024, part, 512);
	assert_disk(sector, want, 4096);
}

static void
rewriting_a_block_does_not_grow_the_segment(void **state)
{
	static uint8_t buf[16384];
	uint64_t records;
	unsigned i;

	(void)state;
	fill(buf, sizeof(buf), 1);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, sizeof(buf)), 0);
	records = blk.index_records;
	for (i = 0; i < 1000; i++) {
		fill(buf, sizeof(buf), i);
		assert_int_equal(request(VIRTIO_BLK_T_OUT, (i % 2) * 4, buf, 8192), 0);
	}
	assert_int_equal(blk.data_blocks, 4);
	assert_int_equal(blk.index_records, records);
	assert_int_equal(blk.stats.segment_bytes, 16384);
}

static void
zeroes_are_read_after_discard_and_write_zeroes(void **state)
{
	static uint8_t buf[65536], zero[65536];
	struct stat before, after;

	(void)state;
	fill(buf, sizeof(buf), 5);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, sizeof(buf)), 0);
	assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0), 0);
	assert_int_equal(stat(data_path[0], &before), 0);
	assert_int_equal(range_request(VIRTIO_BLK_T_DISCARD, 8, 64, 0), 0);
	memset(buf + 4096, 0, 32768);
	assert_disk(0, buf, sizeof(buf));
	assert_int_equal(stat(data_path[0], &after), 0);
	assert_true(after.st_blocks < before.st_blocks);
	/* Ragged ends: zeroed for write-zeroes, left by discard. */
	assert_int_equal(range_request(VIRTIO_BLK_T_WRITE_ZEROES, 81, 30, 0), 0);
	memset(buf + 81 * 512, 0, 30 * 512);
	assert_disk(0, buf, sizeof(buf));
	assert_int_equal(range_request(VIRTIO_BLK_T_DISCARD, 121, 6, 0), 0);
	assert_disk(0, buf, sizeof(buf));
	/* Over the base, and written again. */
	assert_int_equal(range_request(VIRTIO_BLK_T_WRITE_ZEROES, 1024, 128, 1), 0);
	assert_disk(1024, zero, sizeof(zero));
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 9, base, 512), 0);
	memcpy(buf + 9 * 512, base, 512);
	assert_disk(0, buf, sizeof(buf));
}

static void
discarding_and_writing_in_turn_stays_bounded(void **state)
{
	static uint8_t buf[4096];
	const uint64_t limit = blk.index_limit + blk.map.n_blocks;
	uint64_t i;

	(void)state;
	blk.index_limit = 200; /* so that the test need not write for minutes */
	for (i = 0; i < 1000; i++) {
		fill(buf, sizeof(buf), (unsigned)i);
		assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, sizeof(buf)), 0);
		assert_disk(0, buf, sizeof(buf));
		memset(buf, 0, sizeof(buf));
		assert_int_equal(range_request(i % 2 ? VIRTIO_BLK_T_DISCARD
						     : VIRTIO_BLK_T_WRITE_ZEROES,
					 0, 8, i % 2 ? 0 : 1),
			0);
		if (i % 2 == 0)
			assert_disk(0, buf, sizeof(buf));
	}
	assert_true(blk.index_records <= 201);
	assert_true(blk.index_records <= limit);
	assert_int_equal(blk.data_blocks, 1);
}

static void
requests_beyond_the_disk_fail(void **state)
{
	static uint8_t buf[8192];
	const uint64_t end = DISK_MIB * 2048;

	(void)state;
	assert_int_equal(request(VIRTIO_BLK_T_IN, end, buf, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(
		request(VIRTIO_BLK_T_IN, end - 1, buf, 1024), VIRTIO_BLK_S_IOERR);
	assert_int_equal(
		request(VIRTIO_BLK_T_OUT, end - 1, buf, 1024), VIRTIO_BLK_S_IOERR);
	assert_int_equal(
		request(VIRTIO_BLK_T_IN, UINT64_MAX, buf, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(
		request(VIRTIO_BLK_T_IN, UINT64_MAX / 512, buf, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(VIRTIO_BLK_T_IN, 0, buf, 511), VIRTIO_BLK_S_IOERR);
	assert_int_equal(
		range_request(VIRTIO_BLK_T_DISCARD, end - 8, 16, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(range_request(VIRTIO_BLK_T_WRITE_ZEROES, UINT64_MAX - 3, 16, 0),
		VIRTIO_BLK_S_IOERR);
	assert_int_equal(range_request(VIRTIO_BLK_T_DISCARD, 0, UINT32_MAX, 0),
		VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(VIRTIO_BLK_T_IN, end - 1, buf, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(blk.index_records, 0);
}

static void
what_is_not_supported_is_said_to_be_so(void **state)
{
	uint8_t buf[64] = {0};

	(void)state;
	assert_int_equal(request(99, 0, buf, 16), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(
		range_request(VIRTIO_BLK_T_DISCARD, 0, 8, 1), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(
		range_request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, buf, 15), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(VIRTIO_BLK_T_GET_ID, 0, buf, 20), VIRTIO_BLK_S_OK);
	assert_string_equal((char *)buf, "pando");
}

static void
a_request_without_header_or_status_breaks_the_device(void **state)
{
	struct fake_buf no_status = {HDR, 16, false},
			short_hdr[] = {{HDR, 15, false}, {STATUS, 1, true}};

	(void)state;
	fake_add(&d, 0, &no_status, 1);
	fake_kick(&d, 0);
	assert_true(fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_true(fake_start(&d, &blk.dev, ALL));
	fake_add(&d, 0, short_hdr, 2);
	fake_kick(&d, 0);
	assert_true(fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_true(fake_start(&d, &blk.dev, ALL));
	assert_disk(0, base, 4096);
}

static void
a_request_in_many_pieces_is_served(void **state)
{
	struct virtio_blk_req req = {.type = VIRTIO_BLK_T_IN, .sector = 3};
	struct fake_buf bufs[100] = {{HDR, 7, false}, {HDR + 7, 9, false}};
	uint8_t got[98 * 48], status;
	unsigned i;

	(void)state;
	fake_poke(&d, HDR, &req, sizeof(req));
	/* 98 buffers of 47 or 48 bytes: nine sectors and, last of all, the status. */
	for (i = 2; i < 99; i++)
		bufs[i] = (struct fake_buf){DATA + (i - 2) * 100, 47, true};
	bufs[99] = (struct fake_buf){DATA + 97 * 100, 4608 - 97 * 47 + 1, true};
	fake_add(&d, 0, bufs, 100);
	fake_kick(&d, 0);
	assert_true(fake_used(&d, 0, NULL, NULL));
	for (i = 0; i < 97; i++)
		fake_peek(&d, DATA + i * 100, got + i * 47, 47);
	fake_peek(&d, DATA + 97 * 100, got + 97 * 47, 4608 - 97 * 47);
	fake_peek(&d, DATA + 97 * 100 + 4608 - 97 * 47, &status, 1);
	assert_int_equal(status, 0);
	assert_memory_equal(got, base + 3 * 512, 4608);
}

/* Another vCPU: as soon as a request is answered it is there again. */
static void *
keep_ring_full(void *arg)
{
	const uint16_t size = d.q[0].size;
	_Atomic uint16_t *avail, *used;

	avail = (_Atomic uint16_t *)(void *)(d.mem.host + d.q[0].avail + 2);
	used = (_Atomic uint16_t *)(void *)(d.mem.host + d.q[0].used + 2);
	while (!atomic_load((atomic_bool *)arg))
		atomic_store(avail, (uint16_t)(atomic_load(used) + size));
	return NULL;
}

static void
resuming_a_disk_whose_ring_is_kept_full_takes_one_turn(void **state)
{
	struct virtio_blk_req req = {.type = VIRTIO_BLK_T_IN};
	const struct fake_buf bufs[] = {
		{HDR, sizeof(req), false}, {DATA, 65536, true}, {STATUS, 1, true}};
	uint16_t head, used, before;
	atomic_bool end = false;
	pthread_t thread;

	(void)state;
	fake_poke(&d, HDR, &req, sizeof(req));
	head = fake_add(&d, 0, bufs, 3);
	for (unsigned i = 0; i < d.q[0].size; i++)
		fake_poke(&d, d.q[0].avail + 4 + 2 * i, &head, 2);
	assert_int_equal(pthread_create(&thread, NULL, keep_ring_full, &end), 0);
	for (unsigned turn = 0; turn < 20; turn++) {
		fake_peek(&d, d.q[0].used + 2, &before, 2);
		while ((uint16_t)(virtq_avail_index(&blk.dev.queues[0], &d.mem) -
				  before) < d.q[0].size)
			sched_yield();
		assert_int_equal(
			turn ? virtio_dev_go_on(&blk.dev) : virtio_dev_resume(&blk.dev),
			1);
		fake_peek(&d, d.q[0].used + 2, &used, 2);
		assert_in_range((uint16_t)(used - before), 1, d.q[0].size);
		/* 4 MiB are enough for a turn, too. */
		assert_true(
			atomic_load(&blk.stats.read_bytes) <= (turn + 1) * (4u << 20));
	}
	/* A vCPU that is in the device is not waited for. */
	virtio_dev_lock(&blk.dev);
	assert_int_equal(virtio_dev_go_on(&blk.dev), -EBUSY);
	virtio_dev_unlock(&blk.dev);
	atomic_store(&end, true);
	pthread_join(thread, NULL);
	while (virtio_dev_go_on(&blk.dev))
		;
	fake_peek(&d, d.q[0].used + 2, &used, 2);
	assert_int_equal(virtq_avail_index(&blk.dev.queues[0], &d.mem), used);
}

static void
a_full_host_disk_is_an_io_error_and_no_more(void **state)
{
	static uint8_t buf[65536], other[65536];
	const struct rlimit small = {.rlim_cur = 16384 + 100, .rlim_max = RLIM_INFINITY};
	struct rlimit was;

	(void)state;
	fill(buf, sizeof(buf), 1);
	fill(other, sizeof(other), 2);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 8192), 0);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 8, other, 65536), VIRTIO_BLK_S_IOERR);
	assert_int_equal(
		request(VIRTIO_BLK_T_OUT, 512, other, 65536), VIRTIO_BLK_S_IOERR);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	/* What failed is not there, what was there still is, and it goes on. */
	assert_disk(0, buf, 4096);
	assert_disk(16, base + 8192, 57344);
	assert_disk(512, base + 512 * 512, 65536);
	assert_true(blk.stats.io_errors >= 2);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 512, other, 65536), VIRTIO_BLK_S_OK);
	assert_disk(512, other, 65536);
	assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0), VIRTIO_BLK_S_OK);
}

static void
a_segment_cut_short_behind_our_back_is_an_io_error(void **state)
{
	static uint8_t buf[8192];

	(void)state;
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 8192), 0);
	assert_int_equal(truncate(data_path[0], 4096), 0);
	assert_int_equal(request(VIRTIO_BLK_T_IN, 0, buf, 8192), VIRTIO_BLK_S_IOERR);
	assert_disk(0, buf, 4096);
}

/* The disk as it lies, from the files of segments 0..n-1. */
static void
assert_export(unsigned n, const int64_t *records, const uint8_t *want)
{
	struct disk_segment segments[16];
	struct disk_chain chain = {base_path, segments, n};
	static uint8_t got[DISK_MIB << 20];
	struct err e = {0};
	char path[96];
	unsigned i;
	int fd;

	for (i = 0; i < n; i++)
		segments[i] = (struct disk_segment){
			data_path[i], index_path[i], records ? records[i] : -1};
	snprintf(path, sizeof(path), "%s/out", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	if (disk_export(&chain, DISK_MIB, fd, NULL, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(pread(fd, got, sizeof(got), 0), sizeof(got));
	close(fd);
	assert_memory_equal(got, want, sizeof(got));
}

static void
the_files_hold_what_the_guest_wrote(void **state)
{
	static uint8_t model[DISK_MIB << 20];
	uint32_t x = 12345, len, i;
	uint64_t sector;

	(void)state;
	memcpy(model, base, sizeof(base));
	for (i = 0; i < 3000; i++) {
		x = x * 1664525 + 1013904223;
		sector = (x >> 8) % (DISK_MIB * 2048);
		len = 512 * (1 + (x >> 3) % 40);
		if (sector * 512 + len > sizeof(model))
			len = (uint32_t)(sizeof(model) - sector * 512);
		if (i % 5 == 4) {
			assert_int_equal(range_request(VIRTIO_BLK_T_WRITE_ZEROES, sector,
						 len / 512, i & 1),
				0);
			memset(model + sector * 512, 0, len);
		} else {
			fill(model + sector * 512, len, x);
			assert_int_equal(request(VIRTIO_BLK_T_OUT, sector,
						 model + sector * 512, len),
				0);
		}
	}
	for (sector = 0; sector < DISK_MIB * 2048; sector += 128)
		assert_disk(sector, model + sector * 512, 65536);
	assert_export(1, NULL, model);
}

static void
parent_and_child_go_their_own_ways(void **state)
{
	static uint8_t model[DISK_MIB << 20], mine[65536], old[65536];
	uint64_t records = 0, bytes = 0;
	struct err e = {0};
	int child_fds[VMM_SEG_FDS], parent_fds[VMM_SEG_FDS], status;
	int64_t cut[2];
	pid_t pid;

	(void)state;
	memcpy(model, base, sizeof(base));
	fill(old, sizeof(old), 1);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, old, sizeof(old)), 0);
	memcpy(model, old, sizeof(old));
	new_segment(child_fds);
	new_segment(parent_fds);
	assert_int_equal(blk_can_cut(&blk, &e), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		blk_fork_child(&blk, fake_irq(&d));
		if (blk_cut(&blk, child_fds, &records, &bytes, &e) || records != 1 ||
			bytes != sizeof(old))
			_exit(1);
		fill(mine, sizeof(mine), 7);
		assert_disk(0, old, sizeof(old));
		if (request(VIRTIO_BLK_T_OUT, 16, mine, 8192) ||
			range_request(VIRTIO_BLK_T_DISCARD, 64, 16, 0) ||
			request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0) ||
			blk.segments[0].index_fd != -1)
			_exit(2);
		memcpy(old + 8192, mine, 8192);
		memset(old + 32768, 0, 8192);
		assert_disk(0, old, sizeof(old));
		_exit(0);
	}
	assert_int_equal(blk_cut(&blk, parent_fds, &records, &bytes, &e), 0);
	assert_int_equal(records, 1);
	assert_int_equal(bytes, sizeof(old));
	for (int i = 0; i < VMM_SEG_FDS; i++)
		close(child_fds[i]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_disk(0, old, sizeof(old));
	fill(mine, sizeof(mine), 9);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, mine, 4096), 0);
	memcpy(old, mine, 4096);
	assert_disk(0, old, sizeof(old));
	assert_int_equal(blk.n_segments, 2);

	/* The child's disk at rest: the shared segment up to the cut, then its own. */
	fill(mine, sizeof(mine), 7);
	memcpy(model + 8192, mine, 8192);
	memset(model + 32768, 0, 8192);
	cut[0] = (int64_t)records;
	cut[1] = -1;
	assert_export(2, cut, model);
}

static void
a_cut_of_an_empty_segment_uses_nothing_up(void **state)
{
	uint64_t records = 9, bytes = 9;
	struct err e = {0};
	int fds[VMM_SEG_FDS];
	unsigned i;

	(void)state;
	for (i = 0; i < 3000; i++) {
		new_unnamed_segment(i, fds);
		assert_int_equal(blk_cut(&blk, fds, &records, &bytes, &e), 0);
		assert_int_equal(records, 0);
		assert_int_equal(bytes, 0);
	}
	assert_int_equal(blk.n_segments, 1);
	assert_disk(0, base, 4096);
}

/* As of a VM that is reset: what was written before is in files that nobody reads any more. */
static void
a_disk_that_was_detached_begins_anew(void **state)
{
	uint8_t block[4096], model[4096];
	struct err e = {0};
	static int past[BLK_FDS_MAX];
	int fds[VMM_SEG_FDS], base_fd;
	struct stat st;
	unsigned n;

	(void)state;
	memset(block, 0x77, sizeof(block));
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 8, block, sizeof(block)), 0);
	new_segment(fds);
	assert_int_equal(blk_cut(&blk, fds, NULL, NULL, &e), 0);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 16, block, sizeof(block)), 0);
	assert_int_equal(request(VIRTIO_BLK_T_DISCARD, 0, block, 0), VIRTIO_BLK_S_IOERR);
	for (unsigned mib = DISK_MIB; mib >= 2; mib -= 2) { /* the second is smaller */
		new_segment(fds);
		base_fd = open(base_path, O_RDONLY | O_CLOEXEC);
		assert_int_equal(blk_check_attach(mib, base_fd, fds, &e), 0);
		for (n = blk_detach(&blk, past); n > 0; n--)
			close(past[n - 1]);
		assert_int_equal(blk_attach(&blk, mib, base_fd, fds, &e), 0);
		assert_int_equal(blk_disk_mib(&blk), mib);
		for (unsigned i = 0; i < 3; i++) {
			memcpy(model, base + i * 4096, 4096);
			assert_int_equal(
				request(VIRTIO_BLK_T_IN, i * 8, block, sizeof(block)), 0);
			assert_memory_equal(block, model, sizeof(block));
		}
		memset(block, 0x66, sizeof(block));
		assert_int_equal(request(VIRTIO_BLK_T_OUT, 8, block, sizeof(block)), 0);
		assert_int_equal(stat(data_path[n_segments - 1], &st), 0);
		assert_int_equal(st.st_size, 4096);
		assert_int_equal(
			request(VIRTIO_BLK_T_IN, mib * 2048, block, 512), VIRTIO_BLK_S_IOERR);
	}
	/* Nothing more came into the first two. */
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(stat(data_path[i], &st), 0);
		assert_int_equal(st.st_size, 4096);
	}
	/* A segment that was used, and no disk at all. */
	assert_int_equal(blk_check_attach(DISK_MIB, -1, fds, &e), -EINVAL);
	assert_int_equal(blk_check_attach(0, -1, fds, &e), -EINVAL);
}

static void
too_many_segments_are_refused_with_a_sentence(void **state)
{
	const struct rlimit many = {.rlim_cur = 4096, .rlim_max = 4096};
	struct err e = {0};
	uint8_t buf[4096];
	int fds[VMM_SEG_FDS], r = 0;
	unsigned i;

	(void)state;
	if (setrlimit(RLIMIT_NOFILE, &many))
		skip();
	for (i = 0; r == 0; i++) {
		fill(buf, sizeof(buf), i);
		assert_int_equal(request(VIRTIO_BLK_T_OUT, 8 * (i % 500), buf, 4096), 0);
		new_unnamed_segment(i, fds);
		r = blk_can_cut(&blk, NULL);
		assert_int_equal(blk_cut(&blk, fds, NULL, NULL, &e), r);
	}
	assert_int_equal(r, -EMFILE);
	assert_non_null(strstr(e.msg, "1024 segments"));
	assert_int_equal(i, BLK_SEGMENTS_MAX - 1); /* one place is a merged segment's */
	for (i = 0; i < VMM_SEG_FDS; i++)
		close(fds[i]);
	fill(buf, sizeof(buf), 1000);
	assert_disk(8 * (1000 % 500), buf, 4096);
	fill(buf, sizeof(buf), 777);
	assert_disk(8 * (777 % 500), buf, 4096);
}

static void
a_driver_without_flush_gets_durable_writes(void **state)
{
	uint8_t buf[512] = {1};

	(void)state;
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), 0);
	assert_true(blk.segments[0].written != blk.segments[0].synced);
	assert_true(fake_start(&d, &blk.dev, ALL & ~VIRTIO_BLK_F_FLUSH));
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), 0);
	assert_false(blk.segments[0].written != blk.segments[0].synced);
}

/* A thread that the test is itself. */
static unsigned woken;

static bool
note_wake(void *ctx)
{
	(void)ctx;
	woken++;
	return true;
}

static void
use_thread(void)
{
	woken = 0;
	blk.waker = (struct blk_waker){.wake = note_wake};
	/* Each answer is worth an interrupt, then. */
	assert_true(fake_start(&d, &blk.dev, ALL & ~VIRTIO_F_EVENT_IDX));
}

/* Asks for a flush whose status byte is number n; nothing waits for the answer. */
static void
begin_flush(unsigned n)
{
	struct virtio_blk_req req = {.type = VIRTIO_BLK_T_FLUSH};
	const struct fake_buf bufs[] = {{HDR, sizeof(req), false}, {STATUS + n, 1, true}};
	uint8_t status = 0xee;

	fake_poke(&d, HDR, &req, sizeof(req));
	fake_poke(&d, STATUS + n, &status, 1);
	fake_add(&d, 0, bufs, 2);
	fake_kick(&d, 0);
}

static int
flush_status(unsigned n)
{
	uint8_t status;

	fake_peek(&d, STATUS + n, &status, 1);
	return status;
}

static void
a_flush_waits_for_the_thread_and_reads_and_writes_do_not(void **state)
{
	uint8_t buf[4096];
	unsigned irqs;

	(void)state;
	use_thread();
	assert_int_equal(woken, 0);
	fill(buf, sizeof(buf), 1);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 4096), VIRTIO_BLK_S_OK);
	begin_flush(1);
	assert_int_equal(woken, 1);
	assert_false(fake_used(&d, 0, NULL, NULL));
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 8, buf, 4096), VIRTIO_BLK_S_OK);
	assert_disk(0, buf, 4096);
	begin_flush(2);
	assert_int_equal(flush_status(1), 0xee);
	/* One round for both, and one interrupt. */
	irqs = d.irqs;
	assert_true(blk_round(&blk));
	assert_false(blk_round(&blk));
	assert_int_equal(d.irqs, irqs + 1);
	assert_true(fake_used(&d, 0, NULL, NULL) && fake_used(&d, 0, NULL, NULL));
	assert_int_equal(flush_status(1), VIRTIO_BLK_S_OK);
	assert_int_equal(flush_status(2), VIRTIO_BLK_S_OK);
	assert_false(blk_is_unsynced(&blk));
	/* With nothing to do it is answered at once. */
	woken = 0;
	assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(woken, 0);
}

static void
a_flood_of_flushes_waits_in_the_queue(void **state)
{
	uint8_t buf[512] = {7};
	uint16_t head;
	unsigned answered = 0;

	(void)state;
	use_thread();
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), VIRTIO_BLK_S_OK);
	begin_flush(1);
	head = (uint16_t)(d.q[0].next_desc - 2);
	/* The same chain again and again: a driver that keeps no count of what is its own. */
	for (unsigned turn = 0; turn < 2; turn++) {
		for (unsigned i = 0; i < 100; i++)
			fake_offer(&d, 0, head);
		fake_kick(&d, 0);
	}
	assert_true(blk_late_is_full(&blk));
	while (blk_round(&blk))
		;
	while (fake_used(&d, 0, NULL, NULL))
		answered++;
	assert_int_equal(answered, 201);
	assert_int_equal(fake_read(&d, VIRTIO_MMIO_STATUS), 15);
}

static void
a_reset_forgets_flushes_that_wait(void **state)
{
	uint8_t buf[512] = {7};

	(void)state;
	use_thread();
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), VIRTIO_BLK_S_OK);
	begin_flush(1);
	assert_true(fake_start(&d, &blk.dev, ALL));
	while (blk_round(&blk))
		;
	assert_false(fake_used(&d, 0, NULL, NULL));
	assert_int_equal(flush_status(1), 0xee);
	assert_true(blk_is_unsynced(&blk));
	begin_flush(2);
	while (blk_round(&blk))
		;
	assert_int_equal(flush_status(2), VIRTIO_BLK_S_OK);
}

static void
nothing_of_a_round_reaches_the_guest_while_the_vm_is_stopped(void **state)
{
	static atomic_int stop;
	uint8_t buf[512] = {7};
	unsigned irqs;

	(void)state;
	use_thread();
	blk.dev.stop = &stop;
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), VIRTIO_BLK_S_OK);
	begin_flush(1);
	atomic_store(&stop, 1);
	irqs = d.irqs;
	assert_false(blk_round(&blk));
	assert_false(blk_is_unsynced(&blk));
	assert_int_equal(flush_status(1), 0xee);
	assert_int_equal(d.irqs, irqs);
	atomic_store(&stop, 0);
	assert_int_equal(virtio_dev_resume(&blk.dev), 0);
	assert_int_equal(flush_status(1), VIRTIO_BLK_S_OK);
	assert_true(fake_used(&d, 0, NULL, NULL));
	assert_true(d.irqs > irqs);
}

/* The state of the disk, and a load of it, as in a VM that starts from it with this memory. */
static void
save_and_load(void)
{
	static uint8_t blob[8192];
	struct blob_out out;
	struct blob_in all, in;
	struct err e = {0};

	blob_start(&out, blob, sizeof(blob));
	blob_begin(&out, 1);
	blk_save(&blk, &out);
	blob_end(&out);
	assert_true(blob_finish(&out) > 0);
	assert_int_equal(blob_open(blob, out.len, &all, &e), 0);
	assert_int_equal(blob_next(&all, 1, "disk", &in, &e), 0);
	blk_late_forget(&blk);
	if (blk_load(&blk, DISK_MIB, &in, &e) || blob_end_in(&in, "disk", &e))
		fail_msg("%s", e.msg);
}

static void
a_flush_that_waits_goes_with_the_state(void **state)
{
	uint8_t buf[512] = {7};

	(void)state;
	use_thread();
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), VIRTIO_BLK_S_OK);
	begin_flush(1);
	begin_flush(2);
	save_and_load();
	assert_int_equal(flush_status(1), 0xee);
	assert_int_equal(virtio_dev_resume(&blk.dev), 0);
	while (blk_round(&blk))
		;
	assert_int_equal(flush_status(1), VIRTIO_BLK_S_OK);
	assert_int_equal(flush_status(2), VIRTIO_BLK_S_OK);
}

static void
a_queue_out_of_use_leaves_no_flush_behind(void **state)
{
	uint8_t buf[512] = {7};

	(void)state;
	use_thread();
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), VIRTIO_BLK_S_OK);
	begin_flush(1);
	fake_write(&d, VIRTIO_MMIO_QUEUE_READY, 0);
	fake_write(&d, VIRTIO_MMIO_QUEUE_SIZE, 1);
	save_and_load();
	while (blk_round(&blk))
		;
	assert_int_equal(virtio_dev_resume(&blk.dev), 0);
	assert_int_equal(flush_status(1), 0xee);
	assert_false(fake_used(&d, 0, NULL, NULL));
}

static void
a_flush_that_its_driver_spoils_breaks_the_device_of_a_vm_that_starts_with_it(void **state)
{
	const struct virtq_desc outside = {.addr = UINT64_MAX / 2, .len = 16};
	uint8_t buf[512] = {7};

	(void)state;
	use_thread();
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), VIRTIO_BLK_S_OK);
	begin_flush(1);
	begin_flush(2);
	fake_set_desc(&d, 0, (uint16_t)(d.q[0].next_desc - 2), outside);
	save_and_load();
	assert_true(fake_read(&d, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(virtio_dev_resume(&blk.dev), 0);
	assert_false(blk_round(&blk));
	assert_int_equal(flush_status(1), 0xee);
	assert_true(fake_start(&d, &blk.dev, ALL));
	assert_int_equal(request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0), -1);
	while (blk_round(&blk))
		;
	assert_true(fake_used(&d, 0, NULL, NULL));
}

static void
a_cut_under_a_round_leaves_its_descriptors_to_it(void **state)
{
	int fds[VMM_SEG_FDS], data_fd;

	(void)state;
	use_thread();
	/* Written, but no record: the cut drops the segment. */
	blk_wrote(&blk.segments[0]);
	data_fd = blk.segments[0].data_fd;
	blk.flush.in_use[0] = data_fd;
	new_unnamed_segment(90, fds);
	assert_int_equal(blk_cut(&blk, fds, NULL, NULL, NULL), 0);
	assert_true(blk.segments[0].data_fd != data_fd);
	assert_true(fcntl(data_fd, F_GETFD) >= 0);
	/* A child has it closed, as the round would have. */
	blk_fork_child(&blk, fake_irq(&d));
	assert_int_equal(fcntl(data_fd, F_GETFD), -1);
}

static void
a_disk_that_goes_under_a_round_leaves_its_descriptors_to_it(void **state)
{
	static int past[BLK_FDS_MAX];
	const int data_fd = blk.segments[0].data_fd;
	int fds[VMM_SEG_FDS], base_fd;
	struct err e;

	(void)state;
	use_thread();
	blk.flush.in_use[0] = data_fd;
	for (unsigned n = blk_detach(&blk, past); n > 0; n--) {
		assert_true(past[n - 1] != data_fd);
		close(past[n - 1]);
	}
	assert_true(fcntl(data_fd, F_GETFD) >= 0);
	new_segment(fds);
	base_fd = open(base_path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(blk_attach(&blk, DISK_MIB, base_fd, fds, &e), 0);
	assert_false(blk_is_unsynced(&blk));
	blk_fork_child(&blk, fake_irq(&d)); /* closes it, as the round would */
	assert_int_equal(fcntl(data_fd, F_GETFD), -1);
}

static unsigned told;

static void
note_told(void *ctx)
{
	(void)ctx;
	told++;
}

static void
a_write_without_room_waits_in_the_queue(void **state)
{
	static uint8_t buf[65536], fresh[65536];
	static char small[80], command[256];
	int fds[VMM_SEG_FDS];

	(void)state;
	snprintf(small, sizeof(small), "%s/small", folder);
	snprintf(command, sizeof(command), "mkdir %s && mount -t tmpfs -o size=128k none %s 2>/dev/null",
		small, small);
	if (geteuid() != 0 || system(command)) {
		print_message("only root may mount a file system\n");
		skip();
	}
	snprintf(data_path[n_segments], sizeof(data_path[0]), "%s/data", small);
	snprintf(index_path[n_segments], sizeof(index_path[0]), "%s/index", small);
	fds[0] = open(data_path[n_segments], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	fds[1] = open(index_path[n_segments], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	again_read_only(data_path[n_segments], index_path[n_segments], fds);
	assert_int_equal(blk_cut(&blk, fds, NULL, NULL, NULL), 0);
	told = 0;
	blk.teller = (struct blk_teller){.tell = note_told};
	fill(buf, sizeof(buf), 1);
	fill(fresh, sizeof(fresh), 2);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 65536), VIRTIO_BLK_S_OK);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 512, fresh, 65536), -1);
	assert_int_equal(told, 1);
	assert_int_equal(blk_is_full(&blk), -ENOSPC);
	assert_false(blk_has_room(&blk));
	/* Nothing else is taken, and another try fails as the first. */
	fake_kick(&d, 0);
	assert_int_equal(told, 1);
	blk_try_again(&blk);
	fake_kick(&d, 0);
	assert_int_equal(told, 2);
	snprintf(command, sizeof(command), "mount -o remount,size=4m none %s", small);
	assert_int_equal(system(command), 0);
	assert_true(blk_has_room(&blk));
	blk_try_again(&blk);
	assert_int_equal(virtio_dev_resume(&blk.dev), 0);
	assert_true(fake_used(&d, 0, NULL, NULL));
	assert_disk(0, buf, 65536);
	assert_disk(512, fresh, 65536);
	assert_int_equal(blk.stats.io_errors, 0);
	snprintf(command, sizeof(command), "umount -l %s", small);
	assert_int_equal(system(command), 0);
}

static void
a_bucket_earns_its_rate_and_is_overdrawn_once(void **state)
{
	struct blk_limit l;
	uint64_t now_ns = 5000000000, due_ns;

	(void)state;
	blk_limit_set(&l, 1 << 20, 0);
	assert_true(blk_limit_is_set(&l));
	/* A tenth of a second's worth, then one more than that. */
	for (unsigned i = 0; i < 25; i++) {
		assert_int_equal(blk_limit_due_ns(&l, now_ns), 0);
		blk_limit_charge(&l, now_ns, 4096);
	}
	assert_int_equal(blk_limit_due_ns(&l, now_ns), 0);
	blk_limit_charge(&l, now_ns, 1 << 20);
	due_ns = blk_limit_due_ns(&l, now_ns);
	assert_true(due_ns > now_ns + 900000000 && due_ns < now_ns + 1100000000);
	assert_int_equal(blk_limit_due_ns(&l, due_ns), 0);
	/* It never holds more than its burst. */
	now_ns += 3600ull * 1000000000;
	for (unsigned i = 0; i < 26; i++)
		blk_limit_charge(&l, now_ns, 4096);
	assert_true(blk_limit_due_ns(&l, now_ns) > 0);
	/* A request that claims to be as large as can be. */
	blk_limit_set(&l, VMM_DISK_BYTES_MIN, 1);
	blk_limit_charge(&l, now_ns, UINT64_MAX);
	assert_true(blk_limit_due_ns(&l, now_ns) < now_ns + 300ull * 1000000000);
}

static void
a_request_that_is_too_early_waits_in_the_queue(void **state)
{
	uint8_t buf[512] = {7};

	(void)state;
	told = 0;
	blk.teller = (struct blk_teller){.tell = note_told};
	blk_set_limit(&blk, 0, 1);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(told, 0);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 0, buf, 512), -1);
	assert_int_equal(told, 1);
	assert_true(atomic_load(&blk.due_ns) > 0);
	assert_int_equal(virtio_dev_go_on(&blk.dev), 0);
	assert_false(fake_used(&d, 0, NULL, NULL));
	blk_set_limit(&blk, 0, 0);
	assert_int_equal(virtio_dev_go_on(&blk.dev), 0);
	assert_true(fake_used(&d, 0, NULL, NULL));
	assert_int_equal(atomic_load(&blk.due_ns), 0);
}

/* Offers the request that is the most work: the index is full, and each of n ranges, the whole disk,
 * is zeroes that are written out. */
static void
offer_zeroes(unsigned n)
{
	const struct virtio_blk_req req = {.type = VIRTIO_BLK_T_WRITE_ZEROES};
	const struct virtio_blk_range whole = {.sectors = DISK_MIB * 2048};
	const struct fake_buf bufs[] = {{HDR, sizeof(req), false},
		{RANGES, n * (uint32_t)sizeof(whole), false}, {STATUS, 1, true}};
	static uint8_t buf[65536];

	fill(buf, sizeof(buf), 3);
	for (uint64_t at = 0; at < DISK_MIB << 20; at += sizeof(buf))
		assert_int_equal(
			request(VIRTIO_BLK_T_OUT, at / 512, buf, sizeof(buf)), VIRTIO_BLK_S_OK);
	blk.index_limit = 0;
	fake_poke(&d, HDR, &req, sizeof(req));
	for (unsigned i = 0; i < n; i++)
		fake_poke(&d, RANGES + i * sizeof(whole), &whole, sizeof(whole));
	fake_add(&d, 0, bufs, 3);
}

static void
many_ranges_are_zeroed_in_turns_and_left_when_the_vm_stops(void **state)
{
	static const uint8_t zero[65536];
	atomic_int stop = 1;
	unsigned turns = 1;
	uint8_t status;

	(void)state;
	offer_zeroes(RANGES_OF_TEST);
	blk.dev.stop = &stop;
	assert_int_equal(virtio_dev_go_on(&blk.dev), 0);
	assert_int_equal(blk.skip, 0);
	atomic_store(&stop, 0);
	while (virtio_dev_go_on(&blk.dev) == 1) {
		assert_false(fake_used(&d, 0, NULL, NULL));
		assert_in_range(blk.skip, 1, (uint64_t)(DISK_MIB << 20) * turns++);
	}
	assert_true(turns >= RANGES_OF_TEST);
	assert_true(fake_used(&d, 0, NULL, NULL));
	fake_peek(&d, STATUS, &status, 1);
	assert_int_equal(status, VIRTIO_BLK_S_OK);
	assert_int_equal(blk.skip, 0);
	for (uint64_t at = 0; at < DISK_MIB << 20; at += sizeof(zero))
		assert_disk(at / 512, zero, sizeof(zero));
	blk.dev.stop = NULL;
}

static void
zeroes_that_are_written_out_count_against_the_limit(void **state)
{
	(void)state;
	told = 0;
	blk.teller = (struct blk_teller){.tell = note_told};
	offer_zeroes(RANGES_OF_TEST);
	blk_set_limit(&blk, 1 << 20, 0);
	fake_kick(&d, 0);
	assert_int_equal(told, 1);
	assert_true(atomic_load(&blk.due_ns) > 0);
	assert_false(fake_used(&d, 0, NULL, NULL));
	/* A driver that resets the device leaves nothing of it to the next request. */
	assert_true(blk.skip > 0);
	assert_true(fake_start(&d, &blk.dev, ALL));
	assert_int_equal(blk.skip, 0);
	assert_int_equal(atomic_load(&blk.due_ns), 0);
}

static void
bad_files_are_refused_with_a_sentence(void **state)
{
	static struct blk other;
	struct err e = {0};
	int fds[VMM_SEG_FDS], bad[VMM_SEG_FDS], base_fd;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	(void)state;
	new_segment(fds);
	base_fd = open(base_path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(
		blk_init(&other, &d.mem, fake_irq(&d), 1, base_fd, fds, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "larger disk"));
	assert_int_equal(blk_init(&other, &d.mem, fake_irq(&d), 0, -1, fds, &e), -EINVAL);
	assert_int_equal(
		blk_init(&other, &d.mem, fake_irq(&d), 1ull << 40, -1, fds, &e), -EINVAL);
	assert_int_equal(
		blk_init(&other, &d.mem, fake_irq(&d), 8, null, fds, &e), -EINVAL);
	memcpy(bad, fds, sizeof(bad));
	bad[VMM_SEG_DATA] = null;
	assert_int_equal(
		blk_init(&other, &d.mem, fake_irq(&d), 8, base_fd, bad, &e), -EINVAL);
	/* What stays after a cut must not be good for writing, nor be another file. */
	for (int i = 0; i < 4; i++) {
		memcpy(bad, fds, sizeof(bad));
		bad[VMM_SEG_DATA_RO + i / 2] =
			i % 2 ? fds[i / 2] : fds[VMM_SEG_DATA_RO + (1 - i / 2)];
		assert_int_equal(
			blk_init(&other, &d.mem, fake_irq(&d), 8, base_fd, bad, &e),
			-EINVAL);
		assert_non_null(strstr(e.msg, "for reading only"));
	}
	assert_int_equal(write(fds[1], "x", 1), 1);
	assert_int_equal(
		blk_init(&other, &d.mem, fake_irq(&d), 8, base_fd, fds, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "empty"));
	close(null);
	close(base_fd);
	for (int i = 0; i < VMM_SEG_FDS; i++)
		close(fds[i]);
}

/* A segment of somebody else's between the base and the own one. */
static void
a_segment_below_is_read_through_its_map(void **state)
{
	static uint64_t entries[512] = {
		[1] = (1ull << 48) | 3, /* block 3 of the segment */
		[2] = BLOCKMAP_ZERO,
		[4] = (6ull << 48) | 1, /* of a segment that there is not */
		[5] = (1ull << 48) | 100, /* beyond the end of its data */
	};
	uint8_t data[4 * 4096], buf[4096], zeroes[4096] = {0};
	char path[96], map_path[96];
	struct err e;
	int fd, map;

	(void)state;
	fill(data, sizeof(data), 9);
	fd = new_file(path, sizeof(path), "below", 0);
	map = new_file(map_path, sizeof(map_path), "map", 0);
	assert_int_equal(write(fd, data, sizeof(data)), sizeof(data));
	assert_int_equal(write(map, entries, sizeof(entries)), sizeof(entries));
	assert_int_equal(blk_attach_below(&blk, fd, map, 3, &e), 0);
	close(map);
	assert_disk(0, base, 4096);
	assert_disk(8, data + 3 * 4096, 4096);
	assert_disk(16, zeroes, 4096);
	assert_disk(24, base + 3 * 4096, 4096);
	assert_int_equal(request(VIRTIO_BLK_T_IN, 32, buf, 4096), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(VIRTIO_BLK_T_IN, 40, buf, 4096), VIRTIO_BLK_S_IOERR);
	/* What is written goes into the own one, and the other is as it was. */
	fill(buf, sizeof(buf), 11);
	assert_int_equal(request(VIRTIO_BLK_T_OUT, 8, buf, 4096), VIRTIO_BLK_S_OK);
	assert_disk(8, buf, 4096);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(pread(fd, buf, sizeof(buf), 3 * 4096), sizeof(buf));
	close(fd);
	assert_memory_equal(buf, data + 3 * 4096, sizeof(buf));
	map = open(map_path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(pread(map, buf, sizeof(buf), 0), sizeof(buf));
	close(map);
	assert_memory_equal(buf, entries, sizeof(buf));
}

static void
a_map_of_a_file_is_forgotten_with_its_disk(void **state)
{
	static int past[BLK_FDS_MAX];
	static uint64_t entries[512] = {[1] = (1ull << 48) | 0};
	char path[96], map_path[96];
	int fds[VMM_SEG_FDS], base_fd, fd, map;
	uint8_t data[4096];
	struct err e;

	(void)state;
	fill(data, sizeof(data), 9);
	fd = new_file(path, sizeof(path), "below", 0);
	map = new_file(map_path, sizeof(map_path), "map", 0);
	assert_int_equal(write(fd, data, sizeof(data)), sizeof(data));
	assert_int_equal(write(map, entries, sizeof(entries)), sizeof(entries));
	assert_int_equal(blk_attach_below(&blk, fd, map, 1, &e), 0);
	close(map);
	assert_disk(8, data, sizeof(data));
	new_segment(fds);
	base_fd = open(base_path, O_RDONLY | O_CLOEXEC);
	for (unsigned n = blk_detach(&blk, past); n > 0; n--)
		close(past[n - 1]);
	assert_int_equal(blk_attach(&blk, DISK_MIB, base_fd, fds, &e), 0);
	assert_disk(8, base + 4096, 4096);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_segment_below_is_read_through_its_map),
		T(a_map_of_a_file_is_forgotten_with_its_disk),
		T(configuration_says_size_and_limits),
		T(the_base_is_read_and_what_lies_behind_it_is_zero),
		T(what_is_written_is_read),
		T(a_write_across_the_end_of_the_base_keeps_both_sides),
		T(rewriting_a_block_does_not_grow_the_segment),
		T(zeroes_are_read_after_discard_and_write_zeroes),
		T(discarding_and_writing_in_turn_stays_bounded),
		T(many_ranges_are_zeroed_in_turns_and_left_when_the_vm_stops),
		T(zeroes_that_are_written_out_count_against_the_limit),
		T(requests_beyond_the_disk_fail),
		T(what_is_not_supported_is_said_to_be_so),
		T(a_request_without_header_or_status_breaks_the_device),
		T(a_request_in_many_pieces_is_served),
		T(resuming_a_disk_whose_ring_is_kept_full_takes_one_turn),
		T(a_full_host_disk_is_an_io_error_and_no_more),
		T(a_segment_cut_short_behind_our_back_is_an_io_error),
		T(the_files_hold_what_the_guest_wrote),
		T(parent_and_child_go_their_own_ways),
		T(a_cut_of_an_empty_segment_uses_nothing_up),
		T(a_disk_that_was_detached_begins_anew),
		T(too_many_segments_are_refused_with_a_sentence),
		T(a_driver_without_flush_gets_durable_writes),
		T(a_flush_waits_for_the_thread_and_reads_and_writes_do_not),
		T(a_flood_of_flushes_waits_in_the_queue),
		T(a_reset_forgets_flushes_that_wait),
		T(nothing_of_a_round_reaches_the_guest_while_the_vm_is_stopped),
		T(a_flush_that_waits_goes_with_the_state),
		T(a_queue_out_of_use_leaves_no_flush_behind),
		T(a_flush_that_its_driver_spoils_breaks_the_device_of_a_vm_that_starts_with_it),
		T(a_cut_under_a_round_leaves_its_descriptors_to_it),
		T(a_disk_that_goes_under_a_round_leaves_its_descriptors_to_it),
		T(a_write_without_room_waits_in_the_queue),
		T(a_bucket_earns_its_rate_and_is_overdrawn_once),
		T(a_request_that_is_too_early_waits_in_the_queue),
		T(bad_files_are_refused_with_a_sentence),
	};

	log_init("test", LOG_LEVEL_ERR); /* what the guest broke is expected */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
