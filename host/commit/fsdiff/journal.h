/*
 * ext4's journal (jbd2; Linux, Documentation/filesystems/ext4/journal.rst): a file system
 * that was not unmounted has its newest metadata there. Read only: what a replay would
 * write is told instead. The journal may be of a hostile guest.
 */
#ifndef PANDO_HOST_COMMIT_FSDIFF_JOURNAL_H
#define PANDO_HOST_COMMIT_FSDIFF_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

struct journal {
	uint32_t block_size; /* the file system's, 1024 to 65536 */
	uint64_t n_blocks;   /* of the journal's file */
	/* Block n of the journal's file to buf. -errno. */
	int (*read)(void *ctx, uint64_t n, void *buf);
	/* The file system's block is newer in block n of the journal's file. */
	int (*found)(void *ctx, uint64_t block, uint64_t n, bool escaped);
	void *ctx;
};

/* 0, also of a journal that is empty or none at all; -errno: of read, found, or -ENOMEM.
 */
int journal_replay(const struct journal *j);

#endif
