#include "host/commit/disk_changes.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "vmm/blockmap.h"

_Static_assert(STORE_PAGE == SEGMENT_BLOCK, "a block is a page");

#define BASE_TEXT_MAX (PATHS_MAX + 128)
#define ENTRIES_IN_PAGE (4096 / sizeof(uint64_t))

void
disk_changes_done(struct disk_changes *d)
{
	cleanup_close_fn(&d->base_fd);
	cleanup_close_fn(&d->data_fd);
	cleanup_close_fn(&d->map_fd);
	d->base_fd = d->data_fd = d->map_fd = -1;
}

/* Blocks one after the other, alike. */
struct run {
	uint64_t block;
	uint32_t n;
	bool zero;
};

struct runs {
	struct run *v; /* owned */
	size_t n, room;
	uint64_t blocks, blocks_max;
};

static int
add_block(void *ctx, uint64_t block, const struct store_hash *name, struct err *e)
{
	const bool zero = hash_is_zero(name);
	struct runs *l = ctx;
	struct run *last = l->n ? &l->v[l->n - 1] : NULL;

	if (++l->blocks > l->blocks_max)
		return 1; /* too many */
	if (last && last->zero == zero && last->block + last->n == block &&
		last->n < UINT32_MAX) {
		last->n++;
		return 0;
	}
	if (l->n == l->room) {
		size_t room = l->room ? 2 * l->room : 256;
		struct run *more = reallocarray(l->v, room, sizeof(*more));

		if (!more)
			return err_set(e, -ENOMEM, "out of memory");
		l->v = more;
		l->room = room;
	}
	l->v[l->n++] = (struct run){block, 1, zero};
	return 0;
}

static bool
is_same_file(const struct db_base *b, const struct stat *st)
{
	return S_ISREG(st->st_mode) && st->st_dev == b->dev && st->st_ino == b->inode &&
	       (uint64_t)st->st_size == b->size &&
	       (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec == b->mtime_ns;
}

/* The base that the disk differs least from, and where. NULL: none will do. */
static const struct db_base *
nearest(struct store *s, const struct store_tree *disk, const struct db_base *bases,
	size_t n_bases, struct runs *ret)
{
	uint64_t max = disk->length / STORE_PAGE / DISK_CHANGES_PART;
	const struct db_base *best = NULL;

	for (size_t i = 0; i < n_bases; i++) {
		const struct db_base *b = &bases[i];
		struct runs l = {.blocks_max = max};
		struct stat st;

		/* A base whose pages the store has lost is none: that is no error here. */
		if (b->tree.length > disk->length || stat(b->path, &st) < 0 ||
			!is_same_file(b, &st) ||
			store_tree_names(s, disk, &b->tree, add_block, &l, NULL) != 0) {
			free(l.v);
			continue;
		}
		free(ret->v);
		*ret = l;
		best = b;
		max = l.blocks ? l.blocks - 1 : 0;
		if (!l.blocks)
			break;
	}
	return best;
}

static int
path_of(const char *folder, const char *file, char dst[static PATHS_MAX], struct err *e)
{
	return paths_format(dst, PATHS_MAX, e, "%s/%s", folder, file);
}

/* A new file, which has its name when it is whole: end_file(). */
static int
begin_file(const char *folder, const char *name, int *ret_fd, struct err *e)
{
	char part[PATHS_MAX];
	int r = paths_format(part, sizeof(part), e, "%s/%s.part", folder, name);

	if (r < 0)
		return r;
	unlink(part);
	*ret_fd = open(part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	return *ret_fd < 0 ? err_sys(e, -errno, "making %.300s", part) : 0;
}

static int
end_file(const char *folder, const char *name, int fd, struct err *e)
{
	char path[PATHS_MAX], part[PATHS_MAX];
	int r = path_of(folder, name, path, e);

	if (r == 0)
		r = paths_format(part, sizeof(part), e, "%s/%s.part", folder, name);
	if (r == 0 && (fchmod(fd, 0400) < 0 || rename(part, path) < 0))
		r = err_sys(e, -errno, "%.300s", path);
	return r;
}

static int
write_data(struct store *s, const struct store_tree *disk, const struct db_base *base,
	const char *folder, struct err *e)
{
	cleanup_close int fd = -1;
	int r = begin_file(folder, "disk.data", &fd, e);

	/* What the file has is holes; what the base has is not looked at in it. */
	if (r == 0)
		r = store_tree_to_file(s, disk, &base->tree, fd, e);
	return r < 0 ? r : end_file(folder, "disk.data", fd, e);
}

static int
write_index(const struct runs *l, const char *folder, struct err *e)
{
	cleanup_free struct segment_record *records = calloc(l->n + 1, sizeof(*records));
	cleanup_close int fd = -1;
	int r;

	if (!records)
		return err_set(e, -ENOMEM, "out of memory");
	for (size_t i = 0; i < l->n; i++) {
		const struct run *run = &l->v[i];

		records[i] = segment_record_make(run->zero ? SEGMENT_ZERO : SEGMENT_DATA,
			run->block, run->zero ? 0 : run->block, run->n);
	}
	r = begin_file(folder, "disk.index", &fd, e);
	if (r == 0 && (r = io_write_full(fd, records, l->n * sizeof(*records))) < 0)
		err_sys(e, r, "%.300s/disk.index", folder);
	return r < 0 ? r : end_file(folder, "disk.index", fd, e);
}

/* Only the pages of it that have entries are written. */
static int
write_map(const struct runs *l, uint64_t blocks, const char *folder, struct err *e)
{
	uint64_t page[ENTRIES_IN_PAGE] = {0}, at = 0;
	cleanup_close int fd = -1;
	bool full = false;
	int r = begin_file(folder, "disk.map", &fd, e);

	if (r == 0 && ftruncate(fd, (off_t)((blocks + ENTRIES_IN_PAGE - 1) / ENTRIES_IN_PAGE *
					    sizeof(page))) < 0)
		r = err_sys(e, -errno, "%.300s/disk.map", folder);
	for (size_t i = 0; i <= l->n && r == 0; i++) {
		const uint64_t first = i < l->n ? l->v[i].block : UINT64_MAX;
		const uint64_t end = i < l->n ? first + l->v[i].n : UINT64_MAX;

		for (uint64_t b = first; r == 0; b++) {
			if (full && (i == l->n || b / ENTRIES_IN_PAGE != at)) {
				r = io_pwrite_full(fd, page, sizeof(page), at * sizeof(page));
				if (r < 0)
					err_sys(e, r, "%.300s/disk.map", folder);
				memset(page, 0, sizeof(page));
				full = false;
			}
			if (i == l->n || b == end)
				break;
			at = b / ENTRIES_IN_PAGE;
			page[b % ENTRIES_IN_PAGE] =
				l->v[i].zero ? BLOCKMAP_ZERO : blockmap_entry(0, b);
			full = true;
		}
	}
	return r < 0 ? r : end_file(folder, "disk.map", fd, e);
}

static int
write_base(const struct db_base *b, const struct runs *l, const char *folder, struct err *e)
{
	cleanup_close int fd = -1;
	char text[BASE_TEXT_MAX];
	uint64_t blocks = 0;
	int r = begin_file(folder, "disk.base", &fd, e);

	if (r < 0)
		return r;
	for (size_t i = 0; i < l->n; i++)
		blocks += l->v[i].zero ? 0 : l->v[i].n;
	snprintf(text, sizeof(text),
		"%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRId64 " %s\n", blocks,
		b->dev, b->inode, b->size, b->mtime_ns, b->path);
	r = io_write_full(fd, text, strlen(text));
	if (r == 0 && fchmod(fd, 0400) < 0)
		r = -errno;
	return r < 0 ? err_sys(e, r, "%.300s/disk.base.part", folder) : 0;
}

int
disk_changes_write(struct store *s, const struct store_tree *disk,
	const struct db_base *bases, size_t n_bases, const char *folder, struct err *e)
{
	struct runs l = {0};
	const struct db_base *base = nearest(s, disk, bases, n_bases, &l);
	char path[PATHS_MAX];
	int r = base ? path_of(folder, "disk.base", path, e) : 0;

	if (base && r == 0) {
		/* Written last: the others are whole. */
		unlink(path);
		r = write_data(s, disk, base, folder, e);
		fault_point("flat.changes");
		if (r == 0)
			r = write_index(&l, folder, e);
		if (r == 0)
			r = write_map(&l, disk->length / STORE_PAGE, folder, e);
		if (r == 0)
			r = write_base(base, &l, folder, e);
	}
	free(l.v);
	return r < 0 ? r : base != NULL;
}

static int
sync_file(const char *folder, const char *name, struct err *e)
{
	cleanup_close int fd = -1;
	char path[PATHS_MAX];
	int r = path_of(folder, name, path, e);

	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	return fd < 0 || fsync(fd) < 0 ? err_sys(e, -errno, "%.300s", path) : 0;
}

int
disk_changes_sync(const char *folder, struct err *e)
{
	static const char *const files[] = {
		"disk.data", "disk.index", "disk.map", "disk.base.part"};
	char part[PATHS_MAX], path[PATHS_MAX];
	int r = path_of(folder, "disk.base", path, e);

	for (size_t i = 0; i < sizeof(files) / sizeof(*files) && r == 0; i++)
		r = sync_file(folder, files[i], e);
	if (r == 0)
		r = path_of(folder, "disk.base.part", part, e);
	if (r == 0 && rename(part, path) < 0)
		r = err_sys(e, -errno, "%.300s", path);
	return r < 0 ? r : io_sync_dir(folder, e);
}

static int
read_base(const char *folder, const char *name, struct db_base *ret, uint64_t *ret_blocks,
	struct err *e)
{
	char path[PATHS_MAX], text[BASE_TEXT_MAX];
	cleanup_close int fd = -1;
	ssize_t n;
	int at = 0, r = path_of(folder, name, path, e);

	if (r < 0)
		return r;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	n = fd < 0 ? -1 : io_read(fd, text, sizeof(text) - 1);
	if (n <= 0 || text[n - 1] != '\n')
		return 0;
	text[n - 1] = '\0';
	*ret = (struct db_base){0};
	if (sscanf(text, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNd64 " %n",
		    ret_blocks, &ret->dev, &ret->inode, &ret->size, &ret->mtime_ns, &at) != 5 ||
		!at || strlen(text + at) >= sizeof(ret->path))
		return 0;
	memcpy(ret->path, text + at, strlen(text + at) + 1);
	return 1;
}

/* 1, or 0: it is not there, or not of this length. */
static int
open_part(const char *folder, const char *name, uint64_t bytes, int *ret_fd, struct err *e)
{
	char path[PATHS_MAX];
	struct stat st;
	int r = path_of(folder, name, path, e);

	if (r < 0)
		return r;
	*ret_fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (*ret_fd < 0)
		return errno == ENOENT || errno == ELOOP ? 0 : err_sys(e, -errno, "%.300s", path);
	return fstat(*ret_fd, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == bytes;
}

int
disk_changes_open(const char *folder, uint64_t disk_bytes, bool synced,
	struct disk_changes *ret, struct err *e)
{
	const char *name = synced ? "disk.base" : "disk.base.part";
	const uint64_t map_bytes = (disk_bytes / STORE_PAGE + ENTRIES_IN_PAGE - 1) /
				   ENTRIES_IN_PAGE * 4096;
	struct db_base base;
	struct stat st;
	int r = read_base(folder, name, &base, &ret->blocks, e);

	if (r == 1)
		r = open_part(folder, "disk.data", disk_bytes, &ret->data_fd, e);
	if (r == 1)
		r = open_part(folder, "disk.map", map_bytes, &ret->map_fd, e);
	if (r == 1) {
		ret->base_fd = open(base.path, O_RDONLY | O_CLOEXEC);
		r = ret->base_fd >= 0 && fstat(ret->base_fd, &st) == 0 &&
		    is_same_file(&base, &st);
		memcpy(ret->base_path, base.path, sizeof(ret->base_path));
	}
	if (r != 1)
		disk_changes_done(ret);
	return r;
}

int
disk_changes_link(const char *folder, const char *to, struct err *e)
{
	static const char *const files[] = {"data", "index"};
	char from[PATHS_MAX], path[PATHS_MAX];
	int r = 0;

	for (unsigned i = 0; i < 2 && r == 0; i++) {
		r = paths_format(from, sizeof(from), e, "%s/disk.%s", folder, files[i]);
		if (r == 0)
			r = paths_format(path, sizeof(path), e, "%s.%s", to, files[i]);
		if (r == 0 && link(from, path) < 0)
			r = err_sys(e, -errno, "%.300s", path);
	}
	return r;
}
