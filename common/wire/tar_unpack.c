/*
 * Unpacking: the stream. Where its members go, tar_place.c knows.
 */
#include "common/wire/tar_unpack_priv.h"

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

/* A size: below 2^62, so that sums of two do not overflow. */
static int
read_decimal(const char *s, size_t len, uint64_t *ret)
{
	uint64_t v = 0;

	for (size_t k = 0; k < len; k++) {
		if (s[k] < '0' || s[k] > '9' || v > 1ull << 58)
			return -EPROTO;
		v = v * 10 + (uint64_t)(s[k] - '0');
	}
	*ret = v;
	return len ? 0 : -EPROTO;
}

static bool
is_key(const char *key, size_t len, const char *name)
{
	return len == strlen(name) && memcmp(key, name, len) == 0;
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
		if (is_key(key, key_len, "size")) {
			if (read_decimal(value, value_len, &u->pax_size))
				return err_set(
					e, -EPROTO, "the stream has a broken size");
			u->has_size = true;
		} else if (is_key(key, key_len, "mtime")) {
			if (read_time(value, value_len, &u->pax_mtime))
				return err_set(
					e, -EPROTO, "the stream has a broken time");
			u->has_mtime = true;
		} else if (key_len > 11 && memcmp(key, "GNU.sparse.", 11) == 0 &&
			   !is_key(key, key_len, "GNU.sparse.name")) {
			uint64_t v;

			if (read_decimal(value, value_len, &v))
				v = UINT_MAX; /* the map of an older format */
			u->is_sparse = true;
			if (is_key(key, key_len, "GNU.sparse.major"))
				u->sparse_major = v < UINT_MAX ? (unsigned)v : UINT_MAX;
			else if (is_key(key, key_len, "GNU.sparse.minor"))
				u->sparse_minor = v < UINT_MAX ? (unsigned)v : UINT_MAX;
			else if (is_key(key, key_len, "GNU.sparse.realsize"))
				u->real_size = v;
		} else if (is_key(key, key_len, "path") ||
			   is_key(key, key_len, "linkpath") ||
			   is_key(key, key_len, "GNU.sparse.name")) {
			char **to = key_len == 4   ? &u->pax_path
				    : key_len == 8 ? &u->pax_link
						   : &u->sparse_path;

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

/* The name at the top is always the same, and the one that was asked for. */
static int
check_top(struct tar_unpack *u, const char *member, struct err *e)
{
	size_t len = strcspn(member, "/");

	if (!u->top) {
		if (!len || len > NAME_MAX || (len == 2 && memcmp(member, "..", 2) == 0))
			return err_set(e, -EPROTO,
				"the stream names \"%s\": not a relative name", member);
		u->top = strndup(member, len);
		if (!u->top)
			return err_sys(e, -ENOMEM, "\"%s\"", u->dest);
	}
	if (len == strlen(u->top) && memcmp(member, u->top, len) == 0)
		return 0;
	if (!u->opts.name)
		return err_set(
			e, -EPROTO, "the stream names \"%s\" outside of its top", member);
	return err_set(e, -EPROTO,
		"the stream has \"%.100s\" where only \"%.100s\" was asked for; nothing of it was written",
		member, u->top);
}

/* Checks a member's name and puts its place beneath base into dst (TAR_PATH_MAX
 * bytes): "" is base itself. */
static int
place(struct tar_unpack *u, const char *name, char *dst, struct err *e)
{
	const char *s = name;
	size_t n = 0;
	int depth = 0, r = check_top(u, name, e);

	if (r == 0 && u->base < 0)
		r = tar_place_settle(u, e);
	if (r < 0)
		return r;
	for (; *s; depth++) {
		size_t len = strcspn(s, "/");
		const char *part = s;
		size_t part_len = len;

		if (!len || (len == 2 && memcmp(s, "..", 2) == 0) ||
			(len == 1 && *s == '.' && depth) || len > NAME_MAX)
			return err_set(e, -EPROTO,
				"the stream names \"%s\": not a name of a file", name);
		if (!depth && u->rename) {
			part = u->rename;
			part_len = strlen(part);
		}
		if (depth || !u->contents) {
			if (n + part_len + 2 > TAR_PATH_MAX)
				return err_set(e, -ENAMETOOLONG,
					"\"%.200s…\": longer than %d bytes", name,
					TAR_PATH_MAX);
			if (n)
				dst[n++] = '/';
			memcpy(dst + n, part, part_len);
			n += part_len;
		}
		s += len;
		while (*s == '/')
			s++;
	}
	if (!depth)
		return err_set(e, -EPROTO, "the stream has a member without a name");
	dst[n] = 0;
	return 0;
}

static int
take_file(struct tar_unpack *u, mode_t mode, struct timespec mtime, uint64_t size,
	struct err *e)
{
	int r;

	if (u->is_sparse && (u->sparse_major != 1 || u->sparse_minor))
		return err_set(e, -EPROTO, "\"%s\": its sparse format %u.%u is not read",
			u->path, u->sparse_major, u->sparse_minor);
	r = tar_place_file(u, mode, mtime, e);
	if (r < 0)
		return r;
	u->sparse = u->is_sparse;
	u->file_at = 0;
	u->left = u->extent_left = size;
	u->padding = (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK;
	if (u->sparse) {
		u->map_read = u->number = u->numbers = 0;
		u->in_number = false;
		u->n_extents = u->next_extent = 0;
		u->extent_left = 0;
		u->state = IN_MAP;
		return size ? 0 : err_set(e, -EPROTO, "\"%s\": a broken map", u->path);
	}
	if (size) {
		u->state = IN_FILE;
		return 0;
	}
	return tar_place_finish_file(u, e);
}

/* One number of a sparse file's map. */
static int
take_number(struct tar_unpack *u, struct err *e)
{
	struct extent *x, *last;

	if (!u->numbers) {
		if (u->number > TAR_EXTENTS_MAX)
			goto broken;
		u->n_extents = (size_t)u->number;
		u->extents = calloc(u->n_extents ? u->n_extents : 1, sizeof(*u->extents));
		if (!u->extents)
			return err_sys(e, -ENOMEM, "unpacking");
	} else {
		x = &u->extents[(u->numbers - 1) / 2];
		last = u->numbers > 2 ? x - 1 : NULL;
		if (u->numbers % 2) {
			x->at = u->number;
			if (last && x->at < last->at + last->len)
				goto broken;
		} else {
			x->len = u->number;
		}
		if (x->at > u->real_size || x->len > u->real_size - x->at)
			goto broken;
	}
	u->numbers++;
	u->number = 0;
	u->in_number = false;
	return 0;
broken:
	return err_set(e, -EPROTO, "\"%s\": a broken map", u->path);
}

/* The map of a sparse file: numbers, each with a LF, then zeroes up to a block's end. */
static int
take_map(
	struct tar_unpack *u, const char *in, size_t len, size_t *ret_used, struct err *e)
{
	uint64_t data = 0;
	size_t i = 0;
	int r = 0;

	while (r == 0 && i < len) {
		bool whole = u->numbers && u->numbers == 2 * u->n_extents + 1;
		char c = in[i];

		if (whole && !(u->map_read % TAR_BLOCK))
			break;
		i++;
		u->map_read++;
		if (whole) {
			r = c ? -EPROTO : 0;
		} else if (c >= '0' && c <= '9' && u->number < 1ull << 58) {
			u->number = u->number * 10 + (uint64_t)(c - '0');
			u->in_number = true;
		} else if (c == '\n' && u->in_number) {
			r = take_number(u, e);
			if (r < 0)
				return r;
		} else {
			r = -EPROTO;
		}
	}
	*ret_used = i;
	u->left -= i;
	if (r == 0 && (!u->numbers || u->numbers != 2 * u->n_extents + 1 ||
			      u->map_read % TAR_BLOCK)) {
		if (u->left)
			return 0; /* there is more of it */
		r = -EPROTO;
	}
	for (size_t k = 0; r == 0 && k < u->n_extents; k++)
		data += u->extents[k].len;
	if (r < 0 || data != u->left)
		return err_set(e, -EPROTO, "\"%s\": a broken map", u->path);
	if (u->left) {
		u->state = IN_FILE;
		return 0;
	}
	u->state = IN_PADDING;
	return tar_place_finish_file(u, e);
}

/* Contents, at most up to the end of the extent: how many are taken, in *ret_used. */
static int
take_contents(
	struct tar_unpack *u, const char *in, size_t len, size_t *ret_used, struct err *e)
{
	int r;

	while (u->sparse && !u->extent_left) {
		u->file_at = u->extents[u->next_extent].at;
		u->extent_left = u->extents[u->next_extent++].len;
	}
	if (len > u->extent_left)
		len = (size_t)u->extent_left;
	r = io_pwrite_full(u->file, in, len, u->file_at);
	if (r < 0)
		return err_sys(e, r, "\"%s\"", u->path);
	u->file_at += len;
	u->extent_left -= len;
	u->left -= len;
	u->stats.bytes += len;
	*ret_used = len;
	if (u->left)
		return 0;
	u->state = IN_PADDING;
	return tar_place_finish_file(u, e);
}

static int
take_member(
	struct tar_unpack *u, const struct tar_header *h, uint64_t size, struct err *e)
{
	char name[sizeof(h->prefix) + sizeof(h->name) + 2], link[sizeof(h->linkname) + 1];
	const char *path = u->is_sparse && u->sparse_path ? u->sparse_path
			   : u->pax_path		  ? u->pax_path
							  : name;
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

	r = place(u, path, u->path, e);
	if (r == 0)
		r = tar_place_leave(u, u->path, e);
	if (r < 0)
		return r;
	switch (h->typeflag) {
	case '0':
	case '\0':
		return take_file(u, (mode_t)mode, mtime, size, e);
	case '1':
		r = place(u, target, u->target, e);
		if (r == 0 && (!*u->path || !*u->target))
			r = err_set(e, -EPROTO, "the stream has a hard link to a folder");
		return r < 0 ? r : tar_place_hard_link(u, e);
	case '5':
		return tar_place_folder(u, (mode_t)mode, mtime, e);
	case '2':
	case '6':
		return tar_place_special(u, h->typeflag, target, (mode_t)mode, mtime, e);
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
	if (memcmp(h.magic, "ustar", 5) != 0 ||
		read_octal(h.chksum, sizeof(h.chksum), &sum) || sum != tar_checksum(&h) ||
		read_octal(h.size, sizeof(h.size), &size))
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
	free(u->sparse_path);
	u->pax_path = u->pax_link = u->sparse_path = NULL;
	u->has_size = u->has_mtime = u->is_sparse = false;
	u->sparse_major = u->sparse_minor = 0;
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
		case IN_MAP:
			part = u->left < len ? (size_t)u->left : len;
			r = take_map(u, in, part, &part, e);
			break;
		case IN_FILE:
			part = u->left < len ? (size_t)u->left : len;
			r = take_contents(u, in, part, &part, e);
			break;
		case IN_PADDING:
			part = u->padding < len ? u->padding : len;
			u->padding -= part;
			break;
		default: /* AT_END: tar pads its last record with zeroes */
			part = len;
			break;
		}
		if (r < 0)
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
	int r;

	if (u->state != AT_END)
		return err_set(e, -EPIPE, "the stream ended before its end");
	r = tar_place_leave(u, NULL, e);

	return r < 0 ? r : tar_place_steps(u, e);
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
	tar_place_done(u);
	free(u->dest);
	free(u->rename);
	free(u->top);
	free(u->pax);
	free(u->pax_path);
	free(u->pax_link);
	free(u->sparse_path);
	free(u);
}
