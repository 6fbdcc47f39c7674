/*
 * virtio-blk (virtio 1.2, 5.2) over append-only segments (common/wire/segment_wire.h).
 *
 * The disk is a read-only base file and a chain of segments; a block map in memory
 * (vmm/blockmap.h) says where each 4 KiB block lies. The newest segment is this VM's own,
 * the only one it writes. A fork cuts it: it becomes read-only to both sides, and each
 * goes on in a new one (blk_cut). What was shared can be written through no descriptor
 * that either side holds: at the cut both close those that could. Reads never walk the
 * chain.
 *
 * A block that the VM's own segment already holds is written in place: nobody else
 * reads that segment before the next cut, and a torn overwrite is what any disk without a
 * flush may leave behind. So a segment's data never exceeds the disk, however often a
 * guest rewrites it. Every other write is appended, data first, then its index record,
 * then the map. Discard and write-zeroes (with or without its unmap flag) append a ZERO
 * record, keep the block's place in the own segment for its next write, and punch a hole
 * there. So that discarding and writing in turn cannot grow the index for ever, a segment
 * whose index holds BLK_INDEX_RECORDS_MAX(blocks) records ignores further discards (they are
 * hints) and carries out write-zeroes by writing zeroes. A request of many ranges, of what was
 * written here and there, is work of seconds: it is done piece by piece, between which the device
 * looks whether the VM is to stop, and put back into the queue at the end of a turn (`skip` says
 * how far it is). Each turn is an operation for the limits, and zeroes that are written count.
 *
 * FLUSH: fdatasync of the data, then of the index, of every segment that has something
 * unsynced, also those a cut closed; by a thread of its own (vmm/blk_flush.h), while the guest
 * runs on, and its reads and writes do. A driver that did not negotiate FLUSH gets that after
 * every write, before its answer.
 *
 * When the host loses power, all that was flushed is there. A block written since is, sector
 * by sector, as it was flushed or as it was written, with one exception: the first write of a
 * block in a segment gives it a new place, and the host may have written the record back but
 * not the data. Then the whole 4 KiB block reads as zeroes, also where its old content was
 * flushed; a disk would have kept the old or the new. A guest's journal replays such a block,
 * and a database with checksums or full-page writes restores it. A file that is overwritten in
 * place without fsync, or a file system without a journal, may find zeroes there.
 * test_blk_power.c shows it. It is not mended, because each way costs more than it is worth:
 * - Syncing the data before its record is a disk's latency for each write.
 * - Keeping records in memory until the next FLUSH loses finished writes when a VMM is killed
 *   (now it loses none), and a cut would have to sync in the pause of a fork.
 * - A check sum of the data in the record changes the disk format, and each write in place
 *   would need a record.
 * - Taking holes in the data file for lost writes at a replay mistakes zeroes that were flushed
 *   for them, on file systems that store zeroes as holes and in sparse copies.
 *
 * A host error (EIO, RLIMIT_FSIZE: the process must ignore SIGXFSZ) is VIRTIO_BLK_S_IOERR to
 * the guest and one rate-limited line; the VM goes on, and what was on the disk before stays.
 * Where the host has no room for a write (ENOSPC, EDQUOT), the request goes back into the queue,
 * the device takes no more, and the main thread is told (blk->teller): vmm/full_disk.h. Without
 * a teller, and in a flush, it is an error like others.
 *
 * Limits (vmm/blk_limit.h): a request that is too early stays in the queue, the device takes no
 * more, and the main thread is told to give it a turn when it is due (blk->due_ns).
 *
 * Segments that no guest writes any more are merged by pandod, and swapped for the merged one
 * while the guest runs (blk_swap.h).
 *
 * Reads and writes run on the thread that rings the doorbell, under dev->lock. After blk_init
 * nothing is allocated. Fork: blk_hold() around it, blk_fork_child() first, then blk_cut() on
 * both sides. A segment
 * that holds nothing at a cut is dropped from the chain, so that forking an idle VM uses
 * nothing up.
 *
 * System calls: preadv, pwritev, pwrite64, fdatasync, fallocate (punch hole), close;
 * futex (the lock); fstat, fcntl (new segments), mprotect (growth).
 */
#ifndef PANDO_VMM_BLK_H
#define PANDO_VMM_BLK_H

#include "common/err.h"
#include "common/wire/vmm_wire.h"
#include "vmm/bitmap.h"
#include "vmm/blk_limit.h"
#include "vmm/blockmap.h"
#include "vmm/virtio_mmio.h"

#define BLK_SEGMENTS_MAX 1024
#define BLK_SECTOR 512u
#define BLK_REQUEST_MAX (16u << 20) /* bytes of data in one request */
#define BLK_INDEX_RECORDS_MAX(blocks) (4 * (blocks) + 65536)

#define VIRTIO_BLK_F_SIZE_MAX (1ull << 1)
#define VIRTIO_BLK_F_SEG_MAX (1ull << 2)
#define VIRTIO_BLK_F_BLK_SIZE (1ull << 6)
#define VIRTIO_BLK_F_FLUSH (1ull << 9)
#define VIRTIO_BLK_F_TOPOLOGY (1ull << 10)
#define VIRTIO_BLK_F_DISCARD (1ull << 13)
#define VIRTIO_BLK_F_WRITE_ZEROES (1ull << 14)

enum virtio_blk_type {
	VIRTIO_BLK_T_IN = 0,
	VIRTIO_BLK_T_OUT = 1,
	VIRTIO_BLK_T_FLUSH = 4,
	VIRTIO_BLK_T_GET_ID = 8,
	VIRTIO_BLK_T_DISCARD = 11,
	VIRTIO_BLK_T_WRITE_ZEROES = 13,
};

enum virtio_blk_answer {
	VIRTIO_BLK_S_OK = 0,
	VIRTIO_BLK_S_IOERR = 1,
	VIRTIO_BLK_S_UNSUPP = 2,
};

struct virtio_blk_req {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};
_Static_assert(sizeof(struct virtio_blk_req) == 16, "virtio 1.2, 5.2.6");

struct virtio_blk_range { /* of discard and write-zeroes */
	uint64_t sector;
	uint32_t sectors;
	uint32_t flags;
};
_Static_assert(sizeof(struct virtio_blk_range) == 16, "virtio 1.2, 5.2.6");
#define VIRTIO_BLK_RANGE_UNMAP 1u

struct virtio_blk_config {
	uint64_t capacity; /* in 512-byte sectors */
	uint32_t size_max;
	uint32_t seg_max;
	uint8_t geometry[4];
	uint32_t blk_size;
	uint8_t physical_block_exp;
	uint8_t alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t writeback;
	uint8_t unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors;
	uint32_t max_discard_seg;
	uint32_t discard_sector_alignment;
	uint32_t max_write_zeroes_sectors;
	uint32_t max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap;
	uint8_t unused1[3];
};
_Static_assert(offsetof(struct virtio_blk_config, unused1) == 57, "virtio 1.2, 5.2.4");

struct blk_segment {
	int data_fd, index_fd; /* owned, read-only; index_fd -1 once cut and synced */
	/* Counts of writes: now, and when the newest fdatasync that is over began. */
	uint64_t written, synced;
};

/* Requests that wait for a flush (vmm/blk_flush.h). */
#define BLK_LATE_MAX 128
struct blk_late {
	uint8_t *status; /* in guest memory */
	uint32_t written;
	uint16_t head;
	uint8_t answer; /* once done */
};

struct blk_flush {
	struct blk_late late[BLK_LATE_MAX]; /* the oldest first */
	unsigned n;
	unsigned n_done;     /* of them, from the first on: can be answered */
	unsigned n_round;    /* of them: what the round that runs is for */
	bool running;	     /* a round, without the lock */
	bool is_held_up;     /* the queue waits for a place among `late` */
	int in_use[2];	     /* borrowed by the round; -1 */
	bool close_later[2]; /* owned: it closes them */
};

/* Has blk_round() be called soon, by a thread of its own; false: it cannot be. */
struct blk_waker {
	bool (*wake)(void *ctx);
	void *ctx; /* borrowed */
};

/* Has the main thread look at full and due_ns soon. */
struct blk_teller {
	void (*tell)(void *ctx);
	void *ctx; /* borrowed */
};

/* A fork point that the disk can go back to (vmm/blk_keep.h). */
struct blk_keep {
	uint8_t *touched; /* owned, mapped: written pages of the map; NULL: there is none */
	uint64_t n_blocks;
	uint64_t places[BLK_SEGMENTS_MAX / 64]; /* its segments: a bit each */
	uint64_t live[BLK_SEGMENTS_MAX];
};
#define BLK_KEEP_PAGE ((uint64_t)4096)

struct blk_stats { /* read without the lock */
	_Atomic uint64_t read_bytes, write_bytes;
	_Atomic uint64_t segment_bytes; /* data in the own segment */
	_Atomic uint64_t io_errors;
};

struct blk {
	struct virtio_dev dev;
	struct virtio_blk_config config;
	struct blockmap map;
	int base_fd; /* owned; -1: none, the disk starts as zeroes */
	uint64_t base_bytes;
	/* Which comes after which does not matter here. A place whose data_fd is -1 is free. */
	struct blk_segment segments[BLK_SEGMENTS_MAX];
	unsigned n_segments; /* places that are or were taken */
	unsigned own;	     /* the one that this VM writes */
	uint64_t live[BLK_SEGMENTS_MAX]; /* how many entries of the map name each */
	int write_data_fd, write_index_fd; /* owned: of the own one, until the next cut */
	uint64_t data_blocks;		   /* used in the own segment's data */
	uint64_t index_records;		   /* in its index */
	uint64_t index_limit;		   /* BLK_INDEX_RECORDS_MAX */
	struct blk_flush flush;
	struct blk_keep keep;
	struct blk_waker waker; /* .wake NULL: there is no thread */
	struct blk_teller teller;  /* .tell NULL: nobody looks */
	atomic_int full;	   /* -errno of a write that waits for room; 0: none */
	struct blk_limit limit;
	_Atomic uint64_t due_ns; /* when the queue goes on; 0: it does not wait */
	struct blk_stats stats;
	uint64_t skip;		      /* bytes of the next chain's ranges that are zeroed */
	bool is_left;		      /* the turn ended in the middle of a chain */
	uint64_t zeroed_bytes;	      /* that the last chain had written out */
	struct virtq_chain chain;     /* scratch */
	uint8_t block[SEGMENT_BLOCK]; /* scratch of partial writes */
};

/* Takes base_fd (-1 for none) and the segment's descriptors (enum vmm_seg_fd) over, on
 * success only. Its two files must be empty, regular and not O_APPEND. disk_mib: 1 to
 * BLOCKMAP_DISK_MIB_MAX. */
int blk_init(struct blk *blk, const struct guest_mem *mem, struct irq_line irq,
	uint64_t disk_mib, int base_fd, const int seg[static VMM_SEG_FDS], struct err *e);
/* The same in two steps, for a VM whose disk comes later than its devices. The first
 * allocates, the second does not. disk_mib: see blk_load(). */
int blk_init_empty(
	struct blk *blk, const struct guest_mem *mem, struct irq_line irq, struct err *e);
int blk_attach(struct blk *blk, uint64_t disk_mib, int base_fd,
	const int seg[static VMM_SEG_FDS], struct err *e);
/* Whether blk_attach() would take these. */
int blk_check_attach(uint64_t disk_mib, int base_fd, const int seg[static VMM_SEG_FDS],
	struct err *e);
/* No disk any more: base, segments and block map go, unsynced. blk_attach() comes next. The
 * vCPUs are parked, no I/O is under way but a flush, which keeps what it uses. Closing takes a
 * microsecond each: the descriptors are the caller's, who closes them when the guest runs. Returns
 * how many. */
#define BLK_FDS_MAX (2 * BLK_SEGMENTS_MAX + 3)
unsigned blk_detach(struct blk *blk, int ret_fds[static BLK_FDS_MAX]);
/* Right after blk_attach(): a segment that others wrote comes to lie between the base and
 * the own one. data_fd is taken over on success; map_fd is only mapped: a block map whose
 * entries are the base's, of the chain's first segment, or zeroes, as long as the disk or
 * shorter. It is believed, but an entry of any other segment fails the read of that block.
 * blocks: how many of them are the segment's. */
int blk_attach_below(
	struct blk *blk, int data_fd, int map_fd, uint64_t blocks, struct err *e);
/* Closes and unmaps everything. */
void blk_destroy(struct blk *blk);

/* Into and out of an open section of a state blob: all but the disk's content and size.
 * After blk_attach(). saved_mib: the disk's size then; if it is less than now, the guest
 * is told that its disk grew. */
void blk_save(struct blk *blk, struct blob_out *out);
int blk_load(struct blk *blk, uint64_t saved_mib, struct blob_in *in, struct err *e);
uint64_t blk_disk_mib(const struct blk *blk);
/* Makes the disk larger, at once and while the guest runs. -EINVAL: it would shrink. */
int blk_grow(struct blk *blk, uint64_t disk_mib, struct err *e);

/* Bytes and requests in a second, for what comes from now on; 0: as many as there are. */
void blk_set_limit(struct blk *blk, uint64_t bytes_per_s, uint64_t ops_per_s);

/* The error of a write that waits for room on the host's disk; 0: none does. */
static inline int
blk_is_full(const struct blk *blk)
{
	return atomic_load(&blk->full);
}
/* Whether there is room for some more. The vCPUs are parked. */
bool blk_has_room(struct blk *blk);
/* The next turn tries that write again. */
void blk_try_again(struct blk *blk);

/* Around fork(), with the vCPUs parked: between the two nothing of the disk changes. Not in the
 * child, where blk_fork_child() gives it a fresh lock and the child's interrupt line. */
void blk_hold(struct blk *blk);
void blk_release(struct blk *blk);
void blk_fork_child(struct blk *blk, struct irq_line irq);

/* Whether two files can be a segment: regular, empty, not O_APPEND; and whether the other
 * two descriptors are the same files, read-only. */
int blk_check_segment(const int seg[static VMM_SEG_FDS], struct err *e);
/* The lowest free place, BLK_SEGMENTS_MAX: none. */
unsigned blk_free_slot(const struct blk *blk);
/* Its place is free then. */
void blk_close_segment(struct blk *blk, struct blk_segment *seg);

/* The way to change the map. */
static inline void
blk_set_entry(struct blk *blk, uint64_t block, uint64_t entry)
{
	const int was = blockmap_segment(blk->map.entries[block]),
		  is = blockmap_segment(entry);

	if (was >= 0)
		blk->live[was]--;
	if (is >= 0)
		blk->live[is]++;
	blk->map.entries[block] = entry;
	if (blk->keep.touched)
		bitmap_set(blk->keep.touched, block * sizeof(entry) / BLK_KEEP_PAGE, 1);
}

/* Whether the segment in that place is a kept fork point's. */
static inline bool
blk_keeps(const struct blk *blk, unsigned place)
{
	return blk->keep.places[place / 64] >> place % 64 & 1;
}
/* With the lock held: nothing that was asked for goes on, or is answered. */
void blk_forget_waiting(struct blk *blk);
/* With the lock held: the descriptors of a segment, or those that write the own one, are the
 * caller's, but for what a flush uses. How many. */
unsigned blk_give_segment(struct blk *blk, struct blk_segment *seg, int *ret_fds);
unsigned blk_give_own(struct blk *blk, int *ret_fds);
/* The own place's descriptors; nothing is in it yet. */
void blk_begin_segment(struct blk *blk, const int seg[static VMM_SEG_FDS]);

/* Whether one more cut fits; ask before forking, with the vCPUs parked. -EMFILE with a
 * sentence. */
int blk_can_cut(struct blk *blk, struct err *e);
/* Both sides of a fork: the own segment ends here, is read-only from now on, and the new,
 * empty files (taken over on success) are the own one. The out parameters (may be NULL) say where it ended: what
 * parent and child share. They are the same on both sides as long as no I/O ran since the
 * fork. Syncs nothing. */
int blk_cut(struct blk *blk, const int seg[static VMM_SEG_FDS],
	uint64_t *ret_index_records, uint64_t *ret_data_bytes, struct err *e);

/* What a guest's FLUSH does: at the end of a VM, or before its disk is handed on. */
int blk_flush(struct blk *blk, struct err *e);

#endif
