#include "tests/unit/tar_help.h"

#include <stdio.h>
#include <string.h>

#include "common/wire/tar_format.h"

void
stream_add(
	struct stream *s, char type, const char *name, const char *link, const char *data)
{
	struct tar_header h = {.typeflag = type, .magic = "ustar", .version = {'0', '0'}};
	size_t len = data ? strlen(data) : 0;

	strncpy(h.name, name, sizeof(h.name) - 1);
	if (link)
		strncpy(h.linkname, link, sizeof(h.linkname) - 1);
	snprintf(h.mode, sizeof(h.mode), "%07o", 06755);
	snprintf(h.size, sizeof(h.size), "%011o", (unsigned)len);
	snprintf(h.mtime, sizeof(h.mtime), "%011o", 1000000000);
	snprintf(h.chksum, sizeof(h.chksum), "%06o", tar_checksum(&h));
	h.chksum[7] = ' ';
	memcpy(s->buf + s->len, &h, sizeof(h));
	s->len += sizeof(h);
	if (len)
		memcpy(s->buf + s->len, data, len);
	s->len += (len + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
}

void
stream_end(struct stream *s)
{
	memset(s->buf + s->len, 0, 2 * TAR_BLOCK);
	s->len += 2 * TAR_BLOCK;
}
