/*
 * Guest memory: one private anonymous mapping of ours, seen by the guest as RAM from 0
 * and, above 3 GiB of it, as a second piece from 4 GiB (the hole between is for devices).
 *
 * A guest address is a gpa_t, an integer that host code cannot dereference by accident.
 * guest_read() and guest_write() are the way in: they copy and check for overflow and
 * for the hole. guest_range() is for bulk I/O alone (preadv into guest pages): what lies
 * behind its pointer changes under the reader's hands while vCPUs run, so nothing read
 * through it is ever trusted twice.
 *
 * fork() carries the mapping to a branch, copy on write. Host and guest addresses agree
 * modulo 2 MiB so that both sides may use huge pages.
 */
#ifndef PANDO_VMM_MEMORY_H
#define PANDO_VMM_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

typedef struct {
	uint64_t v;
} gpa_t;

#define GUEST_LOW_MAX (3ull << 30)   /* RAM below the device hole ends here at most */
#define GUEST_HIGH_BASE (4ull << 30) /* and goes on here */
#define GUEST_UNIT (64u << 10)

struct guest_mem {
	uint8_t *host;	   /* owned: low_len + high_len bytes, 2 MiB aligned */
	uint64_t low_len;  /* guest [0, low_len) is host[0…] */
	uint64_t high_len; /* guest [4 GiB, 4 GiB + high_len) is host[low_len…] */
	bool on_image;	   /* pages nobody wrote are an image's, not zero */
	/* The image that all of it is a private mapping of. inode 0: none, or something else
	 * was mapped into it since. */
	uint64_t image_dev, image_inode;
	/* There, what went back to the host is anonymous (vmm/giveback.h): a bit for each
	 * GUEST_UNIT, the lowest of a byte first. Owned; NULL: nothing is. */
	uint8_t *anonymous;
	unsigned anonymous_maps; /* mappings that were made for it */
};

/* mem_mib: 1 and up. -ENOMEM with a sentence when the host refuses. */
int guest_mem_create(struct guest_mem *m, uint64_t mem_mib, struct err *e);
/* The same addresses, reserved and not usable; then given up, so that nothing is mapped
 * there (KVM's slots may be set over them all the same: mapping into such a hole costs
 * KVM nothing); then the image, private, read-only itself, exactly the memory's length:
 * low piece, high piece. Between the last two nothing else may map memory; if something
 * did, that is -EEXIST and no harm is done. */
int guest_mem_reserve(struct guest_mem *m, uint64_t mem_mib, struct err *e);
/* One page of what is reserved becomes usable, until the hole is opened. */
int guest_mem_lend_page(struct guest_mem *m, gpa_t page, struct err *e);
void guest_mem_open_hole(struct guest_mem *m);
int guest_mem_map_image(struct guest_mem *m, int image_fd, struct err *e);
/* Whether image_fd can be mapped: regular, exactly the memory's length. *ret_same: it is the one
 * that all of the memory lies on. */
int guest_mem_check_image(
	const struct guest_mem *m, int image_fd, bool *ret_same, struct err *e);
/* The image in the place of whatever the memory is, at the same addresses, so that KVM's slots
 * stay. On failure nothing is certain. */
int guest_mem_replace(struct guest_mem *m, int image_fd, struct err *e);
void guest_mem_destroy(struct guest_mem *m);
/* Bytes of a bitmap with a bit for each GUEST_UNIT. */
size_t guest_mem_unit_bytes(const struct guest_mem *m);

/* 0, or -EFAULT when any of the len bytes is not RAM (nothing is copied then). len 0 is
 * fine at any address. */
int guest_read(const struct guest_mem *m, gpa_t gpa, void *dst, size_t len);
int guest_write(const struct guest_mem *m, gpa_t gpa, const void *src, size_t len);

/* The host address of len contiguous bytes of RAM, or NULL. */
void *guest_range(const struct guest_mem *m, gpa_t gpa, size_t len);

#endif
