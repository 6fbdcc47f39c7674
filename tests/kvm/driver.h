/*
 * What stands in pandod's place in the KVM tests and benchmarks: starts the shipped
 * pando-vmm, boots and forks VMs through common/wire/vmm_wire.h, reads their console rings.
 * Everything is the VMM's real interface.
 *
 * A struct driver is a temporary folder and the VMs in it; driver_done() kills what is
 * left and removes it. Calls return 0 or a negative errno with a sentence. One thread.
 */
#ifndef PANDO_TESTS_KVM_DRIVER_H
#define PANDO_TESTS_KVM_DRIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/wire/console_ring.h"
#include "common/wire/vmm_wire.h"
#include "tests/kvm/console_line.h"

#define DRIVER_VMS_MAX 256

struct vm {
	struct driver *driver; /* weak */
	char name[VMM_NAME_MAX];
	char folder[160];
	bool used;
	bool own_process; /* started by us, not forked by a VMM: we can wait for it */
	pid_t pid;	  /* from SO_PEERCRED for a fork */
	int pidfd;	  /* owned */
	int status;	  /* of waitpid, once it ended (own_process only) */
	int control;	  /* owned; -1 after driver_drop_control */
	const struct console_hdr *console; /* owned mapping of CONSOLE_FILE_BYTES */
	uint64_t console_read;
	unsigned segments; /* files made so far */
	uint8_t generation[16];
	uint64_t seq;
	/* What came unasked. */
	bool got_started, got_exiting, closed;
	struct vmm_started started;
	struct vmm_exiting exiting;
	unsigned disk_fulls; /* VMM_DISK_FULL messages; the last of them */
	struct vmm_disk_full disk_full;
};

struct driver {
	int kvm, vmm, guest; /* owned: /dev/kvm and the two programs */
	char folder[128];
	char vmm_path[4096], guest_path[4096];
	char segment_folder[160]; /* where segments are made; empty: each VM's own folder
				   */
	struct vm vms[DRIVER_VMS_MAX];
	uint64_t next_generation;
};

struct boot {
	const char *cmdline;
	const char *kernel; /* NULL: the small guest */
	const char *base;   /* NULL: none */
	uint64_t mem_mib;   /* 0: 16 */
	uint64_t disk_mib;  /* 0: 16 */
	uint32_t vcpus;	    /* 0: 1 */
};

/* Whether this host has a /dev/kvm that we may open; else why not. */
bool driver_has_kvm(char why[static 160]);

int driver_init(struct driver *d, struct err *e);
void driver_done(struct driver *d);

/* Starts pando-vmm, without a boot message. */
int driver_start(struct driver *d, const char *name, struct vm **ret, struct err *e);
/* Sends VMM_BOOT; the answer is VMM_STARTED (driver_wait_started). */
int driver_send_boot(struct vm *vm, const struct boot *boot, struct err *e);
/* Starts, boots and waits until it runs. */
int driver_boot(struct driver *d, const char *name, const struct boot *boot,
	struct vm **ret, struct err *e);
int driver_wait_started(struct vm *vm, int timeout_ms, struct err *e);

/* Forks. Returns once the parent has answered; the child's VMM_STARTED is waited for
 * unless no_wait. */
#define DRIVER_PARK 1u
#define DRIVER_NO_WAIT 2u
/* The child's control socket is told to quit and closed before there is a child. */
#define DRIVER_GIVEN_UP 4u
/* The VMM is stopped while the message is sent, as a shell or a frozen cgroup does it. */
#define DRIVER_STOPPED 8u
/* With DRIVER_PARK: VMM_FORK_TRACK; what the VMM needs for it was handed over first. */
#define DRIVER_TRACK 16u
/* With DRIVER_PARK: VMM_FORK_KEEP. */
#define DRIVER_KEEP 32u
/* The child's generation tells the guest (rest=1) to stand still. */
#define DRIVER_RESTS 64u
int driver_fork(struct vm *parent, const char *name, unsigned flags,
	struct vm **ret_child, struct vmm_forked *ret, struct err *e);

/* Commits, as far as a VMM has to do with them (driver_restore.c). Paths are of files
 * that driver_take_state() makes: the state, the memory (flat), the disk (flat). */
struct commit {
	char state[256], memory[256], disk[256];
	char page_map[256]; /* of memory, an entry a page, as it was before anybody read it */
	struct vmm_state_answer answer;
	struct vmm_track track; /* all zeroes: it has none */
};

/* A frozen fork's state and memory into files of its folder, named after
 * tag; disk stays empty. */
int driver_take_state(
	struct vm *parked, const char *tag, struct commit *ret, struct err *e);
/* VMM_STATE alone, into fd. */
int driver_ask_state(struct vm *vm, int fd, struct vmm_state_answer *ret, struct err *e);
/* The two bitmaps of a commit whose track has VMM_TRACK_SINCE; malloc'd. */
int driver_read_bitmaps(const struct commit *c, uint8_t **ret, struct err *e);
/* VMM_TRACK_OPEN and VMM_TRACK, with the page map of process pid. */
int driver_hand_page_map(struct vm *vm, pid_t pid, struct err *e);
/* VMM_COMMITTED: the last fork of vm is durable as the commit of that id. */
int driver_committed(struct vm *vm, const uint8_t fork[static 16], uint64_t id, struct err *e);
/* The disk of a VM that wrote only its first segment, cut at `records`, over base (NULL:
 * none), into commit->disk. */
int driver_take_disk(const struct vm *vm, const char *base, uint64_t records,
	uint64_t disk_mib, struct commit *c, struct err *e);

/* Starts pando-vmm and has it prepare. */
int driver_prepare(struct driver *d, const char *name, uint64_t mem_mib, uint32_t vcpus,
	struct vm **ret, struct err *e);
/* To a VMM that was started or prepared. Sizes that are 0 are the commit's. The answer is
 * VMM_STARTED. */
struct restore {
	const struct commit *commit;
	uint64_t mem_mib, disk_mib, blob_bytes;
	uint32_t vcpus;
};
int driver_send_restore(struct vm *vm, const struct restore *restore, struct err *e);

/* VMM_RESET to a commit, with a new segment and a new generation. rests: that tells the guest
 * (rest=1) to stand still. The VMM is not told that this host's KVM has no shadows of page tables,
 * which is right on any. */
struct reset {
	const struct commit *commit; /* NULL: to the fork point that it came from */
	uint64_t disk_mib, blob_bytes; /* 0: the commit's, or 16 MiB */
	bool rests;
	bool used_segment; /* its files are not empty */
};
int driver_reset(struct vm *vm, const struct reset *reset, struct vmm_reset_answer *ret,
	struct err *e);

int driver_resize(struct vm *vm, uint64_t disk_mib, struct err *e);
/* VMM_DISK_LIMITS. */
int driver_limit_disk(
	struct vm *vm, uint64_t bytes_per_s, uint64_t ops_per_s, struct err *e);
/* Waits for the next VMM_DISK_FULL, which says that it is full, or that there is room. */
int driver_wait_disk_full(struct vm *vm, bool full, int timeout_ms, struct err *e);
/* VMM_BALLOON; target_mib 0: only asks. */
int driver_balloon(
	struct vm *vm, uint64_t target_mib, struct vmm_balloon_answer *ret, struct err *e);

/* A request of a header alone; waits for the answer of the type (VMM_DONE or
 * VMM_STATS_ANSWER). */
int driver_request(struct vm *vm, uint16_t type, void *ret_answer, size_t answer_len,
	uint16_t answer_type, int timeout_ms, struct err *e);
int driver_stats(struct vm *vm, struct vmm_stats_answer *ret, struct err *e);
/* Raw bytes with descriptors on the control socket. */
int driver_send_raw(
	struct vm *vm, const void *buf, size_t len, const int *fds, size_t n_fds);

/* Looks for what came unasked; 0 when something came, -ETIMEDOUT. */
int driver_pump(struct vm *vm, int timeout_ms);
/* Waits until the process is gone. */
int driver_wait_gone(struct vm *vm, int timeout_ms, struct err *e);
bool driver_alive(const struct vm *vm);

/* Closes our control socket, and finds the VMM again through its listener. */
void driver_drop_control(struct vm *vm);
int driver_adopt(struct vm *vm, int timeout_ms, struct err *e);

/* The console: all that was written so far, at most cap - 1 of the newest bytes,
 * terminated. */
size_t driver_console(const struct vm *vm, char *dst, size_t cap);
/* Waits for text behind what was waited for before; the line that holds it is copied to
 * line (may be NULL). */
int driver_expect(struct vm *vm, const char *text, int timeout_ms, char *line, size_t cap,
	struct err *e);
uint64_t driver_console_written(const struct vm *vm);

/* Kills and forgets one VM. */
void driver_kill(struct vm *vm);
/* Path of a file of the VM: "vmm.log", "console", "vsock.sock", "segment.<n>.data", … */
const char *driver_path(const struct vm *vm, const char *file, char dst[static 256]);
const char *driver_log(const struct vm *vm, char *dst, size_t cap);

#endif
