/* Commits on the terminal. */
#ifndef PANDO_HOST_CLI_POINTS_H
#define PANDO_HOST_CLI_POINTS_H

#include <stdbool.h>

#include "host/client/client.h"

/* A table, newest first as they come; quiet: full ids alone. Exit status. */
int points_print(const struct client_points *points, bool quiet);

#endif
