/*
 * The thread that makes a disk's flushes durable (vmm/blk_flush.h), so that no vCPU waits in
 * fdatasync(2). Started by the first flush that has to wait; a branch, a frozen fork and a
 * pre-warmed VM have none until then.
 *
 * A thread, and not io_uring: the kernel gives an fsync to a thread of its own anyway; a ring
 * would have to be made anew in each branch, after the seal, since fork(2) shares it; its calls
 * pass the filter by; and many hosts forbid it. Reads and writes stay on the vCPU that asks: from
 * the page cache they take microseconds, of which two switches of threads would be most.
 */
#ifndef PANDO_VMM_DISK_THREAD_H
#define PANDO_VMM_DISK_THREAD_H

#include <stdatomic.h>
#include <stdbool.h>

#include "vmm/blk.h"

struct disk_thread {
	struct blk *blk;   /* borrowed */
	atomic_uint wakes; /* a futex */
	bool runs;	   /* under the device's lock */
};

/* Becomes the waker of blk, which was initialized before. */
void disk_thread_init(struct disk_thread *t, struct blk *blk);
/* In a forked child, which has not got the thread. */
void disk_thread_fork_child(struct disk_thread *t);

#endif
