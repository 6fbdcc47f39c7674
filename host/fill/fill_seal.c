#include "host/fill/fill_seal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "common/log.h"
#include "common/sandbox.h"

static const unsigned long uffd_ioctls[] = {UFFDIO_WAKE, UFFDIO_ZEROPAGE};

static const struct sandbox_rule rules[] = {
	{SCMP_SYS(read), "faults, the eventfd"},
	{SCMP_SYS(write), "log lines, the eventfd"},
	{SCMP_SYS(poll), "the loop"},
	{SCMP_SYS(ppoll), "what some C libraries make of poll"},
	{SCMP_SYS(restart_syscall),
		"a call that a stopped and continued process goes on with"},
	{SCMP_SYS(recvmsg), "messages with descriptors"},
	{SCMP_SYS(sendto), "messages"},
	{SCMP_SYS(pread64), "packs, the plan"},
	{SCMP_SYS(pwrite64), "memory, the image, what was touched"},
	{SCMP_SYS(close), "VMs that are gone"},
	{SCMP_SYS(setitimer), "a read that a VM makes wait is ended"},
	{SCMP_SYS(rt_sigreturn), "by that signal"},
	{SCMP_SYS(rt_sigprocmask), "thread start"},
	{SCMP_SYS(set_robust_list), "thread start"},
	{SCMP_SYS(rseq), "thread start"},
	{SCMP_SYS(futex), "locks"},
	{SCMP_SYS(sched_yield), "the C library's locks"},
	{SCMP_SYS(munmap), "memory, a thread's stack"},
	{SCMP_SYS(brk), "memory"},
	{SCMP_SYS(mremap), "memory: a list of packs that grows"},
	{SCMP_SYS(clock_gettime), "where the vDSO cannot answer"},
	{SCMP_SYS(getpid), "abort()"},
	{SCMP_SYS(gettid), "abort()"},
	{SCMP_SYS(exit), "a thread's end"},
	{SCMP_SYS(exit_group), "the end"},
};

static const struct sandbox_arg_rule arg_rules[] = {
	{SCMP_SYS(tgkill), {.arg = 2, .op = SCMP_CMP_EQ, .datum_a = SIGABRT}},
	/* The first thread: glibc's handler for its own signal SIGSETXID. */
	{SCMP_SYS(rt_sigaction), {.arg = 0, .op = SCMP_CMP_EQ, .datum_a = 33}},
	/* Whose guest waits comes first. */
	{SCMP_SYS(sched_setscheduler), {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = SCHED_BATCH}},
	/* Descriptors of VMs do not block. */
	{SCMP_SYS(fcntl), {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = F_GETFL}},
	{SCMP_SYS(fcntl), {.arg = 1, .op = SCMP_CMP_EQ, .datum_a = F_SETFL}},
#ifndef PANDO_SAN /* which allows them all */
	/* Memory: nothing that can be executed. */
	{SCMP_SYS(mmap),
		{.arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC, .datum_b = 0}},
	{SCMP_SYS(mprotect),
		{.arg = 2, .op = SCMP_CMP_MASKED_EQ, .datum_a = PROT_EXEC, .datum_b = 0}},
	{SCMP_SYS(madvise), {.arg = 2, .op = SCMP_CMP_EQ, .datum_a = MADV_DONTNEED}},
#endif
};

static int
set_limits(struct err *e)
{
	struct rlimit files, none = {0, 0};

	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return err_sys(e, -errno, "getrlimit");
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files) < 0 || setrlimit(RLIMIT_CORE, &none) < 0 ||
		setrlimit(RLIMIT_MSGQUEUE, &none) < 0 ||
		setrlimit(RLIMIT_MEMLOCK, &none) < 0)
		return err_sys(e, -errno, "setrlimit");
	return 0;
}

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
	int r = set_limits(e);

	if (r == 0)
		r = sandbox_leave_host(&less, e);
	if (r == 0 && less.code)
		log_info("%s", less.msg);
	return r < 0 ? r : sandbox_load(&calls, e);
}
