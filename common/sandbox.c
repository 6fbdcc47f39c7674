#include "common/sandbox.h"

#include <errno.h>
#include <linux/capability.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/userns.h"

#ifdef PANDO_SAN
#define UNDER_SANITIZER 1
#else
#define UNDER_SANITIZER 0
#endif

/* An empty, read-only root: even a call that slipped through the filter would find no
 * file. */
static int
empty_root(void)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC,
			"size=4k,mode=0500") < 0 ||
		chdir("/tmp") < 0)
		return -errno;
	/* The old root is stacked on the new one's mount point and taken away. */
	if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 ||
		chdir("/") < 0)
		return -errno;
	if (mount(NULL, "/", NULL,
		    MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
		    NULL) < 0)
		return -errno;
	return 0;
}

static int
drop_capabilities(struct err *e)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {{0}};

	int cap = 0;

	while (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) == 0)
		cap++;
	/* EINVAL: the kernel knows no more. EPERM: without CAP_SETPCAP none can be dropped. */
	if (errno != EINVAL && errno != EPERM)
		return err_sys(e, -errno, "dropping capability %d", cap);
	if (syscall(SYS_capset, &head, none) < 0)
		return err_sys(e, -errno, "dropping all capabilities");
	return 0;
}

/* As far as the host allows. */
static void
enter_namespaces(struct err *less)
{
	const int others = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
	struct err why;
	int no_userns = userns_enter(&why);
	int r;

	if (unshare(others) < 0) {
		if (no_userns == 0)
			err_sys(&why, -errno, "unshare");
		err_set(less, -EPERM,
			"this host allows no namespaces to this user (%.300s): the process shares the host's; the system call filter still holds",
			why.msg);
		return;
	}
	if (no_userns < 0)
		err_set(less, -EPERM,
			"this host allows no user namespace (%.300s): mount, network, IPC and UTS namespaces only",
			why.msg);
	if (UNDER_SANITIZER) /* whose reports want /proc */
		return;
	r = empty_root();
	if (r < 0)
		err_sys(less, r, "the root folder could not be emptied");
}

int
sandbox_set_limits(rlim_t files_max, rlim_t *ret_files, struct err *e)
{
	struct rlimit files, none = {0, 0};

	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return err_sys(e, -errno, "getrlimit");
	if (files.rlim_max > files_max)
		files.rlim_max = files_max;
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files) < 0 || setrlimit(RLIMIT_CORE, &none) < 0 ||
		setrlimit(RLIMIT_MSGQUEUE, &none) < 0 ||
		setrlimit(RLIMIT_MEMLOCK, &none) < 0)
		return err_sys(e, -errno, "setrlimit");
	*ret_files = files.rlim_cur;
	return 0;
}

int
sandbox_leave_host(struct err *ret_less, struct err *e)
{
	int r;

	ret_less->code = 0;
	enter_namespaces(ret_less);
	if ((r = drop_capabilities(e)) < 0)
		return r;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return err_sys(e, -errno, "PR_SET_DUMPABLE");
	return 0;
}

static const struct sandbox_rule library_rules[] = {
	{SCMP_SYS(futex), "locks, parking"},
	{SCMP_SYS(sched_yield), "locks"},
	{SCMP_SYS(munmap), "memory, a thread's stack"},
	{SCMP_SYS(brk), "memory"},
	{SCMP_SYS(set_robust_list), "thread start, fork"},
	{SCMP_SYS(rseq), "thread start, fork"},
	{SCMP_SYS(rt_sigprocmask), "thread start, fork"},
	{SCMP_SYS(rt_sigreturn), "the end of a signal's handler"},
	{SCMP_SYS(restart_syscall),
		"a call that a stopped and continued process goes on with"},
	{SCMP_SYS(clock_gettime), "where the vDSO cannot answer"},
	{SCMP_SYS(getpid), "abort(), pthread_kill(), fork"},
	{SCMP_SYS(gettid), "abort(), fork"},
	{SCMP_SYS(exit), "a thread's end"},
	{SCMP_SYS(exit_group), "the end"},
};

#ifdef PANDO_SAN
static const struct sandbox_rule sanitizer_rules[] = {
	{SCMP_SYS(open), "sanitizer reports"},
	{SCMP_SYS(openat), "sanitizer reports"},
	{SCMP_SYS(readlink), "sanitizer reports"},
	{SCMP_SYS(readlinkat), "sanitizer reports"},
	{SCMP_SYS(getppid), "sanitizer reports"},
	{SCMP_SYS(prctl), "sanitizer threads"},
	{SCMP_SYS(sigaltstack), "sanitizer threads"},
	{SCMP_SYS(sched_getaffinity), "sanitizer threads"},
	{SCMP_SYS(mremap), "sanitizer allocator"},
	{SCMP_SYS(mprotect), "sanitizer allocator"},
	{SCMP_SYS(mmap), "sanitizer allocator"},
	{SCMP_SYS(madvise), "sanitizer allocator"},
	{SCMP_SYS(getrandom), "sanitizer allocator"},
	{SCMP_SYS(pipe2), "UBSan asks whether an address can be read"},
	{SCMP_SYS(prlimit64), "sanitizer threads"},
	{SCMP_SYS(clone3), "LeakSanitizer"},
	{SCMP_SYS(wait4), "sanitizer reports"},
	{SCMP_SYS(getdents64), "sanitizer reports"},
	{SCMP_SYS(fcntl), "sanitizer reports: where programs' lines are"},
	{SCMP_SYS(ioctl), "sanitizer reports ask whether they go to a terminal"},
	{SCMP_SYS(rt_sigaction), "sanitizer threads"},
};
#else
static const struct sandbox_rule sanitizer_rules[] = {{0}};
#endif

static int
add_calls(scmp_filter_ctx ctx, const struct sandbox_rule *rules, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, rules[i].call, 0);
	return r;
}

static int
add_args(scmp_filter_ctx ctx, const struct sandbox_arg_rule *rules, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, rules[i].call, 1, rules[i].arg);
	return r;
}

static int
add_ioctls(scmp_filter_ctx ctx, const unsigned long *numbers, size_t n)
{
	int r = 0;

	for (size_t i = 0; i < n && r == 0; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
			sandbox_masked(1, 0xffffffffu, numbers[i]));
	return r;
}

int
sandbox_load(const struct sandbox_calls *calls, struct err *e)
{
	const struct sandbox_arg_rule library[] = {
		{SCMP_SYS(clone),
			sandbox_equals(0, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM |
						  CLONE_SIGHAND | CLONE_THREAD | CLONE_SETTLS |
						  CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)},
		/* The first thread: glibc's handler for its own signal SIGSETXID. */
		{SCMP_SYS(rt_sigaction), sandbox_equals(0, 33)},
		{SCMP_SYS(tgkill), sandbox_equals(2, SIGABRT)},
#ifndef PANDO_SAN /* which allows them all */
		/* Nothing that can be executed. */
		{SCMP_SYS(mmap), sandbox_masked(2, PROT_EXEC, 0)},
		{SCMP_SYS(mprotect), sandbox_masked(2, PROT_EXEC, 0)},
		/* Stacks given back. */
		{SCMP_SYS(madvise), sandbox_equals(2, MADV_DONTNEED)},
#endif
	};
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = 0;

	if (!ctx)
		return err_set(e, -ENOMEM, "seccomp_init");
	/* A sorted tree: a few comparisons a call instead of a hundred. */
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (UNDER_SANITIZER)
		r = add_calls(ctx, sanitizer_rules,
			sizeof(sanitizer_rules) / sizeof(*sanitizer_rules));
	if (r == 0)
		r = add_calls(ctx, library_rules, sizeof(library_rules) / sizeof(*library_rules));
	if (r == 0)
		r = add_args(ctx, library, sizeof(library) / sizeof(*library));
	if (r == 0)
		r = add_calls(ctx, calls->rules, calls->n_rules);
	if (r == 0)
		r = add_args(ctx, calls->arg_rules, calls->n_arg_rules);
	for (size_t i = 0; i < calls->n_ioctl_tables && r == 0 && !UNDER_SANITIZER; i++)
		r = add_ioctls(ctx, calls->ioctls[i], calls->n_ioctls[i]);
	/* clone3's flags lie in memory, where a filter cannot look: glibc falls back to
	 * clone. */
	if (r == 0 && !UNDER_SANITIZER)
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	if (r == 0)
		r = seccomp_load(ctx); /* sets PR_SET_NO_NEW_PRIVS first */
	seccomp_release(ctx);
	/* What building the filter took would be copied by each fork. */
	malloc_trim(0);
	return r < 0 ? err_sys(e, r, "the system call filter") : 0;
}
