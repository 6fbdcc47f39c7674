/* "Did you mean": how far apart two words are. */
#ifndef PANDO_HOST_CLI_NEAR_H
#define PANDO_HOST_CLI_NEAR_H

/* Optimal string alignment distance (insert, delete, replace, swap neighbours), capped:
 * words longer than NEAR_MAX count as far apart. */
#define NEAR_MAX 64
unsigned near_distance(const char *a, const char *b);

/* Whether somebody who typed `typed` may have meant `name`: at most 2 edits and fewer
 * than half of its letters, or `name` starts with it (at least 2 letters). */
int near_enough(const char *typed, const char *name);

#endif
