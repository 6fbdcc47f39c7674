/*
 * pandod <-> pando-vmm: messages over a SOCK_SEQPACKET Unix socket, one message a packet,
 * descriptors by SCM_RIGHTS in the order each message states.
 *
 * The VMM starts with the socket as descriptor 3 (VMM_CONTROL_FD), opens nothing, and
 * waits for VMM_BOOT, VMM_RESTORE or VMM_PREPARE. A hostile guest may own the VMM: pandod
 * checks every field of what comes back and believes nothing but the kernel (peer
 * credentials) about who is talking.
 *
 * Little-endian, explicit padding, version in every header. An unknown type or version, a
 * wrong length or a wrong number of descriptors closes the connection. A VMM whose
 * control socket is closed goes on running: the next pandod adopts it (see VMM_LISTEN_FD
 * below).
 *
 * Adoption: VMM_BOOT, VMM_FORK and VMM_RESTORE bring a *listening* SOCK_SEQPACKET socket
 * bound to <vm folder>/control.sock. When its control connection is
 * gone the VMM accepts the next one from it; peer uid must equal its own (SO_PEERCRED).
 */
#ifndef PANDO_COMMON_WIRE_VMM_WIRE_H
#define PANDO_COMMON_WIRE_VMM_WIRE_H

#include <stdint.h>

#define VMM_CONTROL_FD 3
#define VMM_WIRE_VERSION 1

#define VMM_MEM_MIN_MIB 16
#define VMM_MEM_MAX_MIB (1024 * 1024)
#define VMM_DISK_MAX_MIB (1024 * 1024)
#define VMM_VCPUS_MAX 8
#define VMM_CMDLINE_MAX 2048
#define VMM_NAME_MAX 64

enum vmm_msg_type {
	/* pandod -> VMM, 1.. */
	VMM_BOOT = 1,
	VMM_FORK = 2,
	VMM_PAUSE = 3,	      /* header only; answered by VMM_DONE */
	VMM_RESUME = 4,	      /* header only; VMM_DONE */
	VMM_POWER_BUTTON = 5, /* header only; VMM_DONE */
	VMM_STATS = 6,	      /* header only; VMM_STATS_ANSWER */
	VMM_QUIT =
		7, /* header only; the process flushes the disk and exits 0, no answer */
	VMM_PREPARE =
		8, /* first message only; VMM_DONE: the VMM is pre-warmed and ready */
	VMM_RESTORE = 9, /* first message, or to a pre-warmed VMM; VMM_STARTED */
	VMM_STATE = 10,	 /* to a frozen fork; VMM_STATE_ANSWER */
	VMM_RESIZE = 11, /* VMM_DONE */
	/* Only to a VMM whose VMM_STATS_ANSWER has VMM_TRACKS. */
	VMM_TRACK_OPEN = 12, /* header only; VMM_DONE */
	VMM_TRACK = 13,	     /* VMM_DONE */
	VMM_COMMITTED = 14,  /* VMM_DONE */
	/* Only to a VMM whose VMM_STATS_ANSWER has VMM_LIMITS_DISK. */
	VMM_DISK_LIMITS = 20, /* VMM_DONE */
	/* Only to a VMM whose VMM_STATS_ANSWER has VMM_RESETS. */
	VMM_RESET = 15, /* VMM_RESET_ANSWER */
	/* Only to a VM whose VMM_STATS_ANSWER has VMM_HAS_BALLOON. */
	VMM_BALLOON = 28, /* VMM_BALLOON_ANSWER */
	/* Only to a VMM whose VMM_STATS_ANSWER has VMM_TAKES_MERGED. */
	VMM_MERGED = 24, /* VMM_DONE */

	/* VMM -> pandod, 64.. */
	VMM_DONE = 64,	  /* answers the request with the same seq */
	VMM_STARTED = 65, /* unasked, seq 0: this VM's vCPUs run (or it is parked) */
	VMM_FORKED = 66,  /* answers VMM_FORK, from the parent */
	VMM_STATS_ANSWER = 67,
	VMM_EXITING = 68, /* unasked, seq 0: last words */
	VMM_STATE_ANSWER = 69,
	VMM_DISK_FULL = 74, /* unasked, seq 0 */
	VMM_RESET_ANSWER = 70,
	VMM_BALLOON_ANSWER = 78,
};

struct vmm_hdr {
	uint16_t version; /* VMM_WIRE_VERSION */
	uint16_t type;
	uint32_t len; /* of the whole message, header included */
	uint64_t seq; /* chosen by pandod, repeated in the answer */
};
_Static_assert(sizeof(struct vmm_hdr) == 16, "wire format");

/* The four descriptors of a new disk segment (common/wire/segment_wire.h), always one after the
 * other and in this order. Once a fork has cut the segment, parent and child read it and
 * neither may write it: both close the first two. */
enum vmm_seg_fd {
	VMM_SEG_DATA,	 /* empty, read-write */
	VMM_SEG_INDEX,	 /* likewise */
	VMM_SEG_DATA_RO, /* the same two files, read-only */
	VMM_SEG_INDEX_RO,
	VMM_SEG_FDS,
};

/* Descriptors of VMM_BOOT, in this order. */
enum vmm_boot_fd {
	VMM_BOOT_FD_LISTEN, /* listening SOCK_SEQPACKET, for adoption */
	VMM_BOOT_FD_KVM,    /* /dev/kvm, read-write */
	VMM_BOOT_FD_VSOCK,  /* listening SOCK_STREAM Unix socket, CONNECT convention */
	VMM_BOOT_FD_CONSOLE, /* console ring file, read-write (common/wire/console_ring.h) */
	VMM_BOOT_FD_LOG,     /* append-only log file: the VMM's own stderr from here on */
	VMM_BOOT_FD_KERNEL, /* bzImage, read-only */
	VMM_BOOT_FD_INITRD, /* read-only; -- see VMM_BOOT_HAS_INITRD */
	VMM_BOOT_FD_BASE,   /* base disk, read-only; -- see VMM_BOOT_HAS_BASE */
	VMM_BOOT_FD_SEG,    /* this VM's own segment */
	VMM_BOOT_FD_SEG_END = VMM_BOOT_FD_SEG + VMM_SEG_FDS - 1,
	VMM_BOOT_FD_COUNT,
};
/* Where a flag is clear, /dev/null stands in its place, so that the count is fixed. */
#define VMM_BOOT_HAS_INITRD 1u
#define VMM_BOOT_HAS_BASE 2u

struct vmm_boot {
	struct vmm_hdr hdr;
	uint64_t mem_mib;
	uint64_t disk_mib; /* size the guest sees; the base may be shorter, the rest reads
			      as zeroes */
	uint32_t vcpus;
	uint32_t flags;	    /* VMM_BOOT_HAS_* */
	uint32_t guest_cid; /* vsock context id, >= 3; the same for all is fine */
	uint32_t pad;
	uint8_t generation[16];	 /* VM generation id (UUID bytes as the guest reads them)
				  */
	char name[VMM_NAME_MAX]; /* for the log tag "vm/<name>" */
	char cmdline[VMM_CMDLINE_MAX];
};
_Static_assert(
	sizeof(struct vmm_boot) == 16 + 16 + 16 + 16 + VMM_NAME_MAX + VMM_CMDLINE_MAX,
	"wire format");

/* Descriptors of VMM_FORK, in this order. */
enum vmm_fork_fd {
	VMM_FORK_FD_CONTROL, /* the child's end of a fresh SOCK_SEQPACKET pair to pandod
			       */
	VMM_FORK_FD_LISTEN,  /* the child's listening control socket */
	VMM_FORK_FD_VSOCK,   /* the child's */
	VMM_FORK_FD_CONSOLE, /* the child's */
	VMM_FORK_FD_LOG,     /* the child's */
	VMM_FORK_FD_SEG,     /* the child's new segment */
	VMM_FORK_FD_SEG_END = VMM_FORK_FD_SEG + VMM_SEG_FDS - 1,
	VMM_FORK_FD_PARENT_SEG, /* the parent's new segment */
	VMM_FORK_FD_PARENT_SEG_END = VMM_FORK_FD_PARENT_SEG + VMM_SEG_FDS - 1,
	VMM_FORK_FD_COUNT,
};

/* The child parks: it makes no KVM VM, runs nothing, holds the frozen fork, and answers
 * VMM_FORK (children of the same frozen fork), VMM_STATS and VMM_QUIT. Forking from a parked
 * VMM does not use the PARENT_SEG descriptors (its own segment stays empty; /dev/null in
 * their place). */
#define VMM_FORK_PARK 1u
/* With VMM_FORK_PARK, of a VM that runs or is paused: the parent notes, in the pause, which
 * pages changed, and the frozen fork's state says so. An older VMM does not know the flag, and
 * forks. */
#define VMM_FORK_TRACK 2u
/* With VMM_FORK_PARK, of a VM that runs or is paused, and only to a VMM whose VMM_STATS_ANSWER has
 * VMM_KEEPS_FORK_POINTS: the frozen fork stays for its children, which may be reset to it
 * (VMM_RESET_TO_FORK_POINT). Once its control connection is closed it ends with the last of them
 * that may (vmm/keep.h). */
#define VMM_FORK_KEEP 4u

struct vmm_fork {
	struct vmm_hdr hdr;
	uint32_t flags; /* VMM_FORK_* */
	uint32_t pad;
	uint8_t child_generation[16];
	uint8_t parent_generation[16]; /* the running parent's new one too */
	char child_name[VMM_NAME_MAX];
};
_Static_assert(sizeof(struct vmm_fork) == 16 + 8 + 32 + VMM_NAME_MAX, "wire format");

/*
 * A commit: pandod parks a fork (VMM_FORK_PARK), asks the frozen fork for its state, and
 * reads its memory by process_vm_readv(2) and /proc/<pid>/pagemap.
 *
 * The one descriptor of VMM_STATE is a regular file or memfd, empty, read-write: the
 * state blob is written into it from offset 0. The blob (vmm/snapshot.h) holds all of the
 * VM but its memory and its disk's blocks; to pandod it is opaque bytes. VMM_STATE is a
 * header alone. A frozen fork that was asked once lets its user read its memory.
 */
enum vmm_state_fd {
	VMM_STATE_FD_BLOB,
	VMM_STATE_FD_COUNT,
};

#define VMM_STATE_BLOB_MAX (1u << 20) /* bytes; 15 KiB are usual */
#define VMM_MEM_RANGES_MAX 2

struct vmm_mem_range {
	uint64_t gpa;  /* guest physical address */
	uint64_t host; /* virtual address in the VMM; 2 MiB aligned where gpa is */
	uint64_t len;
};

/* Guest memory lies on the image of the VMM_RESTORE that this VM or its ancestor came
 * from: a page which pagemap says is neither present nor swapped, or is a file's (bit
 * 61), is as in that image. Without the flag a page neither present nor swapped is zero.
 */
#define VMM_STATE_ON_IMAGE 1u
/* A struct vmm_track lies in the file behind the blob. Only after VMM_FORK_TRACK. */
#define VMM_STATE_TRACKED 2u

struct vmm_state_answer {
	struct vmm_hdr hdr;
	int32_t error;	/* 0 or negative errno: then msg says why, and nothing else counts
			 */
	uint32_t flags; /* VMM_STATE_* */
	uint64_t blob_bytes;
	uint64_t mem_mib;
	uint64_t disk_mib;
	uint32_t vcpus;
	uint32_t n_ranges;
	/* Ascending. The memory image of VMM_RESTORE is these, one after the other. */
	struct vmm_mem_range ranges[VMM_MEM_RANGES_MAX];
	char msg[512];
};
_Static_assert(sizeof(struct vmm_state_answer) == 16 + 8 + 32 + 48 + 512, "wire format");

/*
 * Dirty pages (vmm/track.h). For a commit pandod looks at VMM_STATS_ANSWER's `tracks`, hands the
 * VMM what it needs, and parks a fork with VMM_FORK_TRACK. When the commit is durable it says
 * so (VMM_COMMITTED), with the commit's id, which the VMM keeps: the next frozen fork says which
 * pages changed since that commit, to a pandod that was started meanwhile, too. pandod believes it only where the VM's row has the same
 * commit as its last: a VMM that lies spoils its own commits. The VMM knows the ids of no other
 * commits.
 */
enum vmm_track_means {
	VMM_TRACK_NONE = 0,
	VMM_TRACK_USERFAULTFD = 1,
	VMM_TRACK_SOFT_DIRTY = 2,
};

#define VMM_COMMIT_ID_BYTES 32
#define VMM_COMMIT_NOTE_BYTES 128

/* VMM_STATS_ANSWER's `tracks`: 0 from an older VMM. */
#define VMM_TRACKS 1u	     /* it knows the three messages */
#define VMM_TRACKS_NEEDS_FDS 2u /* VMM_TRACK must come before the first commit */
#define VMM_RESETS 4u		/* it knows VMM_RESET */
#define VMM_HAS_BALLOON 32u /* the machine was booted with one; it knows VMM_BALLOON */
#define VMM_TAKES_MERGED 128u /* it knows VMM_MERGED */
#define VMM_KEEPS_FORK_POINTS 8u /* it knows VMM_FORK_KEEP */
#define VMM_HAS_FORK_POINT 16u	 /* it holds a connection to the one that it came from */
#define VMM_TRACKS_MEANS_SHIFT 8 /* enum vmm_track_means from here on, 8 bits */
#define VMM_LIMITS_DISK 64u /* it knows VMM_DISK_LIMITS */

/* VMM_STATS_ANSWER's `paused`: the VM stands still by itself (VMM_DISK_FULL). */
#define VMM_PAUSED_DISK_FULL 3u
#define VMM_RESETS_SHIFT 16	 /* how often this process was reset, modulo 2^16 */

/* A VMM that was forked has no page map: the seal keeps it from /proc. VMM_TRACK_OPEN makes its
 * /proc/<pid> readable for processes of its user, until VMM_TRACK, any other message, or the end
 * of the connection. */
enum vmm_track_fd {
	VMM_TRACK_FD_PAGEMAP,	 /* /proc/<pid of the VMM>/pagemap, read-only */
	VMM_TRACK_FD_CLEAR_REFS, /* /proc/<pid>/clear_refs, write-only, for
				    VMM_TRACK_SOFT_DIRTY; else /dev/null */
	VMM_TRACK_FD_COUNT,
};

struct vmm_committed {
	struct vmm_hdr hdr;
	uint8_t fork[16]; /* the parent_generation of the VMM_FORK that it was made from */
	uint8_t commit[VMM_COMMIT_ID_BYTES];
	uint8_t note[VMM_COMMIT_NOTE_BYTES]; /* an older pandod's; zeroes */
};
_Static_assert(sizeof(struct vmm_committed) == 16 + 16 + 32 + 128, "wire format");

/*
 * In the file of VMM_STATE, at the first multiple of VMM_TRACK_ALIGN behind the blob. With
 * VMM_TRACK_SINCE two bitmaps follow at the next multiple, one behind the other, a bit for each
 * page of the memory image, the lowest bit of a byte first, each VMM_TRACK_BITMAP_BYTES() long:
 * pages that may have changed since the base (one that is not mapped in the frozen fork, or is a
 * file's, has not), and pages that the VMM gave back to the host (these have, whatever is
 * mapped).
 */
#define VMM_TRACK_ALIGN 4096u
#define VMM_TRACK_BITMAP_BYTES(pages) (((pages) + 63) / 64 * 8)
#define VMM_TRACK_VERSION 1u
#define VMM_TRACK_BASE 1u  /* base and note are there */
#define VMM_TRACK_SINCE 2u /* and what changed since it, too */

struct vmm_track {
	uint32_t version; /* VMM_TRACK_VERSION */
	uint32_t flags;
	uint32_t means; /* enum vmm_track_means */
	uint32_t pad;
	uint64_t pages; /* of the memory image */
	uint8_t base[VMM_COMMIT_ID_BYTES];
	uint8_t note[VMM_COMMIT_NOTE_BYTES];
};
_Static_assert(sizeof(struct vmm_track) == 24 + 32 + 128, "wire format");

/*
 * A pre-warmed VMM: VMM_PREPARE as the first message makes all that can be made before it is
 * known which VM it will be; answered by VMM_DONE. The next message is VMM_RESTORE or
 * VMM_QUIT; a pre-warmed VMM whose control socket is closed exits.
 */
enum vmm_prepare_fd {
	VMM_PREPARE_FD_KVM, /* /dev/kvm, read-write */
	VMM_PREPARE_FD_LOG, /* append-only: its standard error until VMM_RESTORE */
	VMM_PREPARE_FD_COUNT,
};

struct vmm_prepare {
	struct vmm_hdr hdr;
	uint64_t mem_mib;
	uint32_t vcpus;
	uint32_t pad;
};
_Static_assert(sizeof(struct vmm_prepare) == 16 + 16, "wire format");

/* Descriptors of VMM_RESTORE, in this order. */
enum vmm_restore_fd {
	VMM_RESTORE_FD_LISTEN, /* listening SOCK_SEQPACKET, for adoption */
	VMM_RESTORE_FD_VSOCK,  /* listening SOCK_STREAM Unix socket, CONNECT convention */
	VMM_RESTORE_FD_CONSOLE, /* console ring file, read-write (common/wire/console_ring.h) */
	VMM_RESTORE_FD_LOG,    /* append-only log file */
	VMM_RESTORE_FD_STATE,  /* state blob, read-only */
	VMM_RESTORE_FD_MEMORY, /* memory image, read-only, exactly mem_mib; never written
				   again */
	VMM_RESTORE_FD_BASE,   /* the disk as one materialized image, or what lies below the
				   changes, read-only; see VMM_RESTORE_HAS_BASE */
	VMM_RESTORE_FD_SEG,    /* this VM's own segment */
	VMM_RESTORE_FD_SEG_END = VMM_RESTORE_FD_SEG + VMM_SEG_FDS - 1,
	VMM_RESTORE_FD_KVM, /* /dev/kvm; a pre-warmed VMM has it: /dev/null will do */
	VMM_RESTORE_FD_COUNT,
	/* Only with one of the flags below; of the other one any descriptor stands here. */
	VMM_RESTORE_FD_CHANGES = VMM_RESTORE_FD_COUNT, /* data of a segment, read-only */
	VMM_RESTORE_FD_MAP, /* the block map over it (vmm/blockmap.h), read-only: an entry
			       for each block of the commit's disk */
	VMM_RESTORE_FD_FILL, /* SOCK_SEQPACKET to pando-fill (common/wire/fill_wire.h) */
	VMM_RESTORE_FD_UFFD, /* /dev/userfaultfd */
	VMM_RESTORE_FD_MAX,
};
#define VMM_RESTORE_HAS_BASE 1u /* clear: /dev/null in its place, the disk is zeroes */
#define VMM_RESTORE_HAS_CHANGES 2u /* the first segment of the chain lies below the own one */
#define VMM_RESTORE_IS_FILLED 4u   /* the memory image, a memfd, is not all there yet */

struct vmm_restore {
	struct vmm_hdr hdr;
	uint64_t mem_mib; /* as the blob's */
	uint64_t
		disk_mib; /* as the blob's or more: then the guest is told that it grew */
	uint64_t blob_bytes;
	uint32_t vcpus; /* as the blob's */
	uint32_t flags; /* VMM_RESTORE_* */
	uint64_t changed_blocks; /* with VMM_RESTORE_HAS_CHANGES: entries of the map that are
				    the segment's */
	uint8_t generation[16];
	char name[VMM_NAME_MAX];
};
_Static_assert(
	sizeof(struct vmm_restore) == 16 + 24 + 8 + 8 + 16 + VMM_NAME_MAX, "wire format");

/* How many descriptors come with it. */
static inline unsigned
vmm_restore_fds(uint32_t flags)
{
	return flags & (VMM_RESTORE_HAS_CHANGES | VMM_RESTORE_IS_FILLED)
		       ? VMM_RESTORE_FD_MAX
		       : VMM_RESTORE_FD_COUNT;
}

/*
 * Reset: a VM that runs or is paused goes back to a commit of its own shape, in the same process
 * and KVM VM. All that it wrote is dropped: memory, its disk's own segment and all older ones;
 * the disk is the commit's base and a new, empty segment. It keeps its sockets, console and log;
 * its vsock connections are closed. It runs afterwards, also where it was paused.
 *
 * Refused (error, and nothing has changed) is what can be seen before the VM is stopped. What
 * fails later ends the VM. The answer comes when the vCPUs run. `resets` counts in
 * VMM_STATS_ANSWER, too (VMM_RESETS_SHIFT): by it a new pandod finds out whether a reset that
 * another one asked for has happened.
 */
enum vmm_reset_fd {
	VMM_RESET_FD_STATE,  /* as of VMM_RESTORE, these three */
	VMM_RESET_FD_MEMORY, /* where it is the image that the VM lies on, only what the VM wrote
				is dropped; else it is mapped in the place of all */
	VMM_RESET_FD_BASE,
	VMM_RESET_FD_SEG, /* this VM's new segment */
	VMM_RESET_FD_SEG_END = VMM_RESET_FD_SEG + VMM_SEG_FDS - 1,
	VMM_RESET_FD_COUNT,
};
#define VMM_RESET_HAS_BASE 1u
/* This host's CPU walks the guest's page tables itself (EPT, NPT). Without the flag KVM may have
 * shadows of page tables as the guest wrote them since, and is told to drop them all. */
#define VMM_RESET_NO_SHADOWS 2u
/* Not to a commit but to the fork point that the VM came from, of a VM whose fork had
 * VMM_FORK_KEEP: the frozen fork gives it state and memory. blob_bytes is 0, and /dev/null stands in
 * the place of STATE, MEMORY and BASE. disk_mib is the disk's size then. Of the disk's segments those
 * are read that there were then; a VMM that keeps a fork point swaps none of these for a merged one.
 * -ESTALE: the fork point is gone, for good. */
#define VMM_RESET_TO_FORK_POINT 4u

struct vmm_reset {
	struct vmm_hdr hdr;
	uint64_t disk_mib; /* as the blob's */
	uint64_t blob_bytes;
	uint32_t flags; /* VMM_RESET_* */
	uint32_t pad;
	uint8_t generation[16];
};
_Static_assert(sizeof(struct vmm_reset) == 16 + 24 + 16, "wire format");

struct vmm_reset_answer {
	struct vmm_hdr hdr;
	int32_t error; /* != 0: refused; the VM is as it was */
	uint32_t resets;
	uint64_t pause_ns; /* vCPUs asked to stop -> running again */
	uint64_t pages;	   /* that were dropped; UINT64_MAX: all, uncounted */
	char msg[512];
};
_Static_assert(sizeof(struct vmm_reset_answer) == 16 + 24 + 512, "wire format");

/* To a VM that runs or is paused. Disks only grow. */
struct vmm_resize {
	struct vmm_hdr hdr;
	uint64_t disk_mib;
};
_Static_assert(sizeof(struct vmm_resize) == 16 + 8, "wire format");

/* From now on; a branch has them from its parent. 0: as much as there is. */
struct vmm_disk_limits {
	struct vmm_hdr hdr;
	uint64_t bytes_per_s; /* or VMM_DISK_BYTES_MIN and more */
	uint64_t ops_per_s;
};
_Static_assert(sizeof(struct vmm_disk_limits) == 16 + 16, "wire format");
#define VMM_DISK_BYTES_MIN 65536

/* The VM stands still because the host has no room for what its guest writes, until there is or
 * VMM_RESUME comes; or it runs again (error 0). Said again to a pandod that adopts it. */
struct vmm_disk_full {
	struct vmm_hdr hdr;
	int32_t error; /* negative errno of the write; 0: over */
	uint32_t pad;
	char msg[512];
};
_Static_assert(sizeof(struct vmm_disk_full) == 16 + 8 + 512, "wire format");
/* The guest's balloon (vmm/balloon.h). mem_target_mib: the memory that the guest shall keep, at most
 * what the VM has; it gives up the rest as far as it can, and takes it back when it would run out of
 * memory otherwise. 0: only asks. The statistics are the guest's claims, those of the question
 * before this one. */
struct vmm_balloon {
	struct vmm_hdr hdr;
	uint64_t mem_target_mib;
};
_Static_assert(sizeof(struct vmm_balloon) == 16 + 8, "wire format");

#define VMM_BALLOON_DRIVER 1u /* the guest's driver works with it */
#define VMM_BALLOON_UNKNOWN (~0ull)

struct vmm_balloon_answer {
	struct vmm_hdr hdr;
	int32_t error; /* 0 or negative errno: then msg says why, and nothing else counts */
	uint32_t flags;
	uint64_t mem_target_mib;
	uint64_t balloon_bytes; /* in the balloon now */
	uint64_t given_back_bytes; /* to the host since this VM started, again and again */
	uint64_t guest_free_bytes, guest_available_bytes; /* or VMM_BALLOON_UNKNOWN */
	char msg[512];
};
_Static_assert(sizeof(struct vmm_balloon_answer) == 16 + 8 + 40 + 512, "wire format");

/*
 * Segments of the VM's disk that nobody writes any more were merged into one, which means the
 * same (vmm/segment_merge.h) and is on the disk for good: the VMM reads that one from now on
 * and closes the others. It knows them by their data files' device and inode numbers; those
 * that it does not have it had no block in. Told again, it does what is left to do. To a VM
 * that runs or is paused.
 */
#define VMM_MERGED_MAX 64

enum vmm_merged_fd {
	VMM_MERGED_FD_DATA,  /* read-only, whole */
	VMM_MERGED_FD_INDEX, /* likewise */
	VMM_MERGED_FD_COUNT,
};

struct vmm_merged_file {
	uint64_t dev, ino;
};

struct vmm_merged {
	struct vmm_hdr hdr;
	uint32_t n; /* 1 to VMM_MERGED_MAX */
	uint32_t pad;
	uint64_t records; /* in the index */
	struct vmm_merged_file files[VMM_MERGED_MAX];
};
_Static_assert(sizeof(struct vmm_merged) == 16 + 16 + 16 * VMM_MERGED_MAX, "wire format");

struct vmm_done {
	struct vmm_hdr hdr;
	int32_t error; /* 0 or negative errno */
	uint32_t pad;
	char msg[512]; /* the sentence when error != 0; not to be trusted to be terminated
			*/
};
_Static_assert(sizeof(struct vmm_done) == 16 + 8 + 512, "wire format");

struct vmm_started {
	struct vmm_hdr hdr;
	int32_t error; /* != 0: msg says why; the process exits after this */
	uint32_t parked;
	uint64_t setup_ns; /* fork (or message received) -> first KVM_RUN entered */
	char msg[512];
};
_Static_assert(sizeof(struct vmm_started) == 16 + 16 + 512, "wire format");

struct vmm_forked {
	struct vmm_hdr hdr;
	int32_t error;	    /* != 0: no child; the parent runs on as before */
	uint32_t child_pid; /* as the VMM sees it: a hint for logs; pandod takes
			       SO_PEERCRED */
	uint64_t pause_ns;  /* vCPUs asked to stop -> vCPUs running again */
	uint64_t fork_ns;   /* of that, the fork system call */
	/* Records in the parent's old segment index, and bytes of its data, at the cut:
	 * what the two now share read-only. pandod records it with the child's disk
	 * chain. */
	uint64_t fork_point_records;
	uint64_t fork_point_data_bytes;
	char msg[512];
};
_Static_assert(sizeof(struct vmm_forked) == 16 + 8 + 32 + 512, "wire format");

struct vmm_stats_answer {
	struct vmm_hdr hdr;
	uint64_t uptime_ns;
	uint64_t vcpu_exits;
	uint64_t disk_read_bytes;
	uint64_t disk_write_bytes;
	uint64_t disk_segment_bytes; /* in this VM's own segment */
	uint64_t vsock_connections;  /* open now */
	uint64_t doorbells;	     /* virtio queue notifications */
	uint64_t first_doorbell_ns;  /* when this VM rang its first: the host's
					CLOCK_MONOTONIC; 0: not yet */
	uint32_t paused;	     /* 1: paused, 2: parked, VMM_PAUSED_DISK_FULL */
	uint32_t tracks;	     /* VMM_TRACKS_*, VMM_RESETS* */
};
_Static_assert(sizeof(struct vmm_stats_answer) == 16 + 72, "wire format");

enum vmm_exit_reason {
	VMM_EXIT_POWER_OFF = 1, /* the guest powered itself off */
	VMM_EXIT_RESET = 2,	/* the guest asked for a reset: it reboots */
	VMM_EXIT_QUIT = 3,
	VMM_EXIT_GUEST_FAULT =
		4, /* the guest did what no machine can do (triple fault, …) */
	VMM_EXIT_HOST_FAULT = 5, /* a host call failed */
	VMM_EXIT_PANIC =
		6, /* a reset just after Linux wrote on its console that it panicked,
			       as with panic=-1 */
};

struct vmm_exiting {
	struct vmm_hdr hdr;
	uint32_t reason; /* enum vmm_exit_reason */
	uint32_t pad;
	char msg[512];
};
_Static_assert(sizeof(struct vmm_exiting) == 16 + 8 + 512, "wire format");

#endif
