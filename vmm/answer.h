/*
 * What is sent over the control socket (common/wire/vmm_wire.h): answers and events. Main
 * thread only.
 */
#ifndef PANDO_VMM_ANSWER_H
#define PANDO_VMM_ANSWER_H

#include <stddef.h>

#include "vmm/vm.h"

/* Fills in the header and sends; a failure drops the connection. len: of the whole
 * message. */
void answer_send(struct vm *vm, struct vmm_hdr *hdr, enum vmm_msg_type type, size_t len,
	uint64_t seq);
/* error < 0: why is the sentence; else why is not looked at. */
void answer_started(struct vm *vm, int error, const char *why);
void answer_done(struct vm *vm, uint64_t seq, int error, const char *why);

#endif
