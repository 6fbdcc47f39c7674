#include "host/fill/fill_page.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/io.h"
#include "host/store/store_hash.h"

#define PACKS_MAX 65536u

struct fill_pages {
	uint64_t n_pages;
	int memory_fd, image_fd, plan_fd; /* borrowed */
	atomic_uchar *state;		  /* owned; enum page_state */
	uint32_t *place_of;		  /* owned: of a page that is planned or more */
	atomic_int image_error;
	_Atomic uint64_t n_filled;

	pthread_rwlock_t packs_lock;
	int *packs; /* owned, and what is in it */
	size_t n_packs;

	/* The plan. Places do not move: as many are reserved as there can be. */
	pthread_mutex_t lock;
	pthread_cond_t grew;
	struct fill_place *places; /* owned */
	uint64_t n_places, n_real, places_max, next;
	bool is_all;
};

int
fill_pages_new(uint64_t pages, int memory_fd, int image_fd, int plan_fd,
	struct fill_pages **ret, struct err *e)
{
	struct fill_pages *p = calloc(1, sizeof(*p));

	if (!p)
		return err_set(e, -ENOMEM, "out of memory");
	p->n_pages = pages;
	p->memory_fd = memory_fd;
	p->image_fd = image_fd;
	p->plan_fd = plan_fd;
	/* A place for each page, and one for each leaf's end. */
	p->places_max = pages + pages / FILL_LEAF_PAGES + 1;
	p->state = calloc(pages, sizeof(*p->state));
	p->place_of = calloc(pages, sizeof(*p->place_of));
	p->places = calloc(p->places_max, sizeof(*p->places));
	pthread_rwlock_init(&p->packs_lock, NULL);
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->grew, NULL);
	*ret = p;
	return p->state && p->place_of && p->places ? 0
						     : err_set(e, -ENOMEM, "out of memory");
}

void
fill_pages_free(struct fill_pages *p)
{
	if (!p)
		return;
	for (size_t i = 0; i < p->n_packs; i++)
		close(p->packs[i]);
	free(p->packs);
	free(p->state);
	free(p->place_of);
	free(p->places);
	pthread_rwlock_destroy(&p->packs_lock);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->grew);
	free(p);
}

int
fill_pages_pack(struct fill_pages *p, int fd, struct err *e)
{
	int *more = NULL;

	pthread_rwlock_wrlock(&p->packs_lock);
	if (p->n_packs < PACKS_MAX)
		more = reallocarray(p->packs, p->n_packs + 1, sizeof(*more));
	if (more) {
		p->packs = more;
		p->packs[p->n_packs++] = fd;
	}
	pthread_rwlock_unlock(&p->packs_lock);
	if (!more)
		close(fd);
	return more ? 0 : err_set(e, -ENOMEM, "out of memory");
}

static void
end_leaf(struct fill_pages *p, uint64_t first)
{
	for (uint64_t i = first; i < first + FILL_LEAF_PAGES && i < p->n_pages; i++) {
		unsigned char unknown = PAGE_UNKNOWN;

		atomic_compare_exchange_strong(&p->state[i], &unknown, PAGE_ZERO);
	}
}

static int
take_place(struct fill_pages *p, uint64_t number, struct err *e)
{
	const struct fill_place *place = &p->places[number];

	if (place->page >= p->n_pages)
		return err_set(e, -EPROTO, "a place of page %llu of %llu",
			(unsigned long long)place->page, (unsigned long long)p->n_pages);
	if (place->coding == FILL_LEAF) {
		end_leaf(p, place->page);
		return 0;
	}
	if (place->pack >= p->n_packs || place->coding > FILL_ZSTD ||
		place->stored > FILL_PAGE ||
		(place->coding == FILL_RAW && place->stored != FILL_PAGE) ||
		atomic_load(&p->state[place->page]) != PAGE_UNKNOWN)
		return err_set(e, -EPROTO, "a place of page %llu that cannot be",
			(unsigned long long)place->page);
	p->place_of[place->page] = (uint32_t)number;
	atomic_store(&p->state[place->page], PAGE_PLANNED);
	return 1;
}

int
fill_pages_plan(struct fill_pages *p, uint64_t places, bool is_all, struct err *e)
{
	uint64_t had = p->n_places, real = 0;
	int r = 0;

	if (places < had || places > p->places_max)
		return err_set(e, -EPROTO, "a plan of %llu places after one of %llu",
			(unsigned long long)places, (unsigned long long)had);
	if (places > had)
		r = io_pread_full(p->plan_fd, p->places + had,
			(places - had) * sizeof(*p->places), had * sizeof(*p->places));
	if (r < 0)
		return err_sys(e, r, "reading the plan");
	for (uint64_t i = had; i < places && r >= 0; i++) {
		r = take_place(p, i, e);
		real += r == 1;
	}
	if (r < 0)
		return r;
	pthread_mutex_lock(&p->lock);
	p->n_places = places;
	p->n_real += real;
	p->is_all = is_all;
	pthread_cond_broadcast(&p->grew);
	pthread_mutex_unlock(&p->lock);
	return 0;
}

enum page_state
fill_pages_state(const struct fill_pages *p, uint64_t page)
{
	return (enum page_state)atomic_load(&p->state[page]);
}

static int
read_page(struct fill_pages *p, const struct fill_place *place, struct zip *zip,
	uint8_t *ret, struct err *e)
{
	uint8_t stored[FILL_PAGE];
	struct store_hash is;
	int r, fd;

	pthread_rwlock_rdlock(&p->packs_lock);
	fd = p->packs[place->pack];
	pthread_rwlock_unlock(&p->packs_lock);
	r = io_pread_full(fd, place->coding == FILL_ZSTD ? stored : ret, place->stored,
		place->offset);
	if (r == 0 && place->coding == FILL_ZSTD)
		r = zip_unpack(zip, ret, FILL_PAGE, stored, place->stored);
	if (r == -ENOMEM)
		return err_set(e, r, "out of memory");
	if (r == 0)
		hash_of(HASH_PLAIN, ret, FILL_PAGE, &is);
	if (r < 0 || memcmp(is.b, place->hash, sizeof(is.b)) != 0) {
		char hex[STORE_HEX + 1];

		memcpy(is.b, place->hash, sizeof(is.b));
		hash_to_hex(&is, hex);
		return err_set(e, -EBADMSG,
			"page %llu of its memory (%.12s) is damaged in the commit store; `pando verify` names the pack",
			(unsigned long long)place->page, hex);
	}
	return 0;
}

/* Pages one after the other, the first of them with this place, all taken by the caller. */
static int
fill(struct fill_pages *p, const struct fill_place *first, uint64_t n, struct zip *zip,
	struct err *e)
{
	uint8_t data[FILL_RUN_MAX][FILL_PAGE];
	const uint64_t at = first->page * FILL_PAGE;
	int r = 0;

	for (uint64_t i = 0; i < n && r == 0; i++)
		r = read_page(p, first + i, zip, data[i], e);
	if (r < 0)
		return r;
	/* By write(2): whoever has the memory mapped sees a whole page or none. */
	r = io_pwrite_full(p->memory_fd, data, n * FILL_PAGE, at);
	if (r < 0)
		return err_sys(e, r, "filling its memory");
	for (uint64_t i = 0; i < n; i++)
		atomic_store(&p->state[first->page + i], PAGE_THERE);
	if (!atomic_load(&p->image_error)) {
		r = io_pwrite_full(p->image_fd, data, n * FILL_PAGE, at);
		if (r < 0)
			atomic_store(&p->image_error, r);
	}
	atomic_fetch_add(&p->n_filled, n);
	return 0;
}

static bool
take(struct fill_pages *p, const struct fill_place *place)
{
	unsigned char planned = PAGE_PLANNED;

	return place->coding != FILL_LEAF &&
	       atomic_compare_exchange_strong(&p->state[place->page], &planned, PAGE_TAKEN);
}

int
fill_pages_fill(struct fill_pages *p, uint64_t number, uint64_t max, struct zip *zip,
	uint64_t *ret_page, uint64_t *ret_n, uint64_t *ret_places, struct err *e)
{
	const struct fill_place *place = &p->places[number];
	uint64_t n = 0;

	*ret_places = 1;
	*ret_n = 0;
	*ret_page = place->page;
	if (!take(p, place))
		return 0;
	for (n = 1; n < max && n < FILL_RUN_MAX && place[n].page == place->page + n &&
		take(p, &place[n]);)
		n++;
	*ret_places = *ret_n = n;
	return fill(p, place, n, zip, e);
}

int
fill_pages_fill_page(
	struct fill_pages *p, uint64_t page, struct zip *zip, bool *ret_filled, struct err *e)
{
	const struct fill_place *place = &p->places[p->place_of[page]];

	*ret_filled = take(p, place);
	return *ret_filled ? fill(p, place, 1, zip, e) : 0;
}

bool
fill_pages_next(struct fill_pages *p, uint64_t n, uint64_t *ret_first, uint64_t *ret_n)
{
	pthread_mutex_lock(&p->lock);
	while (p->next == p->n_places && !p->is_all)
		pthread_cond_wait(&p->grew, &p->lock);
	*ret_first = p->next;
	*ret_n = p->n_places - p->next < n ? p->n_places - p->next : n;
	p->next += *ret_n;
	pthread_mutex_unlock(&p->lock);
	return *ret_n != 0;
}

bool
fill_pages_are_whole(const struct fill_pages *p)
{
	return p->is_all && atomic_load(&p->n_filled) == p->n_real;
}

int
fill_pages_image_error(const struct fill_pages *p)
{
	return atomic_load(&p->image_error);
}
