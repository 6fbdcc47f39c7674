#include "host/store/store_zip.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

struct zip {
	ZSTD_CCtx *in;	/* owned; made when first needed */
	ZSTD_DCtx *out; /* owned; likewise */
};

int
zip_new(struct zip **ret)
{
	struct zip *z = calloc(1, sizeof(*z));

	if (!z)
		return -ENOMEM;
	*ret = z;
	return 0;
}

void
zip_free(struct zip *z)
{
	if (!z)
		return;
	ZSTD_freeCCtx(z->in);
	ZSTD_freeDCtx(z->out);
	free(z);
}

size_t
zip_pack(struct zip *z, void *dst, const void *src, size_t len)
{
	/* What saves less than a sixteenth is not worth being unpacked. */
	size_t room = len - len / 16, n;

	if (!z->in) {
		z->in = ZSTD_createCCtx();
		if (!z->in)
			return 0;
		ZSTD_CCtx_setParameter(z->in, ZSTD_c_compressionLevel, 1);
		ZSTD_CCtx_setParameter(z->in, ZSTD_c_contentSizeFlag, 0);
	}
	n = ZSTD_compress2(z->in, dst, room, src, len);
	return ZSTD_isError(n) ? 0 : n;
}

size_t
zip_frame_len(const void *src, size_t len)
{
	static const unsigned char magic[] = {0x28, 0xb5, 0x2f, 0xfd};
	size_t n;

	if (len < sizeof(magic) || memcmp(src, magic, sizeof(magic)) != 0)
		return 0;
	n = ZSTD_findFrameCompressedSize(src, len);
	return ZSTD_isError(n) ? 0 : n;
}

int
zip_unpack(struct zip *z, void *dst, size_t dst_len, const void *src, size_t src_len)
{
	if (!z->out)
		z->out = ZSTD_createDCtx();
	if (!z->out)
		return -ENOMEM;
	return ZSTD_decompressDCtx(z->out, dst, dst_len, src, src_len) == dst_len
		       ? 0
		       : -EBADMSG;
}
