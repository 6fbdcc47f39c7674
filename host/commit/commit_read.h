/*
 * What a commit is made of, read from a frozen fork and a disk at rest into trees of
 * the store. Nothing is known here of the table of VMs.
 */
#ifndef PANDO_HOST_COMMIT_COMMIT_READ_H
#define PANDO_HOST_COMMIT_COMMIT_READ_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/wire/vmm_wire.h"
#include "host/store/store.h"
#include "vmm/blockmap.h"

/* An earlier commit of the same VM, and what changed since: bitmaps as struct vmm_track has them,
 * borrowed. */
struct commit_since {
	struct store_tree memory;
	const uint8_t *changed, *given_back;
};

/*
 * The memory of process pid, which a describes. image: the tree of what it lies on, with
 * VMM_STATE_ON_IMAGE; else NULL. *ret_read: bytes that had to be read. The caller looks
 * afterwards whether the process still is the one it was.
 */
int commit_read_memory(struct store_writer *w, pid_t pid,
	const struct vmm_state_answer *a, const struct store_tree *image,
	struct store_tree *ret, uint64_t *ret_read, struct err *e);
/* The same from an earlier commit: only pages that changed are read. since->memory is as long as
 * the memory. */
int commit_read_changed(struct store_writer *w, pid_t pid, const struct vmm_state_answer *a,
	const struct commit_since *since, struct store_tree *ret, uint64_t *ret_read,
	struct err *e);

/* A base file as a tree: all of it is read but its holes. */
int commit_read_base(struct store_writer *w, int base_fd, const char *name, uint64_t size,
	struct store_tree *ret, struct err *e);

/*
 * The disk of a chain (its base_path is not looked at). base_fd -1: it has no base, or base is
 * given. base: the base's tree in the store, so that only segments are read, or that of an
 * earlier commit, and the chain is what came after it; NULL: the base is read, too.
 */
int commit_read_disk(struct store_writer *w, const struct disk_chain *chain,
	uint64_t disk_mib, int base_fd, const char *base_name,
	const struct store_tree *base, struct store_tree *ret, struct err *e);

#endif
