/*
 * A tar stream as the host takes it from a guest, which may be hostile. The first byte
 * chooses what was asked for; the rest is the stream, whose checksums are made right
 * where a header could stand, so that the fuzzer gets behind them. Whatever comes: only
 * the one name appears; what the user had is as it was; nothing but files, folders and
 * links is made, none with set-user-id; no link leads out; nothing temporary is left.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/tar.h"
#include "common/wire/tar_format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* <folder>/beside is nobody's; <folder>/in is where the user is, with a file `mine` and a
 * link `way` of theirs. */
static char folder[64], in[80], path[160], top[160];

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	/* Made and removed for each input: libFuzzer ends without a chance to clean up. */
	snprintf(folder, sizeof(folder), "/dev/shm/pando-fuzz-tar-%d", (int)getpid());
	snprintf(in, sizeof(in), "%s/in", folder);
	return 0;
}

static void
put_file(const char *name)
{
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, "mine", 4) != 4)
		abort();
	close(fd);
}

static void
check_file(const char *name)
{
	struct stat st;
	char text[8];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || st.st_nlink != 1 ||
		read(fd, text, sizeof(text)) != 4 || memcmp(text, "mine", 4) != 0)
		abort();
	close(fd);
}

static int
check_entry(const char *name, const struct stat *st, int type, struct FTW *at)
{
	char real[4096];
	const char *base = name + at->base;

	(void)type;
	if (!S_ISREG(st->st_mode) && !S_ISDIR(st->st_mode) && !S_ISLNK(st->st_mode))
		abort();
	if ((S_ISREG(st->st_mode) || S_ISDIR(st->st_mode)) && (st->st_mode & 06000))
		abort();
	/* A stream may have such a name itself, but not one of this length. */
	if (strncmp(base, ".pando-", 7) == 0 && strlen(base) == 7 + 16)
		abort();
	if (S_ISLNK(st->st_mode) && realpath(name, real)) {
		size_t len = strlen(top);

		if (strncmp(real, top, len) != 0 || (real[len] && real[len] != '/'))
			abort();
	}
	return 0;
}

/* The names in a folder that are not among those. */
static int
others(const char *where, const char *const *known)
{
	cleanup_closedir DIR *d = opendir(where);
	struct dirent *de;
	int n = 0;

	while (d && (de = readdir(d))) {
		const char *const *k = known;

		while (*k && strcmp(*k, de->d_name) != 0)
			k++;
		n += !*k;
	}
	return n;
}

static void
mend_checksums(uint8_t *data, size_t size)
{
	for (size_t at = 0; at + TAR_BLOCK <= size; at += TAR_BLOCK) {
		struct tar_header h;
		char digits[12];

		memcpy(&h, data + at, sizeof(h));
		if (memcmp(h.magic, "ustar", 5) != 0)
			continue;
		snprintf(digits, sizeof(digits), "%06o", tar_checksum(&h));
		memcpy(h.chksum, digits, 7);
		h.chksum[7] = ' ';
		memcpy(data + at, &h, sizeof(h));
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* What was asked for, where it goes below `in`, and what may appear there. */
	static const struct {
		const char *name, *dest, *appears;
	} asks[] = {
		{"tree", "", "tree"},
		{"tree", "/new", "new"},
		{".", "/new", "new"},
		{".", "/there", "there"},
	};
	const char *const here[] = {".", "..", "beside", "in", NULL};
	const char *within[] = {".", "..", "mine", "way", "there", NULL, NULL};
	struct tar_unpack_opts opts = {.dest = path, .untrusted = true};
	cleanup_free uint8_t *copy = malloc(size + 1);
	struct tar_unpack *u;
	struct err e = {0};
	size_t cut;
	unsigned ask;
	int r;

	if (size < 2 || size > 65536)
		return 0;
	ask = data[0] & 3;
	cut = data[0] & 4 ? 700 : size;
	memcpy(copy, data + 1, size - 1);
	mend_checksums(copy, --size);
	mkdir(folder, 0700);
	mkdir(in, 0700);
	put_file("beside");
	put_file("in/mine");
	snprintf(path, sizeof(path), "%s/there", in);
	mkdir(path, 0700);
	snprintf(path, sizeof(path), "%s/way", in);
	if (symlink("..", path))
		abort();

	snprintf(path, sizeof(path), "%s%s", in, asks[ask].dest);
	opts.name = asks[ask].name;
	if (tar_unpack_open(&opts, &u, &e))
		abort();
	r = 0;
	for (size_t at = 0; !r && at < size; at += cut)
		r = tar_unpack_feed(u, copy + at, size - at < cut ? size - at : cut, &e);
	if (!r)
		r = tar_unpack_finish(u, &e);
	if (r > 0 || (r < 0 && (e.code != r || !*e.msg)))
		abort();
	tar_unpack_close(u);

	check_file("beside");
	check_file("in/mine");
	within[5] = asks[ask].appears;
	if (others(folder, here) || others(in, within))
		abort();
	snprintf(top, sizeof(top), "%s/%s", in, asks[ask].appears);
	nftw(top, check_entry, 16, FTW_PHYS);
	if (io_remove_tree(folder, NULL))
		abort();
	return 0;
}
