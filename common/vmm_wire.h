/*
 * pandod <-> pando-vmm: messages over a SOCK_SEQPACKET Unix socket, one message a packet,
 * descriptors by SCM_RIGHTS in the order each message states.
 *
 * The VMM starts with the socket as descriptor 3 (VMM_CONTROL_FD), opens nothing, and
 * waits for VMM_BOOT. A hostile guest may own the VMM: pandod checks every field of what
 * comes back and believes nothing but the kernel (peer credentials) about who is talking.
 *
 * Little-endian, explicit padding, version in every header. An unknown type or version, a
 * wrong length or a wrong number of descriptors closes the connection. A VMM whose
 * control socket is closed goes on running: the next pandod adopts it (see VMM_LISTEN_FD
 * below).
 *
 * Adoption: the first descriptor of VMM_BOOT and of VMM_FORK is a *listening*
 * SOCK_SEQPACKET socket bound to <vm folder>/control.sock. When its control connection is
 * gone the VMM accepts the next one from it; peer uid must equal its own (SO_PEERCRED).
 */
#ifndef PANDO_VMM_WIRE_H
#define PANDO_VMM_WIRE_H

#include <stdint.h>

#define VMM_CONTROL_FD 3
#define VMM_WIRE_VERSION 1

#define VMM_MEM_MIN_MIB 16
#define VMM_MEM_MAX_MIB (1024 * 1024)
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
	VMM_RESIZE = 11, /* VMM_DONE */

	/* VMM -> pandod, 64.. */
	VMM_DONE = 64,	  /* answers the request with the same seq */
	VMM_STARTED = 65, /* unasked, seq 0: this VM's vCPUs run (or it is parked) */
	VMM_FORKED = 66,  /* answers VMM_FORK, from the parent */
	VMM_STATS_ANSWER = 67,
	VMM_EXITING = 68, /* unasked, seq 0: last words */
};

struct vmm_hdr {
	uint16_t version; /* VMM_WIRE_VERSION */
	uint16_t type;
	uint32_t len; /* of the whole message, header included */
	uint64_t seq; /* chosen by pandod, repeated in the answer */
};
_Static_assert(sizeof(struct vmm_hdr) == 16, "wire format");

/* Descriptors of VMM_BOOT, in this order. */
enum vmm_boot_fd {
	VMM_BOOT_FD_LISTEN,  /* listening SOCK_SEQPACKET, for adoption */
	VMM_BOOT_FD_KVM,     /* /dev/kvm, read-write */
	VMM_BOOT_FD_VSOCK,   /* listening SOCK_STREAM Unix socket, CONNECT convention */
	VMM_BOOT_FD_CONSOLE, /* console ring file, read-write (vmm/console.h) */
	VMM_BOOT_FD_LOG,     /* append-only log file: the VMM's own stderr from here on */
	VMM_BOOT_FD_KERNEL,  /* bzImage, read-only */
	VMM_BOOT_FD_INITRD,  /* read-only; -- see VMM_BOOT_HAS_INITRD */
	VMM_BOOT_FD_BASE,    /* base disk, read-only; -- see VMM_BOOT_HAS_BASE */
	VMM_BOOT_FD_SEG_DATA,  /* this VM's own segment, empty, read-write */
	VMM_BOOT_FD_SEG_INDEX, /* its index, empty, read-write (common/segment_wire.h) */
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
	VMM_FORK_FD_CONTROL,  /* the child's end of a fresh SOCK_SEQPACKET pair to pandod
			       */
	VMM_FORK_FD_LISTEN,   /* the child's listening control socket */
	VMM_FORK_FD_VSOCK,    /* the child's */
	VMM_FORK_FD_CONSOLE,  /* the child's */
	VMM_FORK_FD_LOG,      /* the child's */
	VMM_FORK_FD_SEG_DATA, /* the child's new segment, empty */
	VMM_FORK_FD_SEG_INDEX,
	VMM_FORK_FD_PARENT_SEG_DATA, /* the parent's new segment, empty */
	VMM_FORK_FD_PARENT_SEG_INDEX,
	VMM_FORK_FD_COUNT,
};

/* The child parks: it makes no KVM VM, runs nothing, holds the picture, and answers
 * VMM_FORK (children of the same picture), VMM_STATS and VMM_QUIT. Forking from a parked
 * VMM does not use the PARENT_SEG descriptors (its own segment stays empty; /dev/null in
 * their place). */
#define VMM_FORK_PARK 1u

struct vmm_fork {
	struct vmm_hdr hdr;
	uint32_t flags;
	uint32_t pad;
	uint8_t child_generation[16];
	uint8_t parent_generation[16]; /* the running parent's new one too */
	char child_name[VMM_NAME_MAX];
};
_Static_assert(sizeof(struct vmm_fork) == 16 + 8 + 32 + VMM_NAME_MAX, "wire format");

/* To a VM that runs or is paused. Disks only grow. */
struct vmm_resize {
	struct vmm_hdr hdr;
	uint64_t disk_mib;
};
_Static_assert(sizeof(struct vmm_resize) == 16 + 8, "wire format");

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
	uint64_t cut_index_records;
	uint64_t cut_data_bytes;
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
	uint32_t paused;	     /* 1: paused, 2: parked */
	uint32_t pad;
};
_Static_assert(sizeof(struct vmm_stats_answer) == 16 + 64, "wire format");

enum vmm_exit_reason {
	VMM_EXIT_POWER_OFF = 1, /* the guest powered itself off */
	VMM_EXIT_RESET =
		2, /* the guest asked for a reset (a panic with panic=-1, reboot) */
	VMM_EXIT_QUIT = 3,
	VMM_EXIT_GUEST_FAULT =
		4, /* the guest did what no machine can do (triple fault, …) */
	VMM_EXIT_HOST_FAULT = 5, /* a host call failed */
};

struct vmm_exiting {
	struct vmm_hdr hdr;
	uint32_t reason; /* enum vmm_exit_reason */
	uint32_t pad;
	char msg[512];
};
_Static_assert(sizeof(struct vmm_exiting) == 16 + 8 + 512, "wire format");

#endif
