/*
 * The VM a folder works with ("checked out"): a file .pando/head of the project's folder,
 * which is the nearest folder from here upwards that has pando.toml, vers.toml or .pando,
 * else this one. Its first line is the VM's id, its second (which may be missing) that of
 * the one before. Whoever changes it writes the whole file anew.
 */
#ifndef PANDO_HOST_CLI_HEAD_H
#define PANDO_HOST_CLI_HEAD_H

#include "common/err.h"
#include "common/paths.h"

#define HEAD_NAME_MAX 64

struct head {
	char path[PATHS_MAX];	      /* of the file, which may not be there */
	char folder[PATHS_MAX];	      /* the project's */
	char current[HEAD_NAME_MAX];  /* "": none */
	char previous[HEAD_NAME_MAX]; /* "": none */
};

/* from: an absolute path of a folder, or NULL: the current one. No file is no error.
 * -EINVAL the file is not one of ours, -EPERM another user's; both with the mend. */
int head_read(const char *from, struct head *ret, struct err *e);
/* Only where the file would be; for one who is going to replace a broken one. */
int head_find(const char *from, struct head *ret, struct err *e);
/* id NULL: none is checked out from now on. What was becomes the previous one, unless it
 * is the same. Makes .pando where there is none, with a .gitignore. */
int head_write(struct head *h, const char *id, struct err *e);

#endif
