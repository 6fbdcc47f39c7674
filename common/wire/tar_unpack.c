/*
 * Unpacking. The stack holds the folders this stream made and that the current member
 * lies in, each open: their mode and time are set when the stream leaves them, since a
 * folder must stay writable, and its time still, while it is filled.
 */
#include "common/wire/tar.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/tar_format.h"

#define PAX_MAX (4u * TAR_PATH_MAX)
#define NSEC 1000000000

struct made {
	int fd;	    /* owned */
	size_t len; /* of u->stack_path, of this folder */
	bool set; /* made by us: mode and time are to be set; else it was there and stays
		     as it was */
	mode_t mode;
	struct timespec mtime;
};

enum state { AT_HEADER, IN_PAX, IN_FILE, IN_PADDING, AT_END };

struct tar_unpack {
	struct tar_unpack_opts opts;
	char *dest;    /* owned */
	int base;      /* owned: what every member is beneath; -1 before the first */
	char *rename;  /* owned: what the first component becomes, or NULL */
	char *top;     /* owned: the first component of all members */
	bool contents; /* the stream is a folder's contents: its top is "." */
	bool base_is_new;

	enum state state;
	char block[TAR_BLOCK];
	size_t have;   /* in block or pax */
	uint64_t left; /* of the file or its padding */
	size_t padding;
	unsigned zero_blocks;

	char *pax; /* owned */
	size_t pax_len;
	/* What pax said about the next member. */
	char *pax_path, *pax_link; /* owned */
	bool has_size, has_mtime;
	uint64_t pax_size;
	struct timespec pax_mtime;

	int file; /* owned */
	mode_t file_mode;
	struct timespec file_mtime;
	char path[TAR_PATH_MAX]; /* of the member, beneath base */

	char stack_path[TAR_PATH_MAX];
	struct made stack[TAR_DEPTH_MAX + 1];
	size_t depth;
	struct tar_stats stats;
	char outside[TAR_PATH_MAX]; /* the first such link */
};

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

/* Leaves the folders that `path` is not in. */
static int
pop_to(struct tar_unpack *u, const char *path, struct err *e)
{
	int r = 0;

	while (u->depth) {
		struct made *m = &u->stack[u->depth - 1];

		if (path && !strncmp(path, u->stack_path, m->len) &&
			(m->len == 0 || path[m->len] == '/'))
			return r;
		u->stack_path[m->len] = 0;
		if (m->set && !r)
			r = set_meta(u, m->fd, m->mode, m->mtime,
				m->len ? u->stack_path : u->dest, e);
		close(m->fd);
		u->depth--;
		if (u->depth)
			u->stack_path[u->stack[u->depth - 1].len] = 0;
		if (r)
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

/* Decides where everything goes, by its top. */
static int
settle(struct tar_unpack *u, struct err *e)
{
	size_t len = strlen(u->dest);
	struct stat st;
	bool slash = len > 1 && u->dest[len - 1] == '/';
	char *last;

	u->contents = !strcmp(u->top, ".");
	if (!stat(u->dest, &st) && S_ISDIR(st.st_mode)) {
		u->base = open(u->dest, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		return u->base < 0 ? err_sys(e, -errno, "\"%s\"", u->dest) : 0;
	}
	if (u->contents) {
		if (mkdir(u->dest, 0700))
			return err_sys(e, errno == EEXIST ? -ENOTDIR : -errno, "\"%s\"",
				u->dest);
		u->base_is_new = true;
		u->base = open(u->dest, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		return u->base < 0 ? err_sys(e, -errno, "\"%s\"", u->dest) : 0;
	}
	if (slash)
		return err_set(e, -ENOENT, "\"%s\" is no folder; make it first", u->dest);
	last = strrchr(u->dest, '/');
	u->rename = strdup(last ? last + 1 : u->dest);
	if (!u->rename)
		return err_sys(e, -ENOMEM, "\"%s\"", u->dest);
	if (last) {
		char kept = last == u->dest ? last[1] : last[0];
		char *cut = last == u->dest ? last + 1 : last;

		*cut = 0;
		u->base = open(u->dest, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (u->base < 0) {
			int r = err_sys(e, -errno, "\"%s\"", u->dest);

			*cut = kept;
			return r;
		}
		*cut = kept;
	} else {
		u->base = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (u->base < 0)
			return err_sys(e, -errno, "the current folder");
	}
	return 0;
}

/* The name at the top is always the same, and the one that was asked for. */
static int
check_top(struct tar_unpack *u, const char *member, struct err *e)
{
	size_t len = strcspn(member, "/");

	if (!u->top) {
		if (!len || len > NAME_MAX || (len == 2 && !memcmp(member, "..", 2)))
			return err_set(e, -EPROTO,
				"the stream names \"%s\": not a relative name", member);
		u->top = strndup(member, len);
		if (!u->top)
			return err_sys(e, -ENOMEM, "\"%s\"", u->dest);
	}
	if (len == strlen(u->top) && !memcmp(member, u->top, len))
		return 0;
	if (!u->opts.name)
		return err_set(
			e, -EPROTO, "the stream names \"%s\" outside of its top", member);
	return err_set(e, -EPROTO,
		"the stream has \"%.100s\" where only \"%.100s\" was asked for; nothing of it was written",
		member, u->top);
}

/* Checks a member's name and puts its place beneath base into u->path: "" is base itself.
 */
static int
place(struct tar_unpack *u, const char *name, struct err *e)
{
	const char *s = name;
	size_t n = 0;
	int depth = 0, r = check_top(u, name, e);

	if (!r && u->base < 0)
		r = settle(u, e);
	if (r)
		return r;
	for (; *s; depth++) {
		size_t len = strcspn(s, "/");
		const char *part = s;
		size_t part_len = len;

		if (!len || (len == 2 && !memcmp(s, "..", 2)) ||
			(len == 1 && *s == '.' && depth) || len > NAME_MAX)
			return err_set(e, -EPROTO,
				"the stream names \"%s\": not a name of a file", name);
		if (!depth && u->rename) {
			part = u->rename;
			part_len = strlen(part);
		}
		if (depth || !u->contents) {
			if (n + part_len + 2 > sizeof(u->path))
				return err_set(e, -ENAMETOOLONG,
					"\"%.200s…\": longer than %d bytes", name,
					TAR_PATH_MAX);
			if (n)
				u->path[n++] = '/';
			memcpy(u->path + n, part, part_len);
			n += part_len;
		}
		s += len;
		while (*s == '/')
			s++;
	}
	if (!depth)
		return err_set(e, -EPROTO, "the stream has a member without a name");
	u->path[n] = 0;
	return 0;
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

/* A file or link of that name goes; a folder is an error. */
static int
make_way(const struct tar_unpack *u, int dir, const char *name, struct err *e)
{
	struct stat st;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT ? 0 : err_sys(e, -errno, "\"%s\"", u->path);
	if (S_ISDIR(st.st_mode))
		return err_set(e, -EISDIR,
			"\"%s\" is a folder there; a file does not replace it", u->path);
	if (unlinkat(dir, name, 0) && errno != ENOENT)
		return err_sys(e, -errno, "\"%s\": replacing it", u->path);
	return 0;
}

static int
make_folder(struct tar_unpack *u, mode_t mode, struct timespec mtime, struct err *e)
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
	if (r)
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

static int
finish_file(struct tar_unpack *u, struct err *e)
{
	int r = set_meta(u, u->file, u->file_mode, u->file_mtime, u->path, e);

	close(u->file);
	u->file = -1;
	u->stats.files++;
	return r;
}

static int
make_file(struct tar_unpack *u, mode_t mode, struct timespec mtime, struct err *e)
{
	const char *name;
	int dir, r;

	if (!*u->path)
		return err_set(e, -EPROTO, "the stream's top is a file without a name");
	r = parent_of(u, &dir, &name, e);
	if (r)
		return r;
	for (int tries = 0; tries < 2; tries++) {
		u->file = openat(dir, name,
			O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY,
			0600);
		if (u->file >= 0 || errno != EEXIST)
			break;
		r = make_way(u, dir, name, e);
		if (r)
			return r;
		errno = EEXIST;
	}
	if (u->file < 0)
		return err_sys(e, -errno, "\"%s\"", u->path);
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

		if (len == 2 && !memcmp(target, "..", 2)) {
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
make_special(struct tar_unpack *u, char type, const char *link, mode_t mode,
	struct timespec mtime, struct err *e)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, mtime};
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
	if (r)
		return r;
	for (int tries = 0; tries < 2; tries++) {
		r = type == '2' ? symlinkat(link, dir, name) : mkfifoat(dir, name, 0600);
		if (!r || errno != EEXIST)
			break;
		r = make_way(u, dir, name, e);
		if (r)
			return r;
		errno = EEXIST;
		r = -1;
	}
	if (r)
		return err_sys(e, -errno, "\"%s\"", u->path);
	if (u->opts.chown &&
		fchownat(dir, name, u->opts.uid, u->opts.gid, AT_SYMLINK_NOFOLLOW))
		return err_sys(e, -errno, "\"%s\": setting its owner", u->path);
	if (type == '6' &&
		fchmodat(dir, name, allowed_mode(u, mode), AT_SYMLINK_NOFOLLOW))
		return err_sys(e, -errno, "\"%s\": setting its mode", u->path);
	if (utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW))
		return err_sys(e, -errno, "\"%s\": setting its time", u->path);
	if (type == '2')
		u->stats.links++;
	else
		u->stats.files++;
	return 0;
}

static int
read_octal(const char *field, size_t size, uint64_t *ret)
{
	uint64_t v = 0;
	size_t i = 0;

	while (i < size && field[i] == ' ')
		i++;
	for (; i < size && field[i] && field[i] != ' '; i++) {
		if (field[i] < '0' || field[i] > '7')
			return -EPROTO;
		v = v << 3 | (uint64_t)(field[i] - '0');
	}
	*ret = v;
	return 0;
}

/* "[-]seconds[.fraction]" */
static int
read_time(const char *s, size_t len, struct timespec *ret)
{
	bool negative = len && *s == '-';
	int64_t sec = 0;
	long ns = 0, unit = NSEC / 10;
	size_t i = negative, digits = 0;

	for (; i < len && s[i] >= '0' && s[i] <= '9'; i++, digits++) {
		if (sec > 1ll << 56)
			return -EPROTO;
		sec = sec * 10 + (s[i] - '0');
	}
	if (!digits)
		return -EPROTO;
	if (i < len && s[i] == '.')
		for (i++; i < len && s[i] >= '0' && s[i] <= '9'; i++, unit /= 10)
			ns += unit * (s[i] - '0');
	if (i != len)
		return -EPROTO;
	if (negative) {
		sec = -sec;
		if (ns) {
			sec--;
			ns = NSEC - ns;
		}
	}
	ret->tv_sec = sec;
	ret->tv_nsec = ns;
	return 0;
}

static int
take_pax(struct tar_unpack *u, struct err *e)
{
	size_t at = 0;

	while (at < u->pax_len) {
		const char *rec = u->pax + at, *key, *value;
		size_t left = u->pax_len - at, len = 0, i = 0, key_len, value_len;

		for (; i < left && rec[i] >= '0' && rec[i] <= '9' && len < PAX_MAX; i++)
			len = len * 10 + (size_t)(rec[i] - '0');
		if (!i || i >= left || rec[i] != ' ' || len > left || len < i + 4 ||
			rec[len - 1] != '\n')
			return err_set(
				e, -EPROTO, "the stream has a broken extended header");
		key = rec + i + 1;
		value = memchr(key, '=', len - i - 2);
		if (!value)
			return err_set(
				e, -EPROTO, "the stream has a broken extended header");
		key_len = (size_t)(value - key);
		value++;
		value_len = len - (size_t)(value - rec) - 1;
		if (key_len == 4 && !memcmp(key, "size", 4)) {
			uint64_t v = 0;

			for (size_t k = 0; k < value_len; k++) {
				if (value[k] < '0' || value[k] > '9' || v > 1ull << 59)
					return err_set(e, -EPROTO,
						"the stream has a broken size");
				v = v * 10 + (uint64_t)(value[k] - '0');
			}
			u->pax_size = v;
			u->has_size = true;
		} else if (key_len == 5 && !memcmp(key, "mtime", 5)) {
			if (read_time(value, value_len, &u->pax_mtime))
				return err_set(
					e, -EPROTO, "the stream has a broken time");
			u->has_mtime = true;
		} else if ((key_len == 4 && !memcmp(key, "path", 4)) ||
			   (key_len == 8 && !memcmp(key, "linkpath", 8))) {
			char **to = key_len == 4 ? &u->pax_path : &u->pax_link;

			if (memchr(value, 0, value_len) || value_len >= TAR_PATH_MAX)
				return err_set(
					e, -EPROTO, "the stream has a name that is none");
			free(*to);
			*to = strndup(value, value_len);
			if (!*to)
				return err_sys(e, -ENOMEM, "unpacking");
		}
		at += len;
	}
	return 0;
}

static int
take_member(
	struct tar_unpack *u, const struct tar_header *h, uint64_t size, struct err *e)
{
	char name[sizeof(h->prefix) + sizeof(h->name) + 2], link[sizeof(h->linkname) + 1];
	const char *path = u->pax_path ? u->pax_path : name;
	const char *target = u->pax_link ? u->pax_link : link;
	struct timespec mtime = {0};
	uint64_t mode, seconds;
	size_t n = strnlen(h->prefix, sizeof(h->prefix));
	int r;

	memcpy(name, h->prefix, n);
	if (n)
		name[n++] = '/';
	memcpy(name + n, h->name, strnlen(h->name, sizeof(h->name)));
	name[n + strnlen(h->name, sizeof(h->name))] = 0;
	memcpy(link, h->linkname, sizeof(h->linkname));
	link[sizeof(h->linkname)] = 0;
	if (read_octal(h->mode, sizeof(h->mode), &mode) ||
		read_octal(h->mtime, sizeof(h->mtime), &seconds))
		return err_set(e, -EPROTO, "the stream has a broken header");
	mtime.tv_sec = (time_t)seconds;
	if (u->has_mtime)
		mtime = u->pax_mtime;

	r = place(u, path, e);
	if (!r)
		r = pop_to(u, u->path, e);
	if (r)
		return r;
	switch (h->typeflag) {
	case '0':
	case '\0':
		r = make_file(u, (mode_t)mode, mtime, e);
		if (r)
			return r;
		u->left = size;
		u->padding = (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
		if (size) {
			u->state = IN_FILE;
			return 0;
		}
		return finish_file(u, e);
	case '5':
		return make_folder(u, (mode_t)mode, mtime, e);
	case '2':
	case '6':
		return make_special(u, h->typeflag, target, (mode_t)mode, mtime, e);
	default:
		return err_set(e, -EPROTO,
			"\"%s\": the stream has it as type %d, which is not unpacked",
			path, h->typeflag);
	}
}

static int
take_header(struct tar_unpack *u, struct err *e)
{
	struct tar_header h;
	uint64_t size, sum;
	int r;

	memcpy(&h, u->block, sizeof(h));
	if (u->block[0] == 0) {
		for (size_t i = 0; i < TAR_BLOCK; i++)
			if (u->block[i])
				return err_set(e, -EPROTO,
					"the stream has a member without a name");
		if (++u->zero_blocks == 2)
			u->state = AT_END;
		return 0;
	}
	if (u->zero_blocks)
		return err_set(e, -EPROTO, "the stream goes on after its end");
	if (memcmp(h.magic, "ustar", 5) || read_octal(h.chksum, sizeof(h.chksum), &sum) ||
		sum != tar_checksum(&h) || read_octal(h.size, sizeof(h.size), &size))
		return err_set(
			e, -EPROTO, "the stream is no tar stream here (bad header)");
	if (h.typeflag == 'x') {
		if (!size || size > PAX_MAX)
			return err_set(e, -EPROTO,
				"the stream has an extended header of %llu bytes",
				(unsigned long long)size);
		free(u->pax);
		u->pax = malloc(size);
		if (!u->pax)
			return err_sys(e, -ENOMEM, "unpacking");
		u->pax_len = size;
		u->left = size;
		u->padding = (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
		u->state = IN_PAX;
		return 0;
	}
	if (u->has_size)
		size = u->pax_size;
	if (h.typeflag != '0' && h.typeflag != '\0' && size)
		return err_set(e, -EPROTO, "the stream has contents for what is no file");
	r = take_member(u, &h, size, e);
	free(u->pax_path);
	free(u->pax_link);
	u->pax_path = u->pax_link = NULL;
	u->has_size = u->has_mtime = false;
	return r;
}

int
tar_unpack_open(
	const struct tar_unpack_opts *opts, struct tar_unpack **ret, struct err *e)
{
	struct tar_unpack *u;

	if (!*opts->dest)
		return err_set(e, -ENOENT, "an empty path names no file");
	if (strlen(opts->dest) >= TAR_PATH_MAX)
		return err_set(e, -ENAMETOOLONG, "\"%.200s…\": longer than %d bytes",
			opts->dest, TAR_PATH_MAX - 1);
	u = calloc(1, sizeof(*u));
	if (u) {
		u->dest = strdup(opts->dest);
		u->top = opts->name ? strdup(opts->name) : NULL;
	}
	if (!u || !u->dest || (opts->name && !u->top)) {
		if (u) {
			free(u->dest);
			free(u->top);
		}
		free(u);
		return err_sys(e, -ENOMEM, "\"%s\"", opts->dest);
	}
	u->opts = *opts;
	u->opts.dest = u->dest;
	u->opts.name = opts->name ? u->top : NULL;
	u->base = u->file = -1;
	*ret = u;
	return 0;
}

int
tar_unpack_feed(struct tar_unpack *u, const void *buf, size_t len, struct err *e)
{
	const char *in = buf;

	while (len) {
		size_t part;
		int r = 0;

		switch (u->state) {
		case AT_HEADER:
			part = TAR_BLOCK - u->have;
			if (part > len)
				part = len;
			memcpy(u->block + u->have, in, part);
			u->have += part;
			if (u->have == TAR_BLOCK) {
				u->have = 0;
				r = take_header(u, e);
			}
			break;
		case IN_PAX:
			part = u->left < len ? (size_t)u->left : len;
			memcpy(u->pax + (u->pax_len - u->left), in, part);
			u->left -= part;
			if (!u->left) {
				u->state = IN_PADDING;
				r = take_pax(u, e);
			}
			break;
		case IN_FILE:
			part = u->left < len ? (size_t)u->left : len;
			r = io_write_full(u->file, in, part);
			if (r)
				return err_sys(e, r, "\"%s\"", u->path);
			u->left -= part;
			u->stats.bytes += part;
			if (!u->left) {
				u->state = IN_PADDING;
				r = finish_file(u, e);
			}
			break;
		case IN_PADDING:
			part = u->padding < len ? u->padding : len;
			u->padding -= part;
			break;
		default: /* AT_END: tar pads its last record with zeroes */
			part = len;
			break;
		}
		if (r)
			return r;
		if (u->state == IN_PADDING && !u->padding)
			u->state = AT_HEADER;
		in += part;
		len -= part;
	}
	return 0;
}

int
tar_unpack_finish(struct tar_unpack *u, struct err *e)
{
	if (u->state != AT_END)
		return err_set(e, -EPIPE, "the stream ended before its end");
	return pop_to(u, NULL, e);
}

const struct tar_stats *
tar_unpack_stats(const struct tar_unpack *u)
{
	return &u->stats;
}

const char *
tar_unpack_outside(const struct tar_unpack *u)
{
	return u->outside;
}

void
tar_unpack_close(struct tar_unpack *u)
{
	if (!u)
		return;
	while (u->depth)
		close(u->stack[--u->depth].fd);
	if (u->file >= 0)
		close(u->file);
	if (u->base >= 0)
		close(u->base);
	free(u->dest);
	free(u->rename);
	free(u->top);
	free(u->pax);
	free(u->pax_path);
	free(u->pax_link);
	free(u);
}
