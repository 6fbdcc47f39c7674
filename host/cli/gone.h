/* What verbs say that hold a connection to a guest, when it breaks. */
#ifndef PANDO_HOST_CLI_GONE_H
#define PANDO_HOST_CLI_GONE_H

#include "host/client/client.h"

/* Why a connection to vm broke, as far as pandod knows or gets to know within a second:
 * -ESHUTDOWN with a sentence when the VM runs no more (stopped, failed, deleted) or was reset
 * since vm was asked for, 0 when it still does. */
int gone_why(struct client *c, const struct client_vm *vm, struct err *e);

/* A refusal that only means that the guest's agent does not know the request yet gets the
 * sentence with the mend. */
void gone_if_old(struct err *e);

#endif
