/*
 * Rights that a process of ours gives up before it meets somebody who may lie: a guest, or a
 * VMM that a guest took over. Namespaces of its own, an empty root folder, no capability, no new
 * privileges, and a list of system calls (seccomp(2), by libseccomp, which is called here only).
 *
 * Callers have one thread until sandbox_load().
 */
#ifndef PANDO_COMMON_SANDBOX_H
#define PANDO_COMMON_SANDBOX_H

#include <seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

#include "common/err.h"

/*
 * User, mount, network, IPC and UTS namespaces, an empty read-only root, no capability, and
 * nobody of this user may trace the process or read its memory. ret_less is for the log: what
 * this host does not allow and the process goes on without; its code is 0 if that is nothing.
 */
int sandbox_leave_host(struct err *ret_less, struct err *e);

/* Descriptors: at most so many, or RLIM_INFINITY; *ret_files is how many there may be. No cores, no
 * message queues, no locked memory. No RLIMIT_NPROC: it counts all of the user's processes, so it
 * would refuse what others make impossible. */
int sandbox_set_limits(rlim_t files_max, rlim_t *ret_files, struct err *e);

/* A system call that is allowed whatever its arguments, and what it is for. */
struct sandbox_rule {
	int call;
	const char *reason;
};
/* One that is allowed with this argument. */
struct sandbox_arg_rule {
	int call;
	struct scmp_arg_cmp arg;
};

static inline struct scmp_arg_cmp
sandbox_equals(unsigned arg, uint64_t value)
{
	return (struct scmp_arg_cmp){.arg = arg, .op = SCMP_CMP_EQ, .datum_a = value};
}

static inline struct scmp_arg_cmp
sandbox_masked(unsigned arg, uint64_t mask, uint64_t value)
{
	return (struct scmp_arg_cmp){
		.arg = arg, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value};
}

/* All tables are borrowed until sandbox_load() returns; those that are empty may be NULL. */
struct sandbox_calls {
	const struct sandbox_rule *rules;
	size_t n_rules;
	const struct sandbox_arg_rule *arg_rules;
	size_t n_arg_rules;
	const unsigned long *const *ioctls; /* tables of request numbers */
	const size_t *n_ioctls;		    /* beside it */
	size_t n_ioctl_tables;
};

/* No new privileges, and a filter that stays: a call that is not allowed ends the process
 * (SIGSYS). What the C library needs is allowed to all: memory, which cannot be executed, threads,
 * with what pthread_create() asks of clone(2), exactly, locks, clocks, abort(), the end. With a
 * sanitizer's runtime what that one needs is allowed besides, and all of ioctl(2). */
int sandbox_load(const struct sandbox_calls *calls, struct err *e);

#endif
