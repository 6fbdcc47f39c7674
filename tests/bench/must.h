/*
 * What a benchmark cannot go on without. What has to be cleaned up is registered with
 * atexit(3).
 */
#ifndef PANDO_TESTS_BENCH_MUST_H
#define PANDO_TESTS_BENCH_MUST_H

#include "common/err.h"

/* r < 0: says what failed and why, and ends the program with status 1. */
void must(int r, const char *what, const struct err *e);
/* The same, for whoever knows already that it failed. */
_Noreturn void must_not_go_on(const char *what, const struct err *e);

#endif
