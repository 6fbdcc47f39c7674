/* The store's folders: files by name, whole or not there. Below all else of the store. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "common/io.h"
#include "host/store/store_priv.h"

int
store_temp_file(int folder_fd, char *ret_name, size_t cap)
{
	static unsigned long counter;

	for (;;) {
		unsigned long n = __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED);
		int fd;

		snprintf(ret_name, cap, PACK_TEMP "%d.%lu", getpid(), n);
		fd = openat(folder_fd, ret_name,
			O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd >= 0)
			return fd;
		if (errno != EEXIST) {
			ret_name[0] = '\0';
			return -errno;
		}
	}
}

int
store_read_at(int folder_fd, const char *name, size_t max, char **ret, size_t *ret_len)
{
	/* Not blocking: what lies there may be a FIFO. */
	cleanup_close int fd = openat(folder_fd, name,
		O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	cleanup_free char *buf = NULL;
	struct stat st;
	size_t len;
	int r;

	if (fd < 0)
		return errno == ELOOP ? -EBADMSG : -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EBADMSG;
	if ((uint64_t)st.st_size > max)
		return -EFBIG;
	len = (size_t)st.st_size;
	buf = malloc(len + 1);
	if (!buf)
		return -ENOMEM;
	r = io_pread_full(fd, buf, len, 0);
	if (r < 0)
		return r == -ENODATA ? -EBADMSG : r;
	buf[len] = '\0';
	*ret = TAKE_PTR(buf);
	*ret_len = len;
	return 0;
}

static void
pass(const char *what, const char *point)
{
	char name[64];

	snprintf(name, sizeof(name), "%s-%s", what, point);
	fault_point(name);
}

int
store_file_begin(struct store_file *f, int folder_fd, const char *what, const void *data,
	size_t len)
{
	int r;

	*f = (struct store_file){.folder_fd = folder_fd, .what = what};
	f->fd = store_temp_file(folder_fd, f->temp, sizeof(f->temp));
	if (f->fd < 0) {
		r = f->fd;
		f->fd = -1;
		f->temp[0] = '\0';
		return r;
	}
	r = io_write_full(f->fd, data, len);
	if (r < 0)
		return r;
	pass(what, "temp");
	/* Its writing begins, so that the sync of something else may take it along. */
	(void)sync_file_range(f->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
	return 0;
}

int
store_file_sync(struct store_file *f)
{
	return fsync(f->fd) < 0 ? -errno : 0;
}

int
store_file_name(struct store_file *f, int folder_fd, const char *name)
{
	if (renameat(f->folder_fd, f->temp, folder_fd, name) < 0)
		return -errno;
	f->temp[0] = '\0';
	pass(f->what, "renamed");
	if (fsync(folder_fd) < 0)
		return -errno;
	pass(f->what, "written");
	return 0;
}

void
store_file_done(struct store_file *f)
{
	if (f->temp[0])
		unlinkat(f->folder_fd, f->temp, 0);
	cleanup_close_fn(&f->fd);
	f->temp[0] = '\0';
}

int
store_write_at(
	int folder_fd, const char *name, const char *what, const void *data, size_t len)
{
	cleanup_store_file struct store_file f;
	int r = store_file_begin(&f, folder_fd, what, data, len);

	if (r == 0)
		r = store_file_sync(&f);
	return r == 0 ? store_file_name(&f, folder_fd, name) : r;
}

static DIR *
open_names(int folder_fd)
{
	/* A descriptor of its own: they share a position otherwise. */
	int fd = openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);

	if (!d && fd >= 0)
		close(fd);
	return d;
}

int
store_each_name(int folder_fd, const char *suffix,
	int (*fn)(void *ctx, const char *name, struct err *e), void *ctx, struct err *e)
{
	cleanup_closedir DIR *d = open_names(folder_fd);
	char name[STORE_HEX + 1];
	struct dirent *entry;
	int r;

	if (!d)
		return err_sys(e, -errno, "reading a folder of the store");
	while ((errno = 0, entry = readdir(d))) {
		size_t len = strlen(entry->d_name), cut = strlen(suffix);

		if (entry->d_name[0] == '.' || len <= cut || len - cut > STORE_HEX ||
			strcmp(entry->d_name + len - cut, suffix) != 0 ||
			strncmp(entry->d_name, PACK_TEMP, strlen(PACK_TEMP)) == 0)
			continue;
		memcpy(name, entry->d_name, len - cut);
		name[len - cut] = '\0';
		r = fn(ctx, name, e);
		if (r < 0)
			return r;
	}
	return errno ? err_sys(e, -errno, "reading a folder of the store") : 0;
}

int
store_remove_temp_files(int folder_fd)
{
	cleanup_closedir DIR *d = open_names(folder_fd);
	struct dirent *entry;

	if (!d)
		return -errno;
	while ((entry = readdir(d)))
		if (strncmp(entry->d_name, PACK_TEMP, strlen(PACK_TEMP)) == 0)
			unlinkat(folder_fd, entry->d_name, 0);
	/* What was renamed just before a crash is relied upon from now on. */
	return fsync(folder_fd) < 0 ? -errno : 0;
}

void
store_manifest_name(const char *id, char ret[static MANIFEST_NAME_MAX])
{
	snprintf(ret, MANIFEST_NAME_MAX, "%.64s" MANIFEST_SUFFIX, id);
}

void
store_pruned_name(const char *id, char ret[static PRUNED_NAME_MAX])
{
	snprintf(ret, PRUNED_NAME_MAX, "%.64s" PRUNED_SUFFIX, id);
}

bool
store_is_pruned(struct store *s, const char *id)
{
	char file[PRUNED_NAME_MAX];
	struct store_hash ignored;

	store_pruned_name(id, file);
	return hash_from_hex(id, &ignored) &&
	       faccessat(s->commits_fd, file, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

bool
store_has_commit(struct store *s, const char *id)
{
	char file[MANIFEST_NAME_MAX];
	struct store_hash ignored;

	store_manifest_name(id, file);
	return hash_from_hex(id, &ignored) &&
	       faccessat(s->commits_fd, file, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}
