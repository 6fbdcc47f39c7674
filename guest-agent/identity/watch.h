/*
 * The agent's own watch on /etc/environment. When anybody but an identity handshake writes it, with
 * other content or the same, by rename, in place, or by removing and making it, what must
 * see it is restarted (units.h), once, for the state that it is left in: WATCH_QUIET_MS
 * after the last change, WATCH_LONGEST_MS after the first.
 */
#ifndef PANDO_GUEST_AGENT_IDENTITY_WATCH_H
#define PANDO_GUEST_AGENT_IDENTITY_WATCH_H

#include "common/err.h"

#define WATCH_QUIET_MS 50
#define WATCH_LONGEST_MS 1000

/* The loop must be there. */
int watch_init(struct err *e);

#endif
