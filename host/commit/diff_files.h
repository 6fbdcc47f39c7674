/*
 * Which files differ between the disks of two commits. File systems are read by a process
 * of its own, pando-fsdiff (host/commit/fsdiff/main.c), which asks for pages and may do nothing
 * else; what it says is checked and bounded here.
 */
#ifndef PANDO_HOST_COMMIT_DIFF_FILES_H
#define PANDO_HOST_COMMIT_DIFF_FILES_H

#include "common/json.h"
#include "host/store/store.h"

/*
 * The member "files" of a diff's answer (API.md), whatever happens: what cannot be read
 * is said in it. program: pando-fsdiff's path. The caller holds the store (store_hold()).
 * -errno only of the store's own.
 */
int diff_files(struct store *s, const char *program, const struct store_tree *a,
	const struct store_tree *b, struct json_out *out, struct err *e);

#endif
