#include "vmm/fill.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/log.h"
#include "common/wire/fill_wire.h"

/* include/uapi/linux/userfaultfd.h of Linux 6.1; these headers may be older. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC 0xAA
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif

/* The others are vmm/track.c's, too. */
const unsigned long fill_ioctl_numbers[] = {USERFAULTFD_IOC_NEW};
const size_t fill_n_ioctl_numbers =
	sizeof(fill_ioctl_numbers) / sizeof(*fill_ioctl_numbers);

static size_t
mem_len(const struct guest_mem *m)
{
	return m->low_len + m->high_len;
}

int
fill_begin(struct fill *f, const struct guest_mem *m, int dev_fd, int sock_fd, struct err *e)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM};
	struct uffdio_register reg = {
		.range = {.start = (uintptr_t)m->host, .len = mem_len(m)},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	const struct fill_memory msg = {
		.hdr = {FILL_VERSION, FILL_MEMORY, sizeof(msg)},
		.host = (uintptr_t)m->host,
		.len = mem_len(m),
	};
	cleanup_close int fd = ioctl(dev_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	int r;

	if (fd < 0)
		return err_sys(e, -errno, "a userfaultfd");
	if (ioctl(fd, UFFDIO_API, &api) < 0)
		return err_sys(e, -errno, "UFFDIO_API");
	if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
		return err_sys(e, -errno, "UFFDIO_REGISTER of guest memory");
	r = io_send_fds(sock_fd, &msg, sizeof(msg), &fd, 1);
	if (r < 0)
		return err_sys(e, r, "handing memory to the process that fills it");
	f->uffd_fd = TAKE_FD(fd);
	f->sock_fd = sock_fd;
	f->is_on = true;
	return 0;
}

/* Also lets go of who waits: what is missing now is zero. */
static void
end(struct fill *f, const struct guest_mem *m)
{
	struct uffdio_range range = {.start = (uintptr_t)m->host, .len = mem_len(m)};

	(void)ioctl(f->uffd_fd, UFFDIO_UNREGISTER, &range);
	close(TAKE_FD(f->uffd_fd));
	close(TAKE_FD(f->sock_fd));
	f->is_on = false;
	log_info("all of the memory is there");
}

static int
receive(struct fill *f, const struct guest_mem *m, int flags, struct err *e)
{
	struct fill_whole msg;
	size_t n_fds = 0;
	ssize_t n;

	if (!f->is_on || f->has_failed)
		return 0;
	n = io_recv_fds(f->sock_fd, &msg, sizeof(msg), NULL, &n_fds, flags);
	if (n == -EAGAIN)
		return 0;
	f->has_failed = true;
	if (n <= 0)
		return err_set(e, -EPIPE,
			"the process that fills its memory ended before all of it was there");
	if (n != sizeof(msg) || msg.hdr.version != FILL_VERSION ||
		msg.hdr.type != FILL_WHOLE || msg.hdr.len != sizeof(msg))
		return err_set(e, -EPROTO, "the process that fills its memory sent no message");
	msg.msg[sizeof(msg.msg) - 1] = '\0';
	if (msg.error)
		return err_set(e, msg.error < 0 ? msg.error : -EIO, "%s",
			msg.msg[0] ? msg.msg
				   : "the process that fills its memory failed without a reason");
	f->has_failed = false;
	end(f, m);
	return 0;
}

int
fill_event(struct fill *f, const struct guest_mem *m, struct err *e)
{
	return receive(f, m, MSG_DONTWAIT, e);
}

int
fill_wait(struct fill *f, const struct guest_mem *m, struct err *e)
{
	if (f->has_failed)
		return err_set(e, -EIO, "its memory is not all there");
	return receive(f, m, 0, e);
}
