#include "host/fill/fill_seal.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "common/log.h"
#include "common/sandbox.h"

static const unsigned long uffd_ioctls[] = {UFFDIO_WAKE, UFFDIO_ZEROPAGE};

static const struct sandbox_rule rules[] = {
	{SCMP_SYS(read), "faults, the eventfd"},
	{SCMP_SYS(write), "log lines, the eventfd"},
	{SCMP_SYS(poll), "the loop"},
	{SCMP_SYS(ppoll), "what some C libraries make of poll"},
	{SCMP_SYS(recvmsg), "messages with descriptors"},
	{SCMP_SYS(sendto), "messages"},
	{SCMP_SYS(pread64), "packs, the plan"},
	{SCMP_SYS(pwrite64), "memory, the image, what was touched"},
	{SCMP_SYS(close), "VMs that are gone"},
	{SCMP_SYS(setitimer), "a read that a VM makes wait is ended"},
	{SCMP_SYS(mremap), "memory: a list of packs that grows"},
};

static const struct sandbox_arg_rule arg_rules[] = {
	/* Whose guest waits comes first. */
	{SCMP_SYS(sched_setscheduler), {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = SCHED_BATCH}},
	/* Descriptors of VMs do not block. */
	{SCMP_SYS(fcntl), {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = F_GETFL}},
	{SCMP_SYS(fcntl), {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = F_SETFL}},
};

int
fill_seal(struct err *e)
{
	const unsigned long *const ioctls[] = {uffd_ioctls};
	const size_t n_ioctls[] = {sizeof(uffd_ioctls) / sizeof(*uffd_ioctls)};
	const struct sandbox_calls calls = {
		.rules = rules,
		.n_rules = sizeof(rules) / sizeof(*rules),
		.arg_rules = arg_rules,
		.n_arg_rules = sizeof(arg_rules) / sizeof(*arg_rules),
		.ioctls = ioctls,
		.n_ioctls = n_ioctls,
		.n_ioctl_tables = 1,
	};
	struct err less;
	rlim_t files;
	int r = sandbox_set_limits(RLIM_INFINITY, &files, e);

	if (r == 0)
		r = sandbox_leave_host(&less, e);
	if (r == 0 && less.code)
		log_info("%s", less.msg);
	return r < 0 ? r : sandbox_load(&calls, e);
}
