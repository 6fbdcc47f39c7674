/*
 * What pando-fill gives up before its first message: all that a VMM gives up (vmm/seal.h), and
 * more, since it makes no process and opens nothing. It keeps what its table of system calls
 * says: to read and write the descriptors that it is handed, memory, threads, and of
 * userfaultfd(2) to wake and to give zero pages. It cannot write a VM's memory by one
 * (UFFDIO_COPY), only the memfd.
 */
#ifndef PANDO_HOST_FILL_FILL_SEAL_H
#define PANDO_HOST_FILL_FILL_SEAL_H

#include "common/err.h"

/* One thread. What this host does not allow is said in the log. */
int fill_seal(struct err *e);

#endif
