/*
 * A content, written to a file: the caller walks the tree, and the threads of the store
 * read, check and write the pages that it names, several pieces of 64 pages at once. What
 * is zero is not stored and not written, so it costs nothing but the walk.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/store/store_priv.h"

#define PIECE_PAGES NODE_FANOUT /* half a millisecond of work */

struct piece {
	struct pool_job job; /* first: see run_piece() */
	const struct filing *f;
	struct piece *next;
	unsigned n;
	uint64_t pages[PIECE_PAGES];
	struct store_hash names[PIECE_PAGES];
	int failed;
	struct err why;
	uint8_t data[PIECE_PAGES][STORE_PAGE];
};

struct filing {
	struct store *s;
	const struct store_tree *tree;
	int fd;
	struct zip *zip;   /* owned: the calling thread's */
	struct pool *pool; /* borrowed */
	struct piece *filling;	     /* owned; NULL: none */
	struct piece *first, **last; /* owned: with the pool, oldest first */
	struct piece *spare;	     /* owned */
	unsigned n_given, n_given_max;
};

/* Pages [i, i + n) of the piece, which lie one after another. */
static int
write_run(struct piece *p, unsigned i, unsigned n, struct err *e)
{
	const struct filing *f = p->f;
	uint64_t at = p->pages[i] * STORE_PAGE, len = (uint64_t)n * STORE_PAGE;
	int r;

	if (at + len > f->tree->length)
		len = f->tree->length - at;
	if (hash_is_zero(&p->names[i]) &&
		fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at,
			(off_t)len) == 0)
		return 0;
	/* Also zeroes, on a file system without holes. */
	r = io_pwrite_full(f->fd, p->data[i], len, at);
	return r < 0 ? err_sys(e, r, "writing a content to a file") : 0;
}

static int
do_piece(struct piece *p, struct zip *zip, struct err *e)
{
	struct chunk_reader c = {.s = p->f->s, .zip = zip};
	unsigned n;
	int r = 0;

	for (unsigned i = 0; i < p->n && r == 0; i++)
		r = tree_page(&c, p->f->tree, p->pages[i], &p->names[i], p->data[i], e);
	for (unsigned i = 0; i < p->n && r == 0; i += n) {
		const bool zero = hash_is_zero(&p->names[i]);

		for (n = 1; i + n < p->n && p->pages[i + n] == p->pages[i] + n &&
			hash_is_zero(&p->names[i + n]) == zero;)
			n++;
		r = write_run(p, i, n, e);
	}
	return r;
}

static void
run_piece(struct pool_job *j, struct zip *zip)
{
	struct piece *p = (struct piece *)j;

	p->failed = do_piece(p, zip, &p->why);
}

/* The oldest that the pool has. */
static int
take_first(struct filing *f, struct err *e)
{
	struct piece *p = f->first;

	pool_wait(f->pool, &p->job, f->zip);
	f->first = p->next;
	if (!f->first)
		f->last = &f->first;
	f->n_given--;
	p->next = f->spare;
	f->spare = p;
	return p->failed < 0 ? err_set(e, p->failed, "%s", p->why.msg) : 0;
}

static int
give(struct filing *f, struct err *e)
{
	struct piece *p = TAKE_PTR(f->filling);

	p->next = NULL;
	*f->last = p;
	f->last = &p->next;
	f->n_given++;
	pool_submit(f->pool, &p->job);
	return f->n_given < f->n_given_max ? 0 : take_first(f, e);
}

static int
add_name(void *ctx, uint64_t page, const struct store_hash *name, struct err *e)
{
	struct filing *f = ctx;
	struct piece *p = f->filling;

	if (!p) {
		p = f->spare;
		if (p)
			f->spare = p->next;
		else if (!(p = malloc(sizeof(*p))))
			return err_sys(e, -ENOMEM, "writing a content to a file");
		p->job = (struct pool_job){.run = run_piece, .owner = f};
		p->f = f;
		p->next = NULL;
		p->n = 0;
		f->filling = p;
	}
	p->pages[p->n] = page;
	p->names[p->n++] = *name;
	return p->n < PIECE_PAGES ? 0 : give(f, e);
}

static void
free_pieces(struct piece *p)
{
	while (p) {
		struct piece *next = p->next;

		free(p);
		p = next;
	}
}

static void
filing_done(struct filing *f)
{
	for (struct piece *p = f->first; p; p = p->next)
		pool_cancel(f->pool, &p->job);
	free_pieces(f->first);
	free_pieces(f->filling);
	free_pieces(f->spare);
	zip_free(f->zip);
}

int
store_tree_to_file(struct store *s, const struct store_tree *t,
	const struct store_tree *was, int fd, struct err *e)
{
	__attribute__((cleanup(filing_done))) struct filing f = {
		.s = s, .tree = t, .fd = fd, .last = &f.first};
	int r = tree_check(t, e);

	if (r < 0)
		return r;
	if (store_pool(s, &f.pool) < 0 || zip_new(&f.zip))
		return err_sys(e, -ENOMEM, "writing a content to a file");
	/* Enough to go on with while a thread waits for a CPU in the midst of one. */
	f.n_given_max = 4 * pool_threads(f.pool);
	if (ftruncate(fd, (off_t)t->length) < 0)
		return err_sys(e, -errno, "setting a file's length");
	r = store_tree_names(s, t, was, add_name, &f, e);
	if (r == 0 && f.filling)
		r = give(&f, e);
	while (r == 0 && f.first)
		r = take_first(&f, e);
	return r;
}
