/*
 * The ustar header block, for tar_pack.c and tar_unpack.c. IEEE 1003.1-2017, pax, "ustar
 * Interchange Format".
 */
#ifndef PANDO_COMMON_WIRE_TAR_FORMAT_H
#define PANDO_COMMON_WIRE_TAR_FORMAT_H

#include <stdint.h>
#include <string.h>

#define TAR_BLOCK 512u

struct tar_header {
	char name[100];
	char mode[8];
	char uid[8];
	char gid[8];
	char size[12];
	char mtime[12];
	char chksum[8];
	char typeflag;
	char linkname[100];
	char magic[6];
	char version[2];
	char uname[32];
	char gname[32];
	char devmajor[8];
	char devminor[8];
	char prefix[155];
	char pad[12];
};
_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "disk format");

/* The sum of all bytes, with the chksum field as spaces. */
static inline unsigned
tar_checksum(const struct tar_header *h)
{
	struct tar_header copy = *h;
	unsigned sum = 0;

	memset(copy.chksum, ' ', sizeof(copy.chksum));
	for (size_t i = 0; i < sizeof(copy); i++)
		sum += ((const unsigned char *)&copy)[i];
	return sum;
}

#endif
