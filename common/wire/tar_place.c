/*
 * Placing the members of a stream. The stack holds the folders this stream made and that the current member
 * lies in, each open: their mode and time are set when the stream leaves them, since a
 * folder must stay writable, and its time still, while it is filled.
 *
 * With sync, what gives a file its name, and all that must come after that, is kept as a
 * list of steps: the list is done, in its order, after one sync for all of its files.
 */
#include "common/wire/tar_unpack_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

static int
open_beneath(int base, const char *path, int flags)
{
	struct open_how how = {
		.flags = (uint64_t)(flags | O_CLOEXEC),
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	long fd;

	do
		fd = syscall(SYS_openat2, base, path, &how, sizeof(how));
	while (fd < 0 && (errno == EINTR || errno == EAGAIN));
	return fd < 0 ? -errno : (int)fd;
}

static mode_t
allowed_mode(const struct tar_unpack *u, mode_t mode)
{
	return mode & (u->opts.keep_setid ? 07777 : 01777);
}

/* Mode and time of an open file or folder. The owner first: chown clears set-user-id. */
static int
set_meta(struct tar_unpack *u, int fd, mode_t mode, struct timespec mtime,
	const char *what, struct err *e)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, mtime};

	if (u->opts.chown && fchown(fd, u->opts.uid, u->opts.gid))
		return err_sys(e, -errno, "\"%s\": setting its owner", what);
	if (fchmod(fd, allowed_mode(u, mode)))
		return err_sys(e, -errno, "\"%s\": setting its mode", what);
	if (futimens(fd, times))
		return err_sys(e, -errno, "\"%s\": setting its time", what);
	return 0;
}

static int
keep_step(struct tar_unpack *u, const struct step *step, const char *path,
	const char *target, struct err *e)
{
	struct step *bigger, *at;

	if (!(u->n_steps & (u->n_steps - 1))) {
		bigger = reallocarray(
			u->steps, u->n_steps ? 2 * u->n_steps : 1, sizeof(*bigger));
		if (!bigger)
			return err_sys(e, -ENOMEM, "\"%s\"", path);
		u->steps = bigger;
	}
	at = &u->steps[u->n_steps];
	*at = *step;
	at->path = strdup(path);
	at->target = target ? strdup(target) : NULL;
	if (!at->path || (target && !at->target)) {
		free(at->path);
		free(at->target);
		return err_sys(e, -ENOMEM, "\"%s\"", path);
	}
	u->n_steps++;
	return 0;
}

/* A folder is left: its mode and time are set, or will be when its files have names. */
static int
leave(struct tar_unpack *u, const struct made *m, struct err *e)
{
	struct step step = {.kind = STEP_FOLDER, .mode = m->mode, .mtime = m->mtime};

	if (!m->set)
		return 0;
	if (u->n_steps)
		return keep_step(u, &step, u->stack_path, NULL, e);
	return set_meta(u, m->fd, m->mode, m->mtime, m->len ? u->stack_path : u->dest, e);
}

int
tar_place_leave(struct tar_unpack *u, const char *path, struct err *e)
{
	int r = 0;

	while (u->depth) {
		struct made *m = &u->stack[u->depth - 1];

		if (path && strncmp(path, u->stack_path, m->len) == 0 &&
			(m->len == 0 || path[m->len] == '/'))
			return r;
		u->stack_path[m->len] = 0;
		if (r == 0)
			r = leave(u, m, e);
		close(m->fd);
		u->depth--;
		if (u->depth)
			u->stack_path[u->stack[u->depth - 1].len] = 0;
		if (r < 0)
			return r;
	}
	return r;
}

static int
push(struct tar_unpack *u, int fd, const char *path, bool set, mode_t mode,
	struct timespec mtime, struct err *e)
{
	size_t len = strlen(path);

	if (u->depth == sizeof(u->stack) / sizeof(u->stack[0])) {
		close(fd);
		return err_set(e, -ELOOP,
			"\"%.200s…\": folders more than %d deep are not copied", path,
			TAR_DEPTH_MAX);
	}
	memcpy(u->stack_path, path, len + 1);
	u->stack[u->depth++] = (struct made){
		.fd = fd, .len = len, .set = set, .mode = mode, .mtime = mtime};
	return 0;
}

static int
open_base(struct tar_unpack *u, const char *path, struct err *e)
{
	struct stat st;

	u->base = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (u->base < 0 || fstat(u->base, &st))
		return err_sys(e, -errno, "\"%s\"", path);
	u->base_dev = st.st_dev;
	return 0;
}

int
tar_place_settle(struct tar_unpack *u, struct err *e)
{
	size_t len = strlen(u->dest);
	struct stat st;
	bool slash = len > 1 && u->dest[len - 1] == '/';
	cleanup_free char *folder = NULL;
	char *last;

	u->contents = strcmp(u->top, ".") == 0;
	if (!stat(u->dest, &st)) {
		if (S_ISDIR(st.st_mode))
			return open_base(u, u->dest, e);
		if (!S_ISREG(st.st_mode) || tar_is_open_elsewhere(u->dest))
			return err_set(e, -EINVAL,
				"\"%s\" is neither a file nor a folder; copy to a file first",
				u->dest);
	}
	if (u->contents) {
		if (mkdir(u->dest, 0700))
			return err_sys(e, errno == EEXIST ? -ENOTDIR : -errno, "\"%s\"",
				u->dest);
		u->base_is_new = true;
		return open_base(u, u->dest, e);
	}
	if (slash)
		return err_set(e, -ENOENT, "\"%s\" is no folder; make it first", u->dest);
	last = strrchr(u->dest, '/');
	u->rename = strdup(last ? last + 1 : u->dest);
	folder = !last ? strdup(".")
		       : strndup(u->dest, last == u->dest ? 1 : last - u->dest);
	if (!u->rename || !folder)
		return err_sys(e, -ENOMEM, "\"%s\"", u->dest);
	return open_base(u, folder, e);
}

/* The open folder that u->path goes into and its last component there. */
static int
parent_of(struct tar_unpack *u, int *ret_fd, const char **ret_name, struct err *e)
{
	char *slash = strrchr(u->path, '/');
	struct made *top = u->depth ? &u->stack[u->depth - 1] : NULL;
	size_t len = slash ? (size_t)(slash - u->path) : 0;
	struct timespec none = {0};
	int fd, r;

	*ret_name = slash ? slash + 1 : u->path;
	if (!slash) {
		*ret_fd = u->base;
		return 0;
	}
	if (top && top->len == len) {
		*ret_fd = top->fd;
		return 0;
	}
	*slash = 0;
	fd = open_beneath(u->base, u->path, O_RDONLY | O_DIRECTORY);
	if (fd == -ELOOP)
		r = err_set(e, -ELOOP,
			"\"%s\": a symbolic link stands where a folder should", u->path);
	else if (fd < 0)
		r = err_sys(e, fd, "\"%s\"", u->path);
	else
		r = push(u, fd, u->path, false, 0, none, e);
	*slash = '/';
	*ret_fd = fd;
	return r;
}

/*
 * Names. What is made gets its own name only when it is whole.
 */

static void
make_temp_name(struct temp_name *t)
{
	uint64_t number;

	/* Never blocks once the kernel has booted; then anything does that is another
	 * number each time. */
	if (getrandom(&number, sizeof(number), GRND_NONBLOCK) != sizeof(number))
		number = io_now_ns();
	snprintf(t->v, sizeof(t->v), ".pando-%016" PRIx64, number);
}

/* Whether what is there may be replaced by a file or link. */
static int
check_way(int dir, const char *name, const char *path, struct err *e)
{
	struct stat st;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT ? 0 : err_sys(e, -errno, "\"%s\"", path);
	if (S_ISDIR(st.st_mode))
		return err_set(e, -EISDIR,
			"\"%s\" is a folder there; a file does not replace it", path);
	if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode) && !S_ISFIFO(st.st_mode))
		return err_set(e, -EEXIST,
			"\"%s\" is a device or socket there; a file does not replace it",
			path);
	return 0;
}

/* On an error there is nothing of the temporary name, either. */
static int
give_name(int dir, struct temp_name *t, const char *name, const char *path, struct err *e)
{
	int r = check_way(dir, name, path, e);

	if (r == 0 && renameat(dir, t->v, dir, name))
		r = err_sys(e, -errno, "\"%s\": giving it its name", path);
	if (r < 0)
		unlinkat(dir, t->v, 0);
	t->v[0] = 0;
	return r;
}

/* Splits a path beneath base; *ret_fd is base or, owned, its folder. */
static int
open_parent(
	const struct tar_unpack *u, const char *path, int *ret_fd, const char **ret_name)
{
	const char *slash = strrchr(path, '/');
	char folder[TAR_PATH_MAX];

	*ret_name = slash ? slash + 1 : path;
	*ret_fd = u->base;
	if (!slash)
		return 0;
	memcpy(folder, path, (size_t)(slash - path));
	folder[slash - path] = 0;
	*ret_fd = open_beneath(u->base, folder, O_RDONLY | O_DIRECTORY);
	return *ret_fd < 0 ? *ret_fd : 0;
}

static void
close_parent(const struct tar_unpack *u, int fd)
{
	if (fd >= 0 && fd != u->base)
		close(fd);
}

/*
 * Hard links.
 */

static size_t
linked_slot(const struct tar_unpack *u, uint64_t ino)
{
	size_t i = (size_t)(ino * UINT64_C(0x9e3779b97f4a7c15)) & (u->linked_cap - 1);

	while (u->linked[i] && u->linked[i] != ino)
		i = (i + 1) & (u->linked_cap - 1);
	return i;
}

/* The file may be linked to: it is of this stream. Without memory it may not. */
static void
note_linked(struct tar_unpack *u, const struct stat *st)
{
	uint64_t *old = u->linked;
	size_t n = u->linked_cap;

	if (!u->opts.untrusted || !st->st_ino || u->n_linked == TAR_LINKED_MAX)
		return;
	if (2 * (u->n_linked + 1) > n) {
		uint64_t *bigger = calloc(n ? 2 * n : 64, sizeof(*bigger));

		if (!bigger)
			return;
		u->linked = bigger;
		u->linked_cap = n ? 2 * n : 64;
		for (size_t i = 0; i < n; i++)
			if (old[i])
				bigger[linked_slot(u, old[i])] = old[i];
		free(old);
	}
	if (!u->n_linked)
		u->linked_dev = st->st_dev;
	if (st->st_dev != u->linked_dev)
		return;
	n = linked_slot(u, st->st_ino);
	u->n_linked += !u->linked[n];
	u->linked[n] = st->st_ino;
}

static bool
may_link(const struct tar_unpack *u, const struct stat *st)
{
	if (!S_ISREG(st->st_mode))
		return false;
	return !u->opts.untrusted ||
	       (u->n_linked && st->st_dev == u->linked_dev &&
		       u->linked[linked_slot(u, st->st_ino)] == st->st_ino);
}

/* Where the file system has no hard links, or no more: a file of its own. */
static int
copy_file(struct tar_unpack *u, int from_dir, const char *from, const struct stat *st,
	int dir, const char *temp, struct err *e)
{
	cleanup_close int in = openat(from_dir, from, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	cleanup_close int out = openat(
		dir, temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	char buf[16384];
	ssize_t n = 1;
	int r = in < 0 || out < 0 ? -errno : 0;

	while (r == 0 && n > 0) {
		n = io_read(in, buf, sizeof(buf));
		r = n < 0 ? (int)n : io_write_full(out, buf, (size_t)n);
	}
	if (r < 0)
		return err_sys(e, r, "\"%s\"", from);
	return set_meta(u, out, st->st_mode, st->st_mtim, from, e);
}

static int
link_to(struct tar_unpack *u, const char *path, const char *target, struct err *e)
{
	int to_dir = -1, dir = -1, r;
	const char *to_name, *name;
	struct temp_name temp;
	struct stat to, st;

	r = open_parent(u, target, &to_dir, &to_name);
	if (r == 0 && fstatat(to_dir, to_name, &to, AT_SYMLINK_NOFOLLOW))
		r = -errno;
	if (r == -ENOENT || r == -ELOOP || r == -ENOTDIR || (r == 0 && !may_link(u, &to)))
		r = err_set(e, -EPROTO,
			"\"%s\": the stream has it as a hard link to \"%s\", which is no file of the stream",
			path, target);
	else if (r < 0)
		err_sys(e, r, "\"%s\"", target);
	if (r == 0 && (r = open_parent(u, path, &dir, &name)) < 0)
		err_sys(e, r, "\"%s\"", path);
	if (r < 0)
		goto out;
	/* rename(2) does nothing where both are the same file. */
	if (!fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) && st.st_ino == to.st_ino &&
		st.st_dev == to.st_dev)
		goto out;
	make_temp_name(&temp);
	if (!linkat(to_dir, to_name, dir, temp.v, 0))
		r = 0;
	else if (errno == EPERM || errno == EMLINK || errno == EOPNOTSUPP ||
		 errno == EXDEV)
		r = copy_file(u, to_dir, to_name, &to, dir, temp.v, e);
	else
		r = err_sys(e, -errno, "\"%s\"", path);
	if (r == 0)
		r = give_name(dir, &temp, name, path, e);
	else
		unlinkat(dir, temp.v, 0);
out:
	close_parent(u, to_dir);
	close_parent(u, dir);
	return r;
}

int
tar_place_hard_link(struct tar_unpack *u, struct err *e)
{
	struct step step = {.kind = STEP_LINK};

	u->stats.links++;
	return u->n_steps ? keep_step(u, &step, u->path, u->target, e)
			  : link_to(u, u->path, u->target, e);
}

/*
 * Steps.
 */

static int
do_step(struct tar_unpack *u, struct step *s, struct err *e)
{
	cleanup_close int own = -1;
	const char *name;
	int fd = -1, r;

	switch (s->kind) {
	case STEP_LINK:
		return link_to(u, s->path, s->target, e);
	case STEP_FOLDER:
		own = *s->path ? open_beneath(u->base, s->path, O_RDONLY | O_DIRECTORY)
			       : fcntl(u->base, F_DUPFD_CLOEXEC, 0);
		if (own < 0)
			return err_sys(e, *s->path ? own : -errno, "\"%s\"", s->path);
		return set_meta(
			u, own, s->mode, s->mtime, *s->path ? s->path : u->dest, e);
	default:
		r = open_parent(u, s->path, &fd, &name);
		r = r < 0 ? err_sys(e, r, "\"%s\"", s->path)
			  : give_name(fd, &s->temp, name, s->path, e);
		close_parent(u, fd);
		return r;
	}
}

/* The contents of all files that wait for their names are to be on the disk. */
static int
sync_files(struct tar_unpack *u, struct err *e)
{
	const struct step *one = NULL;
	cleanup_close int file = -1;
	size_t n = 0;
	int dir = -1, r = 0;
	const char *name;

	for (size_t i = 0; i < u->n_steps; i++) {
		if (u->steps[i].kind == STEP_RENAME) {
			one = &u->steps[i];
			n++;
		}
	}
	if (!n)
		return 0;
	/* Of one file, not what else is being written in the machine. */
	if (n == 1) {
		r = open_parent(u, one->path, &dir, &name);
		if (r == 0) {
			file = openat(
				dir, one->temp.v, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
			r = file < 0 || fsync(file) ? -errno : 0;
		}
		close_parent(u, dir);
	} else if (syncfs(u->base)) {
		r = -errno;
	}
	return r < 0 ? err_sys(e, r, "\"%s\": writing it to the disk", one->path) : 0;
}

int
tar_place_steps(struct tar_unpack *u, struct err *e)
{
	int r = sync_files(u, e);

	for (size_t i = 0; r == 0 && i < u->n_steps; i++)
		r = do_step(u, &u->steps[i], e);
	if (r < 0)
		return r; /* tar_place_done() clears them away */
	for (size_t i = 0; i < u->n_steps; i++) {
		free(u->steps[i].path);
		free(u->steps[i].target);
	}
	u->n_steps = 0;
	u->steps_bytes = 0;
	return 0;
}

/*
 * Members.
 */

int
tar_place_folder(struct tar_unpack *u, mode_t mode, struct timespec mtime, struct err *e)
{
	const char *name;
	bool is_new;
	int dir, fd, r;

	if (!*u->path) {
		fd = fcntl(u->base, F_DUPFD_CLOEXEC, 0);
		if (fd < 0)
			return err_sys(e, -errno, "\"%s\"", u->dest);
		return push(u, fd, "", u->base_is_new, mode, mtime, e);
	}
	r = parent_of(u, &dir, &name, e);
	if (r < 0)
		return r;
	is_new = !mkdirat(dir, name, 0700);
	if (!is_new && errno != EEXIST)
		return err_sys(e, -errno, "\"%s\"", u->path);
	fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && (errno == ENOTDIR || errno == ELOOP))
		return err_set(e, -ENOTDIR,
			"\"%s\" is not a folder there; a folder does not replace it",
			u->path);
	if (fd < 0)
		return err_sys(e, -errno, "\"%s\"", u->path);
	u->stats.folders++;
	return push(u, fd, u->path, is_new, mode, mtime, e);
}

int
tar_place_finish_file(struct tar_unpack *u, struct err *e)
{
	const char *slash = strrchr(u->path, '/');
	struct step step = {.kind = STEP_RENAME, .temp = u->temp};
	struct stat st;
	int r = 0;

	/* A hole at the end. */
	if (u->sparse && ftruncate(u->file, (off_t)u->real_size))
		r = err_sys(e, -errno, "\"%s\"", u->path);
	if (r == 0)
		r = set_meta(u, u->file, u->file_mode, u->file_mtime, u->path, e);
	if (r == 0 && fstat(u->file, &st))
		r = err_sys(e, -errno, "\"%s\"", u->path);
	if (r == 0)
		note_linked(u, &st);
	/* In a file system that is mounted below; syncfs() is for that of base. */
	if (r == 0 && u->opts.sync && st.st_dev != u->base_dev && fsync(u->file))
		r = err_sys(e, -errno, "\"%s\": writing it to the disk", u->path);
	close(u->file);
	u->file = -1;
	free(u->extents);
	u->extents = NULL;
	if (r < 0)
		return r; /* tar_place_done() removes it */
	u->stats.files++;
	if (!u->opts.sync)
		return give_name(
			u->file_dir, &u->temp, slash ? slash + 1 : u->path, u->path, e);
	r = keep_step(u, &step, u->path, NULL, e);
	if (r < 0)
		return r;
	u->temp.v[0] = 0;
	u->steps_bytes += (uint64_t)st.st_size;
	return u->n_steps >= STEPS_MAX || u->steps_bytes >= STEPS_BYTES_MAX
		       ? tar_place_steps(u, e)
		       : 0;
}

int
tar_place_file(struct tar_unpack *u, mode_t mode, struct timespec mtime, struct err *e)
{
	const char *name;
	int r;

	if (!*u->path)
		return err_set(e, -EPROTO, "the stream's top is a file without a name");
	r = parent_of(u, &u->file_dir, &name, e);
	if (r == 0)
		r = check_way(u->file_dir, name, u->path, e);
	if (r < 0)
		return r;
	make_temp_name(&u->temp);
	u->file = openat(u->file_dir, u->temp.v,
		O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, 0600);
	if (u->file < 0) {
		u->temp.v[0] = 0;
		return err_sys(e, -errno, "\"%s\"", u->path);
	}
	u->file_mode = mode;
	u->file_mtime = mtime;
	return 0;
}

/* Whether the target of the link u->path, followed as far as one likes, could be anything
 * outside of the top. Its folder is no link, so going up from there is safe as deep as it
 * lies; but a name in the target may be another link, and ".." behind it goes up from
 * wherever that leads. */
static bool
leads_out(const struct tar_unpack *u, const char *target)
{
	int depth = u->contents ? 0 : -1, up = 0;
	bool down = false;

	for (const char *s = u->path; *s; s++)
		depth += *s == '/';
	if (*target == '/' || depth < 0)
		return true;
	while (*target) {
		size_t len = strcspn(target, "/");

		if (len == 2 && memcmp(target, "..", 2) == 0) {
			if (down || ++up > depth)
				return true;
		} else if (len && !(len == 1 && *target == '.')) {
			down = true;
		}
		target += len;
		target += *target == '/';
	}
	return false;
}

static int
set_special(struct tar_unpack *u, int dir, const char *name, char type, mode_t mode,
	struct timespec mtime, struct err *e)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, mtime};

	if (u->opts.chown &&
		fchownat(dir, name, u->opts.uid, u->opts.gid, AT_SYMLINK_NOFOLLOW))
		return err_sys(e, -errno, "\"%s\": setting its owner", u->path);
	if (type == '6' && fchmodat(dir, name, allowed_mode(u, mode), 0))
		return err_sys(e, -errno, "\"%s\": setting its mode", u->path);
	if (utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW))
		return err_sys(e, -errno, "\"%s\": setting its time", u->path);
	return 0;
}

int
tar_place_special(struct tar_unpack *u, char type, const char *link, mode_t mode,
	struct timespec mtime, struct err *e)
{
	struct temp_name temp;
	const char *name;
	int dir, r;

	if (!*u->path)
		return err_set(e, -EPROTO, "the stream's top is a link without a name");
	if (type == '2' && !*link)
		return err_set(e, -EPROTO, "\"%s\": a symbolic link to nothing", u->path);
	if (type == '6' && u->opts.untrusted)
		return err_set(e, -EPROTO,
			"\"%s\" is a FIFO, which is not taken from the other side",
			u->path);
	if (type == '2' && u->opts.untrusted && leads_out(u, link)) {
		if (!u->stats.outside++)
			memcpy(u->outside, u->path, strlen(u->path) + 1);
		return 0;
	}
	r = parent_of(u, &dir, &name, e);
	if (r == 0)
		r = check_way(dir, name, u->path, e);
	if (r < 0)
		return r;
	make_temp_name(&temp);
	if (type == '2' ? symlinkat(link, dir, temp.v) : mkfifoat(dir, temp.v, 0600))
		return err_sys(e, -errno, "\"%s\"", u->path);
	r = set_special(u, dir, temp.v, type, mode, mtime, e);
	if (r < 0)
		unlinkat(dir, temp.v, 0);
	else
		r = give_name(dir, &temp, name, u->path, e);
	if (r < 0)
		return r;
	if (type == '2')
		u->stats.links++;
	else
		u->stats.files++;
	return 0;
}

void
tar_place_done(struct tar_unpack *u)
{
	const char *name;
	int dir;

	if (u->file >= 0)
		close(u->file);
	if (u->temp.v[0])
		unlinkat(u->file_dir, u->temp.v, 0);
	for (size_t i = 0; i < u->n_steps; i++) {
		struct step *s = &u->steps[i];

		dir = -1;
		if (s->temp.v[0] && !open_parent(u, s->path, &dir, &name))
			unlinkat(dir, s->temp.v, 0);
		close_parent(u, dir);
		free(s->path);
		free(s->target);
	}
	free(u->steps);
	while (u->depth)
		close(u->stack[--u->depth].fd);
	if (u->base >= 0)
		close(u->base);
	free(u->extents);
	free(u->linked);
}
