/*
 * The two disks, as pandod gives them out page by page, and what lies over them: blocks
 * that the file system's journal has newer. Errors are -errno.
 */
#ifndef PANDO_HOST_COMMIT_FSDIFF_DISK_H
#define PANDO_HOST_COMMIT_FSDIFF_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct disk;

/* Both: takes HELLO and RANGES from the socket, which stays the caller's. */
int disk_open_both(int socket, struct disk **ret_a, struct disk **ret_b);

/* Bytes of a disk; behind its end they are zero. */
int disk_read(struct disk *d, uint64_t offset, void *buf, size_t len);
uint64_t disk_bytes(const struct disk *d);
/* Whether these bytes are the same on both disks, the overlays left out. */
bool disk_same(const struct disk *d, uint64_t offset, uint64_t len);

/* From now on block `block` of block_size bytes is read where block `at` lies. escaped:
 * its first four bytes are the journal's magic number. The last call for a block counts.
 */
int disk_overlay(
	struct disk *d, uint32_t block_size, uint64_t block, uint64_t at, bool escaped);
bool disk_has_overlay(const struct disk *d, uint64_t block);

#endif
