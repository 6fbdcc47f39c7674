#include "host/cli/logs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "common/wire/console_ring.h"

int
logs_open(const char *path, bool ring, struct logs_source *ret, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0)
		return err_sys(e, -errno, "%s", path);
	ret->fd = fd;
	ret->ring = ring;
	return 0;
}

void
logs_close(struct logs_source *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

/* Bytes ever written: the end of the stream. An empty ring file is one that no VMM has
 * opened yet. */
static int
stream_end(struct logs_source *s, uint64_t *ret, struct err *e)
{
	struct console_hdr hdr;
	struct stat st;
	int r;

	if (fstat(s->fd, &st) < 0)
		return err_sys(e, -errno, "log");
	*ret = (uint64_t)st.st_size;
	if (!s->ring || st.st_size == 0)
		return 0;
	r = io_pread_full(s->fd, &hdr, sizeof(hdr), 0);
	/* The VMM sizes the file before it writes the magic. */
	static const char none[sizeof(hdr.magic)];
	if (r == 0 && memcmp(hdr.magic, none, sizeof(none)) == 0) {
		*ret = 0;
		return 0;
	}
	if (r < 0 || memcmp(hdr.magic, CONSOLE_MAGIC, sizeof(hdr.magic)) != 0 ||
		hdr.version != CONSOLE_VERSION || hdr.ring_bytes != CONSOLE_RING_BYTES ||
		st.st_size < (off_t)CONSOLE_FILE_BYTES)
		return err_set(
			e, -EBADMSG, "the console file is damaged or of another version");
	*ret = atomic_load(&hdr.written);
	return 0;
}

static uint64_t
oldest(const struct logs_source *s, uint64_t end)
{
	return s->ring && end > CONSOLE_RING_BYTES ? end - CONSOLE_RING_BYTES : 0;
}

static int
read_at(struct logs_source *s, uint64_t at, char *buf, size_t len)
{
	uint64_t in_ring = at % CONSOLE_RING_BYTES;
	size_t first = len;
	int r;

	if (!s->ring)
		return io_pread_full(s->fd, buf, len, at);
	if (first > CONSOLE_RING_BYTES - in_ring)
		first = CONSOLE_RING_BYTES - in_ring;
	r = io_pread_full(s->fd, buf, first, CONSOLE_HDR_BYTES + in_ring);
	if (r == 0 && first < len)
		r = io_pread_full(s->fd, buf + first, len - first, CONSOLE_HDR_BYTES);
	return r;
}

ssize_t
logs_read(struct logs_source *s, uint64_t *at, char *buf, size_t cap, uint64_t *ret_lost,
	struct err *e)
{
	uint64_t end, from, start = *at;
	size_t len;
	int r = stream_end(s, &end, e);

	*ret_lost = 0;
	if (r < 0)
		return r;
	if (start > end) /* another VM's file, or one that was emptied */
		start = end;
	if (start < oldest(s, end))
		start = oldest(s, end);
	len = end - start < cap ? (size_t)(end - start) : cap;
	if (len == 0)
		return 0;
	r = read_at(s, start, buf, len);
	if (r < 0)
		return err_sys(e, r, "log");
	r = stream_end(s, &end, e);
	if (r < 0)
		return r;
	from = oldest(s, end);
	if (from > start) { /* overwritten while we read */
		size_t gone = from - start < len ? (size_t)(from - start) : len;

		memmove(buf, buf + gone, len - gone);
		len -= gone;
		start += gone;
	}
	/* From the very beginning, what a full ring has dropped is no surprise. */
	*ret_lost = *at && start > *at ? start - *at : 0;
	*at = start + len;
	return (ssize_t)len;
}

int
logs_tail(struct logs_source *s, uint64_t lines, uint64_t *ret_at, struct err *e)
{
	cleanup_free char *buf = malloc(LOGS_CHUNK);
	uint64_t end, at, seen = 0;
	int r = stream_end(s, &end, e);

	if (r < 0)
		return r;
	if (!buf)
		return err_sys(e, -ENOMEM, "log");
	at = end;
	while (at > oldest(s, end)) {
		uint64_t from = at - oldest(s, end) > LOGS_CHUNK ? at - LOGS_CHUNK
								 : oldest(s, end);
		size_t len = (size_t)(at - from);

		r = read_at(s, from, buf, len);
		if (r < 0)
			return err_sys(e, r, "log");
		for (size_t i = len; i > 0; i--) {
			bool last_of_all =
				from + i == end; /* ends the last line, begins none */

			if (buf[i - 1] == '\n' && !last_of_all && ++seen == lines) {
				*ret_at = from + i;
				return 0;
			}
		}
		at = from;
	}
	*ret_at = lines ? at : end;
	return 0;
}

void
logs_put_plain(struct logs_plain *p, FILE *f, const char *buf, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char byte = (unsigned char)buf[i];
		bool c1 = p->c2 && byte >= 0x80 && byte <= 0x9f;

		if (p->c2 && !c1)
			fputc(0xc2, f);
		p->c2 = byte == 0xc2;
		if (c1 || (byte < 0x20 && byte != '\n' && byte != '\t' && byte != '\r') ||
			byte == 0x7f)
			fprintf(f, "\\x%02x", byte);
		else if (byte != '\r' && !p->c2)
			fputc(byte, f);
	}
}
