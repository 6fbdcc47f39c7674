/*
 * A word to sleep on, of this process alone.
 */
#ifndef PANDO_VMM_FUTEX_H
#define PANDO_VMM_FUTEX_H

#include <stdatomic.h>

/* wait returns when *word != seen (or spuriously); wake wakes all. */
void futex_wait(atomic_uint *word, unsigned seen);
void futex_wake(atomic_uint *word);

#endif
