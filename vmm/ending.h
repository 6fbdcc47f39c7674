/*
 * The note of how a VM ends (`ending`, `end_reason` and `end_msg` of struct vm), and the event
 * that tells the main thread of it. Any thread may end the VM; the main thread carries it out
 * (control.c).
 */
#ifndef PANDO_VMM_ENDING_H
#define PANDO_VMM_ENDING_H

#include "vmm/vm.h"

/* The first call writes the note, later ones do nothing. A vCPU thread goes on to park by
 * itself. */
void ending_tell(struct vm *vm, enum vmm_exit_reason reason, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#endif
