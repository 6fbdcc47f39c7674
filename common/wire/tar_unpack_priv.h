/*
 * What tar_unpack.c (the stream) and tar_place.c (the file system) share. Nobody else
 * includes this.
 */
#ifndef PANDO_COMMON_WIRE_TAR_UNPACK_PRIV_H
#define PANDO_COMMON_WIRE_TAR_UNPACK_PRIV_H

#include "common/wire/tar.h"
#include "common/wire/tar_format.h"

struct made {
	int fd;	    /* owned */
	size_t len; /* of u->stack_path, of this folder */
	bool set; /* made by us: mode and time are to be set; else it was there and stays
		     as it was */
	mode_t mode;
	struct timespec mtime;
};

enum state { AT_HEADER, IN_PAX, IN_MAP, IN_FILE, IN_PADDING, AT_END };

#define TEMP_NAME_LEN (7 + 16)
struct temp_name {
	char v[TEMP_NAME_LEN + 1]; /* "" when there is none */
};

enum step_kind { STEP_RENAME, STEP_LINK, STEP_FOLDER };

struct step {
	enum step_kind kind;
	mode_t mode;	       /* of a folder */
	struct timespec mtime; /* of a folder */
	struct temp_name temp; /* of a file */
	char *path;	       /* owned; beneath base */
	char *target;	       /* owned; of a link, beneath base */
};
/* A sync for so many steps, or so many bytes. */
#define STEPS_MAX 4096
#define STEPS_BYTES_MAX (256u << 20)

struct extent {
	uint64_t at, len;
};

struct tar_unpack {
	struct tar_unpack_opts opts;
	char *dest;    /* owned */
	int base;      /* owned: what every member is beneath; -1 before the first */
	char *rename;  /* owned: what the first component becomes, or NULL */
	char *top;     /* owned: the first component of all members */
	bool contents; /* the stream is a folder's contents: its top is "." */
	bool base_is_new;

	enum state state;
	char block[TAR_BLOCK];
	size_t have;   /* in block or pax */
	uint64_t left; /* of the file or its padding */
	size_t padding;
	unsigned zero_blocks;

	char *pax; /* owned */
	size_t pax_len;
	/* What pax said about the next member. */
	char *pax_path, *pax_link; /* owned */
	bool has_size, has_mtime, is_sparse;
	unsigned sparse_major, sparse_minor;
	uint64_t pax_size, real_size;
	char *sparse_path; /* owned */
	struct timespec pax_mtime;

	int file;     /* owned */
	int file_dir; /* borrowed from the stack, or base: where temp is */
	struct temp_name temp;
	mode_t file_mode;
	struct timespec file_mtime;
	uint64_t file_at; /* where the next byte goes, and how many do from there */
	uint64_t extent_left;
	/* Of a sparse file: the map, and how far it is read. */
	struct extent *extents; /* owned */
	size_t n_extents, next_extent;
	bool sparse;
	uint64_t map_read, number, numbers; /* bytes; the one under way; those done */
	bool in_number;

	char path[TAR_PATH_MAX];   /* of the member, beneath base */
	char target[TAR_PATH_MAX]; /* the same, what a hard link is to */

	struct step *steps; /* owned */
	size_t n_steps;
	uint64_t steps_bytes;
	dev_t base_dev;

	/* Inode numbers of files of this stream, on linked_dev; a hash table, 0 is free. */
	uint64_t *linked; /* owned */
	size_t linked_cap, n_linked;
	dev_t linked_dev;

	char stack_path[TAR_PATH_MAX];
	struct made stack[TAR_DEPTH_MAX + 1];
	size_t depth;
	struct tar_stats stats;
	char outside[TAR_PATH_MAX]; /* the first such link */
};

/*
 * tar_place.c. Each makes one member, whose place is u->path. An error is final.
 */
/* Where the stream's top goes: u->base, u->rename. */
int tar_place_settle(struct tar_unpack *u, struct err *e);
/* Leaves the folders of the stack that path is not in; NULL: all. */
int tar_place_leave(struct tar_unpack *u, const char *path, struct err *e);
int tar_place_folder(
	struct tar_unpack *u, mode_t mode, struct timespec mtime, struct err *e);
/* Opens u->file; tar_place_finish_file() gives it its name, now or in a later step. */
int tar_place_file(
	struct tar_unpack *u, mode_t mode, struct timespec mtime, struct err *e);
int tar_place_finish_file(struct tar_unpack *u, struct err *e);
/* Another name of u->target. */
int tar_place_hard_link(struct tar_unpack *u, struct err *e);
/* type: '2', a symbolic link to `link`, or '6', a FIFO. */
int tar_place_special(struct tar_unpack *u, char type, const char *link, mode_t mode,
	struct timespec mtime, struct err *e);
/* Syncs, and does the steps that were kept. */
int tar_place_steps(struct tar_unpack *u, struct err *e);
/* Closes and frees all of it, and removes files that have no name yet. */
void tar_place_done(struct tar_unpack *u);

#endif
