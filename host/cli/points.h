/* Commits on the terminal. */
#ifndef PANDO_HOST_CLI_POINTS_H
#define PANDO_HOST_CLI_POINTS_H

#include <stdbool.h>

#include "host/cli/opt.h"
#include "host/client/client.h"

#define POINTS_LIMIT_MAX 1000000000u /* what --limit may say */

/*
 * Prints all commits, or the history of one (of), as they come: page after page, at most
 * limit (0: all), and no page more when nobody reads. A table, newest first; quiet: full ids
 * alone; JSON: one object. Exit status.
 */
int points_walk(struct client *c, const char *of, uint64_t limit,
	const struct opt_scan *s, struct err *e);

#endif
