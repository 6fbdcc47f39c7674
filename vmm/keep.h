/*
 * A kept fork point: what a branch can be reset to (VMM_RESET_TO_FORK_POINT).
 *
 * A fork with VMM_FORK_PARK and VMM_FORK_KEEP gives a frozen fork that stays. It never runs a vCPU,
 * so its memory, its devices and its disk's block map are those of the fork point for as long as
 * it lives; the kernel has one copy of each page that it shares with children. Each child that is forked from
 * it gets one end of a socket pair, and asks it for state, pages of memory and pages of the block
 * map. Only these: an offset outside is the end of that connection. The child's guest
 * has had all of it in its own memory at its birth, so there is nothing to hide from a hostile child.
 *
 * The sockets are also the count of those who may come back. When the control connection is closed
 * and the last child's end is, the frozen fork exits: the kernel closes a child's end
 * whatever the child died of, and nobody keeps books. Forks of a child close theirs: a branch of a
 * branch does not go back to its grandparent's fork point.
 *
 * A child that does not read what it asked for is given up after KEEP_WAIT_MS; its siblings
 * wait that long. A child whose frozen fork was killed or stopped hears so before it
 * changes anything (keep_fetch_state()); later it ends.
 *
 * Main thread; the fetching also on vCPU 0's, with all vCPUs parked.
 */
#ifndef PANDO_VMM_KEEP_H
#define PANDO_VMM_KEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

#define KEEP_WAIT_MS 10000
#define KEEP_RANGES 170u
#define KEEP_FDS_MAX 4096u /* a frozen fork's descriptors are numbered below */

struct vm;

struct keep {
	bool serves;	 /* a frozen fork that stays */
	int origin_fd;	 /* owned: to the frozen fork; -1: none */
	int pair[2];	 /* owned, around fork(): the frozen fork's end, the child's; -1 */
	unsigned n_fds;	 /* children's */
	uint64_t fds[KEEP_FDS_MAX / 64]; /* owned: a bit each */
};

struct keep_range { /* bytes of what is asked for */
	uint64_t off, len;
};

void keep_init(struct keep *k);
/* The seal's: SO_RCVTIMEO and SO_SNDTIMEO are set of the pair. */
extern const int keep_socket_options[2];

/* In a frozen fork: before fork(), and after it in the parent. *ret_fd (borrowed) is to be watched;
 * what it has to say is for keep_serve(). */
int keep_make_pair(struct keep *k, struct err *e);
void keep_forked(struct keep *k, bool happened, int *ret_fd);
/* In any forked child. serves: it is a frozen fork that stays. */
void keep_fork_child(struct keep *k, bool serves, bool is_frozen);

/* One question. False: that child is gone, or asked for nonsense; the descriptor is closed, and was
 * taken off by the caller's unwatch(). */
bool keep_serve(struct vm *vm, int fd);
void keep_close(struct keep *k, int fd);
/* Nobody is left, or will come: the process is to exit. */
static inline bool
keep_is_over(const struct keep *k, int control_fd)
{
	return k->serves && control_fd < 0 && k->n_fds == 0;
}

/* A child's. -ESTALE with a sentence: the frozen fork is gone or does not answer. The connection
 * is closed after any failure. */
int keep_fetch_state(struct keep *k, void *buf, size_t cap, size_t *ret_len, struct err *e);
/* To the same places behind base; n <= KEEP_RANGES. */
enum keep_what { KEEP_STATE = 1, KEEP_MEMORY, KEEP_MAP };
int keep_fetch(struct keep *k, enum keep_what what, void *base, const struct keep_range *ranges,
	unsigned n, struct err *e);
/* One range, to buf. */
int keep_fetch_one(struct keep *k, enum keep_what what, void *buf, struct keep_range range,
	struct err *e);
/* The VM goes elsewhere: it does not come back. */
void keep_drop(struct keep *k);

#endif
