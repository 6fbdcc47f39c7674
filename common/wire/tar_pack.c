/*
 * Packing: a stack of open folders, one for each level, and one member under way. The
 * stack is what tar_pack_read() resumes from.
 */
#include "common/wire/tar.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/openat2.h>
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

/* A file with further names, of which some are still to come. */
struct shared {
	struct shared *next;
	dev_t dev;
	ino_t ino;
	struct timespec mtime; /* with the size: an inode number may be used again */
	off_t size;
	nlink_t names_left;
	char path[]; /* of its member */
};
#define SHARED_BUCKETS 4096
/* Of their paths; files beyond are packed once for each name. */
#define SHARED_BYTES_MAX (64u << 20)

/* Data of a sparse file. */
struct extent {
	uint64_t at, len;
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
	int file;		/* owned: the regular file under way, -1 */
	uint64_t at;		/* of the extent under way, in the file */
	uint64_t left;		/* of it */
	size_t padding;		/* zero bytes after the contents */
	struct extent *extents; /* owned; of a sparse file, else NULL */
	size_t n_extents, next_extent;

	struct shared *
		*shared; /* owned: SHARED_BUCKETS lists, NULL until one is needed */
	size_t shared_bytes;
	char shared_path[TAR_PATH_MAX];
	int given; /* owned: tar_pack_opts.fd; -1 */
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

	if (r < 0)
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

/* The map of a sparse file, as GNU tar's format 1.0 has it before the data: the number of
 * extents, then offset and length of each, in lines. NULL: no memory. */
static char *
sparse_map(const struct tar_pack *p, size_t *ret_len)
{
	/* A number has at most 20 digits. */
	char *map = malloc((2 * p->n_extents + 1) * 21 + TAR_BLOCK), *to = map;
	size_t len;

	if (!map)
		return NULL;
	to += sprintf(to, "%zu\n", p->n_extents);
	for (size_t i = 0; i < p->n_extents; i++)
		to += sprintf(to, "%llu\n%llu\n", (unsigned long long)p->extents[i].at,
			(unsigned long long)p->extents[i].len);
	len = (size_t)(to - map);
	*ret_len = (len + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
	memset(to, 0, *ret_len - len);
	return map;
}

static int
put_member(struct tar_pack *p, char type, const struct stat *st, const char *link,
	size_t link_len, struct err *e)
{
	char mtime[48], size[24], real[24], *at;
	size_t pax = 0, name_len = p->path_len, mtime_len = 0, size_len = 0, real_len = 0;
	uint64_t bytes = type == '0' ? (uint64_t)st->st_size : 0;
	cleanup_free char *map = NULL;
	size_t map_len = 0;
	int r;

	if (type == '0' && p->extents) {
		map = sparse_map(p, &map_len);
		if (!map)
			return err_sys(e, -ENOMEM, "packing \"%.200s\"", p->path);
		real_len = (size_t)snprintf(
			real, sizeof(real), "%llu", (unsigned long long)bytes);
		bytes = map_len;
		for (size_t i = 0; i < p->n_extents; i++)
			bytes += p->extents[i].len;
		pax += pax_record_len("GNU.sparse.major", 1) +
		       pax_record_len("GNU.sparse.minor", 1) +
		       pax_record_len("GNU.sparse.name", name_len) +
		       pax_record_len("GNU.sparse.realsize", real_len);
	}

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
		if (r == 0)
			r = head_room(
				p, (pax + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK, &at, e);
		if (r < 0)
			return r;
		if (mtime_len)
			at = pax_record(at, "mtime", mtime, mtime_len);
		if (size_len)
			at = pax_record(at, "size", size, size_len);
		if (name_len > 100)
			at = pax_record(at, "path", p->path, name_len);
		if (link_len > 100)
			at = pax_record(at, "linkpath", link, link_len);
		if (map) {
			at = pax_record(at, "GNU.sparse.major", "1", 1);
			at = pax_record(at, "GNU.sparse.minor", "0", 1);
			at = pax_record(at, "GNU.sparse.name", p->path, name_len);
			pax_record(at, "GNU.sparse.realsize", real, real_len);
		}
	}
	r = put_block(p, type, p->path, name_len, link, link_len, st->st_mode, bytes,
		st->st_mtim.tv_sec, e);
	if (r == 0 && map)
		r = head_room(p, map_len, &at, e);
	if (r == 0 && map)
		memcpy(at, map, map_len);
	return r;
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

/*
 * Files with several names.
 */

static struct shared **
shared_find(struct tar_pack *p, const struct stat *st)
{
	struct shared **at = &p->shared[(st->st_ino ^ st->st_dev) % SHARED_BUCKETS];

	while (*at && ((*at)->ino != st->st_ino || (*at)->dev != st->st_dev))
		at = &(*at)->next;
	return at;
}

/* Whether the file has been packed under another name: its path, in *ret. Else it is
 * noted as that. The path is good until the next call. */
static bool
shared_seen(struct tar_pack *p, const struct stat *st, const char **ret)
{
	struct shared **at, *s;

	if (!p->shared)
		p->shared = calloc(SHARED_BUCKETS, sizeof(*p->shared));
	if (!p->shared)
		return false;
	at = shared_find(p, st);
	s = *at;
	if (s && (s->size != st->st_size || s->mtime.tv_sec != st->st_mtim.tv_sec ||
			 s->mtime.tv_nsec != st->st_mtim.tv_nsec))
		return false; /* it was written to since, or is another file */
	if (s) {
		memcpy(p->shared_path, s->path, strlen(s->path) + 1);
		*ret = p->shared_path;
		if (!--s->names_left) {
			p->shared_bytes -= sizeof(*s) + strlen(s->path) + 1;
			*at = s->next;
			free(s);
		}
		return true;
	}
	if (p->shared_bytes + sizeof(*s) + p->path_len + 1 > SHARED_BYTES_MAX)
		return false;
	s = malloc(sizeof(*s) + p->path_len + 1);
	if (!s)
		return false;
	*s = (struct shared){.dev = st->st_dev,
		.ino = st->st_ino,
		.mtime = st->st_mtim,
		.size = st->st_size,
		.names_left = st->st_nlink - 1};
	memcpy(s->path, p->path, p->path_len + 1);
	p->shared_bytes += sizeof(*s) + p->path_len + 1;
	*at = s;
	return false;
}

/*
 * Sparse files.
 */

/* p->extents, where the file has holes. What the file system does not say is data. */
static int
find_extents(struct tar_pack *p, int fd, const struct stat *st, struct err *e)
{
	off_t at = 0, data, hole;
	size_t cap = 0;

	p->n_extents = p->next_extent = 0;
	if (!st->st_size || st->st_blocks >= (st->st_size + 511) / 512)
		return 0;
	while (at < st->st_size) {
		data = lseek(fd, at, SEEK_DATA);
		if (data < 0 && errno != ENXIO)
			break;
		if (data < 0 || data >= st->st_size)
			data = hole =
				st->st_size; /* a hole at the end: an empty extent */
		else if ((hole = lseek(fd, data, SEEK_HOLE)) < 0 || hole > st->st_size ||
			 p->n_extents == TAR_EXTENTS_MAX - 1)
			hole = st->st_size;
		if (!data && hole == st->st_size)
			break; /* no hole */
		if (p->n_extents == cap) {
			struct extent *bigger;

			cap = cap ? 2 * cap : 16;
			bigger = reallocarray(p->extents, cap, sizeof(*bigger));
			if (!bigger)
				return err_sys(e, -ENOMEM, "packing \"%.200s\"", p->path);
			p->extents = bigger;
		}
		p->extents[p->n_extents++] =
			(struct extent){(uint64_t)data, (uint64_t)(hole - data)};
		at = hole;
	}
	if (at < st->st_size) {
		free(p->extents);
		p->extents = NULL;
	}
	return 0;
}

static void
end_file(struct tar_pack *p)
{
	close(p->file);
	p->file = -1;
	free(p->extents);
	p->extents = NULL;
}

/* The member p->path is the regular file fd, which is taken over. */
static int
start_file(struct tar_pack *p, int *fd, const struct stat *st, struct err *e)
{
	uint64_t bytes = 0;
	const char *first;
	int r;

	if (st->st_nlink > 1 && shared_seen(p, st, &first)) {
		p->stats.links++;
		return put_member(p, '1', st, first, strlen(first), e);
	}
	r = find_extents(p, *fd, st, e);
	if (r == 0)
		r = put_member(p, '0', st, "", 0, e);
	if (r < 0)
		return r;
	p->file = TAKE_FD(*fd);
	p->at = 0;
	p->left = p->extents ? 0 : (uint64_t)st->st_size;
	for (size_t i = 0; p->extents && i < p->n_extents; i++)
		bytes += p->extents[i].len;
	if (!p->extents)
		bytes = p->left;
	p->padding = (TAR_BLOCK - bytes % TAR_BLOCK) % TAR_BLOCK;
	p->stats.files++;
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
		__attribute__((fallthrough));
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
		if (r == 0)
			r = push_level(p, fd, e);
		if (r < 0)
			return r;
		TAKE_FD(fd);
		if (strcmp(p->path, ".") != 0)
			p->stats.folders++;
		return 0;
	}
	if (!st.st_blocks && !fstatfs(fd, &fs) &&
		(fs.f_type == PROC_SUPER_MAGIC || fs.f_type == SYSFS_MAGIC))
		return err_set(e, -EINVAL,
			"\"%s\": files of /proc and /sys have no size of their own; read it with cat",
			p->path);
	return start_file(p, &fd, &st, e);
}

/* The one member is a file of that name with the contents of the given one. */
static int
start_given(struct tar_pack *p, struct err *e)
{
	struct stat st, named;

	if (fstat(p->given, &st))
		return err_sys(e, -errno, "\"%s\"", p->source);
	if (!stat(p->source, &named))
		st.st_mode = (named.st_mode & 0777) | S_IFREG;
	st.st_nlink = 1;
	return start_file(p, &p->given, &st, e);
}

/* Queues the next member, or the end of the stream. */
static int
next_member(struct tar_pack *p, struct err *e)
{
	if (!p->started) {
		size_t len = strlen(p->source);

		p->started = true;
		if (p->given >= 0)
			return start_given(p, e);
		return start_member(p, AT_FDCWD, p->source,
			p->follow || strcmp(p->path, ".") == 0 ||
				p->source[len - 1] == '/',
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
		if (strcmp(d->name, ".") == 0 || strcmp(d->name, "..") == 0)
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

bool
tar_is_open_elsewhere(const char *path)
{
	struct open_how how = {
		.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
	long fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));

	if (fd >= 0)
		close((int)fd);
	return fd < 0 && errno == ELOOP;
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
	if (!len || strcmp(name, "..") == 0) /* "/" has none */
		strcpy(name, ".");
	return 0;
}

int
tar_pack_open(const struct tar_pack_opts *opts, struct tar_pack **ret, struct err *e)
{
	char name[NAME_MAX + 1];
	struct tar_pack *p;
	int r = tar_top_name(opts->path, name, e);

	if (r < 0) {
		if (opts->has_fd)
			close(opts->fd);
		return r;
	}
	p = calloc(1, sizeof(*p));
	if (p)
		p->source = strdup(opts->path);
	if (!p || !p->source) {
		free(p);
		if (opts->has_fd)
			close(opts->fd);
		return err_sys(e, -ENOMEM, "\"%s\"", opts->path);
	}
	p->file = -1;
	p->given = opts->has_fd ? opts->fd : -1;
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
			got = pread(p->file, out + n, part, (off_t)p->at);
			if (got < 0 && errno == EINTR)
				continue;
			if (got < 0)
				return err_sys(e, -errno, "\"%s\"", p->path);
			if (!got)
				return err_set(e, -EIO,
					"\"%s\" shrank while it was copied", p->path);
			n += (size_t)got;
			p->at += (uint64_t)got;
			p->left -= (uint64_t)got;
			p->stats.bytes += (uint64_t)got;
			continue;
		}
		if (p->file >= 0 && p->extents && p->next_extent < p->n_extents) {
			p->at = p->extents[p->next_extent].at;
			p->left = p->extents[p->next_extent++].len;
			continue;
		}
		if (p->file >= 0) {
			size_t part = p->padding < cap - n ? p->padding : cap - n;

			memset(out + n, 0, part);
			n += part;
			p->padding -= part;
			if (!p->padding)
				end_file(p);
			continue;
		}
		if (p->ended)
			break;
		int r = next_member(p, e);
		if (r < 0)
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
		end_file(p);
	free(p->extents);
	if (p->given >= 0)
		close(p->given);
	for (size_t i = 0; p->shared && i < SHARED_BUCKETS; i++) {
		while (p->shared[i]) {
			struct shared *next = p->shared[i]->next;

			free(p->shared[i]);
			p->shared[i] = next;
		}
	}
	free(p->shared);
	free(p->head);
	free(p->source);
	free(p);
}
