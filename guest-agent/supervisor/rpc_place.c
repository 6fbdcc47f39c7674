#include "guest-agent/supervisor/rpc_place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/text.h"
#include "common/wire/json_line.h"

#define RPC_D "/etc/pando/rpc.d"

static const char *root = "";

void
rpc_root_set(const char *path)
{
	root = strcmp(path, "/") != 0 ? path : "";
}

const char *
rpc_root(void)
{
	return root;
}

int
rpc_path(char dst[static PATH_MAX], const char *path, struct err *e)
{
	if (snprintf(dst, PATH_MAX, "%s%s", root, path) >= PATH_MAX)
		return err_set(e, -ENAMETOOLONG, "%.100s…%s is too long", root, path);
	return 0;
}

int
rpc_place_open(const char *name, bool make, struct rpc_place *ret, struct err *e)
{
	cleanup_rpc_place struct rpc_place p = RPC_PLACE_INIT;
	char path[PATH_MAX];
	struct stat st;
	int r = rpc_name_check(name, e);

	if (r)
		return r;
	snprintf(p.name, sizeof(p.name), "%s", name);
	snprintf(path, sizeof(path), RPC_D "/%s.conf", name);
	r = rpc_path(p.conf, path, e);
	if (r)
		return r;
	snprintf(path, sizeof(path), "/var/lib/pando/rpc/%s", name);
	r = rpc_path(p.path, path, e);
	if (!r && make)
		r = io_mkdir_p(p.path, 0700, e);
	if (r)
		return r;
	p.dir = open(p.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (p.dir < 0 && errno == ENOENT)
		return err_set(e, -ENOENT,
			"coding agent \"%s\" was never started here: pando rpc start",
			name);
	if (p.dir < 0)
		return err_sys(e, -errno, "%.300s", p.path);
	if (make) {
		if (mkdirat(p.dir, "run", 0700) && errno != EEXIST)
			return err_sys(e, -errno, "%.300s/run", p.path);
		if (mkfifoat(p.dir, "in", 0600) && errno != EEXIST)
			return err_sys(e, -errno, "%.300s/in", p.path);
		if (fstatat(p.dir, "in", &st, AT_SYMLINK_NOFOLLOW) ||
			!S_ISFIFO(st.st_mode))
			return err_set(e, -EEXIST,
				"%.300s/in is no FIFO: remove it, it is made again",
				p.path);
	}
	*ret = p;
	p.dir = -1;
	return 0;
}

void
rpc_place_done(struct rpc_place *p)
{
	if (p->dir >= 0)
		close(p->dir);
	p->dir = -1;
}

/* One name that leads there; whatever has it already must be such a link. */
static int
link_one(const char *at, const char *to, struct err *e)
{
	char there[PATH_MAX];
	ssize_t n;

	if (!symlink(to, at))
		return 0;
	if (errno != EEXIST)
		return err_sys(e, -errno, "%.200s", at);
	n = readlink(at, there, sizeof(there) - 1);
	if (n > 0) {
		there[n] = 0;
		if (strcmp(there, to) == 0)
			return 0;
	}
	return err_set(e, -EEXIST,
		"%.200s is there already and leads elsewhere: remove it and start again, or use %.200s",
		at, to);
}

int
rpc_place_link(const struct rpc_place *p, struct err *e)
{
	static const char *const names[] = {"in", "out", "err"};
	char at[PATH_MAX], one[PATH_MAX + 8], to[PATH_MAX + 8], name[64];
	struct stat st;
	int r;

	snprintf(name, sizeof(name), "/tmp/%s-rpc", p->name);
	r = rpc_path(at, name, e);
	if (r)
		return r;
	/* A folder that somebody made ahead, as images do: the names are made in it. */
	if (lstat(at, &st) || !S_ISDIR(st.st_mode))
		return link_one(at, p->path, e);
	if (st.st_uid != geteuid())
		return err_set(e, -EEXIST,
			"%.200s is another user's folder: remove it and start again", at);
	for (size_t i = 0; i < 3; i++) {
		snprintf(one, sizeof(one), "%s/%s", at, names[i]);
		snprintf(to, sizeof(to), "%s/%s", p->path, names[i]);
		r = link_one(one, to, e);
		if (r)
			return r;
	}
	return 0;
}

int
rpc_place_only(char ret[static RPC_NAME_MAX + 1], struct err *e)
{
	char path[PATH_MAX], all[200] = "", name[NAME_MAX + 1];
	cleanup_closedir DIR *d = NULL;
	struct dirent *de;
	unsigned n = 0;
	int r = rpc_path(path, RPC_D, e);

	if (r)
		return r;
	d = opendir(path);
	while (d && (de = readdir(d))) {
		size_t len = strlen(de->d_name);

		if (len <= 5 || strcmp(de->d_name + len - 5, ".conf") != 0)
			continue;
		snprintf(name, sizeof(name), "%.*s", (int)(len - 5), de->d_name);
		if (rpc_name_check(name, NULL))
			continue;
		if (!n++)
			snprintf(ret, RPC_NAME_MAX + 1, "%.32s", name);
		len = strlen(all);
		snprintf(all + len, sizeof(all) - len, "%s%.32s", len ? ", " : "", name);
	}
	if (!n)
		return err_set(e, -ENOENT,
			"no coding agent is described in " RPC_D
			": write <name>.conf there, with a command = [...] in it");
	if (n > 1)
		return err_set(e, -EINVAL, "which one? There are %s", all);
	return 0;
}

static int
lock_file(const struct rpc_place *p, const char *what, int flags)
{
	char name[32];
	int fd;

	snprintf(name, sizeof(name), "lock.%s", what);
	fd = openat(p->dir, name, flags | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
	return fd < 0 ? -errno : fd;
}

pid_t
rpc_lock_owner(const struct rpc_place *p, const char *what)
{
	struct flock f = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd = lock_file(p, what, 0), r;

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	r = fcntl(fd, F_GETLK, &f) ? -errno : 0;
	close(fd);
	return r ? r : f.l_type == F_UNLCK ? 0 : f.l_pid;
}

int
rpc_lock_take(const struct rpc_place *p, const char *what, struct err *e)
{
	struct flock f = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd = lock_file(p, what, O_CREAT), r;

	if (fd < 0)
		return err_sys(e, fd, "%.300s/lock.%s", p->path, what);
	if (!fcntl(fd, F_SETLK, &f))
		return 0; /* fd stays open: the lock is the process's */
	r = -errno;
	close(fd);
	if (r != -EAGAIN && r != -EACCES)
		return err_sys(e, r, "%.300s/lock.%s", p->path, what);
	return err_set(e, -EBUSY, "coding agent \"%s\" has a %s already: process %d",
		p->name, strcmp(what, RPC_LOCK_SHIM) == 0 ? "shim" : "supervisor",
		(int)rpc_lock_owner(p, what));
}

int
rpc_write_file(int dir, const char *name, const void *buf, size_t len)
{
	char temp[64];
	int fd, r;

	snprintf(temp, sizeof(temp), "%.50s.new", name);
	fd = openat(dir, temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	r = io_write_full(fd, buf, len);
	close(fd);
	if (!r && renameat(dir, temp, dir, name))
		r = -errno;
	if (r)
		unlinkat(dir, temp, 0);
	return r;
}

ssize_t
rpc_read_file(int dir, const char *name, char *buf, size_t cap)
{
	cleanup_close int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	size_t at = 0;

	if (fd < 0)
		return -errno;
	while (at < cap - 1) {
		ssize_t n = io_read(fd, buf + at, cap - 1 - at);

		if (n < 0)
			return n;
		if (!n)
			break;
		at += (size_t)n;
	}
	buf[at] = 0;
	return (ssize_t)at;
}

void
rpc_identity_read(struct rpc_identity *ret)
{
	char path[PATH_MAX], text[16384];
	struct rpc_span v;
	ssize_t n;

	memset(ret, 0, sizeof(*ret));
	if (rpc_path(path, "/run/pando/generation", NULL))
		return;
	n = rpc_read_file(AT_FDCWD, path, text, sizeof(text));
	if (n >= 32 && text_is_hex(text, 32))
		memcpy(ret->generation, text, 32);
	if (rpc_path(path, "/run/pando/identity", NULL))
		return;
	n = rpc_read_file(AT_FDCWD, path, text, sizeof(text));
	if (n > 0 && json_line_member(json_line_trim(text, (size_t)n), "id", &v) &&
		v.len == 14 && text_is_hex(v.at + 1, 12))
		memcpy(ret->vm, v.at + 1, 12);
}
