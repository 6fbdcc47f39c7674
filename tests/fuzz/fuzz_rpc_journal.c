/*
 * A journal of any bytes: two bytes say how long the index is, the rest is the data. The
 * reader must answer for each line or say that it is damaged; the writer must take it
 * over or refuse it, and go on with lines that the reader then finds.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest-agent/supervisor/rpc_journal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int dir = -1;
static char folder[] = "/tmp/fuzz-journal-XXXXXX";

static void
clean_up(void)
{
	unlinkat(dir, "out", 0);
	unlinkat(dir, "out.index", 0);
	rmdir(folder);
}

static void
put(const char *name, const uint8_t *data, size_t len)
{
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || (len && write(fd, data, len) != (ssize_t)len))
		abort();
	close(fd);
}

/* Reads all of it; the count of lines, or -1 when it is damaged. */
static int64_t
read_all(uint64_t *ret_end)
{
	struct journal_reader r = JOURNAL_READER_INIT;
	struct journal_bounds b;
	int64_t lines = 0;

	if (journal_reader_open(dir, "out", &r, NULL))
		abort();
	if (journal_bounds(&r, &b, NULL)) {
		journal_reader_done(&r);
		return -1;
	}
	for (uint64_t n = b.first; n < b.lines; n++) {
		struct journal_record rec;
		uint8_t byte;
		int got = journal_record(&r, n, &rec, NULL);

		if (got == -EBADMSG)
			lines = -1;
		if (got < 0 || lines < 0)
			break;
		if (got != 1 || !rec.len || rec.len > JOURNAL_LINE_MAX ||
			journal_read(&r, n, &rec, rec.len - 1, &byte, 1, NULL))
			abort();
		lines++;
	}
	for (uint64_t at = 0; at < 64; at++) {
		uint64_t number;

		if (!journal_seek(&r, b.start + at, &number, NULL) &&
			(number < b.first || number > b.lines))
			abort();
	}
	*ret_end = b.end;
	journal_reader_done(&r);
	return lines;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct journal j = JOURNAL_INIT;
	uint64_t end = 0, was = 0;
	size_t index_len;
	int64_t lines;

	if (dir < 0) {
		if (!mkdtemp(folder) ||
			(dir = open(folder, O_RDONLY | O_DIRECTORY)) < 0 ||
			atexit(clean_up))
			abort();
	}
	if (size < 2)
		return 0;
	index_len = (size_t)(data[0] | data[1] << 8);
	data += 2;
	size -= 2;
	if (index_len > size)
		index_len = size;
	put("out.index", data, index_len);
	put("out", data + index_len, size - index_len);
	read_all(&was);
	if (journal_open(dir, "out", &j, NULL))
		return 0;
	if (j.indexed > j.end || j.first > j.lines)
		abort();
	if (journal_index(&j, NULL, NULL) || journal_tear(&j) ||
		journal_put(&j, "one\ntwo\n", 8) || journal_index(&j, NULL, NULL) ||
		j.indexed != j.end)
		abort();
	journal_done(&j);
	lines = read_all(&end);
	if (lines >= 0 && (lines < 2 || end != j.end))
		abort();
	return 0;
}
