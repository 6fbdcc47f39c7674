/*
 * virtio-balloon (virtio 1.2, 5.5): memory that a guest does not use is the host's again.
 *
 *   reporting     (5.5.6.7) the guest names free pages of its own accord and takes them again
 *                 without a word. They read as zero afterwards, or are as they were: that is what
 *                 a driver relies on which negotiated PAGE_POISON with a poison_val of 0 (Linux
 *                 with init_on_free). With any other poison_val nothing goes back.
 *   inflate       (5.5.6.1) pages that the guest gave up because balloon_set_target() asked for
 *                 it. What is in them afterwards is undefined.
 *   deflate       nothing to do: they come back by being touched. DEFLATE_ON_OOM: a guest that
 *                 runs out of memory takes pages without asking.
 *   statistics    (5.5.6.3) what the guest says of its memory; a claim, for people to read.
 *
 * The guest gives back its own memory alone, whatever it names: the queue's gate (virtqueue.h)
 * takes no other addresses. What it names wrongly it loses: its rings and its own data, as if it
 * had written zeroes there; no other VM's pages and none of the VMM's are reached.
 *
 * Work is bounded: BALLOON_TURN_BYTES a turn, BALLOON_PIECE_BYTES between two looks at `stop`. A
 * chain that is left in the middle is taken up there again (it is put back, and `skip` says how far
 * it was worked off), so a fork or a pause waits for one piece. BALLOON_PFNS_MAX pages of a chain
 * of the inflate queue are given back, further ones are only lost to the guest.
 *
 * Cost: a report of 32 ranges is one exit, one madvise(2) each and a fault for each page, or huge
 * page, that is used again. Linux reports blocks of 2 MiB and more (page_reporting_order) 2 s after
 * something was freed, a sixteenth of a list at a time. Such a block is a whole huge page of the
 * host's; smaller ones split it.
 *
 * Queues: inflate, deflate, statistics, reporting. Linux and the hosts it grew up with leave out
 * the number of a queue whose feature is not there, the specification does not: the hint
 * queue's feature is not offered, so reporting is queue 3 or 4.
 *
 * A machine that was booted without the device, by an older VMM, has none after a restore either
 * (`present`). Fork: balloon_fork_child(). Target, contents and features are plain memory and part
 * of the state.
 */
#ifndef PANDO_VMM_BALLOON_H
#define PANDO_VMM_BALLOON_H

#include "vmm/virtio_mmio.h"

#define BALLOON_PAGE 4096u
#define BALLOON_TURN_BYTES (64u << 20)
#define BALLOON_PIECE_BYTES (8u << 20)
#define BALLOON_PFNS_MAX 1024u

enum balloon_feature {
	VIRTIO_BALLOON_F_STATS_VQ = 1u << 1,
	VIRTIO_BALLOON_F_DEFLATE_ON_OOM = 1u << 2,
	VIRTIO_BALLOON_F_PAGE_POISON = 1u << 4,
	VIRTIO_BALLOON_F_REPORTING = 1u << 5,
};

/* 5.5.4 */
struct balloon_config {
	uint32_t num_pages; /* wanted in the balloon */
	uint32_t actual;    /* the driver says: are in it */
	uint32_t hint_cmd_id;
	uint32_t poison_val;
};
_Static_assert(sizeof(struct balloon_config) == 16, "virtio 1.2, 5.5.4");

/* Tags of 5.5.6.4, as far as they are kept. */
enum balloon_stat {
	BALLOON_STAT_FREE = 4,
	BALLOON_STAT_AVAILABLE = 6,
	BALLOON_STATS,
};

struct balloon_host {
	/* Gives whole pages of the guest's memory back. any: what is in them afterwards does not
	 * matter; else they are zero or unchanged. Returns the bytes that went back. */
	uint64_t (*give_back)(void *ctx, void *host, size_t len, bool any);
	void *ctx;
};

struct balloon {
	struct virtio_dev dev;
	struct balloon_host host;
	bool present;
	struct balloon_config config;
	uint64_t skip; /* bytes of the next chain of the reporting queue that are done */
	bool has_stats_chain; /* the driver's buffer, kept until statistics are wanted */
	uint16_t stats_head;
	_Atomic uint64_t stats[BALLOON_STATS]; /* bytes; ~0: never told */
	_Atomic uint64_t given_back_bytes;     /* in all, also what was given back before */
	struct virtq_chain chain;	       /* scratch */
	uint32_t pfns[BALLOON_PFNS_MAX];       /* likewise */
};

/* What a person is told. Sizes in bytes. */
struct balloon_view {
	bool driver_ok; /* a driver works with it */
	uint64_t wanted, inflated, given_back;
	uint64_t free, available; /* ~0: not known */
};

void balloon_init(struct balloon *b, const struct guest_mem *mem, struct irq_line irq,
	const struct balloon_host *host);
void balloon_fork_child(struct balloon *b, struct irq_line irq);
/* How much of its memory the guest shall give up. All vCPUs are parked. */
void balloon_set_target(struct balloon *b, uint64_t bytes);
/* Any thread, at any time. Asks the driver for newer statistics, which the next call has. */
void balloon_look(struct balloon *b, struct balloon_view *ret);

void balloon_save(const struct balloon *b, struct blob_out *out);
int balloon_load(struct balloon *b, struct blob_in *in, struct err *e);

#endif
