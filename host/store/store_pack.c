#include "host/store/store_pack.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

#define FILES_KEPT_OPEN_MAX 64u /* of all packs of a process */

static pthread_mutex_t fds_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned fds_open; /* atomic */

static void
fds_count(int more)
{
	__atomic_add_fetch(&fds_open, (unsigned)more, __ATOMIC_RELAXED);
}

static void
cleanup_pack_fn(struct pack **p)
{
	if (*p)
		pack_unref(*p);
}
#define cleanup_pack __attribute__((cleanup(cleanup_pack_fn)))

/* The hash's first 64 bits as a number: entries ascend by it. */
static uint64_t
position(const struct store_hash *h)
{
	uint64_t v;

	memcpy(&v, h->b, sizeof(v));
	return be64toh(v);
}

static int
compare(const struct pack_entry *a, const struct store_hash *hash, uint8_t kind)
{
	int r = memcmp(&a->hash, hash, sizeof(*hash));

	return r ? r : (int)a->kind - (int)kind;
}

static int
check_entry(const struct pack_entry *en, const struct pack_entry *before, uint64_t end,
	const char **ret_why)
{
	uint64_t offset = le64toh(en->offset);
	uint32_t stored = le32toh(en->stored);

	if (en->kind != CHUNK_PAGE && en->kind != CHUNK_NODE)
		*ret_why = "a chunk of unknown kind";
	else if (offset < sizeof(struct pack_header) || offset > end ||
		 stored > end - offset)
		*ret_why = "a chunk that lies outside of it";
	else if (en->coding == CODING_RAW ? stored != chunk_len(en->kind)
		 : en->coding == CODING_ZSTD
			 ? stored == 0 || stored >= chunk_len(en->kind)
			 : en->coding != CODING_DELTA || en->kind != CHUNK_NODE ||
				   stored < sizeof(struct node_delta) ||
				   stored >= chunk_len(en->kind))
		*ret_why = "a chunk of impossible length or coding";
	else if (before && compare(before, &en->hash, en->kind) >= 0)
		*ret_why = "an index that is not sorted";
	else if (hash_is_zero(&en->hash))
		*ret_why = "a chunk by the name of zeroes";
	else
		return 0;
	return -EBADMSG;
}

static int
map_index(struct pack *p, int fd, uint64_t size, struct pack_footer *f, const char **why)
{
	struct pack_header h;
	uint64_t start, offset, count;
	int r;

	*why = "it is cut short";
	if (size < sizeof(h) + sizeof(*f))
		return -EBADMSG;
	r = io_pread_full(fd, &h, sizeof(h), 0);
	if (r == 0)
		r = io_pread_full(fd, f, sizeof(*f), size - sizeof(*f));
	if (r < 0)
		return r == -ENODATA ? -EBADMSG : r;
	*why = "it does not begin as a pack does";
	if (memcmp(h.magic, PACK_MAGIC, sizeof(h.magic)) != 0)
		return -EBADMSG;
	*why = "it is of another format version";
	if (le32toh(h.version) != PACK_VERSION)
		return -EBADMSG;
	*why = "it does not end as a pack does: it is cut short, or was written over";
	offset = le64toh(f->index_offset);
	count = le64toh(f->count);
	size -= sizeof(*f);
	if (memcmp(f->magic, PACK_MAGIC, sizeof(f->magic)) != 0 ||
		le32toh(f->version) != PACK_VERSION || offset % PACK_ALIGN != 0 ||
		offset < sizeof(h) || offset > size ||
		(size - offset) % sizeof(struct pack_entry) != 0 ||
		(size - offset) / sizeof(struct pack_entry) != count || count == 0 ||
		count > UINT32_MAX)
		return -EBADMSG;
	start = offset & ~(uint64_t)4095;
	p->map_len = size - start;
	p->map = mmap(NULL, p->map_len, PROT_READ, MAP_PRIVATE, fd, (off_t)start);
	if (p->map == MAP_FAILED) {
		*why = "its index cannot be mapped";
		p->map = NULL;
		return -errno;
	}
	p->index = (const void *)((const uint8_t *)p->map + (offset - start));
	p->count = count;
	return 0;
}

static int
take_index(struct pack *p, const char *name, const struct pack_footer *f,
	uint64_t data_end, const char **why)
{
	struct store_hash hash;
	int r;

	hash_of(HASH_PACK, p->index, p->count * sizeof(*p->index), &hash);
	hash_to_hex(&hash, p->name);
	*why = "its index is damaged";
	if (!hash_equal(&hash, &f->index_hash))
		return -EBADMSG;
	*why = "it is another pack under this name";
	if (name && strcmp(name, p->name) != 0)
		return -EBADMSG;
	*why = "no memory for its index";
	p->bad = calloc((p->count + 63) / 64, sizeof(*p->bad));
	if (!p->bad || bloom_init(&p->bloom, p->count))
		return -ENOMEM;
	for (size_t i = 0; i < p->count; i++) {
		r = check_entry(&p->index[i], i ? &p->index[i - 1] : NULL, data_end, why);
		if (r < 0)
			return r;
		bloom_add(&p->bloom, &p->index[i].hash);
	}
	return 0;
}

int
pack_open_fd(int fd, const char *name, struct pack **ret, struct err *e)
{
	cleanup_pack struct pack *p = calloc(1, sizeof(*p));
	const char *why = "it cannot be read";
	struct pack_footer f;
	struct stat st;
	int r;

	if (!p)
		return err_sys(e, -ENOMEM, "pack %s", name ? name : "");
	p->refs = 1;
	p->fd = -1;
	if (fstat(fd, &st) < 0)
		return err_sys(e, -errno, "pack %s", name ? name : "");
	if (S_ISREG(st.st_mode))
		r = map_index(p, fd, (uint64_t)st.st_size, &f, &why);
	else
		r = -EBADMSG;
	if (r == 0)
		r = take_index(p, name, &f, le64toh(f.index_offset), &why);
	if (r == -EBADMSG)
		return err_set(e, r, "pack %s is damaged: %s", name ? name : "", why);
	if (r < 0)
		return err_sys(e, r, "pack %s: %s", name ? name : "", why);
	p->bytes = (uint64_t)st.st_size;
	p->mtime_ns = st.st_mtim.tv_sec * 1000000000ll + st.st_mtim.tv_nsec;
	p->fd = fd;
	p->fd_users = 2;
	fds_count(1);
	*ret = TAKE_PTR(p);
	return 0;
}

static int
open_file(int folder_fd, const char *name)
{
	char file[STORE_HEX + sizeof(PACK_SUFFIX)];
	int fd;

	snprintf(file, sizeof(file), "%.64s" PACK_SUFFIX, name);
	/* Not blocking: what lies there may be a FIFO. */
	fd = openat(folder_fd, file,
		O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

/*
 * A pack's file, open until pack_fd_put(). At most FILES_KEPT_OPEN_MAX stay open when
 * nobody uses them: a store may have more packs than a process may have files.
 *
 * fd_users is 0 while it is closed, else one more than use it. Who finds it open only
 * counts himself, and waits for nobody; opening and closing are under fds_lock.
 */
static int
pack_fd_get(struct pack *p, int folder_fd)
{
	unsigned users = __atomic_load_n(&p->fd_users, __ATOMIC_RELAXED);
	int fd;

	while (users)
		if (__atomic_compare_exchange_n(&p->fd_users, &users, users + 1, true,
			    __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
			return p->fd;
	pthread_mutex_lock(&fds_lock);
	if (p->fd < 0) {
		fd = open_file(folder_fd, p->name);
		if (fd >= 0) {
			p->fd = fd;
			fds_count(1);
			__atomic_store_n(&p->fd_users, 2, __ATOMIC_RELEASE);
		}
	} else {
		/* Somebody opened it meanwhile; nobody closes it now. */
		fd = p->fd;
		__atomic_add_fetch(&p->fd_users, 1, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&fds_lock);
	return fd;
}

void
pack_fd_put(struct pack *p)
{
	unsigned last = 1;

	if (__atomic_sub_fetch(&p->fd_users, 1, __ATOMIC_RELEASE) > 1 ||
		__atomic_load_n(&fds_open, __ATOMIC_RELAXED) <= FILES_KEPT_OPEN_MAX)
		return;
	pthread_mutex_lock(&fds_lock);
	if (__atomic_compare_exchange_n(&p->fd_users, &last, 0, false, __ATOMIC_ACQUIRE,
		    __ATOMIC_RELAXED)) {
		close(p->fd);
		p->fd = -1;
		fds_count(-1);
	}
	pthread_mutex_unlock(&fds_lock);
}

int
pack_open(int folder_fd, const char *name, struct pack **ret, struct err *e)
{
	cleanup_close int fd = open_file(folder_fd, name);
	int r;

	if (fd == -ELOOP)
		return err_set(
			e, -EBADMSG, "pack %s is damaged: it is a symbolic link", name);
	if (fd < 0)
		return err_sys(e, fd, "pack %s", name);
	r = pack_open_fd(fd, name, ret, e);
	if (r < 0)
		return r;
	fd = -1;
	pack_fd_put(*ret);
	return 0;
}

int
pack_pin(struct pack *p, int folder_fd)
{
	int fd = pack_fd_get(p, folder_fd);

	return fd < 0 ? fd : 0;
}

int
pack_retire(int folder_fd, const char *name, char ret_temp[static PACK_TEMP_MAX])
{
	char file[STORE_HEX + sizeof(PACK_SUFFIX)];

	snprintf(file, sizeof(file), "%.64s" PACK_SUFFIX, name);
	snprintf(ret_temp, PACK_TEMP_MAX, PACK_TEMP "gone.%.32s", name);
	if (renameat(folder_fd, file, folder_fd, ret_temp) < 0 && errno != ENOENT) {
		ret_temp[0] = '\0';
		return -errno;
	}
	return 0;
}

void
pack_unref(struct pack *p)
{
	if (__atomic_sub_fetch(&p->refs, 1, __ATOMIC_ACQ_REL))
		return;
	if (p->fd >= 0) {
		fds_count(-1);
		close(p->fd);
	}
	if (p->map)
		munmap(p->map, p->map_len);
	bloom_done(&p->bloom);
	free(p->bad);
	free(p);
}

static bool
is_bad(const struct pack *p, size_t entry)
{
	return __atomic_load_n(&p->bad[entry / 64], __ATOMIC_RELAXED) >> (entry % 64) & 1;
}

void
pack_mark_bad(struct pack *p, size_t entry)
{
	__atomic_fetch_or(&p->bad[entry / 64], 1ull << (entry % 64), __ATOMIC_RELAXED);
}

size_t
pack_next_bad(const struct pack *p, size_t entry)
{
	for (; entry < p->count; entry++) {
		uint64_t bad = __atomic_load_n(&p->bad[entry / 64], __ATOMIC_RELAXED);

		if (bad >> (entry % 64) & 1)
			return entry;
		if (!bad)
			entry |= 63;
	}
	return p->count;
}

int64_t
pack_find(const struct pack *p, enum chunk_kind kind, const struct store_hash *hash,
	bool any)
{
	size_t lo = 0, hi = p->count, guess, step = 64;

	if (!bloom_has(&p->bloom, hash))
		return -1;
	/* Hashes are spread evenly: the guess is off by some hundred entries at most,
	   which saves the first, far jumps of the search. Any other spread costs time
	   only. */
	guess = (size_t)((unsigned __int128)position(hash) * p->count >> 64);
	if (compare(&p->index[guess], hash, (uint8_t)kind) < 0) {
		lo = guess + 1;
		for (; lo + step < hi; lo += step + 1, step *= 2)
			if (compare(&p->index[lo + step], hash, (uint8_t)kind) >= 0) {
				hi = lo + step + 1;
				break;
			}
	} else {
		hi = guess + 1;
		for (; hi > step; hi -= step - 1, step *= 2)
			if (compare(&p->index[hi - step], hash, (uint8_t)kind) < 0) {
				lo = hi - step + 1;
				break;
			}
	}
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int r = compare(&p->index[mid], hash, (uint8_t)kind);

		if (r == 0)
			return any || !is_bad(p, mid) ? (int64_t)mid : -1;
		if (r < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return -1;
}

int
pack_read(struct pack *p, int folder_fd, size_t entry, uint8_t *buf)
{
	const struct pack_entry *en = &p->index[entry];
	int fd = pack_fd_get(p, folder_fd), r;

	if (fd < 0)
		return fd;
	r = io_pread_full(fd, buf, le32toh(en->stored), le64toh(en->offset));
	pack_fd_put(p);
	return r;
}
