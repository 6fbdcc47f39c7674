/*
 * What a VMM and pando-fill say to each other (common/wire/fill_wire.h), both ways: a VMM that
 * lies to pando-fill (host/fill/fill_serve.c), and pando-fill that lies to a VMM (vmm/fill.c).
 *
 * The input is a row of messages: a byte that says whose it is and what goes along, two of how
 * long it is, and it. pando-fill keeps the VM as long as its messages are right, drops it with the
 * first that is not, and has no descriptor more afterwards. A VMM believes one message: that all is
 * there.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/userfaultfd.h>
/* include/uapi/linux/userfaultfd.h of Linux 5.11; these headers may be older. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#include "common/io.h"
#include "common/log.h"
#include "common/wire/fill_wire.h"
#include "host/fill/fill_serve.h"
#include "vmm/fill.h"

#define PAGES FILL_LEAF_PAGES
#define BYTES ((size_t)PAGES * FILL_PAGE)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x) \
	do { \
		if (!(x)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #x); \
			abort(); \
		} \
	} while (0)

/* What goes along with a VM's message. */
enum along { NOTHING, UFFD, PIPE, TWO, ALONG_COUNT };

static int control_fd, uffd_fd, pipe_fd;

static void
set_up(void)
{
	const struct fill_begin m = {
		.hdr = {FILL_VERSION, FILL_BEGIN, sizeof(m)}, .pages = PAGES};
	int pair[2], fds[FILL_BEGIN_FD_COUNT], pipes[2];

	log_init("fuzz", LOG_LEVEL_ERR);
	log_set_fd(open("/dev/null", O_WRONLY | O_CLOEXEC));
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	MUST(fill_serve_open(pair[1]) == 0);
	control_fd = pair[0];
	for (unsigned i = 0; i < FILL_BEGIN_FD_COUNT; i++)
		MUST((fds[i] = memfd_create("fill", MFD_CLOEXEC)) >= 0);
	MUST(io_send_fds(control_fd, &m, sizeof(m), fds, FILL_BEGIN_FD_COUNT) == 0);
	fill_serve_turn();
	for (unsigned i = 0; i < FILL_BEGIN_FD_COUNT; i++)
		close(fds[i]);
	MUST(pipe2(pipes, O_CLOEXEC) == 0);
	pipe_fd = pipes[0];
	/* One that no fault in the kernel waits for: everybody may have that. */
	uffd_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd_fd >= 0) {
		struct uffdio_api api = {.api = UFFD_API};

		MUST(ioctl(uffd_fd, UFFDIO_API, &api) == 0);
	}
}

/* ---- to pando-fill ---- */

static bool
is_right(const uint8_t *p, size_t len, enum along along, bool told)
{
	struct fill_memory m;
	struct uffdio_range range;

	if (len != sizeof(m) || along != UFFD || uffd_fd < 0 || told)
		return false;
	memcpy(&m, p, sizeof(m));
	range = (struct uffdio_range){m.host, BYTES};
	return m.hdr.version == FILL_VERSION && m.hdr.type == FILL_MEMORY &&
	       m.hdr.len == sizeof(m) && m.len == BYTES &&
	       ioctl(uffd_fd, UFFDIO_WAKE, &range) == 0;
}

/* false: it dropped the VM. */
static bool
to_filler(int sock, const uint8_t *p, size_t len, enum along along, bool *told)
{
	const int fds[2] = {along == UFFD && uffd_fd >= 0 ? uffd_fd : pipe_fd, pipe_fd};
	const size_t n[ALONG_COUNT] = {0, 1, 1, 2};
	const bool right = is_right(p, len, along, *told);
	struct pollfd end = {.fd = sock, .events = POLLIN};
	bool is_there;

	MUST(io_send_fds(sock, p, len, fds, n[along]) == 0);
	fill_serve_turn();
	is_there = poll(&end, 1, 0) == 0;
	MUST(is_there == right);
	*told = true;
	return is_there;
}

/* ---- to a VMM ---- */

static void
to_vmm(const uint8_t *p, size_t len, bool with_fd)
{
	static uint8_t page[4096] __attribute__((aligned(4096)));
	const struct guest_mem mem = {.host = page, .low_len = sizeof(page)};
	struct fill f = {.is_on = true, .uffd_fd = dup(pipe_fd)};
	struct fill_whole m;
	struct err e = {0};
	int pair[2], r;

	MUST(f.uffd_fd >= 0);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	f.sock_fd = pair[0];
	MUST(fill_event(&f, &mem, &e) == 0 && f.is_on);
	MUST(io_send_fds(pair[1], p, len, &pipe_fd, with_fd) == 0);
	r = fill_event(&f, &mem, &e);
	memset(&m, 0, sizeof(m));
	if (len == sizeof(m))
		memcpy(&m, p, sizeof(m));
	if (!with_fd && m.hdr.version == FILL_VERSION && m.hdr.type == FILL_WHOLE &&
		m.hdr.len == sizeof(m) && m.error == 0) {
		MUST(r == 0 && !f.is_on && !f.has_failed);
	} else {
		/* What is missing is kept from being zero. */
		MUST(r < 0 && e.code == r && e.msg[0] && f.is_on && f.has_failed);
		MUST(fill_wait(&f, &mem, &e) < 0);
		close(f.sock_fd);
		close(f.uffd_fd);
	}
	close(pair[1]);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct fill_hdr vm = {FILL_VERSION, FILL_VM, sizeof(vm)};
	bool told = false, is_there = true;
	static bool is_set_up;
	int pair[2], lowest;

	if (!is_set_up)
		set_up();
	is_set_up = true;
	lowest = dup(pipe_fd);
	close(lowest);
	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	MUST(io_send_fds(control_fd, &vm, sizeof(vm), &pair[1], 1) == 0);
	close(pair[1]);
	fill_serve_turn();
	while (size >= 3) {
		const unsigned what = data[0];
		size_t len = data[1] | (data[2] & 1u) << 8;

		data += 3;
		size -= 3;
		len = len < size ? len : size;
		if (what & 1)
			to_vmm(data, len, what >> 1 & 1);
		else if (is_there)
			is_there = to_filler(pair[0], data, len, what >> 1 & 3, &told);
		data += len;
		size -= len;
	}
	close(pair[0]);
	if (is_there)
		fill_serve_turn();
	MUST(fill_serve_error() == 0);
	MUST(dup(pipe_fd) == lowest);
	close(lowest);
	return 0;
}
