#include "common/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"

#define ECHO_NS 100000000u

ssize_t
io_read(int fd, void *buf, size_t len)
{
	ssize_t n;

	do
		n = read(fd, buf, len);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int
io_read_full(int fd, void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = io_read(fd, (char *)buf + done, len - done);

		if (n < 0)
			return (int)n;
		if (n == 0)
			return done ? -EPIPE : -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

int
io_write_full(int fd, const void *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = write(fd, (const char *)buf + done, len - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	return 0;
}

int
io_pread_full(int fd, void *buf, size_t len, uint64_t offset)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n =
			pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
		done += (size_t)n;
	}
	return 0;
}

int
io_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(
			fd, (const char *)buf + done, len - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	return 0;
}

int
io_read_file(const char *path, size_t max, char **ret, size_t *ret_len, struct err *e)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	cleanup_free char *buf = NULL;
	size_t cap = 4096, len = 0;

	if (fd < 0)
		return err_sys(e, -errno, "%s", path);
	buf = malloc(cap + 1);
	if (!buf)
		return err_sys(e, -ENOMEM, "%s", path);
	for (;;) {
		ssize_t n;

		if (len == cap) {
			char *bigger = realloc(buf, cap * 2 + 1);

			if (!bigger)
				return err_sys(e, -ENOMEM, "%s", path);
			buf = bigger;
			cap *= 2;
		}
		n = io_read(fd, buf + len, cap - len);
		if (n < 0)
			return err_sys(e, (int)n, "%s", path);
		if (n == 0)
			break;
		len += (size_t)n;
		if (len > max)
			return err_set(e, -EFBIG, "%s: larger than %zu bytes", path, max);
	}
	buf[len] = '\0';
	*ret = TAKE_PTR(buf);
	if (ret_len)
		*ret_len = len;
	return 0;
}

int
io_write_file_atomic(
	const char *path, const void *buf, size_t len, mode_t mode, struct err *e)
{
	cleanup_free char *temp = NULL, *dir_copy = strdup(path);
	cleanup_close int fd = -1, dir = -1;
	int r;

	if (!dir_copy || asprintf(&temp, "%s.XXXXXX", path) < 0) {
		temp = NULL;
		return err_sys(e, -ENOMEM, "%s", path);
	}
	fd = mkostemp(temp, O_CLOEXEC);
	if (fd < 0)
		return err_sys(e, -errno, "%s", temp);
	r = io_write_full(fd, buf, len);
	if (r == 0 && fchmod(fd, mode) < 0)
		r = -errno;
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && rename(temp, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(temp);
		return err_sys(e, r, "%s", path);
	}
	dir = open(dirname(dir_copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0 || fsync(dir) < 0)
		return err_sys(e, -errno, "%s: its folder could not be synced", path);
	return 0;
}

int
io_sync_dir(const char *path, struct err *e)
{
	cleanup_close int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir < 0 || fsync(dir) < 0)
		return err_sys(e, -errno, "%s: it could not be synced", path);
	return 0;
}

int
io_mkdir_p(const char *path, mode_t mode, struct err *e)
{
	cleanup_free char *copy = strdup(path);
	struct stat st;

	if (!copy)
		return err_sys(e, -ENOMEM, "%s", path);
	for (char *p = copy + 1; *copy; p++) {
		if (*p != '/' && *p != '\0')
			continue;
		char c = *p;

		*p = '\0';
		if (mkdir(copy, mode) < 0 && errno != EEXIST)
			return err_sys(e, -errno, "%s", copy);
		*p = c;
		if (c == '\0')
			break;
	}
	if (stat(path, &st) < 0)
		return err_sys(e, -errno, "%s", path);
	if (!S_ISDIR(st.st_mode))
		return err_sys(e, -ENOTDIR, "%s", path);
	return 0;
}

/* Takes dir_fd over. Depth is the caller's tree's depth; the trees are ours. */
static int
remove_below(int dir_fd)
{
	cleanup_closedir DIR *d = fdopendir(dir_fd);
	struct dirent *entry;
	int r = 0;

	if (!d) {
		r = -errno;
		close(dir_fd);
		return r;
	}
	while ((entry = readdir(d))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (unlinkat(dirfd(d), entry->d_name, 0) == 0 || errno == ENOENT)
			continue;
		if (errno != EISDIR && errno != EPERM) {
			r = -errno;
			continue;
		}
		int sub = openat(dirfd(d), entry->d_name,
			O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

		if (sub < 0) {
			r = -errno;
			continue;
		}
		int sub_r = remove_below(sub);

		if (sub_r)
			r = sub_r;
		else if (unlinkat(dirfd(d), entry->d_name, AT_REMOVEDIR) < 0 &&
			 errno != ENOENT)
			r = -errno;
	}
	return r;
}

int
io_remove_tree(const char *path, struct err *e)
{
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int r;

	if (dir < 0) {
		if (errno == ENOENT)
			return 0;
		if (errno != ENOTDIR && errno != ELOOP)
			return err_sys(e, -errno, "%s", path);
		if (unlink(path) < 0 && errno != ENOENT)
			return err_sys(e, -errno, "%s", path);
		return 0;
	}
	r = remove_below(dir);
	if (r == 0 && rmdir(path) < 0 && errno != ENOENT)
		r = -errno;
	return r < 0 ? err_sys(e, r, "%s", path) : 0;
}

int
io_send_fds(int sock, const void *buf, size_t len, const int *fds, size_t n_fds)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * IO_FDS_MAX)];
		struct cmsghdr align;
	} control;
	struct iovec iov = {(void *)(uintptr_t)buf, len};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (n_fds > IO_FDS_MAX)
		return -E2BIG;
	if (n_fds) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	return (size_t)n == len ? 0 : -EMSGSIZE;
}

ssize_t
io_recv_fds(int sock, void *buf, size_t len, int *fds, size_t *n_fds, int flags)
{
	union {
		char buf[CMSG_SPACE(sizeof(int) * IO_FDS_MAX)];
		struct cmsghdr align;
	} control;
	struct iovec iov = {buf, len};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	size_t room = n_fds ? *n_fds : 0, got = 0;
	bool bad = false, reset = false;
	ssize_t n;

	/* The kernel tells of a peer that closed with something unread before it gives
	 * what that peer had sent, once. */
	for (;;) {
		n = recvmsg(sock, &msg, flags | MSG_CMSG_CLOEXEC);
		if (n >= 0 || (errno != EINTR && (errno != ECONNRESET || reset)))
			break;
		reset |= errno == ECONNRESET;
	}
	if (n < 0)
		return -errno;
	bad = msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (got < room) {
				fds[got++] = fd;
			} else {
				close(fd);
				bad = true;
			}
		}
	}
	if (bad) {
		while (got)
			close(fds[--got]);
		if (n_fds)
			*n_fds = 0;
		return -EBADMSG;
	}
	if (n_fds)
		*n_fds = got;
	return n;
}

static int
unix_address(const char *path, struct sockaddr_un *sa, struct err *e)
{
	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(sa->sun_path))
		return err_set(e, -ENAMETOOLONG,
			"%s: a socket's path may have %zu bytes at most; choose a shorter PANDO_HOME",
			path, sizeof(sa->sun_path) - 1);
	strcpy(sa->sun_path, path);
	return 0;
}

int
io_unix_listen(const char *path, int type, int backlog, int *ret_fd, struct err *e)
{
	cleanup_close int fd = -1;
	struct sockaddr_un sa;
	int r = unix_address(path, &sa, e);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_sys(e, -errno, "socket for %s", path);
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return err_sys(e, -errno, "bind %s", path);
	if (listen(fd, backlog) < 0)
		return err_sys(e, -errno, "listen %s", path);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

static int
unix_connect(const char *path, int type, int flags, int *ret_fd, struct err *e)
{
	cleanup_close int fd = -1;
	struct sockaddr_un sa;
	int r = unix_address(path, &sa, e);

	if (r < 0)
		return r;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | flags, 0);
	if (fd < 0)
		return err_sys(e, -errno, "socket for %s", path);
	/* Before anything can be sent to it: the kernel adds credentials as a message is sent. */
	if ((flags & SOCK_NONBLOCK) &&
		setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &(int){1}, sizeof(int)) < 0)
		return err_sys(e, -errno, "credentials of %s", path);
	do
		r = connect(fd, (struct sockaddr *)&sa, sizeof(sa));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return err_sys(e, -errno, "connect %s", path);
	*ret_fd = TAKE_FD(fd);
	return 0;
}

int
io_unix_connect(const char *path, int type, int *ret_fd, struct err *e)
{
	return unix_connect(path, type, 0, ret_fd, e);
}

int
io_unix_connect_now(const char *path, int type, int *ret_fd, struct err *e)
{
	cleanup_close int fd = -1;
	int r = unix_connect(path, type, SOCK_NONBLOCK, &fd, e);

	if (r == 0 && (r = io_set_nonblock(fd, 0)) < 0)
		err_sys(e, r, "connect %s", path);
	if (r == 0)
		*ret_fd = TAKE_FD(fd);
	return r;
}

int
io_set_nonblock(int fd, int on)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0)
		return -errno;
	flags = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) < 0 ? -errno : 0;
}

void
io_close_all(int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(TAKE_FD(fds[i]));
}

void
io_write_in_place(int fd)
{
	int flags;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0) {
		flags |= FS_NOCOW_FL;
		(void)ioctl(fd, FS_IOC_SETFLAGS, &flags);
	}
}

uint64_t
io_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

bool
io_signal_echoes(uint64_t *first_ns)
{
	uint64_t now = io_now_ns();

	if (*first_ns)
		return now - *first_ns < ECHO_NS;
	*first_ns = now;
	return false;
}

uint64_t
io_wall_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}
