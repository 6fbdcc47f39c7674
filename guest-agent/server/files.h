/*
 * What the file operations need beside common/wire/tar.h.
 */
#ifndef PANDO_GUEST_AGENT_SERVER_FILES_H
#define PANDO_GUEST_AGENT_SERVER_FILES_H

#include "common/err.h"
#include "common/json.h"
#include "common/wire/tar.h"

/* Relative paths start at the home of user (NULL: the agent's own). malloc'd. */
int files_path(const char *path, const char *user, char **ret, struct err *e);
int files_put(const char *path, const char *user, struct tar_unpack **ret, struct err *e);
/* For the host: a path that is a link is followed, FIFOs are left out, as the host takes
 * neither. */
int files_get(const char *path, struct tar_pack **ret, struct err *e);
/* The "entries" array. -EFBIG beyond FILES_LIST_MAX entries. */
#define FILES_LIST_MAX 16384
int files_list(const char *path, struct json_out *o, struct err *e);

#endif
