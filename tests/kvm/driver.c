#include "tests/kvm/driver_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

bool
driver_has_kvm(char why[static 160])
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		snprintf(why, 160, "/dev/kvm: %s", strerror(errno));
		return false;
	}
	close(fd);
	return true;
}

/* A copy in memory, which anybody may run. */
static int
copy_program(const char *path, struct err *e)
{
	cleanup_free char *program = NULL;
	size_t len;
	int fd, r = io_read_file(path, 256u << 20, &program, &len, e);

	if (r < 0)
		return r;
	fd = memfd_create("pando-vmm", MFD_CLOEXEC);
	if (fd < 0)
		return err_sys(e, -errno, "memfd_create");
	r = io_write_full(fd, program, len);
	if (r < 0) {
		close(fd);
		return err_sys(e, r, "copying %s", path);
	}
	return fd;
}

int
driver_init(struct driver *d, struct err *e)
{
	char exe[2048];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	char *slash;

	memset(d, 0, sizeof(*d));
	d->vmm = d->guest = -1;
	d->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (d->kvm < 0)
		return err_sys(e, -errno, "/dev/kvm");
	if (n < 0)
		return err_sys(e, -errno, "/proc/self/exe");
	exe[n] = 0;
	for (int i = 0; i < 2; i++) { /* <build>/tests/x -> <build> */
		slash = strrchr(exe, '/');
		if (!slash)
			return err_set(e, -ENOENT, "no folder in %s", exe);
		*slash = 0;
	}
	snprintf(d->vmm_path, sizeof(d->vmm_path), "%s/libexec/pando/pando-vmm", exe);
	snprintf(d->guest_path, sizeof(d->guest_path), "%s/tests/guest/tiny", exe);
	/* Opened here: a test that becomes another user may not reach their folder, or
	 * may not run a file that is its owner's alone. */
	d->vmm = copy_program(d->vmm_path, e);
	if (d->vmm < 0)
		return d->vmm;
	d->guest = open(d->guest_path, O_RDONLY | O_CLOEXEC);
	if (d->guest < 0)
		return err_sys(e, -errno, "%s", d->guest_path);
	snprintf(d->folder, sizeof(d->folder), "%s/pando-kvm.XXXXXX",
		getenv("TMPDIR") && strlen(getenv("TMPDIR")) < 60 ? getenv("TMPDIR")
								  : "/tmp");
	if (!mkdtemp(d->folder))
		return err_sys(e, -errno, "%s", d->folder);
	d->next_generation = 0x1000;
	return 0;
}

int
driver_new_vm(struct driver *d, const char *name, struct vm **ret, struct err *e)
{
	struct vm *vm = NULL;
	int i;

	for (i = 0; i < DRIVER_VMS_MAX && !vm; i++)
		if (!d->vms[i].used)
			vm = &d->vms[i];
	if (!vm)
		return err_set(
			e, -ENOSPC, "more than %d VMs in one test", DRIVER_VMS_MAX);
	memset(vm, 0, sizeof(*vm));
	vm->used = true;
	vm->driver = d;
	vm->control = vm->pidfd = -1;
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	snprintf(vm->folder, sizeof(vm->folder), "%s/%d", d->folder, i);
	/* Each generation is another, and tells its VM apart in the history it prints. */
	memcpy(vm->generation, &d->next_generation, 8);
	d->next_generation++;
	io_remove_tree(vm->folder, NULL);
	if (mkdir(vm->folder, 0700) < 0) {
		vm->used = false;
		return err_sys(e, -errno, "%s", vm->folder);
	}
	*ret = vm;
	return 0;
}

const char *
driver_path(const struct vm *vm, const char *file, char dst[static 256])
{
	snprintf(dst, 256, "%s/%s", vm->folder, file);
	return dst;
}

int
driver_create(const struct vm *vm, const char *file, int flags, int *ret, struct err *e)
{
	char path[256];

	*ret = open(
		driver_path(vm, file, path), O_RDWR | O_CREAT | O_CLOEXEC | flags, 0600);
	return *ret < 0 ? err_sys(e, -errno, "%s", path) : 0;
}

int
driver_new_segment(struct vm *vm, int *ret, struct err *e)
{
	const char *folder =
		vm->driver->segment_folder[0] ? vm->driver->segment_folder : vm->folder;
	char path[256];

	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof(path), "%s/%d.%u.%s", folder,
			(int)(vm - vm->driver->vms), vm->segments, i ? "index" : "data");
		ret[i] = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		ret[i + 2] = open(path, O_RDONLY | O_CLOEXEC);
		if (ret[i] < 0 || ret[i + 2] < 0)
			return err_sys(e, -errno, "%s", path);
	}
	vm->segments++;
	return 0;
}

int
driver_map_console(struct vm *vm, int fd, struct err *e)
{
	void *p;

	/* The VMM sizes it; we size it too so that our mapping is good from the start. */
	if (ftruncate(fd, CONSOLE_FILE_BYTES) < 0)
		return err_sys(e, -errno, "console");
	p = mmap(NULL, CONSOLE_FILE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return err_sys(e, -errno, "mapping the console");
	vm->console = p;
	return 0;
}

int
driver_start(struct driver *d, const char *name, struct vm **ret, struct err *e)
{
	int pair[2], r;
	struct vm *vm;

	r = driver_new_vm(d, name, &vm, e);
	if (r < 0)
		return r;
	vm->own_process = true;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return err_sys(e, -errno, "socketpair");
	vm->pid = fork();
	if (vm->pid == 0) {
		char path[256];
		int log = open(driver_path(vm, "stderr", path),
			O_WRONLY | O_CREAT | O_APPEND, 0600);

		if (log >= 0)
			dup2(log, 2);
		/* dup2 onto itself would keep close-on-exec. */
		if (pair[1] == VMM_CONTROL_FD)
			fcntl(pair[1], F_SETFD, 0);
		else
			dup2(pair[1], VMM_CONTROL_FD);
		execveat(d->vmm, "", (char *[]){"pando-vmm", NULL}, environ,
			AT_EMPTY_PATH);
		_exit(127);
	}
	close(pair[1]);
	vm->control = pair[0];
	if (vm->pid < 0)
		return err_sys(e, -errno, "fork");
	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	if (vm->pidfd < 0)
		return err_sys(e, -errno, "pidfd_open");
	*ret = vm;
	return 0;
}

int
driver_send_boot(struct vm *vm, const struct boot *boot, struct err *e)
{
	struct vmm_boot m = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_BOOT,
			.len = sizeof(m),
			.seq = ++vm->seq},
		.mem_mib = boot->mem_mib ? boot->mem_mib : 16,
		.disk_mib = boot->disk_mib ? boot->disk_mib : 16,
		.vcpus = boot->vcpus ? boot->vcpus : 1,
		.flags = boot->base ? VMM_BOOT_HAS_BASE : 0,
		.guest_cid = 3,
	};
	int fds[VMM_BOOT_FD_COUNT], r;
	char path[256];

	for (int i = 0; i < VMM_BOOT_FD_COUNT; i++)
		fds[i] = -1;
	memcpy(m.generation, vm->generation, sizeof(m.generation));
	snprintf(m.name, sizeof(m.name), "%s", vm->name);
	snprintf(m.cmdline, sizeof(m.cmdline), "%s", boot->cmdline);
	r = io_unix_listen(driver_path(vm, "control.sock", path), SOCK_SEQPACKET, 4,
		&fds[VMM_BOOT_FD_LISTEN], e);
	if (r == 0)
		r = io_unix_listen(driver_path(vm, "vsock.sock", path), SOCK_STREAM, 64,
			&fds[VMM_BOOT_FD_VSOCK], e);
	if (r == 0)
		r = driver_create(vm, "console", O_EXCL, &fds[VMM_BOOT_FD_CONSOLE], e);
	if (r == 0)
		r = driver_map_console(vm, fds[VMM_BOOT_FD_CONSOLE], e);
	if (r == 0)
		r = driver_create(vm, "vmm.log", O_APPEND, &fds[VMM_BOOT_FD_LOG], e);
	if (r == 0)
		r = driver_new_segment(vm, fds + VMM_BOOT_FD_SEG, e);
	if (r < 0)
		goto out;
	fds[VMM_BOOT_FD_KVM] = fcntl(vm->driver->kvm, F_DUPFD_CLOEXEC, 3);
	fds[VMM_BOOT_FD_KERNEL] = boot->kernel
					  ? open(boot->kernel, O_RDONLY | O_CLOEXEC)
					  : fcntl(vm->driver->guest, F_DUPFD_CLOEXEC, 3);
	fds[VMM_BOOT_FD_INITRD] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	fds[VMM_BOOT_FD_BASE] =
		open(boot->base ? boot->base : "/dev/null", O_RDONLY | O_CLOEXEC);
	for (int i = 0; i < VMM_BOOT_FD_COUNT; i++)
		if (fds[i] < 0) {
			r = err_sys(e, -errno, "descriptor %d of the boot message", i);
			goto out;
		}
	r = io_send_fds(vm->control, &m, sizeof(m), fds, VMM_BOOT_FD_COUNT);
	if (r < 0)
		err_sys(e, r, "sending the boot message");
out:
	for (int i = 0; i < VMM_BOOT_FD_COUNT; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return r;
}

/* One message from the VMM; what comes unasked is put aside and 0 returned with hdr.type
 * 0. */
static int
receive(struct vm *vm, union driver_message *m, int timeout_ms)
{
	struct pollfd p = {.fd = vm->control, .events = POLLIN};
	ssize_t n;

	if (vm->control < 0 || vm->closed)
		return -ENOTCONN;
	do
		n = poll(&p, 1, timeout_ms);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (n == 0)
		return -ETIMEDOUT;
	memset(m, 0, sizeof(*m));
	n = io_recv_fds(vm->control, m, sizeof(*m), NULL, NULL, MSG_DONTWAIT);
	if (n == -EAGAIN)
		return -ETIMEDOUT;
	if (n <= 0) {
		vm->closed = true;
		return -ENOTCONN;
	}
	if ((size_t)n < sizeof(m->hdr) || m->hdr.version != VMM_WIRE_VERSION ||
		m->hdr.len != (size_t)n)
		return -EBADMSG;
	if (m->hdr.type == VMM_STARTED && n == sizeof(m->started)) {
		vm->got_started = true;
		vm->started = m->started;
		vm->started.msg[sizeof(vm->started.msg) - 1] = 0;
		m->hdr.type = 0;
	} else if (m->hdr.type == VMM_EXITING && n == sizeof(m->exiting)) {
		vm->got_exiting = true;
		vm->exiting = m->exiting;
		vm->exiting.msg[sizeof(vm->exiting.msg) - 1] = 0;
		m->hdr.type = 0;
	} else if (m->hdr.type == VMM_DISK_FULL && n == sizeof(m->disk_full)) {
		vm->disk_fulls++;
		vm->disk_full = m->disk_full;
		vm->disk_full.msg[sizeof(vm->disk_full.msg) - 1] = 0;
		m->hdr.type = 0;
	}
	return 0;
}

static int
remaining(uint64_t deadline_ns)
{
	uint64_t now = io_now_ns();

	return now >= deadline_ns ? 0 : (int)((deadline_ns - now) / 1000000) + 1;
}

int
driver_wait_disk_full(struct vm *vm, bool full, int timeout_ms, struct err *e)
{
	const uint64_t deadline = io_now_ns() + (uint64_t)timeout_ms * 1000000;
	union driver_message m;
	int r;

	while (!vm->disk_fulls || (vm->disk_full.error != 0) != full) {
		r = receive(vm, &m, remaining(deadline));
		if (r < 0)
			return err_sys(e, r, "%s: waiting until its disk %s", vm->name,
				full ? "is full" : "has room");
	}
	vm->disk_fulls = 0;
	return 0;
}

int
driver_pump(struct vm *vm, int timeout_ms)
{
	union driver_message m;

	return receive(vm, &m, timeout_ms);
}

/* Waits for the answer to seq. */
int
driver_answer(struct vm *vm, union driver_message *m, uint64_t seq, uint16_t type,
	int timeout_ms, struct err *e)
{
	uint64_t deadline = io_now_ns() + (uint64_t)timeout_ms * 1000000;
	int r;

	for (;;) {
		r = receive(vm, m, remaining(deadline));
		if (r < 0)
			return err_sys(e, r, "%s: waiting for message %u%s%s", vm->name,
				type, vm->got_exiting ? "; it said: " : "",
				vm->got_exiting ? vm->exiting.msg : "");
		if (m->hdr.type == 0)
			continue;
		if (m->hdr.seq == seq && (m->hdr.type == type || m->hdr.type == VMM_DONE))
			return 0;
		return err_set(e, -EBADMSG,
			"%s: message %u with seq %llu where %u was due", vm->name,
			m->hdr.type, (unsigned long long)m->hdr.seq, type);
	}
}

int
driver_wait_started(struct vm *vm, int timeout_ms, struct err *e)
{
	uint64_t deadline = io_now_ns() + (uint64_t)timeout_ms * 1000000;
	int r = 0;

	while (!vm->got_started) {
		r = driver_pump(vm, remaining(deadline));
		if (r < 0)
			return err_sys(e, r, "%s: waiting for it to start%s%s", vm->name,
				vm->got_exiting ? "; it said: " : "",
				vm->got_exiting ? vm->exiting.msg : "");
	}
	if (vm->started.error)
		return err_set(e,
			vm->started.error < 0 ? vm->started.error : -vm->started.error,
			"%s", vm->started.msg);
	return 0;
}

int
driver_boot(struct driver *d, const char *name, const struct boot *boot, struct vm **ret,
	struct err *e)
{
	struct vm *vm;
	int r = driver_start(d, name, &vm, e);

	if (r == 0)
		r = driver_send_boot(vm, boot, e);
	if (r == 0)
		r = driver_wait_started(vm, DRIVER_ANSWER_MS, e);
	if (r == 0)
		*ret = vm;
	return r;
}

int
driver_fork(struct vm *parent, const char *name, unsigned flags, struct vm **ret_child,
	struct vmm_forked *ret, struct err *e)
{
	bool parked = parent->got_started && parent->started.parked;
	struct vmm_fork f = {
		.hdr = {.version = VMM_WIRE_VERSION,
			.type = VMM_FORK,
			.len = sizeof(f),
			.seq = ++parent->seq},
		.flags = (flags & DRIVER_PARK ? VMM_FORK_PARK : 0) |
			 (flags & DRIVER_TRACK ? VMM_FORK_TRACK : 0) |
			 (flags & DRIVER_KEEP ? VMM_FORK_KEEP : 0),
	};
	int fds[VMM_FORK_FD_COUNT], pair[2] = {-1, -1}, r;
	union driver_message m;
	struct vm *child;
	char path[256];

	for (int i = 0; i < VMM_FORK_FD_COUNT; i++)
		fds[i] = -1;
	r = driver_new_vm(parent->driver, name, &child, e);
	if (r < 0)
		return r;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		r = err_sys(e, -errno, "socketpair");
		goto out;
	}
	child->control = pair[0];
	fds[VMM_FORK_FD_CONTROL] = pair[1];
	if (flags & DRIVER_GIVEN_UP) {
		struct vmm_hdr quit = {.version = VMM_WIRE_VERSION,
			.type = VMM_QUIT,
			.len = sizeof(quit),
			.seq = 1};

		io_send_fds(pair[0], &quit, sizeof(quit), NULL, 0);
		close(pair[0]);
		child->control = -1;
	}
	r = io_unix_listen(driver_path(child, "control.sock", path), SOCK_SEQPACKET, 4,
		&fds[VMM_FORK_FD_LISTEN], e);
	if (r == 0)
		r = io_unix_listen(driver_path(child, "vsock.sock", path), SOCK_STREAM,
			64, &fds[VMM_FORK_FD_VSOCK], e);
	if (r == 0)
		r = driver_create(child, "console", O_EXCL, &fds[VMM_FORK_FD_CONSOLE], e);
	if (r == 0)
		r = driver_map_console(child, fds[VMM_FORK_FD_CONSOLE], e);
	if (r == 0)
		r = driver_create(child, "vmm.log", O_APPEND, &fds[VMM_FORK_FD_LOG], e);
	if (r == 0)
		r = driver_new_segment(child, fds + VMM_FORK_FD_SEG, e);
	if (r == 0 && !parked)
		r = driver_new_segment(parent, fds + VMM_FORK_FD_PARENT_SEG, e);
	if (r < 0)
		goto out;
	for (int i = 0; i < VMM_SEG_FDS && parked; i++)
		fds[VMM_FORK_FD_PARENT_SEG + i] = open("/dev/null", O_RDWR | O_CLOEXEC);
	child->generation[15] = flags & DRIVER_RESTS ? 0x80 : 0;
	memcpy(f.child_generation, child->generation, 16);
	memcpy(parent->generation, &parent->driver->next_generation, 8);
	parent->driver->next_generation++;
	memcpy(f.parent_generation, parent->generation, 16);
	snprintf(f.child_name, sizeof(f.child_name), "%s", name);
	if (flags & DRIVER_STOPPED)
		kill(parent->pid, SIGSTOP);
	r = io_send_fds(parent->control, &f, sizeof(f), fds, VMM_FORK_FD_COUNT);
	if (flags & DRIVER_STOPPED)
		kill(parent->pid, SIGCONT);
	if (r < 0) {
		err_sys(e, r, "sending the fork message");
		goto out;
	}
	r = driver_answer(parent, &m, f.hdr.seq, VMM_FORKED, DRIVER_ANSWER_MS, e);
	if (r < 0)
		goto out;
	if (m.hdr.type == VMM_DONE) {
		m.done.msg[sizeof(m.done.msg) - 1] = 0;
		r = err_set(e, m.done.error ? m.done.error : -EBADMSG, "%s", m.done.msg);
		goto out;
	}
	if (m.forked.error) {
		m.forked.msg[sizeof(m.forked.msg) - 1] = 0;
		r = err_set(e, m.forked.error, "%s", m.forked.msg);
		goto out;
	}
	if (ret)
		*ret = m.forked;
	child->pid = (pid_t)m.forked.child_pid;
	if (flags & DRIVER_GIVEN_UP) {
		*ret_child = child;
		goto out;
	}
	if (!(flags & DRIVER_NO_WAIT)) {
		close(fds[VMM_FORK_FD_CONTROL]); /* so that a child that dies is seen */
		fds[VMM_FORK_FD_CONTROL] = -1;
		r = driver_wait_started(child, DRIVER_ANSWER_MS, e);
		if (r < 0)
			goto out;
	}
	/* The pair's credentials are ours, so the VMM's hint must do; driver_adopt()
	 * checks it against the kernel's word. */
	child->pidfd = (int)syscall(SYS_pidfd_open, child->pid, 0);
	if (child->pidfd < 0) {
		r = err_sys(e, -errno, "pidfd_open of child %d", child->pid);
		goto out;
	}
	*ret_child = child;
out:
	for (int i = 0; i < VMM_FORK_FD_COUNT; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (r < 0)
		driver_kill(child);
	return r;
}

int
driver_send_raw(struct vm *vm, const void *buf, size_t len, const int *fds, size_t n_fds)
{
	return io_send_fds(vm->control, buf, len, fds, n_fds);
}

int
driver_request(struct vm *vm, uint16_t type, void *ret_answer, size_t answer_len,
	uint16_t answer_type, int timeout_ms, struct err *e)
{
	struct vmm_hdr h = {.version = VMM_WIRE_VERSION,
		.type = type,
		.len = sizeof(h),
		.seq = ++vm->seq};
	union driver_message m;
	int r = io_send_fds(vm->control, &h, sizeof(h), NULL, 0);

	if (r < 0)
		return err_sys(e, r, "%s: sending message %u", vm->name, type);
	r = driver_answer(vm, &m, h.seq, answer_type, timeout_ms, e);
	if (r < 0)
		return r;
	if (m.hdr.type == VMM_DONE && m.done.error) {
		m.done.msg[sizeof(m.done.msg) - 1] = 0;
		return err_set(e, m.done.error, "%s", m.done.msg);
	}
	if (m.hdr.type != answer_type)
		return err_set(
			e, -EBADMSG, "%s: answered by message %u", vm->name, m.hdr.type);
	if (ret_answer)
		memcpy(ret_answer, &m, answer_len);
	return 0;
}

int
driver_stats(struct vm *vm, struct vmm_stats_answer *ret, struct err *e)
{
	return driver_request(
		vm, VMM_STATS, ret, sizeof(*ret), VMM_STATS_ANSWER, DRIVER_ANSWER_MS, e);
}

bool
driver_alive(const struct vm *vm)
{
	struct pollfd p = {.fd = vm->pidfd, .events = POLLIN};

	return vm->pidfd >= 0 && poll(&p, 1, 0) == 0;
}

int
driver_wait_gone(struct vm *vm, int timeout_ms, struct err *e)
{
	uint64_t deadline = io_now_ns() + (uint64_t)timeout_ms * 1000000;
	struct pollfd p = {.fd = vm->pidfd, .events = POLLIN};
	int r;

	/* Its last words first: they stay readable after its end. */
	do
		r = poll(&p, 1, remaining(deadline));
	while (r < 0 && errno == EINTR);
	while (driver_pump(vm, 0) == 0)
		;
	if (r <= 0)
		return err_set(e, -ETIMEDOUT, "%s: still there after %d ms", vm->name,
			timeout_ms);
	if (vm->own_process && vm->pid > 0) {
		if (waitpid(vm->pid, &vm->status, 0) < 0)
			return err_sys(e, -errno, "waitpid");
		vm->pid = 0;
	}
	return 0;
}

void
driver_drop_control(struct vm *vm)
{
	if (vm->control >= 0)
		close(vm->control);
	vm->control = -1;
	vm->closed = false;
}

int
driver_adopt(struct vm *vm, int timeout_ms, struct err *e)
{
	struct vmm_stats_answer stats;
	struct ucred cred = {0};
	socklen_t len = sizeof(cred);
	char path[256];
	int r;

	r = io_unix_connect(
		driver_path(vm, "control.sock", path), SOCK_SEQPACKET, &vm->control, e);
	if (r < 0)
		return r;
	vm->closed = false;
	if (getsockopt(vm->control, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return err_sys(e, -errno, "SO_PEERCRED");
	return driver_request(
		vm, VMM_STATS, &stats, sizeof(stats), VMM_STATS_ANSWER, timeout_ms, e);
}

uint64_t
driver_console_written(const struct vm *vm)
{
	return atomic_load_explicit(
		&((struct console_hdr *)(uintptr_t)vm->console)->written,
		memory_order_acquire);
}

size_t
driver_console(const struct vm *vm, char *dst, size_t cap)
{
	const char *ring = (const char *)vm->console + CONSOLE_HDR_BYTES;
	uint64_t end = driver_console_written(vm), from = 0;
	size_t n = 0;

	if (end > CONSOLE_RING_BYTES)
		from = end - CONSOLE_RING_BYTES;
	if (end - from > cap - 1)
		from = end - (cap - 1);
	for (uint64_t i = from; i < end; i++)
		dst[n++] = ring[i % CONSOLE_RING_BYTES];
	dst[n] = 0;
	return n;
}

int
driver_expect(struct vm *vm, const char *text, int timeout_ms, char *line, size_t cap,
	struct err *e)
{
	const char *ring = (const char *)vm->console + CONSOLE_HDR_BYTES;
	uint64_t deadline = io_now_ns() + (uint64_t)timeout_ms * 1000000;
	cleanup_free char *buf = malloc(CONSOLE_RING_BYTES + 1);

	if (!buf)
		return err_sys(e, -ENOMEM, "console");
	for (;;) {
		bool alive = driver_alive(vm);
		uint64_t end = driver_console_written(vm);
		size_t n = 0, used;

		if (end - vm->console_read > CONSOLE_RING_BYTES)
			vm->console_read = end - CONSOLE_RING_BYTES;
		for (uint64_t i = vm->console_read; i < end; i++)
			buf[n++] = ring[i % CONSOLE_RING_BYTES];
		buf[n] = 0;
		used = console_line_find(buf, n, text, line, cap);
		if (used) {
			vm->console_read += used;
			return 0;
		}
		if (!alive || io_now_ns() > deadline) {
			char words[128];

			while (driver_pump(vm, 0) == 0)
				;
			snprintf(words, sizeof(words), "%s",
				n > 100 ? buf + n - 100 : buf);
			return err_set(e, alive ? -ETIMEDOUT : -ESRCH,
				"%s: no \"%s\" on the console; %s; it ends with \"%s\"%s%s",
				vm->name, text, alive ? "time is up" : "the VMM is gone",
				words, vm->got_exiting ? "; last words: " : "",
				vm->got_exiting ? vm->exiting.msg : "");
		}
		usleep(500);
	}
}

const char *
driver_log(const struct vm *vm, char *dst, size_t cap)
{
	static const char *const files[] = {"stderr", "blank.log", "vmm.log"};
	size_t n = 0;

	for (size_t i = 0; i < 3; i++) {
		char path[256];
		cleanup_close int fd =
			open(driver_path(vm, files[i], path), O_RDONLY | O_CLOEXEC);
		ssize_t got = fd >= 0 ? read(fd, dst + n, cap - 1 - n) : 0;

		if (got > 0)
			n += (size_t)got;
	}
	dst[n] = 0;
	return dst;
}

void
driver_kill(struct vm *vm)
{
	if (!vm->used)
		return;
	if (vm->pidfd >= 0) {
		syscall(SYS_pidfd_send_signal, vm->pidfd, SIGKILL, NULL, 0);
		driver_wait_gone(vm, 10000, NULL);
		close(vm->pidfd);
	}
	if (vm->control >= 0)
		close(vm->control);
	if (vm->console)
		munmap((void *)(uintptr_t)vm->console, CONSOLE_FILE_BYTES);
	io_remove_tree(vm->folder, NULL);
	vm->used = false;
}

void
driver_done(struct driver *d)
{
	for (int i = 0; i < DRIVER_VMS_MAX; i++)
		driver_kill(&d->vms[i]);
	if (d->folder[0])
		io_remove_tree(d->folder, NULL);
	for (int i = 0; i < 3; i++) {
		int *fd = (int *[]){&d->kvm, &d->vmm, &d->guest}[i];

		if (*fd > 0)
			close(*fd);
		*fd = -1;
	}
}
