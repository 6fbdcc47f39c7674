/*
 * Packing: a stack of open folders, one for each level, and one member under way. The
 * stack is what tar_pack_read() resumes from.
 */
#include "common/wire/tar.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/wire/tar_format.h"

#define DENTS 4096

/* What getdents64(2) fills in. */
struct dent {
	uint64_t ino;
	int64_t off;
	unsigned short reclen;
	unsigned char type;
	char name[];
};

struct level {
	int fd;		 /* owned */
	size_t path_len; /* of p->path, of this folder */
	size_t at, have; /* in dents */
	_Alignas(8) char dents[DENTS];
};

struct tar_pack {
	char *source;		 /* owned; for the first member */
	char path[TAR_PATH_MAX]; /* of the member under way, in the stream */
	size_t path_len;
	struct level *levels[TAR_DEPTH_MAX]; /* owned */
	size_t depth;
	bool started, ended, follow, leave_fifos;

	char *head; /* owned: header blocks still to be given out */
	size_t head_at, head_len, head_cap;
	int file;	/* owned: the regular file under way, -1 */
	uint64_t left;	/* of its contents */
	size_t padding; /* zero bytes after them */
	struct tar_stats stats;
};

static int
head_room(struct tar_pack *p, size_t n, char **ret, struct err *e)
{
	if (p->head_len + n > p->head_cap) {
		size_t cap = p->head_len + n + 4 * TAR_BLOCK;
		char *bigger = realloc(p->head, cap);

		if (!bigger)
			return err_sys(e, -ENOMEM, "packing %zu bytes of header", cap);
		p->head = bigger;
		p->head_cap = cap;
	}
	*ret = p->head + p->head_len;
	memset(*ret, 0, n);
	p->head_len += n;
	return 0;
}

static void
octal(char *field, size_t size, uint64_t v)
{
	for (size_t i = size - 1; i-- > 0; v >>= 3)
		field[i] = (char)('0' + (v & 7));
	field[size - 1] = 0;
}

static int
put_block(struct tar_pack *p, char type, const char *name, size_t name_len,
	const char *link, size_t link_len, mode_t mode, uint64_t size, int64_t mtime,
	struct err *e)
{
	struct tar_header h = {.typeflag = type, .magic = "ustar", .version = {'0', '0'}};
	char *at;
	int r = head_room(p, sizeof(h), &at, e);

	if (r)
		return r;
	memcpy(h.name, name, name_len < sizeof(h.name) ? name_len : sizeof(h.name));
	memcpy(h.linkname, link,
		link_len < sizeof(h.linkname) ? link_len : sizeof(h.linkname));
	octal(h.mode, sizeof(h.mode), mode & 07777);
	octal(h.uid, sizeof(h.uid), 0);
	octal(h.gid, sizeof(h.gid), 0);
	octal(h.size, sizeof(h.size), size < 1ull << 33 ? size : 0); /* else: pax */
	octal(h.mtime, sizeof(h.mtime),
		mtime >= 0 && mtime < 1ll << 33 ? (uint64_t)mtime : 0);
	octal(h.devmajor, sizeof(h.devmajor), 0);
	octal(h.devminor, sizeof(h.devminor), 0);
	octal(h.chksum, sizeof(h.chksum) - 1, tar_checksum(&h));
	h.chksum[7] = ' ';
	memcpy(at, &h, sizeof(h));
	return 0;
}

/* "<len> key=value\n", where len counts itself. */
static size_t
pax_record_len(const char *key, size_t value_len)
{
	size_t body = strlen(key) + value_len + 3, len = body, digits;

	do {
		digits = 0;
		for (size_t v = len; v; v /= 10)
			digits++;
		if (body + digits == len)
			break;
		len = body + digits;
	} while (1);
	return len;
}

static char *
pax_record(char *at, const char *key, const char *value, size_t value_len)
{
	size_t len = pax_record_len(key, value_len);

	at += sprintf(at, "%zu %s=", len, key);
	memcpy(at, value, value_len);
	at[value_len] = '\n';
	return at + value_len + 1;
}

static int
put_member(struct tar_pack *p, char type, const struct stat *st, const char *link,
	size_t link_len, struct err *e)
{
	char mtime[48], size[24], *at;
	size_t pax = 0, name_len = p->path_len, mtime_len = 0, size_len = 0;
	uint64_t bytes = type == '0' ? (uint64_t)st->st_size : 0;
	int r;

	/* Before the epoch the fraction counts down from the second, as seconds are
	 * floored. */
	if (st->st_mtim.tv_nsec || st->st_mtim.tv_sec < 0 ||
		st->st_mtim.tv_sec >= 1ll << 33) {
		long long s = st->st_mtim.tv_sec;
		long ns = st->st_mtim.tv_nsec;

		if (s < 0 && ns) {
			s++;
			ns = 1000000000 - ns;
		}
		mtime_len = (size_t)snprintf(mtime, sizeof(mtime), "%s%lld.%09ld",
			s == 0 && st->st_mtim.tv_sec < 0 ? "-" : "", s, ns);
		pax += pax_record_len("mtime", mtime_len);
	}
	if (bytes >= 1ull << 33) {
		size_len = (size_t)snprintf(
			size, sizeof(size), "%llu", (unsigned long long)bytes);
		pax += pax_record_len("size", size_len);
	}
	if (name_len > 100)
		pax += pax_record_len("path", name_len);
	if (link_len > 100)
		pax += pax_record_len("linkpath", link_len);
	if (pax) {
		r = put_block(p, 'x', "pax", 3, "", 0, 0644, pax, 0, e);
		if (!r)
			r = head_room(
				p, (pax + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK, &at, e);
		if (r)
			return r;
		if (mtime_len)
			at = pax_record(at, "mtime", mtime, mtime_len);
		if (size_len)
			at = pax_record(at, "size", size, size_len);
		if (name_len > 100)
			at = pax_record(at, "path", p->path, name_len);
		if (link_len > 100)
			pax_record(at, "linkpath", link, link_len);
	}
	return put_block(p, type, p->path, name_len, link, link_len, st->st_mode, bytes,
		st->st_mtim.tv_sec, e);
}

static int
push_level(struct tar_pack *p, int fd, struct err *e)
{
	struct level *l;

	if (p->depth == TAR_DEPTH_MAX)
		return err_set(e, -ELOOP,
			"\"%.200s…\": folders more than %d deep are not copied", p->path,
			TAR_DEPTH_MAX);
	l = malloc(sizeof(*l));
	if (!l)
		return err_sys(e, -ENOMEM, "\"%.200s\"", p->path);
	l->fd = fd;
	l->path_len = p->path_len;
	l->at = l->have = 0;
	p->levels[p->depth++] = l;
	return 0;
}

/* Starts the member p->path, which is `name` in the folder dir. Leaves it out (0, nothing
 * queued) when it is gone. */
static int
start_member(struct tar_pack *p, int dir, const char *name, bool follow, struct err *e)
{
	char link[TAR_PATH_MAX];
	cleanup_close int fd = -1;
	struct statfs fs;
	struct stat st;
	ssize_t n;
	int r;

	if (fstatat(dir, name, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW)) {
		r = -errno;
		if (r == -ENOENT && p->depth)
			return 0;
		return err_sys(e, r, "\"%s\"", p->depth ? p->path : name);
	}
	switch (st.st_mode & S_IFMT) {
	case S_IFLNK:
		n = readlinkat(dir, name, link, sizeof(link));
		if (n < 0) {
			r = -errno;
			return r == -ENOENT && p->depth
				       ? 0
				       : err_sys(e, r, "\"%s\"", p->path);
		}
		if (n == sizeof(link))
			return err_set(e, -ENAMETOOLONG,
				"\"%s\": the link's target is too long", p->path);
		p->stats.links++;
		return put_member(p, '2', &st, link, (size_t)n, e);
	case S_IFDIR:
	case S_IFREG:
		break;
	case S_IFIFO:
		if (!p->leave_fifos) {
			p->stats.files++;
			return put_member(p, '6', &st, "", 0, e);
		}
		/* fall through */
	default:
		if (!p->depth)
			return err_set(e, -EINVAL,
				"\"%s\" is a FIFO, socket or device; read it with cat",
				name);
		p->stats.skipped++;
		return 0;
	}

	/* O_NONBLOCK: should a FIFO have taken its place since. */
	fd = openat(dir, name,
		O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
	if (fd < 0) {
		r = -errno;
		return r == -ENOENT && p->depth
			       ? 0
			       : err_sys(e, r, "\"%s\"", p->depth ? p->path : name);
	}
	mode_t was = st.st_mode & S_IFMT;
	if (fstat(fd, &st))
		return err_sys(e, -errno, "\"%s\"", p->path);
	if ((st.st_mode & S_IFMT) != was)
		return err_set(e, -EBUSY,
			"\"%s\" became something else while it was copied", p->path);
	if (S_ISDIR(was)) {
		size_t len = p->path_len;

		if (len + 2 > sizeof(p->path))
			return err_set(e, -ENAMETOOLONG,
				"\"%.200s…\": longer than %d bytes", p->path,
				TAR_PATH_MAX);
		p->path[p->path_len++] = '/';
		r = put_member(p, '5', &st, "", 0, e);
		p->path_len = len;
		p->path[len] = 0;
		if (!r)
			r = push_level(p, fd, e);
		if (r)
			return r;
		TAKE_FD(fd);
		if (strcmp(p->path, "."))
			p->stats.folders++;
		return 0;
	}
	if (!st.st_blocks && !fstatfs(fd, &fs) &&
		(fs.f_type == PROC_SUPER_MAGIC || fs.f_type == SYSFS_MAGIC))
		return err_set(e, -EINVAL,
			"\"%s\": files of /proc and /sys have no size of their own; read it with cat",
			p->path);
	r = put_member(p, '0', &st, "", 0, e);
	if (r)
		return r;
	p->file = TAKE_FD(fd);
	p->left = (uint64_t)st.st_size;
	p->padding = (TAR_BLOCK - p->left % TAR_BLOCK) % TAR_BLOCK;
	p->stats.files++;
	return 0;
}

/* Queues the next member, or the end of the stream. */
static int
next_member(struct tar_pack *p, struct err *e)
{
	if (!p->started) {
		size_t len = strlen(p->source);

		p->started = true;
		return start_member(p, AT_FDCWD, p->source,
			p->follow || !strcmp(p->path, ".") || p->source[len - 1] == '/',
			e);
	}
	while (p->depth) {
		struct level *l = p->levels[p->depth - 1];
		struct dent *d;
		size_t name_len;

		if (l->at == l->have) {
			long n = syscall(
				SYS_getdents64, l->fd, l->dents, sizeof(l->dents));

			p->path_len = l->path_len;
			p->path[p->path_len] = 0;
			if (n < 0)
				return err_sys(e, -errno, "\"%s\"", p->path);
			if (!n) {
				close(l->fd);
				free(l);
				p->depth--;
				continue;
			}
			l->at = 0;
			l->have = (size_t)n;
		}
		d = (struct dent *)(void *)(l->dents + l->at);
		l->at += d->reclen;
		if (!strcmp(d->name, ".") || !strcmp(d->name, ".."))
			continue;
		name_len = strlen(d->name);
		p->path_len = l->path_len;
		if (p->path_len + 1 + name_len + 1 > sizeof(p->path)) {
			p->path[p->path_len] = 0;
			return err_set(e, -ENAMETOOLONG,
				"\"%.200s…\": a path in it is longer than %d bytes",
				p->path, TAR_PATH_MAX - 1);
		}
		p->path[p->path_len++] = '/';
		memcpy(p->path + p->path_len, d->name, name_len + 1);
		p->path_len += name_len;
		return start_member(p, l->fd, d->name, false, e);
	}
	p->ended = true;
	char *zeroes;
	return head_room(p, 2 * TAR_BLOCK, &zeroes, e);
}

int
tar_top_name(const char *path, char name[static NAME_MAX + 1], struct err *e)
{
	size_t end = strlen(path), start, len;

	if (!end)
		return err_set(e, -ENOENT, "an empty path names no file");
	while (end > 1 && path[end - 1] == '/')
		end--;
	start = end;
	while (start && path[start - 1] != '/')
		start--;
	len = end - start;
	if (len > NAME_MAX)
		return err_set(e, -ENAMETOOLONG,
			"\"%.200s…\": the name is longer than %d bytes", path, NAME_MAX);
	memcpy(name, path + start, len);
	name[len] = 0;
	if (!len || !strcmp(name, "..")) /* "/" has none */
		strcpy(name, ".");
	return 0;
}

int
tar_pack_open(const struct tar_pack_opts *opts, struct tar_pack **ret, struct err *e)
{
	char name[NAME_MAX + 1];
	struct tar_pack *p;
	int r = tar_top_name(opts->path, name, e);

	if (r)
		return r;
	p = calloc(1, sizeof(*p));
	if (p)
		p->source = strdup(opts->path);
	if (!p || !p->source) {
		free(p);
		return err_sys(e, -ENOMEM, "\"%s\"", opts->path);
	}
	p->file = -1;
	p->follow = opts->follow;
	p->leave_fifos = opts->leave_fifos;
	p->path_len = strlen(name);
	memcpy(p->path, name, p->path_len + 1);
	*ret = p;
	return 0;
}

ssize_t
tar_pack_read(struct tar_pack *p, void *buf, size_t cap, struct err *e)
{
	char *out = buf;
	size_t n = 0;

	while (n < cap) {
		if (p->head_at < p->head_len) {
			size_t part = p->head_len - p->head_at;

			if (part > cap - n)
				part = cap - n;
			memcpy(out + n, p->head + p->head_at, part);
			p->head_at += part;
			n += part;
			if (p->head_at == p->head_len)
				p->head_at = p->head_len = 0;
			continue;
		}
		if (p->file >= 0 && p->left) {
			size_t part = cap - n;
			ssize_t got;

			if (part > p->left)
				part = (size_t)p->left;
			got = read(p->file, out + n, part);
			if (got < 0 && errno == EINTR)
				continue;
			if (got < 0)
				return err_sys(e, -errno, "\"%s\"", p->path);
			if (!got)
				return err_set(e, -EIO,
					"\"%s\" shrank while it was copied", p->path);
			n += (size_t)got;
			p->left -= (uint64_t)got;
			p->stats.bytes += (uint64_t)got;
			continue;
		}
		if (p->file >= 0) {
			size_t part = p->padding < cap - n ? p->padding : cap - n;

			memset(out + n, 0, part);
			n += part;
			p->padding -= part;
			if (!p->padding) {
				close(p->file);
				p->file = -1;
			}
			continue;
		}
		if (p->ended)
			break;
		int r = next_member(p, e);
		if (r)
			return r;
	}
	return (ssize_t)n;
}

const struct tar_stats *
tar_pack_stats(const struct tar_pack *p)
{
	return &p->stats;
}

void
tar_pack_close(struct tar_pack *p)
{
	if (!p)
		return;
	while (p->depth) {
		struct level *l = p->levels[--p->depth];

		close(l->fd);
		free(l);
	}
	if (p->file >= 0)
		close(p->file);
	free(p->head);
	free(p->source);
	free(p);
}
