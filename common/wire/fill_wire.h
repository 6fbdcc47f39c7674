/*
 * Memory that is filled while its guests run. pando-fill, a process of its own, has the
 * memory image of a commit as a memfd that VMs map (MAP_PRIVATE), and the userfaultfd(2) of
 * each VM: a page that a guest touches before it is there is read from the store at once, all
 * others in the background. Documentation/admin-guide/mm/userfaultfd.rst.
 *
 * pandod -> pando-fill, over FILL_CONTROL_FD (SOCK_SEQPACKET): which files there are, and the
 * plan, which says of each page that is not zero where it lies in them. pando-fill opens no
 * file and needs no pandod once it has the whole plan.
 * VM <-> pando-fill, over a socket pair of their own: FILL_MEMORY with the userfaultfd, and
 * FILL_WHOLE when all is there. The VM keeps its userfaultfd until then, so that nothing is
 * ever taken for zero that is not, and says that it is done by closing the socket.
 *
 * Little-endian; an unknown type or version or a wrong length ends the connection.
 */
#ifndef PANDO_COMMON_WIRE_FILL_WIRE_H
#define PANDO_COMMON_WIRE_FILL_WIRE_H

#include <stdint.h>

#define FILL_CONTROL_FD 3
#define FILL_VERSION 1
#define FILL_PAGE 4096u
#define FILL_LEAF_PAGES 64u /* pages of which the plan speaks at once */
#define FILL_MSG_MAX 256

enum fill_type {
	/* pandod -> pando-fill */
	FILL_BEGIN = 1, /* the first */
	FILL_PACK = 2,	/* one more file that pages lie in: numbered from 0 */
	FILL_PLAN = 3,	/* the plan has grown */
	FILL_VM = 4,	/* one more VM: its socket */
	/* pando-fill -> pandod */
	FILL_WANT = 64, /* a leaf that is wanted next */
	FILL_DONE = 65, /* memory is whole, or will never be */
	/* VM -> pando-fill, and back */
	FILL_MEMORY = 128,
	FILL_WHOLE = 129,
};

struct fill_hdr {
	uint16_t version; /* FILL_VERSION */
	uint16_t type;
	uint32_t len; /* of the message */
};

enum fill_begin_fd {
	FILL_BEGIN_FD_MEMORY,  /* memfd of the memory's length, of holes */
	FILL_BEGIN_FD_IMAGE,   /* likewise a file; what is written here may fail */
	FILL_BEGIN_FD_PLAN,    /* memfd: struct fill_place, one after the other */
	FILL_BEGIN_FD_TOUCHED, /* empty file, for FILL_TOUCHED_MAX numbers of pages */
	FILL_BEGIN_FD_COUNT,
};

struct fill_begin {
	struct fill_hdr hdr;
	uint64_t pages;
};
_Static_assert(sizeof(struct fill_begin) == 16, "wire format");

struct fill_plan {
	struct fill_hdr hdr;
	uint64_t places; /* in the plan by now */
	uint32_t is_all; /* 1: no more will come */
	uint32_t pad;
};
_Static_assert(sizeof(struct fill_plan) == 24, "wire format");

enum fill_coding {
	FILL_RAW = 0,
	FILL_ZSTD = 1,
	FILL_LEAF = 255, /* no place: the leaf that begins with this page is all told */
};

struct fill_place {
	uint64_t page;
	uint64_t offset; /* in the pack */
	uint32_t stored; /* bytes */
	uint16_t pack;
	uint8_t coding; /* enum fill_coding */
	uint8_t pad;
	uint8_t hash[32]; /* BLAKE2b-256 of the page */
};
_Static_assert(sizeof(struct fill_place) == 56, "wire format");

struct fill_want {
	struct fill_hdr hdr;
	uint64_t leaf;
};
_Static_assert(sizeof(struct fill_want) == 16, "wire format");

struct fill_done {
	struct fill_hdr hdr;
	int32_t error;	    /* 0 or negative errno: then msg says why */
	int32_t image_error; /* likewise of the image: 0: it is whole */
	char msg[FILL_MSG_MAX];
};
_Static_assert(sizeof(struct fill_done) == 16 + FILL_MSG_MAX, "wire format");

/* Its one descriptor is the userfaultfd. */
struct fill_memory {
	struct fill_hdr hdr;
	uint64_t host; /* where the image lies in the VM, in one piece */
	uint64_t len;
};
_Static_assert(sizeof(struct fill_memory) == 24, "wire format");

struct fill_whole {
	struct fill_hdr hdr;
	int32_t error; /* 0, or negative errno: what is missing will never be there */
	uint32_t pad;
	char msg[FILL_MSG_MAX];
};
_Static_assert(sizeof(struct fill_whole) == 16 + FILL_MSG_MAX, "wire format");

/* What the last restore touched before it was there: numbers of pages (uint32_t) in the order
 * in which they were wanted. Whoever reads them believes no more than that. */
#define FILL_TOUCHED_MAX 16384u

#endif
