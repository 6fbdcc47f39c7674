/*
 * A commit's memory that VMs run on before it is there (common/wire/fill_wire.h): pandod's
 * side. A thread tells pando-fill, page by page, where the store has them, first those that the
 * last restore of this commit touched first, and waits for the end of it. The memory image for
 * later VMs (<folder>/memory) is made on the way.
 *
 * A pandod that ends after the plan was told costs the VMs nothing: pando-fill goes on. One that
 * ends before had not made their rows yet (fill_wait_planned()), so that they are undone.
 *
 * /dev/userfaultfd (Linux 6.1) is what it needs, and memfds that are filled page by page
 * (common/memfd.h). Where one of them is not so fill_start() says -EOPNOTSUPP, and the memory is
 * made as a whole first.
 */
#ifndef PANDO_HOST_COMMIT_FILL_H
#define PANDO_HOST_COMMIT_FILL_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/err.h"
#include "host/store/store.h"

struct fill;

/* A pando-fill that waits for its first message, and ends when its socket is closed. */
struct fill_process {
	int sock, pidfd; /* owned; -1: none */
	pid_t pid;
};
#define FILL_PROCESS_INIT {.sock = -1, .pidfd = -1}
int fill_process_start(
	const char *program, int log_fd, struct fill_process *ret, struct err *e);
void fill_process_end(struct fill_process *p);

struct fill_how {
	uint64_t bytes; /* of the memory that are not zero, or more */
	const char *program; /* pando-fill */
	struct fill_process *process; /* if there is one: taken over, whatever comes of it */
	const char *folder;  /* of the materialized image */
	const char *touched; /* the file of what was touched first */
	int log_fd;	     /* borrowed: its standard error */
	/* From the fill's own thread, at its end: the image is whole and has its name, or why
	 * not. */
	void (*ended)(void *ctx, int r, const struct err *e);
	void *ctx;
};
#define FILL_DEVICE "/dev/userfaultfd"

/* One reference is the caller's. Strings are borrowed until this returns. memory: the tree. */
int fill_start(struct store *s, const struct store_tree *memory, const struct fill_how *how,
	struct fill **ret, struct err *e);
struct fill *fill_ref(struct fill *f);
/* The last one lets pando-fill end when its VMs are whole. NULL is fine. */
void fill_unref(struct fill *f);

/* The image to map: a descriptor of the caller's, which cannot write it. */
int fill_open_memory(const struct fill *f, int *ret_fd, struct err *e);
/* /dev/userfaultfd; borrowed. */
int fill_device_fd(const struct fill *f);
/* A VM's socket, the caller's. */
int fill_add_vm(struct fill *f, int *ret_fd, struct err *e);
/* Until pando-fill knows the whole plan: < 0: it never will. */
int fill_wait_planned(struct fill *f, struct err *e);
/* What all of them are yet to take of the host's memory, which it cannot get back as long as
 * there are VMs on it. */
uint64_t fill_memory_to_come(void);
/* Ends the thread; pando-fill goes on. For pandod's end. */
void fill_stop(struct fill *f);

#endif
