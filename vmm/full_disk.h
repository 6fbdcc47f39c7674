/*
 * A VM whose host has no room for what the guest writes stands still instead of being told of an
 * I/O error, which would abort its file systems. The request stays in the queue (blk_is_full).
 *
 * The main thread parks the vCPUs, says so in the log and to pandod (VMM_DISK_FULL), and looks
 * every second whether there is room again: then the VM goes on by itself. VMM_RESUME lets it
 * try at once. A VMM_PAUSE meanwhile keeps it from going on by itself.
 *
 * A branch of such a VM runs, and stands still by itself when it finds the disk full, too.
 */
#ifndef PANDO_VMM_FULL_DISK_H
#define PANDO_VMM_FULL_DISK_H

#include "vmm/vm.h"

/* Each turn of the main loop. */
void full_disk_look(struct vm *vm);
/* The VM is about to run again, whether there is room or not. */
void full_disk_forget(struct vm *vm);
/* A new pandod: says again that it stands still, if it does. */
void full_disk_tell(struct vm *vm);

#endif
