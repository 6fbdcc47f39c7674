/*
 * What a VM boots from: a kernel, perhaps an initrd, perhaps a base disk. Names are
 * looked up below PANDO_IMAGES (ARCHITECTURE.md); an absolute path names an image folder,
 * or the file itself. Everything is looked at before anything is made, so that a wrong
 * file costs a sentence and nothing else.
 */
#ifndef PANDO_HOST_VM_IMAGE_H
#define PANDO_HOST_VM_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"
#include "common/paths.h"
#include "common/wire/vmm_wire.h"

#define IMAGE_JSON_MAX (64u * 1024u)

struct image {
	int kernel_fd;		     /* owned; read-only, as the others */
	int initrd_fd;		     /* owned; -1: none */
	int base_fd;		     /* owned; -1: none */
	bool is_linux;		     /* its header names a version, as every Linux does */
	char kernel_path[PATHS_MAX]; /* real path of the kernel's image folder or file */
	char base_path[PATHS_MAX];   /* real path of the base disk; empty: none */
	uint64_t base_mib;	     /* its size, rounded up */
	char cmdline[VMM_CMDLINE_MAX]; /* the image's own */
};
#define IMAGE_INIT \
	{ \
		.kernel_fd = -1, .initrd_fd = -1, .base_fd = -1 \
	}

void image_done(struct image *i);
#define cleanup_image __attribute__((cleanup(image_done)))

/*
 * images: the folder of images. kernel and rootfs: a name or an absolute path; rootfs
 * "none" is no base disk at all. The initrd and the command line come from the kernel's
 * image; a kernel that is a plain file has neither. ret: IMAGE_INIT, filled on success,
 * closed again on failure.
 *
 * -ENOENT no such image, -EINVAL a file that is not what it should be.
 */
int image_open(const char *images, const char *kernel, const char *rootfs,
	struct image *ret, struct err *e);

#endif
