/*
 * Packs: the files that hold chunks. A pack never changes; its name is the hash of its
 * index.
 *
 *   struct pack_header
 *   stored chunks, one after the other; zeroes up to a multiple of PACK_ALIGN
 *   struct pack_entry × count, ascending by (hash, kind)
 *   struct pack_footer
 *
 * All little-endian. A pack may come from anywhere: pack_open() checks lengths, order and
 * the index's hash before an entry is believed, and what an entry leads to is hashed by
 * the reader.
 */
#ifndef PANDO_HOST_STORE_STORE_PACK_H
#define PANDO_HOST_STORE_STORE_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"
#include "host/store/store_bloom.h"
#include "host/store/store_hash.h"

#define CHUNK_MAX 4096u
#define NODE_FANOUT 64u
#define PACK_SUFFIX ".pack"
#define PACK_TEMP "tmp." /* how the names of unfinished files begin */

enum chunk_kind {
	CHUNK_PAGE = 1, /* 4096 bytes */
	CHUNK_NODE = 2, /* NODE_FANOUT hashes: 2048 bytes */
};

enum chunk_coding {
	CODING_RAW = 0,
	CODING_ZSTD = 1,
	/* Nodes only: struct node_delta and the children that differ from those of
	   another node, which is not stored as a delta itself. */
	CODING_DELTA = 2,
};

struct pack_header {
	char magic[8]; /* PACK_MAGIC */
	uint32_t version;
	uint32_t zero;
};
_Static_assert(sizeof(struct pack_header) == 16, "disk format");

struct pack_entry {
	struct store_hash hash;
	uint64_t offset; /* of the stored bytes in the file */
	uint32_t stored; /* how many they are */
	uint8_t kind, coding;
	uint8_t zero[2];
};
_Static_assert(sizeof(struct pack_entry) == 48, "disk format");

struct pack_footer {
	uint64_t index_offset;
	uint64_t count;
	struct store_hash index_hash;
	uint32_t version;
	uint32_t zero;
	char magic[8]; /* PACK_MAGIC */
};
_Static_assert(sizeof(struct pack_footer) == 64, "disk format");

struct node_delta {
	struct store_hash reference;
	uint64_t changed; /* bit i: child i follows */
};
_Static_assert(sizeof(struct node_delta) == 40, "disk format");

#define PACK_MAGIC "pandopak"
#define PACK_VERSION 1u
#define PACK_ALIGN 64u /* of the index in the file */

static inline uint32_t
chunk_len(enum chunk_kind kind)
{
	return kind == CHUNK_PAGE ? CHUNK_MAX : NODE_FANOUT * STORE_HASH_BYTES;
}

struct pack {
	unsigned refs; /* atomic */
	char name[STORE_HEX + 1];
	const struct pack_entry *index; /* mapped */
	size_t count;
	uint64_t bytes; /* of the file */
	int64_t mtime_ns;
	void *map; /* owned */
	size_t map_len;
	struct bloom bloom;
	uint64_t *bad; /* owned; a bit an entry, set (atomically) when its bytes turned
			  out to be damaged */
	struct marks *marks; /* weak: of the gc that runs (store_gc.c), or NULL */
	bool unmergeable;    /* atomic: stays as it is, see store_merge.c */
	int fd;		     /* owned; -1 when closed; see pack_fd_get() */
	unsigned fd_users;   /* atomic */
};

/* Opens a pack by its name (64 hex digits) and checks it. -EBADMSG: it is damaged or of
 * another version, the sentence says how; else what the system said. */
int pack_open(int folder_fd, const char *name, struct pack **ret, struct err *e);
/* The same of an open file whose name is not known (NULL) or to be checked; takes fd over
 * on success. */
int pack_open_fd(int fd, const char *name, struct pack **ret, struct err *e);
/* The last reference's end is the pack's. */
void pack_unref(struct pack *p);
#define PACK_TEMP_MAX 64u
/* Its file stays open until the pack's end. */
int pack_pin(struct pack *p, int folder_fd);
/* Undoes one pack_pin(), or what pack_writer_seal() did. */
void pack_fd_put(struct pack *p);
/* Gives the file a name that the next store_open() removes, or the caller before. */
int pack_retire(int folder_fd, const char *name, char ret_temp[static PACK_TEMP_MAX]);

/* The number of the entry, or -1. Damaged ones are not found unless any is set. */
int64_t pack_find(const struct pack *p, enum chunk_kind kind,
	const struct store_hash *hash, bool any);
void pack_mark_bad(struct pack *p, size_t entry);
/* The next that is marked, from `entry` on; p->count: none. */
size_t pack_next_bad(const struct pack *p, size_t entry);

/* The stored bytes of an entry to buf (CHUNK_MAX bytes). -ENODATA: the file is shorter
 * than it was. folder_fd as in pack_open: packs keep few files open. */
int pack_read(struct pack *p, int folder_fd, size_t entry, uint8_t *buf);

/*
 * A pack being written. Nothing is made on disk before the first chunk. Not thread-safe.
 */
struct pack_writer;

int pack_writer_new(int folder_fd, struct pack_writer **ret);
/* Removes what is unfinished. NULL is fine. */
void pack_writer_free(struct pack_writer *w);
bool pack_writer_has(
	const struct pack_writer *w, enum chunk_kind kind, const struct store_hash *hash);
/* The caller looked before that it is not there yet. */
int pack_writer_add(struct pack_writer *w, enum chunk_kind kind, enum chunk_coding coding,
	const struct store_hash *hash, const void *stored, uint32_t len, struct err *e);
/* Gives the file a time: packs are in the order of theirs. 0: now. */
void pack_writer_set_time(struct pack_writer *w, int64_t mtime_ns);
/* Index and fsync, and the file as a pack, pinned, which has no name yet; *ret is NULL when
 * there was nothing to write. Nothing may be added afterwards. */
int pack_writer_seal(
	struct pack_writer *w, struct pack **ret, uint64_t *ret_bytes, struct err *e);
/* Gives the file the pack's name. -errno. */
int pack_writer_rename(struct pack_writer *w, const char *name);

#endif
