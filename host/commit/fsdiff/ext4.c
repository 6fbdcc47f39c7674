#include "host/commit/fsdiff/ext4.h"

#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/commit/fsdiff/journal.h"

#define ENTRIES_MAX (1u << 20) /* of one folder */
#define MAP_MAX (1u << 25)     /* blocks of one file whose places are kept */
#define CHUNK 65536u

struct ext4 {
	ext2_filsys fs;	   /* owned */
	struct disk *disk; /* borrowed */
};

static struct disk *disks[2]; /* by the name that the library opens: "0", "1" */

/*
 * The library's way to the blocks.
 */

static errcode_t
io_read(io_channel c, unsigned long long block, int count, void *data)
{
	size_t len = count < 0 ? (size_t)-count : (size_t)count * (size_t)c->block_size;
	uint64_t offset;

	if (__builtin_mul_overflow(block, (unsigned long long)c->block_size, &offset))
		return EXT2_ET_BLOCK_BITMAP_READ;
	return disk_read(c->private_data, offset, data, len) < 0 ? EXT2_ET_SHORT_READ : 0;
}

static errcode_t
io_read_32(io_channel c, unsigned long block, int count, void *data)
{
	return io_read(c, block, count, data);
}

static errcode_t
io_no_write(io_channel c, unsigned long long block, int count, const void *data)
{
	(void)c;
	(void)block;
	(void)count;
	(void)data;
	return EXT2_ET_RO_FILSYS;
}

static errcode_t
io_no_write_32(io_channel c, unsigned long block, int count, const void *data)
{
	return io_no_write(c, block, count, data);
}

static errcode_t
io_block_size(io_channel c, int size)
{
	c->block_size = size;
	return 0;
}

static errcode_t
io_nothing(io_channel c)
{
	(void)c;
	return 0;
}

static errcode_t
io_end(io_channel c)
{
	free(c);
	return 0;
}

static errcode_t io_begin(const char *name, int flags, io_channel *ret);

static struct struct_io_manager manager = {
	.magic = EXT2_ET_MAGIC_IO_MANAGER,
	.name = "pandod's",
	.open = io_begin,
	.close = io_end,
	.set_blksize = io_block_size,
	.read_blk = io_read_32,
	.write_blk = io_no_write_32,
	.flush = io_nothing,
	.read_blk64 = io_read,
	.write_blk64 = io_no_write,
};

static errcode_t
io_begin(const char *name, int flags, io_channel *ret)
{
	static char names[2][2] = {"0", "1"};
	unsigned number = name[0] == '1';
	io_channel c = calloc(1, sizeof(*c));

	(void)flags;
	if (!c)
		return EXT2_ET_NO_MEMORY;
	c->magic = EXT2_ET_MAGIC_IO_CHANNEL;
	c->manager = &manager;
	c->name = names[number];
	c->block_size = 1024;
	c->refcount = 1;
	c->private_data = disks[number];
	*ret = c;
	return 0;
}

/*
 * Opening, twice: the journal is found in what lies on the disk, the rest is as the
 * journal has it.
 */

struct found {
	uint64_t block, at;
	bool escaped;
};

struct replayed {
	struct ext4 *fs;
	uint32_t block_size;
	uint64_t *at; /* owned: where block n of the journal lies; 0: nowhere */
	uint64_t n_blocks;
	struct found *v; /* owned: in the order in which it was told */
	size_t n, cap;
};

static int
journal_read(void *ctx, uint64_t n, void *buf)
{
	struct replayed *r = ctx;

	if (n >= r->n_blocks || !r->at[n])
		return -EBADMSG;
	return disk_read(r->fs->disk, r->at[n] * r->block_size, buf, r->block_size);
}

/* Kept for the end: what is read meanwhile is the disk's own. */
static int
journal_found(void *ctx, uint64_t block, uint64_t n, bool escaped)
{
	struct replayed *r = ctx;

	if (n >= r->n_blocks || !r->at[n])
		return -EBADMSG;
	if (r->n == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 1024;
		struct found *more = reallocarray(r->v, cap, sizeof(*more));

		if (!more)
			return -ENOMEM;
		r->v = more;
		r->cap = cap;
	}
	r->v[r->n++] = (struct found){block, r->at[n], escaped};
	return 0;
}

/* What is at some place of a file, for ext2fs_block_iterate3(). */
struct blocks {
	uint64_t *at; /* borrowed */
	uint64_t n;
};

static int
note_block(ext2_filsys fs, blk64_t *block, e2_blkcnt_t n, blk64_t ref, int ref_offset,
	void *ctx)
{
	struct blocks *b = ctx;

	(void)fs;
	(void)ref;
	(void)ref_offset;
	if (n >= 0 && (uint64_t)n < b->n)
		b->at[n] = *block;
	return 0;
}

/* Where the blocks of an inode lie; malloc'd. */
static int
blocks_of(struct ext4 *fs, uint32_t inode, uint64_t n, uint64_t **ret)
{
	struct blocks b = {.n = n};

	if (n > MAP_MAX)
		return -EFBIG;
	b.at = calloc(n + 1, sizeof(*b.at));
	if (!b.at)
		return -ENOMEM;
	if (ext2fs_block_iterate3(fs->fs, inode,
		    BLOCK_FLAG_READ_ONLY | BLOCK_FLAG_DATA_ONLY, NULL, note_block, &b)) {
		free(b.at);
		return -EBADMSG;
	}
	*ret = b.at;
	return 0;
}

static int
replay(struct ext4 *fs)
{
	struct replayed all = {.fs = fs, .block_size = fs->fs->blocksize};
	struct journal j = {.block_size = all.block_size,
		.read = journal_read,
		.found = journal_found,
		.ctx = &all};
	struct ext2_inode inode;
	uint32_t number = fs->fs->super->s_journal_inum;
	int r;

	if (!number || !ext2fs_has_feature_journal(fs->fs->super))
		return 0;
	if (ext2fs_read_inode(fs->fs, number, &inode))
		return -EBADMSG;
	j.n_blocks = all.n_blocks = EXT2_I_SIZE(&inode) / all.block_size;
	r = blocks_of(fs, number, all.n_blocks, &all.at);
	if (r == 0)
		r = journal_replay(&j);
	for (size_t i = 0; r == 0 && i < all.n; i++)
		r = disk_overlay(fs->disk, all.block_size, all.v[i].block, all.v[i].at,
			all.v[i].escaped);
	free(all.at);
	free(all.v);
	return r;
}

static int
open_once(struct ext4 *fs, unsigned number, char *why, size_t why_cap)
{
	const char *name = number ? "1" : "0";
	errcode_t r = ext2fs_open2(name, NULL, EXT2_FLAG_64BITS, 0, 0, &manager, &fs->fs);

	if (r == 0)
		return 0;
	fs->fs = NULL;
	if (r == EXT2_ET_BAD_MAGIC)
		snprintf(why, why_cap, "no ext2, ext3 or ext4 file system is on it");
	else if (r == EXT2_ET_UNSUPP_FEATURE || r == EXT2_ET_RO_UNSUPP_FEATURE)
		snprintf(why, why_cap,
			"its file system has features that this libext2fs does not know");
	else
		snprintf(why, why_cap, "its file system is damaged (libext2fs error %ld)",
			(long)r);
	return -EBADMSG;
}

int
ext4_open(struct disk *d, unsigned number, struct ext4 **ret, char *why, size_t why_cap)
{
	static struct ext4 both[2];
	struct ext4 *fs = &both[number];
	int r;

	disks[number] = d;
	fs->disk = d;
	r = open_once(fs, number, why, why_cap);
	if (r < 0)
		return r;
	r = replay(fs);
	if (r < 0) {
		snprintf(why, why_cap, "its file system's journal cannot be read");
		return r;
	}
	ext2fs_free(fs->fs);
	r = open_once(fs, number, why, why_cap);
	if (r == 0)
		*ret = fs;
	return r;
}

/*
 * Looking.
 */

static enum fsdiff_kind
kind_of(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return FSDIFF_FILE;
	case S_IFDIR:
		return FSDIFF_FOLDER;
	case S_IFLNK:
		return FSDIFF_SYMLINK;
	}
	return FSDIFF_OTHER;
}

int
ext4_stat(struct ext4 *fs, uint32_t number, struct ext4_stat *ret)
{
	union {
		struct ext2_inode_large large;
		struct ext2_inode small;
		char room[1024];
	} u;
	const struct ext2_inode *i = &u.small;

	memset(&u, 0, sizeof(u));
	if (ext2fs_read_inode_full(fs->fs, number, &u.small, sizeof(u.large)))
		return -EBADMSG;
	*ret = (struct ext4_stat){
		.kind = kind_of(i->i_mode),
		.mode = i->i_mode,
		.uid = inode_uid(*i),
		.gid = inode_gid(*i),
		.size = EXT2_I_SIZE(i),
		.mtime_s = (int32_t)i->i_mtime,
	};
	if (ret->kind == FSDIFF_OTHER)
		ret->device = i->i_block[0] ? i->i_block[0] : i->i_block[1];
	if (EXT2_INODE_SIZE(fs->fs->super) >= sizeof(u.large) &&
		u.large.i_extra_isize >= 20) {
		ret->mtime_s += (int64_t)(u.large.i_mtime_extra & 3) << 32;
		ret->mtime_ns = u.large.i_mtime_extra >> 2;
	}
	return 0;
}

struct listing {
	struct ext4_entry *v; /* owned */
	size_t n, cap;
	int error;
};

static int
note_entry(ext2_ino_t folder, int what, struct ext2_dir_entry *d, int offset,
	int block_size, char *buf, void *ctx)
{
	struct listing *l = ctx;
	size_t len = (size_t)ext2fs_dirent_name_len(d);

	(void)folder;
	(void)what;
	(void)offset;
	(void)block_size;
	(void)buf;
	if (d->inode == 0 || len == 0 || (len == 1 && d->name[0] == '.') ||
		(len == 2 && d->name[0] == '.' && d->name[1] == '.') ||
		memchr(d->name, '/', len) || memchr(d->name, 0, len))
		return 0;
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 64;
		struct ext4_entry *more =
			cap > ENTRIES_MAX ? NULL : reallocarray(l->v, cap, sizeof(*more));

		if (!more) {
			l->error = cap > ENTRIES_MAX ? -EFBIG : -ENOMEM;
			return DIRENT_ABORT;
		}
		l->v = more;
		l->cap = cap;
	}
	l->v[l->n].inode = d->inode;
	l->v[l->n].name = strndup(d->name, len);
	if (!l->v[l->n].name) {
		l->error = -ENOMEM;
		return DIRENT_ABORT;
	}
	l->n++;
	return 0;
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(((const struct ext4_entry *)a)->name,
		((const struct ext4_entry *)b)->name);
}

int
ext4_list(struct ext4 *fs, uint32_t folder, struct ext4_entry **ret, size_t *ret_n)
{
	struct listing l = {.n = 0};

	if (ext2fs_dir_iterate2(fs->fs, folder, 0, NULL, note_entry, &l) && !l.error)
		l.error = -EBADMSG;
	if (l.error) {
		ext4_entries_free(l.v, l.n);
		return l.error;
	}
	if (l.n)
		qsort(l.v, l.n, sizeof(*l.v), by_name);
	*ret = l.v;
	*ret_n = l.n;
	return 0;
}

void
ext4_entries_free(struct ext4_entry *entries, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(entries[i].name);
	free(entries);
}

/*
 * Content.
 */

/* Whether the two lie at the same places, and nothing of these differs: then nothing
 * needs to be read. */
static bool
lie_alike(struct ext4 *a, uint32_t inode_a, struct ext4 *b, uint32_t inode_b,
	uint64_t n_blocks)
{
	uint64_t *at_a = NULL, *at_b = NULL, size = a->fs->blocksize;
	bool alike = size == b->fs->blocksize &&
		     blocks_of(a, inode_a, n_blocks, &at_a) == 0 &&
		     blocks_of(b, inode_b, n_blocks, &at_b) == 0 &&
		     memcmp(at_a, at_b, n_blocks * sizeof(*at_a)) == 0;

	for (uint64_t i = 0; i < n_blocks && alike; i++)
		alike = at_a[i] == 0 || (disk_same(a->disk, at_a[i] * size, size) &&
						!disk_has_overlay(a->disk, at_a[i]) &&
						!disk_has_overlay(b->disk, at_a[i]));
	free(at_a);
	free(at_b);
	return alike;
}

/* Byte for byte, with what libext2fs makes of holes and of data in the inode. */
static int
read_alike(struct ext4 *a, uint32_t inode_a, struct ext4 *b, uint32_t inode_b, bool *ret)
{
	static char bytes_a[CHUNK], bytes_b[CHUNK];
	ext2_file_t file_a = NULL, file_b = NULL;
	int r = -EBADMSG;

	*ret = true;
	if (ext2fs_file_open(a->fs, inode_a, 0, &file_a) ||
		ext2fs_file_open(b->fs, inode_b, 0, &file_b))
		goto out;
	for (;;) {
		unsigned n_a = 0, n_b = 0;

		if (ext2fs_file_read(file_a, bytes_a, CHUNK, &n_a) ||
			ext2fs_file_read(file_b, bytes_b, CHUNK, &n_b))
			goto out;
		if (n_a != n_b || memcmp(bytes_a, bytes_b, n_a) != 0)
			*ret = false;
		if (!*ret || n_a == 0)
			break;
	}
	r = 0;
out:
	if (file_a)
		ext2fs_file_close(file_a);
	if (file_b)
		ext2fs_file_close(file_b);
	return r;
}

int
ext4_same(struct ext4 *a, uint32_t inode_a, struct ext4 *b, uint32_t inode_b,
	bool *ret_same)
{
	struct ext2_inode ia, ib;
	uint64_t size, n_blocks;

	if (ext2fs_read_inode(a->fs, inode_a, &ia) ||
		ext2fs_read_inode(b->fs, inode_b, &ib))
		return -EBADMSG;
	size = EXT2_I_SIZE(&ia);
	if (size != EXT2_I_SIZE(&ib)) {
		*ret_same = false;
		return 0;
	}
	/* A short link, or a short file, is in the inode itself. */
	if (ext2fs_is_fast_symlink(&ia) && ext2fs_is_fast_symlink(&ib)) {
		*ret_same = size <= sizeof(ia.i_block) &&
			    memcmp(ia.i_block, ib.i_block, size) == 0;
		return 0;
	}
	n_blocks = (size + a->fs->blocksize - 1) / a->fs->blocksize;
	if (!((ia.i_flags | ib.i_flags) & EXT4_INLINE_DATA_FL) &&
		lie_alike(a, inode_a, b, inode_b, n_blocks)) {
		*ret_same = true;
		return 0;
	}
	return read_alike(a, inode_a, b, inode_b, ret_same);
}
