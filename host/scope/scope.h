/*
 * Each VM's process in a scope of its own, "pando-<id>.scope" in pando.slice, with limits
 * from the VM's configuration: made by systemd where a bus leads to it (and then also
 * registered with machined, where that runs and pandod is root), else as a control group
 * (cgroup.h), else not at all. Which of these it is is found out once, and said once.
 *
 * All of it is done by one thread beside everything else: no call here waits, no VM waits
 * for it, and none fails for want of it. What a scope is for begins SETTLE_MS after a VM
 * came to be, so that it takes nothing from a branch's first moments: moving a process
 * makes the kernel hold up everybody's forks for a moment.
 *
 * A live fork begins in its parent's scope and is moved out of it; what it shares with
 * the parent stays on the parent's account. So a VM's memory limit is that of its guest,
 * once more for each fork that may hold old pages of it (a commit's frozen fork, its
 * branches, theirs), and an allowance. It is raised before it is needed and never
 * lowered.
 */
#ifndef PANDO_HOST_SCOPE_SCOPE_H
#define PANDO_HOST_SCOPE_SCOPE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/json.h"

enum scopes_use {
	SCOPES_NONE,
	SCOPES_AUTO,
	SCOPES_SYSTEMD,
	SCOPES_CGROUP,
};

struct scopes;

struct scope_vm {
	const char *id;		   /* 12 hex digits */
	const char *alias;	   /* "" none */
	const char *parent;	   /* id of the VM it was forked from; "" none */
	const char *folder;	   /* the VM's, for machined */
	const uint8_t *machine_id; /* 16 bytes, for machined */
	pid_t pid;
	int pidfd; /* borrowed: while it lives, pid is it */
	uint64_t mem_mib;
	uint32_t vcpus;
	bool found; /* by a new pandod, running */
};

/* NULL for SCOPES_NONE, and when there is no memory for a thread; every call takes that.
 * home: where the VMs' files are; in memory (a tmpfs), what they write there is on their
 * account and cannot be taken back, so no limit of memory is set. group: of
 * SCOPES_CGROUP, for tests (cgroup_open()). Both may be NULL. */
struct scopes *scopes_open(enum scopes_use use, const char *home, const char *group);
/* The VMs stay where they are: the next pandod finds them there. */
void scopes_close(struct scopes *s);

/* It lives. One that is in its scope already, as found by a new pandod, stays there. */
void scopes_enter(struct scopes *s, const struct scope_vm *vm);
/* So many forks of it are about to be. */
void scopes_expect(struct scopes *s, const char *id, unsigned forks);
/* It has ended. */
void scopes_leave(struct scopes *s, const char *id);

/* {"how": "systemd"|"cgroup"|"none"|"unknown", "detail": a sentence, "limits": bool,
 * "lingers": bool, "machined": bool, "vms": in one} */
void scopes_json(struct scopes *s, const char *key, struct json_out *out);

/* bytes of memory that a VM of mem_mib may take that was forked so often. */
uint64_t scope_memory_max(uint64_t mem_mib, unsigned forks);
uint64_t scope_cpu_weight(uint32_t vcpus);

#endif
