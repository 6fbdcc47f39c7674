/*
 * Control groups (v2) made by hand, for hosts that have no systemd to ask: one a VM, in
 * "pando.slice" below the group that pandod runs in. Where the kernel gives the memory
 * and cpu controllers there, the groups have limits; else they only group.
 *
 * A group is named by its path in the hierarchy, as in /proc/<pid>/cgroup.
 */
#ifndef PANDO_HOST_SCOPE_CGROUP_H
#define PANDO_HOST_SCOPE_CGROUP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define CGROUP_PATH_MAX 1024
#define CGROUP_SLICE "pando.slice"

struct cgroup {
	char mount[256];	     /* where the hierarchy is */
	char slice[CGROUP_PATH_MAX]; /* its path in there */
	bool memory, cpu;	     /* limits of these are kept */
};

/* Makes the slice and tries it. below (NULL: pandod's own): the group it is made in.
 * -ENOENT: no cgroup v2 is mounted; -EACCES, -EROFS: it may not be written. */
int cgroup_open(const char *below, struct cgroup *ret, struct err *e);
/* Removes the slice when nothing is in it, of anybody. */
void cgroup_close(const struct cgroup *g);

/* Makes the group, sets its limits (memory_max: bytes; UINT64_MAX: none), moves all of
 * the process into it; ret_path: what it is called. One that cannot be entered is
 * removed. */
int cgroup_enter(const struct cgroup *g, const char *name, pid_t pid, uint64_t memory_max,
	uint64_t cpu_weight, char ret_path[static CGROUP_PATH_MAX], struct err *e);
int cgroup_limit(
	const struct cgroup *g, const char *path, uint64_t memory_max, struct err *e);
/* What a group may take now; false: no limit is known. */
bool cgroup_memory_max(const char *path, uint64_t *ret);
/* -EBUSY: somebody is still in it; one that is gone is no error. */
int cgroup_remove(const struct cgroup *g, const char *path, struct err *e);
/* Groups "pando-*.scope" of the slice that nobody is in. */
void cgroup_sweep(const struct cgroup *g);

/* Whether that process is in a group of that name, in whatever hierarchy systemd or we
 * use; its path then. */
bool cgroup_find(pid_t pid, const char *name, char ret_path[static CGROUP_PATH_MAX]);

#endif
