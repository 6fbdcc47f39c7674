/*
 * A real file system whose fdatasync(2) takes as long as a test likes: ext4 on a loop device
 * whose file lies on another ext4, which FIFREEZE makes wait with all that is written to it.
 * What is in the page cache stays readable and writable meanwhile.
 *
 * Needs root, loop devices and mkfs.ext4. The mounts are in a mount namespace of the caller's
 * own, so that they go with it.
 */
#ifndef PANDO_TESTS_KVM_SLOW_DISK_H
#define PANDO_TESTS_KVM_SLOW_DISK_H

#include <stdbool.h>

#include "common/err.h"

struct slow_disk {
	char under[128], folder[128]; /* the lower one's mount point; where slow files are made */
	int under_fd;		      /* owned */
	bool held;
};

/* In `folder`, which is there. -ENOTSUP with a sentence: not on this host. */
int slow_disk_make(struct slow_disk *s, const char *folder, struct err *e);
/* From now on what is written to the disk waits; from now on it goes on. */
int slow_disk_hold(struct slow_disk *s, struct err *e);
void slow_disk_release(struct slow_disk *s);
void slow_disk_done(struct slow_disk *s);

#endif
