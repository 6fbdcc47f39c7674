#include "host/store/store_put.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/cleanup.h"
#include "host/store/store_pool.h"
#include "host/store/store_priv.h"

#define BATCH_PAGES 16u /* not zero: some 100 us of work */
#define BATCH_RUNS 32u
#define ZEROES UINT32_MAX

/* Pages of a tree, one after the other: all zero, or n of the batch's pages. */
struct run {
	void *tree;
	uint64_t first, n;
	uint32_t at; /* the first of them in the batch, or ZEROES */
};

struct batch {
	struct pool_job job; /* first: see run_batch() */
	struct store *s;     /* borrowed */
	uint64_t generation;
	struct batch *next;
	unsigned n_runs, n_pages;
	struct run runs[BATCH_RUNS];
	struct put_page pages[BATCH_PAGES];
	int failed;
	struct err why;
	uint8_t data[BATCH_PAGES][STORE_PAGE];
	uint8_t zipped[BATCH_PAGES][STORE_PAGE];
};

struct put_line {
	struct store *s; /* borrowed */
	uint64_t generation;
	struct zip *zip;   /* borrowed */
	struct pool *pool; /* borrowed */
	put_take_fn *take;
	void *ctx;
	struct batch *filling;	       /* owned; NULL: none */
	struct batch *first, **last;   /* owned: with the pool, oldest first */
	struct batch *spare;	       /* owned */
	unsigned n_given, n_given_max; /* with the pool */
	int failed;
};

int
put_line_new(struct store *s, uint64_t generation, struct zip *zip, put_take_fn *take,
	void *ctx, struct put_line **ret)
{
	struct put_line *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	r = store_pool(s, &l->pool);
	if (r < 0) {
		free(l);
		return r;
	}
	l->s = s;
	l->generation = generation;
	l->zip = zip;
	l->take = take;
	l->ctx = ctx;
	l->last = &l->first;
	/* Enough to go on with while a thread waits for a CPU in the midst of one. */
	l->n_given_max = pool_threads(l->pool) > 1 ? 8 * pool_threads(l->pool) : 0;
	*ret = l;
	return 0;
}

static void
free_batches(struct batch *b)
{
	while (b) {
		struct batch *next = b->next;

		free(b);
		b = next;
	}
}

/* Forgets what was not taken. */
static void
drop(struct put_line *l)
{
	for (struct batch *b = l->first; b; b = b->next)
		pool_cancel(l->pool, &b->job);
	free_batches(l->first);
	l->first = NULL;
	l->last = &l->first;
	l->n_given = 0;
	free(l->filling);
	l->filling = NULL;
}

void
put_line_free(struct put_line *l)
{
	if (!l)
		return;
	drop(l);
	free_batches(l->spare);
	free(l);
}

/* A job: hash all, look all up, compress what is new. */
static void
run_batch(struct pool_job *j, struct zip *zip)
{
	struct batch *b = (struct batch *)j;
	struct pack_set *set;
	struct gc_view v;

	for (unsigned i = 0; i < b->n_pages; i++)
		hash_of(HASH_PLAIN, b->data[i], STORE_PAGE, &b->pages[i].hash);
	gc_view_begin(b->s, b->generation, &v);
	b->failed = packs_get(b->s, &set, &b->why);
	for (unsigned i = 0; b->failed == 0 && i < b->n_pages; i++)
		b->pages[i].stored =
			gc_find(&v, set, CHUNK_PAGE, &b->pages[i].hash, true);
	gc_view_end(&v);
	if (b->failed)
		return;
	packs_put(set);
	for (unsigned i = 0; i < b->n_pages; i++) {
		struct put_page *p = &b->pages[i];

		p->bytes = b->data[i];
		p->zipped = 0;
		if (p->stored)
			continue;
		p->zipped = (uint16_t)zip_pack(zip, b->zipped[i], b->data[i], STORE_PAGE);
		if (p->zipped)
			p->bytes = b->zipped[i];
	}
}

static int
take_batch(struct put_line *l, struct batch *b, struct err *e)
{
	static const struct put_page zeroes;
	int r = b->failed;

	if (r < 0)
		return err_set(e, r, "%s", b->why.msg);
	for (unsigned i = 0; i < b->n_runs; i++) {
		const struct run *run = &b->runs[i];

		for (uint64_t k = 0; k < run->n; k++) {
			r = l->take(l->ctx, run->tree, run->first + k,
				run->at == ZEROES ? &zeroes : &b->pages[run->at + k], e);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

static int
fail(struct put_line *l, int r)
{
	l->failed = r;
	drop(l);
	return r;
}

static void
keep_spare(struct put_line *l, struct batch *b)
{
	b->next = l->spare;
	l->spare = b;
}

/* The oldest that the pool has. */
static int
take_first(struct put_line *l, struct err *e)
{
	struct batch *b = l->first;
	int r;

	pool_wait(l->pool, &b->job, l->zip);
	l->first = b->next;
	if (!l->first)
		l->last = &l->first;
	l->n_given--;
	r = take_batch(l, b, e);
	keep_spare(l, b);
	return r < 0 ? fail(l, r) : 0;
}

/* The batch that is filled goes to the pool, or is done at once where nobody helps. */
static int
give(struct put_line *l, bool alone, struct err *e)
{
	struct batch *b = TAKE_PTR(l->filling);
	int r;

	if (!l->n_given_max || (alone && !l->first)) {
		run_batch(&b->job, l->zip);
		r = take_batch(l, b, e);
		keep_spare(l, b);
		return r < 0 ? fail(l, r) : 0;
	}
	b->next = NULL;
	*l->last = b;
	l->last = &b->next;
	l->n_given++;
	pool_submit(l->pool, &b->job);
	/* What is done already is written while the others work. */
	for (r = 0;
		r == 0 && l->first &&
		(l->n_given >= l->n_given_max || pool_is_done(l->pool, &l->first->job));)
		r = take_first(l, e);
	return r;
}

static int
begin_batch(struct put_line *l, struct err *e)
{
	struct batch *b = l->spare;

	if (b)
		l->spare = b->next;
	else
		b = malloc(sizeof(*b));
	if (!b)
		return err_sys(e, -ENOMEM, "writing a commit");
	b->job = (struct pool_job){.run = run_batch, .owner = l};
	b->s = l->s;
	b->generation = l->generation;
	b->next = NULL;
	b->n_runs = b->n_pages = 0;
	b->failed = 0;
	l->filling = b;
	return 0;
}

static bool
is_zero(const uint8_t *page)
{
	/* Not zero is seen in the first word or soon after. */
	return !page[0] && memcmp(page, page + 1, STORE_PAGE - 1) == 0;
}

int
put_line_page(struct put_line *l, void *tree, uint64_t page, const uint8_t *bytes,
	bool *ret_zero, struct err *e)
{
	bool zero = is_zero(bytes);
	struct batch *b = l->filling;
	struct run *run;
	int r = l->failed;

	if (r < 0)
		return err_sys(e, r, "the commit failed before");
	if (b && (b->n_runs == BATCH_RUNS || (!zero && b->n_pages == BATCH_PAGES))) {
		r = give(l, false, e);
		if (r < 0)
			return r;
	}
	if (!l->filling) {
		r = begin_batch(l, e);
		if (r < 0)
			return fail(l, r);
	}
	b = l->filling;
	run = b->n_runs ? &b->runs[b->n_runs - 1] : NULL;
	if (!run || run->tree != tree || run->first + run->n != page ||
		(run->at == ZEROES) != zero) {
		run = &b->runs[b->n_runs++];
		*run = (struct run){tree, page, 0, zero ? ZEROES : b->n_pages};
	}
	run->n++;
	if (!zero)
		memcpy(b->data[b->n_pages++], bytes, STORE_PAGE);
	*ret_zero = zero;
	return 0;
}

int
put_line_drain(struct put_line *l, struct err *e)
{
	int r = l->failed;

	if (r < 0)
		return err_sys(e, r, "the commit failed before");
	if (l->filling)
		r = give(l, true, e);
	while (r == 0 && l->first)
		r = take_first(l, e);
	return r;
}
