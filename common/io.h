/*
 * Full reads and writes, and descriptors passed over Unix sockets.
 *
 * EINTR policy lives here: every call below retries on EINTR. All return 0 or a
 * byte count on success and a negative errno on failure. Descriptors that come
 * out are O_CLOEXEC.
 */
#ifndef PANDO_COMMON_IO_H
#define PANDO_COMMON_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

/* Exactly len bytes, else: -ENODATA on an end of file at byte 0, -EPIPE on one
 * later, -errno. */
int io_read_full(int fd, void *buf, size_t len);
int io_write_full(int fd, const void *buf, size_t len);

/* pread/pwrite of exactly len bytes; -ENODATA when the file ends first. */
int io_pread_full(int fd, void *buf, size_t len, uint64_t offset);
int io_pwrite_full(int fd, const void *buf, size_t len, uint64_t offset);

/* One read; returns the count (0 at end of file) or -errno. */
ssize_t io_read(int fd, void *buf, size_t len);

/* A whole file into malloc'd, NUL-terminated memory (owned by the caller).
 * -EFBIG above max bytes. */
int io_read_file(
	const char *path, size_t max, char **ret, size_t *ret_len, struct err *e);

/* Temp file in the same folder, fsync, rename, fsync of the folder. */
int io_write_file_atomic(
	const char *path, const void *buf, size_t len, mode_t mode, struct err *e);

/* The names in a folder are on the disk. */
int io_sync_dir(const char *path, struct err *e);

/* mkdir -p; existing folders are fine. */
int io_mkdir_p(const char *path, mode_t mode, struct err *e);

/* rm -r below path and path itself; does not follow symbolic links; -ENOENT is success.
 */
int io_remove_tree(const char *path, struct err *e);

/* One message with descriptors over a SOCK_SEQPACKET or SOCK_STREAM Unix socket. */
#define IO_FDS_MAX 64
int io_send_fds(int sock, const void *buf, size_t len, const int *fds, size_t n_fds);
/* Returns bytes received (0: peer closed, and all that it had sent was given). Up to
 * *n_fds descriptors are stored, *n_fds is set to how many came; more than that, or a
 * truncated message, is -EBADMSG with all of them closed. flags: MSG_DONTWAIT or 0. */
ssize_t io_recv_fds(int sock, void *buf, size_t len, int *fds, size_t *n_fds, int flags);

/* Unix sockets. Path longer than sun_path: -ENAMETOOLONG with a sentence. */
int io_unix_listen(const char *path, int type, int backlog, int *ret_fd, struct err *e);
int io_unix_connect(const char *path, int type, int *ret_fd, struct err *e);
/* The same, but where the listener's queue is full (it does not take connections) it is
 * -EAGAIN at once, and no wait. The descriptor that comes out blocks, as usual. Who sent is told with
 * every message, the first one too (SO_PASSCRED, unix(7)). */
int io_unix_connect_now(const char *path, int type, int *ret_fd, struct err *e);

int io_set_nonblock(int fd, int on);
/* Those that are one; each is -1 then. */
void io_close_all(int *fds, size_t n);

/* Of an empty file that is mapped and written to: its blocks are to be written where they are
 * (FS_NOCOW_FL, ioctl_iflags(2)). btrfs writes each change of a page elsewhere, and where the disk
 * is full that is SIGBUS, whatever room the file has (btrfs_page_mkwrite()). A wish: other file
 * systems write in place anyway, and refuse it. */
void io_write_in_place(int fd);

/* CLOCK_MONOTONIC, nanoseconds; CLOCK_REALTIME, milliseconds since the epoch. */
uint64_t io_now_ns(void);

/* Whether a signal comes so soon behind the first one that it is the same wish told twice:
 * timeout(1) tells its child and then its group, and a terminal that is closed tells by the
 * kernel and by the shell. No hand presses a key that fast. *first_ns is 0 before the first,
 * and kept here. */
bool io_signal_echoes(uint64_t *first_ns);
uint64_t io_wall_ms(void);

#endif
