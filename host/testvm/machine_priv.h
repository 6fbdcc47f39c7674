/*
 * What machine.c (what there is, its process, start and stop), machine_make.c (its disk
 * and keys) and machine_qemu.c (QEMU's command line and birth) share. Nobody else
 * includes this.
 */
#ifndef PANDO_HOST_TESTVM_MACHINE_PRIV_H
#define PANDO_HOST_TESTVM_MACHINE_PRIV_H

#include "host/testvm/machine.h"

#define MACHINE_QEMU "qemu-system-x86_64"

/* A file of the machine's folder. */
int machine_path(
	const struct machine *m, const char *name, char dst[PATHS_MAX], struct err *e);
int machine_write(
	const struct machine *m, const char *name, const char *text, struct err *e);

/* All that a machine consists of; the image is made when there is none. The disk is put
 * in place last: with it, a machine exists. With the lock. */
int machine_make(
	struct machine *m, uint64_t disk_mib, machine_say *say, void *ctx, struct err *e);
/* A machine keeps its disk, and so what it was made from. Whoever changed that should
 * know. */
void machine_look_for_newer(const struct machine *m, machine_say *say, void *ctx);

/* Starts QEMU on a port that is free (m->port) and records it: then m->state is
 * MACHINE_RUNNING. It may end at once, and says why in qemu.log. With the lock. */
int machine_launch(struct machine *m, struct err *e);

#endif
