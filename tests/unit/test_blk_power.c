/*
 * The disk when its host loses power: what the guest flushed is there, whatever became of
 * the rest; and of the rest each sector is as it was at the last flush or as it was written
 * since, or zeroes where blk.h says so.
 *
 * Twice. Once over a model of the worst that a file system may do: of each file any
 * length between the flushed one and the present one, and of each sector the flushed
 * content, the present one or zeroes. And once over a real file system on a loop device,
 * whose backing file is copied while the disk is written, without syncing anything: each
 * copy is what a power loss at that instant leaves (root only).
 */
#include "vmm/blk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "tests/unit/fake_driver.h"
#include "vmm/blk_flush.h"

#define DISK_MIB 4u
#define DISK_BYTES (DISK_MIB << 20)
#define N_BLOCKS (DISK_BYTES / SEGMENT_BLOCK)
#define SEGMENTS_MAX 6
#define HDR (FAKE_HEAP)
#define STATUS (FAKE_HEAP + 0x100)
#define DATA (FAKE_HEAP + 0x10000)
#define REQUEST_MAX (64u << 10)

static struct fake_driver d;
static struct blk blk;
static char folder[64];	 /* this test's */
static char home[80];	 /* where segments lie */
static char crashed[96]; /* where they lie after a power loss */
static uint32_t seed;

/* The chain; records are noted at a cut, as pandod does. */
static unsigned n_segments;
static int64_t cut_records[SEGMENTS_MAX];

static uint8_t model[DISK_BYTES];   /* what the guest wrote */
static uint8_t flushed[DISK_BYTES]; /* that, at its last flush */
static uint8_t written[N_BLOCKS];   /* since */

/* What each sector held since the last flush: a list a sector. */
#define N_SECTORS (DISK_BYTES / 512)
#define VERSIONS_MAX (1u << 18)
static struct version {
	uint64_t hash;
	uint32_t next; /* 0: none */
} versions[VERSIONS_MAX];
static uint32_t n_versions, newest[N_SECTORS];
static uint64_t places[N_BLOCKS]; /* the block map, at the last flush */

static uint32_t
roll(uint32_t below)
{
	seed = seed * 1664525 + 1013904223;
	return (uint32_t)(((uint64_t)(seed ^ seed >> 15) * below) >> 32);
}

static uint64_t
hash_sector(const uint8_t *p)
{
	uint64_t h = 0xcbf29ce484222325ull;

	for (unsigned i = 0; i < 512; i++)
		h = (h ^ p[i]) * 0x100000001b3ull;
	return h;
}

/* The model's present state is durable. */
static void
note_flush(void)
{
	memcpy(flushed, model, sizeof(model));
	memset(written, 0, sizeof(written));
	memset(newest, 0, sizeof(newest));
	n_versions = 1;
	memcpy(places, blk.map.entries, sizeof(places));
}

static void
note_write(uint64_t offset, uint32_t len)
{
	for (uint64_t s = offset / 512; s * 512 < offset + len; s++) {
		assert_true(n_versions < VERSIONS_MAX);
		versions[n_versions] =
			(struct version){hash_sector(model + s * 512), newest[s]};
		newest[s] = n_versions++;
		written[s * 512 / SEGMENT_BLOCK] = 1;
	}
}

static void
file_path(char *dst, size_t cap, const char *at, unsigned i, const char *kind)
{
	snprintf(dst, cap, "%s/%u.%s", at, i, kind);
}

static void
new_segment(int fds[VMM_SEG_FDS])
{
	static const char *const kinds[] = {"data", "index"};
	char path[160];

	assert_true(n_segments < SEGMENTS_MAX);
	for (unsigned i = 0; i < 2; i++) {
		file_path(path, sizeof(path), home, n_segments, kinds[i]);
		fds[i] = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		fds[i + 2] = open(path, O_RDONLY | O_CLOEXEC);
		assert_true(fds[i] >= 0 && fds[i + 2] >= 0);
	}
	cut_records[n_segments++] = -1;
}

static void
open_disk(void)
{
	struct err e = {0};
	int fds[VMM_SEG_FDS];

	n_segments = 0;
	memset(model, 0, sizeof(model));
	new_segment(fds);
	fake_driver_init(&d);
	if (blk_init(&blk, &d.mem, fake_irq(&d), DISK_MIB, -1, fds, &e))
		fail_msg("%s", e.msg);
	assert_true(fake_start(&d, &blk.dev, UINT64_MAX));
	note_flush();
}

static void
close_disk(void)
{
	blk_destroy(&blk);
	fake_driver_done(&d);
}

/* A flush that a thread makes. */
#define FLUSH_HDR (FAKE_HEAP + 0x1000)
#define FLUSH_STATUS (FAKE_HEAP + 0x1100)
static bool has_thread, flushing;
static uint32_t flush_head;
static atomic_bool thread_ends;

static void *
make_rounds(void *arg)
{
	while (!atomic_load(&thread_ends))
		if (!blk_round(&blk))
			sched_yield();
	return arg;
}

static bool
never_wakes(void *ctx)
{
	(void)ctx;
	return true; /* it looks all the time */
}

static void
begin_flush(void)
{
	const struct virtio_blk_req req = {.type = VIRTIO_BLK_T_FLUSH};
	const struct fake_buf bufs[] = {
		{FLUSH_HDR, sizeof(req), false}, {FLUSH_STATUS, 1, true}};

	fake_poke(&d, FLUSH_HDR, &req, sizeof(req));
	flushing = true;
	flush_head = fake_add(&d, 0, bufs, 2);
	fake_kick(&d, 0);
}

/* The next answer that is not the flush's. */
static bool
answered(void)
{
	uint8_t status;
	uint32_t head;

	while (fake_used(&d, 0, &head, NULL)) {
		if (!flushing || head != flush_head)
			return true;
		flushing = false;
		fake_peek(&d, FLUSH_STATUS, &status, 1);
		assert_int_equal(status, VIRTIO_BLK_S_OK);
	}
	return false;
}

static void
request(uint32_t type, uint64_t sector, const void *data, uint32_t len)
{
	struct virtio_blk_req req = {.type = type, .sector = sector};
	struct fake_buf bufs[] = {
		{HDR, sizeof(req), false}, {DATA, len, false}, {STATUS, 1, true}};
	uint8_t status = 0xee;

	fake_poke(&d, HDR, &req, sizeof(req));
	if (len)
		fake_poke(&d, DATA, data, len);
	else
		bufs[1] = bufs[2];
	fake_add(&d, 0, bufs, len ? 3 : 2);
	fake_kick(&d, 0);
	assert_true(answered());
	fake_peek(&d, STATUS, &status, 1);
	assert_int_equal(status, VIRTIO_BLK_S_OK);
}

/* One thing that a guest does, but a flush: a write, zeroes, a discard. */
static void
write_something(void)
{
	uint32_t len = 512 * (1 + roll(REQUEST_MAX / 512)), kind = roll(8);
	uint64_t offset = 512ull * roll((DISK_BYTES - len) / 512 + 1);
	struct virtio_blk_range range = {offset / 512, len / 512, 0};

	if (kind > 5) {
		offset &= ~(uint64_t)(SEGMENT_BLOCK - 1);
		len &= ~(SEGMENT_BLOCK - 1);
		range = (struct virtio_blk_range){
			offset / 512, len / 512, kind == 6 ? roll(2) : 0};
		if (len == 0)
			return;
		memset(model + offset, 0, len);
		note_write(offset, len);
		request(kind == 6 ? VIRTIO_BLK_T_WRITE_ZEROES : VIRTIO_BLK_T_DISCARD, 0,
			&range, sizeof(range));
		return;
	}
	for (uint32_t i = 0; i < len; i += 4)
		memcpy(model + offset + i, &(uint32_t){seed + i}, 4);
	note_write(offset, len);
	request(VIRTIO_BLK_T_OUT, offset / 512, model + offset, len);
}

static void
cut_disk(void)
{
	uint64_t records;
	struct err e = {0};
	int fds[VMM_SEG_FDS];

	new_segment(fds);
	if (blk_cut(&blk, fds, &records, NULL, &e))
		fail_msg("%s", e.msg);
	cut_records[n_segments - 2] = (int64_t)records;
}

/* The disk as it can be read in `at` after the power loss. */
static void
export_crashed(const char *at, unsigned n, uint8_t *dst, struct err *lost)
{
	static char paths[SEGMENTS_MAX][2][160];
	struct disk_segment segments[SEGMENTS_MAX];
	struct disk_chain chain = {NULL, segments, n};
	struct err e = {0};
	char path[160];
	int fd;

	for (unsigned i = 0; i < n; i++) {
		file_path(paths[i][0], sizeof(paths[0][0]), at, i, "data");
		file_path(paths[i][1], sizeof(paths[0][0]), at, i, "index");
		segments[i] =
			(struct disk_segment){paths[i][0], paths[i][1], cut_records[i]};
	}
	snprintf(path, sizeof(path), "%s/out", folder);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	if (disk_export(&chain, DISK_MIB, fd, lost, &e))
		fail_msg("%s", e.msg);
	assert_int_equal(pread(fd, dst, DISK_BYTES, 0), DISK_BYTES);
	close(fd);
}

static void
assert_flushed_is_there(const uint8_t *got)
{
	for (unsigned b = 0; b < N_BLOCKS; b++)
		if (!written[b] &&
			memcmp(got + b * SEGMENT_BLOCK, flushed + b * SEGMENT_BLOCK,
				SEGMENT_BLOCK) != 0)
			fail_msg("block %u, flushed and not written since, is lost", b);
}

static bool
was_written(unsigned sector, const uint8_t *p)
{
	const uint64_t hash = hash_sector(p);

	for (uint32_t i = newest[sector]; i; i = versions[i].next)
		if (versions[i].hash == hash)
			return true;
	return false;
}

/* How many sectors are zeroes that the guest never wrote: none but in blocks that have got
 * another place since the flush. */
static unsigned
assert_the_rest_is_old_or_new(const uint8_t *got)
{
	static const uint8_t zeroes[512];
	unsigned lost = 0;

	for (unsigned s = 0; s < N_SECTORS; s++) {
		const uint8_t *p = got + s * 512;
		const unsigned b = s * 512 / SEGMENT_BLOCK;

		if (!written[b] || memcmp(p, flushed + s * 512, 512) == 0 ||
			was_written(s, p))
			continue;
		if (memcmp(p, zeroes, 512) != 0)
			fail_msg(
				"sector %u is neither what was flushed nor what was written since",
				s);
		if (places[b] == (blk.map.entries[b] & ~BLOCKMAP_ZERO))
			fail_msg("sector %u, overwritten in place, became zeroes", s);
		lost++;
	}
	return lost;
}

/*
 * The model.
 */

struct kept { /* of a file, as it was at the last flush */
	uint8_t *bytes;
	size_t len;
};

static struct kept kept[SEGMENTS_MAX][2];

static void
read_whole(const char *path, struct kept *ret)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0 && fstat(fd, &st) == 0);
	ret->len = (size_t)st.st_size;
	free(ret->bytes);
	ret->bytes = malloc(ret->len + 1);
	assert_non_null(ret->bytes);
	assert_int_equal(pread(fd, ret->bytes, ret->len, 0), st.st_size);
	close(fd);
}

static void
keep_files(void)
{
	char path[160];

	for (unsigned i = 0; i < n_segments; i++) {
		for (unsigned k = 0; k < 2; k++) {
			file_path(path, sizeof(path), home, i, k ? "index" : "data");
			read_whole(path, &kept[i][k]);
		}
	}
	note_flush();
}

/* One file after the power loss: any length of those it had, each sector one of three. */
static void
lose_power_of(unsigned i, unsigned k)
{
	const struct kept *was = &kept[i][k];
	struct kept now = {0};
	uint8_t *out;
	char path[160];
	size_t len;
	int fd;

	file_path(path, sizeof(path), home, i, k ? "index" : "data");
	read_whole(path, &now);
	assert_true(now.len >= was->len);
	len = was->len + roll((uint32_t)(now.len - was->len) + 1);
	out = calloc(1, len + 1);
	assert_non_null(out);
	for (size_t at = 0, n; at < len; at += n) {
		uint32_t which = roll(3);

		n = len - at < 512 ? len - at : 512;
		if (which == 0)
			memcpy(out + at, now.bytes + at, n);
		else if (at < was->len) /* never zeroes: the file system keeps its word */
			memcpy(out + at, was->bytes + at,
				n < was->len - at ? n : was->len - at);
		/* What was flushed of a sector that went on growing stays, too. */
		if (k && at < was->len)
			memcpy(out + at, was->bytes + at,
				n < was->len - at ? n : was->len - at);
	}
	file_path(path, sizeof(path), crashed, i, k ? "index" : "data");
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, out, len), 0);
	close(fd);
	free(out);
	free(now.bytes);
}

static void
what_was_flushed_is_there_and_the_rest_is_old_or_new_or_a_new_place_without_data(
	void **state)
{
	static uint8_t got[DISK_BYTES];
	unsigned early = 0, whole = 0, zeroed = 0;

	(void)state;
	snprintf(home, sizeof(home), "%s", folder);
	snprintf(crashed, sizeof(crashed), "%s/crashed", folder);
	assert_int_equal(mkdir(crashed, 0700), 0);
	open_disk();
	keep_files();
	for (unsigned step = 0; step < 1500; step++) {
		struct err lost = {0};

		if (step % 300 == 299) {
			cut_disk();
			read_whole("/dev/null", &kept[n_segments - 1][0]);
			read_whole("/dev/null", &kept[n_segments - 1][1]);
		} else if (roll(12) == 0) {
			request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0);
			keep_files();
		} else {
			write_something();
		}
		if (step % 5)
			continue;
		for (unsigned i = 0; i < n_segments; i++)
			for (unsigned k = 0; k < 2; k++)
				lose_power_of(i, k);
		export_crashed(crashed, n_segments, got, &lost);
		assert_flushed_is_there(got);
		zeroed += assert_the_rest_is_old_or_new(got);
		if (lost.code)
			early++;
		else
			whole++;
	}
	/* Both kinds were seen. */
	assert_true(early > 20);
	assert_true(whole > 5);
	/* As blk.h says: a block's new place without its data. */
	assert_true(zeroed > 0);
	for (unsigned i = 0; i < SEGMENTS_MAX; i++) {
		free(kept[i][0].bytes);
		free(kept[i][1].bytes);
		kept[i][0] = kept[i][1] = (struct kept){0};
	}
	close_disk();
}

static void
write_file(const char *at, const char *kind, const struct kept *content)
{
	char path[160];
	int fd;

	file_path(path, sizeof(path), at, 0, kind);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, content->bytes, content->len), 0);
	close(fd);
}

/* A block's place is used again: the new record reached the disk, the new data did not. */
static void
flushed_zeroes_do_not_become_what_they_replaced(void **state)
{
	static uint8_t got[DISK_BYTES], secret[SEGMENT_BLOCK];
	struct virtio_blk_range range = {8, SEGMENT_BLOCK / 512, 0};
	struct kept now = {0};
	char path[160];

	(void)state;
	snprintf(home, sizeof(home), "%s", folder);
	snprintf(crashed, sizeof(crashed), "%s/crashed", folder);
	assert_int_equal(mkdir(crashed, 0700), 0);
	for (range.flags = 0; range.flags <= VIRTIO_BLK_RANGE_UNMAP; range.flags++) {
		struct err lost = {0};

		open_disk();
		memset(secret, 0x5e, sizeof(secret));
		request(VIRTIO_BLK_T_OUT, range.sector, secret, sizeof(secret));
		request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0);
		request(VIRTIO_BLK_T_WRITE_ZEROES, 0, &range, sizeof(range));
		request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0);
		keep_files();
		memset(secret, 0x77, sizeof(secret));
		request(VIRTIO_BLK_T_OUT, range.sector, secret, sizeof(secret));
		file_path(path, sizeof(path), home, 0, "index");
		read_whole(path, &now);
		assert_true(now.len > kept[0][1].len);
		write_file(crashed, "data", &kept[0][0]);
		write_file(crashed, "index", &now);
		export_crashed(crashed, n_segments, got, &lost);
		for (unsigned i = 0; i < SEGMENT_BLOCK; i++)
			if (got[range.sector * 512 + i])
				fail_msg("byte %u is 0x%x, flags %u", i,
					got[range.sector * 512 + i], range.flags);
		close_disk();
		for (unsigned k = 0; k < 2; k++) {
			file_path(path, sizeof(path), home, 0, k ? "index" : "data");
			assert_int_equal(unlink(path), 0);
			free(kept[0][k].bytes);
			kept[0][k] = (struct kept){0};
		}
	}
	free(now.bytes);
}

/*
 * A real file system.
 */

#define IMAGE_MIB 32
#define ROUNDS 12

static char image[96], copy[96], mounted[96];

static int command(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int
command(const char *fmt, ...)
{
	char line[512];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	snprintf(line + n, sizeof(line) - (size_t)n, " >%s/log 2>&1", folder);
	return system(line);
}

/* The file system's journal is written, as it is every few seconds: what it knows of all
 * files, but not the data that has no place on the device yet. */
static void
commit_journal(void)
{
	char path[160];
	int fd;

	snprintf(path, sizeof(path), "%s/other", home);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "x", 1), 1);
	assert_int_equal(fsync(fd), 0);
	close(fd);
}

/* The bytes of the device now: what its file system has written so far. One instant: it
 * is copied again until nothing has changed since the last time. */
static void
copy_image(void)
{
	static uint8_t now[IMAGE_MIB << 20], again[IMAGE_MIB << 20];
	int from = open(image, O_RDONLY | O_CLOEXEC);
	int to = open(copy, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(from >= 0 && to >= 0);
	do {
		assert_int_equal(io_pread_full(from, now, sizeof(now), 0), 0);
		assert_int_equal(io_pread_full(from, again, sizeof(again), 0), 0);
	} while (memcmp(now, again, sizeof(now)) != 0);
	assert_int_equal(io_write_full(to, now, sizeof(now)), 0);
	close(from);
	close(to);
}

static void
lose_power_on_a_real_device(void)
{
	static uint8_t got[DISK_BYTES];
	unsigned early = 0;
	pthread_t thread;

	if (geteuid() != 0) {
		print_message("only root may mount a file system\n");
		skip();
	}
	snprintf(image, sizeof(image), "%s/image", folder);
	snprintf(copy, sizeof(copy), "%s/copy", folder);
	snprintf(home, sizeof(home), "%s/mnt", folder);
	snprintf(mounted, sizeof(mounted), "%s/after", folder);
	assert_int_equal(mkdir(home, 0700) | mkdir(mounted, 0700), 0);
	if (command("truncate -s %uM %s && mkfs.ext4 -q %s", IMAGE_MIB, image, image) ||
		command("mount -o loop %s %s", image, home)) {
		print_message("this host mounts no loop device\n");
		skip();
	}
	open_disk();
	if (has_thread) {
		blk.waker = (struct blk_waker){.wake = never_wakes};
		atomic_store(&thread_ends, false);
		assert_int_equal(pthread_create(&thread, NULL, make_rounds, NULL), 0);
	}
	for (unsigned round = 0; round < ROUNDS; round++) {
		unsigned n, before = 1 + roll(30), after = roll(60);
		struct err lost = {0};

		for (unsigned i = 0; i < before; i++)
			write_something();
		if (has_thread) {
			/* What is written while it runs may be durable or not. */
			note_flush();
			begin_flush();
			for (unsigned i = 0; i < 3 || flushing; i++) {
				if (i < 20)
					write_something();
				else if (!answered())
					sched_yield();
			}
		} else {
			request(VIRTIO_BLK_T_FLUSH, 0, NULL, 0);
			note_flush();
		}
		if (round % 6 == 5)
			cut_disk();
		/* Written back by the host in an order of its own: the data of some of
		 * these, or the index, or neither. */
		for (unsigned i = 0; i < after; i++) {
			write_something();
			if (i == after / 2 && round % 3)
				(void)sync_file_range(
					round % 3 == 1 ? blk.segments[blk.n_segments - 1]
								 .index_fd
						       : blk.segments[blk.n_segments - 1]
								 .data_fd,
					0, 0,
					SYNC_FILE_RANGE_WAIT_BEFORE |
						SYNC_FILE_RANGE_WRITE |
						SYNC_FILE_RANGE_WAIT_AFTER);
		}
		if (round % 2)
			commit_journal();
		copy_image();
		n = n_segments;
		/* As after the power came back: the journal is replayed. */
		assert_int_equal(command("mount -o loop %s %s", copy, mounted), 0);
		/* A file that was made after the last commit of the journal is not
		 * there; then nothing in it was flushed. */
		for (unsigned i = 0; i < n; i++) {
			char path[160];

			file_path(path, sizeof(path), mounted, i, "index");
			if (access(path, F_OK) < 0)
				n = i;
		}
		export_crashed(mounted, n, got, &lost);
		assert_int_equal(command("umount %s", mounted), 0);
		assert_flushed_is_there(got);
		assert_the_rest_is_old_or_new(got);
		early += lost.code != 0;
	}
	/* Else no copy was of the kind that this is about. */
	assert_true(early > 0);
	if (has_thread) {
		atomic_store(&thread_ends, true);
		pthread_join(thread, NULL);
	}
	close_disk();
	assert_int_equal(command("umount %s", home), 0);
}

static void
what_was_flushed_is_on_a_real_device_without_a_sync(void **state)
{
	(void)state;
	has_thread = false;
	lose_power_on_a_real_device();
}

static void
what_a_thread_flushed_while_the_guest_wrote_on_is_on_a_real_device(void **state)
{
	(void)state;
	has_thread = true;
	lose_power_on_a_real_device();
}

static int
setup(void **state)
{
	(void)state;
	/* In memory, where there is room: a sync of the host's own disk proves nothing. */
	strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/test_blk_power.XXXXXX"
						     : "/tmp/test_blk_power.XXXXXX");
	assert_non_null(mkdtemp(folder));
	seed = 4711;
	return 0;
}

static int
teardown(void **state)
{
	(void)state;
	command("umount %s/after", folder);
	command("umount %s/mnt", folder);
	return command("rm -rf %s", folder);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(what_was_flushed_is_there_and_the_rest_is_old_or_new_or_a_new_place_without_data),
		T(flushed_zeroes_do_not_become_what_they_replaced),
		T(what_was_flushed_is_on_a_real_device_without_a_sync),
		T(what_a_thread_flushed_while_the_guest_wrote_on_is_on_a_real_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
