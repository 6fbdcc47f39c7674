/*
 * One virtual machine: all of it, in one struct, in one process.
 *
 * Threads: the main thread (control socket, vsock), one a vCPU, and the disk's
 * (disk_thread.h). The main thread is the only one that stops and starts. Saving, forking
 * and loading are its business while all vCPUs are parked, or, with the main thread waiting, that of vCPU 0's. Devices have a
 * lock each; when all vCPUs are parked and the main thread is not inside a device, no
 * lock is held and no I/O is under way, but for the disk's thread: it may be in fdatasync(2),
 * and takes the lock to note that it was; it writes nothing into the guest's memory then.
 *
 * Stopping: the main thread makes `epoch` odd, sets immediate_exit in every vCPU's run
 * page and sends SIGUSR1; each vCPU thread finishes the exit it is in, lets KVM complete
 * the pending access, counts itself in `parked` and sleeps on `epoch`. `stop` tells
 * devices in the middle of a long queue.
 */
#ifndef PANDO_VMM_VM_H
#define PANDO_VMM_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/log.h"
#include "common/wire/console_ring.h"
#include "common/wire/vmm_wire.h"
#include "vmm/balloon.h"
#include "vmm/blk.h"
#include "vmm/boot.h"
#include "vmm/disk_thread.h"
#include "vmm/fill.h"
#include "vmm/ged.h"
#include "vmm/ioapic.h"
#include "vmm/keep.h"
#include "vmm/kvm.h"
#include "vmm/layout.h"
#include "vmm/memory.h"
#include "vmm/rng.h"
#include "vmm/serial.h"
#include "vmm/state.h"
#include "vmm/track.h"
#include "vmm/vsock.h"

struct mainloop_above;
struct vm;

struct vcpu {
	struct vm *vm; /* borrowed */
	unsigned id;
	int fd;		     /* owned; -1: none */
	struct kvm_run *run; /* owned mapping, not in forked children */
	pthread_t thread;
	bool has_thread;
	_Atomic uint64_t exits;
	bool synced;		      /* parked, and run->s.regs is what KVM holds */
	struct kvm_cpuid_table cpuid; /* as given to it */
	struct vcpu_state state;      /* of the last vm_save() */
};

struct vm {
	char name[VMM_NAME_MAX];
	enum log_level log_level; /* PANDO_LOG=debug in the environment at the start */
	uint64_t born_ns;	  /* message received, or the fork; CLOCK_MONOTONIC */
	uint8_t generation[16];

	struct guest_mem mem;
	struct fill fill;   /* its pages that are not there yet */
	struct track track; /* its changed pages */
	struct keep keep;   /* the fork point that it can go back to, or is */
	int kvm_fd; /* owned: /dev/kvm, for the VMs of children too */
	int vm_fd;  /* owned; -1: none (a frozen fork) */
	struct kvm_caps caps;
	struct kvm_cpuid_table accepted; /* features that a commit may need (cpuid.h) */
	struct state_plan plan;
	struct state_clock clock; /* of the last vm_save() */
	unsigned n_vcpus;
	struct vcpu vcpus[VMM_VCPUS_MAX];

	atomic_int stop;    /* devices look at it; 1: vCPUs are wanted to park */
	atomic_uint epoch;  /* a futex; odd: park */
	atomic_uint parked; /* a futex: vCPUs that have parked in this epoch */
	_Atomic uint64_t first_run_ns; /* when vCPU 0 first entered the guest */
	atomic_bool main_is_awake;     /* and will look at first_run_ns by itself */
	/* Once: what vCPU 0's thread does when it and all others have parked, instead of
	 * sleeping; it moves the epoch on. A pre-warmed VM waits for its state in it, and a
	 * fork is made in it: waking another thread costs as much as either. */
	void (*at_park)(struct vm *vm);

	struct ioapic ioapic;
	struct console console;
	struct serial serial;
	struct ged ged;
	struct blk blk;
	struct disk_thread disk_thread;
	struct vsock vsock;
	struct rng rng;
	struct balloon balloon;

	/* How it ends: ending.h's note. */
	atomic_int ending; /* 0 no, 1 being written, 2 written */
	uint32_t end_reason;
	char end_msg[512];

	/* Main thread. */
	const struct mainloop_above *above;  /* borrowed; mainloop.h */
	int control_fd, listen_fd, epoll_fd; /* owned; -1: none */
	int event_fd;	   /* owned: vCPU threads wake the main thread (end, first run) */
	int vsock_kick_fd; /* owned: doorbells of the vsock device */
	unsigned forks;	   /* between the VM that was started and this */
	uint16_t resets;   /* of this process */
	bool is_parked;	   /* a frozen fork: no KVM VM, no threads */
	bool is_tracked;   /* a frozen fork, of a VMM_FORK_TRACK */
	bool is_readable;  /* by its user, since VMM_STATE */
	bool is_open;	   /* likewise, from VMM_TRACK_OPEN to VMM_TRACK */
	bool is_paused;	   /* by VMM_PAUSE */
	bool is_full;	   /* stands still, too: the host's disk is full (full_disk.h) */
	uint64_t look_ns;  /* when that is looked at again; 0: never */
	/* What vm_resume_devices() did not come to: -EBUSY and 1 as virtio_dev_go_on()
	 * says it. */
	int devices_left;
	bool started_sent;
};

/* vm is all zeroes. What it has of vCPUs that the VM does not is never touched: a page
 * that is touched is copied by each fork, and counts in each branch. */
void vm_init(struct vm *vm);
/* fd (taken over) becomes standard error, output and input (nothing is ever read), the
 * log tag "vm/<name>". */
void vm_use_log(struct vm *vm, int fd);

/* What this host's KVM can do, and the CPUID of every vCPU. n_vcpus and kvm_fd are set.
 */
int vm_ask_kvm(struct vm *vm, struct err *e);
/* All devices, without the descriptors that come with a VM (blk_attach, vsock_listen,
 * console_open). vsock_kick_fd is there; mem's ranges are known. loop: the main thread's,
 * copied. */
int vm_init_devices(
	struct vm *vm, uint32_t guest_cid, const struct vsock_loop *loop, struct err *e);

/* Makes the KVM VM around vm->mem: interrupt controller, memory slots, vCPUs with their
 * CPUID. On failure what was made is closed again. */
int vm_make_kvm(struct vm *vm, struct err *e);
/* vm->plan, from vCPUs that never ran. */
int vm_make_plan(struct vm *vm, struct err *e);
/* Closes the vCPUs and the VM. In a forked child (run pages are not mapped there) too. */
void vm_drop_kvm(struct vm *vm, bool in_forked_child);

/* The IOAPIC's way to KVM, and the interrupt lines into it. */
struct ioapic_sink vm_ioapic_sink(struct vm *vm);
struct irq_line vm_irq(struct vm *vm, unsigned gsi);
/* Starts a thread for each vCPU that has none; they run at once unless the epoch is odd.
 */
int vm_start_vcpus(struct vm *vm, struct err *e);
/* The same, for later: they try KVM_RUN once without entering the guest, and park. */
int vm_start_vcpus_parked(struct vm *vm, struct err *e);
/* vCPUs parked, all devices quiet. Idempotent. */
void vm_stop(struct vm *vm);
/* Only asks for it: vCPU 0's thread calls act when all have parked. */
void vm_stop_and(struct vm *vm, void (*act)(struct vm *vm));
/* On a busy host a thread that wakes, or a new process, takes the CPU from the one that
 * woke or made it. One that lets others go first (SCHED_BATCH) waits for its turn or
 * takes an idle CPU. What it makes meanwhile does so, too. */
void vm_let_others_first(pthread_t thread, bool on);
/* Undoes vm_stop(); devices pick up what they left. Idempotent. */
void vm_run(struct vm *vm);
/* Paused, by whomever. */
static inline bool
vm_stands(const struct vm *vm)
{
	return vm->is_paused || vm->is_full;
}
/* Before a VM runs that stood still: a long pause would look like a lock-up to the guest's
 * watchdog. */
void vm_ease_watchdog(struct vm *vm);

/* Its two halves, for who has something to do between them. */
void vm_run_vcpus(struct vm *vm);
void vm_resume_devices(struct vm *vm);
/* The next turn of devices that vm_resume_devices() gave one and that have more to do. It
 * is bounded, whatever the guest does: the main thread calls it between its other work. */
void vm_go_on_devices(struct vm *vm);
/* Of a wait of timeout_ms (-1: for ever) how much is left until the main thread has something
 * to do that it knows of. */
int vm_wait_ms(const struct vm *vm, int timeout_ms);

/* Everything KVM holds, to vm->clock and vm->vcpus[].state. After vm_stop(). */
int vm_save(struct vm *vm, struct err *e);
/* A state that was loaded from a blob: its clocks go on from now. Just before vm_load().
 */
int vm_take_up(struct vm *vm, struct err *e);
/* The other way, into a fresh vm_make_kvm(). */
int vm_load(struct vm *vm, struct err *e);

/* Writes a new VM generation id to where the guest looks for it, and notifies it. */
void vm_set_generation(struct vm *vm, const uint8_t generation[static 16]);

#endif
