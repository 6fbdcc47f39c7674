/*
 * The test machine: a Debian in QEMU, emulated, whose own /dev/kvm boots Linux. For hosts
 *whose KVM does not.
 *
 * There is one a user. It lives in PANDO_MACHINE_HOME (default
 *$XDG_DATA_HOME/pando/machine, mode 0700), which does not depend on PANDO_HOME:
 *
 *	lock              flock'd while somebody starts, stops or deletes it
 *	kernel, initrd    copies: it starts without the image that it was made from
 *	disk.raw          its disk; what is in it stays until the machine is deleted
 *	image, image.json the folder name of the image it was made from, and its
 *description host_key[.pub]    what its sshd shows; nothing else is accepted
 *	client_key[.pub]  what its sshd accepts
 *	running.json      process, its start time, port: while one runs
 *	copied/           what of the host's folders is in the machine (machine_copy.h)
 *	transfer/         archives on their way into it: the one folder that it sees,
 *read-only console.log, qemu.log
 *
 * QEMU runs with the user's rights, in a session of its own, and outlives us; it listens
 *on one port of 127.0.0.1, which leads to the machine's sshd. The machine reaches no
 *network, and no folder of the host but that one: what it should have is copied in. A
 *QEMU is known by its number and start time together and signalled through a pidfd: a
 *process that was given an old number is never touched.
 */
#ifndef PANDO_HOST_TESTVM_MACHINE_H
#define PANDO_HOST_TESTVM_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"
#include "common/paths.h"
#include "host/ssh/ssh.h"

#define MACHINE_MEM_MIB \
	10240u /* of the host's, when it has that; only what is used is taken */
#define MACHINE_MEM_MIN_MIB 1024u /* less does not carry the machine and one VM */
#define MACHINE_DISK_MIB 24576u	  /* sparse */
#define MACHINE_CPUS 2u
/* What runs in it stays off its first CPU, which is there besides those asked for: a list
 * for taskset, which does not mind CPUs that are not there. */
#define MACHINE_CPUS_FOR_USE "1-255"

enum machine_state {
	MACHINE_ABSENT = 1, /* never started, or deleted */
	MACHINE_STOPPED,
	MACHINE_RUNNING,
};

struct machine {
	char home[PATHS_MAX];
	enum machine_state state;
	char image[128]; /* "" when absent */
	/* Only when running. */
	pid_t pid;
	uint64_t start_ticks; /* /proc/<pid>/stat: tells the process from a later one */
	uint16_t port;
	uint64_t mem_mib, cpus, started_ms;
};

struct machine_spec {
	uint64_t mem_mib;  /* 0: MACHINE_MEM_MIB, or as much as the host has to spare */
	uint64_t cpus;	   /* 0: MACHINE_CPUS */
	uint64_t disk_mib; /* 0: MACHINE_DISK_MIB; a machine that exists keeps its disk */
};

/* One sentence about what goes on; NULL: nothing new. */
typedef void machine_say(void *ctx, const char *sentence);

/* What there is. */
int machine_look(struct machine *ret, struct err *e);

/*
 * Makes what is missing (the image too, which takes minutes), starts QEMU and waits until
 * the machine answers. A machine that runs is left as it is.
 */
int machine_start(const struct machine_spec *spec, machine_say *say, void *ctx,
	struct machine *ret, struct err *e);

/* Powers off in order, and pulls the plug when that takes too long; force: at once. A
 * machine that does not run: nothing to do. */
int machine_stop(bool force, machine_say *say, void *ctx, struct err *e);

/* Ends it and removes all of it. */
int machine_delete(machine_say *say, void *ctx, struct err *e);

/* -ESHUTDOWN when it does not run, with the mend. */
int machine_connect(const struct machine *m, unsigned timeout_ms, struct ssh_link **ret,
	struct err *e);

/* Memory for a machine: wanted_mib (0: the default, cut to what the host can spare).
 * -ENOMEM with a sentence when available_mib does not do. */
int machine_memory(
	uint64_t wanted_mib, uint64_t available_mib, uint64_t *ret, struct err *e);

/* `text` as a value in one of QEMU's comma-separated options. -ENAMETOOLONG. */
int machine_qemu_value(char *dst, size_t cap, const char *text, struct err *e);

/* The start time (field 22) in the text of /proc/<pid>/stat. -EINVAL. */
int machine_start_ticks(const char *stat_text, uint64_t *ret);

#endif
