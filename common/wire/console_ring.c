#include "common/wire/console_ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"

int
console_open(struct console *c, int fd, struct err *e)
{
	struct stat st;
	uint8_t *p;

	/* Even a size that does not change costs a file system a transaction. */
	if ((fstat(fd, &st) < 0 || st.st_size != CONSOLE_FILE_BYTES) &&
		ftruncate(fd, CONSOLE_FILE_BYTES) < 0)
		return err_sys(e, -errno, "sizing the console file to %u bytes",
			CONSOLE_FILE_BYTES);
	p = mmap(NULL, CONSOLE_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return err_sys(e, -errno, "mapping the console file");
	madvise(p, CONSOLE_FILE_BYTES, MADV_DONTFORK);

	c->hdr = (struct console_hdr *)(void *)p;
	c->ring = p + CONSOLE_HDR_BYTES;
	c->begun = false;
	return 0;
}

/* The first touch of a file's page costs a quarter of a millisecond: those who print pay
 * it. */
static void
begin(struct console *c)
{
	memcpy(c->hdr->magic, CONSOLE_MAGIC, sizeof(c->hdr->magic));
	c->hdr->version = CONSOLE_VERSION;
	c->hdr->ring_bytes = CONSOLE_RING_BYTES;
	atomic_store(&c->hdr->written, 0);
	c->begun = true;
}

void
console_write(struct console *c, const void *buf, size_t len)
{
	const uint8_t *src = buf;
	uint64_t at;

	if (!c->hdr)
		return;
	if (!c->begun)
		begin(c);
	at = atomic_load_explicit(&c->hdr->written, memory_order_relaxed);
	while (len > 0) {
		size_t pos = at % CONSOLE_RING_BYTES;
		size_t n = CONSOLE_RING_BYTES - pos;

		if (n > len)
			n = len;
		memcpy(c->ring + pos, src, n);
		src += n;
		len -= n;
		at += n;
	}
	atomic_store_explicit(&c->hdr->written, at, memory_order_release);
}

bool
console_find(
	const struct console *c, const char *text, size_t within, char *dst, size_t cap)
{
	static char newest[CONSOLE_SEARCH_MAX + 1];
	const char *at, *end;
	uint64_t written;
	size_t n;

	if (!c->hdr || !c->begun)
		return false;
	written = atomic_load(&c->hdr->written);
	n = written < within ? (size_t)written : within;
	if (n > CONSOLE_SEARCH_MAX)
		n = CONSOLE_SEARCH_MAX;
	for (size_t i = 0; i < n; i++) {
		newest[i] = (char)c->ring[(written - n + i) % CONSOLE_RING_BYTES];
		if (!newest[i])
			newest[i] = ' ';
	}
	newest[n] = '\0';
	for (at = newest; (at = strstr(at, text)); at++) {
		if (at != newest && at[-1] != '\n' &&
			!(at - newest >= 2 && at[-1] == ' ' && at[-2] == ']'))
			continue;
		end = at + strcspn(at, "\r\n");
		log_escape(dst, cap, at, (size_t)(end - at));
		return true;
	}
	return false;
}

void
console_forget(struct console *c)
{
	c->hdr = NULL;
	c->ring = NULL;
}
