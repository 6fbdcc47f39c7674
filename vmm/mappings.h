/*
 * The VMM's own small memory: the stacks of its threads, and new mappings for all of it.
 *
 * Linux keeps, for every private mapping with pages of its own, a list of all the
 * ancestors that may share one of them (anon_vma), and fork() copies that list entry by
 * entry: a microsecond for each mapping and each generation, in the parent's pause. So
 * every few generations a child moves what it has, 200 KiB of data, heap and stacks, into
 * mappings without ancestors. Guest memory stays where it is.
 */
#ifndef PANDO_VMM_MAPPINGS_H
#define PANDO_VMM_MAPPINGS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "common/err.h"

/* Of a thread: KVM_RUN, device code, the main loop, a log line. One size for all: in a
 * branch any thread may get any ancestor's. Sanitizers need more. */
#ifdef PANDO_SAN
#define MAPPINGS_STACK_BYTES (1024u << 10)
#else
#define MAPPINGS_STACK_BYTES (192u << 10)
#endif

/* Starts a thread on a stack of ours, MAPPINGS_STACK_BYTES and a page that nobody may
 * touch. Threads do not end before the process does. -EAGAIN, -ENOMEM with a sentence. */
int mappings_thread(pthread_t *ret, void *(*start)(void *arg), void *arg, struct err *e);

/* In a forked child, before it starts threads: the stacks of the threads that it does not
 * have are free. */
void mappings_forked(void);

/* What else a VMM maps for itself. */
struct own_range {
	void *at;   /* on a page's boundary; private, anonymous, readable and writable */
	size_t len; /* all of the last page is moved; 0: nothing */
	bool empty; /* nobody needs what is in it */
};

/*
 * In a forked child that is one thread still: moves the program's data, the heap, the
 * stacks and `more` into new mappings at the same addresses. How many were moved; what
 * cannot be moved (no memory, a Linux before 5.14, sanitizers) stays as it is. The stack
 * that a process begins with stays, too, when it is the one in use.
 */
unsigned mappings_renew(const struct own_range *more, size_t n);

#endif
