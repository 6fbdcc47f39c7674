/*
 * What pandod and pando-fsdiff say to each other, over one SOCK_SEQPACKET pair: a message
 * is a header and what its type has behind it. Two disks, 0 and 1, in pages of 4 KiB.
 *
 *   pandod -> pando-fsdiff   HELLO, RANGES… (which pages differ; the last one is empty),
 *                            then a DATA for each READ
 *   pando-fsdiff -> pandod   READ…, CHANGE…, END
 *
 * pando-fsdiff reads file systems that a hostile guest has made: what it says is checked
 * like a guest's words.
 */
#ifndef PANDO_HOST_COMMIT_FSDIFF_WIRE_H
#define PANDO_HOST_COMMIT_FSDIFF_WIRE_H

#include <stdint.h>

#define FSDIFF_VERSION 1u
#define FSDIFF_PAGE 4096u
#define FSDIFF_READ_PAGES 8u
#define FSDIFF_RANGES_MAX 2048u
#define FSDIFF_PATH_MAX 4096u
#define FSDIFF_TEXT_MAX 256u

enum fsdiff_type {
	FSDIFF_HELLO = 1,
	FSDIFF_RANGES = 2,
	FSDIFF_DATA = 3,
	FSDIFF_READ = 16,
	FSDIFF_CHANGE = 17,
	FSDIFF_END = 18,
};

struct fsdiff_hello {
	uint32_t type, version;
	uint64_t pages[2];
};

struct fsdiff_ranges {
	uint32_t type, n;
	struct {
		uint64_t first, n;
	} ranges[FSDIFF_RANGES_MAX]; /* as many as n are sent */
};

struct fsdiff_read {
	uint32_t type, disk;
	uint64_t page;	 /* what lies behind the disk's end is zero */
	uint32_t n, pad; /* up to FSDIFF_READ_PAGES */
};

struct fsdiff_data {
	uint32_t type;
	int32_t error; /* -errno: what follows is nothing */
	uint8_t data[FSDIFF_READ_PAGES * FSDIFF_PAGE];
};

enum fsdiff_what { FSDIFF_ADDED, FSDIFF_REMOVED, FSDIFF_CHANGED, FSDIFF_WHATS };
enum fsdiff_kind {
	FSDIFF_FILE,
	FSDIFF_FOLDER,
	FSDIFF_SYMLINK,
	FSDIFF_OTHER,
	FSDIFF_KINDS
};
/* Of what changed, what. */
enum fsdiff_field {
	FSDIFF_CONTENT = 1,
	FSDIFF_SIZE = 2,
	FSDIFF_MTIME = 4,
	FSDIFF_MODE = 8,
	FSDIFF_OWNER = 16,
	FSDIFF_KIND = 32, /* a file became a folder, say */
};

struct fsdiff_change {
	uint32_t type, what, kind, fields;
	uint64_t size[2]; /* of the side that has it; else 0 */
	uint32_t path_len, pad;
	char path[FSDIFF_PATH_MAX]; /* as many bytes as path_len; any but NUL */
};

struct fsdiff_end {
	uint32_t type;
	int32_t error; /* -errno: the file systems cannot be read, as text says */
	char text[FSDIFF_TEXT_MAX];
};

#endif
