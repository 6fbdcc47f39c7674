#include "guest-agent/system/machine.h"

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

static const char *root = "";

void
machine_set_root(const char *path)
{
	root = strcmp(path, "/") ? path : "";
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

int
machine_write(const char *path, const void *buf, size_t len, mode_t mode, struct err *e)
{
	char full[PATH_MAX], temp[PATH_MAX];
	cleanup_close int fd = -1;
	int r, n;

	machine_path(full, path);
	n = snprintf(temp, sizeof(temp), "%.*s/.pando.%s",
		(int)(strrchr(full, '/') - full), full, strrchr(full, '/') + 1);
	if (n >= PATH_MAX)
		return err_sys(e, -ENAMETOOLONG, "%s", path);
	/* One an agent before this one was writing when it ended. */
	unlink(temp);
	fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 && errno == ENOENT) {
		r = make_folder_of(full, e);
		if (r)
			return r;
		fd = open(
			temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	}
	if (fd < 0)
		return err_sys(e, -errno, "writing %s", path);
	r = write_fd(fd, buf, len, mode);
	if (!r && rename(temp, full))
		r = -errno;
	if (r)
		unlink(temp);
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
	int r;

	machine_path(full, path);
	fd = open(full, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 && errno == ENOENT) {
		r = make_folder_of(full, e);
		if (r)
			return r;
		fd = open(full, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	}
	if (fd < 0)
		return err_sys(e, -errno, "writing %s", path);
	r = write_fd(fd, buf, len, mode);
	if (!r && ftruncate(fd, (off_t)len))
		r = -errno;
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

int
machine_set_clock(uint64_t wall_ns, bool *ret_stepped, struct err *e)
{
	struct timespec now,
		to = {(time_t)(wall_ns / 1000000000u), (long)(wall_ns % 1000000000u)};
	int64_t off;

	*ret_stepped = false;
	clock_gettime(CLOCK_REALTIME, &now);
	off = (int64_t)wall_ns -
	      ((int64_t)now.tv_sec * 1000000000 + (int64_t)now.tv_nsec);
	if (!machine_is_real() ||
		(off < MACHINE_CLOCK_SLACK_NS && off > -MACHINE_CLOCK_SLACK_NS))
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
