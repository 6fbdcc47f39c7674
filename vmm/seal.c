#include "vmm/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <malloc.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/userns.h"
#include "vmm/blk.h"
#include "vmm/fill.h"
#include "vmm/keep.h"
#include "vmm/kvm.h"
#include "vmm/track.h"
#include "vmm/vsock.h"

/* Two for each disk segment, one for each vsock connection, and the few of the VM itself.
 */
#define DESCRIPTORS_MAX (2 * BLK_SEGMENTS_MAX + VSOCK_CONNS_MAX + 128)

#ifdef PANDO_SAN
#define UNDER_SANITIZER 1
#else
#define UNDER_SANITIZER 0
#endif

static int
set_limits(struct err *e)
{
	struct rlimit files, none = {0, 0};

	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		return err_sys(e, -errno, "getrlimit");
	files.rlim_cur = files.rlim_max =
		files.rlim_max < DESCRIPTORS_MAX ? files.rlim_max : DESCRIPTORS_MAX;
	if (files.rlim_cur < DESCRIPTORS_MAX)
		log_info(
			"only %llu descriptors are allowed here: a VM of many branches may run out of disk segments",
			(unsigned long long)files.rlim_cur);
	/* No RLIMIT_NPROC: it counts all of the user's processes, so it would refuse a
	 * branch for what others do. No RLIMIT_FSIZE: the disk's size bounds the segments
	 * (vmm/blk.h). */
	if (setrlimit(RLIMIT_NOFILE, &files) < 0 || setrlimit(RLIMIT_CORE, &none) < 0 ||
		setrlimit(RLIMIT_MSGQUEUE, &none) < 0 ||
		setrlimit(RLIMIT_MEMLOCK, &none) < 0)
		return err_sys(e, -errno, "setrlimit");
	return 0;
}

static void
set_signals(void)
{
	signal(SIGPIPE, SIG_IGN); /* writes say EPIPE */
	signal(SIGXFSZ, SIG_IGN); /* and EFBIG */
	signal(SIGCHLD, SIG_IGN); /* the kernel reaps branches */
	signal(SIGINT, SIG_IGN);  /* a terminal's keys are not for VMs */
	signal(SIGQUIT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
}

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

int
seal_surroundings(struct err *e)
{
	const int others = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
	struct err why;
	int no_userns, r;

	set_signals();
	if ((r = set_limits(e)) < 0)
		return r;
	no_userns = userns_enter(&why);
	if (unshare(others) < 0) {
		if (no_userns == 0)
			err_sys(&why, -errno, "unshare");
		log_info(
			"this host allows no namespaces to this user (%s): the VM shares the host's; the system call filter still holds",
			why.msg);
		goto out;
	}
	if (no_userns < 0)
		log_info(
			"this host allows no user namespace (%s): mount, network, IPC and UTS namespaces only",
			why.msg);
	if (!UNDER_SANITIZER) { /* whose reports want /proc */
		r = empty_root();
		if (r < 0)
			log_info(
				"the root folder could not be emptied: %s", strerror(-r));
	}
out:
	if ((r = drop_capabilities(e)) < 0)
		return r;
	/* Nobody of this user may trace the process or read its memory: that is guest
	 * memory. */
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return err_sys(e, -errno, "PR_SET_DUMPABLE");
	return 0;
}

int
seal_let_user_read(struct err *e)
{
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) < 0)
		return err_sys(e, -errno, "PR_SET_DUMPABLE");
	/* Where Yama allows only ancestors to read and there was no user namespace to
	 * own. EINVAL: no Yama. */
	(void)prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
	return 0;
}

void
seal_let_nobody_read(void)
{
	(void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* cannot fail with these arguments */
}

struct rule {
	int call;
	const char *reason;
};

static const struct rule rules[] = {
	{SCMP_SYS(read), "eventfds"},
	{SCMP_SYS(write), "log lines, eventfds, clear_refs"},
	{SCMP_SYS(readv), "vsock: host to guest"},
	{SCMP_SYS(pread64),
		"disk: partial blocks; a restored VM's state; the log's end; the page map"},
	{SCMP_SYS(preadv), "disk reads"},
	{SCMP_SYS(pwrite64),
		"disk: index records, partial blocks; a frozen fork's state"},
	{SCMP_SYS(pwritev), "disk writes"},
	{SCMP_SYS(fdatasync), "disk: the guest's flush"},
	{SCMP_SYS(fallocate), "disk: discard"},
	{SCMP_SYS(ftruncate), "the console file of a child or a restored VM; a long log"},
	{SCMP_SYS(fstat),
		"new segments are checked to be empty files, an image its size"},
	{SCMP_SYS(newfstatat), "what glibc 2.33 and newer make of fstat"},
	{SCMP_SYS(close), "descriptors of connections, and of a parent in its child"},
	{SCMP_SYS(dup3), "the child's log becomes its standard error"},
	{SCMP_SYS(recvmsg), "control messages with descriptors"},
	{SCMP_SYS(sendmsg), "control answers; vsock: guest to host"},
	{SCMP_SYS(recvfrom), "vsock: the CONNECT line"},
	{SCMP_SYS(sendto), "vsock: its answer"},
	{SCMP_SYS(accept4), "vsock connections, adoption by a new pandod"},
	{SCMP_SYS(socketpair), "a branch's connection to its kept fork point"},
	{SCMP_SYS(shutdown), "vsock: half-closed connections"},
	{SCMP_SYS(getuid), "adoption: the peer must be us"},
	{SCMP_SYS(epoll_create1), "a child's own loop"},
	{SCMP_SYS(epoll_ctl), "the loop"},
	{SCMP_SYS(epoll_wait), "the loop"},
	{SCMP_SYS(epoll_pwait), "what some C libraries make of epoll_wait"},
	{SCMP_SYS(eventfd2), "a child's own"},
	{SCMP_SYS(futex), "locks, parking vCPUs"},
	{SCMP_SYS(getrandom), "virtio-rng"},
	{SCMP_SYS(clock_gettime), "where the vDSO cannot answer"},
	{SCMP_SYS(munmap), "a thread's stack, a console"},
	{SCMP_SYS(brk), "thread start: the C library's own few bytes"},
	{SCMP_SYS(set_robust_list), "thread start, fork"},
	{SCMP_SYS(rseq), "thread start, fork"},
	{SCMP_SYS(rt_sigprocmask), "thread start, fork"},
	{SCMP_SYS(rt_sigreturn), "the signal that parks a vCPU"},
	{SCMP_SYS(getpid), "pthread_kill, fork"},
	{SCMP_SYS(gettid), "fork"},
	{SCMP_SYS(sched_yield), "the C library's locks"},
	{SCMP_SYS(restart_syscall),
		"a call that a stopped and continued process goes on with"},
	{SCMP_SYS(exit), "a thread's end"},
	{SCMP_SYS(exit_group), "the VM's end"},
#ifdef PANDO_SAN
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
	{SCMP_SYS(pipe2), "UBSan asks whether an address can be read"},
	{SCMP_SYS(prlimit64), "sanitizer threads"},
	{SCMP_SYS(clone3), "LeakSanitizer"},
	{SCMP_SYS(wait4), "sanitizer reports"},
	{SCMP_SYS(getdents64), "sanitizer reports"},
	{SCMP_SYS(fcntl), "sanitizer reports: where programs' lines are"},
	{SCMP_SYS(ioctl), "sanitizer reports ask whether they go to a terminal"},
#endif
};

static struct scmp_arg_cmp
equals(unsigned arg, uint64_t value)
{
	return (struct scmp_arg_cmp){.arg = arg, .op = SCMP_CMP_EQ, .datum_a = value};
}

static struct scmp_arg_cmp
masked(unsigned arg, uint64_t mask, uint64_t value)
{
	return (struct scmp_arg_cmp){
		.arg = arg, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value};
}

/* Rules that look at one argument. */
struct arg_rule {
	int call;
	struct scmp_arg_cmp arg;
};

static int
add_arg_rules(scmp_filter_ctx ctx)
{
	/* What glibc's fork() and pthread_create() ask of clone, exactly. */
	const uint64_t fork_flags = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
	const uint64_t thread_flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM |
				      CLONE_SIGHAND | CLONE_THREAD | CLONE_SETTLS |
				      CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	const struct arg_rule arg_rules[] = {
		/* Branches and vCPU threads; no namespaces, no sharing of anything else.
		 */
		{SCMP_SYS(clone), equals(0, fork_flags)},
		{SCMP_SYS(clone), equals(0, thread_flags)},
		/* The first thread: glibc's handler for its own signal SIGSETXID. */
		{SCMP_SYS(rt_sigaction), equals(0, 33)},
		/* The signal that parks vCPUs, and abort()'s. */
		{SCMP_SYS(tgkill), equals(2, SIGUSR1)},
		{SCMP_SYS(tgkill), equals(2, SIGABRT)},
		/* Of two, the one whose guest waits goes on first. */
		{SCMP_SYS(sched_setscheduler), equals(1, SCHED_BATCH)},
		{SCMP_SYS(sched_setscheduler), equals(1, SCHED_OTHER)},
		/* A frozen fork's memory is read by its user's daemon. */
		{SCMP_SYS(prctl), equals(0, PR_SET_DUMPABLE)},
		{SCMP_SYS(prctl), equals(0, PR_SET_PTRACER)},
		/* A forked VM's changed pages: one that no fault in the kernel waits for. */
		{SCMP_SYS(userfaultfd), equals(0, TRACK_UFFD_FLAGS)},
		/* Non-blocking sockets. */
		{SCMP_SYS(fcntl), equals(1, F_GETFL)},
		{SCMP_SYS(fcntl), equals(1, F_SETFL)},
		/* How long a branch and its kept fork point wait for each other. */
		{SCMP_SYS(setsockopt), equals(2, (uint64_t)keep_socket_options[0])},
		{SCMP_SYS(setsockopt), equals(2, (uint64_t)keep_socket_options[1])},
		/* Who is adopting us. */
		{SCMP_SYS(getsockopt), equals(2, SO_PEERCRED)},
#ifdef PANDO_SAN
		{SCMP_SYS(rt_sigaction), masked(0, 0, 0)},
#else
		/* Thread stacks, consoles, run pages, memory images, the stack's guard
		   page, a block map that grows: nothing that can be executed. */
		{SCMP_SYS(mmap), masked(2, PROT_EXEC, 0)},
		{SCMP_SYS(mprotect), masked(2, PROT_EXEC, 0)},
		/* Pages that children do not get; rings and stacks given back. */
		{SCMP_SYS(madvise), equals(2, MADV_DONTFORK)},
		{SCMP_SYS(madvise), equals(2, MADV_DONTNEED)},
		{SCMP_SYS(madvise), equals(2, MADV_FREE)},
		/* What went back to the host over a commit's image takes no huge pages. */
		{SCMP_SYS(madvise), equals(2, MADV_NOHUGEPAGE)},
		/* A branch moves its own memory into mappings without ancestors. */
		{SCMP_SYS(mremap), equals(3, MREMAP_MAYMOVE | MREMAP_FIXED)},
		/* A branch maps its program at once. */
		{SCMP_SYS(madvise), equals(2, MADV_POPULATE_READ)},
#endif
	};
	int r = 0;

	for (size_t i = 0; i < sizeof(arg_rules) / sizeof(*arg_rules) && r == 0; i++)
		r = seccomp_rule_add(
			ctx, SCMP_ACT_ALLOW, arg_rules[i].call, 1, arg_rules[i].arg);
	for (size_t i = 0; i < kvm_n_ioctl_numbers && r == 0 && !UNDER_SANITIZER; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
			masked(1, 0xffffffffu, kvm_ioctl_numbers[i]));
	for (size_t i = 0; i < track_n_ioctl_numbers && r == 0 && !UNDER_SANITIZER; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
			masked(1, 0xffffffffu, track_ioctl_numbers[i]));
	for (size_t i = 0; i < fill_n_ioctl_numbers && r == 0 && !UNDER_SANITIZER; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
			masked(1, 0xffffffffu, fill_ioctl_numbers[i]));
	/* clone3's flags lie in memory, where a filter cannot look: glibc falls back to
	 * clone. */
	if (r == 0 && !UNDER_SANITIZER)
		r = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	return r;
}

int
seal_calls(struct err *e)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	int r = 0;

	if (!ctx)
		return err_set(e, -ENOMEM, "seccomp_init");
	/* A sorted tree: a few comparisons a call instead of a hundred. */
	seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	for (size_t i = 0; i < sizeof(rules) / sizeof(*rules) && r == 0; i++)
		r = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, rules[i].call, 0);
	if (r == 0)
		r = add_arg_rules(ctx);
	if (r == 0)
		r = seccomp_load(ctx); /* sets PR_SET_NO_NEW_PRIVS first */
	seccomp_release(ctx);
	/* What building the filter took would be copied by each fork. */
	malloc_trim(0);
	return r < 0 ? err_sys(e, r, "the system call filter") : 0;
}
