/*
 * The pages of one memory image, on their way from packs into it (common/wire/fill_wire.h).
 * Each is read, checked and written once, by whoever takes it first: a thread of the
 * background, or the one that serves faults.
 *
 * fill_pages_plan(), _pack() and _state() are the serving thread's; all others any thread's.
 */
#ifndef PANDO_HOST_FILL_FILL_PAGE_H
#define PANDO_HOST_FILL_FILL_PAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/wire/fill_wire.h"
#include "host/store/store_zip.h"

enum page_state {
	PAGE_UNKNOWN, /* the plan does not say yet where it lies */
	PAGE_ZERO,    /* all told: it is a hole */
	PAGE_PLANNED,
	PAGE_TAKEN, /* somebody reads it */
	PAGE_THERE,
};

struct fill_pages;

/* The descriptors (enum fill_begin_fd) are borrowed. */
int fill_pages_new(uint64_t pages, int memory_fd, int image_fd, int plan_fd,
	struct fill_pages **ret, struct err *e);
/* Nobody uses it any more. NULL is fine. */
void fill_pages_free(struct fill_pages *p);
/* fd is taken over. */
int fill_pages_pack(struct fill_pages *p, int fd, struct err *e);
/* The plan has that many places by now. */
int fill_pages_plan(struct fill_pages *p, uint64_t places, bool is_all, struct err *e);
enum page_state fill_pages_state(const struct fill_pages *p, uint64_t page);

/* The place with this number in the plan, and those after it (max with it) whose pages are
 * next to it. *ret_places of them were dealt with, and *ret_n pages from *ret_page on filled:
 * 0, if others took it before. -EBADMSG: what the pack has is damaged. */
#define FILL_RUN_MAX 16u
int fill_pages_fill(struct fill_pages *p, uint64_t place, uint64_t max, struct zip *zip,
	uint64_t *ret_page, uint64_t *ret_n, uint64_t *ret_places, struct err *e);
/* The same of one page that was PAGE_PLANNED. */
int fill_pages_fill_page(struct fill_pages *p, uint64_t page, struct zip *zip,
	bool *ret_filled, struct err *e);

/* The next n places for a thread of the background; waits for the plan. false: there are no
 * more. */
bool fill_pages_next(
	struct fill_pages *p, uint64_t n, uint64_t *ret_first, uint64_t *ret_n);
/* All places were taken and filled. */
bool fill_pages_are_whole(const struct fill_pages *p);
/* Why the image is not whole; 0: it is, as far as it was filled. */
int fill_pages_image_error(const struct fill_pages *p);

#endif
