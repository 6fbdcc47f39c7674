/*
 * The requests of pandod, and the end of the VM: the topmost layer, which alone calls fork.h
 * and restore_answer_state(). Main thread only; nothing below calls it but through
 * struct mainloop_above.
 */
#ifndef PANDO_VMM_CONTROL_H
#define PANDO_VMM_CONTROL_H

#include "vmm/vm.h"

/* Sets vm->above. Once in a process, first of all. */
void control_init(struct vm *vm);

#endif
