/*
 * What of this machine must see a new environment: the units named in /etc/pando/restart,
 * one a line ('#' begins a comment). They are restarted where they run, and left alone
 * where they do not. pando-units does it (unit_bus.h), or, in guests that have none,
 * systemctl; both wait for the jobs and say why one failed.
 */
#ifndef PANDO_GUEST_AGENT_IDENTITY_UNITS_H
#define PANDO_GUEST_AGENT_IDENTITY_UNITS_H

#include "guest-agent/system/helper.h"

#define UNITS_FILE "/etc/pando/restart"
#define UNITS_LIMIT_MS 60000
#define UNITS_MAX 64

/* 1: h runs, and will say when it is done; 0: there is nothing to restart. -EINVAL: the
 * file names what cannot be a unit. */
int units_restart(struct helper *h, struct err *e);

#endif
