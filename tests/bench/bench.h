/*
 * What the benchmarks of VMs share: a PANDO_HOME of their own with a tree (host/vm/tree.h)
 * and commits in it, small guests in the shipped pando-vmm, started, forked and restored by
 * pandod's own code; and the ways out of a benchmark.
 *
 * One benchmark a process, one thread. Whatever fails ends the benchmark with a sentence:
 * half a measurement is none.
 */
#ifndef PANDO_TESTS_BENCH_BENCH_H
#define PANDO_TESTS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "common/json.h"
#include "host/commit/commits_priv.h"
#include "tests/kvm/console_line.h"

#define BENCH_WAIT_MS 60000

struct bench {
	const char *name;
	unsigned rounds;
	uint64_t mem_mib;
	struct json_out *out;	 /* NULL: lines */
	struct tree *tree;	 /* owned */
	struct commits *commits; /* owned */
	int kvm;		 /* owned: /dev/kvm */
	int log_fd;		 /* owned: of pre-warmed VMMs */
	unsigned pool_size; /* of what bench_begin() opens */
	double ticks_per_ns;	 /* of the TSC */
};
extern struct bench bench;

/* Takes [--json] [--rounds N] [--mem MIB], whose defaults stand in the arguments; makes
 * the home; begins the answer. Exits with a sentence where there is no KVM (0) or the
 * arguments are none (2). */
void bench_begin(
	int argc, char **argv, const char *name, unsigned rounds, uint64_t mem_mib);
/* Ends all VMs, removes the home, prints the JSON. */
void bench_end(void);
/* Ends the benchmark. */
_Noreturn void bench_die(const char *what, const struct err *e);

/* A number of the answer, by its key; note may be NULL. */
void bench_number(const char *key, double value, const char *note);

/* A VM, or what one needs to become one. */
struct bench_vm {
	char id[VM_ID_LEN + 1];
	uint8_t generation[16];
	struct vmmctl *ctl; /* owned, but the tree's of what booted */
	int pidfd;	    /* likewise */
	pid_t pid;
	bool of_tree;
	struct vm_files files;
	struct vm_segment segment; /* owned: its next one */
	unsigned segments;
	int console; /* owned */
	uint64_t console_read;
};
#define BENCH_VM_INIT \
	{ \
		.pidfd = -1, .files = VM_FILES_INIT, .segment = VM_SEGMENT_INIT, \
		.console = -1 \
	}

/* The small guest, through tree_create(), until it is ready. */
void bench_boot(struct bench_vm *vm, const char *cmdline);
/* The same on a disk image (NULL: none) and with a disk of that size. */
void bench_boot_on(
	struct bench_vm *vm, const char *cmdline, const char *rootfs, uint64_t disk_mib);
/* The folder, sockets, console, log and first segment of a VM that is yet to be. rests:
 * its generation tells the guest (rest=1) to stand still once it has answered. */
void bench_files(struct bench_vm *vm, bool rests);
/* Its next one, in its place. */
void bench_next_segment(struct bench_vm *vm);
/* Gives it a process: that of a pre-warmed VMM, made as the pool makes it; or one that waits
 * for its first message. */
void bench_prewarmed(struct bench_vm *vm);
void bench_process(struct bench_vm *vm);
/* VMM_FORK of a VM, or of a frozen fork, into child, whose files are there. Returns when the
 * request left. */
uint64_t bench_fork(struct bench_vm *parent, bool parent_is_frozen_fork,
	struct bench_vm *child, uint32_t flags, struct vmm_forked *ret);
/* The number at a key of a JSON object. */
uint64_t bench_json_number(const char *json, const char *key);
/* Waits for VMM_STARTED; the process is then known for certain. */
void bench_wait_started(struct bench_vm *vm, struct vmm_started *ret);
/* When the guest rang its first doorbell, by io_now_ns(); 0 when it does not answer. */
uint64_t bench_first_doorbell(const struct bench_vm *vm);
/* The line of the console that holds text, behind what was found before; false when none
 * comes. */
bool bench_line(struct bench_vm *vm, const char *text, char *line, size_t cap);
/* Kills it and removes its files. */
void bench_end_vm(struct bench_vm *vm);

/* Proportional set size of a whole process, KiB; -1 when it cannot be seen. */
long bench_pss_kib(pid_t pid);
/* Sleeps; so that what was just made has come to rest. */
void bench_settle(void);

#endif
