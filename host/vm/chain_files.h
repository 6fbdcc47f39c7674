/* The files of a chain's links, as the reader of disks at rest wants them (vmm/blockmap.h). */
#ifndef PANDO_HOST_VM_CHAIN_FILES_H
#define PANDO_HOST_VM_CHAIN_FILES_H

#include "common/paths.h"
#include "host/vm/db.h"
#include "vmm/blockmap.h"

struct chain_files {
	struct disk_segment *segments; /* owned */
	char (*paths)[2][PATHS_MAX];   /* owned */
};
/* -ENOMEM, -ENAMETOOLONG. ret is for chain_files_done() in any case. */
int chain_files_make(const char *home, const struct chain_link *links, size_t n,
	struct chain_files *ret, struct err *e);
void chain_files_done(struct chain_files *f);
#define cleanup_chain_files __attribute__((cleanup(chain_files_done)))

#endif
