/* The words of `pando copy`. */
#ifndef PANDO_HOST_CLI_COPY_H
#define PANDO_HOST_CLI_COPY_H

#include <stdbool.h>
#include <stddef.h>

/* "vm:path": the name in vm, the path (borrowed; "." if empty) in *ret_path. False for a
 * local path: no colon, one behind a slash, or nothing before it. */
bool copy_split(const char *word, char *vm, size_t cap, const char **ret_path);

#endif
