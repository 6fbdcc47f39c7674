/*
 * Compression of chunks. zstd is called only in store_zip.c. A struct zip holds the
 * library's working memory; one thread at a time.
 */
#ifndef PANDO_HOST_STORE_STORE_ZIP_H
#define PANDO_HOST_STORE_STORE_ZIP_H

#include <stddef.h>

struct zip;

/* -ENOMEM. */
int zip_new(struct zip **ret);
void zip_free(struct zip *z); /* NULL is fine */

static inline void
cleanup_zip_fn(struct zip **z)
{
	zip_free(*z);
}
#define cleanup_zip __attribute__((cleanup(cleanup_zip_fn)))

/* Compresses len bytes to dst (len bytes of room). Returns how many they became, 0 when
 * that is not worth it. */
size_t zip_pack(struct zip *z, void *dst, const void *src, size_t len);

/* How long the compressed bytes are that begin here; 0: none do, or their end is not among
 * the len bytes. */
size_t zip_frame_len(const void *src, size_t len);

/* Decompresses to exactly dst_len bytes, else -EBADMSG. */
int zip_unpack(struct zip *z, void *dst, size_t dst_len, const void *src, size_t src_len);

#endif
