/*
 * Folders of the host, copied into the test machine under the paths they have on the
 * host.
 *
 * Each call sends what has changed since the last one (mode, size, times and inode number
 * of every file are compared) and removes in the machine what is gone from the host. A
 * file is replaced by a new one, never written over: what runs in the machine goes on
 * with the file that it was started from. What the machine itself wrote stays, until the
 * host has a newer file of that name. The machine never writes to the host.
 *
 * What was sent is kept in <machine>/copied/, one file a folder. When a call is cut
 * short, the next one sends again all that may not have arrived.
 */
#ifndef PANDO_HOST_TESTVM_MACHINE_COPY_H
#define PANDO_HOST_TESTVM_MACHINE_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "host/testvm/machine.h"

/* Larger folders are hardly meant. */
#define MACHINE_COPY_FILES_MAX 200000u
#define MACHINE_COPY_BYTES_MAX (UINT64_C(8) << 30)

struct machine_folder {
	const char *path; /* absolute */
	/* Only these, relative to path, NULL-terminated; NULL: everything. A missing one
	 * is no error. */
	const char *const *only;
	/* Not these, relative to path, NULL-terminated; NULL: none. ".git" is always left
	 * out, and so is a folder that holds a CACHEDIR.TAG. */
	const char *const *without;
	bool keep; /* what is gone from the host stays in the machine */
};

struct machine_copy_stats {
	size_t files, sent, removed;
	uint64_t sent_bytes;
};

int machine_copy(const struct machine *m, struct ssh_link *link,
	const struct machine_folder *folder, struct machine_copy_stats *ret,
	struct err *e);

/*
 * The project that a folder belongs to: the nearest one at or above it that holds .git,
 * pando.toml or vers.toml, else the folder itself. 0: nothing is to be copied, because it
 * is (or is above) the home folder, or belongs to the system (/, /usr, /tmp itself, …);
 * 1: *dst is it. A symbolic link in the path is the caller's to resolve.
 */
int machine_project(
	const char *folder, const char *home, char dst[PATHS_MAX], struct err *e);

/* The images that names lead to, as a machine_folder's `only`: the links in `images` and
 * their targets. malloc'd, with its strings, one free(). An absent folder has none. */
int machine_image_names(const char *images, const char *const **ret, struct err *e);

#endif
