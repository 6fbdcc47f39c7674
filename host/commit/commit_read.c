#include "host/commit/commit_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"

/* Pages that are given to the store at once, and pieces that they are read from. */
#define BATCH_PAGES 1024u
#define BATCH_PIECES 1024u
/* Entries of pagemap at once: 16 MiB of memory. */
#define MAP_ENTRIES 4096u

/* Documentation/admin-guide/mm/pagemap.rst */
#define PM_PRESENT (1ull << 63)
#define PM_SWAPPED (1ull << 62)
#define PM_FILE (1ull << 61)

struct memory_reader {
	struct store_tree_writer *tree; /* borrowed */
	pid_t pid;
	/* Owned: /proc/<pid>/mem. process_vm_readv() pins pages, for which the kernel first
	 * gives the frozen fork a copy of each that it shares: twice the time, and as much
	 * memory again as is read. */
	int mem;
	bool on_image;
	uint8_t *buf;  /* owned */
	uint64_t *map; /* owned */
	/* The batch: pieces of the process's memory, each a run of pages of the tree. */
	struct iovec from[BATCH_PIECES];
	uint64_t first[BATCH_PIECES];
	unsigned n_pieces;
	uint64_t n_pages;
	uint64_t read_bytes;
};

static int
flush(struct memory_reader *m, struct err *e)
{
	uint8_t *at = m->buf;
	int r = 0;

	for (unsigned i = 0; i < m->n_pieces; i++) {
		const struct iovec *from = &m->from[i];

		r = io_pread_full(m->mem, at, from->iov_len, (uintptr_t)from->iov_base);
		if (r < 0)
			return err_sys(e, r == -ENODATA ? -ESRCH : r,
				"reading the memory of the frozen fork, process %d",
				(int)m->pid);
		at += from->iov_len;
	}
	at = m->buf;
	for (unsigned i = 0; i < m->n_pieces && r == 0; i++) {
		r = store_tree_put(
			m->tree, m->first[i], at, m->from[i].iov_len / STORE_PAGE, e);
		at += m->from[i].iov_len;
	}
	m->read_bytes += m->n_pages * STORE_PAGE;
	m->n_pieces = 0;
	m->n_pages = 0;
	return r;
}

static int
add_page(struct memory_reader *m, uint64_t host, uint64_t page, struct err *e)
{
	struct iovec *last = m->n_pieces ? &m->from[m->n_pieces - 1] : NULL;
	int r;

	if (last && (uintptr_t)last->iov_base + last->iov_len == host &&
		m->first[m->n_pieces - 1] + last->iov_len / STORE_PAGE == page &&
		m->n_pages < BATCH_PAGES) {
		last->iov_len += STORE_PAGE;
		m->n_pages++;
		return 0;
	}
	if (m->n_pieces == BATCH_PIECES || m->n_pages == BATCH_PAGES) {
		r = flush(m, e);
		if (r < 0)
			return r;
	}
	m->from[m->n_pieces] = (struct iovec){(void *)(uintptr_t)host, STORE_PAGE};
	m->first[m->n_pieces++] = page;
	m->n_pages++;
	return 0;
}

/* Whether the page may differ from what the tree has without it. */
static bool
is_wanted(const struct memory_reader *m, uint64_t entry)
{
	if (!(entry & (PM_PRESENT | PM_SWAPPED)))
		return false;
	return !(m->on_image && (entry & PM_FILE));
}

static int
read_range(struct memory_reader *m, int pagemap, const struct vmm_mem_range *range,
	uint64_t first_page, struct err *e)
{
	uint64_t pages = range->len / STORE_PAGE;
	int r;

	for (uint64_t done = 0; done < pages; done += MAP_ENTRIES) {
		uint64_t n = pages - done < MAP_ENTRIES ? pages - done : MAP_ENTRIES;
		uint64_t host = range->host + done * STORE_PAGE;

		r = io_pread_full(pagemap, m->map, n * sizeof(*m->map),
			host / STORE_PAGE * sizeof(*m->map));
		if (r < 0)
			return err_sys(e, r == -ENODATA ? -ESRCH : r,
				"the page map of the frozen fork, process %d",
				(int)m->pid);
		for (uint64_t i = 0; i < n; i++) {
			if (!is_wanted(m, m->map[i]))
				continue;
			r = add_page(m, host + i * STORE_PAGE, first_page + done + i, e);
			if (r < 0)
				return r;
		}
	}
	return flush(m, e);
}

static void
memory_reader_free(struct memory_reader **m)
{
	if (!*m)
		return;
	cleanup_close_fn(&(*m)->mem);
	free((*m)->buf);
	free((*m)->map);
	free(*m);
}

#define cleanup_memory_reader __attribute__((cleanup(memory_reader_free)))

static int
open_of(pid_t pid, const char *file, int *ret, struct err *e)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	*ret = open(path, O_RDONLY | O_CLOEXEC);
	return *ret < 0 ? err_sys(e, errno == ENOENT ? -ESRCH : -errno, "%s", path) : 0;
}

static int
memory_reader_make(pid_t pid, const struct vmm_state_answer *a, struct memory_reader **ret,
	int *ret_pagemap, struct err *e)
{
	cleanup_memory_reader struct memory_reader *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return err_set(e, -ENOMEM, "out of memory");
	m->mem = -1;
	if (!(m->buf = malloc(BATCH_PAGES * STORE_PAGE)) ||
		!(m->map = malloc(MAP_ENTRIES * sizeof(*m->map))))
		return err_set(e, -ENOMEM, "out of memory");
	m->pid = pid;
	m->on_image = a->flags & VMM_STATE_ON_IMAGE;
	if ((r = open_of(pid, "mem", &m->mem, e)) < 0 ||
		(r = open_of(pid, "pagemap", ret_pagemap, e)) < 0)
		return r;
	*ret = TAKE_PTR(m);
	return 0;
}

int
commit_read_memory(struct store_writer *w, pid_t pid, const struct vmm_state_answer *a,
	const struct store_tree *image, struct store_tree *ret, uint64_t *ret_read,
	struct err *e)
{
	cleanup_memory_reader struct memory_reader *m = NULL;
	cleanup_close int pagemap = -1;
	uint64_t page = 0;
	int r = memory_reader_make(pid, a, &m, &pagemap, e);

	if (r < 0)
		return r;
	if (m->on_image && (!image || image->length != a->mem_mib << 20))
		return err_set(e, -EPROTO,
			"the VMM says that its memory lies on a commit's, and it does not");
	r = store_tree_begin(
		w, m->on_image ? image : NULL, a->mem_mib << 20, &m->tree, e);
	for (uint32_t i = 0; r == 0 && i < a->n_ranges; i++) {
		r = read_range(m, pagemap, &a->ranges[i], page, e);
		page += a->ranges[i].len / STORE_PAGE;
	}
	if (r == 0)
		r = store_tree_finish(m->tree, ret, e);
	*ret_read = m->read_bytes;
	return r;
}

/* What one look at the bitmaps is about: a page table's worth. */
#define WINDOW 512u
/* So few pages are read sooner than looked up. */
#define FEW 16u

struct changed_reader {
	struct memory_reader *m;	  /* borrowed */
	const struct commit_since *since; /* borrowed */
	int pagemap;			  /* borrowed */
};

static bool
has_bit(const uint8_t *bitmap, uint64_t page)
{
	return bitmap[page / 8] >> page % 8 & 1;
}

/* Pages [page, page + n) of the tree, the first of which lies at host. One that was not given
 * back and is not private in the frozen fork is what it was in the earlier commit: reading it
 * would do no harm. */
static int
read_window(const struct changed_reader *c, uint64_t page, uint64_t n, uint64_t host,
	struct err *e)
{
	const struct commit_since *s = c->since;
	struct memory_reader *m = c->m;
	uint64_t from = n, to = 0, count = 0;
	bool look;
	int r;

	for (uint64_t i = 0; i < n; i++) {
		if (!has_bit(s->changed, page + i) && !has_bit(s->given_back, page + i))
			continue;
		from = from < i ? from : i;
		to = i + 1;
		count++;
	}
	if (!count)
		return 0;
	look = m->on_image || count > FEW;
	r = !look ? 0
		  : io_pread_full(c->pagemap, m->map, (to - from) * sizeof(*m->map),
			    (host / STORE_PAGE + from) * sizeof(*m->map));
	if (r < 0)
		return err_sys(e, r == -ENODATA ? -ESRCH : r,
			"the page map of the frozen fork, process %d", (int)m->pid);
	for (uint64_t i = from; i < to && r == 0; i++)
		if (has_bit(s->given_back, page + i) ||
			(has_bit(s->changed, page + i) &&
				(!look || is_wanted(m, m->map[i - from]))))
			r = add_page(m, host + i * STORE_PAGE, page + i, e);
	return r;
}

/* first: the page of the tree at which the range begins. */
static int
read_changed(const struct changed_reader *c, const struct vmm_mem_range *range,
	uint64_t first, struct err *e)
{
	const uint64_t pages = range->len / STORE_PAGE;
	int r = 0;

	for (uint64_t done = 0; done < pages && r == 0;) {
		uint64_t page = first + done;
		/* Windows end where a word of the bitmaps does. */
		uint64_t n = WINDOW - page % WINDOW;

		n = n < pages - done ? n : pages - done;
		r = read_window(c, page, n, range->host + done * STORE_PAGE, e);
		done += n;
	}
	return r;
}

int
commit_read_changed(struct store_writer *w, pid_t pid, const struct vmm_state_answer *a,
	const struct commit_since *since, struct store_tree *ret, uint64_t *ret_read,
	struct err *e)
{
	cleanup_memory_reader struct memory_reader *m = NULL;
	cleanup_close int pagemap = -1;
	struct changed_reader c = {.since = since};
	uint64_t page = 0;
	int r = memory_reader_make(pid, a, &m, &pagemap, e);

	if (r < 0)
		return r;
	c.m = m;
	c.pagemap = pagemap;
	r = store_tree_begin(w, &since->memory, a->mem_mib << 20, &m->tree, e);
	for (uint32_t i = 0; r == 0 && i < a->n_ranges; i++) {
		r = read_changed(&c, &a->ranges[i], page, e);
		page += a->ranges[i].len / STORE_PAGE;
	}
	if (r == 0)
		r = flush(m, e);
	if (r == 0)
		r = store_tree_finish(m->tree, ret, e);
	*ret_read = m->read_bytes;
	return r;
}

/* Blocks [block, block + n) of a base, but its holes. Of what is not put the tree has
 * zeroes. */
static int
put_base(struct store_tree_writer *tree, int fd, const char *name, uint64_t size,
	uint64_t block, uint64_t n, uint8_t *buf, struct err *e)
{
	uint64_t at = block * STORE_PAGE, end = at + n * STORE_PAGE;
	int r = 0;

	if (end > size)
		end = (size + STORE_PAGE - 1) / STORE_PAGE * STORE_PAGE;
	while (r == 0 && at < end) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA);
		uint64_t len;

		if (data < 0 && errno == ENXIO)
			return 0;
		if (data < 0)
			return err_sys(e, -errno, "%.300s", name);
		at = (uint64_t)data / STORE_PAGE * STORE_PAGE;
		if (at >= end)
			return 0;
		len = end - at;
		if (len > BATCH_PAGES * STORE_PAGE)
			len = BATCH_PAGES * STORE_PAGE;
		r = io_pread_full(fd, buf, at + len > size ? size - at : len, at);
		if (r < 0)
			return err_sys(e, r, "reading %.300s", name);
		r = store_tree_put(tree, at / STORE_PAGE, buf, len / STORE_PAGE, e);
		at += len;
	}
	return r;
}

int
commit_read_base(struct store_writer *w, int base_fd, const char *name, uint64_t size,
	struct store_tree *ret, struct err *e)
{
	cleanup_free uint8_t *buf = calloc(BATCH_PAGES, STORE_PAGE);
	struct store_tree_writer *tree;
	int r;

	if (!buf)
		return err_set(e, -ENOMEM, "out of memory");
	r = store_tree_begin(w, NULL, size, &tree, e);
	if (r == 0)
		r = put_base(tree, base_fd, name, size, 0,
			(size + STORE_PAGE - 1) / STORE_PAGE, buf, e);
	return r < 0 ? r : store_tree_finish(tree, ret, e);
}

struct disk_reader {
	struct store_tree_writer *tree; /* borrowed */
	const struct disk_chain *chain;
	int base_fd; /* borrowed; -1: the base is in the tree, or there is none */
	const char *base_name;
	uint64_t base_size;
	int segment_fd;	 /* owned */
	int segment;	 /* which that is */
	uint8_t *buf;	 /* owned */
	uint8_t *zeroes; /* owned */
};

static void
disk_reader_done(struct disk_reader *d)
{
	cleanup_close_fn(&d->segment_fd);
	free(d->buf);
	free(d->zeroes);
}

/* Called with a run that lies one after another in one place. */
static int
put_run(struct disk_reader *d, uint64_t block, uint64_t n, uint64_t entry, struct err *e)
{
	int segment = blockmap_segment(entry), r;
	const char *path;

	if (entry & BLOCKMAP_ZERO)
		return store_tree_put(d->tree, block, d->zeroes, n, e);
	if (segment < 0)
		return d->base_fd < 0 ? 0
				      : put_base(d->tree, d->base_fd, d->base_name,
						d->base_size, block, n, d->buf, e);
	path = d->chain->segments[segment].data_path;
	if (d->segment != segment) {
		cleanup_close_fn(&d->segment_fd);
		d->segment = -1;
		d->segment_fd = open(path, O_RDONLY | O_CLOEXEC);
		if (d->segment_fd < 0)
			return err_sys(e, -errno, "%.300s", path);
		d->segment = segment;
	}
	r = io_pread_full(d->segment_fd, d->buf, n * STORE_PAGE,
		(entry & BLOCKMAP_AT_MASK) * STORE_PAGE);
	if (r < 0)
		return err_sys(e, r, "reading %.300s", path);
	return store_tree_put(d->tree, block, d->buf, n, e);
}

int
commit_read_disk(struct store_writer *w, const struct disk_chain *chain,
	uint64_t disk_mib, int base_fd, const char *base_name,
	const struct store_tree *base, struct store_tree *ret, struct err *e)
{
	__attribute__((cleanup(disk_reader_done))) struct disk_reader d = {
		.chain = chain,
		.base_fd = base ? -1 : base_fd,
		.base_name = base_name,
		.segment_fd = -1,
		.segment = -1,
		.buf = calloc(BATCH_PAGES, STORE_PAGE),
		.zeroes = calloc(BATCH_PAGES, STORE_PAGE),
	};
	struct blockmap map = {0};
	struct stat st;
	uint64_t n, entry;
	int r;

	_Static_assert(STORE_PAGE == SEGMENT_BLOCK, "a block is a page");
	if (!d.buf || !d.zeroes)
		return err_set(e, -ENOMEM, "out of memory");
	if (d.base_fd >= 0) {
		if (fstat(d.base_fd, &st) < 0)
			return err_sys(e, -errno, "%.300s", base_name);
		d.base_size = (uint64_t)st.st_size;
	}
	r = blockmap_init(&map, disk_mib, e);
	/* What is the base's is put only where the base is read. */
	if (r == 0 && d.base_fd < 0)
		r = blockmap_note_touched(&map, e);
	if (r == 0)
		r = blockmap_replay(&map, chain, NULL, e);
	if (r == 0)
		r = store_tree_begin(w, base, disk_mib << 20, &d.tree, e);
	for (uint64_t block = 0; r == 0; block += n) {
		if (map.touched)
			block = blockmap_next(&map, block);
		if (block >= map.n_blocks)
			break;
		n = blockmap_run(&map, block, BATCH_PAGES, &entry);
		r = put_run(&d, block, n, entry, e);
	}
	if (r == 0)
		r = store_tree_finish(d.tree, ret, e);
	blockmap_done(&map);
	return r;
}
