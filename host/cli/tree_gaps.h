/*
 * The pruned commits between those that are listed. GET /v1/commits lists what is held, so a
 * tree of that breaks where a parent was pruned; the parent is in the history of its child.
 */
#ifndef PANDO_HOST_CLI_TREE_GAPS_H
#define PANDO_HOST_CLI_TREE_GAPS_H

#include "host/client/client.h"

/* Adds the pruned ancestors of all these commits, each once, and puts them in order, the newest
 * first. One call for each listed commit whose parent is not there. What cannot be read stays a
 * gap. -ENOMEM. */
int tree_gaps_fill(struct client *c, struct client_points *points, struct err *e);

#endif
