#include "guest-agent/system/guest_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define ENTROPY_MAX 64
#define BLOCK 4096

static const char *root = "";

/* Files that hold nothing but room, on each file system that an identity handshake writes to: as many as it may
 * make files that were not there, in the order in which they are tried. */
static const struct {
	const char *path;
	size_t bytes;
} reserves[] = {
	{"/var/lib/pando/reserve.1", 16u << 10},
	{"/var/lib/pando/reserve.2", 64u << 10},
	/* As long as an identity handshake may be: no file of it is longer. */
	{"/var/lib/pando/reserve.3", 256u << 10},
	{"/run/pando/reserve.1", 16u << 10},
	{"/run/pando/reserve.2", 16u << 10},
};

void
machine_set_root(const char *path)
{
	root = strcmp(path, "/") != 0 ? path : "";
}

bool
machine_is_real(void)
{
	return !*root;
}

const char *
machine_path(char dst[static PATH_MAX], const char *path)
{
	if (snprintf(dst, PATH_MAX, "%s%s", root, path) >= PATH_MAX)
		dst[0] = 0; /* opens nothing */
	return dst;
}

int
machine_read(const char *path, size_t max, char **ret, struct err *e)
{
	char full[PATH_MAX];

	return io_read_file(machine_path(full, path), max, ret, NULL, e);
}

static int
write_fd(int fd, const void *buf, size_t len, mode_t mode)
{
	int r = io_write_full(fd, buf, len);

	/* The mode whatever the agent's umask is. */
	return !r && fchmod(fd, mode) ? -errno : r;
}

static int
make_folder_of(const char *full, struct err *e)
{
	cleanup_free char *folder = strdup(full);

	if (!folder)
		return err_sys(e, -ENOMEM, "%s", full);
	*strrchr(folder, '/') = 0;
	return *folder ? io_mkdir_p(folder, 0755, e) : 0;
}

static bool
is_full(int r)
{
	return r == -ENOSPC || r == -EDQUOT;
}

/* Blocks for a file of that size, whatever its size is now. */
static int
allocate(int fd, size_t bytes)
{
	return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) ? -errno : 0;
}

void
machine_keep_room(void)
{
	char own[PATH_MAX];

	/* A folder cannot be put in place from a reserve. */
	make_folder_of(machine_path(own, "/etc/pando/."), NULL);
	for (size_t i = 0; i < sizeof(reserves) / sizeof(reserves[0]); i++) {
		size_t bytes = reserves[i].bytes;
		char full[PATH_MAX];
		cleanup_close int fd = -1;
		struct stat st;

		machine_path(full, reserves[i].path);
		if (make_folder_of(full, NULL))
			continue;
		fd = open(full, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
			(!st.st_size && (uint64_t)st.st_blocks * 512 >= bytes))
			continue;
		/* One that was being written when its agent ended. */
		if (st.st_size && ftruncate(fd, 0))
			continue;
		/* Less is better than nothing; where it is full, what is there stays. */
		while (bytes >= BLOCK && is_full(allocate(fd, bytes)))
			bytes /= 2;
	}
}

/* Puts the content into the reserve of that file system and that in the file's place: neither an
 * inode nor a block has to be found. */
static int
write_in_reserve(const char *full, const void *buf, size_t len, mode_t mode)
{
	cleanup_free char *folder = strdup(full);
	struct stat there, st;
	int r = -ENOSPC;

	if (!folder)
		return -ENOMEM;
	*(strrchr(folder, '/') + 1) = 0;
	if (stat(folder, &there))
		return -errno;
	for (size_t i = 0; i < sizeof(reserves) / sizeof(reserves[0]); i++) {
		char reserve[PATH_MAX];
		cleanup_close int fd = -1;

		machine_path(reserve, reserves[i].path);
		fd = open(reserve, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
		if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
			st.st_dev != there.st_dev || st.st_size)
			continue;
		r = write_fd(fd, buf, len, mode);
		/* With that the blocks it does not need are free for the next reserve. */
		if (!r && ftruncate(fd, (off_t)len))
			r = -errno;
		if (!r && rename(reserve, full))
			r = -errno;
		machine_keep_room();
		if (!r)
			break;
	}
	return r;
}

/* Into the blocks that the file has: all of it fits, or nothing is changed. */
static int
write_in_place(const char *full, const void *buf, size_t len, mode_t mode)
{
	cleanup_close int fd = open(full, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
	int r;

	if (fd < 0)
		return -errno;
	r = len ? allocate(fd, len) : 0;
	if (!r)
		r = write_fd(fd, buf, len, mode);
	return !r && ftruncate(fd, (off_t)len) ? -errno : r;
}

/* Where a full file system (blocks or inodes) refused that file; r is how. */
static int
write_on_full(const char *full, const void *buf, size_t len, mode_t mode, int r)
{
	if (!write_in_reserve(full, buf, len, mode) ||
		!write_in_place(full, buf, len, mode))
		return 0;
	return r;
}

static int
write_new(const char *full, const char *temp, const void *buf, size_t len, mode_t mode)
{
	cleanup_close int fd = -1;
	int r;

	/* One an agent before this one was writing when it ended. */
	unlink(temp);
	fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	r = write_fd(fd, buf, len, mode);
	if (!r && rename(temp, full))
		r = -errno;
	if (r)
		unlink(temp);
	return r;
}

int
machine_write(const char *path, const void *buf, size_t len, mode_t mode, struct err *e)
{
	char full[PATH_MAX], temp[PATH_MAX];
	int r, n;

	machine_path(full, path);
	n = snprintf(temp, sizeof(temp), "%.*s/.pando.%s",
		(int)(strrchr(full, '/') - full), full, strrchr(full, '/') + 1);
	if (n >= PATH_MAX)
		return err_sys(e, -ENAMETOOLONG, "%s", path);
	r = write_new(full, temp, buf, len, mode);
	if (r == -ENOENT) {
		r = make_folder_of(full, e);
		if (r)
			return r;
		r = write_new(full, temp, buf, len, mode);
	}
	if (is_full(r))
		r = write_on_full(full, buf, len, mode, r);
	return r == -EBUSY ? machine_overwrite(path, buf, len, mode, e)
	       : r	   ? err_sys(e, r, "writing %s", path)
			   : 0;
}

int
machine_overwrite(
	const char *path, const void *buf, size_t len, mode_t mode, struct err *e)
{
	char full[PATH_MAX];
	cleanup_close int fd = -1;
	struct stat st;
	int r;

	machine_path(full, path);
	fd = open(full, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 && errno == ENOENT) {
		r = make_folder_of(full, e);
		if (r)
			return r;
		fd = open(full, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	}
	r = fd < 0 ? -errno : write_fd(fd, buf, len, mode);
	if (!r && ftruncate(fd, (off_t)len))
		r = -errno;
	/* A file that has its blocks keeps its inode; only one that is new can lack them. */
	if (is_full(r) && (fd < 0 || (!fstat(fd, &st) && !st.st_size)))
		r = write_on_full(full, buf, len, mode, r);
	return r ? err_sys(e, r, "writing %s", path) : 0;
}

int
machine_remove(const char *path, struct err *e)
{
	char full[PATH_MAX];

	if (!unlink(machine_path(full, path)))
		return 1;
	if (errno == ENOENT || errno == ENOTDIR)
		return 0;
	return err_sys(e, -errno, "removing %s", path);
}

int
machine_reseed(const void *entropy, size_t len, struct err *e)
{
	uint8_t pool[sizeof(struct rand_pool_info) + ENTROPY_MAX]
		__attribute__((aligned(__alignof__(struct rand_pool_info))));
	const struct rand_pool_info head = {
		.buf_size = (int)len, .entropy_count = (int)len * 8};
	cleanup_close int fd = -1;
	int r = 0;

	if (len > ENTROPY_MAX)
		return err_sys(e, -E2BIG, "entropy");
	if (!machine_is_real())
		return 0;
	fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return err_sys(e, -errno, "/dev/urandom");
	memcpy(pool, &head, sizeof(head));
	memcpy(pool + sizeof(head), entropy, len);
	if (ioctl(fd, RNDADDENTROPY, pool))
		r = err_sys(e, -errno, "RNDADDENTROPY");
	else if (ioctl(fd, RNDRESEEDCRNG))
		r = err_sys(e, -errno, "RNDRESEEDCRNG");
	explicit_bzero(pool, sizeof(pool));
	return r;
}

int
machine_random(void *dst, size_t len, struct err *e)
{
	ssize_t n = getrandom(dst, len, 0);

	return n == (ssize_t)len ? 0 : err_sys(e, n < 0 ? -errno : -EIO, "getrandom");
}

bool
machine_clock_is_wrong(uint64_t now_ns, uint64_t wall_ns)
{
	int64_t behind = (int64_t)(wall_ns - now_ns);

	return behind > MACHINE_CLOCK_SLACK_NS || behind < -MACHINE_CLOCK_AHEAD_NS;
}

int
machine_set_clock(uint64_t wall_ns, bool *ret_stepped, struct err *e)
{
	struct timespec now,
		to = {(time_t)(wall_ns / 1000000000u), (long)(wall_ns % 1000000000u)};

	*ret_stepped = false;
	clock_gettime(CLOCK_REALTIME, &now);
	if (!machine_is_real() ||
		!machine_clock_is_wrong(
			(uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec,
			wall_ns))
		return 0;
	if (clock_settime(CLOCK_REALTIME, &to))
		return err_sys(e, -errno, "setting the clock");
	*ret_stepped = true;
	return 0;
}

int
machine_set_name(const char *name, struct err *e)
{
	if (machine_is_real() && sethostname(name, strlen(name)))
		return err_sys(e, -errno, "setting the host name \"%s\"", name);
	return 0;
}

int
machine_cover_boot_id(const char *path, struct err *e)
{
	struct stat ours, seen;

	if (!machine_is_real())
		return 0;
	if (stat(path, &ours))
		return err_sys(e, -errno, "%s", path);
	/* A fork of a machine that had it mounted already. */
	if (!stat(BOOT_ID, &seen) && seen.st_dev == ours.st_dev &&
		seen.st_ino == ours.st_ino)
		return 1;
	if (!mount(path, BOOT_ID, NULL, MS_BIND, NULL))
		return 1;
	/* A kernel without /proc/sys, a machine that lets nobody mount. */
	if (errno == ENOENT || errno == EPERM || errno == EACCES)
		return 0;
	return err_sys(e, -errno, "mounting %s over " BOOT_ID, path);
}
