/* Runs of segments merged: the disk stays what it is. */
#include "vmm/segment_merge.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"

#define DISK_MIB 4u
#define BLOCKS (DISK_MIB * 256u)
#define LINKS 12u

static unsigned n_later;
static char folder[64], names[LINKS + 1][2][96];
static struct disk_segment links[LINKS + 1];
static unsigned n_links;
static uint32_t seed;

static uint32_t
draw(uint32_t below)
{
	seed = seed * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)seed * below >> 32);
}

static int
setup(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/test_segment_merge.XXXXXX");
	assert_non_null(mkdtemp(folder));
	n_links = n_later = 0;
	seed = 1;
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

static int
make_file(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

/* A segment of n records, written as a VMM would: data blocks are appended, and say which
 * segment they are of and in which place. */
static void
add_link(unsigned n, unsigned zeroes_of_ten)
{
	struct disk_segment *s = &links[n_links];
	uint8_t block[SEGMENT_BLOCK];
	uint64_t at = 0;
	int data, index;

	for (unsigned i = 0; i < 2; i++)
		snprintf(names[n_links][i], sizeof(names[0][0]), "%s/%u.%s", folder, n_links,
			i ? "index" : "data");
	data = make_file(names[n_links][0]);
	index = make_file(names[n_links][1]);
	for (unsigned i = 0; i < n; i++) {
		uint32_t count = 1 + draw(40), first = draw(BLOCKS - count + 1);
		bool zero = draw(10) < zeroes_of_ten;
		struct segment_record r = segment_record_make(
			zero ? SEGMENT_ZERO : SEGMENT_DATA, first, zero ? 0 : at, count);

		for (uint32_t k = 0; k < count && !zero; k++, at++) {
			memset(block, (int)(n_links * 16 + at % 251 + 1), sizeof(block));
			memcpy(block, &at, sizeof(at));
			assert_int_equal(io_pwrite_full(data, block, sizeof(block),
						 at * SEGMENT_BLOCK),
				0);
		}
		assert_int_equal(io_pwrite_full(index, &r, sizeof(r), i * sizeof(r)), 0);
	}
	close(data);
	close(index);
	*s = (struct disk_segment){names[n_links][0], names[n_links][1], (int64_t)n};
	n_links++;
}

static uint8_t *
whole_disk(const struct disk_segment *segments, size_t n)
{
	const struct disk_chain chain = {.segments = segments, .n_segments = n};
	uint8_t *ret = malloc(DISK_MIB << 20);
	char path[96];
	struct err e;
	int fd;

	snprintf(path, sizeof(path), "%s/whole", folder);
	fd = make_file(path);
	if (disk_export(&chain, DISK_MIB, fd, NULL, &e) < 0)
		fail_msg("%s", e.msg);
	assert_int_equal(io_pread_full(fd, ret, DISK_MIB << 20, 0), 0);
	close(fd);
	return ret;
}

static int
merge_run(unsigned from, unsigned n, struct segment_merged *ret, struct err *e)
{
	struct segment_merge m = {.run = &links[from],
		.n_run = n,
		.n_later = n_later,
		.disk_mib = DISK_MIB,
		.data_fd = -1};
	int r;

	for (unsigned i = 0; i < 2; i++)
		snprintf(names[LINKS][i], sizeof(names[0][0]), "%s/merged.%s", folder,
			i ? "index" : "data");
	m.data_fd = make_file(names[LINKS][0]);
	m.index_fd = make_file(names[LINKS][1]);
	r = segment_merge(&m, ret, e);
	close(m.data_fd);
	close(m.index_fd);
	links[LINKS] = (struct disk_segment){names[LINKS][0], names[LINKS][1],
		r == 0 ? (int64_t)ret->records : 0};
	return r;
}

static void
the_disk_is_the_same_with_any_run_merged(void **state)
{
	struct disk_segment with[LINKS];
	struct segment_merged merged;
	struct err e;

	(void)state;
	for (unsigned i = 0; i < LINKS; i++)
		add_link(i == 5 ? 0 : 1 + draw(30), i % 4 == 3 ? 6 : 2);
	for (unsigned from = 0; from < LINKS; from++)
		for (unsigned n = 1; from + n <= LINKS; n += 1 + draw(3)) {
			uint8_t *was, *is;
			size_t k = 0;

			if (merge_run(from, n, &merged, &e) < 0)
				fail_msg("%s", e.msg);
			for (unsigned i = 0; i < from; i++)
				with[k++] = links[i];
			with[k++] = links[LINKS];
			for (unsigned i = from + n; i < LINKS; i++)
				with[k++] = links[i];
			was = whole_disk(links, LINKS);
			is = whole_disk(with, k);
			assert_memory_equal(was, is, DISK_MIB << 20);
			free(was);
			free(is);
			/* Of the run alone too: nothing of it was lost that lies hidden now. */
			was = whole_disk(&links[from], n);
			is = whole_disk(&links[LINKS], 1);
			assert_memory_equal(was, is, DISK_MIB << 20);
			free(was);
			free(is);
		}
}

static void
a_block_is_copied_once_and_neighbours_share_a_record(void **state)
{
	struct segment_record r[3];
	struct segment_merged merged;
	struct stat st;
	struct err e;
	int fd;

	(void)state;
	for (unsigned i = 0; i < 4; i++)
		add_link(0, 0);
	/* Blocks 0-99 by the first, 50-149 by the second, zeroes at 60-69 by the third, all in
	 * pieces of ten. */
	for (unsigned s = 0; s < 3; s++) {
		unsigned n = s == 2 ? 1 : 10;

		fd = open(names[s][1], O_RDWR | O_CLOEXEC);
		for (unsigned i = 0; i < n; i++) {
			r[0] = segment_record_make(s == 2 ? SEGMENT_ZERO : SEGMENT_DATA,
				(s == 2 ? 60 : s * 50) + i * 10, s == 2 ? 0 : i * 10, 10);
			assert_int_equal(
				io_pwrite_full(fd, r, sizeof(r[0]), i * sizeof(r[0])), 0);
		}
		close(fd);
		assert_int_equal(truncate(names[s][0], s == 2 ? 0 : 100 * SEGMENT_BLOCK), 0);
		links[s].records = n;
	}
	assert_int_equal(merge_run(0, 4, &merged, &e), 0);
	assert_int_equal(merged.records, 3);
	assert_int_equal(merged.data_bytes, 140 * SEGMENT_BLOCK);
	assert_int_equal(merged.read_bytes, 140 * SEGMENT_BLOCK);
	assert_int_equal(stat(names[LINKS][0], &st), 0);
	assert_int_equal(st.st_size, merged.data_bytes);
	fd = open(names[LINKS][1], O_RDONLY | O_CLOEXEC);
	assert_int_equal(io_pread_full(fd, r, sizeof(r), 0), 0);
	close(fd);
	assert_int_equal(r[0].block, 0);
	assert_int_equal(r[0].count, 60);
	assert_int_equal(r[1].op, SEGMENT_ZERO);
	assert_int_equal(r[1].block, 60);
	assert_int_equal(r[1].count, 10);
	assert_int_equal(r[2].block, 70);
	assert_int_equal(r[2].at, 60);
	assert_int_equal(r[2].count, 80);
	for (unsigned i = 0; i < 3; i++)
		assert_true(segment_record_ok(&r[i]));
}

static void
what_later_segments_decide_is_counted_and_left_out(void **state)
{
	uint64_t live[LINKS], sum = 0;
	struct disk_segment with[LINKS];
	struct segment_merged merged;
	struct disk_chain all = {.segments = links};
	uint8_t *was, *is;
	struct err e;

	(void)state;
	for (unsigned i = 0; i < LINKS; i++)
		add_link(20, 3);
	all.n_segments = n_links;
	assert_int_equal(disk_count_live(&all, DISK_MIB, live, &e), 0);
	for (unsigned i = 0; i < LINKS; i++)
		sum += live[i];
	assert_true(sum <= BLOCKS && sum > BLOCKS / 2);
	was = whole_disk(links, LINKS);
	for (unsigned i = 0; i + 1 < LINKS; i++) {
		uint64_t of_merged;

		n_later = LINKS - 1 - i;
		if (merge_run(i, 1, &merged, &e) < 0)
			fail_msg("%s", e.msg);
		memcpy(with, links, sizeof(with));
		with[i] = links[LINKS];
		is = whole_disk(with, LINKS);
		assert_memory_equal(was, is, DISK_MIB << 20);
		free(is);
		/* All that is in it is live. */
		all = (struct disk_chain){.segments = &links[LINKS], .n_segments = 1};
		assert_int_equal(disk_count_live(&all, DISK_MIB, &of_merged, &e), 0);
		assert_int_equal(of_merged, live[i]);
		/* One that decides nothing may as well go. */
		if (live[i])
			continue;
		memmove(&with[i], &with[i + 1], (LINKS - 1 - i) * sizeof(with[0]));
		is = whole_disk(with, LINKS - 1);
		assert_memory_equal(was, is, DISK_MIB << 20);
		free(is);
	}
	free(was);
}

static void
records_beyond_a_cut_do_not_count(void **state)
{
	struct segment_merged merged;
	uint8_t *was, *is;
	struct err e;

	(void)state;
	add_link(20, 2);
	add_link(20, 2);
	links[0].records = 7;
	links[1].records = 11;
	assert_int_equal(merge_run(0, 2, &merged, &e), 0);
	was = whole_disk(links, 2);
	is = whole_disk(&links[LINKS], 1);
	assert_memory_equal(was, is, DISK_MIB << 20);
	free(was);
	free(is);
}

static bool
stop_at_once(void *ctx)
{
	++*(unsigned *)ctx;
	return true;
}

static void
what_cannot_be_merged_is_refused_with_a_sentence(void **state)
{
	const struct segment_record bad = segment_record_make(SEGMENT_DATA, BLOCKS, 0, 1);
	struct segment_merged merged;
	struct segment_merge m = {.run = links, .disk_mib = DISK_MIB, .data_fd = -1};
	unsigned asked = 0;
	struct err e;
	int fd;

	(void)state;
	add_link(20, 2);
	add_link(20, 2);
	assert_int_equal(segment_merge(&m, &merged, &e), -EINVAL);
	m.n_run = SEGMENT_MERGE_MAX + 1;
	assert_int_equal(segment_merge(&m, &merged, &e), -EINVAL);
	/* Given up. */
	m.n_run = 2;
	snprintf(names[LINKS][0], sizeof(names[0][0]), "%s/stopped", folder);
	m.data_fd = make_file(names[LINKS][0]);
	m.index_fd = make_file(names[LINKS][0]);
	m.stop = stop_at_once;
	m.ctx = &asked;
	assert_int_equal(segment_merge(&m, &merged, &e), -ECANCELED);
	assert_int_equal(asked, 1);
	close(m.data_fd);
	close(m.index_fd);
	/* Fewer records than the cut says; a damaged one; data that ends; a file that is gone. */
	links[1].records = 21;
	assert_int_equal(merge_run(0, 2, &merged, &e), -EBADMSG);
	assert_non_null(strstr(e.msg, names[1][1]));
	links[1].records = 20;
	fd = open(names[1][1], O_RDWR | O_CLOEXEC);
	assert_int_equal(io_pwrite_full(fd, &bad, sizeof(bad), 9 * sizeof(bad)), 0);
	close(fd);
	assert_int_equal(merge_run(0, 2, &merged, &e), -EBADMSG);
	assert_non_null(strstr(e.msg, "record 9"));
	assert_int_equal(merge_run(0, 1, &merged, &e), 0);
	assert_int_equal(truncate(names[0][0], SEGMENT_BLOCK), 0);
	assert_int_equal(merge_run(0, 1, &merged, &e), -EBADMSG);
	assert_int_equal(unlink(names[0][0]), 0);
	assert_int_equal(merge_run(0, 1, &merged, &e), -ENOENT);
	assert_non_null(strstr(e.msg, names[0][0]));
}

/* A full disk, by the limit of a file's size. */
static void
a_full_disk_ends_a_merge_and_the_run_stays(void **state)
{
	struct rlimit was, small;
	struct segment_merged merged;
	uint8_t *before, *after;
	struct err e;
	int r;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	for (unsigned i = 0; i < 4; i++)
		add_link(30, 1);
	before = whole_disk(links, 4);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	for (rlim_t limit = 0; limit < 3u << 20; limit += 700 * 1024 + 32) {
		small = (struct rlimit){limit, was.rlim_max};
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
		r = merge_run(0, 4, &merged, &e);
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
		if (r == 0)
			break;
		assert_int_equal(r, -EFBIG);
		after = whole_disk(links, 4);
		assert_memory_equal(before, after, DISK_MIB << 20);
		free(after);
	}
	free(before);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(the_disk_is_the_same_with_any_run_merged),
		T(a_block_is_copied_once_and_neighbours_share_a_record),
		T(what_later_segments_decide_is_counted_and_left_out),
		T(records_beyond_a_cut_do_not_count),
		T(what_cannot_be_merged_is_refused_with_a_sentence),
		T(a_full_disk_ends_a_merge_and_the_run_stays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
