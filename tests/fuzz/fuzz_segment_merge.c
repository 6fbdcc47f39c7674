/*
 * Segments that a hostile VMM left, merged: whatever their indexes say, either the merge is
 * refused with a sentence, and so is a replay of the same chain, or the merged segment is the same
 * disk as they are, with each block once and each record in its place.
 *
 * The input is up to four segments: a byte for the blocks of data, a byte for the number of
 * records, and for each record block and place (16 bits), count, operation, and what to spoil.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common/io.h"
#include "vmm/segment_merge.h"

#define DISK_MIB 2u
#define DISK_BYTES (DISK_MIB << 20)
#define SEGMENTS 4u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

struct input {
	const uint8_t *p;
	size_t left;
};

static uint8_t
byte(struct input *in)
{
	return in->left ? (in->left--, *in->p++) : 0;
}

static uint16_t
word(struct input *in)
{
	uint16_t low = byte(in);

	return (uint16_t)(low | byte(in) << 8);
}

struct file {
	int fd[2];
	char path[2][32];
};

static void
file_make(struct file *f)
{
	for (unsigned i = 0; i < 2; i++) {
		f->fd[i] = memfd_create("segment", MFD_CLOEXEC);
		MUST(f->fd[i] >= 0);
		snprintf(f->path[i], sizeof(f->path[0]), "/proc/self/fd/%d", f->fd[i]);
	}
}

static void
file_done(struct file *f)
{
	close(f->fd[0]);
	close(f->fd[1]);
}

static void
fill(struct input *in, unsigned which, const struct file *f, int64_t *ret_records)
{
	uint8_t block[SEGMENT_BLOCK];
	unsigned blocks = byte(in), n = byte(in) % 40;

	for (unsigned i = 0; i < blocks; i++) {
		memset(block, (int)(which * 64 + i + 1), sizeof(block));
		MUST(io_pwrite_full(f->fd[0], block, sizeof(block),
			     (uint64_t)i * sizeof(block)) == 0);
	}
	for (unsigned i = 0; i < n; i++) {
		uint16_t at_block = word(in), at = word(in);
		uint8_t count = byte(in), op = byte(in), spoil = byte(in);
		struct segment_record r = segment_record_make((enum segment_op)(op % 4),
			at_block % 600, at % 260, count % 40);

		if (spoil == 1)
			((uint8_t *)&r)[at % sizeof(r)] ^= (uint8_t)(1u << count % 8);
		else if (spoil == 2)
			r = segment_record_make((enum segment_op)(op % 4),
				(uint64_t)at_block << 48 | at, (uint64_t)at << 50, UINT32_MAX);
		MUST(io_pwrite_full(f->fd[1], &r, sizeof(r), i * sizeof(r)) == 0);
	}
	*ret_records = byte(in) % 8 == 0 ? (int64_t)n + byte(in) % 3 - 1 : (int64_t)n;
	if (*ret_records < 0)
		*ret_records = 0;
}

static int
whole(const struct disk_segment *segments, size_t n, uint8_t *dst)
{
	const struct disk_chain chain = {.segments = segments, .n_segments = n};
	int fd = memfd_create("disk", MFD_CLOEXEC);
	struct err e;
	int r;

	MUST(fd >= 0);
	r = disk_export(&chain, DISK_MIB, fd, NULL, &e);
	if (r == 0)
		MUST(io_pread_full(fd, dst, DISK_BYTES, 0) == 0);
	close(fd);
	return r;
}

static void
check_index(const struct file *f, const struct segment_merged *m)
{
	uint64_t next = 0, at = 0;

	for (uint64_t i = 0; i < m->records; i++) {
		struct segment_record r;

		MUST(io_pread_full(f->fd[1], &r, sizeof(r), i * sizeof(r)) == 0);
		MUST(segment_record_ok(&r) && r.count && r.block >= next);
		next = r.block + r.count;
		if (r.op == SEGMENT_DATA) {
			MUST(r.at == at);
			at += r.count;
		}
	}
	MUST(next <= DISK_BYTES / SEGMENT_BLOCK && at * SEGMENT_BLOCK == m->data_bytes);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t was[DISK_BYTES], is[DISK_BYTES];
	struct disk_segment run[SEGMENTS], one;
	struct file files[SEGMENTS], merged;
	struct input in = {data, size};
	struct segment_merged said;
	struct segment_merge m = {.run = run, .disk_mib = DISK_MIB};
	struct err e = {0};
	int r, replay;

	m.n_run = 1 + byte(&in) % SEGMENTS;
	for (unsigned i = 0; i < m.n_run; i++) {
		run[i] = (struct disk_segment){files[i].path[0], files[i].path[1], 0};
		file_make(&files[i]);
		fill(&in, i, &files[i], &run[i].records);
	}
	file_make(&merged);
	m.data_fd = merged.fd[0];
	m.index_fd = merged.fd[1];
	r = segment_merge(&m, &said, &e);
	replay = whole(run, m.n_run, was);
	MUST((r == 0) == (replay == 0));
	if (r < 0) {
		MUST(e.msg[0]);
	} else {
		one = (struct disk_segment){
			merged.path[0], merged.path[1], (int64_t)said.records};
		MUST(whole(&one, 1, is) == 0 && memcmp(was, is, DISK_BYTES) == 0);
		check_index(&merged, &said);
	}
	for (unsigned i = 0; i < m.n_run; i++)
		file_done(&files[i]);
	file_done(&merged);
	return 0;
}
