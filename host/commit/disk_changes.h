/*
 * A commit's disk without a copy of it: an image that this host has and whose content is in
 * the store (db_bases()), and one segment (common/wire/segment_wire.h) with the blocks that
 * differ. In the folder of the materialized image:
 *
 *   disk.data   blocks that differ, each at its own place on the disk; the rest is holes
 *   disk.index  the records of the segment
 *   disk.map    the same as a block map that a VMM maps (vmm/blockmap.h)
 *   disk.base   which file the base is, and that it was not changed
 *
 * They never change once they have their names. A VM has links to the first two, by names of
 * its own: its disk is like that of a VM that was booted from the base, and stays when the
 * materialized image goes. The base has to stay, as it has for a VM that was booted.
 */
#ifndef PANDO_HOST_COMMIT_DISK_CHANGES_H
#define PANDO_HOST_COMMIT_DISK_CHANGES_H

#include <stdint.h>

#include "common/err.h"
#include "common/paths.h"
#include "host/store/store.h"
#include "host/vm/db.h"

/* A disk that differs in more than a quarter of its blocks is copied as a whole. */
#define DISK_CHANGES_PART 4

struct disk_changes {
	char base_path[PATHS_MAX];
	int base_fd, data_fd, map_fd; /* owned; read-only */
	uint64_t blocks;	      /* that are in the data */
};
#define DISK_CHANGES_INIT {.base_fd = -1, .data_fd = -1, .map_fd = -1}
void disk_changes_done(struct disk_changes *d);

/* Makes the files, over one of the bases that still are what was read: 1; 0: none of them is
 * near enough. A power cut may yet take of them what it likes: until disk_changes_sync() the
 * last is disk.base.part, and only whoever made them may use them. */
int disk_changes_write(struct store *s, const struct store_tree *disk,
	const struct db_base *bases, size_t n_bases, const char *folder, struct err *e);
int disk_changes_sync(const char *folder, struct err *e);
/* 1; 0: they are not there, or not whole, or the base is another one. synced: whether
 * disk_changes_sync() was called. */
int disk_changes_open(const char *folder, uint64_t disk_bytes, bool synced,
	struct disk_changes *ret, struct err *e);
/* Links for a VM: <to>.data and <to>.index. */
int disk_changes_link(const char *folder, const char *to, struct err *e);

#endif
