/* `pando tree <commit>`: a commit between the commits it comes from and those that come
 * from it, with their VMs. */
#ifndef PANDO_HOST_CLI_TREE_COMMIT_H
#define PANDO_HOST_CLI_TREE_COMMIT_H

#include "host/cli/opt.h"
#include "host/client/client.h"

/* name: a commit's or a tag. Prints, and returns the exit status; -ENOENT, with *e as it
 * was: no commit is named so. */
int tree_commit_print(
	struct client *c, const char *name, const struct opt_scan *s, struct err *e);

#endif
