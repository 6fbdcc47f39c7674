/*
 * Units of systemd, through sd-bus: started, stopped, restarted, with the end of the job
 * waited for and the reason of a failure said. Speaks to systemd itself
 * (/run/systemd/private), so that it works in guests that have no D-Bus daemon; root
 * only.
 *
 * The only caller of libsystemd in the guest, with common/systemd.c. It is in a program
 * of its own, pando-units: the agent is static, and stays as small as it is.
 */
#ifndef PANDO_GUEST_AGENT_TOOLS_UNIT_BUS_H
#define PANDO_GUEST_AGENT_TOOLS_UNIT_BUS_H

#include "common/err.h"

struct bus;

/* address NULL: systemd's own. -ECONNREFUSED, -ENOENT: no systemd there. */
int bus_open(const char *address, struct bus **ret, struct err *e);
void bus_close(struct bus *b);
static inline void
bus_close_fn(struct bus **b)
{
	bus_close(*b);
}
#define cleanup_bus __attribute__((cleanup(bus_close_fn)))

/* verb: "start", "stop", "restart", "try-restart" (nothing where it does not run). 0 when
 * the job has ended as it should. -EIO: it failed, and the sentence says how; -ENOENT: no
 * such unit; -ETIMEDOUT: the job goes on; -EINVAL: no such verb. */
int bus_unit(struct bus *b, const char *verb, const char *unit, unsigned limit_ms,
	struct err *e);

/*
 * What of the units is not as it should be, into *o as an object:
 *
 *	{"system": "running"…,               systemd's word for all of it
 *	 "failed": [{"unit", "why"}…],
 *	 "not_active": [{"unit", "why"}…],   enabled, wanted by what is active, not active
 *	 "paths": [{"unit", "service", "state"}…]}  path units that wait while their service
 *	                                     is active, and its state ("exited", "running")
 *
 * At most BUS_LOOK_MAX of each.
 */
#define BUS_LOOK_MAX 32
struct json_out;
int bus_look(struct bus *b, struct json_out *o, struct err *e);

#endif
