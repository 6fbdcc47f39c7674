#include "tests/unit/fake_vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/io.h"
#include "common/wire/console_ring.h"
#include "common/wire/segment_wire.h"
#include "common/wire/vmm_wire.h"
#include "vmm/blockmap.h"

static struct {
	int control; /* -1: closed */
	int listen, vsock, index;
	bool paused, parked;
	uint64_t booted_ns, looks;
	struct console console;
	char cmdline[VMM_CMDLINE_MAX];
} vm = {.control = VMM_CONTROL_FD, .listen = -1, .vsock = -1, .index = -1};

static const char console_line[] = "[    1.0] a\x1b unit\r\n";

static bool
told(const char *word)
{
	return strstr(vm.cmdline, word) != NULL;
}

static int
send_msg(void *msg, uint16_t type, size_t len, uint64_t seq)
{
	struct vmm_hdr *h = msg;

	*h = (struct vmm_hdr){VMM_WIRE_VERSION, type, (uint32_t)len, seq};
	return io_send_fds(vm.control, msg, len, NULL, 0);
}

static void
nonsense(void)
{
	struct vmm_hdr h = {0};

	send_msg(&h, 99, sizeof(h), 0);
}

static void
send_started(int error, const char *msg)
{
	struct vmm_started s = {.error = error, .parked = vm.parked, .setup_ns = 1000};

	snprintf(s.msg, sizeof(s.msg), "%s", msg);
	send_msg(&s, VMM_STARTED, sizeof(s), 0);
}

static int
last_words(uint32_t reason, const char *msg)
{
	struct vmm_exiting x = {.reason = reason};

	snprintf(x.msg, sizeof(x.msg), "%s", msg);
	return send_msg(&x, VMM_EXITING, sizeof(x), 0);
}

/* A write of the guest: one record of the segment. */
static void
write_record(void)
{
	struct segment_record r = segment_record_make(SEGMENT_ZERO, 0, 0, 1);
	struct stat st;

	if (fstat(vm.index, &st) == 0)
		io_pwrite_full(vm.index, &r, sizeof(r), (uint64_t)st.st_size);
}

static void
on_boot(const struct vmm_boot *b, const int *fds)
{
	snprintf(vm.cmdline, sizeof(vm.cmdline), "%s", b->cmdline);
	vm.booted_ns = io_now_ns();
	vm.listen = fds[VMM_BOOT_FD_LISTEN];
	vm.vsock = fds[VMM_BOOT_FD_VSOCK];
	vm.index = fds[VMM_BOOT_FD_SEG + VMM_SEG_INDEX];
	if (told("prints") &&
		console_open(&vm.console, fds[VMM_BOOT_FD_CONSOLE], NULL) < 0)
		_exit(24);
	write_record();
	if (told("boot=exit"))
		_exit(3);
	if (told("boot=refuse")) {
		send_started(-ENOEXEC, "the kernel is\tno kernel");
		_exit(1);
	}
	if (told("boot=silent"))
		return;
	if (told("boot=nonsense")) {
		nonsense();
		return;
	}
	if (told("boot=fd")) {
		struct vmm_started s = {
			.hdr = {VMM_WIRE_VERSION, VMM_STARTED, sizeof(s), 0}};

		io_send_fds(vm.control, &s, sizeof(s), &vm.vsock, 1);
		return;
	}
	send_started(0, "");
}

static void
become_child(const struct vmm_fork *f, const int *fds)
{
	close(vm.control);
	close(vm.listen);
	close(vm.vsock);
	close(vm.index);
	vm.control = fds[VMM_FORK_FD_CONTROL];
	vm.listen = fds[VMM_FORK_FD_LISTEN];
	vm.vsock = fds[VMM_FORK_FD_VSOCK];
	vm.index = fds[VMM_FORK_FD_SEG + VMM_SEG_INDEX];
	for (int i = 0; i < VMM_SEG_FDS; i++)
		close(fds[VMM_FORK_FD_PARENT_SEG + i]);
	vm.parked = f->flags & VMM_FORK_PARK;
	if (strstr(f->child_name, "vanish"))
		_exit(4);
	if (strstr(f->child_name, "mute"))
		return;
	if (strstr(f->child_name, "stillborn")) {
		send_started(-ENOMEM, "no memory for a machine");
		_exit(1);
	}
	if (!vm.parked)
		write_record();
	send_started(0, "");
}

static void
on_fork(const struct vmm_fork *f, const int *fds)
{
	struct vmm_forked a = {.pause_ns = 5000, .fork_ns = 3000};
	struct stat st;
	pid_t pid;

	if (told("fork=exit"))
		_exit(5);
	if (told("fork=nonsense"))
		nonsense();
	if (told("fork=refuse")) {
		a.error = -EAGAIN;
		snprintf(a.msg, sizeof(a.msg), "fork: no more processes");
		send_msg(&a, VMM_FORKED, sizeof(a), f->hdr.seq);
	}
	if (told("fork=")) {
		for (int i = 0; i < VMM_FORK_FD_COUNT; i++)
			close(fds[i]);
		return;
	}
	pid = fork();
	if (pid == 0) {
		become_child(f, fds);
		return;
	}
	if (!vm.parked && fstat(vm.index, &st) == 0)
		a.fork_point_records =
			(uint64_t)st.st_size / sizeof(struct segment_record);
	a.child_pid = (uint32_t)pid;
	for (int i = 0; i < VMM_FORK_FD_COUNT; i++)
		if (vm.parked || i != VMM_FORK_FD_PARENT_SEG + VMM_SEG_INDEX)
			close(fds[i]);
	if (!vm.parked) {
		close(vm.index);
		vm.index = fds[VMM_FORK_FD_PARENT_SEG + VMM_SEG_INDEX];
		write_record();
	}
	send_msg(&a, VMM_FORKED, sizeof(a), f->hdr.seq);
}

static void
on_control(void)
{
	union {
		struct vmm_hdr hdr;
		struct vmm_boot boot;
		struct vmm_fork fork;
		struct vmm_resize resize;
		struct vmm_merged merged;
	} m;
	int fds[IO_FDS_MAX];
	size_t n = IO_FDS_MAX;
	ssize_t len = io_recv_fds(vm.control, &m, sizeof(m), fds, &n, 0);

	if (len <= 0) {
		close(vm.control);
		vm.control = -1;
		if (vm.listen < 0)
			_exit(0); /* nobody ever told it what to be */
		return;
	}
	switch (m.hdr.type) {
	case VMM_BOOT:
		if (n != VMM_BOOT_FD_COUNT || (size_t)len != sizeof(m.boot))
			_exit(20);
		on_boot(&m.boot, fds);
		break;
	case VMM_FORK:
		if (n != VMM_FORK_FD_COUNT || (size_t)len != sizeof(m.fork))
			_exit(21);
		on_fork(&m.fork, fds);
		break;
	case VMM_PAUSE:
	case VMM_RESUME: {
		struct vmm_done d = {0};

		vm.paused = m.hdr.type == VMM_PAUSE;
		send_msg(&d, VMM_DONE, sizeof(d), m.hdr.seq);
		break;
	}
	case VMM_STATS: {
		struct vmm_stats_answer a = {.uptime_ns = 7000000,
			.vcpu_exits = told("works") ? ++vm.looks : 0,
			.tracks = told("merge=old") ? 0 : VMM_TAKES_MERGED,
			.paused = vm.parked ? 2 : vm.paused};

		send_msg(&a, VMM_STATS_ANSWER, sizeof(a), m.hdr.seq);
		break;
	}
	case VMM_POWER_BUTTON: {
		struct vmm_done d = {0};

		send_msg(&d, VMM_DONE, sizeof(d), m.hdr.seq);
		if (told("button=off")) {
			last_words(VMM_EXIT_POWER_OFF, "S5");
			_exit(0);
		}
		if (told("button=reset")) {
			last_words(VMM_EXIT_RESET, "rebooted instead");
			_exit(0);
		}
		break;
	}
	case VMM_RESIZE: {
		struct vmm_done d = {0};

		if ((size_t)len != sizeof(m.resize))
			_exit(23);
		if (told("resize=exit"))
			_exit(6);
		if (told("resize=silent"))
			break;
		if (told("resize=refuse")) {
			d.error = -ENOSPC;
			snprintf(d.msg, sizeof(d.msg), "no room for its map");
		}
		send_msg(&d, VMM_DONE, sizeof(d), m.hdr.seq);
		break;
	}
	case VMM_MERGED: {
		struct vmm_done d = {0};

		if ((size_t)len != sizeof(m.merged) || n != VMM_MERGED_FD_COUNT ||
			m.merged.n < 1 || m.merged.n > VMM_MERGED_MAX)
			_exit(25);
		close(fds[VMM_MERGED_FD_DATA]);
		close(fds[VMM_MERGED_FD_INDEX]);
		if (told("merge=exit"))
			_exit(7);
		if (told("merge=silent"))
			break;
		if (told("merge=refuse")) {
			d.error = -ESTALE;
			snprintf(d.msg, sizeof(d.msg), "not of this disk");
		}
		send_msg(&d, VMM_DONE, sizeof(d), m.hdr.seq);
		break;
	}
	case VMM_QUIT:
		if (told("quit=never"))
			break;
		_exit(0);
	default:
		_exit(22);
	}
}

static void
on_guest(void)
{
	int fd = accept(vm.vsock, NULL, NULL);
	char order = 0;

	if (fd < 0)
		return;
	if (told("agent") || (told("wakes") && io_now_ns() - vm.booted_ns >
						       FAKE_VMM_WAKES_MS * 1000000ull))
		io_write_full(fd, "A", 1);

	struct pollfd p = {.fd = fd, .events = POLLIN};

	/* Orders come with the connection; one who waits for an agent sends nothing. */
	if (poll(&p, 1, 10) <= 0 || io_read(fd, &order, 1) < 0)
		order = 0;
	/* Whoever gave it may have been too late for the poll. */
	if (order)
		io_write_full(fd, "K", 1);
	close(fd);
	switch (order) {
	case 'P':
		last_words(VMM_EXIT_POWER_OFF, "S5");
		_exit(0);
	case 'R':
		last_words(VMM_EXIT_RESET, "reset \033[31m register");
		_exit(0);
	case 'N':
		last_words(VMM_EXIT_PANIC, "Kernel \033[31m panic");
		_exit(1);
	case 'X':
		_exit(9);
	case 'G':
		nonsense();
		break;
	case 'C':
		close(vm.control);
		close(vm.listen);
		vm.control = vm.listen = -1;
		break;
	case 'F':
		/* Until it is too much: how many are there at once is the scheduler's. */
		while (last_words(VMM_EXIT_RESET, "not really") >= 0)
			;
		break;
	}
}

int
fake_vmm_main(void)
{
	signal(SIGCHLD, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		struct pollfd p[2] = {
			{.fd = vm.control >= 0 ? vm.control : vm.listen,
				.events = POLLIN},
			{.fd = vm.vsock, .events = POLLIN},
		};

		if (poll(p, 2, told("prints") ? 50 : -1) < 0 && errno != EINTR)
			return 30;
		console_write(&vm.console, console_line, sizeof(console_line) - 1);
		if (p[0].revents && vm.control >= 0)
			on_control();
		else if (p[0].revents)
			vm.control = accept(vm.listen, NULL, NULL);
		else if (p[1].revents)
			on_guest();
	}
}
