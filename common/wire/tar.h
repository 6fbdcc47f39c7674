/*
 * File trees as a POSIX pax stream (IEEE 1003.1-2017, pax, "ustar Interchange Format" and
 * "pax Extended Header"), written and unpacked as it flows. Used by both ends of the
 * agent protocol; needs no more memory than a few buffers and a descriptor for each level
 * of folders (at most TAR_DEPTH_MAX).
 *
 * Members: regular files, folders, symbolic links, FIFOs; modes, times to the nanosecond,
 * names of any bytes. Hard links become files of their own. Owners are not carried.
 *
 * Not thread-safe per object. All calls block on the file system.
 */
#ifndef PANDO_COMMON_WIRE_TAR_H
#define PANDO_COMMON_WIRE_TAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define TAR_DEPTH_MAX 128
#define TAR_PATH_MAX 4096

struct tar_stats {
	uint64_t files, folders, links, skipped; /* skipped: sockets and devices */
	uint64_t bytes;				 /* of file contents */
};

/*
 * Packing. The stream's members all stand under the last component of path; under "."
 * when path is "/", or ends in "/.",
 * ".." or is ".": the folder's contents. A symbolic link is packed as a link, except when
 * a "/" follows it.
 */
struct tar_pack;

int tar_pack_open(const char *path, struct tar_pack **ret, struct err *e);
/* Fills buf: the count, 0 at the end, negative on an error (final). A file that shrinks
 * while it is read is an error, one that vanishes before it is opened is left out. */
ssize_t tar_pack_read(struct tar_pack *p, void *buf, size_t cap, struct err *e);
const struct tar_stats *tar_pack_stats(const struct tar_pack *p);
void tar_pack_close(struct tar_pack *p); /* NULL is fine */

/*
 * Unpacking, as `cp -r` would place it: into dest when that is a folder, else as dest.
 * Nothing outside is ever written: members with "..", absolute names or a symbolic link
 * on their way are errors (openat2, RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), and nothing
 * is written through an existing file: a file or link of that name is removed first.
 * Existing folders keep their mode and time.
 */
struct tar_unpack_opts {
	const char *dest;
	bool keep_setid; /* set-user-id and set-group-id bits; not from a side that is not
			    trusted */
	bool chown;	 /* give everything to uid, gid */
	uid_t uid;
	gid_t gid;
};

struct tar_unpack;

/* opts is copied, dest too. Nothing is touched before the first member. */
int tar_unpack_open(
	const struct tar_unpack_opts *opts, struct tar_unpack **ret, struct err *e);
/* Any cut of the stream is fine. An error is final. */
int tar_unpack_feed(struct tar_unpack *u, const void *buf, size_t len, struct err *e);
/* The stream has ended: sets what was left to be set. -EPIPE when it ended too early. */
int tar_unpack_finish(struct tar_unpack *u, struct err *e);
const struct tar_stats *tar_unpack_stats(const struct tar_unpack *u);
void tar_unpack_close(struct tar_unpack *u); /* NULL is fine */

#endif
