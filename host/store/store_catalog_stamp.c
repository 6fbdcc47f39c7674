/*
 * <store>/catalog.stamp: that the catalogue was closed when it said what the folders say.
 * It names the database's file and the folders' mtimes as they were then, so that opening
 * need not compare a hundred thousand names when nobody has been at any of them since.
 *
 * It is one line of text and that line's hash, and is removed when it is read: after a
 * kill there is none. A power cut may bring it back, but then what was done after its
 * removal is gone as well, or has left its mtimes.
 */
#include "host/store/store_catalog_priv.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/cleanup.h"

#define STAMP_FILE "catalog.stamp"
#define STAMP_MAX 512u
/* Two changes of a folder within a tick of the clock have one mtime. */
#define TICK_NS 20000000

/* false: there is no such file. */
static bool
stamp_of(struct store *s, const struct catalog *c, const int64_t mtime_ns[static 2],
	char ret[static STAMP_MAX])
{
	struct store_hash hash;
	struct row_file db;
	char hex[STORE_ID_MAX];
	int n;

	if (catalog_file_stat(s->root_fd, CATALOG_FILE, &db) < 0)
		return false;
	n = snprintf(ret, STAMP_MAX, "1 %llu %llu %lld %lld %lld %llu %llu %llu %llu %llu\n",
		(unsigned long long)db.inode, (unsigned long long)db.bytes,
		(long long)db.ctime_ns, (long long)mtime_ns[0], (long long)mtime_ns[1],
		(unsigned long long)c->n[ROW_HELD], (unsigned long long)c->n[ROW_DAMAGED],
		(unsigned long long)c->n[ROW_PRUNED], (unsigned long long)c->bytes,
		(unsigned long long)c->newest_seq);
	hash_of(HASH_PLAIN, ret, (size_t)n, &hash);
	hash_to_hex(&hash, hex);
	snprintf(ret + n, STAMP_MAX - (size_t)n, "%s\n", hex);
	return true;
}

/* What only the stamp says. */
static bool
counts_of(const char *text, struct catalog *c)
{
	unsigned long long n[ROW_STATES], bytes, seq;

	if (sscanf(text, "1 %*u %*u %*d %*d %*d %llu %llu %llu %llu %llu\n", &n[ROW_HELD],
		    &n[ROW_DAMAGED], &n[ROW_PRUNED], &bytes, &seq) != 5)
		return false;
	for (unsigned i = 0; i < ROW_STATES; i++)
		c->n[i] = n[i];
	c->bytes = bytes;
	c->newest_seq = seq;
	return true;
}

bool
catalog_stamp_take(struct store *s, struct catalog *c)
{
	cleanup_free char *text = NULL;
	struct catalog counts = {0};
	char is[STAMP_MAX];
	size_t len;

	catalog_mtimes(s, c->mtime_ns);
	if (store_read_at(s->root_fd, STAMP_FILE, STAMP_MAX, &text, &len) < 0) {
		unlinkat(s->root_fd, STAMP_FILE, 0); /* it may be anything */
		return false;
	}
	if (unlinkat(s->root_fd, STAMP_FILE, 0) < 0 || !counts_of(text, &counts) ||
		!stamp_of(s, &counts, c->mtime_ns, is) || strcmp(text, is) != 0)
		return false;
	counts_of(text, c);
	return true;
}

/* Somebody may change it once more with the same time. */
static bool
is_new(int64_t ns)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - ns < TICK_NS;
}

void
catalog_stamp_leave(struct store *s, const struct catalog *c)
{
	const struct timespec tick = {0, TICK_NS};
	char text[STAMP_MAX];
	cleanup_close int fd = -1;
	int64_t mtime_ns[2];
	struct row_file db;

	if (is_new(c->mtime_ns[0]) || is_new(c->mtime_ns[1]) ||
		catalog_file_stat(s->root_fd, CATALOG_FILE, &db) < 0)
		return;
	if (is_new(db.ctime_ns))
		nanosleep(&tick, NULL);
	catalog_mtimes(s, mtime_ns);
	if (memcmp(mtime_ns, c->mtime_ns, sizeof(mtime_ns)) != 0 ||
		faccessat(s->root_fd, CATALOG_FILE "-wal", F_OK, AT_SYMLINK_NOFOLLOW) == 0 ||
		!stamp_of(s, c, mtime_ns, text))
		return;
	fd = openat(s->root_fd, STAMP_FILE,
		O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	/* Half of one is none. */
	if (fd >= 0 && write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		unlinkat(s->root_fd, STAMP_FILE, 0);
}
