/*
 * A file system on a disk (disk.h), read only, its journal taken into account: the only
 * caller of libext2fs (ext2, ext3, ext4). Calls give 0 or -errno; what is damaged is
 * -EBADMSG.
 */
#ifndef PANDO_HOST_COMMIT_FSDIFF_EXT4_H
#define PANDO_HOST_COMMIT_FSDIFF_EXT4_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/commit/fsdiff/disk.h"
#include "host/commit/fsdiff/wire.h"

#define EXT4_ROOT 2u

struct ext4;

/* For good. why: a sentence, when it cannot be read. number: 0 or 1, once each. */
int ext4_open(
	struct disk *d, unsigned number, struct ext4 **ret, char *why, size_t why_cap);

struct ext4_stat {
	enum fsdiff_kind kind;
	uint32_t mode, uid, gid,
		device; /* device: of what is neither file, folder nor link */
	int64_t mtime_s;
	uint32_t mtime_ns;
	uint64_t size;
};
int ext4_stat(struct ext4 *fs, uint32_t inode, struct ext4_stat *ret);

struct ext4_entry {
	char *name; /* owned: any bytes but NUL and '/' */
	uint32_t inode;
};
/* By name, without "." and ".."; owned by the caller: ext4_entries_free(). */
int ext4_list(struct ext4 *fs, uint32_t folder, struct ext4_entry **ret, size_t *ret_n);
void ext4_entries_free(struct ext4_entry *entries, size_t n);

/* Files or symbolic links of the same size: whether they hold the same. */
int ext4_same(struct ext4 *a, uint32_t inode_a, struct ext4 *b, uint32_t inode_b,
	bool *ret_same);

#endif
