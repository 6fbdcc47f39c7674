#include "guest-agent/server/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/wire/agent_wire.h"
#include "common/wire/json_bytes.h"
#include "guest-agent/system/userdb.h"

int
files_path(const char *path, const char *user, char **ret, struct err *e)
{
	struct user u;
	int r;

	if (*path == '/') {
		*ret = strdup(path);
		return *ret ? 0 : err_sys(e, -ENOMEM, "\"%s\"", path);
	}
	r = user_find(user, false, &u, e);
	if (r)
		return r;
	if (asprintf(ret, "%s/%s", u.home, path) < 0)
		return err_sys(e, -ENOMEM, "\"%s\"", path);
	return 0;
}

int
files_put(const char *path, const char *user, struct tar_unpack **ret, struct err *e)
{
	cleanup_free char *dest = NULL;
	struct tar_unpack_opts opts = {.keep_setid = true, .sync = true};
	struct user u;
	int r;

	if (user) {
		r = user_find(user, false, &u, e);
		if (r)
			return r;
		opts.chown = u.uid != geteuid() || u.gid != getegid();
		opts.uid = u.uid;
		opts.gid = u.gid;
	}
	r = files_path(path, user, &dest, e);
	if (r)
		return r;
	opts.dest = dest;
	return tar_unpack_open(&opts, ret, e);
}

int
files_get(const char *path, struct tar_pack **ret, struct err *e)
{
	struct tar_pack_opts opts = {.path = path, .follow = true, .leave_fifos = true};

	return tar_pack_open(&opts, ret, e);
}

static char
type_char(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return 'd';
	case S_IFLNK:
		return 'l';
	case S_IFIFO:
		return 'p';
	case S_IFSOCK:
		return 's';
	case S_IFCHR:
		return 'c';
	case S_IFBLK:
		return 'b';
	default:
		return 'f';
	}
}

static void
put_entry(struct json_out *o, int dir, const char *at, const char *name,
	const struct stat *st)
{
	char type[2] = {type_char(st->st_mode), 0}, target[PATH_MAX];

	json_out_object(o, NULL);
	json_out_bytes(o, "name", name);
	json_out_str(o, "type", type);
	json_out_u64(o, "mode", st->st_mode & 07777);
	json_out_u64(o, "uid", st->st_uid);
	json_out_u64(o, "gid", st->st_gid);
	json_out_u64(o, "size", (uint64_t)st->st_size);
	json_out_i64(o, "mtime_ns",
		(int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec);
	if (S_ISLNK(st->st_mode)) {
		ssize_t n = readlinkat(dir, at, target, sizeof(target) - 1);

		target[n > 0 ? n : 0] = 0;
		json_out_bytes(o, "target", target);
	}
	json_out_end_object(o);
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int
read_names(DIR *d, const char *path, char ***ret, size_t *ret_n, struct err *e)
{
	char **names = NULL;
	size_t n = 0;
	struct dirent *de;
	int r = 0;

	errno = 0;
	while (!r && (de = readdir(d))) {
		if (strcmp(de->d_name, ".") == 0 || strcmp(de->d_name, "..") == 0)
			continue;
		if (n == FILES_LIST_MAX) {
			r = err_set(e, -EFBIG, "\"%s\" has more than %d entries", path,
				FILES_LIST_MAX);
			break;
		}
		if (!(n & (n - 1))) {
			char **bigger =
				reallocarray(names, n ? 2 * n : 1, sizeof(*names));

			if (!bigger) {
				r = err_sys(e, -ENOMEM, "\"%s\"", path);
				break;
			}
			names = bigger;
		}
		names[n] = strdup(de->d_name);
		if (!names[n])
			r = err_sys(e, -ENOMEM, "\"%s\"", path);
		else
			n++;
		errno = 0;
	}
	if (!r && errno)
		r = err_sys(e, -errno, "\"%s\"", path);
	*ret = names;
	*ret_n = n;
	return r;
}

int
files_list(const char *path, struct json_out *o, struct err *e)
{
	cleanup_free char *full = NULL;
	cleanup_closedir DIR *d = NULL;
	char **names = NULL;
	size_t n = 0;
	struct stat st;
	int r = files_path(path, NULL, &full, e);

	if (r)
		return r;
	if (lstat(full, &st))
		return err_sys(e, -errno, "\"%s\"", path);
	/* A link to a folder is the folder only when a "/" follows: as everywhere. */
	d = S_ISDIR(st.st_mode) || full[strlen(full) - 1] == '/' ? opendir(full) : NULL;
	if (!d && S_ISDIR(st.st_mode))
		return err_sys(e, -errno, "\"%s\"", path);
	json_out_array(o, "entries");
	if (!d) {
		const char *slash = strrchr(full, '/');

		put_entry(o, AT_FDCWD, full, slash ? slash + 1 : full, &st);
	} else {
		r = read_names(d, path, &names, &n, e);
		if (!r && n)
			qsort(names, n, sizeof(*names), by_name);
		for (size_t i = 0; i < n; i++) {
			if (!r && !fstatat(dirfd(d), names[i], &st, AT_SYMLINK_NOFOLLOW))
				put_entry(o, dirfd(d), names[i], names[i], &st);
			free(names[i]);
		}
		free(names);
	}
	json_out_end_array(o);
	if (!r && o->error)
		r = err_sys(e, o->error, "\"%s\"", path);
	if (!r && o->len > AGENT_ANSWER_MAX - 1024)
		r = err_set(e, -EFBIG, "\"%s\": the list is too long", path);
	return r;
}
