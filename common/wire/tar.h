/*
 * File trees as a POSIX pax stream (IEEE 1003.1-2017, pax, "ustar Interchange Format" and
 * "pax Extended Header"), written and unpacked as it flows. Used by both ends of the
 * agent protocol; needs no more memory than a few buffers and a descriptor for each level
 * of folders (at most TAR_DEPTH_MAX).
 *
 * Members: regular files with their holes and further names (hard links), folders,
 * symbolic links, FIFOs; modes, modification times to the nanosecond, names of any bytes.
 * Not carried: owners, access times, extended attributes and what is made of them (ACLs,
 * capabilities, labels), flags of the file system. Sparse files are as GNU tar's pax
 * format 1.0 has them.
 *
 * Not thread-safe per object. All calls block on the file system.
 */
#ifndef PANDO_COMMON_WIRE_TAR_H
#define PANDO_COMMON_WIRE_TAR_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/err.h"

#define TAR_DEPTH_MAX 128
#define TAR_PATH_MAX 4096
#define TAR_EXTENTS_MAX 65536 /* of a sparse file; what lies behind is one of data */
/* From a side that is not trusted: only among so many files are there hard links. */
#define TAR_LINKED_MAX (1u << 22)

struct tar_stats {
	uint64_t files, folders, links, skipped; /* skipped: sockets, devices, and FIFOs
						    that were not to be packed */
	/* links: symbolic ones, and names after the first of a file that has several */
	uint64_t outside; /* symbolic links that lead out and were not unpacked */
	uint64_t bytes;	  /* of file contents */
};

/* The name at the top of a stream that is packed from path: its last component, or "."
 * for a folder's contents (path is "/", or ends in "/.", ".." or is "."). Who unpacks
 * what another side packs knows by it what may come. */
int tar_top_name(const char *path, char name[static NAME_MAX + 1], struct err *e);

/* Whether the path leads through an open descriptor of a process, as /dev/stdin does: it
 * is no link that means anything elsewhere, and nothing to be replaced. */
bool tar_is_open_elsewhere(const char *path);

/*
 * Packing. The stream's members all stand under tar_top_name() of path. Sockets and
 * devices are left out and counted; where path itself is one, that is an error.
 */
struct tar_pack_opts {
	const char *path;
	bool follow; /* path itself, when it is a symbolic link; else it is packed as a
			   link, except when a "/" follows it */
	bool leave_fifos; /* FIFOs are treated like sockets and devices */
	/* Contents of a regular file, which is packed with the name and mode of path; fd
	 * is taken over, also on an error. */
	bool has_fd;
	int fd;
};

struct tar_pack;

/* path is copied. */
int tar_pack_open(const struct tar_pack_opts *opts, struct tar_pack **ret, struct err *e);
/* Fills buf: the count, 0 at the end, negative on an error (final). A file that shrinks
 * while it is read is an error, one that vanishes before it is opened is left out. */
ssize_t tar_pack_read(struct tar_pack *p, void *buf, size_t cap, struct err *e);
const struct tar_stats *tar_pack_stats(const struct tar_pack *p);
void tar_pack_close(struct tar_pack *p); /* NULL is fine */

/*
 * Unpacking, as `cp -r` would place it: into dest when that is a folder, else as dest.
 * Nothing outside is ever written: members with "..", absolute names or a symbolic link
 * on their way are errors (openat2, RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), and nothing
 * is written through an existing file: a file, link or FIFO of that name is replaced.
 * Existing folders keep their mode and time; an existing device, or what a program has
 * open (/dev/stdout), is an error. A stream has one name at its top.
 *
 * A file appears under its name when it is whole: it is written as ".pando-" and 16 hex
 * digits beside it and renamed. With `sync` its contents are on the disk before that, so
 * that a power cut cannot leave less; many files are synced at once. What has no name yet
 * when the stream fails is removed. Only a process that is killed, or a power cut, leaves
 * such a file.
 *
 * From a side that is not trusted, too:
 *  - the name at the top is the one that was asked for; any other is an error;
 *  - a symbolic link that could lead out of the top, now or through other links of such
 *    streams, is left out and counted: one whose target is absolute, goes up beyond the
 *    top, or goes up again after it went down. So is one that is the top itself;
 *  - a hard link is to a file of the same stream, or an error;
 *  - FIFOs are errors, as devices always are.
 */
struct tar_unpack_opts {
	const char *dest;
	const char *name; /* the one name that may stand at the top, of tar_top_name();
			     NULL: the one of the first member */
	bool untrusted;
	bool sync;
	bool keep_setid; /* set-user-id and set-group-id bits; not from a side that is not
			    trusted */
	bool chown;	 /* give everything to uid, gid */
	uid_t uid;
	gid_t gid;
};

struct tar_unpack;

/* opts is copied, dest and name too. Nothing is touched before the first member. */
int tar_unpack_open(
	const struct tar_unpack_opts *opts, struct tar_unpack **ret, struct err *e);
/* Any cut of the stream is fine. An error is final. */
int tar_unpack_feed(struct tar_unpack *u, const void *buf, size_t len, struct err *e);
/* The stream has ended: sets what was left to be set. -EPIPE when it ended too early. */
int tar_unpack_finish(struct tar_unpack *u, struct err *e);
const struct tar_stats *tar_unpack_stats(const struct tar_unpack *u);
/* The first that was left out because it leads out; "" when there is none. */
const char *tar_unpack_outside(const struct tar_unpack *u);
void tar_unpack_close(struct tar_unpack *u); /* NULL is fine */

#endif
