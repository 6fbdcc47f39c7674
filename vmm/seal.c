#include "vmm/seal.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "common/log.h"
#include "common/sandbox.h"
#include "vmm/blk.h"
#include "vmm/fill.h"
#include "vmm/keep.h"
#include "vmm/kvm.h"
#include "vmm/track.h"
#include "vmm/vsock.h"

/* Two for each disk segment, one for each vsock connection, and the few of the VM itself.
 */
#define DESCRIPTORS_MAX (2 * BLK_SEGMENTS_MAX + VSOCK_CONNS_MAX + 128)

static int
set_limits(struct err *e)
{
	rlim_t files;
	/* No RLIMIT_FSIZE: the disk's size bounds the segments (vmm/blk.h). */
	int r = sandbox_set_limits(DESCRIPTORS_MAX, &files, e);

	if (r == 0 && files < DESCRIPTORS_MAX)
		log_info(
			"only %llu descriptors are allowed here: a VM of many branches may run out of disk segments",
			(unsigned long long)files);
	return r;
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

int
seal_surroundings(struct err *e)
{
	struct err less;
	int r;

	set_signals();
	if ((r = set_limits(e)) < 0 || (r = sandbox_leave_host(&less, e)) < 0)
		return r;
	if (less.code)
		log_info("%s", less.msg);
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

static const struct sandbox_rule rules[] = {
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
	{SCMP_SYS(getrandom), "virtio-rng"},
};

int
seal_calls(struct err *e)
{
	/* What glibc's fork() asks of clone, exactly. */
	const uint64_t fork_flags = CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
	const struct sandbox_arg_rule arg_rules[] = {
		/* Branches; no namespaces, no sharing of anything. */
		{SCMP_SYS(clone), sandbox_equals(0, fork_flags)},
		/* The signal that parks vCPUs. */
		{SCMP_SYS(tgkill), sandbox_equals(2, SIGUSR1)},
		/* Of two, the one whose guest waits goes on first. */
		{SCMP_SYS(sched_setscheduler), sandbox_equals(1, SCHED_BATCH)},
		{SCMP_SYS(sched_setscheduler), sandbox_equals(1, SCHED_OTHER)},
		/* A frozen fork's memory is read by its user's daemon. */
		{SCMP_SYS(prctl), sandbox_equals(0, PR_SET_DUMPABLE)},
		{SCMP_SYS(prctl), sandbox_equals(0, PR_SET_PTRACER)},
		/* A forked VM's changed pages: one that no fault in the kernel waits for. */
		{SCMP_SYS(userfaultfd), sandbox_equals(0, TRACK_UFFD_FLAGS)},
		/* Non-blocking sockets. */
		{SCMP_SYS(fcntl), sandbox_equals(1, F_GETFL)},
		{SCMP_SYS(fcntl), sandbox_equals(1, F_SETFL)},
		/* How long a branch and its kept fork point wait for each other. */
		{SCMP_SYS(setsockopt), sandbox_equals(2, (uint64_t)keep_socket_options[0])},
		{SCMP_SYS(setsockopt), sandbox_equals(2, (uint64_t)keep_socket_options[1])},
		/* Who is adopting us. */
		{SCMP_SYS(getsockopt), sandbox_equals(2, SO_PEERCRED)},
#ifndef PANDO_SAN /* which allows them all */
		/* Pages that children do not get; rings given back. */
		{SCMP_SYS(madvise), sandbox_equals(2, MADV_DONTFORK)},
		{SCMP_SYS(madvise), sandbox_equals(2, MADV_FREE)},
		/* What went back to the host over a commit's image takes no huge pages. */
		{SCMP_SYS(madvise), sandbox_equals(2, MADV_NOHUGEPAGE)},
		/* A branch moves its own memory into mappings without ancestors. */
		{SCMP_SYS(mremap), sandbox_equals(3, MREMAP_MAYMOVE | MREMAP_FIXED)},
		/* A branch maps its program at once. */
		{SCMP_SYS(madvise), sandbox_equals(2, MADV_POPULATE_READ)},
#endif
	};
	const unsigned long *const ioctls[] = {
		kvm_ioctl_numbers, track_ioctl_numbers, fill_ioctl_numbers};
	const size_t n_ioctls[] = {
		kvm_n_ioctl_numbers, track_n_ioctl_numbers, fill_n_ioctl_numbers};
	const struct sandbox_calls calls = {
		.rules = rules,
		.n_rules = sizeof(rules) / sizeof(*rules),
		.arg_rules = arg_rules,
		.n_arg_rules = sizeof(arg_rules) / sizeof(*arg_rules),
		.ioctls = ioctls,
		.n_ioctls = n_ioctls,
		.n_ioctl_tables = sizeof(ioctls) / sizeof(*ioctls),
	};

	return sandbox_load(&calls, e);
}
